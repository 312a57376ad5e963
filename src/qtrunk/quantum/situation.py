"""What a link is while nothing changes: with or without Eve, whole or broken.

The sampler draws from it, the oracle adds it up, the monitors' readings are made of it. How it comes to be so is for
quantum.attack and quantum.fault.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qtrunk.kernels import F64
from qtrunk.quantum.optics import BASES, STATES, LinkOptics

BITS = np.array([0, 1, 0, 1])
STATE_BASES = np.array([0, 0, 1, 1])


@dataclass(frozen=True, eq=False)
class Branch:
    """One thing that can happen to a pulse in Eve's hands."""

    weight: F64
    """Its chance, shape (intensities, 4 states)."""
    outcomes: F64
    """What a live receiver then shows, shape (intensities, 4, 2, 3) as in quantum.optics; 1 dimension broadcasts."""
    shift_s: float = 0.0
    """How much later than it should such light arrives."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Situation:
    """A link with or without Eve, for as long as nothing changes."""

    branches: tuple[Branch, ...]
    afterpulse_factor: float = 1.0
    entrance_power_w: float = 0.0
    """Her light at Bob's entrance, beside the pulses."""
    photocurrent_a: float = 0.0
    """What it draws from each diode."""
    reverse_power_w: float = 0.0
    """Her light into Alice's transmitter."""
    intensity_factor: float = 1.0
    """Photons leaving Alice over what she believes."""
    is_dark: bool = False
    """No light at all gets through: the receiver loses its lock."""
    gate_delay_s: float = 0.0
    """By how much she made the calibration put the second detector's gate wrong."""
    optics: LinkOptics | None = None
    """The light path as it is now, where a fault has changed the modules themselves."""

    @cached_property
    def outcomes(self) -> F64:
        """Chances of clicks, shape (intensities, 4 states, 2 bases, 3)."""
        if len(self.branches) == 1 and self.branches[0].outcomes.ndim == 4 and np.all(self.branches[0].weight == 1):
            return self.branches[0].outcomes
        total: F64 = sum(
            (branch.weight[:, :, None, None] * branch.outcomes for branch in self.branches),
            np.zeros((1, STATES, BASES, 3)),
        )
        return total


Strategy = Callable[[LinkOptics, float, float, float], Situation]
"""(optics, strength, phase offset of the link in rad, seconds since the attack began) -> what follows."""


NO_STRENGTH = "no strength"


@dataclass(frozen=True)
class Kind:
    """A way to attack."""

    act: Strategy
    strength: float = 0.0
    """Where none is given."""
    meaning: str = NO_STRENGTH


def everything(optics: LinkOptics) -> F64:
    """Weight of a branch that is always taken."""
    return np.ones((len(optics.intensities), STATES))
