"""The northbound interface as its OpenAPI file says it: every answer measured by it, and asked what nobody expects."""

import json
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import jsonschema_rs
import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from api_kit import Pki, RunningServer, Wire

from qtrunk.api.alarms import Said
from qtrunk.control.controller import Controller
from qtrunk.control.telemetry import decode
from qtrunk.node.controller.database import Sqlite
from qtrunk.node.controller.northbound import northbound
from qtrunk.node.controller.process import ControllerRunner
from qtrunk.node.controller.store import ControlStore
from qtrunk.relay.route import disjoint_routes
from qtrunk.topology import Demand, Node, Sae, Topology, ring

RING = ring("ring", [Node(id=name) for name in "abcd"], [(10, 3)] * 4)
NET = Topology(
    name="ring",
    nodes=RING.nodes,
    links=RING.links,
    saes=(Sae(id="bank", node="a"), Sae(id="vault", node="c")),
    demands=(Demand(between=("bank", "vault"), rate_bps=1),),
)
DOCUMENT = json.loads((files("qtrunk.api") / "control.json").read_text())
CONFIG = """
request-cert = "{certificate}"
request-cert-key = "{private_key}"
tls-verify = "{ca_certificate}"

[checks]
negative_data_rejection.expected-statuses = [400, 404]
positive_data_acceptance.expected-statuses = [200, 400]
"""


def said(node):
    links = [
        {"link": link.id, "role": "alice", "state": "ACTIVE", "own_bits": 9, "is_connected": True, "qber_test": 0.01}
        | {"diagnosis": [{"kind": "bend", "weight": 0.5, "reason": "less light"}]}
        for link in NET.links_of(node)
    ]
    alarm = {"resource": "a-b", "type": "LinkOff", "severity": "major", "text": "t", "raised_unix_s": 5.0}
    pool = {"side": "initiator", "initiator": "bank", "target": "vault", "available": 64, "delivered": 32}
    tenants = [{"tenant": "default", "quality_of_service": {"requests": 1}}]
    document = {
        "node": node,
        "state": "in service",
        "links": links,
        "alarms": {"active": [alarm]},
        "pools": [pool] if node == "a" else [],
        "tenants": tenants,
    }
    return decode(msgspec.json.encode(document), node)


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return Pki(tmp_path_factory.mktemp("pki") / "ca")


@pytest.fixture
def served(pki, tmp_path):
    """A controller that has heard of all nodes but one."""
    machine = Controller("one", NET, lambda a, b, n, away: disjoint_routes(NET, a, b, n, away))
    machine.lead(1, 0)
    store = ControlStore(Sqlite(tmp_path / "control.db"))
    for node in "abc":
        machine.note(said(node), 0.0)
        store.note_telemetry(said(node), 1.0)
    machine.tick(0.0)
    runner = SimpleNamespace(
        machine=machine,
        store=store,
        clock=SimpleNamespace(monotonic_s=lambda: 1.0, unix_s=lambda: 1.0),
        config=SimpleNamespace(name="one"),
        topology_version=1,
        problems={"d": "does not answer"},
        altered_audit=set(),
    )
    runner.status = lambda: ControllerRunner.status(runner)
    runner.said = []

    async def say(id_, word, said):
        runner.said.append((id_, word, said))
        return {"word": word, "nodes": ["a"], "refused": {"b": "it is away"}}

    runner.say = say
    with RunningServer(northbound(runner, lambda _identity: False).handle, pki.kme("one")) as running:
        running.said = runner.said
        yield running, machine
    assert not running.problems


@pytest.fixture
def viewer(pki):
    return pki.issue("ops", uris=["urn:qtrunk:operator:ops", "urn:qtrunk:role:viewer"])


@pytest.fixture
def operator(pki):
    roles = ("viewer", "operator")
    return pki.issue("ada", uris=["urn:qtrunk:operator:ada", *(f"urn:qtrunk:role:{role}" for role in roles)])


def validator(path, status, method="get"):
    answer = DOCUMENT["paths"][path][method]["responses"][str(status)]["content"]["application/json"]["schema"]
    return jsonschema_rs.validator_for({**answer, "components": DOCUMENT["components"]})


@pytest.mark.parametrize("path", [path for path, methods in DOCUMENT["paths"].items() if "get" in methods])
def test_every_answer_is_as_the_document_has_it(served, viewer, path):
    running, machine = served
    query = "?cut=a-b" if path.endswith("what-if") else ""
    with Wire(running.port, viewer) as wire:
        answer = wire.ask("GET", path + query)
        assert answer.status == 200
        validator(path, 200).validate(answer.json())
        assert answer.json()
        machine.follow()
        standing_by = wire.ask("GET", path + query)
        if path.endswith("status"):
            assert standing_by.json()["is_leading"] is False
        else:
            assert standing_by.status == 503
            assert standing_by.headers["retry-after"] == "5"
            validator(path, 503).validate(standing_by.json())


def test_what_is_asked_wrongly_is_refused_by_name(served, viewer, pki):
    with Wire(served[0].port, viewer) as wire:
        for target, word in (("what-if", "cut"), ("what-if?cut=x", "no link"), ("nodes?x=1", "'x'")):
            answer = wire.ask("GET", f"/control/v1/{target}")
            assert answer.status == 400
            assert word in answer.json()["message"]
        assert wire.ask("GET", "/control/v1/other").status == 404
        assert wire.ask("GET", "/admin/v1/status").status == 404
        assert wire.ask("POST", "/control/v1/nodes", {}).status == 400
    with Wire(served[0].port, pki.sae("bank")) as wire:
        assert wire.ask("GET", "/control/v1/nodes").status == 401


def test_an_operators_word_goes_to_the_nodes_in_the_operators_name(served, operator, viewer):
    running, machine = served
    path, where = "/control/v1/alarms/{id}/{word}", "/control/v1/alarms/0123456789ab"
    with Wire(running.port, operator) as wire:
        answer = wire.ask("POST", f"{where}/ack", {"text": "crew is out"})
        assert answer.status == 200
        validator(path, 200, "post").validate(answer.json())
        assert running.said == [("0123456789ab", "ack", Said("crew is out", None, "ada"))]
        wrong = (
            ("/control/v1/alarms/0123/ack", {"text": "t"}, "id"),
            (f"{where}/burn", {"text": "t"}, "word"),
            (f"{where}/ack", {}, "body"),
            (f"{where}/ack", {"text": "t", "until": 5}, "until"),
            (f"{where}/ack", {"text": "t", "operator": "ben"}, "operator"),
        )
        for target, body, field in wrong:
            refused = wire.ask("POST", target, body)
            assert (refused.status, refused.json()["message"].partition(":")[0]) == (400, field)
        assert len(running.said) == 1
        machine.follow()
        assert wire.ask("POST", f"{where}/ack", {"text": "t"}).status == 503
    with Wire(running.port, viewer) as wire:
        assert wire.ask("POST", f"{where}/ack", {"text": "t"}).status == 403
    assert len(running.said) == 1


def test_a_property_based_tester_finds_nothing_that_the_document_does_not_say(served, operator, tmp_path):
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG.format(**operator.arguments()))
    made = subprocess.run(
        [
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *("--config-file", str(config), "run", str(files("qtrunk.api") / "control.json"), "--no-color"),
            *("--url", f"https://localhost:{served[0].port}", "--mode", "all"),
            *("--exclude-checks", "unsupported_method", "--phases", "examples,coverage,fuzzing"),
            *("--generation-deterministic", "--max-examples", "12"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ},
    )  # fmt: skip
    assert made.returncode == 0, made.stdout[-6000:] + made.stderr[-2000:]
    cases = re.search(r"(\d[\d,]*) generated", made.stdout)
    assert cases is not None
    assert int(cases[1].replace(",", "")) > 30
