"""The controller's machine: plans, hands out, takes over, and keeps its hands off what it cannot see."""

import itertools
import random

import msgspec
import pytest

from qtrunk.base.errors import RequestRefused, WireError
from qtrunk.control.controller import RENEW_S, RETRY_S, SILENT_S, Controller
from qtrunk.control.telemetry import decode
from qtrunk.control.views import Views
from qtrunk.relay.route import disjoint_routes
from qtrunk.topology import Demand, Link, Node, Sae, link_id, ring

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
    assert next(link for link in Views(machine, 2.0, 1e9 + 2.0).links() if link["id"] == "b-c")["is_drained"]
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
    return Views(machine, 1.0, 1e9 + 1.0)


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
    worse = Views(machine, 2.0, 1e9 + 2.0)
    assert worse.what_if("d-a")["services"][0] == {
        "from": "bank",
        "to": "vault",
        "before": "unprotected",
        "after": "lost",
    }
    assert worse.what_if("b-c")["is_harmless"]


def alarm(resource, type_, raised_s, severity="major", **more):
    return {
        "resource": resource,
        "type": type_,
        "severity": severity,
        "text": "t",
        "raised_unix_s": 1e9 + raised_s,
        "operator_state": "none",
        **more,
    }


LINK = NET.link_between("a", "b").id
"""On the usual route of the pool."""


def cut(late_s):
    """What one end of a link says when it is cut."""
    return [
        alarm(LINK, "QuantumChannelLoss", late_s, "critical"),
        alarm(LINK, "ClassicalChannelLoss", late_s - 1),
        alarm(LINK, "LinkOff", late_s + 1),
    ]


def test_a_cut_that_both_ends_see_is_one_alarm_with_all_that_follows_below_it(machine):
    pool = alarm("pool bank to vault", "PoolLow", 60.0, "minor")
    machine.note(status("a", alarms={"active": [*cut(5.0), pool]}), 0.0)
    machine.note(status("b", alarms={"active": cut(4.0)}), 0.0)
    machine.note(status("c"), 0.0)
    machine.note(status("d", alarms={"active": [alarm("store", "StorageFull", 200.0, "critical")]}), 0.0)
    machine.tick(0.0)
    views = Views(machine, 1.0, 1e9 + 300.0)
    found = views.alarms()
    assert [(one["depth"], one["resource"], one["type"], one["nodes"]) for one in found] == [
        (0, LINK, "QuantumChannelLoss", ["a", "b"]),
        (1, LINK, "ClassicalChannelLoss", ["a", "b"]),
        (1, LINK, "LinkOff", ["a", "b"]),
        (1, "pool bank to vault", "PoolLow", ["a"]),
        (0, "d/store", "StorageFull", ["d"]),
    ]
    assert [one["root_cause"] for one in found] == [None, LINK, LINK, LINK, None]
    assert (found[0]["followers"], found[0]["raised_unix_s"]) == (3, 1e9 + 4.0)
    assert set(found[0]["impacted"]) == {"pool bank to vault", "pool vault to bank", "tenant default"}
    summary = views.alarm_summary()
    assert (summary["total"], summary["roots"], summary["worst"]) == (5, 2, "critical")
    assert summary["by_severity"] == {"critical": 2, "major": 2, "minor": 1, "warning": 0, "indeterminate": 0}
    assert summary["roots_by_severity"]["critical"] == 2
    assert (views.network()["alarms"], views.network()["alarm_roots"]) == (5, 2)


def test_a_silent_node_is_one_alarm_since_it_was_heard_last_and_none_before_it_was_asked(machine):
    lost = [alarm("c-d", "ClassicalChannelLoss", 10.0)]
    for now_s, nodes in ((0.0, "abcd"), (30.0, "abc")):
        for node in nodes:
            machine.note(status(node, alarms={"active": lost if (node, now_s) == ("c", 30.0) else []}), now_s)
    machine.lead(2, 9)
    assert [one["type"] for one in Views(machine, 30.0, 1e9 + 30.0).alarms()] == ["ClassicalChannelLoss"]
    machine.tick(30.0)
    found = Views(machine, 30.0, 1e9 + 30.0).alarms()
    assert [(one["depth"], one["resource"], one["type"], one["severity"]) for one in found] == [
        (0, "node d", "NodeUnreachable", "critical"),
        (1, "c-d", "ClassicalChannelLoss", "major"),
    ]
    assert found[0]["nodes"] == []
    later = Views(machine, 40.0, 1e9 + 40.0).alarms()
    assert later[0]["raised_unix_s"] == found[0]["raised_unix_s"]


def test_shelved_alarms_are_counted_by_themselves_and_shown_where_something_follows_from_them(machine):
    shelved = [{**one, "operator_state": "shelved"} for one in cut(5.0)]
    alone = {**alarm("c-d", "QberRising", 5.0, "warning"), "operator_state": "shelved"}
    pool = alarm("pool bank to vault", "PoolLow", 60.0, "minor")
    machine.note(status("a", alarms={"active": [pool], "shelved": shelved}), 0.0)
    machine.note(status("c", alarms={"shelved": [alone]}), 0.0)
    views = Views(machine, 1.0, 1e9 + 300.0)
    assert [(one["type"], one["operator_state"]) for one in views.alarms()] == [
        ("QuantumChannelLoss", "shelved"),
        ("PoolLow", "none"),
    ]
    summary = views.alarm_summary()
    assert (summary["total"], summary["roots"], summary["shelved"], summary["worst"]) == (1, 0, 4, "minor")


def test_a_severity_of_another_version_of_a_node_is_indeterminate(machine):
    machine.note(status("a", alarms={"active": [alarm(LINK, "NewThing", 5.0, "catastrophic")]}), 0.0)
    (found,) = Views(machine, 1.0, 1e9).alarms()
    assert (found["severity"], found["probable_cause"]) == ("indeterminate", "indeterminate")


def test_a_node_that_was_never_heard_has_no_figures(machine):
    machine.tick(0.0)
    views = Views(machine, 0.0, 1e9 + 0.0)
    assert {link["state"] for link in views.links()} == {"unknown"}
    assert not any(node["answers"] for node in views.nodes())


def test_a_plan_that_follows_what_changes_is_the_one_that_is_made_anew():
    """Links of random lengths, so that no two routes cost the same; links go out of use, are drained and come back."""
    dice = random.Random(7)
    lengths = [dice.uniform(10, 70) for _ in range(16)]
    nodes = [Node(id=f"n{number}") for number in range(12)]
    ends = [(place, (place + 1) % 12) for place in range(12)] + [(0, 5), (2, 9), (3, 7)]
    links = tuple(
        Link(id=link_id(nodes[a].id, nodes[b].id), alice=nodes[a].id, bob=nodes[b].id, length_km=km, loss_db=0.2 * km)
        for (a, b), km in zip(ends, lengths, strict=False)
    )
    net = type(RING)(name="mesh", nodes=tuple(nodes), links=links)
    asked = []

    def find(start, end, count, away):
        asked.append((start, end))
        return disjoint_routes(net, start, end, count, away)

    follows = Controller("one", net, find)
    follows.lead(1, 1)
    follows.prepare()
    searched, anew_searched = len(asked), 0
    away = {"unusable": set(), "drained": set()}
    for _ in range(30):
        which = away[dice.choice(["unusable", "unusable", "drained"])]
        link = dice.choice(sorted(which)) if which and dice.random() < 0.45 else dice.choice(links).id
        which.symmetric_difference_update({link})
        sets = [frozenset(away[name]) for name in ("unusable", "drained")]
        asked.clear()
        follows._plan(*sets)
        searched += len(asked)
        asked.clear()
        anew = {(a.id, b.id): follows._best(a.id, b.id, *sets) for a, b in itertools.combinations(nodes, 2)}
        anew_searched += len(asked)
        assert {(a, b): follows.routes[a][b] for a, b in anew} == anew
        assert {(a, b): follows.routes[b][a] for a, b in anew} == {k: [r[::-1] for r in v] for k, v in anew.items()}
    assert searched < anew_searched
