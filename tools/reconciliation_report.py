"""Measure frame errors and what reconciliation says, and write docs/reconciliation.md with its picture.

    .venv/bin/python tools/reconciliation_report.py              # about ten minutes
    .venv/bin/python tools/reconciliation_report.py --frames 500

Seeds are fixed, so the same code writes the same page. No timings here: they are in docs/benchmarks.md.
"""

import argparse
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import matplotlib as mpl
import numpy as np
from scipy import stats

from qtrunk import kernels
from qtrunk.distil import reconcile
from qtrunk.distil.keylength import entropy

mpl.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
CURVES = ("qc128x12z512", "qc128x29z512", "qc128x57z512", "qc128x27z2048", "qc128x27z8192")
STEPS = (1.08, 1.10, 1.12, 1.14, 1.16, 1.18, 1.20, 1.24, 1.28)
RATES = (0.003, 0.005, 0.008, 0.012, 0.016, 0.02, 0.025, 0.03, 0.035, 0.042, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.11)
BITS = {65536: 40 * 65536 - 12_345, 1 << 20: 6 * (1 << 20) - 12_345}
TESTED = 300_000
BATCH_BITS = 1 << 22


def rate_for(said: float) -> float:
    """The error rate whose entropy is this."""
    low, high = 1e-6, 0.5
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(middle) < said else (low, middle)
    return low


@dataclass(frozen=True)
class Point:
    """Frames of one code at one efficiency."""

    efficiency: float
    qber: float
    frames: int
    failed: int
    wrong: int
    iterations: float

    @property
    def limits(self) -> tuple[float, float]:
        """Two-sided 95 % limits of the frame error rate (Clopper, Pearson 1934)."""
        interval = stats.binomtest(self.failed, self.frames).proportion_ci(0.95, "exact")
        return float(interval.low), float(interval.high)


def curve(name: str, frames: int) -> list[Point]:
    """Frame errors of whole frames; ends at the first point without any."""
    code = reconcile.code(name)
    batch, points = max(1, BATCH_BITS // code.n), []
    wanted = max(batch, frames * 65536 // code.n // 2)
    for step in STEPS:
        qber = rate_for(code.m / code.n / step)
        dice = np.random.default_rng([code.m, round(1000 * step)])
        channel = np.full(code.n, kernels.channel_value(qber), np.int8)
        failed = wrong = done = 0
        took: list[int] = []
        while done < wanted:
            errors = (dice.random((batch, code.n), np.float32) < qber).astype(np.uint8)
            found, iterations = kernels.ldpc_decode(
                code, kernels.ldpc_syndrome(code, errors), channel, reconcile.ITERATIONS_MAX
            )
            is_wrong = np.any(found != errors, axis=1)
            failed, wrong = failed + int(is_wrong.sum()), wrong + int((is_wrong & (iterations > 0)).sum())
            took += iterations[iterations > 0].tolist()
            done += batch
            if failed >= 200:
                break
        points.append(Point(step, qber, done, failed, wrong, float(np.mean(took)) if took else 0.0))
        print(name, points[-1], flush=True)
        if failed == 0:
            break
    return points


@dataclass(frozen=True)
class Block:
    """One block of key, reconciled."""

    qber: float
    plan: reconcile.Plan
    first: float
    said: float
    rounds: int
    disclosed: int


def block(qber: float, bits: int, seed: int) -> Block:
    """Reconcile a key whose test basis has as many errors as it should on the average."""
    dice = np.random.default_rng([seed, bits])
    alice = dice.integers(0, 2, bits).astype(np.uint8)
    bob = alice ^ (dice.random(bits) < qber)
    plan = reconcile.choose(round(qber * TESTED), TESTED, bits)
    search = reconcile.Search(plan, bob, plan.syndromes(alice))
    while search.unsolved and len(search.rounds) < reconcile.ROUNDS_MAX:
        search.again(plan.halves(alice, search.unsolved, len(search.rounds) + 1))
    is_right = search.corrected() == alice
    left = sum(plan.frame_bits(frame) for frame in search.unsolved)
    assert np.count_nonzero(~is_right) <= left
    least = bits * entropy(qber)
    made = Block(
        qber,
        plan,
        plan.frames * plan.entry.m / least,
        plan.leak_bits(search.rounds, search.unsolved) / least,
        len(search.rounds),
        len(search.unsolved),
    )
    print(made, flush=True)
    return made


def own(n: int, qber: float) -> float:
    """What a code of this length made for this rate would say: the whole codes' efficiencies, as a curve."""
    codes = [entry for entry in reconcile.index() if entry.n == n]
    return float(np.interp(qber, [c.reach[0] for c in codes], [c.m / c.n / entropy(c.reach[0]) for c in codes]))


def bound(n: int, qber: float, failing: float = 0.02) -> float:
    """Normal approximation of the least any code of this length says (Tomamichel, Martinez-Mateo, Pacher and Elkouss,
    Quantum Inf. Process. 16, 280 (2017), eq. (4), without the logarithmic term)."""
    spread = sqrt(qber * (1 - qber) / n) * np.log2((1 - qber) / qber)
    return float(1 + spread * stats.norm.isf(failing) / entropy(qber))


def picture(curves: dict[str, list[Point]], blocks: dict[int, list[Block]]) -> None:
    """Both plots side by side."""
    plt.rcParams["svg.hashsalt"] = "qtrunk"
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name, points in curves.items():
        seen = [p for p in points if p.failed]
        rates = [p.failed / p.frames for p in seen]
        errors = [[r - p.limits[0] for r, p in zip(rates, seen, strict=True)],
                  [p.limits[1] - r for r, p in zip(rates, seen, strict=True)]]  # fmt: skip
        left.errorbar([p.efficiency for p in seen], rates, errors, marker="o", ms=3, lw=1, capsize=2, label=name)
    left.set(yscale="log", xlabel="f = checks / (n h(QBER))", ylabel="frame error rate, first round")
    left.legend(fontsize=8)
    grid = np.geomspace(0.003, 0.11, 200)
    for (n, made), colour in zip(blocks.items(), ("C0", "C1"), strict=True):
        right.plot(100 * grid, [own(n, q) for q in grid], colour, lw=1, label=f"codes' own, n = {n:,}")
        right.plot(
            100 * grid, [bound(n, q) for q in grid], colour, lw=1, ls=":", label=f"normal approximation, n = {n:,}"
        )
        right.plot([100 * b.qber for b in made], [b.said for b in made], colour, marker="x", ls="",
                   label=f"blocks of {BITS[n]:,} bits, all said")  # fmt: skip
    right.set(xscale="log", xlabel="QBER, %", ylabel="said / (bits h(QBER))", ylim=(1.0, 1.8))
    right.set_xticks([0.3, 0.5, 1, 2, 3, 5, 8, 11], ["0.3", "0.5", "1", "2", "3", "5", "8", "11"])
    right.minorticks_off()
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(DOCS / "images" / "reconciliation.svg", metadata={"Date": None})


def page(curves: dict[str, list[Point]], blocks: dict[int, list[Block]]) -> str:
    """docs/reconciliation.md."""
    frame_rows = []
    for name, points in curves.items():
        for p in points:
            low, high = p.limits
            frame_rows.append(
                f"| {name} | {p.qber:.2%} | {p.efficiency:.2f} | {p.failed} of {p.frames:,} | {low:.1e} to {high:.1e} | "
                f"{p.wrong} | {p.iterations:.1f} |"
            )
    block_rows = [
        f"| {b.qber:.1%} | {b.plan.frames} x {b.plan.entry.name} | {b.plan.bits / b.plan.frames / b.plan.entry.n:.2f} | "
        f"{b.first:.3f} | {b.rounds} | {b.disclosed} | {b.said:.3f} | {own(n, b.qber):.3f} |"
        for n, made in blocks.items()
        for b in made
    ]
    steps = {rows: -(-rows // reconcile.ROWS_PER_STEP) for rows in (14, 29, 64)}
    return f"""# Reconciliation
Alice's key and Bob's differ in one to eleven bits of a hundred. Alice says syndromes of hers; Bob finds where his is wrong. All she says
is lost to privacy amplification, so it should be little, and it must be counted. `make reconciliation` writes this page.

![frame errors and what is said](images/reconciliation.svg)

## Codes
Quasi-cyclic LDPC codes of 128 block columns, 512, 2048 or 8192 bits each (n = 65,536, 262,144 or 1,048,576), from 5 to 64 block rows, built from seeds by
`tools/make_ldpc_codes.py` and kept as base matrices, 5 kB each. The decoder works on the difference of the two syndromes: layered A-min* in
8-bit integers, 64 checks at once, equal bit for bit on each instruction set (`src/kernels/ldpc.inc`, its twin in `tests/kernels/twins.py`).
A code's *reach* (`codes/index.json`) is the error rate at which one frame in fifty fails.

## Fitting a code to a rate
**Shortening.** A frame carries fewer key bits than the code has places: the first ones of each block column; the rest are zeros that both know.
So the same checks serve a higher error rate. Reach is measured at shares of {", ".join(f"{s:.0%}" for s in reconcile.SHARES)} and interpolated
between. Of all codes the one is taken with which the block says least in all (`distil.reconcile.choose`). Both ends
compute it from the test basis's errors, one standard deviation on top, and the number of key bits. Long codes are taken where a block fills their frames.

**Blind rounds.** Nobody knows the error rate of the key basis. Where the decoder finds nothing, Bob says which frames (*Unsolved*), and Alice
says for these the parity of every other edge of some block rows (*Halves*): one check becomes two. A round halves
{steps[14]} row of 14 or 29 and {steps[64]} of 64, about 3 % of the syndrome; there are up to {reconcile.ROUNDS_MAX} rounds. What is unsolved then is disclosed whole;
above {reconcile.FAILED_FRAMES_SHARE:.0%} of the frames (at least {reconcile.FAILED_FRAMES_MIN}) the block dies. A pattern with the right syndrome and far too many errors counts as unsolved: the decoder can
find a word of the code, and verification would destroy the whole block for it.

At low rates a halved row is also what frees a decoder that is caught in a short cycle: there the curve of a code flattens, and
disclosing such frames whole would cost more than the codes save.

## What is leak
Syndrome bits of all frames; {reconcile.ERROR_COUNT_BITS} bits for the number of errors; halves, frame by frame and round by round; disclosed frames; and in which round each frame was
solved, if at all: one of {reconcile.ROUNDS_MAX + 2} answers, {np.log2(reconcile.ROUNDS_MAX + 2):.2f} bits a frame. Both ends count from the same messages, and the key's length subtracts just that number.

## Frame errors, first round
Whole frames, at QBERs where the checks are f times the entropy. "Wrong" are finds with the right syndrome that are not Alice's key.
The limits are two-sided, 95 %.

| code | QBER | f | failed | frame error rate | wrong | iterations |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(frame_rows)}

## Whole blocks
The test basis has {TESTED:,} bits with as many errors as it should. "First" is the syndrome alone, "all" everything that is leak, each over bits times
h(QBER). "Own" is the efficiency that the codes of this length have at their own reach, between them interpolated. Below
the reach of the leanest code a block says that code's syndrome whatever its rate.

| QBER | frames | share | first | rounds | disclosed | all | own |
| --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(block_rows)}
"""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Measure reconciliation and write docs/reconciliation.md.")
    parser.add_argument("--frames", type=int, default=4000, help="short frames of each point")
    options = parser.parse_args()
    blocks = {n: [block(qber, bits, seed=9) for qber in RATES] for n, bits in BITS.items()}
    curves = {name: curve(name, options.frames) for name in CURVES}
    picture(curves, blocks)
    (DOCS / "reconciliation.md").write_text(page(curves, blocks))


if __name__ == "__main__":
    main()
