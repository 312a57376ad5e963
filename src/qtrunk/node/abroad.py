"""Fresh keys of our SAEs at a border node for SAEs of foreign networks (ETSI GS QKD 020).

The border node makes the key, gives it to the foreign key manager in its room, and to its own SAE only when every
target is said to have it. Nothing of ours travels, so there is no hop; what the foreign network does with the key is
what its operator states (`protection` of the neighbour), and the receipt says so.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol
from uuid import UUID

from qtrunk.base.errors import QtrunkError, RequestRefused
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.ports import Clock, Quality, Random, Stock, SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.kms.interwork.records import KEYS_PER_REQUEST_MAX
from qtrunk.kms.store import KeyStore
from qtrunk.topology import ForeignNetwork, Topology

KEY_COUNT_MAX = 1_000_000


class Export(Protocol):
    """Gives keys to foreign key managers (`node.interwork.Interworking`)."""

    async def export(self, keys: Sequence[SuppliedKey], initiator: SaeId, targets: Sequence[SaeId]) -> None:
        """Return when all targets have all keys; RouteUnavailable when they do not and will not."""

    def take_back(self, key_ids: Sequence[KeyId], targets: Sequence[SaeId]) -> None:
        """Void keys that were exported and not given to the initiator after all."""


class Abroad:
    """The way out of one border node; `export` is None at every other node."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        store: KeyStore,
        export: Callable[[], Export | None],
        random: Random,
        clock: Clock,
    ) -> None:
        self._node = node
        self._topology = topology
        self._store = store
        self._export = export
        self._random = random
        self._clock = clock
        self.stock = lru_cache(maxsize=256)(_stock)
        """What there is towards a network; one object for each, as admission likes it."""

    def network(self, target: SaeId) -> ForeignNetwork | None:
        """The foreign network of a target that is none of ours; RequestRefused where that is at another node."""
        if self._topology.sae(target) is not None:
            return None
        network = self._topology.foreign(target)
        if network is not None and (network.node != self._node or self._export() is None):
            raise RequestRefused(f"SAE {target} is in network {network.id}, which is reached from node {network.node}")
        return network

    async def initiate(
        self, initiator: SaeId, targets: Sequence[SaeId], number: int, key_bits: int
    ) -> list[SuppliedKey]:
        """Fresh keys that every target has. RouteUnavailable: not all have them, and those that do are to lose them."""
        networks = [self.network(target) for target in targets]
        if any(network is None for network in networks):
            raise RequestRefused("targets: SAEs of this network and of a foreign one cannot have the same key")
        if number > KEYS_PER_REQUEST_MAX:
            raise RequestRefused(f"number: at most {KEYS_PER_REQUEST_MAX} keys at once for a foreign network")
        out = self._export()
        assert out is not None
        keys = [
            SuppliedKey(
                key_id=KeyId(str(UUID(bytes=self._random.octets(16), version=4))),
                material=Secret(self._random.octets(key_bits // 8)),
            )
            for _ in range(number)
        ]
        key_ids = [key.key_id for key in keys]
        lifetime_s = self._topology.tenant_of(initiator).key_lifetime_s
        self._store.reserve_keys(key_ids, initiator, targets, key_bits, self._clock.unix_s() + lifetime_s)
        try:
            await out.export(keys, initiator, targets)
        except BaseException:
            # Also when the caller goes away: the machine takes back what may have arrived.
            self._store.destroy_keys(key_ids, "not taken abroad")
            raise
        try:
            self._store.deliver_initiator(key_ids, self._receipt(networks))
        except QtrunkError:
            out.take_back(key_ids, targets)
            raise
        return keys

    def _receipt(self, networks: Sequence[ForeignNetwork | None]) -> dict[str, object]:
        stated = {network.id: network.protection for network in networks if network is not None}
        return {
            "routes": [[self._node]],
            "hops": [],
            "protection": "; ".join(f"foreign network {name} states: {what}" for name, what in sorted(stated.items())),
        }


def _stock(protection: str) -> Stock:
    quality = Quality(epsilon=0.0, hops=0, is_qkd=protection != "unknown", is_hybrid=protection == "hybrid")
    return Stock(quality=quality, level_bits=float(KEY_COUNT_MAX * 256), target_bits=0.0, fill_bps=0.0)
