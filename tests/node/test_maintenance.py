"""A node's windows: from operators, on the disk first, over a restart, ended in time, silent meanwhile."""

import asyncio
from types import SimpleNamespace

import msgspec
import pytest

from qtrunk.api.roles import Operator, OperatorRole
from qtrunk.base.errors import RequestRefused, StoreError
from qtrunk.base.ids import NodeId
from qtrunk.kms.audit import AuditLog, records
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.maintenance import Maintenance
from qtrunk.relay.maintenance import Window
from qtrunk.topology import LiveTopology, Node, ring, trunk

TOPOLOGY = ring("r", [Node(id=NodeId(name)) for name in "abcd"], [(10, 3)] * 4)
ANN = Operator(name="ann", fingerprint="f", roles=frozenset({OperatorRole.OPERATOR}))


class Clock:
    now_s = 1.7e9

    def unix_s(self) -> float:
        return self.now_s

    def monotonic_s(self) -> float:
        return self.now_s


class Site:
    def __init__(self, directory, clock) -> None:
        self.clock, self.directory = clock, directory
        self.passing = 3
        self.audit = AuditLog(directory / "audit", clock)
        self.alarms = AlarmBoard(clock)
        self.topology = LiveTopology(TOPOLOGY)
        path = directory / "maintenance.json"
        self.maintenance = Maintenance(
            NodeId("a"), self.topology, path, clock, self.audit, self.alarms, lambda _links: self.passing
        )

    def ask(self, method, *more, body=b""):
        request = SimpleNamespace(method=method, segments=("admin", "v1", "maintenance", *more), body=body)
        return asyncio.run(self.maintenance.answer(request, ANN))

    def plan(self, resource, end_s, **more):
        body = {"resource": resource, "end_unix_s": self.clock.now_s + end_s, **more}
        return self.ask("POST", body=msgspec.json.encode(body))

    def shown(self):
        return msgspec.json.decode(self.ask("GET").body)

    def audited(self):
        return [(r.who, r.what, r.on, r.outcome) for r in records(self.directory / "audit")]


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path, Clock())


def test_a_drain_begins_now_and_ends_by_itself(site):
    assert site.plan("a-b", 600.0, why="new splice").status == 200
    assert site.maintenance.tick() == {"a-b"}
    (found,) = site.shown()
    assert (found["phase"], found["is_own"], found["passing"], found["is_clear"]) == ("under way", True, 3, False)
    site.passing = 0
    assert site.shown()[0]["is_clear"]
    site.clock.now_s += 601.0
    assert site.maintenance.tick() == frozenset()
    assert site.maintenance.own == ()
    assert site.audited() == [
        ("operator ann", "drain", "a-b", "begun"),
        ("operator ann", "drain", "a-b", "done"),
        ("node a", "maintenance over", "a-b", "done"),
    ]


def test_a_window_is_kept_over_a_restart(site, tmp_path):
    site.plan("a", 7200.0, start_unix_s=site.clock.now_s + 3600.0)
    site.audit.close()
    again = Site(tmp_path, site.clock)
    assert again.maintenance.own == site.maintenance.own
    assert again.maintenance.tick() == frozenset()
    again.clock.now_s += 3600.0
    assert again.maintenance.tick() == {"a"}
    assert again.ask("POST", "a", "end").status == 200
    assert again.maintenance.tick() == frozenset()
    assert not again.shown()


def test_what_cannot_be_kept_does_not_happen(site, tmp_path):
    (tmp_path / "maintenance.part").mkdir()
    with pytest.raises(StoreError, match="maintenance windows"):
        site.plan("a-b", 600.0)
    assert site.maintenance.own == ()
    assert site.audited()[-1] == ("operator ann", "drain", "a-b", "failed")


def test_a_damaged_file_is_said_and_not_taken_for_none(site, tmp_path):
    (tmp_path / "maintenance.json").write_bytes(b'[{"resource": 1}]')
    with pytest.raises(StoreError, match="maintenance windows"):
        Maintenance(NodeId("a"), TOPOLOGY, tmp_path / "maintenance.json", site.clock, site.audit, site.alarms, len)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"resource": "a"}',
        b'{"resource": "a", "end_unix_s": "x"}',
        b'{"resource": "a", "end_unix_s": 1e300}',
        b'{"resource": "a", "end_unix_s": 1.8e9, "start_unix_s": -5}',
    ],
)
def test_nonsense_is_refused_and_changes_nothing(site, body):
    with pytest.raises(RequestRefused):
        site.ask("POST", body=body)
    assert site.maintenance.own == ()
    assert site.audited() == []


def test_only_what_is_there_can_be_ended(site):
    with pytest.raises(RequestRefused, match="'a-b' has no window"):
        site.ask("POST", "a-b", "end")
    assert site.ask("GET", "x").status == 404


def test_others_speak_of_their_own_alone(site):
    now_s = site.clock.now_s
    told = [Window(resource=name, start_unix_s=now_s, end_unix_s=now_s + 60) for name in ("b", "b-c", "c-d", "a")]
    site.maintenance.hear(NodeId("b"), told)
    assert site.maintenance.tick() == {"b", "b-c"}
    site.maintenance.hear(NodeId("b"), [])
    assert site.maintenance.tick() == frozenset()


def test_alarms_of_what_is_drained_are_shelved_until_it_ends(site):
    def shown():
        board = site.alarms.as_json()
        return [sorted(alarm["resource"] for alarm in board[where]) for where in ("active", "shelved")]

    site.alarms.raise_alarm("a-b", "ClassicalChannelLoss", "major", "down")
    site.alarms.raise_alarm("d-a", "ClassicalChannelLoss", "major", "down")
    site.alarms.raise_alarm("node b", "RelayUnreachable", "major", "silent")
    now_s = site.clock.now_s
    site.maintenance.hear(NodeId("b"), [Window(resource="b", start_unix_s=now_s, end_unix_s=now_s + 60)])
    site.maintenance.tick()
    assert shown() == [["d-a", "maintenance a-b"], ["a-b", "node b"]]
    site.clock.now_s += 61
    site.maintenance.tick()
    assert shown() == [["a-b", "d-a", "node b"], []]


def test_there_is_no_window_for_what_is_taken_out_of_the_network(site):
    site.plan("a-b", 600.0)
    now_s = site.clock.now_s
    site.maintenance.hear(NodeId("b"), [Window(resource="b", start_unix_s=now_s, end_unix_s=now_s + 60)])
    site.topology.adopt(trunk("row", [Node(id=NodeId(name)) for name in "ad"], [(10, 3)]))
    site.maintenance.adopt()
    assert site.maintenance.all() == []
    assert msgspec.json.decode((site.directory / "maintenance.json").read_bytes()) == []
    assert site.maintenance.tick() == frozenset()
