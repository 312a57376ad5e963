"""A new KEK: everything that the old one wrapped is wrapped again. The store is closed meanwhile.

    1  the vault file gets the new KEK, with the old one behind it, under a new root key, for every unsealer
    2  each part of the store is wrapped again; what is under the new KEK already is left alone
    3  the vault file forgets the old KEK

After a crash at any instant the vault opens and has every KEK that something may be under; `resume` goes on at step 2.
What opens under neither is left as it is: it was damaged before, and whoever reads it finds out and records it.

A part of the store that wraps something by the KEK has a function in `REWRAPS`. It gets a `Rewrapping`, must leave
everything durable, and must be harmless when it is done a second time.

Errors: StoreError (the disk, or the store is in use; do it again, nothing is lost).
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from qtrunk.base.errors import AuthenticationFailed, StoreError
from qtrunk.base.ids import NodeId
from qtrunk.base.secret import Secret
from qtrunk.kms.interwork.file import FILE_NAME, sealed_place
from qtrunk.kms.journal import Journal
from qtrunk.kms.poolrecords import id_key_place
from qtrunk.kms.seal import associated, seal, unseal
from qtrunk.kms.segment import Segments
from qtrunk.kms.vault.opened import Vault


@dataclass(frozen=True, slots=True)
class Rewrapping:
    """What a part of the store needs to wrap its things again."""

    directory: Path
    node: NodeId
    journal: Journal
    old: Secret
    new: Secret

    def box(self, sealed: bytes, place: bytes) -> bytes | None:
        """The same under the new KEK; None when it is so already, or opens under neither."""
        if not sealed:
            return None  # From a backup.
        try:
            content = unseal(self.old, sealed, place)
        except AuthenticationFailed:
            return None
        return seal(self.new, content.reveal(), place)


Rewrap = Callable[[Rewrapping], None]


def segment_headers(work: Rewrapping) -> None:
    """The key of each block's segment."""
    segments = Segments(work.directory / "segments", work.node, work.new)
    for link, block in sorted(segments.present()):
        segments.rewrap(link, block, work.old)


def pool_headers(work: Rewrapping) -> None:
    """The key of each segment of end-to-end key that lies ready."""
    segments = Segments(work.directory / "pools", work.node, work.new)
    for pool, number in sorted(segments.present()):
        segments.rewrap(pool, number, work.old)


def database_rows(work: Rewrapping) -> None:
    """Keys that wait for their targets, keys of key IDs, and the probe that says whose store it is: all or none.

    Fingerprints of keys stay as they are: most of their keys are gone. So a key that a peer sends once more after the
    change is refused, as another under the same ID would be.
    """

    def change(db: sqlite3.Connection) -> None:
        rows = db.execute("SELECT key_id, sealed FROM stored WHERE sealed IS NOT NULL").fetchall()
        for key_id, sealed in rows:
            box = work.box(sealed, associated("end-to-end key", work.node, key_id))
            if box is not None:
                db.execute("UPDATE stored SET sealed = ? WHERE key_id = ?", (box, key_id))
        rows = db.execute(
            "SELECT s.rank, s.segment, s.id_key, p.side, p.initiator, p.target "
            "FROM pool_segments s JOIN pools p USING (pool)"
        ).fetchall()
        for rank, number, sealed, side, initiator, target in rows:
            box = work.box(sealed, id_key_place(work.node, side, initiator, target, number))
            if box is not None:
                db.execute("UPDATE pool_segments SET id_key = ? WHERE rank = ?", (box, rank))
        probe = db.execute("SELECT value FROM meta WHERE name = 'probe'").fetchone()
        box = None if probe is None else work.box(probe[0], associated("probe", work.node))
        if box is not None:
            db.execute("UPDATE meta SET value = ? WHERE name = 'probe'", (box,))

    work.journal.run(change)


def interworking(work: Rewrapping) -> None:
    """Keys of other networks on their way, in a file beside the store; their fingerprints stay, as above."""
    path = work.directory.parent / FILE_NAME
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA secure_delete=ON")
            db.execute("BEGIN IMMEDIATE")
            rows = db.execute("SELECT peer, key_id, sealed FROM received WHERE sealed IS NOT NULL").fetchall()
            for peer, key_id, sealed in rows:
                box = work.box(sealed, sealed_place(work.node, peer, key_id))
                if box is not None:
                    query = "UPDATE received SET sealed = ? WHERE peer = ? AND key_id = ?"
                    db.execute(query, (box, peer, key_id))
            db.execute("COMMIT")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {error}; the change of KEK waits, unseal again") from error


REWRAPS: Sequence[Rewrap] = (segment_headers, pool_headers, database_rows, interworking)


def rotate(vault: Vault, store: Path, rewraps: Sequence[Rewrap] = REWRAPS) -> None:
    """A new KEK for a closed store. If this raises, wipe the vault and unseal anew: the file knows how far it came."""
    resume(vault, store, rewraps)
    vault.begin_rotation()
    resume(vault, store, rewraps)


def resume(vault: Vault, store: Path, rewraps: Sequence[Rewrap] = REWRAPS) -> None:
    """Finish a change of KEK that was begun; nothing to do when none was. The store must be closed."""
    if vault.previous is None:
        return
    if store.exists():
        journal = Journal(store)
        try:
            work = Rewrapping(store, vault.node, journal, vault.previous, vault.kek)
            for rewrap in rewraps:
                rewrap(work)
            # The log still has what the database no longer has.
            journal.tidy()
        except OSError as error:
            raise StoreError(f"key store {store}: {error.strerror}; the change of KEK waits, unseal again") from error
        finally:
            journal.close()
    vault.end_rotation()
