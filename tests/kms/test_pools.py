"""Pools: both nodes give the same octets under the same ID, each once, whatever happens; all is accounted for."""

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qtrunk.base.errors import KeyExhausted, KeyNotFound, NotAuthorised, StoreError
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.kms.consume import COLLECTED, INITIATED
from qtrunk.kms.pools import Pools
from qtrunk.kms.poolstate import HEAD_OCTETS
from qtrunk.kms.store import KeyStore

A, B = SaeId("sae-a"), SaeId("sae-b")
FOR_EVER = 1e12


def pool_totals(db: sqlite3.Connection) -> list[tuple[object, ...]]:
    return db.execute("SELECT * FROM pool_totals ORDER BY pool, reason").fetchall()


def sums_of_ended(db: sqlite3.Connection) -> list[tuple[object, ...]]:
    return db.execute(
        "SELECT pool, COALESCE(reason, ''), sum(units), sum(delivered), sum(doubtful), sum(lost), sum(destroyed) "
        "FROM pool_segments WHERE state != 'available' GROUP BY 1, 2 ORDER BY 1, 2"
    ).fetchall()


class Clock:
    now_s = 1e6
    stepped_s = 0.0
    """What the time of day was set forward."""

    def unix_s(self) -> float:
        return self.now_s + self.stepped_s

    def monotonic_s(self) -> float:
        return self.now_s


class Ends:
    """The initiator's and the target's store of one pool."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.clock, self.keks = directory, Clock(), [Secret(os.urandom(32)) for _ in range(2)]
        self.segment = 0
        self.stores: list[KeyStore] = []
        self.open()

    def open(self) -> None:
        self.stores = [
            KeyStore.open(self.directory / name, NodeId(name), kek, self.clock)
            for name, kek in zip("ab", self.keks, strict=True)
        ]

    @property
    def pools(self) -> tuple[Pools, Pools]:
        return self.stores[0].pools, self.stores[1].pools

    def crash(self) -> None:
        """What a kill leaves: the files as they are; nothing that was not flushed."""
        copy = self.directory.with_name(self.directory.name + "-copy")
        shutil.copytree(self.directory, copy)
        self.close()
        shutil.rmtree(self.directory)
        copy.rename(self.directory)
        self.open()

    def close(self) -> None:
        for store in self.stores:
            store.close()

    def fill(self, octets: int, expires_unix_s: float = FOR_EVER) -> int:
        self.segment += 1
        material = os.urandom(HEAD_OCTETS + octets)
        for pools, side in zip(self.pools, (INITIATED, COLLECTED), strict=True):
            pools.add(side, A, B, self.segment, Secret(material), {"epsilon": 1e-10}, expires_unix_s)
        return self.segment

    def take(self, number: int = 1, key_octets: int = 32, mark: bytes = bytes(16)) -> list[SuppliedKey]:
        keys = self.pools[0].take(A, B, number, key_octets, mark)
        self.pools[0].flush()
        return list(keys)

    def redeem(self, *keys: SuppliedKey | KeyId, mark: bytes = bytes(16)) -> list[SuppliedKey]:
        ids = [key.key_id if isinstance(key, SuppliedKey) else key for key in keys]
        found, strange = self.pools[1].redeem(B, A, ids, mark)
        assert strange == []
        self.pools[1].flush()
        return list(found)

    def check(self) -> None:
        for pools in self.pools:
            for ledger in pools.ledgers().values():
                assert ledger.unaccounted == 0
                assert min(ledger.available, ledger.delivered, ledger.lost, ledger.overhead) >= 0
        for store in self.stores:
            assert store._journal.read(pool_totals) == store._journal.read(sums_of_ended)


@pytest.fixture
def ends(tmp_path: Path):
    made = Ends(tmp_path / "ends")
    yield made
    made.check()
    made.close()


def same(one: list[SuppliedKey], other: list[SuppliedKey]) -> bool:
    return [key.key_id for key in one] == [key.key_id for key in other] and all(
        a.material == b.material for a, b in zip(one, other, strict=True)
    )


def test_both_ends_give_the_same_key_once(ends: Ends) -> None:
    ends.fill(320)
    keys = ends.take(3) + ends.take(2, 24)
    assert len({bytes(key.material.reveal()) for key in keys}) == 5
    assert same(ends.redeem(*keys[1:3], keys[0]), [*keys[1:3], keys[0]])
    assert same(ends.redeem(*keys[3:]), keys[3:])
    for key in keys:
        with pytest.raises(KeyNotFound):
            ends.redeem(key)


def test_a_batch_is_whole_or_not_at_all(ends: Ends) -> None:
    ends.fill(96)
    with pytest.raises(KeyExhausted, match="3 keys of 256 bits ready, 4 wanted"):
        ends.take(4)
    keys = ends.take(3)
    ends.redeem(keys[1])
    with pytest.raises(KeyNotFound):
        ends.redeem(*keys)
    assert same(ends.redeem(keys[0], keys[2]), [keys[0], keys[2]])


def test_a_batch_may_span_segments_and_a_tail_is_overhead(ends: Ends) -> None:
    ends.fill(80)
    ends.fill(80)
    keys = ends.take(4)
    assert same(ends.redeem(*keys), keys)
    with pytest.raises(KeyExhausted):
        ends.take(1)
    assert len(ends.take(1, 8)) == 1


def test_only_the_pair_gets_the_keys(ends: Ends) -> None:
    ends.fill(320)
    (key,) = ends.take()
    for target, initiator in ((SaeId("sae-c"), A), (B, SaeId("sae-c"))):
        with pytest.raises(NotAuthorised):
            ends.pools[1].redeem(target, initiator, [key.key_id])
    strange = KeyId("7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11")
    assert ends.pools[1].redeem(B, A, [key.key_id, strange]) == ([], [strange])
    assert same(ends.redeem(key), [key])


def test_keys_that_are_asked_for_together_are_one_record_where_they_lie_side_by_side(ends: Ends) -> None:
    ends.fill(320)
    ends.fill(320)
    keys = ends.take(14)
    before = ends.pools[1].written
    wanted = [*keys[7:14], *keys[:5]][::-1]
    found = ends.pools[1].redeem_each(B, A, [key.key_id for key in wanted])
    assert found is not None
    assert same(list(found), wanted)
    # Three runs: the second segment's keys, and two of the first, which has a gap.
    assert ends.pools[1].written - before == 3
    ends.pools[1].flush()
    ends.crash()
    assert same(ends.redeem(*keys[5:7]), keys[5:7])
    for key in wanted:
        with pytest.raises(KeyNotFound):
            ends.redeem(key)


def test_where_one_of_them_cannot_be_had_none_is_taken(ends: Ends) -> None:
    ends.fill(640)
    keys, (other,) = ends.take(4), ends.take(1, 64)
    (odd,) = ends.take(1, 20)
    ids = [key.key_id for key in keys]
    ends.redeem(keys[0])
    before = ends.pools[1].written
    strange = KeyId("7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11")
    for wanted in (ids, [*ids[1:], ids[2]], [*ids[1:], strange], [*ids[1:], other.key_id], [odd.key_id], []):
        assert ends.pools[1].redeem_each(B, A, wanted) is None
    assert ends.pools[1].redeem_each(A, B, ids[1:]) is None
    assert ends.pools[1].written == before
    assert same(ends.redeem(*keys[1:]), keys[1:])


def test_together_a_damaged_segment_takes_no_key_of_another(ends: Ends) -> None:
    first = ends.fill(320)
    ends.fill(320)
    keys = ends.take(14)
    (path,) = (ends.directory / "b" / "pools").glob(f"pool.*.{first}.*")
    path.write_bytes(path.read_bytes()[:-1])
    before = ends.pools[1].written
    assert ends.pools[1].redeem_each(B, A, [key.key_id for key in keys]) is None
    assert ends.pools[1].written == before
    assert same(ends.redeem(*keys[10:]), keys[10:])


def test_how_far_a_key_came_is_known_while_its_segment_lives(ends: Ends) -> None:
    material = Secret(os.urandom(HEAD_OCTETS + 320))
    how: dict[str, object] = {"routes": [["a", "m", "n", "b"]], "epsilon": 3e-10, "protection": "qkd + ml-kem-768"}
    for pools, side in zip(ends.pools, (INITIATED, COLLECTED), strict=True):
        pools.add(side, A, B, 77, material, how, FOR_EVER)
    (key,) = ends.take()
    assert ends.pools[0].hops(key.key_id) == ends.pools[1].hops(key.key_id) == 3
    quality = ends.pools[0].quality(A, B)
    assert quality is not None
    assert (quality.epsilon, quality.hops, quality.is_qkd, quality.is_hybrid) == (3e-10, 3, True, True)
    ends.fill(320)
    worst = ends.pools[0].quality(A, B)
    assert worst is not None
    assert not worst.is_hybrid


def test_the_head_is_never_given_out(ends: Ends) -> None:
    number = ends.fill(320)
    segment = ends.pools[1]._by_number[number][0]
    (key_id,) = segment.ids.make(range(1), 32)
    with pytest.raises(KeyNotFound):
        ends.redeem(key_id)
    (key_id,) = segment.ids.make(range(segment.units - 2, segment.units - 1), 32)
    with pytest.raises(KeyNotFound):
        ends.redeem(key_id)


def test_the_same_request_gets_the_same_keys_within_the_window_also_after_a_crash(ends: Ends) -> None:
    mark = b"m" * 16
    ends.fill(64)
    ends.fill(640)
    keys = ends.take(5, mark=mark)
    assert same(ends.take(5, mark=mark), keys)
    given = ends.redeem(*keys, mark=mark)
    assert same(ends.redeem(*keys, mark=mark), given)
    # Also after several: each start writes a checkpoint, and what came before it must still be known.
    for _ in range(3):
        ends.crash()
        assert same(ends.take(5, mark=mark), keys)
        assert same(ends.redeem(*keys, mark=mark), given)
    ends.clock.now_s += 11
    assert not same(ends.take(5, mark=mark), keys)
    with pytest.raises(KeyNotFound):
        ends.redeem(*keys, mark=mark)


@pytest.mark.parametrize("step_s", [-0.2, -3600.0, 60.0])
def test_a_step_of_the_time_of_day_gives_a_repeated_request_no_other_keys(ends: Ends, step_s: float) -> None:
    """The request takes the last key of one segment and the first of another."""
    mark = b"m" * 16
    ends.fill(64)
    ends.fill(640)
    keys = ends.take(5, mark=mark)
    given = ends.redeem(*keys, mark=mark)
    ends.clock.stepped_s += step_s
    for pools in ends.pools:
        pools.tick()
    assert same(ends.take(5, mark=mark), keys)
    assert same(ends.redeem(*keys, mark=mark), given)
    ends.clock.now_s += 11
    for pools in ends.pools:
        pools.tick()
    assert not same(ends.take(5, mark=mark), keys)
    assert len(list((ends.directory / "a" / "pools").iterdir())) == 1, "and the spent segment is shredded in time"


def test_a_node_at_rest_writes_no_checkpoints(ends: Ends) -> None:
    ends.fill(640)
    ends.take(5)
    pools = ends.pools[0]
    commits: list[str] = []
    ends.stores[0]._journal._db.set_trace_callback(lambda sql: commits.append(sql) if "consumed" in sql else None)
    for expected in (1, 1, 1):
        ends.clock.now_s += 100
        pools.tick()
        assert len(commits) == expected
    ends.take(5)
    ends.clock.now_s += 100
    pools.tick()
    assert len(commits) == 2
    ends.crash()
    assert ends.pools[0].ledgers()[INITIATED, A, B].delivered == 10 * 32
    ends.check()


def cut_last_record(directory: Path) -> None:
    """A crash in the middle of a flush: the last record never reached the disk."""
    log = max((directory / "consume").glob("*.log"))
    octets = bytearray(log.read_bytes())
    last = max(at for at in range(64, len(octets), 64) if any(octets[at : at + 64]))
    octets[last : last + 64] = bytes(64)
    log.write_bytes(octets)


def test_a_request_of_which_a_crash_kept_only_a_part_gets_the_rest_when_it_is_made_again(ends: Ends) -> None:
    mark = b"m" * 16
    ends.fill(64)
    ends.fill(640)
    keys = ends.pools[0].take(A, B, 5, 32, mark)
    ends.pools[0].flush()
    copy = ends.directory.with_name("copy")
    shutil.copytree(ends.directory, copy)
    ends.close()
    shutil.rmtree(ends.directory)
    copy.rename(ends.directory)
    cut_last_record(ends.directory / "a")
    ends.open()
    again = ends.take(5, mark=mark)
    assert same(again[:2], keys[:2])
    assert len({key.key_id for key in again}) == 5
    assert same(ends.take(5, mark=mark), again)
    # The other end: collected out of order, cut in the middle, and asked for again in the order of the request.
    wanted = [again[n] for n in (4, 0, 2, 1)]
    ends.pools[1].redeem(B, A, [key.key_id for key in wanted], mark)
    ends.pools[1].flush()
    shutil.copytree(ends.directory, copy)
    ends.close()
    shutil.rmtree(ends.directory)
    copy.rename(ends.directory)
    cut_last_record(ends.directory / "b")
    ends.open()
    assert same(ends.redeem(*wanted, mark=mark), wanted)
    assert same(ends.redeem(*wanted, mark=mark), wanted)
    with pytest.raises(KeyNotFound):
        ends.redeem(*wanted)
    assert same(ends.redeem(again[3]), [again[3]])
    ends.check()


def test_what_was_not_flushed_was_given_to_nobody_and_is_given_later(ends: Ends) -> None:
    ends.fill(640)
    first = ends.pools[0].take(A, B, 2, 32)
    ends.crash()
    assert same(ends.take(2), first)


def test_what_the_disk_refused_is_lost_and_said_so(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    ends.fill(640)
    pools = ends.pools[0]
    lost = pools.take(A, B, 2, 32, b"r" * 16)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        with pytest.raises(StoreError):
            pools.flush()
    pools.give_up(pools.durable, pools.written)
    again = ends.take(2, mark=b"r" * 16)
    assert not {key.key_id for key in again} & {key.key_id for key in lost}
    ledger = pools.ledgers()[INITIATED, A, B]
    assert (ledger.lost, ledger.delivered) == (64, 64)
    ends.crash()
    ledger = ends.pools[0].ledgers()[INITIATED, A, B]
    assert (ledger.lost, ledger.delivered, ledger.unaccounted) == (64, 64, 0)
    record = ends.pools[0].receipt(lost[0].key_id)
    assert record is not None
    assert record["initiated"]["state"] == "destroyed"


def test_a_segment_that_the_disk_would_not_end_is_counted_once(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    number = ends.fill(640)
    pools = ends.pools[1]
    with monkeypatch.context() as broken:
        broken.setattr(pools._journal, "run", _no_space)
        for _ in range(2):
            with pytest.raises(StoreError):
                pools.close_segment(COLLECTED, A, B, number, "voided")
    for _ in range(2):
        pools.close_segment(COLLECTED, A, B, number, "voided")
    ledger = pools.ledgers()[COLLECTED, A, B]
    assert (ledger.destroyed, ledger.unaccounted) == ({"voided": 640}, 0)
    assert ledger.overhead == ledger.filled - 640


def test_an_expired_segment_gives_nothing_and_is_destroyed(ends: Ends) -> None:
    ends.fill(640, expires_unix_s=ends.clock.now_s + 100)
    (key,) = ends.take()
    ends.clock.now_s += 101
    with pytest.raises(KeyExhausted):
        ends.take()
    with pytest.raises(KeyNotFound):
        ends.redeem(key)
    for pools in ends.pools:
        pools.tick()
    assert ends.pools[0].ledgers()[INITIATED, A, B].destroyed == {"expired": 608}
    assert list((ends.directory / "a" / "pools").iterdir()) == []


def test_a_spent_segment_is_shredded_after_the_window(ends: Ends) -> None:
    ends.fill(64)
    keys = ends.take(2)
    ends.redeem(*keys)
    ends.pools[0].tick()
    assert len(list((ends.directory / "a" / "pools").iterdir())) == 1
    ends.clock.now_s += 11
    for pools in ends.pools:
        pools.tick()
    for name in "ab":
        assert list((ends.directory / name / "pools").iterdir()) == []
    record = ends.pools[1].receipt(keys[0].key_id)
    assert record is not None
    assert record["recipients"] == [{"target": B, "state": "delivered", "ended_unix_s": 1e6}]


def test_ledgers_do_not_read_through_the_segments_that_ended(ends: Ends) -> None:
    ends.fill(64)
    ends.fill(640, expires_unix_s=ends.clock.now_s + 5)
    ends.take(2)
    ends.clock.now_s += 11
    ends.pools[0].tick()
    statements: list[str] = []
    ends.stores[0]._journal.read(lambda db: db.set_trace_callback(statements.append))
    ledger = ends.pools[0].ledgers()[INITIATED, A, B]
    assert (ledger.delivered, ledger.destroyed, ledger.unaccounted) == (64, {"expired": 640}, 0)
    assert statements
    assert not [statement for statement in statements if "pool_segments" in statement]
    ends.check()


def test_a_store_from_before_the_totals_has_the_same_ledgers(ends: Ends) -> None:
    for octets in (64, 64, 640):
        ends.fill(octets, expires_unix_s=ends.clock.now_s + 5)
    ends.take(3)
    ends.clock.now_s += 11
    ends.pools[0].tick()
    ledgers = ends.pools[0].ledgers()
    ends.close()
    with closing(sqlite3.connect(ends.directory / "a" / "store.db")) as db:
        db.executescript("DROP TRIGGER pool_segment_ends; DROP TABLE pool_totals; PRAGMA user_version = 3")
    ends.open()
    assert ends.pools[0].ledgers() == ledgers
    ends.check()


def test_a_damaged_segment_is_destroyed_on_the_record(ends: Ends) -> None:
    ends.fill(640)
    (file,) = (ends.directory / "a" / "pools").iterdir()
    octets = bytearray(file.read_bytes())
    octets[200] ^= 1
    file.write_bytes(octets)
    with pytest.raises(KeyNotFound, match="changed or cut short"):
        ends.take()
    assert ends.pools[0].ledgers()[INITIATED, A, B].destroyed == {"damaged": 640}


def test_after_a_damaged_journal_nothing_that_lay_there_is_given_out(ends: Ends) -> None:
    ends.fill(640)
    for _ in range(3):
        ends.take()
    ends.close()
    file = ends.directory / "a" / "consume" / "00000001.log"
    octets = bytearray(file.read_bytes())
    octets[64 + 20] ^= 1
    file.write_bytes(octets)
    ends.open()
    with pytest.raises(KeyExhausted):
        ends.take()
    assert ends.pools[0].ledgers()[INITIATED, A, B].destroyed.keys() == {"journal damaged"}
    ends.fill(640)
    assert ends.take()
    ends.crash()
    assert ends.take()


def test_a_store_opens_though_an_epsilon_in_it_was_infinite(ends: Ends) -> None:
    """JSON has no infinity; such a segment is worth nothing to who asks for a bound, and harms nobody else."""
    for pools, side in zip(ends.pools, (INITIATED, COLLECTED), strict=True):
        pools.add(side, A, B, 1, Secret(os.urandom(HEAD_OCTETS + 640)), {"epsilon": float("inf")}, FOR_EVER)
    ends.crash()
    quality = ends.pools[0].quality(A, B)
    assert quality is not None
    assert quality.epsilon == float("inf")


def test_a_number_is_used_once(ends: Ends) -> None:
    ends.fill(64)
    with pytest.raises(StoreError, match="was here before"):
        ends.pools[0].add(INITIATED, A, B, 1, Secret(bytes(128)), {}, FOR_EVER)
    ends.pools[0].close_segment(INITIATED, A, B, 1, "voided")
    with pytest.raises(StoreError, match="was here before"):
        ends.pools[0].add(INITIATED, A, B, 1, Secret(bytes(128)), {}, FOR_EVER)


def test_both_ends_agree_again_about_their_segments(ends: Ends) -> None:
    only_a, only_b, spent, both = (ends.fill(64) for _ in range(4))
    ends.pools[1].close_segment(COLLECTED, A, B, only_a, "damaged")
    keys = ends.take(1)
    assert ends.pools[0].receipt(keys[0].key_id) is not None
    ends.pools[0].close_segment(INITIATED, A, B, only_a, "missing at the peer")
    ends.pools[0].close_segment(INITIATED, A, B, only_b, "damaged")
    spent_keys = ends.take(2)
    ends.clock.now_s += 100
    ends.pools[0].tick()
    voids = ends.pools[0].compare(A, B, ends.pools[1].holding(30.0)[A, B], ends.clock.now_s - 60)
    assert voids == [(only_b, 8)]
    for number, unit in voids:
        ends.pools[1].void(A, B, number, unit)
    assert ends.pools[1].holding(0.0) == {(A, B): [spent, both]}
    assert same(ends.redeem(*spent_keys), spent_keys)


def test_what_was_given_out_before_a_segment_died_can_be_collected_still(ends: Ends) -> None:
    number = ends.fill(320)
    keys = ends.take(2)
    ends.pools[0].close_segment(INITIATED, A, B, number, "damaged")
    (void,) = ends.pools[0].compare(A, B, [number], 0.0)
    ends.pools[1].void(A, B, *void)
    ends.check()
    assert same(ends.redeem(*keys), keys)
    assert ends.pools[1].ledgers()[COLLECTED, A, B].destroyed == {"voided": 256}
    ends.pools[1].checkpoint()
    ends.crash()
    assert ends.pools[1].ledgers()[COLLECTED, A, B].destroyed == {"voided": 256}


def _no_space(*_: object) -> None:
    raise StoreError("no space")


def _refuse(*_: object) -> None:
    raise OSError(5, "Input/output error")


class Life(RuleBasedStateMachine):
    """Everything that may happen to a pool, in any order; a global record says what was ever given to whom."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[int, dict[bytes, KeyId]] = {INITIATED: {}, COLLECTED: {}}
        self.keys: list[SuppliedKey] = []

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="pools"))
        self.ends = Ends(self.root / "ends")

    def teardown(self) -> None:
        if hasattr(self, "ends"):
            self.ends.close()
            shutil.rmtree(self.root)

    def note(self, side: int, keys: list[SuppliedKey]) -> None:
        for key in keys:
            octets = bytes(key.material.reveal())
            assert octets not in self.given[side]
            self.given[side][octets] = key.key_id

    @rule(octets=st.integers(1, 40).map(lambda units: 8 * units))
    def fill(self, octets: int) -> None:
        self.ends.fill(octets)

    @rule(number=st.integers(1, 4), key_octets=st.sampled_from([8, 20, 32, 64]))
    def take(self, number: int, key_octets: int) -> None:
        try:
            keys = self.ends.take(number, key_octets)
        except KeyExhausted:
            return
        self.note(INITIATED, keys)
        self.keys += keys

    @rule(number=st.integers(1, 4))
    def take_and_die(self, number: int) -> None:
        """Written down and flushed; the answer never leaves."""
        try:
            keys = self.ends.take(number)
        except KeyExhausted:
            return
        self.note(INITIATED, keys)
        self.ends.crash()

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def redeem(self, data: st.DataObject) -> None:
        key = self.keys.pop(data.draw(st.integers(0, len(self.keys) - 1)))
        (found,) = self.ends.redeem(key)
        assert found.material == key.material
        self.note(COLLECTED, [found])
        with pytest.raises(KeyNotFound):
            self.ends.redeem(key)

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def redeem_each(self, data: st.DataObject) -> None:
        """Requests for a key each that come together; those that cannot be answered so are answered one by one."""
        wanted = data.draw(st.lists(st.sampled_from(self.keys), max_size=5, unique_by=id))
        pools = self.ends.pools[1]
        found = pools.redeem_each(B, A, [key.key_id for key in wanted])
        if found is None:
            assert len({len(key.material) for key in wanted}) != 1 or len(wanted[0].material) % 8
            return
        pools.flush()
        assert same(list(found), wanted)
        self.note(COLLECTED, list(found))
        self.keys = [key for key in self.keys if not any(key is one for one in wanted)]
        assert pools.redeem_each(B, A, [wanted[0].key_id]) is None

    @rule()
    def crash(self) -> None:
        self.ends.crash()

    @rule(which=st.integers(0, 1))
    def checkpoint(self, which: int) -> None:
        self.ends.pools[which].checkpoint()

    @rule(number=st.integers(1, 4), failing=st.sampled_from(["pwrite", "fdatasync"]))
    def take_while_the_disk_refuses(self, number: int, failing: str) -> None:
        """Nothing leaves, and what was written down is lost for good: the disk may hold it all the same."""
        pools = self.ends.pools[0]
        try:
            pools.take(A, B, number, 32)
        except KeyExhausted:
            return
        with pytest.MonkeyPatch.context() as broken:
            broken.setattr(os, failing, _refuse)
            with pytest.raises(StoreError):
                pools.flush()
        pools.give_up(pools.durable, pools.written)

    @rule(seconds=st.one_of(st.floats(0, 30), st.sampled_from([-1e5, -20.0, 1e5])))
    def wait(self, seconds: float) -> None:
        """Clocks may jump, forth and back."""
        self.ends.clock.now_s += seconds
        for pools in self.ends.pools:
            pools.tick()

    @invariant()
    def adds_up(self) -> None:
        if hasattr(self, "ends"):
            self.ends.check()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
