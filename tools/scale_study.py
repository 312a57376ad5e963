"""What a national network costs by its size, and how long its controller plans: writes docs/scale.md. Some minutes on
two cores.

python tools/scale_study.py [--sizes 100 300 1000 3000 10000] [--seeds 3] [--days 1] [--dask ADDRESS]
python tools/scale_study.py --only planning [--planned 1000 10000]
"""

import argparse
import sys
import time
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import numpy as np

from qtrunk.base.ids import SaeId
from qtrunk.control.controller import Controller
from qtrunk.control.telemetry import LinkTelemetry, Telemetry
from qtrunk.plan.scale.demands import generated
from qtrunk.plan.scale.keyflow import Conditions
from qtrunk.plan.scale.recipe import backbone
from qtrunk.plan.scale.runs import Task, run_all
from qtrunk.relay.disjoint import disjoint_routes
from qtrunk.relay.graph import graph_of
from qtrunk.topology import Demand, Sae, Topology

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"
PLANNED, PLANNED_END = "<!-- planned -->\n", "<!-- planned end -->\n"
SAMPLE = 200
"""Pairs that a controller's planning is timed with."""


def rows(figures: list[dict], sizes: list[int], loads: list[float]) -> list[str]:
    lines = [
        (
            "| nodes | load | links | QKD systems | fibre, 1000 km | hops | key supplied, kbit/s | per system, bit/s | "
            "supplied of asked | demands never short | cuts + outages a day | slowest rerouting | times real time |"
        ),
        "| --- " * 13 + "|",
    ]
    for size, load in product(sizes, loads):
        of_it = [one for one in figures if one["nodes"] == size and one["load"] == load]

        def mean(name: str, of_it: list[dict] = of_it) -> float:
            return float(np.mean([one[name] for one in of_it]))

        lines.append(
            f"| {size:,} | {load:g} | {mean('links'):,.0f} | {mean('systems'):,.0f} | {mean('fibre_km') / 1000:,.1f} "
            f"| {mean('mean_hops'):.1f} | {mean('supplied_bps') / 1000:,.0f} "
            f"| {mean('supplied_bps') / mean('systems'):.1f} | {100 * mean('served_ratio'):.3f} % "
            f"| {100 * mean('demands_never_short'):.1f} % | {(mean('cuts') + mean('outages')) / mean('days'):.1f} "
            f"| {mean('longest_reroute_s'):.2f} s | {mean('times_real_time'):,.0f} |"
        )
    return lines


def planning(size: int) -> str:
    """A row: CPU time of one controller, with SAMPLE of the network's pairs, for all of them."""
    made = backbone(size)
    graph = graph_of(made.topology)
    asked = generated(made, 2 * size, graph.index)
    pairs = sorted(
        {(min(a, b), max(a, b)) for a, b in zip(asked.sources.tolist(), asked.targets.tolist(), strict=True)}
    )
    chosen = pairs[:: max(1, len(pairs) // SAMPLE)]
    saes = {node.id: Sae(id=SaeId(f"at-{node.id}"), node=node.id) for node in made.topology.nodes}
    ends = [tuple(saes[graph.nodes[place]].id for place in pair) for pair in chosen]
    network = Topology(
        name=made.topology.name,
        nodes=made.topology.nodes,
        links=made.topology.links,
        saes=tuple(saes.values()),
        demands=tuple(Demand(between=pair, rate_bps=1.0) for pair in ends),
    )
    controller = Controller("study", network, lambda a, b, n, away: disjoint_routes(network, a, b, n, away))
    began_s = time.process_time()
    controller.prepare()
    first_s = (time.process_time() - began_s) * len(pairs) / len(chosen)
    controller.lead(1, 1)
    controller.tick(0.0)
    before = {node: dict(routes) for node, routes in controller.routes.items()}
    hops = Counter(frozenset(hop) for by in before.values() for rows in by.values() for hop in pairwise(rows[0]))
    link = network.link_between(*max(hops, key=lambda hop: hops[hop]))
    dead = LinkTelemetry(link=link.id, role="alice", state="OFF")
    controller.note(Telemetry(node=link.alice, links=[dead]), 1.0)
    began_s = time.process_time()
    controller.tick(1.0)
    again_s = (time.process_time() - began_s) * len(pairs) / len(chosen)
    changed = sum(before[a].get(b) != rows for a, by in controller.routes.items() for b, rows in by.items())
    two = sum(len(rows) > 1 for by in before.values() for rows in by.values())
    controller.note(Telemetry(node=link.alice), 2.0)
    began_s = time.process_time()
    controller.tick(2.0)
    back_s = (time.process_time() - began_s) * len(pairs) / len(chosen)
    assert controller.routes == before, "a link that is back must give the usual plan back"
    return (
        f"| {size:,} | {len(network.links):,} | {len(pairs):,} | {50 * two / len(chosen):.0f} % | {first_s:,.1f} s | "
        f"{1000 * first_s / len(pairs):.1f} ms | {50 * changed / len(chosen):.1f} % | {again_s:,.1f} s | {back_s:,.1f} s |"
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000, 3000, 10000])
    options.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.9])
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--days", type=float, default=1.0)
    options.add_argument("--dask")
    options.add_argument("--only", choices=["traffic", "planning"])
    options.add_argument("--planned", type=int, nargs="+", default=[1000, 10000], help="sizes for the controller")
    chosen = options.parse_args()
    if chosen.only != "planning":
        traffic(chosen)
    if chosen.only != "traffic":
        head = (
            "| nodes | links | pairs | with two routes | plan of all pairs | one pair | pairs changed by the worst cut | "
            "plan after it | plan when it is mended |"
        )
        put(PLANNED, PLANNED_END, [head, "| --- " * 9 + "|", *map(planning, chosen.planned)])
    return 0


def put(begin: str, end: str, lines: list[str]) -> None:
    """Into the page, between two marks."""
    head, rest = PAGE.read_text().split(begin)
    PAGE.write_text(head + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1])


def traffic(chosen: argparse.Namespace) -> None:
    """Days of keys, by size and load."""
    began = time.monotonic()
    tasks = [
        Task(nodes=size, seed=seed, days=chosen.days, load=load)
        for size, load, seed in product(reversed(chosen.sizes), chosen.loads, range(1, chosen.seeds + 1))
    ]
    figures = []
    for one in run_all(tasks, chosen.dask):
        figures.append(one)
        print(one["network"], one["load"], f"{one['seconds']:.0f} s", flush=True)
    usual = Conditions()
    told = [
        (
            f"{len(tasks)} runs of {chosen.days:g} day(s), {chosen.seeds} seeds each, in {time.monotonic() - began:.0f} s of two cores "
            f"({time.strftime('%Y-%m-%d')}). Steps of {usual.step_s:g} s; {usual.cuts_per_1000_km_year:g} cuts a year and 1000 km, mended in "
            f"{usual.mending_s / 3600:g} h; {usual.outages_per_site_year:g} outages a year and site of {usual.outage_s / 3600:g} h; pools of links hold "
            f"{usual.pool_s / 3600:g} h. Two demands for each node; four systems on each trunk hop, one on each hop of a ring."
        ),
        "",
        *rows(figures, chosen.sizes, chosen.loads),
    ]
    put(BEGIN, END, told)


if __name__ == "__main__":
    sys.exit(main())
