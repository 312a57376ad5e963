"""Topology files that include others: what is put together, what is refused, and where each mistake stands."""

from pathlib import Path

import pytest

from qtrunk.base.errors import ConfigError
from qtrunk.base.ids import LinkId
from qtrunk.config import network
from qtrunk.config.include import LISTS, ONE_OF_ALL, OTHERS, TABLES


def problems_of(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        network.load(path)
    return caught.value.problems


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


RING = """
name = "ring"
rings = [["a", "b", "c"]]
saes = ["bank@a"]
link.length_km = 20
tenants.banks.saes = ["bank*"]
"""


def test_a_file_adds_nodes_links_saes_tenants_and_demands_to_what_it_includes(tmp_path: Path) -> None:
    write(tmp_path, "parts/ring.toml", RING)
    path = write(
        tmp_path,
        "all.toml",
        'name = "all"\ninclude = ["parts/ring.toml"]\ntrunks = [["c", "d"]]\nsaes = ["bank-d@d"]\n'
        'link.length_km = 30\ntenants.shops.saes = ["shop*"]\nnodes.d = {}\n'
        '[[demands]]\nbetween = ["bank", "bank-d"]\nrate_bps = 10\n',
    )
    found = network.load(path)
    assert found.name == "all"
    assert {node.id for node in found.nodes} == set("abcd")
    assert {link.id: link.length_km for link in found.links} == {"c-d": 30, "a-b": 20, "b-c": 20, "c-a": 20}
    assert [sae.id for sae in found.saes] == ["bank", "bank-d"]
    assert [tenant.id for tenant in found.tenants] == ["banks", "shops"]
    assert len(found.demands) == 1


def test_link_holds_for_its_own_file_and_all_links_for_every_file_but_not_over_one_link(tmp_path: Path) -> None:
    write(tmp_path, "ring.toml", RING + "all_links.block_s = 8\nall_links.latency_s = 9\n[links.a-b]\nblock_s = 2\n")
    path = write(
        tmp_path,
        "all.toml",
        'name = "all"\ninclude = ["ring.toml"]\ntrunks = [["a", "d"]]\nlink = {length_km = 5, clock_fraction = 0.5}\n'
        "[nodes.d]\n[all_links]\nlatency_s = 10\n",
    )
    found = network.load(path)
    seen = {
        link.id: (link.equipment.clock_fraction, link.equipment.block_s, link.distillation.latency_s)
        for link in found.links
    }
    assert seen == {"a-b": (1, 2, 10), "b-c": (1, 8, 10), "c-a": (1, 8, 10), "a-d": (0.5, 8, 10)}


def test_a_file_included_on_two_ways_counts_once(tmp_path: Path) -> None:
    write(tmp_path, "ring.toml", RING)
    for name in ("x", "y"):
        write(
            tmp_path,
            f"{name}.toml",
            f'name = "{name}"\ninclude = ["ring.toml"]\ntrunks = [["a", "{name}"]]\nlink.length_km = 1\n[nodes.{name}]',
        )
    found = network.load(write(tmp_path, "all.toml", 'name = "all"\ninclude = ["x.toml", "./y.toml"]'))
    assert {node.id for node in found.nodes} == {"a", "b", "c", "x", "y"}
    assert len(found.links) == 5


def test_a_circle_is_refused_and_spelt_out(tmp_path: Path) -> None:
    write(tmp_path, "b.toml", 'name = "b"\ninclude = ["c.toml"]\ntrunks = [["x", "y"]]\nlink.length_km = 1')
    write(tmp_path, "c.toml", 'name = "c"\ninclude = ["b.toml"]\ntrunks = [["y", "z"]]\nlink.length_km = 1')
    path = write(tmp_path, "a.toml", 'name = "a"\ninclude = ["b.toml"]')
    assert problems_of(path) == ['c.toml: include[0]: goes round in a circle: "b.toml" > "c.toml" > "b.toml"']
    alone = write(
        tmp_path, "self.toml", 'name = "s"\ninclude = ["self.toml"]\ntrunks = [["y", "z"]]\nlink.length_km = 1'
    )
    assert problems_of(alone) == ['include[0]: goes round in a circle: "self.toml" > "self.toml"']


def test_clashes_name_both_places(tmp_path: Path) -> None:
    write(
        tmp_path,
        "ring.toml",
        RING + "nodes.a.lat = 1\nnodes.a.lon = 1\nnodes.b = {}\nnodes.c = {}\nkey_api.strict = true",
    )
    path = write(
        tmp_path,
        "all.toml",
        'name = "all"\ninclude = ["ring.toml"]\ntrunks = [["b", "a"]]\nsaes = ["bank@b"]\nlink.length_km = 5\n'
        "nodes.a.lat = 2\nnodes.a.lon = 1\ntenants.banks.saes = ['x*']\nkey_api.strict = false\n",
    )
    assert problems_of(path) == [
        "nodes.a: is already ring.toml: nodes.a, and differs",
        "tenants.banks: is already ring.toml: tenants.banks, and differs",
        "key_api: is already ring.toml: key_api, and differs",
        "ring.toml: rings[0]: a to b is already a link of trunks[0]; name each link once",
        'saes[0].id: "bank" is already ring.toml: saes[0]; SAE IDs are unique in the network',
    ]


def test_the_same_words_twice_are_no_clash(tmp_path: Path) -> None:
    write(tmp_path, "ring.toml", RING + "key_api.strict = true")
    text = 'name = "n"\ninclude = ["ring.toml"]\nkey_api.strict = true\ntenants.banks.saes = ["bank*"]'
    assert network.load(write(tmp_path, "all.toml", text)).key_api.strict


def test_every_mistake_of_every_file_is_reported_at_once_with_its_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        "deep/er/ring.toml",
        'name = 5\nrings = [["a", "b"]]\nsaes = ["x@q", 3]\nlink = 4\nnodes = {a = 1, b = {latt = 2}}\n'
        "colour = 1\ndemands = {}\nall_links = 2\n[links.a-b]\nloss_db = 700\n",
    )
    write(
        tmp_path,
        "deep/mid.toml",
        'name = "mid"\ninclude = ["er/ring.toml", "none.toml", 7]\ntrunks = [["a", "b", "z"]]',
    )
    write(tmp_path, "broken.toml", "x = ")
    path = write(tmp_path, "all.toml", 'include = ["deep/mid.toml", "broken.toml"]\nlink.lenght_km = 5')
    assert set(problems_of(path)) == {
        'deep/mid.toml: include[1]: "none.toml" is neither a file beside this one nor a shipped topology',
        "deep/mid.toml: include[2]: 7 is not the name of a shipped topology or a file, in quotes",
        "include[1]: not valid TOML: Invalid value (at end of document)",
        "deep/er/ring.toml: demands: a table is not a list",
        f"deep/er/ring.toml: colour: unknown key; keys: {', '.join((*LISTS, *TABLES, *ONE_OF_ALL, *OTHERS))}",
        "deep/er/ring.toml: nodes.a: 1 is not a table",
        (
            'deep/er/ring.toml: nodes.b.latt: unknown key; did you mean "lat"? '
            "keys: name, name_local, lat, lon, trust, ports"
        ),
        'deep/mid.toml: trunks[0][2]: "z" is not a node; nodes: a, b',
        "deep/er/ring.toml: rings[0]: 2 named; a ring has at least 3 nodes",
        "deep/er/ring.toml: link: 4 is not a table",
        "deep/er/ring.toml: all_links: 2 is not a table",
        'deep/er/ring.toml: saes[1]: 3 is not an SAE; write "SAE@NODE" or a table with id and node',
        'deep/er/ring.toml: saes[0].node: "q" is not a node; nodes: a, b',
        'name: missing; every network has one, such as name = "beijing-xiongan"',
        'link.lenght_km: unknown key; did you mean "length_km"? keys: '
        + next(line for line in problems_of(path) if line.startswith("link.lenght")).split("keys: ")[1],
        "deep/er/ring.toml: links.a-b.loss_db: 700 is over 60 dB",
    }


def test_two_rings_are_the_two_shipped_rings_and_a_trunk_between(tmp_path: Path) -> None:
    both = network.load(network.find("two-rings"))
    rings = [network.load(network.find(name)) for name in ("beijing-tianjin-hebei-ring", "yangtze-delta-ring")]
    own = {link.id for link in both.links} - {link.id for one in rings for link in one.links}
    assert {node.id for one in rings for node in one.nodes} < {node.id for node in both.nodes}
    assert {sae.id for one in rings for sae in one.saes} < {sae.id for sae in both.saes}
    assert len(own) == 21
    for one in rings:
        assert len(one.links) == len(one.nodes)
        assert all(len(one.links_of(node.id)) == 2 for node in one.nodes)
        for link in one.links:
            assert both.link(LinkId(link.id)).length_km == link.length_km
    assert {link.equipment.clock_fraction for link in both.links} == {0.04}
