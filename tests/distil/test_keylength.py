"""The key-length rule: known values, directions, and a count of how often its bound is wrong."""

from dataclasses import replace
from math import comb

import numpy as np
import pytest
from scipy import stats

from qtrunk.distil import bounds as tails
from qtrunk.distil import decoy, keylength
from qtrunk.distil.keylength import EpsilonBudget, key_length
from qtrunk.stages import Observations

SEEN = Observations(
    intensities=(0.5, 0.18, 0.0002),
    probabilities=(0.75, 0.15, 0.10),
    key_counts=(7_600_000, 550_000, 700),
    test_counts=(940_000, 68_000, 90),
    test_errors=(14_800, 1_100, 40),
)
BUDGET = EpsilonBudget()


def bits(seen=SEEN, leak=1_200_000.0, budget=BUDGET, bounds="exact"):
    return key_length(seen, leak, budget, bounds).length_bits


def test_clopper_pearson_has_the_known_limits():
    # 1,000 of 10^6 at 10^-10, two-sided limits of an independent computation.
    low, up = tails.clopper_pearson(1000, 10**6, 1e-10)
    assert low == pytest.approx(811.9, abs=0.1)
    assert up == pytest.approx(1215.5, abs=0.1)
    assert tails.clopper_pearson(0, 100, 1e-10)[0] == 0
    assert tails.clopper_pearson(100, 100, 1e-10)[1] == 100


def test_hoeffding_bounds_by_the_total_not_by_the_count():
    assert tails.hoeffding(1000, 10**6, 1e-10)[1] == pytest.approx(4393, abs=1)


@pytest.mark.parametrize(("errors", "tested", "kept"), [(0, 20, 30), (2, 20, 30), (5, 12, 40)])
def test_hypergeometric_inversion_equals_exact_fractions(errors, tested, kept):
    p_fail = 1e-3

    def at_most(extra):
        wrong, everything = errors + extra, tested + kept
        return sum(comb(wrong, i) * comb(everything - wrong, tested - i) for i in range(errors + 1)) / comb(
            everything, tested
        )

    largest = max(extra for extra in range(kept + 1) if at_most(extra) >= p_fail)
    # The rule rounds up by one error, never down.
    assert largest / kept <= tails.hypergeometric(errors, tested, kept, p_fail) <= (largest + 1) / kept


def test_the_exact_sampling_bound_is_tighter_than_serfling_and_above_the_observed_rate():
    for errors in (20, 2000):
        exact = tails.hypergeometric(errors, 1e5, 1e6, 1e-22)
        assert errors / 1e5 < exact < tails.serfling(errors, 1e5, 1e6, 1e-22)


def test_exact_bounds_give_more_key_than_hoeffding_and_less_than_the_sifted_bits():
    assert 0 < bits(bounds="hoeffding") < bits() < SEEN.key_total


@pytest.mark.parametrize("bounds", ["exact", "hoeffding"])
def test_more_errors_more_leak_or_less_epsilon_never_give_more_key(bounds):
    base = bits(bounds=bounds)
    assert bits(leak=1_300_000, bounds=bounds) < base
    assert bits(budget=EpsilonBudget(secret=1e-14), bounds=bounds) < base
    previous = base
    for factor in (1.2, 2, 4, 8):
        worse = replace(SEEN, test_errors=tuple(int(m * factor) for m in SEEN.test_errors))
        now = bits(worse, bounds=bounds)
        assert now <= previous
        previous = now


def test_there_is_no_key_from_noise_or_nothing():
    nothing = replace(SEEN, key_counts=(0, 0, 0), test_counts=(0, 0, 0), test_errors=(0, 0, 0))
    assert key_length(nothing, 0, BUDGET).length_bits == 0
    noise = replace(SEEN, test_errors=tuple(n // 2 for n in SEEN.test_counts))
    assert key_length(noise, 0, BUDGET) == replace(key_length(noise, 0, BUDGET), length_bits=0)


def test_photon_number_splitting_leaves_no_key():
    # Eve lets only multi-photon pulses pass, so the decoy's gain falls far below the signal's share.
    split = replace(SEEN, key_counts=(8_000_000, 230_000, 700), test_counts=(980_000, 29_000, 90))
    assert bits(split) == 0


def test_wrong_intensities_are_refused():
    with pytest.raises(ValueError, match="mu1 > mu2"):
        key_length(replace(SEEN, intensities=(0.2, 0.18, 0.05)), 0, BUDGET)


def test_entropy_never_falls_above_one_half():
    assert keylength.entropy(0.5) == keylength.entropy(0.9) == 1.0
    assert keylength.entropy(0.11) == pytest.approx(0.49992, abs=1e-4)


def test_the_single_photon_bound_fails_no_more_often_than_it_says():
    """Photons are tagged in a simulation: 400 blocks, each bound may fail with 5 * 2 %; false alarm below 10^-6."""
    rng = np.random.default_rng(42)
    mu, p = np.array(SEEN.intensities), np.array(SEEN.probabilities)
    photons = np.arange(12)
    yields = 1 - (1 - 2e-5) * (1 - 0.02) ** photons
    chance = p[:, None] * stats.poisson.pmf(photons, mu[:, None]) * yields
    failures = 0
    for _ in range(400):
        counts = rng.multinomial(3_000_000, np.append(chance.ravel(), 1 - chance.sum()))[:-1].reshape(3, 12)
        observed = tuple(int(n) for n in counts.sum(axis=1))
        limits = [tails.clopper_pearson(n, sum(observed), 0.02) for n in observed]
        _, bound = decoy.two_decoys(SEEN.intensities, SEEN.probabilities, limits, sum(observed))
        assert bound > 0
        failures += bound > counts[:, 1].sum()
    assert stats.binomtest(failures, 400, 0.10, alternative="greater").pvalue > 1e-6
