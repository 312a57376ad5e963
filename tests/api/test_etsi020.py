"""ETSI GS QKD 020 over HTTPS: two key managers of two networks, what one is asked by hand, and what goes wrong."""

import asyncio
import base64
import contextlib
import http.client
import json
import socket
import ssl
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import jsonschema_rs
import pytest
from api_kit import Answer, Credentials, Pki, Wire
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrunk.api import client020, etsi020
from qtrunk.api.https import PeerIdentity, Request, Response
from qtrunk.api.tls import client_context, identity_of
from qtrunk.base.errors import ConfigError, KeyExhausted, RequestRefused, RouteUnavailable, WireError
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.kms.interwork import receiver, sender
from qtrunk.kms.interwork.file import JournalFile
from qtrunk.kms.interwork.records import Ack, AckStatus, Extensions
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.interwork import Interworking
from qtrunk.node.world import SystemClock
from qtrunk.topology import ForeignNetwork, Node, Sae, Topology

DOCUMENT = json.loads((files("qtrunk.api") / "etsi020.json").read_text())
ANNE, BELA, BERT = SaeId("anne"), SaeId("bela"), SaeId("bert")
VERSIONS, KEYS, ACK, VOID = "/kmapi/versions", "/kmapi/v1/ext_keys", "/kmapi/v1/ext_keys/ack", "/kmapi/v1/ext_keys/void"
WITHIN_S = 30.0


def schema_of(name: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    )


def measured(answer: Answer, path: str, method: str = "post") -> Answer:
    """The answer, after the document has been found to describe it."""
    described = DOCUMENT["paths"][path][method]["responses"][str(answer.status)]
    if "$ref" in described:
        described = DOCUMENT["components"]["responses"][described["$ref"].rpartition("/")[2]]
    if "content" not in described:
        assert answer.octets == b""
        return answer
    ((kind, content),) = described["content"].items()
    assert answer.headers["Content-Type"] in (kind, f"{kind}; charset=UTF-8")
    assert len(answer.headers.get_all("Content-Type")) == 1
    jsonschema_rs.Draft202012Validator({**content["schema"], "components": DOCUMENT["components"]}).validate(
        answer.json()
    )
    if answer.status >= 400:
        assert answer.json()["status"] == answer.status
        assert ("Retry-After" in answer.headers) == (answer.status == 503)
    return answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Interior:
    """A network in memory."""

    held: dict[tuple[KeyId, SaeId], bytes] = field(default_factory=dict)
    buried: set[KeyId] = field(default_factory=set)
    delivered: set[KeyId] = field(default_factory=set)
    extensions: list[Extensions] = field(default_factory=list)
    fails: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def carry(self, key_ids, materials, initiator, targets, extensions) -> None:
        await self.gate.wait()
        if self.fails or self.buried & set(key_ids):
            self.fails -= 1
            raise KeyExhausted("no key to carry with")
        self.extensions.append(extensions)
        for key_id, material in zip(key_ids, materials, strict=True):
            for target in targets:
                self.held[key_id, target] = bytes(material.reveal())

    async def void(self, key_ids, targets) -> set[KeyId]:
        self.buried |= set(key_ids)
        for place in [place for place in self.held if place[0] in key_ids]:
            del self.held[place]
        return self.delivered & set(key_ids)

    def collect(self, key_id: KeyId, target: SaeId) -> bytes:
        self.delivered.add(key_id)
        return self.held.pop((key_id, target))


@dataclass
class Kme:
    """One border node, which can be stopped and started again."""

    name: str
    topology: Topology
    credentials: Credentials
    directory: Path
    interior: Interior = field(default_factory=Interior)
    alarms: AlarmBoard = field(default_factory=lambda: AlarmBoard(SystemClock()))
    why_closed: str | None = None
    failures: list[BaseException] = field(default_factory=list)
    here: Interworking = field(init=False)

    async def start(self) -> None:
        clock = SystemClock()
        self.here = Interworking(
            node=NodeId(self.name),
            topology=self.topology,
            journal=JournalFile(self.directory / f"{self.name}.db", self.name, Secret(b"k" * 32), clock),
            interior=self.interior,
            certificate=self.credentials.certificate,
            private_key=self.credentials.private_key,
            clock=clock,
            alarms=self.alarms,
            why_closed=lambda: self.why_closed,
        )
        await self.here.start(self.failures.append)


@dataclass
class Pair:
    a: Kme
    b: Kme
    ca_a: Pki
    ca_b: Pki
    as_a: Credentials
    """What A's key manager shows."""
    port_a: int
    port_b: int

    async def ask(self, method: str, path: str, body=None, own: Credentials | None = None) -> Answer:
        """By hand, as A's key manager (or somebody else), at B's."""

        def asked() -> Answer:
            with Wire(self.port_b, own or self.as_a, self.ca_b.ca_certificate) as wire:
                return wire.ask(method, path, body if body is None or isinstance(body, bytes) else json.dumps(body))

        return measured(await asyncio.to_thread(asked), path, method.lower())

    def callback(self) -> str:
        return f"https://localhost:{self.port_a}{ACK}"

    def container(self, keys, targets=("bela",), **more) -> dict:
        made = {
            "keys": [{"key_id": key.key_id, "value": base64.b64encode(key.material.reveal()).decode()} for key in keys],
            "initiator_sae_id": "anne",
            "target_sae_ids": list(targets),
            "ack_callback_url": self.callback(),
            **more,
        }
        return {name: value for name, value in made.items() if value is not None}

    def void(self, keys, targets=("bela",), **more) -> dict:
        made = {
            "key_ids": [key.key_id for key in keys],
            "initiator_sae_id": "anne",
            "target_sae_ids": list(targets),
            "ack_callback_url": self.callback(),
            **more,
        }
        return {name: value for name, value in made.items() if value is not None}


def made(number: int = 1) -> list[SuppliedKey]:
    return [
        SuppliedKey(key_id=KeyId(str(uuid.uuid4())), material=Secret(uuid.uuid4().bytes * 2)) for _ in range(number)
    ]


@pytest.fixture(scope="module")
def pkis(tmp_path_factory) -> tuple[Pki, Pki, Credentials, Credentials]:
    place = tmp_path_factory.mktemp("pki020")
    a, b = Pki(place / "a", "CA of A"), Pki(place / "b", "CA of B")
    return a, b, a.kme("kme-a"), b.kme("kme-b")


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(sender, "RETRY_S", 0.05)
    monkeypatch.setattr(sender, "ACK_WAIT_S", 0.4)
    monkeypatch.setattr(receiver, "RETRY_S", 0.05)
    monkeypatch.setattr("qtrunk.node.interwork.TICK_S", 0.02)


@pytest.fixture
def run(pkis, tmp_path) -> Callable[..., None]:
    """Run a scene with two key managers."""
    ca_a, ca_b, own_a, own_b = pkis
    port_a, port_b = free_port(), free_port()

    def network(name, saes, other, other_ca, address, listen, **more) -> Topology:
        return Topology(
            name=name,
            nodes=(Node(id=NodeId(name)),),
            saes=tuple(Sae(id=SaeId(sae), node=NodeId(name)) for sae in saes),
            neighbours=(
                ForeignNetwork(
                    id=f"net-{other}",
                    kme=f"kme-{other}",
                    node=NodeId(name),
                    address=f"localhost:{address}",
                    listen=f"localhost:{listen}",
                    ca_certificate=str(other_ca.ca_certificate),
                    saes=(f"{other}*",),
                    **more,
                ),
            ),
        )

    async def scene(act) -> None:
        pair = Pair(
            Kme("a", network("a", ["anne"], "b", ca_b, port_b, port_a), own_a, tmp_path),
            Kme("b", network("b", ["bela", "bert"], "a", ca_a, port_a, port_b), own_b, tmp_path),
            ca_a,
            ca_b,
            ca_a.kme("kme-a"),
            port_a,
            port_b,
        )
        await pair.a.start()
        await pair.b.start()
        try:
            async with asyncio.timeout(WITHIN_S):
                await act(pair)
        finally:
            await pair.a.here.stop()
            await pair.b.here.stop()
        assert not pair.a.failures + pair.b.failures

    return lambda act: asyncio.run(scene(act))


async def until(is_so: Callable[[], object]) -> None:
    while not is_so():
        await asyncio.sleep(0.01)


def counts(kme: Kme, which: str) -> dict[str, int]:
    return kme.here.as_json()["keys"][which]


# ── keys between two networks ───────────────────────────────────────────────────────────────────────────────────────


def test_keys_are_with_all_targets_when_the_initiator_may_have_them(run):
    async def act(pair: Pair) -> None:
        keys = made(3)
        extensions = Extensions(of_request=b'{"E13019_x":  [1, 2.50]}', of_key={keys[1].key_id: b'{"E1_y":"\\u00e9"}'})
        await pair.a.here.export(keys, ANNE, [BELA, BERT], extensions)
        for key in keys:
            assert pair.b.interior.collect(key.key_id, BELA) == bytes(key.material.reveal())
            assert pair.b.interior.collect(key.key_id, BERT) == bytes(key.material.reveal())
        assert pair.b.interior.extensions == [extensions]
        await until(lambda: not pair.b.here._receiver._work)
        assert (counts(pair.a, "sent"), counts(pair.b, "received")) == ({"relayed": 3}, {"relayed": 3})

    run(act)


def test_keys_that_cannot_be_carried_there_are_refused_here_and_left_nowhere(run):
    async def act(pair: Pair) -> None:
        pair.b.interior.fails = 1
        with pytest.raises(RouteUnavailable, match="failed"):
            await pair.a.here.export(made(2), ANNE, [BELA])
        assert pair.b.interior.held == {}
        await pair.a.here.export(made(1), ANNE, [BELA])

    run(act)


def test_a_foreign_key_manager_that_was_away_is_asked_again(run):
    async def act(pair: Pair) -> None:
        await pair.b.here.stop()
        exporting = asyncio.create_task(pair.a.here.export(made(1), ANNE, [BELA]))
        await until(lambda: pair.a.alarms.of("net-b"))
        assert pair.a.alarms.of("net-b")[0].type == "NeighbourUnreachable"
        await pair.b.start()
        await exporting
        assert not pair.a.alarms.of("net-b")

    run(act)


def test_what_was_under_way_goes_on_after_a_stop_of_the_receiver_and_is_voided_after_one_of_the_sender(run):
    async def act(pair: Pair) -> None:
        pair.b.interior.gate.clear()
        exporting = asyncio.create_task(pair.a.here.export(made(1), ANNE, [BELA]))
        await until(lambda: counts(pair.b, "received") == {"relaying": 1})
        await pair.b.here.stop()
        pair.b.interior.gate.set()
        await pair.b.start()
        await exporting
        pair.b.interior.gate.clear()
        lost = made(1)
        exporting = asyncio.create_task(pair.a.here.export(lost, ANNE, [BELA]))
        await until(lambda: counts(pair.b, "received").get("relaying"))
        await pair.a.here.stop()
        with pytest.raises(RouteUnavailable, match="stops"):
            await exporting
        pair.b.interior.gate.set()
        await pair.a.start()
        await until(lambda: counts(pair.a, "sent") == {"relayed": 1, "voided": 1})
        assert (lost[0].key_id, BELA) not in pair.b.interior.held

    run(act)


def test_who_goes_away_has_the_keys_taken_back_and_one_that_was_delivered_is_an_alarm(run):
    async def act(pair: Pair) -> None:
        keys = made(2)
        await pair.a.here.export(keys, ANNE, [BELA])
        pair.b.interior.collect(keys[0].key_id, BELA)
        pair.a.here.take_back([key.key_id for key in keys], [BELA])
        await until(lambda: counts(pair.a, "sent") == {"void failed": 1, "voided": 1})
        assert pair.b.interior.held == {}
        assert [alarm.type for alarm in pair.a.alarms.of("interworking")] == ["KeyNotVoidable"]
        pair.b.interior.gate.clear()
        exporting = asyncio.create_task(pair.a.here.export(made(1), ANNE, [BELA]))
        await until(lambda: counts(pair.b, "received").get("relaying"))
        exporting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exporting
        pair.b.interior.gate.set()
        await until(lambda: counts(pair.a, "sent") == {"void failed": 1, "voided": 2})

    run(act)


def test_export_says_what_is_wrong_and_sends_nothing(run):
    async def act(pair: Pair) -> None:
        keys = made(2)
        for wrong in (
            (keys, ANNE, []),
            (keys, ANNE, [SaeId("anne")]),
            (keys, ANNE, [SaeId("carl")]),
            (keys, BELA, [BELA]),
            ([], ANNE, [BELA]),
            ([keys[0], keys[0]], ANNE, [BELA]),
        ):
            with pytest.raises(RequestRefused):
                await pair.a.here.export(*wrong)
        assert counts(pair.a, "sent") == {}

    run(act)


# ── the interface by hand ───────────────────────────────────────────────────────────────────────────────────────────


def test_versions(run):
    async def act(pair: Pair) -> None:
        answer = await pair.ask("GET", VERSIONS)
        assert answer.json() == {"versions": ["v1"], "capabilities": ["synchronous_mode"]}
        assert (await pair.a.here._neighbours["kme-b"].client.versions()).versions == ["v1"]

    run(act)


def test_synchronous_mode_waits_for_what_became_of_the_keys(run, monkeypatch):
    monkeypatch.setattr(etsi020, "SYNCHRONOUS_S", 1.0)

    async def act(pair: Pair) -> None:
        keys = made(3)
        answer = await pair.ask("POST", KEYS, pair.container(keys, ack_callback_url=None))
        (ack,) = answer.json()
        assert (answer.status, ack["ack_status"]) == (200, "relayed")
        assert [entry["key_id"] for entry in ack["key_id_container"]] == [key.key_id for key in keys]
        pair.b.interior.collect(keys[0].key_id, BELA)
        answer = await pair.ask("POST", VOID, pair.void([*keys[:2], *made(1)], ack_callback_url=None))
        assert {ack["ack_status"] for ack in answer.json()} == {"failed to void", "voided", "key not present"}
        pair.b.interior.gate.clear()
        late = pair.container(made(1), ack_callback_url=None)
        answer = await pair.ask("POST", KEYS, late)
        assert (answer.status, answer.json()["type"].rpartition("/")[2]) == (408, "timeout")
        pair.b.interior.gate.set()
        assert (await pair.ask("POST", KEYS, late)).json()[0]["ack_status"] == "relayed"

    run(act)


def test_a_void_of_everything_needs_its_confirmation(run):
    async def act(pair: Pair) -> None:
        await pair.a.here.export(made(2), ANNE, [BELA])
        for more in ({}, {"all_confirmation": False}):
            answer = await pair.ask("POST", VOID, pair.void([], **more))
            assert (answer.status, "no_key_ids_or_confirmation" in answer.json()["details"]) == (400, True)
        assert len(pair.b.interior.held) == 2
        everything = pair.void([], all_confirmation=True, ack_callback_url=None)
        answer = await pair.ask("POST", VOID, everything)
        assert [ack["ack_status"] for ack in answer.json()] == ["voided"]
        assert pair.b.interior.held == {}
        assert (await pair.ask("POST", VOID, everything)).json() == []

    run(act)


def test_a_late_request_does_not_revive_a_voided_key(run):
    async def act(pair: Pair) -> None:
        keys = made(1)
        assert (await pair.ask("POST", VOID, pair.void(keys))).status == 202
        assert (await pair.ask("POST", KEYS, pair.container(keys))).status == 202
        answer = await pair.ask("POST", KEYS, pair.container(keys, ack_callback_url=None))
        assert answer.json()[0]["ack_status"] == "voided"
        assert pair.b.interior.held == {}

    run(act)


K = made(1)


@pytest.mark.parametrize(
    ("path", "change", "status", "slug", "detail"),
    [
        (KEYS, {"keys": None}, 400, "missing-parameters", "keys"),
        (KEYS, {"initiator_sae_id": None}, 400, "missing-parameters", "initiator_sae_id"),
        (KEYS, {"target_sae_ids": None}, 400, "missing-parameters", "target_sae_ids"),
        (KEYS, {"keys": []}, 400, "invalid-parameter", "keys"),
        (KEYS, {"keys": [{"value": "QUJD"}]}, 400, "missing-parameters", "key_id"),
        (KEYS, {"keys": [{"key_id": "x", "value": "QUJDREVGR0g="}]}, 400, "invalid-parameter", "key_id"),
        (KEYS, {"keys": [{"key_id": K[0].key_id, "value": "QUJD"}]}, 400, "invalid-parameter", "value"),
        (KEYS, {"keys": [{"key_id": K[0].key_id, "value": "?"}]}, 400, "invalid-parameter", "body"),
        (KEYS, {"keys": [{"key_id": K[0].key_id, "value": "QUJDREVGR0g="}] * 2}, 400, "invalid-parameter", "key_id"),
        (KEYS, {"initiator_sae_id": "a/b"}, 400, "invalid-parameter", "initiator_sae_id"),
        (KEYS, {"initiator_sae_id": "carl"}, 400, "key-routing-error", "invalid_routing"),
        (KEYS, {"initiator_sae_id": "bert"}, 400, "key-routing-error", "invalid_routing"),
        (KEYS, {"target_sae_ids": ["anton"]}, 400, "key-routing-error", "invalid_routing"),
        (KEYS, {"target_sae_ids": ["bela", "carl"]}, 400, "key-routing-error", "target_sae_id_not_recognized"),
        (KEYS, {"target_sae_ids": []}, 400, "invalid-parameter", "target_sae_ids"),
        (KEYS, {"ack_callback_url": "https://elsewhere.example/x"}, 400, "invalid-parameter", "ack_callback_url"),
        (KEYS, {"ack_callback_url": "http://[::1/"}, 400, "invalid-parameter", "ack_callback_url"),
        (KEYS, {"ack_callback_url": "https://localhost:{port}/a b"}, 400, "invalid-parameter", "ack_callback_url"),
        (KEYS, {"extension_optional": [1]}, 400, "invalid-parameter", "extension_optional"),
        (KEYS, {"extension_optional": {"x": 1}}, 400, "invalid-parameter", "extension_optional"),
        (KEYS, {"extension_mandatory": {"E7_a": 1}}, 503, "unsupported-mandatory-extension", "E7_a"),
        (VOID, {"key_ids": None}, 400, "missing-parameters", "key_ids"),
        (VOID, {"key_ids": ["1"]}, 400, "invalid-parameter", "key_ids"),
        (VOID, {"key_ids": 7}, 400, "void-request-not-understood", "body"),
        (ACK, [], 400, "ack-not-understood", None),
        (ACK, [{}], 400, "ack-not-understood", "ack_status"),
        (ACK, {}, 400, "ack-not-understood", "body"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_kept(run, path, change, status, slug, detail):
    async def act(pair: Pair) -> None:
        body = pair.container(K) if path == KEYS else pair.void(K)
        body = {**body, **change} if isinstance(change, dict) and path != ACK else change
        if isinstance(body, dict):
            body = {name: value for name, value in body.items() if value is not None}
        answer = await pair.ask("POST", path, json.dumps(body).replace("{port}", str(pair.port_a)).encode())
        found = answer.json()
        assert (answer.status, found["type"].rpartition("/")[2]) == (status, slug)
        assert detail is None or detail in found["details"]
        assert counts(pair.b, "received") == {}

    run(act)


def test_a_refusal_never_promises_what_does_not_hold(run):
    async def act(pair: Pair) -> None:
        keys = made(1)
        pair.b.interior.gate.clear()
        assert (await pair.ask("POST", KEYS, pair.container(keys))).status == 202
        wrong = [
            pair.container(keys, initiator_sae_id=None),
            pair.container(keys, targets=["carl"]),
            pair.container([SuppliedKey(key_id=keys[0].key_id, material=Secret(b"x" * 32))]),
            pair.container([*made(1), *keys], ack_callback_url="https://elsewhere.example/"),
        ]
        for body in wrong:
            assert (await pair.ask("POST", KEYS, body)).status == 503
        assert (await pair.ask("POST", VOID, pair.void(keys, targets=["bert"]))).status == 503
        stranger = await pair.ask("POST", KEYS, pair.container(keys), own=pair.ca_a.kme("kme-x"))
        assert stranger.status == 503
        assert (await pair.ask("POST", KEYS, pair.container(made(1)), own=pair.ca_a.kme("kme-x"))).status == 401
        pair.b.interior.gate.set()
        # kme-a never sent that key, by its own record: it is told so, and the void that follows cleans up.
        await until(lambda: counts(pair.b, "received") == {"relayed": 1})

    run(act)


def test_acks_about_nothing_are_told_so(run):
    async def act(pair: Pair) -> None:
        for initiator in ("anne", "bela"):
            ack = {
                "key_id_container": [{"key_id": made(1)[0].key_id}],
                "ack_status": "relayed",
                "initiator_sae_id": initiator,
                "target_sae_ids": ["bert"],
            }
            answer = await pair.ask("POST", ACK, [ack])
            assert (answer.status, answer.json()["type"].rpartition("/")[2]) == (400, "key-not-present")

    run(act)


def test_nothing_is_taken_while_it_cannot_be_recorded(run):
    async def act(pair: Pair) -> None:
        pair.b.why_closed = "the audit log cannot be written"
        answer = await pair.ask("POST", KEYS, pair.container(made(1)))
        assert answer.status == 503
        assert counts(pair.b, "received") == {}

    run(act)


def test_what_never_became_a_request_is_refused_in_the_words_of_the_interface(run):
    async def act(pair: Pair) -> None:
        def asked(octets: bytes) -> Answer:
            with Wire(pair.port_b, pair.as_a, pair.ca_b.ca_certificate) as wire:
                wire.send(octets)
                return wire.answer("POST")

        for octets in (
            b"POST /kmapi/v1/ext_keys HTTP/1.1\r\nHost: b\r\nContent-Length: 99999999\r\n\r\n",
            b"POST /kmapi/v1/ext_keys?%ff=1 HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n\r\n",
        ):
            assert measured(await asyncio.to_thread(asked, octets), KEYS).status == 400

    run(act)


def test_who_is_the_peer(run):
    async def act(pair: Pair) -> None:
        for own, is_peer in (
            (pair.ca_a.kme("kme-a"), True),
            (pair.ca_a.issue("kme-a"), True),
            (pair.ca_a.sae("kme-a"), False),
            (pair.ca_a.issue("kme-a", uris=["urn:qtrunk:kme:kme-x"]), False),
            (pair.ca_a.kme("kme-b"), False),
        ):
            assert (await pair.ask("GET", VERSIONS, own=own)).status == (200 if is_peer else 401)
        # Of the network's own authority, not of the neighbour's.
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            await pair.ask("GET", VERSIONS, own=pair.ca_b.kme("kme-a"))

    run(act)


def test_a_pinned_certificate_is_the_only_one(pkis):
    ca_a = pkis[0]
    right, other = (identity_of(ca_a.kme("kme-a").der()) for _ in range(2))
    peer = etsi020.Peer(
        kme="kme-a",
        fingerprint=right.fingerprint,
        callback_host="a:1",
        is_theirs=lambda _sae: True,
        is_ours=lambda _sae: True,
    )
    assert etsi020.is_peer(peer, right)
    assert not etsi020.is_peer(peer, other)


# ── whatever comes ──────────────────────────────────────────────────────────────────────────────────────────────────


class Quiet:
    """An exchange that takes everything and holds nothing but what it took."""

    def __init__(self) -> None:
        self.taken: set[KeyId] = set()

    def accept(self, consignment) -> None:
        assert consignment.keys
        assert all(8 <= len(key.material) <= 1024 for key in consignment.keys)
        self.taken |= {key.key_id for key in consignment.keys}

    def void(self, request):
        return request.key_ids

    def acked(self, peer, acks) -> None:
        assert acks

    async def outcomes(self, peer, initiator, key_ids, within_s):
        return dict.fromkeys(key_ids, AckStatus.RELAYED)

    def is_held(self, key_ids) -> bool:
        return not self.taken.isdisjoint(key_ids)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["bela", "anne"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
KEY = {"key_id": K[0].key_id, "value": "QUJDREVGR0g=", "extension": {"E1_a": 1}}
RIGHT = {
    KEYS: {
        "keys": [KEY],
        "initiator_sae_id": "anne",
        "target_sae_ids": ["bela"],
        "ack_callback_url": "https://a:1/x",
        "extension_mandatory": {},
        "extension_optional": {"E1_b": []},
    },
    VOID: {"key_ids": [K[0].key_id], "initiator_sae_id": "anne", "target_sae_ids": ["bela"], "all_confirmation": True},
    ACK: [
        {
            "key_id_container": [{"key_id": K[0].key_id}],
            "ack_status": "relayed",
            "initiator_sae_id": "bela",
            "target_sae_ids": ["anne"],
            "message": "m",
        }
    ],
}


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.data())
def test_whatever_comes_is_answered_as_described(data):
    path = data.draw(st.sampled_from([KEYS, VOID, ACK]))
    body = json.loads(json.dumps(RIGHT[path]))
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.sampled_from([body, *(body if path == ACK else body.get("keys") or [])]))
        if isinstance(place, dict) and place:
            name = data.draw(st.sampled_from(sorted(place)))
            if data.draw(st.booleans()):
                del place[name]
            else:
                place[name] = data.draw(JSON)
    octets = json.dumps(body).encode()
    cut = data.draw(st.sampled_from([len(octets)] * 5 + [len(octets) // 2]))
    peer = etsi020.Peer(
        kme="kme-a",
        fingerprint="",
        callback_host="a:1",
        is_theirs=lambda sae: sae == "anne",
        is_ours=lambda sae: sae == "bela",
    )
    identity = PeerIdentity(("kme-a",), ("urn:qtrunk:kme:kme-a",), "00", 2e9)
    exchange = Quiet()
    interface = etsi020.Etsi020(peer, exchange)
    request = Request("POST", tuple(path.split("/")[1:]), {}, octets[:cut], identity)

    async def ask_twice() -> list[Response]:
        return [await interface.handle(request), await interface.handle(request)]

    for response in asyncio.run(ask_twice()):
        headers = http.client.HTTPMessage()
        for name, value in response.headers.items():
            headers[name] = value
        measured(Answer(response.status, headers, bytes(response.body)), path)
        assert not exchange.taken or response.status not in (400, 401)


# ── the client and bad servers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{]{]", "cannot be read"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[", "ended before"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "headers"),
        (b"SSH-2.0-what\r\n\r\n", "not HTTP"),
        (b"", "ended before"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + b"[" * 5_000_000, "octets"),
        (None, "in time"),
    ],
    ids=["no JSON", "cut", "headers", "other protocol", "nothing", "endless", "silent"],
)
def test_an_answer_that_is_none_says_nothing(pkis, monkeypatch, octets, why):
    _, ca_b, own_a, own_b = pkis
    monkeypatch.setattr(client020, "TIMEOUT_S", 0.5)

    async def answer(reader, writer) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            if octets is None:
                await asyncio.sleep(1.0)
            writer.write(octets or b"")
            await writer.drain()
        writer.close()

    async def scene() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(own_b.certificate, own_b.private_key)
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        asked = client_of(own_a, ca_b, f"localhost:{port}")
        found = await asked.ack(f"https://localhost:{port}/x?y=1", [])
        assert found.status is None
        assert why in found.why
        with pytest.raises(WireError):
            await asked.versions()
        server.close()
        other = client_of(own_a, ca_b, f"localhost:{port}", kme="kme-c")
        assert (await other.ack(f"https://localhost:{port}/x", [])).status is None

    asyncio.run(scene())


def client_of(own: Credentials, ca: Pki, address: str, kme: str = "kme-b") -> client020.Etsi020Client:
    peer = etsi020.Peer(
        kme=kme,
        fingerprint="",
        callback_host=address,
        is_theirs=lambda _sae: True,
        is_ours=lambda _sae: True,
    )
    context = client_context(own.certificate, own.private_key, ca.ca_certificate)
    return client020.Etsi020Client(peer, address, context, "https://localhost:1/x")


def test_what_we_send_fits_the_document(run):
    async def act(pair: Pair) -> None:
        bodies: dict[str, bytes] = {}
        client = pair.a.here._neighbours["kme-b"].client

        async def note(_method, _address, path, body):
            bodies[path] = bytes(body)
            return 503, b"", ""

        client._exchange = note
        keys = made(2)
        extensions = Extensions(of_request=b'{"E1_a":1}', of_key={keys[0].key_id: b'{"E1_b":2}'})
        await client.ext_keys(sender.SendKeys(1, "kme-b", keys, ANNE, (BELA,), extensions))
        await client.void(sender.SendVoid("kme-b", tuple(key.key_id for key in keys), ANNE, (BELA,)))
        ack = Ack(status=AckStatus.FAILED, key_ids=(keys[0].key_id,), initiator=ANNE, targets=(BELA,), message="why")
        await client.ack("https://localhost:1/x", [ack])
        for path, name in ((KEYS, "ext_key_container"), (VOID, "void_container"), ("/x", "acks")):
            schema_of(name).validate(json.loads(bodies[path]))
        sent = json.loads(bodies[KEYS])
        assert [base64.b64decode(key["value"]) for key in sent["keys"]] == [bytes(k.material.reveal()) for k in keys]
        assert (sent["keys"][0]["extension"], sent["extension_optional"]) == ({"E1_b": 2}, {"E1_a": 1})

    run(act)


def test_a_neighbour_without_its_ca_file_is_a_mistake_that_is_named(pkis, tmp_path):
    foreign = ForeignNetwork(
        id="net-b",
        kme="kme-b",
        node=NodeId("a"),
        address="localhost:1",
        listen="localhost:2",
        ca_certificate="/nowhere.pem",
    )
    kme = Kme("a", Topology(name="a", nodes=(Node(id=NodeId("a")),), neighbours=(foreign,)), pkis[2], tmp_path)
    with pytest.raises(ConfigError, match="net-b"):
        asyncio.run(kme.start())
