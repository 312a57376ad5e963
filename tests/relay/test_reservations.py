"""Claims of guarantees: on every hop, bounded by the topology, gone with who made them; routes give way and settle."""

from itertools import permutations

import pytest

from qtrunk.base.errors import RouteUnavailable
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.kms.sharing import GAP_S, HORIZON_S
from qtrunk.relay.prices import LinkLevel
from qtrunk.relay.reservations import Claim, Reservations, own_claims, set_aside_octets, sites_of
from qtrunk.relay.routing import Routing
from qtrunk.topology import Link, LiveTopology, Node, Sae, Tenant, Topology, link_id

SPANS = (("a", "b"), ("b", "c"), ("c", "d"), ("a", "e"), ("e", "d"))
"""A ring of five: a to d by b and c, or by e."""


def network(*saes, spans=SPANS, **guarantees):
    """SAEs as `name@node`, the name begins with its tenant's."""
    names = sorted({end for span in spans for end in span})
    return Topology(
        name="t",
        nodes=tuple(Node(id=NodeId(name)) for name in names),
        links=tuple(
            Link(id=link_id(NodeId(a), NodeId(b)), alice=NodeId(a), bob=NodeId(b), length_km=10.0, loss_db=2.0)
            for a, b in spans
        ),
        saes=tuple(Sae(id=SaeId(one.split("@")[0]), node=NodeId(one.split("@")[1])) for one in saes),
        tenants=tuple(Tenant(id=name, saes=(f"{name}*",), guaranteed_bps=bps) for name, bps in guarantees.items()),
    )


def routes_in(topology, node):
    routing = Routing(NodeId(node), topology)

    def routes(initiator, target, count):
        end = topology.sae(target).node
        if count == 1:
            return [routing.route_for((initiator, target), end)]
        return routing.disjoint_for((initiator, target), end, count)

    return routes


def claimed(topology, node):
    return {
        f"{one.sender}>{one.link}": one.bps
        for one in own_claims(topology, sites_of(topology, NodeId(node)), routes_in(topology, node))
    }


def test_a_guarantee_is_claimed_once_on_every_direction_of_its_routes():
    topology = network("bank1@a", "bank2@c", "bank3@b", "shop@a", "shop2@c", bank=500.0, shop=0.0)
    # To b and to c both over a-b: once.
    assert claimed(topology, "a") == {"a>a-b": 500.0, "b>b-c": 500.0}
    assert claimed(topology, "c") == {"c>b-c": 500.0, "b>a-b": 500.0}
    assert claimed(topology, "b") == {"b>a-b": 500.0, "b>b-c": 500.0}
    assert claimed(topology, "d") == {}


def test_tenants_add_up_and_shares_are_claimed_on_each_of_their_routes():
    topology = network("bank1@a", "bank2@d", "mint1@a", "mint2@d", bank=500.0, mint=200.0)
    assert claimed(topology, "a") == {f"a>{link_id('a', 'e')}": 700.0, f"e>{link_id('e', 'd')}": 700.0}
    tenants = (Tenant(id="bank", saes=("bank*",), guaranteed_bps=500.0, routes_min=2),)
    shared = Topology(name="t", nodes=topology.nodes, links=topology.links, saes=topology.saes, tenants=tenants)
    assert sorted(
        one.sender for one in own_claims(shared, sites_of(shared, NodeId("a")), routes_in(shared, "a"))
    ) == list("aabce")


def test_where_there_is_no_route_nothing_is_claimed():
    topology = network("bank1@a", "bank2@d", bank=500.0)

    def none(*_):
        raise RouteUnavailable("cut")

    assert own_claims(topology, sites_of(topology, NodeId("a")), none) == ()


def claim(sender, link, bps):
    return Claim(NodeId(sender), LinkId(link), bps)


def test_a_word_replaces_the_one_before_and_names_what_changed():
    topology = network("bank1@a", "bank2@c", bank=500.0)
    known = Reservations(NodeId("b"), topology)
    assert known.note(NodeId("a"), [claim("a", "a-b", 500.0), claim("b", "b-c", 500.0)]) == {("a", "a-b"), ("b", "b-c")}
    assert known.note(NodeId("c"), [claim("b", "b-c", 300.0)]) == {("b", "b-c")}
    assert (known.all_bps(("b", "b-c")), known.earlier_bps(("b", "b-c"))) == (800.0, 500.0)
    assert known.note(NodeId("a"), [claim("b", "b-c", 500.0)]) == {("a", "a-b")}
    assert known.note(NodeId("a"), ()) == {("b", "b-c")}
    assert known.all_bps(("b", "b-c")) == 300.0


def test_no_node_claims_more_than_its_tenants_are_guaranteed_nor_of_what_is_not_there():
    topology = network("bank1@a", "bank2@c", "shop@d", bank=500.0)
    known = Reservations(NodeId("b"), topology)
    known.note(NodeId("a"), [claim("a", "a-b", 1e9), claim("d", "a-b", 500.0), claim("a", "x", 500.0)])
    assert known.all_bps(("a", "a-b")) == 500.0
    assert known.all_bps(("d", "a-b")) == 0.0
    assert known.note(NodeId("d"), [claim("c", "c-d", 1.0)]) == frozenset(), "its tenants have no guarantee"
    assert known.note(NodeId("z"), [claim("c", "c-d", 1.0)]) == frozenset()


def test_a_changed_network_has_other_guarantees_and_no_claims_on_what_is_gone():
    live = LiveTopology(network("bank1@a", "bank2@d", "bank3@c", bank=500.0))
    known = Reservations(NodeId("b"), live)
    known.note(NodeId("a"), [claim("a", "a-e", 500.0), claim("a", "a-b", 500.0)])
    known.note(NodeId("d"), [claim("c", "b-c", 500.0)])
    live.adopt(network("bank1@a", "bank3@c", spans=(("a", "b"), ("b", "c"), ("c", "d")), bank=200.0))
    assert known.adopt() == {("a", "a-b")}
    assert known.all_bps(("a", "a-b")) == 200.0, "at most what is guaranteed now"
    assert known.all_bps(("a", "a-e")) == known.all_bps(("c", "b-c")) == 0.0


def test_what_is_set_aside_lasts_until_new_key_comes():
    assert set_aside_octets(800.0, 1e9) == 800.0 * GAP_S / 8
    assert set_aside_octets(800.0, 0.0) == 800.0 * HORIZON_S / 8
    assert set_aside_octets(0.0, 0.0) == 0.0


def level(link, octets=1 << 20, fill_bps=1000.0):
    return LinkLevel(link=LinkId(link), octets=octets, fill_bps=fill_bps, is_usable=True)


def test_a_direction_that_is_claimed_is_dear_and_one_that_gives_much_more_is_not():
    topology = network()
    routing = Routing(NodeId("a"), topology)
    first = topology.link_between(NodeId("a"), NodeId("e")).id
    assert routing.route(NodeId("d")) == ("a", "e", "d")
    routing.claim(NodeId("a"), first, 1000.0, level(first, octets=0))
    assert routing.route(NodeId("d")) == ("a", "b", "c", "d")
    routing.claim(NodeId("a"), first, 1000.0, level(first, fill_bps=1e6))
    assert routing.route(NodeId("e")) == ("a", "e")
    assert routing.cost(("a", "e")) == pytest.approx(1.0, abs=1e-3)
    routing.claim(NodeId("a"), first, 1000.0, None)
    assert routing.cost(("a", "e")) > 4.0, "of what is not known all may be claimed"
    routing.claim(NodeId("a"), first, 0.0, None)
    assert routing.cost(("a", "e")) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("order", list(permutations("abc")))
def test_nodes_that_claim_the_same_link_settle_whoever_speaks_first(order):
    # Three nodes behind h reach z by two equal ways of two hops.
    spans = (("a", "h"), ("b", "h"), ("c", "h"), ("h", "m"), ("m", "z"), ("h", "n"), ("n", "z"))
    topology = network("x1@a", "x2@z", "y1@b", "y2@z", "w1@c", "w2@z", spans=spans, x=900.0, y=900.0, w=900.0)
    routings = {name: Routing(NodeId(name), topology) for name in order}
    known = {name: Reservations(NodeId(name), topology) for name in order}

    def ways():
        return {name: "".join(routing.route(NodeId("z"))) for name, routing in routings.items()}

    seen = []
    for _ in range(6):
        told = {
            name: own_claims(topology, sites_of(topology, NodeId(name)), lambda _i, _t, _n, r=r: [r.route(NodeId("z"))])
            for name, r in routings.items()
        }
        for name in order:
            for teller, claims in told.items():
                for hop in known[name].note(NodeId(teller), claims):
                    routings[name].claim(*hop, known[name].earlier_bps(hop), level(hop[1], octets=0))
        seen.append(ways())
    assert seen[-1] == seen[-2] == seen[-3]
    assert len({way[2] for way in seen[-1].values()}) == 2, "not all over one of the two"
