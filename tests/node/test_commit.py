"""Group commit: many waiters, few flushes; a flush that fails fails all who wait and loses their keys on record."""

import asyncio
import threading

import pytest

from qtrunk.base.errors import StoreError
from qtrunk.node.commit import GroupCommit


class Pools:
    """Counts instead of writing."""

    def __init__(self):
        self.written = self.durable = self.flushes = self.answered = 0
        self.fails: Exception | None = None
        self.given_up = []
        self.gate = threading.Event()
        self.gate.set()

    def flush(self):
        target = self.written
        assert self.gate.wait(5)
        self.flushes += 1
        if self.fails:
            raise self.fails
        self.durable = target
        return target

    def note_answered(self, sequence):
        self.answered = sequence

    def give_up(self, after, up_to):
        self.given_up.append((after, up_to))


async def wait(commit, pools):
    pools.written += 1
    mine = pools.written
    waiting = commit.durable()
    if waiting is not None:
        await waiting
    assert pools.durable >= mine
    return mine


def run(work):
    async def whole():
        pools = Pools()
        commit = GroupCommit(pools)
        try:
            await work(commit, pools)
        finally:
            pools.gate.set()
            await commit.close()

    asyncio.run(whole())


def test_what_comes_while_a_flush_runs_shares_the_next_one():
    async def work(commit, pools):
        pools.gate.clear()
        first = asyncio.create_task(wait(commit, pools))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(wait(commit, pools)) for _ in range(50)]
        await asyncio.sleep(0.01)
        assert not first.done()
        pools.gate.set()
        assert await asyncio.gather(first, *others) == list(range(1, 52))
        assert pools.flushes == 2
        assert commit.durable() is None
        assert pools.answered <= 1

    run(work)


def test_who_goes_away_ends_nobody_elses_wait():
    async def work(commit, pools):
        pools.gate.clear()
        tasks = [asyncio.create_task(wait(commit, pools)) for _ in range(3)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        pools.gate.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert done[0] == 1
        assert isinstance(done[1], asyncio.CancelledError)
        assert done[2] == 3

    run(work)


@pytest.mark.parametrize("error", [StoreError("disk"), ValueError("a bug")])
def test_a_flush_that_fails_fails_all_who_wait_and_the_next_goes_on(error):
    async def work(commit, pools):
        pools.gate.clear()
        pools.fails = error
        first = asyncio.create_task(wait(commit, pools))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(wait(commit, pools)) for _ in range(4)]
        await asyncio.sleep(0.01)
        pools.gate.set()
        done = await asyncio.gather(first, *others, return_exceptions=True)
        assert all(isinstance(one, StoreError) for one in done)
        assert pools.given_up == [(0, 5)]
        pools.fails = None
        assert await wait(commit, pools) == 6

    run(work)
