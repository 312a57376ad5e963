"""Detectors: the afterpulse law against quadrature and sampling, limits, units and published points.

FALSE_ALARM is the chance that a right program fails one statistical comparison.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import constants, integrate, stats

from qtrunk.base.errors import RequestRefused
from qtrunk.quantum.detectors import (
    INGAAS_1GHZ,
    INGAAS_1MHZ,
    INGAAS_20MHZ,
    NANOWIRE,
    SELF_DIFFERENCING_2007,
    SINE_GATED_2006,
    SINE_GATED_2018,
    DetectorPair,
    dark_count_probability,
)
from qtrunk.quantum.fibre import GAUSSIAN, RECTANGULAR

FALSE_ALARM = 1e-7
PRESETS = [
    INGAAS_1MHZ,
    INGAAS_20MHZ,
    INGAAS_1GHZ,
    SINE_GATED_2006,
    SELF_DIFFERENCING_2007,
    SINE_GATED_2018,
    NANOWIRE,
]
TRAPPING = replace(INGAAS_1GHZ, afterpulse_probability=0.04, afterpulse_hold_off_s=50e-9, afterpulse_cutoff_s=20e-6)


# Afterpulses


@pytest.mark.parametrize("exponent", [0.7, 1.001, 1.2, 1.8])
def test_afterpulses_fall_as_a_power_law_between_hold_off_and_cutoff(exponent):
    trap = replace(TRAPPING, afterpulse_exponent=exponent)
    hold_off, cutoff = trap.afterpulse_hold_off_s, trap.afterpulse_cutoff_s
    total = integrate.quad(lambda t: t**-exponent, hold_off, cutoff, limit=500)[0]
    for time_s in np.geomspace(hold_off, cutoff, 7):
        later = integrate.quad(lambda t: t**-exponent, time_s, cutoff, limit=500)[0]
        assert float(trap.afterpulse_survival(time_s)) == pytest.approx(0.04 * later / total, rel=1e-7, abs=1e-12)
    assert float(trap.afterpulse_survival(hold_off)) == pytest.approx(0.04, rel=1e-12)
    assert float(trap.afterpulse_survival(10 * cutoff)) == 0.0


def test_a_law_close_to_one_over_t_is_the_logarithm():
    trap = replace(TRAPPING, afterpulse_exponent=1 + 1e-7)
    want = 0.04 * np.log(20e-6 / 1e-6) / np.log(20e-6 / 50e-9)
    assert float(trap.afterpulse_survival(1e-6)) == pytest.approx(want, rel=1e-5)


def test_a_shorter_dead_time_than_the_data_sheets_shows_more_afterpulses():
    means = [INGAAS_20MHZ.afterpulse_mean_after(dead_s) for dead_s in (1e-6, 5e-6, 10e-6, 50e-6)]
    assert means == sorted(means, reverse=True)
    assert means[2] == pytest.approx(INGAAS_20MHZ.afterpulse_probability)
    assert INGAAS_20MHZ.afterpulse_mean_after(0.0) == np.inf
    assert NANOWIRE.afterpulse_mean_after(0.0) == 0.0


def test_the_gates_after_a_click_share_out_the_afterpulses():
    period_s = 0.8e-9
    hazard = TRAPPING.afterpulse_gate_hazard(period_s, 25_000)
    assert hazard.shape == (25_000,)
    assert (np.diff(hazard) < 0).all()
    # 25 000 gates reach the cutoff at 20 us.
    assert hazard.sum() == pytest.approx(TRAPPING.afterpulse_mean_after(period_s), rel=1e-9)
    # Gate 62 begins at 49.6 ns, gate 63 at 50.4 ns.
    assert hazard[62:].sum() < 0.04 < hazard[61:].sum()
    # Late gates see the density times the period.
    first, last = 50e-9**-0.2, 20e-6**-0.2
    density = 0.04 * 0.2 * (10_000.5 * period_s) ** -1.2 / (first - last)
    assert hazard[9_999] == pytest.approx(density * period_s, rel=1e-6)


def test_the_inverse_law_undoes_the_survival():
    uniforms = np.linspace(0, 1, 101)[:-1]
    for after_s in (None, 5e-9, 1e-6):
        start_s = TRAPPING.afterpulse_hold_off_s if after_s is None else after_s
        delays = TRAPPING.afterpulse_delay_s(uniforms, after_s)
        assert delays[0] == pytest.approx(start_s)
        assert (np.diff(delays) > 0).all()
        assert delays[-1] < TRAPPING.afterpulse_cutoff_s
        left = TRAPPING.afterpulse_survival(delays) / TRAPPING.afterpulse_survival(start_s)
        np.testing.assert_allclose(left, 1 - uniforms, rtol=1e-9)


def test_sampled_delays_follow_the_power_law():
    # Kolmogorov-Smirnov against the distribution written down here.
    delays = TRAPPING.afterpulse_delay_s(np.random.default_rng(7).random(200_000))
    first, last = 50e-9**-0.2, 20e-6**-0.2
    assert stats.kstest(delays, lambda t: (first - t**-0.2) / (first - last)).pvalue > FALSE_ALARM


def test_sampled_afterpulses_fill_the_gates_as_their_hazard_says():
    dice = np.random.default_rng(11)
    period_s, clicks = 4e-9, 2_000_000
    mean = TRAPPING.afterpulse_mean_after(period_s)
    delays = TRAPPING.afterpulse_delay_s(dice.random(dice.poisson(mean * clicks)), period_s)
    gates = np.floor(delays / period_s).astype(int)
    hazard = TRAPPING.afterpulse_gate_hazard(period_s, 5_000)
    edges = np.array([1, 2, 3, 5, 10, 30, 100, 1000, 5001])
    seen = np.histogram(gates, edges)[0]
    want = clicks * np.array([hazard[a - 1 : b - 1].sum() for a, b in pairwise(edges)])
    # Numbers of releases in disjoint gates are independent Poisson numbers.
    assert stats.chi2.sf(((seen - want) ** 2 / want).sum(), len(want)) > FALSE_ALARM


# Gates and arrival times


def test_efficiency_is_quoted_for_the_middle_of_the_gate_and_falls_to_half_at_the_edge_of_a_gaussian_one():
    late = replace(INGAAS_1GHZ, gate_delay_s=30e-12)
    assert float(late.efficiency_at(30e-12)) == 0.20
    np.testing.assert_allclose(late.efficiency_at(30e-12 + np.array([-90e-12, 90e-12])), 0.10, rtol=1e-12)
    assert float(late.efficiency_at(0.0)) < 0.20


@pytest.mark.parametrize("shape", [RECTANGULAR, GAUSSIAN])
@pytest.mark.parametrize("pulse_rms_s", [0.0, 40e-12])
def test_steady_light_sees_the_effective_gate_whatever_its_shape(shape, pulse_rms_s):
    diode = replace(INGAAS_1GHZ, gate_shape=shape, gate_delay_s=20e-12)
    offset = np.linspace(-1e-9, 1e-9, 200_001)
    area = integrate.trapezoid(diode.efficiency_at(offset, pulse_rms_s), offset)
    assert area == pytest.approx(diode.efficiency * diode.effective_gate_s, rel=1e-4)


def test_jitter_costs_a_nanowire_efficiency_and_a_gated_diode_none():
    blurred = replace(NANOWIRE, jitter_s=100e-12)
    # A window of +-150 ps at 100 ps rms: +-1.5 sigma.
    assert float(blurred.efficiency_at(0.0)) == pytest.approx(0.80 * (stats.norm.cdf(1.5) * 2 - 1))
    assert float(replace(INGAAS_1GHZ, jitter_s=100e-12).efficiency_at(0.0)) == 0.20


def test_two_gates_that_are_apart_give_the_bit_away_at_their_flanks():
    late = replace(INGAAS_1GHZ, gate_delay_s=50e-12)
    pair = DetectorPair(INGAAS_1GHZ, late)
    offset = np.array([-100e-12, 25e-12, 150e-12])
    mismatch = pair.mismatch(offset)
    assert mismatch[1] == pytest.approx(0.0, abs=1e-12)
    assert mismatch[0] == pytest.approx(-mismatch[2])
    # Two equal Gaussian gates: the logarithm of the ratio is linear in the offset, and mismatch its half's tanh.
    assert mismatch[2] == pytest.approx(np.tanh(2 * np.log(2) * (150**2 - 100**2) / 180**2))
    ratios = [np.log(pair.efficiency_ratio(at)) for at in (0.0, 25e-12, 50e-12)]
    assert ratios[1] == pytest.approx(0.0, abs=1e-12)
    assert ratios[0] == pytest.approx(-ratios[2])
    assert (pair.mismatch(0.0) + 1) / (1 - pair.mismatch(0.0)) == pytest.approx(pair.efficiency_ratio(0.0))


def test_detectors_that_are_alike_or_both_blind_give_nothing_away():
    offset = np.linspace(-1e-9, 1e-9, 11)
    np.testing.assert_array_equal(DetectorPair(NANOWIRE, NANOWIRE).mismatch(offset), 0.0)


# Rates


def test_dark_counts_of_a_rate_are_those_of_its_window():
    assert dark_count_probability(100.0, 300e-12) == pytest.approx(3e-8)
    assert dark_count_probability(1e12, 1.0) == 1.0


def test_count_rates_saturate_at_one_per_dead_time():
    assert float(INGAAS_20MHZ.saturated_rate_hz(1.0)) == pytest.approx(1.0, rel=1e-4)
    assert float(INGAAS_20MHZ.saturated_rate_hz(1e5)) == pytest.approx(5e4)
    rates = INGAAS_20MHZ.saturated_rate_hz(np.geomspace(1, 1e12, 50))
    assert (np.diff(rates) > 0).all()
    assert rates[-1] == pytest.approx(1e5, rel=1e-4)
    assert float(SELF_DIFFERENCING_2007.saturated_rate_hz(1e15)) == pytest.approx(100e6)


@pytest.mark.parametrize("load", [0.01, 0.05, 0.2])
def test_a_recovering_nanowire_counts_as_its_effective_dead_time_says(load):
    # Mean gap of a detector whose efficiency returns as 1 - exp(-t / r), by quadrature over its survival.
    dead_s, recovery_s = NANOWIRE.dead_time_s, NANOWIRE.recovery_s
    rate_hz = load / recovery_s

    def silent(t):
        return np.exp(-rate_hz * (t - recovery_s * (1 - np.exp(-t / recovery_s))))

    mean_gap_s = dead_s + integrate.quad(silent, 0, 60 / rate_hz, limit=500, points=(recovery_s, 1 / rate_hz))[0]
    gap_s = 1 / float(NANOWIRE.saturated_rate_hz(rate_hz))
    assert 0 <= gap_s - mean_gap_s <= 1.01 * load**2 / 2 / rate_hz


# Bias current and bright light


def test_a_million_clicks_a_second_draw_a_sixth_of_a_microampere():
    assert INGAAS_1GHZ.mean_photocurrent_a(1e6) == pytest.approx(0.16e-6, rel=2e-3)
    assert INGAAS_1GHZ.mean_photocurrent_a(1.0) == pytest.approx(1e6 * constants.e)
    assert NANOWIRE.mean_photocurrent_a(1e7) == 0.0


def test_blinding_light_stands_out_in_the_bias_current():
    # More than any honest count rate can draw.
    for diode in (INGAAS_1MHZ, INGAAS_20MHZ, INGAAS_1GHZ):
        power_w = diode.blinding_power_w
        assert diode.is_blinded(power_w)
        assert not diode.is_blinded(0.99 * power_w)
        honest = diode.mean_photocurrent_a(float(diode.saturated_rate_hz(1e12)))
        assert diode.mean_photocurrent_a(0.0, power_w) > 10 * honest


@pytest.mark.parametrize("detector", PRESETS)
def test_a_blinded_detector_clicks_for_a_whole_trigger_and_never_for_half_of_it(detector):
    trigger_j = detector.trigger_always_j
    energies = np.array([0.0, trigger_j / 2, detector.trigger_never_j, trigger_j, 10 * trigger_j])
    np.testing.assert_allclose(detector.forced_click_probability(energies), [0, 0, 0, 1, 1], atol=1e-12)
    middle_j = (detector.trigger_never_j + trigger_j) / 2
    assert float(detector.forced_click_probability(middle_j)) == pytest.approx(0.5)


def test_a_sharp_trigger_is_a_step():
    sharp = replace(INGAAS_1GHZ, trigger_always_j=INGAAS_1GHZ.trigger_never_j)
    np.testing.assert_array_equal(sharp.forced_click_probability(np.array([0.19e-12, 0.2e-12])), [0, 1])


# Presets


def test_presets_have_their_published_figures():
    # A gate rate and a rate of dark counts: 18.6 kcps at 1 GHz are 1.9e-5 per gate.
    assert SINE_GATED_2018.dark_count_probability == pytest.approx(1.9e-5, rel=0.03)
    assert (SINE_GATED_2006.efficiency, SINE_GATED_2006.dark_count_probability) == (0.085, 9.2e-6)
    # Totals over all gates: 6.0 % at 800 MHz, 6.16 % at 1.25 GHz.
    assert SINE_GATED_2006.afterpulse_gate_hazard(1 / 800e6, 100_000).sum() == pytest.approx(0.060)
    assert SELF_DIFFERENCING_2007.afterpulse_gate_hazard(1 / 1.25e9, 200_000).sum() == pytest.approx(0.0616)
    assert SELF_DIFFERENCING_2007.jitter_s * 2.3548 == pytest.approx(55e-12, rel=1e-4)


@pytest.mark.parametrize(
    ("preset", "efficiencies", "dark_counts", "afterpulses"),
    [
        (INGAAS_1MHZ, (0.07, 0.10), (1e-6, 1e-5), (0.02, 0.05)),
        (INGAAS_20MHZ, (0.10, 0.10), (1e-6, 5e-6), (0.01, 0.03)),
        (INGAAS_1GHZ, (0.10, 0.25), (5e-7, 2e-6), (0.005, 0.05)),
    ],
)
def test_presets_of_a_generation_lie_in_its_range(preset, efficiencies, dark_counts, afterpulses):
    assert efficiencies[0] <= preset.efficiency <= efficiencies[1]
    assert dark_counts[0] <= preset.dark_count_probability <= dark_counts[1]
    assert afterpulses[0] <= preset.afterpulse_mean_after(preset.dead_time_s) <= afterpulses[1]


@pytest.mark.parametrize(
    "change",
    [
        {"efficiency": 1.1},
        {"efficiency": float("nan")},
        {"dark_count_probability": -1e-9},
        {"afterpulse_probability": -0.1},
        {"afterpulse_exponent": 1.0},
        {"afterpulse_hold_off_s": 0.0},
        {"afterpulse_cutoff_s": 50e-9},
        {"dead_time_s": float("inf")},
        {"gate_width_s": 0.0},
        {"gate_shape": "round"},
        {"kind": "transition-edge"},
        {"saturation_hz": 0.0},
        {"trigger_always_j": 1e-15},
    ],
)
def test_a_detector_that_cannot_be_is_refused_by_field(change):
    with pytest.raises(RequestRefused, match=next(iter(change)).split("_")[0]):
        replace(INGAAS_1GHZ, **change)


def test_delays_outside_the_law_are_refused():
    for after_s in (0.0, 1.0):
        with pytest.raises(RequestRefused):
            INGAAS_1GHZ.afterpulse_delay_s(np.zeros(1), after_s)
