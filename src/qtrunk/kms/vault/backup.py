"""Backup of a store's records, restoring them, and beginning anew on a link.

No octet of key is ever given twice, in all the life of a node, and a copy of its store would break that: whoever puts
back yesterday's store has yesterday's keys again, those of last night's traffic among them. So a backup has records
only: no segment, no sealed key, no probe of the KEK. What was alive in it comes back as destroyed, with the reason
`restored`; receipts, totals, epsilons and the numbers that were used stay. The peers still have their halves of the
links' key; they give those up too (`begin_anew`), and both ends start from a new pre-shared secret or signatures.

The copy is made by SQLite's backup interface while the node runs, in memory, and needs neither its KEK nor its lock.

Errors: StoreError (the disk; a table that is not known to hold records only; a store where one shall be restored).
"""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from qtrunk.base.errors import StoreError
from qtrunk.base.ids import KeyId, LinkId, NodeId
from qtrunk.base.ports import Clock
from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness
from qtrunk.kms import poolrecords
from qtrunk.kms.journal import Journal
from qtrunk.kms.key import KeyState
from qtrunk.kms.schema import MIGRATIONS
from qtrunk.kms.seal import KEK_OCTETS, sync_directory
from qtrunk.kms.segment import Segments
from qtrunk.kms.store import KeyStore

RESTORED = "restored"
RECORDS = ("links", "blocks", "extents", "tallies", "initiated", "recipients", "pools", "pool_totals")
"""Tables that go into a backup as they are."""
STRIPPED = {
    "stored": "UPDATE stored SET sealed = NULL, fingerprint = zeroblob(0)",
    "meta": "DELETE FROM meta",
    "pool_segments": "UPDATE pool_segments SET id_key = zeroblob(0)",
}
"""Tables that go without what the KEK seals or marks. A table in neither list stops the backup: whoever adds one says
here what of it is no key."""


def backup(store: Path, target: Path) -> None:
    """The records of a store, as one SQLite file that must not exist yet. The node may run."""
    if target.exists():
        raise StoreError(f"backup {target}: exists; nothing was overwritten")
    _translated(target, lambda: _copy(store, target))


def restore(source: Path, store: Path, node: NodeId, clock: Clock) -> dict[str, int]:
    """A store from a backup, under whatever KEK opens it first; how many blocks and keys were destroyed by that."""
    if (store / "store.db").exists():
        raise StoreError(f"key store {store}: there is one; a backup never replaces a store. Move it away first")
    _translated(store, lambda: _place(source, store))
    return _give_up(store, node, clock, None)


def begin_anew(store: Path, node: NodeId, link: LinkId, clock: Clock) -> dict[str, int]:
    """At a peer of a node that was restored: destroy what is left of a link, and let it take a new pre-shared secret.

    The node must be stopped. Needs no KEK: it only destroys.
    """
    if not (store / "store.db").exists():
        raise StoreError(f"key store {store}: there is none")
    return _give_up(store, node, clock, link)


def _copy(store: Path, target: Path) -> None:
    # In memory, so that no second copy of sealed keys is ever on a disk; what is written is clean from its first octet,
    # because VACUUM INTO writes only what is left.
    source = sqlite3.connect(f"file:{store / 'store.db'}?mode=rw", uri=True)
    with closing(source), closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        source.backup(db)
        _check_version(db, store)
        for table in _tables(db):
            if table in STRIPPED:
                db.execute(STRIPPED[table])
            elif table not in RECORDS:
                raise StoreError(f"key store {store}: table {table} is not known to hold records only; no backup made")
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        db.execute("VACUUM INTO ?", (str(target),))
    _sync(target)


def _place(source: Path, store: Path) -> None:
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    with closing(sqlite3.connect(f"file:{source}?mode=ro&immutable=1", uri=True)) as db:
        _check_version(db, source)
        unknown = set(_tables(db)) - {*RECORDS, *STRIPPED}
        has_key = db.execute("SELECT 1 FROM stored WHERE sealed IS NOT NULL LIMIT 1").fetchone()
        has_probe = db.execute("SELECT 1 FROM meta LIMIT 1").fetchone()
        (health,) = db.execute("PRAGMA integrity_check").fetchone()
    if unknown or has_key or has_probe:
        raise StoreError(
            f"backup {source}: not made by `qtrunk vault backup`; a copy of a store must never be put back"
        )
    if health != "ok":
        raise StoreError(f"backup {source}: damaged; take another one")
    for name in ("segments", "pools", "consume"):
        if (store / name).exists() and any((store / name).iterdir()):
            raise StoreError(f"key store {store}: {name} of another store lie there; move it away first")
    _copy_durably(source, store / "store.db")


def _give_up(store: Path, node: NodeId, clock: Clock, link: LinkId | None) -> dict[str, int]:
    """Destroy what lives, of one link or of everything; block 0 makes room for the next pre-shared secret."""
    where, values = ("", ()) if link is None else ("AND link = ?", (link,))
    journal = Journal(store)
    try:
        # Nothing is sealed or opened here, so no KEK is needed; this one is nobody's.
        nobody = Secret(randomness.octets(KEK_OCTETS))
        segments = 0
        keys = KeyStore(node, journal, Segments(store / "segments", node, nobody), nobody, clock)
        with keys.transaction():
            living = f"SELECT link, block FROM blocks WHERE state IN ('pending', 'available') {where}"  # noqa: S608
            blocks = journal.read(lambda db: db.execute(living, values).fetchall())
            for of_link, block in blocks:
                keys.destroy(LinkId(of_link), int(block), RESTORED)
            key_ids = [] if link is not None else journal.read(_living_keys)
            keys.destroy_keys(key_ids, RESTORED)
            if link is None:
                segments = journal.run(lambda db: poolrecords.end_all(db, RESTORED, clock.unix_s()))
            # Tallies say what became of its octets; a new secret is block 0 again, since both ends name it so.
            forget = f"DELETE FROM blocks WHERE block = 0 {where}"  # noqa: S608
            journal.run(lambda db: db.execute(forget, values))
        journal.tidy()
    finally:
        journal.close()
    return {"blocks": len(blocks), "keys": len(key_ids), "segments": segments}


def _living_keys(db: sqlite3.Connection) -> list[KeyId]:
    states = (KeyState.RESERVED.value, KeyState.STORED.value)
    query = (
        "SELECT key_id FROM initiated WHERE state IN (?1, ?2) UNION SELECT key_id FROM stored WHERE state IN (?1, ?2)"
    )
    return [KeyId(key_id) for (key_id,) in db.execute(query, states)]


def _tables(db: sqlite3.Connection) -> list[str]:
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    return [str(name) for (name,) in db.execute(query).fetchall()]


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if not 1 <= version <= len(MIGRATIONS):
        raise StoreError(
            f"{path}: version {version}, this qtrunk knows 1 to {len(MIGRATIONS)}; run the one that wrote it"
        )


def _copy_durably(source: Path, target: Path) -> None:
    with target.open("xb") as out:
        target.chmod(0o600)
        with source.open("rb") as octets:
            while part := octets.read(1 << 20):
                out.write(part)
    _sync(target)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    sync_directory(path.absolute().parent)


def _translated(path: Path, work: Callable[[], None]) -> None:
    try:
        work()
    except (sqlite3.Error, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise StoreError(f"{path}: {why}; nothing can be relied on there, remove it and try again") from error
