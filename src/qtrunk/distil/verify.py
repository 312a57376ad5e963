"""Verification: do both ends hold the same bits? A universal hash under a fresh key, drawn after reconciliation.

128 bits are said in public and count as leak. Two different keys pass with probability at most blocks * 2^-128, which
goes into the key's epsilon. A block that fails is destroyed whole.
"""

import hmac

import numpy as np

from qtrunk.base.errors import BlockAborted, WireError
from qtrunk.crypto import universal
from qtrunk.stages import Octets

VERIFY_BITS = 8 * universal.HASH_OCTETS


def make_hash(key: bytes, bits: Octets) -> tuple[bytes, float]:
    """The hash of a key's bits under a 16-octet hash key, and the probability that it hides a difference."""
    packed = np.packbits(bits).tobytes()
    return universal.hash_parts(key, [packed]), universal.collision_probability(len(packed))


def check_hash(key: bytes, bits: Octets, claimed: bytes) -> float:
    """BlockAborted unless the own bits have the peer's hash; the probability of an unseen difference."""
    if len(key) != universal.HASH_OCTETS or len(claimed) != universal.HASH_OCTETS:
        raise WireError("verification key and hash: 16 octets each")
    own, epsilon_correct = make_hash(key, bits)
    if not hmac.compare_digest(own, claimed):
        raise BlockAborted("verification", "the two keys still differ after reconciliation")
    return epsilon_correct
