"""What the figures of a link say about its health, as alarms that do not flap: dark fibre, rising errors, a rate under
plan. The plan is that of `qtrunk rate` for the link's loss and equipment; a vendor's link has none.

| alarm | up | down |
| --- | --- | --- |
| QuantumChannelLoss | a slice, or a block, with under DARK of the expected clicks | one with over LIT |
| QberAboveAbort | the last block died of its error rate | a good block |
| QberRising | mean of the last BLOCKS blocks that became key over 1.5 x plan + 0.5 % | under 1.25 x plan + 0.3 % |
| SkrBelowPlan | for a minute under half of the plan | for half a minute over 70 % |

Their texts end with what the end makes of its last block (`node.linkdiagnosis`), where it makes anything of it.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from qtrunk.control.threshold import Ladder, Step
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.linkdiagnosis import DARK, LIT, likely
from qtrunk.node.linkstate import LinkStatistics
from qtrunk.node.search import SearchFailed, search
from qtrunk.plan.light import Expectation
from qtrunk.stages import Role
from qtrunk.topology import Link

log = logging.getLogger(__name__)

BLOCKS = 8
BEGIN_S = 120.0
"""Before the first key, a rate is not missed for so long."""


async def expectations(links: Sequence[Link]) -> list[Expectation] | None:
    """What links should show, by a process of its own; None, and a line in the log, where that fails."""
    try:
        return msgspec.json.decode(await search("expect", msgspec.json.encode(links)), type=list[Expectation])
    except (SearchFailed, msgspec.MsgspecError) as error:
        log.warning("what the links should show is not known: %s", error)
        return None


@dataclass(slots=True)
class LinkWatch:
    """One link end's."""

    statistics: LinkStatistics
    board: AlarmBoard
    begun_s: float
    plan: Expectation | None = None
    _light: Ladder = field(default_factory=lambda: Ladder((Step("QuantumChannelLoss", DARK, LIT),)))
    _rate: Ladder = field(default_factory=lambda: Ladder((Step("SkrBelowPlan", 0.5, 0.7, 60.0, 30.0),)))
    _errors: Ladder | None = None
    _qber: deque[float] = field(default_factory=lambda: deque(maxlen=BLOCKS))
    _seen: tuple[object, object] = (None, None)
    """Number of the last block that was looked at: its light, its errors."""

    @property
    def is_pending(self) -> bool:
        """Whether time alone may bring an alarm about, or end one."""
        return self._rate.is_pending

    def look(self, now_s: float, *, is_full: bool) -> None:
        """About once a second; `is_full`: the pool is so full that no key is made."""
        link = self.statistics.link.id
        end = self.statistics.last_end
        is_abort = end.startswith("qber:")
        self._say(is_abort, link, "QberAboveAbort", f"no key of the last block: {end}")
        if self.plan is not None:
            self._look_at_light(link, self.plan, now_s)
            self._look_at_errors(link, self.plan, now_s)
            self._look_at_rate(link, self.plan, now_s, is_full=is_full)

    def _say(self, is_up: bool, link: str, type_: str, text: str) -> None:
        self.board.set_alarm(is_up, link, type_, text + likely(self.statistics.verdict))

    def _look_at_light(self, link: str, plan: Expectation, now_s: float) -> None:
        seen = self.statistics.light()
        if seen is None or seen[0] == self._seen[0]:
            return
        share = seen[1] / (plan.gain if self.statistics.role is Role.ALICE else plan.clicks)
        self._seen = (seen[0], self._seen[1])
        text = f"block {seen[0]} had {share:.1%} of the expected clicks: is there light on the fibre?"
        is_dark = self._light.note(share, now_s) is not None
        self._say(is_dark, link, "QuantumChannelLoss", text)

    def _look_at_errors(self, link: str, plan: Expectation, now_s: float) -> None:
        block, qber = self.statistics.errors()
        if qber is None or block == self._seen[1]:
            return
        self._seen = (self._seen[0], block)
        self._qber.append(qber)
        if self._errors is None:
            high, low = 1.5 * plan.qber + 0.005, 1.25 * plan.qber + 0.003
            self._errors = Ladder((Step("QberRising", -high, -low),))
        if len(self._qber) == BLOCKS:
            mean = sum(self._qber) / BLOCKS
            is_high = self._errors.note(-mean, now_s) is not None
            text = f"QBER {mean:.2%} over the last {BLOCKS} blocks that became key; the plan says {plan.qber:.2%}"
            self._say(is_high, link, "QberRising", text)

    def _look_at_rate(self, link: str, plan: Expectation, now_s: float, *, is_full: bool) -> None:
        has_begun = self.statistics.released > 0 or now_s - self.begun_s > BEGIN_S
        if is_full or not has_begun or plan.secret_bps <= 0:
            return
        rate = self.statistics.rates_bps()[1]
        is_low = self._rate.note(rate / plan.secret_bps, now_s) is not None
        text = f"{rate:.0f} bit/s of secret key; the plan says {plan.secret_bps:.0f} bit/s"
        self._say(is_low, link, "SkrBelowPlan", text)
