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
_BATCH_PIECES = 64
"""Read from the file at once."""
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
        octets, place = material.reveal(), self._block_place(link, block)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(_HEADER.pack(_MAGIC, len(material), sealed_key))
                for index in range(-(-len(material) // PIECE_OCTETS)):
                    piece = octets[index * PIECE_OCTETS : (index + 1) * PIECE_OCTETS]
                    out.write(box.encrypt(_nonce(index), piece, place + associated(index)))
                out.flush()
                os.fsync(out.fileno())
            sync_directory(self._directory)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            segment_key.wipe()

    def read(self, link: LinkId, block: int, offset: int, into: memoryview) -> None:
        """Fill `into` with octets of a block's material, or raise SegmentDamagedError."""
        reader = self.reader(link, block)
        try:
            reader.read(offset, into)
        finally:
            reader.close()

    def reader(self, link: LinkId, block: int) -> "SegmentReader":
        """A segment opened for many reads; SegmentDamagedError when it does not open."""
        try:
            return SegmentReader(self._path(link, block), self._kek, link, block, self._block_place(link, block))
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

    def rewrap(self, link: LinkId, block: int, old: Secret) -> None:
        """Wrap the key of a segment by this KEK instead of the `old` one, durably; one that opens under neither stays.

        The header lies in the first sector of the file, which disks write whole or not at all: after a crash it opens
        under one of the two.
        """
        handle = os.open(self._path(link, block), os.O_RDWR | os.O_NOFOLLOW)
        try:
            header = os.pread(handle, _HEADER.size, 0)
            if len(header) < _HEADER.size:
                return
            magic, total, sealed_key = _HEADER.unpack(header)
            try:
                segment_key = unseal(old, sealed_key, self._place(link, block, total))
            except AuthenticationFailed:
                return
            sealed_key = seal(self._kek, segment_key.reveal(), self._place(link, block, total))
            segment_key.wipe()
            os.pwrite(handle, _HEADER.pack(magic, total, sealed_key), 0)
            os.fsync(handle)
        finally:
            os.close(handle)

    def present(self) -> set[tuple[LinkId, int]]:
        """The blocks that have a segment file, whole or not."""
        found: set[tuple[LinkId, int]] = set()
        for path in self._directory.iterdir():
            link, _, block = path.stem.rpartition(".")
            if path.suffix != _SUFFIX or not _LINK_NAME.fullmatch(link) or not block.isdecimal():
                raise StoreError(f"key store: {path} is not a segment file; move it away")
            found.add((LinkId(link), int(block)))
        return found

    def _path(self, link: LinkId, block: int) -> Path:
        if not _LINK_NAME.fullmatch(link) or block < 0:
            raise StoreError(f"{block_name(link, block)}: not a name that a segment can have")
        return self._directory / f"{link}.{block}{_SUFFIX}"

    def _block_place(self, link: LinkId, block: int) -> bytes:
        """What comes before the position in the associated data of a piece."""
        return associated("segment", self._node, link, block)

    def _place(self, link: LinkId, block: int, position: int) -> bytes:
        return self._block_place(link, block) + associated(position)


class SegmentReader:
    """One segment, open; the piece that was read last stays at hand. `close` it: until then the segment key lives."""

    def __init__(self, path: Path, kek: Secret, link: LinkId, block: int, place: bytes) -> None:
        """`place`: the associated data of its pieces, up to their position."""
        self._link, self._block, self._place = link, block, place
        self._at, self._piece = -1, Secret(bytes(PIECE_OCTETS))
        self._is_used = False
        # Kept open, for speed, as long as the reader: `close` ends it.
        self._octets = self._piece.fill()
        self._handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            header = os.pread(self._handle, _HEADER.size, 0)
            if len(header) < _HEADER.size:
                raise SegmentDamagedError(link, block, "cut short")
            magic, self._total, sealed_key = _HEADER.unpack(header)
            if magic != _MAGIC:
                raise SegmentDamagedError(link, block, "not what was written")
            try:
                segment_key = unseal(kek, sealed_key, place + associated(self._total))
            except AuthenticationFailed as error:
                raise SegmentDamagedError(link, block, "changed or cut short") from error
            self._box = AESGCM(segment_key.reveal())
            segment_key.wipe()
        except BaseException:
            os.close(self._handle)
            raise

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` with octets of the material, or raise SegmentDamagedError."""
        end = offset + len(into)
        if not 0 <= offset <= end <= self._total:
            raise SegmentDamagedError(self._link, self._block, "not what was written")
        place = offset
        while place < end:
            index, within = divmod(place, PIECE_OCTETS)
            whole = 0 if within else min(_BATCH_PIECES, end // PIECE_OCTETS - index)
            after = (index + max(1, whole)) * PIECE_OCTETS
            if whole:
                # Nothing else will be read of these: they need not pass by the piece at hand.
                self._open(index, whole, into[place - offset : after - offset])
            else:
                if index != self._at:
                    self._load(index)
                last = min(end, after) - index * PIECE_OCTETS
                into[place - offset : min(end, after) - offset] = self._octets[within:last]
            place = after

    def secrets(self, offset: int, length: int, step: int, count: int) -> list[Secret]:
        """`count` times `length` octets of the material, `step` apart; quick for what lies within one piece."""
        self._is_used = True
        start, span = offset - self._at * PIECE_OCTETS, step * (count - 1) + length
        if self._at >= 0 <= start and start + span <= PIECE_OCTETS and offset + span <= self._total:
            octets = self._octets
            return [Secret(octets[place : place + length]) for place in range(start, start + span, step)]
        whole = Secret(bytes(span))
        with whole.fill() as into:
            self.read(offset, into)
        if count == 1:
            return [whole]
        with whole.reveal() as view:
            return [Secret(view[place : place + length]) for place in range(0, span, step)]

    def rest(self) -> None:
        """Overwrite the piece at hand, unless some of it was given out since the last call."""
        if self._at >= 0 and not self._is_used:
            self._at = -1
            self._octets[:] = bytes(PIECE_OCTETS)
        self._is_used = False

    def close(self) -> None:
        """Forget the material at hand."""
        self._at = -1
        self._octets.release()
        self._piece.wipe()
        os.close(self._handle)

    def _load(self, index: int) -> None:
        """The piece at hand is this one."""
        self._at = -1
        try:
            self._open(index, 1, self._octets[: min(PIECE_OCTETS, self._total - index * PIECE_OCTETS)])
        except SegmentDamagedError:
            self._piece.wipe()
            raise
        self._at = index

    def _open(self, index: int, count: int, into: memoryview) -> None:
        """So many pieces from `index` on; only the last one of the segment may be shorter than others."""
        step, box, place = PIECE_OCTETS + TAG_OCTETS, self._box, self._place
        sealed = memoryview(os.pread(self._handle, len(into) + count * TAG_OCTETS, _HEADER.size + index * step))
        try:
            for number in range(count):
                piece = sealed[number * step : (number + 1) * step]
                octets = into[number * PIECE_OCTETS : (number + 1) * PIECE_OCTETS]
                box.decrypt_into(_nonce(index + number), piece, place + associated(index + number), octets)
        except (InvalidTag, ValueError) as error:
            # ValueError: fewer octets than there must be.
            raise SegmentDamagedError(self._link, self._block, "changed or cut short") from error


def _nonce(index: int) -> bytes:
    return index.to_bytes(12, "big")
