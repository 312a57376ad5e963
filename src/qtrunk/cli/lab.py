"""`qtrunk up | down | status`: the lab."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from qtrunk.base.errors import LabError
from qtrunk.cli import options, show
from qtrunk.cli.labclient import LabClient
from qtrunk.config import network
from qtrunk.node.lab import Lab
from qtrunk.node.supervisor import is_running, running_state

START_TIMEOUT_S, START_TIMEOUT_PER_NODE_S = 60.0, 3.0
"""To bring a lab up: with a hundred processes on two cores it takes a while."""
STOP_TIMEOUT_S, STOP_TIMEOUT_PER_NODE_S = 20.0, 1.0
REFRESH_S, REST_TIMES = 0.5, 5.0
"""Of the live table: to ask is work for the nodes, too, so it rests so many times as long as that took."""


@click.command()
@click.argument("topology")
@options.state_option
@click.option("--controllers", type=click.IntRange(0, 4), default=1, help="How many; one leads, others take over.")
@click.option("--detach", is_flag=True, help="Return when the lab is up; `qtrunk down` stops it.")
@click.option(
    "--clock-fraction",
    type=click.FloatRange(0.001, 1.0),
    metavar="F",
    help="Run every fibre at this share of its clock, whatever the topology says.",
)
def up(topology: str, state: Path, controllers: int, detach: bool, clock_fraction: float | None) -> None:
    """Start every node and fibre of TOPOLOGY (a file, or the name of a shipped one) on this machine.

    Without --detach a live table shows the links; Ctrl-C stops the lab. Keys stay stored: a second `up` goes on with
    them.
    """
    loaded = network.load(network.find(topology))
    if is_running(state):
        raise LabError(f"lab {state} is already up; `qtrunk status` shows it, `qtrunk down` stops it")
    prepared = Lab.prepare(state, loaded, controllers, clock_fraction)
    with _supervisor(prepared, detach=detach) as process:
        _wait_until_up(prepared, process)
        if detach:
            click.echo(f"{prepared.topology.name} is up; `qtrunk status` shows it, `qtrunk down` stops it.")
        else:
            _show_live(prepared, process)


@contextlib.contextmanager
def _supervisor(lab: Lab, *, detach: bool) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the supervisor; unless detached (and well started) it ends with the block."""
    (lab.state / "logs").mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-m", "qtrunk.node.supervisor", "--state", str(lab.state)]
    if not detach:
        command += ["--parent", str(os.getpid())]
    with (lab.state / "logs" / "supervisor.out").open("ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    # A terminal that closes, or a `kill`, must stop the lab just as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    is_left_running = False
    try:
        yield process
        is_left_running = detach
    except KeyboardInterrupt:
        click.echo("stopping the lab …", err=True)
    finally:
        if not is_left_running:
            process.terminate()
            process.wait(_stop_timeout_s(lab))


def _stop_timeout_s(lab: Lab) -> float:
    return STOP_TIMEOUT_S + STOP_TIMEOUT_PER_NODE_S * len(lab.topology.nodes)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _wait_until_up(lab: Lab, process: "subprocess.Popen[bytes]") -> None:
    client = LabClient(lab)
    timeout_s = START_TIMEOUT_S + START_TIMEOUT_PER_NODE_S * len(lab.topology.nodes)
    deadline_s = time.monotonic() + timeout_s
    missing: list[str] = [node.id for node in lab.topology.nodes]
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise LabError(f"the supervisor ended at once; see {lab.state}/logs/supervisor.out")
        missing = [node for node in missing if not _answers(client, node)]
        if not missing:
            return
        time.sleep(0.1)
    raise LabError(f"nodes {', '.join(missing)} did not come up within {timeout_s:.0f} s; see {lab.state}/logs/")


def _answers(client: LabClient, node: str) -> bool:
    try:
        client.node(node, "/admin/v1/status")
    except LabError:
        return False
    return True


def _show_live(lab: Lab, process: "subprocess.Popen[bytes]") -> None:
    """The live table until Ctrl-C."""
    client = LabClient(lab)
    saes = sorted(lab.topology.saes, key=lambda sae: sae.id)
    hint = Text("Ctrl-C stops the lab; its keys stay.", style="dim")
    if len(saes) > 1:
        first = saes[0]
        last = next((sae for sae in reversed(saes) if sae.node != first.node), saes[-1])
        hint = Text(
            f"In another terminal:  qtrunk seal FILE --from {first.id} --to {last.id}\n"
            f"                      qtrunk open FILE.qsealed --as {last.id}\n"
            f"                      qtrunk attack {lab.topology.links[0].id} intercept-resend --fraction 0.5\n"
            "Ctrl-C stops the lab; its keys stay.",
            style="dim",
        )
    with Live(console=show.console(), auto_refresh=False, screen=False) as live:
        while process.poll() is None:
            began_s = time.monotonic()
            live.update(Group(show.overview(client.status()), hint), refresh=True)
            time.sleep(max(REFRESH_S, REST_TIMES * (time.monotonic() - began_s)))
    raise LabError(f"the supervisor ended; see {lab.state}/logs/supervisor.out")


@click.command()
@options.state_option
def down(state: Path) -> None:
    """Stop a lab that was started with `up --detach`."""
    found = running_state(state)
    if found is None:
        if not is_running(state):
            click.echo(f"lab {state} is not up.")
            return
        raise LabError(f"lab {state} is just starting; try again")
    with contextlib.suppress(ProcessLookupError):
        os.kill(found.pid, signal.SIGTERM)
    deadline_s = time.monotonic() + _stop_timeout_s(Lab.open(state))
    while is_running(state):
        if time.monotonic() > deadline_s:
            raise LabError(f"the supervisor (process {found.pid}) does not stop")
        time.sleep(0.05)
    click.echo("stopped.")


@click.command()
@options.state_option
@options.format_option
def status(state: Path, format_: str) -> None:
    """Show the links, pools, alarms and processes of a lab. Exit status 1 when the lab is not up."""
    found = LabClient(Lab.open(state)).status()
    if format_ == "json":
        options.print_json(found)
    else:
        show.console().print(show.overview(found))
    if not found["is_up"]:
        raise LabError(f"lab {state} is not up; start it with `qtrunk up {found['topology']}`")
