"""Two parties, octets between them: equal keys, or no key at either end."""

import distil_link
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtrunk.base.wire import decode, encode
from qtrunk.distil import messages as wire
from qtrunk.distil import reconcile
from qtrunk.distil.parties import AUTH_OCTETS, Destroy, Hold, Release, Report, Unsettled


def run(qber=0.016, clicks=500_000, **kwargs):
    pair = distil_link.Pair(distil_link.light(7, clicks=clicks, qber=qber), **kwargs)
    pair.run()
    return pair


def keys(pair):
    return [pair.of(party, Hold)[0].key for party in ("alice", "bob")]


@pytest.mark.parametrize("qber", [0.005, 0.016, 0.022])
def test_both_ends_hold_the_same_key_and_release_it(qber):
    pair = run(qber)
    alice, bob = keys(pair)
    assert alice == bob
    assert len(alice.material) > 2000
    assert bytes(alice.material.reveal()) != bytes(len(alice.material))
    assert [effect.block for party in ("alice", "bob") for effect in pair.of(party, Release)] == [1, 1]
    assert not pair.of("alice", Destroy) + pair.of("bob", Destroy)
    # False alarm of 5 sigma: 6e-7.
    assert abs(alice.qber_key - qber) < 5 * np.sqrt(qber / alice.sifted_bits)
    assert AUTH_OCTETS <= alice.auth_octets <= len(alice.material) // 2


def test_a_key_is_held_before_the_tag_that_lets_the_peer_go_on():
    pair = run()
    for party, tagged in (("bob", wire.Accept), ("alice", wire.Confirm)):
        effects = pair.effects[party]
        held = next(i for i, effect in enumerate(effects) if isinstance(effect, Hold))
        said = next(
            i
            for i, effect in enumerate(effects)
            if hasattr(effect, "octets") and isinstance(decode(effect.octets, wire.BlockMessage), tagged)
        )
        assert held < said


def noisier_key(seen, extra, seed=1):
    """The same light with errors in the key basis alone, at rate `extra` more."""
    in_key = (seen.settings.basis == 0) & (seen.detections.basis == 0)
    seen.detections.bit[in_key & (np.random.default_rng(seed).random(len(in_key)) < extra)] ^= 1
    return seen


def said(pair, kind):
    messages = [decode(octets, wire.BlockMessage) for _, octets in pair.octets]
    return [message for message in messages if isinstance(message, kind)]


# Errors that the test basis did not promise: none, some that one blind round finds, some that take more.
@pytest.mark.parametrize(("extra", "rounds"), [(0.0, 0), (0.005, 1), (0.0065, 2)])
def test_leak_is_what_was_said_in_however_many_rounds(extra, rounds):
    pair = distil_link.Pair(noisier_key(distil_link.light(7, clicks=500_000, qber=0.016), extra))
    pair.run()
    (sifted,), (decoded,), (proof,) = (said(pair, kind) for kind in (wire.Sifted, wire.Decoded, wire.Proof))
    asked, halves = said(pair, wire.Unsolved), said(pair, wire.Halves)
    alice, bob = keys(pair)
    assert alice == bob
    assert len(asked) == len(halves) == rounds
    assert decoded.failed == []
    about_key = [sifted.syndromes, *(message.parities for message in halves), proof.disclosed, proof.verify_hash]
    frames = reconcile.choose(*basis_counts(pair), alice.sifted_bits).frames
    # In which of five rounds each frame was solved, or in none, is one of 6 ** frames answers; 32 bits count errors.
    assert alice.leak_bits == 8 * sum(map(len, about_key)) + int(np.ceil(frames * np.log2(6))) + 32


def basis_counts(pair):
    seen = pair.alice._seen
    return sum(seen.test_errors), sum(seen.test_counts)


def test_a_frame_that_no_round_solves_is_disclosed_and_counted():
    # One frame of four, in the key's first quarter, has errors at 12 %.
    seen = distil_link.light(7, clicks=1_500_000, qber=0.010)
    in_key = np.flatnonzero((seen.settings.basis == 0) & (seen.detections.basis == 0))
    seen.detections.bit[in_key[:40_000][np.random.default_rng(2).random(40_000) < 0.12]] ^= 1
    pair = distil_link.Pair(seen)
    pair.run()
    (decoded,), (proof,) = said(pair, wire.Decoded), said(pair, wire.Proof)
    assert decoded.failed == [0]
    assert len(said(pair, wire.Halves)) == reconcile.ROUNDS_MAX
    alice, bob = keys(pair)
    assert alice == bob
    plan = reconcile.choose(*basis_counts(pair), alice.sifted_bits)
    assert len(proof.disclosed) == -(-plan.frame_bits(0) // 8)
    rounds = tuple(tuple(message.frames) for message in said(pair, wire.Unsolved))
    assert alice.leak_bits == plan.leak_bits(rounds, (0,)) + 128
    assert alice.leak_bits > 8 * len(proof.disclosed) + plan.frames * plan.entry.m


def test_an_eavesdropper_destroys_the_block_at_both_ends():
    pair = run(qber=0.14)
    for party in ("alice", "bob"):
        (destroyed,) = pair.of(party, Destroy)
        assert destroyed.cause == "qber"
        assert "QBER" in destroyed.why
        assert not pair.of(party, Hold)
    reports = pair.of("alice", Report)
    assert abs(reports[0].figures["qber_test"] - 0.14) < 0.03


def test_errors_in_the_key_basis_alone_destroy_the_block():
    pair = distil_link.Pair(noisier_key(distil_link.light(3), 0.1))
    pair.run()
    for party in ("alice", "bob"):
        assert [effect.cause for effect in pair.of(party, Destroy)] == ["leak-budget"]
        assert not pair.of(party, Hold)


def test_a_block_without_light_dies_at_both_ends():
    seen = distil_link.light(3, clicks=4)
    pair = distil_link.Pair(seen)
    pair.run()
    assert [e.cause for party in ("alice", "bob") for e in pair.of(party, Destroy)] == ["no-key", "no-key"]


def test_without_authentication_key_no_key_comes_out():
    pair = run(secret=bytes(range(90)))
    assert [e.cause for party in ("alice", "bob") for e in pair.of(party, Destroy)] == [
        "auth-key",
        "auth-key",
    ]


def outcome_is_safe(pair):
    """Either nobody released, or what was released is held alike; never two different keys in use."""
    held = {party: [effect.key for effect in pair.of(party, Hold)] for party in ("alice", "bob")}
    released = [party for party in ("alice", "bob") if pair.of(party, Release)]
    if released:
        assert held["alice"] == held["bob"]
    if pair.of("alice", Release):
        assert pair.of("bob", Release)
    return released


# One light for all examples below: making it is what costs.
SEEN = distil_link.light(11, clicks=350_000, qber=0.01)
# The same with a blind round, and so nine messages.
BLIND = noisier_key(distil_link.light(11, clicks=350_000, qber=0.01), 0.003)
MESSAGES = [(SEEN, message, 7) for message in range(7)] + [(BLIND, message, 9) for message in range(9)]


@pytest.mark.parametrize(("seen", "count"), [(SEEN, 7), (BLIND, 9)])
def test_a_blind_round_adds_two_messages(seen, count):
    pair = distil_link.Pair(seen)
    pair.run()
    assert len(pair.octets) == count
    assert len(keys(pair)) == 2


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(MESSAGES), st.integers(0, 2**31), st.integers(0, 7))
def test_one_flipped_bit_anywhere_never_leaves_two_keys(one, place, bit):
    seen, message, count = one
    pair = distil_link.Pair(seen)

    def flip(index, _sender, octets):
        if index != message:
            return [octets]
        changed = bytearray(octets)
        changed[place % len(changed)] ^= 1 << bit
        return [bytes(changed)]

    pair.run(flip)
    released = outcome_is_safe(pair)
    if message < count - 2:
        assert not released, "a changed message before the tags must not give a key"
        assert pair.of("alice", Destroy) or pair.of("alice", Unsettled)


@pytest.mark.parametrize(("seen", "message"), [one[:2] for one in MESSAGES])
def test_a_message_of_another_block_is_refused(seen, message):
    light = distil_link.light(13, clicks=350_000, qber=0.01, block=2)
    other = distil_link.Pair(light if seen is SEEN else noisier_key(light, 0.003))
    other.run()
    pair = distil_link.Pair(seen)
    pair.run(lambda index, _, octets: [other.octets[message][1]] if index == message else [octets])
    released = outcome_is_safe(pair)
    assert "alice" not in released


@pytest.mark.parametrize(("seen", "message"), [one[:2] for one in MESSAGES])
def test_a_reflected_message_is_refused(seen, message):
    pair = distil_link.Pair(seen)
    pair.run(
        lambda index, _, octets: [pair.octets[index - 1][1] if index else octets] if index == message else [octets]
    )
    released = outcome_is_safe(pair)
    if message > 0:
        assert "alice" not in released


@pytest.mark.parametrize(("seen", "message"), [one[:2] for one in MESSAGES])
def test_a_repeated_message_never_leaves_two_keys(seen, message):
    pair = distil_link.Pair(seen)
    pair.run(lambda index, _, octets: [octets, octets] if index == message else [octets])
    outcome_is_safe(pair)


@pytest.mark.parametrize(("seen", "message"), [one[:2] for one in MESSAGES])
def test_a_lost_message_releases_no_key_at_alice(seen, message):
    pair = distil_link.Pair(seen)
    pair.run(lambda index, _, octets: [] if index == message else [octets])
    assert "alice" not in outcome_is_safe(pair)


def test_a_forged_abort_cannot_part_a_released_key():
    pair = distil_link.Pair(SEEN)
    abort = encode(wire.Abort(cause="qber", why="forged"))
    pair.run(lambda index, _, octets: [abort] if index == 6 else [octets])
    assert not pair.of("alice", Destroy)
    assert pair.of("alice", Unsettled)


def test_another_secret_at_the_other_end_gives_no_key():
    pair = distil_link.Pair(SEEN)
    pair.bob._auth = distil_link.Ledger(bytes(1024))
    pair.run()
    assert not pair.of("alice", Hold)
    assert [effect.cause for effect in pair.of("alice", Destroy)] == ["authentication"]


def test_a_tag_key_is_used_for_one_message():
    pair = run()
    tags = [decode(octets, wire.BlockMessage).tag for _, octets in pair.octets[4:]]
    assert len(set(tags)) == 3
    assert pair.ledgers["alice"].used == pair.ledgers["bob"].used == AUTH_OCTETS
