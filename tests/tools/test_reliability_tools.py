"""The torture and the loss of power, short: what they promise holds, and they find what is planted."""

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import powerloss  # noqa: E402
import torture  # noqa: E402


def test_two_key_managers_survive_being_killed_at_every_effect(tmp_path):
    run = torture.Torture(tmp_path, seed=3)
    run.run(60)
    assert run.kills >= 60
    assert len(run.given[torture.A]) > 50
    assert len(run.given[torture.B]) > 20
    assert {ledger["unaccounted"] for ledgers in run.ledgers.values() for ledger in ledgers} == {0}


def test_the_torture_notices_a_key_that_is_given_twice(tmp_path):
    run = torture.Torture(tmp_path, seed=3)
    run.note(torture.A, "one", b"k" * 32)
    with pytest.raises(AssertionError, match="GIVEN TWICE"):
        run.note(torture.A, "two", b"k" * 32)


def test_no_loss_of_power_gives_a_key_twice(tmp_path):
    result = powerloss.study(tmp_path, seed=5, steps=120, states=25)
    assert result["disks rebuilt"] == 25
    assert result["operations recorded"] > 500
    assert result["flushes"] > 50


@pytest.mark.parametrize("bug", ["no flush of the consume journal", "no flush of the database"])
def test_the_study_finds_a_flush_that_is_missing(tmp_path, bug):
    with pytest.raises(AssertionError, match="after operation"):
        powerloss.study(tmp_path, seed=5, steps=120, states=60, bug=bug)
