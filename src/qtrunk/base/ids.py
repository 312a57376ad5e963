"""Identifiers, parsed once at the rim and trusted inside."""

import re
import uuid
from typing import NewType

from qtrunk.base.errors import RequestRefused

NodeId = NewType("NodeId", str)
LinkId = NewType("LinkId", str)
SaeId = NewType("SaeId", str)
KeyId = NewType("KeyId", str)
"""Canonical lower-case UUID text form (RFC 9562)."""

# GS QKD 020 V1.1.1 limits SAE IDs to 64 URI characters; we keep to that everywhere, without '/'.
_SAE_ID = re.compile(r"[A-Za-z0-9._~:@!$&'()*+,;=-]{1,64}")
_NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def parse_sae_id(text: str) -> SaeId:
    """An SAE ID, or RequestRefused: 1 to 64 characters that are legal in a URI path segment."""
    if not _SAE_ID.fullmatch(text) or not text.strip("."):
        # "." and ".." mean something else in a path, on the wire and on the disk.
        raise RequestRefused(
            "SAE ID: 1 to 64 characters of A-Z a-z 0-9 . _ ~ : @ ! $ & ' ( ) * + , ; = - and not only dots"
        )
    return SaeId(text)


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
