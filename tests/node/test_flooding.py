"""Flooding: a change is told in the moment it is seen, and routes of others follow; what returns is held back."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from qtrunk.base.ids import LinkId, NodeId
from qtrunk.kms.key import PoolLevel
from qtrunk.node.advert import ADVERT_PERIOD_S, STALE_S, Adverts
from qtrunk.node.flooding import Flooding
from qtrunk.node.linkstate import LinkStatistics
from qtrunk.relay.damping import HOLD_OFF_S
from qtrunk.relay.routing import Routing
from qtrunk.stages import Role
from qtrunk.topology import LiveTopology, Node, ring

TOPOLOGY = ring("r", [Node(id=NodeId(name)) for name in "abcd"], [(10, 3), (10, 3), (11, 3), (11, 3)])
FULL = PoolLevel(auth_octets=4096, own_octets=1 << 20, peer_octets=1 << 20, pending_octets=0, blocks=1)


class Clock:
    now_s = 1000.0

    def unix_s(self) -> float:
        return 1.7e9 + self.now_s

    def monotonic_s(self) -> float:
        return self.now_s


@dataclass
class Relay:
    """Wires to nowhere; the test carries what was said."""

    up: set[str] = field(default_factory=set)
    sent: list[bytes] = field(default_factory=list)
    lost: list[LinkId] = field(default_factory=list)

    def is_up(self, link):
        return link in self.up

    def advertise(self, octets):
        self.sent.append(octets)

    def links_lost(self, links):
        self.lost += sorted(links)


class Site:
    def __init__(self, name: str, clock: Clock) -> None:
        node = NodeId(name)
        links = TOPOLOGY.links_of(node)
        self.relay = Relay(up={link.id for link in links})
        self.adverts, self.routing = Adverts(node), Routing(node, TOPOLOGY)
        self.clock = clock
        self.octets = FULL.own_octets
        self.flooding = Flooding(self.adverts, self.routing, self.relay, self.level, clock)
        self.statistics = {link.id: LinkStatistics(link, Role.ALICE, clock, is_module_up=True) for link in links}
        self.flooding.watch(SimpleNamespace(statistics=s, is_enabled=True) for s in self.statistics.values())
        self.flooding.tick()

    def level(self, _link):
        return replace(FULL, own_octets=self.octets)

    def take(self, octets: bytes) -> None:
        news = self.adverts.receive(octets, self.clock.now_s)
        assert news is not None
        self.flooding.heard(news)

    def way(self, end: str) -> str:
        return "".join(self.routing.route(NodeId(end)))


def two_sites():
    clock = Clock()
    one, other = Site("a", clock), Site("b", clock)
    one.take(other.relay.sent[-1])
    assert one.way("c") == "abc"
    return clock, one, other


def test_what_does_not_change_is_told_once():
    clock, one, _ = two_sites()
    for _ in range(100):
        clock.now_s += ADVERT_PERIOD_S
        one.flooding.tick()
    assert len(one.relay.sent) == 1


def test_a_level_is_told_when_it_has_moved_and_a_small_difference_when_it_stands():
    clock, one, _ = two_sites()
    one.octets -= one.octets // 6
    clock.now_s += ADVERT_PERIOD_S
    one.flooding.tick()
    assert len(one.relay.sent) == 1
    one.octets -= one.octets // 6
    clock.now_s += ADVERT_PERIOD_S / 2
    one.flooding.tick()
    assert len(one.relay.sent) == 2, "a quarter less than what was told"
    one.octets //= 2
    clock.now_s += ADVERT_PERIOD_S / 2
    one.flooding.tick()
    assert len(one.relay.sent) == 2, "not twice in a period"
    clock.now_s += ADVERT_PERIOD_S / 2
    one.flooding.tick()
    assert len(one.relay.sent) == 3
    one.octets -= 1
    for _ in range(40):
        clock.now_s += ADVERT_PERIOD_S
        one.flooding.tick()
    assert len(one.relay.sent) == 4
    assert one.adverts.level(NodeId("a"), LinkId("a-b"), clock.now_s).octets == one.octets


def test_a_lost_neighbour_is_told_at_once_and_relays_that_wait_try_another_route():
    clock, one, other = two_sites()
    one.flooding.changed.clear()
    clock.now_s += 0.1
    other.relay.up.discard("b-c")
    other.flooding.tick()
    one.take(other.relay.sent[-1])
    assert one.relay.lost == ["b-c"]
    assert one.way("c") == "adc"
    assert one.flooding.changed.is_set()


def test_what_was_said_of_a_link_before_it_is_known_here_counts_once_it_is():
    clock, known = Clock(), LiveTopology(replace(TOPOLOGY, links=TOPOLOGY.links[:-1]))
    one, other = Site("a", clock), Site("d", clock)
    one.routing = Routing(NodeId("a"), known)
    one.flooding = Flooding(one.adverts, one.routing, one.relay, one.level, clock)
    one.take(other.relay.sent[-1])
    assert one.way("d") == "abcd"
    known.adopt(TOPOLOGY)
    one.routing.adopt()
    one.flooding.watch(SimpleNamespace(statistics=s, is_enabled=True) for s in one.statistics.values())
    one.flooding.tick()
    assert not one.routing.is_open([NodeId(name) for name in "da"]), "down until its ends say otherwise"
    one.flooding.adopt()
    assert one.way("d") == "ad"


@pytest.mark.parametrize(("what", "bad", "good"), [("last_end", "qber: 0.2", ""), ("is_dark", True, False)])
def test_a_destroyed_block_or_lost_light_moves_routes_away_and_only_a_hold_off_brings_them_back(what, bad, good):
    clock, one, other = two_sites()
    clock.now_s += 0.1
    setattr(other.statistics["b-c"], what, bad)
    other.flooding.tick()
    one.take(other.relay.sent[-1])
    assert one.way("c") == "adc"
    assert one.relay.lost == [], "the key that was made before stays good"
    clock.now_s += 0.1
    setattr(other.statistics["b-c"], what, good)
    other.flooding.tick()
    clock.now_s += HOLD_OFF_S - 1
    other.flooding.tick()
    assert float(str(other.flooding.state_of(LinkId("b-c"))["hold_off_s"])) > 0
    assert one.way("c") == "adc"
    assert not one.routing.is_sound([NodeId(name) for name in "abc"])
    clock.now_s += 2.0
    other.flooding.tick()
    one.take(other.relay.sent[-1])
    assert one.routing.is_sound([NodeId(name) for name in "abc"])
    # Both ways are as good now: who has left has no reason to come back.
    assert one.way("c") == "adc"


def test_a_node_that_falls_silent_is_no_reason_to_go_round_it():
    clock, one, other = two_sites()
    clock.now_s += 0.1
    other.relay.up.discard("b-c")
    other.flooding.tick()
    one.take(other.relay.sent[-1])
    assert one.way("c") == "adc"
    clock.now_s += STALE_S + 1
    one.flooding.tick()
    assert not one.routing.is_open([NodeId(name) for name in "abc"]), "it is there, and its word counts"
    one.relay.up.discard("a-b")
    one.flooding.tick()
    assert not one.routing.is_open([NodeId(name) for name in "bc"])
    clock.now_s += STALE_S + 1
    one.flooding.tick()
    assert one.routing.is_open([NodeId(name) for name in "bc"])
