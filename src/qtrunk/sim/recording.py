"""Recordings of a link: what each end had in hand, in Parquet files that any tool reads (docs/recordings.md).

Two files, because the two ends are two parties: the receiver's has a row for each click, the transmitter's either the
seed of each block or a row for each position that the other end reported. All that is not raw key is JSON in the
Parquet metadata under `qtrunk.recording`. Both files are raw key: mode 0600, never overwritten.

Rows are written as they come, in groups of ROWS_PER_GROUP, and read block by block, so neither needs more memory than a
block and a group of rows. Parquet keeps its directory at the end: a file whose writer died has none and is refused.
pyarrow is needed here and nowhere in a node; it is imported when it is used.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from qtrunk.base.errors import ConfigError, RequestRefused
from qtrunk.base.ids import LinkId, is_node_id
from qtrunk.kernels import I64
from qtrunk.quantum.source import SourceSettings, settings_at
from qtrunk.stages import Detections, Octets, Positions, Pulses, Settings

METADATA_KEY = b"qtrunk.recording"
FORMAT_VERSION = 1
ROWS_PER_GROUP = 1 << 20
"""At most so many clicks wait in memory: 23 octets each."""
SEED_OCTETS = 32
_INTENSITY_MAX = 10.0
_LEVELS_MAX = 4
_PULSES_MAX = 1 << 48
_PS_PER_S = 1e12

_PLACE = {"block": "uint32", "position": "uint64"}
RECEIVER = _PLACE | {"basis": "uint8", "bit": "uint8", "detector": "uint8", "time_ps": "int64"}
"""Columns of the receiver's file and their types."""
SETTINGS = _PLACE | {"intensity": "uint8", "basis": "uint8", "bit": "uint8"}
"""Columns of a transmitter's file of settings."""
SEEDS = {"block": "uint32", "seed": f"fixed_size_binary[{SEED_OCTETS}]"}
"""Columns of a transmitter's file of seeds."""
_COLUMNS = {"receiver": RECEIVER, "transmitter-settings": SETTINGS, "transmitter-seeds": SEEDS}


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for a whole recording."""

    link: str
    clock_hz: float
    intensities: tuple[float, ...]
    """As in stages.Pulses."""
    probabilities: tuple[float, ...]
    key_basis_probability: float
    source: str
    """`simulated`, `imported`, or the name of the device."""
    made_unix_s: float

    @property
    def settings(self) -> SourceSettings:
        """What both ends share of the light."""
        return SourceSettings(self.intensities, self.probabilities, self.key_basis_probability)


class BlockEntry(msgspec.Struct, frozen=True):
    """What the metadata say of a block."""

    block: int
    rows: int
    pulses: int | None
    """Pulses of the block; None: its light was not finished, its rows are no block to distil."""
    readings: dict[str, Any]
    """What the end's monitors saw, free JSON."""


class _Meta(Header, frozen=True, kw_only=True):
    """The JSON of the metadata."""

    format: str
    version: int
    blocks: list[BlockEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedBlock:
    """One block of a receiver's recording; one entry per click."""

    pulses: Pulses
    detections: Detections
    detectors: Octets
    """0 and 1 are the detector that clicked, 2 both in one gate (the bit is random then)."""
    times_ps: I64
    """Since the first pulse's arrival, on the transmitter's clock: pulse i is due at i 10^12 / clock_hz."""
    readings: dict[str, Any]


def arrow(module: str = "pyarrow") -> Any:
    """pyarrow or one of its modules; ConfigError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(["recordings need pyarrow: install it with `pip install 'qtrunk[recordings]'`"]) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the disk and of Parquet become RequestRefused with the file's name."""
    try:
        yield
    except (OSError, arrow().ArrowException) as error:
        raise RequestRefused(f"{path}: {error}") from error


def found_at(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in ascending numbers each wanted one is, and whether it is there at all."""
    at = np.searchsorted(known, wanted)
    is_there = at < len(known)
    is_there[is_there] = known[at[is_there]] == wanted[is_there]
    return at, is_there


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Writer:
    """Rows in order of blocks; as a context manager it closes the file however the block of code ends."""

    def __init__(self, path: Path, header: Header, kind: str) -> None:
        _check_header(path, header)
        self.path, self.header = path, header
        self._kind = kind
        self._columns = _COLUMNS[kind]
        self._waiting: list[tuple[np.ndarray, ...]] = []
        self._waiting_rows = 0
        self._blocks: list[BlockEntry] = []
        self._block: int | None = None
        self._rows, self._last = 0, -1
        pa, parquet = arrow(), arrow("pyarrow.parquet")
        types = {name: pa.binary(SEED_OCTETS) if name == "seed" else kind for name, kind in self._columns.items()}
        self._schema = pa.schema([pa.field(name, type_, nullable=False) for name, type_ in types.items()])
        packed = {name: "DELTA_BINARY_PACKED" for name in ("position", "time_ps") if name in self._columns}
        with naming(path):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            self._file = os.fdopen(handle, "wb")
            # Statistics would copy seeds and bits to the directory; positions and times are best packed as differences.
            self._out = parquet.ParquetWriter(
                self._file,
                self._schema,
                compression="zstd",
                write_statistics=["block"],
                write_page_checksum=True,
                use_dictionary=[name for name in self._columns if name not in packed and name != "seed"],
                column_encoding=packed,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, block: int) -> None:
        """Go on with a block, or begin a later one."""
        if self._block == block:
            return
        self._end_block(None, {})
        newest = self._blocks[-1].block if self._blocks else -1
        if not newest < block < 1 << 32:
            raise RequestRefused(f"{self.path}: block: {block} cannot follow {newest}")
        self._block, self._rows, self._last = block, 0, -1

    def _add_clicks(self, block: int, columns: dict[str, np.ndarray]) -> None:
        """Append rows with positions; they ascend within the block."""
        _check_values(self.path, block, columns, self.header)
        self._begin(block)
        positions = columns["position"]
        if len(positions):
            if int(positions[0]) <= self._last:
                raise RequestRefused(f"{self.path}: block {block}, position: must ascend")
            self._last = int(positions[-1])
        self._append(block, tuple(columns.values()))

    def _append(self, block: int, columns: tuple[np.ndarray, ...]) -> None:
        count = len(columns[0])
        self._rows += count
        self._waiting.append((np.full(count, block, np.uint32), *columns))
        self._waiting_rows += count
        if self._waiting_rows >= ROWS_PER_GROUP:
            self._flush()

    def finish(self, block: int, pulses: int, readings: Mapping[str, object] | None = None) -> None:
        """The light of a block of so many pulses is over. A block that never finishes stays in the file, marked so."""
        self._begin(block)
        if self._columns is SEEDS and not self._rows:
            raise RequestRefused(f"{self.path}: block {block}, seed: none was given")
        if not self._last < pulses <= _PULSES_MAX:
            raise RequestRefused(f"{self.path}: block {block}, pulses: {pulses} with a click at {self._last}")
        try:
            told = msgspec.json.decode(msgspec.json.encode(dict(readings or {})))
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise RequestRefused(f"{self.path}: block {block}, readings: not JSON ({error})") from error
        self._end_block(pulses, told)

    def _end_block(self, pulses: int | None, readings: dict[str, Any]) -> None:
        if self._block is not None:
            self._blocks.append(BlockEntry(self._block, self._rows, pulses, readings))
        self._block = None

    def _flush(self) -> None:
        if not self._waiting:
            return
        columns = [np.concatenate(parts) for parts in zip(*self._waiting, strict=True)]
        with naming(self.path):
            table = arrow().table(columns, schema=self._schema)
            self._out.write_table(table, row_group_size=ROWS_PER_GROUP)
        self._waiting, self._waiting_rows = [], 0

    def close(self) -> None:
        """Write what waits and the metadata, to the disk. Without it the file cannot be read."""
        if self._file.closed:
            return
        self._end_block(None, {})
        self._flush()
        header = msgspec.structs.asdict(self.header)
        meta = _Meta(**header, format=self._kind, version=FORMAT_VERSION, blocks=self._blocks)
        with naming(self.path), self._file:
            self._out.add_key_value_metadata({METADATA_KEY: msgspec.json.encode(meta)})
            self._out.close()
            self._file.flush()
            os.fsync(self._file.fileno())


class ReceiverWriter(_Writer):
    """Writes the receiver's file of a recording."""

    def __init__(self, path: Path, header: Header) -> None:
        super().__init__(path, header, "receiver")

    def add(
        self, block: int, positions: Positions, basis: Octets, bit: Octets, detectors: Octets, times_ps: I64
    ) -> None:
        """Append the clicks of a slice of a block: arrays of one entry per click, as in ReceivedBlock.

        RequestRefused where positions do not ascend, values are out of range or blocks come out of order.
        """
        self._add_clicks(
            block, {"position": positions, "basis": basis, "bit": bit, "detector": detectors, "time_ps": times_ps}
        )


class TransmitterWriter(_Writer):
    """Writes the transmitter's file: a seed for each block or, without seeds, the settings of reported positions."""

    def __init__(self, path: Path, header: Header, *, has_seeds: bool = True) -> None:
        super().__init__(path, header, "transmitter-seeds" if has_seeds else "transmitter-settings")

    def add_seed(self, block: int, seed: bytes) -> None:
        """The seed of a block, 32 octets: its settings are quantum.source's function of seed and position."""
        if self._columns is not SEEDS or len(seed) != SEED_OCTETS or block == self._block:
            raise RequestRefused(f"{self.path}: block {block}, seed: one of {SEED_OCTETS} octets, in a file of seeds")
        self._begin(block)
        self._append(block, (np.array([seed], object),))

    def add(self, block: int, positions: Positions, settings: Settings) -> None:
        """Append what was sent at some ascending positions of a block."""
        if self._columns is not SETTINGS:
            raise RequestRefused(f"{self.path}: block {block}: a file of seeds takes no settings")
        sent = {"intensity": settings.intensity, "basis": settings.basis, "bit": settings.bit}
        self._add_clicks(block, {"position": positions, **sent})


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Recording:
    """An open file of either end, whose metadata were found good."""

    party = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        with naming(path):
            try:
                self._file = arrow("pyarrow.parquet").ParquetFile(path, page_checksum_verification=True)
            except arrow().ArrowInvalid as error:
                why = f"not a whole Parquet file: its writer did not close it, or it was cut short ({error})"
                raise RequestRefused(f"{path}: {why}") from error
            meta = _decode_meta(path, self._file.metadata.metadata)
        if not meta.format.startswith(self.party):
            raise RequestRefused(f"{path}: is a {meta.format} file; the {self.party}'s is needed")
        self.kind = meta.format
        self.header: Header = meta
        _check_header(path, self.header)
        self.blocks = tuple(meta.blocks)
        self._columns = _COLUMNS[meta.format]
        groups = self._file.metadata
        self._group_starts = np.cumsum([0, *(groups.row_group(i).num_rows for i in range(groups.num_row_groups))])
        self._starts = np.cumsum([0, *(entry.rows for entry in self.blocks)])
        self._index = {entry.block: number for number, entry in enumerate(self.blocks)}
        self._check()
        self._group: tuple[int, Any] = (-1, None)

    def _check(self) -> None:
        found = {field.name: str(field.type) for field in self._file.schema_arrow}
        for name, kind in self._columns.items():
            if found.get(name) != kind:
                raise RequestRefused(f"{self.path}: column {name}: {kind} is needed, not {found.get(name, 'nothing')}")
        previous = -1
        for entry in self.blocks:
            where = f"{self.path}: metadata, block {entry.block}"
            if not previous < entry.block < 1 << 32:
                raise RequestRefused(f"{where}: cannot follow {previous}")
            if entry.rows < 0 or (entry.pulses is not None and not 0 <= entry.pulses <= _PULSES_MAX):
                raise RequestRefused(f"{where}: {entry.rows} rows, {entry.pulses} pulses are impossible")
            previous = entry.block
        if self._starts[-1] != self._group_starts[-1]:
            raise RequestRefused(
                f"{self.path}: metadata, rows: {self._starts[-1]} in all, but the file has {self._group_starts[-1]}"
            )

    @property
    def finished(self) -> tuple[int, ...]:
        """Numbers of the blocks whose light is whole."""
        return tuple(entry.block for entry in self.blocks if entry.pulses is not None)

    def pulses(self, block: int) -> Pulses:
        """What was sent in a finished block; with a seed, the probabilities are the exact ones of its thresholds."""
        entry, source = self._entry(block), self.header.settings
        assert entry.pulses is not None
        is_exact = self.kind == "transmitter-seeds"
        return Pulses(
            link=LinkId(self.header.link),
            block=block,
            count=entry.pulses,
            intensities=source.intensities,
            probabilities=source.exact_probabilities if is_exact else source.probabilities,
            key_basis_probability=source.exact_key_basis_probability if is_exact else source.key_basis_probability,
        )

    def _entry(self, block: int) -> BlockEntry:
        number = self._index.get(block)
        if number is None or self.blocks[number].pulses is None:
            raise RequestRefused(f"{self.path}: has no finished block {block}")
        return self.blocks[number]

    def _rows(self, block: int) -> dict[str, np.ndarray]:
        """The columns of a finished block, checked."""
        entry = self._entry(block)
        start = int(self._starts[self._index[block]])
        columns = self._slice(start, start + entry.rows)
        if np.any(columns.pop("block") != block):
            raise RequestRefused(f"{self.path}: block {block}, column block: rows of another block lie in its place")
        if "position" in columns:
            assert entry.pulses is not None
            _check_values(self.path, block, columns, self.header)
            position = columns["position"]
            if len(position) and int(position[-1]) >= entry.pulses:
                raise RequestRefused(f"{self.path}: block {block}, position: {position[-1]} of {entry.pulses} pulses")
        elif entry.rows != 1:
            raise RequestRefused(f"{self.path}: block {block}, seed: {entry.rows} rows, one is needed")
        return columns

    def _slice(self, start: int, end: int) -> dict[str, np.ndarray]:
        """Rows [start, end) of the file by column. The last group that was read is kept: blocks share groups."""
        cuts = [self._file.schema_arrow.empty_table().select(list(self._columns))]
        first = max(0, int(np.searchsorted(self._group_starts, start, "right")) - 1)
        for group in range(first, len(self._group_starts) - 1):
            begin = int(self._group_starts[group])
            if begin >= end:
                break
            if self._group[0] != group:
                with naming(self.path):
                    self._group = (group, self._file.read_row_group(group, columns=list(self._columns)))
            table = self._group[1]
            cuts.append(table.slice(max(0, start - begin), min(end, begin + len(table)) - max(start, begin)))
        with naming(self.path):
            whole = arrow().concat_tables(cuts)
        for name in self._columns:
            if whole.column(name).null_count:
                raise RequestRefused(f"{self.path}: column {name}: has empty cells")
        return {name: whole.column(name).to_numpy() for name in self._columns}


class ReceiverRecording(Recording):
    """The receiver's file. Iterating gives every finished block; memory holds one at a time."""

    party = "receiver"

    def __iter__(self) -> Iterator[ReceivedBlock]:
        return (self.read(block) for block in self.finished)

    def read(self, block: int) -> ReceivedBlock:
        """One block; RequestRefused where it is not there or its rows are not as they must be."""
        rows = self._rows(block)
        return ReceivedBlock(
            pulses=self.pulses(block),
            detections=Detections(positions=rows["position"], basis=rows["basis"], bit=rows["bit"]),
            detectors=rows["detector"],
            times_ps=rows["time_ps"],
            readings=self._entry(block).readings,
        )


class TransmitterRecording(Recording):
    """The transmitter's file."""

    party = "transmitter"

    def settings(self, block: int) -> Callable[[Positions], Settings]:
        """What the transmitter sent in a finished block at given positions; RequestRefused at positions that the file
        does not have.
        """
        if self.kind == "transmitter-seeds":
            seed, source = bytes(self._rows(block)["seed"][0]), self.header.settings
            return lambda positions: settings_at(seed, positions, source)
        known, sent = self.rows(block)

        def look_up(positions: Positions) -> Settings:
            at, is_there = found_at(known, positions)
            if not is_there.all():
                raise RequestRefused(f"{self.path}: block {block}, position: {positions[~is_there][0]} is not there")
            return Settings(intensity=sent.intensity[at], basis=sent.basis[at], bit=sent.bit[at])

        return look_up

    def rows(self, block: int) -> tuple[Positions, Settings]:
        """The positions of a block that a file of settings has, and what was sent there."""
        if self.kind != "transmitter-settings":
            raise RequestRefused(f"{self.path}: is a file of seeds; a file of settings is needed")
        rows = self._rows(block)
        return rows["position"], Settings(intensity=rows["intensity"], basis=rows["basis"], bit=rows["bit"])


def read_receiver(path: Path) -> ReceiverRecording:
    """Open the receiver's file of a recording; RequestRefused names the file and what is wrong with it."""
    return ReceiverRecording(path)


def read_transmitter(path: Path) -> TransmitterRecording:
    """Open the transmitter's file of a recording; RequestRefused names the file and what is wrong with it."""
    return TransmitterRecording(path)


def _decode_meta(path: Path, found: Mapping[bytes, bytes] | None) -> _Meta:
    octets = (found or {}).get(METADATA_KEY)
    if octets is None:
        raise RequestRefused(f"{path}: no {METADATA_KEY.decode()} in its metadata: not a recording of a link")
    try:
        meta = msgspec.json.decode(octets, type=_Meta)
    except msgspec.MsgspecError as error:
        raise RequestRefused(f"{path}: metadata: {error}") from error
    if meta.version != FORMAT_VERSION:
        raise RequestRefused(f"{path}: metadata, version: {meta.version}; this qtrunk reads {FORMAT_VERSION}")
    if meta.format not in _COLUMNS:
        raise RequestRefused(f"{path}: metadata, format: {meta.format[:40]!r} is none of {', '.join(_COLUMNS)}")
    return meta


def _check_header(path: Path, header: Header) -> None:
    """RequestRefused for what no link could have; written so that a NaN fails each line."""
    levels, chances = header.intensities, header.probabilities
    falls = all(_INTENSITY_MAX >= high >= low >= 0 for high, low in pairwise([*levels, 0.0]))
    is_good = {
        "link": is_node_id(header.link),
        "clock_hz": 0 < header.clock_hz < _PS_PER_S,
        "intensities": 1 <= len(levels) <= _LEVELS_MAX and falls,
        "probabilities": len(chances) == len(levels) and min(chances, default=0) > 0 and abs(sum(chances) - 1) < 1e-6,
        "key_basis_probability": 0 < header.key_basis_probability < 1,
        "source": 0 < len(header.source) <= 200,
        "made_unix_s": isfinite(header.made_unix_s) and header.made_unix_s >= 0,
    }
    for field, good in is_good.items():
        if not good:
            raise RequestRefused(f"{path}: metadata, {field}: out of range")


def _check_values(path: Path, block: int, columns: Mapping[str, np.ndarray], header: Header) -> None:
    """RequestRefused for columns that do not belong together or hold what they must not; positions ascend."""
    limits = {"basis": 1, "bit": 1, "detector": 2, "intensity": len(header.intensities) - 1}
    for name, column in columns.items():
        wanted = RECEIVER.get(name) or SETTINGS[name]
        if column.dtype != wanted or column.ndim != 1:
            raise RequestRefused(f"{path}: block {block}, {name}: one dimension of {wanted}, not {column.dtype}")
        if name in limits and len(column) and int(column.max()) > limits[name]:
            raise RequestRefused(f"{path}: block {block}, {name}: {column.max()}, at most {limits[name]} is allowed")
    positions = columns["position"]
    if {len(column) for column in columns.values()} != {len(positions)}:
        raise RequestRefused(f"{path}: block {block}: columns of unlike length")
    if np.any(positions[1:] <= positions[:-1]):
        raise RequestRefused(f"{path}: block {block}, position: must ascend")
    if "time_ps" in columns and len(positions):
        period_ps = _PS_PER_S / header.clock_hz
        if float(np.abs(columns["time_ps"] - positions * period_ps).max()) > period_ps:
            raise RequestRefused(f"{path}: block {block}, time_ps: more than a clock period away from its pulse")
