"""One run: machines with their disks and nodes, joined by the weather; births, deaths, and what they leave."""

import asyncio
import contextvars
import hashlib
import logging
import shutil
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from qtrunk.base.errors import QtrunkError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.secret import Secret
from qtrunk.base.wire import FRAME_HEADER_OCTETS, decode
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.channel import Hello
from qtrunk.node.trust import Trust
from qtrunk.node.world import World
from qtrunk.sim.network.checks import Checks, Violation
from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.disk import Disk, Disks
from qtrunk.sim.network.loop import VirtualLoop
from qtrunk.sim.network.machine import MACHINE, Died, Machine, task_factory
from qtrunk.sim.network.simnode import (
    POOL_OCTETS_MAX,
    LoopWorker,
    MachineClock,
    SimNode,
    memory,
    node_config,
    papers,
)
from qtrunk.sim.network.vendorbox import VendorBox
from qtrunk.sim.network.weather import Stream, Weather
from qtrunk.topology import Topology

PRESHARED_OCTETS = 16 << 10
SUPERVISOR_S = 1.0
"""After which a process that stopped is started again."""
BOOKS_S = 1.0


@dataclass(slots=True)
class Site:
    """One trusted place: what outlives its machines."""

    name: NodeId
    kek: bytes
    root: Path
    clock: MachineClock
    dice: Dice
    incarnation: int = 0
    machine: Machine | None = None
    disk: Disk | None = None
    node: SimNode | None = None
    alarms: AlarmBoard | None = None
    is_power_loss: bool = False
    down_s: float = SUPERVISOR_S
    keep_down: bool = False
    stops: list[str] = field(default_factory=list)
    """Errors by which its process stopped of itself."""


class Trial:
    """A network under one seed. `run` once."""

    def __init__(
        self, topology: Topology, dice: Dice, block_s: float = 3.0, pool_octets_max: int = POOL_OCTETS_MAX
    ) -> None:
        self.topology = topology
        self._block_s, self._pool_octets_max = block_s, pool_octets_max
        self.dice = dice
        self.loop = VirtualLoop()
        self.loop.set_task_factory(task_factory)  # type: ignore[arg-type]
        self.loop.set_exception_handler(self._unhandled)
        self.weather = Weather(self.loop, dice.child("weather"), self.trace)
        self.loop.network = self.weather
        self.disks = Disks()
        self.checks = Checks(topology)
        self.counts: Counter[str] = Counter()
        self.violation: BaseException | None = None
        self.log: list[str] | None = None
        self.last_words: list[str] = []
        self._hash = hashlib.blake2b(digest_size=16)
        self._base = memory()
        self.boxes: dict[LinkId, VendorBox] = {}
        self.sites: dict[NodeId, Site] = {}
        self._busy: dict[NodeId, Site] = {}
        """Sites that started or wrote anything since their books were looked at."""
        self.grow(topology)
        self.weather.on_write = self._sent
        self._hellos: dict[Stream, Hello] = {}

    def grow(self, topology: Topology) -> None:
        """The network from now on: what is new gets its place, its boxes and its pre-shared secrets. Nodes in service
        have to `take` it, new ones to be started.
        """
        self.topology = self.checks.topology = topology
        for node in topology.nodes:
            if node.id not in self.sites:
                self.sites[node.id] = self._site(node.id)
        for link in topology.links:
            if link.id in self.boxes or link.vendor is None:
                continue
            self.boxes[link.id] = VendorBox(self.dice.child(f"box {link.id}"), self.loop, link.vendor, self._block_s)
            secret = self.dice.child(f"preshared {link.id}").octets(PRESHARED_OCTETS)
            for name in (link.alice, link.bob):
                (self.sites[name].root / f"preshared-{link.id}").write_bytes(secret)

    def _site(self, name: NodeId) -> Site:
        dice = self.dice.child(f"site {name}")
        root = self._base / name / "0"
        root.mkdir(parents=True)
        self.weather.certificates[name] = papers(name).der
        return Site(name, dice.octets(32), root, MachineClock(self.loop, drift=dice.between(-1e-4, 1e-4)), dice)

    # ── the run ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, work: Any) -> None:
        """All machines up, `work` done, all gone; raises what must not happen."""
        logger = logging.getLogger("qtrunk")
        was_disabled, logger.disabled = logger.disabled, True
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        asyncio.set_event_loop(self.loop)
        try:
            with self.disks.installed():
                self.loop.run_until_complete(self._watched(work))
        finally:
            self._end()
            asyncio.set_event_loop(None)
            logging.disable(before)
            logger.disabled = was_disabled

    async def _watched(self, work: Any) -> None:
        for name in self.sites:
            self.start(name)
        tasks = [self.loop.create_task(one) for one in (work, self._keep_books())]
        self._failed: asyncio.Future[None] = self.loop.create_future()
        await asyncio.wait([tasks[0], tasks[1], self._failed], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if not task.done():
                task.cancel()
        try:
            if self.violation is not None:
                raise self.violation
            for task in tasks:
                if task.done():
                    task.result()
            self.look_at_books()
        except Exception:
            self.last_words = self.describe()
            raise

    def describe(self) -> list[str]:
        """Where every node stands: what to read when a run has failed."""
        lines = []
        for site in self.sites.values():
            lines.append(f"{site.name}: incarnation {site.incarnation}, stops {site.stops}")
            node = self.live(site.name)
            if node is None or site.alarms is None:
                continue
            lines += [
                f"  alarm {alarm['type']} {alarm['resource']}: {alarm['text']}"
                for alarm in site.alarms.as_json()["active"]
            ]
            for link in self.topology.links_of(site.name):
                lines.append(f"  link {link.id}: {node.store.level(link.id)}")
            for (side, initiator, target), pool in node.store.pools.ledgers().items():
                lines.append(f"  pool {initiator} to {target}, side {side}: {pool}")
        return lines

    def _end(self) -> None:
        for site in self.sites.values():
            if site.machine is not None:
                site.machine.is_alive = False
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(_turns(20))
        self.loop.close()
        shutil.rmtree(self._base, ignore_errors=True)

    @property
    def trace_hash(self) -> str:
        """Of all that happened, in order."""
        return self._hash.hexdigest()

    def trace(self, what: str) -> None:
        """Something happened."""
        line = f"{self.loop.time():.6f} {what}\n"
        self._hash.update(line.encode())
        if self.log is not None:
            self.log.append(line)

    def fail(self, error: BaseException) -> None:
        """Something happened that must not: the run ends."""
        if self.violation is None:
            self.violation = error
            if not self._failed.done():
                self._failed.set_result(None)

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None or isinstance(error, Died):
            return
        if "never retrieved" in context["message"] and isinstance(error, QtrunkError | OSError):
            return  # Whoever waited for it is gone.
        if isinstance(error, asyncio.CancelledError):
            return  # Streams of CPython before 3.12 ask a cancelled handler of a connection for its error.
        self.fail(error)

    # ── births and deaths ───────────────────────────────────────────────────────────────────────────────────────────

    def start(self, name: NodeId) -> None:
        """A node's process."""
        site = self.sites[name]
        site.machine = machine = Machine(name, lambda _machine: self._died(site))
        site.disk = Disk(site.root, machine, site.dice.child(f"disk {site.incarnation}"), partial(self._wrote, site))
        self.disks.add(site.disk)
        self.trace(f"{name} starts")
        context = contextvars.copy_context()
        context.run(MACHINE.set, machine)
        self.loop.create_task(self._boot(site, machine), context=context)

    async def _boot(self, site: Site, machine: Machine) -> None:
        dice = site.dice.child(f"node {site.incarnation}")
        config = node_config(self.topology, site.name, site.root, self._pool_octets_max)
        worker = LoopWorker(self.loop, dice.child("consume"))
        world = World(site.clock, dice.child("random"), lambda _name: worker)
        try:
            site.alarms = AlarmBoard(site.clock)
            trust = Trust(config, site.clock, dice.child("trust"), site.alarms)
            kek = Secret(site.kek)
            node = SimNode(
                config, kek, trust, site.alarms, world=world, boxes=self.boxes, loop=self.loop, dice=dice.child("links")
            )
            self.checks.watch(site.name, node.store)
            await node.start()
        except (QtrunkError, OSError) as error:
            self._stopped(site, machine, error)
            return
        site.node = node
        self._busy[site.name] = site
        for task in node.tasks:
            task.add_done_callback(lambda done: self._task_ended(site, machine, done))
        node.failed.add_done_callback(lambda done: self._task_ended(site, machine, done))

    def _task_ended(self, site: Site, machine: Machine, task: "asyncio.Future[None]") -> None:
        if task.cancelled() or not machine.is_alive:
            return
        error = task.exception()
        if error is None or isinstance(error, Died):
            return
        if isinstance(error, QtrunkError | OSError):
            self._stopped(site, machine, error)
        else:
            self.fail(error)

    def _stopped(self, site: Site, machine: Machine, error: BaseException) -> None:
        """The process gives up of itself, as `node.custody` has it."""
        if machine.is_alive:
            site.stops.append(f"{type(error).__name__}: {error}")
            self.counts["stops"] += 1
            site.is_power_loss = False
            machine.die()

    def _died(self, site: Site) -> None:
        """At this instant: what is on its disk is what the next one finds."""
        self.counts["deaths"] += 1
        self.trace(f"{site.name} dies")
        disk, machine = site.disk, site.machine
        assert disk is not None
        assert machine is not None
        site.incarnation += 1
        site.root = self._base / site.name / str(site.incarnation)
        disk.copy_to(site.root, is_power_loss=site.is_power_loss)
        site.node = None
        self.weather.forget(machine, is_heard=not site.is_power_loss)
        self.loop.call_soon(self._bury, site, machine, context=contextvars.Context())

    def _bury(self, site: Site, machine: Machine) -> None:
        for task in list(machine.tasks):
            task.cancel()
        if not site.keep_down:
            self.loop.call_later(site.down_s, self.start, site.name)

    # ── checks ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _keep_books(self) -> None:
        while True:
            await asyncio.sleep(BOOKS_S)
            self.look_at_books()

    def look_at_books(self) -> None:
        """The ledgers of all nodes that are up and have done anything since the last look."""
        busy, self._busy = self._busy, {}
        for site in busy.values():
            if site.node is not None and site.machine is not None and site.machine.is_alive:
                self.checks.books(site.name, site.node.store)

    def _wrote(self, site: Site, what: str) -> None:
        self._busy[site.name] = site
        self.trace(what)

    def _sent(self, stream: Stream, octets: bytes) -> None:
        hello = self._hellos.get(stream)
        if hello is None:
            hello = self._hellos[stream] = decode(octets[FRAME_HEADER_OCTETS:], Hello)
            stream.service = hello.service
            return
        try:
            self.checks.sent(hello, octets)
        except Violation as error:
            self.fail(error)

    def live(self, name: NodeId) -> SimNode | None:
        """A node in service."""
        site = self.sites[name]
        return site.node if site.machine is not None and site.machine.is_alive else None


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
