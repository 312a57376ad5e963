"""The simulated disks: real files in memory, a record of what was not flushed, and faults.

The key store runs on files as ever, in a directory of `/dev/shm`. Its modules see another `os` (`_Files`) and another
`sqlite3` (`_Database`) while a simulation runs; both pass everything on and stand between where it matters:

* every write, flush, creation and commit is an *effect*: the machine may die just before it, or just after a commit;
* any of them may fail: I/O error, no space, a flush that fails and has lost what it should have flushed;
* when a machine dies its directory is copied as it is at this instant, and the next incarnation opens the copy. If the
  power failed, what was written and not flushed is there or not, sector by sector, as dice say; a file whose directory
  was not flushed may be missing.

A commit of SQLite (write-ahead log, `synchronous=FULL`) is taken for durable once it has returned: which states of
the file system SQLite itself survives is measured by `tools/powerloss.py`.
"""

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from qtrunk.kms import consume, journal, seal, segment
from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.machine import Died, Machine

_ABSENT = object()
SECTOR_OCTETS = 512
RESERVE_OCTETS = 16 << 10
RECORDS_MAX = 64
"""Small files, so that each run goes from one to the next many times."""


@dataclass(slots=True)
class _Write:
    """Something that was written and not flushed: what stood there before."""

    offset: int
    before: bytes
    length: int
    is_lost: bool = False
    """A flush failed: no later one brings it back, though it will say so."""


def _is_renewed(lost: _Write, later: list[_Write]) -> bool:
    end = lost.offset + lost.length
    return any(not one.is_lost and one.offset <= lost.offset and end <= one.offset + one.length for one in later)


@dataclass
class Disk:
    """The disk of one machine."""

    root: Path
    machine: Machine
    dice: Dice
    trace: Callable[[str], None]
    error_probability: float = 0.0
    """Of each effect."""
    is_full: bool = False
    unflushed: dict[Path, list[_Write]] = field(default_factory=dict)
    created: set[Path] = field(default_factory=set)
    """Files whose directory was not flushed since."""
    databases: list[sqlite3.Connection] = field(default_factory=list)

    def effect(self, kind: str, path: Path) -> None:
        """Before a change: the machine may die here, or the disk refuse."""
        self.machine.effect(f"{kind} {path.suffix or path.name}")
        self.trace(f"{self.machine.name} {kind} {path.name}")
        if self.error_probability and self.dice.chance(self.error_probability):
            raise OSError(errno.EIO, "simulated I/O error", str(path))

    def copy_to(self, root: Path, *, is_power_loss: bool) -> None:
        """What the next incarnation finds."""
        shutil.copytree(self.root, root)
        if not is_power_loss:
            return
        for path, writes in self.unflushed.items():
            copy = root / path.relative_to(self.root)
            if copy.exists():
                self._undo(copy, writes)
        for path in sorted(self.created):
            if self.dice.chance(0.5):
                (root / path.relative_to(self.root)).unlink(missing_ok=True)

    def _undo(self, path: Path, writes: list[_Write]) -> None:
        """Each sector of each write that was not flushed came to the disk, or not."""
        with path.open("r+b") as out:
            for write in reversed(writes):
                for first in range(write.offset // SECTOR_OCTETS * SECTOR_OCTETS, write.offset + write.length, 512):
                    start, end = max(first, write.offset), min(first + SECTOR_OCTETS, write.offset + write.length)
                    if write.is_lost or self.dice.chance(0.5):
                        out.seek(start)
                        old = write.before[start - write.offset : end - write.offset]
                        out.write(old.ljust(end - start, b"\0"))


class Disks:
    """All disks of a run, and the `os` and `sqlite3` that the store's modules see meanwhile."""

    def __init__(self) -> None:
        self._disks: dict[str, Disk] = {}
        self.files = _Files(self)
        self.database = _Database(self)

    def add(self, disk: Disk) -> None:
        """A disk, found by the path of its files."""
        self._disks[str(disk.root)] = disk

    def of(self, path: Any) -> Disk | None:
        """The disk of a file."""
        text = str(path)
        return next((disk for root, disk in self._disks.items() if text.startswith(root + "/") or text == root), None)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While the store's modules work on these disks."""
        changes: list[tuple[Any, dict[str, object]]] = [
            (segment, {"os": self.files}),
            (seal, {"os": self.files}),
            (consume, {"os": self.files, "RECORDS_MAX": RECORDS_MAX, "_OCTETS_MAX": 64 * (RECORDS_MAX + 1)}),
            (
                journal,
                {
                    "open": self.files.open_file,
                    "os": self.files,
                    "sqlite3": self.database,
                    "RESERVE_OCTETS": RESERVE_OCTETS,
                },
            ),
        ]
        before = [(module, {name: vars(module).get(name, _ABSENT) for name in names}) for module, names in changes]
        try:
            for module, names in changes:
                vars(module).update(names)
            yield
        finally:
            for module, names in before:
                vars(module).update(names)
                for name in [name for name, value in names.items() if value is _ABSENT]:
                    del vars(module)[name]
            self.files.close_all()
            for disk in self._disks.values():
                for database in disk.databases:
                    database.close()


@dataclass(slots=True)
class _Open:
    disk: Disk
    path: Path
    is_directory: bool


class _Files:
    """`os` for the store's modules: what is not here is the real one's."""

    def __init__(self, disks: Disks) -> None:
        self._disks = disks
        self._open: dict[int, _Open] = {}
        self._locks: list[IO[Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def close_all(self) -> None:
        """What dead machines left open."""
        for handle in self._open:
            os.close(handle)
        self._open.clear()
        for lock in self._locks:
            lock.close()

    def open_file(self, path: Any, mode: str) -> IO[Any]:
        """`open` of the journal: its lock."""
        self._locks.append(open(path, mode))  # noqa: PTH123, SIM115 (as the journal does)
        return self._locks[-1]

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        """See os.open."""
        disk = self._disks.of(path)
        if disk is None:
            return os.open(path, flags, mode)
        found = Path(path)
        is_new = bool(flags & os.O_CREAT) and not found.exists()
        if is_new:
            disk.effect("create", found)
        elif not disk.machine.is_alive:
            raise Died(disk.machine.name)
        handle = os.open(path, flags, mode)
        self._open[handle] = _Open(disk, found, bool(flags & os.O_DIRECTORY))
        if is_new:
            disk.created.add(found)
            disk.unflushed.pop(found, None)
        return handle

    def close(self, handle: int) -> None:
        """See os.close."""
        self._open.pop(handle, None)
        os.close(handle)

    def pwrite(self, handle: int, octets: bytes, offset: int) -> int:
        """See os.pwrite."""
        known = self._open.get(handle)
        if known is None:
            return os.pwrite(handle, octets, offset)
        known.disk.effect("write", known.path)
        if known.disk.is_full and offset + len(octets) > os.fstat(handle).st_size:
            raise OSError(errno.ENOSPC, "simulated full disk", str(known.path))
        before = _read(known.path, offset, len(octets))
        known.disk.unflushed.setdefault(known.path, []).append(_Write(offset, before, len(octets)))
        return os.pwrite(handle, octets, offset)

    def fsync(self, handle: int) -> None:
        """See os.fsync."""
        known = self._open.get(handle)
        if known is None:
            os.fsync(handle)
            return
        writes = known.disk.unflushed.get(known.path, [])
        try:
            known.disk.effect("flush", known.path)
        except OSError:
            for write in writes:
                write.is_lost = write.is_lost or known.disk.dice.chance(0.5)
            raise
        if known.is_directory:
            known.disk.created = {path for path in known.disk.created if path.parent != known.path}
        else:
            # What was lost stays so, but where it was written anew since: that is on the disk now.
            known.disk.unflushed[known.path] = [
                write for place, write in enumerate(writes) if write.is_lost and not _is_renewed(write, writes[place:])
            ]

    fdatasync = fsync

    def posix_fallocate(self, handle: int, offset: int, length: int) -> None:
        """See os.posix_fallocate."""
        known = self._open.get(handle)
        if known is not None:
            known.disk.effect("allocate", known.path)
            if known.disk.is_full:
                raise OSError(errno.ENOSPC, "simulated full disk", str(known.path))
        os.posix_fallocate(handle, offset, length)

    def statvfs(self, path: Any) -> Any:
        """See os.statvfs: a full disk has no space."""
        disk = self._disks.of(path)
        real = os.statvfs(path)
        return _Full(real.f_frsize) if disk is not None and disk.is_full else real

    def fdopen(self, handle: int, mode: str = "r") -> Any:
        """See os.fdopen."""
        return _File(self, handle) if mode == "wb" and handle in self._open else os.fdopen(handle, mode)


@dataclass(slots=True)
class _Full:
    f_frsize: int
    f_bavail: int = 0


class _File:
    """What `os.fdopen(handle, "wb")` gives: written through."""

    def __init__(self, files: _Files, handle: int) -> None:
        self._files = files
        self._handle = handle
        self._waiting = b""
        self._at = 0

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_error: object) -> None:
        self._files.close(self._handle)

    def write(self, octets: bytes) -> None:
        """Buffered, as the real one."""
        self._waiting += octets

    def flush(self) -> None:
        """To the system, not to the disk."""
        octets, self._waiting = self._waiting, b""
        self._files.pwrite(self._handle, octets, self._at)
        self._at += len(octets)

    def fileno(self) -> int:
        """The handle."""
        return self._handle


class _Database:
    """`sqlite3` for the journal: what is not here is the real one's."""

    def __init__(self, disks: Disks) -> None:
        self._disks = disks

    def __getattr__(self, name: str) -> Any:
        return getattr(sqlite3, name)

    def connect(self, path: Any, **how: Any) -> sqlite3.Connection:
        """See sqlite3.connect."""
        disk = self._disks.of(path)
        if disk is None:
            real: sqlite3.Connection = sqlite3.connect(path, **how)
            return real
        connection = _Connection(path, **how)
        connection.watch(disk, Path(path))
        disk.databases.append(connection)
        return connection


class _Connection(sqlite3.Connection):
    """A database whose commits are effects."""

    _disk: Disk | None = None
    _path: Path

    def watch(self, disk: Disk, path: Path) -> None:
        """It lies on a disk."""
        self._disk, self._path = disk, path

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        """See sqlite3.Connection.execute."""
        disk = self._disk
        if disk is None or sql == "ROLLBACK":
            return super().execute(sql, *parameters)
        if not disk.machine.is_alive:
            raise Died(disk.machine.name)
        if sql != "COMMIT":
            return super().execute(sql, *parameters)
        try:
            disk.effect("commit", self._path)
        except OSError as problem:
            raise _failure(sqlite3.SQLITE_IOERR, "disk I/O error") from problem
        if disk.is_full and disk.dice.chance(0.5):
            raise _failure(sqlite3.SQLITE_FULL, "database or disk is full")
        done = super().execute(sql)
        disk.machine.effect("after commit")
        return done


def _failure(code: int, text: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


def _read(path: Path, offset: int, length: int) -> bytes:
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.pread(handle, length, offset)
    finally:
        os.close(handle)
