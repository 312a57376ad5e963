"""Routes over the network as its file has it: fewest hops, weighed by trust, then least fibre.

What routes a node uses, by what is known of every link now, says `relay.routing`.
"""

from collections.abc import Collection, Iterable
from itertools import pairwise

from qtrunk.base.errors import RouteUnavailable
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.relay.disjoint import disjoint_routes
from qtrunk.relay.graph import graph_of
from qtrunk.topology import Topology

__all__ = ["disjoint_routes", "links_of", "route"]


def route(
    topology: Topology,
    start: NodeId,
    end: NodeId,
    without: Collection[LinkId] = (),
    avoid: Collection[NodeId] = (),
) -> tuple[NodeId, ...]:
    """Nodes from `start` to `end`, over none of the links `without`, through none of the nodes `avoid`;
    RouteUnavailable where there is no way.
    """
    graph = graph_of(topology)
    first, last = graph.index.get(start), graph.index.get(end)
    if first is not None and last is not None:
        costs = graph.costs(without)
        graph.close_passage(costs, avoid, first)
        _, before = graph.cheapest(costs, first)
        row = [last]
        while row[-1] != first and before[row[-1]] >= 0:
            row.append(int(before[row[-1]]))
        if row[-1] == first:
            return tuple(graph.nodes[place] for place in reversed(row))
    avoided = f" that avoids {', '.join(sorted([*without, *avoid]))}" if without or avoid else ""
    raise RouteUnavailable(f"no route from {start} to {end}{avoided}")


def links_of(topology: Topology, nodes: Iterable[NodeId]) -> tuple[LinkId, ...]:
    """The links along a route."""
    row = list(nodes)
    return tuple(topology.link_between(a, b).id for a, b in pairwise(row))
