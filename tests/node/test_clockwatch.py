"""Neighbours' clocks: who is off says so, the round trip is no offset, and nothing flaps."""

import math
from dataclasses import replace
from functools import partial

import pytest

from qtrunk.base.errors import WireError
from qtrunk.base.ids import NodeId
from qtrunk.base.wire import encode
from qtrunk.config import network
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.clockwatch import ClockAnswer, ClockWatch
from qtrunk.topology import LiveTopology

RING = network.load('name = "ring"\ntrunks = [["a", "b", "c"], ["c", "a"]]\n[link]\nlength_km = 10\n')
PAIR = network.load('name = "pair"\ntrunks = [["a", "b"]]\n[link]\nlength_km = 10\n')


class Shifted:
    """One node's clock: of the common time of the test, off by so much."""

    def __init__(self, common):
        self.common, self.off_s = common, 0.0

    def monotonic_s(self):
        return self.common.now_s

    def unix_s(self):
        return self.common.now_s + self.off_s


class Town:
    """All nodes of a network, with wires that take their time."""

    def __init__(self, topology, common, wire_s=0.0):
        self.topology, self.common, self.wire_s = topology, common, wire_s
        self.clocks = {node.id: Shifted(common) for node in topology.nodes}
        self.boards = {node: AlarmBoard(clock) for node, clock in self.clocks.items()}
        self.watches = {
            node: ClockWatch(node, topology, clock, self.boards[node], partial(self.send, node))
            for node, clock in self.clocks.items()
        }
        self.wires = []

    def send(self, sender, link, octets):
        known = self.topology.link(link)
        self.wires.append((known.bob if sender == known.alice else known.alice, link, octets))

    def pass_time(self, seconds):
        for _ in range(round(seconds)):
            self.common.now_s += 1.0
            for watch in self.watches.values():
                watch.tick()
            began_s = self.common.now_s
            while self.wires:
                self.common.now_s += self.wire_s
                under_way, self.wires = self.wires, []
                for to, link, octets in under_way:
                    self.watches[to].receive(link, octets)
            self.common.now_s = max(self.common.now_s, began_s)

    def alarms(self):
        return {node: one.severity for node, board in self.boards.items() for one in board.active()}


def test_clocks_that_agree_raise_nothing_however_slow_the_wire(clock):
    town = Town(RING, clock, wire_s=2.0)
    town.pass_time(60)
    assert town.alarms() == {}
    offset_s, uncertainty_s = town.watches[NodeId("a")].offsets()["b"]
    assert abs(offset_s) < 1e-6
    assert uncertainty_s == pytest.approx(2.0)


def test_a_neighbour_whose_link_was_taken_out_is_asked_no_more_and_harms_no_status(clock):
    live = LiveTopology(RING)
    town = Town(live, clock)
    town.pass_time(30)
    assert set(town.watches[NodeId("a")].offsets()) == {"b", "c"}
    live.adopt(replace(RING, links=tuple(link for link in RING.links if {link.alice, link.bob} != {"a", "b"})))
    # Before the next tick.
    assert set(town.watches[NodeId("a")].as_json()["neighbours"]) == {"c"}


def test_of_three_the_one_that_is_off_says_so(clock):
    town = Town(RING, clock, wire_s=0.001)
    town.clocks[NodeId("c")].off_s = 5.0
    town.pass_time(30)
    assert town.alarms() == {"c": "minor"}
    assert "a by +5.00 s, b by +5.00 s" in town.boards[NodeId("c")].active()[0].text
    assert town.watches[NodeId("c")].as_json()["offset_s"] == pytest.approx(5.0)
    town.clocks[NodeId("c")].off_s = 400.0
    town.pass_time(30)
    assert town.alarms() == {"c": "major"}
    town.clocks[NodeId("c")].off_s = 0.8
    town.pass_time(60)
    assert town.alarms() == {"c": "minor"}, "above what clears it"
    town.clocks[NodeId("c")].off_s = 0.1
    town.pass_time(60)
    assert town.alarms() == {}


def test_of_two_alone_both_say_so(clock):
    town = Town(PAIR, clock)
    town.clocks[NodeId("b")].off_s = -3.0
    town.pass_time(30)
    assert town.alarms() == {"a": "minor", "b": "minor"}


def test_a_step_of_the_own_clock_shows_before_anybody_is_asked_again(clock):
    town = Town(RING, clock)
    town.pass_time(12)
    town.clocks[NodeId("a")].off_s = 7.0
    assert town.watches[NodeId("a")].as_json()["offset_s"] == pytest.approx(7.0)


def test_an_offset_within_the_doubt_of_a_slow_answer_is_no_alarm(clock):
    town = Town(PAIR, clock, wire_s=2.0)
    town.clocks[NodeId("b")].off_s = 2.5
    town.pass_time(60)
    assert town.alarms() == {}


def test_an_answer_that_nobody_waits_for_changes_nothing_and_nonsense_is_refused(clock):
    town = Town(PAIR, clock)
    watch, link = town.watches[NodeId("a")], PAIR.links[0].id
    town.pass_time(12)
    watch.receive(link, encode(ClockAnswer(number=1, unix_s=0.0)))
    assert abs(watch.offsets()["b"][0]) < 1e-6
    for octets in (encode(ClockAnswer(number=1, unix_s=math.nan)), b"\xc1", b""):
        with pytest.raises(WireError):
            watch.receive(link, octets)
