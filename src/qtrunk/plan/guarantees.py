"""Whether the links can carry what tenants were promised.

The worst case of a guarantee: all of it goes to that one of the tenant's other sites whose route takes the link. Routes
are those of `relay.route` with every link up. A link's key is split evenly between its two directions; its rate is the
planned one (`plan.rate`) under the settings of the file, authentication paid, so an adaptive link may do better.
"""

from itertools import pairwise
from math import inf

from qtrunk.base.ids import LinkId, NodeId
from qtrunk.plan.light import longest_s
from qtrunk.plan.rate import PlannedLink, planned
from qtrunk.relay.route import route
from qtrunk.topology import Link, Tenant, Topology


def planned_bps(link: Link) -> float:
    """Secret key that a link should make, both directions together, bit/s; no bound where a vendor's system makes it,
    because nothing here can tell.
    """
    if link.vendor is not None:
        return inf
    # A simulated fibre may run a share of the pulses: its blocks are as if they were so much shorter.
    share = link.equipment.clock_fraction
    made = planned(
        PlannedLink(
            km=link.length_km,
            loss_db=link.loss_db,
            equipment=link.equipment,
            bounds=link.distillation.bounds,
            eps_sec=link.distillation.epsilon_secret,
            block_s=longest_s(link) * share,
        )
    )
    return made.net_bps * share


def guaranteed_loads(topology: Topology) -> dict[tuple[LinkId, NodeId], dict[str, float]]:
    """What each tenant may claim of each link towards each of its ends, bit/s: by (link, end), then by tenant."""
    sites: dict[str, dict[NodeId, None]] = {}
    owners: dict[str, Tenant] = {}
    for sae in topology.saes:
        tenant = topology.tenant_of(sae.id)
        owners[tenant.id] = tenant
        sites.setdefault(tenant.id, {})[sae.node] = None
    loads: dict[tuple[LinkId, NodeId], dict[str, float]] = {}
    for name, nodes in sites.items():
        if not owners[name].guaranteed_bps:
            continue
        for start in nodes:
            avoid = [NodeId(node) for node in owners[name].avoid]
            rows = [route(topology, start, end, avoid=avoid) for end in nodes if end != start]
            steps = {(topology.link_between(a, b).id, b) for row in rows for a, b in pairwise(row)}
            for step in steps:
                load = loads.setdefault(step, {})
                load[name] = load.get(name, 0.0) + owners[name].guaranteed_bps
    return loads


def warnings(topology: Topology) -> list[str]:
    """What a network's tenants should not rely on, a line each."""
    found = [
        f'tenants.{tenant.id}.saes: "{item}" fits no SAE of this file'
        for tenant in topology.tenants
        for item in tenant.saes
        if not any(Tenant(id="", saes=(item,)).names(sae.id) for sae in topology.saes)
    ]
    loads = guaranteed_loads(topology)
    rates = {link: planned_bps(topology.link(link)) / 2 for link, _ in loads}
    for (link, end), by_tenant in sorted(loads.items()):
        total = sum(by_tenant.values())
        if total > rates[link]:
            parts = ", ".join(f"{name} {bps:.0f}" for name, bps in sorted(by_tenant.items()))
            found.append(
                f"links.{link}: guarantees towards {end} add up to {total:.0f} bit/s ({parts}), "
                f"the link should make {rates[link]:.0f} bit/s each way"
            )
    return found
