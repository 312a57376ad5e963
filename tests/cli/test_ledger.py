"""Ledgers side by side: both ends in their columns, what is missing marked."""

from qtrunk.cli import show
from qtrunk.cli.ledger import link_rows, pool_rows, table
from qtrunk.config import network

TOPOLOGY = network.load('name = "n"\ntrunks = [["a", "b"]]\nlink.length_km = 10\nsaes = ["x@a", "y@b"]')


def link_end(**changes):
    entry = {
        "generated": 100,
        "pending": 0,
        "available": 50,
        "allocated": 20,
        "followed": 10,
        "authentication": 5,
        "skipped": 5,
        "destroyed": {"qber": 10},
    }
    return {"a-b": {**entry, **changes}}


def pool_end(side, **changes):
    entry = {
        "side": side,
        "initiator": "x",
        "target": "y",
        "filled": 100,
        "overhead": 10,
        "available": 60,
        "delivered": 20,
        "doubtful": 4,
        "lost": 0,
        "destroyed": {"expired": 10},
    }
    return {**entry, **changes}


def by_what(rows):
    return {row["what"]: (row["first"], row["second"], row["remark"]) for row in rows}


def test_what_one_end_allocated_stands_beside_what_the_other_followed():
    rows = by_what(link_rows(TOPOLOGY, {"a": link_end(), "b": link_end(allocated=10, followed=20)}))
    assert rows["used, Alice to Bob"] == (20, 20, "")
    assert rows["used, Bob to Alice"] == (10, 10, "")
    assert rows["destroyed: qber"] == (10, 10, "")
    assert rows["unaccounted"] == (0, 0, "")


def test_missing_octets_and_ends_that_differ_are_marked():
    rows = by_what(link_rows(TOPOLOGY, {"a": link_end(available=49), "b": link_end(generated=101, available=51)}))
    assert rows["unaccounted"] == (1, 0, "! octets are unaccounted for")
    assert rows["generated"][2].startswith("the ends differ")


def test_a_silent_end_is_said_to_be_silent():
    rows = link_rows(TOPOLOGY, {"a": link_end()})
    assert by_what(rows)["available"] == (50, None, "")
    console = show.console()
    with console.capture() as capture:
        console.print(table(rows))
    assert "no answer" in capture.get()


def test_pools_stand_by_their_sides():
    pools = {"b": [pool_end("target", available=80, delivered=0)], "a": [pool_end("initiator")]}
    rows = pool_rows(pools)
    assert by_what(rows)["delivered"] == (20, 0, "")
    assert by_what(rows)["unaccounted"] == (0, 0, "")
    assert {row["of"] for row in rows} == {"pool x to y"}
    pools["a"][0]["lost"] = 7
    assert by_what(pool_rows(pools))["unaccounted"][2].startswith("!")
