"""What a controller keeps of a node's status: levels, rates, states, alarms. Only named fields; nothing that holds key
has a place in them, and what a status says beside them is not kept. No I/O.
"""

from collections.abc import Iterable

import msgspec

from qtrunk.base.errors import WireError


class Finding(msgspec.Struct, frozen=True):
    """What a link end makes of its last block (quantum.diagnosis), in short."""

    kind: str
    weight: float = 0.0
    reason: str = ""
    by: str = ""
    """`alice` or `bob`: which end saw it. Empty: the one that says it."""


def both(*ends: tuple[str, Iterable[Finding]]) -> list[Finding]:
    """What both ends of a link make of it, likeliest first, each kind once; `ends`: role and what it says."""
    found: dict[str, Finding] = {}
    for role, said in ends:
        for each in said:
            made = each if each.by else msgspec.structs.replace(each, by=role)
            known = found.get(made.kind)
            if known is None or (made.weight, made.by) > (known.weight, known.by):
                found[made.kind] = made
    return sorted(found.values(), key=lambda one: (-one.weight, one.kind))


class LinkTelemetry(msgspec.Struct, frozen=True):
    """One link end."""

    link: str
    role: str
    state: str
    why: str = ""
    secret_bps: float = 0.0
    pool_bits: int = 0
    own_bits: int = 0
    auth_bits: int = 0
    qber_test: float | None = None
    is_connected: bool = False
    is_module_up: bool = False
    is_held: bool = False
    blocks_released: int = 0
    blocks_destroyed: int = 0
    diagnosis: list[Finding] = []


class AlarmTelemetry(msgspec.Struct, frozen=True):
    """One active alarm."""

    resource: str
    type: str
    severity: str
    text: str
    raised_unix_s: float
    id: str = ""
    qualifier: str = ""
    changed_unix_s: float = 0.0
    count: int = 1
    operator_state: str = "none"
    operator: str = ""
    comment: str = ""


class Alarms(msgspec.Struct, frozen=True):
    """Those that are up; of these, what nobody wants to hear of is on the shelf."""

    active: list[AlarmTelemetry] = []
    shelved: list[AlarmTelemetry] = []


class PoolTelemetry(msgspec.Struct, frozen=True):
    """One pool of end-to-end key, octets."""

    side: str
    initiator: str
    target: str
    available: int = 0
    delivered: int = 0


class OrdersTelemetry(msgspec.Struct, frozen=True):
    """Which order of routes the node holds."""

    fencing: int = 0
    version: int = 0
    controller: str | None = None
    is_living: bool = False


class WindowTelemetry(msgspec.Struct, frozen=True):
    """One maintenance window that the node knows."""

    resource: str
    phase: str = ""
    is_own: bool = False


class AuditTelemetry(msgspec.Struct, frozen=True):
    """The head of the node's audit log: whoever changes a record later does not come to the same."""

    sequence: int = 0
    hash: str = ""


class ClockTelemetry(msgspec.Struct, frozen=True):
    """The node's clock less its neighbours'."""

    offset_s: float | None = None


class Telemetry(msgspec.Struct, frozen=True):
    """One node at one moment."""

    node: str
    state: str = ""
    uptime_s: float = 0.0
    links: list[LinkTelemetry] = []
    alarms: Alarms = Alarms()
    pools: list[PoolTelemetry] = []
    tenants: list[dict[str, object]] | dict[str, object] = []
    """As `/admin/v1/status` has them: contracts, use, figures of ITU-T Y.3807."""
    routes: OrdersTelemetry = OrdersTelemetry()
    maintenance: list[WindowTelemetry] = []
    audit: AuditTelemetry = AuditTelemetry()
    clock: ClockTelemetry = ClockTelemetry()


def decode(octets: bytes, node: str) -> Telemetry:
    """Of a node's status; WireError where it is none, or another node's."""
    try:
        found = msgspec.json.decode(octets, type=Telemetry)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"status of {node}: {error}") from error
    if found.node != node:
        raise WireError(f"status of {node}: it says {found.node[:63]!r}")
    return found
