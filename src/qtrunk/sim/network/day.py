"""A day in the life of a large network, in simulation: growth, a cut, an attack, the loss of a node and of the
controllers, maintenance, recovery; tenants ask for keys all the time, and all of `sim.network.checks` looks on.

The network is a shipped topology with the production nodes. There is no light: somebody on a link makes the two ends'
keys differ, where production gets them from a vendor's KMEs, so that blocks are destroyed and the link goes OFF.
Controllers are no part of the simulation but what nodes have of them: routes are handed out in the morning; when the
controllers are lost nobody renews them, and nodes go on with the last ones.

A request fails without an excuse if both of its ends were alive all through its part of the day.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from qtrunk.api.https import Request
from qtrunk.api.roles import Operator, OperatorRole
from qtrunk.api.tls import PeerIdentity
from qtrunk.base.errors import QtrunkError
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.config import network
from qtrunk.control.orders import LIFETIME_S, RouteOrder
from qtrunk.relay.route import route
from qtrunk.sim.network.checks import Violation
from qtrunk.sim.network.customers import Customers, NoAnswer
from qtrunk.sim.network.diary import Diary, Seen
from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.machine import MACHINE
from qtrunk.sim.network.scenario import STANDING_ALARMS, vendor_link
from qtrunk.sim.network.simnode import SimNode, node_config
from qtrunk.sim.network.trial import Trial
from qtrunk.topology import Demand, Link, Node, Sae

BLOCK_KEYS, KEY_BITS, BLOCK_S = 128, 4096, 20.0
"""64 KiB in a block, three at once in the morning and one each 20 s after that: links never stand still, and most of
the day's time is the tenants'.
"""
POOL_OCTETS_MAX = 2 << 20
ASK_S = 1.0
"""A tenant asks so often on average."""
WITHIN_S = 120.0
POOL_OCTETS = 1024
ANN = Operator(name="ann", fingerprint="simulated", roles=frozenset({OperatorRole.OPERATOR}))


@dataclass(frozen=True, slots=True)
class Script:
    """What happens where. Nodes and links are those of the topology."""

    topology: str
    pairs: tuple[tuple[str, str], ...]
    """The tenants whose requests are watched: initiator, target."""
    growth: tuple[str, str]
    """A new site closes another way between these."""
    newcomer: str
    """The SAE at the new site; it asks for a key with the first target of `pairs`."""
    cut: str
    attacked: str
    lost: str
    drained: str


TWO_RINGS = Script(
    topology="two-rings",
    pairs=(
        ("government-beijing", "government-shanghai"),
        ("finance-beijing", "finance-tianjin"),
        ("government-langfang", "government-tianjin"),
        ("finance-nanjing", "finance-shanghai"),
        ("big-data-hangzhou", "big-data-hefei"),
        ("power-jinan", "power-xuzhou"),
    ),
    growth=("suzhou", "shanghai"),
    newcomer="government-new-site",
    cut="beijing-langfang",
    attacked="kunshan-shanghai",
    lost="langfang",
    drained="wuxi",
)
NORTH = Script(
    topology="beijing-tianjin-hebei-ring",
    pairs=(
        ("government-beijing", "government-xiongan"),
        ("finance-beijing", "finance-tianjin"),
        ("government-langfang", "government-tianjin"),
    ),
    growth=("beijing", "tianjin"),
    newcomer="government-new-site",
    cut="beijing-langfang",
    attacked="zhuozhou-beijing",
    lost="langfang",
    drained="bazhou",
)
SOUTH = Script(
    topology="yangtze-delta-ring",
    pairs=(
        ("finance-nanjing", "finance-shanghai"),
        ("government-hangzhou", "government-hefei"),
        ("government-suzhou", "government-shanghai"),
    ),
    growth=("suzhou", "shanghai"),
    newcomer="government-new-site",
    cut="jurong-danyang",
    attacked="kunshan-shanghai",
    lost="suzhou",
    drained="huzhou",
)


SCRIPTS = {script.topology: script for script in (TWO_RINGS, NORTH, SOUTH)}


@dataclass
class Tenant(Customers):
    """A pair of SAEs, and what it saw."""

    seen: dict[str, Seen] = field(default_factory=dict)
    part: str = ""
    why: str = ""
    """What the last request was refused for."""
    _whys: dict[object, str] = field(default_factory=dict)
    """By the task of a request that is under way."""

    async def _one(self) -> None:
        seen = self.seen.setdefault(self.part, Seen())
        is_done, why = await self.exchange(), self._whys.pop(asyncio.current_task(), "")
        if is_done:
            seen.done += 1
        elif why:
            # Else the SAE gave up after it had lost the answer three times by itself, as SAEs of a simulation may.
            seen.failures.append((self.part, f"{self.trial.loop.time():.1f} s: {why}"))

    def _refused(self, error: QtrunkError) -> None:
        super()._refused(error)
        self._note(f"{type(error).__name__}: {error}")

    def _note(self, why: str) -> None:
        self.why = self._whys[asyncio.current_task()] = why

    async def _call(self, sae: SaeId, ask: Callable[[SimNode], Coroutine[Any, Any, Any]]) -> Any:
        seen, began_s = self.seen.setdefault(self.part, Seen()), self.trial.loop.time()
        try:
            return await super()._call(sae, ask)
        except NoAnswer:
            self._note(f"no answer for {sae}")
            raise
        finally:
            seen.slowest_s = max(seen.slowest_s, self.trial.loop.time() - began_s)


class Day:
    """One day. `run` once."""

    def __init__(self, script: Script, pause_s: float) -> None:
        self._script, self._pause_s = script, pause_s
        shipped = network.load(network.find(script.topology))
        rates = {frozenset(demand.between): demand.rate_bps for demand in shipped.demands}
        demands = tuple(
            Demand(between=(SaeId(one), SaeId(other)), rate_bps=rates[frozenset((SaeId(one), SaeId(other)))])
            for one, other in script.pairs
        )
        links = tuple(fed(link) for link in shipped.links)
        dice = Dice(f"day {script.topology}")
        self.trial = Trial(
            replace(shipped, links=links, demands=demands), dice.child("trial"), BLOCK_S, POOL_OCTETS_MAX
        )
        self.tenants = [
            Tenant(self.trial, SaeId(one), SaeId(other), dice.child(f"tenant {one}"), ASK_S)
            for one, other in script.pairs
        ]
        self.diary = Diary(seen={(tenant.initiator, tenant.target): tenant.seen for tenant in self.tenants})
        self.part = ""

    def run(self) -> None:
        """From night to recovery; Violation, or whatever a node ended with."""
        self.trial.run(self._story())

    async def _story(self) -> None:
        self._begin("night")
        took_s = await self._until(self._is_supplied, "the pools of all tenants are filled")
        self._hand_out_routes()
        self._say(f"pools of all tenants filled {took_s:.0f} s after the start; routes are handed out")
        asking = [self.trial.loop.create_task(tenant.run()) for tenant in self.tenants]
        try:
            await self._look(self._pause_s)
            for part in (self._growth, self._cut, self._attack, self._node_loss, self._controller_loss):
                self._begin(part.__name__.strip("_").replace("_", " "))
                await part()
            self._begin("maintenance")
            await self._maintenance()
            self._begin("recovery")
            took_s = await self._until(lambda: not self._note_alarms(), "all alarms are over")
            self._say(f"the last alarm was over after {took_s:.0f} s more")
            await self._look(self._pause_s)
        finally:
            for task in (*asking, *(task for tenant in self.tenants for task in tenant.tasks)):
                task.cancel()

    # ── the parts of the day ────────────────────────────────────────────────────────────────────────────────────────

    async def _growth(self) -> None:
        script, trial, new = self._script, self.trial, NodeId("new-site")
        links = tuple(fed(Link(**_plain(name, new))) for name in script.growth)
        known = trial.topology
        grown = replace(
            known,
            nodes=(*known.nodes, Node(id=new)),
            links=(*known.links, *links),
            saes=(*known.saes, Sae(id=SaeId(script.newcomer), node=new)),
        )
        trial.grow(grown)
        for site in trial.sites.values():
            node = trial.live(site.name)
            if node is not None:
                config = node_config(grown, site.name, site.root, POOL_OCTETS_MAX)
                await self._at(site.name, node.take(config))
        trial.start(new)
        self._say(f"a new site between {' and '.join(script.growth)}: every node takes the network in service")
        took_s = await self._until(lambda: self._has_key(new, links), "key on the new links")
        self._say(f"both new links had key {took_s:.0f} s later")
        target = SaeId(script.pairs[0][1])
        newcomer = Tenant(trial, SaeId(script.newcomer), target, trial.dice.child("newcomer"), part=self.part)
        if not await newcomer.exchange():
            raise Violation(f"liveness: the new site's first request failed: {newcomer.why}")
        self._say(f"{script.newcomer} has its first keys with {target}")
        await self._look(self._pause_s)

    async def _cut(self) -> None:
        weather, link = self.trial.weather, self._link(self._script.cut)
        self.trial.boxes[link.id].is_down = True
        weather.cut(link.alice, link.bob)
        weather.still(link.alice, link.bob)
        self._say(f"the cable {link.id} is cut, fibre and network")
        await self._look(self._pause_s)
        self.trial.boxes[link.id].is_down = False
        weather.heal(link.alice, link.bob)
        self._say("it is spliced")
        await self._look(self._pause_s / 2)

    async def _attack(self) -> None:
        link = self._link(self._script.attacked)
        box, before = self.trial.boxes[link.id], self._shown(link)["blocks_destroyed"]
        box.mismatch_probability = 1.0
        self._say(f"somebody is on {link.id}: the keys of its two ends differ")
        took_s = await self._until(lambda: self._is_off(link), f"link {link.id} is OFF")
        self._say(f"the next block was destroyed {took_s:.0f} s later; the link is OFF, routes leave it")
        await self._look(self._pause_s)
        box.mismatch_probability = 0.0
        self._say("the tap is found and taken off")
        await self._until(lambda: not self._is_off(link), f"link {link.id} makes key again")
        destroyed = self._shown(link)["blocks_destroyed"] - before
        self._say(f"the link makes key again; blocks destroyed: {destroyed}, used of them: nothing")
        await self._look(self._pause_s / 2)

    async def _node_loss(self) -> None:
        name = NodeId(self._script.lost)
        site = self.trial.sites[name]
        for sae in (sae.id for sae in self.trial.topology.saes if sae.node == name):
            self.diary.excused.add((self.part, sae))
        assert site.machine is not None
        site.is_power_loss, site.keep_down = True, True
        site.machine.die()
        self._say(f"{name} loses its power")
        await self._look(self._pause_s)
        site.is_power_loss, site.keep_down = False, False
        self.trial.start(name)
        took_s = await self._until(lambda: self.trial.live(name) is not None and self._is_supplied(), f"{name} is back")
        self._say(f"{name} has its power again; {took_s:.0f} s later all tenants' pools are full enough")

    async def _controller_loss(self) -> None:
        self._say("the controllers are lost: nobody hands out or renews routes")
        await self._look(self._pause_s)
        for name in self._initiators():
            node = self.trial.live(name)
            if node is not None and not node.routes.as_json(self.trial.sites[name].clock.unix_s())["is_living"]:
                raise Violation(f"liveness: {name} has let go of the routes it was handed")
        self._say("nodes go on with the last ones")

    async def _maintenance(self) -> None:
        name = NodeId(self._script.drained)
        until_s = self.trial.sites[name].clock.unix_s() + 3600.0
        body = msgspec.json.encode({"resource": name, "end_unix_s": until_s, "start_unix_s": 0.0, "why": "new rack"})
        await self._ask_maintenance(name, (), body, until_s)
        took_s = await self._until(lambda: self._is_clear(name), f"nothing passes at {name}")
        self._say(f"{name} is drained; nothing passes there {took_s:.0f} s later, work may begin")
        await self._look(self._pause_s)
        await self._ask_maintenance(name, (name, "end"), b"", until_s)
        self._say("the window is over")
        await self._look(self._pause_s / 2)

    # ── how it is done ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _at(self, name: NodeId, work: Coroutine[Any, Any, Any]) -> Any:
        """On the machine of a node."""
        machine = self.trial.sites[name].machine
        context = contextvars.copy_context()
        context.run(MACHINE.set, machine)
        return await self.trial.loop.create_task(work, context=context)

    async def _ask_maintenance(self, name: NodeId, more: tuple[str, ...], body: bytes, until_s: float) -> None:
        node = self.trial.live(name)
        assert node is not None
        request = Request(
            "POST", ("admin", "v1", "maintenance", *more), {}, body, PeerIdentity((), (), ANN.fingerprint, until_s)
        )
        await self._at(name, node.maintenance.answer(request, ANN))

    def _is_clear(self, name: NodeId) -> bool:
        node = self.trial.live(name)
        return node is not None and any(bool(window["is_clear"]) for window in node.maintenance.as_json())

    def _initiators(self) -> list[NodeId]:
        found = (self.trial.topology.sae(tenant.initiator) for tenant in self.tenants)
        return sorted({sae.node for sae in found if sae is not None})

    def _hand_out_routes(self) -> None:
        """As a controller does, of the bare topology."""
        topology = self.trial.topology
        for name in self._initiators():
            node = self.trial.live(name)
            others = (topology.sae(tenant.target) for tenant in self.tenants)
            ends = sorted({sae.node for sae in others if sae is not None and sae.node != name})
            routes = {str(end): [[str(hop) for hop in route(topology, name, end)]] for end in ends}
            assert node is not None
            order = RouteOrder(name, "simulated", fencing=1, version=1, lifetime_s=LIFETIME_S, routes=routes)
            node.routes.take(order, self.trial.sites[name].clock.unix_s())

    def _is_supplied(self) -> bool:
        """Whether every pair has a full enough pool at its initiator's node."""
        for tenant in self.tenants:
            sae = self.trial.topology.sae(tenant.initiator)
            node = self.trial.live(sae.node) if sae is not None else None
            if node is None or node.store.pools.octets(tenant.initiator, tenant.target) < POOL_OCTETS:
                return False
        return True

    def _has_key(self, name: NodeId, links: tuple[Link, ...]) -> bool:
        node = self.trial.live(name)
        return node is not None and all(node.store.level(link.id).own_octets > 0 for link in links)

    def _shown(self, link: Link) -> dict[str, Any]:
        """What the status of Alice's node says of a link."""
        node = self.trial.live(link.alice)
        assert node is not None
        shown = node.status()["links"]
        assert isinstance(shown, list)
        return next(one for one in shown if one["link"] == link.id)

    def _is_off(self, link: Link) -> bool:
        return bool(self._shown(link)["state"] == "OFF")

    def _link(self, name: str) -> Link:
        return self.trial.topology.link(LinkId(name))

    async def _look(self, seconds: float) -> None:
        """Let time pass; note which alarms are up."""
        end_s = self.trial.loop.time() + seconds
        while self.trial.loop.time() < end_s:
            self._note_alarms()
            await asyncio.sleep(1.0)

    async def _until(self, condition: Callable[[], bool], what: str) -> float:
        began_s = self.trial.loop.time()
        while not condition():
            self._note_alarms()
            if self.trial.loop.time() - began_s > WITHIN_S:
                raise Violation(f"liveness: not within {WITHIN_S:.0f} s: {what}")
            await asyncio.sleep(1.0)
        return self.trial.loop.time() - began_s

    def _note_alarms(self) -> list[tuple[str, str]]:
        """Which are up, of any node."""
        now_s, up = self.trial.loop.time(), []
        for site in self.trial.sites.values():
            for alarm in site.alarms.active() if site.alarms is not None else ():
                up += [(alarm.resource, alarm.type)] * (alarm.type not in STANDING_ALARMS)
        self.diary.note_alarms(up, now_s)
        return up

    def _begin(self, part: str) -> None:
        self.part = part
        for tenant in self.tenants:
            tenant.part = part

    def _say(self, what: str) -> None:
        self.diary.log.append((self.trial.loop.time(), self.part, what))


def _plain(name: str, new: NodeId) -> dict[str, Any]:
    return {"id": LinkId(f"{name}-{new}"), "alice": NodeId(name), "bob": new, "length_km": 40.0, "loss_db": 9.0}


def fed(link: Link) -> Link:
    """The link, with a vendor's box in the place of its light."""
    made = vendor_link(link.alice, link.bob)
    assert made.vendor is not None
    vendor = replace(made.vendor, keys=BLOCK_KEYS, key_bits=KEY_BITS)
    return replace(made, id=link.id, length_km=link.length_km, loss_db=link.loss_db, vendor=vendor)
