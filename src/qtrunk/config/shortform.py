"""Short forms of a topology file, rewritten to one canonical form.

`trunks` and `rings` become spans (pairs of neighbours), `"bank@beijing"` becomes `{id = "bank", node =
"beijing"}`, a node that only a trunk names becomes a node without details. What comes after knows this one
form only. Nothing here raises; every mistake goes to `Problems`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qtrunk.base.ids import LinkId, NodeId, is_node_id
from qtrunk.config.field import LINK_KEYS, Entry
from qtrunk.config.include import Gathered, Places, place
from qtrunk.config.keyapi import KEY_API_KEYS
from qtrunk.config.neighbour import NEIGHBOUR_KEYS
from qtrunk.config.problem import Problems, child, choices, quoted, shown
from qtrunk.config.tenant import TENANT_KEYS
from qtrunk.config.vendor import SOURCE_KEYS
from qtrunk.topology import link_id

FILE_KEYS = (
    *("name", "title", "trunks", "rings", "link", "links", "nodes", "saes", "demands", "tenants", "key_api"),
    *("neighbours", "include", "all_links"),
)
NODE_KEYS = ("name", "name_local", "lat", "lon", "trust", "ports")
SAE_KEYS = ("id", "node", "identities")
DEMAND_KEYS = ("between", "rate_bps")
ID_RULE = "1 to 63 of A-Z a-z 0-9 . _ -, a letter or digit first"
_RULE_OF_ROW = {"trunks": (2, "a trunk has at least 2 nodes"), "rings": (3, "a ring has at least 3 nodes")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Two neighbours in a trunk or ring; the transmitter is at `alice`, the node named first."""

    alice: NodeId
    bob: NodeId
    path: str
    """The trunk or ring that names it."""
    source: str = ""
    """The included file whose `[link]` holds for it; empty: the file itself."""

    @property
    def at(self) -> str:
        """The path of its own table, there or not."""
        return place(self.source, child("links", self.id))

    @property
    def id(self) -> LinkId:
        """The ID of the link."""
        return link_id(self.alice, self.bob)


@dataclass(frozen=True, slots=True)
class _Row:
    """A trunk or ring, where it stands and in which file."""

    path: str
    nodes: list[str]
    is_closed: bool
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A file in canonical form. IDs are as the file has them; fields are still unread."""

    file: Entry
    nodes: Mapping[str, Entry]
    spans: Sequence[Span]
    defaults: Mapping[str, Entry]
    """`[link]` of each file; the empty name is the file itself."""
    all_links: Mapping[str, Entry]
    """`[all_links]` of each file, included ones first, the file itself last."""
    exceptions: Mapping[str, Entry]
    saes: Sequence[Entry]
    demands: Sequence[Entry]
    tenants: Mapping[str, Entry]
    neighbours: Mapping[str, Entry]
    key_api: Entry
    are_nodes_known: bool
    """Whether `nodes` holds every node that the file means."""
    is_graph_sound: bool
    """Whether `nodes`, `trunks` and `rings` are free of mistakes, so that checks against them make sense."""


def rewrite(gathered: Gathered, problems: Problems) -> Draft:
    """The canonical form of a parsed file and all that it includes."""
    places = gathered.places
    file = Entry(gathered.document, "", problems, FILE_KEYS)
    given = _tables(file, "nodes", NODE_KEYS, places, problems)
    declared = given or {}
    before = len(problems)
    _check_ids(declared, problems)
    rows = [*_rows(file, "trunks", declared, places, problems), *_rows(file, "rings", declared, places, problems)]
    if not rows and len(problems) == before:
        problems.add("trunks", 'missing; a network needs a trunk or a ring, such as trunks = [["a", "b", "c"]]')
    spans = _spans(rows, problems)
    is_graph_sound = len(problems) == before and given is not None
    names = list(declared) or list(dict.fromkeys(name for row in rows for name in row.nodes))
    key_api = place(places.tables.get(("key_api", ""), ""), "key_api")
    return Draft(
        file=file,
        nodes=declared or {name: Entry({}, child("nodes", name), problems, ()) for name in names},
        spans=spans,
        defaults=_of_each(file, "link", gathered.defaults, problems),
        all_links=_of_each(file, "all_links", gathered.all_links, problems),
        exceptions=_tables(file, "links", (*LINK_KEYS, *SOURCE_KEYS), places, problems) or {},
        saes=_saes(file, places, problems),
        demands=_list_of_tables(file, "demands", DEMAND_KEYS, places, problems),
        tenants=_tables(file, "tenants", TENANT_KEYS, places, problems) or {},
        neighbours=_tables(file, "neighbours", NEIGHBOUR_KEYS, places, problems) or {},
        key_api=Entry(file.table("key_api") or {}, key_api, problems, KEY_API_KEYS),
        are_nodes_known=bool(declared) or is_graph_sound,
        is_graph_sound=is_graph_sound,
    )


def _of_each(file: Entry, key: str, included: Mapping[str, object], problems: Problems) -> dict[str, Entry]:
    """A table of link settings of every included file, then of the file itself, by file."""
    entries: dict[str, Entry] = {}
    for source, value in included.items():
        path = place(source, key)
        if not isinstance(value, dict):
            problems.add(path, f"{shown(value)} is not a table")
        entries[source] = Entry(value if isinstance(value, dict) else {}, path, problems, LINK_KEYS)
    entries[""] = file.below(key, LINK_KEYS)
    return entries


def _tables(file: Entry, key: str, keys: Sequence[str], places: Places, problems: Problems) -> dict[str, Entry] | None:
    """A table of tables; None where it is something else."""
    tables = file.table(key)
    if tables is None:
        return None
    found: dict[str, Entry] = {}
    for name, value in tables.items():
        path = places.table(key, name)
        if not isinstance(value, dict):
            problems.add(path, f"{shown(value)} is not a table")
        found[name] = Entry(value if isinstance(value, dict) else {}, path, problems, keys)
    return found


def _check_ids(declared: Mapping[str, Entry], problems: Problems) -> None:
    for name, entry in declared.items():
        if not is_node_id(name):
            problems.add(entry.path, f"{quoted(name)} is not a node ID: {ID_RULE}")


def _rows(file: Entry, key: str, declared: Mapping[str, Entry], places: Places, problems: Problems) -> list[_Row]:
    """The rows of `trunks` or `rings`. Rows with mistakes are left out."""
    rows: list[_Row] = []
    for index, value in enumerate(file.items(key) or ()):
        path = places.item(key, index)
        nodes = _row(value, path, declared, problems)
        if nodes is None:
            continue
        least, rule = _RULE_OF_ROW[key]
        if len(nodes) < least:
            problems.add(path, f"{len(nodes)} named; {rule}")
            continue
        rows.append(_Row(path, nodes, key == "rings", places.source(key, index)))
    return rows


def _row(value: object, path: str, declared: Mapping[str, Entry], problems: Problems) -> list[str] | None:
    if not isinstance(value, list):
        problems.add(path, f'{shown(value)} is not a list of node IDs; write [["a", "b"]], with two brackets')
        return None
    before = len(problems)
    names: list[str] = []
    for index, name in enumerate(value):
        at = f"{path}[{index}]"
        if not isinstance(name, str):
            problems.add(at, f"{shown(name)} is not a node ID in quotes")
        elif not is_node_id(name):
            problems.add(at, f"{quoted(name)} is not a node ID: {ID_RULE}")
        elif declared and name not in declared:
            problems.add(at, f"{quoted(name)} is not a node{choices(name, declared, 'nodes')}")
        elif name in names:
            problems.add(at, f"{quoted(name)} is already in this row; name each node once")
        else:
            names.append(name)
    return names if len(problems) == before else None


def _spans(rows: Sequence[_Row], problems: Problems) -> list[Span]:
    """Each pair of neighbours once; a link named twice, or an ID that two links would share, is a mistake."""
    by_ends: dict[frozenset[str], Span] = {}
    by_id: dict[LinkId, Span] = {}
    for row in rows:
        path = row.path
        followers = [*row.nodes[1:], row.nodes[0]] if row.is_closed else row.nodes[1:]
        for alice, bob in zip(row.nodes, followers, strict=False):
            span = Span(alice=NodeId(alice), bob=NodeId(bob), path=path, source=row.source)
            same_ends = by_ends.get(frozenset((alice, bob)))
            same_id = by_id.get(span.id)
            if same_ends is not None:
                problems.add(path, f"{alice} to {bob} is already a link of {same_ends.path}; name each link once")
            elif same_id is not None:
                problems.add(
                    path,
                    f"{alice} to {bob} would be called {quoted(span.id)}, as {same_id.alice} to {same_id.bob}"
                    f" of {same_id.path} is; change a node ID",
                )
            elif not is_node_id(span.id):
                problems.add(path, f"{alice} to {bob} needs a link ID of over 63 characters; shorten the node IDs")
            else:
                by_ends[frozenset((alice, bob))] = by_id[span.id] = span
    return list(by_id.values())


def _saes(file: Entry, places: Places, problems: Problems) -> list[Entry]:
    """SAEs, `"id@node"` or a table. An SAE ID may hold an @, a node ID may not: the last one parts them."""
    saes: list[Entry] = []
    for index, value in enumerate(file.items("saes") or ()):
        path = places.item("saes", index)
        if isinstance(value, str):
            name, at, node = value.rpartition("@")
            if at:
                saes.append(Entry({"id": name, "node": node}, path, problems, SAE_KEYS))
            else:
                problems.add(path, f'{quoted(value)} names no node; write "SAE@NODE"')
        elif isinstance(value, dict):
            saes.append(Entry(value, path, problems, SAE_KEYS))
        else:
            problems.add(path, f'{shown(value)} is not an SAE; write "SAE@NODE" or a table with id and node')
    return saes


def _list_of_tables(file: Entry, key: str, keys: Sequence[str], places: Places, problems: Problems) -> list[Entry]:
    found: list[Entry] = []
    for index, value in enumerate(file.items(key) or ()):
        path = places.item(key, index)
        if isinstance(value, dict):
            found.append(Entry(value, path, problems, keys))
        else:
            problems.add(path, f"{shown(value)} is not a table; write [[{key}]]")
    return found
