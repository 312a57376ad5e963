"""Universal hashing: a polynomial family over GF(2^128) for tags and verification, Toeplitz for privacy amplification.

Polynomial family: for a message of L blocks of 16 octets and a uniform key k, two different messages of that length
have any given difference of hashes with probability at most L * 2^-128 (Wegman-Carter 1981; den Boer 1993). It is
not 2^-128: the bound grows with the message, so it is a function here, and callers book it. Messages of different
lengths differ in the length block that `frame` puts first.
"""

import struct
from collections.abc import Iterable

import numpy as np

from qtrunk import kernels
from qtrunk.base.secret import Secret
from qtrunk.stages import Octets

HASH_OCTETS = 16
_LENGTH = struct.Struct("<QQ")


def frame(part: bytes | bytearray | memoryview) -> bytes:
    """A part with its length before it, padded to whole blocks: a row of framed parts is injective."""
    length = len(part)
    return _LENGTH.pack(length, 0) + bytes(part) + bytes(-length % HASH_OCTETS)


def hash_parts(key: bytes, parts: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """The polynomial hash of a row of parts, each framed. `key` is 16 octets."""
    state = bytes(HASH_OCTETS)
    count = 0
    for part in parts:
        length = len(part)
        state = kernels.poly_hash(key, _LENGTH.pack(length, 0), state)
        whole = length - length % HASH_OCTETS
        view = memoryview(part)
        state = kernels.poly_hash(key, view[:whole], state)
        if whole < length:
            state = kernels.poly_hash(key, view[whole:], state)
        count += 1
    return kernels.poly_hash(key, _LENGTH.pack(count, 1), state)


def hash_blocks(octets: int, parts: int = 1) -> int:
    """Blocks that `hash_parts` hashes for parts of so many octets in all."""
    return octets // HASH_OCTETS + 2 * parts + 1


def collision_probability(octets: int, parts: int = 1) -> float:
    """Upper bound of Pr[two different messages of at most so many octets collide], over the key."""
    return hash_blocks(octets, parts) * 2.0**-128


def toeplitz_seed_octets(input_bits: int, output_bits: int) -> int:
    """Octets that hold a Toeplitz seed of input_bits + output_bits - 1 bits."""
    return (input_bits + output_bits - 1 + 7) // 8


def toeplitz(bits: Octets, seed: bytes, output_bits: int) -> Secret:
    """A 2-universal hash of unpacked bits by the Toeplitz matrix of `seed`: ceil(output_bits / 8) octets.

    The collision probability is 2^-output_bits for a uniform seed (Krawczyk 1994); the seed must be drawn after Eve's
    information about `bits` is fixed.
    """
    packed = np.packbits(bits)
    hashed = kernels.toeplitz_hash(packed, len(bits), np.frombuffer(seed, np.uint8), output_bits)
    made = Secret(hashed.data)
    # Arrays go back to the allocator as they are.
    packed.fill(0)
    hashed.fill(0)
    return made
