"""Does a QKD module keep what it promised? A machine without I/O, for one connection of one link end after the other.

A connection that is open proves nothing: a driver that hangs keeps it. What counts is what comes over it:

    Attached                ATTACH_S after the connection stands
    anything                within HEARTBEATS times the heartbeat that Attached promised, if it promised one
    the end of a block      LIGHT_TIMES its light at the pace of the last block, and GRACE_S, after Started

Time is counted in the ticks of who listens: a node that was stopped itself, or was too busy to read, blames nobody.
"""

from dataclasses import dataclass, field

from qtrunk.quantum.device import HEARTBEAT_MIN_S, HEARTBEATS, Attached, Dropped, Event, Finished, Started

ATTACH_S = 10.0
LIGHT_TIMES, GRACE_S = 4.0, 5.0
PACE_UNKNOWN = 0.1
"""Before the first block: the slowest that a session waits for (distil.session.LIGHT_TIMES_MAX)."""
PACE_MIN = 0.02
ARMED_MAX = 16


@dataclass(slots=True)
class ModuleWatch:
    """One end's."""

    _is_attached: bool = False
    _heartbeat_s: float | None = None
    _silent_s: float = 0.0
    _armed: dict[int, float] = field(default_factory=dict)
    """Seconds of light of each block that is armed and not over."""
    _lit: int | None = None
    _lit_s: float = 0.0
    _pace: float = PACE_UNKNOWN

    def connected(self) -> None:
        """A connection stands; what was promised on an earlier one is void."""
        self._is_attached, self._heartbeat_s, self._silent_s = False, None, 0.0
        self._armed.clear()
        self._lit = None

    def armed(self, block: int, light_s: float) -> None:
        """A block was ordered."""
        self._armed[block] = light_s
        while len(self._armed) > ARMED_MAX:
            # Of blocks that the module never spoke of again; numbers ascend.
            del self._armed[min(self._armed)]

    def heard(self, event: Event) -> None:
        """The module said something."""
        self._silent_s = 0.0
        match event:
            case Attached():
                self._is_attached, self._heartbeat_s = True, event.heartbeat_s
            case Started():
                self._lit, self._lit_s = event.block, 0.0
            case Finished():
                self._pace = min(1.0, max(PACE_MIN, event.real_time_factor))
                self._over(event.block)
            case Dropped():
                self._over(event.block)
            case _:
                pass

    def tick(self, seconds: float) -> str:
        """So much time went by in which the module could have been heard; what it failed to do, or nothing."""
        self._silent_s += seconds
        self._lit_s += seconds
        if not self._is_attached:
            return f"it says nothing since {self._silent_s:.0f} s" if self._silent_s >= ATTACH_S else ""
        if self._heartbeat_s is not None:
            limit_s = HEARTBEATS * max(HEARTBEAT_MIN_S, self._heartbeat_s)
            if self._silent_s >= limit_s:
                return f"it says nothing since {self._silent_s:.0f} s and promised to every {self._heartbeat_s:g} s"
        light_s = None if self._lit is None else self._armed.get(self._lit)
        if light_s is not None and self._lit_s >= GRACE_S + LIGHT_TIMES * light_s / self._pace:
            return f"the light of block {self._lit} is not over after {self._lit_s:.0f} s; it takes {light_s:.3g} s"
        return ""

    def _over(self, block: int) -> None:
        self._armed.pop(block, None)
        if self._lit == block:
            self._lit = None
