"""ETSI GS QKD 020 V1.1.1: what one key manager asks of another, over HTTPS with certificates on both sides.

One connection for each request: there are few of them, and an answer can never be taken for another's. Everything is
bounded in time and size. Whatever goes wrong before a whole answer is there is an `Answer` without a status: the
machines decide what that means. Redirections are not followed.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Sequence
from urllib.parse import urlsplit

import httptools
import msgspec

from qtrunk.api import words020 as words
from qtrunk.api.etsi020 import Peer, is_peer
from qtrunk.api.tls import identity_of
from qtrunk.base.errors import AuthenticationFailed, WireError
from qtrunk.kms.interwork.records import Ack
from qtrunk.kms.interwork.sender import Answer, SendKeys, SendVoid

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
"""For a whole request; our own voids and keys are asynchronous, so nobody has to wait in it."""
ANSWER_OCTETS_MAX = 4 << 20
HEADERS_MAX = 100
READ_OCTETS = 64 << 10


class _Reading:
    """Takes one answer off a connection (callbacks of the parser)."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.is_whole = False
        self._headers = 0

    def on_header(self, _name: bytes, _value: bytes) -> None:
        """A header line."""
        self._headers += 1
        if self._headers > HEADERS_MAX:
            raise WireError(f"an answer of more than {HEADERS_MAX} headers")

    def on_body(self, part: bytes) -> None:
        """More of the body."""
        if len(self.body) + len(part) > ANSWER_OCTETS_MAX:
            raise WireError(f"an answer of more than {ANSWER_OCTETS_MAX} octets")
        self.body += part

    def on_message_complete(self) -> None:
        """The end."""
        self.is_whole = True


class Etsi020Client:
    """Asks one peer."""

    def __init__(self, peer: Peer, address: str, context: ssl.SSLContext, callback: str) -> None:
        """`address` is HOST:PORT, `callback` the URL of our own ext_keys/ack."""
        self._peer = peer
        self._address = address
        self._context = context
        self._callback = callback

    async def ext_keys(self, effect: SendKeys) -> Answer:
        """Give keys."""
        body = words.keys_json(effect.keys, effect.initiator, effect.targets, self._callback, effect.extensions)
        try:
            return await self._ask("POST", self._address, words.EXT_KEYS_PATH, body)
        finally:
            body[:] = bytes(len(body))

    async def void(self, effect: SendVoid) -> Answer:
        """Have keys taken back."""
        body = {
            "key_ids": list(effect.key_ids),
            "initiator_sae_id": effect.initiator,
            "target_sae_ids": list(effect.targets),
            "ack_callback_url": self._callback,
        }
        return await self._ask("POST", self._address, words.VOID_PATH, bytearray(msgspec.json.encode(body)))

    async def ack(self, url: str, acks: Sequence[Ack]) -> Answer:
        """Tell what became of keys."""
        parts = urlsplit(url)
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        return await self._ask("POST", parts.netloc, path, bytearray(words.acks_json(acks)))

    async def versions(self) -> words.Versions:
        """What the peer speaks. WireError where it does not say so in words of the standard."""
        status, body, why = await self._exchange("GET", self._address, words.VERSIONS_PATH, bytearray())
        try:
            if status != 200:
                raise WireError(f"KME {self._peer.kme}: no versions: {why or status}")
            return msgspec.json.decode(body, type=words.Versions)
        except msgspec.MsgspecError:
            raise WireError(f"KME {self._peer.kme}: its versions are not what the standard says") from None

    async def _ask(self, method: str, address: str, path: str, body: bytearray) -> Answer:
        status, octets, why = await self._exchange(method, address, path, body)
        if status != 200 or not octets.strip():
            return Answer(status, why=why or _reason(status, octets))
        try:
            return Answer(200, tuple(words.acks_of(words.decode(octets, list[words.AckContainer]))))
        except words.ProblemError as error:
            # It said yes to something that we cannot read: that is no word to rely on.
            return Answer(None, why=f"its answer cannot be read: {error}")

    async def _exchange(self, method: str, address: str, path: str, body: bytearray) -> tuple[int | None, bytes, str]:
        """Status (None without a whole answer), body, and why there is none."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._exchange_once(method, address, path, body)
        except TimeoutError:
            return None, b"", "no answer in time"
        except ssl.SSLError as error:
            return None, b"", f"TLS fails ({getattr(error, 'verify_message', '') or error.reason})"
        except (OSError, asyncio.IncompleteReadError) as error:
            return None, b"", f"it cannot be reached ({error})"
        except httptools.HttpParserError as error:
            return None, b"", str(error.__context__) if isinstance(error.__context__, WireError) else "not HTTP/1.1"
        except (AuthenticationFailed, WireError) as error:
            return None, b"", str(error)

    async def _exchange_once(
        self, method: str, address: str, path: str, body: bytearray
    ) -> tuple[int | None, bytes, str]:
        where = urlsplit(f"//{address}")
        reader, writer = await asyncio.open_connection(
            where.hostname, where.port or 443, ssl=self._context, server_hostname=where.hostname
        )
        try:
            self._check(writer)
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {words.JSON}\r\n"
                f"Accept: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode())
            writer.write(body)
            await writer.drain()
            reading = _Reading()
            parser = httptools.HttpResponseParser(reading)
            while not reading.is_whole:
                part = await reader.read(READ_OCTETS)
                if not part:
                    return None, b"", "the connection ended before the answer"
                parser.feed_data(part)
            return int(parser.get_status_code()), bytes(reading.body), ""
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _check(self, writer: asyncio.StreamWriter) -> None:
        """Nothing is said to anybody but the peer."""
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        try:
            is_right = bool(der) and is_peer(self._peer, identity_of(der))
        except ValueError:
            is_right = False
        if not is_right:
            raise AuthenticationFailed(f"the certificate at {self._address} is not that of KME {self._peer.kme}")


def _reason(status: int | None, octets: bytes) -> str:
    """The problem's own words, as far as they are fit to be shown."""
    try:
        title = msgspec.json.decode(octets, type=_Title).title
    except (msgspec.MsgspecError, UnicodeDecodeError):
        title = ""
    return f"{status} {''.join(filter(str.isprintable, title))[:200]}".strip()


class _Title(msgspec.Struct):
    title: str = ""
