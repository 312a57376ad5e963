"""Count how often bounds of a key's length are wrong, and write docs/soundness.md with its picture.

    .venv/bin/python tools/soundness_study.py                # about three minutes on one core
    .venv/bin/python tools/soundness_study.py --trials 300

Two studies. In the first, photons are tagged: a simulation knows how many detections came from single photons and how
many of these have phase errors, and each bound is compared with the truth at a failure probability that is large enough
to be counted. In the second nothing is drawn: how often a penalty for random sampling is too small follows from the
hypergeometric distribution, at failure probabilities that no simulation reaches. Seeds are fixed, so the same code
writes the same page.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import inf, log, log10
from pathlib import Path

import matplotlib as mpl
import numpy as np
from scipy import stats

from qtrunk.distil import bounds
from qtrunk.distil.keylength import EpsilonBudget, key_length
from qtrunk.distil.proofs import PROOFS, Observed
from qtrunk.stages import Observations

mpl.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
SEED = 20
TRIALS = 2000
EVENTS = (0.02, 0.05)
"""Failure probabilities of one statistical event that are studied by counting."""
FALSE_ALARM = 1e-6
"""Probability that a bound which keeps its promise exactly is called broken, for each line of a table."""
PHOTONS = np.arange(12)
LEVELS = {3: ((0.5, 0.15, 0.0), (0.5, 0.3, 0.2)), 2: ((0.5, 0.15), (0.7, 0.3))}


@dataclass(frozen=True)
class Situation:
    """Light that Eve lets through: yields and error rates by photon number, arrays of the shape of PHOTONS."""

    name: str
    pulses: int
    yields: np.ndarray
    error: np.ndarray
    key_basis: float = 0.8


def line(eta: float, dark: float) -> np.ndarray:
    """Yields of an honest line."""
    return 1 - (1 - dark) * (1 - eta) ** PHOTONS


def erring(rate: float, others: float | None = None, vacuum: float = 0.5) -> np.ndarray:
    """Error rates: of no photon, of one, of more."""
    return np.where(PHOTONS == 0, vacuum, np.where(PHOTONS == 1, rate, rate if others is None else others))


def only(eta: float, photons: tuple[int, ...]) -> np.ndarray:
    """Yields of an honest line without dark counts, cut to some photon numbers."""
    return np.where(np.isin(PHOTONS, photons), line(eta, 0.0), 0.0)


HONEST = line(0.02, 2e-6)
SITUATIONS = (
    Situation("honest, large block", 10**9, HONEST, erring(0.01)),
    Situation("honest, small block", 3 * 10**6, line(0.05, 2e-6), erring(0.01)),
    Situation("honest, small test", 10**8, HONEST, erring(0.01), 0.97),
    Situation("many errors", 10**8, HONEST, erring(0.09)),
    Situation("few errors", 10**8, line(0.02, 0.0), erring(2e-4)),
    # Most blocks have no test error at all, and some errors in the key.
    Situation("hardly any errors", 10**9, line(0.02, 0.0), erring(2.5e-6)),
    Situation("mostly noise", 10**8, line(0.001, 1e-3), erring(0.02)),
    Situation("two thirds of single photons blocked", 10**9, np.where(PHOTONS == 1, HONEST / 3, HONEST), erring(0.02)),
    Situation("all single photons blocked", 10**8, np.where(PHOTONS == 1, 0.0, HONEST), erring(0.01)),
    Situation("errors of single photons only", 10**8, HONEST, erring(0.05, 0.0)),
    # The decoy bounds are equalities for none, one and two photons: there is no slack left but that of statistics.
    Situation("nothing above two photons", 10**9, only(0.02, (1, 2)), erring(0.03, 0.0, 0.0)),
)


@dataclass(frozen=True)
class Tagged:
    """One block, and what only a simulation knows of it: detections by photon number."""

    key: np.ndarray
    """Detections of the key basis, shape (levels, photons)."""
    key_errors: np.ndarray
    test: np.ndarray
    test_errors: np.ndarray
    phase_errors: int
    """Of the single photons of the key basis."""

    @property
    def singles(self) -> int:
        """Detections of single photons in the key basis."""
        return int(self.key[:, 1].sum())


def draw(rng: np.random.Generator, situation: Situation, levels: int, trials: int) -> list[Tagged]:
    """Blocks of this light."""
    mu, p = (np.array(each) for each in LEVELS[levels])
    chance = p[:, None] * stats.poisson.pmf(PHOTONS, mu[:, None]) * situation.yields
    cells = []
    for share in (situation.key_basis**2, (1 - situation.key_basis) ** 2):
        flat = (share * chance).ravel()
        drawn = rng.multinomial(situation.pulses, np.append(flat, 1 - flat.sum()), trials)
        counts = drawn[:, :-1].reshape(trials, *chance.shape)
        cells += [counts, rng.binomial(counts, situation.error)]
    phase = rng.binomial(cells[0][:, :, 1].sum(axis=1), situation.error[1])
    return [Tagged(*each) for each in zip(*cells, phase.tolist(), strict=True)]


# ── whole rules ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class LoudBudget(EpsilonBudget):
    """A budget whose events fail often enough to be counted."""

    event: float

    @property
    def event_failure(self) -> float:
        """Of each statistical event."""
        return self.event


@dataclass(frozen=True)
class Rule:
    """A key-length rule under study: terms of its budget, and events that s_Z1 and everything rest on."""

    name: str
    proof: str
    bounds: str
    pieces: int
    single_events: int = 5
    all_events: int = 13


RULES = (
    Rule("variable, exact", "variable", "exact", 0),
    Rule("variable, hoeffding", "variable", "hoeffding", 0),
    Rule("lim2014", "lim2014", "hoeffding", 21),
    Rule("rusca2018", "rusca2018", "hoeffding", 19),
    Rule("wiesemann2026", "wiesemann2026", "hoeffding", 15),
)


def observed(block: Tagged, levels: int) -> Observed:
    """What Alice and Bob see of it."""

    def by_level(counts: np.ndarray) -> tuple[int, ...]:
        return tuple(int(n) for n in counts.sum(axis=1))

    return Observed(
        intensities=LEVELS[levels][0],
        probabilities=LEVELS[levels][1],
        key_counts=by_level(block.key),
        key_errors=by_level(block.key_errors),
        test_counts=by_level(block.test),
        test_errors=by_level(block.test_errors),
        leak_bits=0.0,
        eps_sec=0.5,
        eps_cor=0.5,
    )


def bounds_of(rule: Rule, seen: Observed, event: float) -> tuple[float, float]:
    """s_Z1 and phi_Z by a rule whose events fail with probability `event` each."""
    if rule.proof == "variable":
        counts = Observations(
            intensities=seen.intensities,
            probabilities=seen.probabilities,
            key_counts=seen.key_counts,
            test_counts=seen.test_counts,
            test_errors=seen.test_errors,
        )
        live = key_length(counts, 0.0, LoudBudget(event=event), rule.bounds)
        return live.single_photon_bits, live.phase_error
    # The rule itself: the check of its epsilon would refuse so large a one.
    made = PROOFS[rule.proof].rules[rule.bounds](replace(seen, eps_sec=rule.pieces * event))
    return made.s_z1, made.phi_z


@dataclass(frozen=True)
class Counted:
    """How often something was wrong, and how often it may be."""

    wrong: int
    trials: int
    allowed: float

    @property
    def limits(self) -> tuple[float, float]:
        """Two-sided 95 % limits of the failure probability (Clopper, Pearson 1934)."""
        interval = stats.binomtest(self.wrong, self.trials).proportion_ci(0.95, "exact")
        return float(interval.low), float(interval.high)

    @property
    def holds(self) -> bool:
        """False if a bound that keeps its promise would be wrong so often with less than FALSE_ALARM only."""
        if self.allowed >= 1:
            return True
        return bool(stats.binomtest(self.wrong, self.trials, self.allowed, alternative="greater").pvalue > FALSE_ALARM)

    def __str__(self) -> str:
        low, high = (100 * limit for limit in self.limits)
        return f"{100 * self.wrong / self.trials:.1f} ({low:.1f}–{high:.1f}){'' if self.holds else ' **broken**'}"


@dataclass(frozen=True)
class RuleRow:
    """One rule in one situation. phi_Z is wrong where it is below one half, which claims nothing, and below the truth."""

    rule: Rule
    situation: Situation
    event: float
    singles: Counted
    phase: Counted
    both: Counted
    claims: float
    """Share of blocks with s_Z1 above 0 and phi_Z below one half."""


def study_rule(rule: Rule, situation: Situation, blocks: list[Tagged], event: float) -> RuleRow:
    """Count."""
    levels = PROOFS[rule.proof].levels
    wrong, claims = np.zeros(3, int), 0
    for block in blocks:
        s_z1, phi_z = bounds_of(rule, observed(block, levels), event)
        is_claim = s_z1 > 0 and phi_z < 0.5
        singles = s_z1 > block.singles
        phase = is_claim and block.singles > 0 and phi_z < block.phase_errors / block.singles
        wrong += (singles, phase, singles or phase)
        claims += is_claim
    allowed = (rule.single_events * event, rule.all_events * event, rule.all_events * event)
    counted = [Counted(int(w), len(blocks), min(1.0, a)) for w, a in zip(wrong, allowed, strict=True)]
    return RuleRow(rule, situation, event, *counted, claims / len(blocks))


# ── one event at a time ─────────────────────────────────────────────────────────────────────────────────────────────


def lim(errors: float, tested: float, kept: float, p_fail: float) -> float:
    """Lim's gamma as printed, for one event that may fail with p_fail."""
    return errors / tested + bounds.lim_gamma(21 * p_fail, errors / tested, tested, kept, 21)


def gaussian(errors: float, tested: float, kept: float, p_fail: float) -> float:
    """The same without the excess of 1 / (ln 2)^2 in its square: what the Gaussian expansion behind it gives (Fung, Ma,
    Chau, PRA 81, 012318 (2010))."""
    rate = errors / tested
    return rate + log(2) * (lim(errors, tested, kept, p_fail) - rate)


Penalty = Callable[[float, float, float, float], float]
PENALTIES: dict[str, Penalty] = {
    "exact": bounds.hypergeometric,
    "Serfling": bounds.serfling,
    "Lim's γ": lim,
    "Gaussian": gaussian,
}


def limits_wrong(block: Tagged, levels: int, event: float, limits: bounds.Bounds) -> np.ndarray:
    """Which limits of counts are on the wrong side of the mean: key, test and errors, by level, lower then upper."""
    mu, p = (np.array(each) for each in LEVELS[levels])
    given = p[:, None] * stats.poisson.pmf(PHOTONS, mu[:, None])
    given = given / given.sum(axis=0)
    wrong = []
    for counts in (block.key, block.test, block.test_errors):
        # Given how many photons each detection had, the mean of each level's count is known.
        means, seen = given @ counts.sum(axis=0), counts.sum(axis=1)
        for mean, count in zip(means, seen, strict=True):
            low, up = limits(float(count), float(seen.sum()), event)
            wrong += [low > mean, up < mean]
    return np.array(wrong)


@dataclass(frozen=True)
class EventRow:
    """Tail bounds in one situation, each with what it may: `event`."""

    situation: Situation
    event: float
    counts: dict[str, Counted]
    """Of the limits of counts, the one that is wrong most often."""
    sampling: dict[str, Counted]
    """Of the single photons' errors, with the true numbers of single photons."""


def study_events(situation: Situation, blocks: list[Tagged], event: float, levels: int = 3) -> EventRow:
    """Count."""
    wrong = {"exact": np.zeros(6 * levels, int), "Hoeffding": np.zeros(6 * levels, int)}
    sampled = dict.fromkeys(PENALTIES, 0)
    for block in blocks:
        wrong["exact"] += limits_wrong(block, levels, event, bounds.clopper_pearson)
        wrong["Hoeffding"] += limits_wrong(block, levels, event, bounds.hoeffding)
        tested, errors = int(block.test[:, 1].sum()), int(block.test_errors[:, 1].sum())
        if min(tested, block.singles) == 0:
            continue
        rate = block.phase_errors / block.singles
        for name, penalty in PENALTIES.items():
            sampled[name] += penalty(errors, tested, block.singles, event) < min(0.5, rate)
    return EventRow(
        situation,
        event,
        {name: Counted(int(each.max()), len(blocks), event) for name, each in wrong.items()},
        {name: Counted(int(n), len(blocks), event) for name, n in sampled.items()},
    )


# ── exact failures of sampling penalties ────────────────────────────────────────────────────────────────────────────

ALPHA = 10**-10.3
SIZES = ((1_000_000, 100_000), (100_000, 10_000), (10_000_000, 1_000_000))
RATES = (1e-4, 3e-4, 1e-3, 1e-2, 0.11)


def log10_failure(penalty: Penalty, rate: float, kept: int, tested: int, alpha: float = ALPHA) -> float:
    """log10 Pr[penalty too small], when a random `tested` of all bits are the test and `rate` of all are wrong.

    Exact: the largest number of test errors that still gives too low a bound, and the hypergeometric probability of
    seeing at most as many. -inf where no number of test errors does.
    """
    wrong = round(rate * (kept + tested))

    def is_low(errors: int) -> bool:
        return penalty(errors, tested, kept, alpha) < (wrong - errors) / kept

    if not is_low(0):
        return -inf
    low, high = 0, min(tested, wrong)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_low(middle) else (low, middle)
    return float(stats.hypergeom.logcdf(low, kept + tested, wrong, tested)) / log(10)


# ── the page ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Study:
    """All that is measured."""

    trials: int
    rules: list[RuleRow]
    events: list[EventRow]


def measured(trials: int, situations: tuple[Situation, ...] = SITUATIONS, rules: tuple[Rule, ...] = RULES) -> Study:
    """Draw the blocks of each situation once, for every rule and both failure probabilities."""
    rule_rows, event_rows = [], []
    for index, situation in enumerate(situations):
        blocks = {
            levels: draw(np.random.default_rng([SEED, index, levels]), situation, levels, trials) for levels in LEVELS
        }
        for rule, event in product(rules, EVENTS):
            rule_rows.append(study_rule(rule, situation, blocks[PROOFS[rule.proof].levels], event))
        event_rows += [study_events(situation, blocks[3], event) for event in EVENTS]
        print(situation.name, flush=True)
    return Study(trials, rule_rows, event_rows)


def as_power(value: float) -> str:
    """Of ten."""
    return "never" if value == -inf else f"10^{value:.1f}"


def picture(study: Study, path: Path) -> None:
    """Failure of sampling penalties over the error rate; measured over allowed for whole rules."""
    plt.rcParams["svg.hashsalt"] = "qtrunk"
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    kept, tested = SIZES[0]
    rates = np.geomspace(2e-5, 0.2, 60)
    for colour, (name, penalty) in zip(("C2", "C0", "C3", "C1"), PENALTIES.items(), strict=True):
        found = [log10_failure(penalty, rate, kept, tested) for rate in rates]
        shown = [(rate, value) for rate, value in zip(rates, found, strict=True) if value > -40]
        left.plot(*zip(*shown, strict=True), colour, lw=1.2, label=name)
    left.axhline(log10(ALPHA), color="k", lw=0.8, ls="--", label="allowed")
    left.set(xscale="log", xlabel="true error rate", ylabel="log10 of the probability of failing", ylim=(-40, 1))
    left.legend(fontsize=8)
    names = [situation.name for situation in SITUATIONS]
    for place, rule in enumerate(RULES):
        rows = [row for row in study.rules if row.rule == rule and row.event == EVENTS[0]]
        at = [names.index(row.situation.name) + 0.14 * (place - 2) for row in rows]
        limits = np.array([row.both.limits for row in rows])
        allowed = np.array([row.both.allowed for row in rows])
        measured_ = np.array([row.both.wrong / row.both.trials for row in rows])
        spread = np.array([measured_ - limits[:, 0], limits[:, 1] - measured_]) / allowed
        right.errorbar(measured_ / allowed, at, xerr=spread, fmt="o", ms=3, lw=1, label=rule.name)
    right.axvline(1, color="k", lw=0.8, ls="--")
    right.set(xlabel=f"failures of s_Z1 or phi_Z, of those allowed (events at {EVENTS[0]:.0%})")
    right.set_yticks(range(len(names)), names, fontsize=7)
    right.legend(fontsize=7)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def rule_table(study: Study, event: float) -> str:
    """Rows of the first table for one failure probability."""
    return "\n".join(
        f"| {row.situation.name} | {row.rule.name} | {row.singles} | {row.phase} | {row.both} | {row.claims:.0%} |"
        for row in study.rules
        if row.event == event
    )


def event_table(study: Study, event: float) -> str:
    """Rows of the second."""
    return "\n".join(
        f"| {row.situation.name} | {' | '.join(str(each) for each in (*row.counts.values(), *row.sampling.values()))} |"
        for row in study.events
        if row.event == event
    )


def exact_rows() -> Iterator[str]:
    """Rows of the third."""
    for (kept, tested), rate in product(SIZES, RATES):
        cells = []
        for name in ("Lim's γ", "Gaussian", "Serfling", "exact"):
            value = log10_failure(PENALTIES[name], rate, kept, tested)
            cells.append(f"**{as_power(value)}**" if value > log10(ALPHA) else as_power(value))
        yield f"| {kept:,} | {tested:,} | {rate:g} | {rate * tested:g} | {' | '.join(cells)} |"


def page(study: Study) -> str:
    """docs/soundness.md."""
    low, high = EVENTS
    kept, tested = SIZES[0]
    broken = sorted(
        {row.rule.name for row in study.rules if not (row.singles.holds and row.phase.holds and row.both.holds)}
    )
    return f"""# Soundness
Are the bounds behind a key's length right as often as they say? `make soundness` counts, and writes this page. The argument is in
[security.md](security.md).

![failures of sampling penalties, and of whole rules](images/soundness.svg)

A bound is *broken* where it fails more often than it says. Rules found broken below: {", ".join(broken) or "none"}. What a link may use
is `variable`, with either kind of bounds.

Lim's γ puts the observed rate where the true one belongs. With few errors the probability of seeing far too few is largest, and just then the penalty
is smallest; with no test error it is nothing, whatever ε was asked for. So a line with hardly any errors breaks every rule that has it.

## Whole rules, photons tagged
{study.trials:,} blocks of each situation (the same for every rule and both probabilities). The simulation knows how many detections of the key basis came
from single photons and how many of these have phase errors. s_Z1 is wrong above the first number, φ_Z below the second's share. A φ_Z of one half
claims nothing and is never wrong. All in per cent, with two-sided 95 % limits in brackets. *Claims* is the share of blocks with s_Z1 above 0 and φ_Z
below one half: where it is 0 a line shows only that the rule promises nothing. A line is called broken where a bound that just keeps its promise
would fail so often with probability below {FALSE_ALARM:g}.

Failures stay far below what is allowed because the budget adds the probabilities of all events (union bound), and a bound fails only when errors of
several events add up; the decoy bounds have no other slack where nothing above two photons comes through. The next tables take events one by one, and
there the exact bounds use up what they may.

### {low:.0%} for each event: s_Z1 may fail in {5 * low:.0%} of the blocks, φ_Z or either in {13 * low:.0%}
| situation | rule | s_Z1 | φ_Z | either | claims |
| --- | --- | --- | --- | --- | --- |
{rule_table(study, low)}

### {high:.0%} for each event: {5 * high:.0%} and {13 * high:.0%}
| situation | rule | s_Z1 | φ_Z | either | claims |
| --- | --- | --- | --- | --- | --- |
{rule_table(study, high)}

## One event at a time
Counts: {6 * 3} limits (key, test, errors; three levels; from below and above), the one that fails most often. Sampling: errors of the single
photons of the key from those of the test, with the true numbers of both. Each may fail as often as the heading says. That γ fails here with many
errors too has another reason: its logarithm falls below 0 for so large a probability and so many counts. No link asks for that; what happens
at a realistic one is in the last table.

### {low:.0%}
| situation | counts, exact | counts, Hoeffding | sampling, exact | sampling, Serfling | Lim's γ | Gaussian |
| --- | --- | --- | --- | --- | --- | --- |
{event_table(study, low)}

### {high:.0%}
| situation | counts, exact | counts, Hoeffding | sampling, exact | sampling, Serfling | Lim's γ | Gaussian |
| --- | --- | --- | --- | --- | --- | --- |
{event_table(study, high)}

## Sampling at a realistic probability, exactly
Of all bits `kept + tested`, this share is wrong; a random `tested` of them are seen. How probable is it that the bound of the others' error rate is too
low? Nothing is drawn: the hypergeometric distribution says it. Allowed are 10^{log10(ALPHA):.1f} (10⁻⁹ in 21 parts); what is more is in bold.
"Gaussian" is Lim's γ (PRA 89, 022307, eq. (5)) without its excess of 1/(ln 2)² in the square, "exact" the inversion that a link uses; "never" means
that no number of test errors gives too low a bound. The left picture is of {kept:,} and {tested:,} bits.

| kept | tested | error rate | test errors expected | Lim's γ | Gaussian | Serfling | exact |
| --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(exact_rows())}

The excess (a logarithm to base 2 over ln 2, where natural ones belong) is all that makes γ conservative at common rates: without it, it fails at every
rate. In the decoy method the observed rate is itself inflated by the limits of counts, so γ's rules fail less often than γ does; that is
luck with the numbers, and it ends where no test error is seen.
"""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Count failures of bounds and write docs/soundness.md.")
    parser.add_argument("--trials", type=int, default=TRIALS, help="blocks of each situation")
    options = parser.parse_args()
    study = measured(options.trials)
    picture(study, DOCS / "images" / "soundness.svg")
    (DOCS / "soundness.md").write_text(page(study))


if __name__ == "__main__":
    main()
