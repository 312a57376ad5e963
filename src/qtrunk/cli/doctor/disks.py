"""Disks: room, speed of a durable write, who may read what, and the audit logs that lie there.

A key goes out after what happens to it is on the disk, so a slow disk is a slow key interface.
"""

import os
import stat
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from qtrunk.base.errors import QtrunkError
from qtrunk.cli.doctor.certificates import check_private_file
from qtrunk.cli.doctor.finding import Finding, error, warning
from qtrunk.cli.doctor.site import Site
from qtrunk.kms import audit

FREE_ERROR_OCTETS = 64 << 20
FREE_WARNING_OCTETS = 1 << 30
FREE_WARNING_INODES = 10_000
SLOW_S = 0.02
WRITES = 8
WRITE_OCTETS = 4096


def check_space(site: Site) -> Iterator[Finding]:
    """Room and speed of each file system that nodes have their state on, once each."""
    for on, directory in _file_systems(site):
        yield from _room(on, directory)
        yield from _speed(on, directory)


def check_permissions(site: Site) -> Iterator[Finding]:
    """Directories of nodes are their owner's alone, and so is each secret in them."""
    for config in site.nodes:
        directory = Path(config.directory)
        yield from _closed(f"node {config.node}", directory)
        vault = Path(config.vault) if config.vault is not None else directory / "vault.json"
        for path in [directory / "kek", vault, *(Path(entry.preshared_file) for entry in config.links)]:
            # The KEK (or a vault) is not there before the first start, pre-shared secrets not after it.
            if path.exists():
                yield from check_private_file(path, f"node {config.node}, secret {path.name}")
    if site.lab is not None:
        yield from _closed(f"lab {site.lab.state}", site.lab.state)
        for name in ("ca.key", "signing.key"):
            yield from check_private_file(site.lab.state / "pki" / name, f"authority of the lab, {name}")


def _closed(on: str, directory: Path) -> Iterator[Finding]:
    """A directory is there, and for its owner alone."""
    try:
        mode = stat.S_IMODE(directory.stat().st_mode)
    except OSError as problem:
        yield error(on, f"{directory}: {problem.strerror}", "the node cannot start", "restore it, or correct its path")
        return
    if mode & 0o077:
        what = f"{directory} has mode {mode:04o}"
        yield error(on, what, "other users of this machine can see in", f"chmod 700 {directory}")


def check_audit(site: Site) -> Iterator[Finding]:
    """The chain of each audit log holds."""
    logs = {f"node {config.node}": Path(config.directory) / "audit" for config in site.nodes}
    if site.lab is not None:
        logs["authority of the lab"] = site.lab.state / "pki" / "audit"
    for on, directory in logs.items():
        if not directory.exists():
            continue  # a node that never ran
        try:
            audit.verify(directory)
        except QtrunkError as problem:
            why = "who did what is in doubt; the node gives out no key, or does not start"
            fix = "keep it as evidence, move it away, find out who changed it (docs/audit.md)"
            yield error(on, str(problem), why, fix)


def _file_systems(site: Site) -> list[tuple[str, Path]]:
    """What each file system is called in findings, and a directory on it."""
    by_device: dict[int, tuple[list[str], Path]] = {}
    for config in site.nodes:
        directory = Path(config.directory)
        if directory.is_dir():
            names, _ = by_device.setdefault(directory.stat().st_dev, ([], directory))
            names.append(config.node)
    return [
        (f"disk of {'node' if len(names) == 1 else 'nodes'} {', '.join(names)}", directory)
        for names, directory in by_device.values()
    ]


def _room(on: str, directory: Path) -> Iterator[Finding]:
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    why = "a full disk records nothing: links stop and no key goes out"
    fix = f"make room on the file system of {directory}"
    if free < FREE_ERROR_OCTETS:
        yield error(on, f"{free / 1e6:.0f} MB are free", why, fix)
    elif free < FREE_WARNING_OCTETS:
        yield warning(on, f"{free / 1e6:.0f} MB are free", why, fix)
    if found.f_files and found.f_favail < FREE_WARNING_INODES:
        yield warning(on, f"{found.f_favail} inodes are free", why, fix)


def _speed(on: str, directory: Path) -> Iterator[Finding]:
    taken: list[float] = []
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as probe:
            for _ in range(WRITES):
                probe.write(bytes(WRITE_OCTETS))
                begun_s = time.perf_counter()
                os.fdatasync(probe.fileno())
                taken.append(time.perf_counter() - begun_s)
    except OSError as problem:
        what = f"{directory} cannot be written: {problem.strerror}"
        fix = "mount it read-write, make room, or run as the owner"
        yield error(on, what, "nothing can be recorded, so no key goes out", fix)
        return
    median_s = statistics.median(taken)
    if median_s > SLOW_S:
        what = f"a durable write takes {1000 * median_s:.0f} ms (median of {WRITES}; worst {1000 * max(taken):.0f} ms)"
        yield warning(
            on, what, "every request for keys waits for one", "use a local SSD, or see what else writes there"
        )
