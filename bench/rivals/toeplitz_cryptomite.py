"""cryptomite's Toeplitz extractor, timed: prints one JSON object. Runs in a virtual environment of its own.

python toeplitz_cryptomite.py 1048576 314572
"""

import json
import random
import sys
import time

from cryptomite.toeplitz import Toeplitz

RUNS = 3


def main() -> None:
    """Run and print."""
    n, length = int(sys.argv[1]), int(sys.argv[2])
    dice = random.Random(1)
    bits, seed = dice.choices((0, 1), k=n), dice.choices((0, 1), k=n + length - 1)
    extractor = Toeplitz(n, length)
    best_s = float("inf")
    for _ in range(RUNS):
        began_s = time.process_time()
        made = extractor.extract(bits, seed)
        best_s = min(best_s, time.process_time() - began_s)
    assert len(made) == length
    print(json.dumps({"bits_per_s": n / best_s}))


if __name__ == "__main__":
    main()
