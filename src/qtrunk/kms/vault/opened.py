"""A vault that is unsealed: the KEK for the store, and the root key with which the vault itself is changed.

Errors: StoreError (the file), RequestRefused (an option; says which), AuthenticationFailed (what was given does not
open).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from qtrunk.base.errors import AuthenticationFailed, RequestRefused, StoreError
from qtrunk.base.ids import NodeId
from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness
from qtrunk.kms.seal import KEK_OCTETS, seal, unseal
from qtrunk.kms.vault import vaultfile
from qtrunk.kms.vault.methods import About, Credential, KeyFile, Method, Passphrase, Shares
from qtrunk.kms.vault.token import Token
from qtrunk.kms.vault.vaultfile import UNSEALERS_MAX, Parameters, Unsealer, VaultFile, unsealer_place

METHODS: Mapping[str, Method] = {
    "passphrase": Passphrase(),
    "shares": Shares(),
    "pkcs11": Token(),
    "systemd": Credential(),
    "file": KeyFile(),
}
ROOT_OCTETS = 32
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


@dataclass(slots=True)
class Vault:
    """What is in memory while a node is unsealed. `wipe` it to seal."""

    path: Path
    node: NodeId
    root: Secret
    kek: Secret
    previous: Secret | None
    """The KEK before, while what it wrapped may not all be under the new one: `rotation.resume` before use."""

    def add(self, name: str, method: str, options: Mapping[str, str | int], given: Secret | None) -> list[Secret]:
        """One more way to unseal; the shares to hand out, if its method makes some. Durable on return."""
        file = vaultfile.read(self.path, self.node)
        if file.unsealer(name) is not None:
            raise RequestRefused(f"name: there is an unsealer {name} already")
        if len(file.unsealers) >= UNSEALERS_MAX:
            raise RequestRefused(f"name: a vault has at most {UNSEALERS_MAX} unsealers; remove one first")
        entry, shares = _made(file.vault, self, name, method, options, given)
        vaultfile.write(self.path, replace(file, unsealers=[*file.unsealers, entry]))
        return shares

    def remove(self, name: str) -> None:
        """Its holder opens this vault file no more. An old copy of the file still opens: rotate afterwards."""
        file = vaultfile.read(self.path, self.node)
        gone = file.unsealer(name)
        if gone is None:
            raise RequestRefused(f"name: no unsealer {name}; unsealers: {', '.join(e.name for e in file.unsealers)}")
        if len(file.unsealers) == 1:
            raise RequestRefused(f"name: {name} is the last unsealer; nobody could open the store. Add another first")
        vaultfile.write(self.path, replace(file, unsealers=[e for e in file.unsealers if e.name != name]))
        if gone.method == "file":
            _shred(Path(str(gone.parameters["path"])))

    def begin_rotation(self) -> None:
        """A new KEK and a new root key, wrapped for every unsealer; the old KEK stays known until `end_rotation`."""
        if self.previous is not None:
            raise StoreError(f"vault {self.path}: the KEK is being changed already; finish that first")
        file = vaultfile.read(self.path, self.node)
        root, kek = Secret(randomness.octets(ROOT_OCTETS)), Secret(randomness.octets(KEK_OCTETS))
        entries: list[Unsealer] = []
        for entry in file.unsealers:
            wrapping = unseal(self.root, entry.kept, _place(file, entry, "kept"))
            entries.append(_entry(file, root, entry.name, entry.method, entry.parameters, wrapping))
            wrapping.wipe()
        keks = _seal_keks(file, root, kek, self.kek)
        vaultfile.write(self.path, replace(file, unsealers=entries, keks=keks))
        self.root.wipe()
        self.root, self.kek, self.previous = root, kek, self.kek

    def end_rotation(self) -> None:
        """Forget the old KEK; nothing may be under it any more."""
        file = vaultfile.read(self.path, self.node)
        vaultfile.write(self.path, replace(file, keks=_seal_keks(file, self.root, self.kek, None)))
        if self.previous is not None:
            self.previous.wipe()
            self.previous = None

    def wipe(self) -> None:
        """Overwrite every key in memory."""
        for secret in (self.root, self.kek, self.previous):
            if secret is not None:
                secret.wipe()


def create(
    path: Path,
    node: NodeId,
    name: str,
    method: str,
    options: Mapping[str, str | int],
    given: Secret | None = None,
    previous: Secret | None = None,
) -> tuple[Vault, list[Secret]]:
    """A new vault file with one unsealer and a fresh KEK; `previous` is that of a store that is there already.

    With it, as after every change of KEK, `rotation.resume` must be called before the store is opened.
    """
    if path.exists():
        raise StoreError(f"vault {path}: there is one already; nothing was changed")
    fresh = (Secret(randomness.octets(octets)) for octets in (ROOT_OCTETS, KEK_OCTETS))
    vault = Vault(path, node, next(fresh), next(fresh), previous)
    file = VaultFile(vaultfile.VERSION, randomness.octets(16).hex(), node, [], b"")
    entry, shares = _made(file.vault, vault, name, method, options, given)
    keks = _seal_keks(file, vault.root, vault.kek, previous)
    vaultfile.write(path, replace(file, unsealers=[entry], keks=keks), is_new=True)
    return vault, shares


def open_with(path: Path, node: NodeId, name: str, given: Sequence[Secret]) -> Vault:
    """Unseal by one unsealer; AuthenticationFailed says nothing but that it does not open."""
    file = vaultfile.read(path, node)
    entry = file.unsealer(name)
    if entry is None:
        raise RequestRefused(f"unsealer: no {name}; unsealers: {', '.join(e.name for e in file.unsealers)}")
    try:
        wrapping = _method(entry.method).derive(_about(file.vault, path, name), entry.parameters, given)
    except (KeyError, ValueError):
        # Without the cause: its text could show a part of what was given.
        raise StoreError(f"unsealer {name}: its parameters in vault {path} are damaged; restore the file") from None
    try:
        root = unseal(wrapping, entry.wrapped, _place(file, entry, "wrapped"))
    except AuthenticationFailed as error:
        raise AuthenticationFailed(f"unsealer {name}: what was given does not open vault {path}") from error
    finally:
        wrapping.wipe()
    try:
        keks = unseal(root, file.keks, file.kek_place())
    except AuthenticationFailed as error:
        raise StoreError(f"vault {path}: damaged; restore the file") from error
    if len(keks) not in (KEK_OCTETS, 2 * KEK_OCTETS):
        raise StoreError(f"vault {path}: damaged; restore the file")
    octets = keks.reveal()
    previous = Secret(octets[KEK_OCTETS:]) if len(octets) > KEK_OCTETS else None
    return Vault(path, node, root, Secret(octets[:KEK_OCTETS]), previous)


def _made(
    vault_id: str, vault: Vault, name: str, method: str, options: Mapping[str, str | int], given: Secret | None
) -> tuple[Unsealer, list[Secret]]:
    if not _NAME.fullmatch(name):
        raise RequestRefused("name: up to 40 small letters, digits and hyphens are needed")
    made = _method(method).make(_about(vault_id, vault.path, name), options, given)
    file = VaultFile(vaultfile.VERSION, vault_id, vault.node, [], b"")
    entry = _entry(file, vault.root, name, method, made.parameters, made.wrapping)
    made.wrapping.wipe()
    return entry, made.shares


def _entry(file: VaultFile, root: Secret, name: str, method: str, parameters: Parameters, wrapping: Secret) -> Unsealer:
    bare = Unsealer(name, method, parameters, b"", b"")
    wrapped = seal(wrapping, root.reveal(), _place(file, bare, "wrapped"))
    return replace(bare, wrapped=wrapped, kept=seal(root, wrapping.reveal(), _place(file, bare, "kept")))


def _seal_keks(file: VaultFile, root: Secret, kek: Secret, previous: Secret | None) -> bytes:
    both = bytearray(kek.reveal())
    if previous is not None:
        both += previous.reveal()
    sealed = seal(root, memoryview(both), file.kek_place())
    both[:] = bytes(len(both))
    return sealed


def _place(file: VaultFile, entry: Unsealer, box: str) -> bytes:
    return unsealer_place(file.vault, file.node, entry.name, entry.method, entry.parameters, box)


def _method(name: str) -> Method:
    try:
        return METHODS[name]
    except KeyError:
        raise RequestRefused(f"method: {name} is none; methods: {', '.join(METHODS)}") from None


def _about(vault: str, path: Path, name: str) -> About:
    return About(vault, name, path.absolute().parent)


def _shred(path: Path) -> None:
    try:
        vaultfile.shred(path)
    except OSError as error:
        raise StoreError(f"key file {path}: {error.strerror}; it opens the vault no more, remove it by hand") from error
