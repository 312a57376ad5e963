"""A node's key interface as the topology file sets it up: Edition 2, the loop-back switch and its alarm."""

import asyncio
import contextlib
import http.client
import json
import socket
import ssl

import pytest

from qtrunk.api.client import Etsi014Client
from qtrunk.base.errors import NotAuthorised, RequestRefused
from qtrunk.base.ids import SaeId
from qtrunk.config import network
from qtrunk.node.ca.identity import Kind
from qtrunk.node.config import Address, NodeConfig
from qtrunk.node.custody import Custody
from qtrunk.node.pki import LabPki

FILE = """
name = "one"
trunks = [["a", "z"]]
link = {{ length_km = 50 }}
{more}

[[saes]]
id = "alice"
node = "a"

[[saes]]
id = "far"
node = "z"
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@contextlib.asynccontextmanager
async def running(tmp_path, more: str = ""):
    pki = LabPki(tmp_path / "pki")
    own = pki.credentials(tmp_path / "a", Kind.NODE, "a")
    addresses = [Address("localhost", free_port()) for _ in range(3)]
    node = Custody(
        NodeConfig(
            node="a",
            directory=str(tmp_path / "a"),
            key_api=addresses[0],
            admin_api=addresses[1],
            inter_node=addresses[2],
            links=[],
            topology=network.load(FILE.format(more=more)).to_dict(),
            **own.as_json(),
        )
    )
    await node.start()
    try:
        yield node, pki
    finally:
        await node.stop()


def client(node: Custody, pki: LabPki, tmp_path, kind: str, name: str) -> Etsi014Client:
    own = pki.credentials(tmp_path / f"{kind}-{name}", Kind(kind), name)
    return Etsi014Client(kme_url=f"https://localhost:{node.config.key_api.port}", own_sae=SaeId(name), **own_paths(own))


def own_paths(own) -> dict[str, object]:
    return {
        "certificate": own.certificate,
        "private_key": own.private_key,
        "ca_certificate": own.ca_certificate,
    }


def alarms(node: Custody) -> list[str]:
    return [alarm["type"] for alarm in node.status()["alarms"]["active"]]


def test_an_sae_may_be_its_own_slave_under_a_standing_alarm(tmp_path):
    async def scenario() -> None:
        async with running(tmp_path, "[key_api]\nloopback_test = true") as (node, pki):
            assert alarms(node) == ["LoopbackTest"]
            alice = client(node, pki, tmp_path, "sae", "alice")
            (given,) = await asyncio.to_thread(alice.get_keys, SaeId("alice"), 1, 256)
            (again,) = await asyncio.to_thread(alice.get_keys_with_ids, SaeId("alice"), [given.key_id])
            assert given.material == again.material
            alice.close()

    asyncio.run(scenario())


def test_without_the_switch_there_is_no_alarm_and_no_own_slave(tmp_path):
    async def scenario() -> None:
        async with running(tmp_path) as (node, pki):
            assert alarms(node) == []
            alice = client(node, pki, tmp_path, "sae", "alice")
            with pytest.raises(RequestRefused, match="its own slave"):
                await asyncio.to_thread(alice.get_keys, SaeId("alice"), 1, 256)
            # An SAE of another node is none of this one's.
            far = client(node, pki, tmp_path, "sae", "far")
            with pytest.raises(NotAuthorised):
                await asyncio.to_thread(far.status, SaeId("alice"))
            alice.close()
            far.close()

    asyncio.run(scenario())


def test_edition_2_is_served_where_the_file_says_so(tmp_path):
    async def scenario() -> None:
        async with running(tmp_path, "[key_api]\nedition2 = true") as (node, pki):
            own = pki.credentials(tmp_path / "sae-alice", "sae", "alice")
            context = ssl.create_default_context(cafile=str(own.ca_certificate))
            context.load_cert_chain(own.certificate, own.private_key)

            def ask() -> dict[str, object]:
                connection = http.client.HTTPSConnection("localhost", node.config.key_api.port, context=context)
                connection.request("POST", "/kdapi/v2/status", json.dumps({"target_SAE_ID": "far"}))
                answer = json.loads(connection.getresponse().read())
                connection.close()
                return answer

            status = await asyncio.to_thread(ask)
            assert (status["initiator_SAE_ID"], status["target_KME_ID"]) == ("alice", "z")

    asyncio.run(scenario())
