"""The SAE's side of ETSI GS QKD 014 V1.1.1, as a `base.ports.KeySource`. Synchronous, standard library only.

Works against any KME of the standard. Status codes become our errors: 503 KeyExhausted, 401 NotAuthorised, 400 on
dec_keys KeyNotFound, else RequestRefused. A connection that dies while a request is under way is not tried again by
itself: the keys may be gone.
"""

import base64
import binascii
import http.client
import json
import ssl
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

from qtrunk.api.https import client_context
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
    ) -> None:
        parts = urlsplit(kme_url)
        if parts.scheme != "https" or not parts.hostname:
            raise RequestRefused(f"kme_url {kme_url!r}: https://HOST[:PORT] is needed")
        self.own_sae = own_sae
        self._where = f"{parts.hostname}:{parts.port or 443}"
        self._base = parts.path.rstrip("/")
        self._connection = http.client.HTTPSConnection(
            parts.hostname,
            parts.port,
            context=client_context(certificate, private_key, ca_certificate),
            timeout=timeout_s,
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def status(self, peer: SaeId) -> SupplyStatus:
        """Get status."""
        answer = self._ask("GET", peer, "status", None)
        extension = answer.get("status_extension")
        fill = extension.get("qtrunk_fill_bps", 0.0) if isinstance(extension, dict) else 0.0
        try:
            return SupplyStatus(
                source_kme=str(answer["source_KME_ID"]),
                target_kme=str(answer["target_KME_ID"]),
                key_bits=_integer(answer, "key_size"),
                stored_key_count=_integer(answer, "stored_key_count"),
                key_count_max=_integer(answer, "max_key_count"),
                keys_per_request_max=_integer(answer, "max_key_per_request"),
                key_bits_max=_integer(answer, "max_key_size"),
                key_bits_min=_integer(answer, "min_key_size"),
                additional_targets_max=_integer(answer, "max_SAE_ID_count"),
                fill_bps=float(fill),
            )
        except (KeyError, TypeError, ValueError) as problem:
            raise WireError(f"KME {self._where}: its status lacks {problem}") from problem

    def get_keys(self, peer: SaeId, number: int, key_bits: int, also: Sequence[SaeId] = ()) -> list[SuppliedKey]:
        """Get key: `number` fresh keys shared with `peer` (and further targets)."""
        body: dict[str, object] = {"number": number, "size": key_bits}
        if also:
            body["additional_slave_SAE_IDs"] = list(also)
        keys = self._keys(self._ask("POST", peer, "enc_keys", body))
        if len(keys) != number or any(8 * len(key.material) != key_bits for key in keys):
            raise WireError(f"KME {self._where}: gave other keys than {number} of {key_bits} bits")
        return keys

    def get_keys_with_ids(self, peer: SaeId, key_ids: Sequence[KeyId]) -> list[SuppliedKey]:
        """Get key with key IDs: what `peer` was given under these IDs, in that order."""
        body = {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}
        keys = {key.key_id: key for key in self._keys(self._ask("POST", peer, "dec_keys", body))}
        if set(keys) != set(key_ids):
            raise WireError(f"KME {self._where}: gave other keys than it was asked for")
        return [keys[key_id] for key_id in key_ids]

    def _ask(self, method: str, peer: SaeId, what: str, body: object) -> dict[str, object]:
        path = f"{self._base}/api/v1/keys/{quote(peer, safe='')}/{what}"
        headers = {"Accept": "application/json"}
        payload = None
        if body is not None:
            payload = json.dumps(body)
            headers["Content-Type"] = "application/json"
        try:
            self._connection.request(method, path, payload, headers)
            response = self._connection.getresponse()
            octets = response.read(ANSWER_OCTETS_MAX + 1)
        except ssl.SSLCertVerificationError as problem:
            self._connection.close()
            raise AuthenticationFailed(
                f"KME {self._where}: its certificate does not verify ({problem.verify_message})"
            ) from problem
        except (OSError, http.client.HTTPException) as problem:
            self._connection.close()
            raise KeyExhausted(f"KME {self._where} does not answer ({problem}); is the node up?", 2) from problem
        if len(octets) > ANSWER_OCTETS_MAX:
            raise WireError(f"KME {self._where}: answer too long")
        if response.status != http.client.OK:
            raise self._problem(response, octets, what)
        try:
            answer = json.loads(octets)
        except ValueError as problem:
            raise WireError(f"KME {self._where}: its answer is not JSON") from problem
        if not isinstance(answer, dict):
            raise WireError(f"KME {self._where}: its answer is not a JSON object")
        return answer

    def _problem(self, response: http.client.HTTPResponse, octets: bytes, what: str) -> QtrunkError:
        try:
            message = str(json.loads(octets)["message"])[:500]
        except (ValueError, KeyError, TypeError):
            message = "no message"
        text = f"KME {self._where} answered {response.status}: {message}"
        if response.status == http.client.UNAUTHORIZED:
            return NotAuthorised(text)
        if response.status == http.client.SERVICE_UNAVAILABLE:
            after = response.headers.get("Retry-After", "1")
            return KeyExhausted(text, int(after) if after.isdigit() else 1)
        return KeyNotFound(text) if what == "dec_keys" else RequestRefused(text)

    def _keys(self, answer: dict[str, object]) -> list[SuppliedKey]:
        entries = answer.get("keys")
        if not isinstance(entries, list):
            raise WireError(f"KME {self._where}: its answer holds no keys")
        try:
            return [
                SuppliedKey(
                    key_id=parse_key_id(entry["key_ID"]),
                    material=Secret(base64.b64decode(entry["key"], validate=True)),
                )
                for entry in entries
            ]
        except (TypeError, KeyError, binascii.Error) as problem:
            raise WireError(f"KME {self._where}: a key in its answer is malformed") from problem


def _integer(answer: dict[str, object], name: str) -> int:
    value = answer[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(name)
    return value
