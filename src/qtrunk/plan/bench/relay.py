"""What relaying over ten hops costs: eleven relay machines on their real, durable stores, in one process.

Segments travel from the first node to the last as messages between machines, without the connections between nodes.
The figure is per CPU second of one core, for all eleven nodes together.
"""

import statistics
import tempfile
import time
from pathlib import Path

from qtrunk.base.errors import LabError
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness
from qtrunk.kms.store import KeyStore
from qtrunk.plan.bench.figures import Figure
from qtrunk.relay.kx import Effect, Failed, Kx, SendKx, Supplied
from qtrunk.stages import Epsilon, QkdKey
from qtrunk.topology import Node, Sae, Topology, trunk

HOPS = 10
BLOCK_OCTETS = 2 << 20
SEGMENT_OCTETS = 4 << 20
KEY_OCTETS = 32
FROM, TO = SaeId("first"), SaeId("last")


class Clock:
    """The system's."""

    def unix_s(self) -> float:
        """See base.ports."""
        return time.time()

    def monotonic_s(self) -> float:
        """See base.ports."""
        return time.monotonic()


class _Random:
    def octets(self, count: int) -> bytes:
        return randomness.octets(count)


def _row() -> Topology:
    nodes = [Node(id=NodeId(f"n{number}")) for number in range(HOPS + 1)]
    made = trunk("row", nodes, [(10, 3)] * HOPS)
    saes = (Sae(id=FROM, node=nodes[0].id), Sae(id=TO, node=nodes[-1].id))
    return Topology(name="row", nodes=made.nodes, links=made.links, saes=saes)


class _Network:
    """The machines, and the messages between them."""

    def __init__(self, directory: Path) -> None:
        self.topology = _row()
        clock = Clock()
        self.stores = {
            node.id: KeyStore.open(directory / node.id, node.id, Secret(randomness.octets(32)), clock)
            for node in self.topology.nodes
        }
        self.machines = {node: Kx(node, self.topology, store, _Random(), clock) for node, store in self.stores.items()}
        for link in self.topology.links:
            for node in (link.alice, link.bob):
                self.machines[node].link_up(link.id)
        self._blocks = 0

    def fill(self, octets: int) -> None:
        """So much link key on every link, for the direction of the relay."""
        for _ in range(-(-2 * octets // BLOCK_OCTETS)):
            self._blocks += 1
            for link in self.topology.links:
                material = randomness.octets(BLOCK_OCTETS)
                for node in (link.alice, link.bob):
                    self.stores[node].hold(block(link.id, self._blocks, Secret(material)))
                    self.stores[node].release(link.id, self._blocks)

    def relay(self, octets: int) -> None:
        """One segment from end to end."""
        first = self.topology.nodes[0].id
        _, effects = self.machines[first].fill(FROM, TO, octets)
        waiting: list[tuple[NodeId, Effect]] = [(first, effect) for effect in effects]
        while waiting:
            node, effect = waiting.pop(0)
            if isinstance(effect, Failed):
                raise effect.error
            if isinstance(effect, Supplied):
                return
            if isinstance(effect, SendKx):
                there = self.topology.link(effect.link).other(node)
                waiting += [(there, one) for one in self.machines[there].receive(effect.link, effect.octets)]
        raise LabError("the relay ended without an answer")

    def close(self) -> None:
        for store in self.stores.values():
            store.close()


def block(link: LinkId, number: int, material: Secret) -> QkdKey:
    """A block of link key, as distillation would hand it to the stores."""
    return QkdKey(
        link=link,
        block=number,
        material=material,
        auth_octets=1008,
        epsilon=Epsilon(secret=1e-10, correct=1e-30, authentic=1e-31),
        sifted_bits=8 * len(material),
        leak_bits=100,
        qber_key=0.016,
        qber_test=0.015,
        proof="bench",
        authentication="wegman-carter",
        made_unix_s=0.0,
    )


def ten_hops(runs: int, _with_rivals: bool) -> list[Figure]:
    """256-bit keys over ten hops, in segments."""
    samples = []
    with tempfile.TemporaryDirectory(prefix="qtrunk-bench") as directory:
        network = _Network(Path(directory))
        for _ in range(max(1, min(runs, 3))):
            network.fill(SEGMENT_OCTETS + BLOCK_OCTETS)
            began_s = time.process_time()
            network.relay(SEGMENT_OCTETS)
            samples.append(SEGMENT_OCTETS / KEY_OCTETS / (time.process_time() - began_s))
        network.close()
    return [
        Figure(
            name=f"256-bit keys over {HOPS} hops, all nodes on one core",
            value=statistics.median(samples),
            unit="keys/s",
            goal=50_000,
            samples=tuple(samples),
            note=f"segments of {SEGMENT_OCTETS >> 20} MiB; stores on the disk, without TLS between the nodes; per "
            "second of CPU time",
        )
    ]
