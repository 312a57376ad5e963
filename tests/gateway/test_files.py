"""Protected files: whatever is changed never opens, nothing is left of a failure, and no key is lost by one."""

import io
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from qtrunk.base.errors import KeyExhausted, KeyNotFound, SealedFileError, StoreError
from qtrunk.base.ids import SaeId
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.gateway import files, sealedfile

BANK, VAULT = SaeId("bank"), SaeId("vault")
CHUNK = sealedfile.CHUNK_OCTETS


@pytest.mark.parametrize("otp", [False, True])
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_what_was_sealed_opens_equal(desk, size, otp):
    desk.network.pool_bits = 100_000_000
    octets = os.urandom(size)
    sealed = desk.seal(octets, otp=otp)
    assert octets not in sealed or size < 4
    assert desk.open() == octets
    assert not desk.kept(), "an opened file's key is gone"


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
    borrowed = desk.seal(octets)[header : header + step]
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


@contextmanager
def _files_of_at_most(octets):
    """What a quota does: longer files cannot be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_key_in_the_locker_and_the_file_opens_later(desk):
    octets = os.urandom(3 * CHUNK)
    desk.seal(octets)
    with _files_of_at_most(2 * CHUNK), pytest.raises(SealedFileError, match="nothing was written"):
        desk.open()
    assert not desk.opened.exists()
    assert not desk.network.waiting, "the KME gave its key"
    (kept,) = desk.kept()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert desk.open() == octets


def test_without_room_in_the_locker_no_key_is_fetched(desk):
    octets = os.urandom(20_000)
    desk.seal(octets, otp=True)
    with _files_of_at_most(4096), pytest.raises(StoreError, match="no key was fetched"):
        desk.open()
    assert len(desk.network.waiting) == 20, "the KME still has every key"
    assert not list(desk.directory.rglob("*.part"))
    assert desk.open() == octets


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


def test_a_forged_file_that_draws_keys_of_others_costs_none_of_them(desk):
    first = desk.seal(b"first", otp=True)
    second = desk.seal(os.urandom(2000), otp=True)
    header = sealedfile.read_header(io.BytesIO(second))
    one = sealedfile.read_header(io.BytesIO(first)).key_ids[0]
    # Names the key of the one and a key of the other: both leave the KME for nothing.
    forged = sealedfile.header_octets(
        sealedfile.Header(
            mode=sealedfile.ONE_TIME_PAD,
            key_ids=[one, header.key_ids[0]],
            initiator="bank",
            target="vault",
            chunk_octets=CHUNK,
            size=5,
            salt="",
        )
    )
    desk.must_refuse(forged + bytes(5 + 16))
    assert len(desk.network.waiting) == len(header.key_ids) - 1
    assert desk.open(first) == b"first"
    assert len(desk.open(second)) == 2000
    assert not desk.kept()


@pytest.mark.parametrize("spoil", [lambda keys: [], lambda keys: keys * 2, lambda keys: [_short(keys[0])]])
def test_a_key_manager_that_gives_other_keys_than_asked_for_is_refused(desk, spoil):
    desk.network.spoil = spoil
    for otp in (False, True):
        with pytest.raises(SealedFileError, match="plain: the key manager gave"):
            desk.seal(b"x", otp=otp)
    assert {path.name for path in desk.directory.iterdir()} == {"plain"}


def _short(key):
    return SuppliedKey(key_id=key.key_id, material=Secret(bytes(key.material.reveal())[:-1]))


def test_a_key_manager_that_keeps_a_key_back_is_named(desk):
    desk.seal(b"x")
    desk.network.spoil = lambda keys: []
    with pytest.raises(StoreError, match="did not give key"):
        desk.open()
    assert not desk.opened.exists()


def test_what_came_to_lie_in_the_place_meanwhile_is_not_overwritten(desk):
    desk.plain.write_bytes(b"new")

    def rival(keys):
        desk.sealed.write_bytes(b"precious")
        return keys

    desk.network.spoil = rival
    with pytest.raises(SealedFileError, match="meanwhile"):
        files.seal_file(desk.plain, desk.sealed, desk.network, BANK, VAULT)
    assert desk.sealed.read_bytes() == b"precious"
    assert {path.name for path in desk.directory.iterdir()} == {"plain", "plain.qsealed"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_keys_come_loses_none_and_leaves_nothing(desk, number):
    octets = b"interrupted"
    desk.seal(octets)

    def interrupted(keys):
        signal.raise_signal(number)
        return keys

    desk.network.spoil = interrupted
    # A shell starts what it puts into the background with SIGINT ignored; then Python has no handler for it.
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            desk.open()
    finally:
        signal.signal(number, before)
    assert not desk.opened.exists()
    assert not list(desk.directory.rglob("*.part"))
    assert len(desk.kept()) == 1
    assert desk.open() == octets


def test_an_interrupt_while_chunks_are_written_leaves_nothing(desk, monkeypatch):
    def interrupted(*_args):
        raise KeyboardInterrupt

    desk.seal(b"x")
    desk.sealed.unlink()
    monkeypatch.setattr(sealedfile, "seal", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.seal_file(desk.plain, desk.sealed, desk.network, BANK, VAULT)
    assert {path.name for path in desk.directory.iterdir()} == {"plain"}


def test_outputs_are_for_the_owner_only(desk):
    desk.seal(b"x")
    files.open_file(desk.sealed, desk.opened, desk.network, VAULT, desk.locker)
    assert desk.sealed.stat().st_mode & 0o777 == desk.opened.stat().st_mode & 0o777 == 0o600


_ONE_CHUNK_AT_A_TIME = """
import io, os, resource, sys
from pathlib import Path
from qtrunk.base.secret import Secret
from qtrunk.gateway import sealedfile

plain, sealed, opened = (Path(sys.argv[1]) / name for name in ("plain", "sealed", "opened"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
key = Secret(os.urandom(32))
with plain.open("rb") as source, sealed.open("wb") as sink:
    sealedfile.seal(source, sink, "7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11", key, "bank", "vault")
with sealed.open("rb") as source, opened.open("wb") as sink:
    sealedfile.open_(source, sink, sealedfile.read_header(source), key)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_file_of_any_size_takes_the_same_memory(tmp_path):
    with (tmp_path / "plain").open("wb") as out:
        out.truncate(64 << 20)
    # A process of its own: the highest mark of this one may stand higher already.
    run = subprocess.run(
        [sys.executable, "-c", _ONE_CHUNK_AT_A_TIME, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert int(run.stdout) < 16 << 10, "KiB more, for 64 MiB of file"
    assert (tmp_path / "opened").stat().st_size == 64 << 20
