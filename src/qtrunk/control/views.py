"""What the northbound interface says of the network, made of topology, plan and telemetry. No I/O."""

from collections.abc import Iterable
from typing import Any

import msgspec

from qtrunk.base.errors import RequestRefused, RouteUnavailable
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.control import alarmview
from qtrunk.control.controller import Controller
from qtrunk.control.networkview import Row
from qtrunk.control.telemetry import LinkTelemetry, both

Document = dict[str, Any]
_WORST = ("OFF", "PENDING", "PASSIVE", "ACTIVE")


class Views:
    """Documents about one controller's network at one moment (`now_s` of its monotonic clock, Unix seconds)."""

    def __init__(self, controller: Controller, now_s: float, now_unix_s: float) -> None:
        self._controller = controller
        self._topology = controller.topology
        self._now_s, self._now_unix_s = now_s, now_unix_s

    def network(self) -> Document:
        """The whole in numbers."""
        states = [link["state"] for link in self.links()]
        services = self.services()
        rows = self._rows()
        return {
            "name": self._topology.name,
            "title": self._topology.title,
            "nodes": len(self._topology.nodes),
            "nodes_answering": sum(node["answers"] for node in self.nodes()),
            "links": len(states),
            "links_by_state": {state: states.count(state) for state in _WORST},
            "services": len(services),
            "services_by_protection": _count(service["protection"] for service in services),
            "alarms": len(rows),
            "alarm_roots": sum(row.depth == 0 for row in rows),
            "plan_version": self._controller.version,
        }

    def nodes(self) -> list[Document]:
        """Every node."""
        found = []
        for node in self._topology.nodes:
            telemetry = self._controller.telemetry(node.id, self._now_s)
            found.append(
                {
                    "id": node.id,
                    "name": node.name,
                    "latitude_deg": node.latitude_deg,
                    "longitude_deg": node.longitude_deg,
                    "answers": telemetry is not None,
                    "state": telemetry.state if telemetry else "unknown",
                    "uptime_s": telemetry.uptime_s if telemetry else None,
                    "alarms": len(telemetry.alarms.active) if telemetry else None,
                    "clock_offset_s": telemetry.clock.offset_s if telemetry else None,
                    "order": {"fencing": telemetry.routes.fencing, "version": telemetry.routes.version}
                    if telemetry
                    else None,
                }
            )
        return found

    def links(self) -> list[Document]:
        """Every link; the worse state of its two ends is its own."""
        return [self._link(link.id) for link in self._topology.links]

    def _link(self, link: LinkId) -> Document:
        known = self._topology.link(link)
        ends = [self._end(known.alice, link), self._end(known.bob, link)]
        there = [end for end in ends if end is not None]
        states = [end.state for end in there if end.state in _WORST]
        return {
            "id": link,
            "alice": known.alice,
            "bob": known.bob,
            "length_km": known.length_km,
            "loss_db": known.loss_db,
            "state": min(states, key=_WORST.index) if states else "unknown",
            "why": next((end.why for end in there if end.why), ""),
            "is_usable": self._controller.is_usable(link, self._now_s),
            "is_drained": link in self._controller.drained,
            "secret_bps": min((end.secret_bps for end in there), default=None),
            "pool_bits": min((end.pool_bits for end in there), default=None),
            "diagnosis": msgspec.to_builtins(both(*((end.role, end.diagnosis) for end in there))),
            "qber": next((end.qber_test for end in there if end.qber_test is not None), None),
        }

    def _end(self, node: NodeId, link: LinkId) -> LinkTelemetry | None:
        telemetry = self._controller.telemetry(node, self._now_s)
        return next((end for end in telemetry.links if end.link == link), None) if telemetry else None

    def pools(self) -> list[Document]:
        """Pools of end-to-end key, as the initiators' nodes have them; bits."""
        return [
            {
                "from": pool.initiator,
                "to": pool.target,
                "node": telemetry.node,
                "available_bits": 8 * pool.available,
                "delivered_bits": 8 * pool.delivered,
            }
            for node in self._topology.nodes
            if (telemetry := self._controller.telemetry(node.id, self._now_s)) is not None
            for pool in telemetry.pools
            if pool.side == "initiator"
        ]

    def routes(self) -> list[Document]:
        """The plan: for each ordered pair of nodes, routes in the order in which they are taken."""
        return [
            {"from": node, "to": target, "routes": rows}
            for node, planned in sorted(self._controller.routes.items())
            for target, rows in sorted(planned.items())
        ]

    def services(self) -> list[Document]:
        """Every ordered pair of SAEs that shares keys, with its tenant's figures (ITU-T Y.3807) at its node."""
        return [self._service(pair) for pair in self._pairs()]

    def _pairs(self) -> list[tuple[SaeId, SaeId]]:
        pairs = {pair for demand in self._topology.demands for pair in (demand.between, demand.between[::-1])}
        pairs |= {(SaeId(pool["from"]), SaeId(pool["to"])) for pool in self.pools()}
        return sorted(pair for pair in pairs if all(self._topology.sae(sae) is not None for sae in pair))

    def _service(self, pair: tuple[SaeId, SaeId]) -> Document:
        start, end = self._homes(pair)
        rows = self._controller.routes.get(start, {}).get(end, [])
        tenant = self._topology.tenant_of(pair[0])
        return {
            "from": pair[0],
            "to": pair[1],
            "from_node": start,
            "to_node": end,
            "tenant": tenant.id,
            "guaranteed_bps": tenant.guaranteed_bps,
            "routes": rows,
            "protection": "local" if start == end else self._protection(start, end, self._controller.unusable),
            "quality_of_service": self._figures(start, tenant.id),
        }

    def _homes(self, pair: tuple[SaeId, SaeId]) -> tuple[NodeId, NodeId]:
        ends = [self._topology.sae(sae) for sae in pair]
        assert ends[0] is not None
        assert ends[1] is not None
        return ends[0].node, ends[1].node

    def _figures(self, node: NodeId, tenant: str) -> object:
        telemetry = self._controller.telemetry(node, self._now_s)
        tenants = telemetry.tenants if telemetry else []
        for entry in tenants if isinstance(tenants, list) else []:
            if entry.get("tenant") == tenant:
                return entry.get("quality_of_service")
        return None

    def _protection(self, start: NodeId, end: NodeId, away: frozenset[LinkId]) -> str:
        """`protected`: two routes without a common node; `unprotected`: one; `lost`: none."""
        for count, word in ((2, "protected"), (1, "unprotected")):
            try:
                self._controller.find(start, end, count, away)
            except RouteUnavailable:
                continue
            return word
        return "lost"

    def what_if(self, cut: str) -> Document:
        """What a cut of a link, or the loss of a node, would do to each service; RequestRefused for an unknown name."""
        links = {link.id for link in self._topology.links if cut in (link.id, link.alice, link.bob)}
        if not links:
            raise RequestRefused(f"cut: {cut[:63]!r} is no link and no node of {self._topology.name}")
        now, then = self._controller.unusable, self._controller.unusable | links
        changed = []
        for pair in self._pairs():
            start, end = self._homes(pair)
            if start == end and cut != start:
                continue
            before = "local" if start == end else self._protection(start, end, now)
            after = "lost" if cut in (start, end) else self._protection(start, end, then)
            if before != after:
                changed.append({"from": pair[0], "to": pair[1], "before": before, "after": after})
        return {"cut": cut, "links": sorted(links), "services": changed, "is_harmless": not changed}

    def alarms(self) -> list[Document]:
        """Alarms that are up: roots, the worst first, each followed by what follows from it."""
        return alarmview.documents(self._rows(), self._controller.correlation, self._topology, self._pairs())

    def alarm_summary(self) -> Document:
        """How many, by severity."""
        return alarmview.summary(self._rows())

    def _rows(self) -> list[Row]:
        said = [self._controller.telemetry(node.id, self._now_s) for node in self._topology.nodes]
        answering = [telemetry for telemetry in said if telemetry is not None]
        silent = self._controller.silent(self._now_s)
        return alarmview.rows(self._controller.correlation, self._topology, answering, silent, self._now_unix_s)


def _count(words: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        found[word] = found.get(word, 0) + 1
    return found
