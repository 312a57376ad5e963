"""A lab: all nodes of a topology as processes of this machine, with certificates, ports and secrets made on the spot.

Layout of a state directory (mode 0700):

    lab.json            the topology and the ports, fixed at the first `up`
    plan.json           the processes, for the supervisor
    pki/                the lab's CA
    nodes/ID/           certificate, store, logs and configuration of a node
    saes/ID/            certificate of an SAE (and keys it received but could not use yet)
    controllers/        certificate, configuration and log of each controller, and what they keep
    operator/           certificate of the lab's operator (the command line)
    optics/LINK/        configuration and socket of a simulated fibre
    logs/               what processes print when they fail
    gone/               records of nodes that were taken out
"""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from qtrunk.base.errors import LabError
from qtrunk.base.ids import NodeId, SaeId
from qtrunk.node.ca.identity import Kind
from qtrunk.node.config import Address, LinkConfig, NodeConfig
from qtrunk.node.controller.config import ControllerConfig
from qtrunk.node.pki import Credentials, LabPki
from qtrunk.node.signing import make_signing_key
from qtrunk.node.supervisor import ChildSpec, Plan
from qtrunk.topology import Link, Node, Topology

HOST = "127.0.0.1"
PRESHARED_OCTETS = 4096
"""Pre-shared secret of a link: enough to authenticate the first 42 blocks, should every one fail."""
CROWD, GOLDEN = 8, 0.618034
"""The light of more links than that does not begin in one moment: their blocks would end together ever after, all nodes
would distil at once, and relays would stand still meanwhile. Multiples of the golden ratio spread any number of links.
"""
SOCKET_PATH_MAX = 100
"""Longest path of a Unix socket that every Linux accepts, with some room."""


class NodePorts(msgspec.Struct, frozen=True):
    """Where one node of the lab listens on the loopback interface."""

    key_api: int
    admin_api: int
    inter_node: int
    stream_api: int = 0
    skip_api: int = 0
    sdn_api: int = 0


class LabRecord(msgspec.Struct, frozen=True):
    """What stays the same over the life of a lab."""

    version: int
    topology: dict[str, object]
    ports: dict[str, NodePorts]
    controllers: list[int] = []
    """Ports of the controllers' northbound interfaces."""
    clock_fraction: float | None = None
    """What every fibre runs at, whatever the topology file says."""


class Lab:
    """One lab in its state directory."""

    def __init__(self, state: Path, record: LabRecord) -> None:
        self.state = state
        self.topology = Topology.from_dict(record.topology)
        self.ports = record.ports
        self.controllers = list(record.controllers)
        self.clock_fraction = record.clock_fraction

    @classmethod
    def open(cls, state: Path) -> "Lab":
        """An existing lab, or LabError."""
        path = state / "lab.json"
        try:
            return cls(state, msgspec.json.decode(path.read_bytes(), type=LabRecord))
        except FileNotFoundError as error:
            raise LabError(f"no lab in {state}; start one with `qtrunk up TOPOLOGY`") from error
        except msgspec.MsgspecError as error:
            raise LabError(f"{path} is damaged ({error}); remove {state} to start afresh") from error

    @classmethod
    def prepare(
        cls, state: Path, topology: Topology, controllers: int = 1, clock_fraction: float | None = None
    ) -> "Lab":
        """Make or complete a lab for `topology`: ports, certificates, secrets, configurations. Idempotent.

        `clock_fraction`: of every fibre, in place of the topology's, until the next call.
        """
        topology = topology if clock_fraction is None else topology.at_clock_fraction(clock_fraction)
        state = state.absolute()
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.chmod(0o700)
        path = state / "lab.json"
        if path.exists():
            lab = cls.open(state)
            # How fast its fibres run is no part of what a lab is.
            if lab.topology.at_clock_fraction(1.0).to_dict() != topology.at_clock_fraction(1.0).to_dict():
                raise LabError(
                    f"{state} holds a lab of topology {lab.topology.name} that differs from {topology.name}; "
                    "`qtrunk apply` changes it; or use another --state DIR, or remove this one with its keys"
                )
            lab.topology = topology
            # Ports that somebody else took since the last `up` are chosen anew.
            kept = {node: ports for node, ports in lab.ports.items() if _are_free(ports)}
            lab.ports = _choose_ports(topology, kept)
        else:
            lab = cls(state, LabRecord(1, topology.to_dict(), _choose_ports(topology, {})))
        lab.clock_fraction = clock_fraction
        kept_controllers = [port for port in lab.controllers if _is_free(port)][:controllers]
        taken = {port for ports in lab.ports.values() for port in msgspec.structs.astuple(ports)} | {*kept_controllers}
        lab.controllers = kept_controllers + _free_ports(controllers - len(kept_controllers), taken)
        lab._write()
        return lab

    def change_to(self, topology: Topology) -> None:
        """Make this lab one of `topology`, on the disk. What runs for parts that are gone stays in the plan: `settle`.

        LabError where a link that was taken out before would come back with the authentication key that is destroyed.
        """
        known = {link.id for link in self.topology.links}
        back = [
            link.id
            for link in topology.links
            if link.id not in known and link.distillation.bootstrap == "preshared" and self._was_out(link)
        ]
        if back:
            raise LabError(
                f"links {', '.join(back)} were taken out before and what authenticates them is destroyed at one end or "
                'both; give them bootstrap = "ml-dsa"'
            )
        before = self._children()
        for link in self.topology.links:
            if link.id not in {one.id for one in topology.links}:
                self._gone_marker(link).touch()
        self.ports = _choose_ports(topology, self.ports)
        self.topology = topology
        names = {child.name for child in self._children()}
        self._write([child for child in before if child.name not in names])

    def process_names(self) -> set[str]:
        """What runs of it when it is up."""
        return {child.name for child in self._children()}

    def settle(self) -> None:
        """Nothing runs any more for what is gone."""
        _write_json(self.state / "plan.json", Plan(self._children()))

    def put_away(self) -> None:
        """Nodes that are gone and run no more: their records are kept in `gone/`, what opens their keys is not."""
        known = {node.id for node in self.topology.nodes}
        for directory in (self.state / "nodes").iterdir():
            if directory.name in known:
                continue
            for name in ("kek", "key.pem", "signing-key.pem"):
                (directory / name).unlink(missing_ok=True)
            (self.state / "gone").mkdir(mode=0o700, exist_ok=True)
            directory.rename(self.state / "gone" / f"{directory.name}-{time.time_ns()}")

    def _was_out(self, link: Link) -> bool:
        return self._gone_marker(link).exists()

    def _gone_marker(self, link: Link) -> Path:
        return self.state / "optics" / link.id / "gone"

    def credentials(self, sae: SaeId) -> Credentials:
        """Certificate paths of an SAE of the lab."""
        if self.topology.sae(sae) is None:
            known = ", ".join(sorted(entry.id for entry in self.topology.saes))
            raise LabError(f"SAE {sae!r} is not in topology {self.topology.name}; SAEs: {known}")
        directory = self.state / "saes" / sae
        return Credentials(directory / "cert.pem", directory / "key.pem", self.state / "pki" / "ca.pem")

    def operator(self) -> Credentials:
        """Certificate paths of the lab's operator."""
        directory = self.state / "operator"
        return Credentials(directory / "cert.pem", directory / "key.pem", self.state / "pki" / "ca.pem")

    def kme_url(self, node: str) -> str:
        """Base URL of a node's key API."""
        return f"https://localhost:{self.ports[node].key_api}"

    def stream_address(self, node: str) -> str:
        """Host and port of a node's key streams (ETSI GS QKD 004)."""
        return f"localhost:{self.ports[node].stream_api}"

    def skip_address(self, node: str) -> str:
        """Host and port of a node's SKIP interface."""
        return f"localhost:{self.ports[node].skip_api}"

    def controller_names(self) -> list[str]:
        """The lab's controllers, in the order of their ports."""
        return [f"controller-{number}" for number, _ in enumerate(self.controllers, 1)]

    def sdn_url(self, node: str) -> str:
        """Base URL of a node's agent of ETSI GS QKD 015."""
        return f"https://localhost:{self.ports[node].sdn_api}/restconf"

    def optics_socket(self, link: str) -> Path:
        """Socket of a link's simulated fibre."""
        return self.state / "optics" / link / "optics.sock"

    # ── making ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, also: Sequence[ChildSpec] = ()) -> None:
        longest = max((str(self.optics_socket(link.id)) for link in self.topology.links), key=len, default="")
        if len(longest) > SOCKET_PATH_MAX:
            raise LabError(f"state directory {self.state} is too long for Unix sockets; choose a shorter --state DIR")
        pki = LabPki(self.state / "pki")
        for node in self.topology.nodes:
            credentials = pki.credentials(self.state / "nodes" / node.id, Kind.NODE, self.topology.kme_id(node.id))
            make_signing_key(self.state / "nodes" / node.id / "signing-key.pem", self._verifying_key(node.id))
            self._write_node(node, credentials)
        for sae in self.topology.saes:
            pki.credentials(self.state / "saes" / sae.id, Kind.SAE, sae.id)
        pki.credentials(self.state / "operator", Kind.OPERATOR, "lab")
        for name, port in zip(self.controller_names(), self.controllers, strict=True):
            credentials = pki.credentials(self.state / "controllers" / name, Kind.CONTROLLER, name)
            self._write_controller(name, port, credentials)
        pki.close()
        for index, link in enumerate(self.topology.links):
            self._write_optics(link, index)
            if link.distillation.bootstrap == "preshared":
                self._write_preshared(link)
        _write_json(self.state / "plan.json", Plan([*self._children(), *also]))
        record = LabRecord(1, self.topology.to_dict(), self.ports, self.controllers, self.clock_fraction)
        _write_json(self.state / "lab.json", record)

    def _children(self) -> list[ChildSpec]:
        optics = [
            ChildSpec(
                f"optics-{link.id}",
                "qtrunk.sim.optics",
                ["--config", str(self.state / "optics" / link.id / "optics.json")],
            )
            for link in self.topology.links
            if link.vendor is None
        ]
        nodes = [
            ChildSpec(
                f"node-{node.id}",
                "qtrunk.node.__main__",
                ["--config", str(self.state / "nodes" / node.id / "node.json")],
            )
            for node in self.topology.nodes
        ]
        controllers = [
            ChildSpec(
                name,
                "qtrunk.node.controller.__main__",
                ["--config", str(self.state / "controllers" / name / "controller.json")],
            )
            for name in self.controller_names()
        ]
        return optics + nodes + controllers

    def _write_node(self, node: Node, credentials: Credentials) -> None:
        ports = self.ports[node.id]
        directory = self.state / "nodes" / node.id
        config = NodeConfig(
            node=node.id,
            directory=str(directory),
            key_api=Address(HOST, ports.key_api),
            admin_api=Address(HOST, ports.admin_api),
            inter_node=Address(HOST, ports.inter_node),
            stream_api=Address(HOST, ports.stream_api),
            skip_api=Address(HOST, ports.skip_api),
            sdn_api=Address(HOST, ports.sdn_api),
            links=[
                LinkConfig(
                    link=link.id,
                    device_socket=str(self.optics_socket(link.id)),
                    peer=Address(HOST, self.ports[link.other(node.id)].inter_node),
                    preshared_file=str(directory / f"preshared-{link.id}"),
                    peer_verifying_key=str(self._verifying_key(link.other(node.id)))
                    if link.distillation.bootstrap == "ml-dsa"
                    else None,
                )
                for link in self.topology.links_of(node.id)
            ],
            topology=self.topology.to_dict(),
            signing_key=str(directory / "signing-key.pem"),
            verifying_keys={other.id: str(self._verifying_key(other.id)) for other in self.topology.nodes},
            certificate=str(credentials.certificate),
            private_key=str(credentials.private_key),
            ca_certificate=str(credentials.ca_certificate),
            revocation_list=str(self.state / "pki" / "ca.crl"),
        )
        _write_json(directory / "node.json", config)

    def _write_controller(self, name: str, port: int, credentials: Credentials) -> None:
        directory = self.state / "controllers" / name
        config = ControllerConfig(
            name=name,
            directory=str(directory),
            api=Address(HOST, port),
            certificate=str(credentials.certificate),
            private_key=str(credentials.private_key),
            ca_certificate=str(credentials.ca_certificate),
            topology=self.topology.to_dict(),
            nodes={node: Address("localhost", ports.admin_api) for node, ports in self.ports.items()},
            store=str(self.state / "controllers" / "control.db"),
            revocation_list=str(self.state / "pki" / "ca.crl"),
        )
        _write_json(directory / "controller.json", config)

    def _verifying_key(self, node: NodeId) -> Path:
        return self.state / "nodes" / node / "verifying-key.pem"

    def _write_optics(self, link: Link, index: int) -> None:
        directory = self.state / "optics" / link.id
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_crowd = len(self.topology.links) > CROWD
        _write_json(
            directory / "optics.json",
            {
                "link": link.id,
                "socket": str(self.optics_socket(link.id)),
                "length_km": link.length_km,
                "loss_db": link.loss_db,
                "equipment": link.equipment,
                "warm_up_s": index * GOLDEN % 1.0 * link.equipment.block_s if is_crowd else 0.0,
            },
        )

    def _write_preshared(self, link: Link) -> None:
        """A secret for both ends, once; a node takes it into its sealed store and shreds the file.

        The marker comes last and no node runs before it, so a kill in between makes both secrets anew.
        """
        marker = self.state / "optics" / link.id / "preshared.made"
        if marker.exists():
            return
        secret = secrets.token_bytes(PRESHARED_OCTETS)
        for node in (link.alice, link.bob):
            path = self.state / "nodes" / node / f"preshared-{link.id}"
            part = path.with_suffix(".part")
            part.unlink(missing_ok=True)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                out.write(secret)
                out.flush()
                os.fsync(out.fileno())
            part.replace(path)
        marker.touch()


def _choose_ports(topology: Topology, kept: dict[str, NodePorts]) -> dict[str, NodePorts]:
    """Ports for every node: from the topology where it gives them, kept ones, else free ones."""
    with contextlib.ExitStack() as reserved:

        def free() -> int:
            listener = reserved.enter_context(socket.socket())
            listener.bind((HOST, 0))
            return int(listener.getsockname()[1])

        return {
            node.id: kept[node.id]
            if node.id in kept and all(msgspec.structs.astuple(kept[node.id]))
            else NodePorts(
                key_api=node.key_api_port or free(),
                admin_api=node.admin_api_port or free(),
                inter_node=node.inter_node_port or free(),
                stream_api=node.stream_api_port or free(),
                skip_api=node.skip_api_port or free(),
                sdn_api=node.sdn_api_port or free(),
            )
            for node in topology.nodes
        }


def _free_ports(count: int, taken: set[int]) -> list[int]:
    """Ports that nobody has, and that are none of those already chosen."""
    found: list[int] = []
    with contextlib.ExitStack() as reserved:
        while len(found) < count:
            listener = reserved.enter_context(socket.socket())
            listener.bind((HOST, 0))
            port = int(listener.getsockname()[1])
            if port not in taken:
                found.append(port)
    return found


def _are_free(ports: NodePorts) -> bool:
    return all(_is_free(port) for port in msgspec.structs.astuple(ports))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _write_json(path: Path, value: object) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(value)))
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)
