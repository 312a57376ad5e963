"""The light of a link's blocks: what is announced, what may be, and when it is time to look for something better.

Settings change between blocks only. A block's are fixed before its light and announced with it, so each block's proof
has settings that do not depend on its own data (docs/security.md). The search itself is plan.follow, in a process of
its own: it takes seconds, and it knows the whole simulated link, which a node has no business to.
"""

from collections import deque
from dataclasses import replace
from math import log10

import msgspec

from qtrunk.quantum.source import SourceSettings
from qtrunk.stages import Pulses
from qtrunk.topology import Link

SEEN_BLOCKS = 8
"""Means are over so many blocks."""
LOSS_STEP_DB, QBER_STEP = 0.2, 0.15
"""Changes of the loss, and of the QBER in parts of itself, that make new settings worth the search."""


class Seen(msgspec.Struct, frozen=True):
    """What a block's counts say of the link."""

    gain: float
    """Clicks for each signal pulse in matching bases."""
    qber: float
    """Of the test basis."""


class LightSettings(msgspec.Struct, frozen=True):
    """What may be chosen for each block."""

    intensities: tuple[float, float, float]
    probabilities: tuple[float, float, float]
    key_basis_probability: float
    block_s: float


class Question(msgspec.Struct, frozen=True):
    """What the search is asked: a link, how it is lit now, what that showed."""

    link: Link
    settings: LightSettings
    seen: Seen


class Answer(msgspec.Struct, frozen=True):
    """What it found, and what the link should show under that."""

    settings: LightSettings
    shown: Seen


class Expectation(msgspec.Struct, frozen=True):
    """What a link shows as planned, nobody on it (`plan.expect`)."""

    gain: float
    """Clicks in matching bases for each signal pulse."""
    clicks: float
    """Gates that click, of all."""
    qber: float
    secret_bps: float


class Light:
    """How one link is lit. Not for several threads."""

    def __init__(self, link: Link) -> None:
        """Until blocks were seen, the settings are those of the topology."""
        self._link = link
        self._seen: deque[Seen] = deque(maxlen=SEEN_BLOCKS)
        self._shown: Seen | None = None
        """What the present settings were chosen for."""
        self.settings = settings_of(link)

    def pulses(self, block: int) -> Pulses:
        """The light of a block under the present settings."""
        return pulses_of(self._link, block, self.settings)

    def note(self, seen: Seen) -> None:
        """A block's counts; numbers that cannot be (nothing clicked) are passed over."""
        if 0 < seen.gain < 1 and 0 <= seen.qber < 0.5:
            self._seen.append(seen)

    @property
    def is_due(self) -> bool:
        """Whether the settings may change, and what is seen differs from what they were chosen for."""
        if not self._link.distillation.is_adaptive and longest_s(self._link) <= self._link.equipment.block_s:
            return False
        if self._shown is None or len(self._seen) < SEEN_BLOCKS:
            return self._shown is None and len(self._seen) > 0
        now = self._mean()
        moved_db = abs(10 * log10(now.gain / self._shown.gain))
        moved = abs(now.qber - self._shown.qber) / max(1e-3, self._shown.qber)
        return moved_db > LOSS_STEP_DB or moved > QBER_STEP

    def question(self) -> Question:
        """For the search."""
        return Question(self._link, self.settings, self._mean())

    def adopt(self, answer: Answer) -> None:
        """Light the next blocks as found; ValueError, and nothing changes, where the configuration forbids it."""
        why = refusal(self._link, pulses_of(self._link, 1, answer.settings))
        if why:
            raise ValueError(f"link {self._link.id}: {why}")
        self.settings, self._shown = answer.settings, answer.shown
        # Means over blocks of other settings would be nobody's.
        self._seen.clear()

    def _mean(self) -> Seen:
        count = len(self._seen)
        return Seen(sum(seen.gain for seen in self._seen) / count, sum(seen.qber for seen in self._seen) / count)


def longest_s(link: Link) -> float:
    """Seconds of light of the longest block that the operator allows."""
    return max(link.equipment.block_s, link.distillation.latency_s)


def settings_of(link: Link) -> LightSettings:
    """As the topology has them."""
    equipment = link.equipment
    return LightSettings(
        equipment.intensities, equipment.probabilities, equipment.key_basis_probability, equipment.block_s
    )


def pulses_of(link: Link, block: int, settings: LightSettings) -> Pulses:
    """The light of a block."""
    source = SourceSettings(settings.intensities, settings.probabilities, settings.key_basis_probability)
    return Pulses(
        link=link.id,
        block=block,
        count=round(settings.block_s * link.equipment.clock_hz * link.equipment.clock_fraction),
        intensities=source.intensities,
        probabilities=source.exact_probabilities,
        key_basis_probability=source.exact_key_basis_probability,
    )


def refusal(link: Link, pulses: Pulses) -> str:
    """Why light that the other end announces is not within this link's configuration; empty where it is."""
    least = pulses_of(link, pulses.block, settings_of(link))
    most = round(longest_s(link) * link.equipment.clock_hz * link.equipment.clock_fraction)
    if not least.count <= pulses.count <= most:
        return f"{pulses.count} pulses, {least.count} to {most} are configured"
    if not link.distillation.is_adaptive and replace(pulses, count=least.count) != least:
        return "other intensities or probabilities than configured, and is_adaptive is false"
    if len(pulses.intensities) != 3 or len(pulses.probabilities) != 3:
        return "three intensities and three probabilities are needed"
    mu1, mu2, mu3 = pulses.intensities
    if not (1 >= mu1 > mu2 + mu3 and mu2 > mu3 >= 0):
        return "intensities: mu1 > mu2 + mu3 and mu2 > mu3 >= 0 are needed, none above 1"
    shares = pulses.probabilities
    if not all(0 < share < 1 for share in shares) or not abs(sum(shares) - 1) < 1e-9:
        return "probabilities: between 0 and 1, with sum 1, are needed"
    if not 0 < pulses.key_basis_probability < 1:
        return "key_basis_probability: between 0 and 1 is needed"
    return ""
