"""Pools: end-to-end key for an ordered pair of SAEs that lies at both their nodes before anyone asks for it.

A pool is filled in segments, relayed ahead. The initiator's node gives keys out of its segments from the front; the
target's node finds them by their IDs, which say where in the segment they lie (`kms.keyid`), so that no further message
is needed between the two. What was given out is on the consume journal (`kms.consume`) before it leaves: `take` and
`redeem` only write the record down, and whoever calls them sends nothing before `flush` has returned.

A segment begins with HEAD_OCTETS that are never given out: the key of its IDs, and the key of the tag by which the
target's node has confirmed that both hold the same (`relay.kx`).

Every octet of a segment is available, delivered, lost or destroyed, or overhead (head, and tails too short for the key
that was asked for); `PoolLedger` adds them up. *Lost* is what was recorded and then not given out, because the disk
refused the record. *Doubtful* is the part of the delivered whose answer the node did not see leave before it died.

Methods are called from one thread, `flush` from another.

Errors: KeyExhausted, NotAuthorised, KeyNotFound, StoreError.
"""

import sqlite3
from collections import OrderedDict
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import msgspec

from qtrunk.base.errors import KeyExhausted, KeyNotFound, NotAuthorised, StoreError
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.ports import Clock, Quality, SuppliedKey, SuppliedKeys
from qtrunk.base.secret import Secret
from qtrunk.kms import poolrecords as records
from qtrunk.kms.consume import COLLECTED, INITIATED, LOST, NO_MARK, ConsumeJournal, JournalDamagedError, Used
from qtrunk.kms.journal import Journal
from qtrunk.kms.key import KeyState, RecipientState, SegmentState, check_move
from qtrunk.kms.keyid import ID_KEY_OCTETS, UNIT_OCTETS, UNITS_MAX, KeyIds, segment_of, units_of
from qtrunk.kms.poolrecords import file_name, id_key_place, pool_of
from qtrunk.kms.poolstate import (
    HEAD_OCTETS,
    HEAD_UNITS,
    Pool,
    PoolLedger,
    Segment,
    fate,
    ledgers,
    quality_of,
    revived,
    runs,
    side_by_side,
    worst_of,
)
from qtrunk.kms.retries import Part, Retries
from qtrunk.kms.seal import seal, unseal
from qtrunk.kms.segment import SegmentDamagedError, SegmentReader, Segments

RETRY_WINDOW_S = 10.0
"""So long a client that names the same request again gets the same keys again."""
CHECKPOINT_S = 30.0
"""So old the rows of segments may be, and with them a backup."""
READERS_MAX = 64


class Pools:
    """The pools of one node."""

    def __init__(
        self, node: NodeId, journal: Journal, directory: Path, kek: Secret, clock: Clock, retry_window_s: float
    ) -> None:
        self._node = node
        self._journal = journal
        self._segments = Segments(directory / "pools", node, kek)
        self._consume = ConsumeJournal(directory / "consume")
        self._kek = kek
        self._clock = clock
        self._pools: dict[tuple[int, SaeId, SaeId], Pool] = {}
        self._by_number: dict[int, list[Segment]] = {}
        self._by_key: dict[tuple[int, int], Segment] = {}
        self._retries = Retries(retry_window_s, clock)
        self._readers: OrderedDict[tuple[int, int], Segment] = OrderedDict()
        self._checkpoint_file, self._checkpoint_unix_s = 0, 0.0
        self._recorded: tuple[int, int] | None = None
        """File and sequence of the consume journal that the last checkpoint names: one that says the same is none."""

    # ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def recover(self) -> None:
        """Know again what a crash or a stop left: the checkpoint, then the consume journal after it."""
        first, after = self._journal.read(records.last_checkpoint)
        for row in self._journal.read(records.living):
            self._revive(row)
        try:
            since_s = max(0.0, self._clock.unix_s() - self._retries.window_s)
            for used in self._consume.replay(first, after, int(1000 * since_s)):
                self._apply(used, first, is_new=used.sequence > after)
        except JournalDamagedError:
            # Nobody knows what was given out: then nothing of what is left may be.
            for segment in list(self._by_key.values()):
                self._finish(segment, SegmentState.DESTROYED, "journal damaged")
            self._consume.restart()
        present = {(pool_of(link), number) for link, number in self._segments.present()}
        for pool, number in present - self._by_key.keys():
            self._segments.shred(file_name(pool), number)
        for key in self._by_key.keys() - present:
            self._finish(self._by_key[key], SegmentState.DESTROYED, "damaged")
        self.checkpoint()

    def _revive(self, row: dict[str, Any]) -> None:
        pool = Pool(row["pool"], row["side"], SaeId(row["initiator"]), SaeId(row["target"]))
        number = row["segment"]
        segment = revived(row, pool, KeyIds(number, unseal(self._kek, row["id_key"], self._place(pool, number))))
        if segment.free <= 0:
            segment.closed_unix_s = row["ended_unix_s"] or self._clock.unix_s()
            segment.closed_s = self._clock.monotonic_s()
        self._adopt(segment)

    def _apply(self, used: Used, file: int, *, is_new: bool) -> None:
        """Do again what a record says; of one that the checkpoint has seen, only what its client may ask again."""
        segment = self._by_key.get((used.pool, used.segment))
        if segment is None:
            return  # It ended after that, which is on the other record.
        stride = units_of(used.key_octets)
        if is_new and used.kind == LOST:
            segment.is_changed = True
            segment.delivered -= used.keys * stride
            segment.lost += used.keys * stride
        elif is_new:
            self._mark(segment, used.kind, used.unit, used.keys * stride)
            segment.doubtful += 0 if used.is_answered else used.keys * stride
        if used.kind == LOST:
            self._retries.forget(used.mark)
        elif used.mark != NO_MARK:
            part = (segment, used.unit, used.key_octets, used.keys)
            self._retries.remember(used.mark, [part], file, self._clock.unix_s() - used.unix_ms / 1000)

    # ── filling ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(
        self,
        side: int,
        initiator: SaeId,
        target: SaeId,
        number: int,
        material: Secret,
        receipt: dict[str, object],
        expires_unix_s: float,
    ) -> None:
        """Keep a segment that the other node holds, too; StoreError when its number was used before in this pool."""
        if len(material) % UNIT_OCTETS or not HEAD_OCTETS < len(material) <= UNIT_OCTETS * UNITS_MAX:
            raise StoreError(f"pool {initiator} to {target}: a segment of {len(material)} octets is impossible")
        units = len(material) // UNIT_OCTETS
        id_key = Secret(material.reveal()[:ID_KEY_OCTETS])
        now = self._clock.unix_s()

        def work(db: sqlite3.Connection) -> None:
            # Out of sight until it is durable: a number that is rolled back may become another pool's.
            pool = Pool(records.pool_number(db, side, initiator, target), side, initiator, target)
            if db.execute(
                "SELECT 1 FROM pool_segments WHERE pool = ? AND segment = ?", (pool.number, number)
            ).fetchone():
                raise StoreError(f"pool {initiator} to {target}: segment {number} was here before; nothing was stored")
            self._segments.write(file_name(pool.number), number, material)
            self._journal.on_rollback(lambda: self._segments.shred(file_name(pool.number), number))
            cursor = db.execute(
                "INSERT INTO pool_segments (pool, segment, state, units, cursor, delivered, doubtful, lost, destroyed, "
                "id_key, receipt, made_unix_s, expires_unix_s) "
                "VALUES (?, ?, 'available', ?, ?, 0, 0, 0, 0, ?, ?, ?, ?)",
                (
                    *(pool.number, number, units, HEAD_UNITS),
                    seal(self._kek, id_key.reveal(), self._place(pool, number)),
                    *(msgspec.json.encode(receipt).decode(), now, expires_unix_s),
                ),
            )
            segment = Segment(
                pool=pool,
                number=number,
                rank=int(cursor.lastrowid or 0),
                quality=quality_of(receipt),
                units=units,
                ids=KeyIds(number, id_key),
                made_unix_s=now,
                expires_unix_s=expires_unix_s,
                free=units - HEAD_UNITS,
            )
            self._journal.on_commit(lambda: self._adopt(segment))

        self._journal.run(work, drains=False)

    def close_segment(self, side: int, initiator: SaeId, target: SaeId, number: int, reason: str) -> None:
        """Destroy what is left of a segment; nothing happens when there is none."""
        pool = self._pools.get((side, initiator, target))
        segment = None if pool is None else self._by_key.get((pool.number, number))
        if segment is not None:
            self._finish(segment, SegmentState.DESTROYED, reason)

    def holding(self, age_s: float) -> dict[tuple[SaeId, SaeId], list[int]]:
        """The segments that this node has held for so long as a target's, by initiator and target."""
        before = self._clock.unix_s() - age_s
        return {
            (pool.initiator, pool.target): [segment.number for segment in pool.segments if segment.made_unix_s < before]
            for pool in self._pools.values()
            if pool.side == COLLECTED
        }

    def compare(
        self, initiator: SaeId, target: SaeId, held: Sequence[int], before_unix_s: float
    ) -> list[tuple[int, int]]:
        """What the target's node must void, out of what it holds: segments, and the unit from which on.

        Segments here, made before a time, that the target's node does not hold are of no use to anyone: destroyed.
        """
        pool = self._pools.get((INITIATED, initiator, target))
        alive = {} if pool is None else {segment.number: segment for segment in pool.segments}
        voids = []
        for number in held:
            if number not in alive:
                row = self._journal.read(lambda db, number=number: records.ended(db, initiator, target, number))  # type: ignore[misc]
                if row is None or row["state"] == SegmentState.DESTROYED.value:
                    voids.append((number, HEAD_UNITS if row is None else int(row["cursor"])))
        for number, segment in alive.items():
            if number not in held and segment.made_unix_s < before_unix_s:
                self._finish(segment, SegmentState.DESTROYED, "missing at the peer")
        return voids

    def void(self, initiator: SaeId, target: SaeId, number: int, unit: int) -> None:
        """The initiator's node will never give out what lies from a unit of a segment on."""
        pool = self._pools.get((COLLECTED, initiator, target))
        segment = None if pool is None else self._by_key.get((pool.number, number))
        if segment is None:
            return
        used = segment.used = segment.used or bytearray(segment.units)
        count = used.count(0, max(unit, HEAD_UNITS))
        used[max(unit, HEAD_UNITS) :] = b"\1" * (segment.units - max(unit, HEAD_UNITS))
        segment.free -= count
        segment.pool.free -= count
        segment.voided += count
        segment.is_changed = True
        if segment.free <= 0:
            self._finish(segment, SegmentState.DESTROYED, "voided")

    # ── giving out ──────────────────────────────────────────────────────────────────────────────────────────────────

    def octets(self, initiator: SaeId, target: SaeId) -> int:
        """What the initiator's node could give out now."""
        pool = self._pools.get((INITIATED, initiator, target))
        return 0 if pool is None else pool.free * UNIT_OCTETS

    def is_repeated(self, mark: bytes) -> bool:
        """Whether this very request was given keys a moment ago."""
        return bool(self._retries.given(mark))

    def quality(self, initiator: SaeId, target: SaeId) -> Quality | None:
        """What the keys that lie ready rest on, the worst of them; None: there are none."""
        pool = self._pools.get((INITIATED, initiator, target))
        return worst_of(segment.quality for segment in (() if pool is None else pool.segments) if segment.free)

    def hops(self, key_id: KeyId) -> int:
        """Over how many links a key came, of a segment that lives; 1 where that is not known any more."""
        number = segment_of(key_id)
        return max((segment.quality.hops for segment in self._by_key.values() if segment.number == number), default=1)

    def ready(self, initiator: SaeId, target: SaeId, key_octets: int) -> int:
        """How many keys of a size the initiator's node could give out now."""
        pool = self._pools.get((INITIATED, initiator, target))
        stride = units_of(key_octets)
        living = [] if pool is None else [one for one in pool.segments if one.expires_unix_s > self._clock.unix_s()]
        return sum((segment.units - segment.cursor) // stride for segment in living)

    def take(
        self, initiator: SaeId, target: SaeId, number: int, key_octets: int, mark: bytes = NO_MARK
    ) -> Sequence[SuppliedKey]:
        """Fresh keys for the initiator, written down; nothing may leave before `flush`. KeyExhausted: nothing taken."""
        # Of a request that was cut off by a crash only a part may have reached the disk: then the rest is fresh.
        again = self._retries.given(mark)
        missing = number - sum(count for *_, count in again)
        if again and missing <= 0:
            return self._give(again)
        pool = self._pools.get((INITIATED, initiator, target))
        stride = units_of(key_octets)
        now = self._clock.unix_s()
        parts: list[Part] = []
        tails: list[Segment] = []
        for segment in () if pool is None else pool.segments:
            room = (segment.units - segment.cursor) // stride
            if not room:
                tails.append(segment)
            elif segment.expires_unix_s > now:
                count = min(room, missing)
                parts.append((segment, segment.cursor, key_octets, count))
                missing -= count
                if not missing:
                    break
        if missing:
            ready = f"{number - missing} keys of {8 * key_octets} bits ready"
            raise KeyExhausted(f"from {initiator} to {target}: {ready}, {number} wanted")
        # Reading comes first: a segment that does not open any more must not be written down as given out.
        keys = self._give([*again, *parts])
        self._write_down(INITIATED, parts, mark, now)
        for segment in tails:
            self._mark(segment, INITIATED, segment.cursor, segment.free, is_delivered=False)
        return keys

    def redeem(
        self, target: SaeId, initiator: SaeId, key_ids: Sequence[KeyId], mark: bytes = NO_MARK
    ) -> tuple[Sequence[SuppliedKey], list[KeyId]]:
        """Keys that pools hold for their target, written down like `take`; and the IDs that are not of a pool at all.

        Where some are not of a pool, nothing is given out and nothing written down.
        """
        again = {
            (id(segment), place)
            for segment, unit, key_octets, count in self._retries.given(mark)
            for place in range(unit, unit + count * units_of(key_octets), units_of(key_octets))
        }
        places, strange = self.find(target, initiator, key_ids, again)
        if strange:
            return [], strange
        keys = self._give(runs(places))
        fresh = [place for place in places if (id(place[0]), place[1]) not in again]
        self._write_down(COLLECTED, runs(fresh), mark, self._clock.unix_s())
        return keys, []

    def redeem_each(self, target: SaeId, initiator: SaeId, key_ids: Sequence[KeyId]) -> SuppliedKeys | None:
        """As `redeem` of each of these keys by itself, in their order; what lies side by side is read and written down
        in one piece.

        None, and nothing has happened, where one of them is not to be had now, or they are not of one size.
        """
        try:
            places, strange = self.find(target, initiator, key_ids)
        except (NotAuthorised, KeyNotFound):
            return None
        order, parts = ([], []) if strange else side_by_side(places)
        if not parts:
            return None
        try:
            pieces = [self._give_run(*part) for part in parts]
        except KeyNotFound:
            return None
        self._write_down(COLLECTED, parts, NO_MARK, self._clock.unix_s())
        return SuppliedKeys.in_order(pieces, order)

    def find(
        self, target: SaeId, initiator: SaeId, key_ids: Sequence[KeyId], again: Container[tuple[int, int]] = ()
    ) -> tuple[list[tuple[Segment, int, int]], list[KeyId]]:
        """Where keys lie that this target may have now (or `again`), and the IDs that are not of a pool.

        NotAuthorised when one is another's, else KeyNotFound when one was collected, expired or voided.
        """
        found: list[tuple[Segment, int, int]] = []
        strange: list[KeyId] = []
        for key_id in key_ids:
            place = self._locate(key_id)
            if place is None:
                strange.append(key_id)
                continue
            pool = place[0].pool
            if pool.target != target or pool.initiator != initiator:
                raise NotAuthorised(f"SAE {target} is not a target of key {key_id} from {initiator}")
            found.append(place)
        now = self._clock.unix_s()
        for segment, unit, key_octets in found:
            end = unit + units_of(key_octets)
            if (id(segment), unit) in again:
                continue
            is_free = unit >= HEAD_UNITS and end <= segment.units and segment.expires_unix_s > now
            if not is_free or (segment.used is not None and segment.used.find(1, unit, end) >= 0):
                raise KeyNotFound(f"a key of segment {segment.number}: collected, expired or voided at {self._node}")
        return found, strange

    def flush(self) -> int:
        """Put on the disk what was written down; the sequence up to which it is there. StoreError: it is not."""
        return self._consume.flush()

    @property
    def written(self) -> int:
        """The sequence of what was written down last."""
        return self._consume.sequence

    @property
    def durable(self) -> int:
        """The sequence up to which the disk has it."""
        return self._consume.durable

    def note_answered(self, sequence: int) -> None:
        """All that was written down up to `sequence` has been handed to the network."""
        self._consume.answered = max(self._consume.answered, sequence)

    def give_up(self, after: int, up_to: int) -> None:
        """The disk refused the records after one sequence and up to another; their keys were not given out and never
        will be: written down as lost.
        """
        waiting = self._consume.waiting(after, up_to)
        # An earlier flush may have failed, too: what it gave up still waits, with the record that says so.
        given_up = {(used.pool, used.segment, used.unit) for used in waiting if used.kind == LOST}
        for used in waiting:
            segment = self._by_key.get((used.pool, used.segment))
            if segment is not None and (used.pool, used.segment, used.unit) not in given_up:
                units = used.keys * units_of(used.key_octets)
                segment.delivered -= units
                segment.lost += units
                segment.is_changed = True
                self._append(LOST, segment, used.unit, used.key_octets, used.keys, used.mark, self._clock.unix_s())
                self._retries.forget(used.mark)

    # ── housekeeping ────────────────────────────────────────────────────────────────────────────────────────────────

    def tick(self) -> None:
        """End what is used up or expired, once nobody can ask for it again; keep a journal file ready. Each second."""
        now = self._clock.unix_s()
        for segment in list(self._by_key.values()):
            if segment.expires_unix_s <= now:
                self._finish(segment, SegmentState.DESTROYED, "expired")
            elif segment.closed_s is not None and self._retries.is_over(segment.closed_s):
                self._finish(segment, SegmentState.SPENT, None)
        for reader in filter(None, (segment.reader for segment in self._readers.values())):
            reader.rest()
        self._retries.expire()
        self._consume.mark_answered()
        self._consume.prepare()
        if self._consume.file > self._checkpoint_file + 1 or not 0 <= now - self._checkpoint_unix_s < CHECKPOINT_S:
            self.checkpoint()

    def rest_s(self) -> float:
        """How long until a segment ends by itself: it expires, or nobody can ask again."""
        now = self._clock.unix_s()
        ends = [segment.expires_unix_s - now for segment in self._by_key.values()]
        ends += [self._retries.left_s(one.closed_s) for one in self._by_key.values() if one.closed_s is not None]
        return min(ends, default=float("inf"))

    def checkpoint(self) -> None:
        """Record how far every living segment is, so that the next start reads nothing of the journal before."""
        self._consume.flush()
        sequence = self._consume.sequence
        # What clients may ask again is read again, too: a node may crash twice before they do.
        file = self._retries.first_file(self._consume.file)

        changed = [segment for segment in self._by_key.values() if segment.is_changed]
        if changed or (file, sequence) != self._recorded:
            self._journal.run(lambda db: records.note_checkpoint(db, changed, file, sequence))
        for segment in changed:
            segment.is_changed = False
        self._recorded = file, sequence
        self._checkpoint_file, self._checkpoint_unix_s = self._consume.file, self._clock.unix_s()

    def close(self) -> None:
        """Record what was answered, then let go of all files."""
        try:
            self._consume.mark_answered()
            self._consume.flush()
        finally:
            for segment in self._by_key.values():
                self._close_reader(segment)
            self._consume.close()

    # ── what there is ───────────────────────────────────────────────────────────────────────────────────────────────

    def ledgers(self) -> dict[tuple[int, SaeId, SaeId], PoolLedger]:
        """Every pool's ledger, in octets."""
        return ledgers(self._journal.read(records.ended_totals, "ended totals"), self._pools.items())

    def living(self) -> list[Segment]:
        """All segments that are not at their end, both sides."""
        return list(self._by_key.values())

    def receipt(self, key_id: KeyId) -> dict[str, object] | None:
        """What is known here of a key of a pool, shaped like `EndToEnd.receipt`; None: it is no key of a pool here."""
        found: dict[str, object] = {}
        for row in self._journal.read(lambda db: records.named(db, segment_of(key_id))):
            pool = Pool(row["pool"], row["side"], SaeId(row["initiator"]), SaeId(row["target"]))
            if not row["id_key"]:
                continue  # From a backup, which has no keys: nobody knows the IDs of this segment any more.
            ids = KeyIds(row["segment"], unseal(self._kek, row["id_key"], self._place(pool, row["segment"])))
            place = ids.place(key_id)
            if place is None:
                continue
            given = self._consume.history(pool.number, row["segment"], place[0])
            state, ended_unix_s = fate(row, given)
            found["initiated" if pool.side == INITIATED else "stored"] = {
                "state": state,
                "reason": row["reason"] if state == KeyState.DESTROYED.value else None,
                "initiator": pool.initiator,
                "targets": [pool.target],
                "key_bits": 8 * place[1],
                "segment": row["segment"],
                "unit": place[0],
                "made_unix_s": row["made_unix_s"],
                "expires_unix_s": row["expires_unix_s"],
                "ended_unix_s": ended_unix_s,
                "receipt": msgspec.json.decode(row["receipt"]),
            }
            if pool.side == COLLECTED:
                left = RecipientState.PENDING.value if state == KeyState.STORED.value else state
                found["recipients"] = [{"target": pool.target, "state": left, "ended_unix_s": ended_unix_s}]
        return {"key_id": key_id, **found} if found else None

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _adopt(self, segment: Segment) -> None:
        pool = segment.pool
        segment.pool = pool = self._pools.setdefault((pool.side, pool.initiator, pool.target), pool)
        pool.segments.append(segment)
        pool.free += segment.free
        self._by_key[pool.number, segment.number] = segment
        if pool.side == COLLECTED:
            self._by_number.setdefault(segment.number, []).append(segment)

    def _locate(self, key_id: KeyId) -> tuple[Segment, int, int] | None:
        for segment in self._by_number.get(segment_of(key_id), ()):
            place = segment.ids.place(key_id)
            if place is not None:
                return segment, *place
        return None

    def _give(self, parts: Sequence[Part]) -> Sequence[SuppliedKey]:
        """Material and IDs; a segment that does not open any more is destroyed, and nothing is given out."""
        if len(parts) == 1 and parts[0][3] > 1 and parts[0][2] % UNIT_OCTETS == 0:
            return self._give_run(*parts[0])
        keys: list[SuppliedKey] = []
        for segment, unit, key_octets, count in parts:
            stride = units_of(key_octets)
            materials = self._read(segment, unit * UNIT_OCTETS, key_octets, stride * UNIT_OCTETS, count)
            ids = segment.ids.make(range(unit, unit + count * stride, stride), key_octets)
            keys += [
                SuppliedKey(key_id=key_id, material=material) for key_id, material in zip(ids, materials, strict=True)
            ]
        return keys

    def _give_run(self, segment: Segment, unit: int, key_octets: int, count: int) -> SuppliedKeys:
        """Keys without a gap between them, in one piece."""
        (material,) = self._read(segment, unit * UNIT_OCTETS, count * key_octets, count * key_octets, 1)
        stride = units_of(key_octets)
        return SuppliedKeys(
            segment.ids.octets(range(unit, unit + count * stride, stride), key_octets), material, key_octets
        )

    def _read(self, segment: Segment, offset: int, length: int, step: int, count: int) -> list[Secret]:
        try:
            return self._reader(segment).secrets(offset, length, step, count)
        except SegmentDamagedError as damage:
            self._finish(segment, SegmentState.DESTROYED, "damaged")
            raise KeyNotFound(str(damage)) from damage

    def _write_down(self, kind: int, parts: list[Part], mark: bytes, now: float) -> None:
        for segment, unit, key_octets, count in parts:
            self._mark(segment, kind, unit, count * units_of(key_octets))
            self._append(kind, segment, unit, key_octets, count, mark, now)
        if mark != NO_MARK and parts:
            self._retries.remember(mark, parts, self._consume.file)

    def _append(
        self, kind: int, segment: Segment, unit: int, key_octets: int, count: int, mark: bytes, now: float
    ) -> None:
        self._consume.append(kind, segment.pool.number, segment.number, unit, key_octets, count, int(now * 1000), mark)

    def _mark(self, segment: Segment, kind: int, unit: int, units: int, *, is_delivered: bool = True) -> None:
        """Units of a segment are given out, or passed over."""
        before = segment.free
        segment.is_changed = True
        segment.delivered += units if is_delivered else 0
        if kind == INITIATED:
            segment.cursor = max(segment.cursor, unit + units)
        else:
            if segment.used is None:
                segment.used = bytearray(segment.units)
            segment.used[unit : unit + units] = b"\1" * units
        segment.free = segment.units - segment.cursor if kind == INITIATED else segment.free - units
        segment.pool.free += segment.free - before
        if segment.free <= 0 and segment.closed_unix_s is None:
            segment.closed_unix_s, segment.closed_s = self._clock.unix_s(), self._clock.monotonic_s()

    def _finish(self, segment: Segment, state: SegmentState, reason: str | None) -> None:
        """The end of a segment: on record, then shredded, then out of sight."""
        check_move(f"segment {segment.number}", SegmentState.AVAILABLE, state)
        pool = segment.pool
        # Not yet the segment's: where the disk refuses, it is finished another time.
        voided = segment.voided + (segment.free if state is SegmentState.DESTROYED else 0)
        reason = reason or ("voided" if voided else None)

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE pool_segments SET state = ?, reason = ?, used = NULL, cursor = ?, delivered = ?, doubtful = ?, "
                "lost = ?, destroyed = ?, ended_unix_s = ? WHERE pool = ? AND segment = ?",
                (
                    *(state.value, reason, segment.cursor, segment.delivered, segment.doubtful),
                    *(segment.lost, voided, self._clock.unix_s(), pool.number, segment.number),
                ),
            )
            self._journal.on_commit(lambda: self._segments.shred(file_name(pool.number), segment.number))

        self._journal.run(work)
        self._close_reader(segment)
        pool.free -= segment.free
        segment.free = 0
        pool.segments.remove(segment)
        del self._by_key[pool.number, segment.number]
        if pool.side == COLLECTED:
            self._by_number[segment.number].remove(segment)
        self._retries.forget_segment(segment)

    def _reader(self, segment: Segment) -> SegmentReader:
        if segment.reader is None:
            segment.reader = self._segments.reader(file_name(segment.pool.number), segment.number)
            self._readers[segment.pool.number, segment.number] = segment
            if len(self._readers) > READERS_MAX:
                self._close_reader(next(iter(self._readers.values())))
        return segment.reader

    def _close_reader(self, segment: Segment) -> None:
        if segment.reader is not None:
            segment.reader.close()
            segment.reader = None
            self._readers.pop((segment.pool.number, segment.number), None)

    def _place(self, pool: Pool, number: int) -> bytes:
        return id_key_place(self._node, pool.side, pool.initiator, pool.target, number)
