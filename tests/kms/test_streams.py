"""Key streams: both ends give the same octets for an index, once each, whatever becomes of the notes between them."""

import itertools
import json

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stream_kit import KSID, NODES, Pair, qos

from qtrunk.base.errors import KeyExhausted, KeyNotFound, RouteUnavailable, StoreError, WireError
from qtrunk.base.ids import NodeId
from qtrunk.base.wire import decode, encode
from qtrunk.kms.streamend import Collect, Initiate
from qtrunk.kms.streamnotes import METADATA_OCTETS_MAX, Batch, Status, StreamState, layout, metadata, offer


@pytest.fixture
def pair() -> Pair:
    return Pair()


# ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_null_ksid_is_answered_at_once_and_the_twin_joins_with_the_registered_qos(pair):
    first = pair.open("alice", "bob", key_chunk_size=48)
    assert pair.status(first) is Status.PEER_NOT_YET_CONNECTED
    ksid = pair.answers[first].ksid
    assert ksid[6] >> 4 == 4  # a version 4 UUID
    assert pair.status(pair.get("alice", 0, ksid)) is Status.PEER_NOT_CONNECTED
    second = pair.open("bob", "alice", ksid, source="alice", key_chunk_size=16)
    pair.settle()
    assert pair.status(second) is Status.SUCCESS
    assert pair.answers[second].qos.key_chunk_size == 48
    again = pair.open("alice", "bob", ksid)
    assert pair.status(again) is Status.SUCCESS


def test_predefined_ksid_blocks_until_the_twin_call(pair):
    first = pair.open("alice", "bob", KSID)
    pair.pass_time(4)
    assert pair.status(first) is None
    second = pair.open("bob", "alice", KSID, source="alice")
    pair.settle()
    assert pair.status(first) is pair.status(second) is Status.SUCCESS
    assert pair.answers[first].qos == pair.answers[second].qos


def test_predefined_ksid_times_out_and_can_be_tried_again(pair):
    first = pair.open("alice", "bob", KSID)
    pair.pass_time(5)
    assert pair.status(first) is Status.TIMEOUT
    pair.connected()


@pytest.mark.parametrize("sources", [("alice", "alice"), ("bob", "bob"), ("alice", "bob"), ("bob", "alice")])
def test_both_ends_come_to_the_same_source_and_qos_whoever_calls_whom_source(pair, sources):
    one = pair.open("alice", "bob", KSID, source=sources[0], key_chunk_size=16)
    two = pair.open("bob", "alice", KSID, source=sources[1], key_chunk_size=24)
    pair.settle()
    assert pair.answers[one].qos == pair.answers[two].qos
    calls = [pair.get("alice", 0), pair.get("bob", 0)]
    pair.settle()
    assert pair.octets(calls[0]) == pair.octets(calls[1])
    assert {initiator for initiator, _, _ in pair.stock.keys.values()} == set()  # collected
    assert len(pair.octets(calls[0])) == (
        16 if sources in (("alice", "alice"), ("alice", "bob"), ("bob", "alice")) else 24
    )


def test_a_ksid_of_other_applications_is_in_use(pair):
    pair.connected()
    assert pair.status(pair.open("carol", "bob", KSID)) is Status.KSID_IN_USE
    assert pair.status(pair.open("alice", "dora", KSID)) is Status.KSID_IN_USE
    assert pair.status(pair.open("alice", "bob", KSID, holder="another connection")) is Status.KSID_IN_USE


def test_a_ksid_in_use_at_the_far_end_only_is_found_out(pair):
    pair.open("bob", "carol", KSID, timeout=60_000)
    pair.settle()
    call = pair.open("alice", "dora", KSID, timeout=60_000)
    pair.settle()
    assert pair.status(call) is Status.KSID_IN_USE
    assert pair.status(pair.get("alice", 0)) is Status.PEER_NOT_CONNECTED


def test_the_same_application_comes_back_when_its_connection_has_ended(pair):
    pair.connected()
    pair.kmes["a"].released("connection of alice")
    assert pair.status(pair.open("alice", "bob", KSID, holder="another connection")) is Status.SUCCESS


def test_qos_that_cannot_be_met_comes_back_as_a_counter_proposal_that_stands(pair):
    call = pair.open("alice", "bob", key_chunk_size=1 << 20, metadata_mimetype="text/xml")
    assert pair.status(call) is Status.QOS_NOT_MET
    offered = pair.answers[call].qos
    assert (offered.key_chunk_size, offered.metadata_mimetype) == (64 << 10, "application/json")
    ksid = pair.answers[call].ksid
    pair.settle()
    twin = pair.open("bob", "alice", ksid, source="alice", key_chunk_size=1 << 21)
    pair.settle()
    assert pair.status(twin) is Status.SUCCESS
    assert pair.answers[twin].qos == offered


@pytest.mark.parametrize(
    ("asked", "limits", "changed"),
    [
        ({"key_chunk_size": 1}, {}, {"key_chunk_size": 8}),
        ({"key_chunk_size": 4096}, {"keys_per_request_max": 2, "key_bits_max": 8192}, {"key_chunk_size": 2048}),
        ({"min_bps": 5000}, {"fill_bps": 100.0, "stored_key_count": 0}, {"min_bps": 100}),
        ({"min_bps": 50, "max_bps": 40}, {}, {"max_bps": 50}),
        ({"timeout": 2**32 - 1, "ttl": 0}, {}, {"timeout": 600_000, "ttl": 1}),
        ({"metadata_mimetype": ""}, {}, {}),
    ],
)
def test_an_offer_changes_what_cannot_be_and_nothing_else(pair, asked, limits, changed):
    pair.stock.limits = limits
    wanted = qos(**asked)
    assert offer(wanted, pair.stock.status("alice", "bob")) == qos(**(asked | changed))


def test_no_way_to_the_peer(pair):
    assert pair.status(pair.open("alice", "nobody")) is Status.NO_CONNECTION
    assert pair.status(pair.open("alice", "alice")) is Status.NO_CONNECTION
    pair.stock.limits = {"stored_key_count": 0, "fill_bps": 0.0}
    assert pair.status(pair.open("alice", "bob")) is Status.NO_CONNECTION


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [8, 32, 1024, 1025, 5000, 65536])
def test_both_ends_get_the_same_chunks(pair, size):
    pair.connected(key_chunk_size=size)
    for index in (0, 2, 1):
        calls = [pair.get("bob", index), pair.get("alice", index)]
        pair.settle()
        assert pair.octets(calls[0]) == pair.octets(calls[1])
        assert len(pair.octets(calls[0])) == size
        assert pair.answers[calls[0]].index == index
    assert not any(any(key.material.reveal()) for key in pair.stock.supplied)  # all wiped


def test_layout_covers_a_chunk_with_equal_keys():
    for size, most in itertools.product(range(8, 4000, 7), (128, 1024)):
        keys, octets = layout(size, most)
        assert size <= keys * octets < size + keys
        assert octets <= most


def test_an_index_is_given_once_to_each_end(pair):
    pair.connected()
    first = pair.get("alice", 0)
    pair.settle()
    assert pair.octets(first)
    assert pair.status(pair.get("alice", 0)) is Status.INSUFFICIENT_KEY
    second = pair.get("bob", 0)
    pair.settle()
    assert pair.octets(second) == pair.octets(first)


def test_an_index_far_ahead_makes_nothing(pair):
    pair.connected()
    assert pair.status(pair.get("bob", 1_000_000)) is Status.INSUFFICIENT_KEY
    assert pair.status(pair.get("alice", 2**32 - 1)) is Status.INSUFFICIENT_KEY
    pair.settle()
    assert not pair.stock.supplied


def test_metadata_that_does_not_fit_costs_nothing(pair):
    pair.connected()
    call = pair.get("alice", 0, size=4)
    pair.settle()
    answer = pair.answers[call]
    assert (answer.status, answer.metadata_size, answer.key) == (
        Status.METADATA_TOO_SMALL,
        METADATA_OCTETS_MAX,
        None,
    )
    pair.pass_time(3)
    call = pair.get("alice", 0, size=METADATA_OCTETS_MAX)
    assert json.loads(pair.answers[call].metadata) == {"age": 3000, "hops": 2}
    other = pair.get("bob", 0, size=0)
    pair.settle()
    assert pair.octets(other) == pair.octets(call)
    assert pair.answers[other].metadata == b""


def test_the_announced_metadata_size_is_the_largest():
    assert len(metadata(10**12, 10**12)) == METADATA_OCTETS_MAX
    assert json.loads(metadata(10**12, 0)) == {"age": 2**32 - 1, "hops": 0}


def test_no_metadata_where_none_was_agreed(pair):
    pair.connected(metadata_mimetype="")
    call = pair.get("alice", 0, size=1)
    pair.settle()
    assert pair.answers[call].metadata == b""
    assert pair.octets(call)


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        (KeyExhausted("none"), Status.INSUFFICIENT_KEY),
        (StoreError("full"), Status.INSUFFICIENT_KEY),
        (RouteUnavailable("cut"), Status.NO_CONNECTION),
    ],
)
@pytest.mark.parametrize("sae", ["alice", "bob"])
def test_no_key_now_is_said_at_once_at_both_ends_and_mends(pair, sae, problem, status):
    pair.connected()
    call = pair.get(sae, 0)
    while not pair.jobs:
        pair.deliver()
    pair.work(outcome=problem)
    pair.settle()
    assert pair.status(call) is status
    again = pair.get(sae, 0)
    pair.settle()
    assert pair.octets(again)


def test_get_key_times_out(pair):
    pair.connected()
    call = pair.get("alice", 0)
    pair.jobs.clear()  # a supply that does not answer
    pair.pass_time(4.9)
    assert pair.status(call) is None
    pair.pass_time(0.1)
    assert pair.status(call) is Status.TIMEOUT


def test_a_call_that_nobody_waits_for_takes_no_chunk(pair):
    pair.connected()
    node, ticket = pair.get("alice", 0)
    pair.do(node, pair.kmes[node].cancel(ticket))
    pair.settle()
    assert (node, ticket) not in pair.answers
    assert pair.octets(pair.get("alice", 0))


def test_a_key_that_cannot_be_collected_is_lost_to_one_end_and_the_next_is_right(pair):
    pair.connected()
    calls = [pair.get("alice", 0), pair.get("bob", 0)]
    while not (pair.jobs and isinstance(pair.jobs[0][1], Collect)):
        pair.deliver() if pair.mail else pair.work()
    pair.work(outcome=KeyNotFound("gone"))
    pair.settle()
    assert pair.octets(calls[0])
    assert pair.status(calls[1]) is Status.INSUFFICIENT_KEY
    calls = [pair.get("bob", 1), pair.get("alice", 1)]
    pair.settle()
    assert pair.octets(calls[0]) == pair.octets(calls[1])


def test_a_store_that_cannot_write_now_is_asked_again(pair):
    pair.connected()
    call = pair.get("bob", 0)
    while not (pair.jobs and isinstance(pair.jobs[0][1], Collect)):
        pair.deliver() if pair.mail else pair.work()
    pair.work(outcome=StoreError("full"))
    pair.pass_time(2)
    assert pair.octets(call)


def test_chunks_are_erased_after_their_ttl(pair):
    pair.connected(ttl=10)
    calls = [pair.get("alice", 1)]
    pair.settle()
    assert pair.octets(calls[0])
    pair.pass_time(10)
    assert pair.status(pair.get("bob", 0)) is Status.INSUFFICIENT_KEY
    assert not pair.kmes["a"]._ends[KSID, "alice"].chunks


def test_an_end_that_takes_nothing_cannot_fill_the_memory_of_its_key_manager(pair):
    pair.connected(key_chunk_size=65536)
    served = 0
    for index in range(50):
        call = pair.get("alice", index)
        pair.settle()
        served += pair.status(call) is Status.SUCCESS
    kept = sum(len(chunk.material) for chunk in pair.kmes["b"]._ends[KSID, "bob"].chunks.values())
    assert kept <= 1 << 20
    assert 0 < served < 50
    pair.pass_time(6)
    for index in range(4):  # once the other end takes its own, it goes on
        assert pair.octets(pair.get("bob", index))
    pair.settle()
    call = pair.get("alice", served)
    pair.pass_time(3)
    assert pair.octets(call)


def test_keys_are_made_no_faster_than_the_most_that_was_said(pair):
    pair.connected(max_bps=256, timeout=2500)  # a chunk a second, 64 at first
    made = []
    for index in range(80):
        made.append(pair.get("alice", index))
        pair.settle()
    assert sum(pair.status(call) is Status.SUCCESS for call in made) == 64
    pair.pass_time(3)
    assert [pair.status(call) for call in made[64:68]] == [
        Status.SUCCESS,
        Status.SUCCESS,
        Status.TIMEOUT,
        Status.TIMEOUT,
    ]


def test_the_more_important_stream_is_served_first(pair):
    ksids = [bytes([number]) * 16 for number in range(1, 9)]
    for priority, ksid in enumerate(ksids):
        pair.open("alice", "bob", ksid, priority=priority)
        pair.open("bob", "alice", ksid, source="alice", priority=priority)
    pair.settle()
    calls = [pair.get("alice", 0, ksid) for ksid in ksids]
    assert len(pair.jobs) == 4  # as many as may be asked for at a time: those who came first
    pair.work()
    assert pair.status(calls[0]) is Status.SUCCESS
    assert len(pair.jobs) == 4
    pair.work(place=3)
    assert pair.status(calls[7]) is Status.SUCCESS


def test_a_greedy_application_does_not_keep_others_from_their_keys(pair):
    ksids = [bytes([number]) * 16 for number in range(1, 8)]
    for ksid in ksids[:6]:
        pair.open("alice", "bob", ksid, priority=2**32 - 1)
        pair.open("bob", "alice", ksid, source="alice")
    pair.open("carol", "bob", ksids[6])
    pair.open("bob", "carol", ksids[6], source="carol")
    pair.settle()
    for ksid in ksids[:6]:
        pair.get("alice", 0, ksid)
    call = pair.get("carol", 0, ksids[6])
    pair.work()
    pair.work(place=3)
    assert pair.status(call) is Status.SUCCESS


def test_a_peer_that_is_out_of_reach_holds_up_its_own_streams_alone(pair):
    for number, peer in enumerate(["bob"] * 6 + ["dora"], 1):
        pair.open("alice", peer, bytes([number]) * 16)
        pair.open(peer, "alice", bytes([number]) * 16, source="alice")
    pair.settle()
    for number in range(1, 7):
        pair.get("alice", 0, bytes([number]) * 16)
    assert len(pair.jobs) == 4
    call = pair.get("alice", 0, bytes([7]) * 16)
    assert len(pair.jobs) == 5, "nothing of the four is done"
    pair.work(place=4)
    assert pair.status(call) is Status.SUCCESS


# ── closing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_after_close_the_other_end_takes_what_is_left_and_no_more(pair):
    pair.connected()
    mine = [pair.get("alice", index) for index in range(3)]
    while pair.jobs:
        pair.work()  # made, but the other end does not know yet
    assert pair.status(pair.close("alice")) is Status.SUCCESS
    assert pair.status(pair.get("alice", 0)) is Status.PEER_NOT_CONNECTED
    assert pair.status(pair.close("alice")) is Status.PEER_NOT_CONNECTED
    pair.settle()
    assert [pair.octets(pair.get("bob", index)) for index in range(3)] == [pair.octets(call) for call in mine]
    assert pair.status(pair.get("bob", 3)) is Status.PEER_NOT_CONNECTED
    assert pair.status(pair.close("bob")) is Status.SUCCESS


def test_a_closed_ksid_stays_refused_for_the_ttl(pair):
    pair.connected(ttl=10)
    pair.close("alice")
    pair.close("bob")
    pair.settle()
    assert pair.status(pair.open("alice", "bob", KSID)) is Status.KSID_IN_USE
    pair.pass_time(11)
    assert not pair.kmes["a"]._ends
    assert not pair.kmes["b"]._ends
    pair.connected()


def test_a_ksid_closed_at_the_far_end_only_is_refused(pair):
    pair.connected(ttl=50)
    call = pair.get("alice", 0)
    pair.settle()
    assert pair.octets(call)
    pair.close("bob")
    pair.settle()
    pair.start("a")
    call = pair.open("alice", "bob", KSID)
    pair.settle()
    assert pair.status(call) is Status.KSID_IN_USE


def test_an_end_whose_other_end_was_lost_with_its_process_serves_nothing_new(pair):
    pair.connected()
    calls = [pair.get("alice", 0), pair.get("bob", 0)]
    pair.settle()
    pair.start("a")
    again = pair.open("alice", "bob", KSID)
    pair.pass_time(2)
    assert pair.status(again) is Status.KSID_IN_USE
    assert pair.status(pair.get("bob", 1)) is Status.PEER_NOT_CONNECTED
    assert pair.octets(calls[0]) == pair.octets(calls[1])


def test_an_unused_stream_takes_a_restarted_end_back(pair):
    pair.connected()
    pair.start("a")
    again = pair.open("alice", "bob", KSID)
    pair.pass_time(2)
    assert pair.status(again) is Status.SUCCESS
    calls = [pair.get("alice", 0), pair.get("bob", 0)]
    pair.settle()
    assert pair.octets(calls[0]) == pair.octets(calls[1])


def test_a_stream_that_nobody_calls_is_closed(pair):
    pair.connected()
    pair.pass_time(3600, step_s=60)
    assert pair.status(pair.get("alice", 0)) is Status.PEER_NOT_CONNECTED


def test_two_saes_of_one_key_manager(pair):
    NODES["erin"] = "a"
    calls = [pair.open("alice", "erin", KSID), pair.open("erin", "alice", KSID, source="alice")]
    pair.settle()
    assert [pair.status(call) for call in calls] == [Status.SUCCESS] * 2
    calls = [pair.get("erin", 0), pair.get("alice", 0)]
    pair.settle()
    assert pair.octets(calls[0]) == pair.octets(calls[1])


# ── notes of a hostile or broken node ───────────────────────────────────────────────────────────────────────────────


def captured(pair) -> StreamState:
    pair.open("bob", "alice", KSID)
    _, _, octets = pair.mail.pop()
    return decode(octets, StreamState)


@pytest.mark.parametrize("octets", [b"", b"\xc0", b"\x81", b"\xff" * 40, b"\x93\x01\x02\x03"])
def test_octets_that_are_no_note_are_refused(pair, octets):
    with pytest.raises(WireError):
        pair.kmes["a"].receive(NodeId("b"), octets)


def test_a_node_speaks_for_its_own_saes_only(pair):
    note = encode(captured(pair))
    with pytest.raises(WireError, match="sae"):
        pair.kmes["a"].receive(NodeId("c"), note)
    with pytest.raises(WireError, match="sae"):
        pair.kmes["b"].receive(NodeId("a"), note)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("heard", b"x"),
        ("ksid", b"short"),
        ("wanted", 2**32),
        ("batches", [{"first": 0, "count": 2, "key_ids": ["k"], "hops": 0}]),
        ("batches", [{"first": 0, "count": 0, "key_ids": ["k"], "hops": 0}]),
        ("failure", 9),
        ("failures", 1),
    ],
)
def test_a_note_with_a_wrong_field_is_refused(pair, field, value):
    raw = msgspec.msgpack.decode(encode(captured(pair)))
    raw[field] = value
    with pytest.raises(WireError):
        pair.kmes["a"].receive(NodeId("b"), msgspec.msgpack.encode(raw))


# ── anything at all ─────────────────────────────────────────────────────────────────────────────────────────────────

INDEXES = st.integers(0, 3)
SIZES = st.sampled_from([16, 1500])
SIDES = st.sampled_from(["alice", "bob"])
PLACE = st.integers(0, 1_000_000)


class Chaos(RuleBasedStateMachine):
    """Calls, lost, doubled, reordered and late notes, failing supplies, time, restarts, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.calls: dict[tuple[str, int], tuple] = {}
        self.old: list[tuple[str, str, bytes]] = []
        self.given: dict[tuple, dict[str, bytes]] = {}
        self.names = [KSID, b"\x07" * 16]

    def note(self, sae: str, ksid: bytes, index: int, call) -> None:
        end = self.pair.kmes[NODES[sae]]._ends.get((ksid, sae))
        if end is not None and end.twin is not None:
            self.calls[call] = (sae, ksid, index, frozenset((end.card.instance, end.twin.instance)))

    @rule(sae=SIDES, which=st.integers(0, 1), size=SIZES, source=SIDES, ttl=st.sampled_from([3, 60]))
    def open(self, sae, which, size, source, ttl):
        peer = "bob" if sae == "alice" else "alice"
        self.pair.open(sae, peer, self.names[which], source=source, key_chunk_size=size, ttl=ttl)

    @initialize(sizes=st.tuples(SIZES, SIZES), source=SIDES)
    def begin(self, sizes, source):
        for sae, peer, size in (("alice", "bob", sizes[0]), ("bob", "alice", sizes[1])):
            self.pair.open(sae, peer, KSID, source=source, key_chunk_size=size)
        self.settle()

    @rule(first=SIDES, index=INDEXES, which=st.integers(0, 1))
    def get_both(self, first, index, which):
        for sae in (first, "bob" if first == "alice" else "alice"):
            self.get(sae, which, index, 100)

    @rule()
    def allocate(self):
        answer = self.pair.answers[self.pair.open("alice", "bob")]
        if answer.ksid:
            self.names = [answer.ksid, KSID]

    @rule(sae=SIDES, which=st.integers(0, 1), index=INDEXES, size=st.sampled_from([0, 5, 100]))
    def get(self, sae, which, index, size):
        # Before the call: an answer at once may be the last that is heard of this end.
        ksid = self.names[which]
        call = (NODES[sae], self.pair.kmes[NODES[sae]]._tickets + 1)
        self.note(sae, ksid, index, call)
        assert self.pair.get(sae, index, ksid, size) == call

    @rule(sae=SIDES, which=st.integers(0, 1))
    def close(self, sae, which):
        self.pair.close(sae, self.names[which])

    @precondition(lambda self: self.pair.mail)
    @rule(place=PLACE)
    def deliver(self, place):
        place %= len(self.pair.mail)
        self.old.append(self.pair.mail[place])
        self.pair.deliver(place)

    @precondition(lambda self: self.pair.mail)
    @rule(place=PLACE)
    def lose(self, place):
        self.old.append(self.pair.mail.pop(place % len(self.pair.mail)))

    @precondition(lambda self: self.old)
    @rule(place=PLACE)
    def replay(self, place):
        self.pair.mail.append(self.old[place % len(self.old)])

    @precondition(lambda self: self.pair.jobs)
    @rule(
        place=PLACE, problem=st.sampled_from([None, None, None, KeyExhausted("x"), StoreError("x"), KeyNotFound("x")])
    )
    def work(self, place, problem):
        place %= len(self.pair.jobs)
        if isinstance(self.pair.jobs[place][1], Initiate) and isinstance(problem, KeyNotFound):
            problem = RouteUnavailable("x")
        self.pair.work(place, problem)

    @rule(seconds=st.sampled_from([0.3, 1.0, 6.0, 61.0]))
    def wait(self, seconds):
        self.pair.clock.now_s += seconds
        for node in "ab":
            self.pair.do(node, self.pair.kmes[node].tick())

    @rule()
    def settle(self):
        self.old += self.pair.mail
        self.pair.settle(1000)

    @rule(sae=SIDES)
    def cancel_all(self, sae):
        node = NODES[sae]
        for ticket in [ticket for owner, ticket in self.calls if owner == node]:
            self.pair.do(node, self.pair.kmes[node].cancel(ticket))

    @rule(node=st.sampled_from("ab"))
    def restart(self, node):
        self.pair.start(node)

    @invariant()
    def ends_agree(self):
        for call, (sae, ksid, index, instances) in list(self.calls.items()):
            answer = self.pair.answers.get(call)
            if answer is None:
                continue
            del self.calls[call]
            if answer.status is not Status.SUCCESS:
                assert answer.key is None
                continue
            given = self.given.setdefault((ksid, instances, index), {})
            assert sae not in given, "given twice"
            given[sae] = bytes(answer.key.reveal())
            assert any(given[sae])
            assert len(set(given.values())) == 1, "the ends differ"

    def teardown(self):
        """When all calms down, new streams work."""
        self.pair.mail.clear()
        self.pair.pass_time(70, step_s=1)
        ksid = b"\x09" * 16
        calls = [self.pair.open("alice", "bob", ksid), self.pair.open("bob", "alice", ksid, source="alice")]
        self.pair.settle()
        assert [self.pair.status(call) for call in calls] == [Status.SUCCESS] * 2
        calls = [self.pair.get("alice", 0, ksid), self.pair.get("bob", 0, ksid)]
        self.pair.settle()
        assert self.pair.octets(calls[0]) == self.pair.octets(calls[1])


TestChaos = Chaos.TestCase
TestChaos.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


# ── a peer that says anything that can be said ──────────────────────────────────────────────────────────────────────

U32 = st.one_of(st.integers(0, 200), st.integers(0, 2**32 - 1))
BATCH = st.builds(
    lambda first, count, each, hops: Batch(
        first=first, count=count, key_ids=[f"00000000-0000-4000-8000-{n:012x}" for n in range(count * each)], hops=hops
    ),
    st.one_of(st.integers(0, 4), U32),
    st.one_of(st.integers(1, 3), st.integers(1, 256)),
    st.integers(1, 3),
    U32,
)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), source=SIDES)
def test_a_hostile_key_manager_can_break_its_own_streams_only(data, source):
    pair = Pair()
    pair.open("alice", "bob", KSID, source=source)
    pair.open("bob", "alice", KSID, source=source)
    pair.settle()
    other = b"\x05" * 16
    pair.open("carol", "dora", other)
    pair.open("dora", "carol", other, source="carol")
    pair.settle()
    mine = pair.kmes["a"]._ends[KSID, "alice"]
    for _ in range(data.draw(st.integers(1, 6))):
        note = StreamState(
            ksid=data.draw(st.sampled_from([KSID, other])),
            card=mine.twin,
            heard=data.draw(st.sampled_from([mine.card.instance, b"", bytes(16)])),
            asks=data.draw(st.booleans()),
            wanted=data.draw(U32),
            held=data.draw(U32),
            batches=data.draw(st.lists(BATCH, max_size=3)),
            failures=data.draw(U32),
            failure=data.draw(st.sampled_from([Status.INSUFFICIENT_KEY, Status.NO_CONNECTION])),
            is_closed=data.draw(st.booleans()),
            knows_closed=data.draw(st.booleans()),
        )
        pair.do("a", pair.kmes["a"].receive(NodeId("b"), encode(note)))
        pair.get("alice", data.draw(st.integers(0, 3)))
        pair.mail = [mail for mail in pair.mail if mail[0] == "a"]
        for _ in range(len(pair.jobs)):
            pair.work()
        pair.clock.now_s += data.draw(st.sampled_from([0, 0.3, 6]))
        pair.do("a", pair.kmes["a"].tick())
    assert all(len(chunk.material) == 32 for chunk in mine.chunks.values())
    for answer in pair.answers.values():
        assert (answer.key is not None) == (answer.status is Status.SUCCESS and answer.qos is None)
    assert len(mine.chunks) <= 256
    assert len(mine.batches) <= 2 * 64
    pair.settle(2000)
    calls = [pair.get("carol", 0, other), pair.get("dora", 0, other)]
    pair.settle(2000)
    assert pair.octets(calls[0]) == pair.octets(calls[1])
