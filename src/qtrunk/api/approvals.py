"""The two-person rule and the audit log on an administration interface, below /admin/v1/ (`api.roles.TABLE`).

GET  approvals              every proposal
GET  approvals/ID           one, with the exact operation and its digest
POST approvals              {"action", "parameters"}: propose
POST approvals/ID/yes       {"digest"}: approve just that
POST approvals/ID/no        refuse
POST approvals/ID/run       execute what was approved, once; the body is the operation's own (a secret goes here)
GET  audit?after=NUMBER     at most RECORDS_MAX records of the audit log
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from inspect import isawaitable
from itertools import islice
from pathlib import Path
from typing import TypeVar

import msgspec

from qtrunk.api.admin import AdminHandler
from qtrunk.api.https import Request, Response, error
from qtrunk.api.roles import Operator
from qtrunk.base.errors import RequestRefused
from qtrunk.kms.approvals import Approvals, Officer
from qtrunk.kms.audit import records

RECORDS_MAX = 1000

Parameters = Mapping[str, object]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that two persons may have done."""

    check: Callable[[Parameters], None]
    """RequestRefused where the parameters are wrong: nobody is asked to approve nonsense."""
    execute: Callable[[Parameters, bytes, str], dict[str, object] | Awaitable[dict[str, object]]]
    """Do it: parameters, the body of the run request, who (for records). The result goes to the proposer."""


class _Proposed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    action: str
    parameters: dict[str, object]


class _Yes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    digest: str


def approvals_handler(approvals: Approvals, operations: Mapping[str, Operation]) -> AdminHandler:
    """Answers below /admin/v1/approvals; `operations` by action."""

    def propose(officer: Officer, body: bytes) -> Response:
        wanted = _decoded(body, _Proposed, "action and parameters")
        operation = operations.get(wanted.action)
        if operation is None:
            raise RequestRefused(f"action: one of {', '.join(sorted(operations))}")
        operation.check(wanted.parameters)
        return _json(approvals.propose(officer, wanted.action, wanted.parameters))

    async def handle(request: Request, operator: Operator) -> Response:
        officer = Officer(operator.name, operator.fingerprint)
        match request.method, request.segments[3:]:
            case "GET", ():
                return _json(approvals.all())
            case "GET", (identifier,):
                return _json(approvals.find(identifier))
            case "POST", ():
                return propose(officer, request.body)
            case "POST", (identifier, "yes"):
                return _json(approvals.approve(officer, identifier, _decoded(request.body, _Yes, "digest").digest))
            case "POST", (identifier, "no"):
                return _json(approvals.refuse(officer, identifier))
            case "POST", (identifier, "run"):
                return await _run(approvals, operations, officer, identifier, request.body)
            case _:
                return error(404, "unknown path")

    return handle


async def _run(
    approvals: Approvals, operations: Mapping[str, Operation], officer: Officer, identifier: str, body: bytes
) -> Response:
    proposal = approvals.begin(officer, identifier)
    try:
        result = operations[proposal.action].execute(proposal.parameters(), body, f"operator {officer.name}")
        if isawaitable(result):
            result = await result
    except BaseException:
        approvals.end(officer, identifier, is_done=False)
        raise
    approvals.end(officer, identifier, is_done=True)
    return Response(200, msgspec.json.encode(result))


def audit_handler(directory: Path) -> AdminHandler:
    """Answers GET /admin/v1/audit from the log in `directory`, which it checks from the beginning each time."""

    async def handle(request: Request, _operator: Operator) -> Response:
        text = request.query.get("after", "0")
        if not (text.isascii() and text.isdigit() and len(text) <= 12):
            raise RequestRefused("after: the number of a record")
        found = await asyncio.to_thread(lambda: list(islice(records(directory, int(text)), RECORDS_MAX)))
        return _json(found)

    return handle


def _json(value: object) -> Response:
    return Response(200, msgspec.json.encode(value))


def _decoded(body: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError:
        raise RequestRefused(f"body: JSON with {what} is needed") from None
