"""What must hold at every step of a run, whatever the weather. A `Violation` is the end of the run.

    agree       a key is the same at its initiator and at its target; a block of link key is the same at both ends
    once        no key or key ID is given to an initiator twice; none to a target twice (a repeated request apart)
    answers     a request that is repeated with its ID gets the keys that it was given
    blocks      no block is ever released whose keys differ at the two ends, or that one end has not on its disk
    pads        no octet of link key is used for two messages: as pad, as key of a tag, as a grant
    portions    no portion of authentication key serves two blocks
    relays      no relay has seen a key of a hybrid tenant, or what gives it away
    books       ledgers of links and pools add up at every node
    liveness    once all is well, every pair gets keys that agree, in time (`sim.network.trial`)

The checks know what left a machine: a send is looked at when it is made, a key when its answer leaves.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from qtrunk.base.errors import WireError
from qtrunk.base.ids import KeyId, LinkId, SaeId
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.wire import FRAME_HEADER_OCTETS, decode
from qtrunk.kms.store import KeyStore
from qtrunk.kms.vendorwords import AUTH_OCTETS, Offer, Resolve, Tagged
from qtrunk.node.channel import Hello
from qtrunk.node.notes import Note
from qtrunk.relay import messages as kx
from qtrunk.stages import QkdKey
from qtrunk.topology import Topology


class Violation(Exception):
    """Something happened that must never happen."""


@dataclass(slots=True)
class _Block:
    """One block of link key: what each end held, and which octets were used in messages."""

    held: dict[str, bytes] = field(default_factory=dict)
    """By node."""
    tried: dict[str, bytes] = field(default_factory=dict)
    """What a node began to put on its disk; it may have died just behind that."""
    used: bytearray = field(default_factory=bytearray)


@dataclass
class Checks:
    """The book of one run."""

    topology: Topology
    blocks: dict[tuple[LinkId, int], _Block] = field(default_factory=dict)
    given: dict[KeyId, bytes] = field(default_factory=dict)
    """By initiators' nodes."""
    materials: set[bytes] = field(default_factory=set)
    requests: dict[tuple[SaeId, bytes], list[tuple[KeyId, bytes]]] = field(default_factory=dict)
    collected: dict[tuple[SaeId, KeyId], bytes] = field(default_factory=dict)
    """The request by which a target got a key."""
    relayed: dict[tuple[str, str], dict[bytes, None]] = field(default_factory=dict)
    """What relays saw, by initiator and target."""
    first_pads: dict[str, bytes] = field(default_factory=dict)
    """Octets of the first link of relays by announced XORs."""
    portions: dict[tuple[LinkId, int, int], bytes] = field(default_factory=dict)

    # ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def initiated(
        self, initiator: SaeId, targets: Sequence[SaeId], mark: bytes | None, keys: Sequence[SuppliedKey]
    ) -> None:
        """An initiator's SAE was answered."""
        found = [(key.key_id, bytes(key.material.reveal())) for key in keys]
        if mark is not None:
            before = self.requests.get((initiator, mark))
            if before is not None:
                if before != found:
                    raise Violation(f"answers: the request {mark.hex()} of {initiator} got other keys than before")
                return
            self.requests[initiator, mark] = found
        for key_id, material in found:
            if key_id in self.given:
                raise Violation(f"once: key ID {key_id} was given to an initiator before")
            if material in self.materials:
                raise Violation(f"once: the key {key_id} was given out before under another ID")
            self.given[key_id] = material
            self.materials.add(material)
            if self.topology.tenant_of(initiator).hybrid == "hybrid":
                self._unseen(initiator, targets, key_id, material)

    def fetched(self, target: SaeId, mark: bytes | None, key_ids: Sequence[KeyId], keys: Sequence[SuppliedKey]) -> None:
        """A target's SAE was answered."""
        if [key.key_id for key in keys] != list(key_ids):
            raise Violation(f"agree: {target} asked for other keys than it got")
        for key in keys:
            if key.key_id not in self.given:
                # Its initiator never heard of it (the answer was lost): nobody else may.
                self.given[key.key_id] = bytes(key.material.reveal())
            if bytes(key.material.reveal()) != self.given[key.key_id]:
                raise Violation(f"agree: key {key.key_id} differs between initiator and target {target}")
            before = self.collected.get((target, key.key_id))
            if before is not None and (mark is None or before != mark):
                raise Violation(f"once: key {key.key_id} was given to {target} twice")
            self.collected[target, key.key_id] = mark or b"-"

    def _unseen(self, initiator: SaeId, targets: Sequence[SaeId], key_id: KeyId, material: bytes) -> None:
        for target in targets:
            for octets in self.relayed.get((initiator, target), ()):
                if material in octets:
                    raise Violation(f"relays: a relay has seen the hybrid key {key_id} of {initiator}")

    # ── link key ────────────────────────────────────────────────────────────────────────────────────────────────────

    def watch(self, node: str, store: KeyStore) -> None:
        """Look at what a store holds and releases."""
        hold, release = store.hold, store.release
        for (link, number), block in self.blocks.items():
            if node in block.tried and (number in store.pending(link) or store.is_released(link, number)):
                block.held[node] = block.tried[node]

        def held(key: QkdKey) -> None:
            block = self._block(key.link, key.block)
            block.tried[node] = bytes(key.material.reveal())
            hold(key)
            block.held[node] = block.tried[node]

        def released(link: LinkId, block: int) -> None:
            release(link, block)
            ends = self._block(link, block).held
            if len(ends) != 2:
                raise Violation(f"blocks: block {block} of {link} was released and lay at one end alone")
            if len(set(ends.values())) != 1:
                raise Violation(f"blocks: block {block} of {link} was released and differs at its ends")

        vars(store).update(hold=held, release=released)

    def _block(self, link: LinkId, block: int) -> _Block:
        return self.blocks.setdefault((link, block), _Block())

    def use(self, link: LinkId, slices: Iterable[tuple[int, int, int]], what: str) -> None:
        """Octets of link key are used in a message that leaves."""
        for number, offset, length in slices:
            block = self._block(link, number)
            if len(block.used) < offset + length:
                block.used.extend(bytes(offset + length - len(block.used)))
            if any(block.used[offset : offset + length]):
                raise Violation(
                    f"pads: octets {offset} to {offset + length} of block {number} of {link}, {what}: again"
                )
            block.used[offset : offset + length] = b"\1" * length

    def books(self, node: str, store: KeyStore) -> None:
        """All ledgers of a node add up."""
        for link in self.topology.links:
            if node in (link.alice, link.bob):
                ledger = store.ledger(link.id)
                # What was granted is counted where it is used; nothing else may be missing.
                if ledger.unaccounted or min(ledger.available, ledger.pending) < 0:
                    raise Violation(f"books: link {link.id} at {node}: {ledger.unaccounted} octets unaccounted for")
        for (side, initiator, target), pool in store.pools.ledgers().items():
            if pool.unaccounted or min(pool.available, pool.delivered, pool.lost, pool.overhead) < 0:
                raise Violation(f"books: pool {initiator} to {target}, side {side}, at {node}: {pool}")

    # ── the wire ────────────────────────────────────────────────────────────────────────────────────────────────────

    def sent(self, service: Hello, octets: bytes) -> None:
        """A frame leaves a machine."""
        payload, link = octets[FRAME_HEADER_OCTETS:], LinkId(service.link)
        if service.service == "kx":
            if payload[:1] == b"\0":
                self._relay_said(link, payload[1:])
            elif payload[:1] == b"\2":
                self._node_said(payload[1:])
        elif service.service == "vendor":
            self._vendor_said(link, payload)

    def _relay_said(self, link: LinkId, octets: bytes) -> None:
        sealed, body = kx.parse(octets)
        self.use(link, sealed.auth, "the key of a tag")
        if isinstance(body, kx.KeyRelay):
            self.use(link, body.pad, "a pad")
            self._note_relayed(link, body)
        elif isinstance(body, kx.RelayPad):
            self.use(link, body.pad, "octets of a relay")
            self.first_pads.setdefault(body.relay_id, self._octets(link, body.pad))

    def _node_said(self, octets: bytes) -> None:
        """A note leaves a machine: the relays of a route know the cargo once they have heard what is announced."""
        note = decode(octets, Note)
        if note.service != kx.ANNOUNCED_SERVICE:
            return
        body = decode(note.octets, kx.AnnouncedNote)
        if isinstance(body, kx.Order):
            octets = self.first_pads[body.relay.relay_id]
            if body.relay.ciphertext:
                octets = bytes(a ^ b for a, b in zip(octets, body.relay.ciphertext, strict=True))
            for target in body.relay.targets:
                self.relayed.setdefault((body.relay.initiator, target), {})[octets] = None

    def _octets(self, link: LinkId, slices: Iterable[tuple[int, int, int]]) -> bytes:
        return b"".join(
            next(iter(self._block(link, number).held.values()))[offset : offset + length]
            for number, offset, length in slices
        )

    def _note_relayed(self, link: LinkId, body: kx.KeyRelay) -> None:
        """What travels, as both ends of the hop know it; relays are the ends that are not ends of the route."""
        if len(body.route) < 3:
            return
        octets = bytes(a ^ b for a, b in zip(self._octets(link, body.pad), body.ciphertext, strict=True))
        for target in body.targets:
            self.relayed.setdefault((body.initiator, target), {})[octets] = None

    def _vendor_said(self, link: LinkId, octets: bytes) -> None:
        try:
            said = decode(octets, Tagged)
            body: Offer | Resolve = decode(said.body, Offer | Resolve)
        except WireError:
            return  # Words that name no portion of authentication key.
        if isinstance(body, Resolve) and not body.held:
            return
        place = (link, body.auth_block, body.auth_offset)
        if place not in self.portions:
            self.use(link, [(body.auth_block, body.auth_offset, AUTH_OCTETS)], "a portion")
        if self.portions.setdefault(place, said.body) != said.body:
            raise Violation(f"portions: authentication key {place} serves two messages")
