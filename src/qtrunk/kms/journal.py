"""The record of what happened to which key: SQLite, every transaction on the disk before it is believed.

WAL with `synchronous=FULL`: with anything less a power cut may roll back a committed row, and a key would
go out twice. `secure_delete` and a truncating checkpoint (`tidy`) take sealed material out of file and log
once it is used up. One process owns the directory (a file lock), one thread at a time writes (a lock that
`transaction` holds), and transactions nest as savepoints, so that an inner refusal undoes only itself.

When the disk is full, what spends key must still be recorded, or the node would have to stop supplying while
it holds key. So the log is made 1 MiB long in advance and used again from its start when it is full, and
another 1 MiB, for the database to grow, lies in a file that is given back at need.

Errors: StoreError (the disk does not take it; nothing happened), StorageFullError (and why: no space).
"""

import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from qtrunk.base.errors import StoreError
from qtrunk.kms.schema import MIGRATIONS
from qtrunk.kms.seal import sync_directory

RESERVE_OCTETS = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


class StorageFullError(StoreError):
    """No space: nothing was recorded and nothing handed out; works again once there is space."""


class Journal:
    """The database of a store, its lock and its rules for transactions."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._guard = threading.RLock()
        self._depth = 0
        self._known: dict[Hashable, Any] = {}
        """What was read since the last transaction, by its name."""
        self._is_broken = False
        self._on_commit: list[Callable[[], None]] = []
        self._on_rollback: list[Callable[[], None]] = []
        self._reserve = directory / "reserve"
        self._log = directory / "store.db-wal"
        self._db: sqlite3.Connection | None = None
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_file = _lock(directory / "lock")
        except OSError as error:
            raise self._translated(error) from error
        try:
            self._db = _connect(directory / "store.db")
            self._migrate()
            self.keep_reserve()
            sync_directory(directory)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise self._translated(error) from error
        except BaseException:
            self.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable when the outermost one ends; holds the store's lock meanwhile."""
        with self._guard:
            db = self._connection()
            marks = len(self._on_commit), len(self._on_rollback)
            level = self._depth
            self._known.clear()
            try:
                db.execute(f"SAVEPOINT level{level}" if level else "BEGIN IMMEDIATE")
                self._depth += 1
                try:
                    yield db
                finally:
                    self._depth -= 1
                if self._is_broken:
                    raise StoreError(f"key store {self._directory}: the disk undid an earlier step")
                db.execute(f"RELEASE level{level}" if level else "COMMIT")
            except BaseException as error:
                self._undo(db, level, marks)
                if isinstance(error, sqlite3.Error | OSError):
                    raise self._translated(error) from error
                raise
            if not level:
                self._on_rollback.clear()
                self._settle()

    def run(self, work: Callable[[sqlite3.Connection], T], *, drains: bool = True) -> T:
        """Do `work` in a transaction; if space is short and it `drains` the store, try again."""
        with self._guard:
            try:
                with self.transaction() as db:
                    return work(db)
            except StorageFullError:
                if self._depth or not drains:
                    raise
            self.make_room()
            with self.transaction() as db:
                return work(db)

    def read(self, work: Callable[[sqlite3.Connection], T], name: Hashable = None) -> T:
        """Look at the record; inside a transaction, at what it has changed so far.

        What has a `name` is looked up once between two transactions: whoever asks again gets the same.
        """
        with self._guard:
            try:
                db = self._connection()
                if name is None or self._depth:
                    return work(db)
                if name not in self._known:
                    self._known[name] = work(db)
                found: T = self._known[name]
            except sqlite3.Error as error:
                raise self._translated(error) from error
            return found

    def on_commit(self, action: Callable[[], None]) -> None:
        """Do `action` once the running transaction is durable; if the disk refuses it, again later."""
        self._on_commit.append(action)

    def on_rollback(self, action: Callable[[], None]) -> None:
        """Do `action` if the running transaction does not come to be."""
        self._on_rollback.append(action)

    @property
    def overdue(self) -> int:
        """Actions after a commit (shredding) that the disk has refused so far."""
        return len(self._on_commit)

    def make_room(self) -> None:
        """Give back the reserve and fold the log into the database; not while a transaction is open."""
        with self._guard:
            if self._depth:
                return
            try:
                self._reserve.unlink(missing_ok=True)
                self._fold("RESTART")
            except (sqlite3.Error, OSError) as error:
                raise self._translated(error) from error

    def keep_reserve(self) -> bool:
        """Set space aside in the log and in the reserve; False while there is not enough."""
        return _allocate(self._log, create=False) and _allocate(self._reserve, create=True)

    def tidy(self) -> bool:
        """Housekeeping: overdue shredding, the log emptied of sealed material, the reserve back in place; whether it
        is.
        """
        with self._guard:
            if self._depth:
                return False
            self._settle()
            try:
                # A log that is cut gives its space away: only where it and the reserve are sure to fit again.
                disk = os.statvfs(self._directory)
                log_octets = self._log.stat().st_size if self._log.exists() else 0
                has_space = disk.f_bavail * disk.f_frsize + log_octets > 2 * RESERVE_OCTETS
                self._fold("TRUNCATE" if has_space else "RESTART")
                return self.keep_reserve()
            except (sqlite3.Error, OSError) as error:
                raise self._translated(error) from error

    def close(self) -> None:
        """Fold the log in, close, let another process have the directory. Twice is harmless."""
        with self._guard:
            db, self._db = self._db, None
            if db is not None:
                db.close()
            self._lock_file.close()

    def _fold(self, how: str) -> None:
        self._connection().execute(f"PRAGMA wal_checkpoint({how})").fetchall()

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreError(f"key store {self._directory}: closed")
        if self._is_broken:
            raise StoreError(f"key store {self._directory}: the disk undid an earlier step of this transaction")
        return self._db

    def _undo(self, db: sqlite3.Connection, level: int, marks: tuple[int, int]) -> None:
        """Undo to where this level began; when SQLite undid everything itself, no outer level may commit."""
        del self._on_commit[marks[0] :]
        undo, self._on_rollback[marks[1] :] = self._on_rollback[marks[1] :], []
        try:
            if not db.in_transaction:
                self._is_broken = level > 0
            elif level:
                db.execute(f"ROLLBACK TO level{level}")
                db.execute(f"RELEASE level{level}")
            else:
                db.execute("ROLLBACK")
        except sqlite3.Error:
            # Neither forward nor back: whatever this connection still holds must never be committed.
            self._is_broken = True
        if not level:
            self._is_broken = self._is_broken and db.in_transaction
        for action in undo:
            try:
                action()
            except OSError:
                self._on_commit.append(action)

    def _settle(self) -> None:
        """What follows from a commit; that is durable, so a failure here must not look like a refusal."""
        todo, self._on_commit = self._on_commit, []
        for action in todo:
            try:
                action()
            except OSError:
                self._on_commit.append(action)

    def _translated(self, error: sqlite3.Error | OSError) -> StoreError:
        if isinstance(error, OSError):
            is_full, why = error.errno in _FULL, error.strerror
        else:
            is_full, why = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL, str(error)
        if is_full:
            return StorageFullError(
                f"key store {self._directory}: no space; nothing was recorded or given out; free some"
            )
        return StoreError(f"key store {self._directory}: {why}; nothing was recorded and no key goes out")

    def _migrate(self) -> None:
        db = self._connection()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StoreError(
                f"key store {self._directory}: version {version}, this qtrunk knows up to {len(MIGRATIONS)}; "
                "run the newer qtrunk that wrote it"
            )
        for number, steps in enumerate(MIGRATIONS[version:], start=version + 1):
            with self.transaction():
                for step in steps:
                    db.execute(step)
                db.execute(f"PRAGMA user_version = {number}")


def _allocate(path: Path, *, create: bool) -> bool:
    """Make a file at least RESERVE_OCTETS long, on the disk too; False when there is no space.

    The log may be longer than what is in it: SQLite stops at the first frame that is not its own.
    """
    if not path.exists() and not create:
        return False
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        if os.fstat(handle).st_size < RESERVE_OCTETS:
            os.posix_fallocate(handle, 0, RESERVE_OCTETS)
    except OSError as error:
        if create:
            path.unlink()
        if error.errno in _FULL:
            return False
        raise
    finally:
        os.close(handle)
    return True


def _connect(path: Path) -> sqlite3.Connection:
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma in ("secure_delete = ON", "synchronous = FULL", "foreign_keys = ON", "trusted_schema = OFF"):
        db.execute(f"PRAGMA {pragma}")
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        db.close()
        raise StoreError(f"key store {path}: no write-ahead log on this file system; use a local one")
    return db


def _lock(path: Path) -> BinaryIO:
    handle = open(path, "ab")  # noqa: SIM115, PTH123 (held for the life of the store)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise StoreError(f"key store {path.parent}: in use by another process; stop that one first") from error
    return handle
