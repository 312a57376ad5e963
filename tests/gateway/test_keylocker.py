"""The key locker: what a KME gave once is not lost, not shown, and gone when it is used."""

import errno
import os
from pathlib import Path

import pytest

from qtrunk.base.errors import KeyNotFound, StoreError
from qtrunk.base.ids import KeyId
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.gateway.keylocker import KeyLocker

IDS = [KeyId(f"7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c1{digit}") for digit in range(4)]


@pytest.fixture
def materials():
    return {key_id: os.urandom(32) for key_id in IDS}


@pytest.fixture
def place(tmp_path, materials) -> Path:
    """A locker with two batches of two keys."""
    for ids in (IDS[:2], IDS[2:]):
        KeyLocker(tmp_path / "locker").receive(ids, 64, lambda ids=ids: _supplied(materials, ids))
    return tmp_path / "locker"


def _supplied(materials, ids):
    return [SuppliedKey(key_id=key_id, material=Secret(materials[key_id])) for key_id in ids]


def _octets(found):
    return {key_id: bytes(key.material.reveal()) for key_id, key in found.items()}


def test_another_process_finds_what_was_received(place, materials):
    assert _octets(KeyLocker(place).find(IDS)) == materials
    assert _octets(KeyLocker(place).find(IDS[1:3])) == {key_id: materials[key_id] for key_id in IDS[1:3]}
    assert KeyLocker(place).find([KeyId("00000000-0000-4000-8000-000000000000")]) == {}


def test_nothing_lies_there_in_clear_or_for_others(place, materials):
    for path in place.iterdir():
        assert not any(material in path.read_bytes() for material in materials.values())
        assert path.stat().st_mode & 0o777 == 0o600
    assert place.stat().st_mode & 0o777 == 0o700


def test_a_used_key_goes_and_its_neighbours_stay(place, materials):
    KeyLocker(place).forget([IDS[0], IDS[2], IDS[3]])
    assert _octets(KeyLocker(place).find(IDS)) == {IDS[1]: materials[IDS[1]]}
    assert len(list(place.glob("*.keys"))) == 1


def test_with_the_last_key_goes_the_key_that_sealed_them(place):
    KeyLocker(place).forget(IDS)
    assert {path.name for path in place.iterdir()} == {"lock"}


def test_a_fetch_that_fails_leaves_nothing(tmp_path):
    def refused():
        raise KeyNotFound("not found on KME")

    with pytest.raises(KeyNotFound):
        KeyLocker(tmp_path).receive(IDS, 128, refused)
    assert not list(tmp_path.glob("*.keys"))
    assert not list(tmp_path.glob("*.part"))


def test_keys_that_came_and_could_not_be_kept_are_told(tmp_path, materials, monkeypatch):
    def failing(_descriptor):
        raise OSError(errno.EIO, "Input/output error")

    def supplied():
        # From now on the disk fails.
        monkeypatch.setattr(os, "fsync", failing)
        return _supplied(materials, IDS)

    with pytest.raises(StoreError, match="4 keys that had come; they are lost"):
        KeyLocker(tmp_path).receive(IDS, 128, supplied)
    assert not list(tmp_path.glob("*.part"))


def test_keys_that_nobody_asked_for_are_not_taken_in(tmp_path, materials):
    kept = KeyLocker(tmp_path).receive(IDS[:1], 32, lambda: _supplied(materials, IDS))
    assert [key.key_id for key in kept] == IDS[:1]
    assert set(KeyLocker(tmp_path).find(IDS)) == set(IDS[:1])


def test_what_came_is_kept_even_if_more_was_promised(tmp_path, materials):
    with pytest.raises(StoreError, match=IDS[1]):
        KeyLocker(tmp_path).receive(IDS[:2], 64, lambda: _supplied(materials, IDS[:1]))
    assert set(KeyLocker(tmp_path).find(IDS)) == set(IDS[:1])


def test_every_changed_octet_of_a_batch_is_noticed(place, materials):
    path = next(place.glob("*.keys"))
    genuine = path.read_bytes()
    for at in range(len(genuine)):
        path.write_bytes(genuine[:at] + bytes([genuine[at] ^ 1]) + genuine[at + 1 :])
        with pytest.raises(StoreError, match="damaged"):
            KeyLocker(place).find(IDS)
    path.write_bytes(genuine)
    assert _octets(KeyLocker(place).find(IDS)) == materials


def test_a_lost_locker_key_is_told_and_never_replaced_over_its_keys(place):
    (place / "locker.key").unlink()
    with pytest.raises(StoreError, match=r"locker\.key is gone"):
        KeyLocker(place).find(IDS)
    with pytest.raises(StoreError, match=r"locker\.key is gone"):
        KeyLocker(place).receive(IDS[:1], 32, lambda: pytest.fail("no key may be fetched"))


def test_old_keys_are_purged_by_hand_and_only_they(place):
    old = sorted(place.glob("*.keys"))[0]
    os.utime(old, (1000, 1000))
    purged = KeyLocker(place).purge(2000)
    assert len(purged) == 2
    assert set(KeyLocker(place).find(IDS)) == set(IDS) - set(purged)
    assert KeyLocker(place).purge(1 << 40)
    assert {path.name for path in place.iterdir()} == {"lock"}


def test_what_a_killed_process_left_is_cleared_away(place, materials):
    (place / "0123456789abcdef.part").write_bytes(bytes(100))
    assert _octets(KeyLocker(place).find(IDS)) == materials
    assert not list(place.glob("*.part"))


def test_a_locker_that_is_not_there_is_empty(tmp_path):
    locker = KeyLocker(tmp_path / "none")
    assert locker.find(IDS) == {}
    locker.forget(IDS)
    assert locker.purge(1 << 40) == []
    assert not (tmp_path / "none").exists()
