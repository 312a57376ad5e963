"""Spending link key: each octet once, at both ends the same, durable before it is handed out.

An end allocates from its own area, oldest block first, and tells the peer which slices it took; the peer
follows. Whoever follows accepts a slice only at or after the place that the extent has come to: what lies
before was used (a replay), what is passed over is burnt, since the message that named it may never come.
After a crash each end simply goes on from where its record stands; octets may be lost, never used twice.

Traffic in one direction would use up one area and strand the other. So an end may grant octets of its area:
they leave it for good, as if allocated, and become an extent that the peer allocates from, first granted
first used. Both ends keep that extent, so the granter follows the peer there exactly once like anywhere
else.

Errors: KeyExhausted (not enough now, nothing taken), BudgetSpent (the link's epsilons would be too much),
AuthenticationFailed (a slice that was used or is not the peer's), KeyNotFound (a block that is not available here),
StoreError (the disk, or the wrong end of a link).
"""

import math
import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

from qtrunk.base.errors import AuthenticationFailed, BudgetSpent, KeyExhausted, KeyNotFound, KeyPending, RequestRefused
from qtrunk.base.ids import LinkId
from qtrunk.base.secret import Secret
from qtrunk.kms.blocks import AUTH, Blocks, block_state
from qtrunk.kms.key import Allocation, AuthReservation, BlockState, Ledger, PoolLevel, Slice, block_name
from qtrunk.kms.part import link_scope, tallies, tally
from qtrunk.kms.segment import SegmentDamagedError
from qtrunk.stages import Role

STALE_BLOCKS = 8
"""Once the peer has come so many blocks further, what it left behind was lost on the way and is burnt."""
AUTH_SKIP_MAX = 32
"""Portions of authentication key that the peer may pass over at once: it lost them with blocks that never came here."""
_EPSILON, _EPSILON_STEPS = "epsilon", 1e18
"""The tally of a link's epsilons counts in steps of 10^-18, rounded up."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Extent:
    """What is left of one stretch of a block, from `cursor` to `last` (exclusive)."""

    number: int
    block: int
    is_granted: bool
    rank: int
    cursor: int
    last: int


class Spending(Blocks):
    """Allocation, following and grants on all links of a node."""

    def allocate(self, link: LinkId, area: Role, octets: int) -> Allocation:
        """Take fresh octets from this end's area: all or nothing."""

        def work(db: sqlite3.Connection) -> Allocation:
            self._check_side(db, link, area)
            slices = self._claim(db, link, area, octets)
            self._retire(db, link, (piece.block for piece in slices))
            tally(db, link_scope(link), "allocated", octets)
            return Allocation(slices=slices, material=self._material(link, slices))

        return self._despite_damage(lambda: self._journal.run(work))

    def follow(self, link: LinkId, area: Role, slices: Sequence[Slice]) -> Secret:
        """The octets that the peer took from its area; checked completely before anything moves."""

        def work(db: sqlite3.Connection) -> Secret:
            self._check_side(db, link, area.peer)
            octets = self._follow(db, link, area.value, slices)
            tally(db, link_scope(link), "followed", octets)
            return self._material(link, slices)

        return self._despite_damage(lambda: self._journal.run(work))

    def grant(self, link: LinkId, own_area: Role, octets: int) -> tuple[Slice, ...]:
        """Let the peer allocate octets that were this end's."""

        def work(db: sqlite3.Connection) -> tuple[Slice, ...]:
            self._check_side(db, link, own_area)
            slices = self._claim(db, link, own_area, octets)
            _add_extents(db, link, own_area.peer, slices)
            return slices

        return self._journal.run(work)

    def receive_grant(self, link: LinkId, peer_area: Role, slices: Sequence[Slice]) -> None:
        """From now on this end may allocate octets that were the peer's."""

        def work(db: sqlite3.Connection) -> None:
            self._check_side(db, link, peer_area.peer)
            self._follow(db, link, peer_area.value, slices, grantee=peer_area.peer)

        self._journal.run(work)

    def auth_ledger(self, link: LinkId, octets: int, epsilon_max: float) -> "AuthPool":
        """The octets that authenticate distillation on a link, in portions of `octets`, and the link's epsilons."""
        return AuthPool(self, link, octets, epsilon_max)

    def epsilon(self, link: LinkId) -> float:
        """What may have gone wrong with the key of a link, over all its life: the sum of all that was charged."""
        charged = self._read(lambda db: tallies(db, link_scope(link)).get(_EPSILON, 0), ("epsilon", link))
        return charged / _EPSILON_STEPS

    def level(self, link: LinkId) -> PoolLevel:
        """What the pool of a link holds now."""

        def work(db: sqlite3.Connection) -> PoolLevel:
            role = self._role(db, link)
            left, blocks = _left(db, link), _living(db, link)
            return PoolLevel(
                auth_octets=left.get((AUTH, True), 0),
                own_octets=left.get((role.value, True), 0),
                peer_octets=left.get((role.peer.value, True), 0),
                pending_octets=sum(octets for (_, is_released), octets in left.items() if not is_released),
                blocks=blocks,
            )

        return self._read(work, ("level", link))

    def ledger(self, link: LinkId) -> Ledger:
        """Where every octet of a link came from and went."""

        def work(db: sqlite3.Connection) -> Ledger:
            left, totals = _left(db, link), tallies(db, link_scope(link))
            return Ledger(
                generated=totals.get("generated", 0),
                pending=sum(octets for (_, is_released), octets in left.items() if not is_released),
                available=sum(octets for (_, is_released), octets in left.items() if is_released),
                allocated=totals.get("allocated", 0),
                followed=totals.get("followed", 0),
                authentication=totals.get("authentication", 0),
                skipped=totals.get("skipped", 0),
                destroyed={
                    name.removeprefix("destroyed "): octets
                    for name, octets in totals.items()
                    if name.startswith("destroyed ")
                },
            )

        return self._read(work, ("ledger", link))

    def charge(self, link: LinkId, epsilon: float, epsilon_max: float) -> None:
        """Add to what may have gone wrong on a link; BudgetSpent, and nothing is added, above `epsilon_max`."""
        self._journal.run(lambda db: _charge(db, link, epsilon, epsilon_max))

    def reserve_auth(self, link: LinkId, octets: int, epsilon: float, epsilon_max: float) -> AuthReservation:
        """Take `octets` in one piece for authentication; what is too short for a portion is burnt."""

        def work(db: sqlite3.Connection) -> AuthReservation:
            _charge(db, link, epsilon, epsilon_max)
            self._burn_tails(db, link, octets)
            extent = next(_extents(db, link, AUTH), None)
            if extent is None:
                raise KeyExhausted(
                    f"link {link}: less than {octets} octets left to authenticate a block; "
                    "give both ends a new pre-shared secret"
                )
            piece = Slice(extent.block, extent.cursor, octets)
            _advance(db, extent, piece.end)
            self._retire(db, link, (piece.block,))
            tally(db, link_scope(link), "authentication", octets)
            material = self._material(link, (piece,))
            self._burn_tails(db, link, octets)
            return AuthReservation(block=piece.block, offset=piece.offset, material=material)

        return self._despite_damage(lambda: self._journal.run(work))

    def take_auth(
        self, link: LinkId, block: int, offset: int, octets: int, epsilon: float, epsilon_max: float
    ) -> Secret:
        """The octets that the peer reserved for authentication."""
        piece = Slice(block, offset, octets)

        def work(db: sqlite3.Connection) -> Secret:
            # Who names the octets is not authenticated yet: so not much may be passed over, or a few forged messages
            # would empty the pool.
            ahead = _octets_before(db, link, AUTH, piece)
            if ahead > AUTH_SKIP_MAX * octets:
                raise AuthenticationFailed(
                    f"{block_name(link, block)}: the peer passes over {ahead} octets of authentication key, "
                    f"{AUTH_SKIP_MAX * octets} are allowed"
                )
            _charge(db, link, epsilon, epsilon_max)
            self._follow(db, link, AUTH, (piece,))
            tally(db, link_scope(link), "authentication", octets)
            material = self._material(link, (piece,))
            self._burn_tails(db, link, octets)
            return material

        return self._despite_damage(lambda: self._journal.run(work))

    def _claim(self, db: sqlite3.Connection, link: LinkId, area: Role, octets: int) -> tuple[Slice, ...]:
        """Take octets from the front of an area; the caller retires the blocks."""
        if octets < 1:
            raise RequestRefused(f"link {link}: {octets} octets cannot be allocated; ask for at least one")
        chosen: list[tuple[_Extent, Slice]] = []
        missing = octets
        with closing(_extents(db, link, area.value)) as extents:
            for extent in extents:
                length = min(missing, extent.last - extent.cursor)
                chosen.append((extent, Slice(extent.block, extent.cursor, length)))
                missing -= length
                if not missing:
                    break
        if missing:
            left = 8 * (octets - missing)
            raise KeyExhausted(f"link {link}: {left} bits of {8 * octets} left in the area of {area.value}'s end")
        for extent, piece in chosen:
            _advance(db, extent, piece.end)
        return tuple(piece for _, piece in chosen)

    def _follow(
        self,
        db: sqlite3.Connection,
        link: LinkId,
        owner: str,
        slices: Sequence[Slice],
        grantee: Role | None = None,
    ) -> int:
        """Check every slice against the peer's extents, then move; the octets followed."""
        if not slices:
            raise RequestRefused(f"link {link}: a peer that takes no octets cannot be followed")
        reached: dict[int, _Extent] = {}
        skipped = 0
        for piece in slices:
            extent = self._extent_of(db, link, owner, piece)
            extent = reached.get(extent.number, extent)
            if piece.offset < extent.cursor:
                raise AuthenticationFailed(_used(link, piece))
            skipped += piece.offset - extent.cursor
            reached[extent.number] = replace(extent, cursor=piece.end)
        for extent in reached.values():
            _advance(db, extent, extent.cursor)
        if grantee is not None:
            _add_extents(db, link, grantee, slices)
        touched = {extent.block for extent in reached.values()}
        for is_granted in (False, True):
            ranks = [extent.rank for extent in reached.values() if extent.is_granted is is_granted]
            if ranks:
                # Grants come and are used in the order of the channel; blocks may be released in another one.
                before = max(ranks) - (0 if is_granted else STALE_BLOCKS)
                condition = f"AND is_granted = {int(is_granted)} AND rank < ?"
                touched |= self._burn(db, link, owner, condition, before)
        tally(db, link_scope(link), "skipped", skipped)
        self._retire(db, link, touched)
        return sum(piece.length for piece in slices)

    def _extent_of(self, db: sqlite3.Connection, link: LinkId, owner: str, piece: Slice) -> _Extent:
        state = block_state(db, link, piece.block)
        if state in (None, BlockState.PENDING, BlockState.DESTROYED):
            where = "unknown" if state is None else state.value
            kind = KeyPending if state is BlockState.PENDING else KeyNotFound
            raise kind(f"{block_name(link, piece.block)}: {where} at node {self._node}, not to be followed")
        if piece.length < 1 or piece.offset < 0:
            raise AuthenticationFailed(f"{block_name(link, piece.block)}: the peer names no octets at all")
        condition = "AND block = ? AND cursor <= ? AND last >= ?"
        for extent in _extents(db, link, owner, condition, (piece.block, piece.offset, piece.end)):
            return extent
        raise AuthenticationFailed(_used(link, piece))

    def _burn(self, db: sqlite3.Connection, link: LinkId, owner: str, condition: str, value: int) -> set[int]:
        """Give up what nobody will use; the blocks concerned."""
        burnt = list(_extents(db, link, owner, condition, (value,)))
        for extent in burnt:
            _advance(db, extent, extent.last)
        tally(db, link_scope(link), "skipped", sum(extent.last - extent.cursor for extent in burnt))
        return {extent.block for extent in burnt}

    def _burn_tails(self, db: sqlite3.Connection, link: LinkId, octets: int) -> None:
        self._retire(db, link, self._burn(db, link, AUTH, "AND last - cursor < ?", octets))

    def _material(self, link: LinkId, slices: Sequence[Slice]) -> Secret:
        material = Secret(bytes(sum(piece.length for piece in slices)))
        at = 0
        for piece in slices:
            self._segments.read(link, piece.block, piece.offset, material.fill()[at : at + piece.length])
            at += piece.length
        return material

    def _despite_damage(self, work: Callable[[], T]) -> T:
        """Destroy a block whose segment no longer opens, on the record, and go on without it."""
        while True:
            try:
                return work()
            except SegmentDamagedError as damage:
                self.destroy(damage.link, damage.block, "damaged")


class AuthPool:
    """The authentication octets of one link, as distillation asks for them."""

    def __init__(self, store: Spending, link: LinkId, octets: int, epsilon_max: float) -> None:
        self._store = store
        self._link = link
        self._octets = octets
        self.epsilon_max = epsilon_max
        """What the epsilons of the link may add up to."""

    def reserve(self, epsilon: float) -> AuthReservation:
        """A fresh portion for something that may fail with probability `epsilon`, both durable on return; KeyExhausted
        when there is none, BudgetSpent when the epsilons would be too much.
        """
        return self._store.reserve_auth(self._link, self._octets, epsilon, self.epsilon_max)

    def take(self, block: int, offset: int, epsilon: float) -> Secret:
        """The portion that the peer reserved there; AuthenticationFailed when it was used or passed over."""
        return self._store.take_auth(self._link, block, offset, self._octets, epsilon, self.epsilon_max)

    def charge(self, epsilon: float) -> None:
        """Epsilon for something that needs no portion; BudgetSpent when it is too much."""
        self._store.charge(self._link, epsilon, self.epsilon_max)

    def epsilon(self) -> float:
        """What was charged so far, over the life of the link."""
        return self._store.epsilon(self._link)

    def level_octets(self) -> int:
        """What is left."""
        return self._store.level(self._link).auth_octets


def _extents(
    db: sqlite3.Connection, link: LinkId, owner: str, condition: str = "", values: tuple[int, ...] = ()
) -> Generator[_Extent, None, None]:
    """Released extents of an owner in the order of use."""
    rows = db.execute(
        "SELECT id, block, is_granted, rank, cursor, last FROM extents "  # noqa: S608 (conditions are this module's)
        f"WHERE link = ? AND owner = ? AND is_released = 1 {condition} ORDER BY is_granted, rank",
        (link, owner, *values),
    )
    for number, block, is_granted, rank, cursor, last in rows:
        yield _Extent(int(number), int(block), bool(is_granted), int(rank), int(cursor), int(last))


def _advance(db: sqlite3.Connection, extent: _Extent, cursor: int) -> None:
    if cursor < extent.last:
        db.execute("UPDATE extents SET cursor = ? WHERE id = ?", (cursor, extent.number))
    else:
        db.execute("DELETE FROM extents WHERE id = ?", (extent.number,))


def _add_extents(db: sqlite3.Connection, link: LinkId, owner: Role, slices: Sequence[Slice]) -> None:
    for piece in slices:
        db.execute(
            "INSERT INTO extents (link, block, owner, is_released, is_granted, rank, cursor, last) "
            "VALUES (?, ?, ?, 1, 1, (SELECT COALESCE(MAX(rank), 0) + 1 FROM extents), ?, ?)",
            (link, piece.block, owner.value, piece.offset, piece.end),
        )


def _charge(db: sqlite3.Connection, link: LinkId, epsilon: float, epsilon_max: float) -> None:
    """Add to the link's epsilons; BudgetSpent, and the transaction fails, if that is too much."""
    spent = tallies(db, link_scope(link)).get(_EPSILON, 0) / _EPSILON_STEPS
    # Not "if it is more": a number that is none must not pass.
    if not (epsilon >= 0 and spent + epsilon <= epsilon_max):
        raise BudgetSpent(
            f"link {link}: its blocks add up to an epsilon of {spent:.3g} and one more of {epsilon:.3g} would pass "
            f"{epsilon_max:g}; no key is made until epsilon_total of the link is raised at both ends"
        )
    tally(db, link_scope(link), _EPSILON, math.ceil(epsilon * _EPSILON_STEPS))


def _octets_before(db: sqlite3.Connection, link: LinkId, owner: str, piece: Slice) -> int:
    """Octets of the owner, in the order of use, that lie before a piece."""
    ahead = 0
    for extent in _extents(db, link, owner):
        if extent.block == piece.block:
            return ahead + max(0, piece.offset - extent.cursor)
        ahead += extent.last - extent.cursor
    return 0


def _left(db: sqlite3.Connection, link: LinkId) -> dict[tuple[str, bool], int]:
    rows = db.execute(
        "SELECT owner, is_released, SUM(last - cursor) FROM extents WHERE link = ? GROUP BY 1, 2",
        (link,),
    )
    return {(str(owner), bool(is_released)): int(octets) for owner, is_released, octets in rows}


def _living(db: sqlite3.Connection, link: LinkId) -> int:
    query = "SELECT COUNT(*) FROM blocks WHERE link = ? AND state IN ('pending', 'available')"
    return int(db.execute(query, (link,)).fetchone()[0])


def _used(link: LinkId, piece: Slice) -> str:
    return (
        f"{block_name(link, piece.block)}: octets {piece.offset} to {piece.end} were used, passed over "
        "or never the peer's to take; a replay, or the two ends disagree"
    )
