"""The compiled HTTPS server of the key interface: the face of `https.HttpsServer`, with requests in lots behind it.

TLS, HTTP and clients that are slow or greedy are the affair of a thread without the interpreter's lock (`src/front`,
docs/decisions/0025). This side decides who may come in, answers, and sees to it that what can be answered together is:
requests that came while the lot before was on its way to the disk are the next lot. `Lots` says which those are and
answers them; what it does not take goes one by one to the handler, as in `HttpsServer`.

Answers are copied into buffers of the thread that it wipes once the network has taken them; a `bytearray` body and the
material of a lot are wiped here.
"""

import asyncio
import logging
import resource
import socket
import ssl
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Protocol

from qtrunk import _front
from qtrunk.api.https import Handler, Limits, Refusal, Request, Response, Targets, error
from qtrunk.api.tls import PeerIdentity, identity_of
from qtrunk.base.ports import SuppliedKeys

log = logging.getLogger(__name__)

SAME, EACH = "same", "each"
LOT_MAX = 256
"""Requests of a lot."""
LOT_SPACING_S = 0.001
"""After a lot of several requests the next one of its kind begins no sooner than this after it began: where many ask,
few and large ones cost less. Who asks alone waits for nobody."""
HANDSHAKES_MAX = 1024
"""That are under way at once: of the files that the process may have open strangers get a quarter at most."""
TOKEN_OCTETS = 8
"""Of the name that the thread gives to a connection."""


class Lots(Protocol):
    """Answers several requests of one client together."""

    def kind(self, method: str, segments: tuple[str, ...]) -> str | None:
        """SAME: such requests may be answered together where they are equal octet by octet. EACH: where they have the
        same path. None: neither."""

    async def same(self, request: Request, count: int) -> tuple[SuppliedKeys, int] | Response | None:
        """What `count` requests like this one get, one behind the other, and how many keys each; or one answer for
        all of them. None, and nothing has happened: answer them one by one."""

    async def each(self, requests: list[Request]) -> SuppliedKeys | list[Response | None]:
        """The answer to each, or a key for each; None, and nothing has happened: answer this one by itself."""


class FrontContext:
    """The server's certificate and whom it believes: `server_context` for the compiled server."""

    def __init__(
        self,
        certificate: Path,
        private_key: Path,
        ca_certificate: Path,
        minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> None:
        self._ca_certificate, self._minimum = ca_certificate, int(minimum_version)
        self._own = (certificate, private_key)
        self._servers: list[_front.Server] = []
        self._context = self._load()

    def serve(self, server: _front.Server) -> None:
        """A server uses this from now on, and what is loaded later."""
        server.use(self._context)
        self._servers.append(server)

    def load_cert_chain(self, certfile: Path, keyfile: str) -> None:
        """New connections get this certificate. OSError where it cannot be."""
        before, self._own = self._own, (certfile, Path(keyfile))
        try:
            self._reload()
        except OSError:
            self._own = before
            raise

    def load_verify_locations(self, *, cadata: str) -> None:
        """A CA was added to the file of those that are believed."""
        self._reload()

    def _reload(self) -> None:
        self._context = self._load()
        for server in self._servers:
            server.use(self._context)

    def _load(self) -> _front.TlsContext:
        certificate, private_key = self._own
        try:
            return _front.TlsContext(str(certificate), str(private_key), str(self._ca_certificate), self._minimum)
        except RuntimeError as problem:
            raise ssl.SSLError(str(problem)) from problem


class FrontServer:
    """Listens, and hands requests to one handler, or in lots to `lots`."""

    def __init__(
        self,
        handler: Handler,
        context: FrontContext,
        limits: Limits | None = None,
        is_revoked: Callable[[PeerIdentity], bool] = lambda _identity: False,
        refusal: Refusal = error,
        kept_headers: Collection[bytes] = (),
        lots: Lots | None = None,
    ) -> None:
        """As `HttpsServer`; a handler's answer must not be a stream."""
        self.handler = handler
        self.is_revoked = is_revoked
        self.refusal = refusal
        self.lots = lots
        self.limits = limits = limits or Limits()
        self.connections: dict[bytes, PeerIdentity] = {}
        """By the thread's name for them."""
        self.by_client: Counter[str] = Counter()
        """Connections by the certificate's fingerprint."""
        self._numbers: dict[str, int] = {}
        self._clients: dict[int, PeerIdentity] = {}
        self._next_client = 0
        self._targets = Targets()
        self._pending: dict[tuple[int, bytes, str, bytes], deque[tuple[bytes, Request]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._front = _front.Server(
            target=limits.target_octets_max,
            headers=limits.header_octets_max,
            body=limits.body_octets_max,
            message=limits.message_octets_max,
            pipelined=limits.pipelined_max,
            handshakes=min(HANDSHAKES_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4),
            handshake_s=limits.handshake_s,
            request_s=limits.request_s,
            idle_s=limits.idle_s,
            reading_s=limits.reading_s,
            kept_headers=[name.decode() for name in kept_headers],
        )
        context.serve(self._front)

    async def start(self, host: str, port: int) -> int:
        """Listen; the port (for port 0: the one that was chosen)."""
        loop = asyncio.get_running_loop()
        listeners = await _listeners(host, port)
        chosen = int(listeners[0].getsockname()[1])
        self._front.start([listener.detach() for listener in listeners])
        loop.add_reader(self._front.ready_fd(), self._take)
        self._sweep()
        return chosen

    async def stop(self) -> None:
        """No new connections; requests that are under way are answered, for a short while."""
        loop = asyncio.get_running_loop()
        self._front.stop_listening()
        self._front.finish_all()
        deadline_s = loop.time() + self.limits.stop_s
        while self.connections and loop.time() < deadline_s:
            await asyncio.sleep(0.01)
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
            loop.remove_reader(self._front.ready_fd())
        self._front.stop()
        self.connections.clear()

    def is_handed(self) -> bool:
        """Whether all answers so far are with the network, or their clients gone."""
        return self._front.is_handed()

    # ── who comes in ────────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self) -> None:
        for kind, tokens, *more in self._front.take():
            try:
                if kind == "requests":
                    self._asked(tokens, *more)
                elif kind == "peer":
                    self._knocks(tokens, *more)
                else:
                    self._gone(tokens)
            except Exception as problem:  # noqa: BLE001 (one broken request must not take the others' server away)
                _log(problem)
                self._front.cut(tokens)

    def _knocks(self, token: bytes, der: bytes) -> None:
        try:
            identity = identity_of(der)
        except ValueError:
            # TLS took it, the stricter parser does not: then nobody knows who this is.
            self._front.cut(token)
            return
        fingerprint = identity.fingerprint
        if (
            self.is_revoked(identity)
            or len(self.connections) >= self.limits.connections_max
            or self.by_client[fingerprint] >= self.limits.per_client_max
        ):
            self._front.cut(token)
            return
        self.connections[token] = identity
        self.by_client[fingerprint] += 1
        if fingerprint not in self._numbers:
            self._next_client += 1
            self._numbers[fingerprint] = self._next_client
            self._clients[self._next_client] = identity
        self._front.admit(token, self._numbers[fingerprint])

    def _gone(self, token: bytes) -> None:
        identity = self.connections.pop(token, None)
        if identity is None:
            return
        self.by_client[identity.fingerprint] -= 1
        if not self.by_client[identity.fingerprint]:
            # Names of clients that have gone are not kept.
            del self.by_client[identity.fingerprint]
            del self._clients[self._numbers.pop(identity.fingerprint)]

    def _sweep(self) -> None:
        # First of all: whatever goes wrong, there is a next one.
        self._sweeping = asyncio.get_running_loop().call_later(1.0, self._sweep)
        now_unix_s = time.time()
        for token, identity in self.connections.items():
            if self.is_revoked(identity):
                self._front.cut(token)
            elif now_unix_s > identity.expires_unix_s:
                self._front.finish(token)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _asked(
        self,
        tokens: bytes,
        client: int,
        method: str,
        target: bytes,
        body: bytes,
        request_id: bytes | None,
        headers: dict[str, bytes] | None,
    ) -> None:
        """`tokens` name the connections that ask this."""
        identity = self._clients.get(client)
        if identity is None:
            return  # All of its connections are gone.
        if self.is_revoked(identity) or time.time() > identity.expires_unix_s:
            self._front.cut(tokens)
            return
        try:
            segments, query = self._targets.read(target)
        except ValueError as problem:
            self._answer(tokens, self.refusal(400, str(problem), {}))
            return
        kept = {} if headers is None else {name: value.decode("latin-1") for name, value in headers.items()}
        request = Request(method, segments, query, body, identity, target, request_id, kept)
        is_plain = request_id is None and headers is None
        kind = self.lots.kind(method, segments) if self.lots is not None and is_plain else None
        if kind is None:
            self._one_by_one(tokens, request)
            return
        key = (client, target, method, body) if kind == SAME else (client, target.partition(b"?")[0], method, b"")
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = deque()
            self._spawn(self._work(key, kind, pending))
        pending.append((tokens, request))

    async def _work(self, key: tuple[int, bytes, str, bytes], kind: str, pending: deque[tuple[bytes, Request]]) -> None:
        """Answer lots of one kind, one after the other, as long as there are any."""
        loop = asyncio.get_running_loop()
        lot: list[tuple[bytes, Request]] = []
        try:
            while pending:
                next_s = loop.time() + LOT_SPACING_S
                lot = [pending.popleft() for _ in range(min(len(pending), LOT_MAX))]
                if kind == SAME:
                    await self._answer_same(lot)
                else:
                    await self._answer_each(lot)
                if len(lot) > 1 or len(lot[0][0]) > TOKEN_OCTETS:
                    await asyncio.sleep(max(0.0, next_s - loop.time()))
        except Exception as problem:  # noqa: BLE001 (as in `_one`)
            self._failed(b"".join(tokens for tokens, _ in (*lot, *pending)), problem)
        finally:
            del self._pending[key]

    async def _answer_same(self, lot: list[tuple[bytes, Request]]) -> None:
        request = lot[0][1]
        # Who has gone meanwhile gets no key.
        whole = self._front.living(b"".join(tokens for tokens, _ in lot))
        for start in range(0, len(whole), LOT_MAX * TOKEN_OCTETS):
            tokens = whole[start : start + LOT_MAX * TOKEN_OCTETS]
            if self.is_revoked(request.identity):
                self._front.cut(tokens)
                continue
            try:
                await self._answer_lot(tokens, request)
            except Exception as problem:  # noqa: BLE001 (as in `_one`)
                self._failed(tokens, problem)

    async def _answer_lot(self, tokens: bytes, request: Request) -> None:
        assert self.lots is not None
        found = await self.lots.same(request, len(tokens) // TOKEN_OCTETS)
        if found is None:
            self._one_by_one(tokens, request)
        elif isinstance(found, Response):
            self._answer(tokens, found)
        else:
            keys, number = found
            self._answer_keys(tokens, keys, number)

    async def _answer_each(self, lot: list[tuple[bytes, Request]]) -> None:
        # Equal requests came as one; the first of them gets the keys, the others hear that they are gone.
        asking = [
            (living[start : start + TOKEN_OCTETS], request)
            for tokens, request in lot
            for living in (self._front.living(tokens),)
            for start in range(0, len(living), TOKEN_OCTETS)
        ]
        if not asking:
            return
        if self.is_revoked(asking[0][1].identity):
            self._front.cut(b"".join(token for token, _ in asking))
            return
        try:
            assert self.lots is not None
            answers = await self.lots.each([request for _, request in asking])
        except Exception as problem:  # noqa: BLE001 (as in `_one`)
            self._failed(b"".join(token for token, _ in asking), problem)
            return
        if isinstance(answers, SuppliedKeys):
            self._answer_keys(b"".join(token for token, _ in asking), answers, 1)
            return
        for (token, request), answer in zip(asking, answers, strict=True):
            if answer is None:
                self._one_by_one(token, request)
            else:
                self._answer(token, answer)

    def _one_by_one(self, tokens: bytes, request: Request) -> None:
        for start in range(0, len(tokens), TOKEN_OCTETS):
            self._spawn(self._one(tokens[start : start + TOKEN_OCTETS], request))

    async def _one(self, token: bytes, request: Request) -> None:
        if not self._front.living(token):
            return
        try:
            answer = await self.handler(request)
            if answer.stream is not None:
                raise TypeError("a stream")
            self._answer(token, answer)
        except Exception as problem:  # noqa: BLE001 (one broken request must not take the others' server away)
            self._failed(token, problem)

    def _failed(self, tokens: bytes, problem: Exception) -> None:
        _log(problem)
        text = "the key manager failed at this request; its log says where"
        self._answer(tokens, self.refusal(503, text, {"Retry-After": "5"}), closes=True)

    def _answer_keys(self, tokens: bytes, keys: SuppliedKeys, number: int) -> None:
        """So many keys for each."""
        with keys.material.reveal() as material:
            self._front.answer_keys(tokens, keys.ids, material, number, keys.key_octets)
        keys.material.wipe()

    def _answer(self, tokens: bytes, answer: Response, *, closes: bool = False) -> None:
        head = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        self._front.answer(tokens, answer.status, head.encode(), answer.body, closes)
        if isinstance(answer.body, bytearray):
            answer.body[:] = bytes(len(answer.body))

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _log(problem: Exception) -> None:
    # Where, not what: the text of an error that nobody foresaw could hold anything.
    place = traceback.extract_tb(problem.__traceback__)[-1]
    log.error("front: %s in %s:%s", type(problem).__name__, place.filename, place.lineno)


async def _listeners(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on all addresses of a host, as asyncio's servers have them."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setblocking(False)
            listener.bind(address)
            listener.listen(512)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners
