"""Mistakes that key-distribution code was seen to make, each as a check that the mistaken way fails and ours passes.

Those of the formula are here, those of the protocol around it in test_protocol_mistakes.py, those of other parts where
these parts are tested. "." stands for tests/distil.

 1  leak subtracted twice, or simulated instead of counted        ./test_mistakes: leak_is_subtracted_once
    what a retry said forgotten; Bob's words forgotten            ./test_protocol_mistakes: every_try_and_both_ends
    a leak that varies without its price                          ./test_protocol_mistakes: when_a_frame_was_solved
    no limit of the leak beforehand                               ./test_reconcile: rounds_and_failures_are_refused
 2  verification tag not paid for                                 ./test_mistakes: the_verification_tag_is_paid_for
    a polynomial hash booked as 2^-t                              ./test_mistakes: a_polynomial_hash_collides
    a checksum in place of a hash                                 ./test_protocol_mistakes: a_checksum_is_no
    a failed block used or tried again                            ./test_protocol_mistakes: a_block_that_fails
 3  key-basis errors taken for phase errors                       ./test_mistakes: the_phase_error_comes_from
    key errors not counted from the corrections                   ./test_parties: both_ends_hold_the_same_key
 4  leak of the errors of some intensities only                   ./test_mistakes: the_planned_leak_is_of_the_errors
    test and key swapped in Serfling's bound                      ./test_mistakes: serfling_squares_the_size
    entropy that falls again beyond one half                      ./test_mistakes: entropy_does_not_fall
 5  no e^k / p_k; tau_n of the signal only                        ./test_mistakes: decoy_bounds_hold
    Hoeffding's deviation of one level's count                    ./test_mistakes: hoeffding_is_of_all_counts
    an epsilon not split, or once for both sides                  ./test_mistakes: the_epsilon_is_split
    a sampling penalty that is no tail bound                      ./test_mistakes: sampling_bounds_cover
    binomial limits for labels that are not alike                 ./test_bounds: limits_of_counts_hold
 6  size of the test derived, not counted                         ./test_mistakes: the_size_of_the_test
    bases mixed                                                   ./test_protocol_mistakes: key_and_test_are_told
    nominal probabilities                                         ./test_mistakes: probabilities_are_those
 7  frames dropped for their errors                               ./test_mistakes: no_frame_is_dropped
    lost light passed over                                        ./test_session: a_module_that_loses_or_repeats
 8  the same data again until it passes                           ./test_protocol_mistakes: the_test_is_drawn_once
    a block number used again                                     ./test_session: an_old_block_number
    settings chosen after the light                               ./test_session: other_light_than_agreed
 9  a Toeplitz seed too short                                     ./test_protocol_mistakes: a_toeplitz_seed_has
    said too early, or used again                                 ./test_protocol_mistakes: a_toeplitz_seed_is_said
    transforms that round                                         ./test_protocol_mistakes: long_keys_are_hashed
    a matrix that is none                                         kernels/test_kernels: toeplitz_equals_the_direct_sum
10  tags of one direction only                                    ./test_protocol_mistakes: tags_cover_the_messages
    a message changed, moved, reflected, repeated                 ./test_parties: one_flipped_bit_anywhere
                                                                  ./test_parties: a_message_of_another_block
                                                                  ./test_parties: a_reflected_message
                                                                  ./test_parties: a_repeated_message
    a tag's key used twice                                        ./test_protocol_mistakes: a_tag_key_used_twice
                                                                  ./test_protocol_mistakes: each_tag_of_a_block
                                                                  kms/test_spending: authentication_portions_are
    a collision bound of one block                                ./test_protocol_mistakes: a_collision_bound_counts
                                                                  crypto/test_its: the_collision_bound_grows
    key for tags not paid for                                     ./test_protocol_mistakes: what_authentication_costs
    a stranger who drains it                                      relay/test_kx_doubt: a_forged_message_burns
11  key bits, detectors, double clicks announced                  ./test_protocol_mistakes: what_bob_announces
    intensities too early or of other clicks                      ./test_protocol_mistakes: alice_says_nothing_before
12  a bad generator; a simulator's in production                  crypto/test_randomness: a_generator_that_failed_once
                                                                  test_tidy: secrets_come_from_the_system
    settings that depend on each other or are biased              quantum/test_channel: settings_have_the_exact
13  hop keys used twice, kept, or not agreed                      relay/test_kx: both_ends_get_the_same_keys_once
                                                                  relay/test_kx: no_message_and_no_relay_disk
                                                                  kms/test_spending: a_replayed_slice
    epsilons of hops not added                                    relay/test_kx: the_receipts_of_both_ends
14  a bit by rounding                                             ./test_mistakes: a_sum_a_rounding_error_above
    huge counts, vanishing epsilons                               ./test_mistakes: huge_counts_get_bounds
                                                                  ./test_mistakes: a_vanishing_epsilon
                                                                  ./test_bounds: no_test_errors_are_hidden
    a library's inverse function believed                         ./test_bounds: an_inverse_function_that_is_wrong
"""

import re
from dataclasses import replace
from math import exp, log, log2, sqrt
from pathlib import Path

import numpy as np
import pytest
from proof_kit import BLOCKS, PHOTONS, TWO_DECOYS, tagged
from scipy import special, stats

from qtrunk.crypto import universal
from qtrunk.distil import bounds as tails
from qtrunk.distil import decoy, sift
from qtrunk.distil.keylength import EVENTS, EpsilonBudget, entropy
from qtrunk.distil.proofs import PROOFS, prove
from qtrunk.distil.verify import make_hash
from qtrunk.plan.rate import Choice, PlannedLink, planned
from qtrunk.stages import Pulses

TESTS = Path(__file__).parent.parent


def test_the_table_names_tests_that_there_are():
    named = re.findall(r"(\S*test_\w+): (\w+)$", __doc__, re.MULTILINE)
    assert len(named) > 50
    for place, name in named:
        path = TESTS / (place.replace("./", "distil/") + ".py")
        found = re.findall(rf"^def test_(?:\w+_)?{name}", path.read_text(), re.MULTILINE)
        assert found, f"{place}: {name}"


def length(block, name="lim2014"):
    return prove(name, block).length_bits


# ── 1, 2: what was said in public ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", PROOFS)
def test_leak_is_subtracted_once_bit_for_bit(name):
    def is_right(rule):
        block = BLOCKS[name]
        return rule(block) - rule(replace(block, leak_bits=block.leak_bits + 1000)) == 1000

    def twice(block):
        return length(replace(block, leak_bits=2 * block.leak_bits), name)

    def simulated(block):
        qber = sum(block.key_errors) / sum(block.key_counts)
        return length(replace(block, leak_bits=1.16 * sum(block.key_counts) * entropy(qber)), name)

    assert is_right(lambda block: length(block, name))
    assert not is_right(twice)
    assert not is_right(simulated)


@pytest.mark.parametrize("name", PROOFS)
def test_the_verification_tag_is_paid_for(name):
    def is_right(rule):
        block = replace(BLOCKS[name], eps_cor=2.0**-40)
        return rule(block) - rule(replace(block, eps_cor=2.0**-104)) == 64

    assert is_right(lambda block: length(block, name))
    assert not is_right(lambda block: length(replace(block, eps_cor=1e-15), name))


def test_a_polynomial_hash_collides_more_often_the_longer_the_key():
    """The worst pair of keys of so many blocks agrees under as many hash keys as the polynomial has roots."""
    bits = np.zeros(128 * 4000, np.uint8)

    def is_right(epsilon):
        return epsilon >= 4000 * 2.0**-128

    assert is_right(make_hash(bytes(universal.HASH_OCTETS), bits)[1])
    assert not is_right(2.0**-128)


# ── 3, 4: which error rate ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["variable", "lim2014"])
def test_the_phase_error_comes_from_the_test_basis(name):
    block = TWO_DECOYS

    def is_right(rule):
        worse_key = replace(block, key_errors=tuple(2 * m for m in block.key_errors))
        worse_test = replace(block, test_errors=tuple(2 * m for m in block.test_errors))
        return rule(worse_key) == rule(block) and rule(worse_test) > 1.5 * rule(block)

    def of_key_basis(seen):
        return prove(name, replace(seen, test_counts=seen.key_counts, test_errors=seen.key_errors)).phi_z

    assert is_right(lambda seen: prove(name, seen).phi_z)
    assert not is_right(of_key_basis)


def test_the_planned_leak_is_of_the_errors_of_all_intensities():
    link = PlannedLink(km=60, loss_db=14, efficiency=1.2)
    seen = planned(link).observed

    def is_right(leak_bits, levels):
        wrong, n = sum(seen.key_errors[:levels]), sum(seen.key_counts[:levels])
        return leak_bits == pytest.approx(1.2 * sum(seen.key_counts) * entropy(wrong / n), rel=1e-9)

    assert is_right(seen.leak_bits, 3)
    assert not is_right(seen.leak_bits, 2)


def test_serfling_squares_the_size_of_the_test():
    """A sample of one says next to nothing about a thousand; a thousand say much about one."""

    def is_right(penalty):
        return penalty(1, 1000) > 1.4 * penalty(1000, 1)

    assert is_right(lambda tested, kept: tails.serfling_deviation(tested, kept, 1.0))
    assert not is_right(lambda tested, kept: tails.serfling_deviation(kept, tested, 1.0))


def test_entropy_does_not_fall_beyond_one_half():
    def is_right(rule):
        return all(rule(rate) == 1 for rate in (0.5, 0.6, 0.9, 1.0))

    assert is_right(entropy)
    assert not is_right(lambda e: -e * log2(e) - (1 - e) * log2(max(1e-300, 1 - e)))
    for name, block in BLOCKS.items():
        assert length(replace(block, test_errors=block.test_counts), name) == 0


# ── 5: decoy bounds ─────────────────────────────────────────────────────────────────────────────────────────────────


def source(intensities, probabilities):
    return replace(TWO_DECOYS, intensities=intensities, probabilities=probabilities)


HONEST = 1 - (1 - 2e-5) * (1 - 0.02) ** PHOTONS
SPLITTING = np.where(PHOTONS == 1, 0.006, HONEST)
"""Eve blocks two thirds of the single photons."""


def fails_too_often(block, yields=HONEST, singles_of=decoy.two_decoys, errors_of=decoy.two_decoy_errors):
    """Photon-tagged blocks at a failure probability of 1 % an event: is a bound wrong more often than it says?

    200 blocks, 5 events for the photons and 2 for their errors (among those of the key basis, which a simulation
    knows); sound bounds are called wrong once in 10^6.
    """
    rng = np.random.default_rng(5)
    wrong = [0, 0]
    for _ in range(200):
        seen, _, singles, _ = tagged(rng, block, pulses=100_000_000, key_basis=0.8, yields=yields, error=0.02)
        levels = (seen.intensities, seen.probabilities)
        limits = [tails.clopper_pearson(n, sum(seen.key_counts), 0.01) for n in seen.key_counts]
        wrong[0] += singles_of(*levels, limits, sum(seen.key_counts))[1] > singles
        limits = [tails.clopper_pearson(n, sum(seen.key_errors), 0.01) for n in seen.key_errors]
        wrong[1] += errors_of(*levels, limits) < 0.02 * singles - 5 * sqrt(0.02 * singles)
    return any(
        stats.binomtest(count, 200, events * 0.01, alternative="greater").pvalue < 1e-6
        for count, events in zip(wrong, (5, 2), strict=True)
    )


def scaled(factor):
    """Two-decoy bounds with limits multiplied by a factor that depends on intensity and probability."""

    def singles_of(mu, p, limits, total):
        changed = [(factor(k, q) * low, factor(k, q) * up) for k, q, (low, up) in zip(mu, p, limits, strict=True)]
        return decoy.two_decoys(mu, p, changed, total)

    return singles_of


def signal_only(mu, p, limits):
    """tau_1 of the signal alone."""
    return decoy.two_decoy_errors(mu, p, limits) * p[0] * mu[0] * exp(-mu[0]) / decoy.photon_weights(mu, p)[1]


def test_decoy_bounds_hold_and_known_slips_do_not():
    weak = source((0.9, 0.1, 0.0), (0.1, 0.8, 0.1))
    strong = source((0.9, 0.3, 0.0), (0.4, 0.4, 0.2))
    rare = source((0.5, 0.2, 0.0), (0.05, 0.9, 0.05))
    for block in (TWO_DECOYS, weak, strong, rare):
        assert not fails_too_often(block)
        assert not fails_too_often(block, SPLITTING)
    assert fails_too_often(rare, singles_of=scaled(lambda k, p: p))  # without 1 / p_k
    assert fails_too_often(strong, SPLITTING, singles_of=scaled(lambda k, p: exp(-k)))  # without e^k
    assert fails_too_often(weak, errors_of=signal_only)


def test_hoeffding_is_of_all_counts_not_of_those_of_one_intensity():
    """Exact binomial: how often does the mean lie above the upper limit?"""

    def is_right(spread_of):
        p_fail, total, share = 1e-3, 100_000, 0.05
        mean = total * share
        counts = np.arange(total + 1)
        outside = counts + np.array([spread_of(n, total, p_fail) for n in counts]) < mean
        return stats.binom.pmf(counts, total, share)[outside].sum() <= p_fail

    assert is_right(lambda n, total, p: tails.deviation(total, p))
    assert not is_right(lambda n, total, p: tails.deviation(n, p))


def test_the_epsilon_is_split_among_all_events_and_each_side_has_its_own():
    budget = EpsilonBudget(secret=1e-9)

    def is_right(event):
        return 2 * sqrt(EVENTS * event) + budget.amplification <= 1e-9 * (1 + 1e-12)

    assert is_right(budget.event_failure)
    assert not is_right(1e-9)
    assert not is_right((1e-9 / 3) ** 2)
    # Each limit of the pair fails with at most p_fail, both together with up to twice that.
    p_fail, total, mean = 0.01, 2000, 400
    counts = np.arange(total + 1)
    limits = np.array([tails.clopper_pearson(n, total, p_fail) for n in counts])
    chance = stats.binom.pmf(counts, total, mean / total)
    low, up = chance[limits[:, 0] > mean].sum(), chance[limits[:, 1] < mean].sum()
    assert 0.5 * p_fail < low <= p_fail
    assert 0.5 * p_fail < up <= p_fail
    assert low + up > p_fail


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-2, 0.11])
def test_sampling_bounds_cover_what_they_say_exactly_and_the_papers_gamma_does_not(rate):
    """No dice: the hypergeometric distribution says how often each bound is below the true rate of the key bits."""
    kept, tested, alpha = 1_000_000, 100_000, 10**-10.3
    wrong = round(rate * (kept + tested))

    def log10_failure(bound):
        low, high = 0, round(1.2 * rate * tested) + 50  # the most errors seen that still give too low a bound
        while high - low > 1:
            middle = (low + high) // 2
            if bound(middle) < (wrong - middle) / kept:
                low = middle
            else:
                high = middle
        if bound(low) >= (wrong - low) / kept:
            return -np.inf
        return stats.hypergeom.logcdf(low, kept + tested, wrong, tested) / log(10)

    def lim(errors):
        return errors / tested + tails.lim_gamma(21 * alpha, errors / tested, tested, kept, 21)

    assert log10_failure(lambda x: tails.hypergeometric(x, tested, kept, alpha)) <= -10.3
    assert log10_failure(lambda x: tails.serfling(x, tested, kept, alpha)) <= -10.3
    known = {1e-4: -4.6, 1e-3: -11.5, 1e-2: -16.5, 0.11: -17.9}
    assert log10_failure(lim) == pytest.approx(known[rate], abs=0.35)


# ── 6, 7: what counts ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", PROOFS)
def test_the_size_of_the_test_is_counted_not_derived(name):
    def is_right(rule):
        block = BLOCKS[name]
        half = replace(
            block,
            test_counts=tuple(n // 2 for n in block.test_counts),
            test_errors=tuple(m // 2 for m in block.test_errors),
        )
        return rule(half) < rule(block) - 1000

    def derived(block):
        share = 0.12 * sum(block.key_counts) / sum(block.test_counts)
        counts, errors = (tuple(n * share for n in each) for each in (block.test_counts, block.test_errors))
        return length(replace(block, test_counts=counts, test_errors=errors), name)

    assert is_right(lambda block: length(block, name))
    assert not is_right(derived)


def test_probabilities_are_those_that_the_generator_really_gives():
    choice = Choice((0.5, 0.2, 0.0002), (1 / 3, 1 / 3, 1 / 3), 0.7)

    def is_right(probabilities):
        thresholds = [int(t) for t in choice.intensity_thresholds]
        return probabilities[0] == thresholds[0] / 2**32 and abs(sum(probabilities) - 1) < 1e-15

    assert is_right(planned(PlannedLink(km=10, loss_db=3), choice).observed.probabilities)
    assert not is_right(choice.probabilities)


def test_no_frame_is_dropped_for_its_errors():
    """Dropping the frames with most errors hides them: the test then says less than the key has."""
    rng = np.random.default_rng(8)
    pulses = Pulses(
        link="a-b", block=1, count=10**9, intensities=(0.5, 0.2, 0.0), probabilities=(0.5, 0.3, 0.2),
        key_basis_probability=0.8,
    )  # fmt: skip

    def is_right(keep):
        failures = 0
        for _ in range(200):
            errors = (rng.random(20_000) < 0.02).astype(np.uint8)
            kept_errors = int((rng.random(100_000) < 0.02).sum())
            frames = errors.reshape(40, 500)
            shown = frames[keep(frames)].ravel()
            seen = sift.observe(pulses, np.zeros(0, np.uint8), np.zeros(len(shown), np.uint8), shown)
            bound = tails.hypergeometric(sum(seen.test_errors), sum(seen.test_counts), 100_000, 0.01)
            failures += bound < kept_errors / 100_000
        return stats.binomtest(failures, 200, 0.01, alternative="greater").pvalue > 1e-6

    assert is_right(lambda frames: np.ones(len(frames), bool))
    assert not is_right(lambda frames: frames.sum(axis=1) <= np.median(frames.sum(axis=1)))


# ── 14: numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", PROOFS)
def test_a_sum_a_rounding_error_above_a_whole_number_gives_no_bit(name):
    """Leaks that put the exact length just on a whole number from below, where floats may round up."""
    block = BLOCKS[name]
    at = block.leak_bits
    for _ in range(40):
        at = float(np.nextafter(at, np.inf))
    lengths = [length(replace(block, leak_bits=leak), name) for leak in (block.leak_bits, at, block.leak_bits + 0.5)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] <= 1


def test_huge_counts_get_bounds_that_are_sound_and_finite():
    """From 10^14 counts on, the inverse beta function that the exact limits use is wrong by several deviations."""

    def is_right(limits):
        for total in (1e14, 1e15, 1e16, 1e17, 1e18):
            for share in (0.01, 0.05, 0.5, 0.9):
                count = share * total
                spread = 9.5 * sqrt(total * share * (1 - share))  # p_fail of 1e-22 is at 9.75 deviations
                low, up = limits(count, total, 1e-22)
                if not (low <= count - spread and up >= count + spread and 0 <= low <= up <= total):
                    return False
        return True

    def plain(count, total, p_fail):
        low = float(special.betaincinv(count, total - count + 1, p_fail)) * total
        return low, total * (1 - float(special.betaincinv(total - count, count + 1, p_fail)))

    assert is_right(tails.clopper_pearson)
    assert not is_right(plain)
    block = replace(
        TWO_DECOYS,
        **{
            field: tuple(1e11 * n for n in getattr(TWO_DECOYS, field))
            for field in ("key_counts", "key_errors", "test_counts", "test_errors")
        },
    )
    assert 0.3 < length(block, "variable") / sum(block.key_counts) < 1


@pytest.mark.parametrize("name", PROOFS)
def test_a_vanishing_epsilon_costs_key_and_breaks_nothing(name):
    block = BLOCKS[name]
    made = prove(name, replace(block, eps_sec=1e-100))
    assert 0 < made.epsilon.event < 1e-100
    assert 0 <= made.length_bits < length(block, name)
