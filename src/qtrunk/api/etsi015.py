"""ETSI GS QKD 015 V2.1.1: what one node is and does, as the standard's data tree. No I/O.

    QKD node       this node; the IDs of nodes, links and applications are UUIDs made of their names (`uuid_of`)
    interface      the QKD module of one link end; its number is made of the link's name, the same at every start
    PHYS link      a link that ends here
    VIRT link      the way of keys from here to a node that is no neighbour, as it is now
    application    an SAE of this node that asks for keys, with one target

Units are the standard's: bit/s, dB, per cent for QBER (the module's text gives none). Counters of 32 bits stop at
their largest value. Readings of the text that another would not share are in docs/etsi015.md.
"""

import datetime as dt
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from qtrunk.api.schema015 import identity
from qtrunk.api.yangtree import UINT32_MAX

Document = dict[str, object]


def uuid_of(network: str, kind: str, name: str) -> str:
    """The UUID of a node, link or application of a network (RFC 9562 version 5, of a URN)."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:qtrunk:{network}:{kind}:{name}"))


def interface_number(link: str, end: str) -> int:
    """The number of the QKD module at one end (`alice` or `bob`) of a link."""
    return zlib.crc32(f"{link} {end}".encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class AppQos:
    """What an application is promised, allowed and worth; None: nothing is said."""

    max_bandwidth: int | None = None
    min_bandwidth: int | None = None
    ttl_s: int | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AppView:
    """One application: who asks for keys, for whom."""

    id: str
    initiator: str
    target: str
    remote_node: str
    """Node ID of the target."""
    is_on: bool
    """Whether it asked for key lately or its pool holds some."""
    qos: AppQos
    links: tuple[str, ...]
    """UUIDs of the links that bring its key."""
    created_unix_s: float
    periods: tuple[tuple[float, float, int], ...] = ()
    """Start and end (Unix time) and bits that were given out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkView:
    """One link that ends here, or the way to a distant node."""

    id: str
    is_physical: bool
    status: str
    """ACTIVE, PASSIVE, PENDING or OFF."""
    remote: str
    """Node ID."""
    applications: tuple[str, ...] = ()
    expected_bps: float = 0.0
    secret_bps: float = 0.0
    effective_bps: float = 0.0
    why: str = ""
    """For a link that brings nothing: the reason."""
    # Of physical ones.
    name: str = ""
    end: str = ""
    """`alice` or `bob`."""
    is_enabled: bool = True
    loss_db: float | None = None
    qber: float | None = None
    model: str = ""
    is_module_up: bool = False
    is_light: bool = True
    """Whether the key is of light that is distilled here."""
    # Of the others.
    next_hop: str = ""
    """Node ID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmView:
    """One alarm of the node, active or just over."""

    resource: str
    type: str
    severity: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """The whole node at one moment."""

    network: str
    node: str
    version: str
    location: str
    status: str
    """NEW, OPERATING or DOWN."""
    links: tuple[LinkView, ...] = ()
    apps: tuple[AppView, ...] = ()
    alarms: tuple[AlarmView, ...] = ()

    def node_uuid(self, node: str) -> str:
        """The UUID of a node of the network."""
        return uuid_of(self.network, "node", node)

    def link(self, name: str) -> LinkView | None:
        """A physical link by its name."""
        return next((link for link in self.links if link.is_physical and link.name == name), None)

    def app(self, resource: str) -> AppView | None:
        """The application whose pool is named so in alarms."""
        return next((app for app in self.apps if resource == f"pool {app.initiator} to {app.target}"), None)


# ── the tree ────────────────────────────────────────────────────────────────────────────────────────────────────────


def tree(view: NodeView) -> Document:
    """The value of `qkd_node`."""
    physical = [link for link in view.links if link.is_physical]
    return {
        "qkdn_id": view.node_uuid(view.node),
        "qkdn_status": identity(view.status),
        "qkdn_version": view.version,
        "qkdn_location_id": view.location,
        "qkdn_capabilities": {
            "link_stats_support": True,
            "application_stats_support": True,
            "key_relay_mode_enable": True,
        },
        "qkd_applications": {"qkd_app": [_app(view, app) for app in view.apps]},
        "qkd_interfaces": {"qkd_interface": [interface(link) for link in physical]},
        "qkd_links": {"qkd_link": [_link(view, link) for link in view.links]},
    }


def qos_document(qos: AppQos) -> Document:
    """The container `app_qos`."""
    given = {"max_bandwidth": qos.max_bandwidth, "min_bandwidth": qos.min_bandwidth, "ttl": qos.ttl_s}
    return {
        **{name: value for name, value in given.items() if value is not None},
        "clients_shared_path_enable": False,
        "clients_shared_keys_required": False,
    }


def _app(view: NodeView, app: AppView) -> Document:
    return {
        "app_id": app.id,
        "app_status": identity("ON" if app.is_on else "DISCONNECTED"),
        **app_details(view, app),
        "creation_time": timestamp(app.created_unix_s),
        "app_statistics": {
            "statistics": [
                {"end_time": timestamp(end_s), "start_time": timestamp(start_s), "consumed_bits": clamped(bits)}
                for start_s, end_s, bits in app.periods
            ]
        },
        "app_qos": qos_document(app.qos),
        "backing_qkdl_id": list(app.links),
        "remote_qkdn_id": view.node_uuid(app.remote_node),
    }


def app_details(view: NodeView, app: AppView) -> Document:
    """What an entry of `qkd_app` and the notification of a new application both have."""
    return {
        "app_type": identity("CLIENT"),
        "server_app_id": app.initiator,
        "client_app_id": [app.target],
        "app_priority": app.qos.priority,
        "local_qkdn_id": view.node_uuid(view.node),
    }


def interface(link: LinkView) -> Document:
    """The entry of `qkd_interface` that is the QKD module of a link end."""
    status = "DISABLED" if not link.is_enabled else "ENABLED" if link.is_module_up else "FAILED"
    return {**interface_item(link), "qkdi_status": identity(status)}


def interface_item(link: LinkView) -> Document:
    """The same without its status."""
    found: Document = {"qkdi_id": interface_number(link.name, link.end), "qkdi_model": link.model}
    if link.is_light:
        found["qkdi_type"] = identity("DV-QKD")
        found["qkdi_capabilities"] = {"role_support": identity(_role(link.end))}
    return found


def _link(view: NodeView, link: LinkView) -> Document:
    found: Document = {
        "qkdl_id": link.id,
        "qkdl_status": identity(link.status),
        "qkdl_enable": link.is_enabled,
        "qkdl_type": identity("PHYS" if link.is_physical else "VIRT"),
        "qkdl_applications": list(link.applications),
        "qkdl_performance": performance(link),
    }
    local: Document = {"qkdn_id": view.node_uuid(view.node)}
    remote: Document = {"qkdn_id": view.node_uuid(link.remote)}
    if not link.is_physical:
        hops = [view.node_uuid(link.next_hop)] if link.next_hop else []
        return {**found, "qkdl_local": local, "qkdl_remote": remote, "virt_next_hop": hops}
    other = "bob" if link.end == "alice" else "alice"
    found["qkdl_local"] = {**local, "qkdi_id": interface_number(link.name, link.end)}
    found["qkdl_remote"] = {**remote, "qkdi_id": interface_number(link.name, other)}
    if link.is_light:
        found["phys_qkd_role"] = identity(_role(link.end))
    if link.loss_db is not None:
        found["phys_channel_att"] = decimal(link.loss_db)
    return found


def performance(link: LinkView) -> Document:
    """A link's performance: bit/s; QBER in per cent."""
    found: Document = {
        "expected_consumption": clamped(link.expected_bps),
        "skr": clamped(link.secret_bps),
        "eskr": clamped(link.effective_bps),
    }
    if link.is_physical and link.qber is not None:
        found["phys_perf"] = [{"perf_type": identity("QBER"), "value": decimal(100 * link.qber)}]
    return found


def _role(end: str) -> str:
    return "TRANSMITTER" if end == "alice" else "RECEIVER"


def clamped(value: float) -> int:
    """A rate or a count as 32 bits can have it."""
    return min(UINT32_MAX, max(0, round(value)))


def decimal(value: float) -> str:
    """decimal64 with three fraction digits (RFC 7951 clause 6.1: as text)."""
    return f"{value:.3f}"


def timestamp(unix_s: float) -> str:
    """yang:date-and-time."""
    return dt.datetime.fromtimestamp(unix_s, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def links_to(view_links: Sequence[LinkView], remote: str) -> tuple[str, ...]:
    """UUIDs of the links that bring key shared with a node: those that end there, else the way to it."""
    return tuple(link.id for link in view_links if link.remote == remote)
