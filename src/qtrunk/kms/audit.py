"""The audit log of a node or a certificate authority: who did what, when, and how it ended; never key.

    audit.log     one JSON object a line, oldest first
    audit.head    number and hash of the last line, kept apart

A line's `hash` is SHA-256 over the hash of the line before (32 octets; zeros before the first) and the line's canonical
JSON (members sorted, no spaces, UTF-8) without `hash`. Whoever edits, drops or reorders lines breaks the chain; whoever
cuts its end contradicts the head. Whoever owns both files can write a new history: `Head` is to be noted elsewhere now
and then (`qtrunk audit verify --head`), which docs/audit.md describes.

A record is on the disk when `record` returns, else it raises StoreError and the file is as before: what should have
been audited must then not happen. Threads and processes take turns. (ITU-T X.1712: audit of key management.)
"""

import contextlib
import datetime as dt
import fcntl
import hashlib
import hmac
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from qtrunk.base.errors import AuthenticationFailed, QtrunkError, StoreError
from qtrunk.base.ports import Clock
from qtrunk.kms.seal import sync_directory

LOG_NAME = "audit.log"
HEAD_NAME = "audit.head"
TEXT_MAX = 4096
"""Characters of one value of a record."""
_START = bytes(32)

Value = str | int | bool | None | list[str]
"""What a record's details may hold: deliberately no octets and no objects."""


@dataclass(frozen=True, slots=True)
class Head:
    """Where a log ends: the number of its last record (0: empty) and that record's hash in hexadecimal digits."""

    sequence: int
    hash: str


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the log."""

    sequence: int
    time: str
    """UTC, RFC 3339."""
    who: str
    what: str
    on: str
    outcome: str
    details: dict[str, Value]
    hash: str


def canonical(value: object) -> bytes:
    """The one JSON text of a value: members sorted, no spaces, UTF-8."""
    return msgspec.json.encode(value, order="sorted")


class AuditLog:
    """The log in one directory."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        """Open or create. AuthenticationFailed: the log was changed; StoreError: it cannot be had."""
        self._directory = directory
        self._clock = clock
        self._lock = threading.Lock()
        self._problem: str | None = None
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._log = os.open(directory / LOG_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"audit log {directory}: {error.strerror}") from error
        try:
            with self._turn():
                self._octets, self._head = self._set_right()
            sync_directory(directory)
        except BaseException:
            os.close(self._log)
            raise

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Among the threads of this process, then among processes."""
        with self._lock:
            fcntl.flock(self._log, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._log, fcntl.LOCK_UN)

    def _set_right(self) -> tuple[int, Head]:
        """Check everything; cut a line that a crash left unfinished (nobody was told that it was written)."""
        whole = 0
        head = Head(0, _START.hex())
        for record, octets in _chain(self._directory):
            head, whole = Head(record.sequence, record.hash), whole + octets
        if os.fstat(self._log).st_size > whole:
            os.ftruncate(self._log, whole)
            os.fsync(self._log)
        self._write_head(head)
        return whole, head

    @property
    def head(self) -> Head:
        """Where the log ends now."""
        return self._head

    @property
    def problem(self) -> str | None:
        """Why the last record could not be written, or None: while there is a problem, no key may go out."""
        return self._problem

    def record(
        self, who: str, what: str, on: str = "", outcome: str = "done", details: Mapping[str, Value] | None = None
    ) -> None:
        """Append one record, durable on return. StoreError where that fails: then do not do it."""
        checked = {name: _checked(name, value) for name, value in (details or {}).items()}
        for name, text in (("who", who), ("what", what), ("on", on), ("outcome", outcome)):
            _checked(name, text)
        when = dt.datetime.fromtimestamp(self._clock.unix_s(), dt.UTC).isoformat(timespec="milliseconds")
        try:
            with self._turn():
                if (self._directory / LOG_NAME).stat().st_ino != os.fstat(self._log).st_ino:
                    raise AuthenticationFailed("it was taken away while in use")
                if os.fstat(self._log).st_size != self._octets:
                    # Another process wrote, or somebody cut it.
                    self._octets, self._head = self._set_right()
                line = Record(self._head.sequence + 1, when, who, what, on, outcome, checked, "")
                found = _hash(bytes.fromhex(self._head.hash), line)
                octets = canonical(msgspec.structs.replace(line, hash=found)) + b"\n"
                head = Head(line.sequence, found)
                self._append(octets, head)
                self._octets, self._head = self._octets + len(octets), head
        except (OSError, AuthenticationFailed) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            self._problem = f"audit log {self._directory}: {why}"
            raise StoreError(f"{self._problem}; what it should have recorded is refused") from error
        self._problem = None

    def _append(self, octets: bytes, head: Head) -> None:
        rest = memoryview(octets)
        place = self._octets
        try:
            while rest:
                written = os.pwrite(self._log, rest, place)
                rest, place = rest[written:], place + written
            os.fsync(self._log)
            self._write_head(head)
        except OSError:
            # What nobody may rely on must not stand there as if it had happened.
            os.ftruncate(self._log, self._octets)
            raise

    def _write_head(self, head: Head) -> None:
        path = self._directory / HEAD_NAME
        part = path.with_suffix(".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(canonical({"sequence": head.sequence, "hash": head.hash}))
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)

    def look(self) -> None:
        """Notice at once, not at the next record, that the log was taken away or cut under us."""
        try:
            here, there = os.fstat(self._log), (self._directory / LOG_NAME).stat()
        except OSError as error:
            self._problem = f"audit log {self._directory}: {error.strerror}"
            return
        if here.st_ino != there.st_ino or here.st_size < self._octets:
            self._problem = f"audit log {self._directory}: it was taken away or cut while in use"

    @contextlib.contextmanager
    def during(self, who: str, what: str, on: str = "", details: Mapping[str, Value] | None = None) -> Iterator[None]:
        """Around an act: `begun` before it (StoreError: the act does not happen), `done` or `failed` after it."""
        self.record(who, what, on, "begun", details)
        try:
            yield
        except BaseException as problem:
            # Our own errors hold no secret; the text of any other could hold anything.
            why = str(problem)[:500] if isinstance(problem, QtrunkError) else type(problem).__name__
            self.record(who, what, on, "failed", {"why": why})
            raise
        self.record(who, what, on, "done")

    def close(self) -> None:
        """Let another process have the log."""
        os.close(self._log)


def verify(directory: Path, noted: Head | None = None) -> Head:
    """Check a whole log, also while it is being written. AuthenticationFailed says at which line it breaks.

    `noted` is a head that was written down elsewhere: the log must still hold that record.
    """
    head = Head(0, _START.hex())
    has_noted = noted is None
    for record, _ in _chain(directory):
        head = Head(record.sequence, record.hash)
        has_noted = has_noted or head == noted
    if not has_noted:
        raise AuthenticationFailed(f"audit log {directory}: it does not hold the noted head; it was cut or rewritten")
    return head


def records(directory: Path, after: int = 0) -> Iterator[Record]:
    """The records after number `after`, oldest first, checked as `verify` does."""
    return (record for record, _ in _chain(directory) if record.sequence > after)


def _chain(directory: Path) -> Iterator[tuple[Record, int]]:
    """Records with their length in octets, each checked against the one before, the whole against the head."""
    head = _read_head(directory)
    previous, sequence = _START, 0
    try:
        # One read: what is appended meanwhile is not looked at.
        lines = (directory / LOG_NAME).read_bytes().split(b"\n")
    except OSError as error:
        raise StoreError(f"audit log {directory}: {error.strerror}") from error
    is_met = head.sequence == 0
    for number, octets in enumerate(lines[:-1], 1):
        record = _parsed(directory, number, octets)
        if record.sequence != number or not hmac.compare_digest(_hash(previous, record), record.hash):
            raise AuthenticationFailed(f"audit log {directory}: line {number} was changed, or one before it is missing")
        sequence, previous = number, bytes.fromhex(record.hash)
        if sequence == head.sequence:
            is_met = hmac.compare_digest(record.hash, head.hash)
        yield record, len(octets) + 1
    if not is_met:
        raise AuthenticationFailed(
            f"audit log {directory}: it ends at record {sequence}, its head is record {head.sequence}; it was cut or "
            "rewritten"
        )


def _parsed(directory: Path, number: int, octets: bytes) -> Record:
    try:
        record = msgspec.json.decode(octets, type=Record)
        bytes.fromhex(record.hash)
    except (msgspec.MsgspecError, ValueError) as error:
        raise AuthenticationFailed(f"audit log {directory}: line {number} is no record") from error
    return record


def _read_head(directory: Path) -> Head:
    path = directory / HEAD_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Head)
    except FileNotFoundError:
        if (directory / LOG_NAME).exists() and (directory / LOG_NAME).stat().st_size:
            raise AuthenticationFailed(f"audit log {directory}: {HEAD_NAME} is gone") from None
        return Head(0, _START.hex())
    except (OSError, msgspec.MsgspecError) as error:
        raise AuthenticationFailed(f"audit log {directory}: {HEAD_NAME} is damaged ({error})") from error


def _hash(previous: bytes, record: Record) -> str:
    value = cast("dict[str, object]", msgspec.to_builtins(record))
    del value["hash"]
    return hashlib.sha256(previous + canonical(value)).hexdigest()


def _checked(name: str, value: object) -> Value:
    """Text, numbers and lists of text only: octets have no business here."""
    match value:
        case str():
            is_fit = len(value) <= TEXT_MAX
        case list():
            is_fit = all(isinstance(text, str) and len(text) <= TEXT_MAX for text in value)
        case _:
            is_fit = value is None or (isinstance(value, int) and abs(value) < 1 << 63)
    if not is_fit:
        raise TypeError(f"audit: {name} holds something else than short text and numbers")
    return cast("Value", value)
