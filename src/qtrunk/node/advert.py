"""Who has how much key on which link: nodes tell their neighbours, neighbours pass it on.

An advert goes out every ADVERT_PERIOD_S, and at once when a link comes or goes (`node.flooding`). It holds levels and
rates, never key. It lets the node an application asks say truthfully how many keys could be
relayed now (ETSI GS QKD 014 Status), and lets routes avoid links that have none. A wrong advert costs a failed request,
never a key: each hop checks its own pool before it gives anything.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from qtrunk.base.errors import WireError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.wire import Message, decode, encode
from qtrunk.relay.maintenance import WINDOWS_MAX, Window
from qtrunk.relay.prices import LinkLevel
from qtrunk.relay.reservations import CLAIMS_MAX, Claim
from qtrunk.topology import Topology

ADVERT_PERIOD_S = 1.0
STALE_S = 10.0
"""An advert that was not renewed for so long says nothing any more."""
LINKS_MAX = 10_000


class Advert(Message, frozen=True, tag="advert"):
    """The levels of one node."""

    node: str
    sequence: int
    links: list[LinkLevel]
    windows: list[Window] = msgspec.field(default_factory=list)
    """Its maintenance windows, planned and under way."""
    claims: list[Claim] = msgspec.field(default_factory=list)
    """What the guarantees of its tenants claim, over their routes of now."""


@dataclass(slots=True)
class _Heard:
    advert: Advert
    at_s: float
    is_stale: bool = False


@dataclass(slots=True)
class Adverts:
    """What is known of every node's pools; sans I/O."""

    own: NodeId
    _heard: dict[str, _Heard] = field(default_factory=dict)

    def note_own(
        self,
        levels: Iterable[LinkLevel],
        sequence: int,
        now_s: float,
        windows: Iterable[Window] = (),
        claims: Iterable[Claim] = (),
    ) -> bytes:
        """Record the own levels and return the advert to send to all neighbours."""
        advert = Advert(self.own, sequence, list(levels), list(windows), list(claims))
        self._heard[self.own] = _Heard(advert, now_s)
        return encode(advert)

    def receive(self, octets: bytes, now_s: float) -> Advert | None:
        """Record a neighbour's message; what it says, when it is news, to be passed on to the other neighbours."""
        advert = decode(octets, Advert)
        if len(advert.links) > LINKS_MAX:
            raise WireError(f"advert of {advert.node[:63]!r} lists {len(advert.links)} links")
        if len(advert.windows) > WINDOWS_MAX:
            raise WireError(f"advert of {advert.node[:63]!r} lists {len(advert.windows)} windows")
        if len(advert.claims) > CLAIMS_MAX:
            raise WireError(f"advert of {advert.node[:63]!r} lists {len(advert.claims)} claims")
        known = self._heard.get(advert.node)
        if known is not None and now_s - known.at_s > STALE_S:
            # Sequences come from clocks: one that went ahead and was set right must not silence its node.
            known = None
        if advert.node == self.own or (known is not None and known.advert.sequence >= advert.sequence):
            return None
        self._heard[advert.node] = _Heard(advert, now_s)
        return advert

    def adopt(self, topology: Topology) -> None:
        """The network has changed: what nodes said that are gone counts no more."""
        nodes = {node.id for node in topology.nodes}
        self._heard = {node: heard for node, heard in self._heard.items() if node in nodes}

    def level(self, node: NodeId, link: LinkId, now_s: float) -> LinkLevel | None:
        """What `node` last said of its direction of `link`, or None if that is unknown or stale."""
        heard = self._heard.get(node)
        if heard is None or now_s - heard.at_s > STALE_S:
            return None
        return next((level for level in heard.advert.links if level.link == link), None)

    def silent(self, now_s: float) -> frozenset[str]:
        """Nodes that were heard once and said nothing new for STALE_S."""
        return frozenset(node for node, heard in self._heard.items() if now_s - heard.at_s > STALE_S)

    def unusable_links(self, now_s: float) -> frozenset[LinkId]:
        """Links that some node says cannot carry key now (no pool, no neighbour)."""
        return frozenset(
            level.link
            for heard in self._heard.values()
            if now_s - heard.at_s <= STALE_S
            for level in heard.advert.links
            if not level.is_usable
        )

    def stale(self, now_s: float) -> list[NodeId]:
        """The nodes that fell silent; each is named once for each time that it did."""
        found = [node for node, heard in self._heard.items() if not heard.is_stale and now_s - heard.at_s > STALE_S]
        for node in found:
            self._heard[node].is_stale = True
        return [NodeId(node) for node in found]
