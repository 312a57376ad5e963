"""Fixtures of the key store: a KEK, a standing clock, stores on a fast file system."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qtrunk.base.ids import NodeId
from qtrunk.base.secret import Secret
from qtrunk.kms.store import KeyStore

sys.path.insert(0, str(Path(__file__).parent))
from kms_kit import KEK_OCTETS, StandingClock


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture
def kek() -> Secret:
    return Secret(KEK_OCTETS)


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A directory in memory: the same code, without waiting for a disk."""
    shm = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def open_store(memory_path: Path, clock: StandingClock, kek: Secret) -> Iterator[Callable[..., KeyStore]]:
    """Open the store of a node (`a` is Alice's, `b` Bob's); the same name again is the same directory."""
    opened: list[KeyStore] = []

    def open_(node: str = "a", at: str | None = None) -> KeyStore:
        store = KeyStore.open(memory_path / (at or node), NodeId(node), kek, clock)
        opened.append(store)
        return store

    yield open_
    for store in opened:
        store.close()
