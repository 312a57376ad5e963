"""What stands behind the tags of one exchange: key that is used once, or by policy, while there is none, signatures.

Three tags of an exchange have numbers (`slot`) from 0. `WegmanCarter` has a key of its own for each; a forgery passes
with a known small probability, whatever Eve computes. `Signatures` holds as long as nobody can forge ML-DSA (FIPS 204)
*while the exchange runs*: key made of it stays secret when the scheme is broken later. Which of them it was is part of
the record of every key.
"""

import hashlib
from collections.abc import Sequence
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from qtrunk.base.errors import AuthenticationFailed
from qtrunk.base.secret import Secret
from qtrunk.crypto import its

SLOTS = 3
AUTH_OCTETS = SLOTS * its.WC_KEY_OCTETS
"""Key for one exchange: 32 octets for each tag."""
WEGMAN_CARTER, ML_DSA = "wegman-carter", "ml-dsa-65"
SIGNED = -1
"""Number of the block that the key comes from, where signatures are used and no key."""


class Authenticator(Protocol):
    """Makes and checks the tags of one exchange."""

    @property
    def scheme(self) -> str:
        """WEGMAN_CARTER or ML_DSA."""

    @property
    def reference(self) -> tuple[int, int]:
        """(block, offset) of the key, for the peer; block SIGNED where there is none."""

    def tag(self, slot: int, label: bytes, parts: Sequence[bytes]) -> bytes:
        """The tag of a message in its parts."""

    def verify(self, slot: int, label: bytes, parts: Sequence[bytes], claimed: bytes) -> None:
        """AuthenticationFailed unless it is the peer's tag."""

    def failure(self, octets: int, parts: int, tags: int) -> float:
        """Probability that a forgery of one of `tags` tags over messages of so many octets and parts passes."""

    def wipe(self) -> None:
        """Forget the key."""


class WegmanCarter:
    """Tags under key that is used for this exchange and never again; recording that is the caller's part."""

    scheme = WEGMAN_CARTER

    def __init__(self, block: int, offset: int, material: Secret) -> None:
        """`material` are the AUTH_OCTETS at `offset` of a block's key."""
        if len(material) != AUTH_OCTETS:
            raise ValueError(f"authentication key: {AUTH_OCTETS} octets are needed, {len(material)} given")
        self.reference = (block, offset)
        self._material = material

    def _key(self, slot: int) -> memoryview:
        assert 0 <= slot < SLOTS
        return memoryview(self._material.reveal())[slot * its.WC_KEY_OCTETS : (slot + 1) * its.WC_KEY_OCTETS]

    def tag(self, slot: int, label: bytes, parts: Sequence[bytes]) -> bytes:
        """See Authenticator."""
        return its.tag(self._key(slot), label, parts)

    def verify(self, slot: int, label: bytes, parts: Sequence[bytes], claimed: bytes) -> None:
        """See Authenticator."""
        its.verify(self._key(slot), label, parts, claimed)

    def failure(self, octets: int, parts: int, tags: int) -> float:
        """See Authenticator."""
        return tags * its.forgery_probability(octets, parts)

    def wipe(self) -> None:
        """See Authenticator."""
        self._material.wipe()


class Signatures:
    """ML-DSA-65 signatures over a digest of label and message, under this node's key and the peer's."""

    scheme = ML_DSA
    reference = (SIGNED, 0)

    def __init__(self, own: MLDSA65PrivateKey, peer: MLDSA65PublicKey) -> None:
        self._own = own
        self._peer = peer

    def tag(self, slot: int, label: bytes, parts: Sequence[bytes]) -> bytes:
        """See Authenticator."""
        return self._own.sign(_digest(slot, label, parts))

    def verify(self, slot: int, label: bytes, parts: Sequence[bytes], claimed: bytes) -> None:
        """See Authenticator."""
        try:
            self._peer.verify(claimed, _digest(slot, label, parts))
        except InvalidSignature:
            raise AuthenticationFailed(
                "a signature does not verify: the message was changed or is not the peer's"
            ) from None

    def failure(self, octets: int, parts: int, tags: int) -> float:
        """Nothing that a sum of probabilities could say: the record names the scheme instead."""
        return 0.0

    def wipe(self) -> None:
        """The key is the node's own and stays."""


def _digest(slot: int, label: bytes, parts: Sequence[bytes]) -> bytes:
    """SHA3-512 of slot, label and parts, each behind its length, so that no two messages hash the same octets."""
    digest = hashlib.sha3_512(b"qtrunk signed tag 1" + bytes([slot]))
    for part in (label, *parts):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
