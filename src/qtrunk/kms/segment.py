"""Segment files: the sealed material of one block of link key, readable piece by piece, gone at a stroke.

A row that is deleted from a database stays readable in its file, its log and the disk. So the material of a
block lies in a file of its own, under a random segment key that exists only in this file's header, wrapped
by the KEK. To shred a block is to overwrite that header: what the disk may keep of the rest opens with
nothing.

Layout, integers big-endian:

    magic (8) | length of the material, octets (4) | sealed segment key (80) | pieces

Piece i is PIECE_OCTETS of material (the last one may be shorter) with its tag, AES-256-GCM, nonce i. A
segment is written once, so no nonce repeats under its key. The place (node, link, block, piece) is
associated data.

Errors: StoreError (disk), SegmentDamagedError (the file is gone, cut or changed).
"""

import os
import re
import struct
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qtrunk.base.errors import AuthenticationFailed, StoreError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness
from qtrunk.kms.key import block_name
from qtrunk.kms.seal import SEAL_OVERHEAD_OCTETS, TAG_OCTETS, associated, seal, sync_directory, unseal

PIECE_OCTETS = 4096
_MAGIC = b"QTSEGM\x00\x01"
_KEY_OCTETS = 32
_SEALED_KEY_OCTETS = _KEY_OCTETS + SEAL_OVERHEAD_OCTETS
_HEADER = struct.Struct(f">8sI{_SEALED_KEY_OCTETS}s")
_LINK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SUFFIX = ".seg"


class SegmentDamagedError(StoreError):
    """A segment does not open any more; its block is lost."""

    def __init__(self, link: LinkId, block: int, why: str) -> None:
        super().__init__(f"{block_name(link, block)}: the sealed segment is {why}; the block is lost")
        self.link = link
        self.block = block


class Segments:
    """The segment files of one node."""

    def __init__(self, directory: Path, node: NodeId, kek: Secret) -> None:
        self._directory = directory
        self._node = node
        self._kek = kek
        directory.mkdir(mode=0o700, exist_ok=True)

    def write(self, link: LinkId, block: int, material: Secret) -> None:
        """Seal a block's material into a new file, durable on return; OSError leaves no file behind."""
        path = self._path(link, block)
        segment_key = Secret(randomness.octets(_KEY_OCTETS))
        sealed_key = seal(self._kek, segment_key.reveal(), self._place(link, block, len(material)))
        box = AESGCM(segment_key.reveal())
        octets = material.reveal()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(_HEADER.pack(_MAGIC, len(material), sealed_key))
                for index in range(-(-len(material) // PIECE_OCTETS)):
                    piece = octets[index * PIECE_OCTETS : (index + 1) * PIECE_OCTETS]
                    out.write(box.encrypt(_nonce(index), piece, self._place(link, block, index)))
                out.flush()
                os.fsync(out.fileno())
            sync_directory(self._directory)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            segment_key.wipe()

    def read(self, link: LinkId, block: int, offset: int, length: int, into: bytearray) -> None:
        """Append octets of a block's material to `into`, or raise SegmentDamagedError."""
        try:
            with self._path(link, block).open("rb", buffering=0) as source:
                self._read(source.fileno(), link, block, offset, length, into)
        except FileNotFoundError as error:
            raise SegmentDamagedError(link, block, "gone") from error

    def shred(self, link: LinkId, block: int) -> None:
        """Overwrite the key that opens a segment, then remove the file; nothing to do when it is gone."""
        path = self._path(link, block)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            os.pwrite(handle, bytes(_HEADER.size), 0)
            os.fsync(handle)
        finally:
            os.close(handle)
        path.unlink()
        sync_directory(self._directory)

    def present(self) -> set[tuple[LinkId, int]]:
        """The blocks that have a segment file, whole or not."""
        found: set[tuple[LinkId, int]] = set()
        for path in self._directory.iterdir():
            link, _, block = path.stem.rpartition(".")
            if path.suffix != _SUFFIX or not _LINK_NAME.fullmatch(link) or not block.isdecimal():
                raise StoreError(f"key store: {path} is not a segment file; move it away")
            found.add((LinkId(link), int(block)))
        return found

    def _read(self, handle: int, link: LinkId, block: int, offset: int, length: int, into: bytearray) -> None:
        header = os.pread(handle, _HEADER.size, 0)
        if len(header) < _HEADER.size:
            raise SegmentDamagedError(link, block, "cut short")
        magic, total, sealed_key = _HEADER.unpack(header)
        if magic != _MAGIC or not 0 <= offset <= offset + length <= total:
            raise SegmentDamagedError(link, block, "not what was written")
        try:
            segment_key = unseal(self._kek, sealed_key, self._place(link, block, total))
            box = AESGCM(segment_key.reveal())
            segment_key.wipe()
            first, last = offset // PIECE_OCTETS, (offset + length - 1) // PIECE_OCTETS
            for index in range(first, last + 1):
                base = index * PIECE_OCTETS
                size = min(PIECE_OCTETS, total - base) + TAG_OCTETS
                sealed = os.pread(handle, size, _HEADER.size + index * (PIECE_OCTETS + TAG_OCTETS))
                piece = bytearray(box.decrypt(_nonce(index), sealed, self._place(link, block, index)))
                into += memoryview(piece)[max(0, offset - base) : offset + length - base]
                piece[:] = bytes(len(piece))
        except (InvalidTag, AuthenticationFailed) as error:
            raise SegmentDamagedError(link, block, "changed or cut short") from error

    def _path(self, link: LinkId, block: int) -> Path:
        if not _LINK_NAME.fullmatch(link) or block < 0:
            raise StoreError(f"{block_name(link, block)}: not a name that a segment can have")
        return self._directory / f"{link}.{block}{_SUFFIX}"

    def _place(self, link: LinkId, block: int, position: int) -> bytes:
        return associated("segment", self._node, link, block, position)


def _nonce(index: int) -> bytes:
    return index.to_bytes(12, "big")
