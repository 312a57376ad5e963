"""The own KME of a vendor that gives keys by key stream and index: ETSI GS QKD 004 V2.1.1 (`api.client004`).

Alice's end opens a stream with a NULL KSID and takes the chunks 0, 1, 2, …; Bob's end joins the KSID that he is told
and takes the chunks that are offered. A key ID is a UUID made of the KSID's hash (12 octets) and the index (4), so that
an offer's tag covers the stream as well and nothing of one stream passes for another's. An index is asked for once:
only after an answer that says that nothing was taken (2, 3, 4, 6, 8) is it asked for again. After a restart of either
end's KME or node, after a block that Bob's KME did not give, or without key for STALE_S, Alice's end opens a fresh one.

    status  at OPEN_CONNECT            at GET_KEY
    0, 1    the stream stands          0: the key
    2                                  no key now (Alice), not there (Bob)
    3                                  Bob's end has not come, or the stream is lost: a fresh one
    4, 5    refused                    4: refused
    6       no key now                 no key now
    7       taken if the chunks have the right size, else closed and refused
    8                                  asked again, once, with the size that is named
"""

import hashlib
import logging
import uuid
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import quote, urlsplit

from qtrunk.api import frames004
from qtrunk.api.client import NoAnswerError
from qtrunk.api.client004 import Client004, OpenedStream, StreamKey
from qtrunk.base.errors import (
    AuthenticationFailed,
    KeyExhausted,
    KeyNotFound,
    QtrunkError,
    RequestRefused,
    WireError,
)
from qtrunk.base.ids import KeyId
from qtrunk.base.ports import Clock, SuppliedKey
from qtrunk.kms.streamnotes import JSON, Qos, Status
from qtrunk.kms.vendorend import Collect, Fetch
from qtrunk.node.config import VendorCredentials, vendor_files
from qtrunk.stages import Role
from qtrunk.topology import Link, VendorEnd

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

STALE_S = 60.0
"""A stream that gave nothing for so long is left for a fresh one."""
TTL_S = 3600
"""How long a KME keeps a chunk that Bob's end has not taken."""
CHUNKS_PER_ANSWER = 64
"""So many keys are handed on at once, so that a slow KME does not hold back what is there."""
METADATA_OCTETS = 1024
INDEX_END = 1 << 32
_PREFIX_OCTETS = 12


def key_id_of(ksid: bytes, index: int) -> KeyId:
    """The name of one chunk of one stream."""
    return KeyId(str(uuid.UUID(bytes=_prefix(ksid) + index.to_bytes(4, "big"))))


def index_of(ksid: bytes, key_id: KeyId) -> int | None:
    """The chunk's index; None where the key ID is of another stream."""
    octets = uuid.UUID(key_id).bytes
    return int.from_bytes(octets[_PREFIX_OCTETS:], "big") if octets[:_PREFIX_OCTETS] == _prefix(ksid) else None


def _prefix(ksid: bytes) -> bytes:
    return hashlib.sha256(b"qtrunk vendor stream|" + ksid).digest()[:_PREFIX_OCTETS]


def _uri(end: VendorEnd) -> str:
    return end.uri or f"qkd://{quote(end.sae, safe='')}"


class StreamKme:
    """The own KME, as one end of a link asks it; for one thread, but for `renew`."""

    def __init__(self, link: Link, role: Role, credentials: VendorCredentials | None, clock: Clock) -> None:
        """ConfigError where neither the topology nor `credentials` of the node's configuration name the PEM files."""
        assert link.vendor is not None
        self._source = source = link.vendor
        self._role = role
        self._uris = _uri(source.alice), _uri(source.bob)
        own = source.alice if role is Role.ALICE else source.bob
        self._who = f"SAE {own.sae}"
        parts = urlsplit(own.kme_url)
        self._host, self._port = parts.hostname or "", parts.port or frames004.PORT
        self._files = vendor_files(link, role, credentials)
        self._clock = clock
        self._client: Client004 | None = None
        self._ksid: bytes | None = None
        self._told: bytes | None = None
        """Bob's end: the stream that shall be joined."""
        self._is_stale = False
        self._has_given = False
        self._index = 0
        """Alice's end: the next one."""
        self._good_s = 0.0
        """When the stream gave its last key, or was opened."""

    @property
    def is_connected(self) -> bool:
        """Whether the stream stands, as far as this end knows, or there is none for Bob's end to join yet."""
        if self._role is Role.BOB and self._told is None:
            return True
        return self._client is not None and self._ksid is not None and not self._is_stale

    @property
    def stream(self) -> bytes:
        """The stream that the peer's end shall join; empty where there is none to tell of."""
        return self._ksid or b"" if self._role is Role.ALICE else b""

    def renew(self) -> None:
        """The stream is of no use to the other end: the next request opens a fresh one. From any thread."""
        self._is_stale = self._role is Role.ALICE

    def join(self, ksid: bytes) -> None:
        """Bob's end: this is the stream now; opened at once, and by later requests where that fails."""
        if ksid != self._told:
            self.end()
            self._told = ksid
        self.connect()

    def ask(self, effect: Fetch | Collect) -> list[SuppliedKey]:
        """Some of what is asked for, in order; an error where the first cannot be had."""
        self.connect()
        keys: list[SuppliedKey] = []
        wanted = effect.key_ids if isinstance(effect, Collect) else (None,) * effect.number
        for key_id in wanted[:CHUNKS_PER_ANSWER]:
            try:
                keys.append(self._fetch() if key_id is None else self._collect(key_id))
            except (QtrunkError, OSError):
                if not keys:
                    raise
                # What came is good; the next request meets the trouble again.
                break
        return keys

    def connect(self) -> None:
        """See that the stream stands."""
        if self._role is Role.ALICE and self._ksid is not None and (self._is_stale or self._index == INDEX_END):
            self.end()
        self._is_stale = False
        if self._ksid is not None:
            return
        if self._role is Role.BOB and self._told is None:
            raise KeyExhausted(f"{self._who}: the peer has not told of its key stream yet")
        self._ksid = self._checked(self._call(lambda kme: kme.open(*self._uris, self._qos(), self._told)))
        self._index, self._has_given, self._good_s = 0, False, self._clock.monotonic_s()

    def end(self) -> None:
        """Close the stream; one that cannot be closed runs out at the KME by itself."""
        ksid, self._ksid = self._ksid, None
        if ksid is None:
            return
        try:
            self._call(lambda kme: kme.close(ksid))
        except (QtrunkError, OSError) as error:
            log.info("%s: a key stream was not closed: %s", self._who, error)

    def close(self) -> None:
        """Forget the connection; the stream stays."""
        if self._client is not None:
            self._client.disconnect()
            self._client = None

    # ── one stream ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _call(self, work: Callable[[Client004], _Answer]) -> _Answer:
        """One request. After a failure on the way the files are read anew: certificates are renewed."""
        try:
            if self._client is None:
                certificate, private_key, ca_certificate = self._files
                self._client = Client004(
                    host=self._host,
                    port=self._port,
                    certificate=certificate,
                    private_key=private_key,
                    ca_certificate=ca_certificate,
                    timeout_s=self._source.timeout_s,
                )
            return work(self._client)
        except KeyExhausted as error:
            self.close()
            raise NoAnswerError(str(error)) from error
        except (AuthenticationFailed, WireError, OSError):
            self.close()
            raise

    def _qos(self) -> Qos:
        return Qos(
            key_chunk_size=self._source.key_bits // 8,
            max_bps=0,
            min_bps=0,
            jitter=0,
            priority=0,
            timeout=int(self._source.timeout_s * 1000),
            ttl=TTL_S,
            metadata_mimetype=JSON,
        )

    def _checked(self, opened: OpenedStream) -> bytes:
        if opened.status is Status.TIMEOUT:
            raise KeyExhausted(f"{self._who}: the peer's end did not join the key stream in time (status 6)")
        if opened.status not in (Status.SUCCESS, Status.PEER_NOT_YET_CONNECTED, Status.QOS_NOT_MET):
            raise RequestRefused(
                f"{self._who}: the KME opens no key stream from {self._uris[0]} to {self._uris[1]} "
                f"(status {opened.status.value})"
            )
        if opened.qos is None or (self._told is not None and opened.ksid != self._told):
            raise WireError(f"{self._who}: the KME opened another key stream than it was asked for")
        octets = opened.qos.key_chunk_size
        if 8 * octets != self._source.key_bits:
            self._call(lambda kme: kme.close(opened.ksid))
            raise RequestRefused(
                f"{self._who}: the KME gives chunks of {octets} octets; "
                f"key_bits of the link's vendor table is {self._source.key_bits}"
            )
        return opened.ksid

    def _fetch(self) -> SuppliedKey:
        assert self._ksid is not None
        if self._index == INDEX_END:
            raise KeyExhausted(f"{self._who}: the key stream has no index left; a fresh one is opened")
        index = self._index
        # Whatever becomes of the call: an answer that was lost may have had the key.
        self._index = index + 1
        got = self._get(index)
        if got.status is not Status.SUCCESS:
            self._index = index
            self._leave_if_lost(got.status)
        return self._key(index, got)

    def _collect(self, key_id: KeyId) -> SuppliedKey:
        assert self._ksid is not None
        index = index_of(self._ksid, key_id)
        if index is None:
            raise KeyNotFound(f"{self._who}: the peer offers keys of a key stream that is not the one it told of")
        got = self._get(index)
        if got.status is Status.PEER_NOT_CONNECTED:
            self._ksid = None  # lost, or not joined yet: the next request opens it again
        if got.status in (Status.INSUFFICIENT_KEY, Status.PEER_NOT_CONNECTED):
            raise KeyNotFound(f"{self._who}: the KME has no chunk {index} of the key stream (status {got.status})")
        return self._key(index, got)

    def _get(self, index: int) -> StreamKey:
        assert self._ksid is not None
        ksid = self._ksid
        got = self._call(lambda kme: kme.get_key(ksid, index, METADATA_OCTETS))
        if got.status is Status.METADATA_TOO_SMALL:
            size = min(got.metadata_size, frames004.METADATA_OCTETS_MAX)
            got = self._call(lambda kme: kme.get_key(ksid, index, size))
        return got

    def _key(self, index: int, got: StreamKey) -> SuppliedKey:
        match got.status:
            case Status.SUCCESS if self._ksid is not None and got.key is not None:
                self._has_given, self._good_s = True, self._clock.monotonic_s()
                return SuppliedKey(key_id=key_id_of(self._ksid, index), material=got.key)
            case Status.INSUFFICIENT_KEY | Status.TIMEOUT:
                raise KeyExhausted(f"{self._who}: the KME has no key now (status {got.status.value})")
            case Status.PEER_NOT_CONNECTED:
                raise KeyExhausted(f"{self._who}: the peer's end is not at the key stream (status 3)")
            case Status.NO_CONNECTION:
                raise RequestRefused(f"{self._who}: the KME has no way to the peer's end (status 4)")
            case status:
                raise WireError(
                    f"{self._who}: the KME answered GET_KEY with status {status.value}, after which none fits"
                )

    def _leave_if_lost(self, status: Status) -> None:
        """A stream that has given key and says that nobody is there is lost; so is one that gives none for long."""
        is_lost = status is Status.PEER_NOT_CONNECTED and self._has_given
        self._is_stale = self._is_stale or is_lost or self._clock.monotonic_s() - self._good_s > STALE_S
