"""One message about an alarm, as every kind of receiver gets it."""

from typing import Protocol

import msgspec

from qtrunk.base.errors import QtrunkError


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """An alarm came, changed its severity, or is over (`cleared`)."""

    network: str
    node: str
    id: str
    resource: str
    type: str
    severity: str
    """Perceived severity, `cleared` included."""
    text: str
    time: str
    """Of the change; RFC 3339, UTC."""
    probable_cause: str
    remedy: str
    impacted: list[str]
    root_causes: list[str]
    """Resources that it follows from; empty: a root."""


class SinkError(QtrunkError):
    """A receiver did not take a message. `is_final`: it never will."""

    def __init__(self, text: str, *, is_final: bool = False) -> None:
        super().__init__(text)
        self.is_final = is_final


class Sink(Protocol):
    """One receiver; used by one thread."""

    batch: int
    """How many notices go at once, at most."""
    interval_s: float
    """Pause between two messages."""

    def send(self, notices: list[Notice]) -> None:
        """Deliver, or SinkError."""

    def close(self) -> None:
        """Let go of what it holds; from the same thread as `send`."""
