"""The enrolment service: the authority over HTTPS.

    GET  /enrol/v1/authority    its certificate and verifying key; believed because the token pins them
    GET  /enrol/v1/crl          the revocation list                           anyone
    GET  /enrol/v1/directory    the nodes' verifying keys, signed             anyone
    POST /enrol/v1/join         a token and a request: a certificate          who holds a token
    POST /enrol/v1/renew        a request: the next certificate               who holds a living certificate
    …    /admin/v1/…            status, certificates, invitations, approvals, audit: operators, by `api.roles.TABLE`

Its server certificate has the name `urn:qtrunk:authority:NAME`, which no invitation gives, so no other party of the
network can pose as it whatever the host is called. Guessing tokens is hopeless (256 bits); it is slowed and alarmed all
the same: each failure waits, longer with each, and at most GUESSES_MAX wait at once while others are turned away. Who
has a token of this authority, or a certificate to renew, guesses nothing and is never turned away.
"""

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from qtrunk.api.admin import Gate
from qtrunk.api.approvals import Operation, Parameters, approvals_handler, audit_handler
from qtrunk.api.https import HttpsServer, Request, Response, error
from qtrunk.api.roles import Operator, OperatorRole
from qtrunk.api.tls import PeerIdentity, server_context
from qtrunk.base.errors import NotAuthorised, QtrunkError, RequestRefused, StoreError
from qtrunk.base.ports import Clock, Random
from qtrunk.kms.approvals import Approvals
from qtrunk.kms.shelf import FileShelf
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.ca import authority as ca
from qtrunk.node.ca import certificates, files
from qtrunk.node.ca.identity import LIFE_DAYS, Identity, Kind

T = TypeVar("T")

GUESSES_MAX = 8
PAUSE_S = 0.25
PAUSE_S_MAX = 8.0
CALM_S = 600.0
"""Without a failure, after which the next one waits shortly again."""
REFRESH_S = 3600.0
NOBODY = PeerIdentity(candidates=(), uris=(), fingerprint="", expires_unix_s=float("inf"))
TTL_S = 3600.0


class Invited(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of an invitation."""

    kind: Kind
    name: str
    roles: list[OperatorRole] = []
    hosts: list[str] = []
    ttl_s: float = TTL_S
    replaces: bool = False

    def identity(self) -> Identity:
        """Who is invited."""
        return Identity(self.kind, self.name, tuple(self.roles), tuple(self.hosts))

    def needs_two(self) -> bool:
        """Whether one officer alone may not: operators have roles, and a replacement changes who is trusted."""
        return self.kind in (Kind.OPERATOR, Kind.CONTROLLER) or self.replaces


class _Revoked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Kind
    name: str
    reason: str


class Service:
    """One authority on one port."""

    def __init__(
        self, authority: ca.Authority, directory: Path, clock: Clock, random: Random, alarms: AlarmBoard
    ) -> None:
        self._authority = authority
        self._alarms = alarms
        self._directory = directory
        self._clock = clock
        self._failures = 0
        self._last_failure_s = 0.0
        self._waiting = 0
        self._shelf = FileShelf(directory / "proposals.sqlite")
        approvals = Approvals(self._shelf, authority.audit, clock, random)
        self._gate = Gate(
            {
                "status": self._status,
                "certificates": self._certificates,
                "invitations": self._invite,
                "approvals": approvals_handler(approvals, self._operations()),
                "audit": audit_handler(directory / "audit"),
            },
            self._is_void,
            self._note_refusal,
        )
        self._own_certificate()
        context = server_context(directory / "cert.pem", directory / "key.pem", directory / "ca.pem")
        # Who joins has no certificate yet; one that is shown must be good.
        context.verify_mode = ssl.CERT_OPTIONAL
        self._context = context
        self._server = HttpsServer(self.handle, context, anonymous=NOBODY)
        self._refreshing: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port."""
        self._authority.refresh()
        self._refreshing = asyncio.create_task(self._keep_refreshing())
        return await self._server.start(host, port)

    async def stop(self) -> None:
        """Stop listening."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        await self._server.stop()
        self._shelf.close()

    async def _keep_refreshing(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                self._authority.refresh()
                self._own_certificate()
                self._context.load_cert_chain(self._directory / "cert.pem", self._directory / "key.pem")
            except (StoreError, OSError) as problem:
                # The service goes on with what it has; the next attempt comes in time for either.
                self._alarms.raise_alarm("authority", "RefreshFailed", "critical", str(problem))
            else:
                self._alarms.clear("authority")

    def _own_certificate(self) -> None:
        """A fresh one at each start and each refresh: it is the authority's own, so that costs nothing."""
        identity = Identity(Kind.AUTHORITY, "enrolment")
        key = certificates.new_key()
        days = LIFE_DAYS[Kind.AUTHORITY]
        enrolled = self._authority.issue(identity, key.public_key(), days, "the enrolment service")
        files.switch(self._directory, certificates.key_pem(key), enrolled.certificate)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        match request.method, request.segments:
            case "GET", ("enrol", "v1", "authority"):
                certificate = certificates.certificate_pem(self._authority.certificate).decode()
                found = {"certificate": certificate, "verifying_key": self._authority.verifying_key.hex()}
                return Response(200, msgspec.json.encode(found))
            case "GET", ("enrol", "v1", "crl"):
                return Response(200, msgspec.json.encode({"crl": self._authority.crl().decode()}))
            case "GET", ("enrol", "v1", "directory"):
                return Response(200, self._authority.directory())
            case "POST", ("enrol", "v1", "join" | "renew"):
                return await self._enrol(request)
            case _, ("admin", *_):
                return await self._gate.handle(request)
            case _:
                return error(404, "unknown path")

    async def _enrol(self, request: Request) -> Response:
        is_renewal = request.segments[2] == "renew"
        if not is_renewal and self._waiting >= GUESSES_MAX and not ca.is_invited(self._authority, request.body):
            return error(503, "too many attempts to enrol that failed; try again later", {"Retry-After": "10"})
        try:
            enrolled = self._renew(request) if is_renewal else ca.join(self._authority, request.body)
        except RequestRefused as problem:
            return error(400, str(problem))
        except NotAuthorised as problem:
            if not is_renewal:
                await self._slow_down()
            return error(401, str(problem))
        except QtrunkError as problem:
            return error(503, str(problem), {"Retry-After": "5"})
        return Response(
            200,
            msgspec.json.encode(
                {
                    "certificate": enrolled.certificate.decode(),
                    "kind": enrolled.identity.kind,
                    "name": enrolled.identity.name,
                }
            ),
        )

    def _renew(self, request: Request) -> ca.Enrolled:
        body = ca.read_request(request.body)
        return self._authority.renew(request.identity.serial, request.identity.fingerprint, body.csr.encode())

    async def _slow_down(self) -> None:
        """Before a failed attempt is told so."""
        now_s = self._clock.monotonic_s()
        if now_s - self._last_failure_s > CALM_S:
            self._failures = 0
        self._failures += 1
        self._last_failure_s = now_s
        self._waiting += 1
        try:
            await asyncio.sleep(pause_s(self._failures))
        finally:
            self._waiting -= 1

    def _note_refusal(self, operator: Operator, what: str) -> None:
        self._authority.audit.record(f"operator {operator.name}", what, outcome="refused")

    def _is_void(self, identity: PeerIdentity) -> bool:
        issued = self._authority.find(identity.serial, identity.fingerprint)
        return issued is None or not issued.is_living(self._clock.unix_s())

    # ── what operators do ───────────────────────────────────────────────────────────────────────────────────────────

    async def _status(self, _request: Request, _operator: Operator) -> Response:
        living = [issued for issued in self._authority.issued() if issued.is_living(self._clock.unix_s())]
        found = {"living_certificates": len(living), "alarms": self._alarms.as_json()}
        return Response(200, msgspec.json.encode(found))

    async def _certificates(self, _request: Request, _operator: Operator) -> Response:
        return Response(200, msgspec.json.encode(self._authority.issued()))

    async def _invite(self, request: Request, operator: Operator) -> Response:
        invited = _parameters(_decoded(request.body), Invited)
        if invited.needs_two():
            raise NotAuthorised("an invitation of an operator, or of a replacement, needs two persons: propose it")
        return Response(200, msgspec.json.encode(self._invited(invited, f"operator {operator.name}")))

    def _invited(self, invited: Invited, who: str) -> dict[str, object]:
        token = self._authority.invite(invited.identity(), invited.ttl_s, who, replaces=invited.replaces)
        return {"token": bytes(token.reveal()).decode()}

    def _operations(self) -> Mapping[str, Operation]:
        def check_invitation(parameters: Parameters) -> None:
            _parameters(parameters, Invited).identity()

        def invite(parameters: Parameters, _body: bytes, who: str) -> dict[str, object]:
            return self._invited(_parameters(parameters, Invited), who)

        def check_revocation(parameters: Parameters) -> None:
            self._authority.check_revocation(*_revocation(parameters))

        def revoke(parameters: Parameters, _body: bytes, who: str) -> dict[str, object]:
            return {"revoked": self._authority.revoke(*_revocation(parameters), who)}

        return {"invite": Operation(check_invitation, invite), "revoke": Operation(check_revocation, revoke)}


def pause_s(failures: int) -> float:
    """How long a failed attempt waits for its answer, the `failures`-th in a row."""
    return min(PAUSE_S_MAX, PAUSE_S * 2.0 ** min(10, failures - 1))


def _revocation(parameters: Parameters) -> tuple[Kind, str, str]:
    found = _parameters(parameters, _Revoked)
    return found.kind, found.name, found.reason


def _decoded(body: bytes) -> Parameters:
    try:
        return msgspec.json.decode(body, type=dict[str, object])
    except msgspec.MsgspecError:
        raise RequestRefused("body: a JSON object is needed") from None


def _parameters(parameters: Parameters, kind: type[T]) -> T:
    try:
        return msgspec.convert(parameters, kind)
    except msgspec.ValidationError as problem:
        raise RequestRefused(f"parameters: {problem}") from None
