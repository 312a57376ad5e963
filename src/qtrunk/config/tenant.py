"""The `[tenants.ID]` tables of a topology file. docs/topology.md lists keys, ranges and defaults; a test compares.

Ranges are wide, as those of `field`: they catch a slip of the pen.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType

import msgspec

from qtrunk.base.errors import RequestRefused
from qtrunk.base.ids import is_node_id, parse_sae_id
from qtrunk.config.field import Entry, Range
from qtrunk.config.problem import choices, quoted, shown
from qtrunk.topology import ANNOUNCED, DEFAULT_TENANT, HOP_BY_HOP, Tenant

TENANT_NUMBERS: Mapping[str, Range] = MappingProxyType(
    {
        "guaranteed_bps": Range(0, 1e9, "bit/s"),
        "burst_bps": Range(0, 1e9, "bit/s", is_low_open=True),
        "key_lifetime_s": Range(1, 31_536_000, "s"),
        "epsilon_max": Range(0, 1, is_low_open=True),
    }
)
TENANT_WHOLES: Mapping[str, Range] = MappingProxyType(
    {
        "burst_bits": Range(64, 1e12, "bit"),
        "quota_bits_per_day": Range(0, 1e15, "bit"),
        "quota_bits_per_month": Range(0, 1e16, "bit"),
        "priority": Range(0, 7),
        "hops_max": Range(1, 64),
        "routes_min": Range(1, 8),
        "routes_spare": Range(0, 7),
    }
)
ROUTES_MAX = 8
"""Of routes_min and routes_spare together, as `relay.messages` has it."""
HYBRID = ("qkd", "hybrid", "fallback")
RELAY = (HOP_BY_HOP, ANNOUNCED)
TENANT_KEYS = ("title", "saes", *TENANT_NUMBERS, *TENANT_WHOLES, "relay", "hybrid", "avoid")


def tenants(entries: Mapping[str, Entry], saes: Collection[str], nodes: Collection[str]) -> tuple[Tenant, ...]:
    """The tenants that a file describes; `saes`, `nodes`: those it knows. Mistakes go to the entries' problems."""
    owners: dict[str, str] = {}
    return tuple(_tenant(name, entry, saes, nodes, owners) for name, entry in entries.items())


def _tenant(name: str, entry: Entry, saes: Collection[str], nodes: Collection[str], owners: dict[str, str]) -> Tenant:
    if not is_node_id(name):
        entry.reject(f"{quoted(name)} is not a tenant ID: 1 to 63 of A-Z a-z 0-9 . _ -, a letter or digit first")
    given: dict[str, object] = {"title": entry.text("title"), "saes": _members(name, entry, saes, owners)}
    given |= {key: entry.number(key, allowed) for key, allowed in TENANT_NUMBERS.items()}
    given |= {key: entry.whole(key, allowed) for key, allowed in TENANT_WHOLES.items()}
    given["relay"] = entry.choice("relay", RELAY)
    given["hybrid"] = entry.choice("hybrid", HYBRID)
    given["avoid"] = _avoided(entry, nodes)
    tenant = msgspec.convert({"id": name} | {key: value for key, value in given.items() if value is not None}, Tenant)
    _check_against_each_other(tenant, entry)
    return tenant


def _members(name: str, entry: Entry, saes: Collection[str], owners: dict[str, str]) -> list[str]:
    if name == DEFAULT_TENANT:
        if entry.has("saes"):
            entry.wrong("saes", "the default tenant has the SAEs that no other tenant names; leave this out")
        return []
    entry.require("saes", 'the SAEs of this tenant, such as ["finance-*", "bank"]')
    members: list[str] = []
    for index, item in enumerate(entry.items("saes") or ()):
        if not isinstance(item, str):
            entry.wrong_item("saes", index, f"{shown(item)} is not an SAE ID in quotes")
            continue
        try:
            parse_sae_id(item)
        except RequestRefused as error:
            entry.wrong_item("saes", index, f"{quoted(item)} is not an {error}")
            continue
        if "*" not in item and item not in saes:
            known = sorted(saes)
            entry.wrong_item("saes", index, f"{quoted(item)} is not an SAE{choices(item, known, 'SAEs')}")
        elif item in owners:
            entry.wrong_item("saes", index, f"{quoted(item)} is already in {owners[item]}; name it once")
        else:
            owners[item] = entry.at("saes")
            members.append(item)
    return members


def _avoided(entry: Entry, nodes: Collection[str]) -> list[str]:
    avoided: dict[str, None] = {}
    for index, item in enumerate(entry.items("avoid") or ()):
        if isinstance(item, str) and item in nodes:
            avoided[item] = None
        else:
            hint = choices(item, sorted(nodes), "nodes") if isinstance(item, str) else ""
            entry.wrong_item("avoid", index, f"{shown(item)} is not a node{hint}")
    return list(avoided)


def _check_against_each_other(tenant: Tenant, entry: Entry) -> None:
    if tenant.burst_bps is not None and tenant.burst_bps < tenant.guaranteed_bps:
        entry.wrong(
            "burst_bps",
            f"{shown(tenant.burst_bps)} is under guaranteed_bps, {shown(tenant.guaranteed_bps)};"
            " the burst rate includes what is guaranteed",
        )
    if tenant.routes_spare and not 2 <= tenant.routes_min <= ROUTES_MAX - tenant.routes_spare:
        entry.wrong(
            "routes_spare",
            f"{tenant.routes_spare} needs a routes_min of at least 2, and both together at most {ROUTES_MAX}",
        )
    day, month = tenant.quota_bits_per_day, tenant.quota_bits_per_month
    if day is not None and month is not None and month < day:
        entry.wrong("quota_bits_per_month", f"{shown(month)} is under quota_bits_per_day, {shown(day)}")
