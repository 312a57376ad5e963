"""The network's list: one line for what both ends say, followers below their root, whoever does not answer on top."""

import networkx as nx

from qtrunk.base.ids import LinkId, NodeId
from qtrunk.control.networkview import Shown, merged, worst
from qtrunk.control.rootcause import Correlation
from qtrunk.topology import Link, Node, Topology

EDGES = ("ab", "bc", "ca")
RING = Topology(
    name="ring",
    nodes=tuple(Node(id=NodeId(name)) for name in "abc"),
    links=tuple(Link(id=LinkId(f"{a}-{b}"), alice=NodeId(a), bob=NodeId(b), length_km=10, loss_db=3) for a, b in EDGES),
)
GRAPH = nx.Graph(EDGES)
CORRELATION = Correlation(RING, lambda a, b: nx.shortest_path(GRAPH, a, b))


def alarm(resource, type_, raised_s=100.0, severity="major", **more):
    return Shown(
        id=f"{resource} {type_}",
        resource=resource,
        type=type_,
        severity=severity,
        text="",
        raised_unix_s=raised_s,
        changed_unix_s=raised_s,
        **more,
    )


def lines(rows):
    return [(row.depth, row.alarm.type, row.alarm.resource, sorted(row.nodes)) for row in rows]


def test_a_cut_is_one_line_with_its_followers_below():
    said = {
        "a": [
            alarm("a-b", "ClassicalChannelLoss"),
            alarm("a-b", "QuantumChannelLoss", 104, "critical"),
            alarm("a-b", "LinkOff", 105),
        ],
        "b": [
            alarm("a-b", "ClassicalChannelLoss", 101),
            alarm("a-b", "QuantumChannelLoss", 103, "critical"),
            alarm("a-b", "LinkOff", 106),
        ],
        "c": [alarm("store", "StorageFull", 200, "critical"), alarm("b-c", "LinkOff", 50, is_cleared=True)],
    }
    rows = merged(said, {}, CORRELATION, RING, 300)
    assert lines(rows) == [
        (0, "QuantumChannelLoss", "a-b", ["a", "b"]),
        (1, "ClassicalChannelLoss", "a-b", ["a", "b"]),
        (1, "LinkOff", "a-b", ["a", "b"]),
        (0, "StorageFull", "store", ["c"]),
        (0, "LinkOff", "b-c", ["c"]),
    ]
    assert (rows[0].followers, rows[1].parent) == (2, rows[0].alarm.id)
    assert worst(rows) == "critical"
    assert worst([]) == "cleared"


def test_a_node_that_does_not_answer_is_the_root_of_what_its_neighbours_lost():
    said = {"a": [alarm("a-b", "ClassicalChannelLoss")], "c": [alarm("b-c", "ClassicalChannelLoss", 101)]}
    rows = merged(said, {"b": "no connection"}, CORRELATION, RING, 300)
    assert [(row.depth, row.alarm.type, row.alarm.resource) for row in rows] == [
        (0, "NodeUnreachable", "node b"),
        (1, "ClassicalChannelLoss", "a-b"),
        (1, "ClassicalChannelLoss", "b-c"),
    ]
    assert rows[0].alarm.raised_unix_s == 100.0


def test_parts_of_two_nodes_with_one_name_are_two_alarms():
    said = {node: [alarm("store", "StorageFull")] for node in "ab"}
    assert len(merged(said, {}, CORRELATION, RING, 300)) == 2
    assert len(merged(said, {}, None, None, 300)) == 2
