"""Looks once a second at what a node knows and sets alarms: its links, its pools, nodes that fell silent; then says of
each alarm what it harms and what it follows from (`control.rootcause`), as far as one node can know: its own alarms,
and what adverts say of links elsewhere. The whole network's view is that of `qtrunk alarms`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qtrunk.base.errors import RouteUnavailable
from qtrunk.base.ids import NodeId, SaeId
from qtrunk.base.ports import Clock
from qtrunk.control.rootcause import Correlation, Seen, node_resource, pool_resource
from qtrunk.control.threshold import Ladder, Step
from qtrunk.node.advert import Adverts
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.linkstate import LinkStatistics
from qtrunk.node.linkwatch import LinkWatch, expectations
from qtrunk.node.pace import Pace
from qtrunk.relay.route import route
from qtrunk.topology import Topology

PERIOD_S = 1.0
REST_S, LASTING_S = 20.0, 15.0
"""Where nothing has happened at the node for longer than an alarm of a node or pool takes, it looks so seldom."""
FILL_S = 120.0
"""A pool that was never filled is not missed for so long."""
PLAN_AFTER_S, PLAN_AGAIN_S = 30.0, 600.0
"""What links should show is computed once the node is in service, and again where that failed."""
FULL = 0.9
POOL_STEPS = (
    Step("PoolLow", 0.25, 0.40, 10.0, 10.0),
    Step("PoolCritical", 0.10, 0.20, 5.0, 10.0),
    Step("PoolEmpty", 0.005, 0.05, 2.0, 5.0),
)
"""Shares of a pool's goal. A pool is filled again from a half of it on, so a served one never gets to the first."""
SILENT = Step("RelayUnreachable", 0.5, 0.5 + 1e-9, 3.0, 5.0)


@dataclass(frozen=True, slots=True)
class PoolLevel:
    """How one pool stands, in octets."""

    initiator: SaeId
    target: SaeId
    octets: int
    goal_octets: float


@dataclass(slots=True)
class _Pool:
    begun_s: float
    ladder: Ladder = field(default_factory=lambda: Ladder(POOL_STEPS))
    was_filled: bool = False


class AlarmWatch:
    """One node's."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        board: AlarmBoard,
        clock: Clock,
        adverts: Adverts,
        links: Callable[[], Sequence[tuple[LinkStatistics, float]]],
        pools: Callable[[], Sequence[PoolLevel]],
        pace: Pace | None = None,
    ) -> None:
        """`links`: statistics of each link end and how full its store is, 0 to 1."""
        self._pace = pace or Pace()
        self._node = node
        self._topology = topology
        self._board = board
        self._clock = clock
        self._adverts = adverts
        self._links = links
        self._pools = pools
        self._correlation = Correlation(topology, self._usual_route)
        self._watches: dict[str, LinkWatch] = {}
        self._pool_states: dict[tuple[SaeId, SaeId], _Pool] = {}
        self._node_states: dict[str, Ladder] = {}
        self._unusable_since: dict[str, float] = {}
        self._explained: object = None

    async def run(self) -> None:
        """For ever."""
        ask_s = self._clock.monotonic_s() + PLAN_AFTER_S
        while True:
            at_most_s = self._until_due_s(ask_s - self._clock.monotonic_s())
            await self._pace.turn(PERIOD_S, REST_S, LASTING_S, at_most_s=max(PERIOD_S, at_most_s))
            self.look()
            if self._clock.monotonic_s() >= ask_s:
                ask_s = self._clock.monotonic_s() + PLAN_AGAIN_S
                await self._ask_for_plans()

    def _until_due_s(self, ask_in_s: float) -> float:
        """How long until time alone may bring something about."""
        now_s = self._clock.monotonic_s()
        missed = [one.begun_s + FILL_S - now_s for one in self._pool_states.values() if not one.was_filled]
        ladders = [*(one.ladder for one in self._pool_states.values()), *self._node_states.values()]
        is_pending = any(one.is_pending for one in ladders) or any(one.is_pending for one in self._watches.values())
        return min([ask_in_s, REST_S if is_pending else float("inf"), *(left_s for left_s in missed if left_s > 0)])

    def adopt(self) -> None:
        """The topology has changed: nothing is kept of links and nodes that are gone, their alarms are over."""
        self._correlation = Correlation(self._topology, self._usual_route)
        self._explained = None
        links = {link.id for link in self._topology.links}
        self._watches = {link: watch for link, watch in self._watches.items() if link in links}
        gone = self._node_states.keys() - {node.id for node in self._topology.nodes}
        for node in gone:
            del self._node_states[node]
            self._board.clear(node_resource(NodeId(node)))

    async def _ask_for_plans(self) -> None:
        lacking = [one for one in self._watches.values() if one.plan is None and one.statistics.link.vendor is None]
        if not lacking:
            return
        plans = await expectations([one.statistics.link for one in lacking])
        for watch, plan in zip(lacking, plans or (), strict=False):
            watch.plan = plan

    def look(self) -> None:
        """Once."""
        now_s = self._clock.monotonic_s()
        for statistics, fullness in self._links():
            link = statistics.link.id
            if link not in self._watches:
                self._watches[link] = LinkWatch(statistics, self._board, now_s)
            self._watches[link].look(now_s, is_full=fullness > FULL)
        self._look_at_pools(now_s)
        self._look_at_nodes(now_s)
        self._explain(now_s)

    def _look_at_pools(self, now_s: float) -> None:
        levels = {(one.initiator, one.target): one for one in self._pools()}
        for pair in self._pool_states.keys() - levels.keys():
            del self._pool_states[pair]
            self._set_pool_alarm(pool_resource(*pair), None, "")
        for pair, level in levels.items():
            state = self._pool_states.setdefault(pair, _Pool(now_s))
            share = level.octets / max(1.0, level.goal_octets)
            state.was_filled |= share > POOL_STEPS[0].clear_above
            if not state.was_filled and now_s - state.begun_s < FILL_S:
                continue
            text = f"{8 * level.octets} of {8 * level.goal_octets:.0f} bits are there"
            self._set_pool_alarm(pool_resource(*pair), state.ladder.note(share, now_s), text)

    def _set_pool_alarm(self, resource: str, step: str | None, text: str) -> None:
        for one in POOL_STEPS:
            self._board.set_alarm(one.name == step, resource, one.name, text)

    def _look_at_nodes(self, now_s: float) -> None:
        silent = self._adverts.silent(now_s)
        for node in self._topology.nodes:
            # Most nodes are there all the time, and nothing need be noted of them.
            if node.id == self._node or not (node.id in silent or node.id in self._node_states):
                continue
            ladder = self._node_states.setdefault(node.id, Ladder((SILENT,)))
            is_silent = ladder.note(0.0 if node.id in silent else 1.0, now_s) is not None
            text = f"node {node.id}: nothing was heard of it by any way"
            self._board.set_alarm(is_silent, node_resource(node.id), "RelayUnreachable", text)
            if not is_silent and node.id not in silent:
                del self._node_states[node.id]

    # ── what follows from what ──────────────────────────────────────────────────────────────────────────────────────

    def _usual_route(self, start: NodeId, end: NodeId) -> Sequence[NodeId]:
        try:
            return route(self._topology, start, end)
        except RouteUnavailable:
            return ()

    def _elsewhere(self, now_s: float) -> list[Seen]:
        """What adverts say of links that do not end here, as if their nodes had raised it."""
        own = {str(link.id) for link in self._topology.links_of(self._node)}
        unusable = {str(link) for link in self._adverts.unusable_links(now_s)} - own
        now_unix_s = self._clock.unix_s()
        self._unusable_since = {link: self._unusable_since.get(link, now_unix_s) for link in unusable}
        return [Seen("", link, "LinkOff", since_s) for link, since_s in sorted(self._unusable_since.items())]

    def _explain(self, now_s: float) -> None:
        active = self._board.active()
        own = [Seen(self._node, one.resource, one.type, one.raised_unix_s, one.severity) for one in active]
        known = [*own, *self._elsewhere(now_s)]
        pairs = tuple(self._pool_states)
        state = (frozenset(known), pairs)
        if state == self._explained:
            return
        self._explained = state
        known = list(dict.fromkeys(known))
        parents = self._correlation.parents(known)
        demands = [pair for one in self._topology.demands for pair in (one.between, one.between[::-1])]
        asked = list(dict.fromkeys([*demands, *pairs]))
        for alarm, seen in zip(active, own, strict=True):
            root = self._correlation.root_of(seen, parents)
            roots = [] if root == seen else [root.resource]
            self._board.explain(alarm.id, self._correlation.impact(alarm.resource, asked), roots)
