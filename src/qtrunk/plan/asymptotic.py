"""Secret key rates of decoy-state BB84 in the limit of endless blocks: for planning and for comparison with papers.

Ma, Qi, Zhao, Lo, Phys. Rev. A 72, 012326 (2005): vacuum + weak decoy bounds, eqs. (34) and (37), rate eq. (1). Never a
rule for a live link: real blocks are finite (distil.keylength).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from scipy.optimize import brentq, minimize_scalar

from qtrunk.distil.keylength import entropy

ERROR_OF_NOISE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Of the strongest intensity, per pulse of it that both ends send and measure in one basis."""

    single_photon_gain: float
    """Q1, a lower bound."""
    single_photon_error: float
    """e1, an upper bound."""
    per_pulse: float
    """Secret bits; 0 where there are none."""


def vacuum_and_weak_decoy(
    intensities: Sequence[float], gains: Sequence[float], errors: Sequence[float], efficiency: float
) -> Rate:
    """From gains and error rates of signal, weak decoy and (nearly) vacuum; `efficiency` is that of reconciliation."""
    signal, decoy = intensities[0], intensities[1]
    vacuum_yield = gains[2]
    weighted = gains[1] * exp(decoy) - gains[0] * exp(signal) * (decoy / signal) ** 2
    weighted -= (signal**2 - decoy**2) / signal**2 * vacuum_yield
    single_yield = max(0.0, signal / (signal * decoy - decoy**2) * weighted)
    gain = single_yield * signal * exp(-signal)
    if single_yield == 0:
        return Rate(single_photon_gain=0.0, single_photon_error=0.5, per_pulse=0.0)
    error = (errors[1] * gains[1] * exp(decoy) - ERROR_OF_NOISE * vacuum_yield) / (decoy * single_yield)
    return _rate(gains[0], errors[0], gain, min(0.5, max(0.0, error)), efficiency)


def _rate(total: float, total_error: float, gain: float, error: float, efficiency: float) -> Rate:
    left = gain * (1 - entropy(error)) - total * efficiency * entropy(total_error)
    return Rate(single_photon_gain=gain, single_photon_error=error, per_pulse=max(0.0, left))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A link as the papers have it: everything behind the fibre in three numbers."""

    attenuation_db_per_km: float
    receiver_efficiency: float
    noise: float
    """Y0: clicks of an empty pulse."""
    optical_error: float
    efficiency: float
    """Of reconciliation, f."""

    def gain(self, intensity: float, km: float) -> float:
        """Q, clicks per pulse."""
        return self.noise + 1 - exp(-self._reach(km) * intensity)

    def error(self, intensity: float, km: float) -> float:
        """E, errors per click."""
        light = 1 - exp(-self._reach(km) * intensity)
        return (ERROR_OF_NOISE * self.noise + self.optical_error * light) / self.gain(intensity, km)

    def rate(self, signal: float, km: float, decoy: float | None = None) -> Rate:
        """With a weak decoy and vacuum, or (None) with endlessly many decoys."""
        if decoy is not None:
            levels = (signal, decoy, 0.0)
            gains = [self.gain(level, km) for level in levels]
            return vacuum_and_weak_decoy(levels, gains, [self.error(level, km) for level in levels], self.efficiency)
        reach = self._reach(km)
        single_yield = self.noise + reach - self.noise * reach
        error = (ERROR_OF_NOISE * self.noise + self.optical_error * reach) / single_yield
        gain = single_yield * signal * exp(-signal)
        return _rate(self.gain(signal, km), self.error(signal, km), gain, error, self.efficiency)

    def longest_km(self, signal: float, decoy: float | None = None) -> float:
        """How far there is any key."""

        def margin(km: float) -> float:
            made = self.rate(signal, km, decoy)
            lost = self.gain(signal, km) * self.efficiency * entropy(self.error(signal, km))
            return made.single_photon_gain * (1 - entropy(made.single_photon_error)) - lost

        return float(brentq(margin, 1.0, 400.0))

    def best_signal(self, km: float) -> float:
        """The intensity with the highest rate, with endlessly many decoys."""
        found = minimize_scalar(lambda signal: -self.rate(signal, km).per_pulse, bounds=(0.01, 1.0), method="bounded")
        return float(found.x)

    def _reach(self, km: float) -> float:
        return self.receiver_efficiency * float(10 ** (-self.attenuation_db_per_km * km / 10))
