"""What a device must know: one SAE, its peer, its key manager. Names are checked, so that none breaks out of quotes."""

import re
from dataclasses import dataclass

from qtrunk.base.errors import ConfigError

_PLAIN = re.compile(r"[A-Za-z0-9._:/@+-]+")


@dataclass(frozen=True, kw_only=True)
class Box:
    """One device. ConfigError for a name that could not stand in every device's configuration."""

    sae: str
    peer: str
    kme_host: str
    kme_port: int
    kme_id: str
    skip_port: int
    certificate: str
    private_key: str
    ca_certificate: str
    key_bits: int = 256

    def __post_init__(self) -> None:
        for field in ("sae", "peer", "kme_host", "kme_id", "certificate", "private_key", "ca_certificate"):
            value = getattr(self, field)
            if not _PLAIN.fullmatch(value):
                raise ConfigError([f"{field} {value!r}: only letters, digits and . _ : / @ + - can stand here"])

    @property
    def label(self) -> str:
        """A short name for objects of the device's configuration (FortiOS and RouterOS take at most 35 characters)."""
        return f"qtrunk-{re.sub('[^A-Za-z0-9-]', '-', self.sae)}"[:35]

    @property
    def is_initiator(self) -> bool:
        """One of a pair asks for fresh keys, the other collects them: the first by name."""
        return self.sae < self.peer


def heading(box: Box, mark: str, *more: str) -> str:
    """The first lines: whose this is."""
    lines = (
        f"{box.sae}, keys with {box.peer}, from KME {box.kme_id} at {box.kme_host}.",
        "What stands in < > is yours to fill in.",
        f"Credentials: {box.certificate}",
        f"             {box.private_key}",
        f"             {box.ca_certificate}",
        *more,
    )
    return "".join(f"{mark} {line}\n" for line in lines)
