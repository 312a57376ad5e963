"""One cut fibre, one dead node: one root, everything that follows folded in, and nothing else."""

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.control.catalogue import CATALOGUE
from qtrunk.control.rootcause import WINDOW_S, Correlation, Seen, node_resource, pool_resource
from qtrunk.topology import Demand, Link, Node, Sae, Tenant, Topology


def network(edges, saes=()):
    names = sorted({name for edge in edges for name in edge})
    return Topology(
        name="t",
        nodes=tuple(Node(id=NodeId(name)) for name in names),
        links=tuple(
            Link(id=LinkId(f"{a}-{b}"), alice=NodeId(a), bob=NodeId(b), length_km=10, loss_db=3) for a, b in edges
        ),
        saes=tuple(Sae(id=SaeId(f"sae-{node}"), node=NodeId(node)) for node in saes),
        demands=(Demand(between=(SaeId(f"sae-{saes[0]}"), SaeId(f"sae-{saes[-1]}")), rate_bps=1.0),) if saes else (),
        tenants=(Tenant(id="bank", saes=("sae-*",)),),
    )


def correlation(topology):
    graph = nx.Graph((link.alice, link.bob) for link in topology.links)
    return Correlation(topology, lambda a, b: nx.shortest_path(graph, a, b))


TRUNK = network(["ab", "bc", "cd"], "ad")
RING = network(["ab", "bc", "cd", "de", "ea"], "ac")


def cut(link, at_s=100.0):
    """What both ends of a cut link and pools over it say, in the order in which it is found."""
    a, b = link.split("-")
    return [
        Seen(b, link, "ClassicalChannelLoss", at_s - 2),
        Seen(a, link, "ClassicalChannelLoss", at_s - 1),
        Seen(a, link, "LinkOff", at_s),
        Seen(b, link, "LinkOff", at_s),
        Seen(b, link, "QuantumChannelLoss", at_s + 4),
        Seen(a, link, "QuantumChannelLoss", at_s + 5),
        Seen(a, link, "SkrBelowPlan", at_s + 60),
        Seen(b, link, "AuthenticationKeyLow", at_s + 90),
    ]


def test_a_cut_is_one_root_and_everything_else_is_below_it():
    pool = pool_resource("sae-a", "sae-d")
    alarms = [
        *cut("b-c"),
        Seen("a", pool, "PoolLow", 400.0),
        Seen("a", pool, "QkdKeyFallback", 600.0),
        Seen("a", node_resource("c"), "RelayUnreachable", 112.0),
        Seen("a", node_resource("d"), "RelayUnreachable", 112.0),
        Seen("d", node_resource("a"), "RelayUnreachable", 112.0),
    ]
    trees = correlation(TRUNK).trees(alarms)
    # Both ends see the dark fibre; the second report of the same thing is below the first.
    assert [(tree.alarm.type, tree.alarm.resource) for tree in trees] == [("QuantumChannelLoss", "b-c")]
    assert sum(1 + tree.count() for tree in trees) == len(alarms)


def test_what_is_elsewhere_or_was_there_before_keeps_its_own_root():
    elsewhere = Seen("c", "c-d", "QberRising", 110.0)
    before = Seen("a", pool_resource("sae-a", "sae-d"), "PoolLow", 97.0 - WINDOW_S)
    disk = Seen("b", "store", "StorageFull", 110.0)
    trees = correlation(TRUNK).trees([*cut("b-c"), elsewhere, before, disk])
    roots = {tree.alarm for tree in trees}
    assert {elsewhere, before, disk} <= roots


def test_a_pool_whose_route_does_not_pass_the_cut_has_its_own_root():
    pool = Seen("a", pool_resource("sae-a", "sae-c"), "PoolLow", 120.0)
    roots = {tree.alarm for tree in correlation(RING).trees([*cut("c-d"), pool])}
    assert pool in roots
    roots = {tree.alarm for tree in correlation(RING).trees([*cut("b-c"), pool])}
    assert pool not in roots


def lost(node, links, at_s=100.0):
    return [
        Seen(link.replace(node, "").strip("-"), link, "ClassicalChannelLoss", at_s + place)
        for place, link in enumerate(links)
    ]


def test_a_dead_node_is_one_root_with_all_that_its_neighbours_say():
    found = correlation(RING)
    alarms = [*lost("b", ["a-b", "b-c"]), Seen("d", node_resource("b"), "RelayUnreachable", 110.0)]
    alarms.append(Seen("a", pool_resource("sae-a", "sae-c"), "PoolCritical", 300.0))
    dead = found.find_dead(alarms, {"b"}, 120.0)
    assert [(one.resource, one.type) for one in dead] == [("node b", "NodeUnreachable")]
    trees = found.trees([*alarms, *dead])
    assert [tree.alarm for tree in trees] == dead
    assert trees[0].count() == len(alarms)


@pytest.mark.parametrize(("links", "silent"), [(["a-b"], {"b"}), (["a-b", "b-c"], set()), (["a-b", "b-c"], {"a", "b"})])
def test_a_node_is_not_called_dead_without_every_living_neighbours_word(links, silent):
    assert "node b" not in {one.resource for one in correlation(RING).find_dead(lost("b", links), silent, 120.0)}


def test_a_leaf_behind_a_cut_is_not_called_dead():
    assert correlation(TRUNK).find_dead(lost("a", ["a-b"]), {"a"}, 120.0) == []


def test_two_cuts_at_once_are_two_roots():
    trees = correlation(RING).trees([*cut("a-b"), *cut("c-d", 103.0)])
    assert [(tree.alarm.type, tree.alarm.resource) for tree in trees] == [
        ("QuantumChannelLoss", "a-b"),
        ("QuantumChannelLoss", "c-d"),
    ]


def test_a_node_that_nobody_hears_with_an_open_way_to_it_is_a_root_of_its_own():
    unheard = Seen("a", node_resource("c"), "RelayUnreachable", 110.0)
    assert unheard in {tree.alarm for tree in correlation(RING).trees([*cut("b-c"), unheard])}
    both = [*cut("b-c"), *cut("c-d", 101.0), unheard]
    assert unheard not in {tree.alarm for tree in correlation(RING).trees(both)}


def test_impact_names_pools_and_tenants():
    found = correlation(TRUNK)
    assert found.impact("b-c", [("sae-a", "sae-d")]) == ["pool sae-a to sae-d", "tenant bank"]
    assert found.impact("node c", [("sae-a", "sae-d")]) == ["pool sae-a to sae-d", "tenant bank"]
    assert found.impact("e-f", [("sae-a", "sae-d")]) == []
    assert found.impact("pool sae-a to sae-d", [("sae-a", "sae-d")]) == ["tenant bank"]


RESOURCES = ["a-b", "b-c", "c-d", "node b", "node c", "store", "pool sae-a to sae-c", "pool x to y", "nonsense"]


@given(
    st.lists(
        st.builds(
            Seen,
            st.sampled_from("abcde"),
            st.sampled_from(RESOURCES),
            st.sampled_from([*sorted(CATALOGUE), "Unheard"]),
            st.floats(0, 1000),
        ),
        unique_by=lambda one: (one.node, one.resource, one.type),
        max_size=30,
    )
)
def test_nothing_is_lost_doubled_or_its_own_cause(alarms):
    found = correlation(RING)
    trees = found.trees(alarms)
    assert sum(1 + tree.count() for tree in trees) == len(alarms)
    parents = found.parents(alarms)
    for child, parent in parents.items():
        assert parent.rank > child.rank or (parent.resource, parent.type) == (child.resource, child.type)
        assert parent.raised_unix_s <= child.raised_unix_s + WINDOW_S
