"""Key of ML-KEM alone, for tenants whose policy is `fallback`, while QKD brings nothing.

The initiator's node sends a seed for a whole segment (`crypto.hybrid`) in a signed note; the mask that it gives is the
segment, with no QKD part. The target's node takes it only from an initiator whose policy allows it, and confirms what
it holds, as in `relay.cargo`. Receipts say `ml-kem-768` and nothing of QKD.
"""

import asyncio
import hmac
import uuid
from typing import Annotated

import msgspec

from qtrunk.base.errors import AuthenticationFailed, KeyExhausted, QtrunkError, RouteUnavailable, WireError
from qtrunk.base.ids import NodeId, SaeId
from qtrunk.base.ports import Clock, Random
from qtrunk.base.secret import Secret
from qtrunk.base.wire import Message, decode, encode
from qtrunk.crypto.hybrid import SEED_OCTETS, NoKemKeyError, Wrapped
from qtrunk.kms.consume import COLLECTED, INITIATED
from qtrunk.kms.pools import Pools
from qtrunk.node.hybridkeys import HybridKeys
from qtrunk.node.notes import Notes
from qtrunk.relay.cargo import confirmation, masked, receipt, relay_context
from qtrunk.relay.checks import is_segment_size
from qtrunk.relay.kx import POOL_LIFETIME_S
from qtrunk.relay.messages import SEGMENT_OCTETS_MAX, KeyRelay
from qtrunk.topology import Topology

_FILL, _FILLED = "kem-segment", "kem-segment-stored"
ANSWER_S = 3.0
_Octets = Annotated[int, msgspec.Meta(ge=0, le=SEGMENT_OCTETS_MAX)]


class KemSegment(Message, frozen=True, tag="kem-segment"):
    """A relay whose QKD part is no octets at all, and how long the segment is."""

    relay: KeyRelay
    octets: _Octets


class KemSegmentStored(Message, frozen=True, tag="kem-segment-stored"):
    """The target's node holds it."""

    relay_id: str
    confirm: bytes


class Fallback:
    """One node's part, as initiator's and as target's."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        pools: Pools,
        hybrid: HybridKeys,
        notes: Notes,
        random: Random,
        clock: Clock,
    ) -> None:
        self._node = node
        self._topology = topology
        self._pools = pools
        self._hybrid = hybrid
        self._notes = notes
        self._random = random
        self._clock = clock
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        notes.serve(_FILL, self._store)
        notes.serve(_FILLED, self._stored)

    async def fill(self, initiator: SaeId, target: SaeId, octets: int) -> None:
        """A segment of so many octets at both nodes; KeyExhausted where the other node does not answer."""
        known = self._topology.sae(target)
        assert known is not None
        relay = KeyRelay(
            relay_id=str(uuid.UUID(bytes=self._random.octets(16), version=4)),
            route=[self._node, known.node],
            initiator=initiator,
            targets=[target],
            all_targets=[target],
            key_ids=[],
            key_bits=0,
            segment=int.from_bytes(self._random.octets(4), "big") or 1,
            expires_unix_s=self._clock.unix_s() + POOL_LIFETIME_S + self._topology.tenant_of(initiator).key_lifetime_s,
            hybrid=None,
            pad=[],
            ciphertext=b"",
            hops=[],
        )
        seed = Secret(self._random.octets(SEED_OCTETS))
        relay = msgspec.structs.replace(relay, hybrid=await self._wrapped(known.node, seed, relay))
        cargo = masked(Secret(bytes(octets)), seed, relay)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[relay.relay_id] = answer
        try:
            self._notes.tell(known.node, _FILL, encode(KemSegment(relay=relay, octets=octets)))
            async with asyncio.timeout(ANSWER_S):
                confirm = await answer
        except TimeoutError as error:
            raise KeyExhausted(f"node {known.node} does not answer; no key of ML-KEM alone either") from error
        finally:
            self._waiting.pop(relay.relay_id, None)
        if not hmac.compare_digest(confirm, confirmation(cargo, relay)):
            raise AuthenticationFailed(f"node {known.node} holds another segment than this node")
        expires_unix_s = self._clock.unix_s() + POOL_LIFETIME_S
        self._pools.add(INITIATED, initiator, target, relay.segment, cargo, _receipt(relay), expires_unix_s)

    async def _wrapped(self, node: NodeId, seed: Secret, relay: KeyRelay) -> Wrapped:
        until_s = self._clock.monotonic_s() + ANSWER_S
        while True:
            try:
                return self._hybrid.wrap(node, seed, relay_context(relay), self._clock.unix_s())
            except NoKemKeyError:
                if self._clock.monotonic_s() > until_s:
                    raise
            await asyncio.sleep(0.1)

    def _store(self, node: NodeId, octets: bytes) -> None:
        body = decode(octets, KemSegment)
        relay = body.relay
        initiator, target = self._topology.sae(SaeId(relay.initiator)), [SaeId(name) for name in relay.targets]
        here = self._topology.sae(target[0]) if len(target) == 1 else None
        if initiator is None or initiator.node != node or here is None or here.node != self._node:
            raise WireError("segment of ML-KEM alone: its SAEs are not at these nodes")
        if self._topology.tenant_of(initiator.id).hybrid != "fallback":
            raise AuthenticationFailed(f"node {node}: the policy of {initiator.id} does not allow key without QKD")
        if not relay.segment or relay.hybrid is None or relay.pad or relay.hops or not is_segment_size(body.octets):
            raise WireError("segment of ML-KEM alone: not what it must be")
        seed = self._hybrid.unwrap(node, relay.hybrid, relay_context(relay))
        cargo = masked(Secret(bytes(body.octets)), seed, relay)
        self._pools.add(COLLECTED, initiator.id, here.id, relay.segment, cargo, _receipt(relay), relay.expires_unix_s)
        stored = KemSegmentStored(relay_id=relay.relay_id, confirm=confirmation(cargo, relay))
        try:
            self._notes.tell(node, _FILLED, encode(stored))
        except RouteUnavailable as error:
            raise QtrunkError(f"segment of ML-KEM alone: {error}") from error

    def _stored(self, _node: NodeId, octets: bytes) -> None:
        body = decode(octets, KemSegmentStored)
        waiting = self._waiting.get(body.relay_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(body.confirm)


def _receipt(relay: KeyRelay) -> dict[str, object]:
    assert relay.hybrid is not None
    return receipt([], [], relay.hybrid.suite)
