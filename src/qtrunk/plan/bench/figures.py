"""What a figure is, and how it is measured: CPU time of one pinned core, the median of several runs."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qtrunk.base.errors import LabError

RIVALS = Path(__file__).parents[4] / "bench" / "rivals"
"""The rivals' scripts, in a checkout."""
TOOLS = Path(__file__).parents[4] / "tools"
ENVIRONMENTS = Path(__file__).parents[4] / "build" / "rivals"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure."""

    name: str
    value: float
    """The median."""
    unit: str
    goal: float | None = None
    """Reached where the value is at least that; for a figure of memory, at most."""
    samples: tuple[float, ...] = ()
    rival: str = ""
    rival_value: float | None = None
    note: str = ""
    is_less_better: bool = False

    @property
    def ratio(self) -> float | None:
        """Ours over the rival's."""
        return self.value / self.rival_value if self.rival_value else None

    @property
    def is_reached(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.is_less_better else self.value >= self.goal


Maker = Callable[[int, bool], list[Figure]]
"""(runs, whether to run rivals) -> figures."""


@contextmanager
def pinned() -> Iterator[None]:
    """This thread on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def rates(work: Callable[[], float], runs: int) -> tuple[float, ...]:
    """What `work` says it did, per second of CPU time, in each of so many runs after one that does not count."""
    found = []
    with pinned():
        for _ in range(runs + 1):
            began_s = time.process_time()
            done = work()
            found.append(done / (time.process_time() - began_s))
    return tuple(found[1:])


def median(samples: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(samples)


def environment(name: str, packages: Sequence[str], without_dependencies: Sequence[str] = ()) -> Path:
    """The interpreter of a virtual environment that holds a rival, made once; LabError where it cannot be."""
    place = ENVIRONMENTS / name
    python = place / "bin" / "python"
    done = place / "ready"
    if not done.exists():
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        steps = [[sys.executable, "-m", "venv", str(place)]]
        steps += [[*pip, "--no-deps", *without_dependencies]] if without_dependencies else []
        steps += [[*pip, *packages]] if packages else []
        for step in steps:
            made = subprocess.run(step, capture_output=True, text=True, check=False)
            if made.returncode:
                raise LabError(f"rival {name}: {' '.join(step)} failed: {made.stderr.strip()[-300:]}")
        done.touch()
    return python


def rival(python: Path, script: str, *arguments: str) -> dict[str, float]:
    """What a rival's script prints; LabError where it fails."""
    command = [str(python), str(RIVALS / script), *arguments]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise LabError(f"rival {script}: {made.stderr.strip()[-300:]}")
    found: dict[str, float] = json.loads(made.stdout.strip().splitlines()[-1])
    return found
