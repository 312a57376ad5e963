"""`qtrunk link` as its user runs it. FALSE_ALARM is the chance that a right program fails one comparison."""

import json

import pytest
from click.testing import CliRunner
from scipy import stats

from qtrunk.cli.main import cli

FALSE_ALARM = 1e-7


def run(*arguments):
    return CliRunner().invoke(cli, ["link", *arguments])


def figures(*arguments):
    result = run(*arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_a_simulated_link_shows_what_the_oracle_expects():
    got = figures("simulate", "--km", "50", "--seconds", "2", "--seed", "7")
    # One second in a hundred goes to the control loop.
    assert got["pulses"] == 2 * 1_237_500_000
    assert got["real_time_factor"] > 0
    deviation = abs(got["clicks"] - got["expected_clicks"]) / got["expected_clicks"] ** 0.5
    assert 2 * stats.norm.sf(deviation) > FALSE_ALARM
    assert got["sifted_bps"] == pytest.approx(got["expected_sifted_bps"], rel=0.01)
    for name, tolerance in (("gains", 0.03), ("error_gains", 0.05)):
        assert len(got[name]) == 3
        assert got[name][:2] == pytest.approx(got[f"expected_{name}"][:2], rel=tolerance)
    assert got["qber"]["key"] == pytest.approx(got["expected_qber"]["key"], rel=0.05)
    assert got["qber"]["test"] == pytest.approx(got["expected_qber"]["test"], rel=0.15)


def test_a_run_is_repeatable_from_its_seed_which_it_tells():
    def plain(got):
        return {name: value for name, value in got.items() if name != "real_time_factor"}

    first = figures("simulate", "--km", "80", "--seconds", "0.5")
    again = figures("simulate", "--km", "80", "--seconds", "0.5", "--seed", str(first["seed"]))
    other = figures("simulate", "--km", "80", "--seconds", "0.5", "--seed", str(first["seed"] + 1))
    assert plain(first) == plain(again)
    assert first["clicks"] != other["clicks"]


def test_loss_stands_in_for_length_and_detectors_can_be_changed():
    near = figures("simulate", "--km", "50", "--loss-db", "6", "--seconds", "0.2", "--seed", "1")
    far = figures("simulate", "--km", "50", "--loss-db", "16", "--seconds", "0.2", "--seed", "1")
    assert near["loss_db"] == 6
    assert near["clicks"] > 5 * far["clicks"]
    nanowire = figures("simulate", "--km", "50", "--seconds", "0.2", "--seed", "1", "--detector", "snspd")
    assert nanowire["afterpulse_share"] == 0
    assert nanowire["clicks"] > 3 * figures("simulate", "--km", "50", "--seconds", "0.2", "--seed", "1")["clicks"]


def test_dispersion_bad_mirrors_and_a_source_without_random_phases_are_a_switch_away():
    common = ("simulate", "--km", "50", "--seconds", "0.3", "--seed", "1")
    plain = figures(*common)
    long = figures(*common, "--pulse-ps", "50", "--pulse-ghz", "20")
    assert 0.6 < long["clicks"] / plain["clicks"] < 0.8, "a gate of 180 ps sees 70 % of a pulse of 182 ps"
    mended = figures(*common, "--pulse-ps", "50", "--pulse-ghz", "20", "--compensation", "-850")
    assert mended["clicks"] > 0.95 * plain["clicks"]
    bad = figures(*common, "--mirror-error-deg", "5", "--sop-correlation-s", "0.01")
    assert bad["qber"]["key"] > plain["qber"]["key"] + 0.002
    attack = ("--attack", "unambiguous-discrimination")
    assert figures(*common, *attack)["eve_knows"] == 0
    assert figures(*common, *attack, "--no-phase-random")["eve_knows"] > 0.9


def test_eve_can_be_tried_without_a_lab():
    got = figures("simulate", "--km", "50", "--seconds", "0.3", "--seed", "1", "--attack", "intercept-resend")
    assert got["qber"]["key"] == pytest.approx(0.258, abs=0.01)
    assert got["expected_qber"]["key"] == pytest.approx(0.258, abs=0.01)
    assert got["eve_knows"] == pytest.approx(0.5, abs=0.01)


def test_a_run_is_recorded_and_distilled_again(tmp_path):
    path = tmp_path / "trial"
    arguments = ("simulate", "--km", "10", "--seconds", "2", "--seed", "3", "--record", str(path))
    got = figures(*arguments)
    for end in ("receiver", "transmitter"):
        assert path.with_name(f"trial.{end}").stat().st_mode & 0o777 == 0o600
    result = run("replay", f"{path}.transmitter", f"{path}.receiver", "--format", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    (block,) = found["blocks"]
    assert block["clicks"] == got["clicks"]
    assert block["secret_bits"] > 100_000
    again = run(*arguments)
    assert again.exit_code == 1
    assert "trial.receiver" in again.output


def test_a_shared_cable_is_judged():
    quiet = figures("share", "--km", "50", "--launch-dbm", "-30")
    loud = figures("share", "--km", "50", "--launch-dbm", "0", "--channels", "8")
    assert quiet["is_allowed"]
    assert not loud["is_allowed"]
    assert loud["noise_probability"] > 100 * quiet["noise_probability"]
    assert loud["largest_launch_dbm"][0] < 0
    said = run("share", "--km", "50", "--launch-dbm", "0")
    assert said.exit_code == 0
    assert said.output.startswith("no: QBER")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("simulate",), "--km"),
        (("simulate", "--km", "-3"), "--km"),
        (("simulate", "--km", "50", "--seconds", "0"), "--seconds"),
        (("simulate", "--km", "50", "--attack", "wishing"), "--attack"),
        (("share", "--km", "50"), "--launch-dbm"),
    ],
)
def test_wrong_usage_names_the_option(arguments, what):
    result = run(*arguments)
    assert result.exit_code == 2
    assert what in result.output
