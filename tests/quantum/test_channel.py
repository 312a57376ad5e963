"""The sampled light against the closed form, observable by observable, over the range of parameters.

FALSE_ALARM is the chance that a right program fails one comparison; there are about 17 in each of some 90 runs.
"""

from dataclasses import replace

import numpy as np
import pytest
from quantum_links import optics, p_values

from qtrunk.base.errors import RequestRefused
from qtrunk.quantum import run
from qtrunk.quantum.analytic import expected
from qtrunk.quantum.attack import KINDS, Attack
from qtrunk.quantum.channel import Channel
from qtrunk.quantum.detectors import NANOWIRE
from qtrunk.quantum.optics import Paths
from qtrunk.quantum.source import SourceSettings, decode_bases, decode_settings, words

FALSE_ALARM = 1e-7
ALICE, BOB = b"\x01" * 32, b"\x02" * 32


def observe(link, pulses, attack=Attack(), seed=11):
    channel = Channel(link, run.seed_of(seed, "light"))
    channel.attack(attack)
    return run.simulate(channel, seconds=pulses / link.clock_hz, seed=seed, block_pulses=pulses)


def check(link, pulses, attack=Attack(), want=None, seed=11):
    seen = observe(link, pulses, attack, seed)
    want = want or expected(link, attack.on(link))
    values = p_values(link, seen, want)
    assert seen.clicks > 5_000
    assert {name: value for name, value in values.items() if value < FALSE_ALARM} == {}


@pytest.mark.parametrize(
    ("loss_db", "pulses", "detector", "changes"),
    [
        (0.0, 20_000_000, {}, {}),
        (3.0, 40_000_000, {}, {}),
        (10.0, 100_000_000, {}, {}),
        (10.0, 100_000_000, {"dead_time_s": 0.0}, {}),
        (10.0, 200_000_000, {"dead_time_s": 5e-6, "afterpulse_probability": 0.05}, {}),
        (3.0, 100_000_000, {"dead_time_s": 20e-9, "afterpulse_probability": 0.05}, {}),
        (0.0, 100_000_000, {"dead_time_s": 200e-9, "afterpulse_probability": 0.06, "efficiency": 0.6}, {}),
        (3.0, 400_000_000, {"dead_time_s": 10e-6, "afterpulse_probability": 0.03}, {}),
        (10.0, 100_000_000, {"afterpulse_probability": 0.06, "afterpulse_exponent": 0.7}, {}),
        (25.0, 1_000_000_000, {}, {}),
        (25.0, 1_000_000_000, {"dark_count_probability": 2e-5}, {"visibility": 0.95}),
        (35.0, 3_000_000_000, {"dark_count_probability": 5e-7}, {}),
        (10.0, 100_000_000, {}, {"intensity_fluctuation": 0.2}),
        (10.0, 100_000_000, {}, {"residual_phase_rad": 0.5}),
        (10.0, 100_000_000, {}, {"noise_probability": 1e-4}),
        (10.0, 100_000_000, {}, {"intersymbol_share": 0.02, "pulse_rms_s": 60e-12}),
        (10.0, 100_000_000, {}, {"source": SourceSettings((0.6, 0.1, 0.0), (0.9, 0.06, 0.04), 0.95)}),
        (10.0, 100_000_000, {}, {"source": SourceSettings((0.5,), (1.0,), 0.5)}),
        (10.0, 100_000_000, {}, {"detectors": (NANOWIRE, NANOWIRE)}),
    ],
)
def test_every_observable_agrees_with_the_closed_form(loss_db, pulses, detector, changes):
    changes = dict(changes)
    link = optics(loss_db, detector=detector if "detectors" not in changes else None)
    check(replace(link, paths=None, **changes), pulses)


def drawn_link(number):
    """Any link: parameters all over their ranges, from a fixed seed."""
    dice = np.random.default_rng([2026, number])

    def between(low, high):
        return float(np.exp(dice.uniform(np.log(low), np.log(high))))

    probabilities = dice.dirichlet([4, 2, 1])
    source = SourceSettings(
        (dice.uniform(0.3, 0.9), dice.uniform(0.05, 0.25), dice.choice([0.0, 2e-4, 0.01])),
        tuple(probabilities),
        dice.uniform(0.2, 0.95),
    )
    detector = {
        "efficiency": between(0.05, 0.9),
        "dark_count_probability": between(1e-8, 1e-4),
        "afterpulse_probability": dice.choice([0.0, 0.01, 0.04, 0.08]),
        "afterpulse_exponent": dice.choice([0.6, 1.2, 1.6]),
        "afterpulse_hold_off_s": 100e-9,
        "dead_time_s": dice.choice([0.0, 20e-9, 100e-9, 1e-6, 10e-6]),
    }
    if detector["dead_time_s"] < 50e-9:
        detector["afterpulse_hold_off_s"] = max(0.8e-9, detector["dead_time_s"])
    link = optics(dice.uniform(0, 30), source=source, detector=detector, visibility=dice.uniform(0.9, 1.0))
    first, second = link.detectors
    unlike = replace(
        second, efficiency=second.efficiency * dice.uniform(0.7, 1.0), gate_delay_s=dice.uniform(0, 60e-12)
    )
    return replace(
        link,
        detectors=(first, unlike),
        residual_phase_rad=dice.uniform(0, 0.3),
        intensity_fluctuation=dice.uniform(0, 0.1),
        noise_probability=dice.choice([0.0, 1e-5]),
    )


@pytest.mark.parametrize("number", range(40))
def test_links_from_all_over_the_range_agree_with_the_closed_form(number):
    link = drawn_link(number)
    check(link, min(20_000_000_000, round(150_000 / (expected(link).click_hz / link.clock_hz))), seed=number)


def test_detectors_that_differ_show_what_the_closed_form_says():
    link = optics()
    first, second = link.detectors
    check(replace(link, detectors=(first, replace(second, efficiency=0.06, dark_count_probability=2e-5))), 100_000_000)


def test_a_standing_phase_offset_shows_what_the_closed_form_says():
    link = optics(paths=None)
    turned = Paths.of_visibility(0.99)
    offset = 0.4
    even, cosine, sine = turned.even, turned.cosine, turned.sine
    moved = Paths(
        even, np.cos(offset) * cosine + np.sin(offset) * sine, np.cos(offset) * sine - np.sin(offset) * cosine
    )
    check(replace(link, paths=moved), 100_000_000, want=expected(link, offset_rad=offset))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"none", "bend"}))
@pytest.mark.parametrize("fraction", [1.0, 0.3])
def test_under_each_attack_the_link_shows_what_the_closed_form_says(kind, fraction):
    link = optics()
    first, second = link.detectors
    link = replace(
        link,
        detectors=(replace(first, gate_delay_s=-10e-12), replace(second, gate_delay_s=10e-12)),
        is_phase_random=kind != "unambiguous-discrimination",
    )
    pulses = 5_000_000_000 if kind == "cut" and fraction == 1 else 100_000_000
    check(link, pulses, Attack(kind, fraction), expected(link, Attack(kind, fraction).on(link)))


def test_the_records_of_both_ends_hold_what_really_happened():
    # In a link without noise or misalignment every matched click tells Alice's bit.
    quiet = {"dark_count_probability": 0.0, "afterpulse_probability": 0.0}
    link = optics(3.0, detector=quiet, visibility=1.0, residual_phase_rad=0.0)
    clicks = Channel(link, b"\x07" * 32).sample(ALICE, BOB, 0, 10_000_000)
    sent = decode_settings(words(ALICE, clicks.positions), link.source)
    basis = decode_bases(words(BOB, clicks.positions), link.source)
    matched = sent.basis == basis
    assert matched.sum() > 5_000
    is_single = clicks.detectors < 2
    np.testing.assert_array_equal(clicks.bits[matched & is_single], sent.bit[matched & is_single])
    np.testing.assert_array_equal(clicks.flags >> 6, sent.intensity)
    np.testing.assert_array_equal(clicks.flags >> 3 & 1, basis)


def test_no_click_falls_into_the_dead_time():
    link = optics(3.0)
    positions = Channel(link, b"\x08" * 32).sample(ALICE, BOB, 0, 20_000_000).positions
    assert np.diff(positions.astype(np.int64)).min() > link.dead_pulses


def test_the_same_seed_gives_the_same_light_and_another_one_does_not():
    def light(seed):
        channel = Channel(optics(), seed)
        return [channel.sample(ALICE, BOB, at, 5_000_000).positions for at in (0, 5_000_000)]

    for one, again in zip(light(b"\x09" * 32), light(b"\x09" * 32), strict=True):
        np.testing.assert_array_equal(one, again)
    assert not np.array_equal(light(b"\x09" * 32)[0], light(b"\x0a" * 32)[0])


def test_a_dark_and_silent_line_shows_nothing():
    quiet = {"dark_count_probability": 0.0, "afterpulse_probability": 0.0}
    link = optics(detector=quiet, source=SourceSettings((0.0, 0.0, 0.0), (0.5, 0.25, 0.25), 0.9))
    clicks = Channel(link, b"\x05" * 32).sample(ALICE, BOB, 0, 10_000_000)
    assert (len(clicks.positions), len(clicks.flags)) == (0, 0)


def test_settings_have_the_exact_probabilities_and_depend_on_the_seed():
    source = optics().source
    positions = np.arange(2_000_000, dtype=np.uint64)
    sent = decode_settings(words(ALICE, positions), source)
    wanted = [*source.exact_probabilities, source.exact_key_basis_probability, 0.5]
    seen = [*((sent.intensity == level).mean() for level in range(3)), (sent.basis == 0).mean(), sent.bit.mean()]
    for have, want in zip(seen, wanted, strict=True):
        assert abs(have - want) < 5.4 * (want * (1 - want) / len(positions)) ** 0.5  # normal tail of FALSE_ALARM
    assert sum(source.exact_probabilities) == 1.0
    np.testing.assert_array_equal(words(ALICE, positions[500:600]), words(ALICE, positions)[500:600])
    assert not np.array_equal(words(ALICE, positions[:10]), words(BOB, positions[:10]))


def test_unknown_attacks_and_impossible_strengths_are_refused():
    for kind, fraction, strength in (
        ("tap", 0.1, None),
        ("intercept-resend", 1.1, None),
        ("intercept-resend", float("nan"), None),
        ("blinding", 1.0, -1.0),
        ("blinding", 1.0, float("nan")),
    ):
        with pytest.raises(RequestRefused):
            Attack(kind, fraction, strength)
