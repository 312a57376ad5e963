"""ETSI GS QKD 020 V1.1.1, the interface between key managers of two networks in one protected room: the server.

    GET   /kmapi/versions
    POST  /kmapi/v1/ext_keys         keys for our SAEs
    POST  /kmapi/v1/ext_keys/ack     what became of keys (or of a void) that we sent
    POST  /kmapi/v1/ext_keys/void    keys to be taken back

One server has one peer, known by its certificate. With `ack_callback_url` an answer is 202 and acks follow
(asynchronous mode), without it the answer waits for what became of the keys (synchronous mode), up to `SYNCHRONOUS_S`.
A 400 or 401 promises that no key of the request is held here: where one is, from whatever earlier request, the answer
is 503 instead. etsi020.json describes the interface for machines, docs/etsi020.md how the text is read.
"""

import hmac
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from qtrunk.api import words020 as words
from qtrunk.api.https import PeerIdentity, Request, Response
from qtrunk.api.words020 import ProblemError
from qtrunk.base.errors import KeyNotFound, QtrunkError
from qtrunk.base.ids import KeyId, SaeId, role_of
from qtrunk.kms.interwork.records import Ack, AckStatus, Collision, Consignment, VoidRequest

log = logging.getLogger(__name__)

_URL = re.compile(r"[!-~]+")
SYNCHRONOUS_S = 20.0
RETRY_AFTER_S = 5


class Exchange(Protocol):
    """What stands behind the interface. QtrunkError where something cannot be recorded: then nothing was done."""

    def accept(self, consignment: Consignment) -> None:
        """Take keys for our SAEs, durably. Collision: a key ID means another key here."""

    def void(self, request: VoidRequest) -> tuple[KeyId, ...]:
        """Take keys back, durably: which ones. Collision: one came with another initiator or for other targets."""

    def acked(self, peer: str, acks: Sequence[Ack]) -> None:
        """What a peer says of keys. KeyNotFound: it is about none that we know."""

    async def outcomes(
        self, peer: str, initiator: SaeId, key_ids: Sequence[KeyId], within_s: float
    ) -> Mapping[KeyId, AckStatus] | None:
        """What became of keys; None where that is not known of all in time."""

    def is_held(self, key_ids: Sequence[KeyId]) -> bool:
        """Whether any of these IDs is associated with a key here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The foreign key manager and what we know of its network."""

    kme: str
    """Its KME ID, as its certificate has it."""
    fingerprint: str
    """SHA-256 of its certificate; empty: any that TLS verifies and that has the KME ID."""
    callback_host: str
    """HOST:PORT that its callback URLs must have."""
    is_theirs: Callable[[SaeId], bool]
    is_ours: Callable[[SaeId], bool]


def is_peer(peer: Peer, identity: PeerIdentity) -> bool:
    """Whether a certificate that TLS has verified is the peer's: by `urn:…:kme:ID`, without any such by common name."""
    roles = [found for found in map(role_of, identity.uris) if found]
    named = [name for role, name in roles if role == "kme"]
    if not roles:
        named = [claim[3:] for rank in identity.claims for claim in rank if claim.startswith("cn:")]
    if peer.kme not in named:
        return False
    return not peer.fingerprint or hmac.compare_digest(peer.fingerprint, identity.fingerprint)


class Etsi020:
    """The interface towards one peer."""

    def __init__(self, peer: Peer, exchange: Exchange) -> None:
        self._peer = peer
        self._exchange = exchange

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        try:
            if not is_peer(self._peer, request.identity):
                log.warning("interworking: a certificate of %s is not the peer's", request.identity.candidates[:1])
                raise ProblemError(401, "unauthorized", "the certificate is not the one of this interface's peer")
            return await self._answer(request)
        except ProblemError as error:
            if error.status in (400, 401) and self._exchange_holds(request):
                title = f"{error.title}; but a key of that ID is held here"
                error = ProblemError(503, error.slug, title, error.details)
            return words.problem(error, {"Retry-After": str(RETRY_AFTER_S)} if error.status == 503 else {})
        except QtrunkError as error:
            log.error("interworking: %s", error)  # noqa: TRY400 (the text says it all; a trace could hold key)
            return words.refusal(503, "this key manager cannot record that now", {"Retry-After": str(RETRY_AFTER_S)})

    async def _answer(self, request: Request) -> Response:
        match request.method, "/" + "/".join(request.segments):
            case "GET", words.VERSIONS_PATH:
                found = words.Versions(versions=["v1"], capabilities=[words.SYNCHRONOUS])
                return _json(200, msgspec.json.encode(found))
            case "POST", words.EXT_KEYS_PATH:
                return await self._ext_keys(request)
            case "POST", words.ACK_PATH:
                return self._ack(request)
            case "POST", words.VOID_PATH:
                return await self._void(request)
            case _:
                text = f"GET {words.VERSIONS_PATH}; POST {words.EXT_KEYS_PATH}, {words.ACK_PATH} or {words.VOID_PATH}"
                raise ProblemError(400, "invalid-parameter", "unknown method or path", {"path": text})

    def _exchange_holds(self, request: Request) -> bool:
        """Whether a key that the request names is held here; one that cannot be read names none."""
        try:
            named = msgspec.json.decode(request.body, type=_Names)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return False
        texts = [*(named.key_ids or ()), *(key.key_id for key in named.keys or ())]
        texts = [text.lower() for text in texts if isinstance(text, str)]
        try:
            return bool(texts) and self._exchange.is_held([KeyId(text) for text in texts])
        except QtrunkError:
            # Nothing may be promised that cannot be looked up.
            return True

    # ── ext_keys ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _ext_keys(self, request: Request) -> Response:
        container = words.decode(request.body, words.ExtKeys)
        words.require(container, "keys", "initiator_sae_id", "target_sae_ids")
        keys, extensions = words.keys_of(container)
        initiator, targets = self._ends(container.initiator_sae_id or "", container.target_sae_ids or [])
        callback = self._callback(container.ack_callback_url)
        if container.extension_mandatory:
            unknown = {name[:80]: "is not supported" for name in list(container.extension_mandatory)[:16]}
            raise ProblemError(503, "unsupported-mandatory-extension", "no mandatory extension is supported", unknown)
        consignment = Consignment(
            peer=self._peer.kme,
            keys=keys,
            initiator=initiator,
            targets=targets,
            callback=callback,
            extensions=extensions,
        )
        try:
            self._exchange.accept(consignment)
        except Collision as error:
            raise ProblemError(400, "invalid-parameter", str(error), {"key_id": "belongs to another key"}) from None
        if callback:
            return _json(202, b"{}")
        return await self._waited(initiator, targets, [key.key_id for key in keys])

    def _ends(self, initiator_text: str, target_texts: Sequence[str]) -> tuple[SaeId, tuple[SaeId, ...]]:
        (initiator,) = words.saes_of([initiator_text], "initiator_sae_id")
        targets = words.saes_of(target_texts, "target_sae_ids")
        strange = [target for target in targets if not self._peer.is_ours(target)]
        back = [target for target in strange if self._peer.is_theirs(target)]
        if back or not self._peer.is_theirs(initiator):
            text = "keys go from SAEs of the peer's network to SAEs of this one, not back and not through"
            raise ProblemError(400, "key-routing-error", text, {"invalid_routing": text})
        if strange:
            text = f"{len(strange)} of {len(targets)} targets are no SAEs of this network"
            raise ProblemError(400, "key-routing-error", text, {"target_sae_id_not_recognized": ", ".join(strange)})
        return initiator, targets

    def _callback(self, url: str | None) -> str:
        """Where acks go: to the peer that asked and nowhere else, or anybody could be sent requests by us."""
        if url is None:
            return ""
        try:
            parts = urlsplit(url)
            is_fit = parts.scheme == "https" and parts.netloc.lower() == self._peer.callback_host.lower()
        except ValueError:
            is_fit = False
        if not is_fit or len(url) > words.URL_CHARACTERS_MAX or not _URL.fullmatch(url):
            rule = f"https://{self._peer.callback_host}/…, at most {words.URL_CHARACTERS_MAX} characters"
            raise words.wrong("ack_callback_url", rule)
        return url

    async def _waited(self, initiator: SaeId, targets: tuple[SaeId, ...], key_ids: Sequence[KeyId]) -> Response:
        """Synchronous mode."""
        found = await self._exchange.outcomes(self._peer.kme, initiator, key_ids, SYNCHRONOUS_S)
        if found is None:
            raise ProblemError(408, "timeout", "it is not known yet what became of all keys; ask again, or void them")
        by_status: dict[AckStatus, list[KeyId]] = {}
        for key_id, status in found.items():
            by_status.setdefault(status, []).append(key_id)
        acks = [
            Ack(status=status, key_ids=tuple(some), initiator=initiator, targets=targets)
            for status, some in by_status.items()
        ]
        return _json(200, words.acks_json(acks))

    # ── ack and void ────────────────────────────────────────────────────────────────────────────────────────────────

    def _ack(self, request: Request) -> Response:
        acks = words.acks_of(words.decode(request.body, list[words.AckContainer], "ack-not-understood"))
        try:
            self._exchange.acked(self._peer.kme, acks)
        except KeyNotFound as error:
            raise ProblemError(400, "key-not-present", str(error)) from None
        return _json(200, b"")

    async def _void(self, request: Request) -> Response:
        slug = "void-request-not-understood"
        container = words.decode(request.body, words.VoidContainer, slug)
        words.require(container, "key_ids", "initiator_sae_id", "target_sae_ids")
        key_ids = words.key_ids_of(container.key_ids or [], "key_ids")
        (initiator,) = words.saes_of([container.initiator_sae_id or ""], "initiator_sae_id")
        targets = words.saes_of(container.target_sae_ids or [], "target_sae_ids")
        callback = self._callback(container.ack_callback_url)
        if not key_ids and container.all_confirmation is not True:
            text = "no key IDs: all keys of these SAEs would be voided, which all_confirmation must confirm"
            raise ProblemError(400, "no-key-ids-or-confirmation", text, {"no_key_ids_or_confirmation": text})
        void = VoidRequest(
            peer=self._peer.kme, key_ids=key_ids, initiator=initiator, targets=targets, callback=callback
        )
        try:
            voided = self._exchange.void(void)
        except Collision as error:
            # Those keys are held: this is no case for a 400.
            raise ProblemError(503, "invalid-parameter", str(error)) from None
        return _json(202, b"{}") if callback else await self._waited(initiator, targets, voided)


class _NamedKey(msgspec.Struct):
    key_id: object = None


class _Names(msgspec.Struct):
    """The key IDs of any request, whatever else is wrong with it."""

    keys: list[_NamedKey] | None = None
    key_ids: list[object] | None = None


def _json(status: int, body: bytes) -> Response:
    return Response(status, body, {"Content-Type": words.JSON})
