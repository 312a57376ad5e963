"""The light of one link as a process: `python -m qtrunk.sim.optics --config FILE [--parent PID]`.

It stands where lasers, fibre, interferometers and detectors would stand, behind the same socket that a driver of real
hardware would serve (quantum.device), and runs in real time: the clicks of a slice go to the receiver when its light
would have arrived. When the machine is too slow no pulse is left out; the block takes longer and `real_time_factor`
says so. Eve lives here (role `lab`).
"""

import argparse
import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import uvloop

from qtrunk.base.errors import ConfigError, QtrunkError, WireError
from qtrunk.base.parent import die_with_parent
from qtrunk.base.wire import FRAME_HEADER_OCTETS, Message, decode, encode, frame, frame_length
from qtrunk.quantum.attack import Attack
from qtrunk.quantum.channel import Channel, drift_of
from qtrunk.quantum.device import (
    RECEIVER,
    TRANSMITTER,
    Alive,
    Arm,
    ArmedBlocks,
    Attach,
    Attached,
    Dropped,
    Finished,
    Refused,
    Started,
    frame_of,
)
from qtrunk.quantum.optics import LinkOptics, of_equipment
from qtrunk.quantum.readings import Readings
from qtrunk.quantum.source import SourceSettings
from qtrunk.sim.control import LAB, GetState, OpticsState, SetAttack
from qtrunk.topology import Equipment

SLICE_S, SLICE_S_MAX = 0.05, 0.5
"""Of a slice at the whole clock rate, and at most. At a share of it a slice is longer, for as many clicks: what a slice
costs by itself, at the fibre and at the node, is most of what a link with few clicks costs.
"""
HEARTBEAT_S = 1.0
ORDER_OCTETS_MAX = 1 << 16
INTENSITY_MAX = 10.0


class OpticsConfig(msgspec.Struct, frozen=True):
    """What the process is told."""

    link: str
    socket: str
    length_km: float
    loss_db: float
    equipment: Equipment
    warm_up_s: float = 0.0
    """From the start of the process to the first light."""
    seed: str | None = None
    """64 hexadecimal digits make the light repeatable (tests); without them the dice come from the system."""


def optics_of(config: OpticsConfig, order: Arm) -> LinkOptics:
    """The light path with the settings that the transmitter was armed with."""
    source = SourceSettings(tuple(order.intensities), tuple(order.probabilities), order.key_basis_probability)
    return of_equipment(config.equipment, config.loss_db, source)


@dataclass(eq=False)
class _End:
    """A connected node or lab client."""

    role: str
    writer: asyncio.StreamWriter
    drained: asyncio.Lock = field(default_factory=asyncio.Lock)

    def say(self, message: Message) -> None:
        if not self.writer.is_closing():
            self.writer.write(frame(encode(message)))

    async def drain(self) -> None:
        """Wait while the node is behind: light waits for the reader, memory stays flat."""
        with contextlib.suppress(ConnectionError):
            async with self.drained:
                await self.writer.drain()


class Optics:
    """One link's light."""

    def __init__(self, config: OpticsConfig) -> None:
        self._config = config
        self._channel: Channel | None = None
        self._ends: dict[str, _End] = {}
        self._armed = ArmedBlocks()
        self._wake = asyncio.Event()
        self._attack = Attack()
        self._running: int | None = None
        self._broken: str | None = None
        self._blocks = 0
        self._real_time_factor = 0.0

    async def serve(self) -> None:
        """Listen and run blocks until cancelled."""
        path = Path(self._config.socket)
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(self._accept, str(path))
        finally:
            os.umask(before)
        async with server, asyncio.TaskGroup() as both:
            both.create_task(self._keep_saying())
            both.create_task(self._run_blocks())

    async def _keep_saying(self) -> None:
        """The heartbeat. Who has not read what was said before hears nothing more of it."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            for end in self._ends.values():
                if end.writer.transport.get_write_buffer_size() == 0:
                    end.say(Alive())

    # ── connections ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end: _End | None = None
        try:
            hello = decode(await _frame(reader), Attach)
            end = _End(hello.role, writer)
            self._attach(end, hello)
            while True:
                self._obey(end, decode(await _frame(reader), Arm | SetAttack | GetState))
                await end.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except QtrunkError as error:
            (end or _End("", writer)).say(Refused(reason=str(error)))
        finally:
            if end is not None and self._ends.get(end.role) is end:
                self._detach(end)
            writer.close()

    def _attach(self, end: _End, hello: Attach) -> None:
        if hello.role not in (TRANSMITTER, RECEIVER, LAB) or hello.link != self._config.link:
            raise WireError(f"this is the fibre of link {self._config.link}, for a transmitter and a receiver")
        if end.role != LAB:
            previous = self._ends.get(end.role)
            if previous is not None:
                self._detach(previous)
                previous.writer.close()
            self._ends[end.role] = end
        heartbeat_s = None if end.role == LAB else HEARTBEAT_S
        end.say(Attached(clock_hz=self._config.equipment.clock_hz, heartbeat_s=heartbeat_s))

    def _detach(self, end: _End) -> None:
        del self._ends[end.role]
        self._armed.clear(end.role)
        if self._running is not None:
            self._broken = f"the {end.role} went away"

    def _obey(self, end: _End, order: Arm | SetAttack | GetState) -> None:
        match order:
            case Arm() if end.role in (TRANSMITTER, RECEIVER):
                _check(order)
                for block in self._armed.arm(end.role, order):
                    end.say(Dropped(block=block, reason="a later block was armed"))
                self._wake.set()
            case SetAttack() if end.role == LAB:
                self._attack = Attack(order.kind, order.fraction, order.strength)
                end.say(self._state())
            case GetState() if end.role == LAB:
                end.say(self._state())
            case _:
                raise WireError(f"a {end.role} may not say {type(order).__name__}")

    def _state(self) -> OpticsState:
        return OpticsState(
            attack=self._attack.kind,
            fraction=self._attack.fraction,
            strength=self._attack.strength,
            blocks=self._blocks,
            real_time_factor=self._real_time_factor,
        )

    # ── light ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _run_blocks(self) -> None:
        await asyncio.sleep(self._config.warm_up_s)
        while True:
            begun = self._armed.next()
            if begun is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            for role, blocks in begun.dropped.items():
                for block in blocks:
                    self._ends[role].say(Dropped(block=block, reason="the other end armed only a later block"))
            await self._run_block(begun.transmitter, begun.receiver)

    async def _run_block(self, alice: Arm, bob: Arm) -> None:
        """Emit one block, slice by slice, each at its time."""
        if (alice.pulses, alice.key_basis_probability) != (bob.pulses, bob.key_basis_probability):
            self._say_both(Dropped(block=alice.block, reason="the two ends were armed differently"))
            return
        self._running, self._broken = alice.block, None
        self._say_both(Started(block=alice.block))
        channel = self._ready_channel(alice)
        readings = Readings(channel.optics, channel.dice)
        # The control loop's share of the time is lost to the key.
        rate_hz = self._config.equipment.clock_hz * self._config.equipment.clock_fraction
        rate_hz *= 1 - channel.reference_fraction
        slice_s = min(SLICE_S_MAX, SLICE_S / self._config.equipment.clock_fraction)
        slice_pulses = max(1, round(rate_hz * slice_s))
        began_s = time.monotonic()
        click_count = 0
        for start in range(0, alice.pulses, slice_pulses):
            count = min(slice_pulses, alice.pulses - start)
            channel.attack(self._attack)
            clicks = await asyncio.to_thread(channel.sample, alice.seed, bob.seed, start, count, readings)
            await asyncio.sleep(max(0.0, began_s + (start + count) / rate_hz - time.monotonic()))
            if self._broken is not None:
                break
            receiver = self._ends[RECEIVER]
            receiver.say(frame_of(alice.block, start, count, clicks.positions, clicks.bits))
            await receiver.drain()
            click_count += len(clicks.positions)
        self._running = None
        if self._broken is not None:
            self._say_both(Dropped(block=alice.block, reason=self._broken))
            return
        self._blocks += 1
        self._real_time_factor = min(1.0, alice.pulses / rate_hz / max(1e-9, time.monotonic() - began_s))
        finished = Finished(block=alice.block, real_time_factor=self._real_time_factor)
        self._ends[TRANSMITTER].say(msgspec.structs.replace(finished, transmitter=readings.transmitter()))
        self._ends[RECEIVER].say(msgspec.structs.replace(finished, clicks=click_count, receiver=readings.receiver()))

    def _ready_channel(self, order: Arm) -> Channel:
        """The one fibre of this process, whose phase drifts on from block to block, with the settings of this block."""
        optics = optics_of(self._config, order)
        if self._channel is None:
            seed = bytes.fromhex(self._config.seed) if self._config.seed else os.urandom(32)
            self._channel = Channel(optics, seed, drift_of(self._config.equipment, self._config.length_km))
        self._channel.begin_block(optics)
        return self._channel

    def _say_both(self, message: Message) -> None:
        for role in (TRANSMITTER, RECEIVER):
            if role in self._ends:
                self._ends[role].say(message)


async def _frame(reader: asyncio.StreamReader) -> bytes:
    length = frame_length(await reader.readexactly(FRAME_HEADER_OCTETS))
    if length > ORDER_OCTETS_MAX:
        raise WireError(f"order of {length} octets: at most {ORDER_OCTETS_MAX}")
    return await reader.readexactly(length)


def _check(order: Arm) -> None:
    """WireError for settings that no module could run."""
    if len(order.seed) != 32:
        raise WireError("seed: 32 octets are needed")
    if not 1 <= order.pulses < 1 << 48:
        raise WireError("pulses: from 1 to 2^48 - 1")
    # Written so that a NaN fails each of them.
    if not len(order.intensities) == len(order.probabilities) == 3:
        raise WireError("intensities, probabilities: three of each")
    if not all(0 <= intensity <= INTENSITY_MAX for intensity in order.intensities):
        raise WireError(f"intensities: from 0 to {INTENSITY_MAX} photons a pulse")
    if not (all(probability > 0 for probability in order.probabilities) and abs(sum(order.probabilities) - 1) < 1e-6):
        raise WireError("probabilities: positive, with sum 1")
    if not 0 < order.key_basis_probability < 1:
        raise WireError("key_basis_probability: between 0 and 1")


def load(path: Path) -> OpticsConfig:
    """The configuration, or ConfigError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=OpticsConfig)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError([f"{path}: {error}"]) from error


async def _run(config: OpticsConfig) -> None:
    serving = asyncio.create_task(Optics(config).serve())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    Path(config.socket).unlink(missing_ok=True)


def main() -> None:
    """Run the light of one link until told to stop."""
    parser = argparse.ArgumentParser(description="simulated fibre of one QKD link (labs only)")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--parent", type=int, help="stop when this process is gone")
    options = parser.parse_args()
    if options.parent is not None:
        die_with_parent(options.parent)
    try:
        config = load(options.config)
    except ConfigError as error:
        raise SystemExit(f"optics: {error}") from error
    uvloop.run(_run(config))


if __name__ == "__main__":
    main()
