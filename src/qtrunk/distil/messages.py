"""What the two ends of a link say, about one block and about blocks, and the packing of bits in it.

Every count is checked before it is used.
"""

import struct

import numpy as np

from qtrunk import kernels
from qtrunk.base.errors import WireError
from qtrunk.base.wire import Message
from qtrunk.stages import Octets, Positions

SESSION, BLOCK = 0, 1
"""Kinds of frames on the classical channel: of the session, of a block."""
BLOCK_HEADER = struct.Struct(">BQ")


class Detected(Message, frozen=True, tag="detected"):
    """Bob, after the light of the block is over: where he clicked, in which bases, and his test-basis bits."""

    pulses: int
    count: int
    gaps: bytes
    bases: bytes
    test_bits: bytes


class Sifted(Message, frozen=True, tag="sifted"):
    """Alice: which clicks match, their intensities (two bit planes), test errors, how to reconcile, code and syndromes
    of her key.
    """

    matches: bytes
    intensity_low: bytes
    intensity_high: bytes
    test_errors: bytes
    method: str
    code: str
    syndromes: bytes


class Unsolved(Message, frozen=True, tag="unsolved"):
    """Bob: frames he cannot reconcile yet; he asks for one more blind round."""

    frames: list[int]


class Halves(Message, frozen=True, tag="halves"):
    """Alice: parities of one half of some checks, for each of those frames."""

    parities: bytes


class Parities(Message, frozen=True, tag="parities"):
    """Alice: parities that Cascade asks for (distil.cascade)."""

    bits: bytes


class Mismatches(Message, frozen=True, tag="mismatches"):
    """Bob: where his parities differ."""

    bits: bytes


class Decoded(Message, frozen=True, tag="decoded"):
    """Bob: frames he could not reconcile, and how many errors he corrected in the others."""

    failed: list[int]
    errors: int


class Proof(Message, frozen=True, tag="proof"):
    """Alice: disclosed frames, verification hash with its fresh key, the key's length, the Toeplitz seed, and which
    authentication keys this block uses."""

    disclosed: bytes
    verify_key: bytes
    verify_hash: bytes
    length_octets: int
    auth_octets: int
    seed: bytes
    auth_block: int
    auth_offset: int


class Accept(Message, frozen=True, tag="accept"):
    """Bob: his tag over everything said so far."""

    tag: bytes


class Confirm(Message, frozen=True, tag="confirm"):
    """Alice: her tag over everything said so far."""

    tag: bytes


class Released(Message, frozen=True, tag="released"):
    """Bob: his key is available now."""

    tag: bytes


class Abort(Message, frozen=True, tag="abort"):
    """Either: the block is destroyed."""

    cause: str
    why: str


BlockMessage = (
    Detected
    | Sifted
    | Unsolved
    | Halves
    | Parities
    | Mismatches
    | Decoded
    | Proof
    | Accept
    | Confirm
    | Released
    | Abort
)


class Resume(Message, frozen=True, tag="resume"):
    """Bob after connecting."""

    last_block: int
    pending: list[int]


class Resolve(Message, frozen=True, tag="resolve"):
    """Alice's answer; with held blocks it carries an authentication key reference and a tag."""

    last_block: int
    held: list[int]
    auth_block: int = 0
    auth_offset: int = 0
    tag: bytes = b""


class Resolution(Message, frozen=True, tag="resolution"):
    """What Bob did about Alice's held blocks."""

    released: list[int]
    destroyed: list[int]
    tag: bytes = b""


class Announce(Message, frozen=True, tag="announce"):
    """The next block of light."""

    block: int
    pulses: int
    intensities: list[float]
    probabilities: list[float]
    key_basis_probability: float


class Cancel(Message, frozen=True, tag="cancel"):
    """The block will not be finished (module lost, light dropped) or must not be used (a monitor of the module)."""

    block: int
    why: str
    is_suspect: bool = False


SessionMessage = Resume | Resolve | Resolution | Announce | Cancel


def pack(bits: Octets) -> bytes:
    """Zeros and ones as octets, most significant bit first."""
    return np.packbits(bits).tobytes()


def unpack(octets: bytes, count: int, field: str) -> Octets:
    """The inverse; WireError unless there are exactly so many, with zeros behind them."""
    if len(octets) != (count + 7) // 8:
        raise WireError(f"{field}: {(count + 7) // 8} octets are needed for {count} bits, {len(octets)} came")
    bits = np.unpackbits(np.frombuffer(octets, np.uint8))
    if bits[count:].any():
        raise WireError(f"{field}: bits behind the last one must be zero")
    return bits[:count]


def unpack_positions(message: Detected) -> Positions:
    """Bob's clicks; WireError unless they are ascending positions within the block."""
    try:
        return kernels.decode_gaps(np.frombuffer(message.gaps, np.uint8), message.count, message.pulses)
    except (ValueError, TypeError) as error:
        raise WireError(f"positions of clicks: {error}") from error


def split(octets: bytes) -> tuple[int, int, bytes]:
    """Envelope kind, block number (0 for session messages) and payload."""
    if not octets:
        raise WireError("empty frame on the classical channel")
    if octets[0] == SESSION:
        return SESSION, 0, octets[1:]
    if octets[0] == BLOCK and len(octets) > BLOCK_HEADER.size:
        _, block = BLOCK_HEADER.unpack_from(octets)
        return BLOCK, int(block), octets[BLOCK_HEADER.size :]
    raise WireError(f"frame of unknown kind {octets[0]} on the classical channel")


def numbers(values: list[int]) -> bytes:
    """Block numbers as they are authenticated."""
    return struct.pack(f">I{len(values)}Q", len(values), *values)
