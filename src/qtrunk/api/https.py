"""A small HTTPS server for the key interfaces: HTTP/1.1 over TLS with certificates on both sides.

Ours because the mainstream servers do not hand the client's certificate to the application (docs/decisions/0002): an
asyncio protocol with httptools for parsing and the standard TLS. Everything is bounded: connections, request line,
headers, body, and the time a client may take for a request. Requests of a connection are answered in order.
"""

import asyncio
import hashlib
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import unquote_to_bytes

import httptools
import msgspec
from cryptography import x509
from cryptography.x509.oid import NameOID

TARGET_OCTETS_MAX = 4096
HEADER_OCTETS_MAX = 16 << 10
BODY_OCTETS_MAX = 64 << 10
CONNECTIONS_MAX = 2048
REQUEST_TIMEOUT_S = 20.0
"""From the first octet of a request (or the last answer, for idle connections ten times that) to its end."""
IDLE_TIMEOUT_S = 200.0
PENDING_MAX = 32
"""Pipelined requests of one connection that may wait."""
STOP_GRACE_S = 2.0

_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who the client's certificate says it is: names in the order of trust, and the certificate's SHA-256."""

    candidates: tuple[str, ...]
    """URI subject alternative names (of `urn:…:kind:ID` also the bare ID), DNS names, common name."""
    uris: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `segments` are the path's parts, each percent-decoded once after splitting."""

    method: str
    segments: tuple[str, ...]
    query: Mapping[str, str]
    body: bytes
    identity: PeerIdentity


@dataclass(slots=True)
class Response:
    """One answer. A `bytearray` body is overwritten with zeros once it is sent: use it where key is in it."""

    status: int
    body: bytes | bytearray
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Response]]


def error(status: int, message: str, headers: dict[str, str] | None = None, **details: object) -> Response:
    """An ETSI GS QKD 014 Error body."""
    body = msgspec.json.encode({"message": message, **details})
    return Response(status, body, headers or {})


def server_context(
    certificate: Path,
    private_key: Path,
    ca_certificate: Path,
    minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLContext:
    """TLS for a server that refuses clients without a certificate of the CA. The standard allows TLS 1.2; we ask for
    1.3.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = minimum_version
    context.load_cert_chain(certificate, private_key)
    context.load_verify_locations(ca_certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    return context


def client_context(certificate: Path, private_key: Path, ca_certificate: Path) -> ssl.SSLContext:
    """TLS for a client that shows a certificate and checks the server's, host name included."""
    context = ssl.create_default_context(cafile=str(ca_certificate))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, private_key)
    return context


def identity_of(der: bytes) -> PeerIdentity:
    """Names in a certificate that TLS has verified."""
    certificate = x509.load_der_x509_certificate(der)
    uris: list[str] = []
    dns: list[str] = []
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        dns = names.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        pass
    common = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    bare = [uri.rsplit(":sae:", 1)[1] for uri in uris if ":sae:" in uri]
    return PeerIdentity(
        candidates=(*bare, *uris, *dns, *common),
        uris=tuple(uris),
        fingerprint=hashlib.sha256(der).hexdigest(),
    )


class HttpsServer:
    """Listens and hands requests to one handler."""

    def __init__(self, handler: Handler, context: ssl.SSLContext) -> None:
        self.handler = handler
        self._context = context
        self._server: asyncio.Server | None = None
        self.connections: set[_Connection] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; the port (for port 0: the one that was chosen)."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), host, port, ssl=self._context, backlog=512)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """No new connections; requests that are under way are answered, for a short while."""
        if self._server is not None:
            self._server.close()
        deadline = asyncio.get_running_loop().time() + STOP_GRACE_S
        for connection in list(self.connections):
            connection.finish()
        while self.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.abort()


class _Connection(asyncio.Protocol):
    """One client connection: octets to requests, answers to octets."""

    def __init__(self, server: HttpsServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._identity: PeerIdentity | None = None
        self._target = b""
        self._header_octets = 0
        self._body = bytearray()
        self._body_octets = 0
        self._pending: list[Request | Response] = []
        self._worker: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False
        self._expects = False
        self._resume = asyncio.Event()
        self._resume.set()

    # ── transport ───────────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's TLS transport is an asyncio.Transport in all but name.
        self._transport = transport = cast("asyncio.Transport", transport)
        if len(self._server.connections) >= CONNECTIONS_MAX:
            transport.abort()
            return
        self._server.connections.add(self)
        der = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        if not der:
            transport.abort()
            return
        try:
            self._identity = identity_of(der)
        except ValueError:
            # TLS took it, the stricter parser does not: then nobody knows who this is.
            transport.abort()
            return
        self._arm(REQUEST_TIMEOUT_S)

    def connection_lost(self, _error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._is_closing = True
        self._resume.set()
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        self._resume.clear()

    def resume_writing(self) -> None:
        self._resume.set()

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse("upgrades are not supported")
        except (httptools.HttpParserError, _RefusedError) as problem:
            cause = problem.__context__ if isinstance(problem.__context__, _RefusedError) else problem
            self._refuse(str(cause) if isinstance(cause, _RefusedError) else "not a valid HTTP/1.1 request")

    def eof_received(self) -> bool:
        return False

    def finish(self) -> None:
        """Close once what is under way is answered."""
        self._is_closing = True
        if self._worker is None:
            self.abort()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self.abort)

    # ── parser ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        self._target = b""
        self._header_octets = self._body_octets = 0
        self._body = bytearray()
        self._expects = False
        self._arm(REQUEST_TIMEOUT_S)

    def on_url(self, part: bytes) -> None:
        self._target += part
        if len(self._target) > TARGET_OCTETS_MAX:
            raise _RefusedError(f"request target: at most {TARGET_OCTETS_MAX} octets")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_octets += len(name) + len(value)
        if self._header_octets > HEADER_OCTETS_MAX:
            raise _RefusedError(f"headers: at most {HEADER_OCTETS_MAX} octets")
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            self._expects = True

    def on_headers_complete(self) -> None:
        if self._expects and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        self._body_octets += len(part)
        if self._body_octets > BODY_OCTETS_MAX:
            raise _RefusedError(f"body: at most {BODY_OCTETS_MAX} octets")
        self._body += part

    def on_message_complete(self) -> None:
        assert self._identity is not None
        if not self._parser.should_keep_alive():
            self._is_closing = True
        self._enqueue(self._request(self._identity))

    def _request(self, identity: PeerIdentity) -> Request | Response:
        try:
            url = httptools.parse_url(self._target)
            segments = tuple(_decoded(part) for part in (url.path or b"").split(b"/")[1:])
            query = _query(url.query or b"")
        except (httptools.HttpParserInvalidURLError, ValueError) as problem:
            return error(400, f"request target: {problem}")
        return Request(self._parser.get_method().decode(), segments, query, bytes(self._body), identity)

    def _enqueue(self, item: Request | Response) -> None:
        if len(self._pending) >= PENDING_MAX:
            self.abort()
            return
        self._pending.append(item)
        if self._worker is None:
            self._worker = self._loop.create_task(self._work())

    def _refuse(self, message: str) -> None:
        """Answer a broken request and close: nothing after it on this connection can be understood."""
        self._is_closing = True
        self._enqueue(error(400, message))

    async def _work(self) -> None:
        try:
            while self._pending:
                item = self._pending.pop(0)
                if self._timer is not None:
                    self._timer.cancel()
                response = item if isinstance(item, Response) else await self._server.handler(item)
                await self._resume.wait()
                self._send(response, closes=self._is_closing and not self._pending)
        finally:
            self._worker = None
        if self._is_closing and self._transport is not None:
            self._transport.close()
        else:
            self._arm(IDLE_TIMEOUT_S)

    def _send(self, response: Response, *, closes: bool) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        head = [f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Error')}"]
        head.append("Content-Type: application/json")
        head.append(f"Content-Length: {len(response.body)}")
        head.append("Cache-Control: no-store")
        head += [f"{name}: {value}" for name, value in response.headers.items()]
        if closes:
            head.append("Connection: close")
        self._transport.write("\r\n".join([*head, "", ""]).encode() + bytes(response.body))
        if isinstance(response.body, bytearray):
            response.body[:] = bytes(len(response.body))


class _RefusedError(Exception):
    """A request over a limit."""


def _decoded(part: bytes) -> str:
    text = unquote_to_bytes(part).decode()
    if "\x00" in text:
        raise ValueError("a NUL octet is not allowed")
    return text


def _query(octets: bytes) -> dict[str, str]:
    """Parameters, each at most once."""
    found: dict[str, str] = {}
    for pair in octets.split(b"&") if octets else []:
        name, _, value = pair.partition(b"=")
        key = _decoded(name.replace(b"+", b" "))
        if key in found:
            raise ValueError(f"query parameter {key[:40]!r} is given twice")
        found[key] = _decoded(value.replace(b"+", b" "))
    return found
