"""How fast a shipped topology runs as a simulated network, and what bounds it: `python tools/simulation_speed.py`.

Each link is fed by a simulated vendor box (a block of 4 KiB each second), pools are filled for the file's demands, no
faults (but for `--cuts`), nobody asks for keys. Prints virtual seconds per second of processor time while all is filled
for the first time, and at rest, and where the time at rest goes.
"""

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import time
from dataclasses import replace

from qtrunk.config import network
from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.scenario import vendor_link
from qtrunk.sim.network.trial import Trial
from qtrunk.sim.soak import same_order

STILL_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description="speed of a simulated network")
    parser.add_argument("topology", nargs="?", default="two-rings")
    parser.add_argument("--seconds", type=float, default=3600.0, help="virtual, at rest")
    parser.add_argument("--warm", type=float, default=900.0, help="virtual seconds before it is at rest")
    parser.add_argument("--cuts", type=int, default=0, help="ways that stand still meanwhile, each for two minutes")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true", help="times real time alone, as JSON")
    options = parser.parse_args()
    same_order()
    topology = network.load(network.find(options.topology))
    links = tuple(replace(vendor_link(link.alice, link.bob), id=link.id) for link in topology.links)
    trial = Trial(replace(topology, links=links), Dice("speed"), block_s=1.0)
    dice = Dice("cuts")
    marks: list[tuple[float, float, int]] = []

    def mark() -> None:
        marks.append((trial.loop.time(), time.process_time(), trial.weather.frames))

    async def work() -> None:
        mark()
        await asyncio.sleep(options.warm)
        mark()
        if options.profile:
            profile.enable()
        for _ in range(options.cuts):
            link = dice.pick(topology.links)
            await asyncio.sleep(options.seconds / options.cuts - STILL_S)
            trial.weather.still(link.alice, link.bob)
            await asyncio.sleep(STILL_S)
            trial.weather.heal(link.alice, link.bob)
        if not options.cuts:
            await asyncio.sleep(options.seconds)
        profile.disable()
        mark()

    profile = cProfile.Profile(time.process_time)
    trial.run(work())
    found: dict[str, float] = {}
    lines = [f"{options.topology}: {len(topology.nodes)} nodes, {len(topology.links)} links"]
    for name, (from_s, from_cpu_s, before), (to_s, to_cpu_s, frames) in zip(
        ("filling", "at rest"), marks[:-1], marks[1:], strict=True
    ):
        took_s, span_s = to_cpu_s - from_cpu_s, to_s - from_s
        found[name] = span_s / took_s
        lines.append(
            f"{name}: {span_s:.0f} virtual seconds in {took_s:.2f} s of processor time, {span_s / took_s:.1f} times real "
            f"time; {(frames - before) / span_s:.0f} frames a second (load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores)"
        )
    print(json.dumps(found) if options.json else "\n".join(lines))
    if options.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
