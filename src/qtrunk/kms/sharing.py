"""How a node shares scarce link key among the pools of end-to-end key that it fills ahead.

Each link's key is shared in three steps. First the guarantees: a tenant earns credit at its guaranteed rate, up to
`horizon_s` of it, and what its pools lack is filled as far as the credit goes; where a link has too little for all
credits, in proportion to them. Then what the guarantees may still claim within the horizon, beyond what the link will
bring meanwhile, is set aside. Only the rest is shared without regard to guarantees: the highest priority first, within
one priority by max-min fairness among tenants, so that a tenant gains nothing by having many pools or a great demand.

So nothing that a tenant does moves another's credit, and no octet goes to a pool beyond its guarantee that a pool
within its own lacks: that one gets it, or finds it left for its next turn. Where a link brings at least the sum of the
guarantees over it, every guarantee is kept.

One pure machine for one node and one thread. A pool takes its key over one first link. Octets are of key; what a relay
adds to them (tags) is the caller's to leave aside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf

from qtrunk.base.ids import LinkId
from qtrunk.topology import Tenant

HORIZON_S = 60.0
GAP_S = 10.0
"""Links bring key in blocks: what comes next may be so far off."""
TIME_CONSTANT_S = 60.0


class Meter:
    """A rate as an exponentially weighted mean of what was noted; unbiased from its first seconds on."""

    __slots__ = ("_amount", "_last_s", "_start_s", "_time_constant_s")

    def __init__(self, now_s: float, time_constant_s: float = TIME_CONSTANT_S) -> None:
        self._start_s = self._last_s = now_s
        self._time_constant_s = time_constant_s
        self._amount = 0.0

    def note(self, amount: float, now_s: float) -> None:
        """So much passed now."""
        now_s = max(now_s, self._last_s)
        self._amount = self._amount * exp((self._last_s - now_s) / self._time_constant_s) + amount
        self._last_s = now_s

    def rate(self, now_s: float) -> float:
        """Per second. In the first eighth of the time constant too low rather than wild."""
        now_s = max(now_s, self._last_s)
        amount = self._amount * exp((self._last_s - now_s) / self._time_constant_s)
        seen_s = self._time_constant_s * (1 - exp((self._start_s - now_s) / self._time_constant_s))
        return amount / max(seen_s, self._time_constant_s / 8)


def time_to_empty_s(level_bits: float, fill_bps: float, drain_bps: float) -> float:
    """When a pool will be empty if both rates last; infinite if never."""
    return level_bits / (drain_bps - fill_bps) if drain_bps > fill_bps else (0.0 if level_bits <= 0 else inf)


def time_to_full_s(level_bits: float, target_bits: float, fill_bps: float, drain_bps: float) -> float:
    """When a pool will have reached its target if both rates last; infinite if never."""
    if level_bits >= target_bits:
        return 0.0
    return (target_bits - level_bits) / (fill_bps - drain_bps) if fill_bps > drain_bps else inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One pool as it stands, fills on their way included."""

    id: str
    tenant: Tenant
    link: LinkId
    """The first one on its route."""
    demand_bps: float
    """What is asked of it (`Meter`), met or not: an empty pool is not one that nobody wants."""
    level_octets: int
    target_octets: int

    @property
    def room_octets(self) -> int:
        """What it lacks."""
        return max(0, self.target_octets - self.level_octets)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkKey:
    """Key of one link that this node may allocate, and how fast more comes."""

    octets: int
    rate_bps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """What a pool is to get now."""

    pool: str
    tenant: str
    octets: int
    guaranteed_octets: int
    """Of these, paid with the tenant's credit."""


class Sharing:
    """The credits of a node's tenants. Ask it every second or so, whenever links brought key or pools gave some."""

    def __init__(self, horizon_s: float = HORIZON_S, gap_s: float = GAP_S) -> None:
        self._horizon_s = horizon_s
        self._gap_s = gap_s
        self._credits: dict[str, float] = {}
        """Octets by tenant."""
        self._last_s: float | None = None

    def share(self, now_s: float, pools: Sequence[Pool], links: Mapping[LinkId, LinkKey]) -> list[Fill]:
        """What to fill now, the most urgent first; `give_back` what then fails. Pools of unknown links get nothing."""
        self._earn(now_s, pools)
        guaranteed = self._guaranteed(pools, links)
        fills = dict(guaranteed)
        for link, key in links.items():
            here = [pool for pool in pools if pool.link == link]
            left = key.octets - sum(guaranteed[pool.id] for pool in here)
            spare = left - self._set_aside(here, guaranteed, key)
            for pool, octets in _beyond(here, guaranteed, max(0.0, spare)):
                fills[pool.id] += octets

        def urgency(pool: Pool) -> tuple[bool, int, float]:
            last_s = time_to_empty_s(8 * pool.level_octets, 0.0, pool.demand_bps)
            return (not guaranteed[pool.id], 0 if guaranteed[pool.id] else -pool.tenant.priority, last_s)

        return [
            Fill(
                pool=pool.id,
                tenant=pool.tenant.id,
                octets=fills[pool.id],
                guaranteed_octets=guaranteed[pool.id],
            )
            for pool in sorted(pools, key=urgency)
            if fills[pool.id]
        ]

    def give_back(self, fill: Fill) -> None:
        """The fill did not come to be: its credit is the tenant's again. The next `share` caps it."""
        self._credits[fill.tenant] = self._credits.get(fill.tenant, 0.0) + fill.guaranteed_octets

    def _earn(self, now_s: float, pools: Sequence[Pool]) -> None:
        passed_s = 0.0 if self._last_s is None else max(0.0, now_s - self._last_s)
        self._last_s = now_s if self._last_s is None else max(now_s, self._last_s)
        for tenant in {pool.tenant.id: pool.tenant for pool in pools}.values():
            most = tenant.guaranteed_bps * self._horizon_s / 8
            earned = tenant.guaranteed_bps * passed_s / 8
            # A tenant that was not seen yet has its full credit: its pools are empty.
            self._credits[tenant.id] = min(most, self._credits.get(tenant.id, most) + earned)

    def _guaranteed(self, pools: Sequence[Pool], links: Mapping[LinkId, LinkKey]) -> dict[str, int]:
        """The first step; charges the credits."""
        wants: dict[LinkId, dict[str, float]] = {link: {} for link in links}
        for tenant, members in _by_tenant(pools).items():
            rooms = dict.fromkeys(links, 0)
            for pool in members:
                if pool.link in rooms:
                    rooms[pool.link] += pool.room_octets
            # A tenant whose pools start over several links has one credit for all of them: more where more can be done.
            can = {link: min(room, links[link].octets) for link, room in rooms.items()}
            total = sum(can.values())
            for link, room in rooms.items():
                if can[link]:
                    wants[link][tenant] = min(room, self._credits[tenant] * can[link] / total)
        given = {pool.id: 0 for pool in pools}
        for link, by_tenant in wants.items():
            wanted = sum(by_tenant.values())
            part = min(1.0, links[link].octets / wanted) if wanted > 0 else 0.0
            for tenant, members in _by_tenant([pool for pool in pools if pool.link == link]).items():
                for pool, octets in _within(members, by_tenant.get(tenant, 0.0) * part, given):
                    given[pool.id] += octets
                    self._credits[tenant] -= octets
        return given

    def _set_aside(self, pools: Sequence[Pool], given: Mapping[str, int], key: LinkKey) -> float:
        """Octets of a link that guarantees claim now, or may within the horizon and the link will not bring in time."""
        now = soon = 0.0
        for tenant, members in _by_tenant(pools).items():
            room = sum(pool.room_octets - given[pool.id] for pool in members)
            now += min(room, self._credits[tenant])
            soon += members[0].tenant.guaranteed_bps * self._horizon_s / 8
        coming = key.rate_bps * max(0.0, self._horizon_s - self._gap_s) / 8
        return max(now, now + soon - coming)


def _by_tenant(pools: Sequence[Pool]) -> dict[str, list[Pool]]:
    found: dict[str, list[Pool]] = {}
    for pool in pools:
        found.setdefault(pool.tenant.id, []).append(pool)
    return found


def _beyond(pools: Sequence[Pool], given: Mapping[str, int], spare: float) -> list[tuple[Pool, int]]:
    """The last step, on one link: strict priorities, max-min fairness among the tenants of one."""
    found: list[tuple[Pool, int]] = []
    for priority in sorted({pool.tenant.priority for pool in pools}, reverse=True):
        tenants = _by_tenant([pool for pool in pools if pool.tenant.priority == priority])
        needs = [sum(pool.room_octets - given[pool.id] for pool in members) for members in tenants.values()]
        shares = _max_min(spare, needs, [1.0] * len(needs))
        for members, share in zip(tenants.values(), shares, strict=True):
            found += _within(members, share, given)
        spare -= sum(shares)
    return found


def _within(pools: Sequence[Pool], octets: float, given: Mapping[str, int]) -> list[tuple[Pool, int]]:
    """A tenant's share among its pools, by demand; whole octets."""
    # A pool that nobody has asked yet gets a little too.
    least = 1 + 0.01 * sum(pool.demand_bps for pool in pools)
    weights = [pool.demand_bps + least for pool in pools]
    shares = _max_min(octets, [pool.room_octets - given[pool.id] for pool in pools], weights)
    return [(pool, int(share)) for pool, share in zip(pools, shares, strict=True)]


def _max_min(amount: float, needs: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Weighted max-min fair shares: nobody gets more than it needs, nor by another's loss more for its weight."""
    shares = [0.0] * len(needs)
    weight = sum(weights)
    for index in sorted(range(len(needs)), key=lambda index: needs[index] / weights[index]):
        # The last weight may have lost digits to the others.
        part = min(1.0, weights[index] / weight) if weight > 0 else 1.0
        shares[index] = max(0.0, min(needs[index], amount * part))
        amount -= shares[index]
        weight -= weights[index]
    return shares
