"""Blocks that several tests look at, and a source whose photons are tagged."""

from dataclasses import replace

import numpy as np
from scipy import stats

from qtrunk.distil.proofs import Observed

TWO_DECOYS = Observed(
    intensities=(0.5, 0.18, 0.0002),
    probabilities=(0.75, 0.15, 0.10),
    key_counts=(7_600_000, 550_000, 700),
    key_errors=(114_000, 8_800, 330),
    test_counts=(940_000, 68_000, 90),
    test_errors=(14_800, 1_100, 40),
    leak_bits=1_200_000.0,
    eps_sec=1e-10,
    eps_cor=1e-15,
)
ONE_DECOY = Observed(
    intensities=(0.5, 0.15),
    probabilities=(0.7, 0.3),
    key_counts=(7_000_000, 900_000),
    key_errors=(105_000, 15_000),
    test_counts=(860_000, 110_000),
    test_errors=(13_000, 1_800),
    leak_bits=1_000_000.0,
    eps_sec=1e-10,
    eps_cor=1e-15,
)
BLOCKS = {"variable": TWO_DECOYS, "lim2014": TWO_DECOYS, "rusca2018": ONE_DECOY, "wiesemann2026": ONE_DECOY}
PHOTONS = np.arange(12)


def tagged(rng, block, *, pulses, key_basis, yields, error):
    """One block whose photon numbers are known: (block, s_Z0, s_Z1, phase errors of the latter).

    `yields` by photon number; empty pulses err half of the time, others with `error`, in either basis.
    """
    mu, p = np.array(block.intensities), np.array(block.probabilities)
    chance = p[:, None] * stats.poisson.pmf(PHOTONS, mu[:, None]) * yields
    wrong = np.where(PHOTONS == 0, 0.5, error)
    cells = []
    for share in (key_basis**2, (1 - key_basis) ** 2):
        flat = (share * chance).ravel()
        counts = rng.multinomial(pulses, np.append(flat, 1 - flat.sum()))[:-1].reshape(chance.shape)
        cells.append((counts, rng.binomial(counts, wrong)))
    (key, key_errors), (test, test_errors) = cells

    def by_level(counts):
        return tuple(int(n) for n in counts.sum(axis=1))

    seen = replace(
        block,
        key_counts=by_level(key),
        key_errors=by_level(key_errors),
        test_counts=by_level(test),
        test_errors=by_level(test_errors),
    )
    singles = int(key[:, 1].sum())
    return seen, int(key[:, 0].sum()), singles, int(rng.binomial(singles, error))
