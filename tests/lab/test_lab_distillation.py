"""A real link that begins with signatures, follows its fibre, and stops where its operator's epsilon is spent."""

import json

import lab_kit
import pytest

from qtrunk.base.ids import SaeId

LINK = """
name = "pair"
trunks = [["ada", "bert"]]
saes = ["bank@ada", "vault@bert"]

[link]
length_km = 20
loss_db = 8
block_s = 1.0
"""


@pytest.fixture
def pair(short_directory):
    """Starts a lab of one link with these settings besides."""
    started = []

    def start(name, settings):
        started.append(lab_kit.start(short_directory, name, LINK + settings))
        return started[-1]

    yield start
    for handle in started:
        handle.close_clients()
        lab_kit.stop(handle)


def schemes(handle):
    """What authenticated the blocks behind one key, as its receipt says."""
    (key,) = handle.client("bank").get_keys(SaeId("vault"), 1, 256)
    found = handle.client("vault").get_keys_with_ids(SaeId("bank"), [key.key_id])
    assert found[0].material == key.material
    record = json.loads(handle.qtrunk("keys", "show", key.key_id, "--format", "json").stdout)
    hops = record["nodes"]["bert"]["stored"]["receipt"]["hops"]
    return {block["authentication"] for hop in hops for block in hop["blocks"]}


def test_a_link_without_any_shared_secret_begins_with_signatures_and_every_receipt_says_so(pair):
    handle = pair("signed", 'bootstrap = "ml-dsa"\nis_adaptive = true\nlatency_s = 4.0\n')
    assert not list((handle.state / "nodes").glob("*/preshared*"))
    handle.wait_for_keys(1000)
    assert schemes(handle) == {"ml-dsa-65"}
    handle.wait_for(lambda links: links["ada-bert"]["blocks_released"] >= 3, "blocks with key", 60)
    alarms = [alarm for node in handle.status()["nodes"] for alarm in node["alarms"]["history"]]
    assert {alarm["type"] for alarm in alarms} >= {"AuthenticationBySignature"}
    # Keys of the first block are used up, and what follows is authenticated by key.
    for _ in range(2000):
        left = handle.client("bank").get_keys(SaeId("vault"), 64, 1024)
        handle.client("vault").get_keys_with_ids(SaeId("bank"), [key.key_id for key in left])
        if schemes(handle) == {"wegman-carter"}:
            break
    else:
        pytest.fail("the keys of later blocks never came")

    # The settings found for this fibre are in use: other light, longer blocks.
    def follows(links):
        link = links["ada-bert"]
        light = link["readings"].get("mean_photon_numbers")
        return light and abs(light[1] / 0.20 - 1) > 0.05 and link["state"] == "ACTIVE"

    # The search runs when nobody else needs the machine.
    handle.wait_for(follows, "settings that follow the link", 180)


def test_no_key_is_made_when_the_epsilon_of_the_link_is_spent(pair):
    handle = pair("spent", "epsilon_secret = 1e-9\nepsilon_total = 4.5e-9\n")

    def is_spent(links):
        link = links["ada-bert"]
        return link["blocks_released"] == 4 and link["epsilon"] > 4e-9

    handle.wait_for(is_spent, "four blocks", 60)
    alarms = [alarm for node in handle.status()["nodes"] for alarm in node["alarms"]["active"]]
    # On a slow machine the missing rate may be an alarm by now, too.
    assert {"EpsilonBudget"} <= {alarm["type"] for alarm in alarms} <= {"EpsilonBudget", "SkrBelowPlan"}
    before = handle.links()["ada-bert"]
    with pytest.raises(AssertionError, match="a fifth block"):
        handle.wait_for(lambda links: links["ada-bert"]["blocks_released"] > 4, "a fifth block", 6)
    after = handle.links()["ada-bert"]
    assert (after["epsilon"], after["blocks_destroyed"]) == (before["epsilon"], before["blocks_destroyed"])
    # What was made before stays good.
    assert schemes(handle) == {"wegman-carter"}
