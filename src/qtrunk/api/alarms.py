"""Alarms on the administration interface, below /admin/v1/ (`api.roles.TABLE`).

GET  alarms                   everything in the list
GET  alarms/ID                one, with both histories
POST alarms/ID/ack            {"text", "until"?, "operator"?}: an operator's word; also close, shelve, unshelve, none
GET  ietf-alarms              the list as `ietf-alarms:alarms`, RFC 8632

A word is in the audit log before it counts. `until` (Unix seconds) is for shelve alone, `operator` for a controller,
which says whose word it passes on.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Protocol

import msgspec

from qtrunk.api.admin import AdminHandler
from qtrunk.api.https import Request, Response, error
from qtrunk.api.roles import Operator, OperatorRole
from qtrunk.base.errors import RequestRefused
from qtrunk.control.alarms import Alarm, OperatorState
from qtrunk.control.networkview import shown
from qtrunk.kms.audit import AuditLog

WORDS = {
    "ack": OperatorState.ACK,
    "close": OperatorState.CLOSED,
    "shelve": OperatorState.SHELVED,
    "unshelve": OperatorState.UNSHELVED,
    "none": OperatorState.NONE,
}


PEOPLE = frozenset({OperatorRole.OPERATOR, OperatorRole.OFFICER})
"""Who speaks for themselves."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a word."""

    text: str
    until: float | None = None
    operator: str | None = None


class Board(Protocol):
    """What holds the alarms."""

    def all(self) -> list[Alarm]:
        """Copies of everything."""

    def ietf(self) -> dict[str, object]:
        """The list as RFC 8632 has it."""

    def act(self, id_: str, operator: str, state: OperatorState, text: str, until_unix_s: float | None = None) -> Alarm:
        """An operator's word, durable on return. RequestRefused, StoreError."""


def alarms_handlers(board: Board, audit: AuditLog, node: str) -> Mapping[str, AdminHandler]:
    """Answers below /admin/v1/alarms and /admin/v1/ietf-alarms."""

    async def handle(request: Request, operator: Operator) -> Response:
        match request.method, request.segments[3:]:
            case "GET", ():
                return _json([asdict(shown(alarm)) for alarm in board.all()])
            case "GET", (id_,):
                return _one(board, id_)
            case "POST", (id_, word):
                return await asyncio.to_thread(_act, board, audit, node, operator, (id_, word), request.body)
            case _:
                return error(404, "unknown path")

    async def ietf(_request: Request, _operator: Operator) -> Response:
        return _json(board.ietf())

    return {"alarms": handle, "ietf-alarms": ietf}


def _one(board: Board, id_: str) -> Response:
    alarm = next((one for one in board.all() if one.id == id_), None)
    if alarm is None:
        return error(404, "there is no such alarm here")
    changes = {"status_changes": alarm.status_changes, "operator_changes": alarm.operator_changes}
    return _json({**asdict(shown(alarm)), **changes})


def _act(board: Board, audit: AuditLog, node: str, operator: Operator, path: tuple[str, str], body: bytes) -> Response:
    id_, word = path
    if word not in WORDS:
        return error(404, f"an alarm takes {', '.join(WORDS)}")
    said = parse(word, body)
    name, passed_on = operator.name, ""
    if not operator.roles & PEOPLE:
        # What is left is a controller.
        if not said.operator or not _NAME.fullmatch(said.operator):
            raise RequestRefused("operator: a controller must say whose word it passes on")
        name, passed_on = said.operator, f" by controller {operator.name}"
    elif said.operator is not None:
        raise RequestRefused("operator: for controllers alone; your certificate says who you are")
    details = {"alarm": id_[:64], "text": said.text[:200]}
    with audit.during(f"operator {name}{passed_on}", f"{word} alarm", node, details):
        alarm = board.act(id_, name, WORDS[word], said.text, said.until)
    return _json(asdict(shown(alarm)))


def parse(word: str, body: bytes) -> Said:
    """The body of a word; RequestRefused, which names the field."""
    try:
        said = msgspec.json.decode(body, type=Said)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise RequestRefused("body: JSON with text, and until for shelve, is needed") from None
    if said.until is not None and WORDS[word] is not OperatorState.SHELVED:
        raise RequestRefused("until: for shelve alone")
    return said


def _json(value: object) -> Response:
    return Response(200, msgspec.json.encode(value))
