"""What is known of one link end: figures of the last block, rates, totals, state. Read by status, never by a protocol.

Link states are those of ETSI GS QKD 015: PENDING (created, no key yet), ACTIVE (generating), PASSIVE (not generating,
pool left), OFF. A link whose last block had to be destroyed is OFF as well, though keys made before stay good: the
operator must see at once that the light is not trusted now.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from qtrunk.base.ports import Clock
from qtrunk.control.telemetry import Finding, both
from qtrunk.distil.parties import Destroy, Report
from qtrunk.distil.session import QUIET_CAUSES
from qtrunk.kms import vendorend
from qtrunk.kms.store import PoolLevel
from qtrunk.quantum import monitors
from qtrunk.quantum.device import Attached, Finished
from qtrunk.quantum.diagnosis import Hypothesis
from qtrunk.stages import Pulses, Role
from qtrunk.topology import Link

RATE_BLOCKS = 8
"""Rates are means over so many blocks."""
STALLED_S = 60.0
CLOCK_TOLERANCE = 1e-3
"""Of the module's clock against the topology's."""


@dataclass(slots=True)
class _Block:
    at_s: float
    light_s: float
    sifted_bits: int
    secret_bits: int


@dataclass(slots=True)
class LinkStatistics:
    """Figures of one link end. The worker thread writes, status reads."""

    link: Link
    role: Role
    clock: Clock
    is_connected: bool = False
    is_module_up: bool = False
    is_held: bool = False
    """A controller switched the generation of key off, here or at the other end."""
    auth_share: float = 0.0
    """Of the last block: what it kept to authenticate later ones."""
    real_time_factor: float = 0.0
    released: int = 0
    destroyed: int = 0
    last_block: int = 0
    figures: dict[str, object] = field(default_factory=dict)
    last_end: str = ""
    """Why the last block was destroyed; empty after a good one."""
    _verdicts: dict[Role, tuple[int, tuple[Hypothesis, ...]]] = field(default_factory=dict)
    """What each end makes of the last block that it made anything of: its number, the hypotheses."""
    readings: dict[str, object] = field(default_factory=dict)
    """What the own module's monitors said of the last block."""
    is_dark: bool = False
    """No light arrives at the receiver, by the last of its clicks."""
    _clicks: tuple[str, float] | None = None
    """Of the last block, or of what showed since that the light went or came: its name, and gates that clicked of all
    (receiver)."""
    _errors: tuple[object, float | None] = (None, None)
    _light_s: float = 0.0
    """How long the light of the last block took."""
    _paused_s: float | None = None
    """Since when no key is made because nobody needs any."""
    _level: PoolLevel | None = None
    _epsilon: tuple[float, float] = (0.0, 0.0)
    _recent: deque[_Block] = field(default_factory=lambda: deque(maxlen=RATE_BLOCKS))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note_attached(self, event: Attached) -> str:
        """The QKD module answers; why it is not the one of the topology, or nothing."""
        clock_hz = self.link.equipment.clock_hz
        if not abs(event.clock_hz - clock_hz) <= CLOCK_TOLERANCE * clock_hz:
            return f"the module runs at {event.clock_hz:g} Hz, the topology says {clock_hz:g} Hz"
        self.is_module_up = True
        return ""

    def note_signal(self, where: str, clicks_per_pulse: float, *, is_dark: bool) -> None:
        """The light has gone, or come back."""
        self.is_dark = is_dark
        self._clicks = where, clicks_per_pulse

    def note_finished(
        self, event: Finished, pulses: Pulses, clicks_per_pulse: float | None = None
    ) -> list[monitors.Finding]:
        """The light of a block is over: its monitors, and what about them an honest link would not show.

        `clicks_per_pulse`: of its end, where that is known; the whole block may have been lit in part.
        """
        self.real_time_factor = event.real_time_factor
        equipment = self.link.equipment
        self._light_s = pulses.count / (equipment.clock_hz * equipment.clock_fraction)
        if event.clicks is not None:
            share = event.clicks / pulses.count if clicks_per_pulse is None else clicks_per_pulse
            self._clicks = str(event.block), share
        found: list[monitors.Finding] = []
        readings = event.transmitter if self.role is Role.ALICE else event.receiver
        if event.transmitter is not None and self.role is Role.ALICE:
            found = monitors.check_transmitter(event.transmitter, pulses.intensities)
        elif event.receiver is not None and self.role is Role.BOB:
            found = monitors.check_receiver(event.receiver, pulses.count)
        with self._lock:
            self.readings = {} if readings is None else msgspec.to_builtins(readings)
        return found

    def light(self) -> tuple[object, float] | None:
        """The last block and what of it arrived: Alice, signal clicks in matching bases per pulse; Bob, all clicks."""
        if self.role is Role.BOB:
            return self._clicks
        gains = self.figures.get("gains")
        return (self.figures.get("block"), float(gains[0])) if isinstance(gains, list) and gains else None

    def errors(self) -> tuple[object, float | None]:
        """The last block that became key: its number, and its QBER in the test basis."""
        return self._errors

    def note_span(self, seconds: float) -> None:
        """What took the place of the light of the next block: how long a vendor's keys for it took to come."""
        self._light_s = seconds

    def note_pause(self, *, is_paused: bool) -> bool:
        """Whether this end makes no key because nobody needs any; True in the moment in which that is over. A long
        pause is no part of the rate, nor does what was before it say anything of the rate from then on.
        """
        now_s, since_s = self.clock.monotonic_s(), self._paused_s
        if is_paused:
            self._paused_s = now_s if since_s is None else since_s
            return False
        self._paused_s = None
        if since_s is not None and now_s - since_s > STALLED_S:
            with self._lock:
                self._recent.clear()
        return since_s is not None

    def note_level(self, level: PoolLevel, epsilon: float, epsilon_max: float) -> None:
        """The store's levels, as of the last tick, and the sum of the link's epsilons."""
        self._level, self._epsilon = level, (epsilon, epsilon_max)

    def note_report(self, report: Report) -> None:
        """Figures that a party made of a block."""
        with self._lock:
            self.figures = {**self.figures, **report.figures}

    def note_released(self, record: dict[str, object]) -> None:
        """A block became key."""
        with self._lock:
            self.released += 1
            self.last_end = ""
            qber = self.figures.get("qber_test")
            self._errors = (self.figures.get("block"), qber if isinstance(qber, float) else None)
            self.auth_share = int(str(record["auth_octets"])) / int(str(record["octets"]))
            self._append(int(str(record["sifted_bits"])), int(str(record["octets"])) * 8)

    def note_destroyed(self, effect: Destroy | vendorend.Destroy) -> None:
        """A block died."""
        with self._lock:
            self.destroyed += 1
            if effect.cause not in QUIET_CAUSES:
                self.last_end = f"{effect.cause}: {effect.why}"
                self._append(0, 0)

    def note_verdict(self, block: int, verdict: Sequence[Hypothesis], role: Role | None = None) -> None:
        """What this end, or the other one, makes of a block that ended."""
        self._verdicts[role or self.role] = (block, tuple(verdict))

    @property
    def verdict(self) -> tuple[Hypothesis, ...]:
        """What may have happened to the last block, likeliest first, as both ends see it; empty where nothing did."""
        return tuple(Hypothesis(one.kind, one.weight, one.reason) for one in self.diagnosis())

    def diagnosis(self) -> list[Finding]:
        """The same, with the end that saw it. The other end's word counts for the block that this end speaks of."""
        own_block, _ = self._verdicts.get(self.role, (0, ()))
        return both(
            *(
                (role.value, [Finding(one.kind, one.weight, one.reason) for one in found])
                for role, (block, found) in list(self._verdicts.items())
                if block == own_block
            )
        )

    def _append(self, sifted_bits: int, secret_bits: int) -> None:
        if self._paused_s is None:
            # How long a block took that came in a pause, nobody can say.
            self._recent.append(_Block(self.clock.monotonic_s(), self._light_s, sifted_bits, secret_bits))

    def rates_bps(self) -> tuple[float, float]:
        """Sifted and secret key rate, bit/s, over the last blocks (0 when none came for a while)."""
        with self._lock:
            blocks = list(self._recent)
        if not blocks or self.clock.monotonic_s() - blocks[-1].at_s > max(STALLED_S, 4 * blocks[-1].light_s):
            return 0.0, 0.0
        light_s = sum(block.light_s for block in blocks)
        span_s = max(light_s, blocks[-1].at_s - blocks[0].at_s + blocks[0].light_s)
        if span_s <= 0.0:
            # Only a block that died before its light (or its vendor's keys) was there.
            return 0.0, 0.0
        return (
            sum(block.sifted_bits for block in blocks) / span_s,
            sum(block.secret_bits for block in blocks) / span_s,
        )

    def pool_octets(self) -> int:
        """What the link's pool has, as of the last tick."""
        return self._level.total_octets if self._level is not None else 0

    def state(self) -> str:
        """ACTIVE, PASSIVE, PENDING or OFF."""
        has_pool = self.pool_octets() > 0
        if self.is_held:
            return "PASSIVE" if has_pool else "OFF"
        if self.last_end or self.is_dark:
            return "OFF"
        if self.is_connected and self.is_module_up and self.released > 0:
            return "ACTIVE"
        if has_pool:
            return "PASSIVE"
        return "PENDING" if self.is_connected and self.is_module_up else "OFF"

    def as_json(self) -> dict[str, object]:
        """Everything, for status."""
        sifted_bps, secret_bps = self.rates_bps()
        level = self._level
        with self._lock:
            figures, readings = dict(self.figures), dict(self.readings)
        return {
            "link": self.link.id,
            "role": self.role.value,
            "length_km": self.link.length_km,
            "loss_db": self.link.loss_db,
            "state": self.state(),
            "why": self.last_end,
            "diagnosis": msgspec.to_builtins(self.diagnosis()),
            "sifted_bps": sifted_bps,
            "secret_bps": secret_bps,
            "pool_bits": 8 * level.total_octets if level else 0,
            "own_bits": 8 * level.own_octets if level else 0,
            "peer_bits": 8 * level.peer_octets if level else 0,
            "auth_bits": 8 * level.auth_octets if level else 0,
            "epsilon": self._epsilon[0],
            "epsilon_total": self._epsilon[1],
            "pending_bits": 8 * level.pending_octets if level else 0,
            "blocks_released": self.released,
            "blocks_destroyed": self.destroyed,
            "real_time_factor": self.real_time_factor,
            "clock_fraction": self.link.equipment.clock_fraction,
            "clock_share": self.real_time_factor * self.link.equipment.clock_fraction,
            "is_connected": self.is_connected,
            "is_module_up": self.is_module_up,
            "is_dark": self.is_dark,
            "is_held": self.is_held,
            "readings": readings,
            **figures,
        }
