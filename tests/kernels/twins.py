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


class CascadeBatch:
    """kernels.CascadeBatch with leaves in dictionaries and parities added up bit by bit."""

    def __init__(self, bits, *, frames, length, blocks, extras, cover, mixers, check_key):
        self.count, self.frames, self.length, self.cover, self.check_key = len(bits), frames, length, cover, check_key
        self.blocks = [min(int(block), length) for block in blocks] + extras * [(length + 1) // 2]
        self.passes = len(blocks)  # of each frame; all frames take those that follow
        self.orders = [self.order(mixers[8 * p : 8 * p + 8] if p else None) for p in range(len(self.blocks))]
        self.places = [{bit: place for place, bit in enumerate(order)} for order in self.orders]
        self.key = self.by_frame(bits)
        self.marked = np.zeros_like(self.key)
        self.leaves = [{} for _ in range(frames)]  # of a frame: (pass, first) -> [end, whether odd, whether it waits]
        self.waiting = [[[] for _ in range(18)] for _ in range(frames)]
        self.begun = frames * [0]
        self.extra, self.sums, self.totals = 0, frames * [0], frames * [0]
        self.asked_check, self.check, self.is_checked, self.found = False, 0, False, []
        self.ask()

    def by_frame(self, bits):
        filled = np.zeros(self.frames * self.length, np.uint8)
        filled[: len(bits)] = bits
        return filled.reshape(self.length, self.frames).T.copy()

    def order(self, mixer):
        x = np.arange(65536)
        for multiplier, addend in [] if mixer is None else mixer.reshape(4, 2).astype(int).tolist():
            x = (x * (multiplier | 1) + addend) & 0xFFFF
            x ^= x >> 7
        return x[x < self.length].tolist()

    def parity(self, of, frame, p, first, end):
        return int(of[frame, self.orders[p][first:end]].sum()) & 1

    def hash(self, of):
        words = np.zeros((self.length, 64), np.uint8)
        words[:, : self.frames] = of.T
        octets = np.packbits(words, bitorder="little").tobytes()
        return int.from_bytes(poly_hash(self.check_key, octets)[:4], "little")

    @property
    def questions(self):
        return len(self.open)

    @property
    def errors_found(self):
        return int(self.marked.sum())

    def errors(self):
        return self.marked.T.reshape(-1)[: self.count]

    def parities(self):
        own = [
            self.hash(self.key) >> first & 1 if frame is None else self.parity(self.key, frame, p, first, middle)
            for frame, p, first, middle, _ in self.open
        ]
        return np.packbits(np.array(own, np.uint8))

    def learn(self, mismatches):
        self.found = []
        for (frame, p, first, middle, end), bit in zip(self.open, np.unpackbits(mismatches).tolist(), strict=False):
            if frame is None:
                self.check |= bit << first
            elif middle == end:
                self.sums[frame] ^= bit
                self.odd(frame, p, first, end, bit)
                if p == 0:
                    self.totals[frame] = self.sums[frame]
                elif end + self.blocks[p] >= self.length:
                    self.odd(frame, p, end, self.length, self.totals[frame] ^ self.sums[frame])
            else:
                self.leaves[frame][p, first] = [middle, 0, False]
                self.leaves[frame][p, middle] = [end, 0, False]
                if not self.odd(frame, p, first, middle, bit):
                    self.odd(frame, p, middle, end, 1 ^ self.parity(self.marked, frame, p, middle, end))
        for frame, p, first in self.found:
            if self.leaves[frame][p, first][1] and not self.mark(frame, self.orders[p][first]):
                return False
        self.ask()
        return True

    def odd(self, frame, p, first, end, mismatch):
        if not mismatch ^ self.parity(self.marked, frame, p, first, end):
            return False
        self.leaves[frame][p, first][1] = 1
        if end - first == 1:
            self.found.append((frame, p, first))
        else:
            self.wait(frame, p, first, end)
        return True

    def wait(self, frame, p, first, end):
        self.leaves[frame][p, first][2] = True
        self.waiting[frame][(end - first).bit_length()].append((p, first))

    def mark(self, frame, bit):
        if bit * self.frames + frame >= self.count or self.marked[frame, bit]:
            return False
        self.marked[frame, bit] = 1
        is_sound = True
        for p in [*range(self.begun[frame]), *range(self.passes, self.passes + self.extra)]:
            place = self.places[p][bit]
            first = place
            while (p, first) not in self.leaves[frame]:
                first -= 1
            leaf = self.leaves[frame][p, first]
            leaf[1] ^= 1
            if leaf[1] and not leaf[2]:
                if leaf[0] - first > 1:
                    self.wait(frame, p, first, leaf[0])
                else:
                    is_sound = False
        return is_sound

    def ask(self):
        self.open = []
        for frame in range(self.frames):
            self.search(frame)
        if not self.open and not self.asked_check:
            self.asked_check = True
            self.open = [(None, 0, i, i, i) for i in range(32)]
        elif not self.open:
            self.is_checked = self.hash(self.marked) == self.check
            if not self.is_checked and self.passes + self.extra < len(self.blocks):
                self.extra += 1
                for frame in range(self.frames):
                    self.begin(frame, self.passes + self.extra - 1)

    def search(self, frame):
        before, room = len(self.open), self.cover
        for leaves in self.waiting[frame]:
            while leaves:
                p, first = leaves[-1]
                end, is_odd, _ = leaf = self.leaves[frame][p, first]
                if is_odd:
                    if end - first > room and len(self.open) > before:
                        return
                    room -= min(room, end - first)
                    self.open.append((frame, p, first, first + (end - first) // 2, end))
                leaf[2] = False
                leaves.pop()
        while len(self.open) == before and self.begun[frame] < self.passes:
            self.begun[frame] += 1
            self.begin(frame, self.begun[frame] - 1)

    def begin(self, frame, p):
        self.sums[frame] = 0
        for first in range(0, self.length, self.blocks[p]):
            end = min(self.length, first + self.blocks[p])
            self.leaves[frame][p, first] = [end, 0, False]
            if end < self.length or p == 0:
                self.open.append((frame, p, first, end, end))
