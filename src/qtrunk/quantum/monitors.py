"""What gives an attack away: limits and tests of a module's readings, whatever device they come from.

Tests are statistical where readings are counts, each with the chance FALSE_ALARM per block that an honest link fails
it; powers and currents have absolute limits far above what an honest link shows.
"""

from dataclasses import dataclass
from math import log10

import numpy as np
from scipy import special

from qtrunk.kernels import F64
from qtrunk.quantum.device import ARRIVAL_BINS, ReceiverReadings, TransmitterReadings

FALSE_ALARM = 1e-9
"""Of each statistical test, for each block: at a block every four seconds one in a hundred years."""
POWER_LIMIT_DBM = -60.0
"""At either entrance. The quantum signal itself is below -80 dBm."""
PHOTOCURRENT_LIMIT_A = 5e-6
"""Ten times what a diode draws at three million clicks a second."""
PHOTON_NUMBER_TOLERANCE = 0.05
"""Of what Alice sends against what she should."""
EFFICIENCY_TOLERANCE = 0.1
"""Of one detector against the other, at calibration."""
GATE_DELAY_LIMIT_S = 50e-12
"""Between the gates of the two detectors."""


def at_most(count: int, total: int, chance: float) -> float:
    """Chance of so many or fewer of `total`, each with this chance of its own."""
    return float(special.bdtr(count, total, chance))


def at_least(count: int, total: int, chance: float) -> float:
    """Chance of so many or more."""
    return float(special.bdtrc(count - 1, total, chance))


def _chance_of_alike(counts: F64) -> float:
    """p-value of the chi-square test that both rows of counts, shape (2, bins), come from one distribution."""
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    return float(special.chdtrc(counts.shape[1] - 1, float(((counts - expected) ** 2 / expected).sum())))


@dataclass(frozen=True, slots=True)
class Finding:
    """One monitor that shows what an honest link would not."""

    monitor: str
    text: str


def check_transmitter(readings: TransmitterReadings, intensities: tuple[float, ...]) -> list[Finding]:
    """What is wrong with a transmitter's readings."""
    numbers = readings.mean_photon_numbers
    if numbers is not None and len(numbers) != len(intensities):
        return [Finding("readings", "mean_photon_numbers is not what docs/device.md says")]
    found = []
    power = readings.reverse_power_dbm
    if power is not None and not power <= POWER_LIMIT_DBM:
        found.append(
            Finding("back-reflection", f"{power:.1f} dBm enter the transmitter; limit {POWER_LIMIT_DBM:g} dBm")
        )
    if readings.mean_photon_numbers is not None and intensities[0] > 0:
        ratio = readings.mean_photon_numbers[0] / intensities[0]
        if not abs(ratio - 1) <= PHOTON_NUMBER_TOLERANCE:
            found.append(
                Finding("output-power", f"signal pulses leave with {ratio:.2f} of the photons they should have")
            )
    return found


def check_receiver(readings: ReceiverReadings, pulses: int) -> list[Finding]:
    """What is wrong with a receiver's readings of a block of so many pulses."""
    if wrong := malformed(readings):
        return [Finding("readings", f"{wrong} is not what docs/device.md says")]
    found = []
    power = readings.entrance_power_dbm
    if power is not None and not power <= POWER_LIMIT_DBM:
        found.append(Finding("entrance-power", f"{power:.1f} dBm enter the receiver; limit {POWER_LIMIT_DBM:g} dBm"))
    for number, current in enumerate(readings.photocurrent_a or []):
        if not current <= PHOTOCURRENT_LIMIT_A:
            text = f"detector {number} draws {current * 1e6:.1f} uA; limit {PHOTOCURRENT_LIMIT_A * 1e6:g} uA"
            found.append(Finding("photocurrent", text))
    ratio = readings.efficiency_ratio
    if ratio is not None and not abs(log10(max(ratio, 1e-9))) <= log10(1 + EFFICIENCY_TOLERANCE):
        found.append(Finding("calibration", f"the second detector sees {ratio:.2f} times as well as the first"))
    if readings.gate_delays_s is not None:
        apart = abs(readings.gate_delays_s[1] - readings.gate_delays_s[0])
        if not apart <= GATE_DELAY_LIMIT_S:
            found.append(Finding("calibration", f"the gates are {apart * 1e12:.0f} ps apart"))
    if readings.attenuator_test is not None:
        found += _check_attenuator(*readings.attenuator_test)
    if readings.arrivals is not None:
        found += _check_arrivals(np.array(readings.arrivals, float))
    if readings.detector_clicks is not None and readings.double_clicks is not None:
        found += _check_doubles(readings.detector_clicks, readings.double_clicks, pulses)
    return found


def malformed(readings: ReceiverReadings) -> str:
    """The first reading whose shape is wrong, or nothing: a module that speaks nonsense must not stop a node."""
    for name, length in (("detector_clicks", 2), ("photocurrent_a", 2), ("attenuator_test", 4), ("gate_delays_s", 2)):
        values = getattr(readings, name)
        if values is not None and len(values) != length:
            return name
    arrivals = readings.arrivals
    if arrivals is not None and (
        len(arrivals) != 2 or any(len(bins) != ARRIVAL_BINS or min(bins) < 0 for bins in arrivals)
    ):
        return "arrivals"
    counts = [*(readings.detector_clicks or []), readings.double_clicks or 0, *(readings.attenuator_test or [])]
    return "a count" if any(not 0 <= count < 1 << 48 for count in counts) else ""


def _check_attenuator(gates: int, clicks: int, gates_in: int, clicks_in: int) -> list[Finding]:
    """Light gives half the clicks behind 3 dB, darkness as many: the share behind must lie between, within chance."""
    total = clicks + clicks_in
    fair = gates_in / max(1, gates + gates_in)
    low = 0.5 * gates_in / max(1, gates + 0.5 * gates_in) * 0.98
    if total and (at_most(clicks_in, total, low) < FALSE_ALARM or at_least(clicks_in, total, fair) < FALSE_ALARM):
        return [Finding("attenuator", f"3 dB of attenuation leave {clicks_in / max(1, clicks):.2f} of the clicks")]
    return []


def _check_arrivals(histograms: F64) -> list[Finding]:
    """Both detectors must see the same times of arrival: nothing but the detector may depend on the bit."""
    seen = histograms[:, histograms.sum(axis=0) >= 20]
    if seen.shape[1] < 2 or not np.all(seen.sum(axis=1) > 0):
        return []
    found = []
    if _chance_of_alike(seen) < FALSE_ALARM:
        found.append(Finding("arrivals", "the time of arrival depends on the detector"))
    bins = np.arange(histograms.shape[1]) - (histograms.shape[1] - 1) / 2
    middle = float(histograms.sum(axis=0) @ bins / histograms.sum())
    if abs(middle) > histograms.shape[1] / 16:
        found.append(Finding("arrivals", f"clicks come {middle:+.1f} bins from the middle of the gate"))
    return found


def _check_doubles(detector_clicks: list[int], double_clicks: int, pulses: int) -> list[Finding]:
    """Gates in which both detectors click are rare, but they never vanish and never abound.

    If every gate were alike there would be n0 n1 / pulses of them. Matched bases make them rarer (one detector gets
    nearly all light), intensities that vary make them more frequent; together it is between a fifth and three times.
    """
    alike = detector_clicks[0] * detector_clicks[1] / pulses
    few = special.pdtr(double_clicks, alike / 5) < FALSE_ALARM
    many = double_clicks > 0 and special.pdtrc(double_clicks - 1, 3 * alike) < FALSE_ALARM
    if few or many:
        return [Finding("double-clicks", f"{double_clicks} double clicks where about {alike / 2:.0f} belong")]
    return []


# ── counts after sifting ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What both ends know of a block once bases, intensities and errors are public. Tuples of two are by basis, key
    basis first; over matched bases only, but for `clicks`.
    """

    pulses: int
    clicks: tuple[int, ...]
    """By intensity, strongest first."""
    sifted: tuple[int, int]
    errors: tuple[int, int]
    ones: tuple[int, int]
    """Bits that Bob read as 1."""


QBER_MAX = 0.11
"""No key by one-way distillation above it (Shor, Preskill 2000)."""
RATIO_TOLERANCE = 0.01
"""Drift of the intensities' ratio that is still honest."""
BALANCE_TOLERANCE = 0.005
"""Of 0 and 1 about a half."""
NOISE_FACTOR = 3.0
"""By which clicks of the weakest intensity may rise or fall: dark counts and Raman light do vary."""
LOSS_STEP = 0.1
"""Of all clicks, against the installed link: a bend, a dirty connector, a tap."""


def check_counts(seen: Counts, installed: Counts) -> list[Finding]:
    """What is wrong with a block's counts against those of the same link when it was installed.

    Each test has the chance FALSE_ALARM that a link which did not change fails it; drifts within the tolerances above
    are no change.
    """
    found = [*_check_errors(seen), *_check_balance(seen)]
    signal, decoy, dark = seen.clicks[0], seen.clicks[1], seen.clicks[-1]
    was = installed.clicks[1] / max(1, installed.clicks[0] + installed.clicks[1])
    total = signal + decoy
    if _is_outside(decoy, total, was * (1 - RATIO_TOLERANCE), was * (1 + RATIO_TOLERANCE), was):
        text = f"{decoy / max(1, total):.3f} of signal and decoy clicks are decoys, {was:.3f} when installed"
        found.append(Finding("decoy-ratio", text))
    expected = installed.clicks[-1] * seen.pulses / installed.pulses
    if special.pdtr(dark, expected / NOISE_FACTOR) < FALSE_ALARM or (
        dark > 0 and special.pdtrc(dark - 1, expected * NOISE_FACTOR) < FALSE_ALARM
    ):
        found.append(Finding("vacuum", f"{dark} clicks without light, {expected:.0f} when installed"))
    rate, before = sum(seen.clicks) / seen.pulses, sum(installed.clicks) / installed.pulses
    if abs(rate / before - 1) > LOSS_STEP:
        found.append(Finding("gain", f"{rate / before:.2f} of the clicks when installed"))
    return found


def _check_errors(seen: Counts) -> list[Finding]:
    found = []
    for name, errors, sifted in zip(("key", "test"), seen.errors, seen.sifted, strict=True):
        if sifted and at_least(errors, sifted, QBER_MAX) < FALSE_ALARM:
            found.append(Finding("qber", f"{errors / sifted:.1%} errors in the {name} basis"))
    if all(seen.sifted):
        rates = [errors / sifted for errors, sifted in zip(seen.errors, seen.sifted, strict=True)]
        pooled = sum(seen.errors) / sum(seen.sifted)
        spread = (pooled * (1 - pooled) * sum(1 / sifted for sifted in seen.sifted)) ** 0.5
        if spread and 2 * special.ndtr(-abs(rates[0] - rates[1]) / spread) < FALSE_ALARM:
            found.append(Finding("bases", f"{rates[0]:.2%} errors in the key basis, {rates[1]:.2%} in the test basis"))
    return found


def _check_balance(seen: Counts) -> list[Finding]:
    found = []
    for name, ones, sifted in zip(("key", "test"), seen.ones, seen.sifted, strict=True):
        if _is_outside(ones, sifted, 0.5 - BALANCE_TOLERANCE, 0.5 + BALANCE_TOLERANCE, 0.5):
            found.append(Finding("balance", f"{ones / sifted:.1%} ones in the {name} basis"))
    return found


def _is_outside(count: int, total: int, low: float, high: float, middle: float) -> bool:
    """Whether a share is out of its range by more than chance."""
    if count < middle * total:
        return at_most(count, total, low) < FALSE_ALARM
    return at_least(count, total, min(1.0, high)) < FALSE_ALARM
