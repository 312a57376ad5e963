"""Disjoint routes: as many as there are, no node in common, and none cheaper in sum (against networkx's flows)."""

from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrunk.base.errors import RouteUnavailable
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.relay.route import disjoint_routes
from qtrunk.topology import Link, Node, Topology, link_id, ring, trunk


def network(*spans):
    names = sorted({end for a, b, _ in spans for end in (a, b)})
    links = tuple(
        Link(id=link_id(NodeId(a), NodeId(b)), alice=NodeId(a), bob=NodeId(b), length_km=km, loss_db=1.0)
        for a, b, km in spans
    )
    return Topology(name="t", nodes=tuple(Node(id=NodeId(name)) for name in names), links=links)


def ways(topology, start, end, n, **conditions):
    return ["".join(row) for row in disjoint_routes(topology, NodeId(start), NodeId(end), n, **conditions)]


def ring_of(names):
    return ring("r", [Node(id=NodeId(name)) for name in names], [(10, 3)] * len(names))


def test_a_ring_has_two_the_shorter_first():
    assert ways(ring_of("abcde"), "a", "c", 2) == ["abc", "aedc"]
    assert ways(ring_of("abcde"), "a", "b", 2) == ["ab", "aedcb"]


def test_a_row_has_one_and_the_refusal_says_so():
    topology = trunk("t", [Node(id=NodeId(name)) for name in "abc"], [(1, 1), (1, 1)])
    assert ways(topology, "a", "c", 1) == ["abc"]
    with pytest.raises(RouteUnavailable, match="2 disjoint routes from a to c: only 1"):
        ways(topology, "a", "c", 2)
    with pytest.raises(RouteUnavailable, match="only 0"):
        ways(topology, "a", "c", 1, without=[LinkId("a-b")])


def test_a_later_route_takes_back_a_step_of_the_first():
    # The shortest, a-b-c-d, passes both nodes that the two disjoint ones need.
    topology = network(("a", "b", 1), ("b", "c", 1), ("c", "d", 1), ("a", "e", 1), ("e", "c", 1), ("b", "f", 1))
    topology = network(
        *((link.alice, link.bob, link.length_km) for link in topology.links), ("f", "g", 1), ("g", "d", 1)
    )
    assert ways(topology, "a", "d", 1) == ["abcd"] or ways(topology, "a", "d", 1) == ["aecd"]
    assert sorted(ways(topology, "a", "d", 2)) == ["abfgd", "aecd"]


def test_what_may_not_be_passed_may_still_be_an_end():
    topology = ring_of("abcde")
    assert ways(topology, "a", "c", 1, avoid=[NodeId("b"), NodeId("a"), NodeId("c")]) == ["aedc"]
    with pytest.raises(RouteUnavailable):
        ways(topology, "a", "c", 2, avoid=[NodeId("e")])


def test_prices_are_of_one_direction():
    topology = ring_of("abcd")
    prices = {(NodeId("a"), LinkId("a-b")): 1.0}
    assert ways(topology, "a", "c", 1, prices=prices) == ["adc"]
    assert ways(topology, "c", "a", 1, prices={(NodeId("c"), LinkId("c-d")): 1.0}) == ["cba"]
    assert ways(topology, "b", "a", 1, prices=prices) == ["ba"]


def test_nonsense_is_refused():
    topology = ring_of("abcd")
    for start, end, n in (("a", "a", 1), ("a", "c", 0), ("a", "z", 1), ("z", "a", 1)):
        with pytest.raises(RouteUnavailable):
            ways(topology, start, end, n)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_there_is_no_cheaper_set(data):
    size = data.draw(st.integers(3, 9))
    names = [f"n{number}" for number in range(size)]
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    chosen = data.draw(st.lists(st.sampled_from(pairs), min_size=2, max_size=20, unique=True))
    kms = data.draw(st.lists(st.integers(1, 200), min_size=len(chosen), max_size=len(chosen)))
    links = tuple(
        Link(id=link_id(NodeId(a), NodeId(b)), alice=NodeId(a), bob=NodeId(b), length_km=float(km), loss_db=1.0)
        for (a, b), km in zip(chosen, kms, strict=True)
    )
    topology = Topology(name="t", nodes=tuple(Node(id=NodeId(name)) for name in names), links=links)
    weight = {frozenset(pair): 1_000_000 + km for pair, km in zip(chosen, kms, strict=True)}
    flow = nx.DiGraph()
    for name in names:
        flow.add_edge((name, "in"), (name, "out"), weight=0, capacity=1)
    for a, b in chosen:
        for tail, head in ((a, b), (b, a)):
            flow.add_edge((tail, "out"), (head, "in"), weight=weight[frozenset((tail, head))], capacity=1)
    source, sink = (names[0], "out"), (names[-1], "in")
    most = nx.maximum_flow_value(flow, source, sink)
    for n in range(1, most + 1):
        found = disjoint_routes(topology, NodeId(names[0]), NodeId(names[-1]), n)
        assert len(found) == n
        inner = [node for row in found for node in row[1:-1]]
        assert len(inner) == len(set(inner))
        assert all(row[0] == names[0] and row[-1] == names[-1] for row in found)
        cost = sum(weight[frozenset(hop)] for row in found for hop in pairwise(row))
        flow.add_edge("super", source, weight=0, capacity=n)
        assert cost == nx.cost_of_flow(flow, nx.max_flow_min_cost(flow, "super", sink))
        flow.remove_node("super")
    with pytest.raises(RouteUnavailable):
        disjoint_routes(topology, NodeId(names[0]), NodeId(names[-1]), most + 1)
