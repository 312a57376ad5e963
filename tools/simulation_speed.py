"""How fast `two-rings` runs as a simulated network, and what bounds it: `python tools/simulation_speed.py`.

The shipped topology, each link fed by a simulated vendor box, pools kept filled for the file's demands, no faults. Prints
virtual seconds per second of processor time, and where that time goes.
"""

import argparse
import asyncio
import cProfile
import os
import pstats
import time
from dataclasses import replace

from qtrunk.config import network
from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.scenario import vendor_link
from qtrunk.sim.network.trial import Trial
from qtrunk.sim.soak import same_order


def main() -> None:
    parser = argparse.ArgumentParser(description="speed of a simulated network")
    parser.add_argument("topology", nargs="?", default="two-rings")
    parser.add_argument("--seconds", type=float, default=60.0, help="virtual")
    parser.add_argument("--warm", type=float, default=20.0, help="virtual seconds before it is measured")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    same_order()
    topology = network.load(network.find(options.topology))
    links = tuple(replace(vendor_link(link.alice, link.bob), id=link.id) for link in topology.links)
    trial = Trial(replace(topology, links=links), Dice("speed"), block_s=8.0)
    marks: list[tuple[float, float]] = []

    async def work() -> None:
        await asyncio.sleep(options.warm)
        marks.append((trial.loop.time(), time.process_time()))
        if options.profile:
            profile.enable()
        await asyncio.sleep(options.seconds)
        profile.disable()
        marks.append((trial.loop.time(), time.process_time()))

    profile = cProfile.Profile(time.process_time)
    trial.run(work())
    (from_s, from_cpu_s), (to_s, to_cpu_s) = marks
    took_s = to_cpu_s - from_cpu_s
    print(
        f"{options.topology}: {len(topology.nodes)} nodes, {len(topology.links)} links: {to_s - from_s:.0f} virtual seconds in "
        f"{took_s:.2f} s of processor time, {(to_s - from_s) / took_s:.1f} times real time; {trial.weather.frames} frames "
        f"(load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores)"
    )
    if options.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
