"""The initiator's end of the relay machine: what is asked goes out over its routes, is confirmed, then delivered.

Where tenants demand several routes, each target's node gets the cargo in shares over disjoint ones (`relay.shares`).
The node there answers over every route by which a share came; the first answer that its tag proves is enough, so that
one silent or corrupt route holds nothing up where a share is to spare. Who changed something is found out afterwards
(`relay.inquest`).
"""

import hmac
from collections.abc import Collection, Iterable, Sequence

import msgspec

from qtrunk.base.errors import KeyExhausted, QtrunkError, RequestRefused, RouteUnavailable, StoreError, WireError
from qtrunk.base.ids import KeyId, LinkId, NodeId, SaeId
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.crypto import its
from qtrunk.crypto.hybrid import SEED_OCTETS, Wrapped
from qtrunk.kms.consume import INITIATED
from qtrunk.relay import messages as wire
from qtrunk.relay import shares
from qtrunk.relay.announced import order_of
from qtrunk.relay.cargo import CONFIRM_OCTETS, confirmation, keys_of, masked, protection, receipt, relay_context
from qtrunk.relay.checks import check_answer_hops, check_request, is_segment_size
from qtrunk.relay.effects import Effect, Failed, Report, Supplied
from qtrunk.relay.ground import Ground
from qtrunk.relay.hops import on_wire
from qtrunk.relay.request import Group, Request

REQUEST_TIMEOUT_S = 5.0
RETRY_TIMEOUT_S = 4.0
"""A second attempt gets so much more; both together stay under what the shell waits, twice the time-out."""
POOL_LIFETIME_S = 30 * 86400.0
"""A segment may be given out for so long; its targets may come for their tenant's key lifetime after that."""
BORDER_LIFETIME_S = 120.0
"""So long a key for a foreign network may wait at the node beside it to be handed over."""
ATTEMPTS_MAX = 2
Routes = dict[NodeId, list[tuple[NodeId, ...]]]


class Initiator:
    """What one node asks for."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._requests: dict[str, Request] = {}

    def request(
        self, initiator: SaeId, targets: Sequence[SaeId], number: int, key_bits: int
    ) -> tuple[str, list[Effect]]:
        """See relay.kx.Kx."""
        octets = CONFIRM_OCTETS + number * key_bits // 8
        return self._new(initiator, targets, number=number, key_bits=key_bits, octets=octets, segment=0)

    def carry(
        self, initiator: SaeId, targets: Sequence[SaeId], keys: Sequence[tuple[KeyId, Secret]]
    ) -> tuple[str, list[Effect]]:
        """See relay.kx.Kx."""
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
        """See relay.kx.Kx."""
        return self._new(initiator, [target], number=0, key_bits=0, octets=octets, segment=self._segment())

    def _new(
        self, initiator: SaeId, targets: Sequence[SaeId], *, number: int, key_bits: int, octets: int, segment: int
    ) -> tuple[str, list[Effect]]:
        request = self._request(initiator, targets, number=number, key_bits=key_bits, octets=octets, segment=segment)
        return request.request_id, self._start(request)

    def _request(
        self, initiator: SaeId, targets: Sequence[SaeId], *, number: int, key_bits: int, octets: int, segment: int
    ) -> Request:
        return Request(
            request_id=self._ground.uuid(),
            initiator=initiator,
            targets=tuple(dict.fromkeys(targets)),
            key_bits=key_bits,
            number=number,
            octets=octets,
            segment=segment,
            deadline_s=self._ground.clock.monotonic_s() + REQUEST_TIMEOUT_S,
            is_announced=self._ground.is_announced(initiator),
        )

    def link_down(self, link: LinkId) -> list[Effect]:
        """What waits for the neighbour over a link fails now, not at the time-out."""
        effects: list[Effect] = []
        for request in list(self._requests.values()):
            for relay in request.unanswered():
                if self._ground.hops.between(relay.route, 0) == link and request.request_id in self._requests:
                    effects += self._lost(request, relay.relay_id, f"link {link}: the neighbour was lost", {link})
        return effects

    def links_lost(self, links: Collection[LinkId]) -> list[Effect]:
        """What is on its way over links that went out of use elsewhere tries others."""
        effects: list[Effect] = []
        for request in list(self._requests.values()):
            for relay in request.unanswered():
                touched = set(self._ground.links(relay.route)).intersection(links)
                if touched and request.request_id in self._requests:
                    why = f"link {', '.join(sorted(touched))}: out of use"
                    effects += self._lost(request, relay.relay_id, why, touched)
        return effects

    def under_way(self, links: Collection[LinkId]) -> int:
        """How many of the own relays wait for their answer over these links."""
        waiting = [relay for request in self._requests.values() for relay in request.unanswered()]
        return sum(not set(links).isdisjoint(self._ground.links(relay.route)) for relay in waiting)

    def link_gone(self, link: LinkId) -> list[Effect]:
        """See relay.kx.Kx: requests that began over the link begin again, answered in part or not."""
        effects: list[Effect] = []
        for request in list(self._requests.values()):
            relays = [relay for group in request.groups for relay in group.relays.values()]
            if any(self._ground.hops.between(relay.route, 0) == link for relay in relays):
                effects += self._retry(request, f"link {link}: was taken out of the network", {link})
        return effects

    @property
    def is_waiting(self) -> bool:
        """Whether any request is under way."""
        return bool(self._requests)

    def tick(self) -> list[Effect]:
        """Time-outs."""
        now_s = self._ground.clock.monotonic_s()
        effects: list[Effect] = []
        for request in [r for r in self._requests.values() if r.deadline_s < now_s]:
            silent = request.unanswered()
            why = "the relay of the keys took too long: no answer over "
            why += ", ".join("-".join(relay.route) for relay in silent)
            avoided = {link for relay in silent for link in self._ground.links(relay.route)}
            effects += self._retry(request, why, avoided, is_silence=True)
            for relay in silent:
                effects += self._ground.inquests.open(relay.relay_id, is_silence=True)
        return effects

    # ── out ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, request: Request) -> list[Effect]:
        """Take octets for the first hops and send, or fail with nothing taken."""
        try:
            self._check(request)
            if request.given is None:
                request.key_ids = [KeyId(self._ground.uuid()) for _ in range(request.number)]
            by_node = self._by_node(request.targets)
            routes = {node: self._routes(request, node) for node in by_node if node != self._ground.node}
            with self._ground.store.transaction():
                effects = self._send_out(request, by_node, routes)
        except QtrunkError as error:
            request.wipe()
            return [Failed(request.request_id, error)]
        if not request.groups:
            return self._deliver(request)
        self._requests[request.request_id] = request
        return effects

    def _check(self, request: Request) -> None:
        if not request.segment:
            number, key_bits = request.number, request.key_bits
        elif self._by_node(request.targets).keys() == {self._ground.node}:
            where = f"both are at node {self._ground.node}"
            raise RequestRefused(f"pool {request.initiator} to {request.targets[0]}: {where}")
        elif not is_segment_size(request.octets):
            raise RequestRefused(f"segment: {request.octets} octets asked for")
        else:
            number, key_bits = 1, 8
        check_request(
            *(self._ground.topology, self._ground.node, request.initiator, request.targets, number, key_bits),
            is_given=request.given is not None,
        )

    def _send_out(self, request: Request, by_node: dict[NodeId, list[SaeId]], routes: Routes) -> list[Effect]:
        expires_unix_s = self._expires_unix_s(request)
        if not request.segment and request.given is None:
            self._ground.store.reserve_keys(
                request.key_ids, request.initiator, request.targets, request.key_bits, expires_unix_s
            )
        is_hybrid = bool(routes) and self._ground.is_hybrid(request.initiator)
        seed = Secret(self._ground.random.octets(SEED_OCTETS)) if is_hybrid else None
        effects: list[Effect] = []
        octets: Secret | None = None
        relay: wire.KeyRelay | None = None
        for node, ways in routes.items():
            words = wire.KeyRelay(
                relay_id="",
                route=[],
                initiator=request.initiator,
                targets=list(by_node[node]),
                all_targets=list(request.targets),
                key_ids=list(request.key_ids),
                key_bits=request.key_bits,
                segment=request.segment,
                expires_unix_s=expires_unix_s,
                hybrid=None,
                pad=[],
                ciphertext=b"",
                hops=[],
            )
            if octets is None and request.given is not None:
                # What travels has the mask on it, so that the targets' nodes take it away.
                octets = masked(self._given(request), seed, words)
            group, octets, sent = self._send_group(node, ways, self._needed(request), words, octets, request, seed)
            request.groups.append(group)
            relay = next(iter(group.relays.values()))
            effects += sent
        if octets is None:
            fresh = request.given is None
            octets = Secret(self._ground.random.octets(request.octets)) if fresh else self._given(request)
        request.cargo = octets if relay is None else masked(octets, seed, relay)
        if self._ground.node in by_node:
            self._ground.store.store_keys(
                list(zip(request.key_ids, keys_of(request.cargo, request.key_bits), strict=True)),
                *(request.initiator, by_node[self._ground.node], request.targets, request.key_bits),
                receipt([(self._ground.node,)], [], "local", self._ground.origin(request.initiator)),
                expires_unix_s,
            )
        return effects

    def _send_group(
        self,
        node: NodeId,
        ways: list[tuple[NodeId, ...]],
        needed: int,
        words: wire.KeyRelay,
        octets: Secret | None,
        request: Request,
        seed: Secret | None,
    ) -> tuple[Group, Secret, list[Effect]]:
        """The relays of one cargo to one node. Its octets are given, or made of the first hops' pads."""
        hops, count = self._ground.hops, len(ways)
        before = shares.overhead_octets(count)
        links = [hops.between(nodes, 0) for nodes in ways]
        pads = [hops.allocate(link, before + request.octets) for link in links]
        # Where nothing is given, the pads are the shares, and their ciphertext is all zeros.
        bare = [pad.material if count == 1 else Secret(pad.material.reveal()[before:]) for pad, _ in pads]
        parts, octets = shares.make(bare, needed, octets)
        bodies = self._bodies(ways, needed, words)
        if seed is not None:
            wrapped = self._wrap(node, seed, bodies[0])
            bodies = [msgspec.structs.replace(body, hybrid=wrapped) for body in bodies]
        if count > 1:
            parts = shares.dressed([pad.material for pad, _ in pads], parts, bodies)
        effects: list[Effect] = []
        relays: dict[str, wire.KeyRelay] = {}
        by_note: set[str] = set()
        for body, part, (pad, tag_key), link in zip(bodies, parts, pads, links, strict=True):
            is_announced = request.is_announced and len(body.route) > 2 and self._is_heard(body.route[1:])
            self._ground.inquests.note_sent(body, pad.material if is_announced else part, is_announced=is_announced)
            relay = msgspec.structs.replace(
                body,
                pad=on_wire(pad.slices),
                ciphertext=its.one_time_pad(part.reveal(), pad.material.reveal()),
                hops=[hops.record(link, pad.slices)],
            )
            if is_announced:
                # Where the pad becomes the cargo, there is nothing to announce.
                ciphertext = b"" if part is pad.material else relay.ciphertext
                relay = msgspec.structs.replace(relay, pad=[], ciphertext=ciphertext)
                order, order_digest = order_of(relay, len(part))
                said = wire.RelayPad(relay_id=relay.relay_id, pad=on_wire(pad.slices), order=order_digest)
                effects += [hops.seal(link, said, tag_key), order]
                by_note.add(relay.relay_id)
            else:
                effects.append(hops.seal(link, relay, tag_key))
            # What was sent is not sent again.
            relays[relay.relay_id] = msgspec.structs.replace(relay, ciphertext=b"")
        return Group(node=node, needed=needed, relays=relays, by_note=by_note), octets, effects

    def _is_heard(self, nodes: Sequence[str]) -> bool:
        return all(self._ground.hears(NodeId(node)) for node in nodes)

    def _bodies(self, ways: Sequence[tuple[NodeId, ...]], needed: int, words: wire.KeyRelay) -> list[wire.KeyRelay]:
        group, count = self._ground.uuid(), len(ways)
        return [
            msgspec.structs.replace(
                words,
                relay_id=self._ground.uuid(),
                route=list(nodes),
                share=None if count == 1 else wire.Share(group=group, number=number, count=count, needed=needed),
            )
            for number, nodes in enumerate(ways, start=1)
        ]

    def _given(self, request: Request) -> Secret:
        """The keys behind fresh octets for the confirmation, which must never key two tags."""
        assert request.given is not None
        cargo = Secret(bytes(request.octets))
        _put(cargo, 0, [Secret(self._ground.random.octets(CONFIRM_OCTETS)), request.given])
        return cargo

    def _wrap(self, node: NodeId, seed: Secret, relay: wire.KeyRelay) -> Wrapped:
        if self._ground.hybrid is None:
            raise KeyExhausted(f"keys of {relay.initiator} must be hybrid, and this node has no signing key")
        return self._ground.hybrid.wrap(node, seed, relay_context(relay), self._ground.clock.unix_s())

    def _expires_unix_s(self, request: Request) -> float:
        """When the last target must have come."""
        is_ours = self._ground.topology.sae(request.initiator) is not None
        if is_ours and request.given is not None:
            return self._ground.clock.unix_s() + BORDER_LIFETIME_S
        whose = request.initiator if is_ours else request.targets[0]
        lifetime_s = self._ground.topology.tenant_of(whose).key_lifetime_s
        return self._ground.clock.unix_s() + lifetime_s + (POOL_LIFETIME_S if request.segment else 0)

    def _by_node(self, targets: Sequence[SaeId]) -> dict[NodeId, list[SaeId]]:
        by_node: dict[NodeId, list[SaeId]] = {}
        for target in targets:
            node = self._ground.topology.end_of(target)
            if node is None:
                # check_request had seen to it; it was taken out of the network since.
                raise RouteUnavailable(f"SAE {target} is not in the network any more")
            by_node.setdefault(node, []).append(target)
        return by_node

    def _needed(self, request: Request) -> int:
        return self._ground.routes_demanded([request.initiator, *request.targets])[0]

    def _routes(self, request: Request, node: NodeId) -> list[tuple[NodeId, ...]]:
        """Around links that are said to be of no use, if there is such a way; never over one that failed just now."""
        needed, spare = self._ground.routes_demanded([request.initiator, *request.targets])
        try:
            return self._ways(request, node, needed, spare, self._ground.routes.down() | request.avoided)
        except RouteUnavailable:
            return self._ways(request, node, needed, spare, request.avoided)

    def _ways(
        self, request: Request, node: NodeId, needed: int, spare: int, without: Collection[LinkId]
    ) -> list[tuple[NodeId, ...]]:
        """As many routes as shares are needed, and up to so many to spare as there are and can begin now."""
        routes, hops = self._ground.routes, self._ground.hops
        saes = (request.initiator, *request.targets)
        if needed == 1:
            return [routes.route_for(saes, node, without)]
        for count in range(min(wire.ROUTES_MAX, needed + spare), needed - 1, -1):
            try:
                found = routes.disjoint_for(saes, node, count, without)
            except RouteUnavailable:
                continue
            octets_each = request.octets + shares.overhead_octets(count)
            ready = [nodes for nodes in found if hops.can_carry(hops.between(nodes, 0), octets_each)]
            if len(ready) >= needed:
                return ready
        return list(routes.disjoint_for(saes, node, needed, without))

    # ── back ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def completed(self, link: LinkId, body: wire.KeyRelayCompletion) -> list[Effect]:
        """An answer from a target's node, or from who could not pass the cargo on."""
        request, group = self._asked(body.relay_id)
        if group is not None and body.relay_id in group.by_note:
            raise WireError("completion: of a relay whose answer is a note")
        return self._heard(request, group, body, link)

    def noted(self, node: NodeId, body: wire.KeyRelayCompletion) -> list[Effect]:
        """The same in a note, from the node that signed it: any of the route may refuse, the last one has stored."""
        request, group = self._asked(body.relay_id)
        route = self._ground.inquests.announced_route(body.relay_id)
        if node not in route[1:] or (node != route[-1] and (body.is_stored or body.wrong)):
            raise WireError(f"completion: node {node} has no say in it")
        return self._heard(request, group, body, self._ground.hops.between(route, 0) if group is not None else None)

    def _asked(self, relay_id: str) -> tuple[Request | None, Group | None]:
        for request in self._requests.values():
            for group in request.groups:
                if relay_id in group.relays:
                    return request, group
        return None, None

    def _heard(
        self, request: Request | None, group: Group | None, body: wire.KeyRelayCompletion, link: LinkId | None
    ) -> list[Effect]:
        self._ground.inquests.note_answer(body, is_received=True, is_sent=False)
        if request is not None and group is not None and link is not None:
            return self._answered(request, group, link, body)
        if body.wrong and self._ground.inquests.is_watched(body.relay_id):
            return [*self._ground.inquests.open(body.relay_id)]
        # Given up meanwhile, or not needed any more.
        return []

    def _answered(self, request: Request, group: Group, link: LinkId, body: wire.KeyRelayCompletion) -> list[Effect]:
        relay = group.relays[body.relay_id]
        if self._ground.hops.between(relay.route, 0) != link or body.relay_id not in group.open:
            return []
        if not body.is_stored:
            failed = LinkId(body.failed_link) if body.failed_link else link
            why = body.reason[:500] or f"link {failed}: refused"
            group.doubted |= self._over(group, body.wrong)
            if group.taken and body.relay_id in group.doubted:
                group.open.discard(body.relay_id)
                return [*self._ground.inquests.open(body.relay_id)]
            return self._lost(request, body.relay_id, why, {failed})
        taken = group.by_number(body.taken)
        if len(taken) < group.needed:
            raise WireError("taken: fewer shares than are needed")
        check_answer_hops(self._ground.topology, body.hops, [one.route for one in taken])
        group.open.discard(body.relay_id)
        if group.taken:
            return []
        if not hmac.compare_digest(confirmation(request.cargo, relay, body.taken, body.wrong), body.confirm):
            group.doubted.add(body.relay_id)
            why = f"relay over {'-'.join(relay.route)}: the target's node does not hold the same key"
            # What another route brings may still be right: then this answer was changed on its way.
            return [] if group.open else self._retry(request, why, self._links(group))
        group.taken = taken
        group.doubted |= self._over(group, body.wrong)
        request.hops += body.hops
        return self._deliver(request) if request.is_confirmed else []

    def _lost(self, request: Request, relay_id: str, why: str, links: Collection[LinkId]) -> list[Effect]:
        """Nothing will come of one relay: others may be enough."""
        group = next(group for group in request.groups if relay_id in group.relays)
        group.open.discard(relay_id)
        if group.taken or group.may_come:
            return []
        return self._retry(request, why, links)

    def _over(self, group: Group, wrong: Iterable[str]) -> set[str]:
        """The relays that came to their end over these links."""
        named = set(wrong)
        return {one for one, relay in group.relays.items() if named.intersection(self._ground.links(relay.route)[-1:])}

    def _links(self, group: Group) -> set[LinkId]:
        return {link for one in group.doubted for link in self._ground.links(group.relays[one].route)}

    def _deliver(self, request: Request) -> list[Effect]:
        """All targets hold the keys: on record first, then out."""
        self._requests.pop(request.request_id, None)
        relays = [relay for group in request.groups for relay in group.taken]
        how = receipt(
            [relay.route for relay in relays] or [(self._ground.node,)],
            request.hops,
            protection(relays[0].hybrid) if relays else "local",
            needed=max((group.needed for group in request.groups), default=1),
            is_announced=any(group.by_note for group in request.groups),
        )
        keys: list[SuppliedKey] = []
        try:
            if request.segment:
                self._ground.store.pools.add(
                    *(INITIATED, request.initiator, request.targets[0], request.segment, request.cargo, how),
                    self._ground.clock.unix_s() + POOL_LIFETIME_S,
                )
            elif request.given is None:
                self._ground.store.deliver_initiator(request.key_ids, how)
                materials = keys_of(request.cargo, request.key_bits)
                keys = [
                    SuppliedKey(key_id=key_id, material=material)
                    for key_id, material in zip(request.key_ids, materials, strict=True)
                ]
        except QtrunkError as error:
            return [*self._void(request), Failed(request.request_id, error)]
        request.wipe()
        for group in request.groups:
            for relay_id in group.open - group.doubted:
                self._ground.inquests.watch(relay_id, request.deadline_s)
        return [Supplied(request.request_id, keys, how), *self._suspect(request)]

    def _retry(
        self, request: Request, why: str, links: Collection[LinkId], *, is_silence: bool = False
    ) -> list[Effect]:
        """Void what was stored and try another route; without one, say why. Where notes of a relay by announced XORs
        were met by silence, the same route may do hop by hop.
        """
        effects = [*self._void(request), *self._suspect(request)]
        self._requests.pop(request.request_id, None)
        again = Request(
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
            again.wipe()
            return [*effects, Failed(request.request_id, KeyExhausted(why))]
        if not self._has_routes(again) and is_silence and any(group.by_note for group in request.groups):
            again.avoided = request.avoided
        if not self._has_routes(again):
            again.wipe()
            return [*effects, Failed(request.request_id, KeyExhausted(f"{why}; there is no other route"))]
        return effects + self._start(again)

    def _has_routes(self, request: Request) -> bool:
        try:
            for node in self._by_node(request.targets):
                if node != self._ground.node:
                    self._routes(request, node)
        except RouteUnavailable:
            return False
        return True

    def _suspect(self, request: Request) -> list[Effect]:
        """Say which routes changed something, and ask who did."""
        effects: list[Effect] = []
        for group in request.groups:
            for relay_id in sorted(group.doubted):
                way = "-".join(group.relays[relay_id].route)
                effects.append(Report(None, "RelayTampered", f"relay over {way}: the cargo or its answer was changed"))
                effects += self._ground.inquests.open(relay_id)
        return effects

    def _void(self, request: Request) -> list[Effect]:
        """Keys that the initiator will not be given must not wait anywhere."""
        effects: list[Effect] = []
        if request.given is not None:
            # Another attempt has the same key IDs, and who gave the keys has them voided where all fails.
            request.cargo.wipe()
            return effects
        for relay in request.all_relays():
            void = wire.KeyVoid(
                relay_id=relay.relay_id,
                route=relay.route,
                key_ids=list(request.key_ids),
                initiator=request.initiator,
                target=relay.targets[0],
                segment=request.segment,
            )
            effects += self._ground.hops.try_send(self._ground.hops.between(relay.route, 0), void)
        try:
            self._ground.store.destroy_keys(request.key_ids, "voided")
        except StoreError as error:
            # They stay reserved, which gives them to nobody; the store ends them when it opens again or they expire.
            effects.append(Report(None, "StorageFull", str(error)))
        request.cargo.wipe()
        return effects

    def _segment(self) -> int:
        return int.from_bytes(self._ground.random.octets(4), "big") or 1


def _put(into: Secret, start: int, materials: Sequence[Secret]) -> None:
    """One behind the other."""
    view = into.fill()
    for material in materials:
        view[start : start + len(material)] = material.reveal()
        start += len(material)
