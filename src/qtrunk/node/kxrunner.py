"""The node's relay in the real world: wires the Kx machine to its connections, and requests to their answers.

Everything here runs on the event loop, so keys are allocated and sent in one order, which the other end insists on.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial

from qtrunk.base.errors import AuthenticationFailed, KeyExhausted, QtrunkError, StoreError, WireError
from qtrunk.base.ids import KeyId, LinkId, NodeId, SaeId
from qtrunk.base.ports import Clock, SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.crypto.hybrid import NoKemKeyError
from qtrunk.node.advert import Advert, Adverts
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.channel import Channel
from qtrunk.node.greeting import CALM_S, SLOW_S, Greeter, Measured
from qtrunk.node.notes import Notes, ServiceNotes
from qtrunk.node.pace import Pace
from qtrunk.relay import kx
from qtrunk.relay.hops import KEY_PENDING

log = logging.getLogger(__name__)

TICK_S = 0.1
KEM_WAIT_S = 3.0
OVERTAKING_S = 10.0
"""Notes of the machine take different ways: one may come after another that was sent so much later."""
_KX, _ADVERT, _NOTE, _HELLO, _KNOWN = b"\x00", b"\x01", b"\x02", b"\x04", b"\x05"
RELAY = "relay"
"""Name of the node's relay as the resource of alarms."""
_LOGGED = ("PoolEmpty", "RelaySilent", KEY_PENDING)
"""No alarms of their own: what lies behind them has one, or passes in a moment."""


class KxRunner:
    """Carries the relay machine's messages and answers the node's own requests."""

    def __init__(
        self, machine: kx.Kx, adverts: Adverts, alarms: AlarmBoard, clock: Clock, pace: Pace | None = None
    ) -> None:
        self._pace = pace or Pace()
        self._machine = machine
        self._adverts = adverts
        self._alarms = alarms
        self._clock = clock
        self._channels: dict[LinkId, Channel] = {}
        self._greeter = Greeter(clock)
        self._differs: dict[LinkId, int] = {}
        """How often in a row the neighbour's digest was another one."""
        self._wrong: set[LinkId] = set()
        """Links whose last channel ended with what is no message."""
        self._waiting: dict[str, asyncio.Future[kx.Supplied]] = {}
        self.receive_note: Callable[[bytes], None] = _no_notes
        """What takes the notes that come in (node.notes)."""
        self.hear: Callable[[Advert], None] = lambda _advert: None
        """What takes the adverts that are news (node.flooding)."""
        self.hear_clock: Callable[[LinkId, Measured], None] = lambda _link, _measured: None
        """What takes what hellos tell of the time (node.clockwatch)."""
        self._notes: dict[str, ServiceNotes] = {}

    def use_notes(self, notes: Notes) -> None:
        """Take notes that come in, and let the machine say by notes what it has to."""
        self.receive_note = notes.receive
        self._machine.use_notes(notes.knows)
        for service in kx.NOTE_SERVICES:
            self._notes[service] = notes.service(service)
            notes.serve(service, partial(self._receive_for_machine, service), OVERTAKING_S)

    def _receive_for_machine(self, service: str, node: NodeId, octets: bytes) -> None:
        self._pace.stir()
        self._carry_out(self._machine.receive_note(node, octets, service))

    def is_up(self, link: LinkId) -> bool:
        """Whether the neighbour over this link is connected."""
        return link in self._channels

    async def request(
        self, initiator: SaeId, targets: Sequence[SaeId], number: int, key_bits: int
    ) -> list[SuppliedKey]:
        """Fresh keys, stored for every target at its node; raises what the machine says went wrong."""
        return (await self._carried(partial(self._machine.request, initiator, targets, number, key_bits))).keys

    async def carry(
        self, initiator: SaeId, targets: Sequence[SaeId], keys: Sequence[tuple[KeyId, Secret]]
    ) -> dict[str, object]:
        """Keys from or for a foreign network, stored for every target at its end of ours; the receipt of their way.

        Raises what the machine says went wrong.
        """
        return (await self._carried(partial(self._machine.carry, initiator, targets, keys))).receipt

    async def fill(self, initiator: SaeId, target: SaeId, octets: int) -> None:
        """A segment of so many octets for a pool; raises what the machine says went wrong."""
        await self._carried(partial(self._machine.fill, initiator, target, octets))

    async def _carried(self, start: Callable[[], tuple[str, list[kx.Effect]]]) -> kx.Supplied:
        """What comes of a request; one that only lacks the other node's ML-KEM key waits for that a little."""
        until_s = self._clock.monotonic_s() + KEM_WAIT_S
        while True:
            try:
                return await self._carried_once(*start())
            except NoKemKeyError:
                if self._clock.monotonic_s() > until_s:
                    raise
            await asyncio.sleep(TICK_S)

    async def _carried_once(self, request_id: str, effects: Sequence[kx.Effect]) -> kx.Supplied:
        answer: asyncio.Future[kx.Supplied] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        try:
            self._carry_out(effects)
            # The machine answers in time; this is for the case that its own record could not be written.
            async with asyncio.timeout(2 * kx.REQUEST_TIMEOUT_S):
                return await answer
        except TimeoutError as error:
            raise KeyExhausted("the relay of the keys took too long; try again") from error
        finally:
            self._waiting.pop(request_id, None)

    async def serve(self, link: LinkId, channel: Channel) -> None:
        """Relay over a fresh connection until it ends."""
        previous = self._channels.get(link)
        if previous is not None:
            previous.close()
            self._carry_out(self._machine.link_down(link))
        self._channels[link] = channel
        channel.watch()
        self._greeter.up(link)
        # Whoever comes anew says what it has with its first hello that differs.
        self._differs[link] = 1
        self._carry_out(self._machine.link_up(link))
        self._greet(link)
        self._pace.stir()
        try:
            while True:
                octets = await channel.receive()
                if self._channels.get(link) is not channel:
                    # What came in the moment in which the link was taken out: nobody knows the link any more.
                    break
                self._receive(link, octets)
                if link in self._wrong:
                    # The link's own end clears it with its next block; a link whose pool is full makes none.
                    self._wrong.discard(link)
                    self._alarms.clear(link, "ProtocolError")
        except (OSError, asyncio.IncompleteReadError):
            pass
        except WireError as error:
            self._wrong.add(link)
            self._alarms.raise_alarm(link, "ProtocolError", "major", f"relay: {error}")
        finally:
            channel.close()
            if self._channels.get(link) is channel:
                del self._channels[link]
                self._greeter.down(link)
                self._carry_out(self._machine.link_down(link))
                self._pace.stir()

    def drop(self, link: LinkId) -> None:
        """A link is about to be taken out of the network."""
        channel = self._channels.pop(link, None)
        if channel is not None:
            channel.close()
        self._greeter.down(link)
        self._carry_out(self._machine.link_gone(link))
        self._alarms.clear(link)

    async def keep_ticking(self) -> None:
        """Drive the machine's time-outs, and say hello."""
        while True:
            rest_s = min(SLOW_S, self._greeter.rest_s(is_quick=self._is_quick()))
            await self._pace.turn(TICK_S, rest_s, is_busy=self._machine.is_waiting, at_most_s=rest_s)
            for link in self._greeter.due(is_quick=self._is_quick()):
                self._greet(link)
            for link in self._greeter.silent(is_quick=self._is_quick()):
                self._channels[link].close()
            try:
                self._carry_out(self._machine.tick())
            except StoreError as error:
                self._alarms.raise_alarm(RELAY, "StorageFull", "critical", str(error))
            else:
                self._alarms.clear(RELAY, "StorageFull")

    def advertise(self, octets: bytes) -> None:
        """Send the own advert to every neighbour."""
        for channel in self._channels.values():
            channel.send(_ADVERT + octets)

    def under_way(self, links: Collection[LinkId]) -> int:
        """How many relays this node knows to be on their way over these links."""
        return self._machine.under_way(links)

    def links_lost(self, links: Collection[LinkId]) -> None:
        """What waits for links elsewhere that went out of use tries others."""
        self._carry_out(self._machine.links_lost(links))

    def send_note(self, link: LinkId, octets: bytes) -> None:
        """Hand a note to the neighbour over a link, if it is connected."""
        self._send(link, _NOTE + octets)

    def _send(self, link: LinkId, octets: bytes) -> None:
        channel = self._channels.get(link)
        if channel is not None:
            channel.send(octets)

    def _is_quick(self) -> bool:
        return self._pace.is_quick(CALM_S)

    def _greet(self, link: LinkId, *, is_question: bool = True) -> None:
        self._send(link, _HELLO + self._greeter.say(link, self._adverts.digest(), is_question=is_question))

    def _receive_hello(self, link: LinkId, octets: bytes) -> None:
        hello, is_wanted, measured = self._greeter.receive(link, octets)
        if is_wanted:
            self._greet(link, is_question=False)
        if measured is not None:
            self.hear_clock(link, measured)
        self._compare(link, hello.digest)

    def _compare(self, link: LinkId, digest: bytes) -> None:
        """A neighbour's digest. Where it differs, and what was on its way has had time to come, say what is here."""
        if digest == self._adverts.digest():
            self._differs[link] = 0
            return
        self._differs[link] += 1
        # Soon there is another hello, whether or not this one was about to come.
        self._pace.stir()
        if self._differs[link] > 1:
            self._differs[link] = 0
            self._send(link, _KNOWN + self._adverts.known())

    def _receive(self, link: LinkId, octets: bytes) -> None:
        self._greeter.heard(link)
        kind, payload = octets[:1], octets[1:]
        if kind == _HELLO:
            self._receive_hello(link, payload)
        elif kind == _KX:
            self._pace.stir()
            self._carry_out(self._machine.receive(link, payload))
        elif kind == _ADVERT:
            self._receive_advert(link, octets)
        elif kind == _NOTE:
            self._receive_note(link, payload)
        elif kind == _KNOWN:
            for advert in self._adverts.missing(payload):
                self._send(link, _ADVERT + advert)
        else:
            raise WireError("frame of unknown kind")

    def _receive_advert(self, link: LinkId, octets: bytes) -> None:
        news = self._adverts.receive(octets[1:], self._clock.monotonic_s(), self._clock.unix_s())
        if news is not None:
            for other, channel in self._channels.items():
                if other != link:
                    channel.send(octets)
            self.hear(news)
        elif self._adverts.is_contradicted:
            self._pace.stir()

    def _receive_note(self, link: LinkId, octets: bytes) -> None:
        try:
            self.receive_note(octets)
        except QtrunkError as error:
            # Who passed it on need not be who is wrong: the connection stays.
            log.warning("notes: over %s: %s", link, error)
            if isinstance(error, AuthenticationFailed):
                self._alarms.raise_alarm(RELAY, "NoteRefused", "warning", str(error))

    def _carry_out(self, effects: Sequence[kx.Effect]) -> None:
        for effect in effects:
            match effect:
                case kx.SendKx():
                    self._pace.stir()
                    self._send(effect.link, _KX + effect.octets)
                case kx.Supplied():
                    self._answer(effect.request_id, effect)
                case kx.Failed():
                    self._answer(effect.request_id, effect.error)
                case kx.Tell():
                    self._say(effect)
                case kx.Report():
                    log.warning("relay: %s: %s", effect.alarm, effect.text)
                    if effect.alarm not in _LOGGED:
                        about = f"node {effect.node}" if effect.node else effect.link or RELAY
                        self._alarms.raise_alarm(about, effect.alarm, "major", effect.text)

    def _say(self, effect: kx.Tell) -> None:
        if not self._notes:
            return
        notes = self._notes[effect.service]
        if effect.route:
            notes.tell_all(effect.route, effect.octets)
        else:
            notes.tell(effect.node, effect.octets)

    def _answer(self, request_id: str, answer: kx.Supplied | QtrunkError) -> None:
        waiting = self._waiting.get(request_id)
        if waiting is None or waiting.done():
            # Whoever asked has gone. The keys are recorded as delivered and are worth nothing to anyone else.
            return
        if isinstance(answer, QtrunkError):
            waiting.set_exception(answer)
        else:
            with contextlib.suppress(asyncio.InvalidStateError):
                waiting.set_result(answer)


def _no_notes(_octets: bytes) -> None:
    raise WireError("this node has no signing key and takes no notes")
