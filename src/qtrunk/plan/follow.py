"""The best settings for a link's next blocks, from what its blocks showed.

What is fitted are the two things that change in a fibre: its loss, from the share of signal pulses that click, and what
is wrong with the phase, from the errors of the test basis; the rest of the equipment is taken as the topology has it.
Then the planner looks for better settings (plan.rate), and for the shortest block within the operator's latency that
gives nearly the rate of the longest.
"""

from dataclasses import replace
from math import log10, sqrt

import msgspec

from qtrunk.plan.light import Answer, LightSettings, Question, Seen, longest_s
from qtrunk.plan.rate import Choice, PlannedLink, improved, planned
from qtrunk.quantum.analytic import expected
from qtrunk.topology import Link

ENOUGH = 0.95
"""A block is long enough when it gives this share of the rate of the longest."""
GROWTH = 1.5
"""Steps of block sizes that are tried."""
LOSS_MAX_DB = 80.0
FIT_STEPS = 6


def follow(question: Question) -> Answer:
    """New settings; takes up to some seconds of one core."""
    link, now = question.link, question.settings
    choice = Choice(now.intensities, now.probabilities, now.key_basis_probability)
    fitted = fit(link, choice, question.seen)
    if link.distillation.is_adaptive:
        choice = improved(_for(link, fitted, longest_s(link)), choice).choice
    shown = expected(fitted.optics(choice))
    mu1, mu2, mu3 = choice.intensities
    p1, p2, p3 = choice.probabilities
    settings = LightSettings(
        (mu1, mu2, mu3), (p1, p2, p3), choice.key_basis_probability, _shortest(link, fitted, choice)
    )
    return Answer(settings, Seen(shown.gains[0], shown.qber[1]))


def fit(link: Link, choice: Choice, seen: Seen) -> PlannedLink:
    """The planned link whose light would show on average what was seen."""
    made = PlannedLink(
        km=link.length_km,
        loss_db=link.loss_db,
        equipment=link.equipment,
        bounds=link.distillation.bounds,
        eps_sec=link.distillation.epsilon_secret,
    )
    for _ in range(FIT_STEPS):
        shown = expected(made.optics(choice))
        step_db = 10 * log10(max(shown.gains[0], 1e-12) / seen.gain)
        # Errors grow as a quarter of the square of a small phase.
        square = max(0.0, made.equipment.residual_phase_rad**2 + 4 * (seen.qber - shown.qber[1]))
        made = replace(
            made,
            loss_db=min(LOSS_MAX_DB, max(0.0, made.loss_db + step_db)),
            equipment=replace(made.equipment, residual_phase_rad=min(1.5, sqrt(square))),
        )
    return made


def _shortest(link: Link, fitted: PlannedLink, choice: Choice) -> float:
    """Seconds of the shortest block that gives ENOUGH of the longest one's rate."""
    longest = longest_s(link)
    most = planned(_for(link, fitted, longest), choice).net_bps
    block_s = link.equipment.block_s
    while block_s < longest:
        if planned(_for(link, fitted, block_s), choice).net_bps >= ENOUGH * most > 0:
            return block_s
        block_s *= GROWTH
    return longest


def _for(link: Link, fitted: PlannedLink, block_s: float) -> PlannedLink:
    # A simulated fibre may run a share of the pulses: its blocks are as if they were so much shorter.
    return replace(fitted, block_s=block_s * link.equipment.clock_fraction)


def answer(question: bytes) -> bytes:
    """For `plan.search`."""
    return msgspec.json.encode(follow(msgspec.json.decode(question, type=Question)))
