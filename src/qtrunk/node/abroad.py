"""Fresh keys of our SAEs for SAEs of foreign networks (ETSI GS QKD 020), from any node of ours.

At the border node itself nothing of ours travels: it makes the keys, gives them to the foreign key manager in its room,
and to its own SAE only when every target is said to have them.

Any other node makes the keys too, has them carried to the border node like any end-to-end key (`relay.kx.Kx.carry`) and
asks it by signed note to hand them over (`node.onward`). Its SAE gets them only after the border node said that every
target has them, and the border node hears whether it did; where it did not, the keys are void at both. A record that
says `delivered` is what decides: it is written once, before the keys go out.

What the foreign network does with a key is what its operator states (`protection` of the neighbour); the receipt says
so, beside the hops of our own.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from uuid import UUID

from qtrunk.base.errors import NotAuthorised, QtrunkError, RequestRefused, RouteUnavailable
from qtrunk.base.ids import KeyId, NodeId, SaeId, parse_key_id
from qtrunk.base.ports import Clock, Random, Stock, SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.base.wire import decode, encode
from qtrunk.kms.interwork.records import KEYS_PER_REQUEST_MAX
from qtrunk.kms.interwork.sender import SETTLE_S
from qtrunk.kms.store import KeyStore
from qtrunk.node.ahead import expected_quality
from qtrunk.node.border import Carrier, NoteCarrier
from qtrunk.node.onward import EXPORT, EXPORTED, GIVEN, Export, Exported, Given, Out
from qtrunk.relay.route import disjoint_routes, route
from qtrunk.topology import ForeignNetwork, Topology

KEY_COUNT_MAX = 1_000_000
WAIT_S = SETTLE_S + 10.0
"""For the border node's word; a foreign network has SETTLE_S."""
REPEAT_S = 1.0
LOST = "not taken abroad"


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A request that waits for the word of a border node."""

    border: NodeId
    answer: asyncio.Future[Exported]


class Abroad:
    """The way out of one node; `export` is None where it is no border node."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        store: KeyStore,
        export: Callable[[], Out | None],
        random: Random,
        clock: Clock,
        relay: Carrier,
        notes: NoteCarrier | None,
    ) -> None:
        """Without `notes` (a node without signing key) only a border node's own SAEs have a way out."""
        self._node = node
        self._topology = topology
        self._store = store
        self._export = export
        self._random = random
        self._clock = clock
        self._relay = relay
        self._notes = notes
        self._under_way: dict[str, _UnderWay] = {}
        self._stock = lru_cache(maxsize=256)(self._stock_of)
        if notes is not None:
            notes.serve(EXPORTED, self._told)

    def network(self, target: SaeId) -> ForeignNetwork | None:
        """The foreign network of a target that is none of ours; RequestRefused where there is no way to it."""
        if self._topology.sae(target) is not None:
            return None
        network = self._topology.foreign(target)
        if network is None:
            return None
        unable = ""
        if (self._export() if network.node == self._node else self._notes) is None:
            unable = f"node {self._node} has no signing key"
        elif network.node != self._node and self._notes is not None and not self._notes.knows(network.node):
            # It would never say what became of the keys.
            unable = f"that has no signing key that is known at node {self._node}"
        if unable:
            where = f"SAE {target} is in network {network.id}, which is reached from node {network.node}"
            raise RequestRefused(f"{where}; {unable}")
        return network

    def stock(self, initiator: SaeId, target: SaeId, network: ForeignNetwork) -> Stock:
        """What there is towards a network; one object for each, as admission likes it."""
        tenant = self._topology.tenant_of(initiator)
        needed = max(tenant.routes_min, self._topology.tenant_of(target).routes_min)
        return self._stock(network, tenant.hybrid != "qkd", needed)

    def _stock_of(self, network: ForeignNetwork, is_hybrid: bool, needed: int) -> Stock:
        is_here = network.node == self._node
        routes: Sequence[Sequence[NodeId]] = ()
        with contextlib.suppress(RouteUnavailable):
            if not is_here:
                routes = [route(self._topology, self._node, network.node)]
                routes = routes if needed == 1 else disjoint_routes(self._topology, self._node, network.node, needed)
        own = expected_quality(self._topology, routes, is_hybrid=is_here or is_hybrid)
        quality = replace(
            own,
            is_qkd=network.protection != "unknown",
            is_hybrid=own.is_hybrid and network.protection == "hybrid",
        )
        return Stock(quality=quality, level_bits=float(KEY_COUNT_MAX * 256), target_bits=0.0, fill_bps=0.0)

    async def initiate(
        self, initiator: SaeId, targets: Sequence[SaeId], number: int, key_bits: int
    ) -> list[SuppliedKey]:
        """Fresh keys that every target has. QtrunkError: not all have them, and those that do are to lose them."""
        networks = [network for network in map(self.network, targets) if network is not None]
        if len(networks) < len(targets):
            raise RequestRefused("targets: SAEs of this network and of a foreign one cannot have the same key")
        borders = sorted({network.node for network in networks})
        if len(borders) > 1:
            raise RequestRefused(f"targets: in networks beside nodes {', '.join(borders)}; ask for each node alone")
        if number > KEYS_PER_REQUEST_MAX:
            raise RequestRefused(f"number: at most {KEYS_PER_REQUEST_MAX} keys at once for a foreign network")
        keys = [
            SuppliedKey(key_id=KeyId(self._uuid()), material=Secret(self._random.octets(key_bits // 8)))
            for _ in range(number)
        ]
        lifetime_s = self._topology.tenant_of(initiator).key_lifetime_s
        self._store.reserve_keys(_ids(keys), initiator, targets, key_bits, self._clock.unix_s() + lifetime_s)
        stated = {network.id: network.protection for network in networks}
        protection = "; ".join(f"foreign network {name} states: {what}" for name, what in sorted(stated.items()))
        if borders == [self._node]:
            await self._from_here(keys, initiator, targets, protection)
        else:
            await self._through(borders[0], keys, initiator, targets, protection)
        return keys

    async def _from_here(
        self, keys: Sequence[SuppliedKey], initiator: SaeId, targets: Sequence[SaeId], protection: str
    ) -> None:
        out = self._export()
        assert out is not None
        key_ids = _ids(keys)
        try:
            await out.export(keys, initiator, targets)
        except BaseException:
            # Also when the caller goes away: the machine takes back what may have arrived.
            self._store.destroy_keys(key_ids, LOST)
            raise
        try:
            receipt: dict[str, object] = {"routes": [[self._node]], "hops": [], "protection": protection}
            self._store.deliver_initiator(key_ids, receipt)
        except QtrunkError:
            out.take_back(key_ids, targets)
            raise

    # ── through another node ────────────────────────────────────────────────────────────────────────────────────────

    async def _through(
        self,
        border: NodeId,
        keys: Sequence[SuppliedKey],
        initiator: SaeId,
        targets: Sequence[SaeId],
        protection: str,
    ) -> None:
        """Carried to the border node, handed over by it, on record here; or void here and, by its hand, there."""
        key_ids = _ids(keys)
        targets = list(dict.fromkeys(targets))
        errand = Export(number=self._uuid(), key_ids=[*key_ids], initiator=initiator, targets=[*targets])
        self._under_way[errand.number] = _UnderWay(border, asyncio.get_running_loop().create_future())
        try:
            way = await self._relay.carry(initiator, targets, [(key.key_id, key.material) for key in keys])
            await self._handed_over(border, errand)
            self._store.deliver_initiator(
                key_ids, {**way, "protection": f"{way['protection']} to node {border}; {protection}"}
            )
        except BaseException:
            # Also when the caller goes away. Where this cannot be recorded the border node is told nothing: it asks.
            for key in keys:
                key.material.wipe()
            self._confirm(border, errand.number, key_ids, is_given=self._were_given(border, key_ids))
            raise
        finally:
            del self._under_way[errand.number]
        self._confirm(border, errand.number, key_ids, is_given=True)

    async def _handed_over(self, border: NodeId, errand: Export) -> None:
        assert self._notes is not None
        answer = self._under_way[errand.number].answer
        until_s = self._clock.monotonic_s() + WAIT_S
        while not answer.done():
            if self._clock.monotonic_s() >= until_s:
                raise RouteUnavailable(f"node {border} does not say what became of keys for a foreign network")
            self._notes.tell(border, EXPORT, encode(errand))
            await asyncio.wait([answer], timeout=REPEAT_S)
        said = answer.result()
        if not said.is_relayed:
            raise RouteUnavailable(f"node {border}: the foreign network does not have the keys: {said.why}")

    def _confirm(self, border: NodeId, number: str, key_ids: Sequence[KeyId], *, is_given: bool) -> None:
        """Say what is on record. If it is lost the border node asks again, as long as it has to know."""
        assert self._notes is not None
        with contextlib.suppress(RouteUnavailable):
            self._notes.tell(border, GIVEN, encode(Given(number=number, key_ids=[*key_ids], is_given=is_given)))

    def _told(self, sender: NodeId, octets: bytes) -> None:
        """The border node's word: for a request that waits, or else an answer out of the record."""
        said = decode(octets, Exported)
        waiting = self._under_way.get(said.number)
        if waiting is not None:
            if waiting.border == sender and not waiting.answer.done():
                waiting.answer.set_result(said)
        elif said.is_relayed:
            key_ids = [parse_key_id(key_id) for key_id in said.key_ids]
            self._confirm(sender, said.number, key_ids, is_given=self._were_given(sender, key_ids))

    def _were_given(self, border: NodeId, key_ids: Sequence[KeyId]) -> bool:
        """Whether an SAE has any of these keys. If not, then none will: durable on return."""
        rows: dict[KeyId, str] = {}
        for key_id in key_ids:
            row = (self._store.receipt(key_id) or {}).get("initiated")
            if not isinstance(row, dict):
                continue
            if any(self._topology.sae(target) or self._topology.end_of(target) != border for target in row["targets"]):
                raise NotAuthorised(f"node {border} asks for a key that did not go by it")
            rows[key_id] = row["state"]
        if "delivered" in rows.values():
            return True
        self._store.destroy_keys(list(rows), LOST)
        return False

    def _uuid(self) -> str:
        return str(UUID(bytes=self._random.octets(16), version=4))


def _ids(keys: Sequence[SuppliedKey]) -> list[KeyId]:
    return [key.key_id for key in keys]
