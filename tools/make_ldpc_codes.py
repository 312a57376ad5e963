"""Build the LDPC codes in src/qtrunk/distil/codes, reproducibly, and measure how far each one reaches.

    .venv/bin/python tools/make_ldpc_codes.py                # all codes and index.json, about ten minutes
    .venv/bin/python tools/make_ldpc_codes.py --rows 29 --lifts 512 --frames 3000
    .venv/bin/python tools/make_ldpc_codes.py --check        # only tells whether the texts are what this builds

A code is quasi-cyclic: 128 block columns of 512, 2048 or 8192 bits (n = 2^16, 2^18 or 2^20), `rows` block rows. Most columns have degree 3, a share has a
high degree (they converge first and help the others), some have degree 2 (they carry little and cost little). The
shares come from a search with the decoder itself at the error rate where it is about to fail. Two columns that
share two block rows never have the same difference of shifts there, so there is no cycle of length 4; among columns
of low degree there are as few cycles of length 6 as a few tries find, because those catch single errors for ever.
Columns of degree 2 hang together as a path, never a cycle: a cycle of them is a wrong word that every decoder
accepts.

Of a few seeds the one that reaches furthest is kept. `reach` is the largest error rate, in steps of 1 % of itself, at
which at most one in FAILED_SHARE of `frames` frames (fewer of the long codes) failed, for each share of a frame that carries key (distil.reconcile
shortens frames); the decoder is told the true rate.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from qtrunk import kernels
from qtrunk.distil.keylength import entropy
from qtrunk.distil.reconcile import SHARES

COLUMNS = 128
LIFTS = {512: 1, 2048: 4, 8192: 10}
"""Bits of a block column, and how much fewer frames are measured."""
# rows: (columns of degree 2, columns of high degree, that degree, seed)
DESIGNS = {
    5: (4, 44, 5, 0),
    6: (5, 44, 6, 0),
    8: (7, 42, 8, 1),
    10: (6, 44, 9, 2),
    12: (9, 41, 11, 0),
    14: (8, 36, 13, 1),
    17: (15, 35, 13, 1),
    19: (13, 32, 14, 1),
    21: (13, 31, 14, 2),
    23: (13, 30, 15, 0),
    25: (14, 29, 15, 2),
    27: (19, 28, 15, 1),
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
FAILED_SHARE = 50
QBER_MIN, QBER_MAX = 0.0005, 0.15
LOW_DEGREE_MAX = 3
TRIES = 24
"""Shifts of a column of low degree that are tried for the fewest short cycles."""

Differences = dict[tuple[int, int], set[int]]


def build(rows: int, lift: int, seed: int | None = None) -> str:
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
        shifts = _best_shifts(rng, lift, chosen, differences)
        _record(lift, chosen, shifts, differences)
        for r, s in zip(chosen, shifts, strict=True):
            row_degree[r] += 1
            entries[r].append((int(place[index]), s))
    lines = [f"{COLUMNS} {rows} {lift} {row_degree.sum()}"]
    lines += [f"{len(row)} " + " ".join(f"{c}:{s}" for c, s in sorted(row)) for row in entries]
    return "\n".join(lines) + "\n"


def _best_shifts(rng: np.random.Generator, lift: int, chosen: list[int], differences: Differences) -> list[int]:
    if len(chosen) > LOW_DEGREE_MAX:
        return _shifts(rng, lift, chosen, differences)
    best, fewest = _shifts(rng, lift, chosen, differences), None
    for _ in range(TRIES):
        shifts = _shifts(rng, lift, chosen, differences)
        cycles = _cycles_of_6(lift, chosen, shifts, differences)
        if fewest is None or cycles < fewest:
            best, fewest = shifts, cycles
        if cycles == 0:
            break
    return best


def _shifts(rng: np.random.Generator, lift: int, chosen: list[int], differences: Differences) -> list[int]:
    """One shift for each block row, with no difference that another column already has there."""
    shifts: list[int] = []
    for i, r in enumerate(chosen):
        for shift in rng.permutation(lift).tolist():
            if all((shifts[j] - shift) % lift not in differences.get((chosen[j], r), ()) for j in range(i)):
                shifts.append(int(shift))
                break
        else:
            raise SystemExit(f"no shift without a short cycle in block row {r}; change the design")
    return shifts


def _record(lift: int, chosen: list[int], shifts: list[int], differences: Differences) -> None:
    for a, s in zip(chosen, shifts, strict=True):
        for b, t in zip(chosen, shifts, strict=True):
            if a != b:
                differences.setdefault((a, b), set()).add((s - t) % lift)


def _cycles_of_6(lift: int, chosen: list[int], shifts: list[int], differences: Differences) -> int:
    """How many ways lead from one block row of the column to another over two columns that are there already."""
    count = 0
    for i, a in enumerate(chosen):
        for j in range(i):
            b, wanted = chosen[j], (shifts[i] - shifts[j]) % lift
            for (first, middle), steps in differences.items():
                if first == a and middle != b:
                    second = differences.get((middle, b), ())
                    count += sum((wanted - step) % lift in second for step in steps)
    return count


def failures(code: kernels.QcCode, qber: float, share: float, frames: int, seed: int, enough: int) -> int:
    """How many of `frames` random error patterns the decoder does not find; stops where there are `enough`."""
    rng = np.random.default_rng(seed)
    failed, step = 0, max(1, 50 * 65536 // code.n)
    is_key = np.tile(np.arange(code.lift) < round(share * code.lift), code.columns)
    channel = np.where(is_key, kernels.channel_value(qber), kernels.KNOWN).astype(np.int8)
    for _ in range(0, frames, step):
        errors = ((rng.random((step, code.n), np.float32) < qber) & is_key).astype(np.uint8)
        found, _ = kernels.ldpc_decode(code, kernels.ldpc_syndrome(code, errors), channel, ITERATIONS_MAX)
        failed += int(np.sum(np.any(found != errors, axis=1)))
        if failed >= enough:
            break
    return failed


def reach(code: kernels.QcCode, share: float, frames: int) -> float:
    """The largest error rate at which at most one frame in FAILED_SHARE fails."""
    qber, allowed = QBER_MIN, frames // FAILED_SHARE
    while entropy(qber * 1.01) * 1.04 < code.m / code.n / share and qber < QBER_MAX:  # no code of this size goes so far
        qber *= 1.01
    while failures(code, qber, share, frames, seed=1, enough=allowed + 1) > allowed:
        qber /= 1.01
    return qber


def best_seed(rows: int, lift: int, seeds: int) -> int:
    """The seed whose code goes furthest."""
    tries = [kernels.load_code("try", build(rows, lift, seed)) for seed in range(seeds)]
    return int(np.argmax([reach(code, 1.0, 300 // LIFTS[lift]) for code in tries]))


def measured(name: str, text: str, frames: int) -> dict[str, object]:
    """A code's entry in the index."""
    code = kernels.load_code(name, text)
    reaches = [reach(code, share, frames) for share in SHARES]
    efficiency = [code.m / code.n / share / entropy(qber) for share, qber in zip(SHARES, reaches, strict=True)]
    return {
        "name": name,
        "n": code.n,
        "m": code.m,
        "reach": [float(f"{qber:.4g}") for qber in reaches],
        "efficiency": [round(value, 3) for value in efficiency],
    }


def main() -> None:
    """Build and measure."""
    parser = argparse.ArgumentParser(description="Build and measure the LDPC codes.")
    parser.add_argument("--frames", type=int, default=500, help="frames of each measurement")
    parser.add_argument("--seeds", type=int, help="only say which of so many seeds is best for each code")
    parser.add_argument("--rows", type=int, nargs="*", default=list(DESIGNS), help="only these codes")
    parser.add_argument("--lifts", type=int, nargs="*", default=list(LIFTS), help="only these lengths")
    parser.add_argument("--check", action="store_true", help="only compare the texts with what this builds")
    options = parser.parse_args()
    directory = Path(__file__).parent.parent / "src" / "qtrunk" / "distil" / "codes"
    wanted = {f"qc{COLUMNS}x{rows}z{lift}": (rows, lift) for lift in options.lifts for rows in options.rows}
    if options.seeds:
        for rows, lift in wanted.values():
            print(rows, lift, best_seed(rows, lift, options.seeds), flush=True)
        return
    if options.check:
        other = [name for name, one in wanted.items() if (directory / f"{name}.txt").read_text() != build(*one)]
        sys.exit(f"not what this tool builds: {', '.join(other)}" if other else 0)
    index = {entry["name"]: entry for entry in json.loads((directory / "index.json").read_text())}
    for name, (rows, lift) in wanted.items():
        text = build(rows, lift)
        index[name] = measured(name, text, options.frames // LIFTS[lift])
        print(index[name], flush=True)
        (directory / f"{name}.txt").write_text(text)
        entries = sorted(index.values(), key=lambda entry: (entry["n"], entry["m"]))
        (directory / "index.json").write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
