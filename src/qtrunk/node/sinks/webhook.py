"""Alarms as HTTPS POST of JSON. The server's certificate is verified, redirects are not followed, and neither logs nor
errors hold the path or query of the URL: many receivers have their secret there.
"""

import http.client
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from qtrunk.node.sinks.notice import Notice, SinkError
from qtrunk.node.sinks.settings import WebhookSettings

TIMEOUT_S = 10.0
_AGAIN = frozenset({408, 425, 429})


class Webhook:
    """POSTs one JSON object for each notice; any status of 200 to 299 is success."""

    batch, interval_s = 1, 0.0

    def __init__(self, settings: WebhookSettings) -> None:
        self._url = urlsplit(settings.url)
        self._ca_certificate = settings.ca_certificate
        self._token_file = settings.token_file
        self._name = self._url.hostname or ""

    def send(self, notices: list[Notice]) -> None:
        """See Sink."""
        for notice in notices:
            self._post(msgspec.json.encode(notice))

    def close(self) -> None:
        """See Sink: nothing is held between two messages."""

    def _post(self, body: bytes) -> None:
        target = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        headers = {"Content-Type": "application/json"}
        try:
            if self._token_file is not None:
                # Read each time: a token may be renewed.
                headers["Authorization"] = f"Bearer {Path(self._token_file).read_text().strip()}"
            context = ssl.create_default_context(cafile=self._ca_certificate)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            connection = http.client.HTTPSConnection(self._name, self._url.port, context=context, timeout=TIMEOUT_S)
            try:
                connection.request("POST", target, body, headers)
                status = connection.getresponse().status
            finally:
                connection.close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            # Only the kind: the words of an error may hold the URL or the token.
            raise SinkError(f"webhook at {self._name}: {type(error).__name__}") from None
        if not 200 <= status < 300:
            is_final = 300 <= status < 500 and status not in _AGAIN
            raise SinkError(f"webhook at {self._name}: status {status}", is_final=is_final)
