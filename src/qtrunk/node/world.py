"""The real world behind the ports: clock and dice."""

import time

from qtrunk.crypto import randomness


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
