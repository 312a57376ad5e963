"""Routes that share no relay node, the cheapest such set: for secret sharing, and for protection.

Successive shortest paths with potentials over the graph whose nodes are split in two (J. W. Suurballe, Networks 4
(1974) 125; J. W. Suurballe and R. E. Tarjan, Networks 14 (1984) 325): a node passes one route, and a later route may
take back a step of an earlier one. The sum of the costs is the least there is; the best route alone need not be in it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtrunk.base.errors import RouteUnavailable
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.relay.graph import CLOSED, Arcs, Costs, Graph, cheapest, graph_of
from qtrunk.topology import Topology


def disjoint_routes(
    topology: Topology,
    start: NodeId,
    end: NodeId,
    n: int,
    without: Collection[LinkId] = (),
    avoid: Collection[NodeId] = (),
    prices: Mapping[tuple[NodeId, LinkId], float] | None = None,
) -> tuple[tuple[NodeId, ...], ...]:
    """`n` routes with no node in common but their ends, the least in sum, the cheapest first.

    `without` are links, `avoid` nodes that no route may pass; `prices` as `relay.graph.Graph.costs`. RouteUnavailable
    where there are fewer; the text says how many there are.
    """
    if n < 1 or start == end:
        raise RouteUnavailable(f"{n} disjoint routes from {start} to {end}: at least one, between two nodes")
    graph = graph_of(topology)
    if start not in graph.index or end not in graph.index:
        raise RouteUnavailable(f"no route from {start} to {end}: both must be nodes of the network")
    costs = graph.costs(without, prices)
    graph.close_passage(costs, avoid, graph.index[start])
    return cheapest_set(graph, costs, start, end, n)


def cheapest_set(graph: Graph, costs: Costs, start: NodeId, end: NodeId, n: int) -> tuple[tuple[NodeId, ...], ...]:
    """`disjoint_routes` under these costs of all arcs; both ends must be in the graph."""
    ends = (graph.index[start], graph.index[end])
    found = _flow(_Split.of(graph, costs, ends), n)
    if len(found) < n:
        raise RouteUnavailable(f"{n} disjoint routes from {start} to {end}: only {len(found)} there now")
    return tuple(tuple(graph.nodes[place] for place in row) for row in found)


@dataclass(slots=True, eq=False)
class _Split:
    """The residual graph: node i is 2 i where routes come in and 2 i + 1 where they leave; each arc has its reverse."""

    source: int
    sink: int
    starts: Arcs
    tails: Arcs
    heads: Arcs
    costs: Costs
    """Of use in arc direction; the reverse of an arc gives its cost back."""
    reverse: Arcs
    is_open: NDArray[np.bool_]
    is_forward: NDArray[np.bool_]

    @staticmethod
    def of(graph: Graph, costs: Costs, ends: tuple[int, int]) -> "_Split":
        """Nothing passes the two ends."""
        count = len(graph.nodes)
        passing = np.array([node for node in range(count) if node not in ends], dtype=np.int32)
        tails = np.concatenate([2 * graph.tails + 1, 2 * passing])
        heads = np.concatenate([2 * graph.heads, 2 * passing + 1])
        forward = np.concatenate([costs, np.zeros(len(passing))])
        arcs = len(tails)
        # Every arc has its reverse behind it in the row of its head: no two arcs of the residual graph are parallel.
        all_tails, all_heads = np.concatenate([tails, heads]), np.concatenate([heads, tails])
        order = np.lexsort((all_heads, all_tails))
        places = np.empty(2 * arcs, dtype=np.int64)
        places[order] = np.arange(2 * arcs)
        return _Split(
            source=2 * ends[0] + 1,
            sink=2 * ends[1],
            starts=np.searchsorted(all_tails[order], np.arange(2 * count + 1)).astype(np.int32),
            tails=all_tails[order].astype(np.int32),
            heads=all_heads[order].astype(np.int32),
            costs=np.concatenate([forward, -forward])[order],
            reverse=places[(order + arcs) % (2 * arcs)].astype(np.int32),
            is_open=np.concatenate([np.isfinite(forward), np.zeros(arcs, dtype=bool)])[order],
            is_forward=np.concatenate([np.ones(arcs, dtype=bool), np.zeros(arcs, dtype=bool)])[order],
        )

    def arc(self, tail: int, head: int) -> int:
        """The one arc from `tail` to `head`."""
        row = self.heads[self.starts[tail] : self.starts[tail + 1]]
        return int(self.starts[tail] + np.searchsorted(row, head))


def _flow(split: _Split, n: int) -> list[list[int]]:
    """Up to `n` rows of nodes."""
    size = len(split.starts) - 1
    potentials = np.zeros(size)
    used: set[int] = set()
    for _ in range(n):
        # With these potentials no open arc costs less than nothing, but for lost digits.
        reduced = split.costs + potentials[split.tails] - potentials[split.heads]
        weights = np.where(split.is_open, np.maximum(reduced, 0.0), CLOSED)
        distances, before = cheapest(weights, split.heads, split.starts, split.source)
        if not np.isfinite(distances[split.sink]):
            break
        potentials += np.minimum(distances, distances[split.sink])
        head = split.sink
        while head != split.source:
            arc = split.arc(int(before[head]), head)
            back = int(split.reverse[arc])
            split.is_open[arc], split.is_open[back] = False, True
            used ^= {arc} if split.is_forward[arc] else {back}
            head = int(before[head])
    return _rows(split, used)


def _rows(split: _Split, used: set[int]) -> list[list[int]]:
    """The used arcs, put together to rows of nodes; the cheapest first."""
    onward = {int(split.tails[arc]): arc for arc in used if split.tails[arc] != split.source}
    rows: list[tuple[float, list[int]]] = []
    for first in sorted(arc for arc in used if split.tails[arc] == split.source):
        row, cost, arc = [split.source // 2], 0.0, first
        while True:
            cost += float(split.costs[arc])
            head = int(split.heads[arc])
            if head % 2 == 0:
                row.append(head // 2)
            if head == split.sink:
                break
            arc = onward[head]
        rows.append((cost, row))
    return [row for _, row in sorted(rows)]
