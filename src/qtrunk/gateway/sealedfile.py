"""The format of a protected file, AES-256-GCM mode: chunks of any number in constant memory. docs/sealed-file.md has it
field by field.

    magic, header length, header (JSON, canonical), chunks: 4-octet length, ciphertext with 16-octet tag

The key is one 256-bit key shared with the peer, used for this one file. Chunk i has nonce i (12 octets, big-endian, the
last chunk's with the top bit set), and the header's octets with i and the last mark as associated data: a chunk that is
changed, moved, left out, repeated or taken from another file does not open, nor does a file that ends early (no last
chunk) or goes on (octets behind it). After the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár 2015). A fresh
key for each file makes counting nonces safe.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qtrunk.base.errors import RequestRefused, SealedFileError
from qtrunk.base.ids import KeyId, SaeId, parse_key_id, parse_sae_id
from qtrunk.base.secret import Secret

MAGIC = b"qtrunk sealed 1\n"
CHUNK_OCTETS = 1 << 20
CHUNK_OCTETS_MAX = 16 << 20
TAG_OCTETS = 16
HEADER_OCTETS_MAX = 4 << 20
KEY_BITS = 256
AES_GCM, ONE_TIME_PAD = "aes-256-gcm", "one-time-pad"
_LENGTH = struct.Struct(">I")
_LAST = 1 << 95


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in clear before the chunks, and is bound into every tag."""

    mode: str
    key_ids: list[str]
    initiator: str
    target: str
    chunk_octets: int
    size: int
    """Octets of the file in one-time-pad mode, where the key's length depends on it; 0 else."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A parsed and checked header, and its octets as they stand in the file."""

    mode: str
    key_ids: tuple[KeyId, ...]
    initiator: SaeId
    target: SaeId
    chunk_octets: int
    size: int
    octets: bytes


def header_octets(header: Header) -> bytes:
    """Magic, length and header, as they open a file."""
    body = msgspec.json.encode(header)
    return MAGIC + _LENGTH.pack(len(body)) + body


def read_header(source: BinaryIO) -> Opened:
    """Parse and check a file's header; SealedFileError says what is wrong."""
    start = source.read(len(MAGIC) + _LENGTH.size)
    if len(start) < len(MAGIC) + _LENGTH.size or not start.startswith(MAGIC):
        raise SealedFileError("not a file sealed by qtrunk (version 1)")
    (length,) = _LENGTH.unpack(start[len(MAGIC) :])
    if length > HEADER_OCTETS_MAX:
        raise SealedFileError("header: too long")
    body = source.read(length)
    try:
        header = msgspec.json.decode(body, type=Header)
        key_ids = tuple(parse_key_id(key_id) for key_id in header.key_ids)
        initiator, target = parse_sae_id(header.initiator), parse_sae_id(header.target)
    except (msgspec.MsgspecError, UnicodeDecodeError, RequestRefused) as error:
        raise SealedFileError(f"header: {error}") from error
    if msgspec.json.encode(header) != body or header.mode not in (AES_GCM, ONE_TIME_PAD):
        raise SealedFileError("header: not in the form that sealing writes")
    if not 1 <= header.chunk_octets <= CHUNK_OCTETS_MAX or header.size < 0 or not key_ids:
        raise SealedFileError("header: chunk size, size or key IDs out of range")
    return Opened(header.mode, key_ids, initiator, target, header.chunk_octets, header.size, start + body)


def seal(
    source: BinaryIO,
    sink: BinaryIO,
    key_id: KeyId,
    key: Secret,
    initiator: SaeId,
    target: SaeId,
    progress: Callable[[int], None] = lambda _octets: None,
) -> None:
    """Write the protected form of `source` to `sink`. `key` is a fresh 256-bit key that is used for nothing else."""
    header = header_octets(
        Header(
            mode=AES_GCM,
            key_ids=[key_id],
            initiator=initiator,
            target=target,
            chunk_octets=CHUNK_OCTETS,
            size=0,
        )
    )
    sink.write(header)
    cipher = _cipher(key)
    for index, (chunk, is_last) in enumerate(_chunks(source)):
        sink.write(_LENGTH.pack(len(chunk)))
        sink.write(cipher.encrypt(_nonce(index, is_last), chunk, _bound(header, index, is_last)))
        progress(len(chunk))


def open_(
    source: BinaryIO,
    sink: BinaryIO,
    header: Opened,
    key: Secret,
    progress: Callable[[int], None] = lambda _octets: None,
) -> None:
    """Write what was sealed to `sink`; SealedFileError at the first octet that is not as it was sealed.

    What is in `sink` then must be thrown away: only a return says that the file is whole.
    """
    cipher = _cipher(key)
    index = 0
    while True:
        (length,) = _LENGTH.unpack(_exactly(source, _LENGTH.size))
        if length > header.chunk_octets:
            raise SealedFileError(f"chunk {index}: longer than the header allows")
        sealed = _exactly(source, length + TAG_OCTETS)
        # Which chunk is the last one is not said in clear: it is the one behind which the file ends.
        is_last = not source.peek(1) if hasattr(source, "peek") else _at_end(source)
        try:
            chunk = cipher.decrypt(_nonce(index, is_last), sealed, _bound(header.octets, index, is_last))
        except InvalidTag as error:
            raise SealedFileError(
                f"chunk {index}: was changed, moved or cut; the file is not what was sealed"
            ) from error
        if not is_last and length != header.chunk_octets:
            raise SealedFileError(f"chunk {index}: shorter than the header says")
        sink.write(chunk)
        progress(len(chunk))
        if is_last:
            return
        index += 1


def _cipher(key: Secret) -> AESGCM:
    if 8 * len(key) != KEY_BITS:
        raise SealedFileError(f"key: {KEY_BITS} bits are needed, {8 * len(key)} came")
    return AESGCM(key.reveal())


def _nonce(index: int, is_last: bool) -> bytes:
    return (index | (_LAST if is_last else 0)).to_bytes(12, "big")


def _bound(header: bytes, index: int, is_last: bool) -> bytes:
    return header + index.to_bytes(8, "big") + bytes([is_last])


def _chunks(source: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Whole chunks, the last one marked; an empty file is one empty last chunk."""
    chunk = source.read(CHUNK_OCTETS)
    while True:
        ahead = source.read(CHUNK_OCTETS)
        yield chunk, not ahead
        if not ahead:
            return
        chunk = ahead


def _exactly(source: BinaryIO, count: int) -> bytes:
    octets = source.read(count)
    if len(octets) != count:
        raise SealedFileError("the file ends early")
    return octets


def _at_end(source: BinaryIO) -> bool:
    here = source.tell()
    is_end = not source.read(1)
    source.seek(here)
    return is_end
