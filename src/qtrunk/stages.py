"""The pipeline in one page: every value that crosses a layer, from light to stored key.

    Pulses -> Detections -> SiftedBlock -> ReconciledBlock -> QkdKey

Arrays are NumPy: positions `uint64` (pulse index within the block, ascending), everything per click
`uint8`. Bits of a block are `uint8` zeros and ones in pulse order until they are packed, most significant
bit first, into octets. Basis 0 is Z, the key basis; basis 1 is X, the test basis. Intensities are listed
strongest first.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from qtrunk.base.ids import LinkId
from qtrunk.base.secret import Secret

Octets = NDArray[np.uint8]
Positions = NDArray[np.uint64]

KEY_BASIS = 0
TEST_BASIS = 1


class Role(Enum):
    """Which end of a link: Alice holds the transmitter, Bob the receiver."""

    ALICE = "alice"
    BOB = "bob"

    @property
    def peer(self) -> "Role":
        """The other end."""
        return Role.BOB if self is Role.ALICE else Role.ALICE


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulses:
    """What Alice's transmitter was told to send in one block. Probabilities are the exact ones it draws with."""

    link: LinkId
    block: int
    count: int
    intensities: tuple[float, ...]
    """Mean photon number of the whole double pulse leaving Alice, strongest first."""
    probabilities: tuple[float, ...]
    key_basis_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What Alice sent at some positions: one entry per position."""

    intensity: Octets
    basis: Octets
    bit: Octets


@dataclass(frozen=True, slots=True, kw_only=True)
class Detections:
    """What Bob's receiver saw in one block: one entry per click, dead time and double clicks already resolved."""

    positions: Positions
    basis: Octets
    bit: Octets


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """Counts of one block after sifting, by intensity (strongest first), over matched bases only."""

    intensities: tuple[float, ...]
    probabilities: tuple[float, ...]
    key_counts: tuple[int, ...]
    """n_Z: detections in the key basis."""
    test_counts: tuple[int, ...]
    """n_X: detections in the test basis."""
    test_errors: tuple[int, ...]
    """m_X: errors among them."""

    @property
    def key_total(self) -> int:
        """n_Z summed over intensities: the length of the sifted key."""
        return sum(self.key_counts)

    @property
    def test_qber(self) -> float:
        """Errors over detections in the test basis; 0.5 where nothing was seen."""
        seen = sum(self.test_counts)
        return sum(self.test_errors) / seen if seen else 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SiftedBlock:
    """Key-basis bits of one end, before reconciliation."""

    bits: Octets
    observations: Observations


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconciledBlock:
    """Bits that both ends now hold alike, but for probability `epsilon_correct`; Eve learned `leak_bits`."""

    bits: Octets
    observations: Observations
    leak_bits: int
    epsilon_correct: float
    key_errors: int
    """m_Z: errors that reconciliation corrected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epsilon:
    """The ledger of failure probabilities of a key; entries add over blocks and over hops."""

    secret: float
    correct: float
    authentic: float

    @property
    def total(self) -> float:
        """The distance from an ideal key."""
        return self.secret + self.correct + self.authentic


@dataclass(frozen=True, slots=True, kw_only=True)
class QkdKey:
    """One block of secret key, alike at both ends of a link (Y.3803 QKD-key), with the record of how it was made."""

    link: LinkId
    block: int
    material: Secret
    auth_octets: int
    """The first so many octets of `material` are kept to authenticate later blocks."""
    epsilon: Epsilon
    sifted_bits: int
    leak_bits: int
    qber_key: float
    qber_test: float
    proof: str
    """Name and version of the rule that gave the length."""
    authentication: str
    """What authenticated the messages that made it: see distil.authentication."""
    made_unix_s: float
