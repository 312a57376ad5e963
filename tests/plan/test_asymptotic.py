"""Asymptotic rates against the published figures of Ma et al. 2005 for the GYS line, and their own sense."""

from dataclasses import replace

import pytest

from qtrunk.plan.asymptotic import Line, vacuum_and_weak_decoy

GYS = Line(attenuation_db_per_km=0.21, receiver_efficiency=0.045, noise=1.7e-6, optical_error=0.033, efficiency=1.22)


def test_the_published_figures_come_out():
    assert GYS.best_signal(40) == pytest.approx(0.479, abs=0.002)
    assert replace(GYS, efficiency=1.0).best_signal(40) == pytest.approx(0.544, abs=0.002)
    assert GYS.longest_km(0.48) == pytest.approx(142.05, abs=0.1)
    assert GYS.longest_km(0.48, 0.05) == pytest.approx(140.55, abs=0.1)
    exact, bounded = GYS.rate(0.48, 40), GYS.rate(0.48, 40, 0.12)
    assert 1 - bounded.single_photon_gain / exact.single_photon_gain == pytest.approx(0.035, abs=0.001)
    assert bounded.single_photon_error / exact.single_photon_error - 1 == pytest.approx(0.168, abs=0.001)


def test_bounds_never_promise_more_than_there_is():
    for km in (0, 20, 60, 100, 130):
        exact = GYS.rate(0.48, km)
        for decoy in (0.02, 0.1, 0.3):
            bounded = GYS.rate(0.48, km, decoy)
            assert bounded.single_photon_gain <= exact.single_photon_gain * (1 + 1e-9)
            assert bounded.single_photon_error >= exact.single_photon_error * (1 - 1e-9)
            assert bounded.per_pulse <= exact.per_pulse
    assert GYS.rate(0.48, 150).per_pulse == 0


def test_split_pulses_leave_no_single_photons():
    # A line that lets only several photons through: the weak decoy is far too faint.
    rate = vacuum_and_weak_decoy((0.5, 0.1, 0.0), (1e-3, 1e-5, 0.0), (0.01, 0.01, 0.5), 1.16)
    assert (rate.single_photon_gain, rate.single_photon_error, rate.per_pulse) == (0.0, 0.5, 0.0)
