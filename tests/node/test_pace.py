"""Pace: quick while something happens, seldom while nothing does, at once with a stir. On a virtual clock."""

import asyncio
from itertools import pairwise

from qtrunk.node.pace import LASTING_S, REST_MAX_S, SHARE, Pace
from qtrunk.sim.network.loop import VirtualLoop
from qtrunk.sim.network.simnode import MachineClock


def run(scenario):
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(scenario(loop))
    finally:
        loop.close()


def test_a_watcher_is_quick_for_a_while_and_rests_until_something_happens():
    async def scenario(loop):
        pace, turns = Pace(MachineClock(loop)), []

        async def watch():
            while True:
                await pace.turn(0.1, 60.0)
                turns.append(loop.time())

        watching = loop.create_task(watch())
        await asyncio.sleep(30.0)
        assert LASTING_S / 0.1 <= len(turns) <= LASTING_S / 0.1 + 2, "quick after the start, then at rest"
        before = len(turns)
        pace.stir()
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)
        assert len(turns) == before + 1
        assert turns[-1] == loop.time(), "at once"
        await asyncio.sleep(10.0)
        before = len(turns)
        await asyncio.sleep(61.0)
        assert len(turns) == before + 1, "at first after the slow period at the latest"
        watching.cancel()

    run(scenario)


def test_who_is_busy_is_quick_whatever_happens():
    async def scenario(loop):
        pace = Pace(MachineClock(loop))
        await asyncio.sleep(10.0)
        for _ in range(5):
            await pace.turn(0.25, 60.0, is_busy=True)
        assert loop.time() < 12.0

    run(scenario)


def test_without_a_clock_it_is_always_quick():
    async def scenario(loop):
        for _ in range(5):
            await Pace().turn(0.25, 60.0)
        assert loop.time() < 2.0

    run(scenario)


def test_a_watcher_that_is_cancelled_is_forgotten():
    async def scenario(loop):
        pace = Pace(MachineClock(loop))
        await asyncio.sleep(10.0)
        watching = loop.create_task(pace.turn(0.1, 60.0))
        await asyncio.sleep(1.0)
        watching.cancel()
        await asyncio.sleep(1.0)
        pace.stir()

    run(scenario)


def looks(uneasy=False, at_most_s=float("inf")):
    """When somebody looks who wants to every ten seconds, within an hour without a stir."""

    async def scenario(loop):
        pace, turns = Pace(MachineClock(loop)), []
        pace.is_uneasy = lambda: uneasy

        async def watch():
            while True:
                await pace.turn(1.0, 10.0, at_most_s=at_most_s)
                turns.append(loop.time())

        watching = loop.create_task(watch())
        await asyncio.sleep(3600.0)
        watching.cancel()
        return turns

    return run(scenario)


def test_the_longer_the_calm_the_more_seldom_a_look_but_never_seldomer_than_the_most():
    turns = [0.0, *looks()]
    gaps = [(after, after - before) for before, after in pairwise(turns)]
    assert max(gap for _, gap in gaps) == REST_MAX_S
    assert all(gap <= max(10.0, SHARE * after) for after, gap in gaps)
    assert len(gaps) < 40


def test_who_is_uneasy_or_wants_it_sooner_does_not_get_more_seldom():
    assert 3600 / 10 - 5 <= len(looks(uneasy=True)) <= 3600 / 10 + 5
    assert 3600 / 20 - 5 <= len(looks(at_most_s=20.0)) <= 3600 / 20 + 10
