"""Routes that a controller hands a node, and what a node makes of them. No I/O.

An order names, for each target node, routes in the order in which they should be taken. A node uses the first one whose
links all carry key now, and its own search where none does, so a cut is acted upon at once and without a controller.
Orders last for days: without any controller a node goes on with the last one, and after that with its own search.

Two controllers may both believe that they lead. Each order carries the fencing token of its lease (Y.3804 leaves
redundancy of controllers open); a node takes none with a smaller token than it has seen, nor an older version.
"""

from collections.abc import Callable, Collection
from itertools import pairwise

import msgspec

from qtrunk.base.errors import NotAuthorised, RequestRefused
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.topology import Topology

LIFETIME_S = 7 * 86400.0
LIFETIME_S_MAX = 30 * 86400.0
ROUTES_MAX = 8
"""For one target."""


class RouteOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one node should do from now on. No key, no secret."""

    node: str
    controller: str
    fencing: int
    version: int
    lifetime_s: float
    routes: dict[str, list[list[str]]]
    """Target node to routes, each from `node` to it."""


class Held(msgspec.Struct, frozen=True):
    """An order as a node keeps it, on the disk too."""

    order: RouteOrder
    received_unix_s: float


def decode_order(octets: bytes) -> RouteOrder:
    """RequestRefused where it is none."""
    try:
        return msgspec.json.decode(octets, type=RouteOrder)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RequestRefused(f"order: {error}") from error


def check(order: RouteOrder, topology: Topology, node: NodeId) -> None:
    """RequestRefused, naming the field, where an order cannot be for this node of this network."""
    if order.node != node:
        raise RequestRefused(f"node: this is {node}")
    if order.fencing < 1 or order.version < 1:
        raise RequestRefused("fencing and version: from 1 on")
    if not 0 < order.lifetime_s <= LIFETIME_S_MAX:
        raise RequestRefused(f"lifetime_s: more than 0 and at most {LIFETIME_S_MAX:.0f}")
    known = {entry.id for entry in topology.nodes}
    for target, routes in order.routes.items():
        if target not in known or target == node:
            raise RequestRefused(f"routes: {target[:63]!r} is no other node of the network")
        if len(routes) > ROUTES_MAX:
            raise RequestRefused(f"routes to {target}: at most {ROUTES_MAX}")
        for route in routes:
            _check_route(route, target, topology, node)


def _check_route(route: list[str], target: str, topology: Topology, node: NodeId) -> None:
    if len(route) < 2 or route[0] != node or route[-1] != target or len(set(route)) != len(route):
        raise RequestRefused(f"routes to {target}: distinct nodes from {node} to it are needed")
    for a, b in pairwise(route):
        try:
            topology.link_between(NodeId(a), NodeId(b))
        except KeyError:
            raise RequestRefused(f"routes to {target}: {a[:63]!r} and {b[:63]!r} are not neighbours") from None


class RouteTable:
    """The routes that one node was handed. `store` makes an order durable; it is called before anything changes."""

    def __init__(self, node: NodeId, topology: Topology, store: Callable[[bytes], None]) -> None:
        self._node = node
        self._topology = topology
        self._store = store
        self._held: Held | None = None

    def load(self, octets: bytes) -> None:
        """What was kept. A topology that has changed since may have no such links: then the routes are let go of."""
        self._held = msgspec.json.decode(octets, type=Held)
        self.adopt()

    def adopt(self) -> None:
        """The topology may have changed: routes over what is not there are let go of, all of one order together."""
        if self._held is None:
            return
        try:
            check(self._held.order, self._topology, self._node)
        except RequestRefused:
            order = msgspec.structs.replace(self._held.order, routes={})
            self._held = msgspec.structs.replace(self._held, order=order)

    def take(self, order: RouteOrder, now_unix_s: float) -> None:
        """Take an order; NotAuthorised for one that is older than what is held, RequestRefused for a wrong one."""
        check(order, self._topology, self._node)
        if self._held is not None:
            held = self._held.order
            if order.fencing < held.fencing:
                raise NotAuthorised(f"fencing: {order.fencing} is older than {held.fencing}, of {held.controller}")
            if order.fencing == held.fencing and order.controller != held.controller:
                raise NotAuthorised(f"fencing: {order.fencing} is that of {held.controller}")
            if (order.fencing, order.version) < (held.fencing, held.version):
                raise NotAuthorised(f"version: {order.version} is older than {held.version}")
        fresh = Held(order, now_unix_s)
        self._store(msgspec.json.encode(fresh))
        self._held = fresh

    def is_living(self, now_unix_s: float) -> bool:
        """Whether an order is held whose lifetime is not over. A clock that was set back does not end it."""
        held = self._held
        return held is not None and now_unix_s < held.received_unix_s + held.order.lifetime_s

    def prefer(self, target: NodeId, avoided: Collection[LinkId], now_unix_s: float) -> tuple[NodeId, ...] | None:
        """The first route to a node that goes over no avoided link; None: the node must look for one itself."""
        if self._held is None or not self.is_living(now_unix_s):
            return None
        for route in self._held.order.routes.get(target, []):
            nodes = tuple(NodeId(node) for node in route)
            if not any(self._topology.link_between(a, b).id in avoided for a, b in pairwise(nodes)):
                return nodes
        return None

    def as_json(self, now_unix_s: float) -> dict[str, object]:
        """For status."""
        if self._held is None:
            return {"controller": None, "fencing": 0, "version": 0, "is_living": False, "age_s": None, "targets": 0}
        order = self._held.order
        return {
            "controller": order.controller,
            "fencing": order.fencing,
            "version": order.version,
            "is_living": self.is_living(now_unix_s),
            "age_s": now_unix_s - self._held.received_unix_s,
            "targets": len(order.routes),
        }
