"""All chance of a run: one seed, and a stream of its own for each name, so that a throw here moves none there."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """A stream of pseudo-random numbers. Never for secrets of the real world."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self._random = random.Random(seed)

    def child(self, name: str) -> "Dice":
        """The stream of a name, whatever was drawn here before."""
        return Dice(f"{self.seed}/{name}")

    def chance(self, probability: float) -> bool:
        """True so often."""
        return self._random.random() < probability

    def between(self, low: float, high: float) -> float:
        """Uniform in an interval."""
        return low + (high - low) * self._random.random()

    def whole(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return self._random.randint(low, high)

    def after(self, mean: float) -> float:
        """Exponentially distributed: how long until what happens at random."""
        return self._random.expovariate(1.0 / mean)

    def pick(self, choices: Sequence[T]) -> T:
        """One of several."""
        return self._random.choice(choices)

    def shuffled(self, choices: Sequence[T]) -> list[T]:
        """All of them in some order."""
        return self._random.sample(choices, len(choices))

    def octets(self, count: int) -> bytes:
        """See base.ports.Random: the nodes of a simulation draw their secrets here, so that a run can be repeated."""
        return self._random.randbytes(count)
