"""Whom a node believes, and what it writes down about it: revocation, audit, approvals and its own certificate.

Watched about once a second, so that a change on the disk is in force within two:

    the revocation list       `node.revocation`; also for connections that are open
    its own certificate       a renewed one serves new connections
    the audit log             while it cannot be written, no key goes out (fail closed) and an alarm is up

Operations that need two persons here: `add-ca`, `add-verifying-key`, and what the caller adds (unseal, export).
"""

import asyncio
import datetime as dt
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from qtrunk.api.admin import AdminHandler
from qtrunk.api.approvals import Operation, Parameters, approvals_handler, audit_handler
from qtrunk.api.https import Handler, Request, Response, error
from qtrunk.api.roles import Operator
from qtrunk.api.tls import PeerIdentity, Renewed
from qtrunk.base.errors import RequestRefused, StoreError
from qtrunk.base.ids import LinkId
from qtrunk.base.ports import Clock, Random
from qtrunk.kms.approvals import Approvals
from qtrunk.kms.audit import AuditLog
from qtrunk.kms.shelf import FileShelf
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.ca import files, verifying
from qtrunk.node.config import NodeConfig
from qtrunk.node.refusals import Refusals
from qtrunk.node.revocation import CHECK_PERIOD_S, Registry, authorities

EXPIRY_WARNING, EXPIRY_MAJOR = (1 / 6, dt.timedelta(days=30)), (1 / 12, dt.timedelta(days=7))
"""Left when the alarm goes up: so much of a certificate's life, and no more than so long. Renewal is due from a third
of the life on.
"""


class Trust:
    """One node's."""

    def __init__(
        self,
        config: NodeConfig,
        clock: Clock,
        random: Random,
        alarms: AlarmBoard,
        operations: Mapping[str, Operation] | None = None,
    ) -> None:
        directory = Path(config.directory)
        self._config = config
        self._clock = clock
        self._alarms = alarms
        self._certificate = Path(config.certificate)
        self._ca_certificate = Path(config.ca_certificate)
        self._refusals = Refusals(clock, alarms)
        self._contexts: list[Renewed] = []
        path = None if config.revocation_list is None else Path(config.revocation_list)
        self._registry = Registry(path, self._ca_certificate, clock)
        self.audit = AuditLog(directory / "audit", clock)
        self._shelf = FileShelf(directory / "proposals.sqlite")
        self._approvals = Approvals(self._shelf, self.audit, clock, random)
        self._operations = {
            "add-ca": Operation(_check_ca, self._add_ca),
            "add-verifying-key": Operation(self._check_verifying_key, self._add_verifying_key),
            **(operations or {}),
        }
        self._seen = self._certificate_seen()
        self.audit.record(f"node {config.node}", "start")

    def adopt(self, config: NodeConfig) -> None:
        """The node has taken another configuration."""
        self._config = config

    def close(self) -> None:
        """The node stops."""
        if self.audit.problem is None:
            self.audit.record(f"node {self._config.node}", "stop")
        self.audit.close()
        self._shelf.close()

    def is_revoked(self, identity: PeerIdentity) -> bool:
        """Whether a certificate that TLS has verified is void all the same."""
        return self._registry.is_revoked(identity)

    def guarded(self, handler: Handler) -> Handler:
        """A key interface that answers nobody who is revoked, and nobody at all while nothing can be audited."""

        async def handle(request: Request) -> Response:
            if self._registry.is_revoked(request.identity):
                self._refusals.note(request.identity)
                return error(401, "this certificate is revoked")
            if self.audit.problem is not None:
                return error(503, "the audit log cannot be written: no key is given out", {"Retry-After": "5"})
            answer = await handler(request)
            if answer.status == 401:
                self._refusals.note(request.identity)
            return answer

        return handle

    def may_answer(self) -> bool:
        """Whether key may be given out at all: what cannot be audited is not done."""
        return self.audit.problem is None

    def handlers(self) -> dict[str, AdminHandler]:
        """What it answers on the administration interface."""
        return {
            "approvals": approvals_handler(self._approvals, self._operations),
            "audit": audit_handler(Path(self._config.directory) / "audit"),
            "crl": self._take_crl,
        }

    def note_refusal(self, operator: Operator, what: str) -> None:
        """An operator tried to change what its roles do not let it change."""
        self.audit.record(f"operator {operator.name}", what, self._config.node, "refused")

    def when_revoked(self, call: Callable[[], None]) -> None:
        """Call this whenever another list is in force."""
        self._registry.on_change = call

    # ── watching ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def keep_watching(self, contexts: list[Renewed]) -> None:
        """For ever; `contexts` get a renewed certificate and an added CA."""
        self._contexts = contexts
        while True:
            self.look()
            await asyncio.sleep(CHECK_PERIOD_S)

    def look(self) -> None:
        """Once: see what has changed on the disk, and set the alarms."""
        self._registry.look()
        self._alarm("revocation", "RevocationListStale", "major", self._registry.problem)
        self.audit.look()
        if self.audit.problem is not None:
            try:
                self.audit.record(f"node {self._config.node}", "resume")
            except StoreError as problem:
                self._alarm("audit", "AuditUnwritable", "critical", str(problem))
        if self.audit.problem is None:
            self._alarms.clear("audit")
        self._look_at_certificate()
        self._refusals.look()

    def _look_at_certificate(self) -> None:
        try:
            seen = self._certificate_seen()
            if seen != self._seen:
                for context in self._contexts:
                    context.load_cert_chain(self._certificate, self._config.private_key)
                self._seen = seen
            found = x509.load_pem_x509_certificate(self._certificate.read_bytes())
        except (OSError, ValueError) as problem:
            self._alarm("certificate", "CertificateUnreadable", "major", f"{self._certificate}: {problem}")
            return
        self._alarms.clear("certificate", "CertificateUnreadable")
        life = found.not_valid_after_utc - found.not_valid_before_utc
        left = found.not_valid_after_utc - dt.datetime.fromtimestamp(self._clock.unix_s(), dt.UTC)
        is_late, is_urgent = (left < min(share * life, most) for share, most in (EXPIRY_WARNING, EXPIRY_MAJOR))
        text = f"the node's certificate expires on {found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; `qtrunk enrol renew`"
        severity = "major" if is_urgent else "warning"
        self._alarm("certificate", "CertificateExpiring", severity, text if is_late else None)

    def _certificate_seen(self) -> tuple[int, int]:
        stat = self._certificate.stat()
        return stat.st_mtime_ns, stat.st_ino

    def _alarm(self, resource: str, type_: str, severity: str, text: str | None) -> None:
        if text is None:
            self._alarms.clear(resource, type_)
        else:
            self._alarms.raise_alarm(resource, type_, severity, text)

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _take_crl(self, request: Request, operator: Operator) -> Response:
        """The list is signed: what it revokes was approved at the authority."""
        try:
            pem = msgspec.json.decode(request.body, type=dict[str, str])["crl"].encode()
        except (msgspec.MsgspecError, KeyError):
            raise RequestRefused("body: JSON with crl is needed") from None
        with self.audit.during(f"operator {operator.name}", "install revocation list", self._config.node):
            number = self._registry.install(pem)
        return Response(200, msgspec.json.encode({"number": number}))

    def _add_ca(self, parameters: Parameters, _body: bytes, who: str) -> dict[str, object]:
        _check_ca(parameters)
        pem = str(parameters["certificate"])
        known = {certificate.fingerprint(hashes.SHA256()) for certificate in authorities(self._ca_certificate)}
        added = x509.load_pem_x509_certificate(pem.encode())
        fingerprint = added.fingerprint(hashes.SHA256()).hex()
        if added.fingerprint(hashes.SHA256()) in known:
            raise RequestRefused("certificate: this CA is believed already")
        with self.audit.during(who, "add CA", self._config.node, {"fingerprint": fingerprint}):
            files.write(self._ca_certificate, self._ca_certificate.read_bytes().rstrip(b"\n") + b"\n" + pem.encode())
            for context in self._contexts:
                context.load_verify_locations(cadata=pem)
        return {"fingerprint": fingerprint}

    def _check_verifying_key(self, parameters: Parameters) -> None:
        self._key_paths(parameters)
        verifying.load_key(str(parameters["key"]).encode())

    def _add_verifying_key(self, parameters: Parameters, _body: bytes, who: str) -> dict[str, object]:
        self._check_verifying_key(parameters)
        with self.audit.during(who, "add verifying key", str(parameters["node"])):
            for path in self._key_paths(parameters):
                files.write(path, str(parameters["key"]).encode())
        return {"in_force": "when the node starts again"}

    def _key_paths(self, parameters: Parameters) -> list[Path]:
        """Where the verifying key of a neighbour is kept."""
        if set(parameters) != {"node", "key"}:
            raise RequestRefused("parameters: node and key are needed")
        topology = self._config.load_topology()
        own = self._config.node_id
        neighbours = {link.id: link.other(own) for link in topology.links_of(own)}
        found = [
            Path(entry.peer_verifying_key)
            for entry in self._config.links
            if entry.peer_verifying_key is not None and neighbours.get(LinkId(entry.link)) == parameters["node"]
        ]
        if not found:
            raise RequestRefused("node: not a neighbour over a link with bootstrap = ml-dsa")
        return found


def _check_ca(parameters: Parameters) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(str(parameters["certificate"]).encode())
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (KeyError, ValueError, x509.ExtensionNotFound):
        is_ca = False
    if not is_ca or set(parameters) != {"certificate"}:
        raise RequestRefused("certificate: the certificate of a CA, in PEM, is needed")
