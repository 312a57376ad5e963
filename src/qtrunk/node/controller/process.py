"""One controller in the real world: the machine (`control.controller`), its lease, its store, its nodes.

Once a period: keep up the lease, ask every node for its status, plan, hand out. Asking takes at most a fifth of the
time: after a long round there is a rest, in which only the lease is kept up. Who does not hold the lease asks nothing
and hands out nothing. Store or lease out of reach: it follows until they are back, and nodes go on.
"""

import asyncio
import contextlib
import logging
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from qtrunk.api.alarms import Said
from qtrunk.api.jsonclient import Service
from qtrunk.api.tls import client_context
from qtrunk.base.errors import NotAuthorised, QtrunkError, RequestRefused, StoreError
from qtrunk.base.ids import NodeId
from qtrunk.base.ports import Clock
from qtrunk.control import telemetry as words
from qtrunk.control.alarms import alarm_id
from qtrunk.control.controller import Controller, Hand
from qtrunk.control.telemetry import Telemetry
from qtrunk.node.controller.config import ControllerConfig
from qtrunk.node.controller.database import Postgres, open_database
from qtrunk.node.controller.lease import FileLease, Lease, RowLease
from qtrunk.node.controller.store import ControlStore
from qtrunk.node.world import SystemClock
from qtrunk.relay.route import disjoint_routes

log = logging.getLogger(__name__)

PERIOD_S = 2.0
REST_TIMES, REST_MAX_S = 4.0, 5.0
NOTE_S = 10.0
"""Telemetry goes into the store so often; the machine sees all of it."""
FORGET_S = 3600.0
AT_ONCE = 8


class ControllerRunner:
    """One controller process's contents."""

    def __init__(self, config: ControllerConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        topology = config.load_topology()
        self.machine = Controller(config.name, topology, lambda a, b, n, away: disjoint_routes(topology, a, b, n, away))
        self._database = open_database(config.store)
        self.store = ControlStore(self._database)
        self._lease: Lease = (
            RowLease(self._database, f"{config.name} {secrets.token_hex(8)}")
            if isinstance(self._database, Postgres)
            else FileLease(Path(config.store).with_suffix(".lease"))
        )
        credentials = (Path(config.certificate), Path(config.private_key), Path(config.ca_certificate))
        context = client_context(*credentials)
        self._services = {
            NodeId(node): Service(address.host, address.port, context, keeps=True)
            for node, address in config.nodes.items()
        }
        self._pool = ThreadPoolExecutor(AT_ONCE, "poll")
        self._noted_s: dict[NodeId, float] = {}
        self._rest_until_s = float("-inf")
        self._forgot_s = self.clock.monotonic_s()
        self.problems: dict[NodeId, str] = {}
        """Nodes that did not answer the last time, and why."""
        self.altered_audit: set[NodeId] = set()
        """Nodes whose audit log is not what it was."""
        self.topology_version = self.store.note_topology(topology.to_dict(), self.clock.unix_s())

    async def run(self) -> None:
        """For ever."""
        # Not while it leads: the lease would be over before the plan of a large network is made.
        await asyncio.to_thread(self.machine.prepare)
        while True:
            try:
                await self.step()
            except StoreError as error:
                log.warning("%s: follows, since %s", self.config.name, error)
                self.machine.follow()
            await asyncio.sleep(PERIOD_S)

    async def step(self) -> None:
        """Once: StoreError where the lease or the store is out of reach."""
        await self._keep_lease()
        asked_s = self.clock.monotonic_s()
        if not self.machine.is_leading or asked_s < self._rest_until_s:
            return
        loop = asyncio.get_running_loop()
        found = await asyncio.gather(*(loop.run_in_executor(self._pool, self._ask, node) for node in self._services))
        now_s = self.clock.monotonic_s()
        self._rest_until_s = now_s + min(REST_MAX_S, REST_TIMES * (now_s - asked_s))
        for telemetry in found:
            if telemetry is not None:
                self.machine.note(telemetry, now_s)
                await asyncio.to_thread(self._note, telemetry, now_s)
        version = self.machine.version
        hands = await asyncio.to_thread(self.machine.tick, now_s)
        if self.machine.version != version:
            await asyncio.to_thread(self._record_plan)
        await asyncio.gather(*(loop.run_in_executor(self._pool, self._hand, hand) for hand in hands))
        if now_s - self._forgot_s > FORGET_S:
            self._forgot_s = now_s
            await asyncio.to_thread(self.store.forget, self.clock.unix_s())

    def status(self) -> dict[str, object]:
        """What this controller says of itself."""
        machine = self.machine
        return {
            "controller": self.config.name,
            "network": machine.topology.name,
            "topology_version": self.topology_version,
            "is_leading": machine.is_leading,
            "fencing": machine.fencing,
            "plan_version": machine.version,
            "unusable_links": sorted(machine.unusable),
            "drained_links": sorted(machine.drained),
            "silent_nodes": dict(sorted(self.problems.items())) if machine.is_leading else {},
            "altered_audit": sorted(self.altered_audit),
        }

    async def say(self, id_: str, word: str, said: Said) -> dict[str, object]:
        """An operator's word on an alarm, at every node that has it; QtrunkError where none has, or none takes it."""
        having = [node for node in self._services if self._has_alarm(node, id_)]
        if not having:
            raise RequestRefused(f"id: no node that answers has an alarm {id_}")
        loop = asyncio.get_running_loop()
        path, body = f"/admin/v1/alarms/{id_}/{word}", msgspec.to_builtins(said)
        body = {name: value for name, value in body.items() if value is not None}

        def ask(node: NodeId) -> QtrunkError | None:
            try:
                self._services[node].ask("POST", path, body)
            except QtrunkError as error:
                return error
            return None

        answers = await asyncio.gather(*(loop.run_in_executor(self._pool, ask, node) for node in having))
        refusals = {node: error for node, error in zip(having, answers, strict=True) if error is not None}
        if len(refusals) == len(having):
            raise next(iter(refusals.values()))
        done = sorted(set(having) - refusals.keys())
        return {"word": word, "nodes": done, "refused": {node: str(error) for node, error in sorted(refusals.items())}}

    def _has_alarm(self, node: NodeId, id_: str) -> bool:
        telemetry = self.machine.telemetry(node, self.clock.monotonic_s())
        alarms = () if telemetry is None else (*telemetry.alarms.active, *telemetry.alarms.shelved)
        return any(id_ == (one.id or alarm_id(one.resource, one.type, one.qualifier)) for one in alarms)

    def close(self) -> None:
        """Let another lead at once."""
        with contextlib.suppress(StoreError):
            self._lease.release()
        self._pool.shutdown(cancel_futures=True)
        for service in self._services.values():
            service.close()
        self._database.close()

    async def _keep_lease(self) -> None:
        token = await asyncio.to_thread(self._lease.hold)
        if token == 0:
            self.machine.follow()
        elif token != self.machine.fencing:
            last = await asyncio.to_thread(self.store.last_version)
            self.machine.lead(token, last)
            log.info("%s leads with token %d", self.config.name, token)

    def _ask(self, node: NodeId) -> Telemetry | None:
        try:
            found = words.decode(self._services[node].ask("GET", "/admin/v1/status"), node)
        except QtrunkError as error:
            self.problems[node] = str(error)
            return None
        self.problems.pop(node, None)
        return found

    def _note(self, telemetry: Telemetry, now_s: float) -> None:
        node = NodeId(telemetry.node)
        if now_s - self._noted_s.get(node, -1e18) < NOTE_S:
            return
        self._noted_s[node] = now_s
        if self.store.altered_audit(telemetry):
            self.altered_audit.add(node)
            log.error("the audit log of node %s has another record, or fewer, than before", node)
        self.store.note_telemetry(telemetry, self.clock.unix_s())

    def _record_plan(self) -> None:
        machine = self.machine
        now_s = self.clock.unix_s()
        self.store.note_orders(machine.fencing, machine.version, machine.name, machine.routes, now_s)

    def _hand(self, hand: Hand) -> None:
        node = NodeId(hand.order.node)
        try:
            self._services[node].ask("PUT", "/admin/v1/routes", msgspec.to_builtins(hand.order))
        except NotAuthorised as error:
            # It has heard of a later holder of the lease; the next look at its status tells which.
            log.warning("%s: node %s refuses: %s", self.config.name, node, error)
        except QtrunkError as error:
            self.problems[node] = str(error)
