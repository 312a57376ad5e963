"""Interworking (ETSI GS QKD 020): two KMEs over a channel that loses, doubles, reorders, delays, while both crash.

Two things must hold whatever happens: keys are released to the initiator only when all targets have them, and no target
is given a key after it was reported voided.
"""

import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from kms_kit import KEK_OCTETS, StandingClock

from qtrunk.base.errors import AuthenticationFailed, KeyNotFound, RequestRefused, StoreError
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.kms.interwork import file
from qtrunk.kms.interwork.file import JournalFile
from qtrunk.kms.interwork.receiver import TELL_S, Carry, Receiver, SendAck, Withdraw
from qtrunk.kms.interwork.records import (
    KEPT_S,
    OUTCOME,
    Ack,
    AckStatus,
    Collision,
    Consignment,
    Extensions,
    ReceivedState,
    SentState,
    VoidRequest,
)
from qtrunk.kms.interwork.sender import ACK_WAIT_S, SETTLE_S, Answer, Sender, SendKeys, SendVoid, Settled, VoidFailed

SHM = "/dev/shm" if Path("/dev/shm").is_dir() else None
ANNE, BELA, BERT = SaeId("anne"), SaeId("bela"), SaeId("bert")
CALLBACK = "https://a.example:8443/kmapi/v1/ext_keys/ack"


def made(number: int = 1, start: int = 0) -> list[SuppliedKey]:
    return [
        SuppliedKey(key_id=KeyId(str(uuid.UUID(int=place + 1, version=4))), material=Secret(bytes([place % 251]) * 32))
        for place in range(start, start + number)
    ]


def ids(keys) -> tuple[KeyId, ...]:
    return tuple(key.key_id for key in keys)


STATES = "SELECT state, count(*) FROM {} GROUP BY state"


@pytest.fixture
def opened(memory_path: Path, kek: Secret, clock: StandingClock) -> Iterator[Callable[..., JournalFile]]:
    journals: list[JournalFile] = []

    def open_(name: str = "a", own_kek: Secret = kek) -> JournalFile:
        journals.append(JournalFile(memory_path / f"{name}.db", name, own_kek, clock))
        return journals[-1]

    yield open_
    # The last one of a file has all that was written to it.
    for journal in {journal._path: journal for journal in journals}.values():
        read = {table: dict(journal._rows(STATES.format(table))) for table in ("sent", "received")}
        assert journal.counts() == read
    for journal in journals:
        journal.close()


def arrival(keys, targets=(BELA,), callback=CALLBACK, initiator=ANNE, peer="a", extensions=None) -> Consignment:
    return Consignment(
        peer=peer,
        keys=keys,
        initiator=initiator,
        targets=targets,
        callback=callback,
        extensions=extensions or Extensions(),
    )


def void_of(keys, targets=(BELA,), initiator=ANNE, peer="a", callback=CALLBACK) -> VoidRequest:
    return VoidRequest(peer=peer, key_ids=ids(keys), initiator=initiator, targets=targets, callback=callback)


def ack_of(status, keys, targets=(BELA,), initiator=ANNE) -> Ack:
    return Ack(status=status, key_ids=ids(keys), initiator=initiator, targets=targets)


def only(effects, kind):
    (found,) = effects
    assert isinstance(found, kind)
    return found


# ── the receiver ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def receiver(opened, clock) -> Receiver:
    return Receiver(opened("b"), clock)


def test_keys_are_carried_with_their_extensions_and_told_until_the_sender_knows(receiver, clock):
    keys = made(3)
    extensions = Extensions(of_request=b'{"E1_a": [1,  2]}', of_key={keys[1].key_id: b'{"E1_b":null}'})
    receiver.accept(arrival(keys, (BELA, BERT), extensions=extensions))
    carry = only(receiver.effects(), Carry)
    assert [(key.key_id, key.material) for key in carry.keys] == [(key.key_id, key.material) for key in keys]
    assert (carry.targets, carry.extensions) == ((BELA, BERT), extensions)
    receiver.carried(carry, is_done=True)
    told = only(receiver.effects(), SendAck)
    assert told.ack == ack_of(AckStatus.RELAYED, keys, (BELA, BERT))
    receiver.told(told, Answer(None))
    assert receiver.effects() == []
    clock.now_s += 2
    receiver.tick()
    again = only(receiver.effects(), SendAck)
    assert again == told
    receiver.told(again, Answer(200))
    clock.now_s += 1000
    receiver.tick()
    assert receiver.effects() == []


def test_what_our_network_cannot_carry_is_withdrawn_before_it_is_told_as_failed(receiver, clock):
    receiver.accept(arrival(made(2)))
    receiver.carried(only(receiver.effects(), Carry), is_done=False)
    withdraw = only(receiver.effects(), Withdraw)
    receiver.withdrawn(withdraw, None)
    assert receiver.effects() == []
    clock.now_s += 2
    receiver.tick()
    withdraw = only(receiver.effects(), Withdraw)
    receiver.withdrawn(withdraw, {withdraw.key_ids[0]})
    told = {effect.ack.status: effect.ack.key_ids for effect in receiver.effects()}
    assert told == {AckStatus.FAILED_TO_VOID: withdraw.key_ids[:1], AckStatus.FAILED: withdraw.key_ids[1:]}


def test_a_repeated_request_is_no_second_key_and_is_told_again(receiver):
    keys = made(2)
    receiver.accept(arrival(keys))
    carry = only(receiver.effects(), Carry)
    receiver.accept(arrival(keys))
    assert receiver.effects() == []
    receiver.carried(carry, is_done=True)
    receiver.told(only(receiver.effects(), SendAck), Answer(200))
    receiver.accept(arrival(keys))
    assert only(receiver.effects(), SendAck).ack == ack_of(AckStatus.RELAYED, keys)


@pytest.mark.parametrize(
    "other",
    [
        arrival([SuppliedKey(key_id=made()[0].key_id, material=Secret(b"x" * 32))]),
        arrival(made(), initiator=SaeId("alan")),
        arrival(made(), (BELA, BERT)),
        arrival(made(), peer="c"),
    ],
    ids=["material", "initiator", "targets", "peer"],
)
def test_one_key_id_is_one_key(receiver, other):
    receiver.accept(arrival(made()))
    receiver.effects()
    with pytest.raises(Collision):
        receiver.accept(other)
    assert receiver.effects() == []
    assert receiver.outcomes("a", ids(made())) == {made()[0].key_id: None}


def test_a_key_that_we_gave_away_does_not_come_back(opened, clock):
    journal = opened()
    Sender(journal, clock).offer(made(), SaeId("ours"), {"c": (BELA,)}, Extensions())
    with pytest.raises(Collision):
        Receiver(journal, clock).accept(arrival(made()))


def test_a_voided_key_does_not_come_back_to_life(receiver):
    keys = made(2)
    receiver.void(void_of(keys[:1]))
    assert only(receiver.effects(), SendAck).ack.status is AckStatus.NOT_PRESENT
    receiver.accept(arrival(keys))
    kinds = {type(effect): effect for effect in receiver.effects()}
    assert ids(kinds[Carry].keys) == ids(keys[1:])
    receiver.carried(kinds[Carry], is_done=True)
    assert receiver.outcomes("a", ids(keys)) == {
        keys[0].key_id: AckStatus.VOIDED,
        keys[1].key_id: AckStatus.RELAYED,
    }


def test_another_kme_cannot_spoil_a_key_id_by_voiding_it_first(receiver):
    receiver.void(void_of(made(), peer="c"))
    receiver.effects()
    receiver.accept(arrival(made()))
    only(receiver.effects(), Carry)


def test_a_void_waits_for_a_carrying_that_is_under_way(receiver):
    keys = made(2)
    receiver.accept(arrival(keys))
    carry = only(receiver.effects(), Carry)
    receiver.void(void_of(keys))
    assert receiver.effects() == []
    receiver.carried(carry, is_done=True)
    withdraw = only(receiver.effects(), Withdraw)
    receiver.withdrawn(withdraw, {keys[0].key_id})
    told = {effect.ack.status: effect.ack.key_ids for effect in receiver.effects()}
    assert told == {AckStatus.FAILED_TO_VOID: ids(keys[:1]), AckStatus.VOIDED: ids(keys[1:])}


def test_a_void_of_everything_is_of_one_initiator_and_its_targets(receiver):
    receiver.accept(arrival(made(2)))
    receiver.accept(arrival(made(1, 2), initiator=SaeId("alan")))
    receiver.accept(arrival(made(1, 3), targets=(BERT,)))
    for carry in receiver.effects():
        receiver.carried(carry, is_done=True)
    receiver.effects()
    assert set(receiver.void(void_of(()))) == set(ids(made(2)))
    with pytest.raises(Collision):
        receiver.void(void_of(made(1, 2)))


def test_relayed_keys_that_the_sender_never_took_are_withdrawn_when_it_says_that_it_will_not(receiver, clock):
    keys = made(2)
    receiver.accept(arrival(keys))
    receiver.carried(only(receiver.effects(), Carry), is_done=True)
    told = only(receiver.effects(), SendAck)
    clock.now_s += TELL_S + 1
    receiver.told(told, Answer(503))
    clock.now_s += 10
    receiver.tick()
    void = only(receiver.effects(), SendVoid)
    acks = (ack_of(AckStatus.VOIDED, keys[:1]), ack_of(AckStatus.FAILED_TO_VOID, keys[1:]))
    receiver.void_answered(void, Answer(200, acks))
    withdraw = only(receiver.effects(), Withdraw)
    assert withdraw.key_ids == ids(keys[:1])
    receiver.withdrawn(withdraw, set())
    assert receiver.outcomes("a", ids(keys)) == {
        keys[0].key_id: AckStatus.VOIDED,
        keys[1].key_id: AckStatus.RELAYED,
    }
    clock.now_s += 1000
    receiver.tick()
    assert receiver.effects() == []
    with pytest.raises(KeyNotFound):
        receiver.acked("a", [ack_of(AckStatus.VOIDED, made(1, 7))])


def test_a_receiver_goes_on_where_it_stopped(opened, clock):
    keys = made(5)
    first = Receiver(opened("b"), clock)
    for key in keys:
        first.accept(arrival([key]))
    carries = first.effects()
    for carry in carries[1:]:
        first.carried(carry, is_done=carry is not carries[4])
    first.void(void_of(keys[2:3]))
    for effect in first.effects():
        if isinstance(effect, SendAck) and effect.ack.key_ids == ids(keys[3:4]):
            first.told(effect, Answer(200))
    second = Receiver(opened("b"), clock)
    second.tick()
    doing = {type(effect): effect for effect in second.effects()}
    (again,) = doing[Carry].keys
    assert (again.key_id, again.material) == (keys[0].key_id, keys[0].material)
    assert doing[SendAck].ack.key_ids == ids(keys[1:2])
    withdrawing = [one.key_id for one in opened("b").open_received() if one.state not in (*OUTCOME, *"x")]
    assert set(withdrawing) == {keys[0].key_id, keys[2].key_id, keys[4].key_id}


# ── the sender ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sender(opened, clock) -> Sender:
    made_ = Sender(opened("a"), clock)
    made_.start()
    return made_


def offered(sender, keys, legs=None) -> SendKeys:
    sender.offer(keys, ANNE, legs or {"b": (BELA,)}, Extensions())
    return only(sender.effects(), SendKeys)


def test_keys_are_released_only_when_all_targets_of_all_kmes_have_all_of_them(sender):
    keys = made(2)
    number = sender.offer(keys, ANNE, {"b": (BELA, BERT), "c": (SaeId("cleo"),)}, Extensions())
    for effect in sender.effects():
        sender.answered(effect, Answer(202))
    sender.acked("b", [ack_of(AckStatus.RELAYED, keys, (BELA,)), ack_of(AckStatus.RELAYED, keys[:1], (BERT,))])
    sender.acked("c", [ack_of(AckStatus.RELAYED, keys, (SaeId("cleo"),))])
    assert sender.effects() == []
    sender.acked("b", [ack_of(AckStatus.RELAYED, keys[1:], (BERT,))])
    assert sender.effects() == [Settled(number, None)]


def test_a_kme_speaks_only_for_keys_that_were_given_to_it(sender):
    keys = made(1)
    sender.answered(offered(sender, keys), Answer(202))
    for wrong in (
        ("c", ack_of(AckStatus.RELAYED, keys)),
        ("b", ack_of(AckStatus.RELAYED, keys, initiator=BERT)),
        ("b", ack_of(AckStatus.RELAYED, keys, (BELA, BERT))),
        ("b", ack_of(AckStatus.RELAYED, made(1, 5))),
    ):
        with pytest.raises(KeyNotFound):
            sender.acked(wrong[0], [wrong[1]])
    assert sender.effects() == []


@pytest.mark.parametrize("status", [400, 401])
def test_a_refusal_promises_something_only_of_the_first_attempt(sender, clock, status):
    sender.answered(offered(sender, made()), Answer(status))
    assert isinstance(only(sender.effects(), Settled).error, Exception)
    sender.answered(offered(sender, made(1, 1)), Answer(503))
    clock.now_s += 2
    sender.tick()
    sender.answered(only(sender.effects(), SendKeys), Answer(status))
    settled, void = sender.effects()
    assert settled.error is not None
    assert void.key_ids == ids(made(1, 1))


@pytest.mark.parametrize("status", [408, 503, 500, 302, None])
def test_what_is_uncertain_is_tried_again_and_voided_in_the_end(sender, clock, status):
    sender.answered(offered(sender, made()), Answer(status, why="no luck"))
    assert sender.effects() == []
    clock.now_s += 2
    sender.tick()
    sender.answered(only(sender.effects(), SendKeys), Answer(202))
    clock.now_s += ACK_WAIT_S - 1
    sender.tick()
    assert sender.effects() == []
    clock.now_s += 2
    sender.tick()
    sender.answered(only(sender.effects(), SendKeys), Answer(202))
    clock.now_s += SETTLE_S
    sender.tick()
    settled, void = sender.effects()
    assert "no luck" in str(settled.error)
    # Late words change nothing: the initiator has been refused.
    sender.acked("b", [ack_of(AckStatus.RELAYED, made())])
    assert sender.effects() == []
    sender.void_answered(void, Answer(400))
    clock.now_s += 2
    sender.tick()
    sender.void_answered(only(sender.effects(), SendVoid), Answer(200, (ack_of(AckStatus.VOIDED, made()),)))
    clock.now_s += 1000
    sender.tick()
    assert sender.effects() == []


@pytest.mark.parametrize(
    ("status", "targets", "is_voided"),
    [
        (AckStatus.FAILED, (BELA, BERT), False),
        (AckStatus.VOIDED, (BELA, BERT), False),
        (AckStatus.FAILED, (BERT,), True),
        (AckStatus.NOT_PRESENT, (BELA, BERT), True),
        (AckStatus.FAILED_TO_VOID, (BELA, BERT), True),
    ],
)
def test_one_bad_word_fails_all_keys_of_a_request(sender, status, targets, is_voided):
    keys = made(2)
    sender.answered(offered(sender, keys, {"b": (BELA, BERT)}), Answer(202))
    sender.acked("b", [ack_of(status, keys[:1], targets)])
    effects = sender.effects()
    assert effects[0].error is not None
    voided = {key_id for effect in effects[1:] for key_id in effect.key_ids}
    assert voided == set(ids(keys if is_voided else keys[1:]))


def test_a_key_that_cannot_be_voided_is_told_to_the_operator_and_never_used_again(sender, clock):
    keys = made(1)
    sender.answered(offered(sender, keys), Answer(202))
    sender.void(ids(keys), ["b"])
    settled, void = sender.effects()
    assert settled.error is not None
    sender.void_answered(void, Answer(202))
    sender.acked("b", [ack_of(AckStatus.FAILED_TO_VOID, keys)])
    assert sender.effects() == [VoidFailed("b", ids(keys))]
    with pytest.raises(RequestRefused):
        sender.offer(keys, ANNE, {"b": (BELA,)}, Extensions())


def test_keys_that_were_relayed_and_not_used_can_be_taken_back(sender):
    keys = made(1)
    sender.answered(offered(sender, keys), Answer(200, (ack_of(AckStatus.RELAYED, keys),)))
    assert only(sender.effects(), Settled).error is None
    sender.void(ids(keys), ["b"])
    assert only(sender.effects(), SendVoid).key_ids == ids(keys)


def test_words_on_one_target_at_a_time_add_up(sender):
    keys = made(1)
    sender.answered(offered(sender, keys, {"b": (BELA, BERT)}), Answer(202))
    sender.void(ids(keys), ["b"])
    _, void = sender.effects()
    sender.void_answered(void, Answer(202))
    sender.acked("b", [ack_of(AckStatus.VOIDED, keys, (BELA,))])
    assert sender._voiding
    sender.acked("b", [ack_of(AckStatus.NOT_PRESENT, keys, (BERT,))])
    assert not sender._voiding


def test_the_receiver_may_void_what_the_initiator_does_not_have(sender):
    keys = made(2)
    sender.answered(offered(sender, keys[:1]), Answer(202))
    sender.acked("b", [ack_of(AckStatus.RELAYED, keys[:1])])
    sender.effects()
    sender.answered(offered(sender, keys[1:]), Answer(202))
    assert sender.voided_by_peer("b", [*ids(keys), *ids(made(1, 9))]) == {
        keys[0].key_id: AckStatus.FAILED_TO_VOID,
        keys[1].key_id: AckStatus.VOIDED,
        made(1, 9)[0].key_id: AckStatus.NOT_PRESENT,
    }
    assert sender.effects()[0].error is not None
    sender.acked("b", [ack_of(AckStatus.RELAYED, keys[1:])])
    assert not [effect for effect in sender.effects() if isinstance(effect, Settled)]


def test_what_had_not_settled_is_voided_after_a_restart(opened, clock):
    first = Sender(opened("a"), clock)
    for place in range(3):
        first.offer(made(1, place), ANNE, {"b": (BELA,)}, Extensions())
    for effect in first.effects()[:2]:
        first.answered(effect, Answer(202))
    first.acked("b", [ack_of(AckStatus.RELAYED, made(1))])
    second = Sender(opened("a"), clock)
    second.start()
    assert set(only(second.effects(), SendVoid).key_ids) == set(ids(made(2, 1)))
    assert opened("a").sent("b", ids(made(1)))[made()[0].key_id].state is SentState.RELAYED


# ── the journal ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_material_is_sealed_at_rest_and_gone_when_it_was_carried(opened, clock, memory_path):
    secret = b"a secret of thirty-two octets..."
    receiver = Receiver(opened("b"), clock)
    receiver.accept(arrival([SuppliedKey(key_id=made()[0].key_id, material=Secret(secret))]))
    on_disk = b"".join(path.read_bytes() for path in memory_path.glob("b.db*"))
    assert made()[0].key_id.encode() in on_disk
    assert secret not in on_disk
    with pytest.raises(AuthenticationFailed):
        opened("b", Secret(bytes(32))).open_received()
    receiver.carried(only(receiver.effects(), Carry), is_done=True)
    (record,) = opened("b").received("a", ids(made())).values()
    assert (record.state, record.material) == (ReceivedState.RELAYED, None)


def test_records_go_when_they_are_old_and_ended_only(opened, clock):
    journal = opened("b")
    receiver = Receiver(journal, clock)
    for place in range(2):
        receiver.accept(arrival(made(1, place)))
    receiver.carried(receiver.effects()[0], is_done=True)
    receiver.told(only(receiver.effects(), SendAck), Answer(200))
    clock.now_s += KEPT_S + 1
    journal.forget(clock.now_s - KEPT_S)
    assert set(journal.received("a", ids(made(2)))) == set(ids(made(1, 1)))
    assert journal.counts() == {"sent": {}, "received": {"relaying": 1}}


def test_counts_are_kept_and_not_read_from_months_of_records(opened, clock):
    journal = opened("b")
    receiver = Receiver(journal, clock)
    receiver.accept(arrival(made(3)))
    statements: list[str] = []
    journal._db.set_trace_callback(statements.append)
    assert journal.counts() == {"sent": {}, "received": {"relaying": 3}}
    assert statements == []
    receiver.carried(receiver.effects()[0], is_done=True)
    assert statements
    journal._db.set_trace_callback(None)
    assert journal.counts()["received"] == {"relayed": 3}


def test_a_peer_has_a_share_of_the_record_and_no_more(opened, clock, monkeypatch):
    monkeypatch.setattr(file, "RECORDS_MAX", 3)
    receiver = Receiver(opened("b"), clock)
    receiver.void(void_of(made(3)))
    with pytest.raises(StoreError):
        receiver.accept(arrival(made(1, 5)))
    receiver.accept(arrival(made(1, 5), peer="c"))
    assert opened("b").received("a", ids(made(1, 5))) == {}


# ── whatever happens ────────────────────────────────────────────────────────────────────────────────────────────────


class Stop(Exception):
    """The process stops, just before or just after it wrote."""


class Fragile(JournalFile):
    """A journal whose process may stop at any write."""

    stop = ""
    """What happens at the next write: '', 'before' or 'after'."""

    def put_sent(self, records) -> None:
        self._put(super().put_sent, records)

    def put_received(self, records) -> None:
        self._put(super().put_received, records)

    def _put(self, put, records) -> None:
        stop, self.stop = self.stop, ""
        if stop == "before":
            raise Stop
        put(records)
        if stop == "after":
            raise Stop


@dataclass
class World:
    """Two KMEs, the network behind the second, and every message between them as a thing that may be late."""

    data: st.DataObject
    place: Path
    clock: StandingClock = field(default_factory=StandingClock)
    journals: list[Fragile] = field(default_factory=list)
    flying: list[Callable[[], None]] = field(default_factory=list)
    at_targets: set[KeyId] = field(default_factory=set)
    buried: set[KeyId] = field(default_factory=set)
    """Voided in the network behind: it takes such keys no more from a process that is gone."""
    delivered: set[KeyId] = field(default_factory=set)
    said_voided: set[KeyId] = field(default_factory=set)
    released: set[KeyId] = field(default_factory=set)
    offered: dict[int, tuple[KeyId, ...]] = field(default_factory=dict)
    made: int = 0

    def __post_init__(self) -> None:
        self.journals = [self.opened(0), self.opened(1)]
        self.restart_sender()
        self.restart_receiver()

    def opened(self, which: int) -> Fragile:
        return Fragile(self.place / f"{which}.db", str(which), Secret(KEK_OCTETS), self.clock)

    def restart_sender(self) -> None:
        self.journals[0].close()
        self.journals[0] = self.opened(0)
        self.offered.clear()
        self.life_a = object()
        self.sender = Sender(self.journals[0], self.clock)
        self.sender.start()
        self.drain_sender()

    def restart_receiver(self) -> None:
        self.journals[1].close()
        self.journals[1] = self.opened(1)
        self.life_b = object()
        self.receiver = Receiver(self.journals[1], self.clock)
        self.at_receiver(self.receiver.tick)

    def at_sender(self, call, *arguments, **more):
        """The call's result; a stop is a restart, and then there is none."""
        try:
            return call(*arguments, **more)
        except Stop:
            self.restart_sender()
            return Stop
        except KeyNotFound:
            return KeyNotFound
        finally:
            self.drain_sender()

    def at_receiver(self, call, *arguments, **more):
        try:
            return call(*arguments, **more)
        except Stop:
            self.restart_receiver()
            return Stop
        except KeyNotFound:
            return KeyNotFound
        finally:
            self.drain_receiver()

    def fly(self, what: Callable[[], None]) -> None:
        self.flying.append(what)

    def do_once(self, what: Callable[[], None]) -> None:
        """As a message that is never doubled: a process carries out its own effects once."""
        waiting = [what]
        self.fly(lambda: waiting.pop()() if waiting else None)

    # ── effects ─────────────────────────────────────────────────────────────────────────────────────────────────

    def drain_sender(self) -> None:
        life = self.life_a
        for effect in self.sender.effects():
            match effect:
                case Settled(number, error):
                    key_ids = self.offered.pop(number, ())
                    if error is None:
                        assert set(key_ids) <= self.at_targets | self.delivered, "released before all targets have it"
                        assert not set(key_ids) & self.said_voided
                        self.released |= set(key_ids)
                        event("released")
                case SendKeys():
                    self.fly(lambda effect=effect: self.ext_keys(effect, life))
                    self.fly(lambda effect=effect: self.no_answer(effect, life, "answered"))
                case SendVoid():
                    self.fly(lambda effect=effect: self.void(effect, life))
                    self.fly(lambda effect=effect: self.no_answer(effect, life, "void_answered"))

    def no_answer(self, effect, life, what: str) -> None:
        if life is self.life_a:
            self.at_sender(getattr(self.sender, what), effect, Answer(None))

    def answer(self, effect, life, answer, what: str) -> None:
        def arrive() -> None:
            if life is self.life_a:
                self.at_sender(getattr(self.sender, what), effect, answer)

        self.fly(arrive)

    def ext_keys(self, effect: SendKeys, life) -> None:
        done = self.at_receiver(
            self.receiver.accept,
            arrival([SuppliedKey(key_id=one.key_id, material=Secret(one.material.reveal())) for one in effect.keys],
                    effect.targets),
        )  # fmt: skip
        if done is not Stop:
            self.answer(effect, life, Answer(202), "answered")

    def void(self, effect: SendVoid, life) -> None:
        request = VoidRequest(
            peer="a", key_ids=effect.key_ids, initiator=effect.initiator, targets=effect.targets, callback=CALLBACK
        )
        if self.at_receiver(self.receiver.void, request) is not Stop:
            self.answer(effect, life, Answer(202), "void_answered")

    def drain_receiver(self) -> None:
        life = self.life_b
        for effect in self.receiver.effects():
            match effect:
                case Carry():
                    self.do_once(lambda effect=effect: self.carry(effect, life))
                case Withdraw():
                    self.do_once(lambda effect=effect: self.withdraw(effect, life))
                case SendAck():
                    self.fly(lambda effect=effect: self.ack(effect, life))
                    self.fly(lambda effect=effect: self.tell(effect, Answer(None), life))
                case SendVoid():
                    self.fly(lambda effect=effect: self.void_back(effect, life))

    def carry(self, effect: Carry, life) -> None:
        is_done = self.data.draw(st.sampled_from([True, True, True, False]), "carry works")
        # What a process that is gone still had on its way is the network's to stop; the rest is the machine's.
        fresh = {one.key_id for one in effect.keys} - (set() if life is self.life_b else self.buried)
        is_done = is_done and len(fresh) == len(effect.keys)
        if is_done or self.data.draw(st.booleans(), "half of it arrives"):
            self.at_targets |= fresh - self.delivered
        if life is self.life_b:
            self.at_receiver(self.receiver.carried, effect, is_done=is_done)

    def withdraw(self, effect: Withdraw, life) -> None:
        if self.data.draw(st.sampled_from([True, True, False]), "withdrawing works"):
            self.buried |= set(effect.key_ids)
            self.at_targets -= set(effect.key_ids)
            answer = set(effect.key_ids) & self.delivered
        else:
            answer = None
        if life is self.life_b:
            self.at_receiver(self.receiver.withdrawn, effect, answer)

    def ack(self, effect: SendAck, life) -> None:
        if effect.ack.status is AckStatus.VOIDED:
            self.said_voided |= set(effect.ack.key_ids)
        if effect.ack.status in (AckStatus.VOIDED, AckStatus.FAILED, AckStatus.NOT_PRESENT):
            assert not set(effect.ack.key_ids) & self.at_targets, "told as gone while targets may have it"
        done = self.at_sender(self.sender.acked, "b", [effect.ack])
        if done is not Stop:
            status = 400 if done is KeyNotFound else 200
            self.fly(lambda: self.tell(effect, Answer(status), life))

    def tell(self, effect: SendAck, answer: Answer, life) -> None:
        if life is self.life_b:
            self.at_receiver(self.receiver.told, effect, answer)

    def void_back(self, effect: SendVoid, life) -> None:
        statuses = self.at_sender(self.sender.voided_by_peer, "b", effect.key_ids)
        if statuses is Stop:
            self.fly(lambda: self.void_told(effect, Answer(None), life))
            return
        acks = tuple(
            Ack(status=status, key_ids=(one,), initiator=effect.initiator, targets=effect.targets)
            for one, status in statuses.items()
        )
        self.fly(lambda: self.void_told(effect, Answer(200, acks), life))

    def void_told(self, effect: SendVoid, answer: Answer, life) -> None:
        event("the receiver voids")
        if life is self.life_b:
            self.at_receiver(self.receiver.void_answered, effect, answer)

    # ── what happens ────────────────────────────────────────────────────────────────────────────────────────────

    def offer(self) -> None:
        keys = made(self.data.draw(st.integers(1, 2), "keys"), self.made)
        self.made += len(keys)
        number = self.at_sender(self.sender.offer, keys, ANNE, {"b": (BELA, BERT)}, Extensions())
        if number is not Stop:
            self.offered[number] = ids(keys)

    def take_back(self) -> None:
        waiting = sorted(self.offered)
        if waiting:
            number = self.data.draw(st.sampled_from(waiting), "which")
            self.at_sender(self.sender.void, self.offered[number], ["b"])

    def collect(self) -> None:
        """A target is quick, or knows IDs that it should not: it takes whatever its node has."""
        there = sorted(self.at_targets)
        if there:
            key_id = self.data.draw(st.sampled_from(there), "collected")
            assert key_id not in self.said_voided, "given out after it was reported voided"
            self.at_targets.discard(key_id)
            self.delivered.add(key_id)

    def step(self) -> None:
        what = self.data.draw(
            st.sampled_from(["fly"] * 9 + ["offer", "time", "time", "twice", "lose", "collect", "crash", "back"]),
            "what",
        )
        match what:
            case "offer" if self.made < 8:
                self.offer()
            case "fly" | "twice" | "lose" if self.flying:
                place = self.data.draw(st.integers(0, min(5, len(self.flying) - 1)), "which")
                flight = self.flying[place] if what == "twice" else self.flying.pop(place)
                if what != "lose":
                    flight()
            case "time":
                self.clock.now_s += self.data.draw(st.sampled_from([1.0, 5.0, 40.0, 200.0]), "s")
                self.at_sender(self.sender.tick)
                self.at_receiver(self.receiver.tick)
            case "collect":
                self.collect()
            case "back":
                self.take_back()
            case "crash":
                journal = self.data.draw(st.sampled_from(list(self.journals)), "who")
                journal.stop = self.data.draw(st.sampled_from(["before", "after"]), "when")

    def settle(self) -> None:
        """No more faults: everything must come to an end."""
        self.restart_receiver()
        self.restart_sender()
        for _ in range(400):
            while self.flying:
                self.flying.pop(0)()
            if not self.journals[0].open_sent() and not self.journals[1].open_received():
                break
            self.clock.now_s += 301.0
            self.at_sender(self.sender.tick)
            self.at_receiver(self.receiver.tick)
        assert not self.journals[0].open_sent()
        assert not self.journals[1].open_received()
        for key_id, record in self.journals[0].sent("b", ids(made(self.made))).items():
            assert record.state is not SentState.VOIDED or key_id not in self.at_targets


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_whatever_is_lost_doubled_late_or_cut_short(data):
    with tempfile.TemporaryDirectory(dir=SHM) as place:
        world = World(data, Path(place))
        try:
            for _ in range(data.draw(st.integers(1, 60), "steps")):
                world.step()
            world.settle()
        finally:
            for journal in world.journals:
                journal.close()
