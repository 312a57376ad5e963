"""Settings follow a link between blocks: when, how far, and never out of what is configured."""

import os
import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest

from qtrunk.base.ids import LinkId, NodeId
from qtrunk.plan import follow
from qtrunk.plan.light import SEEN_BLOCKS, Answer, Light, LightSettings, Seen, pulses_of, refusal, settings_of
from qtrunk.plan.rate import Choice, PlannedLink, planned
from qtrunk.quantum.analytic import expected
from qtrunk.topology import Distillation, Equipment, Link


def link(loss_db=10.0, **wishes):
    return Link(
        id=LinkId("a-b"),
        alice=NodeId("a"),
        bob=NodeId("b"),
        length_km=44.0,
        loss_db=loss_db,
        distillation=Distillation(**wishes),
    )


FREE = {"is_adaptive": True, "latency_s": 30.0}


def shown(one, settings):
    """What the link shows on average under these settings."""
    made = PlannedLink(km=one.length_km, loss_db=one.loss_db, equipment=one.equipment)
    light = expected(made.optics(Choice(settings.intensities, settings.probabilities, settings.key_basis_probability)))
    return Seen(light.gains[0], light.qber[1])


def test_a_link_that_may_not_change_never_asks():
    light = Light(link())
    for _ in range(3 * SEEN_BLOCKS):
        light.note(Seen(1e-4, 0.3))
        assert not light.is_due
    assert light.settings == settings_of(link())


def test_it_asks_after_the_first_block_and_then_when_the_link_has_moved():
    light = Light(link(**FREE))
    for nonsense in (Seen(0.0, 0.01), Seen(2.0, 0.01), Seen(1e-3, 0.5), Seen(float("nan"), 0.01)):
        light.note(nonsense)
        assert not light.is_due
    light.note(Seen(1e-3, 0.010))
    assert light.is_due
    light.adopt(Answer(settings_of(link()), Seen(1e-3, 0.010)))
    for gain, qber, is_due in ((1.02e-3, 0.0105, False), (0.94e-3, 0.0101, True), (1e-3, 0.0125, True)):
        for count in range(SEEN_BLOCKS):
            assert not light.is_due or count == 0
            light.note(Seen(gain, qber))
        assert light.is_due is is_due
        light.adopt(Answer(settings_of(link()), Seen(1e-3, 0.010)))


def test_the_fit_finds_what_the_fibre_does():
    truth = link(11.7)
    truth = replace(truth, equipment=replace(truth.equipment, residual_phase_rad=0.17))
    found = follow.fit(
        link(10.0), Choice((0.46, 0.20, 0.0002), (0.48, 0.42, 0.10), 0.78), shown(truth, settings_of(truth))
    )
    assert found.loss_db == pytest.approx(11.7, abs=0.02)
    assert found.equipment.residual_phase_rad == pytest.approx(0.17, abs=0.003)


def test_the_search_in_its_own_process_gives_more_key_within_the_configuration():
    here = link(**FREE)
    light = Light(here)
    light.note(shown(here, light.settings))
    done = subprocess.run(
        [sys.executable, "-m", "qtrunk.plan.search", "follow", str(os.getpid())],
        input=msgspec.json.encode(light.question()),
        capture_output=True,
        check=True,
    )
    answer = msgspec.json.decode(done.stdout, type=Answer)
    light.adopt(answer)
    found = answer.settings
    assert not refusal(here, light.pulses(7))
    before, after = (
        planned(
            PlannedLink(km=44.0, loss_db=10.0, block_s=one.block_s),
            Choice(one.intensities, one.probabilities, one.key_basis_probability),
        ).net_bps
        for one in (settings_of(here), found)
    )
    assert after > 1.2 * before
    assert 4.0 < found.block_s <= 30.0
    assert not light.is_due


def test_only_the_size_changes_where_only_that_may():
    here = link(latency_s=30.0)
    light = Light(here)
    light.note(shown(here, light.settings))
    assert light.is_due
    found = follow.follow(light.question()).settings
    assert replace_block(found, 4.0) == settings_of(here)
    assert 4.0 <= found.block_s <= 30.0


def replace_block(settings, block_s):
    return LightSettings(settings.intensities, settings.probabilities, settings.key_basis_probability, block_s)


GOOD = LightSettings((0.5, 0.2, 0.0002), (0.5, 0.3, 0.2), 0.9, 20.0)


def test_what_the_configuration_allows_is_taken():
    assert refusal(link(**FREE), pulses_of(link(), 1, GOOD)) == ""
    assert refusal(link(), pulses_of(link(), 1, settings_of(link()))) == ""


@pytest.mark.parametrize(
    ("wishes", "change", "word"),
    [
        ({}, {}, "pulses"),
        ({"latency_s": 20.0}, {}, "is_adaptive is false"),
        (FREE, {"count": 1}, "pulses"),
        (FREE, {"count": 10**12}, "pulses"),
        (FREE, {"intensities": (0.5, 0.2)}, "three"),
        (FREE, {"intensities": (0.3, 0.2, 0.15)}, "mu1"),
        (FREE, {"intensities": (1.1, 0.2, 0.0)}, "mu1"),
        (FREE, {"intensities": (float("nan"), 0.2, 0.0)}, "mu1"),
        (FREE, {"probabilities": (0.5, 0.5, 0.1)}, "sum"),
        (FREE, {"probabilities": (1.0, 0.0, 0.0)}, "between"),
        (FREE, {"key_basis_probability": 1.0}, "key_basis_probability"),
    ],
)
def test_bob_refuses_light_that_is_not_configured(wishes, change, word):
    here = link(**wishes)
    assert word in refusal(here, replace(pulses_of(here, 1, GOOD), **change))


def test_an_answer_out_of_the_configuration_changes_nothing():
    light = Light(link(**FREE))
    with pytest.raises(ValueError, match="a-b"):
        light.adopt(Answer(replace_block(GOOD, 1e6), Seen(1e-3, 0.01)))
    assert light.settings == settings_of(link())
    assert Equipment().block_s == light.settings.block_s
