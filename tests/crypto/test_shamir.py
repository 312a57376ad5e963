"""Secret sharing: the field, any k of n, nothing from k - 1; long secrets as short ones."""

import itertools

import pytest

from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness, shamir


def test_the_field_is_that_of_aes() -> None:
    # FIPS 197 section 4.2 and 4.2.1.
    assert shamir._times(0x57, 0x83) == 0xC1
    assert shamir._times(0x57, 0x13) == 0xFE
    assert all(shamir._times(value, shamir._inverse(value)) == 1 for value in range(1, 256))


def test_any_k_of_n_shares_give_the_secret_and_fewer_do_not() -> None:
    whole = Secret(bytes(range(32)))
    shares = shamir.split(whole, 3, 5)
    for chosen in itertools.combinations(shares, 3):
        assert shamir.combine({index: shares[index] for index in chosen}) == whole
    assert shamir.combine(shares) == whole
    for chosen in itertools.combinations(shares, 2):
        assert shamir.combine({index: shares[index] for index in chosen}) != whole


def test_one_share_less_leaves_every_secret_possible() -> None:
    # With one of two shares of an octet known, each of the 256 secrets belongs to exactly one other share.
    known = shamir.split(Secret(b"\x2a"), 2, 2)[1]
    found = {bytes(shamir.combine({1: known, 2: Secret(bytes([other]))}).reveal()) for other in range(256)}
    assert len(found) == 256


@pytest.mark.parametrize(("needed", "count"), [(1, 3), (0, 0), (4, 3), (2, 65)])
def test_shares_that_make_no_sense_are_refused(needed: int, count: int) -> None:
    with pytest.raises(ValueError, match="shares"):
        shamir.split(Secret(bytes(32)), needed, count)
    with pytest.raises(ValueError, match="shares"):
        shamir.combine({0: Secret(bytes(32)), 1: Secret(bytes(32))})


def test_a_long_secret_is_shared_like_its_octets_one_by_one() -> None:
    whole = Secret(randomness.octets(1 << 20))
    points = {index: Secret(randomness.octets(1 << 20)) for index in (1, 2)} | {shamir.SECRET: whole}
    third = shamir.value_at(points, 3)
    for place in (0, 77, (1 << 20) - 1):
        few = {index: Secret(bytes(point.reveal()[place : place + 1])) for index, point in points.items()}
        assert shamir.value_at(few, 3) == Secret(bytes(third.reveal()[place : place + 1]))
    assert shamir.combine({1: points[1], 2: points[2], 3: third}) == whole
