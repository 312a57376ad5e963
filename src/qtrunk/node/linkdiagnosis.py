"""What one end of a link makes of its blocks: observables in, block by block, hypotheses for the operator out.

Each end judges by what it sees itself: its module's monitors, and the counts of sifting where a block gets so far. The
norm is the oracle's for the topology and this setting of the light, then that of the end's own honest blocks. Nothing
is decided by it: whether a block becomes key is for the proof and the monitors' limits (quantum.monitors).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import msgspec

from qtrunk.base.wire import Message, decode, encode
from qtrunk.quantum import diagnosis
from qtrunk.quantum.device import Finished
from qtrunk.quantum.diagnosis import Hypothesis
from qtrunk.quantum.optics import of_equipment
from qtrunk.quantum.source import SourceSettings
from qtrunk.stages import Observations, Positions, Pulses, Role
from qtrunk.topology import Link

DARK, LIT = 0.1, 0.3
"""Shares of the clicks that a link should have: under the first there is no light, over the second there is again."""
SIGNAL_CLICKS = 100
"""So many must be expected to tell: fewer than a tenth of them come by chance once in 10^30 times (Poisson)."""
BLOCKS_MAX = 16
"""Blocks whose observables wait for their end; older ones go."""
HYPOTHESES_MAX = 2
"""Named; what is less likely would only confuse."""


ASIDE = b"\x02"
"""First octet of what the ends say beside their session, whose octets begin with others."""
REASON_MAX = 300


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A hypothesis on its way."""

    kind: Annotated[str, msgspec.Meta(pattern="^[a-z-]{1,40}$")]
    weight: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
    reason: Annotated[str, msgspec.Meta(max_length=REASON_MAX)]


@dataclass(slots=True)
class Signal:
    """Whether light arrives at a receiver, told slice by slice: a block may take minutes, a cut is seen at once."""

    is_dark: bool = False
    clicks_per_pulse: float | None = None
    """Of the last stretch that was long enough to tell."""
    _pulses: int = 0
    _clicks: int = 0

    def note(self, pulses: int, clicks: int, expected_per_pulse: float) -> bool:
        """A slice; whether the light has gone or come back with it."""
        self._pulses += pulses
        self._clicks += clicks
        if self._pulses * expected_per_pulse < SIGNAL_CLICKS:
            return False
        was_dark, self.clicks_per_pulse = self.is_dark, self._clicks / self._pulses
        self.is_dark = self.clicks_per_pulse < (LIT if was_dark else DARK) * expected_per_pulse
        self._pulses = self._clicks = 0
        return self.is_dark != was_dark


class LinkDiagnosis:
    """Of one link end; for its worker thread alone."""

    def __init__(self, link: Link, role: Role) -> None:
        self._link = link
        self._role = role
        self._light: SourceSettings | None = None
        self._norm: diagnosis.Norm | None = None
        self._dead_pulses = round(link.equipment.dead_time_s * link.equipment.clock_hz)
        self.signal = Signal()
        self._close: dict[int, int] = {}
        self._seen: dict[int, diagnosis.Seen] = {}

    def frame(self, block: int, pulses: int, positions: Positions) -> bool:
        """A slice's clicks; whether the light has gone or come back with it. Before a first block, nobody can tell."""
        here = diagnosis.close_clicks(positions, self._dead_pulses)
        self._close[block] = self._close.get(block, 0) + here
        _forget(self._close)
        if self._norm is None:
            return False
        usual = self._norm.now
        # A norm's clicks are never None: it is of whole blocks of the receiver.
        return self.signal.note(pulses, positions.size, (usual.clicks or 0.0) / usual.pulses)

    def finished(self, event: Finished, pulses: Pulses) -> None:
        """The light of a block is over."""
        self._note_light(pulses)
        if self._role is Role.BOB and event.clicks is not None:
            close = self._close.pop(event.block, 0)
            seen = diagnosis.seen_by_bob(pulses.count, event.clicks, close, event.receiver)
        else:
            seen = diagnosis.Seen(pulses=pulses.count, transmitter=event.transmitter, intensities=pulses.intensities)
        self._seen[event.block] = seen
        _forget(self._seen)

    def counts(self, block: int, observations: Observations, detections: int) -> None:
        """What both ends know of a block after sifting."""
        if block in self._seen:
            self._seen[block] = replace(self._seen[block], clicks=float(detections)).with_counts(observations)

    def verdict(self, block: int) -> list[Hypothesis]:
        """What may have happened to a block, likeliest first; empty where nothing did, or nothing is known of it."""
        if self._norm is None or block not in self._seen:
            return []
        ranked = diagnosis.diagnose(diagnosis.signs(self._seen[block], self._norm))
        return [each for each in ranked[:HYPOTHESES_MAX] if each.kind != diagnosis.NOTHING]

    def released(self, block: int) -> list[Hypothesis]:
        """A block became key: its verdict; one without any becomes part of the norm."""
        verdict = self.verdict(block)
        seen = self._seen.pop(block, None)
        if not verdict and seen is not None and seen.levels is not None and self._norm is not None:
            self._norm.learn(seen)
        return verdict

    def destroyed(self, block: int) -> list[Hypothesis]:
        """A block died: its verdict."""
        verdict = self.verdict(block)
        self._seen.pop(block, None)
        return verdict

    def _note_light(self, pulses: Pulses) -> None:
        """Under other settings of the source a link shows other figures."""
        light = SourceSettings(pulses.intensities, pulses.probabilities, pulses.key_basis_probability)
        if light != self._light:
            self._light = light
            self._norm = diagnosis.norm_of(of_equipment(self._link.equipment, self._link.loss_db, light))


class Verdict(Message, frozen=True, tag="verdict"):
    """One end to the other, beside the protocol: what it makes of a block that ended. Nothing is decided by it."""

    block: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    findings: Annotated[list[Named], msgspec.Meta(max_length=HYPOTHESES_MAX)]


def to_peer(block: int, verdict: Sequence[Hypothesis]) -> bytes:
    """A verdict as octets of the classical channel."""
    findings = [Named(one.kind, one.weight, one.reason[:REASON_MAX]) for one in verdict]
    return ASIDE + encode(Verdict(block=block, findings=findings))


def of_peer(octets: bytes) -> tuple[int, list[Hypothesis]]:
    """Of octets that begin with ASIDE: the block, and what the peer makes of it; WireError."""
    said = decode(octets[len(ASIDE) :], Verdict)
    return said.block, [Hypothesis(one.kind, one.weight, one.reason) for one in said.findings]


def likely(verdict: Sequence[Hypothesis]) -> str:
    """The end of an alarm's text."""
    return "; likely " + "; or ".join(map(str, verdict)) if verdict else ""


def _forget(blocks: dict[int, int] | dict[int, diagnosis.Seen]) -> None:
    """Blocks that never came to an end here."""
    while len(blocks) > BLOCKS_MAX:
        del blocks[min(blocks)]
