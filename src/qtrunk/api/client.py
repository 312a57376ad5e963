"""The SAE's side of ETSI GS QKD 014 V1.1.1, as a `base.ports.KeySource`. Synchronous: http.client and ssl.

Works against any KME of the standard. Its certificate must be of the CA, for the host in the URL and, where `kme_id` is
given, for that KME. What goes wrong, as our errors:

    the KME's certificate, or ours at the KME   AuthenticationFailed
    no connection, time-out, 503                KeyExhausted, with the Retry-After of the KME
    401                                         NotAuthorised
    400 or 404 on dec_keys                      KeyNotFound
    any other status                            RequestRefused
    an answer against the standard              WireError

A connection that dies while a request is under way is not tried again by itself: the keys may be gone. With `retry_s`
it is, so long, by the same X-Request-ID: a qtrunk KME whose retry window is as long gives the same keys again, even
if it crashed in between; another KME may have spent the first ones. A connection that the KME closed meanwhile is seen
before the next request, and opened anew. One client serves one thread.
"""

import http.client
import json
import select
import ssl
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from qtrunk.api.tls import client_context, kme_ids_of
from qtrunk.base.errors import (
    AuthenticationFailed,
    KeyExhausted,
    KeyNotFound,
    NotAuthorised,
    QtrunkError,
    RequestRefused,
    WireError,
)
from qtrunk.base.ids import KeyId, SaeId, parse_key_id
from qtrunk.base.ports import SuppliedKey, SupplyStatus
from qtrunk.base.secret import Secret

ANSWER_OCTETS_MAX = 16 << 20
READ_OCTETS = 64 << 10
NO_CONNECTION_RETRY_S = 2
RETRY_S_MAX = 3600
RETRY_PAUSE_S = 0.2

T = TypeVar("T")


class _Status(msgspec.Struct, frozen=True):
    """Body of Get status; unknown members are ignored."""

    source_KME_ID: str  # noqa: N815 (the standard's spelling, here and below)
    target_KME_ID: str  # noqa: N815
    key_size: int
    stored_key_count: int
    max_key_count: int
    max_key_per_request: int
    max_key_size: int
    min_key_size: int
    max_SAE_ID_count: int  # noqa: N815
    status_extension: object = None


class _Key(msgspec.Struct, frozen=True):
    key_ID: str  # noqa: N815
    key: bytearray
    """Decoded from base64 straight into a buffer that can be wiped."""


class _Keys(msgspec.Struct, frozen=True):
    keys: list[_Key]


class NoAnswerError(KeyExhausted):
    """The connection failed, before the request was sent or after."""


class Etsi014Client:
    """One SAE at its KME."""

    def __init__(
        self,
        *,
        kme_url: str,
        certificate: Path,
        private_key: Path,
        ca_certificate: Path,
        own_sae: SaeId,
        timeout_s: float = 30.0,
        kme_id: str | None = None,
        minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        retry_s: float = 0.0,
    ) -> None:
        self._retry_s = retry_s
        parts = urlsplit(kme_url)
        if parts.scheme != "https" or not parts.hostname or parts.query or parts.username:
            raise RequestRefused(f"kme_url {kme_url!r}: https://HOST[:PORT][/PATH] is needed")
        self.own_sae = own_sae
        self._kme_id = kme_id
        self._where = f"{parts.hostname}:{parts.port or 443}"
        self._base = parts.path.rstrip("/")
        self._per_request: dict[SaeId, int] = {}
        self._connection = http.client.HTTPSConnection(
            parts.hostname,
            parts.port,
            context=client_context(certificate, private_key, ca_certificate, minimum_version),
            timeout=timeout_s,
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def status(self, peer: SaeId) -> SupplyStatus:
        """Get status."""
        answer = self._ask("GET", peer, "status", None, _Status)
        self._per_request[peer] = max(1, answer.max_key_per_request)
        return SupplyStatus(
            source_kme=answer.source_KME_ID,
            target_kme=answer.target_KME_ID,
            key_bits=answer.key_size,
            stored_key_count=answer.stored_key_count,
            key_count_max=answer.max_key_count,
            keys_per_request_max=answer.max_key_per_request,
            key_bits_max=answer.max_key_size,
            key_bits_min=answer.min_key_size,
            additional_targets_max=answer.max_SAE_ID_count,
            fill_bps=_fill_bps(answer.status_extension),
        )

    def get_keys(self, peer: SaeId, number: int, key_bits: int, also: Sequence[SaeId] = ()) -> list[SuppliedKey]:
        """Get key: `number` fresh keys shared with `peer` (and further targets), in one request."""
        body: dict[str, object] = {"number": number, "size": key_bits}
        if also:
            body["additional_slave_SAE_IDs"] = list(also)
        keys = self._keys(self._ask("POST", peer, "enc_keys", body, _Keys))
        if len(keys) != number or any(8 * len(key.material) != key_bits for key in keys):
            raise WireError(f"KME {self._where}: gave other keys than {number} of {key_bits} bits")
        if len({key.key_id for key in keys}) != number:
            raise WireError(f"KME {self._where}: gave two keys under one key ID")
        return keys

    def get_keys_with_ids(self, peer: SaeId, key_ids: Sequence[KeyId]) -> list[SuppliedKey]:
        """Get key with key IDs: what `peer` was given under these IDs, in that order.

        More than the KME takes in one request are fetched in batches; each batch comes whole or not at all, and a
        batch that came is gone from the KME even if a later one fails.
        """
        if len(key_ids) > 1 and peer not in self._per_request:
            self.status(peer)
        step = self._per_request.get(peer, 1)
        found: list[SuppliedKey] = []
        for start in range(0, len(key_ids), step):
            found += self._collect(peer, key_ids[start : start + step])
        return found

    def _collect(self, peer: SaeId, key_ids: Sequence[KeyId]) -> list[SuppliedKey]:
        body = {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}
        supplied = self._keys(self._ask("POST", peer, "dec_keys", body, _Keys))
        keys = {key.key_id: key for key in supplied}
        if set(keys) != set(key_ids) or len(supplied) != len(key_ids):
            raise WireError(f"KME {self._where}: gave other keys than it was asked for")
        return [keys[key_id] for key_id in key_ids]

    # ── one request ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, method: str, peer: SaeId, what: str, body: object, kind: type[T]) -> T:
        """One request; where its answer was lost, the very same again until `retry_s` have passed."""
        request_id = str(uuid.uuid4()) if self._retry_s and body is not None else None
        until_s = time.monotonic() + self._retry_s
        while True:
            try:
                return self._ask_once(method, peer, what, body, kind, request_id)
            except NoAnswerError:
                if request_id is None or time.monotonic() >= until_s:
                    raise
            time.sleep(RETRY_PAUSE_S)

    def _ask_once(self, method: str, peer: SaeId, what: str, body: object, kind: type[T], request_id: str | None) -> T:
        path = f"{self._base}/api/v1/keys/{quote(peer, safe='')}/{what}"
        headers = {"Accept": "application/json"}
        payload = None
        if body is not None:
            payload = json.dumps(body)
            headers["Content-Type"] = "application/json"
        if request_id is not None:
            headers["X-Request-ID"] = request_id
        octets = bytearray()
        try:
            try:
                self._connect()
                self._send(method, path, payload, headers)
                response = self._connection.getresponse()
                self._read(response, octets)
            except BaseException:
                # Whatever it was: what is left of this answer must not be taken for the next one.
                self._connection.close()
                raise
            if response.status != http.client.OK:
                raise self._problem(response, octets, what)
            return msgspec.json.decode(octets, type=kind)
        except ssl.SSLError as problem:
            raise self._tls_problem(problem) from problem
        except (OSError, http.client.HTTPException) as problem:
            raise NoAnswerError(
                f"KME {self._where} does not answer ({_text(problem)}); "
                f"is the node up, and does it take the certificate of {self.own_sae}?",
                NO_CONNECTION_RETRY_S,
            ) from problem
        except (msgspec.MsgspecError, UnicodeDecodeError):
            # Without the cause: a decoder's text could show what it was decoding.
            raise WireError(f"KME {self._where}: its answer to {what} is not what the standard says") from None
        finally:
            octets[:] = bytes(len(octets))

    def _connect(self) -> None:
        """A connection that is alive, to the KME that it should be."""
        sock = self._connection.sock
        if sock is not None:
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            if not poll.poll(0):
                return
            # Nothing was asked, so there is only one thing to hear: the KME has closed.
            self._connection.close()
        self._connection.connect()
        tls = self._connection.sock
        assert isinstance(tls, ssl.SSLSocket)
        if self._kme_id is not None and self._kme_id not in kme_ids_of(tls.getpeercert(binary_form=True) or b""):
            raise AuthenticationFailed(f"KME {self._where}: its certificate is not that of KME {self._kme_id}")

    def _send(self, method: str, path: str, payload: str | None, headers: dict[str, str]) -> None:
        try:
            self._connection.request(method, path, payload, headers)
        except OSError:
            # TLS 1.3 tells a client only after its handshake that its certificate is not taken: if that is why the
            # KME hung up, its alert waits to be read, and reading raises it.
            self._connection.sock.recv(1)
            raise

    def _read(self, response: http.client.HTTPResponse, octets: bytearray) -> None:
        """The whole body, in a buffer that can be wiped."""
        part = bytearray(READ_OCTETS)
        try:
            while count := response.readinto(part):
                octets += memoryview(part)[:count]
                if len(octets) > ANSWER_OCTETS_MAX:
                    raise WireError(f"KME {self._where}: answer of more than {ANSWER_OCTETS_MAX} octets")
        finally:
            part[:] = bytes(len(part))
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)

    def _tls_problem(self, problem: ssl.SSLError) -> QtrunkError:
        if isinstance(problem, ssl.SSLCertVerificationError):
            return AuthenticationFailed(
                f"KME {self._where}: its certificate does not verify ({problem.verify_message}); "
                "check the CA certificate and the host in the URL"
            )
        if "ALERT" in (problem.reason or ""):
            return AuthenticationFailed(
                f"KME {self._where} refuses this connection ({problem.reason}); check the certificate of {self.own_sae}"
            )
        return KeyExhausted(f"KME {self._where}: the connection broke ({_text(problem)})", NO_CONNECTION_RETRY_S)

    def _problem(self, response: http.client.HTTPResponse, octets: bytearray, what: str) -> QtrunkError:
        try:
            message = "".join(filter(str.isprintable, str(json.loads(octets)["message"])[:500]))
        except (ValueError, KeyError, TypeError, RecursionError):
            message = "no message"
        text = f"KME {self._where} answered {response.status}: {message}"
        if response.status == http.client.UNAUTHORIZED:
            return NotAuthorised(text)
        if response.status == http.client.SERVICE_UNAVAILABLE:
            after = response.headers.get("Retry-After", "1")
            # Digits only: the date form of the header is for servers that go on holiday.
            is_seconds = after.isascii() and after.isdigit() and len(after) <= 9
            return KeyExhausted(text, min(int(after), RETRY_S_MAX) if is_seconds else 1)
        if what == "dec_keys" and response.status in (http.client.BAD_REQUEST, http.client.NOT_FOUND):
            return KeyNotFound(text)
        return RequestRefused(text)

    def _keys(self, answer: _Keys) -> list[SuppliedKey]:
        try:
            return [SuppliedKey(key_id=parse_key_id(entry.key_ID), material=Secret(entry.key)) for entry in answer.keys]
        except RequestRefused as problem:
            raise WireError(f"KME {self._where}: a key ID in its answer is no UUID") from problem
        finally:
            for entry in answer.keys:
                entry.key[:] = bytes(len(entry.key))


def _text(problem: Exception) -> str:
    return str(problem) or type(problem).__name__


def _fill_bps(extension: object) -> float:
    """Our own extension of the status; a foreign KME does not have it."""
    found = extension.get("qtrunk_fill_bps") if isinstance(extension, dict) else None
    return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else 0.0
