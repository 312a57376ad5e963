"""The vault file: JSON that names who may unseal a node, and holds the KEK only wrapped.

    version     1
    vault       identifier of this vault, 32 hexadecimal digits; what belongs to one vault opens in no other
    node        the node it belongs to
    unsealers   for each: name, method, parameters, and two boxes
                wrapped   the vault's root key under the wrapping key that the method gives
                kept      that wrapping key under the root key, so that a new root key can be wrapped for all
                          unsealers without asking any of them
    keks        under the root key: the KEK, and while it is being changed the previous one behind it

A box is `kms.seal.seal`: AES-256-GCM under a key that is used once. Its associated data binds vault, node, name,
method and parameters, so that nothing in the file can be moved or weakened. The root key is there so that a KEK that
somebody knows (an old one that lay in a bare file) opens nothing of the vault.

The file is written under another name, flushed, and renamed; what the old one held is overwritten afterwards.

Errors: StoreError (the file is missing, unreadable, of another node or version, or cannot be written).
"""

import os
import stat
from pathlib import Path

import msgspec

from qtrunk.base.errors import StoreError
from qtrunk.base.ids import NodeId
from qtrunk.crypto import randomness
from qtrunk.kms.seal import associated, sync_directory

VERSION = 1
OCTETS_MAX = 1 << 20
UNSEALERS_MAX = 16

Parameters = dict[str, str | int]


class Unsealer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to open the vault."""

    name: str
    method: str
    parameters: Parameters
    wrapped: bytes
    kept: bytes


class VaultFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file says."""

    version: int
    vault: str
    node: str
    unsealers: list[Unsealer]
    keks: bytes

    def unsealer(self, name: str) -> Unsealer | None:
        """The unsealer of that name."""
        return next((entry for entry in self.unsealers if entry.name == name), None)

    def kek_place(self) -> bytes:
        """What binds the KEKs to their place."""
        return associated("vault keks", self.vault, self.node)


def unsealer_place(vault: str, node: str, name: str, method: str, parameters: Parameters, box: str) -> bytes:
    """What binds a box of an unsealer to its place."""
    told = msgspec.json.encode(parameters, order="sorted")
    return associated("vault unsealer", vault, node, name, method, told, box)


def read(path: Path, node: NodeId) -> VaultFile:
    """The vault file of a node."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as source:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise StoreError(f"vault {path}: must be this user's own file that nobody else can write")
            octets = source.read(OCTETS_MAX + 1)
    except OSError as error:
        raise StoreError(
            f"vault {path}: {error.strerror}; restore the file, or make one with `qtrunk vault init`"
        ) from (error)
    try:
        version = msgspec.json.decode(octets, type=_Version).version
        if version != VERSION:
            raise StoreError(f"vault {path}: version {version}, this qtrunk knows {VERSION}; run the one that wrote it")
        found = msgspec.json.decode(octets, type=VaultFile)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StoreError(f"vault {path}: not a vault file ({error}); restore the right one") from error
    if found.node != node:
        raise StoreError(f"vault {path}: of node {found.node}, not of {node}; restore the right one")
    return found


def write(path: Path, file: VaultFile, *, is_new: bool = False) -> None:
    """Durable on return and whole at every moment; `is_new` refuses to replace a file."""
    draft = path.with_name(f".{path.name}.{randomness.octets(8).hex()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(msgspec.json.format(msgspec.json.encode(file)))
                out.flush()
                os.fsync(out.fileno())
            if is_new:
                os.link(draft, path)
                sync_directory(path.parent)
            else:
                _replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError as error:
        raise StoreError(f"vault {path}: there is one already; nothing was changed") from error
    except OSError as error:
        raise StoreError(
            f"vault {path}: {error.strerror}; see `qtrunk vault status` whether the change came to be"
        ) from error


def shred(path: Path) -> None:
    """Overwrite a small file and remove it; nothing to do when it is gone. OSError when the disk refuses."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        _blank(handle)
    finally:
        os.close(handle)
    path.unlink()
    sync_directory(path.parent)


class _Version(msgspec.Struct):
    version: int


def _replace(draft: Path, path: Path) -> None:
    old = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        draft.replace(path)
        sync_directory(path.parent)
        # The old file has no name any more; what it wrapped must not wait on the disk for a lost passphrase.
        _blank(old)
    finally:
        os.close(old)


def _blank(handle: int) -> None:
    os.pwrite(handle, bytes(os.fstat(handle).st_size), 0)
    os.fsync(handle)
