"""A lab's directory: made once, completed again, its ports kept or as the file says, its secrets at both ends."""

import json
import socket
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest

from qtrunk.base.errors import LabError
from qtrunk.base.ids import NodeId, SaeId
from qtrunk.node.lab import Lab
from qtrunk.topology import Node, Sae, Topology, trunk


@pytest.fixture
def topology():
    nodes = [Node(id=NodeId("a"), key_api_port=20443), Node(id=NodeId("b"))]
    row = trunk("t", nodes, [(10, 3)])
    return Topology(name="t", nodes=row.nodes, links=row.links, saes=(Sae(id=SaeId("x"), node=NodeId("a")),))


def test_a_lab_is_made_once_and_found_again(tmp_path, topology):
    made = Lab.prepare(tmp_path / "lab", topology)
    again = Lab.prepare(tmp_path / "lab", topology)
    assert again.ports == made.ports
    assert made.ports["a"].key_api == 20443
    assert (
        len({port for ports in made.ports.values() for port in (ports.key_api, ports.admin_api, ports.inter_node)}) == 6
    )
    assert (tmp_path / "lab").stat().st_mode & 0o777 == 0o700
    assert Lab.open(tmp_path / "lab").topology == topology
    secrets = [(tmp_path / "lab" / "nodes" / node / "preshared-a-b").read_bytes() for node in "ab"]
    assert secrets[0] == secrets[1]
    assert len(set(secrets[0])) > 100


def test_a_lab_from_before_key_streams_gets_ports_for_them(tmp_path, topology):
    made = Lab.prepare(tmp_path / "lab", topology)
    path = tmp_path / "lab" / "lab.json"
    record = json.loads(path.read_bytes())
    for ports in record["ports"].values():
        del ports["stream_api"]
    path.write_text(json.dumps(record))
    again = Lab.prepare(tmp_path / "lab", topology)
    assert again.ports["a"].key_api == made.ports["a"].key_api
    assert again.ports["a"].stream_api > 0
    config = json.loads((tmp_path / "lab" / "nodes" / "a" / "node.json").read_bytes())
    assert config["stream_api"]["port"] == again.ports["a"].stream_api
    assert again.stream_address("a") == f"localhost:{again.ports['a'].stream_api}"


def test_a_secret_that_was_taken_is_not_made_again(tmp_path, topology):
    Lab.prepare(tmp_path / "lab", topology)
    for node in "ab":
        (tmp_path / "lab" / "nodes" / node / "preshared-a-b").unlink()
    Lab.prepare(tmp_path / "lab", topology)
    assert not (tmp_path / "lab" / "nodes" / "a" / "preshared-a-b").exists()


def test_another_topology_in_the_same_directory_is_refused(tmp_path, topology):
    Lab.prepare(tmp_path / "lab", topology)
    other = trunk("other", [Node(id=NodeId("a")), Node(id=NodeId("c"))], [(10, 3)])
    with pytest.raises(LabError, match="another --state"):
        Lab.prepare(tmp_path / "lab", other)


def test_how_fast_the_fibres_run_is_said_at_each_start(tmp_path, topology):
    def fractions(lab):
        told = json.loads((tmp_path / "lab" / "optics" / "a-b" / "optics.json").read_bytes())["equipment"]
        of_node = json.loads((tmp_path / "lab" / "nodes" / "a" / "node.json").read_bytes())["topology"]
        (link,) = Topology.from_dict(of_node).links
        return lab.topology.links[0].equipment.clock_fraction, told["clock_fraction"], link.equipment.clock_fraction

    assert fractions(Lab.prepare(tmp_path / "lab", topology)) == (1.0, 1.0, 1.0)
    assert fractions(Lab.prepare(tmp_path / "lab", topology, clock_fraction=0.1)) == (0.1, 0.1, 0.1)
    assert Lab.open(tmp_path / "lab").clock_fraction == 0.1
    assert fractions(Lab.prepare(tmp_path / "lab", topology)) == (1.0, 1.0, 1.0)
    assert Lab.open(tmp_path / "lab").clock_fraction is None


@pytest.mark.parametrize("count", [8, 12])
def test_light_of_many_fibres_begins_apart(count):
    names = "abcdefghijklm"[: count + 1]
    many = trunk("t", [Node(id=NodeId(name)) for name in names], [(10, 3)] * count)
    # Of a short name: it holds sockets.
    with tempfile.TemporaryDirectory(prefix="ql") as directory:
        Lab.prepare(Path(directory), many)
        files = [Path(directory) / "optics" / link.id / "optics.json" for link in many.links]
        begins_s = sorted(json.loads(file.read_bytes())["warm_up_s"] for file in files)
    if count == 8:
        assert begins_s == [0.0] * 8
        return
    block_s = many.links[0].equipment.block_s
    gaps_s = [later - earlier for earlier, later in pairwise([*begins_s, block_s])]
    assert begins_s[0] == 0.0
    assert 0.5 * block_s / 12 < min(gaps_s) <= max(gaps_s) < 2 * block_s / 12


def test_a_port_that_somebody_took_is_chosen_anew(tmp_path, topology):
    made = Lab.prepare(tmp_path / "lab", topology)
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", made.ports["b"].inter_node))
        thief.listen()
        again = Lab.prepare(tmp_path / "lab", topology)
    assert again.ports["b"].inter_node != made.ports["b"].inter_node
    assert again.ports["a"] == made.ports["a"]


def test_no_configuration_holds_a_secret(tmp_path, topology):
    Lab.prepare(tmp_path / "lab", topology)
    secret = (tmp_path / "lab" / "nodes" / "a" / "preshared-a-b").read_bytes()
    for path in (tmp_path / "lab").rglob("*.json"):
        text = path.read_text()
        json.loads(text)
        assert secret.hex() not in text
        assert "PRIVATE KEY" not in text


def test_what_is_not_there_is_said_with_the_fix(tmp_path, topology):
    with pytest.raises(LabError, match="qtrunk up"):
        Lab.open(tmp_path / "nothing")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "lab.json").write_text("{}")
    with pytest.raises(LabError, match="damaged"):
        Lab.open(tmp_path / "bad")
    with pytest.raises(LabError, match="too long"):
        Lab.prepare(tmp_path / ("x" * 100), topology)
    with pytest.raises(LabError, match="SAEs: x"):
        Lab.prepare(tmp_path / "lab", topology).credentials(SaeId("y"))
