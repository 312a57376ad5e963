"""What an authority remembers, in SQLite (WAL, FULL: durable when a call returns): certificates, invitations, keys.

No secret is in it: a token is there as a hash. Errors: StoreError where the disk does not take it.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

from qtrunk.api.roles import OperatorRole
from qtrunk.base.errors import StoreError
from qtrunk.node.ca.identity import Identity, Kind

_TABLES = (
    """CREATE TABLE IF NOT EXISTS certificates (
        serial TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, roles TEXT NOT NULL, hosts TEXT NOT NULL,
        fingerprint TEXT NOT NULL, public_key BLOB NOT NULL, from_unix_s REAL NOT NULL, until_unix_s REAL NOT NULL,
        revoked_unix_s REAL, reason TEXT
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS certificates_of ON certificates (kind, name)",
    """CREATE TABLE IF NOT EXISTS invitations (
        id TEXT PRIMARY KEY, digest BLOB NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, roles TEXT NOT NULL,
        hosts TEXT NOT NULL, replaces INTEGER NOT NULL, until_unix_s REAL NOT NULL, used_unix_s REAL,
        failures INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS verifying_keys (node TEXT PRIMARY KEY, key BLOB NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID",
)


class Issued(msgspec.Struct, frozen=True):
    """One certificate that was issued."""

    serial: str
    kind: Kind
    name: str
    roles: list[OperatorRole]
    hosts: list[str]
    fingerprint: str
    from_unix_s: float
    until_unix_s: float
    revoked_unix_s: float | None
    reason: str | None

    @property
    def identity(self) -> Identity:
        """Whom it is for."""
        return Identity(self.kind, self.name, tuple(self.roles), tuple(self.hosts))

    def is_living(self, now_unix_s: float) -> bool:
        """Neither expired nor revoked."""
        return self.revoked_unix_s is None and now_unix_s <= self.until_unix_s


class Invitation(msgspec.Struct, frozen=True):
    """One invitation."""

    id: str
    digest: bytes
    kind: Kind
    name: str
    roles: list[OperatorRole]
    hosts: list[str]
    replaces: bool
    until_unix_s: float
    used_unix_s: float | None
    failures: int

    @property
    def identity(self) -> Identity:
        """Who is invited."""
        return Identity(self.kind, self.name, tuple(self.roles), tuple(self.hosts))


class Records:
    """The database of one authority; processes take turns."""

    def __init__(self, path: Path) -> None:
        with _told(path):
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10.0, check_same_thread=False)
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            for table in _TABLES:
                self._db.execute(table)
        self._path = path

    def close(self) -> None:
        """Everything is on the disk already."""
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Several calls, all or nothing; nobody else writes meanwhile."""
        with _told(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    # ── certificates ────────────────────────────────────────────────────────────────────────────────────────────────

    def add_certificate(self, issued: Issued, public_key: bytes) -> None:
        """Remember a certificate before it goes out."""
        self._db.execute(
            "INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
            (
                issued.serial,
                issued.kind,
                issued.name,
                _text(issued.roles),
                _text(issued.hosts),
                issued.fingerprint,
                public_key,
                issued.from_unix_s,
                issued.until_unix_s,
            ),
        )

    def certificates(self, kind: str = "", name: str = "", serial: str = "") -> list[Issued]:
        """Certificates, the oldest first; of one kind, party or serial number (hexadecimal) where given."""
        rows = self._db.execute(
            "SELECT serial, kind, name, roles, hosts, fingerprint, from_unix_s, until_unix_s, revoked_unix_s, reason"
            " FROM certificates WHERE ?1 IN ('', kind) AND ?2 IN ('', name) AND (?3 = '' OR serial = ?3)"
            " ORDER BY from_unix_s, serial",
            (kind, name, serial),
        )
        return [
            Issued(row[0], Kind(row[1]), row[2], _roles(row[3]), msgspec.json.decode(row[4], type=list[str]), *row[5:])
            for row in rows
        ]

    def has_key(self, public_key: bytes) -> bool:
        """Whether a certificate was ever issued for this key."""
        query = "SELECT 1 FROM certificates WHERE public_key = ? LIMIT 1"
        return self._db.execute(query, (public_key,)).fetchone() is not None

    def revoke(self, serial: str, now_unix_s: float, reason: str) -> None:
        """Mark a certificate as revoked; the first time counts."""
        self._db.execute(
            "UPDATE certificates SET revoked_unix_s = ?, reason = ? WHERE serial = ? AND revoked_unix_s IS NULL",
            (now_unix_s, reason, serial),
        )

    # ── invitations ─────────────────────────────────────────────────────────────────────────────────────────────────

    def add_invitation(self, invitation: Invitation) -> None:
        """Remember an invitation before its token is shown."""
        self._db.execute(
            "INSERT INTO invitations VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, 0)",
            (
                invitation.id,
                invitation.digest,
                invitation.kind,
                invitation.name,
                _text(invitation.roles),
                _text(invitation.hosts),
                invitation.replaces,
                invitation.until_unix_s,
            ),
        )

    def invitation(self, identifier: str) -> Invitation | None:
        """The invitation with this ID."""
        row = self._db.execute("SELECT * FROM invitations WHERE id = ?", (identifier,)).fetchone()
        if row is None:
            return None
        hosts = msgspec.json.decode(row[5], type=list[str])
        return Invitation(row[0], row[1], Kind(row[2]), row[3], _roles(row[4]), hosts, bool(row[6]), *row[7:])

    def use_invitation(self, identifier: str, now_unix_s: float) -> bool:
        """Mark it used; False if it was already."""
        query = "UPDATE invitations SET used_unix_s = ? WHERE id = ? AND used_unix_s IS NULL"
        return self._db.execute(query, (now_unix_s, identifier)).rowcount == 1

    def count_failure(self, identifier: str) -> None:
        """One more wrong secret for this invitation."""
        with self.transaction():
            self._db.execute("UPDATE invitations SET failures = failures + 1 WHERE id = ?", (identifier,))

    # ── keys and numbers ────────────────────────────────────────────────────────────────────────────────────────────

    def verifying_keys(self) -> dict[str, bytes]:
        """ML-DSA-65 verifying keys (PEM) by node."""
        return dict(self._db.execute("SELECT node, key FROM verifying_keys ORDER BY node"))

    def set_verifying_key(self, node: str, key: bytes) -> None:
        """Put a node's key into the directory."""
        self._db.execute("INSERT OR REPLACE INTO verifying_keys VALUES (?, ?)", (node, key))

    def drop_verifying_key(self, node: str) -> None:
        """Take a node's key out of the directory."""
        self._db.execute("DELETE FROM verifying_keys WHERE node = ?", (node,))

    def next_number(self, name: str) -> int:
        """1, 2, 3, … for each name, never the same twice."""
        query = "INSERT INTO numbers VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value"
        return int(self._db.execute(query, (name,)).fetchone()[0])


def _text(values: list[str] | list[OperatorRole]) -> str:
    return msgspec.json.encode(values).decode()


def _roles(text: str) -> list[OperatorRole]:
    return msgspec.json.decode(text, type=list[OperatorRole])


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"authority's records {path}: {error}") from error
