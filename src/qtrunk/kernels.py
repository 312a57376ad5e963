"""Every compiled loop: plain arrays in, plain arrays out, the interpreter lock released meanwhile.

The C++ in src/kernels is built once for each instruction set (portable, AVX2 with carry-less multiplication,
AVX-512) and the best one is picked when this module is imported. All paths give the same bits as the NumPy
twins in tests/kernels. Arrays must be C-contiguous and of exactly the type that is written here: TypeError or
ValueError name the argument that is not. Nothing is converted on the way, because a converted copy of an
argument that is changed in place (`rng`) would lose the change.

Costs are for one core of a 2024 server at 3.6 GHz, AVX-512 path.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtrunk import _kernels

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

NEVER = -(1 << 60)
"""Last click of a receiver that has not clicked yet."""
CHANNEL_SCALE = 4.0
"""Decoder beliefs are log-likelihood ratios in steps of 1/4."""
CHANNEL_MIN = 10
"""With less the rounded belief of a check in any of its bits is 0 from the start, and the decoder never moves."""
CHANNEL_MAX = 40
KNOWN = 127
"""Belief of a bit that both ends know."""


def _check(name: str, array: object, kind: type[np.generic], dimensions: int = 1) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != kind:
        found = array.dtype.name if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name}: a NumPy array of {kind.__name__} is needed, not {found}")
    if array.ndim != dimensions:
        raise ValueError(f"{name}: {dimensions} dimension(s) are needed, not {array.ndim}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: must be C-contiguous; pass numpy.ascontiguousarray of it")


def cpu_path() -> str:
    """Name of the instruction set in force."""
    return _kernels.path()


def cpu_paths() -> list[str]:
    """Names of all that this processor can run."""
    return _kernels.paths()


def force_path(name: str | None) -> None:
    """Use one path (tests, benchmarks); None goes back to the best. ValueError where it cannot run."""
    _kernels.force_path(name or "")


# ── light ───────────────────────────────────────────────────────────────────────────────────────────────────


def new_rng(seed: bytes) -> U64:
    """State of the simulated light's dice, shape (32,), from 32 octets.

    Eight xoshiro256++ side by side, word j of generator i at [8 j + i], filled by SHAKE-256 of the seed: fast and
    statistically sound, never for a secret.
    """
    if len(seed) != 32:
        raise ValueError("seed: 32 octets")
    return np.frombuffer(hashlib.shake_256(seed).digest(256), np.uint64).copy()


def new_memory(charges_max: int = 4096) -> I64:
    """The memory of a receiver that has not clicked yet, for `sample_link`: last click, avalanches until one leaves a
    charge behind (-1: not drawn yet), charges waiting, and room for them.
    """
    memory = np.zeros(charges_max + 3, np.int64)
    memory[:3] = NEVER, -1, 0
    return memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Afterpulses:
    """Charges that an avalanche leaves in its diode and that let go after the dead time.

    `mean` is their number for each avalanche. Each lets go in the gate floor(x ^ inverse) after it, x uniform between
    `last` and `first`: a truncated power law with survival linear in lag ^ (1 / inverse).
    """

    mean: float = 0.0
    first: float = 1.0
    last: float = 1.0
    inverse: float = 1.0


def sample_link(
    rng: U64,
    memory: I64,
    tally: U64,
    start: int,
    count: int,
    *,
    alice_seed: bytes,
    bob_seed: bytes,
    candidate_probability: float,
    intensity_thresholds: U32,
    alice_basis_threshold: int,
    bob_basis_threshold: int,
    limits: U64,
    dead_pulses: int,
    afterpulses: Afterpulses,
) -> tuple[U64, U8]:
    """Which of the pulses [start, start + count) click, and where: (positions, flags). About 12 ns a candidate.

    Exactly what going through them pulse by pulse would give. Candidates lie at geometric gaps with
    `candidate_probability`. The words of both ends' streams at a candidate (`stream_words`) give Alice's level, basis
    and bit (her state is 2 basis + bit) and Bob's basis, as quantum.source says. `limits[level, state, basis]` holds
    2^53 times the cumulative shares of a candidate in which only the first detector has an avalanche, only the second,
    both; the rest is no click. A click blinds both detectors for `dead_pulses`. `rng` and `memory` move on.

    Flags tell what really happened: bit 0 the reported bit (the detector, or a coin where both clicked), bit 1 both
    clicked, bit 2 the gate would have been silent but for an afterpulse, bit 3 Bob's basis, bit 4 Alice's bit, bit 5
    her basis, bits 6-7 her level. The receiver's electronics know bits 0 and 1 of them. `tally`, shape (256,), counts
    the clicks of each value on.
    """
    _check("rng", rng, np.uint64)
    _check("memory", memory, np.int64)
    _check("tally", tally, np.uint64)
    _check("intensity_thresholds", intensity_thresholds, np.uint32)
    _check("limits", limits, np.uint64, 4)
    return _kernels.sample_link(
        rng,
        memory,
        tally,
        start,
        count,
        np.frombuffer(alice_seed, np.uint8),
        np.frombuffer(bob_seed, np.uint8),
        candidate_probability,
        intensity_thresholds,
        alice_basis_threshold,
        bob_basis_threshold,
        limits.reshape(-1),
        dead_pulses,
        afterpulses.mean,
        afterpulses.first,
        afterpulses.last,
        afterpulses.inverse,
    )


def sample_plain(
    rng: U64,
    start: int,
    count: int,
    *,
    probability: float,
    basis_threshold: int,
    level_limits: U32,
    error_limits: U32,
) -> tuple[U64, U8]:
    """Clicks of a link of three intensities without memory, settings and all, from dice alone: (positions, attributes).
    About 1.5 ns a click.

    Each pulse clicks with `probability`. Attributes: bits 0-1 level (`level_limits`: 2^32 times the cumulative shares
    of clicks), 2 Alice's basis and 4 Bob's (below `basis_threshold` / 65536: key basis), 3 her bit, 5 error
    (`error_limits`: 2^31 times its chance for each level in matched bases, and in mismatched ones). For statistics, not
    for links: there are no streams that two ends could share.
    """
    _check("rng", rng, np.uint64)
    _check("level_limits", level_limits, np.uint32)
    _check("error_limits", error_limits, np.uint32)
    return _kernels.sample_plain(rng, start, count, probability, basis_threshold, level_limits, error_limits)


def stream_words(seed: bytes, positions: U64) -> U64:
    """First eight octets, little-endian, of AES-256 under `seed` of each position as a 16-octet little-endian block.

    What `sample_link` computes inside. For secrets only where the path has AES instructions: see quantum.source.words.
    """
    _check("positions", positions, np.uint64)
    return _kernels.stream_words(np.frombuffer(seed, np.uint8), positions)


# ── sifting ─────────────────────────────────────────────────────────────────────────────────────────────────


def decode_settings(words: U64, intensity_thresholds: U32, basis_threshold: int) -> tuple[U8, U8, U8]:
    """Intensity, basis and bit of Alice's words (quantum.source), up to four levels. Under 1 ns a word."""
    _check("words", words, np.uint64)
    _check("intensity_thresholds", intensity_thresholds, np.uint32)
    return _kernels.decode_settings(words, intensity_thresholds, basis_threshold)


def decode_bases(words: U64, basis_threshold: int) -> U8:
    """Basis of Bob's words. Under 0.5 ns a word."""
    _check("words", words, np.uint64)
    return _kernels.decode_bases(words, basis_threshold)


def select(values: U8, mask: U8) -> U8:
    """The values whose mask is 1, in order; the mask holds zeros and ones. About 0.1 ns a value."""
    _check("values", values, np.uint8)
    _check("mask", mask, np.uint8)
    return _kernels.select(values, mask)


def tally(values: U8) -> U64:
    """How often each octet value comes, shape (256,). About 0.3 ns a value."""
    _check("values", values, np.uint8)
    return _kernels.tally(values)


# ── reconciliation ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class QcCode:
    """A quasi-cyclic LDPC code of `columns` * `lift` bits.

    Check t of block row r is the XOR over its edges of bit[column * lift + (t + shift) % lift].
    """

    name: str
    columns: int
    rows: int
    lift: int
    row_start: I32
    column: I32
    shift: I32

    @property
    def n(self) -> int:
        """Bits of a frame."""
        return self.columns * self.lift

    @property
    def m(self) -> int:
        """Bits of a syndrome."""
        return self.rows * self.lift


def _entry(word: str) -> tuple[int, int]:
    column, shift = word.split(":")
    return int(column), int(shift)


def load_code(name: str, text: str) -> QcCode:
    """Parse a code; ValueError where it is none.

    A line `columns rows lift edges`, then for each block row its degree and its `column:shift` entries.
    """
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    try:
        columns, rows, lift, edges = (int(word) for word in lines[0].split())
        degrees = [int(line.split()[0]) for line in lines[1:]]
        entries = [[_entry(word) for word in line.split()[1:]] for line in lines[1:]]
    except (ValueError, IndexError) as error:
        raise ValueError(f"code {name}: not in the format of a quasi-cyclic code ({error})") from error
    if degrees != [len(row) for row in entries]:
        raise ValueError(f"code {name}: a row's degree is not the number of its entries")
    code = QcCode(
        name=name,
        columns=columns,
        rows=rows,
        lift=lift,
        row_start=np.cumsum([0, *(len(row) for row in entries)], dtype=np.int32),
        column=np.array([column for row in entries for column, _ in row], np.int32),
        shift=np.array([shift for row in entries for _, shift in row], np.int32),
    )
    if len(entries) != rows or len(code.column) != edges:
        raise ValueError(f"code {name}: {len(entries)} rows and {len(code.column)} edges, {rows} and {edges} announced")
    return code


def channel_value(qber: float) -> int:
    """The decoder's belief in a bit that is wrong with probability `qber`, never below CHANNEL_MIN.

    Strong beliefs are taken a step lower, so that a wrong first guess in the columns of high degree is more
    easily taken back: near the end of their reach four codes for less than 2 % lost 12 frames of 4,000 and not 30.
    """
    steps = round(CHANNEL_SCALE * float(np.log((1 - qber) / qber)))
    return max(CHANNEL_MIN, min(CHANNEL_MAX, steps if steps < 15 else steps - 1))


def ldpc_syndrome(code: QcCode, bits: U8) -> U8:
    """Syndromes, shape (frames, m), of frames of bits, shape (frames, n); zeros and ones."""
    _check("bits", bits, np.uint8, 2)
    return _kernels.ldpc_syndrome(code.columns, code.rows, code.lift, code.row_start, code.column, code.shift, bits)


def ldpc_decode(code: QcCode, syndromes: U8, channel: I8, iterations_max: int) -> tuple[U8, I32]:
    """The error patterns, shape (frames, n), that have these syndromes, and each one's iterations (-1: none).

    `syndromes`, shape (frames, m), are Alice's XOR Bob's. `channel`, shape (n,), is the belief in each frame that
    a bit is not wrong: `channel_value(qber)`, or KNOWN, or 0 for a bit that nobody told. A pattern that is
    found has exactly the wanted syndrome, yet it may be the wrong one: verify. Integers only, so every path
    gives the same answer. About 18 iterations of 0.03 ms for 65,536 bits near the code's design QBER, twice
    that with AVX2.
    """
    _check("syndromes", syndromes, np.uint8, 2)
    _check("channel", channel, np.int8)
    return _kernels.ldpc_decode(
        code.columns,
        code.rows,
        code.lift,
        code.row_start,
        code.column,
        code.shift,
        syndromes,
        channel,
        iterations_max,
    )


# ── Cascade ─────────────────────────────────────────────────────────────────────────────────────────────────


class CascadeBatch:
    """One end of a batch of frames under Cascade (distil.cascade says what for); about 60 ns a question.

    Both ends make one from the same parameters and their own `bits`, shape (n,), zeros and ones; bit i of the batch is
    bit i // `frames` of frame i % `frames`. As long as there are `questions`, parities of parts of frames, both answer
    them (`parities`) and learn where the answers differ (`learn`). The questions that follow are a function of what was
    learned: alike at both ends, in the same order.

    A frame has `length` bits, 64 to 65536, zeros behind the last of `bits`, and there are 1 to 64 frames. It goes
    through a pass for each entry of `blocks`, shape (1 to 32,): it is cut into blocks of that size, in its own order
    first and then in an order that eight of `mixers`, shape (8 (passes + extras),), make. Parities of blocks are asked
    (but the last one's, which follows from the frame's, from the second pass on), and an odd one is halved until a
    single bit is left, an error, which is counted into all passes so far. A pass begins when no part of the frame is
    odd. Of odd parts the smallest are asked first, together at most `cover` bits of a frame at a time, or one part.
    When all frames are through, 32 bits of the polynomial hash under `check_key`, 16 octets, are asked; while they and
    the errors found disagree, all frames go through up to `extras` more passes, in halves.

    One thread at a time. The bits are wiped when it goes. TypeError or ValueError for arguments that are not as said
    here.
    """

    def __init__(
        self,
        bits: U8,
        *,
        frames: int,
        length: int,
        blocks: U32,
        extras: int,
        cover: int,
        mixers: U16,
        check_key: bytes,
    ) -> None:
        _check("bits", bits, np.uint8)
        _check("blocks", blocks, np.uint32)
        _check("mixers", mixers, np.uint16)
        self._batch = _kernels.CascadeBatch(
            bits, frames, length, blocks, extras, cover, mixers, np.frombuffer(check_key, np.uint8)
        )

    @property
    def questions(self) -> int:
        """How many are open; none when it is over."""
        return self._batch.questions

    @property
    def errors_found(self) -> int:
        """Places of the batch that are known to differ."""
        return self._batch.errors_found

    @property
    def is_checked(self) -> bool:
        """The hash agrees with the errors found."""
        return self._batch.is_checked

    def parities(self) -> U8:
        """Own answers to the open questions, packed most significant bit first, zeros behind them."""
        return self._batch.parities()

    def learn(self, mismatches: U8) -> bool:
        """Both ends' answers XORed, packed alike. False, and the batch is of no more use, if they contradict
        themselves; ValueError unless there are as many octets as `parities` has.
        """
        _check("mismatches", mismatches, np.uint8)
        return self._batch.learn(mismatches)

    def errors(self) -> U8:
        """Where the ends differ, as far as known: ones in an array of the shape of `bits`."""
        return self._batch.errors()


# ── hashing ─────────────────────────────────────────────────────────────────────────────────────────────────


def toeplitz_hash(bits: U8, bits_count: int, seed: U8, output_bits: int) -> U8:
    """y_i = XOR_j s[i - j + n - 1] x_j, exact, packed most significant bit first; unused last bits are zero.

    `bits` holds n = `bits_count` bits, `seed` n + `output_bits` - 1, packed alike; output_bits <= n. Cost
    grows nearly as n: about 0.5 ns an input bit at 2^20 bits, 0.7 ns at 2^24.
    """
    _check("bits", bits, np.uint8)
    _check("seed", seed, np.uint8)
    return _kernels.toeplitz_hash(bits, bits_count, seed, output_bits)


def poly_hash(key: bytes, data: bytes | bytearray | memoryview | U8, state: bytes = bytes(16)) -> bytes:
    """h <- (h XOR block) * key over GF(2^128) for each 16-octet block of `data`, from h = `state`.

    An element is 16 octets, little-endian, bit i the coefficient of x^i, modulo x^128 + x^7 + x^2 + x + 1.
    The last block is padded with zeros and the LENGTH IS NOT MIXED IN: callers must frame what they hash
    (crypto.universal does). A state continues an earlier call over whole blocks. 20 Gbyte/s.
    """
    return _kernels.poly_hash(key, np.frombuffer(data, np.uint8), state)


# ── positions on the wire ───────────────────────────────────────────────────────────────────────────────────


def encode_gaps(positions: U64, limit: int) -> U8:
    """Ascending positions below `limit` (at most 2^48) as the empty slots before each. About 0.3 ns a position.

    In little-endian words of one, two or four octets, as 64 count > limit, 16384 count > limit, or neither. The largest
    word says that so many slots are empty and none is over.
    """
    _check("positions", positions, np.uint64)
    return _kernels.encode_gaps(positions, limit)


def decode_gaps(octets: U8, count: int, limit: int) -> U64:
    """The inverse; ValueError unless just `count` positions below `limit`, which `encode_gaps` writes as `octets`."""
    _check("octets", octets, np.uint8)
    return _kernels.decode_gaps(octets, count, limit)


# ── keys on the wire ────────────────────────────────────────────────────────────────────────────────────────


def key_container(ids: bytes, material: memoryview, key_octets: int) -> bytearray:
    """Keys of one size as a key container of ETSI GS QKD 014 (V1.1.1 clause 6.3), in JSON.

    `ids` has the 16 octets of each key ID, `material` the keys one behind the other. No copy of a key is made beside
    the one in the answer, and how long it takes depends on no key. About 0.13 µs a key of 32 octets.
    """
    out = bytearray(_kernels.container_size(len(ids) // 16, key_octets))
    _kernels.key_container(
        np.frombuffer(ids, np.uint8), np.frombuffer(material, np.uint8), key_octets, np.frombuffer(out, np.uint8)
    )
    return out


def key_ids(
    segment: int, units: range, key_octets: int, tags: Callable[[bytes], bytes], masks: Callable[[bytes], bytes]
) -> bytes:
    """The 16 octets of the IDs of keys of `key_octets` octets that begin at these units of a segment (`kms.keyid`).

    `tags` and `masks` encrypt blocks of 16 octets. ValueError where a place does not fit an ID. About 0.02 µs an ID
    beside the encryption.
    """
    places = segment, units.start, units.step, len(units), key_octets
    tagged = tags(_kernels.key_id_tag_blocks(*places))
    return _kernels.key_ids(*places, tagged, masks(_kernels.key_id_mask_blocks(tagged)))
