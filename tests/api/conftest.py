"""Fixtures of the interfaces: certificates once a session, a server a test."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from api_kit import Credentials, FakeSupply, Pki, RunningServer, Wire

from qtrunk.api.etsi014 import Etsi014
from qtrunk.api.https import Request, Response, error


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


async def nobody_is_here(_request: Request) -> Response:
    return error(503, "no test is running")


@pytest.fixture(scope="session")
def shared_server(kme) -> Iterator[RunningServer]:
    with RunningServer(nobody_is_here, kme, is_front=True) as running:
        yield running


@pytest.fixture
def server(shared_server, supply) -> Iterator[RunningServer]:
    """One server for all tests, with a supply of each test's own behind it."""
    shared_server.server.handler = Etsi014(supply, supply.sae_of).handle
    yield shared_server
    assert not shared_server.problems


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


def pytest_addoption(parser) -> None:
    parser.addoption("--fuzz-seconds", type=int, default=0, help="length of each long run of tests/api/test_fuzz.py")
