"""Secret sharing over GF(256): any k of n shares give the secret, k - 1 of them give nothing at all.

A. Shamir, How to share a secret, Commun. ACM 22, 612 (1979), octet by octet in the field of AES (FIPS 197 section 4:
x^8 + x^4 + x^3 + x + 1). Which operations are done never depends on the octets: no tables are looked up, no branch is
taken on them. (NumPy and CPython make no promise on the time of an operation itself.)

Errors: ValueError (numbers out of range, shares of different lengths).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness

SHARES_MAX = 64
SECRET = 0
"""The index at which the polynomial's value is the secret."""
_PIECE_OCTETS = 1 << 15
"""What stays in a core's cache."""


def split(secret: Secret, needed: int, count: int) -> dict[int, Secret]:
    """`count` shares by index from 1, of which any `needed` give the secret."""
    if not 2 <= needed <= count <= SHARES_MAX:
        raise ValueError(f"shares: 2 <= needed <= count <= {SHARES_MAX} must hold")
    # needed - 1 shares at random and the secret settle the polynomial of each octet.
    points = {SECRET: secret} | {index: Secret(randomness.octets(len(secret))) for index in range(1, needed)}
    return {index: points.get(index) or value_at(points, index) for index in range(1, count + 1)}


def combine(shares: Mapping[int, Secret]) -> Secret:
    """The value at 0 of the polynomials through the shares: the secret, if these are right and enough."""
    if not all(1 <= index <= SHARES_MAX for index in shares):
        raise ValueError("shares: indices out of range")
    return value_at(shares, SECRET)


def value_at(points: Mapping[int, Secret], at: int) -> Secret:
    """The value at another index of the polynomials of least degree through the points (Lagrange)."""
    lengths = {len(point) for point in points.values()}
    if len(lengths) != 1 or at in points or not all(0 <= index <= SHARES_MAX for index in (at, *points)):
        raise ValueError("shares: at least one, of one length, with indices in range, and another index than theirs")
    made = Secret(bytes(lengths.pop()))
    out = np.frombuffer(made.fill(), np.uint8)
    for index, point in points.items():
        weight = 1
        for other in points:
            if other != index:
                # In this field minus is plus: the weight is the product of (at + other) / (index + other).
                weight = _times(weight, _times(at ^ other, _inverse(index ^ other)))
        octets = np.frombuffer(point.reveal(), np.uint8)
        for start in range(0, len(out), _PIECE_OCTETS):
            _add_multiple(out[start : start + _PIECE_OCTETS], octets[start : start + _PIECE_OCTETS], weight)
    return made


def _add_multiple(out: NDArray[np.uint8], octets: NDArray[np.uint8], factor: int) -> None:
    """Add octets, each times a factor that is no secret."""
    multiple = octets.copy()
    for bit in range(8):
        if factor >> bit & 1:
            out ^= multiple
        if factor >> bit > 1:
            over = (multiple >> 7) * np.uint8(0x1B)
            multiple <<= 1
            multiple ^= over
            over[:] = 0
    multiple[:] = 0


def _times(left: int, right: int) -> int:
    product = 0
    for _ in range(8):
        product ^= left & -(right & 1)
        left = (left << 1) ^ (0x11B & -(left >> 7))
        right >>= 1
    return product


def _inverse(value: int) -> int:
    """The 254th power, which is the inverse of everything but 0."""
    power, result = value, 1
    for _ in range(7):
        power = _times(power, power)
        result = _times(result, power)
    return result
