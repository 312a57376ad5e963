"""What `qtrunk doctor` examines: the nodes of a lab, or production nodes by their configurations, and what they answer.

Everything is read, nothing changed: a node is asked for its status and ledger only.
"""

import http.client
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from qtrunk.api.tls import kme_ids_of
from qtrunk.base.errors import AuthenticationFailed, ConfigError, LabError
from qtrunk.base.ids import LinkId
from qtrunk.cli.doctor.finding import Finding, error
from qtrunk.config import network
from qtrunk.node import config as nodeconfig
from qtrunk.node.channel import node_context
from qtrunk.node.config import Address, LinkConfig, NodeConfig
from qtrunk.node.keys import SEALED
from qtrunk.node.lab import Lab
from qtrunk.node.pki import Credentials
from qtrunk.node.supervisor import is_running
from qtrunk.topology import Link

TIMEOUT_S = 5.0
AT_ONCE = 16
ANSWER_OCTETS_MAX = 64 << 20
DATE_SLACK_S = 2.0
"""The Date of an answer is whole seconds (RFC 9110 clause 6.6.1), and a node makes it anew once a second."""

UNREADABLE = (OSError, ConfigError, msgspec.MsgspecError, LookupError, ValueError, TypeError)
"""What reading a configuration, and making a network of what it says, may raise."""

Json = dict[str, Any]
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one node's administration interface said, or why it did not."""

    status: Json = field(default_factory=dict)
    ledgers: tuple[dict[str, Json], dict[str, Json]] = ({}, {})
    """By link, read twice: all nodes' first ones were read before anybody's second."""
    offset_s: float = 0.0
    """How far its clock is ahead of this machine's at least, as its Date header tells; 0 within what that can tell."""
    problem: str = ""
    """Why there is no answer; empty where there is one."""


@dataclass(slots=True)
class _Call:
    """One question to one node."""

    document: Json
    offset_s: float


class Site:
    """The nodes to examine, and how to ask them."""

    def __init__(self, nodes: Iterable[NodeConfig], operator: Credentials | None, lab: Lab | None = None) -> None:
        """`operator` None: the nodes cannot be asked, only looked at. `lab`: the nodes are its nodes."""
        self.nodes = tuple(nodes)
        self.operator = operator
        self.lab = lab
        self.problems: list[Finding] = []
        """What was wrong with the configurations already when they were read."""

    @classmethod
    def of_lab(cls, state: Path) -> "Site":
        """The lab in a state directory, as far as it can be read."""
        state = state.absolute()
        try:
            lab = Lab.open(state)
        except (LabError, *UNREADABLE) as problem:
            site = cls((), None)
            fix = "qtrunk up TOPOLOGY, or --state DIR of the lab that is meant"
            site.problems = [error(f"lab {state}", str(problem), "there is nothing to examine", fix)]
            return site
        paths = [state / "nodes" / node.id / "node.json" for node in lab.topology.nodes]
        return cls._read(paths, lab.operator(), lab, f"{restart_of(lab)}: it is written anew")

    @classmethod
    def of_configs(cls, paths: Iterable[Path], credentials: Path | None) -> "Site":
        """Production nodes by their configuration files; `credentials` is a directory as `qtrunk enrol` made it."""
        operator = None
        if credentials is not None:
            operator = Credentials(*(credentials / name for name in ("cert.pem", "key.pem", "ca.pem")))
        return cls._read(paths, operator, None, "correct the file, or restore it")

    @classmethod
    def _read(cls, paths: Iterable[Path], operator: Credentials | None, lab: Lab | None, fix: str) -> "Site":
        nodes: list[NodeConfig] = []
        problems: list[Finding] = []
        for path in paths:
            try:
                found = nodeconfig.load(path)
                # As the node does when it starts.
                found.load_topology().node(found.node_id)
            except UNREADABLE as problem:
                problems.append(error(f"file {path}", str(problem), "the node cannot start with it", fix))
            else:
                nodes.append(found)
        site = cls(nodes, operator, lab)
        site.problems = problems
        return site

    @cached_property
    def is_meant_to_run(self) -> bool:
        """Whether the nodes should answer: a lab may be down, a production node not."""
        return self.lab is None or is_running(self.lab.state)

    @cached_property
    def answers(self) -> dict[str, Answer]:
        """What every node answers, by node; none where they are not meant to run or there is no operator."""
        if not self.is_meant_to_run or self.operator is None:
            return {}
        calls: dict[str, list[_Call]] = {config.node: [] for config in self.nodes}
        problems: dict[str, str] = {}
        for path in ("/admin/v1/status", "/admin/v1/ledger", "/admin/v1/ledger"):
            # Whoever does not answer once is not waited for again, and who is sealed has no ledger to tell.
            left = [
                config for config in self.nodes if config.node not in problems and not _is_sealed(calls[config.node])
            ]
            for config, call in zip(left, at_once(partial(self._ask, path), left), strict=True):
                if isinstance(call, str):
                    problems[config.node] = call
                else:
                    calls[config.node].append(call)
        return {
            node: Answer(problem=problems[node]) if node in problems else _answer(found)
            for node, found in calls.items()
        }

    def again(self) -> "Site":
        """The same nodes, to be asked anew."""
        return Site(self.nodes, self.operator, self.lab)

    def _ask(self, path: str, config: NodeConfig) -> _Call | str:
        """One document of a node, or why there is none."""
        assert self.operator is not None
        host, port = reachable(config.admin_api)
        own = self.operator
        try:
            context = node_context(own.certificate, own.private_key, own.ca_certificate, server=False)
        except (OSError, ssl.SSLError) as problem:
            return f"the operator's certificate {own.certificate} cannot be used: {problem}"
        connection = http.client.HTTPSConnection(host, port, context=context, timeout=TIMEOUT_S)
        try:
            connection.connect()
            tls = connection.sock
            assert isinstance(tls, ssl.SSLSocket)
            # Nobody but the node gets to hear what an operator asks.
            if config.load_topology().kme_id(config.node_id) not in kme_ids_of(
                tls.getpeercert(binary_form=True) or b""
            ):
                raise AuthenticationFailed("its certificate is another party's")
            before_s = time.time()
            connection.request("GET", path)
            response = connection.getresponse()
            after_s = time.time()
            body = response.read(ANSWER_OCTETS_MAX)
            if response.status != http.client.OK:
                return f"{host}:{port} answers {response.status} to {path}"
            date_s = parsedate_to_datetime(response.headers.get("Date", "")).timestamp()
            return _Call(msgspec.json.decode(body, type=Json), offset_of(date_s, before_s, after_s))
        except (OSError, http.client.HTTPException, ValueError, msgspec.MsgspecError, AuthenticationFailed) as problem:
            return f"{host}:{port}: {problem}"
        finally:
            connection.close()


def _is_sealed(calls: Sequence[_Call]) -> bool:
    """Whether what a node answered first says that it is sealed."""
    return bool(calls) and calls[0].document.get("state") == SEALED


def _answer(calls: Sequence[_Call]) -> Answer:
    documents = [call.document for call in calls]
    offset_s = min((call.offset_s for call in calls), key=abs)
    if len(documents) == 1:
        return Answer(documents[0], offset_s=offset_s)
    status, first, second = documents
    return Answer(status, (first, second), offset_s)


def offset_of(date_s: float, before_s: float, after_s: float) -> float:
    """How far a clock that said `date_s` is ahead at least, asked between two readings of ours; 0 if it may be right.

    All in Unix seconds. The clock said between `date_s` and DATE_SLACK_S more.
    """
    if date_s > after_s:
        return date_s - after_s
    return min(0.0, date_s + DATE_SLACK_S - before_s)


def start_of(lab: Lab) -> str:
    """The command that brings a lab up."""
    name = lab.topology.name
    what = name if name in network.shipped() else f"FILE (where {name} is described)"
    return f"qtrunk up --state {lab.state} {what}"


def restart_of(lab: Lab) -> str:
    """The commands that stop a lab and make anew what is missing or due."""
    return f"qtrunk down --state {lab.state}; {start_of(lab)}"


def reachable(address: Address) -> tuple[str, int]:
    """Where a service that listens at `address` is reached from its own machine."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(address.host, address.host), address.port  # noqa: S104


def links_of(config: NodeConfig) -> list[tuple[LinkConfig, Link]]:
    """A node's links as its configuration and its topology have them; those that only one of them has are left out."""
    links = {link.id: link for link in config.load_topology().links_of(config.node_id)}
    return [(entry, links[LinkId(entry.link)]) for entry in config.links if entry.link in links]


def at_once(work: Callable[[T], U], on: Iterable[T]) -> list[U]:
    """What `work` gives for each, in order, several at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, on))
