"""From sealed to unsealed: what needs nobody is tried at once, people's secrets are taken one at a time.

A node without a vault file has its KEK in a bare file beside the store, as every node had before there were vaults;
that goes on working (`BARE`), and changing anything of the vault makes a vault file of it.

Errors: those of `opened`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qtrunk.base.errors import AuthenticationFailed, NotAuthorised, QtrunkError, RequestRefused
from qtrunk.base.ids import NodeId
from qtrunk.base.ports import Clock
from qtrunk.base.secret import Secret
from qtrunk.kms.seal import load_or_make_kek
from qtrunk.kms.vault import opened, rotation, sharetext, vaultfile
from qtrunk.kms.vault.opened import METHODS, Vault

BARE = "bare KEK file"
Person = tuple[str, str]
"""Name, and fingerprint of the certificate."""
SHARES_WAIT_S = 900.0
"""Shares that nobody completes are forgotten after so long."""


@dataclass(slots=True)
class Keys:
    """Where one node's vault and store lie."""

    node: NodeId
    path: Path
    """The vault file."""
    bare: Path
    """The bare KEK file of a node that never had a vault."""
    store: Path

    @property
    def is_bare(self) -> bool:
        """Whether there is no vault yet."""
        return not self.path.exists()

    def make(
        self, name: str, method: str, options: dict[str, str | int], given: Secret | None
    ) -> tuple[Vault, list[Secret]]:
        """A vault for this node, unsealed. A store that is there gets a new KEK: the old one lay in clear.

        The node must be stopped. After a crash on the way the new vault is there and `rotation.resume` goes on; the
        bare file is shredded last.
        """
        previous = load_or_make_kek(self.bare) if self.bare.exists() else None
        vault, shares = opened.create(self.path, self.node, name, method, options, given, previous)
        self.settle(vault)
        return vault, shares

    def settle(self, vault: Vault) -> None:
        """Finish what a crash interrupted: every store opens after this, and the bare KEK file is gone."""
        rotation.resume(vault, self.store)
        vaultfile.shred(self.bare)

    def status(self) -> dict[str, object]:
        """Who may unseal, and how; no secret."""
        if self.is_bare:
            return {
                "vault": str(self.path),
                "unsealers": [{"name": BARE, "method": "file", "is_unattended": True, "is_laboratory": True}],
            }
        file = vaultfile.read(self.path, self.node)
        return {
            "vault": str(self.path),
            "unsealers": [
                {
                    "name": entry.name,
                    "method": entry.method,
                    "is_unattended": _is_unattended(entry),
                    "is_laboratory": entry.method == "file",
                    **{name: entry.parameters[name] for name in ("needed", "count") if name in entry.parameters},
                }
                for entry in file.unsealers
            ],
        }


@dataclass(slots=True)
class Unsealing:
    """Collects what people give until the vault opens."""

    keys: Keys
    clock: Clock
    _shares: dict[str, dict[int, Secret]] = field(default_factory=dict)
    _givers: dict[str, set[Person]] = field(default_factory=dict)
    _last_s: float = 0.0

    def without_help(self, report: Callable[[str], None]) -> Vault | None:
        """Unseal by what needs nobody; `report` hears why one does not open."""
        file = vaultfile.read(self.keys.path, self.keys.node)
        for entry in filter(_is_unattended, file.unsealers):
            try:
                return opened.open_with(self.keys.path, self.keys.node, entry.name, ())
            except QtrunkError as error:
                report(f"unsealer {entry.name}: {error}")
        return None

    def offer(self, secret: Secret, name: str | None = None, giver: Person | None = None) -> Vault | None:
        """A passphrase, a PIN, or one share; the vault when it opens, None while shares are missing.

        Where the giver of a share is named, one person's shares alone are never enough: NotAuthorised for the last.
        """
        self.forget(older_than_s=SHARES_WAIT_S)
        file = vaultfile.read(self.keys.path, self.keys.node)
        if sharetext.is_share(secret):
            return self._offer_share(file, secret, giver)
        if name is None:
            names = [e.name for e in file.unsealers if e.method != "shares" and not _is_unattended(e)]
            if len(names) != 1:
                known = ", ".join(names) or "none that takes a passphrase or PIN; give shares"
                raise RequestRefused(f"unsealer: name one of: {known}")
            name = names[0]
        vault = opened.open_with(self.keys.path, self.keys.node, name, (secret,))
        self.forget()
        return vault

    def progress(self) -> dict[str, int]:
        """How many shares of which unsealer are here."""
        self.forget(older_than_s=SHARES_WAIT_S)
        return {name: len(shares) for name, shares in self._shares.items()}

    def forget(self, older_than_s: float = 0.0) -> None:
        """Wipe the shares that are here."""
        if self.clock.monotonic_s() - self._last_s >= older_than_s:
            for shares in self._shares.values():
                for share in shares.values():
                    share.wipe()
            self._shares.clear()
            self._givers.clear()

    def _offer_share(self, file: vaultfile.VaultFile, text: Secret, giver: Person | None) -> Vault | None:
        share = sharetext.decode(text, file.vault)
        entry = file.unsealer(share.unsealer)
        if entry is None or entry.method != "shares" or entry.parameters["needed"] != share.needed:
            raise AuthenticationFailed("share: of an unsealer that this vault does not have any more")
        known = self._shares.setdefault(share.unsealer, {})
        givers = self._givers.setdefault(share.unsealer, set()) | ({giver} if giver is not None else set())
        is_last = len({*known, share.index}) >= share.needed
        if giver is not None and is_last and any(len({person[part] for person in givers}) < 2 for part in (0, 1)):
            raise NotAuthorised("share: the last one must come from another officer, with a certificate of his own")
        if known.setdefault(share.index, text) is not text and known[share.index] != text:
            raise AuthenticationFailed(f"share {share.index}: another one of that number was given before")
        self._givers[share.unsealer] = givers
        self._last_s = self.clock.monotonic_s()
        if len(known) < share.needed:
            return None
        try:
            return opened.open_with(self.keys.path, self.keys.node, entry.name, tuple(known.values()))
        finally:
            # Right or wrong, they are used up: which of them is wrong cannot be told, so begin again.
            self.forget()


def _is_unattended(entry: vaultfile.Unsealer) -> bool:
    return METHODS[entry.method].is_unattended(entry.parameters) if entry.method in METHODS else False
