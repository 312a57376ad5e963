"""`qtrunk controller`: run one, and ask the controllers of a lab."""

import asyncio
import signal
from pathlib import Path
from urllib.parse import quote

import click
import msgspec

from qtrunk.base.errors import LabError, QtrunkError, RequestRefused
from qtrunk.cli import options
from qtrunk.cli.labclient import LabClient
from qtrunk.node.lab import Lab

WHAT = ("network", "nodes", "links", "pools", "routes", "services", "alarms", "alarms/summary", "alarms/history")


@click.group()
def controller() -> None:
    """Run a controller; ask the one that leads a lab."""


@controller.command()
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), required=True)
def run(config: Path) -> None:
    """Run a controller until told to stop (docs/controller.md has the configuration)."""
    from qtrunk.node.controller.__main__ import run as run_controller
    from qtrunk.node.controller.config import load

    async def go() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await run_controller(load(config), stop)

    asyncio.run(go())


@controller.command()
@click.argument("what", type=click.Choice(WHAT))
@options.state_option
def show(what: str, state: Path) -> None:
    """What the leading controller knows, as JSON."""
    options.print_json(_ask(state, f"/control/v1/{what}"))


@controller.command("what-if")
@click.argument("cut")
@options.state_option
def what_if(cut: str, state: Path) -> None:
    """Which services would lose protection, or every route, if CUT (a link or a node) were gone."""
    options.print_json(_ask(state, f"/control/v1/what-if?cut={quote(cut, safe='')}"))


def _ask(state: Path, path: str) -> object:
    """The answer of the controller that leads."""
    client = LabClient(Lab.open(state))
    problem: QtrunkError = LabError(f"lab {state} has no controller; start it with `qtrunk up --controllers 1`")
    for port in client.lab.controllers:
        try:
            return msgspec.json.decode(client.controller(port, path))
        except RequestRefused:
            raise
        except QtrunkError as error:
            problem = error
    raise problem
