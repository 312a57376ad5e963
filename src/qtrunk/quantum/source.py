"""The transmitter's settings, and the receiver's bases, as counter-mode streams.

Bit, basis and intensity of pulse i are a function of (seed, i): the first eight octets of AES-256 of the position under
the block's seed. Nobody stores 10^9 settings a second; whoever has the seed (the own end) asks for the positions that
matter. Word layout, shared with kernels.thin_clicks: bits 0-31 intensity, 32-47 basis, 48 bit; Bob's word: bits 0-15
basis.

Statistics must use the probabilities that the thresholds really give, not the wished ones: `exact_…`.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from qtrunk import kernels
from qtrunk.kernels import U32, U64
from qtrunk.stages import Octets, Positions, Settings

_INTENSITY_STEPS = 1 << 32
_BASIS_STEPS = 1 << 16
_CHUNK = 1 << 15


@dataclass(frozen=True)
class SourceSettings:
    """Decoy levels (mean photon numbers leaving Alice, strongest first), their probabilities, and the key basis's."""

    intensities: tuple[float, ...]
    probabilities: tuple[float, ...]
    key_basis_probability: float

    @cached_property
    def intensity_thresholds(self) -> U32:
        """Cumulative thresholds of the 32-bit draw, one less than there are levels."""
        cumulative = np.cumsum(self.probabilities)[:-1]
        thresholds: U32 = np.minimum(np.rint(cumulative * _INTENSITY_STEPS), _INTENSITY_STEPS - 1).astype(np.uint32)
        return thresholds

    @cached_property
    def basis_threshold(self) -> int:
        """16-bit draws below it choose the key basis."""
        return round(self.key_basis_probability * _BASIS_STEPS)

    @cached_property
    def exact_probabilities(self) -> tuple[float, ...]:
        """What the thresholds give."""
        edges = [0, *(int(t) for t in self.intensity_thresholds), _INTENSITY_STEPS]
        return tuple((b - a) / _INTENSITY_STEPS for a, b in pairwise(edges))

    @cached_property
    def exact_key_basis_probability(self) -> float:
        """What the threshold gives."""
        return self.basis_threshold / _BASIS_STEPS


def words(seed: bytes, positions: Positions) -> U64:
    """The stream's words at these positions; `seed` is 32 octets. About 1 ns each where the processor has AES."""
    if kernels.cpu_path() != "portable":
        return kernels.stream_words(seed, positions)
    # The plain kernel looks tables up by secret values; the library does not.
    # Each position is one block of the cipher: ECB is right here, as in counter mode, because no block repeats.
    encryptor = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()  # noqa: S305
    stream = np.empty(len(positions), np.uint64)
    # Small buffers that are used again: fresh large ones would cost ten times the cipher in page faults.
    blocks = np.zeros((min(_CHUNK, len(positions)), 2), "<u8")
    encrypted = np.empty(16 * (len(blocks) + 1), np.uint8)
    for at in range(0, len(positions), _CHUNK):
        here = positions[at : at + _CHUNK]
        blocks[: len(here), 0] = here
        encryptor.update_into(blocks[: len(here)].data.cast("B"), encrypted.data)
        stream[at : at + len(here)] = encrypted[: 16 * len(here)].view("<u8")[::2]
    return stream


def decode_settings(stream: U64, source: SourceSettings) -> Settings:
    """Alice's settings from her words."""
    intensity, basis, bit = kernels.decode_settings(stream, source.intensity_thresholds, source.basis_threshold)
    return Settings(intensity=intensity, basis=basis, bit=bit)


def decode_bases(stream: U64, source: SourceSettings) -> Octets:
    """Bob's bases from his words."""
    return kernels.decode_bases(stream, source.basis_threshold)


def settings_at(seed: bytes, positions: Positions, source: SourceSettings) -> Settings:
    """What Alice sent at these positions. About 2 ns each where the processor has AES."""
    intensity, basis, bit = (np.empty(len(positions), np.uint8) for _ in range(3))
    made = Settings(intensity=intensity, basis=basis, bit=bit)
    # In pieces that stay in the cache: the words of a whole block are many times as large as its settings.
    for at in range(0, len(positions), _CHUNK):
        here = decode_settings(words(seed, positions[at : at + _CHUNK]), source)
        made.intensity[at : at + _CHUNK] = here.intensity
        made.basis[at : at + _CHUNK] = here.basis
        made.bit[at : at + _CHUNK] = here.bit
    return made


def bases_at(seed: bytes, positions: Positions, source: SourceSettings) -> Octets:
    """In which basis Bob measured at these positions. About 1.5 ns each where the processor has AES."""
    made = np.empty(len(positions), np.uint8)
    for at in range(0, len(positions), _CHUNK):
        made[at : at + _CHUNK] = decode_bases(words(seed, positions[at : at + _CHUNK]), source)
    return made
