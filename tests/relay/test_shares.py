"""Keys in shares over disjoint routes: no relay knows one, some may be wrong or missing, policy holds at both ends."""

import os
from itertools import combinations

import msgspec
import pytest
from relay_network import changing, flipped, of_tenant, ring_of_nodes, row_of_nodes, same, three_ways

from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.base.wire import decode
from qtrunk.crypto import its
from qtrunk.kms.consume import COLLECTED, INITIATED
from qtrunk.kms.key import Slice
from qtrunk.kms.poolstate import HEAD_OCTETS
from qtrunk.relay import messages as wire
from qtrunk.relay import shares
from qtrunk.relay.kx import REQUEST_TIMEOUT_S, Failed, Supplied

A, E = NodeId("a"), NodeId("e")
FROM, TO = SaeId("sae-a"), SaeId("sae-e")


def fill(network, octets=640, change=None):
    request_id, effects = network.machines[A].fill(FROM, TO, HEAD_OCTETS + octets)
    network.do(A, effects)
    network.settle(change) if change else network.settle()
    return network.answers.get(request_id)


def keys_agree(network, number=3):
    keys = network.stores[A].pools.take(FROM, TO, number, 32)
    found, strange = network.stores[E].pools.redeem(TO, FROM, [key.key_id for key in keys])
    assert strange == []
    assert [key.material for key in found] == [key.material for key in keys]
    return keys


def tampered(network):
    return [report for report in network.reports if report.alarm == "RelayTampered"]


@pytest.mark.parametrize(("needed", "count"), [(2, 2), (3, 3), (2, 3), (3, 5), (1, 1)])
@pytest.mark.parametrize("is_given", [True, False])
def test_so_many_parts_give_the_cargo_and_fewer_do_not(needed, count, is_given):
    pads = [Secret(os.urandom(96)) for _ in range(count)]
    given = Secret(os.urandom(96)) if is_given else None
    parts, cargo = shares.make(pads, needed, given)
    assert given is None or cargo == given
    for numbers in combinations(range(1, count + 1), needed):
        assert shares.combine({number: parts[number - 1] for number in numbers}, needed, count) == cargo
    assert all(part != cargo for part in parts) or count == 1


@pytest.mark.parametrize("limits", [{"routes_min": 2}, {"routes_min": 3}, {"routes_min": 2, "routes_spare": 1}])
def test_a_segment_in_shares_joins_both_ends_and_no_relay_has_it(network_of, limits):
    network = network_of(three_ways(**limits))
    seen = []

    def watch(node, link, octets):
        body = decode(decode(octets, wire.Sealed).body, wire.KxMessage)
        if isinstance(body, wire.KeyRelay):
            pad = network.stores[node]._material(link, [Slice(*piece) for piece in body.pad])
            seen.append(its.one_time_pad(body.ciphertext, pad.reveal()))
        return [octets]

    assert isinstance(fill(network, change=watch), Supplied)
    assert not network.reports
    keys = keys_agree(network)
    assert seen
    assert not any(bytes(key.material.reveal()) in octets for key in keys for octets in seen)
    needed = limits["routes_min"]
    for node, side in ((A, "initiated"), (E, "stored")):
        receipt = network.stores[node].pools.receipt(keys[0].key_id)[side]["receipt"]
        assert receipt["needed"] == needed == len(receipt["routes"])
        assert len(receipt["hops"]) == 3 * needed
    assert network.stores[A].pools.quality(FROM, TO).routes == needed


def test_keys_of_their_own_come_in_shares_to_every_node(network_of):
    network = network_of(three_ways(routes_min=2, routes_spare=1))
    answer = network.ask("sae-a", ["sae-e", "sae-c", "other-a"], number=2)
    for target in ("sae-e", "sae-c", "other-a"):
        assert same(network.collect(target, "sae-a", answer.keys), answer.keys)
    receipt = network.stores[A].receipt(answer.keys[0].key_id)["initiated"]["receipt"]
    assert receipt["needed"] == 2


def test_without_so_many_routes_nothing_is_made(network_of):
    row = network_of(of_tenant(row_of_nodes(), routes_min=2))
    before = row.stores[A].ledger("a-b")
    answer = fill(row)
    assert "only 1" in str(answer.error)
    assert row.stores[A].ledger("a-b") == before


def test_a_target_refuses_what_comes_in_too_few_shares(network_of):
    network = network_of(three_ways(routes_min=2))
    # Only the initiator's node, or who speaks for it, holds the policy for less.
    network.machines[A]._ground.topology = three_ways()
    assert isinstance(fill(network), Failed)
    assert any("must come in shares" in report.text for report in network.reports)
    assert (COLLECTED, FROM, TO) not in network.stores[E].pools.ledgers()


@pytest.mark.parametrize("who", ["b", "c", "f", "i"])
def test_with_a_share_to_spare_a_tampering_relay_stops_nothing_and_is_named(network_of, who):
    network = network_of(three_ways(routes_min=2, routes_spare=1))
    assert isinstance(fill(network, change=changing(network, NodeId(who), flipped)), Supplied)
    keys_agree(network)
    (named,) = {report.node for report in tampered(network) if report.node}
    assert who in named.split(" or ")


@pytest.mark.parametrize("who", ["b", "g", "i"])
def test_with_a_share_to_spare_a_silent_relay_stops_nothing(network_of, who):
    network = network_of(three_ways(routes_min=2, routes_spare=1))

    def drop(node, link, octets):
        return [] if network.topology.link(link).other(node) == who else [octets]

    assert isinstance(fill(network, change=drop), Supplied)
    keys_agree(network)
    network.wait(REQUEST_TIMEOUT_S + 1)
    network.wait(5.0)
    assert tampered(network) == []
    assert any(who in report.node for report in network.reports if report.alarm == "RelaySilent")


def test_without_a_share_to_spare_a_tampering_relay_is_noticed_and_nothing_is_given_out(network_of):
    circle = network_of(of_tenant(ring_of_nodes(), routes_min=2))
    for who in ("b", "d"):
        answer = fill(circle, change=changing(circle, NodeId(who), flipped))
        assert isinstance(answer, Failed)
    assert circle.stores[A].pools.octets(FROM, TO) == 0
    assert (COLLECTED, FROM, TO) not in circle.stores[E].pools.ledgers()
    assert {"b" in report.node or "d" in report.node for report in tampered(circle) if report.node} == {True}


def other_number(body):
    if not isinstance(body, wire.KeyRelay):
        return body
    return msgspec.structs.replace(body, share=msgspec.structs.replace(body.share, number=2))


def other_words(body):
    return msgspec.structs.replace(body, expires_unix_s=1e12) if isinstance(body, wire.KeyRelay) else body


def other_group(body):
    if not isinstance(body, wire.KeyRelay):
        return body
    return msgspec.structs.replace(body, share=msgspec.structs.replace(body.share, group="x"))


def fewer(body):
    if not isinstance(body, wire.KeyRelay):
        return body
    return msgspec.structs.replace(body, share=None, ciphertext=body.ciphertext[:704])


@pytest.mark.parametrize("change", [other_number, other_words, other_group])
def test_a_relay_gains_nothing_by_other_words_around_its_share(network_of, change):
    network = network_of(three_ways(routes_min=2, routes_spare=1))
    assert isinstance(fill(network, change=changing(network, NodeId("b"), change)), Supplied)
    keys_agree(network)
    ledger = network.stores[E].pools.ledgers()[COLLECTED, FROM, TO]
    assert (ledger.filled, ledger.unaccounted) == (704, 0)


def changed_answer(body):
    return msgspec.structs.replace(body, confirm=bytes(16)) if isinstance(body, wire.KeyRelayCompletion) else body


def test_an_answer_that_a_relay_changes_is_made_up_for_by_another_route(network_of):
    network = network_of(three_ways(routes_min=2))
    assert isinstance(fill(network, change=changing(network, NodeId("b"), changed_answer)), Supplied)
    keys_agree(network)


def test_a_void_reaches_shares_that_wait(network_of):
    circle = network_of(of_tenant(ring_of_nodes(), routes_min=2))

    def lose(node, link, octets):
        body = decode(decode(octets, wire.Sealed).body, wire.KxMessage)
        return [] if isinstance(body, wire.KeyRelay) and link == "c-d" else [octets]

    assert fill(circle, change=lose) is None
    assert len(circle.machines[E]._carrier._gatherings) == 1
    circle.wait(REQUEST_TIMEOUT_S + 1)
    assert circle.machines[E]._carrier._gatherings == {}
    assert [type(answer) for answer in circle.answers.values()] == [Failed]


def test_a_route_that_cannot_begin_is_left_out_where_a_share_is_to_spare(network_of):
    network = network_of(three_ways(routes_min=2, routes_spare=1))
    network.machines[A].link_down(LinkId("a-b"))
    assert isinstance(fill(network), Supplied)
    record = network.stores[A].pools.receipt(keys_agree(network, 1)[0].key_id)
    assert sorted(nodes[1] for nodes in record["initiated"]["receipt"]["routes"]) == ["f", "h"]
    assert network.stores[A].pools.ledgers()[INITIATED, FROM, TO].unaccounted == 0
