"""Eve, acting on the light and never on a number. Only the simulated fibre imports this.

Faults that nobody means (quantum.fault) are set in the same way, as kinds beside hers.

An attack is what she does to a pulse: a few branches, each with its chance for every intensity and state of Alice, what
Bob's live receiver then shows, and what she has on record when the branch is taken. Added up they are the receiver's
new table of outcomes; taken apart they tell what of the key she knows. Beside that stands what else her light does:
power at the two entrances, current in the diodes, times of arrival, the intensity that really leaves Alice.

Where she can she keeps the signal gain as it was: she replaces the fibre by a lossless one and thins what she sends.
`fraction` is the share of the pulses she touches; `strength` has a meaning of its own for each kind.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp, factorial, sqrt

import numpy as np

from qtrunk.base.errors import RequestRefused
from qtrunk.kernels import F64
from qtrunk.quantum.fault import FAULTS
from qtrunk.quantum.optics import BASES, PHOTON_J, STATES, LinkOptics, outcomes_of
from qtrunk.quantum.situation import BITS, STATE_BASES, Branch, Kind, Situation, everything

PHOTONS_MAX = 24
"""Photon numbers of a pulse beyond it are left out: less than 1e-20 of a pulse of up to 2 photons."""


@dataclass(frozen=True, slots=True)
class Attack:
    """What Eve does now; RequestRefused where there is no such attack."""

    kind: str = "none"
    fraction: float = 1.0
    strength: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RequestRefused(f"attack {self.kind!r}: one of {', '.join(KINDS)}")
        if not 0 <= self.fraction <= 1:
            raise RequestRefused(f"fraction {self.fraction}: from 0 to 1")
        if self.strength is not None and not 0 <= self.strength < 1e6:
            raise RequestRefused(f"strength {self.strength}: {KINDS[self.kind].meaning}; from 0 to a million")

    def on(self, optics: LinkOptics, offset_rad: float = 0.0, elapsed_s: float = 0.0) -> Situation:
        """The link under this attack."""
        kind = KINDS[self.kind]
        strength = kind.strength if self.strength is None else self.strength
        done = kind.act(optics, strength, offset_rad, elapsed_s)
        if self.fraction == 1:
            return done
        untouched = Branch(np.full((len(optics.intensities), STATES), 1 - self.fraction), optics.outcomes(offset_rad))
        return replace(
            done,
            branches=(untouched, *(replace(branch, weight=self.fraction * branch.weight) for branch in done.branches)),
        )


# ── what Eve needs ───────────────────────────────────────────────────────────────────────────────────────────────────


def _signal_gain(optics: LinkOptics, outcomes: F64) -> float:
    """Share of signal pulses that click, over both ends' choices."""
    basis = optics.source.exact_key_basis_probability
    chosen = np.array([basis, 1 - basis])
    weights = chosen[STATE_BASES][:, None] / 2 * chosen
    return float(np.sum(weights * np.broadcast_to(outcomes, (len(outcomes), STATES, BASES, 3))[0].sum(axis=-1)))


def _matched(optics: LinkOptics, make: Callable[[float], F64], most: float, offset_rad: float) -> float:
    """The x in [0, most] with which make(x) gives the honest signal gain; `most` where even that is too little."""
    # Imported here: a quarter of a second that only an attack is worth.
    from scipy.optimize import brentq

    target = _signal_gain(optics, optics.outcomes(offset_rad))

    def excess(x: float) -> float:
        return _signal_gain(optics, make(x)) - target

    if excess(most) <= 0:
        return most
    if excess(0.0) >= 0:
        return 0.0
    return float(brentq(excess, 0.0, most, xtol=1e-15, rtol=1e-12))


def _add(branches: list[Branch]) -> F64:
    return Situation(branches=tuple(branches)).outcomes


def _sent(optics: LinkOptics, photons: float, offset_rad: float) -> F64:
    """Outcomes, shape (4 states, 2 bases, 3), of a state sent anew with so many photons at Bob's entrance."""
    reach = optics.receiver_transmittance * optics.efficiencies
    return optics.clicks(photons * optics.shares(offset_rad) * reach)


def _silence(optics: LinkOptics) -> F64:
    """Outcomes of no light."""
    return outcomes_of(optics.dark)


def _measured(state_basis: F64, basis: int, bit: int, error: float = 0.0) -> F64:
    """Chance, for each of Alice's states, that a measurement in `basis` tells `bit`; shape (4,)."""
    right = np.where(bit == BITS, 1 - error, error)
    return np.where(state_basis == basis, right, 0.5)


# ── her strategies ───────────────────────────────────────────────────────────────────────────────────────────────────


def _none(optics: LinkOptics, _strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    return Situation(branches=(Branch(everything(optics), optics.outcomes(offset_rad)),))


def _intercept_resend(optics: LinkOptics, strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """She measures at Alice's door in a random basis, with detectors of efficiency `strength`, and sends what she saw
    through a lossless line.
    """
    seen = 1 - np.exp(-optics.intensities * strength)

    def branches(photons: float) -> list[Branch]:
        sent = _sent(optics, photons, offset_rad)
        found = [
            Branch(0.5 * seen[:, None] * _measured(STATE_BASES, basis, bit), sent[2 * basis + bit])
            for basis in (0, 1)
            for bit in (0, 1)
        ]
        return [*found, Branch((1 - seen)[:, None] * np.ones(STATES), _silence(optics))]

    return Situation(
        branches=tuple(branches(_matched(optics, lambda x: _add(branches(x)), _brightest(optics), offset_rad)))
    )


def _beam_splitting(optics: LinkOptics, _strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """She keeps what the fibre would have lost, and measures it once the bases are public."""
    return Situation(branches=_taps(optics, optics.intensities, optics.outcomes(offset_rad)))


def _taps(optics: LinkOptics, intensities: F64, outcomes: F64) -> tuple[Branch, ...]:
    has_some = 1 - np.exp(-intensities * (1 - optics.fibre_transmittance))
    known = [Branch(has_some[:, None] * (bit == BITS), outcomes) for bit in (0, 1)]
    return (*known, Branch((1 - has_some)[:, None] * np.ones(STATES), outcomes))


def _photon_number_splitting(optics: LinkOptics, _strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """She counts the photons of each pulse, keeps one of two or more and sends the others through a lossless line; of
    the single ones she lets through as many as the signal gain needs, and where even none is too much she thins.
    """
    numbers = np.arange(PHOTONS_MAX)
    chances = (
        np.exp(-optics.intensities)[:, None] * np.array([optics.intensities**n / factorial(n) for n in numbers]).T
    )  # (levels, n)
    to_detectors = optics.shares(offset_rad) * optics.receiver_transmittance * optics.efficiencies  # (4, 2, 2)

    def of_photons(n: int, line: float) -> F64:
        """Outcomes of exactly n photons, each for itself."""
        each = line * to_detectors
        dark = 1 - optics.dark
        no_first, no_second = dark[0] * (1 - each[..., 0]) ** n, dark[1] * (1 - each[..., 1]) ** n
        neither = dark[0] * dark[1] * (1 - each.sum(axis=-1)) ** n
        return np.stack([no_second - neither, no_first - neither, 1 - no_first - no_second + neither], axis=-1)

    def branches(x: float) -> list[Branch]:
        """x from 0 to 1 opens the line for the multi-photon pulses, from 1 to 2 lets single photons pass."""
        line, single = min(1.0, x), max(0.0, x - 1.0)
        ones = np.ones(STATES)
        made = [
            Branch((chances[:, 0] + (1 - single) * chances[:, 1])[:, None] * ones, _silence(optics)),
            Branch(single * chances[:, 1][:, None] * ones, of_photons(1, 1.0)),
        ]
        for bit in (0, 1):
            weight = chances[:, 2:].sum(axis=1)
            mixed = sum(
                ((chances[:, n] / weight)[:, None, None, None] * of_photons(int(n) - 1, line) for n in numbers[2:]),
                np.zeros(()),
            )
            made.append(Branch(weight[:, None] * (bit == BITS), mixed))
        return made

    return Situation(branches=tuple(branches(_matched(optics, lambda x: _add(branches(x)), 2.0, offset_rad))))


def _trojan_horse(optics: LinkOptics, strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """She shines into Alice and reads the phase from `strength` photons a pulse that come back, by the best measurement
    of two known states once the basis is public.
    """
    right = (1 + sqrt(1 - exp(-4 * strength))) / 2
    outcomes = optics.outcomes(offset_rad)
    guesses = (np.where(bit == BITS, right, 1 - right) * everything(optics) for bit in (0, 1))
    into_alice = strength * 10 ** (optics.transmitter_isolation_db / 10) * optics.clock_hz * PHOTON_J
    return Situation(branches=tuple(Branch(guess, outcomes) for guess in guesses), reverse_power_w=into_alice)


def _faked_states(optics: LinkOptics, dark: F64, offset_rad: float) -> list[Branch]:
    """She measures as Bob would and sends a pulse of light that just makes a linear diode click: all of it reaches one
    detector if Bob's basis is hers, half of it each if not, which is too little.
    """
    basis_chances = (optics.source.exact_key_basis_probability, 1 - optics.source.exact_key_basis_probability)
    pulse_j = max(detector.trigger_always_j for detector in optics.detectors)
    whole, half = (
        np.array([float(detector.forced_click_probability(share * pulse_j)) for detector in optics.detectors])
        for share in (1.0, 0.5)
    )

    def branches(efficiency: float) -> list[Branch]:
        seen = 1 - np.exp(-optics.intensities * efficiency)
        made = []
        for basis in (0, 1):
            for bit in (0, 1):
                forced = np.tile(half, (BASES, 1))
                forced[basis] = np.where(np.arange(2) == bit, whole, 0.0)
                weight = basis_chances[basis] * seen[:, None] * _measured(STATE_BASES, basis, bit)
                made.append(Branch(weight, outcomes_of(1 - (1 - dark) * (1 - forced))))
        return [*made, Branch((1 - seen)[:, None] * np.ones(STATES), outcomes_of(dark))]

    return branches(_matched(optics, lambda x: _add(branches(x)), 1.0, offset_rad))


def _blinding(optics: LinkOptics, strength: float, offset_rad: float, elapsed_s: float) -> Situation:
    """Steady light of `strength` mW makes the diodes linear: nothing clicks but what she sends."""
    power_w = strength * 1e-3
    at_diode_w = power_w * optics.receiver_transmittance / 2
    lit = Situation(
        branches=_none(optics, 0.0, offset_rad, elapsed_s).branches,
        entrance_power_w=power_w,
        photocurrent_a=max(detector.mean_photocurrent_a(0.0, at_diode_w) for detector in optics.detectors),
    )
    if not all(detector.is_blinded(at_diode_w) for detector in optics.detectors):
        return lit
    return replace(lit, branches=tuple(_faked_states(optics, np.zeros(2), offset_rad)), afterpulse_factor=0.0)


def _after_gate(optics: LinkOptics, strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """She sends bright pulses `strength` ps after the gate, to a linear diode; they leave three times the charge."""
    *faked, silent = _faked_states(optics, optics.dark, offset_rad)
    pulse_j = max(detector.trigger_always_j for detector in optics.detectors) / optics.receiver_transmittance
    return Situation(
        branches=(*(replace(branch, shift_s=strength * 1e-12) for branch in faked), silent),
        afterpulse_factor=3.0,
        entrance_power_w=pulse_j * optics.clock_hz * float(sum(branch.weight[0].mean() for branch in faked)),
    )


def _time_shift(optics: LinkOptics, strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """She makes pulses arrive `strength` ps early or late, at random, where one detector sees better than the other."""
    return _shifted(optics, strength * 1e-12, 0.0, offset_rad)


def _calibration(optics: LinkOptics, strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """She made the calibration open the second gate `strength` ps late, and shifts pulses by half of that."""
    delay_s = strength * 1e-12
    return replace(_shifted(optics, delay_s / 2, delay_s, offset_rad), gate_delay_s=delay_s)


def _shifted(optics: LinkOptics, shift_s: float, gate_delay_s: float, offset_rad: float) -> Situation:
    first, second = optics.detectors
    middle = gate_delay_s / 2  # between the two gates

    def branches(line: float) -> list[Branch]:
        made = []
        for at_s in (-shift_s, shift_s):
            efficiencies = np.array(
                [float(first.efficiency_at(middle + at_s)), float(second.efficiency_at(middle + at_s - gate_delay_s))]
            )
            light = optics.intensities[:, None, None, None] * optics.shares(offset_rad) * efficiencies
            outcomes = optics.clicks(line * optics.receiver_transmittance * light)
            made.append(Branch(0.5 * everything(optics), outcomes, shift_s=middle + at_s))
        return made

    return Situation(branches=tuple(branches(_matched(optics, lambda x: _add(branches(x)), 1.0, offset_rad))))


def faraday_mirror_states(mirror_error_rad: float, tm_over_te: float = 1 / 3) -> F64:
    """Alice's states where her long arm's mirror turns by 90 degrees + 2 `mirror_error_rad`: complex, shape (4, 3).

    The wrong polarisation passes the modulator the other way round and gets the phase 2 phi / (1 + tm_over_te) instead
    of phi, so the states span three dimensions: (short arm, long arm, long arm in the wrong polarisation). After Sun,
    Jiang, Liang (2011).
    """
    phases = np.array([0.0, np.pi, np.pi / 2, 3 * np.pi / 2])
    right, wrong = np.cos(2 * mirror_error_rad), np.sin(2 * mirror_error_rad)
    rows = [
        np.ones(STATES, complex), right * np.exp(1j * phases), wrong * np.exp(2j * phases / (1 + tm_over_te)),
    ]  # fmt: skip
    states: F64 = np.array(rows).T / sqrt(2)
    return states


def maximum_confidence(states: F64) -> F64:
    """Chances P(answer j | state s), shape (4, 4), of the measurement that is right with the highest confidence of each
    of these equally likely states and gives each answer equally often: projections on rho^-1 |state>, scaled up to what
    a measurement may be at most (Croke et al., Phys. Rev. Lett. 96, 070401 (2006)).
    """
    inverse = np.linalg.pinv(np.einsum("si,sj->ij", states, states.conj()) / len(states))
    directions = states @ inverse.T  # rows: rho^-1 |state>
    # <state| rho^-1 |state> is how often the answer would come.
    weights = 1 / np.einsum("si,si->s", directions.conj(), states).real
    total = np.einsum("j,ji,jk->ik", weights, directions, directions.conj())
    scale = 1 / np.linalg.eigvalsh(total)[-1]
    chances: F64 = scale * weights[:, None] * np.abs(directions.conj() @ states.T) ** 2
    return chances


def _passive_faraday_mirror(optics: LinkOptics, strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """Mirrors that are `strength` degrees off give the states a third dimension, by which she tells them apart now and
    then; all other photons she blocks.
    """
    chances = maximum_confidence(faraday_mirror_states(np.radians(strength)))  # (answers, states)
    total = chances.sum(axis=0)
    # The photons of a pulse give each answer a Poisson number of times; she goes by one of them.
    any_answer = 1 - np.exp(-optics.intensities[:, None] * total)

    def branches(photons: float) -> list[Branch]:
        sent = _sent(optics, photons, offset_rad)
        made = [Branch(any_answer * chances[answer] / total, sent[answer]) for answer in range(STATES)]
        return [*made, Branch(1 - any_answer, _silence(optics))]

    return Situation(
        branches=tuple(branches(_matched(optics, lambda x: _add(branches(x)), _brightest(optics), offset_rad)))
    )


def _brightest(optics: LinkOptics) -> float:
    """Photons at Bob's entrance of which he detects one on average: with more, double clicks would tell on her."""
    return 1 / (optics.receiver_transmittance * float(optics.efficiencies.max()))


def _unambiguous(optics: LinkOptics, _strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """Where pulses share one phase she can tell Alice's four states without error, now and then (Chefles, Barnett 1998
    for states in a circle), and blocks the others. Against random phases there is nothing to tell: she blocks none.
    """
    if optics.is_phase_random:
        return _none(optics, 0.0, offset_rad, 0.0)
    half = optics.intensities / 2  # photons of the arm that bears the phase
    parts = np.array(
        [sum(half**n / factorial(n) for n in range(r, PHOTONS_MAX, STATES)) for r in range(STATES)]
    ) * np.exp(-half)
    success = STATES * parts.min(axis=0)

    def branches(photons: float) -> list[Branch]:
        sent = _sent(optics, photons, offset_rad)
        made = [Branch(success[:, None] * (np.arange(STATES) == state), sent[state]) for state in range(STATES)]
        return [*made, Branch((1 - success)[:, None] * np.ones(STATES), _silence(optics))]

    return Situation(
        branches=tuple(branches(_matched(optics, lambda x: _add(branches(x)), _brightest(optics), offset_rad)))
    )


def _laser_seeding(optics: LinkOptics, strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """Light into Alice's laser makes every pulse `strength` times as bright as she believes; Eve keeps what the fibre
    would have lost.
    """
    brighter = optics.intensities * strength
    light = brighter[:, None, None, None] * optics.shares(offset_rad)
    reach = optics.fibre_transmittance * optics.receiver_transmittance * optics.efficiencies
    return Situation(
        branches=_taps(optics, brighter, optics.clicks(light * reach)),
        intensity_factor=strength,
        reverse_power_w=SEEDING_POWER_W,
    )


SEEDING_POWER_W = 1e-4
"""Enough to injection-lock a laser behind 30 dB of isolation."""


def _bend(optics: LinkOptics, strength: float, offset_rad: float, elapsed_s: float) -> Situation:
    """Somebody bends the fibre: `strength` dB more loss for each second that passes, up to 30 dB."""
    return Situation(branches=_dimmed(optics, min(30.0, strength * elapsed_s), offset_rad))


def _dimmed(optics: LinkOptics, extra_db: float, offset_rad: float) -> tuple[Branch, ...]:
    return (Branch(everything(optics), replace(optics, loss_db=optics.loss_db + extra_db).outcomes(offset_rad)),)


def _cut(optics: LinkOptics, _strength: float, _offset_rad: float, _elapsed_s: float) -> Situation:
    """The fibre is cut."""
    return Situation(branches=(Branch(everything(optics), _silence(optics)),), is_dark=True)


KINDS: dict[str, Kind] = {
    "none": Kind(_none),
    "intercept-resend": Kind(_intercept_resend, 1.0, "efficiency of her detectors"),
    "beam-splitting": Kind(_beam_splitting),
    "photon-number-splitting": Kind(_photon_number_splitting),
    "trojan-horse": Kind(_trojan_horse, 0.1, "photons that come back for each pulse"),
    "blinding": Kind(_blinding, 1.0, "mW of steady light"),
    "after-gate": Kind(_after_gate, 300.0, "ps after the gate"),
    "time-shift": Kind(_time_shift, 100.0, "ps early or late"),
    "calibration": Kind(_calibration, 200.0, "ps between the two gates"),
    "passive-faraday-mirror": Kind(_passive_faraday_mirror, 1.0, "degrees of Alice's mirror error"),
    "unambiguous-discrimination": Kind(_unambiguous),
    "laser-seeding": Kind(_laser_seeding, 1.5, "times as bright"),
    "bend": Kind(_bend, 0.1, "dB more for each second"),
    "cut": Kind(_cut),
    **FAULTS,
}


# ── what she knows ───────────────────────────────────────────────────────────────────────────────────────────────────


def knowledge(optics: LinkOptics, situation: Situation) -> float:
    """Bits of each sifted key bit that Eve's record tells her, from 0 to 1, if nobody takes anything away: the mutual
    information of Alice's bit and the branch, over clicks of both ends' key basis and all intensities.
    """
    probabilities = np.array(optics.source.exact_probabilities)[:, None]
    joint = np.array(
        [
            np.sum(
                probabilities
                * branch.weight[:, :2]
                * np.broadcast_to(branch.outcomes, (len(probabilities), STATES, BASES, 3))[:, :2, 0].sum(axis=-1),
                axis=0,
            )
            for branch in situation.branches
        ]
    )
    joint = joint / joint.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = joint * np.log2(joint / (joint.sum(axis=0) * joint.sum(axis=1, keepdims=True)))
    return float(np.nansum(terms))
