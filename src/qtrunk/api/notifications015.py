"""The notifications of ETSI GS QKD 015 V2.1.1: what a controller should hear of a node since the last look."""

from dataclasses import dataclass, field

from qtrunk.api.etsi015 import (
    AlarmView,
    Document,
    LinkView,
    NodeView,
    app_details,
    interface,
    interface_item,
    interface_number,
    performance,
    qos_document,
    timestamp,
)
from qtrunk.api.schema015 import MODULE, identity

PERFORMANCE_STEP = 0.2
"""A link's rate that moved by such a share of what was last told is told anew."""
QBER_STEP = 0.005
INTERFACE_ALARMS = frozenset({"ModuleLoss", "ModuleMismatch", "MonitorLimit"})


def notification(name: str, content: Document, now_unix_s: float) -> Document:
    """One notification as RFC 8040 clause 6.4 has it in JSON."""
    return {"ietf-restconf:notification": {"eventTime": timestamp(now_unix_s), f"{MODULE}:{name}": content}}


@dataclass(slots=True)
class Watch:
    """Compares the node with how it was, and says what a controller should hear."""

    _before: NodeView | None = None
    _told: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    """Rate and QBER of each link as last told."""

    def look(self, view: NodeView) -> list[tuple[str, Document]]:
        """Name and content of each notification since the last look; none at the first."""
        before, self._before = self._before, view
        if before is None:
            self._told = {link.id: (link.secret_bps, link.qber) for link in view.links}
            return []
        return [
            *_apps(before, view),
            *_interfaces(before, view),
            *self._links(before, view),
            *_alarms(before, view),
        ]

    def _links(self, before: NodeView, view: NodeView) -> list[tuple[str, Document]]:
        was = {link.id: link for link in before.links}
        found: list[tuple[str, Document]] = []
        for link in view.links:
            old = was.get(link.id)
            if old is not None and old.status == "ACTIVE" != link.status and link.is_enabled:
                down: Document = {"qkdl_id": link.id, "reason": link.why or f"the link is {link.status}"}
                found.append(("sdqkdn_link_down", {"qkd_link": down}))
            elif old is not None and old.status != link.status:
                found.append(("event", {"link": _link_part(link, f"the link is {link.status}", "MINOR")}))
            about: Document = {"qkdl_id": link.id, "performance": performance(link)}
            if self._is_news(link):
                self._told[link.id] = link.secret_bps, link.qber
                found.append(("sdqkdn_link_perf_update", {"qkd_link": about}))
            if _is_overloaded(link) and not (old is not None and _is_overloaded(old)):
                common = {k: v for k, v in performance(link).items() if k != "phys_perf"}
                found.append(("sdqkdn_link_overloaded", {"qkd_link": {**about, "performance": common}}))
        return found

    def _is_news(self, link: LinkView) -> bool:
        rate, qber = self._told.get(link.id, (0.0, None))
        has_moved = abs(link.secret_bps - rate) > PERFORMANCE_STEP * max(rate, link.secret_bps)
        return has_moved or abs((link.qber or 0.0) - (qber or 0.0)) > QBER_STEP


def _is_overloaded(link: LinkView) -> bool:
    return link.status == "ACTIVE" and link.expected_bps > link.effective_bps > 0


def _apps(before: NodeView, view: NodeView) -> list[tuple[str, Document]]:
    was = {app.id: app for app in before.apps}
    found: list[tuple[str, Document]] = []
    for app in view.apps:
        old = was.pop(app.id, None)
        if old is None:
            content = {**app_details(view, app), "app_qos": qos_document(app.qos)}
            found.append(("sdqkdn_application_new", {"qkd_application": content}))
        elif old.qos != app.qos:
            changed = {"app_id": app.id, "app_qos": qos_document(app.qos), "app_priority": app.qos.priority}
            found.append(("sdqkdn_application_qos_update", {"qkd_application": changed}))
        if old is not None and old.is_on and not app.is_on:
            found.append(("sdqkdn_application_disconnected", {"qkd_application": {"app_id": app.id}}))
    found += [("sdqkdn_application_disconnected", {"qkd_application": {"app_id": gone}}) for gone in was]
    return found


def _interfaces(before: NodeView, view: NodeView) -> list[tuple[str, Document]]:
    was = {link.id: link for link in before.links if link.is_physical}
    found: list[tuple[str, Document]] = []
    for link in view.links:
        if not link.is_physical:
            continue
        old = was.pop(link.id, None)
        if old is None:
            found.append(("sdqkdn_interface_new", {"qkd_interface": interface_item(link)}))
        elif old.is_module_up and not link.is_module_up:
            number = interface_number(link.name, link.end)
            down = {"qkdi_id": number, "reason": link.why or "the QKD module does not answer"}
            found.append(("sdqkdn_interface_down", {"qkd_interface": down}))
    for gone in was.values():
        number = interface_number(gone.name, gone.end)
        found.append(("sdqkdn_interface_out", {"qkd_interface": {"qkdi_id": number}}))
    return found


def _alarms(before: NodeView, view: NodeView) -> list[tuple[str, Document]]:
    """New alarms, and as events those that are over. The standard has no place for alarms of the node as a whole."""
    was = {(alarm.resource, alarm.type): alarm for alarm in before.alarms}
    now = {(alarm.resource, alarm.type): alarm for alarm in view.alarms}
    raised = [("alarm", alarm, alarm.text) for name, alarm in now.items() if name not in was]
    over = [("event", alarm, f"over: {alarm.text}") for name, alarm in was.items() if name not in now]
    found: list[tuple[str, Document]] = []
    for name, alarm, text in [*raised, *over]:
        content = _alarm_parts(view, alarm, f"{alarm.type}: {text}")
        if content:
            found.append((name, content))
    return found


def _alarm_parts(view: NodeView, alarm: AlarmView, message: str) -> Document:
    severity = "MAJOR" if alarm.severity in ("critical", "major") else "MINOR"
    link, app = view.link(alarm.resource), view.app(alarm.resource)
    if link is not None and alarm.type in INTERFACE_ALARMS:
        entry = interface(link)
        named = {name: entry[name] for name in ("qkdi_id", "qkdi_status")}
        part: Document = {**named, "message": message, "severity": identity(severity)}
        return {"link": _link_part(link, message, severity), "interface": part}
    if link is not None:
        return {"link": _link_part(link, message, severity)}
    if app is not None:
        status = identity("ON" if app.is_on else "DISCONNECTED")
        return {
            "application": {
                "app_id": app.id,
                "app_status": status,
                "message": message,
                "severity": identity(severity),
            }
        }
    return {}


def _link_part(link: LinkView, message: str, severity: str) -> Document:
    return {
        "qkdl_id": link.id,
        "qkdl_status": identity(link.status),
        "message": message,
        "severity": identity(severity),
    }
