"""One hop: messages between neighbours, each sealed with link key used once, and octets of link key to relay by.

A message that is not authentic changes nothing, not even the place that the neighbour's octets have come to: whoever
follows burns what he passes over, so one forged message could otherwise burn a whole direction. The same octets may
so meet several forgeries; n of them pass with at most n times the probability of one, and each is reported.

Allocation order is sending order on each link: whoever follows never goes back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from qtrunk.base.errors import AuthenticationFailed, KeyExhausted, KeyPending, QtrunkError, StoreError, WireError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.secret import Secret
from qtrunk.base.wire import encode
from qtrunk.crypto import its
from qtrunk.kms.key import Allocation, Slice
from qtrunk.relay import messages as wire
from qtrunk.relay.ports import KeyStorePort
from qtrunk.stages import Role
from qtrunk.topology import VENDOR_PROOF, Topology

T = TypeVar("T")

PROTOCOL = "qtrunk kx 3"
CONTROL_OCTETS = 1024
"""Of each direction of a link, kept for completions, voids and grants."""
HOP_OVERHEAD_OCTETS = its.WC_KEY_OCTETS + CONTROL_OCTETS
KEY_PENDING = "RelayKeyPending"
"""A neighbour's message rests on a block that it has released and this node has not yet."""


@dataclass(frozen=True, slots=True)
class SendKx:
    """Send these octets to the neighbour over a link."""

    link: LinkId
    octets: bytes


@dataclass(frozen=True, slots=True)
class Report:
    """Something the operator must hear of; `link` is None where the node itself is concerned."""

    link: LinkId | None
    alarm: str
    text: str
    node: str = ""
    """Whom it is about, where that is another node or several."""


class Hops:
    """The hops from one node to its neighbours."""

    def __init__(self, node: NodeId, topology: Topology, store: KeyStorePort) -> None:
        self._node = node
        self._topology = topology
        self._store = store
        self.up: set[LinkId] = set()
        """Links whose neighbour is connected."""

    def role(self, link: LinkId) -> Role:
        """This node's end of a link."""
        return Role.ALICE if self._topology.link(link).alice == self._node else Role.BOB

    def between(self, nodes: Sequence[str], index: int) -> LinkId:
        """The link of one hop of a route."""
        return self._topology.link_between(NodeId(nodes[index]), NodeId(nodes[index + 1])).id

    def onward(self, nodes: Sequence[str]) -> LinkId:
        """The link by which a route goes on from here."""
        return self.between(nodes, nodes.index(self._node))

    def authenticate(self, link: LinkId, sealed: wire.Sealed) -> None:
        """Follow the tag's key and verify; where that fails, nothing was followed."""
        slices = parsed(sealed.auth, its.WC_KEY_OCTETS)
        label = _label(self._topology.link(link).other(self._node), self._node, link)
        with self._store.transaction():
            key = self._store.follow(link, self.role(link).peer, slices)
            its.verify(key.reveal(), label, [sealed.body], sealed.tag)

    def receive(
        self, link: LinkId, sealed: wire.Sealed, slices: Sequence[Slice], use: Callable[[Secret], T]
    ) -> T | QtrunkError:
        """Authenticate a message, follow the octets of link key that it names, and use them: one flush for all of it.

        What is not authentic raises, and changes nothing. A later error is returned, and the tag's key stays used:
        what failed is not to be tried again by who repeats the message.
        """
        is_authentic = False
        try:
            with self._store.transaction():
                self.authenticate(link, sealed)
                is_authentic = True
                try:
                    with self._store.transaction():
                        return use(self._store.follow(link, self.role(link).peer, slices))
                except QtrunkError as error:
                    return error
        except QtrunkError as error:
            if not is_authentic:
                raise
            return error

    def seal(self, link: LinkId, body: wire.KxMessage, tag_key: Allocation | None = None) -> SendKx:
        """Tag a message with fresh octets of the own direction."""
        octets = encode(body)
        key = tag_key or self._store.allocate(link, self.role(link), its.WC_KEY_OCTETS)
        label = _label(self._node, self._topology.link(link).other(self._node), link)
        tag = its.tag(key.material.reveal(), label, [octets])
        return SendKx(link, encode(wire.Sealed(body=octets, auth=on_wire(key.slices), tag=tag)))

    def try_send(self, link: LinkId, body: wire.KxMessage) -> list[SendKx | Report]:
        """For messages that nobody waits on for ever: without a neighbour or a tag key they are left out, and said
        so.
        """
        if link not in self.up:
            return []
        try:
            return [self.seal(link, body)]
        except KeyExhausted as error:
            return [Report(link, "PoolEmpty", f"link {link}: no key left for {type(body).__name__}: {error}")]
        except StoreError as error:
            return [Report(link, "StorageFull", f"link {link}: no {type(body).__name__} was sent: {error}")]

    def can_carry(self, link: LinkId, octets: int) -> bool:
        """Whether `allocate` would have them now."""
        return link in self.up and self._store.level(link).own_octets >= octets + HOP_OVERHEAD_OCTETS

    def allocate(self, link: LinkId, octets: int) -> tuple[Allocation, Allocation]:
        """Octets of the own direction for keys, and for the tag of the message that carries them.

        What control messages need is left. The receiver follows the tag's octets first, so they are taken first.
        """
        if link not in self.up:
            raise KeyExhausted(f"link {link}: the neighbour is not connected")
        own = self._store.level(link).own_octets
        if own < octets + HOP_OVERHEAD_OCTETS:
            raise KeyExhausted(
                f"link {link}: {8 * max(0, own - HOP_OVERHEAD_OCTETS)} bits of {8 * octets} left in the direction "
                f"from {self._node}; wait for more, or ask for less"
            )
        tag_key = self._store.allocate(link, self.role(link), its.WC_KEY_OCTETS)
        return self._store.allocate(link, self.role(link), octets), tag_key

    def record(self, link: LinkId, slices: Sequence[Slice]) -> wire.Hop:
        """The record of one hop, for receipts: which blocks of which link, what they are worth."""
        blocks = []
        epsilon = 0.0
        statements: set[str] = set()
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
            if (proof := str(record["proof"])).startswith(VENDOR_PROOF):
                statements.add(proof)
        vendor = "; ".join(sorted(statements))[: wire.VENDOR_CHARACTERS_MAX]
        return wire.Hop(link=link, sender=self._node, blocks=blocks, epsilon=epsilon, vendor=vendor)


def on_wire(slices: Sequence[Slice]) -> wire.SlicesOnWire:
    """Pieces of link key as messages name them."""
    return [(piece.block, piece.offset, piece.length) for piece in slices]


def parsed(pieces: wire.SlicesOnWire, octets: int) -> tuple[Slice, ...]:
    """Pieces as the store knows them; WireError unless they are so many octets."""
    if sum(length for _, _, length in pieces) != octets:
        raise WireError(f"pieces of link key: {octets} octets in all are needed")
    return tuple(Slice(*piece) for piece in pieces)


def report(link: LinkId, error: QtrunkError) -> Report:
    """What the operator must hear when a message of the neighbour could not be taken."""
    match error:
        case AuthenticationFailed():
            return Report(link, "RelayAuthenticationFailed", f"link {link}: {error}")
        case KeyPending():
            # Whoever sent it tries again.
            return Report(link, KEY_PENDING, f"link {link}: {error}")
        case StoreError():
            return Report(link, "StorageFull", f"link {link}: {error}")
        case _:
            return Report(link, "RelayProtocolError", f"link {link}: {error}")


def _label(sender: NodeId, receiver: NodeId, link: LinkId) -> bytes:
    return "|".join([PROTOCOL, sender, receiver, link]).encode()
