"""Pool synchronisation: what is held is said after each change, several times, and seldom while nothing changes."""

from types import SimpleNamespace

from qtrunk.base.ids import NodeId
from qtrunk.node.poolsync import PERIOD_S, SELDOM_S, TIMES, PoolSync


def test_what_is_held_is_said_some_times_after_a_change_and_seldom_after_that(clock):
    said = []
    pools = SimpleNamespace(holding=lambda _age_s: {("bank", "post"): list(held)})
    topology = SimpleNamespace(sae=lambda _sae: SimpleNamespace(node="a"))
    notes = SimpleNamespace(serve=lambda *_: None, tell=lambda node, service, octets: said.append((node, service)))
    hybrid = SimpleNamespace(announce=lambda _nodes: None)
    sync = PoolSync(hybrid, NodeId("b"), topology, pools, notes, clock)
    held = [1, 2]
    for _ in range(TIMES):
        sync.tick()
    assert said == [("a", "pool-holding")] * TIMES
    for _ in range(int(SELDOM_S / PERIOD_S)):
        clock.now_s += PERIOD_S
        sync.tick()
    assert len(said) == TIMES + 1, "a node that lost what it heard hears it again"
    # However seldom it looks.
    clock.now_s += 10 * SELDOM_S
    sync.tick()
    assert len(said) == TIMES + 2
    held = [2]
    sync.tick()
    assert len(said) == TIMES + 3, "news at once"
