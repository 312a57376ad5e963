"""The sampled light against the closed form, observable by observable; FALSE_ALARM is the chance that a right program
fails one.
"""

import numpy as np
import pytest
from scipy import stats

from qtrunk import kernels
from qtrunk.quantum.analytic import expected
from qtrunk.quantum.attack import Attack
from qtrunk.quantum.channel import Channel
from qtrunk.quantum.optics import LinkOptics
from qtrunk.quantum.source import SourceSettings, decode_bases, decode_settings, words
from qtrunk.topology import Equipment

FALSE_ALARM = 1e-7
SEED = b"\x11" * 32
ALICE, BOB = b"\x01" * 32, b"\x02" * 32


def optics(loss_db=10.0, **changes):
    equipment = Equipment()
    values = {
        "clock_hz": equipment.clock_hz,
        "loss_db": loss_db,
        "receiver_loss_db": equipment.receiver_loss_db,
        "detector_efficiency": equipment.detector_efficiency,
        "dark_count_probability": equipment.dark_count_probability,
        "afterpulse_probability": equipment.afterpulse_probability,
        "dead_time_s": equipment.dead_time_s,
        "visibility": equipment.visibility,
        "residual_phase_rad": equipment.residual_phase_rad,
    }
    source = SourceSettings(equipment.intensities, equipment.probabilities, equipment.key_basis_probability)
    return LinkOptics(source=source, **{**values, **changes})


def observe(link, pulses, attack=Attack()):
    channel = Channel(link, kernels.new_rng(SEED))
    step = 50_000_000
    parts = [channel.sample(ALICE, BOB, at, min(step, pulses - at), attack) for at in range(0, pulses, step)]
    positions = np.concatenate([part.positions for part in parts])
    bits = np.concatenate([part.bits for part in parts])
    sent = decode_settings(words(ALICE, positions), link.source)
    basis = decode_bases(words(BOB, positions), link.source)
    return positions, bits, sent, basis, sum(part.double_count for part in parts)


def agrees(count, total, probability):
    return stats.binomtest(int(count), int(total), float(probability)).pvalue > FALSE_ALARM


@pytest.mark.parametrize(
    ("loss_db", "pulses", "changes"),
    [
        (3.0, 40_000_000, {}),
        (10.0, 100_000_000, {}),
        (10.0, 100_000_000, {"dead_time_s": 0.0}),
        (10.0, 100_000_000, {"dead_time_s": 5e-6, "afterpulse_probability": 0.05}),
        (25.0, 1_000_000_000, {}),
        (25.0, 1_000_000_000, {"dark_count_probability": 2e-5, "visibility": 0.95}),
    ],
)
def test_every_observable_agrees_with_the_closed_form(loss_db, pulses, changes):
    link = optics(loss_db, **changes)
    want = expected(link)
    positions, bits, sent, basis, doubles = observe(link, pulses)
    clicks = len(positions)
    # A dead time makes counts less than binomially noisy, so a binomial test is on the safe side for all clicks.
    assert agrees(clicks, pulses, want.click_hz / link.clock_hz)
    matched = sent.basis == basis
    for level, probability in enumerate(link.source.exact_probabilities):
        here = sent.intensity == level
        share = probability * want.gains[level] * link.clock_hz / want.click_hz
        assert agrees(here.sum(), clicks, share)
        wrong = (sent.bit != bits) & here & matched
        assert agrees(wrong.sum(), (here & matched).sum(), want.errors[level])
    in_key = matched & (basis == 0)
    assert agrees(in_key.sum(), clicks, want.sifted_bps / want.click_hz)
    assert agrees((bits != sent.bit)[~matched].sum(), (~matched).sum(), 0.5)
    assert agrees(bits.sum(), clicks, 0.5)
    assert agrees(doubles, clicks, want.double_click_share)


def test_no_click_falls_into_the_dead_time():
    link = optics(3.0)
    positions, *_ = observe(link, 20_000_000)
    assert np.diff(positions.astype(np.int64)).min() > link.dead_pulses


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_intercept_resend_costs_a_quarter_of_the_fraction_and_keeps_the_gains(fraction):
    link = optics()
    want = expected(link)
    positions, bits, sent, basis, _ = observe(link, 60_000_000, Attack("intercept-resend", fraction))
    matched = sent.basis == basis
    assert agrees(len(positions), 60_000_000, want.click_hz / link.clock_hz)
    # Half of the intercepted pulses pass in the wrong basis and come out at random; the others keep the link's own
    # error.
    qber = want.qber * (1 - fraction / 2) + 0.5 * fraction / 2
    for value in (0, 1):
        here = matched & (basis == value)
        assert agrees((bits != sent.bit)[here].sum(), here.sum(), qber)


def test_the_decoded_words_are_what_the_kernel_used():
    # In a link without noise or misalignment every matched click tells Alice's bit; the kernel and NumPy must agree on
    # it.
    link = optics(3.0, dark_count_probability=0.0, afterpulse_probability=0.0, visibility=1.0, residual_phase_rad=0.0)
    _, bits, sent, basis, _ = observe(link, 5_000_000)
    matched = sent.basis == basis
    assert matched.sum() > 5_000
    np.testing.assert_array_equal(bits[matched], sent.bit[matched])


def test_settings_have_the_exact_probabilities_and_depend_on_the_seed():
    source = optics().source
    positions = np.arange(2_000_000, dtype=np.uint64)
    sent = decode_settings(words(ALICE, positions), source)
    for level, probability in enumerate(source.exact_probabilities):
        assert agrees((sent.intensity == level).sum(), len(positions), probability)
    assert agrees((sent.basis == 0).sum(), len(positions), source.exact_key_basis_probability)
    assert agrees(sent.bit.sum(), len(positions), 0.5)
    assert sum(source.exact_probabilities) == 1.0
    np.testing.assert_array_equal(words(ALICE, positions[500:600]), words(ALICE, positions)[500:600])
    assert not np.array_equal(words(ALICE, positions[:10]), words(BOB, positions[:10]))


def test_unknown_attacks_are_refused():
    from qtrunk.base.errors import RequestRefused

    for kind, fraction in (("tap", 0.1), ("intercept-resend", 1.1), ("intercept-resend", float("nan"))):
        with pytest.raises(RequestRefused):
            Attack(kind, fraction)
