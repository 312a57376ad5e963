"""Fixtures of enrolment and of alarms."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from enrol_kit import Office

from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.ca import service


class ManualClock:
    """Stands still until somebody sets it."""

    now_s = 1e9
    ahead_s = 0.0
    """Of the time of day alone."""

    def unix_s(self):
        return self.now_s + self.ahead_s

    def monotonic_s(self):
        return self.now_s


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def board(clock):
    return AlarmBoard(clock)


@pytest.fixture
def office(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "PAUSE_S_MAX", 0.001)
    made = Office(tmp_path / "ca")
    yield made
    made.close()
