"""Sealing and opening files by path: what is checked before a key is spent, and what is left when something fails
(nothing).

Output is written to a temporary file (0600) beside its place and takes its name when it is whole and on the disk; on
any failure, an interrupt included, it is removed. A key is fetched only after source, output and room on the disk have
been found good. For a one-time pad, nothing is fetched before all of it is there: a wait in vain costs no key. Keys for
opening go to the locker first, in batches, and only those that are not there already are fetched.

Errors: SealedFileError (the file or its place), KeyExhausted (not enough key in time), KeyNotFound (no longer there),
StoreError (the locker), and what the key source raises.
"""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path
from types import FrameType
from typing import BinaryIO, TypeVar

from qtrunk.base.errors import KeyExhausted, KeyNotFound, NotAuthorised, RequestRefused, SealedFileError
from qtrunk.base.ids import SaeId
from qtrunk.base.ports import KeySource, SuppliedKey, SupplyStatus
from qtrunk.gateway import onetimepad, sealedfile
from qtrunk.gateway.keylocker import KeyLocker

SUFFIX = ".qsealed"
FETCH_PATIENCE_S = 30.0
OTP_PATIENCE_S = 600.0
POLL_S = 1.0
BATCH_KEYS = 64
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
T = TypeVar("T")
Say = Callable[[str], None]
Progress = Callable[[int, int], None]
"""Called with the key bits that are there and those that are needed."""


def seal_file(
    path: Path,
    output: Path,
    keys: KeySource,
    own: SaeId,
    peer: SaeId,
    *,
    force: bool = False,
    patience_s: float = FETCH_PATIENCE_S,
) -> None:
    """Protect a file with AES-256-GCM under one fresh key shared with `peer`."""
    deadline_s = time.monotonic() + patience_s
    with (
        _source(path) as source,
        _published(path, output, sealedfile.sealed_octets(_size(source)), force=force) as sink,
        _about(path),
    ):
        wanted = onetimepad.Need(count=1, key_bits=sealedfile.KEY_BITS)
        key = _fetched(keys, peer, wanted, 1, deadline_s)[0]
        sealedfile.seal(source, sink, key.key_id, key.material, own, peer)
        key.material.wipe()


def seal_file_otp(
    path: Path,
    output: Path,
    keys: KeySource,
    own: SaeId,
    peer: SaeId,
    say: Say,
    *,
    force: bool = False,
    patience_s: float = OTP_PATIENCE_S,
    progress: Progress = lambda _available_bits, _needed_bits: None,
) -> None:
    """Protect a file with a one-time pad; says beforehand how many bits it takes and when they will be there."""
    deadline_s = time.monotonic() + patience_s
    with _source(path) as source, _about(path):
        size = _size(source)
        status = _patiently(lambda: keys.status(peer), deadline_s)
        wanted = onetimepad.need(size, status)
        with _published(path, output, onetimepad.sealed_octets(size, wanted), force=force) as sink:
            say(_forecast_text(size, onetimepad.forecast(wanted, status)))
            _await_key(keys, peer, wanted, progress, deadline_s)
            # Small batches: other users of the pool may be quicker, and a batch is given whole or not at all.
            per_request = max(1, min(status.keys_per_request_max, 16))
            fetched = _fetched(keys, peer, wanted, per_request, deadline_s)
            onetimepad.seal(source, sink, size, fetched, own, peer)
            for key in fetched:
                key.material.wipe()


def open_file(
    path: Path,
    output: Path | None,
    keys: KeySource,
    own: SaeId,
    locker: KeyLocker,
    *,
    force: bool = False,
) -> Path:
    """Open a protected file as its target (or, with keys still in the locker, again); the path of the output."""
    with _source(path) as source:
        with _about(path):
            header = sealedfile.read_header(source)
            if header.target != own:
                raise SealedFileError(f"is sealed for {header.target}, not for {own}; open it as {header.target}")
            _check_body(source, header)
        target = output or _opened_name(path)
        with _published(path, target, _size(source), force=force) as sink, _about(path):
            found = _received(path, header, keys, locker)
            if header.mode == sealedfile.AES_GCM:
                sealedfile.open_(source, sink, header, found[0].material)
            else:
                onetimepad.open_(source, sink, header, found)
        # Only now, with the output in its place and on the disk, are the keys of no more use.
        locker.forget(header.key_ids)
        for key in found:
            key.material.wipe()
        return target


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _await_key(keys: KeySource, peer: SaeId, wanted: onetimepad.Need, progress: Progress, deadline_s: float) -> None:
    """Return when all the key is there; a key manager that never stores so much is asked when it is full."""
    while True:
        status = _patiently(lambda: keys.status(peer), deadline_s)
        seen = onetimepad.forecast(wanted, status)
        progress(seen.available_bits, seen.bits)
        if seen.wait_s == 0 or 0 < status.key_count_max <= status.stored_key_count:
            return
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise KeyExhausted(
                f"one-time pad: {seen.bits} key bits are needed, {seen.available_bits} are there; none was used. "
                "Try again when there is more key, or leave --otp out to use AES-256-GCM",
                max(1, round(seen.wait_s or 60)),
            )
        time.sleep(min(POLL_S, left_s))


def _fetched(
    keys: KeySource, peer: SaeId, wanted: onetimepad.Need, per_request: int, deadline_s: float
) -> list[SuppliedKey]:
    """Fresh keys, as many and as long as wanted."""

    def give(number: int, key_bits: int) -> list[SuppliedKey]:
        return _patiently(lambda: keys.get_keys(peer, number, key_bits), deadline_s)

    return [key for batch in onetimepad.fetch(give, wanted, per_request) for key in batch]


def _received(path: Path, header: sealedfile.Opened, keys: KeySource, locker: KeyLocker) -> list[SuppliedKey]:
    """A file's keys in their order, from the locker or fetched into it."""
    found = locker.find(header.key_ids)
    missing = [key_id for key_id in header.key_ids if key_id not in found]
    step = _per_request(keys, header.initiator) if len(missing) > 1 else 1
    octets = sealedfile.KEY_BITS // 8
    if header.mode == sealedfile.ONE_TIME_PAD:
        octets = onetimepad.key_octets_max(header)
    for start in range(0, len(missing), step):
        batch = missing[start : start + step]
        collect = partial(keys.get_keys_with_ids, header.initiator, batch)
        try:
            # The KME forgets these keys as it answers: from there to the locker nothing may come between.
            with _undisturbed():
                received = locker.receive(batch, octets * len(batch), collect)
        except KeyNotFound as error:
            raise KeyNotFound(
                f"{path}: its key is not at the key manager (any more); has it been opened before, or was it changed? "
                f"Have it sealed again ({error})"
            ) from error
        found |= {key.key_id: key for key in received}
    return [found[key_id] for key_id in header.key_ids]


def _per_request(keys: KeySource, peer: SaeId) -> int:
    try:
        status: SupplyStatus = keys.status(peer)
    except (NotAuthorised, RequestRefused):
        # A foreign KME may let this SAE collect from the peer, but not initiate; then one key at a time is safe.
        return 1
    return max(1, min(status.keys_per_request_max, BATCH_KEYS))


def _patiently(ask: Callable[[], T], deadline_s: float) -> T:
    """Ask again while the pool is short."""
    while True:
        try:
            return ask()
        except KeyExhausted as error:
            wait_s = max(0.05, float(error.retry_after_s))
            if time.monotonic() + wait_s > deadline_s:
                raise
            time.sleep(wait_s)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """An interrupt or a polite kill that comes meanwhile comes afterwards."""
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in watched}
    if threading.current_thread() is not threading.main_thread() or None in before.values():
        # Signals go to the main thread, and only there can handlers be set (and Python's own ones only be restored).
        yield
        return
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    for number in watched:
        signal.signal(number, note)
    try:
        yield
    finally:
        for watched_one, handler in before.items():
            signal.signal(watched_one, handler)
        if came:
            signal.raise_signal(came[0])


def _forecast_text(size: int, seen: onetimepad.Forecast) -> str:
    text = f"one-time pad for {size} octets: {seen.bits} key bits are needed, {seen.available_bits} are there"
    if seen.wait_s is None:
        return f"{text}; no key is coming in now, so it is not known when there will be enough"
    return f"{text}; enough now" if seen.wait_s == 0 else f"{text}; enough in about {seen.wait_s:.0f} s"


# ── paths ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_body(source: BinaryIO, header: sealedfile.Opened) -> None:
    """What can be refused without a key."""
    body = _size(source) - len(header.octets)
    if header.mode == sealedfile.ONE_TIME_PAD and body != onetimepad.body_octets(header):
        raise SealedFileError(f"{body} octets behind the header, {onetimepad.body_octets(header)} were sealed")
    if header.mode == sealedfile.AES_GCM and body < sealedfile.LENGTH_OCTETS + sealedfile.TAG_OCTETS:
        raise SealedFileError("the file ends early")


def _opened_name(path: Path) -> Path:
    if path.suffix != SUFFIX:
        raise SealedFileError(f"{path}: does not end in {SUFFIX}; say with -o where the opened file shall go")
    return path.with_suffix("")


def _size(source: BinaryIO) -> int:
    return os.fstat(source.fileno()).st_size


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """The format knows no paths; who reads its errors wants one."""
    try:
        yield
    except SealedFileError as error:
        raise SealedFileError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error


@contextmanager
def _source(path: Path) -> Iterator[BufferedReader]:
    try:
        if path.exists() and not path.is_file():
            raise SealedFileError(f"{path}: is not a regular file; pack it into one first")
        source = path.open("rb")
    except OSError as error:
        raise SealedFileError(f"{path}: {error.strerror}") from error
    with source:
        yield source


@contextmanager
def _published(path: Path, output: Path, size: int, *, force: bool) -> Iterator[BinaryIO]:
    """A temporary file that becomes `output` if all goes well, and vanishes if not."""
    part = output.with_name(f".qtrunk-{os.getpid()}-{threading.get_ident()}.part")
    try:
        _check_place(path, output, force=force)
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise SealedFileError(f"{output}: cannot be written there ({error.strerror})") from error
    try:
        with os.fdopen(descriptor, "wb") as sink:
            free = os.fstatvfs(sink.fileno())
            if free.f_bavail * free.f_frsize < size:
                raise SealedFileError(f"{output}: {size} octets do not fit on the disk; no key was used")
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        _name(part, output, force=force)
    except OSError as error:
        raise SealedFileError(f"{output}: {error.strerror or error}; nothing was written") from error
    finally:
        part.unlink(missing_ok=True)


def _check_place(path: Path, output: Path, *, force: bool) -> None:
    if not output.exists() and not output.is_symlink():
        return
    if output.exists() and output.samefile(path):
        raise SealedFileError(f"{output}: is the source itself; say with -o where the output shall go")
    if output.exists() and not output.is_file():
        raise SealedFileError(f"{output}: exists and is no regular file; say with -o where the output shall go")
    if not force:
        raise SealedFileError(f"{output}: exists; --force overwrites it")


def _name(part: Path, output: Path, *, force: bool) -> None:
    """Give the whole file its name, durably; what came to lie there meanwhile is not overwritten without `force`."""
    try:
        if force:
            part.replace(output)
        else:
            output.hardlink_to(part)
    except FileExistsError as error:
        raise SealedFileError(f"{output}: came to exist meanwhile; --force overwrites it") from error
    except OSError as error:
        if force or error.errno not in _NO_LINKS:
            raise
        # No hard links on this file system; the place was free when we began.
        part.replace(output)
    descriptor = os.open(output.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
