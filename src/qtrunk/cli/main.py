"""The command line, `qtrunk`; `qtrunk --help` lists the commands.

Every option is also an environment variable (`QTRUNK_STATE`, `QTRUNK_UP_DETACH`, ...). Exit status 0 is success, 1 a
refusal that the message explains, 2 wrong usage; of `doctor` 1 is warnings, 2 errors. No secret is ever an argument or
printed, but for a fresh invitation.
"""

import sys
from importlib import import_module

import click

from qtrunk import __version__
from qtrunk.base.errors import ConfigError, QtrunkError

COMMANDS = {
    "alarms": "alarms:alarms",
    "apply": "apply:apply",
    "approve": "approve:approve",
    "attack": "attack:attack",
    "audit": "audit:audit",
    "bench": "bench:bench",
    "check": "check:check",
    "controller": "controller:controller",
    "doctor": "doctor.command:doctor",
    "down": "lab:down",
    "drain": "drain:drain",
    "enrol": "enrol:enrol",
    "exposure": "exposure:exposure",
    "graph": "graph:graph",
    "keys": "keys:keys",
    "ledger": "ledger:ledger",
    "link": "link:link",
    "new": "new:new",
    "open": "files:open_",
    "rate": "rate:rate",
    "roles": "approve:roles",
    "sae": "keys:sae",
    "seal": "files:seal",
    "simulate": "simulate:simulate",
    "status": "lab:status",
    "stream": "stream:stream",
    "tenants": "tenants:tenants",
    "undrain": "drain:undrain",
    "up": "lab:up",
    "vault": "vault:vault",
}
"""Module below `qtrunk.cli` and object of each command. Only the module of the command that is called is loaded: the
numerical libraries behind some of them take longer to load than most commands to run."""


class _Group(click.Group):
    """Loads a command when it is called, and turns our own errors into one clear message and exit status 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        found = getattr(import_module(f"qtrunk.cli.{module}"), name)
        assert isinstance(found, click.Command)
        return found

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            for problem in error.problems:
                click.echo(problem, err=True)
            ctx.exit(1)
        except QtrunkError as error:
            click.echo(f"qtrunk: {error}", err=True)
            ctx.exit(1)


@click.group(
    cls=_Group,
    context_settings={
        "auto_envvar_prefix": "QTRUNK",
        "help_option_names": ["-h", "--help"],
        "show_default": True,
    },
)
@click.version_option(__version__, prog_name="qtrunk")
def cli() -> None:
    """The open software stack of quantum-secured trunk lines."""


def main() -> None:
    """Entry point of the `qtrunk` program."""
    sys.exit(cli())


if __name__ == "__main__":
    main()
