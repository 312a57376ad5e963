"""Relay by announced XORs: what comes of it is what comes hop by hop, in whatever order its parts come, and who changes
something is named.
"""

import os
import random
from itertools import pairwise

import msgspec
import pytest
from relay_network import of_tenant, ring_of_nodes, row_of_nodes, same, three_ways

from qtrunk.base.errors import WireError
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.base.wire import decode, encode
from qtrunk.crypto import its
from qtrunk.kms.key import Slice
from qtrunk.kms.poolstate import HEAD_OCTETS
from qtrunk.relay import announced
from qtrunk.relay import messages as wire
from qtrunk.relay.inquest import ANSWER_S, Question, Statement
from qtrunk.relay.kx import FORWARD_MEMORY_S, REQUEST_TIMEOUT_S, Failed, Supplied

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
        machine.has_notes = False
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


def test_a_relay_without_key_says_so_and_hop_by_hop_is_tried(row):
    level = row.stores[C].level(LinkId("c-d"))
    row.stores[C].allocate(LinkId("c-d"), row.machines[C]._hops.role(LinkId("c-d")), level.own_octets - 1500)
    answer = row.ask("sae-a", ["sae-e"], number=20)
    assert isinstance(answer, Failed)
    assert "link c-d" in str(answer.error)
    assert not row.reports


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

    def hold(sender, receiver, octets):
        if receiver != E or sender == A:
            return [octets]
        late.append((sender, octets))
        return []

    request_id = begin(row)
    row.settle(announce=hold)
    row.wait(REQUEST_TIMEOUT_S + 0.1)
    assert isinstance(row.answers[request_id], Failed)
    assert len(late) == 3
    for sender, octets in late:
        row.do(E, row.machines[E].receive_note(sender, octets, SERVICE))
    row.settle()
    assert row.stores[E].pools.ledgers() == {}
    row.wait(FORWARD_MEMORY_S + 1)
    assert not row.machines[E]._announcer._ended
    assert not any(machine._announcer._passages for machine in row.machines.values())


@pytest.mark.parametrize("what", ["longer", "elsewhere"])
def test_octets_that_are_not_those_of_the_order_end_it(row, what):
    swapped = []

    def change(node, link, octets):
        if node != C or link != "b-c" or swapped:
            return [octets]
        swapped.append(octets)
        relay_id = wire.parse(octets)[1].relay_id
        # B is corrupt: it gives C more octets than were ordered, or C hears of the relay from D.
        liar, over = (B, link) if what == "longer" else (D, LinkId("c-d"))
        hops = row.machines[liar]._hops
        pad, tag_key = hops.allocate(over, HEAD_OCTETS + (641 if what == "longer" else 640))
        said = wire.RelayPad(relay_id=relay_id, pad=[(one.block, one.offset, one.length) for one in pad.slices])
        row.wires.append((C, over, hops.seal(over, said, tag_key).octets))
        return []

    request_id = begin(row)
    row.settle(change)
    answer = row.answers[request_id]
    assert isinstance(answer, Failed)
    assert "node c refused the keys" in str(answer.error)
    assert [report.alarm for report in row.reports] == ["RelayProtocolError"]
    assert "over another link than the order says" in row.reports[0].text


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
    row.machines[A].has_notes = False
    begin(row)
    relay_id = wire.parse(row.wires[0][2])[1].relay_id
    said = wire.KeyRelayCompletion(relay_id=relay_id, is_stored=False, confirm=b"", reason="", failed_link="", hops=[])
    with pytest.raises(WireError, match="no say"):
        row.machines[A].receive_note(E, encode(said), SERVICE)


def test_what_waits_is_bounded(row, monkeypatch):
    monkeypatch.setattr(announced, "HELD_OCTETS_MAX", 10_000)
    monkeypatch.setattr(announced, "PASSAGES_MAX", 8)
    hop = wire.Hop(link="c-d", sender="c", blocks=[], epsilon=0.0)
    for number in range(20):
        said = wire.Announcement(relay_id=str(number), octets=bytes(3000), hop=hop)
        row.do(E, row.machines[E].receive_note(C, encode(said), SERVICE))
        held = row.machines[E]._announcer._passages
        assert sum(passage.held_octets() for passage in held.values()) <= 10_000
    assert list(held) == ["17", "18", "19"]
    for number in range(20):
        said = wire.Announcement(relay_id=f"small {number}", octets=b"x", hop=hop)
        row.do(E, row.machines[E].receive_note(C, encode(said), SERVICE))
    assert len(row.machines[E]._announcer._passages) == 8


@pytest.mark.parametrize("octets", [b"", bytes(wire.PART_OCTETS_MAX + 1)])
def test_an_announcement_of_a_length_that_nothing_has_is_refused(row, octets):
    hop = wire.Hop(link="c-d", sender="c", blocks=[], epsilon=0.0)
    said = wire.Announcement(relay_id="x", octets=octets, hop=hop)
    with pytest.raises(WireError, match="no octets, or too many"):
        row.machines[E].receive_note(C, encode(said), SERVICE)
    assert not row.machines[E]._announcer._passages


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
            "I had what the sum says": {"received": implied[ROW.index(who) - 1]},
            "I sent something else": {"sent": os.urandom(32)},
        }[what]
        return [] if changes is None else [encode(msgspec.structs.replace(body, **changes))]

    return state


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
        ("b", "nothing", "b"),
        ("c", "nothing", "b or c"),
        ("d", "nothing", "c or d"),
    ],
)
def test_whoever_announces_something_else_is_named_or_one_of_two(row, who, what, suspects):
    request_id = begin(row)
    row.settle(announce=lying(who), state=saying(row, who, what))
    row.clock.now_s += ANSWER_S + 0.1
    row.do(A, row.machines[A].tick())
    row.settle()
    assert isinstance(row.answers[request_id], Failed)
    assert [report.node for report in row.reports if report.alarm == "RelayTampered" and report.node] == [suspects]
    assert row.stores[E].pools.ledgers() == {} or not row.stores[E].pools.quality(SaeId("sae-a"), SaeId("sae-e"))


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
