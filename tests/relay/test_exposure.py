"""What falls with a node: of every way a key can have come."""

import pytest
from relay_network import ring_of_nodes, three_ways

from qtrunk.base.ids import NodeId, SaeId
from qtrunk.cli.exposure import summed
from qtrunk.relay.exposure import Fate, fate

SAES = ["sae-a", "sae-c"]
A, E = NodeId("a"), NodeId("e")
FROM, TO = SaeId("sae-a"), SaeId("sae-e")


@pytest.mark.parametrize(
    ("node", "routes", "needed", "protection", "expected"),
    [
        ("a", ["abc"], 1, "qkd + ml-kem-768", Fate.HELD),
        ("c", ["abc"], 1, "qkd", Fate.HELD),
        ("b", ["abc"], 1, "qkd", Fate.RELAYED),
        ("b", ["abc"], 1, "qkd + ml-kem-768", Fate.HYBRID),
        ("b", ["abc", "aedc"], 2, "qkd", Fate.SHARE),
        ("d", ["abc"], 1, "qkd", Fate.APART),
        ("d", [], 1, "ml-kem-768", Fate.APART),
    ],
)
def test_the_fate_of_a_key_is_that_of_its_receipt(node, routes, needed, protection, expected):
    assert fate(ring_of_nodes(), NodeId(node), SAES, routes, needed, protection) == expected


@pytest.mark.parametrize(("limits", "relay"), [({}, Fate.RELAYED), ({"routes_min": 2}, Fate.SHARE)])
def test_the_stores_of_a_network_say_what_falls(network_of, limits, relay):
    network = network_of(three_ways(**limits))
    _, effects = network.machines[A].fill(FROM, TO, 704)
    network.do(A, effects)
    network.settle()
    network.stores[A].pools.take(FROM, TO, 3, 32)
    answer = network.ask("sae-a", ["sae-e", "sae-c"], number=2)
    held = [one for store in network.stores.values() for one in store.exposure()]
    receipt = network.stores[E].receipt(answer.keys[0].key_id)["stored"]["receipt"]
    assert receipt["routes"][0][1] == "b"
    rows = {(row["target"], row["fate"]): row for row in summed(network.topology, NodeId("b"), held)}
    pool = rows["sae-e", relay.value]
    assert (pool["available_octets"], pool["delivered_octets"], pool["keys"]) == (640 - 96 + 64, 96, 2)
    assert pool["falls"] == (relay is Fate.RELAYED)
    assert pool["tenant"] == "default"
    at_end = summed(network.topology, A, held)
    assert {row["fate"] for row in at_end} == {"held"}
    assert sum(row["available_octets"] for row in at_end) == 640 - 96 + 64 + 64
