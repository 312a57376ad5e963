"""Neighbours' clocks: who is off says so, the round trip is no offset, and nothing flaps."""

from dataclasses import replace

import pytest

from qtrunk.base.ids import NodeId
from qtrunk.config import network
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.clockwatch import FRESH_S, ClockWatch
from qtrunk.node.greeting import SLOW_S, Greeter
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
    """All nodes of a network, with hellos over wires that take their time."""

    def __init__(self, topology, common, wire_s=0.0):
        self.topology, self.common, self.wire_s = topology, common, wire_s
        self.clocks = {node.id: Shifted(common) for node in topology.nodes}
        self.boards = {node: AlarmBoard(clock) for node, clock in self.clocks.items()}
        self.watches = {
            node: ClockWatch(node, topology, clock, self.boards[node]) for node, clock in self.clocks.items()
        }
        self.greeters = {node: Greeter(clock) for node, clock in self.clocks.items()}
        for node, greeter in self.greeters.items():
            for link in topology.links_of(node):
                greeter.up(link.id)
        self.wires = []

    def say(self, sender, link, *, is_question):
        known = self.topology.link(link)
        octets = self.greeters[sender].say(link, b"", is_question=is_question)
        self.wires.append((known.other(sender), link, octets))

    def pass_time(self, seconds, *, is_quick=True):
        until_s = self.common.now_s + seconds
        while self.common.now_s < until_s:
            self.common.now_s += 1.0
            for node, watch in self.watches.items():
                watch.tick()
                for link in self.greeters[node].due(is_quick=is_quick):
                    if any(link == known.id for known in self.topology.links):
                        self.say(node, link, is_question=True)
            while self.wires:
                self.common.now_s += self.wire_s
                under_way, self.wires = self.wires, []
                for to, link, octets in under_way:
                    self.greeters[to].heard(link)
                    _, is_wanted, measured = self.greeters[to].receive(link, octets)
                    if is_wanted:
                        self.say(to, link, is_question=False)
                    if measured is not None:
                        self.watches[to].note(link, measured)

    def alarms(self):
        return {node: one.severity for node, board in self.boards.items() for one in board.active()}


def test_clocks_that_agree_raise_nothing_however_slow_the_wire(clock):
    town = Town(RING, clock, wire_s=2.0)
    town.pass_time(60)
    assert town.alarms() == {}
    offset_s, uncertainty_s = town.watches[NodeId("a")].offsets()["b"]
    assert abs(offset_s) < 1e-6
    assert uncertainty_s == pytest.approx(2.0)


def test_a_neighbour_whose_link_was_taken_out_counts_no_more_and_harms_no_status(clock):
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
    # Before any hello.
    assert town.watches[NodeId("a")].as_json()["offset_s"] == pytest.approx(7.0)


def test_an_offset_within_the_doubt_of_a_slow_answer_is_no_alarm(clock):
    town = Town(PAIR, clock, wire_s=2.0)
    town.clocks[NodeId("b")].off_s = 2.5
    town.pass_time(60)
    assert town.alarms() == {}


def test_neighbours_at_rest_see_a_step_of_a_clock(clock):
    town = Town(RING, clock, wire_s=0.001)
    town.pass_time(300, is_quick=False)
    assert town.alarms() == {}
    town.clocks[NodeId("c")].off_s = 5.0
    town.pass_time(FRESH_S + 2 * SLOW_S, is_quick=False)
    assert town.alarms() == {"c": "minor"}
    assert set(town.watches[NodeId("a")].offsets()) == {"b", "c"}


def test_a_neighbour_of_which_nothing_comes_counts_no_more(clock):
    town = Town(PAIR, clock)
    town.pass_time(12)
    assert set(town.watches[NodeId("a")].offsets()) == {"b"}
    clock.now_s += FRESH_S + 1.0
    assert town.watches[NodeId("a")].offsets() == {}
    assert town.watches[NodeId("a")].as_json()["offset_s"] is None
