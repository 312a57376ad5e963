"""The `[neighbours.ID]` tables of a topology file: foreign networks behind the wall of a room, ETSI GS QKD 020.

docs/topology.md lists the keys; a test compares. Files are named, no secret is in the topology.
"""

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from qtrunk.base.errors import RequestRefused
from qtrunk.base.ids import NodeId, is_node_id, parse_identity, parse_sae_id
from qtrunk.config.field import Entry
from qtrunk.config.problem import choices, quoted, shown
from qtrunk.topology import ForeignNetwork

NEIGHBOUR_KEYS = ("kme", "node", "address", "listen", "ca_certificate", "fingerprint", "saes", "protection")
PROTECTIONS = ("qkd", "hybrid", "unknown")
_WANTED = {
    "kme": "the KME ID in the certificate of its key manager",
    "node": "the node of ours that stands in the same room",
    "address": "HOST:PORT of its key manager",
    "listen": "HOST:PORT at which our node listens for it",
    "ca_certificate": "the PEM file of the CA of its certificate",
    "saes": 'the SAEs that are reached through it, such as ["east-*"]',
}
PATH_CHARACTERS_MAX = 1000
SAES_MAX = 1000


def neighbours(entries: Mapping[str, Entry], nodes: Collection[str], saes: Sequence[str]) -> tuple[ForeignNetwork, ...]:
    """The foreign networks that a file describes; `nodes` and `saes` are ours. Mistakes go to the entries' problems."""
    owners: dict[str, str] = {}
    found = [_neighbour(name, entry, nodes, saes, owners) for name, entry in entries.items()]
    return tuple(network for network in found if network is not None)


def _neighbour(
    name: str, entry: Entry, nodes: Collection[str], saes: Sequence[str], owners: dict[str, str]
) -> ForeignNetwork | None:
    if not is_node_id(name):
        entry.reject(f"{quoted(name)} is not an ID: 1 to 63 of A-Z a-z 0-9 . _ -, a letter or digit first")
    for key, what in _WANTED.items():
        entry.require(key, what)
    kme, node = entry.text("kme"), entry.text("node")
    if kme is not None:
        _once("kme", kme, entry, owners)
        if kme in nodes:
            entry.wrong("kme", f"{quoted(kme)} is a key manager of this network")
    if node is not None and nodes and node not in nodes:
        entry.wrong("node", f"{quoted(node)} is not a node{choices(node, sorted(nodes), 'nodes')}")
    address, listen = _address(entry, "address"), _address(entry, "listen")
    if listen is not None:
        _once("listen", listen, entry, owners)
    ca_certificate = entry.text("ca_certificate", PATH_CHARACTERS_MAX)
    if ca_certificate is not None and not PurePosixPath(ca_certificate).is_absolute():
        path = "/etc/qtrunk/neighbour-ca.pem"
        entry.wrong("ca_certificate", f"{shown(ca_certificate)} is not a path from the root, such as {path}")
    fingerprint, members = _fingerprint(entry), _saes(entry, saes, owners)
    protection = entry.choice("protection", PROTECTIONS)
    if kme is None or node is None or address is None or listen is None or ca_certificate is None:
        return None
    return ForeignNetwork(
        id=name,
        kme=kme,
        node=NodeId(node),
        address=address,
        listen=listen,
        ca_certificate=ca_certificate,
        fingerprint=fingerprint,
        saes=members,
        protection="unknown" if protection is None else str(protection),
    )


def _once(key: str, value: str, entry: Entry, owners: dict[str, str]) -> None:
    owner = owners.setdefault(f"{key} {value}", entry.at(key))
    if owner != entry.at(key):
        entry.wrong(key, f"{quoted(value)} is already {owner}; each foreign network has its own")


def _address(entry: Entry, key: str) -> str | None:
    text = entry.text(key)
    if text is None:
        return None
    host = _host(text)
    if host is None:
        entry.wrong(key, f"{shown(text)} is not HOST:PORT, such as 192.0.2.7:8443")
    elif host in ("0.0.0.0", "::"):  # noqa: S104 (refused)
        entry.wrong(key, f"{shown(text)} is no host that the other side could reach; name the one in that room")
    else:
        return text
    return None


def _host(text: str) -> str | None:
    """The host of HOST:PORT; None where that is something else."""
    try:
        parts = urlsplit(f"//{text}")
        is_fit = bool(parts.port) and parts.netloc == text and parts.username is None
    except ValueError:  # brackets or a port that make no sense
        return None
    return parts.hostname if is_fit else None


def _fingerprint(entry: Entry) -> str:
    text = entry.text("fingerprint")
    if text is None:
        return ""
    try:
        return parse_identity(f"sha256:{text}").removeprefix("sha256:")
    except RequestRefused:
        entry.wrong("fingerprint", f"{shown(text)} is not the 64 hexadecimal digits of a SHA-256, colons allowed")
        return ""


def _saes(entry: Entry, own: Sequence[str], owners: dict[str, str]) -> tuple[str, ...]:
    members: list[str] = []
    items = entry.items("saes") or ()
    if len(items) > SAES_MAX:
        entry.wrong("saes", f"{len(items)} given; at most {SAES_MAX}, so use patterns")
        return ()
    for index, item in enumerate(items):
        if not isinstance(item, str):
            entry.wrong_item("saes", index, f"{shown(item)} is not an SAE ID in quotes")
            continue
        try:
            parse_sae_id(item)
        except RequestRefused as error:
            entry.wrong_item("saes", index, f"{quoted(item)} is not an {error}")
            continue
        ours = next((sae for sae in own if sae == item or fnmatchcase(sae, item)), None)
        owner = owners.get(f"sae {item}")
        if ours is not None:
            entry.wrong_item("saes", index, f"{quoted(item)} names {quoted(ours)}, an SAE of this network")
        elif owner is not None:
            entry.wrong_item("saes", index, f"{quoted(item)} is already in {owner}; name it once")
        else:
            owners[f"sae {item}"] = entry.at("saes")
            members.append(item)
    return tuple(members)
