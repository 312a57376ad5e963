"""The node's agent of ETSI GS QKD 015: looks at the living node, answers by RESTCONF, does what is set."""

import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec

from qtrunk import __version__
from qtrunk.api import https, schema015
from qtrunk.api.edits import Edits
from qtrunk.api.etsi015 import AlarmView, AppQos, AppView, LinkView, NodeView, links_to, tree, uuid_of
from qtrunk.api.eventstream import EventHub
from qtrunk.api.notifications015 import Watch, notification
from qtrunk.api.restconf import KEPT_HEADERS, Restconf
from qtrunk.api.restconfdocs import refusal
from qtrunk.api.yangtree import UINT32_MAX, Step
from qtrunk.api.yangtree import Path as TreePath
from qtrunk.base.errors import RequestRefused, RouteUnavailable
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.base.ports import Clock, Stock
from qtrunk.kms.admission import PRIORITIES
from qtrunk.kms.applications import Pair, Setting
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.config import Address
from qtrunk.node.desired import Desired
from qtrunk.node.linkworker import LinkWorker
from qtrunk.node.pace import Pace
from qtrunk.node.trust import Trust
from qtrunk.topology import Topology

LOOK_S, REST_S = 1.0, 5.0
PERIOD_S = 60.0
"""Of an application's statistics."""
PERIODS_MAX = 15


class NodePort(Protocol):
    """What the agent asks of its node."""

    def link_workers(self) -> Sequence[LinkWorker[Any]]:
        """The ends of links here."""

    def demands(self) -> dict[Pair, float]:
        """Applications of this node's SAEs, and what each asks for now, bit/s."""

    def delivered_octets(self) -> dict[Pair, int]:
        """What each was ever given, out of the living pools."""

    def stock(self, initiator: SaeId, target: SaeId) -> Stock:
        """What is there for it."""

    def route_to(self, node: NodeId) -> tuple[NodeId, ...]:
        """The way of key to a node as it is now; RouteUnavailable."""

    def set_link(self, link: LinkId, *, is_enabled: bool) -> None:
        """Let a link generate key, or not."""

    def set_application(self, pair: Pair, setting: Setting) -> None:
        """What an application may have from now on."""


@dataclass(slots=True)
class _Usage:
    created_unix_s: float
    octets: int
    since_unix_s: float
    periods: deque[tuple[float, float, int]] = field(default_factory=lambda: deque(maxlen=PERIODS_MAX))


class Agent:
    """One node's agent: a datastore for `api.restconf`, a watch for notifications, a server."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        port: NodePort,
        directory: Path,
        trust: Trust,
        alarms: AlarmBoard,
        clock: Clock,
        context: ssl.SSLContext,
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace or Pace()
        self._node = node
        self._topology = topology
        self._port = port
        self._trust = trust
        self._alarms = alarms
        self._clock = clock
        self._desired = Desired(directory / "sdn.json")
        self._usage: dict[Pair, _Usage] = {}
        self._hub = EventHub()
        self._watch = Watch()
        core = Restconf(
            schema015.MODULE,
            schema015.ROOT,
            schema015.NODE,
            self,
            self._hub,
            is_revoked=trust.is_revoked,
            note_refusal=trust.note_refusal,
        )
        self._server = https.HttpsServer(
            core.handle, context, is_revoked=trust.is_revoked, refusal=refusal, kept_headers=KEPT_HEADERS
        )

    async def start(self, address: Address) -> None:
        """Serve."""
        await self._server.start(address.host, address.port)

    async def stop(self) -> None:
        """Serve no more; streams end."""
        self._hub.close()
        await self._server.stop()

    def enforce(self) -> None:
        """Bring into force what was set before this start."""
        for link in self._desired.links_off:
            self._port.set_link(link, is_enabled=False)
        for pair, setting in self._desired.apps.items():
            self._port.set_application(pair, setting)

    async def keep_looking(self) -> None:
        """Tell what changes, for ever."""
        while True:
            self.look()
            await self._pace.turn(LOOK_S, REST_S, at_most_s=REST_S)

    def look(self) -> None:
        """Once."""
        now_s = self._clock.unix_s()
        self._note_usage(now_s)
        for name, content in self._watch.look(self.view()):
            self._hub.publish(msgspec.json.encode(notification(name, content, now_s)))

    # ── the view ────────────────────────────────────────────────────────────────────────────────────────────────────

    def view(self) -> NodeView:
        """The node as the standard sees it, now."""
        demands = {pair: bps for pair, bps in self._port.demands().items() if self._is_known(pair)}
        for pair in self._desired.apps:
            if self._is_known(pair):
                demands.setdefault(pair, 0.0)
        physical = {worker.link: self._link(worker) for worker in self._port.link_workers()}
        distant = self._ways(demands, {link.remote for link in physical.values()})
        first = self._first_hops(demands)
        for link, view in physical.items():
            through = [pair for pair in demands if first.get(pair) == link]
            physical[link] = replace(
                view,
                applications=tuple(self._app_id(pair) for pair in through),
                expected_bps=sum(demands[pair] for pair in through),
            )
        links = (*physical.values(), *distant)
        node = self._topology.node(self._node)
        place = (node.latitude_deg, node.longitude_deg)
        return NodeView(
            network=self._topology.name,
            node=self._node,
            version=__version__,
            location=f"{place[0]:.5f},{place[1]:.5f}" if place[0] is not None and place[1] is not None else "",
            status="OPERATING",
            links=links,
            apps=tuple(self._app(pair, bps, links) for pair, bps in sorted(demands.items())),
            alarms=tuple(
                AlarmView(**{name: str(alarm[name]) for name in ("resource", "type", "severity", "text")})
                for alarm in self._alarms.as_json()["active"]
            ),
        )

    def _is_known(self, pair: Pair) -> bool:
        ends = [self._topology.sae(sae) for sae in pair]
        return all(end is not None for end in ends) and ends[0] is not ends[1]

    def _home(self, sae: SaeId) -> NodeId:
        found = self._topology.sae(sae)
        assert found is not None
        return found.node

    def _id(self, kind: str, name: str) -> str:
        return uuid_of(self._topology.name, kind, name)

    def _app_id(self, pair: Pair) -> str:
        return self._id("app", " ".join(pair))

    def _link(self, worker: LinkWorker[Any]) -> LinkView:
        statistics = worker.statistics
        link = statistics.link
        secret_bps = statistics.rates_bps()[1]
        qber = statistics.figures.get("qber_test")
        status = statistics.state()
        level = statistics.pool_octets()
        if status == "OFF" and level > 0:
            # The standard's OFF has no keys either; ours also says that the last block was destroyed.
            status = "PASSIVE"
        clock = f"{link.equipment.clock_hz / 1e9:g} GHz"
        return LinkView(
            id=self._id("link", link.id),
            is_physical=True,
            status=status,
            remote=link.other(self._node),
            secret_bps=secret_bps,
            effective_bps=secret_bps * (1 - statistics.auth_share),
            why=statistics.last_end,
            name=link.id,
            end=statistics.role.value,
            is_enabled=worker.is_enabled,
            loss_db=link.loss_db if link.vendor is None else None,
            qber=qber if isinstance(qber, float) else None,
            model=f"Faraday-Michelson, decoy-state BB84, {clock}" if link.vendor is None else link.vendor.trust,
            is_module_up=statistics.is_module_up,
            is_light=link.vendor is None,
        )

    def _first_hops(self, pairs: dict[Pair, float]) -> dict[Pair, LinkId]:
        found = {}
        for pair in pairs:
            nodes = self._route(self._home(pair[1]))
            if len(nodes) > 1:
                found[pair] = self._topology.link_between(nodes[0], nodes[1]).id
        return found

    def _route(self, node: NodeId) -> tuple[NodeId, ...]:
        try:
            return self._port.route_to(node)
        except RouteUnavailable:
            return ()

    def _ways(self, pairs: dict[Pair, float], neighbours: set[str]) -> list[LinkView]:
        """The VIRT links: one for each distant node that an application here has keys with."""
        distant = sorted({self._home(pair[1]) for pair in pairs} - neighbours - {self._node})
        return [self._way(node, {p: bps for p, bps in pairs.items() if self._home(p[1]) == node}) for node in distant]

    def _way(self, node: NodeId, pairs: dict[Pair, float]) -> LinkView:
        nodes = self._route(node)
        stocks = [self._port.stock(*pair) for pair in pairs]
        fill_bps = max((stock.fill_bps for stock in stocks), default=0.0)
        has_keys = any(stock.level_bits > 0 for stock in stocks)
        status = ("ACTIVE" if has_keys else "PENDING") if nodes else ("PASSIVE" if has_keys else "OFF")
        return LinkView(
            id=self._id("virt", " ".join(sorted((self._node, node)))),
            is_physical=False,
            status=status,
            remote=node,
            applications=tuple(self._app_id(pair) for pair in pairs),
            expected_bps=sum(pairs.values()),
            secret_bps=fill_bps,
            effective_bps=fill_bps,
            why="" if nodes else f"no route to {node}",
            next_hop=nodes[1] if len(nodes) > 1 else "",
        )

    def _app(self, pair: Pair, demand_bps: float, links: Sequence[LinkView]) -> AppView:
        tenant = self._topology.tenant_of(pair[0])
        setting = self._desired.apps.get(pair, Setting())
        most = setting.max_bps if setting.max_bps is not None else tenant.burst_bps
        least = setting.min_bps if setting.min_bps is not None else tenant.guaranteed_bps or None
        usage = self._usage.get(pair)
        home = self._home(pair[1])
        return AppView(
            id=self._app_id(pair),
            initiator=pair[0],
            target=pair[1],
            remote_node=home,
            is_on=demand_bps > 0 or (usage is not None and usage.octets > 0),
            qos=AppQos(
                max_bandwidth=None if most is None else min(UINT32_MAX, int(most)),
                min_bandwidth=None if least is None else min(UINT32_MAX, int(least)),
                ttl_s=min(UINT32_MAX, int(tenant.key_lifetime_s)),
                priority=tenant.priority if setting.priority is None else setting.priority,
            ),
            links=links_to(links, home),
            created_unix_s=usage.created_unix_s if usage else self._clock.unix_s(),
            periods=tuple(usage.periods) if usage else (),
        )

    def _note_usage(self, now_s: float) -> None:
        """Close a period of each application's statistics where one is over."""
        delivered = self._port.delivered_octets()
        for pair in {*self._port.demands(), *delivered}:
            octets = delivered.get(pair, 0)
            usage = self._usage.setdefault(pair, _Usage(now_s, octets, now_s))
            if now_s - usage.since_unix_s >= PERIOD_S:
                usage.periods.append((usage.since_unix_s, now_s, 8 * max(0, octets - usage.octets)))
                usage.octets, usage.since_unix_s = octets, now_s

    # ── the datastore ───────────────────────────────────────────────────────────────────────────────────────────────

    def tree(self) -> dict[str, object]:
        """See `api.restconf.Datastore`."""
        return tree(self.view())

    def explicit(self) -> dict[TreePath, object]:
        """See `api.restconf.Datastore`."""
        found: dict[TreePath, object] = {_link_path(self._id("link", link)): False for link in self._desired.links_off}
        for pair, setting in self._desired.apps.items():
            for leaf, name in _LEAVES.items():
                value = getattr(setting, name)
                if value is not None:
                    found[_app_path(self._app_id(pair), leaf)] = value
        return found

    def changed_unix_s(self) -> float:
        """See `api.restconf.Datastore`."""
        return self._desired.changed_unix_s

    def change(self, edits: Edits, who: str, what: str) -> None:
        """See `api.restconf.Datastore`: all or nothing; in the audit log and on the disk before it acts."""
        links_off, apps = set(self._desired.links_off), dict(self._desired.apps)
        links = {self._id("link", worker.link): worker.link for worker in self._port.link_workers()}
        pairs = {self._app_id(pair): pair for pair in {*self._port.demands(), *self._desired.apps}}
        for path, value in edits.items():
            key = str(path[1].key).lower()
            if path[0].name == "qkd_links":
                if key not in links:
                    raise RequestRefused("qkdl_enable: only a physical link's generation can be stopped")
                links_off.discard(links[key])
                if value is False:
                    links_off.add(links[key])
            else:
                name = _LEAVES[path[-1].name]
                if name == "priority" and value is not None and not 0 <= int(str(value)) < PRIORITIES:
                    raise RequestRefused(f"app_priority: 0 to {PRIORITIES - 1} is needed")
                setting = apps.get(pairs[key], Setting())
                apps[pairs[key]] = replace(setting, **{name: value})  # type: ignore[arg-type]
        _check(apps)
        with self._trust.audit.during(who, what, self._node):
            before = {*self._desired.links_off}, dict(self._desired.apps)
            self._desired.store(frozenset(links_off), apps, self._clock.unix_s())
            for link in before[0] ^ links_off:
                self._port.set_link(link, is_enabled=link not in links_off)
            for pair in {*before[1], *apps}:
                self._port.set_application(pair, apps.get(pair, Setting()))


_LEAVES = {"max_bandwidth": "max_bps", "min_bandwidth": "min_bps", "app_priority": "priority"}


def _check(apps: dict[Pair, Setting]) -> None:
    for pair, setting in apps.items():
        if setting.max_bps is not None and setting.min_bps is not None and setting.min_bps > setting.max_bps:
            raise RequestRefused(f"app_qos of {' to '.join(pair)}: min_bandwidth is above max_bandwidth")


def _link_path(key: str) -> TreePath:
    return (Step("qkd_links"), Step("qkd_link", key), Step("qkdl_enable"))


def _app_path(key: str, leaf: str) -> TreePath:
    head = (Step("qkd_applications"), Step("qkd_app", key))
    return (*head, Step(leaf)) if leaf == "app_priority" else (*head, Step("app_qos"), Step(leaf))
