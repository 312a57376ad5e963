"""Supply of keys to applications (Y.3803 KSA): who may have which key, and how much there is.

Answers `base.ports.KeySupply` for the key interfaces, out of the store (keys held for local targets) and the relay
(fresh keys towards other nodes).
"""

from collections.abc import Sequence

from qtrunk.base.errors import KeyExhausted, KeyNotFound, NotAuthorised, QtrunkError, RequestRefused, StoreError
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.ports import Quality, Stock, SuppliedKey, SuppliedKeys, SupplyStatus
from qtrunk.kms.consume import NO_MARK
from qtrunk.kms.store import KeyStore
from qtrunk.node.abroad import Abroad
from qtrunk.node.ahead import FillAhead
from qtrunk.node.commit import GroupCommit
from qtrunk.node.kxrunner import KxRunner
from qtrunk.relay.messages import ROUTES_MAX
from qtrunk.topology import Topology

KEY_BITS = 256
KEY_BITS_MIN = 64
KEY_BITS_MAX = 8192
KEYS_PER_REQUEST_MAX = 128
KEY_COUNT_MAX = 1_000_000
TARGETS_MAX = 8
_LOCAL = Stock(
    quality=Quality(epsilon=0.0, hops=0, routes=ROUTES_MAX, is_hybrid=True),
    level_bits=float(KEY_COUNT_MAX * KEY_BITS),
    target_bits=0.0,
    fill_bps=0.0,
)
"""Between two SAEs of one node nothing travels: no QKD is needed, and no ML-KEM would add to it."""


class Supply:
    """The supply side of one node's key manager."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        store: KeyStore,
        relay: KxRunner,
        commit: GroupCommit,
        ahead: FillAhead,
        abroad: Abroad,
    ) -> None:
        self._node = node
        self._topology = topology
        self._store = store
        self._relay = relay
        self._commit = commit
        self._ahead = ahead
        self._abroad = abroad

    def stock(self, initiator: SaeId, target: SaeId) -> Stock:
        """What there is from one SAE to another."""
        self._check_own(initiator)
        foreign = self._abroad.network(target)
        if foreign is not None:
            return self._abroad.stock(initiator, target, foreign)
        if self._node_of(target) == self._node:
            return _LOCAL
        return self._ahead.stock(initiator, target)

    def status(self, initiator: SaeId, target: SaeId) -> SupplyStatus:
        """How much could be supplied now; answers for every known pair, also before any key exists."""
        self._check_own(initiator)
        foreign = self._abroad.network(target)
        count, fill_bps = KEY_COUNT_MAX, 0.0
        if foreign is None and self._node_of(target) != self._node:
            stock = self._ahead.stock(initiator, target)
            count, fill_bps = min(KEY_COUNT_MAX, int(stock.level_bits) // KEY_BITS), stock.fill_bps
        return SupplyStatus(
            source_kme=self._topology.kme_id(self._node),
            target_kme=self._topology.kme_id(self._node_of(target)) if foreign is None else foreign.kme,
            key_bits=KEY_BITS,
            stored_key_count=count,
            key_count_max=KEY_COUNT_MAX,
            keys_per_request_max=KEYS_PER_REQUEST_MAX,
            key_bits_max=KEY_BITS_MAX,
            key_bits_min=KEY_BITS_MIN,
            additional_targets_max=TARGETS_MAX,
            fill_bps=fill_bps,
        )

    async def initiate(
        self,
        initiator: SaeId,
        targets: Sequence[SaeId],
        number: int,
        key_bits: int,
        *,
        request_id: bytes | None = None,
    ) -> Sequence[SuppliedKey]:
        """Fresh keys for `initiator`, already held for every target."""
        self._check_own(initiator)
        if any(self._abroad.network(target) for target in targets):
            return await self._abroad.initiate(initiator, targets, number, key_bits)
        nodes = [self._node_of(target) for target in targets]
        if len(nodes) != 1 or nodes[0] == self._node:
            for target, node in zip(targets, nodes, strict=True):
                if node != self._node:
                    self._ahead.check_free(initiator, target, number * key_bits // 8)
            return await self._relay.request(initiator, targets, number, key_bits)
        return await self._from_pool(initiator, targets[0], number, key_bits // 8, request_id or NO_MARK)

    async def _from_pool(
        self, initiator: SaeId, target: SaeId, number: int, key_octets: int, mark: bytes
    ) -> Sequence[SuppliedKey]:
        """Out of what lies ready; where that is too little, a segment is fetched first."""
        pools = self._store.pools
        self._ahead.note(initiator, target, number * key_octets)
        try:
            keys = pools.take(initiator, target, number, key_octets, mark)
        except KeyExhausted:
            await self._ahead.fill_now(initiator, target, number, key_octets)
            keys = pools.take(initiator, target, number, key_octets, mark)
        await self._recorded()
        return keys

    async def collect(
        self, target: SaeId, initiator: SaeId, key_ids: Sequence[KeyId], *, request_id: bytes | None = None
    ) -> Sequence[SuppliedKey]:
        """Keys that `initiator` was given, for their target; each once."""
        self._check_own(target)
        pools = self._store.pools
        keys, strange = pools.redeem(target, initiator, key_ids, request_id or NO_MARK)
        if strange:
            # Not of a pool: they lie in the store one by one. What is of a pool was checked and not yet taken.
            found = self._store.collect(target, initiator, strange)
            pooled = [key_id for key_id in key_ids if key_id not in set(strange)]
            if pooled:
                found += pools.redeem(target, initiator, pooled)[0]
                found.sort(key=lambda key: key_ids.index(key.key_id))
            keys = found
        await self._recorded()
        return keys

    async def initiate_same(
        self, initiator: SaeId, target: SaeId, number: int, key_bits: int, count: int
    ) -> SuppliedKeys | None:
        """See `base.ports.LotSupply`: out of a pool, in one run and on one record, or not at all."""
        self._check_own(initiator)
        if self._abroad.network(target) or self._node_of(target) == self._node:
            return None
        try:
            keys = self._store.pools.take(initiator, target, count * number, key_bits // 8)
        except (KeyExhausted, KeyNotFound):
            return None
        self._ahead.note(initiator, target, count * number * (key_bits // 8))
        await self._recorded()
        return SuppliedKeys.of(keys)

    async def collect_each(
        self, target: SaeId, initiator: SaeId, wanted: Sequence[Sequence[KeyId]]
    ) -> SuppliedKeys | list[Sequence[SuppliedKey] | QtrunkError | None]:
        """See `base.ports.LotSupply`: what is of pools, with one wait for the disk."""
        self._check_own(target)
        if all(len(key_ids) == 1 for key_ids in wanted):
            together = self._store.pools.redeem_each(target, initiator, [key_ids[0] for key_ids in wanted])
            if together is not None:
                await self._recorded()
                return together
        found: list[Sequence[SuppliedKey] | QtrunkError | None] = []
        for key_ids in wanted:
            try:
                keys, strange = self._store.pools.redeem(target, initiator, key_ids)
                found.append(None if strange else keys)
            except StoreError:
                raise
            except QtrunkError as refused:
                found.append(refused)
        await self._recorded()
        return found

    async def _recorded(self) -> None:
        """Nothing goes out before it is on the disk."""
        waiting = self._commit.durable()
        if waiting is not None:
            await waiting

    def _check_own(self, sae: SaeId) -> None:
        known = self._topology.sae(sae)
        if known is None or known.node != self._node:
            raise NotAuthorised(f"SAE {sae} is not registered at node {self._node}")

    def _node_of(self, target: SaeId) -> NodeId:
        known = self._topology.sae(target)
        if known is None:
            raise RequestRefused(f"SAE {target} is not known in this network")
        return known.node
