"""Sealing of key material at rest: AES-256-GCM under keys that are used once, below the node's KEK.

Whatever is sealed gets a key of its own, so that no nonce can ever repeat however long the node lives
(NIST SP 800-38D section 8.3 limits random 96-bit nonces to 2^32 uses of one key):

    sealed = salt (32 octets) | AES-256-GCM(key = HMAC-SHA256(KEK, label | salt), nonce = 0, AAD) with its tag

The derivation is the one-step key derivation of SP 800-56C rev. 2 with HMAC. The associated data binds what
is sealed to its place (node, link, block, position), so that a valid seal moved elsewhere does not open.

The KEK is 32 octets in a file of its own that only the owner may read. Who holds both that file and the
store holds the keys: put the file on other media where the site allows it.

Errors: AuthenticationFailed (a seal does not open), StoreError (no usable KEK file).
"""

import hashlib
import hmac
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qtrunk.base.errors import AuthenticationFailed, StoreError
from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness

KEK_OCTETS = 32
_SALT_OCTETS = 32
TAG_OCTETS = 16
SEAL_OVERHEAD_OCTETS = _SALT_OCTETS + TAG_OCTETS
_NONCE = bytes(12)
_SEAL_LABEL = b"qtrunk seal v1\0"
_PRINT_LABEL = b"qtrunk fingerprint v1\0"


def associated(*parts: str | bytes | int) -> bytes:
    """Associated data: parts in order, each with its length, so that two lists never read alike."""
    encoded = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return b"".join([len(part).to_bytes(4, "big") + part for part in encoded])


def seal(kek: Secret, data: bytes | memoryview, place: bytes) -> bytes:
    """Seal `data` for its `place`; the result is SEAL_OVERHEAD_OCTETS longer."""
    salt = randomness.octets(_SALT_OCTETS)
    return salt + AESGCM(_derive(kek, salt)).encrypt(_NONCE, data, place)


def unseal(kek: Secret, sealed: bytes, place: bytes) -> Secret:
    """What was sealed for this `place`, or AuthenticationFailed."""
    salt, box = sealed[:_SALT_OCTETS], sealed[_SALT_OCTETS:]
    opened = Secret(bytes(max(0, len(sealed) - SEAL_OVERHEAD_OCTETS)))
    try:
        AESGCM(_derive(kek, salt)).decrypt_into(_NONCE, box, place, opened.fill())
    except InvalidTag as error:
        raise AuthenticationFailed("sealed material does not open: changed, moved or of another KEK") from error
    return opened


def fingerprint(kek: Secret, material: Secret, place: bytes) -> bytes:
    """A keyed digest that tells equal material from other material and says nothing without the KEK."""
    digest = hashlib.sha256(material.reveal()).digest()
    return hmac.digest(kek.reveal(), _PRINT_LABEL + associated(place, digest), "sha256")


def load_or_make_kek(path: Path) -> Secret:
    """The KEK in `path`; a fresh one, durable before return, when there is no such file."""
    try:
        if not path.exists():
            _make_kek(path)
        return _load_kek(path)
    except OSError as error:
        raise StoreError(f"KEK file {path}: {error.strerror}; the node cannot open its key store") from error


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _derive(kek: Secret, salt: bytes) -> bytes:
    return hmac.digest(kek.reveal(), _SEAL_LABEL + salt, "sha256")


def _make_kek(path: Path) -> None:
    """Write under another name and link, so that a crash leaves no half KEK and no KEK is ever replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{randomness.octets(8).hex()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(randomness.octets(KEK_OCTETS))
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(draft, path)
        except FileExistsError as error:
            raise StoreError(f"KEK file {path}: another process made it just now; start again") from error
    finally:
        draft.unlink()
    sync_directory(path.parent)


def _load_kek(path: Path) -> Secret:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as source:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise StoreError(f"KEK file {path}: must be this user's own file that nobody else can read; chmod 600 it")
        kek = Secret(source.read(KEK_OCTETS + 1))
    if len(kek) != KEK_OCTETS:
        raise StoreError(f"KEK file {path}: {len(kek)} octets or more, {KEK_OCTETS} needed; restore the right file")
    return kek
