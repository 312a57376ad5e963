"""What the shipped networks take on this machine with real processes: writes a table of docs/topology.md.

    python tools/shipped_labs.py [NAME ...] [--write]

Each is started by `qtrunk up NAME`, one after the other, as its file is. Measured: until it is up; until all links are
active; until a key of the pair of its first demand was had at both ends; then memory and processor of all its processes
together while nobody asks for keys. Status 1 where that is not reached within ten minutes.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qtrunk.api.client import Etsi014Client
from qtrunk.base.errors import LabError, QtrunkError
from qtrunk.base.ids import SaeId
from qtrunk.cli.labclient import LabClient
from qtrunk.node.lab import Lab
from qtrunk.plan.bench import lab as bench

PAGE = Path(__file__).parents[1] / "docs" / "topology.md"
BEGIN, END = "<!-- shipped labs: begin -->\n", "<!-- shipped labs: end -->\n"
NAMES = ("beijing-xiongan", "nanjing-shanghai", "beijing-tianjin-hebei-ring", "yangtze-delta-ring", "two-rings")
WITHIN_S, LOOK_S, REST_S = 600.0, 2.0, 60.0
KEY_BITS = 256
HEAD = """`python tools/shipped_labs.py --write` measured this on {cores} cores:

| name | processes | up after | all links active after | first key after | memory | processor at rest |
| --- | --- | --- | --- | --- | --- | --- |
"""


def client(lab: bench.Lab, sae: str) -> Etsi014Client:
    """An SAE of a running lab, without a second try."""
    shown = json.loads(lab.qtrunk("sae", "show", sae, "--format", "json"))
    return Etsi014Client(
        kme_url=shown["kme_url"],
        own_sae=SaeId(sae),
        certificate=Path(shown["certificate"]),
        private_key=Path(shown["private_key"]),
        ca_certificate=Path(shown["ca_certificate"]),
        timeout_s=10.0,
        retry_s=0.0,
    )


def exchange(ends: tuple[Etsi014Client, Etsi014Client]) -> None:
    """One key at both ends; QtrunkError where it was not given or is not the same."""
    given = ends[0].get_keys(ends[1].own_sae, 1, KEY_BITS)
    found = ends[1].get_keys_with_ids(ends[0].own_sae, [key.key_id for key in given])
    if [key.material for key in given] != [key.material for key in found]:
        raise LabError(f"key {given[0].key_id} differs between the two ends")


def all_active(asked: LabClient) -> bool:
    """Whether every link makes key."""
    links = asked.status()["links"]
    assert isinstance(links, list)
    return all(one["state"] == "ACTIVE" for one in links)


def row(name: str, state: Path) -> str:
    """One network, from start to stop."""
    lab, began_s = bench.Lab(state), time.monotonic()
    lab.qtrunk("up", name, "--detach")
    try:
        up_s = time.monotonic() - began_s
        known = Lab.open(state)
        asked = LabClient(known)
        until(lambda: all_active(asked), f"{name}: all links are active")
        active_s = time.monotonic() - began_s
        one, other = known.topology.demands[0].between
        ends = client(lab, one), client(lab, other)
        until(lambda: is_served(ends), f"{name}: a key of {one} and {other}")
        served_s = time.monotonic() - began_s
        percent, octets = lab.at_rest(REST_S)
        processes = 1 + len(known.process_names())
    finally:
        lab.qtrunk("down")
    times = f"{up_s:.0f} s | {active_s:.0f} s | {served_s:.0f} s"
    return f"| `{name}` | {processes} | {times} | {octets / 1e9:.1f} GB | {percent:.0f} % of one core |\n"


def is_served(ends: tuple[Etsi014Client, Etsi014Client]) -> bool:
    """Whether a key could be had."""
    try:
        exchange(ends)
    except QtrunkError:
        return False
    return True


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait; LabError after WITHIN_S."""
    deadline_s = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise LabError(f"{what}: not within {WITHIN_S:.0f} s")
        time.sleep(LOOK_S)


def main() -> int:
    """Measure them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; without: all of them")
    parser.add_argument("--write", action="store_true", help="docs/topology.md: these rows; the others stay")
    options = parser.parse_args()
    strange = [name for name in options.names if name not in NAMES]
    if strange:
        parser.error(f"NAME: {', '.join(strange)}: choose from {', '.join(NAMES)}")
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    table, _, behind = rest.partition(END)
    rows = {found[1]: found[0] for found in re.finditer(r"^\| `([^`]+)` \|.*\n", table, re.MULTILINE)}
    for name in options.names or NAMES:
        with tempfile.TemporaryDirectory(prefix="qtrunk-lab") as directory:
            try:
                rows[name] = row(name, Path(directory) / "lab")
            except LabError as error:
                print(f"FAILED: {error}", file=sys.stderr)
                return 1
        print(rows[name], end="", flush=True)
    if options.write:
        made = HEAD.format(cores=os.cpu_count()) + "".join(rows[name] for name in NAMES if name in rows)
        PAGE.write_text(before + BEGIN + made + END + behind, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
