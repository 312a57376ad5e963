"""Constants of nature beside those of scipy (CODATA)."""

import pytest
from scipy import constants

from qtrunk.quantum import si


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        (si.LIGHT_SPEED, constants.c),
        (si.PLANCK, constants.h),
        (si.BOLTZMANN, constants.k),
        (si.ELEMENTARY_CHARGE, constants.e),
    ],
)
def test_a_constant_is_that_of_scipy(own, theirs):
    assert own == theirs
