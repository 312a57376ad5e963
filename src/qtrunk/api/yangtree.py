"""A data tree as a YANG module has it, as far as RESTCONF needs to know: names, keys, types, what is configuration.

Values are those of RFC 7951 (JSON): containers are objects, lists are arrays of objects, decimal64 is text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

UINT32_MAX = (1 << 32) - 1
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value. `type` is the YANG base type or the name of a well-known derived one (`uuid`, `uri`)."""

    type: str = "string"
    config: bool = True
    is_writable: bool = False
    """Whether this server takes a value; it may not, though the model calls it configuration."""


@dataclass(frozen=True, slots=True)
class LeafList:
    """Several values."""

    type: str = "string"
    config: bool = True


@dataclass(frozen=True, slots=True)
class Container:
    """Named children."""

    children: "Mapping[str, Node]"
    config: bool = True


@dataclass(frozen=True, slots=True)
class ListOf:
    """Entries, told apart by one key leaf."""

    key: str
    children: "Mapping[str, Node]"
    config: bool = True


Node = Leaf | LeafList | Container | ListOf


@dataclass(frozen=True, slots=True)
class Step:
    """One part of a way into the tree: a child's name and, for an entry of a list, its key."""

    name: str
    key: str | None = None

    def __str__(self) -> str:
        return self.name if self.key is None else f"{self.name}={self.key}"


Path = tuple[Step, ...]


def problem_of(leaf: Leaf, value: object) -> str:
    """What is wrong with a value for a leaf that this server takes; empty if nothing."""
    match leaf.type:
        case "boolean":
            return "" if isinstance(value, bool) else "true or false is needed"
        case "uint32":
            is_whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= UINT32_MAX
            return "" if is_whole else f"a whole number from 0 to {UINT32_MAX} is needed"
        case "uuid":
            return "" if isinstance(value, str) and _UUID.fullmatch(value) else "a UUID is needed"
        case _:
            return "" if isinstance(value, str) else "a string is needed"


def config_of(node: Node, value: object) -> object:
    """The configuration in a value of the tree; None where there is none."""
    return _kept(node, value, is_config=True)


def state_of(node: Node, value: object) -> object:
    """The state in a value of the tree, with the keys and containers on the way to it; None where there is none."""
    return _kept(node, value, is_config=False)


def _kept(node: Node, value: object, *, is_config: bool) -> object:
    if not node.config:
        return None if is_config else value
    if isinstance(node, Leaf | LeafList):
        return value if is_config else None
    if isinstance(node, ListOf):
        assert isinstance(value, list)
        entries = [_children(node, entry, is_config=is_config) for entry in value]
        return [entry for entry in entries if set(entry) - {node.key} or is_config]
    assert isinstance(value, dict)
    kept = _children(node, value, is_config=is_config)
    return kept or (kept if is_config else None)


def _children(node: Container | ListOf, value: Mapping[str, object], *, is_config: bool) -> dict[str, object]:
    kept = {}
    for name, child in value.items():
        found = _kept(node.children[name], child, is_config=is_config)
        if isinstance(node, ListOf) and name == node.key:
            found = child
        if found is not None and found != []:
            kept[name] = found
    return kept


def pruned(value: object, depth: int) -> object:
    """The upper `depth` levels of a value (RFC 8040 clause 4.8.2); 1 is the value itself with empty children."""
    if isinstance(value, dict):
        return {name: pruned(child, depth - 1) for name, child in value.items()} if depth > 1 else {}
    if isinstance(value, list):
        return [pruned(entry, depth) for entry in value]
    return value
