"""What authenticates distillation on one link: key of the pool, else, where the operator's policy has them, signatures.

Alice's end decides for each exchange; Bob's takes signatures only while it has no key itself, or until key was used for
the first time since the start (blocks overlap: she may not know yet that his pool has its first key). Whoever can make
Alice's pool empty therefore cannot make Bob's end believe a signature while it has key.
"""

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from qtrunk.base.errors import AuthenticationFailed, ConfigError, KeyExhausted
from qtrunk.distil.authentication import AUTH_OCTETS, SIGNED, Authenticator, Signatures, WegmanCarter
from qtrunk.kms.store import AuthPool


class LinkAuthentication:
    """One end's distil.parties.AuthLedger."""

    def __init__(self, pool: AuthPool, signatures: Signatures | None) -> None:
        """`signatures` only where the policy allows them."""
        self.pool = pool
        self._signatures = signatures
        self._has_used_key = False
        self.is_signing = False
        """Whether the last exchange was authenticated by signatures."""

    def reserve(self, epsilon: float) -> Authenticator:
        """See distil.parties.AuthLedger."""
        try:
            portion = self.pool.reserve(epsilon)
        except KeyExhausted:
            if self._signatures is None:
                raise
            return self._sign(epsilon)
        self.is_signing, self._has_used_key = False, True
        return WegmanCarter(portion.block, portion.offset, portion.material)

    def take(self, block: int, offset: int, epsilon: float) -> Authenticator:
        """See distil.parties.AuthLedger."""
        if block != SIGNED:
            material = self.pool.take(block, offset, epsilon)
            self.is_signing, self._has_used_key = False, True
            return WegmanCarter(block, offset, material)
        if self._signatures is None:
            raise AuthenticationFailed("the peer signs, and the policy of this end's link is bootstrap = preshared")
        if self._has_used_key and self.pool.level_octets() >= AUTH_OCTETS:
            raise AuthenticationFailed("the peer signs though there is authentication key")
        return self._sign(epsilon)

    def _sign(self, epsilon: float) -> Authenticator:
        assert self._signatures is not None
        self.pool.charge(epsilon)
        self.is_signing = True
        return self._signatures

    def allows(self, epsilon: float) -> bool:
        """See distil.parties.AuthLedger."""
        return self.pool.epsilon() + epsilon <= self.pool.epsilon_max

    def level_octets(self) -> int:
        """See distil.parties.AuthLedger."""
        return self.pool.level_octets()


def load_signatures(private_key: Path, peer_public_key: Path) -> Signatures:
    """From PEM files; ConfigError where one is missing or holds something else."""
    try:
        own = serialization.load_pem_private_key(private_key.read_bytes(), password=None)
        peer = serialization.load_pem_public_key(peer_public_key.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError([f"signing keys {private_key}, {peer_public_key}: {error}"]) from error
    if not isinstance(own, MLDSA65PrivateKey) or not isinstance(peer, MLDSA65PublicKey):
        raise ConfigError([f"signing keys {private_key}, {peer_public_key}: ML-DSA-65 keys are needed"])
    return Signatures(own, peer)
