"""The certificate authority of a network: invites, issues, renews, revokes; a machine over its files.

    ca.pem, ca.key               its certificate and key (ECDSA P-256)
    verifying.pem, signing.key   the same for what is to outlast ECDSA: the directory is signed with ML-DSA-65
    records.sqlite               certificates, invitations, verifying keys
    ca.crl                       the revocation list, written anew with each revocation
    directory.json               the nodes' verifying keys, signed
    audit/                       who did what

Order of everything: check, audit, make durable, then let go out. What an authority puts into a certificate comes from
the invitation (or the certificate that is being renewed), never from the request: that gives its public key alone.

Who owns `ca.key` owns the network; docs/enrolment.md says where to keep it. Errors: RequestRefused (the request is
wrong), NotAuthorised (the token or certificate does not give that), StoreError (it cannot be recorded: refused).
"""

import base64
import binascii
import contextlib
import datetime as dt
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from qtrunk.api.roles import OperatorRole
from qtrunk.base.errors import NotAuthorised, RequestRefused
from qtrunk.base.ports import Clock, Random
from qtrunk.base.secret import Secret
from qtrunk.kms.audit import AuditLog, Value
from qtrunk.node.ca import certificates, files, verifying
from qtrunk.node.ca.identity import LIFE_DAYS, Identity, Kind
from qtrunk.node.ca.records import Invitation, Issued, Records
from qtrunk.node.ca.tokens import Token, new_token, parse_token, pin_of

CA_DAYS = 3650.0
CRL_DAYS = 2.0
RENEW_FROM = 2 / 3
"""Of a certificate's life, from when on its holder may renew it."""
TTL_S_MAX = 7 * 86400.0
FAILURES_MAX = 10
"""Wrong secrets for one invitation, after which it is void."""
REASON_MAX = 200


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What a holder gets."""

    certificate: bytes
    """PEM."""
    identity: Identity


class Authority:
    """One authority in its directory (mode 0700)."""

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        random: Random,
        name: str = "qtrunk CA",
        crl_days: float = CRL_DAYS,
        alarm: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Open or make. `alarm` is told of attempts to guess or use a token again."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._clock = clock
        self._random = random
        self._crl_days = crl_days
        self.alarm = alarm
        if not (directory / "ca.pem").exists():
            key = certificates.new_key()
            files.write(directory / "ca.key", certificates.key_pem(key), private=True)
            made = certificates.make_authority(name, key, self._now(), CA_DAYS)
            # The public half comes last: where it is, both are.
            files.write(directory / "ca.pem", certificates.certificate_pem(made))
        self.certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
        self._key = certificates.load_key((directory / "ca.key").read_bytes())
        self._signing = _load_signing_key(directory)
        self._records = Records(directory / "records.sqlite")
        self.audit = AuditLog(directory / "audit", clock)
        if not ((directory / "ca.crl").exists() and (directory / "directory.json").exists()):
            self.refresh()

    def close(self) -> None:
        """Let go of the files."""
        self._records.close()
        self.audit.close()

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._clock.unix_s(), dt.UTC)

    @property
    def verifying_key(self) -> bytes:
        """The authority's ML-DSA-65 verifying key, raw."""
        return self._signing.public_key().public_bytes_raw()

    @property
    def pin(self) -> bytes:
        """What its tokens say about it."""
        return pin_of(self.certificate.public_bytes(serialization.Encoding.DER), self.verifying_key)

    # ── letting in ──────────────────────────────────────────────────────────────────────────────────────────────────

    def invite(self, identity: Identity, ttl_s: float, who: str, *, replaces: bool = False) -> Secret:
        """A token for `identity`, to be used once within `ttl_s` seconds. Its text is nowhere else.

        A name that somebody had a certificate for is given again only with `replaces`.
        """
        if identity.kind is Kind.AUTHORITY:
            raise RequestRefused("kind: sae, node or operator")
        if not 0 < ttl_s <= TTL_S_MAX:
            raise RequestRefused(f"ttl: more than 0 and at most {TTL_S_MAX:.0f} seconds")
        self._check_free(identity, replaces=replaces)
        token = new_token(identity.kind, self.pin, self._random)
        details: dict[str, Value] = {
            "invitation": token.id,
            "roles": [str(role) for role in identity.roles],
            "replaces": replaces,
        }
        with self.audit.during(who, "invite", identity.label, details), self._records.transaction():
            self._records.add_invitation(
                Invitation(
                    token.id,
                    token.digest(),
                    identity.kind,
                    identity.name,
                    list(identity.roles),
                    list(identity.hosts),
                    replaces,
                    self._clock.unix_s() + ttl_s,
                    None,
                    0,
                )
            )
        return token.text()

    def join(self, token_text: Secret, csr: bytes, verifying_key: bytes | None, proof: bytes | None) -> Enrolled:
        """Redeem a token: the certificate of the invited identity for the key of the request."""
        token = parse_token(token_text)
        invitation = self._invitation(token)
        identity = invitation.identity
        request, key = certificates.check_request(csr, identity)
        self._check_new(certificates.key_octets(key))
        if (identity.kind is Kind.NODE) != (verifying_key is not None):
            raise RequestRefused("verifying_key: a node enrols one, nobody else does")
        if verifying_key is not None:
            der = request.public_bytes(serialization.Encoding.DER)
            verifying.check_proof(verifying_key, proof or b"", token.id, der)
        self._check_free(identity, replaces=invitation.replaces)
        certificate = self._sign(identity, key, LIFE_DAYS[identity.kind])
        details = {"invitation": token.id, "serial": _serial(certificate)}
        with self.audit.during(identity.label, "join", identity.label, details), self._records.transaction():
            # Nobody may have come first meanwhile: asked again where nobody else can write.
            if not self._records.use_invitation(token.id, self._clock.unix_s()):
                raise NotAuthorised("token: it was used already")
            self._check_free(identity, replaces=invitation.replaces)
            if invitation.replaces:
                self._revoke_all(identity.kind, identity.name, "superseded")
            self._remember(identity, certificate)
            if invitation.replaces:
                self._write_crl()
            if verifying_key is not None:
                self._records.set_verifying_key(identity.name, verifying_key)
                self._write_directory()
        return Enrolled(certificates.certificate_pem(certificate), identity)

    def _invitation(self, token: Token) -> Invitation:
        """The invitation behind a token. Who has not the secret learns nothing but that."""
        invitation = self._records.invitation(token.id)
        if invitation is None or not _is_right(token, invitation) or invitation.failures >= FAILURES_MAX:
            if invitation is not None and invitation.failures < FAILURES_MAX:
                self._records.count_failure(token.id)
            self.alarm("somebody tries enrolment tokens that are not valid")
            self.audit.record("unknown", "join", outcome="refused", details={"invitation": token.id})
            raise NotAuthorised("token: not valid at this authority")
        if invitation.used_unix_s is not None:
            self.alarm(f"the token for {invitation.identity.label} was presented again after it was used")
            self.audit.record("unknown", "join", invitation.identity.label, "refused", {"why": "used already"})
            raise NotAuthorised("token: it was used already; if that was not you, have the certificate revoked")
        if self._clock.unix_s() > invitation.until_unix_s:
            raise NotAuthorised("token: it has expired; ask for a new one")
        return invitation

    def is_invited(self, token: Token) -> bool:
        """Whether a token is one of this authority's, used up or not."""
        return _is_right(token, self._records.invitation(token.id))

    def renew(self, serial: int, fingerprint: str, csr: bytes) -> Enrolled:
        """A new certificate for who holds a living one (TLS has checked that it does), with the same names."""
        issued = self.find(serial, fingerprint)
        now_unix_s = self._clock.unix_s()
        if issued is None:
            raise NotAuthorised("certificate: not one of this authority")
        if not issued.is_living(now_unix_s):
            raise NotAuthorised("certificate: revoked or expired; a new invitation is needed")
        due_unix_s = issued.from_unix_s + RENEW_FROM * (issued.until_unix_s - issued.from_unix_s)
        if now_unix_s < due_unix_s:
            due = dt.datetime.fromtimestamp(due_unix_s, dt.UTC).isoformat(timespec="seconds")
            raise RequestRefused(f"certificate: not due for renewal before {due}")
        identity = issued.identity
        _, key = certificates.check_request(csr, identity)
        self._check_new(certificates.key_octets(key))
        return self._issue(identity, key, LIFE_DAYS[identity.kind], identity.label, "renew")

    def issue(self, identity: Identity, key: certificates.PublicKey, days: float, who: str) -> Enrolled:
        """A certificate without an invitation: for who owns the authority's files, such as a laboratory."""
        return self._issue(identity, key, days, who, "issue")

    def _issue(self, identity: Identity, key: certificates.PublicKey, days: float, who: str, what: str) -> Enrolled:
        certificate = self._sign(identity, key, days)
        details = {"serial": _serial(certificate)}
        with self.audit.during(who, what, identity.label, details), self._records.transaction():
            self._remember(identity, certificate)
        return Enrolled(certificates.certificate_pem(certificate), identity)

    def _sign(self, identity: Identity, key: certificates.PublicKey, days: float) -> x509.Certificate:
        return certificates.issue(self.certificate, self._key, identity, key, self._now(), days)

    def _remember(self, identity: Identity, certificate: x509.Certificate) -> None:
        self._records.add_certificate(
            Issued(
                _serial(certificate),
                identity.kind,
                identity.name,
                list(identity.roles),
                list(identity.hosts),
                certificate.fingerprint(hashes.SHA256()).hex(),
                self._clock.unix_s(),
                certificate.not_valid_after_utc.timestamp(),
                None,
                None,
            ),
            certificates.key_octets(certificate.public_key()),
        )

    def _check_new(self, key: bytes) -> None:
        """A key lives as long as its certificate; one that was revoked with it must not come back."""
        if self._records.has_key(key):
            raise RequestRefused("csr: this key was certified before; make a new one")

    def _check_free(self, identity: Identity, *, replaces: bool) -> None:
        # Not only living ones: a name whose certificate ran out is still somebody's.
        if not replaces and self._records.certificates(identity.kind, identity.name):
            raise RequestRefused(f"name: {identity.label} was enrolled before; invite it as a replacement")

    def _living(self, kind: Kind, name: str = "") -> list[Issued]:
        now_unix_s = self._clock.unix_s()
        return [issued for issued in self._records.certificates(kind, name) if issued.is_living(now_unix_s)]

    # ── putting out ─────────────────────────────────────────────────────────────────────────────────────────────────

    def revoke(self, kind: Kind, name: str, reason: str, who: str) -> int:
        """Revoke every living certificate of a party; how many. The new revocation list is written on return."""
        self.check_revocation(kind, name, reason)
        with self.audit.during(who, "revoke", f"{kind} {name}", {"reason": reason}), self._records.transaction():
            count = self._revoke_all(kind, name, reason)
            self._write_crl()
            if kind is Kind.NODE:
                self._records.drop_verifying_key(name)
                self._write_directory()
        return count

    def check_revocation(self, kind: Kind, name: str, reason: str) -> None:
        """RequestRefused where `revoke` would be."""
        if not 0 < len(reason) <= REASON_MAX or not reason.isprintable():
            raise RequestRefused(f"reason: 1 to {REASON_MAX} printable characters")
        if not self._living(kind, name):
            raise RequestRefused(f"name: {kind} {name!r} has no living certificate")

    def check_alone(self) -> None:
        """NotAuthorised once two persons could decide: then one who owns the files does not do it alone any more.

        Who owns `ca.key` can go round this; it keeps honest people to the rule, and the audit log complete.
        """
        officers = sorted(self.officers())
        if len(officers) > 1:
            raise NotAuthorised(
                f"this needs two persons, and there are security officers: {', '.join(officers)}; "
                "propose it with `qtrunk approve propose`"
            )

    def _revoke_all(self, kind: Kind, name: str, reason: str) -> int:
        living = self._living(kind, name)
        for issued in living:
            self._records.revoke(issued.serial, self._clock.unix_s(), reason)
        return len(living)

    def find(self, serial: int, fingerprint: str) -> Issued | None:
        """What is known of a certificate (SHA-256 of it, hexadecimal); None if this authority does not know it."""
        found = self._records.certificates(serial=f"{serial:x}")
        return next((issued for issued in found if hmac.compare_digest(issued.fingerprint, fingerprint)), None)

    def issued(self) -> list[Issued]:
        """Every certificate, the oldest first."""
        return self._records.certificates()

    def officers(self) -> set[str]:
        """Names of security officers with a living certificate."""
        return {issued.name for issued in self._living(Kind.OPERATOR) if OperatorRole.OFFICER in issued.roles}

    def refresh(self) -> None:
        """Write the revocation list and the directory anew, before the list's next update is due."""
        with self._records.transaction():
            self._write_crl()
            self._write_directory()

    def _write_crl(self) -> None:
        """Within a transaction: then no two writers leave the older list, and what is revoked is on it at once.

        Certificates that have expired need not be on it.
        """
        now_unix_s = self._clock.unix_s()
        revoked = [
            (int(issued.serial, 16), issued.revoked_unix_s)
            for issued in self._records.certificates()
            if issued.revoked_unix_s is not None and issued.until_unix_s > now_unix_s
        ]
        number = self._records.next_number("crl")
        crl = certificates.revocation_list(self.certificate, self._key, revoked, number, self._now(), self._crl_days)
        files.write(self._directory / "ca.crl", crl)

    def crl(self) -> bytes:
        """The current revocation list (PEM)."""
        return (self._directory / "ca.crl").read_bytes()

    # ── the directory of verifying keys ─────────────────────────────────────────────────────────────────────────────

    def directory(self) -> bytes:
        """The nodes' verifying keys, signed (`verifying.open_directory` reads it)."""
        return (self._directory / "directory.json").read_bytes()

    def _write_directory(self) -> None:
        keys = {node: key.decode() for node, key in self._records.verifying_keys().items()}
        number = self._records.next_number("directory")
        files.write(self._directory / "directory.json", verifying.sign_directory(self._signing, number, keys))


class JoinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /enrol/v1/join and /enrol/v1/renew (which has no token)."""

    csr: str
    token: str = ""
    verifying_key: str | None = None
    proof: str | None = None
    """Base64."""


def read_request(body: bytes) -> JoinRequest:
    """The body of a request to join or to renew."""
    try:
        return msgspec.json.decode(body, type=JoinRequest)
    except msgspec.MsgspecError:
        # Without the decoder's text: it could show what it was decoding.
        raise RequestRefused("body: JSON with csr, and to join token, verifying_key and proof, is needed") from None


def is_invited(authority: Authority, body: bytes) -> bool:
    """Whether a request to join has a token of this authority; changes and records nothing."""
    try:
        return authority.is_invited(parse_token(Secret(read_request(body).token.encode())))
    except RequestRefused:
        return False


def join(authority: Authority, body: bytes) -> Enrolled:
    """`Authority.join` of what came over the wire."""
    request = read_request(body)
    proof = None
    if request.proof is not None:
        with contextlib.suppress(binascii.Error, ValueError):
            proof = base64.b64decode(request.proof, validate=True)
        if proof is None:
            raise RequestRefused("proof: not base64")
    key = None if request.verifying_key is None else request.verifying_key.encode()
    return authority.join(Secret(request.token.encode()), request.csr.encode(), key, proof)


def _is_right(token: Token, invitation: Invitation | None) -> bool:
    # An unknown ID takes the same steps as a wrong secret.
    return hmac.compare_digest(token.digest(), bytes(32) if invitation is None else invitation.digest)


def _serial(certificate: x509.Certificate) -> str:
    return f"{certificate.serial_number:x}"


def _load_signing_key(directory: Path) -> MLDSA65PrivateKey:
    path = directory / "signing.key"
    if not path.exists():
        made = MLDSA65PrivateKey.generate()
        pem = made.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        files.write(path, pem, private=True)
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, MLDSA65PrivateKey)
    return key
