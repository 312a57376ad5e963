"""Tail bounds: what a count says about its mean, and a sample about the rest. Plain numbers in and out, no arrays.

Sound for every argument:

`clopper_pearson`  exact binomial limits (Clopper, Pearson, Biometrika 26, 404 (1934)), never closer than one count: so
                   also for independent labels of unequal probabilities, because binomial tails dominate
                   Poisson-binomial ones from one count beyond the mean on (Hoeffding, Ann. Math. Statist. 27, 713
                   (1956), theorem 4)
`hoeffding`        Hoeffding, J. Am. Stat. Assoc. 58, 13 (1963), theorem 1: looser, and easy to check by hand
`hypergeometric`   exact inversion of sampling without replacement, for limits of its arguments too
`serfling`         Serfling, Ann. Statist. 2, 39 (1974), as arXiv:2408.17349 uses it

Not sound everywhere: `lim_gamma` puts the observed error rate where the true one belongs, so it shrinks to nothing with
few errors, when the chance of having seen so few is largest. It is here to compute what papers computed, never for a
link. (docs/soundness.md counts how often each of them fails.)
"""

from collections.abc import Callable
from math import ceil, floor, inf, log, log2, nextafter, sqrt

import numpy as np
from scipy.special import betainc, betaincinv, gammaln

Bounds = Callable[[float, float, float], tuple[float, float]]
"""(count, total, p_fail) to (lower, upper) limit of the count's mean, each wrong with at most p_fail."""

LARGEST_EXACT = 1e11
"""More counts than this and the exact bounds give way to Hoeffding's and Serfling's: logarithms of factorials lose
their decimals, and from 10^14 on SciPy's inverse of the incomplete beta function is off by several deviations, or not a
number."""
_CARE = 0.99
"""Exact bounds aim at this share of the failure probability that they may have. Computed probabilities are off by up to
two parts in a thousand at LARGEST_EXACT, by 10^-7 at 10^7 counts."""
_HALVINGS = 60
"""Of an interval in the search for a limit: as many as a float has digits, and some."""
_NEGLIGIBLE = 1e-25
"""Share of a sum that rounding would swallow anyway."""


def clopper_pearson(count: float, total: float, p_fail: float) -> tuple[float, float]:
    """One-sided limits, each failing with at most p_fail, of the mean of a count (times `total`).

    For a sum of `total` independent labels, whatever their probabilities. The mean of labels that are not alike may be
    closer to the count than a binomial one could be (a single label of probability just above p_fail, say), but never
    where the limit keeps one count away.
    """
    if total > LARGEST_EXACT:
        return hoeffding(count, total, p_fail)
    low = min(_lower(count, total, p_fail) * total, count - 1)
    # An upper limit is a lower limit of the misses: so no digits are lost near 1, and none by the difference.
    up = max(nextafter(total - _lower(total - count, total, p_fail) * total, inf), count + 1)
    return max(0.0, low), min(float(total), up)


def _lower(count: float, total: float, p_fail: float) -> float:
    """The p for which a binomial count is at least `count` with p_fail, or a little less."""
    if count <= 0:
        return 0.0

    def probability(p: float) -> float:
        return float(betainc(count, total - count + 1, p))

    # SciPy's inverse is quick, but not to be believed: it is not a number for a few counts and p_fail below 10^-150,
    # and for a count of 1000 among 10^9 it has been seen to say 2500. The function itself is right.
    found = float(betaincinv(count, total - count + 1, _CARE * p_fail))
    if _CARE**2 * p_fail <= probability(found) <= p_fail:
        return found
    low, high = 0.0, count / total
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) <= _CARE * p_fail else (low, middle)
    return low


def hoeffding(count: float, total: float, p_fail: float) -> tuple[float, float]:
    """The same by Hoeffding's inequality; the deviation is of the total, for every intensity."""
    delta = deviation(total, p_fail)
    return max(0.0, count - delta), min(float(total), count + delta)


def deviation(total: float, p_fail: float) -> float:
    """delta(n, eps) = sqrt(n ln(1/eps) / 2) of Lim et al. 2014, eq. (2) and after: of a count among `total`."""
    return sqrt(total * log(1 / p_fail) / 2)


def serfling(errors: float, tested: float, kept: float, p_fail: float) -> float:
    """Upper limit of the error rate of `kept` bits when `tested` others had `errors` (arXiv:2408.17349, eq. for
    gamma_serf).
    """
    return errors / tested + serfling_deviation(tested, kept, log(1 / p_fail) / 2)


def serfling_deviation(tested: float, kept: float, exponent: float) -> float:
    """sqrt(exponent (tested + kept)(tested + 1) / (kept tested^2)): exceeded with at most exp(-2 exponent).

    The sizes are not alike: it is the test that enters squared.
    """
    return sqrt(exponent / (kept * tested**2 / ((kept + tested) * (tested + 1))))


def hypergeometric(errors: float, tested: float, kept: float, p_fail: float) -> float:
    """Upper limit of the error rate of `kept` bits when a random `tested` of all had `errors`: exact inversion.

    The largest number E of errors among the kept bits for which drawing at most `errors` into the test still has
    probability p_fail, and one more. At most 1; 1 where the test says nothing.

    The arguments may be limits: errors from above, tested and kept from below. For leave out at random some of both,
    until floor(tested) and floor(kept) are left: that is random sampling as before, with no more errors in the test.
    The rate then holds for a random choice of floor(kept) of the kept bits, and a key is as secret as its part at
    least.
    (The rate itself is not monotone in `kept`: whole numbers of errors make it jump.)
    """
    if tested + kept > LARGEST_EXACT:
        return min(1.0, serfling(errors, tested, kept, p_fail))
    x, k, n = ceil(errors), floor(tested), floor(kept)
    if x >= k or n < 1:
        return 1.0
    allowed = log(_CARE * p_fail)
    low, high = 0, n  # P[at most x] falls as E grows; low is still possible, high is not (or is all)
    if _log_at_most(x, k, n, high) >= allowed:
        return 1.0
    while high - low > 1:
        middle = (low + high) // 2
        if _log_at_most(x, k, n, middle) >= allowed:
            low = middle
        else:
            high = middle
    return high / n


def _log_at_most(x: int, k: int, n: int, errors_kept: int) -> float:
    """ln P[at most x errors fall into the k tests], when x + errors_kept of all k + n bits are wrong.

    Terms rise up to the likeliest number and fall at ever larger steps below it: so the sum goes down from there, or
    from x, and ends where a geometric series over all that is left would be negligible. Above it, it ends after twelve
    deviations and some: what is left there is below 10^-30 (Bernstein), and there may be 10^10 terms.
    """
    wrong = x + errors_kept
    right = k + n - wrong
    first = max(0, k - right)
    if first > x:
        return -inf
    likeliest = (k + 1) * (wrong + 1) // (k + n + 2)
    top_i = min(x, max(first, likeliest))
    last = top_i
    while last > first:
        last = max(first, top_i - 2 * (top_i - last) - 64)
        step = last * (right - k + last) / ((wrong - last + 1) * (k - last + 1))  # of the next term over the last
        gap = _log_term(last, wrong, right, k) - _log_term(top_i, wrong, right, k)
        if step < 1 and gap + log(max(step, 1e-300) / (1 - step)) < log(_NEGLIGIBLE):
            break
    share = wrong / (k + n)
    most = min(x, top_i + ceil(12 * sqrt(k * share * (1 - share))) + 64)
    i = np.arange(last, most + 1, dtype=float)
    terms = _log_term(i, wrong, right, k)
    top = float(terms.max())
    return top + log(float(np.exp(terms - top).sum()))


def _log_term(i: np.ndarray | int, wrong: int, right: int, k: int) -> np.ndarray:
    """ln P[exactly i errors fall into the k tests]."""
    whole = float(wrong + right)
    return np.asarray(_log_choose(float(wrong), i) + _log_choose(float(right), k - i) - _log_choose(whole, float(k)))


def _log_choose(n: float, k: np.ndarray | float) -> np.ndarray:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def lim_gamma(eps: float, rate: float, tested: float, kept: float, pieces: int) -> float:
    """Lim et al. 2014, eq. (5): what sampling adds to the observed error rate, `eps` shared by `pieces` terms.

    As printed, with ln 2 in the denominator (that excess is what hides the flaw at common error rates). Not a tail
    bound: below some 80 test errors it fails far more often than it says.
    """
    if not 0 < rate < 1:
        return 0.0
    spread = (tested + kept) * (1 - rate) * rate / (tested * kept)
    inner = log2((tested + kept) / (tested * kept * (1 - rate) * rate) * (pieces / eps) ** 2)
    return sqrt(max(0.0, spread / log(2) * inner))
