"""Topology files that include others: from a file and all that it includes to one document that knows its places.

`include = ["yangtze-delta-ring", "sites/north.toml"]` names shipped topologies, or files relative to the file that
says so. Lists of all files follow each other, tables of tables are put together, included files first; a file that is
included on two ways counts once. No name overrides another: the same name twice is a clash unless both say the same.
`[link]` holds for the links that its own file names, `[all_links]` for those of included files as well. Nothing here
raises; every mistake goes to `Problems`, with the file before the field.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qtrunk.base.errors import ConfigError
from qtrunk.config.problem import Problems, child, choices, quoted, shown

LISTS = ("trunks", "rings", "saes", "demands")
TABLES = ("links", "nodes", "tenants", "neighbours")
ONE_OF_ALL = ("key_api",)
"""Tables that hold for the whole network: all files that have one say the same."""
OTHERS = ("link", "all_links", "name", "title", "include")
NESTED_MAX = 16


def place(source: str, path: str) -> str:
    """A path of the file `source`; the empty name is the file that is read itself."""
    return f"{source}: {path}" if source else path


@dataclass(frozen=True, slots=True)
class Places:
    """Where each part of a gathered document stands. Of a file that includes nothing: everything where it is."""

    items: Mapping[str, list[tuple[str, int]]] = field(default_factory=dict)
    tables: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def source(self, key: str, index: int) -> str:
        """The file that holds an item of a list."""
        return self.items[key][index][0] if key in self.items else ""

    def item(self, key: str, index: int) -> str:
        """The path of an item of a list."""
        source, own = self.items[key][index] if key in self.items else ("", index)
        return place(source, f"{key}[{own}]")

    def table(self, key: str, name: str) -> str:
        """The path of a table in a table of tables."""
        return place(self.tables.get((key, name), ""), child(key, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """A file and all that it includes."""

    document: Mapping[str, object]
    places: Places = field(default_factory=Places)
    defaults: Mapping[str, object] = field(default_factory=dict)
    """What included files have under `link`, by file; the file's own is in the document."""
    all_links: Mapping[str, object] = field(default_factory=dict)
    """The same of `all_links`; a file comes after those that it includes."""


@dataclass(frozen=True, slots=True)
class _Source:
    """One file of several."""

    label: str
    document: Mapping[str, object]


@dataclass(slots=True)
class _Reader:
    """Follows includes, depth first."""

    read: Callable[[Path], dict[str, object]]
    shipped: Callable[[str], Path | None]
    problems: Problems
    sources: list[_Source] = field(default_factory=list)
    seen: set[Path] = field(default_factory=set)

    def follow(self, source: _Source, directory: Path, chain: tuple[tuple[str, Path], ...]) -> None:
        """Note every file that `source` includes, then itself."""
        given = source.document.get("include", [])
        if not isinstance(given, list):
            self.problems.add(place(source.label, "include"), f"{shown(given)} is not a list of files")
            given = []
        for index, name in enumerate(given):
            self._one(place(source.label, f"include[{index}]"), name, source, directory, chain)
        self.sources.append(source)

    def _one(
        self, at: str, name: object, source: _Source, directory: Path, chain: tuple[tuple[str, Path], ...]
    ) -> None:
        if not isinstance(name, str) or not name:
            self.problems.add(at, f"{shown(name)} is not the name of a shipped topology or a file, in quotes")
            return
        known = self.shipped(name)
        path = known or _file(directory, name)
        if path is None:
            self.problems.add(at, f"{quoted(name)} is neither a file beside this one nor a shipped topology")
            return
        label = name if known else os.path.normpath(Path(source.label).parent / name)
        label = label if label.isprintable() else quoted(label)
        steps = [*chain, (label, path)]
        if any(path == before for _, before in chain):
            first = next(number for number, (_, before) in enumerate(chain) if before == path)
            self.problems.add(at, f"goes round in a circle: {' > '.join(quoted(step) for step, _ in steps[first:])}")
        elif len(chain) > NESTED_MAX:
            self.problems.add(at, f"more than {NESTED_MAX} files include each other in a row")
        elif path not in self.seen:
            self.seen.add(path)
            try:
                document = self.read(path)
            except ConfigError as error:
                for line in error.problems:
                    self.problems.add(at, line)
                return
            self.follow(_Source(label, document), path.parent, tuple(steps))


def _file(directory: Path, name: str) -> Path | None:
    try:
        path = (directory / name).resolve()
        return path if path.is_file() else None
    except (OSError, ValueError):  # a name too long for a file, or with a null in it
        return None


def gather(
    document: Mapping[str, object],
    path: Path | None,
    read: Callable[[Path], dict[str, object]],
    shipped: Callable[[str], Path | None],
    problems: Problems,
) -> Gathered:
    """The document with all that it includes.

    `path` is its own file, None for mere text (whose relative paths begin at the working directory). `read` gives the
    document of a file or raises ConfigError; `shipped` gives the file of a shipped topology by its name.
    """
    if "include" not in document:
        return Gathered(document=document)
    reader = _Reader(read, shipped, problems)
    here = Path.cwd() if path is None else path.resolve().parent
    chain = () if path is None else ((path.name, path.resolve()),)
    reader.follow(_Source("", document), here, chain)
    return _merged(reader.sources, problems)


def _merged(sources: list[_Source], problems: Problems) -> Gathered:
    own = sources[-1].document
    known = (*LISTS, *TABLES, *ONE_OF_ALL, *OTHERS)
    merged: dict[str, object] = {key: value for key, value in own.items() if key not in (*LISTS, *TABLES, *ONE_OF_ALL)}
    items: dict[str, list[tuple[str, int]]] = {key: [] for key in LISTS}
    tables: dict[tuple[str, str], str] = {}
    for source in sources:
        for key in source.document:
            if key not in known and source.label:
                problems.add(place(source.label, child("", key)), f"unknown key{choices(key, known, 'keys')}")
        for key in LISTS:
            _add_list(merged, items[key], key, source, problems)
        for key in TABLES:
            _add_tables(merged, tables, key, source, problems)
        for key in ONE_OF_ALL:
            _add_common(merged, tables, key, source, problems)
    _declare(sources, merged, tables)
    return Gathered(
        document=merged,
        places=Places(items, tables),
        defaults={source.label: source.document.get("link", {}) for source in sources if source.label},
        all_links={source.label: source.document.get("all_links", {}) for source in sources if source.label},
    )


def _add_list(
    merged: dict[str, object], items: list[tuple[str, int]], key: str, source: _Source, problems: Problems
) -> None:
    value = source.document.get(key, [])
    if not isinstance(value, list):
        problems.add(place(source.label, key), f"{shown(value)} is not a list")
        return
    together = merged.setdefault(key, [])
    assert isinstance(together, list)
    together.extend(value)
    items.extend((source.label, index) for index in range(len(value)))


def _add_tables(
    merged: dict[str, object], tables: dict[tuple[str, str], str], key: str, source: _Source, problems: Problems
) -> None:
    value = source.document.get(key, {})
    if not isinstance(value, dict):
        problems.add(place(source.label, key), f"{shown(value)} is not a table")
        return
    together = merged.setdefault(key, {})
    assert isinstance(together, dict)
    for name, table in value.items():
        if name not in together:
            together[name] = table
            tables[key, name] = source.label
        elif together[name] != table:
            at = child(key, name)
            first = place(tables[key, name], at)
            problems.add(place(source.label, at), f"is already {first}{_in_own(tables[key, name])}, and differs")


def _add_common(
    merged: dict[str, object], tables: dict[tuple[str, str], str], key: str, source: _Source, problems: Problems
) -> None:
    if key not in source.document:
        return
    if key not in merged:
        merged[key] = source.document[key]
        tables[key, ""] = source.label
    elif merged[key] != source.document[key]:
        first = tables[key, ""]
        problems.add(place(source.label, key), f"is already {place(first, key)}{_in_own(first)}, and differs")


def _in_own(label: str) -> str:
    return "" if label else " of this file"


def _declare(sources: list[_Source], merged: dict[str, object], tables: dict[tuple[str, str], str]) -> None:
    """A whole file without `[nodes.…]` has the nodes that its rows name, also where others declare theirs."""
    nodes = merged.setdefault("nodes", {})
    assert isinstance(nodes, dict)
    if not nodes:
        return
    for source in sources:
        if "nodes" in source.document or "include" in source.document:
            continue
        for key in ("trunks", "rings"):
            rows = source.document.get(key, [])
            for row in rows if isinstance(rows, list) else []:
                for name in row if isinstance(row, list) else []:
                    if isinstance(name, str) and name not in nodes:
                        nodes[name] = {}
                        tables["nodes", name] = source.label
