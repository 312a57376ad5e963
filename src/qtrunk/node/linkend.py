"""One end of a link in the real world: wires its session to the channel, the QKD module, the store and the clock."""

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from qtrunk.base.errors import DeviceError, WireError
from qtrunk.base.ids import LinkId
from qtrunk.base.ports import Clock
from qtrunk.distil import session as link_session
from qtrunk.distil.parties import Destroy, Hold, Release, Report
from qtrunk.distil.session import Arm, Disconnect, LinkAlice, LinkBob, SessionEffect, ToPeer
from qtrunk.kms.store import KeyStore
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.authentication import LinkAuthentication
from qtrunk.node.device import DeviceEvent, Module
from qtrunk.node.linkdiagnosis import ASIDE, LinkDiagnosis, likely, of_peer, to_peer
from qtrunk.node.linkstate import LinkStatistics
from qtrunk.node.linkworker import LinkWorker
from qtrunk.node.pace import Pace
from qtrunk.node.search import SearchFailed, search
from qtrunk.plan.light import Answer, Light, Seen
from qtrunk.quantum import device as device_messages
from qtrunk.quantum.diagnosis import Hypothesis
from qtrunk.stages import Role

log = logging.getLogger(__name__)

MODULE_BEGIN_S = 10.0
"""A module that never answered since the node began is not missed for so long: both may just have started."""


class LinkRunner(LinkWorker[SessionEffect]):
    """Runs one link end until closed."""

    def __init__(
        self,
        *,
        link: LinkId,
        session: LinkAlice | LinkBob,
        authentication: LinkAuthentication,
        light: Light,
        module: Module,
        store: KeyStore,
        alarms: AlarmBoard,
        clock: Clock,
        pool_octets_max: int,
        statistics: LinkStatistics,
        pace: Pace | None = None,
    ) -> None:
        super().__init__(
            link=link,
            machine=session,
            pool=authentication.pool,
            store=store,
            alarms=alarms,
            clock=clock,
            statistics=statistics,
            pace=pace,
        )
        self._session = session
        self._authentication = authentication
        self._light = light
        self._diagnosis = LinkDiagnosis(statistics.link, statistics.role)
        self._is_following = False
        self._module = module
        self._pool_octets_max = pool_octets_max
        self._begun_s = clock.monotonic_s()
        self._is_missed = False
        self._ended: tuple[int, str] = (0, "")
        """The last block if it was destroyed, and what its alarm says."""

    # ── event loop side ─────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> list[asyncio.Task[None]]:
        """Start the worker thread and the tasks that feed it."""
        return [*super().start(), asyncio.create_task(self._follow_module())]

    async def _follow_module(self) -> None:
        async for event in self._module.events():
            await self._post(lambda event=event: self._on_module(event))  # type: ignore[misc]

    async def _follow(self, question: bytes) -> None:
        """Look for better settings, in a process of its own."""
        answer, why = b"", ""
        try:
            answer = await search("follow", question)
        except SearchFailed as error:
            why = str(error)
        await self._post(lambda: self._adopt(answer, why))

    def _work_s(self) -> float:
        return self.statistics.link.equipment.block_s

    # ── worker thread side ──────────────────────────────────────────────────────────────────────────────────────

    def _on_tick(self) -> list[SessionEffect]:
        level = self._note_level()
        self._set_alarm(
            self._authentication.is_signing,
            "AuthenticationBySignature",
            "warning",
            "blocks are authenticated by ML-DSA signatures: there is no authentication key yet",
        )
        is_paused = self.statistics.is_held or level.total_octets >= self._pool_octets_max
        self.statistics.note_pause(is_paused=is_paused)
        if isinstance(self._session, LinkAlice):
            self._session.pause(is_paused=is_paused)
            if self._light.is_due and not self._is_following:
                self._is_following = True
                question = msgspec.json.encode(self._light.question())
                asyncio.run_coroutine_threadsafe(self._follow(question), self._loop)
        return self._session.tick()

    def _receive(self, octets: bytes) -> list[SessionEffect]:
        if not octets.startswith(ASIDE):
            return super()._receive(octets)
        try:
            block, verdict = of_peer(octets)
        except WireError as error:
            return [Disconnect(f"link {self.link}: {error}")]
        peer = Role.BOB if self.statistics.role is Role.ALICE else Role.ALICE
        self.statistics.note_verdict(block, verdict, peer)
        if self._ended[0] == block:
            self._say_ended()
        return []

    def _judge(self, block: int, verdict: Sequence[Hypothesis]) -> None:
        """What this end makes of a block, for itself and for the other end."""
        self.statistics.note_verdict(block, verdict)
        self._to_peer(to_peer(block, verdict))

    def _say_ended(self) -> None:
        text = self._ended[1] + likely(self.statistics.verdict)
        self._alarms.raise_alarm(self.link, "LinkOff", "major", text)

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
                self._alarms.clear(self.link, "ModuleLoss")
                self._is_missed = False
                wrong = self.statistics.note_attached(event)
                if wrong:
                    self._alarms.raise_alarm(self.link, "ModuleMismatch", "critical", wrong)
                    return session.device_down()
                self._alarms.clear(self.link, "ModuleMismatch")
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
                self._miss_module(str(event))
                return session.device_down()
            case _:
                raise AssertionError(f"unexpected module event {type(event).__name__}")
        return []

    def _miss_module(self, why: str) -> None:
        is_due = self.statistics.is_module_up or self._clock.monotonic_s() - self._begun_s > MODULE_BEGIN_S
        if is_due and not self._is_missed:
            self._alarms.raise_alarm(self.link, "ModuleLoss", "major", why)
            self._is_missed = True
        self.statistics.is_module_up = False

    def _on_frame(self, session: LinkBob, event: device_messages.Frame) -> list[SessionEffect]:
        """A slice's clicks; one that makes no sense costs its block."""
        try:
            positions, bits = device_messages.decode_frame(event)
        except WireError as error:
            log.warning("link %s: %s", self.link, error)
            return session.dropped(event.block, str(error))
        if self._diagnosis.frame(event.block, event.pulses, positions):
            signal = self._diagnosis.signal
            where = f"{event.block} from pulse {event.start} on"
            self.statistics.note_signal(where, signal.clicks_per_pulse or 0.0, is_dark=signal.is_dark)
            log.warning("link %s: %s in block %s", self.link, "no light" if signal.is_dark else "light again", where)
        return session.frame(event.block, event.start, event.pulses, positions, bits)

    def _on_finished(self, event: device_messages.Finished) -> list[SessionEffect]:
        """The light of a block is over: look at the monitors before anything is made of it."""
        pulses = self._session.pulses_of(event.block)
        if pulses is None:  # a block that died meanwhile
            return []
        findings = self.statistics.note_finished(event, pulses, self._diagnosis.signal.clicks_per_pulse)
        self._diagnosis.finished(event, pulses)
        if not findings:
            self._alarms.clear(self.link, "MonitorLimit")
            if isinstance(self._session, LinkBob):
                return self._session.finished(event.block, event.clicks)
            return self._session.finished(event.block)
        why = "; ".join(f"{finding.monitor}: {finding.text}" for finding in findings)
        text = f"block {event.block}: {why}{likely(self._diagnosis.verdict(event.block))}"
        self._alarms.raise_alarm(self.link, "MonitorLimit", "critical", text)
        return self._session.dropped(event.block, why, link_session.MONITOR)

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
                self._ended = (0, "")
                self._judge(effect.block, self._diagnosis.released(effect.block))
            case Destroy():
                self._destroy(effect)
            case Report():
                self.statistics.note_report(effect)
                if effect.seen is not None:
                    self._diagnosis.counts(effect.block, effect.seen, int(str(effect.figures["detections"])))
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
        verdict = self._diagnosis.destroyed(effect.block)
        log.warning("link %s block %d destroyed (%s): %s", self.link, effect.block, effect.cause, effect.why)
        if effect.cause not in link_session.QUIET_CAUSES:
            self._judge(effect.block, verdict)
            self._ended = (effect.block, f"block {effect.block} destroyed, cause {effect.cause}: {effect.why}")
            self._say_ended()
