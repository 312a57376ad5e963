"""Eve's apparatus against itself done photon by photon, and against what is known of it.

The tables of quantum.attack are closed forms; here the same attacks are played out with dice, pulse by pulse.
FALSE_ALARM is the chance that a right program fails one comparison.
"""

from dataclasses import replace

import numpy as np
import pytest
from quantum_links import optics
from scipy import stats

from qtrunk.quantum.analytic import expected
from qtrunk.quantum.attack import KINDS, Attack, faraday_mirror_states, knowledge, maximum_confidence

FALSE_ALARM = 1e-7
PULSES = 2_000_000
QUIET = {"dark_count_probability": 0.01}


def short_line(**changes):
    """Lossy enough that a lossless one helps Eve, and with detectors so good that everything is frequent."""
    return optics(6.0, receiver_loss_db=1.0, visibility=0.96, residual_phase_rad=0.0, intensity_fluctuation=0.0,
                  detector={**QUIET, "efficiency": 0.6}, **changes)  # fmt: skip


def agrees(seen, table):
    """Counts of (only first, only second, both) among PULSES."""
    return all(
        stats.binomtest(int(count), PULSES, float(min(1, max(0, chance)))).pvalue > FALSE_ALARM
        for count, chance in zip(seen, table, strict=True)
    )


def detect(dice, link, photons, basis, state, noise=True):
    """Photons at Bob's entrance that carry `state`, seen in `basis`: counts of only first, only second, both."""
    share = link.shares()[state, basis, 0]
    inside = dice.binomial(photons, link.receiver_transmittance)
    to_first = dice.binomial(inside, share)
    dark = 0.01 if noise else 0.0
    first = (dice.binomial(to_first, 0.6) > 0) | (dice.random(PULSES) < dark)
    second = (dice.binomial(inside - to_first, 0.6) > 0) | (dice.random(PULSES) < dark)
    return (first & ~second).sum(), (second & ~first).sum(), (first & second).sum()


@pytest.mark.parametrize(("state", "basis"), [(0, 0), (1, 0), (2, 0), (3, 1), (1, 1)])
@pytest.mark.parametrize("level", [0, 1])
def test_intercept_and_resend_played_out(level, state, basis):
    link, dice = short_line(), np.random.default_rng(51)
    situation = Attack("intercept-resend", 1.0, 0.7).on(link)
    sees = dice.random(PULSES) < 1 - np.exp(-0.7 * link.intensities[level])
    eve_basis = dice.integers(0, 2, PULSES)
    bit = np.where(eve_basis == state // 2, state % 2, dice.integers(0, 2, PULSES))
    # How bright she sends is her own choice; the strongest branch tells it: P(no click at all) in matched bases.
    matched = situation.branches[0].outcomes[0].sum()
    light = -np.log((1 - matched) / (1 - 0.01) ** 2) / (link.receiver_transmittance * 0.6)
    photons = np.where(sees, dice.poisson(light, PULSES), 0)
    total = np.zeros(3)
    for sent in range(4):
        here = photons * (2 * eve_basis + bit == sent)
        total += detect(dice, link, here, basis, sent, noise=False)
    # Noise is on top of all four: put it on the summed-up outcome.
    silent = PULSES - total.sum()
    none, first, second = (
        silent * 0.99**2,
        total[0] * 0.99 + silent * 0.01 * 0.99,
        total[1] * 0.99 + silent * 0.01 * 0.99,
    )
    seen = (first, second, PULSES - none - first - second)
    assert agrees(np.rint(seen), situation.outcomes[level, state, basis])


@pytest.mark.parametrize(("state", "basis"), [(0, 0), (2, 0), (3, 1)])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_photon_number_splitting_played_out(level, state, basis):
    link, dice = short_line(), np.random.default_rng(52)
    situation = Attack("photon-number-splitting").on(link)
    silent, single, *multi = situation.branches
    passes = single.weight[0, 0] / (link.intensities[0] * np.exp(-link.intensities[0]))
    assert 0 <= passes < 1
    numbers = dice.poisson(link.intensities[level], PULSES)
    lets = (numbers == 1) & (dice.random(PULSES) < passes)
    # The line is thinned only where even without single photons too much would come; here she needs some of them.
    assert passes > 0
    photons = np.where(numbers >= 2, numbers - 1, lets)
    assert agrees(detect(dice, link, photons, basis, state), situation.outcomes[level, state, basis])
    assert sum(branch.weight for branch in situation.branches) == pytest.approx(1)
    assert silent.weight[level, 0] == pytest.approx((numbers < 2).mean() - lets.mean(), abs=3e-3)
    assert len(multi) == 2


@pytest.mark.parametrize(("state", "basis"), [(0, 0), (1, 0), (2, 0), (3, 1)])
def test_faked_states_on_blinded_detectors_played_out(state, basis):
    link, dice = short_line(), np.random.default_rng(53)
    situation = Attack("blinding", 1.0, 10.0).on(link)
    efficiency = -np.log(
        1 - 2 * sum(b.weight[0, 0] for b in situation.branches[:2]) / (2 * link.source.exact_key_basis_probability)
    )
    efficiency /= link.intensities[0]
    sees = dice.random(PULSES) < 1 - np.exp(-efficiency * link.intensities[0])
    eve_basis = dice.random(PULSES) >= link.source.exact_key_basis_probability
    bit = np.where(eve_basis == state // 2, state % 2, dice.integers(0, 2, PULSES))
    energy = link.detectors[0].trigger_always_j
    to_first = np.where(eve_basis == basis, np.where(bit == 0, 1.0, 0.0), 0.5) * sees * energy
    first = to_first >= link.detectors[0].trigger_always_j
    second = sees * energy - to_first >= link.detectors[0].trigger_always_j
    seen = ((first & ~second).sum(), (second & ~first).sum(), (first & second).sum())
    assert agrees(seen, situation.outcomes[0, state, basis])


def test_light_too_weak_to_blind_leaves_the_detectors_alone():
    link = optics()
    weak = Attack("blinding", 1.0, 1e-3).on(link)
    np.testing.assert_array_equal(weak.outcomes, link.outcomes())
    assert weak.photocurrent_a > 0
    assert knowledge(link, weak) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("state", "basis"), [(0, 0), (2, 0), (3, 1)])
def test_a_time_shift_played_out(state, basis):
    link, dice = short_line(), np.random.default_rng(54)
    first, second = link.detectors
    link = replace(link, detectors=(replace(first, gate_delay_s=-30e-12), replace(second, gate_delay_s=30e-12)))
    situation = Attack("time-shift", 1.0, 80.0).on(link)
    early = situation.branches[0].outcomes[0, 0, 0]
    arrive = np.where(dice.integers(0, 2, PULSES) == 0, -80e-12, 80e-12)
    # Gaussian gates, 180 ps at half maximum.
    eta = [0.6 * np.exp(-4 * np.log(2) * ((arrive - delay) / 180e-12) ** 2) for delay in (-30e-12, 30e-12)]
    share = link.shares()[state, basis, 0]
    fires = early[0] + early[2]
    detected = -np.log((1 - fires) / 0.99) / (
        link.intensities[0] * link.shares()[0, 0, 0] * link.receiver_transmittance
    )
    line = detected / (0.6 * np.exp(-4 * np.log(2) * (50 / 180) ** 2))
    photons = dice.poisson(link.intensities[0] * line * link.receiver_transmittance, PULSES)
    to_first = dice.binomial(photons, share)
    clicks = [
        (dice.binomial(n, np.minimum(1, e)) > 0) | (dice.random(PULSES) < 0.01)
        for n, e in ((to_first, eta[0]), (photons - to_first, eta[1]))
    ]
    seen = ((clicks[0] & ~clicks[1]).sum(), (clicks[1] & ~clicks[0]).sum(), (clicks[0] & clicks[1]).sum())
    assert agrees(seen, situation.outcomes[0, state, basis])
    assert 0.01 < knowledge(link, situation) < 0.3


def test_imperfect_mirrors_give_the_known_confidences_and_success():
    chances = maximum_confidence(faraday_mirror_states(np.radians(1.0)))
    confidence = np.diag(chances) / chances.sum(axis=1)
    assert confidence == pytest.approx([0.875, 0.625, 0.625, 0.875], abs=1e-3)
    for degrees, success in ((0.5, 2.4e-4), (1.0, 9.7e-4), (2.0, 3.9e-3), (5.0, 2.4e-2)):
        mean = maximum_confidence(faraday_mirror_states(np.radians(degrees))).sum(axis=0).mean()
        assert mean == pytest.approx(success, rel=0.02)
    total = chances.sum(axis=0)
    assert np.all(total <= 1 + 1e-12)


def test_the_passive_mirror_attack_hides_only_behind_a_long_line():
    for loss_db, is_hidden in ((10.0, False), (40.0, True)):
        link = optics(loss_db, detector={"dark_count_probability": 1e-9, "afterpulse_probability": 0.0})
        want, honest = expected(link, Attack("passive-faraday-mirror").on(link)), expected(link)
        assert (want.gains[0] > 0.99 * honest.gains[0]) == is_hidden
        if is_hidden:
            assert want.qber[0] == pytest.approx(0.157 + 0.008, abs=0.01)


def test_eve_knows_what_theory_lets_her_know():
    link = optics(10.0)
    per_click = link.source.exact_probabilities * np.array(expected(link).gains)
    per_click /= per_click.sum()

    def known(kind, **options):
        return knowledge(link, Attack(kind, **options).on(link))

    assert known("none") == pytest.approx(0, abs=1e-12)
    assert known("intercept-resend") == pytest.approx(0.5, abs=0.01)
    assert known("intercept-resend", fraction=0.2) == pytest.approx(0.1, abs=0.005)
    tapped = 1 - np.exp(-link.intensities * (1 - link.fibre_transmittance))
    assert known("beam-splitting") == pytest.approx(float(per_click @ tapped), rel=0.01)
    right = (1 + np.sqrt(1 - np.exp(-0.4))) / 2
    helstrom = 1 + right * np.log2(right) + (1 - right) * np.log2(1 - right)
    assert known("trojan-horse", strength=0.1) == pytest.approx(helstrom, rel=1e-6)
    assert known("photon-number-splitting") > 0.98
    assert known("blinding") == pytest.approx(1, abs=1e-6)
    assert known("bend") == pytest.approx(0, abs=1e-12)
    # Both detectors alike: a shift tells nothing.
    assert known("time-shift") == pytest.approx(0, abs=1e-12)


def test_eve_keeps_the_signal_gain_where_she_can():
    link = optics(12.0)
    honest = expected(link).gains[0]
    for kind in ("intercept-resend", "photon-number-splitting", "blinding", "after-gate", "time-shift", "calibration"):
        assert expected(link, Attack(kind).on(link)).gains[0] == pytest.approx(honest, rel=0.03), kind


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_attack_is_a_fair_deal_of_chances(kind):
    for loss_db in (0.0, 10.0, 30.0):
        link = optics(loss_db, is_phase_random=False)
        for fraction in (0.0, 0.3, 1.0):
            situation = Attack(kind, fraction).on(link, 0.2, 5.0)
            weights = sum(branch.weight for branch in situation.branches)
            np.testing.assert_allclose(weights, 1.0, atol=1e-9)
            assert all(np.all(branch.weight >= -1e-12) for branch in situation.branches)
            assert np.all(situation.outcomes >= -1e-12)
            assert np.all(situation.outcomes.sum(axis=-1) <= 1 + 1e-12)
            if fraction == 0:
                np.testing.assert_allclose(situation.outcomes, link.outcomes(0.2), atol=1e-12)


def test_against_random_phases_there_is_nothing_to_discriminate():
    link = optics()
    np.testing.assert_array_equal(Attack("unambiguous-discrimination").on(link).outcomes, link.outcomes())
    seen = expected(
        replace(link, is_phase_random=False),
        Attack("unambiguous-discrimination").on(replace(link, is_phase_random=False)),
    )
    assert seen.gains[1] / seen.gains[0] < 0.5 * expected(link).gains[1] / expected(link).gains[0]
