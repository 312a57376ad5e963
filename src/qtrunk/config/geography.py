"""Lengths and losses that a file leaves out: from the map and from typical fibre.

Fibre follows roads, rails and ducts. Where trunks published their fibre length, it is 1.16 to 1.81 times the
great circle between the cities (Beijing-Tianjin 125 km, Hefei-Shanghai 712 km, Wuhan-Hefei 609 km,
Beijing-Shanghai 2032 km); 1.3 is a plausible ratio for neighbouring sites. A measured length in the file is
always better.
"""

import math

EARTH_RADIUS_KM = 6371.0088
"""Mean radius of the WGS 84 ellipsoid (IUGG R1)."""
DETOUR = 1.3

Point = tuple[float, float]
"""Latitude and longitude in degrees."""


def great_circle_km(a: Point, b: Point) -> float:
    """The shortest way over a sphere (haversine form, exact for near points)."""
    lat_a, lon_a, lat_b, lon_b = (math.radians(value) for value in (*a, *b))
    h = math.sin((lat_b - lat_a) / 2) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin((lon_b - lon_a) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, h)))


def fibre_length_km(a: Point, b: Point) -> float:
    """The likely fibre length between two sites, to 0.1 km."""
    return round(DETOUR * great_circle_km(a, b), 1)


def fibre_loss_db(length_km: float, fibre_db_per_km: float, connector_loss_db: float) -> float:
    """The loss of a fibre and its patching, to 0.001 dB."""
    return round(fibre_db_per_km * length_km + connector_loss_db, 3)
