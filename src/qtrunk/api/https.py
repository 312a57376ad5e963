"""A small HTTPS server for the key interfaces: HTTP/1.1 over TLS with certificates on both sides.

Ours because the mainstream servers do not hand the client's certificate to the application (docs/decisions/0002): an
asyncio protocol with httptools for parsing and the standard TLS. Everything is bounded (`Limits`): connections, request
target, headers, body, pipelined requests, and the time a client may take to ask or to read. Requests of a connection
are answered in order; what cannot be understood is answered with 400 and the connection closed. Buffers that held key
are wiped as soon as the transport has let go of them; nothing of a request or an answer is ever logged. A certificate
that `is_revoked` names gets no connection, no answer on one that is open, and within a sweep (a second) the door.
"""

import asyncio
import logging
import ssl
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import cast
from urllib.parse import unquote_to_bytes

import httptools
import msgspec

from qtrunk.api.tls import GONE_S, close, wait_gone
from qtrunk.api.tls import PeerIdentity as PeerIdentity
from qtrunk.api.tls import client_context as client_context
from qtrunk.api.tls import identity_of as identity_of
from qtrunk.api.tls import server_context as server_context

log = logging.getLogger(__name__)

KEPT_PATHS_MAX = 1024
KEPT_PATH_OCTETS_MAX = 256
_STATUS_LINES: dict[int, bytes] = {status: f"HTTP/1.1 {status} {status.phrase}\r\n".encode() for status in HTTPStatus}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client, and all of them together, may take."""

    connections_max: int = 2048
    per_client_max: int = 256
    """Connections of one certificate, so that nobody takes all of them; clients without one share these."""
    target_octets_max: int = 4096
    header_octets_max: int = 16 << 10
    body_octets_max: int = 64 << 10
    message_octets_max: int = 512 << 10
    """A whole request as it travels, so that endless headers, trailers or chunk extensions end, too."""
    pipelined_max: int = 128
    """Requests of a connection that wait; their bodies together have at most `message_octets_max` octets."""
    handshake_s: float = 10.0
    request_s: float = 20.0
    """From the first octet of a request (of a connection, for its first request) to the last."""
    idle_s: float = 200.0
    """Between requests."""
    reading_s: float = 20.0
    """For a client to take an answer off us."""
    stop_s: float = 2.0
    """For requests under way when the server stops."""


class Request(msgspec.Struct, frozen=True):
    """One request. `segments` are the path's parts, each percent-decoded once after splitting."""

    method: str
    segments: tuple[str, ...]
    query: Mapping[str, str]
    body: bytes
    identity: PeerIdentity
    target: bytes = b""
    """Path and query as they travelled."""
    request_id: bytes | None = None
    """Value of the header X-Request-ID, None where there is none: a name that the client gives to a request."""
    headers: Mapping[str, str] = {}
    """Those headers that the server was told to keep, names in small letters; lines of one name are one list."""


class Response(msgspec.Struct):
    """One answer, of JSON unless `headers` has a Content-Type. A `bytearray` body is overwritten with zeros once it is
    sent: use it where key is in it."""

    status: int
    body: bytes | bytearray
    headers: dict[str, str] = {}
    stream: AsyncIterator[bytes] | None = None
    """Parts that follow the body one by one, for as long as they come; the connection ends with them. The handler's
    only: never key, since nobody wipes them."""


Handler = Callable[[Request], Awaitable[Response]]


def error(status: int, message: str, headers: dict[str, str] | None = None, **details: object) -> Response:
    """An ETSI GS QKD 014 Error body."""
    body = msgspec.json.encode({"message": message, **details})
    return Response(status, body, headers or {})


Refusal = Callable[[int, str, dict[str, str]], Response]
"""Makes the answer to what never reached the handler: status, message, headers."""


class HttpsServer:
    """Listens and hands requests to one handler."""

    def __init__(
        self,
        handler: Handler,
        context: ssl.SSLContext,
        limits: Limits | None = None,
        is_revoked: Callable[[PeerIdentity], bool] = lambda _identity: False,
        anonymous: PeerIdentity | None = None,
        refusal: Refusal = error,
        kept_headers: Collection[bytes] = (),
    ) -> None:
        """`is_revoked` is asked at every connection and request, and once a second: it must look up, not compute.

        `anonymous` is who a client without a certificate is, where the TLS context lets one in; None: nobody.
        `refusal` has the interface's own form of an error. `kept_headers`, names in small letters, are what the handler
        wants to see of a request's headers.
        """
        self.kept_headers = frozenset(kept_headers)
        self.refusal = refusal
        self.handler = handler
        self.is_revoked = is_revoked
        self.anonymous = anonymous
        self.limits = limits or Limits()
        self.connections: set[_Connection] = set()
        self.by_client: Counter[str] = Counter()
        """Connections by the certificate's fingerprint."""
        self.targets = Targets()
        self.common_head = _common_head(time.time())
        """The headers that every answer has; made anew once a second, for the date."""
        self.is_stopping = False
        """Who ends a handshake from now on is let go."""
        self._context = context
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port (for port 0: the one that was chosen)."""
        loop = asyncio.get_running_loop()
        self.is_stopping = False
        self._server = await loop.create_server(
            lambda: _Connection(self),
            host,
            port,
            ssl=self._context,
            backlog=512,
            ssl_handshake_timeout=self.limits.handshake_s,
            ssl_shutdown_timeout=self.limits.handshake_s,
        )
        self._sweep()
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """No new connections; requests that are under way are answered, for a short while."""
        loop = asyncio.get_running_loop()
        self.is_stopping = True
        deadline_s = loop.time() + self.limits.stop_s
        gone = None if self._server is None else await close(self._server)
        for connection in list(self.connections):
            connection.finish()
        while self.connections and loop.time() < deadline_s:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.abort()
        if gone is not None:
            await wait_gone(gone, max(GONE_S, deadline_s - loop.time()))
        if self._sweeping is not None:
            self._sweeping.cancel()

    def _sweep(self) -> None:
        """Once a second, or oftener with short limits: one timer for all connections costs a request nothing."""
        loop = asyncio.get_running_loop()
        now_unix_s = time.time()
        self.common_head = _common_head(now_unix_s)
        for connection in list(self.connections):
            connection.check(loop.time(), now_unix_s)
        period_s = min(1.0, self.limits.request_s / 4, self.limits.idle_s / 4)
        self._sweeping = loop.call_later(period_s, self._sweep)


@dataclass(slots=True)
class _Turn:
    """A request, or the answer to one that is broken, waiting for its turn."""

    what: Request | Response
    is_head: bool
    is_old: bool
    """HTTP/1.0: must be told that the connection stays."""
    is_one_shot: bool = False
    """HTTP/1.0: knows no chunks, so the end of a stream is that of the connection."""


class _Connection(asyncio.Protocol):
    """One client connection: octets to requests, answers to octets."""

    def __init__(self, server: HttpsServer) -> None:
        self._server = server
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._identity: PeerIdentity | None = None
        self._target = b""
        self._header_octets = 0
        self._hosts = 0
        self._request_id: bytes | None = None
        self._headers: dict[str, str] = {}
        self._ending = asyncio.Event()
        """Set when a stream that goes out must end."""
        self._body = bytearray()
        self._message_octets = 0
        self._expects = False
        self._is_receiving = False
        self._deadline_s = 0.0
        self._turns: list[_Turn] = []
        self._worker: asyncio.Task[None] | None = None
        self._is_closing = False
        self._is_gone = False
        self._resume = asyncio.Event()
        self._resume.set()
        self._unwiped: list[bytearray] = []

    # ── transport ───────────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's TLS transport is an asyncio.Transport in all but name.
        self._transport = transport = cast("asyncio.Transport", transport)
        der = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        try:
            self._identity = identity_of(der) if der else self._server.anonymous
        except ValueError:
            # TLS took it, the stricter parser does not: then nobody knows who this is.
            self._identity = None
        if (
            self._identity is None
            or self._server.is_stopping
            or self._server.is_revoked(self._identity)
            or len(self._server.connections) >= self._limits.connections_max
            or self._server.by_client[self._identity.fingerprint] >= self._limits.per_client_max
        ):
            self._is_closing = True
            transport.abort()
            return
        self._server.connections.add(self)
        self._server.by_client[self._identity.fingerprint] += 1
        self._deadline_s = self._loop.time() + self._limits.request_s

    def connection_lost(self, _error: Exception | None) -> None:
        if self in self._server.connections:
            assert self._identity is not None
            self._server.connections.remove(self)
            self._server.by_client[self._identity.fingerprint] -= 1
            # Names of clients that have gone are not kept.
            self._server.by_client += Counter()
        self._is_closing = self._is_gone = True
        # Nobody is there to take answers: spend no key on requests that still wait.
        self._turns.clear()
        self._ending.set()
        self._resume.set()
        self._wipe()

    def pause_writing(self) -> None:
        self._resume.clear()

    def resume_writing(self) -> None:
        self._resume.set()
        self._wipe()

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        self._message_octets += len(data)
        if self._message_octets > self._limits.message_octets_max:
            self._refuse(f"request: at most {self._limits.message_octets_max} octets")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request itself is answered like any other; what follows it is another protocol.
            self._is_closing = True
        except httptools.HttpParserCallbackError as problem:
            if not isinstance(problem.__context__, _RefusedError):
                raise
            self._refuse(str(problem.__context__))
        except httptools.HttpParserError:
            # Also what follows a request that asked to close; that one is not answered at all.
            if not self._is_closing:
                self._refuse("not a valid HTTP/1.1 request")

    def eof_received(self) -> bool:
        return False

    def finish(self) -> None:
        """Close once what is under way is answered; a stream ends with what it has given."""
        self._is_closing = True
        self._ending.set()
        if self._worker is None:
            self.abort()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def _cut_off(self) -> None:
        """Close now and answer nothing more, not even what is ready."""
        self._is_closing = self._is_gone = True
        self._turns.clear()
        self.abort()

    def check(self, now_s: float, now_unix_s: float) -> None:
        """Close if the client is too slow, or its certificate has expired (both not while a request is being answered)
        or is revoked (at once: what is under way goes to nobody)."""
        if self._identity is not None and self._server.is_revoked(self._identity):
            self._cut_off()
        elif self._worker is None and now_s > self._deadline_s:
            self.abort()
        elif self._identity is not None and now_unix_s > self._identity.expires_unix_s:
            self.finish()

    # ── parser ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        self._target = b""
        self._request_id = None
        self._headers = {}
        self._header_octets = self._hosts = self._message_octets = 0
        self._body = bytearray()
        self._expects = False
        self._is_receiving = True
        self._deadline_s = self._loop.time() + self._limits.request_s

    def on_url(self, part: bytes) -> None:
        self._target += part
        if len(self._target) > self._limits.target_octets_max:
            raise _RefusedError(f"request target: at most {self._limits.target_octets_max} octets")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_octets += len(name) + len(value)
        if self._header_octets > self._limits.header_octets_max:
            raise _RefusedError(f"headers: at most {self._limits.header_octets_max} octets")
        if self._server.kept_headers and (lower := name.lower()) in self._server.kept_headers:
            known, text = self._headers.get(lower.decode()), value.decode("latin-1")
            self._headers[lower.decode()] = text if known is None else f"{known}, {text}"
        match name.lower():
            case b"host":
                self._hosts += 1
            case b"expect":
                self._expects = value.lower() == b"100-continue"
            case b"x-request-id":
                # Two lines of one header are one list (RFC 9110 clause 5.3).
                self._request_id = value if self._request_id is None else self._request_id + b", " + value
            case b"content-length" if len(value) > 20 or (
                value.isdigit() and int(value) > self._limits.body_octets_max
            ):
                raise self._too_long()

    def on_headers_complete(self) -> None:
        if self._hosts != 1 and self._parser.get_http_version() == "1.1":
            raise _RefusedError("header Host: exactly one is needed")
        # Behind other requests there is nothing to say yet; the client sends its body anyway, a little later.
        if self._expects and self._worker is None and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        if len(self._body) + len(part) > self._limits.body_octets_max:
            raise self._too_long()
        self._body += part

    def on_message_complete(self) -> None:
        assert self._identity is not None
        self._is_receiving = False
        self._message_octets = 0
        if len(self._turns) >= self._limits.pipelined_max:
            raise _RefusedError(f"pipelining: at most {self._limits.pipelined_max} requests may wait")
        waiting = sum(len(turn.what.body) for turn in self._turns)
        if waiting and waiting + len(self._body) > self._limits.message_octets_max:
            raise _RefusedError(f"pipelining: at most {self._limits.message_octets_max} octets of bodies may wait")
        keeps = self._parser.should_keep_alive()
        is_old = keeps and self._parser.get_http_version() == "1.0"
        method = self._parser.get_method().decode()
        is_one_shot = self._parser.get_http_version() == "1.0"
        self._enqueue(_Turn(self._request(method, self._identity), method == "HEAD", is_old, is_one_shot))
        if not keeps:
            self._is_closing = True

    def _too_long(self) -> "_RefusedError":
        return _RefusedError(f"body: at most {self._limits.body_octets_max} octets")

    def _request(self, method: str, identity: PeerIdentity) -> Request | Response:
        try:
            segments, parameters = self._server.targets.read(self._target)
        except ValueError as problem:
            return self._server.refusal(400, str(problem), {})
        return Request(
            method, segments, parameters, bytes(self._body), identity, self._target, self._request_id, self._headers
        )

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _enqueue(self, turn: _Turn) -> None:
        self._turns.append(turn)
        if self._worker is None:
            self._worker = self._loop.create_task(self._work())

    def _refuse(self, message: str) -> None:
        """Answer a broken request and close: nothing after it on this connection can be understood."""
        self._is_closing = True
        self._enqueue(_Turn(self._server.refusal(400, message, {}), is_head=False, is_old=False))

    async def _work(self) -> None:
        try:
            while self._turns:
                turn = self._turns.pop(0)
                what = turn.what
                if isinstance(what, Request):
                    if self._server.is_revoked(what.identity):
                        self._cut_off()
                        return
                    what = await self._answer(what)
                if what.stream is not None:
                    self._is_closing = True
                self._send(what, turn)
                if what.stream is not None and not turn.is_head:
                    self._turns.clear()
                    await self._send_stream(what.stream, is_chunked=not turn.is_one_shot)
                if not self._resume.is_set():
                    await self._until_taken()
        finally:
            self._worker = None
        if self._is_closing and self._transport is not None:
            self._transport.close()
        elif not self._is_receiving:
            self._deadline_s = self._loop.time() + self._limits.idle_s

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._server.handler(request)
        except Exception as problem:  # noqa: BLE001 (one broken request must not take the others' server away)
            # Where, not what: the text of an error that nobody foresaw could hold anything.
            place = traceback.extract_tb(problem.__traceback__)[-1]
            log.error("https: %s in %s:%s", type(problem).__name__, place.filename, place.lineno)  # noqa: TRY400
            self._is_closing = True
            text = "the key manager failed at this request; its log says where"
            return self._server.refusal(503, text, {"Retry-After": "5"})

    async def _send_stream(self, parts: AsyncIterator[bytes], *, is_chunked: bool) -> None:
        """Hand on parts until there are no more, the client is gone, or the server stops."""
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            while not self._is_gone and self._transport is not None:
                part = asyncio.ensure_future(anext(parts, b""))
                await asyncio.wait((part, ending), return_when=asyncio.FIRST_COMPLETED)
                if not part.done():
                    part.cancel()
                    await asyncio.gather(part, return_exceptions=True)
                    break
                octets = part.result()
                if not octets:
                    break
                self._transport.write(b"%x\r\n%s\r\n" % (len(octets), octets) if is_chunked else octets)
                if not self._resume.is_set():
                    await self._until_taken()
            if is_chunked and not self._is_gone and self._transport is not None:
                self._transport.write(b"0\r\n\r\n")
        finally:
            ending.cancel()
            close = getattr(parts, "aclose", None)
            if close is not None:
                await close()

    async def _until_taken(self) -> None:
        """Wait for a client that does not read, but not for ever."""
        try:
            async with asyncio.timeout(self._limits.reading_s):
                await self._resume.wait()
        except TimeoutError:
            self.abort()

    def _send(self, response: Response, turn: _Turn) -> None:
        body = response.body
        if self._transport is not None and not self._is_gone:
            octets = bytearray(self._head(response, turn))
            if not turn.is_head:
                octets += body
            self._transport.write(octets)
            if isinstance(body, bytearray):
                self._unwiped.append(octets)
                self._wipe()
        if isinstance(body, bytearray):
            body[:] = bytes(len(body))

    def _head(self, response: Response, turn: _Turn) -> bytes:
        common = self._server.common_head
        if "Content-Type" in response.headers or response.status == HTTPStatus.NO_CONTENT:
            common = common.replace(b"Content-Type: application/json\r\n", b"")
        if response.status == HTTPStatus.NO_CONTENT:
            # RFC 9110 clause 8.6: such an answer has no length.
            common, length = common.replace(b"Content-Length: ", b""), b""
        elif response.stream is None:
            length = b"%d\r\n" % len(response.body)
        else:
            common = common.replace(b"Content-Length: ", b"")
            length = b"" if turn.is_one_shot else b"Transfer-Encoding: chunked\r\n"
        head = b"%s%s%s" % (_STATUS_LINES[response.status], common, length)
        for name, value in response.headers.items():
            head += f"{name}: {value}\r\n".encode()
        if self._is_closing and not self._turns:
            head += b"Connection: close\r\n"
        elif turn.is_old:
            head += b"Connection: keep-alive\r\n"
        return head + b"\r\n"

    def _wipe(self) -> None:
        """Overwrite what was sent, once the transport holds none of it any more."""
        if not self._unwiped or self._transport is None:
            return
        if self._is_gone or self._transport.get_write_buffer_size() == 0:
            for octets in self._unwiped:
                octets[:] = bytes(len(octets))
            self._unwiped.clear()


class _RefusedError(Exception):
    """A request over a limit."""


class Targets:
    """Request targets, read. Paths that were asked for lately are kept, split and decoded: clients ask for the same few
    again and again."""

    def __init__(self) -> None:
        self._paths: dict[bytes, tuple[str, ...]] = {}

    def read(self, target: bytes) -> tuple[tuple[str, ...], dict[str, str]]:
        """The path's parts and the query's parameters; ValueError, which says what is wrong."""
        path, _, query = target.partition(b"?")
        segments = self._paths.get(path)
        try:
            if segments is None or b"#" in query:
                segments, query = self._parsed(target, path)
            return segments, _query(query) if query else {}
        except UnicodeDecodeError:
            raise ValueError("request target: UTF-8 is needed") from None
        except (httptools.HttpParserInvalidURLError, ValueError) as problem:
            raise ValueError(f"request target: {problem}") from problem

    def _parsed(self, target: bytes, plain_path: bytes) -> tuple[tuple[str, ...], bytes]:
        """The target's segments and query, by the book; the segments are kept where the path is all before the `?`."""
        url = httptools.parse_url(target)
        segments = tuple(_decoded(part) for part in (url.path or b"").split(b"/")[1:])
        if url.path == plain_path and len(plain_path) <= KEPT_PATH_OCTETS_MAX:
            if len(self._paths) >= KEPT_PATHS_MAX:
                self._paths.clear()
            self._paths[plain_path] = segments
        return segments, url.query or b""


def _common_head(now_unix_s: float) -> bytes:
    return (
        f"Date: {formatdate(now_unix_s, usegmt=True)}\r\n"
        "Content-Type: application/json\r\nCache-Control: no-store\r\nContent-Length: "
    ).encode()


def _decoded(part: bytes) -> str:
    text = (unquote_to_bytes(part) if b"%" in part else part).decode()
    if "\x00" in text:
        raise ValueError("a NUL octet is not allowed")
    return text


def _query(octets: bytes) -> dict[str, str]:
    """Parameters, each at most once."""
    found: dict[str, str] = {}
    octets = octets.replace(b"+", b" ")
    for pair in octets.split(b"&"):
        name, _, value = pair.partition(b"=")
        key = _decoded(name)
        if key in found:
            raise ValueError(f"query parameter {key[:40]!r} is given twice")
        found[key] = _decoded(value)
    return found
