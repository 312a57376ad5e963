"""Who a certificate of the network is for, and the names that this puts into it.

    kind       URI names                                              may be       life
    sae        urn:qtrunk:sae:ID                                      client       30 days
    node       urn:qtrunk:kme:ID, with the host names it is given     both         30 days
    operator   urn:qtrunk:operator:NAME, urn:qtrunk:role:ROLE         client       7 days
    controller urn:qtrunk:operator:NAME, the roles viewer and         both         30 days
               controller, with the host names it is given
    authority  urn:qtrunk:authority:NAME: the enrolment service       server       30 days

The identity is the common name as well, because clients of ETSI GS QKD 014 look in either place.
"""

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from qtrunk.api.roles import OPERATOR_PREFIX, ROLE_PREFIX, OperatorRole
from qtrunk.base.errors import RequestRefused
from qtrunk.base.ids import is_node_id, parse_sae_id

_HOST = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
HOSTS_MAX = 16


class Kind(StrEnum):
    """What sort of party it is."""

    SAE = "sae"
    NODE = "node"
    OPERATOR = "operator"
    AUTHORITY = "authority"
    CONTROLLER = "controller"


LIFE_DAYS = {Kind.SAE: 30.0, Kind.NODE: 30.0, Kind.OPERATOR: 7.0, Kind.AUTHORITY: 30.0, Kind.CONTROLLER: 30.0}
CONTROLLER_ROLES = (OperatorRole.VIEWER, OperatorRole.CONTROLLER)
_PREFIX = {
    Kind.SAE: "urn:qtrunk:sae:",
    Kind.NODE: "urn:qtrunk:kme:",
    Kind.OPERATOR: OPERATOR_PREFIX,
    Kind.AUTHORITY: "urn:qtrunk:authority:",
    Kind.CONTROLLER: OPERATOR_PREFIX,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """One party. `roles` are an operator's, `hosts` a node's DNS names and addresses; checked when it is made."""

    kind: Kind
    name: str
    roles: tuple[OperatorRole, ...] = ()
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind is Kind.SAE:
            parse_sae_id(self.name)
        elif not is_node_id(self.name):
            raise RequestRefused("name: 1 to 63 of A-Z a-z 0-9 . _ -, a letter or digit first")
        if (self.kind in (Kind.OPERATOR, Kind.CONTROLLER)) != bool(self.roles):
            raise RequestRefused("role: an operator or controller has at least one, nobody else has any")
        if self.kind is Kind.CONTROLLER and set(self.roles) != set(CONTROLLER_ROLES):
            raise RequestRefused("role: a controller has viewer and controller")
        if len(set(self.roles)) != len(self.roles):
            raise RequestRefused("role: each at most once")
        if self.hosts and self.kind not in (Kind.NODE, Kind.CONTROLLER):
            raise RequestRefused("host: only a node or controller has host names")
        if len(self.hosts) > HOSTS_MAX or not all(_is_host(host) for host in self.hosts):
            raise RequestRefused(f"host: at most {HOSTS_MAX} DNS names or IP addresses")

    @property
    def uri(self) -> str:
        """The name that is binding."""
        return _PREFIX[self.kind] + self.name

    @property
    def label(self) -> str:
        """For logs and messages."""
        return f"{self.kind} {self.name}"

    def subject(self) -> x509.Name:
        """The certificate's subject."""
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])

    def names(self) -> x509.SubjectAlternativeName:
        """The certificate's subject alternative names."""
        uris = [self.uri, *(ROLE_PREFIX + role for role in self.roles)]
        return x509.SubjectAlternativeName(
            [x509.UniformResourceIdentifier(uri) for uri in uris] + [_host_name(host) for host in self.hosts]
        )

    def usages(self) -> x509.ExtendedKeyUsage:
        """What the certificate is good for in TLS."""
        client = [] if self.kind is Kind.AUTHORITY else [ExtendedKeyUsageOID.CLIENT_AUTH]
        server: list[ObjectIdentifier] = []
        if self.kind in (Kind.NODE, Kind.AUTHORITY, Kind.CONTROLLER):
            server.append(ExtendedKeyUsageOID.SERVER_AUTH)
        return x509.ExtendedKeyUsage(client + server)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_host(host: str) -> bool:
    return _address(host) is not None or _HOST.fullmatch(host) is not None


def _host_name(host: str) -> x509.GeneralName:
    address = _address(host)
    return x509.DNSName(host) if address is None else x509.IPAddress(address)
