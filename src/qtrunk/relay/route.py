"""Routes over the network: fewest hops, then least fibre; around links that cannot carry key."""

from collections.abc import Collection, Iterable
from itertools import pairwise

import networkx as nx

from qtrunk.base.errors import RouteUnavailable
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.topology import Topology

_HOP_WEIGHT = 1e6
"""One hop outweighs any length of fibre: each hop is one more site to trust."""


def graph(topology: Topology, without: Collection[LinkId] = ()) -> "nx.Graph[NodeId]":
    """The network without some links."""
    made: nx.Graph[NodeId] = nx.Graph()
    made.add_nodes_from(node.id for node in topology.nodes)
    for link in topology.links:
        if link.id not in without:
            made.add_edge(link.alice, link.bob, weight=_HOP_WEIGHT + link.length_km)
    return made


def route(topology: Topology, start: NodeId, end: NodeId, without: Collection[LinkId] = ()) -> tuple[NodeId, ...]:
    """Nodes from `start` to `end`; RouteUnavailable where there is no way."""
    try:
        return tuple(nx.shortest_path(graph(topology, without), start, end, weight="weight"))
    except (nx.NetworkXNoPath, nx.NodeNotFound) as error:
        avoided = f" that avoids {', '.join(sorted(without))}" if without else ""
        raise RouteUnavailable(f"no route from {start} to {end}{avoided}") from error


def links_of(topology: Topology, nodes: Iterable[NodeId]) -> tuple[LinkId, ...]:
    """The links along a route."""
    row = list(nodes)
    return tuple(topology.link_between(a, b).id for a, b in pairwise(row))
