"""The closed-form oracle: what a link must show, for tests, planning and comparison with what it does show.

With the parameters of quantum.optics, per pulse: gain of a live receiver Q_k = 1 - (1 - d)^2 exp(-k eta), error rate
from the split of single clicks and a half of double clicks. The dead time blinds both detectors alike, so it scales
every gain by the live share
1 / (1 + Q D), D the blind pulses after a click: exact for the mean of a renewal process with gaps D + geometric.
"""

from dataclasses import dataclass

from qtrunk.quantum.optics import LinkOptics


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Expected values of one link; tuples by intensity, strongest first."""

    live: float
    """Share of gates in which the receiver is not blind."""
    gains: tuple[float, ...]
    """Clicks per pulse sent."""
    errors: tuple[float, ...]
    """Error rate in matched bases."""
    click_hz: float
    double_click_share: float
    """Double clicks among clicks."""
    sifted_bps: float
    """Key-basis sifted key."""
    qber: float
    """Over all intensities, in either basis."""


def expected(optics: LinkOptics) -> Expected:
    """What a link shows on average."""
    probabilities = optics.source.exact_probabilities
    mean = sum(p * q for p, q in zip(probabilities, optics.click_probabilities, strict=True))
    live = 1 / (1 + mean * optics.dead_pulses)
    gains = tuple(q * live for q in optics.click_probabilities)
    basis = optics.source.exact_key_basis_probability
    matched = basis**2 + (1 - basis) ** 2
    errors, doubles = [], []
    for (right, single), (_, single_mismatched) in optics.outcome:
        errors.append(float((single - right) + (1 - single) / 2))
        doubles.append(float(matched * (1 - single) + (1 - matched) * (1 - single_mismatched)))
    weights = [p * g for p, g in zip(probabilities, gains, strict=True)]
    total = sum(weights)
    return Expected(
        live=live,
        gains=gains,
        errors=tuple(errors),
        click_hz=total * optics.clock_hz,
        double_click_share=sum(w * d for w, d in zip(weights, doubles, strict=True)) / total,
        sifted_bps=total * basis**2 * optics.clock_hz,
        qber=sum(w * e for w, e in zip(weights, errors, strict=True)) / total,
    )
