"""Hybrid keys: end-to-end ML-KEM (FIPS 203) over the heads of the relays, joined with QKD key by XOR.

Relays see the QKD part of every key that they carry. So the initiator's node draws a seed, sends it to the target's
node under a fresh ML-KEM encapsulation, and both add the mask that the seed gives to what came over the relays:

    key = QKD part  XOR  AES-256-CTR(HKDF-SHA-256(seed, context))

The key is as good as the better of the two: with a perfect QKD part it is uniform whatever becomes of ML-KEM
(one-time pad, information-theoretic), and with every relay broken into it is safe while ML-KEM is (the XOR family of
ITU-T X.1714; each part independent of the other). The context, which both ends compute from the relay's own words, is
bound into mask, wrapping and signature, together with the ciphertext.

Who a relay could be is settled by ML-DSA-65 (FIPS 204): a node signs the encapsulation keys that it offers and the
seeds that it sends, and believes only verifying keys that it was given. Encapsulation keys live in memory only and are
replaced every KEY_PERIOD_S, so what is recorded today does not open when a node is taken later.

Errors: AuthenticationFailed (a signature, or what it stands over), NoKemKeyError and UnknownKemKeyError (one end does
not have the other's present key), WireError (not an offer).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
    MLKEM1024PrivateKey,
    MLKEM1024PublicKey,
)
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from qtrunk.base.errors import AuthenticationFailed, KeyExhausted
from qtrunk.base.secret import Secret
from qtrunk.base.wire import Message, decode, encode
from qtrunk.crypto import randomness
from qtrunk.crypto.its import one_time_pad, secret_sum

SEED_OCTETS = 32
KEY_PERIOD_S = 3600.0
LIFE_MAX_S = 1.5 * KEY_PERIOD_S
CLOCKS_APART_S = 600.0
"""By so much the clocks of two nodes may differ."""
SUITES = ("ml-kem-768", "ml-kem-1024")
_PRIVATE: Mapping[str, type[MLKEM768PrivateKey] | type[MLKEM1024PrivateKey]] = {
    "ml-kem-768": MLKEM768PrivateKey,
    "ml-kem-1024": MLKEM1024PrivateKey,
}
_PUBLIC: Mapping[str, type[MLKEM768PublicKey] | type[MLKEM1024PublicKey]] = {
    "ml-kem-768": MLKEM768PublicKey,
    "ml-kem-1024": MLKEM1024PublicKey,
}
_OFFER, _WRAP, _MASK, _NOTE = b"qtrunk kem offer 1", b"qtrunk kem wrap 1", b"qtrunk kem mask 1", b"qtrunk note 1"

_Short = Annotated[str, msgspec.Meta(max_length=64)]
_Number = Annotated[bytes, msgspec.Meta(max_length=16)]
_Blob = Annotated[bytes, msgspec.Meta(max_length=8192)]


class Offer(Message, frozen=True, tag="kem-offer"):
    """A node's encapsulation key, signed by the node."""

    node: _Short
    suite: _Short
    number: _Number
    public_key: _Blob
    until_unix_s: float
    signature: _Blob


class Wrapped(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A seed on its way: encapsulation, the seed under it, the sender's signature over both and the context."""

    suite: _Short
    number: _Number
    ciphertext: _Blob
    seed: Annotated[bytes, msgspec.Meta(max_length=SEED_OCTETS)]
    signature: _Blob


@dataclass(frozen=True, slots=True)
class _OwnKey:
    number: bytes
    key: MLKEM768PrivateKey | MLKEM1024PrivateKey
    until_unix_s: float


class HybridEnd:
    """One node's part in hybrid keys."""

    def __init__(
        self,
        node: str,
        signing_key: MLDSA65PrivateKey,
        verifying_keys: Mapping[str, MLDSA65PublicKey],
        suite: str = SUITES[0],
    ) -> None:
        self._node = node
        self._signing_key = signing_key
        self._verifying_keys = dict(verifying_keys)
        self._suite = suite
        self._own: list[_OwnKey] = []
        self._offered: dict[bytes, bytes] = {}
        self._offers: dict[str, Offer] = {}

    def believe(self, verifying_keys: Mapping[str, MLDSA65PublicKey]) -> None:
        """Of the nodes of the network as it is now; keys of a node that is gone are believed no more."""
        self._verifying_keys = dict(verifying_keys)
        self._offers = {node: offer for node, offer in self._offers.items() if node in verifying_keys}

    # ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def offer(self, now_unix_s: float) -> bytes:
        """The own encapsulation key for others to use, a fresh one where the last is near its end."""
        # An old key is kept for one period more, for seeds that are on their way under it. One that was made while the
        # clock was ahead would never be replaced.
        latest_s = now_unix_s + LIFE_MAX_S + CLOCKS_APART_S
        self._own = [own for own in self._own if now_unix_s - KEY_PERIOD_S < own.until_unix_s <= latest_s]
        if not self._own or self._own[-1].until_unix_s - KEY_PERIOD_S / 2 < now_unix_s:
            until = now_unix_s + LIFE_MAX_S
            self._own.append(_OwnKey(randomness.octets(16), _PRIVATE[self._suite].generate(), until))
        own = self._own[-1]
        if own.number in self._offered:
            return self._offered[own.number]
        public = own.key.public_key().public_bytes_raw()
        signed = _signed(_OFFER, self._node, self._suite, own.number, public, repr(own.until_unix_s))
        offer = Offer(
            node=self._node,
            suite=self._suite,
            number=own.number,
            public_key=public,
            until_unix_s=own.until_unix_s,
            signature=self._signing_key.sign(signed),
        )
        self._offered = {own.number: encode(offer)}
        return self._offered[own.number]

    def learn(self, octets: bytes, now_unix_s: float) -> str:
        """Take another node's offer; the node. AuthenticationFailed where it did not sign it."""
        offer = decode(octets, Offer)
        if offer.suite not in SUITES:
            raise AuthenticationFailed(f"node {offer.node}: offers a key of an unknown suite")
        signed = _signed(_OFFER, offer.node, offer.suite, offer.number, offer.public_key, repr(offer.until_unix_s))
        self._verify(offer.node, signed, offer.signature)
        try:
            _PUBLIC[offer.suite].from_public_bytes(offer.public_key)
        except ValueError as error:
            raise AuthenticationFailed(f"node {offer.node}: offers what is no ML-KEM key") from error
        latest_s = now_unix_s + LIFE_MAX_S + CLOCKS_APART_S
        if offer.until_unix_s > latest_s:
            raise AuthenticationFailed(f"node {offer.node}: offers a key for longer than a key lives; see the clocks")
        known = self._offers.get(offer.node)
        if known is None or not offer.until_unix_s < known.until_unix_s <= latest_s:
            self._offers[offer.node] = offer
        return offer.node

    def forget(self, node: str) -> None:
        """The other node does not know the key that it offered any more."""
        self._offers.pop(node, None)

    def is_ready(self, node: str, now_unix_s: float) -> bool:
        """Whether a seed could be sent to a node now."""
        offer = self._offers.get(node)
        return offer is not None and offer.until_unix_s > now_unix_s

    # ── seeds ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def wrap(self, node: str, seed: Secret, context: bytes, now_unix_s: float) -> Wrapped:
        """A seed for a node, under a fresh encapsulation."""
        offer = self._offers.get(node)
        if offer is None or offer.until_unix_s <= now_unix_s:
            raise NoKemKeyError(f"no valid ML-KEM key of node {node} yet; it is asked for one")
        shared, ciphertext = _PUBLIC[offer.suite].from_public_bytes(offer.public_key).encapsulate()
        sealed = one_time_pad(seed.reveal(), _derive(shared, _WRAP, ciphertext, context).reveal())
        signed = _signed(_WRAP, self._node, node, offer.suite, offer.number, ciphertext, sealed, context)
        return Wrapped(
            suite=offer.suite,
            number=offer.number,
            ciphertext=ciphertext,
            seed=sealed,
            signature=self._signing_key.sign(signed),
        )

    def unwrap(self, sender: str, wrapped: Wrapped, context: bytes) -> Secret:
        """The seed that `sender` sent here; AuthenticationFailed where it did not.

        UnknownKemKeyError: it came under a key that is gone.
        """
        own = next((own for own in self._own if own.number == wrapped.number), None)
        if own is None or wrapped.suite != self._suite or len(wrapped.seed) != SEED_OCTETS:
            raise UnknownKemKeyError(f"node {sender} used an ML-KEM key that this node does not have any more")
        signed = _signed(
            _WRAP, sender, self._node, wrapped.suite, wrapped.number, wrapped.ciphertext, wrapped.seed, context
        )
        self._verify(sender, signed, wrapped.signature)
        try:
            shared = own.key.decapsulate(wrapped.ciphertext)
        except ValueError as error:
            raise AuthenticationFailed(f"node {sender}: not an ML-KEM ciphertext") from error
        return secret_sum(wrapped.seed, _derive(shared, _WRAP, wrapped.ciphertext, context).reveal())

    # ── notes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def knows(self, node: str) -> bool:
        """Whether what this node signs can be verified here."""
        return node in self._verifying_keys

    def sign(self, *parts: str | bytes) -> bytes:
        """The own signature over a note to another node."""
        return self._signing_key.sign(_signed(_NOTE, *parts))

    def verify(self, node: str, signature: bytes, *parts: str | bytes) -> None:
        """AuthenticationFailed unless `node` signed these parts of a note."""
        self._verify(node, _signed(_NOTE, *parts), signature)

    def _verify(self, node: str, signed: bytes, signature: bytes) -> None:
        key = self._verifying_keys.get(node)
        if key is None:
            raise AuthenticationFailed(f"node {node}: its verifying key is not known here; enrol it")
        try:
            key.verify(signature, signed)
        except InvalidSignature as error:
            raise AuthenticationFailed(f"node {node}: the signature does not verify") from error


class NoKemKeyError(KeyExhausted):
    """Nothing can be sent to a node before its encapsulation key is known."""


class UnknownKemKeyError(KeyExhausted):
    """A seed came under an encapsulation key that is gone; the sender must learn the present one."""


def masked(qkd_part: Secret, seed: Secret, context: bytes) -> Secret:
    """The QKD part with the mask that both ends add to it; the same call takes it away."""
    key = _derive(seed.reveal(), _MASK, b"", context)
    made = Secret(bytes(len(qkd_part)))
    # One message under this key, ever: a fixed nonce is sound.
    Cipher(algorithms.AES(key.reveal()), modes.CTR(bytes(16))).encryptor().update_into(qkd_part.reveal(), made.fill())
    return made


def _derive(secret: bytes | memoryview, label: bytes, ciphertext: bytes, context: bytes) -> Secret:
    info = _signed(label, hashlib.sha256(ciphertext).digest(), hashlib.sha256(context).digest())
    made = Secret(bytes(32))
    HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive_into(secret, made.fill())
    return made


def _signed(label: bytes, *parts: str | bytes) -> bytes:
    """Parts with their lengths, so that no two lists read alike."""
    encoded = [label, *(part.encode() if isinstance(part, str) else part for part in parts)]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
