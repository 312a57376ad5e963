"""Files that are there whole or not at all, and certificates that change under their readers in one step.

Errors: StoreError where the disk does not take it; what was there before is still there then.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from qtrunk.base.errors import StoreError
from qtrunk.kms.seal import sync_directory


def write(path: Path, octets: bytes, *, private: bool = False) -> None:
    """Write whole or not at all, durable on return; a private file is its owner's from the first octet."""
    part = path.with_name(path.name + ".part")
    with _told(path):
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
        with os.fdopen(descriptor, "wb") as out:
            out.write(octets)
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
        sync_directory(path.parent)


def switch(directory: Path, private_key: bytes, certificate: bytes) -> None:
    """Put a new key and its certificate in force together: `cert.pem` and `key.pem` lead through one link.

    A kill at any step leaves the old pair or the new one. Who reads one file before and the other after the change has
    two that do not fit, notices and reads again; the old pair stays until the next change.
    """
    before = (directory / "current").resolve().name
    version = hashlib.sha256(certificate).hexdigest()[:16]
    place = directory / "versions" / version
    with _told(directory):
        place.parent.mkdir(mode=0o700, exist_ok=True)
        place.mkdir(mode=0o700, exist_ok=True)
        write(place / "key.pem", private_key, private=True)
        write(place / "cert.pem", certificate)
        # First where they lead, so that what leads there never leads nowhere.
        _link(directory / "current", Path("versions") / version)
        for name in ("key.pem", "cert.pem"):
            _link(directory / name, Path("current") / name)
        sync_directory(directory)
        for old in place.parent.iterdir():
            if old.name not in (version, before):
                for path in old.iterdir():
                    path.unlink()
                old.rmdir()


def _link(path: Path, target: Path) -> None:
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    part.replace(path)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise StoreError(f"{path}: {problem.strerror}") from problem
