"""Processes: whether they run, whether they stay up, what they say is wrong, and whether their memory is their own."""

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from qtrunk.cli.doctor.finding import Finding, error, warning
from qtrunk.cli.doctor.site import Site, start_of
from qtrunk.node.keys import SEALED
from qtrunk.node.supervisor import running_state

LOCK_OCTETS_MIN = 8 << 20
"""What a node should be allowed to lock: the usual limit, which is enough for a small one."""
RAISE_LIMIT = "raise RLIMIT_MEMLOCK (LimitMEMLOCK=infinity in a systemd unit, ulimit -l), start the node again"
RECENT_S = 3600.0
"""A process that has lived so long since its last start is no matter of concern any more."""
SEVERE = ("critical", "major")


def check_processes(site: Site) -> Iterator[Finding]:
    """The supervisor of a lab and its children."""
    assert site.lab is not None
    state = running_state(site.lab.state)
    if state is None:
        on = f"lab {site.lab.state}"
        if site.is_meant_to_run:
            yield warning(on, "it is just starting", "what follows may be too early", "ask again")
        else:
            why = "no key is made or given out; what needs running nodes was not examined"
            yield warning(on, "it is not up", why, start_of(site.lab))
        return
    for name, child in state.children.items():
        log = f"{site.lab.state}/logs/{name}.out"
        if not is_alive(child["pid"]):
            why = f"it ended {child['restarts']} times and is started again, ever more slowly"
            yield error(f"process {name}", "it does not run", why, f"see the end of {log} and of node.log")
        elif child["restarts"] and (lived_s(child["pid"]) or 0.0) < RECENT_S:
            what = f"it was started again not long ago, as often as {child['restarts']} since the lab came up"
            yield warning(f"process {name}", what, "each start costs key that was under way", f"see {log}")


def check_answers(site: Site) -> Iterator[Finding]:
    """Each node's administration interface answers an operator."""
    if site.operator is None:
        yield warning(
            "nodes",
            "they were not asked: no operator's certificate",
            "ledgers, clocks, memory and alarms were not examined",
            "--credentials DIR with cert.pem, key.pem and ca.pem of an operator (`qtrunk enrol join`)",
        )
    for node, answer in site.answers.items():
        if answer.problem:
            why = "its ledger, clock, memory and alarms were not examined"
            yield error(f"node {node}", answer.problem, why, "see the findings on ports, certificates and processes")


def check_alarms(site: Site) -> Iterator[Finding]:
    """What the nodes themselves say is wrong now."""
    seen: set[tuple[str, str]] = set()
    for node, answer in site.answers.items():
        for alarm in answer.status.get("alarms", {}).get("active", []):
            if alarm["type"] == "NodeSealed":
                continue  # the check of vaults says so, with the fix
            key = (str(alarm["resource"]), str(alarm["type"]))
            if key in seen and key[0].startswith(tuple(_links(site))):
                continue  # the same, as the other end sees it
            seen.add(key)
            grade = error if alarm["severity"] in SEVERE else warning
            why = f"{alarm['severity']} alarm {alarm['type']}, raised {alarm['count']} times"
            fix = "it clears by itself once the cause is gone; see `qtrunk status` and node.log"
            yield grade(f"node {node}, {alarm['resource']}", str(alarm["text"]), why, fix)


def check_vault(site: Site) -> Iterator[Finding]:
    """Nodes are in service, and their keys not open to whoever has the disk."""
    for node, answer in site.answers.items():
        on, vault = f"node {node}", answer.status.get("vault", {})
        if answer.status.get("state") == SEALED:
            fix = f"qtrunk vault unseal, or shares of as many people as it needs (qtrunk vault status --node {node})"
            yield error(on, "it is sealed", "no key is made or given out there", fix)
        if "problem" in vault:
            why = "the node cannot be unsealed when it starts again"
            yield error(on, str(vault["problem"]), why, "qtrunk vault restore, from a backup")
        if site.lab is None and any(entry["is_laboratory"] for entry in vault.get("unsealers", [])):
            what = "its keys open with a file on its own disk"
            fix = "qtrunk vault init, with unsealers of people or a token; then qtrunk vault remove"
            yield warning(on, what, "who has the disk has all keys that are stored; that is for laboratories", fix)


def check_memory(site: Site) -> Iterator[Finding]:
    """Secrets lie in locked pages, and nothing of a node's memory reaches a disk."""
    for node, answer in site.answers.items():
        memory = answer.status.get("memory")
        if not isinstance(memory, dict):
            continue
        on, secrets = f"node {node}", memory["secrets"]
        if secrets["unlocked"]:
            what = f"{secrets['unlocked'] >> 10} KiB of secrets are not locked into memory ({secrets['why']})"
            swap = "swap is on" if has_swap() else "swap is off, so only hibernation or a later swap could"
            yield warning(on, what, f"they could be written to a disk: {swap}", RAISE_LIMIT)
        if memory["is_dumpable"] or memory["core_octets_max"]:
            what = "its memory may be dumped or traced"
            yield error(on, what, "a core dump would hold key", "start it by `python -m qtrunk.node`, unchanged")


def check_memory_limit(_site: Site) -> Iterator[Finding]:
    """What this user's processes, and so those of a lab, may lock into memory."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if limit != resource.RLIM_INFINITY and limit < LOCK_OCTETS_MIN:
        what = f"a process may lock {limit >> 10} KiB of memory, {LOCK_OCTETS_MIN >> 10} KiB are wanted"
        yield warning("this machine", what, "secrets that are not locked could be written to swap", RAISE_LIMIT)


def is_alive(pid: int) -> bool:
    """Whether a process runs: it is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def lived_s(pid: int) -> float | None:
    """How long ago a process was started, on a clock that nobody sets; None where it is gone (proc(5))."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # After the command in brackets, which may hold anything; field 22 of all.
    ticks = int(text.rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def has_swap() -> bool:
    """Whether this machine can write memory to a disk."""
    try:
        return len(Path("/proc/swaps").read_text().splitlines()) > 1
    except OSError:
        return True


def _links(site: Site) -> list[str]:
    return [link.id for config in site.nodes[:1] for link in config.load_topology().links]
