"""Reconciliation: Alice says syndromes of her key, Bob finds where his differs, frame by frame.

One-way, with fixed quasi-cyclic LDPC codes of 65,536 bits (distil/codes, built and measured by
tools/make_ldpc_codes.py). The code is chosen from public data, before anything is said about the key. The last frame is
filled with known zeros. A frame that the decoder cannot solve is disclosed by Alice in full: rare, honest to count, and
better than losing the block. Everything said is leak, counted alike at both ends, and bounded by a budget that public
data fix beforehand.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import ceil, comb, log2, sqrt

import numpy as np

from qtrunk import kernels
from qtrunk.base.errors import BlockAborted, WireError
from qtrunk.stages import Octets

ITERATIONS_MAX = 60
ERROR_COUNT_BITS = 32
"""Bob says how many errors he corrected; those bits are leak too."""
FAILED_FRAMES_SHARE = 0.02
FAILED_FRAMES_MIN = 2
QBER_SIGMAS = 2.0


@dataclass(frozen=True, slots=True)
class CodeEntry:
    """What the index says of a code."""

    name: str
    n: int
    m: int
    design_qber: float


@cache
def index() -> tuple[CodeEntry, ...]:
    """All codes, lowest rate of syndrome bits first."""
    text = resources.files("qtrunk.distil").joinpath("codes/index.json").read_text()
    entries = [CodeEntry(e["name"], e["n"], e["m"], e["design_qber"]) for e in json.loads(text)]
    return tuple(sorted(entries, key=lambda entry: entry.m))


@cache
def code(name: str) -> kernels.QcCode:
    """A code by name; WireError for a name that is not in the index."""
    if all(entry.name != name for entry in index()):
        raise WireError(f"reconciliation code {name[:40]!r} is not known here")
    text = resources.files("qtrunk.distil").joinpath(f"codes/{name}.txt").read_text()
    return kernels.load_code(name, text)


def choose(errors: int, tested: int) -> CodeEntry:
    """The leanest code for a key whose test bits had `errors` of `tested`; BlockAborted if none reaches so far."""
    qber = (errors + QBER_SIGMAS * sqrt(errors + 1)) / max(1, tested)
    for entry in index():
        if entry.design_qber >= qber:
            return entry
    raise BlockAborted(
        "qber", f"QBER {errors / max(1, tested):.2%} in the test basis: no reconciliation code reaches so far"
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """How a key of `bits` is cut into frames of one code."""

    entry: CodeEntry
    bits: int

    @property
    def frames(self) -> int:
        """Frames, the last one perhaps filled with zeros."""
        return ceil(self.bits / self.entry.n)

    @property
    def syndrome_octets(self) -> int:
        """Octets of all packed syndromes."""
        return self.frames * self.entry.m // 8

    @property
    def failed_max(self) -> int:
        """So many frames may be disclosed before the block is given up."""
        return max(FAILED_FRAMES_MIN, ceil(FAILED_FRAMES_SHARE * self.frames))

    def frame_bits(self, frame: int) -> int:
        """Key bits in a frame."""
        return min(self.entry.n, self.bits - frame * self.entry.n)

    def leak_bits(self, failed: tuple[int, ...]) -> int:
        """All that was said about the key: syndromes, disclosed frames, which frames those are, and the error count."""
        choices = sum(comb(self.frames, count) for count in range(min(self.failed_max, self.frames) + 1))
        disclosed = sum(self.frame_bits(frame) for frame in failed)
        return self.frames * self.entry.m + disclosed + ceil(log2(choices)) + ERROR_COUNT_BITS

    def check_failed(self, failed: tuple[int, ...]) -> None:
        """WireError unless it is an ascending list of frames; BlockAborted when they are too many."""
        if list(failed) != sorted(set(failed)) or any(not 0 <= frame < self.frames for frame in failed):
            raise WireError("failed frames: an ascending list of frame numbers is needed")
        if len(failed) > self.failed_max:
            raise BlockAborted(
                "leak-budget",
                f"{len(failed)} of {self.frames} frames could not be reconciled, {self.failed_max} are allowed: "
                "the error rate of the key basis is above that of the test basis",
            )

    def _frames_of(self, bits: Octets) -> Octets:
        filled = np.zeros(self.frames * self.entry.n, np.uint8)
        filled[: self.bits] = bits
        return filled.reshape(self.frames, self.entry.n)

    def syndromes(self, bits: Octets) -> bytes:
        """Packed syndromes of a key."""
        return np.packbits(kernels.ldpc_syndrome(code(self.entry.name), self._frames_of(bits))).tobytes()

    def correct(self, bits: Octets, syndromes: bytes, qber: float) -> tuple[Octets, tuple[int, ...]]:
        """Bob's key made Alice's where the decoder finds the difference, and the frames where it does not."""
        if len(syndromes) != self.syndrome_octets:
            raise WireError(f"syndromes: {self.syndrome_octets} octets are needed, {len(syndromes)} came")
        difference = np.unpackbits(np.frombuffer(syndromes, np.uint8)).reshape(self.frames, self.entry.m)
        own = kernels.ldpc_syndrome(code(self.entry.name), self._frames_of(bits))
        channel = np.full(self.frames * self.entry.n, kernels.channel_value(qber), np.int8)
        channel[self.bits :] = kernels.KNOWN
        errors, iterations = kernels.ldpc_decode(
            code(self.entry.name),
            difference ^ own,
            channel.reshape(self.frames, self.entry.n),
            ITERATIONS_MAX,
        )
        errors[iterations < 0] = 0
        failed = tuple(int(frame) for frame in np.flatnonzero(iterations < 0))
        return bits ^ errors.reshape(-1)[: self.bits], failed

    def disclose(self, bits: Octets, failed: tuple[int, ...]) -> bytes:
        """The key bits of failed frames, packed one after another."""
        n = self.entry.n
        parts = [bits[frame * n : frame * n + self.frame_bits(frame)] for frame in failed]
        return np.packbits(np.concatenate(parts)).tobytes() if parts else b""

    def fill_in(self, bits: Octets, failed: tuple[int, ...], disclosed: bytes) -> Octets:
        """Bob's key with Alice's bits in the failed frames."""
        count = sum(self.frame_bits(frame) for frame in failed)
        if len(disclosed) != (count + 7) // 8:
            raise WireError(f"disclosed bits: {(count + 7) // 8} octets are needed, {len(disclosed)} came")
        told = np.unpackbits(np.frombuffer(disclosed, np.uint8))[:count]
        filled, at = bits.copy(), 0
        for frame in failed:
            length = self.frame_bits(frame)
            filled[frame * self.entry.n : frame * self.entry.n + length] = told[at : at + length]
            at += length
        return filled
