"""What a QKD module must do at its socket (quantum.device): named checks, and machines that watch a conversation.

Sans I/O: `Stream` is told what a node ordered and which octets it heard, and when; `check_ends` and `check_settings`
look at what both ends of a link heard. Who dials the module, and which orders are given, is for node.conformance.
docs/device.md explains the checks to makers of hardware.

A statistical check fails a module that keeps its stated tolerance with a chance of at most FALSE_ALARM. They are exact
binomial tests of clicks whose settings are known, given how many there are, so neither loss nor dead time matters.
"""

import base64
from dataclasses import dataclass, field
from math import isfinite, pi

import numpy as np

from qtrunk.base.errors import WireError
from qtrunk.quantum.device import (
    ARRIVAL_BINS,
    HEARTBEAT_MIN_S,
    HEARTBEATS,
    TRANSMITTER,
    Alive,
    Arm,
    Attached,
    Dropped,
    Event,
    Finished,
    Frame,
    ReceiverReadings,
    Refused,
    Started,
    TransmitterReadings,
    decode_event,
    decode_frame,
)
from qtrunk.quantum.monitors import at_least, at_most
from qtrunk.quantum.source import SourceSettings, bases_at, settings_at
from qtrunk.stages import KEY_BASIS, TEST_BASIS, Octets, Positions

FALSE_ALARM = 1e-9
"""Of each statistical test; nine of them make a run."""
SEED_OCTETS = 32
CLICKS_MIN = 10_000
"""With fewer the statistical checks could not tell a broken module from a sound one."""
LEVEL_RATIO_MIN = 1.25
"""By which each level must click more often than the next weaker one."""
BASIS_TOLERANCE = 0.02
"""Of the share of clicks in the key basis, at either end, against the share of pulses."""
BALANCE_TOLERANCE = 0.03
"""Of ones against a half: detectors whose efficiencies differ by an eighth."""
QBER_MAX = 0.11
"""No key by one-way distillation above it (Shor, Preskill, Phys. Rev. Lett. 85, 441 (2000))."""
MISMATCHED_TOLERANCE = 0.2
"""Of errors in unlike bases against a half: a phase offset of 0.4 rad."""
CLOCK_TOLERANCE = 0.01
"""Of clock_hz against what was asked for, and of the shortest time that light may take."""


@dataclass(frozen=True, slots=True)
class Check:
    """One demand on a module, with a name that stays."""

    name: str
    demand: str
    why: str


_TABLE = f"""
socket.private | the socket has mode 0600 | seeds and clicks pass there in clear
wire.messages | each frame is one message, with no field unknown or missing | half-understood is misunderstood
wire.junk | octets that are no message end the connection, not the module | anyone's bug may write there
wire.too-long | a frame announced as 4 GiB ends the connection at once | nobody may fill its memory
wire.closes | Refused is the last message of its connection | a node that was refused attaches afresh
attach.answers | Attached comes first and once | the node arms nothing before it
attach.clock | clock_hz is the clock asked for, and the same at both ends | rates and times rest on it
attach.refuses-unknown-role | a role that is none is refused | a wrong wiring must show
attach.refuses-other-link | a link that is not the module's is refused | a wrong wiring must show
attach.comes-first | Arm before Attach is refused | the module would not know whose seed it is
attach.heartbeat | a module that promised a heartbeat is never silent for eight of them | a silent one counts as lost
attach.newer-wins | a newer connection of a role ends the older | a node that came back must get in
arm.refuses-bad-seed | a seed that is not 32 octets is refused | settings follow from it
arm.refuses-bad-pulses | no pulses, or 2^48 and more, are refused | positions are below 2^48
arm.refuses-bad-intensities | not three, negative or NaN intensities are refused | they become voltages
arm.refuses-bad-probabilities | not positive, or a sum that is not 1, is refused | statistics rest on them
arm.refuses-bad-basis | a key basis with probability 0, 1 or NaN is refused | both bases are needed
block.both-armed | light begins after both ends armed its number | an end without a seed has no settings
block.armed | only blocks that this connection armed are spoken of | blocks must not be mixed up
block.order | Started, Frames, one Finished or Dropped, no more; one block at a time | clicks must be of their block
block.ascending | a block that begins has a higher number than the one before | numbers are used once
block.answered | an armed block ends in Finished or Dropped in time | the node holds a seed for it
block.ends-agree | a block is finished at both ends or at neither | half a block is no key
block.light-time | light takes no less than pulses / clock_hz | clock and pulse count must be true
block.ahead | a block armed during light begins by itself after it | else light waits for the node
block.drops-lower | of three armed blocks the lowest is dropped | one may be armed ahead, no more
block.drops-passed-over | a block that the other end passed over is dropped | it can never begin
block.drops-different | pulse counts that differ drop the block at both ends | positions would not match
block.lost-end | an end that goes during light drops the block at the other | nobody would distil it
block.returns | an end that came back gets its next block | crashes happen
frames.add-up | gaps decode to `count` positions in the slice, bits to as many | a click and its bit belong together
frames.ascending | positions ascend over the whole block | two clicks in one gate are one click
frames.within | slices end where the block ends | there is no setting for a pulse that was not sent
frames.complete | slices follow each other without a gap up to the last pulse | gains count all pulses
withheld.clicks | the transmitter hears no Frame and no count of clicks | its node learns them from Bob
withheld.monitors | an end hears of its own monitors only | a device has no other's monitors
withheld.seeds | no message holds a seed, raw, hexadecimal or base64 | the transmitter's is the raw key
finished.clicks | the receiver's count is what its Frames held | a lost Frame must show
finished.real-time-factor | it is above 0 and at most 1 | rates rest on it
finished.readings | readings have the right lengths and possible values in SI units | alarms rest on them
flow.slow-reader | who reads late gets the whole block, or Dropped | a gap in the block would pass for loss
settings.clicks | {CLICKS_MIN} clicks or more in the two blocks | else the rest below means nothing
settings.levels | each level clicks {LEVEL_RATIO_MIN} times as often as the next | decoys must differ from signals
settings.transmitter-basis | clicks have the transmitter's share of the key basis | rates must not tell the basis
settings.receiver-basis | clicks have the receiver's share of the key basis | the proof takes detectors for basis-blind
settings.balance | in each of the receiver's bases half the bits are 1 | detectors that differ tell Eve the bit
settings.key-basis | at most {QBER_MAX:.0%} errors where both chose the key basis | bits follow the transmitter's seed
settings.test-basis | at most {QBER_MAX:.0%} errors where both chose the test basis | bases follow both seeds
settings.unlike-bases | about half the bits are wrong in unlike bases | the receiver must not know better
"""
CHECKS = tuple(Check(*row.split(" | ")) for row in _TABLE.strip().splitlines())
"""Every check, in the order of the report: name, demand, reason."""

_NAMES = frozenset(check.name for check in CHECKS)
_TEXTS_MAX = 3


@dataclass(slots=True)
class Sheet:
    """What a run has shown of each check so far."""

    seen: set[str] = field(default_factory=set)
    failures: dict[str, list[str]] = field(default_factory=dict)
    seeds: set[bytes] = field(default_factory=set, repr=False)
    """All that were sent to either end."""

    def demand(self, name: str, is_met: bool, text: str = "") -> bool:
        """Note one instance of a check, with what is wrong where it is not met."""
        assert name in _NAMES, name
        self.seen.add(name)
        if not is_met:
            texts = self.failures.setdefault(name, [])
            if len(texts) < _TEXTS_MAX:
                texts.append(text)
        return is_met

    def outcome(self, name: str) -> str:
        """`passed`, `failed`, or `not reached` where the conversation never came so far."""
        if name in self.failures:
            return "failed"
        return "passed" if name in self.seen else "not reached"

    @property
    def is_conformant(self) -> bool:
        """Whether every check was reached and passed."""
        return all(self.outcome(check.name) == "passed" for check in CHECKS)


@dataclass(slots=True)
class WatchedBlock:
    """One armed block as its messages go by."""

    order: Arm = field(repr=False)
    armed_s: float
    is_begun: bool = False
    end: Finished | Dropped | None = None
    covered: int = 0
    """Pulses that the slices so far hold."""
    clicks: int = 0
    positions: list[Positions] = field(default_factory=list, repr=False)
    bits: list[Octets] = field(default_factory=list, repr=False)


@dataclass(slots=True)
class Stream:
    """One connection of one end. Times are of any clock that never goes back."""

    sheet: Sheet
    role: str
    clock_hz: float
    """What the module should run at."""
    attached: Attached | None = None
    refused: Refused | None = None
    """The first of them: nothing may follow it."""
    blocks: dict[int, WatchedBlock] = field(default_factory=dict)
    is_closed: bool = False
    """By the module."""
    _light: int | None = None
    _latest: int = -1
    _heard_s: float = 0.0

    def ordered(self, order: Arm, at_s: float) -> None:
        """The node arms a block. To be told before the octets go out."""
        if len(order.seed) == SEED_OCTETS:
            self.sheet.seeds.add(order.seed)
        self.blocks[order.block] = WatchedBlock(order, at_s)

    def heard(self, octets: bytes, at_s: float) -> Event | None:
        """The module said something, the payload of one frame; the message, or None where it is none."""
        self._check_seeds(octets)
        try:
            event = decode_event(octets)
        except WireError as error:
            self.sheet.demand("wire.messages", False, f"the {self.role} heard {len(octets)} octets: {error}")
            return None
        self.sheet.demand("wire.messages", True)
        if self.refused is not None:
            self.sheet.demand("wire.closes", False, f"the {self.role} heard {type(event).__name__} after Refused")
        self._check_heartbeat(at_s)
        match event:
            case Attached():
                self._attached(event)
            case Alive():
                promised = self.attached is not None and self.attached.heartbeat_s is not None
                self.sheet.demand("attach.heartbeat", promised, f"the {self.role} heard Alive and no promise of it")
            case Refused():
                self.refused = event
            case _:
                self._of_block(event, at_s)
        return event

    def _check_heartbeat(self, at_s: float) -> None:
        if self.attached is not None:
            promised_s = self.attached.heartbeat_s
            silent_s = at_s - self._heard_s
            is_kept = promised_s is None or silent_s < HEARTBEATS * max(HEARTBEAT_MIN_S, promised_s)
            self.sheet.demand("attach.heartbeat", is_kept, f"the {self.role} was silent for {silent_s:.1f} s")
        self._heard_s = at_s

    def _check_seeds(self, octets: bytes) -> None:
        text = octets.lower()
        for seed in self.sheet.seeds:
            # Half a seed is too much, too; eight octets do not meet by chance.
            shapes = (seed[:8], seed[-8:], seed[:8].hex().encode(), seed[-8:].hex().encode())
            is_shown = any(shape in octets or shape in text for shape in shapes)
            is_shown = is_shown or base64.b64encode(seed[:9]) in octets
            self.sheet.demand("withheld.seeds", not is_shown, f"a message to the {self.role} shows a seed")

    def _attached(self, event: Attached) -> None:
        self.sheet.demand("attach.answers", self.attached is None, f"the {self.role} heard Attached twice")
        near = isfinite(event.clock_hz) and abs(event.clock_hz / self.clock_hz - 1) <= CLOCK_TOLERANCE
        text = f"the {self.role} runs at {event.clock_hz:.6g} Hz, not {self.clock_hz:.6g} Hz"
        self.sheet.demand("attach.clock", near, text)
        self.attached = event

    def _of_block(self, event: Started | Frame | Finished | Dropped, at_s: float) -> None:
        name = type(event).__name__
        self.sheet.demand("attach.answers", self.attached is not None, f"the {self.role} heard {name} before Attached")
        block = self.blocks.get(event.block)
        where = f"{name} of block {event.block} to the {self.role}"
        if not self.sheet.demand("block.armed", block is not None, f"{where}, which did not arm it") or block is None:
            return
        if not self.sheet.demand("block.order", block.end is None, f"{where} after its end"):
            return
        match event:
            case Started():
                self._started(event, block, where)
            case Frame():
                self._frame(event, block, where)
            case Finished():
                self._finished(event, block, where, at_s)
            case Dropped():
                self._over(event, block)

    def _started(self, event: Started, block: WatchedBlock, where: str) -> None:
        is_alone = not block.is_begun and self._light is None
        self.sheet.demand("block.order", is_alone, f"{where} while light is on")
        self.sheet.demand("block.ascending", event.block > self._latest, f"{where} after block {self._latest}")
        block.is_begun = True
        self._light = self._latest = event.block

    def _frame(self, event: Frame, block: WatchedBlock, where: str) -> None:
        if not self.sheet.demand("withheld.clicks", self.role != TRANSMITTER, where):
            return
        demand = self.sheet.demand
        demand("block.order", self._light == event.block, f"{where} before Started")
        end, pulses = event.start + event.pulses, block.order.pulses
        fits = event.start >= 0 and event.pulses > 0 and end <= pulses
        demand("frames.complete", event.start == block.covered, f"{where} at {event.start}, not {block.covered}")
        block.covered = max(block.covered, end)
        if not demand("frames.within", fits, f"{where}: pulses {event.start} to {end - 1} of {pulses}"):
            return
        try:
            positions, bits = decode_frame(event)
        except WireError as error:
            demand("frames.add-up", False, str(error).partition("\n")[0])
            return
        demand("frames.add-up", True)
        block.clicks += event.count
        if len(positions):
            last = int(block.positions[-1][-1]) if block.positions else -1
            demand("frames.ascending", int(positions[0]) > last, f"{where}: {int(positions[0])} after {last}")
            block.positions.append(positions)
            block.bits.append(bits)

    def _finished(self, event: Finished, block: WatchedBlock, where: str, at_s: float) -> None:
        demand, order = self.sheet.demand, block.order
        demand("block.order", self._light == event.block, f"{where} before Started")
        took_s, light_s = at_s - block.armed_s, order.pulses / self.clock_hz
        # From the order on, not from Started: a reader that is late can only make it longer.
        text = f"{where}: {light_s:.3g} s of light within {took_s:.3g} s"
        demand("block.light-time", took_s >= (1 - CLOCK_TOLERANCE) * light_s, text)
        is_share = 0 < event.real_time_factor <= 1
        demand("finished.real-time-factor", is_share, f"{where}: {event.real_time_factor}")
        if self.role == TRANSMITTER:
            demand("withheld.clicks", event.clicks is None, f"{where} counts clicks")
            demand("withheld.monitors", event.receiver is None, f"{where} has the receiver's monitors")
            problem = _transmitter_problem(event.transmitter, len(order.intensities))
        else:
            demand("withheld.monitors", event.transmitter is None, f"{where} has the transmitter's monitors")
            text = f"{where}: {event.clicks} clicks, {block.clicks} in its Frames"
            demand("finished.clicks", event.clicks == block.clicks, text)
            text = f"{where}: {block.covered} of {order.pulses} pulses in its Frames"
            demand("frames.complete", block.covered == order.pulses, text)
            problem = _receiver_problem(event.receiver, event.clicks, self.clock_hz)
        demand("finished.readings", not problem, f"{where}: {problem}")
        self._over(event, block)

    def _over(self, event: Finished | Dropped, block: WatchedBlock) -> None:
        block.end = event
        if self._light == event.block:
            self._light = None


def _transmitter_problem(readings: TransmitterReadings | None, levels: int) -> str:
    """What is impossible about them, or nothing."""
    if readings is None:
        return ""
    numbers = readings.mean_photon_numbers
    if numbers is not None and not (len(numbers) == levels and all(0 <= number < 100 for number in numbers)):
        return f"mean_photon_numbers: {numbers}"
    return _power_problem("reverse_power_dbm", readings.reverse_power_dbm)


def _receiver_problem(readings: ReceiverReadings | None, clicks: int | None, clock_hz: float) -> str:
    """What is impossible about them, or nothing."""
    if readings is None:
        return ""
    r = readings
    counts: dict[str, tuple[list[int] | None, int]] = {
        "detector_clicks": (r.detector_clicks, 2),
        "attenuator_test": (r.attenuator_test, 4),
        "slots": (r.slots, 3),
        **{f"arrivals[{index}]": (bins, ARRIVAL_BINS) for index, bins in enumerate(r.arrivals or [])},
    }
    for name, (values, length) in counts.items():
        if values is not None and not (len(values) == length and min(values) >= 0):
            return f"{name}: {length} counts are needed"
    if r.arrivals is not None and len(r.arrivals) != 2:
        return "arrivals: two histograms are needed"
    if r.detector_clicks is not None and r.double_clicks is not None:
        either = sum(r.detector_clicks) - r.double_clicks
        if not (0 <= r.double_clicks <= min(r.detector_clicks) and either == clicks):
            return f"detector_clicks, double_clicks: {either} gates with a click, {clicks} reported"
    if r.attenuator_test is not None and (
        r.attenuator_test[1] > r.attenuator_test[0] or r.attenuator_test[3] > r.attenuator_test[2]
    ):
        return f"attenuator_test: more clicks than gates in {r.attenuator_test}"
    ranges: dict[str, tuple[list[float] | None, float, float]] = {
        # A diode dies of milliamperes; who reports microamperes by their number is out of range.
        "photocurrent_a": (r.photocurrent_a, -1e-9, 0.01),
        "gate_delays_s": (r.gate_delays_s, -1 / clock_hz, 1 / clock_hz),
    }
    for name, (measured, low, high) in ranges.items():
        if measured is not None and not (len(measured) == 2 and all(low <= value <= high for value in measured)):
            return f"{name}: {measured}"
    for name, single, low, high in (
        ("phase_offset_rad", r.phase_offset_rad, -2 * pi, 2 * pi),
        ("phase_residual_rad", r.phase_residual_rad, 0.0, 2 * pi),
        ("efficiency_ratio", r.efficiency_ratio, 0.0, 100.0),
        ("live_fraction", r.live_fraction, 0.0, 1.0),
    ):
        if single is not None and not low <= single <= high:
            return f"{name}: {single}"
    return _power_problem("entrance_power_dbm", r.entrance_power_dbm)


def _power_problem(name: str, power_dbm: float | None) -> str:
    # One watt in a fibre is no monitor's reading; -200 dBm is darkness.
    return "" if power_dbm is None or -200 <= power_dbm <= 30 else f"{name}: {power_dbm}"


def check_ends(sheet: Sheet, transmitter: Stream, receiver: Stream) -> None:
    """What the two ends of a link must have heard alike."""
    if transmitter.attached is not None and receiver.attached is not None:
        clocks = transmitter.attached.clock_hz, receiver.attached.clock_hz
        sheet.demand(
            "attach.clock", clocks[0] == clocks[1], f"the two ends differ: {clocks[0]:.9g}, {clocks[1]:.9g} Hz"
        )
    for number in transmitter.blocks.keys() & receiver.blocks.keys():
        is_finished = [isinstance(end.blocks[number].end, Finished) for end in (transmitter, receiver)]
        sheet.demand("block.ends-agree", is_finished[0] == is_finished[1], f"block {number} is finished at one end")


@dataclass(slots=True)
class ClickCounts:
    """Clicks by (intensity, transmitter's basis, receiver's basis, sent bit, received bit)."""

    source: SourceSettings
    table: np.ndarray[tuple[int, ...], np.dtype[np.int64]]

    @staticmethod
    def of(source: SourceSettings) -> "ClickCounts":
        """Of no clicks."""
        return ClickCounts(source, np.zeros((len(source.intensities), 2, 2, 2, 2), np.int64))

    def add(self, transmitter: WatchedBlock, receiver: WatchedBlock) -> None:
        """Count the clicks of a block, with the settings that both seeds give."""
        for positions, bits in zip(receiver.positions, receiver.bits, strict=True):
            sent = settings_at(transmitter.order.seed, positions, self.source)
            basis = bases_at(receiver.order.seed, positions, self.source)
            np.add.at(self.table, (sent.intensity, sent.basis, basis, sent.bit, bits), 1)


def check_settings(sheet: Sheet, counts: ClickCounts) -> None:
    """Whether clicks follow the settings of both seeds as those of a link do."""
    table, source = counts.table, counts.source
    total = int(table.sum())
    if not sheet.demand("settings.clicks", total >= CLICKS_MIN, f"{total} clicks: let the blocks be longer"):
        return
    _check_levels(sheet, table.sum(axis=(1, 2, 3, 4)), source)
    key = source.exact_key_basis_probability
    for name, axes in (("transmitter", (0, 2, 3, 4)), ("receiver", (0, 1, 3, 4))):
        chosen = int(table.sum(axis=axes)[KEY_BASIS])
        _check_share(sheet, f"settings.{name}-basis", chosen, total, key, BASIS_TOLERANCE, "in the key basis")
    for basis in (KEY_BASIS, TEST_BASIS):
        bits = table[:, :, basis].sum(axis=(0, 1, 2))
        what = f"ones in basis {basis}"
        _check_share(sheet, "settings.balance", int(bits[1]), int(bits.sum()), 0.5, BALANCE_TOLERANCE, what)
    for basis, name in ((KEY_BASIS, "settings.key-basis"), (TEST_BASIS, "settings.test-basis")):
        wrong, matched = _errors(table[:, basis, basis].sum(axis=0))
        # An error rate of 0 is as good as any.
        _check_share(sheet, name, wrong, matched, QBER_MAX / 2, QBER_MAX / 2, "errors")
    wrong, unlike = _errors((table[:, KEY_BASIS, TEST_BASIS] + table[:, TEST_BASIS, KEY_BASIS]).sum(axis=0))
    _check_share(sheet, "settings.unlike-bases", wrong, unlike, 0.5, MISMATCHED_TOLERANCE, "errors")


def _errors(bits: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> tuple[int, int]:
    return int(bits[0, 1] + bits[1, 0]), int(bits.sum())


def _check_levels(
    sheet: Sheet, clicks: np.ndarray[tuple[int, ...], np.dtype[np.int64]], source: SourceSettings
) -> None:
    sent = source.exact_probabilities
    for strong in range(len(sent) - 1):
        both = int(clicks[strong] + clicks[strong + 1])
        # Given the clicks of two levels together, those of the stronger one are binomial.
        odds = LEVEL_RATIO_MIN * sent[strong] / sent[strong + 1]
        chance = at_most(int(clicks[strong]), int(both), odds / (1 + odds))
        text = f"levels {strong} and {strong + 1} click {clicks[strong]} and {clicks[strong + 1]} times"
        sheet.demand("settings.levels", both > 0 and bool(chance >= FALSE_ALARM), text)


def _check_share(sheet: Sheet, name: str, count: int, total: int, middle: float, tolerance: float, what: str) -> None:
    """Whether a share is within its tolerance, as far as chance lets one say."""
    low = at_most(count, total, max(0.0, middle - tolerance))
    high = at_least(count, total, min(1.0, middle + tolerance))
    is_met = total > 0 and bool(min(low, high) >= FALSE_ALARM)
    text = (
        f"{count / max(1, total):.3f} {what} of {total}; {middle - tolerance:.3f} to {middle + tolerance:.3f} allowed"
    )
    sheet.demand(name, is_met, text)
