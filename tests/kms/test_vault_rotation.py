"""A new KEK: every key still opens, the old KEK opens nothing, and a kill at any step leaves a store that opens."""

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from kms_kit import LINK, StandingClock, give_block, material_of, qkd_key

from qtrunk.base.errors import StoreError
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.kms import poolrecords, segment
from qtrunk.kms.consume import COLLECTED, INITIATED
from qtrunk.kms.interwork.file import FILE_NAME, JournalFile
from qtrunk.kms.interwork.records import Received, ReceivedState
from qtrunk.kms.store import KeyStore
from qtrunk.kms.vault import methods, opened, rotation
from qtrunk.kms.vault.opened import Vault
from qtrunk.stages import Role

NODE = NodeId("a")
PHRASE = b"correct horse battery staple"
MASTER, TARGET = SaeId("master"), SaeId("target")
KEYS = [KeyId(f"00000000-0000-4000-8000-{number:012d}") for number in range(4)]


@pytest.fixture(autouse=True)
def quick_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ARGON2_TARGET_S", 0.0), ("ARGON2_ITERATIONS_MIN", 1), ("ARGON2_MEMORY_KIB", 1024)):
        monkeypatch.setattr(methods, name, value)


FOREIGN = Received(
    peer="elsewhere",
    key_id=KEYS[0],
    initiator=MASTER,
    targets=(TARGET,),
    state=ReceivedState.RELAYING,
    callback="",
    is_told=False,
    fingerprint=b"",
    material=Secret(bytes(range(32))),
)


def material(key_id: KeyId) -> bytes:
    return key_id.encode()[-32:]


@pytest.fixture
def vault(memory_path: Path, clock: StandingClock) -> Vault:
    """Of a store with three blocks, four keys and two unsealers."""
    made, _ = opened.create(memory_path / "vault.json", NODE, "lab", "file", {})
    made.add("night", "passphrase", {}, Secret(PHRASE))
    store = KeyStore.open(memory_path / "store", NODE, made.kek, clock)
    give_block(store, 1, 9_000)
    give_block(store, 2, 300)
    store.hold(qkd_key(3, 100))
    store.store_keys([(key, Secret(material(key))) for key in KEYS], MASTER, [TARGET], [TARGET], 256, {}, 1e9)
    for side in (INITIATED, COLLECTED):
        store.pools.add(side, MASTER, TARGET, 7, Secret(material_of(9, 64 + 640)), {}, 1e9)
    store.close()
    abroad = JournalFile(memory_path / FILE_NAME, NODE, made.kek, clock)
    abroad.put_received([FOREIGN])
    abroad.close()
    return made


def check_everything(directory: Path, kek: Secret, clock: StandingClock) -> None:
    """All that is in the store opens and is what it was."""
    store = KeyStore.open(directory / "store", NODE, kek, clock)
    for key, supplied in zip(KEYS, store.collect(TARGET, MASTER, KEYS), strict=True):
        assert bytes(supplied.material.reveal()) == material(key)
    taken = store.allocate(LINK, Role.ALICE, 4_600).material
    assert bytes(taken.reveal()) == material_of(1, 9_000)[:4_500] + material_of(2, 300)[:100]
    given = store.pools.take(MASTER, TARGET, 2, 32)
    assert b"".join(bytes(key.material.reveal()) for key in given) == material_of(9, 64 + 640)[64:128]
    again, _ = store.pools.redeem(TARGET, MASTER, [key.key_id for key in given])
    assert [key.material for key in again] == [key.material for key in given]
    assert all(store.pools.receipt(key.key_id) is not None for key in given)
    abroad = JournalFile(directory / FILE_NAME, NODE, kek, clock)
    (foreign,) = abroad.open_received()
    assert foreign.material == FOREIGN.material
    abroad.close()
    store.release(LINK, 3)
    assert store.level(LINK).blocks == 3
    assert store.ledger(LINK).destroyed == {}
    store.close()


def test_everything_opens_under_the_new_kek_and_nothing_under_the_old(
    vault: Vault, memory_path: Path, clock: StandingClock
) -> None:
    old = Secret(vault.kek.reveal())
    rotation.rotate(vault, memory_path / "store")
    assert vault.kek != old
    assert vault.previous is None
    with pytest.raises(StoreError, match="under this KEK"):
        KeyStore.open(memory_path / "store", NODE, old, clock)
    for name, given in (("lab", ()), ("night", (Secret(PHRASE),))):
        assert opened.open_with(vault.path, NODE, name, given).kek == vault.kek
    assert not old_boxes(memory_path / "store", old)
    check_everything(memory_path, vault.kek, clock)


def old_boxes(store: Path, old: Secret) -> int:
    """How many things open under the old KEK: first the probe's, then segments' and keys' as rotation finds them."""
    work = rotation.Rewrapping(store, NODE, None, old, old)  # type: ignore[arg-type]
    found = 0
    with closing(sqlite3.connect(store / "store.db")) as db:
        for key_id, sealed in db.execute("SELECT key_id, sealed FROM stored WHERE sealed IS NOT NULL"):
            found += work.box(sealed, rotation.associated("end-to-end key", NODE, key_id)) is not None
        for (sealed,) in db.execute("SELECT value FROM meta WHERE name = 'probe'"):
            found += work.box(sealed, rotation.associated("probe", NODE)) is not None
        for side, sealed in db.execute("SELECT side, id_key FROM pool_segments JOIN pools USING (pool)"):
            place = poolrecords.id_key_place(NODE, side, MASTER, TARGET, 7)
            found += work.box(sealed, place) is not None
    for path in (*(store / "segments").iterdir(), *(store / "pools").iterdir()):
        _, total, sealed_key = segment._HEADER.unpack(path.read_bytes()[: segment._HEADER.size])
        link, _, number = path.stem.rpartition(".")
        found += work.box(sealed_key, rotation.associated("segment", NODE, link, int(number), total)) is not None
    return found


def test_the_count_of_old_boxes_sees_them(vault: Vault, memory_path: Path) -> None:
    assert old_boxes(memory_path / "store", vault.kek) == 4 + 1 + 3 + 2 * 2


def test_a_removed_unsealer_opens_no_copy_of_the_new_file(vault: Vault, memory_path: Path) -> None:
    night = opened.open_with(vault.path, NODE, "night", (Secret(PHRASE),))
    vault.remove("night")
    rotation.rotate(vault, memory_path / "store")
    assert night.root != vault.root
    assert night.kek != vault.kek


def test_a_node_without_a_store_yet_can_rotate(vault: Vault, memory_path: Path, clock: StandingClock) -> None:
    shutil.rmtree(memory_path / "store")
    rotation.rotate(vault, memory_path / "store")
    KeyStore.open(memory_path / "store", NODE, vault.kek, clock).close()


def test_a_store_in_use_is_not_touched_and_the_change_waits(
    vault: Vault, memory_path: Path, clock: StandingClock
) -> None:
    store = KeyStore.open(memory_path / "store", NODE, vault.kek, clock)
    with pytest.raises(StoreError, match="in use"):
        rotation.rotate(vault, memory_path / "store")
    store.close()
    again = opened.open_with(vault.path, NODE, "lab", ())
    assert again.previous is not None
    rotation.resume(again, memory_path / "store")
    check_everything(memory_path, again.kek, clock)


def test_other_parts_of_the_store_take_part(vault: Vault, memory_path: Path) -> None:
    place = rotation.associated("elsewhere")
    box = memory_path / "box"
    box.write_bytes(rotation.seal(vault.kek, b"pool", place))

    def pool(work: rotation.Rewrapping) -> None:
        fresh = work.box(box.read_bytes(), place)
        assert fresh is not None
        assert work.box(fresh, place) is None, "what is done is not done again"
        box.write_bytes(fresh)

    rotation.rotate(vault, memory_path / "store", (*rotation.REWRAPS, pool))
    assert bytes(rotation.unseal(vault.kek, box.read_bytes(), place).reveal()) == b"pool"


# ── kill -9 at every step ───────────────────────────────────────────────────────────────────────────────────


def killing(nth: int) -> None:
    """From now on the process dies before its `nth` flush, rename, overwriting or unlinking."""
    left = [nth]

    def dying(call: Callable[..., object]) -> Callable[..., object]:
        def count(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return count

    for name in ("fsync", "replace", "rename", "pwrite", "unlink", "link", "open", "close"):
        setattr(os, name, dying(getattr(os, name)))
    # The commit of the database is a step of its own: SQLite does not go through `os`.
    transaction = rotation.Journal.run
    rotation.Journal.run = dying(dying(transaction))  # type: ignore[method-assign]
    rotation.Journal.tidy = dying(rotation.Journal.tidy)  # type: ignore[method-assign]


def test_a_kill_at_every_step_leaves_a_store_that_opens(vault: Vault, memory_path: Path, clock: StandingClock) -> None:
    olds, interrupted, steps = Secret(vault.kek.reveal()), 0, 0
    (key_file,) = memory_path.glob("vault-lab-*.key")
    is_over = False
    while not is_over:
        place = memory_path / f"try-{steps}"
        place.mkdir()
        shutil.copytree(memory_path / "store", place / "store")
        for name in ("vault.json", FILE_NAME):
            shutil.copy(memory_path / name, place / name)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                mine = opened.open_with(place / "vault.json", NODE, "lab", ())
                killing(steps)
                rotation.rotate(mine, place / "store")
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        is_over = os.WIFEXITED(status)
        assert not is_over or os.WEXITSTATUS(status) == 0, "the rotation failed by itself"
        again = opened.open_with(place / "vault.json", NODE, "lab", ())
        interrupted += again.previous is not None
        # And a second kill, in the middle of going on.
        if again.previous is not None and steps % 3 == 0:
            child = os.fork()
            if child == 0:
                killing(steps // 3)
                rotation.resume(again, place / "store")
                os._exit(0)
            os.waitpid(child, 0)
            again = opened.open_with(place / "vault.json", NODE, "lab", ())
        rotation.resume(again, place / "store")
        assert is_over <= (again.kek != olds)
        check_everything(place, again.kek, clock)
        shutil.rmtree(place)
        steps += 1
    assert key_file.exists()
    assert interrupted > 10, "the kills must fall into the middle, too"
