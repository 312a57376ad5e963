"""When the parts of a node look again: soon while something happens in it, seldom while nothing does.

Whoever watches something waits for its next turn here. Whoever makes something happen says so (`stir`): a connection
that comes or goes, a block of key, a message of the relay, keys that are given out, a command. Everybody looks at once
then, and at the quick period for a while; after that, and until the next stir, at the slow one. So a node at rest costs
nearly nothing, and one at work does what it always did.
"""

import asyncio

from qtrunk.base.ports import Clock

LASTING_S = 1.0
"""So long after a stir the quick period holds, unless a watcher wants it longer."""


class Pace:
    """Of one node; for its event loop. Without a clock it is always quick."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock
        self._stirred_s = float("inf") if clock is None else clock.monotonic_s()
        self._waiting: dict[asyncio.Future[None], None] = {}

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

    async def turn(self, quick_s: float, slow_s: float, lasting_s: float = LASTING_S, *, is_busy: bool = False) -> None:
        """Wait for the next turn: after `quick_s` where something happened lately or the watcher `is_busy`; else with
        the next stir, at the latest after `slow_s`.
        """
        if is_busy or self.is_quick(lasting_s):
            await asyncio.sleep(quick_s)
            return
        loop = asyncio.get_running_loop()
        stirred: asyncio.Future[None] = loop.create_future()
        self._waiting[stirred] = None
        timer = loop.call_later(slow_s, _wake, stirred)
        try:
            await stirred
        finally:
            timer.cancel()
            self._waiting.pop(stirred, None)


def _wake(one: "asyncio.Future[None]") -> None:
    if not one.done():
        one.set_result(None)
