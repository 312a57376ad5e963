"""Secret octets in locked pages (`base.arena`): shown never by accident, compared in constant time, wiped after use."""

import hmac
from collections.abc import Callable
from sys import getrefcount
from typing import NoReturn

from qtrunk.base import arena


class Secret:
    """Owns a copy of secret octets, in pages that are locked and left out of core dumps.

    `reveal()` is the only reader, so a search for it lists every use of key material; `fill` is for who
    computes a secret in place. CPython may keep copies that a library made from what `reveal()` returned;
    docs/memory.md says what is beyond us.
    """

    __slots__ = ("_length", "_slot")

    def __init__(self, octets: bytes | bytearray | memoryview) -> None:
        self._length = length = len(octets)
        # The way of most, without a call: `arena.take`.
        try:
            self._slot = arena.FREE[(length - 1).bit_length()].pop()
        except IndexError:
            self._slot = arena.take(length)
        self._slot.raw = octets  # type: ignore[assignment]  # any buffer will do

    def fill(self) -> memoryview:
        """The octets themselves, to be written over: `Secret(bytes(n)).fill()`. Do not keep the view."""
        return memoryview(self._slot).cast("B")[: self._length]

    def reveal(self) -> memoryview:
        """The octets themselves, read-only, without a copy. Do not keep the view."""
        return memoryview(self._slot).cast("B")[: self._length].toreadonly()

    def wipe(self) -> None:
        """Overwrite the octets with zeros; the length stays."""
        n = (self._length - 1).bit_length()
        if n < len(arena.ZEROS):
            self._slot.raw = arena.ZEROS[n]
        else:
            arena.wipe(self._slot)

    def __len__(self) -> int:
        return self._length

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self.reveal(), other.reveal())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Secret({self._length} octets)"

    __str__ = __repr__

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never pickled or copied")

    # Bound early: at the end of a process the names of modules may be gone before the last secret.
    def __del__(
        self,
        _references: Callable[[object], int] = getrefcount,
        _alone: int = arena.ALONE,
        _free: list[list[arena.Slot]] = arena.FREE,
        _zeros: list[bytes] = arena.ZEROS,
        _hold: Callable[[list[arena.Slot]], None] = arena.hold,
    ) -> None:
        try:
            n = (self._length - 1).bit_length()
            references = _references(self._slot)
        except AttributeError:
            # It never got a slot: it was to hold what has no length, or there was no memory.
            return
        # While a view lives it must not turn to zeros, or to another's octets, under its reader.
        if references > _alone or n >= len(_zeros):
            box = [self._slot]
            del self._slot
            _hold(box)
        else:
            self._slot.raw = _zeros[n]
            _free[n].append(self._slot)
