"""The relay machine of one node: end-to-end keys over trusted nodes, hop by hop. Messages in, effects out; no I/O.

A key is the octets of link key that would have encrypted it on its first hop (docs/decisions/0009); every later hop
encrypts it with octets of its own link, used once. Each message carries a tag made with 32 more octets. A relay follows
its neighbour's octets and allocates its own in one store transaction, so a crash loses at most the batch. End-to-end
material is never on a relay's disk.

The initiator's SAE gets keys only after every target node has confirmed that it stores them, and after that is on the
initiator's own record. What fails or falls silent is voided at the targets and tried once more over another route, if
there is one: around the link that failed, or around all links of a route that gave no answer.

A message that is not authentic changes nothing, not even the place that the neighbour's octets have come to: whoever
follows burns what he passes over, so one forged message could otherwise burn a whole direction. The same octets may
so meet several forgeries; n of them pass with at most n times the probability of one, and each is reported.

Allocation order is sending order on each link (whoever follows never goes back), so the shell must call the machine
from one thread and send effects in the order given.
"""

import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import msgspec

from qtrunk.base.errors import (
    AuthenticationFailed,
    KeyExhausted,
    QtrunkError,
    RouteUnavailable,
    StoreError,
    WireError,
)
from qtrunk.base.ids import KeyId, LinkId, NodeId, SaeId, parse_key_id
from qtrunk.base.ports import Clock, Random, SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.base.wire import encode
from qtrunk.crypto import its
from qtrunk.kms.key import Allocation, Slice
from qtrunk.relay import messages as wire
from qtrunk.relay.checks import check_hops, check_relay, check_request, check_route
from qtrunk.relay.ports import KeyStorePort
from qtrunk.relay.route import links_of, route
from qtrunk.stages import Role
from qtrunk.topology import Topology

PROTOCOL = "qtrunk kx 1"
REQUEST_TIMEOUT_S = 5.0
RETRY_TIMEOUT_S = 4.0
"""A second attempt gets so much more; both together stay under what the shell waits, twice the time-out."""
FORWARD_MEMORY_S = 30.0
"""So long a relay remembers whom to send a completion back to."""
KEY_LIFETIME_S = 90 * 86400.0
"""A target may come for its key so long; a sealed file can lie for a while."""
CONTROL_OCTETS = 1024
"""Of each direction of a link, kept for completions, voids and grants."""
HOP_OVERHEAD_OCTETS = its.WC_KEY_OCTETS + CONTROL_OCTETS
LOW_OCTETS = 64 << 10
"""Below this an end asks the peer for octets of its direction."""
GRANT_PERIOD_S = 1.0
ATTEMPTS_MAX = 2


@dataclass(frozen=True, slots=True)
class SendKx:
    """Send these octets to the neighbour over a link."""

    link: LinkId
    octets: bytes


@dataclass(frozen=True, slots=True)
class Supplied:
    """Keys for the SAE that asked; on record as delivered."""

    request_id: str
    keys: list[SuppliedKey]


@dataclass(frozen=True, slots=True)
class Failed:
    """No keys, and why."""

    request_id: str
    error: QtrunkError


@dataclass(frozen=True, slots=True)
class Report:
    """Something the operator must hear of; `link` is None where the node itself is concerned."""

    link: LinkId | None
    alarm: str
    text: str


Effect = SendKx | Supplied | Failed | Report


@dataclass(slots=True, kw_only=True)
class _Request:
    """A batch of keys on its way to its targets."""

    request_id: str
    initiator: SaeId
    targets: tuple[SaeId, ...]
    key_bits: int
    number: int
    deadline_s: float
    attempt: int = 1
    avoided: frozenset[LinkId] = frozenset()
    key_ids: list[KeyId] = field(default_factory=list)
    keys: list[Secret] = field(default_factory=list)
    routes: dict[str, tuple[NodeId, ...]] = field(default_factory=dict)
    """Relay ID to route, of relays that are not confirmed."""
    confirmed: dict[str, tuple[NodeId, ...]] = field(default_factory=dict)
    hops: list[wire.Hop] = field(default_factory=list)


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
    ) -> None:
        self._node = node
        self._topology = topology
        self._store = store
        self._random = random
        self._clock = clock
        self._unusable = unusable
        self._requests: dict[str, _Request] = {}
        self._forwarded: dict[str, _Forwarded] = {}
        self._up: set[LinkId] = set()
        self._grants_at_s = 0.0

    # ── what the node asks ──────────────────────────────────────────────────────────────────────────────────────────

    def request(
        self, initiator: SaeId, targets: Sequence[SaeId], number: int, key_bits: int
    ) -> tuple[str, list[Effect]]:
        """Start a batch of fresh keys for these targets; its ID comes back in Supplied or Failed."""
        request = _Request(
            request_id=str(uuid.UUID(bytes=self._random.octets(16), version=4)),
            initiator=initiator,
            targets=tuple(dict.fromkeys(targets)),
            key_bits=key_bits,
            number=number,
            deadline_s=self._clock.monotonic_s() + REQUEST_TIMEOUT_S,
        )
        return request.request_id, self._start(request)

    def link_up(self, link: LinkId) -> list[Effect]:
        """The neighbour over a link is connected."""
        self._up.add(link)
        return []

    def link_down(self, link: LinkId) -> list[Effect]:
        """The neighbour is gone: what waits for it fails now, not at the time-out."""
        self._up.discard(link)
        effects: list[Effect] = []
        for relay_id, passed in list(self._forwarded.items()):
            if passed.onward == link:
                effects += self._complete_back(relay_id, False, f"link {link}: the neighbour was lost", link, [])
        for request in list(self._requests.values()):
            if any(self._link(nodes, 0) == link for nodes in request.routes.values()):
                effects += self._retry(request, f"link {link}: the neighbour was lost", {link})
        return effects

    def tick(self) -> list[Effect]:
        """Time-outs, and grants where a direction runs low."""
        now_s = self._clock.monotonic_s()
        effects: list[Effect] = []
        for request in [r for r in self._requests.values() if r.deadline_s < now_s]:
            silent = list(request.routes.values())
            why = "the relay of the keys took too long: no answer over " + ", ".join("-".join(n) for n in silent)
            avoided = {link for nodes in silent for link in links_of(self._topology, nodes)}
            effects += self._retry(request, why, avoided)
        for relay_id in [r for r, passed in self._forwarded.items() if passed.until_s < now_s]:
            del self._forwarded[relay_id]
        if now_s >= self._grants_at_s:
            self._grants_at_s = now_s + GRANT_PERIOD_S
            for link in sorted(self._up):
                effects += self._ask_for_grant(link)
        return effects

    # ── the initiator's end ─────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, request: _Request) -> list[Effect]:
        """Take octets for the first hops and send, or fail with nothing taken."""
        try:
            check_request(
                *(self._topology, self._node, request.initiator, request.targets, request.number, request.key_bits)
            )
            request.key_ids = [
                KeyId(str(uuid.UUID(bytes=self._random.octets(16), version=4))) for _ in range(request.number)
            ]
            by_node = self._by_node(request.targets)
            routes = {node: self._route(request, node) for node in by_node if node != self._node}
            with self._store.transaction():
                effects = self._send_out(request, by_node, routes)
        except QtrunkError as error:
            return [Failed(request.request_id, error)]
        if not request.routes:
            return self._deliver(request)
        self._requests[request.request_id] = request
        return effects

    def _send_out(
        self,
        request: _Request,
        by_node: dict[NodeId, list[SaeId]],
        routes: dict[NodeId, tuple[NodeId, ...]],
    ) -> list[Effect]:
        expires_unix_s = self._clock.unix_s() + KEY_LIFETIME_S
        octets = request.number * request.key_bits // 8
        self._store.reserve_keys(request.key_ids, request.initiator, request.targets, request.key_bits, expires_unix_s)
        effects: list[Effect] = []
        material: bytes | None = None
        for node, nodes in routes.items():
            link = self._link(nodes, 0)
            if link not in self._up:
                raise KeyExhausted(f"link {link}: the neighbour is not connected")
            pad, tag_key = self._allocate(link, octets)
            # The first hop of the first route: its pad is the key, the ciphertext is all zeros.
            material = material or bytes(pad.material.reveal())
            relay_id = str(uuid.UUID(bytes=self._random.octets(16), version=4))
            request.routes[relay_id] = nodes
            relay = wire.KeyRelay(
                relay_id=relay_id,
                route=list(nodes),
                initiator=request.initiator,
                targets=list(by_node[node]),
                all_targets=list(request.targets),
                key_ids=list(request.key_ids),
                key_bits=request.key_bits,
                expires_unix_s=expires_unix_s,
                pad=_on_wire(pad.slices),
                ciphertext=its.one_time_pad(material, pad.material.reveal()),
                hops=[self._hop(link, pad.slices)],
            )
            effects.append(self._seal(link, relay, tag_key))
        material = material or self._random.octets(octets)
        step = request.key_bits // 8
        request.keys = [Secret(material[at : at + step]) for at in range(0, octets, step)]
        if self._node in by_node:
            self._store.store_keys(
                list(zip(request.key_ids, request.keys, strict=True)),
                request.initiator,
                by_node[self._node],
                request.targets,
                request.key_bits,
                _receipt([(self._node,)], []),
                expires_unix_s,
            )
        return effects

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
        routes = list(request.confirmed.values()) or [(self._node,)]
        try:
            self._store.deliver_initiator(request.key_ids, _receipt(routes, request.hops))
        except QtrunkError as error:
            return [*self._void(request), Failed(request.request_id, error)]
        keys = [
            SuppliedKey(key_id=key_id, material=material)
            for key_id, material in zip(request.key_ids, request.keys, strict=True)
        ]
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
            deadline_s=request.deadline_s + RETRY_TIMEOUT_S,
            attempt=request.attempt + 1,
            avoided=request.avoided.union(links),
        )
        if again.attempt > ATTEMPTS_MAX:
            return [*effects, Failed(request.request_id, KeyExhausted(why))]
        try:
            for node in self._by_node(request.targets):
                if node != self._node:
                    self._route(again, node)
        except RouteUnavailable:
            return [*effects, Failed(request.request_id, KeyExhausted(f"{why}; there is no other route"))]
        return effects + self._start(again)

    def _void(self, request: _Request) -> list[Effect]:
        """Keys that the initiator will not be given must not wait anywhere."""
        effects: list[Effect] = []
        for relay_id, nodes in {**request.routes, **request.confirmed}.items():
            void = wire.KeyVoid(relay_id=relay_id, route=list(nodes), key_ids=list(request.key_ids))
            effects += self._try_send(self._link(nodes, 0), void)
        try:
            self._store.destroy_keys(request.key_ids, "voided")
        except StoreError as error:
            # They stay reserved, which gives them to nobody; the store ends them when it opens again or they expire.
            effects.append(Report(None, "StorageFull", str(error)))
        for key in request.keys:
            key.wipe()
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
            self._authenticate(link, sealed)
            return self._dispatch(link, body)
        except QtrunkError as error:
            return [_report(link, error)]

    def _authenticate(self, link: LinkId, sealed: wire.Sealed) -> None:
        """Follow the tag's key and verify; where that fails, nothing was followed."""
        slices = _slices(sealed.auth, its.WC_KEY_OCTETS)
        label = self._label(self._topology.link(link).other(self._node), self._node, link)
        with self._store.transaction():
            key = self._store.follow(link, self._role(link).peer, slices)
            its.verify(key.reveal(), label, [sealed.body], sealed.tag)

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
                self._store.receive_grant(link, self._role(link).peer, _slices(body.slices, total))
                return []

    # ── on the way ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _relay(self, link: LinkId, body: wire.KeyRelay) -> list[Effect]:
        """Store the keys or pass them on; where that fails, the initiator hears of it and need not wait."""
        slices = _slices(body.pad, len(body.ciphertext))
        onward = None if body.route[-1] == self._node else self._onward(body.route)
        try:
            with self._store.transaction():
                arrived = self._store.follow(link, self._role(link).peer, slices)
                outcome = self._carry(body, its.one_time_pad(body.ciphertext, arrived.reveal()), onward)
        except QtrunkError as error:
            outcome = error
        if isinstance(outcome, QtrunkError):
            return self._refuse(link, body, outcome, onward or link)
        if onward is None or outcome is None:
            done = wire.KeyRelayCompletion(
                relay_id=body.relay_id, is_stored=True, reason="", failed_link="", hops=body.hops
            )
            return self._try_send(link, done)
        self._forwarded[body.relay_id] = _Forwarded(link, onward, self._clock.monotonic_s() + FORWARD_MEMORY_S)
        return [outcome]

    def _carry(self, body: wire.KeyRelay, material: bytes, onward: LinkId | None) -> SendKx | QtrunkError | None:
        """Store keys, or encrypt them for the next hop, all or nothing.

        An error is returned, not raised: the octets that the keys came under stay spent, since another target of the
        batch may hold them as key already.
        """
        try:
            with self._store.transaction():
                if onward is None:
                    self._keep(body, material)
                    return None
                if onward not in self._up:
                    raise KeyExhausted(f"link {onward}: the neighbour is not connected")
                pad, tag_key = self._allocate(onward, len(material))
                relay = msgspec.structs.replace(
                    body,
                    pad=_on_wire(pad.slices),
                    ciphertext=its.one_time_pad(material, pad.material.reveal()),
                    hops=[*body.hops, self._hop(onward, pad.slices)],
                )
                return self._seal(onward, relay, tag_key)
        except QtrunkError as error:
            return error

    def _keep(self, body: wire.KeyRelay, material: bytes) -> None:
        step = body.key_bits // 8
        keys = [
            (parse_key_id(key_id), Secret(material[i * step : (i + 1) * step])) for i, key_id in enumerate(body.key_ids)
        ]
        self._store.store_keys(
            keys,
            SaeId(body.initiator),
            [SaeId(target) for target in body.targets],
            [SaeId(target) for target in body.all_targets],
            body.key_bits,
            _receipt([body.route], body.hops),
            body.expires_unix_s,
        )
        for _, key in keys:
            key.wipe()

    def _refuse(self, link: LinkId, body: wire.KeyRelay, error: QtrunkError, failed: LinkId) -> list[Effect]:
        """Tell the initiator; what the store says is for this node's operator, the others learn where to look."""
        is_short = isinstance(error, KeyExhausted)
        reason = str(error) if is_short else f"node {self._node} refused the keys; see its alarms"
        refusal = wire.KeyRelayCompletion(
            relay_id=body.relay_id, is_stored=False, reason=reason, failed_link=failed, hops=[]
        )
        return [*self._try_send(link, refusal), *([] if is_short else [_report(link, error)])]

    def _complete_back(
        self, relay_id: str, is_stored: bool, reason: str, failed: str, hops: list[wire.Hop]
    ) -> list[Effect]:
        passed = self._forwarded.pop(relay_id)
        completion = wire.KeyRelayCompletion(
            relay_id=relay_id, is_stored=is_stored, reason=reason, failed_link=failed, hops=hops
        )
        return self._try_send(passed.back, completion)

    def _completed(self, link: LinkId, body: wire.KeyRelayCompletion) -> list[Effect]:
        passed = self._forwarded.get(body.relay_id)
        if passed is not None:
            if passed.onward != link:
                raise WireError("completion: came over another link than the relay left by")
            return self._complete_back(body.relay_id, body.is_stored, body.reason[:500], body.failed_link, body.hops)
        request = next((r for r in self._requests.values() if body.relay_id in r.routes), None)
        if request is None or self._link(request.routes[body.relay_id], 0) != link:
            # Given up meanwhile; the void is on its way.
            return []
        if not body.is_stored:
            failed = LinkId(body.failed_link) if body.failed_link else link
            return self._retry(request, body.reason[:500] or f"link {failed}: refused", {failed})
        nodes = request.routes[body.relay_id]
        check_hops(body.hops, nodes, links_of(self._topology, nodes))
        request.confirmed[body.relay_id] = request.routes.pop(body.relay_id)
        request.hops += body.hops
        return [] if request.routes else self._deliver(request)

    def _voided(self, body: wire.KeyVoid) -> list[Effect]:
        if body.route[-1] == self._node:
            self._store.destroy_keys([parse_key_id(key_id) for key_id in body.key_ids], "voided")
            return []
        return self._try_send(self._onward(body.route), body)

    # ── grants ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask_for_grant(self, link: LinkId) -> list[Effect]:
        level = self._store.level(link)
        if level.own_octets >= LOW_OCTETS or level.peer_octets < max(2 * level.own_octets, 4 * CONTROL_OCTETS):
            return []
        wanted = (level.peer_octets - level.own_octets) // 2
        return self._try_send(link, wire.PoolGrantRequest(wanted_octets=wanted))

    def _grant(self, link: LinkId, body: wire.PoolGrantRequest) -> list[Effect]:
        """Give up to half of what this end has more than the peer, if it has more."""
        level = self._store.level(link)
        spare = (level.own_octets - level.peer_octets) // 2
        octets = min(body.wanted_octets, spare)
        if octets <= CONTROL_OCTETS:
            return []
        with self._store.transaction():
            tag_key = self._store.allocate(link, self._role(link), its.WC_KEY_OCTETS)
            slices = self._store.grant(link, self._role(link), octets)
            return [self._seal(link, wire.PoolGrant(slices=_on_wire(slices)), tag_key)]

    # ── sealing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _seal(self, link: LinkId, body: wire.KxMessage, tag_key: Allocation | None = None) -> SendKx:
        """Tag a message with fresh octets of the own direction."""
        octets = encode(body)
        key = tag_key or self._store.allocate(link, self._role(link), its.WC_KEY_OCTETS)
        label = self._label(self._node, self._topology.link(link).other(self._node), link)
        tag = its.tag(key.material.reveal(), label, [octets])
        return SendKx(link, encode(wire.Sealed(body=octets, auth=_on_wire(key.slices), tag=tag)))

    def _try_send(self, link: LinkId, body: wire.KxMessage) -> list[Effect]:
        """For messages that nobody waits on for ever: without a neighbour or a tag key they are left out, and said
        so.
        """
        if link not in self._up:
            return []
        try:
            return [self._seal(link, body)]
        except KeyExhausted as error:
            return [Report(link, "PoolEmpty", f"link {link}: no key left for {type(body).__name__}: {error}")]
        except StoreError as error:
            return [Report(link, "StorageFull", f"link {link}: no {type(body).__name__} was sent: {error}")]

    def _allocate(self, link: LinkId, octets: int) -> tuple[Allocation, Allocation]:
        """Octets of the own direction for keys, and for the tag of the message that carries them.

        What control messages need is left. The receiver follows the tag's octets first, so they are taken first.
        """
        own = self._store.level(link).own_octets
        if own < octets + HOP_OVERHEAD_OCTETS:
            raise KeyExhausted(
                f"link {link}: {8 * max(0, own - HOP_OVERHEAD_OCTETS)} bits of {8 * octets} left in the direction "
                f"from {self._node}; wait for more, or ask for less"
            )
        tag_key = self._store.allocate(link, self._role(link), its.WC_KEY_OCTETS)
        return self._store.allocate(link, self._role(link), octets), tag_key

    def _hop(self, link: LinkId, slices: Sequence[Slice]) -> wire.Hop:
        """The record of one hop, for receipts: which blocks of which link, what they are worth."""
        blocks = []
        epsilon = 0.0
        for block in sorted({piece.block for piece in slices}):
            record = self._store.block_record(link, block)
            total = sum(float(str(record[f"epsilon_{part}"])) for part in ("secret", "correct", "authentic"))
            epsilon += total
            blocks.append(
                wire.BlockUsed(
                    block=block,
                    epsilon=total,
                    qber=float(str(record["qber_test"])),
                    authentication=str(record["authentication"]),
                )
            )
        return wire.Hop(link=link, sender=self._node, blocks=blocks, epsilon=epsilon)

    def _onward(self, nodes: Sequence[str]) -> LinkId:
        """The link by which a route goes on from here."""
        return self._topology.link_between(self._node, NodeId(nodes[nodes.index(self._node) + 1])).id

    def _role(self, link: LinkId) -> Role:
        return Role.ALICE if self._topology.link(link).alice == self._node else Role.BOB

    def _link(self, nodes: Sequence[NodeId], index: int) -> LinkId:
        return self._topology.link_between(nodes[index], nodes[index + 1]).id

    @staticmethod
    def _label(sender: NodeId, receiver: NodeId, link: LinkId) -> bytes:
        return "|".join([PROTOCOL, sender, receiver, link]).encode()


def _on_wire(slices: Sequence[Slice]) -> wire.SlicesOnWire:
    return [(piece.block, piece.offset, piece.length) for piece in slices]


def _slices(pieces: wire.SlicesOnWire, octets: int) -> tuple[Slice, ...]:
    """Pieces as the store knows them; WireError unless they are so many octets."""
    if sum(length for _, _, length in pieces) != octets:
        raise WireError(f"pieces of link key: {octets} octets in all are needed")
    return tuple(Slice(*piece) for piece in pieces)


def _receipt(routes: Sequence[Sequence[str]], hops: Sequence[wire.Hop]) -> dict[str, object]:
    """What the store keeps of how a key came: JSON values."""
    return {
        "routes": [list(nodes) for nodes in routes],
        "hops": msgspec.to_builtins(list(hops)),
        "epsilon": sum((hop.epsilon for hop in hops), 0.0),
    }


def _report(link: LinkId, error: QtrunkError) -> Report:
    """What the operator must hear when a message of the neighbour could not be taken."""
    match error:
        case AuthenticationFailed():
            return Report(link, "RelayAuthenticationFailed", f"link {link}: {error}")
        case StoreError():
            return Report(link, "StorageFull", f"link {link}: {error}")
        case _:
            return Report(link, "RelayProtocolError", f"link {link}: {error}")
