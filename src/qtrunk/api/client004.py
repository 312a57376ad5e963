"""The SAE's side of ETSI GS QKD 004 V2.1.1 over TCP (`api.frames004`). Synchronous.

What the key manager answers is a status of the standard, never an exception. What goes wrong on the way, as our errors:
the key manager's certificate, or ours there: AuthenticationFailed; no connection, time-out: KeyExhausted; an answer
against the binding: WireError. After an error the connection is closed; a key that was under way may be lost to this
end. A stream does not end with its connection. One client serves one thread.
"""

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from qtrunk.api import frames004 as frames
from qtrunk.api.tls import client_context
from qtrunk.base.errors import AuthenticationFailed, KeyExhausted, WireError
from qtrunk.base.secret import Secret
from qtrunk.kms.streamnotes import Qos, Status

SLACK_S = 10.0
"""How much longer than the stream's own Timeout we wait for an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedStream:
    """Answer to OPEN_CONNECT; `ksid` and `qos` are there where a stream stands (statuses 0, 1, 7)."""

    status: Status
    ksid: bytes
    qos: Qos | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamKey:
    """Answer to GET_KEY; with status 8, `metadata_size` is what to ask again with."""

    status: Status
    index: int
    key: Secret | None
    metadata: bytes
    metadata_size: int


class Client004:
    """One SAE at its key manager."""

    def __init__(
        self,
        *,
        host: str,
        port: int = frames.PORT,
        certificate: Path,
        private_key: Path,
        ca_certificate: Path,
        timeout_s: float = 30.0,
    ) -> None:
        self._where = f"{host}:{port}"
        self._address = (host, port)
        self._context = client_context(certificate, private_key, ca_certificate)
        self._timeout_s = timeout_s
        self._sock: ssl.SSLSocket | None = None

    def __enter__(self) -> "Client004":
        return self

    def __exit__(self, *_nothing: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """Close the connection; the stream stays."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def open(self, source: str, destination: str, qos: Qos, ksid: bytes | None = None) -> OpenedStream:
        """OPEN_CONNECT between two URIs, of which one is ours. With a KSID it waits for the twin's call."""
        request = frames.OpenRequest(source=source, destination=destination, qos=qos, ksid=ksid)
        self._timeout_s = max(self._timeout_s, qos.timeout / 1000 + SLACK_S)
        payload = self._ask(request, frames.OPEN_RESPONSE)
        status, agreed, name = frames.parse_open_answer(payload)
        if agreed is not None:
            self._timeout_s = max(self._timeout_s, agreed.timeout / 1000 + SLACK_S)
        return OpenedStream(status=status, ksid=name, qos=agreed)

    def get_key(self, ksid: bytes, index: int, metadata_size: int = 1024) -> StreamKey:
        """GET_KEY: the chunk `index`, once."""
        payload = self._ask(
            frames.GetKeyRequest(ksid=ksid, index=index, metadata_size=metadata_size), frames.GET_KEY_RESPONSE
        )
        try:
            status, found, key, metadata, needed = frames.parse_key_answer(payload)
        finally:
            payload[:] = bytes(len(payload))
        if status is Status.SUCCESS and found != index:
            self.disconnect()
            raise WireError(f"KME {self._where}: gave index {found} for {index}")
        return StreamKey(status=status, index=found, key=key, metadata=metadata, metadata_size=needed)

    def close(self, ksid: bytes) -> Status:
        """CLOSE the stream; the connection stays."""
        return frames.parse_status(self._ask(frames.CloseRequest(ksid=ksid), frames.CLOSE_RESPONSE))

    # ── one request ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, request: frames.Request, service: int) -> bytearray:
        octets = frames.pack_request(request)
        try:
            sock = self._connected()
            sock.settimeout(self._timeout_s)
            sock.sendall(octets)
            found, length = frames.parse_header(bytes(self._read(sock, frames.HEADER_OCTETS)), frames.ANSWER_OCTETS_MAX)
            if found != service:
                raise WireError(f"KME {self._where}: answered with service {found} for {service}")
            return self._read(sock, length)
        except ssl.SSLError as problem:
            self.disconnect()
            if isinstance(problem, ssl.SSLCertVerificationError) or "ALERT" in (problem.reason or ""):
                raise AuthenticationFailed(
                    f"KME {self._where}: {problem.reason or 'certificate'}; check its certificate and ours"
                ) from problem
            raise KeyExhausted(f"KME {self._where}: the connection broke ({problem.reason})") from problem
        except OSError as problem:
            self.disconnect()
            raise KeyExhausted(
                f"KME {self._where} does not answer ({str(problem) or type(problem).__name__}); "
                "is the node up, and does it take our certificate?"
            ) from problem
        except WireError:
            self.disconnect()
            raise

    def _connected(self) -> ssl.SSLSocket:
        if self._sock is None:
            plain = socket.create_connection(self._address, self._timeout_s)
            try:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sock = self._context.wrap_socket(plain, server_hostname=self._address[0])
            except BaseException:
                plain.close()
                raise
        return self._sock

    def _read(self, sock: ssl.SSLSocket, count: int) -> bytearray:
        octets = bytearray(count)
        view, got = memoryview(octets), 0
        while got < count:
            part = sock.recv_into(view[got:])
            if part == 0:
                raise ConnectionError("closed by the key manager")
            got += part
        view.release()
        return octets
