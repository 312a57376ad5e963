"""The benchmarks' frame: what a figure says of itself, how a failure shows, what the command prints.

No figure is judged here: how fast a machine is belongs on the page, not into a test.
"""

import json

import pytest
from click.testing import CliRunner

from qtrunk.base.errors import LabError
from qtrunk.cli.main import cli
from qtrunk.plan.bench import cascade, figures, report
from qtrunk.plan.bench.figures import Figure


def figure(**changes):
    return Figure(**{"name": "speed", "value": 10.0, "unit": "m/s", "samples": (8.0, 10.0, 11.0), **changes})


@pytest.fixture
def makers(monkeypatch):
    made = {}
    monkeypatch.setattr(report, "MAKERS", made)
    return made


def test_a_figure_knows_its_ratio_and_whether_its_goal_is_reached():
    assert figure().ratio is None
    assert figure().is_reached is None
    assert figure(rival="snail", rival_value=0.5).ratio == 20
    assert figure(goal=10.0).is_reached
    assert not figure(goal=10.1).is_reached
    assert figure(goal=10.0, is_less_better=True).is_reached
    assert not figure(goal=9.9, is_less_better=True).is_reached


def test_rates_are_per_second_of_work_and_the_first_run_does_not_count():
    calls = []

    def work():
        calls.append(sum(range(200_000)))
        return 5.0

    samples = figures.rates(work, 3)
    assert len(calls) == 4
    assert len(samples) == 3
    assert all(rate > 0 for rate in samples)


def test_the_command_prints_what_it_promises(makers):
    makers["road.speed"] = lambda runs, rivals: [
        figure(value=float(runs), rival="snail", rival_value=2.0 if rivals else None)
    ]
    makers["other"] = lambda _runs, _rivals: [figure(name="other")]
    result = CliRunner().invoke(cli, ["bench", "--only", "road.*", "--runs", "4", "--format", "json"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.output)
    wanted = {"name": "speed", "value": 4.0, "unit": "m/s", "rival": "snail", "rival_value": 2.0, "ratio": 2.0}
    assert wanted.items() <= found.items()
    table = CliRunner().invoke(cli, ["bench", "--no-rivals"])
    assert table.exit_code == 0
    assert "speed: 5 m/s" in table.output
    assert "other: 10 m/s" in table.output


def test_a_failed_benchmark_is_told_and_fails_the_command_but_not_the_others(makers, tmp_path):
    def broken(_runs, _rivals):
        raise LabError("the rival is not to be had")

    makers["bad"] = broken
    makers["good"] = lambda _runs, _rivals: [figure(goal=20.0)]
    page = tmp_path / "page.md"
    result = CliRunner().invoke(cli, ["bench", "--write", str(page)])
    assert result.exit_code == 1
    assert "the rival is not to be had" in result.output
    assert "speed: 10 m/s (goal 20, not reached)" in result.output
    text = page.read_text()
    assert "bad: failed: the rival is not to be had" in text
    assert "| speed | 10 m/s | 8 to 11 | 20: **not reached** |" in text


def test_nothing_that_fits_is_a_failure(makers):
    makers["good"] = lambda _runs, _rivals: [figure()]
    said = CliRunner().invoke(cli, ["bench", "--only", "nothing"])
    assert said.exit_code == 2
    assert "--only" in said.output
    assert "'nothing'" in said.output
    assert "good" in said.output, "what there is"


def test_a_rival_that_fails_says_why(tmp_path, monkeypatch):
    import sys
    from pathlib import Path

    monkeypatch.setattr(figures, "RIVALS", tmp_path)
    (tmp_path / "good.py").write_text("print('noise'); print('{\"pulses\": 3}')")
    (tmp_path / "bad.py").write_text("raise SystemExit('no wings')")
    assert figures.rival(Path(sys.executable), "good.py") == {"pulses": 3}
    with pytest.raises(LabError, match="no wings"):
        figures.rival(Path(sys.executable), "bad.py")


@pytest.mark.parametrize("name", ["light.thinning", "hash.toeplitz", "hash.polynomial"])
def test_the_real_benchmarks_run(name):
    for found in report.MAKERS[name](1, False):
        assert found.value > 0
        assert found.rival_value is None


def test_cascade_by_two_processes_ends_with_the_same_keys():
    found = cascade.run(40_000, 0.03)  # LabError if a key is not the same; fixed seeds, so the rest is fixed too
    assert 1.03 < found.efficiency < 1.1
    assert found.round_trips > 50
    assert found.wall_s > 0
    assert found.cpu_s > 0
