"""New routes after a failure, in networks of 1,000 and 10,000 nodes (`plan.scale.recipe`).

What is measured is one node's share, as every node of a network does it at the same time: it hears that the link over
which most of its routes go carries nothing any more, and has new routes to all other nodes (`relay.routing`, the very
object that nodes route by). networkx does the same on a graph with the same costs, in the same run; both must find
routes that cost the same.
"""

import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import networkx as nx

from qtrunk.base.errors import LabError
from qtrunk.base.ids import NodeId
from qtrunk.plan.bench.figures import TOOLS, Figure, pinned
from qtrunk.plan.scale.recipe import backbone
from qtrunk.relay.prices import FULL_OCTETS_MIN, STEPS, LinkLevel
from qtrunk.relay.routing import Routing
from qtrunk.topology import Link, Topology

GOALS_MS = {1_000: 100.0, 10_000: 2_000.0}
FILL_BPS = 2_000.0


class _Case:
    """One node of a network in which every direction has another level, and the link that fails."""

    def __init__(self, sites: int) -> None:
        self.topology: Topology = backbone(sites).topology
        self.start: NodeId = self.topology.nodes[0].id
        self.routing = Routing(self.start, self.topology)
        for place, link in enumerate(self.topology.links):
            for side, node in enumerate((link.alice, link.bob)):
                self.routing.note(node, [self._level(link, place, side)])
        uses = Counter(hop for row in self.routing.all_routes().values() for hop in pairwise(row))
        self.failing: Link = self.topology.link_between(*max(uses, key=lambda hop: uses[hop]))
        self._rival = self._graph()

    def _level(self, link: Link, place: int, side: int) -> LinkLevel:
        """From empty to full in eighths; neighbours of a link in the list have others."""
        octets = (3 * place + 5 * side) % (STEPS + 1) * FULL_OCTETS_MIN // STEPS
        return LinkLevel(link=link.id, octets=octets, fill_bps=FILL_BPS, is_usable=True)

    def fail(self, *, is_usable: bool) -> None:
        """The link's end tells that it carries nothing, or something again."""
        level = LinkLevel(link=self.failing.id, octets=FULL_OCTETS_MIN, fill_bps=FILL_BPS, is_usable=is_usable)
        self.routing.note(self.failing.alice, [level])

    def ours(self) -> dict[NodeId, tuple[NodeId, ...]]:
        """New routes to all nodes."""
        return self.routing.all_routes()

    def _graph(self) -> "nx.DiGraph[NodeId]":
        graph: nx.DiGraph[NodeId] = nx.DiGraph()
        graph.add_nodes_from(node.id for node in self.topology.nodes)
        for link in self.topology.links:
            self._price(graph, link)
        return graph

    def _price(self, graph: "nx.DiGraph[NodeId]", link: Link) -> None:
        for hop in ((link.alice, link.bob), (link.bob, link.alice)):
            graph.add_edge(*hop, weight=self.routing.cost(hop))

    def rival(self) -> dict[NodeId, list[NodeId]]:
        """The same by networkx."""
        self._price(self._rival, self.failing)
        found: dict[NodeId, list[NodeId]] = nx.single_source_dijkstra_path(self._rival, self.start)
        return found

    def check(self) -> None:
        """LabError where both do not find the same costs, or a route goes over the failed link."""
        ours, theirs = self.ours(), self.rival()
        cost = self.routing.cost
        if ours.keys() != theirs.keys() or any(abs(cost(ours[end]) - cost(theirs[end])) > 1e-6 for end in theirs):
            raise LabError("our routes and those of networkx do not cost the same")
        ends = {self.failing.alice, self.failing.bob}
        if any(ends == set(hop) for row in ours.values() for hop in pairwise(row)):
            raise LabError(f"a route goes over {self.failing.id}, which has failed")


def _times_ms(case: _Case, find: Callable[[], object], runs: int) -> list[float]:
    """CPU time from the news to the routes, after one run that does not count."""
    found = []
    with pinned():
        for _ in range(runs + 1):
            case.fail(is_usable=True)
            case.ours()
            began_s = time.process_time()
            case.fail(is_usable=False)
            find()
            found.append(1000.0 * (time.process_time() - began_s))
    return found[1:]


def routes(runs: int, with_rivals: bool) -> list[Figure]:
    """One figure for each size of network."""
    figures = []
    for sites, goal_ms in GOALS_MS.items():
        case = _Case(sites)
        case.fail(is_usable=False)
        case.check()
        ours = _times_ms(case, case.ours, runs)
        theirs = _times_ms(case, case.rival, min(runs, 3)) if with_rivals else []
        figures.append(
            Figure(
                name=f"routes to all of {sites:,} nodes after a failure",
                value=statistics.median(ours),
                unit="ms",
                goal=goal_ms,
                samples=tuple(ours),
                is_less_better=True,
                rival=f"networkx {nx.__version__}" if with_rivals else "",
                rival_value=statistics.median(theirs) if theirs else None,
                note=f"of one node, as each does it; {len(case.topology.links):,} links; costs equal those of networkx",
            )
        )
    return figures


def simulation(_runs: int, _with_rivals: bool) -> list[Figure]:
    """How fast the largest shipped topology runs as a simulated network (`tools/simulation_speed.py`)."""
    command = [sys.executable, str(TOOLS / "simulation_speed.py"), "two-rings", "--json"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise LabError(f"simulation: {made.stderr.strip()[-300:]}")
    found: dict[str, float] = json.loads(made.stdout)
    return [
        Figure(
            name="two-rings simulated, at rest",
            value=found["at rest"],
            unit="times real time",
            goal=1_000,
            samples=(found["at rest"],),
            note=f"54 production nodes on a virtual clock; {found['filling']:.2g} times while its pools fill the first "
            "time; what bounds it is in docs/simulation.md",
        )
    ]
