"""What the two ends of a link that a vendor's KMEs feed say to each other (kms.vendor), and the tags of it.

Numbers have bounds that any store takes, so that nobody need check them before the tag. A tag covers octets as sent.
"""

from collections.abc import Sequence
from typing import Annotated

import msgspec

from qtrunk.base.secret import Secret
from qtrunk.base.wire import Message, encode
from qtrunk.crypto import its
from qtrunk.topology import Link

PROTOCOL = "qtrunk vendor 1"
_SLOTS = {"offer": 0, "keys": 1, "accept": 2, "confirm": 3, "released": 4, "resolve": 0, "resolution": 1}
"""Which key of a portion tags which word. A portion serves one block or one settlement."""
_OF_BOB = frozenset({"accept", "released", "resolution"})
AUTH_OCTETS = 5 * its.WC_KEY_OCTETS
"""A portion of authentication key."""
_Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
_Numbers = Annotated[list[_Number], msgspec.Meta(max_length=1024)]


class Resume(Message, frozen=True, tag="resume"):
    """Bob after connecting."""

    last_block: _Number


class Resolve(Message, frozen=True, tag="resolve"):
    """Alice's answer; with held blocks it names an authentication key and is tagged."""

    held: _Numbers
    auth_block: _Number = 0
    auth_offset: _Number = 0


class Resolution(Message, frozen=True, tag="resolution"):
    """What Bob did about Alice's held blocks."""

    released: _Numbers
    destroyed: _Numbers


class Offer(Message, frozen=True, tag="offer"):
    """Alice: the vendor's keys that shall be a block."""

    block: _Number
    key_ids: list[str]
    key_bits: int
    statement: str
    """What stands behind the keys; both ends' topology must say the same."""
    auth_octets: _Number
    hash: bytes
    auth_block: _Number
    auth_offset: _Number


class Accept(Message, frozen=True, tag="accept"):
    """Bob: he got the same keys and holds them."""

    block: _Number


class Confirm(Message, frozen=True, tag="confirm"):
    """Alice: she holds them, too."""

    block: _Number


class Released(Message, frozen=True, tag="released"):
    """Bob: his are available now."""

    block: _Number


class Abort(Message, frozen=True, tag="abort"):
    """Either: the block is given up. Not authenticated: enough to destroy what nobody holds."""

    block: _Number
    cause: str
    why: str


class Wait(Message, frozen=True, tag="wait"):
    """Bob: his KME is down; he goes on asking. Not authenticated: who can say it falsely can as well be silent."""

    block: _Number


class Stream(Message, frozen=True, tag="stream"):
    """Alice: the key stream (GS QKD 004) that she has opened and Bob shall join.

    Not authenticated: the key IDs of an offer, which are, hold for one stream only, so that a false one costs a block.
    """

    ksid: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Tagged(Message, frozen=True, tag="tagged"):
    """A message as sent, and its tag."""

    body: bytes
    mac: bytes


class Tags:
    """The keys of one exchange, each used for one word."""

    def __init__(self, link: Link, about: int, material: Secret) -> None:
        self._link = link
        self._about = about
        self._material = material

    def _of(self, word: str) -> tuple[memoryview, bytes]:
        link, slot = self._link, _SLOTS[word]
        sender, receiver = (link.bob, link.alice) if word in _OF_BOB else (link.alice, link.bob)
        label = "|".join((PROTOCOL, word, sender, receiver, link.id, str(self._about)))
        key = self._material.reveal()[slot * its.WC_KEY_OCTETS : (slot + 1) * its.WC_KEY_OCTETS]
        return key, label.encode()

    def tag(self, word: str, parts: Sequence[bytes | memoryview]) -> bytes:
        """The tag of a word over these parts."""
        key, label = self._of(word)
        return its.tag(key, label, parts)

    def verify(self, word: str, parts: Sequence[bytes | memoryview], claimed: bytes) -> None:
        """AuthenticationFailed unless `claimed` is the peer's tag of it."""
        key, label = self._of(word)
        its.verify(key, label, parts, claimed)


def tagged(body: bytes, mac: bytes) -> bytes:
    """A message with its tag, as a frame."""
    return encode(Tagged(body=body, mac=mac))
