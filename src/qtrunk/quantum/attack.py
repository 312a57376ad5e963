"""Eve, acting on the optics and never on a number. Only the simulated fibre imports this.

Intercept-resend: with probability `fraction` she measures a pulse in a uniformly random basis with perfect detectors
and resends what she saw, in her basis and at the intensity she took, so gains stay as they were. Where her basis is not
Alice's, her bit is a guess: a quarter of the intercepted bits become errors in both bases.
"""

from dataclasses import dataclass

from qtrunk.base.errors import RequestRefused

KINDS = ("none", "intercept-resend")


@dataclass(frozen=True, slots=True)
class Attack:
    """What Eve does now."""

    kind: str = "none"
    fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RequestRefused(f"attack {self.kind!r}: one of {', '.join(KINDS)}")
        if not 0 <= self.fraction <= 1:
            raise RequestRefused(f"fraction {self.fraction}: from 0 to 1")

    @property
    def intercept_threshold(self) -> int:
        """Chance of interception in steps of 2^-32, for kernels.thin_clicks."""
        return round(self.fraction * (1 << 32)) if self.kind == "intercept-resend" else 0
