"""Searches that a node leaves to a process of its own: `python -m qtrunk.plan.search NAME PARENT`, JSON in and out.

| name | question | answer |
| --- | --- | --- |
| `follow` | `plan.light.Question` | `plan.light.Answer`: the best settings for a link's next blocks |
| `expect` | list of `topology.Link` | list of `plan.light.Expectation`: what these links should show |

Each takes tenths of a second to seconds of work, and the model of the simulated light, which a node has no business to.
The process ends with the node that asks, gives way to everything else, and is the only one of this machine at a time,
also while it loads its code: a lab of fifty links would otherwise search for all of them at once.
"""

import fcntl
import importlib
import os
import sys
from pathlib import Path

from qtrunk.base.parent import die_with_parent

SEARCHES = {"follow": "qtrunk.plan.follow", "expect": "qtrunk.plan.expect"}
"""Each module has a function `answer` from JSON to JSON."""


def main() -> None:
    """A question on standard input, its answer on standard output."""
    name, parent = sys.argv[1:]
    die_with_parent(int(parent))
    os.nice(19)
    question = sys.stdin.buffer.read()
    with Path(__file__).open("rb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        answer: bytes = importlib.import_module(SEARCHES[name]).answer(question)
    sys.stdout.buffer.write(answer)


if __name__ == "__main__":
    main()
