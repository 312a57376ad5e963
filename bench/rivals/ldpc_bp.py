"""The `ldpc` package decoding syndromes of one of our codes, timed: prints one JSON object.

    python ldpc_bp.py --code qc128x29z512.txt --qber 0.03

Sum-product beliefs with a parallel schedule, its own defaults otherwise; the same matrix, errors at the same rate.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import scipy.sparse
from ldpc import BpDecoder

FRAMES, ITERATIONS = 4, 60


def matrix(path: Path) -> scipy.sparse.csr_matrix:
    """The parity-check matrix of a quasi-cyclic code in our text format."""
    lines = path.read_text().splitlines()
    columns, rows, lift, _ = (int(word) for word in lines[0].split())
    steps, at, to = np.arange(lift), [], []
    for row, line in enumerate(lines[1:]):
        for word in line.split()[1:]:
            column, shift = (int(part) for part in word.split(":"))
            at.append(row * lift + steps)
            to.append(column * lift + (steps + shift) % lift)
    at, to = np.concatenate(at), np.concatenate(to)
    return scipy.sparse.csr_matrix((np.ones(len(at), np.uint8), (at, to)), shape=(rows * lift, columns * lift))


def main() -> None:
    """Decode a few frames and print the rate."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--qber", type=float, required=True)
    options = parser.parse_args()
    checks = matrix(options.code)
    decoder = BpDecoder(checks, error_rate=options.qber, max_iter=ITERATIONS, bp_method="product_sum")
    dice = np.random.default_rng(1)
    failed, took_s = 0, 0.0
    for _ in range(FRAMES):
        errors = (dice.random(checks.shape[1]) < options.qber).astype(np.uint8)
        syndrome = (checks @ errors % 2).astype(np.uint8)
        began_s = time.process_time()
        found = decoder.decode(syndrome)
        took_s += time.process_time() - began_s
        failed += int(np.any(found != errors))
    print(json.dumps({"key_mbit_per_s": FRAMES * checks.shape[1] / took_s / 1e6, "failed": failed}))


if __name__ == "__main__":
    main()
