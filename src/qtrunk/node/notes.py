"""Notes: what two nodes that are no neighbours tell each other, passed on from neighbour to neighbour.

A note holds no key. It travels beside the relay's messages, inside TLS on every hop, along a route that its sender
names, and is signed end to end (ML-DSA-65), so that nodes on the way can drop it and nothing else. Each note of a
service has a higher number than the last (milliseconds of the sender's clock), so an old one changes nothing. Notes may
be lost and come late: services repeat them.

Errors: AuthenticationFailed (signature, number), WireError.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec

from qtrunk.base.errors import AuthenticationFailed, RouteUnavailable, WireError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.ports import Clock
from qtrunk.base.wire import Message, decode, encode
from qtrunk.crypto.hybrid import HybridEnd
from qtrunk.relay.messages import HOPS_MAX
from qtrunk.topology import Topology

AGE_MAX_S = 300.0
NOTE_OCTETS_MAX = 16 << 20
_Name = Annotated[str, msgspec.Meta(max_length=80)]


class Note(Message, frozen=True, tag="note"):
    """One note on its way."""

    sender: _Name
    to: _Name
    route: list[_Name]
    service: _Name
    number: Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
    octets: bytes
    signature: bytes


class Notes:
    """A node's notes: sends its own, passes others' on, hands what is for it to the service that it names."""

    def __init__(
        self,
        node: NodeId,
        topology: Topology,
        hybrid: HybridEnd,
        clock: Clock,
        route: Callable[[NodeId], Sequence[NodeId]],
        send: Callable[[LinkId, bytes], None],
    ) -> None:
        """`route` finds a way to a node (RouteUnavailable), `send` hands a frame to a neighbour."""
        self._node = node
        self._topology = topology
        self._hybrid = hybrid
        self._clock = clock
        self._route = route
        self._send = send
        self._services: dict[str, Callable[[NodeId, bytes], None]] = {}
        self._last: dict[tuple[str, str], int] = {}
        self._number = 0

    def serve(self, service: str, receive: Callable[[NodeId, bytes], None]) -> None:
        """Hand notes of a service to `receive`, with their sender."""
        self._services[service] = receive

    def knows(self, node: NodeId) -> bool:
        """Whether a note of this node would be believed: without a signing key known here it can answer nothing."""
        return self._hybrid.knows(node)

    def service(self, name: str) -> "ServiceNotes":
        """The notes of one service, as `base.ports.PeerNotes`."""
        return ServiceNotes(self, name)

    def tell(self, node: NodeId, service: str, octets: bytes) -> None:
        """Send a note; it may be lost. RouteUnavailable when there is no way at all."""
        route = list(self._route(node))
        now_ms = int(self._clock.unix_s() * 1000)
        # Unless the clock had gone so far ahead that nobody took these numbers.
        is_timely = self._number - now_ms <= AGE_MAX_S * 1000
        self._number = max(self._number + 1, now_ms) if is_timely else now_ms
        signature = self._hybrid.sign(self._node, node, service, str(self._number), octets)
        note = Note(
            sender=self._node,
            to=node,
            route=[*route],
            service=service,
            number=self._number,
            octets=octets,
            signature=signature,
        )
        self._pass_on(note, encode(note))

    def receive(self, octets: bytes) -> None:
        """A frame of a neighbour: a note for this node or on its way."""
        if len(octets) > NOTE_OCTETS_MAX:
            raise WireError(f"note of {len(octets)} octets")
        note = decode(octets, Note)
        if len(note.route) > HOPS_MAX or len(set(note.route)) != len(note.route) or self._node not in note.route[1:]:
            raise WireError("note: a route of distinct nodes is needed, this one behind the first")
        if note.to != self._node:
            self._pass_on(note, octets)
            return
        self._hybrid.verify(
            *(note.sender, note.signature, note.sender, note.to, note.service, str(note.number), note.octets)
        )
        key = (note.sender, note.service)
        now_s = self._clock.unix_s()
        last = self._last.get(key, 0)
        if last / 1000 - now_s > AGE_MAX_S:
            # Taken while both clocks were ahead; none of those is timely any more.
            last = 0
        if note.number <= last or abs(now_s - note.number / 1000) > AGE_MAX_S:
            raise AuthenticationFailed(f"note of {note.sender} about {note.service}: old, seen before or misdated")
        receive = self._services.get(note.service)
        if receive is None:
            raise WireError(f"note of {note.sender}: no service {note.service} at this node")
        self._last[key] = note.number
        receive(NodeId(note.sender), note.octets)

    def _pass_on(self, note: Note, octets: bytes) -> None:
        index = note.route.index(self._node)
        if index + 1 >= len(note.route):
            raise WireError("note: its route ends before the node that it is for")
        try:
            link = self._topology.link_between(self._node, NodeId(note.route[index + 1])).id
        except KeyError as error:
            raise WireError("note: two nodes of its route are not neighbours") from error
        self._send(link, octets)


class ServiceNotes:
    """One service's way to its peers: a note for which there is no route now is lost, like any other."""

    def __init__(self, notes: Notes, service: str) -> None:
        self._notes = notes
        self._service = service

    def tell(self, node: NodeId, octets: bytes) -> None:
        """See base.ports.PeerNotes."""
        with contextlib.suppress(RouteUnavailable):
            self._notes.tell(node, self._service, octets)
