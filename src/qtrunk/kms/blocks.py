"""Blocks of link key: held, released, spent or destroyed, each move durable before its effect.

A block's material is split the same way at both ends: its first octets authenticate later blocks (`auth`);
of the rest, the first half is Alice's end to allocate (`alice`), the second Bob's (`bob`). So both ends can
send at once and never take the same octet.

A block that is spent or destroyed loses its segment (the material) and keeps its row, since receipts cite
it.

Errors: StoreError (a move that a block's life does not have; the disk), KeyNotFound (no such block).
"""

import sqlite3
from collections.abc import Iterable

from qtrunk.base.errors import KeyNotFound, RequestRefused, StoreError
from qtrunk.base.ids import LinkId
from qtrunk.base.secret import Secret
from qtrunk.kms.key import BlockState, block_name, check_move
from qtrunk.kms.part import StorePart, link_scope, note_link, tally
from qtrunk.stages import Epsilon, QkdKey, Role

AUTH = "auth"
_INSERT_BLOCK = f"INSERT INTO blocks VALUES ({', '.join('?' * 19)})"  # noqa: S608 (only question marks)


class Blocks(StorePart):
    """The blocks of all links of a node."""

    def add_preshared(self, link: LinkId, material: Secret) -> None:
        """Block 0: the secret that authenticates the first blocks. Nothing happens when there is one."""
        key = QkdKey(
            link=link,
            block=0,
            material=material,
            auth_octets=len(material),
            epsilon=Epsilon(secret=0.0, correct=0.0, authentic=0.0),
            sifted_bits=0,
            leak_bits=0,
            qber_key=0.0,
            qber_test=0.0,
            proof="preshared",
            authentication="preshared",
            made_unix_s=self._clock.unix_s(),
        )

        def work(db: sqlite3.Connection) -> None:
            if block_state(db, link, 0) is None:
                self._hold(db, key)
                self._release(db, link, 0)

        self._journal.run(work, drains=False)

    def hold(self, key: QkdKey) -> None:
        """Keep a block that the peer may not hold yet: PENDING, durable on return."""
        if key.block < 1:
            raise RequestRefused(f"{block_name(key.link, key.block)}: blocks of key are numbered from 1")
        self._journal.run(lambda db: self._hold(db, key), drains=False)

    def release(self, link: LinkId, block: int) -> None:
        """Both ends hold the block: PENDING to AVAILABLE. Nothing happens when it was released before."""
        self._journal.run(lambda db: self._release(db, link, block))

    def destroy(self, link: LinkId, block: int, reason: str) -> None:
        """Shred what is left of a block, or mark a number dead that never became key. Twice is harmless."""
        self._journal.run(lambda db: self._destroy(db, link, block, reason))

    def destroy_link(self, link: LinkId, reason: str) -> None:
        """Shred all that is left of a link's key: the link is no more."""

        def work(db: sqlite3.Connection) -> None:
            query = "SELECT block FROM blocks WHERE link = ? AND state IN ('pending', 'available')"
            for (block,) in db.execute(query, (link,)).fetchall():
                self._destroy(db, link, int(block), reason)

        self._journal.run(work)

    def links(self) -> list[LinkId]:
        """Every link that this store has known."""
        return self._read(lambda db: [LinkId(link) for (link,) in db.execute("SELECT link FROM links ORDER BY link")])

    def pending(self, link: LinkId) -> list[int]:
        """Blocks held but not released, ascending."""
        query = "SELECT block FROM blocks WHERE link = ? AND state = 'pending' ORDER BY block"
        return self._read(lambda db: [int(block) for (block,) in db.execute(query, (link,))])

    def is_released(self, link: LinkId, block: int) -> bool:
        """Whether a block was released and not destroyed; it may be spent by now."""
        return self._read(lambda db: block_state(db, link, block)) in (BlockState.AVAILABLE, BlockState.SPENT)

    def last_block(self, link: LinkId) -> int:
        """The highest block number ever used on a link, whatever became of it; 0 before the first."""
        query = "SELECT COALESCE(MAX(last_block), 0) FROM links WHERE link = ?"
        return self._read(lambda db: int(db.execute(query, (link,)).fetchone()[0]))

    def note_block(self, link: LinkId, block: int) -> None:
        """Record that a block number is used, so that it is never used again."""
        self._journal.run(lambda db: note_link(db, link, block))

    def block_record(self, link: LinkId, block: int) -> dict[str, object]:
        """All that is known of a block but its material, for receipts; KeyNotFound when it was never here."""

        def work(db: sqlite3.Connection) -> dict[str, object] | None:
            cursor = db.execute("SELECT * FROM blocks WHERE link = ? AND block = ?", (link, block))
            row = cursor.fetchone()
            return row and {str(column[0]): value for column, value in zip(cursor.description, row, strict=True)}

        record = self._read(work)
        if record is None:
            raise KeyNotFound(f"{block_name(link, block)}: no such block at node {self._node}")
        return record

    def _hold(self, db: sqlite3.Connection, key: QkdKey) -> None:
        name, octets = block_name(key.link, key.block), len(key.material)
        if not 0 <= key.auth_octets <= octets or octets == 0:
            raise RequestRefused(f"{name}: {key.auth_octets} octets of {octets} for authentication is impossible")
        if block_state(db, key.link, key.block) is not None:
            raise StoreError(f"{name}: the number was used before; blocks are never replaced")
        self._segments.write(key.link, key.block, key.material)
        self._journal.on_rollback(lambda: self._segments.shred(key.link, key.block))
        note_link(db, key.link, key.block)
        now = self._clock.unix_s()
        epsilon = key.epsilon
        db.execute(
            _INSERT_BLOCK,
            (
                *(key.link, key.block, BlockState.PENDING.value, octets, key.auth_octets),
                *(epsilon.secret, epsilon.correct, epsilon.authentic, key.sifted_bits, key.leak_bits),
                *(key.qber_key, key.qber_test, key.proof, key.made_unix_s, now, None, None, None, key.authentication),
            ),
        )
        half = key.auth_octets + (octets - key.auth_octets) // 2
        areas = ((AUTH, 0, key.auth_octets), (Role.ALICE.value, key.auth_octets, half))
        for owner, first, last in (*areas, (Role.BOB.value, half, octets)):
            if first < last:
                db.execute(
                    "INSERT INTO extents (link, block, owner, is_released, is_granted, rank, cursor, last) "
                    "VALUES (?1, ?2, ?3, 0, 0, ?2, ?4, ?5)",
                    (key.link, key.block, owner, first, last),
                )
        tally(db, link_scope(key.link), "generated", octets)

    def _release(self, db: sqlite3.Connection, link: LinkId, block: int) -> None:
        state = block_state(db, link, block)
        if state in (BlockState.AVAILABLE, BlockState.SPENT):
            return
        if state is None:
            raise StoreError(f"{block_name(link, block)}: cannot be released, it was never held")
        self._move(db, link, block, state, BlockState.AVAILABLE)
        db.execute("UPDATE extents SET is_released = 1 WHERE link = ? AND block = ?", (link, block))

    def _destroy(self, db: sqlite3.Connection, link: LinkId, block: int, reason: str) -> None:
        state = block_state(db, link, block)
        if state is BlockState.DESTROYED:
            return
        note_link(db, link, block)
        now = self._clock.unix_s()
        if state is None:
            dead = (link, block, BlockState.DESTROYED.value, *([0] * 9), "", now, now, None, now, reason, "")
            db.execute(_INSERT_BLOCK, dead)
            return
        query = "SELECT COALESCE(SUM(last - cursor), 0) FROM extents WHERE link = ? AND block = ?"
        (left,) = db.execute(query, (link, block)).fetchone()
        tally(db, link_scope(link), f"destroyed {reason}", int(left))
        db.execute("DELETE FROM extents WHERE link = ? AND block = ?", (link, block))
        self._move(db, link, block, state, BlockState.DESTROYED, reason)

    def _retire(self, db: sqlite3.Connection, link: LinkId, blocks: Iterable[int]) -> None:
        """Of these available blocks, those with no octet left are spent."""
        query = "SELECT 1 FROM extents WHERE link = ? AND block = ? LIMIT 1"
        for block in set(blocks):
            if db.execute(query, (link, block)).fetchone() is None:
                self._move(db, link, block, BlockState.AVAILABLE, BlockState.SPENT)

    def _move(
        self,
        db: sqlite3.Connection,
        link: LinkId,
        block: int,
        here: BlockState,
        there: BlockState,
        reason: str | None = None,
    ) -> None:
        check_move(block_name(link, block), here, there)
        column = "released_unix_s" if there is BlockState.AVAILABLE else "ended_unix_s"
        db.execute(
            f"UPDATE blocks SET state = ?, reason = ?, {column} = ? WHERE link = ? AND block = ?",  # noqa: S608
            (there.value, reason, self._clock.unix_s(), link, block),
        )
        if there is not BlockState.AVAILABLE:
            self._journal.on_commit(lambda: self._segments.shred(link, block))

    def _recover_blocks(self) -> None:
        """After a crash: shred what has no living block, destroy blocks whose segment is gone."""
        present = self._segments.present()
        query = "SELECT link, block FROM blocks WHERE state IN ('pending', 'available')"
        living = self._read(lambda db: {(LinkId(link), int(block)) for link, block in db.execute(query)})
        for link, block in present - living:
            self._segments.shred(link, block)
        for link, block in living - present:
            self.destroy(link, block, "damaged")


def block_state(db: sqlite3.Connection, link: LinkId, block: int) -> BlockState | None:
    """Where a block stands; None when it was never here."""
    row = db.execute("SELECT state FROM blocks WHERE link = ? AND block = ?", (link, block)).fetchone()
    return row and BlockState(row[0])
