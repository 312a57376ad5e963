"""An asyncio event loop without time and without sockets: where nothing is left to do now, the clock jumps.

The asyncio code of a node runs on it as it is, in one thread and in the same order for the same seed. Connections go to
a `Network` (sim.network.weather); threads of an executor run at once and inline.
"""

import asyncio
import heapq
import itertools
from asyncio import events
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


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


class _NoSelector:
    """Where a real loop waits for sockets, this one lets time pass."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[object]:
        """Until the next timer."""
        if timeout is None:
            raise Stuck("every task waits for something that no timer will bring")
        if timeout > 0:
            self._loop.jump()
        return []


class _Timer(asyncio.TimerHandle):
    """Timers of one moment go off in the order in which they were set.

    A heap alone has an order of its own, which hangs on timers that were cancelled long ago, and so on when garbage was
    collected.
    """

    __slots__ = ("_place",)

    def __init__(self, turn: int, when: float, *args: Any) -> None:
        super().__init__(when, *args)
        self._place = (when, turn)

    def __lt__(self, other: asyncio.TimerHandle) -> bool:
        return self._place < other._place  # type: ignore[attr-defined,no-any-return]


class VirtualLoop(asyncio.BaseEventLoop):
    """See the head of the module."""

    _scheduled: list[asyncio.TimerHandle]

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._selector = _NoSelector(self)
        self._clock_resolution = 1e-9
        self.network: Network | None = None
        self._turns = itertools.count()
        self.is_ahead = False
        """Whether what a thread asks of the loop is done before the thread's next step, not behind its last one."""

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """At a virtual time."""
        timer = _Timer(next(self._turns), when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]  # noqa: SLF001 (as BaseEventLoop.call_at does)
        return timer

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s

    def jump(self) -> None:
        """To the next timer that was not cancelled."""
        self._now_s = max(self._now_s, self._scheduled[0].when())

    def _process_events(self, _events: list[object]) -> None:
        """There are none."""

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
