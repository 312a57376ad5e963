"""Alarms as scripts and people get them: the list of a whole network, doubles folded, what follows below its root."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from qtrunk.control.alarms import Alarm, OperatorState, Severity, alarm_id
from qtrunk.control.catalogue import entry, is_shared
from qtrunk.control.rootcause import Correlation, Seen, Tree, node_resource
from qtrunk.topology import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One alarm of one node."""

    id: str
    resource: str
    type: str
    qualifier: str = ""
    severity: str
    text: str
    is_cleared: bool = False
    raised_unix_s: float
    changed_unix_s: float
    cleared_unix_s: float | None = None
    count: int = 1
    operator_state: str = "none"
    operator: str = ""
    comment: str = ""
    shelved_until_unix_s: float | None = None
    probable_cause: str = ""
    remedy: str = ""
    impacted: list[str] = field(default_factory=list)
    root_causes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Row:
    """One line of the network's list."""

    alarm: Shown
    nodes: list[str]
    """Who says so."""
    parent: str = ""
    """ID of the alarm that this one follows from; empty for roots."""
    depth: int = 0
    followers: int = 0
    """How many lines are below this one, at any depth."""


def shown(alarm: Alarm) -> Shown:
    """For status and commands."""
    said = alarm.operator_changes[-1] if alarm.operator_changes else None
    row = entry(alarm.type)
    return Shown(
        id=alarm.id,
        resource=alarm.resource,
        type=alarm.type,
        qualifier=alarm.qualifier,
        severity=alarm.severity,
        text=alarm.text,
        is_cleared=alarm.is_cleared,
        raised_unix_s=alarm.raised_unix_s,
        changed_unix_s=alarm.changed_unix_s,
        cleared_unix_s=alarm.status_changes[-1].time_unix_s if alarm.is_cleared else None,
        count=alarm.count,
        operator_state=alarm.operator_state.value,
        operator=said.operator if said else "",
        comment=said.text if said else "",
        shelved_until_unix_s=alarm.shelved_until_unix_s,
        probable_cause=row.probable_cause,
        remedy=row.remedy,
        impacted=list(alarm.impacted),
        root_causes=list(alarm.root_causes),
    )


def is_heard(one: Shown) -> bool:
    """Whether anybody is to hear of it: it is up, and not on the shelf."""
    return not one.is_cleared and one.operator_state != OperatorState.SHELVED


def merged(
    said: Mapping[str, Sequence[Shown]],
    silent: Mapping[str, str],
    correlation: Correlation | None,
    topology: Topology | None,
    now_unix_s: float,
    silent_since: Mapping[str, float] | None = None,
) -> list[Row]:
    """What nodes say (by node), and which do not answer (with the reason), as one list: roots, the worst first, each
    followed by what follows from it; cleared alarms at the end, the last one first. Without a topology nothing is
    folded but what the nodes themselves found out. `silent_since`: Unix seconds, of the nodes that do not answer, as
    far as it is known.
    """
    found: dict[Seen, Shown] = {}
    for node, alarms in said.items():
        for one in alarms:
            if not one.is_cleared:
                found[Seen(node, one.resource, one.type, one.raised_unix_s, one.severity, one.text)] = one
    for seen in _unreachable(found, silent, topology, silent_since or {}, now_unix_s):
        found[seen] = _made_here(seen)
    if correlation is None:
        trees = [Tree(seen) for seen in found]
    else:
        for seen in correlation.find_dead(list(found), silent, now_unix_s):
            found[seen] = _made_here(seen)
        trees = correlation.trees(list(found))
    trees.sort(key=lambda tree: (-_worst(tree), tree.alarm.raised_unix_s))
    rows = [row for tree in trees for row in _rows(tree, found, "", 0)]
    cleared = [Row(one, [node]) for node, alarms in said.items() for one in alarms if one.is_cleared]
    return rows + sorted(cleared, key=lambda row: -row.alarm.changed_unix_s)


def _unreachable(
    found: Iterable[Seen],
    silent: Mapping[str, str],
    topology: Topology | None,
    silent_since: Mapping[str, float],
    now_unix_s: float,
) -> list[Seen]:
    """NodeUnreachable for who does not answer; since when is what its neighbours noticed, as far as they did."""
    lost = {seen.resource: seen.raised_unix_s for seen in found if seen.type == "ClassicalChannelLoss"}
    made = []
    for node, why in sorted(silent.items()):
        links = [] if topology is None else [str(link.id) for link in topology.links if node in (link.alice, link.bob)]
        since_s = min([lost[link] for link in links if link in lost], default=silent_since.get(node, now_unix_s))
        made.append(Seen("", node_resource(node), "NodeUnreachable", since_s, "critical", why))
    return made


def _made_here(seen: Seen) -> Shown:
    row = entry(seen.type)
    return Shown(
        id=alarm_id(seen.resource, seen.type),
        resource=seen.resource,
        type=seen.type,
        severity=seen.severity,
        text=seen.text,
        raised_unix_s=seen.raised_unix_s,
        changed_unix_s=seen.raised_unix_s,
        probable_cause=row.probable_cause,
        remedy=row.remedy,
    )


def _worst(tree: Tree) -> Severity:
    return Severity.of(tree.alarm.severity or "indeterminate")


def _rows(tree: Tree, found: Mapping[Seen, Shown], parent: str, depth: int) -> list[Row]:
    own = found[tree.alarm]
    row = Row(own, [tree.alarm.node] if tree.alarm.node else [], parent, depth)
    below: list[Row] = []
    folded: dict[tuple[str, str], Row] = {}
    for child in _children(tree):
        if (child.alarm.resource, child.alarm.type) == (own.resource, own.type) and is_shared(own.type):
            row.nodes.append(child.alarm.node)
            continue
        key = (child.alarm.resource, child.alarm.type)
        if key in folded and is_shared(child.alarm.type):
            folded[key].nodes.append(child.alarm.node)
            below += _rows(child, found, own.id, depth + 1)[1:]
            continue
        made = _rows(child, found, own.id, depth + 1)
        folded[key] = made[0]
        below += made
    row.followers = len(below)
    return [row, *below]


def _children(tree: Tree) -> list[Tree]:
    """A twin's children are one's own."""
    own = (tree.alarm.resource, tree.alarm.type)
    flat: list[Tree] = []
    for child in tree.children:
        flat.append(child)
        if (child.alarm.resource, child.alarm.type) == own:
            flat += child.children
    return flat


def without_shelved(rows: Sequence[Row]) -> list[Row]:
    """Rows as people get them: what is on the shelf is left out, unless something that is not follows from it."""
    ends = [place + 1 + row.followers for place, row in enumerate(rows)]
    heard = [row.alarm.operator_state != "shelved" for row in rows]
    return [row for place, row in enumerate(rows) if any(heard[place : ends[place]])]


def worst(rows: Collection[Row]) -> str:
    """The worst severity that is up and not shelved; `cleared` where nothing is."""
    up = [row.alarm for row in rows if is_heard(row.alarm)]
    return max((Severity.of(one.severity) for one in up), default=Severity.CLEARED).name.lower()
