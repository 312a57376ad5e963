"""`qtrunk tenants`: what each tenant was promised, what it used and what it got, node by node."""

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from qtrunk.base.errors import LabError
from qtrunk.cli import options, show
from qtrunk.cli.labclient import LabClient
from qtrunk.node.lab import Lab

_COLUMNS = (
    "tenant", "node", "priority", "guaranteed", "burst", "rate", "median", "p99", "success", "refused", "today",
    "soonest empty",
)  # fmt: skip


@click.command()
@options.state_option
@options.format_option
def tenants(state: Path, format_: str) -> None:
    """Show the tenants of a lab: guarantees, use, and the figures of ITU-T Y.3807 at each node."""
    found = tenants_of(LabClient(Lab.open(state)).status())
    if format_ == "json":
        options.print_json(found)
    else:
        show.console().print(tenant_table(found))
    silent = [node for node, entries in found.items() if entries is None]
    if silent:
        raise LabError(f"no answer from {', '.join(silent)}; see {state}/logs/")


def tenants_of(status: dict[str, Any]) -> dict[str, list[dict[str, Any]] | None]:
    """The tenants by node; None for a node that does not answer."""
    return {entry["node"]: entry.get("tenants") if entry["answers"] else None for entry in status["nodes"]}


def tenant_table(found: dict[str, list[dict[str, Any]] | None]) -> Table:
    """One row for each tenant and node at which it asked for key."""
    rows = [(entry, node) for node, entries in found.items() for entry in entries or () if _has_asked(entry)]
    rows.sort(key=lambda row: (-row[0]["priority"], row[0]["tenant"]))
    return show.plain_table("tenants", _COLUMNS, [_row(entry, node) for entry, node in rows])


def _has_asked(entry: dict[str, Any]) -> bool:
    figures = entry["quality_of_service"]
    return bool(figures["answers"] or figures["refusals"])


def _row(entry: dict[str, Any], node: str) -> tuple[str, ...]:
    figures = entry["quality_of_service"]
    times = figures["response_time_s"]
    used = (entry["usage"] or {}).get("used_bits_today")
    ends_s = [pool["time_to_empty_s"] for pool in entry["pools"] if pool.get("time_to_empty_s") is not None]
    refusals = ", ".join(f"{reason} {count}" for reason, count in figures["refusals"].items())
    return (
        entry["tenant"],
        node,
        str(entry["priority"]),
        show.quantity(entry["guaranteed_bps"], "bit/s"),
        "–" if entry["burst_bps"] is None else show.quantity(entry["burst_bps"], "bit/s"),
        show.quantity(figures["supply_rate_bps"], "bit/s"),
        _milliseconds(times["median"]),
        _milliseconds(times["p99"]),
        show.percent(figures["success_ratio"]),
        refusals or "–",
        "–" if used is None else show.quantity(used, "bit"),
        f"{min(ends_s):.0f} s" if ends_s else "–",
    )


def _milliseconds(time_s: float | None) -> str:
    return "–" if time_s is None else f"{1000 * time_s:.3g} ms"
