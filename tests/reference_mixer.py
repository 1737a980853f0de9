"""The mixer in plain Python, in the order of docs/mixer.md: slow, readable, and the judge.

`encode` and `decode` make and read the payloads of a frame. test_mixer.py holds the native mixer
against it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from lmzip.reference_coder import RangeDecoder, RangeEncoder

U32 = 0xFFFFFFFF
STRETCH_MAX = 2815
WEIGHT_MAX = 524287

PROFILES = {
    "text": [0, 1, 2, 3, 5, 7, 8, 15, 13, 22],
    "binary": [0, 1, 2, 3, 5, 16, 17, 19, 18, 20, 21, 22],
    "strong": [*range(12), 14, 15, 12, 13, 16, 17, 19, 20, 21, 22],
}
EXPECTED = 22


def clamp(x: int, low: int, high: int) -> int:
    return max(low, min(x, high))


def halve(x: int) -> int:
    """x / 2, rounded towards zero."""
    return x // 2 if x >= 0 else -(-x // 2)


# Section 3: logistic tables.


def _squash_table() -> list[int]:
    e, upper = 1 << 31, []
    for _ in range(STRETCH_MAX + 1):
        upper.append((1 << 47) // ((1 << 31) + e))
        e = (e * 2139111403 + (1 << 30)) >> 31
    return [65536 - p for p in upper[:0:-1]] + upper


_SQUASH = _squash_table()


def squash(x: int) -> int:
    return _SQUASH[x + STRETCH_MAX]


def _greatest(limit: int) -> int:
    """The greatest x with squash(x) <= limit, or -2815."""
    low, high = -STRETCH_MAX, STRETCH_MAX
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if squash(middle) <= limit else (low, middle - 1)
    return low


_STRETCH12 = [_greatest(16 * i + 8) for i in range(4096)]
_TAIL = [_greatest(p) for p in range(2048)]


def stretch16(p: int) -> int:
    if p < 2048:
        return _TAIL[p]
    return -_TAIL[65536 - p] if p > 63488 else _STRETCH12[p >> 4]


def limit_stretch(x: int) -> int:
    return clamp(x, -STRETCH_MAX, STRETCH_MAX)


# Section 4: bit histories.

State = tuple[int, int, int]  # zeros, ones, order
COUNTS = [*range(9), 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 255]
BESIDE = [255, 48, 24, 16, 12, 8, 8, 7]
AFTER_OPPOSITE = [0, 1, 2, 3, 3, 4, 4, 5, 5, 5, 6]


def successor(state: State, bit: int, variant: int) -> State:
    counts = [state[0], state[1]]
    same, other = counts[bit], counts[1 - bit]
    if same < 255:
        above = COUNTS[COUNTS.index(same) + 1]
        if variant % min(above - same, 8) == 0:
            same = above
    other = AFTER_OPPOSITE[other] if other <= 10 else 6 if other < 24 else 7
    counts[bit], counts[1 - bit] = same, other
    large = 0 if counts[0] > counts[1] else 1
    small = min(counts)
    bounded = min(counts[large], BESIDE[min(small, 7)])
    if small > 7:
        counts = [7, 7]
        bounded = 7
    counts[large] = max(c for c in COUNTS if c <= bounded)
    total = state[0] + state[1]
    exact = total < 4 and sum(counts) == total + 1
    order = state[2] * 2 + bit if exact else 0 if min(counts) == 0 else bit
    return counts[0], counts[1], order


def _machine() -> tuple[list[State], list[list[list[int]]]]:
    start = (0, 0, 1)
    found, open_states = {start}, [start]
    while open_states:
        state = open_states.pop()
        for following in {successor(state, b, v) for b in range(2) for v in range(8)} - found:
            found.add(following)
            open_states.append(following)
    states = sorted(found, key=lambda s: (s[0] + s[1], *s))
    number = {state: i for i, state in enumerate(states)}
    table = [[[number[successor(s, b, v)] for b in range(2)] for s in states] for v in range(8)]
    return states, table


STATES, NEXT = _machine()  # NEXT[variant][history][bit]


class Cell:
    """22 bits of probability and a count."""

    def __init__(self, p16: int, count: int) -> None:
        self.p, self.count = p16 << 6, count

    def p12(self) -> int:
        return self.p >> 10

    def learn(self, bit: int, limit: int) -> None:
        self.p += (((bit << 22) - self.p) * (131072 // (2 * self.count + 3))) >> 16
        self.count += self.count < limit


def history_map() -> list[Cell]:
    return [Cell(65536 * (5 * o + 2) // (5 * (z + o) + 4), 10) for z, o, _ in STATES]


# Section 5: hash table.


def hash_of(a: int, b: int, *more: int) -> int:
    h = (a * 0x9E3779B1 ^ b * 0x85EBCA77) & U32
    h = ((h ^ h >> 15) * 0xC2B2AE3D) & U32
    h ^= h >> 16
    return hash_of(h, *more) if more else h


class HistoryTable:
    def __init__(self, log2_memory: int) -> None:
        self.shift = 32 - (log2_memory - 6)
        self.lines: dict[int, list[list[int]]] = {}

    def find(self, context: int, q: int) -> list[int]:
        h = ((context + q * 0x85EBCA77) * 0x9E3779B1) & U32
        h ^= h >> 15
        line = self.lines.setdefault(h >> self.shift, [[0] * 16 for _ in range(4)])
        for bucket in line:
            if bucket[0] == h & 255:
                return bucket
        taken = min(line, key=lambda bucket: bucket[1])
        taken[:] = [h & 255] + [0] * 15
        return taken


# Section 6: the past.


class Past:
    """What the lanes share."""

    def __init__(self, n: int, stride: int, lanes: int) -> None:
        self.bytes = bytearray(n)
        self.after1 = [0] * 256
        self.after2 = [0] * 65536
        self.votes = [0] * 1024
        self.period = self.counted = 0
        self.match_bits = clamp(n.bit_length(), 10, 22)
        self.places: dict[int, int] = {}
        self.lanes = [
            Lane(min(i * stride, n), min((i + 1) * stride, n), self) for i in range(lanes)
        ]
        self.stride = stride


class Lane:
    def __init__(self, begin: int, end: int, past: Past) -> None:
        self.begin = self.pos = self.line = self.above_line = begin
        self.end, self.past = end, past
        self.word = self.field = self.key = 0
        self.words = [0, 0, 0]
        self.last, self.distance = [0] * 256, [0] * 256
        self.at = self.length = self.misses = 0
        self.expected: int | None = None

    def back(self, k: int) -> int:
        return self.past.bytes[self.pos - k] if self.pos - k >= self.begin else 0

    def number(self, k: int) -> int:
        """The last k bytes as a number, the newest lowest."""
        return sum(self.back(i + 1) << (8 * i) for i in range(k))

    def append(self, b: int) -> None:
        past = self.past
        past.after1[self.back(1)] = (past.after1[self.back(1)] << 8 | b) & 0xFFFF
        pair = self.number(2)
        past.after2[pair] = (past.after2[pair] << 8 | b) & 0xFFFF
        self._vote(b)
        past.bytes[self.pos] = b
        self.pos += 1
        self._follow_text(b)

    def _vote(self, b: int) -> None:
        past = self.past
        d = self.pos + 1 - self.last[b]
        if self.last[b] and d == self.distance[b] and 1 < d <= 1023:
            past.votes[d] += 1
        self.distance[b], self.last[b] = d, self.pos + 1
        past.counted += 1
        if past.counted % 2048 == 0:
            best = max(range(1024), key=lambda d: past.votes[d])
            past.period = best if past.votes[best] > 128 else 0
            past.votes = [v // 2 for v in past.votes]

    def _follow_text(self, b: int) -> None:
        if (chr(b).isascii() and chr(b).isalpha()) or b >= 128:
            lower = b + 32 if b < 91 else b
            self.word = ((self.word + lower + 1) * 0x9E3779B1) & U32
            self.word ^= self.word >> 13
        elif self.word:
            self.words = [self.word, *self.words[:2]]
            self.word = 0
        if b == 10:
            self.above_line, self.line, self.field = self.line, self.pos, 0
        elif b in b",;\t|":
            self.field += 1
        if b in b":=>":
            self.key = self.words[0]

    def above(self) -> int:
        at = self.above_line + self.pos - self.line
        return self.past.bytes[at] if at < self.line else 0

    def record(self) -> int:
        period = self.past.period
        return self.back(period) if period else 0

    def match(self) -> None:
        """Section 6.4, after a byte."""
        past, b = self.past, self.back(1)
        if self.expected is None:
            self.at = self.length = self.misses = 0
        else:
            self.at += 1
            if self.expected == b:
                self.length = min(self.length + 1, 400)
                self.misses = 0 if self.length >= 16 else self.misses
            else:
                self.length, self.misses = 0, self.misses + 1
                if self.misses > 8:
                    self.at = self.length = self.misses = 0
        if self.pos - self.begin >= 7:
            self._find()
        self.expected = None
        if (self.length or self.misses) and self.at < len(past.bytes):
            owner = past.lanes[self.at // past.stride]
            if self.at < owner.pos:
                self.expected = past.bytes[self.at]

    def _find(self) -> None:
        past, x = self.past, self.number(7)
        index = hash_of(x & U32, x >> 32) >> (32 - past.match_bits)
        place = past.places.get(index, 0)
        if self.length < 16 and place:
            agreed = 0
            while (
                agreed < min(40, place, self.pos - self.begin)
                and past.bytes[place - 1 - agreed] == past.bytes[self.pos - 1 - agreed]
            ):
                agreed += 1
            if agreed >= 7 and agreed > self.length:
                self.at, self.length, self.misses = place, agreed, 0
        past.places[index] = self.pos

    def trust(self) -> int:
        steps = [*range(1, 9), 12, 16, 20, 24, 32, 48, 400]
        return 4 * sum(self.length >= s for s in steps) + min(self.misses, 3)


# Section 7: contexts.


def context(number: int, lane: Lane) -> int:
    s = (number * 0x3D4D51CB + 1) & U32
    c1, c2, c3, c4 = (lane.back(k) for k in range(1, 5))
    past = lane.past
    word1, word2 = lane.words[:2]
    prefix = (lane.word + c1) & U32
    if number <= 6:
        x = lane.number([1, 2, 3, 4, 5, 6, 8][number])
        return hash_of(x & U32, x >> 32, s)
    if number == EXPECTED:
        if lane.expected is None:
            return hash_of(0, c1, s)
        return hash_of(lane.expected + 1, lane.trust() // 8, s)
    column = lane.pos % past.period + 256 if past.period else c2
    return {
        7: lambda: hash_of(lane.word, c1, s),
        8: lambda: hash_of(prefix, word1, s),
        9: lambda: hash_of(prefix, word2, s),
        10: lambda: hash_of(word1, c1 + 256 * c2, s),
        11: lambda: hash_of(lane.key, prefix, s),
        12: lambda: hash_of(lane.above(), c1, s),
        13: lambda: hash_of(lane.field << 16 & U32 | lane.above(), c1, s),
        14: lambda: hash_of(past.after1[c1], c1, s),
        15: lambda: hash_of(past.after2[c2 * 256 + c1], c1, s),
        16: lambda: hash_of(c2, 0, s),
        17: lambda: hash_of(c3, 0, s),
        18: lambda: hash_of(c4, 0, s),
        19: lambda: hash_of(c2 + 256 * c3, 0, s),
        20: lambda: hash_of(lane.record(), c1, s),
        21: lambda: hash_of(column, lane.record(), s),
    }[number]()


# Section 8: prediction.


def byte_class(c: int) -> int:
    for kind, members in [
        (3, b" "), (4, b"\n"), (8, b",."), (9, b"\"'"), (10, b"<({["), (11, b">)}]"), (12, b"-_"),
        (13, b"/:"), (14, b"=+"),
    ]:  # fmt: skip
        if c in members:
            return kind
    if c < 32:
        return 7
    if c >= 128:
        return 5 if c < 192 else 6
    return 0 if chr(c).islower() else 1 if chr(c).isupper() else 2 if chr(c).isdigit() else 15


class Refinement:
    def __init__(self) -> None:
        self.knots: dict[int, list[int]] = {}

    def refine(self, z: int, at: int) -> int:
        start = [squash(limit_stretch(176 * j - 2816)) for j in range(33)]
        self.row = self.knots.setdefault(at, start)
        self.low, self.f = divmod(z + 2816, 176)
        return (self.row[self.low] * (176 - self.f) + self.row[self.low + 1] * self.f) // 176

    def learn(self, bit: int) -> None:
        nearer = self.low + (2 * self.f >= 176)
        for j in (self.low, self.low + 1):
            self.row[j] += (65535 * bit - self.row[j]) >> (6 if j == nearer else 7)


class Weights:
    def __init__(self, initial: list[int]) -> None:
        self.initial = initial
        self.vectors: dict[int, list[int]] = {}

    def select(self, i: int) -> list[int]:
        return self.vectors.setdefault(i, list(self.initial))


def dot(x: Sequence[int], w: Sequence[int]) -> int:
    return limit_stretch(sum((a * b) >> 8 for a, b in zip(x, w, strict=True)) >> 8)


def train(x: Sequence[int], w: list[int], step: int) -> None:
    for j, a in enumerate(x):
        w[j] = clamp(w[j] + ((a * step + 32768) >> 16), -WEIGHT_MAX, WEIGHT_MAX)


class Mixer:
    def __init__(self, profile: str, log2_memory: int, n: int, lanes: int, network: bool) -> None:
        self.contexts = PROFILES[profile]
        self.stride = max(1, -(-n // lanes))
        self.past = Past(n, self.stride, lanes)
        self.table = HistoryTable(log2_memory)
        self.order0 = [[0] * 16 for _ in range(17)]
        slots = len(self.contexts) + 1
        self.maps = [history_map() for _ in range(slots)]
        self.match_map = [Cell(61440 * (i // 4 + 1) // (i // 4 + 2), 4) for i in range(64)]
        used = 2 * slots + 2 + (4 if network else 0) + 1
        inputs = -(-used // 8) * 8
        weight = 3000 if network else 3500 if profile == "strong" else 6000
        initial = [weight] * inputs
        if network:
            initial[2 * slots + 2] = 40000
        self.padding = inputs - used
        self.sets = [Weights(initial) for _ in range(5 if network else 4)]
        self.final = Weights([65536 // len(self.sets)] * len(self.sets))
        self.a, self.b, self.n1, self.n2 = (Refinement() for _ in range(4))
        self.variant = self.coded = 0
        self.hashes = [self.all_contexts(lane) for lane in self.past.lanes]

    def all_contexts(self, lane: Lane) -> list[int]:
        return [context(number, lane) for number in self.contexts]

    def code(self, index: int, weights: Any, code_bit: Callable[[int, int], int]) -> int:
        """One byte of a lane; code_bit(i, p1) codes bit i and returns it."""
        lane = self.past.lanes[index]
        self.variant = (self.variant + 5) % 8
        hashes = self.hashes[index]
        hashes[-1] = context(EXPECTED, lane)
        self.rate = 14 + 24 * 16384 // (16384 + self.coded)
        partial, node = 1, 1
        for i in range(8):
            if i in (0, 4):
                q = 0 if i == 0 else partial
                buckets = [self.table.find(h, q) for h in hashes]
                buckets.append(self.order0[0 if i == 0 else partial - 15])
                node = 1
            bit = code_bit(i, self.predict(lane, weights, buckets, partial, node, i))
            self.learn(buckets, node, bit)
            partial, node = 2 * partial + bit, 2 * node + bit
        lane.append(partial - 256)
        self.hashes[index] = self.all_contexts(lane)
        lane.match()
        self.coded += 1
        return partial - 256

    def predict(
        self, lane: Lane, weights: Any, buckets: list[list[int]], partial: int, node: int, i: int
    ) -> int:
        c1, c2 = lane.back(1), lane.back(2)
        self.histories = [bucket[node] for bucket in buckets]
        x = []
        for cells, history in zip(self.maps, self.histories, strict=True):
            p = cells[history].p12()
            x += [_STRETCH12[p], halve(p - 2048)] if history else [0, 0]
        x += self.predict_match(lane, partial, i)
        if len(self.sets) == 5:
            x += self.predict_network(weights, partial, c1, i)
        self.x = x + [256] + [0] * self.padding
        trust = 0 if self.expected_bit is None else lane.trust()
        chosen = [8 * trust + i, partial, c1, 8 * (16 * byte_class(c1) + byte_class(c2)) + i]
        if len(self.sets) == 5:
            chosen.append(8 * (abs(self.z) // 88) + i)
        self.w = [s.select(at) for s, at in zip(self.sets, chosen, strict=True)]
        self.v = self.final.select(partial)
        self.dots = [dot(self.x, w) for w in self.w]
        self.mixed = dot(self.dots, self.v)
        a = self.a.refine(self.mixed, partial + 256 * c1)
        order2 = hash_of(c1 + 256 * c2, 0) >> 16
        b = self.b.refine(self.mixed, (order2 ^ partial * 0x9E35) % 16384)
        return clamp((a + b + 1) >> 1, 1, 65535)

    def predict_match(self, lane: Lane, partial: int, i: int) -> list[int]:
        self.expected_bit = None
        if lane.expected is None or (lane.expected | 256) >> (8 - i) != partial:
            return [0, 0]
        self.expected_bit = lane.expected >> (7 - i) & 1
        self.match_cell = self.match_map[lane.trust()]
        p = self.match_cell.p12()
        sign = 1 if self.expected_bit else -1
        return [sign * _STRETCH12[p], sign * halve(p - 2048)]

    def predict_network(self, weights: Any, partial: int, c1: int, i: int) -> list[int]:
        first = partial << (8 - i) & 255
        half = 128 >> i
        upper = sum(map(int, weights[first + half : first + 2 * half]))
        total = upper + sum(map(int, weights[first : first + half]))
        p = clamp(65536 * upper // total, 1, 65535) if total else 32768
        self.z = stretch16(p)
        linear = (abs(p - 32768) // 32) * (1 if p > 32768 else -1)
        a = self.n1.refine(self.z, partial)
        b = self.n2.refine(self.z, partial + 256 * c1)
        return [self.z, linear, stretch16(a), stretch16(b)]

    # Section 9.

    def learn(self, buckets: list[list[int]], node: int, bit: int) -> None:
        for cells, bucket, history in zip(self.maps, buckets, self.histories, strict=True):
            cells[history].learn(bit, 255)
            bucket[node] = NEXT[self.variant][history][bit]
        if self.expected_bit is not None:
            self.match_cell.learn(int(bit == self.expected_bit), 1023)
        if len(self.sets) == 5:
            self.n1.learn(bit)
            self.n2.learn(bit)
        for w, output in zip(self.w, self.dots, strict=True):
            train(self.x, w, ((65536 * bit - squash(output)) * self.rate) >> 4)
        train(self.dots, self.v, ((65536 * bit - squash(self.mixed)) * 6) >> 4)
        self.a.learn(bit)
        self.b.learn(bit)


def _lockstep(n: int, lanes: int) -> list[tuple[int, int]]:
    """(lane, position) in the order of coding."""
    stride = max(1, -(-n // lanes))
    places = ((lane, lane * stride + t) for t in range(stride) for lane in range(lanes))
    return [(lane, at) for lane, at in places if at < n]


def encode(
    raw: bytes, lanes: int, profile: str, log2_memory: int, weights: Any = None
) -> list[bytes]:
    mixer = Mixer(profile, log2_memory, len(raw), lanes, weights is not None)
    encoders = [RangeEncoder() for _ in range(lanes)]
    for lane, at in _lockstep(len(raw), lanes):

        def code_bit(i: int, p1: int, lane: int = lane, byte: int = raw[at]) -> int:
            bit = byte >> (7 - i) & 1
            encoders[lane].encode(0 if bit else p1, p1 if bit else 65536 - p1, 16)
            return bit

        mixer.code(lane, None if weights is None else weights[at], code_bit)
    return [encoder.finish() for encoder in encoders]


def decode(
    payloads: Sequence[bytes], n: int, profile: str, log2_memory: int, weights: Any = None
) -> bytes:
    mixer = Mixer(profile, log2_memory, n, len(payloads), weights is not None)
    decoders = [RangeDecoder(payload) for payload in payloads]
    raw = bytearray(n)
    for lane, at in _lockstep(n, len(payloads)):

        def code_bit(_: int, p1: int, lane: int = lane) -> int:
            bit = int(decoders[lane].peek(16) < p1)
            decoders[lane].consume(0 if bit else p1, p1 if bit else 65536 - p1, 16)
            return bit

        raw[at] = mixer.code(lane, None if weights is None else weights[at], code_bit)
    return bytes(raw)
