"""End-to-end keys of a node: reserved for an initiator, stored for targets, given out once, remembered for
ever.

At the initiator's node a key has no material at rest: its identifier is reserved before anything leaves the
node, and `deliver_initiator` records the delivery before the keys go out. A reservation that a crash leaves
behind is destroyed when the store opens again.

At a target's node the material waits, sealed, for each recipient (GS QKD 014 V1.1.1 section 5.4, "Get key
with key IDs"): a batch is given out whole or not at all, and each recipient gets each key once.

Errors: NotAuthorised, KeyNotFound, RequestRefused, StoreError.
"""

import json
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial

from qtrunk.base.errors import AuthenticationFailed, KeyNotFound, NotAuthorised, RequestRefused, StoreError
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.kms.key import KeyState, RecipientState, check_move
from qtrunk.kms.part import StorePart, tallies, tally
from qtrunk.kms.seal import associated, fingerprint, seal, unseal

_SCOPE = "keys"
_BATCH = 500
"""Keys in one statement or transaction of housekeeping."""


class EndToEnd(StorePart):
    """The end-to-end keys of a node."""

    def reserve_keys(
        self,
        key_ids: Sequence[KeyId],
        initiator: SaeId,
        targets: Sequence[SaeId],
        key_bits: int,
        expires_unix_s: float,
    ) -> None:
        """Take identifiers for keys that are about to be made; StoreError when one was used before."""
        now = self._clock.unix_s()

        def work(db: sqlite3.Connection) -> None:
            for key_id in key_ids:
                if _row(db, "initiated", key_id) is not None:
                    raise StoreError(f"key {key_id}: the ID was used before; an ID is never used twice")
                db.execute(
                    "INSERT INTO initiated VALUES (?, 'reserved', NULL, ?, ?, ?, ?, ?, NULL, NULL)",
                    (key_id, initiator, json.dumps(list(targets)), key_bits, expires_unix_s, now),
                )
            tally(db, _SCOPE, "initiated reserved", len(key_ids))

        self._journal.run(work, drains=False)

    def deliver_initiator(self, key_ids: Sequence[KeyId], receipt: dict[str, object]) -> None:
        """Record that the initiator is being given these keys: durable on return, then they may go out."""
        text, now = json.dumps(receipt), self._clock.unix_s()

        def work(db: sqlite3.Connection) -> None:
            for key_id in key_ids:
                row = _row(db, "initiated", key_id)
                if row is None or row["state"] != KeyState.RESERVED.value or _is_expired(row, now):
                    raise KeyNotFound(f"key {key_id}: not reserved any more; it cannot be delivered")
                self._end(db, "initiated", key_id, KeyState.DELIVERED, None)
                db.execute("UPDATE initiated SET receipt = ? WHERE key_id = ?", (text, key_id))

        self._journal.run(work)

    def store_keys(
        self,
        keys: Sequence[tuple[KeyId, Secret]],
        initiator: SaeId,
        targets_here: Sequence[SaeId],
        all_targets: Sequence[SaeId],
        key_bits: int,
        receipt: dict[str, object],
        expires_unix_s: float,
    ) -> None:
        """Keep keys for their targets here, all or none; the same again is harmless, other refused."""
        here = list(dict.fromkeys(targets_here))
        if not here or not set(here) <= set(all_targets):
            raise RequestRefused(f"keys of {initiator}: targets at this node must be among all targets, at least one")
        wrong = [key_id for key_id, material in keys if 8 * len(material) != key_bits]
        if wrong:
            raise RequestRefused(f"key {wrong[0]}: is not {key_bits} bits long")
        about = (initiator, here, list(all_targets), json.dumps(receipt), expires_unix_s)

        def work(db: sqlite3.Connection) -> None:
            for key_id, material in keys:
                self._store(db, key_id, material, *about)

        self._journal.run(work, drains=False)

    def destroy_keys(self, key_ids: Sequence[KeyId], reason: str) -> None:
        """Void keys wherever they wait; what was delivered stays delivered, what is unknown needs nothing."""

        def work(db: sqlite3.Connection) -> None:
            for key_id in key_ids:
                for table in ("initiated", "stored"):
                    row = _row(db, table, key_id)
                    if row is not None and row["state"] in (KeyState.RESERVED.value, KeyState.STORED.value):
                        self._end(db, table, key_id, KeyState.DESTROYED, reason)

        self._journal.run(work)

    def void_keys(self, key_ids: Sequence[KeyId], may_void: Callable[[SaeId], bool]) -> set[KeyId]:
        """Refuse these keys to their targets from now on, also such as never came; those that one has already.

        NotAuthorised, with nothing changed, where `may_void` does not hold for the initiator of one that is here.
        """

        def work(db: sqlite3.Connection) -> set[KeyId]:
            rows = {key_id: _row(db, "stored", key_id) for key_id in key_ids}
            for key_id, row in rows.items():
                # A tombstone has no initiator.
                if row is not None and row["initiator"] and not may_void(SaeId(str(row["initiator"]))):
                    raise NotAuthorised(f"key {key_id}: is not one of those that may be voided from there")
            delivered: set[KeyId] = set()
            for key_id, row in rows.items():
                if row is None:
                    self._bury(db, key_id)
                elif row["state"] == KeyState.STORED.value:
                    self._end(db, "stored", key_id, KeyState.DESTROYED, "voided")
                query = "SELECT 1 FROM recipients WHERE key_id = ? AND state = 'delivered' LIMIT 1"
                if db.execute(query, (key_id,)).fetchone() is not None:
                    delivered.add(key_id)
            return delivered

        return self._journal.run(work)

    def destroy_of(self, is_gone: Callable[[SaeId], bool], reason: str) -> None:
        """What is not collected of keys from, and for, SAEs that there are no more; the other targets' part stays."""

        def work(db: sqlite3.Connection) -> None:
            query = "SELECT key_id, initiator FROM stored WHERE state = 'stored'"
            for key_id, initiator in db.execute(query).fetchall():
                if is_gone(SaeId(initiator)):
                    self._end(db, "stored", KeyId(key_id), KeyState.DESTROYED, reason)
                else:
                    self._end_gone(db, KeyId(key_id), is_gone, reason)

        self._journal.run(work)

    def _end_gone(self, db: sqlite3.Connection, key_id: KeyId, is_gone: Callable[[SaeId], bool], reason: str) -> None:
        rows = db.execute("SELECT target, state FROM recipients WHERE key_id = ?", (key_id,)).fetchall()
        waiting = [SaeId(target) for target, state in rows if state == RecipientState.PENDING.value]
        gone = [target for target in waiting if is_gone(target)]
        for target in gone:
            _end_recipients(db, key_id, RecipientState.DESTROYED, self._clock.unix_s(), target)
        if gone and len(gone) == len(waiting):
            was_given = any(state == RecipientState.DELIVERED.value for _, state in rows)
            there = (KeyState.DELIVERED, None) if was_given else (KeyState.DESTROYED, reason)
            self._end(db, "stored", key_id, *there)

    def _bury(self, db: sqlite3.Connection, key_id: KeyId) -> None:
        """A record of a key that never came, so that it never will: no material has an empty fingerprint."""
        now = self._clock.unix_s()
        db.execute(
            "INSERT INTO stored VALUES (?, 'destroyed', 'voided', '', '[]', 0, ?, ?, ?, '{}', x'', NULL)",
            (key_id, now, now, now),
        )
        tally(db, _SCOPE, f"stored {KeyState.DESTROYED.value} voided", 1)

    def collect(self, target: SaeId, initiator: SaeId, key_ids: Sequence[KeyId]) -> list[SuppliedKey]:
        """The keys for one of their targets, in order, all or none, once; durable before they are returned.

        NotAuthorised when this target was not named for one of the keys or another SAE initiated it, else
        KeyNotFound when one is unknown, collected, expired or voided. A failed call consumes nothing.
        """
        if not key_ids or len(set(key_ids)) < len(key_ids):
            raise RequestRefused("key_IDs: name at least one key, each key once")
        found = self._journal.run(lambda db: self._collect(db, target, initiator, key_ids))
        if isinstance(found, str):
            raise KeyNotFound(f"key {found}: the sealed material at node {self._node} is damaged; it was destroyed")
        return found

    def expire(self, now_unix_s: float) -> bool:
        """Destroy keys that nobody came for, then tidy up on the disk; whether that has the space it should have."""
        for table, state in (("initiated", KeyState.RESERVED), ("stored", KeyState.STORED)):
            while self._journal.run(partial(self._expire, table, state, now_unix_s)):
                pass
        return self._journal.tidy()

    def receipt(self, key_id: KeyId) -> dict[str, object] | None:
        """All that is known here of a key but its material; None when it was never here."""
        return self._read(lambda db: _receipt(db, key_id))

    def counts(self) -> dict[str, int]:
        """How many keys are in which state, by side; `shredding overdue` should be 0."""
        totals = self._read(lambda db: tallies(db, _SCOPE))
        return {**totals, "shredding overdue": self._journal.overdue}

    def _store(
        self,
        db: sqlite3.Connection,
        key_id: KeyId,
        material: Secret,
        initiator: SaeId,
        here: Sequence[SaeId],
        all_targets: Sequence[SaeId],
        receipt: str,
        expires_unix_s: float,
    ) -> None:
        place = self._place(key_id)
        mark = fingerprint(self._kek, material, associated(place, initiator, *sorted(here), "of", *all_targets))
        row = _row(db, "stored", key_id)
        if row is not None:
            if row["fingerprint"] != mark:
                raise StoreError(f"key {key_id}: the ID was used before for another key; nothing was stored")
            if row["state"] == KeyState.DESTROYED.value:
                raise StoreError(f"key {key_id}: was voided or ended here before; nothing was stored")
            return
        bits, now = 8 * len(material), self._clock.unix_s()
        db.execute(
            "INSERT INTO stored VALUES (?, 'stored', NULL, ?, ?, ?, ?, ?, NULL, ?, ?, ?)",
            (
                *(key_id, initiator, json.dumps(all_targets), bits, expires_unix_s, now),
                *(receipt, mark, seal(self._kek, material.reveal(), place)),
            ),
        )
        db.executemany("INSERT INTO recipients VALUES (?, ?, 'pending', NULL)", [(key_id, target) for target in here])
        tally(db, _SCOPE, "stored stored", 1)

    def _collect(
        self, db: sqlite3.Connection, target: SaeId, initiator: SaeId, key_ids: Sequence[KeyId]
    ) -> list[SuppliedKey] | KeyId:
        """The keys; or the one that no longer opens, which is then on record as destroyed."""
        rows = {key_id: _row(db, "stored", key_id) for key_id in key_ids}
        states = {key_id: _recipient(db, key_id, target) for key_id in key_ids}
        for key_id, row in rows.items():
            if row is not None and (states[key_id] is None or row["initiator"] != initiator):
                raise NotAuthorised(f"SAE {target} is not a target of key {key_id} from {initiator}")
        now = self._clock.unix_s()
        for key_id, row in rows.items():
            if row is None or states[key_id] is not RecipientState.PENDING or _is_expired(row, now):
                raise KeyNotFound(f"key {key_id}: unknown, collected, expired or voided at node {self._node}")
        supplied: list[SuppliedKey] = []
        for key_id in key_ids:
            material = self._unseal(db, key_id)
            if material is None:
                self._end(db, "stored", key_id, KeyState.DESTROYED, "damaged")
                return key_id
            supplied.append(SuppliedKey(key_id=key_id, material=material))
        for key_id in key_ids:
            _end_recipients(db, key_id, RecipientState.DELIVERED, now, target)
            query = "SELECT 1 FROM recipients WHERE key_id = ? AND state = 'pending' LIMIT 1"
            if db.execute(query, (key_id,)).fetchone() is None:
                self._end(db, "stored", key_id, KeyState.DELIVERED, None)
        return supplied

    def _end(self, db: sqlite3.Connection, table: str, key_id: KeyId, there: KeyState, reason: str | None) -> None:
        """Move a key to where its life ends; material that is left goes."""
        here = KeyState.RESERVED if table == "initiated" else KeyState.STORED
        check_move(f"key {key_id}", here, there)
        now = self._clock.unix_s()
        db.execute(
            f"UPDATE {table} SET state = ?, reason = ?, ended_unix_s = ? WHERE key_id = ?",  # noqa: S608
            (there.value, reason, now, key_id),
        )
        if table == "stored":
            db.execute("UPDATE stored SET sealed = NULL WHERE key_id = ?", (key_id,))
            if there is KeyState.DESTROYED:
                _end_recipients(db, key_id, RecipientState.DESTROYED, now)
        tally(db, _SCOPE, f"{table} {here.value}", -1)
        tally(db, _SCOPE, f"{table} {there.value}" + (f" {reason}" if reason else ""), 1)

    def _expire(self, table: str, state: KeyState, now_unix_s: float, db: sqlite3.Connection) -> bool:
        where = f"state = '{state.value}' AND expires_unix_s <= ?"
        query = f"SELECT key_id FROM {table} WHERE {where} LIMIT {_BATCH}"  # noqa: S608 (our own words)
        due = [KeyId(key_id) for (key_id,) in db.execute(query, (now_unix_s,)).fetchall()]
        for key_id in due:
            self._end(db, table, key_id, KeyState.DESTROYED, "expired")
        return bool(due)

    def _recover_keys(self) -> None:
        """After a crash: nobody was given what was only reserved."""

        def work(db: sqlite3.Connection) -> None:
            query = "SELECT key_id FROM initiated WHERE state = 'reserved'"
            for (key_id,) in db.execute(query).fetchall():
                self._end(db, "initiated", KeyId(key_id), KeyState.DESTROYED, "crash")

        self._journal.run(work)

    def _unseal(self, db: sqlite3.Connection, key_id: KeyId) -> Secret | None:
        (sealed,) = db.execute("SELECT sealed FROM stored WHERE key_id = ?", (key_id,)).fetchone()
        try:
            return unseal(self._kek, bytes(sealed), self._place(key_id))
        except AuthenticationFailed:
            return None

    def _place(self, key_id: KeyId) -> bytes:
        return associated("end-to-end key", self._node, key_id)


def _row(db: sqlite3.Connection, table: str, key_id: KeyId) -> dict[str, object] | None:
    cursor = db.execute(f"SELECT * FROM {table} WHERE key_id = ?", (key_id,))  # noqa: S608 (our own table names)
    row = cursor.fetchone()
    return row and {str(column[0]): value for column, value in zip(cursor.description, row, strict=True)}


def _is_expired(row: dict[str, object], now_unix_s: float) -> bool:
    return float(str(row["expires_unix_s"])) <= now_unix_s


def _recipient(db: sqlite3.Connection, key_id: KeyId, target: SaeId) -> RecipientState | None:
    query = "SELECT state FROM recipients WHERE key_id = ? AND target = ?"
    row = db.execute(query, (key_id, target)).fetchone()
    return row and RecipientState(row[0])


def _end_recipients(
    db: sqlite3.Connection, key_id: KeyId, there: RecipientState, now_unix_s: float, only: SaeId | None = None
) -> None:
    db.execute(
        "UPDATE recipients SET state = ?1, ended_unix_s = ?2 "
        "WHERE key_id = ?3 AND state = 'pending' AND (?4 IS NULL OR target = ?4)",
        (there.value, now_unix_s, key_id, only),
    )


def _receipt(db: sqlite3.Connection, key_id: KeyId) -> dict[str, object] | None:
    found: dict[str, object] = {}
    for table in ("initiated", "stored"):
        row = _row(db, table, key_id)
        if row is None:
            continue
        for kept_back in ("key_id", "fingerprint", "sealed"):
            row.pop(kept_back, None)
        row["targets"] = json.loads(str(row["targets"]))
        row["receipt"] = json.loads(str(row["receipt"])) if row["receipt"] is not None else None
        found[table] = row
    if "stored" in found:
        query = "SELECT target, state, ended_unix_s FROM recipients WHERE key_id = ? ORDER BY target"
        found["recipients"] = [
            {"target": target, "state": state, "ended_unix_s": ended_unix_s}
            for target, state, ended_unix_s in db.execute(query, (key_id,))
        ]
    return {"key_id": key_id, **found} if found else None
