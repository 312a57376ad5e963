"""A controller's alarms: what all nodes say, folded to roots over the whole network (`control.networkview`). No I/O."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qtrunk.base.ids import NodeId
from qtrunk.control.alarms import Severity, alarm_id
from qtrunk.control.catalogue import entry
from qtrunk.control.networkview import Row, Shown, is_heard, merged, without_shelved, worst
from qtrunk.control.rootcause import Correlation
from qtrunk.control.telemetry import AlarmTelemetry, Telemetry
from qtrunk.topology import Topology

SEVERITIES = ("critical", "major", "minor", "warning", "indeterminate")


def rows(
    correlation: Correlation,
    topology: Topology,
    answering: Iterable[Telemetry],
    silent: Mapping[NodeId, float],
    now_unix_s: float,
) -> list[Row]:
    """Of nodes that answer, and of those that do not (and for how long, in s)."""
    said = {one.node: [_shown(alarm) for alarm in (*one.alarms.active, *one.alarms.shelved)] for one in answering}
    whys = {str(node): f"node {node} does not answer the controller" for node in silent}
    since = {str(node): now_unix_s - age_s for node, age_s in silent.items()}
    return merged(said, whys, correlation, topology, now_unix_s, since)


def documents(
    found: Sequence[Row], correlation: Correlation, topology: Topology, pairs: Iterable[tuple[str, str]]
) -> list[dict[str, Any]]:
    """As the northbound interface gives them, without what is on the shelf; `pairs`: whose pools may suffer."""
    pairs = list(pairs)
    links = {str(link.id) for link in topology.links}
    made: list[dict[str, Any]] = []
    root = ""
    for row in without_shelved(found):
        resource = _resource(row, links)
        root = resource if row.depth == 0 else root
        alarm = row.alarm
        made.append(
            {
                "id": alarm.id,
                "resource": resource,
                "type": alarm.type,
                "qualifier": alarm.qualifier,
                "severity": alarm.severity,
                "text": alarm.text,
                "nodes": sorted(row.nodes),
                "raised_unix_s": alarm.raised_unix_s,
                "changed_unix_s": alarm.changed_unix_s,
                "count": alarm.count,
                "probable_cause": alarm.probable_cause,
                "remedy": alarm.remedy,
                "impacted": correlation.impact(alarm.resource, pairs),
                "root_cause": root if row.depth else None,
                "depth": row.depth,
                "followers": row.followers,
                "operator_state": alarm.operator_state,
                "operator": alarm.operator,
                "comment": alarm.comment,
            }
        )
    return made


def summary(found: Sequence[Row]) -> dict[str, Any]:
    """Counts of what is up, by severity: all, and roots alone; what is on the shelf is counted by itself."""
    up = [row for row in found if is_heard(row.alarm)]
    roots = [row for row in up if row.depth == 0]
    return {
        "worst": worst(up),
        "total": len(up),
        "roots": len(roots),
        "shelved": len(found) - len(up),
        "by_severity": _counts(up),
        "roots_by_severity": _counts(roots),
    }


def _counts(found: Iterable[Row]) -> dict[str, int]:
    words = [row.alarm.severity for row in found]
    return {severity: words.count(severity) for severity in SEVERITIES}


def _resource(row: Row, links: set[str]) -> str:
    """A part of a node, such as its disk, with the node's name before it; anything else is the network's."""
    is_own = entry(row.alarm.type).on == "own" and row.alarm.resource not in links
    return f"{row.nodes[0]}/{row.alarm.resource}" if is_own and row.nodes else row.alarm.resource


def _shown(alarm: AlarmTelemetry) -> Shown:
    row = entry(alarm.type)
    try:
        severity = Severity.of(alarm.severity).name.lower()
    except ValueError:
        # A node of another version may have other words; a list with one of them is better than none.
        severity = "indeterminate"
    return Shown(
        id=alarm.id or alarm_id(alarm.resource, alarm.type, alarm.qualifier),
        resource=alarm.resource,
        type=alarm.type,
        qualifier=alarm.qualifier,
        severity=severity,
        text=alarm.text,
        raised_unix_s=alarm.raised_unix_s,
        changed_unix_s=alarm.changed_unix_s or alarm.raised_unix_s,
        count=alarm.count,
        operator_state=alarm.operator_state,
        operator=alarm.operator,
        comment=alarm.comment,
        probable_cause=row.probable_cause,
        remedy=row.remedy,
    )
