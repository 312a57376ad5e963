"""Sifting: which clicks count, for the key and for the test. Pure functions on arrays, one entry per click.

Bases are announced only after the light of a block is over; all clicks of matching bases are used, none is dropped, so
key and test clicks are exchangeable (security proof's sampling).
"""

import numpy as np

from qtrunk.stages import KEY_BASIS, TEST_BASIS, Observations, Octets, Pulses


def key_clicks(alice_basis: Octets, bob_basis: Octets) -> np.ndarray:
    """Mask of clicks where both chose the key basis."""
    return np.asarray((alice_basis == KEY_BASIS) & (bob_basis == KEY_BASIS))


def tested_clicks(alice_basis: Octets, bob_basis: Octets) -> np.ndarray:
    """Mask of clicks where both chose the test basis."""
    return np.asarray((alice_basis == TEST_BASIS) & (bob_basis == TEST_BASIS))


def observe(pulses: Pulses, key_intensity: Octets, test_intensity: Octets, test_error: Octets) -> Observations:
    """Counts by intensity: of key clicks, test clicks, and errors among the latter."""
    levels = len(pulses.intensities)

    def count(intensity: Octets) -> tuple[int, ...]:
        return tuple(int(n) for n in np.bincount(intensity, minlength=levels))

    return Observations(
        intensities=pulses.intensities,
        probabilities=pulses.probabilities,
        key_counts=count(key_intensity),
        test_counts=count(test_intensity),
        test_errors=count(test_intensity[test_error.astype(bool)]),
    )
