"""Figures of sifting: bases compared and bits kept, beside NumPy.

Bits lie in octets, one each, from the modules to the decoder: what would be packed would have to be unpacked again. So
a click here is an octet of basis at either end and one of bit.
"""

import numpy as np

from qtrunk import kernels
from qtrunk.distil import sift
from qtrunk.plan.bench.figures import Figure, median, rates
from qtrunk.plan.bench.reconciliation import error_patterns

CLICKS = 1 << 16
"""At once: all of it stays in the second cache, as in the passes over a block's pieces."""
ROUNDS = 200


def sifting(runs: int, _with_rivals: bool) -> list[Figure]:
    """Clicks per second of one core; NumPy does the same with the same arrays."""
    every = np.ones(CLICKS, np.uint8)
    alice, bob = (error_patterns(every, 1, 0.1, seed)[0] for seed in (1, 2))
    bit = error_patterns(every, 1, 0.5, 3)[0]
    kept = kernels.select(bit, sift.key_clicks(alice, bob))
    assert np.array_equal(kept, bit[(alice == 0) & (bob == 0)]), "sifting keeps the clicks of the key basis"

    def ours() -> float:
        for _ in range(ROUNDS):
            kernels.select(bit, sift.key_clicks(alice, bob))
        return ROUNDS * CLICKS / 1e9

    def theirs() -> float:
        for _ in range(ROUNDS):
            _ = bit[(alice | bob) == 0]
        return ROUNDS * CLICKS / 1e9

    samples = rates(ours, runs)
    return [
        Figure(
            name="sifting: bases compared, key bits kept",
            value=median(samples),
            unit="Gclick/s",
            goal=20.0,
            samples=samples,
            rival="NumPy, indexing by a mask",
            rival_value=median(rates(theirs, runs)),
            note="bits lie in octets all along, for the decoder's sake; three octets are read for each click",
        )
    ]
