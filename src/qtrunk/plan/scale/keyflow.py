"""Keys of a large network by the minute: links make key, demands take it along their routes, fibres are cut and mended.

Key-level: no pulse and no process, only octets. Each direction of a link has a pool, filled at half the link's planned
rate (`plan.guarantees.planned_bps`, times its parallel pairs) up to `pool_s` of it. A demand has a store of end-to-end
key at its two sites for `ahead_s` of what it asks for at its busiest, as nodes fill their pools ahead; each step it
takes what the applications ask for out of that and fills it up over its route, which costs as much on every hop. Where
a hop has too little, all demands over it get the same share of what they want. Routes are those of `relay.route`, over
the same graph and by the same function; a cut fibre or a site that is down is avoided from the next step on, and what
lies in the pools of a cut link waits for its repair.

All state is arrays: the cost of a step follows the number of (demand, hop) pairs.
"""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from qtrunk.plan.scale.demands import KEY_BITS, Demands
from qtrunk.relay.graph import CLOSED, Graph

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
_PASSES = 3
"""How often what is left over is shared again within a step."""
YEAR_S = 365.25 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a run assumes."""

    step_s: float = 60.0
    pool_s: float = 3600.0
    ahead_s: float = 60.0
    cuts_per_1000_km_year: float = 2.7
    """A figure of 4.39 a year and 1000 sheath miles is widely quoted for terrestrial cable."""
    mending_s: float = 12 * 3600.0
    """Mean, exponential."""
    outages_per_site_year: float = 0.2
    outage_s: float = 4 * 3600.0
    warm_up_s: float = 3600.0
    """Pools fill, and nothing is counted."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of a run."""

    asked_bits: Floats
    """By sector or tenant."""
    served_bits: Floats
    short_steps: Places
    """Of each demand: steps in which it got less than it asked for."""
    steps: int = 0
    cuts: int = 0
    outages: int = 0
    rerouted: int = 0
    """Demands whose route changed, each time."""
    longest_reroute_s: float = 0.0
    """Of this machine's time: new routes for all demands after one event."""
    use: Floats
    """Of each arc: bits relayed."""
    mean_hops: float = 0.0
    seconds: float = 0.0
    """That the run took."""


class KeyFlow:
    """One network under one set of demands."""

    def __init__(
        self, graph: Graph, rates_bps: Floats, demands: Demands, total_bps: float, conditions: Conditions, seed: int
    ) -> None:
        """`rates_bps` of each arc."""
        self._graph, self._demands, self._total_bps, self._conditions = graph, demands, total_bps, conditions
        self._rates = rates_bps
        self._dice = np.random.default_rng(seed)
        self._pools = np.zeros(len(rates_bps))
        busiest = np.array([demands.rates(total_bps, hour * 3600.0) for hour in range(24)]).max(axis=0)
        self._ahead_most = np.ceil(busiest * conditions.ahead_s / KEY_BITS) * KEY_BITS
        self._ahead = np.zeros_like(self._ahead_most)
        self._partner = _partners(graph)
        self._closed_until = np.zeros(len(rates_bps))
        self._closed = np.zeros(len(rates_bps), dtype=bool)
        self._routes: list[Places] = [np.empty(0, dtype=np.int64)] * len(demands.sources)
        self._displaced = np.zeros(len(demands.sources), dtype=bool)
        """Took a way around what is closed, or found none."""
        self.outcome = Outcome(
            asked_bits=np.zeros(len(demands.groups)),
            served_bits=np.zeros(len(demands.groups)),
            short_steps=np.zeros(len(demands.sources), dtype=np.int64),
            use=np.zeros(len(rates_bps)),
        )
        self._route(np.arange(len(demands.sources)))

    def run(self, seconds: float) -> Outcome:
        """Go on for so long, the warm-up before it."""
        began = time.perf_counter()
        conditions = self._conditions
        for number in range(round((conditions.warm_up_s + seconds) / conditions.step_s)):
            at_s = number * conditions.step_s
            self._happen(at_s)
            self._step(at_s, is_counted=at_s >= conditions.warm_up_s)
        hops = np.array([len(row) for row in self._routes])
        self.outcome.mean_hops = float(hops[hops > 0].mean()) if hops.any() else 0.0
        self.outcome.seconds = time.perf_counter() - began
        return self.outcome

    # ── one step ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _step(self, at_s: float, *, is_counted: bool) -> None:
        conditions, outcome = self._conditions, self.outcome
        rates = self._demands.rates(self._total_bps, at_s)
        asked = self._dice.poisson(rates * conditions.step_s / KEY_BITS) * float(KEY_BITS)
        made = np.where(self._closed, 0.0, self._rates * conditions.step_s)
        self._pools = np.minimum(self._pools + made, self._rates * conditions.pool_s)
        filled = self._fill(asked + self._ahead_most - self._ahead)
        there = self._ahead + filled
        served = np.minimum(asked, there)
        self._ahead = np.minimum(there - served, self._ahead_most)
        if not is_counted:
            outcome.use[:] = 0.0
        else:
            outcome.steps += 1
            outcome.short_steps += served < asked
            outcome.asked_bits += np.bincount(self._demands.group, asked, len(self._demands.groups))
            outcome.served_bits += np.bincount(self._demands.group, served, len(self._demands.groups))

    def _fill(self, wanted: Floats) -> Floats:
        """Relay as much as the links have; what each demand got."""
        available = np.where(self._closed, 0.0, self._pools)
        got = np.zeros_like(wanted)
        for _ in range(_PASSES):
            load = wanted @ self.over
            share = np.divide(available, load, out=np.ones_like(load), where=load > available)
            part = wanted * np.where(self._has_route, np.minimum.reduceat(share[self._hops], self._begins), 0.0)
            taken = part @ self.over
            available = np.maximum(available - taken, 0.0)
            self._pools = np.maximum(self._pools - taken, 0.0)
            self.outcome.use += taken
            got += part
            wanted = wanted - part
        return got

    # ── routes ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _route(self, which: Places) -> None:
        """New routes for these demands; one search serves all that begin at one site."""
        costs = np.where(self._closed, CLOSED, self._graph.base)
        sources, targets = self._demands.sources[which], self._demands.targets[which]
        order = np.argsort(sources, kind="stable")
        for source, group in _groups(sources[order], which[order], targets[order]):
            _, before = self._graph.cheapest(costs, source)
            for demand, target in group:
                self._routes[demand] = self._arcs_to(before, source, target)
        self._index()

    def _arcs_to(self, before: NDArray[np.int32], source: int, target: int) -> Places:
        row = [target]
        while row[-1] != source and before[row[-1]] >= 0:
            row.append(int(before[row[-1]]))
        if row[-1] != source:
            return np.empty(0, dtype=np.int64)
        tails, heads = row[:0:-1], row[-2::-1]
        graph = self._graph
        return np.array([_arc(graph, tail, head) for tail, head in zip(tails, heads, strict=True)], dtype=np.int64)

    def _index(self) -> None:
        """What `_fill` needs of all routes at once; a demand without one has a hop that it takes nothing from."""
        lengths = np.array([len(row) for row in self._routes])
        self._has_route = lengths > 0
        held = np.maximum(lengths, 1)
        self._begins = np.concatenate([[0], np.cumsum(held)[:-1]])
        self._hops = np.concatenate([row if len(row) else np.zeros(1, dtype=np.int64) for row in self._routes])
        ones = np.repeat(self._has_route.astype(np.float64), held)
        self.over = csr_array(
            (ones, self._hops, np.concatenate([self._begins, [len(self._hops)]])),
            shape=(len(self._routes), len(self._rates)),
        )

    # ── what happens ────────────────────────────────────────────────────────────────────────────────────────────────

    def _happen(self, at_s: float) -> None:
        """Fibres are cut and sites go down at random; both come back."""
        conditions, graph = self._conditions, self._graph
        mended = self._closed & (self._closed_until <= at_s)
        share = conditions.step_s / YEAR_S
        km = (graph.base - 1.0) * 1e6 / 2  # both directions lie in one cable
        cut = self._dice.random(len(km)) < km / 1000 * conditions.cuts_per_1000_km_year * share
        down = self._dice.random(len(graph.nodes)) < conditions.outages_per_site_year * share
        if not (mended.any() or cut.any() or down.any()):
            return
        before = self._closed.copy()
        self._closed &= ~mended
        for arc in np.flatnonzero(cut):
            self._close([arc, self._partner[arc]], at_s + self._dice.exponential(conditions.mending_s))
        for node in np.flatnonzero(down):
            out = np.arange(graph.starts[node], graph.starts[node + 1])
            self._close([*out, *self._partner[out]], at_s + self._dice.exponential(conditions.outage_s))
        self.outcome.cuts += int(cut.sum())
        self.outcome.outages += int(down.sum())
        self._reroute(self._closed & ~before, mended & ~self._closed)

    def _close(self, arcs: list[np.int64], until_s: float) -> None:
        self._closed[arcs] = True
        self._closed_until[arcs] = np.maximum(self._closed_until[arcs], until_s)

    def _reroute(self, closed: NDArray[np.bool_], opened: NDArray[np.bool_]) -> None:
        began = time.perf_counter()
        hit = np.logical_or.reduceat(closed[self._hops], self._begins) & self._has_route
        # Who took a way around, or had none, may go back when something opens; the others are on their cheapest one.
        which = np.flatnonzero(hit | self._displaced if opened.any() else hit)
        if len(which):
            before = [self._routes[demand] for demand in which]
            self._route(which)
            changed = sum(not np.array_equal(old, self._routes[one]) for old, one in zip(before, which, strict=True))
            self.outcome.rerouted += changed
            self._displaced[which] = self._closed.any()
        self.outcome.longest_reroute_s = max(self.outcome.longest_reroute_s, time.perf_counter() - began)


def busiest_total(graph: Graph, rates_bps: Floats, demands: Demands, load: float) -> float:
    """What all demands ask for together, bit/s, when the busiest direction of a link is used to `load` of its rate at
    its busiest hour, every link up.
    """
    flow = KeyFlow(graph, rates_bps, demands, 1.0, Conditions(), 0)
    hours = [demands.rates(1.0, hour * 3600.0) @ flow.over for hour in range(24)]
    return load / float((np.max(hours, axis=0) / rates_bps).max())


def _arc(graph: Graph, tail: int, head: int) -> int:
    row = graph.heads[graph.starts[tail] : graph.starts[tail + 1]]
    return int(graph.starts[tail] + np.searchsorted(row, head))


def _partners(graph: Graph) -> Places:
    """The other direction of each arc."""
    partner = np.empty(len(graph.heads), dtype=np.int64)
    for a, b in graph.arcs.values():
        partner[a], partner[b] = b, a
    return partner


def _groups(sources: Places, demands: Places, targets: Places) -> list[tuple[int, list[tuple[int, int]]]]:
    """Demands and targets of each source; `sources` is sorted."""
    starts = [0, *(np.flatnonzero(np.diff(sources)) + 1).tolist()] if len(sources) else []
    ends = [*starts[1:], len(sources)]
    return [
        (int(sources[start]), list(zip(demands[start:end].tolist(), targets[start:end].tolist(), strict=True)))
        for start, end in zip(starts, ends, strict=True)
    ]
