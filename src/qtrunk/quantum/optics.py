"""The optics of one Faraday-Michelson link as parameters, and what follows from them for a single pulse.

Fibre, receiver optics and detectors thin the light to a mean of `intensity * transmittance` photons in the central time
slot; the two interferometers send it to the right detector with probability 1 - e_opt, e_opt = (1 - V exp(-s^2/2)) / 2
for visibility V and rms residual phase s. Both bases use the same slot and detectors; polarisation drops out with
Faraday mirrors (Mo et al. 2005), so it is no parameter here. Each detector also clicks by itself: dark counts, and
afterpulses as a steady background in proportion to the click rate (their memory is left out). After a click both
detectors are blind for the dead time. Names after ETSI GS QKD 011.
"""

from dataclasses import dataclass
from functools import cached_property
from math import exp

import numpy as np

from qtrunk.kernels import F64
from qtrunk.quantum.source import SourceSettings


@dataclass(frozen=True, kw_only=True)
class LinkOptics:
    """One link's light path. Rates are for a transmitter at `clock_hz`."""

    source: SourceSettings
    clock_hz: float
    loss_db: float
    """Fibre, splices and connectors."""
    receiver_loss_db: float
    detector_efficiency: float
    dark_count_probability: float
    """Per gate and detector."""
    afterpulse_probability: float
    """Total, per click."""
    dead_time_s: float
    visibility: float
    residual_phase_rad: float

    @cached_property
    def transmittance(self) -> float:
        """Photon leaving Alice to click at Bob."""
        return self.detector_efficiency * 10 ** (-(self.loss_db + self.receiver_loss_db) / 10)

    @cached_property
    def optical_error(self) -> float:
        """Probability that a photon takes the wrong output in the right basis."""
        return (1 - self.visibility * exp(-(self.residual_phase_rad**2) / 2)) / 2

    @cached_property
    def dead_pulses(self) -> int:
        """Pulses that go unseen after a click."""
        return round(self.dead_time_s * self.clock_hz)

    @cached_property
    def noise_probability(self) -> float:
        """Chance per gate and detector of a click without light: dark counts and the steady afterpulse background.

        Solved for itself: afterpulses follow from the click rate, which has them in it.
        """
        noise = self.dark_count_probability
        for _ in range(50):
            click = self._mean_click(noise)
            live = 1 / (1 + click * self.dead_pulses)
            noise = self.dark_count_probability + self.afterpulse_probability * click * live / 2
        return noise

    def _mean_click(self, noise: float) -> float:
        pairs = zip(self.source.intensities, self.source.exact_probabilities, strict=True)
        return sum(p * self._click(k, noise) for k, p in pairs)

    def _click(self, intensity: float, noise: float) -> float:
        """Chance that a live receiver clicks, in one detector or both. The same in both bases."""
        return 1 - (1 - noise) ** 2 * exp(-intensity * self.transmittance)

    @cached_property
    def click_probabilities(self) -> tuple[float, ...]:
        """Of a live receiver, for each intensity."""
        return tuple(self._click(k, self.noise_probability) for k in self.source.intensities)

    @cached_property
    def candidate_probability(self) -> float:
        """The largest of them: the rate at which candidates are drawn."""
        return max(self.click_probabilities)

    @cached_property
    def accept(self) -> F64:
        """Which share of candidates of each intensity click."""
        # In perfect darkness there are no candidates, and what share of them clicks does not matter.
        return np.array(self.click_probabilities) / (self.candidate_probability or 1.0)

    @cached_property
    def outcome(self) -> F64:
        """Given a click, cumulative chances of (only the right, only one) detector: shape (intensities, 2, 2)."""
        return np.array(
            [[self._split(k, error) for error in (self.optical_error, 0.5)] for k in self.source.intensities]
        )

    def _split(self, intensity: float, error: float) -> tuple[float, float]:
        light = intensity * self.transmittance
        dark = 1 - self.noise_probability
        right = 1 - dark * exp(-light * (1 - error))
        wrong = 1 - dark * exp(-light * error)
        click = right + wrong - right * wrong
        if click == 0:
            # A level without light or noise never clicks; any split will do.
            return 0.5, 1.0
        return right * (1 - wrong) / click, (right * (1 - wrong) + wrong * (1 - right)) / click
