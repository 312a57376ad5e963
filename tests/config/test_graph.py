"""Drawings of a topology, against files that were looked at, and against the rules of their formats."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from qtrunk.base.errors import ConfigError
from qtrunk.cli.graph import graph as command
from qtrunk.config import graph, network

GOLDEN = Path(__file__).parent / "graph"
ODD = """
name = "n"
trunks = [["a", "b"]]
saes = ["x;y@a"]
link.length_km = 1
nodes.a.name = '"] --> end #'
nodes.b = {}
"""


@pytest.mark.parametrize(("name", "suffix"), [("beijing-xiongan", "mermaid"), ("beijing-xiongan", "geojson")])
def test_a_drawing_is_exactly_the_golden_file(name: str, suffix: str, tmp_path: Path) -> None:
    expected = (GOLDEN / f"{name}.{suffix}").read_text()
    printed = CliRunner().invoke(command, [name, "--format", suffix])
    assert printed.output == expected
    CliRunner().invoke(command, [name, "--format", suffix, "-o", str(tmp_path / "out")])
    assert (tmp_path / "out").read_text() == expected


@pytest.mark.parametrize("name", network.shipped())
def test_every_shipped_network_is_a_map_after_rfc_7946(name: str) -> None:
    topology = network.load(network.find(name))
    document = json.loads(graph.geojson(topology))
    assert document["type"] == "FeatureCollection"
    points = {}
    for feature in document["features"]:
        assert feature.keys() == {"type", "id", "geometry", "properties"}
        geometry = feature["geometry"]
        row = [geometry["coordinates"]] if geometry["type"] == "Point" else geometry["coordinates"]
        assert all(-180 <= longitude <= 180 and -90 <= latitude <= 90 for longitude, latitude in row)
        if geometry["type"] == "Point":
            points[feature["id"]] = row[0]
        else:
            ends = feature["properties"]
            assert row == [points[ends["alice"]], points[ends["bob"]]]
    assert len(points) == len(topology.nodes)
    assert len(document["features"]) == len(points) + len(topology.links)


def test_a_node_without_a_place_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        graph.geojson(network.load('name = "n"\ntrunks = [["a", "b"]]\nlink.length_km = 1'))
    assert caught.value.problems == [f"nodes.{node}: lat and lon are needed for a map" for node in "ab"]


def test_no_name_breaks_out_of_its_label() -> None:
    lines = graph.mermaid(network.load(ODD)).splitlines()
    assert lines[4] == '    n0["#34;#93; --#62; end #35;<br/>x#59;y"]'
    for line in lines[4:]:
        assert re.fullmatch(r'    n\d+(\["[^"\]]*"\]| -- "[^"]*" --- n\d+)', line)
