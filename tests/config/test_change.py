"""What is different between two topologies, in words, and what a running network refuses."""

import pytest

from qtrunk.base.errors import ConfigError
from qtrunk.config import network
from qtrunk.config.change import change
from qtrunk.relay.route import route
from qtrunk.topology import LiveTopology

OLD = """
name = "n"
trunks = [["a", "b", "c"]]
saes = ["x@a", "y@c", "z@b"]
link.length_km = 10
tenants.t = { saes = ["x"], priority = 1 }
[[demands]]
between = ["x", "y"]
rate_bps = 10
"""


def test_nothing_has_changed_between_a_topology_and_itself() -> None:
    found = change(network.load(OLD), network.load(OLD))
    assert (found.lines, found.refused, found.new_links, found.gone_nodes) == ((), (), (), ())


def test_what_comes_goes_and_changes_is_named() -> None:
    new = network.load(
        OLD.replace('trunks = [["a", "b", "c"]]', 'rings = [["a", "b", "d"]]')
        .replace('"y@c"', '"y2@d"')
        .replace('"y"]', '"y2"]')
        .replace("priority = 1", "priority = 2")
    )
    found = change(network.load(OLD), new)
    assert found.lines == (
        *("+ node d", "- node c", "+ link b-d", "+ link d-a", "- link b-c", "+ SAE y2", "- SAE y"),
        *("~ tenant t: priority 1 -> 2", "+ demand x y2 10 bit/s", "- demand x y"),
    )
    assert (found.new_nodes, found.gone_nodes) == (("d",), ("c",))
    assert [link.id for link in found.new_links] == ["b-d", "d-a"]
    found.check_live()


def test_all_that_a_running_network_cannot_take_is_named_at_once() -> None:
    new = network.load(
        OLD.replace('"n"', '"m"').replace("= 10\ntenants", "= 11\nkey_api.strict = true\ntenants").replace("z@b", "z@a")
    )
    with pytest.raises(ConfigError) as caught:
        change(network.load(OLD), new).check_live()
    assert [line.split(";")[0] for line in caught.value.problems] == [
        "name: stop the lab (`qtrunk down`) to change it",
        "key_api: stop the lab (`qtrunk down`) to change it",
        "links.a-b: length_km 10 -> 11, loss_db 3.1 -> 3.31",
        "links.b-c: length_km 10 -> 11, loss_db 3.1 -> 3.31",
        "saes: z: moves from node b to a",
    ]


def test_a_live_topology_reads_like_the_one_it_adopted_and_routes_follow() -> None:
    old = network.load(OLD)
    new = network.load(OLD.replace("trunks", "rings"))
    live = LiveTopology(old)
    assert live.to_dict() == old.to_dict()
    assert route(live, "a", "c") == ("a", "b", "c")
    assert live.sae("x") == old.sae("x")
    live.adopt(new)
    assert live.to_dict() == new.to_dict()
    assert route(live, "a", "c") == ("a", "c")
    assert live.link_between("c", "a").id == "c-a"
    assert old.to_dict() == network.load(OLD).to_dict()
