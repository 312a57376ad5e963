"""Key streams (ETSI GS QKD 004) of a node in the real world: drives the machine of `kms.streams` on the event loop.

Keys come from the node's own KeySupply, notes travel by a `PeerNotes`. Without one, streams between two SAEs of this
node are all there is; an OPEN_CONNECT towards another node is answered with status 4.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Hashable, Sequence

from qtrunk.api.etsi004 import Etsi004Server
from qtrunk.api.tls import PeerIdentity
from qtrunk.base.errors import QtrunkError
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.ports import Clock, KeySupply, PeerNotes, Random, SuppliedKey
from qtrunk.kms.streamend import Answer, Collect, Effect, Initiate, Tell
from qtrunk.kms.streamnotes import Qos
from qtrunk.kms.streams import Streams
from qtrunk.node.config import Address

log = logging.getLogger(__name__)

TICK_S = 0.1


class StreamRunner:
    """The key streams of one node; answers `api.etsi004.StreamCalls`."""

    def __init__(
        self,
        node: NodeId,
        node_of: Callable[[SaeId], NodeId | None],
        supply: KeySupply,
        hops: Callable[[KeyId], int],
        random: Random,
        clock: Clock,
        notes: PeerNotes | None = None,
    ) -> None:
        self._node = node
        self._node_of = node_of
        self._supply = supply
        self._notes = notes
        self._hops = hops
        self._machine = Streams(node, self._reachable, supply.status, random, clock)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._bug: BaseException | None = None
        self._stirred = asyncio.Event()
        """Something was done here: there may be time-outs to watch."""
        self._server: Etsi004Server | None = None

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(
        self, caller: SaeId, source: SaeId, destination: SaeId, asked: Qos, ksid: bytes | None, holder: Hashable
    ) -> Answer:
        """OPEN_CONNECT."""
        return await self._wait(*self._machine.open(caller, source, destination, asked, ksid, holder))

    async def get_key(self, caller: SaeId, ksid: bytes, index: int, metadata_size: int) -> Answer:
        """GET_KEY."""
        return await self._wait(*self._machine.get_key(caller, ksid, index, metadata_size))

    async def close(self, caller: SaeId, ksid: bytes) -> Answer:
        """CLOSE."""
        return await self._wait(*self._machine.close(caller, ksid))

    def released(self, holder: Hashable) -> None:
        """The connection `holder` has ended."""
        self._machine.released(holder)

    # ── the world ───────────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, node: NodeId, octets: bytes) -> None:
        """A note from `node`: whoever calls this vouches for where it came from. WireError where it is none."""
        self._carry_out(self._machine.receive(node, octets))

    async def keep_ticking(self) -> None:
        """Drive the machine's time-outs; raise the error that nobody foresaw where there was one."""
        while True:
            if self._machine.is_empty and self._bug is None:
                self._stirred.clear()
                await self._stirred.wait()
            await asyncio.sleep(TICK_S)
            if self._bug is not None:
                raise self._bug
            self._carry_out(self._machine.tick())

    async def start(
        self, address: Address, context: ssl.SSLContext, sae_of: Callable[[PeerIdentity], SaeId | None]
    ) -> int:
        """Serve applications; the port. `keep_ticking` must run, too."""
        self._server = Etsi004Server(self, sae_of, context)
        return await self._server.start(address.host, address.port)

    async def stop(self) -> None:
        """Give up what is under way; keys that are on their way here are lost."""
        if self._server is not None:
            await self._server.stop()
        for task in self._jobs:
            task.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    def _reachable(self, sae: SaeId) -> NodeId | None:
        """The node of an SAE that notes can be sent to."""
        node = self._node_of(sae)
        return node if node == self._node or self._notes is not None else None

    async def _wait(self, ticket: int, effects: Sequence[Effect]) -> Answer:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = answer
        try:
            self._carry_out(effects)
            return await answer
        except asyncio.CancelledError:
            self._carry_out(self._machine.cancel(ticket))
            raise
        finally:
            del self._waiting[ticket]

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        self._stirred.set()
        for effect in effects:
            match effect:
                case Answer():
                    waiting = self._waiting.get(effect.ticket)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(effect)
                case Tell() if effect.node == self._node:
                    asyncio.get_running_loop().call_soon(self._receive_own, effect.octets)
                case Tell():
                    if self._notes is not None:
                        self._notes.tell(effect.node, effect.octets)
                case Initiate() | Collect():
                    task = asyncio.create_task(self._work(effect))
                    self._jobs.add(task)
                    task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled():
            self._bug = self._bug or task.exception()
        self._stirred.set()

    def _receive_own(self, octets: bytes) -> None:
        self.receive(self._node, octets)

    async def _work(self, effect: Initiate | Collect) -> None:
        outcome: Sequence[SuppliedKey] | QtrunkError
        hops = 0
        try:
            if isinstance(effect, Initiate):
                outcome = await self._supply.initiate(effect.initiator, [effect.target], effect.number, effect.key_bits)
                hops = self._hops(outcome[0].key_id)
            else:
                outcome = await self._supply.collect(effect.target, effect.initiator, effect.key_ids)
        except QtrunkError as error:
            log.info("streams: %s: %s", type(effect).__name__, error)
            outcome = error
        self._carry_out(self._machine.supplied(effect.job, outcome, hops))
