"""What a RESTCONF request would change: leaves that get a value, or lose theirs. Checked whole, nothing is done here.

Only leaves that the table calls writable change. Other configuration in a body must be what is there already, so that a
client may read an entry's configuration, change a leaf of it and put it back; state in a body is refused.
"""

from collections.abc import Mapping

from qtrunk.api.restconfdocs import Problem
from qtrunk.api.yangtree import Container, Leaf, LeafList, ListOf, Node, Path, Step, problem_of

Edits = dict[Path, object]
"""New values; None: let go of the value, the default returns."""


def edits_of(
    method: str,
    module: str,
    root: str,
    path: Path,
    node: Node,
    value: object,
    body: Mapping[str, object] | None,
    explicit: Mapping[Path, object],
) -> Edits:
    """The edits of one request on the resource at `path`, whose value is `value`; Problem where it cannot be."""
    below = {leaf for leaf in explicit if leaf[: len(path)] == path}
    if method == "DELETE":
        return _deleted(path, node, below)
    assert body is not None
    if len(body) != 1:
        raise Problem(400, "malformed-message", "body: one member is needed")
    (name, given), *_ = body.items()
    prefix, colon, plain = name.rpartition(":")
    if colon and prefix != module:
        raise Problem(400, "unknown-namespace", f"body: {prefix[:60]} is not the module here")
    gather = _Gather(module)
    if method == "POST":
        return _created(path, node, value, plain, given, gather, explicit)
    expected = path[-1].name if path else root
    if plain != expected:
        raise Problem(400, "unknown-element", f"body: {module}:{expected} is needed")
    if isinstance(node, ListOf):
        if not isinstance(given, list) or len(given) != 1:
            raise Problem(400, "invalid-value", f"{expected}: an array of one entry is needed")
        gather.entry(path, node, given[0], value)
    else:
        gather.node(path, node, given, value)
    if method == "PUT":
        gather.edits.update({leaf: None for leaf in below if leaf not in gather.edits})
    return gather.edits


def _deleted(path: Path, node: Node, below: set[Path]) -> Edits:
    is_entry = isinstance(node, ListOf) or not path
    if is_entry or not _is_writable(node):
        what = "an entry follows from the topology" if is_entry else "it is not to be changed here"
        raise Problem(405, "operation-not-supported", f"DELETE: {what}", path, headers={"Allow": "GET, HEAD"})
    if not below:
        raise Problem(404, "invalid-value", "nothing was set here", path)
    return dict.fromkeys(below)


def _created(
    path: Path,
    node: Node,
    value: object,
    name: str,
    given: object,
    gather: "_Gather",
    explicit: Mapping[Path, object],
) -> Edits:
    child = node.children.get(name) if isinstance(node, Container | ListOf) else None
    if child is None:
        raise Problem(400, "unknown-element", f"body: no {name[:60]!r} below this resource")
    assert isinstance(value, dict)
    if isinstance(child, ListOf):
        entries = given if isinstance(given, list) else [given]
        keys = {str(entry.get(child.key)).lower() for entry in entries if isinstance(entry, dict)}
        held = value.get(name)
        there = {str(entry[child.key]).lower() for entry in held} if isinstance(held, list) else set()
        if keys & there:
            raise Problem(409, "data-exists", f"{name}: this entry is there already", (*path, Step(name)))
        why = f"{name}: entries follow from the topology and from who asks for key; none can be made here"
        raise Problem(405, "operation-not-supported", why, (*path, Step(name)), headers={"Allow": "GET, HEAD"})
    target = (*path, Step(name))
    if any(leaf[: len(target)] == target for leaf in explicit) or (not isinstance(child, Leaf) and name in value):
        raise Problem(409, "data-exists", f"{name}: it is set already", target)
    gather.node(target, child, given, value.get(name))
    if not gather.edits:
        raise Problem(409, "data-exists", f"{name}: it has this value already", target)
    return gather.edits


class _Gather:
    """Walks through a body beside the schema and what is there."""

    def __init__(self, module: str) -> None:
        self._module = module
        self.edits: Edits = {}

    def node(self, path: Path, node: Node, given: object, held: object) -> None:
        """One node of the body."""
        if not node.config:
            raise Problem(400, "invalid-value", "state cannot be written", path)
        match node:
            case Leaf():
                self._leaf(path, node, given, held)
            case LeafList():
                if given != held:
                    raise _fixed(path)
            case Container():
                self._children(path, node, given, held)
            case ListOf():
                self._entries(path, node, given, held)

    def entry(self, path: Path, node: ListOf, given: object, held: object) -> None:
        """One entry of a list; `path` names it."""
        key = given.get(node.key) if isinstance(given, dict) else None
        if str(key).lower() != str(path[-1].key).lower():
            raise Problem(400, "invalid-value", f"{node.key}: the key in the path is needed", path)
        self._children(path, node, given, held)

    def _leaf(self, path: Path, leaf: Leaf, given: object, held: object) -> None:
        if leaf.is_writable:
            wrong = problem_of(leaf, given)
            if wrong:
                raise Problem(400, "invalid-value", f"{path[-1].name}: {wrong}", path)
            self.edits[path] = given
        elif given != held:
            raise _fixed(path)

    def _children(self, path: Path, node: Container | ListOf, given: object, held: object) -> None:
        if not isinstance(given, dict):
            raise Problem(400, "invalid-value", f"{path[-1].name if path else 'body'}: an object is needed", path)
        there = held if isinstance(held, dict) else {}
        for name, value in given.items():
            prefix, colon, plain = str(name).rpartition(":")
            child = node.children.get(plain)
            if child is None or (colon and prefix != self._module):
                raise Problem(400, "unknown-element", f"{str(name)[:60]!r} is not known here", path)
            if isinstance(node, ListOf) and plain == node.key:
                continue
            self.node((*path, Step(plain)), child, value, there.get(plain))

    def _entries(self, path: Path, node: ListOf, given: object, held: object) -> None:
        if not isinstance(given, list):
            raise Problem(400, "invalid-value", f"{path[-1].name}: an array is needed", path)
        there = {str(entry[node.key]).lower(): entry for entry in held} if isinstance(held, list) else {}
        for value in given:
            key = str(value.get(node.key) if isinstance(value, dict) else None).lower()
            entry = there.get(key)
            if entry is None:
                raise Problem(400, "operation-not-supported", f"{path[-1].name}: no entry {key[:60]!r} is here", path)
            self.entry((*path[:-1], Step(path[-1].name, str(entry[node.key]))), node, value, entry)


def _fixed(path: Path) -> Problem:
    return Problem(400, "operation-not-supported", f"{path[-1].name}: this server does not let it be changed", path)


def _is_writable(node: Node) -> bool:
    match node:
        case Leaf():
            return node.is_writable
        case Container():
            return any(_is_writable(child) for child in node.children.values())
        case _:
            return False
