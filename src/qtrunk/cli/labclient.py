"""What the command line asks of a running lab: status of its nodes, receipts, and the state of its processes."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec

from qtrunk.api.jsonclient import Service
from qtrunk.api.tls import client_context
from qtrunk.base.errors import LabError, QtrunkError, RequestRefused
from qtrunk.base.ids import LinkId
from qtrunk.control.telemetry import Finding, both
from qtrunk.node.lab import HOST, Lab
from qtrunk.node.supervisor import running_state

TIMEOUT_S = 5.0
AT_ONCE = 32
"""Nodes that are asked at the same time: what one waits for is its own turn at the processor."""

A = TypeVar("A")
B = TypeVar("B")


def at_once(work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """The results in the order of `items`; the first error of them."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, items))


class LabClient:
    """Talks to the administration interface of every node of one lab, as its operator. Connections are kept: the live
    table asks again and again.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        own = lab.operator()
        context = client_context(own.certificate, own.private_key, own.ca_certificate)

        def service(host: str, port: int) -> Service:
            return Service(host, port, context, TIMEOUT_S, keeps=True)

        self.services = {str(node): service(HOST, ports.admin_api) for node, ports in lab.ports.items()}
        """Of each node."""
        self._controllers = {port: service("localhost", port) for port in lab.controllers}

    def node(self, node: str, path: str) -> dict[str, object] | None:
        """A document of one node; None where it says that there is none. LabError if it does not answer."""
        try:
            return msgspec.json.decode(self.services[node].ask("GET", path), type=dict[str, object])
        except QtrunkError as error:
            if isinstance(error, RequestRefused) and path.startswith("/admin/v1/keys/"):
                return None
            raise LabError(f"node {node}: {error}; see {self.lab.state}/nodes/{node}/node.log") from error

    def status(self) -> dict[str, object]:
        """The whole lab: processes, nodes, links (each once, with both ends)."""
        nodes: dict[str, dict[str, object]] = {}
        errors: dict[str, str] = {}

        def ask(node: str) -> None:
            try:
                nodes[node] = self.node(node, "/admin/v1/status") or {}
            except LabError as error:
                errors[node] = str(error)

        at_once(ask, [node.id for node in self.lab.topology.nodes])
        named = zip(self.lab.controller_names(), self.lab.controllers, strict=True)
        controllers = [self._controller(name, port) for name, port in named]
        supervisor = running_state(self.lab.state)
        return {
            "topology": self.lab.topology.name,
            "state_directory": str(self.lab.state),
            "is_up": supervisor is not None,
            "processes": supervisor.children if supervisor else {},
            "controllers": controllers,
            "links": [self._link(link.id, link.alice, link.bob, nodes) for link in self.lab.topology.links],
            "nodes": [
                {
                    "node": node.id,
                    "answers": node.id in nodes,
                    "error": errors.get(node.id, ""),
                    **{k: v for k, v in nodes.get(node.id, {}).items() if k not in ("node", "links")},
                }
                for node in self.lab.topology.nodes
            ],
        }

    def _controller(self, name: str, port: int) -> dict[str, object]:
        try:
            found = msgspec.json.decode(self.controller(port, "/control/v1/status"), type=dict[str, object])
        except QtrunkError as error:
            return {"controller": name, "answers": False, "is_leading": False, "error": str(error)}
        return {**found, "controller": name, "answers": True, "error": ""}

    def controller(self, port: int, path: str) -> bytes:
        """A document of the controller at a port; QtrunkError if it does not give it."""
        return self._controllers[port].ask("GET", path)

    def _link(self, link: str, alice: str, bob: str, nodes: dict[str, dict[str, object]]) -> dict[str, object]:
        """Both ends' figures as one entry. Alice's end leads; the worse state of the two is the link's."""
        ends = {role: _end(nodes.get(node), link) for role, node in (("alice", alice), ("bob", bob))}
        shown = ends["alice"] or ends["bob"] or {}
        states = [str(end["state"]) for end in ends.values() if end]
        order = ["OFF", "PENDING", "PASSIVE", "ACTIVE"]
        state = min(states, key=order.index) if len(states) == len(ends) else "OFF"
        known = self.lab.topology.link(LinkId(link))
        return {
            "length_km": known.length_km,
            "loss_db": known.loss_db,
            **{k: v for k, v in shown.items() if k != "role"},
            "link": link,
            "alice": alice,
            "bob": bob,
            "state": state,
            "diagnosis": _diagnosis(ends),
            "ends": ends,
        }


def _diagnosis(ends: dict[str, dict[str, object] | None]) -> list[dict[str, object]]:
    """What either end makes of its last block, likeliest first, each kind once with the end that says it."""
    said = {role: (end or {}).get("diagnosis") or [] for role, end in ends.items()}
    found = both(*((role, msgspec.convert(each, list[Finding])) for role, each in said.items()))
    return [msgspec.structs.asdict(one) for one in found]


def _end(status: dict[str, object] | None, link: str) -> dict[str, object] | None:
    links = (status or {}).get("links")
    if not isinstance(links, list):
        return None
    return next((entry for entry in links if entry.get("link") == link), None)
