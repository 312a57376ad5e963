"""The ways to unseal: each makes, from what only its holder has, a wrapping key of 32 octets.

passphrase   Argon2id (RFC 9106) of a passphrase; never below the second recommended option of its section 4
shares       k of n shares of a random key (`shamir`), handed out once as text and kept nowhere
pkcs11       a random key that a hardware token wraps with AES-256-GCM under a key that never leaves it
systemd      an octet string that the service manager gives in $CREDENTIALS_DIRECTORY (systemd.exec, "Credentials")
file         32 octets in a file of their own: for laboratories, since who has the disk has the keys

`systemd` and `file` need nobody, nor does `pkcs11` with its PIN in a credential; the others wait for people. No
secret is ever taken from arguments or environment, only (for systemd) the path of a directory.

Errors: RequestRefused (what was given cannot be used; says which field), AuthenticationFailed (it is the wrong one),
StoreError (a file or token is not there).
"""

import hmac
import os
import stat
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from qtrunk.base.errors import AuthenticationFailed, RequestRefused, StoreError
from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness, shamir
from qtrunk.kms.seal import KEK_OCTETS, associated, load_or_make_kek
from qtrunk.kms.vault import sharetext
from qtrunk.kms.vault.vaultfile import Parameters

WRAPPING_OCTETS = 32
PASSPHRASE_CHARACTERS_MIN = 12
PASSPHRASE_OCTETS_MAX = 1024
ARGON2_MEMORY_KIB = 65536
ARGON2_LANES = 4
ARGON2_ITERATIONS_MIN = 3
ARGON2_ITERATIONS_MAX = 64
ARGON2_TARGET_S = 0.5
"""How long a guess should take on this machine; more iterations are used until it does."""
_SALT_OCTETS = 16
CREDENTIAL_OCTETS_MIN = 32
CREDENTIAL_OCTETS_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class About:
    """Which unsealer of which vault it is."""

    vault: str
    name: str
    directory: Path
    """Where the vault file lies."""


@dataclass(slots=True)
class Made:
    """A new unsealer."""

    wrapping: Secret
    parameters: Parameters
    shares: list[Secret] = field(default_factory=list)
    """Text to hand out, once."""


class Method(Protocol):
    """One way to unseal."""

    def make(self, about: About, options: Mapping[str, str | int], given: Secret | None) -> Made:
        """A new unsealer from what the operator chose and gave."""

    def derive(self, about: About, parameters: Parameters, given: Sequence[Secret]) -> Secret:
        """The wrapping key again. Wrong secrets may give a wrong key: the box it should open tells."""

    def is_unattended(self, parameters: Parameters) -> bool:
        """Whether `derive` needs nobody to give anything."""


class Passphrase:
    """Something that a person knows."""

    def make(self, about: About, options: Mapping[str, str | int], given: Secret | None) -> Made:
        _only(options)
        secret = _normal(_needed(given, "passphrase"))
        parameters: Parameters = {
            "salt": randomness.octets(_SALT_OCTETS).hex(),
            "iterations": ARGON2_ITERATIONS_MIN,
            "lanes": ARGON2_LANES,
            "memory_kib": ARGON2_MEMORY_KIB,
        }
        begun_s = time.perf_counter()
        _argon2(secret, parameters).wipe()
        taken_s = max(time.perf_counter() - begun_s, 1e-3)
        wanted = round(ARGON2_ITERATIONS_MIN * ARGON2_TARGET_S / taken_s)
        parameters["iterations"] = min(max(wanted, ARGON2_ITERATIONS_MIN), ARGON2_ITERATIONS_MAX)
        return Made(_argon2(secret, parameters), parameters)

    def derive(self, about: About, parameters: Parameters, given: Sequence[Secret]) -> Secret:
        return _argon2(_normal(_one(given, "passphrase")), parameters)

    def is_unattended(self, parameters: Parameters) -> bool:
        return False


class Shares:
    """Something that several people have, k of n of them."""

    def make(self, about: About, options: Mapping[str, str | int], given: Secret | None) -> Made:
        _only(options, "needed", "count")
        needed, count = options.get("needed"), options.get("count")
        if not isinstance(needed, int) or not isinstance(count, int) or not 2 <= needed <= count <= shamir.SHARES_MAX:
            raise RequestRefused(f"needed, count: whole numbers, 2 <= needed <= count <= {shamir.SHARES_MAX}")
        wrapping = Secret(randomness.octets(WRAPPING_OCTETS))
        texts = [
            sharetext.encode(sharetext.Share(about.vault, about.name, needed, index, value))
            for index, value in shamir.split(wrapping, needed, count).items()
        ]
        return Made(wrapping, {"needed": needed, "count": count}, texts)

    def derive(self, about: About, parameters: Parameters, given: Sequence[Secret]) -> Secret:
        shares = {share.index: share.value for share in (sharetext.decode(text, about.vault) for text in given)}
        needed = int(parameters["needed"])
        if len(shares) < needed:
            raise AuthenticationFailed(f"shares: {len(shares)} of {needed} that are needed")
        return shamir.combine(shares)

    def is_unattended(self, parameters: Parameters) -> bool:
        return False


class Credential:
    """Something that the service manager hands over, out of a TPM or an encrypted file of its own."""

    def make(self, about: About, options: Mapping[str, str | int], given: Secret | None) -> Made:
        _only(options, "credential")
        parameters: Parameters = {"credential": _text(options, "credential")}
        return Made(self.derive(about, parameters, ()), parameters)

    def derive(self, about: About, parameters: Parameters, given: Sequence[Secret]) -> Secret:
        content = read_credential(str(parameters["credential"]))
        if len(content) < CREDENTIAL_OCTETS_MIN:
            raise StoreError(
                f"credential {parameters['credential']}: at least {CREDENTIAL_OCTETS_MIN} octets are needed"
            )
        label = associated("qtrunk vault credential v1", about.vault, about.name)
        return Secret(hmac.digest(content.reveal(), label, "sha256"))

    def is_unattended(self, parameters: Parameters) -> bool:
        return True


class KeyFile:
    """32 octets in a file beside the vault, or on other media."""

    def make(self, about: About, options: Mapping[str, str | int], given: Secret | None) -> Made:
        _only(options, "path")
        default = about.directory / f"vault-{about.name}-{randomness.octets(4).hex()}.key"
        path = Path(_text(options, "path")) if "path" in options else default
        if not path.is_absolute():
            raise RequestRefused("path: must be absolute")
        if path.exists():
            raise RequestRefused(f"path: {path} exists; a key file is made by this command and never used twice")
        return Made(load_or_make_kek(path), {"path": str(path)})

    def derive(self, about: About, parameters: Parameters, given: Sequence[Secret]) -> Secret:
        path = Path(str(parameters["path"]))
        if not path.exists():
            raise StoreError(f"key file {path}: not there; bring the media that it is on")
        return load_or_make_kek(path)

    def is_unattended(self, parameters: Parameters) -> bool:
        return True


def read_credential(name: str) -> Secret:
    """A file of $CREDENTIALS_DIRECTORY, without the newline that an editor may have left."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory is None:
        raise StoreError(
            "credential: $CREDENTIALS_DIRECTORY is not set; start the node by systemd with LoadCredential="
        )
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise RequestRefused("credential: a plain file name is needed")
    try:
        handle = os.open(Path(directory) / name, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as source:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise StoreError(f"credential {name}: not a regular file")
            content = source.read(CREDENTIAL_OCTETS_MAX + 1)
    except OSError as error:
        raise StoreError(f"credential {name}: {error.strerror}; check LoadCredential= of the service") from error
    if len(content) > CREDENTIAL_OCTETS_MAX:
        raise StoreError(f"credential {name}: more than {CREDENTIAL_OCTETS_MAX} octets")
    return Secret(content.removesuffix(b"\n"))


def _argon2(secret: Secret, parameters: Parameters) -> Secret:
    iterations, lanes, memory_kib = (int(parameters[name]) for name in ("iterations", "lanes", "memory_kib"))
    if not (
        ARGON2_ITERATIONS_MIN <= iterations <= ARGON2_ITERATIONS_MAX
        and lanes == ARGON2_LANES
        and memory_kib == ARGON2_MEMORY_KIB
    ):
        raise StoreError("vault: parameters of Argon2id outside what this qtrunk uses; restore the right vault file")
    derive = Argon2id(
        salt=bytes.fromhex(str(parameters["salt"])),
        length=WRAPPING_OCTETS,
        iterations=iterations,
        lanes=lanes,
        memory_cost=memory_kib,
    )
    return Secret(derive.derive(bytes(secret.reveal())))


def _normal(passphrase: Secret) -> Secret:
    """Equal for equal characters, however the keyboard composes them (Unicode NFC)."""
    try:
        text = unicodedata.normalize("NFC", bytes(passphrase.reveal()).decode())
    except UnicodeDecodeError:
        raise RequestRefused("passphrase: UTF-8 text is needed") from None
    if len(text) < PASSPHRASE_CHARACTERS_MIN or len(text.encode()) > PASSPHRASE_OCTETS_MAX:
        raise RequestRefused(
            f"passphrase: at least {PASSPHRASE_CHARACTERS_MIN} characters, at most {PASSPHRASE_OCTETS_MAX} octets"
        )
    return Secret(text.encode())


def _only(options: Mapping[str, str | int], *names: str) -> None:
    for name in options:
        if name not in names:
            raise RequestRefused(f"{name}: not an option of this method; options: {', '.join(names) or 'none'}")


def _text(options: Mapping[str, str | int], name: str) -> str:
    value = options.get(name)
    if not isinstance(value, str) or not value:
        raise RequestRefused(f"{name}: text is needed")
    return value


def _needed(given: Secret | None, what: str) -> Secret:
    if given is None or not len(given):
        raise RequestRefused(f"secret: a {what} is needed")
    return given


def _one(given: Sequence[Secret], what: str) -> Secret:
    return _needed(given[0] if len(given) == 1 else None, what)


assert WRAPPING_OCTETS == KEK_OCTETS
