"""One end of a link in the real world: wires its session to the channel, the QKD module, the store and the clock.

The session is CPU work (kernels, hashing) and disk work (durable moves), so each link end runs it in one thread of its
own; connections stay on the event loop. Everything that happens to the session is an event in one queue, so it sees
one thing at a time. Effects are carried out in order: what must be durable is so before the next octet goes out.
"""

import asyncio
import contextlib
import logging
import os
import queue
import sys
import threading
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Coroutine

import msgspec

from qtrunk.base.errors import AuthenticationFailed, DeviceError, StoreError, WireError
from qtrunk.base.ids import LinkId
from qtrunk.base.ports import Clock
from qtrunk.distil import session as link_session
from qtrunk.distil.authentication import FREE_LOSSES
from qtrunk.distil.parties import Destroy, Hold, Release, Report
from qtrunk.distil.session import Arm, Disconnect, LinkAlice, LinkBob, SessionEffect, ToPeer
from qtrunk.kms.store import KeyStore
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.authentication import LinkAuthentication
from qtrunk.node.channel import RETRY_S, Channel
from qtrunk.node.device import DeviceEvent, Module
from qtrunk.node.linkstate import LinkStatistics
from qtrunk.plan.light import Answer, Light, Seen
from qtrunk.quantum import device as device_messages
from qtrunk.stages import Role

log = logging.getLogger(__name__)

TICK_S = 0.25
EVENTS_MAX = 4096
CLASSICAL = "classical channel"
FOLLOW_TIMEOUT_S = 120.0
AUTH_LOW_OCTETS, AUTH_LOW_AFTER_BLOCKS = 2048, 2
"""An alarm below so much authentication key, once so many blocks had the chance to fill it."""
EPSILON_WARNING = 0.8
"""An alarm when the epsilons of a link reach this share of what they may."""


class LinkRunner:
    """Runs one link end until closed."""

    def __init__(
        self,
        *,
        link: LinkId,
        role: Role,
        session: LinkAlice | LinkBob,
        authentication: LinkAuthentication,
        light: Light,
        module: Module,
        store: KeyStore,
        alarms: AlarmBoard,
        clock: Clock,
        pool_octets_max: int,
        statistics: LinkStatistics,
    ) -> None:
        self.link = link
        self.role = role
        self.statistics = statistics
        self._session = session
        self._authentication = authentication
        self._light = light
        self._is_following = False
        self._module = module
        self._store = store
        self._alarms = alarms
        self._clock = clock
        self._pool_octets_max = pool_octets_max
        self._events: queue.Queue[Callable[[], list[SessionEffect]] | None] = queue.Queue(EVENTS_MAX)
        self._channel: Channel | None = None
        self._bound: Channel | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=f"link-{link}", daemon=True)
        self._stopping = False

    # ── event loop side ─────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> list[asyncio.Task[None]]:
        """Start the worker thread and the tasks that feed it."""
        self._thread.start()
        return [asyncio.create_task(self._tick()), asyncio.create_task(self._follow_module())]

    def stop(self) -> None:
        """Let the worker finish what it is doing, and no more."""
        self._stopping = True
        if self._channel is not None:
            self._channel.close()
        with contextlib.suppress(queue.Full):
            self._events.put_nowait(None)
        self._thread.join(5.0)

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
                await self._post(lambda octets=octets: self._session.receive(octets))  # type: ignore[misc]
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
            await asyncio.sleep(TICK_S)
            if self._events.qsize() < EVENTS_MAX // 2:
                await self._post(self._on_tick)

    async def _follow_module(self) -> None:
        async for event in self._module.events():
            await self._post(lambda event=event: self._on_module(event))  # type: ignore[misc]

    async def _post(self, event: Callable[[], list[SessionEffect]]) -> None:
        """Queue an event; when the worker is far behind, wait, which slows the sender down (bounded memory)."""
        while not self._stopping:
            try:
                self._events.put_nowait(event)
            except queue.Full:
                await asyncio.sleep(0.01)
            else:
                return

    async def _follow(self, question: bytes) -> None:
        """Look for better settings, in a process of its own."""
        answer, why, search = b"", "", None
        try:
            search = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "qtrunk.plan.follow", stdin=PIPE, stdout=PIPE, stderr=PIPE
            )
            answer, errors = await asyncio.wait_for(search.communicate(question), FOLLOW_TIMEOUT_S)
            why = errors.decode(errors="replace")[-500:] if search.returncode else ""
        except (OSError, TimeoutError) as error:
            why = f"{type(error).__name__}: {error}"
            if search is not None and search.returncode is None:
                search.kill()
        await self._post(lambda: self._adopt(answer, why))

    # ── worker thread side ──────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        try:
            while True:
                event = self._events.get()
                if event is None or self._stopping:
                    return
                self._carry_out(self._effects_of(event))
        except BaseException:
            # A bug here must not leave a node that looks alive but makes no keys: stop, the supervisor restarts it.
            log.critical("link %s: the worker failed; the node stops", self.link, exc_info=True)
            logging.shutdown()
            os._exit(70)

    def _effects_of(self, event: Callable[[], list[SessionEffect]]) -> list[SessionEffect]:
        try:
            return event()
        except StoreError as error:
            # The session records before it acts, so nothing has happened yet: the next tick tries again.
            self._alarms.raise_alarm(self.link, "StorageFull", "critical", str(error))
            return []

    def _bind(self, channel: Channel) -> list[SessionEffect]:
        """From here on the session speaks to this connection; what it said to an older one is lost, as on a wire."""
        effects = [] if self._bound is None else self._session.disconnected()
        self._bound = channel
        return effects + self._session.connected()

    def _unbind(self, channel: Channel) -> list[SessionEffect]:
        if self._bound is not channel:
            return []
        self._bound = None
        return self._session.disconnected()

    def _on_tick(self) -> list[SessionEffect]:
        level = self._store.level(self.link)
        pool = self._authentication.pool
        epsilon = pool.epsilon()
        self.statistics.note_level(level, epsilon, pool.epsilon_max)
        self._check_authentication(level.auth_octets, epsilon)
        if isinstance(self._session, LinkAlice):
            self._session.pause(is_paused=level.total_octets >= self._pool_octets_max)
            if self._light.is_due and not self._is_following:
                self._is_following = True
                question = msgspec.json.encode(self._light.question())
                asyncio.run_coroutine_threadsafe(self._follow(question), self._loop)
        return self._session.tick()

    def _check_authentication(self, auth_octets: int, epsilon: float) -> None:
        """Alarms of what authenticates: key, epsilon, losses, the scheme in force."""
        most, losses = self._authentication.pool.epsilon_max, self._session.thrift.losses
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
            (
                self._authentication.is_signing,
                "AuthenticationBySignature",
                "warning",
                "blocks are authenticated by ML-DSA signatures: there is no authentication key yet",
            ),
        ):
            if is_so:
                self._alarms.raise_alarm(self.link, type_, severity, text)
            else:
                self._alarms.clear(self.link, type_)

    def _adopt(self, answer: bytes, why: str) -> list[SessionEffect]:
        self._is_following = False
        try:
            if why:
                raise ValueError(why)
            self._light.adopt(msgspec.json.decode(answer, type=Answer))
        except (ValueError, msgspec.MsgspecError) as error:
            # The present settings go on; the alarm says that they no longer follow.
            self._alarms.raise_alarm(self.link, "SettingsNotFollowed", "minor", f"no new settings were found: {error}")
            return []
        self._alarms.clear(self.link, "SettingsNotFollowed")
        log.info("link %s: the next blocks have %s", self.link, self._light.settings)
        return []

    def _on_module(self, event: DeviceEvent) -> list[SessionEffect]:
        session = self._session
        match event:
            case device_messages.Attached():
                wrong = self.statistics.note_attached(event)
                if wrong:
                    self._alarms.raise_alarm(self.link, "ModuleMismatch", "critical", wrong)
                    return session.device_down()
                self._alarms.clear(self.link, "ModuleMismatch")
                self._alarms.clear(self.link, "ModuleLoss")
                return session.device_up()
            case device_messages.Started():
                return session.started(event.block)
            case device_messages.Frame():
                if isinstance(session, LinkBob):
                    return self._on_frame(session, event)
            case device_messages.Finished():
                return self._on_finished(event)
            case device_messages.Dropped():
                return session.dropped(event.block, event.reason)
            case DeviceError():
                if self.statistics.is_module_up:
                    self._alarms.raise_alarm(self.link, "ModuleLoss", "major", str(event))
                self.statistics.is_module_up = False
                return session.device_down()
            case _:
                raise AssertionError(f"unexpected module event {type(event).__name__}")
        return []

    def _on_frame(self, session: LinkBob, event: device_messages.Frame) -> list[SessionEffect]:
        """A slice's clicks; one that makes no sense costs its block."""
        try:
            positions, bits = device_messages.decode_frame(event)
        except WireError as error:
            log.warning("link %s: %s", self.link, error)
            return session.dropped(event.block, str(error))
        return session.frame(event.block, event.start, event.pulses, positions, bits)

    def _on_finished(self, event: device_messages.Finished) -> list[SessionEffect]:
        """The light of a block is over: look at the monitors before anything is made of it."""
        pulses = self._session.pulses_of(event.block)
        if pulses is None:  # a block that died meanwhile
            return []
        findings = self.statistics.note_finished(event, pulses)
        if not findings:
            self._alarms.clear(self.link, "MonitorLimit")
            if isinstance(self._session, LinkBob):
                return self._session.finished(event.block, event.clicks)
            return self._session.finished(event.block)
        why = "; ".join(f"{finding.monitor}: {finding.text}" for finding in findings)
        self._alarms.raise_alarm(self.link, "MonitorLimit", "critical", f"block {event.block}: {why}")
        return self._session.dropped(event.block, why, link_session.MONITOR)

    def _carry_out(self, effects: list[SessionEffect]) -> None:
        for effect in effects:
            try:
                self._carry_out_one(effect)
            except StoreError as error:
                # What could not be recorded must not be told: leave out the rest, ask again after reconnecting.
                self._alarms.raise_alarm(self.link, "StorageFull", "critical", str(error))
                self._disconnect()
                return

    def _carry_out_one(self, effect: SessionEffect) -> None:
        match effect:
            case ToPeer():
                self._to_peer(effect.octets)
            case Arm():
                self._loop.call_soon_threadsafe(self._module.arm, effect.pulses, effect.seed)
            case Hold():
                self._store.hold(effect.key)
            case Release():
                self._store.release(self.link, effect.block)
                self.statistics.note_released(self._store.block_record(self.link, effect.block))
                for type_ in ("LinkOff", "StorageFull", "ProtocolError"):
                    self._alarms.clear(self.link, type_)
            case Destroy():
                self._destroy(effect)
            case Report():
                self.statistics.note_report(effect)
                gains, qber = effect.figures.get("gains"), effect.figures.get("qber_test")
                if isinstance(gains, list) and isinstance(qber, float):
                    self._light.note(Seen(gain=gains[0], qber=qber))
            case Disconnect():
                log.warning("%s", effect.why)
                self._alarms.raise_alarm(self.link, "ProtocolError", "major", effect.why)
                self._disconnect()

    def _destroy(self, effect: Destroy) -> None:
        self._store.destroy(self.link, effect.block, effect.cause)
        self.statistics.note_destroyed(effect)
        log.warning("link %s block %d destroyed (%s): %s", self.link, effect.block, effect.cause, effect.why)
        if effect.cause not in link_session.QUIET_CAUSES:
            self._alarms.raise_alarm(
                self.link,
                "LinkOff",
                "major",
                f"block {effect.block} destroyed, cause {effect.cause}: {effect.why}",
            )

    def _to_peer(self, octets: bytes) -> None:
        if self._bound is not None:
            self._loop.call_soon_threadsafe(self._bound.send, octets)

    def _disconnect(self) -> None:
        if self._bound is not None:
            self._loop.call_soon_threadsafe(self._bound.close)
