"""`qtrunk link replay | import | inspect`: recordings of a link (docs/recordings.md). Never prints a bit of raw key."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
import numpy as np

from qtrunk.base.errors import RequestRefused
from qtrunk.cli import options, show
from qtrunk.kernels import F64
from qtrunk.node.world import SystemRandom
from qtrunk.plan.bench.ends import Outcome, resident_octets
from qtrunk.quantum.source import SourceSettings, decode_bases, words
from qtrunk.sim import recording, replay, timetags
from qtrunk.sim.apart import distil_apart
from qtrunk.stages import KEY_BASIS, Octets, Positions

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


def bases_of_seed(seed: bytes, settings: SourceSettings) -> Callable[[Positions], Octets]:
    """Bases of a receiver that drew them from a seed of 32 octets, as quantum.source does."""
    return lambda positions: decode_bases(words(seed, positions), settings)


def bases_of_rows(path: Path) -> Callable[[Positions], Octets]:
    """Bases that the receiver noted: a CSV (by its name) or Parquet file with columns position and basis, ascending, to
    be asked in ascending order. RequestRefused names the file where a position is missing.
    """
    format_ = "csv" if path.suffix == ".csv" else "parquet"
    pieces = timetags.read_columns(path, format_, "position", "basis")
    known: Positions = np.zeros(0, np.uint64)
    basis: Octets = np.zeros(0, np.uint8)

    def look_up(positions: Positions) -> Octets:
        nonlocal known, basis
        if not len(positions):
            return np.zeros(0, np.uint8)
        # Only rows from the first wanted position on are kept: memory stays flat.
        keep = np.searchsorted(known, positions[0])
        known, basis = known[keep:], basis[keep:]
        while not len(known) or known[-1] < positions[-1]:
            more = next(pieces, None)
            if more is None:
                break
            if np.any(more[1] >> 1):
                raise RequestRefused(f"{path}: basis: 0 or 1 is needed")
            known, basis = np.append(known, more[0]), np.append(basis, more[1].astype(np.uint8))
            if np.any(known[1:] <= known[:-1]):
                raise RequestRefused(f"{path}: position: must ascend")
        at, is_there = recording.found_at(known, positions)
        if not is_there.all():
            raise RequestRefused(f"{path}: position: {positions[~is_there][0]} has no row")
        wanted: Octets = basis[at]
        return wanted

    return look_up


@click.command("replay")
@click.argument("transmitter", type=FILE)
@click.argument("receiver", type=FILE)
@click.option("--two-processes", "is_apart", is_flag=True, help="Distil as two nodes do, and show how fast.")
@options.format_option
def replay_(transmitter: Path, receiver: Path, is_apart: bool, format_: str) -> None:
    """Distil a recording, given both ends' files, and show what key each block would have made. No key is kept."""
    if is_apart:
        _replay_apart(transmitter, receiver, format_)
        return
    sent = recording.read_transmitter(transmitter)
    received = replay.matched(sent, recording.read_receiver(receiver))
    random = SystemRandom()
    results = [replay.distil_block(sent, block, random) for block in received]
    light_s = sum(result.pulses for result in results) / received.header.clock_hz
    secret_bits = sum(result.secret_bits for result in results)
    if format_ == "json":
        options.print_json(
            {
                "link": received.header.link,
                "light_s": light_s,
                "secret_bits": secret_bits,
                "blocks": [asdict(result) for result in results],
            }
        )
        return
    columns = ("block", "clicks", "sifted", "QBER test", "QBER key", "gains", "leak", "secret", "outcome")
    show.console().print(show.plain_table(received.header.link, columns, [_row(result) for result in results]))
    rate = show.quantity(secret_bits / light_s if light_s else 0, "bit/s")
    click.echo(f"{show.quantity(secret_bits, 'bit')} secret in {light_s:.3g} s of light: {rate}")


def _replay_apart(transmitter: Path, receiver: Path, format_: str) -> None:
    """Two processes and a connection; totals, the pace, and how much memory this end had block after block."""
    began_s, resident = time.perf_counter(), []
    outcomes: list[Outcome] = []
    for outcome in distil_apart(transmitter, receiver):
        outcomes.append(outcome)
        resident.append(resident_octets())
    took_s = time.perf_counter() - began_s
    received = recording.read_receiver(receiver)
    sent = recording.read_transmitter(transmitter)
    light_s = sum(sent.pulses(outcome.block).count for outcome in outcomes) / received.header.clock_hz
    rows = {entry.block: entry.rows for entry in received.blocks}
    clicks = sum(rows[outcome.block] for outcome in outcomes)
    sifted_bits, secret_bits = (
        sum(getattr(outcome, name) for outcome in outcomes) for name in ("sifted_bits", "secret_bits")
    )
    destroyed = [outcome for outcome in outcomes if outcome.cause is not None]
    half = len(resident) // 2
    figures = {
        "link": received.header.link,
        "light_s": light_s,
        "took_s": took_s,
        "blocks": len(outcomes),
        "destroyed": {outcome.block: f"{outcome.cause}: {outcome.why}" for outcome in destroyed},
        "clicks": clicks,
        "sifted_bits": sifted_bits,
        "secret_bits": secret_bits,
        # Flat memory: the second half of the blocks needs no more than the first.
        "resident_octets_first_half": max(resident[:half], default=0),
        "resident_octets_second_half": max(resident[half:], default=0),
    }
    if format_ == "json":
        options.print_json(figures)
        return
    click.echo(
        f"{len(outcomes)} blocks, {len(destroyed)} destroyed: {show.quantity(light_s, 's')} of light in "
        f"{show.quantity(took_s, 's')}, {show.quantity(sifted_bits / took_s, 'bit/s')} of sifted key"
    )
    click.echo(
        f"{show.quantity(sifted_bits, 'bit')} sifted, {show.quantity(secret_bits, 'bit')} secret: "
        f"{show.quantity(secret_bits / light_s if light_s else 0, 'bit/s')}"
    )
    memory = [show.quantity(figures[f"resident_octets_{part}_half"], "octets") for part in ("first", "second")]
    click.echo(f"memory of this end: at most {memory[0]} in the first half of the blocks, {memory[1]} in the second")
    for outcome in destroyed:
        click.echo(f"block {outcome.block}: {outcome.cause}: {outcome.why}")


def _row(result: replay.BlockResult) -> tuple[str, ...]:
    return (
        str(result.block),
        str(result.clicks),
        _or_dash(result.sifted_bits),
        show.percent(result.qber_test),
        show.percent(result.qber_key),
        "  ".join(f"{gain:.3g}" for gain in result.gains or ()) or "–",
        _or_dash(result.leak_bits),
        str(result.secret_bits),
        f"{result.cause}: {result.why}" if result.cause else "key",
    )


def _or_dash(value: int | None) -> str:
    return "–" if value is None else str(value)


@click.command("inspect")
@click.argument("file", type=FILE)
@options.format_option
def inspect_(file: Path, format_: str) -> None:
    """What a recording holds, every row of it checked: its header, its blocks, counts. Works for either end's file."""
    is_receiver = recording.Recording(file).kind == "receiver"
    found = recording.read_receiver(file) if is_receiver else recording.read_transmitter(file)
    rows = [_block_figures(found, entry) for entry in found.blocks]
    header = msgspec.to_builtins(found.header)
    header = {name: header[name] for name in recording.Header.__struct_fields__}
    if format_ == "json":
        options.print_json({"kind": found.kind, **header, "blocks": rows})
        return
    for name, value in {"kind": found.kind, **header}.items():
        click.echo(f"{name:22} {value}")
    titles = list(dict.fromkeys(name for row in rows for name in row if name != "readings"))
    cells = [tuple(_text(row.get(name)) for name in titles) for row in rows]
    show.console().print(show.plain_table(str(file), titles, cells))


def _text(value: object) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _block_figures(found: recording.Recording, entry: recording.BlockEntry) -> dict[str, Any]:
    """Counts of a block, from rows that were found good."""
    figures: dict[str, Any] = {"block": entry.block, "pulses": entry.pulses, "rows": entry.rows}
    if entry.pulses is not None and isinstance(found, recording.ReceiverRecording):
        block = found.read(entry.block)
        clicks = max(1, entry.rows)
        figures |= {
            "clicks_per_pulse": entry.rows / max(1, entry.pulses),
            "key_basis_share": float(np.sum(block.detections.basis == KEY_BASIS) / clicks),
            "second_detector_share": float(np.sum(block.detectors == 1) / clicks),
            "double_click_share": float(np.sum(block.detectors == 2) / clicks),
        }
    elif entry.pulses is not None and isinstance(found, recording.TransmitterRecording):
        found.settings(entry.block)
    return figures | {"readings": entry.readings}


@click.command("import")
@click.argument("tags", type=FILE)
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--tags-format", type=click.Choice(get_args(timetags.Format)), required=True, help="Kind of TAGS.")
@click.option("--link", required=True, help="Name of the link.")
@click.option("--clock-hz", type=float, required=True, help="Nominal clock of the transmitter.")
@click.option("--intensities", type=float, nargs=3, required=True, help="Photons per pulse, strongest first.")
@click.option("--probabilities", type=float, nargs=3, required=True, help="Of the intensities.")
@click.option("--key-basis-probability", type=float, required=True)
@click.option("--pulses", type=click.IntRange(1), required=True, help="Of each block.")
@click.option("--first-block", type=click.IntRange(0), default=1)
@click.option("--blocks", type=click.IntRange(1), default=1, help="How many the transmitter sent.")
@click.option("--gate-ps", type=float, required=True, help="Width of the gate around the middle of a slot.")
@click.option("--start-ps", type=int, help="The tagger's time of the first block's start [default: the first tag].")
@click.option(
    "--detector", "detectors", type=int, multiple=True, required=True, help="Channel; two, or four (passive basis)."
)
@click.option("--sync", type=int, help="Channel of marks that come from the transmitter's clock.")
@click.option("--sync-pulses", type=click.IntRange(1), default=1, help="Clock pulses from mark to mark.")
@click.option("--delay", "delays", type=(int, int), multiple=True, help="CHANNEL PS: how late a channel's tags are.")
@click.option("--counter-bits", type=click.IntRange(1, 64), default=64, help="Of the tagger's time in ps.")
@click.option("--basis-seed", type=FILE, help="File of 32 octets from which the receiver drew its bases.")
@click.option("--bases", type=FILE, help="CSV or Parquet of position, basis as the receiver noted them.")
@click.option("--offset", type=int, default=0, help="To be added to the receiver's count of pulses.")
@click.option("--disclosed", type=FILE, help="Transmitter's recording of settings to find the offset by; lost as key.")
def import_(  # each parameter is an option
    tags: Path,
    output: Path,
    tags_format: timetags.Format,
    link: str,
    clock_hz: float,
    intensities: tuple[float, ...],
    probabilities: tuple[float, ...],
    key_basis_probability: float,
    pulses: int,
    first_block: int,
    blocks: int,
    gate_ps: float,
    start_ps: int | None,
    detectors: tuple[int, ...],
    sync: int | None,
    sync_pulses: int,
    delays: tuple[tuple[int, int], ...],
    counter_bits: int,
    basis_seed: Path | None,
    bases: Path | None,
    offset: int,
    disclosed: Path | None,
) -> None:
    """Turn the TAGS of a time tagger at a receiver into the receiver's file of a recording, OUTPUT."""
    header = recording.Header(
        link=link,
        clock_hz=clock_hz,
        intensities=intensities,
        probabilities=probabilities,
        key_basis_probability=key_basis_probability,
        source="imported",
        made_unix_s=time.time(),
    )
    wiring = timetags.Wiring(
        detectors=detectors,
        sync=sync,
        sync_pulses=sync_pulses,
        delays_ps=dict(delays),
        counter_bits=counter_bits,
    )
    report = timetags.import_time_tags(
        timetags.read_tags(tags, tags_format),
        output,
        header,
        wiring,
        pulses=pulses,
        gate_ps=gate_ps,
        uniforms=_uniforms,
        bases=_bases(basis_seed, bases, header.settings),
        blocks=range(first_block, first_block + blocks),
        start_ps=start_ps,
        offset=offset,
        disclosed=recording.read_transmitter(disclosed).rows(first_block) if disclosed is not None else None,
    )
    for name, value in asdict(report).items():
        click.echo(f"{name:22} {_text(value)}")


def _bases(seed: Path | None, rows: Path | None, settings: SourceSettings) -> Callable[[Positions], Octets] | None:
    if seed is not None and rows is not None:
        raise RequestRefused("--basis-seed, --bases: one of them")
    if seed is not None:
        octets = seed.read_bytes()
        if len(octets) != recording.SEED_OCTETS:
            raise RequestRefused(f"{seed}: {recording.SEED_OCTETS} octets are needed, not {len(octets)}")
        return bases_of_seed(octets, settings)
    return bases_of_rows(rows) if rows is not None else None


def _uniforms(count: int) -> F64:
    """Numbers in [0, 1) from the system's generator: the coins of double clicks are raw key."""
    numbers: F64 = (np.frombuffer(os.urandom(8 * count), np.uint64) >> np.uint64(11)).astype(float) * 2.0**-53
    return numbers


COMMANDS = (replay_, import_, inspect_)
