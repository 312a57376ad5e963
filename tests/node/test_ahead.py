"""Pools filled ahead: a request waits for the relay, not for ever behind others."""

import asyncio

import pytest

from qtrunk.base.errors import KeyExhausted
from qtrunk.base.ids import NodeId, SaeId
from qtrunk.kms.poolstate import HEAD_OCTETS
from qtrunk.kms.sharing import Fill
from qtrunk.node import ahead
from qtrunk.node.advert import Adverts, LinkLevel
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.world import SystemClock
from qtrunk.relay.hops import HOP_OVERHEAD_OCTETS
from qtrunk.topology import Demand, Node, Sae, Topology, trunk

A, B = SaeId("sae-a"), SaeId("sae-b")


class SilentRelay:
    """A relay whose answer never comes; counts who asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def fill(self, *_what: object) -> None:
        self.asked += 1
        await asyncio.Event().wait()


class NoPools:
    def octets(self, *_pair: SaeId) -> int:
        return 0

    def quality(self, *_pair: SaeId) -> None:
        return None

    def ready(self, *_what: object) -> int:
        return 0


def test_a_request_does_not_queue_for_ever_behind_others_of_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "QUEUE_S", 0.05)
    saes = (Sae(id=A, node=NodeId("a")), Sae(id=B, node=NodeId("b")))
    line = trunk("t", [Node(id=NodeId(name)) for name in "ab"], [(10, 3)])
    topology = Topology(name=line.name, nodes=line.nodes, links=line.links, saes=saes)
    relay, clock = SilentRelay(), SystemClock()
    alarms, adverts = AlarmBoard(clock), Adverts(NodeId("a"))

    async def scenario() -> None:
        filling = ahead.FillAhead(NodeId("a"), topology, NoPools(), relay, adverts, alarms, clock, None)
        first = asyncio.create_task(filling.fill_now(A, B, 1, 32))
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            for _ in range(3):
                with pytest.raises(KeyExhausted, match="others wait"):
                    await filling.fill_now(A, B, 1, 32)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        # Whoever held the pool has let go of it.
        second = asyncio.create_task(filling.fill_now(A, B, 1, 32))
        await asyncio.sleep(0.01)
        assert relay.asked == 2
        second.cancel()

    asyncio.run(scenario())


def test_a_pool_is_filled_in_segments_that_get_shorter_where_the_relay_is_slow_or_fails() -> None:
    """Credit that was not used is the tenant's again, and requests have their turn in between."""
    saes = (Sae(id=A, node=NodeId("a")), Sae(id=B, node=NodeId("b")))
    line = trunk("t", [Node(id=NodeId(name)) for name in "ab"], [(10, 3)])
    topology = Topology(name=line.name, nodes=line.nodes, links=line.links, saes=saes)

    class Clock(SystemClock):
        now_s = 0.0

        def monotonic_s(self) -> float:
            return self.now_s

    clock = Clock()

    class Relay:
        """Takes as long as is told, None: fails."""

        def __init__(self, *seconds: float | None) -> None:
            self.seconds, self.octets = list(seconds), []

        async def fill(self, _initiator: SaeId, _target: SaeId, octets: int) -> None:
            self.octets.append(octets - HEAD_OCTETS)
            took_s = self.seconds.pop(0)
            await asyncio.sleep(0)
            clock.now_s += took_s or 5.0
            if took_s is None:
                raise KeyExhausted("silent")

    async def scenario() -> None:
        first = ahead.PIECE_OCTETS
        relay = Relay(0.1, 0.1, 1.0, 3.0, 0.1, None)
        filling = ahead.FillAhead(
            NodeId("a"), topology, NoPools(), relay, Adverts(NodeId("a")), AlarmBoard(clock), clock, None
        )
        wanted = filling._want(A, B)
        given = 5 * ahead.PIECE_OCTETS_MAX + 700
        fill = Fill(pool="", tenant="default", octets=given, guaranteed_octets=given)
        filling._start((A, B), wanted, fill)
        (task,) = filling._running
        await asyncio.sleep(0)
        assert wanted.filling.locked()
        await task
        # Doubled twice, as it was, halved after a slow one, doubled, halved after a failure.
        assert relay.octets == [first, 2 * first, 4 * first, 4 * first, 2 * first, 4 * first]
        assert wanted.piece_octets == 2 * first
        assert filling._sharing._credits["default"] == given - 13 * first
        assert not wanted.is_filled_ahead
        assert wanted.not_before_s > clock.now_s
        # What would be left over is no segment of its own.
        relay.seconds = [0.1, 0.1]
        relay.octets.clear()
        last = 4 * first + 256
        filling._start((A, B), wanted, Fill(pool="", tenant="default", octets=last, guaranteed_octets=last))
        await asyncio.gather(*filling._running)
        assert relay.octets == [2 * first, 2 * first + 256]
        assert filling._sharing._credits["default"] == given - 13 * first

    asyncio.run(scenario())


def test_fills_begin_in_the_order_of_their_urgency_and_take_no_more_than_is_left() -> None:
    third = SaeId("sae-c")
    saes = (Sae(id=A, node=NodeId("a")), Sae(id=B, node=NodeId("b")), Sae(id=third, node=NodeId("b")))
    line = trunk("t", [Node(id=NodeId(name)) for name in "ab"], [(10, 3)])
    demands = (Demand(between=(A, third), rate_bps=1000), Demand(between=(A, B), rate_bps=1000))
    topology = Topology(name=line.name, nodes=line.nodes, links=line.links, saes=saes, demands=demands)
    clock, adverts = SystemClock(), Adverts(NodeId("a"))
    left = 2048 + HEAD_OCTETS + HOP_OVERHEAD_OCTETS

    class Relay:
        def __init__(self) -> None:
            self.filled: list[tuple[SaeId, int]] = []

        async def fill(self, _initiator: SaeId, target: SaeId, octets: int) -> None:
            self.filled.append((target, octets - HEAD_OCTETS))
            await asyncio.sleep(0)

    async def scenario() -> list[tuple[SaeId, int]]:
        relay = Relay()
        filling = ahead.FillAhead(NodeId("a"), topology, NoPools(), relay, adverts, AlarmBoard(clock), clock, None)
        adverts.note_own([LinkLevel(topology.links[0].id, left, 100.0, True)], 1, clock.monotonic_s())
        planned = [
            Fill(pool=ahead._name((A, target)), tenant="default", octets=octets, guaranteed_octets=0)
            for target, octets in ((B, 4096), (third, 1024))
        ]
        filling._share = lambda: planned
        running = asyncio.create_task(filling.run())
        while len(relay.filled) < 2:
            await asyncio.sleep(0)
        running.cancel()
        filling.stop()
        return relay.filled[:2]

    assert asyncio.run(scenario()) == [(B, 2048), (third, 1024)]


def test_filling_ends_though_it_is_told_so_at_the_moment_of_a_change() -> None:
    changed, clock = asyncio.Event(), SystemClock()
    line = trunk("t", [Node(id=NodeId(name)) for name in "ab"], [(10, 3)])
    topology = Topology(name=line.name, nodes=line.nodes, links=line.links)

    async def scenario() -> None:
        filling = ahead.FillAhead(
            *(NodeId("a"), topology, NoPools(), SilentRelay(), Adverts(NodeId("a")), AlarmBoard(clock), clock, None),
            changed=changed,
        )
        running = asyncio.create_task(filling.run())
        await asyncio.sleep(0.01)
        changed.set()
        running.cancel()
        done, _ = await asyncio.wait([running], timeout=ahead.PERIOD_S / 2)
        assert running in done
        assert running.cancelled()

    asyncio.run(scenario())
