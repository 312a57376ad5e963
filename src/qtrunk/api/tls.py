"""TLS for the key interfaces, and who a certificate says its holder is.

Both sides show a certificate of the network's CA and check the other's. GS QKD 014 leaves open where an SAE ID or KME
ID sits in a certificate, and the boxes in the field look in different places; so ours carry it in the common name and
in a URI subject alternative name, and we read either. A URI name `urn:NAMESPACE:ROLE:ID` with the role `sae`, `kme` or
`operator` is binding: where there is one, no other name of the certificate is believed.
"""

import asyncio
import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from qtrunk.base.ids import role_of

# Only these matter where TLS 1.2 is permitted: every session key is fresh and every record authenticated.
_TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
GROUP = "prime256v1"
"""Of key exchange, which every TLS 1.3 knows (RFC 8446 clause 9.1). A server that leaves it to OpenSSL takes finite
fields, too, and a stranger who has computed nothing keeps it busy for 200 ms with the largest one."""
GONE_S = 0.5
"""What connections that were cut off take at most until they are gone, and a handshake that was nearly over."""


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who the client's certificate says it is."""

    candidates: tuple[str, ...]
    """SAE IDs that the certificate may stand for, the most telling first. A name `urn:…:sae:ID` settles it; one of
    another role (`urn:…:kme:ID`, `urn:…:operator:ID`) says that it is no SAE; else URI, DNS and common names."""
    uris: tuple[str, ...]
    fingerprint: str
    """SHA-256 of the certificate, for registries that pin certificates instead of names."""
    expires_unix_s: float
    serial: int = 0
    """As revocation lists name it."""
    claims: tuple[tuple[str, ...], ...] = ()
    """Whom the certificate may stand for, in the written form of `base.ids.parse_identity`, in ranks: any name of a
    rank counts before all of the next. A role name is a rank of its own and the only one: `sae:ID`, or nothing."""


class Renewed(Protocol):
    """A TLS context, of `ssl` or `api.front`, that gets another certificate or one more CA while it is in use."""

    def load_cert_chain(self, certfile: Path, keyfile: str) -> None:
        """Show this certificate on new connections."""

    def load_verify_locations(self, *, cadata: str) -> None:
        """Believe this CA, in PEM, too; its certificate is in the file of CAs already."""


def server_context(
    certificate: Path,
    private_key: Path,
    ca_certificate: Path,
    minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLContext:
    """TLS for a server that refuses clients without a certificate of the CA.

    The standard allows TLS 1.2; we ask for 1.3 unless `minimum_version` says otherwise, for boxes that know no better.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = minimum_version
    context.set_ciphers(_TLS12_CIPHERS)
    context.set_ecdh_curve(GROUP)
    # A resumed session would not show its certificate again; clients keep their connections instead.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(certificate, private_key)
    context.load_verify_locations(ca_certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    return context


def client_context(
    certificate: Path,
    private_key: Path,
    ca_certificate: Path,
    minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLContext:
    """TLS for a client that shows a certificate and checks the server's, host name included."""
    context = ssl.create_default_context(cafile=str(ca_certificate))
    context.minimum_version = minimum_version
    context.set_ciphers(_TLS12_CIPHERS)
    context.load_cert_chain(certificate, private_key)
    return context


def identity_of(der: bytes) -> PeerIdentity:
    """Names in a client certificate that TLS has verified; ValueError where it cannot be parsed."""
    try:
        certificate = x509.load_der_x509_certificate(der)
    except x509.InvalidVersion as problem:
        raise ValueError(str(problem)) from problem
    uris, dns, common = _names(certificate)
    roles = [found for found in map(role_of, uris) if found]
    binding = tuple(name for role, name in roles if role == "sae")
    candidates = binding if roles else (*uris, *dns, *common)
    try:
        public_key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except UnsupportedAlgorithm as problem:
        raise ValueError(f"public key of a kind that cannot be read: {problem}") from problem
    fingerprint = hashlib.sha256(der).hexdigest()
    return PeerIdentity(
        candidates=candidates,
        uris=tuple(uris),
        fingerprint=fingerprint,
        expires_unix_s=certificate.not_valid_after_utc.timestamp(),
        serial=certificate.serial_number,
        claims=(tuple(f"sae:{name}" for name in binding),)
        if roles
        else (
            tuple(f"uri:{name}" for name in uris),
            tuple(f"dns:{name.lower()}" for name in dns),
            tuple(f"cn:{name}" for name in common),
            (f"sha256:{fingerprint}", f"sha256:{hashlib.sha256(public_key).hexdigest()}"),
        ),
    )


def kme_ids_of(der: bytes) -> set[str]:
    """KME IDs that a server certificate stands for: those in `urn:…:kme:ID`, else its common names; maybe none."""
    try:
        uris, _, common = _names(x509.load_der_x509_certificate(der))
    except ValueError:
        return set()
    roles = [found for found in map(role_of, uris) if found]
    return {name for role, name in roles if role == "kme"} if roles else set(common)


def _names(certificate: x509.Certificate) -> tuple[list[str], list[str], list[str]]:
    """URI names, DNS names, common names."""
    common = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], [], common
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris, names.get_values_for_type(x509.DNSName), common


async def close(server: asyncio.Server) -> asyncio.Task[None]:
    """Stop listening. The task ends once every connection is gone, those within their handshake too, which are no
    server's own yet and which nothing but the limit of the handshake cuts off."""
    # Whoever waits only after the close is not told of those that are still there.
    gone = asyncio.create_task(server.wait_closed())
    await asyncio.sleep(0)
    server.close()
    return gone


async def wait_gone(gone: asyncio.Task[None], within_s: float = GONE_S) -> None:
    """Wait for what `close` gave, but not for ever."""
    await asyncio.wait([gone], timeout=within_s)
    gone.cancel()
