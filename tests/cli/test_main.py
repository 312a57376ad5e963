"""The table of commands: each can be loaded, and a simple one does not load what it has no need of."""

import subprocess
import sys

import click

from qtrunk.cli.main import COMMANDS, cli


def test_each_command_of_the_table_is_there_under_its_name():
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
    assert set(cli.list_commands(context)) == set(COMMANDS)
    assert cli.get_command(context, "no-such-command") is None


def test_showing_the_state_of_a_lab_loads_no_numerical_library():
    program = (
        "import sys; from qtrunk.cli.main import cli\n"
        "try: cli(['status', '--help'])\n"
        "except SystemExit: pass\n"
        "print({name for name in ('scipy', 'networkx', 'matplotlib') if name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
