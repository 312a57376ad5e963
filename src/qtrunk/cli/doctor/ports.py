"""Who listens where: reached by TLS with the node's own certificate, as the right KME, by who asks and by neighbours.

A port that nobody should use yet is looked at, too: another program there would keep the node from starting.
"""

import errno
import socket
import ssl
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from qtrunk.api.tls import kme_ids_of
from qtrunk.cli.doctor.finding import Finding, error, warning
from qtrunk.cli.doctor.site import Site, at_once, links_of, reachable
from qtrunk.node.channel import node_context
from qtrunk.node.config import Address, NodeConfig
from qtrunk.node.lab import Lab
from qtrunk.node.pki import Credentials

CONNECT_S = 3.0
REFUSAL_S = 0.5
"""In TLS 1.3 the server looks at our certificate after our handshake is over; it closes then, or waits for us."""


@dataclass(frozen=True, slots=True)
class Service:
    """One port, the node that calls it and the node that should be there."""

    name: str
    address: Address
    caller: NodeConfig
    credentials: Credentials
    """Of the caller, or of an SAE where it takes SAEs only."""
    kme_id: str
    certificate: Path | None = None
    """What it should show; None where that file is not on this machine."""
    is_for_others: bool = False
    """Whether it is right to close connections of the caller, who is no SAE."""

    @property
    def on(self) -> str:
        """The object of findings."""
        return f"node {self.kme_id}, {self.name} at {self.address.host}:{self.address.port}"


class _NotReachedError(Exception):
    """What happened instead."""


def check_ports(site: Site) -> Iterator[Finding]:
    """Every service of every node."""
    found = [service for config in site.nodes for service in services(config, site.lab)]
    if site.is_meant_to_run:
        found += [service for config in site.nodes for service in _neighbours(config)]
        yield from _folded(zip(found, at_once(lambda service: list(_reached(service)), found), strict=True))
    else:
        yield from _taken(site, found)


def check_modules(site: Site) -> Iterator[Finding]:
    """The socket of each QKD module, while the nodes run."""
    for config in site.nodes:
        for entry, link in links_of(config):
            path = Path(entry.device_socket)
            if link.vendor is not None:
                continue
            try:
                is_socket = stat.S_ISSOCK(path.stat().st_mode)
            except OSError:
                is_socket = False
            if not is_socket:
                what = f"no QKD module's driver has the socket {path}"
                fix = f"see {site.lab.state}/logs/optics-{entry.link}.out" if site.lab else "start the driver"
                yield error(f"node {config.node}, link {entry.link}", what, "the link gives no key", fix)


def services(config: NodeConfig, lab: Lab | None = None) -> list[Service]:
    """What a node serves, by its configuration; a lab has SAEs to ask for what only they get."""
    named = {
        "key API": config.key_api,
        "administration": config.admin_api,
        "inter-node": config.inter_node,
        "key streams": config.stream_api,
        "SKIP": config.skip_api,
        "ETSI GS QKD 015": config.sdn_api,
    }
    kme_id = config.load_topology().kme_id(config.node_id)
    own = _credentials(config)
    sae = next((sae.id for sae in lab.topology.saes if sae.node == config.node), None) if lab else None
    found: list[Service] = []
    for name, address in named.items():
        if address is not None:
            is_for_saes = name == "key streams"
            credentials = lab.credentials(sae) if is_for_saes and lab and sae else own
            found.append(
                Service(name, address, config, credentials, kme_id, own.certificate, is_for_saes and sae is None)
            )
    return found


def _credentials(config: NodeConfig) -> Credentials:
    return Credentials(Path(config.certificate), Path(config.private_key), Path(config.ca_certificate))


def _neighbours(config: NodeConfig) -> Iterator[Service]:
    """Whom a node dials: Alice's end of a link does."""
    for entry, link in links_of(config):
        if link.alice == config.node_id:
            name = f"inter-node, as {config.node} dials it for link {link.id}"
            yield Service(name, entry.peer, config, _credentials(config), config.load_topology().kme_id(link.bob))


def _reached(service: Service) -> Iterator[Finding]:
    try:
        der = shake_hands(service)
    except _NotReachedError as problem:
        what, why, fix = problem.args
        yield error(service.on, what, why, fix)
        return
    names = kme_ids_of(der)
    if service.kme_id not in names:
        who = f"KME {', '.join(sorted(names))}" if names else "nobody of this network"
        fix = "correct the port or address, or stop what has it"
        yield error(service.on, f"it is not KME {service.kme_id} who answers but {who}", "it is refused", fix)
    elif service.certificate is not None and not _is_first_in(der, service.certificate):
        what = f"it shows another certificate than {service.certificate}"
        yield warning(service.on, what, "the renewed one is not in force", "see node.log; restart the node")


def _folded(found: Iterable[tuple[Service, list[Finding]]]) -> Iterator[Finding]:
    """One finding for the same fault of several services of a node, as when it is down."""
    alike: dict[tuple[str, str], list[tuple[Service, Finding]]] = {}
    for service, findings in found:
        for finding in findings:
            alike.setdefault((service.kme_id, finding.what), []).append((service, finding))
    for (kme_id, _), members in alike.items():
        # Where a neighbour dials is the same port as the node's own, unless one of them is wrong.
        places: dict[Address, str] = {}
        for service, _ in members:
            places.setdefault(service.address, f"{service.name} at {service.address.host}:{service.address.port}")
        yield msgspec.structs.replace(members[0][1], on=f"node {kme_id}, {', '.join(places.values())}")


def _is_first_in(der: bytes, path: Path) -> bool:
    """Whether a certificate is the one of a file; a file that cannot be read is another check's matter."""
    try:
        text = path.read_text("ascii")
        return ssl.PEM_cert_to_DER_cert(text[: text.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)].strip()) == der
    except (OSError, ValueError):
        return True


def shake_hands(service: Service) -> bytes:
    """A TLS handshake with the caller's certificate, and a moment to be refused; the certificate of who is there (DER).

    Raises _NotReachedError with what, why and the fix.
    """
    start = f"start the node (or unseal it), or see {service.caller.directory}/node.log"
    own = service.credentials
    try:
        context = node_context(own.certificate, own.private_key, own.ca_certificate, server=False)
    except OSError as problem:
        what = f"not tried: {own.certificate} and its key cannot be used ({problem.strerror or problem})"
        why = "nothing can be said of who listens"
        raise _NotReachedError(what, why, "see the findings on certificates") from problem
    try:
        plain = socket.create_connection(reachable(service.address), CONNECT_S)
    except TimeoutError as problem:
        what = f"no answer within {CONNECT_S:.0f} s"
        raise _NotReachedError(what, "it cannot be used", "look at firewalls and routes on the way") from problem
    except OSError as problem:
        is_refused = problem.errno == errno.ECONNREFUSED
        what = "nothing listens there" if is_refused else f"it cannot be reached ({problem.strerror or problem})"
        raise _NotReachedError(
            what, "it cannot be used", start if is_refused else "look at name and route"
        ) from problem
    with plain:
        try:
            with context.wrap_socket(plain) as tls:
                der = tls.getpeercert(binary_form=True) or b""
                tls.settimeout(REFUSAL_S)
                is_open = _stays_open(tls)
        except ssl.SSLCertVerificationError as problem:
            what = f"its certificate is not believed: {problem.verify_message}"
            fix = "enrol it with the CA of this network, or add its CA (docs/enrolment.md)"
            raise _NotReachedError(what, "every connection to it fails", fix) from problem
        except ssl.SSLError as problem:
            what = f"TLS 1.3 fails ({problem.reason or problem})"
            fix = f"if a certificate is refused: see the findings on certificates; else see what listens there; {start}"
            raise _NotReachedError(what, "every connection to it fails", fix) from problem
        except OSError as problem:
            what = f"no TLS handshake: {problem.strerror or 'no answer in time'}"
            fix = f"another program may have the port, or the node is overloaded; {start}"
            raise _NotReachedError(what, "it cannot be used", fix) from problem
    if not is_open and not service.is_for_others:
        what = f"it closes connections with {own.certificate}"
        fix = "see whether it is revoked or its CA unknown there (findings on certificates), or the node is overloaded"
        raise _NotReachedError(what, "it cannot be used", fix)
    return der


def _stays_open(tls: ssl.SSLSocket) -> bool:
    """False if the server closes at once; ssl.SSLError where it says why it does not take our certificate."""
    try:
        return tls.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


def _taken(site: Site, found: list[Service]) -> Iterator[Finding]:
    """Ports that others have while the nodes are down."""
    for service in found:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((service.address.host, service.address.port))
            except OSError as problem:
                what = f"another program has the port ({problem.strerror})"
                fixed = site.lab.topology.node(service.caller.node_id) if site.lab else None
                ports = fixed and {
                    fixed.key_api_port, fixed.admin_api_port, fixed.inter_node_port, fixed.stream_api_port,
                    fixed.skip_api_port, fixed.sdn_api_port,
                }  # fmt: skip
                if ports and service.address.port in ports:
                    yield error(service.on, what, "the node cannot start", "stop it, or change the topology's port")
                else:
                    yield warning(service.on, what, "the port will be another one", "qtrunk up chooses a free one")
