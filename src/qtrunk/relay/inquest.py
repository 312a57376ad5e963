"""Who changed a relayed cargo: every node of its route states what it received and sent, and that is compared.

When a cargo or share turns out changed, the initiator's node asks each node of the route (signed notes between nodes,
end to end) for digests of what passed it: `relay.shares.digest` of words and octets forward, and of the answer
backward. Both directions form a chain: a node's neighbour must have received what the node says it sent. Where a node's
own two digests differ, it has changed the cargo. Where two neighbours contradict each other, one of them lies or their
link key differs, and nothing that the two could show decides which: pad and tags are symmetric, either end can make
them. Then the pair is named; the ends of the route are not suspects, so next to them one node is left. A node that two
pairs of different incidents have in common is named alone: that takes it for granted that not both of its neighbours
lie.

What this cannot tell: two neighbours that are both corrupt can push the blame one step outward, to a pair of which one
is corrupt. A node that drops notes makes those behind it look silent: they are named with it, as silent.

A cargo that was not shared is void before anyone is asked, so its digest gives nothing away; shares have a salt.
One pure machine: notes and ticks in, effects out.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from qtrunk.base.errors import WireError
from qtrunk.base.ids import NodeId
from qtrunk.base.ports import Clock
from qtrunk.base.secret import Secret
from qtrunk.base.wire import Message, decode, encode
from qtrunk.relay import messages as wire
from qtrunk.relay.hops import Report
from qtrunk.relay.shares import answer_digest, digest

SERVICE = "relay-inquest"
"""Of the notes."""
MEMORY_S = 60.0
"""So long a node can say what passed it."""
ANSWER_S = 4.0
ASK_PERIOD_S = 1.0
PAIRS_MAX = 64
IMPLIED_OCTETS = 48
"""Of the digests of all links of a route by announced XORs, together; a share's salt has 64."""
RECORDS_MAX = 1 << 16
_Digest = Annotated[bytes, msgspec.Meta(max_length=32)]
_Id = Annotated[str, msgspec.Meta(max_length=64)]


@dataclass(frozen=True, slots=True)
class Tell:
    """Send these octets to a node as a signed note; with a `route`, to all nodes of it behind the first."""

    node: NodeId
    octets: bytes
    service: str = SERVICE
    route: tuple[NodeId, ...] = ()


class Question(Message, frozen=True, tag="inquest-question"):
    """What passed you of this relay?"""

    relay_id: _Id


class Statement(Message, frozen=True, tag="inquest-statement"):
    """Digests of what a node received and sent of a relay, forward and backward; empty: nothing.

    Where XORs were announced, what a relay received and sent is its octets of the two links beside it.
    """

    relay_id: _Id
    received: _Digest = b""
    sent: _Digest = b""
    answer_received: _Digest = b""
    answer_sent: _Digest = b""
    implied: Annotated[tuple[_Digest, ...], msgspec.Meta(max_length=wire.HOPS_MAX)] = ()
    """Of the last node, where XORs were announced: the octets that each link of the route had by what was announced."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What statements show: `tampered`, `silent` or `clear`, and who it can have been."""

    kind: str
    suspects: tuple[str, ...] = ()
    why: str = ""


@dataclass(slots=True)
class _Record:
    """What passed this node of one relay."""

    until_s: float
    said: Statement
    asker: str = ""
    """Who may ask: the initiator's node, where it is known."""
    route: tuple[str, ...] = ()
    """Where this node is the initiator's."""
    is_announced: bool = False


@dataclass(slots=True)
class _Inquest:
    """Statements that come in."""

    route: tuple[str, ...]
    is_silence: bool
    """Begun because nothing came back, not because something was changed."""
    until_s: float
    ask_at_s: float
    statements: dict[str, Statement] = field(default_factory=dict)


class Inquests:
    """One node's part: it remembers what passed it, answers, and asks about what it initiated."""

    def __init__(self, node: NodeId, clock: Clock) -> None:
        self._node = node
        self._clock = clock
        self._records: dict[str, _Record] = {}
        self._open: dict[str, _Inquest] = {}
        self._watched: dict[str, float] = {}
        self._pairs: deque[frozenset[str]] = deque(maxlen=PAIRS_MAX)

    # ── what passed here ────────────────────────────────────────────────────────────────────────────────────────────

    def note_sent(self, body: wire.KeyRelay, octets: Secret, *, is_announced: bool = False) -> None:
        """This node, the initiator's, sends a cargo or a share of it out; where XORs are announced, `octets` are those
        of the first link."""
        sent = self.implied(body, octets) if is_announced else digest(body, octets)
        self._note(body.relay_id, body.route[0], tuple(body.route), sent=sent)
        self._records[body.relay_id].is_announced = is_announced

    def note_announced(self, body: wire.KeyRelay, received: Secret, sent: Secret) -> None:
        """This relay announced the XOR of these."""
        self._note(body.relay_id, body.route[0], received=self.implied(body, received), sent=self.implied(body, sent))

    def note_implied(self, body: wire.KeyRelay, implied: Sequence[bytes]) -> None:
        """This node, the last, was announced XORs by which the links of the route had octets of these digests."""
        self._note(body.relay_id, body.route[0], received=implied[-1], implied=tuple(implied))

    def implied(self, body: wire.KeyRelay, octets: Secret) -> bytes:
        """Digest of one link's octets. Those of all links together tell no more than the salt of a share covers: they
        differ by what was announced, so that each says something of the others. To compare, few octets are enough.
        """
        return digest(body, octets)[: max(2, min(32, IMPLIED_OCTETS // (len(body.route) - 1)))]

    def has(self, relay_id: str) -> bool:
        """Whether anything is known of a relay."""
        return relay_id in self._records

    def announced_route(self, relay_id: str) -> tuple[str, ...]:
        """That of an own relay by announced XORs, also when it is over; of others none."""
        record = self._records.get(relay_id)
        return record.route if record is not None and record.is_announced else ()

    def note_passed(self, body: wire.KeyRelay, octets: Secret, *, is_last: bool) -> None:
        """A relay came here and, unless this is its last node, goes on."""
        passed = digest(body, octets)
        self._note(body.relay_id, body.route[0], received=passed, sent=b"" if is_last else passed)

    def note_answer(self, body: wire.KeyRelayCompletion, *, is_received: bool, is_sent: bool) -> None:
        """An answer came here, or leaves here, or both."""
        passed = answer_digest(body)
        self._note(
            body.relay_id, answer_received=passed if is_received else b"", answer_sent=passed if is_sent else b""
        )

    def _note(
        self, relay_id: str, asker: str = "", route: tuple[str, ...] = (), **digests: bytes | tuple[bytes, ...]
    ) -> None:
        record = self._records.get(relay_id)
        if record is None:
            if len(self._records) >= RECORDS_MAX:
                del self._records[next(iter(self._records))]
            until_s = self._clock.monotonic_s() + MEMORY_S
            record = self._records[relay_id] = _Record(until_s, Statement(relay_id=relay_id), route=route)
        record.asker = record.asker or asker
        news = {name: value for name, value in digests.items() if value and not getattr(record.said, name)}
        # What came first counts: a replay must not change what a node states.
        record.said = msgspec.structs.replace(record.said, **news)

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def watch(self, relay_id: str, until_s: float) -> None:
        """A share that was not needed: ask about it if nothing comes back until then."""
        self._watched[relay_id] = until_s

    def is_watched(self, relay_id: str) -> bool:
        """Whether a share is still waited for."""
        return relay_id in self._watched

    def open(self, relay_id: str, *, is_silence: bool = False) -> list[Tell]:
        """Ask every node of a relay of this node's own."""
        self._watched.pop(relay_id, None)
        record = self._records.get(relay_id)
        if record is None or not record.route or relay_id in self._open:
            return []
        now_s = self._clock.monotonic_s()
        self._open[relay_id] = _Inquest(record.route, is_silence, now_s + ANSWER_S, now_s + ASK_PERIOD_S)
        return self._ask(relay_id)

    def _ask(self, relay_id: str) -> list[Tell]:
        inquest = self._open[relay_id]
        unheard = [node for node in inquest.route[1:] if node not in inquest.statements]
        return [Tell(NodeId(node), encode(Question(relay_id=relay_id))) for node in unheard]

    def receive(self, node: NodeId, octets: bytes) -> list[Tell | Report]:
        """A note of SERVICE, from the node that signed it."""
        body = decode(octets, Question | Statement)
        if isinstance(body, Question):
            record = self._records.get(body.relay_id)
            # Others than the initiator's node might ask while the cargo lives.
            said = record.said if record and record.asker == node else Statement(relay_id=body.relay_id)
            return [Tell(node, encode(said))]
        inquest = self._open.get(body.relay_id)
        if inquest is None:
            return []  # It came too late, or twice.
        if node not in inquest.route[1:]:
            raise WireError(f"inquest: node {node} is not on the route of that relay")
        inquest.statements.setdefault(node, body)
        return self._close(body.relay_id) if len(inquest.statements) == len(inquest.route) - 1 else []

    @property
    def is_open(self) -> bool:
        """Whether anybody is asked, or may have to be soon."""
        return bool(self._open or self._watched)

    def tick(self) -> list[Tell | Report]:
        """Ask again, close, forget."""
        now_s = self._clock.monotonic_s()
        effects: list[Tell | Report] = []
        for relay_id in [one for one, until_s in self._watched.items() if until_s < now_s]:
            effects += self.open(relay_id, is_silence=True)
        for relay_id, inquest in list(self._open.items()):
            if inquest.until_s < now_s:
                effects += self._close(relay_id)
            elif inquest.ask_at_s < now_s:
                inquest.ask_at_s = now_s + ASK_PERIOD_S
                effects += self._ask(relay_id)
        while self._records and (first := next(iter(self._records.items())))[1].until_s < now_s:
            del self._records[first[0]]
        return effects

    def _close(self, relay_id: str) -> list[Tell | Report]:
        inquest, record = self._open.pop(relay_id), self._records.get(relay_id)
        if record is None:
            return []  # Forgotten meanwhile.
        weigh = judge_announced if record.is_announced else judge
        finding = weigh(inquest.route, record.said, inquest.statements)
        if finding.kind == "clear" and inquest.is_silence:
            return []
        way = f"relay {relay_id} over {'-'.join(inquest.route)}"
        if finding.kind == "clear":
            why = f"{way}: no node of the route contradicts another; one of the two ends is at fault"
            return [Report(None, "RelayTampered", why)]
        suspects = self._narrowed(finding) if finding.kind == "tampered" else finding.suspects
        alarm = "RelayTampered" if finding.kind == "tampered" else "RelaySilent"
        suspects = tuple(sorted(suspects))
        return [Report(None, alarm, f"{way}: {finding.why}: {_named(suspects)}", node=" or ".join(suspects))]

    def _narrowed(self, finding: Finding) -> tuple[str, ...]:
        """One node, where two incidents point to different pairs with one in common."""
        suspects = frozenset(finding.suspects)
        if len(suspects) == 1:
            return finding.suspects
        common = {min(both) for pair in self._pairs if pair != suspects and len(both := pair & suspects) == 1}
        if suspects not in self._pairs:
            self._pairs.append(suspects)
        return tuple(common) if len(common) == 1 else finding.suspects


def judge(route: Sequence[str], own: Statement, statements: Mapping[str, Statement]) -> Finding:
    """What statements show of a relay; `own` is that of the initiator's node, which believes itself."""
    found = _judge(list(route), own.sent, statements, ("received", "sent"), "the cargo")
    if found.kind != "clear":
        return found
    back = list(reversed(route))
    target = statements.get(back[0])
    if target is None or not target.answer_sent or not own.answer_received:
        return _unanswered(route, statements)
    last = {**statements, back[-1]: Statement(relay_id=own.relay_id, answer_received=own.answer_received)}
    return _judge(back, target.answer_sent, last, ("answer_received", "answer_sent"), "the answer")


def judge_announced(route: Sequence[str], own: Statement, statements: Mapping[str, Statement]) -> Finding:
    """The same where XORs were announced, by what they imply: signed, so nobody can have changed those of another.

    From the last node to the first: what a node had of the link onward must be what is implied for it, or it or
    somebody up to the next node that was heard is wrong; what it had of the link before as well, or its sum was none.
    """
    last, ends = statements.get(route[-1]), {route[0], route[-1]}
    heard = {one: said for one, said in statements.items() if said.received and said.sent}
    if last is None or len(last.implied) != len(route) - 1:
        return Finding("silent", tuple(one for one in route[1:-1] if one not in heard), "not all of it came")
    between = [route[-1]]
    for place in range(len(route) - 2, 0, -1):
        node, said = route[place], heard.get(route[place])
        if said is None:
            between.append(node)
        elif said.sent != last.implied[place]:
            suspects = tuple(one for one in [node, *between] if one not in ends)
            return Finding("tampered", suspects, "the cargo was changed")
        elif said.received != last.implied[place - 1]:
            return Finding("tampered", (node,), "what was announced is not the sum of what it had")
        else:
            between = [node]
    if own.sent != last.implied[0]:
        return Finding("tampered", tuple(one for one in between if one not in ends), "the cargo was changed")
    return Finding("clear")


def _judge(
    route: list[str], first: bytes, statements: Mapping[str, Statement], names: tuple[str, str], what: str
) -> Finding:
    """One direction. The two ends of the route are not suspects."""
    ends = {route[0], route[-1]}
    before, passed = [route[0]], first
    for node in route[1:]:
        said = statements.get(node)
        if said is None:
            before.append(node)
            continue
        received, sent = getattr(said, names[0]), getattr(said, names[1])
        suspects = tuple(one for one in [*before, node] if one not in ends)
        if not received:
            return Finding("silent", suspects, f"{what} was lost")
        if received != passed:
            return Finding("tampered", suspects, f"{what} was changed")
        if node != route[-1] and not sent:
            return Finding("silent", (node,), f"{what} was not passed on")
        if node != route[-1] and sent != received:
            return Finding("tampered", (node,), f"{what} was changed")
        # Who was not heard in between passed on what it should have.
        before, passed = [node], sent
    if before[0] != route[-1]:
        return Finding("silent", tuple(one for one in before if one not in ends), "there is no statement")
    return Finding("clear")


def _unanswered(route: Sequence[str], statements: Mapping[str, Statement]) -> Finding:
    """The cargo came as it was sent, and no answer came back: the target waits for other shares, or it was lost."""
    target = statements.get(route[-1])
    if target is None or not target.answer_sent:
        return Finding("clear")
    back = list(reversed(route[:-1]))
    before = route[-1]
    for node in back:
        said = statements.get(node)
        if said is None or not said.answer_received:
            suspects = tuple(one for one in (before, node) if one not in (route[0], route[-1]))
            return Finding("silent", suspects, "the answer was lost")
        before = node
    return Finding("clear")


def _named(suspects: Sequence[str]) -> str:
    return " or ".join(f"node {suspect}" for suspect in suspects) or "between its two ends"
