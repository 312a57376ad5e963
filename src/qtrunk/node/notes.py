"""Notes: what two nodes that are no neighbours tell each other, passed on from neighbour to neighbour.

A note holds no key. It travels beside the relay's messages, inside TLS on every hop, along a route that its sender
names, and is signed end to end (ML-DSA-65), so that nodes on the way can drop it and nothing else. It is for the last
node of the route, or for all of them, which pass it on before they look at it. Each note of a service has a higher
number than the last (milliseconds of the sender's clock), so an old one changes nothing; a service whose notes take
different ways says for how long one may be overtaken, and each is taken once. Notes may be lost and come late: services
repeat them.

Errors: AuthenticationFailed (signature, number), WireError.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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


class Note(Message, frozen=True, tag="note", omit_defaults=True):
    """One note on its way."""

    sender: _Name
    to: _Name
    route: list[_Name]
    service: _Name
    number: Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
    octets: bytes
    signature: bytes
    is_for_all: bool = False
    """Every node of the route behind the first takes it."""

    def signed(self) -> tuple[str | bytes, ...]:
        """What the signature is of. The route is not: nodes on the way may know better."""
        scope = ("for all",) if self.is_for_all else ()
        return (self.sender, self.to, self.service, str(self.number), self.octets, *scope)


@dataclass(slots=True)
class _Numbers:
    """The numbers of one sender's notes about one service: each counts once."""

    last: int = 0
    near: dict[int, set[int]] = field(default_factory=dict)
    """What was taken near the last one, where notes may overtake each other: by stretch of time, the last two."""

    def take(self, number: int, overtaking_ms: int, now_s: float) -> bool:
        """Whether this one may still come; then it may not come again."""
        # Taken while both clocks were ahead: none of those is timely any more.
        last = 0 if self.last / 1000 - now_s > AGE_MAX_S else self.last
        if abs(now_s - number / 1000) > AGE_MAX_S:
            return False
        if not overtaking_ms:
            self.last = max(last, number)
            return number > last
        stretch = number // overtaking_ms
        if number in self.near.get(stretch, ()) or (number <= last and stretch < last // overtaking_ms - 1):
            return False
        self.last = max(last, number)
        self.near.setdefault(stretch, set()).add(number)
        for old in [one for one in self.near if one < self.last // overtaking_ms - 1]:
            del self.near[old]
        return True


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
        self._overtaking_ms: dict[str, int] = {}
        self._numbers: dict[tuple[str, str], _Numbers] = {}
        """Of each sender's notes about each service."""
        self._number = 0

    def serve(self, service: str, receive: Callable[[NodeId, bytes], None], overtaking_s: float = 0.0) -> None:
        """Hand notes of a service to `receive`, with their sender; one may be so much older than the newest."""
        self._services[service] = receive
        self._overtaking_ms[service] = int(overtaking_s * 1000)

    def knows(self, node: NodeId) -> bool:
        """Whether a note of this node would be believed: without a signing key known here it can answer nothing."""
        return self._hybrid.knows(node)

    def service(self, name: str) -> "ServiceNotes":
        """The notes of one service, as `base.ports.PeerNotes`."""
        return ServiceNotes(self, name)

    def tell(self, node: NodeId, service: str, octets: bytes) -> None:
        """Send a note; it may be lost. RouteUnavailable when there is no way at all."""
        self._send_along(self._route(node), service, octets, is_for_all=False)

    def tell_all(self, route: Sequence[NodeId], service: str, octets: bytes) -> None:
        """Send a note to every node of a route that begins here; it may be lost half-way."""
        self._send_along(route, service, octets, is_for_all=True)

    def _send_along(self, route: Sequence[NodeId], service: str, octets: bytes, *, is_for_all: bool) -> None:
        now_ms = int(self._clock.unix_s() * 1000)
        # Unless the clock had gone so far ahead that nobody took these numbers.
        is_timely = self._number - now_ms <= AGE_MAX_S * 1000
        self._number = max(self._number + 1, now_ms) if is_timely else now_ms
        note = Note(
            sender=self._node,
            to=route[-1],
            route=[*route],
            service=service,
            number=self._number,
            octets=octets,
            signature=b"",
            is_for_all=is_for_all,
        )
        note = msgspec.structs.replace(note, signature=self._hybrid.sign(*note.signed()))
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
            if not note.is_for_all:
                return
        self._hybrid.verify(note.sender, note.signature, *note.signed())
        receive = self._services.get(note.service)
        if receive is None:
            raise WireError(f"note of {note.sender}: no service {note.service} at this node")
        numbers = self._numbers.setdefault((note.sender, note.service), _Numbers())
        if not numbers.take(note.number, self._overtaking_ms[note.service], self._clock.unix_s()):
            raise AuthenticationFailed(f"note of {note.sender} about {note.service}: old, seen before or misdated")
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

    def tell_all(self, route: Sequence[NodeId], octets: bytes) -> None:
        """To every node of a route that begins here."""
        self._notes.tell_all(route, self._service, octets)
