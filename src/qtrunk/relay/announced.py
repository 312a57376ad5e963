"""Relay by announced XORs: every relay says the sum of its octets of two links, the last node adds all of them up.

The initiator's node tells all nodes of a route what is to be relayed (`messages.Order`), in one note that runs ahead of
all work. Each but the last takes octets of its link onward and tells the neighbour there which (`messages.RelayPad`,
sealed as all that neighbours say). A relay that has the octets of both of its links announces their XOR to the last
node; the initiator's node announces by what the cargo differs from its own octets, which is nothing where they become
the cargo. Every link but the last is in two of the sums, so that they leave the cargo when the last node adds its
octets. No node waits for the disk of the one before it: however many hops, each flushes twice, all at the same time.

What is announced says nothing of the cargo to who knows none of the links; a relay knows as much as one that passes
cargos on. Notes are signed (`node.notes`), so that one who changes them, or what it announces, is found
(`relay.inquest`). That keys are given out only if both ends hold the same does not rest on signatures, but on the
confirmation of the two ends (`relay.cargo`), as with any other relay: to add something to the cargo unnoticed is to
guess 16 octets, of a Wegman-Carter tag or of a sum over octets of the cargo that nobody else knows.

What lies here until it is complete is in memory alone, and bounded. What stays incomplete is forgotten, and its octets
of link key with it.
"""

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

PASSAGES_MAX = 1024
HELD_OCTETS_MAX = 64 << 20
"""In all that is incomplete; what came first goes where this is passed."""


@dataclass(slots=True)
class _Passage:
    """What is known here of one relay."""

    until_s: float
    order: wire.Order | None = None
    link: LinkId | None = None
    came: Secret | None = None
    """Octets of the link that it comes over."""
    own: Secret | None = None
    """Octets of the link onward, at a relay."""
    hop: wire.Hop | None = None
    """Of the link onward."""
    failed: tuple[QtrunkError, LinkId] | None = None
    """What went wrong, and at which link, before it was known whom to tell."""
    announced: dict[str, wire.Announcement] = field(default_factory=dict)
    """By node, at the last one."""

    def held_octets(self) -> int:
        """What lies here."""
        octets = [one for one in (self.came, self.own) if one is not None]
        return sum(map(len, octets)) + sum(len(one.octets) for one in self.announced.values())

    def wipe(self) -> None:
        """Nothing of it is needed any more."""
        for octets in (self.came, self.own):
            if octets is not None:
                octets.wipe()


def order_note(relay: wire.KeyRelay, octets: int) -> Tell:
    """What the initiator's node tells the nodes of a route; `relay` with what this node announces itself."""
    route = tuple(map(NodeId, relay.route))
    return Tell(route[-1], encode(wire.Order(relay=relay, octets=octets)), wire.ANNOUNCED_SERVICE, route)


class Announcer:
    """One node's part in relays by announced XORs."""

    def __init__(self, ground: Ground, carrier: Carrier) -> None:
        self._ground = ground
        self._carrier = carrier
        self._passages: dict[str, _Passage] = {}
        self._ended: dict[str, float] = {}
        """What is over here: nothing of it is taken any more."""

    # ── what comes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, node: NodeId, body: wire.Order | wire.Announcement) -> list[Effect]:
        """A note, from the node that signed it."""
        if isinstance(body, wire.Order):
            return self._ordered(node, body)
        if not 0 < len(body.octets) <= wire.PART_OCTETS_MAX:
            raise WireError("announcement: of no octets, or too many")
        passage = self._passage(body.relay_id)
        if passage is None:
            return []
        if node not in passage.announced and len(passage.announced) < wire.HOPS_MAX:
            passage.announced[node] = body
        return self._advance(body.relay_id, passage)

    def _ordered(self, node: NodeId, order: wire.Order) -> list[Effect]:
        ground, relay = self._ground, order.relay
        check_order(ground.topology, ground.node, order)
        if node != relay.route[0]:
            raise WireError("order: from another node than the first of its route")
        passage = self._passage(relay.relay_id)
        if passage is None or passage.order is not None:
            raise WireError("order: seen before, or over already")
        passage.order = order
        if passage.failed is not None:
            return self._fail(relay.relay_id, *passage.failed)
        if ground.node == relay.route[-1]:
            return self._advance(relay.relay_id, passage)
        onward = ground.hops.onward(relay.route)
        try:
            with ground.store.transaction():
                pad, tag_key = ground.hops.allocate(onward, order.octets)
                passage.own, passage.hop = pad.material, ground.hops.record(onward, pad.slices)
                said = wire.RelayPad(relay_id=relay.relay_id, pad=on_wire(pad.slices))
                sent = ground.hops.seal(onward, said, tag_key)
        except QtrunkError as error:
            return self._fail(relay.relay_id, error, onward)
        return [sent, *self._advance(relay.relay_id, passage)]

    def pad(self, link: LinkId, sealed: wire.Sealed, body: wire.RelayPad) -> list[Effect]:
        """The neighbour over a link has taken octets of it for a relay; maybe before anything else is known of it."""
        ground = self._ground
        octets = sum(length for _, _, length in body.pad)
        if octets > wire.PART_OCTETS_MAX:
            raise WireError("relay-pad: too many octets")
        slices = parsed(body.pad, octets)
        came: Secret | QtrunkError
        with ground.store.transaction():
            ground.hops.authenticate(link, sealed)
            try:
                with ground.store.transaction():
                    came = ground.store.follow(link, ground.hops.role(link).peer, slices)
            except QtrunkError as error:
                # The tag's key stays used: what failed is not to be tried again by who repeats the message.
                came = error
        passage = self._passage(body.relay_id)
        if isinstance(came, QtrunkError):
            if passage is not None and passage.order is None:
                passage.failed = (came, link)
                return [report(link, came)]
            return [*self._fail(body.relay_id, came, link), report(link, came)]
        if passage is None or passage.came is not None:
            came.wipe()
            return []
        passage.link, passage.came = link, came
        return self._advance(body.relay_id, passage)

    # ── what comes of it ────────────────────────────────────────────────────────────────────────────────────────────

    def _advance(self, relay_id: str, passage: _Passage) -> list[Effect]:
        """Announce, or add up, once all is here."""
        if passage.order is None or passage.came is None:
            self._bound()
            return []
        route = passage.order.relay.route
        before = self._ground.hops.between(route, route.index(self._ground.node) - 1)
        if passage.link != before or len(passage.came) != passage.order.octets:
            error = WireError("relay-pad: over another link than the order says, or of other length")
            return [*self._fail(relay_id, error, before), report(passage.link or before, error)]
        if self._ground.node != route[-1]:
            return self._announce(relay_id, passage)
        if set(route[1:-1]) <= passage.announced.keys():
            return self._add_up(relay_id, passage)
        self._bound()
        return []

    def _announce(self, relay_id: str, passage: _Passage) -> list[Effect]:
        assert passage.order is not None
        assert passage.came is not None
        assert passage.own is not None
        assert passage.hop is not None
        relay = passage.order.relay
        self._ground.inquests.note_announced(relay, passage.came, passage.own)
        said = wire.Announcement(
            relay_id=relay_id,
            octets=its.one_time_pad(passage.came.reveal(), passage.own.reveal()),
            hop=passage.hop,
        )
        self._end(relay_id)
        return [Tell(NodeId(relay.route[-1]), encode(said), wire.ANNOUNCED_SERVICE)]

    def _add_up(self, relay_id: str, passage: _Passage) -> list[Effect]:
        """The cargo, for what takes it as if it had come hop by hop."""
        assert passage.order is not None
        assert passage.came is not None
        assert passage.link is not None
        relay, ground = passage.order.relay, self._ground
        said = [passage.announced[node] for node in relay.route[1:-1]]
        body = msgspec.structs.replace(relay, hops=[*relay.hops, *(one.hop for one in said)])
        try:
            if any(len(one.octets) != passage.order.octets for one in said):
                raise WireError("announcement: not as long as the cargo")
            check_relay(ground.topology, ground.node, passage.link, body, passage.order.octets)
        except WireError as error:
            return [*self._fail(relay_id, error, passage.link), report(passage.link, error)]
        # From the last link to the first: what each had, by what its two ends announced.
        links = [Secret(passage.came.reveal())]
        for one in reversed(said):
            links.insert(0, its.secret_sum(one.octets, links[0].reveal()))
        ground.inquests.note_implied(body, links)
        first = links[0].reveal()
        octets = its.secret_sum(body.ciphertext, first) if body.ciphertext else Secret(first)
        for link in links:
            link.wipe()
        self._end(relay_id)
        return self._carrier.arrived(passage.link, body, octets, answer_to=NodeId(relay.route[0]))

    def _fail(self, relay_id: str, error: QtrunkError, failed: LinkId) -> list[Effect]:
        """It ends here; the initiator's node hears why, where it is known which that is."""
        passage = self._passages.get(relay_id)
        order = None if passage is None else passage.order
        self._end(relay_id)
        if order is None:
            return []
        refusal = self._carrier.refusal(order.relay, error, failed)
        return [Tell(NodeId(order.relay.route[0]), encode(refusal), wire.ANNOUNCED_SERVICE)]

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
            if passage.order is not None:
                route = passage.order.relay.route
                place = route.index(self._ground.node)
                # A link that was taken out of the network is none of them.
                yield relay_id, set(self._ground.links(route[place - 1 : place + 2]))

    def tick(self) -> None:
        """Forget what will not be completed any more."""
        now_s = self._ground.clock.monotonic_s()
        for relay_id in [one for one, passage in self._passages.items() if passage.until_s < now_s]:
            self._end(relay_id)
        while self._ended and (first := next(iter(self._ended.items())))[1] < now_s:
            del self._ended[first[0]]

    def _passage(self, relay_id: str) -> _Passage | None:
        """That of a relay, new where nothing was known of it; None where it is over."""
        if relay_id in self._ended:
            return None
        passage = self._passages.get(relay_id)
        if passage is None:
            if len(self._passages) >= PASSAGES_MAX:
                self._end(next(iter(self._passages)))
            passage = _Passage(self._ground.clock.monotonic_s() + FORWARD_MEMORY_S)
            self._passages[relay_id] = passage
        return passage

    def _end(self, relay_id: str) -> None:
        passage = self._passages.pop(relay_id, None)
        if passage is not None:
            passage.wipe()
        self._ended[relay_id] = self._ground.clock.monotonic_s() + FORWARD_MEMORY_S

    def _bound(self) -> None:
        """Let go of what came first while too much lies here."""
        held = sum(passage.held_octets() for passage in self._passages.values())
        while held > HELD_OCTETS_MAX:
            relay_id, passage = next(iter(self._passages.items()))
            held -= passage.held_octets()
            self._end(relay_id)
