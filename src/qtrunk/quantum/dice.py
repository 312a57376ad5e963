"""Uniform numbers for the slow parts of the light (drift, monitors), as a stream of a seed. Never for a secret."""

from math import sqrt

import numpy as np
from scipy import special

from qtrunk.kernels import F64, stream_words


class Dice:
    """A counter under a seed of 32 octets: the same seed gives the same numbers in the same order."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._at = 0

    def uniforms(self, count: int) -> F64:
        """Numbers in (0, 1), shape (count,)."""
        at = np.arange(self._at, self._at + count, dtype=np.uint64)
        self._at += count
        numbers: F64 = ((stream_words(self._seed, at) >> np.uint64(12)).astype(float) + 0.5) * 2.0**-52
        return numbers

    def normals(self, count: int) -> F64:
        """Standard normal numbers, shape (count,)."""
        numbers: F64 = special.ndtri(self.uniforms(count))
        return numbers

    def count(self, trials: int, chance: float) -> int:
        """A binomial number, by inversion; by a rounded normal where its variance is above 1e4 (off by less than 1 %
        of its deviation).
        """
        mean = trials * chance
        if mean * (1 - chance) > 1e4:
            return int(min(trials, max(0, round(mean + sqrt(mean * (1 - chance)) * float(self.normals(1)[0])))))
        draw = float(self.uniforms(1)[0])
        low, high = -1, min(trials, int(mean + 40 * sqrt(mean + 1) + 40))
        while high - low > 1:
            middle = (low + high) // 2
            if special.bdtr(middle, trials, chance) >= draw:
                high = middle
            else:
                low = middle
        return high
