"""The routes of one node: those that a controller handed it while they are sound, else the cheapest by what is known of
every link (`relay.prices`); all by each tenant's rules. Pure.

All routes of a node come from one search, made anew only after something changed that routes depend on. A route is kept
until another is better by STICKINESS: levels move all the time, and two nodes that both jump at the better way would
make it the worse one. What is closed is closed: where nothing is left, RouteUnavailable says so.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qtrunk.base.errors import RouteUnavailable
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.relay.disjoint import cheapest_set
from qtrunk.relay.graph import CLOSED, Arcs, Costs, Graph, graph_of
from qtrunk.relay.prices import (
    DOUBTFUL,
    DOWN,
    DRAINED,
    UNKNOWN,
    LinkLevel,
    claimed_price,
    claimed_step,
    flaw,
    scarcity,
    step,
)
from qtrunk.topology import Tenant, Topology

STICKINESS = 0.25
Handed = Callable[[NodeId, frozenset[LinkId]], tuple[NodeId, ...] | None]
"""A target, links that a route to it must not use: the first route that a controller handed out for it; None: none."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the routes of some keys must hold to."""

    avoid: frozenset[NodeId] = frozenset()
    """Nodes that no key may pass; one may begin or end there."""
    hops_max: int | None = None

    @staticmethod
    def of(*tenants: Tenant) -> "Rules":
        """Those of all of these tenants at once."""
        bounds = [tenant.hops_max for tenant in tenants if tenant.hops_max is not None]
        avoid = frozenset(NodeId(node) for tenant in tenants for node in tenant.avoid)
        return Rules(avoid, min(bounds, default=None))


class Routing:
    """Routes from one node to all others. For one thread."""

    def __init__(self, node: NodeId, topology: Topology, handed: Handed = lambda _target, _avoided: None) -> None:
        self._node = node
        self._topology = topology
        self._handed = handed
        self._graph: Graph = graph_of(topology)
        self._start = self._graph.index[node]
        arcs = len(self._graph.heads)
        self._scarcity: Costs = np.zeros(arcs)
        self._flaws: Costs = np.zeros(arcs)
        self._steps: dict[int, int] = {}
        self._claimed: Costs = np.zeros(arcs)
        self._claimed_steps: dict[int, int] = {}
        self._drained: frozenset[str] = frozenset()
        self._drain: Costs = np.zeros(arcs)
        self.version = 0
        """Another whenever routes may be others."""
        self._costs: Costs | None = None
        self._links: dict[float, frozenset[LinkId]] = {}
        self._trees: dict[frozenset[NodeId], tuple[Costs, Arcs]] = {}
        self._chosen: dict[tuple[Rules, NodeId], tuple[NodeId, ...]] = {}

    def adopt(self) -> None:
        """The topology has changed. What was said of links that stay still counts, but for claims: those are said anew.
        A link that is new is down until its ends say otherwise, each of its own direction.
        """
        known, graph = self._graph, graph_of(self._topology)
        scarce, flaws, steps = np.zeros(len(graph.heads)), np.full(len(graph.heads), DOWN), {}
        drained, self._drained = self._drained, frozenset()
        for link, arcs in graph.arcs.items():
            for arc in arcs if link in known.arcs else ():
                before = self._arc(graph.nodes[graph.tails[arc]], link)
                assert before is not None
                scarce[arc], flaws[arc] = self._scarcity[before], self._flaws[before]
                if before in self._steps:
                    steps[arc] = self._steps[before]
        self._graph, self._start = graph, graph.index[self._node]
        self._scarcity, self._flaws, self._steps = scarce, flaws, steps
        self._claimed, self._claimed_steps = np.zeros(len(graph.heads)), {}
        self._drain = np.zeros(len(graph.heads))
        self._chosen.clear()
        self._forget_costs()
        self.drain(drained)

    # ── what is known ───────────────────────────────────────────────────────────────────────────────────────────────

    def note(self, node: NodeId, levels: Iterable[LinkLevel]) -> frozenset[LinkId]:
        """What a node says of its directions; the links that this takes out of use."""
        lost: set[LinkId] = set()
        for level in levels:
            arc = self._arc(node, level.link)
            if arc is None:
                continue
            was_down = self._flaws[arc] >= DOWN
            steps = step(level, self._steps.get(arc))
            if steps != self._steps.get(arc):
                self._steps[arc] = steps
                self._set(self._scarcity, arc, scarcity(steps, level.fill_bps))
            self._set(self._flaws, arc, flaw(level))
            if not (level.is_usable or was_down):
                lost.add(level.link)
        return frozenset(lost)

    def forget(self, node: NodeId) -> None:
        """Nothing was heard of a node for long: what it said last says nothing any more."""
        for link in self._topology.links_of(node):
            arc = self._arc(node, link.id)
            if arc is not None and self._steps.pop(arc, None) is not None:
                self._set(self._scarcity, arc, UNKNOWN)
                self._set(self._flaws, arc, 0.0)

    def claim(self, node: NodeId, link: LinkId, claimed_bps: float, level: LinkLevel | None) -> None:
        """What guarantees claim of a direction before the own ones, and what was last said of it."""
        arc = self._arc(node, link)
        if arc is not None:
            steps = self._claimed_steps[arc] = claimed_step(claimed_bps, level, self._claimed_steps.get(arc))
            self._set(self._claimed, arc, claimed_price(steps))

    def drain(self, resources: Collection[str]) -> None:
        """The nodes and links that routes must move away from, all of them."""
        if frozenset(resources) == self._drained:
            return
        self._drained = frozenset(resources)
        graph = self._graph
        self._drain = np.zeros(len(graph.heads))
        for resource in self._drained:
            place, arcs = graph.index.get(NodeId(resource)), graph.arcs.get(LinkId(resource))
            if place is not None:
                self._drain[(graph.heads == place) | (graph.tails == place)] = DRAINED
            if arcs is not None:
                self._drain[list(arcs)] = DRAINED
        self._forget_costs()

    def _arc(self, node: NodeId, link: LinkId) -> int | None:
        """The direction of a link that begins at a node; None for what there is not."""
        arcs, place = self._graph.arcs.get(link), self._graph.index.get(node)
        return None if arcs is None else next((arc for arc in arcs if self._graph.tails[arc] == place), None)

    def _set(self, values: Costs, arc: int, value: float) -> None:
        if values[arc] != value:
            values[arc] = value
            self._forget_costs()

    def _forget_costs(self) -> None:
        self.version += 1
        self._costs = None
        self._links.clear()
        self._trees.clear()

    # ── routes ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def route_for(self, saes: Iterable[SaeId], end: NodeId, avoided: Collection[LinkId] = ()) -> tuple[NodeId, ...]:
        """The route for keys of some SAEs, by the rules of all their tenants."""
        return self.route(end, self._rules(saes), avoided)

    def disjoint_for(
        self, saes: Iterable[SaeId], end: NodeId, n: int, avoided: Collection[LinkId] = ()
    ) -> tuple[tuple[NodeId, ...], ...]:
        """`n` routes without a relay in common (`relay.disjoint`), by the rules of the SAEs' tenants."""
        rules = self._rules(saes)
        if end not in self._graph.index or end == self._node:
            raise RouteUnavailable(f"{n} disjoint routes from {self._node} to {end}: between two nodes of the network")
        costs = self._closed(avoided)
        self._graph.close_passage(costs, rules.avoid, self._start)
        found = cheapest_set(self._graph, costs, self._node, end, n)
        if rules.hops_max is not None and max(len(nodes) for nodes in found) - 1 > rules.hops_max:
            raise RouteUnavailable(f"{n} disjoint routes from {self._node} to {end}: one is over {rules.hops_max} hops")
        return found

    def down(self) -> frozenset[LinkId]:
        """The links that can carry nothing now."""
        return self._links_from(DOWN)

    def _links_from(self, price: float) -> frozenset[LinkId]:
        """The links that at least so much speaks against; kept until something changes."""
        found = self._links.get(price)
        if found is None:
            is_dear = self._against() >= price
            found = frozenset()
            if is_dear.any():
                found = frozenset(link for link, (arc, _) in self._graph.arcs.items() if is_dear[arc])
            self._links[price] = found
        return found

    def _rules(self, saes: Iterable[SaeId]) -> Rules:
        return Rules.of(*(self._topology.tenant_of(sae) for sae in saes))

    def _closed(self, avoided: Collection[LinkId]) -> Costs:
        """The costs now, a copy, with links closed."""
        costs = self._prices().copy()
        for link in avoided:
            costs[list(self._graph.arcs.get(link, ()))] = CLOSED
        return costs

    def route(self, end: NodeId, rules: Rules | None = None, avoided: Collection[LinkId] = ()) -> tuple[NodeId, ...]:
        """Nodes from here to `end`, never over a link of `avoided`; RouteUnavailable where the rules leave none."""
        rules = rules or Rules()
        found = self._ordered(end, rules, avoided) or self._found(end, rules, avoided)
        if not avoided:
            self._chosen[rules, end] = found
        return found

    def _ordered(self, end: NodeId, rules: Rules, avoided: Collection[LinkId]) -> tuple[NodeId, ...] | None:
        """A controller's route, while nothing speaks against it."""
        away = self._links_from(DOUBTFUL) | frozenset(avoided)
        for node in rules.avoid - {self._node, end}:
            away |= {link.id for link in self._topology.links_of(node)}
        found = self._handed(end, away)
        is_long = found is not None and rules.hops_max is not None and len(found) - 1 > rules.hops_max
        return None if is_long else found

    def _found(self, end: NodeId, rules: Rules, avoided: Collection[LinkId]) -> tuple[NodeId, ...]:
        """A route of the node's own."""
        last = self._graph.index.get(end)
        costs = self._closed(avoided) if avoided else self._prices()
        if last is None or (row := self._best(last, rules, costs, is_kept=not avoided)) is None:
            how = f" that avoids {', '.join(sorted([*avoided, *rules.avoid]))}" if avoided or rules.avoid else ""
            most = f" of at most {rules.hops_max} hops" if rules.hops_max is not None else ""
            raise RouteUnavailable(f"no route from {self._node} to {end}{most}{how}")
        best = tuple(self._graph.nodes[place] for place in row)
        if avoided:
            return best
        kept = self._chosen.get((rules, end))
        if kept is None or self.cost(kept) > (1.0 + STICKINESS) * self.cost(best):
            return best
        return kept

    def all_routes(self, rules: Rules | None = None) -> dict[NodeId, tuple[NodeId, ...]]:
        """The cheapest routes to all nodes that can be reached, without regard to what was used before."""
        rules = rules or Rules()
        _, before = self._tree(rules.avoid, self._prices(), is_kept=True)
        found: dict[int, tuple[NodeId, ...]] = {self._start: (self._node,)}
        for last in range(len(self._graph.nodes)):
            row = []
            place = last
            while place not in found and place >= 0:
                row.append(place)
                place = int(before[place])
            for place_after in reversed(row) if place >= 0 else ():
                found[place_after] = (*found[int(before[place_after])], self._graph.nodes[place_after])
        return {row[-1]: row for row in found.values()}

    def cost(self, nodes: Iterable[NodeId]) -> float:
        """What a route costs now, in hops; infinite where it is none."""
        costs, row = self._prices(), [self._graph.index[node] for node in nodes]
        return float(sum(costs[self._graph.arc(a, b)] for a, b in pairwise(row)))

    def is_sound(self, nodes: Iterable[NodeId]) -> bool:
        """Whether all of a route can carry key now and is neither drained nor in doubt."""
        return self._worst(nodes) == 0.0

    def is_open(self, nodes: Iterable[NodeId]) -> bool:
        """Whether all of a route can carry key now, whatever else speaks against it."""
        return self._worst(nodes) < DOWN

    def in_use(self) -> list[tuple[Rules, tuple[NodeId, ...]]]:
        """The routes that were asked for and are kept."""
        return [(rules, nodes) for (rules, _), nodes in self._chosen.items()]

    def as_json(self) -> list[dict[str, object]]:
        """The routes in use, for status."""
        return [
            {
                "nodes": list(nodes),
                "avoid": sorted(rules.avoid),
                "hops_max": rules.hops_max,
                "cost": round(self.cost(nodes), 3),
                "is_sound": self.is_sound(nodes),
            }
            for rules, nodes in self.in_use()
        ]

    def _worst(self, nodes: Iterable[NodeId]) -> float:
        flaws, row = self._against(), [self._graph.index[node] for node in nodes]
        return max((float(flaws[self._graph.arc(a, b)]) for a, b in pairwise(row)), default=0.0)

    def _prices(self) -> Costs:
        if self._costs is None:
            graph = self._graph
            self._costs = graph.base + self._scarcity + self._claimed + self._against()
        return self._costs

    def _against(self) -> Costs:
        """What speaks against each arc, of either end of its link."""
        return np.maximum(self._flaws, self._flaws[self._graph.reverse]) + self._drain

    def _best(self, last: int, rules: Rules, costs: Costs, *, is_kept: bool) -> list[int] | None:
        _, before = self._tree(rules.avoid, costs, is_kept=is_kept)
        row = [last]
        while row[-1] != self._start:
            place = int(before[row[-1]])
            if place < 0:
                return None
            row.append(place)
        if rules.hops_max is not None and len(row) - 1 > rules.hops_max:
            return self._within(last, rules, costs)
        return row[::-1]

    def _tree(self, avoid: frozenset[NodeId], costs: Costs, *, is_kept: bool) -> tuple[Costs, Arcs]:
        """One search; kept for the next question where nothing is avoided just now."""
        found = self._trees.get(avoid) if is_kept else None
        if found is None:
            if avoid:
                costs = costs.copy()
                self._graph.close_passage(costs, avoid, self._start)
            found = self._graph.cheapest(costs, self._start)
            if is_kept:
                self._trees[avoid] = found
        return found

    def _within(self, last: int, rules: Rules, costs: Costs) -> list[int] | None:
        """The cheapest row of at most so many hops (R. Bellman, Quart. Appl. Math. 16 (1958) 87); None: there is none.

        Costs are above zero, so none of its nodes comes twice.
        """
        assert rules.hops_max is not None
        graph = self._graph
        costs = costs.copy()
        graph.close_passage(costs, rules.avoid, self._start)
        layers: list[NDArray[np.float64]] = [np.full(len(graph.nodes), np.inf)]
        layers[0][self._start] = 0.0
        for _ in range(rules.hops_max):
            after = layers[-1].copy()
            np.minimum.at(after, graph.heads, layers[-1][graph.tails] + costs)
            layers.append(after)
        if not np.isfinite(layers[-1][last]):
            return None
        row = [last]
        for layer, before in zip(reversed(layers[1:]), reversed(layers[:-1]), strict=True):
            place = row[-1]
            if before[place] > layer[place]:
                into = np.flatnonzero(graph.heads == place)
                row.append(int(graph.tails[into[np.argmin(before[graph.tails[into]] + costs[into])]]))
        return row[::-1]
