"""Facts of links, pools and adverts become alarms that do not flap, each with its root cause."""

import asyncio
from dataclasses import replace

import pytest

from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.config import network
from qtrunk.distil.parties import Destroy, Report
from qtrunk.node.advert import STALE_S, Adverts, LinkLevel
from qtrunk.node.alarmwatch import FILL_S, AlarmWatch, PoolLevel
from qtrunk.node.linkstate import LinkStatistics
from qtrunk.node.linkwatch import BEGIN_S, BLOCKS, LinkWatch, expectations
from qtrunk.plan.light import Expectation
from qtrunk.stages import Role
from qtrunk.topology import LiveTopology, Node, trunk

TRUNK = network.load(
    """
name = "row"
trunks = [["a", "b", "c"]]
saes = ["bank@a", "post@c"]
[link]
length_km = 20
[[demands]]
between = ["bank", "post"]
rate_bps = 1000
"""
)
PLAN = Expectation(gain=1e-3, clicks=7e-4, qber=0.015, secret_bps=1e5)
LINK = TRUNK.link(LinkId("a-b"))


def up(board, resource=None):
    return {alarm.type for alarm in board.active() if resource in (None, alarm.resource)}


class End:
    """Alice's end of a link, one block after the other."""

    def __init__(self, clock, board):
        self.clock, self.board = clock, board
        self.statistics = LinkStatistics(LINK, Role.ALICE, clock)
        self.watch = LinkWatch(self.statistics, board, clock.now_s, PLAN)
        self.block = 0

    def make(self, *, gain=1e-3, qber=0.015, rate=1e5, cause=None, full=False):
        self.block += 1
        self.clock.now_s += 4.0
        self.statistics.note_span(4.0)
        figures = {"block": self.block, "gains": [gain, gain / 2, 0.0], "qber_test": qber}
        self.statistics.note_report(Report(self.block, figures))
        if cause is None:
            self.statistics.note_released({"sifted_bits": 1, "octets": int(4 * rate / 8), "auth_octets": 0})
        else:
            self.statistics.note_destroyed(Destroy(self.block, cause, "why"))
        self.watch.look(self.clock.now_s, is_full=full)


@pytest.fixture
def end(clock, board):
    return End(clock, board)


def test_an_honest_link_raises_nothing(end, board):
    for _ in range(60):
        end.make(rate=8e4, qber=0.018, gain=0.8e-3)
    assert board.all() == []


def test_a_cut_is_seen_in_one_block_and_over_with_the_first_bright_one(end, board):
    end.make()
    end.make(gain=1e-8, cause="no-key")
    assert up(board) == {"QuantumChannelLoss"}
    end.make(gain=2e-4, cause="no-key")
    assert up(board) == {"QuantumChannelLoss"}
    end.make()
    assert up(board) == set()


def test_too_many_errors_and_a_slow_rise_are_two_things(end, board):
    end.make(cause="qber", qber=0.2)
    assert up(board) == {"QberAboveAbort"}
    end.make(qber=0.02)
    assert up(board) == set()
    for _ in range(BLOCKS):
        end.make(qber=0.03)
    assert up(board) == {"QberRising"}
    for _ in range(BLOCKS):
        end.make(qber=0.025)
    assert up(board) == {"QberRising"}
    for _ in range(BLOCKS):
        end.make(qber=0.016)
    assert up(board) == set()


@pytest.mark.parametrize(("cause", "meanwhile"), [("qber", {"QberAboveAbort"}), ("no-key", set())])
def test_a_block_without_key_is_no_rise_of_errors(end, board, cause, meanwhile):
    # One under attack, or with a cut in its midst, has said so by other alarms.
    for block in range(3 * BLOCKS):
        end.make(qber=0.016)
        if block in (2, BLOCKS + 2):
            end.make(cause=cause, qber=0.25)
            assert up(board) == meanwhile
            end.make(qber=0.016)
        assert up(board) == set()


def test_a_rate_under_plan_is_missed_after_a_minute_but_not_while_the_pool_is_full(end, board):
    for _ in range(10):
        end.make(rate=4e4, full=True)
    assert up(board) == set()
    for _ in range(15):
        end.make(rate=4e4)
    assert up(board) == set()
    end.make(rate=4e4)
    assert up(board) == {"SkrBelowPlan"}
    for _ in range(30):
        end.make(rate=6e4)
    assert up(board) == {"SkrBelowPlan"}
    for _ in range(30):
        end.make(rate=9e4)
    assert up(board) == set()


def test_a_link_that_never_made_key_is_given_some_time(end, board, clock):
    end.watch.look(clock.now_s, is_full=False)
    clock.now_s += BEGIN_S - 1
    end.watch.look(clock.now_s, is_full=False)
    assert up(board) == set()
    for _ in range(62):
        clock.now_s += 1.0
        end.watch.look(clock.now_s, is_full=False)
    assert up(board) == {"SkrBelowPlan"}


class Site:
    """Node a of the row a, b, c."""

    def __init__(self, clock, board):
        self.clock, self.board = clock, board
        self.adverts = Adverts(NodeId("a"))
        self.topology = LiveTopology(TRUNK)
        self.level, self.heard, self.is_usable = 10_000, {"b", "c"}, True
        self.pools = [PoolLevel(SaeId("bank"), SaeId("post"), 0, 0)]
        self.watch = AlarmWatch(
            NodeId("a"),
            self.topology,
            board,
            clock,
            self.adverts,
            list,
            lambda: [replace(p, **self.now()) for p in self.pools],
        )

    def now(self):
        return {"octets": self.level, "goal_octets": 10_000}

    def go(self, seconds):
        for _ in range(seconds):
            self.clock.now_s += 1.0
            for name in sorted(self.heard):
                other = Adverts(NodeId(name))
                levels = [LinkLevel("b-c", 1, 1.0, self.is_usable)] if name == "b" else []
                octets = other.note_own(levels, int(self.clock.now_s), self.clock.now_s)
                self.adverts.receive(octets, self.clock.now_s)
            self.watch.look()


@pytest.fixture
def site(clock, board):
    return Site(clock, board)


POOL = "pool bank to post"


def test_a_pool_goes_down_the_ladder_and_up_again_without_flapping(site, board):
    site.go(5)
    seen = []
    for level in (5000, 2600, 3900, 2400, 900, 10, 400, 600, 1900, 2100, 3900, 4100, 9000):
        site.level = level
        site.go(15)
        seen.append(sorted(up(board, POOL)))
    none, low, critical, empty = [], ["PoolLow"], ["PoolCritical"], ["PoolEmpty"]
    assert seen == [none, none, none, low, critical, empty, empty, critical, critical, low, low, none, none]
    assert {alarm.type: alarm.count for alarm in board.all() if len(alarm.status_changes) > 4} == {}


def test_a_pool_that_was_never_filled_is_given_some_time_and_a_forgotten_one_is_no_alarm(site, board):
    site.level = 0
    site.go(int(FILL_S) - 1)
    assert up(board) == set()
    site.go(15)
    assert up(board) == {"PoolEmpty"}
    site.pools = []
    site.go(1)
    assert up(board) == set()


def test_a_node_that_falls_silent_is_missed_and_comes_back(site, board):
    site.go(5)
    site.heard = {"b"}
    site.go(int(STALE_S) + 2)
    assert up(board) == set()
    site.go(3)
    assert up(board, "node c") == {"RelayUnreachable"}
    site.heard = {"b", "c"}
    site.go(7)
    assert up(board) == set()


def test_a_node_that_is_taken_out_of_the_network_is_missed_no_more(site, board):
    site.go(5)
    site.heard = {"b"}
    site.go(int(STALE_S) + 5)
    assert up(board, "node c") == {"RelayUnreachable"}
    site.topology.adopt(trunk("row", [Node(id=NodeId(name)) for name in "ab"], [(20.0, 8.0)]))
    site.watch.adopt()
    site.go(5)
    assert up(board, "node c") == set()


def test_a_pool_that_empties_behind_a_broken_link_elsewhere_names_that_link(site, board):
    site.go(5)
    site.is_usable = False
    site.go(5)
    site.level = 0
    site.go(20)
    alarm = board.of(POOL)[0]
    assert (alarm.root_causes, alarm.impacted) == (["b-c"], ["tenant default"])


def test_what_a_link_of_ones_own_harms_is_said_with_it(site, board):
    site.go(5)
    board.raise_alarm("a-b", "QuantumChannelLoss", "critical", "dark")
    board.raise_alarm("a-b", "LinkOff", "major", "off")
    site.go(1)
    found = {alarm.type: alarm for alarm in board.of("a-b")}
    assert found["QuantumChannelLoss"].impacted == [POOL, "pool post to bank", "tenant default"]
    assert found["QuantumChannelLoss"].root_causes == []
    assert found["LinkOff"].root_causes == ["a-b"]


def test_expectations_come_from_a_process_of_their_own():
    found = asyncio.run(expectations([LINK]))
    assert found is not None
    assert 1e-4 < found[0].gain < 1e-2
    assert 0.005 < found[0].qber < 0.03
    assert found[0].secret_bps > 1e4
