"""What the initiator's end of the relay machine keeps of a cargo on its way."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from qtrunk.base.ids import KeyId, LinkId, NodeId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.relay import messages as wire


@dataclass(slots=True, kw_only=True)
class Group:
    """The relays of a cargo to one node: a single one, or one for each of its shares."""

    node: NodeId
    needed: int
    relays: dict[str, wire.KeyRelay]
    """By ID, in the order of their numbers."""
    open: set[str] = field(default_factory=set)
    """Those that were not answered yet."""
    by_note: set[str] = field(default_factory=set)
    """Those by announced XORs, whose answers come in notes."""
    doubted: set[str] = field(default_factory=set)
    """Those that were changed, or their answer."""
    taken: list[wire.KeyRelay] = field(default_factory=list)
    """Once confirmed: what the cargo was made of."""

    def __post_init__(self) -> None:
        self.open = set(self.relays)

    @property
    def may_come(self) -> bool:
        """Whether enough shares may still be on their way."""
        return len(self.open) >= self.needed

    def by_number(self, numbers: tuple[int, ...]) -> list[wire.KeyRelay]:
        """The relays of these shares; of a cargo that is not shared, its one relay."""
        if self.needed == 1:
            return list(self.relays.values())
        by_number = {relay.share.number: relay for relay in self.relays.values() if relay.share is not None}
        return [by_number[number] for number in dict.fromkeys(numbers) if number in by_number]


@dataclass(slots=True, kw_only=True)
class Request:
    """A batch of keys or a segment on its way to its targets."""

    request_id: str
    initiator: SaeId
    targets: tuple[SaeId, ...]
    key_bits: int
    number: int
    octets: int
    """Of the whole cargo."""
    segment: int
    """0: keys of their own."""
    deadline_s: float
    is_announced: bool = False
    """By announced XORs where there are relays; a second attempt goes hop by hop, whatever was wrong with the first."""
    attempt: int = 1
    avoided: frozenset[LinkId] = frozenset()
    key_ids: list[KeyId] = field(default_factory=list)
    cargo: Secret = field(default_factory=lambda: Secret(b""))
    groups: list[Group] = field(default_factory=list)
    hops: list[wire.Hop] = field(default_factory=list)
    given: Secret | None = None
    """Keys that came from a foreign network, one behind the other; None: the octets of first hops become keys."""

    def wipe(self) -> None:
        """Nothing of it is needed here any more."""
        self.cargo.wipe()
        if self.given is not None:
            self.given.wipe()

    @property
    def is_confirmed(self) -> bool:
        """Whether every node holds the cargo."""
        return all(group.taken for group in self.groups)

    def all_relays(self) -> Iterator[wire.KeyRelay]:
        """Every relay, answered or not."""
        for group in self.groups:
            yield from group.relays.values()

    def unanswered(self) -> list[wire.KeyRelay]:
        """The relays that nothing was heard of, of groups that are not confirmed."""
        return [group.relays[one] for group in self.groups if not group.taken for one in sorted(group.open)]
