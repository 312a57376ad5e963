"""The optics process over its socket: what each end is told, and what happens when one goes away."""

import asyncio
import json
import os
import signal
import socket as socketlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from qtrunk.base.errors import DeviceError, RequestRefused
from qtrunk.base.ids import LinkId
from qtrunk.base.wire import FRAME_HEADER_OCTETS, encode, frame, frame_length
from qtrunk.node import modulewatch
from qtrunk.node.device import Module
from qtrunk.quantum import device
from qtrunk.quantum.analytic import expected
from qtrunk.quantum.source import decode_settings, words
from qtrunk.sim import control
from qtrunk.sim.optics import Optics, OpticsConfig, optics_of
from qtrunk.stages import Pulses, Role
from qtrunk.topology import Equipment

LINK = LinkId("a-b")
PULSES = 20_000_000
SEED = "11" * 32
EQUIPMENT = Equipment(clock_fraction=0.1)


def pulses(block, count=PULSES):
    return Pulses(
        link=LINK,
        block=block,
        count=count,
        intensities=EQUIPMENT.intensities,
        probabilities=EQUIPMENT.probabilities,
        key_basis_probability=EQUIPMENT.key_basis_probability,
    )


def answers(path):
    """The socket's file is there before anybody listens at it."""
    with socketlib.socket(socketlib.AF_UNIX) as trial:
        return trial.connect_ex(str(path)) == 0


@pytest.fixture
def optics():
    with tempfile.TemporaryDirectory(prefix="qo") as directory:
        path = Path(directory) / "optics.json"
        socket = Path(directory) / "optics.sock"
        equipment = {name: getattr(EQUIPMENT, name) for name in EQUIPMENT.__dataclass_fields__}
        path.write_text(
            json.dumps(
                {
                    "link": LINK,
                    "socket": str(socket),
                    "length_km": 10,
                    "loss_db": 6,
                    "equipment": equipment,
                    "seed": SEED,
                }
            )
        )
        process = subprocess.Popen([sys.executable, "-m", "qtrunk.sim.optics", "--config", str(path)])
        try:
            for _ in range(200):
                if answers(socket):
                    break
                asyncio.run(asyncio.sleep(0.05))
            yield socket
        finally:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert not socket.exists()


class End:
    """One end's module, as a node sees it."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def attach(cls, socket, role, link=LINK):
        end = cls(*await asyncio.open_unix_connection(str(socket)))
        end.say(device.attach(role, link))
        return end

    def say(self, message):
        self.writer.write(frame(encode(message)))

    async def hear(self):
        async with asyncio.timeout(20):
            while True:
                header = await self.reader.readexactly(FRAME_HEADER_OCTETS)
                event = device.decode_event(await self.reader.readexactly(frame_length(header)))
                if not isinstance(event, device.Alive):
                    return event

    async def hear_until(self, kind):
        heard = []
        while not heard or not isinstance(heard[-1], kind):
            heard.append(await self.hear())
        return heard


def test_two_armed_ends_get_a_block_and_the_queued_one_follows(optics):
    async def run():
        alice, bob = await End.attach(optics, Role.ALICE), await End.attach(optics, Role.BOB)
        assert isinstance(await alice.hear(), device.Attached)
        assert isinstance(await bob.hear(), device.Attached)
        for block in (7, 8):
            alice.say(device.arm(pulses(block), b"\x01" * 32))
            bob.say(device.arm(pulses(block), b"\x02" * 32))
        for block in (7, 8):
            told = await alice.hear_until(device.Finished)
            assert [type(event) for event in told] == [device.Started, device.Finished], "Alice never hears of clicks"
            heard = await bob.hear_until(device.Finished)
            assert (told[-1].clicks, told[-1].receiver) == (None, None)
            assert heard[-1].clicks == sum(event.count for event in heard[1:-1])
            assert {event.block for event in [*told, *heard]} == {block}
            frames = [device.decode_frame(event) for event in heard[1:-1]]
            check_clicks(np.concatenate([f[0] for f in frames]), np.concatenate([f[1] for f in frames]))
        for end in (alice, bob):
            end.writer.close()

    asyncio.run(run())


def check_clicks(positions, bits):
    assert np.all(np.diff(positions.astype(np.int64)) > 0)
    assert positions[-1] < PULSES
    config = OpticsConfig(link=LINK, socket="", length_km=10, loss_db=6, equipment=EQUIPMENT)
    link = optics_of(config, device.arm(pulses(1), bytes(32)))
    want = expected(link)
    # False alarm 1e-7 each.
    assert stats.binomtest(len(positions), PULSES, want.click_hz / link.clock_hz).pvalue > 1e-7
    sent = decode_settings(words(b"\x01" * 32, positions), link.source)
    assert stats.binomtest(int((sent.intensity == 0).sum()), len(positions), 0.6).pvalue < 1e-7, (
        "the signal clicks more"
    )
    assert stats.binomtest(int(bits.sum()), len(bits), 0.5).pvalue > 1e-7


def test_the_first_light_waits_for_the_warm_up():
    async def run(directory):
        socket = Path(directory) / "optics.sock"
        config = OpticsConfig(
            link=LINK, socket=str(socket), length_km=10, loss_db=6, equipment=EQUIPMENT, warm_up_s=1.0
        )
        began_s = asyncio.get_running_loop().time()
        serving = asyncio.create_task(Optics(config).serve())
        while not answers(socket):
            await asyncio.sleep(0.02)
        ends = [await End.attach(socket, role) for role in (Role.ALICE, Role.BOB)]
        for end in ends:
            end.say(device.arm(pulses(1), b"\x01" * 32))
        for end in ends:
            await end.hear_until(device.Started)
        waited_s = asyncio.get_running_loop().time() - began_s
        for end in ends:
            await end.hear_until(device.Finished)
            end.writer.close()
        serving.cancel()
        return waited_s

    with tempfile.TemporaryDirectory(prefix="qo") as directory:
        assert asyncio.run(run(directory)) >= 1.0


def test_a_lost_end_drops_the_block_at_the_other(optics):
    async def run():
        alice, bob = await End.attach(optics, Role.ALICE), await End.attach(optics, Role.BOB)
        for end in (alice, bob):
            end.say(device.arm(pulses(1, 400_000_000), b"\x01" * 32))
        await alice.hear_until(device.Started)
        bob.writer.close()
        dropped = (await alice.hear_until(device.Dropped))[-1]
        assert (dropped.block, "receiver" in dropped.reason) == (1, True)
        alice.writer.close()

    asyncio.run(run())


def test_an_end_that_came_back_gets_the_next_block(optics):
    async def run():
        alice, bob = await End.attach(optics, Role.ALICE), await End.attach(optics, Role.BOB)
        for end in (alice, bob):
            end.say(device.arm(pulses(1, 400_000_000), b"\x01" * 32))
        await bob.hear_until(device.Started)
        alice.writer.close()
        await bob.hear_until(device.Dropped)
        alice = await End.attach(optics, Role.ALICE)
        for end in (alice, bob):
            end.say(device.arm(pulses(2), b"\x01" * 32))
        assert (await bob.hear_until(device.Finished))[-1].block == 2
        for end in (alice, bob):
            end.writer.close()

    asyncio.run(run())


def test_a_block_that_the_other_end_passed_over_is_dropped(optics):
    async def run():
        alice, bob = await End.attach(optics, Role.ALICE), await End.attach(optics, Role.BOB)
        for block in (1, 2):
            alice.say(device.arm(pulses(block, 1_000_000), b"\x01" * 32))
        bob.say(device.arm(pulses(2, 1_000_000), b"\x02" * 32))
        told = await alice.hear_until(device.Finished)
        assert [(type(event), event.block) for event in told[1:]] == [
            (device.Dropped, 1),
            (device.Started, 2),
            (device.Finished, 2),
        ]
        for end in (alice, bob):
            end.writer.close()

    asyncio.run(run())


def test_ends_that_were_armed_differently_get_no_light(optics):
    async def run():
        alice, bob = await End.attach(optics, Role.ALICE), await End.attach(optics, Role.BOB)
        alice.say(device.arm(pulses(1, 1_000_000), b"\x01" * 32))
        bob.say(device.arm(pulses(1, 2_000_000), b"\x02" * 32))
        for end in (alice, bob):
            heard = await end.hear_until(device.Dropped)
            assert not any(isinstance(event, device.Started) for event in heard)
            end.writer.close()

    asyncio.run(run())


def test_light_waits_for_a_receiver_that_does_not_read(optics):
    async def run():
        alice, bob = await End.attach(optics, Role.ALICE), await End.attach(optics, Role.BOB)
        for end in (alice, bob):
            end.say(device.arm(pulses(1, 100_000_000), b"\x01" * 32))
        await bob.hear_until(device.Started)
        # Frames pile up in both socket buffers and in the reader, until the module can say no more.
        bob.writer.transport.pause_reading()
        await asyncio.sleep(2.0)
        assert control.ask(optics, LINK, control.GetState()).blocks == 0, "a block of 0.8 s is held up"
        bob.writer.transport.resume_reading()
        heard = await bob.hear_until(device.Finished)
        assert sum(event.pulses for event in heard[:-1]) == 100_000_000, "no pulse was left out"
        assert heard[-1].real_time_factor < 0.5
        assert (await alice.hear_until(device.Finished))[-1].real_time_factor == heard[-1].real_time_factor
        for end in (alice, bob):
            end.writer.close()

    asyncio.run(run())


def test_eve_comes_and_goes_by_the_lab_role_only(optics):
    assert control.set_attack(optics, LINK, "intercept-resend", 0.25).fraction == 0.25
    assert control.ask(optics, LINK, control.GetState()).attack == "intercept-resend"
    assert control.set_attack(optics, LINK, "none", 0.0).attack == "none"
    with pytest.raises(RequestRefused):
        control.set_attack(optics, LINK, "tap", 0.1)

    async def run():
        bob = await End.attach(optics, Role.BOB)
        await bob.hear()
        bob.say(control.SetAttack(kind="intercept-resend", fraction=1.0))
        assert isinstance(await bob.hear(), device.Refused)
        stranger = await End.attach(optics, Role.BOB, LinkId("x-y"))
        assert isinstance(await stranger.hear(), device.Refused)
        for end in (bob, stranger):
            end.writer.close()

    asyncio.run(run())
    assert control.ask(optics, LINK, control.GetState()).attack == "none"
    assert optics.stat().st_mode & 0o777 == 0o600


def test_orders_that_no_module_could_run_are_refused(optics):
    async def run():
        for change in (
            {"seed": b"short"},
            {"pulses": 0},
            {"probabilities": [0.5, 0.5, 0.5]},
            {"probabilities": [0.5, float("nan"), 0.5]},
            {"intensities": [0.5, float("nan"), 0.0]},
            {"intensities": [1e30, 0.2, 0.0]},
            {"intensities": [0.5, 0.5]},
            {"key_basis_probability": 1.0},
        ):
            alice = await End.attach(optics, Role.ALICE)
            await alice.hear()
            order = device.arm(pulses(1), bytes(32))
            alice.say(device.Arm(**{**{f: getattr(order, f) for f in order.__struct_fields__}, **change}))
            assert isinstance(await alice.hear(), device.Refused)
            alice.writer.close()

    asyncio.run(run())


def test_a_module_that_hangs_with_its_connection_open_is_lost_until_it_goes_on(optics, monkeypatch):
    monkeypatch.setattr(modulewatch, "HEARTBEATS", 2)

    async def run():
        events = Module(optics, LINK, Role.ALICE, lambda _pulses: 1.0).events()
        async with asyncio.timeout(30):
            assert isinstance(await anext(events), device.Attached)
            (stopped,) = [pid for pid in children() if str(optics.parent) in command_of(pid)]
            os.kill(stopped, signal.SIGSTOP)
            lost = await anext(events)
            assert isinstance(lost, DeviceError)
            assert "it says nothing since" in str(lost)
            os.kill(stopped, signal.SIGCONT)
            while isinstance(event := await anext(events), DeviceError):
                pass
            assert isinstance(event, device.Attached)
            await events.aclose()

    asyncio.run(run())


def children():
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_text()
