"""Unsealing by a hardware token over PKCS#11 V2.40 or later (OASIS), CKM_AES_GCM.

The token makes an AES-256 key that it never gives away (CKA_SENSITIVE, not CKA_EXTRACTABLE); it wraps the random
wrapping key of the vault, and without the token and its PIN nobody unwraps it. The nonce is ours and used once: each
unsealer has a token key of its own, that encrypts once in its life.

The module (the vendor's library) is loaded into this process: it must be a file that only root or this user can change.
The PIN comes from whoever unseals, or from a credential of the service manager (`pin_credential`), which needs nobody.

Needs the extra `hsm` of this package (python-pkcs11).

Errors: RequestRefused, StoreError (no module, token or key), AuthenticationFailed (PIN refused, or not what
it wrapped).
"""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtrunk.base.errors import AuthenticationFailed, RequestRefused, StoreError
from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness
from qtrunk.kms.vault.methods import WRAPPING_OCTETS, About, Made, read_credential
from qtrunk.kms.vault.vaultfile import Parameters

if TYPE_CHECKING:
    from pkcs11 import Session

_NONCE_OCTETS = 12
_OPTIONS = ("module", "token", "pin_credential")


class Token:
    """Something that a site has: an HSM or a smart card."""

    def make(self, about: About, options: Mapping[str, str | int], given: Secret | None) -> Made:
        """A new key on the token, and what it wraps."""
        for name, value in options.items():
            if name not in _OPTIONS or not isinstance(value, str) or not value:
                raise RequestRefused(f"{name}: options of pkcs11 are texts: {', '.join(_OPTIONS)}")
        for name in ("module", "token"):
            if name not in options:
                raise RequestRefused(f"{name}: is needed")
        key_label = f"qtrunk-{about.vault}-{randomness.octets(4).hex()}"
        parameters: Parameters = {**options, "key": key_label}
        wrapping = Secret(randomness.octets(WRAPPING_OCTETS))
        nonce = randomness.octets(_NONCE_OCTETS)
        pin = self._pin(parameters, () if given is None else (given,))
        with _session(parameters, pin, is_writing=True) as session:
            from pkcs11 import Attribute, GCMParams, KeyType, Mechanism

            # What a key can do is mixed in when it is made; the package's types do not say so.
            key: Any = session.generate_key(
                KeyType.AES,
                256,
                label=key_label,
                store=True,
                template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.PRIVATE: True},
            )
            box = key.encrypt(
                bytes(wrapping.reveal()),
                mechanism=Mechanism.AES_GCM,
                mechanism_param=GCMParams(nonce, about.vault.encode()),
            )
        parameters["nonce"], parameters["box"] = nonce.hex(), box.hex()
        return Made(wrapping, parameters)

    def derive(self, about: About, parameters: Parameters, given: Sequence[Secret]) -> Secret:
        """The wrapping key, unwrapped by the token."""
        with _session(parameters, self._pin(parameters, given), is_writing=False) as session:
            from pkcs11 import GCMParams, KeyType, Mechanism, ObjectClass
            from pkcs11.exceptions import PKCS11Error

            label = str(parameters["key"])
            try:
                key: Any = session.get_key(object_class=ObjectClass.SECRET_KEY, key_type=KeyType.AES, label=label)
            except PKCS11Error as error:
                raise StoreError(f"token {parameters['token']}: has no key {label}; bring the right token") from error
            try:
                octets = key.decrypt(
                    bytes.fromhex(str(parameters["box"])),
                    mechanism=Mechanism.AES_GCM,
                    mechanism_param=GCMParams(bytes.fromhex(str(parameters["nonce"])), about.vault.encode()),
                )
            except PKCS11Error as error:
                raise AuthenticationFailed(f"token {parameters['token']}: does not unwrap ({_name(error)})") from error
        return Secret(octets)

    def is_unattended(self, parameters: Parameters) -> bool:
        """Only with its PIN in a credential."""
        return "pin_credential" in parameters

    def _pin(self, parameters: Parameters, given: Sequence[Secret]) -> Secret:
        if "pin_credential" in parameters:
            return read_credential(str(parameters["pin_credential"]))
        if len(given) != 1 or not len(given[0]):
            raise RequestRefused("secret: the PIN of the token is needed")
        return given[0]


@contextmanager
def _session(parameters: Parameters, pin: Secret, *, is_writing: bool) -> "Iterator[Session]":
    """A session on the token, logged in, closed in the end."""
    try:
        import pkcs11
        from pkcs11.exceptions import PinIncorrect, PinInvalid, PinLenRange, PinLocked, PKCS11Error
    except ImportError as error:
        raise StoreError("pkcs11: needs the package python-pkcs11: pip install 'qtrunk[hsm]'") from error
    label = str(parameters["token"])
    try:
        text = bytes(pin.reveal()).decode()
    except UnicodeDecodeError:
        raise RequestRefused("secret: a PIN is UTF-8 text") from None
    try:
        token = pkcs11.lib(str(_checked(Path(str(parameters["module"]))))).get_token(token_label=label)
        session = token.open(rw=is_writing, user_pin=text)
    except (PinIncorrect, PinInvalid, PinLenRange, PinLocked) as error:
        raise AuthenticationFailed(f"token {label}: refuses the PIN ({_name(error)})") from error
    except PKCS11Error as error:
        raise StoreError(f"token {label}: cannot be used ({_name(error)}); is it plugged in?") from error
    with session:
        try:
            yield session
        except PKCS11Error as error:
            raise StoreError(f"token {label}: does not do what is asked ({_name(error)})") from error


def _checked(module: Path) -> Path:
    try:
        status = module.stat()
    except OSError as error:
        raise StoreError(f"module {module}: {error.strerror}") from error
    is_trusted = status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022
    if not module.is_absolute() or not stat.S_ISREG(status.st_mode) or not is_trusted:
        raise StoreError(
            f"module {module}: must be an absolute path of a library that only root or this user can change"
        )
    return module


def _name(error: Exception) -> str:
    return type(error).__name__
