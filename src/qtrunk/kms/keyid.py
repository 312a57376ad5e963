"""Key IDs that say, to who holds the segment, which of its octets they mean, and that nobody else can make.

Keys of a pool lie ready at both nodes before anyone asks for one, so a key ID must mean the same octets at both without
a further message. An ID is a UUID (RFC 9562, the form of version 4) whose 122 free bits are

    segment number (32) | place, masked (30) | tag (60)

with place = unit of the segment (20) | length of the key in octets, less one (10), a unit being UNIT_OCTETS octets. The
tag is AES-128 of segment number and place under one key of the segment, cut; the mask is AES-128 of the tag under
another, cut: a synthetic-IV construction (after RFC 5297), so that IDs look random to everyone else, and a target that
makes one up finds a valid one with probability 2^-60 a try. Both keys are octets of the segment itself, which only its
two nodes hold.
"""

from struct import Struct

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from qtrunk.base.ids import KeyId
from qtrunk.base.secret import Secret
from qtrunk.kernels import key_ids

UNIT_OCTETS = 8
UNITS_MAX = 1 << 20
"""Of one segment: 8 MiB."""
KEY_OCTETS_MAX = 1024
ID_KEY_OCTETS = 32
AHEAD = 64

_TAG = Struct(">QQ")
_TAG_BITS = 60
_LOW = (1 << 62) - 1


def units_of(key_octets: int) -> int:
    """How many units a key of so many octets takes."""
    return -(-key_octets // UNIT_OCTETS)


def segment_of(key_id: KeyId) -> int:
    """The segment number that a key ID names, if it is one of a pool at all."""
    return int(key_id[:8], 16)


class KeyIds:
    """The key IDs of one segment. Keys are used one after the other, so IDs are made AHEAD at a time."""

    def __init__(self, number: int, id_key: Secret) -> None:
        octets = bytes(id_key.reveal())
        self._number = number
        # ECB of single blocks that never repeat: the permutation itself, used as a pseudo-random function.
        self._tags = Cipher(algorithms.AES(octets[:16]), modes.ECB()).encryptor()  # noqa: S305
        self._masks = Cipher(algorithms.AES(octets[16:ID_KEY_OCTETS]), modes.ECB()).encryptor()  # noqa: S305
        self._ready: dict[tuple[int, int], KeyId] = {}
        self._expected: dict[KeyId, tuple[int, int]] = {}

    def make(self, units: range, key_octets: int) -> list[KeyId]:
        """The IDs of keys of `key_octets` octets that begin at these units."""
        if len(units) > 1:
            return self._make(units, key_octets)
        place = (units.start, key_octets)
        key_id = self._ready.pop(place, None)
        if key_id is None:
            self._look_ahead(*place)
            key_id = self._ready.pop(place)
        return [key_id]

    def octets(self, units: range, key_octets: int) -> bytes:
        """The same IDs as their 16 octets each."""
        return key_ids(self._number, units, key_octets, self._tags.update, self._masks.update)

    def place(self, key_id: KeyId) -> tuple[int, int] | None:
        """Unit and octets that an ID means, or None: not an ID of this segment."""
        place = self._expected.pop(key_id, None)
        if place is not None:
            return place
        whole = int(key_id.replace("-", ""), 16)
        high, low = whole >> 64, whole & _LOW
        hidden = (high >> 16 & 0xFFFF) << 14 | (high & 0xFFF) << 2 | low >> _TAG_BITS
        tag = (low & (1 << _TAG_BITS) - 1) << 4
        claimed = hidden ^ _TAG.unpack(self._masks.update(_TAG.pack(tag, 0)))[0] >> 34
        unit, octets = claimed >> 10, (claimed & 0x3FF) + 1
        # Making the ID anew checks every bit of it; IDs are public, so how long the comparison takes tells nothing.
        if self._make(range(unit, unit + 1), octets)[0] != key_id:
            return None
        self._look_ahead(unit, octets)
        self._expected = {ready: place for place, ready in self._ready.items() if ready != key_id}
        self._ready = {}
        return unit, octets

    def _look_ahead(self, unit: int, key_octets: int) -> None:
        stride = units_of(key_octets)
        units = range(unit, min(UNITS_MAX, unit + AHEAD * stride), stride)
        made = self._make(units, key_octets)
        self._ready = {(place, key_octets): key_id for place, key_id in zip(units, made, strict=True)}

    def _make(self, units: range, key_octets: int) -> list[KeyId]:
        text = self.octets(units, key_octets).hex()
        parts = [text[i : i + 32] for i in range(0, len(text), 32)]
        return [KeyId(f"{part[:8]}-{part[8:12]}-{part[12:16]}-{part[16:20]}-{part[20:]}") for part in parts]
