"""ETSI GS QKD 014 V1.1.1, the REST key delivery API, as a thin translator to `base.ports.KeySupply`.

    GET        /api/v1/keys/{slave_SAE_ID}/status
    GET, POST  /api/v1/keys/{slave_SAE_ID}/enc_keys
    GET, POST  /api/v1/keys/{master_SAE_ID}/dec_keys

The caller's identity is the SAE in its certificate, nothing else. The path names the other SAE. Wire spellings (master,
slave) live here only; inside we say initiator and targets. Codes are those of the standard: 200, 400, 401, 503; an
answer is always JSON, an error always {"message": ...}. Everything is checked before a key is asked for, so that a
client that repeats a bad request burns none. docs/etsi014.md lists how the text's gaps are read, etsi014.json describes
the interface for machines.
"""

import base64
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from qtrunk.api.https import PeerIdentity, Request, Response, error
from qtrunk.base.errors import (
    KeyExhausted,
    KeyNotFound,
    NotAuthorised,
    QtrunkError,
    RequestRefused,
    RouteUnavailable,
)
from qtrunk.base.ids import KeyId, SaeId, parse_key_id, parse_sae_id
from qtrunk.base.ports import KeySupply, SuppliedKey, SupplyStatus

log = logging.getLogger(__name__)
T = TypeVar("T")

# Messages that the standard fixes word by word (clause 6.4).
NOT_MULTIPLE_OF_8 = "size shall be a multiple of 8"
EXTENSION_UNSUPPORTED = "not all extension_mandatory parameters are supported"
KEYS_NOT_FOUND = "one or more keys specified are not found on KME"
KEY_IDS_MAX = 128
EXTENSIONS_MAX = 64
SUSPICIOUS_KEY_BITS = 128
"""Some boxes count key sizes in octets; a request for keys shorter than this is logged loudly."""


class KeyRequest(msgspec.Struct, frozen=True):
    """Body of Get key; unknown members are ignored."""

    number: int | None = None
    size: int | None = None
    additional_slave_SAE_IDs: list[str] | None = None  # noqa: N815 (the standard's spelling)
    extension_mandatory: list[dict[str, object]] | None = None
    extension_optional: list[dict[str, object]] | None = None


class KeyIdEntry(msgspec.Struct, frozen=True):
    """One key ID of a Get key with key IDs."""

    key_ID: str  # noqa: N815


class KeyIds(msgspec.Struct, frozen=True):
    """Body of Get key with key IDs; unknown members are ignored."""

    key_IDs: list[KeyIdEntry]  # noqa: N815


class Etsi014:
    """The three methods for one KME."""

    def __init__(
        self,
        supply: KeySupply,
        sae_of: Callable[[PeerIdentity], SaeId | None],
        *,
        is_strict: bool = False,
        not_found_status: int = 400,
    ) -> None:
        """`is_strict` refuses an empty additional_slave_SAE_IDs; `not_found_status` 404 suits some clients."""
        if not_found_status not in (400, 404):
            raise ValueError(f"not_found_status {not_found_status}: 400 as in the standard, or 404")
        self._supply = supply
        self._sae_of = sae_of
        self._is_strict = is_strict
        self._not_found_status = not_found_status

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        try:
            return await self._answer(request)
        except NotAuthorised as problem:
            log.warning("014: refused %s: %s", request.identity.candidates[:1], problem)
            return error(401, "this SAE is not authorised for this request")
        except KeyNotFound as problem:
            log.info("014: %s", problem)
            return error(self._not_found_status, KEYS_NOT_FOUND)
        except _ExtensionRefusedError as problem:
            return error(400, str(problem), details=problem.details)
        except RequestRefused as problem:
            return error(400, str(problem))
        except KeyExhausted as problem:
            return error(503, str(problem), {"Retry-After": str(max(1, problem.retry_after_s))})
        except RouteUnavailable as problem:
            return error(503, str(problem), {"Retry-After": "5"})
        except QtrunkError as problem:
            log.error("014: %s", problem)  # noqa: TRY400 (the text says it all; a trace could hold key)
            return error(503, "the key manager cannot record keys now; nothing was given out", {"Retry-After": "5"})

    async def _answer(self, request: Request) -> Response:
        caller = self._sae_of(request.identity)
        if caller is None:
            raise NotAuthorised("the certificate names no SAE of this KME")
        match request.segments:
            case ("api", "v1", "keys", other, "status"):
                self._only(request, "GET")
                _known_parameters(request)
                return self._status(caller, parse_sae_id(other))
            case ("api", "v1", "keys", other, "enc_keys"):
                self._only(request, "GET", "POST")
                return await self._enc_keys(caller, parse_sae_id(other), request)
            case ("api", "v1", "keys", other, "dec_keys"):
                self._only(request, "GET", "POST")
                return await self._dec_keys(caller, parse_sae_id(other), request)
            case _:
                raise RequestRefused("unknown path: /api/v1/keys/{SAE_ID}/status, enc_keys or dec_keys")

    @staticmethod
    def _only(request: Request, *methods: str) -> None:
        if request.method not in methods:
            raise RequestRefused(f"method {request.method} is not allowed here; use {' or '.join(methods)}")

    def _status(self, caller: SaeId, slave: SaeId) -> Response:
        if caller == slave:
            raise RequestRefused("slave SAE ID: the calling SAE cannot be its own slave")
        status = self._supply.status(caller, slave)
        return Response(200, msgspec.json.encode(_status(caller, slave, status)))

    # ── Get key ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _enc_keys(self, caller: SaeId, slave: SaeId, request: Request) -> Response:
        wanted = self._key_request(request)
        _refuse_mandatory_extensions(wanted)
        limits = self._supply.status(caller, slave)
        number = 1 if wanted.number is None else wanted.number
        size = limits.key_bits if wanted.size is None else wanted.size
        if not 1 <= number <= limits.keys_per_request_max:
            raise RequestRefused(f"number: from 1 to {limits.keys_per_request_max}")
        if size % 8:
            raise RequestRefused(NOT_MULTIPLE_OF_8)
        if not limits.key_bits_min <= size <= limits.key_bits_max:
            raise RequestRefused(f"size: from {limits.key_bits_min} to {limits.key_bits_max} bits")
        if size < SUSPICIOUS_KEY_BITS:
            log.warning("014: SAE %s asks for keys of %d bits; is its size in octets?", caller, size)
        targets = [slave, *self._additional(wanted, limits)]
        if caller in targets:
            raise RequestRefused("slave SAE IDs: the calling SAE cannot be its own slave")
        if len(set(targets)) != len(targets):
            raise RequestRefused("additional_slave_SAE_IDs: each slave SAE once")
        try:
            return _container(await self._supply.initiate(caller, targets, number, size))
        except KeyNotFound as problem:
            # The standard's message for an unknown key ID would puzzle a caller that named none.
            raise KeyExhausted(f"the keys were given up before they were ready: {problem}") from problem

    def _key_request(self, request: Request) -> KeyRequest:
        if request.method == "POST":
            _known_parameters(request)
            return _decode(request.body, KeyRequest)
        _known_parameters(request, "number", "size")
        return KeyRequest(number=_integer(request, "number"), size=_integer(request, "size"))

    def _additional(self, wanted: KeyRequest, limits: SupplyStatus) -> list[SaeId]:
        names = wanted.additional_slave_SAE_IDs
        if names == [] and self._is_strict:
            raise RequestRefused("additional_slave_SAE_IDs: must not be empty")
        if len(names or []) > limits.additional_targets_max:
            raise RequestRefused(f"additional_slave_SAE_IDs: at most {limits.additional_targets_max}")
        return [parse_sae_id(name) for name in names or []]

    # ── Get key with key IDs ────────────────────────────────────────────────────────────────────────────────────────

    async def _dec_keys(self, caller: SaeId, master: SaeId, request: Request) -> Response:
        key_ids = self._key_ids(request)
        if master == caller:
            raise RequestRefused("master SAE ID: the calling SAE cannot be its own master")
        if len(set(key_ids)) != len(key_ids):
            raise RequestRefused("key_IDs: each key once")
        return _container(await self._supply.collect(caller, master, key_ids))

    @staticmethod
    def _key_ids(request: Request) -> list[KeyId]:
        if request.method == "GET":
            _known_parameters(request, "key_ID")
            if "key_ID" not in request.query:
                raise RequestRefused("key_ID: is missing")
            return [parse_key_id(request.query["key_ID"])]
        _known_parameters(request)
        entries = _decode(request.body, KeyIds).key_IDs
        if not 1 <= len(entries) <= KEY_IDS_MAX:
            raise RequestRefused(f"key_IDs: from 1 to {KEY_IDS_MAX}")
        return [parse_key_id(entry.key_ID) for entry in entries]


def _refuse_mandatory_extensions(wanted: KeyRequest) -> None:
    """We have no extensions: who insists on one, even on one without a name, is refused; optional ones are ignored."""
    for entries in (wanted.extension_mandatory, wanted.extension_optional):
        if len(entries or []) > EXTENSIONS_MAX:
            raise RequestRefused(f"extensions: at most {EXTENSIONS_MAX}")
    if wanted.extension_mandatory:
        raise _ExtensionRefusedError([name for entry in wanted.extension_mandatory for name in entry])


class _ExtensionRefusedError(RequestRefused):
    """The one refusal with details."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(EXTENSION_UNSUPPORTED)
        self.details = [{"extension_mandatory_unsupported": f"{name[:80]} is not supported"} for name in names]


def _decode(body: bytes, kind: type[T]) -> T:
    """A JSON body of any content type; an empty one is an empty object."""
    try:
        return msgspec.json.decode(body.strip() or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise RequestRefused(f"body: {problem}") from problem


def _status(master: SaeId, slave: SaeId, status: SupplyStatus) -> dict[str, object]:
    return {
        "source_KME_ID": status.source_kme,
        "target_KME_ID": status.target_kme,
        "master_SAE_ID": master,
        "slave_SAE_ID": slave,
        "key_size": status.key_bits,
        "stored_key_count": status.stored_key_count,
        "max_key_count": status.key_count_max,
        "max_key_per_request": status.keys_per_request_max,
        "max_key_size": status.key_bits_max,
        "min_key_size": status.key_bits_min,
        "max_SAE_ID_count": status.additional_targets_max,
        "status_extension": {"qtrunk_fill_bps": status.fill_bps},
    }


def _container(keys: Sequence[SuppliedKey]) -> Response:
    """A key container, built in one buffer that is wiped after sending; the keys' own octets are wiped here."""
    parts = [b'{"keys":[']
    for index, key in enumerate(keys):
        parts.append(b'%s{"key_ID":"%s","key":"' % (b"," if index else b"", key.key_id.encode()))
        parts.append(base64.b64encode(key.material.reveal()))
        parts.append(b'"}')
        key.material.wipe()
    parts.append(b"]}")
    return Response(200, bytearray().join(parts))


def _known_parameters(request: Request, *names: str) -> None:
    """What would be ignored is refused: it could be the number of keys, or SAEs that must get them, too."""
    unknown = [name for name in request.query if name not in names]
    if unknown:
        allowed = f"only {', '.join(names)}; use POST for more" if names else "none is allowed here"
        raise RequestRefused(f"query parameter {unknown[0][:40]!r}: {allowed}")
    if request.method == "GET" and request.body:
        raise RequestRefused("body: GET has none; use POST")


def _integer(request: Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise RequestRefused(f"{name}: an integer is needed")
    return int(text)
