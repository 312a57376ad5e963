"""Pages for secret octets: locked into memory, left out of core dumps, empty in a child of fork(2).

Small secrets take a *slot*: a power of two of octets, SLOT_MIN to SLOT_MAX, cut from a chunk of pages that stays for
the life of the process and is used again and again. A larger secret gets a mapping of its own, which goes back to the
system with it. Every slot is all zeros whenever nobody owns it.

A slot is a ctypes array, made once: who reads it holds a reference to it, so that the count of references says whether
a view of a slot still lives. Such a slot waits in `_held` until its last reader is gone, and only then is it wiped and
used again. All changes are single operations of lists, dictionaries and deques, which the interpreter lock makes whole:
any thread may take and give back at any moment, also a finaliser in the middle of another call.

Where the limit on locked memory (RLIMIT_MEMLOCK) is too low, pages are used unlocked, and `state` says how many.
Flags are those of madvise(2): MADV_DONTDUMP and MADV_WIPEONFORK (Linux 4.14).

Errors: MemoryError (the system has no pages).
"""

import ctypes
import mmap
import os
from collections import deque
from dataclasses import dataclass
from sys import getrefcount

SLOT_MIN = 16
SLOT_MAX = 16 << 10
CHUNK_OCTETS = 64 << 10

Slot = ctypes.Array[ctypes.c_char]

_MADV_WIPEONFORK = 18
_CLASSES = 64
_LOWEST, _HIGHEST = SLOT_MIN.bit_length() - 1, SLOT_MAX.bit_length() - 1

_smallest: list[Slot] = []
FREE: list[list[Slot]] = [_smallest if n <= _LOWEST else [] for n in range(_CLASSES)]
"""Slots that nobody owns, by the bit length of (octets - 1). Those above SLOT_MAX stay empty."""
ZEROS = [bytes(1 << min(max(n, _LOWEST), _HIGHEST)) for n in range(_HIGHEST + 1)]
"""What a slot of each class is wiped with."""

ALONE = 2
"""What getrefcount says of a slot in one container and nowhere else: that reference and its own argument."""

_held: deque[Slot] = deque()
_HELD_MAX = 32
_mapped: dict[int, tuple[int, str]] = {}
"""By address: octets, and why they are not locked (empty: they are)."""
_chunks: list[mmap.mmap] = []

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@dataclass(frozen=True, slots=True)
class ArenaState:
    """How the pages of this process's secrets are kept, octets."""

    locked: int
    unlocked: int
    why: str
    """Why some are not locked; empty when all are."""
    held: int
    """Slots whose owner is gone and whose octets someone still reads."""


def state() -> ArenaState:
    """What the pages are like now."""
    sweep()
    mapped = list(_mapped.values())
    reasons = sorted({why for _, why in mapped if why})
    return ArenaState(
        locked=sum(octets for octets, why in mapped if not why),
        unlocked=sum(octets for octets, why in mapped if why),
        why="; ".join(reasons),
        held=len(_held),
    )


def take(octets: int) -> Slot:
    """A slot for so many octets, or a mapping of its own; all zeros, and nobody else's."""
    try:
        return FREE[(octets - 1).bit_length()].pop()
    except IndexError:
        return _make(octets)


def _make(octets: int) -> Slot:
    if octets > SLOT_MAX:
        size = -(-octets // mmap.PAGESIZE) * mmap.PAGESIZE
        # The array alone keeps the mapping: it ends with the last view.
        return (ctypes.c_char * size).from_buffer(_map(size))
    n = max((octets - 1).bit_length(), _LOWEST)
    size = 1 << n
    chunk = _map(CHUNK_OCTETS)
    kind = ctypes.c_char * size
    start = ctypes.addressof(ctypes.c_char.from_buffer(chunk))
    slots = [kind.from_address(start + place) for place in range(0, CHUNK_OCTETS, size)]
    slot = slots.pop()
    _chunks.append(chunk)
    FREE[n].extend(slots)
    return slot


def hold(box: list[Slot]) -> None:
    """The end of an owner, for a slot that may have readers or is a mapping of its own; it is taken out of `box`."""
    is_large = len(box[0]) > SLOT_MAX
    _held.append(box.pop())
    if is_large or len(_held) % _HELD_MAX == 0:
        sweep()


def sweep() -> None:
    """Wipe, for use by others, what was held for readers that are gone."""
    for _ in range(len(_held)):
        try:
            box = [_held.popleft()]
        except IndexError:
            # Another thread sweeps, too.
            return
        if getrefcount(box[0]) > ALONE:
            _held.append(box[0])
            continue
        wipe(box[0])
        size = len(box[0])
        if size > SLOT_MAX:
            # The mapping ends with its last reference, which is this one.
            del _mapped[ctypes.addressof(box[0])]
        else:
            FREE[(size - 1).bit_length()].append(box.pop())


def wipe(slot: Slot) -> None:
    """Overwrite a slot with zeros; its owner keeps it."""
    ctypes.memset(slot, 0, len(slot))


def _map(size: int) -> mmap.mmap:
    """Fresh pages, locked where the system lets us."""
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    why = ""
    if _libc.mlock(address, size):
        why = f"mlock: {os.strerror(ctypes.get_errno())}; raise the limit on locked memory (RLIMIT_MEMLOCK)"
    for advice in (mmap.MADV_DONTDUMP, _MADV_WIPEONFORK):
        pages.madvise(advice)
    _mapped[address] = (size, why)
    return pages
