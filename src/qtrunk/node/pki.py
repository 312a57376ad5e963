"""A lab's certificates, made on the spot: one CA, one certificate for each node, SAE and operator.

Every connection of a lab is TLS 1.3 with certificates on both sides (design: no plaintext secret outside the
process that needs it). Identities sit in the common name and in a URI subject alternative name
(`urn:qtrunk:kme:ID`, `urn:qtrunk:sae:ID`, `urn:qtrunk:operator:NAME`), because clients of ETSI GS QKD 014
look in either place. A production network brings certificates of its own CA; nothing else changes.
"""

import datetime as dt
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
LEAF_DAYS = 397
START_DAYS = 0
RENEW_DAYS = 30


@dataclass(frozen=True, slots=True)
class Credentials:
    """Paths of one identity's PEM files; the key file is readable by its owner only."""

    certificate: Path
    private_key: Path
    ca_certificate: Path

    def as_json(self) -> dict[str, str]:
        """The three paths as text, for configuration files and `qtrunk sae show`."""
        return {
            "certificate": str(self.certificate),
            "private_key": str(self.private_key),
            "ca_certificate": str(self.ca_certificate),
        }


class LabPki:
    """The lab's certificate authority, kept in one directory (mode 0700)."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._certificate_path = directory / "ca.pem"
        self._key_path = directory / "ca.key"
        if not (self._certificate_path.exists() and self._key_path.exists()):
            self._make_ca()
        self._key = _load_key(self._key_path)
        self._certificate = x509.load_pem_x509_certificate(self._certificate_path.read_bytes())

    @property
    def ca_certificate(self) -> Path:
        """Path of the CA certificate."""
        return self._certificate_path

    def _make_ca(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "qtrunk lab CA")])
        certificate = (
            _builder(name, name, key.public_key(), CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write_pem(self._key_path, _key_pem(key), private=True)
        _write_pem(self._certificate_path, certificate.public_bytes(serialization.Encoding.PEM), private=False)

    def credentials(self, directory: Path, kind: str, identity: str) -> Credentials:
        """The credentials of `identity` (kind `kme`, `sae` or `operator`), made or renewed where needed."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = Credentials(directory / "cert.pem", directory / "key.pem", self._certificate_path)
        if not self._is_fresh(found):
            self._issue(found, kind, identity)
        return found

    def _is_fresh(self, found: Credentials) -> bool:
        if not (found.certificate.exists() and found.private_key.exists()):
            return False
        certificate = x509.load_pem_x509_certificate(found.certificate.read_bytes())
        try:
            certificate.verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return certificate.not_valid_after_utc - dt.datetime.now(dt.UTC) > dt.timedelta(days=RENEW_DAYS)

    def _issue(self, found: Credentials, kind: str, identity: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity)])
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"urn:qtrunk:{kind}:{identity}")]
        if kind == "kme":
            names += [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if kind == "kme":
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        certificate = (
            _builder(name, self._certificate.subject, key.public_key(), LEAF_DAYS)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        _write_pem(found.private_key, _key_pem(key), private=True)
        _write_pem(found.certificate, certificate.public_bytes(serialization.Encoding.PEM), private=False)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=START_DAYS) - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _write_pem(path: Path, pem: bytes, *, private: bool) -> None:
    """Write whole or not at all, so that a kill in between leaves no half certificate."""
    part = path.with_suffix(path.suffix + ".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    with os.fdopen(descriptor, "wb") as out:
        out.write(pem)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)
