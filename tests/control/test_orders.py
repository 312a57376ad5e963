"""Routes that a controller hands a node: what a node takes, in which order, for how long."""

import msgspec
import pytest

from qtrunk.base.errors import NotAuthorised, RequestRefused, StoreError
from qtrunk.control.orders import LIFETIME_S_MAX, RouteOrder, RouteTable, check, decode_order
from qtrunk.topology import LiveTopology, Node, ring, trunk

RING = ring("ring", [Node(id=name) for name in "abcd"], [(10, 3)] * 4)
ROUTES = {"c": [["a", "b", "c"], ["a", "d", "c"]], "b": [["a", "b"]]}


def order(**more):
    return RouteOrder(
        **{
            "node": "a",
            "controller": "one",
            "fencing": 3,
            "version": 5,
            "lifetime_s": 1000.0,
            "routes": ROUTES,
            **more,
        }
    )


@pytest.fixture
def kept():
    return []


@pytest.fixture
def table(kept):
    return RouteTable("a", RING, kept.append)


def test_the_first_route_that_carries_key_is_preferred_until_the_order_ends(table):
    assert table.prefer("c", (), 0.0) is None
    table.take(order(), 100.0)
    assert table.prefer("c", (), 100.0) == ("a", "b", "c")
    assert table.prefer("c", {"b-c"}, 100.0) == ("a", "d", "c")
    assert table.prefer("c", {"b-c", "d-a"}, 100.0) is None
    assert table.prefer("d", (), 100.0) is None
    assert table.prefer("c", (), 1099.9) == ("a", "b", "c")
    assert table.prefer("c", (), 1100.0) is None
    assert table.prefer("c", (), 50.0) == ("a", "b", "c")


def test_an_order_is_kept_before_it_counts_and_is_there_after_a_start(table, kept):
    table.take(order(), 100.0)
    again = RouteTable("a", RING, kept.append)
    again.load(kept[-1])
    assert again.prefer("c", (), 1000.0) == ("a", "b", "c")
    with pytest.raises(NotAuthorised):
        again.take(order(fencing=2, version=99), 200.0)

    def full(_octets):
        raise StoreError("full")

    broken = RouteTable("a", RING, full)
    with pytest.raises(StoreError):
        broken.take(order(), 1.0)
    assert broken.prefer("c", (), 1.0) is None


def test_a_topology_that_changed_makes_the_routes_void_but_not_the_token(table, kept):
    table.take(order(), 100.0)
    row = trunk("row", [Node(id=name) for name in "adcb"], [(10, 3)] * 3)
    changed = RouteTable("a", row, kept.append)
    changed.load(kept[-1])
    assert changed.prefer("c", (), 100.0) is None
    with pytest.raises(NotAuthorised):
        changed.take(order(fencing=2, routes={}), 200.0)


def test_routes_over_a_link_that_goes_are_let_go_of_while_the_node_runs(kept):
    live = LiveTopology(RING)
    table = RouteTable("a", live, kept.append)
    table.adopt()
    table.take(order(), 100.0)
    live.adopt(trunk("row", [Node(id=name) for name in "bcda"], [(10, 3)] * 3))
    table.adopt()
    assert table.prefer("c", (), 100.0) is None
    with pytest.raises(NotAuthorised):
        table.take(order(fencing=2, routes={}), 200.0)


@pytest.mark.parametrize(
    ("more", "ok"),
    [
        ({}, True),
        ({"version": 6}, True),
        ({"fencing": 4, "version": 1, "controller": "two"}, True),
        ({"version": 4}, False),
        ({"fencing": 2, "version": 9}, False),
        ({"version": 6, "controller": "two"}, False),
    ],
)
def test_fencing_tokens_and_versions_only_grow(table, more, ok):
    table.take(order(), 100.0)
    if ok:
        table.take(order(**more), 101.0)
        assert table.as_json(101.0)["age_s"] == 0
    else:
        with pytest.raises(NotAuthorised):
            table.take(order(**more), 101.0)
        assert table.as_json(101.0)["version"] == 5


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"node": "b"}, "node"),
        ({"fencing": 0}, "fencing"),
        ({"version": 0}, "version"),
        ({"lifetime_s": 0.0}, "lifetime_s"),
        ({"lifetime_s": LIFETIME_S_MAX * 2}, "lifetime_s"),
        ({"routes": {"x": []}}, "routes"),
        ({"routes": {"a": []}}, "routes"),
        ({"routes": {"c": [["a", "c"]]}}, "not neighbours"),
        ({"routes": {"c": [["b", "c"]]}}, "routes to c"),
        ({"routes": {"c": [["a", "b"]]}}, "routes to c"),
        ({"routes": {"c": [["a", "b", "a", "b", "c"]]}}, "routes to c"),
        ({"routes": {"c": [[]]}}, "routes to c"),
        ({"routes": {"c": [["a", "b", "c"]] * 9}}, "at most"),
    ],
)
def test_orders_that_cannot_be(more, field):
    with pytest.raises(RequestRefused, match=field):
        check(order(**more), RING, "a")


@pytest.mark.parametrize("octets", [b"", b"{}", b"[]", msgspec.json.encode({**msgspec.to_builtins(order()), "key": 1})])
def test_what_is_no_order(octets):
    with pytest.raises(RequestRefused):
        decode_order(octets)
