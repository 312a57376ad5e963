"""All nodes of a network in one process: real relay machines on real key stores, joined by octets."""

import os
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import msgspec

from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.base.wire import decode, encode
from qtrunk.crypto import its
from qtrunk.kms.key import Slice
from qtrunk.kms.store import KeyStore
from qtrunk.relay import messages as wire
from qtrunk.relay.hops import PROTOCOL
from qtrunk.relay.inquest import SERVICE as INQUEST
from qtrunk.relay.kx import Kx, Report, SendKx, Tell
from qtrunk.stages import Epsilon, QkdKey
from qtrunk.topology import DEFAULT_TENANT, Link, Node, Sae, Tenant, Topology, link_id, ring, trunk


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def unix_s(self) -> float:
        return 1.7e9 + self.now_s

    def monotonic_s(self) -> float:
        return self.now_s


class Dice:
    def octets(self, count: int) -> bytes:
        return os.urandom(count)


@dataclass
class Network:
    """All nodes of a topology; messages wait in `wires` until `settle` carries them."""

    topology: Topology
    directory: Path
    clock: Clock = field(default_factory=Clock)
    wires: list[tuple[NodeId, LinkId, bytes]] = field(default_factory=list)
    seen: list[tuple[NodeId, LinkId, bytes]] = field(default_factory=list)
    answers: dict[str, object] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)
    notes: list[tuple[NodeId, NodeId, bytes, str]] = field(default_factory=list)
    """Sender, receiver, what it says, service."""

    def __post_init__(self) -> None:
        self.stores, self.machines = {}, {}
        for node in self.topology.nodes:
            kek = Secret(os.urandom(32))
            self.stores[node.id] = KeyStore.open(self.directory / node.id, node.id, kek, self.clock)
            self.machines[node.id] = Kx(node.id, self.topology, self.stores[node.id], Dice(), self.clock)
            self.machines[node.id].use_notes(lambda _node: True)
        for link in self.topology.links:
            self.fill(link.id, 1, 40_000)
            for node in (link.alice, link.bob):
                self.machines[node].link_up(link.id)

    def fill(self, link: LinkId, block: int, octets: int) -> None:
        material = os.urandom(octets)
        ends = self.topology.link(link)
        for node in (ends.alice, ends.bob):
            key = QkdKey(
                link=link,
                block=block,
                material=Secret(material),
                auth_octets=1008,
                epsilon=Epsilon(secret=1e-10, correct=1e-30, authentic=1e-31),
                sifted_bits=8 * octets,
                leak_bits=100,
                qber_key=0.016,
                qber_test=0.015,
                proof="test",
                authentication="wegman-carter",
                made_unix_s=0.0,
            )
            self.stores[node].hold(key)
            self.stores[node].release(link, block)

    def do(self, node: NodeId, effects) -> None:
        for effect in effects:
            if isinstance(effect, SendKx):
                self.wires.append((self.topology.link(effect.link).other(node), effect.link, effect.octets))
            elif isinstance(effect, Report):
                self.reports.append(effect)
            elif isinstance(effect, Tell):
                for receiver in effect.route[1:] or (effect.node,):
                    self.notes.append((node, receiver, effect.octets, effect.service))
            else:
                assert effect.request_id not in self.answers
                self.answers[effect.request_id] = effect

    def settle(
        self,
        change=lambda _node, _link, octets: [octets],
        state=lambda _sender, octets: [octets],
        announce=lambda _sender, _receiver, octets: [octets],
    ) -> None:
        """Carry what waits. `change` is what may happen on the way or in a corrupt node, `state` to what a node says in
        an inquest, `announce` to its other notes.
        """
        while self.wires or self.notes:
            while self.wires:
                node, link, octets = self.wires.pop(0)
                self.seen.append((node, link, octets))
                for changed in change(node, link, octets):
                    self.do(node, self.machines[node].receive(link, changed))
            if self.notes:
                sender, receiver, octets, service = self.notes.pop(0)
                is_inquest = service == INQUEST
                for said in state(sender, octets) if is_inquest else announce(sender, receiver, octets):
                    self.do(receiver, self.machines[receiver].receive_note(sender, said, service))

    def ask(self, initiator, targets, number=1, key_bits=256, change=None):
        node = self.topology.sae(SaeId(initiator)).node
        request_id, effects = self.machines[node].request(
            SaeId(initiator), [SaeId(t) for t in targets], number, key_bits
        )
        self.do(node, effects)
        self.settle(change) if change else self.settle()
        return self.answers.get(request_id)

    def collect(self, target, initiator, keys):
        node = self.topology.sae(SaeId(target)).node
        return self.stores[node].collect(SaeId(target), SaeId(initiator), [key.key_id for key in keys])

    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds
        for node, machine in self.machines.items():
            self.do(node, machine.tick())
        self.settle()


def with_saes(topology: Topology) -> Topology:
    saes = tuple(Sae(id=SaeId(f"sae-{node.id}"), node=node.id) for node in topology.nodes)
    extra = (Sae(id=SaeId("other-a"), node=NodeId("a")),)
    return Topology(name="t", nodes=topology.nodes, links=topology.links, saes=saes + extra)


NAMES = "abcde"


def row_of_nodes() -> Topology:
    return with_saes(trunk("t", [Node(id=NodeId(name)) for name in NAMES], [(10, 3)] * 4))


def ring_of_nodes() -> Topology:
    return with_saes(ring("t", [Node(id=NodeId(name)) for name in NAMES], [(10, 3)] * 5))


def of_tenant(topology: Topology, **limits) -> Topology:
    """The same network, all its SAEs of a tenant with these limits."""
    return replace(topology, tenants=(Tenant(id=DEFAULT_TENANT, **limits),))


def three_ways(**limits) -> Topology:
    """From a to e by b and c, the shortest, by f and g, by h and i."""
    nodes = [Node(id=NodeId(name)) for name in "abcefghi"]
    links = [
        Link(id=link_id(NodeId(one), NodeId(other)), alice=NodeId(one), bob=NodeId(other), length_km=km, loss_db=3)
        for km, row in ((10, "abce"), (11, "afge"), (12, "ahie"))
        for one, other in pairwise(row)
    ]
    return of_tenant(with_saes(Topology(name="t", nodes=tuple(nodes), links=tuple(links))), **limits)


def changing(network, who, change):
    """Node `who` is corrupt: it changes the relays that it passes on, and seals them rightly."""

    def corrupt(node, link, octets):
        if network.topology.link(link).other(node) != who:
            return [octets]
        sealed = decode(octets, wire.Sealed)
        body = decode(sealed.body, wire.KxMessage)
        changed = change(body)
        if changed is body:
            return [octets]
        # The tag's key was allocated before the pad: it is still the sender's to use for another message.
        key = network.stores[who]._material(link, [Slice(*piece) for piece in sealed.auth])
        octets = encode(changed)
        label = b"|".join([PROTOCOL.encode(), who.encode(), node.encode(), link.encode()])
        return [encode(wire.Sealed(body=octets, auth=sealed.auth, tag=its.tag(key.reveal(), label, [octets])))]

    return corrupt


def flipped(body):
    """A relay with one bit of its cargo changed; other messages as they are."""
    if not isinstance(body, wire.KeyRelay):
        return body
    ciphertext = bytearray(body.ciphertext)
    ciphertext[-200] ^= 1
    return msgspec.structs.replace(body, ciphertext=bytes(ciphertext))


def same(one, other):
    return [(key.key_id, bytes(key.material.reveal())) for key in one] == [
        (key.key_id, bytes(key.material.reveal())) for key in other
    ]
