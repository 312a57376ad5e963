"""One end of a key stream, and what the machine of `kms.streams` has the world do."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.ports import SuppliedKey, SuppliedKeys, SupplyStatus
from qtrunk.base.secret import Secret
from qtrunk.kms.streamnotes import KEPT_CHUNKS_MAX, Batch, Card, Qos, Status

AHEAD_OCTETS = 256 << 10
AHEAD_CHUNKS_MAX = 64
"""How far beyond the chunks that exist an index may lie, and how many chunks the other end may be behind."""
RESEND_FIRST_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """To a call. What the status does not provide for is empty; `key` is the receiver's to wipe."""

    ticket: int
    status: Status
    ksid: bytes = b""
    qos: Qos | None = None
    index: int = 0
    key: Secret | None = None
    metadata: bytes = b""
    metadata_size: int = 0
    """With status 8: what a retry needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """A note for another key manager, or for this one where both SAEs are here."""

    node: NodeId
    octets: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Initiate:
    """Ask the supply for fresh keys; the outcome goes to `Streams.supplied`."""

    job: int
    initiator: SaeId
    target: SaeId
    number: int
    key_bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Collect:
    """Ask the supply for keys by ID; the outcome goes to `Streams.supplied`."""

    job: int
    target: SaeId
    initiator: SaeId
    key_ids: list[KeyId]


Effect = Answer | Tell | Initiate | Collect


@dataclass(slots=True)
class Chunk:
    """A key that waits to be given out."""

    material: Secret
    hops: int
    available_s: float


@dataclass(slots=True)
class Call:
    """An OPEN_CONNECT (index -1) or GET_KEY that waits."""

    ticket: int
    deadline_s: float
    index: int = -1
    metadata_size: int = 0


@dataclass(slots=True, eq=False)
class End:
    """One end of a stream."""

    ksid: bytes
    card: Card
    node: NodeId
    """Of the other end."""
    limits: SupplyStatus
    holder: Hashable | None
    called_s: float
    qos: Qos
    """As offered here until the ends are connected, then as registered."""
    twin: Card | None = None
    is_connected: bool = False
    """The other end knows this instance of this one."""
    connected_s: float = 0.0
    is_source: bool = False
    chunks: dict[int, Chunk] = field(default_factory=dict)
    made: int = 0
    """Chunks below this index were made available here (or were lost on the way here)."""
    wanted: int = 0
    batches: dict[int, Batch] = field(default_factory=dict)
    """Source: what the other end does not hold yet; destination: what is told of and not collected yet; by `first`."""
    twin_held: int = 0
    job: Batch | None = None
    """What the supply was asked for; at the source without key IDs yet."""
    failures: int = 0
    failure: Status = Status.SUCCESS
    is_closed: bool = False
    closed_s: float = 0.0
    twin_closed: bool = False
    twin_knows_closed: bool = False
    calls: list[Call] = field(default_factory=list)
    resend_at_s: float = 0.0
    resend_after_s: float = RESEND_FIRST_S

    @property
    def key(self) -> tuple[bytes, str]:
        """Its name at its key manager."""
        return self.ksid, self.card.sae

    @property
    def ahead(self) -> int:
        """How many chunks may be under way."""
        return min(max(AHEAD_OCTETS // self.qos.key_chunk_size, 1), AHEAD_CHUNKS_MAX)

    @property
    def announced(self) -> int:
        """Chunks below this index exist here or are on their way here."""
        if self.is_source:
            return self.made
        end = self.made
        while end in self.batches:
            end += self.batches[end].count
        return end

    def room(self) -> int:
        """How many more chunks may be kept."""
        return min(4 * self.ahead, KEPT_CHUNKS_MAX) - len(self.chunks)

    @property
    def is_live(self) -> bool:
        """Both ends are there and open: keys may be made."""
        return self.is_connected and not self.is_closed and not self.twin_closed

    def fits(self, batch: Batch, keys: Sequence[SuppliedKey]) -> bool:
        """Whether keys that another key manager named make up its chunks as they must."""
        octets = -(-self.qos.key_chunk_size // (len(batch.key_ids) // batch.count))
        return len(keys) == len(batch.key_ids) and all(len(key.material) == octets for key in keys)

    def keep(self, batch: Batch, keys: Sequence[SuppliedKey], now_s: float) -> None:
        """Put keys together to chunks."""
        each, size = len(keys) // batch.count, self.qos.key_chunk_size
        for number in range(batch.count):
            parts = [key.material.reveal() for key in keys[number * each : (number + 1) * each]]
            octets = bytearray().join(parts)
            self.chunks[batch.first + number] = Chunk(Secret(memoryview(octets)[:size]), batch.hops, now_s)
            octets[:] = bytes(len(octets))
        wipe(keys)
        self.made += batch.count


def wipe(keys: Iterable[SuppliedKey]) -> None:
    """Overwrite keys that were copied, or that nobody will have."""
    if isinstance(keys, SuppliedKeys):
        keys.material.wipe()
        return
    for key in keys:
        key.material.wipe()
