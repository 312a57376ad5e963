"""Links that several tests look at."""

from dataclasses import replace

import numpy as np
from scipy import stats

from qtrunk.quantum import diagnosis, run
from qtrunk.quantum.analytic import Expected
from qtrunk.quantum.channel import Channel
from qtrunk.quantum.optics import LinkOptics, of_equipment
from qtrunk.quantum.readings import Readings
from qtrunk.quantum.run import Observed
from qtrunk.quantum.source import SourceSettings
from qtrunk.stages import Observations
from qtrunk.topology import Equipment

EQUIPMENT = Equipment()


def optics(loss_db: float = 10.0, *, source: SourceSettings | None = None, detector=None, **changes) -> LinkOptics:
    """The standard link; `detector` changes fields of both detectors, `changes` those of the link."""
    made = of_equipment(EQUIPMENT, loss_db, source)
    detectors = tuple(replace(each, **(detector or {})) for each in made.detectors)
    return replace(made, **{"detectors": detectors, "paths": None, **changes})


class _Watcher(Readings):
    close = 0

    def period(self, situation, step, clicks, pulses):
        super().period(situation, step, clicks, pulses)
        self.close += diagnosis.close_clicks(clicks.positions, self.optics.dead_pulses)


def watched(channel: Channel, seed: int, pulses: int) -> tuple:
    """One block: clicks, those soon after another, the counts of sifting, readings of receiver and transmitter."""
    watch = _Watcher(channel.optics, channel.dice)
    seconds = pulses / channel.optics.clock_hz
    (done,) = run.blocks(channel, seconds=seconds, seed=seed, block_pulses=pulses, watch=lambda _: watch)
    matched, wrong = run.ALICE_BASIS == run.BOB_BASIS, run.BIT != run.ALICE_BIT

    def by_level(where):
        return tuple(int(done.seen.counts[where & matched & (level == run.LEVEL)].sum()) for level in range(3))

    counted = Observations(
        intensities=channel.optics.source.intensities,
        probabilities=channel.optics.source.exact_probabilities,
        key_counts=by_level(run.ALICE_BASIS == 0),
        test_counts=by_level(run.ALICE_BASIS == 1),
        test_errors=by_level((run.ALICE_BASIS == 1) & wrong),
    )
    return done.seen.clicks, watch.close, counted, watch.receiver(), watch.transmitter()


def p_values(link: LinkOptics, seen: Observed, want: Expected) -> dict[str, float]:
    """For each observable the chance of a deviation as large as the one seen, if the oracle is right.

    Counts are compared with binomial ones. A dead time makes the counts of all clicks less noisy than that, afterpulses
    a little noisier: each click brings 1 / (1 - m) of them, so the variance of the total is widened by (1 - m)^-2.
    """
    levels = np.arange(256) >> 6
    flags = np.arange(256)
    matched = (flags >> 5 & 1) == (flags >> 3 & 1)
    wrong = (flags & 1) != (flags >> 4 & 1)
    clicks = seen.clicks
    width = 1 / (1 - want.afterpulse_share)
    values = {}

    def count(name, where, among, chance, wider=1.0):
        total = int(seen.counts[where].sum())
        if wider == 1.0:
            values[name] = stats.binomtest(total, int(among), min(1.0, max(0.0, chance))).pvalue
        else:
            deviation = (total - among * chance) / (wider * (among * chance * (1 - chance)) ** 0.5)
            values[name] = float(2 * stats.norm.sf(abs(deviation)))

    share = [
        p * g * link.clock_hz / want.click_hz for p, g in zip(link.source.exact_probabilities, want.gains, strict=True)
    ]
    count("clicks", flags >= 0, seen.pulses, want.click_hz / link.clock_hz, width)
    for level in range(len(share)):
        here = levels == level
        count(f"gain {level}", here, clicks, share[level])
        count(f"errors {level}", here & matched & wrong, seen.counts[here & matched].sum(), want.errors[level])
    for basis, name in enumerate(("key", "test")):
        here = matched & ((flags >> 3 & 1) == basis)
        count(f"{name} errors", here & wrong, seen.counts[here].sum(), want.qber[basis])
    count("sifted", matched & ((flags >> 3 & 1) == 0), clicks, want.sifted_bps / want.click_hz)
    count("mismatched errors", ~matched & wrong, seen.counts[~matched].sum(), 0.5)
    count("double clicks", (flags & 2) > 0, clicks, want.double_click_share)
    count("first detector", ((flags & 2) > 0) | ((flags & 1) == 0), clicks, want.first_detector_share)
    count("afterpulses", (flags & 4) > 0, clicks, want.afterpulse_share, width)
    return values
