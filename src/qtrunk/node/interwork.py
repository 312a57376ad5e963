"""Interworking at a border node (ETSI GS QKD 020): wires kms.interwork to its file, to HTTPS and to our own network.

There is one listener for each foreign network, with that network's CA alone, and one client. Effects of the machines
are tasks here; whatever comes of one goes back to its machine. `export` is for keys of our SAEs towards foreign ones,
the port `Interior` for keys of foreign SAEs towards ours. docs/etsi020.md.

Alarms, on the resource `interworking` or the ID of a foreign network:

    KeyNotVoidable       keys that failed here cannot be taken back there: an SAE of theirs has them
    StorageFull          the record cannot be written; nothing is taken or sent
    NeighbourUnreachable its key manager gives no answer
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from qtrunk.api import words020 as words
from qtrunk.api.client020 import Etsi020Client
from qtrunk.api.etsi020 import Etsi020, Peer
from qtrunk.api.https import HttpsServer, Limits, PeerIdentity, client_context, server_context
from qtrunk.base.errors import ConfigError, KeyNotFound, QtrunkError, RequestRefused, RouteUnavailable, StoreError
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.ports import Clock, SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.kms.interwork.file import FILE_NAME, JournalFile
from qtrunk.kms.interwork.receiver import Carry, Receiver, SendAck, Withdraw
from qtrunk.kms.interwork.records import (
    KEPT_S,
    KEYS_PER_REQUEST_MAX,
    Ack,
    AckStatus,
    Consignment,
    Extensions,
    Interior,
    VoidRequest,
)
from qtrunk.kms.interwork.sender import Answer, Sender, SendKeys, SendVoid, Settled, VoidFailed
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.config import NodeConfig
from qtrunk.node.trust import Trust
from qtrunk.topology import ForeignNetwork, Topology

log = logging.getLogger(__name__)

T = TypeVar("T")
RESOURCE = "interworking"
TICK_S = 0.25
FORGET_PERIOD_S = 3600.0
INTERIOR_S = 60.0
"""For our own network to carry keys or to take them back."""
LIMITS = Limits(connections_max=64, body_octets_max=4 << 20, message_octets_max=5 << 20, idle_s=60.0)


def interworking(
    config: NodeConfig,
    topology: Topology,
    interior: Interior,
    clock: Clock,
    kek: Secret,
    alarms: AlarmBoard,
    trust: Trust,
) -> "Interworking | None":
    """The interworking of a border node, None for any other; ConfigError as for `Interworking`."""
    if not any(network.node == config.node_id for network in topology.neighbours):
        return None
    return Interworking(
        node=config.node_id,
        topology=topology,
        journal=JournalFile(Path(config.directory) / FILE_NAME, config.node, kek, clock),
        interior=interior,
        certificate=Path(config.certificate),
        private_key=Path(config.private_key),
        clock=clock,
        alarms=alarms,
        is_revoked=trust.is_revoked,
        why_closed=lambda: trust.audit.problem,
    )


class _Neighbour:
    """One foreign network: its listener and its client."""

    def __init__(self, network: ForeignNetwork, peer: Peer, certificate: Path, private_key: Path) -> None:
        self.network = network
        self._own = (certificate, private_key)
        try:
            ca = Path(network.ca_certificate)
            self._server_context = server_context(certificate, private_key, ca)
            self._client_context = client_context(certificate, private_key, ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                [f"neighbours.{network.id}: {network.ca_certificate} or own certificate: {error}"]
            ) from error
        self.peer = peer
        self.client = Etsi020Client(
            peer, network.address, self._client_context, f"https://{network.listen}{words.ACK_PATH}"
        )
        self.server: HttpsServer | None = None

    async def start(self, exchange: "Interworking", is_revoked: Callable[[PeerIdentity], bool]) -> None:
        where = urlsplit(f"//{self.network.listen}")
        interface = Etsi020(self.peer, exchange)
        self.server = HttpsServer(
            interface.handle, self._server_context, LIMITS, is_revoked=is_revoked, refusal=words.refusal
        )
        await self.server.start(where.hostname or "", where.port or 0)

    def renew(self) -> None:
        """Show the own certificate as it is on the disk now."""
        for context in (self._server_context, self._client_context):
            context.load_cert_chain(*self._own)


class Interworking:
    """What a border node does with the key managers of foreign networks (`api.etsi020.Exchange`)."""

    def __init__(
        self,
        *,
        node: NodeId,
        topology: Topology,
        journal: JournalFile,
        interior: Interior,
        certificate: Path,
        private_key: Path,
        clock: Clock,
        alarms: AlarmBoard,
        is_revoked: Callable[[PeerIdentity], bool] = lambda _identity: False,
        why_closed: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`why_closed` says why nothing may be taken now, if so.

        ConfigError where the files of a foreign network or the own ones cannot be used.
        """
        self._node = node
        self._topology = topology
        self.journal = journal
        self._interior = interior
        self._certificate = certificate
        self._clock = clock
        self._alarms = alarms
        self._is_revoked = is_revoked
        self._why_closed = why_closed
        self._neighbours = {
            network.kme: _Neighbour(network, self._peer(network), certificate, private_key)
            for network in topology.neighbours
            if network.node == node
        }
        self._sender = Sender(journal, clock)
        self._receiver = Receiver(journal, clock)
        self._settling: dict[int, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._moved = asyncio.Event()
        self._seen = self._certificate_seen()
        self._failed: Callable[[BaseException], None] = lambda _error: None

    async def start(self, failed: Callable[[BaseException], None]) -> None:
        """Listen, and go on with what was under way when the process stopped. `failed` hears of bugs: the node must
        stop then."""
        self._failed = failed
        for neighbour in self._neighbours.values():
            await neighbour.start(self, self._is_revoked)
        self._do(self._sender.start)
        self._do(self._receiver.tick)
        self._spawn(self._keep_ticking())

    async def stop(self) -> None:
        """Stop at once: what is under way goes on after the next start."""
        for neighbour in self._neighbours.values():
            if neighbour.server is not None:
                await neighbour.server.stop()
        for settled in self._settling.values():
            if not settled.done():
                settled.set_exception(RouteUnavailable(f"node {self._node} stops"))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.journal.close()

    def as_json(self) -> dict[str, object]:
        """For `qtrunk status`: the foreign networks here, and how many keys stand where."""
        return {"neighbours": [one.network.id for one in self._neighbours.values()], "keys": self.journal.counts()}

    # ── what our own network asks ───────────────────────────────────────────────────────────────────────────────────

    async def export(
        self,
        keys: Sequence[SuppliedKey],
        initiator: SaeId,
        targets: Sequence[SaeId],
        extensions: Extensions | None = None,
    ) -> None:
        """Give keys of one of our SAEs to foreign ones; returns when all targets have all keys.

        RouteUnavailable: they do not, and whatever part of them does is being voided there. RequestRefused: one of the
        targets is reached from another node, or from none. The caller may wipe the keys when this has ended.
        """
        legs = self._legs(targets)
        if self._topology.sae(initiator) is None:
            raise RequestRefused(f"SAE {initiator} is not known in this network")
        if not 1 <= len(keys) <= KEYS_PER_REQUEST_MAX or len({key.key_id for key in keys}) != len(keys):
            raise RequestRefused(f"keys: 1 to {KEYS_PER_REQUEST_MAX} of different key IDs at once")
        self._check_open()
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number = self._do(lambda: self._offer(keys, initiator, legs, extensions or Extensions(), settled))
        try:
            await settled
        except asyncio.CancelledError:
            # Nobody will give them to the initiator.
            self._later(lambda: self._sender.void([key.key_id for key in keys], legs))
            raise
        finally:
            self._settling.pop(number, None)

    def take_back(self, key_ids: Sequence[KeyId], targets: Sequence[SaeId]) -> None:
        """Void keys that were exported and that the initiator was not given after all."""
        self._do(lambda: self._sender.void(key_ids, self._legs(targets)))

    def _offer(
        self,
        keys: Sequence[SuppliedKey],
        initiator: SaeId,
        legs: Mapping[str, tuple[SaeId, ...]],
        extensions: Extensions,
        settled: asyncio.Future[None],
    ) -> int:
        number = self._sender.offer(keys, initiator, legs, extensions)
        self._settling[number] = settled
        return number

    def _legs(self, targets: Sequence[SaeId]) -> dict[str, tuple[SaeId, ...]]:
        legs: dict[str, tuple[SaeId, ...]] = {}
        for target in dict.fromkeys(targets):
            network = self._topology.foreign(target)
            if network is None or network.node != self._node:
                raise RequestRefused(f"SAE {target} is not reached through a foreign network at node {self._node}")
            legs[network.kme] = (*legs.get(network.kme, ()), target)
        if not legs:
            raise RequestRefused("targets: at least one is needed")
        return legs

    # ── what a foreign key manager asks ─────────────────────────────────────────────────────────────────────────────

    def accept(self, consignment: Consignment) -> None:
        """Take keys for our SAEs, durably."""
        self._check_open()
        self._do(lambda: self._receiver.accept(consignment))

    def void(self, request: VoidRequest) -> tuple[KeyId, ...]:
        """Take keys back, durably: theirs from our SAEs, or ours, which their side does not want after all."""
        if not self._is_ours(request.initiator):
            return self._do(lambda: self._receiver.void(request))
        key_ids = request.key_ids or self._sender.between(request.peer, request.initiator, request.targets)
        statuses = self._do(lambda: self._sender.voided_by_peer(request.peer, key_ids))
        if request.callback and statuses:
            self._spawn(self._tell_once(request, statuses))
        return key_ids

    def acked(self, peer: str, acks: Sequence[Ack]) -> None:
        """What a peer says of keys that we sent, or of our void of keys that it sent."""
        ours = [ack for ack in acks if self._is_ours(ack.initiator)]
        theirs = [ack for ack in acks if not self._is_ours(ack.initiator)]
        unknown: list[KeyNotFound] = []
        for some, hear in ((ours, self._sender.acked), (theirs, self._receiver.acked)):
            if some:
                try:
                    self._do(lambda hear=hear, some=some: hear(peer, some))  # type: ignore[misc]
                except KeyNotFound as error:
                    unknown.append(error)
        if len(unknown) == bool(ours) + bool(theirs):
            raise unknown[0]

    async def outcomes(
        self, peer: str, initiator: SaeId, key_ids: Sequence[KeyId], within_s: float
    ) -> Mapping[KeyId, AckStatus] | None:
        """What became of keys; None where that is not known of all in time."""
        if self._is_ours(initiator):
            return self._do(lambda: self._sender.voided_by_peer(peer, key_ids))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while True:
                    moved = self._moved
                    found = self._receiver.outcomes(peer, key_ids)
                    ended = {key_id: status for key_id, status in found.items() if status is not None}
                    if len(ended) == len(found):
                        return ended
                    await moved.wait()
        return None

    def is_held(self, key_ids: Sequence[KeyId]) -> bool:
        """Whether any of these IDs is associated with a key here."""
        return self.journal.is_held(key_ids)

    def _is_ours(self, sae: SaeId) -> bool:
        return self._topology.sae(sae) is not None

    def _peer(self, network: ForeignNetwork) -> Peer:
        return Peer(
            kme=network.kme,
            fingerprint=network.fingerprint,
            callback_host=network.address,
            is_theirs=lambda sae: (found := self._topology.foreign(sae)) is not None and found.id == network.id,
            is_ours=self._is_ours,
        )

    def _check_open(self) -> None:
        why = self._why_closed()
        if why is not None:
            raise StoreError(why)

    # ── effects ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _do(self, call: Callable[[], T]) -> T:
        """Call a machine and start whatever it wants done, also where it raised."""
        try:
            return call()
        finally:
            for effect in self._sender.effects():
                match effect:
                    case SendKeys():
                        self._spawn(self._send_keys(effect))
                    case SendVoid():
                        self._spawn(self._send_void(effect, self._sender))
                    case Settled():
                        self._settle(effect)
                    case VoidFailed():
                        self._note_void_failed(effect)
            for one in self._receiver.effects():
                match one:
                    case Carry():
                        self._spawn(self._carry(one))
                    case Withdraw():
                        self._spawn(self._withdraw(one))
                    case SendAck():
                        self._spawn(self._send_ack(one))
                    case SendVoid():
                        self._spawn(self._send_void(one, self._receiver))
            self._moved.set()
            self._moved = asyncio.Event()

    def _later(self, call: Callable[[], None]) -> None:
        """As `_do`, for what no caller waits for: what cannot be recorded now is tried again by the machine."""
        try:
            self._do(call)
        except QtrunkError as error:
            self._alarms.raise_alarm(RESOURCE, "StorageFull", "critical", str(error))
            log.error("interworking: %s", error)  # noqa: TRY400 (the text says it all; a trace could hold key)

    def _settle(self, effect: Settled) -> None:
        settled = self._settling.get(effect.consignment)
        if settled is None or settled.done():
            return
        if effect.error is None:
            settled.set_result(None)
        else:
            settled.set_exception(effect.error)

    def _note_void_failed(self, effect: VoidFailed) -> None:
        text = f"{len(effect.key_ids)} keys cannot be taken back from KME {effect.peer}, such as {effect.key_ids[0]}"
        log.warning("interworking: %s", text)
        self._alarms.raise_alarm(RESOURCE, "KeyNotVoidable", "warning", text)

    async def _send_keys(self, effect: SendKeys) -> None:
        if self._sender.is_under_way(effect.consignment):
            answer = await self._answer(effect.peer, lambda client: client.ext_keys(effect))
            self._later(lambda: self._sender.answered(effect, answer))

    async def _send_void(self, effect: SendVoid, machine: Sender | Receiver) -> None:
        answer = await self._answer(effect.peer, lambda client: client.void(effect))
        self._later(lambda: machine.void_answered(effect, answer))

    async def _send_ack(self, effect: SendAck) -> None:
        answer = await self._answer(effect.peer, lambda client: client.ack(effect.callback, [effect.ack]))
        self._later(lambda: self._receiver.told(effect, answer))

    async def _tell_once(self, request: VoidRequest, statuses: Mapping[KeyId, AckStatus]) -> None:
        """The acks of a void of our own keys; who misses them asks again."""
        acks = [
            Ack(
                status=status,
                key_ids=tuple(key_id for key_id, one in statuses.items() if one is status),
                initiator=request.initiator,
                targets=request.targets,
            )
            for status in dict.fromkeys(statuses.values())
        ]
        await self._answer(request.peer, lambda client: client.ack(request.callback, acks))

    async def _carry(self, effect: Carry) -> None:
        is_done = False
        try:
            async with asyncio.timeout(INTERIOR_S):
                await self._interior.carry(
                    [key.key_id for key in effect.keys],
                    [key.material for key in effect.keys],
                    *(effect.initiator, effect.targets, effect.extensions),
                )
            is_done = True
        except TimeoutError:
            log.warning("interworking: keys for %s were not carried in time", ", ".join(effect.targets))
        except QtrunkError as error:
            log.warning("interworking: keys for %s: %s", ", ".join(effect.targets), error)
        self._later(lambda: self._receiver.carried(effect, is_done=is_done))

    async def _withdraw(self, effect: Withdraw) -> None:
        delivered: set[KeyId] | None = None
        try:
            async with asyncio.timeout(INTERIOR_S):
                delivered = await self._interior.void(effect.key_ids, effect.targets)
        except TimeoutError:
            log.warning("interworking: keys for %s were not taken back in time", ", ".join(effect.targets))
        except QtrunkError as error:
            log.warning("interworking: void for %s: %s", ", ".join(effect.targets), error)
        self._later(lambda: self._receiver.withdrawn(effect, delivered))

    async def _answer(self, peer: str, ask: Callable[[Etsi020Client], Coroutine[object, object, Answer]]) -> Answer:
        """What a peer answers; none where the topology does not name it any more."""
        neighbour = self._neighbours.get(peer)
        if neighbour is None:
            return Answer(None, why=f"KME {peer} is no neighbour any more")
        answer = await ask(neighbour.client)
        if answer.status is None:
            text = f"KME {peer} at {neighbour.network.address}: {answer.why}"
            if self._alarms.raise_alarm(neighbour.network.id, "NeighbourUnreachable", "major", text):
                log.warning("interworking: %s", text)
        else:
            self._alarms.clear(neighbour.network.id, "NeighbourUnreachable")
        return answer

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed(error)

    # ── now and then ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _keep_ticking(self) -> None:
        forgot_s = self._clock.monotonic_s()
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self._do(self._sender.tick)
                self._do(self._receiver.tick)
                if self._clock.monotonic_s() - forgot_s >= FORGET_PERIOD_S:
                    forgot_s = self._clock.monotonic_s()
                    self.journal.forget(self._clock.unix_s() - KEPT_S)
            except StoreError as error:
                self._alarms.raise_alarm(RESOURCE, "StorageFull", "critical", str(error))
            else:
                self._alarms.clear(RESOURCE, "StorageFull")
            self._look_at_certificate()

    def _look_at_certificate(self) -> None:
        try:
            seen = self._certificate_seen()
            if seen != self._seen:
                for neighbour in self._neighbours.values():
                    neighbour.renew()
                self._seen = seen
        except (OSError, ssl.SSLError) as error:
            # Half written, perhaps: the next look finds the rest. `node.trust` has the alarm.
            log.warning("interworking: certificate %s: %s", self._certificate, error)

    def _certificate_seen(self) -> tuple[int, int]:
        stat = self._certificate.stat()
        return stat.st_mtime_ns, stat.st_ino
