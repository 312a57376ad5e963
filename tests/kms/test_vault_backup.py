"""A backup has the records and no key; what comes back from it gives no octet a second time."""

import base64
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from kms_kit import KEK_OCTETS, LINK, StandingClock, give_block, material_of, qkd_key

from qtrunk.base.errors import KeyExhausted, KeyNotFound, StoreError
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.kms.consume import COLLECTED, INITIATED
from qtrunk.kms.schema import MIGRATIONS
from qtrunk.kms.store import KeyStore
from qtrunk.kms.vault import backup
from qtrunk.stages import Role

Open = Callable[..., KeyStore]
NODE = NodeId("a")
MASTER, TARGET = SaeId("master"), SaeId("target")
KEYS = [KeyId(f"00000000-0000-4000-8000-{number:012d}") for number in range(1, 5)]
FIXTURES = Path(__file__).parent / "fixtures"


def fill(store: KeyStore) -> list[KeyId]:
    """Blocks, keys, and a pool; the IDs of the keys that the pool gave out."""
    store.add_preshared(LINK, Secret(material_of(0, 192)))
    give_block(store, 1, 600, 96)
    store.hold(qkd_key(2, 200))
    store.charge(LINK, 1e-10, 1.0)
    store.allocate(LINK, Role.ALICE, 50)
    keys = [(key, Secret(key.encode()[-32:])) for key in KEYS[:3]]
    store.store_keys(keys, MASTER, [TARGET], [TARGET], 256, {"hops": 1}, 1e9)
    store.collect(TARGET, MASTER, KEYS[:1])
    store.reserve_keys(KEYS[3:], MASTER, [TARGET], 256, 1e9)
    for side, octets in ((INITIATED, 64 + 640), (COLLECTED, 64 + 320)):
        store.pools.add(side, MASTER, TARGET, 7, Secret(material_of(9, octets)), {"hops": 1}, 1e9)
    taken = store.pools.take(MASTER, TARGET, 3, 32)
    store.pools.flush()
    store.pools.checkpoint()
    return [key.key_id for key in taken]


@pytest.fixture
def pool_keys(open_store: Open) -> list[KeyId]:
    return fill(open_store("a"))


@pytest.fixture
def copy(pool_keys: list[KeyId], memory_path: Path) -> Path:
    """A backup of a store that goes on living."""
    backup.backup(memory_path / "a", memory_path / "backup.db")
    return memory_path / "backup.db"


def test_a_backup_holds_no_key_and_nothing_that_a_kek_opens(copy: Path, memory_path: Path) -> None:
    octets = copy.read_bytes()
    with closing(sqlite3.connect(memory_path / "a" / "store.db")) as db:
        sealed = [bytes(row[0]) for row in db.execute("SELECT sealed FROM stored WHERE sealed IS NOT NULL")]
        sealed += [bytes(row[0]) for row in db.execute("SELECT value FROM meta WHERE name = 'probe'")]
        sealed += [bytes(row[0]) for row in db.execute("SELECT id_key FROM pool_segments")]
        marks = [bytes(row[0]) for row in db.execute("SELECT fingerprint FROM stored")]
    assert (len(sealed), len(marks)) == (5, 3)
    # The store's own file has them: the search can find.
    stored = b"".join(path.read_bytes() for path in (memory_path / "a").glob("store.db*"))
    assert all(box in stored for box in (*sealed, *marks))
    for hidden in (*sealed, *marks, material_of(1, 24), material_of(0, 24), material_of(9, 24)):
        assert hidden not in octets
        assert base64.b64encode(hidden)[4:-4] not in octets
    assert KEYS[1].encode() in octets
    assert copy.stat().st_mode & 0o777 == 0o600


def test_what_comes_back_has_its_records_and_not_one_key(
    copy: Path, pool_keys: list[KeyId], memory_path: Path, clock: StandingClock
) -> None:
    assert backup.restore(copy, memory_path / "back", NODE, clock) == {"blocks": 3, "keys": 3, "segments": 2}
    store = KeyStore.open(memory_path / "back", NODE, Secret(bytes(32)), clock)
    ledger = store.ledger(LINK)
    assert ledger.destroyed == {"restored": 192 + 550 + 200}
    assert (ledger.generated, ledger.allocated, ledger.unaccounted) == (992, 50, 0)
    assert store.epsilon(LINK) == pytest.approx(1e-10)
    assert store.last_block(LINK) == 2
    assert store.counts() == {
        "initiated destroyed restored": 1,
        "initiated reserved": 0,
        "shredding overdue": 0,
        "stored delivered": 1,
        "stored destroyed restored": 2,
        "stored stored": 0,
    }
    receipts = [store.receipt(key) for key in KEYS]
    assert [r["stored"]["state"] for r in receipts[:3]] == ["delivered", "destroyed", "destroyed"]
    assert receipts[0]["stored"]["receipt"] == {"hops": 1}
    with pytest.raises(KeyExhausted):
        store.allocate(LINK, Role.ALICE, 1)
    for key in KEYS[:3]:
        with pytest.raises(KeyNotFound):
            store.collect(TARGET, MASTER, [key])
    with pytest.raises(StoreError, match="used before"):
        store.hold(qkd_key(2, 200))
    with pytest.raises(StoreError, match="used before"):
        store.reserve_keys(KEYS[3:], MASTER, [TARGET], 256, 1e9)
    with pytest.raises(StoreError, match="used before"):
        store.store_keys([(KEYS[1], Secret(bytes(32)))], MASTER, [TARGET], [TARGET], 256, {}, 1e9)
    for side, delivered in ((INITIATED, 96), (COLLECTED, 0)):
        pool = store.pools.ledgers()[side, MASTER, TARGET]
        assert (pool.delivered, pool.available, pool.unaccounted) == (delivered, 0, 0)
        assert pool.destroyed == {"restored": pool.filled - 64 - delivered}
    with pytest.raises(KeyExhausted):
        store.pools.take(MASTER, TARGET, 1, 32)
    with pytest.raises(StoreError, match="was here before"):
        store.pools.add(INITIATED, MASTER, TARGET, 7, Secret(bytes(128)), {}, 1e9)
    assert all(store.pools.receipt(key_id) is None for key_id in pool_keys)
    # The link begins anew: another secret, numbers that go on.
    store.add_preshared(LINK, Secret(bytes(range(192))))
    taken = store.auth_ledger(LINK, 96, 1.0).reserve(0.0)
    assert (taken.block, bytes(taken.material.reveal())) == (0, bytes(range(96)))
    give_block(store, 3, 100)
    assert bytes(store.allocate(LINK, Role.ALICE, 50).material.reveal()) == material_of(3, 50)
    assert store.ledger(LINK).unaccounted == 0
    store.close()


def test_a_peer_gives_up_one_link_and_keeps_the_rest(open_store: Open, memory_path: Path, clock: StandingClock) -> None:
    store = open_store("a")
    fill(store)
    other = qkd_key(1, 300, link="a-c")
    store.hold(other)
    store.release(other.link, 1)
    with pytest.raises(StoreError, match="in use"):
        backup.begin_anew(memory_path / "a", NODE, LINK, clock)
    store.close()
    assert backup.begin_anew(memory_path / "a", NODE, LINK, clock) == {"blocks": 3, "keys": 0, "segments": 0}
    assert [path.name for path in (memory_path / "a" / "segments").iterdir()] == ["a-c.1.seg"]
    store = open_store("a")
    assert store.ledger(LINK).destroyed == {"restored": 192 + 550 + 200}
    assert store.ledger(other.link).available == 300
    assert len(store.collect(TARGET, MASTER, KEYS[1:3])) == 2
    store.add_preshared(LINK, Secret(bytes(range(192))))
    assert store.level(LINK).auth_octets == 192
    with pytest.raises(StoreError, match="none"):
        backup.begin_anew(memory_path / "nowhere", NODE, LINK, clock)


def test_a_store_is_never_replaced_and_no_copy_of_one_is_taken(
    copy: Path, memory_path: Path, clock: StandingClock
) -> None:
    with pytest.raises(StoreError, match="exists"):
        backup.backup(memory_path / "a", copy)
    with pytest.raises(StoreError, match="never replaces"):
        backup.restore(copy, memory_path / "a", NODE, clock)
    raw = memory_path / "raw.db"
    with closing(sqlite3.connect(memory_path / "a" / "store.db")) as db, closing(sqlite3.connect(raw)) as out:
        db.backup(out)
        out.execute("PRAGMA journal_mode = DELETE").fetchone()
    with pytest.raises(StoreError, match="must never be put back"):
        backup.restore(raw, memory_path / "back", NODE, clock)
    (memory_path / "junk").write_bytes(bytes(100))
    with pytest.raises(StoreError, match="back"):
        backup.restore(memory_path / "junk", memory_path / "back", NODE, clock)
    assert not (memory_path / "back" / "store.db").exists()
    shutil.copytree(memory_path / "a" / "segments", memory_path / "back" / "segments")
    with pytest.raises(StoreError, match="another store"):
        backup.restore(copy, memory_path / "back", NODE, clock)


def test_a_table_that_nobody_classed_stops_a_backup(open_store: Open, memory_path: Path) -> None:
    store = open_store("a")
    store._journal.run(lambda db: db.execute("CREATE TABLE boxes (sealed BLOB)"))
    with pytest.raises(StoreError, match="table boxes"):
        backup.backup(memory_path / "a", memory_path / "backup.db")
    assert not (memory_path / "backup.db").exists()


def test_every_table_of_the_schema_is_classed(open_store: Open, memory_path: Path) -> None:
    open_store("a").close()
    with closing(sqlite3.connect(memory_path / "a" / "store.db")) as db:
        assert set(backup._tables(db)) == {*backup.RECORDS, *backup.STRIPPED}


# ── stores of older versions ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", [2])
def test_a_store_of_an_older_version_opens_and_its_keys_are_right(
    version: int, memory_path: Path, clock: StandingClock, kek: Secret
) -> None:
    with tarfile.open(FIXTURES / f"store-v{version}.tar.xz") as archive:
        archive.extractall(memory_path, filter="data")
    with closing(sqlite3.connect(memory_path / "store" / "store.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (version,)
    assert kek == Secret(KEK_OCTETS)
    store = KeyStore.open(memory_path / "store", NODE, kek, clock)
    assert store._journal.read(lambda db: db.execute("PRAGMA user_version").fetchone()) == (len(MIGRATIONS),)
    ledger = store.ledger(LINK)
    assert (ledger.generated, ledger.pending, ledger.available) == (1_292, 200, 896)
    assert (ledger.allocated, ledger.authentication, ledger.unaccounted) == (100, 96, 0)
    # Block 1: 96 octets for authentication, then 252 of Alice's, of which 100 are gone.
    taken = store.allocate(LINK, Role.ALICE, 200).material
    assert bytes(taken.reveal()) == material_of(1, 600)[196:348] + material_of(2, 300)[:48]
    assert bytes(store.auth_ledger(LINK, 96, 1.0).reserve(0.0).material.reveal()) == material_of(0, 192)[96:]
    for key, supplied in zip(KEYS[1:3], store.collect(TARGET, MASTER, KEYS[1:3]), strict=True):
        assert bytes(supplied.material.reveal()) == key.encode()[-32:]
    with pytest.raises(KeyNotFound):
        store.collect(TARGET, MASTER, KEYS[:1])
    store.release(LINK, 3)
    assert store.level(LINK).pending_octets == 0
    store.close()
