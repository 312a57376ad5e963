"""`qtrunk link simulate | share | replay | import | inspect`: one link without a lab, for planning and research."""

import os
import time
from dataclasses import dataclass, replace
from math import radians
from pathlib import Path
from typing import Any

import click
import msgspec

from qtrunk.cli import options, recordings, show
from qtrunk.quantum import run
from qtrunk.quantum.analytic import expected
from qtrunk.quantum.attack import KINDS, Attack, knowledge
from qtrunk.quantum.channel import Channel, Clicks, drift_of, with_drift
from qtrunk.quantum.detectors import NANOWIRE
from qtrunk.quantum.drift import DriftStep
from qtrunk.quantum.fibre import BACKWARD, FORWARD, Acceptance, ClassicalChannels, Fibre, LaserPulse, may_share
from qtrunk.quantum.optics import dispersed, of_equipment
from qtrunk.quantum.readings import Readings, arrival_times_ps
from qtrunk.quantum.situation import Situation
from qtrunk.quantum.source import decode_bases, words
from qtrunk.sim.recording import Header, ReceiverWriter, TransmitterWriter
from qtrunk.stages import Role
from qtrunk.topology import Equipment

KM = click.FloatRange(0, 500)


@click.group()
def link() -> None:
    """One link without a lab: simulate, record and replay it, ask what a cable allows."""


def _equipment(values: dict[str, float | None]) -> Equipment:
    """The standard equipment with what the user wants otherwise."""
    changes: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    return replace(Equipment(), **changes)


def _loss_db(equipment: Equipment, km: float, loss_db: float | None) -> float:
    return equipment.connector_loss_db + equipment.fibre_db_per_km * km if loss_db is None else loss_db


@link.command()
@click.option("--km", type=KM, required=True, help="Length of fibre.")
@click.option(
    "--loss-db", type=click.FloatRange(0, 100), help="Loss of the fibre with its connectors [default: from km]."
)
@click.option("--seconds", type=click.FloatRange(0, 1e7, min_open=True), default=4.0, help="Of the link's own time.")
@click.option("--seed", type=click.IntRange(0), help="Makes the run repeatable [default: drawn, and printed].")
@click.option("--block-s", type=click.FloatRange(0.1, 1e5), help="Seconds of light in a block [default: 4].")
@click.option("--clock-hz", type=click.FloatRange(1e6, 1e10))
@click.option("--detector-efficiency", type=click.FloatRange(0.001, 1))
@click.option("--dark-count-probability", type=click.FloatRange(0, 0.01))
@click.option("--afterpulse-probability", type=click.FloatRange(0, 0.5))
@click.option("--dead-time-s", type=click.FloatRange(0, 1e-3))
@click.option("--gate-mismatch-s", type=click.FloatRange(0, 1e-9))
@click.option("--added-noise-probability", type=click.FloatRange(0, 0.01), help="Light of other channels: see share.")
@click.option("--temperature-rms-k", type=click.FloatRange(0, 10))
@click.option("--reference-fraction", type=click.FloatRange(0.0001, 0.5))
@click.option("--detector", type=click.Choice(["ingaas", "snspd"]), default="ingaas")
@click.option(
    "--mirror-error-deg", type=click.FloatRange(0, 10), default=0.0, help="Faraday mirrors, up to, either way."
)
@click.option("--sop-correlation-s", type=click.FloatRange(1e-3), default=10.0, help="How fast polarisation turns.")
@click.option("--pulse-ps", type=click.FloatRange(1, 2000), help="Width of a pulse; with it, dispersion counts.")
@click.option("--pulse-ghz", type=click.FloatRange(0), default=0.0, help="Its spectrum [default: transform limited].")
@click.option("--compensation", type=float, default=0.0, help="Of dispersion, ps/nm; negative for standard fibre.")
@click.option("--phase-random/--no-phase-random", default=True, help="Whether each pulse has a phase of its own.")
@click.option("--attack", "kind", type=click.Choice(sorted(KINDS)), default="none", help="What Eve does meanwhile.")
@click.option("--fraction", type=click.FloatRange(0, 1), default=1.0, help="Share of the pulses that Eve touches.")
@click.option("--strength", type=click.FloatRange(0), help="Of the attack; its unit depends on the kind.")
@click.option(
    "--record", type=click.Path(path_type=Path), help="Write a recording: PATH.receiver and PATH.transmitter."
)
@options.format_option
def simulate(  # one parameter for each option
    km: float,
    loss_db: float | None,
    seconds: float,
    seed: int | None,
    detector: str,
    mirror_error_deg: float,
    sop_correlation_s: float,
    pulse_ps: float | None,
    pulse_ghz: float,
    compensation: float,
    phase_random: bool,
    kind: str,
    fraction: float,
    strength: float | None,
    record: Path | None,
    format_: str,
    **changes: float | None,
) -> None:
    """Run one link for a while, pulse by pulse in effect, and set what it shows beside the closed form."""
    equipment = _equipment(changes)
    optics = of_equipment(equipment, _loss_db(equipment, km, loss_db))
    if detector == "snspd":
        optics = replace(optics, detectors=(NANOWIRE, NANOWIRE))
    seed = int.from_bytes(os.urandom(6), "little") if seed is None else seed
    optics = replace(optics, is_phase_random=phase_random)
    if pulse_ps is not None:
        pulse = LaserPulse(width_s=pulse_ps * 1e-12, bandwidth_hz=pulse_ghz * 1e9)
        optics = dispersed(optics, pulse, Fibre(length_km=km, compensation_ps_per_nm=compensation))
    drift = replace(
        drift_of(equipment, km), mirror_error_rad=radians(mirror_error_deg), sop_correlation_s=sop_correlation_s
    )
    channel = Channel(optics, run.seed_of(seed, "light"), drift)
    attack = Attack(kind, fraction, strength)
    channel.attack(attack)
    began_s = time.perf_counter()
    block_pulses = round(equipment.block_s * equipment.clock_hz)
    if record is None:
        seen = run.simulate(channel, seconds=seconds, seed=seed, block_pulses=block_pulses)
    else:
        seen = _recorded(channel, record, seconds, seed, block_pulses)
    wall_s = time.perf_counter() - began_s
    oracle = with_drift(optics, drift)
    want = expected(oracle, attack.on(oracle, 0.0, seconds / 2))
    figures = {
        "km": km,
        "loss_db": optics.loss_db,
        "seed": seed,
        "intensities": list(equipment.intensities),
        "probabilities": list(optics.source.exact_probabilities),
        **run.figures(seen, want, wall_s, channel.reference_fraction),
    }
    if kind != "none":
        figures["attack"] = kind
        figures["eve_knows"] = knowledge(optics, attack.on(optics, 0.0, seconds / 2))
    if format_ == "json":
        options.print_json(figures)
        return
    show.console().print(
        show.plain_table(
            f"{km:g} km, {optics.loss_db:.1f} dB, {seconds:g} s at {seen.seconds / wall_s:.0f} times real time, "
            f"seed {seed}",
            ("figure", "observed", "expected"),
            [
                (name, _text(figures[name]), _text(figures[f"expected_{name}"]))
                for name in figures
                if f"expected_{name}" in figures
            ],
        )
    )


@link.command()
@click.option("--km", type=KM, required=True, help="Length of fibre.")
@click.option("--launch-dbm", type=float, required=True, help="Mean power of each classical channel where it enters.")
@click.option("--channels", type=click.IntRange(0), default=1, help="How many classical channels.")
@click.option(
    "--wavelength-nm", type=click.FloatRange(1200, 1700), default=1540.0, help="Middle of the classical channels."
)
@click.option("--quantum-nm", type=click.FloatRange(1200, 1700), default=1550.12, help="Of the quantum channel.")
@click.option(
    "--direction", type=click.Choice([FORWARD, BACKWARD]), default=FORWARD, help="With or against the quantum light."
)
@click.option("--filter-nm", type=click.FloatRange(0, 100, min_open=True), default=0.4, help="Width of Bob's filter.")
@click.option(
    "--isolation-db", type=click.FloatRange(0), default=110.0, help="Of Bob's filters against the other channels."
)
@click.option("--qber-limit", type=click.FloatRange(0, 0.11, min_open=True), default=0.03, help="What you would take.")
@options.format_option
def share(  # one parameter for each option
    km: float,
    launch_dbm: float,
    channels: int,
    wavelength_nm: float,
    quantum_nm: float,
    direction: str,
    filter_nm: float,
    isolation_db: float,
    qber_limit: float,
    format_: str,
) -> None:
    """May the quantum channel share a fibre with classical channels? Raman noise, leakage, and the power that fits."""
    equipment = Equipment()
    fibre = Fibre(length_km=km)
    optics = of_equipment(equipment, fibre.loss_db(quantum_nm))
    detector = optics.detectors[0]
    judged = may_share(
        fibre,
        [ClassicalChannels(launch_dbm=launch_dbm, wavelength_nm=wavelength_nm, count=channels, direction=direction)],
        Acceptance(
            wavelength_nm=quantum_nm,
            filter_width_nm=filter_nm,
            isolation_db=isolation_db,
            receiver_loss_db=equipment.receiver_loss_db,
            efficiency=detector.efficiency,
            gate_width_s=detector.effective_gate_s,
        ),
        dark_count_probability=detector.dark_count_probability,
        qber=lambda noise: max(expected(replace(optics, noise_probability=noise)).qber),
        qber_limit=qber_limit,
    )
    figures: dict[str, object] = {
        name: getattr(judged, name)
        for name in (
            "is_allowed",
            "qber",
            "added_qber",
            "noise_probability",
            "raman_probability",
            "leakage_probability",
        )
    }
    figures |= {"noise_over_dark": judged.noise_over_dark, "largest_launch_dbm": list(judged.largest_launch_dbm)}
    if format_ == "json":
        options.print_json(figures)
        return
    verdict = "yes" if judged.is_allowed else "no"
    click.echo(
        f"{verdict}: QBER {judged.qber:.2%} (limit {qber_limit:.2%}), "
        f"{judged.added_qber:.2%} of it from other channels; "
        f"noise {judged.noise_probability:.2g} per gate, {judged.noise_over_dark:.2g} times the dark counts; "
        f"up to {judged.largest_launch_dbm[0]:.1f} dBm a channel would do (the Raman coefficient is good to 3 dB)."
    )


def _recorded(channel: Channel, path: Path, seconds: float, seed: int, block_pulses: int) -> run.Observed:
    """The run, with what either end had in hand written to PATH.receiver and PATH.transmitter."""
    source = channel.optics.source
    header = Header(
        link="alice-bob",
        clock_hz=channel.optics.clock_hz,
        intensities=source.intensities,
        probabilities=source.exact_probabilities,
        key_basis_probability=source.exact_key_basis_probability,
        source="simulated",
        made_unix_s=time.time(),
    )
    before, sent = channel.tally.copy(), channel.pulses
    with (
        ReceiverWriter(path.with_name(f"{path.name}.receiver"), header) as receiver,
        TransmitterWriter(path.with_name(f"{path.name}.transmitter"), header) as transmitter,
    ):
        runs = run.blocks(
            channel,
            seconds=seconds,
            seed=seed,
            block_pulses=block_pulses,
            watch=lambda block: _Recorder(channel, receiver, block, run.end_seed(seed, block, Role.BOB)),
        )
        for done in runs:
            assert isinstance(done.watcher, _Recorder)
            readings = done.watcher.readings
            transmitter.add_seed(done.number, run.end_seed(seed, done.number, Role.ALICE))
            transmitter.finish(done.number, done.seen.pulses, msgspec.to_builtins(readings.transmitter()))
            receiver.finish(done.number, done.seen.pulses, msgspec.to_builtins(readings.receiver()))
    return run.observed(channel.optics, channel.tally - before, channel.pulses - sent, channel.reference_fraction)


@dataclass
class _Recorder:
    """Writes what the receiver had in hand, slice by slice; a `channel.Watcher`."""

    channel: Channel
    writer: ReceiverWriter
    block: int
    seed: bytes

    def __post_init__(self) -> None:
        self.readings = Readings(self.channel.optics, self.channel.dice)

    def period(self, situation: Situation, step: DriftStep | None, clicks: Clicks, pulses: int) -> None:
        """As channel.Watcher has it."""
        self.readings.period(situation, step, clicks, pulses)
        optics = self.channel.optics
        basis = decode_bases(words(self.seed, clicks.positions), optics.source)
        times = arrival_times_ps(optics, situation, clicks, self.channel.dice)
        self.writer.add(self.block, clicks.positions, basis, clicks.bits, clicks.detectors, times)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {_text(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return "  ".join(_text(entry) for entry in value)
    return f"{value:.4g}"


for command in recordings.COMMANDS:
    link.add_command(command)
