"""The key store of one node: link pools and end-to-end keys, in one directory that one process owns.

    store.db       what happened to which key (SQLite, WAL, FULL)
    segments/      the sealed material of each living block of link key
    pools/         the sealed material of each living segment of end-to-end key
    consume/       which octets of which segment were given to whom (append-only)
    reserve        space given back when the disk is full
    lock           held while a process has the store

Every method that changes something is durable when it returns, unless it is called inside `transaction()`:
then all of them are when that ends, with one flush. Nothing that was read inside may leave the process
before. Methods may be called from several threads; they take turns.

The two ends of a link have two stores that never meet. They stay alike because both split blocks the same
way and each follows what the other allocates (see `kms.spending`).

Errors: StoreError (the disk does not take it, another process has the store, the KEK is the wrong one, a
newer version wrote it) and those of the parts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qtrunk.base.errors import AuthenticationFailed, StoreError
from qtrunk.base.ids import NodeId
from qtrunk.base.ports import Clock
from qtrunk.base.secret import Secret
from qtrunk.kms.endtoend import EndToEnd
from qtrunk.kms.exposure import Held, held
from qtrunk.kms.journal import Journal, StorageFullError
from qtrunk.kms.key import Allocation, AuthReservation, Ledger, PoolLevel, Slice
from qtrunk.kms.pools import RETRY_WINDOW_S, Pools
from qtrunk.kms.seal import KEK_OCTETS, associated, seal, unseal
from qtrunk.kms.segment import Segments
from qtrunk.kms.spending import AuthPool, Spending

__all__ = [
    "Allocation",
    "AuthPool",
    "AuthReservation",
    "KeyStore",
    "Ledger",
    "PoolLevel",
    "Slice",
    "StorageFullError",
]

_PROBE = b"this store belongs to this KEK"


class KeyStore(Spending, EndToEnd):
    """The keys of a node. `open` it; `close` it when the node stops."""

    pools: Pools
    """End-to-end key that lies ready."""

    @classmethod
    def open(
        cls, directory: Path, node: NodeId, kek: Secret, clock: Clock, retry_window_s: float = RETRY_WINDOW_S
    ) -> "KeyStore":
        """Open or create the store, and set right what a crash left behind."""
        if len(kek) != KEK_OCTETS:
            raise StoreError(f"key store {directory}: a KEK has {KEK_OCTETS} octets, not {len(kek)}")
        journal = Journal(directory)
        try:
            _check_kek(journal, directory, node, kek)
            store = cls(node, journal, Segments(directory / "segments", node, kek), kek, clock)
            store._recover_blocks()
            store._recover_keys()
            store.pools = Pools(node, journal, directory, kek, clock, retry_window_s)
            store.pools.recover()
        except OSError as error:
            journal.close()
            raise StoreError(f"key store {directory}: {error.strerror}; the node cannot open it") from error
        except BaseException:
            journal.close()
            raise
        return store

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Several calls, all or nothing, durable together when the block ends."""
        try:
            with self._journal.transaction():
                yield
        except StorageFullError:
            # What the caller did cannot be done again from here; let its next attempt find room.
            self._journal.make_room()
            raise

    def exposure(self) -> list[Held]:
        """What there is of end-to-end key, by how it came."""
        return held(self._journal, self.pools.living())

    def close(self) -> None:
        """Let another process have the store. Every change is on the disk already."""
        try:
            self.pools.close()
        finally:
            self._journal.close()


def _check_kek(journal: Journal, directory: Path, node: NodeId, kek: Secret) -> None:
    """A fresh store takes the KEK; an old one must have been made with it, at this node."""
    place = associated("probe", node)
    query = "SELECT value FROM meta WHERE name = 'probe'"
    row = journal.read(lambda db: db.execute(query).fetchone())
    if row is None:
        sealed = seal(kek, _PROBE, place)
        journal.run(lambda db: db.execute("INSERT INTO meta VALUES ('probe', ?)", (sealed,)))
        return
    try:
        unseal(kek, row[0], place)
    except AuthenticationFailed as error:
        raise StoreError(
            f"key store {directory}: not of node {node} under this KEK; restore the right KEK file"
        ) from error
