"""Who is told what: compares the board with what was told last, and hands notices to each receiver's thread.

A change waits SETTLE_S before it is told, so that its root cause is known by then and what comes and goes at once is no
message. Shelved alarms are told to nobody; one that was told and is shelved then is over as far as receivers know. A
queue holds QUEUE_MAX notices: with a dead receiver the oldest are dropped, with an alarm on the sink.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from qtrunk.base.ports import Clock
from qtrunk.control.alarms import Severity
from qtrunk.control.ietf_alarms import date_and_time
from qtrunk.control.networkview import Shown, is_heard, shown
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.sinks.mail import Mail
from qtrunk.node.sinks.notice import Notice, Sink, SinkError
from qtrunk.node.sinks.settings import Common, SinkSettings
from qtrunk.node.sinks.snmp import Engine, Snmp
from qtrunk.node.sinks.syslog import Syslog
from qtrunk.node.sinks.webhook import Webhook

log = logging.getLogger(__name__)

SETTLE_S = 3.0
QUEUE_MAX = 256
TRIES = 5
PAUSE_S, PAUSE_MAX_S = 1.0, 60.0
FAILED = "AlarmSinkFailed"


class Outlet:
    """One receiver's queue and thread."""

    def __init__(self, name: str, sink: Sink, settings: Common, board: AlarmBoard) -> None:
        self._resource = f"sink {name}"
        self._sink = sink
        self._settings = settings
        self._board = board
        self._queue: deque[Notice] = deque()
        self._wake = threading.Condition()
        self._stopping = threading.Event()
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._work, name=self._resource, daemon=True)
        self._thread.start()

    def offer(self, notice: Notice) -> None:
        """Tell this, unless the receiver does not want it."""
        if self._is_wanted(notice):
            self._told.add(notice.id)
        elif notice.severity == "cleared" or not self._is_grave(notice):
            # What was told must be told to be over, or to be milder than what is told.
            if notice.id not in self._told:
                return
            self._told.remove(notice.id)
        else:
            return
        with self._wake:
            if len(self._queue) >= QUEUE_MAX:
                self._queue.popleft()
                self._fail("its queue is full; the oldest messages are dropped")
            self._queue.append(notice)
            self._wake.notify()

    def remember(self, notice: Notice) -> None:
        """The process before this one told this, as far as it was wanted: its end will be told."""
        if self._is_wanted(notice):
            self._told.add(notice.id)

    def _is_wanted(self, notice: Notice) -> bool:
        is_root = not (self._settings.roots_only and notice.root_causes)
        return self._is_grave(notice) and is_root and notice.resource != self._resource

    def _is_grave(self, notice: Notice) -> bool:
        return Severity.of(notice.severity) >= Severity.of(self._settings.least)

    def stop(self, timeout_s: float = 2.0) -> None:
        """Give what is left a moment, then end."""
        self._stopping.set()
        with self._wake:
            self._wake.notify()
        self._thread.join(timeout_s)

    def _work(self) -> None:
        try:
            self._serve()
        except Exception:
            log.exception("%s", self._resource)
            self._fail("its sender ended with an error of its own: see the node's log, and start the node anew")
        finally:
            self._sink.close()

    def _serve(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._stopping.is_set():
                    self._wake.wait()
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._sink.batch))]
            if not batch:
                return
            self._deliver(batch)
            self._stopping.wait(self._sink.interval_s)

    def _deliver(self, batch: list[Notice]) -> None:
        pause_s = PAUSE_S
        for attempt in range(TRIES):
            try:
                self._sink.send(batch)
            except SinkError as error:
                if error.is_final or attempt == TRIES - 1 or self._stopping.is_set():
                    self._fail(f"{len(batch)} messages were not delivered: {error}")
                    return
                self._stopping.wait(pause_s)
                pause_s = min(PAUSE_MAX_S, 4 * pause_s)
            else:
                self._board.clear(self._resource, FAILED)
                return

    def _fail(self, text: str) -> None:
        if self._board.raise_alarm(self._resource, FAILED, "warning", text):
            log.warning("%s: %s", self._resource, text)


class Dispatch:
    """One node's receivers."""

    def __init__(
        self, settings: SinkSettings, network: str, node: str, board: AlarmBoard, clock: Clock, directory: Path
    ) -> None:
        """`directory`: the node's. ConfigError where what a receiver needs is not installed."""
        self._network, self._node = network, node
        self._board = board
        self._clock = clock
        makers: list[tuple[str, Mapping[str, Common], Callable[..., Sink]]] = [
            ("webhook", settings.webhook, Webhook),
            ("syslog", settings.syslog, Syslog),
            ("mail", settings.mail, Mail),
            ("snmp", settings.snmp, partial(Snmp, engine=Engine(directory, network, node))),
        ]
        self._outlets = [
            Outlet(f"{kind} {name}", make(one), one, board)
            for kind, entries, make in makers
            for name, one in entries.items()
        ]
        # What was up before this process began was told by the one before.
        before = [shown(alarm) for alarm in board.all()]
        self._told = {alarm.id: _state(alarm) for alarm in before}
        for alarm in before:
            for outlet in self._outlets if not alarm.is_cleared else ():
                outlet.remember(self._notice(alarm))

    def look(self) -> None:
        """About once a second."""
        if not self._outlets:
            return
        now_s = self._clock.unix_s()
        seen = {alarm.id: shown(alarm) for alarm in self._board.all()}
        for id_, alarm in seen.items():
            state = _state(alarm)
            if state == self._told.get(id_, "cleared") or now_s - alarm.changed_unix_s < SETTLE_S:
                continue
            self._told[id_] = state
            for outlet in self._outlets:
                outlet.offer(self._notice(alarm))
        for id_ in self._told.keys() - seen.keys():
            del self._told[id_]

    def close(self) -> None:
        """The node stops."""
        for outlet in self._outlets:
            outlet.stop()

    def _notice(self, alarm: Shown) -> Notice:
        return Notice(
            network=self._network,
            node=self._node,
            id=alarm.id,
            resource=alarm.resource,
            type=alarm.type,
            severity=_state(alarm),
            text=alarm.text,
            time=date_and_time(alarm.changed_unix_s),
            probable_cause=alarm.probable_cause,
            remedy=alarm.remedy,
            impacted=alarm.impacted,
            root_causes=alarm.root_causes,
        )


def _state(alarm: Shown) -> str:
    """As receivers know it."""
    return alarm.severity if is_heard(alarm) else "cleared"
