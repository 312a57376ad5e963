"""Keys of foreign initiators behind the border: the port `Interior` over the whole of our own network.

Keys for SAEs of the border node itself have nowhere to travel: they go to its own store. Those for SAEs of other nodes
are relayed hop by hop like any other end-to-end key, except that their octets are given (`relay.kx.Kx.carry`). A void
goes to the target's node as a signed note (`node.notes`), is on its record before it answers, and leaves a tombstone
for a key that has not come: none is given out afterwards, whatever arrives late. Notes may be lost; they are repeated
until the answer is there.

A node lets keys be voided, or buried, only by a border node, and only keys of that node's foreign networks.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Protocol

import msgspec

from qtrunk.base.errors import NotAuthorised, RequestRefused, RouteUnavailable, WireError
from qtrunk.base.ids import KeyId, NodeId, SaeId, parse_key_id
from qtrunk.base.ports import Clock
from qtrunk.base.secret import Secret
from qtrunk.base.wire import Message, decode, encode
from qtrunk.kms.interwork.records import KEYS_PER_REQUEST_MAX, Extensions
from qtrunk.kms.store import KeyStore
from qtrunk.relay.cargo import origin_of
from qtrunk.relay.messages import KEYS_MAX
from qtrunk.topology import Topology

log = logging.getLogger(__name__)

ANSWER_S = 20.0
"""For a node to answer a void; whoever asked asks again later."""
REPEAT_S = 1.0
_VOID, _VOIDED = "foreign-void", "foreign-voided"
_KeyIds = Annotated[list[Annotated[str, msgspec.Meta(max_length=36)]], msgspec.Meta(max_length=KEYS_PER_REQUEST_MAX)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class ForeignVoid(Message, frozen=True, tag="foreign-void"):
    """A border node: these keys shall be given to nobody any more."""

    number: _Number
    """The sender's, to tell answers apart; the same in each repetition."""
    key_ids: _KeyIds


class ForeignVoided(Message, frozen=True, tag="foreign-voided"):
    """The answer: done, but for these, which an SAE has."""

    number: _Number
    delivered: _KeyIds


class Carrier(Protocol):
    """Brings given keys to other nodes (`node.kxrunner.KxRunner`)."""

    async def carry(
        self, initiator: SaeId, targets: Sequence[SaeId], keys: Sequence[tuple[KeyId, Secret]]
    ) -> dict[str, object]:
        """Return when every target's node has all keys, the receipt; QtrunkError when that is not sure."""


class NoteCarrier(Protocol):
    """Signed notes between nodes (`node.notes.Notes`)."""

    def serve(self, service: str, receive: Callable[[NodeId, bytes], None]) -> None:
        """Hand notes of a service to `receive`, with their sender."""

    def knows(self, node: NodeId) -> bool:
        """Whether notes of this node are believed here."""

    def tell(self, node: NodeId, service: str, octets: bytes) -> None:
        """Send a note; it may be lost. RouteUnavailable when there is no way at all."""


class NetworkInterior:
    """Every node's part in it: a border node carries and voids, any node stores and lets itself be told to void."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        store: KeyStore,
        clock: Clock,
        relay: Carrier,
        notes: NoteCarrier | None,
    ) -> None:
        """Without `notes` (a node without signing key) keys for SAEs of other nodes are refused."""
        self._node = node
        self._topology = topology
        self._store = store
        self._clock = clock
        self._relay = relay
        self._notes = notes
        self._refused: set[KeyId] = set()
        """Keys that never left here, for lack of `notes`."""
        self._numbers = itertools.count(int(clock.unix_s() * 1000))
        self._waiting: dict[tuple[NodeId, int], asyncio.Future[set[KeyId]]] = {}
        if notes is not None:
            notes.serve(_VOID, self._asked)
            notes.serve(_VOIDED, self._answered)

    async def carry(
        self,
        key_ids: Sequence[KeyId],
        materials: Sequence[Secret],
        initiator: SaeId,
        targets: Sequence[SaeId],
        extensions: Extensions,
    ) -> None:
        """Bring keys to the nodes of all targets. Extensions end here: no SAE interface of ours has any."""
        nodes = self._nodes(targets)
        if nodes == {self._node}:
            self._keep(key_ids, materials, initiator, targets)
            return
        unable = self._unable(nodes)
        if unable:
            self._refused.update(key_ids)
            raise RouteUnavailable(f"{unable}: keys could not be taken back there")
        by_length: dict[int, list[tuple[KeyId, Secret]]] = {}
        for key_id, material in zip(key_ids, materials, strict=True):
            by_length.setdefault(len(material), []).append((key_id, material))
        for keys in by_length.values():
            for first in range(0, len(keys), KEYS_MAX):
                await self._relay.carry(initiator, targets, keys[first : first + KEYS_MAX])

    async def void(self, key_ids: Sequence[KeyId], targets: Sequence[SaeId]) -> set[KeyId]:
        """Refuse these keys to their targets from now on; those that one of them was given already."""
        delivered: set[KeyId] = set()
        for node in sorted(self._nodes(targets)):
            if node == self._node:
                delivered |= self._store.void_keys(key_ids, lambda sae: self._is_of(sae, self._node))
            else:
                delivered |= await self._void_at(node, key_ids)
        return delivered

    def _nodes(self, targets: Sequence[SaeId]) -> set[NodeId]:
        known = [(target, self._topology.sae(target)) for target in targets]
        for target, sae in known:
            if sae is None:
                raise RouteUnavailable(f"SAE {target} is not known in this network")
        return {sae.node for _, sae in known if sae is not None}

    def _unable(self, nodes: Collection[NodeId]) -> str:
        """Why notes to one of these nodes lead to nothing; nothing where they do not."""
        if self._notes is None:
            return f"node {self._node} has no signing key"
        for node in sorted(nodes):
            if node != self._node and not self._notes.knows(node):
                return f"node {node} has no signing key that is known at node {self._node}"
        return ""

    def _keep(
        self, key_ids: Sequence[KeyId], materials: Sequence[Secret], initiator: SaeId, targets: Sequence[SaeId]
    ) -> None:
        """Keys for targets here, all or none."""
        origin = origin_of(self._topology.foreign(initiator))
        receipt: dict[str, object] = {"routes": [[self._node]], "hops": [], "protection": origin, "origin": origin}
        expires_unix_s = self._clock.unix_s() + self._topology.tenant_of(targets[0]).key_lifetime_s
        with self._store.transaction():
            for key_id, material in zip(key_ids, materials, strict=True):
                self._store.store_keys(
                    [(key_id, material)], initiator, targets, targets, 8 * len(material), receipt, expires_unix_s
                )

    def _is_of(self, initiator: SaeId, border: NodeId) -> bool:
        network = self._topology.foreign(initiator)
        return network is not None and network.node == border

    # ── voids at other nodes ────────────────────────────────────────────────────────────────────────────────────────

    async def _void_at(self, node: NodeId, key_ids: Sequence[KeyId]) -> set[KeyId]:
        if self._refused.issuperset(key_ids):
            self._refused.difference_update(key_ids)
            return set()
        if self._notes is None:
            raise RouteUnavailable(f"node {self._node} has no signing key: it cannot tell node {node} to void keys")
        number = next(self._numbers)
        octets = encode(ForeignVoid(number=number, key_ids=list(key_ids)))
        answer: asyncio.Future[set[KeyId]] = asyncio.get_running_loop().create_future()
        self._waiting[node, number] = answer
        until_s = self._clock.monotonic_s() + ANSWER_S
        try:
            while self._clock.monotonic_s() < until_s:
                self._notes.tell(node, _VOID, octets)
                await asyncio.wait([answer], timeout=REPEAT_S)
                if answer.done():
                    return answer.result()
        finally:
            del self._waiting[node, number]
        raise RouteUnavailable(f"node {node} does not say what became of keys that it was told to void")

    def _asked(self, sender: NodeId, octets: bytes) -> None:
        """A border node's void: on record here, then answered. What cannot be recorded is not answered."""
        assert self._notes is not None
        said = decode(octets, ForeignVoid)
        if not any(network.node == sender for network in self._topology.neighbours):
            raise NotAuthorised(f"node {sender} asks for a void, and is beside no foreign network")
        try:
            key_ids = [parse_key_id(key_id) for key_id in said.key_ids]
        except RequestRefused as error:
            raise WireError(f"void of node {sender}: {error}") from error
        delivered = self._store.void_keys(key_ids, lambda sae: self._is_of(sae, sender))
        self._notes.tell(sender, _VOIDED, encode(ForeignVoided(number=said.number, delivered=sorted(delivered))))

    def _answered(self, sender: NodeId, octets: bytes) -> None:
        said = decode(octets, ForeignVoided)
        answer = self._waiting.get((sender, said.number))
        if answer is not None and not answer.done():
            answer.set_result({KeyId(key_id) for key_id in said.delivered})
