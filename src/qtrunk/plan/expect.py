"""What links should show: `python -m qtrunk.plan.expect` reads a JSON list of links and writes one of expectations.

A process of its own, as `plan.follow` is and for the same reasons: some tenths of a second of work for each link, and
the model of the simulated light, which a node has no business to. It runs at the lowest priority: nobody waits for it.
"""

import os
import sys

import msgspec

from qtrunk.plan.light import Expectation
from qtrunk.plan.rate import PlannedLink, planned
from qtrunk.quantum.analytic import expected
from qtrunk.topology import Link


def expectation(link: Link) -> Expectation:
    """Of one link; a fibre that is simulated at a part of the clock has shorter blocks."""
    equipment = link.equipment
    made = PlannedLink(
        km=link.length_km,
        loss_db=link.loss_db,
        equipment=equipment,
        block_s=equipment.block_s * equipment.clock_fraction,
    )
    seen = expected(made.optics(made.choice))
    return Expectation(
        gain=seen.gains[0],
        clicks=seen.click_hz / equipment.clock_hz,
        qber=seen.qber[1],
        secret_bps=planned(made).net_bps * equipment.clock_fraction,
    )


def main() -> None:
    """Standard input to standard output."""
    os.nice(19)
    links = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Link])
    sys.stdout.buffer.write(msgspec.json.encode([expectation(link) for link in links]))


if __name__ == "__main__":
    main()
