"""A tampering relay is named, wherever it is and whatever it says of itself."""

import os

import msgspec
import pytest
from relay_network import changing, flipped

from qtrunk.base.errors import WireError
from qtrunk.base.ids import NodeId, SaeId
from qtrunk.base.wire import decode, encode
from qtrunk.kms.poolstate import HEAD_OCTETS
from qtrunk.relay import messages as wire
from qtrunk.relay.inquest import ANSWER_S, Question, Statement, Tell
from qtrunk.relay.kx import Failed

A = NodeId("a")
ROW = "abcde"


def fill(network, change, state):
    request_id, effects = network.machines[A].fill(SaeId("sae-a"), SaeId("sae-e"), HEAD_OCTETS + 640)
    network.do(A, effects)
    network.settle(change, state)
    network.clock.now_s += ANSWER_S + 0.1
    network.do(A, network.machines[A].tick())
    network.settle()
    return network.answers[request_id]


def named(network):
    return [report.node for report in network.reports if report.alarm == "RelayTampered" and report.node]


def saying(network, who, what):
    """What a corrupt node states of itself."""

    def state(sender, octets):
        body = decode(octets, Question | Statement)
        if sender != who or isinstance(body, Question):
            return [octets]
        if what == "nothing":
            return []
        if what == "the truth":
            body = msgspec.structs.replace(body, sent=os.urandom(32))
        if what == "it came like this":
            behind = network.machines[NodeId(ROW[ROW.index(who) + 1])]._inquests._records[body.relay_id].said
            body = msgspec.structs.replace(body, received=behind.received, sent=behind.received)
        return [encode(body)]

    return state


@pytest.mark.parametrize(
    ("who", "what", "suspects"),
    [
        ("b", "the truth", "b"),
        ("c", "the truth", "c"),
        ("d", "the truth", "d"),
        ("b", "I sent what I got", "b or c"),
        ("c", "I sent what I got", "c or d"),
        ("d", "I sent what I got", "d"),
        ("b", "it came like this", "b"),
        ("c", "it came like this", "b or c"),
        ("d", "it came like this", "c or d"),
        ("b", "nothing", "b or c"),
        ("c", "nothing", "b or c or d"),
        ("d", "nothing", "c or d"),
    ],
)
def test_whoever_changes_a_cargo_is_named_or_one_of_two(row, who, what, suspects):
    answer = fill(row, changing(row, NodeId(who), flipped), saying(row, who, what))
    assert isinstance(answer, Failed)
    assert named(row) == [suspects]


def test_two_incidents_of_one_node_name_it_alone(row):
    for what in ("I sent what I got", "it came like this"):
        fill(row, changing(row, NodeId("c"), flipped), saying(row, "c", what))
    assert named(row) == ["c or d", "c"]


def changed_answer(body):
    return msgspec.structs.replace(body, confirm=bytes(16)) if isinstance(body, wire.KeyRelayCompletion) else body


@pytest.mark.parametrize(("who", "suspects"), [("b", "b"), ("c", "b or c"), ("d", "c or d")])
def test_whoever_changes_an_answer_is_named_or_one_of_two(row, who, suspects):
    answer = fill(row, changing(row, NodeId(who), changed_answer), lambda _sender, octets: [octets])
    assert isinstance(answer, Failed)
    assert named(row) == [suspects]


def test_a_node_states_the_first_of_two_replays(row):
    row.ask("sae-a", ["sae-e"])
    inquests = row.machines[NodeId("b")]._inquests
    (relay_id,) = inquests._records
    before = inquests._records[relay_id].said
    inquests._note(relay_id, received=os.urandom(32), sent=os.urandom(32))
    assert inquests._records[relay_id].said == before


def test_who_is_not_on_the_route_has_no_say(row):
    fill(row, changing(row, NodeId("c"), flipped), lambda sender, octets: [octets] if sender == "a" else [])
    row.notes.clear()
    request_id, effects = row.machines[A].fill(SaeId("sae-a"), SaeId("sae-c"), HEAD_OCTETS + 640)
    row.do(A, effects)
    row.settle(changing(row, NodeId("b"), flipped), lambda _sender, _octets: [])
    (relay_id,) = row.machines[A]._inquests._open
    with pytest.raises(WireError, match="not on the route"):
        row.machines[A].receive_note(NodeId("e"), encode(Statement(relay_id=relay_id)))
    assert request_id in row.answers


def test_what_a_node_does_not_know_it_says(row):
    (told,) = row.machines[A].receive_note(NodeId("e"), encode(Question(relay_id="?")))
    assert isinstance(told, Tell)
    assert decode(told.octets, Question | Statement) == Statement(relay_id="?")


def test_an_honest_network_holds_no_inquest(row):
    row.ask("sae-a", ["sae-e"])
    row.wait(10.0)
    assert not row.reports
    assert not row.notes
