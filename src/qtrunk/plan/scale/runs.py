"""Runs of key-level simulations: what one is, and many of them on this machine or on a Dask cluster.

A task is plain values and an outcome too, so both can go anywhere; a worker builds its network itself, from the seed.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from qtrunk.base.errors import RequestRefused
from qtrunk.base.ids import NodeId
from qtrunk.plan.guarantees import planned_bps
from qtrunk.plan.scale import demands as wanted
from qtrunk.plan.scale import recipe
from qtrunk.plan.scale.keyflow import Conditions, KeyFlow, Outcome, busiest_total
from qtrunk.relay.graph import Graph, graph_of
from qtrunk.topology import Link, Topology, link_id

SITES_MAX = 10_000
_GRID_DB = tuple(np.arange(1.0, 25.0))


@dataclass(frozen=True, kw_only=True)
class Task:
    """One simulation."""

    nodes: int = 0
    """Of a generated backbone; 0: `topology` is given."""
    topology: dict[str, object] = field(default_factory=dict)
    """`Topology.to_dict()`."""
    seed: int = 1
    days: float = 1.0
    load: float | None = 0.5
    """Of the busiest direction of a link at its busiest hour; None: what a file's demands say."""
    demands_per_node: float = 2.0
    pairs: int = 4
    """Parallel QKD systems on each trunk hop of a generated backbone; rings have one."""
    conditions: Conditions = field(default_factory=Conditions)


def run(task: Task) -> dict[str, object]:
    """Figures of one simulation, as plain values; RequestRefused where the task is impossible."""
    network, pairs = _network(task)
    graph = graph_of(network)
    rates = _arc_rates(graph, network, pairs)
    if task.nodes:
        backbone = recipe.backbone(task.nodes, task.seed)
        count = max(1, round(task.demands_per_node * task.nodes))
        asked, total_bps = wanted.generated(backbone, count, graph.index, task.seed), 0.0
    else:
        asked, total_bps = wanted.of_topology(network, graph.index)
    if task.load is not None:
        total_bps = busiest_total(graph, rates, asked, task.load)
    flow = KeyFlow(graph, rates, asked, total_bps, task.conditions, task.seed)
    outcome = flow.run(task.days * wanted.DAY_S)
    return _figures(task, network, pairs, rates, asked, outcome)


def run_all(tasks: Sequence[Task], dask: str | None = None) -> Iterator[dict[str, object]]:
    """Figures of each task, as they come: on a Dask cluster (address of its scheduler) or this machine's processors."""
    if dask is not None:
        yield from _on_dask(tasks, dask)
        return
    if len(tasks) == 1:
        yield run(tasks[0])
        return
    with ProcessPoolExecutor() as pool:
        for done in as_completed([pool.submit(run, task) for task in tasks]):
            yield done.result()


def _on_dask(tasks: Sequence[Task], address: str) -> Iterator[dict[str, object]]:
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise RequestRefused("a Dask cluster needs the extra `cluster`: pip install 'qtrunk[cluster]'") from error
    try:
        client = Client(address, timeout=10)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise RequestRefused(f"dask: no scheduler answers at {address} ({error})") from error
    with client:
        futures = [client.submit(run, task, pure=False) for task in tasks]
        for done in as_completed(futures):  # type: ignore[no-untyped-call]
            yield done.result()


def _network(task: Task) -> tuple[Topology, NDArray[np.int64]]:
    """The network, and the parallel systems of each of its links."""
    if not task.nodes:
        network = Topology.from_dict(task.topology)
        return network, np.ones(len(network.links), dtype=np.int64)
    if task.nodes > SITES_MAX:
        raise RequestRefused(f"nodes: {task.nodes}; at most {SITES_MAX}")
    made = recipe.backbone(task.nodes, task.seed)
    pairs = [task.pairs if link.id in made.trunk_links else 1 for link in made.topology.links]
    return made.topology, np.array(pairs)


def _arc_rates(graph: Graph, network: Topology, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Half of each link's rate in either direction."""
    many = len(network.links) > 200
    each = [_by_loss(link) if many else planned_bps(link) for link in network.links]
    rates = np.empty(len(graph.heads))
    for link, rate, count in zip(network.links, each, pairs, strict=True):
        if not np.isfinite(rate):
            raise RequestRefused(f"link {link.id}: fed by a vendor's system, whose rate is not known")
        rates[list(graph.arcs[link.id])] = max(rate * count / 2, 1e-9)
    return rates


def _by_loss(link: Link) -> float:
    """The planned rate of generated links, which differ in their loss alone, from a table."""
    return float(np.exp(np.interp(link.loss_db, _GRID_DB, _table())))


@cache
def _table() -> NDArray[np.float64]:
    # On standard fibre, so that drift, which follows the length, fits the loss.
    made = [
        Link(
            id=link_id(NodeId("a"), NodeId("b")),
            alice=NodeId("a"),
            bob=NodeId("b"),
            length_km=max(0.0, (loss_db - recipe.PATCHING_DB) / recipe.DB_PER_KM),
            loss_db=float(loss_db),
        )
        for loss_db in _GRID_DB
    ]
    return np.log(np.maximum([planned_bps(link) for link in made], 1e-9))


def _figures(
    task: Task,
    network: Topology,
    pairs: NDArray[np.int64],
    rates: NDArray[np.float64],
    asked: wanted.Demands,
    outcome: Outcome,
) -> dict[str, object]:
    ratio = outcome.served_bits / np.maximum(outcome.asked_bits, 1.0)
    span_s = outcome.steps * task.conditions.step_s
    use = outcome.use / (rates * span_s)
    return {
        "network": network.name,
        "nodes": len(network.nodes),
        "links": len(network.links),
        "systems": int(pairs.sum()),
        "fibre_km": sum(link.length_km for link in network.links),
        "demands": len(asked.sources),
        "seed": task.seed,
        "days": task.days,
        "load": task.load,
        "asked_bits": float(outcome.asked_bits.sum()),
        "served_bits": float(outcome.served_bits.sum()),
        "served_ratio": float(outcome.served_bits.sum() / max(1.0, outcome.asked_bits.sum())),
        "served_ratio_by_group": {name: float(part) for name, part in zip(asked.groups, ratio, strict=True)},
        "supplied_bps": float(outcome.served_bits.sum() / span_s),
        "mean_hops": outcome.mean_hops,
        "use_median": float(np.median(use)),
        "use_largest": float(use.max()),
        "demands_never_short": float((outcome.short_steps == 0).mean()),
        "demand_steps_short": float(outcome.short_steps.sum() / max(1, outcome.steps * len(asked.sources))),
        "cuts": outcome.cuts,
        "outages": outcome.outages,
        "rerouted": outcome.rerouted,
        "longest_reroute_s": outcome.longest_reroute_s,
        "seconds": outcome.seconds,
        "times_real_time": (span_s + task.conditions.warm_up_s) / outcome.seconds,
    }
