"""What links should show."""

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


def answer(question: bytes) -> bytes:
    """For `plan.search`."""
    return msgspec.json.encode([expectation(link) for link in msgspec.json.decode(question, type=list[Link])])
