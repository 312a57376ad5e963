"""A first topology out of a list of places: valid, within reach, and each place where it lies."""

import pytest
from click.testing import CliRunner

from qtrunk.base.errors import ConfigError
from qtrunk.cli.main import cli
from qtrunk.config import network, places
from qtrunk.config.draft import draft
from qtrunk.config.geography import fibre_length_km
from qtrunk.config.places import Place

FAR = [Place("Ürümqi", "乌鲁木齐", 43.8, 87.6), Place("Xi'an", None, 34.3, 108.9), Place("西安", "西安", 34.4, 109.5)]


@pytest.mark.parametrize("is_ring", [False, True])
@pytest.mark.parametrize("reach_km", [60.0, 200.0])
def test_places_far_apart_are_joined_by_links_within_reach(is_ring, reach_km):
    made = network.load(draft("far", FAR, is_ring=is_ring, reach_km=reach_km))
    assert len(made.links) == len(made.nodes) - (0 if is_ring else 1)
    assert max(link.length_km for link in made.links) <= reach_km + 0.2
    straight = sum(fibre_length_km(a.point, b.point) for a, b in zip(FAR, [*FAR[1:], FAR[0]], strict=True))
    straight -= 0 if is_ring else fibre_length_km(FAR[-1].point, FAR[0].point)
    assert sum(link.length_km for link in made.links) == pytest.approx(straight, rel=2e-3)
    assert {sae.id for sae in made.saes} == {"office-urumqi", "office-xi-an", "office-site-3"}
    assert {node.name_local for node in made.nodes} == {"乌鲁木齐", "西安", ""}


def test_two_cities_of_one_name_are_two_nodes():
    made = network.load(draft("two", [Place("Suzhou", None, 31.3, 120.6), Place("Suzhou", None, 33.6, 117.0)]))
    assert {"suzhou", "suzhou-2"} <= {node.id for node in made.nodes}


@pytest.mark.parametrize(
    ("found", "more", "said"),
    [
        (FAR[:1], {}, "at least 2"),
        (FAR[:2], {"is_ring": True}, "at least 3"),
        ([FAR[0], FAR[0]], {}, "same spot"),
        (FAR, {"reach_km": 0.0}, "reach"),
    ],
)
def test_what_makes_no_network_is_refused(found, more, said):
    with pytest.raises(ConfigError, match=said):
        draft("no", found, **more)


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("Beijing", (39.9075, 116.39723)),
        ("北京", (39.9075, 116.39723)),
        ("suzhou", (31.30408, 120.59538)),
        ("Paris/US", (33.66094, -95.55551)),
        ("My Cabin@12.5,-3", (12.5, -3.0)),
    ],
)
def test_a_place_is_where_it_lies(text, point):
    assert places.find(text).point == point


@pytest.mark.parametrize(
    "text", ["", "@1,2", "Nowhereville", "Paris/CN", "X@1", "X@91,0", "X@nan,0", "X@1,2,3", "X@a,b"]
)
def test_what_is_no_place_is_refused_by_its_name(text):
    with pytest.raises(ConfigError, match="place"):
        places.find(text)


def test_the_command_writes_a_file_once(tmp_path):
    file = tmp_path / "mine.toml"
    run = CliRunner().invoke(cli, ["new", str(file), "A@50,8", 'B"x\\@50.3,8', "--reach", "20"])
    assert run.exit_code == 0, run.output
    assert "links" in run.output
    before = file.read_text()
    assert CliRunner().invoke(cli, ["new", str(file), "A@50,8", "C@51,8"]).exit_code == 1
    assert file.read_text() == before
    assert CliRunner().invoke(cli, ["check", str(file)]).exit_code == 0
