"""A real lab for tests: processes, certificates, fibres, driven by the command line as a user would."""

import itertools
import json
import os
import signal
import ssl
import subprocess
import time
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
from forked_commands import Commands

from qtrunk.api.client import Etsi014Client
from qtrunk.base.ids import SaeId
from qtrunk.cli.labclient import LabClient
from qtrunk.kms.seal import load_or_make_kek
from qtrunk.kms.store import KeyStore
from qtrunk.node.lab import Lab, NodePorts, _is_free
from qtrunk.node.supervisor import is_running, running_state
from qtrunk.node.world import SystemClock

KEYS_WITHIN_S = 60.0
COMMANDS = Commands()
PORTS = itertools.count(20_000 + 2_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))
"""Ports of labs, each worker's own, and none that the system gives to a connection: a node that was killed finds its
ports free, whatever another lab does meanwhile."""


@dataclass
class LabHandle:
    """A running lab, driven by the command line as a user would."""

    state: Path
    topology: str
    clients: list[Etsi014Client] = field(default_factory=list)
    saes: dict[str, dict] = field(default_factory=dict)
    ports: dict[str, str] = field(default_factory=dict)

    def write(self, text: str) -> None:
        """Make this the topology file; each node has the same ports in all of them."""
        network = tomllib.loads(text)
        for name in sorted({name for way in network.get("trunks", []) + network.get("rings", []) for name in way}):
            if name not in self.ports:
                given = [f"{each} = {next(filter(_is_free, PORTS))}" for each in NodePorts.__struct_fields__]
                self.ports[name] = f"ports = {{ {', '.join(given)} }}"
            text += f"\n[nodes.{name}]\n{self.ports[name]}\n"
        Path(self.topology).write_text(text)

    def close_clients(self) -> None:
        while self.clients:
            self.clients.pop().close()

    def qtrunk(self, *arguments: str, check: bool = True, timeout_s: float = 120.0) -> subprocess.CompletedProcess:
        done = COMMANDS.run([*arguments], {"QTRUNK_STATE": str(self.state)}, timeout_s)
        if check and done.returncode != 0:
            raise AssertionError(f"qtrunk {' '.join(arguments)}: {done.stderr}{done.stdout}")
        return done

    def up(self) -> None:
        self.qtrunk("up", self.topology, "--detach")

    def down(self) -> None:
        self.qtrunk("down")

    def status(self) -> dict:
        return json.loads(self.qtrunk("status", "--format", "json", check=False).stdout)

    def links(self) -> dict[str, dict]:
        return {link["link"]: link for link in self.status()["links"]}

    def stored(self) -> dict[str, dict]:
        """Ledgers as they lie on the disk, or (when the lab is up) as its nodes report them."""
        return self._stored_down() if not is_running(self.state) else {n: self.ledger(n) for n in self.nodes()}

    def _stored_down(self) -> dict[str, dict]:
        found = {}
        for node in self.nodes():
            directory = self.state / "nodes" / node
            store = KeyStore.open(directory / "store", node, load_or_make_kek(directory / "kek"), SystemClock())
            links = [link.id for link in Lab.open(self.state).topology.links_of(node)]
            found[node] = {link: asdict(store.ledger(link)) for link in links}
            store.close()
        return found

    def nodes(self) -> list[str]:
        return [node.id for node in Lab.open(self.state).topology.nodes]

    def running(self) -> dict[str, int]:
        """Names and process IDs as the supervisor has them, without asking any node."""
        state = running_state(self.state)
        return {name: child["pid"] for name, child in state.children.items()} if state else {}

    def supervisor_pid(self) -> int:
        return running_state(self.state).pid

    def sae(self, name: str) -> dict:
        """As `qtrunk sae show` says; nothing of it changes while the lab's directory is there."""
        if name not in self.saes:
            self.saes[name] = json.loads(self.qtrunk("sae", "show", name, "--format", "json").stdout)
        return self.saes[name]

    def ledger(self, node: str) -> dict:
        return LabClient(Lab.open(self.state)).node(node, "/admin/v1/ledger")

    def client(self, name: str, timeout_s: float = 10.0, retry_s: float = 0.0) -> Etsi014Client:
        record = self.sae(name)
        made = Etsi014Client(
            kme_url=record["kme_url"],
            certificate=Path(record["certificate"]),
            private_key=Path(record["private_key"]),
            ca_certificate=Path(record["ca_certificate"]),
            own_sae=SaeId(name),
            timeout_s=timeout_s,
            retry_s=retry_s,
        )
        self.clients.append(made)
        return made

    def tls(self, name: str) -> ssl.SSLContext:
        record = self.sae(name)
        context = ssl.create_default_context(cafile=record["ca_certificate"])
        context.load_cert_chain(record["certificate"], record["private_key"])
        return context

    def pids(self) -> dict[str, int]:
        return {name: child["pid"] for name, child in self.status()["processes"].items()}

    def wait_for(self, condition, what: str, within_s: float = KEYS_WITHIN_S):
        """Poll until `condition(links)` holds; the value it gave."""
        deadline_s = time.monotonic() + within_s
        links: dict[str, dict] = {}
        while time.monotonic() < deadline_s:
            links = self.links()
            found = condition(links)
            if found:
                return found
            time.sleep(0.25)
        raise AssertionError(f"{what}: not within {within_s} s; links: {json.dumps(links, indent=1)}")

    def wait_for_pool(self, initiator: str, target: str, octets: int = 1024, within_s: float = 30) -> None:
        """Until so much lies ready from one SAE to another."""
        deadline_s = time.monotonic() + within_s
        while time.monotonic() < deadline_s:
            for node in self.status()["nodes"]:
                for pool in node.get("pools", []):
                    pair = (pool["side"], pool["initiator"], pool["target"])
                    if pair == ("initiator", initiator, target) and pool["available"] >= octets:
                        return
            time.sleep(0.25)
        raise AssertionError(f"pool {initiator} to {target}: not filled within {within_s} s")

    def wait_for_keys(self, bits: int = 20_000) -> None:
        self.wait_for(lambda links: all(link["own_bits"] >= bits for link in links.values()), "keys on every link")


SMALL_TRUNK = """
name = "small-trunk"
trunks = [["ada", "bert", "cleo"]]
saes = ["bank@ada", "shop@bert", "vault@cleo", "grid@cleo", "desk@ada", "swift-a@ada", "swift-b@bert", "swift-c@cleo"]

[tenants.swift]
saes = ["swift-*"]
relay = "announced"

[link]
length_km = 20
loss_db = 8
block_s = 1.0
clock_fraction = 0.25
"""


def start(directory: Path, name: str, text: str) -> LabHandle:
    handle = LabHandle(directory / name, str(directory / f"{name}.toml"))
    handle.write(text)
    handle.up()
    return handle


def stop(handle: LabHandle) -> None:
    pids = list(handle.pids().values())
    handle.down()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, signal.SIG_DFL)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids, within_s=10.0):
    deadline_s = time.monotonic() + within_s
    while any(is_alive(pid) for pid in pids):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True
