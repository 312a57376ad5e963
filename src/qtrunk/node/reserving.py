"""A node's part in keeping link key for guarantees (`relay.reservations`): what its own tenants claim, what others do,
prices of routes, and an alarm where a link cannot carry what is claimed of it.
"""

from collections.abc import Callable, Iterable, Sequence

from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.base.ports import Clock
from qtrunk.control.threshold import Ladder, Step
from qtrunk.node.advert import Adverts
from qtrunk.node.alarms import AlarmBoard
from qtrunk.relay.prices import LinkLevel
from qtrunk.relay.reservations import Claim, Hop, Reservations, own_claims, sites_of
from qtrunk.relay.routing import Routing
from qtrunk.topology import Topology

ALARM = "GuaranteesAboveRate"
PERIOD_S = 1.0
LASTS_S = 3600.0
"""What lies ready counts as a rate that lasts so long."""
SHORT = Step(ALARM, 1.0, 1.1, 60.0, 30.0)
"""Of what a direction can give, over what is claimed of it."""


class Reserving:
    """For the event loop."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        routing: Routing,
        adverts: Adverts,
        alarms: AlarmBoard,
        clock: Clock,
        is_full: Callable[[LinkId], bool] = lambda _link: False,
    ) -> None:
        """`is_full`: whether a link makes no key because its pool has no room."""
        self._is_full = is_full
        self._node = node
        self._topology = topology
        self._routing = routing
        self._adverts = adverts
        self._alarms = alarms
        self._clock = clock
        self.claims = Reservations(node, topology)
        self._sites = sites_of(topology, node)
        self._own: tuple[Claim, ...] = ()
        self._version = -1
        self._found_s = float("-inf")
        self._ladders: dict[LinkId, Ladder] = {}

    def adopt(self) -> None:
        """The topology has changed, and routes know it."""
        self._sites = sites_of(self._topology, self._node)
        self._version, self._found_s = -1, float("-inf")
        here = {link.id for link in self._topology.links_of(self._node)}
        self._ladders = {link: ladder for link, ladder in self._ladders.items() if link in here}
        self._price(self.claims.adopt())

    def own(self) -> tuple[Claim, ...]:
        """What the own tenants claim; found anew, at most once a period, when routes may be others."""
        now_s = self._clock.monotonic_s()
        if self._routing.version != self._version and now_s - self._found_s >= PERIOD_S:
            self._version, self._found_s = self._routing.version, now_s
            self._own = own_claims(self._topology, self._sites, self._routes)
        return self._own

    def note(self, node: NodeId, levels: Sequence[LinkLevel], claims: Sequence[Claim]) -> None:
        """What a node says of its directions and claims; nothing: it fell silent."""
        self._price({*self.claims.note(node, claims), *self.claims.among((node, level.link) for level in levels)})
        if node == self._node:
            self.look()

    def _price(self, hops: Iterable[Hop]) -> None:
        for hop in hops:
            self._routing.claim(*hop, self.claims.earlier_bps(hop), self._level(hop))

    def claimed_bps(self, link: LinkId) -> float:
        """What anybody claims of the own direction of a link."""
        return self.claims.all_bps((self._node, link))

    def _routes(self, initiator: SaeId, target: SaeId, count: int) -> Sequence[tuple[NodeId, ...]]:
        known = self._topology.sae(target)
        assert known is not None  # own_claims asks for SAEs of the topology
        if count == 1:
            return [self._routing.route_for((initiator, target), known.node)]
        return self._routing.disjoint_for((initiator, target), known.node, count)

    def _level(self, hop: Hop) -> LinkLevel | None:
        return self._adverts.level(*hop, self._clock.monotonic_s())

    @property
    def is_pending(self) -> bool:
        """Whether time alone may bring an alarm about, or end one."""
        return any(ladder.is_pending for ladder in self._ladders.values())

    def look(self) -> None:
        """Every few seconds: whether the own links can carry what is claimed of them."""
        for link in self._topology.links_of(self._node):
            claimed_bps, level = self.claimed_bps(link.id), self._level((self._node, link.id))
            ladder = self._ladders.setdefault(link.id, Ladder((SHORT,)))
            able_bps = level.fill_bps + 8 * level.octets / LASTS_S if level is not None else 0.0
            # A link whose pool is full makes nothing, and is well.
            is_free = claimed_bps <= 0.0 or self._is_full(link.id)
            share = float("inf") if is_free else able_bps / claimed_bps
            is_short = ladder.note(share, self._clock.monotonic_s()) is not None
            text = f"guarantees claim {claimed_bps:.0f} bit/s of what {self._node} may send, it gets {able_bps:.0f}"
            self._alarms.set_alarm(is_short, link.id, ALARM, text)
