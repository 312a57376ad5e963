"""Segments of pools over relays: both ends hold the same, hybrid where it must be, tampering found, no way to take the
mask away."""

import os

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from qtrunk.base.ids import NodeId, SaeId
from qtrunk.base.wire import decode, encode
from qtrunk.crypto import its
from qtrunk.crypto.hybrid import HybridEnd
from qtrunk.kms.consume import COLLECTED, INITIATED
from qtrunk.kms.key import Slice
from qtrunk.kms.poolstate import HEAD_OCTETS
from qtrunk.relay import messages as wire
from qtrunk.relay.kx import REQUEST_TIMEOUT_S, Failed, Supplied

A, E = NodeId("a"), NodeId("e")
FROM, TO = SaeId("sae-a"), SaeId("sae-e")


def fill(network, octets=640, change=None):
    request_id, effects = network.machines[A].fill(FROM, TO, HEAD_OCTETS + octets)
    network.do(A, effects)
    network.settle(change) if change else network.settle()
    return network.answers.get(request_id)


def make_hybrid(network, *, nodes="abcde"):
    """Every node signs and has everybody's ML-KEM key; both ends insist on it."""
    signing = {name: MLDSA65PrivateKey.generate() for name in nodes}
    verifying = {name: key.public_key() for name, key in signing.items()}
    ends = {name: HybridEnd(name, signing[name], verifying) for name in nodes}
    for machine_node, machine in network.machines.items():
        machine.hybrid = ends[machine_node]
        machine._ground.is_hybrid = lambda _sae: True
        for other in nodes:
            ends[machine_node].learn(ends[other].offer(network.clock.unix_s()), network.clock.unix_s())
    return ends


def keys_agree(network, number=3):
    keys = network.stores[A].pools.take(FROM, TO, number, 32)
    found, strange = network.stores[E].pools.redeem(TO, FROM, [key.key_id for key in keys])
    assert strange == []
    assert [key.material for key in found] == [key.material for key in keys]
    return keys


def test_a_segment_joins_both_ends_of_its_pool(row):
    assert isinstance(fill(row), Supplied)
    keys_agree(row)
    for node, side in ((A, INITIATED), (E, COLLECTED)):
        ledger = row.stores[node].pools.ledgers()[side, FROM, TO]
        assert (ledger.filled, ledger.overhead, ledger.delivered, ledger.unaccounted) == (704, 64, 96, 0)
    record = row.stores[E].pools.receipt(keys_agree(row, 1)[0].key_id)
    receipt = record["stored"]["receipt"]
    assert receipt["routes"] == [["a", "b", "c", "d", "e"]]
    assert [hop["link"] for hop in receipt["hops"]] == ["a-b", "b-c", "c-d", "d-e"]
    assert receipt["protection"] == "qkd"


@pytest.mark.parametrize("octets", [-64, 4, 9 << 20])
def test_a_segment_of_an_impossible_size_is_refused(row, octets):
    assert "octets asked for" in str(fill(row, octets).error)


def test_a_pool_between_saes_of_one_node_is_refused(row):
    _, effects = row.machines[A].fill(FROM, SaeId("other-a"), 128)
    assert "both are at node a" in str(effects[0].error)


def test_a_hybrid_segment_differs_from_what_the_relays_carried(row):
    make_hybrid(row)
    seen = {}

    def watch(node, link, octets):
        sealed = decode(octets, wire.Sealed)
        body = decode(sealed.body, wire.KxMessage)
        if isinstance(body, wire.KeyRelay) and node == "b":
            pad = row.stores[NodeId("b")]._material(link, [wire_slice(piece) for piece in body.pad])
            seen["qkd"] = its.one_time_pad(body.ciphertext, pad.reveal())
        return [octets]

    assert isinstance(fill(row, change=watch), Supplied)
    keys = keys_agree(row, 2)
    octets = seen["qkd"][HEAD_OCTETS : HEAD_OCTETS + 64]
    assert len(octets) == 64
    assert octets != b"".join(bytes(key.material.reveal()) for key in keys)
    record = row.stores[A].pools.receipt(keys[0].key_id)
    assert record["initiated"]["receipt"]["protection"] == "qkd + ml-kem-768"


def wire_slice(piece):
    return Slice(*piece)


def resealed(network, change):
    """Node b is corrupt: it changes what it passes on to c, and seals it rightly."""

    def corrupt(node, link, octets):
        if node != "c" or link != "b-c":
            return [octets]
        sealed = decode(octets, wire.Sealed)
        body = decode(sealed.body, wire.KxMessage)
        if not isinstance(body, wire.KeyRelay):
            return [octets]
        changed = change(body)
        # The tag's key was allocated before the pad: it is still the sender's to use for another message.
        key = network.stores[NodeId("b")]._material(link, [wire_slice(piece) for piece in sealed.auth])
        octets = encode(changed)
        tag = its.tag(key.reveal(), b"|".join([b"qtrunk kx 3", b"b", b"c", b"b-c"]), [octets])
        return [encode(wire.Sealed(body=octets, auth=sealed.auth, tag=tag))]

    return corrupt


def flipped(body):
    ciphertext = bytearray(body.ciphertext)
    ciphertext[200] ^= 1
    return msgspec.structs.replace(body, ciphertext=bytes(ciphertext))


@pytest.mark.parametrize("is_hybrid", [False, True])
def test_a_relay_that_changes_a_segment_is_noticed_and_nothing_is_given_out(row, is_hybrid):
    if is_hybrid:
        make_hybrid(row)
    answer = fill(row, change=resealed(row, flipped))
    assert isinstance(answer, Failed)
    assert "RelayTampered" in [report.alarm for report in row.reports]
    assert row.stores[A].pools.octets(FROM, TO) == 0
    assert row.stores[E].pools.ledgers()[COLLECTED, FROM, TO].destroyed == {"voided": 640}


def without_mask(body):
    return msgspec.structs.replace(body, hybrid=None)


def other_seed(body):
    hybrid = msgspec.structs.replace(body.hybrid, seed=os.urandom(32))
    return msgspec.structs.replace(body, hybrid=hybrid)


def other_target(body):
    return msgspec.structs.replace(body, expires_unix_s=body.expires_unix_s + 1)


@pytest.mark.parametrize("change", [without_mask, other_seed, other_target])
def test_a_relay_cannot_take_the_mask_away_or_change_what_it_is_bound_to(row, change):
    make_hybrid(row)
    answer = fill(row, change=resealed(row, change))
    assert isinstance(answer, Failed)
    assert (COLLECTED, FROM, TO) not in row.stores[E].pools.ledgers()
    assert row.reports


def test_keys_of_their_own_are_hybrid_too_and_the_same_for_all_targets(row):
    make_hybrid(row)
    answer = row.ask("sae-a", ["sae-c", "sae-e", "other-a"], number=2)
    for target in ("sae-c", "sae-e", "other-a"):
        found = row.collect(target, "sae-a", answer.keys)
        assert [key.material for key in found] == [key.material for key in answer.keys]


def test_without_a_key_of_the_other_node_a_hybrid_segment_is_not_made(row):
    ends = make_hybrid(row)
    ends["a"].forget("e")
    before = row.stores[A].ledger("a-b")
    answer = fill(row)
    assert "no valid ML-KEM key of node e" in str(answer.error)
    assert row.stores[A].ledger("a-b") == before


def test_a_node_that_started_anew_refuses_a_seed_under_its_old_key(row):
    ends = make_hybrid(row)
    ends["e"]._own.clear()
    assert isinstance(fill(row), Failed)
    ends["a"].learn(ends["e"].offer(row.clock.unix_s()), row.clock.unix_s())
    assert isinstance(fill(row), Supplied)
    keys_agree(row)


def test_a_lost_completion_voids_the_segment_at_the_target(row):
    def lose(node, _link, octets):
        body = decode(decode(octets, wire.Sealed).body, wire.KxMessage)
        return [] if isinstance(body, wire.KeyRelayCompletion) and node == A else [octets]

    assert fill(row, change=lose) is None
    assert len(row.stores[E].pools.holding(-1.0)[FROM, TO]) == 1
    row.wait(REQUEST_TIMEOUT_S + 1)
    assert row.stores[E].pools.ledgers()[COLLECTED, FROM, TO].destroyed == {"voided": 640}
    assert row.stores[A].pools.octets(FROM, TO) == 0


def test_over_a_ring_a_lost_segment_is_made_again_by_the_other_way(circle):
    lost = []

    def lose(node, link, octets):
        body = decode(decode(octets, wire.Sealed).body, wire.KxMessage)
        if isinstance(body, wire.KeyRelay) and link == "e-a" and not lost:
            lost.append(body)
            return []
        return [octets]

    request_id, effects = circle.machines[A].fill(FROM, TO, HEAD_OCTETS + 640)
    circle.do(A, effects)
    circle.settle(lose)
    circle.wait(REQUEST_TIMEOUT_S + 1)
    assert lost
    assert isinstance(circle.answers[request_id], Supplied)
    record = circle.stores[A].pools.receipt(keys_agree(circle, 1)[0].key_id)
    assert record["initiated"]["receipt"]["routes"] == [["a", "b", "c", "d", "e"]]
