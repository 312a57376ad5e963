"""Who wants how much key from whom, over the day: a gravity model between cities, four sectors, a daily rhythm.

A demand is an ordered pair of sites. In a generated network its two cities are drawn in proportion to the product of
their sizes over their distance (J. E. Anderson, The gravity model, Annu. Rev. Econ. 3 (2011) 133, with exponent 1),
sites within a city evenly; each sector has a share of the demands and a rhythm. In a network of a topology file they
are those of the file, by tenant, the same all day. Keys are asked for at random (Poisson), 256 bits each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi

import numpy as np
from numpy.typing import NDArray

from qtrunk.base.errors import RequestRefused
from qtrunk.base.ids import NodeId
from qtrunk.plan.scale.recipe import Backbone
from qtrunk.topology import Topology

KEY_BITS = 256
DAY_S = 86400.0
SECTORS = ("government", "finance", "electric power", "big data")
_SHARES = (0.25, 0.35, 0.25, 0.15)
_LOWEST = (0.3, 0.4, 0.9, 0.6)
"""What is asked for at night, of what is asked for at the busiest time."""
_BUSIEST_H = (10.0, 14.0, 19.0, 2.0)
_NEAREST_KM = 20.0


@dataclass(frozen=True, slots=True, eq=False)
class Demands:
    """All demands, as arrays of one entry each."""

    sources: NDArray[np.int64]
    """Places in the graph."""
    targets: NDArray[np.int64]
    groups: tuple[str, ...]
    """Sectors or tenants."""
    group: NDArray[np.int64]
    """Of each demand."""
    shares: NDArray[np.float64]
    """Of what all ask for at their busiest, in sum 1."""
    lowest: NDArray[np.float64]
    """Of each group: what is asked for at the quietest time, of what is asked for at the busiest."""
    busiest_h: NDArray[np.float64]

    def rates(self, total_bps: float, at_s: float) -> NDArray[np.float64]:
        """What each asks for at a time of the day, bit/s."""
        lowest, busiest = self.lowest[self.group], self.busiest_h[self.group]
        phase = 2 * pi * (at_s / DAY_S - busiest / 24.0)
        rates: NDArray[np.float64] = total_bps * self.shares * (lowest + (1 - lowest) * (1 + np.cos(phase)) / 2)
        return rates


def generated(network: Backbone, count: int, index: Mapping[NodeId, int], seed: int = 1) -> Demands:
    """`count` demands between different cities; `index` gives the place of a site in the graph."""
    dice = np.random.default_rng((seed, count))
    places, sizes = network.places_km, network.sizes
    apart = np.maximum(np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)), _NEAREST_KM)
    pull = np.outer(sizes, sizes) / apart
    np.fill_diagonal(pull, 0.0)
    pairs = dice.choice(pull.size, size=count, p=(pull / pull.sum()).ravel())
    cities = np.stack(np.divmod(pairs, len(sizes)))
    rings = [np.array([index[site] for site in ring]) for ring in network.cities]
    first, second = (
        np.array(
            [rings[city][int(share * len(rings[city]))] for city, share in zip(row, dice.random(count), strict=True)]
        )
        for row in cities
    )
    # Few ask for much, most for little.
    weights = dice.pareto(1.5, count) + 0.1
    return Demands(
        *(first, second, SECTORS, dice.choice(len(SECTORS), size=count, p=_SHARES), weights / weights.sum()),
        *(np.array(_LOWEST), np.array(_BUSIEST_H)),
    )


def of_topology(topology: Topology, index: Mapping[NodeId, int]) -> tuple[Demands, float]:
    """The demands of a file, half of each in either direction, and their sum in bit/s; RequestRefused: it has none."""
    rows = []
    for demand in topology.demands:
        one, other = (topology.sae(sae) for sae in demand.between)
        if one is not None and other is not None and one.node != other.node and demand.rate_bps > 0:
            rows += [(one, other, demand.rate_bps / 2), (other, one, demand.rate_bps / 2)]
    if not rows:
        raise RequestRefused(f"{topology.name}: no demands between different nodes; add [[demands]] to the file")
    names = sorted({topology.tenant_of(one.id).id for one, _, _ in rows})
    rates = np.array([rate for _, _, rate in rows])
    made = Demands(
        sources=np.array([index[one.node] for one, _, _ in rows]),
        targets=np.array([index[other.node] for _, other, _ in rows]),
        groups=tuple(names),
        group=np.array([names.index(topology.tenant_of(one.id).id) for one, _, _ in rows]),
        shares=rates / rates.sum(),
        lowest=np.ones(len(names)),
        busiest_h=np.zeros(len(names)),
    )
    return made, float(rates.sum())
