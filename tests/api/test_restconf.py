"""RESTCONF over the data tree of ETSI GS QKD 015: paths, methods, media types, errors, events."""

import json
import socket
import ssl
import time

import pytest
from api_kit import RunningServer, Wire

from qtrunk.api import restconfdocs, schema015
from qtrunk.api.etsi015 import AppQos, AppView, LinkView, NodeView, interface_number, tree, uuid_of
from qtrunk.api.eventstream import BACKLOG_MAX, EventHub
from qtrunk.api.restconf import KEPT_HEADERS, Restconf
from qtrunk.base.errors import RequestRefused

LINK, APP = uuid_of("net", "link", "a-b"), uuid_of("net", "app", "bank vault")
ROOT = "/restconf/data/etsi-qkd-sdn-node:qkd_node"
YANG = {"Content-Type": "application/yang-data+json"}


class FakeDatastore:
    """A node of one link and one application."""

    def __init__(self) -> None:
        self.set: dict = {}
        self.notes: list = []
        self.refuses = ""

    def tree(self):
        values = {(str(path[1].key), path[-1].name): value for path, value in self.set.items()}
        link = LinkView(
            id=LINK,
            is_physical=True,
            status="ACTIVE",
            remote="b",
            name="a-b",
            end="alice",
            is_enabled=values.get((LINK, "qkdl_enable"), True),
            loss_db=11.0,
        )
        qos = AppQos(
            max_bandwidth=values.get((APP, "max_bandwidth")),
            min_bandwidth=values.get((APP, "min_bandwidth")),
            priority=values.get((APP, "app_priority"), 0),
        )
        app = AppView(
            id=APP,
            initiator="bank",
            target="vault",
            remote_node="b",
            is_on=True,
            qos=qos,
            links=(LINK,),
            created_unix_s=0,
        )
        return tree(
            NodeView(network="net", node="a", version="1", location="", status="OPERATING", links=(link,), apps=(app,))
        )

    def explicit(self):
        return dict(self.set)

    def changed_unix_s(self):
        return 0.0

    def change(self, edits, who, what):
        if self.refuses:
            raise RequestRefused(self.refuses)
        self.notes.append((who, what))
        for path, value in edits.items():
            if value is None:
                self.set.pop(path, None)
            else:
                self.set[path] = value


@pytest.fixture
def served(kme):
    datastore, hub = FakeDatastore(), EventHub()
    refused: list = []
    core = Restconf(
        schema015.MODULE,
        schema015.ROOT,
        schema015.NODE,
        datastore,
        hub,
        note_refusal=lambda operator, what: refused.append((operator.name, what)),
    )
    running = RunningServer(core.handle, kme, kept_headers=KEPT_HEADERS, refusal=restconfdocs.refusal)
    with running:
        yield running, datastore, hub, refused
    assert not running.problems


def certificate(pki, *roles):
    return pki.issue("ops", uris=["urn:qtrunk:operator:ops", *(f"urn:qtrunk:role:{role}" for role in roles)])


@pytest.fixture
def ask(served, pki):
    with Wire(served[0].port, certificate(pki, "controller")) as wire:

        def go(method, path, body=None, headers=None):
            octets = None if body is None else json.dumps(body)
            given = {**(YANG if body is not None else {}), **(headers or {})}
            return wire.ask(method, path, octets, *(f"{name}: {value}" for name, value in given.items()))

        yield go


def error_of(answer):
    assert answer.headers["content-type"] == "application/yang-data+json"
    (entry,) = json.loads(answer.octets)["ietf-restconf:errors"]["error"]
    return answer.status, entry["error-tag"]


def test_discovery(ask):
    meta = ask("GET", "/.well-known/host-meta")
    assert meta.headers["content-type"] == "application/xrd+xml"
    assert b"href='/restconf'" in meta.octets
    api = json.loads(ask("GET", "/restconf").octets)["ietf-restconf:restconf"]
    assert api == {"data": {}, "operations": {}, "yang-library-version": "2016-06-21"}
    assert json.loads(ask("GET", "/restconf/operations").octets) == {"ietf-restconf:operations": {}}
    library = json.loads(ask("GET", "/restconf/data/ietf-yang-library:modules-state").octets)
    for module in library["ietf-yang-library:modules-state"]["module"]:
        if "schema" in module:
            path = "/" + module["schema"].split("/", 3)[3]
            got = ask("GET", path)
            assert got.headers["content-type"] == "application/yang"
            assert f"module {module['name']} ".encode() in got.octets
            assert module["namespace"].encode() in got.octets
    state = json.loads(ask("GET", "/restconf/data/ietf-restconf-monitoring:restconf-state").octets)
    stream = state["ietf-restconf-monitoring:restconf-state"]["streams"]["stream"][0]
    assert stream["access"][0]["location"].endswith("/restconf/streams/NETCONF")
    assert error_of(ask("GET", "/restconf/yang/os"))[0] == 404


def test_reading_the_tree_and_its_parts(ask, served):
    whole = ask("GET", ROOT)
    assert whole.headers["content-type"] == "application/yang-data+json"
    value = json.loads(whole.octets)["etsi-qkd-sdn-node:qkd_node"]
    assert value == served[1].tree()
    assert json.loads(ask("GET", "/restconf/data").octets)["ietf-restconf:data"]["etsi-qkd-sdn-node:qkd_node"] == value
    one = json.loads(ask("GET", f"{ROOT}/qkd_links/qkd_link={LINK}").octets)
    assert one == {"etsi-qkd-sdn-node:qkd_link": [value["qkd_links"]["qkd_link"][0]]}
    assert json.loads(ask("GET", f"{ROOT}/etsi-qkd-sdn-node:qkd_links/qkd_link={LINK.upper()}").octets) == one
    leaf = ask("GET", f"{ROOT}/qkd_links/qkd_link={LINK}/qkdl_enable")
    assert json.loads(leaf.octets) == {"etsi-qkd-sdn-node:qkdl_enable": True}
    number = interface_number("a-b", "alice")
    assert ask("GET", f"{ROOT}/qkd_interfaces/qkd_interface={number}").status == 200
    listed = json.loads(ask("GET", f"{ROOT}/qkd_links/qkd_link").octets)["etsi-qkd-sdn-node:qkd_link"]
    assert [entry["qkdl_id"] for entry in listed] == [LINK]
    state = json.loads(ask("GET", f"{ROOT}?content=nonconfig").octets)["etsi-qkd-sdn-node:qkd_node"]
    assert "qkdn_version" not in state
    assert json.loads(ask("GET", f"{ROOT}?depth=1").octets) == {"etsi-qkd-sdn-node:qkd_node": {}}
    head = ask("HEAD", ROOT)
    assert head.status == 200
    assert head.headers["etag"] == whole.headers["etag"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/restconf/data/other:thing", 404),
        (f"{ROOT}=1", 400),
        (f"{ROOT}/nothing", 404),
        (f"{ROOT}/other:qkd_links", 404),
        (f"{ROOT}/qkd_links=1", 400),
        (f"{ROOT}/qkd_links/qkd_link={APP}", 404),
        (f"{ROOT}/qkd_links/qkd_link/qkdl_id", 400),
        (f"{ROOT}/qkd_links/qkd_link={LINK}/virt_next_hop", 404),
        (f"{ROOT}/qkd_links/qkd_link={LINK}/qkdl_enable/more", 404),
        (f"{ROOT}?content=some", 400),
        (f"{ROOT}?depth=0", 400),
        (f"{ROOT}?depth=99999", 400),
        (f"{ROOT}?fields=x", 400),
        (f"{ROOT}/qkdn_id?content=nonconfig", 404),
        ("/restconf/streams/OTHER", 404),
        ("/restconf/streams/NETCONF?filter=x", 400),
        ("/", 404),
    ],
)
def test_paths_and_parameters_that_are_wrong(ask, path, status):
    assert error_of(ask("GET", path))[0] == status


def test_media_types(ask):
    assert ask("GET", ROOT, headers={"Accept": "application/yang-data+json, */*;q=0.1"}).status == 200
    assert ask("GET", ROOT, headers={"Accept": "application/json"}).status == 200
    assert error_of(ask("GET", ROOT, headers={"Accept": "application/yang-data+xml"}))[0] == 406
    assert error_of(ask("GET", "/restconf/streams/NETCONF", headers={"Accept": "text/plain"}))[0] == 406
    xml = ask("PATCH", ROOT, {}, {"Content-Type": "application/yang-data+xml"})
    assert error_of(xml)[0] == 415


def test_a_link_is_switched_off_and_on_by_every_method(ask, served):
    datastore = served[1]
    leaf = f"{ROOT}/qkd_links/qkd_link={LINK}/qkdl_enable"

    def is_enabled():
        return json.loads(ask("GET", leaf).octets)["etsi-qkd-sdn-node:qkdl_enable"]

    off = {"etsi-qkd-sdn-node:qkdl_enable": False}
    made = ask("PUT", leaf, off)
    assert (made.status, is_enabled()) == (201, False)
    assert ask("PUT", leaf, off).status == 204
    assert error_of(ask("POST", f"{ROOT}/qkd_links/qkd_link={LINK}", off)) == (409, "data-exists")
    gone = ask("DELETE", leaf)
    assert (gone.status, gone.octets, is_enabled()) == (204, b"", True)
    assert "content-length" not in gone.headers
    assert error_of(ask("DELETE", leaf))[0] == 404
    posted = ask("POST", f"{ROOT}/qkd_links/qkd_link={LINK}", off)
    assert posted.status == 201
    assert posted.headers["location"] == leaf
    assert not is_enabled()
    entry = {"etsi-qkd-sdn-node:qkd_link": [{"qkdl_id": LINK, "qkdl_enable": True}]}
    assert ask("PATCH", f"{ROOT}/qkd_links/qkd_link={LINK}", entry).status == 204
    assert is_enabled()
    # As it was read, changed in one place, and put back.
    config = json.loads(ask("GET", f"{ROOT}/qkd_links/qkd_link={LINK}?content=config").octets)
    config["etsi-qkd-sdn-node:qkd_link"][0]["qkdl_enable"] = False
    assert ask("PUT", f"{ROOT}/qkd_links/qkd_link={LINK}", config).status == 204
    assert not is_enabled()
    deep = {"qkd_node": {"qkd_links": {"qkd_link": [{"qkdl_id": LINK, "qkdl_enable": True}]}}}
    assert ask("PATCH", ROOT, deep).status == 204
    assert is_enabled()
    put = {"qkd_link": [{"qkdl_id": LINK}]}
    assert ask("PUT", f"{ROOT}/qkd_links/qkd_link={LINK}", put).status == 204
    assert datastore.set == {}
    assert all(who == "operator ops" for who, _ in datastore.notes)


def test_an_application_gets_a_priority_and_bandwidths(ask):
    app = f"{ROOT}/qkd_applications/qkd_app={APP}"
    qos = {"etsi-qkd-sdn-node:app_qos": {"max_bandwidth": 4096, "min_bandwidth": 128}}
    assert ask("PATCH", f"{app}/app_qos", qos).status == 204
    assert ask("PUT", f"{app}/app_priority", {"etsi-qkd-sdn-node:app_priority": 5}).status == 201
    found = json.loads(ask("GET", app).octets)["etsi-qkd-sdn-node:qkd_app"][0]
    assert (found["app_priority"], found["app_qos"]["max_bandwidth"]) == (5, 4096)
    assert ask("PUT", f"{app}/app_qos", {"app_qos": {"max_bandwidth": 1}}).status == 204
    found = json.loads(ask("GET", f"{app}/app_qos").octets)["etsi-qkd-sdn-node:app_qos"]
    assert "min_bandwidth" not in found
    assert ask("DELETE", f"{app}/app_qos").status == 204


@pytest.mark.parametrize(
    ("method", "where", "body", "expected"),
    [
        ("PUT", f"/qkd_links/qkd_link={LINK}/qkdl_enable", {"qkdl_enable": "no"}, (400, "invalid-value")),
        ("PUT", f"/qkd_links/qkd_link={LINK}/qkdl_enable", {"other": False}, (400, "unknown-element")),
        ("PUT", f"/qkd_links/qkd_link={LINK}/qkdl_enable", {"x:qkdl_enable": False}, (400, "unknown-namespace")),
        ("PUT", f"/qkd_links/qkd_link={LINK}/qkdl_enable", {}, (400, "malformed-message")),
        ("PUT", f"/qkd_links/qkd_link={LINK}", {"qkd_link": [{"qkdl_id": APP}]}, (400, "invalid-value")),
        ("PUT", f"/qkd_links/qkd_link={LINK}", {"qkd_link": {}}, (400, "invalid-value")),
        ("PATCH", f"/qkd_links/qkd_link={LINK}", {"qkd_link": [{"qkdl_id": LINK, "x": 1}]}, (400, "unknown-element")),
        (
            "PATCH",
            f"/qkd_links/qkd_link={LINK}",
            {"qkd_link": [{"qkdl_id": LINK, "qkdl_performance": {"skr": 1}}]},
            (400, "invalid-value"),
        ),
        (
            "PATCH",
            f"/qkd_links/qkd_link={LINK}",
            {"qkd_link": [{"qkdl_id": LINK, "qkdl_type": "etsi-qkd-node-types:VIRT"}]},
            (400, "operation-not-supported"),
        ),
        ("PATCH", "/qkd_links/qkd_link", {"qkd_link": []}, (400, "invalid-value")),
        ("PATCH", "/qkd_links", {"qkd_links": {"qkd_link": [{"qkdl_id": APP}]}}, (400, "operation-not-supported")),
        ("PATCH", "", {"qkd_node": {"qkdn_status": "x"}}, (400, "invalid-value")),
        ("PATCH", "", {"qkd_node": []}, (400, "invalid-value")),
        ("POST", "/qkd_links", {"qkd_link": [{"qkdl_id": LINK}]}, (409, "data-exists")),
        ("POST", "/qkd_links", {"qkd_link": [{"qkdl_id": APP}]}, (405, "operation-not-supported")),
        ("POST", "/qkd_applications", {"qkd_app": [{"app_id": LINK}]}, (405, "operation-not-supported")),
        ("POST", "", {"qkd_links": {}}, (409, "data-exists")),
        ("DELETE", f"/qkd_links/qkd_link={LINK}", None, (405, "operation-not-supported")),
        ("DELETE", f"/qkd_links/qkd_link={LINK}/qkdl_type", None, (405, "operation-not-supported")),
        ("DELETE", "", None, (405, "operation-not-supported")),
        (
            "PATCH",
            f"/qkd_applications/qkd_app={APP}/app_qos",
            {"app_qos": {"max_bandwidth": -1}},
            (400, "invalid-value"),
        ),
        (
            "PATCH",
            f"/qkd_applications/qkd_app={APP}/app_qos",
            {"app_qos": {"jitter": 1}},
            (400, "operation-not-supported"),
        ),
        ("PROPFIND", "", None, (405, "operation-not-supported")),
    ],
)
def test_writes_that_cannot_be_change_nothing(ask, served, method, where, body, expected):
    assert error_of(ask(method, ROOT + where, body)) == expected
    assert served[1].set == {}
    assert served[1].notes == []


def test_one_wrong_leaf_keeps_all_others_from_acting(ask, served):
    body = {"app_qos": {"max_bandwidth": 4096, "min_bandwidth": True}}
    assert error_of(ask("PATCH", f"{ROOT}/qkd_applications/qkd_app={APP}/app_qos", body)) == (400, "invalid-value")
    assert served[1].set == {}


def test_a_refusal_of_the_node_and_a_body_that_is_no_json(ask, served):
    served[1].refuses = "not now"
    leaf = f"{ROOT}/qkd_links/qkd_link={LINK}/qkdl_enable"
    answer = ask("PUT", leaf, {"qkdl_enable": False})
    assert error_of(answer) == (400, "invalid-value")
    assert b"not now" in answer.octets
    assert error_of(ask("PUT", leaf, [1])) == (400, "malformed-message")


def test_if_match_keeps_two_controllers_from_undoing_each_other(ask):
    leaf = f"{ROOT}/qkd_links/qkd_link={LINK}/qkdl_enable"
    tag = ask("GET", ROOT).headers["etag"]
    assert ask("PUT", leaf, {"qkdl_enable": False}, {"If-Match": tag}).status == 201
    assert error_of(ask("PUT", leaf, {"qkdl_enable": True}, {"If-Match": tag})) == (412, "operation-failed")
    assert ask("PUT", leaf, {"qkdl_enable": True}, {"If-Match": "*"}).status == 204


@pytest.mark.parametrize("role", ["viewer", "auditor", "security-officer", "operator", "controller"])
def test_every_role_reads_and_two_may_write(served, pki, role):
    leaf = f"{ROOT}/qkd_links/qkd_link={LINK}/qkdl_enable"
    with Wire(served[0].port, certificate(pki, role)) as wire:
        assert wire.ask("GET", ROOT).status == 200
        answer = wire.ask("PUT", leaf, {"qkdl_enable": False}, "Content-Type: application/yang-data+json")
    if role in ("operator", "controller"):
        assert answer.status == 201
    else:
        assert error_of(answer) == (403, "access-denied")
        assert served[3] == [("ops", f"PUT {leaf}")]


def test_no_role_and_no_operator_get_nothing(served, pki):
    for credentials, status in ((certificate(pki), 403), (pki.sae("bank"), 401), (pki.kme("kme-b"), 401)):
        with Wire(served[0].port, credentials) as wire:
            for path in (ROOT, "/restconf", "/restconf/streams/NETCONF"):
                assert error_of(wire.ask("GET", path))[0] == status


def test_options(ask):
    assert "PATCH" in ask("OPTIONS", ROOT).headers["allow"]
    assert ask("OPTIONS", "/restconf").headers["allow"] == "GET, HEAD, OPTIONS"
    assert error_of(ask("POST", "/restconf/data", {"x": 1}))[0] == 405


class Listener:
    """A raw connection to the stream of notifications."""

    def __init__(self, port, credentials):
        context = ssl.create_default_context(cafile=credentials.ca_certificate)
        context.load_cert_chain(credentials.certificate, credentials.private_key)
        self.socket = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")
        self.socket.settimeout(10)
        self.socket.sendall(b"GET /restconf/streams/NETCONF HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n")
        self.octets = b""

    def until(self, wanted: bytes) -> bytes:
        while wanted not in self.octets:
            got = self.socket.recv(65536)
            assert got, self.octets[-300:]
            self.octets += got
        return self.octets

    def to_the_end(self) -> bytes:
        while got := self.socket.recv(65536):
            self.octets += got
        return self.octets


def publish(running, hub, *documents):
    async def go():
        for document in documents:
            hub.publish(document)

    running.run(go())


def test_events_reach_every_listener_until_the_server_stops(served, pki):
    running, _, hub, _ = served
    listeners = [Listener(running.port, certificate(pki, "viewer")) for _ in range(3)]
    for one in listeners:
        head = one.until(b": listening\n\n")
        assert b"Content-Type: text/event-stream" in head
        assert b"Transfer-Encoding: chunked" in head
        assert b"Content-Length" not in head
    publish(running, hub, b'{"n":1}', b'{"n":2}')
    for one in listeners:
        one.until(b'data: {"n":2}\n\n')
    listeners[0].socket.close()
    deadline_s = time.monotonic() + 10
    while len(hub._queues) > 2 and time.monotonic() < deadline_s:
        publish(running, hub, b'{"n":3}')
        time.sleep(0.05)
    assert len(hub._queues) == 2
    running.run(running.server.stop())
    for one in listeners[1:]:
        assert one.to_the_end().endswith(b"0\r\n\r\n")
        one.socket.close()
    assert not hub._queues


def test_a_listener_that_does_not_read_is_let_go(served):
    running, _, hub, _ = served

    async def go():
        listener = hub.listen()
        for number in range(BACKLOG_MAX + 5):
            hub.publish(b"%d" % number)
        return [part async for part in listener]

    parts = running.run(go())
    assert len(parts) == BACKLOG_MAX + 1
    assert not hub._queues
