"""Routes: fewest sites to trust first, then least fibre, around what is out of use."""

import pytest

from qtrunk.base.errors import RouteUnavailable
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.relay.route import links_of, route
from qtrunk.topology import Link, Node, Topology, link_id, trunk


def network(*spans):
    names = sorted({end for a, b, _ in spans for end in (a, b)})
    links = tuple(
        Link(id=link_id(NodeId(a), NodeId(b)), alice=NodeId(a), bob=NodeId(b), length_km=km, loss_db=1.0)
        for a, b, km in spans
    )
    return Topology(name="t", nodes=tuple(Node(id=NodeId(name)) for name in names), links=links)


def way(topology, start, end, *without):
    return "".join(route(topology, NodeId(start), NodeId(end), [LinkId(link) for link in without]))


def test_a_site_less_to_trust_is_worth_any_length_of_fibre():
    topology = network(("a", "b", 1), ("b", "c", 1), ("a", "c", 2000))
    assert way(topology, "a", "c") == "ac"


def test_of_two_ways_with_as_many_sites_the_shorter_is_taken():
    topology = network(("a", "b", 50), ("b", "d", 50), ("a", "c", 49), ("c", "d", 50))
    assert way(topology, "a", "d") == "acd"
    assert way(topology, "d", "a") == "dca"


def test_links_out_of_use_are_avoided():
    topology = network(("a", "b", 50), ("b", "d", 50), ("a", "c", 49), ("c", "d", 50))
    assert way(topology, "a", "d", "c-d") == "abd"


def test_no_way_at_all_is_said_with_what_was_avoided():
    topology = trunk("t", [Node(id=NodeId(name)) for name in "abc"], [(1, 1), (1, 1)])
    with pytest.raises(RouteUnavailable, match="from a to c that avoids b-c"):
        way(topology, "a", "c", "b-c")


def test_a_node_that_is_not_there_has_no_route():
    topology = network(("a", "b", 1))
    with pytest.raises(RouteUnavailable, match="from a to z"):
        way(topology, "a", "z")


def test_a_node_reaches_itself_over_no_link():
    topology = network(("a", "b", 1))
    assert way(topology, "a", "a") == "a"
    assert links_of(topology, [NodeId("a")]) == ()


def test_the_links_of_a_route_are_found_in_both_directions():
    topology = network(("a", "b", 1), ("b", "c", 1))
    assert links_of(topology, [NodeId(name) for name in "abc"]) == ("a-b", "b-c")
    assert links_of(topology, [NodeId(name) for name in "cba"]) == ("b-c", "a-b")
