"""Who may ask for what on the administration interfaces: one table, and what is not in it nobody may.

An operator is who has a certificate with one URI name `urn:qtrunk:operator:NAME`; its roles are the URI names
`urn:qtrunk:role:ROLE`. A role gives nothing but its rows of `TABLE`: who needs two roles has both in the certificate.

    viewer              sees whether things run
    operator            runs the network, sees receipts and ledgers
    security-officer    lets parties in and out, proposes and approves what needs two persons
    auditor             reads the audit log and the lists, changes nothing
    controller          a QKDN controller: reads status, hands nodes their routes, configures by ETSI GS QKD 015, passes
                        on what operators say of alarms
"""

from dataclasses import dataclass
from enum import StrEnum

from qtrunk.api.tls import PeerIdentity

OPERATOR_PREFIX = "urn:qtrunk:operator:"
ROLE_PREFIX = "urn:qtrunk:role:"


class OperatorRole(StrEnum):
    """What an operator's certificate may say."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    OFFICER = "security-officer"
    AUDITOR = "auditor"
    CONTROLLER = "controller"


@dataclass(frozen=True, slots=True)
class Operator:
    """Who asks: name and certificate tell two persons apart."""

    name: str
    fingerprint: str
    roles: frozenset[OperatorRole]


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: these roles may use this method on this path. `{…}` in a path stands for one part of any text."""

    method: str
    path: str
    roles: frozenset[OperatorRole]
    purpose: str

    def has_path(self, segments: tuple[str, ...]) -> bool:
        """Whether the row is about this path."""
        parts = self.path.split("/")[1:]
        return len(parts) == len(segments) and all(
            part == given or (part.startswith("{") and given != "") for part, given in zip(parts, segments, strict=True)
        )


_ALL = frozenset(OperatorRole)
_OFFICER = frozenset({OperatorRole.OFFICER})
_CONTROLLER = frozenset({OperatorRole.CONTROLLER})
_OPERATOR = frozenset({OperatorRole.OPERATOR})
_READERS = frozenset({OperatorRole.OPERATOR, OperatorRole.OFFICER, OperatorRole.AUDITOR})
_HANDLERS = frozenset({OperatorRole.OPERATOR, OperatorRole.OFFICER})
_SPEAKERS = _HANDLERS | _CONTROLLER
"""A controller passes on what operators said to it."""
_REVIEWERS = frozenset({OperatorRole.OFFICER, OperatorRole.AUDITOR})

TABLE: tuple[Rule, ...] = (
    Rule("GET", "/admin/v1/status", _ALL, "the node, its links, alarms and counts"),
    Rule("GET", "/admin/v1/keys/{key_ID}", _READERS, "the receipt of a key"),
    Rule("GET", "/admin/v1/ledger", _READERS, "where every octet of link key is or went"),
    Rule("GET", "/admin/v1/exposure", _READERS, "end-to-end key, by how it came: what falls with which node"),
    Rule("GET", "/admin/v1/alarms", _ALL, "every alarm of the node"),
    Rule("GET", "/admin/v1/alarms/{id}", _ALL, "one alarm with its histories"),
    Rule("POST", "/admin/v1/alarms/{id}/{word}", _SPEAKERS, "say ack, close, shelve, unshelve or none of an alarm"),
    Rule("GET", "/admin/v1/ietf-alarms", _ALL, "the alarms as RFC 8632 has them"),
    Rule("GET", "/admin/v1/maintenance", _READERS, "maintenance windows"),
    Rule("POST", "/admin/v1/maintenance", _OPERATOR, "drain a node or a link, now or later"),
    Rule("POST", "/admin/v1/maintenance/{resource}/end", _OPERATOR, "end or call off a maintenance window"),
    Rule("POST", "/admin/v1/configuration", _OFFICER, "take the node's configuration file anew: a changed network"),
    Rule("GET", "/admin/v1/audit", _REVIEWERS, "records of the audit log"),
    Rule("GET", "/admin/v1/approvals", _REVIEWERS, "what waits for a second person, and what became of it"),
    Rule("GET", "/admin/v1/approvals/{id}", _REVIEWERS, "one proposal, with the exact operation"),
    Rule("POST", "/admin/v1/approvals", _OFFICER, "propose what needs two persons"),
    Rule("POST", "/admin/v1/approvals/{id}/yes", _OFFICER, "approve another officer's proposal"),
    Rule("POST", "/admin/v1/approvals/{id}/no", _OFFICER, "refuse a proposal, or take back one's own"),
    Rule("POST", "/admin/v1/approvals/{id}/run", _OFFICER, "execute one's own approved proposal, once"),
    Rule("POST", "/admin/v1/vault/shares", _OFFICER, "give one share of a sealed node's master key"),
    Rule("POST", "/admin/v1/vault/seal", _OFFICER, "seal a node: out of service until it is unsealed"),
    Rule("POST", "/admin/v1/crl", _OFFICER, "give a node a newer revocation list of its CA"),
    Rule("GET", "/admin/v1/certificates", _READERS, "certificates that the CA issued"),
    Rule("GET", "/admin/v1/routes", _ALL, "which order of routes the node holds"),
    Rule("PUT", "/admin/v1/routes", _CONTROLLER, "hand the node its routes"),
    Rule("GET", "/control/v1/status", _ALL, "a controller: whether it leads"),
    Rule("GET", "/control/v1/network", _ALL, "the network in numbers"),
    Rule("GET", "/control/v1/nodes", _ALL, "every node, as the controller sees it"),
    Rule("GET", "/control/v1/links", _ALL, "every link"),
    Rule("GET", "/control/v1/pools", _ALL, "pools of end-to-end key"),
    Rule("GET", "/control/v1/routes", _ALL, "the plan of routes"),
    Rule("GET", "/control/v1/services", _ALL, "pairs of SAEs, their protection and figures"),
    Rule("GET", "/control/v1/alarms", _ALL, "active alarms of the network, what follows below its root"),
    Rule("POST", "/control/v1/alarms/{id}/{word}", _HANDLERS, "say ack, close, … of an alarm, where it is"),
    Rule("GET", "/control/v1/alarms/summary", _ALL, "how many alarms are up, by severity"),
    Rule("GET", "/control/v1/alarms/history", _ALL, "alarms that the controllers have seen"),
    Rule("GET", "/control/v1/what-if", _ALL, "what a cut would do"),
    Rule("POST", "/admin/v1/invitations", _OFFICER, "invite a new SAE or node (the CA's interface)"),
)


RESTCONF_READERS = _ALL
"""Who may read the data of ETSI GS QKD 015 and listen to its notifications."""
RESTCONF_WRITERS = frozenset({OperatorRole.OPERATOR, OperatorRole.CONTROLLER})
"""Who may change what is configurable there."""


def operator_of(identity: PeerIdentity) -> Operator | None:
    """The operator that a verified certificate stands for; None if it is none, or names more than one."""
    names = [uri[len(OPERATOR_PREFIX) :] for uri in identity.uris if uri.startswith(OPERATOR_PREFIX)]
    if len(names) != 1 or not names[0]:
        return None
    known = {ROLE_PREFIX + role: role for role in OperatorRole}
    return Operator(names[0], identity.fingerprint, frozenset(known[uri] for uri in identity.uris if uri in known))


def rules_of(segments: tuple[str, ...]) -> list[Rule]:
    """The rows about a path, one for each method."""
    return [rule for rule in TABLE if rule.has_path(segments)]
