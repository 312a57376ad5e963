"""`qtrunk ledger`: where every octet of key is or went, both ends of each link and of each pool side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from qtrunk.base.errors import LabError
from qtrunk.cli import options, show
from qtrunk.cli.labclient import LabClient
from qtrunk.node.lab import Lab
from qtrunk.topology import Topology

LINK_ROWS = (
    ("generated", "generated", "generated"),
    ("pending", "pending", "pending"),
    ("available", "available", "available"),
    ("used, Alice to Bob", "allocated", "followed"),
    ("used, Bob to Alice", "followed", "allocated"),
    ("authentication", "authentication", "authentication"),
    ("passed over", "skipped", "skipped"),
)
"""What, and the names of it in the ledgers of Alice's and of Bob's end."""
POOL_ROWS = tuple((name, name, name) for name in ("filled", "overhead", "available", "delivered", "doubtful", "lost"))
_MUST_AGREE = {"generated", "filled"}
Row = dict[str, Any]


@click.command()
@click.argument("only", required=False)
@options.state_option
@options.format_option
def ledger(only: str | None, state: Path, format_: str) -> None:
    """Show the ledgers of a lab: of links, and of the pools between SAEs. ONLY is a link or an SAE.

    Exit status 1 where octets are unaccounted for, or the two ends were given different amounts.
    """
    lab = Lab.open(state)
    client = LabClient(lab)
    status = client.status()
    nodes = [entry for entry in status["nodes"] if entry["answers"]]  # type: ignore[attr-defined]
    links = {entry["node"]: client.node(entry["node"], "/admin/v1/ledger") for entry in nodes}
    pools = {entry["node"]: entry.get("pools", []) for entry in nodes}
    rows = [*link_rows(lab.topology, links), *pool_rows(pools)]
    if only is not None:
        rows = [row for row in rows if only in row["names"]]
        if not rows:
            raise LabError(f"{only!r} is no link and no SAE with a pool; see `qtrunk status` and `qtrunk sae list`")
    if format_ == "json":
        options.print_json([{name: value for name, value in row.items() if name != "names"} for row in rows])
    else:
        show.console().print(table(rows))
    if any(row["remark"].startswith("!") for row in rows):
        raise click.exceptions.Exit(1)


def link_rows(topology: Topology, ledgers: dict[str, dict[str, Any] | None]) -> list[Row]:
    """The rows of every link; the first column is Alice's."""
    found: list[Row] = []
    for link in topology.links:
        ends = [(ledgers.get(node) or {}).get(link.id) for node in (link.alice, link.bob)]
        found += _rows(f"link {link.id}", {link.id}, LINK_ROWS, ends, _link_unaccounted)
    return found


def pool_rows(pools: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """The rows of every pool; the first column is the initiator's."""
    ends: dict[tuple[str, str], list[dict[str, Any] | None]] = {}
    for entries in pools.values():
        for entry in entries:
            pair = ends.setdefault((entry["initiator"], entry["target"]), [None, None])
            pair[entry["side"] == "target"] = entry
    found: list[Row] = []
    for (initiator, target), pair in sorted(ends.items()):
        name = f"pool {initiator} to {target}"
        found += _rows(name, {initiator, target}, POOL_ROWS, pair, _pool_unaccounted)
    return found


def table(rows: list[Row]) -> Table:
    """All rows, the name of a link or pool at its first one."""
    last, shown = "", []
    for row in rows:
        name = row["of"] if row["of"] != last else ""
        last = row["of"]
        shown.append((name, row["what"], _octets(row["first"]), _octets(row["second"]), row["remark"]))
    return show.plain_table("ledgers, octets", ("of", "what", "Alice / initiator", "Bob / target", ""), shown)


def _rows(
    of: str,
    names: set[str],
    what: tuple[tuple[str, str, str], ...],
    ends: list[dict[str, Any] | None],
    unaccounted: Callable[[dict[str, Any]], int],
) -> list[Row]:
    def row(label: str, first: int | None, second: int | None, remark: str = "") -> Row:
        return {"of": of, "names": names, "what": label, "first": first, "second": second, "remark": remark}

    rows = []
    for label, one, other in what:
        values = [None if end is None else int(end[name]) for end, name in zip(ends, (one, other), strict=True)]
        differs = label in _MUST_AGREE and None not in values and values[0] != values[1]
        remark = "" if not differs else "the ends differ; a block or segment may be on its way"
        rows.append(row(label, values[0], values[1], remark))
    reasons = sorted({reason for end in ends if end is not None for reason in end["destroyed"]})
    for reason in reasons:
        amounts = [None if end is None else int(end["destroyed"].get(reason, 0)) for end in ends]
        rows.append(row(f"destroyed: {reason}", amounts[0], amounts[1]))
    missing = [None if end is None else int(unaccounted(end)) for end in ends]
    remark = "! octets are unaccounted for" if any(missing) else ""
    rows.append(row("unaccounted", missing[0], missing[1], remark))
    return rows


def _link_unaccounted(end: dict[str, Any]) -> int:
    spent = sum(end[name] for name in ("allocated", "followed", "authentication", "skipped"))
    return int(end["generated"] - end["pending"] - end["available"] - spent - sum(end["destroyed"].values()))


def _pool_unaccounted(end: dict[str, Any]) -> int:
    spent = sum(end[name] for name in ("overhead", "available", "delivered", "lost"))
    return int(end["filled"] - spent - sum(end["destroyed"].values()))


def _octets(value: int | None) -> str:
    return "no answer" if value is None else f"{value:,}"
