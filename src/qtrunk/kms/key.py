"""The life of a key, as data: states, the moves between them, and what a pool is worth at any moment.

Three kinds of key live in a node. A *block* is what distillation gives (Y.3803 QKD-key): it waits until both
ends are known to hold it, then it is spent octet by octet. A *segment* is a stretch of end-to-end key between
two SAEs (Y.3803 KSA-key), relayed ahead of demand: once both nodes are known to hold it, the initiator's gives
it out key by key from the front, the target's by key ID. An *end-to-end key* of its own is made where a pool
does not fit (several targets, both SAEs at one node): at the initiator's node it is reserved before it exists
and has no material at rest; at a target's node it is stored and goes out once for each recipient. Everything
ends in a tombstone, because an identifier that was used once must never mean anything else (GS QKD 014
section 6). `LIFE` is the one table of moves.

This module does no I/O; `kms.store` makes each move durable before its effect is seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from qtrunk.base.errors import StoreError
from qtrunk.base.ids import LinkId
from qtrunk.base.secret import Secret


class BlockState(Enum):
    """Where a block of link key stands."""

    PENDING = "pending"
    """Held here; not known to be held by the peer."""
    AVAILABLE = "available"
    SPENT = "spent"
    """No octet left; the material is shredded, the record stays."""
    DESTROYED = "destroyed"


class KeyState(Enum):
    """Where an end-to-end key stands, at the initiator's node or at a target's."""

    RESERVED = "reserved"
    """Initiator's node: the identifier is taken, nothing was handed out."""
    STORED = "stored"
    """Target's node: material is held for recipients that have not come yet."""
    DELIVERED = "delivered"
    DESTROYED = "destroyed"


class RecipientState(Enum):
    """What one recipient of a stored key may still expect."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DESTROYED = "destroyed"


class SegmentState(Enum):
    """Where a segment of a pool of end-to-end key stands, at the initiator's node or at the target's."""

    AVAILABLE = "available"
    """Both nodes hold it; the initiator's gives it out from the front, the target's whatever is asked for by ID."""
    SPENT = "spent"
    """Every octet was given out or is overhead; the material is shredded, the record stays."""
    DESTROYED = "destroyed"
    """What was left is shredded, and the record says why."""


State = BlockState | KeyState | RecipientState | SegmentState
LIFE: Mapping[State, frozenset[State]] = {
    BlockState.PENDING: frozenset({BlockState.AVAILABLE, BlockState.DESTROYED}),
    BlockState.AVAILABLE: frozenset({BlockState.SPENT, BlockState.DESTROYED}),
    BlockState.SPENT: frozenset(),
    BlockState.DESTROYED: frozenset(),
    SegmentState.AVAILABLE: frozenset({SegmentState.SPENT, SegmentState.DESTROYED}),
    SegmentState.SPENT: frozenset(),
    SegmentState.DESTROYED: frozenset(),
    KeyState.RESERVED: frozenset({KeyState.DELIVERED, KeyState.DESTROYED}),
    KeyState.STORED: frozenset({KeyState.DELIVERED, KeyState.DESTROYED}),
    KeyState.DELIVERED: frozenset(),
    KeyState.DESTROYED: frozenset(),
    RecipientState.PENDING: frozenset({RecipientState.DELIVERED, RecipientState.DESTROYED}),
    RecipientState.DELIVERED: frozenset(),
    RecipientState.DESTROYED: frozenset(),
}
"""All moves there are: a state that is not named after another cannot follow it."""


def check_move(what: str, here: State, there: State) -> None:
    """Raise StoreError unless the table lets `what` go from `here` to `there`."""
    if there not in LIFE[here]:
        raise StoreError(f"{what} is {here.value} and cannot become {there.value}; nothing was changed")


@dataclass(frozen=True, slots=True)
class Slice:
    """Octets `offset` to `offset + length` of a block's material, counted alike at both ends."""

    block: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first octet after the slice."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Octets that this end took for one use: where they lie, and what they are, in that order."""

    slices: tuple[Slice, ...]
    material: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthReservation:
    """Octets set aside to authenticate one exchange of distillation."""

    block: int
    offset: int
    material: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLevel:
    """What a link's pool holds now, in octets."""

    auth_octets: int
    own_octets: int
    """This end may allocate so many."""
    peer_octets: int
    """The other end may allocate so many."""
    pending_octets: int
    """In blocks that the peer has not confirmed."""
    blocks: int
    """Blocks with octets left, pending ones too."""

    @property
    def total_octets(self) -> int:
        """What both ends may allocate for keys; authentication octets are not for keys."""
        return self.own_octets + self.peer_octets


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Where every octet that a link ever gave this node is or went; they add up at every moment."""

    generated: int
    pending: int
    available: int
    allocated: int
    followed: int
    """Spent because the peer allocated them."""
    authentication: int
    skipped: int
    """The peer passed over them, so nobody will ever use them."""
    destroyed: dict[str, int] = field(default_factory=dict)
    """By reason."""

    @property
    def unaccounted(self) -> int:
        """Zero, or octets went missing or were made from nothing."""
        spent = self.allocated + self.followed + self.authentication + self.skipped
        return self.generated - self.pending - self.available - spent - sum(self.destroyed.values())


def block_name(link: LinkId, block: int) -> str:
    """How messages name a block."""
    return f"link {link} block {block}"
