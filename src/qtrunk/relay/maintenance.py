"""Maintenance windows: nodes and links that routes leave before anything stops there. Pure.

A window is planned, then under way, then over, by the clock alone: it ends by itself. While it is planned, from LEAD_S
before its start, pools are filled with what the window will keep from them; while it is under way, whatever has another
route takes it. Whoever has none goes on over the drained link for as long as it works.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec

from qtrunk.base.errors import RequestRefused
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.topology import Topology

LEAD_S = 3600.0
"""So long before a window pools begin to be filled for it."""
WINDOW_S_MAX = 30 * 86400.0
WINDOWS_MAX = 100
"""Of one node."""
WHY_CHARACTERS_MAX = 200
_Moment = Annotated[float, msgspec.Meta(ge=0, le=1e11)]


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Work on a node or a link."""

    resource: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    """A node ID or a link ID."""
    start_unix_s: _Moment
    end_unix_s: _Moment
    why: Annotated[str, msgspec.Meta(max_length=WHY_CHARACTERS_MAX)] = ""
    operator: Annotated[str, msgspec.Meta(max_length=200)] = ""

    def phase(self, unix_s: float) -> str:
        """`planned`, `under way` or `over`."""
        if unix_s >= self.end_unix_s:
            return "over"
        return "under way" if unix_s >= self.start_unix_s else "planned"


def may_announce(topology: Topology, node: NodeId, resource: str) -> bool:
    """Whether a node may speak of maintenance there: it is the node itself, or a link of its own."""
    return resource == node or any(link.id == resource for link in topology.links_of(node))


def checked(topology: Topology, node: NodeId, window: Window, others: Sequence[Window], unix_s: float) -> Window:
    """The window, or RequestRefused with the field that is wrong."""
    if not may_announce(topology, node, window.resource):
        mine = ", ".join([node, *(link.id for link in topology.links_of(node))])
        raise RequestRefused(f"resource: {window.resource[:80]!r} is not this node or a link of it: {mine}")
    if window.end_unix_s <= max(unix_s, window.start_unix_s):
        raise RequestRefused("end_unix_s: must be in the future and after start_unix_s")
    if window.end_unix_s - window.start_unix_s > WINDOW_S_MAX:
        raise RequestRefused(f"end_unix_s: a window lasts at most {WINDOW_S_MAX / 86400:.0f} days")
    if any(_overlap(window, other) for other in others):
        raise RequestRefused(f"resource: {window.resource} has another window in that time; end that one first")
    if len(others) >= WINDOWS_MAX:
        raise RequestRefused(f"resource: this node has {WINDOWS_MAX} windows already")
    return window


def _overlap(one: Window, other: Window) -> bool:
    return (
        one.resource == other.resource and one.start_unix_s < other.end_unix_s and other.start_unix_s < one.end_unix_s
    )


def under_way(windows: Iterable[Window], unix_s: float) -> frozenset[str]:
    """The nodes and links that routes must leave now."""
    return frozenset(window.resource for window in windows if window.phase(unix_s) == "under way")


def ahead_octets(windows: Iterable[Window], demand_bps: float, rest_bps: dict[str, float], unix_s: float) -> int:
    """What a pool must hold beyond the usual, octets: for each window that is near or under way, what its resource
    keeps from the pool in the time that is left of it. `rest_bps` is what goes on without a resource, by its name.

    Windows at the same time are counted one by one: too much key ahead is better than too little.
    """
    lacking = 0.0
    for window in windows:
        if window.resource not in rest_bps or not window.start_unix_s - LEAD_S <= unix_s < window.end_unix_s:
            continue
        lasts_s = window.end_unix_s - max(unix_s, window.start_unix_s)
        lacking += max(0.0, demand_bps - rest_bps[window.resource]) * lasts_s / 8
    return int(lacking)


def links_at(topology: Topology, resource: str) -> frozenset[LinkId]:
    """The links that a window takes: that one, or all of a node's."""
    return frozenset(link.id for link in topology.links if resource in (link.id, link.alice, link.bob))
