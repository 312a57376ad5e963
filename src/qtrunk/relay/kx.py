"""The relay machine of one node: end-to-end keys over trusted nodes, hop by hop. Messages in, effects out; no I/O.

What is relayed is a batch of keys, or a segment of a pool (`kms.pools`), which lies ready at both nodes before anyone
asks. Its QKD part is the octets of link key that would have encrypted it on its first hop (docs/decisions/0009); every
later hop encrypts it with octets of its own link, used once (`relay.hops`). Where the policy is hybrid, both ends add a
mask that no relay knows (`relay.cargo`). A relay follows its neighbour's octets and allocates its own in one store
transaction, so a crash loses at most the batch. End-to-end material is never on a relay's disk.

The initiator's SAE gets keys only after every target node has confirmed that it stores the same, and after that is on
the initiator's own record; a segment joins the initiator's pool then. What fails or falls silent is voided at the
targets and tried once more over another route, if there is one: around the link that failed, or around all links of a
route that gave no answer.

The shell must call the machine from one thread and send effects in the order given.
"""

import hmac
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import msgspec

from qtrunk.base.errors import KeyExhausted, QtrunkError, RequestRefused, RouteUnavailable, StoreError, WireError
from qtrunk.base.ids import KeyId, LinkId, NodeId, SaeId, parse_key_id
from qtrunk.base.ports import Clock, Random, SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.crypto import its
from qtrunk.crypto.hybrid import SEED_OCTETS, Wrapped
from qtrunk.kms.consume import COLLECTED, INITIATED
from qtrunk.relay import messages as wire
from qtrunk.relay.cargo import (
    CONFIRM_OCTETS,
    confirmation,
    keep,
    keys_of,
    masked,
    origin_of,
    protection,
    receipt,
    relay_context,
)
from qtrunk.relay.checks import check_hops, check_relay, check_request, check_route, is_segment_size
from qtrunk.relay.hops import CONTROL_OCTETS, HOP_OVERHEAD_OCTETS, Hops, Report, SendKx, on_wire, parsed, report
from qtrunk.relay.ports import HybridPort, KeyStorePort
from qtrunk.relay.route import links_of, route
from qtrunk.topology import Topology

__all__ = ["HOP_OVERHEAD_OCTETS", "Effect", "Failed", "Kx", "Report", "SendKx", "Supplied"]

REQUEST_TIMEOUT_S = 5.0
RETRY_TIMEOUT_S = 4.0
"""A second attempt gets so much more; both together stay under what the shell waits, twice the time-out."""
FORWARD_MEMORY_S = 30.0
"""So long a relay remembers whom to send a completion back to."""
POOL_LIFETIME_S = 30 * 86400.0
"""A segment may be given out for so long; its targets may come for their tenant's key lifetime after that."""
LOW_OCTETS = 64 << 10
"""Below this an end asks the peer for octets of its direction."""
GRANT_PERIOD_S = 1.0
ATTEMPTS_MAX = 2


@dataclass(frozen=True, slots=True)
class Supplied:
    """Keys for the SAE that asked, on record as delivered; or none: a segment that its pool has now."""

    request_id: str
    keys: list[SuppliedKey]


@dataclass(frozen=True, slots=True)
class Failed:
    """No keys, and why."""

    request_id: str
    error: QtrunkError


Effect = SendKx | Supplied | Failed | Report


@dataclass(slots=True, kw_only=True)
class _Request:
    """A batch of keys or a segment on its way to its targets."""

    request_id: str
    initiator: SaeId
    targets: tuple[SaeId, ...]
    key_bits: int
    number: int
    octets: int
    """Of the whole cargo."""
    segment: int
    """0: keys of their own."""
    deadline_s: float
    attempt: int = 1
    avoided: frozenset[LinkId] = frozenset()
    key_ids: list[KeyId] = field(default_factory=list)
    cargo: Secret = field(default_factory=lambda: Secret(b""))
    relays: dict[str, wire.KeyRelay] = field(default_factory=dict)
    """By ID, those that are not confirmed."""
    confirmed: dict[str, wire.KeyRelay] = field(default_factory=dict)
    hops: list[wire.Hop] = field(default_factory=list)
    given: Secret | None = None
    """Keys that came from a foreign network, one behind the other; None: the octets of a first hop become keys."""


@dataclass(slots=True)
class _Forwarded:
    """A relay that passed through here."""

    back: LinkId
    onward: LinkId
    until_s: float


class Kx:
    """The relay machine of one node."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        store: KeyStorePort,
        random: Random,
        clock: Clock,
        unusable: Callable[[], frozenset[LinkId]] = frozenset,
        is_hybrid: Callable[[SaeId], bool] = lambda _initiator: False,
    ) -> None:
        """`is_hybrid` says of an initiator whether its keys must have an ML-KEM part; both ends hold to it."""
        self._node = node
        self._topology = topology
        self._store = store
        self._random = random
        self._clock = clock
        self._unusable = unusable
        self.hybrid: HybridPort | None = None
        """Set by who wires the machine, where the node can sign."""
        self._is_hybrid = is_hybrid
        self._hops = Hops(node, topology, store)
        self._requests: dict[str, _Request] = {}
        self._forwarded: dict[str, _Forwarded] = {}
        self._grants_at_s = 0.0

    # ── what the node asks ──────────────────────────────────────────────────────────────────────────────────────────

    def request(
        self, initiator: SaeId, targets: Sequence[SaeId], number: int, key_bits: int
    ) -> tuple[str, list[Effect]]:
        """Start a batch of fresh keys for these targets; its ID comes back in Supplied or Failed."""
        octets = CONFIRM_OCTETS + number * key_bits // 8
        return self._new(initiator, targets, number=number, key_bits=key_bits, octets=octets, segment=0)

    def carry(
        self, initiator: SaeId, targets: Sequence[SaeId], keys: Sequence[tuple[KeyId, Secret]]
    ) -> tuple[str, list[Effect]]:
        """Bring keys of a foreign initiator, all of one length, to the nodes of their targets.

        The ID comes back in Supplied, without keys, when all nodes hold them, or in Failed; whatever part of them holds
        them then keeps them until it is told to void them. The same keys may be carried again.
        """
        octets = sum(len(material) for _, material in keys)
        given = Secret(bytes(octets))
        _put(given, 0, [material for _, material in keys])
        request = self._request(
            initiator,
            targets,
            number=len(keys),
            key_bits=8 * (octets // max(1, len(keys))),
            octets=CONFIRM_OCTETS + octets,
            segment=0,
        )
        request.key_ids, request.given = [key_id for key_id, _ in keys], given
        return request.request_id, self._start(request)

    def fill(self, initiator: SaeId, target: SaeId, octets: int) -> tuple[str, list[Effect]]:
        """Start a segment for the pool of two SAEs; its ID comes back in Supplied, without keys, or Failed."""
        return self._new(initiator, [target], number=0, key_bits=0, octets=octets, segment=self._segment())

    def _new(
        self, initiator: SaeId, targets: Sequence[SaeId], *, number: int, key_bits: int, octets: int, segment: int
    ) -> tuple[str, list[Effect]]:
        request = self._request(initiator, targets, number=number, key_bits=key_bits, octets=octets, segment=segment)
        return request.request_id, self._start(request)

    def _request(
        self, initiator: SaeId, targets: Sequence[SaeId], *, number: int, key_bits: int, octets: int, segment: int
    ) -> _Request:
        return _Request(
            request_id=self._uuid(),
            initiator=initiator,
            targets=tuple(dict.fromkeys(targets)),
            key_bits=key_bits,
            number=number,
            octets=octets,
            segment=segment,
            deadline_s=self._clock.monotonic_s() + REQUEST_TIMEOUT_S,
        )

    def link_up(self, link: LinkId) -> list[Effect]:
        """The neighbour over a link is connected."""
        self._hops.up.add(link)
        return []

    def link_down(self, link: LinkId) -> list[Effect]:
        """The neighbour is gone: what waits for it fails now, not at the time-out."""
        self._hops.up.discard(link)
        effects: list[Effect] = []
        for relay_id, passed in list(self._forwarded.items()):
            if passed.onward == link:
                effects += self._complete_back(relay_id, f"link {link}: the neighbour was lost", link)
        for request in list(self._requests.values()):
            if any(self._hops.between(relay.route, 0) == link for relay in request.relays.values()):
                effects += self._retry(request, f"link {link}: the neighbour was lost", {link})
        return effects

    def tick(self) -> list[Effect]:
        """Time-outs, and grants where a direction runs low."""
        now_s = self._clock.monotonic_s()
        effects: list[Effect] = []
        for request in [r for r in self._requests.values() if r.deadline_s < now_s]:
            silent = [relay.route for relay in request.relays.values()]
            why = "the relay of the keys took too long: no answer over " + ", ".join("-".join(n) for n in silent)
            avoided = {link for nodes in silent for link in self._links(nodes)}
            effects += self._retry(request, why, avoided)
        for relay_id in [r for r, passed in self._forwarded.items() if passed.until_s < now_s]:
            del self._forwarded[relay_id]
        if now_s >= self._grants_at_s:
            self._grants_at_s = now_s + GRANT_PERIOD_S
            for link in sorted(self._hops.up):
                effects += self._ask_for_grant(link)
        return effects

    # ── the initiator's end ─────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, request: _Request) -> list[Effect]:
        """Take octets for the first hops and send, or fail with nothing taken."""
        try:
            self._check(request)
            if request.given is None:
                request.key_ids = [KeyId(self._uuid()) for _ in range(request.number)]
            by_node = self._by_node(request.targets)
            routes = {node: self._route(request, node) for node in by_node if node != self._node}
            with self._store.transaction():
                effects = self._send_out(request, by_node, routes)
        except QtrunkError as error:
            _wipe(request)
            return [Failed(request.request_id, error)]
        if not request.relays:
            return self._deliver(request)
        self._requests[request.request_id] = request
        return effects

    def _check(self, request: _Request) -> None:
        if not request.segment:
            number, key_bits = request.number, request.key_bits
        elif self._by_node(request.targets).keys() == {self._node}:
            raise RequestRefused(f"pool {request.initiator} to {request.targets[0]}: both are at node {self._node}")
        elif not is_segment_size(request.octets):
            raise RequestRefused(f"segment: {request.octets} octets asked for")
        else:
            number, key_bits = 1, 8
        is_foreign = request.given is not None
        check_request(
            *(self._topology, self._node, request.initiator, request.targets, number, key_bits), is_foreign=is_foreign
        )

    def _send_out(
        self,
        request: _Request,
        by_node: dict[NodeId, list[SaeId]],
        routes: dict[NodeId, tuple[NodeId, ...]],
    ) -> list[Effect]:
        expires_unix_s = self._expires_unix_s(request)
        if not request.segment and request.given is None:
            self._store.reserve_keys(
                request.key_ids, request.initiator, request.targets, request.key_bits, expires_unix_s
            )
        seed = Secret(self._random.octets(SEED_OCTETS)) if routes and self._is_hybrid(request.initiator) else None
        effects: list[Effect] = []
        octets: Secret | None = None
        relay: wire.KeyRelay | None = None
        for node, nodes in routes.items():
            link = self._hops.between(nodes, 0)
            pad, tag_key = self._hops.allocate(link, request.octets)
            relay = wire.KeyRelay(
                relay_id=self._uuid(),
                route=list(nodes),
                initiator=request.initiator,
                targets=list(by_node[node]),
                all_targets=list(request.targets),
                key_ids=list(request.key_ids),
                key_bits=request.key_bits,
                segment=request.segment,
                expires_unix_s=expires_unix_s,
                hybrid=None,
                pad=on_wire(pad.slices),
                ciphertext=b"",
                hops=[self._hops.record(link, pad.slices)],
            )
            if octets is None:
                # The first hop of the first route: its pad is the QKD part, the ciphertext is all zeros; or keys that
                # are there already go under it, with the mask on them.
                octets = pad.material if request.given is None else masked(self._given(request), seed, relay)
            ciphertext = its.one_time_pad(octets.reveal(), pad.material.reveal())
            relay = msgspec.structs.replace(relay, ciphertext=ciphertext)
            if seed is not None:
                relay = msgspec.structs.replace(relay, hybrid=self._wrap(node, seed, relay))
            request.relays[relay.relay_id] = relay
            effects.append(self._hops.seal(link, relay, tag_key))
        if octets is None:
            octets = Secret(self._random.octets(request.octets)) if request.given is None else self._given(request)
        request.cargo = octets if relay is None else masked(octets, seed, relay)
        if self._node in by_node:
            self._store.store_keys(
                list(zip(request.key_ids, keys_of(request.cargo, request.key_bits), strict=True)),
                *(request.initiator, by_node[self._node], request.targets, request.key_bits),
                receipt([(self._node,)], [], "local", self._origin(request.initiator)),
                expires_unix_s,
            )
        return effects

    def _origin(self, initiator: str) -> str:
        return origin_of(self._topology.foreign(SaeId(initiator)))

    def _given(self, request: _Request) -> Secret:
        """The keys behind fresh octets for the confirmation, which must never key two tags."""
        assert request.given is not None
        cargo = Secret(bytes(request.octets))
        _put(cargo, 0, [Secret(self._random.octets(CONFIRM_OCTETS)), request.given])
        return cargo

    def _wrap(self, node: NodeId, seed: Secret, relay: wire.KeyRelay) -> Wrapped:
        if self.hybrid is None:
            raise KeyExhausted(f"keys of {relay.initiator} must be hybrid, and this node has no signing key")
        return self.hybrid.wrap(node, seed, relay_context(relay), self._clock.unix_s())

    def _expires_unix_s(self, request: _Request) -> float:
        """When the last target must have come."""
        whose = request.initiator if request.given is None else request.targets[0]
        lifetime_s = self._topology.tenant_of(whose).key_lifetime_s
        return self._clock.unix_s() + lifetime_s + (POOL_LIFETIME_S if request.segment else 0)

    def _by_node(self, targets: Sequence[SaeId]) -> dict[NodeId, list[SaeId]]:
        by_node: dict[NodeId, list[SaeId]] = {}
        for target in targets:
            known = self._topology.sae(target)
            assert known is not None  # check_request has seen to it
            by_node.setdefault(known.node, []).append(target)
        return by_node

    def _route(self, request: _Request, node: NodeId) -> tuple[NodeId, ...]:
        """Around links that are said to be of no use, if there is such a way; never over one that failed just now."""
        try:
            return route(self._topology, self._node, node, self._unusable() | request.avoided)
        except RouteUnavailable:
            return route(self._topology, self._node, node, request.avoided)

    def _deliver(self, request: _Request) -> list[Effect]:
        """All targets hold the keys: on record first, then out."""
        self._requests.pop(request.request_id, None)
        relays = list(request.confirmed.values())
        how = receipt(
            [relay.route for relay in relays] or [(self._node,)],
            request.hops,
            protection(relays[0].hybrid) if relays else "local",
        )
        keys: list[SuppliedKey] = []
        try:
            if request.segment:
                self._store.pools.add(
                    *(INITIATED, request.initiator, request.targets[0], request.segment, request.cargo, how),
                    self._clock.unix_s() + POOL_LIFETIME_S,
                )
            elif request.given is None:
                self._store.deliver_initiator(request.key_ids, how)
                materials = keys_of(request.cargo, request.key_bits)
                keys = [
                    SuppliedKey(key_id=key_id, material=material)
                    for key_id, material in zip(request.key_ids, materials, strict=True)
                ]
        except QtrunkError as error:
            return [*self._void(request), Failed(request.request_id, error)]
        _wipe(request)
        return [Supplied(request.request_id, keys)]

    def _retry(self, request: _Request, why: str, links: Collection[LinkId]) -> list[Effect]:
        """Void what was stored and try another route; without one, say why."""
        effects = self._void(request)
        self._requests.pop(request.request_id, None)
        again = _Request(
            request_id=request.request_id,
            initiator=request.initiator,
            targets=request.targets,
            key_bits=request.key_bits,
            number=request.number,
            octets=request.octets,
            # Another number: a void of the first attempt may come after the second.
            segment=self._segment() if request.segment else 0,
            deadline_s=request.deadline_s + RETRY_TIMEOUT_S,
            attempt=request.attempt + 1,
            avoided=request.avoided.union(links),
            given=request.given,
            key_ids=[] if request.given is None else request.key_ids,
        )
        if again.attempt > ATTEMPTS_MAX:
            _wipe(again)
            return [*effects, Failed(request.request_id, KeyExhausted(why))]
        try:
            for node in self._by_node(request.targets):
                if node != self._node:
                    self._route(again, node)
        except RouteUnavailable:
            _wipe(again)
            return [*effects, Failed(request.request_id, KeyExhausted(f"{why}; there is no other route"))]
        return effects + self._start(again)

    def _void(self, request: _Request) -> list[Effect]:
        """Keys that the initiator will not be given must not wait anywhere."""
        effects: list[Effect] = []
        if request.given is not None:
            # Another attempt has the same key IDs, and who gave the keys has them voided where all fails.
            request.cargo.wipe()
            return effects
        for relay_id, relay in {**request.relays, **request.confirmed}.items():
            void = wire.KeyVoid(
                relay_id=relay_id,
                route=relay.route,
                key_ids=list(request.key_ids),
                initiator=request.initiator,
                target=relay.targets[0],
                segment=request.segment,
            )
            effects += self._hops.try_send(self._hops.between(relay.route, 0), void)
        try:
            self._store.destroy_keys(request.key_ids, "voided")
        except StoreError as error:
            # They stay reserved, which gives them to nobody; the store ends them when it opens again or they expire.
            effects.append(Report(None, "StorageFull", str(error)))
        request.cargo.wipe()
        return effects

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, link: LinkId, octets: bytes) -> list[Effect]:
        """A message of the neighbour over a link. What is wrong with it is reported and changes nothing else."""
        try:
            sealed, body = wire.parse(octets)
            if isinstance(body, wire.KeyRelay):
                check_relay(self._topology, self._node, link, body)
                if body.relay_id in self._forwarded:
                    raise WireError("relay: seen before")
            elif isinstance(body, wire.KeyVoid):
                check_route(self._topology, self._node, link, body.route)
            self._hops.authenticate(link, sealed)
            return self._dispatch(link, body)
        except QtrunkError as error:
            return [report(link, error)]

    def _dispatch(self, link: LinkId, body: wire.KxMessage) -> list[Effect]:
        match body:
            case wire.KeyRelay():
                return self._relay(link, body)
            case wire.KeyRelayCompletion():
                return self._completed(link, body)
            case wire.KeyVoid():
                return self._voided(body)
            case wire.PoolGrantRequest():
                return self._grant(link, body)
            case wire.PoolGrant():
                total = sum(length for _, _, length in body.slices)
                self._store.receive_grant(link, self._hops.role(link).peer, parsed(body.slices, total))
                return []

    # ── on the way ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _relay(self, link: LinkId, body: wire.KeyRelay) -> list[Effect]:
        """Store the keys or pass them on; where that fails, the initiator hears of it and need not wait."""
        slices = parsed(body.pad, len(body.ciphertext))
        onward = None if body.route[-1] == self._node else self._hops.onward(body.route)
        try:
            with self._store.transaction():
                arrived = self._store.follow(link, self._hops.role(link).peer, slices)
                outcome = self._carry(body, its.secret_sum(body.ciphertext, arrived.reveal()), onward)
        except QtrunkError as error:
            outcome = error
        if isinstance(outcome, QtrunkError):
            return self._refuse(link, body, outcome, onward or link)
        if isinstance(outcome, bytes):
            done = wire.KeyRelayCompletion(
                relay_id=body.relay_id, is_stored=True, confirm=outcome, reason="", failed_link="", hops=body.hops
            )
            return [*self._hops.try_send(link, done)]
        self._forwarded[body.relay_id] = _Forwarded(link, outcome.link, self._clock.monotonic_s() + FORWARD_MEMORY_S)
        return [outcome]

    def _carry(self, body: wire.KeyRelay, octets: Secret, onward: LinkId | None) -> SendKx | QtrunkError | bytes:
        """Store keys (the confirmation), or encrypt them for the next hop, all or nothing.

        An error is returned, not raised: the octets that the keys came under stay spent, since another target of the
        batch may hold them as key already.
        """
        try:
            with self._store.transaction():
                if onward is None:
                    # Without this a relay could take the mask away and so know the key of whoever collects it.
                    if self._is_hybrid(SaeId(body.initiator)) and (body.hybrid is None or self.hybrid is None):
                        raise WireError(f"relay: keys of {body.initiator} must be hybrid")
                    return keep(self._store, self.hybrid, body, octets, self._origin(body.initiator))
                pad, tag_key = self._hops.allocate(onward, len(octets))
                relay = msgspec.structs.replace(
                    body,
                    pad=on_wire(pad.slices),
                    ciphertext=its.one_time_pad(octets.reveal(), pad.material.reveal()),
                    hops=[*body.hops, self._hops.record(onward, pad.slices)],
                )
                return self._hops.seal(onward, relay, tag_key)
        except QtrunkError as error:
            return error

    def _refuse(self, link: LinkId, body: wire.KeyRelay, error: QtrunkError, failed: LinkId) -> list[Effect]:
        """Tell the initiator; what the store says is for this node's operator, the others learn where to look."""
        is_short = isinstance(error, KeyExhausted)
        reason = str(error) if is_short else f"node {self._node} refused the keys; see its alarms"
        refusal = wire.KeyRelayCompletion(
            relay_id=body.relay_id, is_stored=False, confirm=b"", reason=reason, failed_link=failed, hops=[]
        )
        return [*self._hops.try_send(link, refusal), *([] if is_short else [report(link, error)])]

    def _complete_back(self, relay_id: str, failure: str, failed: str) -> list[Effect]:
        passed = self._forwarded.pop(relay_id)
        completion = wire.KeyRelayCompletion(
            relay_id=relay_id, is_stored=False, confirm=b"", reason=failure, failed_link=failed, hops=[]
        )
        return [*self._hops.try_send(passed.back, completion)]

    def _completed(self, link: LinkId, body: wire.KeyRelayCompletion) -> list[Effect]:
        passed = self._forwarded.get(body.relay_id)
        if passed is not None:
            if passed.onward != link:
                raise WireError("completion: came over another link than the relay left by")
            del self._forwarded[body.relay_id]
            return [*self._hops.try_send(passed.back, msgspec.structs.replace(body, reason=body.reason[:500]))]
        request = next((r for r in self._requests.values() if body.relay_id in r.relays), None)
        if request is None or self._hops.between(request.relays[body.relay_id].route, 0) != link:
            # Given up meanwhile; the void is on its way.
            return []
        relay = request.relays[body.relay_id]
        if not body.is_stored:
            failed = LinkId(body.failed_link) if body.failed_link else link
            return self._retry(request, body.reason[:500] or f"link {failed}: refused", {failed})
        links = self._links(relay.route)
        check_hops(body.hops, relay.route, links)
        if not hmac.compare_digest(confirmation(request.cargo, relay), body.confirm):
            why = f"relay over {'-'.join(relay.route)}: the target's node does not hold the same key"
            return [Report(None, "RelayTampered", why), *self._retry(request, why, links)]
        request.confirmed[body.relay_id] = request.relays.pop(body.relay_id)
        request.hops += body.hops
        return [] if request.relays else self._deliver(request)

    def _voided(self, body: wire.KeyVoid) -> list[Effect]:
        if body.route[-1] == self._node:
            if body.segment:
                known = self._topology.sae(SaeId(body.initiator))
                if known is None or known.node != body.route[0]:
                    raise WireError("initiator: must be an SAE of the route's first node")
                initiator, target = SaeId(body.initiator), SaeId(body.target)
                self._store.pools.close_segment(COLLECTED, initiator, target, body.segment, "voided")
            self._store.destroy_keys([parse_key_id(key_id) for key_id in body.key_ids], "voided")
            return []
        return [*self._hops.try_send(self._hops.onward(body.route), body)]

    # ── grants ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask_for_grant(self, link: LinkId) -> list[Effect]:
        level = self._store.level(link)
        if level.own_octets >= LOW_OCTETS or level.peer_octets < max(2 * level.own_octets, 4 * CONTROL_OCTETS):
            return []
        wanted = (level.peer_octets - level.own_octets) // 2
        return [*self._hops.try_send(link, wire.PoolGrantRequest(wanted_octets=wanted))]

    def _grant(self, link: LinkId, body: wire.PoolGrantRequest) -> list[Effect]:
        """Give up to half of what this end has more than the peer, if it has more."""
        level = self._store.level(link)
        spare = (level.own_octets - level.peer_octets) // 2
        octets = min(body.wanted_octets, spare)
        if octets <= CONTROL_OCTETS:
            return []
        with self._store.transaction():
            tag_key = self._store.allocate(link, self._hops.role(link), its.WC_KEY_OCTETS)
            slices = self._store.grant(link, self._hops.role(link), octets)
            return [self._hops.seal(link, wire.PoolGrant(slices=on_wire(slices)), tag_key)]

    # ── small things ────────────────────────────────────────────────────────────────────────────────────────────────

    def _links(self, nodes: Sequence[str]) -> tuple[LinkId, ...]:
        return links_of(self._topology, [NodeId(node) for node in nodes])

    def _segment(self) -> int:
        return int.from_bytes(self._random.octets(4), "big") or 1

    def _uuid(self) -> str:
        return str(uuid.UUID(bytes=self._random.octets(16), version=4))


def _put(into: Secret, start: int, materials: Sequence[Secret]) -> None:
    """One behind the other."""
    view = into.fill()
    for material in materials:
        view[start : start + len(material)] = material.reveal()
        start += len(material)


def _wipe(request: _Request) -> None:
    request.cargo.wipe()
    if request.given is not None:
        request.given.wipe()
