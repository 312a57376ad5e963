"""Relay over ten hops by real node processes: pools of SAEs at the two ends of a row of eleven nodes fill from empty,
and keys that lie in no pool are asked for, hop by hop and by announced XORs.

A lab of eleven nodes is made and stopped; its links, whose fibre is next to dark, are given key through the production
store; then it is started again. The nodes fill the pools ahead as they always do (`node.ahead`):
TLS 1.3 between them, every octet of link key recorded on the disk before it is used, hybrid keys. What counts is what
lies in the pools, as the nodes' own status has it, or when a request is answered, and the wall clock. A key for two
targets comes from no pool: such a request waits for its relay.
"""

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qtrunk.base.errors import LabError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness
from qtrunk.kms.seal import load_or_make_kek
from qtrunk.kms.store import KeyStore
from qtrunk.plan.bench.figures import Figure
from qtrunk.plan.bench.lab import Connection, Lab, cpu_s
from qtrunk.plan.bench.relay import BLOCK_OCTETS, HOPS, KEY_OCTETS, Clock, block
from qtrunk.topology import ANNOUNCED, HOP_BY_HOP

PAIRS = 2
"""Of SAEs at the two ends; each has a pool for either way."""
POOL_OCTETS = 8 << 20
LINK_OCTETS = 2 * PAIRS * (POOL_OCTETS + (1 << 20))
"""Of each direction of a link: filling ahead leaves half of a link's key to others."""
LOOK_S = 0.25
WINDOW_S = 5.0
WITHIN_S = 240.0
START_S = 30.0
REQUESTS = 60
"""For fresh keys, in each way of relaying."""
FULL = 0.95
"""Part of what all pools want that ends a run."""


def _row(saes: Sequence[str], more: str) -> str:
    nodes = [f"n{number}" for number in range(HOPS + 1)]
    head = f'name = "row"\ntrunks = [{nodes}]\nsaes = {list(saes)}\n'.replace("'", '"')
    # A block of light that is not over before all is done, and next to no pulses in it.
    link = "[link]\nlength_km = 50\nclock_hz = 1e6\nclock_fraction = 0.001\nblock_s = 600\nlatency_s = 600\n"
    return head + link + more


def topology() -> str:
    """The row, and pools of POOL_OCTETS each."""
    saes = [name for number in range(PAIRS) for name in (f"first-{number}@n0", f"last-{number}@n{HOPS}")]
    demands = [
        f'[[demands]]\nbetween = ["first-{number}", "last-{number}"]\nrate_bps = {8 * POOL_OCTETS / 60:.0f}\n'
        for number in range(PAIRS)
    ]
    return _row(saes, "".join(demands))


def topology_of_requests() -> str:
    """The row, with an initiator and two targets of a tenant for each way of relaying."""
    tenants = "".join(f'[tenants.{way}]\nsaes = ["{way}-*"]\nrelay = "{way}"\n' for way in (HOP_BY_HOP, ANNOUNCED))
    saes = [f"{way}-{end}" for way in (HOP_BY_HOP, ANNOUNCED) for end in ("first@n0", f"one@n{HOPS}", f"two@n{HOPS}")]
    return _row(saes, tenants)


@dataclass(frozen=True, slots=True)
class _Sample:
    """The pools of all pairs together, and what the nodes have used so far."""

    at_s: float
    octets: int
    cpu_s: float


class _RowLab(Lab):
    """The lab, and what is done with it."""

    def fill(self, octets: int) -> None:
        """So much link key for each direction of every link, the same at both its ends; the lab must be down. The pools
        of the SAEs are still empty.
        """
        places = {node: self.state / "nodes" / node for node in self.nodes()}
        stores = {
            node: KeyStore.open(place / "store", NodeId(node), load_or_make_kek(place / "kek"), Clock())
            for node, place in places.items()
        }
        try:
            for link in self.links():
                ends = [stores[link["alice"]], stores[link["bob"]]]
                name = LinkId(link["id"])
                first = 1 + max(store.last_block(name) for store in ends)
                for number in range(first, first - (-2 * octets // BLOCK_OCTETS)):
                    material = randomness.octets(BLOCK_OCTETS)
                    for store in ends:
                        store.hold(block(name, number, Secret(material)))
                        store.release(name, number)
        finally:
            for store in stores.values():
                store.close()

    def samples(self) -> Iterator[_Sample]:
        """The pools, again and again; LabError where they do not get full."""
        ends = [Connection(*self.admin(node)) for node in (self.nodes()[0], self.nodes()[-1])]
        pids = list(self.pids().values())
        until_s = time.monotonic() + WITHIN_S
        while time.monotonic() < until_s:
            pools = [pool for end in ends for pool in end.get("/admin/v1/status")["pools"]]
            octets = sum(pool["available"] for pool in pools if pool["side"] == "initiator")
            yield _Sample(time.monotonic(), octets, sum(map(cpu_s, pids)))
            if octets >= FULL * 2 * PAIRS * POOL_OCTETS:
                return
            time.sleep(LOOK_S)
        raise LabError(f"the pools of a row of {HOPS} hops were not full after {WITHIN_S:.0f} s")


def node_processes(_runs: int, _with_rivals: bool) -> list[Figure]:
    """Keys a second of the wall clock into the pools, from when the first lie there until all are full."""
    with _RowLab.running(topology(), lambda made: made.fill(LINK_OCTETS)) as lab:
        samples = [sample for sample in lab.samples() if sample.octets]
    first, last = samples[0], samples[-1]
    keys = (last.octets - first.octets) / KEY_OCTETS
    return [
        Figure(
            name=f"256-bit keys over {HOPS} hops, {HOPS + 1} node processes",
            value=keys / (last.at_s - first.at_s),
            unit="keys/s",
            goal=50_000,
            samples=tuple(_rates(samples)),
            note=f"{2 * PAIRS} pools of {POOL_OCTETS >> 20} MiB between the two ends, filled ahead; "
            f"{os.cpu_count()} cores for all, {keys / (last.cpu_s - first.cpu_s):,.0f} keys a second of CPU time; "
            f"lowest and highest: within {WINDOW_S:g} s",
        )
    ]


def fresh_requests(_runs: int, _with_rivals: bool) -> list[Figure]:
    """How long a key takes that has to be relayed first, by announced XORs and hop by hop."""
    took_ms: dict[str, list[float]] = {way: [] for way in (HOP_BY_HOP, ANNOUNCED)}
    with _RowLab.running(topology_of_requests(), lambda made: made.fill(1 << 20)) as lab:
        ends = {way: Connection.to(lab.end(f"{way}-first", f"{way}-one")) for way in took_ms}
        for way, end in ends.items():
            _ask_at_last(end, way)
        for _ in range(REQUESTS):
            # In turns, so that both meet the same machine.
            for way, end in ends.items():
                began_s = time.perf_counter()
                _ask(end, way)
                took_ms[way].append(1000 * (time.perf_counter() - began_s))
    return [
        Figure(
            name=f"a fresh 256-bit key over {HOPS} hops by announced XORs",
            value=statistics.median(took_ms[ANNOUNCED]),
            unit="ms",
            samples=tuple(took_ms[ANNOUNCED]),
            is_less_better=True,
            rival="hop by hop",
            rival_value=statistics.median(took_ms[HOP_BY_HOP]),
            note=f"{HOPS + 1} node processes; from the request of an SAE for a key of two targets to its answer, "
            f"{REQUESTS} of each in turns",
        )
    ]


def _ask(end: Connection, way: str) -> None:
    body = {"number": 1, "size": 256, "additional_slave_SAE_IDs": [f"{way}-two"]}
    end.post(f"/api/v1/keys/{way}-one/enc_keys", body)


def _ask_at_last(end: Connection, way: str) -> None:
    """Until it is answered: a lab that has just come up has no routes yet."""
    until_s = time.monotonic() + START_S
    while True:
        try:
            return _ask(end, way)
        except LabError:
            if time.monotonic() > until_s:
                raise
            time.sleep(LOOK_S)


def _rates(samples: Sequence[_Sample]) -> Iterator[float]:
    """Keys a second in each window of WINDOW_S."""
    start = samples[0]
    for sample in samples[1:]:
        if sample.at_s - start.at_s >= WINDOW_S:
            yield (sample.octets - start.octets) / KEY_OCTETS / (sample.at_s - start.at_s)
            start = sample
