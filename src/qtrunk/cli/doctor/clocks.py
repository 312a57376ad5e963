"""Clocks: those of the nodes beside this machine's, and whether this machine's runs evenly.

Node clocks come from the Date of their answers (`Site.answers`), so a difference below about two seconds is not seen;
nothing here needs better. Steps are told by what a supervisor noted at its start beside the kernel's account of when
that was (proc(5), CLOCK_BOOTTIME).
"""

import ctypes
import time
from collections.abc import Iterator

from qtrunk.cli.doctor.finding import Finding, error, warning
from qtrunk.cli.doctor.processes import lived_s
from qtrunk.cli.doctor.site import Site, restart_of
from qtrunk.node.supervisor import running_state

OFFSET_WARNING_S = 2.0
OFFSET_ERROR_S = 60.0
STEP_WARNING_S = 5.0
"""More than the supervisor needs from its exec to its note."""
SAMPLE_S = 0.2
SAMPLE_STEP_S = 0.02
WHY = "certificates, revocation lists, quotas and the audit log go by the clock"
FIX = "keep it in time with NTP or PTP (chrony, systemd-timesyncd)"
_STA_UNSYNC = 0x0040
_TIMEX_OCTETS = 512
_STATUS_PLACE = slice(40, 44)
"""Of `status` in struct timex on 64-bit Linux (adjtimex(2))."""


def check_clocks(site: Site) -> Iterator[Finding]:
    """Nodes beside this machine, and nodes beside each other."""
    offsets = {node: answer.offset_s for node, answer in site.answers.items() if not answer.problem}
    for node, offset_s in offsets.items():
        yield from _off(f"node {node}", offset_s, "this machine's")
    if offsets:
        last, first = max(offsets, key=offsets.__getitem__), min(offsets, key=offsets.__getitem__)
        if offsets[last] > 0 > offsets[first]:
            yield from _off(f"node {last}", offsets[last] - offsets[first], f"that of node {first}")


def check_steps(site: Site) -> Iterator[Finding]:
    """This machine's clock: now, since the lab was started, and whether anything keeps it."""
    before_s = time.time() - time.monotonic()
    time.sleep(SAMPLE_S)
    step_s = time.time() - time.monotonic() - before_s
    if abs(step_s) > SAMPLE_STEP_S:
        yield warning("this machine", f"its clock was stepped by {step_s:+.2f} s just now", WHY, FIX)
    running = running_state(site.lab.state) if site.lab else None
    if running is not None:
        assert site.lab is not None
        since_s = clock_step_s(running.pid, running.started_unix_s)
        if abs(since_s) > STEP_WARNING_S:
            what = f"its clock was stepped by {since_s:+.0f} s since the lab was started"
            yield warning("this machine", what, WHY, f"{FIX}; then {restart_of(site.lab)}")
    if site.lab is None and is_unsynchronised():
        yield warning("this machine", "the kernel says that nothing keeps its clock in time", WHY, FIX)


def clock_step_s(pid: int, noted_unix_s: float) -> float:
    """By how much the clock has moved against the time that went by since a process noted it, at its own start."""
    found_s = lived_s(pid)
    return 0.0 if found_s is None else (time.time() - noted_unix_s) - found_s


def is_unsynchronised() -> bool:
    """Whether the kernel knows that its clock is kept by nobody; False where it does not say."""
    timex = ctypes.create_string_buffer(_TIMEX_OCTETS)
    if ctypes.CDLL(None, use_errno=True).adjtimex(timex) < 0:
        return False
    return bool(int.from_bytes(timex.raw[_STATUS_PLACE], "little") & _STA_UNSYNC)


def _off(on: str, offset_s: float, beside: str) -> Iterator[Finding]:
    if abs(offset_s) > OFFSET_WARNING_S:
        grade = error if abs(offset_s) > OFFSET_ERROR_S else warning
        what = f"its clock is {abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} {beside}"
        yield grade(on, what, WHY, FIX)
