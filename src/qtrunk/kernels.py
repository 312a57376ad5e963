"""Every compiled loop: plain arrays in, plain arrays out, the interpreter lock released meanwhile.

The C++ in src/kernels is built once for each instruction set (portable, AVX2 with carry-less multiplication,
AVX-512) and the best one is picked when this module is imported. All paths give the same bits as the NumPy
twins in tests/kernels. Arrays must be C-contiguous and of exactly the type that is written here: TypeError or
ValueError name the argument that is not. Nothing is converted on the way, because a converted copy of an
argument that is changed in place (`rng`) would lose the change.

Costs are for one core of a 2024 server at 3.6 GHz, AVX-512 path.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtrunk import _kernels

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]
F64 = NDArray[np.float64]

NEVER = -(1 << 60)
"""`last_click` of a receiver that has not clicked yet."""
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
    """State of the simulated light's dice, shape (4,), from 32 octets that are not all zero.

    xoshiro256++: fast and statistically sound, never for a secret.
    """
    if len(seed) != 32 or not any(seed):
        raise ValueError("seed: 32 octets, not all zero")
    return np.frombuffer(seed, np.uint64).copy()


def sample_candidates(rng: U64, start: int, count: int, probability: float) -> U64:
    """Positions in [start, start + count), each there independently with `probability`, ascending.

    Exact, by geometric gaps: one word of `rng`, which moves on, and about 7 ns for each candidate, nothing
    for the pulses between. The next gap is floor(ln u / ln(1 - p)) misses with u = ((word >> 11) + 1) / 2^53;
    a word that leads past the end is spent too.
    """
    _check("rng", rng, np.uint64)
    return _kernels.sample_candidates(rng, start, count, probability)


def thin_clicks(
    rng: U64,
    positions: U64,
    alice_words: U64,
    bob_words: U64,
    *,
    intensity_thresholds: U32,
    alice_basis_threshold: int,
    bob_basis_threshold: int,
    intercept_threshold: int,
    accept: F64,
    outcome: F64,
    dead_pulses: int,
    last_click: int,
) -> tuple[U64, U8, U8, int, int]:
    """Which candidates click, and where: (positions, Bob's basis, bit, last click, clicks in both detectors).

    Alice's word: low 32 bits against the cumulative `intensity_thresholds` give the level, the next 16 the
    basis (below the threshold: key basis), bit 48 the bit. Bob's word: low 16 bits give the basis.
    `accept[k]` is P(click | level k) over the candidate probability. `outcome[k, m]` holds cumulative
    chances, given a click, of (only the right detector, only one of them) for matched (m = 0) and mismatched
    (m = 1) bases; the rest is both, read as a random bit. After a click `dead_pulses` pulses are blind. With
    chance `intercept_threshold` / 2^32 Eve measures in a random basis and resends what she saw at the same
    intensity.

    Three words w0, w1, w2 of `rng` for each candidate, whatever happens, about 8 ns: kept if w0 >> 11 is
    below accept[k] 2^53; the outcome is w1 >> 11 against outcome[k, m] 2^53; w2 holds Eve's choice (low 32
    bits), her basis (bit 32), her bit where the bases differ (33) and the bit of a click in both detectors
    (34). `last_click` goes into the next call.
    """
    _check("rng", rng, np.uint64)
    for name, words in (("positions", positions), ("alice_words", alice_words), ("bob_words", bob_words)):
        _check(name, words, np.uint64)
    _check("intensity_thresholds", intensity_thresholds, np.uint32)
    _check("accept", accept, np.float64)
    _check("outcome", outcome, np.float64, 3)
    return _kernels.thin_clicks(
        rng,
        positions,
        alice_words,
        bob_words,
        intensity_thresholds,
        alice_basis_threshold,
        bob_basis_threshold,
        intercept_threshold,
        accept,
        outcome.reshape(-1),
        dead_pulses,
        last_click,
    )


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

    `syndromes`, shape (frames, m), are Alice's XOR Bob's. `channel`, shape (frames, n), is the belief that a
    bit is not wrong: `channel_value(qber)`, or KNOWN, or 0 for a bit that nobody told. A pattern that is
    found has exactly the wanted syndrome, yet it may be the wrong one: verify. Integers only, so every path
    gives the same answer. About 18 iterations of 0.03 ms for 65,536 bits near the code's design QBER, twice
    that with AVX2.
    """
    _check("syndromes", syndromes, np.uint8, 2)
    _check("channel", channel, np.int8, 2)
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


# ── hashing ─────────────────────────────────────────────────────────────────────────────────────────────────


def toeplitz_hash(bits: U8, bits_count: int, seed: U8, output_bits: int) -> U8:
    """y_i = XOR_j s[i - j + n - 1] x_j, exact, packed most significant bit first; unused last bits are zero.

    `bits` holds n = `bits_count` bits, `seed` n + `output_bits` - 1, packed alike; output_bits <= n. Cost
    grows as n output_bits^0.58: about 0.1 s for 2^23 bits into 0.35 of that.
    """
    _check("bits", bits, np.uint8)
    _check("seed", seed, np.uint8)
    return _kernels.toeplitz_hash(bits, bits_count, seed, output_bits)


def poly_hash(key: bytes, data: bytes | bytearray | memoryview | U8, state: bytes = bytes(16)) -> bytes:
    """h <- (h XOR block) * key over GF(2^128) for each 16-octet block of `data`, from h = `state`.

    An element is 16 octets, little-endian, bit i the coefficient of x^i, modulo x^128 + x^7 + x^2 + x + 1.
    The last block is padded with zeros and the LENGTH IS NOT MIXED IN: callers must frame what they hash
    (crypto.universal does). A state continues an earlier call over whole blocks. 5 Gbyte/s.
    """
    return _kernels.poly_hash(key, np.frombuffer(data, np.uint8), state)


# ── positions on the wire ───────────────────────────────────────────────────────────────────────────────────


def encode_gaps(positions: U64) -> U8:
    """Ascending positions as gaps (the first from -1), seven bits an octet, least significant first."""
    _check("positions", positions, np.uint64)
    return _kernels.encode_gaps(positions)


def decode_gaps(octets: U8, count: int, limit: int) -> U64:
    """The inverse; ValueError unless just `count` ascending positions below `limit` in shortest form."""
    _check("octets", octets, np.uint8)
    return _kernels.decode_gaps(octets, count, limit)
