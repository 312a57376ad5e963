"""A share as text that a person can keep on paper: `qtrunk-share-` and base32 in groups of four.

    version (1) | k (1) | index (1) | first 8 octets of the vault's identifier | value (32) | checksum (8)
    then the name of the unsealer, as octets of its text

The checksum is SHA-256 over all of it and the vault's whole identifier, truncated: it finds slips of the pen and shares
of other vaults before anything is combined. It stands in the share only, so the vault file tells nothing of the values.

Errors: RequestRefused (no share), AuthenticationFailed (damaged, or of another vault). Neither repeats the text.
"""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass

from qtrunk.base.errors import AuthenticationFailed, RequestRefused
from qtrunk.base.secret import Secret
from qtrunk.kms.seal import associated

PREFIX = b"qtrunk-share-"
_VERSION = 1
_VAULT_OCTETS = 8
_VALUE_OCTETS = 32
_SUM_OCTETS = 8
_FIXED_OCTETS = 3 + _VAULT_OCTETS + _VALUE_OCTETS + _SUM_OCTETS
_TEXT_MAX = 512


@dataclass(frozen=True, slots=True)
class Share:
    """One share of one unsealer of one vault."""

    vault: str
    unsealer: str
    needed: int
    index: int
    value: Secret


def is_share(text: Secret) -> bool:
    """Whether this looks like a share and not like another secret."""
    return bytes(text.reveal()[: len(PREFIX)]) == PREFIX


def encode(share: Share) -> Secret:
    """The text of a share."""
    vault = bytes.fromhex(share.vault)[:_VAULT_OCTETS]
    head = bytes((_VERSION, share.needed, share.index)) + vault + bytes(share.value.reveal())
    octets = head + _checksum(share) + share.unsealer.encode()
    letters = base64.b32encode(octets).rstrip(b"=").lower()
    return Secret(PREFIX + b"-".join(letters[at : at + 4] for at in range(0, len(letters), 4)))


def decode(text: Secret, vault: str) -> Share:
    """The share of this vault that a text is; spaces, line ends and case do not matter."""
    if len(text) > _TEXT_MAX or not is_share(text):
        raise RequestRefused("share: text that begins with qtrunk-share- is needed")
    letters = bytes(text.reveal()[len(PREFIX) :]).translate(None, b"- \t\r\n").upper()
    try:
        octets = base64.b32decode(letters + b"=" * (-len(letters) % 8))
        unsealer = octets[_FIXED_OCTETS:].decode()
    except (binascii.Error, UnicodeDecodeError):
        raise AuthenticationFailed("share: damaged; look for a slip of the pen") from None
    if len(octets) < _FIXED_OCTETS or octets[0] != _VERSION:
        raise AuthenticationFailed("share: damaged, or of a newer version")
    value_at = 3 + _VAULT_OCTETS
    share = Share(vault, unsealer, octets[1], octets[2], Secret(octets[value_at : value_at + _VALUE_OCTETS]))
    found_sum = octets[value_at + _VALUE_OCTETS : _FIXED_OCTETS]
    is_here = hmac.compare_digest(octets[3:value_at], bytes.fromhex(vault)[:_VAULT_OCTETS])
    if not is_here or not hmac.compare_digest(found_sum, _checksum(share)):
        raise AuthenticationFailed("share: damaged, or of another vault")
    return share


def _checksum(share: Share) -> bytes:
    covered = associated("qtrunk share v1", share.vault, share.unsealer, share.needed, share.index)
    digest = hashlib.sha256(covered)
    digest.update(share.value.reveal())
    return digest.digest()[:_SUM_OCTETS]
