"""Topology files: each good one gives exactly its JSON, each bad one exactly its list of problems."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

from qtrunk.base.errors import ConfigError
from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.config import field, geography, neighbour, network, tenant, vendor
from qtrunk.kms.vendorend import BLOCK_OCTETS_MIN
from qtrunk.topology import Distillation, Equipment, ForeignNetwork, Tenant, Topology, VendorEnd, VendorSource

HERE = Path(__file__).parent
DOCS = Path(__file__).parents[2] / "docs" / "topology.md"
GOOD = sorted((HERE / "good").glob("*.toml"))
BAD = sorted((HERE / "bad").glob("*.toml"))


def problems_of(text_or_path: str | Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        network.load(text_or_path)
    return caught.value.problems


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_good_file_gives_exactly_its_canonical_form(path: Path) -> None:
    described = json.loads(json.dumps(network.describe(network.load(path))))
    assert described == json.loads(path.with_suffix(".json").read_text())


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_file_gives_exactly_its_problems(path: Path) -> None:
    assert problems_of(path) == path.with_suffix(".txt").read_text().splitlines()


def test_every_input_has_its_expected_output_and_the_other_way_round() -> None:
    assert GOOD
    assert BAD
    for folder, suffix in (("good", ".json"), ("bad", ".txt")):
        inputs = {path.stem for path in (HERE / folder).glob("*.toml")}
        assert inputs == {path.stem for path in (HERE / folder).glob(f"*{suffix}")}


@pytest.mark.parametrize("name", network.shipped())
def test_the_canonical_form_of_a_shipped_topology_survives_json(name: str) -> None:
    topology = network.load(network.find(name))
    assert topology.name == name
    assert Topology.from_dict(json.loads(json.dumps(network.describe(topology)))) == topology


@pytest.mark.parametrize("name", network.shipped())
def test_a_shipped_topology_spells_out_the_default_equipment(name: str) -> None:
    topology = network.load(network.find(name))
    # The rings run a part of the pulses, in longer blocks, so that they fit on a small machine.
    usual = {"clock_fraction": 1.0, "block_s": 4.0}
    assert {replace(link.equipment, **usual) for link in topology.links} == {Equipment()}


def test_the_beijing_xiongan_trunk_has_its_five_sites_and_four_spans() -> None:
    topology = network.load(network.find("beijing-xiongan"))
    assert [node.id for node in topology.nodes] == ["beijing", "daxing", "gu-an", "xiong-xian", "xiongan"]
    spans = [(link.id, link.length_km, link.loss_db) for link in topology.links]
    assert spans == [
        ("beijing-daxing", 25.4, 6.3),
        ("daxing-gu-an", 44.0, 10.2),
        ("gu-an-xiong-xian", 68.1, 15.3),
        ("xiong-xian-xiongan", 28.5, 7.0),
    ]
    for sector in ("government", "finance", "power", "big-data"):
        for node in ("beijing", "xiongan"):
            assert any(sae.id == f"{sector}-{node}" and sae.node == node for sae in topology.saes)


def test_the_nanjing_shanghai_spans_follow_from_the_map() -> None:
    topology = network.load(network.find("nanjing-shanghai"))
    assert [link.length_km for link in topology.links] == [49.8, 49.7, 57.6, 50.7, 53.8, 45.6, 66.2]
    losses_db = [11.5, 11.4, 13.1, 11.6, 12.3, 10.6, 14.9]
    assert [link.loss_db for link in topology.links] == pytest.approx(losses_db, abs=0.051)


def test_a_great_circle_is_a_quarter_of_the_equator_from_pole_to_equator() -> None:
    quarter_km = geography.EARTH_RADIUS_KM * math.pi / 2
    assert geography.great_circle_km((90, 0), (0, 77)) == pytest.approx(quarter_km)
    assert geography.great_circle_km((0, 0), (0, 180)) == pytest.approx(2 * quarter_km)
    assert geography.great_circle_km((31.2, 121.4), (31.2, 121.4)) == 0


def test_the_first_named_node_has_the_transmitter_and_a_ring_closes() -> None:
    topology = network.load('name = "n"\nrings = [["a", "b", "c"]]\nlink.length_km = 10')
    assert [(link.id, link.alice, link.bob) for link in topology.links] == [
        ("a-b", "a", "b"),
        ("b-c", "b", "c"),
        ("c-a", "c", "a"),
    ]


def test_an_exception_overrides_the_defaults_of_its_link_only() -> None:
    topology = network.load(
        'name = "n"\ntrunks = [["a", "b", "c"]]\n[link]\nlength_km = 10\nblock_s = 1\n[links.a-b]\nlength_km = 20'
    )
    first, second = topology.link(LinkId("a-b")), topology.link(LinkId("b-c"))
    assert (first.length_km, first.loss_db, first.equipment.block_s) == (20.0, 5.2, 1.0)
    assert (second.length_km, second.loss_db) == (10.0, 3.1)


def test_the_last_at_sign_parts_an_sae_from_its_node() -> None:
    topology = network.load('name = "n"\ntrunks = [["a", "b"]]\nlink.length_km = 1\nsaes = ["bank@hq@b"]')
    assert [(sae.id, sae.node) for sae in topology.saes] == [("bank@hq", NodeId("b"))]


def test_every_field_of_the_equipment_can_be_set() -> None:
    assert {entry.name for entry in fields(Equipment)} == {*field.EQUIPMENT_NUMBERS, *field.LINK_TRIPLES}
    assert {entry.name for entry in fields(Distillation)} == {*field.DISTILLATION_NUMBERS, *field.LINK_CHOICES}


def test_how_a_link_distils_can_be_set_for_all_links_and_for_one() -> None:
    topology = network.load(
        'name = "n"\ntrunks = [["a", "b", "c"]]\n[link]\nlength_km = 1\nepsilon_secret = 1e-12\nis_adaptive = true\n'
        '[links.b-c]\nbounds = "hoeffding"\nlatency_s = 60'
    )
    first, second = (link.distillation for link in topology.links)
    assert first == Distillation(epsilon_secret=1e-12, is_adaptive=True)
    assert second == Distillation(epsilon_secret=1e-12, is_adaptive=True, bounds="hoeffding", latency_s=60.0)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("bounds = 'lim'", 'link.bounds: "lim" is not one of "exact", "hoeffding"'),
        ("is_adaptive = 1", "link.is_adaptive: 1 is not one of true, false"),
        ("epsilon_total = 2", "link.epsilon_total: 2 is over 1"),
    ],
)
def test_a_choice_that_there_is_not_is_named(line: str, problem: str) -> None:
    assert problems_of(f'name = "n"\ntrunks = [["a", "b"]]\n[link]\nlength_km = 1\n{line}') == [problem]


def test_the_default_equipment_is_within_the_ranges() -> None:
    for name, allowed in field.EQUIPMENT_NUMBERS.items():
        assert allowed.complaint(getattr(Equipment(), name)) is None
    for name, allowed in field.DISTILLATION_NUMBERS.items():
        assert allowed.complaint(getattr(Distillation(), name)) is None
    for name, choices in field.LINK_CHOICES.items():
        assert getattr(Distillation(), name) in choices


def test_the_page_of_the_format_states_every_range_and_default() -> None:
    rows = {line.split("`")[1]: line for line in DOCS.read_text().splitlines() if line.startswith("| `")}
    for name, allowed in field.LINK_NUMBERS.items():
        assert f"| {allowed.low:.12g} to {allowed.high:.12g} |" in rows[name], name
    for name in field.EQUIPMENT_NUMBERS.keys() - {"clock_hz"}:
        assert f"| {getattr(Equipment(), name)}" in rows[name], name
    for name in field.DISTILLATION_NUMBERS:
        assert rows[name].endswith(f"| {getattr(Distillation(), name)} |"), name
    for name, choices in field.LINK_CHOICES.items():
        *first, last = (str(one).lower() for one in choices)
        default = str(getattr(Distillation(), name)).lower()
        assert rows[name].endswith(f"| {', '.join(first)} or {last} | {default} |")
    for name in field.LINK_TRIPLES:
        assert rows[name].endswith(f"| {list(getattr(Equipment(), name))} |"), name


def test_a_shipped_name_is_found_and_so_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ntrunks = [["a", "b"]]\nlink.length_km = 1', encoding="utf-8-sig")
    assert network.load(network.find("beijing-xiongan")).name == "beijing-xiongan"
    assert network.find(path) == path
    assert network.load(network.find(str(path))).name == "mine"


@pytest.mark.parametrize("wrong", ["beijing-xiongn", "nowhere/beijing-xiongan.toml", "x" * 5000, "a\0b", ""])
def test_an_unknown_topology_lists_the_shipped_ones(wrong: str) -> None:
    if wrong == "":
        # The empty path is the current directory, which is there but no file.
        assert "cannot be read" in problems_of(network.find(wrong))[0]
        return
    with pytest.raises(
        ConfigError, match="shipped: beijing-tianjin-hebei-ring, beijing-xiongan, nanjing-shanghai, two-rings"
    ):
        network.find(wrong)


def test_a_near_miss_of_a_shipped_name_is_guessed() -> None:
    with pytest.raises(ConfigError) as caught:
        network.find("beijing-xiongn")
    (line,) = caught.value.problems
    assert line.endswith(f'did you mean "beijing-xiongan"? shipped: {", ".join(network.shipped())}')


def test_a_file_that_cannot_be_read_is_a_problem_of_the_configuration(tmp_path: Path) -> None:
    assert problems_of(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    path = tmp_path / "latin.toml"
    assert problems_of(path) == [f"{path}: octet 8 is not UTF-8; save the file as UTF-8"]
    assert problems_of(Path("a\0b")) == ['"a\\u0000b" is not a path: embedded null byte']


def test_a_syntax_error_says_its_line() -> None:
    assert problems_of('name = "n"\ntrunks = [["a", "b"\n') == ["not valid TOML: Unclosed array (at end of document)"]
    assert problems_of('name = "n"\nlength 5\n') == [
        "not valid TOML: Expected '=' after a key in a key/value pair (at line 2, column 8)"
    ]


def test_no_number_and_no_nesting_is_too_much_for_the_reader() -> None:
    assert problems_of("x = " + "[" * 20_000) == ["not valid TOML: lists or tables are nested too deeply"]
    assert problems_of("x = " + "9" * 5000)[0].startswith("not valid TOML: ")
    lines = problems_of('name = "n"\ntrunks = [["a", "b"]]\nlink.length_km = 0x' + "f" * 5000)
    assert lines == ["link.length_km: a 20000-bit integer is over 200 km"]


def test_a_problem_never_carries_a_control_character_to_the_terminal() -> None:
    lines = problems_of('name = "n"\ntrunks = [["a", "\\u001b[31m"]]\n"\\u009b2J" = 1')
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_a_long_list_of_allowed_names_is_cut() -> None:
    row = ", ".join(f'"n{number}"' for number in range(30))
    lines = problems_of(f'name = "n"\ntrunks = [[{row}]]\nlink.length_km = 1\nsaes = ["bank@elsewhere"]')
    shown = ", ".join(f"n{number}" for number in range(20))
    assert lines == [f'saes[0].node: "elsewhere" is not a node; nodes: {shown} and 10 more']


def test_the_example_on_the_page_of_the_format_is_a_valid_network() -> None:
    example = DOCS.read_text().split("```toml\n")[1].split("```")[0]
    topology = network.load(example)
    assert (len(topology.nodes), len(topology.links)) == (8, 8)
    assert topology.link(LinkId("c-x")).length_km == 62


def test_no_coordinates_and_no_length_is_one_problem_for_each_link() -> None:
    assert problems_of('name = "n"\ntrunks = [["a", "b", "c"]]') == [
        "links.a-b.length_km: missing; give it here or in [link], or give both nodes lat and lon",
        "links.b-c.length_km: missing; give it here or in [link], or give both nodes lat and lon",
    ]


def test_every_field_of_a_tenant_can_be_set_and_is_on_the_page() -> None:
    assert {entry.name for entry in fields(Tenant)} == {"id", *tenant.TENANT_KEYS}
    part = DOCS.read_text().split("## Tenants")[1]
    rows = {line.split("`")[1]: line for line in part.splitlines() if line.startswith("| `")}
    assert rows.keys() == set(tenant.TENANT_KEYS)
    usual = Tenant(id="usual")
    for name, allowed in {**tenant.TENANT_NUMBERS, **tenant.TENANT_WHOLES}.items():
        low, high = f"{allowed.low:.12g}", f"{allowed.high:.0f}"
        assert f"| {'above ' if allowed.is_low_open else ''}{low} to {high}" in rows[name], name
        default = getattr(usual, name)
        assert rows[name].endswith(f"| {'no limit' if default is None else default} |"), name
        assert default is None or allowed.complaint(default) is None
    assert rows["hybrid"].endswith(f"| {usual.hybrid} |")
    assert usual.hybrid in tenant.HYBRID


def test_every_field_of_a_vendors_link_can_be_set_and_is_on_the_page() -> None:
    assert {entry.name for entry in fields(VendorSource)} - {"interface"} == set(vendor.VENDOR_KEYS)
    assert {entry.name for entry in fields(VendorEnd)} == set(vendor.END_KEYS)
    part = DOCS.read_text().split("### Keys of a vendor's system")[1].split("## The key interface")[0]
    rows = {line.split("`")[1]: line for line in part.splitlines() if line.startswith("| `")}
    assert rows.keys() == {*vendor.VENDOR_KEYS, *vendor.SOURCE_KEYS, "kme_url", "sae", "uri", "certificate"}
    assert all(f"`{key}`" in part for key in vendor.FILES)
    end = VendorEnd(kme_url="", sae=SaeId(""))
    usual = VendorSource(trust="", alice=end, bob=end)
    for name, allowed in {**vendor.VENDOR_NUMBERS, **vendor.VENDOR_WHOLES}.items():
        assert f"| {allowed.low:.12g} to {allowed.high:.12g}" in rows[name], name
        default = getattr(usual, name)
        assert default is None or rows[name].endswith(f"| {default} |"), name
        assert default is None or allowed.complaint(default) is None
    assert rows["tls"].endswith(f"| {usual.tls} |")
    assert str(BLOCK_OCTETS_MIN) in rows["keys"]


def test_every_field_of_a_foreign_network_can_be_set_and_is_on_the_page() -> None:
    assert {entry.name for entry in fields(ForeignNetwork)} == {"id", *neighbour.NEIGHBOUR_KEYS}
    part = DOCS.read_text().split("## Foreign networks")[1].split("## Tenants")[0]
    rows = {line.split("`")[1] for line in part.splitlines() if line.startswith("| `")}
    assert rows == set(neighbour.NEIGHBOUR_KEYS)


def test_a_foreign_sae_belongs_to_the_network_that_names_it_most_closely() -> None:
    topology = network.load(HERE / "good" / "neighbours.toml")
    saes = ("east-bank", "east-west-bank", "hq", "bank", "nobody")
    owners = [topology.foreign(SaeId(sae)) for sae in saes]
    assert [owner and owner.id for owner in owners] == ["east", "west", "east", None, None]


def test_an_sae_belongs_to_the_tenant_that_names_it_most_closely() -> None:
    topology = network.load(HERE / "good" / "tenants.toml")
    owners = {sae.id: topology.tenant_of(sae.id).id for sae in topology.saes}
    assert owners == {"bank": "banks", "bank-vault": "banks", "bank-shop": "shops", "guest": "default"}
    assert topology.tenant_of(SaeId("kiosk-7")).id == "shops"
    assert topology.tenant_of(SaeId("guest")).burst_bps == 100
    free = network.load('name = "n"\ntrunks = [["a", "b"]]\nlink.length_km = 1\nsaes = ["x@a"]')
    assert free.tenant_of(SaeId("x")) == Tenant(id="default")


@pytest.mark.parametrize("name", network.shipped())
def test_each_sector_of_a_shipped_topology_is_a_tenant(name: str) -> None:
    topology = network.load(network.find(name))
    assert [one.id for one in topology.tenants] == ["government", "finance", "power", "big-data"]
    for sae in topology.saes:
        assert sae.id.startswith(topology.tenant_of(sae.id).id)
