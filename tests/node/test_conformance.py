"""The conformance checks: sound modules pass them all, and each of them finds the module that breaks it.

A statistical test inside fails a sound module with a probability of FALSE_ALARM = 1e-9 (quantum.conformance); there are
nine in a run. Modules in this process have fixed seeds; real processes draw their own.
"""

import asyncio
import contextlib
import importlib.util
import json
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from qtrunk.base.errors import QtrunkError, WireError
from qtrunk.base.ids import LinkId
from qtrunk.base.wire import FRAME_HEADER_OCTETS, decode, encode, frame, frame_length
from qtrunk.node.conformance import BAD_ORDERS, Bench, examine
from qtrunk.quantum import device
from qtrunk.quantum.conformance import CHECKS
from qtrunk.quantum.source import SourceSettings, decode_bases, decode_settings, words
from qtrunk.stages import Role
from qtrunk.topology import Equipment

REPOSITORY = Path(__file__).parents[2]
LINK = LinkId("a-b")
CLOCK_HZ = 2e6
PULSES = 200_000
SLICE_PULSES = 20_000
TRANSMITTANCE = 0.3
ANSWER_S = 1.0


class Module:
    """A sound module for both ends, in this process. Subclasses break one thing each."""

    pulses = PULSES
    """Of a counted block in its examination."""
    clock_hz = CLOCK_HZ
    socket_mode = 0o600
    order_octets_max = 1 << 16

    def __init__(self):
        self.ends, self.armed, self.wake = {}, device.ArmedBlocks(), asyncio.Event()
        self.lit, self.lost = None, False
        self.dice = np.random.default_rng(20)

    @contextlib.asynccontextmanager
    async def serving(self, path):
        server = await asyncio.start_unix_server(self.accept, str(path))
        path.chmod(self.socket_mode)
        shining = asyncio.create_task(self.shine())
        try:
            yield
        finally:
            shining.cancel()
            server.close()
            await asyncio.wait([shining])

    # ── what faults change ──────────────────────────────────────────────────────────────────────────────────────────

    def told(self, role, message):
        """What goes out in place of a message."""
        return [message]

    def check_attach(self, hello):
        if hello.role not in (device.TRANSMITTER, device.RECEIVER) or hello.link != LINK:
            raise WireError("not this link")

    def check_arm(self, order):
        for is_good in self.demands(order).values():
            if not is_good:
                raise WireError("no such settings")

    def demands(self, order):
        return {
            "arm.refuses-bad-seed": len(order.seed) == 32,
            "arm.refuses-bad-pulses": 0 < order.pulses < 1 << 48,
            "arm.refuses-bad-intensities": len(order.intensities) == 3 and all(i >= 0 for i in order.intensities),
            "arm.refuses-bad-probabilities": len(order.probabilities) == 3
            and all(p > 0 for p in order.probabilities)
            and abs(sum(order.probabilities) - 1) < 1e-6,
            "arm.refuses-bad-basis": 0 < order.key_basis_probability < 1,
        }

    def on_bad_octets(self, writer, error):
        self.say(writer, device.Refused(reason="no"))

    def take_over(self, older):
        older.close()

    def arm(self, role, order):
        for block in self.armed.arm(role, order):
            self.tell(role, device.Dropped(block=block, reason="lower"))
        self.wake.set()

    def next(self):
        return self.armed.next()

    def are_alike(self, alice, bob):
        return alice.pulses == bob.pulses

    def lose(self, role):
        self.lost = self.lost or self.lit is not None

    def light_s(self, pulses):
        return pulses / CLOCK_HZ

    async def send_slice(self, writer, message):
        self.tell(device.RECEIVER, message)
        with contextlib.suppress(ConnectionError):
            await writer.drain()

    def chances(self, photons, difference, sent, bases):
        """Of a click of either detector, shape (pulses, 2)."""
        shares = (1 + 0.98 * np.cos(difference)[:, None] * np.array([1, -1])) / 2
        return 1 - np.exp(-photons[:, None] * TRANSMITTANCE * shares)

    def measured_phase(self, sent, bases):
        return np.pi / 2 * bases

    # ── what they do not ────────────────────────────────────────────────────────────────────────────────────────────

    def say(self, writer, message):
        if not writer.is_closing():
            writer.write(frame(message if isinstance(message, bytes) else encode(message)))

    def tell(self, role, message):
        for each in self.told(role, message) if role in self.ends else []:
            self.say(self.ends[role], each)

    async def payload(self, reader):
        length = frame_length(await reader.readexactly(FRAME_HEADER_OCTETS))
        if length > self.order_octets_max:
            raise WireError("too long")
        return await reader.readexactly(length)

    async def hello(self, reader, writer):
        hello = decode(await self.payload(reader), device.Attach)
        self.check_attach(hello)
        return hello.role

    async def accept(self, reader, writer):
        role = None
        try:
            role = await self.hello(reader, writer)
            if role in self.ends:
                older = self.ends.pop(role)
                self.forget(role)
                self.take_over(older)
            self.ends[role] = writer
            self.tell(role, device.Attached(clock_hz=self.clock_hz))
            while True:
                order = decode(await self.payload(reader), device.Arm)
                self.check_arm(order)
                self.arm(role, order)
        except (OSError, asyncio.IncompleteReadError):
            pass
        except QtrunkError as error:
            self.on_bad_octets(writer, error)
        finally:
            if self.ends.get(role) is writer:
                del self.ends[role]
                self.forget(role)
            writer.close()

    def forget(self, role):
        self.armed.clear(role)
        self.lose(role)

    async def shine(self):
        while True:
            begun = self.next()
            if begun is None:
                self.wake.clear()
                await self.wake.wait()
                continue
            for role, blocks in begun.dropped.items():
                for block in blocks:
                    self.tell(role, device.Dropped(block=block, reason="passed over"))
            await self.run_block(begun.transmitter, begun.receiver)

    async def run_block(self, alice, bob):
        if not self.are_alike(alice, bob):
            self.tell_both(device.Dropped(block=alice.block, reason="unlike"))
            return
        self.lit, self.lost = alice.block, False
        self.tell_both(device.Started(block=alice.block))
        began_s, clicks = time.monotonic(), 0
        for start in range(0, alice.pulses, SLICE_PULSES):
            count = min(SLICE_PULSES, alice.pulses - start)
            await asyncio.sleep(began_s + self.light_s(start + count) - time.monotonic())
            if self.lost:
                break
            positions, bits = self.clicks(alice, bob, start, count)
            clicks += len(positions)
            if device.RECEIVER in self.ends:
                message = device.frame_of(alice.block, start, count, positions, bits)
                await self.send_slice(self.ends[device.RECEIVER], message)
        self.lit = None
        if self.lost:
            self.tell_both(device.Dropped(block=alice.block, reason="lost"))
            return
        finished = device.Finished(block=alice.block, real_time_factor=1.0)
        self.tell(device.TRANSMITTER, msgspec.structs.replace(finished, transmitter=device.TransmitterReadings()))
        readings = device.ReceiverReadings(photocurrent_a=[2e-7, 2e-7])
        self.tell(device.RECEIVER, msgspec.structs.replace(finished, clicks=clicks, receiver=readings))

    def tell_both(self, message):
        for role in (device.TRANSMITTER, device.RECEIVER):
            self.tell(role, message)

    def clicks(self, alice, bob, start, count):
        positions = np.arange(start, start + count, dtype=np.uint64)
        source = SourceSettings(tuple(alice.intensities), tuple(alice.probabilities), alice.key_basis_probability)
        sent = decode_settings(words(alice.seed, positions), source)
        bases = decode_bases(words(bob.seed, positions), source)
        difference = np.pi * sent.bit + np.pi / 2 * sent.basis - self.measured_phase(sent, bases)
        chances = self.chances(np.array(alice.intensities)[sent.intensity], difference, sent, bases)
        fired = self.dice.random((count, 2)) < chances
        bits = np.where(fired.all(axis=1), self.dice.integers(0, 2, count), fired[:, 1]).astype(np.uint8)
        where = fired.any(axis=1)
        return positions[where], bits[where]


class Dice:
    """base.ports.Random for a test."""

    def __init__(self):
        self._rng = np.random.default_rng(21)

    def octets(self, count):
        return self._rng.bytes(count)


async def examined(kind):
    with tempfile.TemporaryDirectory(prefix="qc") as directory:
        path = Path(directory) / "module.sock"
        async with kind().serving(path):
            return await examine(
                Bench(
                    transmitter=path,
                    receiver=path,
                    link=LINK,
                    clock_hz=CLOCK_HZ,
                    pulses=kind.pulses,
                    timeout_s=ANSWER_S,
                    quiet_s=0.1,
                    random=Dice(),
                )
            )


def saying(change):
    """A module that says `change(role, message)` for each message."""
    return type("Saying", (Module,), {"told": lambda self, role, message: change(role, message)})


def on(role, kind, *says):
    """A module that says these in place of one kind of message to one end; each is a function of the message."""
    return saying(
        lambda to, message: [say(message) for say in says] if (to, type(message)) == (role, kind) else [message]
    )


def same(message):
    return message


def replaced(**changes):
    return lambda message: msgspec.structs.replace(message, **changes)


A, B = device.TRANSMITTER, device.RECEIVER


class IgnoresJunk(Module):
    async def hello(self, reader, writer):
        hello = None
        while hello is None:
            with contextlib.suppress(WireError):
                hello = decode(await self.payload(reader), device.Attach)
        self.check_attach(hello)
        return hello.role


class StaysOpen(Module):
    def check_arm(self, order):
        try:
            super().check_arm(order)
        except WireError as error:
            self.say(self.ends[A], device.Refused(reason=str(error)))


class WaitsForAnyLength(Module):
    async def payload(self, reader):
        (length,) = struct.unpack(">I", await reader.readexactly(FRAME_HEADER_OCTETS))
        return await reader.readexactly(length)


class TakesOrdersFromStrangers(Module):
    async def hello(self, reader, writer):
        hello = None
        while not isinstance(hello, device.Attach):
            hello = decode(await self.payload(reader), device.Attach | device.Arm)
        self.check_attach(hello)
        return hello.role


class BeginsAlone(Module):
    def arm(self, role, order):
        super().arm(role, order)
        if role == A:
            self.tell(A, device.Started(block=order.block))

    def told(self, role, message):
        return [] if role == A and isinstance(message, device.Started) and self.lit is not None else [message]


class BeginsLowerBlockLate(Module):
    late = ()

    def told(self, role, message):
        if isinstance(message, device.Dropped) and message.reason == "passed over":
            self.late = (device.Started(block=message.block), message)
            return []
        late, self.late = (self.late, ()) if isinstance(message, device.Finished) and role == A else ((), self.late)
        return [message, *late]


class ForgetsDuringLight(Module):
    def arm(self, role, order):
        if self.lit is None:
            super().arm(role, order)


class HurriesInTheDark(Module):
    pulses = 20 * PULSES

    def light_s(self, pulses):
        return 0.0

    def clicks(self, alice, bob, start, count):
        return np.zeros(0, np.uint64), np.zeros(0, np.uint8)


class NeverForgives(Module):
    def __init__(self):
        super().__init__()
        self.gone = set()

    def lose(self, role):
        if self.lit is not None:
            self.gone.add(role)
        super().lose(role)

    def arm(self, role, order):
        if role not in self.gone:
            super().arm(role, order)


class TellsTheTransmitter(Module):
    async def send_slice(self, writer, message):
        self.tell(A, message)
        await super().send_slice(writer, message)


class ShowsSeeds(Module):
    def arm(self, role, order):
        self.seed = order.seed
        super().arm(role, order)

    def told(self, role, message):
        if isinstance(message, device.Dropped):
            return [msgspec.structs.replace(message, reason=f"no light for {self.seed.hex()}")]
        return [message]


class LosesSlices(Module):
    async def send_slice(self, writer, message):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        if writer.transport.get_write_buffer_size() == 0:
            self.tell(B, message)


class OneIntensity(Module):
    def chances(self, photons, difference, sent, bases):
        return super().chances(np.full_like(photons, 0.4), difference, sent, bases)


class DimTestBasis(Module):
    def chances(self, photons, difference, sent, bases):
        return super().chances(photons * np.where(sent.basis == 1, 0.7, 1.0), difference, sent, bases)


class BlindTestBasis(Module):
    def chances(self, photons, difference, sent, bases):
        return super().chances(photons * np.where(bases == 1, 0.7, 1.0), difference, sent, bases)


class OneWeakDetector(Module):
    def chances(self, photons, difference, sent, bases):
        return super().chances(photons, difference, sent, bases) * np.array([1.0, 0.7])


class RandomKeyBasis(Module):
    def chances(self, photons, difference, sent, bases):
        difference = np.where((sent.basis == 0) & (bases == 0), np.pi / 2, difference)
        return super().chances(photons, difference, sent, bases)


class KeepsItsBasis(Module):
    def measured_phase(self, sent, bases):
        return np.zeros(len(bases))


class KnowsTheTransmittersBasis(Module):
    def measured_phase(self, sent, bases):
        return np.pi / 2 * sent.basis


def with_a_colour(message):
    return msgspec.msgpack.encode({**msgspec.msgpack.decode(encode(message)), "colour": "red"})


def one_click(at):
    return lambda message: device.frame_of(
        message.block, at, 10, np.array([at + 3], np.uint64), np.array([1], np.uint8)
    )


def without(check):
    """A module that does not look at one part of its orders."""

    class Careless(Module):
        def demands(self, order):
            return {name: is_good for name, is_good in super().demands(order).items() if name != check}

    return Careless


def changed(**attributes):
    return type("Changed", (Module,), attributes)


ONE_THING = [
    ("socket.private", changed(socket_mode=0o644)),
    ("wire.too-long", WaitsForAnyLength),
    ("wire.closes", StaysOpen),
    ("attach.answers", on(A, device.Attached, same, same)),
    ("attach.clock", changed(clock_hz=1.1 * CLOCK_HZ)),
    ("attach.comes-first", TakesOrdersFromStrangers),
    ("attach.heartbeat", on(A, device.Started, same, lambda _message: device.Alive())),
    ("attach.newer-wins", changed(take_over=lambda self, older: None)),
    *((name, without(name)) for name in BAD_ORDERS),
    ("block.armed", on(A, device.Started, same, lambda message: device.Started(block=message.block + 7))),
    ("block.order", on(B, device.Finished, same, one_click(0))),
    ("block.order", on(B, device.Finished, same, same)),
    ("block.order", on(B, device.Started)),
    ("block.ascending", BeginsLowerBlockLate),
    ("withheld.clicks", TellsTheTransmitter),
    ("withheld.clicks", on(A, device.Finished, replaced(clicks=5))),
    ("withheld.monitors", on(A, device.Finished, replaced(receiver=device.ReceiverReadings()))),
    ("withheld.monitors", on(B, device.Finished, replaced(transmitter=device.TransmitterReadings()))),
    ("withheld.seeds", ShowsSeeds),
    ("finished.clicks", on(B, device.Finished, lambda m: msgspec.structs.replace(m, clicks=m.clicks - 1))),
    ("finished.real-time-factor", on(B, device.Finished, replaced(real_time_factor=1.5))),
    (
        "finished.readings",
        on(B, device.Finished, replaced(receiver=device.ReceiverReadings(photocurrent_a=[0.2, 0.2]))),
    ),
    ("finished.readings", on(B, device.Finished, replaced(receiver=device.ReceiverReadings(arrivals=[[1] * 64])))),
    ("settings.clicks", changed(chances=lambda self, photons, *_: np.full((len(photons), 2), 0.001))),
    ("settings.levels", OneIntensity),
    ("settings.transmitter-basis", DimTestBasis),
    ("settings.receiver-basis", BlindTestBasis),
    ("settings.balance", OneWeakDetector),
    ("settings.key-basis", RandomKeyBasis),
    ("settings.unlike-bases", KnowsTheTransmittersBasis),
]
"""Modules that break one demand and no other."""
MORE = [
    ("wire.messages", on(B, device.Started, with_a_colour)),
    ("wire.junk", IgnoresJunk),
    ("attach.refuses-unknown-role", changed(check_attach=lambda self, hello: None)),
    ("attach.refuses-other-link", changed(check_attach=lambda self, hello: None)),
    ("block.both-armed", BeginsAlone),
    ("block.armed", on(B, device.Frame, lambda m: msgspec.structs.replace(m, block=m.block + 7))),
    ("block.answered", on(A, device.Finished)),
    ("block.ends-agree", on(B, device.Finished, lambda m: device.Dropped(block=m.block, reason="lost"))),
    ("block.light-time", HurriesInTheDark),
    ("block.ahead", ForgetsDuringLight),
    ("block.drops-lower", saying(lambda role, m: [] if getattr(m, "reason", "") == "lower" else [m])),
    ("block.drops-passed-over", saying(lambda role, m: [] if getattr(m, "reason", "") == "passed over" else [m])),
    ("block.drops-different", changed(are_alike=lambda self, alice, bob: True)),
    ("block.lost-end", changed(lose=lambda self, role: None)),
    ("block.returns", NeverForgives),
    ("frames.add-up", on(B, device.Frame, lambda m: msgspec.structs.replace(m, bits=m.bits[:-1]))),
    ("frames.add-up", on(B, device.Frame, lambda m: msgspec.structs.replace(m, count=m.count + 9))),
    ("frames.ascending", on(B, device.Frame, same, same)),
    ("frames.within", on(B, device.Finished, one_click(PULSES), same)),
    ("frames.within", on(B, device.Frame, lambda m: msgspec.structs.replace(m, start=m.start - 1))),
    ("frames.complete", saying(lambda role, m: [] if getattr(m, "start", 0) == SLICE_PULSES else [m])),
    ("flow.slow-reader", LosesSlices),
    ("settings.test-basis", KeepsItsBasis),
]
"""Modules whose fault shows in other checks, too."""
BROKEN = [*ONE_THING, *MORE]


@pytest.fixture(scope="module")
def sheets():
    """What the checks say of the sound module (first) and of each broken one. Side by side: most of it is waiting."""

    async def run():
        turn = asyncio.Semaphore(8)

        async def one(kind):
            async with turn:
                return await examined(kind)

        return await asyncio.gather(*(one(kind) for kind in (Module, *(kind for _, kind in BROKEN))))

    return asyncio.run(run())


def test_a_sound_module_passes_every_check(sheets):
    assert sheets[0].failures == {}
    assert sheets[0].is_conformant


@pytest.mark.parametrize("index", range(len(BROKEN)), ids=[name for name, _ in BROKEN])
def test_a_broken_module_fails_its_check(sheets, index):
    name, _ = BROKEN[index]
    sheet = sheets[1 + index]
    assert sheet.outcome(name) == "failed"
    assert not sheet.is_conformant
    if index < len(ONE_THING):
        assert set(sheet.failures) == {name}


def test_every_check_has_a_module_that_breaks_it():
    assert {name for name, _ in BROKEN} == {check.name for check in CHECKS}


# ── real processes ──────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def running(*commands):
    """Processes of this Python, each started when the socket that the one before serves takes connections."""
    started = []
    try:
        for command, serves in commands:
            started.append(subprocess.Popen([sys.executable, *map(str, command)]))
            for path in serves:
                wait_for(path)
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(10)


def wait_for(path):
    for _ in range(400):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
            return
        time.sleep(0.05)
    raise AssertionError(f"nobody serves {path}")


def program(*options):
    return subprocess.run(
        [sys.executable, "-m", "qtrunk.node.conformance", "--link", LINK, *map(str, options)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def directory():
    with tempfile.TemporaryDirectory(prefix="qc") as path:
        yield Path(path)


@pytest.fixture
def optics(directory):
    equipment = {name: getattr(Equipment(), name) for name in Equipment.__dataclass_fields__}
    path = directory / "optics.sock"
    config = {"link": LINK, "socket": str(path), "length_km": 50, "loss_db": 11.0, "equipment": equipment}
    (directory / "optics.json").write_text(json.dumps(config))
    with running((["-m", "qtrunk.sim.optics", "--config", directory / "optics.json"], [path])):
        yield path


def test_the_simulated_fibre_conforms(optics):
    result = program("--socket", optics)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    lines = result.stdout.splitlines()
    assert lines[-1] == f"{len(CHECKS)} of {len(CHECKS)} checks passed"
    assert [line.split()[:2] for line in lines[:-1]] == [["passed", check.name] for check in CHECKS]


def test_the_program_says_what_is_wrong_and_fails(optics):
    result = program("--socket", optics, "--clock-hz", "1e9", "--pulses", "100000000")
    assert result.returncode == 1
    failed = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("failed")]
    assert "attach.clock" in failed
    assert "1.25e+09 Hz, not 1e+09 Hz" in result.stdout


def test_the_example_driver_conforms_with_its_hardware_in_another_process(directory):
    def at(name):
        return directory / f"{name}.sock"

    folder = REPOSITORY / "examples" / "driver"
    hardware = [folder / "hardware.py", "--transmitter", at("tx"), "--receiver", at("rx")]
    drivers = [
        ([folder / "driver.py", "--side", side, "--socket", at(node), "--box", at(box), "--link", LINK], [at(node)])
        for side, node, box in ((A, "alice", "tx"), (B, "bob", "rx"))
    ]
    with running((hardware, [at("tx"), at("rx")]), *drivers):
        result = program("--socket", at("alice"), "--other-socket", at("bob"), "--clock-hz", "2e6")
    assert (result.returncode, result.stderr) == (0, ""), result.stdout


def test_the_example_driver_says_nothing_after_refused_while_its_box_is_slow(directory):
    """A heartbeat falls due while the driver still tells its box to forget: it is not said."""
    folder = REPOSITORY / "examples" / "driver"
    spec = importlib.util.spec_from_file_location("example_driver", folder / "driver.py")
    driver = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(driver)

    class Box:
        def __init__(self):
            self.is_asked, self.may_answer = asyncio.Event(), asyncio.Event()
            self.may_answer.set()

        async def ask(self, cmd, **_values):
            if cmd == "READ":
                self.is_asked.set()
            await self.may_answer.wait()
            return {"ok": True, "events": []}

    async def heard():
        box = Box()
        module = driver.Driver(A, LINK, box, CLOCK_HZ)
        server = await asyncio.start_unix_server(module.accept, str(directory / "module.sock"))
        async with server:
            reader, writer = await asyncio.open_unix_connection(str(directory / "module.sock"))
            writer.write(frame(encode(device.attach(Role.ALICE, LINK))))
            attached = await read(reader)
            box.may_answer.clear()
            reporting = asyncio.create_task(module.report())
            await box.is_asked.wait()
            writer.write(frame(encode(msgspec.structs.replace(ORDER, seed=b"short"))))
            refused = await read(reader)
            box.may_answer.set()
            async with asyncio.timeout(10):
                rest = await reader.read()
            reporting.cancel()
            writer.close()
            return [type(attached), type(refused)], rest

    async def read(reader):
        length = frame_length(await reader.readexactly(FRAME_HEADER_OCTETS))
        return decode(await reader.readexactly(length), device.Attached | device.Refused | device.Alive)

    assert asyncio.run(heard()) == ([device.Attached, device.Refused], b"")


def test_where_nobody_listens_no_check_passes(directory):
    result = program("--socket", directory / "nobody.sock")
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == f"0 of {len(CHECKS)} checks passed"


# ── the document ────────────────────────────────────────────────────────────────────────────────────────────────────

DOCUMENT = (REPOSITORY / "docs" / "device.md").read_text()
SEED = bytes(range(32))
ORDER = device.Arm(
    block=7,
    seed=SEED,
    pulses=1_000_000,
    intensities=[0.46, 0.2, 0.0002],
    probabilities=[0.48, 0.42, 0.1],
    key_basis_probability=0.78,
)
MESSAGES = [
    device.Attach(role="receiver", link=LINK),
    ORDER,
    device.Attached(clock_hz=1.25e9, heartbeat_s=1.0),
    device.Alive(),
    device.Started(block=7),
    device.frame_of(
        7, 500_000, 250_000, np.array([500_000, 500_001, 500_200, 749_999], np.uint64), np.array([1, 0, 1, 1], np.uint8)
    ),
    device.Finished(
        block=7,
        real_time_factor=1.0,
        transmitter=device.TransmitterReadings(mean_photon_numbers=[0.459, 0.2, 0.0002], reverse_power_dbm=-70.0),
    ),
    device.Dropped(block=8, reason="the fibre is dark"),
    device.Refused(reason="seed: 32 octets are needed"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_the_document_shows_each_message_as_the_code_sends_it(message):
    assert frame(encode(message)).hex(" ") in " ".join(DOCUMENT.split())


def test_the_document_names_every_field_and_every_check():
    for kind in (*map(type, MESSAGES), device.ReceiverReadings):
        for name in kind.__struct_fields__:
            assert f"`{name}`" in DOCUMENT, f"{kind.__name__}.{name}"
    rows = re.findall(r"^\| `([a-z]+\.[a-z-]+)` \| (.+) \| (.+) \|$", DOCUMENT, re.MULTILINE)
    assert rows == [(check.name, check.demand, check.why) for check in CHECKS]


def test_the_documents_test_vector_is_what_source_and_cipher_make():
    source = SourceSettings(tuple(ORDER.intensities), tuple(ORDER.probabilities), ORDER.key_basis_probability)
    first, second = source.intensity_thresholds.tolist()
    assert f"t0 = {first}, t1 = {second}, z = {source.basis_threshold}." in DOCUMENT
    rows = re.findall(r"^\| (\d+) \| `([0-9a-f]{16})` \| (\d) \| (\d) \| (\d) \| (\d) \|$", DOCUMENT, re.MULTILINE)
    assert len(rows) == 9
    positions = np.array([int(row[0]) for row in rows], np.uint64)
    stream = words(SEED, positions)
    sent, bases = decode_settings(stream, source), decode_bases(stream, source)
    for index, row in enumerate(rows):
        settings = sent.intensity[index], sent.basis[index], sent.bit[index], bases[index]
        assert row[1:] == (f"{int(stream[index]):016x}", *(str(value) for value in settings))
    plain = (1_000_000).to_bytes(8, "little") + bytes(8)
    encrypted = Cipher(algorithms.AES(SEED), modes.ECB()).encryptor().update(plain)
    assert f"`{plain.hex(' ')}`" in " ".join(DOCUMENT.split())
    assert f"`{encrypted.hex(' ')}`" in " ".join(DOCUMENT.split())
    assert int.from_bytes(encrypted[:8], "little") == int(words(SEED, np.array([1_000_000], np.uint64))[0])
