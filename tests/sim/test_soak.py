"""The simulated network: seeds that found something, seeds of every day, and that a seed is one run."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from qtrunk.base.ids import NodeId
from qtrunk.node.node import EXPIRE_REST_S
from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.faults import AIMED
from qtrunk.sim.network.scenario import ANNOUNCED_FROM, plan, play, vendor_link
from qtrunk.sim.network.simnode import POOL_OCTETS_MAX
from qtrunk.sim.network.trial import Trial
from qtrunk.topology import Node, Topology

KEPT = [
    (12, 25.0, "a link whose first block died divided by zero when asked for its rate, and the node stopped"),
    (54, 25.0, "a vendor link asked for no more keys once the disk had refused the release of a block"),
    (205, 25.0, "a vendor link waited for ever for words that settle a block, when they were lost"),
    (20_364, 15.0, "a clock that was set back ended a used-up segment, and a repeated request was given other keys"),
]
"""Seeds, and seconds of faults, that find a mistake that was put right: each fails where it is made again
(`tools/planted_bugs.py --kept`).
"""
SEEDS = int(os.environ.get("QTRUNK_SOAK_SEEDS", "120"))
FIRST = 1000


@pytest.mark.parametrize(("seed", "faults_s"), [kept[:2] for kept in KEPT], ids=[kept[2] for kept in KEPT])
def test_what_a_seed_found_stays_right(seed, faults_s):
    # They were found before there were aimed deaths.
    kinds = tuple(kind for kind in plan(seed).kinds if kind != AIMED)
    outcome = play(seed, given=replace(plan(seed), kinds=kinds, faults_s=faults_s))
    assert not outcome.error, "\n".join([outcome.where, *outcome.last_words, outcome.error])


def test_the_alarm_of_a_full_disk_ends_on_a_link_whose_pool_is_full():
    """Seed 10 found that it stood for ever, while links still looked at their pools four times a second. However long
    nothing had happened before.
    """
    nodes = tuple(Node(id=NodeId(name)) for name in "ab")
    trial = Trial(Topology(name="pair", nodes=nodes, links=(vendor_link("a", "b"),)), Dice("full"), block_s=0.1)

    async def story():
        await asyncio.sleep(3600.0)
        board = trial.sites[NodeId("a")].alarms
        assert trial.live(NodeId("a")).store.level(trial.topology.links[0].id).total_octets >= POOL_OCTETS_MAX
        board.raise_alarm(trial.topology.links[0].id, "StorageFull", "critical", "as if the disk were full")
        await asyncio.sleep(EXPIRE_REST_S + 1.0)
        assert board.active() == []

    trial.run(story())


@pytest.mark.parametrize(
    ("first", "seeds"), [(FIRST, SEEDS), (ANNOUNCED_FROM, SEEDS // 4)], ids=["hop by hop", "announced XORs"]
)
def test_every_check_holds_under_many_seeds(first, seeds):
    # A process of its own: it fixes the order of sets, so that these are the same runs every time.
    command = [sys.executable, "-m", "qtrunk.sim.soak", "--first", str(first), "--seeds", str(seeds)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f"{seeds} seeds, 0 failed" in done.stdout
    assert int(done.stdout.rsplit(", ", 1)[1].split()[0]) > seeds, "keys at both ends"


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
