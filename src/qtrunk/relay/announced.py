"""Relay by announced XORs: every relay says the sum of its octets of two links, the last node adds all of them up.

The initiator's node tells all nodes of a route what is to be relayed (`messages.Order`), in one note that runs ahead of
all work. Each but the last takes octets of its link onward and tells the neighbour there which (`messages.RelayPad`,
sealed as all that neighbours say). A relay that has the octets of both of its links announces their XOR to the last
node; the initiator's node announces by what the cargo differs from its own octets, which is nothing where they become
the cargo. Every link but the last is in two of the sums, so that they leave the cargo when the last node adds its
octets. No node waits for the disk of the one before it: however many hops, each flushes twice, all at the same time.

Octets of a link serve one order alone: whoever takes some says for which, by its digest, and a relay adds up only what
was taken for the order that it knows. So what is announced says nothing of the cargo to who knows none of the links; a
relay of the route knows as much as one that passes cargos on. Notes are signed (`node.notes`), so that one who changes
them, or what it announces, is found (`relay.inquest`). What the two ends give out they have confirmed to each other as
with any other relay (`relay.cargo`), whatever became of the notes.

An order costs its relays key before its initiator's node has shown that it spends its own. So an initiator's node has
EAGER_OCTETS in advance, and none for a while after it has left a relay waiting; beyond that a relay takes octets once
those of the link before are there, which is hop after hop.

What lies here until it is complete is in memory alone, and bounded, for each node that says something and for all
together. What stays incomplete is forgotten, and its octets of link key with it.
"""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import msgspec

from qtrunk.base.errors import KeyExhausted, QtrunkError, WireError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.secret import Secret
from qtrunk.base.wire import encode
from qtrunk.crypto import its
from qtrunk.relay import messages as wire
from qtrunk.relay.carrier import FORWARD_MEMORY_S, Carrier
from qtrunk.relay.checks import check_order, check_relay
from qtrunk.relay.effects import Effect
from qtrunk.relay.ground import Ground
from qtrunk.relay.hops import on_wire, parsed, report
from qtrunk.relay.inquest import Tell

EAGER_OCTETS = 256 << 10
"""Of one link, for the orders of one node whose own octets have not come yet."""
DISTRUST_S = 600.0
HELD_MAX, HELD_BY_ONE_MAX = 128 << 20, 32 << 20
"""Octets of all that is ordered and incomplete, and of one node's orders."""
EARLY_MAX, EARLY_BY_ONE_MAX, EARLY_BY_ONE = 32 << 20, 4 << 20, 64
"""Octets of all that came before its order, and of what one node announced so, and how many."""


@dataclass(slots=True)
class _Passage:
    """What is known here of one relay that was ordered."""

    until_s: float
    order: wire.Order
    digest: bytes
    base_octets: int
    """Of the order, and of the links' octets that a node needs for it."""
    came: Secret | None = None
    """Octets of the link that it comes over; at the last node, of the link up to which all is added up."""
    own: Secret | None = None
    """Octets of the link onward, at a relay."""
    hop: wire.Hop | None = None
    """Of the link onward."""
    hops: dict[str, wire.Hop] = field(default_factory=dict)
    """By node, at the last one: of what is added up."""
    announced: dict[str, wire.Announcement] = field(default_factory=dict)
    """By node, at the last one: what waits for those behind it."""
    implied: list[bytes] = field(default_factory=list)
    """Digests of the links' octets that were added up, the last link first."""

    @property
    def route(self) -> list[str]:
        """All nodes."""
        return self.order.relay.route

    def held_octets(self) -> int:
        """All that lies here of it, or will."""
        return self.base_octets + sum(map(_size, self.announced.values()))

    def wipe(self) -> None:
        """Nothing of it is needed any more."""
        for octets in (self.came, self.own):
            if octets is not None:
                octets.wipe()


@dataclass(slots=True)
class _Early:
    """What came of a relay before its order."""

    until_s: float
    pads: dict[LinkId, tuple[bytes, Secret]] = field(default_factory=dict)
    """By link: for which order, and the octets."""
    failed: tuple[QtrunkError, LinkId] | None = None
    announced: dict[str, wire.Announcement] = field(default_factory=dict)

    def wipe(self) -> None:
        """Nothing of it is needed any more."""
        for _, octets in self.pads.values():
            octets.wipe()


def order_of(relay: wire.KeyRelay, octets: int) -> tuple[Tell, bytes]:
    """What the initiator's node tells the nodes of a route, and its digest; `relay` with what this node announces."""
    route = tuple(map(NodeId, relay.route))
    said = encode(wire.Order(relay=relay, octets=octets))
    return Tell(route[-1], said, wire.ANNOUNCED_SERVICE, route), _digest(said)


class Announcer:
    """One node's part in relays by announced XORs."""

    def __init__(self, ground: Ground, carrier: Carrier) -> None:
        self._ground = ground
        self._carrier = carrier
        self._passages: dict[str, _Passage] = {}
        self._early: dict[str, _Early] = {}
        self._ended: dict[str, float] = {}
        """What is over here: nothing of it is taken any more."""
        self._distrusted: dict[str, float] = {}
        """Nodes whose orders get nothing in advance, and until when."""

    def knows(self, relay_id: str) -> bool:
        """Whether this very relay was ordered here, or is over."""
        return relay_id in self._passages or relay_id in self._ended

    # ── what comes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, node: NodeId, body: wire.Order | wire.Announcement, said: bytes) -> list[Effect]:
        """A note, from the node that signed it; `said`: its octets."""
        if isinstance(body, wire.Order):
            return self._ordered(node, body, said)
        if not 0 < len(body.octets) <= wire.PART_OCTETS_MAX:
            raise WireError("announcement: of no octets, or too many")
        passage = self._passages.get(body.relay_id)
        if passage is None:
            self._keep_early(node, body)
            return []
        if _size(body) + self._held_octets() > HELD_MAX:
            return self._fail(
                body.relay_id,
                KeyExhausted(f"node {self._ground.node} has too many relays under way"),
                self._before(passage),
            )
        self._hear(passage, node, body)
        return self._advance(body.relay_id, passage)

    def _held_octets(self, of: str | None = None) -> int:
        """Of all orders, or those of one node."""
        return sum(one.held_octets() for one in self._passages.values() if of is None or one.route[0] == of)

    def _hear(self, passage: _Passage, node: str, body: wire.Announcement) -> None:
        """What a relay of the route announces, the first time; nothing else."""
        if (
            passage.route[-1] == self._ground.node
            and node in passage.route[1:-1]
            and node not in passage.announced
            and node not in passage.hops
        ):
            passage.announced[node] = body

    def _keep_early(self, node: NodeId, body: wire.Announcement) -> None:
        """An order may come after what others announce for it. What is too much is not kept: then the relay fails."""
        if body.relay_id in self._ended:
            return
        kept = [one.announced[node] for one in self._early.values() if node in one.announced]
        is_too_much = len(kept) >= EARLY_BY_ONE or _size(body) + sum(map(_size, kept)) > EARLY_BY_ONE_MAX
        if not is_too_much and _size(body) + self._early_octets() <= EARLY_MAX:
            self._new_early(body.relay_id).announced.setdefault(node, body)

    def _early_octets(self) -> int:
        announced = (body for one in self._early.values() for body in one.announced.values())
        pads = (octets for one in self._early.values() for _, octets in one.pads.values())
        return sum(map(_size, announced)) + sum(map(len, pads))

    def _new_early(self, relay_id: str) -> _Early:
        return self._early.setdefault(relay_id, _Early(self._ground.clock.monotonic_s() + FORWARD_MEMORY_S))

    def _ordered(self, node: NodeId, order: wire.Order, said: bytes) -> list[Effect]:
        ground, relay = self._ground, order.relay
        check_order(ground.topology, ground.node, order)
        if node != relay.route[0]:
            raise WireError("order: from another node than the first of its route")
        if self.knows(relay.relay_id) or self._carrier.is_known(relay.relay_id):
            raise WireError("order: seen before, or over already")
        base_octets = len(said) + 2 * order.octets
        until_s = ground.clock.monotonic_s() + FORWARD_MEMORY_S
        passage = _Passage(until_s, order, _digest(said), base_octets)
        early = self._early.pop(relay.relay_id, None)
        is_too_much = (
            base_octets + self._held_octets(node) > HELD_BY_ONE_MAX or base_octets + self._held_octets() > HELD_MAX
        )
        self._passages[relay.relay_id] = passage
        if ground.inquests.has(relay.relay_id):
            # Somebody used the name before: what is known of that must not speak for this.
            return self._fail(relay.relay_id, WireError("order: names a relay that was another"), self._before(passage))
        if is_too_much:
            why = f"node {ground.node} has too many relays of {node} under way; ask for less at a time"
            return self._fail(relay.relay_id, KeyExhausted(why), self._before(passage))
        if early is not None and early.failed is not None:
            early.wipe()
            return self._fail(relay.relay_id, *early.failed)
        effects: list[Effect] = []
        if early is not None:
            for link, (digest, octets) in early.pads.items():
                effects += self._take(passage, link, digest, octets)
            for other, body in early.announced.items():
                self._hear(passage, other, body)
        return [*effects, *self._advance(relay.relay_id, passage)]

    def pad(self, link: LinkId, sealed: wire.Sealed, body: wire.RelayPad) -> list[Effect]:
        """The neighbour over a link has taken octets of it for a relay; maybe before anything else is known of it."""
        ground = self._ground
        octets = sum(length for _, _, length in body.pad)
        if octets > wire.PART_OCTETS_MAX:
            raise WireError("relay-pad: too many octets")
        slices = parsed(body.pad, octets)
        came = ground.hops.receive(link, sealed, slices, lambda arrived: arrived)
        passage = self._passages.get(body.relay_id)
        if isinstance(came, QtrunkError):
            return [*self._missed(body.relay_id, passage, came, link), report(link, came)]
        if passage is not None:
            effects = self._take(passage, link, body.order, came)
            return [*effects, *self._advance(body.relay_id, passage)]
        if body.relay_id in self._ended or octets + self._early_octets() > EARLY_MAX:
            came.wipe()
            return []
        early = self._new_early(body.relay_id)
        if link in early.pads:
            came.wipe()
        else:
            early.pads[link] = (body.order, came)
        return []

    def _missed(self, relay_id: str, passage: _Passage | None, error: QtrunkError, link: LinkId) -> list[Effect]:
        """Octets of a link cannot be had here."""
        if passage is None:
            if relay_id not in self._ended:
                self._new_early(relay_id).failed = (error, link)
            return []
        return self._fail(relay_id, error, link) if link == self._before(passage) else []

    def _take(self, passage: _Passage, link: LinkId, digest: bytes, octets: Secret) -> list[Effect]:
        """Octets of the link before, for this very order; others are for nothing, and said so."""
        before = self._before(passage)
        if link == before and passage.came is None and not passage.implied:
            if digest == passage.digest and len(octets) == passage.order.octets:
                passage.came = octets
                return []
            error = WireError("relay-pad: for another order, or not as long as this one says")
            return [*self._fail(passage.order.relay.relay_id, error, link), report(link, error)]
        octets.wipe()
        return [report(link, WireError("relay-pad: over another link than the order says, or once more"))]

    def _before(self, passage: _Passage) -> LinkId:
        """The link that it comes over."""
        return self._ground.hops.between(passage.route, passage.route.index(self._ground.node) - 1)

    # ── what comes of it ────────────────────────────────────────────────────────────────────────────────────────────

    def _advance(self, relay_id: str, passage: _Passage) -> list[Effect]:
        """Take octets, announce, or add up, as far as all for it is here."""
        if self._passages.get(relay_id) is not passage:
            return []
        if self._ground.node == passage.route[-1]:
            return self._add_up(relay_id, passage)
        effects: list[Effect] = []
        if passage.own is None and (passage.came is not None or self._is_eager(passage)):
            effects = self._take_own(relay_id, passage)
        if passage.own is None or passage.came is None:
            return effects
        return [*effects, *self._announce(relay_id, passage)]

    def _is_eager(self, passage: _Passage) -> bool:
        """Whether its initiator's node may have octets before its own have come."""
        node = passage.route[0]
        waiting = (
            one.order.octets
            for one in self._passages.values()
            if one.route[0] == node and one.own is not None and one.came is None
        )
        return node not in self._distrusted and passage.order.octets + sum(waiting) <= EAGER_OCTETS

    def _take_own(self, relay_id: str, passage: _Passage) -> list[Effect]:
        ground = self._ground
        onward = ground.hops.onward(passage.route)
        try:
            with ground.store.transaction():
                pad, tag_key = ground.hops.allocate(onward, passage.order.octets)
                hop = ground.hops.record(onward, pad.slices)
                said = wire.RelayPad(relay_id=relay_id, pad=on_wire(pad.slices), order=passage.digest)
                sent = ground.hops.seal(onward, said, tag_key)
        except QtrunkError as error:
            return self._fail(relay_id, error, onward)
        passage.own, passage.hop = pad.material, hop
        return [sent]

    def _announce(self, relay_id: str, passage: _Passage) -> list[Effect]:
        assert passage.came is not None
        assert passage.own is not None
        assert passage.hop is not None
        self._ground.inquests.note_announced(passage.order.relay, passage.came, passage.own)
        said = wire.Announcement(
            relay_id=relay_id,
            octets=its.one_time_pad(passage.came.reveal(), passage.own.reveal()),
            hop=passage.hop,
        )
        self._end(relay_id)
        return [Tell(NodeId(passage.route[-1]), encode(said), wire.ANNOUNCED_SERVICE)]

    def _add_up(self, relay_id: str, passage: _Passage) -> list[Effect]:
        """From the last link to the first: what each had, by what its two ends announced; then the cargo."""
        ground, relay, link = self._ground, passage.order.relay, self._before(passage)
        if passage.came is None:
            return []
        if not passage.implied:
            passage.implied.append(ground.inquests.implied(relay, passage.came))
        while (node := passage.route[-1 - len(passage.implied)]) in passage.announced:
            said = passage.announced.pop(node)
            if len(said.octets) != passage.order.octets:
                error = WireError("announcement: not as long as the cargo")
                return [*self._fail(relay_id, error, link), report(link, error)]
            before = its.secret_sum(said.octets, passage.came.reveal())
            passage.came.wipe()
            passage.came = before
            passage.hops[node] = said.hop
            passage.implied.append(ground.inquests.implied(relay, before))
        if node != passage.route[0]:
            return []
        body = msgspec.structs.replace(relay, hops=[*relay.hops, *(passage.hops[one] for one in passage.route[1:-1])])
        ground.inquests.note_implied(body, passage.implied[::-1])
        try:
            check_relay(ground.topology, ground.node, link, body, passage.order.octets)
        except QtrunkError as error:
            return [*self._fail(relay_id, error, link), report(link, error)]
        first = passage.came.reveal()
        octets = its.secret_sum(body.ciphertext, first) if body.ciphertext else Secret(first)
        self._end(relay_id)
        return self._carrier.arrived(link, body, octets, answer_to=NodeId(relay.route[0]))

    def _fail(self, relay_id: str, error: QtrunkError, failed: LinkId) -> list[Effect]:
        """It ends here, and the initiator's node hears why."""
        passage = self._passages[relay_id]
        self._end(relay_id)
        refusal = self._carrier.refusal(passage.order.relay, error, failed)
        return [Tell(NodeId(passage.route[0]), encode(refusal), wire.ANNOUNCED_SERVICE)]

    # ── what ends it ────────────────────────────────────────────────────────────────────────────────────────────────

    def void(self, relay_id: str) -> None:
        """The initiator's node has given it up: what comes of it from now on is not taken."""
        self._end(relay_id)

    def link_down(self, link: LinkId) -> list[Effect]:
        """What waits for octets of a link gets none."""
        effects: list[Effect] = []
        for relay_id, links in list(self._waiting()):
            if link in links:
                effects += self._fail(relay_id, KeyExhausted(f"link {link}: the neighbour was lost"), link)
        return effects

    def under_way(self, links: Collection[LinkId]) -> int:
        """How many relays that are not complete here have to do with these links."""
        return sum(not beside.isdisjoint(links) for _, beside in self._waiting())

    def _waiting(self) -> Iterator[tuple[str, set[LinkId]]]:
        """The relays that are ordered and not complete, with the links of this node that they need."""
        for relay_id, passage in self._passages.items():
            place = passage.route.index(self._ground.node)
            # A link that was taken out of the network is none of them.
            yield relay_id, set(self._ground.links(passage.route[max(0, place - 1) : place + 2]))

    def tick(self) -> None:
        """Forget what will not be completed any more."""
        now_s = self._ground.clock.monotonic_s()
        for relay_id, passage in [one for one in self._passages.items() if one[1].until_s < now_s]:
            if passage.own is not None and passage.came is None:
                _remember(self._distrusted, passage.route[0], now_s + DISTRUST_S)
            self._end(relay_id)
        for relay_id in [one for one, early in self._early.items() if early.until_s < now_s]:
            self._early.pop(relay_id).wipe()
        for names in (self._ended, self._distrusted):
            while names and (first := next(iter(names.items())))[1] < now_s:
                del names[first[0]]

    def _end(self, relay_id: str) -> None:
        for known in (self._passages.pop(relay_id, None), self._early.pop(relay_id, None)):
            if known is not None:
                known.wipe()
        _remember(self._ended, relay_id, self._ground.clock.monotonic_s() + FORWARD_MEMORY_S)


def _size(body: wire.Announcement) -> int:
    """Octets that it takes, with some for each block that it names."""
    return len(body.octets) + 128 * len(body.hop.blocks)


def _remember(names: dict[str, float], name: str, until_s: float) -> None:
    """At the end, so that a dictionary begins with what is forgotten first."""
    names.pop(name, None)
    names[name] = until_s


def _digest(said: bytes) -> bytes:
    """Of an order, by which links' octets are bound to it."""
    return hashlib.sha256(b"qtrunk relay order 1" + said).digest()
