"""The network as a graph: what is looked up is found, and JSON carries it unchanged."""

import json
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrunk.base.ids import NodeId, SaeId
from qtrunk.topology import Demand, Node, Sae, Topology, ring, trunk

NODES = [Node(id=NodeId(name), name=name.upper()) for name in "abcd"]
FINITE = st.floats(min_value=0, allow_nan=False, allow_infinity=False)


def with_people(topology):
    saes = (Sae(id=SaeId("alfa"), node=NodeId("a")), Sae(id=SaeId("bravo"), node=NodeId("d")))
    demands = (Demand(between=(SaeId("alfa"), SaeId("bravo")), rate_bps=256.0),)
    return Topology(
        name=topology.name,
        title="a title, 标题",
        nodes=topology.nodes,
        links=topology.links,
        saes=saes,
        demands=demands,
    )


def test_a_trunk_joins_neighbours_only():
    topology = trunk("t", NODES, [(10, 2.1), (20, 4.2), (30, 6.3)])
    assert [(link.id, link.alice, link.bob) for link in topology.links] == [
        ("a-b", "a", "b"),
        ("b-c", "b", "c"),
        ("c-d", "c", "d"),
    ]
    assert [link.id for link in topology.links_of(NodeId("b"))] == ["a-b", "b-c"]
    with pytest.raises(KeyError):
        topology.link_between(NodeId("a"), NodeId("d"))


def test_a_ring_is_a_trunk_that_comes_back():
    topology = ring("t", NODES, [(10, 2), (20, 4), (30, 6), (40, 8)])
    assert [link.id for link in topology.links] == ["a-b", "b-c", "c-d", "d-a"]
    assert topology.link_between(NodeId("a"), NodeId("d")).length_km == 40


@pytest.mark.parametrize("count", [2, 4])
def test_spans_that_are_too_few_or_too_many_are_refused(count):
    with pytest.raises(ValueError, match="zip"):
        trunk("t", NODES, [(10, 2)] * count)


def test_a_link_is_found_from_both_ends_and_knows_the_other():
    topology = trunk("t", NODES, [(10, 2)] * 3)
    link = topology.link_between(NodeId("c"), NodeId("b"))
    assert link is topology.link(link.id)
    assert (link.other(NodeId("b")), link.other(NodeId("c"))) == ("c", "b")


def test_what_is_not_there_is_not_found():
    topology = with_people(trunk("t", NODES, [(10, 2)] * 3))
    assert topology.sae(SaeId("zulu")) is None
    assert topology.sae(SaeId("bravo")).node == "d"
    for look_up in (topology.node, topology.link):
        with pytest.raises(KeyError):
            look_up("z")


def test_equipment_goes_to_every_link():
    topology = trunk("t", NODES, [(10, 2)] * 3, clock_fraction=0.25)
    assert {link.equipment.clock_fraction for link in topology.links} == {0.25}


@given(spans=st.lists(st.tuples(FINITE, FINITE), min_size=3, max_size=3), block_s=FINITE, rate_bps=FINITE)
def test_json_carries_a_network_unchanged(spans, block_s, rate_bps):
    made = with_people(trunk("t", NODES, spans, block_s=block_s))
    made = replace(made, demands=(replace(made.demands[0], rate_bps=rate_bps),))
    back = Topology.from_dict(json.loads(json.dumps(made.to_dict())))
    assert back == made
    assert back.link_between(NodeId("a"), NodeId("b")) == made.links[0]


@pytest.mark.parametrize("wrong", [{}, {"name": 3}, {"name": "t", "nodes": [{"name": "no id"}]}])
def test_what_is_no_network_is_refused(wrong):
    with pytest.raises(msgspec.ValidationError):
        Topology.from_dict(wrong)
