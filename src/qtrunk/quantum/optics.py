"""The light path of one Faraday-Michelson link, and what a live receiver does with each kind of pulse.

Fibre and receiver optics thin the light; the two interferometers split what arrives in the central time slot between
two detectors, by Alice's state, Bob's basis and the phase between them; each detector clicks with its efficiency and
its noise. All of that is one table, `outcomes`: for each intensity, state and basis the chances of clicks in a gate
that is not blind. The sampler (quantum.channel) draws from it, the oracle (quantum.analytic) adds it up, and Eve
(quantum.attack) replaces it by what her apparatus makes of it. Memory (dead time, afterpulses) is theirs, not the
table's.

Alice's state is 2 basis + bit: phases 0, pi in the key basis, pi/2, 3pi/2 in the test basis; Bob's phases 0 and pi/2.
Names after ETSI GS QKD 011.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import cos, exp, log10, sin, sqrt

import numpy as np

from qtrunk.kernels import F64, Afterpulses
from qtrunk.quantum.detectors import INGAAS_1GHZ, INGAAS_20MHZ, Detector
from qtrunk.quantum.fibre import Fibre, LaserPulse, intersymbol_share
from qtrunk.quantum.interferometer import ALICE_PHASES_RAD, BOB_PHASES_RAD
from qtrunk.quantum.source import SourceSettings
from qtrunk.topology import Equipment

PHOTON_J = 1.282e-19
"""Energy of a photon of 1550 nm."""
GIGAHERTZ_FROM_HZ = 2e8
"""From this clock on the detectors are of the fast-gated generation."""
STATES, BASES = 4, 2
_POINTS, _WEIGHTS = np.array([-sqrt(3), 0.0, sqrt(3)]), np.array([1 / 6, 2 / 3, 1 / 6])
"""Gauss-Hermite points and weights: exact for what is of up to the fifth order in the fluctuation."""


@dataclass(frozen=True, eq=False)
class Paths:
    """Which share of the light in the central slot goes to which detector, shape (4 states, 2 bases, 2 detectors).

    Two paths interfere, so every share is even + cosine cos(offset) + sine sin(offset) of the phase between the two
    interferometers. A share of 1 is all light but the half that the time slots lose by principle, which the receiver's
    loss holds.
    """

    even: F64
    cosine: F64
    sine: F64

    @staticmethod
    def of_visibility(visibility: float) -> "Paths":
        """Two balanced interferometers: (1 +- V cos(phase difference)) / 2."""
        difference = np.subtract.outer(ALICE_PHASES_RAD, BOB_PHASES_RAD)
        sign = np.array([1.0, -1.0])
        even = np.full((STATES, BASES, 2), 0.5)
        return Paths(
            even,
            visibility / 2 * np.cos(difference)[:, :, None] * sign,
            -visibility / 2 * np.sin(difference)[:, :, None] * sign,
        )

    @staticmethod
    def of_table(at_0: F64, at_quarter: F64, at_half: F64) -> "Paths":
        """From shares at offsets of 0, pi/2 and pi, as quantum.interferometer has them, where 1/2 is all light."""
        even = at_0 + at_half
        return Paths(even, at_0 - at_half, 2 * at_quarter - even)

    def shares(self, offset_rad: float) -> F64:
        """At one phase offset."""
        shares: F64 = self.even + cos(offset_rad) * self.cosine + sin(offset_rad) * self.sine
        return shares

    def blurred(self, residual_phase_rad: float) -> "Paths":
        """Under a normal phase noise faster than any control: the fringes lose exp(-s^2 / 2)."""
        left = exp(-(residual_phase_rad**2) / 2)
        return Paths(self.even, left * self.cosine, left * self.sine)


@dataclass(frozen=True, kw_only=True, eq=False)
class LinkOptics:
    """One link's light path. Rates are for a transmitter at `clock_hz`."""

    source: SourceSettings
    clock_hz: float
    loss_db: float
    """Fibre, splices and connectors."""
    receiver_loss_db: float
    """Receiver optics, the 3 dB of the time slots included."""
    detectors: tuple[Detector, Detector]
    visibility: float = 0.99
    residual_phase_rad: float = 0.0
    """Phase noise faster than the control loop, rms."""
    paths: Paths = None  # type: ignore[assignment]  # made of the visibility where none is given
    noise_probability: float = 0.0
    """Per gate and detector, beside dark counts: Raman light of other channels, leakage."""
    pulse_rms_s: float = 0.0
    """Of a pulse at the receiver: dispersion makes it longer than its gate."""
    intersymbol_share: float = 0.0
    """Light of neighbouring slots in a gate, over its own."""
    intensity_fluctuation: float = 0.0
    """Relative rms from pulse to pulse."""
    is_phase_random: bool = True
    """Whether each pulse has a phase of its own, as decoy states need."""
    transmitter_isolation_db: float = 100.0
    """From the fibre to Alice's modulator and back."""

    def __post_init__(self) -> None:
        if self.paths is None:
            object.__setattr__(self, "paths", Paths.of_visibility(self.visibility))

    @cached_property
    def fibre_transmittance(self) -> float:
        """Photon leaving Alice to Bob's entrance."""
        return float(10 ** (-self.loss_db / 10))

    @cached_property
    def receiver_transmittance(self) -> float:
        """Photon at Bob's entrance to his detectors."""
        return float(10 ** (-self.receiver_loss_db / 10))

    @cached_property
    def efficiencies(self) -> F64:
        """Of both detectors for light that arrives when it should, shape (2,)."""
        return np.array([float(detector.efficiency_at(0.0, self.pulse_rms_s)) for detector in self.detectors])

    @cached_property
    def dark(self) -> F64:
        """Clicks without light, per gate and detector, afterpulses aside; shape (2,)."""
        own = np.array([detector.dark_count_probability for detector in self.detectors])
        # Light of other pulses has a phase of its own: as good as noise, half of it in each detector.
        mean = float(np.dot(self.source.exact_probabilities, self.intensities))
        foreign = self.intersymbol_share * mean * self.fibre_transmittance * self.receiver_transmittance
        chances: F64 = 1 - (1 - own) * (1 - self.noise_probability) * np.exp(-foreign * self.efficiencies / 2)
        return chances

    @cached_property
    def intensities(self) -> F64:
        """Mean photon numbers leaving Alice, strongest first."""
        return np.array(self.source.intensities)

    @cached_property
    def _blurred(self) -> Paths:
        return self.paths.blurred(self.residual_phase_rad)

    def shares(self, offset_rad: float = 0.0) -> F64:
        """Of the light in Bob's receiver, to each detector: shape (4, 2, 2)."""
        return self._blurred.shares(offset_rad)

    def outcomes(self, offset_rad: float = 0.0, dimming: float = 1.0) -> F64:
        """Chances of clicks of a live receiver: shape (intensities, 4 states, 2 bases, 3: only the first detector, only
        the second, both). `dimming` is the share of the light that the gates still see.
        """
        return self.clicks(dimming * self._arriving * self.shares(offset_rad))

    @cached_property
    def _arriving(self) -> F64:
        """Mean photon numbers that would be detected if all light went to one detector, (intensities, 1, 1, 2)."""
        reach = self.fibre_transmittance * self.receiver_transmittance * self.efficiencies
        return np.multiply.outer(self.intensities, reach)[:, None, None, :]

    def clicks(self, light: F64) -> F64:
        """Outcomes, shape (..., 3), of mean detected photon numbers, shape (..., 2), of phase-random pulses."""
        if not self.intensity_fluctuation:
            return outcomes_of(1 - (1 - self.dark) * np.exp(-light))
        factors = np.maximum(0.0, 1 + _POINTS * self.intensity_fluctuation)
        fires = 1 - (1 - self.dark) * np.exp(-np.multiply.outer(factors, light))
        mean = (_WEIGHTS @ fires.reshape(3, -1)).reshape(light.shape)
        both = (_WEIGHTS @ (fires[..., 0] * fires[..., 1]).reshape(3, -1)).reshape(light.shape[:-1])
        outcomes = np.empty((*both.shape, 3))
        outcomes[..., :2] = mean - both[..., None]
        outcomes[..., 2] = both
        return outcomes

    @cached_property
    def dead_pulses(self) -> int:
        """Pulses that go unseen after a click: a click of either detector blinds both, for the longer dead time."""
        return round(max(detector.effective_dead_time_s for detector in self.detectors) * self.clock_hz)

    @cached_property
    def afterpulses(self) -> Afterpulses:
        """What a click leaves in its diode, for the sampler. The two diodes of a receiver are alike in that."""
        return afterpulses_of(self.detectors[0], self.clock_hz, self.dead_pulses)

    def power_dbm(self, photons_per_pulse: float) -> float:
        """Of a train of pulses at the clock rate."""
        return dbm(photons_per_pulse * self.clock_hz * PHOTON_J)


def dbm(power_w: float) -> float:
    """Watts in dBm; darkness is -200."""
    return max(-200.0, 10 * log10(power_w / 1e-3)) if power_w > 0 else -200.0


def outcomes_of(chances: F64) -> F64:
    """(only first, only second, both), shape (..., 3), of independent chances of the two detectors, shape (..., 2)."""
    both = chances[..., 0] * chances[..., 1]
    outcomes = np.empty((*both.shape, 3))
    outcomes[..., :2] = chances - both[..., None]
    outcomes[..., 2] = both
    return outcomes


def afterpulses_of(detector: Detector, clock_hz: float, dead_pulses: int) -> Afterpulses:
    """The truncated power law of a diode in gates of this clock, from the first gate after the dead time on."""
    first_gate = dead_pulses + 1
    cutoff_gates = detector.afterpulse_cutoff_s * clock_hz
    mean = detector.afterpulse_mean_after(first_gate / clock_hz)
    if mean <= 0 or cutoff_gates <= first_gate:
        return Afterpulses()
    power = 1 - detector.afterpulse_exponent
    return Afterpulses(mean=mean, first=first_gate**power, last=cutoff_gates**power, inverse=1 / power)


def dispersed(optics: LinkOptics, pulse: LaserPulse, fibre: Fibre) -> LinkOptics:
    """The same link with pulses that this fibre makes longer: they lose light outside their gates, and get some of
    their neighbours'. Time slots are half a clock period apart.
    """
    rms_s = pulse.rms_after_s(fibre)
    period_s, gate = 1 / optics.clock_hz, optics.detectors[0]
    foreign = intersymbol_share(rms_s, gate.gate_width_s, period_s, period_s / 2, gate.gate_shape)
    return replace(optics, pulse_rms_s=rms_s, intersymbol_share=float(foreign))


def of_equipment(equipment: Equipment, loss_db: float, source: SourceSettings | None = None) -> LinkOptics:
    """The light path that a topology describes; `source` where the modules were armed with other settings.

    The topology gives the detectors' main figures; gate, jitter and afterpulse law are those of their generation.
    """
    generation = INGAAS_1GHZ if equipment.clock_hz >= GIGAHERTZ_FROM_HZ else INGAAS_20MHZ
    first, second = (
        replace(
            generation,
            efficiency=equipment.detector_efficiency,
            dark_count_probability=equipment.dark_count_probability,
            afterpulse_probability=equipment.afterpulse_probability,
            afterpulse_hold_off_s=max(equipment.dead_time_s, 1 / equipment.clock_hz),
            afterpulse_cutoff_s=max(equipment.dead_time_s, 1 / equipment.clock_hz) * 1000,
            dead_time_s=equipment.dead_time_s,
            gate_delay_s=side * equipment.gate_mismatch_s / 2,
        )
        for side in (-1, 1)
    )
    return LinkOptics(
        source=source
        or SourceSettings(equipment.intensities, equipment.probabilities, equipment.key_basis_probability),
        clock_hz=equipment.clock_hz,
        loss_db=loss_db,
        receiver_loss_db=equipment.receiver_loss_db,
        detectors=(first, second),
        visibility=equipment.visibility,
        residual_phase_rad=equipment.residual_phase_rad,
        noise_probability=equipment.added_noise_probability,
        intensity_fluctuation=equipment.intensity_fluctuation,
    )
