"""What controllers keep: versions of topology and routes, telemetry, alarms, heads of audit logs. Never key.

All of them share it, so who takes over knows what the one before knew.
"""

from collections.abc import Mapping

import msgspec

from qtrunk.control.telemetry import Telemetry
from qtrunk.node.controller.database import Database, script

KEPT_S = 7 * 86400.0
SCHEMA = (
    (
        "CREATE TABLE IF NOT EXISTS topology (version integer PRIMARY KEY, made_unix_s double precision NOT NULL, "
        "document text NOT NULL)"
    ),
    (
        "CREATE TABLE IF NOT EXISTS orders (fencing bigint NOT NULL, version bigint NOT NULL, "
        "made_unix_s double precision NOT NULL, controller text NOT NULL, document text NOT NULL, "
        "PRIMARY KEY (fencing, version))"
    ),
    (
        "CREATE TABLE IF NOT EXISTS telemetry (node text NOT NULL, at_unix_s double precision NOT NULL, "
        "document text NOT NULL, PRIMARY KEY (node, at_unix_s))"
    ),
    (
        "CREATE TABLE IF NOT EXISTS alarms (node text NOT NULL, resource text NOT NULL, type text NOT NULL, "
        "raised_unix_s double precision NOT NULL, severity text NOT NULL, text text NOT NULL, "
        "cleared_unix_s double precision, PRIMARY KEY (node, resource, type, raised_unix_s))"
    ),
    (
        "CREATE TABLE IF NOT EXISTS audit_heads (node text NOT NULL, sequence bigint NOT NULL, hash text NOT NULL, "
        "seen_unix_s double precision NOT NULL, PRIMARY KEY (node, sequence))"
    ),
)


class ControlStore:
    """The controllers' common memory."""

    def __init__(self, database: Database) -> None:
        self._database = database
        script(database, SCHEMA)

    def note_topology(self, topology: Mapping[str, object], now_unix_s: float) -> int:
        """The version of this topology, a new one if it is not the last."""
        document = msgspec.json.encode(topology, order="sorted").decode()
        rows = self._database.run("SELECT version, document FROM topology ORDER BY version DESC LIMIT 1")
        if rows and rows[0][1] == document:
            return int(rows[0][0])
        version = int(rows[0][0]) + 1 if rows else 1
        self._database.run(
            "INSERT INTO topology VALUES (?, ?, ?) ON CONFLICT (version) DO NOTHING", version, now_unix_s, document
        )
        return version

    def last_version(self) -> int:
        """The highest version of routes that anybody made, 0 if none."""
        return int(self._database.run("SELECT coalesce(max(version), 0) FROM orders")[0][0])

    def note_orders(self, fencing: int, version: int, controller: str, routes: object, now_unix_s: float) -> None:
        """A plan, before it is handed out."""
        self._database.run(
            "INSERT INTO orders VALUES (?, ?, ?, ?, ?) ON CONFLICT (fencing, version) DO NOTHING",
            *(fencing, version, now_unix_s, controller, msgspec.json.encode(routes).decode()),
        )

    def note_telemetry(self, telemetry: Telemetry, now_unix_s: float) -> None:
        """What a node said: the whole, its alarms by themselves, the head of its audit log."""
        document = msgspec.json.encode(telemetry).decode()
        self._database.run(
            "INSERT INTO telemetry VALUES (?, ?, ?) ON CONFLICT (node, at_unix_s) DO NOTHING",
            *(telemetry.node, now_unix_s, document),
        )
        self._note_alarms(telemetry, now_unix_s)
        head = telemetry.audit
        if head.sequence:
            self._database.run(
                "INSERT INTO audit_heads VALUES (?, ?, ?, ?) ON CONFLICT (node, sequence) DO NOTHING",
                *(telemetry.node, head.sequence, head.hash, now_unix_s),
            )

    def _note_alarms(self, telemetry: Telemetry, now_unix_s: float) -> None:
        active = {(a.resource, a.type, a.raised_unix_s): a for a in telemetry.alarms.active}
        rows = self._database.run(
            "SELECT resource, type, raised_unix_s FROM alarms WHERE node = ? AND cleared_unix_s IS NULL", telemetry.node
        )
        for resource, type_, raised in rows:
            if (resource, type_, raised) not in active:
                self._database.run(
                    "UPDATE alarms SET cleared_unix_s = ? WHERE node = ? AND resource = ? AND type = ? "
                    "AND raised_unix_s = ?",
                    *(now_unix_s, telemetry.node, resource, type_, raised),
                )
        known = {tuple(row) for row in rows}
        for key, alarm in active.items():
            if key not in known:
                self._database.run(
                    "INSERT INTO alarms VALUES (?, ?, ?, ?, ?, ?, NULL) "
                    "ON CONFLICT (node, resource, type, raised_unix_s) DO NOTHING",
                    *(telemetry.node, alarm.resource, alarm.type, alarm.raised_unix_s, alarm.severity, alarm.text),
                )

    def altered_audit(self, telemetry: Telemetry) -> bool:
        """Whether a node's audit log has another record, or fewer, than it had when it was last seen."""
        rows = self._database.run(
            "SELECT sequence, hash FROM audit_heads WHERE node = ? ORDER BY sequence DESC LIMIT 1", telemetry.node
        )
        head = telemetry.audit
        if not rows or not head.sequence:
            return False
        sequence, seen = int(rows[0][0]), str(rows[0][1])
        return head.sequence < sequence or (head.sequence == sequence and head.hash != seen)

    def alarms(self, limit: int = 200) -> list[dict[str, object]]:
        """The newest alarms first, over or not."""
        names = ("node", "resource", "type", "raised_unix_s", "severity", "text", "cleared_unix_s")
        rows = self._database.run(f"SELECT {', '.join(names)} FROM alarms ORDER BY raised_unix_s DESC LIMIT {limit:d}")  # noqa: S608
        return [dict(zip(names, row, strict=True)) for row in rows]

    def forget(self, now_unix_s: float) -> None:
        """Telemetry and closed alarms that are older than KEPT_S."""
        self._database.run("DELETE FROM telemetry WHERE at_unix_s < ?", now_unix_s - KEPT_S)
        self._database.run("DELETE FROM alarms WHERE cleared_unix_s < ?", now_unix_s - KEPT_S)
        self._database.run("DELETE FROM orders WHERE made_unix_s < ?", now_unix_s - 4 * KEPT_S)
