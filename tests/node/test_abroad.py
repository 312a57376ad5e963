"""Keys from and for a foreign network at a node that is not beside it, whatever is lost and whoever stops at any write.

Outgoing: what our SAE was given the foreign network has and never voids; what it was not given is void there, or an SAE
there has it and the record says so. Incoming: never twice, and never once the foreign network was told that it is void.
"""

import asyncio
import random
import tempfile
from pathlib import Path

import pytest
from foreign_kit import FAR, OURS, A, C, Chaos, Stop, World
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from qtrunk.base.errors import NotAuthorised, RequestRefused, StoreError, WireError
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.base.wire import encode
from qtrunk.kms.interwork.records import AckStatus, Errand, ErrandState, SentState
from qtrunk.node.onward import Export, Exported, Given

SHM = "/dev/shm" if Path("/dev/shm").is_dir() else None
QUIET_S = 1500.0
"""Longer than two of the longest pauses."""


def play(script, chaos: Chaos | None = None) -> World:
    with tempfile.TemporaryDirectory(dir=SHM) as directory:
        world = World(Path(directory), chaos or Chaos())
        world.run(script(world))
        return world


async def settled(world: World) -> None:
    """Without further faults everything comes to an end; then both sides agree about each key."""
    world.writes_in_danger = dict(world.writes)
    is_disk_suspect = StoreError in world.chaos.writes.values()
    world.chaos.calm()
    if is_disk_suspect:
        # What was said to have failed may be on the disk all the same; the machines find it when they start.
        world.restart_all()
    border = lambda: world.lives[A]  # noqa: E731
    until_s = world.loop.time() + QUIET_S
    await asyncio.sleep(60)
    while world.loop.time() < until_s:
        journal = border().out.journal
        if not (journal.open_errands() or journal.open_sent() or journal.open_received()):
            break
        await asyncio.sleep(10)
    assert not journal.open_errands()
    assert not journal.open_sent()
    assert not journal.open_received()
    await asyncio.sleep(130)
    west = world.west
    for key_id, state in world.made().items():
        if state == "delivered":
            assert key_id in west.held
            assert world.given.get(key_id, west.held[key_id]) == west.held[key_id]
        else:
            assert state == "destroyed"
            assert key_id not in world.given
            records = journal.sent("west-kme", [key_id])
            if key_id in west.taken:
                assert records[key_id].state is SentState.VOID_FAILED
            else:
                assert key_id not in west.held
        waiting = (border().store.receipt(key_id) or {}).get("stored")
        assert waiting is None or waiting["state"] != "stored", "nothing stays at the border"
    for key_id, acks in west.acks.items():
        is_void = {AckStatus.VOIDED, AckStatus.FAILED, AckStatus.NOT_PRESENT} & set(acks)
        stored = (world.lives[C].store.receipt(key_id) or {}).get("stored")
        assert not is_void or stored is None or stored["state"] != "stored", "void, and waits to be given out"
        assert AckStatus.FAILED_TO_VOID not in acks or stored["state"] == "delivered"
        world.collect(key_id)


# ── outgoing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_sae_anywhere_gets_keys_that_the_foreign_network_has_and_the_receipt_says_the_way():
    async def script(world: World) -> None:
        keys = await world.ask(3)
        assert len(keys) == 3
        assert world.given == world.west.held
        for key in keys:
            shown = world.lives[C].store.receipt(key.key_id)["initiated"]
            assert shown["state"] == "delivered"
            assert shown["receipt"]["routes"] == [["c", "b", "a"]]
            assert [hop["link"] for hop in shown["receipt"]["hops"]] == ["b-c", "a-b"]
            assert shown["receipt"]["protection"] == "qkd to node a; foreign network west states: qkd"
            at_border = world.lives[A].store.receipt(key.key_id)
            assert at_border["stored"]["receipt"]["routes"] == [["c", "b", "a"]]
            assert [(one["target"], one["state"]) for one in at_border["recipients"]] == [(FAR, "delivered")]
        await settled(world)

    play(script)


def test_a_network_that_voids_keys_or_a_border_that_is_silent_leaves_none_at_either_side():
    async def script(world: World) -> None:
        world.west.ext_keys = lambda keys, *_more: (
            world.west.void_here.update(keys) or type(world.west).ext_keys(world.west, keys, *_more)
        )
        assert await world.ask(2) == []
        assert set(world.made().values()) == {"destroyed"}
        del world.west.ext_keys
        world.lives[C].services["foreign-exported"] = lambda *_note: None
        assert await world.ask(2) == []
        assert set(world.made().values()) == {"destroyed"}
        await settled(world)
        assert not world.west.held
        assert len(world.west.void_here) == 4

    play(script)


def test_a_caller_that_goes_away_has_its_keys_taken_back():
    async def script(world: World) -> None:
        life = world.lives[C]
        world.chaos.delay_s = 1.0
        for wait_s in (0.1, 1.0, 2.0, 3.0, 4.0):
            task = life.spawn(life.abroad.initiate(OURS, [FAR], 1, 256))
            await asyncio.sleep(wait_s)
            task.cancel()
        await settled(world)

    play(script)


def test_what_is_not_possible_is_refused_before_anything_is_made():
    async def script(world: World) -> None:
        abroad = world.lives[C].abroad
        for targets, number in (([FAR, SaeId("sae-b")], 1), ([SaeId("nobody")], 1), ([FAR], 2000), ([FAR], 200)):
            with pytest.raises(RequestRefused):
                await abroad.initiate(OURS, targets, number, 256)
        assert "reserved" not in world.made().values()

    play(script)


def test_a_border_node_that_signs_nothing_is_no_way_out_and_that_is_said_at_once():
    async def script(world: World) -> None:
        world.keyless = {A}
        with pytest.raises(RequestRefused, match="reached from node a; that has no signing key"):
            await world.lives[C].abroad.initiate(OURS, [FAR], 1, 256)
        assert world.made() == {}

    play(script)


def test_only_the_node_of_an_sae_and_the_border_of_a_network_have_a_say():
    async def script(world: World) -> None:
        keys = await world.ask(1)
        key_ids = [key.key_id for key in keys]
        await settled(world)
        border, far = world.lives[A].onward, world.lives[C].abroad
        with pytest.raises(NotAuthorised):
            border._asked(NodeId("b"), encode(Export(number="n", key_ids=key_ids, initiator=OURS, targets=[FAR])))
        with pytest.raises(NotAuthorised):
            border._heard(NodeId("b"), encode(Given(number="n", key_ids=key_ids, is_given=False)))
        with pytest.raises(NotAuthorised):
            far._told(NodeId("b"), encode(Exported(number="n", key_ids=key_ids, is_relayed=True)))
        with pytest.raises(WireError):
            border._heard(C, encode(Given(number="n", key_ids=["no key"], is_given=False)))
        for target in (SaeId("sae-a"), SaeId("sae-b"), SaeId("nobody")):
            with pytest.raises(NotAuthorised):
                border._asked(C, encode(Export(number="n", key_ids=key_ids, initiator=OURS, targets=[FAR, target])))
        for twice in ({"key_ids": 2 * key_ids, "targets": [FAR]}, {"key_ids": key_ids, "targets": [FAR, FAR]}):
            with pytest.raises(WireError):
                border._asked(C, encode(Export(number="n", initiator=OURS, **twice)))
        # Handed over once: another errand about the same key is none.
        told = []
        world.lives[A].tell = lambda _node, _service, octets: told.append(octets)
        border._asked(C, encode(Export(number="m", key_ids=key_ids, initiator=OURS, targets=[FAR])))
        assert b"does not hold" in told[0]
        # Nor is a key of our own SAE, which waits here for another of ours.
        stored = KeyId("00000000-0000-4000-8000-000000000001")
        ends = (OURS, [SaeId("sae-a")], [SaeId("sae-a")])
        world.lives[A].store.store_keys([(stored, Secret(bytes(32)))], *ends, 256, {}, world.clock.unix_s() + 60)
        border._asked(C, encode(Export(number="o", key_ids=[stored], initiator=OURS, targets=[FAR])))
        assert b"does not hold" in told[1]
        assert len(world.lives[A].store.collect(SaeId("sae-a"), OURS, [stored])) == 1
        assert world.west.held.keys() == set(key_ids)

    play(script)


def test_what_a_failed_write_left_open_is_told_to_nobody():
    async def script(world: World) -> None:
        life, told = world.lives[A], []
        put, tell = life.out.journal.put_errand, life.tell

        def said_to_fail(errand: Errand) -> None:
            put(errand)
            if errand.state is ErrandState.RELAYED:
                raise StoreError("the disk does not take it, or so it says")

        life.out.journal.put_errand = said_to_fail
        life.tell = lambda *note: (told.append(note), tell(*note))
        asking = asyncio.ensure_future(world.ask(1))
        while not (journal := life.out.journal).open_errands() or not world.west.held:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        (errand,) = journal.open_errands()
        assert errand.state is ErrandState.RELAYED, "on the disk after all"
        words = {"key_ids": [*errand.key_ids], "initiator": OURS, "targets": [FAR]}
        life.onward._asked(C, encode(Export(number=errand.number, **words)))
        assert told == []
        assert await asking == []
        await settled(world)
        assert not world.west.held

    play(script)


async def outgoing(world: World) -> None:
    await world.ask(2)
    await asyncio.sleep(3)
    await settled(world)
    assert await world.ask(1), "then all is as before"


async def incoming(world: World) -> None:
    first, second, third = world.send(2), world.send(1), world.send(1)
    await asyncio.sleep(1)
    world.collect(first[0])
    world.void([*second, KeyId(str(first[1]))])
    await asyncio.sleep(5)
    for key_id in (*first, *second, *third):
        world.collect(key_id)
        world.repeat([key_id])
    await settled(world)


@pytest.mark.parametrize("script", [outgoing, incoming])
@pytest.mark.parametrize("node", ["a", "c"])
def test_a_node_may_stop_at_any_write(script, node):
    """Before it and after it; incoming, where there are many, by turns."""
    count = play(script).writes_in_danger[NodeId(node)]
    assert count > 4
    for number in range(1, count + 1):
        for is_after in (False, True) if script is outgoing else (number % 2 == 0,):
            assert play(script, Chaos(writes={(node, number, is_after): Stop})).stops == 1


@pytest.mark.parametrize("node", ["a", "c"])
def test_a_write_may_fail_or_be_said_to(node):
    """And the process goes on. By turns it is not on the disk, and is."""
    count = play(outgoing).writes_in_danger[NodeId(node)]
    for number in range(1, count + 1):
        assert play(outgoing, Chaos(writes={(node, number, number % 2 == 0): StoreError})).stops == 1


NOTES = ("foreign-export", "foreign-exported", "foreign-given")
STOPS = st.tuples(st.sampled_from("ac"), st.integers(1, 60), st.booleans())


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 1 << 32),
    loss=st.sampled_from([0.0, 0.1, 0.3]),
    doubling=st.sampled_from([0.0, 0.3]),
    delay_s=st.sampled_from([0.0, 0.5, 3.0]),
    silent=st.sampled_from([(), (), NOTES[:1], NOTES[1:2], NOTES[2:], NOTES[1:]]),
    stops=st.dictionaries(STOPS, st.sampled_from([Stop, Stop, StoreError]), max_size=4),
)
def test_whatever_is_lost_doubled_late_or_cut_short(seed, loss, doubling, delay_s, silent, stops):
    """Also where one kind of note never comes until the faults end: then the record has to say who has what."""
    dice = random.Random(seed)
    chaos = Chaos(loss=loss, doubling=doubling, delay_s=delay_s, silent=frozenset(silent), writes=stops, dice=dice)

    async def script(world: World) -> None:
        sent: list[KeyId] = []
        asked = []
        for _ in range(12):
            match dice.randrange(6):
                case 0 | 1:
                    asked.append(asyncio.ensure_future(world.ask(dice.randint(1, 3))))
                case 2:
                    sent += world.send(dice.randint(1, 3))
                case 3 if sent:
                    world.void(dice.sample(sent, 1))
                case 4 if sent:
                    one = dice.choice(sent)
                    world.collect(one)
                    world.repeat([one])
                case _:
                    for key_id in list(world.west.held):
                        if dice.random() < 0.3:
                            world.west.collect(key_id)
            await asyncio.sleep(dice.choice([0.0, 0.2, 2.0, 20.0]))
        await asyncio.gather(*asked)
        await settled(world)
        assert await world.ask(1), "then all is as before"

    world = play(script, chaos)
    event(f"given {min(3, len(world.given))}, stops {world.stops}")
