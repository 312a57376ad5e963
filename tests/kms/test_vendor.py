"""Two ends of a link that a vendor's KMEs feed, joined by octets: what both hold, and what faults cost."""

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from kms_kit import LINK, StandingClock

from qtrunk.base.errors import KeyNotFound, WireError
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.base.wire import decode, encode
from qtrunk.crypto.thrift import FREE_LOSSES, LOSS_PAUSE_S
from qtrunk.kms import vendorend
from qtrunk.kms.store import KeyStore
from qtrunk.kms.vendor import VendorAlice, VendorBob
from qtrunk.kms.vendorend import (
    BLOCK_TIMEOUT_S,
    COLLECT_TIMEOUT_S,
    MISMATCH,
    REFUSED_PAUSE_S,
    Collect,
    Destroy,
    Disconnect,
    Fetch,
    Hold,
    Join,
    Release,
    ToPeer,
)
from qtrunk.kms.vendorwords import (
    AUTH_OCTETS,
    Abort,
    Accept,
    Confirm,
    Offer,
    Released,
    Resolution,
    Resolve,
    Resume,
    Stream,
    Tagged,
    Wait,
)
from qtrunk.stages import Role
from qtrunk.topology import Link, VendorEnd, VendorSource

KEYS, KEY_BITS = 32, 256
OCTETS = KEYS * KEY_BITS // 8
PRESHARED_OCTETS = 4096
SOURCE = VendorSource(
    trust="Acme QX-1",
    alice=VendorEnd(kme_url="https://a", sae=SaeId("sa")),
    bob=VendorEnd(kme_url="https://b", sae=SaeId("sb")),
    keys=KEYS,
    key_bits=KEY_BITS,
    epsilon_per_key=1e-9,
)


def link_of(source: VendorSource = SOURCE) -> Link:
    return Link(id=LINK, alice=NodeId("a"), bob=NodeId("b"), length_km=1, loss_db=1, vendor=source)


def key_of(key_id: KeyId) -> bytes:
    return hashlib.shake_256(key_id.encode()).digest(KEY_BITS // 8)


def fresh_id() -> KeyId:
    return KeyId(str(uuid.uuid4()))


class Dice:
    def __init__(self) -> None:
        self.count = 0

    def octets(self, count: int) -> bytes:
        self.count += 1
        return hashlib.shake_256(b"dice %d" % self.count).digest(count)


@dataclass
class Kmes:
    """The vendor's pair: what one gives out the other gives once more."""

    waiting: dict[KeyId, bytes] = field(default_factory=dict)
    per_request: int = 12
    fetched: int = 0
    at_bob: Callable[[bytes], bytes] = lambda octets: octets
    bob_fails: bool | None = None
    """None: he is served; else whether his KME is down."""

    def fetch(self, number: int) -> list[SuppliedKey]:
        ids = [fresh_id() for _ in range(min(number, self.per_request))]
        self.waiting |= {key_id: key_of(key_id) for key_id in ids}
        self.fetched += len(ids)
        return [SuppliedKey(key_id=key_id, material=Secret(key_of(key_id))) for key_id in ids]

    def collect(self, key_ids: tuple[KeyId, ...]) -> list[SuppliedKey]:
        return [
            SuppliedKey(key_id=key_id, material=Secret(self.at_bob(self.waiting.pop(key_id))))
            for key_id in key_ids[: self.per_request]
        ]


def told(octets: bytes) -> object:
    message = decode(octets, Tagged | Resume | Abort | Wait | Stream)
    if not isinstance(message, Tagged):
        return message
    return decode(message.body, Offer | Accept | Confirm | Released | Resolve | Resolution)


class World:
    """Both ends with real stores, and a wire on which `change` acts; None is a message that never arrives."""

    def __init__(self, open_store: Callable[..., KeyStore], clock: StandingClock) -> None:
        self.clock, self.open_store = clock, open_store
        self.kmes = Kmes()
        self.link = {"a": link_of(), "b": link_of()}
        self.stores: dict[str, KeyStore] = {}
        self.ends: dict[str, VendorAlice | VendorBob] = {}
        self.wire: list[tuple[str, bytes]] = []
        self.change: Callable[[str, object, bytes], bytes | None] = lambda _sender, _message, octets: octets
        self.said: list[tuple[str, object]] = []
        self.gone: list[tuple[str, Destroy]] = []
        self.why: list[str] = []
        self.joined: list[bytes] = []
        self.is_up = False
        self.epsilon_max = 1.0
        for node in "ab":
            self.restart(node)
            self.stores[node].add_preshared(LINK, Secret(bytes(range(256)) * (PRESHARED_OCTETS // 256)))

    def restart(self, node: str) -> None:
        """The process of a node dies and starts again: what is in its store is all it knows."""
        if node in self.stores:
            self.stores[node].close()
        store = self.stores[node] = self.open_store(node)
        store.set_role(LINK, Role.ALICE if node == "a" else Role.BOB)
        kind = VendorAlice if node == "a" else VendorBob
        auth = store.auth_ledger(LINK, AUTH_OCTETS, self.epsilon_max)
        self.ends[node] = kind(link=self.link[node], store=store, auth=auth, random=Dice(), clock=self.clock)
        if self.is_up:
            self.is_up = False
            self.wire.clear()
            other = "b" if node == "a" else "a"
            self.do(other, self.ends[other].disconnected())

    def connect(self) -> None:
        self.is_up = True
        for node in "ba":
            self.do(node, self.ends[node].connected())

    def cut(self) -> None:
        self.is_up = False
        self.wire.clear()
        for node in "ab":
            self.do(node, self.ends[node].disconnected())

    def do(self, node: str, effects: list[vendorend.VendorEffect]) -> None:
        end, store = self.ends[node], self.stores[node]
        for effect in effects:
            match effect:
                case ToPeer():
                    message = told(effect.octets)
                    self.said.append((node, message))
                    octets = self.change(node, message, effect.octets)
                    if self.is_up and octets is not None:
                        self.wire.append((node, octets))
                case Fetch():
                    self.do(node, end.answered(self.kmes.fetch(effect.number)))
                case Collect() if self.kmes.bob_fails is not None:
                    self.do(node, end.failed(1.0, is_down=self.kmes.bob_fails))
                case Collect():
                    self.do(node, end.answered(self.kmes.collect(effect.key_ids)))
                case Join():
                    self.joined.append(effect.ksid)
                case Hold():
                    store.hold(effect.key)
                case Release():
                    store.release(LINK, effect.block)
                case Destroy():
                    store.destroy(LINK, effect.block, effect.cause)
                    self.gone.append((node, effect))
                case Disconnect():
                    self.why.append(effect.why)
                    self.cut()
                    return

    def deliver(self, messages: int = 1000) -> None:
        for _ in range(messages):
            if not self.wire:
                return
            sender, octets = self.wire.pop(0)
            receiver = "b" if sender == "a" else "a"
            self.do(receiver, self.ends[receiver].receive(octets))

    def tick(self, seconds: float = 1.0) -> None:
        self.clock.now_s += seconds
        for node in "ab":
            self.do(node, self.ends[node].tick())

    def run(self, blocks: int) -> None:
        """Until both ends released so many, reconnecting where there is no connection; then Alice pauses."""
        for _ in range(200):
            # Bob is first: whatever Alice hears of it finds her paused.
            self.ends["a"].pause(is_paused=len(self.released("b")) >= blocks)
            if not self.is_up:
                self.connect()
            self.deliver(1)
            if len(self.released("a")) >= blocks:
                return
            if not self.wire:
                self.tick()
        raise AssertionError(f"{blocks} blocks did not come: {self.why}, {self.gone}")

    def released(self, node: str) -> set[int]:
        store = self.stores[node]
        return {block for block in range(1, store.last_block(LINK) + 1) if store.is_released(LINK, block)}

    def check_alike(self) -> None:
        """Both released the same blocks, hold nothing else, and have the same octets in both directions."""
        assert self.released("a") == self.released("b")
        assert self.stores["a"].pending(LINK) == self.stores["b"].pending(LINK) == []
        assert [self.stores[node].ledger(LINK).unaccounted for node in "ab"] == [0, 0]
        for area, taker, follower in ((Role.ALICE, "a", "b"), (Role.BOB, "b", "a")):
            octets = self.stores[taker].level(LINK).own_octets
            assert octets == self.stores[follower].level(LINK).peer_octets > 0
            taken = self.stores[taker].allocate(LINK, area, octets)
            assert self.stores[follower].follow(LINK, area, taken.slices) == taken.material

    def causes(self) -> set[tuple[str, str]]:
        return {(node, effect.cause) for node, effect in self.gone}


@pytest.fixture
def world(open_store, clock) -> World:
    return World(open_store, clock)


# ── blocks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_keys_of_the_kmes_fill_both_pools_alike_and_replenish_authentication(world):
    world.run(3)
    assert world.released("a") == {1, 2, 3}
    assert not world.gone
    assert not world.why
    a, b = (world.stores[node].level(LINK) for node in "ab")
    assert a.auth_octets == b.auth_octets == PRESHARED_OCTETS - 3 * AUTH_OCTETS + 3 * OCTETS // 2 - waste(world)
    assert a.total_octets == 3 * OCTETS // 2
    world.check_alike()


def waste(world) -> int:
    """Octets of authentication key that were too few for a portion."""
    return world.stores["a"].ledger(LINK).skipped


def test_the_first_octets_are_those_of_the_vendor_in_the_order_of_the_offer(world):
    world.run(1)
    offer = next(message for _, message in world.said if isinstance(message, Offer))
    material = b"".join(key_of(KeyId(key_id)) for key_id in offer.key_ids)
    taken = world.stores["a"].allocate(LINK, Role.ALICE, 100)
    start = taken.slices[0].offset
    assert bytes(taken.material.reveal()) == material[start : start + 100]


def test_a_block_says_what_stands_behind_it(world):
    world.run(1)
    for node in "ab":
        record = world.stores[node].block_record(LINK, 1)
        assert record["proof"] == SOURCE.statement
        assert "Acme QX-1" in str(record["proof"])
        assert "not proven here" in str(record["proof"])
        assert record["epsilon_secret"] == pytest.approx(KEYS * 1e-9)
        assert 0 < float(str(record["epsilon_correct"])) < 1e-30
        assert record["authentication"] == "wegman-carter"
        spent = sum(float(str(record[f"epsilon_{part}"])) for part in ("secret", "correct", "authentic"))
        assert world.stores[node].epsilon(LINK) == pytest.approx(spent)


def test_where_no_epsilon_is_stated_the_operators_counts(world):
    source = replace(SOURCE, epsilon_per_key=None)
    for node in "ab":
        world.link[node] = link_of(source)
        world.restart(node)
    world.run(1)
    record = world.stores["b"].block_record(LINK, 1)
    assert record["epsilon_secret"] == world.link["b"].distillation.epsilon_secret
    assert "operator's" in str(record["proof"])


def test_no_key_and_no_plain_digest_of_one_is_on_the_wire(world):
    sent = []
    world.change = lambda _sender, _message, octets: sent.append(octets) or octets
    world.run(2)
    on_wire = b"".join(sent)
    offers = [message for _, message in world.said if isinstance(message, Offer)]
    for offer in offers:
        keys = [key_of(KeyId(key_id)) for key_id in offer.key_ids]
        assert not any(key[:8] in on_wire for key in keys)
        whole = b"".join(keys)
        assert not any(hashlib.new(name, whole).digest()[:16] in on_wire for name in ("sha256", "sha3_256", "sha512"))
    assert len({offer.hash for offer in offers}) == len(offers)


def test_alice_pauses_where_the_pool_is_full(world):
    world.ends["a"].pause(is_paused=True)
    world.connect()
    world.deliver()
    world.tick()
    assert world.kmes.fetched == 0
    world.run(1)


# ── faults of the KMEs ──────────────────────────────────────────────────────────────────────────────────────────────


def test_keys_that_differ_cost_their_block_and_nothing_is_available(world):
    world.kmes.at_bob = lambda octets: bytes([octets[0] ^ 1]) + octets[1:]
    world.connect()
    world.deliver(10)
    assert ("b", MISMATCH) in world.causes()
    assert ("a", MISMATCH) in world.causes()
    assert world.released("a") == world.released("b") == set()
    world.kmes.at_bob = lambda octets: octets
    world.clock.now_s += 3600
    world.run(1)
    world.check_alike()


def test_a_kme_of_bob_that_is_down_costs_no_key_however_long_it_takes(world):
    world.kmes.bob_fails = True
    world.connect()
    world.deliver()
    for _ in range(20):
        world.tick(0.5 * COLLECT_TIMEOUT_S)
        world.deliver()
    assert world.kmes.fetched == KEYS
    assert world.ends["a"].thrift.losses == 1
    world.kmes.bob_fails = None
    world.run(1)
    assert not world.gone
    world.check_alike()


def test_keys_that_bobs_kme_does_not_have_are_given_up_in_time(world):
    world.kmes.bob_fails = False
    world.connect()
    world.deliver()
    for _ in range(40):
        world.tick(2)
        world.deliver()
    assert world.causes() == {("a", "vendor-kme"), ("b", "vendor-kme")}
    world.kmes.bob_fails = None
    world.run(1)
    world.check_alike()


def test_a_failing_kme_of_alice_is_asked_again_after_a_pause(world):
    world.connect()
    world.wire.clear()
    fetches: list[Fetch] = []
    do = world.do
    world.do = lambda node, effects: (
        fetches.extend(e for e in effects if isinstance(e, Fetch))
        or do(node, [e for e in effects if not isinstance(e, Fetch)])
    )
    world.do("a", world.ends["a"].receive(encode(Resume(last_block=0))))
    assert fetches == [Fetch(KEYS)]
    world.tick()
    assert len(fetches) == 1, "one request at a time"
    world.do("a", world.ends["a"].failed(5.0, is_down=True))
    world.tick(4)
    assert len(fetches) == 1
    world.tick(2)
    assert fetches == [Fetch(KEYS)] * 2


@pytest.mark.parametrize("fault", ["short", "known", "twice"])
def test_keys_that_alices_kme_cannot_have_meant_are_not_kept(world, fault):
    world.run(1)
    old = next(message for _, message in world.said if isinstance(message, Offer)).key_ids[0]
    alice = world.ends["a"]
    keys = {
        "short": [(fresh_id(), bytes(KEY_BITS // 8 - 1))],
        "known": [(KeyId(old), b"k" * (KEY_BITS // 8))],
        "twice": [(fresh_id(), b"k" * (KEY_BITS // 8)), (fresh_id(), b"k" * (KEY_BITS // 8))],
    }[fault]
    with pytest.raises(WireError):
        alice.answered([SuppliedKey(key_id=key_id, material=Secret(octets)) for key_id, octets in keys])
    alice.pause(is_paused=False)
    world.tick()
    world.deliver()
    offers = [message for _, message in world.said if isinstance(message, Offer)]
    assert not {key_id for key_id, _ in keys} & set(offers[-1].key_ids)


@pytest.mark.parametrize("fault", ["other", "short"])
def test_keys_that_bob_did_not_ask_for_cost_the_block(world, fault):
    collect = world.kmes.collect
    made = {
        "other": lambda ids: [replace(key, key_id=fresh_id()) for key in collect(ids)],
        "short": lambda ids: [replace(key, material=Secret(b"short")) for key in collect(ids)],
    }
    world.kmes.collect = made[fault]
    world.connect()
    world.deliver(10)
    assert {("a", "vendor-kme"), ("b", "vendor-kme")} <= world.causes()
    assert world.released("a") == world.released("b") == set()


def test_an_answer_for_a_block_that_is_over_is_not_taken_for_the_next(world):
    asked: list[Collect] = []
    do = world.do
    world.do = lambda node, effects: (
        asked.extend(e for e in effects if isinstance(e, Collect))
        or do(node, [e for e in effects if not isinstance(e, Collect)])
    )
    world.connect()
    world.deliver()
    late = world.kmes.collect(asked[0].key_ids)
    world.cut()
    world.connect()
    world.deliver()
    assert len(asked) == 1, "the KME is asked for one thing at a time"
    world.do("b", world.ends["b"].answered(late))
    assert len(asked) == 2
    assert not set(asked[1].key_ids) & set(asked[0].key_ids)
    world.do = do
    world.do("b", [asked[1]])
    world.run(1)
    assert world.released("a") == {2}
    world.check_alike()


# ── crashes and cuts ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("at", range(1, 9))
@pytest.mark.parametrize("dies", ["", "a", "b", "ab"])
def test_a_cut_or_a_crash_at_any_message_leaves_both_ends_alike(world, at, dies):
    """At most one block is lost, and what is available at one end is at the other."""
    world.connect()
    world.deliver(at)
    world.cut()
    for node in dies:
        world.restart(node)
    world.run(3)
    world.check_alike()
    lost = set(range(1, world.stores["a"].last_block(LINK) + 1)) - world.released("a")
    assert len(lost) <= 1
    for block in lost:
        reasons = [reason for node in "ab" for reason in reasons_at(world, node, block)]
        assert reasons
        assert set(reasons) == {"channel"}


def reasons_at(world, node: str, block: int) -> list[object]:
    """Why a block ended, where this end ever knew of it."""
    try:
        return [world.stores[node].block_record(LINK, block)["reason"]]
    except KeyNotFound:
        return []


@pytest.mark.parametrize("kind", [Offer, Accept, Confirm, Released, Resolve, Resolution])
def test_any_message_may_get_lost(world, kind):
    """Settlements too: the cut that loses Released makes one, whose messages are lost in turn."""
    lost: list[object] = []

    def lose(_sender, message, octets):
        is_first = isinstance(message, kind) and not lost
        is_cause = kind in (Resolve, Resolution) and isinstance(message, Released) and len(lost) < 1
        if not (is_first or is_cause) or (kind is Resolve and isinstance(message, Resolve) and not message.held):
            return octets
        lost.append(message)
        return None

    world.change = lose
    world.connect()
    world.deliver()
    assert lost
    world.tick(BLOCK_TIMEOUT_S + 1)
    world.run(2)
    world.check_alike()


def test_a_settlement_that_is_cut_again_uses_the_same_words_and_no_more_key(world):
    world.change = lambda _sender, message, octets: None if isinstance(message, Released) else octets
    world.connect()
    world.deliver()
    assert world.released("b") == {1}
    assert world.stores["a"].pending(LINK) == [1]
    world.change = lambda _sender, message, octets: None if isinstance(message, Resolution) else octets
    world.cut()
    before = world.stores["a"].ledger(LINK).authentication
    for _ in range(3):
        world.connect()
        world.deliver()
        world.cut()
    resolves = [message for _, message in world.said if isinstance(message, Resolve) and message.held]
    assert len(resolves) == 3
    assert len(set(map(encode, resolves))) == 1
    assert world.stores["a"].ledger(LINK).authentication - before == AUTH_OCTETS
    world.change = lambda _sender, _message, octets: octets
    world.run(2)
    world.check_alike()


def test_a_disk_that_does_not_record_the_hold_keeps_accept_back(world):
    hold, fails = world.stores["b"].hold, [True]

    def failing(key):
        if fails:
            fails.pop()
            raise WireError("the disk is full")
        hold(key)

    world.stores["b"].hold = failing
    world.connect()
    with pytest.raises(WireError):
        world.deliver()
    assert not any(isinstance(message, Accept) for _, message in world.said)
    world.cut()
    world.run(1)
    world.check_alike()


# ── a man in the middle ─────────────────────────────────────────────────────────────────────────────────────────────


def forge(octets: bytes, **changes) -> bytes:
    message = decode(octets, Tagged)
    body = decode(message.body, Offer | Accept | Confirm | Released | Resolve | Resolution)
    given = {name: getattr(body, name) for name in body.__struct_fields__}
    return encode(Tagged(body=encode(type(body)(**given | changes)), mac=message.mac))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Offer, {"block": 77}),
        (Offer, {"key_ids": [fresh_id() for _ in range(KEYS)]}),
        (Offer, {"hash": bytes(16)}),
        (Offer, {"auth_octets": AUTH_OCTETS}),
        (Accept, {"block": 1}),
        (Confirm, {"block": 1}),
        (Released, {"block": 1}),
    ],
)
def test_a_changed_message_costs_at_most_its_block_and_makes_nothing_available_alone(world, kind, changes):
    done: list[object] = []

    def change(_sender, message, octets):
        if not isinstance(message, kind) or done:
            return octets
        done.append(message)
        forged = forge(octets, **changes)
        if forged == octets:  # nothing to change but the tag
            tagged = decode(octets, Tagged)
            forged = encode(Tagged(body=tagged.body, mac=bytes([tagged.mac[0] ^ 1]) + tagged.mac[1:]))
        return forged

    world.change = change
    world.connect()
    world.deliver(6)
    assert done
    both = world.released("a") & world.released("b")
    for node, other in ("ab", "ba"):
        for block in world.released(node) - both:
            assert block in world.stores[other].pending(LINK), "available here and not even held there"
    world.run(2)
    world.check_alike()


def test_a_word_of_one_end_is_not_taken_for_the_others(world):
    """Reflection: Alice's own Confirm comes back to her as Released, with its tag."""
    done: list[object] = []

    def reflect(sender, message, octets):
        if isinstance(message, Confirm) and not done:
            done.append(message)
            tagged = decode(octets, Tagged)
            world.wire.append(("b", encode(Tagged(body=encode(Released(block=1)), mac=tagged.mac))))
            return None
        return octets

    world.change = reflect
    world.connect()
    world.deliver(5)
    assert 1 not in world.released("a")
    world.run(2)
    world.check_alike()


def test_replayed_offers_buy_nothing_and_no_number_is_lost(world):
    offers: list[bytes] = []
    world.change = lambda _s, message, octets: (offers.append(octets) if isinstance(message, Offer) else None) or octets
    world.run(1)
    last = world.stores["b"].last_block(LINK)
    spent = world.stores["b"].ledger(LINK).authentication
    for forged in (offers[0], forge(offers[0], block=last + 1), forge(offers[0], block=1 << 60)):
        world.do("b", world.ends["b"].receive(forged))
        if not world.is_up:
            world.connect()
    assert world.stores["b"].last_block(LINK) == last
    assert world.stores["b"].ledger(LINK).authentication == spent
    assert not any(isinstance(effect, Collect) for effect in world.ends["b"].tick())


def test_forged_offers_do_not_empty_the_pool_at_once(world):
    """Without TLS, a forger who knows the next portion could make Bob spend it: he waits, longer every time."""
    world.run(1)
    bob, store = world.ends["b"], world.stores["b"]
    spent = 0
    for _ in range(FREE_LOSSES + 5):
        copy = store.level(LINK).auth_octets
        reserved = world.stores["a"].reserve_auth(LINK, AUTH_OCTETS, 0.0, 1.0)
        offer = Offer(
            block=50,
            key_ids=[fresh_id() for _ in range(KEYS)],
            key_bits=KEY_BITS,
            statement=SOURCE.statement,
            auth_octets=AUTH_OCTETS,
            hash=bytes(16),
            auth_block=reserved.block,
            auth_offset=reserved.offset,
        )
        world.do("b", bob.receive(encode(Tagged(body=encode(offer), mac=bytes(16)))))
        spent += store.level(LINK).auth_octets < copy
    assert spent == FREE_LOSSES + 1
    assert store.last_block(LINK) == 1
    world.clock.now_s += LOSS_PAUSE_S + 1
    world.run(2)
    world.check_alike()


def test_ends_with_different_topologies_say_so_and_make_nothing(world):
    world.link["b"] = link_of(replace(SOURCE, trust="Another vendor"))
    world.restart("b")
    world.connect()
    world.deliver(4)
    assert any("same topology" in why for why in world.why)
    assert world.released("a") == world.released("b") == set()


HUGE = encode(Tagged(body=encode(Resolve(held=[1], auth_block=1 << 63, auth_offset=1 << 63)), mac=bytes(16)))


@pytest.mark.parametrize("octets", [b"", b"\x00", b"junk", encode(Wait(block=1)), encode(Resume(last_block=-1)), HUGE])
def test_junk_cuts_the_connection_and_no_more(world, octets):
    world.run(1)
    for node in "ab":
        if not world.is_up:
            world.connect()
            world.deliver()
        world.do(node, world.ends[node].receive(octets))
    world.run(2)
    world.check_alike()


# ── budgets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_when_the_epsilons_are_spent_no_block_is_made_and_the_reason_is_on_record(world):
    world.epsilon_max = 1.5 * KEYS * 1e-9
    for node in "ab":
        world.restart(node)
    world.run(1)
    world.ends["a"].pause(is_paused=False)
    world.tick()
    world.deliver()
    assert world.causes() == {("a", "epsilon")}
    fetched = world.kmes.fetched
    world.tick(0.5 * REFUSED_PAUSE_S)
    world.deliver()
    assert world.stores["a"].last_block(LINK) == 2
    assert world.stores["a"].block_record(LINK, 2)["reason"] == "epsilon"
    assert world.kmes.fetched == fetched <= 2 * KEYS


def test_keys_outlive_a_block_that_could_not_be_authenticated(world):
    """Without authentication key the vendor's keys wait for it; they are not spent."""
    world.connect()
    store = world.stores["a"]
    while store.level(LINK).auth_octets >= AUTH_OCTETS:
        store.reserve_auth(LINK, AUTH_OCTETS, 0.0, 1.0)
    world.deliver()
    assert world.causes() == {("a", "auth-key")}
    assert world.kmes.fetched == KEYS
    world.tick(REFUSED_PAUSE_S + 1)
    world.deliver()
    assert world.kmes.fetched == KEYS


# ── key streams (GS QKD 004) ────────────────────────────────────────────────────────────────────────────────────────


def test_bob_is_told_of_the_key_stream_at_once_and_at_each_connect(world):
    for node in "ab":
        world.link[node] = link_of(replace(SOURCE, interface="etsi004"))
        world.restart(node)
    world.do("a", world.ends["a"].announce(bytes(16)))
    assert world.joined == [], "nobody is connected"
    world.connect()
    world.deliver()
    world.do("a", world.ends["a"].announce(bytes(range(16))))
    world.deliver()
    world.cut()
    world.connect()
    world.deliver()
    assert world.joined == [bytes(16), bytes(range(16)), bytes(range(16))]
    assert not world.why


def test_keys_of_a_stream_that_was_left_are_not_offered(world):
    world.link["a"] = link_of(replace(SOURCE, interface="etsi004"))
    world.restart("a")
    alice = world.ends["a"]
    old = world.kmes.fetch(KEYS - 1)
    alice.answered(old)
    alice.announce(bytes(16))
    world.connect()
    world.deliver()
    offered = {key_id for _, message in world.said if isinstance(message, Offer) for key_id in message.key_ids}
    assert offered
    assert offered.isdisjoint(key.key_id for key in old)


@pytest.mark.parametrize("node", "ab")
def test_a_key_stream_that_nobody_asked_for_cuts_the_connection(world, node):
    world.connect()
    effects = world.ends[node].receive(encode(Stream(ksid=bytes(16))))
    assert [type(effect) for effect in effects] == [Disconnect]


def test_a_key_that_comes_twice_under_two_ids_is_noticed_blocks_later(world):
    world.connect()
    world.deliver()
    (first,) = world.kmes.fetch(1)
    again = SuppliedKey(key_id=fresh_id(), material=Secret(first.material.reveal()))
    world.ends["a"].answered([first])
    world.ends["a"].announce(bytes(16))  # drops what was in store
    with pytest.raises(WireError, match="twice"):
        world.ends["a"].answered([again])
