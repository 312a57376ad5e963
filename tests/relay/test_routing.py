"""A node's routes: by level, rate, trust and rules; steady, and around what fails."""

from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrunk.base.errors import RouteUnavailable
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.relay.prices import STEPS, LinkLevel, scarcity, step
from qtrunk.relay.routing import Routing, Rules
from qtrunk.topology import Link, LiveTopology, Node, Sae, Tenant, Topology, link_id, ring


def network(*spans, **trust):
    names = sorted({end for a, b, *_ in spans for end in (a, b)})
    links = tuple(
        Link(id=link_id(NodeId(a), NodeId(b)), alice=NodeId(a), bob=NodeId(b), length_km=float(km), loss_db=1.0)
        for a, b, km in spans
    )
    nodes = tuple(Node(id=NodeId(name), trust=trust.get(name, 1.0)) for name in names)
    return Topology(name="t", nodes=nodes, links=links)


SQUARE = network(("a", "b", 50), ("b", "d", 50), ("a", "c", 51), ("c", "d", 50))
FULL = 1 << 20


def level(link, octets=FULL, fill_bps=8000.0, *, is_usable=True, is_doubtful=False):
    return LinkLevel(link=LinkId(link), octets=octets, fill_bps=fill_bps, is_usable=is_usable, is_doubtful=is_doubtful)


def way(routing, end, *avoided, **rules):
    made = Rules(avoid=frozenset(rules.get("avoid", ())), hops_max=rules.get("hops_max"))
    return "".join(routing.route(NodeId(end), made, [LinkId(link) for link in avoided]))


def test_routes_move_to_where_there_is_key_and_stay_while_that_is_no_worse():
    routing = Routing(NodeId("a"), SQUARE)
    for node, links in (("a", ("a-b", "a-c")), ("b", ("b-d",)), ("c", ("c-d",))):
        routing.note(NodeId(node), [level(link) for link in links])
    assert way(routing, "d") == "abd"
    routing.note(NodeId("b"), [level("b-d", FULL // 64)])
    assert way(routing, "d") == "acd"
    routing.note(NodeId("b"), [level("b-d", FULL)])
    assert way(routing, "d") == "acd", "a kilometre is no reason to go back"
    routing.note(NodeId("c"), [level("c-d", FULL // 64)])
    assert way(routing, "d") == "abd"


def test_a_link_that_comes_later_is_used_when_both_ends_say_so_and_one_that_goes_never_again():
    live = LiveTopology(network(("a", "b", 50), ("b", "d", 50), ("d", "e", 50)))
    routing = Routing(NodeId("a"), live)
    for node, link in (("a", "a-b"), ("b", "b-d"), ("d", "d-e")):
        routing.note(NodeId(node), [level(link)])
    routing.note(NodeId("b"), [level("b-d", FULL // 64)])
    routing.drain(["e"])
    assert way(routing, "d") == "abd"
    before = routing.cost((NodeId("a"), NodeId("b"), NodeId("d")))
    live.adopt(network(("a", "b", 50), ("b", "d", 50), ("d", "e", 50), ("a", "d", 50)))
    routing.adopt()
    assert routing.cost((NodeId("a"), NodeId("b"), NodeId("d"))) == pytest.approx(before)
    assert way(routing, "d") == "abd"
    assert routing.down() == {"a-d"}
    routing.note(NodeId("a"), [level("a-d")])
    assert way(routing, "d") == "abd", "one end alone"
    routing.note(NodeId("d"), [level("a-d")])
    assert way(routing, "d") == "ad"
    assert routing.is_open((NodeId("d"), NodeId("e")))
    assert not routing.is_sound((NodeId("d"), NodeId("e")))
    live.adopt(network(("d", "e", 50), ("a", "d", 50)))
    routing.adopt()
    assert way(routing, "e") == "ade"
    with pytest.raises(RouteUnavailable):
        way(routing, "b")
    assert routing.note(NodeId("b"), [level("b-d", is_usable=False)]) == frozenset()


def test_a_longer_way_with_key_is_taken_before_a_short_one_without():
    routing = Routing(NodeId("a"), network(("a", "b", 1), ("a", "c", 1), ("c", "d", 1), ("d", "b", 1)))
    assert way(routing, "b") == "ab"
    routing.note(NodeId("a"), [level("a-b", 0), level("a-c")])
    assert way(routing, "b") == "acdb"
    assert way(routing, "b", hops_max=2) == "ab"


def test_the_other_direction_has_a_price_of_its_own():
    routing = Routing(NodeId("d"), SQUARE)
    routing.note(NodeId("b"), [level("b-d", 0)])
    assert way(routing, "a") == "dba"


def test_a_link_that_is_down_or_in_doubt_is_the_last_way_left_not_none():
    routing = Routing(NodeId("a"), SQUARE)
    assert way(routing, "d") == "abd"
    assert routing.note(NodeId("d"), [level("b-d", is_usable=False)]) == {"b-d"}
    assert routing.note(NodeId("d"), [level("b-d", is_usable=False)]) == frozenset(), "it is news once"
    assert way(routing, "d") == "acd"
    routing.note(NodeId("c"), [level("c-d", is_doubtful=True)])
    assert way(routing, "d") == "acd"
    assert not routing.is_sound(routing.route(NodeId("d")))
    routing.note(NodeId("c"), [level("c-d", is_usable=False)])
    routing.note(NodeId("d"), [level("b-d", is_doubtful=True)])
    assert way(routing, "d") == "abd"


def test_what_failed_just_now_is_never_used():
    routing = Routing(NodeId("a"), SQUARE)
    assert way(routing, "d", "a-b") == "acd"
    with pytest.raises(RouteUnavailable, match="from a to d that avoids a-c, b-d"):
        way(routing, "d", "b-d", "a-c")
    assert way(routing, "d") == "abd", "what one request avoids is no rule for others"


def test_silence_forgets_the_level_and_the_flaw():
    routing = Routing(NodeId("a"), SQUARE)
    routing.note(NodeId("d"), [level("b-d", is_usable=False)])
    assert way(routing, "d") == "acd"
    routing.forget(NodeId("d"))
    routing.note(NodeId("c"), [level("c-d", 0)])
    assert way(routing, "d") == "abd"


def test_drained_links_and_nodes_are_left_and_come_back():
    routing = Routing(NodeId("a"), SQUARE)
    routing.drain(["b"])
    assert way(routing, "d") == "acd"
    assert way(routing, "b") == "ab"
    routing.drain(["c-d"])
    assert way(routing, "d") == "abd"
    routing.drain(["b-d", "c-d"])
    assert way(routing, "d") == "abd", "before no route at all a drained one"
    routing.drain([])
    assert routing.is_sound(routing.route(NodeId("d")))


def test_trust_weighs_a_site_and_rules_forbid_it():
    assert way(Routing(NodeId("a"), network(*SPANS, b=0.4)), "d") == "acd"
    routing = Routing(NodeId("a"), network(*SPANS))
    assert way(routing, "d", avoid=["b"]) == "acd"
    assert way(routing, "b", avoid=["b"]) == "ab"
    with pytest.raises(RouteUnavailable, match="avoids b, c"):
        way(routing, "d", avoid=["b", "c"])
    with pytest.raises(RouteUnavailable, match="of at most 1 hops"):
        way(routing, "d", hops_max=1)
    with pytest.raises(RouteUnavailable):
        way(routing, "z")


SPANS = (("a", "b", 50), ("b", "d", 50), ("a", "c", 51), ("c", "d", 50))


def test_an_sae_gets_the_routes_of_its_tenant():
    topology = Topology(
        name="t",
        nodes=SQUARE.nodes,
        links=SQUARE.links,
        saes=(Sae(id=SaeId("bank"), node=NodeId("a")), Sae(id=SaeId("shop"), node=NodeId("a"))),
        tenants=(Tenant(id="careful", saes=("bank",), avoid=("b",)),),
    )
    routing = Routing(NodeId("a"), topology)
    assert routing.route_for([SaeId("bank")], NodeId("d")) == ("a", "c", "d")
    assert routing.route_for([SaeId("shop")], NodeId("d")) == ("a", "b", "d")


def test_levels_of_strangers_change_nothing():
    routing = Routing(NodeId("a"), SQUARE)
    assert routing.note(NodeId("c"), [level("b-d", is_usable=False)]) == frozenset()
    assert routing.note(NodeId("z"), [level("a-b", is_usable=False)]) == frozenset()
    assert routing.note(NodeId("b"), [level("x-y", is_usable=False)]) == frozenset()
    assert way(routing, "d") == "abd"


def test_prices_grow_as_key_runs_out_and_a_level_that_trembles_is_no_news():
    prices = [scarcity(steps, 8000.0) for steps in range(STEPS + 1)]
    assert prices == sorted(prices, reverse=True)
    assert prices[-1] == 0.0
    half = step(level("a-b", 30_000))
    assert step(level("a-b", 30_000 + 5_000), half) == half
    assert step(level("a-b", 30_000 - 5_000), half) == half
    assert step(level("a-b", 0), half) == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_all_routes_are_the_cheapest_and_a_limit_of_hops_is_kept(data):
    size = data.draw(st.integers(2, 9))
    names = [f"n{number}" for number in range(size)]
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    chosen = data.draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=20, unique=True))
    topology = network(*((a, b, data.draw(st.integers(1, 200))) for a, b in chosen))
    start = topology.nodes[0].id
    routing = Routing(start, topology)
    for link in topology.links:
        for node in (link.alice, link.bob):
            routing.note(node, [level(link.id, data.draw(st.sampled_from([0, 9_000, 30_000, FULL])))])
    oracle = nx.DiGraph()
    oracle.add_nodes_from(node.id for node in topology.nodes)
    for link in topology.links:
        for a, b in ((link.alice, link.bob), (link.bob, link.alice)):
            oracle.add_edge(a, b, weight=routing.cost((a, b)))
    costs = nx.single_source_dijkstra_path_length(oracle, start)
    found = routing.all_routes()
    assert found.keys() == costs.keys()
    for end, nodes in found.items():
        assert (nodes[0], nodes[-1]) == (start, end)
        assert abs(routing.cost(nodes) - costs[end]) < 1e-9
    most = data.draw(st.integers(1, 4))
    for end in found:
        if end == start:
            continue
        rows = list(nx.all_simple_paths(oracle, start, end, cutoff=most))
        if not rows:
            with pytest.raises(RouteUnavailable):
                routing.route(end, Rules(hops_max=most))
            continue
        nodes = routing.route(end, Rules(hops_max=most))
        assert len(nodes) - 1 <= most
        least = min(sum(oracle.edges[hop]["weight"] for hop in pairwise(row)) for row in rows)
        assert abs(routing.cost(nodes) - least) < 1e-9


def test_a_ring_of_five_goes_round_a_dead_node():
    topology = ring("r", [Node(id=NodeId(name)) for name in "abcde"], [(10, 3)] * 5)
    routing = Routing(NodeId("a"), topology)
    assert way(routing, "c") == "abc"
    routing.note(NodeId("a"), [level("a-b", is_usable=False), level("e-a")])
    routing.note(NodeId("c"), [level("b-c", is_usable=False), level("c-d")])
    assert way(routing, "c") == "aedc"


def handing(*routes):
    """As a controller's order is kept: the first route without an avoided link."""

    def handed(target, avoided):
        rows = [tuple(NodeId(node) for node in row) for row in routes if row[-1] == target]
        return next((row for row in rows if not {link_id(*hop) for hop in pairwise(row)} & avoided), None)

    return handed


def square_with(*routes):
    named = tuple(
        Link(id=link_id(NodeId(a), NodeId(b)), alice=NodeId(a), bob=NodeId(b), length_km=float(km), loss_db=1.0)
        for a, b, km in SPANS
    )
    return Routing(NodeId("a"), Topology(name="t", nodes=SQUARE.nodes, links=named), handing(*routes))


def test_a_handed_route_is_taken_while_nothing_speaks_against_it():
    routing = square_with("acd", "abd")
    assert way(routing, "d") == "acd", "a controller may want the longer way"
    assert [nodes for _, nodes in routing.in_use()] == [("a", "c", "d")]
    assert way(routing, "b") == "ab", "of what was not handed out the node finds its own"
    assert way(routing, "d", "a-c") == "abd"
    routing.drain({"c"})
    assert way(routing, "d") == "abd"
    routing.drain(())
    assert way(routing, "d") == "acd"
    routing.note(NodeId("c"), [level("c-d", is_doubtful=True)])
    assert way(routing, "d") == "abd"
    routing.note(NodeId("c"), [level("c-d")])
    routing.note(NodeId("a"), [level("a-c", is_usable=False)])
    assert way(routing, "d") == "abd"


def test_rules_of_tenants_come_before_a_handed_route():
    routing = square_with("acd", "abd")
    assert way(routing, "d", avoid=["c"]) == "abd"
    assert way(routing, "c", avoid=["c"]) == "ac", "to end there is not to pass"
    routing = square_with("abdc")
    assert way(routing, "c") == "abdc"
    assert way(routing, "c", hops_max=2) == "ac"


def test_where_all_that_was_handed_out_is_of_no_use_the_node_goes_by_key():
    routing = square_with("acd")
    routing.drain({"c-d"})
    assert way(routing, "d") == "abd"
    routing.note(NodeId("b"), [level("b-d", is_usable=False)])
    assert way(routing, "d") == "acd", "a drained way that carries key is better than a dead one"


def test_a_key_between_two_tenants_holds_to_the_rules_of_both():
    topology = Topology(
        name="t",
        nodes=SQUARE.nodes,
        links=SQUARE.links,
        saes=(Sae(id=SaeId("bank"), node=NodeId("a")), Sae(id=SaeId("shop"), node=NodeId("d"))),
        tenants=(
            Tenant(id="careful", saes=("bank",), avoid=("b",)),
            Tenant(id="wary", saes=("shop",), avoid=("c",), hops_max=3),
        ),
    )
    routing = Routing(NodeId("a"), topology)
    assert routing.route_for([SaeId("bank")], NodeId("d")) == ("a", "c", "d")
    with pytest.raises(RouteUnavailable, match="at most 3 hops that avoids b, c"):
        routing.route_for([SaeId("bank"), SaeId("shop")], NodeId("d"))
