"""`qtrunk simulate`: keys of a large network by the day, without processes."""

from typing import Any

import click
from rich.table import Table

from qtrunk.base.errors import RequestRefused
from qtrunk.cli import options, show
from qtrunk.config import network
from qtrunk.plan.scale import recipe
from qtrunk.plan.scale.keyflow import Conditions
from qtrunk.plan.scale.runs import SITES_MAX, Task, run_all

_USUAL = Conditions()


@click.command()
@click.argument("topology", required=False)
@click.option("--nodes", type=click.IntRange(recipe.SITES_MIN, SITES_MAX), help="Of a generated national backbone.")
@click.option("--days", type=click.FloatRange(0.01, 3660), default=1.0, help="Of traffic.")
@click.option(
    "--load",
    type=click.FloatRange(0.001, 10),
    help="Scale all demands so that the busiest direction of a link is used to this share of its rate at its busiest "
    "hour.  [default: 0.5 for a generated network, what the file says for a file]",
)
@click.option("--demands", type=click.FloatRange(0.01, 100), default=2.0, help="For each node, of a generated network.")
@click.option("--pairs", type=click.IntRange(1, 64), default=4, help="Parallel QKD systems on a trunk hop, generated.")
@click.option("--cuts", type=click.FloatRange(0), default=_USUAL.cuts_per_1000_km_year, help="A year and 1000 km.")
@click.option("--outages", type=click.FloatRange(0), default=_USUAL.outages_per_site_year, help="A year and site.")
@click.option("--step", type=click.FloatRange(1, 3600), default=_USUAL.step_s, help="Seconds.")
@click.option("--runs", type=click.IntRange(1, 10_000), default=1, help="So many seeds, on all processors.")
@click.option("--seed", type=click.IntRange(0), default=1, help="Of the first run.")
@click.option("--dask", help="Address of the scheduler of a Dask cluster that does the runs.")
@options.format_option
def simulate(
    topology: str | None,
    nodes: int | None,
    days: float,
    load: float | None,
    demands: float,
    pairs: int,
    cuts: float,
    outages: float,
    step: float,
    runs: int,
    seed: int,
    dask: str | None,
    format_: str,
) -> None:
    """Simulate days of traffic over TOPOLOGY (a file or a shipped name), or over a backbone of --nodes sites.

    Key-level: links make key at their planned rates, demands relay it along the routes that nodes would take, fibres
    are cut and mended. The same seed gives the same run.
    """
    if (topology is None) == (nodes is None):
        raise RequestRefused("simulate: name a TOPOLOGY, or --nodes of a generated backbone")
    conditions = Conditions(step_s=step, cuts_per_1000_km_year=cuts, outages_per_site_year=outages)
    given = {} if topology is None else network.load(network.find(topology)).to_dict()
    tasks = [
        Task(
            nodes=nodes or 0,
            topology=given,
            seed=seed + number,
            days=days,
            load=0.5 if load is None and nodes else load,
            demands_per_node=demands,
            pairs=pairs,
            conditions=conditions,
        )
        for number in range(runs)
    ]
    found = sorted(run_all(tasks, dask), key=lambda figures: int(str(figures["seed"])))
    if format_ == "json":
        options.print_json(found)
        return
    for figures in found:
        show.console().print(_table(figures))


def _table(figures: dict[str, Any]) -> Table:
    table = Table(title=f"{figures['network']}, seed {figures['seed']}, {figures['days']:g} days", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    rows = (
        ("nodes, links, QKD systems", f"{figures['nodes']:,}, {figures['links']:,}, {figures['systems']:,}"),
        ("fibre", f"{figures['fibre_km']:,.0f} km"),
        ("demands, hops of their routes", f"{figures['demands']:,}, {figures['mean_hops']:.1f}"),
        ("end-to-end key supplied", f"{figures['supplied_bps']:,.0f} bit/s"),
        ("supplied, of what was asked for", f"{100 * figures['served_ratio']:.4f} %"),
        *((f"  {name}", f"{100 * part:.4f} %") for name, part in figures["served_ratio_by_group"].items()),
        ("demands that were never short", f"{100 * figures['demands_never_short']:.2f} %"),
        ("use of a link's direction: median, largest", f"{figures['use_median']:.3f}, {figures['use_largest']:.3f}"),
        ("fibre cuts, sites down", f"{figures['cuts']}, {figures['outages']}"),
        ("routes that changed", f"{figures['rerouted']:,}"),
        ("new routes after one event, at most", f"{1000 * figures['longest_reroute_s']:.0f} ms of this machine"),
        ("speed", f"{figures['times_real_time']:,.0f} times real time"),
    )
    for row in rows:
        table.add_row(*row)
    return table
