"""A day in the life of a shipped network, in simulation: `python tools/simulated_day.py two-rings --write`.

See `sim.network.day`. Prints what each tenant saw, what happened when and which alarms there were; `--write` puts that
into docs/day.md. Status 1 where a request failed whose two ends were alive, or a check of the simulation was violated.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from qtrunk.sim.network.checks import Violation
from qtrunk.sim.network.day import SCRIPTS, Day
from qtrunk.sim.soak import same_order

PAGE = Path(__file__).parents[1] / "docs" / "day.md"
BEGIN = "<!-- simulated: begin -->"
HEAD = """
## The same day for `two-rings`, simulated
Written by `tools/simulated_day.py two-rings --write`: fifty-four production nodes and one that comes, in one process under a
virtual clock ([simulation.md](simulation.md)); times are virtual. All checks of the simulation look on at every step: keys
agree and are given once, pads are used once, ledgers add up. It fails if a request fails whose two ends are alive.

There is no light. Somebody on a link makes the keys of its two ends differ, where production gets them from a vendor's KMEs.
Controllers are no part of it but for the routes that nodes have of them: when they are lost, nobody renews those, and nodes go on.
That another controller takes over is in the day above alone. A cell is the requests that were served at both ends, and the
slowest answer.

"""


def main() -> int:
    """Run the day."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topology", choices=sorted(SCRIPTS))
    parser.add_argument("--pause", type=float, default=10.0, help="virtual seconds to look on after each event")
    parser.add_argument("--write", action="store_true", help="docs/day.md")
    options = parser.parse_args()
    same_order()
    day, began_s = Day(SCRIPTS[options.topology], options.pause), time.process_time()
    try:
        day.run()
    except Violation as violation:
        print("\n".join([*day.trial.last_words, f"FAILED: {violation}"]), file=sys.stderr)
        return 1
    took_s, virtual_s = time.process_time() - began_s, day.trial.loop.time()
    print(day.diary.report())
    print(
        f"{virtual_s:.0f} virtual seconds in {took_s:.0f} s of processor time (load {os.getloadavg()[0]:.0f} on "
        f"{os.cpu_count()} cores); {day.trial.weather.frames} frames, {day.trial.counts['collected']} keys at both ends"
    )
    wrong = day.diary.wrong()
    for text in wrong[:20]:
        print(f"FAILED: {text}", file=sys.stderr)
    if options.write and not wrong:
        PAGE.write_text(
            PAGE.read_text(encoding="utf-8").partition(BEGIN)[0] + BEGIN + HEAD + day.diary.report(), encoding="utf-8"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
