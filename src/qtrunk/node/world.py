"""The real world behind the ports: clock, dice, threads. A simulation hands a node another `World`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from qtrunk.base.ports import Clock, Random
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


class Worker(Protocol):
    """Does jobs one after the other, beside the event loop."""

    def do(self, job: Callable[[], None]) -> None:
        """Do a job behind all that were given before; it must not raise."""

    def close(self) -> None:
        """Wait for the jobs that were given."""


class ThreadWorker:
    """A bare thread and queue: an executor's futures cost more than a flush of a journal."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def do(self, job: Callable[[], None]) -> None:
        """See Worker."""
        self._jobs.put(job)

    def close(self) -> None:
        """See Worker."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


@dataclass(frozen=True, slots=True)
class World:
    """What a node stands on."""

    clock: Clock
    random: Random
    worker: Callable[[str], Worker] = ThreadWorker


def real_world(random_device: str | None = None) -> World:
    """This machine."""
    return World(SystemClock(), SystemRandom(random_device))
