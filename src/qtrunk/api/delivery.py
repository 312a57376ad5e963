"""Key delivery over `base.ports.KeySupply`, whatever the edition of ETSI GS QKD 014 on the wire.

Here is what both editions share: who asks, what is checked before a key is asked for, the key container, and the four
statuses 200, 400, 401, 503. An edition (`etsi014`, `etsi014v2`) reads paths and bodies and has its own words for the
two roles. Everything is checked before a key is asked for, so that a client that repeats a bad request burns none.

Where the retry window is open, a request's name goes to the supply: 16 octets of SHA-256 over the caller's certificate,
the header X-Request-ID and the whole request: the same name with another body is another request.
"""

import hashlib
import logging
import re
import time
from abc import ABC, abstractmethod
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
from qtrunk.base.ports import KeySupply, SuppliedKey, SuppliedKeys, SupplyStatus
from qtrunk.kernels import key_container
from qtrunk.topology import KeyApi

log = logging.getLogger(__name__)
T = TypeVar("T")

# Messages that the standard fixes word by word (V1.1.1 clause 6.4).
NOT_MULTIPLE_OF_8 = "size shall be a multiple of 8"
EXTENSION_UNSUPPORTED = "not all extension_mandatory parameters are supported"
KEYS_NOT_FOUND = "one or more keys specified are not found on KME"
KEY_IDS_MAX = 128
EXTENSIONS_MAX = 64
SUSPICIOUS_KEY_BITS = 128
"""Some boxes count key sizes in octets; a request for keys shorter than this is logged loudly."""
LIMITS_FRESH_S = 1.0
"""How long the limits of a pair of SAEs, which hardly ever change, are taken for the same."""
KEPT_LIMITS_MAX = 4096
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,64}")


class KeyIdEntry(msgspec.Struct, frozen=True):
    """One key ID of a request for keys by ID."""

    key_ID: str  # noqa: N815


class KeyDelivery(ABC):
    """The methods of one KME in the words of one edition."""

    initiator_word: str
    target_word: str

    def __init__(
        self,
        supply: KeySupply,
        sae_of: Callable[[PeerIdentity], SaeId | None],
        settings: KeyApi | None = None,
    ) -> None:
        """`sae_of` is asked at every request, so that an SAE whose registration ends is out at once."""
        self._supply = supply
        self._sae_of = sae_of
        self._settings = settings or KeyApi()
        if self._settings.not_found_status not in (400, 404):
            raise ValueError(f"not_found_status {self._settings.not_found_status}: 400 as in the standard, or 404")
        self._limits: dict[tuple[SaeId, SaeId], tuple[float, SupplyStatus]] = {}

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        try:
            return await self._answer(self.caller(request.identity), request)
        except QtrunkError as problem:
            return self.refusal(request.identity, problem)

    def caller(self, identity: PeerIdentity) -> SaeId:
        """The SAE that asks; NotAuthorised: none of ours."""
        caller = self._sae_of(identity)
        if caller is None:
            raise NotAuthorised("the certificate names no SAE of this KME")
        return caller

    def refusal(self, identity: PeerIdentity, problem: QtrunkError) -> Response:
        """The answer to a request that ended so."""
        match problem:
            case NotAuthorised():
                log.warning("014: refused %s: %s", identity.candidates[:1], problem)
                return error(401, "this SAE is not authorised for this request")
            case KeyNotFound():
                log.info("014: %s", problem)
                return error(self._settings.not_found_status, KEYS_NOT_FOUND)
            case _ExtensionRefusedError():
                return error(400, str(problem), details=problem.details)
            case RequestRefused():
                return error(400, str(problem))
            case KeyExhausted():
                return error(503, str(problem), {"Retry-After": str(max(1, problem.retry_after_s))})
            case RouteUnavailable():
                return error(503, str(problem), {"Retry-After": "5"})
            case _:
                # The text says it all; a trace could hold key.
                log.error("014: %s", problem)
                text = "the key manager cannot record keys now; nothing was given out"
                return error(503, text, {"Retry-After": "5"})

    @abstractmethod
    async def _answer(self, caller: SaeId, request: Request) -> Response:
        """Read the request and do it."""

    @staticmethod
    def only(request: Request, *methods: str) -> None:
        """Refuse every other method."""
        if request.method not in methods:
            raise RequestRefused(f"method {request.method} is not allowed here; use {' or '.join(methods)}")

    # ── what can be asked for ───────────────────────────────────────────────────────────────────────────────────────

    def status(self, caller: SaeId, target: SaeId) -> tuple[SupplyStatus, dict[str, object]]:
        """Supply towards a target, and the members of status_extension."""
        if caller == target and not self._settings.loopback_test:
            raise RequestRefused(f"{self.target_word} SAE ID: the calling SAE cannot be its own {self.target_word}")
        status = self._supply.status(caller, target)
        extension: dict[str, object] = {"qtrunk_fill_bps": status.fill_bps}
        if self._settings.loopback_test:
            extension["qtrunk_loopback_test"] = "an SAE may be its own peer here: such keys protect nothing"
        return status, extension

    async def initiate(
        self,
        caller: SaeId,
        target: SaeId,
        number: float | None,
        size: float | None,
        additional: Sequence[str] | None,
        request: Request,
    ) -> Response:
        """Fresh keys in a container."""
        targets, number, size = self.checked(caller, target, number, size, additional)
        try:
            if self._settings.retry_window_s:
                keys = await self._supply.initiate(caller, targets, number, size, request_id=_request_id(request))
            else:
                keys = await self._supply.initiate(caller, targets, number, size)
        except KeyNotFound as problem:
            # The standard's message for an unknown key ID would puzzle a caller that named none.
            raise KeyExhausted(f"the keys were given up before they were ready: {problem}") from problem
        return container(keys)

    def checked(
        self, caller: SaeId, target: SaeId, number: float | None, size: float | None, additional: Sequence[str] | None
    ) -> tuple[list[SaeId], int, int]:
        """Targets, number of keys and bits of each that a request for fresh keys means; else what is wrong with it."""
        limits = self._limits_of(caller, target)
        number = 1 if number is None else _whole("number", number)
        size = limits.key_bits if size is None else _whole("size", size)
        if not 1 <= number <= limits.keys_per_request_max:
            raise RequestRefused(f"number: from 1 to {limits.keys_per_request_max}")
        if size % 8:
            raise RequestRefused(NOT_MULTIPLE_OF_8)
        if not limits.key_bits_min <= size <= limits.key_bits_max:
            raise RequestRefused(f"size: from {limits.key_bits_min} to {limits.key_bits_max} bits")
        if size < SUSPICIOUS_KEY_BITS:
            log.warning("014: SAE %s asks for keys of %d bits; is its size in octets?", caller, size)
        targets = [target] if additional is None else [target, *self._additional(additional, limits)]
        if caller in targets and not self._settings.loopback_test:
            raise RequestRefused(f"{self.target_word} SAE IDs: the calling SAE cannot be its own {self.target_word}")
        if len(set(targets)) != len(targets):
            raise RequestRefused(f"additional_{self.target_word}_SAE_IDs: each {self.target_word} SAE once")
        return targets, number, size

    async def collect(self, caller: SaeId, initiator: SaeId, key_ids: Sequence[str], request: Request) -> Response:
        """The keys of these IDs in a container."""
        wanted = self.checked_ids(caller, initiator, key_ids)
        if self._settings.retry_window_s:
            return container(await self._supply.collect(caller, initiator, wanted, request_id=_request_id(request)))
        return container(await self._supply.collect(caller, initiator, wanted))

    def checked_ids(self, caller: SaeId, initiator: SaeId, key_ids: Sequence[str]) -> list[KeyId]:
        """The IDs that a request for known keys names; RequestRefused where something is wrong with it."""
        if not 1 <= len(key_ids) <= KEY_IDS_MAX:
            raise RequestRefused(f"key_IDs: from 1 to {KEY_IDS_MAX}")
        wanted: list[KeyId] = [parse_key_id(key_id) for key_id in key_ids]
        if initiator == caller and not self._settings.loopback_test:
            word = self.initiator_word
            raise RequestRefused(f"{word} SAE ID: the calling SAE cannot be its own {word}")
        if len(set(wanted)) != len(wanted):
            raise RequestRefused("key_IDs: each key once")
        return wanted

    def _additional(self, names: Sequence[str], limits: SupplyStatus) -> list[SaeId]:
        member = f"additional_{self.target_word}_SAE_IDs"
        if not names and self._settings.strict:
            raise RequestRefused(f"{member}: must not be empty")
        if len(names) > limits.additional_targets_max:
            raise RequestRefused(f"{member}: at most {limits.additional_targets_max}")
        return [parse_sae_id(name) for name in names]

    def _limits_of(self, caller: SaeId, target: SaeId) -> SupplyStatus:
        """Limits of a request; to ask the supply each time would work out a route for every key."""
        now_s = time.monotonic()
        kept = self._limits.get((caller, target))
        if kept is not None and kept[0] > now_s:
            return kept[1]
        if len(self._limits) >= KEPT_LIMITS_MAX:
            self._limits.clear()
        limits = self._supply.status(caller, target)
        self._limits[caller, target] = now_s + LIMITS_FRESH_S, limits
        return limits


def refuse_mandatory_extensions(
    mandatory: Sequence[dict[str, object]] | None, optional: Sequence[dict[str, object]] | None
) -> None:
    """We have no extensions: who insists on one, even on one without a name, is refused; optional ones are ignored."""
    for entries in (mandatory, optional):
        if len(entries or ()) > EXTENSIONS_MAX:
            raise RequestRefused(f"extensions: at most {EXTENSIONS_MAX}")
    if mandatory:
        raise _ExtensionRefusedError([name for entry in mandatory for name in entry])


class _ExtensionRefusedError(RequestRefused):
    """The one refusal with details."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(EXTENSION_UNSUPPORTED)
        self.details = [{"extension_mandatory_unsupported": f"{name[:80]} is not supported"} for name in names]


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """A JSON body of any content type; an empty one is an empty object. RequestRefused where it does not fit."""
    try:
        return decoder.decode(body.strip() or b"{}")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise RequestRefused(f"body: {problem}") from problem


def _whole(name: str, value: float) -> int:
    """An integer; JSON knows one kind of number, so 256.0 is one, too (RFC 8259 clause 6)."""
    if isinstance(value, int):
        return value
    if not value.is_integer():
        raise RequestRefused(f"{name}: an integer is needed")
    return int(value)


def known_parameters(request: Request, *names: str) -> None:
    """What would be ignored is refused: it could be the number of keys, or SAEs that must get them, too."""
    for name in request.query:
        if name not in names:
            allowed = f"only {', '.join(names)}; use POST for more" if names else "none is allowed here"
            raise RequestRefused(f"query parameter {name[:40]!r}: {allowed}")
    if request.body and request.method == "GET":
        raise RequestRefused("body: GET has none; use POST")


_CONTAINER_OCTETS, _ENTRY_OCTETS = 16, 72
"""What JSON puts around keys, and around one key, at most."""
_ENCODER = msgspec.json.Encoder()


def container(keys: Sequence[SuppliedKey]) -> Response:
    """A key container, built in one buffer that is wiped after sending; the keys' own octets are wiped here."""
    if isinstance(keys, SuppliedKeys):
        with keys.material.reveal() as material:
            whole = key_container(keys.ids, material, keys.key_octets)
        keys.material.wipe()
        return Response(200, whole)
    entries = [{"key_ID": key.key_id, "key": key.material.reveal()} for key in keys]
    # Long enough from the start: a buffer that grows leaves what it held behind.
    octets = bytearray(_CONTAINER_OCTETS + sum(_ENTRY_OCTETS + 4 * len(key.material) // 3 for key in keys))
    _ENCODER.encode_into({"keys": entries}, octets, 0)
    # Views first: a secret that someone still reads is not wiped for others' use.
    del entries
    for key in keys:
        key.material.wipe()
    return Response(200, octets)


def _request_id(request: Request) -> bytes | None:
    """The request's name for the supply; None where the client gave none."""
    if request.request_id is None:
        return None
    if not _REQUEST_ID.fullmatch(request.request_id):
        raise RequestRefused("header X-Request-ID: 1 to 64 visible characters, such as a UUID")
    # Only the body, which comes last, may hold a line break: no two requests look the same here.
    parts = (
        request.identity.fingerprint.encode(),
        request.request_id,
        request.method.encode(),
        request.target,
        request.body,
    )
    return hashlib.sha256(b"\n".join(parts)).digest()[:16]
