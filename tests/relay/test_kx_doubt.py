"""What strangers may send, what SAEs may ask, what may fail in the middle: refused, reported, and nothing lost that
need not be.
"""

import uuid

import msgspec
import pytest
from relay_network import same

from qtrunk.base.errors import KeyNotFound, KeyPending, RequestRefused, StoreError
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.base.wire import encode
from qtrunk.crypto import its
from qtrunk.node import kxrunner
from qtrunk.relay import messages as wire
from qtrunk.relay.hops import KEY_PENDING
from qtrunk.relay.kx import REQUEST_TIMEOUT_S, RETRY_TIMEOUT_S, Failed, Supplied
from qtrunk.stages import Role

A, B, C, E = NodeId("a"), NodeId("b"), NodeId("c"), NodeId("e")
LINK = LinkId("a-b")
DEEP = b"\x91" * 100_000 + b"\xc0"


def relay(**changes):
    value = {
        "relay_id": "r",
        "route": ["a", "b"],
        "initiator": "sae-a",
        "targets": ["sae-b"],
        "all_targets": ["sae-b"],
        "key_ids": [str(uuid.uuid4())],
        "key_bits": 256,
        "segment": 0,
        "hybrid": None,
        "expires_unix_s": 9e9,
        "pad": [(1, 1040, 64)],
        "ciphertext": bytes(64),
        "hops": [wire.Hop(link="a-b", sender="a", blocks=[], epsilon=1e-10)],
    }
    return wire.KeyRelay(**{**value, **changes})


def forged(body=b"", auth=((1, 1008, 32),)):
    octets = body if isinstance(body, bytes) else encode(body)
    return msgspec.msgpack.encode({"type": "sealed", "body": octets, "auth": auth, "tag": bytes(16)})


def receive(network, octets, node=B, link=LINK):
    network.do(node, network.machines[node].receive(link, octets))


def sealed_by_a(network, **changes):
    """A relay that node A itself tags: authentic, whatever is in it."""
    machine, store = network.machines[A], network.stores[A]
    tag_key = store.allocate(LINK, Role.ALICE, its.WC_KEY_OCTETS)
    pad = store.allocate(LINK, Role.ALICE, 64)
    pieces = [(piece.block, piece.offset, piece.length) for piece in pad.slices]
    return machine._hops.seal(LINK, relay(pad=pieces, **changes), tag_key).octets


@pytest.mark.parametrize(
    "octets",
    [
        forged(b"\x82\xa1z" + DEEP + b"\xa4type\xa8key-void"),
        b"\x82\xa1z" + DEEP + b"\xa4type\xa6sealed",
        forged(relay(), [(2**63, 0, 32)]),
        forged(relay(), [(1, 2**63, 32)]),
        forged(relay(), [(1, 2**63 - 5, 32)]),
        forged(relay(), [(1, 0, 2**64 - 1)]),
        forged(relay(), [(1, 1008, 32), (1, 5000, 0)]),
        forged(relay(), [(1, -32, 32)]),
        forged(relay(), []),
        forged(relay(), [(2**40, 0, 32)]),
    ],
)
def test_whatever_a_stranger_sends_is_reported_and_costs_no_key(row, octets):
    before = row.stores[B].ledger(LINK)
    receive(row, octets)
    assert len(row.reports) == 1
    assert row.stores[B].ledger(LINK) == before


def test_a_forged_message_burns_no_octet_however_far_ahead_it_points(row):
    before = row.stores[B].ledger(LINK)
    first_free = 1008
    end = first_free + row.stores[B].level(LINK).peer_octets
    for offset in (end - 32, first_free + 5000, first_free):
        receive(row, forged(relay(), [(1, offset, 32)]))
    assert [report.alarm for report in row.reports] == ["RelayAuthenticationFailed"] * 3
    assert row.stores[B].ledger(LINK) == before
    assert isinstance(row.ask("sae-a", ["sae-b"]), Supplied)


@pytest.mark.parametrize(
    "changes",
    [
        {"initiator": "sae-c"},
        {"initiator": "nobody"},
        {"targets": ["sae-c"], "all_targets": ["sae-c"]},
        {"targets": []},
        {"all_targets": ["sae-c"]},
        {"route": ["c", "b"]},
        {"route": ["a", "c", "b"]},
        {"route": ["a", "b", "a"]},
        {"route": ["b"]},
        {"route": []},
        {"hops": []},
        {"hops": [wire.Hop(link="a-b", sender="b", blocks=[], epsilon=0.0)]},
        {"hops": [wire.Hop(link="b-c", sender="a", blocks=[], epsilon=0.0)]},
        {"hops": [wire.Hop(link="a-b", sender="a", blocks=[], epsilon=float("nan"))]},
        {"key_bits": 255},
        {"key_bits": 0},
        {"key_bits": 512},
        {"key_bits": 16384, "ciphertext": bytes(2080)},
        {"key_ids": []},
        {"key_ids": ["not-a-uuid"]},
        {"key_ids": ["7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11"] * 2, "ciphertext": bytes(96)},
        {"expires_unix_s": -1.0},
    ],
)
def test_a_relay_that_contradicts_itself_is_refused_before_any_key_is_spent(row, changes):
    octets = sealed_by_a(row, **changes)
    before = row.stores[B].ledger(LINK)
    receive(row, octets)
    (report,) = row.reports
    assert report.alarm == "RelayProtocolError"
    assert row.stores[B].ledger(LINK) == before
    assert not row.wires


def test_the_same_relay_without_contradictions_is_stored(row):
    receive(row, sealed_by_a(row))
    assert not row.reports
    assert row.stores[B].counts()["stored stored"] == 1


@pytest.mark.parametrize(
    ("initiator", "targets", "number", "key_bits"),
    [
        ("sae-a", ["sae-e"], 0, 256),
        ("sae-a", ["sae-e"], 129, 256),
        ("sae-a", ["sae-e"], 1, 12),
        ("sae-a", ["sae-e"], 1, 0),
        ("sae-a", ["sae-e"], 1, 8200),
        ("sae-a", [], 1, 256),
        ("sae-a", ["nobody"], 1, 256),
        ("sae-b", ["sae-e"], 1, 256),
        ("nobody", ["sae-e"], 1, 256),
    ],
)
def test_a_request_that_cannot_be_met_fails_at_once_and_spends_nothing(row, initiator, targets, number, key_bits):
    before = row.stores[A].ledger(LINK)
    request_id, effects = row.machines[A].request(SaeId(initiator), [SaeId(t) for t in targets], number, key_bits)
    (failed,) = effects
    assert isinstance(failed, Failed)
    assert failed.request_id == request_id
    assert isinstance(failed.error, RequestRefused)
    assert row.stores[A].ledger(LINK) == before


def test_the_largest_batch_arrives_whole(row):
    for block in range(2, 10):
        for link in ("a-b", "b-c"):
            row.fill(LinkId(link), block, 40_000)
    answer = row.ask("sae-a", ["sae-c"], number=wire.KEYS_MAX, key_bits=8192)
    # 128 KiB lie in one direction of seven blocks; every piece of them is in the hop's record.
    assert isinstance(answer, Supplied)
    assert same(row.collect("sae-c", "sae-a", answer.keys), answer.keys)
    receipt = row.stores[A].receipt(answer.keys[0].key_id)["initiated"]["receipt"]
    assert [len(hop["blocks"]) for hop in receipt["hops"]] == [7, 7]


def test_a_target_node_that_cannot_store_says_so_at_once(row, monkeypatch):
    def refuse(*_args):
        raise StoreError("key store /secret/path: no space")

    monkeypatch.setattr(row.stores[E], "store_keys", refuse)
    answer = row.ask("sae-a", ["sae-e"])
    assert isinstance(answer, Failed)
    assert "node e" in str(answer.error)
    assert "/secret/path" not in str(answer.error)
    assert [report.alarm for report in row.reports] == ["StorageFull"]


def test_octets_that_a_failed_relay_came_under_stay_spent(row):
    # Another target of the batch may hold them as key already: nobody may use them for a tag afterwards.
    row.stores[B].allocate(LinkId("b-c"), Role.ALICE, row.stores[B].level(LinkId("b-c")).own_octets - 100)
    before = row.stores[B].ledger(LINK).followed
    assert isinstance(row.ask("sae-a", ["sae-c"]), Failed)
    # The relay's tag and pad (confirmation and key), and the tag of the void that comes after.
    assert row.stores[B].ledger(LINK).followed - before == 32 + 64 + 32
    assert row.stores[B].ledger(LINK).skipped == 0


def test_a_relay_that_fails_half_way_takes_nothing_of_the_next_link(row, monkeypatch):
    def refuse(*_args):
        raise StoreError("the record of a block cannot be read")

    before = row.stores[B].ledger(LinkId("b-c"))
    monkeypatch.setattr(row.stores[B], "block_record", refuse)
    assert isinstance(row.ask("sae-a", ["sae-c"], change=lambda *m: [m[2]] if m[0] in "ab" else []), Failed)
    # The void goes on to C, under 32 octets for its tag.
    assert row.stores[B].ledger(LinkId("b-c")).allocated - before.allocated == 32


def test_a_void_that_comes_over_another_link_than_its_route_says_destroys_nothing(row):
    answer = row.ask("sae-c", ["sae-b"])
    void = wire.KeyVoid(
        relay_id="r", route=["c", "b"], key_ids=[key.key_id for key in answer.keys], initiator="", target="", segment=0
    )
    receive(row, row.machines[A]._hops.seal(LINK, void).octets)
    assert [report.alarm for report in row.reports] == ["RelayProtocolError"]
    assert same(row.collect("sae-b", "sae-c", answer.keys), answer.keys)


def test_one_target_that_fails_voids_the_keys_of_all(row):
    row.stores[C].allocate(LinkId("c-d"), Role.ALICE, row.stores[C].level(LinkId("c-d")).own_octets - 100)
    answer = row.ask("sae-b", ["sae-a", "sae-e"])
    assert isinstance(answer, Failed)
    assert row.stores[A].counts()["stored destroyed voided"] == 1
    assert row.stores[A].counts()["stored stored"] == 0
    assert row.stores[B].counts()["initiated destroyed voided"] == 1


def test_a_ring_goes_round_a_node_that_gives_no_answer(circle):
    assert circle.ask("sae-a", ["sae-c"], change=lambda node, _link, octets: [] if node == "b" else [octets]) is None
    circle.wait(REQUEST_TIMEOUT_S + 0.1)
    (answer,) = circle.answers.values()
    assert isinstance(answer, Supplied)
    assert same(circle.collect("sae-c", "sae-a", answer.keys), answer.keys)
    receipt = circle.stores[A].receipt(answer.keys[0].key_id)["initiated"]["receipt"]
    assert receipt["routes"] == [list("aedc")]


def test_a_request_ends_though_every_route_is_silent(circle):
    request_id, effects = circle.machines[A].request(SaeId("sae-a"), [SaeId("sae-c")], 1, 256)
    assert effects
    circle.clock.now_s += REQUEST_TIMEOUT_S + 0.1
    circle.machines[A].tick()
    circle.clock.now_s += RETRY_TIMEOUT_S - 0.2
    assert not [effect for effect in circle.machines[A].tick() if isinstance(effect, Failed)]
    circle.clock.now_s += 0.2
    (failed,) = [effect for effect in circle.machines[A].tick() if isinstance(effect, Failed)]
    assert failed.request_id == request_id
    assert "a-e-d-c" in str(failed.error)


def test_an_answer_that_comes_after_the_end_gives_no_key(row):
    late = []

    def hold(node, _link, octets):
        if node == "a":
            late.append(octets)
            return []
        return [octets]

    row.ask("sae-a", ["sae-c"], change=hold)
    row.wait(REQUEST_TIMEOUT_S + 0.1)
    (failed,) = row.answers.values()
    assert "a-b-c" in str(failed.error)
    for octets in late:
        receive(row, octets, node=A)
    assert len(row.answers) == 1
    assert row.stores[C].counts()["stored destroyed voided"] == 1


def test_a_message_under_a_block_that_is_not_released_here_yet_is_no_alarm(row, monkeypatch):
    def refuse(*_args):
        raise KeyPending("block 9 of link a-b: pending at node b, not to be followed")

    octets = sealed_by_a(row)
    before = row.stores[B].ledger(LINK)
    monkeypatch.setattr(row.stores[B], "follow", refuse)
    receive(row, octets)
    assert [report.alarm for report in row.reports] == [KEY_PENDING]
    assert KEY_PENDING in kxrunner._LOGGED
    assert row.stores[B].ledger(LINK) == before


def test_a_completion_whose_hops_are_not_those_of_the_route_is_not_believed(row):
    def shorten(node, link, octets):
        if node != "a":
            return [octets]
        _, body = wire.parse(octets)
        wrong = msgspec.structs.replace(body, hops=body.hops[:1])
        # Node B, authentic as ever, tells less than it should.
        return [row.machines[B]._hops.seal(link, wrong).octets]

    assert row.ask("sae-a", ["sae-c"], change=shorten) is None
    assert [report.alarm for report in row.reports] == ["RelayProtocolError"]
    row.wait(REQUEST_TIMEOUT_S + 0.1)
    (failed,) = row.answers.values()
    assert isinstance(failed, Failed)


def test_a_key_named_twice_for_one_target_is_one_key(row):
    answer = row.ask("sae-a", ["sae-b", "sae-b"])
    assert same(row.collect("sae-b", "sae-a", answer.keys), answer.keys)
    with pytest.raises(KeyNotFound):
        row.collect("sae-b", "sae-a", answer.keys)


def test_the_receipts_of_a_local_key_have_the_shape_of_all_others(row):
    answer = row.ask("sae-a", ["other-a"])
    record = row.stores[A].receipt(answer.keys[0].key_id)
    assert record["stored"]["receipt"] == record["initiated"]["receipt"]
    assert record["stored"]["receipt"] == {"routes": [["a"]], "hops": [], "epsilon": 0.0, "protection": "local"}
