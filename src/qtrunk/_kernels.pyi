import numpy as np
from numpy.typing import NDArray

def path() -> str: ...
def paths() -> list[str]: ...
def force_path(name: str) -> None: ...
def sample_link(
    rng: NDArray[np.uint64],
    memory: NDArray[np.int64],
    tally: NDArray[np.uint64],
    start: int,
    count: int,
    alice_seed: NDArray[np.uint8],
    bob_seed: NDArray[np.uint8],
    candidate_probability: float,
    intensity_thresholds: NDArray[np.uint32],
    alice_basis_threshold: int,
    bob_basis_threshold: int,
    limits: NDArray[np.uint64],
    dead_pulses: int,
    afterpulse_mean: float,
    afterpulse_first: float,
    afterpulse_last: float,
    afterpulse_inverse: float,
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]: ...
def sample_plain(
    rng: NDArray[np.uint64],
    start: int,
    count: int,
    probability: float,
    basis_threshold: int,
    level_limits: NDArray[np.uint32],
    error_limits: NDArray[np.uint32],
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]: ...
def stream_words(seed: NDArray[np.uint8], positions: NDArray[np.uint64]) -> NDArray[np.uint64]: ...
def decode_settings(
    words: NDArray[np.uint64], intensity_thresholds: NDArray[np.uint32], basis_threshold: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]: ...
def decode_bases(words: NDArray[np.uint64], basis_threshold: int) -> NDArray[np.uint8]: ...
def select(values: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]: ...
def tally(values: NDArray[np.uint8]) -> NDArray[np.uint64]: ...
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
def encode_gaps(positions: NDArray[np.uint64], limit: int) -> NDArray[np.uint8]: ...
def decode_gaps(octets: NDArray[np.uint8], count: int, limit: int) -> NDArray[np.uint64]: ...
def container_size(count: int, key_octets: int) -> int: ...
def key_container(
    ids: NDArray[np.uint8], material: NDArray[np.uint8], key_octets: int, out: NDArray[np.uint8]
) -> None: ...
def key_id_tag_blocks(segment: int, first: int, step: int, count: int, key_octets: int) -> bytes: ...
def key_id_mask_blocks(tags: bytes) -> bytes: ...
def key_ids(segment: int, first: int, step: int, count: int, key_octets: int, tags: bytes, masks: bytes) -> bytes: ...

class CascadeBatch:
    def __init__(
        self,
        bits: NDArray[np.uint8],
        frames: int,
        length: int,
        blocks: NDArray[np.uint32],
        extras: int,
        cover: int,
        mixers: NDArray[np.uint16],
        check_key: NDArray[np.uint8],
    ) -> None: ...
    @property
    def questions(self) -> int: ...
    @property
    def errors_found(self) -> int: ...
    @property
    def is_checked(self) -> bool: ...
    def parities(self) -> NDArray[np.uint8]: ...
    def learn(self, mismatches: NDArray[np.uint8]) -> bool: ...
    def errors(self) -> NDArray[np.uint8]: ...
