"""`qtrunk alarms`: what is wrong in the network, what follows from what, and what operators say of it."""

import csv
import datetime as dt
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import msgspec
from rich.table import Table
from rich.text import Text

from qtrunk.api.jsonclient import Service, parse_address
from qtrunk.base.errors import ConfigError, QtrunkError, RequestRefused, RouteUnavailable
from qtrunk.base.ids import NodeId
from qtrunk.cli import options, show
from qtrunk.cli.labclient import LabClient, at_once
from qtrunk.cli.remote import service_of_url
from qtrunk.config import network
from qtrunk.control.alarms import OperatorChange, StatusChange
from qtrunk.control.catalogue import CATALOGUE
from qtrunk.control.networkview import Row, Shown, merged, without_shelved
from qtrunk.control.rootcause import Correlation, Route
from qtrunk.node.lab import Lab
from qtrunk.node.sinks import snmp
from qtrunk.relay.route import route
from qtrunk.topology import Topology

_PATH = "/admin/v1/alarms"
_STYLES = {"critical": "bold red", "major": "red", "minor": "yellow", "warning": "cyan"}
_TIME = re.compile(r"(\d+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WITHOUT_NODES = frozenset({"catalogue", "mib", "engine-id"})
_COLUMNS = ("ID", "severity", "alarm", "on", "since", "nodes", "operator", "what")


@dataclass(frozen=True, slots=True)
class _Network:
    """Whom to ask, and how they hang together."""

    services: dict[str, Service]
    topology: Topology | None


@click.group("alarms", invoke_without_command=True)
@click.option("--all/--active", "is_all", default=False, help="Cleared and shelved alarms too, or what is up alone.")
@click.option("--roots", is_flag=True, help="Leave out what follows from something else.")
@click.option("--format", "format_", type=click.Choice(["table", "json", "csv"]), default="table")
@click.option(
    "--url", "urls", multiple=True, help="https://HOST:PORT of a node's administration interface; many times."
)
@click.option(
    "--credentials",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory with cert.pem, key.pem and ca.pem, for --url.",
)
@click.option("--topology", "file", help="Topology file, for --url: what follows from what.")
@options.state_option
@click.pass_context
def alarms(
    context: click.Context,
    is_all: bool,
    roots: bool,
    format_: str,
    urls: tuple[str, ...],
    credentials: Path | None,
    file: str | None,
    state: Path,
) -> None:
    """List the alarms of all nodes, each root with what follows from it. Exit status 1 if a node does not answer."""
    if context.invoked_subcommand in _WITHOUT_NODES:
        return
    found = _network(urls, credentials, file, state)
    context.obj = found
    if context.invoked_subcommand is not None:
        return
    rows, silent = rows_of(found.services, found.topology)
    rows = rows if is_all else [row for row in without_shelved(rows) if not row.alarm.is_cleared]
    rows = [row for row in rows if not (roots and row.depth)]
    if format_ == "json":
        options.print_json([asdict(row) for row in rows])
    elif format_ == "csv":
        _print_csv(rows)
    elif rows:
        show.console().print(_table(rows))
    else:
        click.echo("no alarms")
    if silent:
        context.exit(1)


def _network(urls: Sequence[str], credentials: Path | None, file: str | None, state: Path) -> _Network:
    if not urls:
        if credentials is not None or file is not None:
            raise ConfigError(["--credentials and --topology: for nodes that --url names"])
        lab = Lab.open(state)
        return _Network(LabClient(lab).services, lab.topology)
    if credentials is None:
        raise ConfigError(["--credentials DIR: needed with --url"])
    for url in urls:
        parse_address(url)
    topology = None if file is None else network.load(network.find(file))
    return _Network({url: service_of_url(url, credentials) for url in urls}, topology)


def rows_of(services: dict[str, Service], topology: Topology | None) -> tuple[list[Row], dict[str, str]]:
    """The network's list, and who does not answer, with the reason."""
    said: dict[str, list[Shown]] = {}
    silent: dict[str, str] = {}

    def ask(name: str) -> None:
        try:
            said[name] = msgspec.json.decode(services[name].ask("GET", _PATH), type=list[Shown])
        except QtrunkError as problem:
            silent[name] = str(problem)

    at_once(ask, services)
    correlation = None if topology is None else Correlation(topology, _route(topology))
    return merged(dict(sorted(said.items())), silent, correlation, topology, time.time()), silent


def _route(topology: Topology) -> Route:
    def usual(start: NodeId, end: NodeId) -> Sequence[NodeId]:
        try:
            return route(topology, start, end)
        except RouteUnavailable:
            return ()

    return usual


def _table(rows: Sequence[Row]) -> Table:
    table = show.plain_table("alarms", _COLUMNS, [])
    for row in rows:
        one = row.alarm
        word = "cleared" if one.is_cleared else one.severity
        followers = f" (+{row.followers})" if row.followers else ""
        said = "" if one.operator_state == "none" else f"{one.operator_state} {one.operator}: {one.comment}"
        table.add_row(
            one.id,
            Text(word, _STYLES.get(word, "")),
            "  " * row.depth + ("└ " if row.depth else "") + one.type + followers,
            one.resource,
            dt.datetime.fromtimestamp(one.raised_unix_s, dt.UTC).strftime("%m-%d %H:%M:%S"),
            ", ".join(row.nodes),
            said,
            one.text,
        )
    return table


def _print_csv(rows: Sequence[Row]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    names = [name for name in Shown.__dataclass_fields__ if name not in ("impacted", "root_causes")]
    writer.writerow([*names, "impacted", "root_causes", "nodes", "parent", "depth", "followers"])
    for row in rows:
        lists = (row.alarm.impacted, row.alarm.root_causes, row.nodes)
        values = [_cell(getattr(row.alarm, name)) for name in names]
        writer.writerow([*values, *(_cell("; ".join(entry)) for entry in lists), row.parent, row.depth, row.followers])


def _cell(value: object) -> object:
    """A cell that a spreadsheet takes for text, whatever a peer put into it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


# ── operators' words ────────────────────────────────────────────────────────────────────────────────────────────────


def _words(name: str, help_: str) -> click.Command:
    @click.command(name, help=help_)
    @click.argument("identifier", metavar="ID")
    @click.option("-m", "--message", required=True, metavar="TEXT", help="Why, for those who come after.")
    @click.pass_obj
    def command(found: _Network, identifier: str, message: str) -> None:
        _say(found, identifier, name, {"text": message})

    return command


alarms.add_command(_words("ack", "Somebody takes care of alarm ID."))
alarms.add_command(_words("close", "Alarm ID is resolved, as far as the operator is concerned."))
alarms.add_command(_words("unshelve", "Take alarm ID from the shelf."))


@alarms.command("shelve")
@click.argument("identifier", metavar="ID")
@click.option("-m", "--message", required=True, metavar="TEXT", help="Why, for those who come after.")
@click.option("--for", "time_", metavar="TIME", help="Such as 30m, 2h, 7d; without it, until it is unshelved.")
@click.pass_obj
def alarms_shelve(found: _Network, identifier: str, message: str, time_: str | None) -> None:
    """Put alarm ID on the shelf: it is recorded, but shown and told to nobody."""
    body: dict[str, object] = {"text": message}
    if time_ is not None:
        match = _TIME.fullmatch(time_)
        if match is None:
            raise click.BadParameter("a number and s, m, h or d, such as 2h", param_hint="--for")
        body["until"] = time.time() + int(match[1]) * _SECONDS[match[2]]
    _say(found, identifier, "shelve", body)


def _say(found: _Network, identifier: str, word: str, body: dict[str, object]) -> None:
    """At every node that has the alarm: both ends of a link have one each."""
    if not re.fullmatch(r"[0-9a-f]{12}", identifier):
        raise click.BadParameter("12 hexadecimal digits, as `qtrunk alarms` shows them", param_hint="ID")
    done, refusals = [], []
    for name, service in found.services.items():
        try:
            service.ask("GET", f"{_PATH}/{identifier}")
        except RequestRefused:
            continue
        except QtrunkError as problem:
            refusals.append(f"{name}: {problem}")
            continue
        try:
            service.ask("POST", f"{_PATH}/{identifier}/{word}", body)
        except QtrunkError as problem:
            refusals.append(f"{name}: {problem}")
        else:
            done.append(name)
    if done:
        click.echo(f"{word}: {', '.join(done)}")
    elif not refusals:
        raise RequestRefused(f"no node has an alarm {identifier}")
    if refusals:
        raise RequestRefused("; ".join(refusals))


@alarms.command("history")
@click.argument("identifier", metavar="ID")
@options.format_option
@click.pass_obj
def alarms_history(found: _Network, identifier: str, format_: str) -> None:
    """All changes of alarm ID, by its resource and by operators, at every node that has it."""
    said: dict[str, dict[str, object]] = {}
    for name, service in found.services.items():
        try:
            said[name] = msgspec.json.decode(service.ask("GET", f"{_PATH}/{identifier}"), type=dict[str, object])
        except RequestRefused:
            continue
    if not said:
        raise RequestRefused(f"no node has an alarm {identifier}")
    if format_ == "json":
        options.print_json(said)
        return
    for name, alarm in said.items():
        click.echo(f"{alarm['type']} on {alarm['resource']} at {name}: {alarm['text']}")
        status = msgspec.convert(alarm["status_changes"], list[StatusChange])
        said_of_it = msgspec.convert(alarm["operator_changes"], list[OperatorChange])
        changes = [(one.time_unix_s, one.severity, one.text) for one in status]
        changes += [(one.time_unix_s, f"{one.operator}: {one.state}", one.text) for one in said_of_it]
        for at_s, word, text in sorted(changes):
            click.echo(f"  {dt.datetime.fromtimestamp(at_s, dt.UTC):%Y-%m-%d %H:%M:%S}  {word}  {text}")


@alarms.command("catalogue")
@options.format_option
def alarms_catalogue(format_: str) -> None:
    """Every type of alarm: severity, probable cause, what it means, what to do."""
    if format_ == "json":
        options.print_json([asdict(row) for row in CATALOGUE.values()])
        return
    rows = [(row.type, row.severity, row.on, row.meaning, row.remedy) for row in CATALOGUE.values()]
    show.console().print(show.plain_table("alarm types", ("type", "severity", "on", "means", "do"), rows))


@alarms.command("mib")
def alarms_mib() -> None:
    """Print QTRUNK-ALARM-MIB, for receivers of SNMP notifications."""
    click.echo(snmp.MIB.read_text(encoding="ascii"), nl=False)


@alarms.command("engine-id")
@click.argument("network_name", metavar="NETWORK")
@click.argument("node")
def alarms_engine_id(network_name: str, node: str) -> None:
    """Print the SNMP engine ID of NODE of NETWORK (the topology's name), for receivers of traps of version 3."""
    click.echo(f"0x{snmp.engine_id(network_name, node).hex()}")
