"""What every link end stands on, whatever makes its key: one worker thread, one queue of events, one channel.

A link's machine is CPU work (kernels, hashing) and disk work (durable moves), so each link end runs it in one thread of
its own; connections stay on the event loop. Everything that happens to the machine is an event in one queue, so it sees
one thing at a time. Effects are carried out in order: what must be durable is so before the next octet goes out.
"""

import asyncio
import contextlib
import logging
import os
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from typing import Generic, Protocol, TypeVar

from qtrunk.base.errors import AuthenticationFailed, StoreError, WireError
from qtrunk.base.ids import LinkId
from qtrunk.base.ports import Clock
from qtrunk.crypto.thrift import FREE_LOSSES, Thrift
from qtrunk.kms.key import PoolLevel
from qtrunk.kms.store import AuthPool, KeyStore
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.channel import RETRY_S, Channel
from qtrunk.node.linkstate import LinkStatistics
from qtrunk.node.pace import Pace

log = logging.getLogger(__name__)

TICK_S, TICK_MAX_S, TICKS = 0.25, 1.0, 16.0
"""Between two ticks of an end at work: one of TICKS of what it does at a time, within these bounds."""
REST_S = 20.0
"""An end with nothing under way ticks so seldom while nothing happens at the node."""
NICE = 5
"""Of a worker's thread, beyond that of the node's other threads (nice(2))."""
EVENTS_MAX = 4096
AUTH_LOW_OCTETS, AUTH_LOW_AFTER_BLOCKS = 2048, 2
"""An alarm below so much authentication key, once so many blocks had the chance to fill it."""
EPSILON_WARNING = 0.8
"""An alarm when the epsilons of a link reach this share of what they may."""

E = TypeVar("E")


class Machine(Protocol[E]):
    """One end's protocol, without I/O: events in, effects out."""

    @property
    def thrift(self) -> Thrift:
        """What authentication key was spent in vain."""

    @property
    def is_idle(self) -> bool:
        """Whether time alone brings nothing about soon: no block is under way, and none would be begun."""

    def connected(self) -> list[E]:
        """The channel is up."""

    def disconnected(self) -> list[E]:
        """The channel is gone."""

    def receive(self, octets: bytes) -> list[E]:
        """A frame of the peer."""


class LinkWorker(ABC, Generic[E]):
    """Runs one link end until closed; subclasses say what ticks and effects are."""

    def __init__(
        self,
        *,
        link: LinkId,
        machine: Machine[E],
        pool: AuthPool,
        store: KeyStore,
        alarms: AlarmBoard,
        clock: Clock,
        statistics: LinkStatistics,
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace or Pace()
        self._seen: tuple[object, ...] = ()
        """What of the statistics makes others look."""
        self.link = link
        self.statistics = statistics
        self.is_enabled = True
        """Whether this end may generate key."""
        self._machine = machine
        self._pool = pool
        self._store = store
        self._alarms = alarms
        self._clock = clock
        self._events: queue.Queue[Callable[[], list[E]] | None] = queue.Queue(EVENTS_MAX)
        self._channel: Channel | None = None
        self._bound: Channel | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=f"link-{link}", daemon=True)
        self._stopping = False

    # ── event loop side ─────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> list[asyncio.Task[None]]:
        """Start the worker thread and the tasks that feed it."""
        self._thread.start()
        return [asyncio.create_task(self._tick())]

    def stop(self) -> None:
        """Let the worker finish what it is doing, and no more."""
        self._stopping = True
        if self._channel is not None:
            self._channel.close()
        with contextlib.suppress(queue.Full):
            self._events.put_nowait(None)
        self._thread.join(5.0)

    def enable(self, *, is_enabled: bool) -> None:
        """Whether this end may generate key: the neighbours have to hear of it."""
        self.is_enabled = is_enabled
        self._pace.stir()
        self.hold(is_held=not is_enabled)

    def hold(self, *, is_held: bool) -> None:
        """Stop or go on generating key; what is under way is finished. The leading end does it, at its next tick."""
        if is_held != self.statistics.is_held:
            self.statistics.is_held = is_held
            self._pace.stir()

    async def serve(self, channel: Channel) -> None:
        """Use a fresh connection as the classical channel until it ends. A newer one replaces an older one."""
        if self._channel is not None:
            self._channel.close()
        self._channel = channel
        self.statistics.is_connected = True
        self._alarms.clear(self.link, "ClassicalChannelLoss")
        await self._post(lambda: self._bind(channel))
        try:
            while True:
                octets = await channel.receive()
                await self._post(lambda octets=octets: self._receive(octets))  # type: ignore[misc]
        except (OSError, asyncio.IncompleteReadError, WireError):
            pass
        finally:
            channel.close()
            if self._channel is channel:
                self._channel = None
                self.statistics.is_connected = False
                if not self._stopping:
                    self._alarms.raise_alarm(
                        self.link,
                        "ClassicalChannelLoss",
                        "major",
                        "the classical channel to the peer is down",
                    )
                    await self._post(lambda: self._unbind(channel))

    async def keep_dialling(
        self,
        connect: Callable[[], Awaitable[Channel]],
        serve: Callable[[Channel], Coroutine[object, object, None]],
    ) -> None:
        """Alice's side of a service: connect, serve, and again."""
        while True:
            try:
                channel = await connect()
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                await asyncio.sleep(RETRY_S)
                continue
            except (AuthenticationFailed, WireError) as error:
                self._alarms.raise_alarm(self.link, "PeerRefused", "critical", str(error))
                await asyncio.sleep(10 * RETRY_S)
                continue
            self._alarms.clear(self.link, "PeerRefused")
            await serve(channel)
            await asyncio.sleep(RETRY_S)

    async def _tick(self) -> None:
        while True:
            tick_s = min(max(TICK_S, self._work_s() / TICKS), TICK_MAX_S)
            await self._pace.turn(tick_s, REST_S, is_busy=not self._machine.is_idle)
            if self._events.qsize() < EVENTS_MAX // 2:
                await self._post(self._on_tick)

    async def _post(self, event: Callable[[], list[E]]) -> None:
        """Queue an event; when the worker is far behind, wait, which slows the sender down (bounded memory)."""
        while not self._stopping:
            try:
                self._events.put_nowait(event)
            except queue.Full:
                await asyncio.sleep(0.01)
            else:
                return

    # ── worker thread side ──────────────────────────────────────────────────────────────────────────────────────

    def _receive(self, octets: bytes) -> list[E]:
        """A frame of the peer."""
        return self._machine.receive(octets)

    def _work_s(self) -> float:
        """How long what this end does at a time takes."""
        return 0.0

    @abstractmethod
    def _on_tick(self) -> list[E]:
        """Time has passed."""

    @abstractmethod
    def _carry_out_one(self, effect: E) -> None:
        """Do what the machine says; StoreError where it could not be recorded."""

    def _work(self) -> None:
        try:
            # Of this thread alone: whoever waits for keys, and the neighbours' relays, come before the next block.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICE)
            while True:
                event = self._events.get()
                if event is None or self._stopping:
                    return
                self._handle(event)
        except BaseException:
            # A bug here must not leave a node that looks alive but makes no keys: stop, the supervisor restarts it.
            log.critical("link %s: the worker failed; the node stops", self.link, exc_info=True)
            logging.shutdown()
            os._exit(70)

    def _handle(self, event: Callable[[], list[E]]) -> None:
        """One event and what follows from it."""
        self._carry_out(self._effects_of(event))
        known = self.statistics
        seen = (known.is_module_up, known.is_dark, known.last_end, known.released, known.destroyed)
        if seen != self._seen:
            self._seen = seen
            self._loop.call_soon_threadsafe(self._pace.stir)

    def _effects_of(self, event: Callable[[], list[E]]) -> list[E]:
        try:
            return event()
        except StoreError as error:
            # The machine records before it acts, so nothing has happened yet: the next tick tries again.
            self._alarms.raise_alarm(self.link, "StorageFull", "critical", str(error))
            return []

    def _bind(self, channel: Channel) -> list[E]:
        """From here on the machine speaks to this connection; what it said to an older one is lost, as on a wire."""
        effects = [] if self._bound is None else self._machine.disconnected()
        self._bound = channel
        return effects + self._machine.connected()

    def _unbind(self, channel: Channel) -> list[E]:
        if self._bound is not channel:
            return []
        self._bound = None
        return self._machine.disconnected()

    def _note_level(self) -> PoolLevel:
        """The pool as it is now, told to whoever watches; alarms of what authenticates: key, epsilon, losses."""
        level, epsilon = self._store.level(self.link), self._pool.epsilon()
        most, losses, auth_octets = self._pool.epsilon_max, self._machine.thrift.losses, level.auth_octets
        self.statistics.note_level(level, epsilon, most)
        is_low = auth_octets < AUTH_LOW_OCTETS and self.statistics.released >= AUTH_LOW_AFTER_BLOCKS
        for is_so, type_, severity, text in (
            (is_low, "AuthenticationKeyLow", "major", f"{auth_octets} octets of authentication key left"),
            (
                losses > FREE_LOSSES,
                "AuthenticationKeyLost",
                "critical",
                f"{losses} portions in a row spent in vain",
            ),
            (
                epsilon > EPSILON_WARNING * most,
                "EpsilonBudget",
                "major",
                f"the link's blocks add up to an epsilon of {epsilon:.3g}; epsilon_total is {most:g}",
            ),
        ):
            self._set_alarm(is_so, type_, severity, text)
        return level

    def _set_alarm(self, is_so: bool, type_: str, severity: str, text: str) -> None:
        """Raise an alarm of the link, or clear it."""
        if is_so:
            self._alarms.raise_alarm(self.link, type_, severity, text)
        else:
            self._alarms.clear(self.link, type_)

    def _carry_out(self, effects: list[E]) -> None:
        for effect in effects:
            try:
                self._carry_out_one(effect)
            except StoreError as error:
                # What could not be recorded must not be told: leave out the rest, ask again after reconnecting.
                self._alarms.raise_alarm(self.link, "StorageFull", "critical", str(error))
                self._disconnect()
                return

    def _to_peer(self, octets: bytes) -> None:
        if self._bound is not None:
            self._loop.call_soon_threadsafe(self._bound.send, octets)

    def _disconnect(self) -> None:
        if self._bound is not None:
            self._loop.call_soon_threadsafe(self._bound.close)
