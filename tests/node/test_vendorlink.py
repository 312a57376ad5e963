"""Two link ends fed by a pair of KMEs over HTTPS (our own server over one supply): keys, figures, alarms, recovery."""

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from api_kit import FakeSupply, Pki, RunningServer

from qtrunk.api.etsi014 import Etsi014
from qtrunk.api.https import Request, Response, error
from qtrunk.base.errors import ConfigError
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.config import network
from qtrunk.kms.store import KeyStore
from qtrunk.kms.vendorwords import AUTH_OCTETS
from qtrunk.node import linkworker
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.config import Address, LinkConfig, VendorCredentials
from qtrunk.node.lab import Lab
from qtrunk.node.supervisor import Plan
from qtrunk.node.vendorlink import KME_ALARMS, VendorKme, VendorRunner, vendor_runner
from qtrunk.node.world import SystemClock, SystemRandom
from qtrunk.relay.hops import Hops
from qtrunk.stages import Role
from qtrunk.topology import Link, Topology, VendorEnd, VendorSource

LINK = LinkId("a-b")
KEYS = 24
WITHIN_S = 60.0
"""When to give up; what is waited for takes a second or two where nothing else runs."""

Fault = Callable[[Request], Response | None]


class Kme:
    """One KME of the pair, with faults on order."""

    def __init__(self, supply: FakeSupply, pki: Pki, name: str) -> None:
        self.fault: Fault = lambda _request: None
        self.change: Callable[[bytes], bytes] = lambda body: body
        self.hangs = False
        self._answer = Etsi014(supply, supply.sae_of).handle
        self.server = RunningServer(self._handle, pki.kme(name))

    async def _handle(self, request: Request) -> Response:
        while self.hangs:
            await asyncio.sleep(0.05)
        made = self.fault(request)
        if made is not None:
            return made
        response = await self._answer(request)
        return Response(response.status, self.change(bytes(response.body)), response.headers)

    def heal(self) -> None:
        self.hangs, self.fault, self.change = False, lambda _request: None, lambda body: body


class Pipe:
    """A channel's end in memory."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.other: Pipe | None = None
        self.is_closed = False

    def send(self, payload: bytes) -> None:
        if self.other is not None and not self.is_closed:
            self.other.incoming.put_nowait(payload)

    async def receive(self) -> bytes:
        payload = await self.incoming.get()
        if payload is None or self.is_closed:
            raise ConnectionResetError
        return payload

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.incoming.put_nowait(None)
            if self.other is not None:
                self.other.close()


class Pair:
    """Both ends, connected as long as they run."""

    def __init__(self, link: Link, credentials: dict[Role, VendorCredentials | None]) -> None:
        self.directory = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.link, self.clock = link, SystemClock()
        self.alarms = {role: AlarmBoard(self.clock) for role in Role}
        self.stores: dict[Role, KeyStore] = {}
        self.runners: dict[Role, VendorRunner] = {}
        for role, node in ((Role.ALICE, link.alice), (Role.BOB, link.bob)):
            store = KeyStore.open(self.directory / node, node, Secret(bytes(32)), self.clock)
            store.set_role(link.id, role)
            store.add_preshared(link.id, Secret(bytes(range(256)) * 32))
            config = LinkConfig(
                link=link.id,
                device_socket="",
                peer=Address("", 0),
                preshared_file="",
                vendor=credentials[role],
            )
            self.stores[role] = store
            self.runners[role] = vendor_runner(
                link, role, config, 64 << 10, store, self.alarms[role], SystemRandom(), self.clock
            )

    async def __aenter__(self) -> "Pair":
        self.tasks = [task for runner in self.runners.values() for task in runner.start()]
        self.tasks.append(asyncio.create_task(self._keep_connected()))
        return self

    async def __aexit__(self, *_nothing) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for runner in self.runners.values():
            await asyncio.to_thread(runner.stop)
        for store in self.stores.values():
            store.close()
        shutil.rmtree(self.directory)

    async def _keep_connected(self) -> None:
        while True:
            ends = [Pipe(), Pipe()]
            ends[0].other, ends[1].other = ends[1], ends[0]
            await asyncio.gather(*(runner.serve(end) for runner, end in zip(self.runners.values(), ends, strict=True)))
            await asyncio.sleep(0.02)

    async def until(self, is_so: Callable[[], bool], what: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITHIN_S):
                while not is_so():
                    await asyncio.sleep(0.01)
        assert is_so(), f"{what}: {[board.as_json() for board in self.alarms.values()]}"

    def blocks(self) -> int:
        return min(runner.statistics.released for runner in self.runners.values())

    def active(self, role: Role) -> set[str]:
        return {alarm.type for alarm in self.alarms[role].of(self.link.id)}

    async def more_blocks(self) -> None:
        before = self.blocks()
        await self.until(lambda: self.blocks() > before, "another block")


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> Pki:
    return Pki(tmp_path_factory.mktemp("vendor") / "ca")


@pytest.fixture(scope="module")
def saes(pki) -> dict[Role, VendorCredentials]:
    named = {Role.ALICE: pki.sae("alice"), Role.BOB: pki.sae("bob")}
    return {role: VendorCredentials(*map(str, vars(one).values())) for role, one in named.items()}


@pytest.fixture
def supply() -> FakeSupply:
    return FakeSupply(stock=1_000_000)


@pytest.fixture
def kmes(supply, pki):
    made = {Role.ALICE: Kme(supply, pki, "vendor-a"), Role.BOB: Kme(supply, pki, "vendor-b")}
    yield made
    for kme in made.values():
        kme.heal()
        kme.server.stop()


@pytest.fixture
def pair(kmes, saes, monkeypatch) -> Callable[..., Pair]:
    monkeypatch.setattr(linkworker, "TICK_S", 0.02)

    def make(credentials: dict[Role, VendorCredentials | None] | None = None, **changes) -> Pair:
        return Pair(link_of(kmes, **changes), credentials or {**saes})

    return make


def link_of(kmes: dict[Role, Kme] | None, **changes) -> Link:
    ports = {role: kmes[role].server.port if kmes else 1 for role in Role}
    source = VendorSource(
        trust="Acme QX-1, certificate 17",
        alice=VendorEnd(kme_url=f"https://localhost:{ports[Role.ALICE]}", sae=SaeId("alice")),
        bob=VendorEnd(kme_url=f"https://localhost:{ports[Role.BOB]}", sae=SaeId("bob")),
        keys=KEYS,
        poll_s=0.05,
        timeout_s=0.5,
    )
    nodes = {"alice": NodeId("a"), "bob": NodeId("b")}
    return Link(id=LINK, **nodes, length_km=10, loss_db=3, vendor=replace(source, **changes))


def test_keys_of_the_kmes_become_link_key_at_both_ends(pair):
    async def work():
        async with pair() as ends:
            await ends.until(lambda: ends.blocks() >= 4, "four blocks")
            for role, runner in ends.runners.items():
                await ends.until(lambda runner=runner: runner.statistics.state() == "ACTIVE", "an active link")
                shown = runner.statistics.as_json()
                assert shown["secret_bps"] > 0
                assert shown["vendor"] == ends.link.vendor.statement
                assert shown["is_module_up"]
                assert not ends.active(role)
            taken = ends.stores[Role.ALICE].allocate(LINK, Role.ALICE, 600)
            assert ends.stores[Role.BOB].follow(LINK, Role.ALICE, taken.slices) == taken.material
            hop = Hops(NodeId("a"), Topology(name="n", links=(ends.link,)), ends.stores[Role.ALICE])
            recorded = hop.record(LINK, taken.slices)
            assert "Acme QX-1, certificate 17" in recorded.vendor
            assert "not proven here" in recorded.vendor

    asyncio.run(work())


def test_the_pool_fills_no_higher_than_it_may(pair, supply):
    async def work():
        async with pair(keys=120) as ends:
            store = ends.stores[Role.ALICE]
            await ends.until(lambda: store.level(LINK).total_octets >= 64 << 10, "a full pool")
            # What was asked for before may still come; then nothing is asked for any more.
            seen: list[int] = []
            is_quiet = lambda: seen.append(supply.allocations) or len(set(seen[-50:])) == 1 < 50 <= len(seen)  # noqa: E731
            await ends.until(is_quiet, "no more requests")
            assert store.level(LINK).total_octets <= (64 << 10) + 2 * 120 * 32

    asyncio.run(work())


def answer(status: int) -> Fault:
    return lambda request: None if request.segments[-1] == "status" else error(status, "out of order")


FAULTS = {
    "400": (answer(400), "VendorKmeRefused", "VendorKeysMissing"),
    "401": (answer(401), "VendorKmeRefused", "VendorKmeRefused"),
    "500": (answer(500), "VendorKmeRefused", "VendorKmeRefused"),
}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_kme_that_refuses_is_an_alarm_and_asked_again(pair, kmes, role, fault):
    made, at_alice, at_bob = FAULTS[fault]
    alarm = at_alice if role is Role.ALICE else at_bob

    async def work():
        async with pair() as ends:
            await ends.more_blocks()
            kmes[role].fault = made
            await ends.until(lambda: alarm in ends.active(role), alarm)
            assert KME_ALARMS.keys() & ends.active(role) == {alarm}
            kmes[role].heal()
            await ends.more_blocks()
            assert not KME_ALARMS.keys() & ends.active(role)

    asyncio.run(work())


def test_a_kme_without_keys_is_an_alarm_only_where_no_block_came_for_a_while(pair, kmes):
    alice, none = kmes[Role.ALICE], error(503, "none", {"Retry-After": "0"})

    async def work():
        alice.fault = lambda request: None if request.segments[-1] == "status" else none
        async with pair() as ends:
            await ends.until(lambda: "VendorKeyShortage" in ends.active(Role.ALICE), "VendorKeyShortage")
            alice.heal()
            await ends.more_blocks()
            assert not ends.active(Role.ALICE)
            seen: list[str] = []
            alice.fault = lambda request: seen.append(request.segments[-1]) or none
            await ends.until(lambda: len(seen) > 2, "more requests")
            assert not ends.active(Role.ALICE)
            assert ends.runners[Role.ALICE].statistics.state() == "ACTIVE"

    asyncio.run(work())


def without_last(body: bytes) -> bytes:
    answer = msgspec.json.decode(body)
    return msgspec.json.encode({"keys": answer["keys"][:-1]}) if "keys" in answer else body


def first_twice(body: bytes) -> bytes:
    answer = msgspec.json.decode(body)
    return msgspec.json.encode({"keys": [answer["keys"][0], *answer["keys"][:-1]]}) if "keys" in answer else body


def one_material(body: bytes) -> bytes:
    answer = msgspec.json.decode(body)
    keys = [{**entry, "key": answer["keys"][0]["key"]} for entry in answer.get("keys", [])]
    return msgspec.json.encode({"keys": keys}) if keys else body


@pytest.mark.parametrize(
    "change",
    [
        without_last,
        first_twice,
        one_material,
        lambda body: b"junk",
        lambda body: body.replace(b'"key_ID":"', b'"key_ID":"x'),
    ],
)
def test_garbage_of_alices_kme_is_an_alarm_and_makes_no_block(pair, kmes, change):
    async def work():
        async with pair() as ends:
            await ends.more_blocks()
            kmes[Role.ALICE].change = change
            await ends.until(lambda: "VendorKmeGarbage" in ends.active(Role.ALICE), "VendorKmeGarbage")
            kmes[Role.ALICE].heal()
            await ends.more_blocks()
            assert "VendorKmeGarbage" not in ends.active(Role.ALICE)

    asyncio.run(work())


@pytest.mark.parametrize("role", Role)
def test_a_kme_that_does_not_answer_is_an_alarm_and_no_key_is_lost(pair, kmes, role):
    async def work():
        async with pair() as ends:
            await ends.more_blocks()
            kmes[role].hangs = True
            await ends.until(lambda: "VendorKmeUnreachable" in ends.active(role), "VendorKmeUnreachable")
            await ends.until(lambda: ends.runners[role].statistics.state() != "ACTIVE", "no active link")
            kmes[role].heal()
            await ends.until(lambda: "VendorKmeUnreachable" not in ends.active(role), "an answer")

    asyncio.run(work())


def test_keys_that_differ_are_an_alarm_until_a_block_is_alike(pair, kmes):
    def changed(body: bytes) -> bytes:
        answer = msgspec.json.decode(body)
        if "keys" in answer:
            answer["keys"][0]["key"] = "A" * 43 + "="
        return msgspec.json.encode(answer)

    async def work():
        async with pair() as ends:
            await ends.more_blocks()
            kmes[Role.BOB].change = changed
            for role in Role:
                await ends.until(lambda role=role: "VendorKeyMismatch" in ends.active(role), "VendorKeyMismatch")
            kmes[Role.BOB].heal()
            await ends.more_blocks()
            for role in Role:
                await ends.until(lambda role=role: "VendorKeyMismatch" not in ends.active(role), "an alike block")

    asyncio.run(work())


def test_a_key_length_that_the_kme_does_not_give_is_said_before_anything_is_asked_for(pair, supply):
    async def work():
        async with pair(key_bits=2048) as ends:
            await ends.until(lambda: "VendorKmeRefused" in ends.active(Role.BOB), "VendorKmeRefused")
            await ends.until(lambda: "VendorKmeRefused" in ends.active(Role.ALICE), "VendorKmeRefused")
            texts = [alarm.text for alarm in ends.alarms[Role.BOB].of(LINK)]
            assert any("64 to 1024 bits" in text and "2048" in text for text in texts)
            assert supply.allocations == 0

    asyncio.run(work())


def test_files_that_are_missing_or_of_another_authority_are_an_alarm(pair, saes, tmp_path):
    other = Pki(tmp_path / "other").sae("alice")
    foreign = VendorCredentials(*map(str, vars(other).values()))
    missing = VendorCredentials(str(tmp_path / "none"), str(tmp_path / "none"), str(tmp_path / "none"))

    async def work():
        async with pair({Role.ALICE: foreign, Role.BOB: missing}) as ends:
            for role in Role:
                await ends.until(lambda role=role: "VendorKmeRefused" in ends.active(role), "VendorKmeRefused")

    asyncio.run(work())


def test_the_nodes_own_files_go_before_those_of_the_topology(saes):
    link = link_of(None)
    with pytest.raises(ConfigError, match=r"links\.a-b\.vendor\.bob"):
        VendorKme(link, Role.BOB, None)
    files = dict(zip(("certificate", "private_key", "ca_certificate"), ("/x/c", "/x/k", "/x/a"), strict=True))
    named = link_of(None, bob=VendorEnd(kme_url="https://localhost:1", sae=SaeId("bob"), **files))
    assert VendorKme(named, Role.BOB, None)._files == (Path("/x/c"), Path("/x/k"), Path("/x/a"))
    assert VendorKme(named, Role.BOB, saes[Role.BOB])._files[0] == Path(saes[Role.BOB].certificate)


def test_a_lab_starts_no_fibre_for_such_a_link(tmp_path):
    topology = network.load(
        'name = "n"\ntrunks = [["a", "b", "c"]]\nlink.length_km = 10\nlinks.a-b.source = "etsi014"\n'
        'links.a-b.vendor = { trust = "Acme", alice = { kme_url = "https://x", sae = "s" },'
        ' bob = { kme_url = "https://y", sae = "t" } }'
    )
    state = tmp_path / "lab"
    Lab.prepare(state, topology)
    plan = msgspec.json.decode((state / "plan.json").read_bytes(), type=Plan)
    assert {child.name for child in plan.children} == {"optics-b-c", "node-a", "node-b", "node-c", "controller-1"}
    assert (state / "nodes" / "a" / "preshared-a-b").stat().st_size > AUTH_OCTETS
