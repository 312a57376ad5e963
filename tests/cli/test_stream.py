"""`qtrunk stream` as its user runs it, against a node's streams served in this process."""

import asyncio
import hashlib
import threading
import uuid

import pytest
from click.testing import CliRunner

from qtrunk.api.tls import server_context
from qtrunk.base.errors import KeyNotFound
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.ports import SuppliedKey, SupplyStatus
from qtrunk.base.secret import Secret
from qtrunk.cli.main import cli
from qtrunk.node.config import Address
from qtrunk.node.lab import Lab
from qtrunk.node.streams import StreamRunner
from qtrunk.node.world import SystemClock, SystemRandom
from qtrunk.topology import Node, Sae, Topology, trunk


class SupplyOfOneNode:
    def __init__(self) -> None:
        self.keys: dict[KeyId, bytes] = {}

    def status(self, initiator, target):
        numbers = {"key_bits_max": 8192, "key_bits_min": 64, "keys_per_request_max": 128, "additional_targets_max": 1}
        return SupplyStatus(
            source_kme="a",
            target_kme="a",
            key_bits=256,
            stored_key_count=1,
            key_count_max=1,
            fill_bps=1.0,
            **numbers,
        )

    async def initiate(self, initiator, targets, number, key_bits):
        ids = [KeyId(str(uuid.uuid4())) for _ in range(number)]
        self.keys |= {key_id: hashlib.shake_256(key_id.encode()).digest(key_bits // 8) for key_id in ids}
        return [SuppliedKey(key_id=key_id, material=Secret(self.keys[key_id])) for key_id in ids]

    async def collect(self, target, initiator, key_ids):
        if not set(key_ids) <= set(self.keys):
            raise KeyNotFound("unknown")
        return [SuppliedKey(key_id=key_id, material=Secret(self.keys.pop(key_id))) for key_id in key_ids]


@pytest.fixture
def state(tmp_path):
    row = trunk("t", [Node(id=NodeId("a")), Node(id=NodeId("b"))], [(10, 3)])
    saes = (Sae(id=SaeId("bank"), node=NodeId("a")), Sae(id=SaeId("vault"), node=NodeId("a")))
    lab = Lab.prepare(tmp_path / "lab", Topology(name="t", nodes=row.nodes, links=row.links, saes=saes))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = StreamRunner(
        NodeId("a"), lambda sae: NodeId("a"), SupplyOfOneNode(), lambda key: 0, SystemRandom(), SystemClock()
    )
    place = lab.state / "nodes" / "a"
    context = server_context(place / "cert.pem", place / "key.pem", lab.state / "pki" / "ca.pem")

    async def start():
        address = Address("127.0.0.1", lab.ports["a"].stream_api)
        await runner.start(address, context, lambda identity: SaeId(identity.candidates[0]))
        return asyncio.create_task(runner.keep_ticking())

    async def stop(ticking):
        await runner.stop()
        ticking.cancel()

    ticking = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield str(lab.state)
    asyncio.run_coroutine_threadsafe(stop(ticking), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def run(state, *arguments, code=0):
    result = CliRunner().invoke(cli, ["stream", *arguments, "--state", state])
    assert result.exit_code == code, result.output
    return result.output


def test_a_stream_from_open_to_close(state, tmp_path):
    opened = run(state, "open", "--as", "bank", "--with", "vault", "--chunk", "100")
    assert "not come yet" in opened
    ksid = opened.split()[1].rstrip(":")
    assert "is there" in run(state, "open", "--as", "vault", "--with", "bank", "--ksid", ksid)
    places = {sae: tmp_path / f"{sae}.key" for sae in ("bank", "vault")}
    for sae, place in places.items():
        assert "100 octets" in run(state, "get", ksid, "0", "--as", sae, "-o", str(place))
        assert place.stat().st_mode & 0o777 == 0o600
    assert places["bank"].read_bytes() == places["vault"].read_bytes()
    assert len(places["bank"].read_bytes()) == 100
    again = tmp_path / "again.key"
    assert "status 2" in run(state, "get", ksid, "0", "--as", "bank", "-o", str(again), code=1)
    assert not again.exists()
    assert "new file" in run(state, "get", ksid, "1", "--as", "bank", "-o", str(places["bank"]), code=1)
    assert places["bank"].read_bytes() == places["vault"].read_bytes()
    assert "closed" in run(state, "close", ksid, "--as", "bank")
    assert "status 3" in run(state, "close", ksid, "--as", "bank", code=1)


def test_nobody_comes(state):
    output = run(state, "open", "--as", "bank", "--with", "vault", "--ksid", str(uuid.uuid4()), "--wait", "0.1", code=1)
    assert "status 6" in output
    assert "not in topology" in run(state, "open", "--as", "bank", "--with", "nobody", code=1)
    run(state, "close", "no-uuid", "--as", "bank", code=2)
