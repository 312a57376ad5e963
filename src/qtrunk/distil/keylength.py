"""How long a secret key a block of observations supports, and with which epsilon: the rule of the live link.

Rule: variable length, fixed number of sent pulses, two decoy levels, entropic uncertainty relation, no credit for
vacuum (Tupkary, Nahar, Sinha, Lütkenhaus, arXiv:2408.17349; decoy bounds of Lim et al., PRA 89, 022307 (2014), eqs.
(2)-(5)):

    l = floor( s1 [1 - h(e_ph)] - leak - 2 log2(1 / (2 eps_pa)) )
    eps_secret = 2 eps_at + eps_pa,   eps_at = eps_pa = eps_secret / 3

The length is a function, fixed beforehand, of what was observed. Thirteen one-sided statistical events (five counts in
each basis, two error counts, one sampling) may each fail with probability eps_at^2 / 13. Two kinds of tail bounds, both
sound (distil.bounds):

`exact`      Clopper-Pearson limits for the counts of each intensity among all detections (given the pattern of
             detections, the intensity labels are independent), and exact inversion of the hypergeometric distribution
             for the errors of the key bits given those of the test bits
`hoeffding`  Hoeffding's inequality for the counts and Serfling's for the sampling: always looser, simpler to check

Rules of other papers are in distil.proofs, for comparison; a link cannot choose them. The whole argument is in
docs/security.md, measured failures of the bounds in docs/soundness.md.
"""

from dataclasses import dataclass
from math import floor, log2

from qtrunk.distil.bounds import clopper_pearson, hoeffding, hypergeometric, serfling
from qtrunk.distil.decoy import two_decoy_errors, two_decoys
from qtrunk.stages import Observations

EVENTS = 13
EPS_MIN = 1e-100
"""A smaller epsilon cannot be split into events: their squares leave the range of floating point numbers."""
BOUNDS = {"exact": (clopper_pearson, hypergeometric), "hoeffding": (hoeffding, serfling)}
"""Bounds of counts, bound of the sampling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonBudget:
    """What may go wrong with which probability in one block. ValueError for an epsilon that is none."""

    secret: float = 1e-10

    def __post_init__(self) -> None:
        if not EPS_MIN <= self.secret < 1:
            raise ValueError(f"eps_secret {self.secret:g}: from {EPS_MIN:g} to below 1")

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

    vacuum_bits: float
    """Lower bound on the sifted key bits that came from empty pulses; the rule gives no credit for them."""
    single_photon_bits: float
    """Lower bound on the sifted key bits that came from single photons."""
    phase_error: float
    """Upper bound on their phase error rate."""
    length_bits: int
    """Secret bits; 0 where there is no key."""


def proof_of(bounds: str) -> str:
    """Name, bounds and version of the rule; goes into every key's record."""
    return f"variable-length-2-decoy-eur/{bounds}/2"


def key_length(seen: Observations, leak_bits: float, budget: EpsilonBudget, bounds: str = "exact") -> KeyLength:
    """Secret bits of a block after `leak_bits` were said in public (verification tag included).

    Never negative, never more than the sifted bits. ValueError where the intensities are not those of a two-decoy
    protocol, where a level is never sent, or for bounds that are not in BOUNDS.
    """
    if bounds not in BOUNDS:
        raise ValueError(f"bounds {bounds!r}: {' or '.join(BOUNDS)} are sound for a link")
    count_bounds, sampling = BOUNDS[bounds]
    p_fail = budget.event_failure

    def limits(counts: tuple[int, ...]) -> list[tuple[float, float]]:
        return [count_bounds(count, sum(counts), p_fail) for count in counts]

    levels = (seen.intensities, seen.probabilities)
    vacuum, key_singles = two_decoys(*levels, limits(seen.key_counts), sum(seen.key_counts))
    _, test_singles = two_decoys(*levels, limits(seen.test_counts), sum(seen.test_counts))
    test_errors = two_decoy_errors(*levels, limits(seen.test_errors))
    if key_singles < 1 or test_singles < 1:
        return KeyLength(vacuum_bits=vacuum, single_photon_bits=0.0, phase_error=0.5, length_bits=0)
    phase_error = min(0.5, sampling(test_errors, test_singles, key_singles, p_fail))
    # Rounding in the floating point sum must never give a bit: a margin of one bit and a relative 1e-9.
    secret = key_singles * (1 - entropy(phase_error)) * (1 - 1e-9) - 1
    length = floor(secret - leak_bits - 2 * log2(1 / (2 * budget.amplification)))
    return KeyLength(
        vacuum_bits=vacuum,
        single_photon_bits=key_singles,
        phase_error=phase_error,
        length_bits=max(0, min(length, seen.key_total)),
    )


def entropy(rate: float) -> float:
    """Binary entropy; 1 for rates of one half and above, where the formula would fall again."""
    if rate >= 0.5:
        return 1.0
    return 0.0 if rate <= 0 else -rate * log2(rate) - (1 - rate) * log2(1 - rate)
