"""What the monitors of both modules of a simulated link show during a block.

This stands where photodiodes, counters and calibrations would: it turns what light does, Eve's too (quantum.attack),
and what the receiver counted into the readings of quantum.device. What to make of them is for quantum.monitors.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy import special

from qtrunk.kernels import F64, I64
from qtrunk.quantum.channel import Clicks
from qtrunk.quantum.device import ARRIVAL_BINS, ReceiverReadings, TransmitterReadings
from qtrunk.quantum.dice import Dice
from qtrunk.quantum.drift import DriftStep
from qtrunk.quantum.optics import PHOTON_J, LinkOptics, dbm, outcomes_of
from qtrunk.quantum.situation import Situation

TAP_FLOOR_W = 1e-10
"""What a tap photodiode shows in the dark: -70 dBm."""
REFERENCE_SHARE = 1e-3
"""Reference gates, of the pulses of a block, for each of: no attenuator, attenuator, time slots."""


@dataclass(slots=True)
class Readings:
    """Collects what the monitors see during a block; a `channel.Watcher`."""

    optics: LinkOptics
    dice: Dice
    pulses: int = 0
    detector_clicks: F64 = field(default_factory=lambda: np.zeros(2))
    double_clicks: int = 0
    arrivals: dict[float, F64] = field(default_factory=dict)
    """Clicks of both detectors for each shift of the time of arrival; noise apart, at NaN."""
    plain: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Chance of a click in a reference gate without and with the attenuator, times pulses."""
    situation: Situation | None = None
    steps: list[float] = field(default_factory=list)
    offset_rad: float | None = None

    def period(self, situation: Situation, step: DriftStep | None, clicks: Clicks, pulses: int) -> None:
        """As channel.Watcher has it."""
        counts = np.bincount(clicks.flags & 3, minlength=4)
        both = int(counts[2] + counts[3])
        here = np.array([counts[0] + both, counts[1] + both], float)
        self.pulses += pulses
        self.detector_clicks += here
        self.double_clicks += both
        if situation is not self.situation or not self.steps:
            self.situation = situation
        for shift_s, shares in _arrival_shares(self.optics, situation).items():
            self.arrivals[shift_s] = self.arrivals.get(shift_s, np.zeros(2)) + shares * here
        chance = float(situation.outcomes[0].sum(axis=-1).mean())
        self.plain[0] += chance * pulses
        self.plain[1] += _attenuated(self.optics, situation) * pulses
        if step is not None:
            self.steps.append(step.phase_error_rad)
            self.offset_rad = step.measured_offset_rad

    def receiver(self) -> ReceiverReadings:
        """What the receiver's monitors say of the block."""
        optics, situation, dice = self.optics, self.situation, self.dice
        if situation is None or not self.pulses:
            return ReceiverReadings()
        seconds = self.pulses / optics.clock_hz
        gates = max(1, round(REFERENCE_SHARE * self.pulses))
        tests = [
            gates,
            dice.count(gates, self.plain[0] / self.pulses),
            gates,
            dice.count(gates, self.plain[1] / self.pulses),
        ]
        central = self.plain[0] / self.pulses
        side = central / 2 if self.plain[1] > 0.3 * self.plain[0] else 0.0
        noise = dice.normals(5)
        light_w = float(np.dot(optics.source.exact_probabilities, optics.intensities)) * situation.intensity_factor
        light_w *= optics.fibre_transmittance * optics.clock_hz * PHOTON_J
        currents = [
            (detector.mean_photocurrent_a(float(clicks) / seconds) + situation.photocurrent_a)
            * (1 + 0.01 * float(error))
            for detector, clicks, error in zip(optics.detectors, self.detector_clicks, noise, strict=False)
        ]
        delays = [optics.detectors[0].gate_delay_s, optics.detectors[1].gate_delay_s + situation.gate_delay_s]
        return ReceiverReadings(
            detector_clicks=[int(count) for count in self.detector_clicks],
            double_clicks=self.double_clicks,
            arrivals=self._histograms(),
            photocurrent_a=currents,
            entrance_power_dbm=dbm(light_w + situation.entrance_power_w + TAP_FLOOR_W) + 0.05 * float(noise[2]),
            attenuator_test=tests,
            slots=[dice.count(gates, side), dice.count(gates, central), dice.count(gates, side)],
            phase_offset_rad=self.offset_rad,
            phase_residual_rad=float(np.sqrt(np.mean(np.square(self.steps)))) if self.steps else None,
            gate_delays_s=[delay + 1e-12 * float(error) for delay, error in zip(delays, noise[3:], strict=True)],
            efficiency_ratio=self._efficiency_ratio(situation),
            live_fraction=1 - float(self.detector_clicks.sum() - self.double_clicks) * optics.dead_pulses / self.pulses,
        )

    def transmitter(self) -> TransmitterReadings:
        """What the transmitter's monitors say of the block."""
        if self.situation is None:
            return TransmitterReadings()
        noise = self.dice.normals(len(self.optics.intensities) + 1)
        numbers = self.optics.intensities * self.situation.intensity_factor
        reverse = dbm(self.situation.reverse_power_w + TAP_FLOOR_W)
        return TransmitterReadings(
            mean_photon_numbers=[float(n * (1 + 0.005 * e)) for n, e in zip(numbers, noise, strict=False)],
            reverse_power_dbm=reverse + 0.05 * float(noise[-1]),
        )

    def _efficiency_ratio(self, situation: Situation) -> float:
        """A gate that the calibration put wrong sees pulses that come when they should less well."""
        first, second = (situation.optics or self.optics).detectors
        return float(second.efficiency_at(-situation.gate_delay_s)) / float(first.efficiency_at(0.0))

    def _histograms(self) -> list[list[int]]:
        """Clicks by time of arrival: the gate's middle in the middle of the bins."""
        period_s = 1 / self.optics.clock_hz
        edges_s = np.linspace(-period_s / 2, period_s / 2, ARRIVAL_BINS + 1)
        histograms = []
        for index, detector in enumerate(self.optics.detectors):
            shares = np.zeros(ARRIVAL_BINS)
            total = sum(float(counts[index]) for counts in self.arrivals.values())
            for shift_s, counts in self.arrivals.items():
                if np.isnan(shift_s):
                    here = np.diff(np.clip(edges_s / detector.gate_width_s, -0.5, 0.5))
                else:
                    here = np.diff(special.ndtr((edges_s - shift_s) / detector.jitter_s))
                    here = here / max(1e-300, here.sum())
                shares += here * counts[index]
            histograms.append(_multinomial(self.dice, round(total), shares))
        return histograms


def arrival_times_ps(optics: LinkOptics, situation: Situation, clicks: Clicks, dice: Dice) -> I64:
    """When the receiver's time tagger would say each click came, in ps since the block's first pulse."""
    count = len(clicks.positions)
    where = np.minimum(clicks.detectors, 1)
    jitter_s = np.array([detector.jitter_s for detector in optics.detectors])[where]
    width_s = np.array([detector.gate_width_s for detector in optics.detectors])[where]
    offset_s = dice.normals(count) * jitter_s
    shares = _arrival_shares(optics, situation)
    draw, passed = dice.uniforms(count), np.zeros(count)
    for shift_s, share in shares.items():
        here = (draw >= passed) & (draw < passed + share[where])
        passed += share[where]
        if np.isnan(shift_s):
            offset_s[here] = (dice.uniforms(int(here.sum())) - 0.5) * width_s[here]
        else:
            offset_s[here] += shift_s
    times: I64 = np.rint(clicks.positions.astype(np.float64) * (1e12 / optics.clock_hz) + offset_s * 1e12).astype(
        np.int64
    )
    return times


def _multinomial(dice: Dice, total: int, shares: F64) -> list[int]:
    """So many counts spread over bins in proportion to `shares`."""
    counts, left, rest = [], total, float(shares.sum())
    for share in shares:
        chance = min(1.0, float(share) / rest) if rest > 0 else 0.0
        here = dice.count(left, chance) if left > 0 and chance > 0 else 0
        counts.append(here)
        left -= here
        rest -= float(share)
    return counts


def _arrival_shares(optics: LinkOptics, situation: Situation) -> dict[float, F64]:
    """Which share of each detector's clicks comes with which shift; noise at NaN."""
    fires: dict[float, F64] = {}
    for branch in situation.branches:
        here = branch.weight[:, :, None, None] * branch.outcomes
        levels = np.array(optics.source.exact_probabilities)[:, None, None]
        both = here[..., 2]
        each = np.array([np.sum(levels * (here[..., d] + both)) for d in (0, 1)]) / 8
        fires[branch.shift_s] = fires.get(branch.shift_s, np.zeros(2)) + each
    total = sum(fires.values(), np.zeros(2))
    noise = np.minimum((situation.optics or optics).dark * (situation.afterpulse_factor > 0), total)
    shares = {
        shift_s: each * (1 - noise / np.maximum(total, 1e-300)) / np.maximum(total, 1e-300)
        for shift_s, each in fires.items()
    }
    shares[float("nan")] = noise / np.maximum(total, 1e-300)
    return shares


def _attenuated(optics: LinkOptics, situation: Situation) -> float:
    """Chance of a click in a reference gate behind Bob's own 3 dB: light that comes as photons clicks half as often,
    a pulse that must pass a threshold not at all.
    """
    chance = 0.0
    for branch in situation.branches:
        outcomes = np.broadcast_to(branch.outcomes, (len(optics.intensities), 4, 2, 3))[0]
        fires = np.stack([outcomes[..., 0] + outcomes[..., 2], outcomes[..., 1] + outcomes[..., 2]], axis=-1)
        silent = optics.dark if situation.afterpulse_factor > 0 else np.zeros(2)
        is_threshold = fires >= 1
        light = -np.log(np.where(is_threshold, 1.0, (1 - fires) / (1 - silent)))
        halved = np.where(is_threshold, silent, 1 - (1 - silent) * np.exp(-np.maximum(light, 0) / 2))
        chance += float(np.mean(branch.weight[0][:, None] * outcomes_of(halved).sum(axis=-1)))
    return chance
