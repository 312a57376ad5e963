"""The soundness study finds what is broken, and nothing else: a small run of it, with its own fixed seeds."""

import importlib.util
from math import inf, log10
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from qtrunk.distil import bounds
from qtrunk.distil.keylength import key_length

PATH = Path(__file__).parent.parent.parent / "tools" / "soundness_study.py"
TRIALS = 120
SOUND = ("variable, exact", "variable, hoeffding", "wiesemann2026")


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soundness_study", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


study = loaded()
SITUATIONS = {situation.name: situation for situation in study.SITUATIONS}


@pytest.fixture(scope="module")
def made():
    names = ("honest, small block", "hardly any errors", "all single photons blocked", "nothing above two photons")
    return study.measured(TRIALS, tuple(SITUATIONS[name] for name in names))


def test_sound_rules_hold_in_every_situation(made):
    """Each of 24 lines has three counts that sound bounds break with probability below 10^-6."""
    assert len(made.rules) == 4 * 5 * 2
    for row in made.rules:
        if row.rule.name in SOUND:
            assert row.singles.holds, row
            assert row.phase.holds, row
            assert row.both.holds, row


def test_rules_with_lims_gamma_are_found_broken_where_there_is_hardly_any_error(made):
    broken = {(row.rule.name, row.situation.name) for row in made.rules if not row.phase.holds}
    assert ("lim2014", "hardly any errors") in broken
    assert {situation for _, situation in broken} == {"hardly any errors"}


def test_the_rules_claim_something_except_where_there_is_nothing_to_claim(made):
    for row in made.rules:
        if row.situation.name == "all single photons blocked":
            assert row.claims == 0
        elif row.rule.name == "variable, exact":
            assert row.claims > 0.9


def test_single_events_hold_and_the_exact_ones_use_up_what_they_may(made):
    """18 limits in each line, so sound ones break one with probability below 2 * 10^-5."""
    for row in made.events:
        for counted in (*row.counts.values(), row.sampling["exact"], row.sampling["Serfling"]):
            assert counted.holds, row
    most = max(row.counts["exact"].wrong for row in made.events if row.event == 0.05)
    assert most > 0.5 * 0.05 * TRIALS
    few = [row.sampling["Lim's γ"] for row in made.events if row.situation.name == "hardly any errors"]
    assert not any(counted.holds for counted in few)


def test_a_mistaken_bound_is_called_broken():
    """Five per cent more single photons than the rule says, where its bounds have no slack: the study must notice."""
    situation = SITUATIONS["nothing above two photons"]
    blocks = study.draw(np.random.default_rng(3), situation, 3, TRIALS)
    wrong = sum(
        study.bounds_of(study.RULES[0], study.observed(block, 3), 0.02)[0] * 1.05 > block.singles for block in blocks
    )
    assert not study.Counted(wrong, TRIALS, 0.1).holds


def test_blocks_are_tagged_as_their_light_says():
    """Detections by photon number against their means, six deviations: false alarm below 10^-6."""
    situation = SITUATIONS["honest, small block"]
    blocks = study.draw(np.random.default_rng(4), situation, 3, 200)
    mu, p = study.LEVELS[3]
    seen = sum(block.key[0, 1] for block in blocks)
    mean = 200 * situation.pulses * situation.key_basis**2 * p[0] * mu[0] * np.exp(-mu[0]) * situation.yields[1]
    assert abs(seen - mean) < 6 * np.sqrt(mean)
    assert sum(block.phase_errors for block in blocks) == pytest.approx(
        0.01 * sum(block.singles for block in blocks), rel=0.05
    )
    limits = key_length(  # the live rule on a block of the study
        study.observed(blocks[0], 3), 0.0, study.LoudBudget(event=0.02)
    )
    assert 0 < limits.single_photon_bits < blocks[0].singles


def test_exact_failures_are_those_of_a_sum_by_hand():
    """A penalty of nothing fails unless the test has more than its share of the errors."""
    kept, tested, rate = 40, 10, 0.2

    def nothing(errors, tested, kept, p_fail):
        return errors / tested

    # 10 of 50 are wrong; too low is x / 10 < (10 - x) / 40, so x of 0 or 1.
    at_most_one = sum(
        np.prod([1.0 * (40 - i) for i in range(10 - x)])
        * np.prod([1.0 * (10 - i) for i in range(x)])
        * (10 if x else 1)
        for x in (0, 1)
    ) / np.prod([1.0 * (50 - i) for i in range(10)])
    assert study.log10_failure(nothing, rate, kept, tested, 0.01) == pytest.approx(log10(at_most_one), abs=1e-9)
    assert study.log10_failure(lambda *_: 1.0, rate, kept, tested, 0.01) == -inf


@pytest.mark.parametrize("rate", study.RATES)
def test_sound_penalties_never_fail_more_often_than_allowed(rate):
    allowed = log10(study.ALPHA)
    for penalty in (bounds.hypergeometric, bounds.serfling):
        assert study.log10_failure(penalty, rate, *study.SIZES[1]) <= allowed
    assert study.log10_failure(study.gaussian, rate, *study.SIZES[1]) > allowed
    if rate < 2e-3:
        assert study.log10_failure(study.lim, rate, *study.SIZES[1]) > allowed


def test_the_page_has_every_situation_and_rule(made, tmp_path):
    text = study.page(made)
    for row in made.rules:
        assert f"| {row.situation.name} | {row.rule.name} |" in text
    assert "Rules found broken below: lim2014" in text
    study.picture(made, tmp_path / "soundness.svg")
    assert "<svg" in (tmp_path / "soundness.svg").read_text()
