"""What the relay machine wants done."""

from dataclasses import dataclass

from qtrunk.base.errors import QtrunkError
from qtrunk.base.ports import SuppliedKey
from qtrunk.relay.hops import Report, SendKx
from qtrunk.relay.inquest import Tell

__all__ = ["Effect", "Failed", "Report", "SendKx", "Supplied", "Tell"]


@dataclass(frozen=True, slots=True)
class Supplied:
    """Keys for the SAE that asked, on record as delivered; or none: their targets hold what was given."""

    request_id: str
    keys: list[SuppliedKey]
    receipt: dict[str, object]


@dataclass(frozen=True, slots=True)
class Failed:
    """No keys, and why."""

    request_id: str
    error: QtrunkError


Effect = SendKx | Supplied | Failed | Report | Tell
