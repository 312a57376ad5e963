"""A lab's certificates, made on the spot by the built-in authority (`node.ca`): for each node, SAE and the operator.

Every connection of a lab is TLS 1.3 with certificates on both sides (design: no plaintext secret outside the
process that needs it). In a lab one person is everybody: its operator has every role, certificates last a year, and who
reads the state directory owns all keys in it. In a production network each party enrols for itself (docs/enrolment.md).
"""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from qtrunk.api.roles import OperatorRole
from qtrunk.node.ca import certificates, files
from qtrunk.node.ca.authority import Authority
from qtrunk.node.ca.identity import CONTROLLER_ROLES, Identity, Kind
from qtrunk.node.world import SystemClock, SystemRandom

LEAF_DAYS = 397.0
RENEW_DAYS = 30
_ROLES = {
    Kind.OPERATOR: tuple(role for role in OperatorRole if role is not OperatorRole.CONTROLLER),
    Kind.CONTROLLER: CONTROLLER_ROLES,
}


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
        self._directory = directory
        self._authority = Authority(directory, SystemClock(), SystemRandom(), "qtrunk lab CA", LEAF_DAYS)
        self._authority.refresh()

    @property
    def ca_certificate(self) -> Path:
        """Path of the CA certificate."""
        return self._directory / "ca.pem"

    def close(self) -> None:
        """Let go of the authority's files."""
        self._authority.close()

    def credentials(self, directory: Path, kind: Kind, name: str) -> Credentials:
        """The credentials of a party, made or renewed where needed; revoked ones stay as they are."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = Credentials(directory / "cert.pem", directory / "key.pem", self.ca_certificate)
        identity = Identity(
            kind,
            name,
            roles=_ROLES.get(kind, ()),
            hosts=("localhost", "127.0.0.1") if kind in (Kind.NODE, Kind.CONTROLLER) else (),
        )
        if not self._is_fit(found, identity):
            key = certificates.new_key()
            enrolled = self._authority.issue(identity, key.public_key(), LEAF_DAYS, "lab")
            files.switch(directory, certificates.key_pem(key), enrolled.certificate)
        return found

    def _is_fit(self, found: Credentials, identity: Identity) -> bool:
        if not (found.certificate.exists() and found.private_key.exists()):
            return False
        certificate = x509.load_pem_x509_certificate(found.certificate.read_bytes())
        issued = self._authority.find(certificate.serial_number, certificate.fingerprint(hashes.SHA256()).hex())
        if issued is None or issued.identity != identity:
            return False
        if issued.revoked_unix_s is not None:
            # Somebody was put out: starting the lab again is no way back in.
            return True
        return certificate.not_valid_after_utc - dt.datetime.now(dt.UTC) > dt.timedelta(days=RENEW_DAYS)
