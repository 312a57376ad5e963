"""What the protocol cores ask of the world: clock, dice, keys. The two shells (node, sim) provide it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qtrunk.base.ids import KeyId, SaeId
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


class KeySupply(Protocol):
    """The supply side of a node's key manager (Y.3803 KSA), as the key interfaces see it."""

    def status(self, initiator: SaeId, target: SaeId) -> SupplyStatus:
        """Supply from `initiator` to `target` now. Raises NotAuthorised, RequestRefused (unknown SAE)."""

    async def initiate(
        self, initiator: SaeId, targets: Sequence[SaeId], number: int, key_bits: int
    ) -> list[SuppliedKey]:
        """`number` fresh keys, already held for every target at its own node and recorded as delivered.

        Raises NotAuthorised, RequestRefused, KeyExhausted.
        """

    async def collect(self, target: SaeId, initiator: SaeId, key_ids: Sequence[KeyId]) -> list[SuppliedKey]:
        """The keys `initiator` was given under these IDs, in order; all or none; each once per target.

        Raises NotAuthorised, KeyNotFound.
        """


class KeySource(Protocol):
    """Where a gateway gets keys from: our own KME or a foreign one."""

    def status(self, peer: SaeId) -> SupplyStatus:
        """Supply from the own SAE to `peer`."""

    def get_keys(self, peer: SaeId, number: int, key_bits: int) -> list[SuppliedKey]:
        """`number` fresh keys of `key_bits` shared with `peer`."""

    def get_keys_with_ids(self, peer: SaeId, key_ids: Sequence[KeyId]) -> list[SuppliedKey]:
        """The keys that `peer` was given under these IDs."""
