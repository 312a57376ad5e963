"""The slow state of a link and its loops against what theory says they leave.

FALSE_ALARM is the chance that a right program fails one comparison. Values of a series are correlated: it is cut into
batches much longer than that, whose means are independent and tell their own spread.
"""

from dataclasses import replace
from math import cos, inf, pi, sqrt

import numpy as np
import pytest
from quantum_links import optics
from scipy import stats

from qtrunk.base.errors import RequestRefused
from qtrunk.quantum import run
from qtrunk.quantum.attack import Attack
from qtrunk.quantum.channel import Channel, with_drift
from qtrunk.quantum.dice import Dice
from qtrunk.quantum.drift import (
    CLICKS_MIN,
    PHASE_RAD_PER_K_S,
    Drift,
    DriftSettings,
    Lock,
    chen_2008,
    expected_excess_error,
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


def chance_of(values, want, within=0.0, batches=50):
    """That a series lies as far from the mean `want`, give or take the share `within` by which a formula simplifies:
    Student's t over the means of batches.
    """
    means = np.reshape(values, (batches, -1)).mean(axis=1)
    return stats.ttest_1samp(means, np.clip(means.mean(), (1 - within) * want, (1 + within) * want)).pvalue


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
        DriftSettings(reference_fraction=0.0003, temperature_rms_k=0.0, laser_rms_hz=0.0),
        DriftSettings(temperature_rms_k=0.5),
        DriftSettings(temperature_rms_k=0.5, scan_periods=10),
        DriftSettings(temperature_rms_k=0.3, loop_gain=0.3),
        DriftSettings(mirror_error_rad=0.05, sop_correlation_s=1.0),
        DriftSettings(temperature_ramp_k_per_s=0.02, scan_periods=5),
        DriftSettings(resolution_rad=0.2, temperature_rms_k=0.5),
        DriftSettings(resolution_rad=0.03, temperature_rms_k=0.5, reference_fraction=0.0005, loop_gain=0.3),
        DriftSettings(temperature_ramp_k_per_s=0.05, loop_gain=0.5),
        chen_2008(),
    ],
    ids=["default", "noisy", "warm", "rare", "slow-loop", "mirrors", "ramp", "coarse", "coarse-slow", "lag", "chen"],
)
def test_the_loop_leaves_what_theory_says(settings):
    clock = {**CLOCK, "clock_hz": 20e6} if settings == chen_2008() else CLOCK
    errors = [step.phase_error_rad for step in steps(settings, 40_000, **clock)]
    want = expected_residual_rad(settings, clock["click_probability"], clock["visibility"], clock["clock_hz"])
    excess = expected_excess_error(settings, clock["click_probability"], clock["visibility"], clock["clock_hz"])
    # Grain and drift are not quite independent from scan to scan, as the formulas take them.
    assert chance_of(np.square(errors), want**2, within=0.01) > FALSE_ALARM
    assert chance_of((1 - np.cos(errors)) / 2, excess, within=0.01) > FALSE_ALARM


def test_the_daily_swing_is_a_ramp_whose_slope_changes():
    settings = replace(QUIET, temperature_day_k=20.0, control_period_s=10.0, scan_periods=6, resolution_rad=1e-9)
    day = [step.phase_error_rad for step in steps(settings, 8640, click_probability=0.5, visibility=1.0, clock_hz=1e12)]
    assert rms(day) == pytest.approx(expected_residual_rad(settings, 0.5, 1.0, 1e12), rel=0.01)
    steepest = PHASE_RAD_PER_K_S * 400e-12 * 20.0 * 2 * pi / 86400
    assert max(day) == pytest.approx(steepest * 55.0, rel=0.01), "scanned a minute ago, but for half a period"


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


def test_normal_counts_stand_for_counted_clicks_from_the_fewest_that_are_used():
    rng = np.random.default_rng(7)
    gates, click, visibility, trials = 6250, 1e-3, 0.99, 200_000
    set_phases = np.arange(4) * pi / 2
    assert 4 * gates * click == CLICKS_MIN
    chances = click * (1 + visibility * np.cos(set_phases)) / 2, click * (1 - visibility * np.cos(set_phases)) / 2
    fringe = rng.binomial(gates, chances[0], (trials, 4)) - rng.binomial(gates, chances[1], (trials, 4))
    counted = np.arctan2(fringe @ np.sin(set_phases), fringe @ np.cos(set_phases))
    # Nothing moves and each scan starts from the true phase: the loop corrects nothing, its grain is a whole turn.
    settings = replace(QUIET, resolution_rad=100.0, reference_fraction=4 * gates / (0.1 * 1.25e9))
    loop = [step.measured_offset_rad for step in steps(settings, 20_000)]
    assert 1.0 < rms(loop) / rms(counted) < 1.05
    first_order = 2 / CLICKS_MIN / visibility**2
    assert rms(counted) == pytest.approx(sqrt(first_order * (1 + first_order)), rel=0.02)


def test_too_little_light_leaves_the_phase_alone():
    settings = DriftSettings(temperature_rms_k=0.05)
    dark = steps(settings, 3000, click_probability=1e-9)
    assert all(step.measured_offset_rad is None for step in dark)
    assert rms([step.phase_error_rad for step in dark]) > 3 * rms(
        [step.phase_error_rad for step in steps(settings, 3000)]
    )


def test_a_loop_that_saw_nothing_looks_again_as_soon_as_there_is_light():
    drift = Drift(chen_2008(), Dice(b"\x08" * 32).uniforms)
    clock = {**CLOCK, "clock_hz": 20e6}
    for _ in range(1203):
        last = drift.step(**{**clock, "click_probability": 1e-9})
    assert abs(last.phase_error_rad) > 1.0
    held_rad = expected_residual_rad(chen_2008(), 1e-3, 0.99, 20e6)
    assert 2 * stats.norm.sf(abs(drift.step(**clock).phase_error_rad) / held_rad) > FALSE_ALARM
    assert [drift.step(**clock).measured_offset_rad is None for _ in range(10)] == [True] * 9 + [False]


def test_what_nothing_holds_is_the_drift_itself():
    still = DriftSettings(temperature_rms_k=0.05, temperature_correlation_s=5.0)
    blind = np.array([step.phase_error_rad for step in steps(replace(still, reference_fraction=0.0), 50_000)])
    want = expected_residual_rad(still, 0.0, 0.99, 1.25e9)
    # From where the loop let go: a constant of this run, and what moved since.
    assert chance_of(np.square(blind - blind.mean()), want**2 / 2, within=0.01) > FALSE_ALARM
    assert expected_excess_error(replace(still, temperature_ramp_k_per_s=1e-6), 0.0, 0.99, 1.25e9) == 0.5


@pytest.mark.parametrize("leak", [0.01, 0.2])
def test_gates_stay_where_light_comes_but_for_what_moved_since_their_scan(leak):
    settings = DriftSettings(sync_leak=leak, control_period_s=1.0)
    offsets = np.array([step.gate_offset_s for step in steps(settings, 30_000)])
    fibre_s = leak * 50 * 4.9e-6 * 7.5e-6 * 0.3
    age_s = np.arange(60) + 0.5
    sync = 2 * 3e-12**2 * (1 - np.exp(-age_s / 30))
    fibre = 2 * fibre_s**2 * (1 - np.exp(-age_s / (6 * 3600)))
    assert chance_of(offsets**2, np.mean(sync + fibre)) > FALSE_ALARM


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


@pytest.mark.parametrize("settings", [DriftSettings(scan_periods=10), chen_2008()], ids=["rack", "chen"])
def test_the_first_data_after_a_cut_see_a_phase_that_was_scanned(settings):
    clock = {**CLOCK, "clock_hz": 20e6} if settings == chen_2008() else CLOCK
    settings = replace(settings, temperature_rms_k=1.0)
    held_rad = expected_residual_rad(settings, clock["click_probability"], clock["visibility"], clock["clock_hz"])
    firsts = []
    for period in range(100):
        drift = Drift(settings, Dice(run.seed_of(period, "cut")).uniforms)
        for _ in range(period % 10 + 1):
            drift.step(**clock)
        for _ in range(1 if period % 2 else 1200):
            drift.step(**clock, light=False)
        search = [drift.step(**clock)]
        while not search[-1].is_locked:
            search.append(drift.step(**clock))
        assert any(step.lock is Lock.PHASE_SCAN and step.measured_offset_rad is not None for step in search)
        firsts.append(search[-1].phase_error_rad)
    # 100 independent cuts: the sum of squares of normal values no wider than the loop's own residual.
    assert stats.chi2.sf(np.sum(np.square(firsts)) / held_rad**2, 100) > FALSE_ALARM


def test_the_first_data_after_a_cut_see_gates_that_were_scanned():
    loose = DriftSettings(sync_leak=1.0, fibre_rms_k=5.0, fibre_correlation_s=60.0, alignment_s=1e9)
    drift = Drift(loose, Dice(b"\x09" * 32).uniforms)
    lost = [abs(drift.step(**CLOCK, light=False).gate_offset_s) for _ in range(3000)]
    while not (step := drift.step(**CLOCK)).is_locked:
        pass
    # Two periods of phase scan and half of the first one since.
    moved_s = 50 * 4.9e-6 * 7.5e-6 * 5.0 * sqrt(2 * (1 - np.exp(-0.25 / 60)))
    assert 2 * stats.norm.sf(abs(step.gate_offset_s) / moved_s) > FALSE_ALARM
    assert max(lost) > 10 * moved_s


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
    # Chen et al. 2008: 1.59 % +- 0.46 %. At a visibility of 99 % and 20 MHz the rest of such a link shows 0.84 % at
    # 37 km; the temperature is the one number that is fitted to the mean, and the spread follows.
    clock = {**CLOCK, "clock_hz": 20e6}
    assert expected_residual_rad(chen_2008(), 1e-3, 0.99, 20e6) == pytest.approx(0.135, abs=0.005)
    settings = replace(chen_2008(), temperature_rms_k=0.067)
    assert expected_residual_rad(settings, 1e-3, 0.99, 20e6) == pytest.approx(0.18, abs=0.005)
    assert 0.0084 + expected_excess_error(settings, 1e-3, 0.99, 20e6) == pytest.approx(0.0159, rel=0.05)
    errors = np.array([step.phase_error_rad for step in steps(settings, 36_000, **clock)])
    added = (1 - np.cos(errors)) / 2
    assert 0.0084 + added.mean() == pytest.approx(0.0159, rel=0.05)
    # How long the authors averaged is not known: from a minute to the ten seconds between two scans.
    a_minute, a_scan = (added.reshape(-1, periods).mean(axis=1).std() for periods in (60, 10))
    assert a_minute < 0.0046 < a_scan
    assert a_minute > 0.0046 / 2
    assert a_scan < 0.0046 * 2.5
    assert pi / 2 > np.abs(errors).max()


@pytest.mark.parametrize(
    "wrong",
    [
        {"sop_correlation_s": 0.0},
        {"temperature_rms_k": -0.1},
        {"laser_rms_hz": float("nan")},
        {"fibre_km": inf},
        {"scan_periods": 0},
        {"reference_fraction": 1.0},
        {"loop_gain": 0.0},
        {"loop_gain": 2.0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(RequestRefused, match=next(iter(wrong))):
        DriftSettings(**wrong)


def test_the_first_light_after_a_cut_has_a_scanned_phase():
    link, errors = optics(), []
    channel = Channel(link, b"\x0c" * 32, DriftSettings(temperature_rms_k=0.5))

    class Watch:
        def period(self, situation, step, clicks, pulses):
            if len(clicks.positions):
                errors.append(step.phase_error_rad)

    def run_for(seconds):
        for _ in range(seconds):
            channel.begin_block()
            channel.sample(b"a" * 32, b"b" * 32, 0, 1_237_500_000, Watch())

    channel.attack(Attack("cut"))
    run_for(60)
    channel.attack(Attack())
    errors.clear()
    run_for(5)
    assert abs(errors[0]) < 0.5
    assert rms(errors) < 0.3
