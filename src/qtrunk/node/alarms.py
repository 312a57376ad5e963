"""A node's alarms: what is wrong now, since when, and what was (after RFC 8632: resource, type, severity)."""

import threading
from collections import deque
from dataclasses import asdict, dataclass

from qtrunk.base.ports import Clock

HISTORY_MAX = 1000


@dataclass(slots=True)
class Alarm:
    """One alarm on one resource."""

    resource: str
    type: str
    severity: str
    text: str
    raised_unix_s: float
    changed_unix_s: float
    count: int = 1
    cleared_unix_s: float | None = None


class AlarmBoard:
    """Active alarms, one for each resource and type, and a bounded history. Safe to call from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._active: dict[tuple[str, str], Alarm] = {}
        self._history: deque[Alarm] = deque(maxlen=HISTORY_MAX)
        self._lock = threading.Lock()

    def raise_alarm(self, resource: str, type_: str, severity: str, text: str) -> bool:
        """Raise, or repeat; True when it is new."""
        now_s = self._clock.unix_s()
        with self._lock:
            alarm = self._active.get((resource, type_))
            if alarm is not None:
                alarm.text, alarm.changed_unix_s, alarm.count = text, now_s, alarm.count + 1
                return False
            self._active[resource, type_] = Alarm(resource, type_, severity, text, now_s, now_s)
            return True

    def clear(self, resource: str, type_: str | None = None) -> None:
        """Clear one type, or every alarm, of a resource."""
        with self._lock:
            for key in [k for k in self._active if k[0] == resource and type_ in (None, k[1])]:
                alarm = self._active.pop(key)
                alarm.cleared_unix_s = self._clock.unix_s()
                self._history.append(alarm)

    def of(self, resource: str) -> list[Alarm]:
        """Active alarms of a resource."""
        with self._lock:
            return [alarm for (name, _), alarm in self._active.items() if name == resource]

    def as_json(self) -> dict[str, list[dict[str, object]]]:
        """Active alarms and the history, newest last."""
        with self._lock:
            return {
                "active": [asdict(alarm) for alarm in self._active.values()],
                "history": [asdict(alarm) for alarm in list(self._history)[-100:]],
            }
