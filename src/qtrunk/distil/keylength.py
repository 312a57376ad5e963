"""How long a secret key a block of observations supports, and with which epsilon.

Rule: variable length, fixed number of sent pulses, two decoy levels, entropic uncertainty relation, no credit for
vacuum (Tupkary, Nahar, Sinha, Lütkenhaus, arXiv:2408.17349; decoy bounds of Lim et al., PRA 89, 022307 (2014), eqs.
(2)-(5)):

    l = floor( s1 [1 - h(e_ph)] - leak - 2 log2(1 / (2 eps_pa)) )
    eps_secret = 2 eps_at + eps_pa,   eps_at = eps_pa = eps_secret / 3

The length is a function, fixed beforehand, of what was observed. Thirteen one-sided statistical events (five counts in
each basis, two error counts, one sampling) may each fail with probability eps_at^2 / 13. Two kinds of tail bounds, both
sound:

`exact`      Clopper-Pearson limits for the counts of each intensity among all detections (given the pattern of
detections, the
             intensity labels are independent; binomial tails dominate Poisson-binomial ones, Hoeffding 1956), and exact
             inversion of the hypergeometric distribution for the errors of the key bits given those of the test bits
`hoeffding`  Hoeffding's inequality for the counts and Serfling's for the sampling: always looser, simpler to check

Lim's gamma and like approximations are not offered: they are not tail bounds everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, exp, floor, log, log2, sqrt

import numpy as np
from scipy.special import betaincinv, gammaln

from qtrunk.stages import Observations

EVENTS = 13
PROOF = "variable-length-2-decoy-eur/exact/1"
"""Name, bounds and version of the default rule; goes into every key's record."""

Bounds = Callable[[int, int, float], tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonBudget:
    """What may go wrong with which probability in one block."""

    secret: float = 1e-10

    @property
    def amplification(self) -> float:
        """eps_pa."""
        return self.secret / 3

    @property
    def event_failure(self) -> float:
        """Failure probability of each statistical event: eps_at^2 / 13. The square is meant (smoothing)."""
        return (self.secret / 3) ** 2 / EVENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLength:
    """The outcome of the rule."""

    single_photon_bits: float
    """Lower bound on the sifted key bits that came from single photons."""
    phase_error: float
    """Upper bound on their phase error rate."""
    length_bits: int
    """Secret bits; 0 where there is no key."""


def key_length(seen: Observations, leak_bits: float, budget: EpsilonBudget, bounds: str = "exact") -> KeyLength:
    """Secret bits of a block after `leak_bits` were said in public (verification tag included).

    Never negative, never more than the sifted bits. ValueError where the intensities are not those of a two-decoy
    protocol.
    """
    count_bounds = {"exact": clopper_pearson, "hoeffding": hoeffding}[bounds]
    p_fail = budget.event_failure
    key_singles = _single_photons(seen, seen.key_counts, count_bounds, p_fail)
    test_singles = _single_photons(seen, seen.test_counts, count_bounds, p_fail)
    test_errors = _single_photon_errors(seen, count_bounds, p_fail)
    if key_singles < 1 or test_singles < 1:
        return KeyLength(single_photon_bits=0.0, phase_error=0.5, length_bits=0)
    sampling = {"exact": hypergeometric, "hoeffding": serfling}[bounds]
    phase_error = min(0.5, sampling(test_errors, test_singles, key_singles, p_fail))
    # Rounding in the floating point sum must never give a bit: a margin of one bit and a relative 1e-9.
    secret = key_singles * (1 - entropy(phase_error)) * (1 - 1e-9) - 1
    length = floor(secret - leak_bits - 2 * log2(1 / (2 * budget.amplification)))
    return KeyLength(
        single_photon_bits=key_singles,
        phase_error=phase_error,
        length_bits=max(0, min(length, seen.key_total)),
    )


def entropy(rate: float) -> float:
    """Binary entropy; 1 for rates of one half and above, where the formula would fall again."""
    if rate >= 0.5:
        return 1.0
    return 0.0 if rate <= 0 else -rate * log2(rate) - (1 - rate) * log2(1 - rate)


def _weights(seen: Observations) -> tuple[float, float]:
    """tau_0 and tau_1: probability that a pulse holds no, one photon."""
    pairs = list(zip(seen.intensities, seen.probabilities, strict=True))
    return sum(p * exp(-k) for k, p in pairs), sum(p * exp(-k) * k for k, p in pairs)


def _single_photons(seen: Observations, counts: tuple[int, ...], bounds: Bounds, p_fail: float) -> float:
    """Lim et al. 2014, eqs. (2) and (3): single-photon detections among `counts`, from below."""
    mu1, mu2, mu3 = seen.intensities
    if not (mu1 > mu2 + mu3 and mu2 > mu3 >= 0):
        raise ValueError("intensities: mu1 > mu2 + mu3 and mu2 > mu3 >= 0 are needed, strongest first")
    tau0, tau1 = _weights(seen)
    total = sum(counts)
    scaled = [
        tuple(exp(k) / p * limit for limit in bounds(count, total, p_fail))
        for k, p, count in zip(seen.intensities, seen.probabilities, counts, strict=True)
    ]
    (_, up1), (low2, up2), (low3, up3) = scaled
    vacuum = max(0.0, tau0 * (mu2 * low3 - mu3 * up2) / (mu2 - mu3))
    singles = (
        tau1
        * mu1
        * (low2 - up3 - (mu2**2 - mu3**2) / mu1**2 * (up1 - vacuum / tau0))
        / (mu1 * (mu2 - mu3) - mu2**2 + mu3**2)
    )
    return min(float(total), max(0.0, singles))


def _single_photon_errors(seen: Observations, bounds: Bounds, p_fail: float) -> float:
    """Lim et al. 2014, eq. (4): single-photon errors in the test basis, from above."""
    _, mu2, mu3 = seen.intensities
    _, tau1 = _weights(seen)
    total = sum(seen.test_errors)
    _, up2 = bounds(seen.test_errors[1], total, p_fail)
    low3, _ = bounds(seen.test_errors[2], total, p_fail)
    p2, p3 = seen.probabilities[1:]
    return max(0.0, tau1 * (exp(mu2) / p2 * up2 - exp(mu3) / p3 * low3) / (mu2 - mu3))


# ── tails ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def clopper_pearson(count: int, total: int, p_fail: float) -> tuple[float, float]:
    """One-sided limits, each failing with at most p_fail, of the mean of a binomial count (times `total`)."""
    low = float(betaincinv(count, total - count + 1, p_fail)) * total if count > 0 else 0.0
    up = total * (1.0 - _upper_complement(count, total, p_fail)) if count < total else float(total)
    return low, up


def _upper_complement(count: int, total: int, p_fail: float) -> float:
    """1 - p for the upper limit p: by symmetry a lower limit of the misses, so no digits are lost near 1."""
    return float(betaincinv(total - count, count + 1, p_fail))


def hoeffding(count: int, total: int, p_fail: float) -> tuple[float, float]:
    """The same by Hoeffding's inequality; the deviation is of the total, for every intensity."""
    delta = sqrt(total * log(1 / p_fail) / 2)
    return max(0.0, count - delta), min(float(total), count + delta)


def serfling(errors: float, tested: float, kept: float, p_fail: float) -> float:
    """Upper limit of the error rate of `kept` bits when `tested` others had `errors` (arXiv:2408.17349, eq. for
    gamma_serf).
    """
    f = kept * tested**2 / ((kept + tested) * (tested + 1))
    return errors / tested + sqrt(log(1 / p_fail) / (2 * f))


def hypergeometric(errors: float, tested: float, kept: float, p_fail: float) -> float:
    """Upper limit of the error rate of `kept` bits when a random `tested` of all had `errors`: exact inversion.

    The largest number E of errors among the kept bits for which drawing at most `errors` into the test still has
    probability p_fail. Safe with bounds for its arguments: more errors, fewer tests or fewer kept bits only raise the
    rate.
    """
    x, k, n = ceil(errors), floor(tested), floor(kept)
    if x >= k:
        return 0.5
    low, high = 0, n  # P[at most x] falls as E grows; low is still possible, high is not (or is all)
    if _log_at_most(x, k, n, high) >= log(p_fail):
        return 1.0
    while high - low > 1:
        middle = (low + high) // 2
        if _log_at_most(x, k, n, middle) >= log(p_fail):
            low = middle
        else:
            high = middle
    return high / n


def _log_at_most(x: int, k: int, n: int, errors_kept: int) -> float:
    """ln P[at most x errors fall into the k tests], when x + errors_kept of all k + n bits are wrong."""
    wrong = x + errors_kept
    right = k + n - wrong
    i = np.arange(max(0, k - right), x + 1, dtype=float)
    if len(i) == 0:
        return -np.inf
    terms = (
        _log_choose(float(wrong), i) + _log_choose(float(right), k - i) - _log_choose(float(k + n), np.array(float(k)))
    )
    top = float(terms.max())
    return top + log(float(np.exp(terms - top).sum()))


def _log_choose(n: float, k: np.ndarray) -> np.ndarray:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
