"""Every alarm that the code raises is in the catalogue, everything in the catalogue is raised, and the page has it."""

import ast
from pathlib import Path

from qtrunk.control.alarms import Severity
from qtrunk.control.catalogue import CATALOGUE

ROOT = Path(__file__).parents[2]
SOURCES = [path for path in (ROOT / "src" / "qtrunk").rglob("*.py") if path.name != "catalogue.py"]
CALLS = {"raise_alarm": 1, "set_alarm": 2, "_set_alarm": 1, "_alarm": 1, "Report": 1, "Seen": 2}
"""Functions that take the type of an alarm, and where."""


def constants(tree):
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isalnum()
    }


def test_what_is_raised_is_in_the_catalogue():
    raised = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = CALLS.get(name)
            if place is not None and len(node.args) > place and isinstance(node.args[place], ast.Constant):
                raised.add(node.args[place].value)
    assert len(raised) > 20
    assert {type_ for type_ in raised if isinstance(type_, str)} <= CATALOGUE.keys()


def test_what_is_in_the_catalogue_is_named_somewhere_in_the_code():
    named = set().union(*(constants(ast.parse(path.read_text())) for path in SOURCES))
    assert CATALOGUE.keys() <= named


def test_rows_are_whole():
    for type_, row in CATALOGUE.items():
        assert row.type == type_
        assert Severity.of(row.severity) > Severity.INDETERMINATE
        assert row.on in ("link", "pool", "node", "own")
        assert row.meaning
        assert row.remedy


def test_the_documentation_has_the_catalogue_as_it_is():
    page = (ROOT / "docs" / "alarms.md").read_text()
    begin = page.index("## Catalogue")
    end = page.find("\n## ", begin + 1)
    found = [line for line in page[begin : end if end > 0 else None].splitlines() if line.startswith("| `")]
    assert found == [
        f"| `{row.type}` | {row.severity} | {row.on} | {row.probable_cause} | {row.meaning} | {row.remedy} |"
        for row in CATALOGUE.values()
    ]
