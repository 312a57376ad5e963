"""`qtrunk apply`: a changed topology for a lab, running or not; only what has changed is touched."""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from qtrunk.api.jsonclient import Service
from qtrunk.api.tls import client_context
from qtrunk.base.errors import LabError
from qtrunk.base.ids import NodeId
from qtrunk.cli import options
from qtrunk.cli.labclient import at_once
from qtrunk.config import network
from qtrunk.config.change import Change, change
from qtrunk.node.lab import HOST, Lab
from qtrunk.node.supervisor import is_running, running_state
from qtrunk.topology import Topology

TIMEOUT_S, TIMEOUT_PER_NODE_S = 60.0, 3.0
POLL_S = 0.1


@click.command()
@click.argument("topology")
@options.state_option
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
def apply(topology: str, state: Path, dry_run: bool) -> None:
    """Give a lab another TOPOLOGY. What has not changed stays in service: no process of it stops, no request fails.

    Nodes, links, SAEs, demands and tenants may come and go. The key of links that go is destroyed.
    """
    loaded = network.load(network.find(topology))
    Lab.open(state)
    with _alone(state):
        _apply(loaded, state, dry_run=dry_run)


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    """One change at a time; LabError while another one is under way."""
    descriptor = os.open(state / "apply.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(f"another `qtrunk apply` changes lab {state} just now; try again") from None
        yield
    finally:
        os.close(descriptor)


def _apply(loaded: Topology, state: Path, *, dry_run: bool) -> None:
    lab = Lab.open(state)
    if lab.clock_fraction is not None:
        loaded = loaded.at_clock_fraction(lab.clock_fraction)
    found = change(lab.topology, loaded)
    for line in found.lines:
        click.echo(line)
    running = running_state(state)
    if running is not None:
        found.check_live()
    elif is_running(state):
        raise LabError(f"lab {state} is just starting; try again")
    if dry_run:
        click.echo(f"{len(found.lines)} changes; nothing is changed (--dry-run).")
        return
    lab.change_to(loaded)
    if running is None:
        lab.settle()
    else:
        _bring_about(lab, found, running.pid)
    lab.put_away()
    click.echo(f"{len(found.lines)} changes are in force.")


def _bring_about(lab: Lab, found: Change, supervisor: int) -> None:
    """New processes first, then those that stay take the new network, then those that are gone stop."""
    os.kill(supervisor, signal.SIGHUP)
    timeout_s = TIMEOUT_S + TIMEOUT_PER_NODE_S * len(lab.topology.nodes)
    deadline_s = time.monotonic() + timeout_s
    ends = {end for link in found.gone_links for end in (link.alice, link.bob)}
    # Who sends over a link that goes stops that before the link's ends let go of it.
    own = lab.operator()
    context = client_context(own.certificate, own.private_key, own.ca_certificate)

    def give(node: NodeId) -> None:
        service = Service(HOST, lab.ports[node].admin_api, context)
        _until(lambda: _take(service), deadline_s, f"node {node} does not answer")

    for is_end in (False, True):
        at_once(give, [node.id for node in lab.topology.nodes if (node.id in ends) is is_end])
    lab.settle()
    os.kill(supervisor, signal.SIGHUP)
    for name in lab.controller_names():
        _begin_anew(lab, name, deadline_s)
    # By what runs, not by what changed: where an earlier command was cut off, that was another one's change.
    left = lab.process_names()
    _until(lambda: _processes(lab) <= left, deadline_s, f"{', '.join(sorted(_processes(lab) - left))} did not stop")


def _take(service: Service) -> bool:
    """Let a node take its new configuration; False while it does not answer."""
    try:
        service.ask("POST", "/admin/v1/configuration")
    except LabError:
        return False
    return True


def _begin_anew(lab: Lab, controller: str, deadline_s: float) -> None:
    """A controller knows the network from its start; meanwhile another one leads, or nodes keep their routes."""
    before = running_state(lab.state)
    if before is None or before.children.get(controller) is None:
        return  # It is down, and reads its configuration when it comes.
    os.kill(before.children[controller]["pid"], signal.SIGTERM)

    def is_there() -> bool:
        now = running_state(lab.state)
        child = None if now is None else now.children.get(controller)
        return child is not None and child["pid"] not in (0, before.children[controller]["pid"])

    _until(is_there, deadline_s, f"{controller} did not begin anew")


def _processes(lab: Lab) -> set[str]:
    running = running_state(lab.state)
    return set() if running is None else set(running.children)


def _until(is_done: Callable[[], bool], deadline_s: float, why_not: str) -> None:
    while not is_done():
        if time.monotonic() > deadline_s:
            raise LabError(f"{why_not}; `qtrunk apply` again goes on where this ended")
        time.sleep(POLL_S)
