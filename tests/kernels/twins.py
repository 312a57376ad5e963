"""The kernels again, in NumPy and plain Python: slow, plain, and equal bit for bit."""

import math

import numpy as np

MASK = (1 << 64) - 1


class Dice:
    """xoshiro256++ in Python integers."""

    def __init__(self, state: np.ndarray) -> None:
        self.s = [int(word) for word in state]

    def next(self) -> int:
        s = self.s
        result = (self._rotl((s[0] + s[3]) & MASK, 23) + s[0]) & MASK
        t = (s[1] << 17) & MASK
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = self._rotl(s[3], 45)
        return result

    @staticmethod
    def _rotl(x: int, k: int) -> int:
        return ((x << k) | (x >> (64 - k))) & MASK

    def unit(self) -> float:
        return (self.next() >> 11) * 2.0**-53


def sample_candidates(state, start, count, probability):
    dice, scale = Dice(state), 1.0 / math.log1p(-probability)
    positions, offset = [], 0
    while offset < count:
        offset += math.floor(math.log(((dice.next() >> 11) + 1) * 2.0**-53) * scale)
        if offset < count:
            positions.append(start + offset)
        offset += 1
    return positions, dice.s


def thin_clicks(state, positions, alice, bob, thresholds, basis_a, basis_b, intercept, accept, outcome, dead, last):
    dice = Dice(state)
    out_positions, out_basis, out_bit, doubles = [], [], [], 0
    for position, a, b in zip(positions.tolist(), alice.tolist(), bob.tolist(), strict=True):
        keep, how, word = dice.unit(), dice.unit(), dice.next()
        level = int(np.sum(thresholds <= (a & 0xFFFFFFFF)))
        basis, bit = int(((a >> 32) & 0xFFFF) >= basis_a), (a >> 48) & 1
        bob_basis = int((b & 0xFFFF) >= basis_b)
        if (word & 0xFFFFFFFF) < intercept:
            eve = (word >> 32) & 1
            if eve != basis:
                bit = (word >> 33) & 1
            basis = eve
        if keep >= accept[level] or position - last <= dead:
            continue
        last = position
        right, single = outcome[level][int(basis != bob_basis)]
        if how >= single:
            seen, doubles = (word >> 34) & 1, doubles + 1
        else:
            seen = bit ^ int(how >= right)
        out_positions.append(position)
        out_basis.append(bob_basis)
        out_bit.append(seen)
    return out_positions, out_basis, out_bit, last, doubles, dice.s


def syndrome(code, bits):
    rows = []
    for r in range(code.rows):
        out = np.zeros(code.lift, np.uint8)
        for e in range(code.row_start[r], code.row_start[r + 1]):
            column = bits[code.column[e] * code.lift : (code.column[e] + 1) * code.lift]
            out ^= np.roll(column, -code.shift[e])
        rows.append(out)
    return np.concatenate(rows)


def correction(d):
    return (d < 1).astype(int) + (d < 4) + (d < 9)


def box_plus(x, y):
    low, high = np.minimum(x, y), np.maximum(x, y)
    return np.maximum(low + correction(low + high) - correction(high - low), 0)


def decode(code, wanted, channel, iterations_max):
    """Layered A-min*, a whole block row at a time."""
    z = code.lift
    posterior = channel.astype(int).copy()
    messages = np.zeros((len(code.column), z), int)
    wanted = wanted.astype(int)
    result = -1
    for iteration in range(1, iterations_max + 1):
        violated = 0
        for r in range(code.rows):
            edges = range(code.row_start[r], code.row_start[r + 1])
            want = wanted[r * z : (r + 1) * z]
            place = [code.column[e] * z + (np.arange(z) + code.shift[e]) % z for e in edges]
            before = np.array([posterior[p] for p in place])
            q = np.clip(before - messages[list(edges)], -128, 127)
            magnitude = np.minimum(np.abs(q), 40)
            violated += int(np.sum((np.sum(before < 0, axis=0) + want) % 2))
            least, others = np.full(z, 40), np.full(z, 40)
            for a in magnitude:
                larger = np.maximum(least, a)
                least = np.minimum(least, a)
                others = box_plus(others, larger)
            everyone = box_plus(others, least)
            odd = (np.sum(q < 0, axis=0) + want) % 2
            for e, p, value, a in zip(edges, place, q, magnitude, strict=True):
                out = np.where(a == least, others, everyone)
                out = np.where((odd + (value < 0)) % 2 == 1, -out, out)
                messages[e] = out
                posterior[p] = np.clip(value + out, -128, 127)
        if violated <= code.m // 40 and np.array_equal(syndrome(code, (posterior < 0).astype(np.uint8)), wanted):
            result = iteration
            break
    return (posterior < 0).astype(np.uint8), result


def toeplitz(x, seed, output_bits):
    """Direct sum over GF(2) of unpacked bits."""
    n = len(x)
    return np.array([np.bitwise_and(seed[i : i + n][::-1], x).sum() & 1 for i in range(output_bits)], np.uint8)


def field_multiply(a: int, b: int) -> int:
    product = 0
    for i in range(128):
        if (b >> i) & 1:
            product ^= a << i
    for i in range(254, 127, -1):
        if (product >> i) & 1:
            product ^= (1 << i) | (0x87 << (i - 128))
    return product


def poly_hash(key: bytes, data: bytes, state: bytes = bytes(16)) -> bytes:
    k, h = int.from_bytes(key, "little"), int.from_bytes(state, "little")
    for i in range(0, len(data), 16):
        h = field_multiply(h ^ int.from_bytes(data[i : i + 16].ljust(16, b"\0"), "little"), k)
    return h.to_bytes(16, "little")
