"""What nodes say of their links, and what the use of a link costs a route because of it. Pure; costs are in hops.

A direction that has little key, for what it makes, is dear, and dearer the less it has: the price grows exponentially
with what is used of it, the rule that keeps a network's throughput within a logarithm of the best that is possible (B.
Awerbuch, Y. Azar, S. Plotkin, FOCS 1993, 32). So load moves away from a link before the link is empty, and routes with
key to spare may be longer.

A link that something speaks against is not forbidden but so dear that it is the last way left: whoever has no other
route goes on with the key that is there.
"""

import math
from typing import Annotated

import msgspec

from qtrunk.base.ids import LinkId

HORIZON_S = 60.0
"""A direction with so much of its own making in store is full."""
FULL_OCTETS_MIN = 16 << 10
STEPS = 8
"""The level counts in so many steps: not every octet is news to routes."""
SCARCE = 8.0
"""Hops that an empty direction costs."""
_GROWTH = math.log(64.0)
SLOW_BPS = 1000.0
"""At this rate a direction that is empty costs half a hop for being slow; at none a whole one."""
UNKNOWN = 1.0
"""Of a direction of which nothing was heard lately."""
CLAIMED = 4.0
"""Hops that a direction costs all of whose rate is claimed by guarantees that come first."""
DOUBTFUL = 100.0
"""Of a link that is OFF or just came back: more hops than any route has."""
DRAINED = 10_000.0
DOWN = 1_000_000.0
"""Of a link without a neighbour or without any key: it can carry nothing now."""


class LinkLevel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One direction of one link: what the advertising node may spend towards its neighbour."""

    link: LinkId
    octets: Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
    fill_bps: Annotated[float, msgspec.Meta(ge=0, le=1e15)]
    is_usable: bool
    """The neighbour is connected and there is key."""
    is_enabled: bool = True
    """False: a controller has switched the generation of key off at this end."""
    is_doubtful: bool = False
    """No new key may be had over it: its last block was destroyed, or it has not been good for long enough since."""
    is_connected: bool = True
    """The neighbour is connected, whether or not there is key."""


def step(level: LinkLevel, before: int | None = None) -> int:
    """How full a direction is, in steps from 0 to STEPS; it must have left a step by half of one to count anew."""
    full = max(FULL_OCTETS_MIN, level.fill_bps * HORIZON_S / 8)
    place = STEPS * min(1.0, level.octets / full)
    if before is not None and abs(place - before) < 1.0:
        return before
    return round(place)


def claimed_step(claimed_bps: float, level: LinkLevel | None, before: int | None = None) -> int:
    """How much of what a direction can give within the horizon is claimed, in steps as `step`; all of one that is
    not known.
    """
    able_bps = level.fill_bps + 8 * level.octets / HORIZON_S if level is not None else 0.0
    place = STEPS * min(1.0, claimed_bps / able_bps if able_bps > 0.0 else float(claimed_bps > 0.0))
    if before is not None and abs(place - before) < 1.0 and claimed_bps > 0.0:
        return before
    return round(place)


def claimed_price(steps: int) -> float:
    """What a direction costs for what is claimed of it."""
    return CLAIMED * _growing(steps / STEPS)


def _growing(share: float) -> float:
    """From 0 to 1, exponentially."""
    return (math.exp(_GROWTH * share) - 1.0) / (math.exp(_GROWTH) - 1.0)


def scarcity(steps: int, fill_bps: float) -> float:
    """What a direction costs for its level, and for its rate where the level is low."""
    used = 1.0 - steps / STEPS
    return SCARCE * _growing(used) + used / (1.0 + fill_bps / SLOW_BPS)


def flaw(level: LinkLevel) -> float:
    """What a link costs, in both directions, for what one of its ends says against it."""
    return (0.0 if level.is_usable else DOWN) + (DOUBTFUL if level.is_doubtful else 0.0)
