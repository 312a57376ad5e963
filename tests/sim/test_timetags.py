"""Time tags made of known pulses, with offset, drift, jitter, dark counts, disorder, wraps: positions come back."""

import numpy as np
import pytest

from qtrunk.base.errors import RequestRefused
from qtrunk.cli.recordings import bases_of_rows, bases_of_seed
from qtrunk.quantum.source import SourceSettings, decode_bases, decode_settings, words
from qtrunk.sim import recording
from qtrunk.sim.recording import Header, read_receiver
from qtrunk.sim.replay import align
from qtrunk.sim.timetags import Wiring, import_time_tags, read_tags

FALSE_ALARM = 1e-6
"""Chance that a statistical assertion here fails by itself."""
CLOCK_HZ = 1.25e9
PERIOD_PS = 800
JITTER_PS = 60
GATE_PS = 600
HEADER = Header(
    link="a-b",
    clock_hz=CLOCK_HZ,
    intensities=(0.5, 0.2, 0.0002),
    probabilities=(0.7, 0.2, 0.1),
    key_basis_probability=0.8,
    source="imported",
    made_unix_s=1.7e9,
)
ALICE, BOB = bytes(range(32)), bytes(range(1, 33))
CLICKS, PULSES = 20_000, 40_000_000
DETECTORS = (3, 7)
BEFORE_PS = 10**15 - 10**6
"""A start between two sync marks, well before the first of the block."""


class Truth:
    """Light that arrived, and what a tagger made of it."""

    def __init__(self, seed=1, *, ppm=5.0, drift_ppm=0.0, dark=1000, delay_ps=0, late_pulses=0, sync_pulses=None):
        self.rng = rng = np.random.default_rng(seed)
        self.positions = np.sort(rng.choice(PULSES, CLICKS, replace=False)).astype(np.uint64)
        source = SourceSettings(HEADER.intensities, HEADER.probabilities, HEADER.key_basis_probability)
        self.source = source
        self.sent = decode_settings(words(ALICE, self.positions), source)
        # Bob's count is what the tagger sees; Alice's may be behind it.
        self.basis = decode_bases(words(BOB, self.positions + np.uint64(late_pulses)), source)
        wrong = np.where(self.sent.basis == self.basis, rng.random(CLICKS) < 0.02, rng.random(CLICKS) < 0.5)
        self.bit = self.sent.bit ^ wrong.astype(np.uint8)
        self.clock = lambda pulses: (
            pulses * PERIOD_PS * (1 + 1e-6 * ppm) + 0.5e-6 * drift_ppm * PERIOD_PS * pulses * (pulses / PULSES)
        )
        arrival = self.clock(self.positions.astype(float) + late_pulses) + rng.normal(0, JITTER_PS, CLICKS)
        arrival[self.bit == 1] += delay_ps
        end_ps = self.clock(float(PULSES))
        times = [arrival, rng.uniform(0, end_ps, dark), rng.uniform(0, end_ps, 50)]
        channels = [np.array(DETECTORS)[self.bit], np.array(DETECTORS)[rng.integers(0, 2, dark)], np.full(50, 9)]
        if sync_pulses is not None:
            marks = self.clock(np.arange(0, PULSES, sync_pulses).astype(float))
            kept = rng.random(len(marks)) > 0.01  # some marks are lost
            kept[0] = True
            times.append((marks + rng.normal(0, JITTER_PS, len(marks)))[kept])
            channels.append(np.full(int(kept.sum()), 1))
        self.times = np.rint(np.concatenate(times)).astype(np.int64)
        self.channels = np.concatenate(channels)
        order = np.argsort(self.times, kind="stable")
        self.times, self.channels = self.times[order], self.channels[order]

    def tags(self, start_ps=10**15, modulus=1 << 64, at_once=3000):
        """In pieces as a device sends them: each channel's tags of a piece together, not in order of time."""
        for begin in range(0, len(self.times), at_once):
            times, channels = self.times[begin : begin + at_once], self.channels[begin : begin + at_once]
            order = np.argsort(channels, kind="stable")
            raw = np.array([(int(t) + start_ps) % modulus for t in times[order]], np.uint64)
            yield raw, channels[order]


def take(truth, path, tags=None, wiring=None, bases=None, **options):
    return import_time_tags(
        truth.tags() if tags is None else tags,
        path,
        HEADER,
        wiring or Wiring(detectors=DETECTORS),
        bases=bases or bases_of_seed(BOB, truth.source),
        uniforms=np.random.default_rng(99).random,
        **{"pulses": PULSES, "gate_ps": GATE_PS, "start_ps": 10**15, **options},
    )


def check(truth, path, least=0.999):
    """Positions, bases and bits are the true ones, but for dark counts; the block."""
    block = read_receiver(path).read(1)
    found = block.detections
    at = np.searchsorted(truth.positions, found.positions)
    is_true = np.append(truth.positions, 0)[at] == found.positions
    assert is_true.sum() >= least * CLICKS
    single = is_true & (block.detectors != 2)
    assert single.sum() > 0.99 * is_true.sum()
    assert np.array_equal(found.basis[single], truth.basis[at[single]])
    # A dark count in the gate of a click that came later takes its place: less than one in 10^4.
    assert np.mean(found.bit[single] != truth.bit[at[single]]) < 1e-3
    return block


def test_every_click_finds_its_pulse_at_5_ppm_and_60_ps_of_jitter(tmp_path):
    truth = Truth()
    report = take(truth, tmp_path / "r.parquet")
    block = check(truth, tmp_path / "r.parquet", least=1 - 1e-4)
    assert report.records == CLICKS + 1050
    assert report.other_channels == 50
    assert report.clicks + report.out_of_gate + report.repeated + report.double_clicks == CLICKS + 1000
    assert report.clicks == len(block.times_ps)
    assert report.last_offset_ppm == pytest.approx(-5, abs=0.05)
    # Dark counts are even over the slot, so 200 of 800 ps drop a quarter of them: normal, sigma 13.7.
    assert abs(report.out_of_gate - 250) < 4.9 * 13.7


def test_times_are_kept_on_the_transmitters_clock(tmp_path):
    truth = Truth(dark=0)
    take(truth, tmp_path / "r.parquet")
    block = read_receiver(tmp_path / "r.parquet").read(1)
    late_ps = block.times_ps - block.detections.positions.astype(np.int64) * PERIOD_PS
    # 20,000 normal numbers: the mean within 5 sigma of 0.4 ps, with as much for the fit of 512 marks.
    assert abs(late_ps.mean()) < 5 * (JITTER_PS / np.sqrt(CLICKS) + 0.1)
    assert late_ps.std() == pytest.approx(JITTER_PS, rel=0.05)


@pytest.mark.parametrize("ppm", [-90, 0, 90])
@pytest.mark.parametrize("drift_ppm", [-0.05, 0.05])
def test_a_clock_that_drifts_is_followed(tmp_path, ppm, drift_ppm):
    truth = Truth(2, ppm=ppm, drift_ppm=drift_ppm)
    report = take(truth, tmp_path / "r.parquet")
    check(truth, tmp_path / "r.parquet")
    assert report.last_offset_ppm - report.first_offset_ppm == pytest.approx(-drift_ppm, rel=0.1)


@pytest.mark.parametrize("delay_ps", [250, 380])
def test_a_detector_that_is_late_by_part_of_a_slot_is_found_out_and_shown(tmp_path, delay_ps):
    truth = Truth(3, delay_ps=delay_ps, dark=100)
    take(truth, tmp_path / "r.parquet")
    block = check(truth, tmp_path / "r.parquet")
    late_ps = block.times_ps - block.detections.positions.astype(np.int64) * PERIOD_PS
    assert np.median(late_ps[block.detectors == 1]) - np.median(late_ps[block.detectors == 0]) == pytest.approx(
        delay_ps, abs=8
    )


def test_a_calibrated_delay_of_many_slots_is_taken_off(tmp_path):
    truth = Truth(4, delay_ps=123_456)
    take(truth, tmp_path / "r.parquet", wiring=Wiring(detectors=DETECTORS, delays_ps={DETECTORS[1]: 123_400}))
    check(truth, tmp_path / "r.parquet")


def test_a_counter_that_starts_again_is_unwrapped(tmp_path):
    truth = Truth(5)
    # 17 ms: twice within the run.
    tags = truth.tags(start_ps=(1 << 34) - 10**9, modulus=1 << 34)
    wiring = Wiring(detectors=DETECTORS, counter_bits=34)
    take(truth, tmp_path / "r.parquet", tags, wiring, start_ps=(1 << 34) - 10**9)
    check(truth, tmp_path / "r.parquet")


def test_sync_marks_of_which_some_are_lost_give_the_clock(tmp_path):
    truth = Truth(6, sync_pulses=10_000, dark=20_000)
    wiring = Wiring(detectors=DETECTORS, sync=1, sync_pulses=10_000)
    report = take(truth, tmp_path / "r.parquet", wiring=wiring, start_ps=BEFORE_PS)
    check(truth, tmp_path / "r.parquet", least=0.99)
    assert report.other_channels == 50


def test_the_offset_between_sync_and_light_is_found_from_disclosed_positions(tmp_path):
    late_pulses = 54_321
    truth = Truth(7, sync_pulses=10_000, late_pulses=late_pulses)
    wiring = Wiring(detectors=DETECTORS, sync=1, sync_pulses=10_000)
    told = np.arange(100_000, 3_000_000, dtype=np.uint64)
    sent = decode_settings(words(ALICE, told), truth.source)
    report = take(truth, tmp_path / "r.parquet", wiring=wiring, disclosed=(told, sent), start_ps=BEFORE_PS)
    assert report.offset_pulses == -late_pulses
    positions = read_receiver(tmp_path / "r.parquet").read(1).detections.positions
    is_told = (truth.positions >= told[0]) & (truth.positions <= told[-1])
    assert not np.isin(positions, told).any(), "what was disclosed is no key"
    assert report.disclosed >= is_told.sum() - 1
    # Light of the block's end arrives after the tags of the block ended.
    still = truth.positions[~is_told & (truth.positions < PULSES - late_pulses)]
    assert np.isin(still, positions).mean() > 0.999
    again = take(truth, tmp_path / "again.parquet", wiring=wiring, offset=-late_pulses, start_ps=BEFORE_PS)
    assert again.clicks == report.clicks + report.disclosed


def test_align_refuses_what_does_not_stand_out():
    truth = Truth(8)
    told = np.arange(0, 4_000_000, dtype=np.uint64)
    sent = decode_settings(words(bytes(32), told), truth.source)
    with pytest.raises(RequestRefused, match="too few"):
        align(truth.positions, truth.basis, truth.bit, told, sent)
    right = decode_settings(words(ALICE, told), truth.source)
    for offset in (-70_000, 0, 70_001):
        moved = (truth.positions[truth.positions >= 70_000].astype(np.int64) - offset).astype(np.uint64)
        chosen = truth.positions >= 70_000
        assert align(moved, truth.basis[chosen], truth.bit[chosen], told, right) == offset


def test_both_detectors_in_one_gate_are_one_click_with_a_fair_coin(tmp_path):
    truth = Truth(9, dark=0)
    doubled = np.flatnonzero(truth.channels == DETECTORS[0])
    truth.times = np.append(truth.times, truth.times[doubled] + 20)
    truth.channels = np.append(truth.channels, np.full(len(doubled), DETECTORS[1]))
    # And each of the second detector's tags twice: electronic ringing within the gate.
    rung = np.flatnonzero(truth.channels == DETECTORS[1])
    truth.times = np.append(truth.times, truth.times[rung] + 10)
    truth.channels = np.append(truth.channels, np.full(len(rung), DETECTORS[1]))
    order = np.argsort(truth.times, kind="stable")
    truth.times, truth.channels = truth.times[order], truth.channels[order]
    report = take(truth, tmp_path / "r.parquet")
    block = read_receiver(tmp_path / "r.parquet").read(1)
    assert np.array_equal(block.detections.positions, truth.positions)
    assert np.array_equal(block.detectors == 2, truth.bit == 0)
    assert report.double_clicks == len(doubled)
    assert report.repeated == len(rung)
    coins = block.detections.bit[block.detectors == 2]
    assert abs(coins.mean() - 0.5) < 4.9 * 0.5 / np.sqrt(len(coins)), f"false alarm {FALSE_ALARM}"


def test_a_passive_receivers_basis_is_its_channel(tmp_path):
    truth = Truth(10, dark=0)
    is_click = np.isin(truth.channels, DETECTORS)
    at = np.searchsorted(truth.clock(truth.positions.astype(float)), truth.times[is_click] + 400) - 1
    passive = np.array([[10, 11], [12, 13]])[truth.basis[at], truth.bit[at]]
    truth.channels[is_click] = passive
    import_time_tags(
        truth.tags(),
        tmp_path / "r.parquet",
        HEADER,
        Wiring(detectors=(10, 11, 12, 13)),
        pulses=PULSES,
        gate_ps=GATE_PS,
        start_ps=10**15,
        uniforms=np.random.default_rng(1).random,
    )
    block = read_receiver(tmp_path / "r.parquet").read(1)
    assert np.array_equal(block.detections.positions, truth.positions)
    assert np.array_equal(block.detections.basis, truth.basis)
    assert np.array_equal(block.detections.bit, truth.bit)


def test_a_long_run_is_cut_into_blocks(tmp_path):
    truth = Truth(11)
    report = take(truth, tmp_path / "r.parquet", pulses=PULSES // 4, blocks=range(40, 46))
    recording = read_receiver(tmp_path / "r.parquet")
    assert recording.finished == (40, 41, 42, 43, 44, 45)
    whole = np.concatenate(
        [block.detections.positions + np.uint64((block.pulses.block - 40) * PULSES // 4) for block in recording]
    )
    assert np.isin(truth.positions, whole).all()
    assert report.clicks == len(whole)
    assert len(recording.read(45).times_ps) == 0, "a block without a click is a block"


def write_raw(path, tags, channel):
    with path.open("wb") as out:
        for times, channels in tags:
            records = np.zeros(len(times), [("t", "<u8"), ("c", channel)])
            records["t"], records["c"] = times, channels
            out.write(records.tobytes())


@pytest.mark.parametrize("format_", ["csv", "parquet", "raw8", "raw16"])
def test_every_file_format_gives_the_same_tags(tmp_path, format_):
    truth = Truth(12)
    path = tmp_path / "tags"
    times, channels = (np.concatenate(part) for part in zip(*truth.tags(), strict=True))
    if format_ == "csv":
        rows = (f"{c},{t}" for t, c in zip(times, channels, strict=True))
        path.write_text("channel,time_ps\n" + "\n".join(rows) + "\n")
    elif format_ == "parquet":
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.table({"channel": channels, "time_ps": times}), path)
    else:
        write_raw(path, truth.tags(), "<u1" if format_ == "raw8" else "<u2")
    read = [np.concatenate(part) for part in zip(*read_tags(path, format_), strict=True)]
    assert np.array_equal(read[0], times)
    assert np.array_equal(read[1], channels)


@pytest.mark.parametrize(
    ("octets", "format_", "why"),
    [
        (b"time_ps,colour\n1,2\n", "csv", "channel"),
        (b"time_ps,channel\n1,red\n", "csv", "red"),
        (b"time_ps,channel\n1,\n", "csv", "empty"),
        (b"12345678a12", "raw8", "within a record"),
        (b"PAR1", "parquet", "tags"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, octets, format_, why):
    path = tmp_path / "tags"
    path.write_bytes(octets)
    with pytest.raises(RequestRefused, match=why) as refused:
        list(read_tags(path, format_))
    assert str(path) in str(refused.value)


def test_bases_that_the_receiver_noted_are_looked_up(tmp_path):
    truth = Truth(13, dark=0)
    path = tmp_path / "bases.csv"
    rows = zip(truth.positions.tolist(), truth.basis.tolist(), strict=True)
    path.write_text("position,basis\n" + "".join(f"{position},{basis}\n" for position, basis in rows))
    take(truth, tmp_path / "r.parquet", bases=bases_of_rows(path))
    check(truth, tmp_path / "r.parquet")
    look_up = bases_of_rows(path)
    with pytest.raises(RequestRefused, match="no row"):
        look_up(truth.positions[:2] + np.uint64(1))


def test_without_a_clock_nothing_is_guessed_and_no_file_is_left(tmp_path):
    rng = np.random.default_rng(14)
    noise = np.sort(rng.integers(0, 10**11, 50_000)).astype(np.uint64)
    path = tmp_path / "r.parquet"
    with pytest.raises(RequestRefused, match="no clock"):
        take(Truth(14), path, [(noise, rng.choice(DETECTORS, 50_000))])
    assert not path.exists()
    with pytest.raises(RequestRefused, match="is the channel right"):
        take(Truth(14), path, wiring=Wiring(detectors=(4, 7)))
    assert not path.exists()


def test_a_jump_of_the_clock_ends_the_import(tmp_path):
    truth = Truth(15)
    truth.times[len(truth.times) // 2 :] += 300
    with pytest.raises(RequestRefused, match="clock is lost"):
        take(truth, tmp_path / "r.parquet")


def test_a_tag_that_comes_much_too_late_is_refused(tmp_path):
    truth = Truth(16)
    late = (np.array([10**15 + 10], np.uint64), np.array([DETECTORS[0]]))
    with pytest.raises(RequestRefused, match="too late"):
        take(truth, tmp_path / "r.parquet", [*truth.tags(), late])


@pytest.mark.parametrize(
    "wrong",
    [
        {"gate_ps": 900},
        {"gate_ps": 0},
        {"pulses": 0},
        {"wiring": Wiring(detectors=(1,))},
        {"wiring": Wiring(detectors=(1, 1))},
        {"wiring": Wiring(detectors=(1, 2, 3, 4))},
        {"wiring": Wiring(detectors=(1, 2), sync=2)},
        {"wiring": Wiring(detectors=(1, 2), counter_bits=65)},
    ],
)
def test_orders_that_make_no_sense_are_refused(tmp_path, wrong):
    with pytest.raises(RequestRefused):
        take(Truth(17), tmp_path / "r.parquet", **wrong)
    assert not (tmp_path / "r.parquet").exists()


def test_memory_follows_the_pieces_and_not_the_file(tmp_path, monkeypatch):
    tracemalloc = pytest.importorskip("tracemalloc")
    # A group of rows waits in memory by design: here a small one, that both files fill several times.
    monkeypatch.setattr(recording, "ROWS_PER_GROUP", 1 << 15)
    truth = Truth(18, dark=0)
    end_ps = round(truth.clock(float(PULSES)))

    def peak(repeats):
        def tags():
            for number in range(repeats):
                yield from truth.tags(start_ps=number * end_ps)

        tracemalloc.start()
        take(truth, tmp_path / f"{repeats}.parquet", tags(), start_ps=0, pulses=PULSES, blocks=range(repeats))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(24) < 1.5 * peak(12)
