"""What the protocol cores ask of the world: clock, dice, keys. The two shells (node, sim) provide it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, overload
from uuid import UUID

from qtrunk.base.errors import QtrunkError
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.secret import Secret


class Clock(Protocol):
    """Time. `unix_s` may jump (it is for records); `monotonic_s` never goes back (it is for timers)."""

    def unix_s(self) -> float:
        """Seconds since 1970-01-01T00:00Z."""

    def monotonic_s(self) -> float:
        """Seconds since some start of this process's machine."""


class Random(Protocol):
    """Dice fit for secrets."""

    def octets(self, count: int) -> bytes:
        """`count` unpredictable octets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuppliedKey:
    """One key as an application receives it (Y.3803 KSA-key)."""

    key_id: KeyId
    material: Secret


class SuppliedKeys(Sequence[SuppliedKey]):
    """Keys of one size that lie one behind the other in one Secret: cheap for who wants all of them at once.

    For others a sequence like any other, whose keys are made when someone looks at them.
    """

    __slots__ = ("ids", "key_octets", "material")

    def __init__(self, ids: bytes, material: Secret, key_octets: int) -> None:
        """`ids` has the 16 octets of each key ID; `material` belongs to this sequence from now on."""
        if len(ids) // 16 * key_octets != len(material) or len(ids) % 16:
            raise ValueError(f"ids: {len(ids)} octets do not fit {len(material)} octets of keys of {key_octets}")
        self.ids = ids
        self.material = material
        self.key_octets = key_octets

    @classmethod
    def of(cls, keys: Sequence[SuppliedKey]) -> "SuppliedKeys":
        """The same keys, of one size, in one piece; their own octets are wiped."""
        if isinstance(keys, SuppliedKeys):
            return keys
        size = len(keys[0].material)
        whole = Secret(bytes(size * len(keys)))
        with whole.fill() as octets:
            for place, key in enumerate(keys):
                with key.material.reveal() as part:
                    octets[place * size : (place + 1) * size] = part
                key.material.wipe()
        return SuppliedKeys(b"".join(bytes.fromhex(key.key_id.replace("-", "")) for key in keys), whole, size)

    @classmethod
    def in_order(cls, pieces: Sequence["SuppliedKeys"], places: Sequence[int]) -> "SuppliedKeys":
        """Keys of one size out of several pieces, the first of which comes to `places[0]` and so on; the pieces are
        wiped, but for one that is given back as it is.
        """
        if len(pieces) == 1 and all(place == number for number, place in enumerate(places)):
            return pieces[0]
        size, ids = pieces[0].key_octets, [b""] * len(places)
        whole = Secret(bytes(size * len(places)))
        left = iter(places)
        with whole.fill() as octets:
            for piece in pieces:
                with piece.material.reveal() as part:
                    for number in range(len(piece)):
                        place = next(left)
                        octets[place * size : (place + 1) * size] = part[number * size : (number + 1) * size]
                        ids[place] = piece.ids[16 * number : 16 * number + 16]
                piece.material.wipe()
        return SuppliedKeys(b"".join(ids), whole, size)

    def __len__(self) -> int:
        return len(self.ids) // 16

    @overload
    def __getitem__(self, index: int) -> SuppliedKey: ...
    @overload
    def __getitem__(self, index: slice) -> list[SuppliedKey]: ...
    def __getitem__(self, index: int | slice) -> SuppliedKey | list[SuppliedKey]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        with self.material.reveal() as octets:
            material = Secret(octets[place * self.key_octets : (place + 1) * self.key_octets])
        return SuppliedKey(key_id=KeyId(str(UUID(bytes=self.ids[16 * place : 16 * place + 16]))), material=material)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupplyStatus:
    """What a key manager can say about supply from one SAE to another (GS QKD 014 Status)."""

    source_kme: str
    target_kme: str
    key_bits: int
    stored_key_count: int
    key_count_max: int
    keys_per_request_max: int
    key_bits_max: int
    key_bits_min: int
    additional_targets_max: int
    fill_bps: float
    """How fast new end-to-end key arrives, bit/s; goes out as a status extension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What the secrecy of a pool's key rests on; of several sources under one key, the worst of each."""

    epsilon: float
    """Of the QKD under it: all blocks on all hops together."""
    hops: int
    """Links on its way, of the longest route; 0 within one node."""
    routes: int = 1
    """Disjoint routes whose shares are combined in it."""
    is_qkd: bool = True
    """Whether every hop was QKD."""
    is_hybrid: bool = False
    """Whether a post-quantum secret is combined into it (ITU-T X.1714)."""


@dataclass(slots=True, kw_only=True)
class Stock:
    """What a pool offers one pair of SAEs now. The pool keeps one and brings it up to date, so a request makes none."""

    quality: Quality
    level_bits: float
    target_bits: float
    """The level that the pool is filled up to."""
    fill_bps: float
    ahead_bits: float = 0.0
    """Of the target, what windows of maintenance will take."""


class Totals(Protocol):
    """The durable counters behind quotas: bits by tenant and period (`2026-11-23` is a day, `2026-11` a month)."""

    def drawn(self, tenant: str, period: str) -> int:
        """Bits recorded for a tenant in a period, 0 if none. StoreError where the record cannot be read."""

    def record(self, tenant: str, bits: Mapping[str, int]) -> None:
        """New totals by period, all or none, durable when this returns. StoreError where they cannot be."""


class KeySupply(Protocol):
    """The supply side of a node's key manager (Y.3803 KSA), as the key interfaces see it."""

    def status(self, initiator: SaeId, target: SaeId) -> SupplyStatus:
        """Supply from `initiator` to `target` now. Raises NotAuthorised, RequestRefused (unknown SAE)."""

    async def initiate(
        self,
        initiator: SaeId,
        targets: Sequence[SaeId],
        number: int,
        key_bits: int,
        *,
        request_id: bytes | None = None,
    ) -> Sequence[SuppliedKey]:
        """`number` fresh keys, already held for every target at its own node and recorded as delivered.

        A second call with the same `request_id` (16 octets, unique to caller and request) within the retry window
        gives the same keys and takes none. Raises NotAuthorised, RequestRefused, KeyExhausted.
        """

    async def collect(
        self, target: SaeId, initiator: SaeId, key_ids: Sequence[KeyId], *, request_id: bytes | None = None
    ) -> Sequence[SuppliedKey]:
        """The keys `initiator` was given under these IDs, in order; all or none; each once per target, and again for
        the same `request_id` within the retry window.

        Raises NotAuthorised, KeyNotFound.
        """


class LotSupply(KeySupply, Protocol):
    """A supply that answers requests together that came together, each as it would by itself."""

    async def initiate_same(
        self, initiator: SaeId, target: SaeId, number: int, key_bits: int, count: int
    ) -> SuppliedKeys | None:
        """Fresh keys for `count` requests for `number` keys each, one behind the other.

        None, and nothing has changed, where they must be answered one by one: some of them might be refused. Raises
        StoreError where the keys cannot be recorded: then none of the requests gets any.
        """

    async def collect_each(
        self, target: SaeId, initiator: SaeId, wanted: Sequence[Sequence[KeyId]]
    ) -> SuppliedKeys | list[Sequence[SuppliedKey] | QtrunkError | None]:
        """For each of several `collect`: its keys, or why it gets none; None: ask by itself, nothing has happened.
        Where each names one key and all get theirs, these may come in one piece.

        Raises StoreError where the keys cannot be recorded: then none gets any.
        """


class KeySource(Protocol):
    """Where a gateway gets keys from: our own KME or a foreign one."""

    def status(self, peer: SaeId) -> SupplyStatus:
        """Supply from the own SAE to `peer`."""

    def get_keys(self, peer: SaeId, number: int, key_bits: int) -> list[SuppliedKey]:
        """`number` fresh keys of `key_bits` shared with `peer`."""

    def get_keys_with_ids(self, peer: SaeId, key_ids: Sequence[KeyId]) -> list[SuppliedKey]:
        """The keys that `peer` was given under these IDs."""


class PeerNotes(Protocol):
    """Carries small notes from this key manager to another of the network, as well as it can: a note may be lost, late,
    doubled or overtaken. It must not be forged: who hands a note on vouches for the node that it came from.
    """

    def tell(self, node: NodeId, octets: bytes) -> None:
        """Send `octets` on their way to the key manager of `node`."""
