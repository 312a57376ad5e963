"""The contact of a node's enclosure: what happens when somebody opens it.

A contact is a file that says 0 or 1: the value of a GPIO line (Linux gpio-sysfs), or what any driver of another sensor
writes. Open, and not readable for UNREADABLE_S, are the same: whoever tampers may as well cut the sensor off.

Opening is news that must not get lost, however short it was: the alarm stays until the contact is closed again *and* an
operator has acknowledged it, also over restarts (`tampered.json` in the node's directory). By policy the node seals
itself; people can unseal it when the contact is closed, and until they acknowledge the alarm it does not unseal without
them.

Errors: ConfigError.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from qtrunk.base.ports import Clock
from qtrunk.control.alarms import OperatorState
from qtrunk.control.catalogue import entry
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.config import EnclosureConfig

log = logging.getLogger(__name__)

RESOURCE, TYPE = "enclosure", "TamperInput"
LOOK_S = 0.2
UNREADABLE_S = 5.0
FILE = "tampered.json"


class Contact(Protocol):
    """A contact input."""

    def is_closed(self) -> bool:
        """Whether the enclosure is shut; OSError where that cannot be read."""


class FileContact:
    """A file whose first character is the state."""

    def __init__(self, path: Path, closed: str) -> None:
        self._path = path
        self._closed = closed

    def is_closed(self) -> bool:
        """See Contact. Anything but the value for closed is open."""
        with self._path.open("rb", buffering=0) as file:
            return file.read(16).strip() == self._closed.encode()


class _Tampered(msgspec.Struct, frozen=True):
    since_unix_s: float
    why: str


class TamperWatch:
    """One node's. `look` every LOOK_S, from one thread."""

    def __init__(
        self, contact: Contact, board: AlarmBoard, clock: Clock, directory: Path, opened: Callable[[str], None]
    ) -> None:
        """`opened` is told once each time that the enclosure is opened, with the reason."""
        self._contact = contact
        self._board = board
        self._clock = clock
        self._path = directory / FILE
        self._opened = opened
        self._readable_s = clock.monotonic_s()
        self._tampered = self._load()
        self._why = self._tampered.why if self._tampered is not None else ""
        """Why it counts as open now; empty while it is closed."""
        self._said = ""

    @property
    def is_open(self) -> bool:
        """Whether the enclosure counts as open now."""
        return bool(self._why)

    @property
    def is_tampered(self) -> bool:
        """Whether it was opened and nobody has acknowledged that since."""
        return self._tampered is not None

    def look(self) -> None:
        """Once."""
        before, self._why = self._why, self._read()
        if self._why and not before:
            self._note_opening()
        if self._tampered is None:
            return
        if not self._why and self._is_acknowledged() and self._forget():
            return
        text = self._why or f"{self._tampered.why}; it is closed now, and somebody has to acknowledge that it was not"
        if text != self._said:
            self._said = text
            self._board.raise_alarm(RESOURCE, TYPE, entry(TYPE).severity, text)

    def _note_opening(self) -> None:
        if self._tampered is None:
            self._tampered = _Tampered(self._clock.unix_s(), self._why)
            self._keep()
        elif self._is_acknowledged():
            # What was acknowledged was the last time: this one is news.
            self._board.clear(RESOURCE, TYPE)
        self._opened(self._why)

    def _forget(self) -> bool:
        """It is over; False where the disk would not know so."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: %s", self._path, error.strerror)
            return False
        self._tampered, self._said = None, ""
        self._board.clear(RESOURCE, TYPE)
        return True

    def _read(self) -> str:
        now_s = self._clock.monotonic_s()
        try:
            is_closed = self._contact.is_closed()
        except OSError as error:
            # A driver that starts anew is away for a moment; what was so goes on until then.
            is_late = now_s - self._readable_s >= UNREADABLE_S
            return f"the contact cannot be read ({error.strerror})" if is_late else self._why
        self._readable_s = now_s
        return "" if is_closed else "the enclosure is open"

    def _is_acknowledged(self) -> bool:
        said = (OperatorState.ACK, OperatorState.CLOSED)
        return any(one.type == TYPE and one.operator_state in said for one in self._board.of(RESOURCE))

    def _load(self) -> _Tampered | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Tampered)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            return _Tampered(self._clock.unix_s(), f"what was kept of the enclosure cannot be read ({error})")

    def _keep(self) -> None:
        try:
            with self._path.open("wb") as out:
                out.write(msgspec.json.encode(self._tampered))
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            log.warning("%s: %s: the alarm would not survive a restart", self._path, error.strerror)


def contact_of(config: EnclosureConfig) -> Contact:
    """The contact that a configuration names."""
    return FileContact(Path(config.contact), config.closed)
