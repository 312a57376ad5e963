"""What a link end says of what happened to its link: in its status and in the text of its alarms.

An unchanged link gives any sign with a chance below 1e-6 a block (quantum.diagnosis); all seeds are fixed.
"""

import asyncio
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "quantum"))
from links import watched

from qtrunk.base.errors import DeviceError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.distil import session as link_session
from qtrunk.distil.parties import Destroy, Release, Report
from qtrunk.distil.session import LinkAlice, LinkBob
from qtrunk.node import linkdiagnosis
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.linkdiagnosis import BLOCKS_MAX, LinkDiagnosis
from qtrunk.node.linkend import LinkRunner
from qtrunk.node.linkstate import LinkStatistics
from qtrunk.node.linkwatch import LinkWatch
from qtrunk.plan.light import Expectation, Light
from qtrunk.quantum import device, run
from qtrunk.quantum.attack import Attack
from qtrunk.quantum.channel import Channel
from qtrunk.quantum.diagnosis import Hypothesis
from qtrunk.quantum.optics import of_equipment
from qtrunk.stages import Observations, Role
from qtrunk.topology import Node, trunk

(LINK,) = trunk("t", [Node(id=NodeId("a")), Node(id=NodeId("b"))], [(40, 9.4)]).links
LINK = replace(LINK, equipment=replace(LINK.equipment, gate_mismatch_s=20e-12))
PULSES = replace(Light(LINK).pulses(1), count=400_000_000)


class Clock:
    def monotonic_s(self) -> float:
        return 1.0

    def unix_s(self) -> float:
        return 1.7e9


class Words:
    """The part of a session that a runner asks about a block's light."""

    def pulses_of(self, block):
        return replace(PULSES, block=block)

    def finished(self, *_block):
        return []

    def dropped(self, block, why, cause=link_session.DEVICE):
        return [Destroy(block, cause, why)]

    def device_up(self):
        return []

    def device_down(self):
        return []


class AliceWords(Words, LinkAlice):
    def __init__(self):
        """Nothing but the words above."""


class BobWords(Words, LinkBob):
    def __init__(self):
        """Nothing but the words above and below."""

    def frame(self, *_slice):
        return []


class End:
    """One link end that is shown blocks of a simulated fibre; what key comes of them nobody here knows."""

    def __init__(self, role: Role) -> None:
        self.role, self.block, self.alarms = role, 0, AlarmBoard(Clock())
        self.optics = of_equipment(LINK.equipment, LINK.loss_db)
        self.channel = Channel(self.optics, run.seed_of(7, "light"))
        record = {"auth_octets": 0, "octets": 1, "sifted_bits": 1}
        store = SimpleNamespace(release=lambda *_: None, destroy=lambda *_: None, block_record=lambda *_: record)
        self.runner = LinkRunner(
            link=LINK.id,
            session=AliceWords() if role is Role.ALICE else BobWords(),
            authentication=SimpleNamespace(pool=None),
            light=Light(LINK),
            module=None,
            store=store,
            alarms=self.alarms,
            clock=Clock(),
            pool_octets_max=1,
            statistics=LinkStatistics(LINK, role, Clock()),
        )

    def shine(self, cause: str | None = None, attack: Attack | None = None) -> list[str]:
        """A block that becomes key, or dies of `cause`; the kinds that are named then."""
        if attack is not None:
            self.channel.attack(attack)
        self.block += 1
        clicks, _, counted, receiver, transmitter = watched(self.channel, 70 + self.block, PULSES.count)
        said = {"clicks": clicks, "receiver": receiver} if self.role is Role.BOB else {"transmitter": transmitter}
        effects = self.runner._on_module(device.Finished(block=self.block, real_time_factor=1.0, **said))
        if not effects:
            figures = {"detections": clicks, "gains": [0.0], "qber_test": counted.test_qber}
            effects = [Report(self.block, figures, counted)]
            effects += [Release(self.block)] if cause is None else [Destroy(self.block, cause, "it had to be")]
        for effect in effects:
            self.runner._carry_out_one(effect)
        return [each["kind"] for each in self.runner.statistics.as_json()["diagnosis"]]

    def text(self, type_: str) -> str:
        return next((alarm.text for alarm in self.alarms.of(LinkId(LINK.id)) if alarm.type == type_), "")


def test_bobs_end_names_what_happened_in_status_and_alarms():
    async def work() -> None:
        end = End(Role.BOB)
        for _ in range(4):
            assert end.shine() == []
        assert not end.alarms.of(LinkId(LINK.id))
        assert end.shine(attack=Attack("bend", 1.0, 10.0))[0] == "bend"
        assert "of the clicks" in end.runner.statistics.as_json()["diagnosis"][0]["reason"]
        assert end.shine("qber", Attack("intercept-resend"))[0] == "intercept-resend"
        assert "cause qber: it had to be; likely intercept-resend (" in end.text("LinkOff")
        assert end.shine("no-key", Attack("cut")) == ["cut"]
        assert "; likely cut (" in end.text("LinkOff")
        watch = LinkWatch(
            end.runner.statistics, end.alarms, 0.0, Expectation(gain=0.1, clicks=0.01, qber=0.01, secret_bps=1e5)
        )
        watch.look(1.0, is_full=False)
        assert "; likely cut (" in end.text("QuantumChannelLoss")
        assert end.shine(attack=Attack("blinding"))[0] == "blinding"
        assert "; likely blinding (" in end.text("MonitorLimit")
        assert "; likely blinding (" in end.text("LinkOff")
        assert end.shine(attack=Attack()) == []
        assert not end.text("LinkOff")

    asyncio.run(work())


def slice_of(block: int, number: int, clicks: int, pulses: int = 1_000_000) -> device.Frame:
    positions = np.arange(clicks, dtype=np.uint64) * np.uint64(pulses // max(1, clicks)) + np.uint64(number * pulses)
    return device.frame_of(block, number * pulses, pulses, positions, np.zeros(clicks, np.uint8))


def test_a_cut_is_seen_while_its_block_still_runs_and_so_is_its_end():
    async def work() -> None:
        end = End(Role.BOB)
        known = end.runner.statistics
        watch = LinkWatch(known, end.alarms, 0.0)
        # Before a first block nobody knows what the light should be.
        end.runner._on_module(slice_of(1, 0, 0))
        assert not known.is_dark
        assert end.shine() == []
        usual = end.runner._diagnosis._norm.now
        clicks = round(1e6 * usual.clicks / usual.pulses)
        assert clicks > linkdiagnosis.SIGNAL_CLICKS
        watch.plan = Expectation(gain=0.1, clicks=usual.clicks / usual.pulses, qber=0.01, secret_bps=1e5)

        def see(number: int, count: int) -> tuple[bool, bool]:
            end.runner._on_module(slice_of(2, number, count))
            watch.look(float(number), is_full=False)
            return known.is_dark, bool(end.text("QuantumChannelLoss"))

        assert see(0, clicks) == (False, False)
        assert see(1, clicks // 5) == (False, False), "much less is a bend"
        assert see(2, clicks // 11) == (True, True)
        assert "block 2 from pulse 2000000 on had 9" in end.text("QuantumChannelLoss")
        assert known.state() == "OFF"
        assert known.as_json()["is_dark"]
        assert see(3, clicks // 5) == (True, True), "not yet the light of the link"
        assert see(4, clicks // 3) == (False, False)
        assert see(5, clicks) == (False, False)
        # All of the block has less than a tenth of its clicks; but its end was lit.
        end.runner._on_module(device.Finished(block=2, real_time_factor=1.0, clicks=clicks))
        watch.look(6.0, is_full=False)
        assert not end.text("QuantumChannelLoss")

    asyncio.run(work())


def test_slices_too_short_to_tell_are_told_together():
    signal = linkdiagnosis.Signal()
    for _ in range(9):
        assert not signal.note(1000, 0, 0.01)
    assert signal.clicks_per_pulse is None
    assert signal.note(1000, 0, 0.01)
    assert (signal.is_dark, signal.clicks_per_pulse) == (True, 0.0)
    assert [signal.note(1000, 10, 0.01) for _ in range(10)] == [False] * 9 + [True]
    assert not signal.is_dark


def test_a_light_that_is_as_it_should_be_never_goes():
    """Fixed seed; chance makes a tenth of a hundred clicks once in 10^30 times."""
    dice = np.random.default_rng(11)
    signal = linkdiagnosis.Signal()
    assert not any(signal.note(1000, int(clicks), 0.1) for clicks in dice.poisson(100, 20_000))


def test_alices_end_names_light_that_comes_into_her_module():
    async def work() -> None:
        end = End(Role.ALICE)
        for _ in range(4):
            assert end.shine() == []
        assert end.shine(attack=Attack("trojan-horse"))[0] == "trojan-horse"
        assert "; likely trojan-horse (" in end.text("MonitorLimit")

    asyncio.run(work())


def test_quiet_ends_of_a_block_leave_the_last_word_alone():
    async def work() -> None:
        end = End(Role.BOB)
        for _ in range(3):
            end.shine()
        assert end.shine("qber", Attack("intercept-resend"))[0] == "intercept-resend"
        end.runner._carry_out_one(Destroy(99, link_session.DEVICE, "the module began anew"))
        assert end.runner.statistics.as_json()["diagnosis"][0]["kind"] == "intercept-resend"

    asyncio.run(work())


def test_whatever_a_module_says_nothing_breaks():
    dice = random.Random(5)
    counts = (0, 1, 3, 1000, 10**7, PULSES.count, 10**15, 2**62, 2**63, 2**64 - 1, -1)
    figures = (0.0, -1.0, 1e-7, 1e-308, 1e308, -70.0, float("nan"), float("inf"), -float("inf"))
    a_count = lambda: dice.choice(counts)  # noqa: E731
    a_figure = lambda: dice.choice(figures)  # noqa: E731
    maybe = lambda value: value if dice.random() < 0.7 else None  # noqa: E731
    ends = {role: LinkDiagnosis(LINK, role) for role in Role}
    for block in range(3000):
        receiver = device.ReceiverReadings(
            detector_clicks=maybe([a_count(), a_count()]),
            double_clicks=maybe(a_count()),
            photocurrent_a=maybe([a_figure(), a_figure()]),
            entrance_power_dbm=maybe(a_figure()),
            phase_residual_rad=maybe(a_figure()),
            efficiency_ratio=maybe(a_figure()),
        )
        transmitter = device.TransmitterReadings(
            mean_photon_numbers=maybe([a_figure() for _ in range(3)]), reverse_power_dbm=maybe(a_figure())
        )
        said = {"block": block, "real_time_factor": 1.0}
        ends[Role.BOB].finished(device.Finished(**said, clicks=a_count(), receiver=receiver), PULSES)
        ends[Role.ALICE].finished(device.Finished(**said, transmitter=transmitter), PULSES)
        for end in ends.values():
            if dice.random() < 0.7:
                some = tuple(dice.choice((0, 1, 100, 10**6)) for _ in range(3))
                seen = Observations(
                    intensities=PULSES.intensities,
                    probabilities=PULSES.probabilities,
                    key_counts=some,
                    test_counts=some,
                    test_errors=(0, *some[1:]),
                )
                end.counts(block, seen, dice.choice((0, 1, 1000, 10**7)))
            dice.choice((end.released, end.destroyed))(block)


def test_blocks_that_never_end_are_forgotten():
    diagnosis = LinkDiagnosis(LINK, Role.ALICE)
    for block in range(3 * BLOCKS_MAX):
        diagnosis.finished(device.Finished(block=block, real_time_factor=1.0), replace(PULSES, block=block))
        diagnosis.frame(block, PULSES.count, np.array([1, 2], np.uint64))
    assert len(diagnosis._seen) == len(diagnosis._close) == BLOCKS_MAX
    assert diagnosis.verdict(0) == []


def test_other_light_is_judged_by_its_own_norm():
    diagnosis = LinkDiagnosis(LINK, Role.BOB)
    diagnosis.finished(device.Finished(block=1, real_time_factor=1.0, clicks=0), PULSES)
    before = diagnosis._norm
    diagnosis.finished(device.Finished(block=2, real_time_factor=1.0, clicks=0), replace(PULSES, block=2))
    assert diagnosis._norm is before
    weaker = replace(PULSES, block=3, intensities=tuple(0.5 * each for each in PULSES.intensities))
    diagnosis.finished(device.Finished(block=3, real_time_factor=1.0, clicks=0), weaker)
    assert diagnosis._norm.oracle.clicks < before.oracle.clicks


def idle_end():
    async def make():
        return End(Role.ALICE)

    return asyncio.run(make())


def test_a_lost_module_is_one_alarm_until_it_answers():
    runner = idle_end().runner
    lost = DeviceError("link a-b: the alice's QKD module does not answer (it says nothing)")
    runner._on_module(lost)
    assert runner._alarms.active() == [], "both may just have started"
    runner._on_module(device.Attached(clock_hz=LINK.equipment.clock_hz))
    for _ in range(3):
        runner._on_module(lost)
    (alarm,) = runner._alarms.active()
    assert (alarm.type, alarm.severity, alarm.count) == ("ModuleLoss", "major", 1)
    runner._on_module(device.Attached(clock_hz=LINK.equipment.clock_hz / 2))
    assert [one.type for one in runner._alarms.active()] == ["ModuleMismatch"]


def test_a_module_that_never_answered_is_missed_a_while_after_the_start(monkeypatch):
    runner = idle_end().runner
    monkeypatch.setattr(Clock, "monotonic_s", lambda _self: 12.0)
    runner._on_module(DeviceError("link a-b: nobody is there"))
    assert [one.type for one in runner._alarms.active()] == ["ModuleLoss"]


def spoken(end: End) -> list[bytes]:
    said: list[bytes] = []
    end.runner._to_peer = said.append
    return said


def named(end: End) -> list[tuple[str, str]]:
    return [(each["kind"], each["by"]) for each in end.runner.statistics.as_json()["diagnosis"]]


def test_alices_end_gets_what_bob_saw_and_both_say_the_same():
    async def make() -> tuple[End, End]:
        return End(Role.ALICE), End(Role.BOB)

    alice, bob = asyncio.run(make())
    to_bob, to_alice = spoken(alice), spoken(bob)
    for end in (alice, bob):
        end.shine()
    bob.shine(attack=Attack("blinding"))
    # Bob's module speaks against the block, so he drops it at both ends; who hears what first does not matter.
    alice.runner._carry_out_one(Destroy(bob.block, link_session.MONITOR, "Bob's module"))
    assert named(alice) == []
    alice.runner._receive(to_alice[-1])
    bob.runner._receive(to_bob[-1])
    assert named(alice)[0] == ("blinding", "bob")
    assert named(alice) == named(bob)
    assert "; likely blinding (" in alice.text("LinkOff")
    # What he saw of that block says nothing of the next one.
    alice.runner._carry_out_one(Release(bob.block + 1))
    assert named(alice) == []


def test_what_the_other_end_says_is_checked():
    end = idle_end()
    good = linkdiagnosis.to_peer(7, [Hypothesis("cut", 1.0, "dark")])
    assert end.runner._receive(good) == []
    for octets in (
        good[:-1],
        linkdiagnosis.ASIDE,
        linkdiagnosis.to_peer(7, [Hypothesis("cut", 2.0, "dark")]),
        linkdiagnosis.to_peer(7, [Hypothesis("[red]cut", 1.0, "dark")]),
        linkdiagnosis.to_peer(7, [Hypothesis("cut", 1.0, "dark")] * 3),
        linkdiagnosis.to_peer(-1, []),
    ):
        (effect,) = end.runner._receive(octets)
        assert isinstance(effect, link_session.Disconnect)
    assert end.alarms.active() == []
