"""An asyncio event loop without time and without sockets: where nothing is left to do now, the clock jumps.

The asyncio code of a node runs on it as it is, in one thread and in the same order for the same seed. Connections go to
a `Network` (sim.network.weather); threads of an executor run at once and inline.
"""

import asyncio
import heapq
import itertools
from asyncio import events
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

CANCELLED_MIN = 1000
"""Fewer cancelled timers are not worth the trouble."""


class Network(Protocol):
    """What carries the connections of a loop."""

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Any:
        """As `loop.create_connection`: transport and protocol."""

    def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> "Listener":
        """As `loop.create_server`."""


class Listener(events.AbstractServer):
    """A listening place; `close` it."""

    def __init__(self, close: Callable[[], None], port: int) -> None:
        self._close = close
        self.sockets = (_Socket(port),)

    def close(self) -> None:
        """Listen no more."""
        self._close()

    async def wait_closed(self) -> None:
        """Nothing to wait for."""

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """See asyncio.Server."""
        return asyncio.get_running_loop()

    def is_serving(self) -> bool:
        """See asyncio.Server."""
        return True

    async def start_serving(self) -> None:
        """It does already."""

    async def serve_forever(self) -> None:
        """It does anyhow."""


@dataclass(frozen=True, slots=True)
class _Socket:
    """Tells where a server listens."""

    port: int

    def getsockname(self) -> tuple[str, int]:
        """See socket.socket."""
        return "", self.port


class Stuck(Exception):
    """Nothing will ever happen again, and somebody waits."""


class VirtualLoop(asyncio.BaseEventLoop):
    """See the head of the module. Its turns are its own; handles, tasks and `run_until_complete` BaseEventLoop's."""

    _ready: deque[asyncio.Handle]

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        """A heap. Timers of one moment go off in the order in which they were set."""
        self._cancelled = 0
        """About how many of them were."""
        self.network: Network | None = None
        self._turns = itertools.count()
        self.is_ahead = False
        """Whether what a thread asks of the loop is done before the thread's next step, not behind its last one."""

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """At a virtual time."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._turns), timer))
        return timer

    def _timer_handle_cancelled(self, _timer: asyncio.TimerHandle) -> None:
        """It leaves the heap when its time comes, or with others once they are the most."""
        self._cancelled += 1
        if self._cancelled > CANCELLED_MIN and 2 * self._cancelled > len(self._timers):
            # In place: the turn that is under way holds it.
            self._timers[:] = [timer for timer in self._timers if not timer[2].cancelled()]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s

    def _run_once(self) -> None:
        """One turn: all that is ready; where nothing is, time passes until the next timer."""
        ready, timers = self._ready, self._timers
        if not ready:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise Stuck("every task waits for something that no timer will bring")
            self._now_s = max(self._now_s, timers[0][0])
        while timers and timers[0][0] <= self._now_s:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()  # noqa: SLF001 (as BaseEventLoop does)

    def _write_to_self(self) -> None:
        """Nobody waits in another thread."""

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        """Behind all that the thread does, or ahead of it: in production both happen."""
        if not self.is_ahead:
            return super().call_soon_threadsafe(callback, *args, context=context)
        handle = asyncio.Handle(callback, args, self, context)
        handle._run()  # noqa: SLF001 (as the loop does)
        return handle

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """At once: a thread that nobody races with."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 (as an executor: whoever awaits gets it)
            done.set_exception(error)
        return done

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_how: Any) -> Any:
        """Over the simulated network; it stands for TCP and TLS at once."""
        assert self.network is not None
        return await self.network.connect(protocol_factory, str(host), int(port))

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **_how: Any) -> Any:
        """On the simulated network."""
        assert self.network is not None
        return self.network.listen(protocol_factory, str(host), int(port))
