"""Unpredictable octets for every secret, from the operating system or a hardware device, under continuous test.

The one source of bits, bases, seeds, salts and keys. It is tested with the health tests of NIST SP 800-90B section 4.4,
at start on START_OCTETS octets that are thrown away, and from then on along every octet handed out:

repetition count (4.4.1)      one octet value never comes REPETITIONS times in a row
adaptive proportion (4.4.2)   within WINDOW octets the first one's value never comes PROPORTION times

The cutoffs are those of a source with at least ENTROPY_BITS bits of min-entropy an octet and a false alarm of at most
2^-40 for each octet or window. A source that fails once is not used again until the process starts anew: from a broken
generator no key may come. The tests find a generator that is stuck or badly biased; a predictable one that looks fair
they cannot find, no test can.

A hardware device is mixed in by XOR, so the result is as good as the better of the two.
"""

import os
import threading
from collections.abc import Callable

import numpy as np

from qtrunk.base.errors import RandomnessFailed

ENTROPY_BITS = 6.0
REPETITIONS = 8
"""1 + ceil(40 / ENTROPY_BITS)."""
WINDOW = 512
PROPORTION = 35
"""1 + the 1 - 2^-40 quantile of the binomial distribution of WINDOW trials of chance 2^-ENTROPY_BITS."""
START_OCTETS = 4096


class HealthTests:
    """The two tests along a stream of octets, in pieces of any size; RandomnessFailed when one fails."""

    def __init__(self) -> None:
        self._last = -1
        self._run = 0
        self._first = -1
        self._count = 0
        self._seen = 0
        """Of the current window."""

    def check(self, octets: bytes) -> None:
        """The next octets of the stream."""
        data = np.frombuffer(octets, np.uint8)
        if len(data):
            self._check_repetitions(data)
            self._check_proportions(data)

    def _check_repetitions(self, data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        ends = np.flatnonzero(np.diff(data)) + 1
        edges = np.concatenate(([0], ends, [len(data)]))
        runs = np.diff(edges)
        if data[0] == self._last:
            runs[0] += self._run
        if runs.max() >= REPETITIONS:
            raise RandomnessFailed(
                f"the generator gave one octet {runs.max()} times in a row; {REPETITIONS} is too many"
            )
        self._last, self._run = int(data[-1]), int(runs[-1])

    def _check_proportions(self, data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        if self._seen:
            head = data[: WINDOW - self._seen]
            self._count += int((head == self._first).sum())
            self._seen = (self._seen + len(head)) % WINDOW
            self._judge(self._count)
            data = data[len(head) :]
        whole = data[: len(data) // WINDOW * WINDOW].reshape(-1, WINDOW)
        if len(whole):
            self._judge(int((whole == whole[:, :1]).sum(axis=1).max()))
        rest = data[whole.size :]
        if len(rest):
            self._first, self._count, self._seen = int(rest[0]), int((rest == rest[0]).sum()), len(rest)
            self._judge(self._count)

    def _judge(self, count: int) -> None:
        if count >= PROPORTION:
            raise RandomnessFailed(
                f"the generator gave one octet {count} times among {WINDOW}; {PROPORTION} is too many"
            )


class TestedRandom:
    """`base.ports.Random` over a source, for any number of threads; RandomnessFailed for ever after a failed test."""

    __test__ = False  # no test of ours, for all that its name begins so

    def __init__(self, source: Callable[[int], bytes]) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._tests = HealthTests()
        self._failure: str | None = None
        self.octets(START_OCTETS)

    def octets(self, count: int) -> bytes:
        """`count` unpredictable octets."""
        with self._lock:
            if self._failure is not None:
                raise RandomnessFailed(self._failure)
            try:
                made = self._source(count)
                if len(made) != count:
                    raise RandomnessFailed(f"the generator gave {len(made)} octets instead of {count}")
                self._tests.check(made)
            except (OSError, RandomnessFailed) as error:
                self._failure = f"randomness: {error}; restart the node, and replace the device if it fails again"
                raise RandomnessFailed(self._failure) from error
        return made


def mixed(device: str) -> Callable[[int], bytes]:
    """A source that XORs what a device file gives with the operating system's octets."""

    def source(count: int) -> bytes:
        with open(device, "rb", buffering=0) as stream:  # noqa: PTH123  # unbuffered: octets are used once
            made = bytearray()
            while len(made) < count:
                part = stream.read(count - len(made))
                if not part:
                    raise OSError(f"{device} has no more octets")
                made += part
        own = np.frombuffer(os.urandom(count), np.uint8)
        return (np.frombuffer(made, np.uint8) ^ own).tobytes()

    return source


_system: TestedRandom | None = None
_making = threading.Lock()


def system() -> TestedRandom:
    """The process's own source: the operating system's generator (getrandom(2)), tested."""
    global _system  # noqa: PLW0603  # one generator a process, tested once when it is first needed
    with _making:
        if _system is None:
            _system = TestedRandom(os.urandom)
        return _system


def octets(count: int) -> bytes:
    """Unpredictable octets of the process's own source."""
    return system().octets(count)
