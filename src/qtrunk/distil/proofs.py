"""Named key-length proofs behind one function: what the counts of one block are worth by each.

| name | decoys | statistics | for a live link |
| --- | --- | --- | --- |
| `variable` | two | exact or Hoeffding, 13 events | yes: distil.keylength, the link's own rule |
| `lim2014` | two | Hoeffding, Lim's gamma, 21 terms | no |
| `rusca2018` | one | Hoeffding, Lim's gamma, 19 terms | no |
| `wiesemann2026` | one | Hoeffding, Serfling, 15 terms | no |

Sources, equations and budgets:

`variable`      arXiv:2408.17349; see distil.keylength. Sound for a length read off the observed counts.
`lim2014`       Lim, Curty, Walenta, Xu, Zbinden, PRA 89, 022307 (2014), eqs. (1) to (5). Its gamma is no tail bound
                with few errors, and it proves one length agreed beforehand, not one read off the data.
`rusca2018`     Rusca, Boaron, Grünenfelder, Martin, Zbinden, APL 112, 171104 (2018), eqs. (A16) to (A25); gamma with
                19, the number of terms, where the paper prints 21. The same two gaps. It needs the errors of the key
                basis by intensity.
`wiesemann2026` Wiesemann, Krause, Tupkary, Lütkenhaus, Rusca, Walenta, Quantum 10, 2037 (2026), arXiv:2405.16578, the
                length formula for one decoy. Its statistics are sound, but it proves a fixed length behind acceptance
                thresholds; a length computed from what was seen, as here, is for planning.

All but the first are there so that a link can be compared with what was published. Basis names are ours: Z makes the
key, X tests; Lim 2014 prints the opposite.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import floor, inf, log, log2
from typing import NamedTuple

from qtrunk.distil import decoy
from qtrunk.distil.bounds import deviation, hoeffding, lim_gamma, serfling_deviation
from qtrunk.distil.keylength import BOUNDS, EPS_MIN, EpsilonBudget, entropy, key_length
from qtrunk.stages import Observations

LIVE = ("variable",)
"""Proofs that hold for a length read off the observed counts of each block: all that a link may use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What is known of one block. By intensity, strongest first; counts may be expected values, not whole."""

    intensities: tuple[float, ...]
    """Mean photon numbers leaving Alice."""
    probabilities: tuple[float, ...]
    key_counts: tuple[float, ...]
    """n_Z: detections where both chose the key basis."""
    key_errors: tuple[float, ...]
    """m_Z: errors among them, counted after verification. Only the proofs with one decoy use them."""
    test_counts: tuple[float, ...]
    """n_X: detections where both chose the test basis."""
    test_errors: tuple[float, ...]
    """m_X: errors among them."""
    leak_bits: float
    """Said in public to reconcile, the verification tag apart: that costs log2(2 / eps_cor) bits more."""
    eps_sec: float
    eps_cor: float

    @property
    def key_total(self) -> float:
        """Length of the sifted key, bits."""
        return sum(self.key_counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What may go wrong with which probability. Authentication is the link's and adds to it."""

    secret: float
    correct: float
    event: float
    """Of each statistical event."""

    @property
    def total(self) -> float:
        """secret + correct."""
        return self.secret + self.correct


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """What a block is worth by one proof."""

    s_z0: float
    """Lower bound on sifted key bits from empty pulses."""
    s_z1: float
    """Lower bound on sifted key bits from single photons."""
    phi_z: float
    """Upper bound on the phase error rate of the latter, at most 0.5."""
    length_bits: int
    """Secret bits; 0 where there is no key; never more than the sifted bits."""
    epsilon: Ledger


class Proof(NamedTuple):
    """One entry of PROOFS."""

    levels: int
    """Intensities: decoy levels and one."""
    rules: Mapping[str, Callable[[Observed], Proved]]
    """By the statistics there are for it, the usual ones first."""


def prove(name: str, observed: Observed, bounds: str | None = None) -> Proved:
    """Secret bits of a block by the proof of this name; `bounds` where it has several.

    ValueError for an unknown name, bounds that the proof does not have, intensities that it is not made for, or an
    epsilon out of range.
    """
    if name not in PROOFS:
        raise ValueError(f"proof {name!r}: {', '.join(PROOFS)} are known")
    proof = PROOFS[name]
    if bounds is not None and bounds not in proof.rules:
        raise ValueError(f"bounds {bounds!r}: {name} has {' or '.join(proof.rules)}")
    if len(observed.intensities) != proof.levels:
        raise ValueError(f"intensities: {name} is for {proof.levels}, {len(observed.intensities)} came")
    decoy.check_levels(observed.intensities)
    if not (EPS_MIN <= observed.eps_sec < 1 and 0 < observed.eps_cor < 1):
        raise ValueError(f"eps_sec: from {EPS_MIN:g} to below 1; eps_cor: between 0 and 1")
    return proof.rules[bounds or next(iter(proof.rules))](observed)


def check_live(name: str) -> None:
    """ValueError unless a link may use the proof of this name."""
    if name not in LIVE:
        raise ValueError(
            f"proof {name!r} is for comparison with papers, not for a link: its length is not proven when read off "
            f"the observed counts. Choose {' or '.join(LIVE)}"
        )


def _variable(seen: Observed, bounds: str) -> Proved:
    budget = EpsilonBudget(secret=seen.eps_sec)
    counts = Observations(
        intensities=seen.intensities,
        probabilities=seen.probabilities,
        key_counts=seen.key_counts,  # type: ignore[arg-type]  # a planner's expected counts are not whole
        test_counts=seen.test_counts,  # type: ignore[arg-type]
        test_errors=seen.test_errors,  # type: ignore[arg-type]
    )
    made = key_length(counts, seen.leak_bits + _tag_bits(seen), budget, bounds)
    return Proved(
        s_z0=made.vacuum_bits,
        s_z1=made.single_photon_bits,
        phi_z=made.phase_error,
        length_bits=int(made.length_bits),
        epsilon=Ledger(secret=seen.eps_sec, correct=seen.eps_cor, event=budget.event_failure),
    )


def _lim2014(seen: Observed) -> Proved:
    terms = 21
    event = seen.eps_sec / terms
    limits = partial(_uncut, event)
    levels = (seen.intensities, seen.probabilities)
    s_z0, s_z1 = decoy.two_decoys(*levels, limits(seen.key_counts), seen.key_total)
    _, s_x1 = decoy.two_decoys(*levels, limits(seen.test_counts), sum(seen.test_counts))
    return _with_lim_gamma(seen, s_z0, s_z1, s_x1, decoy.two_decoy_errors(*levels, limits(seen.test_errors)), terms)


def _rusca2018(seen: Observed) -> Proved:
    terms = 19
    event = seen.eps_sec / terms
    (s_z0, s_z1), (_, s_x1), errors = _one_decoy(seen, partial(_uncut, event), event, inf)
    return _with_lim_gamma(seen, s_z0, s_z1, s_x1, errors, terms)


def _uncut(event: float, counts: tuple[float, ...]) -> list[tuple[float, float]]:
    """Hoeffding's limits as printed: not cut at nothing and at everything."""
    delta = deviation(sum(counts), event)
    return [(count - delta, count + delta) for count in counts]


def _with_lim_gamma(seen: Observed, s_z0: float, s_z1: float, s_x1: float, errors: float, terms: int) -> Proved:
    """Phase error and length with Lim's gamma; `errors` of single photons in the test basis."""
    rate = _rate(errors, s_x1)
    phi_z = _phase_error(rate, s_z1, lim_gamma(seen.eps_sec, rate, s_x1, s_z1, terms) if min(s_x1, s_z1) > 0 else 0.5)
    secret = s_z0 + s_z1 * (1 - entropy(phi_z)) - 6 * log2(terms / seen.eps_sec)
    return _proved(seen, s_z0, s_z1, phi_z, secret, seen.eps_sec / terms)


def _wiesemann2026(seen: Observed) -> Proved:
    terms = 15
    event = seen.eps_sec / terms

    def limits(counts: tuple[float, ...]) -> list[tuple[float, float]]:
        return [hoeffding(count, sum(counts), event) for count in counts]

    # Its limits are cut where counts cannot be: at nothing and at everything.
    (s_z0, s_z1), (_, s_x1), errors = _one_decoy(seen, limits, event, 1.0)
    sampling = serfling_deviation(s_x1, s_z1, log(1 / event)) if min(s_x1, s_z1) > 0 else 0.5
    phi_z = _phase_error(_rate(errors, s_x1), s_z1, sampling)
    # No credit for empty pulses.
    secret = s_z1 * (1 - entropy(phi_z)) - 4 * log2(terms / (seen.eps_sec * 2**0.25))
    return _proved(seen, s_z0, s_z1, phi_z, secret, event)


def _one_decoy(
    seen: Observed, limits: Callable[[tuple[float, ...]], decoy.Limits], event: float, vacuum_share_max: float
) -> tuple[tuple[float, float], tuple[float, float], float]:
    """(s_Z0, s_Z1), (s_X0, s_X1) and the errors of single photons in the test basis."""
    levels = (seen.intensities, seen.probabilities)

    def photons(counts: tuple[float, ...], errors: tuple[float, ...]) -> tuple[float, float]:
        total = sum(counts)
        vacuum = decoy.one_decoy_vacuum(*levels, limits(errors), deviation(total, event))
        if total > 0:
            vacuum = min(vacuum, vacuum_share_max * total)
        return decoy.one_decoy(*levels, limits(counts), vacuum, total)

    return (
        photons(seen.key_counts, seen.key_errors),
        photons(seen.test_counts, seen.test_errors),
        decoy.one_decoy_errors(*levels, limits(seen.test_errors)),
    )


def _rate(errors: float, tested: float) -> float:
    return min(0.5, errors / tested) if tested > 0 else 0.5


def _phase_error(rate: float, kept: float, sampling: float) -> float:
    """At most one half, where a bit is worth nothing."""
    return min(0.5, rate + sampling) if kept > 0 else 0.5


def _tag_bits(seen: Observed) -> float:
    return log2(2 / seen.eps_cor)


def _proved(seen: Observed, s_z0: float, s_z1: float, phi_z: float, secret: float, event: float) -> Proved:
    """The length after what was said; a sum just above a whole number by rounding must not give a bit."""
    length = floor(secret - seen.leak_bits - _tag_bits(seen) - 1e-12 * seen.key_total)
    return Proved(
        s_z0=s_z0,
        s_z1=s_z1,
        phi_z=phi_z,
        length_bits=max(0, min(length, floor(seen.key_total))),
        epsilon=Ledger(secret=seen.eps_sec, correct=seen.eps_cor, event=event),
    )


PROOFS = {
    "variable": Proof(3, {bounds: partial(_variable, bounds=bounds) for bounds in BOUNDS}),
    "lim2014": Proof(3, {"hoeffding": _lim2014}),
    "rusca2018": Proof(2, {"hoeffding": _rusca2018}),
    "wiesemann2026": Proof(2, {"hoeffding": _wiesemann2026}),
}
