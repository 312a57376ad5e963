"""Planned links: the figures of a simulated one, limits that no link passes, settings that an optimiser found."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from qtrunk.distil.proofs import PROOFS
from qtrunk.plan.rate import Choice, PlannedLink, asymptotic_bits, best, figures, optimised, planned
from qtrunk.quantum import run
from qtrunk.quantum.channel import Channel, drift_of
from qtrunk.quantum.optics import of_equipment
from qtrunk.topology import Equipment

EQUIPMENT = Equipment()


def link(km, **changes):
    return PlannedLink(km=km, loss_db=1 + 0.21 * km, **changes)


def test_expected_counts_are_those_of_a_simulated_link():
    """One block of 50 km, sampled pulse by pulse; each count within its own noise, false alarm below 10^-6 in all."""
    plan = link(50, block_s=2.0)
    want = planned(plan).observed
    channel = Channel(of_equipment(EQUIPMENT, plan.loss_db), run.seed_of(11, "light"), drift_of(EQUIPMENT, 50))
    seen = run.simulate(channel, seconds=2.0, seed=11, block_pulses=1 << 40)
    wrong = run.BIT != run.ALICE_BIT
    for basis, counts, errors in (
        (0, want.key_counts, want.key_errors),
        (1, want.test_counts, want.test_errors),
    ):
        matched = (basis == run.ALICE_BASIS) & (basis == run.BOB_BASIS)
        for level in range(3):
            here = matched & (level == run.LEVEL)
            for expected, got in (
                (counts[level], seen.counts[here].sum()),
                (errors[level], seen.counts[here & wrong].sum()),
            ):
                # What drift leaves is an average; afterpulses come in bunches: three per cent and a wider noise.
                deviation = max(0.0, abs(got - expected) - 0.03 * expected)
                assert 2 * stats.norm.sf(deviation / (1.1 * np.sqrt(expected + 1))) > 1e-7


@pytest.mark.parametrize("km", [0.0, 25, 50, 75, 100, 140])
def test_no_plan_beats_endless_blocks_or_the_repeaterless_bound(km):
    made = planned(link(km))
    assert 0 <= made.net_bps <= made.secret_bps <= made.asymptotic_bits / 4.0 < made.repeaterless_bps
    short, long = (planned(link(km, block_s=seconds, efficiency=1.2)) for seconds in (4.0, 40.0))
    assert long.secret_bps >= short.secret_bps
    assert long.asymptotic_bits / 40 == pytest.approx(short.asymptotic_bits / 4, rel=1e-9, abs=1)


def test_rates_fall_with_loss_and_come_back_with_a_lower_epsilon():
    rates = [planned(link(km)).secret_bps for km in (0, 20, 40, 60, 80)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0
    assert planned(link(60, eps_sec=1e-14)).secret_bps < planned(link(60)).secret_bps


def test_the_leak_is_that_of_the_links_own_way_or_of_an_efficiency():
    own = figures(planned(link(40)))
    assert 1.04 < own["efficiency"] < 1.07  # Cascade
    # Round trips take too much of so short a block: codes say more.
    assert 1.1 < figures(planned(link(40, block_s=1.0)))["efficiency"] < 1.8
    better, worse = (figures(planned(link(40, efficiency=efficiency))) for efficiency in (1.02, 1.1))
    assert worse["efficiency"] == pytest.approx(1.1, rel=1e-9)
    assert better["secret_bps"] > own["secret_bps"] > worse["secret_bps"]


def test_a_link_too_noisy_for_any_code_gives_no_key():
    noisy = replace(EQUIPMENT, visibility=0.6)
    made = planned(link(10, equipment=noisy))
    assert made.proved.length_bits == 0
    assert made.observed.leak_bits == made.observed.key_total


@pytest.mark.parametrize("proof", PROOFS)
def test_optimised_settings_are_better_valid_and_repeatable(proof):
    plan = link(70, proof=proof)
    usual, found = planned(plan), optimised(plan)
    assert found.secret_bps > 1.03 * usual.secret_bps
    mu, p = found.choice.intensities, found.choice.probabilities
    assert len(mu) == len(p) == PROOFS[proof].levels
    assert list(mu) == sorted(mu, reverse=True)
    assert sum(p) == pytest.approx(1, abs=1e-12)
    assert 0 < found.choice.key_basis_probability < 1
    assert planned(plan, found.choice).secret_bps == found.secret_bps
    assert optimised(plan).choice == found.choice


def test_an_optimum_beats_its_neighbourhood():
    """Forty random settings within a tenth of the optimum; the leak is smooth here, as codes come in steps."""
    plan = link(60, efficiency=1.15)
    found = optimised(plan)
    rng = np.random.default_rng(3)
    for _ in range(40):
        near = rng.uniform(0.9, 1.1, 4)
        mu, p = found.choice.intensities, found.choice.probabilities
        shares = np.array([p[0] * near[2], p[1], p[2]])
        choice = Choice(
            (mu[0] * near[0], mu[1] * near[1], mu[2]),
            tuple(float(share) for share in shares / shares.sum()),
            min(0.99, found.choice.key_basis_probability * (0.5 + near[3] / 2)),
        )
        assert planned(plan, choice).secret_bps <= 1.003 * found.secret_bps


def test_the_search_finds_a_known_maximum():
    """The score is highest at given settings; found to a per cent from a distance."""
    goal = Choice((0.6, 0.25, 0.001), (0.5, 0.3, 0.2), 0.8)

    def score(choice):
        pairs = zip(
            (*choice.intensities[:2], *choice.probabilities, choice.key_basis_probability),
            (*goal.intensities[:2], *goal.probabilities, goal.key_basis_probability),
            strict=True,
        )
        return -sum(np.log(a / b) ** 2 for a, b in pairs)

    found = best(score, Choice((0.3, 0.05, 0.001), (0.8, 0.1, 0.1), 0.5))
    assert found.intensities == pytest.approx(goal.intensities, rel=0.01)
    assert found.probabilities == pytest.approx(goal.probabilities, rel=0.01)
    assert found.key_basis_probability == pytest.approx(0.8, rel=0.01)


def test_asymptotic_bits_are_the_limit_of_ever_larger_blocks():
    seen = planned(link(50, efficiency=1.1)).observed
    last = 0.0
    for size in (1, 100, 10_000):
        large = replace(
            seen,
            leak_bits=seen.leak_bits * size,
            **{
                name: tuple(n * size for n in getattr(seen, name))
                for name in ("key_counts", "key_errors", "test_counts", "test_errors")
            },
        )
        share = PROOFS["lim2014"].rules["hoeffding"](large).length_bits / asymptotic_bits(large)
        assert last < share <= 1
        last = share
    assert last > 0.98
