"""The simulated network between machines: ordered streams of octets, as TCP and TLS give them, in all weathers.

A connection keeps order and content. It may be slow, stand still (what was sent arrives later, or never, when it
breaks), break (what is on its way is lost) and break on one side only (a power failure: the other hears nothing).
The certificate of the other side is the one of the machine there, as if TLS had verified it.

An adversary inside the TLS connection is a `Meddler`: it may change, double, drop, hold back or replay whole frames.
"""

import asyncio
import contextvars
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qtrunk.base.wire import FRAME_HEADER_OCTETS, frame, frame_length
from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.loop import Listener, VirtualLoop
from qtrunk.sim.network.machine import Machine, here

REFUSED_S = 0.001
Meddler = Callable[["Stream", bytes], list[tuple[float, bytes]]]
"""From a frame's payload to what arrives in its place: payloads, each with a delay."""


@dataclass(slots=True)
class Line:
    """The way between two machines, one for both directions and all connections."""

    delay_s: float = 0.005
    jitter_s: float = 0.002
    is_still: bool = False
    """Nothing arrives; connections stand."""
    stills: int = 0
    """How often it has been so."""


@dataclass(slots=True)
class _Place:
    factory: Callable[[], asyncio.BaseProtocol]
    machine: Machine
    context: contextvars.Context


class Weather:
    """All connections of a run."""

    def __init__(self, loop: VirtualLoop, dice: Dice, trace: Callable[[str], None]) -> None:
        self._loop = loop
        self._dice = dice
        self._trace = trace
        self._places: dict[tuple[str, int], _Place] = {}
        self._lines: dict[frozenset[str], Line] = {}
        self.streams: dict[Stream, None] = {}
        self.certificates: dict[str, bytes] = {}
        """DER by machine name."""
        self.meddler: Meddler | None = None
        self.on_write: Callable[[Stream, bytes], None] = lambda _stream, _octets: None
        """Sees each write of a machine, which is one frame."""
        self.frames = 0

    def line(self, a: str, b: str) -> Line:
        """The way between two machines."""
        return self._lines.setdefault(frozenset((a, b)), Line())

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Any:
        """See loop.Network; who connects is whose code runs."""
        machine = here()
        assert machine is not None
        line = self.line(machine.name, host)
        await asyncio.sleep(2 * self.delay_s(line))
        while line.is_still:
            await asyncio.sleep(0.1)
        place = self._places.get((host, port))
        if place is None or not place.machine.is_alive:
            await asyncio.sleep(REFUSED_S)
            raise ConnectionRefusedError(f"{host}:{port}")
        near, far = factory(), place.factory()
        out = Stream(self, self._loop, machine, place.machine, line, near, contextvars.copy_context())
        back = Stream(self, self._loop, place.machine, machine, line, far, place.context.copy())
        out.other, back.other = back, out
        self.streams[out] = self.streams[back] = None
        near.connection_made(out)
        self._loop.call_soon(far.connection_made, back, context=back.context)
        return out, near

    def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listener:
        """See loop.Network."""
        machine = here()
        assert machine is not None
        self._places[host, port] = _Place(factory, machine, contextvars.copy_context())
        return Listener(lambda: self._unlisten(host, port), port)

    def _unlisten(self, host: str, port: int) -> None:
        self._places.pop((host, port), None)

    def is_up(self, host: str) -> bool:
        """Whether a machine of this name lives and listens."""
        return any(place.machine.is_alive for (name, _), place in self._places.items() if name == host)

    def delay_s(self, line: Line) -> float:
        """Of one piece on its way."""
        return line.delay_s + line.jitter_s * self._dice.between(0, 1)

    def still(self, a: str, b: str) -> None:
        """From now on nothing arrives between two machines."""
        line = self.line(a, b)
        if line.is_still:
            return
        line.is_still, line.stills = True, line.stills + 1
        for stream in [stream for stream in self.streams if stream.line is line]:
            stream.miss(line.stills)

    def heal(self, a: str, b: str) -> None:
        """What stood still arrives."""
        self.line(a, b).is_still = False
        for stream in [stream for stream in self.streams if stream.line is self.line(a, b)]:
            if stream.other.is_closed and stream.peer.is_alive:
                # Its last word is repeated until it is heard.
                stream.lose(ConnectionResetError("the peer closed"))
            stream.deliver_later()

    def cut(self, a: str, b: str) -> None:
        """All connections between two machines break at both sides; what is on its way is lost."""
        for stream in [stream for stream in self.streams if stream.line is self.line(a, b)]:
            stream.lose(ConnectionResetError("cut"))

    def forget(self, machine: Machine, *, is_heard: bool) -> None:
        """A machine is gone; whether its peers hear of it at once."""
        for stream in [stream for stream in self.streams if stream.machine is machine]:
            self.streams.pop(stream, None)
            stream.is_closed = True
            if is_heard:
                stream.other.lose(ConnectionResetError("the peer is gone"))
            else:
                stream.other.miss(None)

    def trace(self, stream: "Stream", octets: int) -> None:
        """A frame arrived."""
        self.frames += 1
        self._trace(f"{stream.other.machine.name}>{stream.machine.name} {octets}")


class Stream(asyncio.Transport):
    """One side of a connection; `protocol` is who reads there. It stands for the transport of `machine`."""

    other: "Stream"

    def __init__(
        self,
        weather: Weather,
        loop: VirtualLoop,
        machine: Machine,
        peer: Machine,
        line: Line,
        protocol: asyncio.BaseProtocol,
        context: contextvars.Context,
    ) -> None:
        super().__init__()
        self._weather = weather
        self._loop = loop
        self.machine = machine
        self.peer = peer
        self.line = line
        self.protocol = protocol
        self.context = context
        self.is_closed = False
        self.service = ""
        """What it is for, once that was said."""
        self._arriving: list[tuple[float, bytes]] = []
        """What the other side has sent, by the time at which it arrives."""
        self._is_due = False
        self.last_s = 0.0
        """Nothing arrives at this side before what was sent earlier."""
        self._partial = b""
        self._patience_s: float | None = None
        """After which the operating system gives up a peer that it cannot reach."""

    # ── what a node sees of it ──────────────────────────────────────────────────────────────────────────────────────

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The certificate of the other side, where a TLS transport has it, and the socket."""
        return self if name in ("ssl_object", "socket") else default

    def setsockopt(self, _level: int, option: int, value: int) -> None:
        """As `socket.socket`: of all options the one that ends connections. Probes are as good as sent all the time."""
        if option == socket.TCP_USER_TIMEOUT:
            self._patience_s = value / 1000
            if self.line.is_still:
                self.miss(self.line.stills)

    def getpeercert(self, *, binary_form: bool) -> bytes:
        """As `ssl.SSLObject`."""
        assert binary_form
        return self._weather.certificates[self.peer.name]

    def write(self, data: Any) -> None:
        """On its way to the other side."""
        if self.is_closed:
            return
        # By its length, within a factor of two, most kinds of messages are told from others.
        self.machine.effect(f"send {self.service} {len(data).bit_length()}")
        self._weather.on_write(self, bytes(data))
        if self.other.is_closed:
            self._loop.call_later(self._weather.delay_s(self.line), self._bounce, context=self.context)
            return
        for payload_s, octets in self._meddled(bytes(data)):
            self.other.arrive(payload_s, octets)

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self.is_closed

    def close(self) -> None:
        """As abort; what was sent before arrives."""
        self.abort()

    def abort(self) -> None:
        """Both sides end; the other one after what is on its way."""
        if self.is_closed:
            return
        self.lose(None)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no limit."""

    def pause_reading(self) -> None:
        """Frames are few here; the reader's limit is not reached."""

    def resume_reading(self) -> None:
        """See pause_reading."""

    # ── what happens to it ──────────────────────────────────────────────────────────────────────────────────────────

    def _meddled(self, data: bytes) -> list[tuple[float, bytes]]:
        """Frames as the adversary leaves them."""
        meddler = self._weather.meddler
        if meddler is None:
            return [(0.0, data)]
        self._partial += data
        found: list[tuple[float, bytes]] = []
        while len(self._partial) >= FRAME_HEADER_OCTETS:
            end = FRAME_HEADER_OCTETS + frame_length(self._partial[:FRAME_HEADER_OCTETS])
            if len(self._partial) < end:
                break
            payload, self._partial = self._partial[FRAME_HEADER_OCTETS:end], self._partial[end:]
            found += [(delay_s, frame(octets)) for delay_s, octets in meddler(self, payload)]
        return found

    def miss(self, stills: int | None) -> None:
        """From now on nothing comes: the way stands still for this time (`Line.stills`), or the machine is gone."""
        if self._patience_s is not None:
            self._loop.call_later(self._patience_s, self._give_up, stills, context=self.context)

    def _give_up(self, stills: int | None) -> None:
        if stills is None or (self.line.is_still and self.line.stills == stills):
            self.lose(TimeoutError("the peer cannot be reached"))

    def _bounce(self) -> None:
        """A machine that came up again knows nothing of old connections, and says so."""
        if self._weather.is_up(self.peer.name) and not self.line.is_still:
            self.lose(ConnectionResetError("no such connection"))

    def arrive(self, extra_s: float, octets: bytes) -> None:
        """Something is on its way to this side."""
        at_s = self._loop.time() + self._weather.delay_s(self.line)
        # A frame that the adversary holds back lets others pass; all else keeps its order.
        self.last_s = at_s = max(at_s, self.last_s)
        self._arriving.append((at_s + extra_s, octets))
        if extra_s:
            self._arriving.sort(key=lambda piece: piece[0])
        self.deliver_later()

    def deliver_later(self) -> None:
        """When the first piece is due."""
        if not self._is_due and self._arriving and not self.line.is_still:
            self._is_due = True
            self._loop.call_at(self._arriving[0][0], self._deliver, context=self.context)

    def _deliver(self) -> None:
        self._is_due = False
        now_s = self._loop.time()
        while self._arriving and self._arriving[0][0] <= now_s and not self.line.is_still and not self.is_closed:
            _, octets = self._arriving.pop(0)
            self._weather.trace(self, len(octets))
            assert isinstance(self.protocol, asyncio.Protocol)
            self.protocol.data_received(octets)
        if not self.is_closed:
            self.deliver_later()

    def lose(self, error: Exception | None) -> None:
        """The connection is gone; the other side hears of it unless the way stands still."""
        if self.is_closed:
            return
        self.is_closed = True
        self._weather.streams.pop(self, None)
        self._loop.call_soon(self.protocol.connection_lost, error, context=self.context)
        other = self.other
        if not other.is_closed and not self.line.is_still:
            at_s = max(self._loop.time() + self._weather.delay_s(self.line), other.last_s)
            self._loop.call_at(at_s, other.lose, ConnectionResetError("the peer closed"), context=other.context)
