"""The fields of a topology file: names, ranges, units, and how one table of them is read.

The ranges are wide: they catch a slip of the pen (a loss in the place of a length, per cent for a fraction)
and do not judge a design. Names follow ETSI GS QKD 011. docs/topology.md lists the ranges; a test compares.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from qtrunk.config.problem import Problems, child, choices, shown

TEXT_CHARACTERS_MAX = 100
# Ten digits are what people write; a sum of such fractions is off by less.
_SUM_TOLERANCE = 1e-9
Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Range:
    """The allowed values of a number, bounds included unless `is_low_open`."""

    low: float
    high: float
    unit: str = ""
    is_low_open: bool = False

    def __str__(self) -> str:
        words = "above {} to {} {}" if self.is_low_open else "{} to {} {}"
        return words.format(shown(self.low), shown(self.high), self.unit).rstrip()

    def complaint(self, value: float) -> str | None:
        """Why `value` is not allowed, or None."""
        if value > self.high:
            return f"{shown(value)} is over {shown(self.high)} {self.unit}".rstrip()
        if value < self.low:
            return f"{shown(value)} is under {shown(self.low)} {self.unit}".rstrip()
        if self.is_low_open and value == self.low:
            return f"{shown(value)} is not above {shown(self.low)} {self.unit}".rstrip()
        if math.isnan(value):
            return f"nan is not a number; allowed: {self}"
        return None


LENGTH_KM = Range(0, 200, "km")
LOSS_DB = Range(0, 60, "dB")
EQUIPMENT_NUMBERS: Mapping[str, Range] = MappingProxyType(
    {
        "clock_hz": Range(1e6, 1e10, "Hz"),
        "key_basis_probability": Range(0.01, 0.99),
        "visibility": Range(0.5, 1),
        "residual_phase_rad": Range(0, 1.5, "rad"),
        "receiver_loss_db": Range(0, 30, "dB"),
        "detector_efficiency": Range(0.001, 1),
        "dark_count_probability": Range(0, 0.01),
        "afterpulse_probability": Range(0, 0.5),
        "dead_time_s": Range(0, 0.001, "s"),
        "gate_mismatch_s": Range(0, 1e-9, "s"),
        "intensity_fluctuation": Range(0, 0.3),
        "added_noise_probability": Range(0, 0.01),
        "temperature_rms_k": Range(0, 10, "K"),
        "control_period_s": Range(0.01, 10, "s"),
        "reference_fraction": Range(0.0001, 0.5),
        "fibre_db_per_km": Range(0.1, 1, "dB/km"),
        "connector_loss_db": Range(0, 20, "dB"),
        "block_s": Range(0.1, 600, "s"),
        "clock_fraction": Range(0.001, 1),
    }
)
DISTILLATION_NUMBERS: Mapping[str, Range] = MappingProxyType(
    {
        "latency_s": Range(0.1, 3600, "s"),
        "epsilon_secret": Range(1e-30, 1e-3),
        "epsilon_total": Range(1e-30, 1),
    }
)
LINK_NUMBERS: Mapping[str, Range] = MappingProxyType(
    {"length_km": LENGTH_KM, "loss_db": LOSS_DB, **EQUIPMENT_NUMBERS, **DISTILLATION_NUMBERS}
)
INTENSITY = Range(0, 1)
PROBABILITY = Range(0.001, 1)
LINK_TRIPLES: Mapping[str, Range] = MappingProxyType({"intensities": INTENSITY, "probabilities": PROBABILITY})
LINK_CHOICES: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "is_adaptive": (True, False),
        "bounds": ("exact", "hoeffding"),
        "reconciliation": ("auto", "ldpc", "fast", "cascade"),
        "bootstrap": ("preshared", "ml-dsa"),
    }
)
LINK_KEYS = (*LINK_NUMBERS, *LINK_TRIPLES, *LINK_CHOICES)
LATITUDE = Range(-90, 90, "degrees")
TRUST = Range(0.01, 1)
LONGITUDE = Range(-180, 180, "degrees")
PORT = Range(0, 65535)
RATE = Range(0, 1e9, "bit/s", is_low_open=True)


class Entry:
    """One table of the file and where it stands. Every reader notes what is wrong and then gives None."""

    __slots__ = ("_problems", "_table", "path")

    def __init__(self, table: Mapping[str, object], path: str, problems: Problems, keys: Collection[str]) -> None:
        self.path = path
        self._table = table
        self._problems = problems
        for key in table:
            if key not in keys:
                problems.add(self.at(key), f"unknown key{choices(key, keys, 'keys')}")

    def at(self, key: str) -> str:
        """The path of a key of this table."""
        return child(self.path, key)

    def has(self, key: str) -> bool:
        """Whether the file gives this key, right or wrong."""
        return key in self._table

    def wrong(self, key: str, text: str) -> None:
        """Note a problem with a key."""
        self._problems.add(self.at(key), text)

    def wrong_item(self, key: str, index: int, text: str) -> None:
        """Note a problem with an item of a list."""
        self._problems.add(f"{self.at(key)}[{index}]", text)

    def reject(self, text: str) -> None:
        """Note a problem with the table as a whole."""
        self._problems.add(self.path, text)

    def require(self, key: str, what: str) -> None:
        """Note that a key is missing, if it is."""
        if key not in self._table:
            self.wrong(key, f"missing; {what}")

    def text(self, key: str, characters_max: int = TEXT_CHARACTERS_MAX) -> str | None:
        """A short printable text."""
        if key not in self._table:
            return None
        value = self._table[key]
        if not isinstance(value, str):
            self.wrong(key, f"{shown(value)} is not text")
        elif not value.isprintable() or len(value) > characters_max:
            self.wrong(key, f"{shown(value)} is not at most {characters_max} printable characters")
        else:
            return value
        return None

    def number(self, key: str, allowed: Range) -> float | None:
        """A number in a range."""
        return _number(self._table[key], self.at(key), allowed, self._problems) if self.has(key) else None

    def whole(self, key: str, allowed: Range) -> int | None:
        """A whole number in a range."""
        value = self._table.get(key)
        if isinstance(value, float):
            self.wrong(key, f"{shown(value)} is not a whole number; allowed: {allowed}")
            return None
        number = self.number(key, allowed)
        return None if number is None else int(number)

    def triple(self, key: str, allowed: Range) -> Triple | None:
        """Three numbers, each in a range."""
        if not self.has(key):
            return None
        found = self.items(key)
        if found is None:
            return None
        if len(found) != 3:
            self.wrong(key, f"{len(found)} given; three are needed: signal, decoy, vacuum")
            return None
        numbers = [
            _number(value, f"{self.at(key)}[{index}]", allowed, self._problems) for index, value in enumerate(found)
        ]
        signal, decoy, vacuum = numbers
        return None if signal is None or decoy is None or vacuum is None else (signal, decoy, vacuum)

    def choice(self, key: str, allowed: Sequence[object]) -> object | None:
        """One of a few values."""
        if not self.has(key):
            return None
        value = self._table[key]
        # True is 1 in Python, not in a topology file.
        if not any(type(value) is type(one) and value == one for one in allowed):
            self.wrong(key, f"{shown(value)} is not one of {', '.join(shown(one) for one in allowed)}")
            return None
        return value

    def items(self, key: str) -> Sequence[object] | None:
        """The items of a list; none where the key is missing."""
        value = self._table.get(key, [])
        if isinstance(value, list):
            return value
        self.wrong(key, f"{shown(value)} is not a list")
        return None

    def table(self, key: str) -> Mapping[str, object] | None:
        """A table below this one; an empty one where the key is missing."""
        value = self._table.get(key, {})
        if isinstance(value, dict):
            return value
        self.wrong(key, f"{shown(value)} is not a table")
        return None

    def below(self, key: str, keys: Collection[str]) -> "Entry":
        """The reader of a table below this one."""
        return Entry(self.table(key) or {}, self.at(key), self._problems, keys)


def _number(value: object, path: str, allowed: Range, problems: Problems) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        problems.add(path, f"{shown(value)} is not a number; allowed: {allowed}")
        return None
    complaint = allowed.complaint(value)
    if complaint is not None:
        problems.add(path, complaint)
        return None
    return float(value) + 0.0  # turns -0.0 into 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """What `[link]` and `[links.x]` tables set; a key that is missing or wrong is not there."""

    numbers: Mapping[str, float]
    triples: Mapping[str, Triple]
    choices: Mapping[str, object]

    def over(self, defaults: "LinkSettings") -> "LinkSettings":
        """These, and the defaults where these say nothing."""
        return LinkSettings(
            numbers={**defaults.numbers, **self.numbers},
            triples={**defaults.triples, **self.triples},
            choices={**defaults.choices, **self.choices},
        )


NO_SETTINGS = LinkSettings(numbers=MappingProxyType({}), triples=MappingProxyType({}), choices=MappingProxyType({}))


def link_settings(entry: Entry) -> LinkSettings:
    """Read a `[link]` or `[links.x]` table."""
    numbers: dict[str, float] = {}
    for key, allowed in LINK_NUMBERS.items():
        number = entry.number(key, allowed)
        if number is not None:
            numbers[key] = number
    triples: dict[str, Triple] = {}
    for key, allowed in LINK_TRIPLES.items():
        triple = entry.triple(key, allowed)
        if triple is not None and _is_sound(key, triple, entry):
            triples[key] = triple
    found = {key: entry.choice(key, allowed) for key, allowed in LINK_CHOICES.items()}
    choices = {key: value for key, value in found.items() if value is not None}
    return LinkSettings(numbers=numbers, triples=triples, choices=choices)


def _is_sound(key: str, triple: Triple, entry: Entry) -> bool:
    """Whether intensities suit two-decoy estimation (Lim et al. 2014) and probabilities sum to 1."""
    if key == "intensities":
        signal, decoy, vacuum = triple
        if signal > decoy + vacuum and decoy > vacuum:
            return True
        values = ", ".join(shown(value) for value in triple)
        entry.wrong(key, f"{values} do not suit two-decoy estimation; needed: mu1 > mu2 + mu3 and mu2 > mu3 >= 0")
        return False
    total = math.fsum(triple)
    if abs(total - 1) > _SUM_TOLERANCE:
        entry.wrong(key, f"the sum is {shown(total)}, not 1")
        return False
    return True
