"""Requests at the key interfaces that were refused for who asked: one is a warning, many a minute are an attack, or a
box with a wrong certificate that never gives up.
"""

from collections import deque

from qtrunk.api.tls import PeerIdentity
from qtrunk.base.ports import Clock
from qtrunk.control.threshold import Ladder, Step
from qtrunk.node.alarms import AlarmBoard

RESOURCE, TYPE = "key interface", "SaeAuthFailure"
WINDOW_S = 60.0
COUNTED_MAX = 1000
STEPS = (Step("warning", -0.5, -0.4, 0.0, 300.0), Step("major", -29.5, -9.5, 0.0, 60.0))
"""Refusals within WINDOW_S, negative: up with one and with 30; down after five minutes without any, and after one of
less than ten.
"""


class Refusals:
    """One node's. `note` and `look` are of one thread."""

    def __init__(self, clock: Clock, alarms: AlarmBoard) -> None:
        self._clock = clock
        self._alarms = alarms
        self._times_s: deque[float] = deque(maxlen=COUNTED_MAX)
        self._last = ""
        self._ladder = Ladder(STEPS)

    def note(self, identity: PeerIdentity) -> None:
        """A request of this party was refused."""
        self._times_s.append(self._clock.monotonic_s())
        self._last = identity.candidates[0] if identity.candidates else f"certificate {identity.fingerprint[:16]}"

    def look(self) -> None:
        """About once a second: set the alarm."""
        now_s = self._clock.monotonic_s()
        while self._times_s and now_s - self._times_s[0] > WINDOW_S:
            self._times_s.popleft()
        severity = self._ladder.note(-float(len(self._times_s)), now_s)
        if severity is None:
            self._alarms.clear(RESOURCE, TYPE)
        else:
            text = f"{len(self._times_s)} key requests refused in a minute, for who asked; the last: {self._last[:128]}"
            self._alarms.raise_alarm(RESOURCE, TYPE, severity, text)
