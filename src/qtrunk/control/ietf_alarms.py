"""An alarm list as the JSON of the YANG module `ietf-alarms` (RFC 8632; JSON encoding of YANG data: RFC 7951)."""

import datetime as dt
from collections.abc import Sequence

from qtrunk.control.alarms import CHANGES_MAX, Alarm, Severity
from qtrunk.control.catalogue import CATALOGUE, entry

SHELF_NAME = "operator"
_SEVERITIES = [one for one in Severity if one is not Severity.CLEARED]


def date_and_time(unix_s: float) -> str:
    """`yang:date-and-time`, UTC, with milliseconds."""
    return dt.datetime.fromtimestamp(unix_s, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def document(alarms: Sequence[Alarm], changed_unix_s: float) -> dict[str, object]:
    """`/al:alarms`: inventory, summary, list, shelf."""
    listed = [alarm for alarm in alarms if not alarm.is_shelved]
    shelved = [alarm for alarm in alarms if alarm.is_shelved]
    return {
        "ietf-alarms:alarms": {
            "control": {"max-alarm-status-changes": CHANGES_MAX, "notify-status-changes": "all-state-changes"},
            "alarm-inventory": {"alarm-type": [_inventory(type_) for type_ in CATALOGUE]},
            "summary": {
                "alarm-summary": [_summary(listed, severity) for severity in reversed(_SEVERITIES)],
                # A leaf of the type `empty` is there or not (RFC 7951 section 6.9).
                **({"shelves-active": [None]} if shelved else {}),
            },
            "alarm-list": {
                "number-of-alarms": len(listed),
                "last-changed": date_and_time(changed_unix_s),
                "alarm": [_alarm(alarm) for alarm in listed],
            },
            "shelved-alarms": {
                "number-of-shelved-alarms": len(shelved),
                "shelved-alarms-last-changed": date_and_time(changed_unix_s),
                "shelved-alarm": [{**_alarm(alarm), "shelf-name": SHELF_NAME} for alarm in shelved],
            },
        }
    }


def type_id(type_: str) -> str:
    """The YANG identity of a type (`alarm-type-id`)."""
    return f"qtrunk-alarms:{type_}"


def _inventory(type_: str) -> dict[str, object]:
    row = entry(type_)
    return {
        "alarm-type-id": type_id(type_),
        "alarm-type-qualifier": "",
        "will-clear": True,
        "severity-level": [row.severity],
        "description": f"{row.meaning}. Probable cause (X.733): {row.probable_cause}. What to do: {row.remedy}",
    }


def _summary(alarms: Sequence[Alarm], severity: Severity) -> dict[str, object]:
    of_it = [alarm for alarm in alarms if Severity.of(alarm.severity) is severity]
    return {
        "severity": severity.name.lower(),
        "total": len(of_it),
        "not-cleared": sum(not alarm.is_cleared for alarm in of_it),
        "cleared": sum(alarm.is_cleared for alarm in of_it),
        "cleared-not-closed": sum(alarm.is_cleared and alarm.operator_state != "closed" for alarm in of_it),
        "cleared-closed": sum(alarm.is_cleared and alarm.operator_state == "closed" for alarm in of_it),
        "not-cleared-closed": sum(not alarm.is_cleared and alarm.operator_state == "closed" for alarm in of_it),
        "not-cleared-not-closed": sum(not alarm.is_cleared and alarm.operator_state != "closed" for alarm in of_it),
    }


def _alarm(alarm: Alarm) -> dict[str, object]:
    return {
        "resource": alarm.resource,
        "alarm-type-id": type_id(alarm.type),
        "alarm-type-qualifier": alarm.qualifier,
        "impacted-resource": alarm.impacted,
        "root-cause-resource": alarm.root_causes,
        "time-created": date_and_time(alarm.created_unix_s),
        "is-cleared": alarm.is_cleared,
        "last-raised": date_and_time(alarm.raised_unix_s),
        "last-changed": date_and_time(alarm.changed_unix_s),
        "perceived-severity": alarm.severity,
        # That of the last change of state, as the module demands; figures in the text move between changes.
        "alarm-text": alarm.status_changes[-1].text,
        "status-change": [
            {
                "time": date_and_time(change.time_unix_s),
                "perceived-severity": change.severity,
                "alarm-text": change.text,
            }
            for change in reversed(alarm.status_changes)
        ],
        "operator-state-change": [
            {
                "time": date_and_time(change.time_unix_s),
                "operator": change.operator,
                "state": change.state,
                "text": change.text,
            }
            for change in alarm.operator_changes
        ],
        "qtrunk-alarms:id": alarm.id,
        "qtrunk-alarms:count": alarm.count,
    }
