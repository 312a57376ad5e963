"""The scripted day of the shipped rings in simulation: no request between living ends fails, every check holds."""

import subprocess
import sys
from pathlib import Path

import pytest

from qtrunk.sim.network.day import SCRIPTS

TOOL = Path(__file__).parents[2] / "tools" / "simulated_day.py"
PARTS = ("night", "growth", "cut", "attack", "node loss", "controller loss", "maintenance", "recovery")


@pytest.mark.parametrize("topology", sorted(SCRIPTS))
def test_a_day_of_growth_faults_and_maintenance(topology):
    # A process of its own: it fixes the order of sets, so that this is the same day every time.
    command = [sys.executable, str(TOOL), topology, "--pause", "2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    script, report = SCRIPTS[topology], done.stdout
    assert "| tenant | " + " | ".join(PARTS) + " |" in report
    assert f"| `LinkOff` | {script.attacked} |" in report, "the attack was seen"
    assert f"| `ClassicalChannelLoss` | {script.cut} |" in report, "the cut was seen"
    assert f"| `UnderMaintenance` | maintenance {script.drained} |" in report
    rows = [line.split(" | ") for line in report.splitlines() if " to " in line.split(" | ")[0]]
    assert len(rows) == len(script.pairs)
    for row in rows:
        assert sum(int(cell.split(",")[0]) for cell in row[1:]) > 20, f"served: {row}"
