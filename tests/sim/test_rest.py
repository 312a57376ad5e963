"""A network that rested for an hour finds what happens then as quickly as ever. A ring of five with two tenants."""

import asyncio

import pytest

from qtrunk.base.ids import NodeId, SaeId
from qtrunk.node.alarmwatch import SILENT
from qtrunk.node.channel import PATH_S
from qtrunk.node.greeting import SILENCE_S, SLOW_S
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


def test_keys_are_there_at_once(trial):
    async def story():
        ends = [trial.live(sae.node).supply for sae in SAES]
        keys = await ends[0].initiate(SaeId("left"), [SaeId("right")], 2, 256)
        again = await ends[1].collect(SaeId("right"), SaeId("left"), [key.key_id for key in keys])
        assert [key.material.reveal() for key in keys] == [key.material.reveal() for key in again]

    play(trial, story)
