"""How a lab's status looks: what seems to have happened to a link, and which end says so."""

from qtrunk.cli.labclient import _diagnosis
from qtrunk.cli.show import diagnosis_lines


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
