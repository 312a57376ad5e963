"""Toeplitz hashing by floating-point transforms, timed: prints one JSON object, input bits a second by library.

    python toeplitz_fft.py 1048576 314572

Double precision, which is exact for random bits of these lengths (sums of at most some millions), in the fewest
transforms: two forward, one back, of a length that the library likes. Bits are numbers already; packing is not counted.
Plans of pyFFTW are made beforehand, with ten seconds for each to look for a good one.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import pyfftw
import scipy.fft

RUNS = 7
PLANNING_S = 10.0


def rate(work: Callable[[], np.ndarray], bits_count: int, want: np.ndarray) -> float:
    """Input bits a second, the best of a few runs; what it makes is checked."""
    assert np.array_equal(work(), want)
    best_s = float("inf")
    for _ in range(RUNS):
        began_s = time.process_time()
        work()
        best_s = min(best_s, time.process_time() - began_s)
    return bits_count / best_s


def main() -> None:
    """Run and print."""
    n, length = int(sys.argv[1]), int(sys.argv[2])
    dice = np.random.default_rng(1)
    bits, seed = dice.integers(0, 2, n).astype(float), dice.integers(0, 2, n + length - 1).astype(float)
    # A cyclic product as long as the seed is enough: what wraps round stays below the first output bit.
    size = scipy.fft.next_fast_len(n + length - 1, real=True)

    def by_scipy() -> np.ndarray:
        product = scipy.fft.irfft(scipy.fft.rfft(seed, size) * scipy.fft.rfft(bits, size), size)
        return np.rint(product[n - 1 : n - 1 + length]).astype(np.int64) & 1

    size_w = pyfftw.next_fast_len(n + length - 1)
    real, spectral = pyfftw.zeros_aligned(size_w), pyfftw.zeros_aligned(size_w // 2 + 1, complex)
    plan = {"flags": ("FFTW_MEASURE",), "threads": 1, "planning_timelimit": PLANNING_S}
    ahead = pyfftw.FFTW(real, spectral, direction="FFTW_FORWARD", **plan)
    back = pyfftw.FFTW(spectral, real, direction="FFTW_BACKWARD", **plan)

    def by_fftw() -> np.ndarray:
        real[: len(seed)] = seed
        real[len(seed) :] = 0
        spectrum = ahead().copy()
        real[:n] = bits
        real[n:] = 0
        ahead()
        spectral[:] *= spectrum
        return np.rint(back()[n - 1 : n - 1 + length]).astype(np.int64) & 1

    want = by_scipy()
    print(json.dumps({"scipy.fft": rate(by_scipy, n, want), "pyFFTW": rate(by_fftw, n, want)}))


if __name__ == "__main__":
    main()
