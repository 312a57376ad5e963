"""Supply of keys to applications (Y.3803 KSA): who may have which key, and how much there is.

Answers `base.ports.KeySupply` for the key interfaces, out of the store (keys held for local targets) and the relay
(fresh keys towards other nodes).
"""

from collections.abc import Sequence
from itertools import pairwise

from qtrunk.base.errors import NotAuthorised, RequestRefused, RouteUnavailable
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.ports import Clock, SuppliedKey, SupplyStatus
from qtrunk.kms.store import KeyStore
from qtrunk.node.advert import Adverts
from qtrunk.node.kxrunner import KxRunner
from qtrunk.relay.kx import HOP_OVERHEAD_OCTETS
from qtrunk.relay.route import route
from qtrunk.topology import Topology

KEY_BITS = 256
KEY_BITS_MIN = 64
KEY_BITS_MAX = 8192
KEYS_PER_REQUEST_MAX = 128
KEY_COUNT_MAX = 1_000_000
TARGETS_MAX = 8


class Supply:
    """The supply side of one node's key manager."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        store: KeyStore,
        relay: KxRunner,
        adverts: Adverts,
        clock: Clock,
    ) -> None:
        self._node = node
        self._topology = topology
        self._store = store
        self._relay = relay
        self._adverts = adverts
        self._clock = clock

    def status(self, initiator: SaeId, target: SaeId) -> SupplyStatus:
        """How much could be supplied now; answers for every known pair, also before any key exists."""
        self._check_own(initiator)
        target_node = self._node_of(target)
        octets, fill_bps = self._deliverable(target_node)
        per_key = KEY_BITS // 8
        return SupplyStatus(
            source_kme=self._topology.kme_id(self._node),
            target_kme=self._topology.kme_id(target_node),
            key_bits=KEY_BITS,
            stored_key_count=min(KEY_COUNT_MAX, octets // per_key),
            key_count_max=KEY_COUNT_MAX,
            keys_per_request_max=KEYS_PER_REQUEST_MAX,
            key_bits_max=KEY_BITS_MAX,
            key_bits_min=KEY_BITS_MIN,
            additional_targets_max=TARGETS_MAX,
            fill_bps=fill_bps,
        )

    async def initiate(
        self, initiator: SaeId, targets: Sequence[SaeId], number: int, key_bits: int
    ) -> list[SuppliedKey]:
        """Fresh keys for `initiator`, already held for every target."""
        self._check_own(initiator)
        for target in targets:
            self._node_of(target)
        return await self._relay.request(initiator, targets, number, key_bits)

    async def collect(self, target: SaeId, initiator: SaeId, key_ids: Sequence[KeyId]) -> list[SuppliedKey]:
        """Keys that `initiator` was given, for their target; each once."""
        self._check_own(target)
        return self._store.collect(target, initiator, key_ids)

    def _check_own(self, sae: SaeId) -> None:
        known = self._topology.sae(sae)
        if known is None or known.node != self._node:
            raise NotAuthorised(f"SAE {sae} is not registered at node {self._node}")

    def _node_of(self, target: SaeId) -> NodeId:
        known = self._topology.sae(target)
        if known is None:
            raise RequestRefused(f"SAE {target} is not known in this network")
        return known.node

    def _deliverable(self, target: NodeId) -> tuple[int, float]:
        """Octets of end-to-end key that the weakest hop could carry now, and the rate at which that grows."""
        if target == self._node:
            return KEY_COUNT_MAX * KEY_BITS // 8, 0.0
        now_s = self._clock.monotonic_s()
        try:
            nodes = route(self._topology, self._node, target, self._adverts.unusable_links(now_s))
        except RouteUnavailable:
            return 0, 0.0
        octets: list[int] = []
        rates_bps: list[float] = []
        for here, there in pairwise(nodes):
            level = self._adverts.level(here, self._topology.link_between(here, there).id, now_s)
            octets.append(max(0, level.octets - HOP_OVERHEAD_OCTETS) if level else 0)
            rates_bps.append(level.fill_bps if level else 0.0)
        return min(octets), min(rates_bps)
