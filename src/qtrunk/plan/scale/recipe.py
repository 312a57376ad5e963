"""A made-up national backbone of a given number of sites, by a stated recipe; the same seed gives the same network.

1. Cities lie at random in a square, so many that each has 150 km by 150 km to itself; none lies within 60 km of
   another. The r-th city has a size of r^-0.8 (cities of most countries follow a rank-size rule not far from that).
2. Each city has a metropolitan ring of 3 to 12 sites, more for a larger city, on a circle of 8 to 30 km; the first site
   of the ring is the city's gateway to the trunks.
3. Trunks join the gateways of neighbouring cities: the Gabriel graph, which joins two cities where no third one lies in
   the circle between them. A city with one trunk gets a second one to the nearest city that is no neighbour yet.
4. Fibre is 1.3 times the great circle (`config.geography`), 0.21 dB/km and 1 dB of patching. A trunk has trusted sites
   in equal spans of 65 km of fibre at most: published trunks have 52 to 71 km.
5. Cities are added while sites are left; what is left over makes rings larger, one site each, largest city first.

Nothing in it is a real place. Coordinates are kilometres in a plane.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import ceil, cos, hypot, pi, sin

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay, cKDTree

from qtrunk.base.errors import RequestRefused
from qtrunk.base.ids import NodeId
from qtrunk.topology import Link, Node, Topology, link_id

SITES_MIN = 60
"""Below that there is no backbone to speak of."""
CITY_KM = 150.0
APART_KM = 60.0
SIZE_EXPONENT = 0.8
RING_SITES = (3, 12)
RING_KM = (8.0, 30.0)
DETOUR = 1.3
SPAN_KM = 65.0
DB_PER_KM, PATCHING_DB = 0.21, 1.0
Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Backbone:
    """A generated network."""

    topology: Topology
    cities: tuple[tuple[NodeId, ...], ...]
    """The ring of each city, its gateway first; cities by size."""
    sizes: NDArray[np.float64]
    places_km: Points
    """shape (cities, 2)."""
    trunk_links: frozenset[str]
    """IDs of the links between cities; the others belong to rings."""


def backbone(sites: int, seed: int = 1) -> Backbone:
    """A network of exactly so many sites; RequestRefused below SITES_MIN."""
    if sites < SITES_MIN:
        raise RequestRefused(f"nodes: {sites}; a backbone has {SITES_MIN} at least")
    low, high = 3, sites // RING_SITES[0]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _count(middle, seed) <= sites else (low, middle)
    return _built(low, sites, seed)


def _count(cities: int, seed: int) -> int:
    places = _places(cities, seed)
    trunks = sum(_spans(_fibre_km(places, a, b)) - 1 for a, b in _trunks(places))
    return trunks + int(_ring_sites(cities).sum())


def _built(cities: int, sites: int, seed: int) -> Backbone:
    places = _places(cities, seed)
    trunks = _trunks(places)
    rings = _ring_sites(cities)
    left = sites - _count(cities, seed)
    rings += left // cities + (np.arange(cities) < left % cities)
    nodes: list[Node] = []
    links: list[Link] = []
    circles = []
    for city, count in enumerate(rings):
        ring = [NodeId(f"c{city}-{site}") for site in range(count)]
        circles.append(tuple(ring))
        nodes += [Node(id=node) for node in ring]
        step_km = DETOUR * _chord_km(_radius_km(city, cities), int(count))
        links += [_link(a, b, step_km) for a, b in pairwise([*ring, ring[0]])]
    ring_links = len(links)
    for a, b in trunks:
        spans = _spans(_fibre_km(places, a, b))
        between = [NodeId(f"t{a}-{b}-{number}") for number in range(1, spans)]
        nodes += [Node(id=node) for node in between]
        row = [circles[a][0], *between, circles[b][0]]
        links += [_link(x, y, _fibre_km(places, a, b) / spans) for x, y in pairwise(row)]
    return Backbone(
        topology=Topology(name=f"backbone-{sites}-{seed}", nodes=tuple(nodes), links=tuple(links)),
        cities=tuple(circles),
        sizes=np.arange(1.0, cities + 1.0) ** np.float64(-SIZE_EXPONENT),
        places_km=places,
        trunk_links=frozenset(link.id for link in links[ring_links:]),
    )


def _places(cities: int, seed: int) -> Points:
    """Where the cities lie; a network of more cities has other places."""
    dice = np.random.default_rng((seed, cities))
    side_km = CITY_KM * cities**0.5
    found = np.empty((0, 2))
    while len(found) < cities:
        wished = np.concatenate([found, dice.uniform(0.0, side_km, (cities - len(found), 2))])
        # Of two that are too near each other the later one goes.
        near = cKDTree(wished).query_pairs(APART_KM, output_type="ndarray")
        keep = np.ones(len(wished), dtype=bool)
        keep[near[:, 1]] = False
        found = wished[keep]
    return found


def _trunks(places: Points) -> list[tuple[int, int]]:
    """Pairs of cities."""
    triangles = Delaunay(places).simplices
    edges = np.unique(
        np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [0, 2]]])), axis=0
    )
    ends = places[edges]
    radius = np.hypot(*(ends[:, 0] - ends[:, 1]).T) / 2
    # The two ends themselves lie on the circle.
    inside, _ = cKDTree(places).query(ends.mean(axis=1))
    found = [(int(a), int(b)) for a, b in edges[inside >= radius * (1 - 1e-9)]]
    for city in range(len(places)):
        joined = {a + b - city for a, b in found if city in (a, b)}
        if len(joined) < 2:
            order = np.argsort(np.hypot(*(places - places[city]).T))[1:]
            other = next(int(one) for one in order if int(one) not in joined)
            found.append((min(city, other), max(city, other)))
    return found


def _fibre_km(places: Points, a: int, b: int) -> float:
    return float(DETOUR * hypot(*(places[a] - places[b])))


def _spans(fibre_km: float) -> int:
    return max(1, ceil(fibre_km / SPAN_KM))


def _ring_sites(cities: int) -> NDArray[np.int64]:
    low, high = RING_SITES
    sizes = np.arange(1, cities + 1) ** -SIZE_EXPONENT
    return np.round(low + (high - low) * sizes).astype(np.int64)


def _radius_km(city: int, cities: int) -> float:
    low, high = RING_KM
    return float(low + (high - low) * (1 - city / cities) ** 2)


def _chord_km(radius_km: float, sites: int) -> float:
    """From one site of a ring to the next."""
    angle = 2 * pi / sites
    return hypot(radius_km * (1 - cos(angle)), radius_km * sin(angle))


def _link(a: NodeId, b: NodeId, fibre_km: float) -> Link:
    return Link(id=link_id(a, b), alice=a, bob=b, length_km=fibre_km, loss_db=DB_PER_KM * fibre_km + PATCHING_DB)
