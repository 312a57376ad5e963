"""`qtrunk check`: a topology file, without starting anything."""

import click

from qtrunk.cli import options
from qtrunk.config import network
from qtrunk.plan import guarantees


@click.command()
@click.argument("topology")
@options.format_option
def check(topology: str, format_: str) -> None:
    """Check a topology file without starting anything; every mistake is reported at once.

    Warnings, such as guarantees of tenants that the links cannot carry, go to standard error.
    """
    found = network.load(network.find(topology))
    for warning in guarantees.warnings(found):
        click.echo(f"warning: {warning}", err=True)
    if format_ == "json":
        options.print_json(network.describe(found))
        return
    length_km = sum(link.length_km for link in found.links)
    click.echo(
        f"{found.name}: valid. {len(found.nodes)} nodes, {len(found.links)} links, {length_km:.0f} km of fibre, "
        f"{len(found.saes)} SAEs, {len(found.demands)} demands."
    )
