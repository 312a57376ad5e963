"""The command line, `qtrunk`; `qtrunk --help` lists the commands.

Every option is also an environment variable (`QTRUNK_STATE`, `QTRUNK_UP_DETACH`, ...). Exit status 0 is success, 1 a
refusal that the message explains, 2 wrong usage; of `doctor` 1 is warnings, 2 errors. No secret is ever an argument or
printed, but for a fresh invitation.
"""

import sys

import click

from qtrunk import __version__
from qtrunk.base.errors import ConfigError, QtrunkError
from qtrunk.cli import approve, audit, bench, enrol, files, keys, lab, ledger, link, rate, stream, tenants, vault
from qtrunk.cli.doctor.command import doctor


class _Group(click.Group):
    """Turns our own errors into one clear message and exit status 1."""

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


for command in (
    *lab.COMMANDS,
    link.link,
    rate.rate,
    tenants.tenants,
    ledger.ledger,
    *bench.COMMANDS,
    *files.COMMANDS,
    *keys.COMMANDS,
):
    cli.add_command(command)
for command in (*stream.COMMANDS, *enrol.COMMANDS, *approve.COMMANDS, *audit.COMMANDS, vault.vault, doctor):
    cli.add_command(command)


def main() -> None:
    """Entry point of the `qtrunk` program."""
    sys.exit(cli())


if __name__ == "__main__":
    main()
