"""What a national network costs by its size: writes docs/scale.md. Some minutes on two cores.

python tools/scale_study.py [--sizes 100 300 1000 3000 10000] [--seeds 3] [--days 1] [--dask ADDRESS]
"""

import argparse
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np

from qtrunk.plan.scale.keyflow import Conditions
from qtrunk.plan.scale.runs import Task, run_all

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"


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


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000, 3000, 10000])
    options.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.9])
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--days", type=float, default=1.0)
    options.add_argument("--dask")
    chosen = options.parse_args()
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
        "",
    ]
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    PAGE.write_text(head + BEGIN + "\n".join(told) + END + rest.split(END)[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
