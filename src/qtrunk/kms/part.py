"""What every part of the key store stands on: journal, segments, clock, totals, the own end of a link."""

import sqlite3
from collections.abc import Callable, Hashable
from typing import TypeVar

from qtrunk.base.errors import StoreError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.ports import Clock
from qtrunk.base.secret import Secret
from qtrunk.kms.journal import Journal
from qtrunk.kms.segment import Segments
from qtrunk.stages import Role

T = TypeVar("T")


class StorePart:
    """The ground of the store; its parts inherit it, and `KeyStore` joins them."""

    def __init__(self, node: NodeId, journal: Journal, segments: Segments, kek: Secret, clock: Clock) -> None:
        self._node = node
        self._journal = journal
        self._segments = segments
        self._kek = kek
        self._clock = clock

    def set_role(self, link: LinkId, role: Role) -> None:
        """Say which end of a link this node is; needed only where the link's name does not."""

        def work(db: sqlite3.Connection) -> None:
            known = self._known_role(db, link)
            if known not in (None, role):
                raise StoreError(f"link {link}: node {self._node} is its {known}, not its {role.value} end")
            note_link(db, link, 0)
            db.execute("UPDATE links SET role = ? WHERE link = ?", (role.value, link))

        self._journal.run(work)

    def _check_side(self, db: sqlite3.Connection, link: LinkId, role: Role) -> None:
        """Refuse to act as the end that this node is not: both nodes would spend the same octets."""
        known = self._known_role(db, link)
        if known is None:
            note_link(db, link, 0)
            db.execute("UPDATE links SET role = ? WHERE link = ?", (role.value, link))
        elif known is not role:
            raise StoreError(f"link {link}: node {self._node} is its {known.value} end and cannot act as {role.value}")

    def _role(self, db: sqlite3.Connection, link: LinkId) -> Role:
        known = self._known_role(db, link)
        if known is None:
            raise StoreError(f"link {link}: node {self._node} may be either end; call set_role first")
        return known

    def _known_role(self, db: sqlite3.Connection, link: LinkId) -> Role | None:
        row: tuple[str | None] | None = db.execute("SELECT role FROM links WHERE link = ?", (link,)).fetchone()
        if row is not None and row[0] is not None:
            return Role(row[0])
        # A link is named by its ends, Alice's node first.
        is_alice, is_bob = link.startswith(f"{self._node}-"), link.endswith(f"-{self._node}")
        if is_alice is is_bob:
            return None
        return Role.ALICE if is_alice else Role.BOB

    def _read(self, work: Callable[[sqlite3.Connection], T], name: Hashable = None) -> T:
        return self._journal.read(work, name)


def tally(db: sqlite3.Connection, scope: str, name: str, amount: int) -> None:
    """Add to a running total."""
    if amount:
        db.execute(
            # A fresh total goes in at zero first: SQLite checks a row before it sees the conflict.
            "INSERT INTO tallies VALUES (?, ?, 0) ON CONFLICT DO NOTHING",
            (scope, name),
        )
        db.execute(
            "UPDATE tallies SET amount = amount + ?3 WHERE scope = ?1 AND name = ?2",
            (scope, name, amount),
        )


def tallies(db: sqlite3.Connection, scope: str) -> dict[str, int]:
    """The running totals of a scope."""
    return {
        str(name): int(amount)
        for name, amount in db.execute("SELECT name, amount FROM tallies WHERE scope = ?", (scope,))
    }


def link_scope(link: LinkId) -> str:
    """The scope of a link's totals."""
    return f"link {link}"


def note_link(db: sqlite3.Connection, link: LinkId, block: int) -> None:
    """Record that a block number of a link is used."""
    db.execute(
        "INSERT INTO links (link, last_block) VALUES (?1, ?2) "
        "ON CONFLICT DO UPDATE SET last_block = max(last_block, ?2)",
        (link, block),
    )
