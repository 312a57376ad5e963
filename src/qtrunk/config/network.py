"""The topology file: from TOML to a `Topology`, or to a list of every mistake in it.

A file says what a network engineer knows (which sites in which order, how far, who uses keys) and leaves out
what can be worked out. `load` rewrites short forms to one canonical form (`shortform`), reads every field
against its range (`field`) and checks the whole: IDs unique, names known, one connected network.
docs/topology.md is the format.
"""

import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from qtrunk.base.errors import ConfigError, RequestRefused
from qtrunk.base.ids import NodeId, SaeId, is_node_id, parse_sae_id
from qtrunk.config import field, geography, keyapi
from qtrunk.config.field import Entry, LinkSettings
from qtrunk.config.include import gather
from qtrunk.config.neighbour import neighbours
from qtrunk.config.problem import Problems, child, choices, listed, quoted, shown
from qtrunk.config.shortform import ID_RULE, Draft, Span, rewrite
from qtrunk.config.tenant import tenants
from qtrunk.config.vendor import vendor_source
from qtrunk.topology import Demand, Distillation, Equipment, Link, Node, Sae, Topology

_SHIPPED = Path(__file__).parent / "topologies"
_PORT_KEYS = ("key_api", "admin_api", "inter_node", "stream_api", "skip_api", "sdn_api")


def shipped() -> list[str]:
    """The names of the topologies that come with qtrunk."""
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a shipped topology, or the path as given; ConfigError if there is neither."""
    text = os.fspath(name_or_path)
    known = _shipped_file(text)
    if known is not None:
        return known
    path = Path(text)
    try:
        exists = path.exists()
    except OSError:  # a name too long for a file, or below a directory that we may not enter
        exists = False
    if exists:
        return path
    raise ConfigError([f"{quoted(text)} is neither a file nor a shipped topology{choices(text, shipped(), 'shipped')}"])


def load(text_or_path: str | Path) -> Topology:
    """The network that a file describes, given the path of the file or its text.

    Raises ConfigError, whose `problems` has a line for every mistake.
    """
    is_text = isinstance(text_or_path, str)
    document = _parse(text_or_path) if isinstance(text_or_path, str) else _parse_file(text_or_path)
    problems = Problems()
    path = None if is_text else Path(text_or_path)
    draft = rewrite(gather(document, path, _parse_file, _shipped_file, problems), problems)
    topology = _build(draft, problems)
    problems.raise_if_any()
    return topology


def describe(topology: Topology) -> dict[str, object]:
    """The canonical form in plain JSON values, defaults filled in; `Topology.from_dict` reads it back."""
    return topology.to_dict()


def _shipped_file(name: str) -> Path | None:
    return _SHIPPED / f"{name}.toml" if name in shipped() else None


def _parse_file(path: Path) -> dict[str, object]:
    return _parse(_read(path))


def _read(path: Path) -> str:
    try:
        # Some editors begin a file with a byte order mark; it means nothing.
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: octet {error.start} is not UTF-8; save the file as UTF-8"]) from error
    except ValueError as error:
        raise ConfigError([f"{quoted(str(path))} is not a path: {error}"]) from error


def _parse(text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"not valid TOML: {error}"]) from error
    except RecursionError as error:
        raise ConfigError(["not valid TOML: lists or tables are nested too deeply"]) from error
    except ValueError as error:  # Python refuses to parse integers of many thousand digits
        raise ConfigError([f"not valid TOML: {error}"]) from error


def _build(draft: Draft, problems: Problems) -> Topology:
    """The topology of a draft; worth something only if no problem was noted."""
    name = _name(draft.file)
    title = draft.file.text("title") or ""
    nodes = _nodes(draft.nodes)
    if draft.is_graph_sound:
        _check_connected(draft, problems)
    links = _links(draft, {node.id: node for node in nodes}, problems)
    saes = _saes(draft)
    demands = _demands(draft, {sae.id for sae in saes})
    return Topology(
        name=name,
        title=title,
        nodes=tuple(nodes),
        links=tuple(links),
        saes=tuple(saes),
        demands=tuple(demands),
        tenants=tenants(draft.tenants, [sae.id for sae in saes], [node.id for node in nodes]),
        key_api=keyapi.key_api(draft.key_api),
        neighbours=neighbours(draft.neighbours, [node.id for node in nodes], [sae.id for sae in saes]),
    )


def _name(file: Entry) -> str:
    file.require("name", 'every network has one, such as name = "beijing-xiongan"')
    name = file.text("name")
    if name is not None and not is_node_id(name):
        file.wrong("name", f"{quoted(name)} is not a name: {ID_RULE}")
    return name or ""


def _nodes(entries: Mapping[str, Entry]) -> list[Node]:
    owners: dict[int, str] = {}
    return [_node(NodeId(name), entry, owners) for name, entry in entries.items()]


def _node(name: NodeId, entry: Entry, owners: dict[int, str]) -> Node:
    for given, needed in (("lat", "lon"), ("lon", "lat")):
        if entry.has(given):
            entry.require(needed, f"a node with {given} needs it")
    ports = _ports(entry, owners)
    return Node(
        id=name,
        name=entry.text("name") or "",
        name_local=entry.text("name_local") or "",
        latitude_deg=entry.number("lat", field.LATITUDE),
        longitude_deg=entry.number("lon", field.LONGITUDE),
        trust=1.0 if (trust := entry.number("trust", field.TRUST)) is None else trust,
        key_api_port=ports["key_api"],
        admin_api_port=ports["admin_api"],
        inter_node_port=ports["inter_node"],
        stream_api_port=ports["stream_api"],
        skip_api_port=ports["skip_api"],
        sdn_api_port=ports["sdn_api"],
    )


def _ports(node: Entry, owners: dict[int, str]) -> dict[str, int]:
    """The ports of a node. All nodes of a lab share one machine, so a port serves once in the whole file."""
    entry = node.below("ports", _PORT_KEYS)
    ports: dict[str, int] = {}
    for key in _PORT_KEYS:
        ports[key] = entry.whole(key, field.PORT) or 0
        if ports[key]:
            owner = owners.setdefault(ports[key], entry.at(key))
            if owner != entry.at(key):
                entry.wrong(key, f"{ports[key]} is already {owner}; each port serves once, 0 lets the lab choose")
    return ports


def _check_connected(draft: Draft, problems: Problems) -> None:
    """A key can get from every node to every other one."""
    neighbours: dict[str, list[str]] = {name: [] for name in draft.nodes}
    for span in draft.spans:
        neighbours[span.alice].append(span.bob)
        neighbours[span.bob].append(span.alice)
    unseen = dict.fromkeys(neighbours)
    parts: list[list[str]] = []
    while unseen:
        part: list[str] = []
        ahead = [next(iter(unseen))]
        del unseen[ahead[0]]
        while ahead:
            part.append(ahead.pop())
            fresh = [name for name in neighbours[part[-1]] if name in unseen]
            for name in dict.fromkeys(fresh):
                del unseen[name]
                ahead.append(name)
        parts.append(part)
    for part in parts:
        if not neighbours[part[0]]:
            problems.add(draft.nodes[part[0]].path, "no link leads here; name it in a trunk or ring")
    larger = [part for part in parts if neighbours[part[0]]]
    if len(larger) > 1:
        pieces = " | ".join(listed(sorted(part)) for part in larger)
        problems.add("trunks", f"the network is in {len(larger)} pieces: {pieces}; add a trunk that joins them")


def _links(draft: Draft, nodes: Mapping[str, Node], problems: Problems) -> list[Link]:
    defaults = {source: field.link_settings(entry) for source, entry in draft.defaults.items()}
    overall = field.NO_SETTINGS
    for entry in draft.all_links.values():
        overall = field.link_settings(entry).over(overall)
    exceptions = {name: field.link_settings(entry) for name, entry in draft.exceptions.items()}
    if draft.is_graph_sound:
        _check_exceptions(draft)
    return [
        _link(
            span,
            exceptions.get(span.id, field.NO_SETTINGS).over(overall).over(defaults[span.source]),
            *(draft, nodes, problems),
        )
        for span in draft.spans
    ]


def _link(span: Span, settings: LinkSettings, draft: Draft, nodes: Mapping[str, Node], problems: Problems) -> Link:
    equipment = msgspec.convert(
        {key: settings.numbers[key] for key in settings.numbers.keys() & field.EQUIPMENT_NUMBERS.keys()}
        | dict(settings.triples),
        Equipment,
    )
    distillation = msgspec.convert(
        {key: settings.numbers[key] for key in settings.numbers.keys() & field.DISTILLATION_NUMBERS.keys()}
        | dict(settings.choices),
        Distillation,
    )
    length_km = settings.numbers.get("length_km")
    if length_km is None:
        length_km = _length_from_map(span, draft, nodes, problems)
    loss_db = settings.numbers.get("loss_db")
    if loss_db is None:
        loss_db = _loss_from_length(span, length_km, equipment, problems)
    return Link(
        id=span.id,
        alice=span.alice,
        bob=span.bob,
        length_km=length_km,
        loss_db=loss_db,
        equipment=equipment,
        distillation=distillation,
        vendor=vendor_source(draft.exceptions.get(span.id), distillation),
    )


def _check_exceptions(draft: Draft) -> None:
    """Every `[links.x]` is about a link."""
    ids = [span.id for span in draft.spans]
    reverse = {f"{span.bob}-{span.alice}": span for span in draft.spans}
    for name, entry in draft.exceptions.items():
        if name in ids:
            continue
        if name in reverse:
            span = reverse[name]
            entry.reject(f"not a link; it is called {quoted(span.id)}, because {span.path} names {span.alice} first")
        else:
            entry.reject(f"not a link{choices(name, ids, 'links')}")


def _length_from_map(span: Span, draft: Draft, nodes: Mapping[str, Node], problems: Problems) -> float:
    """The likely fibre length between two sites on the map; 0 stands in where there is a problem."""
    path = child(span.at, "length_km")
    tables = [draft.defaults[span.source], *draft.all_links.values(), draft.exceptions.get(span.id)]
    if any(table is not None and table.has("length_km") for table in tables):
        return 0.0  # given and wrong: that is noted already
    points = [_point(nodes[end]) for end in (span.alice, span.bob)]
    if points[0] is None or points[1] is None:
        ends = [draft.nodes[end] for end in (span.alice, span.bob)]
        if not all(end.has("lat") or end.has("lon") for end in ends):
            problems.add(path, "missing; give it here or in [link], or give both nodes lat and lon")
        return 0.0
    length_km = geography.fibre_length_km(points[0], points[1])
    complaint = field.LENGTH_KM.complaint(length_km)
    if complaint is not None:
        problems.add(path, f"{complaint} (great circle x {geography.DETOUR}); add a node between, or give the length")
    return length_km


def _point(node: Node) -> geography.Point | None:
    if node.latitude_deg is None or node.longitude_deg is None:
        return None
    return node.latitude_deg, node.longitude_deg


def _loss_from_length(span: Span, length_km: float, equipment: Equipment, problems: Problems) -> float:
    loss_db = geography.fibre_loss_db(length_km, equipment.fibre_db_per_km, equipment.connector_loss_db)
    complaint = field.LOSS_DB.complaint(loss_db)
    if complaint is not None and length_km <= field.LENGTH_KM.high:
        path = child(span.at, "loss_db")
        problems.add(path, f"{complaint} (fibre_db_per_km x length_km + connector_loss_db)")
    return loss_db


def _saes(draft: Draft) -> list[Sae]:
    owners: dict[str, str] = {}
    entries: dict[SaeId, Entry] = {}
    saes: list[Sae] = []
    for entry in draft.saes:
        entry.require("id", "the SAE ID, such as finance-beijing")
        entry.require("node", "the node that serves this SAE")
        name = entry.text("id")
        node = entry.text("node")
        if node is not None and draft.are_nodes_known and node not in draft.nodes:
            entry.wrong("node", f"{quoted(node)} is not a node{choices(node, draft.nodes, 'nodes')}")
        if name is None:
            continue
        sae = _sae_id(name, entry)
        if sae is None:
            continue
        if sae in owners:
            entry.wrong("id", f"{quoted(name)} is already {owners[sae]}; SAE IDs are unique in the network")
            continue
        owners[sae] = entry.path
        entries[sae] = entry
        saes.append(Sae(id=sae, node=NodeId(node or ""), identities=keyapi.identities(entry)))
    keyapi.check_unambiguous(saes, entries)
    return saes


def _sae_id(name: str, entry: Entry) -> SaeId | None:
    try:
        return parse_sae_id(name)
    except RequestRefused as error:
        entry.wrong("id", f"{quoted(name)} is not an {error}")
        return None


def _demands(draft: Draft, saes: Collection[SaeId]) -> list[Demand]:
    owners: dict[frozenset[SaeId], str] = {}
    demands: list[Demand] = []
    for entry in draft.demands:
        entry.require("between", "the two SAEs that use the key")
        entry.require("rate_bps", "how much key they use, in bit/s")
        pair = _pair(entry, saes)
        rate_bps = entry.number("rate_bps", field.RATE)
        if pair is None or rate_bps is None:
            continue
        owner = owners.setdefault(frozenset(pair), entry.path)
        if owner != entry.path:
            entry.wrong("between", f"{pair[0]} and {pair[1]} are already {owner}; add the rates up")
        demands.append(Demand(between=pair, rate_bps=rate_bps))
    return demands


def _pair(entry: Entry, saes: Collection[SaeId]) -> tuple[SaeId, SaeId] | None:
    items = entry.items("between") if entry.has("between") else None
    if items is None:
        return None
    if len(items) != 2:
        entry.wrong("between", f"{len(items)} named; a demand is between two SAEs")
        return None
    pair: list[SaeId] = []
    for index, item in enumerate(items):
        if not isinstance(item, str):
            entry.wrong_item("between", index, f"{shown(item)} is not an SAE ID in quotes")
        elif item not in saes:
            entry.wrong_item("between", index, f"{quoted(item)} is not an SAE{choices(item, sorted(saes), 'SAEs')}")
        else:
            pair.append(SaeId(item))
    if len(pair) != 2:
        return None
    if pair[0] == pair[1]:
        entry.wrong("between", f"{quoted(pair[0])} twice; a demand is between two SAEs")
        return None
    return pair[0], pair[1]
