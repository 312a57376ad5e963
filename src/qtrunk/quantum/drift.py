"""Slow dynamics of a link and the loop that holds it (first cut)."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, sqrt

from qtrunk.kernels import F64

PHASE_RAD_PER_K_S = 8.95e9


@dataclass(frozen=True, kw_only=True)
class DriftSettings:
    """How a link drifts and is held."""

    delay_s: float = 400e-12
    temperature_rms_k: float = 0.02
    temperature_correlation_s: float = 600.0
    control_period_s: float = 0.1
    reference_fraction: float = 0.01
    fibre_km: float = 50.0


@dataclass(frozen=True, slots=True)
class DriftStep:
    """One control period."""

    phase_error_rad: float = 0.0
    gate_offset_s: float = 0.0
    is_locked: bool = True
    measured_offset_rad: float = 0.0


class Drift:
    """The process."""

    def __init__(self, settings: DriftSettings, uniforms: Callable[[int], F64]) -> None:
        self._settings = settings
        self._uniforms = uniforms
        self._temperature_k = 0.0
        self._held_rad = 0.0

    def step(self, click_probability: float, visibility: float, clock_hz: float, light: bool = True) -> DriftStep:
        """Move on by one control period."""
        settings = self._settings
        keep = exp(-settings.control_period_s / settings.temperature_correlation_s)
        u = self._uniforms(8)
        first, second = (float(sum(u[i : i + 4]) - 2) * sqrt(3) for i in (0, 4))
        self._temperature_k = keep * self._temperature_k + settings.temperature_rms_k * sqrt(1 - keep**2) * first
        phase = PHASE_RAD_PER_K_S * settings.delay_s * self._temperature_k
        counts = click_probability * settings.reference_fraction * settings.control_period_s * clock_hz
        offset = phase - self._held_rad
        measured = offset + (second / (visibility * sqrt(counts)) if counts > 1 else 0.0)
        if counts > 1:
            self._held_rad += measured
        return DriftStep(phase - self._held_rad, 0.0, light, measured)


def expected_residual_rad(
    settings: DriftSettings, click_probability: float, visibility: float, clock_hz: float
) -> float:
    """What the loop leaves, rms."""
    counts = click_probability * settings.reference_fraction * settings.control_period_s * clock_hz
    return 1 / (visibility * sqrt(counts)) if counts > 1 else 0.0
