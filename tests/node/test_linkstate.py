"""The rate of a link end: over its last blocks, and of a pause nothing is left."""

import asyncio

import pytest

from qtrunk.base.ids import LinkId, NodeId
from qtrunk.config import network
from qtrunk.node.linkstate import STALLED_S, LinkStatistics
from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.scenario import vendor_link
from qtrunk.sim.network.trial import Trial
from qtrunk.stages import Role
from qtrunk.topology import Node, Topology

LINK = network.load('name = "pair"\ntrunks = [["a", "b"]]\n[link]\nlength_km = 10\n').link(LinkId("a-b"))
BLOCK_S, BLOCK_OCTETS = 4.0, 500
RATE_BPS = 8 * BLOCK_OCTETS / BLOCK_S


@pytest.fixture
def statistics(clock):
    return LinkStatistics(LINK, Role.ALICE, clock)


def make(statistics, clock, blocks):
    for _ in range(blocks):
        clock.now_s += BLOCK_S
        statistics.note_span(BLOCK_S)
        statistics.note_released({"sifted_bits": 1, "octets": BLOCK_OCTETS, "auth_octets": 0})


def test_a_pause_is_no_rate_while_it_lasts_and_no_part_of_the_rate_after_it(statistics, clock):
    make(statistics, clock, 4)
    assert statistics.rates_bps()[1] == pytest.approx(RATE_BPS)
    assert not statistics.note_pause(is_paused=True)
    clock.now_s += STALLED_S + 1.0
    assert statistics.rates_bps() == (0.0, 0.0)
    clock.now_s += 3600.0
    make(statistics, clock, 1)
    assert statistics.rates_bps() == (0.0, 0.0), "one that was under way"
    assert not statistics.note_pause(is_paused=True)
    assert statistics.note_pause(is_paused=False)
    assert not statistics.note_pause(is_paused=False), "it is over once"
    make(statistics, clock, 1)
    assert statistics.rates_bps()[1] == pytest.approx(RATE_BPS)


@pytest.mark.parametrize("gap_s", [STALLED_S / 2, 300.0])
def test_a_gap_that_nobody_chose_counts(statistics, clock, gap_s):
    """Light that takes long, or blocks that die without a word."""
    make(statistics, clock, 4)
    clock.now_s += gap_s
    make(statistics, clock, 1)
    assert statistics.rates_bps()[1] == pytest.approx(RATE_BPS * 5 * BLOCK_S / (5 * BLOCK_S + gap_s))


def test_a_short_pause_leaves_the_blocks_before_it(statistics, clock):
    make(statistics, clock, 4)
    statistics.note_pause(is_paused=True)
    clock.now_s += STALLED_S / 2
    assert statistics.note_pause(is_paused=False)
    make(statistics, clock, 4)
    assert statistics.rates_bps()[1] == pytest.approx(RATE_BPS * 8 * BLOCK_S / (8 * BLOCK_S + STALLED_S / 2))


def test_a_vendors_link_whose_pool_was_full_has_its_rate_again_with_the_first_block():
    nodes = tuple(Node(id=NodeId(name)) for name in "ab")
    trial = Trial(Topology(name="pair", nodes=nodes, links=(vendor_link("a", "b"),)), Dice("full"), block_s=1.0)

    def ends():
        return [runner for name in "ab" for runner in trial.live(NodeId(name))._links]

    async def story():
        await asyncio.sleep(10.0)
        before = [end.statistics.rates_bps()[1] for end in ends()]
        assert min(before) > 0
        await asyncio.sleep(900.0)
        assert [end.statistics.rates_bps()[1] for end in ends()] == [0.0, 0.0]
        made = [end.statistics.released for end in ends()]
        for end in ends():
            # Room, as if keys had been taken out.
            end._pool_octets_max *= 2
            end._pace.stir()
        while any(end.statistics.released == one for end, one in zip(ends(), made, strict=True)):
            await asyncio.sleep(0.1)
        for end, rate_bps in zip(ends(), before, strict=True):
            assert end.statistics.rates_bps()[1] > rate_bps / 2

    trial.run(story())
