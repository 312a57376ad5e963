"""ETSI GS QKD 004 V2.1.1 key streams over TCP: TLS 1.3 with certificates on both sides, frames of `api.frames004`.

The caller is the SAE in its certificate and must be the source or the destination of what it opens; a stream is known
to its two SAEs only. Requests of a connection are answered in order. Everything is bounded (`Limits`): connections,
frames, the time a client may take to ask or to read. What cannot be understood ends the connection, for the binding has
no answer to it. A client that hangs up while it waits takes no key. Buffers that held key are wiped once they are sent;
nothing of a key is ever logged.
"""

import asyncio
import contextlib
import logging
import ssl
import time
import traceback
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from qtrunk.api import frames004 as frames
from qtrunk.api.tls import PeerIdentity, close, identity_of, wait_gone
from qtrunk.base.errors import WireError
from qtrunk.base.ids import SaeId
from qtrunk.kms.streamend import Answer
from qtrunk.kms.streamnotes import Qos, Status

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client, and all of them together, may take."""

    connections_max: int = 1024
    per_sae_max: int = 128
    handshake_s: float = 10.0
    request_s: float = 20.0
    """From the first octet of a request to the last."""
    idle_s: float = 200.0
    """Between requests, and before the first."""
    reading_s: float = 20.0
    """For a client to take an answer off us."""
    check_s: float = 1.0
    """So often it is looked, while a call waits, whether its SAE may still have key."""


class StreamCalls(Protocol):
    """The three calls; each raises nothing but cancellation, and a cancelled one takes no key."""

    async def open(
        self, caller: SaeId, source: SaeId, destination: SaeId, asked: Qos, ksid: bytes | None, holder: Hashable
    ) -> Answer:
        """OPEN_CONNECT."""

    async def get_key(self, caller: SaeId, ksid: bytes, index: int, metadata_size: int) -> Answer:
        """GET_KEY."""

    async def close(self, caller: SaeId, ksid: bytes) -> Answer:
        """CLOSE."""

    def released(self, holder: Hashable) -> None:
        """The connection `holder` has ended."""


class Etsi004Server:
    """Listens for applications."""

    def __init__(
        self,
        calls: StreamCalls,
        sae_of: Callable[[PeerIdentity], SaeId | None],
        context: ssl.SSLContext,
        limits: Limits | None = None,
    ) -> None:
        self._calls = calls
        self._sae_of = sae_of
        self._context = context
        self._limits = limits or Limits()
        self._server: asyncio.Server | None = None
        self._is_stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._callers: dict[Hashable, SaeId] = {}

    async def start(self, host: str, port: int) -> int:
        """Listen; the port (for port 0: the one that was chosen)."""
        self._is_stopping = False
        self._server = await asyncio.start_server(
            self._accept,
            host,
            port,
            limit=2 * frames.REQUEST_OCTETS_MAX,
            ssl=self._context,
            ssl_handshake_timeout=self._limits.handshake_s,
            ssl_shutdown_timeout=self._limits.handshake_s,
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """End all connections; calls that wait take no key."""
        self._is_stopping = True
        gone = None if self._server is None else await close(self._server)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if gone is not None:
            await wait_gone(gone)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_stopping:
            # Its handshake began before.
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        # `drain` must wait until all is sent. Not 0: uvloop pauses at the limit, and would never go on.
        writer.transport.set_write_buffer_limits(high=1, low=0)
        holder = object()
        identity = _identity(writer)
        caller = self._sae_of(identity) if identity else None
        try:
            if identity is None or caller is None:
                log.warning("004: refused a certificate that names no SAE of this KME")
            elif (
                len(self._callers) >= self._limits.connections_max
                or list(self._callers.values()).count(caller) >= self._limits.per_sae_max
            ):
                log.warning("004: refused a connection of %s: too many", caller)
            else:
                self._callers[holder] = caller
                await self._converse(reader, writer, identity, caller, holder)
        except WireError as problem:
            log.warning("004: connection of %s ended: %s", caller, problem)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            # Gone, or too slow: nothing is owed to it.
            log.debug("004: connection of %s ended", caller)
            writer.transport.abort()
        except Exception as problem:  # noqa: BLE001 (one connection must not take the others' server away)
            # Where, not what: the text of an error that nobody foresaw could hold anything.
            place = traceback.extract_tb(problem.__traceback__)[-1]
            log.error("004: %s in %s:%s", type(problem).__name__, place.filename, place.lineno)  # noqa: TRY400
        finally:
            self._callers.pop(holder, None)
            self._calls.released(holder)
            writer.close()

    async def _converse(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        identity: PeerIdentity,
        caller: SaeId,
        holder: Hashable,
    ) -> None:
        coming = asyncio.create_task(self._read(reader))
        work: asyncio.Task[bytearray] | None = None
        try:
            while True:
                async with asyncio.timeout(self._limits.idle_s):
                    service, payload = await asyncio.shield(coming)
                request = frames.parse_request(service, payload)
                if not self._is_living(identity, caller):
                    return
                # Reading on shows whether the client is still there while its call waits.
                coming = asyncio.create_task(self._read(reader))
                work = asyncio.create_task(self._answer(caller, holder, request))
                waits: set[asyncio.Task[Any]] = {coming, work}
                while not work.done():
                    # A call may wait for minutes: who is put out meanwhile takes no key.
                    await asyncio.wait(waits, timeout=self._limits.check_s, return_when=asyncio.FIRST_COMPLETED)
                    is_gone = coming.done() and coming.exception() is not None
                    if not self._is_living(identity, caller) or (is_gone and not work.done()):
                        return
                    waits = {work} if coming.done() else waits
                await self._send(writer, await work)
        finally:
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError, EOFError, WireError, TimeoutError):
                await coming
            if work is not None:
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    _wipe(await work)

    def _is_living(self, identity: PeerIdentity, caller: SaeId) -> bool:
        """Whether certificate and registration of a caller still hold."""
        if time.time() <= identity.expires_unix_s and self._sae_of(identity) == caller:
            return True
        log.warning("004: the certificate or the registration of %s has ended", caller)
        return False

    async def _read(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        first = await reader.readexactly(1)
        async with asyncio.timeout(self._limits.request_s):
            header = first + await reader.readexactly(frames.HEADER_OCTETS - 1)
            service, length = frames.parse_header(header, frames.REQUEST_OCTETS_MAX)
            return service, await reader.readexactly(length)

    async def _send(self, writer: asyncio.StreamWriter, answer: bytearray) -> None:
        try:
            writer.write(answer)
            async with asyncio.timeout(self._limits.reading_s):
                await writer.drain()
                # The standard loop pauses above the limit only: one octet may be left.
                while writer.transport.get_write_buffer_size():
                    await asyncio.sleep(0.01)
        finally:
            _wipe(answer)

    async def _answer(self, caller: SaeId, holder: Hashable, request: frames.Request) -> bytearray:
        match request:
            case frames.OpenRequest():
                return await self._open(caller, holder, request)
            case frames.GetKeyRequest():
                got = await self._calls.get_key(caller, request.ksid, request.index, request.metadata_size)
                if got.key is None:
                    return frames.pack_no_key(got.status, got.metadata_size)
                try:
                    return frames.pack_key(got.index, got.key, got.metadata)
                finally:
                    got.key.wipe()
            case frames.CloseRequest():
                return frames.pack_close_answer((await self._calls.close(caller, request.ksid)).status)

    async def _open(self, caller: SaeId, holder: Hashable, request: frames.OpenRequest) -> bytearray:
        source, destination = frames.sae_of_uri(request.source), frames.sae_of_uri(request.destination)
        if source is None or destination is None or caller not in (source, destination):
            log.warning("004: OPEN_CONNECT of %s: it must be the source or the destination, each a URI", caller)
            return frames.pack_open_answer(Status.NO_CONNECTION, None, b"")
        got = await self._calls.open(caller, source, destination, request.qos, request.ksid, holder)
        return frames.pack_open_answer(got.status, got.qos, got.ksid)


def _wipe(octets: bytearray) -> None:
    octets[:] = bytes(len(octets))


def _identity(writer: asyncio.StreamWriter) -> PeerIdentity | None:
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    try:
        return identity_of(der) if der else None
    except ValueError:
        # TLS took it, the stricter parser does not: then nobody knows who this is.
        return None
