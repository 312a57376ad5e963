"""Key IDs of a pool: both ends read the same octets from them, and nobody else can make one."""

import os
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrunk.base.ids import KeyId, parse_key_id
from qtrunk.base.secret import Secret
from qtrunk.kms.keyid import KEY_OCTETS_MAX, UNITS_MAX, KeyIds, segment_of, units_of

PLACES = st.tuples(st.integers(0, UNITS_MAX - 1), st.integers(1, KEY_OCTETS_MAX))


@given(number=st.integers(0, 2**32 - 1), secret=st.binary(min_size=32, max_size=32), place=PLACES)
def test_an_id_says_where_its_key_lies(number: int, secret: bytes, place: tuple[int, int]) -> None:
    unit, octets = place
    (key_id,) = KeyIds(number, Secret(secret)).make(range(unit, unit + 1), octets)
    assert KeyIds(number, Secret(secret)).place(key_id) == place
    assert segment_of(key_id) == number
    assert parse_key_id(key_id) == key_id
    assert uuid.UUID(key_id).version == 4
    assert uuid.UUID(key_id).variant == uuid.RFC_4122


def test_ids_made_together_are_those_made_one_by_one_and_all_different() -> None:
    ids = KeyIds(7, Secret(os.urandom(32)))
    units = range(8, 8 + 4 * 1000, 4)
    together = ids.make(units, 32)
    assert together == [ids.make(range(unit, unit + 1), 32)[0] for unit in units]
    assert len(set(together)) == len(together)
    assert len({key_id[9:] for key_id in ids.make(units, 24) + together}) == 2000


@given(secret=st.binary(min_size=32, max_size=32), place=PLACES, bit=st.integers(0, 127))
def test_an_id_with_one_bit_changed_is_none(secret: bytes, place: tuple[int, int], bit: int) -> None:
    ids = KeyIds(3, Secret(secret))
    whole = uuid.UUID(ids.make(range(place[0], place[0] + 1), place[1])[0]).int ^ 1 << bit
    assert ids.place(KeyId(str(uuid.UUID(int=whole)))) is None


def test_an_id_of_another_segment_or_another_key_is_none() -> None:
    secret = os.urandom(32)
    (key_id,) = KeyIds(3, Secret(secret)).make(range(8, 9), 32)
    assert KeyIds(4, Secret(secret)).place(key_id) is None
    assert KeyIds(3, Secret(os.urandom(32))).place(key_id) is None


@pytest.mark.parametrize(("octets", "units"), [(1, 1), (8, 1), (9, 2), (32, 4), (1024, 128)])
def test_keys_take_whole_units(octets: int, units: int) -> None:
    assert units_of(octets) == units
