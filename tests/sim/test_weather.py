"""The simulated network ends a connection whose peer cannot be reached, where its owner asked for that, as TCP does."""

import asyncio
import socket

import pytest

from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.loop import VirtualLoop
from qtrunk.sim.network.machine import MACHINE, Machine
from qtrunk.sim.network.weather import Weather

PATIENCE_S = 5.0


class Reader(asyncio.Protocol):
    def __init__(self):
        self.lost = None

    def connection_lost(self, exc):
        self.lost = exc


def play(scenario):
    loop = VirtualLoop()
    weather = loop.network = Weather(loop, Dice("weather"), lambda _what: None)
    machines = {name: Machine(name, lambda _machine: None) for name in "ab"}
    ends = {name: Reader() for name in "ab"}

    async def whole():
        MACHINE.set(machines["b"])
        await loop.create_server(lambda: ends["b"], "b", 1)
        MACHINE.set(machines["a"])
        stream, _ = await loop.create_connection(lambda: ends["a"], "b", 1)
        await scenario(weather, machines, ends, stream)

    try:
        loop.run_until_complete(whole())
    finally:
        loop.close()


def watch(stream):
    stream.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * PATIENCE_S))


@pytest.mark.parametrize("is_watched", [True, False])
def test_a_way_that_stands_still_ends_what_is_watched(is_watched):
    async def scenario(weather, _machines, ends, stream):
        if is_watched:
            watch(stream)
        weather.still("a", "b")
        await asyncio.sleep(PATIENCE_S - 0.1)
        assert ends["a"].lost is None
        await asyncio.sleep(0.2)
        assert isinstance(ends["a"].lost, TimeoutError) is is_watched
        assert ends["b"].lost is None, "nobody tells it"
        weather.heal("a", "b")
        await asyncio.sleep(1.0)
        assert (ends["b"].lost is not None) is is_watched

    play(scenario)


def test_a_short_stillness_ends_nothing_and_the_next_one_has_its_own_time():
    async def scenario(weather, _machines, ends, stream):
        watch(stream)
        weather.still("a", "b")
        await asyncio.sleep(PATIENCE_S - 1.0)
        weather.heal("a", "b")
        await asyncio.sleep(0.5)
        weather.still("a", "b")
        weather.still("a", "b")
        await asyncio.sleep(PATIENCE_S - 1.0)
        assert ends["a"].lost is None
        await asyncio.sleep(1.1)
        assert isinstance(ends["a"].lost, TimeoutError)

    play(scenario)


def test_a_machine_without_power_is_found_though_it_says_nothing():
    async def scenario(weather, machines, ends, stream):
        watch(stream)
        machines["b"].is_alive = False
        weather.forget(machines["b"], is_heard=False)
        await asyncio.sleep(PATIENCE_S - 0.1)
        assert ends["a"].lost is None
        await asyncio.sleep(0.2)
        assert isinstance(ends["a"].lost, TimeoutError)

    play(scenario)
