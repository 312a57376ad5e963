"""Making and checking certificates, requests and revocation lists; no files, no clock of its own.

ECDSA over P-256 with SHA-256 throughout (RFC 5280, RFC 2986); a holder may also bring a P-384, Ed25519 or RSA key of at
least 3072 bits, because boxes differ. Errors: RequestRefused says what is wrong with what somebody sent.
"""

import datetime as dt
import itertools
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from qtrunk.base.errors import RequestRefused
from qtrunk.node.ca.identity import Identity

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
RSA_BITS_MIN = 3072
REQUEST_OCTETS_MAX = 16 << 10
BACKDATE = dt.timedelta(minutes=5)
"""Clocks differ a little."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key of an authority or a holder."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM (PKCS#8), for a file that only its owner reads."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_octets(key: object) -> bytes:
    """A public key in the one form that it has in a certificate (SubjectPublicKeyInfo, DER)."""
    assert isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey)
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def make_authority(name: str, key: ec.EllipticCurvePrivateKey, now: dt.datetime, days: float) -> x509.Certificate:
    """A self-signed authority that may sign holders' certificates and nothing deeper."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return (
        _builder(subject, subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def issue(
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    identity: Identity,
    public_key: PublicKey,
    now: dt.datetime,
    days: float,
) -> x509.Certificate:
    """A certificate with the names of `identity` and nothing that the holder chose but its key."""
    return (
        _builder(identity.subject(), authority.subject, public_key, now, days)
        .add_extension(identity.names(), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(identity.usages(), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def make_request(identity: Identity, key: ec.EllipticCurvePrivateKey) -> x509.CertificateSigningRequest:
    """A PKCS#10 request: names for an outside authority, proof of possession for any."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(identity.subject())
        .add_extension(identity.names(), critical=False)
        .add_extension(identity.usages(), critical=False)
        .sign(key, hashes.SHA256())
    )


def sign_request(key: ec.EllipticCurvePrivateKey) -> x509.CertificateSigningRequest:
    """A PKCS#10 request without names: the built-in authority knows them, it wants proof of possession only."""
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())


def request_pem(request: x509.CertificateSigningRequest) -> bytes:
    """A request as PEM."""
    return request.public_bytes(serialization.Encoding.PEM)


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """A private key of `new_key`, from its file."""
    key = serialization.load_pem_private_key(pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def check_issued(certificate: x509.Certificate, identity: Identity, key: PublicKey, now: dt.datetime) -> None:
    """RequestRefused unless an outside authority's certificate is for this key, with these names, now and for TLS."""
    if key_octets(certificate.public_key()) != key_octets(key):
        raise RequestRefused("certificate: not for the key of the request")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise RequestRefused("certificate: not valid now")
    extensions = certificate.extensions
    try:
        found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise RequestRefused("certificate: it has no subject alternative names") from None
    missing = [str(name.value) for name in identity.names() if name not in found]
    if missing:
        raise RequestRefused(f"certificate: the names {', '.join(missing)} are missing")
    uri = x509.UniformResourceIdentifier
    others = set(found.get_values_for_type(uri)) - set(identity.names().get_values_for_type(uri))
    if any(name.startswith("urn:qtrunk:") for name in others):
        raise RequestRefused("certificate: it also has names of another party, which would make it ambiguous")
    for extension in extensions:
        match extension.value:
            case x509.KeyUsage(digital_signature=False):
                raise RequestRefused("certificate: its key usage does not allow digital signatures, which TLS needs")
            case x509.BasicConstraints(ca=True):
                raise RequestRefused("certificate: it is an authority's")
            case x509.ExtendedKeyUsage() as usages:
                if any(usage not in usages for usage in identity.usages()):
                    raise RequestRefused("certificate: its extended key usage lacks TLS client or server as needed")
            case _:
                pass


def check_chain(chain: Sequence[x509.Certificate], trusted: Sequence[x509.Certificate], now: dt.datetime) -> None:
    """RequestRefused unless each certificate was signed by the next and the last by one that is trusted.

    Path length, name constraints and the rest of RFC 5280 clause 6 are checked by TLS with every connection; here it is
    to find the mistake before the certificate is in force.
    """
    for certificate, authority in itertools.pairwise(chain):
        if not _has_issued(authority, certificate, now):
            raise RequestRefused("certificate: the chain is broken, each must be signed by the next")
    if not any(chain[-1] == root or _has_issued(root, chain[-1], now) for root in trusted):
        raise RequestRefused("certificate: its chain does not end at a CA of the given file")


def _has_issued(authority: x509.Certificate, certificate: x509.Certificate, now: dt.datetime) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False
    return constraints.ca and authority.not_valid_before_utc <= now <= authority.not_valid_after_utc


def check_request(pem: bytes, identity: Identity) -> tuple[x509.CertificateSigningRequest, PublicKey]:
    """A request that proves possession of a fit key; its names decide nothing, but another subject is a mistake."""
    if len(pem) > REQUEST_OCTETS_MAX:
        raise RequestRefused(f"csr: at most {REQUEST_OCTETS_MAX} octets")
    try:
        request = x509.load_pem_x509_csr(pem)
        is_signed = request.is_signature_valid
        key = request.public_key()
        common = [str(name.value) for name in request.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion):
        raise RequestRefused("csr: not a PKCS#10 request in PEM") from None
    if not is_signed:
        raise RequestRefused("csr: its signature does not verify, so it proves no possession of the key")
    if common not in ([], [identity.name]):
        raise RequestRefused(f"csr: its common name is not {identity.name}, for whom the invitation is")
    return request, fit_key(key)


def fit_key(key: object) -> PublicKey:
    """The key, if it is of a kind and size that is let in."""
    match key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1() | ec.SECP384R1()):
            return key
        case ed25519.Ed25519PublicKey():
            return key
        case rsa.RSAPublicKey() if key.key_size >= RSA_BITS_MIN:
            return key
        case _:
            raise RequestRefused(f"csr: a key of P-256, P-384, Ed25519 or RSA of {RSA_BITS_MIN} bits is needed")


def revocation_list(
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    revoked: Sequence[tuple[int, float]],
    number: int,
    now: dt.datetime,
    days: float,
) -> bytes:
    """A CRL (RFC 5280 clause 5) as PEM; `revoked` are serial numbers with the time of revocation in Unix seconds."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(now - BACKDATE)
        .next_update(now + dt.timedelta(days=days))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for serial, unix_s in revoked:
        when = dt.datetime.fromtimestamp(unix_s, dt.UTC)
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
        )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: PublicKey, now: dt.datetime, days: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
