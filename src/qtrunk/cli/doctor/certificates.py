"""Certificates and keys: life, chain, names, usage, the key and who may read it, revocation (RFC 5280).

Private keys are handed to OpenSSL by path and not looked at, but for a node's ML-DSA-65 key, of which the public half
is compared. In a lab the certificates of nodes, SAEs and the operator are examined; of a production node its own.
"""

import datetime as dt
import os
import ssl
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from qtrunk.api.identity import SaeRegistry
from qtrunk.api.roles import operator_of
from qtrunk.api.tls import PeerIdentity, identity_of
from qtrunk.base.errors import ConfigError, RequestRefused
from qtrunk.base.ids import NodeId
from qtrunk.cli.doctor.finding import Finding, Level, error, warning
from qtrunk.cli.doctor.site import Site, links_of, restart_of
from qtrunk.node.ca import certificates, verifying
from qtrunk.node.ca.identity import Identity, Kind
from qtrunk.node.config import NodeConfig
from qtrunk.node.pki import RENEW_DAYS, Credentials
from qtrunk.node.revocation import Registry, authorities
from qtrunk.node.trust import EXPIRY_WARNING
from qtrunk.node.world import SystemClock

NO_TLS = "every TLS connection with it fails"


@dataclass(frozen=True, slots=True)
class Holder:
    """One party's certificate, and what it should be."""

    label: str
    credentials: Credentials
    fix: str
    """How a new certificate comes in place of one that is no good."""
    renewal: str
    """How one that is still good is renewed."""
    revocation_list: Path | None = None
    usages: tuple[ObjectIdentifier, ...] = (ExtendedKeyUsageOID.CLIENT_AUTH,)
    names: Callable[[PeerIdentity], str] = lambda _identity: ""
    """What is wrong with the names, empty if nothing."""
    hosts: tuple[str, ...] = ()


def check_certificates(site: Site) -> Iterator[Finding]:
    """Everything about each certificate that can be told without a connection."""
    seen: set[Path] = set()
    for holder in holders(site):
        if holder.credentials.ca_certificate not in seen:
            seen.add(holder.credentials.ca_certificate)
            yield from _authorities(holder)
        chain = yield from _readable(holder)
        yield from check_private_file(holder.credentials.private_key, f"key of {holder.label}")
        if not chain:
            continue
        yield from _lives(holder, chain[0])
        yield from _has_its_key(holder)
        yield from _is_believed(holder, chain)
        yield from _names(holder, chain[0])
        yield from _usages(holder, chain[0])
        yield from _revoked(holder, chain[0])


def check_revocation(site: Site) -> Iterator[Finding]:
    """Each node has a revocation list that is signed and in time, where it is configured to have one."""
    for config in site.nodes:
        if config.revocation_list is None:
            continue
        try:
            problem = Registry(Path(config.revocation_list), Path(config.ca_certificate), SystemClock()).problem
        except ConfigError:
            continue  # without a CA; the certificates' check says so
        if problem is not None:
            yield error(
                f"node {config.node}",
                problem,
                "a node that starts without a good list refuses everybody; one out of date misses what was revoked",
                restart_of(site.lab)
                if site.lab
                else f"qtrunk enrol refresh --out {Path(config.revocation_list).parent}",
            )


def check_signing_keys(site: Site) -> Iterator[Finding]:
    """ML-DSA-65 keys (FIPS 204): each node's own half fits what the others verify with."""
    own: dict[str, bytes] = {}
    for config in site.nodes:
        if config.signing_key is None:
            continue
        path = Path(config.signing_key)
        yield from check_private_file(path, f"signing key of node {config.node}")
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as problem:
            yield error(f"file {path}", f"no signing key: {_short(problem)}", "the node cannot start", _RESTORE)
            continue
        if isinstance(key, MLDSA65PrivateKey):
            own[config.node] = key.public_key().public_bytes_raw()
        else:
            yield error(f"file {path}", "not an ML-DSA-65 key", "the node cannot start", _RESTORE)
    for config in site.nodes:
        for node, name in sorted(config.verifying_keys.items()):
            yield from _fits(config, node, Path(name), own.get(node))
        for entry, link in links_of(config):
            if entry.peer_verifying_key is not None:
                peer = link.other(config.node_id)
                yield from _fits(config, peer, Path(entry.peer_verifying_key), own.get(peer))


_RESTORE = "restore the file from a backup, or enrol the node anew (docs/enrolment.md)"


def _fits(config: NodeConfig, node: str, path: Path, own: bytes | None) -> Iterator[Finding]:
    on = f"node {config.node}"
    try:
        found = verifying.load_key(path.read_bytes()).public_bytes_raw()
    except (OSError, RequestRefused) as problem:
        what = f"the verifying key of node {node} is not in {path}: {_short(problem)}"
        yield error(on, what, "no hybrid keys and no signed start with it", "qtrunk enrol refresh, or restore the file")
        return
    if own is not None and found != own:
        what = f"{path} is not the verifying key of node {node}"
        why = f"what {node} signs is refused here: no hybrid keys with it"
        yield error(on, what, why, "qtrunk enrol refresh, or copy the other node's verifying-key.pem")


# ── whose ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def holders(site: Site) -> list[Holder]:
    """All whose certificates are on this machine."""
    found: list[Holder] = []
    for config in site.nodes:
        found.append(_node_holder(site, config))
        found += _vendor_holders(config)
    lists = [Path(config.revocation_list) for config in site.nodes if config.revocation_list is not None]
    crl = lists[0] if lists else None
    if site.operator is not None:
        found.append(_holder(site, "operator", site.operator, crl, names=_operator_names))
    if site.lab is not None:
        registry = SaeRegistry(site.lab.topology.saes)
        for sae in site.lab.topology.saes:

            def names(identity: PeerIdentity, wanted: str = sae.id) -> str:
                is_found = registry.sae_of(identity) == wanted
                return "" if is_found else f"it does not stand for the SAE {wanted}, as the topology registers it"

            found.append(_holder(site, f"SAE {sae.id}", site.lab.credentials(sae.id), crl, names=names))
    return found


def _holder(
    site: Site,
    label: str,
    credentials: Credentials,
    revocation_list: Path | None,
    usages: tuple[ObjectIdentifier, ...] = (ExtendedKeyUsageOID.CLIENT_AUTH,),
    names: Callable[[PeerIdentity], str] = lambda _identity: "",
    hosts: tuple[str, ...] = (),
) -> Holder:
    """One of this network's own, whose certificates the lab makes, or who enrolled with the authority."""
    directory = credentials.certificate.parent
    if site.lab is not None:
        renewal = restart_of(site.lab)
        fix = f"rm {directory}/cert.pem {directory}/key.pem; {renewal}: new ones are made"
    else:
        renewal = f"qtrunk enrol renew --out {directory}"
        fix = f"a new invitation (qtrunk enrol invite, at the authority), then qtrunk enrol join --out {directory}"
    return Holder(label, credentials, fix, renewal, revocation_list, usages, names, hosts)


def _node_holder(site: Site, config: NodeConfig) -> Holder:
    identity = Identity(Kind.NODE, config.load_topology().kme_id(NodeId(config.node)))

    def names(found: PeerIdentity) -> str:
        return "" if identity.uri in found.uris else f"the name {identity.uri} is missing"

    return _holder(
        site,
        f"node {config.node}",
        Credentials(Path(config.certificate), Path(config.private_key), Path(config.ca_certificate)),
        None if config.revocation_list is None else Path(config.revocation_list),
        (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH),
        names,
        ("localhost",) if site.lab else (),
    )


def _vendor_holders(config: NodeConfig) -> Iterator[Holder]:
    """What the node shows to a vendor's KMEs; how its names should be is the vendor's matter."""
    for entry, link in links_of(config):
        if link.vendor is None:
            continue
        files = entry.vendor or (link.vendor.alice if link.alice == config.node_id else link.vendor.bob)
        paths = (files.certificate, files.private_key, files.ca_certificate)
        if all(paths):
            label = f"node {config.node} at the vendor's KME of link {link.id}"
            fix = "ask the vendor, or whoever runs that KME's CA, for a new one"
            yield Holder(label, Credentials(*map(Path, paths)), fix, fix)


def _operator_names(identity: PeerIdentity) -> str:
    operator = operator_of(identity)
    if operator is None:
        return "it is no operator's: no name urn:qtrunk:operator:NAME"
    return "" if operator.roles else "it has no role, so nothing is answered"


# ── one certificate ─────────────────────────────────────────────────────────────────────────────────────────────────


def _readable(holder: Holder) -> Generator[Finding, None, list[x509.Certificate]]:
    """The file's certificates, the holder's own first (as the value of the generator)."""
    path = holder.credentials.certificate
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError, x509.InvalidVersion) as problem:
        yield error(f"certificate of {holder.label}", f"{path}: {_short(problem)}", NO_TLS, holder.fix)
        return []


def check_private_file(path: Path, on: str) -> Iterator[Finding]:
    """A secret's file is there, this user's, and nobody else can read or change it."""
    try:
        status = path.stat()
    except OSError as problem:
        yield error(on, f"{path}: {problem.strerror}", "whoever needs it cannot start", "restore it or enrol anew")
        return
    if not stat.S_ISREG(status.st_mode):
        yield error(on, f"{path} is not a file", "whoever needs it cannot start", "restore it or enrol anew")
    elif status.st_mode & 0o077:
        what = f"{path} has mode {stat.S_IMODE(status.st_mode):04o}"
        yield error(on, what, "other users of this machine may read or change it", f"chmod 600 {path}")
    elif status.st_uid != os.geteuid():
        what = f"{path} belongs to user {status.st_uid}, not to {os.geteuid()} who asks"
        yield warning(on, what, "the process must run as its owner", f"run as its owner, or chown it: {path}")


def _lives(holder: Holder, certificate: x509.Certificate) -> Iterator[Finding]:
    yield from _life(f"certificate of {holder.label}", certificate, NO_TLS, holder.fix, holder.renewal)


def _life(on: str, certificate: x509.Certificate, why: str, fix: str, renewal: str) -> Iterator[Finding]:
    now = dt.datetime.now(dt.UTC)
    since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    late = min(EXPIRY_WARNING[0] * (until - since), dt.timedelta(days=RENEW_DAYS))
    if now > until:
        yield error(on, f"it expired on {until:%Y-%m-%d %H:%M} UTC", why, fix)
    elif now < since:
        yield error(
            on, f"it is not valid before {since:%Y-%m-%d %H:%M} UTC", why, f"correct this machine's clock; {fix}"
        )
    elif until - now < late:
        left = until - now
        what = f"it expires on {until:%Y-%m-%d %H:%M} UTC, in {left.days} days {left.seconds // 3600} hours"
        yield warning(on, what, f"{why} from then on", renewal)


def _has_its_key(holder: Holder) -> Iterator[Finding]:
    own = holder.credentials
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        # A password of nothing, so that an encrypted key is an error and no question at the terminal.
        context.load_cert_chain(own.certificate, own.private_key, password="")
    except FileNotFoundError:
        return  # said already
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "reason", None) or _short(problem)
        what = f"{own.private_key} is not the key of {own.certificate} ({reason})"
        yield error(f"certificate of {holder.label}", what, NO_TLS, holder.fix)


def _is_believed(holder: Holder, chain: list[x509.Certificate]) -> Iterator[Finding]:
    try:
        trusted = authorities(holder.credentials.ca_certificate)
    except ConfigError:
        return  # said already
    try:
        certificates.check_chain(chain, trusted, dt.datetime.now(dt.UTC))
    except RequestRefused as problem:
        what = f"{str(problem).removeprefix('certificate: ')} ({holder.credentials.ca_certificate})"
        yield error(f"certificate of {holder.label}", what, "nobody on this network believes it", holder.fix)


def _names(holder: Holder, certificate: x509.Certificate) -> Iterator[Finding]:
    on = f"certificate of {holder.label}"
    try:
        identity = identity_of(certificate.public_bytes(serialization.Encoding.DER))
    except ValueError as problem:
        yield error(on, f"it cannot be read: {_short(problem)}", NO_TLS, holder.fix)
        return
    wrong = holder.names(identity)
    if wrong:
        yield error(on, wrong, "the others take its holder for somebody else", holder.fix)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = set(names.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        hosts = set()
    missing = [host for host in holder.hosts if host not in hosts]
    if missing:
        what = f"the host names {', '.join(missing)} are missing"
        yield error(on, what, "clients that reach it by these names refuse it", holder.fix)


def _usages(holder: Holder, certificate: x509.Certificate) -> Iterator[Finding]:
    try:
        found: Iterable[ObjectIdentifier] = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return  # then it is good for everything
    missing = [usage for usage in holder.usages if usage not in set(found)]
    if missing:
        words = {ExtendedKeyUsageOID.CLIENT_AUTH: "client", ExtendedKeyUsageOID.SERVER_AUTH: "server"}
        what = f"its extended key usage lacks TLS {' and '.join(words[usage] for usage in missing)}"
        yield error(f"certificate of {holder.label}", what, NO_TLS, holder.fix)


def _revoked(holder: Holder, certificate: x509.Certificate) -> Iterator[Finding]:
    if holder.revocation_list is None or not holder.revocation_list.exists():
        return
    try:
        revoked = x509.load_pem_x509_crl(holder.revocation_list.read_bytes())
    except (OSError, ValueError):
        return  # the check of revocation lists says what is wrong with it
    entry = revoked.get_revoked_certificate_by_serial_number(certificate.serial_number)
    if entry is not None:
        what = f"it was revoked on {entry.revocation_date_utc:%Y-%m-%d %H:%M} UTC"
        fix = "if that was meant, nothing; else invite its holder anew (docs/enrolment.md)"
        yield error(f"certificate of {holder.label}", what, "nobody on this network answers its holder", fix)


def _authorities(holder: Holder) -> Iterator[Finding]:
    path = holder.credentials.ca_certificate
    try:
        found = authorities(path)
    except ConfigError as problem:
        yield error(f"file {path}", str(problem), "no certificate can be checked", "restore it from the authority")
        return
    for certificate in found:
        name = certificate.subject.rfc4514_string()
        fix = "add the next CA at every node (docs/enrolment.md), then enrol everybody anew"
        for finding in _life(f"CA {name} in {path}", certificate, "all its certificates fail", fix, fix):
            # An old CA beside one that lives is no harm.
            is_alone = len(found) == 1
            yield finding if is_alone else Finding(Level.WARNING, finding.on, finding.what, finding.why, finding.fix)


def _short(problem: Exception) -> str:
    return (problem.strerror if isinstance(problem, OSError) else str(problem)) or type(problem).__name__
