"""The formulas of one pulse against photons counted one by one, and the model's own consistency.

The sampler and the oracle share these formulas, so they cannot find a mistake in them; this can.
FALSE_ALARM is the chance that a right program fails one comparison.
"""

import numpy as np
import pytest
from scipy import stats

from qtrunk import kernels
from qtrunk.quantum.analytic import expected
from qtrunk.quantum.attack import Attack
from qtrunk.quantum.channel import Channel
from qtrunk.quantum.optics import LinkOptics
from qtrunk.quantum.source import SourceSettings

FALSE_ALARM = 1e-7
PULSES = 1_000_000


def optics(**changes):
    source = SourceSettings((0.5, 0.18, 0.0), (0.75, 0.15, 0.10), 0.9)
    values = {
        "source": source,
        "clock_hz": 1.25e9,
        "loss_db": 10.0,
        "receiver_loss_db": 6.0,
        "detector_efficiency": 0.2,
        "dark_count_probability": 1e-6,
        "afterpulse_probability": 0.015,
        "dead_time_s": 0.0,
        "visibility": 0.984,
        "residual_phase_rad": 0.0,
    }
    return LinkOptics(**{**values, **changes})


def agrees(count, total, probability):
    return stats.binomtest(int(count), int(total), float(probability)).pvalue > FALSE_ALARM


@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_pulse_clicks_as_its_photons_do(level, matched):
    # A short line and a loud detector, so that every case is frequent.
    link = optics(
        loss_db=1.0,
        receiver_loss_db=0.0,
        detector_efficiency=0.7,
        dark_count_probability=0.03,
        afterpulse_probability=0.0,
        visibility=0.9,
    )
    dice = np.random.default_rng(41)
    seen = dice.binomial(dice.poisson(link.source.intensities[level], PULSES), 10**-0.1 * 0.7)
    wrong_photons = dice.binomial(seen, 0.05 if matched else 0.5)
    right = (seen - wrong_photons > 0) | (dice.random(PULSES) < 0.03)
    wrong = (wrong_photons > 0) | (dice.random(PULSES) < 0.03)
    clicks = (right | wrong).sum()
    only_right, only_one = link.outcome[level, 0 if matched else 1]
    assert agrees(clicks, PULSES, link.click_probabilities[level])
    assert agrees((right & ~wrong).sum(), clicks, only_right)
    assert agrees((right ^ wrong).sum(), clicks, only_one)


def test_the_reference_line_has_its_known_gains_and_errors():
    # 50 km at 10 dB, 5.02 % behind the fibre. Gains by hand: 1 - exp(-0.00502 mu) with noise of 1e-6 and of 0.75 % of
    # all clicks in each detector; errors 0.8 % of the light and half of the noise.
    want = expected(optics(visibility=0.984, detector_efficiency=0.0502 * 10**0.6))
    light = [1 - np.exp(-0.00502 * k) for k in (0.5, 0.18, 0.0)]
    mean = 0.75 * light[0] + 0.15 * light[1]
    noise = 2 * (1e-6 + 0.0075 * mean / (1 - 0.015))
    assert want.gains == pytest.approx([q + noise for q in light], rel=2e-3)
    assert want.errors == pytest.approx([(0.008 * q + noise / 2) / (q + noise) for q in light], rel=5e-3)


@pytest.mark.parametrize(("level", "gain", "error"), [(0, 2.548e-3, 0.01566), (1, 9.195e-4, 0.01634)])
def test_a_line_of_one_level_follows_the_textbook_formula(level, gain, error):
    # The usual formula lets afterpulses follow the clicks of their own level; for a source that sends nearly always the
    # same level that is our steady background. Values computed apart from this code. It leaves out afterpulses of
    # afterpulses: p^2 of the clicks and half as many errors.
    probabilities = tuple(0.9998 if k == level else 0.0001 for k in range(3))
    source = SourceSettings((0.5, 0.18, 0.0), probabilities, 0.9)
    want = expected(optics(source=source, detector_efficiency=0.0502 * 10**0.6))
    assert want.gains[level] == pytest.approx(gain, rel=1e-3)
    assert want.errors[level] == pytest.approx(error + 0.015**2 / 2, rel=2e-3)


def test_afterpulses_are_their_share_of_the_clicks_that_are_left_with_dead_time():
    for dead_time_s in (0.0, 100e-9, 10e-6):
        link = optics(loss_db=3.0, dead_time_s=dead_time_s)
        want = expected(link)
        afterpulses = 2 * (link.noise_probability - link.dark_count_probability)
        assert afterpulses == pytest.approx(0.015 * want.click_hz / link.clock_hz, rel=1e-9)


def test_phase_noise_and_lost_visibility_turn_into_errors():
    assert optics(visibility=1.0).optical_error == 0.0
    assert optics(visibility=0.98).optical_error == pytest.approx(0.01)
    assert optics(visibility=1.0, residual_phase_rad=0.2).optical_error == pytest.approx(0.0099, rel=1e-2)


def test_a_line_without_light_and_noise_is_dark():
    source = SourceSettings((0.0, 0.0, 0.0), (0.5, 0.25, 0.25), 0.9)
    link = optics(source=source, dark_count_probability=0.0, afterpulse_probability=0.0)
    clicks = Channel(link, kernels.new_rng(b"\x05" * 32)).sample(bytes(32), bytes(32), 0, 10_000_000, Attack())
    assert len(clicks.positions) == 0
    assert (len(clicks.bits), clicks.double_count) == (0, 0)


def test_settings_made_again_from_exact_probabilities_are_the_same():
    # The node arms its module with the exact values; the module must come to the same thresholds.
    first = SourceSettings((0.5, 0.18, 0.0), (0.7, 0.2, 0.1), 1 / 3)
    again = SourceSettings((0.5, 0.18, 0.0), first.exact_probabilities, first.exact_key_basis_probability)
    np.testing.assert_array_equal(again.intensity_thresholds, first.intensity_thresholds)
    assert again.basis_threshold == first.basis_threshold
    assert again.exact_probabilities == first.exact_probabilities
