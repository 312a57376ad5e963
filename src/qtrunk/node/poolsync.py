"""Both ends of each pool agree on its segments, whatever a crash or a lost message left behind.

The target's node says which segments it holds, TIMES after each change, seldom while there is none; the initiator's
node answers with those that it will never give out (or the part of them), and destroys what the target's node does not
hold. Both travel as signed notes.
"""

from typing import Annotated

import msgspec

from qtrunk.base.errors import AuthenticationFailed, RouteUnavailable
from qtrunk.base.ids import NodeId, SaeId
from qtrunk.base.ports import Clock
from qtrunk.base.wire import Message, decode, encode
from qtrunk.kms.pools import Pools
from qtrunk.node.hybridkeys import HybridKeys
from qtrunk.node.notes import Notes
from qtrunk.topology import Topology

PERIOD_S = 20.0
TIMES, SELDOM_S = 3, 600.0
"""What has not changed is said in the first so many periods, notes may be lost; then once in so long."""
SETTLED_S = 30.0
"""A segment that was made so lately may not have been confirmed yet."""
_HOLDING, _VOIDS = "pool-holding", "pool-voids"
_Sae = Annotated[str, msgspec.Meta(max_length=64)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]


class Holding(Message, frozen=True, tag="pool-holding"):
    """What a target's node holds of a pool."""

    initiator: _Sae
    target: _Sae
    segments: list[_Number]


class Voids(Message, frozen=True, tag="pool-voids"):
    """Segments, and the unit from which on the initiator's node will never give out any of it."""

    initiator: _Sae
    target: _Sae
    voids: list[tuple[_Number, _Number]]


class PoolSync:
    """One node's part, as initiator's and as target's."""

    def __init__(
        self, hybrid: HybridKeys, node: NodeId, topology: Topology, pools: Pools, notes: Notes, clock: Clock
    ) -> None:
        self._hybrid = hybrid
        self._node = node
        self._topology = topology
        self._pools = pools
        self._notes = notes
        self._clock = clock
        self._told: dict[tuple[SaeId, SaeId], tuple[list[int], int, float]] = {}
        """What was said last, how often, and when."""
        notes.serve(_HOLDING, self._compare)
        notes.serve(_VOIDS, self._void)

    def tick(self) -> None:
        """Say what this node holds, pool by pool; to the same nodes, its ML-KEM key if that is new."""
        nodes = {known.node for initiator, _ in self._pools.holding(0.0) if (known := self._topology.sae(initiator))}
        self._hybrid.announce(nodes - {self._node})
        for (initiator, target), segments in self._pools.holding(SETTLED_S).items():
            known = self._topology.sae(initiator)
            if known is not None and known.node != self._node and self._is_due((initiator, target), segments):
                self._tell(known.node, _HOLDING, Holding(initiator=initiator, target=target, segments=segments))

    def _is_due(self, pair: tuple[SaeId, SaeId], segments: list[int]) -> bool:
        now_s = self._clock.monotonic_s()
        before, times, told_s = self._told.get(pair, ([], 0, 0.0))
        times = times if before == segments else 0
        if times >= TIMES and now_s - told_s < SELDOM_S:
            return False
        self._told[pair] = (segments, times + 1, now_s)
        return True

    def _compare(self, node: NodeId, octets: bytes) -> None:
        body = decode(octets, Holding)
        self._check(body.initiator, self._node)
        self._check(body.target, node)
        before = self._clock.unix_s() - 2 * SETTLED_S
        voids = self._pools.compare(SaeId(body.initiator), SaeId(body.target), body.segments, before)
        if voids:
            self._tell(node, _VOIDS, Voids(initiator=body.initiator, target=body.target, voids=voids))

    def _void(self, node: NodeId, octets: bytes) -> None:
        body = decode(octets, Voids)
        self._check(body.initiator, node)
        self._check(body.target, self._node)
        for number, unit in body.voids:
            self._pools.void(SaeId(body.initiator), SaeId(body.target), number, unit)

    def _check(self, sae: str, node: NodeId) -> None:
        known = self._topology.sae(SaeId(sae))
        if known is None or known.node != node:
            raise AuthenticationFailed(f"pool of SAE {sae[:64]}: it is not at node {node}")

    def _tell(self, node: NodeId, service: str, body: Message) -> None:
        try:
            self._notes.tell(node, service, encode(body))
        except RouteUnavailable:
            # Said again at the next tick.
            return
