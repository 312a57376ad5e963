"""The fibre against integrals and propagated fields that share no formula with it, and against published points."""

from math import inf, log, log10, pi, sqrt

import numpy as np
import pytest
from scipy import constants, integrate

from qtrunk.base.errors import RequestRefused
from qtrunk.quantum.fibre import (
    BACKWARD,
    FORWARD,
    FWHM_PER_RMS,
    GAUSSIAN,
    RAMAN_REFERENCE,
    RECTANGULAR,
    Acceptance,
    ClassicalChannels,
    Fibre,
    LaserPulse,
    gate_share,
    intersymbol_share,
    leakage_probability,
    may_share,
    raman_coefficient,
    raman_gain,
    raman_noise_probability,
    raman_photons_hz_per_nm,
)

ACCEPTANCE = Acceptance(efficiency=0.125, gate_width_s=200e-12)
SPAN = Fibre(length_km=50.0)


def data(launch_dbm=0.0, wavelength_nm=1545.0, **changes):
    return ClassicalChannels(launch_dbm=launch_dbm, wavelength_nm=wavelength_nm, **changes)


# Loss and dispersion


def test_the_default_fibre_is_the_cable_of_the_planning_rule():
    # 0.21 dB/km and 1 dB of patching, as the shipped topologies have it.
    assert SPAN.loss_db() == pytest.approx(0.21 * 50 + 1.0, rel=1e-12)


def test_attenuation_and_dispersion_are_those_of_g652():
    glass = Fibre(length_km=1.0, splice_loss_db=0.0, connector_loss_db=0.0)
    assert glass.loss_db(1310.0) == pytest.approx(0.35, abs=0.01)
    assert glass.dispersion_ps_per_nm(1550.0) == pytest.approx(17.0, abs=0.1)
    assert glass.dispersion_ps_per_nm(glass.zero_dispersion_nm) == pytest.approx(0.0, abs=1e-9)
    assert glass.dispersion_ps_per_nm(1270.0) < 0 < glass.dispersion_ps_per_nm(1330.0)


@pytest.mark.parametrize("chirp_sign", [-1, 1])
@pytest.mark.parametrize("bandwidth_hz", [0.0, 15e9])
def test_a_pulse_spreads_as_its_field_does_under_dispersion(bandwidth_hz, chirp_sign):
    # A chirped Gaussian field is sent through the fibre's phase in the frequency domain; its rms width is taken from
    # the samples.
    pulse = LaserPulse(width_s=50e-12, bandwidth_hz=bandwidth_hz, chirp_sign=chirp_sign)
    time = np.linspace(-4e-9, 4e-9, 1 << 14, endpoint=False)
    rms = pulse.width_s / FWHM_PER_RMS
    spectral = 2 * pi * bandwidth_hz / FWHM_PER_RMS if bandwidth_hz else 1 / (2 * rms)
    chirp = sqrt(max(0.0, (2 * rms * spectral) ** 2 - 1))
    # In the convention exp(-i w t) a frequency that rises in time is a phase that falls faster and faster,
    field = np.exp(-(time**2) / (4 * rms**2) * (1 + 1j * chirp_sign * chirp))
    # and a wave of frequency w gathers the phase (beta2 / 2) w^2 z.
    beta2_z = -SPAN.dispersion_ps_per_nm() * 1e-3 * 1550e-9**2 / (2 * pi * constants.c)
    omega = 2 * pi * np.fft.fftfreq(len(time), time[1] - time[0])
    spectrum = np.fft.ifft(field) * np.exp(0.5j * beta2_z * omega**2)
    power = np.abs(np.fft.fft(spectrum)) ** 2
    spread = sqrt(np.sum(power * time**2) / np.sum(power))
    assert pulse.rms_after_s(SPAN) == pytest.approx(spread, rel=1e-6)


def test_a_gain_switched_pulse_spreads_faster_than_one_without_chirp_and_a_compensator_brings_it_back():
    chirped = LaserPulse(width_s=50e-12, bandwidth_hz=20e9)
    unordered = LaserPulse(width_s=50e-12, bandwidth_hz=20e9, chirp_sign=0)
    limited = LaserPulse(width_s=50e-12)
    widths = [pulse.rms_after_s(SPAN) for pulse in (limited, unordered, chirped)]
    assert widths == sorted(widths)
    assert widths[2] > 3 * 50e-12 / FWHM_PER_RMS
    compensated = Fibre(length_km=50.0, compensation_ps_per_nm=-SPAN.dispersion_ps_per_nm())
    assert chirped.rms_after_s(compensated) == pytest.approx(50e-12 / FWHM_PER_RMS, rel=1e-9)


def test_the_spectrum_alone_sets_the_width_after_a_long_way():
    # D L times the rms bandwidth in nm, the rule of thumb.
    pulse = LaserPulse(width_s=50e-12, bandwidth_hz=50e9, chirp_sign=0)
    far = Fibre(length_km=2000.0)
    bandwidth_nm = 50e9 * 1550e-9**2 / constants.c * 1e9 / FWHM_PER_RMS
    assert pulse.rms_after_s(far) == pytest.approx(far.dispersion_ps_per_nm() * bandwidth_nm * 1e-12, rel=1e-3)


def test_a_pulse_cannot_have_less_spectrum_than_its_fourier_limit():
    with pytest.raises(RequestRefused):
        LaserPulse(width_s=50e-12, bandwidth_hz=8e9)
    assert LaserPulse(width_s=50e-12, bandwidth_hz=0.4413 / 50e-12).rms_after_s(SPAN) == pytest.approx(
        LaserPulse(width_s=50e-12).rms_after_s(SPAN), rel=1e-2
    )


# Gates


@pytest.mark.parametrize("offset_s", [0.0, 40e-12, -150e-12, 600e-12])
@pytest.mark.parametrize("shape", [RECTANGULAR, GAUSSIAN])
def test_the_share_in_the_gate_is_the_integral_of_pulse_times_gate(shape, offset_s):
    rms, width = 30e-12, 180e-12

    def product(time_s):
        gate = 1.0 if shape == RECTANGULAR else np.exp(-4 * log(2) * (time_s / width) ** 2)
        return gate * np.exp(-((time_s - offset_s) ** 2) / (2 * rms**2)) / (rms * sqrt(2 * pi))

    limit = width / 2 if shape == RECTANGULAR else 1e-9
    want = integrate.quad(product, -limit, limit, points=(0.0, min(offset_s, limit)), limit=200, epsabs=0)[0]
    assert float(gate_share(rms, width, shape, offset_s)) == pytest.approx(want, rel=1e-6)


def test_a_short_pulse_is_seen_in_full_and_a_pulse_far_off_not_at_all():
    np.testing.assert_array_equal(gate_share(0.0, 100e-12, RECTANGULAR, np.array([0.0, 49e-12, 51e-12])), [1, 1, 0])
    assert float(gate_share(0.0, 100e-12, GAUSSIAN, 50e-12)) == pytest.approx(0.5)
    assert float(gate_share(20e-12, 100e-12, RECTANGULAR, 2e-9)) < 1e-200
    with pytest.raises(RequestRefused):
        gate_share(1e-12, 1e-12, "triangular")


@pytest.mark.parametrize(("period_s", "delay_s"), [(800e-12, 400e-12), (1000e-12, 400e-12), (25e-9, 2.5e-9)])
@pytest.mark.parametrize("rms_s", [30e-12, 150e-12])
def test_foreign_slots_in_the_gate_are_counted_slot_by_slot(period_s, delay_s, rms_s):
    # The intensity of the whole train, 1 : 2 : 1 for every pulse, integrated over the gate of the middle slot.
    width = 200e-12
    time = np.linspace(-width / 2, width / 2, 4001)
    own = np.exp(-(time**2) / (2 * rms_s**2))
    train = np.zeros_like(time)
    for pulse in range(-12, 13):
        for slot, energy in ((-1, 0.5), (0, 1.0), (1, 0.5)):
            train += energy * np.exp(-((time - pulse * period_s - slot * delay_s) ** 2) / (2 * rms_s**2))
    want = integrate.trapezoid(train - own, time) / integrate.trapezoid(own, time)
    assert intersymbol_share(rms_s, width, period_s, delay_s) == pytest.approx(want, rel=1e-4, abs=1e-12)


def test_dispersion_closes_the_eye_of_a_gigahertz_link_but_not_of_a_slow_one():
    pulse = LaserPulse(width_s=50e-12, bandwidth_hz=30e9)
    rms_s = pulse.rms_after_s(Fibre(length_km=80.0))
    fast = intersymbol_share(rms_s, 180e-12, 800e-12, 400e-12, GAUSSIAN)
    slow = intersymbol_share(rms_s, 1e-9, 50e-9, 4e-9, GAUSSIAN)
    assert fast / (2 * (1 + fast)) > 0.05
    assert slow < 1e-9


# Raman scattering


def test_the_raman_gain_of_silica_peaks_at_its_known_shift():
    shift = np.arange(1.0, 1400.0)
    gain = raman_gain(shift)
    assert shift[gain.argmax()] == pytest.approx(440, abs=5)
    assert (gain > 0).all()
    # Measured gain of standard fibre, 0.1 to 0.25 of the peak around 2.5 THz, and 5 to 20 % at the line at 800 1/cm.
    assert 0.1 < raman_gain(83.4) / gain.max() < 0.25
    assert 0.05 < raman_gain(800.0) / gain.max() < 0.25


def test_the_gain_is_the_sine_transform_of_the_vibrations():
    # The response of Hollenbeck and Cantrell, equation 9, built in time and transformed by a sum.
    from qtrunk.quantum.fibre import _MODES

    position, amplitude, gaussian, lorentzian = (_MODES[:, column, None] for column in range(4))
    time = np.arange(1, 80_000) * 1e-6  # in cm of light
    response = amplitude * np.exp(-pi * lorentzian * time - (pi * gaussian * time) ** 2 / 4)
    response = (response * np.sin(2 * pi * position * time)).sum(axis=0)
    shifts = np.array([20.0, 100.0, 440.0, 600.0, 1182.0])
    want = np.array([(response * np.sin(2 * pi * shift * time)).sum() for shift in shifts])
    got = raman_gain(shifts)
    np.testing.assert_allclose(got / got[2], want / want[2], rtol=2e-3)


def test_the_coefficient_is_the_published_one_and_agrees_with_the_raman_gain_of_amplifiers():
    pump, quantum, coefficient = RAMAN_REFERENCE
    assert raman_coefficient(pump, quantum, 293.0) == pytest.approx(coefficient, rel=1e-12)
    # From first principles: 2 polarisations x h nu x gain x phonons x Hz per nm, with a gain of 0.39 /(W km) at its
    # peak for unpolarised pumps at 1450 nm. Amplifier data and QKD data are known to agree within 3 dB.
    shift = 1e7 * (1 / quantum - 1 / pump)
    gain = 0.39 * (1550 / quantum) * raman_gain(shift) / raman_gain(440.0)
    phonons = 1 / np.expm1(100 * constants.h * constants.c * shift / (constants.k * 293.0))
    hz = constants.c / (quantum * 1e-9)
    first_principles = 2 * constants.h * hz * gain * phonons * hz / quantum
    assert 0.5 < coefficient / first_principles < 2


def test_stokes_and_anti_stokes_are_in_thermal_balance():
    # Per pump power and quantum photon energy, in a band of equal frequency width: (n + 1) / n = exp(h shift / k T).
    # 1e7 / 200: 200 1/cm to either side of 1550 nm.
    middle = 1e7 / 1550.0
    stokes_nm, anti_nm = 1e7 / (middle - 200.0), 1e7 / (middle + 200.0)
    ratio = raman_coefficient(1550.0, stokes_nm) / raman_coefficient(1550.0, anti_nm) * (stokes_nm / anti_nm) ** 4
    boltzmann = np.exp(200.0 * 100 * constants.h * constants.c / (constants.k * 288.0))
    assert ratio == pytest.approx(boltzmann, rel=1e-9)


def test_a_quantum_channel_below_the_data_and_one_in_the_o_band_see_less():
    assert raman_coefficient(1560.0, 1550.0) < raman_coefficient(1540.0, 1550.0)
    assert raman_coefficient(1550.0, 1310.0) < 1e-3 * raman_coefficient(1550.0, 1531.0)
    assert raman_coefficient(1310.0, 1550.0) < 0.1 * raman_coefficient(1550.0, 1531.0)
    with pytest.raises(RequestRefused):
        raman_coefficient(1550.0, 1550.0)


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize(("pump_nm", "quantum_nm"), [(1545.0, 1550.12), (1310.0, 1550.12), (1550.0, 1310.0)])
def test_raman_light_is_what_every_piece_of_fibre_adds(direction, pump_nm, quantum_nm):
    pump, quantum = (SPAN.db_per_km(nm) * log(10) / 10 for nm in (pump_nm, quantum_nm))

    def added(z_km):
        # z from where the pump enters; what is scattered there has to reach the receiver's end.
        way = SPAN.length_km - z_km if direction == FORWARD else z_km
        return np.exp(-pump * z_km - quantum * way)

    power_w = 2e-3 * integrate.quad(added, 0, SPAN.length_km)[0] * raman_coefficient(pump_nm, quantum_nm)
    want = power_w * quantum_nm * 1e-9 / (constants.h * constants.c)
    channels = [data(0.0, pump_nm, count=2, direction=direction)]
    assert raman_photons_hz_per_nm(SPAN, channels, quantum_nm) == pytest.approx(want, rel=1e-9)


def test_the_general_formula_becomes_the_textbook_one_where_both_wavelengths_are_attenuated_alike():
    # P beta L exp(-a L) forward; P beta (1 - exp(-2 a L)) / (2 a) backward.
    pump_nm, quantum_nm = 1550.10, 1550.12
    alpha = SPAN.db_per_km(quantum_nm) * log(10) / 10
    photons = 1e-3 * raman_coefficient(pump_nm, quantum_nm) * quantum_nm * 1e-9 / (constants.h * constants.c)
    length = SPAN.length_km
    forward = raman_photons_hz_per_nm(SPAN, [data(0.0, pump_nm)], quantum_nm)
    backward = raman_photons_hz_per_nm(SPAN, [data(0.0, pump_nm, direction=BACKWARD)], quantum_nm)
    assert forward == pytest.approx(photons * length * np.exp(-alpha * length), rel=1e-3)
    assert backward == pytest.approx(photons * (1 - np.exp(-2 * alpha * length)) / (2 * alpha), rel=1e-3)


def test_the_published_noise_of_a_coexistence_model_comes_out():
    # Kumar, Qin and Alleaume 2015: 0 dBm over 25 km into 1531.12 nm is 1.3e-3 shot noise units forward and 1.6e-3
    # backward behind a demultiplexer of 0.5 dB; a unit is two photons in the one mode of a local oscillator, which
    # takes one of the two polarisations.
    fibre = Fibre(length_km=25.0, splice_loss_db=0.0, connector_loss_db=0.0, temperature_k=293.0)
    pump_nm, quantum_nm, _ = RAMAN_REFERENCE
    hz_per_nm = constants.c / (quantum_nm * 1e-9) / quantum_nm
    for direction, want in ((FORWARD, 1.3e-3), (BACKWARD, 1.6e-3)):
        spectral = raman_photons_hz_per_nm(fibre, [data(0.0, pump_nm, direction=direction)], quantum_nm)
        shot_noise_units = 2 * (spectral / hz_per_nm / 2) * 10 ** (-0.05)
        assert shot_noise_units == pytest.approx(want, rel=0.06)


def test_noise_per_gate_is_photons_times_everything_on_their_way():
    channels = [data(-10.0), data(-13.0, 1560.0, direction=BACKWARD)]
    spectral = raman_photons_hz_per_nm(SPAN, channels, ACCEPTANCE.wavelength_nm)
    # 0.5 dB of connectors, 6 dB of receiver, 12.5 % of 200 ps.
    mean = spectral * 0.4 * 10 ** (-0.65) * 0.125 * 200e-12
    assert raman_noise_probability(SPAN, channels, ACCEPTANCE) == pytest.approx(1 - np.exp(-mean), rel=1e-9)
    assert raman_noise_probability(SPAN, [], ACCEPTANCE) == 0.0


def test_leakage_falls_with_isolation_and_fibre_but_not_below_the_back_scattering():
    # 0 dBm at 1545 nm is 7.78e15 photons/s; 10.6 dB of fibre, 110 dB of filter, 6.5 dB of connectors and receiver.
    span_db = 50 * SPAN.db_per_km(1545.0)
    photons = 1e-3 * 1545e-9 / (constants.h * constants.c)
    want = photons * 10 ** (-(span_db + 110 + 6.5) / 10) * 0.125 * 200e-12
    assert leakage_probability(SPAN, [data()], ACCEPTANCE) == pytest.approx(want, rel=1e-6)
    far = Fibre(length_km=400.0)
    back = [leakage_probability(fibre, [data(direction=BACKWARD)], ACCEPTANCE) for fibre in (SPAN, far)]
    assert back[0] == back[1] > leakage_probability(far, [data()], ACCEPTANCE)


# Sharing


def textbook_qber(noise):
    # The reference link at 50 km: mu 0.5, 5.02 % behind 10 dB, e_opt 0.8 %, dark counts 1e-6, afterpulses 1.5 %.
    light = 1 - np.exp(-0.5 * 0.0502 * 0.1)
    quiet = 2 * (1e-6 + noise)
    gain = 1.015 * (quiet + light)
    return float((0.008 * light + quiet / 2 + 0.0075 * (quiet + light)) / gain)


def judge(channels, fibre=SPAN, limit=0.03):
    return may_share(fibre, channels, ACCEPTANCE, dark_count_probability=1e-6, qber=textbook_qber, qber_limit=limit)


@pytest.mark.parametrize(("per_gate", "want"), [(1e-5, 0.0176), (1e-4, 0.0342)])
def test_the_error_rate_under_raman_light_is_the_known_one(per_gate, want):
    # Noise of 1e-5 and 1e-4 per gate, half of it in each detector.
    at_0_dbm = raman_noise_probability(SPAN, [data()], ACCEPTANCE)
    launch_dbm = 10 * log10(-np.log1p(-per_gate / 2) / -np.log1p(-at_0_dbm))
    answer = judge([data(launch_dbm)])
    assert answer.raman_probability == pytest.approx(per_gate / 2, rel=1e-6)
    assert answer.noise_over_dark == pytest.approx(per_gate / 2 / 1e-6, rel=0.01)
    assert answer.qber == pytest.approx(want, abs=5e-5)
    assert answer.added_qber == pytest.approx(want - textbook_qber(0.0), abs=5e-5)


def test_at_the_largest_launch_power_the_link_just_does():
    for launch_dbm in (-30.0, 0.0):
        channels = [data(launch_dbm), data(launch_dbm - 3, 1310.0, count=4, direction=BACKWARD)]
        answer = judge(channels)
        assert answer.is_allowed == (answer.headroom_db >= 0)
        assert answer.largest_launch_dbm == pytest.approx([group.launch_dbm + answer.headroom_db for group in channels])
        raised = [
            ClassicalChannels(
                launch_dbm=most, wavelength_nm=group.wavelength_nm, count=group.count, direction=group.direction
            )
            for group, most in zip(channels, answer.largest_launch_dbm, strict=True)
        ]
        at_most = judge(raised)
        assert at_most.qber == pytest.approx(0.03, rel=1e-6)
        assert at_most.headroom_db == pytest.approx(0.0, abs=1e-6)


def test_a_line_that_fails_in_the_dark_may_share_with_nothing_and_one_that_never_fails_with_anything():
    assert judge([data()], limit=0.001).headroom_db == -inf
    assert judge([data()], limit=0.001).largest_launch_dbm == (-inf,)
    assert not judge([data(-100.0)], limit=0.001).is_allowed
    assert judge([data()], limit=0.6).headroom_db == inf
    assert judge([]).headroom_db == inf
    assert judge([]).is_allowed


def test_a_backbone_at_21_dbm_can_be_shared_in_the_o_band_and_never_in_the_c_band():
    # Mao et al., Opt. Express 26, 6010 (2018): quantum channel at 1310 nm behind a 20 GHz filter, 66 km, 21 dBm of
    # data in the C band; a few kbit/s of key remained. Detector and receiver figures here are plausible ones.
    fibre = Fibre(length_km=66.0)
    answers = []
    for quantum_nm, pump_nm in ((1310.0, 1545.0), (1550.12, 1540.0)):
        width_nm = 20e9 * quantum_nm**2 * 1e-9 / constants.c
        acceptance = Acceptance(
            wavelength_nm=quantum_nm,
            filter_width_nm=width_nm,
            isolation_db=150.0,
            receiver_loss_db=4.0,
            efficiency=0.1,
            gate_width_s=1e-9,
        )
        light = 0.6 * 0.1 * 10 ** (-(fibre.loss_db(quantum_nm) + 4.0) / 10)

        def qber(noise, light=light):
            quiet = 2 * (1e-6 + noise)
            return (0.01 * light + quiet / 2) / (light + quiet)

        channels = [data(21.0, pump_nm)]
        answers.append(may_share(fibre, channels, acceptance, dark_count_probability=1e-6, qber=qber, qber_limit=0.11))
    o_band, c_band = answers
    assert o_band.is_allowed
    assert o_band.noise_over_dark > 1
    assert not c_band.is_allowed
    assert c_band.headroom_db < -20


def test_nonsense_is_refused():
    for make in (
        lambda: Fibre(length_km=-1.0),
        lambda: Fibre(length_km=float("nan")),
        lambda: Fibre(length_km=1.0, splice_spacing_km=0.0),
        lambda: LaserPulse(width_s=0.0),
        lambda: LaserPulse(width_s=1e-12, chirp_sign=2),
        lambda: data(direction="sideways"),
        lambda: data(count=-1),
    ):
        with pytest.raises(RequestRefused):
            make()
