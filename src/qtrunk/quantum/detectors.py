"""Single-photon detectors as values: gated InGaAs avalanche diodes and superconducting nanowires.

The fields follow what YD/T 3907.2 has measured of a detector for BB84 and the names of ETSI GS QKD 011: efficiency,
dark counts, afterpulses, dead time and recovery, jitter, effective detection width, and how they move with the arrival
time. What an attacker can do with bright light is here too: a detector that is blinded turns into a classical
photodiode with a threshold (Lydersen et al., Nat. Photonics 4, 686 (2010)). Nothing is sampled here.

Afterpulses: a carrier trapped in an avalanche is released after a time t with a density that falls as t^-a between the
hold-off for which the probability is quoted and a cutoff, a sum of many traps rather than one exponential. The mean
number of releases after t is S(t); releases are independent, so their number is Poisson. Each release that a gate finds
makes an avalanche, which traps carriers anew: chains of afterpulses follow from sampling it so. Before the quoted
hold-off the law is continued, so a shorter dead time than the data sheet's shows more afterpulses.

Figures tagged "typical" below are of the order that such devices show and belong to no one device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import expm1, hypot, pi, sqrt

import numpy as np

from qtrunk.base.errors import RequestRefused
from qtrunk.kernels import F64
from qtrunk.quantum.fibre import FWHM_PER_RMS, GAUSSIAN, RECTANGULAR, gate_share
from qtrunk.quantum.si import ELEMENTARY_CHARGE

INGAAS, SNSPD = "ingaas", "snspd"


def dark_count_probability(dark_hz: float, gate_width_s: float) -> float:
    """Of one gate or acceptance window, from the dark count rate of a detector that is always on."""
    return -expm1(-dark_hz * gate_width_s)


@dataclass(frozen=True, kw_only=True)
class Detector:
    """One detector. RequestRefused, naming the field, for values that cannot be."""

    kind: str = INGAAS
    """`ingaas`: an avalanche diode that is armed for the gate; `snspd`: a nanowire that is always on, where the gate is
    a window on its time tags."""
    efficiency: float
    """Click probability of a photon in the middle of the gate."""
    dark_count_probability: float
    """Per gate."""
    afterpulse_probability: float = 0.0
    """Mean number of afterpulses of one click that are released later than the hold-off."""
    afterpulse_exponent: float = 1.2
    """Of the power law; typically 1 to 1.5, not 1 itself."""
    afterpulse_hold_off_s: float = 100e-9
    """For which the probability is quoted."""
    afterpulse_cutoff_s: float = 100e-6
    """The slowest trap."""
    dead_time_s: float = 0.0
    """After a click, enforced by the electronics or the device's own."""
    recovery_s: float = 0.0
    """Time constant of a nanowire whose efficiency returns as 1 - exp(-t / recovery) after its dead time."""
    saturation_hz: float | None = None
    """Largest count rate of the electronics; None: only the dead time limits it."""
    jitter_s: float = 0.0
    """Of the reported time, rms."""
    gate_width_s: float = 200e-12
    """Effective detection width: full width of a rectangular gate, width at half maximum of a Gaussian one."""
    gate_shape: str = RECTANGULAR
    gate_delay_s: float = 0.0
    """Middle of the gate after the time that light is expected."""
    carriers_per_click: float = 1e6
    """Electrons in an avalanche; a nanowire has none to show."""
    blinding_power_w: float = 1e-4
    """Continuous light that leaves the detector deaf to single photons."""
    responsivity_a_per_w: float = 1.0
    """Bias current per power when blinded: 0.9 to 1 for InGaAs at 1550 nm, times the multiplication left, 1 to 10."""
    trigger_never_j: float = 0.2e-12
    """Light pulses up to this energy leave the blinded detector silent."""
    trigger_always_j: float = 0.25e-12
    """Pulses from this energy on make it click."""

    def __post_init__(self) -> None:
        shares = ("efficiency", "dark_count_probability")
        positive = (
            "afterpulse_exponent",
            "afterpulse_hold_off_s",
            "afterpulse_cutoff_s",
            "gate_width_s",
            "blinding_power_w",
            "trigger_never_j",
        )
        non_negative = (
            "afterpulse_probability",
            "dead_time_s",
            "recovery_s",
            "jitter_s",
            "carriers_per_click",
            "responsivity_a_per_w",
        )
        rules: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
            (shares, lambda value: 0 <= value <= 1, "from 0 to 1"),
            (positive, lambda value: 0 < value < np.inf, "above 0"),
            (non_negative, lambda value: 0 <= value < np.inf, "0 or more"),
        )
        for names, is_right, range_text in rules:
            for name in names:
                value = getattr(self, name)
                if not is_right(value):
                    raise RequestRefused(f"detector: {name} is {value}, must be {range_text}")
        if self.kind not in (INGAAS, SNSPD):
            raise RequestRefused(f"detector kind {self.kind!r}: {INGAAS} or {SNSPD}")
        if self.gate_shape not in (RECTANGULAR, GAUSSIAN):
            raise RequestRefused(f"detector gate_shape {self.gate_shape!r}: {RECTANGULAR} or {GAUSSIAN}")
        if self.afterpulse_exponent == 1 or self.afterpulse_cutoff_s <= self.afterpulse_hold_off_s:
            raise RequestRefused("detector: afterpulse_exponent must not be 1, afterpulse_cutoff_s above the hold-off")
        if self.saturation_hz is not None and not self.saturation_hz > 0:
            raise RequestRefused(f"detector: saturation_hz is {self.saturation_hz}, must be above 0")
        if self.trigger_always_j < self.trigger_never_j:
            raise RequestRefused("detector: trigger_always_j is below trigger_never_j")

    def efficiency_at(self, offset_s: float | F64, pulse_rms_s: float = 0.0) -> F64:
        """Click probability of a photon of a pulse that arrives `offset_s` after it is expected; shape of the offset.

        A diode's gate weighs arrival times, so its jitter only blurs what it reports; a nanowire's window weighs the
        reported times, so there jitter costs efficiency.
        """
        spread = hypot(pulse_rms_s, self.jitter_s) if self.kind == SNSPD else pulse_rms_s
        offset = np.asarray(offset_s, float) - self.gate_delay_s
        share: F64 = self.efficiency * gate_share(spread, self.gate_width_s, self.gate_shape, offset)
        return share

    @property
    def effective_gate_s(self) -> float:
        """Width of the rectangular gate of the same area: what steady light sees."""
        if self.gate_shape == GAUSSIAN:
            return self.gate_width_s / FWHM_PER_RMS * sqrt(2 * pi)
        return self.gate_width_s

    def afterpulse_survival(self, time_s: float | F64) -> F64:
        """S(t): mean number of afterpulses released later than t after a click, shape of `time_s`.

        The afterpulse probability at the hold-off, 0 from the cutoff on, inf at 0 for an exponent above 1.
        """
        power = 1 - self.afterpulse_exponent
        # Times in units of the hold-off, so that small ones keep their digits under the power.
        last = (self.afterpulse_cutoff_s / self.afterpulse_hold_off_s) ** power
        with np.errstate(divide="ignore"):
            here = np.minimum(np.asarray(time_s, float), self.afterpulse_cutoff_s) / self.afterpulse_hold_off_s
            left = (here**power - last) / (1 - last)
        survival: F64 = self.afterpulse_probability * left if self.afterpulse_probability else np.zeros_like(left)
        return survival

    def afterpulse_mean_after(self, dead_time_s: float) -> float:
        """Mean number of afterpulses of a click that find the detector live again after this dead time."""
        return float(self.afterpulse_survival(dead_time_s))

    def afterpulse_gate_hazard(self, period_s: float, gates: int) -> F64:
        """Mean number of afterpulses in each gate n = 1 .. `gates` after a click, shape (gates,).

        A gate stands for what is released from its time to the next gate's; the sum over all gates from n on is
        afterpulse_survival(n period_s), whatever the share of time that the gates are open: the quoted probability
        counts what gates found.
        """
        edges = self.afterpulse_survival(period_s * np.arange(1, gates + 2, dtype=np.float64))
        hazard: F64 = edges[:-1] - edges[1:]
        return hazard

    def afterpulse_delay_s(self, uniforms: F64, after_s: float | None = None) -> F64:
        """When an afterpulse that is released later than `after_s` (None: the hold-off) is released: the inverse of the
        law, for uniforms in [0, 1) of any shape. Between `after_s` and the cutoff.
        """
        after = self.afterpulse_hold_off_s if after_s is None else after_s
        if not 0 < after < self.afterpulse_cutoff_s:
            raise RequestRefused(f"afterpulses later than {after} s: above 0 and below the cutoff")
        power = 1 - self.afterpulse_exponent
        last = (self.afterpulse_cutoff_s / after) ** power
        delays: F64 = after * (1 - uniforms * (1 - last)) ** (1 / power)
        return delays

    @property
    def effective_dead_time_s(self) -> float:
        """Dead time that loses as many clicks, at count rates well below 1 / recovery: an efficiency that returns as
        1 - exp(-t / r) loses what a dead time r more would. Gaps are overstated by a share of about (rate r)^2 / 2.
        """
        return max(self.dead_time_s + self.recovery_s, 1 / self.saturation_hz if self.saturation_hz else 0.0)

    def saturated_rate_hz(self, offered_hz: float | F64) -> F64:
        """Count rate where a detector that is always ready would count `offered_hz`: non-paralysable dead time."""
        offered = np.asarray(offered_hz, float)
        rate: F64 = offered / (1 + offered * self.effective_dead_time_s)
        return rate

    def mean_photocurrent_a(self, click_hz: float, power_w: float = 0.0) -> float:
        """Bias current, as its monitor shows it: avalanches, 0.16 uA for 1e6 clicks a second of 1e6 carriers, and light
        of `power_w` on the detector, as a photodiode. A nanowire (no carriers) shows 0 for clicks.
        """
        return click_hz * self.carriers_per_click * ELEMENTARY_CHARGE + power_w * self.responsivity_a_per_w

    def is_blinded(self, power_w: float) -> bool:
        """Whether continuous light of this power leaves it deaf to single photons."""
        return power_w >= self.blinding_power_w

    def forced_click_probability(self, pulse_j: float | F64) -> F64:
        """Of a blinded detector, for a light pulse of this energy on it; straight between never and always.

        Where always is less than twice never, half a pulse never clicks when a whole one always does: the attacker then
        decides alone which detector clicks (Lydersen 2010).
        """
        width = self.trigger_always_j - self.trigger_never_j
        above = np.asarray(pulse_j, float) - self.trigger_never_j
        if width == 0:
            return np.asarray(above >= 0, float)
        return np.clip(above / width, 0.0, 1.0)


@dataclass(frozen=True)
class DetectorPair:
    """The two detectors of a receiver: the first for bit 0 in matched bases, the second for bit 1."""

    first: Detector
    second: Detector

    def mismatch(self, offset_s: float | F64, pulse_rms_s: float = 0.0) -> F64:
        """(second - first) / (second + first) of the efficiencies at this arrival time, shape of the offset; 0 where
        both are blind. What a time-shift attack gains: given a click and its time, the likelier bit has a probability
        of (1 + |mismatch|) / 2 (Qi et al., Quantum Inf. Comput. 7, 73 (2007)).
        """
        first = self.first.efficiency_at(offset_s, pulse_rms_s)
        second = self.second.efficiency_at(offset_s, pulse_rms_s)
        total = first + second
        ratio: F64 = np.divide(second - first, total, out=np.zeros_like(total), where=total > 0)
        return ratio

    def efficiency_ratio(self, offset_s: float = 0.0, pulse_rms_s: float = 0.0) -> float:
        """Second over first, as a calibration reports it (ReceiverReadings.efficiency_ratio)."""
        second = float(self.second.efficiency_at(offset_s, pulse_rms_s))
        return second / float(self.first.efficiency_at(offset_s, pulse_rms_s))


INGAAS_1MHZ = Detector(
    efficiency=0.085,
    dark_count_probability=5e-6,
    afterpulse_probability=0.03,
    afterpulse_hold_off_s=10e-6,
    dead_time_s=10e-6,
    jitter_s=300e-12 / FWHM_PER_RMS,
    gate_width_s=2.5e-9,
    trigger_never_j=2.0e-12,
    trigger_always_j=2.5e-12,
)
"""Gated diode of the first field systems, 2004 to 2008, about 1 MHz: efficiency 7 to 10 %, dark counts 1e-6 to 1e-5 per
gate, afterpulses 2 to 5 % with 10 us hold-off. Typical; the rest of the fields too."""
INGAAS_20MHZ = Detector(
    efficiency=0.10,
    dark_count_probability=2e-6,
    afterpulse_probability=0.02,
    afterpulse_hold_off_s=10e-6,
    dead_time_s=10e-6,
    jitter_s=240e-12 / FWHM_PER_RMS,
    gate_width_s=1.0e-9,
    trigger_never_j=2.0e-12,
    trigger_always_j=2.5e-12,
)
"""Gated diode of 2009 to 2014, 20 MHz and more: efficiency 10 %, dark counts 1e-6 to 5e-6, afterpulses 1 to 3 %, dead
time 5 to 10 us. Typical. Jitter 240 ps after arXiv:2106.05599, taken as full width at half maximum."""
INGAAS_1GHZ = Detector(
    efficiency=0.20,
    dark_count_probability=1e-6,
    afterpulse_probability=0.015,
    afterpulse_hold_off_s=100e-9,
    dead_time_s=100e-9,
    jitter_s=60e-12 / FWHM_PER_RMS,
    gate_width_s=180e-12,
    gate_shape=GAUSSIAN,
)
"""Sine-gated or self-differencing diode of 2018 and later, 1 to 1.25 GHz: efficiency 10 to 25 %, dark counts 5e-7 to
2e-6, afterpulses 0.5 to 5 %, dead time 0 to 100 ns. Typical."""
SINE_GATED_2006 = Detector(
    efficiency=0.085,
    dark_count_probability=9.2e-6,
    afterpulse_probability=0.060,
    afterpulse_hold_off_s=1.25e-9,
    gate_shape=GAUSSIAN,
)
"""Namekata, Sasamori and Inoue, Opt. Express 14, 10043 (2006), 800 MHz: efficiency, dark counts and afterpulses as
published, the hold-off one gate; the gate's shape and width typical."""
SELF_DIFFERENCING_2007 = Detector(
    efficiency=0.108,
    dark_count_probability=2.3e-6,
    afterpulse_probability=0.0616,
    afterpulse_hold_off_s=0.8e-9,
    saturation_hz=100e6,
    jitter_s=55e-12 / FWHM_PER_RMS,
    gate_width_s=180e-12,
    gate_shape=GAUSSIAN,
)
"""Yuan et al., Appl. Phys. Lett. 91, 041114 (2007), 1.25 GHz: efficiency, afterpulses, jitter and count rate as
published, the hold-off one gate; dark counts not verified, the gate typical."""
SINE_GATED_2018 = Detector(
    efficiency=0.117,
    dark_count_probability=18.6e3 / 1e9,
    gate_shape=GAUSSIAN,
)
"""Chin. Phys. B 27, 080305 (2018), 1 GHz at -50 C: efficiency and 18 600 dark counts a second as published; afterpulses
not stated here, the gate typical."""
NANOWIRE = Detector(
    kind=SNSPD,
    efficiency=0.80,
    dark_count_probability=dark_count_probability(100.0, 300e-12),
    recovery_s=15e-9,
    dead_time_s=20e-9,
    jitter_s=50e-12 / FWHM_PER_RMS,
    gate_width_s=300e-12,
    carriers_per_click=0.0,
    blinding_power_w=1e-7,
    responsivity_a_per_w=0.0,
    trigger_never_j=1e-15,
    trigger_always_j=1.25e-15,
)
"""A commercial superconducting nanowire of the 2020s: 80 %, 100 dark counts a second, 50 ps, no afterpulses. Typical;
the answer to bright light (Lydersen et al., New J. Phys. 13, 113042 (2011)) only in its order of magnitude."""
