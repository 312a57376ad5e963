"""Running the benchmarks, and their page."""

import fnmatch
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from qtrunk import kernels
from qtrunk.base.errors import QtrunkError
from qtrunk.plan.bench import (
    cascade,
    distillation,
    hashing,
    light,
    network,
    reconciliation,
    relay,
    relaylab,
    sifting,
    supply,
    switchover,
)
from qtrunk.plan.bench.figures import Figure, Maker

MAKERS: dict[str, Maker] = {
    "light.links": light.links,
    "light.thinning": light.thinning,
    "light.sequence": light.against_sequence,
    "light.day": light.memory_of_a_day,
    "distil.sifting": sifting.sifting,
    "distil.cascade": cascade.two_processes,
    "distil.link": distillation.distillation,
    "distil.decoding": reconciliation.decoding,
    "distil.matching": reconciliation.matching,
    "hash.toeplitz": hashing.amplification,
    "hash.cryptomite": hashing.against_cryptomite,
    "hash.polynomial": hashing.polynomial,
    "supply.requests": supply.requests,
    "supply.roundtrips": supply.round_trips,
    "supply.start": supply.start,
    "network.routes": network.routes,
    "network.simulation": network.simulation,
    "network.switchover": switchover.switchover,
    "network.relay": relay.ten_hops,
    "network.processes": relaylab.node_processes,
    "network.requests": relaylab.fresh_requests,
}
"""A benchmark is one line here."""


def measure(pattern: str, runs: int, with_rivals: bool) -> Iterator[tuple[str, list[Figure] | str]]:
    """Name and figures of each benchmark that fits the pattern, or why it failed."""
    for name, make in MAKERS.items():
        if fnmatch.fnmatch(name, pattern):
            try:
                yield name, make(runs, with_rivals)
            except (QtrunkError, AssertionError, OSError) as error:
                yield name, f"failed: {error}"


def as_json(figure: Figure) -> dict[str, object]:
    """A figure as plain values."""
    return {
        "name": figure.name,
        "value": figure.value,
        "unit": figure.unit,
        "rival": figure.rival or None,
        "rival_value": figure.rival_value,
        "ratio": figure.ratio,
        "goal": figure.goal,
        "is_reached": figure.is_reached,
        "minimum": min(figure.samples, default=figure.value),
        "maximum": max(figure.samples, default=figure.value),
        "runs": len(figure.samples),
        "note": figure.note,
    }


def machine() -> str:
    """What it ran on."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    python = platform.python_version()
    return f"{model}, {os.cpu_count()} cores, kernels on the {kernels.cpu_path()} path, Python {python}, load {load}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def page(figures: list[Figure], failures: list[str]) -> str:
    """docs/benchmarks.md and its sisters."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. CPU time of one pinned core, medians, where a figure says nothing else; rivals from",
        "their own packages in the same run and environments of their own. Rates on another machine differ: the ratio",
        "is what carries over.",
        "",
        f"Machine: {machine()}.",
        "",
        "| figure | measured | lowest to highest | goal | rival | rival's | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for figure in figures:
        low, high = min(figure.samples, default=figure.value), max(figure.samples, default=figure.value)
        reached = "reached" if figure.is_reached else "**not reached**"
        goal = "" if figure.goal is None else f"{figure.goal:.3g}: {reached}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.3g}"
        rival = "" if figure.rival_value is None else f"{figure.rival_value:.3g}"
        lines.append(
            f"| {figure.name} | {figure.value:.3g} {figure.unit} | {low:.3g} to {high:.3g} | {goal} | {figure.rival} "
            f"| {rival} | {ratio} |"
        )
    notes = [f"- {figure.name}: {figure.note}" for figure in figures if figure.note]
    return "\n".join([*lines, "", *notes, *(f"- **{failure}**" for failure in failures)]) + "\n"
