"""The network as arrays, for the graph algorithms of scipy.sparse.csgraph; made once for each set of nodes and links.

An arc is one direction of a link: key lies in two directions, and each has its own level. Costs are in hops: one hop
costs one site to trust and one octet of link key for each octet relayed. To go into a node that is trusted half as much
counts as two hops.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from qtrunk.base.ids import LinkId, NodeId
from qtrunk.topology import Topology

KM_COST = 1e-6
"""Of a kilometre of fibre, in hops: it only decides among routes that cost the same otherwise."""
CLOSED = np.inf
"""The cost of an arc that may not be used."""
_CACHED = 16
Costs = NDArray[np.float64]
Arcs = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """All arcs, sorted by tail, then head (compressed sparse rows)."""

    nodes: tuple[NodeId, ...]
    index: dict[NodeId, int]
    starts: Arcs
    """shape (nodes + 1,): the arcs of node i are starts[i] to starts[i + 1]."""
    tails: Arcs
    heads: Arcs
    arcs: dict[LinkId, tuple[int, int]]
    """From Alice, from Bob."""
    base: Costs
    """What each arc costs with nothing against it."""
    reverse: Arcs
    """The other direction of each arc's link."""
    _between: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)
    """Arcs that were asked for, by their ends."""

    def costs(
        self,
        without: Collection[LinkId] = (),
        prices: Mapping[tuple[NodeId, LinkId], float] | None = None,
    ) -> Costs:
        """Costs of all arcs: closed links, and what use of a direction (its sender, its link) costs more."""
        costs = self.base.copy()
        for (sender, link), price in (prices or {}).items():
            arcs = self.arcs.get(link)
            if arcs is not None:
                costs[arcs[0] if self.tails[arcs[0]] == self.index.get(sender) else arcs[1]] += price
        for link in without:
            if link in self.arcs:
                costs[list(self.arcs[link])] = CLOSED
        return costs

    def arc(self, tail: int, head: int) -> int:
        """The arc from one node to its neighbour."""
        found = self._between.get((tail, head))
        if found is None:
            row = self.heads[self.starts[tail] : self.starts[tail + 1]]
            found = self._between[tail, head] = int(self.starts[tail] + np.searchsorted(row, head))
        return found

    def close_passage(self, costs: Costs, avoid: Iterable[NodeId], start: int) -> None:
        """Nothing passes these nodes: they may begin or end a route, no more."""
        for node in avoid:
            place = self.index.get(node)
            if place is not None and place != start:
                costs[self.starts[place] : self.starts[place + 1]] = CLOSED

    def cheapest(self, costs: Costs, start: int) -> tuple[Costs, Arcs]:
        """`cheapest` from one node."""
        return cheapest(costs, self.heads, self.starts, start)


def cheapest(costs: Costs, heads: Arcs, starts: Arcs, source: int) -> tuple[Costs, Arcs]:
    """What the cheapest way from `source` to each node costs, and the node before it there (negative: none).

    Arcs as in `Graph`; explicit zeros count, a cost of infinity closes an arc.
    """
    count = len(starts) - 1
    matrix = csr_array((costs, heads, starts), shape=(count, count))
    distances, before = dijkstra(matrix, directed=True, indices=np.array([source]), return_predecessors=True)
    return distances[0], before[0]


_graphs: dict[tuple[int, int], tuple[object, Graph]] = {}
"""By identity of nodes and links: to compare or hash them looks at all of them. An entry keeps both alive, hence their
IDs. Not by the topology itself: a running node's changes."""


def graph_of(topology: Topology) -> Graph:
    """The graph of a topology, made once."""
    key = (id(topology.nodes), id(topology.links))
    found = _graphs.get(key)
    if found is None:
        while len(_graphs) >= _CACHED:
            del _graphs[next(iter(_graphs))]
        found = _graphs[key] = ((topology.nodes, topology.links), _made(topology))
    return found[1]


def _made(topology: Topology) -> Graph:
    nodes = tuple(node.id for node in topology.nodes)
    index = {node: place for place, node in enumerate(nodes)}
    ends = np.array([(index[link.alice], index[link.bob]) for link in topology.links], dtype=np.int32).reshape(-1, 2)
    km = np.array([link.length_km for link in topology.links], dtype=np.float64)
    trust = np.array([node.trust for node in topology.nodes], dtype=np.float64)
    tails, heads = np.concatenate([ends[:, 0], ends[:, 1]]), np.concatenate([ends[:, 1], ends[:, 0]])
    order = np.lexsort((heads, tails))
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    count = len(topology.links)
    return Graph(
        nodes=nodes,
        index=index,
        starts=np.searchsorted(tails[order], np.arange(len(nodes) + 1)).astype(np.int32),
        tails=tails[order],
        heads=heads[order],
        arcs={
            link.id: (int(places[number]), int(places[number + count])) for number, link in enumerate(topology.links)
        },
        base=(1.0 / trust[heads] + KM_COST * np.concatenate([km, km]))[order],
        reverse=places[(order + count) % max(1, 2 * count)].astype(np.int32),
    )
