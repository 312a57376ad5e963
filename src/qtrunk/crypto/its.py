"""Information-theoretic secrecy and authenticity: one-time pad, and Wegman-Carter tags.

A tag is the polynomial hash of label and message under a fresh 16-octet key, encrypted with a fresh 16-octet pad
(Wegman, Carter 1981). Both come from one 32-octet key that is used for one message, ever: whoever calls must have
recorded that it is spent. A forgery passes with probability at most `forgery_probability`, whatever Eve computes.

The label says who speaks to whom about what (protocol, version, role, link, block, message kind). Label and parts are
framed by their lengths, so no two different (label, message) hash the same octets; a tag of one role or block never
verifies for another: no reflection, no replay.
"""

import hmac
from collections.abc import Sequence

import numpy as np

from qtrunk.base.errors import AuthenticationFailed
from qtrunk.base.secret import Secret
from qtrunk.crypto import universal

WC_KEY_OCTETS = 32
"""16 octets of hash key, then 16 octets of pad."""
TAG_OCTETS = 16

Part = bytes | bytearray | memoryview


def one_time_pad(data: Part, pad: Part) -> bytes:
    """`data` XOR `pad`, which must be exactly as long; the same call decrypts."""
    if len(data) != len(pad):
        raise ValueError(f"one-time pad: {len(data)} octets of data need as much pad, {len(pad)} given")
    return np.bitwise_xor(np.frombuffer(data, np.uint8), np.frombuffer(pad, np.uint8)).tobytes()


def secret_sum(data: Part, pad: Part) -> Secret:
    """The same where the result is the secret one: `data` XOR `pad`, made in place."""
    if len(data) != len(pad):
        raise ValueError(f"one-time pad: {len(data)} octets of data need as much pad, {len(pad)} given")
    made = Secret(bytes(len(data)))
    out = np.frombuffer(made.fill(), np.uint8)
    np.bitwise_xor(np.frombuffer(data, np.uint8), np.frombuffer(pad, np.uint8), out=out)
    return made


def tag(key: Part, label: bytes, parts: Sequence[Part]) -> bytes:
    """The 16-octet tag of a message under a 32-octet key that is used for nothing else."""
    if len(key) != WC_KEY_OCTETS:
        raise ValueError(f"authentication key: {WC_KEY_OCTETS} octets are needed, {len(key)} given")
    digest = universal.hash_parts(bytes(key[:16]), [label, *parts])
    return one_time_pad(digest, key[16:])


def verify(key: Part, label: bytes, parts: Sequence[Part], claimed: Part) -> None:
    """Raise AuthenticationFailed unless `claimed` is the tag; the comparison takes constant time."""
    if not hmac.compare_digest(tag(key, label, parts), bytes(claimed)):
        raise AuthenticationFailed(
            "an authentication tag does not verify: the message was changed, replayed or reflected"
        )


def forgery_probability(octets: int, parts: int = 1) -> float:
    """Upper bound of Pr[a forged tag passes] for a message of so many octets."""
    return universal.collision_probability(octets, parts + 1)
