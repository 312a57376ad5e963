"""The holder's side of enrolment: the private key is made here and stays here.

    cert.pem, key.pem        the certificate and its key, changed together (`files.switch`)
    ca.pem                   the authority's certificate
    ca.crl                   its revocation list, as of the last `refresh`
    enrolment.json           who this is, and where and which the authority is
    signing-key.pem          a node's ML-DSA-65 key, and verifying-key.pem
    verifying/NODE.pem       the other nodes' verifying keys, from the signed directory

Errors: RequestRefused, NotAuthorised, AuthenticationFailed (it is not the authority that the token names), LabError (it
does not answer). Nothing in the directory has changed then.
"""

import base64
import datetime as dt
import hmac
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from qtrunk.api.jsonclient import Service, parse_address
from qtrunk.api.tls import client_context, identity_of
from qtrunk.base.errors import AuthenticationFailed, ConfigError, RequestRefused
from qtrunk.base.ids import is_node_id
from qtrunk.base.secret import Secret
from qtrunk.node.ca import certificates, files, verifying
from qtrunk.node.ca.authority import RENEW_FROM, JoinRequest
from qtrunk.node.ca.identity import Identity, Kind
from qtrunk.node.ca.tokens import Token, parse_token, pin_of
from qtrunk.node.signing import make_signing_key

T = TypeVar("T")
_AUTHORITY_URI = "urn:qtrunk:authority:"


class Enrolment(msgspec.Struct, frozen=True):
    """What a holder remembers of its enrolment; nothing secret."""

    url: str
    kind: Kind
    name: str
    pin: str
    """Of the authority, hexadecimal."""
    verifying_key: str
    """The authority's ML-DSA-65 verifying key, raw, hexadecimal."""
    directory_number: int = 0


class _Found(msgspec.Struct, frozen=True):
    certificate: str
    verifying_key: str


class _Given(msgspec.Struct, frozen=True):
    certificate: str
    kind: Kind
    name: str


def join(url: str, token_text: Secret, out: Path) -> Enrolment:
    """Enrol with a token; `out` gets everything. A node's ML-DSA key is made there unless it is there already."""
    token = parse_token(token_text)
    host, port = parse_address(url)
    # Whoever answers may lie here: what it says counts only if it has the fingerprint in the token. Nothing secret is
    # sent on this connection, and the next one believes this authority alone.
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.minimum_version = ssl.TLSVersion.TLSv1_3
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    authority, verifying_key = _pinned(Service(host, port, blind).ask("GET", "/enrol/v1/authority"), token.pin)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=certificates.certificate_pem(authority).decode())
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = certificates.new_key()
    # The authority puts in the names; the request only shows that we have the key.
    request = certificates.sign_request(key)
    body = JoinRequest(certificates.request_pem(request).decode(), bytes(token_text.reveal()).decode().strip())
    if token.kind is Kind.NODE:
        body = _with_verifying_key(body, out, token, request)
    given = _given(authority_service(host, port, context).ask("POST", "/enrol/v1/join", body))
    _put(out, given, key, authority)
    files.write(out / "ca.pem", certificates.certificate_pem(authority))
    enrolment = Enrolment(url, given.kind, given.name, token.pin.hex(), verifying_key.hex())
    _remember(out, enrolment)
    return refresh(out)


def renew(out: Path, now: dt.datetime, *, is_forced: bool = False) -> bool:
    """Renew with the living certificate, with a new key, once it is due; whether it was."""
    enrolment, service = _enrolled(out)
    old = x509.load_pem_x509_certificate((out / "cert.pem").read_bytes())
    life = old.not_valid_after_utc - old.not_valid_before_utc
    if not is_forced and now < old.not_valid_before_utc + RENEW_FROM * life + certificates.BACKDATE:
        return False
    key = certificates.new_key()
    body = JoinRequest(certificates.request_pem(certificates.sign_request(key)).decode())
    given = _given(service.ask("POST", "/enrol/v1/renew", body))
    if (given.kind, given.name) != (enrolment.kind, enrolment.name):
        raise AuthenticationFailed(f"renewal: the authority answered for {given.kind} {given.name[:80]!r}")
    _put(out, given, key, _authority(out))
    return True


def refresh(out: Path) -> Enrolment:
    """Fetch the revocation list, and a node's directory of verifying keys; both are signed, neither goes back."""
    enrolment, service = _enrolled(out)
    found = _decoded(service.ask("GET", "/enrol/v1/crl"), dict[str, str]).get("crl", "").encode()
    authority = _authority(out)
    number = _crl_number(found, authority)
    before = (out / "ca.crl").read_bytes() if (out / "ca.crl").exists() else None
    if before is not None and number < _crl_number(before, authority):
        raise AuthenticationFailed("revocation list: the authority gave an older one than we have")
    if found != before:
        files.write(out / "ca.crl", found)
    if enrolment.kind is Kind.NODE:
        octets = service.ask("GET", "/enrol/v1/directory")
        directory = verifying.open_directory(octets, bytes.fromhex(enrolment.verifying_key))
        if directory.number < enrolment.directory_number:
            raise AuthenticationFailed("directory of verifying keys: the authority gave an older one than we have")
        if directory.number > enrolment.directory_number:
            _put_keys(out / "verifying", directory.keys)
            enrolment = msgspec.structs.replace(enrolment, directory_number=directory.number)
            _remember(out, enrolment)
    return enrolment


# ── an outside authority ────────────────────────────────────────────────────────────────────────────────────────────


def request(identity: Identity, out: Path) -> Path:
    """For an outside authority: a new key in `out` and, beside it, a request with the right names; its path."""
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = certificates.new_key()
    files.write(out / "request.key", certificates.key_pem(key), private=True)
    path = out / "request.pem"
    files.write(path, certificates.request_pem(certificates.make_request(identity, key)))
    return path


def install(identity: Identity, out: Path, certificate: bytes, authorities: bytes, now: dt.datetime) -> None:
    """Put in force what an outside authority made of our request; RequestRefused says what is wrong with it."""
    try:
        chain = x509.load_pem_x509_certificates(certificate)
        trusted = x509.load_pem_x509_certificates(authorities)
        octets = (out / "request.key").read_bytes()
    except ValueError:
        raise RequestRefused("certificate, ca: certificates in PEM are needed") from None
    except OSError as problem:
        raise RequestRefused(f"{out}/request.key: {problem.strerror}; `qtrunk enrol request` makes it") from problem
    key = certificates.load_key(octets)
    certificates.check_issued(chain[0], identity, key.public_key(), now)
    certificates.check_chain(chain, trusted, now)
    files.switch(out, octets, b"".join(map(certificates.certificate_pem, chain)))
    files.write(out / "ca.pem", b"".join(map(certificates.certificate_pem, trusted)))
    for name in ("request.key", "request.pem"):
        (out / name).unlink(missing_ok=True)


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _pinned(octets: bytes, pin: bytes) -> tuple[x509.Certificate, bytes]:
    """The authority's certificate and verifying key, if they are those of the token."""
    found = _decoded(octets, _Found)
    try:
        certificate = x509.load_pem_x509_certificate(found.certificate.encode())
        key = bytes.fromhex(found.verifying_key)
    except (ValueError, x509.InvalidVersion):
        raise AuthenticationFailed("authority: it does not show a certificate and a verifying key") from None
    der = certificate.public_bytes(serialization.Encoding.DER)
    if not hmac.compare_digest(pin_of(der, key), pin):
        raise AuthenticationFailed("authority: not the one that the token names; nothing was sent to it")
    return certificate, key


def authority_service(host: str, port: int, context: ssl.SSLContext) -> Service:
    """The enrolment service: `context` has the CA to believe and, where needed, the own certificate."""
    # The name that counts is the authority's own, which no invitation gives; the host may be called anything.
    context.check_hostname = False
    return _AuthorityService(host, port, context)


class _AuthorityService(Service):
    """The enrolment service itself, not just anybody with a certificate of the network."""

    def check_peer(self, der: bytes) -> None:
        """AuthenticationFailed unless the server's certificate is the enrolment service's."""
        if not any(uri.startswith(_AUTHORITY_URI) for uri in identity_of(der).uris):
            raise AuthenticationFailed(f"{self.host}:{self.port}: not the enrolment service; nothing was sent to it")


def _with_verifying_key(
    body: JoinRequest, out: Path, token: Token, made: x509.CertificateSigningRequest
) -> JoinRequest:
    private, public = out / "signing-key.pem", out / "verifying-key.pem"
    make_signing_key(private, public)
    key = serialization.load_pem_private_key(private.read_bytes(), password=None)
    if not isinstance(key, MLDSA65PrivateKey):
        raise ConfigError([f"{private}: an ML-DSA-65 private key is needed"])
    proof = verifying.prove(key, token.id, made.public_bytes(serialization.Encoding.DER))
    return msgspec.structs.replace(body, verifying_key=public.read_text(), proof=base64.b64encode(proof).decode())


def _put(out: Path, given: _Given, key: ec.EllipticCurvePrivateKey, authority: x509.Certificate) -> None:
    """Check what came before it is believed: our key, our names, the authority's signature."""
    try:
        certificate = x509.load_pem_x509_certificate(given.certificate.encode())
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion):
        raise AuthenticationFailed("certificate: what came is not signed by the authority") from None
    if certificates.key_octets(certificate.public_key()) != certificates.key_octets(key.public_key()):
        raise AuthenticationFailed("certificate: what came is for another key")
    files.switch(out, certificates.key_pem(key), given.certificate.encode())


def _put_keys(place: Path, keys: Mapping[str, str]) -> None:
    """The nodes' verifying keys, one file each; who left the directory leaves here."""
    for node in keys:
        if not is_node_id(node):
            raise AuthenticationFailed(f"directory of verifying keys: {node[:80]!r} is no node")
    place.mkdir(mode=0o700, exist_ok=True)
    for node, pem in keys.items():
        files.write(place / f"{node}.pem", pem.encode())
    for path in place.glob("*.pem"):
        if path.stem not in keys:
            path.unlink()


def _enrolled(out: Path) -> tuple[Enrolment, Service]:
    try:
        enrolment = msgspec.json.decode((out / "enrolment.json").read_bytes(), type=Enrolment)
        context = client_context(out / "cert.pem", out / "key.pem", out / "ca.pem")
    except (OSError, msgspec.MsgspecError) as problem:
        raise ConfigError([f"{out}: not enrolled ({problem}); `qtrunk enrol join` does that"]) from problem
    return enrolment, authority_service(*parse_address(enrolment.url), context)


def _authority(out: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((out / "ca.pem").read_bytes())


def _crl_number(pem: bytes, authority: x509.Certificate) -> int:
    try:
        found = x509.load_pem_x509_crl(pem)
        key = authority.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey) and found.is_signature_valid(key):
            return found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (ValueError, x509.ExtensionNotFound):
        pass
    raise AuthenticationFailed("revocation list: not signed by the authority")


def _remember(out: Path, enrolment: Enrolment) -> None:
    files.write(out / "enrolment.json", msgspec.json.format(msgspec.json.encode(enrolment)))


def _given(octets: bytes) -> _Given:
    return _decoded(octets, _Given)


def _decoded(octets: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(octets, type=kind)
    except msgspec.MsgspecError:
        raise AuthenticationFailed("authority: its answer is not what it should be") from None
