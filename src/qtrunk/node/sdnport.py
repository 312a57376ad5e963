"""The node as its agent of ETSI GS QKD 015 asks for it: `agent015.NodePort` on the living parts."""

from collections.abc import Sequence
from typing import Any

from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.base.ports import Clock, Stock
from qtrunk.kms.applications import Applications, Pair, Setting
from qtrunk.kms.consume import INITIATED
from qtrunk.kms.store import KeyStore
from qtrunk.node.advert import Adverts
from qtrunk.node.ahead import FillAhead
from qtrunk.node.linkworker import LinkWorker
from qtrunk.node.tenants import TenantSupply
from qtrunk.relay.routing import Routing
from qtrunk.topology import Topology


class SdnPort:
    """One node's."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        store: KeyStore,
        supply: TenantSupply,
        ahead: FillAhead,
        routing: Routing,
        links: list[LinkWorker[Any]],
        applications: Applications,
    ) -> None:
        """`links` is the node's own list, which grows as links start."""
        self._node = node
        self._topology = topology
        self._store = store
        self._supply = supply
        self._ahead = ahead
        self._routing = routing
        self._links = links
        self._applications = applications

    def link_workers(self) -> Sequence[LinkWorker[Any]]:
        """See `agent015.NodePort`."""
        return self._links

    def demands(self) -> dict[Pair, float]:
        """See `agent015.NodePort`: pairs of the topology's demands, and those that asked lately."""
        found: dict[Pair, float] = {}
        for demand in self._topology.demands:
            for pair in (demand.between, demand.between[::-1]):
                home = self._topology.sae(pair[0])
                if home is not None and home.node == self._node:
                    found[pair] = 0.0
        return {**found, **self._supply.demands()}

    def delivered_octets(self) -> dict[Pair, int]:
        """See `agent015.NodePort`."""
        ledgers = self._store.pools.ledgers().items()
        return {(initiator, target): one.delivered for (side, initiator, target), one in ledgers if side == INITIATED}

    def stock(self, initiator: SaeId, target: SaeId) -> Stock:
        """See `agent015.NodePort`."""
        return self._ahead.stock(initiator, target)

    def route_to(self, node: NodeId) -> tuple[NodeId, ...]:
        """See `agent015.NodePort`."""
        return self._routing.route(node)

    def set_link(self, link: LinkId, *, is_enabled: bool) -> None:
        """See `agent015.NodePort`."""
        for worker in self._links:
            if worker.link == link:
                worker.enable(is_enabled=is_enabled)

    def set_application(self, pair: Pair, setting: Setting) -> None:
        """See `agent015.NodePort`."""
        self._applications.set(pair, setting)
        self._ahead.expect(*pair, float(setting.min_bps or 0))


def hold_links(
    links: Sequence[LinkWorker[Any]], topology: Topology, node: NodeId, adverts: Adverts, clock: Clock
) -> None:
    """A link whose other end is switched off makes no key either: the leading end must know, and both must say so."""
    now_s = clock.monotonic_s()
    for worker in links:
        other = adverts.level(topology.link(worker.link).other(node), worker.link, now_s)
        worker.hold(is_held=not worker.is_enabled or (other is not None and not other.is_enabled))
