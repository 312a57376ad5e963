"""Seals open where and with what they were made, and nowhere else; the KEK is made once and guarded."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrunk.base.errors import AuthenticationFailed, StoreError
from qtrunk.base.secret import Secret
from qtrunk.kms.seal import (
    SEAL_OVERHEAD_OCTETS,
    associated,
    fingerprint,
    load_or_make_kek,
    seal,
    sync_directory,
    unseal,
)

KEK = Secret(bytes(32))


@given(st.binary(max_size=300), st.binary(max_size=20))
def test_what_is_sealed_opens_at_its_place(data: bytes, place: bytes) -> None:
    sealed = seal(KEK, data, place)
    assert len(sealed) == len(data) + SEAL_OVERHEAD_OCTETS
    assert unseal(KEK, sealed, place) == Secret(data)


@given(st.integers(0, 8 * (16 + SEAL_OVERHEAD_OCTETS) - 1))
def test_a_seal_with_any_bit_changed_does_not_open(bit: int) -> None:
    sealed = bytearray(seal(KEK, bytes(16), b"here"))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(AuthenticationFailed):
        unseal(KEK, bytes(sealed), b"here")


def test_a_seal_does_not_open_elsewhere_or_under_another_kek() -> None:
    sealed = seal(KEK, b"material", b"here")
    with pytest.raises(AuthenticationFailed):
        unseal(KEK, sealed, b"there")
    with pytest.raises(AuthenticationFailed):
        unseal(Secret(b"\x01" * 32), sealed, b"here")


def test_the_same_material_is_never_sealed_alike() -> None:
    assert len({seal(KEK, bytes(16), b"") for _ in range(50)}) == 50


def test_associated_data_of_different_parts_differs() -> None:
    assert associated("ab", "c") != associated("a", "bc")
    assert associated("a") != associated("a", "")


def test_a_fingerprint_tells_material_place_and_kek() -> None:
    first = fingerprint(KEK, Secret(b"x" * 32), b"place")
    assert first == fingerprint(KEK, Secret(b"x" * 32), b"place")
    assert first != fingerprint(KEK, Secret(b"y" * 32), b"place")
    assert first != fingerprint(KEK, Secret(b"x" * 32), b"elsewhere")
    assert first != fingerprint(Secret(b"\x01" * 32), Secret(b"x" * 32), b"place")


def test_the_kek_is_made_once_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "kek"
    made = load_or_make_kek(path)
    assert len(made) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_make_kek(path) == made
    assert os.listdir(path.parent) == ["kek"]  # noqa: PTH208 (the draft is gone, too)


def test_two_keks_are_never_alike(tmp_path: Path) -> None:
    assert load_or_make_kek(tmp_path / "one") != load_or_make_kek(tmp_path / "two")


@pytest.mark.parametrize("octets", [b"", b"short", bytes(33)])
def test_a_kek_file_of_wrong_length_is_refused(tmp_path: Path, octets: bytes) -> None:
    path = tmp_path / "kek"
    path.write_bytes(octets)
    path.chmod(0o600)
    with pytest.raises(StoreError, match="32 needed"):
        load_or_make_kek(path)
    assert path.read_bytes() == octets


def test_a_kek_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kek"
    load_or_make_kek(path)
    path.chmod(0o640)
    with pytest.raises(StoreError, match="chmod 600"):
        load_or_make_kek(path)


def test_a_kek_behind_a_link_is_refused(tmp_path: Path) -> None:
    load_or_make_kek(tmp_path / "real")
    (tmp_path / "kek").symlink_to(tmp_path / "real")
    with pytest.raises(StoreError, match="KEK file"):
        load_or_make_kek(tmp_path / "kek")


def test_a_directory_can_be_made_durable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync_directory(tmp_path / "missing")
    sync_directory(tmp_path)
