"""Notifications as server-sent events (RFC 8040 clause 6): one hub, many listeners, none holds up another."""

import asyncio
from collections.abc import AsyncIterator

BACKLOG_MAX = 1000
"""A listener that is so far behind is let go: it must read the state anew anyway."""
KEEP_ALIVE_S = 15.0
LISTENERS_MAX = 64


class EventHub:
    """Hands every event to every listener. For one event loop."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[bytes | None]] = set()

    @property
    def has_room(self) -> bool:
        """Whether one more may listen."""
        return len(self._queues) < LISTENERS_MAX

    def publish(self, document: bytes) -> None:
        """One event: a JSON document."""
        for queue in list(self._queues):
            if queue.qsize() >= BACKLOG_MAX:
                self._queues.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(document)

    def close(self) -> None:
        """End every stream."""
        for queue in self._queues:
            queue.put_nowait(None)
        self._queues.clear()

    def listen(self) -> AsyncIterator[bytes]:
        """Events from now on, ready to be sent, and a comment now and then, which tells a dead connection."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        # Before the first part is asked for: what happens from the answer on must be in the stream.
        self._queues.add(queue)
        return _Listening(self._queues, queue)


class _Listening(AsyncIterator[bytes]):
    """One listener's events. Forgotten by the hub when it is."""

    def __init__(self, queues: set[asyncio.Queue[bytes | None]], queue: asyncio.Queue[bytes | None]) -> None:
        self._queues = queues
        self._queue = queue
        self._is_first = True

    async def __anext__(self) -> bytes:
        if self._is_first:
            self._is_first = False
            return b": listening\n\n"
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                document = await self._queue.get()
        except TimeoutError:
            return b": still here\n\n"
        if document is None:
            raise StopAsyncIteration
        return b"data: " + document + b"\n\n"

    async def aclose(self) -> None:
        """The listener has gone."""
        self._queues.discard(self._queue)
