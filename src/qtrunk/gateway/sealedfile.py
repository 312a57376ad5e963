"""The format of a protected file, AES-256-GCM mode: chunks of any number in constant memory. docs/sealed-file.md has it
field by field.

    magic, header length, header (JSON, canonical), chunks: 4-octet length, ciphertext with 16-octet tag

One 256-bit key shared with the peer protects one file. What encrypts is HKDF-SHA384 (RFC 5869) of that key, with a
fresh 32-octet salt from the header and the header's octets as info: should a key manager ever give a key twice, two
files still share neither nonce nor key, and nothing of one opens in the other. Chunk i has nonce i (12 octets,
big-endian, the last chunk's with the top bit set), and the header's octets with i and the last mark as associated data:
a chunk that is changed, moved, left out, repeated or taken from another file does not open, nor does a file that ends
early (no last chunk) or goes on (octets behind it). After the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár
2015).
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from qtrunk.base.errors import RequestRefused, SealedFileError
from qtrunk.base.ids import KeyId, SaeId, parse_key_id, parse_sae_id
from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness

MAGIC = b"qtrunk sealed 1\n"
CHUNK_OCTETS = 1 << 20
CHUNK_OCTETS_MAX = 16 << 20
TAG_OCTETS = 16
LENGTH_OCTETS = 4
HEADER_OCTETS_MAX = 4 << 20
KEY_BITS = 256
SALT_OCTETS = 32
AES_GCM, ONE_TIME_PAD = "aes-256-gcm", "one-time-pad"
_LABEL = b"qtrunk sealed file aes-256-gcm 1\n"
_LENGTH = struct.Struct(">I")
_SALT = re.compile(rf"[0-9a-f]{{{2 * SALT_OCTETS}}}")
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
    salt: str
    """In hexadecimal; empty in one-time-pad mode, which derives nothing."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A parsed and checked header, and its octets as they stand in the file."""

    mode: str
    key_ids: tuple[KeyId, ...]
    initiator: SaeId
    target: SaeId
    chunk_octets: int
    size: int
    salt: bytes
    octets: bytes


class Source(Protocol):
    """A binary file that is read, buffered or in memory."""

    def read(self, count: int, /) -> bytes:
        """As many octets, fewer only at the end."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer as far as octets come; 0 at the end."""


def header_octets(header: Header) -> bytes:
    """Magic, length and header, as they open a file."""
    body = msgspec.json.encode(header)
    return MAGIC + _LENGTH.pack(len(body)) + body


def read_header(source: Source) -> Opened:
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
    if msgspec.json.encode(header) != body or list(key_ids) != header.key_ids:
        raise SealedFileError("header: not in the form that sealing writes")
    if not 1 <= header.chunk_octets <= CHUNK_OCTETS_MAX or not key_ids or len(set(key_ids)) != len(key_ids):
        raise SealedFileError("header: chunk size or key IDs out of range")
    _check_mode(header)
    return Opened(
        mode=header.mode,
        key_ids=key_ids,
        initiator=initiator,
        target=target,
        chunk_octets=header.chunk_octets,
        size=header.size,
        salt=bytes.fromhex(header.salt),
        octets=start + body,
    )


def _check_mode(header: Header) -> None:
    if header.mode == AES_GCM:
        fits = len(header.key_ids) == 1 and header.size == 0 and _SALT.fullmatch(header.salt) is not None
    elif header.mode == ONE_TIME_PAD:
        fits = header.size >= 0 and header.salt == ""
    else:
        raise SealedFileError("header: mode is not known; a later qtrunk may have sealed this file")
    if not fits:
        raise SealedFileError(f"header: key IDs, size or salt out of range for {header.mode}")


def sealed_octets(size: int) -> int:
    """At most so long is the protected form of a file of `size` octets."""
    chunks = size // CHUNK_OCTETS + 1
    return size + chunks * (LENGTH_OCTETS + TAG_OCTETS) + 1024


def seal(
    source: Source,
    sink: BinaryIO,
    key_id: KeyId,
    key: Secret,
    initiator: SaeId,
    target: SaeId,
    progress: Callable[[int], None] = lambda _octets: None,
) -> None:
    """Write the protected form of `source` to `sink`. `key` is a fresh 256-bit key that is used for nothing else."""
    salt = randomness.octets(SALT_OCTETS)
    header = header_octets(
        Header(
            mode=AES_GCM,
            key_ids=[key_id],
            initiator=initiator,
            target=target,
            chunk_octets=CHUNK_OCTETS,
            size=0,
            salt=salt.hex(),
        )
    )
    cipher = _cipher(key, salt, header)
    sink.write(header)
    # Two buffers take turns, because a chunk is sealed when it is known whether another one follows.
    chunk, ahead = bytearray(CHUNK_OCTETS), bytearray(CHUNK_OCTETS)
    sealed = memoryview(bytearray(LENGTH_OCTETS + CHUNK_OCTETS + TAG_OCTETS))
    length, index = _fill(source, chunk), 0
    try:
        while True:
            following = _fill(source, ahead)
            end = LENGTH_OCTETS + length + TAG_OCTETS
            _LENGTH.pack_into(sealed, 0, length)
            cipher.encrypt_into(
                _nonce(index, following == 0),
                memoryview(chunk)[:length],
                _bound(header, index, following == 0),
                sealed[LENGTH_OCTETS:end],
            )
            sink.write(sealed[:end])
            progress(length)
            if not following:
                return
            chunk, ahead, length, index = ahead, chunk, following, index + 1
    finally:
        chunk[:] = ahead[:] = bytes(CHUNK_OCTETS)


def open_(
    source: Source,
    sink: BinaryIO,
    header: Opened,
    key: Secret,
    progress: Callable[[int], None] = lambda _octets: None,
) -> None:
    """Write what was sealed to `sink`; SealedFileError at the first octet that is not as it was sealed.

    What is in `sink` then must be thrown away: only a return says that the file is whole.
    """
    cipher = _cipher(key, header.salt, header.octets)
    # A chunk is read with the length of the next one: which chunk is the last is not said in clear, it is the one
    # behind which the file ends.
    sealed = memoryview(bytearray(header.chunk_octets + TAG_OCTETS + LENGTH_OCTETS))
    plain = memoryview(bytearray(header.chunk_octets))
    end, index = 0, 0
    got = _fill(source, sealed[:LENGTH_OCTETS])
    try:
        while True:
            if got < end + LENGTH_OCTETS:
                raise SealedFileError("the file ends early")
            (length,) = _LENGTH.unpack_from(sealed, end)
            if length > header.chunk_octets:
                raise SealedFileError(f"chunk {index}: longer than the header allows")
            end = length + TAG_OCTETS
            got = _fill(source, sealed[: end + LENGTH_OCTETS])
            if got < end:
                raise SealedFileError("the file ends early")
            is_last = got == end
            _decrypt(cipher, header, index, is_last=is_last, sealed=sealed[:end], plain=plain[:length])
            if not is_last and length != header.chunk_octets:
                raise SealedFileError(f"chunk {index}: shorter than the header says")
            sink.write(plain[:length])
            progress(length)
            if is_last:
                return
            index += 1
    finally:
        plain[:] = bytes(len(plain))


def _decrypt(
    cipher: AESGCM, header: Opened, index: int, *, is_last: bool, sealed: memoryview, plain: memoryview
) -> None:
    try:
        cipher.decrypt_into(_nonce(index, is_last), sealed, _bound(header.octets, index, is_last), plain)
    except InvalidTag as error:
        raise SealedFileError(f"chunk {index}: was changed, moved or cut; the file is not what was sealed") from error


def _cipher(key: Secret, salt: bytes, header: bytes) -> AESGCM:
    if 8 * len(key) != KEY_BITS:
        raise SealedFileError(f"key: {KEY_BITS} bits are needed, {8 * len(key)} came")
    derive = HKDF(algorithm=hashes.SHA384(), length=KEY_BITS // 8, salt=salt, info=_LABEL + header)
    return AESGCM(derive.derive(key.reveal()))


def _nonce(index: int, is_last: bool) -> bytes:
    return (index | (_LAST if is_last else 0)).to_bytes(12, "big")


def _bound(header: bytes, index: int, is_last: bool) -> bytes:
    return header + index.to_bytes(8, "big") + bytes([is_last])


def _fill(source: Source, buffer: bytearray | memoryview) -> int:
    """Read until the buffer is full or the source ends; how many octets came."""
    view, got = memoryview(buffer), 0
    while got < len(view):
        count = source.readinto(view[got:])
        if not count:
            break
        got += count
    return got
