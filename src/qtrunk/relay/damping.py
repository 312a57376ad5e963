"""When a link that failed may be used again: after it was good for a hold-off that grows with every failure.

As RFC 2439 damps flapping routes: each failure adds to a figure of merit, which decays while time passes. The hold-off
doubles with each unit of it. A link that fails once is back soon, one that flaps is left alone until it has settled.
Pure: the caller says what is so and when.
"""

HOLD_OFF_S = 10.0
"""After the first failure."""
HOLD_OFF_MAX_S = 600.0
HALF_LIFE_S = 600.0
"""In which the figure of merit is halved."""
MERIT_MAX = 12.0


class Damper:
    """The failures of one link. What was never good has not failed: a link that starts is not held back."""

    __slots__ = ("_is_good", "_merit", "_merit_at_s", "_until_s")

    def __init__(self) -> None:
        self._is_good: bool | None = None
        self._merit = 0.0
        self._merit_at_s = 0.0
        self._until_s = float("-inf")

    def note(self, is_good: bool, now_s: float) -> None:
        """How the link is now."""
        if is_good == self._is_good:
            return
        if is_good and self._is_good is not None:
            merit = self.merit(now_s)
            self._until_s = now_s + min(HOLD_OFF_MAX_S, HOLD_OFF_S * 2.0 ** (merit - 1.0)) if merit > 0.0 else now_s
        elif not is_good and self._is_good:
            self._merit, self._merit_at_s = min(MERIT_MAX, self.merit(now_s) + 1.0), now_s
        if is_good or self._is_good:
            self._is_good = is_good

    def merit(self, now_s: float) -> float:
        """The figure of merit: failures, the older the less."""
        return float(self._merit * 0.5 ** (max(0.0, now_s - self._merit_at_s) / HALF_LIFE_S))

    @property
    def has_failed(self) -> bool:
        """Whether the link was good and is not."""
        return self._is_good is False

    def left_s(self, now_s: float) -> float:
        """How long the link is still held back; 0 where it is not, or is not good at all."""
        return max(0.0, self._until_s - now_s) if self._is_good else 0.0
