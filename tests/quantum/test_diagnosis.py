"""What is made of a block's observables: each kind by its name, and nothing of an honest block.

Each of some twenty tests fails an unchanged link with FALSE_ALARM = 1e-9 a block, so a sign at all comes with less than
1e-6; all seeds are fixed.
"""

from dataclasses import replace

import numpy as np
import pytest
from quantum_links import EQUIPMENT, watched

from qtrunk.quantum import diagnosis, run
from qtrunk.quantum.attack import Attack
from qtrunk.quantum.channel import Channel
from qtrunk.quantum.optics import of_equipment

PULSES = 400_000_000
LINK = of_equipment(replace(EQUIPMENT, gate_mismatch_s=20e-12), 9.4)


def block(channel, seed):
    clicks, close, counted, receiver, transmitter = watched(channel, seed, PULSES)
    bob = diagnosis.seen_by_bob(PULSES, clicks, close, receiver).with_counts(counted)
    return replace(bob, transmitter=transmitter, intensities=channel.optics.source.intensities)


def learnt(link, seed):
    norm, channel = diagnosis.norm_of(link), Channel(link, run.seed_of(seed, "norm"))
    for number in range(diagnosis.LEARN_BLOCKS):
        seen = block(channel, 100 * seed + number)
        assert not diagnosis.signs(seen, norm).of
        norm.learn(seen)
    return norm


NORM = learnt(LINK, 7)


def after(attack, link=LINK, norm=NORM, seed=8):
    channel = Channel(link, run.seed_of(seed, "light"))
    channel.attack(attack)
    return diagnosis.diagnose(diagnosis.signs(block(channel, seed), norm))


def test_an_honest_link_is_said_to_be_as_it_should_be():
    for seed in range(20):
        assert [each.kind for each in after(Attack(), seed=seed)] == [diagnosis.NOTHING]


@pytest.mark.parametrize(
    "attack",
    [
        Attack("intercept-resend"),
        Attack("photon-number-splitting"),
        Attack("trojan-horse", 1.0, 1e-5),
        Attack("blinding"),
        Attack("blinding", 1.0, 0.01),
        Attack("after-gate"),
        Attack("time-shift"),
        Attack("calibration"),
        Attack("passive-faraday-mirror"),
        Attack("laser-seeding"),
        Attack("bend", 1.0, 10.0),
        Attack("cut"),
        Attack("dead-detector"),
        Attack("weak-detector"),
        Attack("dark-counts"),
        Attack("afterpulsing", 1.0, 10.0),
        Attack("transmitter-power"),
        Attack("phase-drift"),
    ],
    ids=lambda attack: attack.kind,
)
def test_each_kind_is_named_first_and_with_a_reason(attack):
    first = after(attack)[0]
    assert first.kind == attack.kind
    assert first.reason


def test_pulses_without_phases_of_their_own_are_told_from_counted_photons():
    link = replace(LINK, is_phase_random=False)
    assert after(Attack("unambiguous-discrimination"), link)[0].kind == "unambiguous-discrimination"


def test_what_the_proof_covers_and_nothing_shows_is_called_nothing():
    assert after(Attack("beam-splitting"))[0].kind == diagnosis.NOTHING


def test_noise_whose_reason_does_not_show_has_both_names():
    signs = diagnosis.Signs()
    signs.add("noise-up", 4.0, "4 times the clicks without light")
    assert [each.kind for each in diagnosis.diagnose(signs)[:2]] == ["dark-counts", "afterpulsing"]


def test_without_the_counts_of_sifting_less_is_claimed():
    def bare(attack):
        channel = Channel(LINK, run.seed_of(8, "light"))
        channel.attack(attack)
        seen = replace(block(channel, 8), levels=None, errors=None, tested=0.0, transmitter=None)
        return [each.kind for each in diagnosis.diagnose(diagnosis.signs(seen, NORM))]

    assert bare(Attack()) == [diagnosis.NOTHING]
    assert bare(Attack("time-shift"))[0] == "time-shift"
    assert bare(Attack("passive-faraday-mirror"))[0] == "passive-faraday-mirror"
    assert bare(Attack("intercept-resend"))[0] in (diagnosis.NOTHING, "intercept-resend")
    assert bare(Attack("dark-counts"))[0] in (diagnosis.NOTHING, "dark-counts")


def test_a_node_without_monitors_still_judges_by_counts():
    channel = Channel(LINK, run.seed_of(9, "light"))
    channel.attack(Attack("photon-number-splitting"))
    seen = replace(
        block(channel, 9), receiver=None, transmitter=None, doubles=None, first=None, second=None, close=None
    )
    assert diagnosis.diagnose(diagnosis.signs(seen, NORM))[0].kind == "photon-number-splitting"


def test_clicks_soon_after_others_are_counted():
    assert diagnosis.close_clicks(np.array([0, 400, 401, 1000], np.uint64), 100) == 2
    assert diagnosis.close_clicks(np.array([], np.uint64), 100) == 0


def test_a_block_without_any_click_says_how_many_belong():
    seen = block(Channel(LINK, run.seed_of(8, "dark")), 8)
    clicks = seen.clicks
    found = diagnosis.diagnose(diagnosis.signs(replace(seen, clicks=0.0), NORM))[0]
    assert found.kind == "cut"
    said = int(found.reason.split("0 clicks where ")[1].split()[0])
    assert said == pytest.approx(clicks, rel=0.05)
