"""What the database knows of pools and their segments: queries of `kms.pools`, rows as dictionaries by column."""

import sqlite3
import zlib
from collections.abc import Sequence
from typing import Any

from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.kms.consume import INITIATED
from qtrunk.kms.poolstate import Segment, free_units
from qtrunk.kms.seal import associated

_PREFIX = "pool."


def _rows(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
    names = [str(column[0]) for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def last_checkpoint(db: sqlite3.Connection) -> tuple[int, int]:
    """File of the consume journal, and sequence, up to which the segments' rows are right."""
    row = db.execute("SELECT value FROM meta WHERE name = 'consumed'").fetchone()
    file, sequence = (1, 0) if row is None else row[0].split()
    return int(file), int(sequence)


def note_checkpoint(db: sqlite3.Connection, changed: Sequence[Segment], file: int, sequence: int) -> None:
    """The segments that changed, and how far the consume journal need not be read any more."""
    for segment in changed:
        used = None if segment.used is None else zlib.compress(bytes(segment.used), 1)
        db.execute(
            "UPDATE pool_segments SET cursor = ?, used = ?, delivered = ?, doubtful = ?, lost = ?, "
            "destroyed = ?, ended_unix_s = ? WHERE pool = ? AND segment = ?",
            (
                *(segment.cursor, used, segment.delivered, segment.doubtful, segment.lost, segment.voided),
                *(segment.closed_unix_s, segment.pool.number, segment.number),
            ),
        )
    db.execute("INSERT OR REPLACE INTO meta VALUES ('consumed', ?)", (f"{file} {sequence}".encode(),))


def living(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """All segments that are not at their end, in the order in which they came."""
    return _rows(
        db.execute(
            "SELECT s.*, p.side, p.initiator, p.target FROM pool_segments s JOIN pools p USING (pool) "
            "WHERE s.state = 'available' ORDER BY s.rank"
        )
    )


def named(db: sqlite3.Connection, number: int) -> list[dict[str, Any]]:
    """The segments of a number, of whatever pool, living or not."""
    return _rows(
        db.execute(
            "SELECT p.side, p.initiator, p.target, s.pool, s.segment, s.state, s.reason, s.made_unix_s, "
            "s.expires_unix_s, s.ended_unix_s, s.id_key, s.receipt FROM pool_segments s JOIN pools p USING (pool) "
            "WHERE s.segment = ?",
            (number,),
        )
    )


def ended(db: sqlite3.Connection, initiator: SaeId, target: SaeId, number: int) -> dict[str, Any] | None:
    """What became of a segment on the initiator's side; None: it was never here."""
    rows = _rows(
        db.execute(
            "SELECT s.state, s.cursor FROM pool_segments s JOIN pools p USING (pool) "
            "WHERE p.side = ? AND p.initiator = ? AND p.target = ? AND s.segment = ?",
            (INITIATED, initiator, target, number),
        )
    )
    return rows[0] if rows else None


def ended_totals(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """Sums over the segments that are at their end, by pool and reason, in units."""
    return _rows(
        db.execute(
            "SELECT p.side, p.initiator, p.target, t.reason, t.units, t.delivered, t.doubtful, t.lost, t.destroyed "
            "FROM pool_totals t JOIN pools p USING (pool)"
        )
    )


def pool_number(db: sqlite3.Connection, side: int, initiator: SaeId, target: SaeId) -> int:
    """The number of a pool, a new one where it is new."""
    db.execute(
        "INSERT INTO pools (side, initiator, target) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (side, initiator, target)
    )
    query = "SELECT pool FROM pools WHERE side = ? AND initiator = ? AND target = ?"
    return int(db.execute(query, (side, initiator, target)).fetchone()[0])


def file_name(pool: int) -> LinkId:
    """Segment files are named after a link; no link has this name, since a link's has a hyphen."""
    return LinkId(f"{_PREFIX}{pool}")


def pool_of(name: LinkId) -> int:
    """The pool whose segment file has this name."""
    return int(name.removeprefix(_PREFIX))


def id_key_place(node: NodeId, side: int, initiator: str, target: str, number: int) -> bytes:
    """What binds the sealed `id_key` of a segment to its place."""
    return associated("id key", node, side, initiator, target, number)


def end_all(db: sqlite3.Connection, reason: str, unix_s: float) -> int:
    """Every living segment is destroyed; the caller shreds. How many there were."""
    rows = living(db)
    for row in rows:
        used = None if row["used"] is None else zlib.decompress(row["used"])
        free = free_units(row["side"], row["units"], row["cursor"], used)
        db.execute(
            "UPDATE pool_segments SET state = 'destroyed', reason = ?, used = NULL, destroyed = destroyed + ?, "
            "ended_unix_s = ? WHERE rank = ?",
            (reason, free, unix_s, row["rank"]),
        )
    return len(rows)
