"""A node's administration interface: what the operator's tools read, as JSON over HTTPS, and never key.

    GET /admin/v1/status            the node, its links, alarms and counts
    GET /admin/v1/keys/{key_ID}     the receipt of a key
    GET /admin/v1/ledger            where every octet of link key is or went
    GET /admin/v1/exposure          end-to-end key, by how it came
    …   /admin/v1/NAME/…            what `more` has under that name

Certificates on both sides; who may ask for what is `api.roles.TABLE`, and what is not in it is refused. A certificate
that `is_revoked` says is void gets nothing, on open connections too. This interface is our own, so it says 404 where
something does not exist and 403 where the role is missing; else codes and error bodies are those of the key interface.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from qtrunk.api.https import Request, Response, error
from qtrunk.api.roles import Operator, operator_of, rules_of
from qtrunk.api.tls import PeerIdentity
from qtrunk.base.errors import NotAuthorised, QtrunkError, RequestRefused
from qtrunk.base.ids import KeyId, parse_key_id

AdminHandler = Callable[[Request, Operator], Awaitable[Response]]
"""Answers a request whose operator was found and may ask. Errors: RequestRefused 400, NotAuthorised 403, others 503."""


def nobody_is_revoked(_identity: PeerIdentity) -> bool:
    """For interfaces without a revocation list."""
    return False


def note_nothing(_operator: Operator, _what: str) -> None:
    """For interfaces without an audit log."""


class Gate:
    """Lets operators through to handlers by the table of roles; knows nothing of what they do."""

    def __init__(
        self,
        handlers: Mapping[str, AdminHandler],
        is_revoked: Callable[[PeerIdentity], bool] = nobody_is_revoked,
        note_refusal: Callable[[Operator, str], None] = note_nothing,
        root: str = "admin",
    ) -> None:
        """`handlers` by the part of the path that follows /admin/v1/, or another `root` than admin.

        `note_refusal` is told of operators who tried to change what their roles do not let them change.
        """
        self._handlers = handlers
        self._is_revoked = is_revoked
        self._note_refusal = note_refusal
        self._root = root

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        operator = operator_of(request.identity)
        if operator is None:
            return error(401, "an operator's certificate is needed here")
        if self._is_revoked(request.identity):
            return error(401, "this certificate is revoked")
        rules = rules_of(request.segments) if request.segments[:1] == (self._root,) else []
        handler = self._handlers.get(request.segments[2]) if rules else None
        if handler is None:
            return error(404, "unknown path")
        rule = next((rule for rule in rules if rule.method == request.method), None)
        if rule is None:
            return error(400, f"only {' and '.join(sorted(rule.method for rule in rules))} is allowed here")
        try:
            if not operator.roles & rule.roles:
                if rule.method != "GET":
                    self._note_refusal(operator, f"{rule.method} {rule.path}")
                return error(403, f"a certificate with the role {' or '.join(sorted(rule.roles))} is needed here")
            return await handler(request, operator)
        except RequestRefused as problem:
            return error(400, str(problem))
        except NotAuthorised as problem:
            return error(403, str(problem))
        except QtrunkError as problem:
            return error(503, str(problem), {"Retry-After": "5"})


class Admin(Gate):
    """Answers from callables that the node provides."""

    def __init__(
        self,
        status: Callable[[], dict[str, object]],
        receipt: Callable[[KeyId], dict[str, object] | None],
        ledger: Callable[[], dict[str, object]],
        exposure: Callable[[], dict[str, object]],
        more: Mapping[str, AdminHandler] | None = None,
        is_revoked: Callable[[PeerIdentity], bool] = nobody_is_revoked,
        note_refusal: Callable[[Operator, str], None] = note_nothing,
    ) -> None:
        async def give_status(_request: Request, _operator: Operator) -> Response:
            return Response(200, msgspec.json.encode(status()))

        async def give_ledger(_request: Request, _operator: Operator) -> Response:
            return Response(200, msgspec.json.encode(ledger()))

        async def give_exposure(_request: Request, _operator: Operator) -> Response:
            return Response(200, msgspec.json.encode(exposure()))

        async def give_receipt(request: Request, _operator: Operator) -> Response:
            # In a thread: it may read through years of the consume journal, and the node must go on meanwhile.
            found = await asyncio.to_thread(receipt, parse_key_id(request.segments[3]))
            if found is None:
                return error(404, "this node has no record of that key")
            return Response(200, msgspec.json.encode(found))

        handlers = {
            "status": give_status,
            "ledger": give_ledger,
            "exposure": give_exposure,
            "keys": give_receipt,
            **(more or {}),
        }
        super().__init__(handlers, is_revoked, note_refusal)
