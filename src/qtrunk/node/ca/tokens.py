"""One-time enrolment tokens: an invitation that can be used once, and that says which authority to believe.

    qtrunk-enrol-1.BASE64URL( kind 1 octet | id 8 octets | pin 32 octets | secret 32 octets )

The pin is SHA-256 over the authority's certificate (DER) and its ML-DSA-65 verifying key, so who holds a token needs no
other introduction. The kind (1 SAE, 2 node, 3 operator) tells the holder what to make; what the authority believes is
its own record. It keeps a hash of the secret only; the secret has 256 bits, so a plain hash is enough.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass

from qtrunk.base.errors import RequestRefused
from qtrunk.base.ports import Random
from qtrunk.base.secret import Secret
from qtrunk.node.ca.identity import Kind

_PREFIX = b"qtrunk-enrol-1."
ID_OCTETS = 8
PIN_OCTETS = 32
SECRET_OCTETS = 32
_KINDS = (Kind.SAE, Kind.NODE, Kind.OPERATOR, Kind.CONTROLLER)
_OCTETS = 1 + ID_OCTETS + PIN_OCTETS + SECRET_OCTETS


@dataclass(frozen=True, slots=True)
class Token:
    """An invitation as its holder has it."""

    kind: Kind
    id: str
    """Hexadecimal; not secret."""
    pin: bytes
    secret: Secret

    def text(self) -> Secret:
        """What is given to the invited party."""
        octets = bytes([1 + _KINDS.index(self.kind)]) + bytes.fromhex(self.id) + self.pin + bytes(self.secret.reveal())
        return Secret(_PREFIX + base64.urlsafe_b64encode(octets))

    def digest(self) -> bytes:
        """What the authority keeps instead of the secret."""
        return hashlib.sha256(b"qtrunk enrolment token 1" + bytes.fromhex(self.id) + self.secret.reveal()).digest()


def new_token(kind: Kind, pin: bytes, random: Random) -> Token:
    """A fresh invitation."""
    return Token(kind, random.octets(ID_OCTETS).hex(), pin, Secret(random.octets(SECRET_OCTETS)))


def parse_token(text: Secret) -> Token:
    """Read a token; RequestRefused where it is none. White space around it is a file's and does not count."""
    octets = bytes(text.reveal()).strip()
    try:
        found = base64.b64decode(octets.removeprefix(_PREFIX), altchars=b"-_", validate=True)
    except binascii.Error:
        found = b""
    if not octets.startswith(_PREFIX) or len(found) != _OCTETS or not 1 <= found[0] <= len(_KINDS):
        # Not one word of it in the message: a mistyped token is nearly a token.
        raise RequestRefused("token: not an enrolment token (qtrunk-enrol-1.…)")
    kind, identifier, rest = _KINDS[found[0] - 1], found[1 : 1 + ID_OCTETS], found[1 + ID_OCTETS :]
    return Token(kind, identifier.hex(), rest[:PIN_OCTETS], Secret(rest[PIN_OCTETS:]))


def pin_of(certificate_der: bytes, verifying_key: bytes) -> bytes:
    """What a token says about its authority."""
    return hashlib.sha256(
        b"qtrunk authority 1" + len(certificate_der).to_bytes(4, "big") + certificate_der + verifying_key
    ).digest()
