"""`qtrunk rate`: what a block of counts is worth, or what a planned link would give."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from qtrunk.base.errors import ConfigError
from qtrunk.cli import options, show
from qtrunk.distil.proofs import LIVE, PROOFS, Proved, prove
from qtrunk.plan.observed import read
from qtrunk.plan.rate import Planned, PlannedLink, figures, optimised, planned
from qtrunk.quantum.detectors import NANOWIRE
from qtrunk.topology import Equipment

POINTS_MAX = 1000


@click.command()
@click.option(
    "--observed", type=click.Path(path_type=Path, allow_dash=True), help="Counts of blocks, JSON; - is stdin."
)
@click.option("--km", type=click.FloatRange(0, 1000), help="Length of fibre of a planned link.")
@click.option("--loss-db", type=click.FloatRange(0, 150), help="Of the fibre with its connectors [default: from km].")
@click.option("--sweep", metavar="FROM:TO:STEP", help="Plan links of all these lengths, km.")
@click.option("--proof", type=click.Choice(list(PROOFS)), default="variable", help="Only variable is for a live link.")
@click.option("--bounds", type=click.Choice(["exact", "hoeffding"]), help="Statistics of variable [default: exact].")
@click.option(
    "--block-s", type=click.FloatRange(0, 1e6, min_open=True), default=4.0, help="Seconds of light in a block."
)
@click.option(
    "--efficiency", type=click.FloatRange(1, 3), help="Of reconciliation [default: that of the link's codes]."
)
@click.option("--eps-sec", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=1e-10)
@click.option("--eps-cor", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=1e-15)
@click.option(
    "--optimise", "is_optimised", is_flag=True, help="Look for the best intensities, probabilities and bases."
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the sweep: FILE.png or FILE.svg.")
@click.option("--clock-hz", type=click.FloatRange(1e6, 1e10))
@click.option("--detector-efficiency", type=click.FloatRange(0.001, 1))
@click.option("--dark-count-probability", type=click.FloatRange(0, 0.01))
@click.option("--afterpulse-probability", type=click.FloatRange(0, 0.5))
@click.option("--dead-time-s", type=click.FloatRange(0, 1e-3))
@click.option("--fibre-db-per-km", type=click.FloatRange(0, 10))
@click.option("--connector-loss-db", type=click.FloatRange(0, 30))
@click.option("--detector", type=click.Choice(["ingaas", "snspd"]), default="ingaas")
@options.format_option
def rate(  # one parameter for each option
    observed: Path | None,
    km: float | None,
    loss_db: float | None,
    sweep: str | None,
    proof: str,
    bounds: str | None,
    block_s: float,
    efficiency: float | None,
    eps_sec: float,
    eps_cor: float,
    is_optimised: bool,
    plot: Path | None,
    detector: str,
    format_: str,
    **changes: float | None,
) -> None:
    """Length of the secret key of observed blocks (--observed), or rate of a planned link (--km, --loss-db, --sweep).

    A file of observations holds one object or a list of them: intensities and probabilities (strongest first), n_Z,
    m_Z, n_X, m_X (detections and errors by intensity in key and test basis), leak_bits, eps_sec, eps_cor.
    """
    if bounds is not None and bounds not in PROOFS[proof].rules:
        raise click.UsageError(f"--bounds {bounds}: {proof} has {' or '.join(PROOFS[proof].rules)} bounds")
    is_planned = km is not None or loss_db is not None or sweep is not None
    if (observed is not None) == is_planned:
        raise click.UsageError("give either --observed, or a link by --km, --loss-db or --sweep")
    if observed is not None:
        if is_optimised or plot is not None:
            raise click.UsageError("--optimise and --plot are for planned links, not for --observed")
        _rate_observed(observed, proof, bounds, format_)
        return
    if sweep is not None and (km is not None or loss_db is not None):
        raise click.UsageError("--sweep takes the place of --km and --loss-db")
    if plot is not None and (sweep is None or plot.suffix.lower() not in (".png", ".svg")):
        raise click.UsageError("--plot: a sweep is drawn, to a file named .png or .svg")
    wanted: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    equipment = replace(Equipment(), **wanted)
    lengths = _lengths(sweep) if sweep is not None else [km]
    made: list[Planned] = []
    for length in lengths:
        link = PlannedLink(
            km=_km(equipment, length, loss_db),
            loss_db=equipment.connector_loss_db + equipment.fibre_db_per_km * (length or 0.0)
            if loss_db is None
            else loss_db,
            equipment=equipment,
            detector=NANOWIRE if detector == "snspd" else None,
            block_s=block_s,
            efficiency=efficiency,
            proof=proof,
            bounds=bounds,
            eps_sec=eps_sec,
            eps_cor=eps_cor,
        )
        made.append(optimised(link, made[-1].choice if made else None) if is_optimised else planned(link))
    if plot is not None:
        _draw(made, plot)
    _show_planned(made, sweep is not None, format_)


def _rate_observed(path: Path, proof: str, bounds: str | None, format_: str) -> None:
    name = "standard input" if str(path) == "-" else str(path)
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
    except OSError as error:
        raise ConfigError([f"{name}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{name}: not a JSON document: not UTF-8 text"]) from None
    blocks, is_list = read(text, name, proof)
    answers = [_answer(prove(proof, block, bounds), proof, bounds) for block in blocks]
    if format_ == "json":
        options.print_json(answers if is_list else answers[0])
        return
    show.console().print(
        show.plain_table(
            _title(proof, bounds),
            ("block", "s_Z0", "s_Z1", "phi_Z", "secret bits", "epsilon"),
            [
                (
                    str(index),
                    f"{answer['s_Z0']:.0f}",
                    f"{answer['s_Z1']:.0f}",
                    f"{answer['phi_Z']:.4f}",
                    str(answer["length_bits"]),
                    f"{answer['epsilon']['total']:.3g}",
                )
                for index, answer in enumerate(answers)
            ],
        )
    )


def _answer(made: Proved, proof: str, bounds: str | None) -> dict[str, Any]:
    return {
        "s_Z0": made.s_z0,
        "s_Z1": made.s_z1,
        "phi_Z": made.phi_z,
        "length_bits": made.length_bits,
        "epsilon": {**asdict(made.epsilon), "total": made.epsilon.total},
        "proof": proof,
        "bounds": bounds or next(iter(PROOFS[proof].rules)),
        "is_for_live_links": proof in LIVE,
    }


def _title(proof: str, bounds: str | None) -> str:
    live = "" if proof in LIVE else "; for comparison with papers, not for a live link"
    return f"{proof}, {bounds or next(iter(PROOFS[proof].rules))} bounds{live}"


def _km(equipment: Equipment, km: float | None, loss_db: float | None) -> float:
    """The length, where only the loss was given: fibre of the equipment's attenuation."""
    if km is not None:
        return km
    assert loss_db is not None
    return max(0.0, loss_db - equipment.connector_loss_db) / max(1e-3, equipment.fibre_db_per_km)


def _lengths(sweep: str) -> list[float]:
    """FROM, FROM + STEP, …, up to TO and including it."""
    try:
        first, last, step = (float(part) for part in sweep.split(":"))
        if not (0 <= first <= last <= 1000 and step > 0 and (last - first) / step < POINTS_MAX):
            raise ValueError
    except ValueError:
        raise click.BadParameter(
            f"{sweep!r}: three numbers FROM:TO:STEP, 0 <= FROM <= TO <= 1000 km, STEP > 0, up to {POINTS_MAX} points",
            param_hint="--sweep",
        ) from None
    return [first + index * step for index in range(int((last - first) / step + 1e-9) + 1)]


def _show_planned(made: Sequence[Planned], is_list: bool, format_: str) -> None:
    if format_ == "json":
        answers = [figures(each) | _answer(each.proved, each.link.proof, each.link.bounds) for each in made]
        options.print_json(answers if is_list else answers[0])
        return
    link = made[0].link
    show.console().print(
        show.plain_table(
            f"{_title(link.proof, link.bounds)}; blocks of {link.block_s:g} s, eps_sec {link.eps_sec:g}",
            ("length", "loss", "QBER", "sifted", "secret", "asymptotic", "intensities", "probabilities", "key basis"),
            [
                (
                    f"{each.link.km:.1f} km",
                    f"{each.link.loss_db:.1f} dB",
                    show.percent(figures(each)["qber"]),
                    show.quantity(each.observed.key_total / each.link.block_s, "bit/s"),
                    show.quantity(each.secret_bps, "bit/s"),
                    show.quantity(each.asymptotic_bits / each.link.block_s, "bit/s"),
                    " ".join(f"{mu:.4g}" for mu in each.choice.intensities),
                    " ".join(f"{p:.3f}" for p in each.choice.exact_probabilities),
                    f"{each.choice.exact_key_basis_probability:.3f}",
                )
                for each in made
            ],
        )
    )


def _draw(made: Sequence[Planned], path: Path) -> None:
    """Rates over distance, logarithmic; no point where there is no key."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(["--plot needs matplotlib: pip install 'qtrunk[plots]'"]) from None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for label, style, rates in (
        ("no repeater can do better (PLOB)", "k:", [each.repeaterless_bps for each in made]),
        ("endless block", "C0--", [each.asymptotic_bits / each.link.block_s for each in made]),
        (f"{made[0].link.proof}, {made[0].link.block_s:g} s", "C0-o", [each.secret_bps for each in made]),
    ):
        shown = [(each.link.km, bps) for each, bps in zip(made, rates, strict=True) if 0 < bps < float("inf")]
        axes.semilogy([km for km, _ in shown], [bps for _, bps in shown], style, label=label, markersize=3)
    axes.set(xlabel="fibre, km", ylabel="secret key, bit/s")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be written: {error.strerror}"]) from None
