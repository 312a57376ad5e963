"""The northbound interface: what a controller knows, as JSON over HTTPS, described by `api/control.json` (OpenAPI 3.1).

    GET /control/v1/status                    this controller: does it lead, what troubles it
    GET /control/v1/network, /nodes, /links, /pools, /routes, /services, /alarms
    GET /control/v1/alarms/summary            how many, by severity
    POST /control/v1/alarms/ID/WORD           ack, close, shelve, unshelve, none: at every node that has the alarm
    GET /control/v1/alarms/history            alarms that the store has, over or not
    GET /control/v1/what-if?cut=LINK|NODE     which services would lose protection, or all their routes

Certificates on both sides, the roles of `api.roles`. A controller that does not lead answers status alone; for the rest
it says 503, so that a client goes to the other.
"""

import asyncio
import re
from collections.abc import Callable
from functools import partial

import msgspec

from qtrunk.api.admin import AdminHandler, Gate
from qtrunk.api.alarms import WORDS, parse
from qtrunk.api.https import Request, Response, error
from qtrunk.api.roles import Operator
from qtrunk.api.tls import PeerIdentity
from qtrunk.base.errors import RequestRefused
from qtrunk.control.views import Views
from qtrunk.node.controller.process import ControllerRunner

_ALARM = re.compile(r"[0-9a-f]{12}")
_LISTS = ("network", "nodes", "links", "pools", "routes", "services", "alarms")


def northbound(runner: ControllerRunner, is_revoked: Callable[[PeerIdentity], bool]) -> Gate:
    """The interface of one controller."""

    async def status(_request: Request, _operator: Operator) -> Response:
        _check_query(_request)
        return _json(runner.status())

    def view(name: str) -> AdminHandler:
        async def give(request: Request, _operator: Operator) -> Response:
            _check_query(request)
            if not runner.machine.is_leading:
                return _follows(runner)
            if request.segments[3:] == ("history",):
                return _json(await asyncio.to_thread(runner.store.alarms))
            if request.segments[3:] == ("summary",):
                return _json(_views(runner).alarm_summary())
            return _json(getattr(_views(runner), name)())

        return give

    async def what_if(request: Request, _operator: Operator) -> Response:
        _check_query(request, "cut")
        if not runner.machine.is_leading:
            return _follows(runner)
        cut = request.query.get("cut")
        if not cut:
            raise RequestRefused("cut: the name of a link or a node is needed")
        return _json(_views(runner).what_if(cut))

    handlers: dict[str, AdminHandler] = {name: view(name) for name in _LISTS}

    async def alarms(request: Request, operator: Operator) -> Response:
        return await (handlers["alarms"] if request.method == "GET" else partial(_say, runner))(request, operator)

    return Gate({**handlers, "alarms": alarms, "status": status, "what-if": what_if}, is_revoked, root="control")


async def _say(runner: ControllerRunner, request: Request, operator: Operator) -> Response:
    """An operator's word on an alarm."""
    _check_query(request)
    if not runner.machine.is_leading:
        return _follows(runner)
    id_, word = request.segments[3:]
    if not _ALARM.fullmatch(id_):
        raise RequestRefused("id: 12 hexadecimal digits are needed")
    if word not in WORDS:
        raise RequestRefused(f"word: an alarm takes {', '.join(WORDS)}")
    said = parse(word, request.body)
    if said.operator is not None:
        raise RequestRefused("operator: your certificate says who you are")
    return _json(await runner.say(id_, word, msgspec.structs.replace(said, operator=operator.name)))


def _views(runner: ControllerRunner) -> Views:
    return Views(runner.machine, runner.clock.monotonic_s(), runner.clock.unix_s())


def _follows(runner: ControllerRunner) -> Response:
    return error(503, f"controller {runner.config.name} does not lead; ask the other", {"Retry-After": "5"})


def _check_query(request: Request, *known: str) -> None:
    for name in request.query:
        if name not in known:
            raise RequestRefused(f"query parameter {name[:40]!r} is not known here")


def _json(value: object) -> Response:
    return Response(200, msgspec.json.encode(value))
