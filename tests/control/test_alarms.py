"""The alarm list: two life cycles, one entry for one state of one resource, bounded, kept over a restart."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrunk.base.errors import RequestRefused
from qtrunk.control import ietf_alarms
from qtrunk.control.alarms import ALARMS_MAX, CHANGES_MAX, KEPT_S, MAINTENANCE, Alarm, AlarmList, OperatorState
from qtrunk.control.threshold import Ladder, Step

LINK = "beijing-langfang"


def raised(list_, now_s=100.0, severity="major", type_="LinkOff", resource=LINK):
    list_.raise_alarm(resource, type_, severity, "text", now_s)
    return next(one for one in list_.all() if (one.resource, one.type) == (resource, type_))


def words(alarm):
    return [change.severity for change in alarm.status_changes]


def test_repeating_an_alarm_changes_nothing_but_its_count_and_text():
    list_ = AlarmList()
    alarm = raised(list_)
    assert list_.raise_alarm(LINK, "LinkOff", "major", "other words", 101.0) is False
    assert (alarm.count, alarm.text, alarm.changed_unix_s) == (2, "other words", 100.0)
    assert words(alarm) == ["major"]


def test_severity_clearing_and_coming_back_are_changes_in_one_entry():
    list_ = AlarmList()
    alarm = raised(list_)
    list_.raise_alarm(LINK, "LinkOff", "critical", "worse", 101.0)
    assert [one.type for one in list_.clear(LINK, "LinkOff", 102.0)] == ["LinkOff"]
    assert list_.clear(LINK, "LinkOff", 103.0) == []
    assert list_.active() == []
    assert list_.raise_alarm(LINK, "LinkOff", "minor", "again", 104.0) is True
    assert words(alarm) == ["major", "critical", "cleared", "minor"]
    assert (alarm.created_unix_s, alarm.raised_unix_s) == (100.0, 104.0)
    assert list_.all() == [alarm]


def test_an_operators_word_survives_clearing_but_a_new_occurrence_is_news():
    list_ = AlarmList()
    alarm = raised(list_)
    list_.act(alarm.id, "ada", OperatorState.ACK, "crew is out", 101.0)
    list_.raise_alarm(LINK, "LinkOff", "critical", "worse", 102.0)
    assert alarm.operator_state is OperatorState.ACK
    list_.clear(LINK, None, 103.0)
    assert alarm.operator_state is OperatorState.ACK
    list_.raise_alarm(LINK, "LinkOff", "major", "again", 104.0)
    assert alarm.operator_state is OperatorState.NONE
    assert [(one.operator, one.state) for one in alarm.operator_changes] == [("ada", "ack"), ("system", "none")]


def test_a_shelf_ends_by_itself_or_by_hand_and_is_no_clearing():
    list_ = AlarmList()
    alarm = raised(list_)
    list_.act(alarm.id, "ada", OperatorState.SHELVED, "known", 101.0, until_s=200.0)
    list_.clear(LINK, None, 110.0)
    list_.raise_alarm(LINK, "LinkOff", "major", "again", 120.0)
    assert alarm.is_shelved
    list_.tick(199.0)
    assert alarm.is_shelved
    list_.tick(200.0)
    assert alarm.operator_state is OperatorState.UNSHELVED
    assert not alarm.is_cleared
    with pytest.raises(RequestRefused, match="not shelved"):
        list_.act(alarm.id, "ada", OperatorState.UNSHELVED, "", 201.0)
    with pytest.raises(RequestRefused, match="until"):
        list_.act(alarm.id, "ada", OperatorState.SHELVED, "", 201.0, until_s=200.0)
    with pytest.raises(RequestRefused, match="no alarm"):
        list_.act("nobody", "ada", OperatorState.ACK, "", 201.0)


def test_maintenance_shelves_what_is_up_and_what_comes_and_gives_it_back():
    list_ = AlarmList()
    first = raised(list_)
    list_.suppress(LINK, 500.0, "splicing", 110.0)
    second = raised(list_, 120.0, type_="QberRising")
    other = raised(list_, 120.0, resource="else")
    assert first.is_shelved
    assert second.is_shelved
    assert not other.is_shelved
    assert list_.is_suppressed(LINK)
    list_.act(second.id, "ada", OperatorState.SHELVED, "mine", 130.0)
    list_.tick(500.0)
    assert first.operator_state is OperatorState.UNSHELVED
    assert first.operator_changes[-1].operator == MAINTENANCE
    assert second.is_shelved
    assert not list_.is_suppressed(LINK)


def test_the_list_is_bounded_and_lets_the_cleared_and_the_mild_go_first():
    list_ = AlarmList()
    for number in range(ALARMS_MAX):
        raised(list_, 100.0 + number, "warning" if number == 7 else "major", resource=f"r{number}")
    list_.clear("r9", None, 9e3)
    raised(list_, 1e4, resource="one more")
    names = {one.resource for one in list_.all()}
    assert len(names) == ALARMS_MAX
    assert "r9" not in names
    raised(list_, 1e4, resource="yet one more")
    assert "r7" not in {one.resource for one in list_.all()}


def test_old_cleared_alarms_leave_the_list_and_histories_are_bounded():
    list_ = AlarmList()
    alarm = raised(list_)
    for number in range(CHANGES_MAX):
        list_.clear(LINK, None, 101.0 + number)
        raised(list_, 101.5 + number)
    assert len(alarm.status_changes) == CHANGES_MAX
    list_.tick(1e9)
    assert list_.all() == [alarm]
    list_.clear(LINK, None, 1e9)
    list_.tick(1e9 + KEPT_S)
    assert list_.all() == [alarm]
    list_.tick(1e9 + KEPT_S + 1)
    assert list_.all() == []
    assert list_.take_changes()[1] == {alarm.id}


def test_after_a_restart_what_nobody_reports_again_is_over_and_acks_are_kept():
    list_ = AlarmList()
    kept, over = raised(list_), raised(list_, type_="QberRising")
    list_.act(kept.id, "ada", OperatorState.ACK, "seen", 101.0)
    octets = [msgspec.json.encode(one) for one in list_.take_changes()[0]]
    again = AlarmList()
    again.load(msgspec.json.decode(one, type=Alarm) for one in octets)
    assert again.raise_alarm(LINK, "LinkOff", "major", "text", 200.0) is False
    again.settle(260.0)
    found = {one.type: one for one in again.all()}
    assert not found["LinkOff"].is_cleared
    assert found["LinkOff"].operator_state is OperatorState.ACK
    assert found["QberRising"].is_cleared
    assert again.find(over.id) is not None


def test_unknown_severities_are_refused():
    for severity in ("cleared", "severe", ""):
        with pytest.raises(ValueError, match=r"sever|clear"):
            AlarmList().raise_alarm(LINK, "LinkOff", severity, "", 1.0)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["raise", "worse", "clear", "ack", "shelve", "back"]))))
def test_no_two_changes_of_an_alarm_have_one_time_and_the_last_one_is_the_state(steps):
    list_ = AlarmList()
    alarm = raised(list_, 0.0)
    now_s = 0.0
    for wait_s, what in steps:
        now_s += wait_s
        match what:
            case "raise" | "worse":
                list_.raise_alarm(LINK, "LinkOff", "major" if what == "raise" else "critical", what, now_s)
            case "clear":
                list_.clear(LINK, None, now_s)
            case "ack":
                list_.act(alarm.id, "ada", OperatorState.ACK, "", now_s)
            case "shelve":
                list_.act(alarm.id, "ada", OperatorState.SHELVED, "", now_s)
            case "back" if alarm.is_shelved:
                list_.act(alarm.id, "ada", OperatorState.UNSHELVED, "", now_s)
    for changes in (alarm.status_changes, alarm.operator_changes):
        times = [change.time_unix_s for change in changes]
        assert times == sorted(set(times))
    last = alarm.status_changes[-1].severity
    assert last == ("cleared" if alarm.is_cleared else alarm.severity)
    # The document has the same, whatever happened.
    whole = ietf_alarms.document(list_.all(), list_.changed_unix_s)["ietf-alarms:alarms"]
    listed, shelved = whole["alarm-list"]["alarm"], whole["shelved-alarms"]["shelved-alarm"]
    assert (len(listed), len(shelved)) == ((0, 1) if alarm.is_shelved else (1, 0))
    entry = (listed or shelved)[0]
    assert entry["status-change"][0]["perceived-severity"] == last
    assert entry["status-change"][0]["alarm-text"] == entry["alarm-text"]
    assert ("shelves-active" in whole["summary"]) == alarm.is_shelved
    if alarm.is_shelved:
        assert entry["operator-state-change"][-1]["state"] == "shelved"


def test_a_ladder_goes_up_and_down_at_different_values_and_not_at_once():
    ladder = Ladder((Step("low", 25, 40, 5, 10), Step("empty", 1, 5)))
    assert ladder.note(20, 0) is None
    assert ladder.note(30, 3) is None
    assert ladder.note(20, 4) is None
    assert ladder.note(20, 9) == "low"
    assert ladder.note(30, 10) == "low"
    assert ladder.note(0, 11) == "empty"
    assert ladder.note(4, 12) == "empty"
    assert ladder.note(6, 13) == "low"
    assert ladder.note(50, 14) == "low"
    assert ladder.note(39, 20) == "low"
    assert ladder.note(50, 21) == "low"
    assert ladder.note(50, 31) is None


@given(st.lists(st.floats(26, 39), min_size=1))
def test_between_the_two_values_a_ladder_never_moves(values):
    for is_set in (False, True):
        ladder = Ladder((Step("low", 25, 40),))
        ladder.note(0 if is_set else 100, 0)
        assert {ladder.note(value, 1 + place) for place, value in enumerate(values)} == {"low" if is_set else None}
