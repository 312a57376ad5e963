"""`qtrunk graph`: a topology as a drawing."""

from pathlib import Path

import click

from qtrunk.config import graph as drawing
from qtrunk.config import network


@click.command()
@click.argument("topology")
@click.option("--format", "format_", type=click.Choice(["mermaid", "geojson"]), default="mermaid")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="A file; else standard output.")
def graph(topology: str, format_: str, output: Path | None) -> None:
    """Draw TOPOLOGY: Mermaid for documents, GeoJSON for maps (every node needs lat and lon)."""
    draw = {"mermaid": drawing.mermaid, "geojson": drawing.geojson}[format_]
    text = draw(network.load(network.find(topology)))
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
