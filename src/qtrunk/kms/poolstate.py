"""What `kms.pools` keeps in memory: pools, their living segments, what was asked for lately; ledgers.

Places and amounts are in units of `kms.keyid` where nothing else is said.
"""

import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import msgspec

from qtrunk.base.ids import SaeId
from qtrunk.base.ports import Quality
from qtrunk.kms.consume import COLLECTED, INITIATED
from qtrunk.kms.key import KeyState, SegmentState
from qtrunk.kms.keyid import UNIT_OCTETS, KeyIds, units_of
from qtrunk.kms.segment import SegmentReader

HEAD_OCTETS = 64
"""Of each segment: 32 for the key of its IDs, 32 for the tag that confirms it."""
HEAD_UNITS = HEAD_OCTETS // UNIT_OCTETS


@dataclass(slots=True, kw_only=True)
class PoolLedger:
    """Where every octet of a pool's segments is or went, on one side."""

    filled: int = 0
    overhead: int = 0
    available: int = 0
    delivered: int = 0
    doubtful: int = 0
    """Part of `delivered`."""
    lost: int = 0
    destroyed: dict[str, int] = field(default_factory=dict)
    """By reason."""

    @property
    def unaccounted(self) -> int:
        """Zero, or octets went missing or were made from nothing."""
        return self.filled - self.overhead - self.available - self.delivered - self.lost - sum(self.destroyed.values())


@dataclass(slots=True, kw_only=True)
class Segment:
    """A living segment. Places and amounts are in units."""

    pool: "Pool"
    number: int
    rank: int
    units: int
    ids: KeyIds
    made_unix_s: float
    expires_unix_s: float
    cursor: int = HEAD_UNITS
    """Initiator's side: everything before was given out or passed over."""
    used: bytearray | None = None
    """Target's side: one octet for each unit, 1 where it was given out or will never be; None while all are free."""
    delivered: int = 0
    doubtful: int = 0
    lost: int = 0
    voided: int = 0
    """Destroyed while the rest lives: the initiator's node will never give it out."""
    free: int = 0
    is_changed: bool = False
    """Since the last checkpoint."""
    closed_unix_s: float | None = None
    """Nothing is left to give out; the material stays until no client can ask again."""
    closed_s: float | None = None
    """The same by the clock that only goes on, where a start counts anew: what waits, waits by this one."""
    reader: SegmentReader | None = None
    quality: Quality


@dataclass(slots=True)
class Pool:
    """A pair of SAEs on one side."""

    number: int
    side: int
    initiator: SaeId
    target: SaeId
    segments: deque[Segment] = field(default_factory=deque)
    free: int = 0


def free_units(side: int, units: int, cursor: int, used: bytes | bytearray | None) -> int:
    """Units of a segment that may still be given out; its fields as `Segment` and its row have them."""
    if side == INITIATED:
        return units - cursor
    return units - HEAD_UNITS - (0 if used is None else sum(used))


def runs(places: list[tuple[Segment, int, int]]) -> list[tuple[Segment, int, int, int]]:
    """Keys that follow each other in one segment as one part each, in the order of the request."""
    parts: list[tuple[Segment, int, int, int]] = []
    for segment, unit, key_octets in places:
        if parts:
            last, first, octets, count = parts[-1]
            if last is segment and octets == key_octets and unit == first + count * units_of(octets):
                parts[-1] = (last, first, octets, count + 1)
                continue
        parts.append((segment, unit, key_octets, 1))
    return parts


def side_by_side(
    places: list[tuple[Segment, int, int]],
) -> tuple[list[int], list[tuple[Segment, int, int, int]]]:
    """Keys of one size in the order in which they lie, as places in the list, and as parts without gaps.

    Nothing where there are none, sizes differ or leave gaps, or one is named twice.
    """
    octets = places[0][2] if places else 0
    if not octets or octets % UNIT_OCTETS or any(place[2] != octets for place in places):
        return [], []
    order = sorted(range(len(places)), key=lambda number: (places[number][0].rank, places[number][1]))
    parts = runs([places[number] for number in order])
    stride = units_of(octets)
    for (segment, first, _, count), (other, unit, _, _) in pairwise(parts):
        if segment is other and unit < first + count * stride:
            return [], []
    return order, parts


def revived(row: dict[str, Any], pool: Pool, ids: KeyIds) -> Segment:
    """A segment as its row has it."""
    used = row["used"]
    segment = Segment(
        pool=pool,
        number=row["segment"],
        rank=row["rank"],
        quality=quality_of(msgspec.json.decode(row["receipt"])),
        units=row["units"],
        ids=ids,
        made_unix_s=row["made_unix_s"],
        expires_unix_s=row["expires_unix_s"],
        cursor=row["cursor"],
        used=None if used is None else bytearray(zlib.decompress(used)),
        delivered=row["delivered"],
        doubtful=row["doubtful"],
        lost=row["lost"],
        voided=row["destroyed"],
    )
    segment.free = free_units(pool.side, segment.units, segment.cursor, segment.used)
    return segment


def fate(row: dict[str, Any], given: list[dict[str, object]]) -> tuple[str, object]:
    """Where a key of a segment stands, and since when it is at its end."""
    if given:
        is_lost = given[-1]["to"] == "lost"
        return (KeyState.DESTROYED if is_lost else KeyState.DELIVERED).value, given[-1]["unix_s"]
    if row["state"] != SegmentState.AVAILABLE.value:
        return KeyState.DESTROYED.value, row["ended_unix_s"]
    return (KeyState.RESERVED if row["side"] == INITIATED else KeyState.STORED).value, None


def quality_of(receipt: dict[str, Any]) -> Quality:
    """What the secrecy of a segment rests on, as its receipt has it (`relay.cargo.receipt`)."""
    protection = str(receipt.get("protection", "qkd"))
    routes = receipt.get("routes", [])
    return Quality(
        # JSON has no infinity: what was that is null.
        epsilon=float("inf" if (epsilon := receipt.get("epsilon", 0.0)) is None else epsilon),
        hops=max((len(nodes) - 1 for nodes in routes), default=0),
        routes=int(receipt.get("needed", 1)),
        is_qkd="qkd" in protection,
        is_hybrid="ml-kem" in protection,
    )


def worst_of(qualities: Iterable[Quality]) -> Quality | None:
    """The worst of each, of several; None of none."""
    found = list(qualities)
    if not found:
        return None
    return Quality(
        epsilon=max(one.epsilon for one in found),
        hops=max(one.hops for one in found),
        routes=min(one.routes for one in found),
        is_qkd=all(one.is_qkd for one in found),
        is_hybrid=all(one.is_hybrid for one in found),
    )


def ledgers(
    ended: Iterable[dict[str, Any]], living: Iterable[tuple[tuple[int, SaeId, SaeId], Pool]]
) -> dict[tuple[int, SaeId, SaeId], PoolLedger]:
    """Every pool's ledger, in octets: from the sums of segments that ended, and the segments that live."""
    found: dict[tuple[int, SaeId, SaeId], PoolLedger] = {}
    for row in ended:
        key = (row["side"], SaeId(row["initiator"]), SaeId(row["target"]))
        ledger = found.setdefault(key, PoolLedger())
        spent = row["delivered"] + row["lost"] + row["destroyed"]
        ledger.filled += row["units"] * UNIT_OCTETS
        ledger.delivered += row["delivered"] * UNIT_OCTETS
        ledger.doubtful += row["doubtful"] * UNIT_OCTETS
        ledger.lost += row["lost"] * UNIT_OCTETS
        ledger.overhead += (row["units"] - spent) * UNIT_OCTETS
        if row["destroyed"]:
            destroyed = row["destroyed"] * UNIT_OCTETS
            ledger.destroyed[row["reason"]] = ledger.destroyed.get(row["reason"], 0) + destroyed
    for key, pool in living:
        ledger = found.setdefault(key, PoolLedger())
        for segment in pool.segments:
            ledger.filled += segment.units * UNIT_OCTETS
            ledger.available += segment.free * UNIT_OCTETS
            ledger.delivered += segment.delivered * UNIT_OCTETS
            ledger.doubtful += segment.doubtful * UNIT_OCTETS
            ledger.lost += segment.lost * UNIT_OCTETS
            spent = segment.free + segment.delivered + segment.lost + segment.voided
            ledger.overhead += (segment.units - spent) * UNIT_OCTETS
            if segment.voided:
                voided = segment.voided * UNIT_OCTETS
                ledger.destroyed["voided"] = ledger.destroyed.get("voided", 0) + voided
    return found


def ledgers_as_json(found: dict[tuple[int, SaeId, SaeId], PoolLedger]) -> list[dict[str, object]]:
    """Ledgers for a node's status."""
    sides = {INITIATED: "initiator", COLLECTED: "target"}
    return [
        {"side": sides[side], "initiator": initiator, "target": target, **asdict(ledger)}
        for (side, initiator, target), ledger in sorted(found.items())
    ]
