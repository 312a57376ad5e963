"""Relay machines joined by octets, on real key stores: keys agree, nothing is given twice, what is in doubt is
refused.
"""

import pytest
from relay_network import Dice, same

from qtrunk.base.errors import KeyExhausted, KeyNotFound
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.wire import decode
from qtrunk.relay import messages as wire
from qtrunk.relay.kx import REQUEST_TIMEOUT_S, Failed, Kx, Supplied
from qtrunk.stages import Role


@pytest.mark.parametrize(("start", "end"), [("a", "b"), ("a", "e"), ("e", "a"), ("b", "d")])
def test_both_ends_get_the_same_keys_once(row, start, end):
    answer = row.ask(f"sae-{start}", [f"sae-{end}"], number=3, key_bits=512)
    assert isinstance(answer, Supplied)
    assert len({bytes(key.material.reveal()) for key in answer.keys}) == 3
    assert same(row.collect(f"sae-{end}", f"sae-{start}", answer.keys), answer.keys)
    with pytest.raises(KeyNotFound):
        row.collect(f"sae-{end}", f"sae-{start}", answer.keys)
    assert not row.reports


def test_several_targets_at_several_nodes_get_the_same_key(row):
    answer = row.ask("sae-b", ["sae-e", "sae-a", "other-a", "sae-b"])
    assert isinstance(answer, Supplied)
    for target in ("sae-e", "sae-a", "other-a", "sae-b"):
        assert same(row.collect(target, "sae-b", answer.keys), answer.keys)


def test_two_saes_of_one_node_need_no_link(row):
    answer = row.ask("sae-a", ["other-a"], number=2)
    assert isinstance(answer, Supplied)
    assert not row.seen
    assert same(row.collect("other-a", "sae-a", answer.keys), answer.keys)


def test_a_neighbours_key_is_link_key_itself(row):
    answer = row.ask("sae-a", ["sae-b"])
    relay = decode(decode(row.seen[0][2], wire.Sealed).body, wire.KxMessage)
    assert relay.ciphertext == bytes(64)
    assert bytes(answer.keys[0].material.reveal()) != bytes(32)


def test_no_message_and_no_relay_disk_holds_an_end_to_end_key(row):
    answer = row.ask("sae-a", ["sae-e"])
    material = bytes(answer.keys[0].material.reveal())
    assert all(material not in octets for _, _, octets in row.seen)
    for path in row.directory.rglob("*"):
        if path.is_file():
            assert material not in path.read_bytes()


def test_the_receipts_of_both_ends_name_every_hop(row):
    answer = row.ask("sae-a", ["sae-e"])
    for node, side in (("a", "initiated"), ("e", "stored")):
        receipt = row.stores[NodeId(node)].receipt(answer.keys[0].key_id)[side]["receipt"]
        assert [hop["link"] for hop in receipt["hops"]] == ["a-b", "b-c", "c-d", "d-e"]
        assert receipt["routes"] == [list("abcde")]
        assert receipt["epsilon"] == pytest.approx(4e-10)
        blocks = [block for hop in receipt["hops"] for block in hop["blocks"]]
        assert {block["authentication"] for block in blocks} == {"wegman-carter"}


def test_an_empty_link_is_named_and_nothing_stays_stored(row):
    store = row.stores[NodeId("c")]
    store.allocate(LinkId("c-d"), Role.ALICE, store.level(LinkId("c-d")).own_octets - 100)
    answer = row.ask("sae-a", ["sae-e"])
    assert isinstance(answer, Failed)
    assert isinstance(answer.error, KeyExhausted)
    assert "c-d" in str(answer.error)
    assert row.stores[NodeId("e")].counts().get("stored stored", 0) == 0


def test_a_ring_goes_the_other_way_round(circle):
    store = circle.stores[NodeId("b")]
    store.allocate(LinkId("b-c"), Role.ALICE, store.level(LinkId("b-c")).own_octets - 100)
    answer = circle.ask("sae-a", ["sae-c"])
    assert isinstance(answer, Supplied)
    assert same(circle.collect("sae-c", "sae-a", answer.keys), answer.keys)
    receipt = circle.stores[NodeId("a")].receipt(answer.keys[0].key_id)["initiated"]["receipt"]
    assert receipt["routes"] == [list("aedc")]


def test_a_lost_neighbour_fails_the_request_at_once_or_reroutes(circle):
    circle.machines[NodeId("b")].link_down(LinkId("b-c"))
    answer = circle.ask("sae-a", ["sae-c"])
    assert isinstance(answer, Supplied)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("place", [3, 40, 150, -3])
def test_a_changed_message_gives_no_key_and_is_reported(row, which, place):
    def flip(_node, _link, octets):
        if len(row.seen) - 1 != which:
            return [octets]
        changed = bytearray(octets)
        changed[place] ^= 4
        return [bytes(changed)]

    assert row.ask("sae-a", ["sae-e"], change=flip) is None
    assert row.reports
    row.wait(REQUEST_TIMEOUT_S + 1)
    (answer,) = row.answers.values()
    assert isinstance(answer, Failed)
    assert row.stores[NodeId("e")].counts().get("stored stored", 0) == 0


@pytest.mark.parametrize("which", range(8))
def test_a_lost_message_is_voided_and_both_ends_agree(row, which):
    answer = row.ask("sae-a", ["sae-e"], change=lambda *m: [] if len(row.seen) - 1 == which else [m[2]])
    assert answer is None
    row.wait(REQUEST_TIMEOUT_S + 1)
    (answer,) = row.answers.values()
    assert isinstance(answer, Failed)
    assert row.stores[NodeId("e")].counts().get("stored stored", 0) == 0
    assert isinstance(row.ask("sae-a", ["sae-e"]), Supplied)


def test_a_replayed_message_changes_nothing_and_is_reported(row):
    answer = row.ask("sae-a", ["sae-e"], change=lambda *m: [m[2], m[2]])
    assert isinstance(answer, Supplied)
    assert {report.alarm for report in row.reports} <= {"RelayAuthenticationFailed", "RelayProtocolError"}
    assert len(row.reports) == 8
    before = [store.ledger(LinkId("a-b")) for node, store in row.stores.items() if node in "ab"]
    for node, link, octets in list(row.seen):
        row.do(node, row.machines[node].receive(link, octets))
    assert before == [store.ledger(LinkId("a-b")) for node, store in row.stores.items() if node in "ab"]
    assert not row.wires
    assert same(row.collect("sae-e", "sae-a", answer.keys), answer.keys)


def test_a_reflected_message_is_refused(row):
    row.ask("sae-a", ["sae-b"])
    for node, link, octets in list(row.seen):
        sender = row.topology.link(link).other(node)
        row.do(sender, row.machines[sender].receive(link, octets))
    assert len(row.reports) == 2


def test_garbage_is_reported_not_raised(row):
    for octets in (b"", b"\xff" * 40, bytes(1000)):
        row.do(NodeId("b"), row.machines[NodeId("b")].receive(LinkId("a-b"), octets))
    assert len(row.reports) == 3


def test_one_way_traffic_gets_octets_of_the_other_direction(row):
    link = LinkId("a-b")
    supplied = 0
    for _ in range(60):
        answer = row.ask("sae-a", ["sae-b"], number=2, key_bits=2048)
        supplied += isinstance(answer, Supplied)
        row.wait(1.1)
    # One direction alone holds (40000 - 1008) / 2 octets; each batch takes 512 and 32.
    assert supplied * 544 > 19_496 * 1.3
    for node in "ab":
        ledger = row.stores[NodeId(node)].ledger(link)
        assert ledger.skipped == 0


def test_a_crash_of_a_relay_loses_the_batch_and_nothing_else(row, tmp_path):
    def crash(node, _link, octets):
        # The relay at c spends its octets and dies before it sends.
        return [] if node == "d" and len(row.seen) == 3 else [octets]

    row.ask("sae-a", ["sae-e"], change=crash)
    row.machines[NodeId("c")] = Kx(NodeId("c"), row.topology, row.stores[NodeId("c")], Dice(), row.clock)
    for link in ("b-c", "c-d"):
        row.machines[NodeId("c")].link_up(LinkId(link))
    row.wait(REQUEST_TIMEOUT_S + 1)
    answer = row.ask("sae-a", ["sae-e"])
    assert isinstance(answer, Supplied)
    assert same(row.collect("sae-e", "sae-a", answer.keys), answer.keys)
