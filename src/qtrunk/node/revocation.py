"""Which certificates are void: the authority's signed revocation list (RFC 5280 clause 5), watched on the disk.

The list is a file that somebody else replaces: the authority itself in a laboratory, `qtrunk enrol refresh` or the
administration interface at a distance. It is believed only with the signature of a CA of this node, and a list never
goes back to an older number. A list that is missing, damaged or out of date raises an alarm; the last good one stays in
force. A node that has never seen a good one since its start refuses everybody (fail closed).
"""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from qtrunk.api.tls import PeerIdentity
from qtrunk.base.errors import ConfigError, RequestRefused
from qtrunk.base.ports import Clock
from qtrunk.node.ca import files

OCTETS_MAX = 16 << 20
CHECK_PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class _List:
    number: int
    serials: frozenset[int]
    until_unix_s: float


class Registry:
    """The revoked certificates of this node's authorities, in memory. One event loop calls it."""

    def __init__(self, path: Path | None, ca_certificate: Path, clock: Clock) -> None:
        """`path` None: this network has no revocation list, nobody is revoked."""
        self._path = path
        self._ca_certificate = ca_certificate
        self._clock = clock
        self._seen: tuple[int, int, int] | None = None
        self._serials: frozenset[int] = frozenset()
        self._lists: dict[x509.Name, _List] = {}
        self.on_change: Callable[[], None] = lambda: None
        """Called whenever other certificates are revoked."""
        self.problem: str | None = None
        """What is wrong with the list, for an alarm."""
        self.look()

    def is_revoked(self, identity: PeerIdentity) -> bool:
        """Whether a certificate that TLS has verified is void all the same: one look-up in a set."""
        return identity.serial in self._serials or (self._path is not None and not self._lists)

    def look(self) -> bool:
        """Read the list if the file has changed; True if what is revoked may have. Call it about once a second."""
        if self._path is None:
            return False
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen == self._seen:
                self._check_age()
                return False
            octets = self._path.read_bytes()
            self._seen = seen
            self._take(octets)
        except (OSError, ConfigError) as problem:
            # One of the two files does not read; another look may find it in order.
            self.problem = f"revocation list {self._path}: {getattr(problem, 'strerror', problem)}"
            self._seen = None
            return False
        except RequestRefused as problem:
            self.problem = f"revocation list {self._path}: {problem}"
            return False
        self.problem = None
        self._check_age()
        return True

    def install(self, pem: bytes) -> int:
        """Put a newer list in force, durably; its number. RequestRefused, and nothing changes, if it is not one."""
        if self._path is None:
            raise RequestRefused("crl: this node is configured without a revocation list")
        number = self._take(pem)
        files.write(self._path, pem)
        return number

    def _take(self, pem: bytes) -> int:
        if len(pem) > OCTETS_MAX:
            raise RequestRefused(f"crl: at most {OCTETS_MAX} octets")
        try:
            found = x509.load_pem_x509_crl(pem)
            number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
            until = found.next_update_utc
            serials = frozenset(entry.serial_number for entry in found)
        except (ValueError, TypeError, x509.ExtensionNotFound, UnsupportedAlgorithm):
            raise RequestRefused("crl: not a certificate revocation list with a number, in PEM") from None
        if not any(_has_signed(authority, found) for authority in authorities(self._ca_certificate)):
            raise RequestRefused("crl: not signed by a CA of this node")
        before = self._lists.get(found.issuer)
        if before is not None and number < before.number:
            raise RequestRefused(f"crl: number {number} is older than {before.number}, which is in force")
        self._lists[found.issuer] = _List(number, serials, until.timestamp() if until is not None else 0.0)
        # One set for the lists of all authorities: serial numbers are random, so none means two certificates.
        before_all, self._serials = self._serials, frozenset().union(*(one.serials for one in self._lists.values()))
        if self._serials != before_all:
            self.on_change()
        return number

    def _check_age(self) -> None:
        due_unix_s = min((entry.until_unix_s for entry in self._lists.values()), default=0.0)
        if self._lists and self._clock.unix_s() > due_unix_s:
            until = dt.datetime.fromtimestamp(due_unix_s, dt.UTC).isoformat(timespec="seconds")
            self.problem = f"revocation list {self._path}: a newer one was due on {until}"


def authorities(path: Path) -> list[x509.Certificate]:
    """The CA certificates that a node believes; ConfigError where the file holds something else."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError, x509.InvalidVersion) as problem:
        raise ConfigError([f"ca_certificate {path}: {problem}"]) from problem


def _has_signed(authority: x509.Certificate, found: x509.CertificateRevocationList) -> bool:
    key = authority.public_key()
    try:
        return found.issuer == authority.subject and found.is_signature_valid(key)  # type: ignore[arg-type]
    except (TypeError, ValueError, InvalidSignature, UnsupportedAlgorithm):
        return False
