"""What a node tells the network of its links, at once when it changes, and what it learns from others: routes follow.

Every FLOOD_TICK_S the node looks at its own links. One that lost its neighbour, its module or its last block, or is
good again after its hold-off (`relay.damping`), is told to all neighbours in that moment, who pass it on; the rest is
told every ADVERT_PERIOD_S. What takes a link out of use makes relays that wait for it try another route.
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
from qtrunk.node.reserving import Reserving
from qtrunk.relay.damping import Damper
from qtrunk.relay.maintenance import Window
from qtrunk.relay.prices import LinkLevel
from qtrunk.relay.reservations import Claim
from qtrunk.relay.routing import Routing

FLOOD_TICK_S = 0.1


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
        self.damper.note(is_up and statistics.is_module_up and not statistics.last_end, now_s)
        return bool(statistics.last_end) or self.damper.has_failed or self.damper.left_s(now_s) > 0.0


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
    ) -> None:
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
        self._told_s = float("-inf")
        self.changed = asyncio.Event()
        """Set whenever routes may have changed; whoever waits clears it."""
        self.on_levels: Callable[[], None] = lambda: None
        """Called whenever levels were told or heard."""

    def watch(self, links: Iterable[OwnLink]) -> None:
        """The node's own links; of those that it had before, what is remembered of failures stays."""
        before = {id(own.end): own for own in self._own.values()}
        self._own = {end.statistics.link.id: before.get(id(end)) or _Own(end) for end in links}

    def heard(self, advert: Advert) -> None:
        """News of another node."""
        if self._maintenance is not None:
            self._maintenance.hear(NodeId(advert.node), advert.windows)
        self._learn(NodeId(advert.node), advert.links, advert.claims)
        self.on_levels()

    async def run(self) -> None:
        """Watch the own links, tell the neighbours."""
        while True:
            self.tick()
            await asyncio.sleep(FLOOD_TICK_S)

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
        if words == (self._told, self._told_windows, self._told_claims) and now_s - self._told_s < ADVERT_PERIOD_S:
            return
        (self._told, self._told_windows, self._told_claims), self._told_s = words, now_s
        levels = [self._own_level(link, is_up, is_doubtful) for link, (is_up, _, is_doubtful) in states.items()]
        # Milliseconds since 1970: a node that starts anew goes on behind what it said before.
        sequence = int(self._clock.unix_s() * 1000)
        self._relay.advertise(self._adverts.note_own(levels, sequence, now_s, windows, claims))
        self._learn(self._adverts.own, levels, claims)
        self.on_levels()
        for node in self._adverts.stale(now_s):
            self._routing.forget(node)
            if self._reserving is not None:
                self._reserving.note(node, (), ())

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
        )

    def _learn(self, node: NodeId, levels: Sequence[LinkLevel], claims: Sequence[Claim]) -> None:
        version = self._routing.version
        lost = self._routing.note(node, levels)
        if self._reserving is not None:
            self._reserving.note(node, levels, claims)
        if lost:
            self._relay.links_lost(lost)
        if self._routing.version != version:
            self.changed.set()
