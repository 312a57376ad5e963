"""Tail bounds where they are hardest: labels that are not alike, limits as arguments, a doubtful inverse, corners."""

import tracemalloc
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, product
from math import comb, isfinite

import numpy as np
import pytest
from proof_kit import ONE_DECOY, TWO_DECOYS
from scipy import special, stats

from qtrunk.distil import bounds as tails
from qtrunk.distil import decoy
from qtrunk.distil.keylength import EPS_MIN, EpsilonBudget, key_length
from qtrunk.distil.proofs import prove
from qtrunk.stages import Observations


def sum_of_labels(probabilities):
    """Distribution of the number of labels that come up, exact."""
    pmf = np.ones(1)
    for p in probabilities:
        pmf = np.convolve(pmf, (1 - p, p))
    return pmf


@pytest.mark.parametrize("p_fail", [0.01, 0.05, 0.2])
def test_limits_of_counts_hold_for_labels_of_unequal_probabilities(p_fail):
    """All means of `alike` equal labels among 24, the others certain or impossible: the extremes of Hoeffding 1956."""

    def worst(limits_of):
        total, most = 24, 0.0
        limits = np.array([limits_of(n, total, p_fail) for n in range(total + 1)])
        for alike, certain in product((1, 2, 3, 6, 12), (0, 1, 5, 12)):
            for p in (0.5 * p_fail, 1.01 * p_fail, 1.05 * p_fail, 0.1, 0.3, 0.5, 0.8, 1 - 1.05 * p_fail, 0.97):
                pmf = sum_of_labels([p] * alike + [1.0] * certain + [0.0] * (total - alike - certain))
                mean = alike * p + certain
                most = max(most, pmf[limits[:, 0] > mean + 1e-12].sum(), pmf[limits[:, 1] < mean - 1e-12].sum())
        return most

    def binomial_only(count, total, p_fail):
        low = special.betaincinv(count, total - count + 1, p_fail) * total if count else 0.0
        up = total - special.betaincinv(total - count, count + 1, p_fail) * total if count < total else total
        return low, up

    assert worst(tails.clopper_pearson) <= p_fail
    assert worst(tails.hoeffding) <= p_fail
    if p_fail == 0.2:  # one label of probability just above: too often for a limit that knows equal labels only
        assert worst(binomial_only) > p_fail


DOUBTFUL = [(1, 10), (2, 1000), (5, 10**6), (999, 10**9), (1000, 10**9), (1000, 3 * 10**8), (10**7, 10**9), (1, 1)]


@pytest.mark.parametrize("p_fail", [1e-202, 8.5e-23, 0.02])
@pytest.mark.parametrize(("count", "total"), DOUBTFUL)
def test_a_lower_limit_fails_no_more_often_than_it_may_and_hardly_less(count, total, p_fail):
    low, up = tails.clopper_pearson(count, total, p_fail)
    assert 0 <= low < count < up or (count == total == up and 0 <= low < count)
    assert special.betainc(count, total - count + 1, low / total) <= p_fail
    if low > 1e-30:
        assert special.betainc(count, total - count + 1, low / total) >= 0.97 * p_fail


@pytest.mark.parametrize("answer", [float("nan"), 0.9, 0.0], ids=["none", "far too high", "far too low"])
def test_an_inverse_function_that_is_wrong_is_not_believed(monkeypatch, answer):
    """SciPy 1.17 gives 2.5 times the count for 1000 of 10^9, and not a number for p_fail of 10^-200."""

    def is_right(limits):
        low, up = limits(1000.0, 1e6, 1e-10)
        return low == pytest.approx(811.9, abs=0.2) and up == pytest.approx(1215.5, abs=0.2)

    def believing(count, total, p_fail):
        return (
            tails.betaincinv(count, total - count + 1, p_fail) * total,
            total - tails.betaincinv(total - count, count + 1, p_fail) * total,
        )

    assert is_right(tails.clopper_pearson)
    assert is_right(believing)
    monkeypatch.setattr(tails, "betaincinv", lambda a, b, p: answer)
    assert is_right(tails.clopper_pearson)
    assert not is_right(believing)


def test_limits_rise_with_the_count():
    for total in (2000, 10**9):
        limits = [tails.clopper_pearson(n, total, 8.5e-23) for n in range(990, 1011)]
        assert limits == sorted(limits)


def test_no_test_errors_are_hidden_by_a_vanishing_epsilon():
    """A limit that is not a number must not turn into an error rate of nothing."""
    block = replace(
        TWO_DECOYS,
        key_counts=(76_000_000, 5_500_000, 7000),
        test_counts=(9_400_000, 680_000, 900),
        test_errors=(300_000, 20_000, 3),
    )
    usual = prove("variable", block).phi_z
    assert 0.03 < usual < prove("variable", replace(block, eps_sec=EPS_MIN)).phi_z


# ── sampling ────────────────────────────────────────────────────────────────────────────────────────────────────────


def chances(wrong, tested, kept):
    """Exact probability of each number of test errors."""
    whole = comb(tested + kept, tested)
    return [Fraction(comb(wrong, x) * comb(tested + kept - wrong, tested - x), whole) for x in range(tested + 1)]


def test_the_sampling_bound_holds_with_limits_for_its_sizes():
    """All splits of up to 18 bits, any number of them wrong, sizes given too small: exact failure probability."""
    p_fail = 0.1
    for tested, kept in ((3, 9), (6, 6), (6, 12), (9, 5)):
        for fewer_tested, fewer_kept in product(range(2, tested + 1), range(2, kept + 1)):
            rates = [tails.hypergeometric(x, fewer_tested, fewer_kept, p_fail) for x in range(tested + 1)]
            for wrong in range(tested + kept + 1):
                chance = chances(wrong, tested, kept)
                failing = sum(c for x, c in enumerate(chance) if x <= wrong and Fraction(wrong - x, kept) > rates[x])
                assert failing <= p_fail, (tested, kept, fewer_tested, fewer_kept, wrong)


@pytest.mark.parametrize("p_fail", [1e-22, 1e-3, 0.3])
@pytest.mark.parametrize(("tested", "kept"), [(1, 50), (5, 5), (13, 300), (40, 2), (200, 50)])
def test_the_sampling_bound_is_the_first_number_of_errors_that_is_ruled_out(tested, kept, p_fail):
    """Against exact fractions: what it says is ruled out at p_fail, and one error less is not at 0.98 of it."""
    for errors in {0, 1, tested // 3, tested // 2, tested - 1} - {tested}:

        def at_most(extra, errors=errors):
            return sum(chances(errors + extra, tested, kept)[: errors + 1])

        first = round(tails.hypergeometric(errors, tested, kept, p_fail) * kept)
        assert first == kept or at_most(first) <= Fraction(p_fail)
        assert first == 1 or at_most(first - 1) >= Fraction(98, 100) * Fraction(p_fail)


def test_the_rate_jumps_with_the_number_of_kept_bits():
    """Why the argument for smaller sizes is one about random parts, not about a rate that falls with the size."""
    rates = [tails.hypergeometric(0, 1, kept, 0.5 / 0.99) for kept in range(2, 9)]
    assert any(later > earlier for earlier, later in pairwise(rates))


def test_a_test_that_says_nothing_bounds_nothing():
    assert tails.hypergeometric(3, 3, 100, 0.01) == 1.0
    assert tails.hypergeometric(0, 0.7, 100, 0.01) == 1.0
    assert tails.hypergeometric(0, 100, 0.5, 0.01) == 1.0


def test_large_samples_take_little_memory_and_agree_with_a_normal_law():
    tracemalloc.start()
    try:
        rate = tails.hypergeometric(3e7, 1e9, 9e9, 1e-10)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100e6
    deviation = np.sqrt(0.03 * 0.97 / 1e9 * (1 + 1 / 9))
    assert (rate - 0.03) / deviation == pytest.approx(stats.norm.isf(1e-10), rel=2e-3)


# ── corners ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bounds", ["exact", "hoeffding"])
def test_no_counts_however_odd_break_the_rule_or_give_more_than_there_is(bounds):
    sizes = (0, 1, 2, 1000, 10**6)
    for key, test in product(product(sizes, repeat=3), ((0, 0, 0), (1, 0, 0), (0, 5, 0), (10**5, 10**4, 3))):
        for errors in ((0, 0, 0), test, tuple(n // 50 for n in test)):
            seen = Observations(
                intensities=TWO_DECOYS.intensities,
                probabilities=TWO_DECOYS.probabilities,
                key_counts=key,
                test_counts=test,
                test_errors=errors,
            )
            made = key_length(seen, 0, EpsilonBudget(), bounds)
            assert 0 <= made.length_bits <= sum(key)
            assert isfinite(made.vacuum_bits)
            assert 0 <= made.single_photon_bits <= sum(key)
            assert 0 < made.phase_error <= 0.5
            if sum(test) < 100 or (errors == test and sum(test) > 0):
                assert made.length_bits == 0


@pytest.mark.parametrize("eps", [0.0, -1e-10, 1.0, 2.0, EPS_MIN / 10, float("nan")])
def test_an_epsilon_that_is_none_is_refused(eps):
    with pytest.raises(ValueError, match="eps_secret"):
        EpsilonBudget(secret=eps)


@pytest.mark.parametrize("block", [TWO_DECOYS, ONE_DECOY], ids=["two", "one"])
def test_a_level_that_is_never_sent_is_refused(block):
    never = (1.0, *(0.0 for _ in block.probabilities[1:]))
    with pytest.raises(ValueError, match="probabilities"):
        decoy.photon_weights(block.intensities, never)
    name = "variable" if len(never) == 3 else "rusca2018"
    with pytest.raises(ValueError, match="probabilities"):
        prove(name, replace(block, probabilities=never))
