"""Fixtures of the relay tests; the network itself is in relay_network."""

import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("relay_network", Path(__file__).parent / "relay_network.py")
relay_network = importlib.util.module_from_spec(_spec)
sys.modules["relay_network"] = relay_network
_spec.loader.exec_module(relay_network)


@pytest.fixture
def row(tmp_path):
    made = relay_network.Network(relay_network.row_of_nodes(), tmp_path)
    yield made
    for store in made.stores.values():
        store.close()


@pytest.fixture
def circle(tmp_path):
    made = relay_network.Network(relay_network.ring_of_nodes(), tmp_path)
    yield made
    for store in made.stores.values():
        store.close()


@pytest.fixture
def network_of(tmp_path):
    """Makes networks of any topology."""
    opened = []

    def make(topology):
        made = relay_network.Network(topology, tmp_path / str(len(opened)))
        opened.append(made)
        return made

    yield make
    for made in opened:
        for store in made.stores.values():
            store.close()
