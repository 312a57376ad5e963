"""Octets on a connection: length-prefixed frames, and strict msgpack messages inside them.

A message is a msgspec Struct with a tag, encoded as msgpack. Decoding refuses unknown tags, unknown or
missing fields and wrong types. What is authenticated is always the octets as sent, never a re-encoding,
so the encoding need not be unique to be safe; frames are prefixed by their length, so a transcript of
frames is injective.
"""

import struct
from types import UnionType
from typing import Any, TypeVar, overload

import msgspec

from qtrunk.base.errors import WireError

FRAME_OCTETS_MAX = 256 << 20
_HEADER = struct.Struct(">I")
FRAME_HEADER_OCTETS = _HEADER.size

M = TypeVar("M")


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True, kw_only=True):
    """Base of everything that travels between nodes; subclasses say `tag="name"`."""


def encode(message: Message) -> bytes:
    """The octets of a message."""
    return msgspec.msgpack.encode(message)


@overload
def decode(octets: bytes | memoryview, kind: type[M]) -> M: ...
@overload
def decode(octets: bytes | memoryview, kind: UnionType) -> Any: ...
def decode(octets: bytes | memoryview, kind: Any) -> Any:
    """Parse octets as `kind` (a Message class, or a union of them), or raise WireError."""
    try:
        return msgspec.msgpack.decode(octets, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # msgspec lets other errors through where text is not UTF-8 and where a value is nested without end.
        raise WireError(f"not a valid message: {error}") from error


def frame(payload: bytes) -> bytes:
    """A payload with its length before it."""
    if len(payload) > FRAME_OCTETS_MAX:
        raise WireError(f"frame of {len(payload)} octets: at most {FRAME_OCTETS_MAX} are allowed")
    return _HEADER.pack(len(payload)) + payload


def frame_length(header: bytes) -> int:
    """The payload length that a frame header announces, checked against FRAME_OCTETS_MAX."""
    (length,) = _HEADER.unpack(header)
    if length > FRAME_OCTETS_MAX:
        raise WireError(f"frame of {length} octets announced: at most {FRAME_OCTETS_MAX} are allowed")
    return int(length)
