"""Key kept for guarantees on every hop: claims travel with adverts, others leave it, and too much of it is an alarm."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest

from qtrunk.base.errors import KeyExhausted, WireError
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.kms.key import PoolLevel
from qtrunk.node.advert import STALE_S, Adverts
from qtrunk.node.ahead import FillAhead
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.flooding import Flooding
from qtrunk.node.linkstate import LinkStatistics
from qtrunk.node.reserving import ALARM, SHORT, Reserving
from qtrunk.relay.prices import LinkLevel
from qtrunk.relay.reservations import CLAIMS_MAX, Claim
from qtrunk.relay.routing import Routing
from qtrunk.sim.network.loop import VirtualLoop
from qtrunk.stages import Role
from qtrunk.topology import Demand, LiveTopology, Node, Sae, Tenant, Topology, trunk

LINE = trunk("t", [Node(id=NodeId(name)) for name in "abc"], [(10, 3), (10, 3)])
GUARANTEED_BPS = 4000.0
RATE_BPS = 6000.0
"""Of each direction: enough for the guarantee, not for what the others would take."""
TOPOLOGY = Topology(
    name="t",
    nodes=LINE.nodes,
    links=LINE.links,
    saes=tuple(
        Sae(id=SaeId(name), node=NodeId(node))
        for name, node in (("bank1", "a"), ("bank2", "c"), ("shop1", "b"), ("shop2", "c"))
    ),
    demands=(
        Demand(between=(SaeId("bank1"), SaeId("bank2")), rate_bps=GUARANTEED_BPS),
        Demand(between=(SaeId("shop1"), SaeId("shop2")), rate_bps=40_000.0),
    ),
    tenants=(Tenant(id="bank", saes=("bank*",), guaranteed_bps=GUARANTEED_BPS),),
)
RUN_S = 300
DIRECTIONS = [(node, link.id) for link in LINE.links for node in (link.alice, link.bob)]


class Clock:
    def __init__(self, loop):
        self._loop = loop

    def unix_s(self):
        return 1.7e9 + self.monotonic_s()

    def monotonic_s(self):
        return 1000.0 + self._loop.time()


class Fibre:
    """What lies in each direction; a relay takes it on every hop or fails."""

    def __init__(self):
        self.octets = dict.fromkeys(DIRECTIONS, 30_000)

    def take(self, hops, octets):
        if any(self.octets[hop] < octets for hop in hops):
            raise KeyExhausted("a hop has too little")
        for hop in hops:
            self.octets[hop] -= octets


class Pools:
    def __init__(self):
        self.level = {}

    def octets(self, *pair):
        return self.level.get(pair, 0)

    def quality(self, *_pair):
        return None

    def ready(self, *pair_and_size):
        return self.level.get(pair_and_size[:2], 0) // pair_and_size[2]


class Site:
    """One node's filling, with real claims, routes and adverts; the relay is the fibre at once."""

    def __init__(self, name, clock, fibre, *, is_reserving=True):
        node = NodeId(name)
        self.node, self.fibre, self.pools, self.clock = node, fibre, Pools(), clock
        self.is_full = False
        self.alarms, self.adverts, self.routing = AlarmBoard(clock), Adverts(node), Routing(node, TOPOLOGY)
        self.reserving = Reserving(node, TOPOLOGY, self.routing, self.adverts, self.alarms, clock, self.has_no_room)
        claims = self.reserving.claims if is_reserving else None
        self.ahead = FillAhead(
            *(node, TOPOLOGY, self.pools, self, self.adverts, self.alarms, clock, None),
            routing=self.routing,
            claims=claims,
        )

    def has_no_room(self, _link):
        return self.is_full

    async def fill(self, initiator, target, octets):
        row = self.routing.route(TOPOLOGY.sae(target).node)
        self.fibre.take([(a, TOPOLOGY.link_between(a, b).id) for a, b in pairwise(row)], octets + 48)
        self.pools.level[initiator, target] = self.pools.octets(initiator, target) + octets

    def levels(self, rate_bps=RATE_BPS):
        return [
            LinkLevel(link=link, octets=octets, fill_bps=rate_bps, is_usable=octets > 0)
            for (node, link), octets in self.fibre.octets.items()
            if node == self.node
        ]

    def tell(self, sites, rate_bps=RATE_BPS):
        now_s, levels, claims = self.clock.monotonic_s(), self.levels(rate_bps), self.reserving.own()
        octets = self.adverts.note_own(levels, int(1000 * now_s), now_s, (), claims)
        self.reserving.note(self.node, levels, claims)
        self.routing.note(self.node, levels)
        for other in sites:
            if other is not self and (advert := other.adverts.receive(octets, now_s)) is not None:
                other.reserving.note(NodeId(advert.node), advert.links, advert.claims)
                other.routing.note(NodeId(advert.node), advert.links)


def run(scenario):
    """On a loop whose clock jumps."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(scenario(Clock(loop)))
    finally:
        loop.close()


def missed(*, is_reserving):
    """Octets that the bank did not get of its guarantee in five minutes, while the shop takes whatever there is."""

    async def scenario(clock):
        fibre, lacking, given = Fibre(), 0, 0
        sites = [Site(name, clock, fibre, is_reserving=is_reserving) for name in "abc"]
        tasks = []
        for second in range(RUN_S):
            for hop in fibre.octets:
                fibre.octets[hop] += int(RATE_BPS / 8)
            for site in sites:
                site.tell(sites)
            if second == 0:
                tasks = [asyncio.create_task(site.ahead.run()) for site in sites]
            await asyncio.sleep(1.0)
            bank, shop = sites[0].pools.level, sites[1].pools.level
            given += shop.pop(("shop1", "shop2"), 0)
            for _ in range(3):
                # What does not lie ready is asked for.
                try:
                    await sites[1].ahead.fill_now(SaeId("shop1"), SaeId("shop2"), 16, 32)
                except KeyExhausted:
                    break
            wanted = int(GUARANTEED_BPS / 8)
            have = min(wanted, bank.get(("bank1", "bank2"), 0))
            if second >= 30:
                lacking += wanted - have
            bank["bank1", "bank2"] = bank.get(("bank1", "bank2"), 0) - have
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return lacking, given

    return run(scenario)


def test_a_guarantee_holds_over_a_hop_that_another_node_floods():
    lacking, given = missed(is_reserving=True)
    assert lacking == 0
    assert given > 0.5 * RUN_S * (RATE_BPS - GUARANTEED_BPS) / 8, "what is left goes to the others"


def test_without_claims_the_flood_would_take_it():
    assert missed(is_reserving=False)[0] > 0


def test_what_guarantees_claim_is_refused_to_others_and_said_in_the_status():
    async def scenario(clock):
        fibre = Fibre()
        sites = [Site(name, clock, fibre) for name in "abc"]
        fibre.octets = dict.fromkeys(DIRECTIONS, 5_500)
        for _ in range(2):
            for site in sites:
                site.tell(sites)
        assert sites[1].reserving.claimed_bps(LinkId("b-c")) == GUARANTEED_BPS
        # Ten seconds of the guarantee are 5000 octets.
        shop, bank = (SaeId("shop1"), SaeId("shop2")), (SaeId("bank1"), SaeId("bank2"))
        with pytest.raises(KeyExhausted, match="kept for guarantees"):
            await sites[1].ahead.fill_now(*shop, 64, 32)
        assert sites[1].ahead.stock(*shop).level_bits < 8 * 500
        await sites[0].ahead.fill_now(*bank, 64, 32)
        assert sites[0].ahead.stock(*bank).level_bits > 8 * 2048

    run(scenario)


def test_a_link_that_cannot_carry_what_is_claimed_is_an_alarm_until_it_can():
    async def scenario(clock):
        fibre = Fibre()
        fibre.octets = dict.fromkeys(DIRECTIONS, 1_000)
        sites = [Site(name, clock, fibre) for name in "abc"]

        async def go_on(seconds, rate_bps):
            for _ in range(int(seconds)):
                await asyncio.sleep(1.0)
                for site in sites:
                    site.tell(sites, rate_bps)
            return [(alarm.resource, alarm.severity) for alarm in sites[1].alarms.active() if alarm.type == ALARM]

        assert await go_on(SHORT.set_after_s - 5, GUARANTEED_BPS / 2) == []
        assert sorted(await go_on(10, GUARANTEED_BPS / 2)) == [("a-b", "major"), ("b-c", "major")]
        assert await go_on(SHORT.clear_after_s + 5, RATE_BPS) == []
        # A full store makes nothing, and gives for long.
        fibre.octets = dict.fromkeys(DIRECTIONS, 4 << 20)
        assert await go_on(2 * SHORT.set_after_s, 0.0) == []
        # One that is full with little makes nothing either, and could.
        fibre.octets = dict.fromkeys(DIRECTIONS, 1_000)
        for site in sites:
            site.is_full = True
        assert await go_on(2 * SHORT.set_after_s, 0.0) == []
        for site in sites:
            site.is_full = False
        assert sorted(await go_on(SHORT.set_after_s + 5, 0.0)) == [("a-b", "major"), ("b-c", "major")]

    run(scenario)


class Wires:
    """The relay as flooding sees it."""

    def __init__(self):
        self.sent = []
        self.are_whole = True

    def is_up(self, _link):
        return self.are_whole

    def advertise(self, octets):
        self.sent.append(octets)

    def links_lost(self, _links):
        pass


def test_claims_travel_with_the_words_on_links_and_end_with_their_node():
    async def scenario(clock):
        sites, floods, wires = [Site(name, clock, Fibre()) for name in "ab"], [], Wires()
        for site in sites:
            full = PoolLevel(auth_octets=0, own_octets=1 << 20, peer_octets=1 << 20, pending_octets=0, blocks=1)
            flood = Flooding(
                site.adverts, site.routing, wires, lambda _link, full=full: full, clock, reserving=site.reserving
            )
            ends = [LinkStatistics(link, Role.ALICE, clock, is_module_up=True) for link in TOPOLOGY.links_of(site.node)]
            flood.watch(SimpleNamespace(statistics=end, is_enabled=True) for end in ends)
            floods.append(flood)
        a, b = floods
        a.tick()
        b.heard(sites[1].adverts.receive(wires.sent[-1], clock.monotonic_s()))
        assert b.state_of(LinkId("b-c"))["claimed_bps"] == GUARANTEED_BPS
        wires.are_whole = False
        b.tick()
        assert b.state_of(LinkId("b-c"))["claimed_bps"] == GUARANTEED_BPS
        await asyncio.sleep(STALE_S + 1)
        b.tick()
        assert b.state_of(LinkId("b-c"))["claimed_bps"] == 0.0

    run(scenario)


def test_a_changed_network_is_claimed_anew():
    async def scenario(clock):
        live = LiveTopology(TOPOLOGY)
        routing, adverts = Routing(NodeId("a"), live), Adverts(NodeId("a"))
        reserving = Reserving(NodeId("a"), live, routing, adverts, AlarmBoard(clock), clock)
        assert {(one.sender, one.link, one.bps) for one in reserving.own()} == {
            ("a", "a-b", GUARANTEED_BPS),
            ("b", "b-c", GUARANTEED_BPS),
        }
        live.adopt(replace(TOPOLOGY, saes=TOPOLOGY.saes[:1], demands=()))
        routing.adopt()
        reserving.adopt()
        assert reserving.own() == (), "the tenant's other site is gone"

    run(scenario)


def test_an_advert_with_too_many_claims_is_refused():
    one, other = Adverts(NodeId("a")), Adverts(NodeId("b"))
    claims = [Claim(NodeId("a"), LinkId("a-b"), 1.0)] * (CLAIMS_MAX + 1)
    with pytest.raises(WireError, match="lists 20001 claims"):
        other.receive(one.note_own([], 1, 0.0, (), claims), 0.0)


def test_who_falls_silent_claims_nothing():
    async def scenario(clock):
        site = Site("b", clock, Fibre())
        site.reserving.note(NodeId("a"), (), [Claim(NodeId("b"), LinkId("b-c"), 100.0)])
        assert site.reserving.claimed_bps(LinkId("b-c")) == 100.0
        site.reserving.note(NodeId("a"), (), ())
        assert site.reserving.claimed_bps(LinkId("b-c")) == 0.0

    run(scenario)
