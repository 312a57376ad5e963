"""Fixtures of the lab tests, and which of them one worker runs; the lab itself is in lab_kit.

Labs wait more than they compute: two workers may run labs of their own side by side (`-n 2 --dist loadfile`).
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

sys.path.insert(0, str(Path(__file__).parent))

SHARING = ("tests/lab/shared/", "tests/lab/test_lab_controller.py", "tests/lab/test_lab_protection.py")
"""Tests below each of these share one lab; every other test has its own."""


class ByLab(LoadFileScheduling):
    """Tests that share a lab go to one worker, in their order."""

    def _split_scope(self, nodeid: str) -> str:
        return next((shared for shared in SHARING if nodeid.startswith(shared)), nodeid)

    def _reschedule(self, node: WorkerController) -> None:
        # No more ahead of a worker than the test that must be known when one ends: whoever is free takes the next.
        if not self.workqueue or self._pending_of(self.assigned_work[node]) <= 1:
            super()._reschedule(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByLab:
    """See xdist."""
    return ByLab(config, log)


@pytest.fixture(scope="session")
def short_directory() -> Iterator[Path]:
    """Unix sockets need short paths."""
    with tempfile.TemporaryDirectory(prefix="qt") as directory:
        yield Path(directory)
