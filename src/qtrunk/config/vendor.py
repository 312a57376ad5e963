"""`source` and the table `vendor` of a link: keys that a vendor's QKD system gives, by ETSI GS QKD 014 or 004.

docs/topology.md lists keys, ranges and defaults; a test compares. What is said is of one link, so it stands in
`[links.a-b]` and never in `[link]`. Files are named, no secret is in the topology.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from urllib.parse import urlsplit

import msgspec

from qtrunk.base.errors import RequestRefused
from qtrunk.base.ids import SaeId, parse_sae_id
from qtrunk.config.field import Entry, Range
from qtrunk.config.problem import quoted, shown
from qtrunk.kms.vendorend import BLOCK_OCTETS_MIN
from qtrunk.topology import Distillation, VendorEnd, VendorSource

SOURCE_KEYS = ("source", "vendor")
INTERFACES = ("etsi014", "etsi004")
SOURCES = ("qkd", *INTERFACES)
VENDOR_NUMBERS: Mapping[str, Range] = MappingProxyType(
    {
        "poll_s": Range(0.1, 3600, "s"),
        "timeout_s": Range(0.5, 30, "s"),
        "epsilon_per_key": Range(0, 1e-3),
    }
)
VENDOR_WHOLES: Mapping[str, Range] = MappingProxyType({"keys": Range(1, 4096), "key_bits": Range(64, 65536, "bit")})
TLS = ("1.2", "1.3")
ENDS = ("alice", "bob")
VENDOR_KEYS = ("trust", *ENDS, *VENDOR_WHOLES, *VENDOR_NUMBERS, "tls")
FILES = ("certificate", "private_key", "ca_certificate")
END_KEYS = ("kme_url", "sae", "uri", *FILES)
TRUST_CHARACTERS_MAX = 400
PATH_CHARACTERS_MAX = 1000
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*|[0-9a-f:.]+", re.IGNORECASE)
"""A name or an IPv4 address, or what stands between the brackets of an IPv6 one."""
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")
FORMS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"etsi014": ("https", "https://HOST[:PORT][/PATH]"), "etsi004": ("tls", "tls://HOST[:PORT]")}
)
EXAMPLES: Mapping[str, str] = MappingProxyType({"etsi014": "https://10.0.0.7:8443", "etsi004": "tls://10.0.0.7:25575"})


def vendor_source(entry: Entry | None, distillation: Distillation) -> VendorSource | None:
    """What `[links.a-b]` says of a vendor; mistakes go to the entry's problems."""
    if entry is None:
        return None
    source = entry.choice("source", SOURCES)
    if source not in INTERFACES:
        if entry.has("vendor") and (source is not None or not entry.has("source")):
            entry.wrong("vendor", 'only for a link with source = "etsi014" or "etsi004"')
        return None
    entry.require("vendor", "trust, alice and bob: whose keys these are, and where the two ends get them")
    if distillation.bootstrap != "preshared":
        entry.wrong("source", "a vendor's keys need bootstrap = preshared: their blocks are never signed")
    return _vendor(entry.below("vendor", VENDOR_KEYS), source) if entry.has("vendor") else None


def _vendor(table: Entry, interface: str) -> VendorSource | None:
    table.require("trust", "vendor, model and what is claimed for its keys; receipts show it")
    trust = table.text("trust", TRUST_CHARACTERS_MAX)
    if trust is not None and not trust.strip():
        table.wrong("trust", "empty; say vendor, model and what is claimed for its keys")
    for end in ENDS:
        table.require(end, "a table with kme_url and sae: where that end gets its keys, and who it is there")
    alice, bob = (_end(table.below(end, END_KEYS), interface) if table.has(end) else None for end in ENDS)
    given: dict[str, object] = {key: table.number(key, allowed) for key, allowed in VENDOR_NUMBERS.items()}
    given |= {key: table.whole(key, allowed) for key, allowed in VENDOR_WHOLES.items()}
    given["tls"] = table.choice("tls", TLS)
    if interface == "etsi004" and given["tls"] == "1.2":
        table.wrong("tls", 'key streams are spoken over TLS 1.3 only; leave it out or say "1.3"')
    if trust is None or alice is None or bob is None:
        return None
    source = msgspec.convert(
        {key: value for key, value in given.items() if value is not None}
        | {
            "interface": interface,
            "trust": trust,
            "alice": msgspec.to_builtins(alice),
            "bob": msgspec.to_builtins(bob),
        },
        VendorSource,
    )
    if alice.sae == bob.sae:
        table.wrong("bob", f"{quoted(bob.sae)} is Alice's SAE, too; each end is an SAE of its own")
    if source.key_bits % 8:
        table.wrong("key_bits", f"{source.key_bits} is not a multiple of 8")
    if alice.uri and alice.uri == bob.uri:
        table.wrong("bob", f"{quoted(bob.uri)} is Alice's URI, too; each end has one of its own")
    octets = source.keys * source.key_bits // 8
    if octets < BLOCK_OCTETS_MIN:
        what = f"{source.keys} keys of {source.key_bits} bits are {octets} octets a block"
        table.wrong("keys", f"{what}, of which authentication takes most; at least {BLOCK_OCTETS_MIN} are needed")
    return source


def _end(entry: Entry, interface: str) -> VendorEnd | None:
    entry.require("kme_url", f"the vendor's KME at this end, such as {EXAMPLES[interface]}")
    entry.require("sae", "the SAE ID that this end has at that KME")
    url, sae, uri = _url(entry, interface), _sae(entry), _uri(entry, interface)
    files = {key: _file(entry, key) for key in FILES}
    named = [key for key in FILES if entry.has(key)]
    if named and len(named) < len(FILES):
        entry.reject(
            f"{', '.join(named)} alone; name all of {', '.join(FILES)} or, if the node's configuration does, none"
        )
    return VendorEnd(kme_url=url, sae=sae, uri=uri, **files) if url is not None and sae is not None else None


def _url(entry: Entry, interface: str) -> str | None:
    url = entry.text("kme_url", PATH_CHARACTERS_MAX)
    if url is None:
        return None
    scheme, form = FORMS[interface]
    if not _is_kme_url(url, scheme) or (interface == "etsi004" and urlsplit(url).path):
        entry.wrong("kme_url", f"{shown(url)} is not {form}")
        return None
    return url


def _is_kme_url(url: str, scheme: str) -> bool:
    try:
        parts = urlsplit(url)
        has_more = bool(parts.query or parts.fragment) or parts.username is not None or parts.port == 0
    except ValueError:  # brackets or a port that make no sense
        return False
    return parts.scheme == scheme and not has_more and _HOST.fullmatch(parts.hostname or "") is not None


def _uri(entry: Entry, interface: str) -> str:
    uri = entry.text("uri", PATH_CHARACTERS_MAX)
    if uri is None:
        return ""
    if interface != "etsi004":
        entry.wrong("uri", 'only for a link with source = "etsi004"')
    elif not _URI.fullmatch(uri):
        entry.wrong("uri", f"{shown(uri)} is not a URI, such as qkd://trunk-a")
    return uri


def _sae(entry: Entry) -> SaeId | None:
    text = entry.text("sae")
    if text is None:
        return None
    try:
        return parse_sae_id(text)
    except RequestRefused as error:
        entry.wrong("sae", f"{quoted(text)} is not an {error}")
        return None


def _file(entry: Entry, key: str) -> str:
    path = entry.text(key, PATH_CHARACTERS_MAX)
    if path is not None and not PurePosixPath(path).is_absolute():
        entry.wrong(key, f"{shown(path)} is not a path from the root, such as /etc/qtrunk/{key}.pem")
    return path or ""
