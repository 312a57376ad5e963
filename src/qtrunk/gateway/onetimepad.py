"""The one-time-pad mode of a protected file: as secret and as authentic as the key, whatever anyone computes.

    header as in gateway.sealedfile, ciphertext (as long as the file), 16-octet Wegman-Carter tag

Key octets in order: 32 for the tag (16 hash key, 16 pad), then one for each octet of the file. The tag covers header
and ciphertext, chunk by chunk. Every octet of key is used once. The file's size is in the header, so a cut or longer
file is refused before any key is fetched. Memory: a few times the file, which is at most SIZE_MAX.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import BinaryIO

from qtrunk.base.errors import AuthenticationFailed, SealedFileError
from qtrunk.base.ports import SuppliedKey, SupplyStatus
from qtrunk.base.secret import Secret
from qtrunk.crypto import its
from qtrunk.gateway.sealedfile import HEADER_OCTETS_MAX, ONE_TIME_PAD, Header, Opened, header_octets

LABEL = b"qtrunk sealed file one-time-pad 1"
CHUNK_OCTETS = 1 << 20
SIZE_MAX = 64 << 20
"""Larger files would want hours of key of a metropolitan link; AES-256-GCM is for those."""
HEADER_OCTETS_PER_KEY = 39
"""A UUID in quotation marks, and a comma."""
_HEADER_OCTETS_FIXED = 1024
_KEY_OCTETS_LEAST = 1024
"""A KME may give longer keys than a small file needs."""


@dataclass(frozen=True, slots=True)
class Need:
    """The keys that a file takes: `count` keys of `key_bits`."""

    count: int
    key_bits: int

    @property
    def bits(self) -> int:
        """In all."""
        return self.count * self.key_bits


@dataclass(frozen=True, slots=True)
class Forecast:
    """When the key for a file will be there."""

    bits: int
    available_bits: int
    wait_s: float | None
    """0 where it is there now, None where no key is coming in."""


def need(size: int, status: SupplyStatus) -> Need:
    """Keys for a file of `size` octets, of the largest size that the KME gives, the last one perhaps not used up."""
    if size > SIZE_MAX:
        raise SealedFileError(f"--otp: {size} octets are over {SIZE_MAX}; leave --otp out to use AES-256-GCM")
    octets = its.WC_KEY_OCTETS + size
    key_bits = min(status.key_bits_max, max(status.key_bits_min, 8 * octets))
    key_bits -= key_bits % 8
    if key_bits < max(8, status.key_bits_min):
        raise SealedFileError(
            f"--otp: KME {status.source_kme} gives keys of {status.key_bits_min} to {status.key_bits_max} bits, "
            "none of whole octets; leave --otp out to use AES-256-GCM"
        )
    wanted = Need(count=ceil(8 * octets / key_bits), key_bits=key_bits)
    if header_octets_max(wanted.count) > HEADER_OCTETS_MAX:
        raise SealedFileError(
            f"--otp: {size} octets would take {wanted.count} keys of {key_bits} bits, the longest of KME "
            f"{status.source_kme}, too many for one file; split it, or leave --otp out to use AES-256-GCM"
        )
    return wanted


def header_octets_max(key_count: int) -> int:
    """At most so long is the header of a file under so many keys."""
    return _HEADER_OCTETS_FIXED + HEADER_OCTETS_PER_KEY * key_count


def sealed_octets(size: int, wanted: Need) -> int:
    """At most so long is the protected form of a file of `size` octets."""
    return header_octets_max(wanted.count) + size + its.TAG_OCTETS


def forecast(wanted: Need, status: SupplyStatus) -> Forecast:
    """From what is stored now and the rate at which key comes in."""
    available = status.stored_key_count * status.key_bits
    missing = wanted.bits - available
    if missing <= 0:
        return Forecast(wanted.bits, available, 0.0)
    return Forecast(wanted.bits, available, missing / status.fill_bps if status.fill_bps > 0 else None)


def seal(source: BinaryIO, sink: BinaryIO, size: int, keys: Sequence[SuppliedKey], initiator: str, target: str) -> None:
    """Write the protected form of a file of exactly `size` octets."""
    header = header_octets(
        Header(
            mode=ONE_TIME_PAD,
            key_ids=[key.key_id for key in keys],
            initiator=initiator,
            target=target,
            chunk_octets=CHUNK_OCTETS,
            size=size,
            salt="",
        )
    )
    material = _joined(keys, size)
    parts = [header]
    for at, chunk in _pieces(source, size):
        pad = material.reveal()[its.WC_KEY_OCTETS + at : its.WC_KEY_OCTETS + at + len(chunk)]
        parts.append(its.one_time_pad(chunk, pad))
    if source.read(1):
        raise SealedFileError("the file grew while it was sealed")
    for part in parts:
        sink.write(part)
    sink.write(its.tag(material.reveal()[: its.WC_KEY_OCTETS], LABEL, parts))
    material.wipe()


def body_octets(header: Opened) -> int:
    """Octets that must follow the header."""
    if header.size > SIZE_MAX or header.chunk_octets != CHUNK_OCTETS:
        raise SealedFileError("header: size out of range")
    return header.size + its.TAG_OCTETS


def key_octets_max(header: Opened) -> int:
    """So long may each key of a file be: all are of one length, and one key less would not have done."""
    return max(_KEY_OCTETS_LEAST, (its.WC_KEY_OCTETS + header.size) // max(1, len(header.key_ids) - 1) + 1)


def open_(source: BinaryIO, sink: BinaryIO, header: Opened, keys: Sequence[SuppliedKey]) -> None:
    """Write what was sealed, after the tag over all of it has verified."""
    parts = [header.octets, *(chunk for _, chunk in _pieces(source, header.size))]
    tag = source.read(its.TAG_OCTETS + 1)
    material = _joined(keys, header.size)
    try:
        its.verify(material.reveal()[: its.WC_KEY_OCTETS], LABEL, parts, tag)
    except AuthenticationFailed as error:
        raise SealedFileError("the tag does not verify; the file is not what was sealed") from error
    at = its.WC_KEY_OCTETS
    for chunk in parts[1:]:
        sink.write(its.one_time_pad(chunk, material.reveal()[at : at + len(chunk)]))
        at += len(chunk)
    material.wipe()


def fetch(give: Callable[[int, int], list[SuppliedKey]], wanted: Need, per_request: int) -> Iterator[list[SuppliedKey]]:
    """Ask for the keys in batches. A pad octet is used once only if no key comes twice, so that is checked here."""
    seen: set[str] = set()
    left = wanted.count
    while left:
        batch = give(min(left, per_request), wanted.key_bits)
        seen |= {key.key_id for key in batch}
        left -= len(batch)
        if not batch or left < 0 or len(seen) != wanted.count - left:
            raise SealedFileError("the key manager gave another number of keys than it was asked for, or one twice")
        if any(8 * len(key.material) != wanted.key_bits for key in batch):
            raise SealedFileError(f"the key manager gave keys that are not {wanted.key_bits} bits long")
        yield batch


def _joined(keys: Sequence[SuppliedKey], size: int) -> Secret:
    octets = bytearray(sum(len(key.material) for key in keys))
    at = 0
    for key in keys:
        octets[at : at + len(key.material)] = key.material.reveal()
        at += len(key.material)
    try:
        material = Secret(octets)
    finally:
        octets[:] = bytes(len(octets))
    if len(material) < its.WC_KEY_OCTETS + size:
        raise SealedFileError("the keys are shorter than the file needs")
    return material


def _pieces(source: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < size:
        chunk = source.read(min(CHUNK_OCTETS, size - at))
        if not chunk:
            raise SealedFileError("the file ends early")
        yield at, chunk
        at += len(chunk)
