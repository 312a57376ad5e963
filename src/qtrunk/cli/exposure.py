"""`qtrunk exposure`: which end-to-end keys and which tenants fall if a node falls."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from qtrunk.base.errors import LabError
from qtrunk.base.ids import NodeId, SaeId
from qtrunk.cli import options, show
from qtrunk.cli.labclient import LabClient
from qtrunk.node.lab import Lab
from qtrunk.relay.exposure import FALLS, Fate, fate
from qtrunk.topology import Topology

COLUMNS = ("tenant", "initiator", "target", "fate", "falls", "available_octets", "delivered_octets", "keys")
Row = dict[str, Any]


@click.command()
@click.argument("node")
@options.state_option
@click.option("--format", "format_", type=click.Choice(["table", "json", "csv"]), default="table")
def exposure(node: str, state: Path, format_: str) -> None:
    """Show which keys fall if NODE falls: keys that lie in the network, or were given out of segments that live.

    held: at the node itself; relayed: it knows them; hybrid: it knows their QKD part, ML-KEM protects them; share: it
    knows one share of several, which says nothing; apart: they never passed it.
    """
    lab = Lab.open(state)
    known = [entry.id for entry in lab.topology.nodes]
    if node not in known:
        raise LabError(f"{node!r} is no node; nodes: {', '.join(known)}")
    client = LabClient(lab)
    held: list[Row] = []
    silent: list[str] = []
    for entry in known:
        try:
            answer: dict[str, Any] = client.node(entry, "/admin/v1/exposure") or {}
            held += answer["held"]
        except LabError as error:
            silent.append(str(error))
    rows = summed(lab.topology, NodeId(node), held)
    if format_ == "json":
        options.print_json({"node": node, "rows": rows, "silent": silent})
    elif format_ == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        click.echo(out.getvalue(), nl=False)
    else:
        cells = [tuple(_cell(row[column]) for column in COLUMNS) for row in rows]
        show.console().print(show.plain_table(f"if {node} falls", COLUMNS, cells))
    for text in silent:
        click.echo(f"qtrunk: not counted: {text}", err=True)
    if silent:
        raise click.exceptions.Exit(1)


def summed(topology: Topology, node: NodeId, held: Iterable[Row]) -> list[Row]:
    """A row for each tenant, pair of SAEs and fate. Pools count at the initiator's side, keys at their targets'."""
    rows: dict[tuple[str, str, str, Fate], Row] = {}
    for one in held:
        what = fate(topology, node, one["saes"], one["routes"], one["needed"], one["protection"])
        tenant = topology.tenant_of(SaeId(one["initiator"])).id
        row = rows.setdefault(
            (tenant, one["initiator"], one["target"], what),
            {
                "tenant": tenant,
                "initiator": one["initiator"],
                "target": one["target"],
                "fate": what.value,
                "falls": what in FALLS,
                "available_octets": 0,
                "delivered_octets": 0,
                "keys": 0,
            },
        )
        for name in ("available_octets", "delivered_octets", "keys"):
            row[name] += one[name]
    order = list(Fate)
    return [rows[key] for key in sorted(rows, key=lambda key: (order.index(key[3]), key[:3]))]


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
