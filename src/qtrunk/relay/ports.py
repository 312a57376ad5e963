"""What the relay asks of a key store; kms.store.KeyStore is one, and documents each method."""

from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from qtrunk.base.ids import KeyId, LinkId, NodeId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.crypto.hybrid import Wrapped
from qtrunk.kms.key import Allocation, PoolLevel, Slice
from qtrunk.stages import Role


class PoolsPort(Protocol):
    """What the machine needs of the pools (kms.pools.Pools)."""

    def add(
        self,
        side: int,
        initiator: SaeId,
        target: SaeId,
        number: int,
        material: Secret,
        receipt: dict[str, object],
        expires_unix_s: float,
    ) -> None: ...
    def close_segment(self, side: int, initiator: SaeId, target: SaeId, number: int, reason: str) -> None: ...


class RoutesPort(Protocol):
    """What the machine needs of routes (relay.routing.Routing)."""

    def route_for(self, saes: Iterable[SaeId], end: NodeId, avoided: Collection[LinkId] = ()) -> tuple[NodeId, ...]: ...
    def disjoint_for(
        self, saes: Iterable[SaeId], end: NodeId, n: int, avoided: Collection[LinkId] = ()
    ) -> tuple[tuple[NodeId, ...], ...]: ...
    def down(self) -> frozenset[LinkId]: ...


class HybridPort(Protocol):
    """What the machine needs of hybrid keys (crypto.hybrid.HybridEnd)."""

    def wrap(self, node: str, seed: Secret, context: bytes, now_unix_s: float) -> Wrapped: ...
    def unwrap(self, sender: str, wrapped: Wrapped, context: bytes) -> Secret: ...


class KeyStorePort(Protocol):
    """What the machine needs of the key store (kms.store.KeyStore); durable on return, or at the end of a
    transaction.
    """

    @property
    def pools(self) -> PoolsPort: ...
    def transaction(self) -> AbstractContextManager[None]: ...
    def allocate(self, link: LinkId, area: Role, octets: int) -> Allocation: ...
    def follow(self, link: LinkId, area: Role, slices: Sequence[Slice]) -> Secret: ...
    def grant(self, link: LinkId, own_area: Role, octets: int) -> tuple[Slice, ...]: ...
    def receive_grant(self, link: LinkId, peer_area: Role, slices: Sequence[Slice]) -> None: ...
    def level(self, link: LinkId) -> PoolLevel: ...
    def block_record(self, link: LinkId, block: int) -> dict[str, object]: ...
    def reserve_keys(
        self,
        key_ids: Sequence[KeyId],
        initiator: SaeId,
        targets: Sequence[SaeId],
        key_bits: int,
        expires_unix_s: float,
    ) -> None: ...
    def deliver_initiator(self, key_ids: Sequence[KeyId], receipt: dict[str, object]) -> None: ...
    def destroy_keys(self, key_ids: Sequence[KeyId], reason: str) -> None: ...
    def store_keys(
        self,
        keys: Sequence[tuple[KeyId, Secret]],
        initiator: SaeId,
        targets_here: Sequence[SaeId],
        all_targets: Sequence[SaeId],
        key_bits: int,
        receipt: dict[str, object],
        expires_unix_s: float,
    ) -> None: ...
