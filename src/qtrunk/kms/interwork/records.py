"""Interworking with a foreign key manager (ETSI GS QKD 020 V1.1.1): what is on record about a key, and what is asked.

Both machines (`sender`, `receiver`) put each move on record here before they let its effect be seen. A record is never
removed while its end could be doubted (`KEPT_S`): one that ended is the tombstone of its key ID. States are those of
docs/etsi020.md.

    sender      SENT → ACCEPTED → RELAYED          UNCERTAIN: no answer, or one that promises nothing
                any but RELAYED → FAILED            the foreign KMS holds nothing
                any → VOIDING → VOIDED | VOID_FAILED
    receiver    RELAYING → RELAYED | WITHDRAWING → FAILED
                any but FAILED → VOIDING → VOIDED | KEPT        KEPT: an SAE has it, it cannot be voided
                ABSENT: voided before it came

An errand is what another node of ours asks of the border: to hand keys of its SAE to a foreign network.

    errand      WANTED → RELAYED → GIVEN            GIVEN: that node has given them to its SAE
                WANTED or RELAYED → WITHDRAWING → FAILED, WANTED → FAILED
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from qtrunk.base.errors import RequestRefused
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret

KEPT_S = 90 * 86400.0
"""So long a key ID means what it meant, counted from its last move."""
KEYS_PER_REQUEST_MAX = 1024
"""Of one message; the standard limits arrays of acks to as many (clause 6)."""
KEY_OCTETS_MIN = 8
KEY_OCTETS_MAX = 1024


class AckStatus(Enum):
    """What became of keys, in the words of the standard (ack_status)."""

    RELAYED = "relayed"
    FAILED = "failed"
    VOIDED = "voided"
    FAILED_TO_VOID = "failed to void"
    NOT_PRESENT = "key not present"


class SentState(Enum):
    """Where a key stands that we gave to a foreign KME."""

    SENT = "sent"
    ACCEPTED = "accepted"
    UNCERTAIN = "uncertain"
    RELAYED = "relayed"
    """All targets have it, and the initiator may be given it."""
    FAILED = "failed"
    VOIDING = "voiding"
    VOIDED = "voided"
    VOID_FAILED = "void failed"
    """The foreign KMS cannot take it back: a target has it. It must never be used for anything else."""


class ReceivedState(Enum):
    """Where a key stands that a foreign KME gave us."""

    RELAYING = "relaying"
    """On record; our network carries it. After a restart it does so again."""
    WITHDRAWING = "withdrawing"
    RELAYED = "relayed"
    FAILED = "failed"
    VOIDING = "voiding"
    VOIDED = "voided"
    KEPT = "kept"
    ABSENT = "absent"


class ErrandState(Enum):
    """Where keys stand that another node of ours brought to be handed over."""

    WANTED = "wanted"
    RELAYED = "relayed"
    """Its node is told so, until it has said whether its SAE was given them."""
    WITHDRAWING = "withdrawing"
    GIVEN = "given"
    FAILED = "failed"


ENDED = frozenset({ErrandState.GIVEN, ErrandState.FAILED})
UNDER_WAY = frozenset({SentState.SENT, SentState.ACCEPTED, SentState.UNCERTAIN})
OUTCOME: Mapping[ReceivedState, AckStatus] = {
    ReceivedState.RELAYED: AckStatus.RELAYED,
    ReceivedState.FAILED: AckStatus.FAILED,
    ReceivedState.VOIDED: AckStatus.VOIDED,
    ReceivedState.KEPT: AckStatus.FAILED_TO_VOID,
    ReceivedState.ABSENT: AckStatus.NOT_PRESENT,
}
"""What a received key's end is called; a state that is not here is not an end."""
EMPTY_HANDED = frozenset({ReceivedState.FAILED, ReceivedState.VOIDED, ReceivedState.ABSENT})
"""No association of key and ID is left here."""


class Collision(RequestRefused):
    """A key ID means another key here already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extensions:
    """Optional extensions of keys on their way, passed on octet for octet; JSON objects, empty where there are none."""

    of_request: bytes = b""
    of_key: Mapping[KeyId, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """What became of some keys of one initiator for some targets (ack_container)."""

    status: AckStatus
    key_ids: tuple[KeyId, ...]
    initiator: SaeId
    targets: tuple[SaeId, ...]
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consignment:
    """Keys that a foreign KME gives us in one request (ext_key_container)."""

    peer: str
    keys: Sequence[SuppliedKey]
    initiator: SaeId
    targets: tuple[SaeId, ...]
    callback: str
    """Where to tell what became of them; empty: the answer itself tells (synchronous mode)."""
    extensions: Extensions = field(default_factory=Extensions)


@dataclass(frozen=True, slots=True, kw_only=True)
class VoidRequest:
    """Keys that a foreign KME wants voided (void_container); no key IDs: all keys of that initiator and targets."""

    peer: str
    key_ids: tuple[KeyId, ...]
    initiator: SaeId
    targets: tuple[SaeId, ...]
    callback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A key that we gave to a foreign KME. Its material is never at rest here."""

    peer: str
    key_id: KeyId
    initiator: SaeId
    targets: tuple[SaeId, ...]
    state: SentState
    relayed: frozenset[SaeId] = frozenset()
    """The targets that are said to have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A key that a foreign KME gave us, or wanted voided before it came."""

    peer: str
    key_id: KeyId
    initiator: SaeId
    targets: tuple[SaeId, ...]
    state: ReceivedState
    callback: str
    is_told: bool = False
    """Whether the sender has confirmed to know how it ended (ACKED; an end that is not told is ACK_PENDING)."""
    fingerprint: bytes = b""
    """Tells a repetition from another key under the same ID; empty for ABSENT."""
    material: Secret | None = None
    """Until our network has it."""
    extension: bytes = b""
    """Of this key."""
    request_extension: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """Keys of an SAE at another node of ours for a foreign network."""

    node: str
    number: str
    """That node's name for it."""
    key_ids: tuple[KeyId, ...]
    initiator: SaeId
    targets: tuple[SaeId, ...]
    state: ErrandState


class Errands(Protocol):
    """The durable record of errands. StoreError as for `Journal`."""

    def put_errand(self, errand: Errand) -> None:
        """New or moved, on the disk when this returns."""

    def errand(self, node: str, number: str) -> Errand | None:
        """The one of that name, None where there is none."""

    def open_errands(self) -> list[Errand]:
        """Those that have not ended."""


class Journal(Protocol):
    """The durable record. StoreError: nothing was changed, or it is not known; then nothing may go out."""

    def put_sent(self, records: Iterable[Sent]) -> None:
        """New or moved, all or none, on the disk when this returns."""

    def put_received(self, records: Iterable[Received]) -> None:
        """New or moved, all or none, on the disk when this returns; material is kept sealed, and shredded with None."""

    def sent(self, peer: str, key_ids: Iterable[KeyId]) -> dict[KeyId, Sent]:
        """Those on record."""

    def received(self, peer: str, key_ids: Iterable[KeyId]) -> dict[KeyId, Received]:
        """Those on record."""

    def open_sent(self) -> list[Sent]:
        """Those that have not ended."""

    def open_received(self) -> list[Received]:
        """Those that have not ended, or whose end is not told."""

    def received_between(self, peer: str, initiator: SaeId, targets: Sequence[SaeId]) -> list[Received]:
        """All of this initiator for just these targets that could still be held."""

    def is_held(self, key_ids: Iterable[KeyId]) -> bool:
        """Whether any of these IDs is associated with a key here, whoever gave it to us."""

    def is_strange(self, peer: str, key_ids: Iterable[KeyId]) -> bool:
        """Whether any of these IDs belongs to another KME's key, or to one that we gave away."""

    def fingerprint(self, material: Secret) -> bytes:
        """A keyed digest that says nothing about the material without the key of this journal."""

    def forget(self, before_unix_s: float) -> None:
        """Remove records that ended before."""


class Interior(Protocol):
    """Our own network, as a key manager at its border uses it for keys of foreign initiators."""

    async def carry(
        self,
        key_ids: Sequence[KeyId],
        materials: Sequence[Secret],
        initiator: SaeId,
        targets: Sequence[SaeId],
        extensions: Extensions,
    ) -> None:
        """Bring keys to the nodes of all targets, where these may collect them as keys of `initiator`.

        Called again with the same keys after a restart, and must bear that. QtrunkError: not all nodes have them all;
        `void` follows.
        """

    async def void(self, key_ids: Sequence[KeyId], targets: Sequence[SaeId]) -> set[KeyId]:
        """Refuse these keys to the targets from now on: those that one of them was given already.

        Holds also against a `carry` of the same keys that is still on its way, and for keys that never came.
        QtrunkError: it is not sure of all nodes; it is called again.
        """
