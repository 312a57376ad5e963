"""`qtrunk bench`: figures of speed beside rivals."""

from fnmatch import fnmatchcase
from pathlib import Path

import click

from qtrunk.cli import options, show
from qtrunk.plan.bench import report
from qtrunk.plan.bench.figures import Figure


@click.command()
@click.option("--only", default="*", help=f"Benchmarks whose name fits: {', '.join(report.MAKERS)}.")
@click.option("--runs", type=click.IntRange(1), default=5, help="Runs of each; the median counts.")
@click.option("--rivals/--no-rivals", default=True, help="Install and run rivals too (needs a package index).")
@click.option("--write", type=click.Path(path_type=Path, dir_okay=False), help="Write the page here as well.")
@options.format_option
def bench(only: str, runs: int, rivals: bool, write: Path | None, format_: str) -> None:
    """Measure how fast this machine is at what qtrunk does, beside rivals in the same run."""
    if not any(fnmatchcase(name, only) for name in report.MAKERS):
        raise click.BadParameter(
            f"{only!r}: no benchmark is named so; there are {', '.join(report.MAKERS)}", param_hint="--only"
        )
    figures: list[Figure] = []
    failures: list[str] = []
    for name, made in report.measure(only, runs, rivals):
        if isinstance(made, str):
            failures.append(f"{name}: {made}")
            continue
        figures += made
        if format_ == "table":
            for figure in made:
                click.echo(f"{figure.name}: {figure.value:.4g} {figure.unit}{_beside(figure)}")
    if format_ == "json":
        options.print_json([report.as_json(figure) for figure in figures])
    if write is not None:
        write.write_text(report.page(figures, failures), encoding="utf-8")
    for failure in failures:
        show.console().print(failure, style="bold red")
    if failures or not figures:
        raise click.exceptions.Exit(1)


def _beside(figure: Figure) -> str:
    text = "" if figure.goal is None else f" (goal {figure.goal:.3g}{'' if figure.is_reached else ', not reached'})"
    if figure.ratio is not None:
        text += f"; {figure.rival} {figure.rival_value:.4g}, ratio {figure.ratio:.3g}"
    return text
