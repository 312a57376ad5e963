"""Sifting: which clicks count, for the key and for the test. Pure functions on arrays, one entry per click.

Bases are announced only after the light of a block is over; all clicks of matching bases are used, none is dropped, so
key and test clicks are exchangeable (security proof's sampling).
"""

import numpy as np

from qtrunk import kernels
from qtrunk.stages import KEY_BASIS, TEST_BASIS, Observations, Octets, Pulses

assert (KEY_BASIS, TEST_BASIS) == (0, 1), "masks are made of bases by bit operations"


def key_clicks(alice_basis: Octets, bob_basis: Octets) -> Octets:
    """Mask, zeros and ones, of clicks where both chose the key basis."""
    return (alice_basis | bob_basis) ^ np.uint8(1)


def tested_clicks(alice_basis: Octets, bob_basis: Octets) -> Octets:
    """Mask, zeros and ones, of clicks where both chose the test basis."""
    return alice_basis & bob_basis


def observe(pulses: Pulses, key_intensity: Octets, test_intensity: Octets, test_error: Octets) -> Observations:
    """Counts by intensity: of key clicks, test clicks, and errors among the latter."""
    levels = len(pulses.intensities)

    def count(intensity: Octets) -> tuple[int, ...]:
        return tuple(int(n) for n in kernels.tally(intensity)[:levels])

    return Observations(
        intensities=pulses.intensities,
        probabilities=pulses.probabilities,
        key_counts=count(key_intensity),
        test_counts=count(test_intensity),
        test_errors=count(kernels.select(test_intensity, test_error)),
    )
