"""A recording distilled by two processes gives what one process gives, and says which blocks died."""

import json

from click.testing import CliRunner

from qtrunk.cli.main import cli


def run(*arguments):
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_two_processes_make_of_a_recording_what_one_does(tmp_path):
    path = tmp_path / "run"
    # The third block is too short for any key: both ends must say so, and go on.
    light = ("--km", 50, "--clock-hz", 1.25e9, "--block-s", 3, "--seconds", 6.1, "--seed", 5)
    run("link", "simulate", *light, "--record", path, "--format", "json")
    files = (f"{path}.transmitter", f"{path}.receiver")
    together = json.loads(run("link", "replay", *files, "--format", "json"))
    apart = json.loads(run("link", "replay", *files, "--two-processes", "--format", "json"))
    blocks = together["blocks"]
    dead = {str(block["block"]) for block in blocks if block["cause"]}
    assert len(blocks) - len(dead) == 2
    assert apart["blocks"] == len(blocks)
    assert apart["destroyed"].keys() == dead
    assert apart["light_s"] == together["light_s"]
    assert apart["clicks"] == sum(block["clicks"] for block in blocks)
    assert apart["sifted_bits"] == sum(block["sifted_bits"] for block in blocks if not block["cause"])
    # Cascade's permutations are drawn anew, so the leak differs a little.
    assert abs(apart["secret_bits"] / together["secret_bits"] - 1) < 0.02
    assert "blocks" in run("link", "replay", *files, "--two-processes")
