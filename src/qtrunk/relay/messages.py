"""What key managers say to their neighbours (reference point Kx; names after ITU-T Q.4163), sealed hop by hop.

Every message is a body inside `Sealed`: a Wegman-Carter tag over the body's octets as sent, under 32 octets of the
link's own key, taken from the sender's direction. The label holds sender, receiver and link, and an octet of key is
followed only once, so a message cannot be reflected, replayed or moved to another link.

A body is parsed before its tag is verified, so parsing must be safe with octets from anyone: numbers are bounded to
what the store can hold, nothing nests freely, and what does not fit is a WireError.
"""

from typing import Annotated

import msgspec

from qtrunk.base.errors import WireError
from qtrunk.base.wire import Message, decode
from qtrunk.crypto.hybrid import Wrapped

KEYS_MAX = 128
KEY_BITS_MAX = 8192
HOPS_MAX = 64
ROUTES_MAX = 8
"""Disjoint routes of one cargo."""
SEGMENT_NUMBER_MAX = 0xFFFFFFFF
SEGMENT_OCTETS_MAX = 8 << 20
PART_OCTETS_MAX = SEGMENT_OCTETS_MAX + 1024
"""Of a cargo or a share of one, with what a share has before it."""
_PLACE_MAX = 1 << 40
"""Far above any block number or size, far below what an SQLite integer holds."""
_Place = Annotated[int, msgspec.Meta(ge=0, le=_PLACE_MAX)]
_Length = Annotated[int, msgspec.Meta(ge=1, le=_PLACE_MAX)]
_Number = Annotated[int, msgspec.Meta(ge=1, le=ROUTES_MAX)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
"""Finite: JSON, in which receipts are kept, has no other numbers."""
SlicesOnWire = list[tuple[_Place, _Place, _Length]]
"""Block, offset, octets of each piece of link key."""
VENDOR_CHARACTERS_MAX = 1000
BLOCKS_OF_HOP_MAX = 8192
RelayId = Annotated[str, msgspec.Meta(max_length=64)]


class Sealed(Message, frozen=True, tag="sealed"):
    """A body and its tag."""

    body: bytes
    auth: SlicesOnWire
    tag: bytes


class BlockUsed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A block of link key that encrypted a batch on one hop, and what it is worth."""

    block: _Place
    epsilon: _NotNegative
    qber: _NotNegative
    authentication: Annotated[str, msgspec.Meta(max_length=32)]
    """What authenticated the making of the block: key of the link, or signatures that stand as long as their scheme."""


class Hop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The record of one hop, for receipts; `from` says in which direction the link was used."""

    link: str
    sender: str = msgspec.field(name="from")
    blocks: Annotated[list[BlockUsed], msgspec.Meta(max_length=BLOCKS_OF_HOP_MAX)]
    epsilon: _NotNegative
    vendor: Annotated[str, msgspec.Meta(max_length=VENDOR_CHARACTERS_MAX)] = ""
    """Where the blocks are of a vendor's keys: what stands behind them."""


class Share(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which share of a cargo a relay carries."""

    group: Annotated[str, msgspec.Meta(max_length=64)]
    """The same for all shares of a cargo to one node."""
    number: Annotated[int, msgspec.Meta(ge=0, le=ROUTES_MAX)]
    """From 1."""
    count: Annotated[int, msgspec.Meta(ge=2, le=ROUTES_MAX)]
    needed: Annotated[int, msgspec.Meta(ge=2, le=ROUTES_MAX)]
    """So many of them give the cargo."""


class KeyRelay(Message, frozen=True, tag="key-relay"):
    """Forward: end-to-end key for the targets at the last node of the route.

    Either keys under their IDs (`segment` is 0), or a segment of the pool from the initiator to its one target. Before
    the keys stand CONFIRM_OCTETS that key the end-to-end confirmation; a segment has them in its head.
    """

    relay_id: RelayId
    route: list[str]
    initiator: str
    targets: list[str]
    all_targets: list[str]
    key_ids: list[str]
    key_bits: int
    segment: Annotated[int, msgspec.Meta(ge=0, le=SEGMENT_NUMBER_MAX)]
    expires_unix_s: _NotNegative
    hybrid: Wrapped | None
    """The seed of the mask that is added to what came over the relays."""
    pad: SlicesOnWire
    ciphertext: bytes
    hops: list[Hop]
    share: Share | None = None
    """None: the whole cargo travels here."""


class KeyRelayCompletion(Message, frozen=True, tag="key-relay-completion"):
    """Back: the keys are stored at the target's node, or what went wrong where."""

    relay_id: RelayId
    is_stored: bool
    confirm: bytes
    """A tag of what is stored, under octets of it that are used for nothing else; empty where nothing is."""
    reason: str
    failed_link: str
    hops: list[Hop]
    """Of the shares that the cargo was made of, one route after the other."""
    taken: tuple[_Number, ...] = ()
    """The numbers of those shares."""
    wrong: tuple[str, ...] = ()
    """The links over which shares came that do not go with the others."""


class RelayPad(Message, frozen=True, tag="relay-pad"):
    """Forward, where XORs are announced: the sender has taken these octets of the link for the relay."""

    relay_id: RelayId
    pad: SlicesOnWire
    order: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    """Digest of the order that the octets are for."""


class KeyVoid(Message, frozen=True, tag="key-void"):
    """Forward: the initiator was not given these keys; whoever stores them destroys them."""

    relay_id: RelayId
    route: list[str]
    key_ids: list[str]
    initiator: str
    target: str
    segment: int


class PoolGrantRequest(Message, frozen=True, tag="pool-grant-request"):
    """This end's direction runs low: the peer may give of its own."""

    wanted_octets: int


class PoolGrant(Message, frozen=True, tag="pool-grant"):
    """Octets of the sender's direction that the receiver may spend from now on."""

    slices: SlicesOnWire


KxMessage = KeyRelay | KeyRelayCompletion | RelayPad | KeyVoid | PoolGrantRequest | PoolGrant


ANNOUNCED_SERVICE = "relay-announced"
"""Of the notes of `relay.announced`."""


class Order(Message, frozen=True, tag="relay-order"):
    """In a note to every node of a route but the first: relay this by announced XORs (`relay.announced`)."""

    relay: KeyRelay
    """What is to be relayed; `hops` is of the first link, `ciphertext` what the initiator's node announces: the cargo
    XOR its octets of that link. None: these are the cargo."""
    octets: Annotated[int, msgspec.Meta(ge=1, le=PART_OCTETS_MAX)]
    """Of every link."""


class Announcement(Message, frozen=True, tag="relay-announcement"):
    """In a note to the last node of a route: the XOR of what the sender has of the two links beside it."""

    relay_id: RelayId
    octets: bytes
    hop: Hop
    """Of the link onward."""


AnnouncedNote = Order | Announcement | KeyRelayCompletion
"""What the notes of `relay.announced` hold; the last: back to the initiator's node."""


def parse(octets: bytes) -> tuple[Sealed, KxMessage]:
    """A sealed message and its body, not yet authenticated; WireError where it is none."""
    try:
        sealed = decode(octets, Sealed)
        body: KxMessage = decode(sealed.body, KxMessage)
    except RecursionError as error:
        # The parser skips what stands before the tag of a union, however deep it nests.
        raise WireError("not a valid message: nested too deeply") from error
    return sealed, body
