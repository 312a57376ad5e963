"""SKIP, the Secure Key Integration Protocol that routers fetch keys by (draft-cisco-skip-02), over a `KeySupply`.

    GET /capabilities
    GET /key?remoteSystemID=ID[&size=BITS]      a fresh key for the pair: {"keyId": hex, "key": hex}
    GET /key/{keyId}?remoteSystemID=ID          the same key for the other side
    GET /entropy[?minentropy=BITS]              {"randomStr": hex, "minentropy": BITS}

A router is an SAE, known by its certificate. `remoteSystemID` names its peer: the SAE at the other end, or the key
manager (node) there where exactly one SAE of it shares a demand with the caller. A keyId is the key ID of GS QKD 014 as
32 hexadecimal digits, so a router and a firewall may be the two ends of one key; it is what IKEv2 carries as PPK_ID.

TLS 1.3 with certificates on both sides. The draft's other way, TLS with a pre-shared key, needs CPython 3.13's ssl.
Statuses are the draft's: 400, 404, 405, 500, 503; 401 where the certificate is nobody's.
"""

import logging
from collections.abc import Callable, Sequence

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
from qtrunk.base.ids import KeyId, SaeId, parse_key_id
from qtrunk.base.ports import KeySupply, Random, SuppliedKey

log = logging.getLogger(__name__)

KEY_BITS = 256
ENTROPY_BITS_MAX = 8192
ALGORITHM = "QKD"


class Skip:
    """The SKIP interface of one key manager."""

    def __init__(
        self,
        supply: KeySupply,
        sae_of: Callable[[PeerIdentity], SaeId | None],
        peers: Callable[[SaeId], Sequence[tuple[SaeId, str]]],
        random: Random,
    ) -> None:
        """`peers` says whom an SAE is expected to share keys with: SAE and key manager of each."""
        self._supply = supply
        self._sae_of = sae_of
        self._peers = peers
        self._random = random

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        try:
            caller = self._sae_of(request.identity)
            if caller is None:
                return error(401, "the certificate names no SAE of this key provider")
            if request.method != "GET":
                return error(405, "only GET is allowed", {"Allow": "GET"})
            return await self._answer(caller, request)
        except NotAuthorised as problem:
            log.warning("SKIP: refused %s: %s", request.identity.candidates[:1], problem)
            return error(400, "this system may not have keys with that remote system, or not this key")
        except KeyNotFound as problem:
            log.info("SKIP: %s", problem)
            return error(400, "keyId: no such key here, or it was fetched before")
        except RequestRefused as problem:
            return error(400, str(problem))
        except (KeyExhausted, RouteUnavailable) as problem:
            wait_s = problem.retry_after_s if isinstance(problem, KeyExhausted) else 5
            return error(503, str(problem), {"Retry-After": str(max(1, wait_s))})
        except QtrunkError as problem:
            log.error("SKIP: %s", problem)  # noqa: TRY400 (the text says it all; a trace could hold key)
            return error(500, "the key provider cannot record keys now; nothing was given out")

    async def _answer(self, caller: SaeId, request: Request) -> Response:
        match request.segments:
            case ("capabilities",):
                _only(request)
                return self._capabilities(caller)
            case ("key",):
                _only(request, "remoteSystemID", "size")
                peer, size = self._remote(caller, request), _bits(request, "size", KEY_BITS)
                status = self._supply.status(caller, peer)
                if size % 8 or not status.key_bits_min <= size <= status.key_bits_max:
                    raise RequestRefused(
                        f"size: a multiple of 8 from {status.key_bits_min} to {status.key_bits_max} bits"
                    )
                (key,) = await self._supply.initiate(caller, [peer], 1, size)
                return _key(key)
            case ("key", text):
                _only(request, "remoteSystemID")
                (key,) = await self._supply.collect(caller, self._remote(caller, request), [_key_id(text)])
                return _key(key)
            case ("entropy",):
                _only(request, "minentropy")
                return self._entropy(_bits(request, "minentropy", KEY_BITS))
            case _:
                return error(404, "unknown path: /capabilities, /key, /key/{keyId} or /entropy")

    def _capabilities(self, caller: SaeId) -> Response:
        body = {
            "entropy": True,
            "key": True,
            "algorithm": ALGORITHM,
            "localSystemID": caller,
            "remoteSystemID": [sae for sae, _ in self._peers(caller)],
        }
        return Response(200, msgspec.json.encode(body))

    def _remote(self, caller: SaeId, request: Request) -> SaeId:
        name = request.query.get("remoteSystemID")
        if not name:
            raise RequestRefused("remoteSystemID: is missing")
        known = self._peers(caller)
        at_node = [sae for sae, kme in known if kme == name]
        if name in [sae for sae, _ in known] or not at_node:
            if name == caller:
                raise RequestRefused("remoteSystemID: is the calling system itself")
            return SaeId(name)
        if len(at_node) > 1:
            raise RequestRefused(f"remoteSystemID: several systems at {name}; name one: {', '.join(at_node)}")
        return at_node[0]

    def _entropy(self, bits: int) -> Response:
        if not 1 <= bits <= ENTROPY_BITS_MAX:
            raise RequestRefused(f"minentropy: from 1 to {ENTROPY_BITS_MAX} bits")
        octets = -(-bits // 8)
        text = self._random.octets(octets).hex().encode()
        return Response(200, bytearray(b'{"randomStr":"%s","minentropy":%d}' % (text, 8 * octets)))


def _key(key: SuppliedKey) -> Response:
    """The answer, in one buffer that is wiped after sending; the key's own octets are wiped here."""
    text = key.material.reveal().hex().encode()
    key.material.wipe()
    return Response(200, bytearray(b'{"keyId":"%s","key":"%s"}' % (key.key_id.replace("-", "").encode(), text)))


def _key_id(text: str) -> KeyId:
    if len(text) != 32 or not text.isascii() or not text.isalnum():
        raise RequestRefused("keyId: 32 hexadecimal digits")
    return parse_key_id(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")


def _bits(request: Request, name: str, usual: int) -> int:
    text = request.query.get(name)
    if text is None:
        return usual
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise RequestRefused(f"{name}: an integer is needed")
    return int(text)


def _only(request: Request, *names: str) -> None:
    """What would be ignored is refused: it could be the size that a key must have."""
    unknown = [name for name in request.query if name not in names]
    if unknown:
        raise RequestRefused(f"query parameter {unknown[0][:40]!r} is not known here")
    if request.body:
        raise RequestRefused("body: GET has none")
