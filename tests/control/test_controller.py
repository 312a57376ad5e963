"""The controller's machine: plans, hands out, takes over, and keeps its hands off what it cannot see."""

import msgspec
import pytest

from qtrunk.base.errors import RequestRefused, WireError
from qtrunk.control.controller import RENEW_S, RETRY_S, SILENT_S, Controller
from qtrunk.control.telemetry import decode
from qtrunk.control.views import Views
from qtrunk.relay.route import disjoint_routes
from qtrunk.topology import Demand, Node, Sae, ring

SAES = (Sae(id="bank", node="a"), Sae(id="vault", node="c"), Sae(id="desk", node="a"))
RING = ring("ring", [Node(id=name) for name in "abcd"], [(10, 3)] * 4)
NET = type(RING)(
    name="ring", nodes=RING.nodes, links=RING.links, saes=SAES, demands=(Demand(between=("bank", "vault"), rate_bps=1),)
)


def find(start, end, count, away):
    return disjoint_routes(NET, start, end, count, away)


def status(node, down=(), fencing=0, version=0, **more):
    links = [
        {
            "link": link.id,
            "role": "alice" if link.alice == node else "bob",
            "state": "OFF" if link.id in down else "ACTIVE",
            "own_bits": 0 if link.id in down else 1000,
            "pool_bits": 3000,
            "is_connected": link.id not in down,
            "readings": {"anything": 1},
        }
        for link in NET.links_of(node)
    ]
    document = {
        "node": node,
        "state": "in service",
        "links": links,
        "routes": {"fencing": fencing, "version": version},
        "pools": [{"side": "initiator", "initiator": "bank", "target": "vault", "available": 64}]
        if node == "a"
        else [],
        "tenants": [{"tenant": "default", "quality_of_service": {"delay_s": 1}}],
        "keys": {"secret": "aGVsbG8="},
        **more,
    }
    return decode(msgspec.json.encode(document), node)


def hear(machine, now_s, down=(), fencing=0, version=0):
    for node in "abcd":
        machine.note(status(node, down, fencing, version), now_s)


@pytest.fixture
def machine():
    made = Controller("one", NET, find)
    made.lead(1, 7)
    return made


def test_only_who_leads_hands_anything_and_versions_go_on_from_the_last(machine):
    follower = Controller("two", NET, find)
    hear(follower, 0.0)
    assert follower.tick(0.0) == []
    hear(machine, 0.0)
    hands = machine.tick(0.0)
    assert sorted(hand.order.node for hand in hands) == ["a", "b", "c", "d"]
    assert {(hand.order.fencing, hand.order.version) for hand in hands} == {(1, 8)}
    mine = next(hand.order for hand in hands if hand.order.node == "a")
    assert sorted(mine.routes["c"]) == [["a", "b", "c"], ["a", "d", "c"]]
    assert mine.routes["b"] == [["a", "b"], ["a", "d", "c", "b"]]


def test_orders_are_handed_until_nodes_say_that_they_hold_them_and_again_in_time(machine):
    hear(machine, 0.0)
    assert len(machine.tick(0.0)) == 4
    assert machine.tick(RETRY_S / 2) == []
    assert len(machine.tick(RETRY_S)) == 4
    hear(machine, RETRY_S + 1, fencing=1, version=8)
    assert machine.tick(3 * RETRY_S) == []
    hear(machine, RENEW_S + 10, fencing=1, version=8)
    assert len(machine.tick(RENEW_S + 10)) == 4


def test_a_cut_makes_a_new_plan_that_goes_around_it_and_its_end_another(machine):
    hear(machine, 0.0)
    machine.tick(0.0)
    hear(machine, 5.0, down=("a-b",), fencing=1, version=8)
    orders = {hand.order.node: hand.order for hand in machine.tick(5.0)}
    assert orders["a"].version == 9
    assert orders["a"].routes["b"][0] == ["a", "d", "c", "b"]
    assert orders["a"].routes["c"][0] == ["a", "d", "c"]
    hear(machine, 9.0, fencing=1, version=9)
    assert {hand.order.version for hand in machine.tick(9.0)} == {10}


def window(resource, phase="under way", *, is_own=True):
    return {"resource": resource, "phase": phase, "is_own": is_own}


def test_a_drained_link_is_planned_over_last_and_only_its_own_node_may_say_so(machine):
    hear(machine, 0.0)
    machine.tick(0.0)
    machine.note(status("b", maintenance=[window("b-c", "planned"), window("c-d"), window("a-b", is_own=False)]), 1.0)
    machine.tick(1.0)
    assert machine.drained == frozenset(), "planned, another's, and only heard of"
    machine.note(status("b", maintenance=[window("b-c")]), 2.0)
    machine.tick(2.0)
    assert (machine.version, machine.drained, machine.unusable) == (9, {"b-c"}, frozenset())
    assert machine.routes["b"]["c"] == [["b", "a", "d", "c"], ["b", "c"]]
    assert machine.routes["a"]["c"][0] == ["a", "d", "c"]
    assert next(link for link in Views(machine, 2.0).links() if link["id"] == "b-c")["is_drained"]
    machine.note(status("b"), 3.0)
    machine.tick(3.0)
    assert (machine.version, machine.drained) == (10, frozenset())


def test_of_a_drained_node_all_links_are_left(machine):
    hear(machine, 0.0)
    machine.note(status("b", maintenance=[window("b")]), 0.0)
    machine.tick(0.0)
    assert machine.drained == {"a-b", "b-c"}
    assert machine.routes["a"]["c"][0] == ["a", "d", "c"]
    assert machine.routes["a"]["b"], "who has no other way goes on over it"


def test_a_controller_that_sees_nothing_takes_nothing_apart(machine):
    hear(machine, 0.0)
    machine.tick(0.0)
    before = machine.routes
    assert machine.tick(SILENT_S + 100) == []
    assert machine.routes == before
    assert machine.unusable == frozenset()


def test_who_hears_of_a_later_token_stops(machine):
    hear(machine, 0.0)
    machine.tick(0.0)
    machine.note(status("a", fencing=2, version=1), 1.0)
    assert not machine.is_leading
    assert machine.tick(10.0) == []


def test_of_a_status_only_named_fields_are_kept():
    kept = msgspec.json.encode(status("a", key="c2VjcmV0LWtleQ==", material="00ff"))
    for word in (b"aGVsbG8", b"readings", b"c2VjcmV0", b"00ff", b"anything"):
        assert word not in kept
    with pytest.raises(WireError, match="it says"):
        decode(msgspec.json.encode({"node": "x"}), "a")
    with pytest.raises(WireError):
        decode(b"\xff", "a")


# ── views ──


@pytest.fixture
def views(machine):
    hear(machine, 0.0)
    machine.tick(0.0)
    return Views(machine, 1.0)


def test_the_network_in_numbers_and_its_services(views):
    assert views.network()["links_by_state"] == {"OFF": 0, "PENDING": 0, "PASSIVE": 0, "ACTIVE": 4}
    assert views.network()["services_by_protection"] == {"protected": 2}
    service = next(one for one in views.services() if one["from"] == "bank")
    assert (service["from_node"], service["to_node"]) == ("a", "c")
    assert service["quality_of_service"] == {"delay_s": 1}
    assert len(service["routes"]) == 2
    assert views.pools() == [{"from": "bank", "to": "vault", "node": "a", "available_bits": 512, "delivered_bits": 0}]


def test_what_a_cut_would_do(views, machine):
    found = views.what_if("a-b")
    assert [(one["before"], one["after"]) for one in found["services"]] == [("protected", "unprotected")] * 2
    assert found["links"] == ["a-b"]
    assert {one["after"] for one in views.what_if("c")["services"]} == {"lost"}
    assert {one["after"] for one in views.what_if("d")["services"]} == {"unprotected"}
    with pytest.raises(RequestRefused, match="cut"):
        views.what_if("nowhere")
    hear(machine, 2.0, down=("a-b",))
    machine.tick(2.0)
    worse = Views(machine, 2.0)
    assert worse.what_if("d-a")["services"][0] == {
        "from": "bank",
        "to": "vault",
        "before": "unprotected",
        "after": "lost",
    }
    assert worse.what_if("b-c")["is_harmless"]


def test_alarms_of_both_ends_are_one_and_a_silent_node_is_one(machine):
    alarm = {"resource": "a-b", "type": "LinkOff", "severity": "major", "text": "t", "raised_unix_s": 5.0}
    own = {**alarm, "resource": "store", "type": "StorageFull", "severity": "critical"}
    machine.note(status("a", alarms={"active": [alarm, own]}), 0.0)
    machine.note(status("b", alarms={"active": [{**alarm, "raised_unix_s": 4.0}]}), 0.0)
    machine.note(status("c"), 0.0)
    found = Views(machine, 1.0).alarms()
    assert [(one["resource"], one["type"]) for one in found] == [
        ("a/store", "StorageFull"),
        ("a-b", "LinkOff"),
        ("d", "NodeUnreachable"),
    ]
    assert found[1]["nodes"] == ["a", "b"]
    assert found[1]["raised_unix_s"] == 4.0


def test_a_node_that_was_never_heard_has_no_figures(machine):
    machine.tick(0.0)
    views = Views(machine, 0.0)
    assert {link["state"] for link in views.links()} == {"unknown"}
    assert not any(node["answers"] for node in views.nodes())
