"""Keys that an SAE received but could not use yet.

A KME gives a key once. If opening a file fails after that (the disk is full, the copy was tampered with), the key must
not be lost with it: it waits here until the file it belongs to has opened. So a forged copy that uses up the key at the
KME does not destroy the genuine file. Room on the disk is taken before the KME is asked.

A directory (0700) of batches (0600), each written whole or not at all:

    magic, 4-octet length, key IDs (JSON list), 12-octet nonce, AES-256-GCM (materials as a msgpack list), its tag

with all before the nonce as associated data, under `locker.key`. When the last batch has gone, that key is shredded
too: what a disk may still hold of a removed batch cannot be read again. A lock file keeps two processes apart.

Errors: StoreError, whenever something cannot be kept or read.
"""

import fcntl
import os
import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qtrunk.base.errors import StoreError
from qtrunk.base.ids import KeyId
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness

MAGIC = b"qtrunk locker 1\n"
_NONCE_OCTETS = 12
_TAG_OCTETS = 16
_ENTRY_OCTETS = 48
"""What a key takes beside its material: its ID in JSON, the length of the material."""
_KEY_OCTETS = 32
_LENGTH = struct.Struct(">I")
_BATCH = "*.keys"


class KeyLocker:
    """One SAE's locker. The directory need not exist."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, key_ids: Sequence[KeyId]) -> dict[KeyId, SuppliedKey]:
        """Those of the keys that are here."""
        wanted = set(key_ids)
        if not self._directory.exists():
            return {}
        with self._locked("no key was fetched"):
            found: dict[KeyId, SuppliedKey] = {}
            for path in self._batches():
                if wanted & set(self._ids(path)):
                    found |= {key.key_id: key for key in self._keys(path) if key.key_id in wanted}
            return found

    def receive(
        self, key_ids: Sequence[KeyId], material_octets: int, fetch: Callable[[], Sequence[SuppliedKey]]
    ) -> list[SuppliedKey]:
        """Take room for keys of so many octets in all, `fetch` them, and return them when they are safely kept."""
        wanted = set(key_ids)
        room = len(MAGIC) + _LENGTH.size + _NONCE_OCTETS + _TAG_OCTETS + material_octets
        room += _ENTRY_OCTETS * (len(wanted) + 1)
        with self._locked("no key was fetched"), self._batch(room) as write:
            keys = [key for key in fetch() if key.key_id in wanted]
            try:
                write(keys)
            except OSError as error:
                raise StoreError(
                    f"key locker {self._directory}: {error.strerror} for {len(keys)} keys that had come; "
                    "they are lost, have the file sealed again"
                ) from error
        missing = wanted - {key.key_id for key in keys}
        if missing:
            raise StoreError(f"the key manager did not give key {min(missing)}, though it said that it gives all")
        return keys

    def forget(self, key_ids: Sequence[KeyId]) -> None:
        """The file has opened: its keys are of no more use."""
        unwanted = set(key_ids)
        if not self._directory.exists():
            return
        with self._locked("used keys may still lie there"):
            for path in self._batches():
                ids = set(self._ids(path))
                if ids <= unwanted:
                    _shred(path)
                elif ids & unwanted:
                    others = [key for key in self._keys(path) if key.key_id not in unwanted]
                    with self._batch(path.stat().st_size) as write:
                        write(others)
                    _shred(path)
            self._close_if_empty()

    def purge(self, received_before_unix_s: float) -> list[KeyId]:
        """Shred what was received before then, for whoever gave up on its files; the IDs of those keys."""
        purged: list[KeyId] = []
        if not self._directory.exists():
            return purged
        with self._locked("old keys may still lie there"):
            for path in self._batches():
                if path.stat().st_mtime < received_before_unix_s:
                    purged += self._ids(path)
                    _shred(path)
            self._close_if_empty()
        return purged

    # ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _batches(self) -> list[Path]:
        return sorted(self._directory.glob(_BATCH))

    def _ids(self, path: Path) -> list[KeyId]:
        return _parsed(path, path.read_bytes())[0]

    def _keys(self, path: Path) -> list[SuppliedKey]:
        ids, head, sealed = _parsed(path, path.read_bytes())
        try:
            plain = self._cipher().decrypt(sealed[:_NONCE_OCTETS], sealed[_NONCE_OCTETS:], head)
        except (InvalidTag, ValueError):
            _refuse(path)
        materials = msgspec.msgpack.decode(plain, type=list[bytearray])
        keys = [SuppliedKey(key_id=key_id, material=Secret(m)) for key_id, m in zip(ids, materials, strict=True)]
        for material in materials:
            material[:] = bytes(len(material))
        return keys

    @contextmanager
    def _batch(self, room: int) -> Iterator[Callable[[Sequence[SuppliedKey]], None]]:
        """A new batch with its room taken; it is there once it has been written, and never in part."""
        cipher = self._cipher()
        name = secrets.token_hex(8)
        part = self._directory / f"{name}.part"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as out:
                os.posix_fallocate(descriptor, 0, room)

                def write(keys: Sequence[SuppliedKey]) -> None:
                    if not keys:
                        return
                    out.write(_batch_octets(cipher, keys))
                    out.flush()
                    os.ftruncate(descriptor, out.tell())
                    os.fsync(descriptor)
                    part.replace(part.with_suffix(".keys"))
                    _sync(self._directory)

                yield write
        finally:
            part.unlink(missing_ok=True)

    # ── directory, lock, locker key ─────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _locked(self, outcome: str) -> Iterator[None]:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                for left in self._directory.glob("*.part"):
                    # Of a process that was killed: under the lock there is no other.
                    left.unlink()
                yield
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreError(
                f"key locker {self._directory}: {error.strerror}; {outcome}. Make room or correct its permissions"
            ) from error

    def _cipher(self) -> AESGCM:
        path = self._directory / "locker.key"
        if path.exists():
            octets = path.read_bytes()
            if len(octets) != _KEY_OCTETS:
                _refuse(path)
            return AESGCM(octets)
        if self._batches():
            raise StoreError(
                f"key locker {self._directory}: locker.key is gone, and with it the keys here; remove {_BATCH}"
            )
        octets = AESGCM.generate_key(8 * _KEY_OCTETS)
        part = path.with_suffix(".part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(octets)
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
        _sync(self._directory)
        return AESGCM(octets)

    def _close_if_empty(self) -> None:
        path = self._directory / "locker.key"
        if not self._batches() and path.exists():
            _shred(path)


def _batch_octets(cipher: AESGCM, keys: Sequence[SuppliedKey]) -> bytes:
    ids = msgspec.json.encode([key.key_id for key in keys])
    head = MAGIC + _LENGTH.pack(len(ids)) + ids
    nonce = randomness.octets(_NONCE_OCTETS)
    plain = bytearray(msgspec.msgpack.encode([key.material.reveal() for key in keys]))
    try:
        return head + nonce + cipher.encrypt(nonce, plain, head)
    finally:
        plain[:] = bytes(len(plain))


def _parsed(path: Path, octets: bytes) -> tuple[list[KeyId], bytes, bytes]:
    """Key IDs, all before the nonce, and all from the nonce on."""
    start = len(MAGIC) + _LENGTH.size
    if len(octets) < start or not octets.startswith(MAGIC):
        _refuse(path)
    (length,) = _LENGTH.unpack(octets[len(MAGIC) : start])
    head, sealed = octets[: start + length], octets[start + length :]
    try:
        ids = msgspec.json.decode(head[start:], type=list[str])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        _refuse(path)
    return [KeyId(key_id) for key_id in ids], head, sealed


def _refuse(path: Path) -> NoReturn:
    raise StoreError(f"key locker: {path} is damaged; restore it, or remove it to give up its keys")


def _shred(path: Path) -> None:
    with path.open("r+b") as out:
        out.write(bytes(path.stat().st_size))
        out.flush()
        os.fsync(out.fileno())
    path.unlink()
    _sync(path.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
