"""Known mistakes of the protocol around the formula, each as a check that the mistaken way fails and ours passes.

What is said and counted, verification, seeds, tags, sifting. test_mistakes.py has the list, and the formula's own.
"""

from dataclasses import replace
from itertools import pairwise
from math import log2
from zlib import crc32

import distil_link
import numpy as np
import pytest
from scipy import fft, stats

from qtrunk.base.errors import AuthenticationFailed
from qtrunk.base.wire import decode, encode
from qtrunk.crypto import its, universal
from qtrunk.distil import bounds as tails
from qtrunk.distil import messages as wire
from qtrunk.distil import parties, reconcile, sift
from qtrunk.distil.parties import AUTH_OCTETS, Destroy, Hold, Release
from qtrunk.distil.verify import make_hash
from qtrunk.kernels import select
from qtrunk.plan.rate import PlannedLink, planned

LIGHT = distil_link.light(7, clicks=400_000, qber=0.012)


def completed(seen=LIGHT, **kwargs):
    pair = distil_link.Pair(seen, **kwargs)
    pair.run()
    return pair


def said(pair, kind):
    messages = [decode(octets, wire.BlockMessage) for _, octets in pair.octets]
    return [message for message in messages if isinstance(message, kind)]


# ── leak ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_when_a_frame_was_solved_is_leak_too():
    """A leak that depends on the key tells by its size: one of 6 ** frames patterns, which 32 bits do not hold."""
    entry = next(each for each in reconcile.index() if each.n == 65536)
    plan = reconcile.Plan(entry, 200 * 60_000, 200, 0.01)

    def is_right(leak_bits):
        syndromes_and_error_count = plan.frames * entry.m + 32
        return leak_bits >= syndromes_and_error_count + plan.frames * log2(6)

    assert is_right(plan.leak_bits((), ()))
    assert not is_right(plan.frames * entry.m + 32)


@pytest.fixture(scope="module")
def blind():
    """A block that takes two blind rounds."""
    seen = distil_link.light(7, clicks=500_000, qber=0.016)
    in_key = (seen.settings.basis == 0) & (seen.detections.basis == 0)
    seen.detections.bit[in_key & (np.random.default_rng(1).random(len(in_key)) < 0.0065)] ^= 1
    pair = completed(seen)
    assert len(said(pair, wire.Halves)) == 2
    return pair


def test_every_try_and_both_ends_words_are_leak(blind):
    """Bits about the key in the conversation itself, whoever said them, against what the record says."""
    (sifted,), (decoded,), (proof,) = (said(blind, kind) for kind in (wire.Sifted, wire.Decoded, wire.Proof))
    halves = [8 * len(message.parities) for message in said(blind, wire.Halves)]
    asked = said(blind, wire.Unsolved)
    frames = reconcile.choose(
        sum(blind.alice._seen.test_errors), sum(blind.alice._seen.test_counts), len(blind.alice._bits)
    ).frames
    by_bob = frames * log2(1 + len(asked)) + log2(1 + decoded.errors)  # what his answers told here, at least
    by_alice = 8 * (len(sifted.syndromes) + len(proof.disclosed) + len(proof.verify_hash)) + sum(halves)

    def is_right(leak_bits):
        return leak_bits >= by_alice + by_bob

    counted = blind.of("alice", Hold)[0].key.leak_bits
    assert is_right(counted)
    assert not is_right(counted - halves[0])  # the last round only
    assert not is_right(counted - 32 - frames * log2(6))  # what Bob says is no secret of Alice's
    assert not is_right(counted - 128)  # without the verification hash
    assert counted == blind.of("bob", Hold)[0].key.leak_bits


# ── verification ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_checksum_is_no_universal_hash():
    """Two keys that differ by a multiple of the CRC's polynomial: no key of the hash may matter less than 2 ** -20."""
    bits = np.random.default_rng(1).integers(0, 2, 4096).astype(np.uint8)
    # From x ** 32 down; zlib takes the least significant bit of an octet first.
    polynomial = np.packbits([1, *map(int, f"{0x04C11DB7:032b}")], bitorder="little")
    other = bits.copy()
    other[: 8 * len(polynomial)] ^= np.unpackbits(polynomial)
    assert not np.array_equal(bits, other)

    def is_right(hash_of):
        keys = [np.random.default_rng([2, i]).bytes(16) for i in range(200)]
        return not any(hash_of(key, bits) == hash_of(key, other) for key in keys)

    assert is_right(lambda key, x: make_hash(key, x)[0])
    assert not is_right(lambda key, x: crc32(key + np.packbits(x).tobytes()))


def test_a_block_that_fails_verification_is_destroyed_and_never_tried_again():
    """Bob gets a wrong hash, then the right one: a second chance would be one more try for Eve."""
    replies = []

    def change(_index, _sender, octets):
        message = decode(octets, wire.BlockMessage)
        if not isinstance(message, wire.Proof):
            return [octets]
        wrong = replace_field(message, "verify_hash", bytes(16))
        replies.append(octets)
        return [encode(wrong), octets]

    pair = distil_link.Pair(LIGHT)
    pair.run(change)
    assert len(replies) == 1
    for party in ("alice", "bob"):
        assert not pair.of(party, Hold)
        assert [effect.cause for effect in pair.of(party, Destroy)] == ["verification"]


def replace_field(message, name, value):
    fields = {field: getattr(message, field) for field in message.__struct_fields__}
    return type(message)(**(fields | {name: value}))


# ── the same data again ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_test_is_drawn_once_not_until_it_pleases():
    """Of twenty tests drawn from the same bits the best one is no random sample. 400 blocks, false alarm 10^-6."""

    def is_right(tries):
        rng, failures = np.random.default_rng(12), 0
        for _ in range(400):
            wrong, tested, kept = 400, 2000, 18_000
            seen = min(rng.hypergeometric(wrong, tested + kept - wrong, tested) for _ in range(tries))
            failures += tails.hypergeometric(seen, tested, kept, 0.02) < (wrong - seen) / kept
        return stats.binomtest(failures, 400, 0.02, alternative="greater").pvalue > 1e-6

    assert is_right(1)
    assert not is_right(20)


# ── Toeplitz ────────────────────────────────────────────────────────────────────────────────────────────────────────


def amplified(bits, seed_bits, length):
    octets = universal.toeplitz(bits, np.packbits(seed_bits).tobytes(), length).reveal()
    return np.unpackbits(np.frombuffer(octets, np.uint8))[:length]


def test_a_toeplitz_seed_has_as_many_bits_as_rows_and_columns_less_one():
    """With as many as columns only (a circulant matrix) two keys that differ everywhere collide half of the time."""
    n, length = 64, 8

    def is_right(seed_of):
        rng = np.random.default_rng(3)
        zero = sum(not amplified(np.ones(n, np.uint8), seed_of(rng), length).any() for _ in range(600))
        return stats.binomtest(zero, 600, 2.0**-length, alternative="greater").pvalue > 1e-6

    assert is_right(lambda rng: rng.integers(0, 2, n + length - 1).astype(np.uint8))
    assert not is_right(lambda rng: np.tile(rng.integers(0, 2, n).astype(np.uint8), 2)[: n + length - 1])
    assert universal.toeplitz_seed_octets(n, length) == (n + length - 1 + 7) // 8


def test_a_toeplitz_seed_is_said_last_and_is_new_in_each_block():
    def is_right(dice_of):
        pairs = []
        for block in (1, 2):
            pair = distil_link.Pair(distil_link.light(20 + block, block=block, qber=0.01))
            pair.alice._random = dice_of(block)
            pair.run()
            pairs.append(pair)
        seeds = [said(pair, wire.Proof)[0].seed for pair in pairs]
        for pair, seed in zip(pairs, seeds, strict=True):
            last_of_bob = max(i for i, (sender, _) in enumerate(pair.octets[:-3]) if sender == "bob")
            at = next(i for i, (_, octets) in enumerate(pair.octets) if seed in octets)
            # Behind every word of Bob's that holds anything about detections or decoding.
            assert at > last_of_bob
        return seeds[0][:1000] != seeds[1][:1000]

    going_on = distil_link.Dice(5)
    assert is_right(lambda _block: going_on)
    assert not is_right(lambda _block: distil_link.Dice(5))


def test_long_keys_are_hashed_exactly_not_by_rounded_transforms():
    """The longest sums: nearly all key bits are ones. Each output bit against its own sum."""
    n, length = 1 << 23, 48
    rng = np.random.default_rng(6)
    bits = np.ones(n, np.uint8)
    bits[rng.integers(0, n, n // 50)] = 0
    seed = rng.integers(0, 2, n + length - 1).astype(np.uint8)
    want = np.array([int(np.count_nonzero(bits & seed[row : row + n][::-1])) & 1 for row in range(length)], np.uint8)

    def is_right(hashed):
        # The order in which the seed fills the matrix is a convention: either way, each row is a window of it.
        return np.array_equal(hashed, want) or np.array_equal(hashed[::-1], want)

    def by_transform(dtype):
        size = fft.next_fast_len(2 * n + length, real=True)
        spectrum = fft.rfft(bits.astype(dtype), size) * fft.rfft(seed.astype(dtype), size)
        sums = fft.irfft(spectrum, size)[n - 1 : n - 1 + length]
        return (np.rint(sums).astype(np.int64) & 1).astype(np.uint8)

    assert is_right(by_transform(np.float64))
    assert not is_right(by_transform(np.float32))
    assert is_right(amplified(bits, seed, length)) or is_right(amplified(bits[::-1].copy(), seed, length))


# ── authentication ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_tag_key_used_twice_lets_eve_forge():
    """Tags of three messages under one key give the tag of their sum: the hash is linear."""
    one, two, three = (np.random.default_rng([7, i]).bytes(64) for i in range(3))
    fourth = bytes(a ^ b ^ c for a, b, c in zip(one, two, three, strict=True))
    secret = np.random.default_rng(8).bytes(4 * its.WC_KEY_OCTETS)

    def is_right(key_of):
        tags = [its.tag(key_of(i), b"label", [message]) for i, message in enumerate((one, two, three))]
        forged = bytes(a ^ b ^ c for a, b, c in zip(*tags, strict=True))
        try:
            its.verify(key_of(3 if key_of(1) != key_of(0) else 0), b"label", [fourth], forged)
        except AuthenticationFailed:
            return True
        return False

    assert is_right(lambda i: secret[32 * i : 32 * i + 32])
    assert not is_right(lambda _i: secret[:32])


def test_each_tag_of_a_block_has_a_key_of_its_own(monkeypatch):
    used = []
    real = its.tag

    def watched(key, label, parts):
        used.append((bytes(key), bytes(label)))
        return real(key, label, parts)

    monkeypatch.setattr(its, "tag", watched)
    completed()

    def is_right(pairs):
        """No half of a key goes with two labels."""
        labels = {}
        for key, label in pairs:
            for half in (key[:16], key[16:]):
                labels.setdefault(half, set()).add(label)
        return all(len(each) == 1 for each in labels.values())

    assert len({label for _, label in used}) == 3
    assert is_right(used)
    assert not is_right([(used[0][0], label) for _, label in used])


def test_tags_cover_the_messages_of_both_ends(monkeypatch):
    """Eve flips one of Bob's test bits on its way. Tags over Alice's words alone would let the block live."""

    def is_right():
        def flip(index, _sender, octets):
            if index != 0:
                return [octets]
            message = decode(octets, wire.BlockMessage)
            bits = bytearray(message.test_bits)
            bits[0] ^= 0x80
            return [encode(replace_field(message, "test_bits", bytes(bits)))]

        pair = distil_link.Pair(LIGHT)
        pair.run(flip)
        return not pair.of("alice", Release) and not pair.of("bob", Release)

    assert is_right()
    real_tag = its.tag
    monkeypatch.setattr(its, "tag", lambda key, label, parts: real_tag(key, label, parts[1:]))  # verify calls it
    assert not is_right()


def test_a_collision_bound_counts_the_whole_conversation():
    """Two conversations of L blocks agree under as many keys as a polynomial of degree L has roots."""
    pair = completed()
    key = pair.of("alice", Hold)[0].key
    blocks = sum(len(octets) for _, octets in pair.octets[:4]) // 16

    def is_right(epsilon):
        return epsilon >= 3 * blocks * 2.0**-128

    assert blocks > 1000
    assert is_right(key.epsilon.authentic)
    assert not is_right(3 * 2.0**-128)


def test_what_authentication_costs_is_not_in_the_net_rate():
    made = planned(PlannedLink(km=60, loss_db=14))

    def is_right(rate):
        return rate * made.link.block_s == made.proved.length_bits - 8 * AUTH_OCTETS

    assert is_right(made.net_bps)
    assert not is_right(made.secret_bps)
    key = completed().of("alice", Hold)[0].key
    assert AUTH_OCTETS <= key.auth_octets < len(key.material)


# ── sifting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_bob_announces_holds_nothing_of_his_key_bits_or_detectors():
    seen = distil_link.light(9, clicks=20_000)
    in_key = seen.detections.basis == 0
    turned = replace(seen, detections=replace(seen.detections, bit=seen.detections.bit ^ in_key))

    def is_right(announce):
        return announce(seen) == announce(turned)

    def ours(light):
        (effect,) = distil_link.Pair(light).bob.start()
        return effect.octets

    def all_bits(light):
        return wire.pack(light.detections.bit)

    assert is_right(ours)
    assert not is_right(all_bits)
    # A slot, a basis, a test bit for each click: no time within the slot, no double clicks, no detector.
    assert set(wire.Detected.__struct_fields__) == {"pulses", "count", "gaps", "bases", "test_bits"}


def test_alice_says_nothing_before_bobs_detections_and_no_intensity_of_a_click_that_does_not_match():
    pair = completed()
    senders = [sender for sender, _ in pair.octets]
    assert senders[:2] == ["bob", "alice"]
    message = said(pair, wire.Sifted)[0]
    matches = np.unpackbits(np.frombuffer(message.matches, np.uint8))[: len(LIGHT.detections.positions)]

    def is_right(planes):
        return all(len(plane) == (int(matches.sum()) + 7) // 8 for plane in planes)

    every = LIGHT.settings.intensity
    assert is_right((message.intensity_low, message.intensity_high))
    assert not is_right((wire.pack(every & 1), wire.pack(every >> 1)))


def test_key_and_test_are_told_apart_by_both_bases():
    """Clicks of equal bases are key or test by the basis; of unequal ones, neither."""
    alice, bob = LIGHT.settings.basis, LIGHT.detections.basis

    def is_right(key, test):
        rate = np.mean(select(LIGHT.settings.bit, key) != select(LIGHT.detections.bit, key))
        return not np.any(key & test) and rate < 0.02 and np.array_equal(key | test, (alice == bob).astype(np.uint8))

    assert is_right(sift.key_clicks(alice, bob), sift.tested_clicks(alice, bob))
    mixed = (alice == bob).astype(np.uint8)
    assert not is_right(mixed, sift.tested_clicks(alice, bob))
    assert not is_right(bob ^ np.uint8(1), sift.tested_clicks(alice, bob))


def test_keys_of_growing_blocks_are_whole_steps():
    """A length is rounded down, and never up to the next step."""
    lengths = [parties.usable_octets(_length(bits)) for bits in (1600, 1727, 1728, 1729, 5000)]
    assert all(8 * octets <= bits for octets, bits in zip(lengths, (1600, 1727, 1728, 1729, 5000), strict=True))
    assert all(b >= a for a, b in pairwise(lengths))


def _length(bits):
    return parties.KeyLength(vacuum_bits=0.0, single_photon_bits=float(bits), phase_error=0.0, length_bits=bits)
