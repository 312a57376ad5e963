"""Pools filled ahead: keys that lie at both ends before they are asked for, so that an answer needs no relay.

A pool is wanted for every pair that the topology's demands name (both ways), and for every pair that has asked lately.
Its goal is what it is expected to give out within HORIZON_S, at least FLOOR_OCTETS; who gets how much of scarce link
key says `kms.sharing`. Where QKD brings nothing and the tenant's policy is `fallback`, key comes from ML-KEM alone, and
an alarm stands for as long as that lasts.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from qtrunk.base.errors import KeyExhausted, QtrunkError, RouteUnavailable
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.base.ports import Clock, Quality, Stock
from qtrunk.kms.applications import Applications
from qtrunk.kms.keyid import UNIT_OCTETS, units_of
from qtrunk.kms.pools import Pools
from qtrunk.kms.poolstate import HEAD_OCTETS
from qtrunk.kms.sharing import Fill, LinkKey, Meter, Pool, Sharing
from qtrunk.node.advert import Adverts
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.alarmwatch import PoolLevel
from qtrunk.node.fallback import Fallback
from qtrunk.node.kxrunner import KxRunner
from qtrunk.node.pace import Pace
from qtrunk.relay.hops import HOP_OVERHEAD_OCTETS
from qtrunk.relay.maintenance import Window, ahead_octets, links_at
from qtrunk.relay.messages import SEGMENT_OCTETS_MAX
from qtrunk.relay.prices import LinkLevel
from qtrunk.relay.reservations import Hop, Reservations, set_aside_octets
from qtrunk.relay.routing import Routing
from qtrunk.topology import Topology

log = logging.getLogger(__name__)

HORIZON_S = 60.0
FLOOR_OCTETS = 4 << 10
LEAST_OCTETS = 512
"""No shorter segment is worth its head and its messages."""
PIECE_OCTETS, PIECE_OCTETS_LEAST, PIECE_OCTETS_MAX = 256 << 10, 128 << 10, 1 << 20
"""A pool is filled in segments of so many octets: at first, at the least, at the most. A longer one would keep every
node on its way from all else for more than some 20 ms."""
PIECE_QUICK_S, PIECE_SLOW_S = 0.5, 2.0
"""One that took less is followed by a longer one, one that took more, or failed, by a shorter one: what is not there
when the relay gives up has cost its key on every link, for nothing."""
PERIOD_S = 1.0
SOON_S = 0.25
"""So soon after another look routes that have changed bring one."""
REST_S, LASTING_S = 20.0, 2.0
"""While all pools have enough and nothing happens at the node, they are looked at so seldom."""
MEMORY_S = 600.0
"""A pair that asks for nothing for so long is not served ahead any more, unless the topology names it."""
PAUSE_MAX_S = 30.0
QUEUE_S = 10.0
"""So long a request waits behind others for the same pool: where a route is silent, each takes that long to fail."""
SHARE = 2
"""Filling ahead leaves one part in so many of a link's key to requests that cannot wait."""
AHEAD_OCTETS_MAX = 256 << 20
"""The most that is filled ahead of maintenance."""
_BLOCKS_PER_KEY = 2
Pair = tuple[SaeId, SaeId]


@dataclass(slots=True)
class _Wanted:
    """One pool and how it is used."""

    stock: Stock
    meter: Meter
    expected_bps: float = 0.0
    looked_s: float = float("-inf")
    asked_s: float = -MEMORY_S
    pause_s: float = 0.0
    not_before_s: float = 0.0
    relayable_bits: float = 0.0
    free_bits: float = 0.0
    """Of these, what no guarantee claims on any hop."""
    is_guaranteed: bool = False
    """Whether its tenant has a guarantee: how far that goes say admission and sharing."""
    ahead_octets: int = 0
    """Of the target, for windows of maintenance."""
    link: LinkId | None = None
    """The first one on its route; None: there is no route."""
    filling: asyncio.Lock = field(default_factory=asyncio.Lock)
    piece_octets: int = PIECE_OCTETS
    """Of the next segment."""
    is_filled_ahead: bool = False
    """Whether that is under way, or waits for its turn behind requests: they may come so thick that they never end."""

    @property
    def open_bits(self) -> float:
        """What could be relayed for it now."""
        return self.relayable_bits if self.is_guaranteed else self.free_bits


class FillAhead:
    """The pools of a node's own SAEs as initiators."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        pools: Pools,
        relay: KxRunner,
        adverts: Adverts,
        alarms: AlarmBoard,
        clock: Clock,
        fallback: Fallback | None,
        applications: Applications | None = None,
        routing: Routing | None = None,
        changed: asyncio.Event | None = None,
        windows: Callable[[], Sequence[Window]] = tuple,
        claims: Reservations | None = None,
        pace: Pace | None = None,
    ) -> None:
        """`changed` is set when routes may be others; `windows` are those of maintenance that are known."""
        self._node = node
        self._topology = topology
        self._pace = pace or Pace()
        self._pools = pools
        self._relay = relay
        self._adverts = adverts
        self._alarms = alarms
        self._clock = clock
        self._fallback = fallback
        self._applications = applications or Applications()
        self._routing = routing or Routing(node, topology)
        self._changed = changed or asyncio.Event()
        self._windows = windows
        self._claims = claims or Reservations(node, topology)
        self._sharing = Sharing()
        self._wanted: dict[Pair, _Wanted] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._expect_demands()

    def adopt(self) -> None:
        """The network has changed: demands, and which SAEs there are."""
        for pair, wanted in list(self._wanted.items()):
            wanted.expected_bps = 0.0
            ends = [self._topology.sae(sae) for sae in pair]
            if ends[0] is None or ends[1] is None or ends[0].node != self._node:
                del self._wanted[pair]
        self._expect_demands()

    def _expect_demands(self) -> None:
        for demand in self._topology.demands:
            for pair in (demand.between, demand.between[::-1]):
                ends = [self._topology.sae(sae) for sae in pair]
                if ends[0] is not None and ends[1] is not None and ends[0].node == self._node != ends[1].node:
                    self._want(*pair).expected_bps = demand.rate_bps

    def stock(self, initiator: SaeId, target: SaeId) -> Stock:
        """What a pool offers now, with what could be relayed for it at once; the SAEs must be known."""
        wanted = self._want(initiator, target)
        if self._clock.monotonic_s() - wanted.looked_s > PERIOD_S:
            # At rest nobody has looked for long, and others may have said something of their links.
            self._look_at((initiator, target), wanted)
        wanted.stock.level_bits = 8 * self._pools.octets(initiator, target) + wanted.open_bits
        return wanted.stock

    def note(self, initiator: SaeId, target: SaeId, octets: int) -> None:
        """So much was asked for."""
        wanted = self._want(initiator, target)
        self._pace.stir()
        wanted.asked_s = self._clock.monotonic_s()
        wanted.meter.note(8 * octets, wanted.asked_s)

    def expect(self, initiator: SaeId, target: SaeId, rate_bps: float) -> None:
        """A controller expects this pair to use so much, beside what the topology expects."""
        known = [demand.rate_bps for demand in self._topology.demands if {*demand.between} == {initiator, target}]
        self._want(initiator, target).expected_bps = max([rate_bps, *known])
        self._pace.stir()

    async def fill_now(self, initiator: SaeId, target: SaeId, number: int, key_octets: int) -> None:
        """Get so many keys into a pool before returning; QtrunkError when that cannot be."""
        wanted = self._want(initiator, target)
        try:
            async with asyncio.timeout(QUEUE_S):
                await wanted.filling.acquire()
        except TimeoutError as error:
            raise KeyExhausted(f"from {initiator} to {target}: others wait for key that does not come") from error
        try:
            # Others may have waited for the same. What is there need not fit: a key is of one segment.
            missing = number - self._pools.ready(initiator, target, key_octets)
            if missing > 0:
                await self._fill((initiator, target), missing * units_of(key_octets) * UNIT_OCTETS)
        finally:
            wanted.filling.release()

    async def run(self) -> None:
        """Keep the pools filled."""
        while True:
            self._look()
            pools = {_name(pair): (pair, wanted) for pair, wanted in self._wanted.items()}
            # In their order: who comes first may leave the others nothing.
            for fill in self._share():
                self._start(*pools[fill.pool], fill)
            if self._is_short() or self._pace.is_quick(LASTING_S):
                await asyncio.sleep(SOON_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PERIOD_S - SOON_S):
                        await self._changed.wait()
            else:
                at_most_s = REST_S if self._windows() else float("inf")
                await self._pace.turn(PERIOD_S, REST_S, LASTING_S, at_most_s=at_most_s)
            self._changed.clear()

    def _is_short(self) -> bool:
        """Whether any pool is due to be filled."""
        return any(self._is_low(pair, wanted) for pair, wanted in self._wanted.items())

    def _is_low(self, pair: Pair, wanted: _Wanted) -> bool:
        goal = int(wanted.stock.target_bits / 8)
        # What a window of maintenance takes is filled to the brim: nothing comes later.
        return self._pools.octets(*pair) <= (goal // 2 if not wanted.ahead_octets else goal - LEAST_OCTETS)

    def levels(self) -> list[PoolLevel]:
        """How every pool that is wanted stands."""
        return [
            PoolLevel(*pair, self._pools.octets(*pair), wanted.stock.target_bits / 8)
            for pair, wanted in self._wanted.items()
        ]

    def stop(self) -> None:
        """Let go of what is under way."""
        for task in self._running:
            task.cancel()

    # ── who gets what ───────────────────────────────────────────────────────────────────────────────────────────────

    def _share(self) -> list[Fill]:
        now_s = self._clock.monotonic_s()
        pools, links = [], {}
        for pair, wanted in self._wanted.items():
            if wanted.link is None or wanted.is_filled_ahead or now_s < wanted.not_before_s:
                continue
            if not self._is_low(pair, wanted):
                continue
            level, goal = self._pools.octets(*pair), int(wanted.stock.target_bits / 8)
            own = self._adverts.level(self._node, wanted.link, now_s)
            links[wanted.link] = LinkKey(
                octets=max(0, own.octets // SHARE) if own else 0, rate_bps=own.fill_bps if own else 0.0
            )
            # What any hop beyond the first cannot carry now would only fail.
            goal = min(goal, level + int(wanted.open_bits / 8) // SHARE)
            pools.append(
                Pool(
                    id=_name(pair),
                    tenant=self._applications.tenant(pair, self._topology.tenant_of(pair[0])),
                    link=wanted.link,
                    demand_bps=max(wanted.expected_bps, wanted.meter.rate(now_s)),
                    level_octets=level,
                    target_octets=goal,
                )
            )
        return self._sharing.share(now_s, pools, links)

    def _look(self) -> None:
        """How the pools stand, and what could be relayed for them."""
        now_s = self._clock.monotonic_s()
        for pair, wanted in list(self._wanted.items()):
            if not wanted.expected_bps and now_s - wanted.asked_s > MEMORY_S:
                del self._wanted[pair]
                continue
            self._look_at(pair, wanted)

    def _look_at(self, pair: Pair, wanted: _Wanted) -> None:
        wanted.looked_s = now_s = self._clock.monotonic_s()
        stock = wanted.stock
        tenant = self._applications.tenant(pair, self._topology.tenant_of(pair[0]))
        wanted.is_guaranteed = tenant.guaranteed_bps > 0
        demand_bps = max(wanted.expected_bps, wanted.meter.rate(now_s))
        target = self._topology.sae(pair[1])
        assert target is not None
        wanted.ahead_octets = min(AHEAD_OCTETS_MAX, self._ahead_octets(pair, target.node, demand_bps))
        usual = max(FLOOR_OCTETS, min(SEGMENT_OCTETS_MAX, int(HORIZON_S * demand_bps / 8)))
        stock.ahead_bits = 8 * wanted.ahead_octets
        stock.target_bits = 8 * usual + stock.ahead_bits
        quality = self._pools.quality(*pair) or self._expected(pair, target.node)
        if quality != stock.quality:
            stock.quality = quality
        try:
            routes = self._routes(pair, target.node)
            if not all(self._routing.is_open(nodes) for nodes in routes):
                raise RouteUnavailable(f"no link carries key on the way from {self._node} to {target.node}")
        except RouteUnavailable:
            wanted.link, wanted.relayable_bits, wanted.free_bits, stock.fill_bps = None, 0.0, 0.0, 0.0
            return
        hops = [(here, self._topology.link_between(here, there).id) for row in routes for here, there in pairwise(row)]
        levels = [self._adverts.level(here, link, now_s) for here, link in hops]
        # In shares each route carries as many octets: the poorest one counts, at its first link, too.
        firsts = [self._topology.link_between(*row[:2]).id for row in routes]
        own = {link: level.octets for link in firsts if (level := self._adverts.level(self._node, link, now_s))}
        wanted.link = min(firsts, key=lambda link: own.get(link, 0))
        wanted.relayable_bits = 8.0 * min(level.octets - HOP_OVERHEAD_OCTETS if level else 0 for level in levels)
        wanted.relayable_bits = max(0.0, wanted.relayable_bits)
        left = [level.octets - self._aside(hop, level) if level else 0 for hop, level in zip(hops, levels, strict=True)]
        wanted.free_bits = max(0.0, 8.0 * (min(left) - HOP_OVERHEAD_OCTETS))
        stock.fill_bps = min(level.fill_bps if level else 0.0 for level in levels)

    def _aside(self, hop: Hop, level: LinkLevel) -> float:
        claimed_bps = self._claims.all_bps(hop)
        return set_aside_octets(claimed_bps, level.fill_bps) if claimed_bps else 0.0

    def check_free(self, initiator: SaeId, target: SaeId, octets: int) -> None:
        """KeyExhausted where so much for a tenant without a guarantee would take what others' guarantees claim."""
        wanted = self._want(initiator, target)
        self._look_at((initiator, target), wanted)
        if wanted.open_bits < min(8 * octets, wanted.relayable_bits):
            raise KeyExhausted(f"from {initiator} to {target}: what the links on the way have is kept for guarantees")

    def _routes(self, pair: Pair, node: NodeId, avoided: Collection[LinkId] = ()) -> Sequence[tuple[NodeId, ...]]:
        """What its key needs: one route, or as many disjoint ones as the tenants demand."""
        needed = max(self._topology.tenant_of(sae).routes_min for sae in pair)
        if needed == 1:
            return [self._routing.route_for(pair, node, avoided)]
        return self._routing.disjoint_for(pair, node, needed, avoided)

    def _ahead_octets(self, pair: Pair, end: NodeId, demand_bps: float) -> int:
        """What windows of maintenance will keep from a pool."""
        windows = self._windows()
        if not windows:
            return 0
        rest_bps = {
            window.resource: self._rest_bps(pair, end, window.resource)
            for window in windows
            if window.resource != self._node
        }
        return ahead_octets(windows, demand_bps, rest_bps, self._clock.unix_s())

    def _rest_bps(self, pair: Pair, end: NodeId, resource: str) -> float:
        """What the pools towards a node still get without a node or link; 0: nothing."""
        try:
            routes = self._routes(pair, end, links_at(self._topology, resource))
        except RouteUnavailable:
            return 0.0
        if not all(self._routing.is_open(nodes) for nodes in routes):
            return 0.0
        now_s, hops = self._clock.monotonic_s(), [hop for nodes in routes for hop in pairwise(nodes)]
        levels = [self._adverts.level(a, self._topology.link_between(a, b).id, now_s) for a, b in hops]
        return min((level.fill_bps if level else 0.0 for level in levels), default=0.0)

    def _expected(self, pair: Pair, node: NodeId) -> Quality:
        """What a key would rest on that were made now, over the best routes; where the rules leave none, over the
        shortest, so that who asks hears which rule it is.
        """
        routes: Sequence[tuple[NodeId, ...]] = ()
        with contextlib.suppress(RouteUnavailable):
            routes = self._routes(pair, node)
        is_hybrid = self._fallback is not None and self._topology.tenant_of(pair[0]).hybrid != "qkd"
        return expected_quality(self._topology, routes, is_hybrid=is_hybrid)

    # ── filling ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, pair: Pair, wanted: _Wanted, fill: Fill) -> None:
        beyond = min(fill.octets - fill.guaranteed_octets, int(wanted.free_bits / 8))
        octets = (fill.guaranteed_octets + beyond) // UNIT_OCTETS * UNIT_OCTETS
        if octets < LEAST_OCTETS:
            self._sharing.give_back(fill)
            return

        async def work() -> None:
            done, whole = 0, min(octets, SEGMENT_OCTETS_MAX)
            try:
                while done < whole and self._wanted.get(pair) is wanted:
                    # Between two segments it is the turn of requests that wait.
                    async with wanted.filling:
                        done += await self._fill_piece(pair, wanted, whole - done)
                wanted.pause_s = 0.0
            except QtrunkError as error:
                wanted.pause_s = min(PAUSE_MAX_S, 2 * wanted.pause_s or 1.0)
                wanted.not_before_s = self._clock.monotonic_s() + wanted.pause_s
                log.info("pool %s to %s: not filled: %s", *pair, error)
            finally:
                unused = max(0, fill.guaranteed_octets - done)
                self._sharing.give_back(replace(fill, guaranteed_octets=unused))
                wanted.is_filled_ahead = False

        wanted.is_filled_ahead = True
        task = asyncio.create_task(work())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _fill_piece(self, pair: Pair, wanted: _Wanted, missing: int) -> int:
        """One segment of what is missing; its octets."""
        usual, began_s = wanted.piece_octets, self._clock.monotonic_s()
        octets = usual if missing >= usual + LEAST_OCTETS else missing
        self._look_at(pair, wanted)
        able = int(wanted.open_bits / 8 - HEAD_OCTETS) // UNIT_OCTETS * UNIT_OCTETS
        if able >= LEAST_OCTETS:
            # Others may have had of the key meanwhile, or made another route the better one: some is better than none.
            octets = min(octets, able)
        wanted.piece_octets = max(PIECE_OCTETS_LEAST, usual // 2)
        await self._fill(pair, octets)
        took_s = self._clock.monotonic_s() - began_s
        if took_s < PIECE_SLOW_S:
            is_easy = took_s < PIECE_QUICK_S and octets >= usual
            wanted.piece_octets = min(PIECE_OCTETS_MAX, 2 * usual) if is_easy else usual
        return octets

    async def _fill(self, pair: Pair, octets: int) -> None:
        """A segment by QKD; where that fails and the policy allows it, of ML-KEM alone."""
        resource = f"pool {pair[0]} to {pair[1]}"
        try:
            self.check_free(*pair, HEAD_OCTETS + octets)
            await self._relay.fill(*pair, HEAD_OCTETS + octets)
        except (KeyExhausted, RouteUnavailable) as error:
            if self._fallback is None or self._topology.tenant_of(pair[0]).hybrid != "fallback":
                raise
            self._alarms.raise_alarm(resource, "QkdKeyFallback", "major", f"{resource}: ML-KEM alone, since {error}")
            await self._fallback.fill(*pair, HEAD_OCTETS + octets)
        else:
            self._alarms.clear(resource, "QkdKeyFallback")
        self._look_at(pair, self._want(*pair))

    def _want(self, initiator: SaeId, target: SaeId) -> _Wanted:
        wanted = self._wanted.get((initiator, target))
        if wanted is None:
            stock = Stock(quality=Quality(epsilon=0.0, hops=0), level_bits=0.0, target_bits=0.0, fill_bps=0.0)
            wanted = _Wanted(stock=stock, meter=Meter(self._clock.monotonic_s()))
            self._wanted[initiator, target] = wanted
            self._look_at((initiator, target), wanted)
        return wanted


def expected_quality(topology: Topology, routes: Sequence[Sequence[NodeId]], *, is_hybrid: bool) -> Quality:
    """What a key would rest on that were relayed now, in shares where there are several routes."""
    links = [topology.link_between(*hop) for row in routes for hop in pairwise(row)]
    return Quality(
        epsilon=_BLOCKS_PER_KEY * sum(link.distillation.epsilon_secret for link in links),
        hops=max((len(row) - 1 for row in routes), default=0),
        routes=max(1, len(routes)),
        is_hybrid=is_hybrid,
    )


def _name(pair: Pair) -> str:
    return " ".join(pair)
