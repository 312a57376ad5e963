"""Group commit: many requests wait for one flush of the consume journal, the next ones for the next flush.

A flush runs in a thread of its own, so the event loop goes on; while it runs, what comes in meanwhile is gathered. When
one fails, all that waits fails with it, and their keys are written down as lost: nobody was given them.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from qtrunk.base.errors import StoreError
from qtrunk.kms.pools import Pools
from qtrunk.node.world import ThreadWorker, Worker


class GroupCommit:
    """For one event loop."""

    def __init__(self, pools: Pools, worker: Worker | None = None) -> None:
        self._pools = pools
        self._worker = worker or ThreadWorker("consume")
        self._before = 0
        self._flushing: list[asyncio.Future[None]] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._is_flushing = False
        self.is_handed: Callable[[], bool] = lambda: True
        """Whether the answers that were given to the server so far have left it."""

    def durable(self) -> "asyncio.Future[None] | None":
        """None when all that was written down is on the disk; else a future for that, which may end with StoreError.

        Each caller's is its own: one that is cancelled ends nobody else's wait.
        """
        if self._pools.durable >= self._pools.written:
            return None
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        if not self._is_flushing:
            self._flush()
        return mine

    async def close(self) -> None:
        """Wait for what is under way."""
        while self._is_flushing:
            await asyncio.sleep(0.001)
        self._worker.close()

    def _flush(self) -> None:
        self._flushing, self._waiting = self._waiting, []
        self._is_flushing = True
        self._before = self._pools.durable
        self._worker.do(partial(self._flush_once, asyncio.get_running_loop()))

    def _flush_once(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the worker."""
        error: StoreError | None = None
        try:
            self._pools.flush()
        except StoreError as refused:
            error = refused
        except Exception as unforeseen:  # noqa: BLE001 (whatever it is: nothing may leave, and nobody wait for ever)
            error = StoreError(f"consume journal: {type(unforeseen).__name__}; no key goes out")
        loop.call_soon_threadsafe(self._flushed, error)

    def _flushed(self, error: StoreError | None) -> None:
        self._is_flushing = False
        if error is None:
            # The answers of the flush before this one have been handed to the network meanwhile.
            if self.is_handed():
                self._pools.note_answered(self._before)
            for one in self._flushing:
                if not one.done():
                    one.set_result(None)
        else:
            self._pools.give_up(self._pools.durable, self._pools.written)
            gathered, self._waiting = self._waiting, []
            for one in [*self._flushing, *gathered]:
                if not one.done():
                    one.set_exception(error)
        self._flushing = []
        if self._waiting:
            self._flush()
