"""Who has how much key on which link: nodes tell their neighbours, neighbours pass it on.

An advert goes out when what it says has changed (`node.flooding`). It holds levels and rates, never key. It lets the
node an application asks say truthfully how many keys could be relayed now (ETSI GS QKD 014 Status), and lets routes
avoid links that have none. A wrong advert costs a failed request, never a key: each hop checks its own pool before it
gives anything.

What nodes know is kept alike as link-state protocols do it (RFC 2328, sections 10 and 13; ISO/IEC 10589, section 7.3):
neighbours tell each other a digest of all adverts they have with each hello (`node.greeting`). Where it differs they
say what they have, advert by advert, and give each other the later ones. So an advert that was lost, or changed on its
way, is set right; a node that comes back learns all; one that finds words of its own that it no longer means says them
anew.

A node is there while it can be reached over links that both ends say are connected. One that cannot be for STALE_S fell
silent, and what it said last says nothing any more.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Annotated

import msgspec

from qtrunk.base.errors import WireError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.wire import Message, decode, encode
from qtrunk.relay.maintenance import WINDOWS_MAX, Window
from qtrunk.relay.prices import LinkLevel
from qtrunk.relay.reservations import CLAIMS_MAX, Claim
from qtrunk.topology import Topology

ADVERT_PERIOD_S = 1.0
"""Levels are told at most so often."""
STALE_S = 10.0
"""What a node said that cannot be reached for so long says nothing any more."""
LINKS_MAX = 10_000
AHEAD_S = 86400.0
"""Sequences come from clocks. One that is so far ahead is not believed: nobody could speak after it."""
_MARK_OCTETS = 8
_Sequence = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
_Mark = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Advert(Message, frozen=True, tag="advert"):
    """The levels of one node."""

    node: str
    sequence: _Sequence
    links: list[LinkLevel]
    windows: list[Window] = msgspec.field(default_factory=list)
    """Its maintenance windows, planned and under way."""
    claims: list[Claim] = msgspec.field(default_factory=list)
    """What the guarantees of its tenants claim, over their routes of now."""


class Known(Message, frozen=True, tag="known"):
    """What adverts a node has: whose, their sequences and marks."""

    adverts: list[tuple[str, _Sequence, _Mark]]


@dataclass(slots=True)
class _Heard:
    advert: Advert
    octets: bytes
    mark: int
    """Of the octets: tells two adverts of one sequence apart."""
    at_s: float
    """When it was heard, or its node was last reached."""
    is_stale: bool = False
    levels: dict[LinkId, LinkLevel] = field(default_factory=dict)
    connected: frozenset[LinkId] = frozenset()

    @property
    def age(self) -> tuple[int, int]:
        """The later of two adverts of a node is the one with the greater; nodes agree on it without asking."""
        return self.advert.sequence, self.mark


@dataclass(slots=True)
class Adverts:
    """What is known of every node's pools; sans I/O."""

    own: NodeId
    _heard: dict[str, _Heard] = field(default_factory=dict)
    _nodes: frozenset[str] | None = None
    """Of the network; None: whoever speaks."""
    _digest: int = 0
    _beyond: int = -1
    """A sequence under which others have words of this node that are not its last."""
    _reached: frozenset[str] = frozenset()
    _away: tuple[str, ...] = ()
    """Who was heard and cannot be reached."""
    _returned: list[Advert] = field(default_factory=list)

    def note_own(
        self,
        levels: Iterable[LinkLevel],
        sequence: int,
        now_s: float,
        windows: Iterable[Window] = (),
        claims: Iterable[Claim] = (),
    ) -> bytes:
        """Record the own levels and return the advert to send to all neighbours; its sequence is `sequence`, or goes
        beyond what was said before.
        """
        known = self._heard.get(self.own)
        sequence = max(sequence, self._beyond + 1, known.advert.sequence + 1 if known else 0)
        advert = Advert(
            node=self.own, sequence=sequence, links=list(levels), windows=list(windows), claims=list(claims)
        )
        octets = encode(advert)
        self._take(advert, octets, now_s)
        return octets

    def receive(self, octets: bytes, now_s: float, unix_s: float | None = None) -> Advert | None:
        """Record a neighbour's message; what it says, when it is news, to be passed on to the other neighbours.

        `unix_s` is the time of day, where sequences of the far future shall not count.
        """
        advert = decode(octets, Advert)
        if len(advert.links) > LINKS_MAX:
            raise WireError(f"advert of {advert.node[:63]!r} lists {len(advert.links)} links")
        if len(advert.windows) > WINDOWS_MAX:
            raise WireError(f"advert of {advert.node[:63]!r} lists {len(advert.windows)} windows")
        if len(advert.claims) > CLAIMS_MAX:
            raise WireError(f"advert of {advert.node[:63]!r} lists {len(advert.claims)} claims")
        if self._nodes is not None and advert.node not in self._nodes:
            # Of a node that is gone, or not yet known here: neighbours give it again once it is.
            return None
        if unix_s is not None and advert.sequence > 1000 * (unix_s + AHEAD_S):
            return None
        known = self._heard.get(advert.node)
        if known is not None and known.age >= (advert.sequence, _mark(octets)):
            return None
        if advert.node == self.own:
            self._beyond = max(self._beyond, advert.sequence)
            return None
        self._take(advert, octets, now_s)
        return advert

    @property
    def is_contradicted(self) -> bool:
        """Whether others have words of this node that it has not said, or said in an earlier life."""
        known = self._heard.get(self.own)
        return known is not None and self._beyond >= known.advert.sequence

    def adopt(self, topology: Topology) -> None:
        """The network, at the start and whenever it has changed: what others say than its nodes counts no more."""
        self._nodes = nodes = frozenset(str(node.id) for node in topology.nodes)
        self._heard = {node: heard for node, heard in self._heard.items() if node in nodes}
        self._digest = 0
        for heard in self._heard.values():
            self._digest ^= heard.mark
        self._reached &= nodes
        self._away = tuple(node for node in self._away if node in nodes)

    # ── keeping all nodes' knowledge alike ──────────────────────────────────────────────────────────────────────────

    def digest(self) -> bytes:
        """Of all adverts that are known here."""
        return self._digest.to_bytes(_MARK_OCTETS, "big")

    def known(self) -> bytes:
        """What adverts are known here, as a message."""
        return encode(Known(adverts=[(node, heard.advert.sequence, heard.mark) for node, heard in self._heard.items()]))

    def missing(self, octets: bytes) -> list[bytes]:
        """The adverts that a neighbour lacks, by its message of what it knows."""
        there = {node: (sequence, mark) for node, sequence, mark in decode(octets, Known).adverts}
        return [heard.octets for node, heard in self._heard.items() if heard.age > there.get(node, (-1, -1))]

    def _take(self, advert: Advert, octets: bytes, now_s: float) -> None:
        before = self._heard.get(advert.node)
        fresh = _Heard(advert, octets, _mark(octets), now_s, levels={level.link: level for level in advert.links})
        fresh.connected = frozenset(level.link for level in advert.links if level.is_connected)
        self._heard[advert.node] = fresh
        self._digest ^= fresh.mark ^ (before.mark if before is not None else 0)
        if before is None or before.connected != fresh.connected:
            self._find_reached(now_s)

    def _find_reached(self, now_s: float) -> None:
        """Over links that both ends say are connected, from here."""
        ends: dict[LinkId, list[str]] = {}
        for node, heard in self._heard.items():
            for link in heard.connected:
                ends.setdefault(link, []).append(node)
        found, waiting = {str(self.own)}, [str(self.own)]
        while waiting:
            known = self._heard.get(waiting.pop())
            for link in known.connected if known is not None else ():
                fresh = [node for node in ends[link] if node not in found]
                found.update(fresh)
                waiting += fresh
        for node in self._reached - found:
            if node in self._heard:
                self._heard[node].at_s = now_s
        for node in sorted(found - self._reached):
            if node in self._heard and self._heard[node].is_stale:
                self._heard[node].is_stale = False
                self._returned.append(self._heard[node].advert)
        self._reached = frozenset(found)
        self._away = tuple(node for node in self._heard if node not in found)

    # ── what is known ───────────────────────────────────────────────────────────────────────────────────────────────

    def level(self, node: NodeId, link: LinkId, now_s: float) -> LinkLevel | None:
        """What `node` last said of its direction of `link`, or None if that is unknown or stale."""
        heard = self._heard.get(node)
        if heard is None or self._is_silent(node, heard, now_s):
            return None
        return heard.levels.get(link)

    @property
    def away(self) -> tuple[str, ...]:
        """Nodes that were heard once and cannot be reached, for however short a time."""
        return self._away

    def silent(self, now_s: float) -> frozenset[str]:
        """Nodes that were heard once and cannot be reached for STALE_S."""
        return frozenset(node for node in self._away if self._is_silent(node, self._heard[node], now_s))

    def unusable_links(self, now_s: float) -> frozenset[LinkId]:
        """Links that some node says cannot carry key now (no pool, no neighbour)."""
        return frozenset(
            level.link
            for node, heard in self._heard.items()
            if not self._is_silent(node, heard, now_s)
            for level in heard.advert.links
            if not level.is_usable
        )

    def stale(self, now_s: float) -> list[NodeId]:
        """The nodes that fell silent; each is named once for each time that it did."""
        found = [node for node in self._away if not self._heard[node].is_stale]
        found = [node for node in found if self._is_silent(node, self._heard[node], now_s)]
        for node in found:
            self._heard[node].is_stale = True
        return [NodeId(node) for node in found]

    def said(self, now_s: float) -> list[Advert]:
        """What every node that is there said last."""
        return [one.advert for node, one in self._heard.items() if not self._is_silent(node, one, now_s)]

    def returned(self) -> list[Advert]:
        """What nodes said that fell silent and can be reached again; each once."""
        found, self._returned = self._returned, []
        return found

    def _is_silent(self, node: str, heard: _Heard, now_s: float) -> bool:
        return node not in self._reached and now_s - heard.at_s > STALE_S


def _mark(octets: bytes) -> int:
    return int.from_bytes(blake2b(octets, digest_size=_MARK_OCTETS).digest(), "big") >> 1
