"""`qtrunk sae` and `qtrunk keys`: who may fetch keys, and where a key came from."""

import datetime as dt
from pathlib import Path
from urllib.parse import urlsplit

import click

from qtrunk.base.errors import KeyNotFound, LabError
from qtrunk.base.ids import SaeId, parse_key_id
from qtrunk.cli import options, show
from qtrunk.cli.labclient import LabClient
from qtrunk.config.devices import EMITTERS
from qtrunk.config.devices.box import Box
from qtrunk.node.lab import Lab


@click.group()
def sae() -> None:
    """Secure application entities: whoever consumes keys."""


def _sae_record(lab: Lab, name: str) -> dict[str, str]:
    credentials = lab.credentials(SaeId(name))
    entry = lab.topology.sae(SaeId(name))
    assert entry is not None
    return {
        "sae_id": entry.id,
        "node": entry.node,
        "kme_id": lab.topology.kme_id(entry.node),
        "kme_url": lab.kme_url(entry.node),
        "stream_address": lab.stream_address(entry.node),
        "skip_address": lab.skip_address(entry.node),
        **credentials.as_json(),
    }


@sae.command("list")
@options.state_option
@options.format_option
def sae_list(state: Path, format_: str) -> None:
    """Every SAE of the lab, its node and the address of its KME."""
    lab = Lab.open(state)
    records = [_sae_record(lab, entry.id) for entry in lab.topology.saes]
    if format_ == "json":
        options.print_json(records)
        return
    rows = [(record["sae_id"], record["node"], record["kme_url"]) for record in records]
    show.console().print(show.plain_table(lab.topology.name, ("SAE", "node", "KME"), rows))


@sae.command("show")
@click.argument("name")
@options.state_option
@options.format_option
@click.option("--emit", type=click.Choice(sorted(EMITTERS)), help="Configuration for that device instead.")
@click.option("--peer", help="With --emit: the SAE at the other end, where the topology's demands name several.")
def sae_show(name: str, state: Path, format_: str, emit: str | None, peer: str | None) -> None:
    """All that an ETSI GS QKD 014 client needs: its ID, the KME's address, paths of certificates and key."""
    lab = Lab.open(state)
    record = _sae_record(lab, name)
    if emit is not None:
        click.echo(EMITTERS[emit](_box(lab, record, peer)), nl=False)
        return
    if format_ == "json":
        options.print_json(record)
        return
    for field, value in record.items():
        click.echo(f"{field:15} {value}")


def _box(lab: Lab, record: dict[str, str], peer: str | None) -> Box:
    own = record["sae_id"]
    others = {other for demand in lab.topology.demands if own in demand.between for other in demand.between} - {own}
    if peer is None and len(others) != 1:
        raise LabError(
            f"--peer: is needed, the topology's demands name {', '.join(sorted(others)) or 'none'} for {own}"
        )
    wanted = SaeId(peer if peer is not None else others.pop())
    if lab.topology.sae(wanted) is None or wanted == own:
        raise LabError(f"--peer {wanted!r} is not another SAE of {lab.topology.name}")
    address, skip = urlsplit(record["kme_url"]), urlsplit(f"//{record['skip_address']}")
    return Box(
        sae=own,
        peer=wanted,
        kme_host=str(address.hostname),
        kme_port=address.port or 443,
        kme_id=record["kme_id"],
        skip_port=skip.port or 443,
        certificate=record["certificate"],
        private_key=record["private_key"],
        ca_certificate=record["ca_certificate"],
    )


@click.group()
def keys() -> None:
    """Keys that were supplied."""


@keys.command("show")
@click.argument("key_id")
@options.state_option
@options.format_option
def keys_show(key_id: str, state: Path, format_: str) -> None:
    """The receipt of a key: blocks of which links, epsilon, QBER, route, times, who was given it. Never the key."""
    lab = Lab.open(state)
    client = LabClient(lab)
    wanted = parse_key_id(key_id)
    receipts: dict[str, dict[str, object]] = {}
    silent: list[str] = []
    for node in lab.topology.nodes:
        try:
            found = client.node(node.id, f"/admin/v1/keys/{wanted}")
        except LabError:
            silent.append(node.id)
            continue
        if found is not None:
            receipts[node.id] = found
    if not receipts:
        unseen = f"; nodes that did not answer: {', '.join(silent)}" if silent else ""
        raise KeyNotFound(f"key {wanted}: no node of {lab.topology.name} has a record of it{unseen}")
    if format_ == "json":
        options.print_json({"key_id": wanted, "nodes": receipts, "silent_nodes": silent})
        return
    click.echo(f"key {wanted}")
    for node_id, receipt in receipts.items():
        click.echo(f"  at {node_id}")
        _print_fields(receipt, "    ")


def _print_fields(fields: dict[str, object], indent: str) -> None:
    for name, value in fields.items():
        if isinstance(value, dict):
            click.echo(f"{indent}{name}")
            _print_fields(value, indent + "  ")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            click.echo(f"{indent}{name}")
            for item in value:
                click.echo(f"{indent}  - " + ", ".join(f"{k} {_text(k, v)}" for k, v in item.items()))
        else:
            click.echo(f"{indent}{name:20} {_text(name, value)}")


def _text(name: str, value: object) -> str:
    if name.endswith("unix_s") and isinstance(value, int | float):
        return dt.datetime.fromtimestamp(value, dt.UTC).isoformat(timespec="seconds")
    if isinstance(value, list):
        return " ".join(_text(name, item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
