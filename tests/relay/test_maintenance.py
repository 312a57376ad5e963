"""Maintenance windows: they begin and end by the clock, are checked, and say how much key a pool must have ahead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrunk.base.errors import RequestRefused
from qtrunk.base.ids import NodeId
from qtrunk.relay.maintenance import (
    LEAD_S,
    WINDOW_S_MAX,
    WINDOWS_MAX,
    Window,
    ahead_octets,
    checked,
    links_at,
    may_announce,
    under_way,
)
from qtrunk.topology import Node, ring

TOPOLOGY = ring("r", [Node(id=NodeId(name)) for name in "abcd"], [(10, 3)] * 4)
A = NodeId("a")


def window(resource="a", start=1000.0, end=2000.0):
    return Window(resource=resource, start_unix_s=start, end_unix_s=end)


def test_a_window_begins_and_ends_by_the_clock():
    one = window()
    assert [one.phase(t) for t in (0, 999.9, 1000, 1999.9, 2000)] == [
        "planned",
        "planned",
        "under way",
        "under way",
        "over",
    ]
    assert under_way([one, window("a-b", 1500, 3000)], 1600.0) == {"a", "a-b"}
    assert under_way([one, window("a-b", 1500, 3000)], 2500.0) == {"a-b"}


def test_a_node_speaks_of_itself_and_its_links():
    assert may_announce(TOPOLOGY, A, "a")
    assert may_announce(TOPOLOGY, A, "a-b")
    assert may_announce(TOPOLOGY, A, "d-a")
    assert not may_announce(TOPOLOGY, A, "b")
    assert not may_announce(TOPOLOGY, A, "b-c")
    assert links_at(TOPOLOGY, "a") == {"a-b", "d-a"}
    assert links_at(TOPOLOGY, "b-c") == {"b-c"}
    assert links_at(TOPOLOGY, "z") == frozenset()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (window("b-c"), "resource: 'b-c' is not this node"),
        (window("a", 1000, 1000), "end_unix_s: must be"),
        (window("a", 100, 400), "end_unix_s: must be"),
        (window("a", 1000, 1001 + WINDOW_S_MAX), "end_unix_s: a window lasts at most 30 days"),
        (window("a-b", 5500, 5600), "resource: a-b has another window"),
    ],
)
def test_what_is_wrong_is_refused_with_its_field(wrong, says):
    with pytest.raises(RequestRefused, match=says):
        checked(TOPOLOGY, A, wrong, [window("a-b", 5000, 6000)], 500.0)


def test_a_node_has_only_so_many():
    others = [window("a", 1000.0 + 10 * n, 1005.0 + 10 * n) for n in range(WINDOWS_MAX)]
    with pytest.raises(RequestRefused, match="100 windows already"):
        checked(TOPOLOGY, A, window("a-b"), others, 0.0)


def test_what_a_window_takes_is_there_before_it_begins():
    one = window("a-b", 10_000.0, 13_600.0)
    none = {"a-b": 0.0}
    assert ahead_octets([one], 800.0, none, 10_000.0 - LEAD_S - 1) == 0
    assert ahead_octets([one], 800.0, none, 10_000.0 - LEAD_S) == 360_000
    assert ahead_octets([one], 800.0, none, 11_800.0) == 180_000
    assert ahead_octets([one], 800.0, none, 13_600.0) == 0
    assert ahead_octets([one], 800.0, {"a-b": 600.0}, 10_000.0) == 90_000
    assert ahead_octets([one], 800.0, {"a-b": 5000.0}, 10_000.0) == 0
    assert ahead_octets([one], 800.0, {}, 10_000.0) == 0


@given(st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 20_000), st.floats(0, 1e5))
def test_it_is_never_less_than_what_is_lacking(demand_bps, rest_bps, unix_s, more_bps):
    one = window("a-b", 10_000.0, 13_600.0)
    octets = ahead_octets([one], demand_bps, {"a-b": rest_bps}, unix_s)
    assert octets >= 0
    assert octets <= ahead_octets([one], demand_bps + more_bps, {"a-b": rest_bps}, unix_s)
    assert octets >= ahead_octets([one], demand_bps, {"a-b": rest_bps + more_bps}, unix_s)
