"""One trusted node: wires the pure machines to clock, dice, disk, sockets and modules. Nothing is decided here."""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from functools import partial
from pathlib import Path

from qtrunk.api import admin, etsi014, https
from qtrunk.base.errors import ConfigError, StoreError
from qtrunk.base.ids import LinkId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.distil.authentication import AUTH_OCTETS, Signatures
from qtrunk.kms.seal import load_or_make_kek
from qtrunk.kms.store import KeyStore
from qtrunk.node.advert import ADVERT_PERIOD_S, Adverts, LinkLevel
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.authentication import LinkAuthentication, load_signatures
from qtrunk.node.channel import Channel, InterNodeServer, dial, node_context
from qtrunk.node.config import LinkConfig, NodeConfig
from qtrunk.node.device import Module
from qtrunk.node.kxrunner import KxRunner
from qtrunk.node.linkend import LinkRunner
from qtrunk.node.linkstate import LinkStatistics
from qtrunk.node.supply import Supply
from qtrunk.node.wiring import make_session
from qtrunk.node.world import SystemClock, SystemRandom
from qtrunk.plan.light import Light
from qtrunk.relay.kx import Kx
from qtrunk.stages import Role
from qtrunk.topology import Link

log = logging.getLogger(__name__)

EXPIRE_PERIOD_S = 5.0


class Node:
    """A node process's contents."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.tasks: list[asyncio.Task[None]] = []
        self._topology = config.load_topology()
        self._clock = SystemClock()
        self._random = SystemRandom(config.random_device)
        self._alarms = AlarmBoard(self._clock)
        self._started_unix_s = self._clock.unix_s()
        directory = Path(config.directory)
        self._store = KeyStore.open(
            directory / "store", config.node_id, load_or_make_kek(directory / "kek"), self._clock
        )
        self._adverts = Adverts(config.node_id)
        self._relay = KxRunner(
            Kx(
                config.node_id,
                self._topology,
                self._store,
                self._random,
                self._clock,
                lambda: self._adverts.unusable_links(self._clock.monotonic_s()),
            ),
            self._adverts,
            self._alarms,
            self._clock,
        )
        self._supply = Supply(config.node_id, self._topology, self._store, self._relay, self._adverts, self._clock)
        credentials = (Path(config.certificate), Path(config.private_key), Path(config.ca_certificate))
        self._dial_context = node_context(*credentials, server=False)
        self._server = InterNodeServer(config.node, node_context(*credentials, server=True))
        api_context = https.server_context(*credentials)
        self._key_api = https.HttpsServer(etsi014.Etsi014(self._supply, self._registered_sae).handle, api_context)
        self._admin_api = https.HttpsServer(
            admin.Admin(self.status, self._store.receipt, self._ledger).handle, api_context
        )
        self._links: list[LinkRunner] = []
        self._connections: set[asyncio.Task[None]] = set()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets the error of a connection's task that failed: the node must stop then."""

    async def start(self) -> None:
        """Bring everything up; the node is in service when this returns."""
        for link_config in self.config.links:
            self._start_link(link_config)
        await self._server.start(self.config.inter_node)
        await self._key_api.start(self.config.key_api.host, self.config.key_api.port)
        await self._admin_api.start(self.config.admin_api.host, self.config.admin_api.port)
        self._spawn(self._relay.keep_ticking())
        self._spawn(self._keep_advertising())
        self._spawn(self._keep_expiring())
        log.info("node %s is in service", self.config.node)

    async def stop(self) -> None:
        """Stop in order: no new requests, no new blocks, then the store."""
        await self._key_api.stop()
        await self._admin_api.stop()
        self._server.close()
        running = [*self.tasks, *self._connections]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for runner in self._links:
            await asyncio.to_thread(runner.stop)
        self._store.close()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        self.tasks.append(asyncio.create_task(work))

    # ── links ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_link(self, link_config: LinkConfig) -> None:
        link = self._topology.link(LinkId(link_config.link))
        role = Role.ALICE if link.alice == self.config.node_id else Role.BOB
        self._store.set_role(link.id, role)
        self._load_preshared(link.id, Path(link_config.preshared_file))
        pool = self._store.auth_ledger(link.id, AUTH_OCTETS, link.distillation.epsilon_total)
        authentication = LinkAuthentication(pool, self._signatures(link, link_config))
        light = Light(link)
        runner = LinkRunner(
            link=link.id,
            role=role,
            session=make_session(link, role, light, self._store, authentication, self._random, self._clock),
            authentication=authentication,
            light=light,
            module=Module(Path(link_config.device_socket), link.id, role),
            store=self._store,
            alarms=self._alarms,
            clock=self._clock,
            pool_octets_max=self.config.pool_octets_max,
            statistics=LinkStatistics(link, role, self._clock),
        )
        self._links.append(runner)
        self.tasks += runner.start()
        self._connect(link, role, link_config, "distil", runner.serve, runner)
        self._connect(link, role, link_config, "kx", partial(self._relay.serve, link.id), runner)

    def _connect(
        self,
        link: Link,
        role: Role,
        link_config: LinkConfig,
        service: str,
        serve: Callable[[Channel], Coroutine[object, object, None]],
        runner: LinkRunner,
    ) -> None:
        """Alice dials, Bob listens."""
        if role is Role.BOB:
            self._server.expect(link.id, service, link.alice, lambda channel: self._adopt(serve(channel)))
            return

        async def connect() -> Channel:
            return await dial(
                link_config.peer,
                self._dial_context,
                node=self.config.node,
                peer=link.bob,
                link=link.id,
                service=service,
            )

        self._spawn(runner.keep_dialling(connect, serve))

    def _adopt(self, work: Coroutine[object, object, None]) -> None:
        """Run a connection's task; forget it when it ends, but let its bugs stop the node."""
        task = asyncio.create_task(work)
        self._connections.add(task)

        def ended(ended_task: asyncio.Task[None]) -> None:
            self._connections.discard(ended_task)
            error = None if ended_task.cancelled() else ended_task.exception()
            if error is not None and not self.failed.done():
                self.failed.set_exception(error)

        task.add_done_callback(ended)

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

    # ── housekeeping ────────────────────────────────────────────────────────────────────────────────────────────

    async def _keep_advertising(self) -> None:
        while True:
            levels = [
                LinkLevel(
                    link=runner.link,
                    octets=(level := self._store.level(runner.link)).own_octets,
                    fill_bps=runner.statistics.rates_bps()[1] / 2,
                    is_usable=level.own_octets > 0 and self._relay.is_up(runner.link),
                )
                for runner in self._links
            ]
            sequence = int(self._clock.unix_s() * 1000)
            self._relay.advertise(self._adverts.note_own(levels, sequence, self._clock.monotonic_s()))
            await asyncio.sleep(ADVERT_PERIOD_S)

    async def _keep_expiring(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_PERIOD_S)
            try:
                self._store.expire(self._clock.unix_s())
            except StoreError as error:
                self._alarms.raise_alarm("store", "StorageFull", "critical", str(error))
            else:
                self._alarms.clear("store")

    # ── what the interfaces ask ─────────────────────────────────────────────────────────────────────────────────

    def _registered_sae(self, identity: https.PeerIdentity) -> SaeId | None:
        """The SAE of this node that a certificate belongs to."""
        for candidate in identity.candidates:
            sae = self._topology.sae(SaeId(candidate))
            if sae is not None and sae.node == self.config.node_id:
                return sae.id
        return None

    def status(self) -> dict[str, object]:
        """What `qtrunk status` shows of this node."""
        return {
            "node": self.config.node,
            "kme_id": self._topology.kme_id(self.config.node_id),
            "uptime_s": self._clock.unix_s() - self._started_unix_s,
            "links": [runner.statistics.as_json() for runner in self._links],
            "keys": self._store.counts(),
            "alarms": self._alarms.as_json(),
        }

    def _ledger(self) -> dict[str, object]:
        return {runner.link: asdict(self._store.ledger(runner.link)) for runner in self._links}
