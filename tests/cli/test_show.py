"""How a lab's status looks: at which clock light runs, what seems to have happened to a link, which end says so."""

import pytest

from qtrunk.cli.labclient import _diagnosis
from qtrunk.cli.show import clock, diagnosis_lines


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
