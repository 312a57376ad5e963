"""Does this node's clock agree with its neighbours'? Notes, certificates, expiry of keys and time stamps rest on it.

Each hello over the relay's channel, which both nodes' certificates authenticate, measures the neighbour's time of day
(`node.greeting`), with an error of at most half of the round trip; the quickest of the last ones counts.

What is compared is the median over the neighbours: a node whose two neighbours agree with each other is the one that is
wrong, and a node with one wrong neighbour of two is well. Of two nodes alone, both say so.

Sans I/O.
"""

from collections import deque

from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.ports import Clock
from qtrunk.control.threshold import Ladder, Step
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.greeting import Measured
from qtrunk.topology import Topology

RESOURCE, TYPE = "clock", "ClockOffset"
SAMPLES = 5
FRESH_S = 200.0
"""A sample counts for so long: of a neighbour at rest, three or four are that fresh."""
STEPS = (Step("minor", -1.0, -0.5, 10.0, 10.0), Step("major", -60.0, -50.0, 10.0, 10.0))
"""Offset beyond its uncertainty in s, negative. Notes are refused from 300 s on (node.notes.AGE_MAX_S)."""


class ClockWatch:
    """One node's. For the event loop."""

    def __init__(self, node: NodeId, topology: Topology, clock: Clock, board: AlarmBoard) -> None:
        self._node = node
        self._topology = topology
        self._clock = clock
        self._board = board
        self._samples: dict[LinkId, deque[Measured]] = {}
        self._ladder = Ladder(STEPS)

    def note(self, link: LinkId, sample: Measured) -> None:
        """A hello of the neighbour over a link."""
        self._samples.setdefault(link, deque(maxlen=SAMPLES)).append(sample)
        self.tick()

    def tick(self) -> None:
        """Look at what is known: now and then, since the own clock may step, too."""
        now_s, found = self._clock.monotonic_s(), self.offsets()
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

    def offsets(self) -> dict[str, tuple[float, float]]:
        """Of each neighbour that answered lately: its clock less the own, and how far that may be wrong, s."""
        now_s = self._clock.monotonic_s()
        own_s = self._clock.unix_s() - now_s
        found: dict[str, tuple[float, float]] = {}
        known_links = {link.id: link for link in self._topology.links_of(self._node)}
        # Of a link that was taken out nothing counts any more.
        self._samples = {link: samples for link, samples in self._samples.items() if link in known_links}
        for link, samples in self._samples.items():
            fresh = [one for one in samples if now_s - one.at_s <= FRESH_S]
            if fresh:
                best = min(fresh, key=lambda one: one.round_trip_s)
                found[known_links[link].other(self._node)] = (best.ahead_s - own_s, best.round_trip_s / 2)
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


def _middle(offsets: list[tuple[float, float]]) -> tuple[float, float] | None:
    """The median; of two in the middle the smaller one, since who agrees with somebody need not be wrong."""
    ordered = sorted(offsets)
    if not ordered:
        return None
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return min(low, high, key=lambda one: abs(one[0]))
