"""The oracle: what a link must show on average, without dice; for tests, planning and comparison with what it shows.

Light and dark counts of a gate do not depend on what happened before, so with any receiver memory the gain of a kind of
pulse is L times its click chance in a live gate, where L is the share of live gates and the chance includes afterpulses
of earlier clicks. Every click blinds exactly D gates for both detectors, so L = 1 / (1 + D P), P the mean click chance
of a live gate: exact. The one number that is not exact is how many released charges find the receiver live: a charge
released n gates after its avalanche does with the chance that no later click fell into the last D gates. That follows
from the renewal equation of the gaps between clicks, with the charges of still earlier clicks as a steady background:
correct to second order in the afterpulse probability. Two detectors' charges in one gate are taken as independent.
"""

from dataclasses import dataclass, replace

import numpy as np

from qtrunk.kernels import F64, Afterpulses
from qtrunk.quantum.optics import LinkOptics
from qtrunk.quantum.situation import BITS, STATE_BASES, Situation

_GRID = 256
"""Steps that resolve a dead time."""
_DEAD_TIMES = 24
"""So many dead times after a click the receiver has forgotten it, afterpulses aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Expected values of one link; tuples by intensity, strongest first."""

    live: float
    """Share of gates in which the receiver is not blind."""
    gains: tuple[float, ...]
    """Clicks per pulse sent."""
    error_gains: tuple[float, ...]
    """Wrong clicks per pulse sent in matched bases."""
    errors: tuple[float, ...]
    """Error rate in matched bases."""
    qber: tuple[float, float]
    """Over all intensities, in the key basis and in the test basis."""
    click_hz: float
    double_click_share: float
    """Double clicks among clicks."""
    first_detector_share: float
    """Clicks in the first detector, alone or with the other, among clicks."""
    afterpulse_share: float
    """Clicks that would not be but for an afterpulse."""
    sifted_bps: float
    """Sifted key: both ends chose the key basis, any intensity."""


def expected(optics: LinkOptics, situation: Situation | None = None, offset_rad: float = 0.0) -> Expected:
    """What a link shows on average, at a steady phase offset, with or without Eve."""
    light = optics.outcomes(offset_rad) if situation is None else situation.outcomes
    factor = 1.0 if situation is None else situation.afterpulse_factor
    afterpulses = replace(optics.afterpulses, mean=optics.afterpulses.mean * factor)
    weights = _weights(optics)
    chances = _afterpulse_chances(np.sum(weights[..., None] * light, axis=(0, 1, 2)), afterpulses, optics.dead_pulses)
    outcomes = _with_noise(light, chances)
    clicking = outcomes.sum(axis=-1)  # (levels, states, bases)
    mean = float(np.sum(weights * clicking))
    live = 1 / (1 + optics.dead_pulses * mean)
    # A single click is wrong in the other detector; a double one half of the time.
    wrong = np.where(BITS[:, None] == 0, outcomes[..., 1], outcomes[..., 0]) + outcomes[..., 2] / 2
    is_matched = STATE_BASES[:, None] == np.array([0, 1])
    per_level = weights.sum(axis=(1, 2))
    matched = weights * is_matched
    in_matched = matched.sum(axis=(1, 2))
    wrong_gain = (matched * wrong).sum(axis=(1, 2)) / in_matched
    right_gain = (matched * clicking).sum(axis=(1, 2)) / in_matched
    by_basis = [
        (matched * wrong)[:, :, basis].sum() / max(1e-300, (matched * clicking)[:, :, basis].sum()) for basis in (0, 1)
    ]
    doubles, firsts = (weights * outcomes[..., 2]).sum(), (weights * (outcomes[..., 0] + outcomes[..., 2])).sum()
    dark = float(np.sum(weights * light.sum(axis=-1)))
    return Expected(
        live=live,
        gains=tuple(float(g) for g in live * (weights * clicking).sum(axis=(1, 2)) / per_level),
        error_gains=tuple(float(g) for g in live * wrong_gain),
        errors=tuple(float(w / max(1e-300, r)) for w, r in zip(wrong_gain, right_gain, strict=True)),
        qber=(float(by_basis[0]), float(by_basis[1])),
        click_hz=live * mean * optics.clock_hz,
        double_click_share=float(doubles / max(1e-300, mean)),
        first_detector_share=float(firsts / max(1e-300, mean)),
        afterpulse_share=1 - dark / max(1e-300, mean),
        sifted_bps=float(live * (weights * clicking)[:, :2, 0].sum() * optics.clock_hz),
    )


def _weights(optics: LinkOptics) -> F64:
    """How often each intensity, state and basis comes together, shape (levels, 4, 2)."""
    basis = optics.source.exact_key_basis_probability
    chosen = np.array([basis, 1 - basis])
    levels = np.array(optics.source.exact_probabilities)
    weights: F64 = levels[:, None, None] * (chosen[STATE_BASES] / 2)[None, :, None] * chosen
    return weights


def _with_noise(outcomes: F64, chances: F64) -> F64:
    """Outcomes with independent clicks of both detectors on top."""
    silent = 1 - outcomes.sum(axis=-1)
    neither = silent * (1 - chances[0]) * (1 - chances[1])
    only_first = (outcomes[..., 0] + silent * chances[0]) * (1 - chances[1])
    only_second = (outcomes[..., 1] + silent * chances[1]) * (1 - chances[0])
    return np.stack([only_first, only_second, 1 - neither - only_first - only_second], axis=-1)


def _afterpulse_chances(light: F64, afterpulses: Afterpulses, dead: int) -> F64:
    """Chance of an afterpulse in a live gate, by detector, shape (2,), from the mean outcomes of light, shape (3,)."""
    chances = np.zeros(2)
    if afterpulses.mean <= 0 or light.sum() <= 0:
        return chances
    for _ in range(40):
        outcomes = _with_noise(light, chances)
        click = float(outcomes.sum())
        found = _releases_that_count(click, afterpulses, dead)
        fires = np.array([outcomes[0] + outcomes[2], outcomes[1] + outcomes[2]])
        chances, before = fires * found, chances
        if np.allclose(chances, before, rtol=1e-12, atol=0):
            break
    return chances


def _releases_that_count(click: float, afterpulses: Afterpulses, dead: int) -> float:
    """Mean number of charges of an avalanche that let go while the receiver is live, `click` its mean click chance."""
    if dead == 0:
        return afterpulses.mean
    power = 1 / afterpulses.inverse

    def later(gates: F64) -> F64:
        """Mean number of charges released at these lags or later."""
        held = np.clip(gates, dead + 1, None) ** power
        left: F64 = afterpulses.mean * np.clip((held - afterpulses.last) / (afterpulses.first - afterpulses.last), 0, 1)
        return left

    step = max(1, dead // _GRID)
    edges = dead + 1 + step * np.arange(_DEAD_TIMES * dead // step + 2, dtype=float)
    released = -np.diff(later(edges))
    # Chance of a click in each step after the first click, given that the receiver is live there.
    chance = 1 - (1 - click) ** step * np.exp(-released)
    blind_steps = dead / step
    whole, part = int(blind_steps), blind_steps - int(blind_steps)
    live = np.empty(len(chance))
    clicked = np.zeros(len(chance) + 1)  # summed up
    for n in range(len(chance)):
        first = n - whole
        recent = clicked[n] - clicked[max(0, first)]
        if first > 0:
            recent += part * (clicked[first] - clicked[first - 1])
        live[n] = 1 - recent
        clicked[n + 1] = clicked[n] + live[n] * chance[n]
    steady = 1 / (1 + dead * click)
    return float(released @ live + later(edges[-1:])[0] * steady)
