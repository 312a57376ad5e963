"""One request of JSON over HTTPS to a service of ours: administration interfaces, the enrolment service.

Errors: LabError where nobody answers, AuthenticationFailed where TLS fails, NotAuthorised for 401 and 403,
RequestRefused for 400 and 404, StoreError for anything else, each with the server's own words.
"""

import http.client
import select
import ssl
from dataclasses import dataclass, field

import msgspec

from qtrunk.base.errors import (
    AuthenticationFailed,
    ConfigError,
    LabError,
    NotAuthorised,
    QtrunkError,
    RequestRefused,
    StoreError,
)

ANSWER_OCTETS_MAX = 16 << 20
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Service:
    """Where a service is, and how it is talked to. For any number of threads."""

    host: str
    port: int
    context: ssl.SSLContext
    timeout_s: float = TIMEOUT_S
    keeps: bool = False
    """Connections stay for the next question, for whoever asks again and again: a handshake costs both ends more than
    most answers. Without it each question has its own."""
    _idle: list[http.client.HTTPSConnection] = field(default_factory=list, compare=False, repr=False)

    def ask(self, method: str, path: str, body: object = None) -> bytes:
        """The body of the answer (200), or an error."""
        payload = None if body is None else msgspec.json.encode(body)
        headers = {} if payload is None else {"Content-Type": "application/json"}
        connection = self._connection()
        where = f"{self.host}:{self.port}"
        is_kept = False
        try:
            if connection.sock is None:
                connection.connect()
                tls = connection.sock
                assert isinstance(tls, ssl.SSLSocket)
                self.check_peer(tls.getpeercert(binary_form=True) or b"")
            connection.request(method, path, payload, headers)
            response = connection.getresponse()
            octets = response.read(ANSWER_OCTETS_MAX + 1)
            is_kept = self.keeps and connection.sock is not None and response.isclosed()
        except ssl.SSLError as problem:
            raise AuthenticationFailed(f"{where}: TLS fails ({problem.reason}); check certificates and CA") from problem
        except (OSError, http.client.HTTPException) as problem:
            raise LabError(f"{where} does not answer ({problem})") from problem
        finally:
            if is_kept:
                self._idle.append(connection)
            else:
                connection.close()
        if len(octets) > ANSWER_OCTETS_MAX:
            raise StoreError(f"{where}: answer of more than {ANSWER_OCTETS_MAX} octets")
        if response.status != http.client.OK:
            raise _problem(where, response.status, octets)
        return octets

    def _connection(self) -> http.client.HTTPSConnection:
        """One that was kept and is still open, or one that is still to be dialled."""
        while self._idle:
            try:
                kept = self._idle.pop()
            except IndexError:  # Another thread has it.
                break
            poll = select.poll()
            poll.register(kept.sock, select.POLLIN)
            # Nothing was asked, so there is only one thing to hear: the service has closed.
            if not poll.poll(0):
                return kept
            kept.close()
        return http.client.HTTPSConnection(self.host, self.port, context=self.context, timeout=self.timeout_s)

    def close(self) -> None:
        """End the connections that were kept."""
        while self._idle:
            self._idle.pop().close()

    def __del__(self) -> None:
        # Whoever drops a service has no use for its connections.
        self.close()

    def check_peer(self, der: bytes) -> None:
        """Before anything is sent: AuthenticationFailed where this is not who it should be. TLS has verified it."""


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `https://HOST:PORT` or `HOST:PORT`; ConfigError where it is neither."""
    host, _, port = text.removeprefix("https://").rstrip("/").rpartition(":")
    if not host or "/" in host or "://" in text.removeprefix("https://") or not (port.isascii() and port.isdigit()):
        raise ConfigError([f"URL {text[:100]!r}: https://HOST:PORT is needed"])
    return host.strip("[]"), int(port)


def _problem(where: str, status: int, octets: bytes) -> QtrunkError:
    try:
        message = str(msgspec.json.decode(octets, type=dict[str, object])["message"])[:500]
    except (msgspec.MsgspecError, KeyError):
        message = "no message"
    text = f"{where} answered {status}: {''.join(filter(str.isprintable, message))}"
    if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        return NotAuthorised(text)
    if status in (http.client.BAD_REQUEST, http.client.NOT_FOUND):
        return RequestRefused(text)
    return StoreError(text)
