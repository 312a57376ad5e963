"""A controller at the agents of a running lab: what they say is valid, and what it sets happens (ETSI GS QKD 015)."""

import http.client
import json
import ssl
import time
from pathlib import Path

import pytest
from yangson import DataModel
from yangson.enumerations import ContentType

import qtrunk.api
from qtrunk.api import restconfdocs
from qtrunk.api.etsi015 import uuid_of
from qtrunk.node.lab import Lab

YANG = Path(qtrunk.api.__file__).parent / "yang"
DATA = "/restconf/data/etsi-qkd-sdn-node:qkd_node"


@pytest.fixture(scope="module")
def model() -> DataModel:
    state = restconfdocs.library("a")["ietf-yang-library:modules-state"]
    shipped = {path.stem for path in YANG.rglob("*.yang")}
    modules = [{k: v for k, v in one.items() if k != "schema"} for one in state["module"] if one["name"] in shipped]
    text = json.dumps({"ietf-yang-library:modules-state": {**state, "module": modules}})
    return DataModel(text, tuple(str(YANG / place) for place in ("patched", "upstream", "ietf")))


OPEN: list = []


@pytest.fixture(autouse=True)
def closed_behind():
    yield
    while OPEN:
        OPEN.pop().connection.close()


class Controller:
    """A client of one node's agent."""

    def __init__(self, lab: Lab, node: str) -> None:
        own = lab.operator()
        context = ssl.create_default_context(cafile=own.ca_certificate)
        context.load_cert_chain(own.certificate, own.private_key)
        OPEN.append(self)
        self.connection = http.client.HTTPSConnection("localhost", lab.ports[node].sdn_api, context=context, timeout=20)

    def ask(self, method, path, body=None, accept="application/yang-data+json"):
        headers = {"Accept": accept, "Content-Type": "application/yang-data+json"}
        self.connection.request(method, path, None if body is None else json.dumps(body), headers)
        return self.connection.getresponse()

    def tree(self):
        return json.loads(self.ask("GET", DATA).read())["etsi-qkd-sdn-node:qkd_node"]


def until(condition, what, within_s=60.0):
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if condition():
            return
        time.sleep(0.3)
    raise AssertionError(what)


def test_every_node_of_a_lab_is_valid_and_its_links_and_applications_are_there(small_lab, model):
    lab = Lab.open(small_lab.state)
    client = small_lab.client("desk")
    client.get_keys("vault", 2, 256)
    for node in small_lab.nodes():
        controller = Controller(lab, node)
        tree = controller.tree()
        model.from_raw({"etsi-qkd-sdn-node:qkd_node": tree}).validate(ctype=ContentType.all)
        assert tree["qkdn_id"] == uuid_of("small-trunk", "node", node)
        links = [link for link in tree["qkd_links"]["qkd_link"] if link["qkdl_type"].endswith("PHYS")]
        assert len(links) == len(lab.topology.links_of(node)) == len(tree["qkd_interfaces"]["qkd_interface"])
        assert {link["qkdl_status"] for link in links} == {"etsi-qkd-node-types:ACTIVE"}
        assert all(link["qkdl_performance"]["skr"] > link["qkdl_performance"]["eskr"] > 0 for link in links)
    tree = Controller(lab, "ada").tree()
    (app,) = [app for app in tree["qkd_applications"]["qkd_app"] if app["server_app_id"] == "desk"]
    assert app["client_app_id"] == ["vault"]
    assert app["remote_qkdn_id"] == uuid_of("small-trunk", "node", "cleo")
    (way,) = [link for link in tree["qkd_links"]["qkd_link"] if link["qkdl_id"] in app["backing_qkdl_id"]]
    assert way["qkdl_type"].endswith("VIRT")
    assert way["virt_next_hop"] == [uuid_of("small-trunk", "node", "bert")]


def test_a_link_is_switched_off_at_its_following_end_and_on_again(small_lab):
    lab = Lab.open(small_lab.state)
    link = lab.topology.links[0]
    leaf = f"{DATA}/qkd_links/qkd_link={uuid_of('small-trunk', 'link', link.id)}/qkdl_enable"
    bob, alice = Controller(lab, link.bob), Controller(lab, link.alice)
    stream = Controller(lab, link.alice).ask("GET", "/restconf/streams/NETCONF", accept="text/event-stream")
    assert stream.status == 200
    made = bob.ask("PUT", leaf, {"etsi-qkd-sdn-node:qkdl_enable": False})
    made.read()
    assert made.status == 201

    def state(controller):
        found = controller.tree()["qkd_links"]["qkd_link"]
        return next(one["qkdl_status"] for one in found if one["qkdl_id"] in leaf).partition(":")[2]

    try:
        until(lambda: {state(bob), state(alice)} == {"PASSIVE"}, "both ends say PASSIVE")
        line = b""
        while not (line.startswith(b"data: ") and b"PASSIVE" in line):
            line = stream.readline()
            assert line
        told = json.loads(line[len(b"data: ") :])["ietf-restconf:notification"]
        assert told.keys() & {"etsi-qkd-sdn-node:event", "etsi-qkd-sdn-node:sdqkdn_link_down"}

        def is_still():
            before = small_lab.links()[link.id]["blocks_released"]
            time.sleep(4)
            return small_lab.links()[link.id]["blocks_released"] == before

        # What was under way is finished, soon or late as the machine is loaded; then no block comes any more.
        until(is_still, "no block is released any more")
        held = small_lab.links()[link.id]["blocks_released"]
        assert small_lab.client("bank").get_keys("vault", 1, 256)
    finally:
        stream.close()
        gone = bob.ask("DELETE", leaf)
        gone.read()
        assert gone.status == 204
    until(lambda: {state(bob), state(alice)} == {"ACTIVE"}, "both ends say ACTIVE")
    until(lambda: small_lab.links()[link.id]["blocks_released"] > held, "blocks come again")


def test_a_bandwidth_that_a_controller_sets_is_kept_to(small_lab):
    from qtrunk.base.errors import KeyExhausted

    controller = Controller(Lab.open(small_lab.state), "cleo")
    client = small_lab.client("grid")
    client.get_keys("desk", 1, 256)
    app = f"{DATA}/qkd_applications/qkd_app={uuid_of('small-trunk', 'app', 'grid desk')}"
    body = {"etsi-qkd-sdn-node:app_qos": {"max_bandwidth": 0}}
    answer = controller.ask("PATCH", f"{app}/app_qos", body)
    answer.read()
    assert answer.status == 204
    try:
        with pytest.raises(KeyExhausted, match="max_bandwidth"):
            client.get_keys("desk", 1, 256)
    finally:
        controller.ask("DELETE", f"{app}/app_qos/max_bandwidth").read()
    assert client.get_keys("desk", 1, 256)
