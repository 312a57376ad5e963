"""Hellos between neighbours: who works asks often, who rests seldom, who is asked answers, who is silent is gone; and
the time that each hello measures. On a virtual clock.
"""

import asyncio
import math

import msgspec
import pytest

from qtrunk.base.errors import WireError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.wire import decode, encode
from qtrunk.node.advert import Adverts
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.greeting import CALM_S, QUICK_S, SILENCE_S, SLOW_S, Greeter, Greeting
from qtrunk.node.kxrunner import KxRunner
from qtrunk.node.pace import Pace
from qtrunk.sim.network.loop import VirtualLoop
from qtrunk.sim.network.simnode import MachineClock

LINK = LinkId("a-b")
DIGEST = b"\1" * 8


class Machine:
    """A relay that has nothing to do."""

    is_waiting = False

    def link_up(self, _link):
        return []

    link_down = link_up

    def tick(self):
        return []


class Pipe:
    """One end of a channel in virtual time; frames take `wire_s`."""

    def __init__(self, loop, wire_s):
        self.loop, self.wire_s, self.other = loop, wire_s, None
        self.incoming, self.sent, self.is_watched, self.hears = asyncio.Queue(), [], False, asyncio.Event()
        self.hears.set()

    def watch(self):
        self.is_watched = True

    def send(self, octets):
        self.sent.append((self.loop.time(), octets))
        self.loop.call_later(self.wire_s, self.other.incoming.put_nowait, octets)

    async def receive(self):
        octets = await self.incoming.get()
        await self.hears.wait()
        if octets is None:
            raise OSError("closed")
        return octets

    def close(self):
        self.incoming.put_nowait(None)
        self.loop.call_later(self.wire_s, self.other.incoming.put_nowait, None)

    def hellos_since(self, time_s):
        return [decode(octets[1:], Greeting) for at_s, octets in self.sent if at_s >= time_s and octets[:1] == b"\4"]


class End:
    """A node's relay and its pace."""

    def __init__(self, loop, name, wire_s):
        clock = MachineClock(loop)
        self.pace, self.pipe = Pace(clock), Pipe(loop, wire_s)
        self.runner = KxRunner(Machine(), Adverts(NodeId(name)), AlarmBoard(clock), clock, self.pace)
        self.measured = []
        self.runner.hear_clock = lambda _link, measured: self.measured.append(measured)

    def begin(self, loop):
        return [
            loop.create_task(self.runner.serve(LINK, self.pipe)),
            loop.create_task(self.runner.keep_ticking()),
        ]


def play(scenario, wire_s=0.01):
    loop = VirtualLoop()

    async def whole():
        ends = End(loop, "a", wire_s), End(loop, "b", wire_s)
        ends[0].pipe.other, ends[1].pipe.other = ends[1].pipe, ends[0].pipe
        tasks = [task for end in ends for task in end.begin(loop)]
        try:
            await scenario(loop, *ends)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    try:
        loop.run_until_complete(whole())
    finally:
        loop.close()


def test_at_rest_each_end_of_a_link_says_one_hello_a_minute():
    async def scenario(loop, a, b):
        await asyncio.sleep(300.0)
        began_s = loop.time()
        await asyncio.sleep(10 * SLOW_S)
        hellos = [a.pipe.hellos_since(began_s), b.pipe.hellos_since(began_s)]
        assert all(9 <= len(those) <= 11 for those in hellos)
        assert a.pipe.is_watched
        assert b.runner.is_up(LINK)

    play(scenario)


def test_who_works_asks_often_and_the_other_one_only_answers():
    async def scenario(loop, a, b):
        await asyncio.sleep(300.0)
        began_s = loop.time()
        a.pace.stir()
        await asyncio.sleep(0.1)
        assert [hello.is_question for hello in a.pipe.hellos_since(began_s)] == [True], "at once"
        await asyncio.sleep(CALM_S)
        assert CALM_S / QUICK_S <= len(a.pipe.hellos_since(began_s)) <= CALM_S / QUICK_S + 2
        answers = b.pipe.hellos_since(began_s)
        assert len(answers) == len(a.pipe.hellos_since(began_s))
        assert not any(hello.is_question for hello in answers)

    play(scenario)


def test_of_two_that_work_each_says_one_hello_a_period():
    async def scenario(loop, a, b):
        for _ in range(100):
            a.pace.stir()
            b.pace.stir()
            await asyncio.sleep(1.0)
        assert len(a.pipe.sent) <= 100 / QUICK_S + 3
        assert len(b.pipe.sent) <= 100 / QUICK_S + 3
        assert len(a.measured) >= 100 / QUICK_S - 3, "hellos that cross measure, too"

    play(scenario)


@pytest.mark.parametrize(("is_working", "within_s"), [(True, SILENCE_S), (False, SLOW_S + SILENCE_S)])
def test_a_neighbour_that_hangs_is_dropped(is_working, within_s):
    async def scenario(loop, a, b):
        await asyncio.sleep(300.0)
        b.pipe.hears.clear()
        began_s = loop.time()
        while a.runner.is_up(LINK) and loop.time() < began_s + 100:
            if is_working:
                a.pace.stir()
            await asyncio.sleep(0.1)
        assert SILENCE_S - QUICK_S <= loop.time() - began_s <= within_s + 0.2

    play(scenario)


def test_one_that_is_slow_to_answer_is_asked_again_before_it_is_dropped():
    async def scenario(loop, a, b):
        await asyncio.sleep(300.0)
        b.pipe.hears.clear()
        asked = len(a.pipe.sent)
        while len(a.pipe.sent) == asked:
            await asyncio.sleep(0.1)
        await asyncio.sleep(QUICK_S + 0.1)
        assert len(a.pipe.sent) == asked + 2
        b.pipe.hears.set()
        await asyncio.sleep(QUICK_S)
        assert a.runner.is_up(LINK)
        assert b.runner.is_up(LINK)

    play(scenario)


def test_hellos_measure_the_neighbours_time():
    async def scenario(_loop, a, b):
        b.runner._clock.offset_s = b.runner._greeter._clock.offset_s = 7.0
        await asyncio.sleep(300.0)
        assert a.measured
        assert b.measured
        for end, ahead_s in ((a, 7.0), (b, 0.0)):
            last = end.measured[-1]
            own = end.runner._clock
            assert last.round_trip_s == pytest.approx(0.5, abs=1e-6), "however long a hello lay in between"
            here_s = own.unix_s() - own.monotonic_s()
            assert last.ahead_s - here_s == pytest.approx(ahead_s or -7.0, abs=1e-6)

    play(scenario, wire_s=0.25)


class Still:
    """A clock that is set by hand."""

    now_s = 1000.0

    def monotonic_s(self):
        return self.now_s

    def unix_s(self):
        return 1e9 + self.now_s


def greeting(**changes):
    return encode(msgspec.structs.replace(Greeting(digest=DIGEST, is_question=True, sent_s=1.0, unix_s=2.0), **changes))


def test_nonsense_is_refused_and_a_time_that_cannot_be_measures_nothing():
    greeter = Greeter(Still())
    greeter.up(LINK)
    for name in ("sent_s", "unix_s", "held_s"):
        for value in (math.nan, math.inf):
            with pytest.raises(WireError, match=name):
                greeter.receive(LINK, greeting(**{name: value}))
    for octets in (b"", b"\xc1", encode(Greeting(digest=b"", is_question=True, sent_s=1.0, unix_s=2.0))[:-1]):
        with pytest.raises(WireError):
            greeter.receive(LINK, octets)
    assert greeter.receive(LINK, greeting())[2] is None, "it has heard nothing yet"
    for echo_s, held_s in ((2000.0, 0.0), (100.0, 0.0), (999.0, -1.0), (1e300, 1e300), (math.nan, 0.0)):
        assert greeter.receive(LINK, greeting(echo_s=echo_s, held_s=held_s))[2] is None, (echo_s, held_s)
    hello, is_wanted, measured = greeter.receive(LINK, greeting(echo_s=998.0, held_s=1.5))
    assert (hello.digest, is_wanted) == (DIGEST, True)
    assert (measured.round_trip_s, measured.ahead_s) == (0.5, 2.0 - 999.75)
    # Two clocks that do not run alike.
    assert greeter.receive(LINK, greeting(echo_s=900.0, held_s=100.05))[2].round_trip_s == 0.0
