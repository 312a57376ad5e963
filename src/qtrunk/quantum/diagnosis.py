"""What happened to a link, from what its ends saw of a block: ranked hypotheses, each with its reason.

Two steps. `signs` compares each observable with what the link should show: counts by exact conditional Poisson tests,
each with the chance FALSE_ALARM per block that an unchanged link fails it beside a stated tolerance; powers, currents
and calibrations against the limits of quantum.monitors. `diagnose` names what shows such signs together. Some twenty
tests make a block: an unchanged link gives any sign with less than 1e-6. What the link should show is a `Norm`: the
oracle's figures for its topology (quantum.analytic) until some honest blocks were seen, then theirs.

No single statistic exposes a controlled detector, so light at the entrance, current in the diodes, the attenuator
test, clicks without light and double clicks each speak for themselves.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from qtrunk.kernels import F64
from qtrunk.quantum import monitors
from qtrunk.quantum.analytic import expected
from qtrunk.quantum.device import ARRIVAL_BINS, ReceiverReadings, TransmitterReadings
from qtrunk.quantum.monitors import FALSE_ALARM, at_least, at_most
from qtrunk.quantum.optics import LinkOptics
from qtrunk.stages import Observations, Positions

GAIN_TOLERANCE = 0.1
"""Of the clicks against the norm: as monitors.LOSS_STEP."""
RATIO_TOLERANCE = 0.02
"""Of decoys over signals."""
ERROR_TOLERANCE = 0.25
"""Of the error rate against the norm, in parts of itself: the phase loop leaves more on one day than on another."""
NOISE_TOLERANCE = 0.5
"""Of clicks without light."""
DOUBLE_TOLERANCE = 1.0
"""Of double clicks."""
CLOSE_TOLERANCE, CLOSE_LEAST = 0.5, 0.001
"""Of clicks soon after another one, beyond those that come so by chance; and the least such share that counts."""
SIGMAS = 6.1
"""Two-sided, for FALSE_ALARM, where counts are large enough to be normal."""
SPLIT_TOLERANCE = 0.03
"""Of one detector's share of the clicks."""
CLOSE_DEAD_TIMES = 4
"""Soon after: within so many dead times."""
DARKNESS = 0.02
"""Of the expected clicks: below it there is no light."""
SPREAD_TOLERANCE = 0.1
"""Of the width of the times of arrival."""
LEARN_BLOCKS, FORGET_BLOCKS = 3, 64
CURRENT_FACTOR = 1.5
"""Of a diode's current for each click."""
RESIDUAL_FACTOR = 3.0
"""Of the phase that the loop's scans leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Observables of one block, or sums of many; None: nobody here knows."""

    pulses: float
    clicks: float | None = None
    levels: tuple[float, ...] | None = None
    """Sifted clicks by intensity, strongest first."""
    tested: float = 0.0
    """Sifted clicks in the test basis."""
    errors: float | None = None
    """Among them."""
    close: float | None = None
    """Clicks within CLOSE_DEAD_TIMES dead times after another."""
    first: float | None = None
    """Clicks of the first detector."""
    second: float | None = None
    doubles: float | None = None
    receiver: ReceiverReadings | None = None
    transmitter: TransmitterReadings | None = None
    intensities: tuple[float, ...] = ()
    """As they should leave Alice, strongest first."""

    def with_counts(self, seen: Observations) -> "Seen":
        """With what both ends know after sifting."""
        levels = tuple(float(k + t) for k, t in zip(seen.key_counts, seen.test_counts, strict=True))
        return replace(self, levels=levels, tested=float(sum(seen.test_counts)), errors=float(sum(seen.test_errors)))


def seen_by_bob(pulses: int, clicks: int, close: int, readings: ReceiverReadings | None) -> Seen:
    """What a receiver's node knows when the light is over. Counts that cannot be are taken as none."""
    made = Seen(pulses=pulses)
    if 0 <= clicks <= pulses:
        made = replace(made, clicks=clicks, close=close)
    if readings is None or monitors.malformed(readings):
        return made
    both, doubles = readings.detector_clicks, readings.double_clicks
    if not all(0 <= count <= pulses for count in (*(both or ()), doubles or 0)):
        return made
    if both is not None:
        made = replace(made, first=float(both[0]), second=float(both[1]))
    return replace(made, receiver=readings, doubles=None if doubles is None else float(doubles))


def close_clicks(positions: Positions, dead_pulses: int) -> int:
    """How many clicks follow another within CLOSE_DEAD_TIMES dead times: afterpulses among them."""
    return int(np.count_nonzero(np.diff(positions.astype(np.int64)) <= max(1, CLOSE_DEAD_TIMES * dead_pulses)))


# ── what a link should show ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Norm:
    """What a link shows when nothing is wrong, under one setting of its source."""

    oracle: Seen
    """Expected, over as many pulses as make chance vanish."""
    probabilities: tuple[float, ...]
    """Of each intensity."""
    dead_pulses: int
    learnt: Seen | None = None
    blocks: float = 0.0
    spread_bins: float | None = None
    current_per_click: float | None = None
    residual_rad: float | None = None

    @property
    def now(self) -> Seen:
        """The norm in force."""
        return self.oracle if self.learnt is None or self.blocks < LEARN_BLOCKS else self.learnt

    def learn(self, seen: Seen) -> None:
        """Take an honest block in. Old blocks fade, but the loss stays bound to the oracle's by the gain tests."""
        keep = min(1.0, FORGET_BLOCKS / (self.blocks + 1))
        self.learnt = seen if self.learnt is None else _sum(self.learnt, seen, keep)
        self.blocks = keep * self.blocks + 1
        if seen.receiver is None:
            return
        weight = 1 / self.blocks
        self.spread_bins = _faded(self.spread_bins, _spread(seen.receiver), weight)
        self.current_per_click = _faded(self.current_per_click, _current(seen), weight)
        self.residual_rad = _faded(self.residual_rad, seen.receiver.phase_residual_rad, weight)


def norm_of(optics: LinkOptics) -> Norm:
    """From the oracle alone."""
    want, source = expected(optics), optics.source
    pulses, basis = 1e15, optics.source.exact_key_basis_probability
    matched = basis**2 + (1 - basis) ** 2
    clicks = pulses * want.click_hz / optics.clock_hz
    levels = tuple(pulses * p * g * matched for p, g in zip(source.exact_probabilities, want.gains, strict=True))
    tested = sum(levels) * (1 - basis) ** 2 / matched
    doubles = clicks * want.double_click_share
    first = clicks * want.first_detector_share
    return Norm(
        Seen(
            pulses=pulses,
            clicks=clicks,
            levels=levels,
            tested=tested,
            errors=tested * want.qber[1],
            first=first,
            second=clicks - first + doubles,
            doubles=doubles,
        ),
        source.exact_probabilities,
        optics.dead_pulses,
    )


def _faded(old: float | None, new: float | None, weight: float) -> float | None:
    if new is None or old is None:
        return old if new is None else new
    return old + weight * (new - old)


def _sum(old: Seen, new: Seen, keep: float) -> Seen:
    def add(name: str) -> float | None:
        before, now = getattr(old, name), getattr(new, name)
        return None if before is None or now is None else keep * before + now

    levels = None
    if old.levels is not None and new.levels is not None:
        levels = tuple(keep * a + b for a, b in zip(old.levels, new.levels, strict=True))
    return Seen(
        pulses=keep * old.pulses + new.pulses,
        clicks=add("clicks"),
        levels=levels,
        tested=keep * old.tested + new.tested,
        errors=add("errors"),
        close=add("close"),
        first=add("first"),
        second=add("second"),
        doubles=add("doubles"),
    )


def _spread(readings: ReceiverReadings) -> float | None:
    """Root mean square width of the times of arrival, in bins."""
    if readings.arrivals is None:
        return None
    counts: F64 = np.array(readings.arrivals, float).sum(axis=0)
    if counts.sum() < 1000:
        return None
    bins = np.arange(ARRIVAL_BINS) - (ARRIVAL_BINS - 1) / 2
    middle = counts @ bins / counts.sum()
    return float(np.sqrt(counts @ (bins - middle) ** 2 / counts.sum()))


def _current(seen: Seen) -> float | None:
    readings = seen.receiver
    if readings is None or not readings.photocurrent_a or not seen.clicks or seen.clicks < 1000:
        return None
    return sum(readings.photocurrent_a) / seen.clicks * seen.pulses


# ── signs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Signs:
    """What differs from the norm: name -> seen over expected, and the words for it."""

    of: dict[str, tuple[float, str]] = field(default_factory=dict)
    is_counted: bool = True
    """Whether the counts of sifting are known; without them errors, decoys and noise show nowhere."""

    def add(self, name: str, value: float, text: str) -> None:
        """Note one."""
        self.of[name] = (value, text)

    def has(self, *names: str) -> bool:
        """Whether all of these are there."""
        return all(name in self.of for name in names)

    def words(self, *names: str) -> str:
        """Those of these that are there, in words."""
        return "; ".join(self.of[name][1] for name in names if name in self.of)

    def value(self, name: str) -> float:
        """Seen over expected, 1 where it is as it should be."""
        return self.of[name][0] if name in self.of else 1.0


def _compare(count: float, among: float, norm: float, norm_among: float, tolerance: float) -> float | None:
    """Seen over expected if that is out of the tolerance by more than chance, else None.

    Given both counts together, Poisson counts share them as a binomial: exact, also where the norm itself is a count.
    """
    if among <= 0 or norm_among <= 0 or norm <= 0:
        return None
    ratio = (count / among) / (norm / norm_among)
    # A norm of a million counts and one of more are the same; shares are computed on numbers that a float can hold.
    scale = min(1.0, 1e9 / norm)
    before, total = round(norm * scale), round(count) + round(norm * scale)
    exposure = among / (norm_among * scale)
    high, low = exposure * (1 + tolerance), exposure / (1 + tolerance)
    if ratio > 1 and at_least(round(count), total, high / (high + 1)) < FALSE_ALARM:
        return ratio
    if ratio < 1 and before > 0 and at_most(round(count), total, low / (low + 1)) < FALSE_ALARM:
        return ratio
    return None


def signs(seen: Seen, norm: Norm) -> Signs:
    """Everything about a block that an unchanged link would not show."""
    found = Signs(is_counted=seen.levels is not None)
    _power_signs(seen, norm, found)
    was = norm.now
    if seen.clicks is not None and was.clicks is not None:
        expected = was.clicks / was.pulses * seen.pulses
        ratio = seen.clicks / expected
        if ratio < DARKNESS and expected > 1000:
            found.add("dark", ratio, f"{seen.clicks:.0f} clicks where {expected:.0f} belong")
            return found
        for reference in (was, norm.oracle):
            assert reference.clicks is not None
            value = _compare(seen.clicks, seen.pulses, reference.clicks, reference.pulses, GAIN_TOLERANCE)
            if value is not None:
                found.add("more" if value > 1 else "fewer", value, f"{value:.2f} of the clicks that belong")
    _count_signs(seen, was, norm.probabilities, found)
    _detector_signs(seen, was, found)
    _close_signs(seen, was, norm.dead_pulses, found)
    return found


def _power_signs(seen: Seen, norm: Norm, found: Signs) -> None:
    transmitter, receiver = seen.transmitter, seen.receiver
    for finding in monitors.check_transmitter(transmitter, seen.intensities) if transmitter is not None else []:
        ratio = (
            (transmitter.mean_photon_numbers or [0.0])[0] / (seen.intensities[0] or 1.0)
            if transmitter and seen.intensities
            else 1.0
        )
        found.add(finding.monitor, ratio, finding.text)
    if receiver is None:
        return
    for finding in monitors.check_receiver(receiver, round(seen.pulses)):
        name = finding.monitor
        if name == "calibration":
            name = "gates" if "gates" in finding.text else "efficiency"
        if name == "arrivals" and "middle" in finding.text:
            name = "arrivals-late"
        found.add(name, receiver.efficiency_ratio or 1.0, finding.text)
    current, spread = _current(seen), _spread(receiver)
    if current is not None and norm.current_per_click and current > CURRENT_FACTOR * norm.current_per_click:
        text = f"the diodes draw {current / norm.current_per_click:.1f} times the current of their clicks"
        found.add("current", current / norm.current_per_click, text)
    if spread is not None and norm.spread_bins and spread > (1 + SPREAD_TOLERANCE) * norm.spread_bins:
        text = f"times of arrival are {spread / norm.spread_bins:.2f} times as wide as they were"
        found.add("spread", spread / norm.spread_bins, text)
    residual = receiver.phase_residual_rad
    if residual is not None and norm.residual_rad and residual > max(0.1, RESIDUAL_FACTOR * norm.residual_rad):
        found.add("phase", residual, f"scans find the phase {residual:.2f} rad off")


def _count_signs(seen: Seen, was: Seen, probabilities: tuple[float, ...], found: Signs) -> None:
    """After sifting."""
    if seen.levels is None or was.levels is None or seen.errors is None or was.errors is None:
        return
    total, before = sum(seen.levels), sum(was.levels)
    (ratio, error), (honest, honest_error) = (
        _decoy_ratio(seen.levels, probabilities),
        _decoy_ratio(was.levels, probabilities),
    )
    apart = float(np.log(ratio / honest)) if ratio > 0 and honest > 0 else 0.0
    if abs(apart) > RATIO_TOLERANCE + SIGMAS * (error**2 + honest_error**2) ** 0.5:
        name = "decoys-up" if apart > 0 else "decoys-down"
        found.add(name, ratio / honest, f"decoys over signals are {ratio / honest:.2f} times what they should be")
    value = _compare(seen.levels[-1], seen.pulses, was.levels[-1], was.pulses, NOISE_TOLERANCE)
    if value is not None:
        name = "noise-up" if value > 1 else "noise-down"
        found.add(name, value, f"{value:.2f} times the clicks without light")
    rate = seen.errors / max(1.0, seen.tested)
    value = _compare(seen.errors, seen.tested, was.errors, was.tested, ERROR_TOLERANCE)
    if value is not None and value > 1 and total and before:
        found.add("errors", value, f"{rate:.2%} errors, {was.errors / max(1.0, was.tested):.2%} belong")


def _detector_signs(seen: Seen, was: Seen, found: Signs) -> None:
    """Doubles, detectors against each other, clicks soon after clicks."""
    if seen.clicks is None or was.clicks is None:
        return
    if seen.doubles is not None and was.doubles is not None:
        # Double clicks grow with the square of the light.
        light = seen.clicks / seen.pulses / (was.clicks / was.pulses)
        value = _compare(seen.doubles, seen.clicks * light, was.doubles, was.clicks, DOUBLE_TOLERANCE)
        if value is not None:
            name = "doubles-up" if value > 1 else "doubles-down"
            excess = (seen.doubles - was.doubles * seen.clicks / was.clicks * light) / seen.clicks
            gain = was.clicks / was.pulses
            found.add(name, excess / gain, f"{value:.1f} times the double clicks that belong")
    if None not in (seen.first, seen.second, was.first, was.second):
        assert seen.first is not None
        assert seen.second is not None
        assert was.first is not None
        assert was.second is not None
        value = _compare(seen.second, seen.first, was.second, was.first, SPLIT_TOLERANCE)
        spread = SPLIT_TOLERANCE + 6.5 * (1 / max(1.0, seen.first) + 1 / max(1.0, seen.second)) ** 0.5
        if value is not None and abs(np.log(max(value, 1e-9))) > spread:
            found.add(
                "split", value, f"the second detector clicks {value:.2f} times as often as the first one should say"
            )


def _close_signs(seen: Seen, was: Seen, dead_pulses: int, found: Signs) -> None:
    (share, error), (honest, honest_error) = _close_share(seen, dead_pulses), _close_share(was, dead_pulses)
    limit = (1 + CLOSE_TOLERANCE) * max(0.0, honest) + CLOSE_LEAST + SIGMAS * (error**2 + honest_error**2) ** 0.5
    if share > limit:
        found.add(
            "close", share / max(1e-6, honest), f"{share:.1%} of the clicks follow on another, {honest:.1%} belong"
        )


def _close_share(seen: Seen, dead_pulses: int) -> tuple[float, float]:
    """Clicks soon after another, beyond chance, among clicks, and the standard deviation; (0, inf) where not known."""
    if seen.close is None or not seen.clicks:
        return 0.0, float("inf")
    rate = seen.clicks / seen.pulses
    live = rate / max(1e-9, 1 - dead_pulses * rate)
    share = seen.close / seen.clicks
    by_chance = -np.expm1(-(CLOSE_DEAD_TIMES - 1) * dead_pulses * live)
    return float(share - by_chance), float((max(share, 1 / seen.clicks) / seen.clicks) ** 0.5)


def _decoy_ratio(levels: tuple[float, ...], probabilities: tuple[float, ...]) -> tuple[float, float]:
    """Decoy over signal gain, both without the noise that the weakest intensity shows, and its relative deviation."""
    rates = [count / chance for count, chance in zip(levels, probabilities, strict=True)]
    signal, decoy = rates[0] - rates[-1], rates[1] - rates[-1]
    if signal <= 0 or decoy <= 0:
        return 0.0, float("inf")
    variances = [count / chance**2 for count, chance in zip(levels, probabilities, strict=True)]
    noise = variances[-1] * (1 / decoy - 1 / signal) ** 2
    return decoy / signal, float((variances[0] / signal**2 + variances[1] / decoy**2 + noise) ** 0.5)


# ── what they mean together ──────────────────────────────────────────────────────────────────────────────────────────

NOTHING = "nothing"
BRIGHT = ("entrance-power", "photocurrent", "current", "attenuator", "arrivals-late", "doubles-down", "noise-down")
MIRROR = 0.15
"""The same for each part of errors that came: faked states of a few pulses, or of all of them."""
CONCENTRATED = 3.0
"""Double clicks over what they were, for each part of the gain and of the lost decoys: few pulses carry all of Eve's
light where she must tell states without error, many where she only counts photons.
"""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What may have happened: a kind's name, how much speaks for it (signs that it explains of those shown, 0 to 1),
    and why.
    """

    kind: str
    weight: float
    reason: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.reason})"


def diagnose(found: Signs) -> list[Hypothesis]:
    """Likeliest first; `nothing` where there is no sign."""
    if not found.of:
        return [Hypothesis(NOTHING, 1.0, "as it should be")]
    made = [*_at_alice(found), *_at_bob(found), *_in_clicks(found), *_in_noise(found)]
    if not made:
        made = [("unknown", 0.1, tuple(found.of))]
    best: dict[str, Hypothesis] = {}
    for kind, weight, names in made:
        if kind not in best or weight > best[kind].weight:
            best[kind] = Hypothesis(kind, weight, found.words(*names))
    return sorted(best.values(), key=lambda each: -each.weight)


Named = tuple[str, float, tuple[str, ...]]


def _at_alice(found: Signs) -> list[Named]:
    if found.has("back-reflection"):
        if found.has("output-power"):
            return [
                ("laser-seeding", 1.0, ("back-reflection", "output-power")),
                ("trojan-horse", 0.3, ("back-reflection",)),
            ]
        return [("trojan-horse", 1.0, ("back-reflection",)), ("laser-seeding", 0.2, ("back-reflection",))]
    return [("transmitter-power", 0.95, ("output-power", "fewer", "more"))] if found.has("output-power") else []


def _at_bob(found: Signs) -> list[Named]:
    if found.has("entrance-power"):
        steady = found.has("photocurrent") or found.has("current")
        late = found.has("arrivals-late") or found.has("noise-up")
        first, second = (
            ("blinding", "after-gate") if steady and not found.has("arrivals-late") else ("after-gate", "blinding")
        )
        return [(first, 1.0 if steady or late else 0.7, BRIGHT), (second, 0.3, BRIGHT)]
    if found.has("gates"):
        return [("calibration", 1.0, ("gates", "efficiency", "arrivals")), ("time-shift", 0.2, ("arrivals",))]
    if found.has("efficiency") or (found.has("split") and not found.has("doubles-up")):
        kind = "dead-detector" if found.value("split") < 0.05 or found.value("split") > 20 else "weak-detector"
        return [(kind, 0.9, ("efficiency", "split", "fewer"))]
    # Clicks without light come at any time: they widen the histogram too.
    if found.has("spread") and not found.has("arrivals") and not found.is_counted:
        return [("dark-counts", 0.6, ("spread", "more")), ("time-shift", 0.4, ("spread",))]
    if found.has("arrivals") or (found.has("spread") and not found.has("noise-up")):
        return [("time-shift", 0.9, ("spread", "arrivals"))]
    if found.has("dark"):
        return [("cut", 0.9, ("dark",))]
    if found.has("photocurrent") or found.has("attenuator"):
        return [("blinding", 0.6, BRIGHT)]
    return []


def _in_clicks(found: Signs) -> list[Named]:
    """Decoys and double clicks: what Eve's own light leaves."""
    made: list[Named] = []
    doubles = found.value("doubles-up") if found.has("doubles-up") else 0.0
    if found.has("decoys-down"):
        lost = max(1e-3, 1 - found.value("decoys-down"))
        pns, usd = "photon-number-splitting", "unambiguous-discrimination"
        first, second = (usd, pns) if doubles / lost > CONCENTRATED else (pns, usd)
        made += [(first, 0.8, ("decoys-down", "doubles-up")), (second, 0.3, ("decoys-down", "doubles-up"))]
    elif found.has("doubles-up", "errors") and doubles > MIRROR * (found.value("errors") - 1):
        made += [
            ("passive-faraday-mirror", 0.8, ("doubles-up", "errors", "fewer", "split")),
            ("intercept-resend", 0.3, ("errors",)),
        ]
    elif found.has("decoys-up") or found.has("doubles-up", "errors"):
        made += [("intercept-resend", 0.8, ("errors", "decoys-up", "doubles-up"))]
    elif found.has("doubles-up") and not found.is_counted and not found.has("double-clicks"):
        # Who sends anew what she measured does so too; the errors that would tell were not counted.
        made += [("intercept-resend", 0.5, ("doubles-up",)), ("passive-faraday-mirror", 0.45, ("doubles-up", "split"))]
    elif found.has("doubles-up"):
        made += [("passive-faraday-mirror", 0.7, ("doubles-up", "errors", "fewer", "split"))]
        made += [
            ("unambiguous-discrimination", 0.5, ("doubles-up",)),
            ("photon-number-splitting", 0.3, ("doubles-up",)),
        ]
    return made


def _in_noise(found: Signs) -> list[Named]:
    """Clicks without light, errors, and how many clicks there are."""
    made: list[Named] = []
    # Light that changes within a block bunches clicks as well, but leaves no more of them in the dark.
    if found.has("close", "noise-up"):
        made += [("afterpulsing", 0.6, ("close", "noise-up", "errors"))]
    elif found.has("close") and not found.is_counted:
        made += [("afterpulsing", 0.4, ("close", "more"))]
    if found.has("noise-up"):
        made += [("dark-counts", 0.5, ("noise-up", "errors", "more")), ("afterpulsing", 0.45, ("noise-up", "errors"))]
    if found.has("errors"):
        made += [("phase-drift", 0.4, ("errors", "phase")), ("intercept-resend", 0.2, ("errors",))]
    if found.has("phase"):
        made += [("phase-drift", 0.5, ("phase", "errors"))]
    if found.has("fewer") and not found.has("output-power"):
        made += [("bend", 0.45, ("fewer",)), ("transmitter-power", 0.2, ("fewer",)), ("weak-detector", 0.1, ("fewer",))]
    if found.has("more"):
        made += [("transmitter-power", 0.3, ("more",))]
    return made
