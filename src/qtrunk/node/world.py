"""The real world behind the ports: clock, dice, memory that is not dumped."""

import ctypes
import os
import time

from qtrunk.base.errors import LabError
from qtrunk.crypto import randomness

_PR_SET_DUMPABLE = 4


class SystemClock:
    """`base.ports.Clock` on the machine's clocks."""

    def unix_s(self) -> float:
        """Seconds since 1970-01-01T00:00Z."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds of a clock that never goes back."""
        return time.monotonic()


class SystemRandom:
    """`base.ports.Random` on the operating system's generator, mixed with a hardware device where there is one; tested
    without pause (crypto.randomness).
    """

    def __init__(self, device: str | None = None) -> None:
        self._source = randomness.system() if device is None else randomness.TestedRandom(randomness.mixed(device))

    def octets(self, count: int) -> bytes:
        """`count` unpredictable octets; RandomnessFailed from the first failed test on."""
        return self._source.octets(count)


def forbid_core_dumps() -> None:
    """Key material in memory stays out of core dumps and away from ptrace by other processes."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise LabError(f"prctl(PR_SET_DUMPABLE): {os.strerror(ctypes.get_errno())}")
