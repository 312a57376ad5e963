"""One trusted node: wires the pure machines to clock, dice, disk, sockets and modules. Nothing is decided here."""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from qtrunk.api import https, skip
from qtrunk.api.identity import SaeRegistry
from qtrunk.api.tls import Renewed
from qtrunk.base.errors import ConfigError, StoreError
from qtrunk.base.ids import KeyId, LinkId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.config.change import change
from qtrunk.crypto.hybrid import HybridEnd
from qtrunk.distil.authentication import AUTH_OCTETS, Signatures
from qtrunk.kms.applications import Applications
from qtrunk.kms.poolstate import ledgers_as_json
from qtrunk.kms.store import KeyStore
from qtrunk.kms.totals import TotalsFile
from qtrunk.node import hardening
from qtrunk.node.abroad import Abroad
from qtrunk.node.advert import Adverts
from qtrunk.node.agent015 import Agent
from qtrunk.node.ahead import FillAhead
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.alarmwatch import FULL, AlarmWatch
from qtrunk.node.authentication import LinkAuthentication, load_signatures
from qtrunk.node.border import NetworkInterior
from qtrunk.node.channel import Channel, InterNodeServer, dial, node_context
from qtrunk.node.clockwatch import ClockWatch
from qtrunk.node.commit import GroupCommit
from qtrunk.node.config import LinkConfig, NodeConfig, check_same_node, vendor_files
from qtrunk.node.device import Module
from qtrunk.node.fallback import Fallback
from qtrunk.node.flooding import Flooding
from qtrunk.node.hybridkeys import HybridKeys, load_end, load_verifying_keys
from qtrunk.node.interwork import interworking
from qtrunk.node.keyport import key_port
from qtrunk.node.kxrunner import KxRunner
from qtrunk.node.linkend import LinkRunner
from qtrunk.node.linkstate import LinkStatistics
from qtrunk.node.linkworker import LinkWorker
from qtrunk.node.maintenance import Maintenance
from qtrunk.node.notes import Notes
from qtrunk.node.onward import Onward
from qtrunk.node.pace import Pace
from qtrunk.node.poolsync import PERIOD_S as SYNC_PERIOD_S
from qtrunk.node.poolsync import PoolSync
from qtrunk.node.reserving import Reserving
from qtrunk.node.routes import HandedRoutes
from qtrunk.node.sdnport import SdnPort, hold_links
from qtrunk.node.streams import StreamRunner
from qtrunk.node.supply import Supply
from qtrunk.node.tenants import TenantSupply
from qtrunk.node.trust import Trust
from qtrunk.node.vendorlink import vendor_runner
from qtrunk.node.wiring import light_s, make_session
from qtrunk.node.world import World, real_world
from qtrunk.plan.light import Light
from qtrunk.relay.kx import Kx
from qtrunk.relay.routing import Routing
from qtrunk.stages import Role
from qtrunk.topology import Link, LiveTopology, Topology

log = logging.getLogger(__name__)

EXPIRE_PERIOD_S = 5.0
POOL_TICK_S = 1.0
EXPIRE_REST_S, POOL_REST_S, LASTING_S = 60.0, 10.0, 10.0
"""Periods of a store in which nothing has changed for LASTING_S."""


class Node:
    """A node process's contents."""

    def __init__(
        self, config: NodeConfig, kek: Secret, trust: Trust, alarms: AlarmBoard, world: World | None = None
    ) -> None:
        world = world or real_world(config.random_device)
        self.config = config
        self.tasks: list[asyncio.Task[None]] = []
        self._topology = LiveTopology(config.load_topology())
        self._clock = world.clock
        self._pace = Pace(world.clock)
        self._pace.is_uneasy = alarms.has_active
        # A certificate is looked at with each word that comes: neighbours are asked for one.
        trust.when_revoked(self._pace.stir)
        self._random = world.random
        self._alarms = alarms
        self._started_unix_s = self._clock.unix_s()
        directory = Path(config.directory)
        self._trust = trust
        self._store = KeyStore.open(
            directory / "store", config.node_id, kek, self._clock, self._topology.key_api.retry_window_s
        )
        self._adverts = Adverts(config.node_id)
        self._adverts.adopt(self._topology)
        self._hybrid = end = self._hybrid_end()
        self.routes = HandedRoutes(config.node_id, self._topology, directory, alarms, self._clock)
        self._routing = Routing(config.node_id, self._topology, self.routes.prefer_now)
        machine = Kx(
            *(config.node_id, self._topology, self._store, self._random, self._clock),
            self._routing,
            is_hybrid=lambda initiator: self._topology.tenant_of(initiator).hybrid != "qkd",
        )
        self._relay = KxRunner(machine, self._adverts, self._alarms, self._clock, self._pace)
        self.maintenance = Maintenance(
            *(config.node_id, self._topology, directory / "maintenance.json", self._clock, trust.audit, alarms),
            self._relay.under_way,
        )
        self.maintenance.on_change = self._pace.stir
        self._reserving = Reserving(
            *(config.node_id, self._topology, self._routing, self._adverts, alarms, self._clock),
            lambda link: self._fullness(link) > FULL,
        )
        self._flooding = Flooding(
            *(self._adverts, self._routing, self._relay, self._store.level, self._clock, self.maintenance),
            *(self._reserving, self._pace),
        )
        self._relay.hear = self._flooding.heard
        self._clocks = ClockWatch(config.node_id, self._topology, self._clock, alarms)
        self._relay.hear_clock = self._clocks.note
        self._pool_sync: PoolSync | None = None
        fallback: Fallback | None = None
        notes: Notes | None = None
        pools = self._store.pools
        if end is not None:
            notes = Notes(config.node_id, self._topology, end, self._clock, self._routing.route, self._relay.send_note)
            self._relay.use_notes(notes)
            machine.hybrid = hybrid = HybridKeys(end, notes, self._clock)
            self._pool_sync = PoolSync(hybrid, config.node_id, self._topology, pools, notes, self._clock)
            fallback = Fallback(*(config.node_id, self._topology, pools, hybrid, notes, self._random, self._clock))
        self._commit = GroupCommit(pools, world.worker("consume"))
        applications = Applications()
        self._ahead = FillAhead(
            *(config.node_id, self._topology, pools, self._relay, self._adverts, self._alarms, self._clock),
            fallback,
            applications,
            self._routing,
            self._flooding.changed,
            self.maintenance.all,
            self._reserving.claims,
            self._pace,
        )
        self._watch = AlarmWatch(
            *(config.node_id, self._topology, self._alarms, self._clock, self._adverts),
            self._link_ends,
            self._ahead.levels,
            self._pace,
        )
        interior = NetworkInterior(config.node_id, self._topology, self._store, self._clock, self._relay, notes)
        self._interworking = interworking(
            *(config, self._topology, interior, self._clock, kek, self._alarms, self._trust)
        )
        self._onward: Onward | None = None
        if self._interworking is not None and notes is not None:
            self._onward = Onward(
                *(config.node_id, self._topology, self._store, self._clock, notes),
                *(self._interworking, self._interworking.journal),
            )
        abroad = Abroad(
            *(config.node_id, self._topology, self._store, lambda: self._interworking, self._random, self._clock),
            *(self._relay, notes),
        )
        supply = Supply(config.node_id, self._topology, self._store, self._relay, self._commit, self._ahead, abroad)
        totals = TotalsFile(directory / "totals.db")
        self._supply = TenantSupply(
            supply, self._topology, totals, self._clock, supply.stock, pools.is_repeated, applications
        )
        credentials = (Path(config.certificate), Path(config.private_key), Path(config.ca_certificate))
        self._dial_context = node_context(*credentials, server=False)
        server_context = node_context(*credentials, server=True)
        self._server = InterNodeServer(config.node, server_context, self._trust.is_revoked)
        api_context = https.server_context(*credentials)
        self.contexts: list[Renewed] = [self._dial_context, server_context, api_context]
        """For renewed certificates and added CAs."""
        settings = self._topology.key_api
        self._registry = self._own_saes()
        self._key_api, key_context = key_port(self._supply, self._sae_of, settings, credentials, self._trust)
        self.contexts.append(key_context)
        self._commit.is_handed = self._key_api.is_handed
        if settings.loopback_test:
            self._alarms.raise_alarm(
                "key-api",
                "LoopbackTest",
                "major",
                "loopback_test is on: an SAE may be its own peer; such keys protect nothing",
            )
        self._api_context = api_context
        self._streams = StreamRunner(
            config.node_id,
            lambda sae: known.node if (known := self._topology.sae(sae)) else None,
            self._supply,
            lambda key_id: max(0, pools.hops(key_id) - 1),
            self._random,
            self._clock,
            None if notes is None else notes.service("streams"),
        )
        if notes is not None:
            notes.serve("streams", self._streams.receive)
        router_api = skip.Skip(self._supply, self._sae_of, self._peers, self._random)
        self._skip_api = https.HttpsServer(
            self._trust.guarded(router_api.handle), api_context, is_revoked=self._trust.is_revoked
        )
        self._links: list[LinkWorker[Any]] = []
        self._link_tasks: dict[LinkId, set[asyncio.Task[None]]] = {}
        self._changing = asyncio.Lock()
        self._is_swept = False
        """Whether nothing is left of what the network has no more."""
        port = SdnPort(
            *(config.node_id, self._topology, self._store, self._supply, self._ahead, self._routing, self._links),
            applications,
        )
        self._agent = Agent(
            *(config.node_id, self._topology, port, directory, self._trust, self._alarms, self._clock, api_context),
            self._pace,
        )
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets the error of a connection's task that failed: the node must stop then."""

    async def start(self) -> None:
        """Bring everything up; the node is in service when this returns."""
        self._alarms.on_raised = partial(asyncio.get_running_loop().call_soon_threadsafe, self._pace.stir)
        if self._interworking is not None:
            # First: it voids what was under way before, and nothing new may be among that.
            await self._interworking.start(self._fail)
        for problem in self._tried(self._sweep):
            log.warning("what is gone from the network stays on the disk for now: %s", problem)
        for link_config in self.config.links:
            self._start_link(link_config)
        self._agent.enforce()
        await self._server.start(self.config.inter_node)
        await self._serve_keys()
        if self.config.stream_api is not None:
            await self._streams.start(self.config.stream_api, self._api_context, self._living_sae)
            self._spawn(self._streams.keep_ticking())
        if self.config.skip_api is not None:
            await self._skip_api.start(self.config.skip_api.host, self.config.skip_api.port)
        if self.config.sdn_api is not None:
            await self._agent.start(self.config.sdn_api)
            self._spawn(self._agent.keep_looking())
        if self._onward is not None:
            self._spawn(self._onward.keep_ticking())
        self._spawn(self._relay.keep_ticking())
        self._flooding.watch(self._links)
        self._flooding.on_levels = self._hold_links
        self._spawn(self._flooding.run())
        self._spawn(self._keep_expiring())
        self._spawn(self._keep_pools())
        self._spawn(self._ahead.run())
        self._spawn(self._watch.run())
        log.info("node %s is in service", self.config.node)

    async def _serve_keys(self) -> None:
        await self._key_api.start(self.config.key_api.host, self.config.key_api.port)

    async def stop(self) -> None:
        """Stop in order: no new requests, no new blocks, then the store."""
        await self._key_api.stop()
        await self._skip_api.stop()
        await self._agent.stop()
        if self._onward is not None:
            await self._onward.stop()
        if self._interworking is not None:
            await self._interworking.stop()
        await self._streams.stop()
        self._server.close()
        of_links = [task for tasks in self._link_tasks.values() for task in tasks]
        running = [*self.tasks, *of_links]
        for task in running:
            task.cancel()
        self._ahead.stop()
        await asyncio.gather(*running, return_exceptions=True)
        for runner in self._links:
            await asyncio.to_thread(runner.stop)
        self._alarms.on_raised = lambda: None
        await self._commit.close()
        self._store.close()
        self._supply.close()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        self.tasks.append(asyncio.create_task(work))

    # ── links ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_link(self, link_config: LinkConfig) -> None:
        link = self._topology.link(LinkId(link_config.link))
        role = self._role(link)
        self._store.set_role(link.id, role)
        self._load_preshared(link.id, Path(link_config.preshared_file))
        runner = self._runner(link, role, link_config)
        self._links.append(runner)
        self._link_tasks[link.id] = set()
        for task in runner.start():
            self._keep(link.id, task)
        self._connect(link, role, link_config, "distil" if link.vendor is None else "vendor", runner.serve, runner)
        self._connect(link, role, link_config, "kx", partial(self._relay.serve, link.id), runner)

    def _runner(self, link: Link, role: Role, link_config: LinkConfig) -> LinkWorker[Any]:
        if link.vendor is None:
            return self._distilling(link, role, link_config)
        return vendor_runner(
            link,
            role,
            link_config,
            self.config.pool_octets_max,
            self._store,
            self._alarms,
            self._random,
            self._clock,
            self._pace,
        )

    def _distilling(self, link: Link, role: Role, link_config: LinkConfig) -> LinkRunner:
        pool = self._store.auth_ledger(link.id, AUTH_OCTETS, link.distillation.epsilon_total)
        authentication = LinkAuthentication(pool, self._signatures(link, link_config))
        light = Light(link)
        return LinkRunner(
            link=link.id,
            session=make_session(link, role, light, self._store, authentication, self._random, self._clock),
            authentication=authentication,
            light=light,
            module=Module(Path(link_config.device_socket), link.id, role, partial(light_s, link)),
            store=self._store,
            alarms=self._alarms,
            clock=self._clock,
            pool_octets_max=self.config.pool_octets_max,
            statistics=LinkStatistics(link, role, self._clock),
            pace=self._pace,
        )

    def _connect(
        self,
        link: Link,
        role: Role,
        link_config: LinkConfig,
        service: str,
        serve: Callable[[Channel], Coroutine[object, object, None]],
        runner: LinkWorker[Any],
    ) -> None:
        """Alice dials, Bob listens."""
        if role is Role.BOB:

            def accept(channel: Channel) -> None:
                task = asyncio.create_task(serve(channel))
                # One that is cancelled before its first step has closed nothing.
                task.add_done_callback(lambda _: channel.close())
                self._keep(link.id, task)

            self._server.expect(link.id, service, link.alice, accept)
            return

        async def connect() -> Channel:
            return await dial(
                link_config.peer,
                self._dial_context,
                node=self.config.node,
                peer=link.bob,
                link=link.id,
                service=service,
                is_revoked=self._trust.is_revoked,
            )

        self._keep(link.id, asyncio.create_task(runner.keep_dialling(connect, serve)))

    def _keep(self, link: LinkId, task: asyncio.Task[None]) -> None:
        """A task of a link, or of a connection over it: it ends when the link is taken out; an error in it stops the
        node.
        """
        self._link_tasks[link].add(task)
        task.add_done_callback(self._link_tasks[link].discard)
        task.add_done_callback(self._look_at_end)

    def _look_at_end(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    def _load_preshared(self, link: LinkId, path: Path) -> None:
        """Take the pre-shared secret into the sealed store, then overwrite and remove the file."""
        if not path.exists():
            return
        self._store.add_preshared(link, Secret(path.read_bytes()))
        with path.open("r+b") as out:
            out.write(bytes(path.stat().st_size))
            out.flush()
            os.fsync(out.fileno())
        path.unlink()

    def _signatures(self, link: Link, link_config: LinkConfig) -> Signatures | None:
        """What the policy of the link lets sign while there is no authentication key."""
        if link.distillation.bootstrap != "ml-dsa":
            return None
        if self.config.signing_key is None or link_config.peer_verifying_key is None:
            raise ConfigError([f"link {link.id}: bootstrap = ml-dsa needs signing_key and the peer's verifying key"])
        return load_signatures(Path(self.config.signing_key), Path(link_config.peer_verifying_key))

    # ── growth ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def take(self, config: NodeConfig) -> tuple[str, ...]:
        """Take a changed network in service, without a stop; what changed, in words.

        ConfigError where that cannot be, and then nothing has changed.
        """
        async with self._changing:
            topology = config.load_topology()
            found = change(self._topology, topology)
            found.check_live()
            check_same_node(self.config, config)
            keys = load_verifying_keys(config.verifying_keys)
            for link_config in config.links:
                if link_config.link not in self._link_tasks:
                    self._check_link(link_config, topology)
            # No await from here until everything knows the new network: nothing sees half of it.
            gone = [self._let_go(link.id) for link in found.gone_links if link.id in self._link_tasks]
            self._topology.adopt(topology)
            self.config = config
            problems = self._adopt_network(config, keys)
            self._pace.stir()
            for runner in gone:
                await asyncio.to_thread(runner.stop)
                self._alarms.clear(runner.link)
            self._is_swept = False
            problems += self._tried(self._sweep)
            if problems:
                raise StoreError(f"the change is in force but not all on record; take it again: {'; '.join(problems)}")
            return found.lines

    def _adopt_network(self, config: NodeConfig, keys: Mapping[str, MLDSA65PublicKey]) -> list[str]:
        """Tell every part; what could not be recorded keeps none of the others from knowing."""
        # First: whoever looks for a route now may be given one that was handed.
        self.routes.adopt()
        self._routing.adopt()
        self._registry = self._own_saes()
        if self._hybrid is not None:
            self._hybrid.believe(keys)
        self._adverts.adopt(self._topology)
        problems = self._tried(self.maintenance.adopt)
        self._reserving.adopt()
        self._ahead.adopt()
        problems += self._tried(self._supply.adopt)
        self._watch.adopt()
        for link_config in config.links:
            if link_config.link not in self._link_tasks:
                problems += self._tried(partial(self._start_link, link_config))
        self._flooding.watch(self._links)
        self._flooding.adopt()
        self._agent.enforce()
        return problems

    @staticmethod
    def _tried(step: Callable[[], None]) -> list[str]:
        """Do a step; why it failed, where the disk is to blame."""
        try:
            step()
        except (StoreError, OSError) as error:
            return [str(error)]
        return []

    def _check_link(self, link_config: LinkConfig, topology: Topology) -> None:
        """ConfigError with what keeps a new link from starting."""
        try:
            link = topology.link(LinkId(link_config.link))
        except KeyError:
            raise ConfigError([f"links: the topology has no link {link_config.link!r}"]) from None
        if link.vendor is None:
            self._signatures(link, link_config)
        else:
            vendor_files(link, self._role(link), link_config.vendor)

    def _role(self, link: Link) -> Role:
        return Role.ALICE if link.alice == self.config.node_id else Role.BOB

    def _sweep(self) -> None:
        """Destroy the key of links and SAEs that there are no more, also of such as went while this node was down.

        Whoever has the name of a removed SAE later is somebody else, and gets none of its keys.
        """
        here = {link.id for link in self._topology.links_of(self.config.node_id)}
        for link in self._store.links():
            if link not in here:
                self._store.destroy_link(link, "link removed")
        pools = self._store.pools
        for segment in pools.living():
            pool = segment.pool
            if self._is_gone(pool.initiator) or self._is_gone(pool.target):
                pools.close_segment(pool.side, pool.initiator, pool.target, segment.number, "SAE removed")
        self._store.destroy_of(self._is_gone, "SAE removed")
        self._is_swept = True

    def _is_gone(self, sae: SaeId) -> bool:
        return self._topology.sae(sae) is None and self._topology.foreign(sae) is None

    def _let_go(self, link: LinkId) -> LinkWorker[Any]:
        """Nothing goes over a link any more; its worker still has to be stopped."""
        self._server.forget(link)
        for task in self._link_tasks.pop(link):
            task.cancel()
        self._relay.drop(link)
        runner = next(worker for worker in self._links if worker.link == link)
        self._links.remove(runner)
        return runner

    def _own_saes(self) -> SaeRegistry:
        return SaeRegistry(sae for sae in self._topology.saes if sae.node == self.config.node_id)

    def _sae_of(self, identity: https.PeerIdentity) -> SaeId | None:
        return self._registry.sae_of(identity)

    # ── housekeeping ────────────────────────────────────────────────────────────────────────────────────────────

    def _hold_links(self) -> None:
        hold_links(self._links, self._topology, self.config.node_id, self._adverts, self._clock)

    async def _keep_expiring(self) -> None:
        while True:
            await self._pace.turn(EXPIRE_PERIOD_S, EXPIRE_REST_S, LASTING_S)
            try:
                if not self._is_swept:
                    self._sweep()
                has_space = self._store.expire(self._clock.unix_s())
            except StoreError as error:
                self._alarms.raise_alarm("store", "StorageFull", "critical", str(error))
                continue
            self._alarms.clear("store")
            if has_space:
                # A link whose pool is full may record nothing for long: its alarm must not wait for that.
                for runner in self._links:
                    self._alarms.clear(runner.link, "StorageFull")

    async def _keep_pools(self) -> None:
        # Soon after the start, when neighbours are there, then now and then.
        synced_s = self._clock.monotonic_s() + 2 * POOL_TICK_S - SYNC_PERIOD_S
        while True:
            at_most_s = max(POOL_TICK_S, self._store.pools.rest_s())
            await self._pace.turn(POOL_TICK_S, POOL_REST_S, LASTING_S, at_most_s=at_most_s)
            self._clocks.tick()
            try:
                self._store.pools.tick()
                waiting = self._commit.durable()
                if waiting is not None:
                    await waiting
                if self._pool_sync is not None and self._clock.monotonic_s() - synced_s >= SYNC_PERIOD_S:
                    synced_s = self._clock.monotonic_s()
                    self._pool_sync.tick()
            except StoreError as error:
                self._alarms.raise_alarm("pools", "StorageFull", "critical", str(error))
            else:
                self._alarms.clear("pools")

    def _link_ends(self) -> list[tuple[LinkStatistics, float]]:
        return [(runner.statistics, self._fullness(runner.link)) for runner in self._links]

    def _fullness(self, link: LinkId) -> float:
        """Of a link's pool; at 1 the link makes no more."""
        return self._store.level(link).total_octets / self.config.pool_octets_max

    def _hybrid_end(self) -> HybridEnd | None:
        if self.config.signing_key is None:
            return None
        return load_end(self.config.node, Path(self.config.signing_key), self.config.verifying_keys, self.config.kem)

    # ── what the interfaces ask ─────────────────────────────────────────────────────────────────────────────────

    def status(self) -> dict[str, object]:
        """What `qtrunk status` shows of this node while it is in service; its alarms are on the board."""
        return {
            "node": self.config.node,
            "kme_id": self._topology.kme_id(self.config.node_id),
            "uptime_s": self._clock.unix_s() - self._started_unix_s,
            "links": [runner.statistics.as_json() | self._flooding.state_of(runner.link) for runner in self._links],
            "routes": self.routes.as_json(self._clock.unix_s()),
            "routes_in_use": self._routing.as_json(),
            "maintenance": self.maintenance.as_json(),
            "clock": self._clocks.as_json(),
            "keys": self._store.counts(),
            "pools": ledgers_as_json(self._store.pools.ledgers()),
            "tenants": self._supply.as_json(),
            "interworking": None if self._interworking is None else self._interworking.as_json(),
            "memory": hardening.state(),
        }

    def _peers(self, sae: SaeId) -> list[tuple[SaeId, str]]:
        """Whom an SAE is expected to share keys with, and the key manager of each: as the topology's demands say."""
        others = {other for demand in self._topology.demands if sae in demand.between for other in demand.between}
        known = [self._topology.sae(other) for other in sorted(others - {sae})]
        return [(entry.id, self._topology.kme_id(entry.node)) for entry in known if entry is not None]

    def _living_sae(self, identity: https.PeerIdentity) -> SaeId | None:
        """The SAE of a certificate that is not revoked, while what happens can be recorded."""
        if self._trust.is_revoked(identity) or self._trust.audit.problem is not None:
            return None
        return self._registry.sae_of(identity)

    def receipt(self, key_id: KeyId) -> dict[str, object] | None:
        """What is known here of a key; None: nothing."""
        return self._store.receipt(key_id) or self._store.pools.receipt(key_id)

    def exposure(self) -> dict[str, object]:
        """What this node has of end-to-end key, by how it came."""
        return {"held": self._store.exposure()}

    def ledger(self) -> dict[str, object]:
        """Where every octet of each link's key is or went."""
        return {runner.link: asdict(self._store.ledger(runner.link)) for runner in self._links}
