"""Key streams (ETSI GS QKD 004 V2.1.1): OPEN_CONNECT, GET_KEY and CLOSE, as a machine without I/O.

Calls of applications, notes of other key managers, keys and ticks go in; effects come out. A stream has two ends, one
for each SAE, mostly at two key managers; this machine holds the ends of one. The end whose SAE is the source has chunks
made, on demand and in the order of their indexes, and tells the other the IDs of the keys they consist of; that one
collects them. Each end gives each chunk out once. Statuses and units are those of `kms.streamnotes`.

What holds whatever happens to the notes: for one KSID and index both ends give the same octets or one of them none. A
chunk of one opening is never taken for one of another, because every note names the random instances of both ends. An
end whose other end was lost with its process serves nothing new. docs/etsi004.md says how the text's gaps are read.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from uuid import UUID

from qtrunk.base.errors import KeyExhausted, QtrunkError, RequestRefused, StoreError, WireError
from qtrunk.base.ids import NodeId, SaeId, parse_key_id
from qtrunk.base.ports import Clock, Random, SuppliedKey, SupplyStatus
from qtrunk.base.wire import encode
from qtrunk.kms.streamend import (
    AHEAD_CHUNKS_MAX,
    RESEND_FIRST_S,
    Answer,
    Call,
    Collect,
    Effect,
    End,
    Initiate,
    Tell,
    wipe,
)
from qtrunk.kms.streamnotes import (
    INSTANCE_OCTETS,
    KSID_OCTETS,
    METADATA_OCTETS_MAX,
    Batch,
    Card,
    Qos,
    Status,
    StreamGone,
    StreamNote,
    StreamRefused,
    StreamState,
    layout,
    metadata,
    offer,
    parse,
)

ENDS_PER_SAE_MAX = 4096
"""Ends of one SAE, closed ones whose KSID is still refused included."""
CALLS_PER_END_MAX = 64
CALLERS_PER_NODE_MAX = 4096
"""Openings at one other key manager that wait for their twin here."""
CALLER_S = 120.0
"""An opening there that was not heard of for so long has gone."""
MAKING_MAX, MAKING_PER_PAIR_MAX = 64, 4
"""Requests to the supply at one time, of all streams and of those between two SAEs; the others wait by priority. A peer
that is out of reach keeps its requests waiting for long: it holds up its own streams alone.
"""
IDLE_S = 3600.0
"""An end that nobody called for so long (or for its TTL, if that is longer) is closed."""
RESEND_MAX_S = 30.0


class Streams:
    """The key streams of one key manager."""

    def __init__(
        self,
        node: NodeId,
        node_of: Callable[[SaeId], NodeId | None],
        status: Callable[[SaeId, SaeId], SupplyStatus],
        random: Random,
        clock: Clock,
    ) -> None:
        """`status` is that of a KeySupply."""
        self._node = node
        self._node_of = node_of
        self._status = status
        self._random = random
        self._clock = clock
        self._ends: dict[tuple[bytes, str], End] = {}
        self._callers: dict[tuple[bytes, str, str], tuple[NodeId, float]] = {}
        self._jobs: dict[int, End] = {}
        self._making: set[int] = set()
        self._hungry: set[End] = set()
        self._tickets = 0
        self._effects: list[Effect] = []

    # ── what applications call ──────────────────────────────────────────────────────────────────────────────────────

    def open(
        self, caller: SaeId, source: SaeId, destination: SaeId, asked: Qos, ksid: bytes | None, holder: Hashable
    ) -> tuple[int, list[Effect]]:
        """OPEN_CONNECT by `caller`, who must be one of the two, over the connection `holder`; `ksid` None is NULL."""
        ticket = self._ticket()
        if caller not in (source, destination) or source == destination:
            return ticket, self._end_with(ticket, Status.NO_CONNECTION)
        peer = destination if caller == source else source
        if ksid is not None:
            known = self._ends.get((ksid, caller))
            if known is not None or self._is_foreign(ksid, caller, peer):
                return ticket, self._open_again(ticket, known, peer, holder)
        end = self._new_end(caller, peer, source, asked, ksid, holder)
        if end is None:
            return ticket, self._end_with(ticket, Status.NO_CONNECTION)
        self._ends[end.key] = end
        is_awaited = self._callers.pop((end.ksid, caller, peer), None) is not None
        self._tell_state(end, asks=True)
        if end.qos != asked and not is_awaited:
            self._answer_open(end, ticket, Status.QOS_NOT_MET)
        elif ksid is None:
            self._answer_open(end, ticket, Status.PEER_NOT_YET_CONNECTED)
        else:
            end.calls.append(Call(ticket, self._clock.monotonic_s() + end.qos.timeout / 1000))
        return ticket, self._drain()

    def get_key(self, caller: SaeId, ksid: bytes, index: int, metadata_size: int) -> tuple[int, list[Effect]]:
        """GET_KEY: the chunk `index` of the stream; with metadata if `metadata_size` octets are enough for them."""
        ticket = self._ticket()
        end = self._ends.get((ksid, caller))
        now_s = self._clock.monotonic_s()
        if end is None or end.is_closed:
            return ticket, self._end_with(ticket, Status.PEER_NOT_CONNECTED)
        end.called_s = now_s
        call = Call(ticket, now_s + end.qos.timeout / 1000, index, metadata_size)
        status = self._cannot_give(end, index)
        if index in end.chunks:
            self._give(end, call)
            self._collect(end)
        elif status is not None:
            self._effects.append(Answer(ticket=ticket, status=status))
        else:
            end.calls.append(call)
            self._want(end, index + 1)
        return ticket, self._drain()

    def close(self, caller: SaeId, ksid: bytes) -> tuple[int, list[Effect]]:
        """CLOSE: nothing more for this end; the other may still take the chunks that exist."""
        ticket = self._ticket()
        end = self._ends.get((ksid, caller))
        if end is None or end.is_closed:
            return ticket, self._end_with(ticket, Status.PEER_NOT_CONNECTED)
        self._shut(end)
        self._effects.append(Answer(ticket=ticket, status=Status.SUCCESS))
        return ticket, self._drain()

    def cancel(self, ticket: int) -> list[Effect]:
        """Nobody waits for this answer any more: the chunk stays for another call."""
        for end in list(self._ends.values()):
            if any(call.ticket == ticket for call in end.calls):
                end.calls = [call for call in end.calls if call.ticket != ticket]
                self._withdraw(end)
        return self._drain()

    def released(self, holder: Hashable) -> None:
        """The connection `holder` has ended: its application may come back over another one."""
        for end in self._ends.values():
            if end.holder == holder:
                end.holder = None

    # ── what the world reports ──────────────────────────────────────────────────────────────────────────────────────

    def receive(self, node: NodeId, octets: bytes) -> list[Effect]:
        """A note that came from `node` for certain. WireError where it is none, or speaks of other nodes' SAEs."""
        note = parse(octets)
        remote = note.card.sae if isinstance(note, StreamState) else note.sae
        local = note.card.peer if isinstance(note, StreamState) else note.peer
        if self._node_of(SaeId(remote)) != node or self._node_of(SaeId(local)) != self._node:
            raise WireError("stream note: sae: not of the node that it came from, or peer not of this node")
        end = self._ends.get((note.ksid, local))
        if end is not None and end.card.peer != remote:
            end = None
        match note:
            case StreamState():
                self._hear(node, note, end)
            case StreamGone() if end is not None and end.twin is not None and end.twin.instance == note.instance:
                self._lost_twin(end)
            case StreamRefused() if end is not None and end.card.instance == note.heard and not end.is_connected:
                self._shut(end, Status.KSID_IN_USE)
            case _:
                pass
        return self._drain()

    def supplied(self, job: int, outcome: Sequence[SuppliedKey] | QtrunkError, hops: int = 0) -> list[Effect]:
        """Keys for an Initiate or Collect, or why there are none; for an Initiate, the trusted nodes they passed."""
        end = self._jobs.pop(job)
        self._making.discard(job)
        batch, end.job = end.job, None
        assert batch is not None
        if end.is_closed:
            if not isinstance(outcome, QtrunkError):
                wipe(outcome)
            if not end.is_source:
                self._collected(end, batch, None)
        elif end.is_source:
            self._made(end, batch, outcome, hops)
        elif not isinstance(outcome, (StoreError, KeyExhausted)):
            # Anything else does not mend: the chunks are lost to this end.
            self._collected(end, batch, None if isinstance(outcome, QtrunkError) else outcome)
        return self._drain()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that time could change."""
        return not self._ends and not self._callers

    def tick(self) -> list[Effect]:
        """Time goes by: time-outs, ends of lives, notes that were not answered."""
        now_s = self._clock.monotonic_s()
        for end in list(self._ends.values()):
            self._time_out(end, now_s)
            for index in [index for index, chunk in end.chunks.items() if now_s >= chunk.available_s + end.qos.ttl]:
                end.chunks.pop(index).material.wipe()
            if end.is_closed:
                if now_s >= end.closed_s + end.qos.ttl and end.job is None:
                    del self._ends[end.key]
                    continue
            elif now_s >= end.called_s + max(end.qos.ttl, IDLE_S) and not end.calls:
                self._shut(end)
            if end.key in self._ends and now_s >= end.resend_at_s and self._is_owed(end):
                self._tell_state(end, asks=True, is_repeat=True)
        for key, (_, heard_s) in list(self._callers.items()):
            if now_s >= heard_s + CALLER_S:
                del self._callers[key]
        return self._drain()

    # ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _open_again(self, ticket: int, end: End | None, peer: SaeId, holder: Hashable) -> list[Effect]:
        """A KSID that is known here: to this SAE, or (`end` is None) to others only."""
        if end is None or end.is_closed or end.card.peer != peer or end.holder not in (None, holder):
            return self._end_with(ticket, Status.KSID_IN_USE)
        end.holder, end.called_s = holder, self._clock.monotonic_s()
        if end.is_connected:
            self._answer_open(end, ticket, Status.SUCCESS)
        elif end.card.is_allocated:
            self._answer_open(end, ticket, Status.PEER_NOT_YET_CONNECTED)
        elif len(end.calls) >= CALLS_PER_END_MAX:
            self._answer_open(end, ticket, Status.KSID_IN_USE)
        else:
            end.calls.append(Call(ticket, end.called_s + end.qos.timeout / 1000))
        return self._drain()

    def _is_foreign(self, ksid: bytes, sae: str, peer: str) -> bool:
        """Whether the KSID is that of another pair here, closed ones included."""
        return any(key[0] == ksid and {sae, peer} != {key[1], end.card.peer} for key, end in self._ends.items())

    def _new_end(
        self, caller: SaeId, peer: SaeId, source: SaeId, asked: Qos, ksid: bytes | None, holder: Hashable
    ) -> End | None:
        """A fresh end; None where there is no way to the peer or too many ends are there."""
        node = self._node_of(peer)
        if node is None or sum(sae == caller for _, sae in self._ends) >= ENDS_PER_SAE_MAX:
            return None
        try:
            limits = self._status(caller, peer)
        except QtrunkError:
            return None
        if limits.stored_key_count == 0 and limits.fill_bps <= 0:
            return None
        qos = offer(asked, limits)
        card = Card(
            instance=self._random.octets(INSTANCE_OCTETS),
            sae=caller,
            peer=peer,
            source=source,
            is_allocated=ksid is None,
            qos=qos,
        )
        name = ksid or UUID(bytes=self._random.octets(KSID_OCTETS), version=4).bytes
        return End(name, card, node, limits, holder, self._clock.monotonic_s(), qos)

    def _answer_open(self, end: End, ticket: int, status: Status) -> None:
        self._effects.append(Answer(ticket=ticket, status=status, ksid=end.ksid, qos=end.qos))

    def _connect(self, end: End, twin: Card) -> None:
        """Both ends have the same two cards now and come to the same stream: source and QoS."""
        cards = {end.card.sae: end.card, twin.sae: twin}
        allocating = [card for card in cards.values() if card.is_allocated]
        if len(allocating) == 1:
            # Its caller was answered first, so its QoS stands.
            chief, source = allocating[0], allocating[0].source
        else:
            source = end.card.source if end.card.source == twin.source else min(cards)
            chief = cards[source]
        end.twin, end.is_connected, end.connected_s = twin, True, self._clock.monotonic_s()
        end.is_source, end.qos = source == end.card.sae, chief.qos
        for call in end.calls:
            self._answer_open(end, call.ticket, Status.SUCCESS)
        end.calls = []

    # ── notes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _hear(self, node: NodeId, note: StreamState, end: End | None) -> None:
        card = note.card
        if end is None:
            self._hear_caller(node, note)
        elif note.heard not in (b"", end.card.instance):
            self._send(node, StreamGone(ksid=note.ksid, sae=card.peer, peer=card.sae, instance=note.heard))
        elif end.twin is not None and end.is_connected and end.twin.instance != card.instance:
            if end.is_closed:
                self._refuse(node, note)
            else:
                # A late note of an old stream, or the other process started anew: only the latter denies being `twin`.
                self._tell_state(end, asks=True)
        elif note.is_closed and not end.is_connected:
            # That opening was withdrawn; this one waits for the next.
            end.twin = None
        else:
            if end.twin is None or end.twin.instance != card.instance:
                end.twin, end.resend_after_s = card, RESEND_FIRST_S
                end.resend_at_s = self._clock.monotonic_s() + RESEND_FIRST_S
            if note.heard and not end.is_connected:
                self._connect(end, card)
                self._tell_state(end, asks=False)
            if note.heard:
                self._merge(end, note)
            if note.asks:
                self._tell_state(end, asks=False)

    def _hear_caller(self, node: NodeId, note: StreamState) -> None:
        """A note for an end that is not here (yet)."""
        card, key = note.card, (note.ksid, note.card.peer, note.card.sae)
        if note.heard:
            self._send(node, StreamGone(ksid=note.ksid, sae=card.peer, peer=card.sae, instance=note.heard))
        elif self._is_foreign(note.ksid, card.peer, card.sae):
            self._refuse(node, note)
        elif note.is_closed:
            self._callers.pop(key, None)
        elif sum(found == node for found, _ in self._callers.values()) < CALLERS_PER_NODE_MAX or key in self._callers:
            self._callers[key] = (node, self._clock.monotonic_s())

    def _refuse(self, node: NodeId, note: StreamState) -> None:
        card = note.card
        self._send(node, StreamRefused(ksid=note.ksid, sae=card.peer, peer=card.sae, heard=card.instance))

    def _lost_twin(self, end: End) -> None:
        if end.is_closed:
            end.twin_knows_closed = True
            end.batches.clear()
        elif end.made == 0 and end.job is None and not end.batches:
            # Nothing came of it: its next opening may join this one.
            end.twin, end.is_connected, end.qos, end.wanted = None, False, end.card.qos, 0
            self._answer_all(end, lambda _: Status.PEER_NOT_CONNECTED)
            self._tell_state(end, asks=True)
        else:
            self._shut(end)

    def _merge(self, end: End, note: StreamState) -> None:
        """What the other end has to say, in any order and any number of times."""
        end.twin_closed |= note.is_closed
        end.twin_knows_closed |= note.knows_closed
        if end.is_source:
            end.twin_held = max(end.twin_held, min(note.held, end.made))
            for first in [first for first, batch in end.batches.items() if first + batch.count <= end.twin_held]:
                del end.batches[first]
            if note.wanted > end.made:
                end.wanted = max(end.wanted, min(note.wanted, end.made + end.ahead))
                self._hungry.add(end)
        else:
            for batch in note.batches:
                if end.made <= batch.first < end.made + 2 * AHEAD_CHUNKS_MAX and not (
                    end.job is not None and end.job.first == batch.first
                ):
                    end.batches.setdefault(batch.first, batch)
            self._collect(end)
            if note.failures > end.failures:
                end.failures = note.failures
                self._answer_unmade(end, Status(note.failure))
        if end.twin_closed:
            self._answer_unmade(end, Status.PEER_NOT_CONNECTED)

    def _is_owed(self, end: End) -> bool:
        """Whether the other end has yet to say something."""
        if not end.is_connected:
            return not end.is_closed
        if end.is_closed and not end.twin_knows_closed:
            return True
        return bool(end.batches) if end.is_source else any(call.index >= end.made for call in end.calls)

    def _tell_state(self, end: End, *, asks: bool, is_repeat: bool = False) -> None:
        if asks:
            end.resend_after_s = min(2 * end.resend_after_s, RESEND_MAX_S) if is_repeat else RESEND_FIRST_S
            end.resend_at_s = self._clock.monotonic_s() + end.resend_after_s
        note = StreamState(
            ksid=end.ksid,
            card=end.card,
            heard=end.twin.instance if end.twin else b"",
            asks=asks,
            wanted=0 if end.is_source else max((call.index + 1 for call in end.calls), default=0),
            held=0 if end.is_source else end.made,
            batches=list(end.batches.values()) if end.is_source else [],
            failures=end.failures if end.is_source else 0,
            failure=end.failure,
            is_closed=end.is_closed,
            knows_closed=end.twin_closed,
        )
        self._send(end.node, note)

    def _send(self, node: NodeId, note: StreamNote) -> None:
        self._effects.append(Tell(node=node, octets=encode(note)))

    # ── chunks ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _cannot_give(self, end: End, index: int) -> Status | None:
        """Why a chunk that is not here will not come; None if it may."""
        if not end.is_connected:
            return Status.PEER_NOT_CONNECTED
        if index < end.made or index >= end.made + end.ahead:
            return Status.INSUFFICIENT_KEY
        if end.twin_closed and index >= end.announced and (end.job is None or end.is_source):
            return Status.PEER_NOT_CONNECTED
        return Status.INSUFFICIENT_KEY if len(end.calls) >= CALLS_PER_END_MAX else None

    def _give(self, end: End, call: Call) -> None:
        """Answer with a chunk that is here."""
        chunk = end.chunks[call.index]
        about = b""
        if end.qos.metadata_mimetype and call.metadata_size:
            about = metadata(int((self._clock.monotonic_s() - chunk.available_s) * 1000), chunk.hops)
            if len(about) > call.metadata_size:
                answer = Answer(ticket=call.ticket, status=Status.METADATA_TOO_SMALL, metadata_size=METADATA_OCTETS_MAX)
                self._effects.append(answer)
                return
        del end.chunks[call.index]
        self._effects.append(
            Answer(ticket=call.ticket, status=Status.SUCCESS, index=call.index, key=chunk.material, metadata=about)
        )

    def _want(self, end: End, wanted: int) -> None:
        if end.is_source:
            end.wanted = max(end.wanted, wanted)
            self._hungry.add(end)
        elif wanted > end.announced:
            self._tell_state(end, asks=True)

    def _demand(self, end: End) -> int:
        """How many chunks to make now."""
        if end.job is not None:
            return 0
        upto = min(end.wanted, end.twin_held + end.ahead, end.made + end.room())
        if end.qos.max_bps:
            elapsed_s = self._clock.monotonic_s() - end.connected_s
            upto = min(upto, end.ahead + int(elapsed_s * end.qos.max_bps) // (8 * end.qos.key_chunk_size))
        keys, _ = layout(end.qos.key_chunk_size, end.limits.key_bits_max // 8)
        return min(upto - end.made, max(end.limits.keys_per_request_max // keys, 1))

    def _start_making(self) -> None:
        """Ask the supply: for each SAE in turn, for its most important streams first."""
        self._hungry = {end for end in self._hungry if end.wanted > end.made and end.is_live}
        cards = [self._jobs[job].card for job in self._making]
        busy, pairs = Counter(card.sae for card in cards), Counter((card.sae, card.peer) for card in cards)
        for end in sorted(self._hungry, key=lambda end: (busy[end.card.sae], -end.qos.priority, end.called_s)):
            count = self._demand(end)
            pair = (end.card.sae, end.card.peer)
            if count <= 0 or len(self._making) >= MAKING_MAX or pairs[pair] >= MAKING_PER_PAIR_MAX:
                continue
            pairs[pair] += 1
            keys, octets = layout(end.qos.key_chunk_size, end.limits.key_bits_max // 8)
            end.job = Batch(first=end.made, count=count, key_ids=[], hops=0)
            job = self._job(end)
            self._making.add(job)
            self._effects.append(
                Initiate(
                    job=job,
                    initiator=SaeId(end.card.sae),
                    target=SaeId(end.card.peer),
                    number=count * keys,
                    key_bits=8 * octets,
                )
            )

    def _made(self, end: End, batch: Batch, outcome: Sequence[SuppliedKey] | QtrunkError, hops: int) -> None:
        """At the source: chunks, or the reason why not."""
        if isinstance(outcome, QtrunkError):
            is_short = isinstance(outcome, (KeyExhausted, StoreError))
            end.wanted, end.failures = end.made, end.failures + 1
            end.failure = Status.INSUFFICIENT_KEY if is_short else Status.NO_CONNECTION
            self._answer_unmade(end, end.failure)
        else:
            ids = [str(key.key_id) for key in outcome]
            end.batches[batch.first] = Batch(first=batch.first, count=batch.count, key_ids=ids, hops=hops)
            end.keep(end.batches[batch.first], outcome, self._clock.monotonic_s())
            self._answer_calls(end)
        self._tell_state(end, asks=True)

    def _collect(self, end: End) -> None:
        """At the destination: fetch the next chunks, in order."""
        if end.is_source or end.job is not None or end.made not in end.batches:
            return
        batch = end.batches[end.made]
        if end.is_closed:
            self._collected(end, batch, None)
            return
        if end.room() < batch.count:
            return
        try:
            key_ids = [parse_key_id(text) for text in batch.key_ids]
        except RequestRefused:
            self._collected(end, batch, None)
            return
        end.job = batch
        self._effects.append(
            Collect(job=self._job(end), target=SaeId(end.card.sae), initiator=SaeId(end.card.peer), key_ids=key_ids)
        )

    def _collected(self, end: End, batch: Batch, keys: Sequence[SuppliedKey] | None) -> None:
        """At the destination: chunks are here, or lost."""
        end.batches = {first: other for first, other in end.batches.items() if first >= batch.first + batch.count}
        if keys is not None and end.fits(batch, keys):
            end.keep(batch, keys, self._clock.monotonic_s())
        else:
            wipe(keys or [])
            end.made += batch.count
        self._answer_calls(end)
        self._tell_state(end, asks=any(call.index >= end.announced for call in end.calls))
        self._collect(end)

    def _answer_calls(self, end: End) -> None:
        """Whoever waits for a chunk that is decided now."""
        decided = [call for call in end.calls if 0 <= call.index < end.made]
        end.calls = [call for call in end.calls if call not in decided]
        for call in decided:
            if call.index in end.chunks:
                self._give(end, call)
            else:
                self._effects.append(Answer(ticket=call.ticket, status=Status.INSUFFICIENT_KEY))

    def _answer_unmade(self, end: End, status: Status) -> None:
        """No chunk beyond those that exist or are on their way: whoever waits for one hears why."""
        below = end.announced
        self._answer_all(end, lambda call: status if call.index >= below else None)

    def _answer_all(self, end: End, status_of: Callable[[Call], Status | None]) -> None:
        kept = []
        for call in end.calls:
            status = status_of(call)
            if status is None:
                kept.append(call)
            else:
                self._effects.append(Answer(ticket=call.ticket, status=status))
        end.calls = kept

    # ── ends of lives ───────────────────────────────────────────────────────────────────────────────────────────────

    def _shut(self, end: End, opening: Status = Status.PEER_NOT_CONNECTED) -> None:
        """Close this end. Its KSID stays refused for the TTL, if there was ever another end to it."""
        self._answer_all(end, lambda call: opening if call.index < 0 else Status.PEER_NOT_CONNECTED)
        for chunk in end.chunks.values():
            chunk.material.wipe()
        end.chunks.clear()
        end.is_closed, end.closed_s, end.holder = True, self._clock.monotonic_s(), None
        self._collect(end)
        self._tell_state(end, asks=end.is_connected)
        if not end.is_connected:
            del self._ends[end.key]

    def _withdraw(self, end: End) -> None:
        """Forget an opening that nobody waits for; one that was answered already stays."""
        if not end.is_connected and not end.calls and not end.card.is_allocated and end.key in self._ends:
            self._shut(end)

    def _time_out(self, end: End, now_s: float) -> None:
        if any(now_s >= call.deadline_s for call in end.calls):
            self._answer_all(end, lambda call: Status.TIMEOUT if now_s >= call.deadline_s else None)
            self._withdraw(end)

    # ── small things ────────────────────────────────────────────────────────────────────────────────────────────────

    def _ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def _job(self, end: End) -> int:
        job = self._ticket()
        self._jobs[job] = end
        return job

    def _end_with(self, ticket: int, status: Status) -> list[Effect]:
        self._effects.append(Answer(ticket=ticket, status=status))
        return self._drain()

    def _drain(self) -> list[Effect]:
        if self._hungry:
            self._start_making()
        effects, self._effects = self._effects, []
        return effects
