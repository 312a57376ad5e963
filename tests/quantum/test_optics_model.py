"""The formulas of one pulse against photons counted one by one, and the model's own consistency.

The sampler and the oracle share these formulas, so they cannot find a mistake in them; this can.
FALSE_ALARM is the chance that a right program fails one comparison.
"""

from dataclasses import replace

import numpy as np
import pytest
from quantum_links import EQUIPMENT, optics
from scipy import stats

from qtrunk.quantum.analytic import expected
from qtrunk.quantum.optics import Paths, of_equipment
from qtrunk.quantum.source import SourceSettings

FALSE_ALARM = 1e-7
PULSES = 1_000_000
SOURCE = SourceSettings((0.5, 0.18, 0.0), (0.75, 0.15, 0.10), 0.9)
TEXTBOOK = {
    "source": SOURCE,
    "detector": {"efficiency": 0.2, "dead_time_s": 0.0, "afterpulse_hold_off_s": 0.8e-9, "afterpulse_cutoff_s": 0.8e-6},
    "visibility": 0.984,
    "residual_phase_rad": 0.0,
    "intensity_fluctuation": 0.0,
}
"""The reference line of 10 dB without dead time, as textbook formulas have it."""


def agrees(count, total, probability):
    return stats.binomtest(int(count), int(total), float(probability)).pvalue > FALSE_ALARM


@pytest.mark.parametrize("state", range(4))
@pytest.mark.parametrize("basis", [0, 1])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_pulse_clicks_as_its_photons_do(level, state, basis):
    # A short line and loud, unlike detectors, so that every case is frequent.
    link = optics(
        1.0, source=SOURCE, receiver_loss_db=0.0, visibility=0.9, residual_phase_rad=0.0, intensity_fluctuation=0.1
    )
    first, second = link.detectors
    link = replace(
        link,
        detectors=(
            replace(first, efficiency=0.7, dark_count_probability=0.03, gate_delay_s=0.0),
            replace(second, efficiency=0.5, dark_count_probability=0.05, gate_delay_s=0.0),
        ),
    )
    dice = np.random.default_rng(41)
    mean = SOURCE.intensities[level] * np.clip(1 + 0.1 * dice.standard_normal(PULSES), 0, None)
    arrived = dice.binomial(dice.poisson(mean), 10**-0.1)
    difference = {0: 0.0, 1: np.pi, 2: np.pi / 2, 3: 3 * np.pi / 2}[state] - basis * np.pi / 2
    to_first = dice.binomial(arrived, (1 + 0.9 * np.cos(difference)) / 2)
    clicks = [
        (dice.binomial(photons, efficiency) > 0) | (dice.random(PULSES) < dark)
        for photons, efficiency, dark in ((to_first, 0.7, 0.03), (arrived - to_first, 0.5, 0.05))
    ]
    table = link.outcomes()[level, state, basis]
    assert agrees((clicks[0] & ~clicks[1]).sum(), PULSES, table[0])
    assert agrees((clicks[1] & ~clicks[0]).sum(), PULSES, table[1])
    assert agrees((clicks[0] & clicks[1]).sum(), PULSES, table[2])


def test_the_reference_line_has_its_known_gains_and_errors():
    # 50 km at 10 dB, 5.02 % behind the fibre. Gains by hand: 1 - exp(-0.00502 mu) with noise of 1e-6 and of 0.75 % of
    # all clicks in each detector; errors 0.8 % of the light and half of the noise.
    link = optics(**{**TEXTBOOK, "detector": {**TEXTBOOK["detector"], "efficiency": 0.0502 * 10**0.6}})
    want = expected(link)
    light = [1 - np.exp(-0.00502 * k) for k in (0.5, 0.18, 0.0)]
    mean = 0.75 * light[0] + 0.15 * light[1]
    noise = 2 * (1e-6 + 0.0075 * mean / (1 - 0.015))
    assert want.gains == pytest.approx([q + noise for q in light], rel=2e-3)
    assert want.errors == pytest.approx([(0.008 * q + noise / 2) / (q + noise) for q in light], rel=5e-3)


@pytest.mark.parametrize(("level", "gain", "error"), [(0, 2.548e-3, 0.01566), (1, 9.195e-4, 0.01634)])
def test_a_line_of_one_level_follows_the_textbook_formula(level, gain, error):
    # The usual formula lets afterpulses follow the clicks of their own level; for a source that sends nearly always the
    # same level that is our background. Values computed apart from this code. It leaves out afterpulses of
    # afterpulses: p^2 of the clicks and half as many errors.
    probabilities = tuple(0.9998 if k == level else 0.0001 for k in range(3))
    source = SourceSettings((0.5, 0.18, 0.0), probabilities, 0.9)
    detector = {**TEXTBOOK["detector"], "efficiency": 0.0502 * 10**0.6}
    want = expected(optics(**{**TEXTBOOK, "source": source, "detector": detector}))
    assert want.gains[level] == pytest.approx(gain, rel=1e-3)
    assert want.errors[level] == pytest.approx(error + 0.015**2 / 2, rel=2e-3)


def test_phase_noise_and_lost_visibility_turn_into_errors():
    def error(visibility, phase_rad):
        shares = optics(visibility=visibility, residual_phase_rad=phase_rad).shares()
        return shares[0, 0, 1]

    assert error(1.0, 0.0) == 0.0
    assert error(0.98, 0.0) == pytest.approx(0.01)
    assert error(1.0, 0.2) == pytest.approx(0.0099, rel=1e-2)


def test_a_phase_offset_turns_one_basis_into_the_other():
    paths = Paths.of_visibility(1.0)
    np.testing.assert_allclose(paths.shares(0.0)[0], [[1, 0], [0.5, 0.5]], atol=1e-12)
    np.testing.assert_allclose(paths.shares(np.pi / 2)[0], [[0.5, 0.5], [1, 0]], atol=1e-12)
    for offset in (0.1, 1.0, 4.0):
        np.testing.assert_allclose(paths.shares(offset).sum(axis=-1), 1.0)
        error = paths.shares(offset)[0, 0, 1]
        assert error == pytest.approx((1 - np.cos(offset)) / 2)


def test_paths_from_a_table_are_those_that_made_it():
    paths = Paths.of_visibility(0.95)
    again = Paths.of_table(*(paths.shares(offset) / 2 for offset in (0.0, np.pi / 2, np.pi)))
    for offset in (0.0, 0.3, 2.0):
        np.testing.assert_allclose(again.shares(offset), paths.shares(offset), atol=1e-12)


def test_a_topologys_equipment_becomes_a_light_path():
    link = of_equipment(EQUIPMENT, 10.0)
    reach = link.fibre_transmittance * link.receiver_transmittance * link.efficiencies
    assert reach == pytest.approx([0.1 * 10**-0.6 * 0.125] * 2)
    assert link.dead_pulses == 125
    assert link.afterpulses.mean == pytest.approx(EQUIPMENT.afterpulse_probability, rel=2e-2)
    apart = of_equipment(replace(EQUIPMENT, gate_mismatch_s=40e-12), 10.0)
    assert [each.gate_delay_s for each in apart.detectors] == [-20e-12, 20e-12]
    slow = of_equipment(replace(EQUIPMENT, clock_hz=2e7), 10.0)
    assert slow.detectors[0].gate_width_s > link.detectors[0].gate_width_s


def test_settings_made_again_from_exact_probabilities_are_the_same():
    # The node arms its module with the exact values; the module must come to the same thresholds.
    first = SourceSettings((0.5, 0.18, 0.0), (0.7, 0.2, 0.1), 1 / 3)
    again = SourceSettings((0.5, 0.18, 0.0), first.exact_probabilities, first.exact_key_basis_probability)
    np.testing.assert_array_equal(again.intensity_thresholds, first.intensity_thresholds)
    assert again.basis_threshold == first.basis_threshold
    assert again.exact_probabilities == first.exact_probabilities
