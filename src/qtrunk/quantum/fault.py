"""What breaks by itself on a simulated link: detectors that age or die, a transmitter off its power, a phase adrift.

Each is a change of the light path (quantum.optics), never of a number that anybody reports; they are set on the fibre
of a lab like attacks, as kinds beside them. `strength` has a meaning of its own for each.
"""

from dataclasses import replace
from typing import Any

from qtrunk.quantum.detectors import Detector
from qtrunk.quantum.optics import LinkOptics
from qtrunk.quantum.situation import Branch, Kind, Situation, everything


def _with_detectors(optics: LinkOptics, first: Detector, second: Detector) -> LinkOptics:
    return replace(optics, detectors=(first, second))


def _second(optics: LinkOptics, **changes: Any) -> LinkOptics:
    first, second = optics.detectors
    return _with_detectors(optics, first, replace(second, **changes))


def _broken(optics: LinkOptics, offset_rad: float) -> Situation:
    """A link whose light path is this one now."""
    return Situation(branches=(Branch(everything(optics), optics.outcomes(offset_rad)),), optics=optics)


def _dead_detector(optics: LinkOptics, _strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """The second detector is dead: it does not click, with light or without."""
    return _broken(_second(optics, efficiency=0.0, dark_count_probability=0.0), offset_rad)


def _weak_detector(optics: LinkOptics, strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """The second detector sees `strength` times as well as it should."""
    return _broken(_second(optics, efficiency=min(1.0, strength * optics.detectors[1].efficiency)), offset_rad)


def _dark_counts(optics: LinkOptics, strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """Both detectors are too warm: `strength` times as many dark counts."""
    first, second = (
        replace(each, dark_count_probability=min(1.0, strength * each.dark_count_probability))
        for each in optics.detectors
    )
    return _broken(_with_detectors(optics, first, second), offset_rad)


def _afterpulsing(optics: LinkOptics, strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """Both detectors trap `strength` times as many carriers."""
    return replace(_broken(optics, offset_rad), afterpulse_factor=strength, optics=None)


def _transmitter_power(optics: LinkOptics, strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """Every pulse leaves Alice `strength` times as bright as it should."""
    reach = optics.fibre_transmittance * optics.receiver_transmittance * optics.efficiencies
    light = (strength * optics.intensities)[:, None, None, None] * optics.shares(offset_rad) * reach
    return Situation(branches=(Branch(everything(optics), optics.clicks(light)),), intensity_factor=strength)


def _phase_drift(optics: LinkOptics, strength: float, offset_rad: float, _elapsed_s: float) -> Situation:
    """The phase loop holds the interferometers `strength` rad beside where they belong."""
    return _broken(optics, offset_rad + strength)


FAULTS: dict[str, Kind] = {
    "dead-detector": Kind(_dead_detector),
    "weak-detector": Kind(_weak_detector, 0.5, "times as well as it should see"),
    "dark-counts": Kind(_dark_counts, 20.0, "times as many dark counts"),
    "afterpulsing": Kind(_afterpulsing, 5.0, "times as many afterpulses"),
    "transmitter-power": Kind(_transmitter_power, 0.7, "times as bright"),
    "phase-drift": Kind(_phase_drift, 0.4, "rad off"),
}
