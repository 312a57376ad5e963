"""Keys that an SAE received but could not use yet.

A KME gives a key once. If opening a file fails after that (the disk is full, the copy was tampered with), the key must
not be lost with it: it waits here, sealed with AES-256-GCM under a locker key (0600, in the SAE's directory), until the
file it belongs to has opened. So a forged copy that uses up the key at the KME does not destroy the genuine file.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qtrunk.base.errors import StoreError
from qtrunk.base.ids import KeyId
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret

_NONCE_OCTETS = 12
ENTRY_OCTETS_MAX = 4096
"""What one key may take on the disk, file system included."""


class KeyLocker:
    """One SAE's locker, a directory of mode 0700."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prepare(self, count: int) -> None:
        """Make sure that `count` keys can be written here, before they are fetched; StoreError if not."""
        try:
            self._locker_key()
            probe = self._directory / "probe"
            _write(probe, bytes(count * ENTRY_OCTETS_MAX))
            probe.unlink()
        except OSError as error:
            with suppress(OSError):
                (self._directory / "probe.part").unlink()
            raise StoreError(f"key locker {self._directory}: {error.strerror}; no key was fetched") from error

    def put(self, keys: Sequence[SuppliedKey]) -> None:
        """Keep keys, durably."""
        try:
            cipher = AESGCM(self._locker_key())
            for key in keys:
                nonce = os.urandom(_NONCE_OCTETS)
                sealed = nonce + cipher.encrypt(nonce, key.material.reveal(), key.key_id.encode())
                _write(self._path(key.key_id), sealed)
                key.material.wipe()
            _sync(self._directory)
        except OSError as error:
            raise StoreError(f"key locker {self._directory}: {error.strerror}") from error

    def missing(self, key_ids: Sequence[KeyId]) -> list[KeyId]:
        """Those that are not here."""
        return [key_id for key_id in key_ids if not self._path(key_id).exists()]

    def get(self, key_ids: Sequence[KeyId]) -> list[SuppliedKey]:
        """The keys with these IDs, all of which are here; StoreError for one that is damaged."""
        cipher = AESGCM(self._locker_key())
        found = []
        for key_id in key_ids:
            octets = self._path(key_id).read_bytes()
            try:
                material = cipher.decrypt(octets[:_NONCE_OCTETS], octets[_NONCE_OCTETS:], key_id.encode())
            except (InvalidTag, ValueError) as error:
                raise StoreError(f"key locker {self._directory}: key {key_id} is damaged; remove its file") from error
            found.append(SuppliedKey(key_id=key_id, material=Secret(material)))
        return found

    def forget(self, key_ids: Sequence[KeyId]) -> None:
        """The file has opened: overwrite and remove its keys."""
        for key_id in key_ids:
            path = self._path(key_id)
            if path.exists():
                with path.open("r+b") as out:
                    out.write(bytes(path.stat().st_size))
                    out.flush()
                    os.fsync(out.fileno())
                path.unlink()

    def _path(self, key_id: KeyId) -> Path:
        return self._directory / f"{key_id}.key"

    def _locker_key(self) -> bytes:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / "locker.key"
        if not path.exists():
            _write(path, AESGCM.generate_key(256))
            _sync(self._directory)
        return path.read_bytes()


def _write(path: Path, octets: bytes) -> None:
    """Whole or not at all, readable by the owner only."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(octets)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
