"""A network that rested for an hour finds what happens then as quickly as ever. A ring of five with two tenants."""

import asyncio

import pytest
from cryptography import x509

from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.base.wire import decode
from qtrunk.node.advert import Advert, Adverts
from qtrunk.node.alarmwatch import SILENT
from qtrunk.node.channel import PATH_S
from qtrunk.node.greeting import SILENCE_S, SLOW_S
from qtrunk.relay.prices import LinkLevel
from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.scenario import vendor_link
from qtrunk.sim.network.trial import Trial
from qtrunk.topology import Demand, Node, Sae, Topology

NAMES = [f"n{index}" for index in range(5)]
SAES = (Sae(id=SaeId("left"), node=NodeId("n0")), Sae(id=SaeId("right"), node=NodeId("n2")))
HOUR_S = 3600.0
STALE_S = 10.0


@pytest.fixture
def trial():
    links = tuple(vendor_link(a, b) for a, b in zip(NAMES, [*NAMES[1:], NAMES[0]], strict=True))
    topology = Topology(
        name="ring",
        nodes=tuple(Node(id=NodeId(name)) for name in NAMES),
        links=links,
        saes=SAES,
        demands=(Demand(between=(SaeId("left"), SaeId("right")), rate_bps=64.0),),
    )
    return Trial(topology, Dice("rest"), block_s=1.0)


def play(trial, story):
    async def whole():
        await asyncio.sleep(HOUR_S)
        for site in trial.sites.values():
            assert not site.alarms.active()
            assert not site.node._pace.is_quick(HOUR_S / 2), "nothing has happened for long"
        await story()

    trial.run(whole())


async def until(is_so, within_s, loop):
    began_s = loop.time()
    while not is_so():
        assert loop.time() - began_s <= within_s
        await asyncio.sleep(0.05)
    return loop.time() - began_s


def route(trial, start="n0", end="n2"):
    return trial.live(NodeId(start))._routing.route(NodeId(end))


def kinds(trial, name):
    return {(alarm.type, alarm.resource) for alarm in trial.sites[NodeId(name)].alarms.active()}


def power_off(trial, name):
    site = trial.sites[NodeId(name)]
    site.is_power_loss, site.keep_down = True, True
    site.machine.die()


def test_a_node_without_power_is_found_by_all_and_so_is_its_return(trial):
    async def story():
        assert route(trial) == ("n0", "n1", "n2")
        power_off(trial, "n1")
        await until(lambda: route(trial) == ("n0", "n4", "n3", "n2"), PATH_S + 1.0, trial.loop)
        # Of one that is not its neighbour, too.
        silent = ("RelayUnreachable", "node n1")
        await until(lambda: silent in kinds(trial, "n4"), STALE_S + SILENT.set_after_s + 10.0, trial.loop)
        await asyncio.sleep(HOUR_S)
        trial.sites[NodeId("n1")].keep_down = False
        trial.start(NodeId("n1"))
        await until(lambda: silent not in kinds(trial, "n4"), 30.0, trial.loop)
        # What its links made when they began anew, a minute long, is no measure of what they have.
        await until(lambda: route(trial) == ("n0", "n1", "n2"), 120.0, trial.loop)
        await until(lambda: not any(kinds(trial, name) for name in NAMES), 120.0, trial.loop)

    play(trial, story)


def test_a_way_that_stands_still_is_found_and_one_that_is_cut(trial):
    async def story():
        trial.weather.still("n0", "n1")
        await until(lambda: route(trial) == ("n0", "n4", "n3", "n2"), PATH_S + 1.0, trial.loop)
        trial.weather.heal("n0", "n1")
        await until(lambda: route(trial) == ("n0", "n1", "n2"), 60.0, trial.loop)
        await asyncio.sleep(HOUR_S)
        trial.weather.cut("n1", "n2")
        await until(lambda: route(trial) == ("n0", "n4", "n3", "n2"), 1.0, trial.loop)

    play(trial, story)


def test_a_node_that_hangs_is_found_at_rest_within_a_minute_and_a_little(trial):
    async def story():
        # Its machine is there and takes what is sent; nobody reads it.
        for stream in list(trial.weather.streams):
            if stream.machine.name == "n1" and stream.service != "vendor":
                stream._deliver = lambda: None
                stream.deliver_later = lambda: None
        found_s = await until(lambda: route(trial) == ("n0", "n4", "n3", "n2"), SLOW_S + SILENCE_S + 1.0, trial.loop)
        assert found_s >= SILENCE_S - 1.0

    play(trial, story)


def test_a_neighbour_that_is_revoked_is_cut_off_within_seconds(trial):
    async def story():
        node = trial.live(NodeId("n0"))
        registry = node._trust._registry
        revoked = x509.load_der_x509_certificate(trial.weather.certificates["n1"])
        # As a list that was just taken: the one CA of a simulation has none.
        registry._serials = frozenset({revoked.serial_number})
        registry.on_change()
        await until(lambda: not node._relay.is_up("n0-n1"), 2.0, trial.loop)
        await asyncio.sleep(60.0)
        assert not node._relay.is_up("n0-n1")
        assert node._relay.is_up("n4-n0")

    play(trial, story)


def test_a_link_that_is_switched_off_and_on_is_heard_of_everywhere(trial):
    async def story():
        ends = [runner for name in ("n0", "n1") for runner in trial.live(NodeId(name))._links if runner.link == "n0-n1"]

        def said():
            heard = trial.live(NodeId("n3"))._adverts.level(
                NodeId("n0"), ends[0].link, trial.sites["n3"].clock.monotonic_s()
            )
            return heard.is_enabled

        for is_enabled in (False, True):
            ends[0].enable(is_enabled=is_enabled)
            await until(lambda wanted=is_enabled: said() is wanted, 2.0, trial.loop)
            await until(lambda wanted=is_enabled: ends[1].statistics.is_held is not wanted, 2.0, trial.loop)
            await asyncio.sleep(HOUR_S)

    play(trial, story)


def test_what_a_status_says_follows_what_others_say_of_their_links(trial):
    async def story():
        node = trial.live(NodeId("n0"))
        assert node._ahead.stock(SaeId("left"), SaeId("right")).fill_bps == 0.0
        await asyncio.sleep(60.0)
        level = LinkLevel(LinkId("n1-n2"), 1 << 20, 77_000.0, True)
        other = LinkLevel(LinkId("n0-n1"), 1 << 20, 88_000.0, True)
        for name, levels in (("n1", [level, other]), ("n0", [other])):
            words = Adverts(NodeId(name))
            octets = words.note_own(levels, 1 << 50, 0.0)
            node._adverts._take(decode(octets, Advert), octets, 0.0)
        assert node._ahead.stock(SaeId("left"), SaeId("right")).fill_bps == 77_000.0

    play(trial, story)


def test_keys_are_there_at_once(trial):
    async def story():
        ends = [trial.live(sae.node).supply for sae in SAES]
        keys = await ends[0].initiate(SaeId("left"), [SaeId("right")], 2, 256)
        again = await ends[1].collect(SaeId("right"), SaeId("left"), [key.key_id for key in keys])
        assert [key.material.reveal() for key in keys] == [key.material.reveal() for key in again]

    play(trial, story)
