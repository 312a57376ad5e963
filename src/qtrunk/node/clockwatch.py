"""Does this node's clock agree with its neighbours'? Notes, certificates, expiry of keys and time stamps rest on it.

Asked over the relay's channel, which both nodes' certificates authenticate: the peer's time, taken to be that of the
middle between question and answer, so the error is at most half of the round trip (as in NTP, RFC 5905 section 8; the
peer answers at once). Only questions that wait are answered to; the quickest of the last ones counts.

What is compared is the median over the neighbours: a node whose two neighbours agree with each other is the one that is
wrong, and a node with one wrong neighbour of two is well. Of two nodes alone, both say so.

Sans I/O: ticks and messages in, messages out. Errors: WireError.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite

from qtrunk.base.errors import WireError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.ports import Clock
from qtrunk.base.wire import Message, decode, encode
from qtrunk.control.threshold import Ladder, Step
from qtrunk.node.alarms import AlarmBoard
from qtrunk.topology import Topology

RESOURCE, TYPE = "clock", "ClockOffset"
ASK_EVERY_S = 10.0
SAMPLES = 3
FRESH_S = 60.0
"""A sample counts for so long."""
ROUND_TRIP_MAX_S = 5.0
STEPS = (Step("minor", -1.0, -0.5, 10.0, 10.0), Step("major", -60.0, -50.0, 10.0, 10.0))
"""Offset beyond its uncertainty in s, negative. Notes are refused from 300 s on (node.notes.AGE_MAX_S)."""


class ClockAsk(Message, frozen=True, tag="clock-ask"):
    """What time is it?"""

    number: int


class ClockAnswer(Message, frozen=True, tag="clock-answer"):
    """The peer's time when it read the question; Unix seconds."""

    number: int
    unix_s: float


@dataclass(frozen=True, slots=True)
class _Sample:
    ahead_s: float
    """The peer's Unix time less the own monotonic time: a step of the own clock does not make it wrong."""
    round_trip_s: float
    at_s: float


@dataclass(slots=True)
class _Peer:
    asked: tuple[int, float] | None = None
    """Number and monotonic time of the question that waits."""
    samples: deque[_Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES))


class ClockWatch:
    """One node's. For the event loop."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        clock: Clock,
        board: AlarmBoard,
        send: Callable[[LinkId, bytes], None],
    ) -> None:
        """`send` hands octets to the neighbour over a link, if it is connected."""
        self._node = node
        self._topology = topology
        self._clock = clock
        self._board = board
        self._send = send
        self._peers: dict[LinkId, _Peer] = {}
        self._number = 0
        self._asked_s = float("-inf")
        self._ladder = Ladder(STEPS)

    def tick(self) -> None:
        """About once a second: ask, and look at what was answered."""
        now_s = self._clock.monotonic_s()
        here = {link.id for link in self._topology.links_of(self._node)}
        self._peers = {link: peer for link, peer in self._peers.items() if link in here}
        if now_s - self._asked_s >= ASK_EVERY_S:
            self._asked_s = now_s
            for link in sorted(here):
                self._number += 1
                self._peers.setdefault(link, _Peer()).asked = (self._number, now_s)
                self._send(link, encode(ClockAsk(number=self._number)))
        self._judge(now_s)

    def receive(self, link: LinkId, octets: bytes) -> None:
        """A neighbour's question or answer; WireError."""
        message: ClockAsk | ClockAnswer = decode(octets, ClockAsk | ClockAnswer)
        if isinstance(message, ClockAsk):
            self._send(link, encode(ClockAnswer(number=message.number, unix_s=self._clock.unix_s())))
            return
        if not isfinite(message.unix_s):
            raise WireError("clock-answer: unix_s is no time")
        peer = self._peers.get(link)
        if peer is None or peer.asked is None or peer.asked[0] != message.number:
            return  # Late: another question waits by now.
        now_s = self._clock.monotonic_s()
        round_trip_s = now_s - peer.asked[1]
        peer.asked = None
        if round_trip_s <= ROUND_TRIP_MAX_S:
            middle_s = now_s - round_trip_s / 2
            peer.samples.append(_Sample(message.unix_s - middle_s, round_trip_s, now_s))

    def offsets(self) -> dict[str, tuple[float, float]]:
        """Of each neighbour that answered lately: its clock less the own, and how far that may be wrong, s."""
        now_s = self._clock.monotonic_s()
        own_s = self._clock.unix_s() - now_s
        found: dict[str, tuple[float, float]] = {}
        known_links = {link.id: link for link in self._topology.links_of(self._node)}
        for link, peer in self._peers.items():
            known = known_links.get(link)
            if known is None:
                continue  # Taken out since the last tick.
            fresh = [one for one in peer.samples if now_s - one.at_s <= FRESH_S]
            if fresh:
                best = min(fresh, key=lambda one: one.round_trip_s)
                other = known.bob if known.alice == self._node else known.alice
                found[other] = (best.ahead_s - own_s, best.round_trip_s / 2)
        return found

    def as_json(self) -> dict[str, object]:
        """For status."""
        found = self.offsets()
        middle = _middle(list(found.values()))
        return {
            "offset_s": None if middle is None else -middle[0],
            "neighbours": {
                node: {"offset_s": offset_s, "uncertainty_s": uncertainty_s}
                for node, (offset_s, uncertainty_s) in sorted(found.items())
            },
        }

    def _judge(self, now_s: float) -> None:
        found = self.offsets()
        middle = _middle(list(found.values()))
        if middle is None:
            return  # Nobody answers: that is another alarm's matter, and this one stays as it is.
        sure_s = max(0.0, abs(middle[0]) - middle[1])
        severity = self._ladder.note(-sure_s, now_s)
        if severity is None:
            self._board.clear(RESOURCE, TYPE)
            return
        those = ", ".join(f"{node} by {-offset_s:+.2f} s" for node, (offset_s, _) in sorted(found.items()))
        text = f"this node's clock is ahead of its neighbours': of {those}; see NTP or PTP of both"
        self._board.raise_alarm(RESOURCE, TYPE, severity, text)


def _middle(offsets: list[tuple[float, float]]) -> tuple[float, float] | None:
    """The median; of two in the middle the smaller one, since who agrees with somebody need not be wrong."""
    ordered = sorted(offsets)
    if not ordered:
        return None
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return min(low, high, key=lambda one: abs(one[0]))
