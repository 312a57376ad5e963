"""Thresholds that do not flap: a step goes up at one value and down at another, and only after a while at either.

`Ladder` is for alarms of one family of which one at a time is up, such as PoolLow, PoolCritical, PoolEmpty. Values fall
towards trouble; where trouble lies above, give negative values.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Step:
    """One threshold. `set_below` < `clear_above`; hold-down times in seconds of a monotonic clock."""

    name: str
    set_below: float
    clear_above: float
    set_after_s: float = 0.0
    clear_after_s: float = 0.0

    def __post_init__(self) -> None:
        assert self.set_below < self.clear_above


@dataclass(slots=True)
class _State:
    is_set: bool = False
    since_s: float | None = None
    """Since when the value has asked for the other state."""


@dataclass(slots=True)
class Ladder:
    """Steps from mild to worst, and which of them are set."""

    steps: tuple[Step, ...]
    _states: dict[str, _State] = field(default_factory=dict)

    @property
    def is_pending(self) -> bool:
        """Whether a step turns once the value has stayed for a while: another look is needed."""
        return any(state.since_s is not None for state in self._states.values())

    def note(self, value: float, now_s: float) -> str | None:
        """The worst step that is set after this value; None: all is well."""
        worst = None
        for step in self.steps:
            if self._is_set(step, value, now_s):
                worst = step.name
        return worst

    def _is_set(self, step: Step, value: float, now_s: float) -> bool:
        state = self._states.setdefault(step.name, _State())
        asks = value > step.clear_above if state.is_set else value < step.set_below
        if not asks:
            state.since_s = None
            return state.is_set
        if state.since_s is None:
            state.since_s = now_s
        if now_s - state.since_s >= (step.clear_after_s if state.is_set else step.set_after_s):
            state.is_set, state.since_s = not state.is_set, None
        return state.is_set
