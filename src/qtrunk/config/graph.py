"""A topology as a drawing: Mermaid flowcharts for documents, GeoJSON (RFC 7946) for maps.

Both are text; nothing is drawn here. GeoJSON needs the place of every node: ConfigError names those that have none.
"""

import json

import msgspec

from qtrunk.base.errors import ConfigError
from qtrunk.topology import Link, Node, Topology


def mermaid(topology: Topology) -> str:
    """A flowchart: nodes with their SAEs, links with length and loss."""
    number = {node.id: f"n{index}" for index, node in enumerate(topology.nodes)}
    lines = ["---", f"title: {json.dumps(topology.title or topology.name)}", "---", "flowchart LR"]
    for node in topology.nodes:
        saes = [sae.id for sae in topology.saes if sae.node == node.id]
        label = "<br/>".join(_text(one) for one in (node.name or node.id, *saes))
        lines.append(f'    {number[node.id]}["{label}"]')
    for link in topology.links:
        label = f"{link.length_km:g} km, {link.loss_db:g} dB"
        lines.append(f'    {number[link.alice]} -- "{label}" --- {number[link.bob]}')
    return "\n".join(lines) + "\n"


def geojson(topology: Topology) -> str:
    """A FeatureCollection: a Point for each node, a LineString (the straight way, not the fibre's) for each link."""
    missing = [f"nodes.{node.id}: lat and lon are needed for a map" for node in topology.nodes if _point(node) is None]
    if missing:
        raise ConfigError(missing)
    features = [
        *(_node(topology, node) for node in topology.nodes),
        *(_link(topology, link) for link in topology.links),
    ]
    document = {"type": "FeatureCollection", "features": features}
    return msgspec.json.format(msgspec.json.encode(document)).decode() + "\n"


def _node(topology: Topology, node: Node) -> dict[str, object]:
    properties: dict[str, object] = {
        "kind": "node",
        "name": node.name,
        "name_local": node.name_local,
        "saes": [sae.id for sae in topology.saes if sae.node == node.id],
    }
    return _feature(node.id, "Point", _point(node), properties)


def _link(topology: Topology, link: Link) -> dict[str, object]:
    properties: dict[str, object] = {
        "kind": "link",
        "alice": link.alice,
        "bob": link.bob,
        "length_km": link.length_km,
        "loss_db": link.loss_db,
        "source": "qkd" if link.vendor is None else "etsi014",
    }
    ends = [_point(topology.node(end)) for end in (link.alice, link.bob)]
    return _feature(link.id, "LineString", ends, properties)


def _feature(name: str, kind: str, coordinates: object, properties: dict[str, object]) -> dict[str, object]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "id": name, "geometry": geometry, "properties": properties}


def _point(node: Node) -> list[float] | None:
    """Longitude first (RFC 7946, 3.1.1)."""
    if node.latitude_deg is None or node.longitude_deg is None:
        return None
    return [node.longitude_deg, node.latitude_deg]


def _text(text: str) -> str:
    """Text that neither ends a label nor means something in it: Mermaid's entity codes for signs that could."""
    return "".join(one if one.isalnum() or one in " -.,'()/" else f"#{ord(one)};" for one in text)
