"""`qtrunk bench`: a name that no benchmark has is told, with those that there are."""

from click.testing import CliRunner

from qtrunk.cli.bench import bench


def test_a_name_that_no_benchmark_has_is_an_error_that_names_the_others():
    said = CliRunner().invoke(bench, ["--only", "nosuch"])
    assert said.exit_code == 2
    assert "--only" in said.output
    assert "'nosuch'" in said.output
    assert "simulation" in said.output
