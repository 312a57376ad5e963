"""Adverts: news travels, old and own tales do not, silence makes them stale."""

import msgspec
import pytest

from qtrunk.base.errors import WireError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.config import network
from qtrunk.node.advert import AHEAD_S, LINKS_MAX, STALE_S, Adverts, LinkLevel

A, B = NodeId("a"), NodeId("b")
LINK = LinkId("a-b")


def level(octets=10, *, is_usable=True):
    return LinkLevel(link=LINK, octets=octets, fill_bps=5.0, is_usable=is_usable)


def test_news_is_taken_once_and_passed_on():
    one, other = Adverts(A), Adverts(B)
    octets = one.note_own([level()], 1, 0.0)
    assert other.receive(octets, 0.0)
    assert not other.receive(octets, 0.0)
    assert not one.receive(octets, 0.0), "the own advert comes back and goes no further"
    assert other.level(A, LINK, 1.0) == level()


def test_an_older_advert_never_replaces_a_newer_one():
    one, other = Adverts(A), Adverts(B)
    old, new = one.note_own([level(1)], 1, 0.0), one.note_own([level(2)], 2, 0.0)
    other.receive(new, 0.0)
    assert not other.receive(old, 0.0)
    assert other.level(A, LINK, 0.0).octets == 2


def test_a_node_that_falls_silent_is_unknown_and_rules_nothing_out():
    one, other = Adverts(A), Adverts(B)
    other.receive(one.note_own([level(is_usable=False)], 1, 0.0), 0.0)
    assert other.unusable_links(0.0) == {LINK}
    assert other.stale(STALE_S - 1) == []
    assert other.level(A, LINK, STALE_S + 1) is None
    assert other.unusable_links(STALE_S + 1) == frozenset()
    assert other.stale(STALE_S + 1) == [A]
    assert other.stale(STALE_S + 2) == [], "it is said once"
    other.receive(one.note_own([level()], 2, 0.0), STALE_S + 3)
    assert other.stale(3 * STALE_S) == [A]


def test_a_node_whose_clock_was_ahead_goes_beyond_what_it_said_in_its_earlier_life():
    earlier, one, other = Adverts(A), Adverts(A), Adverts(B)
    other.receive(earlier.note_own([level(1)], 1_000_000, 0.0), 0.0)
    assert not other.receive(one.note_own([level(2)], 5, 1.0), 1.0)
    (old,) = other.missing(one.known())
    assert not one.receive(old, 1.0)
    assert one.is_contradicted
    assert other.receive(one.note_own([level(3)], 6, 2.0), 2.0)
    assert not one.is_contradicted
    assert other.level(A, LINK, 2.0).octets == 3


def test_a_sequence_of_the_far_future_is_not_believed():
    one, other = Adverts(A), Adverts(B)
    octets = one.note_own([level()], 1000 * int(1.7e9 + AHEAD_S + 2), 0.0)
    assert not other.receive(octets, 0.0, 1.7e9)
    assert other.receive(octets, 0.0, 1.7e9 + 3)


def test_what_one_node_lacks_or_has_otherwise_is_found_and_set_right():
    one, other = Adverts(A), Adverts(B)
    lost = one.note_own([level(1)], 1, 0.0)
    assert one.digest() != other.digest()
    assert one.missing(other.known()) == [lost]
    other.receive(lost, 0.0)
    assert one.digest() == other.digest()
    assert one.missing(other.known()) == other.missing(one.known()) == []
    # Changed on its way, in one bit: whoever has it and who said it find out, and what was said anew holds everywhere.
    changed = bytearray(one.note_own([level(2)], 2, 1.0))
    changed[changed.index(2)] = 3
    other.receive(bytes(changed), 1.0)
    assert one.digest() != other.digest()
    for octets in [*one.missing(other.known()), *other.missing(one.known())]:
        one.receive(octets, 1.0)
        other.receive(octets, 1.0)
    if one.is_contradicted:
        other.receive(one.note_own([level(2)], 2, 1.0), 1.0)
    assert one.digest() == other.digest()
    assert other.level(A, LINK, 1.0).octets == 2


def link(name, *, is_connected=True):
    return LinkLevel(link=LinkId(name), octets=9, fill_bps=5.0, is_usable=is_connected, is_connected=is_connected)


def test_a_node_is_there_while_links_that_both_ends_vouch_for_lead_to_it():
    a, b, c = Adverts(A), Adverts(B), Adverts(NodeId("c"))
    a.note_own([link("a-b")], 1, 0.0)
    a.receive(b.note_own([link("a-b"), link("b-c")], 1, 0.0), 0.0)
    a.receive(c.note_own([link("b-c")], 1, 0.0), 0.0)
    assert a.silent(9 * STALE_S) == frozenset(), "who has nothing new to say need not repeat it"
    a.receive(b.note_own([link("a-b"), link("b-c", is_connected=False)], 2, 100.0), 100.0)
    assert a.silent(100.0 + STALE_S) == frozenset()
    assert a.silent(101.0 + STALE_S) == {"c"}
    assert a.stale(101.0 + STALE_S) == ["c"]
    assert a.level(NodeId("c"), LinkId("b-c"), 101.0 + STALE_S) is None
    assert a.returned() == []
    a.receive(b.note_own([link("a-b"), link("b-c")], 3, 120.0), 120.0)
    assert [advert.node for advert in a.returned()] == ["c"], "what it said counts again"
    assert a.returned() == []
    assert a.silent(120.0) == frozenset()


@pytest.mark.parametrize("wrong", [{"octets": -1}, {"fill_bps": -1.0}, {"fill_bps": float("nan")}, {"fill_bps": 1e300}])
def test_impossible_levels_are_refused(wrong):
    octets = Adverts(A).note_own([msgspec.structs.replace(level(), **wrong)], 1, 0.0)
    with pytest.raises(WireError):
        Adverts(B).receive(octets, 0.0)


def test_garbage_and_floods_are_refused():
    other = Adverts(B)
    for octets in (b"", b"\xff\xfe", bytes(50)):
        with pytest.raises(WireError):
            other.receive(octets, 0.0)
    with pytest.raises(WireError):
        other.receive(Adverts(A).note_own([level()] * (LINKS_MAX + 1), 1, 0.0), 0.0)


def test_what_nodes_said_that_are_gone_is_forgotten():
    adverts, gone = Adverts(A), Adverts(NodeId("z"))
    adverts.receive(gone.note_own([level(is_usable=False)], 1, 0.0), 0.0)
    adverts.adopt(network.load('name = "n"\nlink.length_km = 1\ntrunks = [["a", "b"]]'))
    assert adverts.unusable_links(0.0) == frozenset()
    assert not adverts.receive(gone.note_own([level()], 2, 1.0), 1.0), "nor is it heard again"
    assert adverts.digest() == Adverts(A).digest()
