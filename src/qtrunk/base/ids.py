"""Identifiers, parsed once at the rim and trusted inside."""

import re
import uuid
from functools import lru_cache
from typing import NewType

from qtrunk.base.errors import RequestRefused

NodeId = NewType("NodeId", str)
LinkId = NewType("LinkId", str)
SaeId = NewType("SaeId", str)
KeyId = NewType("KeyId", str)
"""Canonical lower-case UUID text form (RFC 9562)."""

# GS QKD 020 V1.1.1 limits SAE IDs to 64 URI characters; we keep to that everywhere, without '/'.
_SAE_ID = re.compile(r"[A-Za-z0-9._~:@!$&'()*+,;=-]{1,64}")
_ROLE_NAME = re.compile(r"urn:[A-Za-z0-9-]+:(sae|kme|operator):(.+)")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
IDENTITY_CHARACTERS_MAX = 300
IDENTITY_RULE = 'write "uri:NAME", "dns:NAME", "cn:NAME" or "sha256:" and the 64 hexadecimal digits of a fingerprint'
_NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@lru_cache(maxsize=4096)
def parse_sae_id(text: str) -> SaeId:
    """An SAE ID, or RequestRefused: 1 to 64 characters that are legal in a URI path segment."""
    if not _SAE_ID.fullmatch(text) or not text.strip("."):
        # "." and ".." mean something else in a path, on the wire and on the disk.
        raise RequestRefused(
            "SAE ID: 1 to 64 characters of A-Z a-z 0-9 . _ ~ : @ ! $ & ' ( ) * + , ; = - and not only dots"
        )
    return SaeId(text)


def parse_identity(text: str) -> str:
    """How a certificate names an SAE, in canonical form, or RequestRefused.

    `uri:NAME` and `dns:NAME` are subject alternative names, `cn:NAME` a common name, `sha256:HEX` the fingerprint of
    the certificate or of its public key (SubjectPublicKeyInfo, DER), colons allowed.
    """
    kind, _, name = text.partition(":")
    if not name or len(text) > IDENTITY_CHARACTERS_MAX or not text.isprintable() or name != name.strip():
        raise RequestRefused(IDENTITY_RULE)
    match kind:
        case "uri" if not _ROLE_NAME.fullmatch(name):
            return text
        case "uri":
            raise RequestRefused("a URI urn:…:sae:ID, kme or operator speaks for itself and cannot be given to an SAE")
        case "dns":
            return text.lower()
        case "cn":
            return text
        case "sha256" if _FINGERPRINT.fullmatch(digits := name.replace(":", "").lower()):
            return f"sha256:{digits}"
        case _:
            raise RequestRefused(IDENTITY_RULE)


def role_of(uri: str) -> tuple[str, str] | None:
    """Role (`sae`, `kme` or `operator`) and ID of a URI `urn:NAMESPACE:ROLE:ID`; None for any other."""
    found = _ROLE_NAME.fullmatch(uri)
    return (found[1], found[2]) if found else None


def is_node_id(text: str) -> bool:
    """Whether `text` can name a node or a link: 1 to 63 of A-Z a-z 0-9 . _ -, a letter or digit first."""
    return _NODE_ID.fullmatch(text) is not None


def parse_key_id(text: str) -> KeyId:
    """A key ID in UUID text form, in canonical case, or RequestRefused."""
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        parsed = None
    if parsed is None or str(parsed) != text.lower():
        raise RequestRefused("key_ID: a UUID in text form is needed, such as 7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11")
    return KeyId(str(parsed))
