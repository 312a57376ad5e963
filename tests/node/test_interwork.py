"""A border node and the key manager of another network: its SAEs get foreign keys over ETSI GS QKD 014."""

import asyncio
import contextlib
import socket
import sys
import uuid
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from api_kit import Pki

from qtrunk.api.client import Etsi014Client
from qtrunk.base.errors import KeyExhausted, KeyNotFound, RequestRefused, RouteUnavailable
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.config import network
from qtrunk.kms.interwork.file import JournalFile
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.ca.identity import Kind
from qtrunk.node.config import Address, NodeConfig
from qtrunk.node.custody import Custody
from qtrunk.node.interwork import Interworking
from qtrunk.node.pki import LabPki
from qtrunk.node.world import SystemClock
from qtrunk.topology import ForeignNetwork, Sae, Topology
from qtrunk.topology import Node as Site

FILE = """
name = "border"
trunks = [["a", "z"]]
link.length_km = 10
saes = ["bank@a", "far@z"]

[neighbours.east]
kme = "kme-east"
node = "a"
address = "localhost:{theirs}"
listen = "localhost:{ours}"
ca_certificate = "{ca}"
saes = ["east-*"]
protection = "{protection}"
"""
INITIATOR = SaeId("east-shop")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


class NoInterior:
    """East gets no keys here."""

    async def carry(self, key_ids, materials, initiator, targets, extensions) -> None:
        raise RouteUnavailable("not here")

    async def void(self, key_ids, targets) -> set[KeyId]:
        return set()


class Shelf(NoInterior):
    """East's own network, which takes keys unless it is closed."""

    def __init__(self) -> None:
        self.kept: dict[KeyId, bytes] = {}
        self.is_closed = False

    async def carry(self, key_ids, materials, initiator, targets, extensions) -> None:
        if self.is_closed:
            raise RouteUnavailable("closed")
        self.kept |= {key_id: bytes(octets.reveal()) for key_id, octets in zip(key_ids, materials, strict=True)}


@contextlib.asynccontextmanager
async def running(tmp_path: Path, interior=None, protection: str = "hybrid"):
    east = Pki(tmp_path / "east")
    pki = LabPki(tmp_path / "pki")
    own = pki.credentials(tmp_path / "a", Kind.NODE, "a")
    ours, theirs, *others = (free_port() for _ in range(5))
    node = Custody(
        NodeConfig(
            node="a",
            directory=str(tmp_path / "a"),
            key_api=Address("localhost", others[0]),
            admin_api=Address("localhost", others[1]),
            inter_node=Address("localhost", others[2]),
            links=[],
            topology=network.load(
                FILE.format(ours=ours, theirs=theirs, ca=east.ca_certificate, protection=protection)
            ).to_dict(),
            **own.as_json(),
        )
    )
    abroad = ForeignNetwork(
        id="border",
        kme="a",
        node=NodeId("kme-east"),
        address=f"localhost:{ours}",
        listen=f"localhost:{theirs}",
        ca_certificate=str(pki.ca_certificate),
        saes=("bank", "far"),
    )
    shown = east.kme("kme-east")
    clock = SystemClock()
    foreign = Interworking(
        node=NodeId("kme-east"),
        topology=Topology(
            name="east",
            nodes=(Site(id=NodeId("kme-east")),),
            saes=(Sae(id=INITIATOR, node=NodeId("kme-east")),),
            neighbours=(abroad,),
        ),
        journal=JournalFile(tmp_path / "east.db", "kme-east", Secret(bytes(32)), clock),
        interior=interior or NoInterior(),
        certificate=shown.certificate,
        private_key=shown.private_key,
        clock=clock,
        alarms=AlarmBoard(clock),
    )
    failures: list[BaseException] = []
    await node.start()
    await foreign.start(failures.append)
    try:
        yield node, foreign, pki
    finally:
        await foreign.stop()
        await node.stop()
        assert not failures
        assert not node._node.failed.done()


def client_of(node: Custody, pki: LabPki, tmp_path: Path) -> Etsi014Client:
    own = pki.credentials(tmp_path / "bank", Kind.SAE, "bank")
    return Etsi014Client(
        kme_url=f"https://localhost:{node.config.key_api.port}",
        own_sae=SaeId("bank"),
        certificate=own.certificate,
        private_key=own.private_key,
        ca_certificate=own.ca_certificate,
    )


def made(number: int, octets: int = 32) -> list[SuppliedKey]:
    return [
        SuppliedKey(key_id=KeyId(str(uuid.uuid4())), material=Secret(uuid.uuid4().bytes * (octets // 16)))
        for _ in range(number)
    ]


def test_an_sae_of_the_border_node_collects_foreign_keys_once_and_voided_ones_never(tmp_path) -> None:
    async def act() -> None:
        async with running(tmp_path) as (node, foreign, pki), asyncio.timeout(30):
            client = client_of(node, pki, tmp_path)

            async def collect(key: SuppliedKey) -> SuppliedKey:
                (found,) = await asyncio.to_thread(client.get_keys_with_ids, INITIATOR, [key.key_id])
                return found

            keys = [*made(2), *made(1, 64)]
            await foreign.export(keys, INITIATOR, [SaeId("bank")])
            for key in (keys[0], keys[2]):
                found = await collect(key)
                assert (found.key_id, found.material) == (key.key_id, key.material)
            with pytest.raises(KeyNotFound):
                await collect(keys[0])
            foreign.take_back([key.key_id for key in keys], [SaeId("bank")])
            while foreign.as_json()["keys"]["sent"] != {"void failed": 2, "voided": 1}:
                await asyncio.sleep(0.02)
            with pytest.raises(KeyNotFound):
                await collect(keys[1])
            assert node.status()["interworking"]["neighbours"] == ["east"]
            client.close()

    asyncio.run(act())


def test_a_target_at_another_node_is_refused_and_nothing_stays(tmp_path) -> None:
    async def act() -> None:
        async with running(tmp_path) as (node, foreign, _pki), asyncio.timeout(30):
            with pytest.raises(RouteUnavailable, match="failed"):
                await foreign.export(made(1), INITIATOR, [SaeId("far")])
            assert node.status()["interworking"]["keys"]["received"] == {"failed": 1}

    asyncio.run(act())


def test_an_sae_of_the_border_node_gets_keys_that_the_foreign_network_has_and_no_others(tmp_path) -> None:
    async def act() -> None:
        shelf = Shelf()
        async with running(tmp_path, shelf) as (node, _foreign, pki), asyncio.timeout(30):
            client = client_of(node, pki, tmp_path)
            assert (await asyncio.to_thread(client.status, INITIATOR)).target_kme == "kme-east"
            keys = await asyncio.to_thread(client.get_keys, INITIATOR, 3, 256)
            assert {key.key_id: bytes(key.material.reveal()) for key in keys} == shelf.kept
            receipt = node._node.receipt(keys[0].key_id)["initiated"]
            assert receipt["state"] == "delivered"
            assert receipt["receipt"]["protection"] == "foreign network east states: hybrid"
            shelf.is_closed = True
            with pytest.raises(KeyExhausted, match="503"):
                await asyncio.to_thread(client.get_keys, INITIATOR, 2, 256)
            assert len(shelf.kept) == 3
            counts = node.status()["keys"]
            assert (counts["initiated delivered"], counts["initiated reserved"]) == (3, 0)
            assert counts["initiated destroyed not taken abroad"] == 2
            for strange in ("far", "west-shop"):
                with pytest.raises((KeyExhausted, RequestRefused)):
                    await asyncio.to_thread(client.get_keys, SaeId(strange), 1, 256)
            client.close()

    asyncio.run(act())


def test_where_nobody_states_what_protects_a_key_abroad_no_tenant_is_given_one(tmp_path) -> None:
    async def act() -> None:
        shelf = Shelf()
        async with running(tmp_path, shelf, "unknown") as (node, _foreign, pki), asyncio.timeout(30):
            client = client_of(node, pki, tmp_path)
            with pytest.raises(RequestRefused, match="hybrid"):
                await asyncio.to_thread(client.get_keys, INITIATOR, 1, 256)
            assert not shelf.kept
            client.close()

    asyncio.run(act())
