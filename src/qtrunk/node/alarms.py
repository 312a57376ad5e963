"""A node's alarm board: the list of `control.alarms` behind a lock and a clock, kept in a file.

Any thread may raise and clear, many times a second: only changes of state count. They are written about once a second
(`flush`), what operators say before they are answered. Alarms are no keys: where the file takes nothing, they go on in
memory, and an alarm says so. After a restart, what was up stays up for SETTLE_S and is cleared then unless it was
raised again; acknowledgements and shelves survive.
"""

import copy
import logging
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import msgspec

from qtrunk.base.errors import StoreError
from qtrunk.base.ports import Clock
from qtrunk.control import ietf_alarms
from qtrunk.control.alarms import Alarm, AlarmList, OperatorState
from qtrunk.control.catalogue import entry
from qtrunk.control.networkview import shown

log = logging.getLogger(__name__)

SETTLE_S = 60.0
HISTORY_SHOWN = 100
RESOURCE = "alarms"


class AlarmFile:
    """Where a board is kept: SQLite, one row for each alarm."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS alarms (id TEXT PRIMARY KEY, alarm BLOB NOT NULL) STRICT")
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"alarms {path}: {error}") from error

    def load(self) -> list[Alarm]:
        """All that was kept; what cannot be read any more is left out, with a line in the log."""
        found = []
        try:
            for id_, octets in self._db.execute("SELECT id, alarm FROM alarms ORDER BY rowid"):
                try:
                    found.append(msgspec.json.decode(octets, type=Alarm))
                except msgspec.MsgspecError as error:
                    log.warning("alarms %s: %s: %s", self._path, id_, error)
        except sqlite3.Error as error:
            raise StoreError(f"alarms {self._path}: {error}") from error
        return found

    def put(self, changed: list[Alarm], gone: set[str]) -> None:
        """All or nothing; StoreError."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                self._db.executemany("DELETE FROM alarms WHERE id = ?", [(id_,) for id_ in gone])
                self._db.executemany(
                    "INSERT INTO alarms (id, alarm) VALUES (?, ?)"
                    " ON CONFLICT (id) DO UPDATE SET alarm = excluded.alarm",
                    [(alarm.id, msgspec.json.encode(alarm)) for alarm in changed],
                )
        except sqlite3.Error as error:
            raise StoreError(f"alarms {self._path}: {error}") from error

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


class AlarmBoard:
    """See the module. Without a path nothing outlives the process."""

    def __init__(self, clock: Clock, path: Path | None = None) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._list = AlarmList()
        self._file: AlarmFile | None = None
        self._path = path
        self._settle_s: float | None = None
        self.on_raised: Callable[[], object] = lambda: None
        """Called whenever one comes up, in the thread that raised it."""
        self._unkept: tuple[dict[str, Alarm], set[str]] = ({}, set())
        if path is None:
            return
        try:
            self._file = AlarmFile(path)
            self._list.load(self._file.load())
            self._settle_s = clock.monotonic_s() + SETTLE_S
        except StoreError as error:
            self._note_unkept(error)

    # ── the resources' side ─────────────────────────────────────────────────────────────────────────────────────────

    def raise_alarm(self, resource: str, type_: str, severity: str, text: str) -> bool:
        """Raise, or repeat; True when it was not up."""
        with self._lock:
            is_new = self._list.raise_alarm(resource, type_, severity, text, self._clock.unix_s())
        if is_new:
            self.on_raised()
        return is_new

    def clear(self, resource: str, type_: str | None = None) -> None:
        """Clear one type, or every alarm, of a resource."""
        with self._lock:
            self._list.clear(resource, type_, self._clock.unix_s())

    def set_alarm(self, is_so: bool, resource: str, type_: str, text: str) -> None:
        """Raise with the severity of the catalogue, or clear."""
        if is_so:
            self.raise_alarm(resource, type_, entry(type_).severity, text)
        else:
            self.clear(resource, type_)

    # ── the operators' side ─────────────────────────────────────────────────────────────────────────────────────────

    def act(self, id_: str, operator: str, state: OperatorState, text: str, until_unix_s: float | None = None) -> Alarm:
        """Durable on return. RequestRefused: it makes no sense; StoreError: it could not be kept, and is not so."""
        with self._lock:
            before = copy.deepcopy(self._list.find(id_))
            alarm = self._list.act(id_, operator, state, text, self._clock.unix_s(), until_unix_s)
            try:
                self._write()
            except StoreError:
                assert before is not None
                alarm.operator_changes, alarm.shelved_until_unix_s = (
                    before.operator_changes,
                    before.shelved_until_unix_s,
                )
                raise
            return copy.deepcopy(alarm)

    def suppress(self, resource: str, until_unix_s: float, why: str) -> None:
        """Maintenance: what is up or comes up on these resources (`*` in it: any characters) is shelved until then."""
        with self._lock:
            self._list.suppress(resource, until_unix_s, why, self._clock.unix_s())

    def resume(self, resource: str) -> None:
        """Maintenance is over; what is still up comes back from the shelf."""
        with self._lock:
            self._list.resume(resource, self._clock.unix_s())

    def explain(self, id_: str, impacted: list[str], root_causes: list[str]) -> None:
        """What correlation says of an alarm."""
        with self._lock:
            alarm = self._list.find(id_)
            if alarm is not None:
                self._list.explain(alarm, impacted, root_causes)

    # ── keeping ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def flush(self) -> None:
        """About once a second: let time pass, and write what changed."""
        with self._lock:
            now_s = self._clock.unix_s()
            self._list.tick(now_s)
            if self._settle_s is not None and self._clock.monotonic_s() >= self._settle_s:
                self._settle_s = None
                self._list.settle(now_s)
            try:
                self._write()
            except StoreError as error:
                self._note_unkept(error)
            else:
                self._list.clear(RESOURCE, "AlarmsNotKept", now_s)

    def close(self) -> None:
        """Write what is left."""
        with self._lock:
            self.flush()
            if self._file is not None:
                self._file.close()
            self._path = self._file = None

    def _write(self) -> None:
        changed, gone = self._list.take_changes()
        if self._path is None:
            return
        changes, dropped = self._unkept
        changes.update((alarm.id, alarm) for alarm in changed)
        dropped |= gone
        for id_ in gone:
            changes.pop(id_, None)
        dropped -= changes.keys()
        if changes or dropped or self._file is None:
            self._file = self._file or AlarmFile(self._path)
            self._file.put(list(changes.values()), dropped)
            self._unkept = ({}, set())

    def _note_unkept(self, error: StoreError) -> None:
        if self._list.raise_alarm(RESOURCE, "AlarmsNotKept", "minor", str(error), self._clock.unix_s()):
            log.warning("%s", error)

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def of(self, resource: str) -> list[Alarm]:
        """Active alarms of a resource."""
        return [alarm for alarm in self.active() if alarm.resource == resource]

    def has_active(self) -> bool:
        """Whether anything is not cleared."""
        with self._lock:
            return self._list.has_active

    def active(self) -> list[Alarm]:
        """Copies of all that is not cleared."""
        with self._lock:
            return copy.deepcopy(self._list.active())

    def all(self) -> list[Alarm]:
        """Copies of everything in the list."""
        with self._lock:
            return copy.deepcopy(self._list.all())

    def as_json(self) -> dict[str, list[dict[str, object]]]:
        """What is up and not shelved, what is shelved, and what was, the last change last."""
        found = sorted(self.all(), key=lambda alarm: alarm.changed_unix_s)
        up = [alarm for alarm in found if not alarm.is_cleared]
        return {
            "active": [asdict(shown(alarm)) for alarm in up if not alarm.is_shelved],
            "shelved": [asdict(shown(alarm)) for alarm in up if alarm.is_shelved],
            "history": [asdict(shown(alarm)) for alarm in found if alarm.is_cleared][-HISTORY_SHOWN:],
        }

    def ietf(self) -> dict[str, object]:
        """The list as RFC 8632 has it."""
        with self._lock:
            return ietf_alarms.document(copy.deepcopy(self._list.all()), self._list.changed_unix_s)
