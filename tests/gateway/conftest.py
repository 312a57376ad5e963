"""Two key managers in one object, and one user's desk at both of their ends."""

import os
from pathlib import Path

import pytest

from qtrunk.base.errors import KeyExhausted, KeyNotFound, RequestRefused, SealedFileError
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.ports import SuppliedKey, SupplyStatus
from qtrunk.base.secret import Secret
from qtrunk.gateway import files
from qtrunk.gateway.keylocker import KeyLocker

BANK, VAULT = SaeId("bank"), SaeId("vault")


class Network:
    """What two KMEs do: fresh keys for one end, the same once for the other."""

    def __init__(self) -> None:
        self.pool_bits = 10_000_000
        self.fill_bps = 1000.0
        self.waiting: dict[str, bytes] = {}
        self.given = 0
        self.per_request_max = 128
        self.spoil = lambda keys: keys

    def status(self, _peer):
        return SupplyStatus(
            source_kme="a",
            target_kme="b",
            key_bits=256,
            stored_key_count=self.pool_bits // 256,
            key_count_max=10**6,
            keys_per_request_max=self.per_request_max,
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
        return self.spoil(keys)

    def get_keys_with_ids(self, peer, key_ids):
        if len(key_ids) > self.per_request_max:
            raise RequestRefused("key_IDs: too many")
        if peer != BANK or not set(key_ids) <= self.waiting.keys():
            raise KeyNotFound("not found on KME")
        return self.spoil([SuppliedKey(key_id=k, material=Secret(self.waiting.pop(k))) for k in key_ids])


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
        assert not list(self.directory.rglob("*.part"))

    def kept(self) -> list[Path]:
        """The batches in the locker."""
        return list((self.directory / "locker").glob("*.keys"))


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)
