"""`qtrunk drain`, `qtrunk undrain`: maintenance of a node or a link, without a failed request."""

import datetime as dt
import re
import time
from pathlib import Path

import click
import msgspec

from qtrunk.api.jsonclient import Service
from qtrunk.base.errors import LabError, RequestRefused
from qtrunk.cli import options
from qtrunk.cli.remote import lab_service
from qtrunk.node.lab import Lab

_SPAN = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
PATH = "/admin/v1/maintenance"


class Span(click.ParamType[float]):
    """A length of time: 90s, 30m, 2h, 1d."""

    name = "SPAN"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        found = _SPAN.fullmatch(str(value))
        if found is None or float(found[1]) == 0:
            self.fail(f"{value!r} is not a length of time, such as 90s, 30m, 2h or 1d", param, ctx)
        return float(found[1]) * _SECONDS[found[2]]


class Moment(click.ParamType[float]):
    """A date and time, ISO 8601; without an offset, local time."""

    name = "TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds since 1970."""
        if isinstance(value, float):
            return value
        try:
            return dt.datetime.fromisoformat(str(value)).astimezone().timestamp()
        except ValueError:
            self.fail(f"{value!r} is not a date and time, such as 2026-12-01T02:00", param, ctx)


@click.command()
@click.argument("resource", metavar="NODE|LINK")
@click.option("--for", "span_s", type=Span(), default="2h", help="How long; then it ends by itself.")
@click.option("--at", "start_unix_s", type=Moment(), help="When it begins.  [default: now]")
@click.option("--why", default="", help="For the audit log and for whoever sees the alarm.")
@click.option("--wait", is_flag=True, help="Return when nothing passes there any more.")
@options.state_option
def drain(resource: str, span_s: float, start_unix_s: float | None, why: str, wait: bool, state: Path) -> None:
    """Move routes away from NODE|LINK before it is worked on, now or at a time; fill pools that it will starve."""
    begins_unix_s = start_unix_s or time.time()
    body = {"resource": resource, "end_unix_s": begins_unix_s + span_s, "why": why}
    if start_unix_s is not None:
        body["start_unix_s"] = start_unix_s
    services = _services(state, resource)
    for service in services.values():
        service.ask("POST", PATH, body)
    ends = dt.datetime.fromtimestamp(begins_unix_s + span_s).astimezone().isoformat(timespec="minutes")
    begins = "now" if start_unix_s is None else dt.datetime.fromtimestamp(begins_unix_s).astimezone().isoformat()
    click.echo(f"{resource}: maintenance from {begins} to {ends}, told to {', '.join(services)}.")
    if wait:
        _wait(services, resource)
        click.echo(f"{resource}: nothing passes there any more; work may begin.")


@click.command()
@click.argument("resource", metavar="NODE|LINK")
@options.state_option
def undrain(resource: str, state: Path) -> None:
    """End the maintenance of NODE|LINK, or call off what is planned."""
    services = _services(state, resource)
    ended, refused = [], ""
    for node, service in services.items():
        try:
            service.ask("POST", f"{PATH}/{resource}/end", {})
            ended.append(node)
        except RequestRefused as problem:
            refused = str(problem)
    if not ended:
        raise LabError(refused)
    click.echo(f"{resource}: maintenance has ended, told to {', '.join(ended)}.")


def _services(state: Path, resource: str) -> dict[str, Service]:
    """Of the node, or of both ends of the link."""
    lab = Lab.open(state)
    nodes = [node.id for node in lab.topology.nodes if node.id == resource]
    for link in lab.topology.links:
        if link.id == resource:
            nodes = [link.alice, link.bob]
    if not nodes:
        known = ", ".join([*(node.id for node in lab.topology.nodes), *(link.id for link in lab.topology.links)])
        raise LabError(f"{resource!r} is not a node or a link of {lab.topology.name}; there are {known}")
    return {node: lab_service(lab, node) for node in nodes}


def _windows(service: Service) -> list[dict[str, object]]:
    return msgspec.json.decode(service.ask("GET", PATH), type=list[dict[str, object]])


def _wait(services: dict[str, Service], resource: str) -> None:
    while True:
        found = [entry for service in services.values() for entry in _windows(service)]
        mine = [entry for entry in found if entry["resource"] == resource and entry["is_own"]]
        if not mine:
            raise LabError(f"{resource}: the window has ended")
        if all(entry["is_clear"] for entry in mine):
            return
        time.sleep(0.5)
