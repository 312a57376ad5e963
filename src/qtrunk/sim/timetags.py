"""Time tags of a real receiver into the receiver's file of a recording.

A time tagger notes (time, channel) of every detector click and knows nothing of pulses. Here its clock is followed
against the transmitter's, each click is given to the pulse whose slot it fell into, and clicks in one slot are merged.

Clock recovery. The marks are those of a sync channel where there is one, else the clicks of the first detector: events
that lie, but for jitter and noise, at whole numbers of a nominal period. The first PIECE_MARKS of them give the
frequency offset as the peak of the periodogram sum exp(-2 pi i f t), by FFT over +-OFFSET_MAX of the nominal frequency.
From then on a line is fitted to the phases of each further piece (Tretter, IEEE Trans. Inf. Theory 31, 832 (1985), with
two points), so drift is followed as long as it stays below a quarter of a period from one piece to the next. A piece
without a periodic part (false alarm FALSE_LOCK) ends the import: positions behind it would be guesses. The fold of each
detector's clicks gives its delay within a slot. The whole number of slots between sync mark and light is not in the
tags: `align` finds it from a disclosed sample.

Memory: a piece of records, whatever the file's length.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import log
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from qtrunk.base.errors import RequestRefused
from qtrunk.kernels import F64, I64
from qtrunk.sim.recording import Header, ReceiverWriter, arrow, found_at, naming
from qtrunk.sim.replay import FALSE_LOCK, OFFSET_PULSES_MAX, align
from qtrunk.stages import Octets, Positions, Settings

OFFSET_MAX = 1e-4
"""Of the tagger's clock against the transmitter's, relative."""
PIECE_MARKS = 512
DISORDER_PS = 10**10
"""Records may come so much too late."""
_RECORDS_AT_ONCE = 1 << 18
_FFT_MAX = 1 << 24
_PS_PER_S = 1e12

Tags = tuple[NDArray[np.uint64], I64]
"""Times in ps as the tagger counts them, and channels."""
_Ordered = tuple[I64, I64]
Format = Literal["csv", "raw8", "raw16", "parquet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """How the tagger is wired."""

    detectors: tuple[int, ...]
    """Channels of bit 0 and 1; where a beam splitter chooses the basis, key basis, then test basis."""
    sync: int | None = None
    """Channel of the sync marks, which are derived from the transmitter's clock."""
    sync_pulses: int = 1
    """Clock pulses from one sync mark to the next."""
    delays_ps: Mapping[int, int] = field(default_factory=dict)
    """How late a channel's signal comes, as calibrated; differences below half a period may be left out."""
    counter_bits: int = 64
    """The tagger's counter starts again after 2^counter_bits ps: at least twice the longest gap or disorder."""


@dataclass(slots=True, kw_only=True)
class ImportReport:
    """What became of the tags: `clicks` are rows written. Left out are those outside the gate, before the first pulse
    or after the last, repeated by one detector in one slot, and at disclosed positions. Offsets in ppm are of the
    transmitter's clock as the tagger sees it.
    """

    records: int = 0
    clicks: int = 0
    double_clicks: int = 0
    out_of_gate: int = 0
    out_of_block: int = 0
    repeated: int = 0
    disclosed: int = 0
    other_channels: int = 0
    offset_pulses: int = 0
    first_offset_ppm: float = 0.0
    last_offset_ppm: float = 0.0


def read_tags(path: Path, format_: Format) -> Iterator[Tags]:
    """The records of a tagger's file, piece by piece: `csv` and `parquet` with columns time_ps and channel, `raw8` and
    `raw16` records of a little-endian uint64 time in ps and a channel of so many bits. RequestRefused names the file.
    """
    if format_ in ("csv", "parquet"):
        yield from read_columns(path, format_, "time_ps", "channel")
        return
    record = np.dtype([("time_ps", "<u8"), ("channel", "<u1" if format_ == "raw8" else "<u2")])
    with naming(path), path.open("rb") as file:
        while octets := file.read(_RECORDS_AT_ONCE * record.itemsize):
            if len(octets) % record.itemsize:
                raise RequestRefused(f"{path}: ends within a record of {record.itemsize} octets")
            records = np.frombuffer(octets, record)
            yield records["time_ps"].astype(np.uint64), records["channel"].astype(np.int64)


def read_columns(path: Path, format_: str, first: str, second: str) -> Iterator[Tags]:
    """Two columns of whole numbers of a CSV or Parquet file, piece by piece; RequestRefused names the file."""
    types = {first: "uint64", second: "int64"}
    with naming(path):
        if format_ == "csv":
            csv = arrow("pyarrow.csv")
            options = csv.ConvertOptions(column_types=types, include_columns=list(types))
            batches = csv.open_csv(path, csv.ReadOptions(use_threads=False), convert_options=options)
        else:
            batches = arrow("pyarrow.parquet").ParquetFile(path).iter_batches(_RECORDS_AT_ONCE, columns=list(types))
        for batch in batches:
            columns = [batch.column(name).cast(type_) for name, type_ in types.items() if name in batch.schema.names]
            if len(columns) < 2 or any(column.null_count for column in columns):
                raise RequestRefused(f"{path}: {first}, {second}: two columns without empty cells are needed")
            left, right = (column.to_numpy(zero_copy_only=False) for column in columns)
            yield left, right


def _ordered(tags: Iterable[Tags], wiring: Wiring, start_ps: int | None, report: ImportReport) -> Iterator[_Ordered]:
    """Times since the start in ascending order, and channels: the counter unwrapped, delays taken off."""
    times, channels = np.zeros(0, np.int64), np.zeros(0, np.int64)
    modulus_bits = np.uint64(64 - wiring.counter_bits)
    previous: np.uint64 | None = None
    elapsed, emitted = 0, -(1 << 62)
    for raw, channel in tags:
        if not len(raw):
            continue
        report.records += len(raw)
        if previous is None:
            # The start is where the count begins; tags before it get negative times.
            previous = np.uint64(start_ps if start_ps is not None else int(raw[0]))
        # Differences modulo the counter's range, as signed numbers: shifted to the top of 64 bits and back.
        steps = (np.diff(raw, prepend=previous) << modulus_bits).view(np.int64) >> modulus_bits.astype(np.int64)
        unwrapped = elapsed + np.cumsum(steps)
        previous, elapsed = raw[-1], int(unwrapped[-1])
        for number, delay_ps in wiring.delays_ps.items():
            unwrapped[channel == number] -= delay_ps
        times, channels = np.append(times, unwrapped), np.append(channels, channel)
        order = np.argsort(times, kind="stable")
        times, channels = times[order], channels[order]
        if times[0] < emitted:
            raise RequestRefused(f"time tags: a record comes more than {DISORDER_PS} ps too late")
        ready = int(np.searchsorted(times, times[-1] - DISORDER_PS))
        emitted = int(times[-1]) - DISORDER_PS if ready else emitted
        yield times[:ready], channels[:ready]
        times, channels = times[ready:], channels[ready:]
    yield times, channels


def _wrapped(cycles: F64 | float) -> F64:
    """To the nearest whole number, from -1/2 to 1/2."""
    return np.asarray(cycles - np.rint(cycles))


def _turns(vector: complex) -> float:
    """Direction of a complex number, in turns."""
    return float(np.angle(vector)) / (2 * np.pi)


class _Clock:
    """Clock pulses as a function of the tagger's time, a line for each piece."""

    def __init__(self, clock_hz: float, mark_pulses: int) -> None:
        self._nominal = clock_hz / mark_pulses / _PS_PER_S
        self._mark_pulses = mark_pulses
        self._rate = self._nominal
        """Marks per ps."""
        self._time_ps = 0
        self._marks = 0
        self._part = 0.0
        """At `time_ps` so many marks and this part of one had passed."""
        self._is_locked = False

    @property
    def offset_ppm(self) -> float:
        """Of the frequency, against the nominal one."""
        return float(1e6 * (self._rate / self._nominal - 1))

    def follow(self, marks: I64) -> None:
        """Fit the line to a piece's marks; RequestRefused where they are not periodic as they should be."""
        if not self._is_locked:
            self._lock(marks)
        elapsed, vectors = (marks - self._time_ps).astype(float), np.exp(2j * np.pi * self._phases(marks)[1])
        total = vectors.sum()
        off = _turns(total)
        if abs(total) ** 2 / max(1, len(marks)) < log(1 / FALSE_LOCK) or abs(off) > 0.25:
            raise RequestRefused(f"time tags: the clock is lost {marks[0] / _PS_PER_S:.6f} s after the start")
        half = len(marks) // 2
        slope = 0.0
        if elapsed[half:].mean() > elapsed[:half].mean():
            turn = _turns(vectors[half:].sum() * np.conj(vectors[:half].sum()))
            slope = turn / (elapsed[half:].mean() - elapsed[:half].mean())
        self._rate -= slope
        self._part += slope * elapsed.mean() - off
        last = marks[-1]
        whole, part = self._phases(np.array([last]))
        self._marks, self._part, self._time_ps = int(whole[0]), float(part[0]), int(last)

    def _lock(self, marks: I64) -> None:
        """The frequency as the highest peak of the periodogram, and the phase that goes with it."""
        if not len(marks):
            raise RequestRefused("time tags: not one mark of the clock: is the channel right?")
        self._time_ps = int(marks[0])
        elapsed = (marks - self._time_ps).astype(float)
        bin_ps = 1 / (4 * OFFSET_MAX * self._nominal)
        at = (elapsed / bin_ps).astype(np.int64)
        size = fft.next_fast_len(max(16, 4 * (int(at[-1]) + 1)))
        if size > _FFT_MAX:
            raise RequestRefused("time tags: too few clicks of the first detector to find the clock: sync is needed")
        phases = 2 * np.pi * _wrapped(elapsed * self._nominal)
        binned = np.bincount(at, np.cos(phases), size) + 1j * np.bincount(at, np.sin(phases), size)
        spectrum = fft.ifft(binned, norm="forward")
        numbers = np.rint(fft.fftfreq(size) * size)
        spectrum[np.abs(numbers) > size / 4] = 0
        peak = int(np.argmax(np.abs(spectrum)))
        if abs(spectrum[peak]) ** 2 / len(marks) < log(size / FALSE_LOCK):
            raise RequestRefused(f"time tags: no clock within {OFFSET_MAX:.0e} of the nominal in {len(marks)} marks")
        self._rate = self._nominal + numbers[peak] / (size * bin_ps)
        self._part = -_turns(spectrum[peak])
        self._is_locked = True

    def _phases(self, times: I64) -> tuple[I64, F64]:
        """Whole marks, and the rest from -1/2 to 1/2."""
        marks = self._rate * (times - self._time_ps) + self._part
        whole = np.rint(marks)
        return whole.astype(np.int64) + self._marks, marks - whole

    def pulses(self, times: I64) -> tuple[I64, F64]:
        """Whole pulses, and the rest from -1/2 to 1/2, at these times."""
        whole, part = self._phases(times)
        pulses = part * self._mark_pulses
        nearest = np.rint(pulses)
        return whole * self._mark_pulses + nearest.astype(np.int64), pulses - nearest


class _Folds:
    """Where in the slot each detector's clicks lie, in pulses: followed as it drifts, never by a whole slot at once."""

    def __init__(self, detectors: int) -> None:
        self._sums = np.zeros(detectors, complex)
        self._counts = np.zeros(detectors)
        self._noted = 0
        self._is_clear = np.zeros(detectors, bool)
        self.centres = np.zeros(detectors)

    @property
    def is_known(self) -> bool:
        """Whether every detector has shown where its clicks lie, or had its chance."""
        return bool(self._is_clear.all() or (self._is_clear[0] and self._noted > 4 * PIECE_MARKS))

    def note(self, detectors: I64, rests: F64) -> None:
        """Take in a piece; what is older counts less and less."""
        number = len(self._sums)
        counts = np.bincount(detectors, minlength=number)
        phases = 2 * np.pi * rests
        seen = np.bincount(detectors, np.cos(phases), number) + 1j * np.bincount(detectors, np.sin(phases), number)
        kept = np.exp(-counts / PIECE_MARKS)
        self._sums, self._counts = kept * self._sums + seen, kept * self._counts + counts
        self._noted += int(counts[0])
        for i in range(number):
            # The first time a detector is put within half a slot of the first detector.
            near = self.centres[i if self._is_clear[i] else 0]
            if abs(self._sums[i]) ** 2 > log(1 / FALSE_LOCK) * max(1.0, self._counts[i]):
                self._is_clear[i] = True
                near += float(_wrapped(_turns(self._sums[i]) - near))
            self.centres[i] = near


_CLICK = np.dtype([("pulse", np.int64), ("detectors", np.uint8), ("late_ps", np.float64)])
"""Pulses since the start; a mask of the detectors that clicked; after the pulse was due, by the first detector."""
_Clicks = NDArray[np.void]


class _Assignment:
    """From tags in order to clicks in slots."""

    def __init__(self, wiring: Wiring, clock_hz: float, gate_ps: float, report: ImportReport) -> None:
        self._wiring = wiring
        self._period_ps = _PS_PER_S / clock_hz
        self._gate = gate_ps / self._period_ps
        self._report = report
        self._is_synced = wiring.sync is not None
        self._mark_channel = wiring.detectors[0] if wiring.sync is None else wiring.sync
        self._clock = _Clock(clock_hz, wiring.sync_pulses if self._is_synced else 1)
        self._folds = _Folds(len(wiring.detectors))
        self._first_pulse: int | None = None
        self._held: list[tuple[I64, I64, F64]] = []

    def pieces(self, ordered: Iterable[_Ordered]) -> Iterator[_Ordered]:
        """Cut the tags so that each piece has PIECE_MARKS marks; the last has what is left, up to twice as many."""
        times, channels = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for more_times, more_channels in ordered:
            times, channels = np.append(times, more_times), np.append(channels, more_channels)
            marks = np.flatnonzero(channels == self._mark_channel)
            if len(times) > _FFT_MAX:
                raise RequestRefused(f"time tags: {len(marks)} marks in {len(times)} records: is the channel right?")
            begin = 0
            for number in range(PIECE_MARKS, len(marks) - PIECE_MARKS, PIECE_MARKS):
                end = int(marks[number])
                yield times[begin:end], channels[begin:end]
                begin = end
            times, channels = times[begin:], channels[begin:]
        yield times, channels

    def take(self, times: I64, channels: I64) -> Iterator[_Clicks]:
        """Clicks of a piece, and of earlier ones that waited for the folds to be known."""
        marks = times[channels == self._mark_channel]
        self._clock.follow(marks)
        report = self._report
        report.last_offset_ppm = self._clock.offset_ppm
        report.first_offset_ppm = report.first_offset_ppm or report.last_offset_ppm
        if self._first_pulse is None and times[-1] >= 0:
            self._first_pulse = self._find_first_pulse(marks)
        is_click = np.isin(channels, self._wiring.detectors)
        report.other_channels += len(channels) - int(is_click.sum()) - (len(marks) if self._is_synced else 0)
        if self._first_pulse is None:
            report.out_of_block += int(is_click.sum())
            return
        channel = channels[is_click]
        detectors = np.argmax(channel[:, None] == np.array(self._wiring.detectors), axis=1)
        whole, rests = self._clock.pulses(times[is_click])
        self._folds.note(detectors, rests)
        self._held.append((whole - self._first_pulse, detectors, rests))
        if self._folds.is_known:
            yield from self.release()

    def _find_first_pulse(self, marks: I64) -> int | None:
        """That of the first sync mark after the start, else the one whose slot the start lies in."""
        if not self._is_synced:
            return int(self._clock.pulses(np.zeros(1, np.int64))[0][0])
        step = self._wiring.sync_pulses
        after = self._clock.pulses(marks[marks >= 0])[0]
        return round(int(after[0]) / step) * step if len(after) else None

    def release(self) -> Iterator[_Clicks]:
        """What was held back, each click in its slot; those outside the gate are dropped."""
        centres = self._folds.centres
        held, self._held = self._held, []
        for whole, detectors, rests in held:
            slots = rests - centres[detectors]
            nearest = np.rint(slots)
            in_gate = np.abs(slots - nearest) <= self._gate / 2
            self._report.out_of_gate += len(slots) - int(in_gate.sum())
            clicks = np.empty(len(slots), _CLICK)
            clicks["pulse"] = whole + nearest.astype(np.int64)
            clicks["detectors"] = 1 << detectors
            clicks["late_ps"] = self._period_ps * (slots - nearest + _wrapped(centres - centres[0])[detectors])
            is_late_enough = clicks["pulse"] >= 0
            self._report.out_of_block += int(np.sum(in_gate & ~is_late_enough))
            yield clicks[in_gate & is_late_enough]


def _merged(found: Iterable[_Clicks], report: ImportReport) -> Iterator[_Clicks]:
    """One click for each slot, in order."""
    waiting, count = [np.zeros(0, _CLICK)], 0
    for clicks in found:
        waiting.append(clicks)
        count += len(clicks)
        if count >= _RECORDS_AT_ONCE // 4:
            whole = np.sort(np.concatenate(waiting), order="pulse")
            # Detectors differ by up to a slot, so the newest slots may yet get a click.
            ready = int(np.searchsorted(whole["pulse"], whole["pulse"][-1] - 4))
            yield _merge(whole[:ready], report)
            waiting, count = [whole[ready:]], len(whole) - ready
    yield _merge(np.sort(np.concatenate(waiting), order="pulse"), report)


def _merge(clicks: _Clicks, report: ImportReport) -> _Clicks:
    if not len(clicks):
        return clicks
    starts = np.flatnonzero(np.diff(clicks["pulse"], prepend=clicks["pulse"][0] - 1))
    made = clicks[starts]
    made["detectors"] = np.bitwise_or.reduceat(clicks["detectors"], starts)
    report.repeated += len(clicks) - int(np.bitwise_count(made["detectors"]).sum())
    return made


_BITS = np.dtype(
    [("position", np.int64), ("basis", np.uint8), ("bit", np.uint8), ("detector", np.uint8), ("late_ps", np.float64)]
)
"""Clicks as the receiver's file has them."""


def _decide(clicks: _Clicks, bases: Callable[[Positions], Octets] | None, uniforms: Callable[[int], F64]) -> _Clicks:
    """Bits and bases. Where several detectors clicked the bit is a coin, and so is the basis where both bases did."""
    mask = clicks["detectors"]
    coins = uniforms(2 * len(mask)).reshape(2, -1) < 0.5
    has_several = np.bitwise_count(mask) > 1
    made = np.empty(len(mask), _BITS)
    made["position"], made["late_ps"] = clicks["pulse"], clicks["late_ps"]
    if bases is None:
        made["basis"] = np.where((mask & 3 > 0) & (mask & 12 > 0), coins[0], mask & 12 > 0)
    else:
        made["basis"] = bases(clicks["pulse"].astype(np.uint64))
    made["detector"] = np.where(has_several, 2, mask & 10 > 0)
    made["bit"] = np.where(has_several, coins[1], mask & 10 > 0)
    return made


def import_time_tags(
    tags: Iterable[Tags],
    path: Path,
    header: Header,
    wiring: Wiring,
    *,
    pulses: int,
    gate_ps: float,
    uniforms: Callable[[int], F64],
    bases: Callable[[Positions], Octets] | None = None,
    blocks: range = range(1, 2),
    start_ps: int | None = None,
    offset: int = 0,
    disclosed: tuple[Positions, Settings] | None = None,
) -> ImportReport:
    """Write a receiver's file from time tags (`read_tags`).

    The light is the blocks of these numbers, each of `pulses` pulses, from the tagger's time `start_ps` on (first tag
    by default), at the header's clock. `bases` tells the receiver's basis at pulses counted from the start; None: the
    wiring does. Clicks more than half of `gate_ps` away from the middle of their slot are dropped. Pulse p since the
    start becomes position p + `offset`; where `disclosed` positions are given, with what was sent there, `align` finds
    the number, and clicks there are left out. `uniforms` gives numbers in [0, 1) for coins, fit for secrets.

    RequestRefused where the tags are not what they should be; no file is left then.
    """
    period_ps = _PS_PER_S / header.clock_hz
    if len(set(wiring.detectors)) not in (2, 4) or wiring.sync in wiring.detectors or wiring.sync_pulses < 1:
        raise RequestRefused("wiring: two or four detector channels, a sync channel of its own, sync_pulses from 1")
    if (bases is None) != (len(set(wiring.detectors)) == 4) or not 1 <= wiring.counter_bits <= 64:
        raise RequestRefused("wiring: bases for two detectors, none for four; counter_bits from 1 to 64")
    if not 0 < gate_ps <= period_ps or pulses < 1 or not blocks:
        raise RequestRefused(f"gate_ps: above 0, up to the clock period of {period_ps:g} ps; pulses: from 1")
    report = ImportReport(offset_pulses=offset)
    assignment = _Assignment(wiring, header.clock_hz, gate_ps, report)
    pieces = assignment.pieces(_ordered(tags, wiring, start_ps, report))
    in_slots = chain.from_iterable(chain((assignment.take(*piece) for piece in pieces), [assignment.release()]))
    merged = _merged(in_slots, report)
    clicks: Iterator[_Clicks] = (_decide(part, bases, uniforms) for part in merged)
    with ReceiverWriter(path, header) as writer:
        try:
            if disclosed is not None:
                clicks, report.offset_pulses = _aligned(clicks, disclosed)
            told = np.zeros(0, np.int64) if disclosed is None else disclosed[0].astype(np.int64)
            _write(writer, clicks, report, told, blocks, pulses)
        except BaseException:
            path.unlink()
            raise
    return report


def _aligned(clicks: Iterator[_Clicks], disclosed: tuple[Positions, Settings]) -> tuple[Iterator[_Clicks], int]:
    """Read as many clicks as disclosed positions can concern; all clicks again, and the offset."""
    last = int(disclosed[0][-1]) + OFFSET_PULSES_MAX if len(disclosed[0]) else 0
    seen = [np.zeros(0, _BITS)]
    for part in clicks:
        seen.append(part)
        if len(part) and part["position"][-1] > last:
            break
    whole = np.concatenate(seen)
    offset = align(whole["position"].astype(np.uint64), whole["basis"], whole["bit"], *disclosed)
    return chain([whole], clicks), offset


def _write(
    writer: ReceiverWriter, clicks: Iterable[_Clicks], report: ImportReport, told: I64, blocks: range, pulses: int
) -> None:
    """All blocks, those without a click too."""
    done, period_ps = 0, _PS_PER_S / writer.header.clock_hz
    for part in clicks:
        part["position"] += report.offset_pulses
        is_inside = (part["position"] >= 0) & (part["position"] < pulses * len(blocks))
        is_told = found_at(told, part["position"])[1] & is_inside
        report.out_of_block += len(part) - int(is_inside.sum())
        report.disclosed += int(is_told.sum())
        kept = part[is_inside & ~is_told]
        report.clicks += len(kept)
        report.double_clicks += int(np.sum(kept["detector"] == 2))
        which, positions = np.divmod(kept["position"], pulses)
        times_ps = np.rint(positions * period_ps + kept["late_ps"]).astype(np.int64)
        for number in np.unique(which).tolist():
            for over in range(done, number):
                writer.finish(blocks[over], pulses)
            done = number
            here = which == number
            basis, bit, detector = (np.ascontiguousarray(kept[name][here]) for name in ("basis", "bit", "detector"))
            writer.add(blocks[number], positions[here].astype(np.uint64), basis, bit, detector, times_ps[here])
    for over in range(done, len(blocks)):
        writer.finish(blocks[over], pulses)
