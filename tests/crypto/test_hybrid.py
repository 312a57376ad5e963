"""Hybrid keys: whatever is changed, moved or replayed opens nothing; who signs nonsense is refused, too."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from qtrunk.base.errors import AuthenticationFailed, QtrunkError
from qtrunk.base.secret import Secret
from qtrunk.base.wire import decode, encode
from qtrunk.crypto import hybrid
from qtrunk.crypto.hybrid import SEED_OCTETS, HybridEnd, NoKemKeyError, Offer, UnknownKemKeyError, Wrapped

NOW_S = 1e9
CONTEXT = b"a relay"
SEED = bytes(range(SEED_OCTETS))


@pytest.fixture(scope="module")
def signers() -> dict[str, MLDSA65PrivateKey]:
    return {node: MLDSA65PrivateKey.generate() for node in "abc"}


def ends(signers: dict[str, MLDSA65PrivateKey], suite: str = "ml-kem-768") -> dict[str, HybridEnd]:
    """Three nodes; each knows the others' verifying keys and present encapsulation keys."""
    known = {node: key.public_key() for node, key in signers.items()}
    made = {node: HybridEnd(node, key, known, suite) for node, key in signers.items()}
    for end in made.values():
        for other in made.values():
            end.learn(other.offer(NOW_S), NOW_S)
    return made


def wrapped(made: dict[str, HybridEnd]) -> Wrapped:
    return made["a"].wrap("b", Secret(SEED), CONTEXT, NOW_S)


def flipped(octets: bytes) -> bytes:
    return bytes([octets[0] ^ 1]) + octets[1:]


@pytest.mark.parametrize("suite", hybrid.SUITES)
def test_a_seed_arrives(signers, suite):
    made = ends(signers, suite)
    assert made["b"].unwrap("a", wrapped(made), CONTEXT) == Secret(SEED)


@pytest.mark.parametrize("field", ["ciphertext", "seed", "signature", "number", "suite"])
def test_a_seed_that_was_changed_in_any_part_is_refused(signers, field):
    made = ends(signers)
    sent = wrapped(made)
    value = "ml-kem-1024" if field == "suite" else flipped(getattr(sent, field))
    with pytest.raises((AuthenticationFailed, UnknownKemKeyError)):
        made["b"].unwrap("a", msgspec.structs.replace(sent, **{field: value}), CONTEXT)


def test_a_seed_is_for_one_node_of_one_node_about_one_relay(signers):
    made = ends(signers)
    sent = wrapped(made)
    with pytest.raises(AuthenticationFailed):
        made["b"].unwrap("a", sent, b"another relay")
    with pytest.raises(AuthenticationFailed):
        made["b"].unwrap("c", sent, CONTEXT)
    with pytest.raises(UnknownKemKeyError):
        made["c"].unwrap("a", sent, CONTEXT)
    with pytest.raises(AuthenticationFailed, match="not known here"):
        made["b"].unwrap("nobody", sent, CONTEXT)


@pytest.mark.parametrize("field", ["node", "suite", "number", "public_key", "until_unix_s", "signature"])
def test_an_offer_that_was_changed_in_any_part_is_refused(signers, field):
    made = ends(signers)
    offer = decode(made["b"].offer(NOW_S), Offer)
    changed = {"node": "c", "suite": "ml-kem-1024", "until_unix_s": offer.until_unix_s + 1}
    value = changed.get(field) or flipped(getattr(offer, field))
    with pytest.raises(AuthenticationFailed):
        made["a"].learn(encode(msgspec.structs.replace(offer, **{field: value})), NOW_S)


@pytest.mark.parametrize("public_key", [b"", bytes(1183), b"\xff" * 1184])
def test_a_signed_offer_of_no_key_is_refused_and_the_good_one_stays(signers, public_key):
    made = ends(signers)
    number, until = b"n" * 16, NOW_S + 6000
    signed = hybrid._signed(hybrid._OFFER, "b", "ml-kem-768", number, public_key, repr(until))
    offer = Offer(
        node="b",
        suite="ml-kem-768",
        number=number,
        public_key=public_key,
        until_unix_s=until,
        signature=signers["b"].sign(signed),
    )
    with pytest.raises(AuthenticationFailed, match="no ML-KEM key"):
        made["a"].learn(encode(offer), NOW_S)
    assert made["b"].unwrap("a", wrapped(made), CONTEXT) == Secret(SEED)


def test_keys_are_replaced_and_old_ones_open_for_one_period_more(signers):
    made = ends(signers)
    sent = wrapped(made)
    first = made["b"].offer(NOW_S)
    later_s = NOW_S + 1.5 * hybrid.KEY_PERIOD_S
    assert made["b"].offer(later_s) != first
    assert made["b"].unwrap("a", sent, CONTEXT) == Secret(SEED)
    with pytest.raises(NoKemKeyError):
        made["a"].wrap("b", Secret(SEED), CONTEXT, later_s)
    made["b"].offer(later_s + hybrid.KEY_PERIOD_S)
    with pytest.raises(UnknownKemKeyError):
        made["b"].unwrap("a", sent, CONTEXT)


def test_clocks_that_were_ahead_for_a_while_leave_no_key_behind(signers):
    ahead_s = NOW_S + 1e7
    known = {node: key.public_key() for node, key in signers.items()}
    a, b = HybridEnd("a", signers["a"], known), HybridEnd("b", signers["b"], known)
    early = b.offer(ahead_s)
    with pytest.raises(AuthenticationFailed, match="see the clocks"):
        a.learn(early, NOW_S)
    # Both were ahead, both were set right.
    a.learn(early, ahead_s)
    offer = b.offer(NOW_S)
    assert offer != early
    a.learn(offer, NOW_S)
    sent = a.wrap("b", Secret(SEED), CONTEXT, NOW_S)
    assert sent.number == decode(offer, Offer).number
    assert b.unwrap("a", sent, CONTEXT) == Secret(SEED)


def test_masks_differ_by_seed_and_context_and_undo_themselves(signers):
    octets = Secret(bytes(range(200)))
    masks = {
        bytes(hybrid.masked(octets, Secret(seed), context).reveal())
        for seed in (SEED, bytes(SEED_OCTETS))
        for context in (b"one", b"two")
    }
    assert len(masks) == 4
    assert hybrid.masked(hybrid.masked(octets, Secret(SEED), b"one"), Secret(SEED), b"one") == octets


def test_octets_of_anyone_are_an_offer_or_an_error_of_ours(signers):
    made = ends(signers)
    for octets in (b"", b"\xc1", b"\x80", made["b"].offer(NOW_S)[:-1]):
        with pytest.raises(QtrunkError):
            made["a"].learn(octets, NOW_S)
