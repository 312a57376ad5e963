"""The virtual loop: time jumps from timer to timer, in their order, and cancelled timers do not pile up."""

import asyncio

import pytest

from qtrunk.sim.network.loop import CANCELLED_MIN, Stuck, VirtualLoop


@pytest.fixture
def loop():
    made = VirtualLoop()
    yield made
    made.close()


def test_timers_go_off_at_their_times_those_of_one_moment_as_they_were_set(loop):
    found = []
    for name, at_s in (("c", 2.0), ("a", 1.0), ("d", 2.0), ("b", 1.0)):
        loop.call_at(at_s, lambda name=name: found.append((name, loop.time())))
    loop.run_until_complete(asyncio.sleep(3.0))
    assert found == [("a", 1.0), ("b", 1.0), ("c", 2.0), ("d", 2.0)]
    assert loop.time() == 3.0


def test_a_timer_in_the_past_goes_off_now_and_time_never_goes_back(loop):
    async def scenario():
        await asyncio.sleep(5.0)
        done = loop.create_future()
        loop.call_at(1.0, done.set_result, None)
        await done
        return loop.time()

    assert loop.run_until_complete(scenario()) == 5.0


def test_who_waits_for_nothing_is_told(loop):
    with pytest.raises(Stuck):
        loop.run_until_complete(loop.create_future())


def test_cancelled_timers_neither_run_nor_pile_up(loop):
    async def scenario():
        for _ in range(20 * CANCELLED_MIN):
            loop.call_later(1e6, pytest.fail).cancel()
        assert len(loop._timers) <= 2 * CANCELLED_MIN
        kept = loop.create_future()
        loop.call_later(10.0, kept.set_result, "kept")
        for _ in range(2 * CANCELLED_MIN):
            loop.call_later(5.0, pytest.fail).cancel()
        return await kept, loop.time()

    assert loop.run_until_complete(scenario()) == ("kept", 10.0)
