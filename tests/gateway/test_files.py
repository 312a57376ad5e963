"""Protected files: whatever is changed never opens, nothing is left of a failure, and no key is lost by one."""

import io
import os
import resource
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtrunk.base.errors import KeyExhausted, KeyNotFound, SealedFileError, StoreError
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.ports import SuppliedKey, SupplyStatus
from qtrunk.base.secret import Secret
from qtrunk.gateway import files, onetimepad, sealedfile
from qtrunk.gateway.keylocker import KeyLocker

BANK, VAULT = SaeId("bank"), SaeId("vault")
CHUNK = sealedfile.CHUNK_OCTETS


class Network:
    """What two KMEs do: fresh keys for one end, the same once for the other."""

    def __init__(self) -> None:
        self.pool_bits = 10_000_000
        self.fill_bps = 1000.0
        self.waiting: dict[str, bytes] = {}
        self.given = 0

    def status(self, _peer):
        return SupplyStatus(
            source_kme="a",
            target_kme="b",
            key_bits=256,
            stored_key_count=self.pool_bits // 256,
            key_count_max=10**6,
            keys_per_request_max=128,
            key_bits_max=8192,
            key_bits_min=64,
            additional_targets_max=0,
            fill_bps=self.fill_bps,
        )

    def get_keys(self, _peer, number, key_bits):
        if number * key_bits > self.pool_bits:
            raise KeyExhausted("not now", 1)
        self.pool_bits -= number * key_bits
        keys = []
        for _ in range(number):
            self.given += 1
            key_id, material = KeyId(f"00000000-0000-4000-8000-{self.given:012d}"), os.urandom(key_bits // 8)
            self.waiting[key_id] = material
            keys.append(SuppliedKey(key_id=key_id, material=Secret(material)))
        return keys

    def get_keys_with_ids(self, _peer, key_ids):
        if not set(key_ids) <= self.waiting.keys():
            raise KeyNotFound("not found on KME")
        return [SuppliedKey(key_id=k, material=Secret(self.waiting.pop(k))) for k in key_ids]


class Desk:
    """One user's folder, network and locker."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.network = Network()
        self.locker = KeyLocker(directory / "locker")
        self.said: list[str] = []
        self.plain, self.sealed, self.opened = (directory / name for name in ("plain", "plain.qsealed", "opened"))

    def plain_of(self, octets: bytes) -> Path:
        self.plain.write_bytes(octets)
        return self.plain

    def seal(self, octets: bytes, *, otp: bool = False) -> bytes:
        self.plain.write_bytes(octets)
        if otp:
            files.seal_file_otp(
                self.plain, self.sealed, self.network, BANK, VAULT, self.said.append, force=True, patience_s=5
            )
        else:
            files.seal_file(self.plain, self.sealed, self.network, BANK, VAULT, force=True)
        return self.sealed.read_bytes()

    def open(self, octets: bytes | None = None) -> bytes:
        if octets is not None:
            self.sealed.write_bytes(octets)
        files.open_file(self.sealed, self.opened, self.network, VAULT, self.locker, force=True)
        found = self.opened.read_bytes()
        self.opened.unlink()
        return found

    def must_refuse(self, octets: bytes) -> None:
        with pytest.raises(SealedFileError):
            self.open(octets)
        assert not self.opened.exists()
        assert not list(self.directory.glob(".*.part"))


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


@pytest.mark.parametrize("otp", [False, True])
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_what_was_sealed_opens_equal(desk, size, otp):
    desk.network.pool_bits = 100_000_000
    octets = os.urandom(size)
    sealed = desk.seal(octets, otp=otp)
    assert octets not in sealed or size < 4
    assert desk.open() == octets
    assert not list((desk.directory / "locker").glob("*-*.key")), "an opened file's key is gone"


@pytest.mark.parametrize("otp", [False, True])
def test_every_changed_octet_is_noticed_and_the_genuine_file_still_opens(desk, otp):
    octets = os.urandom(200)
    sealed = desk.seal(octets, otp=otp)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1 + place % 255
        with pytest.raises((SealedFileError, KeyNotFound)):
            desk.open(bytes(changed))
        assert not desk.opened.exists()
    assert desk.open(sealed) == octets


@pytest.mark.parametrize("otp", [False, True])
def test_every_cut_and_every_appendix_is_noticed(desk, otp):
    octets = os.urandom(100)
    sealed = desk.seal(octets, otp=otp)
    for length in range(len(sealed)):
        desk.must_refuse(sealed[:length])
    for appendix in (b"\0", sealed[-20:], os.urandom(100)):
        desk.must_refuse(sealed + appendix)
    assert desk.open(sealed) == octets


def test_chunks_cannot_be_moved_left_out_repeated_or_borrowed(desk):
    octets = os.urandom(2 * CHUNK + 100)
    sealed = desk.seal(octets)
    header = len(sealed) - (2 * (4 + CHUNK + 16) + 4 + 100 + 16)
    step = 4 + CHUNK + 16
    head, one, two, last = (
        sealed[:header],
        sealed[header : header + step],
        sealed[header + step : header + 2 * step],
        sealed[header + 2 * step :],
    )
    other = Desk(desk.directory / "other")
    other.directory.mkdir()
    borrowed = other.seal(octets)[header : header + step]
    for parts in (
        (head, two, one, last),
        (head, one, last),
        (head, one, two),
        (head, one),
        (head, one, two, two, last),
        (head, one, two, last, last),
        (head, borrowed, two, last),
        (head, last),
    ):
        desk.must_refuse(b"".join(parts))
    assert desk.open(sealed) == octets


def test_only_the_named_target_opens(desk):
    desk.seal(b"for the vault")
    with pytest.raises(SealedFileError, match="sealed for vault"):
        files.open_file(desk.sealed, desk.opened, desk.network, SaeId("grid"), desk.locker)
    assert desk.network.waiting, "a stranger's try must not use up the key"


def test_a_file_opens_once_and_then_its_key_is_gone(desk):
    sealed = desk.seal(b"once")
    assert desk.open() == b"once"
    with pytest.raises(KeyNotFound):
        desk.open(sealed)


def test_outputs_are_checked_before_a_key_is_spent(desk):
    desk.plain.write_bytes(b"x")
    desk.sealed.write_bytes(b"precious")
    with pytest.raises(SealedFileError, match="exists"):
        files.seal_file(desk.plain, desk.sealed, desk.network, BANK, VAULT)
    with pytest.raises(SealedFileError, match="source itself"):
        files.seal_file(desk.plain, desk.plain, desk.network, BANK, VAULT, force=True)
    with pytest.raises(SealedFileError, match="cannot be written"):
        files.seal_file(desk.plain, desk.directory / "no" / "where", desk.network, BANK, VAULT)
    with pytest.raises(SealedFileError, match="No such file"):
        files.seal_file(desk.directory / "missing", desk.sealed, desk.network, BANK, VAULT, force=True)
    desk.seal(b"x")
    desk.sealed.rename(desk.directory / "renamed")
    with pytest.raises(SealedFileError, match=r"does not end in \.qsealed"):
        files.open_file(desk.directory / "renamed", None, desk.network, VAULT, desk.locker)
    assert desk.network.given == 1


def test_the_one_time_pad_says_what_it_needs_and_waits_for_it(desk):
    desk.network.pool_bits = 8192 * 8
    desk.network.fill_bps = 10_000.0
    refill = threading.Timer(0.5, lambda: setattr(desk.network, "pool_bits", 8192 * 200))
    refill.start()
    octets = os.urandom(100_000)
    desk.seal(octets, otp=True)
    refill.join()
    (said,) = desk.said
    assert "802816 key bits are needed, 65536 are there; enough in about 74 s" in said
    assert desk.open() == octets


def test_without_key_the_one_time_pad_gives_up_and_leaves_nothing(desk):
    desk.network.pool_bits = desk.network.fill_bps = 0
    with pytest.raises(KeyExhausted):
        files.seal_file_otp(
            desk.plain_of(b"x"), desk.sealed, desk.network, BANK, VAULT, desk.said.append, patience_s=1.5
        )
    assert "not known" in desk.said[0]
    assert {path.name for path in desk.directory.iterdir()} == {"plain"}


def test_too_large_a_file_for_a_one_time_pad_is_refused():
    with pytest.raises(SealedFileError, match="AES-256-GCM"):
        onetimepad.need(onetimepad.SIZE_MAX + 1, Network().status(None))


def test_no_octet_of_a_one_time_pad_is_used_twice(desk):
    octets = bytes(30_000)
    sealed = desk.seal(octets, otp=True)
    # Of zeros the ciphertext is the pad itself: no 16 octets of it may come back.
    header = sealedfile.read_header(io.BytesIO(sealed))
    pad = sealed[len(header.octets) : -16]
    pieces = [pad[at : at + 16] for at in range(0, len(pad) - 15, 16)]
    assert len(set(pieces)) == len(pieces)


def test_a_full_disk_keeps_the_key_in_the_locker_and_the_file_opens_later(desk):
    octets = os.urandom(3 * CHUNK)
    desk.seal(octets)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * CHUNK, hard))
    try:
        with pytest.raises(SealedFileError, match="nothing was written"):
            desk.open()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not desk.opened.exists()
    assert not desk.network.waiting, "the KME gave its key"
    (kept,) = (desk.directory / "locker").glob("*-*.key")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert desk.open() == octets


def test_a_file_of_any_size_takes_the_same_memory(desk):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with desk.plain.open("wb") as out:
        out.truncate(256 << 20)
    files.seal_file(desk.plain, desk.sealed, desk.network, BANK, VAULT)
    files.open_file(desk.sealed, desk.opened, desk.network, VAULT, desk.locker)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "64 MiB more for 256 MiB of file"
    assert desk.opened.stat().st_size == 256 << 20


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=600))
def test_garbage_is_refused_as_a_header(octets):
    with pytest.raises(SealedFileError):
        sealedfile.read_header(io.BytesIO(octets))
    with pytest.raises(SealedFileError):
        sealedfile.read_header(io.BytesIO(sealedfile.MAGIC + len(octets).to_bytes(4, "big") + octets))


def test_a_key_locker_keeps_nothing_in_clear(tmp_path):
    locker = KeyLocker(tmp_path / "locker")
    material = os.urandom(32)
    key_id = KeyId("7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11")
    assert locker.missing([key_id]) == [key_id]
    locker.put([SuppliedKey(key_id=key_id, material=Secret(material))])
    assert all(material not in path.read_bytes() for path in (tmp_path / "locker").iterdir())
    (found,) = KeyLocker(tmp_path / "locker").get([key_id])
    assert bytes(found.material.reveal()) == material
    locker.forget([key_id])
    assert locker.missing([key_id]) == [key_id]


def test_keys_that_came_before_a_failure_are_not_fetched_again_nor_lost(desk):
    desk.network.pool_bits = 100_000_000
    octets = os.urandom(200_000)
    desk.seal(octets, otp=True)
    give, calls = desk.network.get_keys_with_ids, []

    def failing(peer, key_ids):
        calls.append(len(key_ids))
        if len(calls) == 2:
            raise KeyExhausted("the node went away", 1)
        return give(peer, key_ids)

    desk.network.get_keys_with_ids = failing
    with pytest.raises(KeyExhausted):
        desk.open()
    assert desk.open() == octets
    assert calls[0] == files.BATCH_KEYS
    assert sum(calls) == 196 + calls[1]


def test_a_locker_that_cannot_be_written_costs_no_key(desk):
    desk.seal(b"x" * 5000)
    (desk.directory / "locker").write_text("in the way")
    with pytest.raises(StoreError, match="no key was fetched"):
        desk.open()
    assert desk.network.waiting
