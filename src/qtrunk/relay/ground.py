"""What the parts of one node's relay machine stand on."""

import contextlib
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.base.ports import Clock, Random
from qtrunk.relay.cargo import origin_of
from qtrunk.relay.hops import Hops
from qtrunk.relay.inquest import Inquests
from qtrunk.relay.ports import HybridPort, KeyStorePort, RoutesPort
from qtrunk.topology import ANNOUNCED, Topology


@dataclass(slots=True, kw_only=True)
class Ground:
    """One node's ports and what its parts share."""

    node: NodeId
    topology: Topology
    store: KeyStorePort
    random: Random
    clock: Clock
    routes: RoutesPort
    is_hybrid: Callable[[SaeId], bool]
    """Whether an initiator's keys must have an ML-KEM part; both ends hold to it."""
    hops: Hops
    inquests: Inquests
    hybrid: HybridPort | None = None
    hears: Callable[[NodeId], bool] = lambda _node: False
    """Whether a node can be told something in a note, and believed."""

    def links(self, nodes: Sequence[str]) -> tuple[LinkId, ...]:
        """The links along a route; one that was taken out of the network meanwhile is not among them."""
        known: list[LinkId] = []
        for a, b in pairwise(nodes):
            with contextlib.suppress(KeyError):
                known.append(self.topology.link_between(NodeId(a), NodeId(b)).id)
        return tuple(known)

    def routes_demanded(self, saes: Iterable[SaeId]) -> tuple[int, int]:
        """How many shares must make a key for these SAEs, and how many more are wanted: the most of each tenant's."""
        tenants = [self.topology.tenant_of(sae) for sae in saes]
        return max(one.routes_min for one in tenants), max(one.routes_spare for one in tenants)

    def is_announced(self, initiator: SaeId) -> bool:
        """Whether keys of an initiator are to be relayed by announced XORs."""
        return self.topology.tenant_of(initiator).relay == ANNOUNCED

    def origin(self, initiator: str) -> str:
        """Where an initiator's keys were before they came into this network, for receipts."""
        return origin_of(self.topology.foreign(SaeId(initiator)))

    def uuid(self) -> str:
        """A fresh one."""
        return str(uuid.UUID(bytes=self.random.octets(16), version=4))
