"""The relay machine of one node: end-to-end keys over trusted nodes, hop by hop. Messages in, effects out; no I/O.

What is relayed is a batch of keys, or a segment of a pool (`kms.pools`), which lies ready at both nodes before anyone
asks. Its QKD part is the octets of link key that would have encrypted it on its first hop (docs/decisions/0009); every
later hop encrypts it with octets of its own link, used once (`relay.hops`). A tenant may have it relayed by announced
XORs instead (`relay.announced`). Where the policy is hybrid, both ends add a mask that no relay knows (`relay.cargo`).
Where it demands several routes, the cargo travels in shares over disjoint ones (`relay.shares`). `relay.initiator` is
the end that asks, `relay.carrier` all others; `relay.inquest` finds who changed something. End-to-end material is never
on a relay's disk. docs/relay.md tells the whole of it.

The initiator's SAE gets keys only after every target node has confirmed that it stores the same, and after that is on
the initiator's own record; a segment joins the initiator's pool then. What fails or falls silent is voided at the
targets and tried once more over another route, if there is one: around the link that failed, or around all links of a
route that gave no answer.

The shell must call the machine from one thread and send effects in the order given.
"""

from collections.abc import Callable, Collection, Sequence

from qtrunk.base.errors import QtrunkError, WireError
from qtrunk.base.ids import KeyId, LinkId, NodeId, SaeId
from qtrunk.base.ports import Clock, Random
from qtrunk.base.secret import Secret
from qtrunk.base.wire import decode
from qtrunk.crypto import its
from qtrunk.relay import messages as wire
from qtrunk.relay.announced import Announcer
from qtrunk.relay.carrier import FORWARD_MEMORY_S, Carrier
from qtrunk.relay.checks import check_relay, check_route
from qtrunk.relay.effects import Effect, Failed, Report, SendKx, Supplied, Tell
from qtrunk.relay.ground import Ground
from qtrunk.relay.hops import CONTROL_OCTETS, HOP_OVERHEAD_OCTETS, Hops, on_wire, parsed, report
from qtrunk.relay.initiator import ATTEMPTS_MAX, POOL_LIFETIME_S, REQUEST_TIMEOUT_S, RETRY_TIMEOUT_S, Initiator
from qtrunk.relay.inquest import SERVICE as INQUEST
from qtrunk.relay.inquest import Inquests
from qtrunk.relay.ports import HybridPort, KeyStorePort, RoutesPort
from qtrunk.relay.routing import Routing
from qtrunk.topology import Topology

__all__ = [
    "ATTEMPTS_MAX",
    "FORWARD_MEMORY_S",
    "HOP_OVERHEAD_OCTETS",
    "POOL_LIFETIME_S",
    "REQUEST_TIMEOUT_S",
    "RETRY_TIMEOUT_S",
    "Effect",
    "Failed",
    "Kx",
    "Report",
    "SendKx",
    "Supplied",
    "Tell",
]

NOTE_SERVICES = (INQUEST, wire.ANNOUNCED_SERVICE)
"""What notes of other nodes the machine takes."""
LOW_OCTETS = 64 << 10
"""Below this an end asks the peer for octets of its direction."""
GRANT_PERIOD_S = 1.0


class Kx:
    """The relay machine of one node."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        store: KeyStorePort,
        random: Random,
        clock: Clock,
        routes: RoutesPort | None = None,
        is_hybrid: Callable[[SaeId], bool] = lambda _initiator: False,
    ) -> None:
        """`routes` are those of the bare topology unless given.

        `is_hybrid` says of an initiator whether its keys must have an ML-KEM part; both ends hold to it."""
        self._node = node
        self._topology = topology
        self._store = store
        self._clock = clock
        self._hops = Hops(node, topology, store)
        self._inquests = Inquests(node, clock)
        self._ground = Ground(
            node=node,
            topology=topology,
            store=store,
            random=random,
            clock=clock,
            routes=routes or Routing(node, topology),
            is_hybrid=is_hybrid,
            hops=self._hops,
            inquests=self._inquests,
        )
        self._initiator = Initiator(self._ground)
        self._carrier = Carrier(self._ground)
        self._announcer = Announcer(self._ground, self._carrier)
        self._grants_at_s = 0.0

    @property
    def hybrid(self) -> HybridPort | None:
        """Set by who wires the machine, where the node can sign."""
        return self._ground.hybrid

    @hybrid.setter
    def hybrid(self, port: HybridPort) -> None:
        self._ground.hybrid = port

    def use_notes(self, hears: Callable[[NodeId], bool]) -> None:
        """Set by who carries notes: `hears` says of a node whether it can be told something, and believed. Nothing goes
        by announced XORs over others.
        """
        self._ground.hears = hears

    # ── what the node asks ──────────────────────────────────────────────────────────────────────────────────────────

    def request(
        self, initiator: SaeId, targets: Sequence[SaeId], number: int, key_bits: int
    ) -> tuple[str, list[Effect]]:
        """Start a batch of fresh keys for these targets; its ID comes back in Supplied or Failed."""
        return self._initiator.request(initiator, targets, number, key_bits)

    def carry(
        self, initiator: SaeId, targets: Sequence[SaeId], keys: Sequence[tuple[KeyId, Secret]]
    ) -> tuple[str, list[Effect]]:
        """Bring keys of a foreign initiator, all of one length, to the nodes of their targets.

        The ID comes back in Supplied, without keys, when all nodes hold them, or in Failed; whatever part of them holds
        them then keeps them until it is told to void them. The same keys may be carried again.
        """
        return self._initiator.carry(initiator, targets, keys)

    def fill(self, initiator: SaeId, target: SaeId, octets: int) -> tuple[str, list[Effect]]:
        """Start a segment for the pool of two SAEs; its ID comes back in Supplied, without keys, or Failed."""
        return self._initiator.fill(initiator, target, octets)

    def link_up(self, link: LinkId) -> list[Effect]:
        """The neighbour over a link is connected."""
        self._hops.up.add(link)
        return []

    def link_down(self, link: LinkId) -> list[Effect]:
        """The neighbour is gone: what waits for it fails now, not at the time-out."""
        self._hops.up.discard(link)
        return [
            *self._carrier.link_down(link),
            *self._announcer.link_down(link),
            *self._initiator.link_down(link),
        ]

    def links_lost(self, links: Collection[LinkId]) -> list[Effect]:
        """Links elsewhere went out of use: what is on its way over them tries another route now."""
        return self._initiator.links_lost(links)

    def under_way(self, links: Collection[LinkId]) -> int:
        """How many relays wait for their completion over these links, own ones and others'."""
        passing = self._carrier.under_way(links) + self._announcer.under_way(links)
        return passing + self._initiator.under_way(links)

    def link_gone(self, link: LinkId) -> list[Effect]:
        """The link is about to be taken out of the network: nothing may have to do with it afterwards."""
        return [*self.link_down(link), *self._initiator.link_gone(link)]

    @property
    def is_waiting(self) -> bool:
        """Whether time alone may bring something about soon: requests are under way, or questions open. Else a tick
        every few seconds is enough.
        """
        return self._initiator.is_waiting or self._inquests.is_open

    def tick(self) -> list[Effect]:
        """Time-outs, and grants where a direction runs low."""
        effects: list[Effect] = [*self._initiator.tick(), *self._inquests.tick()]
        self._carrier.tick()
        self._announcer.tick()
        now_s = self._clock.monotonic_s()
        if now_s >= self._grants_at_s:
            self._grants_at_s = now_s + GRANT_PERIOD_S
            for link in sorted(self._hops.up):
                effects += self._ask_for_grant(link)
        return effects

    def receive_note(self, node: NodeId, octets: bytes, service: str = INQUEST) -> list[Effect]:
        """A note of one of NOTE_SERVICES that a node signed. Errors: WireError."""
        if service == INQUEST:
            return [*self._inquests.receive(node, octets)]
        body = decode(octets, wire.AnnouncedNote)
        if isinstance(body, wire.KeyRelayCompletion):
            return self._initiator.noted(node, body)
        return self._announcer.receive(node, body, octets)

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, link: LinkId, octets: bytes) -> list[Effect]:
        """A message of the neighbour over a link. What is wrong with it is reported and changes nothing else."""
        try:
            sealed, body = wire.parse(octets)
            if isinstance(body, wire.KeyRelay):
                check_relay(self._topology, self._node, link, body)
                if self._carrier.is_known(body.relay_id) or self._announcer.knows(body.relay_id):
                    raise WireError("relay: seen before")
            elif isinstance(body, wire.KeyVoid):
                check_route(self._topology, self._node, link, body.route)
            return self._dispatch(link, sealed, body)
        except QtrunkError as error:
            return [report(link, error)]

    def _dispatch(self, link: LinkId, sealed: wire.Sealed, body: wire.KxMessage) -> list[Effect]:
        if isinstance(body, wire.KeyRelay):
            return self._carrier.relay(link, sealed, body)
        if isinstance(body, wire.RelayPad):
            return self._announcer.pad(link, sealed, body)
        if isinstance(body, wire.KeyRelayCompletion) and self._carrier.is_known(body.relay_id):
            return self._carrier.completed(link, sealed, body)
        self._hops.authenticate(link, sealed)
        match body:
            case wire.KeyRelayCompletion():
                return self._initiator.completed(link, body)
            case wire.KeyVoid():
                self._announcer.void(body.relay_id)
                return self._carrier.voided(body)
            case wire.PoolGrantRequest():
                return self._grant(link, body)
            case wire.PoolGrant():
                total = sum(length for _, _, length in body.slices)
                self._store.receive_grant(link, self._hops.role(link).peer, parsed(body.slices, total))
                return []

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
