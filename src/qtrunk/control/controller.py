"""The QKDN controller (ITU-T Y.3804): from what nodes say of themselves to the routes that each should prefer. No I/O.

A machine: telemetry and ticks in, orders out. It plans anew when a link comes into or goes out of use, or is drained,
and hands a node its routes until the node says that it has them. Only who holds the lease hands anything.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, pairwise

from qtrunk.base.errors import RouteUnavailable
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.control.orders import LIFETIME_S, RouteOrder
from qtrunk.control.rootcause import Correlation
from qtrunk.control.telemetry import LinkTelemetry, Telemetry
from qtrunk.topology import Topology

FindRoutes = Callable[[NodeId, NodeId, int, frozenset[LinkId]], tuple[tuple[NodeId, ...], ...]]
"""Start, end, how many disjoint ones, links that must not be used; RouteUnavailable where there are fewer."""
Pair = tuple[NodeId, NodeId]
Routes = list[list[str]]
SILENT_S = 15.0
"""What was last heard of a node says nothing any more after so long."""
RETRY_S = 3.0
RENEW_S = LIFETIME_S / 4
ALL_PAIRS_MAX = 64
"""In a network of more nodes routes are planned only between nodes whose SAEs have a demand; nodes find all others."""


@dataclass(frozen=True, slots=True)
class Hand:
    """Give a node its order."""

    order: RouteOrder


@dataclass(slots=True)
class _NodeState:
    telemetry: Telemetry | None = None
    heard_s: float = -1e18
    handed_s: float = -1e18
    acknowledged_s: float = -1e18


@dataclass(slots=True)
class Controller:
    """One controller of one network. Times are of one monotonic clock."""

    name: str
    topology: Topology
    find: FindRoutes
    fencing: int = 0
    """Token of the lease; 0: this one does not lead."""
    version: int = 0
    unusable: frozenset[LinkId] = frozenset()
    drained: frozenset[LinkId] = frozenset()
    """Links under maintenance: they may still carry key, and are the last that routes are planned over."""
    routes: dict[NodeId, dict[str, Routes]] = field(default_factory=dict)
    """The plan: for each node, routes to each other one."""
    _usual: dict[Pair, Routes] = field(default_factory=dict)
    """What each pair takes while all is well, as far as it was looked for."""
    _detours: dict[Pair, Routes] = field(default_factory=dict)
    """Of the pairs whose usual routes go over a link that is unusable or drained."""
    correlation: Correlation = field(init=False)
    """What follows from what, over the usual routes."""
    _nodes: dict[NodeId, _NodeState] = field(default_factory=dict)
    _is_planned: bool = False
    _led_s: float = 0.0
    """When it first planned as the leader."""

    def __post_init__(self) -> None:
        self.correlation = Correlation(self.topology, self._usual_route)
        self._nodes = {node.id: _NodeState() for node in self.topology.nodes}

    @property
    def is_leading(self) -> bool:
        """Whether it holds the lease."""
        return self.fencing > 0

    def lead(self, fencing: int, version: int) -> None:
        """The lease was won; `version` is the highest that anybody ever handed out."""
        self.fencing = fencing
        self.version = max(self.version, version)
        self._is_planned = False

    def follow(self) -> None:
        """The lease is lost or cannot be kept up: hand out nothing."""
        self.fencing = 0

    def note(self, telemetry: Telemetry, now_s: float) -> None:
        """A node said how it is."""
        state = self._nodes[NodeId(telemetry.node)]
        state.telemetry, state.heard_s = telemetry, now_s
        held = telemetry.routes
        if held.fencing > self.fencing > 0:
            # Somebody leads who came after this one.
            self.follow()
        if (held.fencing, held.version) == (self.fencing, self.version) and self.is_leading:
            state.acknowledged_s = max(state.acknowledged_s, state.handed_s)

    def telemetry(self, node: NodeId, now_s: float) -> Telemetry | None:
        """What a node last said, if that still means anything."""
        state = self._nodes[node]
        return state.telemetry if now_s - state.heard_s <= SILENT_S else None

    def silent(self, now_s: float) -> dict[NodeId, float]:
        """Nodes that do not answer, and for how long, in s; none before this one, as the leader, asked them."""
        if not self._is_planned:
            return {}
        return {
            node: now_s - (self._led_s if state.telemetry is None else state.heard_s)
            for node, state in self._nodes.items()
            if self.telemetry(node, now_s) is None
        }

    def tick(self, now_s: float) -> list[Hand]:
        """Plan where something changed, and hand out what is not yet handed out."""
        if not self.is_leading:
            return []
        unusable = frozenset(link.id for link in self.topology.links if not self.is_usable(link.id, now_s))
        drained = self._drained_now(now_s)
        if not self._is_planned:
            self._led_s = now_s
        if not self._is_planned or (unusable, drained) != (self.unusable, self.drained):
            self._plan(unusable, drained)
        return [Hand(self._order(node)) for node in self._due(now_s)]

    def is_usable(self, link: LinkId, now_s: float) -> bool:
        """Whether routes may go over a link. Of what nobody tells anything, nothing bad is thought: a controller that
        cannot see the network must not take it apart."""
        known = self.topology.link(link)
        ends = [self._end(node, link, now_s) for node in (known.alice, known.bob)]
        return not any(end is not None and (not end.is_connected or end.own_bits <= 0) for end in ends)

    def _drained_now(self, now_s: float) -> frozenset[LinkId]:
        """What nodes say of themselves and of their own links; of others' they have no say."""
        found: set[LinkId] = set()
        for node in self.topology.nodes:
            telemetry = self.telemetry(node.id, now_s)
            windows = telemetry.maintenance if telemetry else []
            names = {window.resource for window in windows if window.is_own and window.phase == "under way"}
            if names:
                found |= {link.id for link in self.topology.links_of(node.id) if names & {node.id, link.id}}
        return frozenset(found)

    def _end(self, node: NodeId, link: LinkId, now_s: float) -> LinkTelemetry | None:
        telemetry = self.telemetry(node, now_s)
        return next((end for end in telemetry.links if end.link == link), None) if telemetry else None

    def prepare(self) -> None:
        """Look for the usual routes of all pairs: that takes long in a large network, and needs no lease."""
        for pair in self._pairs():
            if pair not in self._usual:
                self._usual[pair] = self._best(*pair, frozenset(), frozenset())

    def _plan(self, unusable: frozenset[LinkId], drained: frozenset[LinkId]) -> None:
        """Only pairs that what has changed may concern are looked at again: routes that stay open stay the best ones
        whatever else closes, and the usual ones are the best of all."""
        self.prepare()
        away = unusable | drained
        worse = (unusable - self.unusable) | (drained - self.drained)
        is_better = bool((self.unusable - unusable) | (self.drained - drained))
        detours: dict[Pair, Routes] = {}
        planned: dict[NodeId, dict[str, Routes]] = {node.id: {} for node in self.topology.nodes}
        for pair in self._pairs():
            routes = self._usual[pair]
            if away and self._touches(routes, away):
                known = None if is_better else self._detours.get(pair)
                if known is None or self._touches(known, worse):
                    known = self._best(*pair, unusable, drained)
                routes = detours[pair] = known
            if routes:
                planned[pair[0]][pair[1]] = routes
                planned[pair[1]][pair[0]] = [row[::-1] for row in routes]
        if planned != self.routes or not self._is_planned:
            self.version += 1
            for state in self._nodes.values():
                state.acknowledged_s = state.handed_s = -1e18
        self._detours = detours
        self.routes, self.unusable, self.drained, self._is_planned = planned, unusable, drained, True

    def _touches(self, routes: Routes, links: frozenset[LinkId]) -> bool:
        return any(
            self.topology.link_between(NodeId(a), NodeId(b)).id in links for row in routes for a, b in pairwise(row)
        )

    def _pairs(self) -> list[Pair]:
        """Pairs of nodes that routes are planned for, each once: the way back is the same."""
        nodes = [node.id for node in self.topology.nodes]
        if len(nodes) <= ALL_PAIRS_MAX:
            return list(combinations(nodes, 2))
        pairs = set()
        for demand in self.topology.demands:
            ends = [sae.node for name in demand.between if (sae := self.topology.sae(name)) is not None]
            if len(ends) == 2 and ends[0] != ends[1]:
                pairs.add((min(ends), max(ends)))
        return sorted(pairs)

    def _best(self, node: NodeId, target: NodeId, unusable: frozenset[LinkId], drained: frozenset[LinkId]) -> Routes:
        """A disjoint pair where there is one, the shorter first; else what there is, first over usable links, of those
        first over such as are not drained."""
        found: Routes = []
        away = unusable | drained
        for count, avoided in dict.fromkeys(((2, away), (1, away), (1, unusable), (1, frozenset[LinkId]()))):
            try:
                routes = sorted(self.find(node, target, count, avoided), key=len)
            except RouteUnavailable:
                continue
            found += [row for route in routes if (row := list[str](route)) not in found]
            if count == 2:
                break
        return found

    def _usual_route(self, start: NodeId, end: NodeId) -> list[NodeId]:
        """The one that is handed out while all is well."""
        routes = self._usual.get((start, end)) or [row[::-1] for row in self._usual.get((end, start), [])]
        routes = routes or self._best(start, end, frozenset(), frozenset())
        return [NodeId(node) for node in next(iter(routes), [])]

    def _due(self, now_s: float) -> Iterator[NodeId]:
        for node, state in self._nodes.items():
            is_held = now_s - state.acknowledged_s < RENEW_S
            if self.telemetry(node, now_s) is not None and not is_held and now_s - state.handed_s >= RETRY_S:
                state.handed_s = now_s
                yield node

    def _order(self, node: NodeId) -> RouteOrder:
        return RouteOrder(node, self.name, self.fencing, self.version, LIFETIME_S, self.routes[node])
