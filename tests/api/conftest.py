"""Fixtures of the interfaces: certificates once a session, a server a test."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from api_kit import Credentials, FakeSupply, Pki, RunningServer, Wire

from qtrunk.api.etsi014 import Etsi014


@pytest.fixture(scope="session")
def pki(tmp_path_factory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki") / "ca")


@pytest.fixture(scope="session")
def kme(pki) -> Credentials:
    return pki.kme("kme-a")


@pytest.fixture(scope="session")
def alice(pki) -> Credentials:
    return pki.sae("alice")


@pytest.fixture(scope="session")
def bob(pki) -> Credentials:
    return pki.sae("bob")


@pytest.fixture(scope="session")
def carol(pki) -> Credentials:
    return pki.sae("carol")


@pytest.fixture
def supply() -> FakeSupply:
    return FakeSupply()


@pytest.fixture
def server(supply, kme) -> Iterator[RunningServer]:
    with RunningServer(Etsi014(supply, supply.sae_of).handle, kme) as running:
        yield running


@pytest.fixture
def as_alice(server, alice) -> Iterator[Wire]:
    with Wire(server.port, alice) as wire:
        yield wire


@pytest.fixture
def as_bob(server, bob) -> Iterator[Wire]:
    with Wire(server.port, bob) as wire:
        yield wire


@pytest.fixture
def as_carol(server, carol) -> Iterator[Wire]:
    with Wire(server.port, carol) as wire:
        yield wire
