"""Figures of the simulated light: links against real time, thinning, a rival simulator, memory of a long run."""

import os
import resource
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from qtrunk import kernels
from qtrunk.plan.bench.figures import Figure, environment, median, pinned, rates, rival
from qtrunk.quantum import run
from qtrunk.quantum.analytic import expected
from qtrunk.quantum.channel import Channel, drift_of
from qtrunk.quantum.optics import of_equipment
from qtrunk.topology import Equipment

EQUIPMENT = Equipment()
BLOCK_PULSES = round(EQUIPMENT.block_s * EQUIPMENT.clock_hz)
DAY_S = 86_400.0
FULL = "dead time, afterpulses with memory, double clicks, drift and its loop, intensity fluctuations; InGaAs at 12.5 %"


def _channel(km: float, seed: int) -> Channel:
    optics = of_equipment(EQUIPMENT, EQUIPMENT.connector_loss_db + EQUIPMENT.fibre_db_per_km * km)
    return Channel(optics, run.seed_of(seed, "light"), drift_of(EQUIPMENT, km))


def _link(km: float, seconds: float) -> float:
    """Run a link for so many seconds of its own time; how many of them."""
    run.simulate(_channel(km, 1), seconds=seconds, seed=1, block_pulses=BLOCK_PULSES)
    return seconds


def links(runs: int, _with_rivals: bool) -> list[Figure]:
    """Times real time, over 50 and 100 km."""
    made = []
    for km, seconds, goal in ((50.0, 20.0, 50.0), (100.0, 200.0, 500.0)):
        samples = rates(partial(_link, km, seconds), runs)
        made.append(
            Figure(
                name=f"link of {km:g} km at 1.25 GHz",
                value=median(samples),
                unit="times real time",
                goal=goal,
                samples=samples,
                note=FULL,
            )
        )
    return made


def _thin(rng: kernels.U64, pulses: int) -> float:
    limits = (np.cumsum([0.7, 0.2]) * 2**32).astype(np.uint32)
    errors = (np.array([0.015, 0.017, 0.5, 0.5]) * 2**31).astype(np.uint32)
    positions, _ = kernels.sample_plain(
        rng, 0, pulses, probability=1e-3, basis_threshold=1 << 15, level_limits=limits, error_limits=errors
    )
    return len(positions) / 1e6


def thinning(runs: int, with_rivals: bool) -> list[Figure]:
    """Clicks without memory, and the same pulse by pulse."""
    rng = kernels.new_rng(bytes(range(32)))
    samples = rates(partial(_thin, rng, 50_000_000), 4 * runs)
    other = rival(Path(sys.executable), "numpy_clicks.py")["clicks_per_s"] / 1e6 if with_rivals else None
    return [
        Figure(
            name="plain thinning of clicks",
            value=median(samples),
            unit="Mclick/s",
            goal=500.0,
            samples=samples,
            rival="NumPy, pulse by pulse" if other else "",
            rival_value=other,
            note="positions, level, bases, bit, error: 9 octets a click. Bound by arithmetic, half of it a logarithm "
            "without fused multiply-add, so that every path gives the same bits",
        )
    ]


def against_sequence(runs: int, with_rivals: bool) -> list[Figure]:
    """Pulses a second of our link and of SeQUeNCe's BB84 over the same line, sifted bits kept on both sides."""
    km = 50.0
    channel = _channel(km, 2)
    optics = channel.optics
    samples = tuple(each * optics.clock_hz for each in rates(partial(_link, km, 20.0), runs))
    mean = float(np.dot(optics.source.exact_probabilities, optics.intensities))
    other: list[float] = []
    if with_rivals:
        needs = ("numpy", "scipy", "networkx", "pandas", "tqdm", "gmpy2", "matplotlib", "qutip", "qutip-qip")
        python = environment("sequence", needs, ("sequence==0.8.5",))
        arguments = {
            "--loss-db": optics.loss_db,
            "--clock-hz": optics.clock_hz,
            "--mean-photons": mean,
            "--efficiency": float(optics.efficiencies[0]) * optics.receiver_transmittance,
            "--dark-hz": float(optics.dark[0]) * optics.clock_hz,
            "--dead-s": optics.detectors[0].effective_dead_time_s,
        }
        for _ in range(max(1, runs // 2)):
            found = rival(python, "sequence_bb84.py", *(str(part) for pair in arguments.items() for part in pair))
            assert found["sifted_bits"] > 0, "the rival's link made no bits"
            other.append(found["pulses"] / found["cpu_s"])
    return [
        Figure(
            name="BB84 over 50 km, pulses simulated",
            value=median(samples),
            unit="pulses/s",
            samples=samples,
            rival="SeQUeNCe 0.8.5" if other else "",
            rival_value=median(other) if other else None,
            goal=1e5 * median(other) if other else None,
            note="same clock, loss, mean photon number, efficiency, noise, dead time; ours has decoys and all memory",
        )
    ]


def memory_of_a_day(_runs: int, _with_rivals: bool) -> list[Figure]:
    """Growth of this process over a day of light on a 100 km link, after its first hour."""
    channel = _channel(100.0, 3)
    want = expected(channel.optics).click_hz
    resident: list[tuple[float, int]] = []
    page = resource.getpagesize()
    began_s = time.process_time()
    with pinned():
        for done in run.blocks(channel, seconds=DAY_S, seed=3, block_pulses=900 * BLOCK_PULSES):
            now = int(Path(f"/proc/{os.getpid()}/statm").read_text().split()[1]) * page
            resident.append((channel.pulses / channel.optics.clock_hz, now))
            assert abs(done.seen.clicks / done.seen.seconds / want - 1) < 0.05
    after = [(at_s, octets) for at_s, octets in resident if at_s > 3600]
    at_s, octets = np.array(after, float).T
    slope = float(np.polyfit(at_s, octets, 1)[0]) * DAY_S / 1e6
    return [
        Figure(
            name="memory of a day-long run",
            value=slope,
            unit="MB grown a day",
            goal=5.0,
            is_less_better=True,
            samples=tuple(each / 1e6 for _, each in resident),
            note=f"samples: resident MB, hour by hour; the day took {time.process_time() - began_s:.0f} s of CPU",
        )
    ]
