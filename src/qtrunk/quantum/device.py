"""The protocol between a node and its QKD module: what real hardware and the simulated fibre have in common.

Frames of msgpack messages (base.wire) over a Unix socket. The node attaches as one end of a link and arms blocks; the
module says when the light of a block begins and ends, and gives the receiver its clicks slice by slice. Each end gets
what its hardware would give it: the transmitter hears nothing of clicks; a receiver's bases follow from the seed that
its own node drew.

A block's light begins when both ends have armed the same number and the block before is over. One block may be armed
ahead, so of the lower ones that have not begun arming a number drops all but the highest. After Refused the module
closes the connection; the node comes again.
"""

from dataclasses import dataclass, field

import numpy as np

from qtrunk import kernels
from qtrunk.base.errors import WireError
from qtrunk.base.ids import LinkId
from qtrunk.base.wire import Message, decode
from qtrunk.stages import Octets, Positions, Pulses, Role

TRANSMITTER, RECEIVER = "transmitter", "receiver"
ARRIVAL_BINS = 64
"""Of one clock period, in the arrival histograms of ReceiverReadings."""
HEARTBEATS, HEARTBEAT_MIN_S, HEARTBEAT_S_MAX = 8, 1.0, 60.0
"""So many missed in a row, and a module counts as lost; none is taken for shorter than the second figure; who promises
to speak more seldom than the third promises nothing.
"""


class Attach(Message, frozen=True, tag="attach"):
    """Node to module, first: which end of which link. Labs also know the role `lab`, which moves no light."""

    role: str
    link: str


class Arm(Message, frozen=True, tag="arm"):
    """Node to module: settings of a block. A receiver needs only the seed, the pulse count and the basis
    probability.
    """

    block: int
    seed: bytes
    pulses: int
    intensities: list[float]
    probabilities: list[float]
    key_basis_probability: float

    def __repr__(self) -> str:
        # The transmitter's seed is the raw key of the block: no log or traceback may show it.
        return f"Arm(block={self.block}, pulses={self.pulses}, seed withheld)"


class Attached(Message, frozen=True, tag="attached"):
    """Module to node: ready."""

    clock_hz: float
    heartbeat_s: float | None = None
    """The module says something at least so often while it is well, Alive where it has nothing else to say. None: it
    promises nothing.
    """


class Alive(Message, frozen=True, tag="alive"):
    """Module to node: it runs, and has nothing to say. Only from a module that promised a heartbeat."""


class Started(Message, frozen=True, tag="started"):
    """Module to node: the light of a block begins."""

    block: int


class Frame(Message, frozen=True, tag="frame"):
    """Module to receiver: clicks of one slice of the block, in order."""

    block: int
    start: int
    pulses: int
    count: int
    gaps: bytes
    """Positions within the slice, as kernels.encode_gaps has them."""
    bits: bytes

    def __repr__(self) -> str:
        # Bits are raw key, as the seed of an Arm is.
        return f"Frame(block={self.block}, start={self.start}, pulses={self.pulses}, {self.count} clicks withheld)"


class TransmitterReadings(Message, frozen=True, tag="transmitter-readings"):
    """What the transmitter's monitors saw during a block. None: this device has no such monitor."""

    mean_photon_numbers: list[float] | None = None
    """Per pulse leaving the transmitter, for each intensity, strongest first, as its output monitor measures them."""
    reverse_power_dbm: float | None = None
    """Light that enters the transmitter from the fibre."""


class ReceiverReadings(Message, frozen=True, tag="receiver-readings"):
    """What the receiver's monitors saw during a block. None: this device has no such monitor. Lists of two are by
    detector.
    """

    detector_clicks: list[int] | None = None
    """Gates in which this detector clicked, gates in which both did among them."""
    double_clicks: int | None = None
    """Gates in which both clicked, which got a random bit."""
    arrivals: list[list[int]] | None = None
    """For each detector, clicks by time of arrival: ARRIVAL_BINS bins over one clock period, the gate in the middle."""
    photocurrent_a: list[float] | None = None
    """Mean bias current of the avalanche diodes."""
    entrance_power_dbm: float | None = None
    """Mean optical power at the entrance, as the tap photodiode sees it."""
    attenuator_test: list[int] | None = None
    """Reference gates and clicks in them without, then gates and clicks with, the receiver's own 3 dB attenuator."""
    slots: list[int] | None = None
    """Clicks in the early, the central and the late time slot, in reference gates that open for each of them."""
    phase_offset_rad: float | None = None
    """What the last fringe scan found before it corrected it."""
    phase_residual_rad: float | None = None
    """Root mean square of what the scans of the block found."""
    gate_delays_s: list[float] | None = None
    """Where the last calibration put the gates."""
    efficiency_ratio: float | None = None
    """Second detector over first, at the last calibration."""
    live_fraction: float | None = None
    """Share of gates in which the receiver was not blind after a click."""


class Finished(Message, frozen=True, tag="finished"):
    """Module to node: the light of a block is over. Each end hears of its own monitors only."""

    block: int
    real_time_factor: float
    """1 or less: how much of the real clock rate the module kept up with."""
    clicks: int | None = None
    """Gates that clicked, for the receiver."""
    transmitter: TransmitterReadings | None = None
    receiver: ReceiverReadings | None = None


class Dropped(Message, frozen=True, tag="dropped"):
    """Module to node: the block will not be finished."""

    block: int
    reason: str


class Refused(Message, frozen=True, tag="refused"):
    """Module to node: an order made no sense."""

    reason: str


Order = Attach | Arm
Event = Attached | Alive | Started | Frame | Finished | Dropped | Refused


def attach(role: Role, link: LinkId) -> Attach:
    """The first message of a node."""
    return Attach(role=TRANSMITTER if role is Role.ALICE else RECEIVER, link=link)


def arm(pulses: Pulses, seed: bytes) -> Arm:
    """The order for a block."""
    return Arm(
        block=pulses.block,
        seed=seed,
        pulses=pulses.count,
        intensities=list(pulses.intensities),
        probabilities=list(pulses.probabilities),
        key_basis_probability=pulses.key_basis_probability,
    )


def decode_event(octets: bytes) -> Event:
    """A message of a module, or WireError."""
    event: Event = decode(octets, Event)
    if isinstance(event, Attached) and event.heartbeat_s is not None and not 0 < event.heartbeat_s <= HEARTBEAT_S_MAX:
        raise WireError(f"attached: heartbeat_s: more than 0 and at most {HEARTBEAT_S_MAX:g} s")
    return event


def frame_of(block: int, start: int, pulses: int, positions: Positions, bits: Octets) -> Frame:
    """A slice's clicks as a message."""
    return Frame(
        block=block,
        start=start,
        pulses=pulses,
        count=len(positions),
        gaps=kernels.encode_gaps(positions - np.uint64(start), pulses).tobytes(),
        bits=np.packbits(bits).tobytes(),
    )


def decode_frame(frame: Frame) -> tuple[Positions, Octets]:
    """Positions in the block and bits; WireError where they do not fit."""
    if not (0 <= frame.start < 1 << 62 and 0 <= frame.pulses < 1 << 62 and frame.count >= 0):
        raise WireError(f"frame of block {frame.block}: start, pulses and count must not be negative or beyond 2^62")
    try:
        positions = kernels.decode_gaps(np.frombuffer(frame.gaps, np.uint8), frame.count, frame.pulses)
    except (ValueError, TypeError) as error:
        raise WireError(f"frame of block {frame.block}: {error}") from error
    if len(frame.bits) != (frame.count + 7) // 8:
        raise WireError(f"frame of block {frame.block}: bits do not match {frame.count} clicks")
    bits = np.unpackbits(np.frombuffer(frame.bits, np.uint8))[: frame.count]
    return positions + np.uint64(frame.start), bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A block whose light begins: the orders of both ends, and the lower blocks of each that never will."""

    transmitter: Arm = field(repr=False)
    receiver: Arm = field(repr=False)
    dropped: dict[str, list[int]]
    """By role."""


@dataclass(slots=True)
class ArmedBlocks:
    """Which blocks are armed at which end; sans I/O. The module asks for the next one when its light is free."""

    transmitter: dict[int, Arm] = field(default_factory=dict)
    receiver: dict[int, Arm] = field(default_factory=dict)

    def arm(self, role: str, order: Arm) -> list[int]:
        """Note an order; the lower blocks of that end that it drops."""
        own = self.transmitter if role == TRANSMITTER else self.receiver
        # One may be armed ahead, so of the lower ones only the highest can still begin.
        dropped = sorted(block for block in own if block < order.block)[:-1]
        for block in dropped:
            del own[block]
        own[order.block] = order
        return dropped

    def clear(self, role: str) -> None:
        """An end went away: its orders are void."""
        (self.transmitter if role == TRANSMITTER else self.receiver).clear()

    def next(self) -> Begun | None:
        """Take the lowest block that both ends armed; the lower ones of either end can never begin and go."""
        both = self.transmitter.keys() & self.receiver.keys()
        if not both:
            return None
        block = min(both)
        begun = Begun(
            transmitter=self.transmitter.pop(block),
            receiver=self.receiver.pop(block),
            dropped={
                role: sorted(number for number in own if number < block)
                for role, own in ((TRANSMITTER, self.transmitter), (RECEIVER, self.receiver))
            },
        )
        for role, own in ((TRANSMITTER, self.transmitter), (RECEIVER, self.receiver)):
            for lower in begun.dropped[role]:
                del own[lower]
        return begun
