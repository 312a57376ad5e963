"""What guarantees claim of links, on every hop of their routes. Pure.

A node claims for each tenant of its own SAEs the guaranteed rate on every direction of every link that the tenant's
routes from there take: all of the guarantee may go to any one of the tenant's other sites, so a direction is claimed
once, however many of them lie behind it. Claims are soft state, as unreserved bandwidth is in RFC 3630: they travel
with the adverts, a new word of a node replaces its old one, and a node that falls silent claims nothing any more.

Whoever fills a pool beyond a guarantee leaves so many octets of each direction on its way as claims may need before new
key comes. Routes grow dearer where claims take most of what a direction gives, those of nodes alone that come earlier
in the order of their IDs: two nodes that gave way to each other would do so for ever.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import msgspec

from qtrunk.base.errors import RouteUnavailable
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.kms.sharing import GAP_S, HORIZON_S
from qtrunk.topology import Tenant, Topology

CLAIMS_MAX = 20_000
"""Of one node: both directions of every link of a large network."""
Hop = tuple[NodeId, LinkId]
"""A direction: who spends key of it, and the link."""
RoutesOf = Callable[[SaeId, SaeId, int], Sequence[Sequence[NodeId]]]
"""Initiator, target, how many disjoint ones: the routes that keys between them take; RouteUnavailable: none."""


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """On one direction."""

    sender: Annotated[NodeId, msgspec.Meta(max_length=200)]
    link: Annotated[LinkId, msgspec.Meta(max_length=200)]
    bps: Annotated[float, msgspec.Meta(ge=0, le=1e12)]


def guaranteed_at(topology: Topology, node: NodeId) -> dict[str, Tenant]:
    """The tenants with a guarantee that have SAEs at a node."""
    tenants = {(tenant := topology.tenant_of(sae.id)).id: tenant for sae in topology.saes if sae.node == node}
    return {name: tenant for name, tenant in tenants.items() if tenant.guaranteed_bps > 0}


@dataclass(frozen=True, slots=True)
class Sites:
    """What one tenant with a guarantee has: an SAE at this node, and one at each of its other sites."""

    tenant: Tenant
    here: SaeId
    elsewhere: tuple[SaeId, ...]


def sites_of(topology: Topology, node: NodeId) -> tuple[Sites, ...]:
    """The sites of each tenant with a guarantee that has an SAE at a node."""
    tenants = guaranteed_at(topology, node)
    if not tenants:
        return ()
    members: dict[str, dict[NodeId, SaeId]] = {}
    for sae in topology.saes:
        members.setdefault(topology.tenant_of(sae.id).id, {}).setdefault(sae.node, sae.id)
    return tuple(
        Sites(tenant, members[name][node], tuple(sae for site, sae in members[name].items() if site != node))
        for name, tenant in sorted(tenants.items())
    )


def own_claims(topology: Topology, sites: Iterable[Sites], routes_of: RoutesOf) -> tuple[Claim, ...]:
    """What a node's tenants claim over its routes of now; where there is no route nothing can be claimed."""
    claimed: dict[Hop, float] = {}
    for one in sites:
        hops: set[Hop] = set()
        for target in one.elsewhere:
            try:
                rows = routes_of(one.here, target, one.tenant.routes_min)
            except RouteUnavailable:
                continue
            hops |= {(a, topology.link_between(a, b).id) for row in rows for a, b in pairwise(row)}
        for hop in hops:
            claimed[hop] = claimed.get(hop, 0.0) + one.tenant.guaranteed_bps
    return tuple(Claim(*hop, bps) for hop, bps in sorted(claimed.items()))


class Reservations:
    """The claims that one node knows."""

    def __init__(self, node: NodeId, topology: Topology) -> None:
        self._node = node
        self._topology = topology
        self._known: dict[NodeId, dict[Hop, float]] = {}
        self._at: dict[Hop, dict[NodeId, float]] = {}
        self._most: dict[NodeId, float] = {}
        self._said: dict[NodeId, list[Claim]] = {}

    def note(self, node: NodeId, claims: Iterable[Claim]) -> frozenset[Hop]:
        """What a node claims now, all of it; the directions of which that is news.

        A claim beyond the guarantees that the topology gives the node's tenants counts as those: no node may take
        another's links away by word alone. One on a direction that there is not counts for nothing.
        """
        said = list(claims)
        if said == self._said.get(node, []):
            return frozenset()
        self._said[node] = said
        if node not in self._most:
            self._most[node] = sum(tenant.guaranteed_bps for tenant in guaranteed_at(self._topology, node).values())
        most = self._most[node]
        fresh = {hop: min(one.bps, most) for one in said if most and self._is_there(hop := (one.sender, one.link))}
        old = self._known.get(node, {})
        self._known[node] = fresh
        news = frozenset(hop for hop in fresh.keys() | old.keys() if fresh.get(hop) != old.get(hop))
        for hop in news:
            here = self._at.setdefault(hop, {})
            here.pop(node, None)
            if hop in fresh:
                here[node] = fresh[hop]
        return news

    def adopt(self) -> frozenset[Hop]:
        """The topology has changed: guarantees may be others, what is gone has no claims. All that are left."""
        known, self._known, self._at, self._most, self._said = self._known, {}, {}, {}, {}
        for node, claimed in known.items():
            self.note(node, [Claim(*hop, bps) for hop, bps in claimed.items()])
        return frozenset(self._at)

    def among(self, hops: Iterable[Hop]) -> list[Hop]:
        """Those of some directions that anybody claims."""
        return [hop for hop in hops if self._at.get(hop)]

    def earlier_bps(self, hop: Hop) -> float:
        """What the tenants of nodes claim of a direction whose IDs come before this node's."""
        return sum(bps for node, bps in self._at.get(hop, {}).items() if node < self._node)

    def all_bps(self, hop: Hop) -> float:
        """What anybody claims of it."""
        return sum(self._at.get(hop, {}).values())

    def _is_there(self, hop: Hop) -> bool:
        try:
            link = self._topology.link(hop[1])
        except KeyError:
            return False
        return hop[0] in (link.alice, link.bob)


def set_aside_octets(claimed_bps: float, fill_bps: float) -> float:
    """What a direction must keep for claims: enough until its next block, and what it will not bring within the
    horizon (as `kms.sharing` does on the first link).
    """
    lacking = claimed_bps * HORIZON_S - fill_bps * (HORIZON_S - GAP_S)
    return max(claimed_bps * GAP_S, lacking) / 8
