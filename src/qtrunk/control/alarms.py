"""The alarm list of one place, after RFC 8632 (YANG alarm management) and ITU-T X.733; pure, times come as arguments.

An alarm is one undesirable state of one resource: (resource, type, qualifier). Two life cycles run beside each other
and never touch:

    resource    raised with a severity, its severity or text changes, cleared, raised again (RFC 8632 section 3.5.1)
    operator    none, ack, closed, shelved, un-shelved: what people say of it, with name and words (section 3.5.2)

But for one rule: an alarm that was cleared and comes again after it was acknowledged or closed is news, so its operator
state goes back to none. All times are Unix seconds; two changes of one alarm never bear the same one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from fnmatch import fnmatchcase
from hashlib import sha256

import msgspec

from qtrunk.base.errors import RequestRefused

ALARMS_MAX = 4096
CHANGES_MAX = 64
"""Of each kind, kept for one alarm."""
KEPT_S = 7 * 86400.0
"""How long a cleared alarm stays in the list."""
TEXT_MAX = 1000
_STEP_S = 1e-3
MAINTENANCE = "maintenance"
"""Who shelves what is raised on a suppressed resource."""
SYSTEM = "system"


class Severity(IntEnum):
    """Perceived severity; numbers after RFC 8632, rising."""

    CLEARED = 1
    INDETERMINATE = 2
    WARNING = 3
    MINOR = 4
    MAJOR = 5
    CRITICAL = 6

    @classmethod
    def of(cls, word: str) -> "Severity":
        """From its name in RFC 8632; ValueError."""
        try:
            return cls[word.upper()]
        except KeyError:
            raise ValueError(f"{word!r} is not a severity of RFC 8632") from None


class OperatorState(StrEnum):
    """RFC 8632 `operator-state`."""

    NONE = "none"
    ACK = "ack"
    CLOSED = "closed"
    SHELVED = "shelved"
    UNSHELVED = "un-shelved"


class StatusChange(msgspec.Struct, frozen=True):
    """The resource's side."""

    time_unix_s: float
    severity: str
    text: str


class OperatorChange(msgspec.Struct, frozen=True):
    """The people's side."""

    time_unix_s: float
    operator: str
    state: str
    text: str


def alarm_id(resource: str, type_: str, qualifier: str = "") -> str:
    """A short name for commands: alike for the same alarm at two nodes and after every restart."""
    return sha256(repr((resource, type_, qualifier)).encode()).hexdigest()[:12]


class Alarm(msgspec.Struct):
    """One entry of the list."""

    resource: str
    type: str
    qualifier: str
    severity: str
    """Of the last time it was raised; a cleared alarm keeps it."""
    text: str
    created_unix_s: float
    raised_unix_s: float
    changed_unix_s: float
    is_cleared: bool = False
    count: int = 1
    """How often it was reported, changed or not."""
    status_changes: list[StatusChange] = []
    operator_changes: list[OperatorChange] = []
    shelved_until_unix_s: float | None = None
    """While it is shelved; None: until somebody takes it from the shelf."""
    impacted: list[str] = []
    """Services that suffer: pools, tenants."""
    root_causes: list[str] = []
    """Resources whose fault this follows from; empty: it is a root, as far as is known here."""

    @property
    def id(self) -> str:
        """See `alarm_id`."""
        return alarm_id(self.resource, self.type, self.qualifier)

    @property
    def operator_state(self) -> OperatorState:
        """What people said last."""
        return OperatorState(self.operator_changes[-1].state) if self.operator_changes else OperatorState.NONE

    @property
    def is_shelved(self) -> bool:
        """Whether nobody wants to hear of it now."""
        return self.operator_state is OperatorState.SHELVED


@dataclass(frozen=True, slots=True)
class Suppression:
    """What is raised on these resources (`*` in the pattern: any characters) goes to the shelf at once."""

    resource: str
    until_unix_s: float
    why: str


@dataclass
class AlarmList:
    """All alarms of one place. Not for several threads."""

    _alarms: dict[tuple[str, str, str], Alarm] = field(default_factory=dict)
    _suppressed: dict[str, Suppression] = field(default_factory=dict)
    _changed: set[str] = field(default_factory=set)
    _gone: set[str] = field(default_factory=set)
    _unconfirmed: set[tuple[str, str, str]] = field(default_factory=set)
    """Loaded as active, and not reported since."""
    changed_unix_s: float = 0.0

    # ── the resource's side ─────────────────────────────────────────────────────────────────────────────────────────

    def raise_alarm(
        self, resource: str, type_: str, severity: str, text: str, now_s: float, qualifier: str = ""
    ) -> bool:
        """Raise, change or repeat; True when it was not active before. ValueError for an unknown severity."""
        if Severity.of(severity) is Severity.CLEARED:
            raise ValueError("an alarm is cleared by `clear`")
        key, text = (resource, type_, qualifier), text[:TEXT_MAX]
        self._unconfirmed.discard(key)
        alarm = self._alarms.get(key)
        if alarm is None:
            self._make_room()
            alarm = Alarm(resource, type_, qualifier, severity, text, now_s, now_s, now_s)
            self._alarms[key] = alarm
            self._note_status(alarm, severity, now_s)
            self._shelve_if_suppressed(alarm, now_s)
            return True
        alarm.count += 1
        was_cleared, is_same = alarm.is_cleared, alarm.severity == severity
        # Texts often hold a figure that moves: a new one alone is no change of state.
        alarm.text = text
        if not was_cleared and is_same:
            return False
        alarm.severity, alarm.is_cleared = severity, False
        if was_cleared:
            alarm.raised_unix_s = now_s
            alarm.impacted, alarm.root_causes = [], []
            if alarm.operator_state in (OperatorState.ACK, OperatorState.CLOSED):
                self._note_operator(alarm, SYSTEM, OperatorState.NONE, "raised again", now_s)
        self._note_status(alarm, severity, now_s)
        self._shelve_if_suppressed(alarm, now_s)
        return was_cleared

    def clear(self, resource: str, type_: str | None, now_s: float) -> list[Alarm]:
        """Clear one type, or every active alarm, of a resource; which those were."""
        found = [
            alarm
            for alarm in self._alarms.values()
            if alarm.resource == resource and type_ in (None, alarm.type) and not alarm.is_cleared
        ]
        for alarm in found:
            self._clear(alarm, alarm.text, now_s)
        return found

    def explain(self, alarm: Alarm, impacted: list[str], root_causes: list[str]) -> bool:
        """What an alarm harms and follows from, as correlation says; whether that is news."""
        if (alarm.impacted, alarm.root_causes) == (impacted, root_causes):
            return False
        alarm.impacted, alarm.root_causes = impacted, root_causes
        self._changed.add(alarm.id)
        return True

    # ── the people's side ───────────────────────────────────────────────────────────────────────────────────────────

    def act(
        self, id_: str, operator: str, state: OperatorState, text: str, now_s: float, until_s: float | None = None
    ) -> Alarm:
        """An operator's word on an alarm. RequestRefused where there is no such alarm, or the word makes no sense."""
        alarm = self.find(id_)
        if alarm is None:
            raise RequestRefused(f"id: there is no alarm {id_[:64]!r} here")
        if state is OperatorState.UNSHELVED and not alarm.is_shelved:
            raise RequestRefused(f"alarm {id_} is not shelved")
        if until_s is not None and until_s <= now_s:
            raise RequestRefused("until: this time has passed")
        alarm.shelved_until_unix_s = until_s if state is OperatorState.SHELVED else None
        self._note_operator(alarm, operator, state, text[:TEXT_MAX], now_s)
        return alarm

    def suppress(self, resource: str, until_s: float, why: str, now_s: float) -> None:
        """Shelve what is and will be raised on a resource until then, or until `resume`. `*`: any characters."""
        self._suppressed[resource] = Suppression(resource, until_s, why)
        for alarm in self.active():
            self._shelve_if_suppressed(alarm, now_s)

    def resume(self, resource: str, now_s: float) -> None:
        """End of a suppression: what it shelved comes back. Nothing happens where there is none."""
        if self._suppressed.pop(resource, None) is None:
            return
        for alarm in self._alarms.values():
            if (
                alarm.is_shelved
                and alarm.operator_changes[-1].operator == MAINTENANCE
                and self._suppression(alarm.resource) is None
            ):
                alarm.shelved_until_unix_s = None
                self._note_operator(alarm, MAINTENANCE, OperatorState.UNSHELVED, "maintenance is over", now_s)

    def is_suppressed(self, resource: str) -> bool:
        """Whether maintenance is under way there."""
        return self._suppression(resource) is not None

    # ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def tick(self, now_s: float) -> None:
        """Shelves and maintenance that ended; cleared alarms that are old."""
        for suppression in [one for one in self._suppressed.values() if one.until_unix_s <= now_s]:
            self.resume(suppression.resource, now_s)
        for alarm in self._alarms.values():
            until_s = alarm.shelved_until_unix_s
            if alarm.is_shelved and until_s is not None and until_s <= now_s:
                alarm.shelved_until_unix_s = None
                self._note_operator(alarm, SYSTEM, OperatorState.UNSHELVED, "the time on the shelf is over", now_s)
        for key in [key for key, one in self._alarms.items() if one.is_cleared and now_s - one.changed_unix_s > KEPT_S]:
            self._drop(key)

    def settle(self, now_s: float) -> None:
        """Some time after `load`: what was up in an earlier life and was not reported since is over."""
        for key in sorted(self._unconfirmed):
            alarm = self._alarms.get(key)
            if alarm is not None and not alarm.is_cleared:
                self._clear(alarm, f"{alarm.text} [not seen since the restart]", now_s)
        self._unconfirmed.clear()

    # ── reading, keeping ────────────────────────────────────────────────────────────────────────────────────────────

    def find(self, id_: str) -> Alarm | None:
        """By ID."""
        return next((alarm for alarm in self._alarms.values() if alarm.id == id_), None)

    def all(self) -> list[Alarm]:
        """Everything in the list, oldest entry first."""
        return list(self._alarms.values())

    @property
    def has_active(self) -> bool:
        """Whether anything is not cleared, shelved or not."""
        return any(not alarm.is_cleared for alarm in self._alarms.values())

    def active(self) -> list[Alarm]:
        """What is not cleared, shelved or not."""
        return [alarm for alarm in self._alarms.values() if not alarm.is_cleared]

    def take_changes(self) -> tuple[list[Alarm], set[str]]:
        """Alarms that changed, and IDs of those that left the list, since the last call; for who keeps them."""
        changed, gone = self._changed, self._gone
        self._changed, self._gone = set(), set()
        return [alarm for alarm in self._alarms.values() if alarm.id in changed], gone

    def load(self, alarms: Iterable[Alarm]) -> None:
        """Take what was kept over a restart; see `settle`."""
        for alarm in alarms:
            key = (alarm.resource, alarm.type, alarm.qualifier)
            self._alarms[key] = alarm
            self.changed_unix_s = max(self.changed_unix_s, alarm.changed_unix_s)
            if not alarm.is_cleared:
                self._unconfirmed.add(key)

    def _clear(self, alarm: Alarm, text: str, now_s: float) -> None:
        alarm.is_cleared, alarm.text = True, text[:TEXT_MAX]
        self._unconfirmed.discard((alarm.resource, alarm.type, alarm.qualifier))
        self._note_status(alarm, "cleared", now_s)

    def _note_status(self, alarm: Alarm, severity: str, now_s: float) -> None:
        last_s = alarm.status_changes[-1].time_unix_s if alarm.status_changes else 0.0
        change = StatusChange(max(now_s, last_s + _STEP_S), severity, alarm.text)
        alarm.status_changes = [*alarm.status_changes, change][-CHANGES_MAX:]
        self._touch(alarm, change.time_unix_s)

    def _note_operator(self, alarm: Alarm, operator: str, state: OperatorState, text: str, now_s: float) -> None:
        last_s = alarm.operator_changes[-1].time_unix_s if alarm.operator_changes else 0.0
        change = OperatorChange(max(now_s, last_s + _STEP_S), operator, state.value, text)
        alarm.operator_changes = [*alarm.operator_changes, change][-CHANGES_MAX:]
        self._touch(alarm, change.time_unix_s)

    def _touch(self, alarm: Alarm, time_s: float) -> None:
        alarm.changed_unix_s = max(alarm.changed_unix_s, time_s)
        self.changed_unix_s = max(self.changed_unix_s, time_s)
        self._changed.add(alarm.id)

    def _suppression(self, resource: str) -> Suppression | None:
        return next((one for one in self._suppressed.values() if fnmatchcase(resource, one.resource)), None)

    def _shelve_if_suppressed(self, alarm: Alarm, now_s: float) -> None:
        suppression = self._suppression(alarm.resource)
        if suppression is not None and not alarm.is_shelved:
            alarm.shelved_until_unix_s = suppression.until_unix_s
            self._note_operator(alarm, MAINTENANCE, OperatorState.SHELVED, suppression.why, now_s)

    def _make_room(self) -> None:
        """One more fits: the oldest of the cleared ones goes, else the oldest of the least severe."""
        if len(self._alarms) < ALARMS_MAX:
            return
        key, _ = min(
            self._alarms.items(),
            key=lambda item: (not item[1].is_cleared, Severity.of(item[1].severity), item[1].changed_unix_s),
        )
        self._drop(key)

    def _drop(self, key: tuple[str, str, str]) -> None:
        alarm = self._alarms.pop(key)
        self._unconfirmed.discard(key)
        self._changed.discard(alarm.id)
        self._gone.add(alarm.id)
