"""Secret key of a planned link with finite blocks: what its light shows on average, through the link's own key length.

Light is the oracle of the simulated link (quantum.analytic, drift included), reconciliation goes the way that a live
link would take (distil.ways) unless an efficiency is asked for, and the length is distil.proofs: the same functions.
Counts are expected values, so a real block is a little longer or shorter.

Rates are per second of the link's own time; a share of it (`reference_fraction`) goes to the control of the phase.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import exp, log

import numpy as np
from scipy.optimize import minimize

from qtrunk.base.errors import BlockAborted
from qtrunk.distil import decoy
from qtrunk.distil.authentication import AUTH_OCTETS
from qtrunk.distil.keylength import entropy
from qtrunk.distil.proofs import PROOFS, Observed, Proved, prove
from qtrunk.distil.ways import AUTO, Terms, choose_method, least_bits, round_trip_s
from qtrunk.quantum.analytic import Expected, expected
from qtrunk.quantum.channel import drift_of, with_drift
from qtrunk.quantum.detectors import Detector
from qtrunk.quantum.optics import LinkOptics, of_equipment
from qtrunk.quantum.source import SourceSettings
from qtrunk.topology import Equipment

Choice = SourceSettings
"""What a link may choose freely: intensities, their probabilities, probability of the key basis."""
_EVALUATIONS = 500
_FAR = 7.0
_SMOOTH_EFFICIENCY = 1.25
_STARTS = (((0.5, 0.15), (0.55, 0.3, 0.15), 0.9), ((0.4, 0.12), (0.3, 0.5, 0.2), 0.75))


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedLink:
    """One link to be planned."""

    km: float
    loss_db: float
    """Of the fibre with its connectors."""
    equipment: Equipment = field(default_factory=Equipment)
    detector: Detector | None = None
    """Both detectors, where they are not those of the equipment."""
    block_s: float = 4.0
    efficiency: float | None = None
    """Of reconciliation: leak over n h(QBER). None: what a link of its own would say."""
    proof: str = "variable"
    bounds: str | None = None
    eps_sec: float = 1e-10
    eps_cor: float = 1e-15

    @cached_property
    def choice(self) -> Choice:
        """The settings of the equipment; a proof for fewer levels takes the strongest ones, in proportion."""
        equipment = self.equipment
        levels = PROOFS[self.proof].levels
        shares = equipment.probabilities[:levels]
        return Choice(
            equipment.intensities[:levels],
            tuple(share / sum(shares) for share in shares),
            equipment.key_basis_probability,
        )

    def optics(self, choice: Choice) -> LinkOptics:
        """The light path under these settings, with what drift leaves."""
        made = of_equipment(self.equipment, self.loss_db, choice)
        if self.detector is not None:
            made = replace(made, detectors=(self.detector, self.detector))
        return with_drift(made, drift_of(self.equipment, self.km))

    def observed(self, choice: Choice, seen: Expected) -> Observed:
        """Expected counts of one block under these settings, when the light shows `seen`."""
        pulses = self.block_s * self.equipment.clock_hz * (1 - self.equipment.reference_fraction)
        key, test = choice.exact_key_basis_probability**2, (1 - choice.exact_key_basis_probability) ** 2
        sent = np.array(choice.exact_probabilities) * pulses
        gains, error_gains = np.array(seen.gains), np.array(seen.error_gains)

        def counts(share: float, per_pulse: np.ndarray) -> tuple[float, ...]:
            return tuple(float(count) for count in share * sent * per_pulse)

        made = Observed(
            intensities=choice.intensities,
            probabilities=choice.exact_probabilities,
            key_counts=counts(key, gains),
            key_errors=counts(key, error_gains),
            test_counts=counts(test, gains),
            test_errors=counts(test, error_gains),
            leak_bits=0.0,
            eps_sec=self.eps_sec,
            eps_cor=self.eps_cor,
        )
        return replace(made, leak_bits=self._leak_bits(made))

    def _leak_bits(self, seen: Observed) -> float:
        if self.efficiency is not None:
            return self.efficiency * seen.key_total * entropy(sum(seen.key_errors) / max(1e-300, seen.key_total))
        terms = Terms(round(sum(seen.test_errors)), round(sum(seen.test_counts)), max(1, round(seen.key_total)))
        try:
            method = choose_method(AUTO, terms, self.block_s, round_trip_s(self.km))
            return least_bits(method, terms)
        except BlockAborted:  # no way reaches so far
            return seen.key_total

    def prove(self, seen: Observed) -> Proved:
        """By the proof that was asked for."""
        return prove(self.proof, seen, self.bounds)


@dataclass(frozen=True, kw_only=True, eq=False)
class Planned:
    """What a link gives under some settings."""

    link: PlannedLink
    choice: Choice
    observed: Observed
    proved: Proved
    asymptotic_bits: float
    """Of a block of this size if nothing had to be paid for statistics, the vacuum's share included."""

    @property
    def secret_bps(self) -> float:
        """Secret bits per second."""
        return self.proved.length_bits / self.link.block_s

    @property
    def net_bps(self) -> float:
        """The same after each block has paid for the authentication of its own transcript."""
        return max(0.0, self.proved.length_bits - 8 * AUTH_OCTETS) / self.link.block_s

    @property
    def repeaterless_bps(self) -> float:
        """-log2(1 - eta) per pulse, eta the fibre's: no link without a trusted or quantum node can do better
        (Pirandola, Laurenza, Ottaviani, Banchi, Nat. Commun. 8, 15043 (2017)). Endless without loss.
        """
        eta = 10 ** (-self.link.loss_db / 10)
        return self.link.equipment.clock_hz * (float("inf") if eta >= 1 else float(-np.log1p(-eta) / log(2)))


def planned(link: PlannedLink, choice: Choice | None = None) -> Planned:
    """What a link gives, under its equipment's settings unless others are given."""
    choice = link.choice if choice is None else choice
    seen = link.observed(choice, expected(link.optics(choice)))
    return Planned(
        link=link, choice=choice, observed=seen, proved=link.prove(seen), asymptotic_bits=asymptotic_bits(seen)
    )


def asymptotic_bits(seen: Observed) -> float:
    """Secret bits of these counts if they were their own means: the limit of every proof here, at least 0."""
    levels = (seen.intensities, seen.probabilities)

    def means(counts: tuple[float, ...]) -> list[tuple[float, float]]:
        return [(count, count) for count in counts]

    def photons(counts: tuple[float, ...], errors: tuple[float, ...]) -> tuple[float, float]:
        total = sum(counts)
        if len(seen.intensities) == 3:
            return decoy.two_decoys(*levels, means(counts), total)
        vacuum = decoy.one_decoy_vacuum(*levels, means(errors), 0.0)
        return decoy.one_decoy(*levels, means(counts), vacuum, total)

    empty, singles = photons(seen.key_counts, seen.key_errors)
    _, tested = photons(seen.test_counts, seen.test_errors)
    wrong = (decoy.two_decoy_errors if len(seen.intensities) == 3 else decoy.one_decoy_errors)(
        *levels, means(seen.test_errors)
    )
    if tested <= 0:
        return 0.0
    return max(0.0, empty + singles * (1 - entropy(wrong / tested)) - seen.leak_bits)


def optimised(link: PlannedLink, start: Choice | None = None) -> Planned:
    """What a link gives under the best settings found; the weakest of three intensities stays as it is.

    The leak of the codes goes in steps, by their few rates and by whole frames, that a search gets stuck on: so there
    is a second one with a leak in proportion to the entropy of the errors, and a third from where that ends. The oracle
    of the search takes afterpulses as noise in proportion to the clicks (a fifth of a per cent off, fifty times
    faster); the answer is the full oracle's, with settings rounded to four decimals. Never worse than the equipment's
    settings or `start`.
    """
    starts = [link.choice, *([start] if start is not None else [])]
    weakest = link.choice.intensities[2:]
    share = expected(link.optics(link.choice)).afterpulse_share

    def score_of(one: PlannedLink) -> Callable[[Choice], float]:
        return lambda choice: _score(one, one.observed(choice, _quick(one, choice, share)))

    tries = starts + [
        Choice(levels + weakest, _shares(np.log(shares[: 2 + len(weakest)])), basis)
        for levels, shares, basis in _STARTS
    ]
    score = score_of(link)
    found = [best(score, max(tries, key=score))]
    if link.efficiency is None:
        smooth = score_of(replace(link, efficiency=_SMOOTH_EFFICIENCY))
        found.append(best(smooth, max(tries, key=smooth)))
        found.append(best(score, found[-1]))
    candidates = starts + [_rounded(choice) for choice in found]
    return max((planned(link, choice) for choice in candidates), key=lambda made: _score(link, made.observed))


def improved(link: PlannedLink, start: Choice) -> Planned:
    """What a link gives under settings near `start` that are better, or under `start`; a single, quicker search."""
    share = expected(link.optics(start)).afterpulse_share
    found = best(lambda choice: _score(link, link.observed(choice, _quick(link, choice, share))), start)
    return max((planned(link, choice) for choice in (start, _rounded(found))), key=lambda made: made.net_bps)


def best(score: Callable[[Choice], float], start: Choice) -> Choice:
    """The settings with the highest score near `start`, by the downhill simplex method, twice (it can get stuck).

    Two or three intensities; a third stays. Every point tried is a valid set of settings.
    """
    weakest = start.intensities[2:]
    point = _to_free(start)
    for spread in (0.25, 0.08):
        simplex = np.vstack([point, point + spread * np.eye(len(point))])
        found = minimize(
            lambda free: -score(_of_free(free, weakest)),
            point,
            method="Nelder-Mead",
            options={"initial_simplex": simplex, "maxfev": _EVALUATIONS, "xatol": 2e-3, "fatol": 1e-9},  # type: ignore[call-overload]
        )
        point = found.x
    return _of_free(point, weakest)


def _score(link: PlannedLink, seen: Observed) -> float:
    """Bits of key; below any key how far the block is from it, so that a search finds its way out."""
    made = link.prove(seen)
    if made.length_bits > 0:
        return made.length_bits
    return min(0.0, made.s_z1 * (1 - entropy(made.phi_z)) - seen.leak_bits) - (0.0 if made.s_z1 else seen.key_total)


def _quick(link: PlannedLink, choice: Choice, share: float) -> Expected:
    """The oracle with noise in place of afterpulses: `share` of all clicks."""
    optics = link.optics(choice)
    first, second = (replace(each, afterpulse_probability=0.0) for each in optics.detectors)
    quiet = replace(optics, detectors=(first, second))
    seen = expected(quiet)
    click = seen.click_hz / (seen.live * optics.clock_hz)
    return expected(replace(quiet, noise_probability=optics.noise_probability + click * share / (1 - share) / 2))


def _to_free(choice: Choice) -> np.ndarray:
    """Settings as numbers without limits."""
    mu1, mu2, *weakest = choice.intensities
    least = weakest[0] if weakest else 0.0
    part = (mu2 - least) / (mu1 - 2 * least)
    shares = np.log(choice.probabilities)
    basis = choice.key_basis_probability
    return np.array([log(mu1), log(part / (1 - part)), *(shares[1:] - shares[0]), log(basis / (1 - basis))])


def _of_free(free: np.ndarray, weakest: tuple[float, ...]) -> Choice:
    """The settings that `_to_free` made these numbers of."""
    least = weakest[0] if weakest else 0.0
    mu1 = 2.001 * least + exp(min(1.0, max(-4.0, free[0])))
    mu2 = least + (mu1 - 2 * least) * _part(free[1])
    return Choice((mu1, mu2, *weakest), _shares(np.array([0.0, *free[2:-1]])), _part(free[-1]))


def _part(number: float) -> float:
    """Anything to between 0 and 1, by a thousandth at least: four decimals still tell it from either."""
    return 1 / (1 + exp(-min(_FAR, max(-_FAR, number))))


def _shares(logarithms: np.ndarray) -> tuple[float, ...]:
    parts = np.exp(np.clip(logarithms - np.max(logarithms), -_FAR, 0.0))
    return tuple(float(part) for part in parts / parts.sum())


def _rounded(choice: Choice) -> Choice:
    """To four decimals, as a modulator is set."""
    rest = [round(p, 4) for p in choice.probabilities[1:]]
    mu1, mu2, *weakest = choice.intensities
    return Choice(
        (round(mu1, 4), round(mu2, 4), *weakest),
        (round(1 - sum(rest), 4), *rest),
        round(choice.key_basis_probability, 4),
    )


def figures(made: Planned) -> dict[str, object]:
    """For people and scripts: settings, expected counts, bounds, rates in bit/s."""
    link, seen = made.link, made.observed
    qber = sum(seen.key_errors) / seen.key_total if seen.key_total else 0.5
    return {
        "km": link.km,
        "loss_db": link.loss_db,
        "block_s": link.block_s,
        "intensities": list(made.choice.intensities),
        "probabilities": list(made.choice.exact_probabilities),
        "key_basis_probability": made.choice.exact_key_basis_probability,
        "n_Z": list(seen.key_counts),
        "m_Z": list(seen.key_errors),
        "n_X": list(seen.test_counts),
        "m_X": list(seen.test_errors),
        "leak_bits": seen.leak_bits,
        "qber": qber,
        "efficiency": seen.leak_bits / (seen.key_total * entropy(qber)) if seen.key_total and qber else None,
        "sifted_bps": seen.key_total / link.block_s,
        "secret_bps": made.secret_bps,
        "net_bps": made.net_bps,
        "asymptotic_bps": made.asymptotic_bits / link.block_s,
        "repeaterless_bps": made.repeaterless_bps,
    }
