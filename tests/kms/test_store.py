"""The whole store: nothing spent twice or lost unrecorded, whatever happens to process, disk or files."""

import base64
import contextlib
import os
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kms_kit import KEK_OCTETS, LINK, StandingClock, give_block, material_of, qkd_key

from qtrunk.base.errors import KeyExhausted, KeyNotFound, StoreError
from qtrunk.base.ids import KeyId, LinkId, NodeId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.kms.store import KeyStore, Slice, StorageFullError
from qtrunk.stages import Role

Open = Callable[..., KeyStore]
MASTER, TARGET = SaeId("master"), SaeId("target")


def key_ids(first: int, count: int) -> list[KeyId]:
    return [KeyId(f"00000000-0000-4000-8000-{number:012d}") for number in range(first, first + count)]


def put(store: KeyStore, ids: list[KeyId], octets: bytes | None = None) -> None:
    keys = [(key_id, Secret(octets or key_id.encode()[-32:])) for key_id in ids]
    store.store_keys(keys, MASTER, [TARGET], [TARGET], 256, {}, 1e9)


# ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_store_opens_only_with_its_kek_and_for_its_node(
    open_store: Open, memory_path: Path, clock: StandingClock
) -> None:
    open_store("a").close()
    for node, kek in (("a", bytes(32)), ("b", KEK_OCTETS)):
        with pytest.raises(StoreError, match="KEK"):
            KeyStore.open(memory_path / "a", NodeId(node), Secret(kek), clock)
    with pytest.raises(StoreError, match="32 octets"):
        KeyStore.open(memory_path / "a", NodeId("a"), Secret(bytes(16)), clock)
    open_store("a")


def test_a_store_that_is_open_elsewhere_is_refused(open_store: Open) -> None:
    open_store("a")
    with pytest.raises(StoreError, match="in use"):
        open_store("a")


def test_a_directory_that_cannot_be_made_is_an_error_of_the_store(memory_path: Path) -> None:
    (memory_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"Not a directory|File exists"):
        KeyStore.open(memory_path / "file" / "store", NodeId("a"), Secret(KEK_OCTETS), StandingClock())


def test_segments_without_a_living_block_are_shredded_on_opening(open_store: Open, memory_path: Path) -> None:
    store = open_store("a")
    give_block(store, 1, 100)
    store.close()
    segments = memory_path / "a" / "segments"
    for orphan in (2, 3):
        shutil.copy(segments / f"{LINK}.1.seg", segments / f"{LINK}.{orphan}.seg")
    store = open_store("a")
    assert [path.name for path in segments.iterdir()] == [f"{LINK}.1.seg"]
    assert store.level(LINK).total_octets == 100


def test_a_block_whose_segment_is_gone_is_destroyed_on_opening(open_store: Open, memory_path: Path) -> None:
    store = open_store("a")
    give_block(store, 1, 100)
    give_block(store, 2, 100)
    store.allocate(LINK, Role.ALICE, 10)
    store.close()
    (memory_path / "a" / "segments" / f"{LINK}.1.seg").unlink()
    store = open_store("a")
    ledger = store.ledger(LINK)
    assert (ledger.destroyed, ledger.allocated, ledger.unaccounted) == ({"damaged": 90}, 10, 0)
    assert store.allocate(LINK, Role.ALICE, 10).slices == (Slice(2, 0, 10),)


# ── kill -9 ─────────────────────────────────────────────────────────────────────────────────────────────────

_NOTE = struct.Struct(">cQQ")


def _work_until_killed(directory: Path, pipe: int) -> None:
    """Allocate and collect for ever; note each thing after the store has returned it, as if it went out."""
    store = KeyStore.open(directory, NodeId("a"), Secret(KEK_OCTETS), StandingClock())
    block = store.last_block(LINK)
    number = 4 * block
    while True:
        block += 1
        give_block(store, block, 400)
        for _ in range(4):
            for piece in store.allocate(LINK, Role.ALICE, 37).slices:
                os.write(pipe, _NOTE.pack(b"a", piece.block << 32 | piece.offset, piece.length))
            number += 1
            put(store, key_ids(number, 1))
            found = store.collect(TARGET, MASTER, key_ids(number, 1))
            os.write(pipe, _NOTE.pack(b"c", number, len(found)))


def test_kill_9_at_any_instant_never_gives_anything_twice(memory_path: Path, clock: StandingClock) -> None:
    directory = memory_path / "a"
    octets_out: set[tuple[int, int]] = set()
    keys_out: set[int] = set()
    allocated = kill = 0
    # On a busy machine the first lives are too short for anything; each is longer than the last.
    while kill < 20 or len(keys_out) <= 20:
        source, sink = os.pipe()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                _work_until_killed(directory, sink)
            os._exit(1)
        os.close(sink)
        # Instants from the opening of the store to many rounds later.
        time.sleep(0.004 * (1 + kill) + 0.0007 * (kill * 7 % 11))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the worker failed by itself"
        with os.fdopen(source, "rb") as notes:
            for kind, what, length in _NOTE.iter_unpack(notes.read()):
                if kind == b"c":
                    assert what not in keys_out
                    keys_out.add(what)
                    continue
                fresh = {(what >> 32, (what & 0xFFFFFFFF) + position) for position in range(length)}
                assert not fresh & octets_out
                octets_out |= fresh
                allocated += length
        store = KeyStore.open(directory, NodeId("a"), Secret(KEK_OCTETS), clock)
        ledger = store.ledger(LINK)
        assert ledger.unaccounted == 0
        # One allocation per kill may be recorded and never have gone out; not one the other way round.
        assert 0 <= ledger.allocated - allocated <= 37 * (kill + 1)
        for number in sorted(keys_out)[-3:]:
            with pytest.raises(KeyNotFound):
                store.collect(TARGET, MASTER, key_ids(number, 1))
        for block in store.pending(LINK):
            store.destroy(LINK, block, "crash")
        living = {path.name for path in (directory / "segments").iterdir()}
        assert len(living) == store.level(LINK).blocks
        store.close()
        kill += 1


# ── nothing in clear ────────────────────────────────────────────────────────────────────────────────────────


def _forms(octets: bytes) -> list[bytes]:
    # Base64 depends on how the marker is aligned: look for the inner part of all three ways.
    aligned = [base64.b64encode(bytes(shift) + octets)[4:-4] for shift in range(3)]
    return [octets, octets.hex().encode(), octets.hex().upper().encode(), *aligned]


def test_key_material_is_in_no_file_in_clear(open_store: Open, memory_path: Path) -> None:
    store = open_store("a")
    give_block(store, 1, 10_000, 96)
    store.hold(qkd_key(2, 5_000))
    store.add_preshared(LINK, Secret(material_of(77, 96)))
    marker = material_of(88, 32)
    put(store, key_ids(1, 1), marker)
    put(store, key_ids(2, 1), marker)
    store.allocate(LINK, Role.ALICE, 1_000)
    store.auth_ledger(LINK, 96, 1.0).reserve(0.0)
    store.collect(TARGET, MASTER, key_ids(1, 1))
    everything = b"\0".join(path.read_bytes() for path in memory_path.rglob("*") if path.is_file())
    assert b"preshared" in everything, "the scan must see the store's files"
    searched = [material_of(1, 10_000)[at : at + 24] for at in range(0, 9_976, 499)]
    searched += [material_of(2, 24), material_of(77, 24), marker[:24], KEK_OCTETS[:24]]
    for octets in searched:
        for form in _forms(octets):
            assert form not in everything


def test_sealed_material_of_a_collected_key_leaves_the_database(open_store: Open, memory_path: Path) -> None:
    store = open_store("a")
    put(store, key_ids(1, 1))
    sealed = store._journal.read(lambda db: bytes(db.execute("SELECT sealed FROM stored").fetchone()[0]))

    def is_on_disk() -> bool:
        return any(sealed in path.read_bytes() for path in (memory_path / "a").glob("store.db*"))

    assert is_on_disk()
    store.collect(TARGET, MASTER, key_ids(1, 1))
    store.expire(0.0)
    assert not is_on_disk()


# ── the disk is full ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


def fill(path: Path) -> Path:
    filler = path / "filler"
    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as out:
        while True:
            out.write(bytes(4096))
    return filler


def test_a_full_disk_takes_no_new_key_but_what_is_there_drains(
    small_disk: Path, kek: Secret, clock: StandingClock
) -> None:
    store = KeyStore.open(small_disk / "a", NodeId("a"), kek, clock)
    give_block(store, 1, 20_000)
    put(store, key_ids(0, 600))
    filler = fill(small_disk)
    with pytest.raises(StorageFullError, match="no space"):
        store.hold(qkd_key(2, 200_000))
    assert store.last_block(LINK) == 1
    assert not (small_disk / "a" / "segments" / f"{LINK}.2.seg").exists()
    # Each of these takes more log than there is room for: the reserve and folding the log in make room.
    for number in range(600):
        assert len(store.collect(TARGET, MASTER, key_ids(number, 1))) == 1
        store.allocate(LINK, Role.ALICE, 10)
        if number % 100 == 0:
            fill(small_disk)
    ledger = store.ledger(LINK)
    assert (ledger.allocated, ledger.unaccounted) == (6_000, 0)
    filler.unlink()
    store.expire(0.0)
    assert (small_disk / "a" / "reserve").stat().st_size == 1 << 20
    store.hold(qkd_key(2, 200_000))
    assert store.pending(LINK) == [2]
    store.close()


def test_what_cannot_be_recorded_is_not_handed_out(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("a")
    give_block(store, 1, 400)
    put(store, key_ids(0, 2))
    store.reserve_keys(key_ids(5, 1), MASTER, [TARGET], 256, 1e9)
    store._journal.make_room()
    pages = store._journal.read(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    before = store.ledger(LINK), store.counts()
    # A file size limit below what is there already: every write to the log fails, as on a full disk.
    attempts = (
        lambda: store.allocate(LINK, Role.ALICE, 10),
        lambda: store.follow(LINK, Role.BOB, (Slice(1, 200, 10),)),
        lambda: store.collect(TARGET, MASTER, key_ids(0, 2)),
        lambda: store.deliver_initiator(key_ids(5, 1), {}),
        lambda: store.grant(LINK, Role.ALICE, 10),
        lambda: store.hold(qkd_key(2, 400)),
        lambda: store.destroy(LINK, 1, "test"),
        lambda: put(store, key_ids(9, 1)),
    )
    assert pages > 1
    with file_size_limit():
        for attempt in attempts:
            with pytest.raises(StoreError, match="nothing was recorded"):
                attempt()
    assert (store.ledger(LINK), store.counts()) == before
    assert store.allocate(LINK, Role.ALICE, 10).slices == (Slice(1, 0, 10),)
    assert len(store.collect(TARGET, MASTER, key_ids(0, 2))) == 2
    store.hold(qkd_key(2, 400))


@contextlib.contextmanager
def file_size_limit() -> Iterator[None]:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)


# ── threads ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_threads_take_turns_and_never_the_same_octets(open_store: Open) -> None:
    store = open_store("a")
    for block in range(1, 5):
        give_block(store, block, 2_000)
    put(store, key_ids(0, 200))
    taken: list[tuple[int, int]] = []
    collected: list[KeyId] = []
    failures: list[Exception] = []

    def allocate() -> None:
        try:
            while True:
                for piece in store.allocate(LINK, Role.ALICE, 33).slices:
                    taken.extend((piece.block, at) for at in range(piece.offset, piece.end))
        except KeyExhausted:
            return
        except Exception as error:
            failures.append(error)

    def collect() -> None:
        for key_id in key_ids(0, 200):
            with contextlib.suppress(KeyNotFound):
                collected.extend(key.key_id for key in store.collect(TARGET, MASTER, [key_id]))

    threads = [threading.Thread(target=work) for work in (allocate, collect) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(taken) == len(set(taken)) > 3_900
    assert sorted(collected) == key_ids(0, 200)
    assert store.ledger(LINK).unaccounted == 0


def test_the_key_of_a_link_that_is_removed_is_destroyed_with_the_reason_on_record(tmp_path: Path) -> None:
    store = KeyStore.open(tmp_path / "store", NodeId("a"), Secret(KEK_OCTETS), StandingClock())
    give_block(store, 1, 1000)
    give_block(store, 2, 500)
    store.hold(qkd_key(3, 300))
    store.allocate(LINK, Role.ALICE, 100)
    other = LinkId("a-c")
    store.hold(qkd_key(1, 200, link=other))
    store.destroy_link(LINK, "link removed")
    store.destroy_link(LINK, "link removed")
    ledger = store.ledger(LINK)
    assert (ledger.generated, ledger.pending, ledger.available, ledger.allocated) == (1800, 0, 0, 100)
    assert ledger.destroyed == {"link removed": 1700}
    assert store.block_record(LINK, 2)["reason"] == "link removed"
    assert store.ledger(other).pending == 200
    assert store.links() == [LINK, other]
    assert [path for path in (tmp_path / "store").rglob("*") if LINK in str(path) and path.is_file()] == []
    store.close()
