"""The kernels again, in NumPy and plain Python: slow, plain, and equal bit for bit."""

import math

import numpy as np

MASK = (1 << 64) - 1


class Dice8:
    """Eight xoshiro256++ side by side."""

    def __init__(self, state):
        self.s = list(np.array(state, np.uint64).reshape(4, 8))

    def next(self):
        s0, s1, s2, s3 = self.s
        total = s0 + s3
        result = (total << np.uint64(23) | total >> np.uint64(41)) + s0
        t = s1 << np.uint64(17)
        s2, s3 = s2 ^ s0, s3 ^ s1
        s1, s0 = s1 ^ s2, s0 ^ s3
        s2 = s2 ^ t
        self.s = [s0, s1, s2, s3 << np.uint64(45) | s3 >> np.uint64(19)]
        return result

    def unit(self):
        return float(self.next()[0] >> np.uint64(11)) * 2.0**-53

    @property
    def state(self):
        return np.concatenate(self.s).tolist()


def negative_log(u):
    bits = u.view(np.uint64)
    m = (bits & np.uint64(0x000FFFFFFFFFFFFF) | np.uint64(0x3FF0000000000000)).view(np.float64)
    e = (bits >> np.uint64(52)).astype(float) - 1023.0
    m, e = np.where(m >= 1.5, m * 0.5, m), np.where(m >= 1.5, e + 1, e)
    f = (m - 1) / (m + 1)
    f2 = f * f
    series = f2 * (-2.0 / 13) - 2.0 / 11
    for odd in (9, 7, 5, 3, 1):
        series = series * f2 - 2.0 / odd
    return series * f - e * math.log(2)


def candidates(dice, probability, at, end, capacity):
    """Up to `capacity` positions below `end`, and where to go on."""
    positions, base, scale = [], at - 1, -1.0 / math.log1p(-probability)
    while len(positions) < capacity:
        u = ((dice.next() >> np.uint64(11)) + np.uint64(1)).astype(float) * 2.0**-53
        misses = np.minimum(negative_log(u) * scale, 2.0**52).astype(np.int64)
        for gap in misses.tolist():
            base += gap + 1
            positions.append(base)
        if base >= end:
            return [position for position in positions if position < end], end
    return positions, base + 1


BATCH = 1024


class Receiver:
    def __init__(self, link, dice, memory):
        self.link, self.dice = link, dice
        self.last, self.until = int(memory[0]), int(memory[1])
        self.waiting = [int(charge) for charge in memory[3 : 3 + memory[2]]]
        self.clicks = []
        if self.until < 0:
            self.until = self.draw()

    def draw(self):
        mean = self.link["afterpulses"].mean
        return math.floor(-math.log(1.0 - self.dice.unit()) / mean) if mean > 0 else (1 << 63) - 1

    def leave(self, gate, detector):
        law = self.link["afterpulses"]
        left, term, count = self.dice.unit() * (1 - math.exp(-law.mean)), law.mean * math.exp(-law.mean), 1
        while True:
            lag = math.floor((law.first - self.dice.unit() * (law.first - law.last)) ** law.inverse)
            self.waiting.append((gate + lag) * 2 + detector)
            self.waiting.sort(reverse=True)
            left -= term
            if left < 0:
                break
            count += 1
            term *= law.mean / count
        self.until = self.draw()

    def gate(self, position, which, coin, row, is_afterpulse):
        if position - self.last <= self.link["dead_pulses"]:
            return
        bit = coin if which == 3 else which >> 1
        self.clicks.append((position, bit | (which == 3) << 1 | is_afterpulse << 2 | row << 3))
        self.last = position
        for detector in (1, 0) if which == 3 else (which >> 1,):
            self.until -= 1
            if self.until < 0:
                self.leave(position, detector)

    def release(self, end, light, which, row_at):
        while self.waiting and self.waiting[-1] >> 1 < end:
            at, here = self.waiting[-1] >> 1, 0
            while self.waiting and self.waiting[-1] >> 1 == at:
                here |= 1 << (self.waiting.pop() & 1)
            if at == light:
                return which | here
            self.gate(at, here, int(self.dice.next()[0] & np.uint64(1)) if here == 3 else 0, row_at(at), True)
        return which


def sample_link(state, memory, start, count, words, **link):
    """`words(seed, positions)` is the settings' stream; all else as kernels.sample_link."""
    dice = Dice8(state)
    receiver = Receiver(link, dice, memory)

    def row_of(a, b):
        level = int(np.sum(link["intensity_thresholds"] <= (a & 0xFFFFFFFF)))
        basis, bit = (a >> 32 & 0xFFFF) >= link["alice_basis_threshold"], a >> 48 & 1
        return level * 8 + basis * 4 + bit * 2 + ((b & 0xFFFF) >= link["bob_basis_threshold"])

    def rows(positions):
        at = np.array(positions, np.uint64)
        streams = (words(link[seed], at).tolist() for seed in ("alice_seed", "bob_seed"))
        return [row_of(a, b) for a, b in zip(*streams, strict=True)]

    at, end, limits = start, start + count, link["limits"].reshape(-1, 3)
    while at < end:
        positions, at = candidates(dice, link["candidate_probability"], at, end, BATCH)
        dies = [die for _ in range(0, len(positions), 8) for die in dice.next().tolist()]
        for position, die, row in zip(positions, dies, rows(positions), strict=False):
            draw = die >> 11
            if draw >= limits[row][2]:
                continue
            which = 1 + int(draw >= limits[row][0]) + int(draw >= limits[row][1])
            which = receiver.release(position + 1, position, which, lambda gate: rows([gate])[0])
            receiver.gate(position, which, die & 1, row, False)
        receiver.release(at, -1, 0, lambda gate: rows([gate])[0])
    return receiver, dice.state


def sample_plain(state, start, count, probability, basis_threshold, level_limits, error_limits):
    dice, at, end, found = Dice8(state), start, start + count, []
    while at < end:
        positions, at = candidates(dice, probability, at, end, BATCH)
        for i in range(0, len(positions), 16):
            levels, bases, errors = (dice.next().view(np.uint32) for _ in range(3))
            for j, position in enumerate(positions[i : i + 16]):
                a, b = int((bases[j] & 0xFFFF) >= basis_threshold), int((bases[j] >> 16) >= basis_threshold)
                level = int(np.sum(level_limits <= levels[j]))
                is_wrong = int((int(errors[j]) >> 1) < error_limits[3 if a != b else level])
                found.append((position, level | a << 2 | (int(errors[j]) & 1) << 3 | b << 4 | is_wrong << 5))
    return found, dice.state


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
    return np.maximum(low - correction(high - low), 0)


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
            q = np.clip(np.array([posterior[p] for p in place]) - messages[list(edges)], -128, 127)
            least, others = np.full(z, 40), np.full(z, 40)
            for a in np.abs(q):
                larger = np.maximum(least, a)
                least = np.minimum(least, a)
                others = box_plus(others, larger)
            everyone = box_plus(others, least)
            odd = (np.sum(q < 0, axis=0) + want) % 2
            violated += int(odd.sum())
            for e, p, value in zip(edges, place, q, strict=True):
                out = np.where(np.abs(value) <= least, others, everyone)
                out = np.where((odd + (value < 0)) % 2 == 1, -out, out)
                messages[e] = out
                posterior[p] = np.clip(value + out, -128, 127)
        if violated <= code.m // 100 and np.array_equal(syndrome(code, (posterior < 0).astype(np.uint8)), wanted):
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


def encode_gaps(positions, limit):
    """Positions as octets, one by one: see kernels.encode_gaps."""
    count = len(positions)
    width = 1 if 64 * count > limit else 2 if 16384 * count > limit else 4
    largest = 256**width - 1
    out, expected = bytearray(), 0
    for position in positions.tolist():
        whole, rest = divmod(position - expected, largest)
        out += (b"\xff" * width) * whole + rest.to_bytes(width, "little")
        expected = position + 1
    return bytes(out)
