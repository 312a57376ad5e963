"""Build the LDPC codes in src/qtrunk/distil/codes, reproducibly, and measure how far each one reaches.

    .venv/bin/python tools/make_ldpc_codes.py                # all codes and index.json, two minutes
    .venv/bin/python tools/make_ldpc_codes.py --frames 3000
    .venv/bin/python tools/make_ldpc_codes.py --check        # only tells whether the texts are what this builds

A code is quasi-cyclic: 128 block columns of 512 bits, `rows` block rows. Most columns have degree 3, a share has a
high degree (they converge first and help the others), some have degree 2 (they carry little and cost little). The
shares come from a search with the decoder itself at the error rate where it is about to fail. Two columns that
share two block rows never have the same difference of shifts there, so there is no cycle of length 4; among columns
of low degree there are as few cycles of length 6 as a few tries find, because those catch single errors for ever.
Columns of degree 2 hang together as a path, never a cycle: a cycle of them is a wrong word that every decoder
accepts.

Of a few seeds the one with the fewest failures near the end of its reach is kept. `design_qber` is the largest error
rate, in steps of 1 % of itself, at which no frame of `frames` failed; the decoder is told the true rate.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from qtrunk import kernels

COLUMNS, LIFT = 128, 512
# rows: (columns of degree 2, columns of high degree, that degree, seed)
DESIGNS = {
    8: (7, 42, 8, 1),
    10: (6, 44, 9, 2),
    12: (9, 41, 11, 0),
    14: (8, 36, 13, 1),
    17: (15, 35, 13, 1),
    19: (13, 32, 14, 1),
    21: (13, 31, 14, 2),
    23: (13, 30, 15, 0),
    25: (14, 29, 15, 2),
    27: (12, 26, 17, 3),
    29: (17, 27, 15, 1),
    32: (19, 25, 17, 0),
    36: (14, 23, 18, 3),
    39: (18, 22, 17, 3),
    43: (22, 20, 19, 3),
    47: (25, 19, 18, 1),
    52: (35, 17, 16, 1),
    57: (28, 16, 18, 2),
    64: (28, 14, 20, 2),
}
ITERATIONS_MAX = 60
LOW_DEGREE_MAX = 3
TRIES = 24
"""Shifts of a column of low degree that are tried for the fewest short cycles."""

Differences = dict[tuple[int, int], set[int]]


def build(rows: int, seed: int | None = None) -> str:
    """The text of one code; `seed` instead of the one that was found best."""
    low_count, high_count, high, best_seed = DESIGNS[rows]
    rng = np.random.default_rng([rows, best_seed if seed is None else seed])
    degrees = [2] * low_count + [3] * (COLUMNS - low_count - high_count) + [high] * high_count
    row_degree = np.zeros(rows, int)
    differences: Differences = {}
    entries: list[list[tuple[int, int]]] = [[] for _ in range(rows)]
    place = rng.permutation(COLUMNS)
    for index, degree in enumerate(degrees):
        lightest = np.lexsort((rng.random(rows), row_degree))[:degree]
        chosen = [index, index + 1] if degree == 2 else [int(r) for r in lightest]
        shifts = _best_shifts(rng, chosen, differences)
        _record(chosen, shifts, differences)
        for r, s in zip(chosen, shifts, strict=True):
            row_degree[r] += 1
            entries[r].append((int(place[index]), s))
    lines = [f"{COLUMNS} {rows} {LIFT} {row_degree.sum()}"]
    lines += [f"{len(row)} " + " ".join(f"{c}:{s}" for c, s in sorted(row)) for row in entries]
    return "\n".join(lines) + "\n"


def _best_shifts(rng: np.random.Generator, chosen: list[int], differences: Differences) -> list[int]:
    if len(chosen) > LOW_DEGREE_MAX:
        return _shifts(rng, chosen, differences)
    best, fewest = _shifts(rng, chosen, differences), None
    for _ in range(TRIES):
        shifts = _shifts(rng, chosen, differences)
        cycles = _cycles_of_6(chosen, shifts, differences)
        if fewest is None or cycles < fewest:
            best, fewest = shifts, cycles
        if cycles == 0:
            break
    return best


def _shifts(rng: np.random.Generator, chosen: list[int], differences: Differences) -> list[int]:
    """One shift for each block row, with no difference that another column already has there."""
    shifts: list[int] = []
    for i, r in enumerate(chosen):
        for shift in rng.permutation(LIFT).tolist():
            if all((shifts[j] - shift) % LIFT not in differences.get((chosen[j], r), ()) for j in range(i)):
                shifts.append(int(shift))
                break
        else:
            raise SystemExit(f"no shift without a short cycle in block row {r}; change the design")
    return shifts


def _record(chosen: list[int], shifts: list[int], differences: Differences) -> None:
    for a, s in zip(chosen, shifts, strict=True):
        for b, t in zip(chosen, shifts, strict=True):
            if a != b:
                differences.setdefault((a, b), set()).add((s - t) % LIFT)


def _cycles_of_6(chosen: list[int], shifts: list[int], differences: Differences) -> int:
    """How many ways lead from one block row of the column to another over two columns that are there already."""
    count = 0
    for i, a in enumerate(chosen):
        for j in range(i):
            b, wanted = chosen[j], (shifts[i] - shifts[j]) % LIFT
            for (first, middle), steps in differences.items():
                if first == a and middle != b:
                    second = differences.get((middle, b), ())
                    count += sum((wanted - step) % LIFT in second for step in steps)
    return count


def failures(code: kernels.QcCode, qber: float, frames: int, seed: int, enough: int) -> int:
    """How many of `frames` random error patterns the decoder does not find; stops where there are `enough`."""
    rng = np.random.default_rng(seed)
    failed = 0
    for _ in range(0, frames, 50):
        errors = (rng.random((50, code.n)) < qber).astype(np.uint8)
        channel = np.full(errors.shape, kernels.channel_value(qber), np.int8)
        found, _ = kernels.ldpc_decode(code, kernels.ldpc_syndrome(code, errors), channel, ITERATIONS_MAX)
        failed += int(np.sum(np.any(found != errors, axis=1)))
        if failed >= enough:
            break
    return failed


def entropy(q: float) -> float:
    """Binary entropy."""
    return float(-q * np.log2(q) - (1 - q) * np.log2(1 - q))


def design_qber(code: kernels.QcCode, frames: int) -> float:
    """The largest error rate without a failure."""
    qber = 0.001
    while entropy(qber * 1.01) * 1.08 < code.m / code.n:  # start where no code of this size works
        qber *= 1.01
    while failures(code, qber, frames, seed=1, enough=1):
        qber /= 1.01
    return qber


def best_seed(rows: int, seeds: int) -> int:
    """The seed whose code goes furthest with 300 frames."""
    reach = [design_qber(kernels.load_code("try", build(rows, seed)), 300) for seed in range(seeds)]
    return int(np.argmax(reach))


def main() -> None:
    """Build and measure."""
    parser = argparse.ArgumentParser(description="Build and measure the LDPC codes.")
    parser.add_argument("--frames", type=int, default=1000, help="frames that must all be corrected")
    parser.add_argument("--seeds", type=int, help="only say which of so many seeds is best for each code")
    parser.add_argument("--rows", type=int, nargs="*", default=list(DESIGNS), help="only these codes")
    parser.add_argument("--check", action="store_true", help="only compare the texts with what this builds")
    options = parser.parse_args()
    directory = Path(__file__).parent.parent / "src" / "qtrunk" / "distil" / "codes"
    names = {rows: f"qc{COLUMNS}x{rows}z{LIFT}" for rows in options.rows}
    if options.seeds:
        for rows in options.rows:
            print(rows, best_seed(rows, options.seeds), flush=True)
        return
    if options.check:
        other = [name for rows, name in names.items() if (directory / f"{name}.txt").read_text() != build(rows)]
        sys.exit(f"not what this tool builds: {', '.join(other)}" if other else 0)
    index = []
    for rows, name in names.items():
        text = build(rows)
        code = kernels.load_code(name, text)
        qber = round(design_qber(code, options.frames), 5)
        index.append(
            {
                "name": name,
                "n": code.n,
                "m": code.m,
                "design_qber": qber,
                "efficiency": round(code.m / code.n / entropy(qber), 3),
                "frames": options.frames,
                "failed": 0,
            }
        )
        print(index[-1], flush=True)
        (directory / f"{name}.txt").write_text(text)
    (directory / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
