"""The fibre: what it takes from the quantum light, what it does to its pulses, and what other light in it adds.

Loss with splices and connectors; chromatic dispersion of the pulses; and, where the quantum channel shares the fibre
with classical ones, their spontaneous Raman scattering into its wavelength and what the filters let through of them.
Not modelled: four-wave mixing (keep the quantum channel off the mixing grid, or far from the zero of dispersion), the
amplified spontaneous emission of the classical transmitters and amplifiers (to be filtered out before they enter the
fibre), the OH absorption peak, and Raman amplification of the quantum light.

Wavelengths are vacuum wavelengths in nm, powers in dBm at the fibre's own end (behind multiplexer and connector), pulse
widths rms of the intensity where a name says `rms`, else full width at half maximum.

Sources: ITU-T G.652 (attenuation, dispersion); Agrawal, Nonlinear Fiber Optics, section 3.2 (pulses); Eraerds et al.,
New J. Phys. 12, 063027 (2010), Chapuran et al., New J. Phys. 11, 105001 (2009) and Patel et al., Phys. Rev. X 2, 041010
(2012) (Raman noise in a shared fibre); Hollenbeck and Cantrell, J. Opt. Soc. Am. B 19, 2886 (2002) (its spectrum).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, exp, expm1, inf, isfinite, log, log10, pi, sqrt

import numpy as np
from scipy import special

from qtrunk.base.errors import RequestRefused
from qtrunk.kernels import F64
from qtrunk.quantum.si import BOLTZMANN, LIGHT_SPEED, PLANCK

FWHM_PER_RMS = sqrt(8 * log(2))
"""Full width at half maximum of a Gaussian in units of its rms width."""
NEPER_PER_DB = log(10) / 10
RECTANGULAR, GAUSSIAN = "rectangular", "gaussian"
FORWARD, BACKWARD = "forward", "backward"

RAMAN_REFERENCE = (1550.12, 1531.12, 3.0e-9)
"""Pump and quantum wavelength in nm, and power scattered per pump power, km of fibre and nm of spectrum, both
polarisations and one direction: the worst case that Kumar, Qin and Alleaume, New J. Phys. 17, 043027 (2015) take for a
quantum channel at 1531.12 nm beside C-band data; that its pump is at 1550.12 nm is an assumption here. The Raman gain
of amplifiers (0.39 /(W km) at the peak) makes it 5e-9, some QKD papers take 2e-9: every Raman figure here is good to
about 3 dB."""
RETURN_LOSS_DB = 30.0
"""How far below its launch power light comes back out of a long fibre: Rayleigh back-scattering (-31 to -34 dB) and
connectors."""

_MODES = np.array(
    [
        (56.25, 1.00, 52.10, 17.37),
        (100.00, 11.40, 110.42, 38.81),
        (231.25, 36.67, 175.00, 58.33),
        (362.50, 67.67, 162.50, 54.17),
        (463.00, 74.00, 135.33, 45.11),
        (497.00, 4.50, 24.50, 8.17),
        (611.50, 6.80, 41.50, 13.83),
        (691.67, 4.60, 155.00, 51.67),
        (793.67, 4.20, 59.50, 19.83),
        (835.50, 4.50, 64.30, 21.43),
        (930.00, 2.70, 150.00, 50.00),
        (1080.00, 3.10, 91.00, 30.33),
        (1215.00, 3.00, 160.00, 53.33),
    ]
)
"""Vibrations of silica, Hollenbeck and Cantrell 2002, table 1: position, amplitude, Gaussian and Lorentzian full width;
positions and widths in 1/cm."""


@dataclass(frozen=True, kw_only=True)
class Fibre:
    """A span of standard single-mode fibre (ITU-T G.652.D). RequestRefused for a length or loss below 0."""

    length_km: float
    attenuation_db_per_km: float = 0.20
    """Of the glass at 1550 nm."""
    splice_loss_db: float = 0.05
    splice_spacing_km: float = 5.0
    connector_loss_db: float = 1.0
    """All connectors and patching, half of it at either end."""
    zero_dispersion_nm: float = 1312.0
    dispersion_slope_ps_per_nm2_km: float = 0.090
    """At the zero of dispersion; with 1312 nm it gives 17 ps/(nm km) at 1550 nm."""
    compensation_ps_per_nm: float = 0.0
    """Of a dispersion-compensating module in the path; negative for standard fibre. Its loss is the receiver's."""
    temperature_k: float = 288.0

    def __post_init__(self) -> None:
        numbers = (self.length_km, self.attenuation_db_per_km, self.splice_loss_db, self.connector_loss_db)
        if not all(isfinite(number) and number >= 0 for number in numbers):
            raise RequestRefused(f"fibre of {self.length_km} km: length and losses must be finite and 0 or more")
        if not (self.splice_spacing_km > 0 and self.temperature_k > 0):
            raise RequestRefused("fibre: splice spacing and temperature must be above 0")

    def db_per_km(self, wavelength_nm: float = 1550.0) -> float:
        """Loss per km, splices spread out. Four fifths of the glass's loss at 1550 nm are Rayleigh scattering, which
        goes with the fourth power of the frequency; so 0.20 at 1550 nm comes with 0.35 at 1310 nm, as in G.652.
        """
        rayleigh = 0.8 * (1550.0 / wavelength_nm) ** 4
        return self.attenuation_db_per_km * (0.2 + rayleigh) + self.splice_loss_db / self.splice_spacing_km

    def loss_db(self, wavelength_nm: float = 1550.0) -> float:
        """From end to end, connectors included."""
        return self.length_km * self.db_per_km(wavelength_nm) + self.connector_loss_db

    def dispersion_ps_per_nm(self, wavelength_nm: float = 1550.0) -> float:
        """Accumulated over the span, G.652's fit S0/4 (l - l0^4 / l^3), and after compensation."""
        slope, zero = self.dispersion_slope_ps_per_nm2_km, self.zero_dispersion_nm
        per_km = slope / 4 * (wavelength_nm - zero**4 / wavelength_nm**3)
        return per_km * self.length_km + self.compensation_ps_per_nm


@dataclass(frozen=True, kw_only=True)
class LaserPulse:
    """A Gaussian pulse as it leaves the transmitter. RequestRefused for a spectrum narrower than its Fourier limit."""

    width_s: float
    """Full width at half maximum of the intensity."""
    bandwidth_hz: float = 0.0
    """Full width at half maximum of the spectrum; 0: transform limited, 0.441 / width."""
    chirp_sign: int = -1
    """-1: the frequency falls within the pulse, as a gain-switched laser's does, which makes it spread faster in
    standard fibre at 1550 nm; +1: it rises; 0: the excess spectrum is noise and has no order in time."""

    def __post_init__(self) -> None:
        if not self.width_s > 0:
            raise RequestRefused(f"pulse of {self.width_s} s: the width must be above 0")
        if self.chirp_sign not in (-1, 0, 1):
            raise RequestRefused(f"chirp sign {self.chirp_sign}: -1, 0 or 1")
        if self.bandwidth_hz and self.bandwidth_hz * self.width_s < 2 * log(2) / pi * (1 - 1e-9):
            raise RequestRefused(
                f"a pulse of {self.width_s} s cannot have only {self.bandwidth_hz} Hz: at least 0.441 / width"
            )

    def rms_after_s(self, fibre: Fibre, wavelength_nm: float = 1550.0) -> float:
        """Rms width behind the fibre: s^2 = s0^2 + C k + k^2 w^2, with k the group delay dispersion in s^2, w the rms
        spectral width in rad/s and C the linear chirp, 1 + C^2 = (2 s0 w)^2 (Agrawal, section 3.2).
        """
        rms = self.width_s / FWHM_PER_RMS
        spectral = 2 * pi * self.bandwidth_hz / FWHM_PER_RMS if self.bandwidth_hz else 1 / (2 * rms)
        chirp = self.chirp_sign * sqrt(max(0.0, (2 * rms * spectral) ** 2 - 1))
        # ps/nm is 1e-3 s/m; anomalous dispersion, D > 0, has a negative group delay dispersion.
        delay_dispersion = -(
            fibre.dispersion_ps_per_nm(wavelength_nm) * 1e-3 * (wavelength_nm * 1e-9) ** 2 / (2 * pi * LIGHT_SPEED)
        )
        return sqrt(rms**2 + chirp * delay_dispersion + (delay_dispersion * spectral) ** 2)


def gate_share(
    pulse_rms_s: float, gate_width_s: float, gate_shape: str = RECTANGULAR, offset_s: float | F64 = 0.0
) -> F64:
    """Share of a Gaussian pulse that a gate sees, against a very short pulse in the middle of the gate.

    `gate_width_s` is the width of a rectangular gate or the full width at half maximum of a Gaussian one; `offset_s`,
    of any shape, is the arrival of the pulse's middle after the gate's. The result has that shape. An infinitely short
    pulse (0) is seen in full by a rectangular gate up to its edges. RequestRefused for other shapes.
    """
    offset = np.asarray(offset_s, float)
    if gate_shape == GAUSSIAN:
        gate = gate_width_s / FWHM_PER_RMS
        variance = gate**2 + pulse_rms_s**2
        share: F64 = gate / sqrt(variance) * np.exp(-(offset**2) / (2 * variance))
        return share
    if gate_shape != RECTANGULAR:
        raise RequestRefused(f"gate shape {gate_shape!r}: {RECTANGULAR} or {GAUSSIAN}")
    if pulse_rms_s == 0:
        return np.asarray(np.abs(offset) <= gate_width_s / 2, float)
    early, late = (-gate_width_s / 2 - offset) / pulse_rms_s, (gate_width_s / 2 - offset) / pulse_rms_s
    # The difference of two tails, taken on the side where both are small, so that far neighbours keep their digits.
    flip = early > 0
    inside: F64 = special.ndtr(np.where(flip, -early, late)) - special.ndtr(np.where(flip, -late, early))
    return inside


def intersymbol_share(
    pulse_rms_s: float, gate_width_s: float, period_s: float, delay_s: float, gate_shape: str = RECTANGULAR
) -> float:
    """Light of all other slots within a gate on a central slot, over the light of that slot within it.

    A pulse leaves two unbalanced interferometers of delay `delay_s` as an early, a central and a late slot of energies
    1 : 2 : 1 (balanced arms; physics of Faraday-Michelson receivers, Mo et al., Opt. Lett. 30, 2632 (2005)); pulses
    follow each other every `period_s`. Foreign light goes to either detector alike, so a share x turns into an error
    rate of x / (2 (1 + x)).
    """
    reach = gate_width_s + 9 * pulse_rms_s + delay_s
    if gate_shape == GAUSSIAN:
        reach += 9 * gate_width_s / FWHM_PER_RMS
    pulses = np.arange(-ceil(reach / period_s), ceil(reach / period_s) + 1)
    central = pulses[pulses != 0] * period_s
    sides = np.concatenate([pulses * period_s - delay_s, pulses * period_s + delay_s])
    own, others, half = (
        float(gate_share(pulse_rms_s, gate_width_s, gate_shape, at).sum()) for at in (np.zeros(1), central, sides)
    )
    return (others + half / 2) / own


@dataclass(frozen=True, kw_only=True)
class ClassicalChannels:
    """A group of classical channels of one direction and about one wavelength in the quantum channel's fibre."""

    launch_dbm: float
    """Mean power of each, where it enters the fibre."""
    wavelength_nm: float
    """The middle of the group."""
    count: int = 1
    direction: str = FORWARD
    """`forward`: with the quantum light; `backward`: against it, launched at the receiver's end."""

    def __post_init__(self) -> None:
        if self.direction not in (FORWARD, BACKWARD):
            raise RequestRefused(f"direction {self.direction!r}: {FORWARD} or {BACKWARD}")
        if self.count < 0 or not self.wavelength_nm > 0:
            raise RequestRefused(f"{self.count} channels at {self.wavelength_nm} nm: none can be")

    @property
    def power_w(self) -> float:
        """Of all of them at launch."""
        return float(self.count * 1e-3 * 10 ** (self.launch_dbm / 10))


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """Which of the light that leaves the fibre one detector of the receiver can take for signal."""

    wavelength_nm: float = 1550.12
    filter_width_nm: float = 0.4
    """Equivalent rectangular width of the receiver's filter; 50 GHz is 0.4 nm."""
    isolation_db: float = 110.0
    """Of the filters for the classical channels, beyond their loss for the quantum channel."""
    receiver_loss_db: float = 6.0
    """Receiver optics, the 3 dB of the time slots included, as LinkOptics has it. Light that is always there loses
    nothing to the time slots but has two detectors to go to, so it is the loss from the fibre to one detector."""
    efficiency: float
    gate_width_s: float
    """Equivalent rectangular width: Detector.effective_gate_s."""


def raman_coefficient(pump_nm: float, quantum_nm: float, temperature_k: float = 288.0) -> float:
    """Spontaneous Raman scattering per km of standard fibre and nm of spectrum at `quantum_nm`, over the pump's power.

    Both polarisations, one direction (forward and backward are alike). Proportional to the Raman gain of silica at the
    frequency shift, to the photon energy, and to the thermal occupation of the vibration: n + 1 for light of longer
    wavelength than the pump's (Stokes), n for shorter (anti-Stokes). The scale is RAMAN_REFERENCE's at 293 K.
    """
    pump, quantum, coefficient = RAMAN_REFERENCE
    scale = coefficient / _raman_shape(pump, quantum, 293.0)
    return scale * _raman_shape(pump_nm, quantum_nm, temperature_k)


def _raman_shape(pump_nm: float, quantum_nm: float, temperature_k: float) -> float:
    """raman_coefficient up to a constant: gain (goes with the frequency) times energy times frequency per nm."""
    shift_per_cm = 1e7 / pump_nm - 1e7 / quantum_nm
    if shift_per_cm == 0:
        raise RequestRefused(f"a classical channel at {pump_nm} nm lies on the quantum channel")
    occupation = 1 / expm1(100 * PLANCK * LIGHT_SPEED * abs(shift_per_cm) / (BOLTZMANN * temperature_k))
    phonons = occupation + 1 if shift_per_cm > 0 else occupation
    return float(raman_gain(abs(shift_per_cm))) * phonons / quantum_nm**4


def raman_gain(shift_per_cm: float | F64) -> F64:
    """Raman gain of silica at frequency shifts of 1/cm, any shape, in units of no meaning (ratios have one).

    The Fourier transform of Hollenbeck and Cantrell's response, 13 damped vibrations whose frequencies are spread
    normally: sin(w t) exp(-g t) exp(-G^2 t^2 / 4) each, which the Faddeeva function integrates.
    """
    shift = np.asarray(shift_per_cm, float)[..., None]
    position, amplitude, gaussian, lorentzian = _MODES.T

    def line(distance: F64) -> F64:
        profile: F64 = special.wofz((2 * distance + 1j * lorentzian) / gaussian).real / gaussian
        return profile

    gain: F64 = (amplitude * (line(shift - position) - line(shift + position))).sum(axis=-1)
    return gain


def raman_photons_hz_per_nm(fibre: Fibre, channels: Sequence[ClassicalChannels], wavelength_nm: float) -> float:
    """Raman photons that leave the fibre at the receiver's end (before its connectors), per second and nm.

    With the attenuations p and q per km of classical and quantum light, P beta (exp(-p L) - exp(-q L)) / (q - p)
    forward, which is P beta L exp(-p L) where they are alike, and P beta (1 - exp(-(p + q) L)) / (p + q) backward
    (Chapuran 2009; Eraerds 2010 for p = q). Depletion of the pump by Raman scattering is left out.
    """
    length = fibre.length_km
    quantum = fibre.db_per_km(wavelength_nm) * NEPER_PER_DB
    power = 0.0
    for group in channels:
        pump = fibre.db_per_km(group.wavelength_nm) * NEPER_PER_DB
        if group.direction == FORWARD:
            reach = length * exp(-pump * length) * float(special.exprel((pump - quantum) * length))
        else:
            reach = length * float(special.exprel(-(pump + quantum) * length))
        power += group.power_w * reach * raman_coefficient(group.wavelength_nm, wavelength_nm, fibre.temperature_k)
    return power / _photon_j(wavelength_nm)


def _photon_j(wavelength_nm: float) -> float:
    return PLANCK * LIGHT_SPEED / (wavelength_nm * 1e-9)


def _clicks(photons_hz: float, fibre: Fibre, acceptance: Acceptance) -> float:
    """Mean noise clicks per gate in one detector, of photons at the fibre's end."""
    through = 10 ** (-(fibre.connector_loss_db / 2 + acceptance.receiver_loss_db) / 10)
    return photons_hz * through * acceptance.efficiency * acceptance.gate_width_s


def raman_noise_probability(fibre: Fibre, channels: Sequence[ClassicalChannels], acceptance: Acceptance) -> float:
    """Chance that a gate of one detector clicks for Raman light: to be added to the dark count probability."""
    spectral = raman_photons_hz_per_nm(fibre, channels, acceptance.wavelength_nm)
    return -expm1(-_clicks(spectral * acceptance.filter_width_nm, fibre, acceptance))


def leakage_probability(fibre: Fibre, channels: Sequence[ClassicalChannels], acceptance: Acceptance) -> float:
    """Chance that a gate of one detector clicks for classical light that the filters let through.

    Forward channels arrive attenuated by the fibre; of backward ones RETURN_LOSS_DB comes back.
    """
    return -expm1(-_leaked(fibre, channels, acceptance))


def _leaked(fibre: Fibre, channels: Sequence[ClassicalChannels], acceptance: Acceptance) -> float:
    mean = 0.0
    for group in channels:
        span_db = fibre.length_km * fibre.db_per_km(group.wavelength_nm)
        loss_db = acceptance.isolation_db + (span_db if group.direction == FORWARD else RETURN_LOSS_DB)
        mean += _clicks(group.power_w / _photon_j(group.wavelength_nm) * 10 ** (-loss_db / 10), fibre, acceptance)
    return mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """Whether a quantum channel may share its fibre with some classical channels."""

    is_allowed: bool
    raman_probability: float
    """Per gate and detector, as all probabilities here."""
    leakage_probability: float
    noise_probability: float
    """Both together."""
    noise_over_dark: float
    """Noise in units of the dark count probability; inf for a detector without dark counts."""
    qber: float
    """With the classical channels on."""
    added_qber: float
    headroom_db: float
    """By how much all launch powers could rise together until the error rate meets its limit; negative: must fall;
    -inf: the line fails in the dark; inf: no power makes it fail."""
    largest_launch_dbm: tuple[float, ...]
    """What that makes of each group's launch power, per channel."""


def may_share(
    fibre: Fibre,
    channels: Sequence[ClassicalChannels],
    acceptance: Acceptance,
    *,
    dark_count_probability: float,
    qber: Callable[[float], float],
    qber_limit: float,
) -> Sharing:
    """Judge a shared fibre. `qber` tells the error rate of the link with so much noise per gate and detector beside its
    dark counts, and must not fall with noise; `qber_limit` is the largest that the operator takes.

    The coefficient is good to about 3 dB, so a headroom of less is a reason to measure.
    """
    raman = raman_noise_probability(fibre, channels, acceptance)
    leakage = leakage_probability(fibre, channels, acceptance)
    noise = raman + leakage - raman * leakage
    with_noise, in_the_dark = qber(noise), qber(0.0)
    # All noise is in proportion to the launch powers, so one factor on its mean tells how far they can go.
    mean = -float(np.log1p(-noise))
    headroom_db = _headroom_db(mean, qber, qber_limit)
    return Sharing(
        is_allowed=with_noise <= qber_limit,
        raman_probability=raman,
        leakage_probability=leakage,
        noise_probability=noise,
        noise_over_dark=noise / dark_count_probability if dark_count_probability else inf,
        qber=with_noise,
        added_qber=with_noise - in_the_dark,
        headroom_db=headroom_db,
        largest_launch_dbm=tuple(group.launch_dbm + headroom_db for group in channels),
    )


def _headroom_db(mean: float, qber: Callable[[float], float], limit: float) -> float:
    if qber(0.0) > limit:
        return -inf
    faintest_db, brightest_db = -200.0, 15.0

    def excess(mean_db: float) -> float:
        return qber(-expm1(-(10 ** (mean_db / 10)))) - limit

    if mean == 0 or excess(brightest_db) <= 0:
        return inf
    if excess(faintest_db) > 0:
        return -inf
    from scipy.optimize import brentq  # here: a quarter of a second that only this question is worth

    return float(brentq(excess, faintest_db, brightest_db, xtol=1e-9)) - 10 * log10(mean)
