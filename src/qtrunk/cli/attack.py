"""`qtrunk attack`: Eve on the simulated fibres of a lab."""

from pathlib import Path

import click

from qtrunk.base.errors import LabError
from qtrunk.cli import options
from qtrunk.node.lab import Lab
from qtrunk.quantum.attack import KINDS
from qtrunk.quantum.situation import NO_STRENGTH
from qtrunk.sim import control


@click.command()
@click.argument("link")
@click.argument("kind", type=click.Choice(sorted(KINDS)))
@click.option("--fraction", type=click.FloatRange(0, 1), default=1.0, help="Share of the pulses that Eve touches.")
@click.option("--strength", type=click.FloatRange(0), help="Of the attack; its unit depends on the kind.")
@options.state_option
def attack(link: str, kind: str, fraction: float, strength: float | None, state: Path) -> None:
    """Put Eve on the simulated fibre of LINK, or take her away (`none`). Labs only."""
    lab = Lab.open(state)
    known = [entry.id for entry in lab.topology.links]
    if link not in known:
        raise LabError(f"{link!r} is not a link of {lab.topology.name}; links: {', '.join(known)}")
    control.set_attack(lab.optics_socket(link), link, kind, fraction if kind != "none" else 1.0, strength)
    if kind == "none":
        click.echo(f"{link}: Eve has left. The link recovers by itself with the next good block.")
        return
    meaning = KINDS[kind].meaning
    power = "" if meaning == NO_STRENGTH else f", {KINDS[kind].strength if strength is None else strength:g} {meaning}"
    click.echo(f"{link}: {kind} on {100 * fraction:g} % of the pulses{power}.")
