"""Keys of a foreign network behind its border node: relayed to their target's node, voided there, never given twice."""

import asyncio
import os
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "relay"))
from relay_network import Network, ring_of_nodes, row_of_nodes
from test_fill import make_hybrid

from qtrunk.base.errors import (
    KeyExhausted,
    KeyNotFound,
    NotAuthorised,
    QtrunkError,
    RequestRefused,
    RouteUnavailable,
    StoreError,
)
from qtrunk.base.ids import KeyId, LinkId, NodeId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.base.wire import decode
from qtrunk.kms.interwork.records import Extensions
from qtrunk.node import border
from qtrunk.node.border import NetworkInterior
from qtrunk.relay import messages as wire
from qtrunk.relay.kx import REQUEST_TIMEOUT_S, Failed
from qtrunk.topology import ForeignNetwork, Topology

BANK, FAR = SaeId("far-bank"), SaeId("sae-e")


def beside(topology: Topology, node: str = "a") -> Topology:
    west = ForeignNetwork(
        id="west", kme="west-kme", node=NodeId(node), address="h:1", listen="h:2", ca_certificate="/ca", saes=("far-*",)
    )
    return replace(topology, neighbours=(west,))


class Carrier:
    """A node's relay, with the whole network run at once."""

    def __init__(self, network: Network, node: NodeId) -> None:
        self._network, self._node = network, node

    async def carry(self, initiator, targets, keys) -> None:
        request_id, effects = self._network.machines[self._node].carry(initiator, targets, keys)
        self._network.do(self._node, effects)
        self._network.settle()
        if request_id not in self._network.answers:
            self._network.wait(2 * REQUEST_TIMEOUT_S)
        answer = self._network.answers[request_id]
        if isinstance(answer, Failed):
            raise answer.error


class Notes:
    """Notes of all nodes; `lost` of them never arrive."""

    def __init__(self, services: dict, node: NodeId, lost: list[int]) -> None:
        self._services, self._node, self._lost = services, node, lost
        self.told = 0

    def serve(self, service, receive) -> None:
        self._services[self._node, service] = receive

    def knows(self, node) -> bool:
        return node not in self._services.get("keyless", ())

    def tell(self, node, service, octets) -> None:
        self.told += 1
        if self._lost and self._lost[0] > 0:
            self._lost[0] -= 1
            return
        try:
            self._services[node, service](self._node, octets)
        except QtrunkError as error:
            self._services.setdefault("errors", []).append(error)


class World:
    """Five nodes; a foreign network stands beside the first."""

    def __init__(self, topology: Topology, directory: Path) -> None:
        self.network = Network(topology, directory)
        self.lost = [0]
        self.services: dict = {}
        self.interiors = {
            node: NetworkInterior(
                *(node, topology, store, self.network.clock, Carrier(self.network, node)),
                Notes(self.services, node, self.lost),
            )
            for node, store in self.network.stores.items()
        }
        self.border = self.interiors[NodeId("a")]

    def carry(self, keys: dict[KeyId, bytes], targets=(FAR,), initiator=BANK) -> None:
        materials = [Secret(octets) for octets in keys.values()]
        asyncio.run(self.border.carry(list(keys), materials, initiator, targets, Extensions()))

    def void(self, keys, targets=(FAR,)) -> set[KeyId]:
        return asyncio.run(self.border.void(list(keys), targets))

    def collect(self, keys, target=FAR, initiator=BANK) -> dict[KeyId, bytes]:
        store = self.network.stores[NodeId(target[-1])]
        return {key.key_id: bytes(key.material.reveal()) for key in store.collect(target, initiator, list(keys))}


def fresh(count: int = 1, octets: int = 32) -> dict[KeyId, bytes]:
    return {KeyId(str(uuid.uuid4())): os.urandom(octets) for _ in range(count)}


@pytest.fixture
def world(tmp_path):
    made: list[World] = []

    def make(topology: Topology) -> World:
        made.append(World(beside(topology), tmp_path))
        return made[-1]

    yield make
    for one in made:
        for store in one.network.stores.values():
            store.close()


@pytest.fixture
def row(world) -> World:
    return world(row_of_nodes())


@pytest.fixture
def ring(world) -> World:
    return world(ring_of_nodes())


def test_given_keys_are_collected_at_the_far_node_under_their_own_ids_once(row):
    keys = {**fresh(3), **fresh(2, octets=64)}
    row.carry(keys)
    assert row.collect(keys) == keys
    with pytest.raises(KeyNotFound):
        row.collect(keys)
    assert not row.network.reports


def test_targets_at_several_nodes_and_the_border_itself_get_the_same_key(row):
    keys = fresh()
    targets = tuple(SaeId(f"sae-{node}") for node in "aceb")
    row.carry(keys, targets)
    for target in targets:
        assert row.collect(keys, target) == keys


def test_no_message_and_no_relays_disk_holds_a_given_key(row):
    keys = fresh()
    (material,) = keys.values()
    row.carry(keys)
    assert all(material not in octets for _, _, octets in row.network.seen)
    for path in row.network.directory.rglob("*"):
        assert not path.is_file() or material not in path.read_bytes()


def test_the_receipt_names_the_foreign_network_and_every_hop(row):
    keys = fresh()
    row.carry(keys)
    receipt = row.network.stores[NodeId("e")].receipt(next(iter(keys)))["stored"]["receipt"]
    assert receipt["routes"] == [list("abcde")]
    assert [hop["link"] for hop in receipt["hops"]] == ["a-b", "b-c", "c-d", "d-e"]
    assert receipt["origin"] == "foreign network west: what it states, not known here"


def test_a_hybrid_mask_keeps_given_keys_from_the_relays(row):
    keys = fresh()
    (material,) = keys.values()
    seen = []
    follow = type(row.network.stores[NodeId("c")]).follow

    def followed(store, *more):
        arrived = follow(store, *more)
        seen.append(bytes(arrived.reveal()))
        return arrived

    make_hybrid(row.network)
    row.network.stores[NodeId("c")].follow = followed.__get__(row.network.stores[NodeId("c")])
    row.carry(keys)
    assert row.collect(keys) == keys
    relays = [decode(decode(octets, wire.Sealed).body, wire.KxMessage) for _, _, octets in row.network.seen]
    seen_by = zip(row.network.seen, relays, strict=True)
    (at_c,) = [relay for (node, _, _), relay in seen_by if isinstance(relay, wire.KeyRelay) and node == "c"]
    (pad,) = [octets for octets in seen if len(octets) == len(at_c.ciphertext)]
    assert material not in bytes(a ^ b for a, b in zip(at_c.ciphertext, pad, strict=True)), "what relay c decrypts"


def test_keys_that_were_carried_before_a_crash_are_carried_again_without_harm(row):
    keys = fresh(2)
    row.carry(keys)
    row.carry(keys)
    assert row.collect(keys) == keys
    row.carry(keys)
    with pytest.raises(KeyNotFound):
        row.collect(keys)


def test_another_key_under_an_id_that_was_used_is_refused(row):
    keys = fresh()
    row.carry(keys)
    with pytest.raises(KeyExhausted):
        row.carry({key_id: os.urandom(32) for key_id in keys})
    assert row.collect(keys) == keys


def test_a_route_that_is_cut_is_gone_around_and_the_same_keys_arrive(ring):
    keys = fresh(2)
    machine = ring.network.machines[NodeId("a")]
    request_id, effects = machine.carry(BANK, [FAR], [(key_id, Secret(octets)) for key_id, octets in keys.items()])
    ring.network.do(NodeId("a"), effects)
    assert ring.network.wires.pop()[1] == "e-a", "the short way round"
    ring.network.do(NodeId("a"), machine.link_down(LinkId("e-a")))
    ring.network.settle()
    assert ring.network.answers[request_id].keys == []
    assert ring.collect(keys) == keys


def test_a_void_is_durable_at_the_targets_node_and_says_what_was_delivered(row):
    keys, taken = fresh(), fresh()
    row.carry(keys)
    row.carry(taken)
    row.collect(taken)
    assert row.void([*keys, *taken]) == set(taken)
    with pytest.raises(KeyNotFound):
        row.collect(keys)
    with pytest.raises(KeyExhausted):
        row.carry(keys)
    assert row.void([*keys, *taken]) == set(taken), "asked again, the answer is the same"


def test_a_key_that_was_voided_before_it_came_is_never_given_out(row):
    keys = fresh()
    assert row.void(keys, (FAR, SaeId("sae-a"))) == set()
    with pytest.raises(KeyExhausted):
        row.carry(keys)
    with pytest.raises(StoreError):
        row.carry(keys, (SaeId("sae-a"),))
    for target in (FAR, SaeId("sae-a")):
        with pytest.raises((KeyNotFound, NotAuthorised)):
            row.collect(keys, target)


def test_notes_that_are_lost_are_repeated_and_silence_is_no_answer(row, monkeypatch):
    monkeypatch.setattr(border, "REPEAT_S", 0.01)
    keys = fresh()
    row.carry(keys)
    row.lost[0] = 2
    assert row.void(keys) == set()
    row.lost[0] = 1_000_000
    clock = row.network.clock
    monkeypatch.setattr(type(clock), "monotonic_s", lambda self: setattr(self, "now_s", self.now_s + 5) or self.now_s)
    with pytest.raises(RouteUnavailable, match="node e does not say"):
        row.void(keys)


def test_keys_for_a_node_that_signs_nothing_are_refused_at_once(row):
    keys = fresh()
    row.services["keyless"] = {NodeId("e")}
    with pytest.raises(RouteUnavailable, match="node e has no signing key"):
        row.carry(keys)
    assert row.void(keys) == set()
    assert not row.network.seen


def test_only_the_border_node_of_their_network_voids_keys(row):
    keys = fresh()
    row.carry(keys)
    void = border.encode(border.ForeignVoid(number=1, key_ids=list(keys)))
    with pytest.raises(NotAuthorised):
        row.interiors[NodeId("e")]._asked(NodeId("c"), void)
    answer = row.network.ask("sae-a", [FAR])
    own = [key.key_id for key in answer.keys]
    with pytest.raises(NotAuthorised):
        row.interiors[NodeId("e")]._asked(NodeId("a"), border.encode(border.ForeignVoid(number=1, key_ids=own)))
    assert row.collect(keys) == keys


def test_keys_start_at_the_border_of_their_network_and_nowhere_else(row):
    keys = [(key_id, Secret(octets)) for key_id, octets in fresh().items()]
    machines = row.network.machines
    for node, initiator in (("b", BANK), ("a", SaeId("nobody")), ("a", SaeId("sae-a"))):
        request_id, effects = machines[NodeId(node)].carry(initiator, [FAR], keys)
        row.network.do(NodeId(node), effects)
        assert isinstance(row.network.answers[request_id].error, RequestRefused)
    request_id, effects = machines[NodeId("a")].request(BANK, [FAR], 1, 256)
    row.network.do(NodeId("a"), effects)
    assert isinstance(row.network.answers[request_id].error, RequestRefused)
    assert not row.network.seen
