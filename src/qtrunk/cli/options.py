"""Options that several commands share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

F = TypeVar("F", bound=Callable[..., Any])


def default_state() -> Path:
    """Where a lab lives: as QTRUNK_STATE says, else in the user's state directory (XDG base directories)."""
    if told := os.environ.get("QTRUNK_STATE"):
        return Path(told)
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "qtrunk" / "lab"


def state_option(command: F) -> F:
    """`--state DIR` or QTRUNK_STATE."""
    return click.option(
        "--state",
        type=click.Path(path_type=Path, file_okay=False),
        default=default_state,
        show_default="~/.local/state/qtrunk/lab",
        help="Directory of the lab; several labs run side by side.",
    )(command)


def format_option(command: F) -> F:
    """`--format table|json`."""
    return click.option("--format", "format_", type=click.Choice(["table", "json"]), default="table")(command)


def print_json(value: object) -> None:
    """A document for scripts."""
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())
