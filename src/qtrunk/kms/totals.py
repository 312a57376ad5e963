"""The durable counters behind quotas (`base.ports.Totals`) in a small SQLite file of their own.

Periods are labels that sort by time: `2026-11` for a month, `2026-11-23` for a day. `KEPT` of them stay for each
tenant, so that a clock that was wrong for a while finds the right day's count again.

Errors: StoreError (the disk does not take it, or the file is none of ours).
"""

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from qtrunk.base.errors import StoreError

KEPT = 100
_TABLE = """CREATE TABLE IF NOT EXISTS totals (
    tenant TEXT NOT NULL,
    period TEXT NOT NULL,
    bits INTEGER NOT NULL CHECK (bits >= 0),
    PRIMARY KEY (tenant, period)
) STRICT, WITHOUT ROWID"""
_RAISE = "INSERT INTO totals VALUES (?, ?, ?) ON CONFLICT (tenant, period) DO UPDATE SET bits = excluded.bits"
_FORGET = """DELETE FROM totals WHERE tenant = ?1 AND period NOT IN
    (SELECT period FROM totals WHERE tenant = ?1 ORDER BY period DESC LIMIT ?2) AND period NOT IN (?3, ?4)"""


class TotalsFile:
    """Totals in one file. For one thread; the calls wait for the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # As for keys: what is recorded must survive a power cut, or a quota could be used twice.
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(_TABLE)
        except (sqlite3.Error, OSError) as error:
            raise self._translated(error) from error

    def drawn(self, tenant: str, period: str) -> int:
        """Bits recorded for a tenant in a period, 0 if none."""
        query = "SELECT bits FROM totals WHERE tenant = ? AND period = ?"
        try:
            row = self._db.execute(query, (tenant, period)).fetchone()
        except sqlite3.Error as error:
            raise self._translated(error) from error
        return int(row[0]) if row else 0

    def record(self, tenant: str, bits: Mapping[str, int]) -> None:
        """New totals by period, all or none, durable when this returns."""
        try:
            with closing(self._db.cursor()) as cursor:
                cursor.execute("BEGIN IMMEDIATE")
                try:
                    cursor.executemany(_RAISE, [(tenant, period, total) for period, total in bits.items()])
                    now = [*bits, "", ""][:2]
                    cursor.execute(_FORGET, (tenant, KEPT, *now))
                    cursor.execute("COMMIT")
                except BaseException:
                    cursor.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _translated(self, error: sqlite3.Error | OSError) -> StoreError:
        return StoreError(f"quota totals {self._path}: {error}")
