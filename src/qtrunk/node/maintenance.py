"""A node's maintenance windows: taken from operators, kept over restarts, told to the network, ended in time.

GET  /admin/v1/maintenance                   the windows of this node, and those that others told of
POST /admin/v1/maintenance                   {"resource", "start_unix_s", "end_unix_s", "why"}: plan, or drain now
POST /admin/v1/maintenance/{resource}/end    end what is under way, call off what is planned
"""

import datetime as dt
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from qtrunk.api.https import Request, Response, error
from qtrunk.api.roles import Operator
from qtrunk.base.errors import RequestRefused, StoreError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.ports import Clock
from qtrunk.control.rootcause import node_resource
from qtrunk.kms.audit import AuditLog
from qtrunk.kms.seal import sync_directory
from qtrunk.node.alarms import AlarmBoard
from qtrunk.relay.maintenance import Window, checked, links_at, may_announce, under_way
from qtrunk.topology import Topology

_ALARM = "UnderMaintenance"


def _text(unix_s: float) -> str:
    return dt.datetime.fromtimestamp(unix_s, dt.UTC).isoformat(timespec="seconds")


class _Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    resource: str
    end_unix_s: float
    start_unix_s: float = 0.0
    why: str = ""


class Maintenance:
    """The windows that a node knows. For the event loop."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        path: Path,
        clock: Clock,
        audit: AuditLog,
        alarms: AlarmBoard,
        passing: Callable[[frozenset[LinkId]], int],
    ) -> None:
        """`path` keeps the own windows; `passing` counts relays that are under way over links."""
        self._node = node
        self._topology = topology
        self._path = path
        self._clock = clock
        self._audit = audit
        self._alarms = alarms
        self._passing = passing
        self._heard: dict[NodeId, tuple[Window, ...]] = {}
        self._shelved: dict[str, float] = {}
        self._warned: frozenset[str] = frozenset()
        self._own: tuple[Window, ...] = ()
        self.on_change: Callable[[], None] = lambda: None
        """Called when the own windows are others, so that the network hears of it at once."""
        if path.exists():
            try:
                self._own = tuple(msgspec.json.decode(path.read_bytes(), type=list[Window]))
            except (msgspec.MsgspecError, OSError) as problem:
                raise StoreError(f"maintenance windows {path}: {problem}") from problem

    @property
    def own(self) -> tuple[Window, ...]:
        """What this node tells the network."""
        return self._own

    def all(self) -> list[Window]:
        """The own windows and those that others told of, each once."""
        return list(dict.fromkeys([*self._own, *(window for told in self._heard.values() for window in told)]))

    def hear(self, node: NodeId, windows: Iterable[Window]) -> bool:
        """What another node says, and whether it is news; of others' nodes and links it has no say."""
        before = self._heard.get(node, ())
        self._heard[node] = tuple(w for w in windows if may_announce(self._topology, node, w.resource))
        return self._heard[node] != before

    def adopt(self) -> None:
        """The topology has changed: there is no window for what is gone."""
        left = [window for window in self._own if may_announce(self._topology, self._node, window.resource)]
        if len(left) < len(self._own):
            self._keep(left)
        nodes = {node.id for node in self._topology.nodes}
        for node, windows in list(self._heard.items()):
            del self._heard[node]
            if node in nodes:
                self.hear(node, windows)

    def tick(self) -> frozenset[str]:
        """Let windows end; the nodes and links that routes must leave now."""
        now_s = self._clock.unix_s()
        over = [window for window in self._own if window.phase(now_s) == "over"]
        if over:
            self._keep([window for window in self._own if window not in over])
            for window in over:
                self._audit.record(f"node {self._node}", "maintenance over", window.resource)
        known = [window for window in self.all() if window.phase(now_s) == "under way"]
        self._set_alarms(known)
        return under_way(known, now_s)

    async def answer(self, request: Request, operator: Operator) -> Response:
        """Below /admin/v1/maintenance."""
        match request.method, request.segments[3:]:
            case "GET", ():
                return Response(200, msgspec.json.encode(self.as_json()))
            case "POST", ():
                return self._plan(request.body, operator)
            case "POST", (resource, "end"):
                return self._end(resource, operator)
            case _:
                return error(404, "unknown path")

    def as_json(self) -> list[dict[str, object]]:
        """For status: each window, its phase, and whether work may begin there."""
        now_s = self._clock.unix_s()
        return [
            {
                **msgspec.to_builtins(window),
                "phase": window.phase(now_s),
                "is_own": window in self._own,
                "passing": (passing := self._passing(links_at(self._topology, window.resource))),
                "is_clear": passing == 0 and window.phase(now_s) == "under way",
            }
            for window in sorted(self.all(), key=lambda window: (window.start_unix_s, window.resource))
            if window.phase(now_s) != "over"
        ]

    def _plan(self, body: bytes, operator: Operator) -> Response:
        now_s = self._clock.unix_s()
        try:
            asked = msgspec.json.decode(body, type=_Asked)
            window = msgspec.convert(
                {
                    "resource": asked.resource,
                    "start_unix_s": max(asked.start_unix_s, now_s) if asked.start_unix_s >= 0 else -1.0,
                    "end_unix_s": asked.end_unix_s,
                    "why": asked.why,
                    "operator": operator.name,
                },
                Window,
            )
        except msgspec.MsgspecError as problem:
            raise RequestRefused(f"body: {problem}") from problem
        window = checked(self._topology, self._node, window, self._own, now_s)
        what = {"start": _text(window.start_unix_s), "end": _text(window.end_unix_s), "why": window.why}
        with self._audit.during(f"operator {operator.name}", "drain", window.resource, what):
            self._keep([*self._own, window])
        return Response(200, msgspec.json.encode(window))

    def _end(self, resource: str, operator: Operator) -> Response:
        ended = [window for window in self._own if window.resource == resource]
        if not ended:
            raise RequestRefused(f"resource: {resource[:80]!r} has no window at this node")
        with self._audit.during(f"operator {operator.name}", "undrain", resource):
            self._keep([window for window in self._own if window not in ended])
        return Response(200, msgspec.json.encode(ended))

    def _keep(self, windows: Sequence[Window]) -> None:
        """On the disk first."""
        part = self._path.with_suffix(".part")
        try:
            with part.open("wb") as out:
                out.write(msgspec.json.encode(list(windows)))
                out.flush()
                os.fsync(out.fileno())
            part.replace(self._path)
            sync_directory(self._path.parent)
        except OSError as problem:
            raise StoreError(f"maintenance windows {self._path}: {problem.strerror}") from problem
        self._own = tuple(windows)
        self.on_change()

    def _set_alarms(self, known: Sequence[Window]) -> None:
        """Nobody is called for what is worked on; one warning says that it is."""
        mine = {link.id for link in self._topology.links_of(self._node)}
        wanted: set[str] = set()
        shelved: dict[str, float] = {}
        for window in known:
            here = [str(link) for link in links_at(self._topology, window.resource) & mine]
            wanted.update([*here, *([self._node] if window.resource == self._node else [])])
            for resource in [*here, node_resource(window.resource)]:
                shelved[resource] = max(window.end_unix_s, shelved.get(resource, 0.0))
        for resource in self._shelved.keys() - shelved.keys():
            self._alarms.resume(resource)
        for resource, until_unix_s in shelved.items():
            if self._shelved.get(resource) != until_unix_s:
                self._alarms.suppress(resource, until_unix_s, "maintenance")
        for resource in self._warned - wanted:
            self._alarms.clear(f"maintenance {resource}")
        for resource in wanted - self._warned:
            text = f"{resource} is drained for maintenance; it ends by itself"
            self._alarms.raise_alarm(f"maintenance {resource}", _ALARM, "warning", text)
        self._shelved, self._warned = shelved, frozenset(wanted)
