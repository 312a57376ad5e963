"""What the monitors read, and that honest links pass while attacks that they are for do not.

FALSE_ALARM is the chance that an honest link fails one of monitors' own tests in one block; all seeds are fixed.
"""

from dataclasses import replace

import numpy as np
import pytest
from quantum_links import EQUIPMENT, optics
from scipy import stats

from qtrunk.quantum import monitors, run
from qtrunk.quantum.attack import Attack
from qtrunk.quantum.channel import Channel
from qtrunk.quantum.device import ARRIVAL_BINS
from qtrunk.quantum.dice import Dice
from qtrunk.quantum.optics import of_equipment
from qtrunk.quantum.readings import Readings, arrival_times_ps

FALSE_ALARM = 1e-7
PULSES = 400_000_000
LINK = of_equipment(replace(EQUIPMENT, gate_mismatch_s=20e-12), 11.5)


def watched(attack=Attack(), link=LINK, pulses=PULSES, seed=1):
    channel = Channel(link, run.seed_of(seed, "light"))
    channel.attack(attack)
    (block,) = run.blocks(
        channel,
        seconds=pulses / link.clock_hz,
        seed=seed,
        block_pulses=pulses,
        watch=lambda _: Readings(channel.optics, channel.dice),
    )
    return block.seen, block.watcher


def installed():
    return run.counts_of(watched(pulses=4_000_000_000, seed=99)[0])


INSTALLED = installed()


def findings(attack, link=LINK, seed=1):
    seen, readings = watched(attack, link, seed=seed)
    found = monitors.check_transmitter(readings.transmitter(), link.source.intensities)
    found += monitors.check_receiver(readings.receiver(), PULSES)
    return {finding.monitor for finding in found}, {
        finding.monitor for finding in monitors.check_counts(run.counts_of(seen), INSTALLED)
    }


def test_an_honest_link_passes_every_test_block_after_block():
    for seed in range(40):
        assert findings(Attack(), seed=seed) == (set(), set())


@pytest.mark.parametrize(
    ("attack", "device", "counts"),
    [
        (Attack("intercept-resend"), set(), {"qber", "decoy-ratio"}),
        (Attack("intercept-resend", 0.3), set(), {"decoy-ratio"}),
        (Attack("beam-splitting"), set(), set()),
        (Attack("photon-number-splitting"), set(), {"decoy-ratio"}),
        (Attack("trojan-horse"), {"back-reflection"}, set()),
        (Attack("blinding"), {"entrance-power", "photocurrent", "attenuator"}, {"vacuum"}),
        (Attack("blinding", 1.0, 1e-3), {"entrance-power"}, set()),
        (Attack("after-gate"), {"entrance-power", "arrivals", "attenuator"}, {"bases"}),
        (Attack("time-shift"), {"arrivals"}, set()),
        (Attack("calibration"), {"calibration", "arrivals"}, set()),
        (Attack("passive-faraday-mirror"), {"double-clicks"}, {"qber", "balance", "gain"}),
        (Attack("laser-seeding"), {"output-power", "back-reflection"}, {"gain"}),
        (Attack("cut"), set(), {"gain"}),
    ],
    ids=lambda value: f"{value.kind}-{value.fraction:g}" if isinstance(value, Attack) else None,
)
def test_each_attack_is_seen_by_what_is_there_for_it(attack, device, counts):
    seen_by_device, seen_in_counts = findings(attack)
    assert device <= seen_by_device
    assert counts <= seen_in_counts
    if not device:
        assert seen_by_device <= {"double-clicks"}


def test_the_readings_of_an_honest_block_are_those_of_its_light():
    seen, readings = watched()
    got = readings.receiver()
    first = int(seen.counts[(run.BIT == 0) | run.IS_DOUBLE].sum())
    second = int(seen.counts[(run.BIT == 1) | run.IS_DOUBLE].sum())
    assert got.detector_clicks == [first, second]
    assert got.double_clicks == int(seen.counts[run.IS_DOUBLE].sum())
    assert [sum(histogram) for histogram in got.arrivals] == got.detector_clicks
    assert all(len(histogram) == ARRIVAL_BINS for histogram in got.arrivals)
    assert got.live_fraction == pytest.approx(1 - seen.clicks * LINK.dead_pulses / seen.pulses)
    # Half the light, all of the noise.
    _, clicks, _, behind = got.attenuator_test
    assert stats.binomtest(behind, clicks + behind, 0.3346).pvalue > FALSE_ALARM
    early, central, late = got.slots
    assert stats.binomtest(early + late, early + central + late, 0.5).pvalue > FALSE_ALARM
    # Gates a little apart see pulses a little less well, and alike.
    assert got.efficiency_ratio == pytest.approx(1.0)
    assert got.gate_delays_s == pytest.approx([-10e-12, 10e-12], abs=6e-12)
    own = readings.transmitter()
    assert own.mean_photon_numbers == pytest.approx(LINK.source.intensities, rel=0.03)
    assert own.reverse_power_dbm == pytest.approx(-70, abs=0.5)


def test_a_device_without_monitors_raises_no_alarm():
    from qtrunk.quantum.device import ReceiverReadings, TransmitterReadings

    assert monitors.check_transmitter(TransmitterReadings(), (0.5, 0.2, 0.0)) == []
    assert monitors.check_receiver(ReceiverReadings(), PULSES) == []


def test_readings_that_are_no_numbers_are_findings():
    from qtrunk.quantum.device import ReceiverReadings, TransmitterReadings

    nan = float("nan")
    own = TransmitterReadings(mean_photon_numbers=[nan, 0.2, 0.0], reverse_power_dbm=nan)
    assert {f.monitor for f in monitors.check_transmitter(own, (0.5, 0.2, 0.0))} == {"back-reflection", "output-power"}
    got = ReceiverReadings(
        entrance_power_dbm=nan, photocurrent_a=[nan, 0.0], gate_delays_s=[0.0, nan], efficiency_ratio=nan
    )
    assert {f.monitor for f in monitors.check_receiver(got, PULSES)} == {
        "entrance-power",
        "photocurrent",
        "calibration",
    }


def test_arrival_times_are_those_of_the_pulses_with_the_detectors_jitter():
    channel = Channel(LINK, b"\x01" * 32)
    clicks = channel.sample(b"a" * 32, b"b" * 32, 0, 200_000_000)
    times = arrival_times_ps(LINK, Attack().on(LINK), clicks, Dice(b"\x02" * 32))
    off = times - clicks.positions.astype(float) * 800
    is_light = np.abs(off) < 4 * 26
    assert is_light.mean() > 0.98
    assert off[is_light].std() == pytest.approx(LINK.detectors[0].jitter_s * 1e12, rel=0.03)
    shifted = arrival_times_ps(LINK, Attack("time-shift").on(LINK), clicks, Dice(b"\x02" * 32))
    moved = shifted - clicks.positions.astype(float) * 800
    assert np.abs(moved).mean() == pytest.approx(100, rel=0.05)


def test_the_dice_of_slow_things_are_fair():
    dice = Dice(b"\x03" * 32)
    for trials, chance in ((20, 0.3), (1_000_000, 1e-5), (1_000_000, 0.4)):
        draws = np.array([dice.count(trials, chance) for _ in range(2000)])
        assert abs(draws.mean() - trials * chance) < 6 * (trials * chance * (1 - chance) / 2000) ** 0.5
        assert draws.var() == pytest.approx(trials * chance * (1 - chance), rel=0.25)
        assert draws.min() >= 0
    assert stats.kstest(dice.uniforms(20_000), "uniform").pvalue > FALSE_ALARM
    assert stats.kstest(dice.normals(20_000), "norm").pvalue > FALSE_ALARM
    assert optics().detectors[0].efficiency == 0.125


def test_readings_travel_as_messages():
    from qtrunk.base.wire import encode
    from qtrunk.quantum.device import Finished, decode_event

    for attack in (Attack(), Attack("blinding"), Attack("laser-seeding")):
        _, readings = watched(attack, pulses=20_000_000)
        sent = Finished(block=1, real_time_factor=1.0, transmitter=readings.transmitter(), receiver=readings.receiver())
        assert decode_event(encode(sent)) == sent


@pytest.mark.parametrize(
    "readings",
    [
        {"detector_clicks": [1]},
        {"detector_clicks": [1, -1]},
        {"detector_clicks": [1, 1 << 60]},
        {"double_clicks": -1},
        {"photocurrent_a": [1e-7]},
        {"attenuator_test": [1, 2, 3]},
        {"attenuator_test": [10, -2, 10, 1]},
        {"gate_delays_s": []},
        {"arrivals": [[0] * ARRIVAL_BINS]},
        {"arrivals": [[0] * 3, [0] * 3]},
        {"arrivals": [[-1] * ARRIVAL_BINS, [0] * ARRIVAL_BINS]},
    ],
)
def test_readings_of_the_wrong_shape_cost_the_block_and_do_no_harm(readings):
    from qtrunk.quantum.device import ReceiverReadings, TransmitterReadings

    assert [f.monitor for f in monitors.check_receiver(ReceiverReadings(**readings), PULSES)] == ["readings"]
    own = TransmitterReadings(mean_photon_numbers=[0.5])
    assert [f.monitor for f in monitors.check_transmitter(own, (0.5, 0.2, 0.0))] == ["readings"]


def test_readings_of_a_dark_block_raise_nothing_but_what_is_missing():
    from qtrunk.quantum.device import ReceiverReadings

    dark = ReceiverReadings(
        detector_clicks=[0, 0],
        double_clicks=0,
        arrivals=[[0] * ARRIVAL_BINS] * 2,
        attenuator_test=[0, 0, 0, 0],
        photocurrent_a=[0.0, 0.0],
    )
    assert monitors.check_receiver(dark, PULSES) == []
