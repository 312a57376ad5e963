import numpy as np
from numpy.typing import NDArray

def path() -> str: ...
def paths() -> list[str]: ...
def force_path(name: str) -> None: ...
def sample_candidates(rng: NDArray[np.uint64], start: int, count: int, probability: float) -> NDArray[np.uint64]: ...
def thin_clicks(
    rng: NDArray[np.uint64],
    positions: NDArray[np.uint64],
    alice_words: NDArray[np.uint64],
    bob_words: NDArray[np.uint64],
    intensity_thresholds: NDArray[np.uint32],
    alice_basis_threshold: int,
    bob_basis_threshold: int,
    intercept_threshold: int,
    accept: NDArray[np.float64],
    outcome: NDArray[np.float64],
    dead_pulses: int,
    last_click: int,
) -> tuple[NDArray[np.uint64], NDArray[np.uint8], NDArray[np.uint8], int, int]: ...
def ldpc_syndrome(
    columns: int,
    rows: int,
    lift: int,
    row_start: NDArray[np.int32],
    column: NDArray[np.int32],
    shift: NDArray[np.int32],
    bits: NDArray[np.uint8],
) -> NDArray[np.uint8]: ...
def ldpc_decode(
    columns: int,
    rows: int,
    lift: int,
    row_start: NDArray[np.int32],
    column: NDArray[np.int32],
    shift: NDArray[np.int32],
    syndromes: NDArray[np.uint8],
    channel: NDArray[np.int8],
    iterations_max: int,
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]: ...
def toeplitz_hash(
    bits: NDArray[np.uint8], bits_count: int, seed: NDArray[np.uint8], output_bits: int
) -> NDArray[np.uint8]: ...
def poly_hash(key: bytes, data: NDArray[np.uint8], state: bytes) -> bytes: ...
def encode_gaps(positions: NDArray[np.uint64]) -> NDArray[np.uint8]: ...
def decode_gaps(octets: NDArray[np.uint8], count: int, limit: int) -> NDArray[np.uint64]: ...
