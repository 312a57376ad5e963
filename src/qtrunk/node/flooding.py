"""What a node tells the network of its links, at once when it changes, and what it learns from others: routes follow.

While something happens at the node (`node.pace`) it looks at its own links every FLOOD_TICK_S, and at once when
something has. A link that lost its neighbour, its module or its last block, or is good again after its hold-off
(`relay.damping`), is told to all neighbours in that moment, who pass it on. Levels are told when they have moved by
MOVED of what was told, at most every ADVERT_PERIOD_S; smaller differences when they have stood for SETTLED_S. So a
network at rest says nothing. What takes a link out of use makes relays that wait for it try another route.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.ports import Clock
from qtrunk.kms.key import PoolLevel
from qtrunk.node.advert import ADVERT_PERIOD_S, Advert, Adverts
from qtrunk.node.linkstate import LinkStatistics
from qtrunk.node.maintenance import Maintenance
from qtrunk.node.pace import Pace
from qtrunk.node.reserving import Reserving
from qtrunk.relay.damping import Damper
from qtrunk.relay.maintenance import Window
from qtrunk.relay.prices import LinkLevel
from qtrunk.relay.reservations import Claim
from qtrunk.relay.routing import Routing

FLOOD_TICK_S = 0.1
REST_S = 10.0
"""At rest the node looks so often at first, and at the end of each hold-off and each turn of a maintenance window."""
MOVED = 0.25
MOVED_OCTETS, MOVED_BPS = 1024, 32.0
"""Nor does less than this count as moved."""
SETTLED_S = 30.0


class RelayPort(Protocol):
    """What is needed of the node's relay (node.kxrunner.KxRunner)."""

    def is_up(self, link: LinkId) -> bool:
        """Whether the neighbour over a link is connected."""

    def advertise(self, octets: bytes) -> None:
        """Send to every neighbour."""

    def links_lost(self, links: Collection[LinkId]) -> None:
        """Let what waits for these links try others."""


class OwnLink(Protocol):
    """What is looked at of a link end (node.linkworker.LinkWorker)."""

    statistics: LinkStatistics
    is_enabled: bool


@dataclass(slots=True)
class _Own:
    """One link end of this node."""

    end: OwnLink
    damper: Damper = field(default_factory=Damper)

    def is_doubtful(self, *, is_up: bool, now_s: float) -> bool:
        """Whether no new key may be had over it; counts failures."""
        statistics = self.end.statistics
        is_off = bool(statistics.last_end) or statistics.is_dark
        self.damper.note(is_up and statistics.is_module_up and not is_off, now_s)
        return is_off or self.damper.has_failed or self.damper.left_s(now_s) > 0.0


class Flooding:
    """Keeps a node's `Adverts` and `Routing` at what is known. For the event loop."""

    def __init__(
        self,
        adverts: Adverts,
        routing: Routing,
        relay: RelayPort,
        level: Callable[[LinkId], PoolLevel],
        clock: Clock,
        maintenance: Maintenance | None = None,
        reserving: Reserving | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace or Pace()
        self._adverts = adverts
        self._routing = routing
        self._relay = relay
        self._level = level
        self._clock = clock
        self._maintenance = maintenance
        self._reserving = reserving
        self._own: dict[LinkId, _Own] = {}
        self._told: dict[LinkId, tuple[bool, bool, bool]] = {}
        self._told_windows: tuple[Window, ...] = ()
        self._told_claims: tuple[Claim, ...] = ()
        self._told_levels: list[LinkLevel] = []
        self._told_s = float("-inf")
        self._words: dict[NodeId, tuple[tuple[object, ...], ...]] = {}
        """What each node said last of its links, but for their levels."""
        self._away: tuple[str, ...] = ()
        self.changed = asyncio.Event()
        """Set whenever routes may have changed; whoever waits clears it."""
        self.on_levels: Callable[[], None] = lambda: None
        """Called whenever levels were told or heard."""

    def watch(self, links: Iterable[OwnLink]) -> None:
        """The node's own links; of those that it had before, what is remembered of failures stays."""
        before = {id(own.end): own for own in self._own.values()}
        self._own = {end.statistics.link.id: before.get(id(end)) or _Own(end) for end in links}

    def adopt(self) -> None:
        """The network has changed, and routes know it: what others said before of what is new here counts now. Nobody
        says it again.
        """
        for advert in self._adverts.said(self._clock.monotonic_s()):
            if advert.node != self._adverts.own:
                self.heard(advert)

    def heard(self, advert: Advert) -> None:
        """News of another node."""
        if self._maintenance is not None and self._maintenance.hear(NodeId(advert.node), advert.windows):
            self._pace.stir()
        self._learn(NodeId(advert.node), advert.links, advert.claims)
        self._look_who_is_there()
        self.on_levels()

    async def run(self) -> None:
        """Watch the own links, tell the neighbours."""
        while True:
            self.tick()
            await self._pace.turn(FLOOD_TICK_S, REST_S, at_most_s=self._until_turn_s())

    def tick(self) -> None:
        """Look once."""
        now_s = self._clock.monotonic_s()
        windows: tuple[Window, ...] = ()
        if self._maintenance is not None:
            self._drain(self._maintenance.tick())
            windows = self._maintenance.own
        claims = () if self._reserving is None else self._reserving.own()
        states = {}
        for link, own in self._own.items():
            is_up = self._relay.is_up(link)
            states[link] = (is_up, own.end.is_enabled, own.is_doubtful(is_up=is_up, now_s=now_s))
        words = (states, windows, claims)
        self._look_who_is_there()
        is_news = words != (self._told, self._told_windows, self._told_claims) or self._adverts.is_contradicted
        if not is_news and now_s - self._told_s < ADVERT_PERIOD_S:
            return
        if self._reserving is not None:
            self._reserving.look()
        levels = [self._own_level(link, is_up, is_doubtful) for link, (is_up, _, is_doubtful) in states.items()]
        if not is_news and not self._has_moved(levels, is_settled=now_s - self._told_s >= SETTLED_S):
            return
        (self._told, self._told_windows, self._told_claims), self._told_s = words, now_s
        self._told_levels = levels
        # Milliseconds since 1970: a node that starts anew goes on behind what it said before.
        sequence = int(self._clock.unix_s() * 1000)
        self._relay.advertise(self._adverts.note_own(levels, sequence, now_s, windows, claims))
        self._learn(self._adverts.own, levels, claims)
        self._look_who_is_there()
        self.on_levels()

    def _has_moved(self, levels: Sequence[LinkLevel], *, is_settled: bool) -> bool:
        """Whether others should hear of the levels: they have moved, or differ at all and have stood for long."""
        share = 0.0 if is_settled else MOVED
        return any(
            abs(new.octets - old.octets) > max(share and MOVED_OCTETS, share * old.octets)
            or abs(new.fill_bps - old.fill_bps) > max(MOVED_BPS, share * old.fill_bps)
            or new.is_usable != old.is_usable
            for new, old in zip(levels, self._told_levels, strict=True)
        )

    def _until_turn_s(self) -> float:
        """How long until a hold-off or a window turns, or an alarm may."""
        is_pending = self._reserving is not None and self._reserving.is_pending
        now_s, until = self._clock.monotonic_s(), [REST_S if is_pending else float("inf")]
        until += [left_s for own in self._own.values() if (left_s := own.damper.left_s(now_s)) > 0.0]
        if self._maintenance is not None:
            now_unix_s = self._clock.unix_s()
            turns = [at_s for one in self._maintenance.all() for at_s in (one.start_unix_s, one.end_unix_s)]
            until += [at_s - now_unix_s for at_s in turns if at_s > now_unix_s]
        return min(until) + 1e-3

    def _look_who_is_there(self) -> None:
        """What nodes said that fell silent says nothing any more; that of nodes that are back counts again."""
        if self._adverts.away != self._away:
            # Alarms follow, in some seconds.
            self._away = self._adverts.away
            self._pace.stir()
        for node in self._adverts.stale(self._clock.monotonic_s()):
            self._routing.forget(node)
            if self._reserving is not None:
                self._reserving.note(node, (), ())
        for advert in self._adverts.returned():
            self._learn(NodeId(advert.node), advert.links, advert.claims)

    def state_of(self, link: LinkId) -> dict[str, object]:
        """What the status says of a link: in doubt or not, the hold-off that is left, s, and what guarantees claim of
        the own direction, bit/s.
        """
        own = self._own[link]
        return {
            "is_doubtful": self._told.get(link, (False, False, False))[2],
            "hold_off_s": round(own.damper.left_s(self._clock.monotonic_s()), 1),
            "claimed_bps": 0.0 if self._reserving is None else self._reserving.claimed_bps(link),
        }

    def _drain(self, resources: Collection[str]) -> None:
        version = self._routing.version
        self._routing.drain(resources)
        if self._routing.version != version:
            self._pace.stir()
            self.changed.set()

    def _own_level(self, link: LinkId, is_up: bool, is_doubtful: bool) -> LinkLevel:
        octets = self._level(link).own_octets
        return LinkLevel(
            link=link,
            octets=octets,
            fill_bps=self._own[link].end.statistics.rates_bps()[1] / 2,
            is_usable=is_up and octets > 0,
            is_enabled=self._own[link].end.is_enabled,
            is_doubtful=is_doubtful,
            is_connected=is_up,
        )

    def _learn(self, node: NodeId, levels: Sequence[LinkLevel], claims: Sequence[Claim]) -> None:
        version = self._routing.version
        lost = self._routing.note(node, levels)
        words = tuple((one.link, one.is_usable, one.is_enabled, one.is_doubtful, one.is_connected) for one in levels)
        if words != self._words.get(node):
            # More than a level: what is in use may be another.
            self._words[node] = words
            self._pace.stir()
        if self._reserving is not None:
            self._reserving.note(node, levels, claims)
        if lost:
            self._relay.links_lost(lost)
        if self._routing.version != version:
            self.changed.set()
