"""Frames of ETSI GS QKD 004 V2.1.1 on TCP, as found in the field; the standard itself defines no binding.

A header of 8 octets (version 1, 0, 1; service; payload length), then the payload, all big-endian. docs/etsi004.md has
the layouts. Parsing is strict: what is too long, too short or left over is a WireError.
"""

import re
import struct
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from qtrunk.base.errors import RequestRefused, WireError
from qtrunk.base.ids import SaeId, parse_sae_id
from qtrunk.base.secret import Secret
from qtrunk.kms.streamnotes import CHUNK_OCTETS_MAX, KSID_OCTETS, Qos, Status

PORT = 25575
VERSION = (1, 0, 1)
OPEN_REQUEST, OPEN_RESPONSE = 2, 3
GET_KEY_REQUEST, GET_KEY_RESPONSE = 4, 5
CLOSE_REQUEST, CLOSE_RESPONSE = 8, 9
URI_OCTETS_MAX = 1024
MIMETYPE_OCTETS = 256
METADATA_OCTETS_MAX = 64 << 10
_HEADER = struct.Struct(">BBBBI")
HEADER_OCTETS = _HEADER.size
_QOS = struct.Struct(f">7I{MIMETYPE_OCTETS}s")
_OPENING = struct.Struct(f">{_QOS.size}s{KSID_OCTETS}s")
_GET_KEY = struct.Struct(f">{KSID_OCTETS}sII")
_U32 = struct.Struct(">I")
_KEY = struct.Struct(">III")
REQUEST_OCTETS_MAX = 2 * (URI_OCTETS_MAX + 1) + _OPENING.size
ANSWER_OCTETS_MAX = _KEY.size + CHUNK_OCTETS_MAX + _U32.size + METADATA_OCTETS_MAX
NULL_KSID = bytes(KSID_OCTETS)
_URN = re.compile(r"urn:[A-Za-z0-9-]+:sae:(.+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """OPEN_CONNECT; `ksid` None is NULL."""

    source: str
    destination: str
    qos: Qos
    ksid: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GetKeyRequest:
    """GET_KEY."""

    ksid: bytes
    index: int
    metadata_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseRequest:
    """CLOSE."""

    ksid: bytes


Request = OpenRequest | GetKeyRequest | CloseRequest


def parse_header(octets: bytes, octets_max: int) -> tuple[int, int]:
    """Service and payload length of a frame, or WireError."""
    *version, service, length = _HEADER.unpack(octets)
    if tuple(version) != VERSION:
        raise WireError("header: version 1.0.1 is needed")
    if length > octets_max:
        raise WireError(f"header: payload length {length}: at most {octets_max}")
    return service, length


def frame(service: int, payload: bytes | bytearray) -> bytearray:
    """A frame, in a buffer that can be wiped."""
    return bytearray().join((_HEADER.pack(*VERSION, service, len(payload)), payload))


# ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────────


def parse_request(service: int, payload: bytes) -> Request:
    """What an application asks, or WireError."""
    match service:
        case 2:
            return _parse_open(payload)
        case 4:
            ksid, index, size = _unpack(_GET_KEY, payload, "GET_KEY")
            return GetKeyRequest(ksid=ksid, index=index, metadata_size=size)
        case 8:
            if len(payload) != KSID_OCTETS:
                raise WireError(f"CLOSE: {KSID_OCTETS} octets are needed")
            return CloseRequest(ksid=payload)
        case _:
            raise WireError(f"header: service {service} is none of OPEN_CONNECT, GET_KEY, CLOSE")


def pack_request(request: Request) -> bytearray:
    """A request as a frame; RequestRefused where a field does not fit."""
    match request:
        case OpenRequest():
            uris = b""
            for name, uri in (("source", request.source), ("destination", request.destination)):
                octets = uri.encode()
                if b"\0" in octets or len(octets) > URI_OCTETS_MAX:
                    raise RequestRefused(f"{name}: at most {URI_OCTETS_MAX} octets, none of them NUL")
                uris += octets + b"\0"
            return frame(OPEN_REQUEST, uris + _pack_qos(request.qos) + _pack_ksid(request.ksid or NULL_KSID))
        case GetKeyRequest():
            _pack_ksid(request.ksid)
            if not (0 <= request.index < 1 << 32 and 0 <= request.metadata_size < 1 << 32):
                raise RequestRefused("index, metadata_size: from 0 to 4294967295")
            return frame(GET_KEY_REQUEST, _GET_KEY.pack(request.ksid, request.index, request.metadata_size))
        case CloseRequest():
            return frame(CLOSE_REQUEST, _pack_ksid(request.ksid))


def _parse_open(payload: bytes) -> OpenRequest:
    source, rest = _parse_uri(payload, "source")
    destination, rest = _parse_uri(rest, "destination")
    qos, ksid = _unpack(_OPENING, rest, "OPEN_CONNECT")
    return OpenRequest(
        source=source, destination=destination, qos=_parse_qos(qos), ksid=None if ksid == NULL_KSID else ksid
    )


def _parse_uri(payload: bytes, name: str) -> tuple[str, bytes]:
    uri, end, _ = payload[: URI_OCTETS_MAX + 1].partition(b"\0")
    if not end:
        raise WireError(f"{name}: at most {URI_OCTETS_MAX} octets and a NUL")
    if not uri.isascii():
        raise WireError(f"{name}: a URI is ASCII")
    return uri.decode(), payload[len(uri) + 1 :]


def sae_of_uri(uri: str) -> SaeId | None:
    """The SAE that a source or destination names: `urn:…:sae:ID`, or any `scheme://ID` (port, path, query ignored).

    None where it names none. An ID with characters that mean something else in a URI is percent-encoded.
    """
    try:
        urn = _URN.fullmatch(uri)
        if urn is not None:
            return parse_sae_id(unquote(urn[1]))
        parts = urlsplit(uri)
        name = re.sub(r":\d*$", "", parts.netloc)
        return parse_sae_id(unquote(name)) if parts.scheme else None
    except (RequestRefused, ValueError):
        return None


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def pack_open_answer(status: Status, qos: Qos | None, ksid: bytes) -> bytearray:
    """An answer to OPEN_CONNECT; an error is its status alone."""
    body = b"" if qos is None else _pack_qos(qos) + ksid
    return frame(OPEN_RESPONSE, _U32.pack(status) + body)


def pack_key(index: int, key: Secret, metadata: bytes) -> bytearray:
    """A key on its way to its application; wipe what this returns."""
    size = _KEY.size + len(key) + _U32.size + len(metadata)
    return bytearray().join(
        (
            _HEADER.pack(*VERSION, GET_KEY_RESPONSE, size),
            _KEY.pack(Status.SUCCESS, index, len(key)),
            key.reveal(),
            _U32.pack(len(metadata)),
            metadata,
        )
    )


def pack_no_key(status: Status, metadata_size: int) -> bytearray:
    """No key; with status 8 the size that the metadata need."""
    body = _U32.pack(metadata_size) if status is Status.METADATA_TOO_SMALL else b""
    return frame(GET_KEY_RESPONSE, _U32.pack(status) + body)


def pack_close_answer(status: Status) -> bytearray:
    """An answer to CLOSE."""
    return frame(CLOSE_RESPONSE, _U32.pack(status))


def parse_status(payload: bytes | bytearray) -> Status:
    """The status at the start of an answer, or WireError."""
    if len(payload) < _U32.size:
        raise WireError("answer: has no status")
    (number,) = _U32.unpack_from(payload)
    try:
        return Status(number)
    except ValueError:
        raise WireError(f"answer: status {number} is not one of the standard") from None


def parse_open_answer(payload: bytearray) -> tuple[Status, Qos | None, bytes]:
    """Status, QoS and KSID; the latter two are there where a stream stands."""
    status = parse_status(payload)
    rest = bytes(payload[_U32.size :])
    if not rest:
        return status, None, b""
    qos, ksid = _unpack(_OPENING, rest, "OPEN_CONNECT")
    return status, _parse_qos(qos), ksid


def parse_key_answer(payload: bytearray) -> tuple[Status, int, Secret | None, bytes, int]:
    """Status, index, key, metadata, and the size that status 8 asks for."""
    status = parse_status(payload)
    if status is Status.METADATA_TOO_SMALL:
        _, size = _unpack(struct.Struct(">II"), bytes(payload), "GET_KEY")
        return status, 0, None, b"", int(size)
    if status is not Status.SUCCESS:
        return status, 0, None, b"", 0
    if len(payload) < _KEY.size + _U32.size:
        raise WireError("GET_KEY: the answer is too short")
    _, index, length = _KEY.unpack_from(payload)
    after = _KEY.size + length
    if after + _U32.size > len(payload):
        raise WireError("GET_KEY: the answer is shorter than its key")
    (size,) = _U32.unpack_from(payload, after)
    if after + _U32.size + size != len(payload):
        raise WireError("GET_KEY: metadata size does not fit the answer")
    return status, index, Secret(memoryview(payload)[_KEY.size : after]), bytes(payload[after + _U32.size :]), 0


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _unpack(layout: struct.Struct, octets: bytes, name: str) -> tuple[Any, ...]:
    if len(octets) != layout.size:
        raise WireError(f"{name}: {layout.size} octets are needed, not {len(octets)}")
    return layout.unpack(octets)


def _pack_ksid(ksid: bytes) -> bytes:
    if len(ksid) != KSID_OCTETS:
        raise RequestRefused(f"Key_stream_ID: {KSID_OCTETS} octets are needed")
    return ksid


def _pack_qos(qos: Qos) -> bytes:
    *numbers, mimetype = msgspec.structs.astuple(qos)
    if len(mimetype) > MIMETYPE_OCTETS or not mimetype.isascii():
        raise RequestRefused(f"qos: Metadata mimetype: at most {MIMETYPE_OCTETS} ASCII characters")
    try:
        return _QOS.pack(*numbers, mimetype.encode())
    except struct.error as error:
        raise RequestRefused("qos: numbers from 0 to 4294967295 are needed") from error


def _parse_qos(octets: bytes) -> Qos:
    *numbers, mimetype = _QOS.unpack(octets)
    text, _, padding = mimetype.partition(b"\0")
    if padding.strip(b"\0") or not text.isascii():
        raise WireError("qos: Metadata mimetype: ASCII, filled up with NUL, is needed")
    return Qos(**dict(zip(Qos.__struct_fields__, (*numbers, text.decode()), strict=True)))
