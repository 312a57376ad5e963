"""Fixtures of enrolment."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from enrol_kit import Office

from qtrunk.node.ca import service


@pytest.fixture
def office(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "PAUSE_S_MAX", 0.001)
    made = Office(tmp_path / "ca")
    yield made
    made.close()
