"""The board: threads, the file, what operators say over the administration interface."""

import asyncio
import sqlite3
import threading

import msgspec
import pytest

from qtrunk.api.alarms import alarms_handlers
from qtrunk.api.https import Request
from qtrunk.api.roles import Operator, OperatorRole
from qtrunk.base.errors import RequestRefused, StoreError
from qtrunk.control.alarms import OperatorState, alarm_id
from qtrunk.kms.audit import AuditLog, records
from qtrunk.node.alarms import SETTLE_S, AlarmBoard, AlarmFile

ID = alarm_id("a-b", "LinkOff")


def test_what_comes_up_is_told_once(clock):
    board, told = AlarmBoard(clock), []
    board.on_raised = lambda: told.append(len(board.active()))
    board.raise_alarm("a-b", "LinkOff", "major", "dark")
    board.raise_alarm("a-b", "LinkOff", "major", "darker")
    board.raise_alarm("a-b", "LinkOff", "critical", "worse")
    assert told == [1]
    assert board.has_active()
    board.clear("a-b")
    assert not board.has_active()
    board.raise_alarm("a-b", "LinkOff", "major", "again")
    assert told == [1, 1]


def test_acks_and_shelves_survive_a_restart_and_what_is_over_is_cleared(clock, tmp_path):
    path = tmp_path / "alarms.db"
    board = AlarmBoard(clock, path)
    for type_ in ("LinkOff", "QberRising", "SkrBelowPlan"):
        board.raise_alarm("a-b", type_, "major", "text")
    board.act(ID, "ada", OperatorState.ACK, "crew is out")
    board.act(alarm_id("a-b", "QberRising"), "ada", OperatorState.SHELVED, "known", clock.now_s + 3600)
    board.flush()
    # A kill: nothing is closed.
    again = AlarmBoard(clock, path)
    assert again.raise_alarm("a-b", "LinkOff", "major", "text") is False
    clock.now_s += SETTLE_S
    again.flush()
    found = {alarm.type: alarm for alarm in again.all()}
    assert found["LinkOff"].operator_state is OperatorState.ACK
    assert found["QberRising"].is_shelved
    assert [alarm.type for alarm in again.active()] == ["LinkOff"]
    assert found["SkrBelowPlan"].text.endswith("[not seen since the restart]")
    again.close()
    assert [alarm.type for alarm in AlarmBoard(clock, path).active()] == ["LinkOff"]


def test_a_disk_that_takes_nothing_stops_no_alarm_and_refuses_an_operators_word(clock, tmp_path, monkeypatch):
    board = AlarmBoard(clock, tmp_path / "alarms.db")
    board.raise_alarm("a-b", "LinkOff", "major", "text")
    works = AlarmFile.put

    def full(self, changed, gone):
        raise StoreError("disk full")

    monkeypatch.setattr(AlarmFile, "put", full)
    board.flush()
    assert {alarm.type for alarm in board.active()} == {"LinkOff", "AlarmsNotKept"}
    with pytest.raises(StoreError, match="disk full"):
        board.act(ID, "ada", OperatorState.ACK, "seen")
    assert board.of("a-b")[0].operator_state is OperatorState.NONE
    monkeypatch.setattr(AlarmFile, "put", works)
    board.flush()
    assert [alarm.type for alarm in board.active()] == ["LinkOff"]
    board.close()
    # What could not be written then was written later.
    assert [alarm.type for alarm in AlarmBoard(clock, tmp_path / "alarms.db").active()] == ["LinkOff"]


def test_a_damaged_row_costs_that_row_and_a_damaged_file_no_start(clock, tmp_path):
    path = tmp_path / "alarms.db"
    board = AlarmBoard(clock, path)
    board.raise_alarm("a-b", "LinkOff", "major", "text")
    board.raise_alarm("a-b", "QberRising", "major", "text")
    board.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE alarms SET alarm = x'7b' WHERE id = ?", (ID,))
    assert [alarm.type for alarm in AlarmBoard(clock, path).active()] == ["QberRising"]
    other = tmp_path / "other.db"
    other.write_bytes(b"nonsense " * 1000)
    board = AlarmBoard(clock, other)
    assert [alarm.type for alarm in board.active()] == ["AlarmsNotKept"]
    board.flush()
    assert [alarm.type for alarm in board.active()] == ["AlarmsNotKept"]


def test_many_threads_lose_no_report(clock):
    board = AlarmBoard(clock)

    def work():
        for _ in range(500):
            board.raise_alarm("a-b", "LinkOff", "major", "text")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert board.of("a-b")[0].count == 2000


def test_status_shows_what_is_up_shelved_and_over(clock):
    board = AlarmBoard(clock)
    for type_ in ("LinkOff", "QberRising", "SkrBelowPlan"):
        board.raise_alarm("a-b", type_, "major", "text")
    board.clear("a-b", "SkrBelowPlan")
    board.suppress("c-*", clock.now_s + 60, "works")
    board.raise_alarm("c-d", "LinkOff", "major", "text")
    shown = board.as_json()
    assert {name: [one["type"] for one in entries] for name, entries in shown.items()} == {
        "active": ["LinkOff", "QberRising"],
        "shelved": ["LinkOff"],
        "history": ["SkrBelowPlan"],
    }
    board.resume("c-*")
    assert [one["resource"] for one in board.as_json()["active"]] == ["a-b", "a-b", "c-d"]


@pytest.fixture
def desk(clock, tmp_path):
    board = AlarmBoard(clock, tmp_path / "alarms.db")
    board.raise_alarm("a-b", "LinkOff", "major", "text")
    audit = AuditLog(tmp_path / "audit", clock)
    handlers = alarms_handlers(board, audit, "a")
    ada = Operator("ada", "", frozenset({OperatorRole.OPERATOR}))

    def ask(method, path, body=b"", who=ada):
        request = Request(method, ("admin", "v1", *path.split("/")), {}, body, None)
        answer = asyncio.run(handlers[path.split("/")[0]](request, who))
        return answer.status, msgspec.json.decode(answer.body)

    ask.board, ask.log = board, tmp_path / "audit"
    return ask


def test_a_word_is_audited_and_kept(desk):
    status, alarm = desk("POST", f"alarms/{ID}/ack", b'{"text": "crew is out"}')
    assert (status, alarm["operator_state"], alarm["operator"], alarm["comment"]) == (200, "ack", "ada", "crew is out")
    said = [(one.who, one.what, one.outcome, one.details.get("alarm")) for one in records(desk.log)]
    assert said == [("operator ada", "ack alarm", "begun", ID), ("operator ada", "ack alarm", "done", None)]
    _, whole = desk("GET", f"alarms/{ID}")
    assert [one["state"] for one in whole["operator_changes"]] == ["ack"]
    assert [one["id"] for one in desk("GET", "alarms")[1]] == [ID]
    listed = desk("GET", "ietf-alarms")[1]["ietf-alarms:alarms"]["alarm-list"]["alarm"]
    assert listed[0]["operator-state-change"][0]["operator"] == "ada"
    assert listed[0]["alarm-type-id"] == "qtrunk-alarms:LinkOff"


def test_a_controller_says_whose_word_it_passes_on(desk):
    controller = Operator("control-1", "", frozenset({OperatorRole.CONTROLLER, OperatorRole.VIEWER}))
    for body in (b'{"text": "t"}', b'{"text": "t", "operator": ""}', b'{"text": "t", "operator": "a\\nb"}'):
        with pytest.raises(RequestRefused, match="operator"):
            desk("POST", f"alarms/{ID}/ack", body, controller)
    status, alarm = desk("POST", f"alarms/{ID}/ack", b'{"text": "t", "operator": "ben"}', controller)
    assert (status, alarm["operator"]) == (200, "ben")
    assert {one.who for one in records(desk.log)} == {"operator ben by controller control-1"}
    with pytest.raises(RequestRefused, match="for controllers alone"):
        desk("POST", f"alarms/{ID}/close", b'{"text": "t", "operator": "ben"}')


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("ack", b"", "body"),
        ("ack", b'{"text": 1}', "body"),
        ("ack", b'{"text": "x", "until": 2e9}', "until"),
        ("shelve", b'{"text": "x", "until": 1}', "until"),
        ("unshelve", b'{"text": "x"}', "not shelved"),
    ],
)
def test_words_that_make_no_sense_are_refused(desk, path, body, field):
    with pytest.raises(RequestRefused, match=field):
        desk("POST", f"alarms/{ID}/{path}", body)
    assert desk.board.of("a-b")[0].operator_state is OperatorState.NONE


def test_what_is_not_there_is_not_found(desk):
    assert desk("GET", "alarms/0123456789ab")[0] == 404
    assert desk("POST", f"alarms/{ID}/praise", b'{"text": "x"}')[0] == 404
    with pytest.raises(RequestRefused, match="no alarm"):
        desk("POST", "alarms/0123456789ab/ack", b'{"text": "x"}')
