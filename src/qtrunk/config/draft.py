"""A first topology out of a list of places: what `qtrunk new` writes.

The sites are joined in the order given. Where two are farther apart than a link reaches, trusted relays are put between
them, evenly along the great circle. Lengths and losses are left out: until someone measures them, they follow from the
map (`config.geography`).
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from qtrunk.base.errors import ConfigError
from qtrunk.config import places
from qtrunk.config.geography import Point, fibre_length_km
from qtrunk.config.places import Place

REACH_KM = 80.0
RATE_BPS = 1000
ID_MAX, NAME_MAX = 28, 100
_HEAD = """\
# {title}: a first draft, made by `qtrunk new`. Nothing in it is measured.
#
# Coordinates of cities: GeoNames (https://www.geonames.org), licence CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/).
# Lengths and losses follow from the map (great circle x 1.3) until you give them:
#     [links.{link}]
#     length_km = 41.5
#     loss_db = 9.7

name = "{name}"
title = {quoted}
"""


def draft(name: str, found: Sequence[Place], *, is_ring: bool = False, reach_km: float = REACH_KM) -> str:
    """The text of a topology file; ConfigError where the places cannot make one."""
    least = 3 if is_ring else 2
    if len(found) < least:
        raise ConfigError([f"places: at least {least} are needed for a {'ring' if is_ring else 'trunk'}"])
    if reach_km <= 0:
        raise ConfigError(["reach: more than 0 km"])
    for number, place in enumerate(found):
        for other in found[:number]:
            if places.is_same(place, other):
                raise ConfigError([f"places: {other.name} and {place.name} are at the same spot"])
    ids = _ids(found)
    spans = list(pairwise(zip(ids, found, strict=True)))
    if is_ring:
        spans.append(((ids[-1], found[-1]), (ids[0], found[0])))
    row, nodes = [ids[0]], [_node(ids[0], found[0])]
    for (start_id, start), (end_id, end) in spans:
        for relay_id, text in _relays(start_id, start, end_id, end, reach_km):
            row.append(relay_id)
            nodes.append(text)
        if end_id != ids[0]:
            row.append(end_id)
            nodes.append(_node(end_id, end))
    title = f"{found[0].name} to {found[-1].name}" if not is_ring else f"Ring of {', '.join(one.name for one in found)}"
    title = title if len(title) <= 100 else name
    saes = [f"office-{id_}@{id_}" for id_ in ids]
    ends = ids[0], ids[-1] if not is_ring else ids[len(ids) // 2]
    return "\n".join(
        [
            _HEAD.format(name=name, title=title, quoted=_quoted(title), link=f"{row[0]}-{row[1]}"),
            f"{'rings' if is_ring else 'trunks'} = [\n  [\n{_wrapped(row)}  ],\n]",
            "",
            "# Who uses keys: one office in each city.",
            f"saes = [\n{_wrapped(saes, 2)}]",
            "",
            *nodes,
            "[[demands]]",
            f'between = ["office-{ends[0]}", "office-{ends[1]}"]',
            f"rate_bps = {RATE_BPS}",
            "",
        ]
    )


def _relays(start_id: str, start: Place, end_id: str, end: Place, reach_km: float) -> list[tuple[str, str]]:
    pieces = math.ceil(fibre_length_km(start.point, end.point) / reach_km)
    relays = []
    for number in range(1, pieces):
        id_ = f"relay-{start_id[:9]}-{end_id[:9]}" + (f"-{number}" if pieces > 2 else "")
        lat, lon = _between(start.point, end.point, number / pieces)
        name = f"Relay {start.name}-{end.name}"[:NAME_MAX]
        relays.append((id_, _table(id_, name, None, lat, lon, "on the way, no real place")))
    return relays


def _between(a: Point, b: Point, share: float) -> Point:
    """A point of the great circle."""
    (x, y, z), (u, v, w) = _vector(a), _vector(b)
    angle = math.acos(max(-1.0, min(1.0, x * u + y * v + z * w)))
    first, second = math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)
    x, y, z = first * x + second * u, first * y + second * v, first * z + second * w
    return round(math.degrees(math.atan2(z, math.hypot(x, y))), 4), round(math.degrees(math.atan2(y, x)), 4)


def _vector(point: Point) -> tuple[float, float, float]:
    lat, lon = (math.radians(value) for value in point)
    return math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)


def _node(id_: str, place: Place) -> str:
    others = f"others of this name: {', '.join(place.others)}" if place.others else ""
    return _table(id_, place.name, place.name_local, place.lat, place.lon, others)


def _table(id_: str, name: str, name_local: str | None, lat: float, lon: float, comment: str) -> str:
    local = f"name_local = {_quoted(name_local)}\n" if name_local else ""
    head = f"# {comment}\n" if comment else ""
    return f"{head}[nodes.{id_}]\nname = {_quoted(name)}\n{local}lat = {lat}\nlon = {lon}\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _wrapped(items: Sequence[str], indent: int = 4) -> str:
    return "".join(
        " " * indent + ", ".join(f'"{item}"' for item in items[i : i + 4]) + ",\n" for i in range(0, len(items), 4)
    )


def _ids(found: Sequence[Place]) -> list[str]:
    """Node IDs out of names: small letters, digits and hyphens, each once."""
    ids: list[str] = []
    for number, place in enumerate(found, start=1):
        plain = unicodedata.normalize("NFKD", place.name).encode("ascii", "ignore").decode().casefold()
        id_ = _short(re.sub(r"[^a-z0-9]+", "-", plain).strip("-")) or f"site-{number}"
        while id_ in ids:
            id_ = f"{id_[: ID_MAX - 4]}-{number}"
        ids.append(id_)
    return ids


def _short(id_: str) -> str:
    """Two of them, joined, still name a link."""
    return id_[:ID_MAX].strip("-")
