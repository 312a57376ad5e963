"""Notes between nodes that are no neighbours: signed end to end, new, for somebody; nodes on the way pass them on."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from qtrunk.base.errors import AuthenticationFailed, RouteUnavailable, WireError
from qtrunk.base.ids import NodeId
from qtrunk.base.wire import decode, encode
from qtrunk.crypto.hybrid import HybridEnd
from qtrunk.node.notes import AGE_MAX_S, Note, Notes, _Numbers
from qtrunk.relay.route import route
from qtrunk.topology import Node, trunk

ROW = trunk("t", [Node(id=NodeId(name)) for name in "abc"], [(10, 3)] * 2)
A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


class Clock:
    now_s = 1e6

    def unix_s(self):
        return self.now_s

    def monotonic_s(self):
        return self.now_s


class World:
    """Three nodes in a row; frames wait in `wires`."""

    def __init__(self):
        self.clock = Clock()
        signing = {name: MLDSA65PrivateKey.generate() for name in "abc"}
        verifying = {name: key.public_key() for name, key in signing.items()}
        self.ends = {name: HybridEnd(name, signing[name], verifying) for name in "abc"}
        self.wires, self.heard = [], []
        self.notes = {name: self.make(NodeId(name)) for name in "abc"}
        for name, notes in self.notes.items():
            notes.serve("test", lambda sender, octets, name=name: self.heard.append((sender, name, octets)))

    def make(self, node):
        def send(link, octets):
            self.wires.append((ROW.link(link).other(node), octets))

        return Notes(node, ROW, self.ends[node], self.clock, lambda to: route(ROW, node, to), send)

    def settle(self, change=lambda note: note):
        while self.wires:
            node, octets = self.wires.pop(0)
            self.notes[node].receive(encode(change(decode(octets, Note))))


@pytest.fixture
def world():
    return World()


def test_a_note_reaches_its_node_over_others(world):
    world.notes["a"].tell(C, "test", b"hello")
    world.settle()
    assert world.heard == [(A, "c", b"hello")]
    world.notes["a"].tell(B, "test", b"near")
    world.settle()
    assert world.heard[1:] == [(A, "b", b"near")]


@pytest.mark.parametrize(
    "change",
    [
        {"octets": b"hellp"},
        {"sender": "b"},
        {"service": "other"},
        {"number": 5},
        {"signature": bytes(3309)},
        {"signature": b""},
    ],
)
def test_what_a_node_on_the_way_changes_is_refused(world, change):
    world.notes["a"].tell(C, "test", b"hello")
    with pytest.raises(AuthenticationFailed):
        world.settle(lambda note: msgspec.structs.replace(note, **change))
    assert world.heard == []


def test_a_note_for_another_node_cannot_be_turned_to_this_one(world):
    world.notes["a"].tell(B, "test", b"hello")
    with pytest.raises(AuthenticationFailed):
        world.settle(lambda note: msgspec.structs.replace(note, to="c", route=["a", "b", "c"]))
    assert world.heard == []


def test_a_note_counts_once_and_not_when_it_is_old(world):
    world.notes["a"].tell(C, "test", b"one")
    kept = world.wires[0][1]
    world.settle()
    for _ in range(2):
        with pytest.raises(AuthenticationFailed, match="old, seen before"):
            world.notes["c"].receive(kept)
    assert len(world.heard) == 1
    world.notes["a"].tell(C, "test", b"two")
    late = world.wires.pop(0)[1]
    world.clock.now_s += AGE_MAX_S + 1
    with pytest.raises(AuthenticationFailed, match="old, seen before"):
        world.notes["c"].receive(late)
    # A receiver that started anew has forgotten the numbers, and still takes no old note.
    world.notes["c"] = world.make(C)
    world.notes["c"].serve("test", lambda sender, octets: world.heard.append((sender, "c", octets)))
    with pytest.raises(AuthenticationFailed, match="old, seen before"):
        world.notes["c"].receive(kept)


def test_an_unknown_sender_is_refused(world):
    world.ends["c"]._verifying_keys.pop("a")
    world.notes["a"].tell(C, "test", b"hello")
    with pytest.raises(AuthenticationFailed, match="enrol it"):
        world.settle()


@pytest.mark.parametrize("way", [["a", "b"], ["a", "b", "a", "c"], ["b"], ["a", "b", "z"], []])
def test_a_route_that_leads_nowhere_is_refused(world, way):
    world.notes["a"].tell(C, "test", b"hello")
    octets = encode(msgspec.structs.replace(decode(world.wires.pop(0)[1], Note), route=way))
    with pytest.raises(WireError):
        world.notes["b"].receive(octets)


def test_a_service_that_is_not_there_and_garbage_are_refused(world):
    world.notes["a"].tell(C, "nothing", b"hello")
    with pytest.raises(WireError, match="no service"):
        world.settle()
    for octets in (b"", b"\xc1", b"\x81\xa4type\xa4note", bytes(100)):
        with pytest.raises(WireError):
            world.notes["c"].receive(octets)


def test_without_a_way_the_sender_is_told_and_a_service_only_loses_its_note(world):
    def nowhere(_to):
        raise RouteUnavailable("no route")

    notes = Notes(A, ROW, world.ends["a"], world.clock, nowhere, lambda *_: None)
    with pytest.raises(RouteUnavailable):
        notes.tell(C, "test", b"hello")
    notes.service("test").tell(C, b"hello")


def test_clocks_that_were_ahead_for_a_while_and_were_set_right_silence_nobody(world):
    right_s = world.clock.now_s
    world.clock.now_s = right_s + 1e7
    world.notes["a"].tell(C, "test", b"while all were ahead")
    world.settle()
    world.clock.now_s = right_s
    world.notes["a"].tell(C, "test", b"after")
    world.settle()
    assert [octets for *_, octets in world.heard] == [b"while all were ahead", b"after"]


def test_a_note_for_all_reaches_every_node_of_its_route(world):
    world.notes["a"].tell_all([A, B, C], "test", b"hear")
    world.settle()
    assert world.heard == [(A, "b", b"hear"), (A, "c", b"hear")]


def test_a_note_for_all_is_passed_on_before_it_is_looked_at(world):
    """So that a node which has lost a neighbour's verifying key keeps it from nobody."""
    world.notes["a"].tell_all([A, B, C], "test", b"hear")
    del world.ends["b"]._verifying_keys["a"]
    node, octets = world.wires.pop(0)
    with pytest.raises(AuthenticationFailed, match="not known here"):
        world.notes[node].receive(octets)
    world.settle()
    assert world.heard == [(A, "c", b"hear")]


@pytest.mark.parametrize("is_for_all", [True, False])
def test_whom_a_note_is_for_is_signed(world, is_for_all):
    if is_for_all:
        world.notes["a"].tell_all([A, B, C], "test", b"hear")
    else:
        world.notes["a"].tell(C, "test", b"hear")
    node, octets = world.wires.pop(0)
    changed = msgspec.structs.replace(decode(octets, Note), is_for_all=not is_for_all, to="b")
    with pytest.raises(AuthenticationFailed, match="signature"):
        world.notes[node].receive(encode(changed))
    assert world.heard == []


def test_a_service_may_have_its_notes_overtaken_and_takes_each_once(world):
    world.notes["c"].serve("test", lambda _sender, octets: world.heard.append(octets), 10.0)
    sent = []
    for number in range(6):
        world.notes["a"].tell(C, "test", b"%d" % number)
        sent.append(world.wires.pop()[1])
        world.clock.now_s += 4.0
    frames = [encode(decode(octets, Note)) for octets in sent]
    for number in (3, 1, 0, 2):
        world.notes["c"].receive(frames[number])
    world.notes["c"].receive(frames[5])
    # Twenty seconds old, and too old for a service whose notes wait up to ten; the fourth is not.
    for number in (0, 1, 2, 3, 5):
        with pytest.raises(AuthenticationFailed, match="old, seen before"):
            world.notes["c"].receive(frames[number])
    world.notes["c"].receive(frames[4])
    assert world.heard == [b"3", b"1", b"0", b"2", b"5", b"4"]


def test_a_number_of_a_clock_that_was_ahead_counts_once_even_when_its_time_comes():
    numbers, now_s = _Numbers(), 1.7e9
    ahead = int((now_s + 3600) * 1000)
    assert numbers.take(ahead, 10_000, now_s + 3600)
    assert numbers.take(int(now_s * 1000), 10_000, now_s)
    assert not numbers.take(ahead, 10_000, now_s + 3590)


def test_the_numbers_that_are_kept_are_those_of_the_last_while(world):
    world.notes["c"].serve("test", lambda _sender, octets: world.heard.append(octets), 10.0)
    for _ in range(200):
        world.notes["a"].tell(C, "test", b"x")
        world.settle()
        world.clock.now_s += 1.0
    assert len(world.heard) == 200
    (numbers,) = world.notes["c"]._numbers.values()
    assert sum(map(len, numbers.near.values())) <= 20
