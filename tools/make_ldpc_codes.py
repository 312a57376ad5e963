"""Build the LDPC codes in src/qtrunk/distil/codes, reproducibly, and measure how far each one reaches.

    .venv/bin/python tools/make_ldpc_codes.py            # builds all codes and index.json
    .venv/bin/python tools/make_ldpc_codes.py --frames 1000

A code is quasi-cyclic: 128 block columns of 512 bits, `rows` block rows. Most columns have degree 3, a share has a high
degree (they converge first and help the others), at the higher rates a few have degree 2. Two columns that share two block rows
never have the same difference of shifts there, so there is no cycle of length 4; columns of degree 2 hang together as a path, never a
cycle, because a cycle of them is a wrong word that every decoder accepts. `design_qber` is the largest error rate, in
steps of 2 % of itself, at which no more than one frame in 300 failed.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from qtrunk import kernels

SEED = 20261123
COLUMNS, LIFT = 128, 512
# rows: (share of columns of degree 2, share of columns of high degree, that degree)
DESIGNS = {
    10: (0.0, 0.32, 10),
    12: (0.0, 0.30, 12),
    14: (0.0, 0.28, 12),
    17: (0.0, 0.27, 12),
    19: (0.0, 0.26, 12),
    21: (0.0, 0.25, 12),
    23: (0.0, 0.24, 13),
    25: (0.03, 0.22, 14),
    27: (0.05, 0.21, 15),
    29: (0.07, 0.20, 15),
    32: (0.06, 0.18, 16),
    36: (0.05, 0.17, 18),
    39: (0.05, 0.16, 19),
    43: (0.05, 0.15, 20),
    47: (0.05, 0.145, 20),
    52: (0.05, 0.14, 20),
    64: (0.08, 0.12, 20),
}
ITERATIONS_MAX = 60


def build(rows: int) -> str:
    """The text of one code."""
    rng = np.random.default_rng([SEED, rows])
    low_share, high_share, high = DESIGNS[rows]
    low_count, high_count = round(low_share * COLUMNS), round(high_share * COLUMNS)
    degrees = [2] * low_count + [3] * (COLUMNS - low_count - high_count) + [high] * high_count
    row_degree = np.zeros(rows, int)
    differences: dict[tuple[int, int], set[int]] = {}
    entries: list[list[tuple[int, int]]] = [[] for _ in range(rows)]
    place = rng.permutation(COLUMNS)
    for index, degree in enumerate(degrees):
        lightest = np.lexsort((rng.random(rows), row_degree))[:degree]
        chosen = [index, index + 1] if degree == 2 else [int(r) for r in lightest]
        shifts = _shifts(rng, chosen, differences)
        for r, s in zip(chosen, shifts, strict=True):
            row_degree[r] += 1
            entries[r].append((int(place[index]), s))
    edges = int(row_degree.sum())
    lines = [f"{COLUMNS} {rows} {LIFT} {edges}"]
    lines += [f"{len(row)} " + " ".join(f"{c}:{s}" for c, s in sorted(row)) for row in entries]
    return "\n".join(lines) + "\n"


def _shifts(
    rng: np.random.Generator, chosen: list[int], differences: dict[tuple[int, int], set[int]]
) -> list[int]:
    """One shift for each block row, with no difference that another column already has there."""
    shifts: list[int] = []
    for i, r in enumerate(chosen):
        for shift in rng.permutation(LIFT).tolist():
            news = [((chosen[j], r), (shifts[j] - shift) % LIFT) for j in range(i)]
            if all(d not in differences.get(pair, ()) for pair, d in news):
                break
        else:
            raise SystemExit(f"no shift without a short cycle in block row {r}; change the seed")
        for (a, b), d in news:
            differences.setdefault((a, b), set()).add(d)
            differences.setdefault((b, a), set()).add(-d % LIFT)
        shifts.append(int(shift))
    return shifts


def frame_errors(code: kernels.QcCode, qber: float, frames: int, seed: int) -> int:
    """How many of `frames` random error patterns the decoder does not find."""
    rng = np.random.default_rng(seed)
    failed = 0
    for _ in range(0, frames, 50):
        errors = (rng.random((50, code.n)) < qber).astype(np.uint8)
        channel = np.full(errors.shape, kernels.channel_value(qber), np.int8)
        found, _ = kernels.ldpc_decode(code, kernels.ldpc_syndrome(code, errors), channel, ITERATIONS_MAX)
        failed += int(np.sum(np.any(found != errors, axis=1)))
        if failed > frames // 300:
            break
    return failed


def entropy(q: float) -> float:
    """Binary entropy."""
    return float(-q * np.log2(q) - (1 - q) * np.log2(1 - q))


def design_qber(code: kernels.QcCode, frames: int) -> tuple[float, int]:
    """The largest error rate with few enough failures, and the failures seen there."""
    rate = code.m / code.n
    qber = 0.001
    while entropy(qber * 1.02) * 1.10 < rate:  # start where no code of this size works
        qber *= 1.02
    while True:
        failed = frame_errors(code, qber, frames, seed=1)
        if failed <= frames // 300:
            return qber, failed
        qber /= 1.02


def main() -> None:
    """Build and measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=300)
    options = parser.parse_args()
    directory = Path(__file__).parent.parent / "src" / "qtrunk" / "distil" / "codes"
    directory.mkdir(exist_ok=True)
    index = []
    for rows in DESIGNS:
        name = f"qc{COLUMNS}x{rows}z{LIFT}"
        text = build(rows)
        (directory / f"{name}.txt").write_text(text)
        code = kernels.load_code(name, text)
        qber, failed = design_qber(code, options.frames)
        efficiency = code.m / code.n / entropy(qber)
        index.append(
            {
                "name": name,
                "n": code.n,
                "m": code.m,
                "design_qber": round(qber, 5),
                "efficiency": round(efficiency, 3),
                "frames": options.frames,
                "failed": failed,
            }
        )
        print(index[-1], flush=True)
    (directory / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
