"""The slow state of a link and its loops against what theory says they leave.

FALSE_ALARM is the chance that a right program fails one comparison; a series of n correlated values counts as fewer.
"""

from dataclasses import replace
from math import cos, pi, sqrt

import numpy as np
import pytest
from quantum_links import optics
from scipy import stats

from qtrunk.quantum import run
from qtrunk.quantum.attack import Attack
from qtrunk.quantum.channel import Channel, with_drift
from qtrunk.quantum.dice import Dice
from qtrunk.quantum.drift import (
    PHASE_RAD_PER_K_S,
    Drift,
    DriftSettings,
    Lock,
    chen_2008,
    expected_residual_rad,
    sop_phase_rms_rad,
)

FALSE_ALARM = 1e-7
CLOCK = {"click_probability": 1e-3, "visibility": 0.99, "clock_hz": 1.25e9}
QUIET = DriftSettings(temperature_rms_k=0.0, laser_rms_hz=0.0, fibre_rms_k=0.0, sync_rms_s=0.0)


def steps(settings, count, seed=1, **changes):
    drift = Drift(settings, Dice(run.seed_of(seed, "drift")).uniforms)
    return [drift.step(**{**CLOCK, **changes}) for _ in range(count)]


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


def test_a_nanosecond_of_delay_turns_the_phase_by_nine_radians_a_kelvin():
    assert abs(PHASE_RAD_PER_K_S / 8.95e9 - 1) < 0.01
    assert pytest.approx(3.6, rel=0.01) == PHASE_RAD_PER_K_S * 400e-12
    # 0.006 rad for each GHz and ps.
    settings = replace(QUIET, laser_rms_hz=1e9, laser_correlation_s=1e9, loop_gain=1.0, reference_fraction=1e-12)
    drift = Drift(settings, Dice(b"\x01" * 32).uniforms)
    assert abs(drift.phase_rad) == pytest.approx(0.00628 * abs(drift._laser.now) / 1e9, rel=1e-3)


def test_the_free_phase_wanders_as_far_and_as_slowly_as_it_should():
    settings = replace(QUIET, temperature_rms_k=0.1, temperature_correlation_s=5.0, control_period_s=1.0)
    drift = Drift(settings, Dice(run.seed_of(2, "free")).uniforms)
    phases = []
    for _ in range(20_000):
        drift.step(**CLOCK)
        phases.append(drift.phase_rad)
    scale = PHASE_RAD_PER_K_S * settings.delay_s * 0.1
    # 20 000 s with a correlation time of 5 s: 2 000 independent values.
    spread = np.var(phases) / scale**2
    assert 2 * stats.norm.sf(abs(spread - 1) / sqrt(2 / 2000)) > FALSE_ALARM
    lag = np.mean(np.array(phases[5:]) * np.array(phases[:-5])) / np.var(phases)
    assert lag == pytest.approx(np.exp(-1), abs=0.08)


@pytest.mark.parametrize(
    "settings",
    [
        DriftSettings(),
        DriftSettings(reference_fraction=0.0005, temperature_rms_k=0.0, laser_rms_hz=0.0),
        DriftSettings(temperature_rms_k=0.5),
        DriftSettings(temperature_rms_k=0.5, scan_periods=10),
        DriftSettings(temperature_rms_k=0.3, loop_gain=0.3),
        DriftSettings(mirror_error_rad=0.05, sop_correlation_s=1.0),
        DriftSettings(temperature_ramp_k_per_s=0.02, scan_periods=5),
        DriftSettings(resolution_rad=0.2, temperature_rms_k=0.5),
        chen_2008(),
    ],
    ids=["default", "noisy", "warm", "rare", "slow-loop", "mirrors", "ramp", "coarse", "chen"],
)
def test_the_loop_leaves_what_theory_says(settings):
    clock = {**CLOCK, "clock_hz": 20e6} if settings == chen_2008() else CLOCK
    errors = [step.phase_error_rad for step in steps(settings, 40_000, **clock)]
    want = expected_residual_rad(settings, clock["click_probability"], clock["visibility"], clock["clock_hz"])
    # Errors between scans are of one piece: at least a tenth of the values are independent, a slow loop's a hundredth.
    independent = 40_000 / (10 * settings.scan_periods)
    assert 2 * stats.norm.sf(abs(rms(errors) ** 2 / want**2 - 1) / (0.02 + sqrt(2 / independent))) > FALSE_ALARM
    assert abs(rms(errors) / want - 1) < 0.15


def test_a_ramp_makes_a_sawtooth_whose_errors_are_known():
    # Uncentred, from 0 to r T: QBER (r T)^2 / 12, four times that of a centred one.
    ramp = 0.01 / (PHASE_RAD_PER_K_S * 400e-12)
    settings = replace(QUIET, temperature_ramp_k_per_s=ramp, scan_periods=50, resolution_rad=1e-9)
    seen = steps(settings, 5000, click_probability=0.5, visibility=1.0, clock_hz=1e15)
    qber = np.mean([(1 - cos(step.phase_error_rad)) / 2 for step in seen])
    assert qber == pytest.approx((0.01 * 5.0) ** 2 / 12, rel=0.01)


def test_estimates_have_the_spread_of_their_counts():
    settings = replace(QUIET, resolution_rad=1e-9)
    found = [step.measured_offset_rad for step in steps(settings, 20_000)]
    clicks = settings.reference_fraction * 0.1 * 1.25e9 * 1e-3
    # Each estimate also undoes the error of the one before.
    want = 2 * (2 / clicks / 0.99**2)
    assert 2 * stats.norm.sf(abs(np.var(found) / want - 1) / sqrt(3 / 20_000)) > FALSE_ALARM


def test_too_little_light_leaves_the_phase_alone():
    settings = DriftSettings(temperature_rms_k=0.05)
    dark = steps(settings, 3000, click_probability=1e-9)
    assert all(step.measured_offset_rad is None for step in dark)
    assert rms([step.phase_error_rad for step in dark]) > 3 * rms(
        [step.phase_error_rad for step in steps(settings, 3000)]
    )


def test_gates_stay_where_light_comes():
    offsets = [step.gate_offset_s for step in steps(DriftSettings(), 20_000)]
    assert rms(offsets) < 6e-12
    loose = DriftSettings(sync_leak=1.0, fibre_rms_k=5.0, alignment_s=1e9)
    assert rms([step.gate_offset_s for step in steps(loose, 20_000)]) > 100e-12


def test_a_cut_is_followed_by_delay_search_gate_scan_and_phase_scan():
    settings = DriftSettings()
    drift = Drift(settings, Dice(b"\x04" * 32).uniforms)
    assert drift.step(**CLOCK).lock is Lock.LOCKED
    for _ in range(50):
        assert drift.step(**CLOCK, light=False).lock is Lock.LOST
    after = [drift.step(**CLOCK) for _ in range(60)]
    order = [step.lock for step in after]
    assert [order.count(lock) for lock in (Lock.DELAY_SEARCH, Lock.GATE_SCAN, Lock.PHASE_SCAN)] == [20, 10, 2]
    assert order[:32] == sorted(order[:32], key=list(Lock).index)
    assert all(lock is Lock.LOCKED for lock in order[32:])
    assert abs(after[-1].phase_error_rad) < 0.3


def test_a_cut_fibre_gives_nothing_and_comes_back_by_itself():
    link = optics()
    channel = Channel(link, b"\x05" * 32, DriftSettings())
    second = 1_237_500_000

    def clicks():
        channel.begin_block()
        return len(channel.sample(b"a" * 32, b"b" * 32, 0, second).positions)

    before = clicks()
    channel.attack(Attack("cut"))
    clicks()
    assert clicks() == 0
    channel.attack(Attack())
    back = [clicks() for _ in range(6)]
    assert back[0] == 0
    assert back[1] == 0
    assert back[-1] == pytest.approx(before, rel=0.02)


def test_polarisation_does_not_matter_with_good_mirrors_and_little_with_bad_ones():
    assert sop_phase_rms_rad(0.0) == 0.0
    for degrees, want in ((0.5, 0.012), (1, 0.023), (2, 0.046), (3, 0.070), (5, 0.117)):
        assert sop_phase_rms_rad(np.radians(degrees)) == pytest.approx(want, abs=0.0011)
    still = [step.phase_error_rad for step in steps(DriftSettings(), 5000)]
    scrambled = [step.phase_error_rad for step in steps(DriftSettings(sop_correlation_s=1e-3), 5000)]
    assert still == scrambled, "perfect mirrors: the fibre's polarisation is no part of the phase"
    bad = DriftSettings(mirror_error_rad=0.05)
    slow, fast = (
        rms([s.phase_error_rad for s in steps(replace(bad, sop_correlation_s=at), 5000)]) for at in (100.0, 0.01)
    )
    assert fast > 1.2 * slow


def test_the_sampled_link_shows_the_errors_that_its_drift_leaves():
    link = optics(residual_phase_rad=0.0)
    settings = DriftSettings(temperature_rms_k=1.5, scan_periods=5)
    seen = run.simulate(Channel(link, b"\x06" * 32, settings), seconds=60, seed=6, block_pulses=5_000_000_000)
    from qtrunk.quantum.analytic import expected

    want = expected(with_drift(link, settings)).qber[0]
    assert want > 1.15 * expected(link).qber[0]
    assert seen.qber[0] == pytest.approx(want, rel=0.04)


def test_an_hour_without_thermal_control_has_the_published_errors():
    # Chen et al. 2008: 1.59 % +- 0.46 %. The optical and noise part of such a link at 37 km is about 0.9 %.
    errors = np.array([step.phase_error_rad for step in steps(chen_2008(), 3600, clock_hz=20e6)])
    added = (1 - np.cos(errors)) / 2
    assert 0.004 < added.mean() < 0.012
    minutes = added.reshape(60, 60).mean(axis=1)
    assert 0.001 < minutes.std() < 0.008
    assert pi / 2 > np.abs(errors).max()
