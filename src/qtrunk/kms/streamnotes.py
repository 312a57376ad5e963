"""Key streams: the words of ETSI GS QKD 004 V2.1.1 (statuses, QoS, metadata), and what two key managers say.

A note says all that one end of a stream has to say to the other (`StreamState`), so a note that is lost, doubled or
late does no harm: the next one says the same and more. The carrier vouches for the node that a note comes from; what
is in it is checked here and in `kms.streams`.
"""

from enum import IntEnum
from typing import Annotated

import msgspec

from qtrunk.base.errors import WireError
from qtrunk.base.ports import SupplyStatus
from qtrunk.base.wire import Message, decode

CHUNK_OCTETS_MAX = 64 << 10
TIMEOUT_MS_MAX = 600_000
TTL_S_MAX = 86_400
STOCK_S = 600.0
"""A minimum rate is promised out of the present fill rate and the stock, spread over this time."""
KEPT_CHUNKS_MAX = 256
BATCHES_MAX = 64
JSON = "application/json"
INSTANCE_OCTETS = KSID_OCTETS = 16


class Status(IntEnum):
    """Status codes of GS QKD 004 V2.1.1, clause 6.3; V1.1.1 has other functions and is not spoken here."""

    SUCCESS = 0
    PEER_NOT_YET_CONNECTED = 1
    """OPEN_CONNECT: done, the peer has not come yet."""
    INSUFFICIENT_KEY = 2
    """GET_KEY: no such key now; also an index that was given out before or whose key outlived its TTL."""
    PEER_NOT_CONNECTED = 3
    """GET_KEY: the peer has not come or has gone; also a stream that this SAE does not have."""
    NO_CONNECTION = 4
    """There is no way to the peer, or this caller may not have it."""
    KSID_IN_USE = 5
    TIMEOUT = 6
    QOS_NOT_MET = 7
    """OPEN_CONNECT: the stream stands with the returned QoS; who does not want it closes it."""
    METADATA_TOO_SMALL = 8
    """GET_KEY: nothing was taken; ask again with the size that is returned."""


_U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Nonce = Annotated[bytes, msgspec.Meta(min_length=INSTANCE_OCTETS, max_length=INSTANCE_OCTETS)]
_Ksid = Annotated[bytes, msgspec.Meta(min_length=KSID_OCTETS, max_length=KSID_OCTETS)]


class Qos(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an application asks of its stream, or is offered (clause 6.2); names and units of the standard."""

    key_chunk_size: _U32
    """Octets of one key."""
    max_bps: _U32
    """The most that will be asked for, bit/s; keys are made no faster. 0: not said."""
    min_bps: _U32
    jitter: _U32
    """bit/s. Returned as asked; supply has no other course."""
    priority: _U32
    """The stream with the greater number is served first where supply is scarce."""
    timeout: _U32
    """ms."""
    ttl: _U32
    """s."""
    metadata_mimetype: Annotated[str, msgspec.Meta(max_length=256)]
    """Empty: no metadata."""


def offer(asked: Qos, supply: SupplyStatus) -> Qos:
    """The QoS closest to what is asked that this key manager can give."""
    chunk_max = min(CHUNK_OCTETS_MAX, supply.keys_per_request_max * (supply.key_bits_max // 8))
    promised_bps = int(supply.fill_bps + supply.stored_key_count * supply.key_bits / STOCK_S)
    min_bps = min(asked.min_bps, promised_bps)
    return Qos(
        key_chunk_size=min(max(asked.key_chunk_size, -(-supply.key_bits_min // 8)), chunk_max),
        max_bps=max(asked.max_bps, min_bps) if asked.max_bps else 0,
        min_bps=min_bps,
        jitter=asked.jitter,
        priority=asked.priority,
        timeout=min(asked.timeout, TIMEOUT_MS_MAX),
        ttl=min(max(asked.ttl, 1), TTL_S_MAX),
        metadata_mimetype=JSON if asked.metadata_mimetype else "",
    )


def layout(chunk_octets: int, key_octets_max: int) -> tuple[int, int]:
    """How many keys make a chunk, and the octets of each; what is too much is cut off at the chunk's end."""
    keys = -(-chunk_octets // key_octets_max)
    return keys, -(-chunk_octets // keys)


def metadata(age_ms: int, hops: int) -> bytes:
    """What goes with a key (clause 6.2): ms since it became available here, trusted nodes that it passed."""
    return b'{"age":%d,"hops":%d}' % (min(age_ms, 0xFFFF_FFFF), min(hops, 0xFFFF_FFFF))


METADATA_OCTETS_MAX = len(metadata(0xFFFF_FFFF, 0xFFFF_FFFF))
"""The size that status 8 asks for: a retry with it cannot fail however old the key is by then."""


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Chunks `first`, `first` + 1, … and the keys that they are made of, in order."""

    first: _U32
    count: Annotated[int, msgspec.Meta(ge=1, le=KEPT_CHUNKS_MAX)]
    key_ids: Annotated[list[Annotated[str, msgspec.Meta(max_length=36)]], msgspec.Meta(min_length=1, max_length=16384)]
    hops: _U32


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One end of a stream as it was opened; never changes."""

    instance: _Nonce
    """Fresh for each opening, so that nothing of a stream can pass for another that has its KSID."""
    sae: _Name
    peer: _Name
    source: _Name
    """Which of the two this end calls the source."""
    is_allocated: bool
    """The KSID was allocated at this end."""
    qos: Qos


class StreamState(Message, frozen=True, tag="stream-state"):
    """All that the end `card` has to say."""

    ksid: _Ksid
    card: Card
    heard: Annotated[bytes, msgspec.Meta(max_length=INSTANCE_OCTETS)]
    """The instance of the other end that the sender knows, or empty."""
    asks: bool
    """The sender waits for an answer."""
    wanted: _U32
    """To the source: chunks below this index are asked for."""
    held: _U32
    """To the source: chunks below this index are held at the destination, or lost."""
    batches: Annotated[list[Batch], msgspec.Meta(max_length=BATCHES_MAX)]
    """To the destination: what it does not hold yet."""
    failures: _U32
    """To the destination: how often keys could not be made."""
    failure: Annotated[int, msgspec.Meta(ge=0, le=8)]
    """To the destination: the status of the latest of them."""
    is_closed: bool
    knows_closed: bool
    """The sender knows that the receiver has closed."""


class StreamGone(Message, frozen=True, tag="stream-gone"):
    """The end that the receiver knows as `instance` does not exist any more."""

    ksid: _Ksid
    sae: _Name
    peer: _Name
    instance: _Nonce


class StreamRefused(Message, frozen=True, tag="stream-refused"):
    """The receiver's end `heard` cannot have this KSID: it is, or was lately, another stream's."""

    ksid: _Ksid
    sae: _Name
    peer: _Name
    heard: _Nonce


StreamNote = StreamState | StreamGone | StreamRefused


def parse(octets: bytes) -> StreamNote:
    """A note, or WireError."""
    note: StreamNote = decode(octets, StreamNote)
    if not isinstance(note, StreamState):
        return note
    if len(note.heard) not in (0, INSTANCE_OCTETS):
        raise WireError(f"stream note: heard: 0 or {INSTANCE_OCTETS} octets are needed")
    if note.failures and note.failure not in (Status.INSUFFICIENT_KEY, Status.NO_CONNECTION):
        raise WireError("stream note: failure: no reason why there are no keys")
    card = note.card
    if card.sae == card.peer or card.source not in (card.sae, card.peer):
        raise WireError("stream note: source: must be one of two different SAEs")
    qos = card.qos
    is_bounded = qos.timeout <= TIMEOUT_MS_MAX and qos.ttl <= TTL_S_MAX and qos.metadata_mimetype in ("", JSON)
    if not (1 <= qos.key_chunk_size <= CHUNK_OCTETS_MAX and is_bounded):
        raise WireError("stream note: qos: no key manager offers this")
    if any(len(batch.key_ids) % batch.count for batch in note.batches):
        raise WireError("stream note: batches: each chunk needs the same number of keys")
    return note
