"""Reconciliation: Alice says syndromes of her key, Bob finds where his differs, frame by frame.

Fixed quasi-cyclic LDPC codes (distil/codes, built and measured by tools/make_ldpc_codes.py), fitted to the error rate
in two ways:

* **Shortening.** A frame carries fewer key bits than the code has places; the others are zeros that both know. Every
  block column carries equally many, so no degree is favoured. Code and number of frames are the ones that say least
  for the test basis's error rate, and follow from public data before anything is said about the key.
* **Blind rounds.** Where the decoder finds nothing, Alice says more, so that nobody has to know the error rate of the
  key basis beforehand (after Martinez-Mateo et al., arXiv:1205.5729, who disclose punctured bits; here checks are
  halved). In each round some more block rows of the code are halved: she says the parity of every other edge of these
  checks, which makes two checks of one. A frame costs as many bits as it gains checks. What is unsolved after the last
  round is disclosed in full, or the block given up if that is too much.

Everything said is leak, counted alike at both ends. The most that can be said is fixed by public data beforehand.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from math import ceil, log2, sqrt

import numpy as np

from qtrunk import kernels
from qtrunk.base.errors import BlockAborted, WireError
from qtrunk.distil.keylength import entropy
from qtrunk.stages import Octets

ITERATIONS_MAX = 60
ROUNDS_MAX = 4
"""Blind rounds."""
ROWS_PER_STEP = 32
"""One block row of so many, rounded up, is halved in a round."""
ERROR_COUNT_BITS = 32
"""Bob says how many errors he corrected; those bits are leak too."""
FAILED_FRAMES_SHARE = 0.02
FAILED_FRAMES_MIN = 2
QBER_SIGMAS = 1.0
"""Standard deviations of the test's error count that the code allows for; blind rounds do the rest."""
SHARES = (1.0, 0.75, 0.5, 0.25)
"""Shares of a frame that carry key, at which the reach of a code is measured."""
FAST_BITS_MAX, FAST_SHARE = 1 << 16, 0.9
"""Places in a frame of a fast plan, and the share of the key bits that it could carry."""
PLAUSIBLE_FACTOR, PLAUSIBLE_SIGMAS = 2.0, 12.0
"""With so many times the errors of the test, and so many standard deviations more, a pattern is no solution."""

Frames = tuple[int, ...]
"""Numbers of frames, ascending."""


@dataclass(frozen=True, slots=True)
class CodeEntry:
    """What the index says of a code: n bits, m checks, and the largest QBER of which it solves 98 % of the frames, for
    each of SHARES.
    """

    name: str
    n: int
    m: int
    reach: tuple[float, ...]

    def share(self, qber: float) -> float:
        """The largest share of a frame that may carry key of this QBER; 0 if that is less than the least of SHARES."""
        wanted, reached = entropy(qber), [entropy(reach) for reach in self.reach]
        if wanted > reached[-1]:
            return 0.0
        return 1 / float(np.interp(wanted, reached, [1 / share for share in SHARES]))


@cache
def index() -> tuple[CodeEntry, ...]:
    """All codes, lowest rate of syndrome bits first."""
    text = resources.files("qtrunk.distil").joinpath("codes/index.json").read_text()
    entries = [CodeEntry(e["name"], e["n"], e["m"], tuple(e["reach"])) for e in json.loads(text)]
    return tuple(sorted(entries, key=lambda entry: (entry.m / entry.n, entry.n)))


def code_file(name: str) -> Traversable:
    """A code's text; WireError for a name that is not in the index."""
    if all(entry.name != name for entry in index()):
        raise WireError(f"reconciliation code {name[:40]!r} is not known here")
    return resources.files("qtrunk.distil").joinpath(f"codes/{name}.txt")


@cache
def code(name: str) -> kernels.QcCode:
    """A code by name; WireError for a name that is not in the index."""
    return kernels.load_code(name, code_file(name).read_text())


@dataclass(frozen=True, slots=True)
class Plan:
    """How a key of `bits` whose QBER is about `qber` is cut into `frames` of one code."""

    entry: CodeEntry
    bits: int
    frames: int
    qber: float

    @property
    def _columns(self) -> int:
        return code(self.entry.name).columns

    @property
    def _lift(self) -> int:
        return code(self.entry.name).lift

    @property
    def _per_column(self) -> int:
        return ceil(self.bits / (self.frames * self._columns))

    @property
    def _room(self) -> int:
        return self._per_column * self._columns

    @property
    def syndrome_octets(self) -> int:
        """Octets of all packed syndromes."""
        return self.frames * self.entry.m // 8

    @property
    def step_rows(self) -> int:
        """Block rows that a blind round halves."""
        return ceil(code(self.entry.name).rows / ROWS_PER_STEP)

    @property
    def half_bits(self) -> int:
        """Bits that a blind round says about each unsolved frame."""
        return self.step_rows * self._lift

    @property
    def failed_max(self) -> int:
        """So many frames may be disclosed before the block is given up."""
        return min(self.frames - 1, max(FAILED_FRAMES_MIN, ceil(FAILED_FRAMES_SHARE * self.frames)))

    def frame_bits(self, frame: int) -> int:
        """Key bits in a frame: alike in all but the last."""
        return max(0, min(self._room, self.bits - frame * self._room))

    def leak_bits(self, rounds: tuple[Frames, ...], failed: Frames) -> int:
        """All that was said about the key: syndromes, halves for the unsolved frames of each round, disclosed frames,
        in which round each frame was solved if at all, and the error count.
        """
        halves = sum(len(unsolved) for unsolved in rounds) * self.half_bits
        disclosed = sum(self.frame_bits(frame) for frame in failed)
        outcomes = ceil(self.frames * log2(ROUNDS_MAX + 2))
        return self.frames * self.entry.m + halves + disclosed + outcomes + ERROR_COUNT_BITS

    def check_unsolved(self, rounds: tuple[Frames, ...], unsolved: Frames) -> None:
        """WireError unless one more round after these may be asked for these frames."""
        if len(rounds) >= ROUNDS_MAX:
            raise WireError(f"unsolved frames: there are {ROUNDS_MAX} rounds")
        if not unsolved:
            raise WireError("unsolved frames: none, so there is nothing to ask for")
        self._check_frames(rounds, unsolved)

    def check_failed(self, rounds: tuple[Frames, ...], failed: Frames) -> None:
        """WireError unless these may be left after these rounds; BlockAborted when they are too many."""
        self._check_frames(rounds, failed)
        if failed and len(rounds) < ROUNDS_MAX:
            raise WireError("failed frames: a frame is disclosed after the last round, not before")
        if len(failed) > self.failed_max:
            raise BlockAborted(
                "leak-budget",
                f"{len(failed)} of {self.frames} frames could not be reconciled, {self.failed_max} are allowed: "
                "the error rate of the key basis is above that of the test basis",
            )

    def _check_frames(self, rounds: tuple[Frames, ...], frames: Frames) -> None:
        known = rounds[-1] if rounds else range(self.frames)
        if list(frames) != sorted(set(frames)) or not set(frames) <= set(known):
            raise WireError("failed frames: an ascending list of frames that were unsolved before is needed")

    def spread(self, bits: Octets) -> Octets:
        """Key bits in their places, shape (frames, n): the first ones of each block column, zeros behind them."""
        columns, per_column = self._columns, self._per_column
        filled = np.zeros((self.frames, columns, self._lift), np.uint8)
        whole = np.zeros(self.frames * self._room, np.uint8)
        whole[: self.bits] = bits
        filled[:, :, :per_column] = whole.reshape(self.frames, columns, per_column)
        return filled.reshape(self.frames, self.entry.n)

    def beliefs(self) -> kernels.I8:
        """The decoder's belief that a place of a frame is not wrong, shape (n,)."""
        made = np.full((self._columns, self._lift), kernels.KNOWN, np.int8)
        made[:, : self._per_column] = kernels.channel_value(self.qber)
        return made.reshape(-1)

    def collect(self, filled: Octets) -> Octets:
        """The inverse of `spread`."""
        parts = filled.reshape(self.frames, self._columns, self._lift)[:, :, : self._per_column]
        return parts.reshape(-1)[: self.bits]

    def syndromes(self, bits: Octets) -> bytes:
        """Packed syndromes of a key."""
        return np.packbits(kernels.ldpc_syndrome(code(self.entry.name), self.spread(bits))).tobytes()

    def halves(self, bits: Octets, unsolved: Frames, round_: int) -> bytes:
        """Packed parities of the checks that round `round_` (from 1) halves, frame by frame."""
        filled = self.spread(bits)[list(unsolved)]
        return np.packbits(kernels.ldpc_syndrome(half_rows(self.entry.name, self.step_rows, round_), filled)).tobytes()

    def disclose(self, bits: Octets, failed: Frames) -> bytes:
        """The key bits of failed frames, packed one after another."""
        parts = [bits[frame * self._room :][: self.frame_bits(frame)] for frame in failed]
        return np.packbits(np.concatenate(parts)).tobytes() if parts else b""

    def fill_in(self, bits: Octets, failed: Frames, disclosed: bytes) -> Octets:
        """Bob's key with Alice's bits in the failed frames."""
        count = sum(self.frame_bits(frame) for frame in failed)
        if len(disclosed) != (count + 7) // 8:
            raise WireError(f"disclosed bits: {(count + 7) // 8} octets are needed, {len(disclosed)} came")
        told = np.unpackbits(np.frombuffer(disclosed, np.uint8))[:count]
        filled, at = bits.copy(), 0
        for frame in failed:
            length = self.frame_bits(frame)
            filled[frame * self._room :][:length] = told[at : at + length]
            at += length
        return filled


def choose(errors: int, tested: int, bits: int, *, is_fast: bool = False) -> Plan:
    """The plan that says least about a key of `bits` whose test bits had `errors` of `tested`; BlockAborted if no code
    reaches so far.

    A fast plan has short frames, which stay in the cache, and says a tenth more than it must, so that the decoder needs
    half the steps: two to three times the speed of a lean one.
    """
    qber = min(0.5, (errors + QBER_SIGMAS * sqrt(errors + 1)) / max(1, tested))
    plans = []
    for entry in index():
        if is_fast and entry.n > FAST_BITS_MAX:
            continue
        share = entry.share(qber) * (FAST_SHARE if is_fast else 1.0)
        if share > 0:
            plan = Plan(entry, bits, ceil(bits / (share * entry.n)), qber)
            # Equally many bits in every column may leave the last frames empty.
            plans.append(replace(plan, frames=ceil(bits / plan._room)))  # noqa: SLF001
    if not plans:
        raise BlockAborted(
            "qber", f"QBER {errors / max(1, tested):.2%} in the test basis: no reconciliation code reaches so far"
        )
    return min(plans, key=lambda plan: (plan.leak_bits((), ()), plan.frames))


# ── halved checks ───────────────────────────────────────────────────────────────────────────────────────────


def _with_rows(whole: kernels.QcCode, rows: list[np.ndarray]) -> kernels.QcCode:
    edges = np.concatenate(rows)
    return replace(
        whole,
        rows=len(rows),
        row_start=np.cumsum([0, *(len(row) for row in rows)], dtype=np.int32),
        column=whole.column[edges],
        shift=whole.shift[edges],
    )


def _edges(whole: kernels.QcCode) -> list[np.ndarray]:
    return np.split(np.arange(len(whole.column)), whole.row_start[1:-1])


@cache
def half_rows(name: str, step: int, round_: int) -> kernels.QcCode:
    """Every other edge of the block rows that round `round_` (from 1) halves, as a code of `step` block rows."""
    whole = code(name)
    return _with_rows(whole, [row[::2] for row in _edges(whole)[(round_ - 1) * step : round_ * step]])


@cache
def halved(name: str, rows: int) -> kernels.QcCode:
    """A code with its first `rows` block rows halved: the two halves of each, then the rows that are whole."""
    whole = code(name)
    edges = _edges(whole)
    halves = [half for row in edges[:rows] for half in (row[::2], row[1::2])]
    return _with_rows(whole, halves + edges[rows:])


class Search:
    """Bob's search for his errors in one key. `unsolved` says in which frames there are some left to find."""

    def __init__(self, plan: Plan, bits: Octets, syndromes: bytes) -> None:
        """Decodes all frames; WireError for syndromes of another length."""
        self.plan = plan
        self.rounds: tuple[Frames, ...] = ()
        self._bits = bits
        self._own = plan.spread(bits)
        self._errors = np.zeros_like(self._own)
        self._channel = plan.beliefs()
        self._lift = plan.half_bits // plan.step_rows
        said = _unpacked(syndromes, plan.frames, plan.entry.m, "syndromes")
        # What is known of each frame's errors: (frames, block rows, lift), halved rows first as in `halved`.
        self._known = said ^ kernels.ldpc_syndrome(code(plan.entry.name), self._own)
        self.unsolved: Frames = ()
        self._decode(tuple(range(plan.frames)))

    def again(self, halves: bytes) -> None:
        """One more round for the unsolved frames, with what Alice said."""
        plan, frames = self.plan, list(self.unsolved)
        self.rounds += (self.unsolved,)
        number, step = len(self.rounds), plan.step_rows
        said = _unpacked(halves, len(frames), plan.half_bits, "halves")
        first = said ^ kernels.ldpc_syndrome(half_rows(plan.entry.name, step, number), self._own[frames])
        first = first.reshape(len(frames), step, 1, self._lift)
        done = 2 * (number - 1) * step
        known = self._known.reshape(len(frames), -1, self._lift)
        whole = known[:, done : done + step, None]
        pairs = np.concatenate([first, first ^ whole], axis=2).reshape(len(frames), 2 * step, self._lift)
        self._known = np.concatenate([known[:, :done], pairs, known[:, done + step :]], axis=1).reshape(len(frames), -1)
        self._decode(self.unsolved)

    def _decode(self, frames: Frames) -> None:
        """Decode `frames`, the rows of `_known`, and keep what is known of those that stay unsolved."""
        refined = halved(self.plan.entry.name, len(self.rounds) * self.plan.step_rows)
        found, iterations = kernels.ldpc_decode(refined, self._known, self._channel, ITERATIONS_MAX)
        sizes = np.array([self.plan.frame_bits(frame) for frame in frames])
        # A pattern with the right syndrome may be a wrong one, and it would cost the whole block: one with far too many
        # errors is no solution.
        likely = PLAUSIBLE_FACTOR * sizes * self.plan.qber
        is_solved = (iterations > 0) & (_weights(found) <= likely + PLAUSIBLE_SIGMAS * np.sqrt(likely + 1))
        for row in np.flatnonzero(is_solved):
            self._errors[frames[row]] = found[row]
        self.unsolved = tuple(frame for frame, solved in zip(frames, is_solved, strict=True) if not solved)
        self._known = self._known[~is_solved]

    def corrected(self) -> Octets:
        """Bob's key made Alice's in all frames but the unsolved ones."""
        return self._bits ^ self.plan.collect(self._errors)


def _weights(patterns: Octets) -> np.ndarray:
    """Ones in each row of zeros and ones, whose length is a multiple of 8."""
    weights: np.ndarray = np.bitwise_count(patterns.view(np.uint64)).sum(axis=1, dtype=np.int64)
    return weights


def _unpacked(octets: bytes, frames: int, bits: int, field: str) -> Octets:
    if len(octets) != frames * bits // 8:
        raise WireError(f"{field}: {frames * bits // 8} octets are needed, {len(octets)} came")
    return np.unpackbits(np.frombuffer(octets, np.uint8)).reshape(frames, bits)
