"""Proposals that wait for a second person, in SQLite (WAL, FULL): durable when `put` returns; no secret in it."""

import sqlite3
from pathlib import Path

import msgspec

from qtrunk.base.errors import StoreError
from qtrunk.kms.approvals import Proposal


class FileShelf:
    """`kms.approvals.Shelf` in a file of its own: approvals must work while the key store is sealed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10.0, check_same_thread=False)
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS proposals (place INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL,"
                " proposal BLOB NOT NULL) STRICT"
            )
        except sqlite3.Error as error:
            raise StoreError(f"proposals {path}: {error}") from error

    def load(self) -> list[Proposal]:
        """All of them, the oldest first."""
        try:
            rows = self._db.execute("SELECT proposal FROM proposals ORDER BY place").fetchall()
            return [msgspec.json.decode(row[0], type=Proposal) for row in rows]
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise StoreError(f"proposals {self._path}: {error}") from error

    def put(self, proposal: Proposal) -> None:
        """New or changed; durable on return, else StoreError."""
        query = (
            "INSERT INTO proposals (id, proposal) VALUES (?, ?)"
            " ON CONFLICT (id) DO UPDATE SET proposal = excluded.proposal"
        )
        try:
            self._db.execute(query, (proposal.id, msgspec.json.encode(proposal)))
        except sqlite3.Error as error:
            raise StoreError(f"proposals {self._path}: {error}; nothing was done") from error

    def close(self) -> None:
        """Everything is on the disk already."""
        self._db.close()
