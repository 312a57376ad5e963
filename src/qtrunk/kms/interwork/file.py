"""The journal of interworking in a file of its own, `interwork.db` (SQLite: WAL, FULL): durable before the effect.

Material is sealed under the node's KEK for its place (node, peer, key ID), and only a received key has any, until our
network has it. Tombstones have none. A peer that fills its share of the file (`RECORDS_MAX`) is refused.

Errors: StoreError (the disk does not take it, the file is none of ours), AuthenticationFailed (a seal does not open).
"""

import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from qtrunk.base.errors import StoreError
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.ports import Clock
from qtrunk.base.secret import Secret
from qtrunk.kms.interwork.records import (
    EMPTY_HANDED,
    ENDED,
    OUTCOME,
    UNDER_WAY,
    Errand,
    ErrandState,
    Received,
    ReceivedState,
    Sent,
    SentState,
)
from qtrunk.kms.seal import associated, fingerprint, seal, unseal

FILE_NAME = "interwork.db"
"""In the node's directory."""
RECORDS_MAX = 1_000_000
"""Of one peer: keys received and tombstones of the last `KEPT_S`."""
_TABLES = (
    """CREATE TABLE IF NOT EXISTS sent (
    peer TEXT NOT NULL,
    key_id TEXT NOT NULL,
    initiator TEXT NOT NULL,
    targets TEXT NOT NULL,
    state TEXT NOT NULL,
    relayed TEXT NOT NULL,
    moved_unix_s REAL NOT NULL,
    is_open INTEGER NOT NULL,
    PRIMARY KEY (key_id, peer)
) STRICT, WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS sent_open ON sent (is_open, moved_unix_s)",
    """CREATE TABLE IF NOT EXISTS received (
    peer TEXT NOT NULL,
    key_id TEXT NOT NULL,
    initiator TEXT NOT NULL,
    targets TEXT NOT NULL,
    state TEXT NOT NULL,
    callback TEXT NOT NULL,
    is_told INTEGER NOT NULL,
    fingerprint BLOB NOT NULL,
    sealed BLOB,
    extension BLOB NOT NULL,
    request_extension BLOB NOT NULL,
    moved_unix_s REAL NOT NULL,
    is_open INTEGER NOT NULL,
    PRIMARY KEY (key_id, peer)
) STRICT, WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS received_open ON received (is_open, moved_unix_s)",
    "CREATE INDEX IF NOT EXISTS received_between ON received (peer, initiator)",
    """CREATE TABLE IF NOT EXISTS errands (
    node TEXT NOT NULL,
    number TEXT NOT NULL,
    key_ids TEXT NOT NULL,
    initiator TEXT NOT NULL,
    targets TEXT NOT NULL,
    state TEXT NOT NULL,
    moved_unix_s REAL NOT NULL,
    is_open INTEGER NOT NULL,
    PRIMARY KEY (node, number)
) STRICT, WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS errands_open ON errands (is_open, moved_unix_s)",
)


class JournalFile:
    """`records.Journal` in one file. For one thread; the calls wait for the disk."""

    def __init__(self, path: Path, node: str, kek: Secret, clock: Clock) -> None:
        self._path = path
        self._node = node
        self._kek = kek
        self._clock = clock
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA secure_delete=ON")
            for table in _TABLES:
                self._db.execute(table)
            self._counts: dict[str, int] = dict(self._db.execute("SELECT peer, count(*) FROM received GROUP BY peer"))
            self._states = {table: _states(self._db.cursor(), table) for table in ("sent", "received")}
        except (sqlite3.Error, OSError) as error:
            raise self._translated(error) from error

    def put_sent(self, records: Iterable[Sent]) -> None:
        """New or moved, all or none, on the disk when this returns."""
        rows = [
            (
                *(one.peer, one.key_id, one.initiator, _listed(one.targets), one.state.value),
                *(_listed(sorted(one.relayed)), self._clock.unix_s()),
                one.state in UNDER_WAY or one.state is SentState.VOIDING,
            )
            for one in records
        ]
        states = Counter(self._states["sent"])
        with self._turn() as cursor:
            for row in rows:
                states.subtract(_state(cursor, "sent", row[0], row[1]))
                states[row[4]] += 1
                cursor.execute("INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._states["sent"] = +states

    def put_received(self, records: Iterable[Received]) -> None:
        """New or moved, all or none, on the disk when this returns; StoreError where a peer has too many."""
        rows = [
            (
                *(one.peer, one.key_id, one.initiator, _listed(one.targets), one.state.value, one.callback),
                *(one.is_told, one.fingerprint, self._sealed(one), one.extension, one.request_extension),
                *(self._clock.unix_s(), one.state not in OUTCOME or not one.is_told),
            )
            for one in records
        ]
        counts, states = dict(self._counts), Counter(self._states["received"])
        with self._turn() as cursor:
            for row in rows:
                before = _state(cursor, "received", row[0], row[1])
                counts[row[0]] = counts.get(row[0], 0) + 1 - len(before)
                states.subtract(before)
                states[row[4]] += 1
                cursor.execute("INSERT OR REPLACE INTO received VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            full = [peer for peer in {row[0] for row in rows} if counts[peer] > RECORDS_MAX]
            if full:
                raise StoreError(f"interworking: KME {full[0]} has {RECORDS_MAX} keys on record here; wait or forget")
        self._counts, self._states["received"] = counts, +states

    def sent(self, peer: str, key_ids: Iterable[KeyId]) -> dict[KeyId, Sent]:
        """Those on record."""
        rows = self._rows(
            "SELECT * FROM sent WHERE peer = ? AND key_id IN (SELECT value FROM json_each(?))", peer, _listed(key_ids)
        )
        return {record.key_id: record for record in map(_sent_of, rows)}

    def received(self, peer: str, key_ids: Iterable[KeyId]) -> dict[KeyId, Received]:
        """Those on record."""
        rows = self._rows(
            "SELECT * FROM received WHERE peer = ? AND key_id IN (SELECT value FROM json_each(?))",
            peer,
            _listed(key_ids),
        )
        return {record.key_id: record for record in map(self._received_of, rows)}

    def open_sent(self) -> list[Sent]:
        """Those that have not ended."""
        return [_sent_of(row) for row in self._rows("SELECT * FROM sent WHERE is_open = 1")]

    def open_received(self) -> list[Received]:
        """Those that have not ended, or whose end is not told."""
        return [self._received_of(row) for row in self._rows("SELECT * FROM received WHERE is_open = 1")]

    def received_between(self, peer: str, initiator: SaeId, targets: Sequence[SaeId]) -> list[Received]:
        """All of this initiator for any of these targets that could still be held."""
        query = "SELECT * FROM received WHERE peer = ? AND initiator = ?"
        found = [self._received_of(row) for row in self._rows(query, peer, initiator)]
        wanted = set(targets)
        return [one for one in found if one.state not in EMPTY_HANDED and not wanted.isdisjoint(one.targets)]

    def is_held(self, key_ids: Iterable[KeyId]) -> bool:
        """Whether any of these IDs is associated with a key here, whoever gave it to us."""
        rows = self._rows(
            "SELECT state FROM received WHERE key_id IN (SELECT value FROM json_each(?))", _listed(key_ids)
        )
        return any(ReceivedState(state) not in EMPTY_HANDED for (state,) in rows)

    def is_strange(self, peer: str, key_ids: Iterable[KeyId]) -> bool:
        """Whether any of these IDs belongs to another KME's key, or to one that we gave away."""
        wanted = _listed(key_ids)
        if self._rows("SELECT key_id FROM sent WHERE key_id IN (SELECT value FROM json_each(?))", wanted):
            return True
        rows = self._rows(
            "SELECT state FROM received WHERE peer <> ? AND key_id IN (SELECT value FROM json_each(?))", peer, wanted
        )
        return any(ReceivedState(state) is not ReceivedState.ABSENT for (state,) in rows)

    def fingerprint(self, material: Secret) -> bytes:
        """A keyed digest that says nothing about the material without the KEK."""
        return fingerprint(self._kek, material, associated("interwork", self._node))

    def put_errand(self, errand: Errand) -> None:
        """New or moved, on the disk when this returns."""
        row = (
            *(errand.node, errand.number, _listed(errand.key_ids), errand.initiator, _listed(errand.targets)),
            *(errand.state.value, self._clock.unix_s()),
            errand.state not in ENDED,
        )
        with self._turn() as cursor:
            cursor.execute("INSERT OR REPLACE INTO errands VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def errand(self, node: str, number: str) -> Errand | None:
        """The one of that name, None where there is none."""
        rows = self._rows("SELECT * FROM errands WHERE node = ? AND number = ?", node, number)
        return _errand_of(rows[0]) if rows else None

    def open_errands(self) -> list[Errand]:
        """Those that have not ended."""
        return [_errand_of(row) for row in self._rows("SELECT * FROM errands WHERE is_open = 1")]

    def forget(self, before_unix_s: float) -> None:
        """Remove records that ended before."""
        with self._turn() as cursor:
            cursor.execute("DELETE FROM errands WHERE is_open = 0 AND moved_unix_s < ?", (before_unix_s,))
            cursor.execute("DELETE FROM sent WHERE is_open = 0 AND moved_unix_s < ?", (before_unix_s,))
            cursor.execute("DELETE FROM received WHERE is_open = 0 AND moved_unix_s < ?", (before_unix_s,))
            counts = dict(cursor.execute("SELECT peer, count(*) FROM received GROUP BY peer"))
            states = {table: _states(cursor, table) for table in ("sent", "received")}
        self._counts, self._states = counts, states

    def counts(self) -> dict[str, dict[str, int]]:
        """How many keys of each direction stand where, for the operator; months of them are not read for that."""
        return {table: dict(states) for table, states in self._states.items()}

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    # ── small things ────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _turn(self) -> Iterator[sqlite3.Cursor]:
        try:
            with closing(self._db.cursor()) as cursor:
                cursor.execute("BEGIN IMMEDIATE")
                try:
                    yield cursor
                    cursor.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        cursor.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _place(self, peer: str, key_id: str) -> bytes:
        return sealed_place(self._node, peer, key_id)

    def _sealed(self, one: Received) -> bytes | None:
        if one.material is None:
            return None
        return seal(self._kek, one.material.reveal(), self._place(one.peer, one.key_id))

    def _received_of(self, row: tuple[Any, ...]) -> Received:
        peer, key_id, initiator, targets, state, callback, is_told, digest, sealed, extension, of_request, _, _ = row
        return Received(
            peer=peer,
            key_id=KeyId(key_id),
            initiator=SaeId(initiator),
            targets=_unlisted(targets),
            state=ReceivedState(state),
            callback=callback,
            is_told=bool(is_told),
            fingerprint=digest,
            material=None if sealed is None else unseal(self._kek, sealed, self._place(peer, key_id)),
            extension=extension,
            request_extension=of_request,
        )

    def _translated(self, error: sqlite3.Error | OSError) -> StoreError:
        return StoreError(f"interworking {self._path}: {error}")


def sealed_place(node: str, peer: str, key_id: str) -> bytes:
    """What binds the sealed material of a received key to its place."""
    return associated("interwork", node, peer, key_id)


def _states(cursor: sqlite3.Cursor, table: str) -> Counter[str]:
    return Counter(dict(cursor.execute(f"SELECT state, count(*) FROM {table} GROUP BY state")))  # noqa: S608 (ours)


def _state(cursor: sqlite3.Cursor, table: str, peer: str, key_id: str) -> list[str]:
    """The state of a key on record; empty where there is none."""
    query = f"SELECT state FROM {table} WHERE key_id = ? AND peer = ?"  # noqa: S608 (our own table names)
    return [str(state) for (state,) in cursor.execute(query, (key_id, peer))]


def _sent_of(row: tuple[Any, ...]) -> Sent:
    peer, key_id, initiator, targets, state, relayed, _, _ = row
    return Sent(
        peer=peer,
        key_id=KeyId(key_id),
        initiator=SaeId(initiator),
        targets=_unlisted(targets),
        state=SentState(state),
        relayed=frozenset(_unlisted(relayed)),
    )


def _errand_of(row: tuple[Any, ...]) -> Errand:
    node, number, key_ids, initiator, targets, state, _, _ = row
    return Errand(
        node=node,
        number=number,
        key_ids=tuple(KeyId(key_id) for key_id in _unlisted(key_ids)),
        initiator=SaeId(initiator),
        targets=_unlisted(targets),
        state=ErrandState(state),
    )


def _listed(names: Iterable[str]) -> str:
    return msgspec.json.encode(list(names)).decode()


def _unlisted(text: str) -> tuple[SaeId, ...]:
    return tuple(SaeId(name) for name in msgspec.json.decode(text, type=list[str]))
