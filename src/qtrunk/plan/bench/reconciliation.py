"""Figures of reconciliation: how fast one core decodes at a fixed efficiency, beside a rival with the same code.

The efficiency is f = said bits / (key bits * h(QBER)), the whole syndrome counted. Frames are shortened until f is just
below the wanted one, as a block's frames would be (distil.reconcile).
"""

import hashlib
from dataclasses import replace
from math import ceil

import numpy as np
from scipy.optimize import brentq

from qtrunk import kernels
from qtrunk.distil import reconcile
from qtrunk.distil.keylength import entropy
from qtrunk.plan.bench.figures import Figure, environment, median, rates, rival
from qtrunk.stages import Octets

QBER = 0.03
SHORT, LONG = "qc128x29z512", "qc128x27z8192"
BATCH_BITS = 1 << 22
"""Places decoded in one run."""


def error_patterns(key_places: Octets, count: int, qber: float, seed: int) -> Octets:
    """Repeatable patterns, shape (count, n): ones at rate `qber` (in steps of 2^-16) where `key_places` is 1."""
    octets = hashlib.shake_256(seed.to_bytes(8, "little")).digest(2 * count * len(key_places))
    is_wrong = np.frombuffer(octets, "<u2") < round(qber * 65536)
    patterns: Octets = is_wrong.reshape(count, -1) & key_places
    return patterns


def shortened(code: kernels.QcCode, efficiency: float, qber: float) -> tuple[Octets, float]:
    """Places that carry key when a frame is shortened to at most this f, shape (n,), and the f that it has then."""
    per_column = min(code.lift, ceil(code.m / (code.columns * efficiency * entropy(qber))))
    places = np.tile((np.arange(code.lift) < per_column).astype(np.uint8), code.columns)
    return places, code.m / (per_column * code.columns * entropy(qber))


def _decoding(name: str, efficiency: float, goal: float | None, runs: int) -> Figure:
    code = reconcile.code(name)
    places, reached = shortened(code, efficiency, QBER)
    count = max(1, BATCH_BITS // code.n)
    channel = np.where(places, kernels.channel_value(QBER), kernels.KNOWN).astype(np.int8)
    patterns = [error_patterns(places, count, QBER, seed) for seed in range(runs + 1)]
    todo = [(errors, kernels.ldpc_syndrome(code, errors)) for errors in patterns]
    failed, iterations = 0, []

    def decode() -> float:
        nonlocal failed
        errors, syndromes = todo.pop()
        found, took = kernels.ldpc_decode(code, syndromes, channel, reconcile.ITERATIONS_MAX)
        failed += int(np.any(found != errors, axis=1).sum())
        iterations.extend(took[took > 0].tolist())
        return count * int(places.sum()) / 1e6

    samples = rates(decode, runs)
    return Figure(
        name=f"LDPC decoding, n = {code.n:,}, QBER {QBER:.0%}, f {reached:.3f}, {kernels.cpu_path()}",
        value=median(samples),
        unit="Mbit/s of sifted key",
        goal=goal,
        samples=samples,
        note=f"{failed} of {len(patterns) * count} frames failed, {np.mean(iterations):.1f} iterations; code {name}",
    )


def decoding(runs: int, with_rivals: bool) -> list[Figure]:
    """Short frames on every path and beside the rival, and long ones."""
    figures = []
    for path, goal in (("avx512", 300.0), ("avx2", 75.0), ("portable", None)):
        if path in kernels.cpu_paths():
            kernels.force_path(path)
            try:
                figures.append(_decoding(SHORT, 1.20, goal, runs))
            finally:
                kernels.force_path(None)
    if with_rivals:
        # The rival decodes whole frames: at the lower error rate where the same code has the same efficiency.
        code = reconcile.code(SHORT)
        said = code.m / code.n / shortened(code, 1.20, QBER)[1]
        qber = float(brentq(lambda rate: entropy(rate) - said, 1e-4, QBER))
        options = ["--code", str(reconcile.code_file(SHORT)), "--qber", str(qber)]
        found = rival(environment("ldpc", ["ldpc==2.4.1", "scipy"]), "ldpc_bp.py", *options)
        name = f"ldpc 2.4.1 (BpDecoder, product-sum), same code, whole frames at QBER {qber:.2%}"
        figures[0] = replace(figures[0], rival=name, rival_value=found["key_mbit_per_s"])
    return [*figures, _decoding(LONG, 1.10, 100.0, runs)]


def matching(_runs: int, _with_rivals: bool) -> list[Figure]:
    """What a whole block says at error rates between the codes, blind rounds included, over n h(QBER)."""
    figures = []
    for qber in (0.003, 0.01, 0.02, 0.03, 0.05, 0.08, 0.11):
        bits, tested = 3_000_000, 300_000
        every = np.ones(bits, np.uint8)
        alice, errors = error_patterns(every, 2, 0.5, 5)[0], error_patterns(every, 1, qber, 6)[0]
        plan = reconcile.choose(round(qber * tested), tested, bits)
        search = reconcile.Search(plan, alice ^ errors, plan.syndromes(alice))
        while search.unsolved and len(search.rounds) < reconcile.ROUNDS_MAX:
            search.again(plan.halves(alice, search.unsolved, len(search.rounds) + 1))
        figures.append(
            Figure(
                name=f"reconciliation of {bits:,} bits, QBER {qber:.1%}",
                value=plan.leak_bits(search.rounds, search.unsolved) / (bits * entropy(qber)),
                unit="said over n h(QBER)",
                is_less_better=True,
                note=f"{plan.frames} frames of {plan.entry.name}, {len(search.rounds)} blind rounds, "
                f"{len(search.unsolved)} frames disclosed",
            )
        )
    return figures
