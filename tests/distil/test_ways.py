"""Whole blocks by each way of reconciliation: equal keys, leak counted alike, and which way a block takes."""

import distil_link
import numpy as np
import pytest

from qtrunk.base.errors import WireError
from qtrunk.base.wire import decode, encode
from qtrunk.distil import messages as wire
from qtrunk.distil.cascade import SEED_OCTETS
from qtrunk.distil.keylength import entropy
from qtrunk.distil.parties import Destroy, DistilParameters, Hold, Release
from qtrunk.distil.reconcile import ERROR_COUNT_BITS
from qtrunk.distil.verify import VERIFY_BITS
from qtrunk.distil.ways import AUTO, CASCADE, FAST, LDPC, METHODS, Terms, choose_method


def run(method, seed=7, clicks=600_000, qber=0.016, **light):
    pair = distil_link.Pair(distil_link.light(seed, clicks=clicks, qber=qber, **light), reconciliation=method)
    pair.run()
    return pair


def keys(pair):
    return [pair.of(party, Hold)[0].key for party in ("alice", "bob")]


def said(pair, kind):
    messages = [decode(octets, wire.BlockMessage) for _, octets in pair.octets]
    return [message for message in messages if isinstance(message, kind)]


@pytest.mark.parametrize("method", [*METHODS, AUTO])
@pytest.mark.parametrize("qber", [0.004, 0.016, 0.03])
def test_a_block_ends_alike_by_every_way(method, qber):
    pair = run(method, qber=qber)
    one, other = keys(pair)
    assert one == other
    assert [len(pair.of(party, Release)) for party in ("alice", "bob")] == [1, 1]
    assert not pair.of("alice", Destroy)


def test_cascade_says_less_than_codes_and_all_of_it_is_counted():
    lean, pair = run(LDPC), run(CASCADE)
    one, other = keys(pair)
    (sifted,) = said(pair, wire.Sifted)
    octets = [sifted.syndromes[SEED_OCTETS:], *(message.bits for message in said(pair, wire.Parities))]
    # One batch: all bits of its messages are parities but up to seven zeros at the end of each.
    most = 8 * sum(map(len, octets))
    assert most - 7 * len(octets) <= one.leak_bits - ERROR_COUNT_BITS - VERIFY_BITS <= most
    assert one.leak_bits == other.leak_bits
    mismatches = said(pair, wire.Mismatches)
    assert [len(message.bits) for message in mismatches] == [len(part) for part in octets]
    # Efficiency over the errors there really were; 1.09 has room for 38,000 bits of few frames.
    assert one.leak_bits < 1.09 * entropy(one.qber_key) * one.sifted_bits
    assert one.leak_bits < keys(lean)[0].leak_bits
    assert len(one.material) > len(keys(lean)[0].material)


def test_a_fast_block_says_more_than_a_lean_one():
    fast, lean = keys(run(FAST))[0], keys(run(LDPC))[0]
    assert fast.leak_bits > lean.leak_bits


@pytest.mark.parametrize("kind", [wire.Parities, wire.Mismatches])
@pytest.mark.parametrize("place", [0, 7, 60, 140])
def test_a_changed_parity_never_gives_a_key(kind, place):
    pair = distil_link.Pair(distil_link.light(7, clicks=600_000), reconciliation=CASCADE)
    count = [0]

    def change(_index, _sender, octets):
        message = decode(octets, wire.BlockMessage)
        if not isinstance(message, kind):
            return [octets]
        count[0] += 1
        if count[0] != place + 1 or not message.bits:
            return [octets]
        return [encode(kind(bits=bytes([message.bits[0] ^ 0x80]) + message.bits[1:]))]

    pair.run(change)
    assert count[0] > place, "the message to be changed was said"
    for party in ("alice", "bob"):
        assert not pair.of(party, Release)
        assert len(pair.of(party, Destroy)) == 1


def test_errors_in_the_key_basis_alone_break_the_budget_of_cascade():
    seen = distil_link.light(7, clicks=600_000, qber=0.01)
    in_key = (seen.settings.basis == 0) & (seen.detections.basis == 0)
    seen.detections.bit[in_key & (np.random.default_rng(1).random(len(in_key)) < 0.03)] ^= 1
    pair = distil_link.Pair(seen, reconciliation=CASCADE)
    pair.run()
    for party in ("alice", "bob"):
        assert [effect.cause for effect in pair.of(party, Destroy)] == ["leak-budget"]


@pytest.mark.parametrize("method", ["", "cascade", "no such", "fast"])
def test_bob_takes_no_way_that_his_policy_does_not_have(method):
    pair = distil_link.Pair(distil_link.light(7), reconciliation=LDPC)

    def change(_index, _sender, octets):
        message = decode(octets, wire.BlockMessage)
        if isinstance(message, wire.Sifted):
            fields = {name: getattr(message, name) for name in message.__struct_fields__}
            return [encode(wire.Sifted(**{**fields, "method": method}))]
        return [octets]

    pair.run(change)
    assert [effect.cause for effect in pair.of("bob", Destroy)] == ["protocol"]
    assert "policy" in pair.of("bob", Destroy)[0].why


@pytest.mark.parametrize("message", [wire.Unsolved(frames=[0]), wire.Mismatches(bits=b"\0"), wire.Halves(parities=b"")])
@pytest.mark.parametrize("method", [LDPC, CASCADE])
def test_messages_of_another_way_destroy_the_block(method, message):
    pair = distil_link.Pair(distil_link.light(7), reconciliation=method)

    def change(_index, _sender, octets):
        if isinstance(decode(octets, wire.BlockMessage), wire.Decoded | wire.Mismatches):
            return [encode(message)]
        return [octets]

    pair.run(change)
    for party in ("alice", "bob"):
        assert not pair.of(party, Release)
        assert len(pair.of(party, Destroy)) == 1


BUSY = Terms(errors=450, tested=30_000, bits=60_000_000)
QUIET = Terms(errors=450, tested=30_000, bits=1_000_000)


def test_the_way_follows_rate_and_round_trips():
    assert choose_method(AUTO, BUSY, 4.0, 0.001) == FAST
    assert choose_method(AUTO, QUIET, 4.0, 0.001) == CASCADE
    assert choose_method(AUTO, QUIET, 4.0, 0.02) == LDPC  # a hundred round trips of a long line take too long
    assert choose_method(AUTO, QUIET, 0.15, 0.0001) == LDPC  # more than Cascade does beside all else
    for method in METHODS:
        assert choose_method(method, BUSY, 4.0, 1.0) == method


def test_a_way_that_there_is_not_is_refused_from_the_start():
    with pytest.raises(ValueError, match="reconciliation"):
        DistilParameters(reconciliation="blind")


def test_a_finder_refuses_an_answer_that_is_not_his():
    pair = run(CASCADE)
    with pytest.raises(WireError):
        pair.bob._finder.heard(wire.Parities(bits=b"\0"))
    with pytest.raises(WireError):
        pair.bob._finder.completed(b"\0")
