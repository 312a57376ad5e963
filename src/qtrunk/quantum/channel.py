"""Sampling a link: which pulses of a slice click, and in which detector. In effect pulse by pulse, at the cost of
clicks.

Time goes in periods of the control loop. Within one the phase, the gates and what Eve does stand still; between two the
drift moves on and the loop corrects it (quantum.drift). What the receiver remembers (when it last clicked, charges in
its diodes) carries over slices of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import expm1, log10
from typing import Protocol

import numpy as np

from qtrunk import kernels
from qtrunk.kernels import U64
from qtrunk.quantum.attack import Attack
from qtrunk.quantum.dice import Dice
from qtrunk.quantum.drift import DELAY_S_PER_KM, Drift, DriftSettings, DriftStep, expected_residual_rad
from qtrunk.quantum.optics import BASES, STATES, LinkOptics
from qtrunk.quantum.situation import Branch, Situation
from qtrunk.stages import Octets, Positions
from qtrunk.topology import Equipment

HONEST = Attack()
CLICKS_AT_ONCE = 1 << 16
"""So many fit the cache of a core and need no fresh pages from the system."""
_LIMIT = float(1 << 53)
_GATE_STEP_S = 1e-13
"""Smaller changes of the gates' place are left out."""
_SHARE_STEP = 1e-3
"""And of what they see while Eve is there."""


@dataclass(frozen=True, slots=True)
class Clicks:
    """What happened in a slice: positions, and the flags of kernels.sample_link."""

    positions: Positions
    flags: Octets

    @property
    def bits(self) -> Octets:
        """What the receiver reports."""
        return self.flags & np.uint8(1)

    @property
    def detectors(self) -> Octets:
        """0, 1, or 2 where both clicked."""
        return np.where(self.flags & np.uint8(2), np.uint8(2), self.flags & np.uint8(1))


class Watcher(Protocol):
    """Told of every period, for monitors and recordings."""

    def period(self, situation: Situation, step: DriftStep | None, clicks: Clicks, pulses: int) -> None:
        """What a stretch of light without change was and gave."""


@dataclass(slots=True)
class _Now:
    """What holds until the next period."""

    situation: Situation
    step: DriftStep | None
    lit: Situation
    """The light at the receiver, whether it is locked or not: what its scans see."""
    candidate_probability: float
    limits: U64
    pulses_left: int


class Channel:
    """Fibre, interferometers and detectors between two armed modules, over the pulses of one block after another.

    `seed`, 32 octets, makes everything repeatable. Without `drift` the phase stands still at 0.
    """

    def __init__(self, optics: LinkOptics, seed: bytes, drift: DriftSettings | None = None) -> None:
        self._optics = optics
        self._rng = kernels.new_rng(seed)
        self._dice = Dice(bytes(octet ^ 0x5A for octet in seed))
        self._drift = None if drift is None else Drift(drift, self._dice.uniforms)
        self._drift_settings = drift
        self._memory = kernels.new_memory()
        self._now: _Now | None = None
        self._attack = HONEST
        self._attack_pulses = 0
        self._forget_gates()
        self.tally: U64 = np.zeros(256, np.uint64)
        """Clicks so far, by the flags of kernels.sample_link."""
        self.pulses = 0
        """Sent so far."""

    @property
    def optics(self) -> LinkOptics:
        """The light path in force."""
        return self._optics

    @property
    def dice(self) -> Dice:
        """Of the slow parts of this link."""
        return self._dice

    @property
    def reference_fraction(self) -> float:
        """Share of the time that goes to the control loop instead of the key."""
        return 0.0 if self._drift_settings is None else self._drift_settings.reference_fraction

    def begin_block(self, optics: LinkOptics | None = None) -> None:
        """Positions start again from 0, perhaps with other settings of the source."""
        self._memory = kernels.new_memory()
        if optics is not None:
            self._optics = optics
            self._forget_gates()
            self._now = None

    def _forget_gates(self) -> None:
        self._gate_offset_s, self._gate_share = 0.0, 1.0
        self._dimmed_by, self._dimmed_link = 1.0, self._optics
        self._always = np.ones((len(self._optics.intensities), STATES))

    def attack(self, attack: Attack) -> None:
        """Eve does this from the next pulse on."""
        if attack != self._attack:
            self._attack, self._attack_pulses, self._now = attack, 0, None

    def sample(
        self, alice_seed: bytes, bob_seed: bytes, start: int, count: int, watcher: Watcher | None = None
    ) -> Clicks:
        """Clicks among `count` pulses of a block from `start` on."""
        parts = list(self.slices(alice_seed, bob_seed, start, count, watcher))
        if len(parts) == 1:
            return parts[0]
        return Clicks(
            np.concatenate([np.empty(0, np.uint64), *(part.positions for part in parts)]),
            np.concatenate([np.empty(0, np.uint8), *(part.flags for part in parts)]),
        )

    def slices(
        self, alice_seed: bytes, bob_seed: bytes, start: int, count: int, watcher: Watcher | None = None
    ) -> Iterator[Clicks]:
        """The same, piece by piece."""
        source, end = self._optics.source, start + count
        while start < end:
            now = self._now
            if now is None or now.pulses_left <= 0:
                now = self._now = self._next_period()
            room = int(CLICKS_AT_ONCE / max(now.candidate_probability, 1e-12))
            here = min(now.pulses_left, end - start, room)
            positions, flags = kernels.sample_link(
                self._rng,
                self._memory,
                self.tally,
                start,
                here,
                alice_seed=alice_seed,
                bob_seed=bob_seed,
                candidate_probability=now.candidate_probability,
                intensity_thresholds=source.intensity_thresholds,
                alice_basis_threshold=source.basis_threshold,
                bob_basis_threshold=source.basis_threshold,
                limits=now.limits,
                dead_pulses=self._optics.dead_pulses,
                afterpulses=self._afterpulses(now.situation),
            )
            part = Clicks(positions, flags)
            if watcher is not None:
                watcher.period(now.situation, now.step, part, here)
            start += here
            now.pulses_left -= here
            self.pulses += here
            self._attack_pulses += here
            yield part

    def _afterpulses(self, situation: Situation) -> kernels.Afterpulses:
        own = self._optics.afterpulses
        if situation.afterpulse_factor == 1.0:
            return own
        return replace(own, mean=min(0.99, own.mean * situation.afterpulse_factor))

    def _next_period(self) -> _Now:
        elapsed_s = self._attack_pulses / self._optics.clock_hz
        if self._drift is None or self._drift_settings is None:
            situation = self._attack.on(self._optics, 0.0, elapsed_s)
            # Only a bend changes by itself; all else stands still.
            return self._ready(situation, situation, None, round(0.1 * self._optics.clock_hz))
        settings = self._drift_settings
        step = self._drift.step(
            click_probability=self._reference_click(),
            visibility=self._optics.visibility,
            clock_hz=self._optics.clock_hz,
            light=self._now is None or not self._now.situation.is_dark,
        )
        seen = self._seen_by_gates(step.gate_offset_s)
        if self._attack == HONEST:
            light = self._optics.outcomes(step.phase_error_rad, seen)
            situation = Situation(branches=(Branch(self._always, light),))
        else:
            situation = self._attack.on(self._dimmed(seen), step.phase_error_rad, elapsed_s)
        lit = situation
        if not step.is_locked:
            situation = replace(situation, branches=_unlit(self._optics))
        pulses = round(settings.control_period_s * (1 - settings.reference_fraction) * self._optics.clock_hz)
        return self._ready(situation, lit, step, pulses)

    def _ready(self, situation: Situation, lit: Situation, step: DriftStep | None, pulses: int) -> _Now:
        cumulative = np.add.accumulate(situation.outcomes, axis=-1)
        candidate = min(float(cumulative[..., 2].max()), 1 - 1e-9)
        cumulative *= _LIMIT / (candidate or 1.0)
        limits: U64 = cumulative.astype(np.uint64)
        if len(limits) != len(self._optics.intensities):
            limits = np.ascontiguousarray(np.broadcast_to(limits, (len(self._optics.intensities), *limits.shape[1:])))
        return _Now(situation, step, lit, candidate, limits, max(1, pulses))

    def _reference_click(self) -> float:
        """Of a reference pulse, which is as bright as the signal."""
        situation = self._attack.on(self._optics) if self._now is None else self._now.lit
        return float(situation.outcomes[0].sum(axis=-1).mean())

    def _seen_by_gates(self, offset_s: float) -> float:
        """Share of the light that gates see when it comes too early or too late."""
        if abs(offset_s - self._gate_offset_s) >= _GATE_STEP_S:
            detector = self._optics.detectors[0]
            at_best = float(detector.efficiency_at(0.0, self._optics.pulse_rms_s))
            self._gate_offset_s = offset_s
            self._gate_share = float(detector.efficiency_at(offset_s, self._optics.pulse_rms_s)) / at_best
        return self._gate_share

    def _dimmed(self, share: float) -> LinkOptics:
        """The link as Eve finds it; made anew only when it has changed."""
        if abs(share - self._dimmed_by) > _SHARE_STEP:
            lost_db = -10 * log10(max(1e-20, share))
            self._dimmed_by = share
            self._dimmed_link = replace(self._optics, receiver_loss_db=self._optics.receiver_loss_db + lost_db)
        return self._dimmed_link


def _unlit(optics: LinkOptics) -> tuple[Branch, ...]:
    """A receiver without lock reports nothing."""
    shape = (len(optics.intensities), STATES)
    return (Branch(np.ones(shape), np.zeros((*shape, BASES, 3))),)


def drift_of(equipment: Equipment, length_km: float) -> DriftSettings:
    """How a link of a topology drifts and is held."""
    return DriftSettings(
        fibre_km=length_km,
        temperature_rms_k=equipment.temperature_rms_k,
        control_period_s=equipment.control_period_s,
        reference_fraction=equipment.reference_fraction,
    )


def with_drift(optics: LinkOptics, drift: DriftSettings) -> LinkOptics:
    """The same link for the oracle: what the loops leave of the drift is so much more of the fast phase noise, and so
    much light outside the gates.
    """
    click = float(optics.outcomes()[0].sum(axis=-1).mean())
    left_rad = expected_residual_rad(drift, click, optics.visibility, optics.clock_hz)
    points, weights = np.polynomial.hermite_e.hermegauss(15)
    seen = optics.detectors[0].efficiency_at(points * _gate_rms_s(drift), optics.pulse_rms_s)
    share = float(weights @ seen / weights.sum()) / float(optics.detectors[0].efficiency_at(0.0, optics.pulse_rms_s))
    return replace(
        optics,
        residual_phase_rad=(optics.residual_phase_rad**2 + left_rad**2) ** 0.5,
        receiver_loss_db=optics.receiver_loss_db - 10 * log10(share),
    )


def _gate_rms_s(drift: DriftSettings) -> float:
    """Of the light's place in its gate, over the time from one alignment to the next."""
    leak_s = drift.sync_leak * drift.fibre_km * DELAY_S_PER_KM * drift.delay_per_k * drift.fibre_rms_k
    total = 0.0
    for rms_s, correlation_s in ((leak_s, drift.fibre_correlation_s), (drift.sync_rms_s, drift.sync_correlation_s)):
        ratio = drift.alignment_s / correlation_s
        total += 2 * rms_s**2 * (1 + expm1(-ratio) / ratio)
    return float(total**0.5)
