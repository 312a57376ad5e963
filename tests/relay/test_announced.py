"""Relay by announced XORs: what comes of it is what comes hop by hop, in whatever order its parts come, and who changes
something is named.
"""

import contextlib
import os
import random
import uuid
from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest
from relay_network import Dice, of_tenant, ring_of_nodes, row_of_nodes, same, three_ways, with_saes

from qtrunk.base.errors import QtrunkError, StoreError, WireError
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.base.wire import decode, encode
from qtrunk.crypto import its
from qtrunk.kms.key import Slice
from qtrunk.kms.poolstate import HEAD_OCTETS
from qtrunk.relay import announced
from qtrunk.relay import messages as wire
from qtrunk.relay.hops import PROTOCOL
from qtrunk.relay.inquest import ANSWER_S, Question, Statement
from qtrunk.relay.kx import FORWARD_MEMORY_S, REQUEST_TIMEOUT_S, Failed, Kx, SendKx, Supplied, Tell
from qtrunk.topology import Link, LiveTopology, Node, Topology, link_id

A, B, C, D, E = map(NodeId, "abcde")
ROW = "abcde"
SERVICE = wire.ANNOUNCED_SERVICE


@pytest.fixture
def row(network_of):
    return network_of(of_tenant(row_of_nodes(), relay="announced"))


def begin(network, octets=640):
    """A segment from a to e is on its way, nothing of it carried yet."""
    request_id, effects = network.machines[A].fill(SaeId("sae-a"), SaeId("sae-e"), HEAD_OCTETS + octets)
    network.do(A, effects)
    return request_id


def bodies(network):
    return [(link, wire.parse(octets)[1]) for _, link, octets in network.seen]


def order_of(network, to):
    """The order that waits for a node, as it is."""
    waiting = [octets for _, node, octets, service in network.notes if (node, service) == (to, SERVICE)]
    return decode(waiting[0], wire.AnnouncedNote)


def levels(network):
    return {
        (node, link.id): network.stores[node].level(link.id)
        for link in network.topology.links
        for node in (link.alice, link.bob)
    }


def keys_agree(network, number=3):
    keys = network.stores[A].pools.take(SaeId("sae-a"), SaeId("sae-e"), number, 32)
    found, strange = network.stores[E].pools.redeem(SaeId("sae-e"), SaeId("sae-a"), [key.key_id for key in keys])
    assert strange == []
    assert [key.material for key in found] == [key.material for key in keys]
    return keys


# ── what comes of it ────────────────────────────────────────────────────────────────────────────────────────────────


def test_keys_are_the_same_at_both_ends_and_no_cargo_passed_a_relay(row):
    answer = row.ask("sae-a", ["sae-e"], number=3)
    assert isinstance(answer, Supplied)
    assert same(row.collect("sae-e", "sae-a", answer.keys), answer.keys)
    assert [(link, type(body)) for link, body in bodies(row)] == [
        (LinkId(f"{one}-{other}"), wire.RelayPad) for one, other in pairwise(ROW)
    ]
    assert answer.receipt["routes"] == [list(ROW)]
    assert answer.receipt["relay"] == "announced"
    assert [(hop["link"], hop["from"]) for hop in answer.receipt["hops"]] == [
        (f"{one}-{other}", one) for one, other in pairwise(ROW)
    ]
    assert not row.reports


def test_the_same_key_is_spent_as_hop_by_hop(row, network_of):
    other = network_of(row_of_nodes())
    for network in (row, other):
        network.ask("sae-a", ["sae-e"], number=3)
    # But for the tags of the answers, which are notes here.
    for (place, here), there in zip(levels(row).items(), levels(other).values(), strict=True):
        assert here.peer_octets + here.own_octets - its.WC_KEY_OCTETS == there.peer_octets + there.own_octets, place


def test_a_segment_joins_the_pools_of_both_ends(row):
    request_id = begin(row)
    row.settle()
    assert isinstance(row.answers[request_id], Supplied)
    receipt = row.stores[E].pools.receipt(keys_agree(row)[0].key_id)["stored"]["receipt"]
    assert receipt["relay"] == "announced"
    assert [hop["link"] for hop in receipt["hops"]] == ["a-b", "b-c", "c-d", "d-e"]


@pytest.mark.parametrize("limits", [{"routes_min": 2}, {"routes_min": 3}, {"routes_min": 2, "routes_spare": 1}])
def test_shares_are_announced_over_each_of_their_routes(network_of, limits):
    network = network_of(three_ways(relay="announced", **limits))
    request_id = begin(network)
    network.settle()
    assert isinstance(network.answers[request_id], Supplied)
    assert not network.reports
    assert {type(body) for _, body in bodies(network)} == {wire.RelayPad}
    receipt = network.stores[A].pools.receipt(keys_agree(network)[0].key_id)["initiated"]["receipt"]
    assert receipt["needed"] == limits["routes_min"] == len(receipt["routes"])
    assert receipt["relay"] == "announced"


def test_several_targets_get_one_cargo(row):
    answer = row.ask("sae-a", ["sae-e", "sae-b", "sae-d", "other-a"], number=2)
    assert isinstance(answer, Supplied)
    for target in ("sae-e", "sae-b", "sae-d", "other-a"):
        assert same(row.collect(target, "sae-a", answer.keys), answer.keys)
    # Between neighbours there is nobody to announce anything.
    assert [type(body) for link, body in bodies(row) if type(body) is not wire.RelayPad] == [
        wire.KeyRelay,
        wire.KeyRelayCompletion,
    ]


def test_without_notes_it_goes_hop_by_hop(row):
    for machine in row.machines.values():
        machine.use_notes(lambda _node: False)
    assert isinstance(row.ask("sae-a", ["sae-e"]), Supplied)
    assert wire.RelayPad not in {type(body) for _, body in bodies(row)}


@pytest.mark.parametrize("seed", range(12))
def test_its_parts_may_come_in_any_order(row, seed):
    """Of different senders; what one node tells another comes in the order in which it was said."""
    dice = random.Random(seed)
    request_id = begin(row)
    while row.wires or row.notes:
        places = {("wire", node, link): ("wires", index) for index, (node, link, _) in [*enumerate(row.wires)][::-1]}
        places |= {("note", s, r): ("notes", index) for index, (s, r, _, _) in [*enumerate(row.notes)][::-1]}
        kind, index = places[dice.choice(sorted(places))]
        if kind == "wires":
            node, link, octets = row.wires.pop(index)
            row.do(node, row.machines[node].receive(link, octets))
        else:
            sender, receiver, octets, service = row.notes.pop(index)
            row.do(receiver, row.machines[receiver].receive_note(sender, octets, service))
    assert isinstance(row.answers[request_id], Supplied)
    assert not row.reports
    keys_agree(row)


def test_what_is_announced_is_not_the_cargo_nor_any_links_octets(row):
    heard = []

    def hear(_sender, _receiver, octets):
        heard.append(octets)
        return [octets]

    request_id = begin(row)
    row.settle(announce=hear)
    assert isinstance(row.answers[request_id], Supplied)
    keys = [bytes(key.material.reveal()) for key in keys_agree(row)]
    pads = [
        bytes(row.stores[row.topology.link(link).alice]._material(link, [Slice(*one) for one in body.pad]).reveal())
        for link, body in bodies(row)
    ]
    assert len(pads) == 4
    assert len([said for said in heard if isinstance(decode(said, wire.AnnouncedNote), wire.Announcement)]) == 3
    for said in heard:
        assert not any(octets[place : place + 16] in said for octets in (*keys, *pads) for place in range(0, 32, 16))


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_node_that_notes_do_not_reach_is_passed_hop_by_hop(row):
    row.machines[A].use_notes(lambda node: node != "c")
    assert isinstance(row.ask("sae-a", ["sae-e"]), Supplied)
    assert wire.RelayPad not in {type(body) for _, body in bodies(row)}


def test_a_relay_without_key_says_so(row):
    level = row.stores[C].level(LinkId("c-d"))
    row.stores[C].allocate(LinkId("c-d"), row.machines[C]._hops.role(LinkId("c-d")), level.own_octets - 1500)
    answer = row.ask("sae-a", ["sae-e"], number=20)
    assert isinstance(answer, Failed)
    assert "link c-d" in str(answer.error)
    assert not row.reports


def test_where_notes_are_lost_the_only_route_is_taken_hop_by_hop(row):
    request_id = begin(row)
    row.settle(announce=lambda *_: [])
    row.wait(REQUEST_TIMEOUT_S + 0.1)
    answer = row.answers[request_id]
    assert isinstance(answer, Supplied)
    assert "relay" not in answer.receipt
    keys_agree(row)


def test_a_second_attempt_goes_hop_by_hop_over_another_route(network_of):
    circle = network_of(of_tenant(ring_of_nodes(), relay="announced"))
    request_id, effects = circle.machines[A].request(SaeId("sae-a"), [SaeId("sae-c")], 2, 256)
    circle.do(A, effects)
    circle.settle(announce=lambda _sender, _receiver, _octets: [])
    circle.wait(REQUEST_TIMEOUT_S + 0.1)
    answer = circle.answers[request_id]
    assert isinstance(answer, Supplied)
    assert answer.receipt["routes"] == [list("aedc")]
    assert "relay" not in answer.receipt
    assert same(circle.collect("sae-c", "sae-a", answer.keys), answer.keys)
    assert wire.KeyRelay in {type(body) for _, body in bodies(circle)}


@pytest.mark.parametrize("kept", [("b",), ("c",), ("d",), ("b", "c", "d")])
def test_a_lost_neighbour_ends_what_waits_for_it(row, kept):
    request_id = begin(row)
    row.settle(change=lambda node, _link, octets: [] if node in kept else [octets])
    links = [link.id for link in row.topology.links]
    assert sum(machine.under_way(links) for machine in row.machines.values()) > 1
    row.do(C, row.machines[C].link_down(LinkId("b-c")))
    row.do(B, row.machines[B].link_down(LinkId("a-b")))
    row.do(D, row.machines[D].link_down(LinkId("c-d")))
    row.settle()
    answer = row.answers[request_id]
    assert isinstance(answer, Failed)
    assert "the neighbour was lost" in str(answer.error)
    assert not any(machine.under_way(links) for machine in row.machines.values())


def test_what_was_given_up_is_not_taken_any_more(row):
    late = []
    before = levels(row)

    def hold(sender, receiver, octets):
        if receiver != E or sender == A:
            return [octets]
        late.append((sender, octets))
        return []

    request_id = begin(row)
    row.settle(announce=hold)
    row.wait(REQUEST_TIMEOUT_S + 0.1)
    # Hop by hop it came.
    assert isinstance(row.answers[request_id], Supplied)
    assert len(late) == 3
    assert levels(row) != before
    held = row.stores[E].pools.ledgers()
    for sender, octets in late:
        row.do(E, row.machines[E].receive_note(sender, octets, SERVICE))
    row.settle()
    assert row.stores[E].pools.ledgers() == held
    row.wait(FORWARD_MEMORY_S + 1)
    assert not row.machines[E]._announcer._ended
    assert nothing_is_kept(row)


@pytest.mark.parametrize("what", ["longer", "for another order", "elsewhere"])
def test_octets_that_are_not_those_of_the_order_are_not_taken(row, what):
    request_id = begin(row)
    digest = announced._digest(encode(order_of(row, C)))
    swapped = []

    def change(node, link, octets):
        if node != C or link != "b-c" or swapped:
            return [octets]
        swapped.append(octets)
        relay_id = wire.parse(octets)[1].relay_id
        # B is corrupt: it gives C more octets than were ordered, or for another order; or D says something to C.
        liar, over = (D, LinkId("c-d")) if what == "elsewhere" else (B, link)
        hops = row.machines[liar]._hops
        pad, tag_key = hops.allocate(over, HEAD_OCTETS + (641 if what == "longer" else 640))
        said = wire.RelayPad(
            relay_id=relay_id,
            pad=[(one.block, one.offset, one.length) for one in pad.slices],
            order=bytes(32) if what == "for another order" else digest,
        )
        row.wires.append((C, over, hops.seal(over, said, tag_key).octets))
        return [octets] if what == "elsewhere" else []

    row.settle(change)
    answer = row.answers[request_id]
    assert [report.alarm for report in row.reports] == ["RelayProtocolError"]
    if what == "elsewhere":
        # Nobody else is made to look as if he had failed.
        assert isinstance(answer, Supplied)
        assert "over another link than the order says" in row.reports[0].text
    else:
        assert isinstance(answer, Failed)
        assert "node c refused the keys" in str(answer.error)
        assert "for another order" in row.reports[0].text


def test_a_forged_or_repeated_message_of_the_neighbour_is_reported_and_costs_no_key(row):
    request_id = begin(row)
    row.settle()
    assert isinstance(row.answers[request_id], Supplied)
    before = levels(row)
    _, link, octets = row.seen[1]
    assert link == "b-c"
    forged = encode(msgspec.structs.replace(decode(octets, wire.Sealed), tag=bytes(16)))
    for again in (octets, forged):
        row.do(C, row.machines[C].receive(link, again))
    assert [report.alarm for report in row.reports] == ["RelayAuthenticationFailed"] * 2
    assert levels(row) == before


def test_octets_that_are_not_there_any_more_end_it_and_the_tag_stays_used(row, monkeypatch):
    follow = row.stores[C].follow
    seen = []

    def refuse(link, area, slices):
        if sum(piece.length for piece in slices) > its.WC_KEY_OCTETS:
            seen.append(slices)
            follow(link, area, [Slice(99, 0, 8)])
        return follow(link, area, slices)

    monkeypatch.setattr(row.stores[C], "follow", refuse)
    request_id = begin(row)
    row.settle()
    assert seen
    assert isinstance(row.answers[request_id], Failed)
    assert [report.alarm for report in row.reports] == ["RelayProtocolError"]
    tags = [wire.parse(octets)[0].auth for node, link, octets in row.seen if (node, link) == (C, "b-c")]
    with pytest.raises(Exception, match="were used, passed over"):
        follow(LinkId("b-c"), row.machines[C]._hops.role(LinkId("b-c")).peer, [Slice(*one) for one in tags[0]])


# ── who may say what ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("sender", "to", "changes", "octets", "why"),
    [
        ("e", "b", {}, None, "another node than the first"),
        ("a", "b", {"route": ["a", "b"]}, None, "relays among them"),
        ("a", "b", {"route": ["a", "c", "d"]}, None, "this one behind the first"),
        ("a", "c", {"route": ["a", "e", "c"]}, None, "not neighbours"),
        ("a", "b", {"route": ["a", "b", "e"]}, None, "not neighbours"),
        ("a", "b", {"route": ["a", "b", "a"]}, None, "distinct"),
        ("a", "b", {"initiator": "sae-e"}, None, "SAE of the route's first node"),
        ("a", "b", {"ciphertext": b"x"}, None, "as long as the order says"),
        ("a", "b", {"pad": [(1, 0, 8)]}, None, "no pad"),
        ("a", "e", {"ciphertext": bytes(9)}, 8, "as long as the order says"),
        ("a", "b", {}, 1 << 30, "not a valid message"),
        ("a", "b", {"relay_id": "x" * 65}, None, "length <= 64"),
    ],
)
def test_an_order_that_nobody_may_give_is_refused_and_spends_nothing(row, sender, to, changes, octets, why):
    begin(row)
    order = order_of(row, NodeId(to))
    before = levels(row)
    relay = msgspec.structs.replace(order.relay, **changes)
    said = encode(msgspec.structs.replace(order, relay=relay, octets=octets or order.octets))
    with pytest.raises(WireError, match=why):
        row.machines[NodeId(to)].receive_note(NodeId(sender), said, SERVICE)
    assert levels(row) == before
    row.settle()
    keys_agree(row)


def test_an_order_counts_once(row):
    begin(row)
    order = encode(order_of(row, B))
    row.settle()
    before = levels(row)
    with pytest.raises(WireError, match="seen before"):
        row.machines[B].receive_note(A, order, SERVICE)
    assert levels(row) == before


def test_a_relay_that_is_ordered_for_another_tenant_than_its_words_say_is_not_stored(row):
    """The last node looks at all the words, as it does hop by hop."""

    def lie(sender, receiver, octets):
        body = decode(octets, wire.AnnouncedNote)
        if receiver != E or not isinstance(body, wire.Order):
            return [octets]
        return [encode(msgspec.structs.replace(body, relay=msgspec.structs.replace(body.relay, targets=["sae-d"])))]

    request_id = begin(row)
    row.settle(announce=lie)
    assert isinstance(row.answers[request_id], Failed)
    assert [report.alarm for report in row.reports] == ["RelayProtocolError"]
    assert row.stores[E].pools.ledgers() == {}


@pytest.mark.parametrize(("sender", "is_stored"), [("d", True), ("b", True)])
def test_only_the_last_node_can_have_stored_it(row, sender, is_stored):
    begin(row)
    relay_id = order_of(row, B).relay.relay_id
    said = wire.KeyRelayCompletion(
        relay_id=relay_id, is_stored=is_stored, confirm=bytes(16), reason="", failed_link="", hops=[]
    )
    with pytest.raises(WireError, match=f"node {sender} has no say"):
        row.machines[A].receive_note(NodeId(sender), encode(said), SERVICE)


def test_who_is_not_on_the_route_has_no_say(network_of):
    network = network_of(three_ways(relay="announced"))
    begin(network)
    relay_id = order_of(network, E).relay.relay_id
    said = wire.KeyRelayCompletion(relay_id=relay_id, is_stored=False, confirm=b"", reason="", failed_link="", hops=[])
    with pytest.raises(WireError, match="node f has no say"):
        network.machines[A].receive_note(NodeId("f"), encode(said), SERVICE)
    network.settle()
    keys_agree(network)


def test_a_relay_hop_by_hop_takes_no_answer_in_a_note(row):
    row.machines[A].use_notes(lambda _node: False)
    begin(row)
    relay_id = wire.parse(row.wires[0][2])[1].relay_id
    said = wire.KeyRelayCompletion(relay_id=relay_id, is_stored=False, confirm=b"", reason="", failed_link="", hops=[])
    with pytest.raises(WireError, match="no say"):
        row.machines[A].receive_note(E, encode(said), SERVICE)


def nothing_is_kept(network):
    announcers = [machine._announcer for machine in network.machines.values()]
    return not any(one._passages or one._early or one._ended for one in announcers)


def announcement(relay_id, octets, blocks=0):
    used = wire.BlockUsed(block=1, epsilon=0.0, qber=0.0, authentication="test")
    hop = wire.Hop(link="c-d", sender="c", blocks=[used] * blocks, epsilon=0.0)
    return encode(wire.Announcement(relay_id=relay_id, octets=bytes(octets), hop=hop))


@pytest.mark.parametrize(("octets", "blocks"), [(3000, 0), (56, 23)])
def test_what_comes_before_its_order_is_bounded_for_each_node_and_for_all(row, monkeypatch, octets, blocks):
    monkeypatch.setattr(announced, "EARLY_BY_ONE_MAX", 10_000)
    monkeypatch.setattr(announced, "EARLY_MAX", 25_000)
    for sender in (B, C, D):
        for number in range(20):
            said = announcement(f"{sender}{number}", octets, blocks)
            row.do(E, row.machines[E].receive_note(sender, said, SERVICE))
    early = row.machines[E]._announcer._early
    assert [name[0] for name in early] == [*"bbb", *"ccc", *"dd"]
    # Who fills the room of one node takes nothing of the others'.
    monkeypatch.setattr(announced, "EARLY_BY_ONE", 4)
    row.wait(FORWARD_MEMORY_S + 1)
    assert not early
    for number in range(20):
        row.do(E, row.machines[E].receive_note(D, announcement(f"small {number}", 1), SERVICE))
    assert len(early) == 4
    begin(row)
    row.settle()
    keys_agree(row)


def test_orders_of_a_node_beyond_its_share_are_refused_and_say_so(row, monkeypatch):
    monkeypatch.setattr(announced, "HELD_BY_ONE_MAX", 5_000)
    # Two wait at b for the octets of a.
    waiting = [begin(row), begin(row)]
    third, held = begin(row), []
    row.settle(lambda *wire: held.append(wire) or [] if wire[:2] == (B, "a-b") else [wire[2]])
    answer = row.answers.get(third)
    assert isinstance(answer, Failed)
    assert "too many relays of a under way" in str(answer.error)
    row.wires = held
    row.settle()
    assert [type(row.answers[one]) for one in waiting] == [Supplied, Supplied]


def test_the_last_node_holds_no_more_than_it_has_room_for(row, monkeypatch):
    monkeypatch.setattr(announced, "HELD_MAX", 3_000)
    request_id = begin(row)
    # What d announces comes last: all others wait for it.
    late = []
    row.settle(announce=lambda sender, receiver, octets: late.append(octets) or [] if sender == "d" else [octets])
    assert late
    answer = row.answers.get(request_id)
    assert isinstance(answer, Failed)
    assert "node e has too many relays under way" in str(answer.error)


def test_an_order_that_its_initiator_does_not_pay_for_gets_little_and_once(row, monkeypatch):
    """Notes are cheap: they must not spend the key of others' links."""
    monkeypatch.setattr(announced, "EAGER_OCTETS", 2_000)
    begin(row)
    order = order_of(row, B)
    row.wires.clear()
    row.notes.clear()

    def spend(name):
        before = levels(row)
        for number in range(20):
            relay = msgspec.structs.replace(order.relay, relay_id=f"{name}{number}")
            said = encode(msgspec.structs.replace(order, relay=relay, octets=900))
            for node in (B, C, D, E):
                row.do(node, row.machines[node].receive_note(A, said, SERVICE))
        row.settle()
        now = levels(row)
        forward = [(link.alice, link.id) for link in row.topology.links]
        return {place[1]: before[place].own_octets - now[place].own_octets for place in forward}

    spent = spend("first")
    assert spent["a-b"] == 0
    assert 0 < max(spent.values()) <= 2_000 + 2 * its.WC_KEY_OCTETS
    # The first relay knows better now; those behind it each have to wait for it once.
    for turn in ("second", "third"):
        row.wait(FORWARD_MEMORY_S + 1)
        spent = spend(turn)
        assert max(spent.values()) <= 2_000 + 2 * its.WC_KEY_OCTETS
    assert spent["b-c"] == spent["c-d"] == 0
    row.wait(FORWARD_MEMORY_S + 1)
    assert set(spend("fourth").values()) == {0}
    row.wait(FORWARD_MEMORY_S + 1)
    # Its keys are relayed on, hop after hop.
    request_id = begin(row)
    row.settle()
    assert isinstance(row.answers[request_id], Supplied)
    assert row.answers[request_id].receipt["relay"] == "announced"
    row.wait(announced.DISTRUST_S + 1)
    assert not row.machines[B]._announcer._distrusted


@pytest.mark.parametrize("octets", [b"", bytes(wire.PART_OCTETS_MAX + 1)])
def test_an_announcement_of_a_length_that_nothing_has_is_refused(row, octets):
    hop = wire.Hop(link="c-d", sender="c", blocks=[], epsilon=0.0)
    said = wire.Announcement(relay_id="x", octets=octets, hop=hop)
    with pytest.raises(WireError, match="no octets, or too many"):
        row.machines[E].receive_note(C, encode(said), SERVICE)
    assert not row.machines[E]._announcer._passages


def test_octets_of_a_link_serve_the_order_for_which_they_were_taken_alone(network_of):
    """C has not heard of the order of a; m, which sees what b announces, orders c by the same name for itself and y."""
    pairs = ["ab", "bc", "ce", "bm", "me", "cy"]
    nodes = tuple(Node(id=NodeId(name)) for name in "abcemy")
    links = tuple(
        Link(id=link_id(NodeId(one), NodeId(two)), alice=NodeId(one), bob=NodeId(two), length_km=5, loss_db=3)
        for one, two in pairs
    )
    topology = with_saes(Topology(name="t", nodes=nodes, links=links))
    network = network_of(of_tenant(topology, relay="announced", avoid=(NodeId("m"),)))
    begin(network)
    order = order_of(network, E)
    assert order.relay.route == list("abce")
    said = []

    def hear(sender, receiver, octets):
        body = decode(octets, wire.AnnouncedNote)
        said.append((sender, type(body)))
        return [] if (sender, receiver) == ("a", C) or receiver == "m" else [octets]

    network.settle(announce=hear)
    relay = msgspec.structs.replace(order.relay, route=list("mbcy"), initiator="sae-m", targets=["sae-y"])
    forged = encode(msgspec.structs.replace(order, relay=msgspec.structs.replace(relay, all_targets=["sae-y"])))
    network.do(C, network.machines[C].receive_note(NodeId("m"), forged, SERVICE))
    network.settle(announce=hear)
    assert ("b", wire.Announcement) in said
    assert ("c", wire.Announcement) not in said
    assert [report.alarm for report in network.reports] == ["RelayProtocolError"]


def test_figures_of_a_hop_are_finite(row):
    """What is not cannot be kept in a receipt."""

    def lie(sender, _receiver, octets):
        body = decode(octets, wire.AnnouncedNote)
        if sender != "c" or not isinstance(body, wire.Announcement):
            return [octets]
        return [encode(msgspec.structs.replace(body, hop=msgspec.structs.replace(body.hop, epsilon=float("inf"))))]

    begin(row)
    with pytest.raises(WireError, match=r"epsilon"):
        row.settle(announce=lie)


def test_key_ids_that_are_none_are_said_to_the_initiator(row):
    def lie(_sender, _receiver, octets):
        body = decode(octets, wire.AnnouncedNote)
        if not isinstance(body, wire.Order):
            return [octets]
        return [encode(msgspec.structs.replace(body, relay=msgspec.structs.replace(body.relay, key_ids=["none"])))]

    request_id, effects = row.machines[A].request(SaeId("sae-a"), [SaeId("sae-e")], 1, 256)
    # The first node has bound its octets to what it said; so has everybody here, to what was made of that.
    swapped = lie("a", "b", row_note(effects))
    digest = announced._digest(swapped[0])
    row.do(A, [rebound(row, effect, digest) for effect in effects])
    row.settle(announce=lie)
    assert isinstance(row.answers[request_id], Failed)
    assert not any(machine.under_way([link.id for link in row.topology.links]) for machine in row.machines.values())


def row_note(effects):
    return next(effect.octets for effect in effects if isinstance(effect, Tell))


def rebound(network, effect, digest):
    """A message of a with its octets for another order."""
    if not isinstance(effect, SendKx):
        return effect
    sealed, body = wire.parse(effect.octets)
    key = network.stores[A]._material(effect.link, [Slice(*piece) for piece in sealed.auth])
    octets = encode(msgspec.structs.replace(body, order=digest))
    label = b"|".join([PROTOCOL.encode(), b"a", b"b", effect.link.encode()])
    tag = its.tag(key.reveal(), label, [octets])
    return SendKx(effect.link, encode(wire.Sealed(body=octets, auth=sealed.auth, tag=tag)))


def test_a_disk_that_does_not_take_it_is_said_to_the_initiator(row, monkeypatch):
    transaction, depth = row.stores[C].transaction, []

    @contextlib.contextmanager
    def failing():
        depth.append(None)
        try:
            with transaction():
                yield
                if len(depth) == 1 and armed:
                    raise StoreError("no space")
        finally:
            depth.pop()

    armed = []
    monkeypatch.setattr(row.stores[C], "transaction", failing)
    request_id = begin(row)
    wires, row.wires = row.wires, []
    orders = [note for note in row.notes if note[1] == C]
    row.notes = [note for note in row.notes if note[1] != C]
    for sender, receiver, octets, service in orders:
        row.do(receiver, row.machines[receiver].receive_note(sender, octets, service))
    armed.append(None)
    row.wires = wires + row.wires
    row.settle()
    assert isinstance(row.answers[request_id], Failed)
    assert "node c refused the keys" in str(row.answers[request_id].error)
    assert {report.alarm for report in row.reports} == {"StorageFull"}


def test_what_is_over_is_forgotten_though_a_neighbour_names_it_again_and_again(row):
    announcer = row.machines[C]._announcer
    for turn in range(10):
        announcer.void("again")
        for number in range(10):
            announcer.void(f"{turn}-{number}")
        row.clock.now_s += 20.0
        row.machines[C].tick()
    assert len(announcer._ended) <= 21


def test_a_link_far_away_that_leaves_the_network_meanwhile_is_no_surprise(network_of):
    whole = of_tenant(row_of_nodes(), relay="announced")
    network = network_of(whole)
    mine = LiveTopology(whole)
    network.machines[A] = Kx(A, mine, network.stores[A], Dice(), network.clock)
    network.machines[A].use_notes(lambda _node: True)
    network.machines[A].link_up(LinkId("a-b"))
    begin(network)
    mine.adopt(replace(whole, links=whole.links[:-1]))
    with pytest.raises(WireError, match="not in the network any more"):
        network.settle()


def test_what_a_relay_of_another_kind_left_under_this_name_does_not_speak_for_it(row):
    """C makes d remember something else under the ID, before the order comes to d, and lies."""
    begin(row)
    relay_id = order_of(row, D).relay.relay_id
    other = key_relay(row, relay_id)
    row.do(D, row.machines[D].receive(LinkId("c-d"), other.octets))
    row.settle(announce=lying("c"))
    row.wait(ANSWER_S + 0.1)
    row.wait(ANSWER_S + 0.1)
    assert "d" not in named(row)


def test_a_relay_by_announced_xors_is_not_taken_hop_by_hop(row):
    begin(row)
    relay_id = order_of(row, D).relay.relay_id
    for sender, receiver, octets, service in row.notes:
        row.do(receiver, row.machines[receiver].receive_note(sender, octets, service))
    row.do(D, row.machines[D].receive(LinkId("c-d"), key_relay(row, relay_id).octets))
    assert [report.text for report in row.reports] == ["link c-d: relay: seen before"]


def key_relay(network, relay_id):
    """A relay of node c's own, from c to d."""
    hops = network.machines[C]._hops
    pad, tag_key = hops.allocate(LinkId("c-d"), 64)
    body = wire.KeyRelay(
        relay_id=relay_id,
        route=["c", "d"],
        initiator="sae-c",
        targets=["sae-d"],
        all_targets=["sae-d"],
        key_ids=[str(uuid.uuid4())],
        key_bits=256,
        segment=0,
        expires_unix_s=9e9,
        hybrid=None,
        pad=[(one.block, one.offset, one.length) for one in pad.slices],
        ciphertext=bytes(64),
        hops=[hops.record(LinkId("c-d"), pad.slices)],
    )
    return hops.seal(LinkId("c-d"), body, tag_key)


def test_an_answer_of_a_neighbour_does_not_stand_for_the_note_of_the_last_node(row):
    begin(row)
    relay_id = order_of(row, B).relay.relay_id
    said = wire.KeyRelayCompletion(relay_id=relay_id, is_stored=False, confirm=b"", reason="", failed_link="", hops=[])
    row.do(A, row.machines[A].receive(LinkId("a-b"), row.machines[B]._hops.seal(LinkId("a-b"), said).octets))
    assert "whose answer is a note" in row.reports[0].text
    row.settle()
    keys_agree(row)


@pytest.mark.parametrize("sender", ["c", "g"])
def test_nobody_answers_for_the_share_of_another(network_of, sender):
    """A share hop by hop that is waited for after all is done: a note of anybody must not open an inquest on it."""
    network = network_of(three_ways(routes_min=2, routes_spare=1))
    held = []

    def hold(node, link, octets):
        if (node, link) != (E, "c-e"):
            return [octets]
        held.append(octets)
        return []

    request_id = begin(network)
    network.settle(hold)
    assert isinstance(network.answers[request_id], Supplied)
    relay_id = wire.parse(held[0])[1].relay_id
    network.do(E, network.machines[E].receive(LinkId("c-e"), held[0]))
    said = wire.KeyRelayCompletion(
        relay_id=relay_id, is_stored=False, confirm=b"", reason="", failed_link="", hops=[], wrong=("x",)
    )
    with pytest.raises(WireError, match="no say"):
        network.machines[A].receive_note(NodeId(sender), encode(said), SERVICE)
    network.settle()
    network.wait(ANSWER_S + 1)
    assert not network.reports


# ── who changed it ──────────────────────────────────────────────────────────────────────────────────────────────────


def lying(who):
    """Node `who` announces another XOR than that of its two links."""

    def announce(sender, _receiver, octets):
        body = decode(octets, wire.AnnouncedNote)
        if sender != who or not isinstance(body, wire.Announcement):
            return [octets]
        changed = bytearray(body.octets)
        changed[-200] ^= 1
        return [encode(msgspec.structs.replace(body, octets=bytes(changed)))]

    return announce


def saying(network, who, what):
    """What a corrupt node states of itself."""

    def state(sender, octets):
        body = decode(octets, Question | Statement)
        if sender != who or isinstance(body, Question):
            return [octets]
        implied = network.machines[E]._inquests._records[body.relay_id].said.implied
        changes = {
            "the truth": {},
            "nothing": None,
            "I know nothing": {"sent": b"", "received": b""},
            "I had what the sum says": {"received": implied[ROW.index(who) - 1]},
            "I sent something else": {"sent": os.urandom(32)},
        }[what]
        return [] if changes is None else [encode(msgspec.structs.replace(body, **changes))]

    return state


def named(network):
    return [report.node for report in network.reports if report.alarm == "RelayTampered" and report.node]


@pytest.mark.parametrize(
    ("who", "what", "suspects"),
    [
        ("b", "the truth", "b"),
        ("c", "the truth", "c"),
        ("d", "the truth", "d"),
        ("b", "I had what the sum says", "b"),
        ("c", "I had what the sum says", "b or c"),
        ("d", "I had what the sum says", "c or d"),
        ("b", "I sent something else", "b or c"),
        ("c", "I sent something else", "c or d"),
        ("d", "I sent something else", "d"),
        ("b", "nothing", "b or c"),
        ("c", "nothing", "b or c or d"),
        ("d", "nothing", "c or d"),
        ("c", "I know nothing", "b or c or d"),
    ],
)
def test_whoever_announces_something_else_is_named_or_one_of_two(row, who, what, suspects):
    request_id = begin(row)
    row.settle(announce=lying(who), state=saying(row, who, what))
    row.clock.now_s += ANSWER_S + 0.1
    row.do(A, row.machines[A].tick())
    row.settle()
    assert isinstance(row.answers[request_id], Failed)
    assert named(row) == [suspects]


@pytest.mark.parametrize(
    ("who", "silent", "suspects"),
    [
        ("d", "cd", "b or c or d"),
        ("c", "bc", "b or c or d"),
        ("d", "bcd", "b or c or d"),
        ("b", "c", "b"),
        ("d", "c", "d"),
    ],
)
def test_who_was_not_heard_is_not_cleared(row, who, silent, suspects):
    begin(row)
    row.settle(announce=lying(who), state=lambda sender, octets: [] if sender in silent else [octets])
    row.clock.now_s += ANSWER_S + 0.1
    row.do(A, row.machines[A].tick())
    row.settle(state=lambda sender, octets: [] if sender in silent else [octets])
    row.wait(ANSWER_S + 0.1)
    assert named(row) == [suspects]


def test_a_node_that_started_anew_and_knows_nothing_is_no_liar(row):
    begin(row)
    row.settle(announce=lambda sender, _receiver, octets: [] if sender == "e" else [octets])
    row.machines[D]._inquests._records.clear()
    row.clock.now_s += REQUEST_TIMEOUT_S + 0.1
    row.do(A, row.machines[A].tick())
    row.settle()
    row.wait(ANSWER_S + 0.1)
    assert named(row) == []


def test_only_the_initiators_node_is_told_what_passed(row):
    begin(row)
    row.settle()
    (relay_id,) = row.machines[C]._inquests._records
    for node, is_told in ((D, False), (A, True)):
        (told,) = row.machines[C].receive_note(node, encode(Question(relay_id=relay_id)))
        assert bool(decode(told.octets, Question | Statement).sent) is is_told


def test_digests_of_all_links_together_say_less_than_a_salt_has(row):
    begin(row)
    row.settle()
    (record,) = row.machines[E]._inquests._records.values()
    assert sum(map(len, record.said.implied)) == 48
    assert len(record.said.implied) == 4


def test_one_lying_relay_stops_nothing_where_a_share_is_to_spare(network_of):
    network = network_of(three_ways(relay="announced", routes_min=2, routes_spare=1))
    request_id = begin(network)
    network.settle(announce=lying("f"))
    network.wait(ANSWER_S + 1)
    assert isinstance(network.answers[request_id], Supplied)
    keys_agree(network)
    assert "f" in [report.node for report in network.reports if report.alarm == "RelayTampered"]


def test_a_silent_relay_is_named_silent(row):
    begin(row)
    row.settle(announce=lambda sender, _receiver, octets: [] if sender == "c" else [octets], state=lambda *_: [])
    row.clock.now_s += REQUEST_TIMEOUT_S + 0.1
    row.do(A, row.machines[A].tick())
    row.settle()
    row.wait(ANSWER_S + 0.1)
    (silent,) = [report for report in row.reports if report.alarm == "RelaySilent"]
    # C has had its part and says so; what it announced came to nobody.
    assert "not all of it came" in silent.text
    assert not [report for report in row.reports if report.alarm == "RelayTampered"]


def test_every_relay_of_a_cargo_has_its_own_octets(row):
    for _ in range(3):
        assert isinstance(row.ask("sae-a", ["sae-e"], number=2), Supplied)
    taken = [(link, piece) for link, body in bodies(row) for piece in body.pad]
    taken += [(link, piece) for _, link, octets in row.seen for piece in decode(octets, wire.Sealed).auth]
    by_link = {}
    for link, (block, offset, length) in taken:
        octets = by_link.setdefault((link, block), set())
        assert octets.isdisjoint(range(offset, offset + length))
        octets |= set(range(offset, offset + length))


def test_the_link_of_a_relay_may_be_taken_out_of_the_network(row):
    request_id = begin(row)
    row.settle(change=lambda node, _link, octets: [] if node == "e" else [octets])
    gone = LinkId("d-e")
    row.do(D, row.machines[D].link_gone(gone))
    row.do(E, row.machines[E].link_gone(gone))
    row.settle()
    assert isinstance(row.answers[request_id], Failed)
    assert not row.machines[E].under_way([gone])


# ── whatever comes ──────────────────────────────────────────────────────────────────────────────────────────────────


def mutated(dice, body):
    """A note with something wrong in it."""
    change = msgspec.structs.replace
    if isinstance(body, wire.Announcement):
        return dice.choice(
            [change(body, octets=body.octets[:-1] or b"x"), change(body, hop=change(body.hop, link="z", sender="q"))]
        )
    if isinstance(body, wire.KeyRelayCompletion):
        words = {"is_stored": dice.random() < 0.5, "taken": (1, 2), "wrong": ("c-e", "z"), "hops": []}
        return change(body, failed_link=dice.choice(["", "z", "c-e"]), **words)
    relay = body.relay
    wrong = dice.choice(
        [
            {"route": dice.sample(relay.route, len(relay.route))},
            {"targets": dice.choice([[], ["z"], ["sae-b"]])},
            {"key_ids": dice.choice([["x"], [], ["é" * 99]])},
            {"share": wire.Share(group="g", number=0, count=2, needed=2)},
            {"initiator": dice.choice(["", "sae-b", "nobody"])},
            {"ciphertext": bytes(body.octets)},
            {"segment": dice.choice([0, 1, 7]), "key_bits": dice.choice([0, 8, 256])},
            {"relay_id": str(dice.random())},
        ]
    )
    return change(body, relay=change(relay, **wrong), octets=dice.choice([1, body.octets, body.octets]))


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_said_in_whatever_order_no_octet_is_used_twice_and_nothing_stays(network_of, seed):
    """Notes and messages are lost, doubled, late and wrong, links come and go. Only qtrunk's own errors come of it."""
    dice = random.Random(seed)
    shape = [row_of_nodes, ring_of_nodes, three_ways][seed % 3]
    limits = {} if seed % 2 or shape is row_of_nodes else {"routes_min": 2}
    network = network_of(of_tenant(shape(), relay="announced", **limits))
    names = [node.id for node in network.topology.nodes]
    for _ in range(8):
        source, target = dice.sample(names, 2)
        _, effects = network.machines[source].request(SaeId(f"sae-{source}"), [SaeId(f"sae-{target}")], 2, 256)
        network.do(source, effects)
        for _ in range(150):
            with contextlib.suppress(QtrunkError):
                step(network, dice)
        network.clock.now_s += dice.choice([0.5, 2.0, 6.0])
        tick(network)
    used = {}
    for _, link, octets in dict.fromkeys(network.seen):
        sealed, body = wire.parse(octets)
        for block, offset, length in [*sealed.auth, *getattr(body, "pad", [])]:
            octets_used = used.setdefault((link, block), set())
            assert octets_used.isdisjoint(range(offset, offset + length))
            octets_used |= set(range(offset, offset + length))
    for answer in network.answers.values():
        if isinstance(answer, Supplied):
            route = answer.receipt["routes"][0]
            found = network.stores[route[-1]].collect(
                SaeId(f"sae-{route[-1]}"), SaeId(f"sae-{route[0]}"), [key.key_id for key in answer.keys]
            )
            assert same(found, answer.keys)
    for _ in range(6):
        network.clock.now_s += 30.0
        tick(network)
        network.wires.clear()
        network.notes.clear()
    assert nothing_is_kept(network)
    links = [link.id for link in network.topology.links]
    assert not any(machine.under_way(links) or machine.is_waiting for machine in network.machines.values())


def step(network, dice):
    """One thing happens."""
    if network.wires and dice.random() < 0.5:
        place = 0 if dice.random() < 0.7 else dice.randrange(len(network.wires))
        node, link, octets = network.wires[place] if dice.random() < 0.1 else network.wires.pop(place)
        if dice.random() > 0.03:
            network.seen.append((node, link, octets))
            network.do(node, network.machines[node].receive(link, octets))
    elif network.notes:
        place = dice.randrange(len(network.notes))
        sender, receiver, octets, service = network.notes[place] if dice.random() < 0.15 else network.notes.pop(place)
        if service == SERVICE and dice.random() < 0.15:
            octets = encode(mutated(dice, decode(octets, wire.AnnouncedNote)))
        if dice.random() > 0.05:
            network.do(receiver, network.machines[receiver].receive_note(sender, octets, service))
    if dice.random() < 0.02:
        link = dice.choice(network.topology.links)
        for node in (link.alice, link.bob):
            network.do(node, network.machines[node].link_down(link.id))
            network.machines[node].link_up(link.id)


def tick(network):
    for node, machine in network.machines.items():
        network.do(node, machine.tick())
