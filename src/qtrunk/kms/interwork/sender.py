"""The sending side of ETSI GS QKD 020: keys of our SAEs for SAEs of foreign networks. Calls in, effects out; no I/O.

Effects wait in `effects()`, so that a StoreError in the middle of a call loses none that is on record already.

A consignment is some keys of one initiator with a leg for each foreign KME. It settles well when every target of every
leg is said to have every key, and only then may the initiator be given them. Whatever else happens, it settles badly
and all its keys are voided wherever they could be held: only a 400 or 401 to the first attempt, or `failed` for all
targets, says that nothing is.

Material lives in memory only, while it is under way. After a restart nobody waits for a consignment any more, so what
had not settled is voided (`start`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qtrunk.base.errors import KeyNotFound, QtrunkError, RequestRefused, RouteUnavailable
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.ports import Clock, SuppliedKey
from qtrunk.kms.interwork.records import (
    KEYS_PER_REQUEST_MAX,
    UNDER_WAY,
    Ack,
    AckStatus,
    Extensions,
    Journal,
    Sent,
    SentState,
)

SETTLE_S = 30.0
"""So long the initiator's request may wait for a foreign network."""
ACK_WAIT_S = 8.0
"""After 202; then ext_keys is repeated, which a receiver answers with its acks again."""
RETRY_S = 1.0
RETRY_MAX_S = 300.0

_Place = tuple[str, KeyId]


@dataclass(frozen=True, slots=True)
class SendKeys:
    """POST ext_keys to a peer; its answer comes back to `Sender.answered`."""

    consignment: int
    peer: str
    keys: Sequence[SuppliedKey]
    initiator: SaeId
    targets: tuple[SaeId, ...]
    extensions: Extensions


@dataclass(frozen=True, slots=True)
class SendVoid:
    """POST ext_keys/void to a peer; its answer comes back to `void_answered` of the machine that wants it."""

    peer: str
    key_ids: tuple[KeyId, ...]
    initiator: SaeId
    targets: tuple[SaeId, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """A consignment has ended; `error` is None where all targets have all keys."""

    consignment: int
    error: QtrunkError | None


@dataclass(frozen=True, slots=True)
class VoidFailed:
    """For the operator: a foreign network cannot take a key back that failed here."""

    peer: str
    key_ids: tuple[KeyId, ...]


SenderEffect = SendKeys | SendVoid | Settled | VoidFailed


@dataclass(frozen=True, slots=True)
class Answer:
    """How a peer answered: the HTTP status (None: nothing that could be understood, in time), acks of a 200."""

    status: int | None
    acks: tuple[Ack, ...] = ()
    why: str = ""


@dataclass(slots=True)
class _Leg:
    targets: tuple[SaeId, ...]
    next_s: float = 0.0
    attempts: int = 0
    is_waiting: bool = False
    """For an answer to ext_keys."""


@dataclass(slots=True)
class _Consignment:
    number: int
    keys: tuple[SuppliedKey, ...]
    initiator: SaeId
    extensions: Extensions
    deadline_s: float
    legs: dict[str, _Leg] = field(default_factory=dict)
    why: str = ""
    """The last that went wrong."""


@dataclass(slots=True)
class _Voiding:
    record: Sent
    next_s: float = 0.0
    pause_s: float = RETRY_S
    is_waiting: bool = False
    voided: set[SaeId] = field(default_factory=set)
    """The targets that are said not to have it."""


class Sender:
    """The sending side of one KME, towards all foreign ones."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._consignments: dict[int, _Consignment] = {}
        self._open: dict[_Place, Sent] = {}
        """Under way."""
        self._voiding: dict[_Place, _Voiding] = {}
        self._number = 0
        self._effects: list[SenderEffect] = []

    def start(self) -> None:
        """After a (re)start, once: nobody waits for what was under way."""
        self._void(self._journal.open_sent())
        self.tick()

    def effects(self) -> list[SenderEffect]:
        """What is to be done now; to be asked after every call, also one that raised."""
        effects, self._effects = self._effects, []
        return effects

    def offer(
        self,
        keys: Sequence[SuppliedKey],
        initiator: SaeId,
        legs: Mapping[str, tuple[SaeId, ...]],
        extensions: Extensions,
    ) -> int:
        """Send keys to the KMEs of their targets; the number comes back in Settled.

        RequestRefused where a key ID was given away before. The keys' material is the caller's to wipe, after that.
        """
        for peer in legs:
            if self._journal.sent(peer, [key.key_id for key in keys]):
                raise RequestRefused(f"keys for KME {peer}: one of the key IDs was given to it before")
        self._number += 1
        now_s = self._clock.monotonic_s()
        made = _Consignment(self._number, tuple(keys), initiator, extensions, now_s + SETTLE_S)
        made.legs = {peer: _Leg(targets) for peer, targets in legs.items()}
        self._keep(
            Sent(peer=peer, key_id=key.key_id, initiator=initiator, targets=targets, state=SentState.SENT)
            for peer, targets in legs.items()
            for key in keys
        )
        self._consignments[made.number] = made
        self.tick()
        return made.number

    def tick(self) -> None:
        """What is due: repetitions, time-outs, voids."""
        now_s = self._clock.monotonic_s()
        for consignment in list(self._consignments.values()):
            if now_s >= consignment.deadline_s:
                self._give_up(consignment, consignment.why or "no word of what became of the keys")
                continue
            for peer, leg in consignment.legs.items():
                if not leg.is_waiting and now_s >= leg.next_s and self._is_open(consignment, peer):
                    leg.is_waiting = True
                    leg.attempts += 1
                    self._effects.append(
                        SendKeys(
                            *(consignment.number, peer, consignment.keys, consignment.initiator, leg.targets),
                            consignment.extensions,
                        )
                    )
        self._send_due_voids()

    def is_under_way(self, consignment: int) -> bool:
        """Whether a consignment has not settled."""
        return consignment in self._consignments

    def between(self, peer: str, initiator: SaeId, targets: Sequence[SaeId]) -> tuple[KeyId, ...]:
        """The keys of this initiator for any of these targets that are under way to a peer."""
        wanted = set(targets)
        return tuple(
            one.key_id
            for one in self._open.values()
            if one.peer == peer and one.initiator == initiator and not wanted.isdisjoint(one.targets)
        )

    # ── ext_keys ────────────────────────────────────────────────────────────────────────────────────────────────────

    def answered(self, effect: SendKeys, answer: Answer) -> None:
        """The answer to ext_keys."""
        consignment = self._consignments.get(effect.consignment)
        if consignment is None:
            # Given up meanwhile; the void is on its way.
            return
        leg = consignment.legs[effect.peer]
        leg.is_waiting = False
        now_s = self._clock.monotonic_s()
        match answer.status:
            case 202:
                self._mark(consignment, effect.peer, SentState.ACCEPTED)
                leg.next_s = now_s + ACK_WAIT_S
            case 200:
                leg.next_s = now_s + RETRY_S
                consignment.why = f"KME {effect.peer}: its answer does not say what became of all keys"
                self._heard(effect.peer, answer.acks)
            case 400 | 401 if leg.attempts == 1:
                # The promise of the standard: nothing is held there. An earlier attempt could still arrive.
                why = f"KME {effect.peer} refused the keys: {answer.why}"
                self._give_up(consignment, why, not_held_by=effect.peer)
            case 400 | 401:
                self._give_up(consignment, f"KME {effect.peer} refused the keys: {answer.why}")
            case _:
                consignment.why = f"KME {effect.peer}: {answer.why}"
                self._mark(consignment, effect.peer, SentState.UNCERTAIN)
                leg.next_s = now_s + RETRY_S * 2 ** min(leg.attempts - 1, 3)

    def acked(self, peer: str, acks: Iterable[Ack]) -> None:
        """What a peer says of keys. KeyNotFound: it is about none that we ever gave to it; nothing was changed."""
        if not self._heard(peer, acks):
            raise KeyNotFound("acks: about no key that was given to this KME, by initiator, targets and key IDs")

    def _heard(self, peer: str, acks: Iterable[Ack]) -> bool:
        """Whether any of it is about a key that was given to this peer."""
        is_known = False
        for ack in acks:
            found = self._journal.sent(peer, ack.key_ids)
            ours = [record for record in found.values() if _is_about(record, ack)]
            is_known = is_known or bool(ours)
            self._learn(peer, ack, [record.key_id for record in ours])
        return is_known

    def _learn(self, peer: str, ack: Ack, key_ids: list[KeyId]) -> None:
        match ack.status:
            case AckStatus.RELAYED:
                self._relayed(peer, ack, key_ids)
            case AckStatus.FAILED:
                self._failed(peer, ack, key_ids)
            case AckStatus.VOIDED | AckStatus.NOT_PRESENT:
                self._end_voids(peer, key_ids, ack, SentState.VOIDED)
                self._failed(peer, ack, key_ids)
            case AckStatus.FAILED_TO_VOID:
                failed = self._end_voids(peer, key_ids, ack, SentState.VOID_FAILED)
                if failed:
                    self._effects.append(VoidFailed(peer, tuple(failed)))
                # Where nothing was voided: a target has what the others do not get.
                self._failed(peer, ack, key_ids)

    def _relayed(self, peer: str, ack: Ack, key_ids: list[KeyId]) -> None:
        records = [self._open[peer, key_id] for key_id in key_ids if (peer, key_id) in self._open]
        self._keep(replace(record, relayed=record.relayed | set(ack.targets)) for record in records)
        for consignment in self._with({record.key_id for record in records}):
            places = self._places(consignment)
            if all(self._open[place].relayed == set(self._open[place].targets) for place in places):
                self._keep(replace(self._open[place], state=SentState.RELAYED) for place in places)
                del self._consignments[consignment.number]
                self._effects.append(Settled(consignment.number, None))

    def _failed(self, peer: str, ack: Ack, key_ids: list[KeyId]) -> None:
        records = [self._open[peer, key_id] for key_id in key_ids if (peer, key_id) in self._open]
        # Other words, and words on some targets only, leave open what the peer holds.
        is_sure = ack.status in (AckStatus.FAILED, AckStatus.VOIDED)
        self._keep(
            replace(record, state=SentState.FAILED)
            for record in records
            if is_sure and set(ack.targets) == set(record.targets)
        )
        for consignment in self._with({record.key_id for record in records}):
            why = f"KME {peer} says {ack.status.value} of keys for {', '.join(ack.targets)}"
            self._give_up(consignment, f"{why}: {ack.message}" if ack.message else why)

    # ── void ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def void(self, key_ids: Iterable[KeyId], peers: Iterable[str]) -> None:
        """Take keys back that the initiator was not given, relayed or not."""
        wanted = list(key_ids)
        for consignment in self._with(set(wanted)):
            self._give_up(consignment, "the keys were taken back")
        relayed = [
            record
            for peer in peers
            for record in self._journal.sent(peer, wanted).values()
            if record.state is SentState.RELAYED
        ]
        self._void(relayed)
        self.tick()

    def void_answered(self, effect: SendVoid, answer: Answer) -> None:
        """The answer to a void: 200 with acks, or 202 and acks follow; anything else is tried again, and again."""
        now_s = self._clock.monotonic_s()
        for key_id in effect.key_ids:
            waiting = self._voiding.get((effect.peer, key_id))
            if waiting is not None:
                waiting.is_waiting = False
                waiting.next_s = now_s + max(waiting.pause_s, ACK_WAIT_S if answer.status == 202 else 0.0)
                waiting.pause_s = min(2 * waiting.pause_s, RETRY_MAX_S)
        if answer.status == 200:
            self._heard(effect.peer, answer.acks)

    def voided_by_peer(self, peer: str, key_ids: Sequence[KeyId]) -> dict[KeyId, AckStatus]:
        """The receiver of keys wants them void. What the initiator may have stays: `failed to void`."""
        known = self._journal.sent(peer, key_ids)
        statuses: dict[KeyId, AckStatus] = {}
        for key_id in key_ids:
            record = known.get(key_id)
            if record is None:
                statuses[key_id] = AckStatus.NOT_PRESENT
            elif record.state in (SentState.RELAYED, SentState.VOID_FAILED):
                statuses[key_id] = AckStatus.FAILED_TO_VOID
            else:
                statuses[key_id] = AckStatus.VOIDED
        doomed = {key_id for key_id, status in statuses.items() if status is AckStatus.VOIDED}
        for consignment in self._with(doomed):
            # Voided there as well as here: a repeated ext_keys that is late must meet a tombstone.
            self._give_up(consignment, f"KME {peer} voided the keys")
        return statuses

    # ── small things ────────────────────────────────────────────────────────────────────────────────────────────────

    def _give_up(self, consignment: _Consignment, why: str, not_held_by: str = "") -> None:
        """The keys will never be given to the initiator: void them wherever they could be."""
        places = [place for place in self._places(consignment) if place in self._open]
        self._keep(replace(self._open[place], state=SentState.FAILED) for place in places if place[0] == not_held_by)
        self._void([self._open[place] for place in places if place in self._open])
        del self._consignments[consignment.number]
        self._effects.append(Settled(consignment.number, RouteUnavailable(why)))
        self._send_due_voids()

    def _void(self, records: Sequence[Sent]) -> None:
        moved = [replace(record, state=SentState.VOIDING) for record in records]
        self._keep(moved)
        for record in moved:
            self._voiding[record.peer, record.key_id] = _Voiding(record)

    def _send_due_voids(self) -> None:
        now_s = self._clock.monotonic_s()
        groups: dict[tuple[str, SaeId, tuple[SaeId, ...]], list[KeyId]] = {}
        for (peer, key_id), waiting in self._voiding.items():
            if not waiting.is_waiting and now_s >= waiting.next_s:
                waiting.is_waiting = True
                groups.setdefault((peer, waiting.record.initiator, waiting.record.targets), []).append(key_id)
        for (peer, initiator, targets), ids in groups.items():
            for first in range(0, len(ids), KEYS_PER_REQUEST_MAX):
                self._effects.append(
                    SendVoid(peer, tuple(ids[first : first + KEYS_PER_REQUEST_MAX]), initiator, targets)
                )

    def _end_voids(self, peer: str, key_ids: Iterable[KeyId], ack: Ack, state: SentState) -> list[KeyId]:
        """The voids that this ack ends: it failed for any target, or it is done for the last one."""
        waiting = [self._voiding[peer, key_id] for key_id in key_ids if (peer, key_id) in self._voiding]
        if state is SentState.VOIDED:
            for one in waiting:
                one.voided |= set(ack.targets)
            waiting = [one for one in waiting if one.voided == set(one.record.targets)]
        self._keep(replace(one.record, state=state) for one in waiting)
        for one in waiting:
            del self._voiding[peer, one.record.key_id]
        return [one.record.key_id for one in waiting]

    def _mark(self, consignment: _Consignment, peer: str, state: SentState) -> None:
        self._keep(
            replace(self._open[peer, key.key_id], state=state)
            for key in consignment.keys
            if self._open[peer, key.key_id].state is not state
        )

    def _keep(self, records: Iterable[Sent]) -> None:
        """On record first, then in mind."""
        kept = list(records)
        if not kept:
            return
        self._journal.put_sent(kept)
        for record in kept:
            place = (record.peer, record.key_id)
            if record.state in UNDER_WAY:
                self._open[place] = record
            else:
                self._open.pop(place, None)

    def _is_open(self, consignment: _Consignment, peer: str) -> bool:
        """Whether a target of this leg is still to be heard of."""
        records = [self._open[peer, key.key_id] for key in consignment.keys]
        return any(record.relayed != set(record.targets) for record in records)

    def _with(self, key_ids: set[KeyId]) -> list[_Consignment]:
        is_in: Callable[[_Consignment], bool] = lambda one: any(key.key_id in key_ids for key in one.keys)  # noqa: E731
        return [consignment for consignment in self._consignments.values() if is_in(consignment)]

    @staticmethod
    def _places(consignment: _Consignment) -> list[_Place]:
        return [(peer, key.key_id) for peer in consignment.legs for key in consignment.keys]


def _is_about(record: Sent, ack: Ack) -> bool:
    return record.initiator == ack.initiator and set(ack.targets) <= set(record.targets)
