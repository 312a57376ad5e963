"""Which alarm follows from which: one cut fibre, one dead node is one alarm, with what follows from it folded in.

An alarm is a child of another that is up, if the other

    1. has a higher rank in the catalogue (causes before effects, so there are no circles),
    2. harms the resource of the first by topology: the same link; a link of the node; a pool whose route passes the
       link or the node; a node that nothing but the broken link or node leads to,
    3. came no later than WINDOW_S after it (detection is not in the order of events), for alarms that came earlier
       than that have a reason of their own.

Of several candidates the one of the highest rank is the parent, then the one that came first. Where there is none, the
same alarm that the other end raised before is. Parents' parents lead to the root.

A node of which its neighbours lost all links, and that says nothing itself, is dead: `find_dead` says so where no
NodeUnreachable is up. Pure; the routes come as a function, since who asks knows how keys are routed.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import networkx as nx

from qtrunk.base.ids import LinkId, NodeId
from qtrunk.control.catalogue import entry
from qtrunk.topology import Topology

WINDOW_S = 120.0
"""Pools take their time until they are low; blocks of light take theirs until the cut is seen."""
NODE_PREFIX, POOL_PREFIX = "node ", "pool "
_BREAKS = frozenset({"QuantumChannelLoss", "ClassicalChannelLoss", "ModuleLoss", "ModuleMismatch", "PeerRefused"})
"""What keeps a link from carrying anything new."""
_CHANNEL_LOSS = frozenset({"ClassicalChannelLoss", "PeerRefused"})
Route = Callable[[NodeId, NodeId], Sequence[NodeId]]
"""The usual way of keys between two nodes; empty where there is none."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One active alarm as correlation sees it, with the node that says so."""

    node: str
    resource: str
    type: str
    raised_unix_s: float
    severity: str = ""
    text: str = ""

    @property
    def rank(self) -> int:
        """Of its type."""
        return entry(self.type).rank


@dataclass(slots=True)
class Tree:
    """A root (or a child) and what follows from it."""

    alarm: Seen
    children: list["Tree"] = field(default_factory=list)

    def count(self) -> int:
        """Alarms below this one."""
        return sum(1 + child.count() for child in self.children)


def pool_resource(initiator: str, target: str) -> str:
    """The resource name of a pool."""
    return f"{POOL_PREFIX}{initiator} to {target}"


def node_resource(node: str) -> str:
    """The resource name of a node, as others see it."""
    return f"{NODE_PREFIX}{node}"


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a resource lies: the links and nodes that it needs."""

    links: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()


class Correlation:
    """For one topology and its usual routes."""

    def __init__(self, topology: Topology, route: Route) -> None:
        self._topology = topology
        self._route = route
        self._links = {str(link.id) for link in topology.links}
        self._nodes = {str(node.id) for node in topology.nodes}
        self._places_of: dict[str, _Places] = {}
        self._graph = nx.Graph((str(link.alice), str(link.bob)) for link in topology.links)

    def parents(self, alarms: Sequence[Seen]) -> dict[Seen, Seen]:
        """The parent of each alarm that has one."""
        by_place: dict[str, list[Seen]] = defaultdict(list)
        broken: list[Seen] = []
        for alarm in alarms:
            if alarm.rank:
                for place in self._harms(alarm):
                    by_place[place].append(alarm)
                if alarm.type in _BREAKS or alarm.type == "NodeUnreachable":
                    broken.append(alarm)
        found = {}
        for alarm in alarms:
            if alarm.rank and (parent := self._parent(alarm, by_place, broken)) is not None:
                found[alarm] = parent
        return found

    def trees(self, alarms: Sequence[Seen]) -> list[Tree]:
        """Roots with what follows from them, the oldest first."""
        parents = self.parents(alarms)
        trees = {alarm: Tree(alarm) for alarm in sorted(alarms, key=lambda one: one.raised_unix_s)}
        for alarm, tree in trees.items():
            if alarm in parents:
                trees[parents[alarm]].children.append(tree)
        return [tree for alarm, tree in trees.items() if alarm not in parents]

    def root_of(self, alarm: Seen, parents: Mapping[Seen, Seen]) -> Seen:
        """Up from parent to parent."""
        while alarm in parents:
            alarm = parents[alarm]
        return alarm

    def find_dead(self, alarms: Iterable[Seen], silent: Collection[str], now_unix_s: float) -> list[Seen]:
        """NodeUnreachable for silent nodes whose every link was lost by a living neighbour.

        A node on one link alone may as well be behind a cut, and one whose links are all dark surely is: neither is
        called dead.
        """
        lost: dict[str, float] = {}
        dark: set[str] = set()
        named = set()
        for alarm in alarms:
            if alarm.type in _CHANNEL_LOSS and alarm.node not in silent:
                lost[alarm.resource] = min(alarm.raised_unix_s, lost.get(alarm.resource, now_unix_s))
            elif alarm.type == "QuantumChannelLoss":
                dark.add(alarm.resource)
            elif alarm.type == "NodeUnreachable":
                named.add(alarm.resource)
        found = []
        for node in sorted(silent):
            links = [str(link.id) for link in self._topology.links_of(NodeId(node))]
            if len(links) < 2 or node_resource(node) in named or not all(link in lost for link in links):
                continue
            if not all(link in dark for link in links):
                text = f"all {len(links)} neighbours lost node {node}, and it says nothing"
                since_s = max(lost[link] for link in links)
                found.append(Seen("", node_resource(node), "NodeUnreachable", since_s, "critical", text))
        return found

    def impact(self, resource: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
        """The pools of these pairs of SAEs, and their tenants, that need a link, a node or a pool."""
        pools, tenants = [], set()
        for initiator, target in pairs:
            pool = pool_resource(initiator, target)
            places = self._places(pool)
            if resource == pool or resource in places.links or resource[len(NODE_PREFIX) :] in places.nodes:
                if resource != pool:
                    pools.append(pool)
                for sae in (initiator, target):
                    known = self._topology.sae(sae)  # type: ignore[arg-type]
                    if known is not None:
                        tenants.add(f"tenant {self._topology.tenant_of(known.id).id}")
        return [*pools, *sorted(tenants)]

    # ── where things lie ────────────────────────────────────────────────────────────────────────────────────────────

    def _places(self, resource: str) -> _Places:
        """What a resource needs, by topology."""
        known = self._places_of.get(resource)
        if known is None:
            known = self._places_of[resource] = self._find_places(resource)
        return known

    def _find_places(self, resource: str) -> _Places:
        if resource in self._links:
            link = self._topology.link(LinkId(resource))
            return _Places(frozenset({resource}), frozenset({str(link.alice), str(link.bob)}))
        if resource.startswith(NODE_PREFIX):
            return _Places(nodes=frozenset({resource[len(NODE_PREFIX) :]}))
        if resource.startswith(POOL_PREFIX):
            nodes = self._pool_nodes(resource)
            links = frozenset(str(self._topology.link_between(a, b).id) for a, b in pairwise(nodes))
            return _Places(links, frozenset(map(str, nodes)))
        return _Places()

    def _pool_nodes(self, resource: str) -> list[NodeId]:
        ends = [self._topology.sae(sae) for sae in resource[len(POOL_PREFIX) :].split(" to ")]  # type: ignore[arg-type]
        if len(ends) != 2 or ends[0] is None or ends[1] is None:
            return []
        return list(self._route(ends[0].node, ends[1].node))

    def _harms(self, alarm: Seen) -> list[str]:
        """The places that an alarm makes unfit, as keys of an index."""
        if alarm.resource in self._links:
            return [alarm.resource]
        if alarm.resource.startswith((NODE_PREFIX, POOL_PREFIX)):
            return [alarm.resource]
        # A part of a node itself, such as its disk: the node can do nothing.
        return [node_resource(alarm.node)]

    def _parent(self, alarm: Seen, by_place: Mapping[str, list[Seen]], broken: Sequence[Seen]) -> Seen | None:
        places = self._places(alarm.resource)
        candidates = [one for link in places.links for one in by_place.get(link, ())]
        candidates += [one for node in places.nodes for one in by_place.get(node_resource(node), ())]
        candidates += by_place.get(alarm.resource, ())
        if alarm.type == "RelayUnreachable":
            candidates = [one for one in candidates if one.type == "NodeUnreachable"] or self._separating(alarm, broken)
        able = [
            one
            for one in candidates
            if one.rank > alarm.rank and one.raised_unix_s <= alarm.raised_unix_s + WINDOW_S and _is_fair(one, alarm)
        ]
        if not able:  # the other end may have said the same before
            able = [one for one in candidates if _is_twin(one, alarm)]
        return min(able, key=lambda one: (-one.rank, one.raised_unix_s, one.node, one.type), default=None)

    def _separating(self, alarm: Seen, broken: Sequence[Seen]) -> list[Seen]:
        """The broken links and nodes that bar every way from who misses a node to that node; none if one is open."""
        links = {tuple(map(str, self._ends(one))) for one in broken if one.resource in self._links}
        down = {one.resource[len(NODE_PREFIX) :] for one in broken if one.type == "NodeUnreachable"}
        here, there = alarm.node, alarm.resource[len(NODE_PREFIX) :]
        open_ = nx.restricted_view(self._graph, [node for node in down if node in self._graph], list(links))
        if here in open_ and there in open_ and nx.has_path(open_, here, there):
            return []
        return list(broken)

    def _ends(self, alarm: Seen) -> tuple[NodeId, NodeId]:
        link = self._topology.link(LinkId(alarm.resource))
        return link.alice, link.bob


def _is_twin(first: Seen, second: Seen) -> bool:
    """Whether two nodes say the same of one thing, `first` before `second`."""
    return (
        (first.resource, first.type) == (second.resource, second.type)
        and entry(first.type).on != "own"
        and (first.raised_unix_s, first.node) < (second.raised_unix_s, second.node)
    )


def _is_fair(cause: Seen, effect: Seen) -> bool:
    """A node's own trouble explains what that node itself says, and what others say of its links and pools; but what is
    said of links never explains trouble of the node's own parts.
    """
    if cause.resource == effect.resource and cause.type == effect.type:
        return False
    if entry(cause.type).on != "own":
        return entry(effect.type).on != "own"
    return entry(effect.type).on != "node" or cause.type == "NodeSealed"
