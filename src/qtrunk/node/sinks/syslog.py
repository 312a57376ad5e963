"""Alarms to syslog: RFC 5424 messages with the structured data and severities of RFC 5674 (alarms in syslog); over UDP
(RFC 5426), TCP with octet counting (RFC 6587 section 3.4.1) or TLS (RFC 5425).
"""

import os
import socket
import ssl

from qtrunk.node.sinks.notice import Notice, SinkError
from qtrunk.node.sinks.settings import SyslogSettings

TIMEOUT_S = 10.0
UDP_OCTETS_MAX = 2048
"""What every receiver should take (RFC 5424 section 6.1)."""
_SEVERITIES = {"critical": 1, "major": 2, "minor": 3, "warning": 4, "indeterminate": 5, "cleared": 5}
"""RFC 5674 section 2."""
ENTERPRISE = "32473"
"""The number for documentation (RFC 5612): qtrunk has none of its own."""


class Syslog:
    """One message for each notice; a connection is kept."""

    batch, interval_s = 16, 0.0

    def __init__(self, settings: SyslogSettings) -> None:
        self._settings = settings
        self._where = f"syslog at {settings.host}:{settings.port}"
        self._socket: socket.socket | None = None

    def send(self, notices: list[Notice]) -> None:
        """See Sink."""
        try:
            for notice in notices:
                message = format_message(notice, self._settings.facility, socket.gethostname(), os.getpid())
                if self._settings.transport == "udp":
                    self._send_datagram(message)
                else:
                    self._stream().sendall(f"{len(message)} ".encode() + message)
        except OSError as error:
            self.close()
            raise SinkError(f"{self._where}: {error.strerror or type(error).__name__}") from error

    def _send_datagram(self, message: bytes) -> None:
        family, kind, protocol, _, address = socket.getaddrinfo(
            self._settings.host, self._settings.port, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as out:
            out.sendto(message[:UDP_OCTETS_MAX], address)

    def _stream(self) -> socket.socket:
        """The connection; a new one where the receiver has closed the old one, which `send` alone would not notice."""
        if self._socket is not None and _is_closed(self._socket):
            self.close()
        if self._socket is None:
            made = socket.create_connection((self._settings.host, self._settings.port), TIMEOUT_S)
            if self._settings.transport == "tls":
                try:
                    context = ssl.create_default_context(cafile=self._settings.ca_certificate)
                    if self._settings.certificate is not None:
                        context.load_cert_chain(self._settings.certificate, self._settings.private_key)
                    made = context.wrap_socket(made, server_hostname=self._settings.host)
                except OSError:
                    made.close()
                    raise
            self._socket = made
        return self._socket

    def close(self) -> None:
        """See Sink."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def format_message(notice: Notice, facility: int, host: str, process: int) -> bytes:
    """One RFC 5424 message without framing."""
    priority = 8 * facility + _SEVERITIES[notice.severity]
    alarm = {
        "resource": notice.resource,
        "probableCause": notice.probable_cause,
        "perceivedSeverity": notice.severity,
    }
    own = {"network": notice.network, "node": notice.node, "id": notice.id, "type": notice.type}
    own |= {"impacted": ", ".join(notice.impacted), "rootCause": ", ".join(notice.root_causes)}
    data = _element("alarm", alarm) + _element(f"qtrunk@{ENTERPRISE}", own)
    head = f"<{priority}>1 {notice.time} {_word(host, 255)} qtrunk {process} {_word(notice.type, 32)} {data} "
    # A byte order mark says that the text is UTF-8 (section 6.4).
    return head.encode() + b"\xef\xbb\xbf" + " ".join(notice.text.split()).encode()


def _element(name: str, parameters: dict[str, str]) -> str:
    listed = "".join(f' {key}="{_escaped(value)}"' for key, value in parameters.items())
    return f"[{name}{listed}]"


def _escaped(value: str) -> str:
    """RFC 5424 section 6.3.3; line ends would let a text begin a message of its own where octets are not counted."""
    plain = " ".join(value.split())
    return plain.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")


def _word(text: str, most: int) -> str:
    return "".join(sign for sign in text if "!" <= sign <= "~")[:most] or "-"


def _is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.0)
    try:
        return connection.recv(1) == b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(TIMEOUT_S)
