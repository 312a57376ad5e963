"""How a lab's status looks: at which clock light runs, what seems to have happened to a link, which end says so."""

import pytest

from qtrunk.cli.labclient import _diagnosis
from qtrunk.cli.show import alarm_lines, clock, diagnosis_lines


def hypothesis(kind: str, weight: float) -> dict[str, object]:
    return {"kind": kind, "weight": weight, "reason": f"because of {kind}"}


def test_both_ends_are_heard_the_likeliest_first_and_each_kind_once():
    ends = {
        "alice": {"diagnosis": [hypothesis("bend", 0.45), hypothesis("transmitter-power", 0.2)]},
        "bob": {"diagnosis": [hypothesis("weak-detector", 0.9), hypothesis("bend", 0.4)]},
    }
    found = _diagnosis(ends)
    assert [(each["kind"], each["by"]) for each in found] == [
        ("weak-detector", "bob"),
        ("bend", "alice"),
        ("transmitter-power", "alice"),
    ]
    assert _diagnosis({"alice": None, "bob": {}}) == []


def test_a_line_says_what_why_and_who():
    links = [
        {"link": "a-b", "diagnosis": [{**hypothesis("cut", 0.9), "by": "bob"}]},
        {"link": "b-c", "diagnosis": []},
        {"link": "c-d"},
    ]
    assert [line.plain for line in diagnosis_lines({"links": links})] == [
        "a-b: likely cut (because of cut), says its bob"
    ]


@pytest.mark.parametrize(
    ("fraction", "factor", "said"),
    [(1.0, 1.0, "100 %"), (0.1, 0.999, "10 %"), (0.1, 0.8, "8 of 10 %"), (1.0, 0.5, "50 of 100 %"), (0.1, 0.0, "–")],
)
def test_the_clock_is_that_of_the_real_link(fraction, factor, said):
    assert clock({"clock_fraction": fraction, "real_time_factor": factor}) == said


def test_the_worst_alarm_comes_first_and_what_a_node_says_of_itself_has_its_name():
    def alarm(resource: str, type_: str, severity: str) -> dict[str, object]:
        return {"resource": resource, "type": type_, "severity": severity, "text": "text"}

    cut, clock_off = alarm("a-b", "LinkOff", "major"), alarm("clock", "ClockOffset", "minor")
    nodes = [
        {"node": "a", "error": "", "alarms": {"active": [clock_off, cut]}},
        {"node": "b", "error": "", "alarms": {"active": [clock_off, cut, alarm("vault", "NodeSealed", "critical")]}},
    ]
    assert [line.plain for line in alarm_lines({"links": [{"link": "a-b"}], "nodes": nodes})] == [
        "ALARM b/vault NodeSealed: critical: text",
        "ALARM a-b LinkOff: major: text",
        "ALARM a/clock ClockOffset: minor: text",
        "ALARM b/clock ClockOffset: minor: text",
    ]
