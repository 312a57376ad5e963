"""What tenants were promised against what links are planned for."""

import pytest
from click.testing import CliRunner

from qtrunk.cli.main import cli
from qtrunk.config import network
from qtrunk.plan.guarantees import guaranteed_loads, planned_bps, warnings

HEAD = 'name = "n"\ntrunks = [["a", "b", "c"]]\nlink.length_km = 50\n'


def load(text, saes):
    return network.load(f"{HEAD}saes = {saes}\n{text}")


def test_a_guarantee_counts_once_for_each_site_whose_key_may_take_the_link():
    topology = load('tenants.t = { saes = ["t-*"], guaranteed_bps = 100 }', ["t-1@a", "t-2@a", "t-3@b", "t-4@c", "o@c"])
    loads = {step: sum(load.values()) for step, load in guaranteed_loads(topology).items()}
    assert loads == {("a-b", "b"): 100, ("b-c", "c"): 200, ("a-b", "a"): 200, ("b-c", "b"): 100}


def test_a_tenant_at_one_site_or_without_guarantee_needs_no_link():
    topology = load(
        'tenants.t = { saes = ["t-*"], guaranteed_bps = 100 }\ntenants.u = { saes = ["u-*"] }',
        ["t-1@a", "t-2@a", "u-1@a", "u-2@c"],
    )
    assert guaranteed_loads(topology) == {}


def test_just_too_much_is_warned_of_and_just_enough_is_not():
    rate_bps = planned_bps(load("", []).links[0]) / 2
    assert rate_bps > 10_000
    for factor, count in ((0.999, 0), (1.001, 4)):
        text = f'tenants.t = {{ saes = ["t-*"], guaranteed_bps = {rate_bps * factor}, hybrid = "qkd" }}'
        found = warnings(load(text, ["t-1@a", "t-2@c"]))
        assert len(found) == count
    assert found[0].startswith("links.a-b: guarantees towards a add up to ")


def test_a_link_that_makes_nothing_carries_no_guarantee():
    text = 'tenants.t = { saes = ["t-*"], guaranteed_bps = 1, hybrid = "fallback" }\n[links.b-c]\nloss_db = 60'
    assert all("0 bit/s each way" in line for line in warnings(load(text, ["t-1@b", "t-2@c"])))
    assert len(warnings(load(text, ["t-1@b", "t-2@c"]))) == 2


def test_a_simulated_fibre_of_a_tenth_of_the_pulses_makes_a_tenth_at_most():
    full = planned_bps(load("", []).links[0])
    tenth = planned_bps(network.load(HEAD + "link.clock_fraction = 0.1").links[0])
    assert 0 < tenth < 0.1 * full


@pytest.mark.parametrize("name", network.shipped())
def test_the_shipped_trunks_carry_their_guarantees(name):
    assert warnings(network.load(network.find(name))) == []


def test_check_warns_beside_its_answer(tmp_path):
    path = tmp_path / "n.toml"
    path.write_text(HEAD + 'saes = ["t-1@a", "t-2@b"]\ntenants.t = { saes = ["t-*", "x*"], guaranteed_bps = 1e9 }')
    for options in ([], ["--format", "json"]):
        result = CliRunner().invoke(cli, ["check", str(path), *options])
        assert result.exit_code == 0
        lines = result.stderr.splitlines()
        assert len(lines) == 3
        assert lines[0] == 'warning: tenants.t.saes: "x*" fits no SAE of this file'
        assert "warning" not in result.stdout


def test_of_a_vendors_link_nobody_here_can_tell():
    text = (
        'tenants.t = { saes = ["t-*"], guaranteed_bps = 1e9, hybrid = "qkd" }\nlinks.a-b.source = "etsi014"\n'
        'links.a-b.vendor = { trust = "Acme", alice = { kme_url = "https://x", sae = "s" },'
        ' bob = { kme_url = "https://y", sae = "t" } }'
    )
    assert {line.split(":")[0] for line in warnings(load(text, ["t-1@a", "t-2@c"]))} == {"links.b-c"}
