"""The simulated network: seeds that found something, seeds of every day, and that a seed is one run."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from qtrunk.sim.network.scenario import plan, play

KEPT = [
    (10, 25.0, "the alarm of a full disk stood for ever on a link whose pool was full"),
    (15, 25.0, "a link whose first block died divided by zero when asked for its rate, and the node stopped"),
    (23, 25.0, "a vendor link asked for no more keys once the disk had refused the release of a block"),
]
"""Seeds, and seconds of faults, that found a mistake; each was put right."""
SEEDS = int(os.environ.get("QTRUNK_SOAK_SEEDS", "32"))
FIRST = 1000


@pytest.mark.parametrize(("seed", "faults_s"), [kept[:2] for kept in KEPT], ids=[kept[2] for kept in KEPT])
def test_what_a_seed_found_stays_right(seed, faults_s):
    outcome = play(seed, given=replace(plan(seed), faults_s=faults_s))
    assert not outcome.error, "\n".join([outcome.where, *outcome.last_words, outcome.error])


def test_every_check_holds_under_many_seeds():
    # A process of its own: it fixes the order of sets, so that these are the same runs every time.
    command = [sys.executable, "-m", "qtrunk.sim.soak", "--first", str(FIRST), "--seeds", str(SEEDS)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f"{SEEDS} seeds, 0 failed" in done.stdout
    assert int(done.stdout.rsplit(", ", 1)[1].split()[0]) > SEEDS, "keys at both ends"


def test_a_seed_is_one_run():
    seed = next(seed for seed in range(1, 100) if {"power", "meddle"} <= set(plan(seed).kinds))
    first, again, other = play(seed), play(seed), play(seed + 1)
    assert (first.trace, first.virtual_s, first.counts) == (again.trace, again.virtual_s, again.counts)
    assert other.trace != first.trace


def test_a_seed_is_one_run_in_any_process():
    """Processes order sets of names each in their own way, unless told not to."""
    command = [sys.executable, "-m", "qtrunk.sim.soak", "--seed", "14"]
    runs = {subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(2)}
    assert len(runs) == 1
