"""`qtrunk audit`: the audit log of a node or an authority, checked and read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from qtrunk.cli import options
from qtrunk.kms import audit as log

F = TypeVar("F", bound=Callable[..., Any])


@click.group("audit")
def audit() -> None:
    """Who did what, when, and how it ended: the hash-chained log in DIRECTORY (`audit/` of a node or an authority)."""


def _directory(command: F) -> F:
    return click.argument("directory", type=click.Path(path_type=Path, file_okay=False, exists=True))(command)


def _head(_context: click.Context, _option: click.Parameter, value: str | None) -> log.Head | None:
    if value is None:
        return None
    number, _, digest = value.partition(":")
    if not (number.isascii() and number.isdigit() and len(digest) == 64):
        raise click.BadParameter("as `qtrunk audit verify` printed it: NUMBER:HASH")
    return log.Head(int(number), digest.lower())


@audit.command("verify")
@_directory
@click.option(
    "--head", callback=_head, metavar="NUMBER:HASH", help="A head that was noted earlier: the log must still hold it."
)
def audit_verify(directory: Path, head: log.Head | None) -> None:
    """Check the whole chain; prints its head, to be noted elsewhere. Exit status 1 if anything was changed."""
    found = log.verify(directory, head)
    click.echo(f"{found.sequence}:{found.hash}")


@audit.command("show")
@_directory
@click.option("--last", type=click.IntRange(1), default=20, help="How many records.")
@options.format_option
def audit_show(directory: Path, last: int, format_: str) -> None:
    """The last records."""
    after = max(0, log.verify(directory).sequence - last)
    found = list(log.records(directory, after))
    if format_ == "json":
        options.print_json(found)
        return
    for record in found:
        details = " ".join(f"{name}={value}" for name, value in record.details.items())
        click.echo(
            f"{record.sequence:6} {record.time}  {record.who}: {record.what} {record.on} {record.outcome} {details}"
        )


@audit.command("export")
@_directory
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--after", type=click.IntRange(0), default=0, help="Only records after this number.")
def audit_export(directory: Path, output: Path, after: int) -> None:
    """Write records as JSON lines, after checking all of them."""
    lines = [msgspec.json.encode(record) + b"\n" for record in log.records(directory, after)]
    with output.open("xb") as out:
        out.writelines(lines)
    click.echo(f"{len(lines)} records; head {log.verify(directory).sequence}:{log.verify(directory).hash}")
