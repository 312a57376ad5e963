"""A day in the life of a network, in minutes and with real processes: writes docs/day.md.

    python tools/scripted_day.py [--pause 20] [--write]

Two small rings joined by a trunk, two controllers, four tenants whose applications ask for keys and collect them at the
other end all the time. The day: growth, a cut, an attack, the loss of a node, the loss of the leading controller,
maintenance, recovery; each told to the network by the commands that an operator uses. The report says what each tenant
saw in each part of the day, and which alarms there were. The run fails if a request fails whose two ends are alive.

`--pause`: seconds to look on after each event; 20 on two quiet cores.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtrunk.api.client import Etsi014Client
from qtrunk.base.errors import LabError, QtrunkError
from qtrunk.base.ids import SaeId
from qtrunk.plan.bench.lab import Lab

PAGE = Path(__file__).parents[1] / "docs" / "day.md"
SIMULATED = "<!-- simulated: begin -->"
ASK_EVERY_S = 0.25
WITHIN_S = 300.0
POOL_OCTETS = 2048
NETWORK = """
name = "two-small-rings"
rings = [["beijing", "langfang", "tianjin"], ["nanjing", "suzhou", "shanghai"]]
trunks = [["tianjin", "xuzhou", "nanjing"]MORE]
saes = [
  "ministry@beijing", "province@shanghai", "bank@beijing", "branch@tianjin", "control@langfang", "substation@suzhou",
  "lake@nanjing", "mine@shanghai"EVEN_MORE,
]
[tenants.government]
saes = ["ministry", "province"]
guaranteed_bps = 500
priority = 7
[tenants.finance]
saes = ["bank", "branch"]
priority = 6
[tenants.power]
saes = ["control", "substation"]
priority = 6
[tenants.big-data]
saes = ["lake", "mine"]
priority = 1
[link]
length_km = 20
loss_db = 8
block_s = 1.0
clock_fraction = 0.1
"""
PAIRS = {
    "government": ("ministry", "province"),
    "finance": ("bank", "branch"),
    "power": ("control", "substation"),
    "big-data": ("lake", "mine"),
}
PLACES = {"control": "langfang"}
"""Of the SAEs whose node dies in the course of the day."""


def network(*, is_grown: bool) -> str:
    """The topology before and after growth: one more site closes a way between Suzhou and Shanghai."""
    demands = "".join(f'[[demands]]\nbetween = ["{a}", "{b}"]\nrate_bps = 1000\n' for a, b in PAIRS.values())
    more = (', ["suzhou", "hangzhou", "shanghai"]', ', "archive@hangzhou"') if is_grown else ("", "")
    return NETWORK.replace("EVEN_MORE", more[1]).replace("MORE", more[0]) + demands


@dataclass
class Seen:
    """What one tenant saw in one part of the day."""

    done: int = 0
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)


class Tenant(threading.Thread):
    """Asks at one end and collects at the other, all the time."""

    def __init__(self, name: str, ends: tuple[Etsi014Client, Etsi014Client], pair: tuple[str, str]) -> None:
        super().__init__(daemon=True, name=name)
        self.ends, self.pair = ends, pair
        self.seen: dict[str, Seen] = {}
        self.part = ""
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(ASK_EVERY_S):
            seen, began_s = self.seen.setdefault(self.part, Seen()), time.monotonic()
            try:
                given = self.ends[0].get_keys(SaeId(self.pair[1]), 1, 256)
                found = self.ends[1].get_keys_with_ids(SaeId(self.pair[0]), [key.key_id for key in given])
                if [key.material for key in given] != [key.material for key in found]:
                    raise LabError(f"key {given[0].key_id} differs between the two ends")
                seen.done += 1
            except QtrunkError as error:
                seen.failures.append(str(error))
            seen.slowest_s = max(seen.slowest_s, time.monotonic() - began_s)


class Day:
    """The lab, its tenants, and what happened when."""

    def __init__(self, lab: Lab, file: Path, pause_s: float) -> None:
        self.lab, self.file, self.pause_s = lab, file, pause_s
        self.tenants = [Tenant(name, (self.client(a), self.client(b)), (a, b)) for name, (a, b) in PAIRS.items()]
        self.began_s = time.monotonic()
        self.log: list[tuple[float, str, str]] = []
        self.alarms: dict[tuple[str, str], list[float]] = {}
        self.excused: set[tuple[str, str]] = set()

    def client(self, sae: str) -> Etsi014Client:
        shown = json.loads(self.lab.qtrunk("sae", "show", sae, "--format", "json"))
        places = {name: Path(shown[name]) for name in ("certificate", "private_key", "ca_certificate")}
        return Etsi014Client(kme_url=shown["kme_url"], own_sae=SaeId(sae), timeout_s=10.0, retry_s=0.0, **places)

    def say(self, what: str) -> None:
        self.log.append((time.monotonic() - self.began_s, self.part, what))
        print(f"{self.log[-1][0]:6.1f} s  {what}", flush=True)

    part = ""

    def begin(self, part: str) -> None:
        self.part = part
        for tenant in self.tenants:
            tenant.part = part
        print(f"-- {part}", flush=True)

    def look(self, seconds: float) -> None:
        """Let time pass; note which alarms are up."""
        end_s = time.monotonic() + seconds
        while True:
            self.note_alarms()
            if time.monotonic() >= end_s:
                return
            time.sleep(1.0)

    def note_alarms(self) -> list[dict[str, Any]]:
        found = json.loads(self.asked("alarms", "--roots", "--format", "json"))
        rows = found if isinstance(found, list) else found["alarms"]
        now_s = time.monotonic() - self.began_s
        for row in rows:
            times = self.alarms.setdefault((row["alarm"]["resource"], row["alarm"]["type"]), [now_s, now_s])
            times[1] = now_s
        return rows

    def asked(self, *arguments: str) -> str:
        """Of a command that also answers, with status 1, while a node is away."""
        done = subprocess.run(
            [sys.executable, "-m", "qtrunk.cli.main", *arguments],
            env={**os.environ, "QTRUNK_STATE": str(self.lab.state)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout or "[]"

    def until(self, condition: Callable[[], bool], what: str) -> float:
        began_s = time.monotonic()
        while not condition():
            if time.monotonic() - began_s > WITHIN_S:
                raise LabError(f"{what}: not within {WITHIN_S:.0f} s")
            time.sleep(0.5)
        return time.monotonic() - began_s

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.asked("status", "--format", "json"))
        return found

    def is_supplied(self) -> bool:
        """Whether every pair has a full enough pool at its initiator's node."""
        pools = [pool for node in self.status()["nodes"] for pool in node.get("pools", [])]
        ready = {(pool["initiator"], pool["target"]) for pool in pools if pool["available"] >= POOL_OCTETS}
        return set(PAIRS.values()) <= ready

    def process(self, name: str) -> int:
        return int(self.status()["processes"][name]["pid"])

    def run(self) -> None:
        self.begin("night")
        self.say(f"pools of all tenants filled {self.until(self.is_supplied, 'pools'):.0f} s after the start")
        for tenant in self.tenants:
            tenant.start()
        self.look(self.pause_s)
        for part in (self.growth, self.cut, self.attack, self.node_loss, self.controller_loss, self.maintenance):
            self.begin(part.__name__.replace("_", " "))
            part()
        self.begin("recovery")
        took_s = self.until(lambda: not self.note_alarms(), "all alarms are over")
        self.say(f"the last alarm was over after {took_s:.0f} s more")
        self.look(self.pause_s)
        for tenant in self.tenants:
            tenant.is_over.set()
            tenant.join(30)

    # ── the parts of the day ────────────────────────────────────────────────────────────────────────────────────────

    def growth(self) -> None:
        self.file.write_text(network(is_grown=True))
        said = self.lab.qtrunk("apply", str(self.file)).strip().splitlines()
        self.say(f"`qtrunk apply`: {', '.join(said[:-1])}")
        links = {"suzhou-hangzhou", "hangzhou-shanghai"}

        def has_key() -> bool:
            return links <= {one["link"] for one in self.status()["links"] if one["own_bits"] > 0}

        self.say(f"both new links had key {self.until(has_key, 'key on new links'):.0f} s later")

        archive, mine = self.client("archive"), self.client("mine")

        def is_served() -> bool:
            try:
                given = archive.get_keys(SaeId("mine"), 1, 256)
                return len(mine.get_keys_with_ids(SaeId("archive"), [given[0].key_id])) == 1
            except QtrunkError:
                return False

        self.say(f"the new site's first key {self.until(is_served, 'a key of the new site'):.0f} s after that")
        self.look(self.pause_s)

    def cut(self) -> None:
        self.lab.qtrunk("attack", "beijing-langfang", "cut")
        self.say("the fibre Beijing-Langfang is cut")
        self.look(self.pause_s)
        self.lab.qtrunk("attack", "beijing-langfang", "none")
        self.say("it is spliced")
        self.look(self.pause_s / 2)

    def attack(self) -> None:
        self.lab.qtrunk("attack", "nanjing-suzhou", "intercept-resend")
        self.say("somebody measures and resends every pulse on Nanjing-Suzhou")
        self.look(self.pause_s)
        self.lab.qtrunk("attack", "nanjing-suzhou", "none")
        self.say("the tap is found and taken off")
        self.look(self.pause_s / 2)

    def node_loss(self) -> None:
        self.excused.add(("power", self.part))
        pid = self.process("node-langfang")
        os.kill(pid, signal.SIGSTOP)
        self.say("Langfang stands still: its process answers nobody")
        self.look(self.pause_s)
        os.kill(pid, signal.SIGKILL)
        self.say("Langfang starts anew")
        self.until(lambda: self.process("node-langfang") not in (0, pid), "Langfang is back")
        self.until(lambda: all(one["answers"] for one in self.status()["nodes"]), "Langfang answers")
        self.until(self.is_supplied, "pools after the loss of Langfang")
        self.say("Langfang answers, its tenants' pools are full")

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
        said = self.lab.qtrunk("drain", "langfang", "--for", "1h", "--why", "new rack", "--wait").strip()
        self.say(f"`qtrunk drain langfang --wait`: {said.splitlines()[-1]}")
        self.look(self.pause_s / 2)
        self.lab.qtrunk("undrain", "langfang")
        self.say("`qtrunk undrain langfang`")
        self.look(self.pause_s / 2)

    # ── the report ──────────────────────────────────────────────────────────────────────────────────────────────────

    def wrong(self) -> list[str]:
        """Failures that nothing excuses."""
        return [
            f"{tenant.name}, {part}: {text}"
            for tenant in self.tenants
            for part, seen in tenant.seen.items()
            for text in seen.failures
            if (tenant.name, part) not in self.excused
        ]

    def report(self) -> str:
        parts = list(dict.fromkeys(part for tenant in self.tenants for part in tenant.seen))
        lines = ["| part of the day | " + " | ".join(tenant.name for tenant in self.tenants) + " |"]
        lines.append("| --- " * (1 + len(self.tenants)) + "|")
        for part in parts:
            cells = [self._cell(tenant.seen.get(part, Seen())) for tenant in self.tenants]
            lines.append(f"| {part} | " + " | ".join(cells) + " |")
        lines += ["", "| at | part | what happened |", "| --- | --- | --- |"]
        lines += [f"| {at_s:.0f} s | {part} | {what} |" for at_s, part, what in self.log]
        lines += ["", "| alarm (roots only) | of | seen up from | to |", "| --- | --- | --- | --- |"]
        lines += [
            f"| `{type_}` | {resource} | {up_s:.0f} s | {down_s:.0f} s |"
            for (resource, type_), (up_s, down_s) in sorted(self.alarms.items(), key=lambda one: one[1])
        ]
        return "\n".join(lines) + "\n"

    @staticmethod
    def _cell(seen: Seen) -> str:
        failed = f", **{len(seen.failures)} failed**" if seen.failures else ""
        return f"{seen.done} keys{failed}, slowest {1000 * seen.slowest_s:.0f} ms"


HEAD = """# A day of a network

Written by `make day`: two rings of three sites joined by a trunk, every site, fibre and controller a real process, on two cores.
Each tenant asks for a key four times a second and collects it at the other end. The run fails if a request fails whose two ends
are alive; what failed while the tenant's own site was dead is shown, and excused.

Sites: Beijing, Langfang, Tianjin; Xuzhou on the trunk; Nanjing, Suzhou, Shanghai. Tenants: government from Beijing to Shanghai, over the
trunk; finance within the northern ring; power from Langfang (which dies) to Suzhou; big data within the southern ring.

"""


def main() -> int:
    """Run the day."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pause", type=float, default=20.0)
    parser.add_argument("--write", action="store_true", help="docs/day.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qtrunk-day") as directory:
        file = Path(directory) / "network.toml"
        file.write_text(network(is_grown=False))
        lab = Lab(Path(directory) / "lab")
        lab.qtrunk("up", str(file), "--controllers", "2", "--detach")
        try:
            day = Day(lab, file, options.pause)
            day.run()
        finally:
            lab.qtrunk("down")
    print(day.report())
    wrong = day.wrong()
    for text in wrong[:20]:
        print(f"FAILED: {text}", file=sys.stderr)
    if options.write and not wrong:
        # What tools/simulated_day.py has put behind it stays.
        behind = PAGE.read_text(encoding="utf-8").partition(SIMULATED)[1:] if PAGE.exists() else ()
        PAGE.write_text(HEAD + day.report() + "".join(behind), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
