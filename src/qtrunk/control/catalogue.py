"""The alarm inventory: every type that a node, the authority or the command line raises, what it means and what to do.

Probable causes are named after ITU-T X.733 (8.1.2.2), X.736 and M.3100. `rank` orders causes before effects
(`control.rootcause`): what has the higher rank may explain what has the lower one. docs/alarms.md has this table; a
test compares, and another one finds types that are raised and not listed.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AlarmType:
    """One row. `on`: the kind of resource it is raised on: link, pool, node or `own` (a part of the node itself)."""

    type: str
    severity: str
    """The default; where a caller says otherwise, the alarm has that."""
    on: str
    probable_cause: str
    meaning: str
    remedy: str
    rank: int = 0
    """0: never explains anything else, and nothing else explains it."""


_NODE = (
    AlarmType(
        "NodeUnreachable", "critical", "node", "communicationsSubsystemFailure",
        "a node does not answer to management, or all its neighbours lost it at once",
        "look whether its process, machine and power are up", 90,
    ),
    AlarmType(
        "RelayUnreachable", "major", "node", "underlyingResourceUnavailable",
        "nothing was heard of a node for ten seconds, by any way",
        "see the links between here and there; if they are well, see the node", 20,
    ),
    AlarmType(
        "NodeSealed", "critical", "own", "outOfService",
        "the node is sealed: no key is made or given out there", "unseal it: `qtrunk vault share`, docs/vault.md", 85,
    ),
    AlarmType(
        "StorageFull", "critical", "own", "storageCapacityProblem",
        "the disk takes no record: nothing goes out that cannot be recorded",
        "make room on the node's disk; it goes on by itself", 80,
    ),
    AlarmType(
        "AuditUnwritable", "critical", "own", "storageCapacityProblem",
        "the audit log cannot be written or was changed: the key interface answers 503",
        "make room, or restore the log; docs/audit.md", 80,
    ),
    AlarmType(
        "CertificateExpiring", "warning", "own", "keyExpired",
        "the node's certificate ends soon: warning with a sixth of its life left (at most 30 days), major with a "
        "twelfth (at most 7 days)",
        "`qtrunk enrol renew`",
    ),
    AlarmType(
        "CertificateUnreadable", "major", "own", "configurationOrCustomizationError",
        "the node's certificate cannot be read; the old one serves on", "set the file's rights right, or renew",
    ),
    AlarmType(
        "RevocationListStale", "major", "own", "outOfDateInformation",
        "the revocation list is late, forged, damaged or older than the one in force",
        "see the enrolment service; fetch a list with `qtrunk enrol refresh`",
    ),
    AlarmType(
        "AlarmsNotKept", "minor", "own", "storageCapacityProblem",
        "alarms cannot be written to the disk; they are up, but what operators said would not survive a restart",
        "make room on the node's disk",
    ),
    AlarmType(
        "AlarmSinkFailed", "warning", "own", "communicationsSubsystemFailure",
        "alarms could not be delivered to a receiver", "see the receiver, and its entry in alarms.toml",
    ),
    AlarmType(
        "RoutesUnreadable", "major", "own", "corruptData",
        "the routes that a controller had handed the node cannot be read; it finds its own",
        "nothing: the next order of the controller replaces them; see the disk if it comes again",
    ),
    AlarmType(
        "ClockOffset", "minor", "own", "timingProblem",
        "the node's clock differs from most of its neighbours' by more than a second; major from a minute on",
        "see NTP or PTP of both; from five minutes on notes between nodes are refused",
    ),
    AlarmType(
        "TamperInput", "critical", "own", "enclosureDoorOpen",
        "the enclosure was opened, or its contact cannot be read; up until it is shut and the alarm acknowledged",
        "see who was there; a node that sealed itself is unsealed as docs/vault.md says",
    ),
    AlarmType(
        "LoopbackTest", "major", "own", "configurationOrCustomizationError",
        "loopback_test is on: an SAE may be its own peer; such keys protect nothing", "take loopback_test out",
    ),
    AlarmType(
        "UnderMaintenance", "warning", "own", "outOfService",
        "a node or a link is drained for maintenance: routes avoid it, its other alarms are shelved",
        "nothing: it ends by itself, or with `qtrunk undrain`; docs/routing.md",
    ),
)  # fmt: skip

_LINK = (
    AlarmType(
        "ModuleMismatch", "critical", "link", "configurationOrCustomizationError",
        "the QKD module is not the one of the topology", "connect the right one, or correct the topology", 75,
    ),
    AlarmType(
        "ModuleLoss", "major", "link", "equipmentMalfunction",
        "the QKD module does not answer, or hangs: its heartbeat or the end of its light does not come",
        "see its power, cable and log", 75,
    ),
    AlarmType(
        "QuantumChannelLoss", "critical", "link", "lossOfSignal",
        "less than a tenth of the expected light arrives: a cut fibre, an open connector, a dark laser",
        "measure the fibre (OTDR); see connectors and transmitter", 70,
    ),
    AlarmType(
        "MonitorLimit", "critical", "link", "cableTamper",
        "a monitor of a module shows what an honest link would not: an attack, or a defect",
        "see the text and docs/attacks.md; keys made before stay good", 68,
    ),
    AlarmType(
        "ClassicalChannelLoss", "major", "link", "communicationsSubsystemFailure",
        "the classical channel to the peer is down", "see the network between both nodes, and the peer", 60,
    ),
    AlarmType(
        "PeerRefused", "critical", "link", "authenticationFailure",
        "the peer's certificate or words were not taken, or ours were not", "see certificates and versions of both", 60,
    ),
    AlarmType(
        "QberAboveAbort", "major", "link", "excessiveErrorRate",
        "so many errors that no key may be made: an eavesdropper, or optics out of adjustment",
        "nothing leaks; if it stays, see phase control and visibility, then look for whoever is on the fibre", 50,
    ),
    AlarmType(
        "QberRising", "warning", "link", "degradedSignal",
        "the error rate is well above what it was planned or used to be",
        "plan maintenance before it stops the link", 40,
    ),
    AlarmType(
        "VendorKmeUnreachable", "major", "link", "communicationsSubsystemFailure",
        "the vendor's key manager gives no connection or no answer", "see its network and power", 60,
    ),
    AlarmType(
        "VendorKmeRefused", "critical", "link", "authenticationFailure",
        "the vendor's key manager refuses, or certificates are not taken", "docs/vendor-links.md", 60,
    ),
    AlarmType(
        "VendorKmeGarbage", "critical", "link", "communicationsProtocolError",
        "an answer of the vendor's key manager is against the standard", "tell the vendor, with the text", 60,
    ),
    AlarmType(
        "VendorKeysMissing", "major", "link", "corruptData",
        "the vendor's key manager does not know key IDs that its peer gave out", "see the vendor's own link", 60,
    ),
    AlarmType(
        "VendorKeyShortage", "warning", "link", "resourceAtOrNearingCapacity",
        "the vendor's key manager had no key for long", "see the vendor's own link", 60,
    ),
    AlarmType(
        "VendorKeyMismatch", "critical", "link", "corruptData",
        "both key managers of a vendor gave different keys under one ID; the block is destroyed", "tell the vendor", 60,
    ),
    AlarmType(
        "LinkOff", "major", "link", "outOfService",
        "the last block had to be destroyed: the link is not trusted until a good one comes",
        "see the text, and the other alarms of the link", 35,
    ),
    AlarmType(
        "SkrBelowPlan", "minor", "link", "performanceDegraded",
        "the secret key rate is under half of what the plan says for this link",
        "compare loss and QBER with the plan (`qtrunk rate`)", 30,
    ),
    AlarmType(
        "GuaranteesAboveRate", "major", "link", "resourceAtOrNearingCapacity",
        "tenants' guarantees claim more of a link's direction than it gives, counting what lies ready for an hour",
        "lower guarantees, or add links; docs/routing.md",
    ),
    AlarmType(
        "AuthenticationKeyLow", "major", "link", "resourceAtOrNearingCapacity",
        "little authentication key is left; without it no block can be made",
        "it comes back with the next blocks; see why blocks fail", 25,
    ),
    AlarmType(
        "AuthenticationKeyLost", "critical", "link", "unauthorizedAccessAttempt",
        "authentication key was spent in vain many times in a row",
        "see the other alarms of the link, at both ends", 30,
    ),
    AlarmType(
        "EpsilonBudget", "major", "link", "resourceAtOrNearingCapacity",
        "the link's blocks add up to 80 % of epsilon_total", "give both ends a larger sum; docs/security.md",
    ),
    AlarmType(
        "AuthenticationBySignature", "warning", "link", "keyExpired",
        "blocks are authenticated by ML-DSA signatures: there is no authentication key yet",
        "it ends with the first blocks",
    ),
    AlarmType(
        "SettingsNotFollowed", "minor", "link", "softwareError",
        "no better light settings could be found; the present ones go on", "see the node's log",
    ),
    AlarmType(
        "ProtocolError", "major", "link", "communicationsProtocolError",
        "the peer's words make no sense; the channel was closed and is tried again",
        "compare versions of both ends", 55,
    ),
)  # fmt: skip

_KEYS = (
    AlarmType(
        "PoolLow", "minor", "pool", "thresholdCrossed",
        "a pool is under a quarter of its goal", "see the links on its route; demand may be above supply", 10,
    ),
    AlarmType(
        "PoolCritical", "major", "pool", "thresholdCrossed",
        "a pool is under a tenth of its goal", "as for PoolLow; lower demand, or add links", 10,
    ),
    AlarmType(
        "PoolEmpty", "critical", "pool", "resourceAtOrNearingCapacity",
        "nothing is left in a pool (or no key on a link, for a control message): requests wait or fail",
        "as for PoolLow, at once", 10,
    ),
    AlarmType(
        "QkdKeyFallback", "major", "pool", "underlyingResourceUnavailable",
        "a pool is filled by ML-KEM alone, as its tenant's policy allows", "see the links on its route", 5,
    ),
    AlarmType(
        "RelayAuthenticationFailed", "major", "link", "authenticationFailure",
        "a relay message was forged or damaged; the connection was closed", "if it stays, see who is on the network",
    ),
    AlarmType(
        "RelayProtocolError", "major", "link", "communicationsProtocolError",
        "a relay message of the neighbour makes no sense", "compare versions of both nodes",
    ),
    AlarmType(
        "RelayTampered", "major", "own", "informationModificationDetected",
        "the target's node holds another segment than the initiator's: a relay changed it",
        "the segment is destroyed; find the relay on the route that the text names",
    ),
    AlarmType(
        "NoteRefused", "warning", "own", "authenticationFailure",
        "a note between two nodes was not signed by whom it names, or is old", "see clocks and verifying keys",
    ),
    AlarmType(
        "SaeAuthFailure", "warning", "own", "authenticationFailure",
        "a key request was refused for who asked; major with thirty in a minute",
        "see in the text who it was: register its SAE, or see who has its certificate",
    ),
    AlarmType(
        "NeighbourUnreachable", "major", "own", "communicationsSubsystemFailure",
        "a foreign network's key manager gives no answer", "call its operator; docs/etsi020.md",
    ),
    AlarmType(
        "KeyNotVoidable", "warning", "own", "corruptData",
        "a key that failed here cannot be taken back at a foreign network", "nothing: it is never used again",
    ),
)  # fmt: skip

_AUTHORITY = (
    AlarmType(
        "RefreshFailed", "critical", "own", "storageCapacityProblem",
        "the authority could not renew its revocation list or certificate", "see its disk; docs/enrolment.md",
    ),
    AlarmType(
        "TokenMisused", "major", "own", "unauthorizedAccessAttempt",
        "an invitation was tried with a wrong secret, or a second time",
        "if its holder did not come first, revoke the certificate",
    ),
)  # fmt: skip

CATALOGUE: dict[str, AlarmType] = {row.type: row for row in (*_NODE, *_LINK, *_KEYS, *_AUTHORITY)}


def entry(type_: str) -> AlarmType:
    """The row of a type; one without rank and advice for types of other makers."""
    return CATALOGUE.get(type_) or AlarmType(type_, "indeterminate", "own", "indeterminate", "unknown here", "")


def is_shared(type_: str) -> bool:
    """Whether two nodes that say this of one resource mean one thing."""
    return entry(type_).on != "own"
