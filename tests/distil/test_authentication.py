"""Tags by key and by signature, and what stops an attacker from making the ends spend key in vain."""

from dataclasses import replace
from itertools import pairwise

import distil_link
import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from qtrunk.base.errors import AuthenticationFailed, BudgetSpent
from qtrunk.base.secret import Secret
from qtrunk.crypto.thrift import FREE_LOSSES, LOSS_PAUSE_MAX_S, Thrift
from qtrunk.distil import parties
from qtrunk.distil.authentication import (
    AUTH_OCTETS,
    ML_DSA,
    SIGNED,
    SLOTS,
    Signatures,
    WegmanCarter,
)
from qtrunk.distil.parties import Destroy, Hold, Release

ALICE, BOB = MLDSA65PrivateKey.generate(), MLDSA65PrivateKey.generate()


def by_key():
    return [WegmanCarter(3, 96, Secret(bytes(range(AUTH_OCTETS)))) for _ in range(2)]


def by_signature():
    return [Signatures(ALICE, BOB.public_key()), Signatures(BOB, ALICE.public_key())]


@pytest.mark.parametrize("make", [by_key, by_signature])
def test_a_tag_verifies_for_its_slot_label_and_message_alone(make):
    mine, peers = make()
    message = [b"one", b"two" * 1000]
    tag = mine.tag(1, b"label", message)
    peers.verify(1, b"label", message, tag)
    wrong = [
        (0, b"label", message, tag),
        (1, b"lable", message, tag),
        (1, b"label", [b"onet", b"wo" + b"two" * 999], tag),
        (1, b"label", message[:1], tag),
        (1, b"label", message, bytes([tag[0] ^ 1]) + tag[1:]),
        (1, b"label", message, b""),
        (1, b"label", message, tag + b"\0"),
    ]
    for slot, label, parts, claimed in wrong:
        with pytest.raises(AuthenticationFailed):
            peers.verify(slot, label, parts, claimed)


def test_nobody_can_answer_with_the_peers_own_signature():
    mine, _ = by_signature()
    with pytest.raises(AuthenticationFailed):
        mine.verify(0, b"label", [b"x"], mine.tag(0, b"label", [b"x"]))


def test_each_slot_of_a_key_has_octets_of_its_own():
    one, other = (WegmanCarter(0, 0, Secret(bytes(AUTH_OCTETS - 32) + last * 32)) for last in (b"\1", b"\2"))
    tags = [[each.tag(slot, b"l", [b"m"]) for slot in range(SLOTS)] for each in (one, other)]
    assert [a == b for a, b in zip(*tags, strict=True)] == [True, True, False]
    with pytest.raises(ValueError, match="96 octets"):
        WegmanCarter(0, 0, Secret(bytes(95)))


def test_a_wiped_key_is_gone():
    key = WegmanCarter(0, 0, Secret(b"\7" * AUTH_OCTETS))
    before = key.tag(0, b"l", [b"m"])
    key.wipe()
    assert key.tag(0, b"l", [b"m"]) != before


class Signed:
    """An AuthLedger that has no key and signs."""

    def __init__(self, signatures):
        self.signatures = signatures

    def reserve(self, _epsilon):
        return self.signatures

    def take(self, block, _offset, _epsilon):
        assert block == SIGNED
        return self.signatures

    def level_octets(self):
        return 0


def test_a_first_block_can_be_made_with_signatures_alone_and_says_so():
    pair = distil_link.Pair(distil_link.light(5))
    pair.alice._auth, pair.bob._auth = (Signed(each) for each in by_signature())
    pair.run()
    (one,), (other,) = ([effect.key for effect in pair.of(party, Hold)] for party in ("alice", "bob"))
    assert one == other
    assert [len(pair.of(party, Release)) for party in ("alice", "bob")] == [1, 1]
    assert one.authentication == ML_DSA
    assert one.auth_octets >= AUTH_OCTETS  # so the next block has key


def test_a_block_says_that_key_authenticated_it():
    pair = distil_link.Pair(distil_link.light(5))
    pair.run()
    assert pair.of("bob", Hold)[0].key.authentication == "wegman-carter"


@pytest.mark.parametrize(
    "change",
    [
        {"count": 7},
        {"intensities": (0.47, 0.2, 0.0002)},
        {"probabilities": (0.5, 0.4, 0.1)},
        {"key_basis_probability": 0.71},
    ],
)
def test_what_was_announced_about_the_light_is_authenticated(change):
    # As if somebody had changed the announcement on its way; the key's length would follow the wrong figures.
    pair = distil_link.Pair(distil_link.light(5))
    if "count" in change:  # what Bob says about the count is checked on its own: so it must agree with the lie
        change = {"count": pair.bob._pulses.count + change["count"]}
        pair.alice._pulses = replace(pair.alice._pulses, **change)
        label = pair.bob._label
        pair.bob._pulses = replace(pair.bob._pulses, **change)
        pair.bob._label = lambda what: label(what).replace(b"|0.46|", b"|0.461|")
    else:
        pair.bob._pulses = replace(pair.bob._pulses, **change)
    pair.run()
    for party in ("alice", "bob"):
        assert not pair.of(party, Release)
    assert {effect.cause for party in ("alice", "bob") for effect in pair.of(party, Destroy)} <= {
        "authentication",
        "protocol",
    }


def test_both_ends_charge_the_epsilon_of_a_block_before_its_key_exists():
    pair = distil_link.Pair(distil_link.light(5))
    pair.run()
    made = pair.of("alice", Hold)[0].key
    for ledger in pair.ledgers.values():
        assert made.epsilon.total <= ledger.epsilon <= 1.01 * made.epsilon.total


def test_a_spent_budget_destroys_the_block_at_both_ends(monkeypatch):
    pair = distil_link.Pair(distil_link.light(5))

    def refuse(_epsilon):
        raise BudgetSpent("link a-b: its blocks add up to too much")

    monkeypatch.setattr(pair.ledgers["alice"], "reserve", refuse)
    pair.run()
    for party in ("alice", "bob"):
        assert [effect.cause for effect in pair.of(party, Destroy)] == ["epsilon"]
        assert not pair.of(party, Hold)
    assert "epsilon" in parties.CAUSES


def test_losses_cost_ever_longer_pauses_and_a_success_ends_them():
    thrift, now_s = Thrift(), 1000.0
    for _ in range(FREE_LOSSES):
        thrift.spent(now_s)
        assert thrift.not_before_s <= now_s
    pauses = []
    for _ in range(14):
        thrift.spent(now_s)
        pauses.append(thrift.not_before_s - now_s)
        now_s = thrift.not_before_s
    assert pauses[0] > 0
    assert all(later == min(2 * earlier, LOSS_PAUSE_MAX_S) for earlier, later in pairwise(pauses))
    assert pauses[-1] == LOSS_PAUSE_MAX_S
    thrift.succeeded()
    assert (thrift.losses, thrift.not_before_s) == (0, 0.0)
