"""The receiving side of ETSI GS QKD 020: keys that foreign KMEs give us for our SAEs. Calls in, effects out; no I/O.

A consignment is on record before it is answered with 202. Our own network then carries it to the targets' nodes; what
fails there is withdrawn first and told as `failed` then. Every end is told until the sender has confirmed to know it.
Where a sender does not take `relayed` for long, it is asked to void the keys: only when it says that it did, they are
withdrawn here, since else its initiator could hold keys that our SAEs are refused.

A void is on record before anything is done, and carried out after a carrying that is under way: what was voided stays
so, whatever arrives later.

Effects wait in `effects()`, so that a StoreError in the middle of a call loses none that is on record already.
"""

import hmac
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from qtrunk.base.errors import KeyNotFound
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.ports import Clock, SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.kms.interwork.records import (
    KEYS_PER_REQUEST_MAX,
    OUTCOME,
    Ack,
    AckStatus,
    Collision,
    Consignment,
    Extensions,
    Journal,
    Received,
    ReceivedState,
    VoidRequest,
)
from qtrunk.kms.interwork.sender import Answer, SendVoid

RETRY_S = 1.0
RETRY_MAX_S = 300.0
TELL_S = 120.0
"""So long an end is told without an answer before it is settled without the sender's word."""

_Place = tuple[str, KeyId]


@dataclass(frozen=True, slots=True)
class Carry:
    """Have our network bring keys to the nodes of their targets; comes back to `carried`."""

    peer: str
    keys: tuple[SuppliedKey, ...]
    initiator: SaeId
    targets: tuple[SaeId, ...]
    extensions: Extensions


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Have our network take keys back from the nodes of their targets; comes back to `withdrawn`."""

    peer: str
    key_ids: tuple[KeyId, ...]
    targets: tuple[SaeId, ...]


@dataclass(frozen=True, slots=True)
class SendAck:
    """POST an ack to a peer's callback URL; its answer comes back to `told`."""

    peer: str
    callback: str
    ack: Ack


ReceiverEffect = Carry | Withdraw | SendAck | SendVoid


@dataclass(slots=True)
class _Work:
    """A record that needs something done."""

    record: Received
    since_s: float
    next_s: float = 0.0
    pause_s: float = RETRY_S
    is_busy: bool = False
    """An effect is under way."""


class Receiver:
    """The receiving side of one KME, towards all foreign ones."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        now_s = clock.monotonic_s()
        # What was being carried when the process stopped is carried again: the port must bear that.
        self._work = {(one.peer, one.key_id): _Work(one, now_s) for one in journal.open_received()}
        self._effects: list[ReceiverEffect] = []

    def effects(self) -> list[ReceiverEffect]:
        """What is to be done now; to be asked after every call, also one that raised."""
        effects, self._effects = self._effects, []
        return effects

    # ── what a peer asks ────────────────────────────────────────────────────────────────────────────────────────────

    def accept(self, consignment: Consignment) -> None:
        """Take keys, or the repetition of a request: known keys stay as they are, and their ends are told again.

        Collision: a key ID means another key here; nothing was changed.
        """
        peer, key_ids = consignment.peer, [key.key_id for key in consignment.keys]
        if self._journal.is_strange(peer, key_ids):
            raise Collision("keys: a key_id belongs to another key here")
        known = self._journal.received(peer, key_ids)
        records = [self._record_of(consignment, key, known.get(key.key_id)) for key in consignment.keys]
        self._keep(records, is_news=True)
        self.tick()

    def _record_of(self, consignment: Consignment, key: SuppliedKey, known: Received | None) -> Received:
        fingerprint = self._journal.fingerprint(key.material)
        if known is None:
            return Received(
                peer=consignment.peer,
                key_id=key.key_id,
                initiator=consignment.initiator,
                targets=consignment.targets,
                state=ReceivedState.RELAYING,
                callback=consignment.callback,
                is_told=not consignment.callback,
                fingerprint=fingerprint,
                material=Secret(key.material.reveal()),
                extension=consignment.extensions.of_key.get(key.key_id, b""),
                request_extension=consignment.extensions.of_request,
            )
        if known.state is ReceivedState.ABSENT:
            # Its void came first. Now it is known what was voided.
            state = ReceivedState.VOIDED
        elif (
            hmac.compare_digest(known.fingerprint, fingerprint)
            and known.initiator == consignment.initiator
            and set(known.targets) == set(consignment.targets)
        ):
            state = known.state
        else:
            raise Collision("keys: a key_id belongs to another key here")
        return replace(
            known,
            initiator=consignment.initiator,
            targets=consignment.targets,
            state=state,
            fingerprint=fingerprint,
            callback=consignment.callback,
            # Whoever repeats a request has not heard how it ended.
            is_told=not consignment.callback,
        )

    def void(self, request: VoidRequest) -> tuple[KeyId, ...]:
        """Take keys back from our SAEs: which ones; acks or `outcomes` say what came of it.

        Collision: one of them came with another initiator or for other targets; nothing was changed.
        """
        if request.key_ids:
            known = self._journal.received(request.peer, request.key_ids)
        else:
            between = self._journal.received_between(request.peer, request.initiator, request.targets)
            known = {record.key_id: record for record in between}
        if not all(_is_about(record, request.initiator, request.targets) for record in known.values()):
            raise Collision("key_ids: one came with another initiator_sae_id or other target_sae_ids")
        key_ids = request.key_ids or tuple(known)
        self._keep([self._voided(request, key_id, known.get(key_id)) for key_id in key_ids], is_news=True)
        self.tick()
        return key_ids

    def _voided(self, request: VoidRequest, key_id: KeyId, known: Received | None) -> Received:
        if known is None:
            return Received(
                peer=request.peer,
                key_id=key_id,
                initiator=request.initiator,
                targets=request.targets,
                state=ReceivedState.ABSENT,
                callback=request.callback,
                is_told=not request.callback,
            )
        match known.state:
            case ReceivedState.FAILED:
                state = ReceivedState.VOIDED
            case ReceivedState.VOIDED | ReceivedState.KEPT | ReceivedState.ABSENT:
                state = known.state
            case _:
                state = ReceivedState.VOIDING
        return replace(known, state=state, material=None, callback=request.callback, is_told=not request.callback)

    def outcomes(self, peer: str, key_ids: Sequence[KeyId]) -> dict[KeyId, AckStatus | None]:
        """How received keys ended, in the order of the IDs; None where they have not."""
        known = self._journal.received(peer, key_ids)
        return {key_id: OUTCOME.get(known[key_id].state) for key_id in key_ids if key_id in known}

    # ── what was done ───────────────────────────────────────────────────────────────────────────────────────────────

    def carried(self, effect: Carry, *, is_done: bool) -> None:
        """Our network has the keys at all targets' nodes, or not all of them."""
        records = self._ended(effect.peer, [key.key_id for key in effect.keys])
        state = ReceivedState.RELAYED if is_done else ReceivedState.WITHDRAWING
        self._keep(
            replace(record, state=state, material=None) for record in records if record.state is ReceivedState.RELAYING
        )
        self.tick()

    def withdrawn(self, effect: Withdraw, delivered: Collection[KeyId] | None) -> None:
        """Our network took keys back, but for those that were delivered; None: it could not be done now."""
        records = self._ended(effect.peer, effect.key_ids)
        if delivered is None:
            self._later(records)
        else:
            self._keep(replace(record, state=_end_of(record, delivered)) for record in records)
        self.tick()

    def told(self, effect: SendAck, answer: Answer) -> None:
        """The answer to an ack: 200 confirms it; 400 says that the sender does not know these keys."""
        records = self._ended(effect.peer, effect.ack.key_ids)
        # A void or a repeated request meanwhile: that is told on its own.
        records = [one for one in records if OUTCOME.get(one.state) is effect.ack.status and not one.is_told]
        now_s = self._clock.monotonic_s()
        if answer.status == 200:
            self._keep(replace(record, is_told=True) for record in records if record.callback == effect.callback)
        else:
            late = [one for one in records if now_s - self._work[one.peer, one.key_id].since_s > TELL_S]
            # It is for the sender to ask again what became of keys that are nobody's here.
            self._keep(replace(one, is_told=True) for one in late if one.state is not ReceivedState.RELAYED)
            self._later(records)
        self.tick()

    def void_answered(self, effect: SendVoid, answer: Answer) -> None:
        """The sender's word on keys whose `relayed` it never took."""
        self._later(self._ended(effect.peer, effect.key_ids))
        if answer.status == 200:
            self._heard(effect.peer, answer.acks)

    def acked(self, peer: str, acks: Iterable[Ack]) -> None:
        """What the sender of keys says of our void. KeyNotFound: it is about none that it ever gave to us."""
        if not self._heard(peer, acks):
            raise KeyNotFound("acks: about no key that came from this KME, by initiator, targets and key IDs")

    def _heard(self, peer: str, acks: Iterable[Ack]) -> bool:
        """Whether any of it is about a key that came from this peer."""
        is_known = False
        for ack in acks:
            found = [
                record
                for record in self._journal.received(peer, ack.key_ids).values()
                if _is_about(record, ack.initiator, ack.targets)
            ]
            is_known = is_known or bool(found)
            untold = [one for one in found if one.state is ReceivedState.RELAYED and not one.is_told]
            match ack.status:
                case AckStatus.VOIDED | AckStatus.NOT_PRESENT:
                    # It knows: there is nothing left to tell.
                    self._keep(replace(one, state=ReceivedState.VOIDING, callback="", is_told=True) for one in untold)
                case AckStatus.FAILED_TO_VOID:
                    # Its initiator has them: so it has heard that they are relayed.
                    self._keep(replace(one, is_told=True) for one in untold)
                case _:
                    pass
        self.tick()
        return is_known

    # ── what is due ─────────────────────────────────────────────────────────────────────────────────────────────────

    def tick(self) -> None:
        """What is due: carry, withdraw, tell."""
        now_s = self._clock.monotonic_s()
        due = [work for work in self._work.values() if not work.is_busy and now_s >= work.next_s]
        groups: dict[tuple[object, ...], list[_Work]] = {}
        for work in due:
            record = work.record
            kind = (record.peer, record.initiator, record.targets, record.state)
            is_late = record.state is ReceivedState.RELAYED and now_s - work.since_s > TELL_S
            groups.setdefault((*kind, record.callback, record.request_extension, is_late), []).append(work)
        for works in groups.values():
            for first in range(0, len(works), KEYS_PER_REQUEST_MAX):
                self._do(works[first : first + KEYS_PER_REQUEST_MAX], now_s)

    def _do(self, works: Sequence[_Work], now_s: float) -> None:
        records = [work.record for work in works]
        one = records[0]
        key_ids = tuple(record.key_id for record in records)
        for work in works:
            work.is_busy = True
        match one.state:
            case ReceivedState.RELAYING:
                self._effects.append(_carry(records))
            case ReceivedState.WITHDRAWING | ReceivedState.VOIDING:
                self._effects.append(Withdraw(one.peer, key_ids, one.targets))
            case ReceivedState.RELAYED if now_s - works[0].since_s > TELL_S:
                self._effects.append(SendVoid(one.peer, key_ids, one.initiator, one.targets))
            case _:
                ack = Ack(status=OUTCOME[one.state], key_ids=key_ids, initiator=one.initiator, targets=one.targets)
                self._effects.append(SendAck(one.peer, one.callback, ack))

    # ── small things ────────────────────────────────────────────────────────────────────────────────────────────────

    def _keep(self, records: Iterable[Received], *, is_news: bool = False) -> None:
        """On record first, then in mind. `is_news`: the peer spoke, so the time for telling it begins anew."""
        kept = list(records)
        if not kept:
            return
        self._journal.put_received(kept)
        now_s = self._clock.monotonic_s()
        for record in kept:
            place = (record.peer, record.key_id)
            work = self._work.get(place)
            is_open = record.state not in OUTCOME or not record.is_told
            if work is None:
                if is_open:
                    self._work[place] = _Work(record, now_s)
                continue
            if is_news or work.record.state is not record.state:
                work.since_s, work.next_s, work.pause_s = now_s, 0.0, RETRY_S
            work.record = record
            if not is_open and not work.is_busy:
                del self._work[place]

    def _ended(self, peer: str, key_ids: Iterable[KeyId]) -> list[Received]:
        """The records that an effect was about, as they are now; it is under way no more."""
        found: list[Received] = []
        for place in [(peer, key_id) for key_id in key_ids]:
            work = self._work.get(place)
            if work is None:
                continue
            work.is_busy = False
            if work.record.state in OUTCOME and work.record.is_told:
                del self._work[place]
            else:
                found.append(work.record)
        return found

    def _later(self, records: Iterable[Received]) -> None:
        for record in records:
            work = self._work.get((record.peer, record.key_id))
            if work is not None:
                work.next_s = self._clock.monotonic_s() + work.pause_s
                work.pause_s = min(2 * work.pause_s, RETRY_MAX_S)


def _is_about(record: Received, initiator: SaeId, targets: Collection[SaeId]) -> bool:
    """Whether words on keys of this initiator for these targets mean this key: of several targets, any one does."""
    return record.initiator == initiator and not set(record.targets).isdisjoint(targets)


def _end_of(record: Received, delivered: Collection[KeyId]) -> ReceivedState:
    match record.state:
        case ReceivedState.WITHDRAWING:
            # Somebody was quick. The sender will not use it, and a later void is told the truth.
            return ReceivedState.KEPT if record.key_id in delivered else ReceivedState.FAILED
        case ReceivedState.VOIDING:
            return ReceivedState.KEPT if record.key_id in delivered else ReceivedState.VOIDED
        case state:
            return state


def _carry(records: Sequence[Received]) -> Carry:
    one = records[0]
    keys: list[SuppliedKey] = []
    for record in records:
        assert record.material is not None  # kept until our network has it
        keys.append(SuppliedKey(key_id=record.key_id, material=record.material))
    of_key = {record.key_id: record.extension for record in records if record.extension}
    extensions = Extensions(of_request=one.request_extension, of_key=of_key)
    return Carry(one.peer, tuple(keys), one.initiator, one.targets, extensions)
