"""`qtrunk new`: a first topology out of a list of cities."""

from pathlib import Path

import click

from qtrunk.base.errors import ConfigError
from qtrunk.config import network, places
from qtrunk.config.draft import REACH_KM, draft


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("cities", nargs=-1, required=True)
@click.option("--ring", "is_ring", is_flag=True, help="Join the last city to the first.")
@click.option(
    "--reach", "reach_km", type=float, default=REACH_KM, show_default=True, help="Longest link in km of fibre."
)
def new(file: Path, cities: tuple[str, ...], is_ring: bool, reach_km: float) -> None:
    """Write FILE, a topology that joins CITIES in the order given, with relays where they are far apart.

    A city is a name (Beijing, 北京), NAME/CC where several countries have one, or NAME@LAT,LON.
    """
    if file.exists():
        raise ConfigError([f"{file}: is there already, and stays as it is; choose another name"])
    text = draft(file.stem, [places.find(city) for city in cities], is_ring=is_ring, reach_km=reach_km)
    made = network.load(text)
    with file.open("x", encoding="utf-8") as out:
        out.write(text)
    length_km = sum(link.length_km for link in made.links)
    click.echo(f"{file}: {len(made.nodes)} sites, {len(made.links)} links, {length_km:.0f} km of fibre by the map")
