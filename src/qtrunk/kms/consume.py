"""The consume journal: which octets of which pool segment were given to whom, on the disk before they go out.

Files of RECORDS_MAX fixed-size records, allocated ahead, so that keys can be given out and recorded while the disk is
full; append-only, one flush for all that came in meanwhile (group commit). SQLite takes thousands of transactions a
second where this takes hundreds of thousands of records.

    consume/00000001.log   magic (8) | file number (8) | sequence before its first record (8) | zeros to 64 | records

A record, integers big-endian:

    CRC-32 (4) | sequence (8) | not yet durable (4) | not yet answered (4) | kind (1) | 0 (1) | keys (2) | pool (4) |
    segment (4) | first unit (4) | octets of each key (2) | 0 (2) | Unix time, ms (8) | request mark (16)

Kind: 1 given to the initiator, 2 to a target, 3 the keys of an earlier record were lost and not given out, 0 nothing
but what was answered. `not yet durable` says how many records before this one were not known to be on the disk when it
was written. So after a loss of power a record that is missing or torn can be told from one that was damaged later: the
former was never acknowledged, and whatever is readable behind it counts as used; the latter makes `replay` raise
JournalDamagedError. `not yet answered` does the same for answers: what no later record says was answered is in doubt
after a crash.

Once a flush has failed nobody knows what the disk holds of it (a second try may report success for pages that were
dropped), so the journal goes on in a fresh file, with every record again that was not durable yet.

Errors: StoreError (disk), JournalDamagedError.
"""

import os
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

import numpy as np
import numpy.typing as npt

from qtrunk.base.errors import StoreError
from qtrunk.kms.keyid import UNIT_OCTETS
from qtrunk.kms.seal import sync_directory

RECORD_OCTETS = 64
RECORDS_MAX = 1 << 15
_MAGIC = b"QTCONS\x00\x01"
_HEAD = Struct(">8sQQ40x")
_RECORD = Struct(">QIIBxHIIIHxxQ16s")
_CRC = Struct(">I")
_OCTETS_MAX = RECORD_OCTETS * (RECORDS_MAX + 1)
ANSWERED, INITIATED, COLLECTED, LOST = 0, 1, 2, 3
NO_MARK = bytes(16)
_KINDS = ("", "initiator", "target", "lost")
_ARRAY = np.dtype(
    [
        *(("crc", ">u4"), ("sequence", ">u8"), ("not_durable", ">u4"), ("not_answered", ">u4"), ("kind", "u1")),
        *(("zero", "u1"), ("keys", ">u2"), ("pool", ">u4"), ("segment", ">u4"), ("unit", ">u4")),
        *(("key_octets", ">u2"), ("zeros", ">u2"), ("unix_ms", ">u8"), ("mark", "V16")),
    ]
)
"""A record as a row of an array."""


class JournalDamagedError(StoreError):
    """A record that was durable does not read any more: nobody knows what was given out under it."""


@dataclass(frozen=True, slots=True)
class Used:
    """One record: `keys` keys of `key_octets` octets each, one after the other from `unit` of a segment on."""

    sequence: int
    kind: int
    pool: int
    segment: int
    unit: int
    key_octets: int
    keys: int
    unix_ms: int
    mark: bytes
    """Who asked, under which request ID; zeros where the client named none."""
    is_answered: bool = True
    """False: the node died before it knew that the answer had left."""


class ConsumeJournal:
    """The consume journal of one node; `append` from one thread, `flush` from another."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._guard = threading.Lock()
        self._flushing = threading.Lock()
        self._waiting: list[bytes] = []
        """Packed records without their CRC, which depends on the file they come to lie in."""
        self._handle = -1
        self._file = 0
        self._written = 0
        self._next_is_ready = False
        self._marked = 0
        """What the last record that was appended says of answers."""
        self.sequence = 0
        """Of the last record appended."""
        self.durable = 0
        """All records up to this sequence are on the disk."""
        self.answered = 0
        """All records up to this sequence had their answers handed to the network."""

    # ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def replay(self, first_file: int, after: int = 0, since_unix_ms: int = 0) -> list[Used]:
        """What is recorded from `first_file` on, in order; then the last file goes on, behind `after` at least.

        Of records up to `after` only those are given that were made since a time under a request mark: their clients
        may ask for the same again.
        """
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            found = _Found()
            for number in [number for number in self.files() if number >= first_file]:
                found.read(self._path(number), number)
            used = found.in_order(self._directory, after, since_unix_ms)
            self.sequence = self.durable = self.answered = self._marked = max(found.last, after)
            self._go_on(found)
        except OSError as error:
            raise StoreError(f"consume journal {self._directory}: {error.strerror}; the node cannot open it") from error
        return used

    def files(self) -> list[int]:
        """The numbers of the files there are, ascending."""
        return sorted(int(path.stem) for path in self._directory.glob("*.log"))

    @property
    def file(self) -> int:
        """The number of the file that is written now."""
        return self._file

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def append(
        self, kind: int, pool: int, segment: int, unit: int, key_octets: int, keys: int, unix_ms: int, mark: bytes
    ) -> int:
        """Add a record, not durable before `flush`; its sequence."""
        with self._guard:
            self.sequence = sequence = self.sequence + 1
            self._marked = self.answered
            self._waiting.append(
                _RECORD.pack(
                    *(sequence, sequence - 1 - self.durable, sequence - 1 - self.answered, kind, keys),
                    *(pool, segment, unit, key_octets, unix_ms, mark),
                )
            )
        return sequence

    def flush(self) -> int:
        """Put all that was appended on the disk; the sequence up to which it is there."""
        with self._flushing:
            with self._guard:
                batch = list(self._waiting)
            if not batch:
                return self.durable
            done = 0
            try:
                while done < len(batch):
                    if self._written >= RECORDS_MAX:
                        self._begin(self._file + 1)
                    part = batch[done : done + RECORDS_MAX - self._written]
                    self._write(part)
                    done += len(part)
                    self._durable_up_to(part)
            except OSError as error:
                self._abandon()
                raise StoreError(
                    f"consume journal {self._directory}: {error.strerror}; nothing was recorded and no key goes out"
                ) from error
            return self.durable

    def prepare(self) -> bool:
        """Allocate the next file while there is space; False while there is not enough."""
        with self._flushing:
            if self._next_is_ready:
                return True
            try:
                self._allocate(self._file + 1)
            except OSError:
                return False
            self._next_is_ready = True
            return True

    def waiting(self, after: int, up_to: int) -> list[Used]:
        """The records after one sequence and up to another that are not on the disk."""
        with self._guard:
            found = [_used(*_RECORD.unpack(body)) for body in self._waiting]
        return [used for used in found if after < used.sequence <= up_to]

    def restart(self) -> None:
        """Begin another file after `replay` has raised; what is damaged stays where it is."""
        self._begin(max(self.files(), default=0) + 1)

    def history(self, pool: int, segment: int, unit: int) -> list[dict[str, object]]:
        """When the key that begins at a unit of a segment was given to whom, out of all files there are."""
        found: list[dict[str, object]] = []
        for number in self.files():
            records = np.fromfile(self._path(number), dtype=_ARRAY)[1:]
            strides = -(-records["key_octets"].astype(np.int64) // UNIT_OCTETS)
            ends = records["unit"] + strides * records["keys"]
            is_it = (records["pool"] == pool) & (records["segment"] == segment) & (records["kind"] > 0)
            found += [
                {"to": _KINDS[int(record["kind"])], "unix_s": int(record["unix_ms"]) / 1000}
                for record in records[is_it & (records["unit"] <= unit) & (unit < ends)]
            ]
        return found

    def mark_answered(self) -> None:
        """Append what was answered since the last record, if anything was; durable with the next flush."""
        if self.answered > self._marked:
            self.append(ANSWERED, 0, 0, 0, 0, 0, 0, NO_MARK)
            self.answered = self._marked = self.sequence

    def close(self) -> None:
        """Let go of the file. What was not flushed is not recorded, and was not given out."""
        with self._flushing:
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1

    def _write(self, part: list[bytes]) -> None:
        if self._handle < 0:
            self._begin(self._file + 1)
        seed = self._file
        octets = b"".join([_CRC.pack(zlib.crc32(body, seed)) + body for body in part])
        place = RECORD_OCTETS * (1 + self._written)
        while octets:
            count = os.pwrite(self._handle, octets, place)
            octets, place = octets[count:], place + count
        os.fdatasync(self._handle)
        self._written += len(part)

    def _durable_up_to(self, part: list[bytes]) -> None:
        with self._guard:
            del self._waiting[: len(part)]
            self.durable = max(self.durable, _RECORD.unpack(part[-1])[0])

    def _abandon(self) -> None:
        """Never flush this file again; the next flush begins another one with all that still waits."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _go_on(self, found: "_Found") -> None:
        """Write behind what was read: the file is allocated already, so a full disk does not stop a restart."""
        if found.file and self._path(found.file).stat().st_size == _OCTETS_MAX:
            self._handle = os.open(self._path(found.file), os.O_WRONLY)
            self._file, self._written = found.file, found.written
            # A file that was allocated ahead and never begun.
            self._next_is_ready = self._path(self._file + 1).exists()
        else:
            self._begin(max(self.files(), default=0) + 1)
        # What never became durable leaves holes in the sequence, which must not look like damage next time.
        with self._guard:
            self._waiting = [_RECORD.pack(hole, hole - 1 - found.durable, *(0,) * 8, NO_MARK) for hole in found.holes()]
        self.flush()

    def _begin(self, number: int) -> None:
        if not self._next_is_ready:
            self._allocate(number)
            self._next_is_ready = True
        handle = os.open(self._path(number), os.O_WRONLY)
        try:
            os.pwrite(handle, _HEAD.pack(_MAGIC, number, self.durable), 0)
            os.fdatasync(handle)
        except BaseException:
            os.close(handle)
            raise
        self._abandon()
        self._handle, self._file, self._written, self._next_is_ready = handle, number, 0, False

    def _allocate(self, number: int) -> None:
        """A file of its whole length, so that records in it need no more space."""
        path = self._path(number)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(handle, 0, _OCTETS_MAX)
            os.fsync(handle)
            sync_directory(self._directory)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08d}.log"


def read_file(path: Path) -> list[Used]:
    """The records of one file, for audit."""
    found = _Found()
    found.read(path, int(path.stem))
    return found.in_order(path)


class _Found:
    """The records of several files, while they are read."""

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.void]] = [np.empty(0, _ARRAY)]
        """Whole records, file by file. After a failed flush the same record may lie in two of them."""
        self._first: int | None = None
        """Before the first record of the first file."""
        self.durable = self._answered = 0
        self.last = 0
        """The highest sequence there is."""
        self.file = self.written = 0
        """The last file that was begun, and the records that it has room for no more."""

    def read(self, path: Path, number: int) -> None:
        octets = path.read_bytes()
        magic, named, before = _HEAD.unpack_from(octets.ljust(_HEAD.size, b"\0"))
        if not any(octets[: _HEAD.size]):
            # Allocated and not begun: the head is on the disk before the first record is.
            return
        if (magic, named) != (_MAGIC, number):
            raise JournalDamagedError(f"consume journal {path}: its head is not what was written")
        if self._first is None:
            self._first = before
        lines = np.frombuffer(octets[: len(octets) // RECORD_OCTETS * RECORD_OCTETS], np.uint64).reshape(-1, 8)
        self.file, self.written = number, int(np.flatnonzero(lines.any(axis=1))[-1])
        self.durable, self.last = max(self.durable, before), max(self.last, before)
        end = RECORD_OCTETS * (1 + self.written)
        octets = octets[RECORD_OCTETS:end].ljust(RECORD_OCTETS * self.written, b"\0")
        bodies = memoryview(octets)
        places = range(_CRC.size, len(octets), RECORD_OCTETS)
        length = RECORD_OCTETS - _CRC.size
        sums = np.fromiter((zlib.crc32(bodies[place : place + length], number) for place in places), np.uint32)
        records = np.frombuffer(octets, _ARRAY)
        # A record that is not whole was torn when the power failed, or `in_order` finds that it was durable.
        self._note(records[records["crc"] == sums])

    def in_order(self, place: Path, after: int = 0, since_unix_ms: int = 0) -> list[Used]:
        """The records; JournalDamagedError when one that was durable is not among them."""
        sequences, records = self._sorted()
        first = self._first or 0
        missing = self.durable - first - int(((sequences > first) & (sequences <= self.durable)).sum())
        if missing:
            raise JournalDamagedError(f"consume journal {place}: {missing} records that were durable do not read")
        may_come_again = (records["mark"] != np.void(NO_MARK)) & (records["unix_ms"] >= since_unix_ms)
        wanted = (records["kind"] != ANSWERED) & ((sequences > after) | may_come_again)
        names = ("sequence", "kind", "pool", "segment", "unit", "key_octets", "keys", "unix_ms", "mark")
        columns = [records[name][wanted].tolist() for name in names]
        answered = (records["sequence"][wanted] <= self._answered).tolist()
        return [Used(*row) for row in zip(*columns, answered, strict=True)]

    def holes(self) -> list[int]:
        """Sequences that were written down and never became durable."""
        missing = np.setdiff1d(np.arange(self.durable + 1, self.last), self._sorted()[0])
        return [int(sequence) for sequence in missing]

    def _sorted(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.void]]:
        """Sequences, each once and ascending, and their records."""
        records = np.concatenate(self._parts)
        sequences, places = np.unique(records["sequence"].astype(np.int64), return_index=True)
        return sequences, records[places]

    def _note(self, records: npt.NDArray[np.void]) -> None:
        if not len(records):
            return
        self._parts.append(records)
        sequences = records["sequence"].astype(np.int64)
        self.durable = max(self.durable, int((sequences - 1 - records["not_durable"]).max()))
        self._answered = max(self._answered, int((sequences - 1 - records["not_answered"]).max()))
        self.last = max(self.last, int(sequences.max()))


def _used(
    sequence: int,
    _not_durable: int,
    _not_answered: int,
    kind: int,
    keys: int,
    pool: int,
    segment: int,
    unit: int,
    key_octets: int,
    unix_ms: int,
    mark: bytes,
) -> Used:
    return Used(sequence, kind, pool, segment, unit, key_octets, keys, unix_ms, mark)
