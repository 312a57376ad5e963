"""Does a QKD module do what a node expects of it? `python -m qtrunk.node.conformance --socket PATH --link ID`.

Dials the module (a driver of real hardware, or the simulated fibre) as both nodes of a link would, gives orders good
and bad, and prints every check of quantum.conformance with its outcome. Exit status 0 if all were reached and passed,
else 1. For a bench: the link makes no key meanwhile. Where each end has a driver of its own, `--socket` is the
transmitter's and `--other-socket` the receiver's.
"""

import argparse
import asyncio
import contextlib
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import TextIO

import msgspec

from qtrunk.base.errors import DeviceError, WireError
from qtrunk.base.ids import LinkId
from qtrunk.base.ports import Random
from qtrunk.base.wire import FRAME_HEADER_OCTETS, Message, encode, frame, frame_length
from qtrunk.distil.session import LIGHT_TIMES_MAX
from qtrunk.node.world import SystemRandom
from qtrunk.quantum import device
from qtrunk.quantum.conformance import (
    CHECKS,
    SEED_OCTETS,
    ClickCounts,
    Sheet,
    Stream,
    check_ends,
    check_settings,
)
from qtrunk.quantum.source import SourceSettings
from qtrunk.stages import Pulses, Role
from qtrunk.topology import Equipment

PROBABILITIES = (0.5, 0.3, 0.2)
KEY_BASIS_PROBABILITY = 0.7
"""Of the settings that the checks arm: unlike a half, so that swapped bases show, with clicks enough in both."""
LIGHT_S = 0.5
"""Of each of the blocks whose clicks are counted, unless told otherwise."""
SHORT_S, LONG_S = 0.02, 5.0
"""Light of a block of which only the messages matter, and of one that is cut short."""
_BUFFER_OCTETS = 1 << 10
"""Small, so that little is read on behalf of a node that does not read."""

BAD_ORDERS: dict[str, tuple[dict[str, object], ...]] = {
    "arm.refuses-bad-seed": ({"seed": b""}, {"seed": bytes(SEED_OCTETS - 1)}, {"seed": bytes(SEED_OCTETS + 1)}),
    "arm.refuses-bad-pulses": ({"pulses": 0}, {"pulses": -1}, {"pulses": 1 << 48}),
    "arm.refuses-bad-intensities": (
        {"intensities": [0.5, 0.2]},
        {"intensities": [0.5, -0.1, 0.0]},
        {"intensities": [nan, 0.2, 0.0]},
    ),
    "arm.refuses-bad-probabilities": (
        {"probabilities": [0.5, 0.5]},
        {"probabilities": [0.5, 0.5, 0.5]},
        {"probabilities": [1.2, -0.4, 0.2]},
        {"probabilities": [nan, 0.3, 0.2]},
    ),
    "arm.refuses-bad-basis": (
        {"key_basis_probability": 0.0},
        {"key_basis_probability": 1.0},
        {"key_basis_probability": nan},
    ),
}
"""What is wrong with an otherwise good order, by check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What is to be examined, and how."""

    transmitter: Path
    receiver: Path
    """Sockets; one path where one process serves both ends."""
    link: LinkId
    clock_hz: float = Equipment().clock_hz
    pulses: int | None = None
    """Of each of the two blocks whose clicks are counted; none: LIGHT_S of them."""
    intensities: tuple[float, ...] = Equipment().intensities
    timeout_s: float = 10.0
    """For an answer that needs no light; light gets LIGHT_TIMES_MAX times as long as it takes, and this."""
    quiet_s: float = 0.3
    """So long nothing must be heard where nothing may be heard, and so long a slow reader sleeps, thrice."""
    random: Random = field(default_factory=SystemRandom)

    def socket(self, role: Role) -> Path:
        """Of this end's module."""
        return self.transmitter if role is Role.ALICE else self.receiver


@dataclass(slots=True)
class _Peer:
    """One connection of ours to the module, with all it heard."""

    writer: asyncio.StreamWriter
    stream: Stream
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared while we play a node that does not read."""

    async def follow(self, reader: asyncio.StreamReader) -> None:
        """Hear all that the module says until it closes the connection."""
        try:
            while True:
                await self.reads.wait()
                length = frame_length(await reader.readexactly(FRAME_HEADER_OCTETS))
                self.stream.heard(await reader.readexactly(length), time.monotonic())
                self.changed.set()
        except (OSError, asyncio.IncompleteReadError):
            pass
        except WireError as error:
            self.stream.sheet.demand("wire.messages", False, str(error))
        finally:
            self.stream.is_closed = True
            self.changed.set()

    def say_octets(self, octets: bytes) -> None:
        """Whatever they mean."""
        if not self.writer.is_closing():
            self.writer.write(octets)

    def say(self, message: Message) -> None:
        """As one frame."""
        self.say_octets(frame(encode(message)))

    def arm(self, order: device.Arm) -> None:
        """Give an order that makes sense."""
        self.stream.ordered(order, time.monotonic())
        self.say(order)

    async def until(self, is_so: Callable[[Stream], bool], limit_s: float) -> bool:
        """Whether it came to be so in time and before the connection ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not is_so(self.stream) and not self.stream.is_closed:
                    self.changed.clear()
                    await self.changed.wait()
        return is_so(self.stream)


class Examination:
    """One run of all checks against one module."""

    def __init__(self, bench: Bench) -> None:
        self.sheet = Sheet()
        self._bench = bench
        self._block = 0
        self._source = SourceSettings(bench.intensities, PROBABILITIES, KEY_BASIS_PROBABILITY)

    async def run(self) -> Sheet:
        """Every scenario in turn. One that fails does not keep the next from being tried."""
        self._check_sockets()
        for scenario in (
            self._attach,
            self._strangers,
            self._bad_orders,
            self._blocks,
            self._lower_blocks,
            self._different_orders,
            self._slow_reader,
            self._newer_connection,
            self._lost_end,
        ):
            # Without an answer the rest of a scenario means nothing; its checks stay failed or not reached.
            with contextlib.suppress(DeviceError, OSError):
                await scenario()
        return self.sheet

    # ── what a scenario is made of ──────────────────────────────────────────────────────────────────────────────────

    @contextlib.asynccontextmanager
    async def _connection(self, role: Role) -> AsyncIterator[_Peer]:
        """Connected, not attached."""
        reader, writer = await asyncio.open_unix_connection(str(self._bench.socket(role)), limit=_BUFFER_OCTETS)
        name = device.attach(role, self._bench.link).role
        peer = _Peer(writer, Stream(self.sheet, name, self._bench.clock_hz))
        peer.reads.set()
        following = asyncio.create_task(peer.follow(reader))
        try:
            yield peer
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def _end(self, role: Role) -> AsyncIterator[_Peer]:
        """Attached; DeviceError where the module does not answer."""
        async with self._connection(role) as peer:
            peer.say(device.attach(role, self._bench.link))
            is_there = await peer.until(lambda stream: stream.attached is not None, self._bench.timeout_s)
            if not self.sheet.demand("attach.answers", is_there, f"the {peer.stream.role} was not attached"):
                raise DeviceError(f"the {peer.stream.role} does not answer")
            yield peer

    @contextlib.asynccontextmanager
    async def _both(self) -> AsyncIterator[tuple[_Peer, _Peer]]:
        """Both ends attached; what they heard is compared in the end."""
        async with self._end(Role.ALICE) as alice, self._end(Role.BOB) as bob:
            try:
                yield alice, bob
            finally:
                check_ends(self.sheet, alice.stream, bob.stream)

    def _order(self, pulses: int, block: int | None = None) -> device.Arm:
        """A good order with a fresh seed: for the next block, unless the other end has this one."""
        if block is None:
            self._block = block = self._block + 1
        return device.arm(
            Pulses(
                link=self._bench.link,
                block=block,
                count=pulses,
                intensities=self._source.intensities,
                probabilities=self._source.exact_probabilities,
                key_basis_probability=self._source.exact_key_basis_probability,
            ),
            self._bench.random.octets(SEED_OCTETS),
        )

    def _pulses(self, light_s: float) -> int:
        return max(1000, round(light_s * self._bench.clock_hz))

    def _limit_s(self, pulses: int) -> float:
        return self._bench.timeout_s + LIGHT_TIMES_MAX * pulses / self._bench.clock_hz

    async def _ended(self, peer: _Peer, block: int, kind: type[device.Event], limit_s: float) -> bool:
        """Whether a block ended this way in time."""
        is_over = await peer.until(lambda stream: stream.blocks[block].end is not None, limit_s)
        text = f"block {block} did not end for the {peer.stream.role} within {limit_s:.1f} s"
        return self.sheet.demand("block.answered", is_over, text) and isinstance(peer.stream.blocks[block].end, kind)

    async def _finish(self, alice: _Peer, bob: _Peer, block: int) -> bool:
        """Whether a block finished at both ends."""
        finished = []
        for peer in (alice, bob):
            limit_s = self._limit_s(peer.stream.blocks[block].order.pulses)
            finished.append(await self._ended(peer, block, device.Finished, limit_s))
        return all(finished)

    # ── scenarios ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_sockets(self) -> None:
        for path in {self._bench.transmitter, self._bench.receiver}:
            is_private = path.is_socket() and path.stat().st_mode & 0o777 == 0o600
            self.sheet.demand("socket.private", is_private, f"{path}: no socket, or others may use it")

    async def _attach(self) -> None:
        """Both ends are there."""
        async with self._both():
            pass

    async def _refused(self, check: str, what: str, octets: bytes) -> None:
        """An end that says this instead of an Attach gets no more than a refusal."""
        async with self._connection(Role.ALICE) as peer:
            peer.say_octets(octets)
            ends_well = await peer.until(lambda stream: stream.refused is not None, self._bench.timeout_s)
            is_let_in = peer.stream.attached is not None or bool(peer.stream.blocks)
            is_junk = check.startswith("wire.")
            ends_well = ends_well or (is_junk and peer.stream.is_closed)
            self.sheet.demand(check, ends_well and not is_let_in, f"{what} was not refused")

    async def _strangers(self) -> None:
        """Connections that no node would make. After each the module must still let a node in."""
        link = self._bench.link
        for check, what, octets in (
            ("attach.refuses-unknown-role", "role 'observer'", _framed(device.Attach(role="observer", link=link))),
            (
                "attach.refuses-other-link",
                f"link '{link}x'",
                _framed(device.Attach(role="transmitter", link=link + "x")),
            ),
            ("attach.comes-first", "Arm before Attach", _framed(self._order(1000))),
            ("wire.junk", "a payload of 0xC1", frame(b"\xc1" * 40)),
            ("wire.junk", "an unknown message", frame(msgspec.msgpack.encode({"type": "fire", "block": 1}))),
            ("wire.junk", "an Attach with a field too many", frame(_padded(device.attach(Role.ALICE, link)))),
            ("wire.too-long", "a frame of 4 GiB", struct.pack(">I", 0xFFFFFFFF) + b"\x00" * 64),
        ):
            await self._refused(check, what, octets)
            async with self._connection(Role.ALICE) as peer:
                peer.say(device.attach(Role.ALICE, link))
                is_there = await peer.until(lambda stream: stream.attached is not None, self._bench.timeout_s)
                self.sheet.demand(check, is_there, f"after {what} the module let nobody in")

    async def _bad_orders(self) -> None:
        for check, changes in BAD_ORDERS.items():
            for change in changes:
                async with self._end(Role.ALICE) as alice:
                    alice.say(msgspec.structs.replace(self._order(1000), **change))
                    is_refused = await alice.until(lambda stream: stream.refused is not None, self._bench.timeout_s)
                    self.sheet.demand(check, is_refused, f"accepted: {_shown(change)}")
                    if is_refused:
                        is_closed = await alice.until(lambda stream: stream.is_closed, self._bench.timeout_s)
                        self.sheet.demand("wire.closes", is_closed, "the connection stayed open after Refused")

    async def _blocks(self) -> None:
        """A block, and one armed during its light: what a link does all day."""
        pulses = self._bench.pulses or self._pulses(LIGHT_S)
        async with self._both() as (alice, bob):
            first = self._order(pulses)
            alice.arm(first)
            begun_alone = await alice.until(lambda stream: stream.blocks[first.block].is_begun, self._bench.quiet_s)
            self.sheet.demand("block.both-armed", not begun_alone, "light began when only the transmitter was armed")
            bob.arm(self._order(pulses, first.block))
            await alice.until(lambda stream: stream.blocks[first.block].is_begun, self._bench.timeout_s)
            second = self._order(pulses)
            alice.arm(second)
            bob.arm(self._order(pulses, second.block))
            if not await self._finish(alice, bob, first.block):
                raise DeviceError(f"block {first.block} was not finished")
            is_finished = await self._finish(alice, bob, second.block)
            self.sheet.demand("block.ahead", is_finished, f"block {second.block}, armed during light, did not follow")
            # What comes after the end must not come.
            await asyncio.sleep(self._bench.quiet_s)
            counts = ClickCounts.of(self._source)
            for block in (first.block, second.block):
                counts.add(alice.stream.blocks[block], bob.stream.blocks[block])
            check_settings(self.sheet, counts)

    async def _lower_blocks(self) -> None:
        """The transmitter arms three, the receiver the last of them."""
        pulses = self._pulses(SHORT_S)
        async with self._both() as (alice, bob):
            orders = [self._order(pulses) for _ in range(3)]
            for order in orders:
                alice.arm(order)
            lowest, passed_over, last = (order.block for order in orders)
            is_dropped = await self._ended(alice, lowest, device.Dropped, self._bench.timeout_s)
            self.sheet.demand(
                "block.drops-lower", is_dropped, f"block {lowest} was not dropped when two more were armed"
            )
            bob.arm(self._order(pulses, last))
            is_dropped = await self._ended(alice, passed_over, device.Dropped, self._limit_s(pulses))
            text = f"block {passed_over} was not dropped when the receiver armed {last}"
            self.sheet.demand("block.drops-passed-over", is_dropped, text)
            await self._finish(alice, bob, last)

    async def _different_orders(self) -> None:
        pulses = self._pulses(SHORT_S)
        async with self._both() as (alice, bob):
            order = self._order(pulses)
            alice.arm(order)
            bob.arm(self._order(2 * pulses, order.block))
            for peer in (alice, bob):
                is_dropped = await self._ended(peer, order.block, device.Dropped, self._limit_s(2 * pulses))
                is_dark = not peer.stream.blocks[order.block].is_begun
                text = f"the {peer.stream.role}'s block {order.block} ran with unlike pulse counts"
                self.sheet.demand("block.drops-different", is_dropped and is_dark, text)

    async def _slow_reader(self) -> None:
        """The stream itself sees whether a slice is missing."""
        pulses = self._bench.pulses or self._pulses(LIGHT_S)
        async with self._both() as (alice, bob):
            order = self._order(pulses)
            alice.arm(order)
            bob.reads.clear()
            bob.arm(self._order(pulses, order.block))
            await asyncio.sleep(3 * self._bench.quiet_s)
            bob.reads.set()
            limit_s = self._limit_s(pulses)
            is_over = await bob.until(lambda stream: stream.blocks[order.block].end is not None, limit_s)
            block = bob.stream.blocks[order.block]
            is_whole = isinstance(block.end, device.Dropped) or block.covered == pulses
            text = f"{block.covered} of {pulses} pulses reached a reader that slept for {3 * self._bench.quiet_s:g} s"
            self.sheet.demand("flow.slow-reader", is_over and is_whole, text)
            await self._ended(alice, order.block, device.Finished, limit_s)

    async def _newer_connection(self) -> None:
        """A node dies without closing its connection and comes back."""
        pulses = self._pulses(SHORT_S)
        async with self._end(Role.ALICE) as older, self._both() as (alice, bob):
            is_ended = await older.until(lambda stream: stream.is_closed, self._bench.timeout_s)
            self.sheet.demand("attach.newer-wins", is_ended, "the older connection stays open")
            order = self._order(pulses)
            alice.arm(order)
            bob.arm(self._order(pulses, order.block))
            is_finished = await self._finish(alice, bob, order.block)
            self.sheet.demand("attach.newer-wins", is_finished, "the newer connection got no block")

    async def _lost_end(self) -> None:
        """Each end goes away during light, and comes back."""
        for gone in Role:
            await self._lost(gone)

    async def _lost(self, gone: Role) -> None:
        async with self._end(gone.peer) as stays:
            long = self._order(self._pulses(LONG_S))
            stays.arm(long)
            async with self._end(gone) as leaves:
                leaves.arm(self._order(long.pulses, long.block))
                await stays.until(lambda stream: stream.blocks[long.block].is_begun, self._bench.timeout_s)
            is_dropped = await self._ended(stays, long.block, device.Dropped, self._bench.timeout_s)
            name = leaves.stream.role
            self.sheet.demand("block.lost-end", is_dropped, f"block {long.block} went on without the {name}")
            async with self._end(gone) as back:
                order = self._order(self._pulses(SHORT_S))
                stays.arm(order)
                back.arm(self._order(order.pulses, order.block))
                is_finished = await self._finish(*((back, stays) if gone is Role.ALICE else (stays, back)), order.block)
                self.sheet.demand("block.returns", is_finished, f"the {name} came back but got no light")


def _framed(message: Message) -> bytes:
    return frame(encode(message))


def _padded(message: Message) -> bytes:
    """A message with one field that the protocol does not know."""
    fields: dict[str, object] = msgspec.msgpack.decode(encode(message))
    return msgspec.msgpack.encode({**fields, "colour": "red"})


def _shown(change: dict[str, object]) -> str:
    return ", ".join(
        f"a seed of {len(value)} octets" if isinstance(value, bytes) else f"{name} {value}"
        for name, value in change.items()
    )


async def examine(bench: Bench) -> Sheet:
    """Run every check against a module."""
    return await Examination(bench).run()


def report(sheet: Sheet, to: TextIO) -> None:
    """A table of all checks, with what is wrong below each that failed."""
    width = max(len(check.name) for check in CHECKS)
    for check in CHECKS:
        outcome = sheet.outcome(check.name)
        print(f"{outcome:11}  {check.name:{width}}  {check.demand}", file=to)
        for text in sheet.failures.get(check.name, []):
            print(f"{'':11}    {text}", file=to)
    passed = sum(sheet.outcome(check.name) == "passed" for check in CHECKS)
    print(f"{passed} of {len(CHECKS)} checks passed", file=to)


def main() -> None:
    """Examine one module and say so by the exit status."""
    parser = argparse.ArgumentParser(description="checks of a QKD module at its socket (docs/device.md)")
    parser.add_argument("--socket", type=Path, required=True, help="of the transmitter, or of both ends")
    parser.add_argument("--other-socket", type=Path, help="of the receiver, where it has its own")
    parser.add_argument("--link", required=True, help="ID of the link that the module serves")
    parser.add_argument("--clock-hz", type=float, default=Equipment().clock_hz, help="pulses a second")
    parser.add_argument("--pulses", type=int, help=f"in each counted block; {LIGHT_S} s of them without it")
    parser.add_argument("--intensities", type=float, nargs=3, default=Equipment().intensities, help="photons a pulse")
    parser.add_argument("--timeout-s", type=float, default=10.0, help="for an answer")
    options = parser.parse_args()
    bench = Bench(
        transmitter=options.socket,
        receiver=options.other_socket or options.socket,
        link=LinkId(options.link),
        clock_hz=options.clock_hz,
        pulses=options.pulses,
        intensities=tuple(options.intensities),
        timeout_s=options.timeout_s,
    )
    sheet = asyncio.run(examine(bench))
    report(sheet, sys.stdout)
    raise SystemExit(0 if sheet.is_conformant else 1)


if __name__ == "__main__":
    main()
