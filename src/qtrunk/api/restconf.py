"""RESTCONF (RFC 8040) over one YANG module: the subset that the agent of ETSI GS QKD 015 needs, in JSON (RFC 7951).

    GET    /.well-known/host-meta                where RESTCONF begins
    GET    /restconf, /restconf/operations, /restconf/yang-library-version
    GET    /restconf/data/MODULE:ROOT/…          `content` and `depth` may be given
    PUT, PATCH, POST, DELETE on the same         of leaves that the module's table calls writable, or what contains them
    GET    /restconf/data/ietf-yang-library:modules-state, /restconf/data/ietf-restconf-monitoring:restconf-state
    GET    /restconf/streams/NETCONF             notifications as server-sent events
    GET    /restconf/yang/MODULE                 the modules themselves

A write is checked whole before any of it acts. `If-Match` is kept to. Who may ask and who may change says `api.roles`;
errors are `ietf-restconf:errors`.
"""

import hashlib
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Protocol

import msgspec

from qtrunk.api import restconfdocs as documents
from qtrunk.api.edits import Edits, edits_of
from qtrunk.api.eventstream import EventHub
from qtrunk.api.https import Request, Response
from qtrunk.api.restconfdocs import JSON, Problem, errors
from qtrunk.api.roles import RESTCONF_READERS, RESTCONF_WRITERS, Operator, operator_of
from qtrunk.api.tls import PeerIdentity
from qtrunk.api.yangtree import Container, Leaf, LeafList, ListOf, Node, Path, Step, config_of, pruned, state_of
from qtrunk.base.errors import QtrunkError, RequestRefused

KEPT_HEADERS = (b"accept", b"content-type", b"host", b"if-match")
DEPTH_MAX = 65535
_EVENTS = "text/event-stream"


class Datastore(Protocol):
    """What stands behind the tree."""

    def tree(self) -> dict[str, object]:
        """The root's value now, defaults filled in."""

    def explicit(self) -> Mapping[Path, object]:
        """Writable leaves that somebody gave a value."""

    def changed_unix_s(self) -> float:
        """When that was last."""

    def change(self, edits: Edits, who: str, what: str) -> None:
        """Set leaves, or (None) let them go; recorded before it acts. RequestRefused where it cannot be."""


class Restconf:
    """Answers requests about one root container of one module."""

    def __init__(
        self,
        module: str,
        root: str,
        schema: Container,
        datastore: Datastore,
        hub: EventHub,
        is_revoked: Callable[[PeerIdentity], bool] = lambda _identity: False,
        note_refusal: Callable[[Operator, str], None] = lambda _operator, _what: None,
    ) -> None:
        self._module = module
        self._root = root
        self._schema = schema
        self._datastore = datastore
        self._hub = hub
        self._is_revoked = is_revoked
        self._note_refusal = note_refusal

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        try:
            operator = operator_of(request.identity)
            if operator is None or self._is_revoked(request.identity):
                raise Problem(401, "access-denied", "an operator's or controller's certificate is needed here")
            return self._answer(request, operator)
        except Problem as problem:
            return errors(problem)
        except RequestRefused as problem:
            return errors(Problem(400, "invalid-value", str(problem), type_="application"))
        except QtrunkError as problem:
            return errors(Problem(500, "operation-failed", str(problem), type_="application"))

    def _answer(self, request: Request, operator: Operator) -> Response:
        segments = request.segments
        is_data = segments[:2] == ("restconf", "data") and len(segments) > 2
        is_ours = is_data and segments[2].partition("=")[0] == f"{self._module}:{self._root}"
        if is_ours and request.method not in ("GET", "HEAD", "OPTIONS"):
            if not operator.roles & RESTCONF_WRITERS:
                self._note_refusal(operator, f"{request.method} {_shown(segments)}")
                raise Problem(403, "access-denied", "a certificate with the role operator or controller is needed")
            return self._write(request, operator)
        if not operator.roles & RESTCONF_READERS:
            raise Problem(403, "access-denied", "a certificate with a role is needed here")
        if request.method == "OPTIONS":
            return self._options(is_ours=is_ours)
        if request.method not in ("GET", "HEAD"):
            raise Problem(405, "operation-not-supported", "only GET is allowed here", headers={"Allow": "GET, HEAD"})
        if is_ours:
            return self._read(request)
        if segments == ("restconf", "streams", "NETCONF"):
            return self._listen(request)
        _check_query(request, ())
        found = documents.document(segments, request.headers.get("host", "localhost"), self._everything)
        if found is None:
            raise Problem(404, "invalid-value", "unknown resource")
        _check_accept(request, found.headers["Content-Type"])
        return found

    def _everything(self) -> dict[str, object]:
        return {f"{self._module}:{self._root}": self._datastore.tree()}

    def _options(self, *, is_ours: bool) -> Response:
        allowed = "GET, HEAD, OPTIONS" + (", PUT, PATCH, POST, DELETE" if is_ours else "")
        return Response(
            200, b"", {"Allow": allowed, "Content-Type": JSON, **({"Accept-Patch": JSON} if is_ours else {})}
        )

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _read(self, request: Request) -> Response:
        _check_query(request, ("content", "depth"))
        _check_accept(request, JSON)
        path, node = self._find(request.segments)
        tree = self._datastore.tree()
        value = value_at(tree, path)
        if path and path[-1].key is not None:
            # RFC 7951 has no way to write one entry but as an array of one.
            value = [value]
        match request.query.get("content", "all"):
            case "all":
                found: object = value
            case "config":
                found = config_of(node, value)
            case "nonconfig":
                found = state_of(node, value)
            case _:
                raise Problem(400, "invalid-value", "content: config, nonconfig or all is needed")
        if found is None:
            raise Problem(404, "invalid-value", "nothing of that content is here")
        depth = request.query.get("depth", "unbounded")
        if depth != "unbounded":
            if not depth.isascii() or not depth.isdigit() or not 1 <= int(depth) <= DEPTH_MAX:
                raise Problem(400, "invalid-value", f"depth: 1 to {DEPTH_MAX}, or unbounded, is needed")
            found = pruned(found, int(depth))
        name = f"{self._module}:{path[-1].name if path else self._root}"
        return Response(200, msgspec.json.encode({name: found}), {"Content-Type": JSON, **self._version(tree)})

    def _listen(self, request: Request) -> Response:
        _check_query(request, ())
        _check_accept(request, _EVENTS)
        if request.method == "HEAD":
            return Response(200, b"", {"Content-Type": _EVENTS})
        if not self._hub.has_room:
            raise Problem(503, "resource-denied", "too many listen already", headers={"Retry-After": "60"})
        return Response(200, b"", {"Content-Type": _EVENTS}, self._hub.listen())

    def _version(self, tree: dict[str, object]) -> dict[str, str]:
        octets = msgspec.json.encode(config_of(self._schema, tree), order="deterministic")
        changed = formatdate(self._datastore.changed_unix_s(), usegmt=True)
        return {"ETag": f'"{hashlib.sha256(octets).hexdigest()[:32]}"', "Last-Modified": changed}

    def _find(self, segments: tuple[str, ...]) -> tuple[Path, Node]:
        """The way that a path names, and what the schema has there; Problem where it has nothing."""
        node: Node = self._schema
        path: list[Step] = []
        if segments[2] != f"{self._module}:{self._root}":
            raise Problem(400, "invalid-value", f"{self._root} is no list")
        for part in segments[3:]:
            qualified, equals, key = part.partition("=")
            prefix, colon, name = qualified.rpartition(":")
            child = node.children.get(name) if isinstance(node, Container | ListOf) else None
            if child is None or (colon and prefix != self._module):
                raise Problem(404, "invalid-value", "unknown resource")
            if equals and not isinstance(child, ListOf):
                raise Problem(400, "invalid-value", f"{name} is no list")
            if path and isinstance(node, ListOf) and path[-1].key is None:
                raise Problem(400, "invalid-value", f"{path[-1].name}: the key {node.key} of an entry is needed")
            path.append(Step(name, key if equals else None))
            node = child
        return tuple(path), node

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, request: Request, operator: Operator) -> Response:
        method = request.method
        if method not in ("PUT", "PATCH", "POST", "DELETE"):
            raise Problem(405, "operation-not-supported", "no such method", headers={"Allow": "GET, HEAD, OPTIONS"})
        _check_query(request, ())
        path, node = self._find(request.segments)
        tree = self._datastore.tree()
        value = value_at(tree, path)
        wanted = request.headers.get("if-match")
        if wanted not in (None, "*") and self._version(tree)["ETag"] not in [tag.strip() for tag in wanted.split(",")]:
            raise Problem(412, "operation-failed", "If-Match: the configuration has changed meanwhile")
        if isinstance(node, ListOf) and path[-1].key is None and method != "POST":
            raise Problem(400, "invalid-value", f"{path[-1].name}: the key {node.key} of an entry is needed")
        body = None if method == "DELETE" else _body(request)
        explicit = self._datastore.explicit()
        edits = edits_of(method, self._module, self._root, path, node, value, body, explicit)
        self._datastore.change(edits, f"operator {operator.name}", f"{method} {_shown(request.segments)}")
        headers = self._version(self._datastore.tree())
        is_new = method in ("PUT", "POST") and any(edit not in explicit for edit in edits) and isinstance(node, Leaf)
        if method == "POST":
            created = next(iter(edits))
            where = "/".join(["", *request.segments, *map(str, created[len(path) :])])
            return Response(201, b"", {"Location": where, "Content-Type": JSON, **headers})
        return Response(201 if is_new else 204, b"", {"Content-Type": JSON, **headers} if is_new else headers)


def value_at(tree: object, path: Path) -> object:
    """What is in the tree; Problem 404 where nothing is."""
    value = tree
    for step in path:
        value = value.get(step.name) if isinstance(value, dict) else None
        if step.key is not None:
            entries = value if isinstance(value, list) else []
            value = next((entry for entry in entries if _key_of(step, entry) == step.key.lower()), None)
        if value is None:
            raise Problem(404, "invalid-value", f"{step.name}: there is none here")
    return value


def _key_of(step: Step, entry: Mapping[str, object]) -> str:
    key = documents.KEYS[step.name]
    return str(entry.get(key)).lower()


def _body(request: Request) -> dict[str, object]:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media not in (JSON, "application/json"):
        raise Problem(415, "invalid-value", f"Content-Type: {JSON} is needed")
    try:
        return msgspec.json.decode(request.body, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise Problem(400, "malformed-message", "body: a JSON object is needed") from problem


def _check_query(request: Request, known: tuple[str, ...]) -> None:
    for name in request.query:
        if name not in known:
            raise Problem(400, "invalid-value", f"query parameter {name[:40]!r} is not supported here")


def _check_accept(request: Request, media: str) -> None:
    accepted = request.headers.get("accept")
    if not accepted:
        return
    kinds = {part.partition(";")[0].strip().lower() for part in accepted.split(",")}
    # application/json is what clients of JSON ask for that know no YANG; it names the same octets.
    if not kinds & {media, "*/*", media.partition("/")[0] + "/*", *(("application/json",) if media == JSON else ())}:
        raise Problem(406, "invalid-value", f"Accept: only {media} is given here")


def _shown(segments: tuple[str, ...]) -> str:
    return "/" + "/".join(segments)[:200]


__all__ = ["KEPT_HEADERS", "Datastore", "LeafList", "Restconf", "value_at"]
