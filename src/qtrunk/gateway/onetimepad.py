"""The one-time-pad mode of a protected file: as secret and as authentic as the key, whatever anyone computes.

    header as in gateway.sealedfile, ciphertext (as long as the file), 16-octet Wegman-Carter tag

Key octets in order: 32 for the tag (16 hash key, 16 pad), then one for each octet of the file. The tag covers header
and ciphertext, chunk by chunk. Every octet of key is used once. The file's size is in the header, so a cut or longer
file is refused before any key is fetched.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import BinaryIO

from qtrunk.base.errors import AuthenticationFailed, SealedFileError
from qtrunk.base.ports import SuppliedKey, SupplyStatus
from qtrunk.base.secret import Secret
from qtrunk.crypto import its
from qtrunk.gateway.sealedfile import ONE_TIME_PAD, Header, Opened, header_octets

LABEL = b"qtrunk sealed file one-time-pad 1"
CHUNK_OCTETS = 1 << 20
SIZE_MAX = 64 << 20
"""Larger files would want hours of key of a metropolitan link; AES-256-GCM is for those."""


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
    return Need(count=ceil(8 * octets / key_bits), key_bits=key_bits)


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
    """Ask for the keys in batches."""
    left = wanted.count
    while left:
        batch = give(min(left, per_request), wanted.key_bits)
        left -= len(batch)
        yield batch


def _joined(keys: Sequence[SuppliedKey], size: int) -> Secret:
    material = Secret(b"".join(bytes(key.material.reveal()) for key in keys))
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
