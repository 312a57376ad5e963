"""A production node (`node.node.Node`) on a simulated machine: its clock, dice, disk, papers and links."""

import atexit
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.secret import Secret
from qtrunk.kms.store import KeyStore
from qtrunk.kms.vendor import VendorAlice, VendorBob
from qtrunk.kms.vendorwords import AUTH_OCTETS
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.ca.identity import Kind
from qtrunk.node.config import Address, LinkConfig, NodeConfig
from qtrunk.node.linkstate import LinkStatistics
from qtrunk.node.linkworker import LinkWorker
from qtrunk.node.node import Node
from qtrunk.node.pki import Credentials, LabPki
from qtrunk.node.signing import make_signing_key
from qtrunk.node.tenants import TenantSupply
from qtrunk.node.trust import Trust
from qtrunk.node.world import World
from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.loop import VirtualLoop
from qtrunk.sim.network.vendorbox import BoxKme, BoxRunner, VendorBox
from qtrunk.stages import Role
from qtrunk.topology import Link, Topology

UNIX_S = 1_800_000_000.0
WANDER_S = 600.0
"""In a few of these the drift of a clock turns."""
KEY_API, ADMIN_API, INTER_NODE = 1, 2, 3
"""Ports; the host of a machine is its name."""
POOL_OCTETS_MAX = 64 << 10
"""Of link key, for both directions: then Alice of a link pauses."""


def memory() -> Path:
    """A fresh directory in memory, where the machine has such."""
    shm = Path("/dev/shm")  # noqa: S108 (a directory of its own is made in it)
    return Path(tempfile.mkdtemp(prefix="qtrunk-sim-", dir=shm if shm.is_dir() else None))


@dataclass(frozen=True, slots=True)
class Papers:
    """Certificate and signing keys of one name, made once for all runs of a process."""

    credentials: Credentials
    signing_key: Path
    verifying_key: Path
    der: bytes


@cache
def _authority() -> tuple[Path, LabPki]:
    directory = memory()
    pki = LabPki(directory / "pki")

    def clean() -> None:
        pki.close()
        shutil.rmtree(directory, ignore_errors=True)

    atexit.register(clean)
    return directory, pki


@cache
def papers(name: str) -> Papers:
    """Of a node."""
    directory, pki = _authority()
    credentials = pki.credentials(directory / name, Kind.NODE, name)
    signing, verifying = directory / name / "signing-key.pem", directory / name / "verifying-key.pem"
    make_signing_key(signing, verifying)
    certificate = x509.load_pem_x509_certificate(credentials.certificate.read_bytes())
    return Papers(credentials, signing, verifying, certificate.public_bytes(Encoding.DER))


class MachineClock:
    """`base.ports.Clock` of a machine: the time of day may be wrong, jump and drift; the other only goes on.

    `drift` is its rate at the start. Over hours it wanders to and fro, as one that is steered (NTP) does.
    """

    def __init__(self, loop: VirtualLoop, offset_s: float = 0.0, drift: float = 0.0) -> None:
        self._loop = loop
        self.offset_s = offset_s
        self._drift = drift

    def unix_s(self) -> float:
        """See Clock."""
        now_s = self._loop.time()
        return UNIX_S + self.offset_s + now_s + self._drift * WANDER_S * math.sin(now_s / WANDER_S)

    def monotonic_s(self) -> float:
        """See Clock."""
        return 1000.0 + self._loop.time()


class LoopWorker:
    """`node.world.Worker` on the loop: each job after a moment, in order."""

    def __init__(self, loop: VirtualLoop, dice: Dice) -> None:
        self._loop = loop
        self._dice = dice
        self._last_s = 0.0

    def do(self, job: Callable[[], None]) -> None:
        """See Worker."""
        self._last_s = max(self._last_s, self._loop.time() + self._dice.between(0.0001, 0.004))
        self._loop.call_at(self._last_s, job)

    def close(self) -> None:
        """See Worker."""


def node_config(
    topology: Topology, name: NodeId, directory: Path, pool_octets_max: int = POOL_OCTETS_MAX
) -> NodeConfig:
    """What a node of a simulation is told."""
    own = papers(name)
    return NodeConfig(
        node=name,
        directory=str(directory),
        key_api=Address(name, KEY_API),
        admin_api=Address(name, ADMIN_API),
        inter_node=Address(name, INTER_NODE),
        links=[
            LinkConfig(
                link=link.id,
                device_socket="",
                peer=Address(link.other(name), INTER_NODE),
                preshared_file=str(directory / f"preshared-{link.id}"),
            )
            for link in topology.links_of(name)
        ],
        topology=topology.to_dict(),
        signing_key=str(own.signing_key),
        verifying_keys={node.id: str(papers(node.id).verifying_key) for node in topology.nodes},
        certificate=str(own.credentials.certificate),
        private_key=str(own.credentials.private_key),
        ca_certificate=str(own.credentials.ca_certificate),
        pool_octets_max=pool_octets_max,
    )


class SimNode(Node):
    """Node, with links that a vendor box feeds."""

    def __init__(
        self,
        config: NodeConfig,
        kek: Secret,
        trust: Trust,
        alarms: AlarmBoard,
        *,
        world: World,
        boxes: dict[LinkId, VendorBox],
        loop: VirtualLoop,
        dice: Dice,
    ) -> None:
        self._boxes = boxes
        self._virtual = loop
        self._dice = dice
        super().__init__(config, kek, trust, alarms, world)

    @property
    def store(self) -> KeyStore:
        """For checks."""
        return self._store

    @property
    def supply(self) -> TenantSupply:
        """What the key interfaces ask."""
        return self._supply

    async def _serve_keys(self) -> None:
        """Not over a network: the SAEs of a simulation ask `supply`."""

    def _check_link(self, link_config: LinkConfig, topology: Topology) -> None:
        """A simulated box knows its nodes without certificates."""
        topology.link(LinkId(link_config.link))

    def _runner(self, link: Link, role: Role, link_config: LinkConfig) -> LinkWorker[Any]:
        pool = self._store.auth_ledger(link.id, AUTH_OCTETS, link.distillation.epsilon_total)
        machine = VendorAlice if role is Role.ALICE else VendorBob
        runner = BoxRunner(
            link=link,
            machine=machine(link=link, store=self._store, auth=pool, random=self._random, clock=self._clock),
            kme=BoxKme(self._boxes[link.id]),
            pool=pool,
            store=self._store,
            alarms=self._alarms,
            clock=self._clock,
            pool_octets_max=self.config.pool_octets_max,
            statistics=LinkStatistics(link, role, self._clock),
            pace=self._pace,
        )
        return runner.on_loop(self._virtual, self._dice.child(f"worker {link.id}"))
