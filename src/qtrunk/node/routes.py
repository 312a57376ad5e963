"""The routes that a node was handed, on its disk: `control.orders.RouteTable` in the real world."""

import os
from pathlib import Path

import msgspec

from qtrunk.api.https import Request, Response, error
from qtrunk.api.roles import Operator
from qtrunk.base.errors import StoreError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.ports import Clock
from qtrunk.control.orders import RouteTable, decode_order
from qtrunk.node.alarms import AlarmBoard
from qtrunk.topology import Topology


class HandedRoutes(RouteTable):
    """One node's. `answer` takes orders on the administration interface."""

    def __init__(self, node: NodeId, topology: Topology, directory: Path, alarms: AlarmBoard, clock: Clock) -> None:
        self._path = directory / "routes.json"
        self._alarms = alarms
        self._clock = clock
        super().__init__(node, topology, self._write)
        try:
            self.load(self._path.read_bytes())
        except FileNotFoundError:
            pass  # No controller has handed this node any routes yet.
        except (OSError, msgspec.MsgspecError) as problem:
            # Routes are advice: without them the node finds its own. A token that is forgotten is an alarm.
            text = f"{self._path} does not read ({type(problem).__name__}): the node goes on without handed routes"
            alarms.raise_alarm("routes", "RoutesUnreadable", "major", text)

    def _write(self, octets: bytes) -> None:
        part = self._path.with_suffix(".part")
        try:
            with part.open("wb") as out:
                out.write(octets)
                out.flush()
                os.fsync(out.fileno())
            part.replace(self._path)
        except OSError as problem:
            raise StoreError(f"{self._path}: {problem.strerror}") from problem

    def prefer_now(self, target: NodeId, avoided: frozenset[LinkId]) -> tuple[NodeId, ...] | None:
        """`prefer`, by the node's clock."""
        return self.prefer(target, avoided, self._clock.unix_s())

    async def answer(self, request: Request, operator: Operator) -> Response:
        """GET: what is held. PUT: an order, whose controller must be who asks."""
        if request.method == "PUT":
            order = decode_order(request.body)
            if order.controller != operator.name:
                return error(403, f"controller: this certificate is {operator.name}'s")
            self.take(order, self._clock.unix_s())
            self._alarms.clear("routes")
        return Response(200, msgspec.json.encode(self.as_json(self._clock.unix_s())))
