"""Decoy-state clicks the plain way, pulse by pulse in NumPy arrays, timed: prints one JSON object."""

import json
import time

import numpy as np

PULSES = 4_000_000


def main() -> None:
    """Run a few times and print the best."""
    dice = np.random.default_rng(1)
    gains, errors = np.array([1.2e-3, 4e-4, 1e-5]), np.array([0.015, 0.017, 0.5])
    best = 0.0
    for _ in range(5):
        began_s = time.process_time()
        level = np.searchsorted([0.7, 0.9], dice.random(PULSES))
        alice, bob, bit = dice.integers(0, 2, (3, PULSES), np.uint8)
        clicks = np.flatnonzero(dice.random(PULSES) < gains[level])
        wrong = dice.random(len(clicks)) < np.where(alice[clicks] == bob[clicks], errors[level[clicks]], 0.5)
        seen = bit[clicks] ^ wrong
        best = max(best, len(seen) / (time.process_time() - began_s))
    print(json.dumps({"clicks_per_s": best}))


if __name__ == "__main__":
    main()
