"""What counts by intensity say about pulses with no or one photon: the equations of the decoy method, no statistics.

A Poisson source of intensity k sends n photons with probability e^-k k^n / n!. Given which detections there were and
how many photons each pulse had, the intensity of each is an independent draw with p(k | n), whatever Eve did: that is
the whole decoy method. Limits of the mean counts of each intensity (`limits`: one (lower, upper) pair each, strongest
first, from distil.bounds) then bound sums over all photon numbers. Results are numbers of detections or of errors, at
least 0.

Two decoy levels: Lim, Curty, Walenta, Xu, Zbinden, PRA 89, 022307 (2014). One: Rusca, Boaron, Grünenfelder, Martin,
Zbinden, APL 112, 171104 (2018).
"""

from collections.abc import Sequence
from math import exp

Levels = Sequence[float]
Limits = Sequence[tuple[float, float]]


def check_levels(intensities: Levels) -> None:
    """ValueError unless the equations hold for these intensities, strongest first: three of them or two."""
    if len(intensities) == 3:
        mu1, mu2, mu3 = intensities
        if not (mu1 > mu2 + mu3 and mu2 > mu3 >= 0):
            raise ValueError("intensities: mu1 > mu2 + mu3 and mu2 > mu3 >= 0 are needed, strongest first")
    elif len(intensities) == 2:
        if not intensities[0] > intensities[1] > 0:
            raise ValueError("intensities: mu1 > mu2 > 0 are needed, strongest first")
    else:
        raise ValueError(f"intensities: two or three are needed, {len(intensities)} came")


def photon_weights(intensities: Levels, probabilities: Levels) -> tuple[float, float]:
    """tau_0 and tau_1: probability that a pulse holds no, one photon. ValueError for a level that is never sent."""
    pairs = list(zip(intensities, probabilities, strict=True))
    if not all(p > 0 for p in probabilities):
        raise ValueError(f"probabilities: each must be above 0, {list(probabilities)} came")
    return sum(p * exp(-k) for k, p in pairs), sum(p * exp(-k) * k for k, p in pairs)


def _scaled(intensities: Levels, probabilities: Levels, limits: Limits) -> list[tuple[float, float]]:
    """n^- and n^+ of each intensity: e^k / p_k times the limits (Rusca 2018, eq. (A18), prints them without)."""
    return [
        (exp(k) / p * low, exp(k) / p * up) for k, p, (low, up) in zip(intensities, probabilities, limits, strict=True)
    ]


def two_decoys(intensities: Levels, probabilities: Levels, limits: Limits, total: float) -> tuple[float, float]:
    """Detections of empty pulses and of single photons among `total`, both from below (Lim 2014, eqs. (2), (3))."""
    check_levels(intensities)
    mu1, mu2, mu3 = intensities
    tau0, tau1 = photon_weights(intensities, probabilities)
    (_, up1), (low2, up2), (low3, up3) = _scaled(intensities, probabilities, limits)
    vacuum = max(0.0, tau0 * (mu2 * low3 - mu3 * up2) / (mu2 - mu3))
    singles = (
        tau1
        * mu1
        * (low2 - up3 - (mu2**2 - mu3**2) / mu1**2 * (up1 - vacuum / tau0))
        / (mu1 * (mu2 - mu3) - mu2**2 + mu3**2)
    )
    return min(float(total), vacuum), min(float(total), max(0.0, singles))


def two_decoy_errors(intensities: Levels, probabilities: Levels, limits: Limits) -> float:
    """Errors of single photons, from above, by limits of the errors (Lim 2014, eq. (4)); the strongest is not used."""
    _, tau1 = photon_weights(intensities, probabilities)
    (_, mu2, mu3), (_, p2, p3) = intensities, probabilities
    (_, up2), (low3, _) = limits[1:]
    return max(0.0, tau1 * (exp(mu2) / p2 * up2 - exp(mu3) / p3 * low3) / (mu2 - mu3))


def one_decoy_vacuum(intensities: Levels, probabilities: Levels, error_limits: Limits, deviation: float) -> float:
    """Detections of empty pulses, from above, by limits of all errors (Rusca 2018, eq. (A16)).

    Empty pulses err half of the time, up to `deviation` (of the detections): so errors bound them. The better of the
    two intensities counts.
    """
    tau0, _ = photon_weights(intensities, probabilities)
    errors = min(up for _, up in _scaled(intensities, probabilities, error_limits))
    return 2 * (tau0 * errors + deviation)


def one_decoy(
    intensities: Levels, probabilities: Levels, limits: Limits, vacuum: float, total: float
) -> tuple[float, float]:
    """Detections of empty pulses and of single photons among `total`, both from below (Rusca 2018, eqs. (A19), (A17)).

    `vacuum` is the upper limit of the former.
    """
    check_levels(intensities)
    mu1, mu2 = intensities
    tau0, tau1 = photon_weights(intensities, probabilities)
    (_, up1), (low2, _) = _scaled(intensities, probabilities, limits)
    empty = tau0 / (mu1 - mu2) * (mu1 * low2 - mu2 * up1)
    singles = (
        tau1
        * mu1
        / (mu2 * (mu1 - mu2))
        * (low2 - (mu2 / mu1) ** 2 * up1 - (mu1**2 - mu2**2) / mu1**2 * (vacuum / tau0))
    )
    return min(float(total), max(0.0, empty)), min(float(total), max(0.0, singles))


def one_decoy_errors(intensities: Levels, probabilities: Levels, limits: Limits) -> float:
    """Errors of single photons, from above, by limits of the errors (Rusca 2018, eq. (A22))."""
    _, tau1 = photon_weights(intensities, probabilities)
    (_, up1), (low2, _) = _scaled(intensities, probabilities, limits)
    return max(0.0, tau1 / (intensities[0] - intensities[1]) * (up1 - low2))
