"""A node's administration interface: what the operator's tools read, as JSON over HTTPS, and never key.

    GET /admin/v1/status            the node, its links, alarms and counts
    GET /admin/v1/keys/{key_ID}     the receipt of a key
    GET /admin/v1/ledger            where every octet of link key is or went

Certificates on both sides; only those with a URI name `urn:qtrunk:operator:NAME` are let in. This interface is our own,
so it says 404 where something does not exist; else codes and error bodies are those of the key interface.
"""

from collections.abc import Callable

import msgspec

from qtrunk.api.https import Request, Response, error
from qtrunk.base.errors import QtrunkError, RequestRefused
from qtrunk.base.ids import KeyId, parse_key_id

OPERATOR_PREFIX = "urn:qtrunk:operator:"


class Admin:
    """Answers from callables that the node provides."""

    def __init__(
        self,
        status: Callable[[], dict[str, object]],
        receipt: Callable[[KeyId], dict[str, object] | None],
        ledger: Callable[[], dict[str, object]],
    ) -> None:
        self._status = status
        self._receipt = receipt
        self._ledger = ledger

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        try:
            return self._answer(request)
        except RequestRefused as problem:
            return error(400, str(problem))
        except QtrunkError as problem:
            return error(503, str(problem), {"Retry-After": "5"})

    def _answer(self, request: Request) -> Response:
        if not any(_is_operator(uri) for uri in request.identity.uris):
            return error(401, "an operator's certificate is needed here")
        if request.method != "GET":
            return error(400, "only GET is allowed here")
        match request.segments:
            case ("admin", "v1", "status"):
                return Response(200, msgspec.json.encode(self._status()))
            case ("admin", "v1", "ledger"):
                return Response(200, msgspec.json.encode(self._ledger()))
            case ("admin", "v1", "keys", text):
                return self._key(text)
            case _:
                return error(404, "unknown path")

    def _key(self, text: str) -> Response:
        found = self._receipt(parse_key_id(text))
        if found is None:
            return error(404, "this node has no record of that key")
        return Response(200, msgspec.json.encode(found))


def _is_operator(uri: str) -> bool:
    return uri.startswith(OPERATOR_PREFIX) and len(uri) > len(OPERATOR_PREFIX)
