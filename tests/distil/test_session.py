"""Two sessions joined by octets, light and stores made up: blocks follow each other, cuts are settled alike."""

from dataclasses import replace
from itertools import pairwise

import distil_link
import pytest

from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.wire import encode
from qtrunk.crypto.thrift import FREE_LOSSES, LOSS_PAUSE_S
from qtrunk.distil.authentication import AUTH_OCTETS
from qtrunk.distil.messages import Resolve
from qtrunk.distil.parties import BlockAlice, BlockBob, Destroy, DistilParameters, Hold, Release
from qtrunk.distil.session import (
    BLOCK_TIMEOUT_S,
    MONITOR,
    SETTLE_TRIES,
    Announce,
    Arm,
    Disconnect,
    LinkAlice,
    LinkBob,
    LinkEnd,
    ToPeer,
)

LIGHT = {block: distil_link.light(100 + block, clicks=350_000, qber=0.01, block=block) for block in (1, 2, 3, 4)}
COUNT = LIGHT[1].pulses.count


def light_of(block):
    """Later blocks look like the fourth."""
    return LIGHT[min(block, 4)]


def slices(block, parts=2):
    """A block's light as its module hands it over: start, pulses, positions, bits."""
    seen, total = light_of(block).detections, light_of(block).pulses.count
    edges = [total * part // parts for part in range(parts + 1)]
    for start, end in pairwise(edges):
        here = (seen.positions >= start) & (seen.positions < end)
        yield start, end - start, seen.positions[here], seen.bit[here]


class Store:
    """One end's blocks: what was noted, held, released, destroyed."""

    def __init__(self):
        self.last, self.held, self.released, self.destroyed = 0, {}, {}, []

    def last_block(self, _link):
        return self.last

    def note_block(self, _link, block):
        assert block > self.last, "a block number was used twice"
        self.last = block

    def pending(self, _link):
        return sorted(self.held)

    def is_released(self, _link, block):
        return block in self.released


class World:
    """Both ends, their modules and the wire between; `lose` says which messages never arrive."""

    def __init__(self):
        self.now_s = 0.0
        self.stores = {"alice": Store(), "bob": Store()}
        self.ledgers = {name: distil_link.Ledger(bytes(range(256)) * 16) for name in ("alice", "bob")}
        self.lose = lambda sender, octets: False
        self.wire, self.armed, self.disconnects = [], {}, []
        self.sessions = {}
        self.restart("alice")
        self.restart("bob")

    def restart(self, name):
        common = {
            "alice": NodeId("a"),
            "bob": NodeId("b"),
            "parameters": DistilParameters(reconciliation="ldpc"),
            "now": lambda: 0.0,
        }
        dice = distil_link.Dice(5)
        end = LinkEnd(
            link=LinkId("a-b"),
            pulses=self.pulses,
            store=self.stores[name],
            auth=self.ledgers[name],
            block_epsilon=1e-10,
            random=dice,
            now_s=lambda: self.now_s,
            refusal=lambda pulses: "" if pulses == self.pulses(pulses.block) else "another light",
            light_s=lambda _pulses: 4.0,
            settings=lambda _seed, pulses, _positions: light_of(pulses.block).settings,
            bases=lambda _seed, pulses, _positions: light_of(pulses.block).detections.basis,
            make_alice=lambda pulses, settings: BlockAlice(
                pulses=pulses, settings=settings, light_s=4.0, auth=self.ledgers[name], random=dice, **common
            ),
            make_bob=lambda pulses, detections: BlockBob(
                pulses=pulses, detections=detections, auth=self.ledgers[name], random=dice, **common
            ),
        )
        self.sessions[name] = (LinkAlice if name == "alice" else LinkBob)(end)

    @staticmethod
    def pulses(block):
        return replace(light_of(block).pulses, block=block)

    def do(self, name, effects):
        store = self.stores[name]
        for effect in effects:
            match effect:
                case ToPeer():
                    self.wire.append((name, effect.octets))
                case Arm():
                    self.armed.setdefault(effect.pulses.block, set()).add(name)
                case Hold():
                    store.held[effect.key.block] = effect.key
                case Release():
                    store.released[effect.block] = store.held.pop(effect.block)
                case Destroy():
                    store.held.pop(effect.block, None)
                    store.destroyed.append((effect.block, effect.cause))
                case Disconnect():
                    self.disconnects.append((name, effect.why))

    def connect(self):
        self.wire.clear()
        for name in ("bob", "alice"):
            session = self.sessions[name]
            self.do(name, session.device_up())
            self.do(name, session.connected())

    def cut(self):
        self.wire.clear()
        for name, session in self.sessions.items():
            self.do(name, session.disconnected())

    def settle(self):
        while self.wire:
            sender, octets = self.wire.pop(0)
            if not self.lose(sender, octets):
                receiver = "bob" if sender == "alice" else "alice"
                self.do(receiver, self.sessions[receiver].receive(octets))

    def shine(self, block, *, is_bob_quicker=False):
        """The light of a block that both ends armed; Bob's module may be quicker to say that it is over."""
        assert self.armed[block] == {"alice", "bob"}
        seen = light_of(block).detections
        bob, alice = self.sessions["bob"], self.sessions["alice"]
        self.do("alice", alice.started(block))
        self.do("bob", bob.started(block))
        for start, count, positions, bits in slices(block):
            self.do("bob", bob.frame(block, start, count, positions, bits))
        if is_bob_quicker:
            self.do("bob", bob.finished(block, len(seen.positions)))
            self.settle()
            assert not self.stores["alice"].released, "nothing is made of it before Alice's module has spoken"
            self.do("alice", alice.finished(block))
        else:
            self.do("alice", alice.finished(block))
            self.do("bob", bob.finished(block, len(seen.positions)))
        self.settle()

    def agree(self):
        a, b = self.stores["alice"], self.stores["bob"]
        assert a.released.keys() == b.released.keys()
        assert all(a.released[n] == b.released[n] for n in a.released)
        assert not a.held
        assert not b.held


@pytest.fixture
def world():
    made = World()
    made.connect()
    made.settle()
    return made


def kind(octets):
    return octets[:1]


def test_blocks_follow_each_other_with_one_armed_ahead(world):
    assert set(world.armed) == {1, 2}
    world.shine(1)
    assert set(world.armed) == {1, 2, 3}
    world.shine(2)
    world.agree()
    assert sorted(world.stores["alice"].released) == [1, 2]
    assert not world.disconnects


def test_a_word_of_bob_that_overtakes_alices_module_waits_for_it(world):
    world.shine(1, is_bob_quicker=True)
    world.agree()
    assert sorted(world.stores["alice"].released) == [1]
    assert set(world.armed) == {1, 2, 3}
    world.shine(2)
    assert sorted(world.stores["alice"].released) == [1, 2]
    assert not world.disconnects


def test_a_word_that_overtook_a_block_that_dies_dies_with_it(world):
    bob, alice = world.sessions["bob"], world.sessions["alice"]
    world.do("alice", alice.started(1))
    world.do("bob", bob.started(1))
    for start, count, positions, bits in slices(1):
        world.do("bob", bob.frame(1, start, count, positions, bits))
    world.do("bob", bob.finished(1, len(light_of(1).detections.positions)))
    world.settle()
    world.do("alice", alice.dropped(1, "reverse power", MONITOR))
    world.settle()
    assert [name for name, store in world.stores.items() if (1, MONITOR) in store.destroyed] == ["alice", "bob"]
    world.do("alice", alice.finished(1))
    world.settle()
    world.agree()
    assert not world.stores["alice"].released
    assert not world.disconnects


@pytest.mark.parametrize("lost", range(1, 8))
def test_a_cut_after_any_message_leaves_both_ends_alike(world, lost):
    sent = []

    def lose(_sender, octets):
        if kind(octets) == b"\x01":
            sent.append(octets)
        return len(sent) >= lost

    world.lose = lose
    world.shine(1)
    world.cut()
    world.lose = lambda *_: False
    world.connect()
    world.settle()
    world.agree()
    # Once Alice holds the key, so does Bob: from Confirm on nothing is lost.
    assert (1 in world.stores["alice"].released) == (lost >= 6)
    # Blocks 2 and 3 were announced before the cut; their numbers are used up.
    world.shine(4)
    world.agree()
    assert 4 in world.stores["bob"].released


@pytest.mark.parametrize("who", ["alice", "bob"])
@pytest.mark.parametrize("lost", [5, 6, 7])
def test_a_crash_of_either_end_while_a_key_is_held_is_settled(world, who, lost):
    sent = []

    def lose(_sender, octets):
        if kind(octets) == b"\x01":
            sent.append(octets)
        return len(sent) >= lost

    world.lose = lose
    world.shine(1)
    world.restart(who)
    world.cut()
    world.lose = lambda *_: False
    world.connect()
    world.settle()
    world.agree()
    assert (1 in world.stores["alice"].released) == (lost >= 6)


def test_a_settlement_that_is_itself_cut_is_settled_the_next_time(world):
    count = [0]

    def lose(_sender, octets):
        count[0] += kind(octets) == b"\x01"
        return count[0] >= 7

    world.lose = lose
    world.shine(1)
    assert world.stores["alice"].held
    for answered in (1, 2):
        world.cut()
        seen = [0]

        def lose_from(_sender, octets, answered=answered, seen=seen):
            seen[0] += 1
            return seen[0] > answered

        world.lose = lose_from
        world.connect()
        world.settle()
    world.cut()
    world.lose = lambda *_: False
    world.connect()
    world.settle()
    world.agree()
    assert 1 in world.stores["alice"].released


def test_a_forged_settlement_is_refused(world):
    count = [0]

    def lose(_sender, octets):
        count[0] += kind(octets) == b"\x01"
        return count[0] >= 6

    world.lose = lose
    world.shine(1)
    assert world.stores["bob"].held
    world.cut()
    world.lose = lambda *_: False
    world.connect()
    _, resume = world.wire.pop(0)
    world.do("alice", world.sessions["alice"].receive(resume))
    _, resolve = world.wire.pop(0)
    for place in (len(resolve) - 5, len(resolve) // 2):
        forged = bytearray(resolve)
        forged[place] ^= 1
        world.do("bob", world.sessions["bob"].receive(bytes(forged)))
        assert not world.stores["bob"].released
    assert world.disconnects


def test_other_light_than_agreed_is_refused(world):
    strange = LIGHT[3].pulses
    message = Announce(
        block=9,
        pulses=strange.count,
        intensities=[0.9, 0.2, 0.0],
        probabilities=list(strange.probabilities),
        key_basis_probability=strange.key_basis_probability,
    )
    world.do("bob", world.sessions["bob"].receive(b"\x00" + encode(message)))
    assert "configuration" in world.disconnects[-1][1]
    assert 9 not in world.armed


def test_an_old_block_number_is_refused(world):
    message = Announce(
        block=1,
        pulses=COUNT,
        intensities=list(LIGHT[1].pulses.intensities),
        probabilities=list(LIGHT[1].pulses.probabilities),
        key_basis_probability=LIGHT[1].pulses.key_basis_probability,
    )
    world.do("bob", world.sessions["bob"].receive(b"\x00" + encode(message)))
    assert "used before" in world.disconnects[-1][1]


@pytest.mark.parametrize("octets", [b"", b"\x00", b"\x07abc", b"\x00\xff\xff", b"\x01" + bytes(3)])
def test_garbage_cuts_the_connection_and_nothing_else(world, octets):
    for name, session in world.sessions.items():
        world.do(name, session.receive(octets))
    assert [name for name, _ in world.disconnects] == ["alice", "bob"]


def test_a_silent_peer_costs_the_block_not_the_link(world):
    world.lose = lambda *_: True
    world.shine(1)
    world.now_s += BLOCK_TIMEOUT_S + 1
    for name, session in world.sessions.items():
        world.do(name, session.tick())
    assert (1, "protocol") in world.stores["alice"].destroyed
    assert (1, "protocol") in world.stores["bob"].destroyed
    assert (2, "protocol") not in world.stores["alice"].destroyed, "its light may still come"
    assert {name for name, _ in world.disconnects} == {"alice", "bob"}, "a silent connection is made anew"


def test_a_peer_that_never_says_what_it_has_costs_the_connection_not_the_link(world):
    world.cut()
    world.connect()
    world.wire.clear()
    alice = world.sessions["alice"]
    world.now_s += BLOCK_TIMEOUT_S - 1
    world.do("alice", alice.tick())
    assert world.disconnects == []
    world.now_s += 2
    world.do("alice", alice.tick())
    assert [name for name, _ in world.disconnects] == ["alice"]
    world.cut()
    world.connect()
    world.settle()
    world.now_s += BLOCK_TIMEOUT_S + 1
    world.disconnects.clear()
    world.do("alice", alice.tick())
    assert world.disconnects == [], "what was open is settled, and light has its own time"


def test_a_paused_link_announces_nothing(world):
    world.sessions["alice"].pause(is_paused=True)
    world.shine(1)
    world.shine(2)
    assert set(world.armed) == {1, 2}
    world.sessions["alice"].pause(is_paused=False)
    world.do("alice", world.sessions["alice"].tick())
    world.settle()
    assert 3 in world.armed


def test_lost_modules_cancel_the_light_at_both_ends(world):
    world.do("bob", world.sessions["bob"].device_down())
    world.settle()
    for name in ("alice", "bob"):
        assert {(1, "device"), (2, "device")} <= {(b, "device") for b, _ in world.stores[name].destroyed}


@pytest.mark.parametrize("fault", ["gap", "twice", "overlong", "missing", "miscounted"])
def test_a_module_that_loses_or_repeats_light_costs_the_block_and_nothing_else(fault):
    world = World()
    world.connect()
    bob, alice = world.sessions["bob"], world.sessions["alice"]
    first, second = slices(1)
    parts = {
        "gap": [second],
        "twice": [first, first],
        "overlong": [first, (second[0], second[1] + 1, *second[2:])],
        "missing": [first],
        "miscounted": [first, second],
    }[fault]
    for part in parts:
        world.do("bob", bob.frame(1, *part))
    world.do("alice", alice.finished(1))
    clicks = len(LIGHT[1].detections.positions) - (fault == "miscounted")
    world.do("bob", bob.finished(1, clicks))
    world.settle()
    assert not world.stores["bob"].released
    assert not world.stores["alice"].released
    world.shine(2)
    assert 2 in world.stores["bob"].released
    world.agree()


def lose_after(count):
    """Lose everything from the message of blocks with this number on."""
    seen = [0]

    def lose(_sender, octets):
        seen[0] += kind(octets) == b"\x01"
        return seen[0] >= count

    return lose


def lose_all_but(count):
    seen = [0]

    def lose(_sender, _octets):
        seen[0] += 1
        return seen[0] > count

    return lose


def spent(world):
    return [world.ledgers[name].used for name in ("alice", "bob")]


@pytest.mark.parametrize("answered", [1, 2])
def test_cutting_the_same_settlement_again_and_again_spends_no_more_key(world, answered):
    world.lose = lose_after(7)
    world.shine(1)
    assert world.stores["alice"].held
    world.cut()
    tags = set()
    for cut in range(SETTLE_TRIES):
        world.lose = lose_all_but(answered)
        world.connect()
        world.settle()
        tags |= {world.sessions["alice"]._settling[1].reference}
        world.cut()
        if cut == 0:
            used = spent(world)
    assert len(tags) == 1
    assert spent(world) == used
    # The sixth time the peer is thought to have forgotten; a new portion settles it.
    world.lose = lambda *_: False
    world.connect()
    world.settle()
    world.agree()
    assert 1 in world.stores["alice"].released


def test_key_spent_in_vain_makes_alice_wait_longer_and_longer(world):
    began_s = []
    for _ in range(FREE_LOSSES + 4):
        while not world.armed:
            world.now_s += 1.0
            world.do("alice", world.sessions["alice"].tick())
            world.settle()
            assert world.now_s < 200
        began_s.append(world.now_s)
        # Bob's Accept never comes: what Alice spent is lost.
        world.lose = lose_after(5)
        world.shine(min(world.armed))
        world.lose = lambda *_: False
        world.cut()
        world.armed.clear()
        world.connect()
        world.settle()
    waits = [later - earlier for earlier, later in pairwise(began_s)]
    assert waits[:FREE_LOSSES] == [0.0] * FREE_LOSSES
    assert waits[FREE_LOSSES:] == [4.0, 8.0, 16.0]
    assert not world.stores["alice"].released
    # One block that works, and all is well.
    while not world.armed:
        world.now_s += 1.0
        world.do("alice", world.sessions["alice"].tick())
        world.settle()
    world.shine(min(world.armed))
    world.agree()
    assert world.sessions["alice"].thrift.losses == 0


def test_no_light_is_announced_that_the_epsilon_budget_could_not_pay(world):
    world.ledgers["alice"].epsilon_max = 4.2e-10
    for block in range(1, 5):
        assert world.armed.get(block) == {"alice", "bob"}
        world.shine(block)
        world.do("alice", world.sessions["alice"].tick())
        world.settle()
    world.agree()
    assert sorted(world.stores["alice"].released) == [1, 2, 3, 4]
    assert set(world.armed) == {1, 2, 3, 4}
    assert not world.stores["alice"].destroyed


def held_but_unsettled(world):
    """Alice holds block 1, Bob's last word is lost, the connection is cut and made anew; Bob's Resume."""
    world.lose = lose_after(7)
    world.shine(1)
    assert world.stores["alice"].held
    world.lose = lambda *_: False
    world.cut()
    world.connect()
    (_, resume) = world.wire.pop(0)
    return resume


def test_one_resolution_is_looked_at_for_each_resolve(world):
    world.do("alice", world.sessions["alice"].receive(held_but_unsettled(world)))
    (_, resolve) = world.wire.pop(0)
    world.do("bob", world.sessions["bob"].receive(resolve))
    (_, resolution) = world.wire.pop(0)
    forged = resolution[:-1] + bytes([resolution[-1] ^ 1])
    world.do("alice", world.sessions["alice"].receive(forged))
    # The genuine one comes second on this connection: a forger would have had as many tries as he likes.
    world.do("alice", world.sessions["alice"].receive(resolution))
    assert not world.stores["alice"].released
    assert [name for name, _ in world.disconnects] == ["alice", "alice"]
    world.cut()
    world.connect()
    world.settle()
    world.agree()
    assert 1 in world.stores["alice"].released


def test_forged_settlements_cannot_empty_bobs_pool(world):
    before = spent(world)[1]
    for number in range(40):
        forged = Resolve(last_block=1, held=[1], auth_block=0, auth_offset=before + number * AUTH_OCTETS, tag=bytes(16))
        world.do("bob", world.sessions["bob"].receive(b"\0" + encode(forged)))
    assert spent(world)[1] - before == (FREE_LOSSES + 1) * AUTH_OCTETS
    assert len(world.disconnects) == 40
    # And no light either, until the pause is over.
    world.armed.clear()
    world.cut()
    world.connect()
    world.settle()
    assert "bob" not in {name for ends in world.armed.values() for name in ends}
    world.now_s += LOSS_PAUSE_S + 1
    for name in ("alice", "bob"):
        world.do(name, world.sessions[name].tick())
    world.settle()
    assert any(ends == {"alice", "bob"} for ends in world.armed.values())
