"""Secret sharing over GF(256): any k of n shares give the secret, k - 1 of them give nothing at all.

A. Shamir, How to share a secret, Commun. ACM 22, 612 (1979), octet by octet in the field of AES (FIPS 197 section 4:
x^8 + x^4 + x^3 + x + 1). Which operations are done never depends on the octets: no tables are looked up, no branch is
taken on them. (CPython makes no promise on the time of an operation itself.)

Errors: ValueError (numbers out of range, equal or zero indices, shares of different lengths).
"""

from collections.abc import Mapping

from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness

SHARES_MAX = 64


def split(secret: Secret, needed: int, count: int) -> dict[int, Secret]:
    """`count` shares by index from 1, of which any `needed` give the secret."""
    if not 2 <= needed <= count <= SHARES_MAX:
        raise ValueError(f"shares: 2 <= needed <= count <= {SHARES_MAX} must hold")
    # One random polynomial for each octet, of degree needed - 1, whose value at 0 is that octet.
    higher = [bytearray(randomness.octets(len(secret))) for _ in range(needed - 1)]
    made: dict[int, Secret] = {}
    for index in range(1, count + 1):
        share = bytearray(len(secret))
        for coefficients in (*higher, secret.reveal()):
            for position, coefficient in enumerate(coefficients):
                share[position] = _times(share[position], index) ^ coefficient
        made[index] = Secret(share)
        share[:] = bytes(len(share))
    for coefficients in higher:
        coefficients[:] = bytes(len(coefficients))
    return made


def combine(shares: Mapping[int, Secret]) -> Secret:
    """The value at 0 of the polynomials through the shares: the secret, if these are right and enough."""
    lengths = {len(share) for share in shares.values()}
    if len(lengths) != 1 or not all(1 <= index <= SHARES_MAX for index in shares):
        raise ValueError("shares: at least one, of one length, with indices in range")
    found = bytearray(lengths.pop())
    for index, share in shares.items():
        weight = 1
        for other in shares:
            if other != index:
                # In this field minus is plus: the Lagrange weight at 0 is the product of other / (other + index).
                weight = _times(weight, _times(other, _inverse(other ^ index)))
        for position, octet in enumerate(share.reveal()):
            found[position] ^= _times(octet, weight)
    secret = Secret(found)
    found[:] = bytes(len(found))
    return secret


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
