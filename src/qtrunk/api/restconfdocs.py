"""What RESTCONF says beside the data: errors, capabilities, the YANG library, the modules (RFC 8040, 7895)."""

from collections.abc import Callable
from importlib.resources import files

import msgspec

from qtrunk.api import schema015
from qtrunk.api.https import Response
from qtrunk.api.yangtree import Path

JSON = "application/yang-data+json"
LIBRARY_VERSION = "2016-06-21"
KEYS = {
    "qkd_app": "app_id",
    "statistics": "end_time",
    "qkd_interface": "qkdi_id",
    "qkd_link": "qkdl_id",
    "phys_perf": "perf_type",
}
"""The key of each list."""
_RESTCONF = "urn:ietf:params:restconf:capability"
_MODULES = {
    schema015.MODULE: "patched",
    schema015.TYPES: "upstream",
    "ietf-yang-types": "ietf",
    "ietf-inet-types": "ietf",
}
"""The modules that a client may fetch, and their folders."""


class Problem(Exception):
    """A request that is answered with an error: HTTP status, error-tag of RFC 8040 clause 7, text, what it is about."""

    def __init__(
        self,
        status: int,
        tag: str,
        message: str,
        path: Path = (),
        *,
        type_: str = "protocol",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.tag = tag
        self.path = path
        self.type = type_
        self.headers = headers or {}


def errors(problem: Problem) -> Response:
    """The body of an error."""
    entry = {"error-type": problem.type, "error-tag": problem.tag}
    if problem.path:
        steps = "/".join(
            step.name if step.key is None else f"{step.name}[{KEYS[step.name]}='{step.key}']" for step in problem.path
        )
        entry["error-path"] = f"/{schema015.MODULE}:{schema015.ROOT}/{steps}"
    entry["error-message"] = str(problem)
    body = msgspec.json.encode({"ietf-restconf:errors": {"error": [entry]}})
    return Response(problem.status, body, {"Content-Type": JSON, **problem.headers})


def refusal(status: int, message: str, headers: dict[str, str]) -> Response:
    """The form of an error for what never reached the handler."""
    return errors(Problem(status, "malformed-message", message, headers=headers))


def document(segments: tuple[str, ...], host: str, everything: Callable[[], dict[str, object]]) -> Response | None:
    """A resource that is not of the module's data; None: there is none of that path."""
    match segments:
        case (".well-known", "host-meta"):
            link = (
                b"<XRD xmlns='http://docs.oasis-open.org/ns/xri/xrd-1.0'><Link rel='restconf' href='/restconf'/></XRD>"
            )
            return Response(200, link, {"Content-Type": "application/xrd+xml"})
        case ("restconf",):
            root = {"data": {}, "operations": {}, "yang-library-version": LIBRARY_VERSION}
            return _json({"ietf-restconf:restconf": root})
        case ("restconf", "data"):
            return _json({"ietf-restconf:data": {**everything(), **library(host), **_state(host)}})
        case ("restconf", "operations"):
            return _json({"ietf-restconf:operations": {}})
        case ("restconf", "yang-library-version"):
            return _json({"ietf-restconf:yang-library-version": LIBRARY_VERSION})
        case ("restconf", "data", "ietf-yang-library:modules-state"):
            return _json(library(host))
        case ("restconf", "data", "ietf-restconf-monitoring:restconf-state"):
            return _json(_state(host))
        case ("restconf", "yang", name) if name in _MODULES:
            text = files("qtrunk.api").joinpath("yang", _MODULES[name], f"{name}.yang").read_bytes()
            return Response(200, text, {"Content-Type": "application/yang"})
        case _:
            return None


def _json(value: object) -> Response:
    return Response(200, msgspec.json.encode(value), {"Content-Type": JSON})


def library(host: str) -> dict[str, object]:
    """The YANG library (RFC 7895). The types module is implemented, not imported: its identities are values here."""

    def module(name: str, revision: str, namespace: str, conformance: str) -> dict[str, object]:
        return {
            "name": name,
            "revision": revision,
            "namespace": namespace,
            "conformance-type": conformance,
            **({"schema": f"https://{host}/restconf/yang/{name}"} if name in _MODULES else {}),
        }

    ietf = "urn:ietf:params:xml:ns:yang:"
    modules = [
        module(schema015.MODULE, schema015.REVISION, schema015.NAMESPACE, "implement"),
        module(schema015.TYPES, schema015.REVISION, schema015.TYPES_NAMESPACE, "implement"),
        module("ietf-yang-types", "2013-07-15", ietf + "ietf-yang-types", "import"),
        module("ietf-inet-types", "2013-07-15", ietf + "ietf-inet-types", "import"),
        module("ietf-yang-library", LIBRARY_VERSION, ietf + "ietf-yang-library", "implement"),
        module("ietf-restconf-monitoring", "2017-01-26", ietf + "ietf-restconf-monitoring", "implement"),
    ]
    return {"ietf-yang-library:modules-state": {"module-set-id": schema015.REVISION, "module": modules}}


def _state(host: str) -> dict[str, object]:
    capabilities = [f"{_RESTCONF}:depth:1.0", f"{_RESTCONF}:defaults:1.0?basic-mode=report-all"]
    access = [{"encoding": "json", "location": f"https://{host}/restconf/streams/NETCONF"}]
    stream = {"name": "NETCONF", "description": "every notification", "replay-support": False, "access": access}
    return {
        "ietf-restconf-monitoring:restconf-state": {
            "capabilities": {"capability": capabilities},
            "streams": {"stream": [stream]},
        }
    }
