"""Two link ends fed by key streams (ETSI GS QKD 004) of two of our key managers over TLS: keys, restarts, statuses."""

import asyncio
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from test_vendorlink import Pair, link_of

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from api_kit import Pki
from runners004 import Runners

from qtrunk.api.client import NoAnswerError
from qtrunk.api.client004 import OpenedStream, StreamKey
from qtrunk.base.errors import KeyExhausted, KeyNotFound, RequestRefused, WireError
from qtrunk.base.ids import SaeId
from qtrunk.base.secret import Secret
from qtrunk.kms.streamnotes import Qos, Status
from qtrunk.kms.vendorend import Collect, Fetch
from qtrunk.node import linkworker, vendorstream
from qtrunk.node.config import VendorCredentials
from qtrunk.node.vendorstream import StreamKme, index_of, key_id_of
from qtrunk.stages import Role
from qtrunk.topology import Link, VendorEnd

KSID, OTHER = bytes(range(16)), bytes(range(1, 17))


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> Pki:
    return Pki(tmp_path_factory.mktemp("vendor004") / "ca")


@pytest.fixture(scope="module")
def saes(pki) -> dict[Role, VendorCredentials]:
    named = {Role.ALICE: pki.sae("alice"), Role.BOB: pki.sae("bob")}
    return {role: VendorCredentials(*map(str, vars(one).values())) for role, one in named.items()}


@pytest.fixture
def kmes(pki):
    with Runners(pki.kme("vendor")) as running:
        running.supply.stock = 1_000_000
        yield running


@pytest.fixture
def pair(kmes, saes, monkeypatch):
    monkeypatch.setattr(linkworker, "TICK_S", 0.02)

    def make(**changes) -> Pair:
        return Pair(link004(kmes.ports, **changes), {**saes})

    return make


def link004(ports: dict[str, int], **changes) -> Link:
    ends = {
        name: VendorEnd(kme_url=f"tls://localhost:{ports[node]}", sae=SaeId(name))
        for name, node in (("alice", "a"), ("bob", "b"))
    }
    return link_of(None, interface="etsi004", **{**ends, "timeout_s": 2.0, **changes})


def test_chunks_of_a_key_stream_become_link_key_at_both_ends(pair):
    async def work():
        async with pair() as ends:
            await ends.until(lambda: ends.blocks() >= 3, "three blocks")
            taken = ends.stores[Role.ALICE].allocate(ends.link.id, Role.ALICE, 300)
            assert ends.stores[Role.BOB].follow(ends.link.id, Role.ALICE, taken.slices) == taken.material

    asyncio.run(work())


@pytest.mark.parametrize("node", "ab")
def test_a_kme_that_restarts_has_forgotten_its_streams_and_a_fresh_one_is_opened(pair, kmes, node):
    role = Role.ALICE if node == "a" else Role.BOB

    async def work():
        async with pair() as ends:
            await ends.more_blocks()
            old = ends.runners[Role.ALICE]._kme.stream
            await asyncio.to_thread(kmes.run, kmes.stop_one(node))
            await ends.until(lambda: "VendorKmeUnreachable" in ends.active(role), "VendorKmeUnreachable")
            await asyncio.to_thread(kmes.run, kmes.start_one(node))
            await ends.until(lambda: "VendorKmeUnreachable" not in ends.active(role), "an answer")
            await ends.until(lambda: ends.runners[Role.ALICE]._kme.stream not in (b"", old), "a fresh stream")
            await ends.more_blocks()
            assert ends.runners[Role.BOB]._kme._ksid == ends.runners[Role.ALICE]._kme.stream

    # Bob's end gives chunks that his KME forgot a minute; here it is a moment.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qtrunk.kms.vendor.COLLECT_TIMEOUT_S", 0.5)
        asyncio.run(work())


def test_the_end_that_joins_is_told_again_after_a_cut(pair):
    async def work():
        async with pair() as ends:
            await ends.more_blocks()
            bob = ends.runners[Role.BOB]._kme
            bob._ksid = bob._told = None  # as after a restart of his node
            ends.runners[Role.ALICE]._disconnect()
            await ends.until(lambda: bob._told is not None, "the stream's name")
            await ends.more_blocks()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qtrunk.kms.vendor.COLLECT_TIMEOUT_S", 0.5)
        asyncio.run(work())


def test_a_chunk_size_that_the_kme_does_not_give_is_said_and_costs_nothing(pair, kmes):
    async def work():
        async with pair(keys=20, key_bits=8 * 4) as ends:
            await ends.until(lambda: "VendorKmeRefused" in ends.active(Role.ALICE), "VendorKmeRefused")
            assert any("chunks of 8 octets" in alarm.text for alarm in ends.alarms[Role.ALICE].of(ends.link.id))
            assert kmes.supply.allocations == 0

    asyncio.run(work())


# ── statuses, one by one ────────────────────────────────────────────────────────────────────────────────────────────


class Scripted:
    """A KME that answers as it was told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.opens: list[Status] = []
        self.gets: list[Status | Exception] = []
        self.asked: list[tuple[str, object]] = []
        self.chunk_octets: int | None = None
        self.ksids = iter([KSID, OTHER])

    def open(self, source: str, destination: str, qos: Qos, ksid: bytes | None) -> OpenedStream:
        self.asked.append(("open", (source, destination, ksid)))
        status = self.opens.pop(0) if self.opens else Status.PEER_NOT_YET_CONNECTED
        stands = status in (Status.SUCCESS, Status.PEER_NOT_YET_CONNECTED, Status.QOS_NOT_MET)
        agreed = replace_qos(qos, self.chunk_octets) if stands else None
        return OpenedStream(status=status, ksid=(ksid or next(self.ksids)) if stands else b"", qos=agreed)

    def get_key(self, ksid: bytes, index: int, metadata_size: int) -> StreamKey:
        self.asked.append(("get", (ksid, index, metadata_size)))
        found = self.gets.pop(0) if self.gets else Status.SUCCESS
        if isinstance(found, Exception):
            raise found
        key = Secret(ksid + bytes(12) + index.to_bytes(4, "big")) if found is Status.SUCCESS else None
        return StreamKey(status=found, index=index, key=key, metadata=b"", metadata_size=4096)

    def close(self, ksid: bytes) -> Status:
        self.asked.append(("close", ksid))
        return Status.SUCCESS

    def disconnect(self) -> None:
        self.asked.append(("disconnect", None))

    def indices(self) -> list[int]:
        return [what[1] for word, what in self.asked if word == "get"]


def replace_qos(qos: Qos, octets: int | None) -> Qos:
    return qos if octets is None else msgspec.structs.replace(qos, key_chunk_size=octets)


class Standing:
    now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    def unix_s(self) -> float:
        return self.now_s


@pytest.fixture
def kme() -> Scripted:
    return Scripted()


@pytest.fixture
def clock() -> Standing:
    return Standing()


@pytest.fixture
def end(kme, clock, saes, monkeypatch):
    monkeypatch.setattr(vendorstream, "Client004", lambda **_named: kme)
    link = link004({"a": 1, "b": 1})
    return lambda role, **ends: StreamKme(replace(link, vendor=replace(link.vendor, **ends)), role, saes[role], clock)


def test_a_key_id_names_stream_and_index():
    assert index_of(KSID, key_id_of(KSID, 4_000_000_000)) == 4_000_000_000
    assert index_of(OTHER, key_id_of(KSID, 7)) is None
    assert str(uuid.UUID(key_id_of(KSID, 0))) == key_id_of(KSID, 0)


def test_uris_are_the_saes_or_what_the_file_says(end, kme):
    end(Role.ALICE).connect()
    bob = VendorEnd(kme_url="tls://localhost:1", sae=SaeId("bob"), uri="client://there:5000")
    end(Role.ALICE, bob=bob, alice=VendorEnd(kme_url="tls://h", sae=SaeId("a:b"))).connect()
    opened = [what for word, what in kme.asked if word == "open"]
    assert opened == [("qkd://alice", "qkd://bob", None), ("qkd://a%3Ab", "client://there:5000", None)]


def test_an_index_is_asked_for_again_only_where_nothing_was_taken(end, kme):
    alice = end(Role.ALICE)
    kme.gets = [Status.SUCCESS, Status.INSUFFICIENT_KEY]
    assert [key.key_id for key in alice.ask(Fetch(5))] == [key_id_of(KSID, 0)]
    for status in (Status.TIMEOUT, Status.INSUFFICIENT_KEY):
        kme.gets = [status]
        with pytest.raises(KeyExhausted):
            alice.ask(Fetch(1))
    kme.gets = [KeyExhausted("cut off")]
    with pytest.raises(NoAnswerError):
        alice.ask(Fetch(1))
    kme.gets = [Status.METADATA_TOO_SMALL]
    assert [key.key_id for key in alice.ask(Fetch(2))] == [key_id_of(KSID, 2), key_id_of(KSID, 3)]
    assert kme.indices() == [0, 1, 1, 1, 1, 2, 2, 3]
    assert [what[2] for word, what in kme.asked if word == "get"][-3:] == [1024, 4096, 1024]
    assert sum(word == "open" for word, _ in kme.asked) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (Status.NO_CONNECTION, RequestRefused),
        (Status.KSID_IN_USE, WireError),
        (Status.METADATA_TOO_SMALL, WireError),
    ],
)
def test_what_a_kme_may_not_or_will_not_answer(end, kme, status, error):
    kme.gets = [status, status]
    with pytest.raises(error, match=f"status {status.value}"):
        end(Role.ALICE).ask(Fetch(1))


@pytest.mark.parametrize(
    ("status", "error"),
    [(Status.NO_CONNECTION, RequestRefused), (Status.KSID_IN_USE, RequestRefused), (Status.TIMEOUT, KeyExhausted)],
)
def test_a_stream_that_is_not_opened_is_tried_again(end, kme, status, error):
    bob = end(Role.BOB)
    kme.opens = [status]
    with pytest.raises(error, match=f"status {status.value}"):
        bob.join(KSID)
    assert not bob.is_connected
    bob.ask(Collect((key_id_of(KSID, 3),)))
    assert [what for word, what in kme.asked if word == "get"] == [(KSID, 3, 1024)]


def test_a_counter_proposal_is_taken_where_the_chunks_have_the_right_size(end, kme):
    kme.opens = [Status.QOS_NOT_MET, Status.QOS_NOT_MET]
    end(Role.ALICE).connect()
    kme.chunk_octets = 16
    with pytest.raises(RequestRefused, match="chunks of 16 octets; key_bits of the link's vendor table is 256"):
        end(Role.ALICE).connect()
    assert kme.asked[-1] == ("close", OTHER)


def test_a_stream_is_left_where_it_is_lost_or_gives_nothing_for_long(end, kme, clock):
    alice = end(Role.ALICE)
    kme.gets = [Status.PEER_NOT_CONNECTED]
    with pytest.raises(KeyExhausted):
        alice.ask(Fetch(1))
    alice.ask(Fetch(1))
    assert kme.indices() == [0, 0], "Bob's end had not come yet: the same stream"
    kme.gets = [Status.PEER_NOT_CONNECTED]
    with pytest.raises(KeyExhausted):
        alice.ask(Fetch(1))
    assert [key.key_id for key in alice.ask(Fetch(1))] == [key_id_of(OTHER, 0)]
    kme.ksids = iter([bytes(15) + b"3", bytes(15) + b"4"])
    clock.now_s = vendorstream.STALE_S + 1
    kme.gets = [Status.INSUFFICIENT_KEY]
    with pytest.raises(KeyExhausted):
        alice.ask(Fetch(1))
    alice.ask(Fetch(1))
    assert alice.stream == bytes(15) + b"3"
    alice.renew()
    alice.ask(Fetch(1))
    assert alice.stream == bytes(15) + b"4"
    assert [what for word, what in kme.asked if word == "close"] == [KSID, OTHER, bytes(15) + b"3"]


def test_chunks_of_another_stream_are_not_there(end, kme):
    bob = end(Role.BOB)
    with pytest.raises(KeyExhausted, match="not told"):
        bob.ask(Collect((key_id_of(KSID, 0),)))
    bob.join(OTHER)
    with pytest.raises(KeyNotFound):
        bob.ask(Collect((key_id_of(KSID, 0),)))
    assert kme.indices() == []
    bob.join(KSID)
    for status in (Status.INSUFFICIENT_KEY, Status.PEER_NOT_CONNECTED):
        kme.gets = [status]
        with pytest.raises(KeyNotFound):
            bob.ask(Collect((key_id_of(KSID, 0),)))
    assert bob.ask(Collect((key_id_of(KSID, 0),)))[0].key_id == key_id_of(KSID, 0)


def test_a_stream_whose_indices_are_used_up_is_left(end, kme):
    alice = end(Role.ALICE)
    alice.connect()
    alice._index = (1 << 32) - 1
    assert [key.key_id for key in alice.ask(Fetch(2))] == [key_id_of(KSID, (1 << 32) - 1)]
    assert [key.key_id for key in alice.ask(Fetch(1))] == [key_id_of(OTHER, 0)]
