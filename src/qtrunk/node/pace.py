"""When the parts of a node look again: soon while something happens in it, seldom while nothing does.

Whoever watches something waits for its next turn here. Whoever makes something happen says so (`stir`): a connection
that comes or goes, a block of key, a message of the relay, keys that are given out, a command, an alarm. Then all look
at once, and at the quick period for a while; after that, until the next stir, at the slow one, and the longer nothing
happens the more seldom: after a time that is a share of the calm so far. So what an event brings about later is found
in proportion to how long it takes, a node at rest costs nearly nothing, and one at work does what it always did. While
something is wrong at the node (`is_uneasy`) nobody gets more seldom than the slow period.
"""

import asyncio
from collections.abc import Callable

from qtrunk.base.ports import Clock

LASTING_S = 1.0
"""So long after a stir the quick period holds, unless a watcher wants it longer."""
SHARE = 0.5
REST_MAX_S = 300.0
"""Nobody rests longer, unless its slow period is longer."""


class Pace:
    """Of one node; for its event loop. Without a clock it is always quick."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock
        self._stirred_s = float("inf") if clock is None else clock.monotonic_s()
        self._waiting: dict[asyncio.Future[None], None] = {}
        self.is_uneasy: Callable[[], bool] = lambda: False
        """Whether time alone may have to set something right here."""

    def stir(self) -> None:
        """Something has happened in this moment."""
        if self._clock is not None:
            self._stirred_s = self._clock.monotonic_s()
        waiting, self._waiting = self._waiting, {}
        for one in waiting:
            if not one.done():
                one.set_result(None)

    def is_quick(self, lasting_s: float = LASTING_S) -> bool:
        """Whether something happened so lately."""
        return self._clock is None or self._clock.monotonic_s() - self._stirred_s <= lasting_s

    async def turn(
        self,
        quick_s: float,
        slow_s: float,
        lasting_s: float = LASTING_S,
        *,
        is_busy: bool = False,
        at_most_s: float = float("inf"),
    ) -> None:
        """Wait for the next turn: after `quick_s` where something happened lately or the watcher `is_busy`; else with
        the next stir, at the latest after `slow_s`, or a while that grows with the calm, or `at_most_s`.
        """
        if is_busy or self.is_quick(lasting_s):
            await asyncio.sleep(quick_s)
            return
        loop = asyncio.get_running_loop()
        stirred: asyncio.Future[None] = loop.create_future()
        self._waiting[stirred] = None
        timer = loop.call_later(min(at_most_s, self._slow_s(slow_s)), _wake, stirred)
        try:
            await stirred
        finally:
            timer.cancel()
            self._waiting.pop(stirred, None)

    def _slow_s(self, slow_s: float) -> float:
        if self._clock is None or self.is_uneasy():
            return slow_s
        return max(slow_s, min(REST_MAX_S, SHARE * (self._clock.monotonic_s() - self._stirred_s)))


def _wake(one: "asyncio.Future[None]") -> None:
    if not one.done():
        one.set_result(None)
