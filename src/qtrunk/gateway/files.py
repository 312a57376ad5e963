"""Sealing and opening files by path: what is checked before a key is spent, and what is left when something fails
(nothing).

Output is written to a temporary file (0600) beside its place and renamed when it is whole and on the disk; on any
failure, an interrupt included, it is removed. A key is fetched only after source and output have been found good; keys
for opening go to the locker first.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from qtrunk.base.errors import KeyExhausted, SealedFileError
from qtrunk.base.ids import SaeId
from qtrunk.base.ports import KeySource, SuppliedKey
from qtrunk.gateway import onetimepad, sealedfile
from qtrunk.gateway.keylocker import KeyLocker

SUFFIX = ".qsealed"
FETCH_PATIENCE_S = 30.0
BATCH_KEYS = 64
Say = Callable[[str], None]


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
    with _source(path) as source, _published(path, output, _size(path), force=force) as sink:
        (key,) = _patiently(lambda: keys.get_keys(peer, 1, sealedfile.KEY_BITS), patience_s)
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
    patience_s: float = 600.0,
) -> None:
    """Protect a file with a one-time pad; says beforehand how many bits it takes and when they will be there."""
    with _source(path) as source, _published(path, output, _size(path), force=force) as sink:
        size = _size(path)
        status = keys.status(peer)
        wanted = onetimepad.need(size, status)
        say(_forecast_text(size, onetimepad.forecast(wanted, status)))
        fetched: list[SuppliedKey] = []

        def give(number: int, key_bits: int) -> list[SuppliedKey]:
            return _patiently(lambda: keys.get_keys(peer, number, key_bits), patience_s)

        # Small batches while key is short: a batch is given whole or not at all.
        per_request = max(1, min(status.keys_per_request_max, 16))
        for batch in onetimepad.fetch(give, wanted, per_request):
            fetched += batch
        onetimepad.seal(source, sink, size, fetched, own, peer)
        for key in fetched:
            key.material.wipe()


def _forecast_text(size: int, seen: onetimepad.Forecast) -> str:
    text = f"one-time pad for {size} octets: {seen.bits} key bits are needed, {seen.available_bits} are there"
    if seen.wait_s is None:
        return f"{text}; no key is coming in now, so it is not known when there will be enough"
    return f"{text}; enough now" if seen.wait_s == 0 else f"{text}; enough in about {seen.wait_s:.0f} s"


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
        header = sealedfile.read_header(source)
        if header.target != own:
            raise SealedFileError(f"{path}: is sealed for {header.target}, not for {own}; open it as {header.target}")
        target = output or _opened_name(path)
        _check_body(path, header)
        with _published(path, target, _size(path), force=force) as sink:
            found = _collect(keys, header, locker)
            if header.mode == sealedfile.AES_GCM:
                sealedfile.open_(source, sink, header, found[0].material)
            else:
                onetimepad.open_(source, sink, header, found)
        # Only now, with the output in its place, are the keys of no more use.
        locker.forget(header.key_ids)
        for key in found:
            key.material.wipe()
        return target


def _collect(keys: KeySource, header: sealedfile.Opened, locker: KeyLocker) -> list[SuppliedKey]:
    """The file's keys, all of them in the locker: what came is never lost, even if a later batch does not come."""
    missing = locker.missing(header.key_ids)
    if missing:
        locker.prepare(len(missing))
    for at in range(0, len(missing), BATCH_KEYS):
        locker.put(keys.get_keys_with_ids(header.initiator, missing[at : at + BATCH_KEYS]))
    return locker.get(header.key_ids)


def _check_body(path: Path, header: sealedfile.Opened) -> None:
    """What can be refused without a key."""
    body = _size(path) - len(header.octets)
    if header.mode == sealedfile.ONE_TIME_PAD and body != onetimepad.body_octets(header):
        raise SealedFileError(f"{path}: {body} octets behind the header, {onetimepad.body_octets(header)} were sealed")
    if header.mode == sealedfile.AES_GCM and (len(header.key_ids) != 1 or body < 4 + sealedfile.TAG_OCTETS):
        raise SealedFileError(f"{path}: the file ends early")


def _opened_name(path: Path) -> Path:
    if path.suffix != SUFFIX:
        raise SealedFileError(f"{path}: does not end in {SUFFIX}; say with -o where the opened file shall go")
    return path.with_suffix("")


def _patiently(ask: Callable[[], list[SuppliedKey]], patience_s: float) -> list[SuppliedKey]:
    """Ask again while the pool is short."""
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            return ask()
        except KeyExhausted as error:
            wait_s = float(error.retry_after_s)
            if time.monotonic() + wait_s > deadline_s:
                raise
            time.sleep(wait_s)


def _size(path: Path) -> int:
    return path.stat().st_size


@contextmanager
def _source(path: Path) -> Iterator[BinaryIO]:
    try:
        source = path.open("rb")
    except OSError as error:
        raise SealedFileError(f"{path}: {error.strerror}") from error
    with source:
        yield source


@contextmanager
def _published(path: Path, output: Path, size: int, *, force: bool) -> Iterator[BinaryIO]:
    """A temporary file that becomes `output` if all goes well, and vanishes if not."""
    if output.exists() and output.samefile(path):
        raise SealedFileError(f"{output}: is the source itself; say with -o where the output shall go")
    if output.exists() and not force:
        raise SealedFileError(f"{output}: exists; --force overwrites it")
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
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
        part.replace(output)
    except OSError as error:
        raise SealedFileError(f"{output}: {error.strerror or error}; nothing was written") from error
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
