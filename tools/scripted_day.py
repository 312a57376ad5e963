"""A day in the life of a shipped network, shortened to minutes and with real processes: writes docs/day.md.

    python tools/scripted_day.py [two-rings] [--clock-fraction F] [--pause 20] [--write]

Every site, every fibre and both controllers are a process each. The day is that of tools/simulated_day.py, of the same
script (`sim.network.day`): growth, a cut, an attack, the loss of a node, the loss of the leading controller,
maintenance, recovery, each told to the network by the commands that an operator uses; tenants ask for keys at one end
and collect them at the other all the time. Status 1 where a request failed whose two ends were alive,
or where alarms of the day's events stay.

`--pause`: seconds to look on after each event. `--clock-fraction`: what the fibres run at, in place of the topology's.
"""

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shipped_labs import KEY_BITS, client, exchange, is_served

from qtrunk.api.client import Etsi014Client
from qtrunk.base.errors import LabError, QtrunkError
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.cli.alarms import rows_of
from qtrunk.cli.labclient import LabClient
from qtrunk.node.lab import Lab
from qtrunk.plan.bench import lab as bench
from qtrunk.sim.network.day import POOL_OCTETS, SCRIPTS, Script
from qtrunk.sim.network.diary import Diary, Seen
from qtrunk.sim.network.scenario import STANDING_ALARMS
from qtrunk.topology import Topology

PAGE = Path(__file__).parents[1] / "docs" / "day.md"
SIMULATED = "<!-- simulated: begin -->"
WITHIN_S = 600.0
LOOK_S, REST_S, RECOVERED_S = 10.0, 30.0, 420.0
BEYOND = 2.0
"""Tenants ask for so many times what they are guaranteed, at the share of the clock that the fibres run at."""
GROWN = """
name = "{name}"
title = "{title}"
include = ["{name}"]
trunks = [["{one}", "new-site", "{other}"]]
saes = ["{newcomer}@new-site"]
[nodes.new-site]
[link]
length_km = 40
loss_db = 9
clock_fraction = {clock_fraction}
block_s = {block_s}
latency_s = {latency_s}
"""
"""The shipped network and one site more, which closes another way between two neighbours."""


def grown(topology: Topology, script: Script) -> str:
    """The file of the network with its new site, whose links are as those of the others."""
    like = topology.link(LinkId(script.attacked))
    one, other = script.growth
    return GROWN.format(
        name=topology.name,
        title=topology.title,
        one=one,
        other=other,
        newcomer=script.newcomer,
        clock_fraction=like.equipment.clock_fraction,
        block_s=like.equipment.block_s,
        latency_s=like.distillation.latency_s,
    )


def every_s(topology: Topology, sae: SaeId) -> float:
    """From one request of a tenant to the next."""
    return KEY_BITS / (BEYOND * topology.tenant_of(sae).guaranteed_bps)


class Tenant(threading.Thread):
    """Asks at one end and collects at the other, all the time."""

    def __init__(self, ends: tuple[Etsi014Client, Etsi014Client], every_s: float) -> None:
        super().__init__(daemon=True, name=ends[0].own_sae)
        self.ends, self.every_s = ends, every_s
        self.pair = (ends[0].own_sae, ends[1].own_sae)
        self.seen: dict[str, Seen] = {}
        self.part = ""
        self.is_over = threading.Event()

    def run(self) -> None:
        began_s = time.monotonic()
        while not self.is_over.wait(self.every_s):
            seen, asked_s = self.seen.setdefault(self.part, Seen()), time.monotonic()
            try:
                exchange(self.ends)
                seen.done += 1
            except QtrunkError as error:
                seen.failures.append((self.part, f"{time.monotonic() - began_s:.0f} s: {error}"))
            seen.slowest_s = max(seen.slowest_s, time.monotonic() - asked_s)


class Day:
    """The lab, its tenants, and what happened when."""

    def __init__(self, state: Path, script: Script, pause_s: float) -> None:
        self.run_of, self.script, self.pause_s = bench.Lab(state), script, pause_s
        self.client = LabClient(Lab.open(state))
        self.begun, self.processes = self.client.lab.topology, 1 + len(self.client.lab.process_names())
        self.tenants = [
            Tenant((client(self.run_of, one), client(self.run_of, other)), every_s(self.begun, SaeId(one)))
            for one, other in script.pairs
        ]
        self.diary = Diary(seen={tenant.pair: tenant.seen for tenant in self.tenants})
        self.began_s = time.monotonic()
        self.part = ""
        self.left: list[str] = []
        """Alarms that were not up before the day's events, and stayed."""
        self.percent, self.octets = 0.0, 0
        """Of one core, and of memory: what all processes take before anybody asks."""

    def say(self, what: str) -> None:
        now_s = time.monotonic() - self.began_s
        self.diary.log.append((now_s, self.part, what))
        print(f"{now_s:6.1f} s  {what}  (load {os.getloadavg()[0]:.1f})", flush=True)

    def begin(self, part: str) -> None:
        self.part = part
        for tenant in self.tenants:
            tenant.part = part
        print(f"-- {part}", flush=True)

    def look(self, seconds: float) -> None:
        """Let time pass; note which alarms are up."""
        end_s = time.monotonic() + seconds
        while True:
            self.alarms()
            if time.monotonic() >= end_s:
                return
            time.sleep(LOOK_S)

    def alarms(self) -> list[tuple[str, str]]:
        """Which are up, roots alone: their resources and types."""
        rows, _ = rows_of(self.client.services, self.client.lab.topology)
        found = [row.alarm for row in rows if not row.depth and not row.alarm.is_cleared]
        up = [(one.resource, one.type) for one in found if one.type not in STANDING_ALARMS]
        self.diary.note_alarms(up, time.monotonic() - self.began_s)
        return up

    def until(self, condition: Callable[[], bool], what: str) -> float:
        began_s = time.monotonic()
        while not condition():
            self.alarms()
            if time.monotonic() - began_s > WITHIN_S:
                raise LabError(f"{what}: not within {WITHIN_S:.0f} s")
            time.sleep(LOOK_S)
        return time.monotonic() - began_s

    def status(self) -> dict[str, Any]:
        return self.client.status()

    def link(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(one for one in self.status()["links"] if one["link"] == name)
        return found

    def is_supplied(self) -> bool:
        """Whether every pair has a full enough pool at its initiator's node."""
        pools = [pool for node in self.status()["nodes"] for pool in node.get("pools", [])]
        ready = {(pool["initiator"], pool["target"]) for pool in pools if pool["available"] >= POOL_OCTETS}
        return set(self.script.pairs) <= ready

    def is_ready(self) -> bool:
        """Whether the links that are cut and attacked are in service."""
        return all(self.link(name)["state"] == "ACTIVE" for name in (self.script.cut, self.script.attacked))

    def active(self) -> str:
        """How many links make key."""
        states = [one["state"] for one in self.status()["links"]]
        return f"{states.count('ACTIVE')} of {len(states)} links are active"

    def process(self, name: str) -> int:
        return int(self.status()["processes"][name]["pid"])

    def run(self) -> None:
        self.begin("night")
        took_s = self.until(self.is_supplied, "pools")
        self.say(f"pools of all tenants filled {took_s:.0f} s after the start; {self.active()}")
        took_s = self.until(self.is_ready, f"links {self.script.cut} and {self.script.attacked}")
        self.say(f"what the day is about is active {took_s:.0f} s later; {self.active()}")
        self.percent, self.octets = self.run_of.at_rest(REST_S)
        print(f"at rest {self.percent:.0f} % of one core, {self.octets / 1e9:.1f} GB", flush=True)
        self.diary.asked_s = time.monotonic() - self.began_s
        for tenant in self.tenants:
            tenant.start()
        self.look(self.pause_s)
        self.standing = set(self.alarms())
        for part in (self.growth, self.cut, self.attack, self.node_loss, self.controller_loss, self.maintenance):
            self.begin(part.__name__.replace("_", " "))
            part()
        self.begin("recovery")
        took_s, self.left = self.recover()
        what = f"alarms of {', '.join(self.left)} are left" if self.left else "all alarms are over"
        self.say(f"after {took_s:.0f} s more {what}")
        self.look(self.pause_s)
        for tenant in self.tenants:
            tenant.is_over.set()
            tenant.join(30)

    def recover(self) -> tuple[float, list[str]]:
        """Until no alarm is up that was not up at night, but not for ever; the seconds, and what is left."""
        began_s = time.monotonic()
        while True:
            left = sorted({f"`{type_}` on {resource}" for resource, type_ in set(self.alarms()) - self.standing})
            took_s = time.monotonic() - began_s
            if not left or took_s > RECOVERED_S:
                return took_s, left
            time.sleep(LOOK_S)

    # ── the parts of the day ────────────────────────────────────────────────────────────────────────────────────────

    def growth(self) -> None:
        script, topology = self.script, self.client.lab.topology
        file = self.client.lab.state.parent / "grown.toml"
        file.write_text(grown(topology, script))
        began_s = time.monotonic()
        said = self.run_of.qtrunk("apply", str(file)).strip().splitlines()
        self.say(f"`qtrunk apply`: {', '.join(said[:-1])}; in force after {time.monotonic() - began_s:.0f} s")
        self.client = LabClient(Lab.open(self.client.lab.state))
        links = {str(link.id) for link in self.client.lab.topology.links_of(NodeId("new-site"))}

        def has_key() -> bool:
            return links <= {one["link"] for one in self.status()["links"] if one.get("own_bits", 0) > 0}

        self.say(f"both new links had key {self.until(has_key, 'key on new links'):.0f} s later")
        target = script.pairs[0][1]
        ends = client(self.run_of, script.newcomer), client(self.run_of, target)
        took_s = self.until(lambda: is_served(ends), "a key of the new site")
        self.say(f"{script.newcomer} had its first key with {target} {took_s:.0f} s after that")
        self.look(self.pause_s)

    def cut(self) -> None:
        self.on_fibre(self.script.cut, "cut", "the fibre {} is cut", "it is spliced")

    def attack(self) -> None:
        begins, ends = "somebody measures and resends every pulse on {}", "the tap is found and taken off"
        self.on_fibre(self.script.attacked, "intercept-resend", begins, ends)

    def on_fibre(self, link: str, kind: str, begins: str, ends: str) -> None:
        self.run_of.qtrunk("attack", link, kind)
        self.say(begins.format(link))
        took_s = self.until(lambda: self.link(link)["state"] == "OFF", f"link {link} is OFF")
        self.say(f"it is seen {took_s:.0f} s later; the link is OFF, routes leave it")
        self.look(self.pause_s)
        self.run_of.qtrunk("attack", link, "none")
        self.say(ends)
        self.look(self.pause_s / 2)

    def node_loss(self) -> None:
        name = self.script.lost
        for sae in (sae.id for sae in self.client.lab.topology.saes if sae.node == name):
            self.diary.excused.add((self.part, sae))
        pid = self.process(f"node-{name}")
        os.kill(pid, signal.SIGSTOP)
        self.say(f"{name} stands still: its process answers nobody")
        self.look(self.pause_s)
        os.kill(pid, signal.SIGKILL)
        self.say(f"{name} starts anew")
        self.until(lambda: self.process(f"node-{name}") not in (0, pid), f"{name} is back")
        self.until(lambda: all(one["answers"] for one in self.status()["nodes"]), f"{name} answers")
        self.until(self.is_supplied, f"pools after the loss of {name}")
        self.say(f"{name} answers, its tenants' pools are full enough")

    def controller_loss(self) -> None:
        leader = self.leader()
        os.kill(self.process(leader), signal.SIGKILL)
        self.say(f"{leader}, which leads, is killed")
        self.look(self.pause_s)
        self.say(f"{self.leader()} leads")

    def leader(self) -> str:
        def leading() -> list[str]:
            return [str(one["controller"]) for one in self.status()["controllers"] if one["is_leading"]]

        self.until(lambda: len(leading()) == 1, "one controller leads")
        return leading()[0]

    def maintenance(self) -> None:
        name, began_s = self.script.drained, time.monotonic()
        said = self.run_of.qtrunk("drain", name, "--for", "1h", "--why", "new rack", "--wait").strip().splitlines()
        self.say(f"`qtrunk drain {name} --wait`, after {time.monotonic() - began_s:.0f} s: {said[-1]}")
        self.look(self.pause_s)
        self.run_of.qtrunk("undrain", name)
        self.say(f"`qtrunk undrain {name}`")
        self.look(self.pause_s / 2)


HEAD = """# A day of a network

Written by `make day`: the shipped topology `{name}` with real processes, {processes} of them on {cores} cores: {nodes} sites, {links} fibres
at {share:g} % of their clock, two controllers. Each tenant asks for a key at one end and collects it at the other, {beyond:g} times as
much as it is guaranteed: every {quick_s:.0f} to {slow_s:.0f} s. The run fails if a request fails whose two ends are alive, or if alarms of the day's
events stay; what failed while the tenant's own site was dead is shown, and excused. A cell is the keys that
both ends had, and how long the slowest took. At such a share of the clock a block is {block_s:g} to {latency_s:g} s of light,
which is how long somebody on the fibre may go unseen: at the whole clock it is seconds. A cut is seen at once;
the run looks every {look_s:.0f} s.

The lab was up {up_s:.0f} s after `qtrunk up`. With all links active and before any tenant asked, its processes took {percent:.0f} % of one core
and {gigabytes:.1f} GB of memory together.

"""


def main() -> int:
    """Run the day."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topology", nargs="?", default="two-rings", choices=sorted(SCRIPTS))
    parser.add_argument("--clock-fraction", type=float, metavar="F")
    parser.add_argument("--pause", type=float, default=20.0)
    parser.add_argument("--write", action="store_true", help="docs/day.md")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="qtrunk-day") as directory:
        state = Path(directory) / "lab"
        lab, began_s = bench.Lab(state), time.monotonic()
        share = [] if options.clock_fraction is None else ["--clock-fraction", str(options.clock_fraction)]
        lab.qtrunk("up", options.topology, "--controllers", "2", *share, "--detach")
        up_s = time.monotonic() - began_s
        print(f"up after {up_s:.0f} s", flush=True)
        try:
            day = Day(state, SCRIPTS[options.topology], options.pause)
            try:
                day.run()
            finally:
                # Also of a day that somebody ends before its time.
                wrong = [*day.diary.wrong(), *(f"{alarm} is left" for alarm in day.left)]
                print(day.diary.report())
                for text in wrong[:20]:
                    print(f"FAILED: {text}", file=sys.stderr, flush=True)
        finally:
            lab.qtrunk("down")
    if options.write and not wrong:
        # What tools/simulated_day.py has put behind it stays.
        behind = PAGE.read_text(encoding="utf-8").partition(SIMULATED)[1:] if PAGE.exists() else ()
        head = HEAD.format(
            name=options.topology,
            processes=day.processes,
            cores=os.cpu_count(),
            nodes=len(day.begun.nodes),
            links=len(day.begun.links),
            share=100 * day.begun.links[0].equipment.clock_fraction,
            block_s=day.begun.links[0].equipment.block_s,
            latency_s=day.begun.links[0].distillation.latency_s,
            beyond=BEYOND,
            quick_s=min(tenant.every_s for tenant in day.tenants),
            slow_s=max(tenant.every_s for tenant in day.tenants),
            look_s=LOOK_S,
            up_s=up_s,
            percent=day.percent,
            gigabytes=day.octets / 1e9,
        )
        PAGE.write_text(head + day.diary.report() + "".join(behind), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
