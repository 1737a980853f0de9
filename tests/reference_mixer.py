"""The mixer in plain Python, in the order of docs/mixer.md: slow, readable, and the judge.

`encode` and `decode` make and read the payloads of a frame. test_mixer.py holds the native mixer
against it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from lmzip.reference_coder import RangeDecoder, RangeEncoder
from reference_x86 import Decoder

U32 = 0xFFFFFFFF
STRETCH_MAX = 3071
ONE = 1 << 22  # probabilities have 22 bits
FINAL_WEIGHT_MAX = 524287

PROFILES = {
    "text": [0, 1, 2, 3, 4, 5, 6, 10, 19, 18, 17],
    "binary": [0, 1, 2, 3, 4, 11, 12, 14, 13, 15, 16, 17],
    "strong": [2, 4, 5, 6, 7, 8, 19, 18, 17],
    "sample": [1, 2, 17],
    "code": [0, 1, 2, 3, 12, 14, 13, 16, 20, 21, 22, 23, 24, 25, 26, 17],
}
EXPECTED = 17


def clamp(x: int, low: int, high: int) -> int:
    return max(low, min(x, high))


# Section 3: logistic tables.


def _squash_table() -> list[int]:
    e, upper = 1 << 31, []
    for _ in range(STRETCH_MAX + 1):
        upper.append((1 << 53) // ((1 << 31) + e))
        e = (e * 2139111403 + (1 << 30)) >> 31
    return [ONE - p for p in upper[:0:-1]] + upper


_SQUASH = _squash_table()


def squash(x: int) -> int:
    return _SQUASH[x + STRETCH_MAX]


def log2(n: int) -> int:
    """In 1/32768, for 0 < n < 2^24."""
    e = n.bit_length() - 1
    m = (n << (23 - e) >> 8) & 32767
    hump = (m * (32767 - m) + 16384) >> 15
    bend = 14180 - ((m * 5350 + 16384) >> 15)
    return (e << 15) + m + ((hump * bend + 16384) >> 15)


def stretch_ratio(a: int, b: int) -> int:
    return limit_stretch(((log2(a) - log2(b)) * 2839 + 262144) >> 19)


def stretch(p: int) -> int:
    return stretch_ratio(2 * p + 1, 2 * ONE - 2 * p - 1)


def linear(p: int) -> int:
    return (p - ONE // 2) >> 11


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

    def __init__(self, p: int, count: int) -> None:
        self.p, self.count = p, count

    def learn(self, bit: int, limit: int) -> None:
        self.p += (((bit << 22) - self.p) * (131072 // (2 * self.count + 3))) >> 16
        self.count += self.count < limit


def history_map() -> list[Cell]:
    return [Cell((65536 * (5 * o + 2) // (5 * (z + o) + 4)) << 6, 10) for z, o, _ in STATES]


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
        self.after2 = [0] * 65536
        self.votes = [0] * 1024
        self.period = self.counted = 0
        self.match_bits = clamp(n.bit_length(), 10, 22)
        self.layout = Layout()
        self.lanes = [
            Lane(min(i * stride, n), min((i + 1) * stride, n), self) for i in range(lanes)
        ]
        self.stride = stride


class Lane:
    def __init__(self, begin: int, end: int, past: Past) -> None:
        self.begin = self.pos = self.line = begin
        self.end, self.past = end, past
        self.word = self.key = 0
        self.words = [0, 0, 0]
        self.last, self.distance = [0] * 256, [0] * 256
        self.cells, self.cells_above = [begin], list[int]()
        self.shape = 0
        self.samples = Samples(self)
        self.x86 = Decoder()

    def back(self, k: int) -> int:
        return self.past.bytes[self.pos - k] if self.pos - k >= self.begin else 0

    def number(self, k: int) -> int:
        """The last k bytes as a number, the newest lowest."""
        return sum(self.back(i + 1) << (8 * i) for i in range(k))

    def append(self, b: int) -> None:
        past = self.past
        pair = self.number(2)
        past.after2[pair] = (past.after2[pair] << 8 | b) & 0xFFFF
        self._vote(b)
        past.bytes[self.pos] = b
        self.pos += 1
        self._follow_text(b)
        self.x86.follow(b)

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
            self.line = self.pos
        if b in b":=>":
            self.key = self.words[0]
        if b == 10:
            self.cells_above, self.cells = self.cells, [self.pos]
        elif b in b",;|\t " and len(self.cells) < 64:
            self.cells.append(self.pos)
        self.shape = (self.shape << 4 | shape_of(b)) & U32

    def cell_above(self) -> int:
        i = len(self.cells) - 1
        if i >= len(self.cells_above):
            return 0
        at = self.cells_above[i] + self.pos - self.cells[i]
        end = self.cells_above[i + 1] if i + 1 < len(self.cells_above) else self.line
        return self.past.bytes[at] if at < end else 1

    def record(self) -> int:
        period = self.past.period
        return self.back(period) if period else 0


def shape_of(b: int) -> int:
    if b >= 128 or b == 32 or b == 10 or b < 32:
        return 4 if b >= 128 else 5 if b == 32 else 6 if b == 10 else 7
    c = chr(b)
    return 1 if c.isdigit() else 2 if c.islower() else 3 if c.isupper() else 8 + b % 8


class Match:
    """Section 6.4: of one lane."""

    def __init__(self, least: int, lane: Lane, places: dict[int, int]) -> None:
        self.least, self.lane, self.places = least, lane, places
        self.at = self.length = self.misses = 0
        self.expected: int | None = None

    def follow(self) -> None:
        """Before a step: by the lane's last byte; the place of its last bytes is remembered."""
        lane = self.lane
        if self.expected is None:
            self.at = self.length = self.misses = 0
        else:
            self.at += 1
            if self.expected == lane.back(1):
                self.length = min(self.length + 1, 400)
                self.misses = 0 if self.length >= 16 else self.misses
            else:
                self.length, self.misses = 0, self.misses + 1
                if self.misses > 8:
                    self.at = self.length = self.misses = 0
        self.candidate = 0
        if lane.pos - lane.begin >= self.least:
            index = self._index()
            if self.length < 16:
                self.candidate = self.places.get(index, 0)
            self.places[index] = lane.pos

    def settle(self) -> None:
        """When all lanes have followed: a longer match, and what is expected."""
        past = self.lane.past
        if self.candidate:
            self._find(self.candidate)
        self.expected = None
        if (self.length or self.misses) and self.at < len(past.bytes):
            owner = past.lanes[self.at // past.stride]
            if self.at < owner.pos:
                self.expected = past.bytes[self.at]

    def _index(self) -> int:
        x = self.lane.number(min(self.least, 16))
        parts = [x >> (32 * i) & U32 for i in range(2 if self.least <= 8 else 4)]
        return hash_of(parts[0], parts[1], *parts[2:]) >> (32 - self.lane.past.match_bits)

    def _find(self, place: int) -> None:
        lane, past, agreed = self.lane, self.lane.past, 0
        while (
            agreed < min(40, place, lane.pos - lane.begin)
            and past.bytes[place - 1 - agreed] == past.bytes[lane.pos - 1 - agreed]
        ):
            agreed += 1
        if agreed >= self.least and agreed > self.length:
            self.at, self.length, self.misses = place, agreed, 0

    def trust(self) -> int:
        steps = [*range(1, 9), 12, 16, 20, 24, 32, 48, 400]
        return 4 * sum(self.length >= s for s in steps) + min(self.misses, 3)


# Section 6.5: samples.


class Layout:
    """How samples lie in the frame."""

    def __init__(self) -> None:
        self.scores: dict[int, int] = {}
        self.rough = [0, 0]
        self.counted, self.pixel, self.row, self.wide, self.high_at = 0, 1, 24, False, 0

    def count(self, lane: Lane) -> None:
        self.counted += 1
        if self.counted % 2048 == 0 and lane.pos - lane.begin >= 512:
            self._measure(lane)

    def _measure(self, lane: Lane) -> None:
        data, begin = lane.past.bytes, lane.pos - 256
        most = min(4096, lane.pos - lane.begin - 256)
        for d in range(1, most + 1):
            apart = sum(abs(data[begin + i] - data[begin + i - d]) for i in range(256))
            self.scores[d] = (self.scores.get(d, apart) + apart) // 2
        self.pixel = min(range(1, 5), key=lambda d: self.scores[d])
        self.row = min(range(24, most + 1), key=lambda d: self.scores[d])
        rough = [0, 0]
        for at in range(begin, lane.pos):
            change = (data[at] - data[at - self.pixel]) & 255
            rough[at % 2] += min(change, 256 - change)
        self.rough = [(old + new) // 2 for old, new in zip(self.rough, rough, strict=True)]
        self.high_at = int(self.rough[1] < self.rough[0])
        self.wide = (
            self.pixel % 2 == 0 and 3 * self.rough[self.high_at] < self.rough[1 - self.high_at]
        )


class Filter:
    def __init__(self) -> None:
        self.weights = [0] * 20

    def predict(self, taps: list[int]) -> int:
        return sum(w * t for w, t in zip(self.weights, taps, strict=True)) >> 16

    def learn(self, taps: list[int], error: int, rate: int) -> None:
        power = 1 + sum(t * t for t in taps)
        gain = (abs(error) << 32) // power * (1 if error > 0 else -1)
        self.weights = [
            clamp(w + ((gain * t) >> (16 + rate)), -(2**21) + 1, 2**21 - 1)
            for w, t in zip(self.weights, taps, strict=True)
        ]


class Samples:
    """What a lane expects of its next byte as part of a pixel or of a 16-bit sample."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.filters = [[Filter(), Filter()] for _ in range(4)]
        self.taps, self.guesses, self.samples = [0] * 20, [0, 0], [0] * 5
        self.errors = [0] * 4
        self.base = self.channel = self.guess = self.activity = 0
        self.last_error = 16
        self.wide = self.filtered = False
        self.contexts: list[int] = []

    def advance(self) -> None:
        layout, pos = self.lane.past.layout, self.lane.pos
        if self.filtered:
            self._learn()
        self.filtered = False
        self.wide = layout.wide
        if not self.wide:
            kind, pairs = self._pixel(layout)
        elif pos % 2 != layout.high_at:
            kind, pairs = self._low(layout)
        else:
            kind, pairs = self._high()
        self.contexts = [
            hash_of(a, b, (256 * i + kind) * 0x3D4D51CB + 2 & U32) for i, (a, b) in enumerate(pairs)
        ]

    def _learn(self) -> None:
        sample = signed(self.lane.back(1) << 8 | self.lane.back(2))
        actual = sample if self.wide else (self.lane.back(1) - self.base) * 16
        for f, rate in enumerate((5, 7)):
            filter_ = self.filters[self.channel][f]
            filter_.learn(self.taps, actual - self.guesses[f], rate)
        error = actual - self.guesses[0]
        mean = self.errors[self.channel]
        self.errors[self.channel] = mean + abs(error) // (1 if self.wide else 4) - mean // 4
        self.last_error = clamp(error >> (6 if self.wide else 5), -15, 15) + 16

    def _filter(self) -> None:
        self.guesses = [f.predict(self.taps) for f in self.filters[self.channel]]
        size = (self.errors[self.channel] // 4).bit_length() * 3 // 4
        self.activity = 8 * self.channel + min(size, 7)

    def _pixel(self, layout: Layout) -> tuple[int, list[tuple[int, int]]]:
        s, r, back = layout.pixel, layout.row, self.lane.back
        w, n, nw, ne, ww, nn = (back(d) for d in (s, r, r + s, r - s, 2 * s, 2 * r))
        p, p_w, p_n = back(1), back(1 + s), back(1 + r)
        more = [2 * r - s, 2 * r + s, r - 2 * s, 3 * s, 4 * s, 5 * s, 6 * s]
        more += [r + s + 1, r - s + 1, 2, s + 2, r + 2]
        self.base = w
        self.taps = [n, nw, ne, ww, nn, p, p_w, p_n, *(back(d) for d in more)]
        self.taps = [16 * (tap - w) for tap in self.taps]
        self.channel = self.lane.pos % s
        self._filter()
        self.filtered = True
        a, b = self.guesses
        self.guess = clamp(w + ((a + b + 16) >> 5), 0, 255)
        steep = (abs(w - nw) + abs(n - nw) + abs(n - ne)).bit_length()

        def clip(x: int) -> int:
            return clamp(x, 0, 255)

        return self.channel, [
            (clamp((16 * w + a + 2) >> 2, 0, 1023), 0),
            (self.guess, self.last_error),
            (clip(w + n - nw), clip(p - p_n + 128) // 8),
            (clip(n + p - p_n), self.activity),
            (clip(w + p - p_w), steep),
            (n, p),
            (clip(2 * n - nn), clip(2 * w - ww) // 4),
            ((w + ne) // 2, (n + nw) // 4),
            (n + 256 * nn, w),
            (n + 256 * ne + 65536 * nw, w),
        ]

    def _low(self, layout: Layout) -> tuple[int, list[tuple[int, int]]]:
        channels = layout.pixel // 2

        def sample(d: int) -> int:
            if 2 * d > self.lane.pos - self.lane.begin:
                return 0
            return signed(self.lane.back(2 * d) | self.lane.back(2 * d - 1) << 8)

        self.taps = [sample(i + 1) for i in range(20)]
        self.base = 0
        self.channel = 0 if channels == 1 else self.lane.pos // 2 % 2
        self._filter()
        a, b, c = (sample(i * channels) for i in (1, 2, 3))
        fast, slow = (clamp(guess, -32768, 32767) for guess in self.guesses)
        middle = (fast + slow) >> 1
        self.samples = [fast, slow, middle, 2 * a - b, 3 * a - 3 * b + c]
        self.guess = middle & 255
        kind = 16 + self.channel
        pairs = [(x & 255, self.activity) for x in self.samples]
        pairs += [(self.guess >> 3, middle >> 8), (middle >> 2, 0)]
        return kind, pairs + self._recent(256)

    def _high(self) -> tuple[int, list[tuple[int, int]]]:
        apart = [x - self.lane.back(1) + 128 for x in self.samples]
        self.guess = apart[2] >> 8 & 255
        pairs = [(x >> 8, (x & 255) // 16) for x in apart]
        pairs += [(self.guess, (apart[2] & 255) // 64 + 4 * self.activity)]
        pairs += [(self.samples[2] >> 4, 0)]
        self.filtered = True
        return 18 + self.channel, pairs + self._recent(self.lane.back(1))

    def _recent(self, low: int) -> list[tuple[int, int]]:
        back = self.lane.back
        return [(back(2), low), (back(2), back(4)), (self.activity, self.last_error)]


def signed(x: int) -> int:
    return x - 65536 if x >= 32768 else x


# Section 7: contexts.


def context(number: int, lane: Lane, match: Match) -> int:
    s = (number * 0x3D4D51CB + 1) & U32
    c1, c2, c3, c4 = (lane.back(k) for k in range(1, 5))
    past = lane.past
    word1, word2 = lane.words[:2]
    prefix = (lane.word + c1) & U32
    if number <= 4:
        x = lane.number([1, 2, 3, 4, 6][number])
        return hash_of(x & U32, x >> 32, s)
    if number == EXPECTED:
        if match.expected is None:
            return hash_of(0, c1, s)
        return hash_of(match.expected + 1, match.trust() // 8, s)
    offset = min(lane.pos - lane.cells[-1], 255)
    column = lane.pos % past.period + 256 if past.period else c2
    x86 = lane.x86
    here = hash_of(x86.code, x86.operand, x86.place)
    opcodes = [instruction & 0xFFFF for instruction in x86.before]
    return {
        5: lambda: hash_of(lane.word, c1, s),
        6: lambda: hash_of(prefix, word1, s),
        7: lambda: hash_of(prefix, word2, s),
        8: lambda: hash_of(lane.key, prefix, s),
        10: lambda: hash_of(past.after2[c2 * 256 + c1], c1, s),
        11: lambda: hash_of(c2, 0, s),
        12: lambda: hash_of(c3, 0, s),
        13: lambda: hash_of(c4, 0, s),
        14: lambda: hash_of(c2 + 256 * c3, 0, s),
        15: lambda: hash_of(lane.record(), c1, s),
        16: lambda: hash_of(column, lane.record(), s),
        18: lambda: hash_of(lane.cell_above(), 256 * (len(lane.cells) - 1) + offset, s),
        19: lambda: hash_of(lane.shape, c1, s),
        20: lambda: hash_of(here, 0, s),
        21: lambda: hash_of(here, hash_of(x86.before[0], x86.before[1]), s),
        22: lambda: hash_of(here, opcodes[0] + 65536 * opcodes[1], s),
        23: lambda: hash_of(
            here, hash_of(opcodes[0] + 65536 * opcodes[1], opcodes[2] + 65536 * opcodes[3]), s
        ),
        24: lambda: hash_of(x86.place, hash_of(x86.mod_rm + 256 * x86.sib, x86.operand), s),
        25: lambda: hash_of(here, x86.last_operand, s),
        26: lambda: hash_of(x86.place + 256 * (x86.opcode + 256 * x86.map), x86.before[0], s),
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
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.knots: dict[int, list[Cell]] = {}

    def refine(self, z: int, at: int) -> int:
        if at not in self.knots:
            knots = [squash(limit_stretch(410 * j - 3072)) for j in range(16)]
            self.knots[at] = [Cell(p, 6) for p in knots]
        row = self.knots[at]
        j, f = divmod(z + 3072, 410)
        self.nearer = row[j + (f >= 205)]
        return (row[j].p * (410 - f) + row[j + 1].p * f) // 410

    def learn(self, bit: int) -> None:
        self.nearer.learn(bit, self.limit)


class Weights:
    def __init__(self, initial: list[int]) -> None:
        self.initial = initial
        self.vectors: dict[int, list[int]] = {}

    def select(self, i: int) -> list[int]:
        return self.vectors.setdefault(i, list(self.initial))


def dot(x: Sequence[int], w: Sequence[int]) -> int:
    pairs = range(0, len(x), 2)
    return limit_stretch(sum((x[j] * w[j] + x[j + 1] * w[j + 1]) >> 5 for j in pairs) >> 8)


def train(x: Sequence[int], w: list[int], step: int) -> None:
    for j, a in enumerate(x):
        w[j] = clamp(w[j] + ((a * step + 16384) >> 15), -32768, 32767)


def final_dot(x: Sequence[int], v: Sequence[int]) -> int:
    return limit_stretch(sum((a * b) >> 8 for a, b in zip(x, v, strict=True)) >> 8)


def train_final(x: Sequence[int], v: list[int], step: int) -> None:
    for j, a in enumerate(x):
        v[j] = clamp(v[j] + ((a * step + 32768) >> 16), -FINAL_WEIGHT_MAX, FINAL_WEIGHT_MAX)


class Matcher:
    """Section 6.4: the matches of all lanes, and what they were worth."""

    def __init__(self, least: int, past: Past) -> None:
        places: dict[int, int] = {}
        self.lanes = [Match(least, lane, places) for lane in past.lanes]
        right = [61440 * (i // 4 + 1) // (i // 4 + 2) for i in range(64)]
        self.map = [[Cell(p << 6, 4) for p in (65536 - r, r)] for r in right]

    def step(self) -> None:
        active = [match for match in self.lanes if match.lane.pos < match.lane.end]
        for match in active:
            match.follow()
        for match in active:
            match.settle()

    def look(self, index: int, partial: int, i: int) -> Cell | None:
        """The cell that speaks of bit i, if the match has an opinion."""
        match = self.lanes[index]
        self.bit: int | None = None
        if match.expected is None or (match.expected | 256) >> (8 - i) != partial:
            return None
        self.bit, self.trust = match.expected >> (7 - i) & 1, match.trust()
        return self.map[self.trust][self.bit]


def network_opinion(weights: Any, partial: int, i: int) -> int:
    def total(first: int, n: int) -> int:
        return sum(int(w) >> 10 for w in weights[first : first + n])

    first, half = partial << (8 - i) & 255, 128 >> i
    nibble = total(0, 256) if i < 4 else total(first & 0xF0, 16)
    shift = max(0, nibble.bit_length() - 22)
    lower, upper = (2 * (total(at, half) >> shift) + 1 for at in (first, first + half))
    return stretch_ratio(upper, lower)


class Mixer:
    def __init__(self, profile: str, log2_memory: int, n: int, lanes: int, network: bool) -> None:
        self.contexts, self.sampled = PROFILES[profile], profile == "sample"
        self.followed = profile == "code"
        self.network = network
        self.stride = max(1, -(-n // lanes))
        self.past = Past(n, self.stride, lanes)
        self.table = HistoryTable(log2_memory)
        self.order0 = None if network else [[0] * 16 for _ in range(17)]
        slots = len(self.contexts) + (10 if self.sampled else 0) + (not network)
        self.maps = [history_map() for _ in range(slots)]
        self.matchers = [Matcher(5, self.past), Matcher(20, self.past)]
        used = 2 * (slots + 3)
        inputs = -(-used // 16) * 16
        weight = 375 if network else 750
        initial = [weight] * inputs
        if network:
            initial[2 * (slots + 2)] = 5000
        self.padding = inputs - used
        self.sets = [Weights(initial) for _ in range(4)]
        self.final = Weights([65536 // 4] * 4)
        self.a, self.b, self.c = (Refinement(255 if network else 127) for _ in range(3))
        self.caution = [0] * lanes
        self.trouble, self.gain = [0] * lanes, [0] * lanes
        self.variant = self.coded = 0
        self.hashes = [self.all_contexts(index) for index in range(lanes)]

    def all_contexts(self, index: int) -> list[int]:
        lane = self.past.lanes[index]
        hashes = [context(number, lane, self.matchers[0].lanes[index]) for number in self.contexts]
        if self.sampled:
            lane.samples.advance()
            hashes += lane.samples.contexts
        return hashes

    def code(self, index: int, weights: Any, code_bit: Callable[[int, int], int]) -> int:
        """One byte of a lane; code_bit(i, p1) codes bit i and returns it."""
        lane = self.past.lanes[index]
        if index == 0:
            for matcher in self.matchers:
                matcher.step()
        self.caution[index] -= self.caution[index] // 512 + (self.caution[index] > 0)
        self.variant = (self.variant + 5) % 8
        hashes = self.hashes[index]
        expected_at = len(self.contexts) - 1
        hashes[expected_at] = context(EXPECTED, lane, self.matchers[0].lanes[index])
        rate, extra = (18, 40) if self.network else (14, 24)
        self.rate = rate + extra * 16384 // (16384 + self.coded)
        partial, node = 1, 1
        buckets: list[list[int]] = []
        for i in range(8):
            if i in (0, 4):
                buckets, node = [], 1
            self.begin_bit(index, weights, partial, i)
            if not self.sure and not buckets:
                buckets = self.find_buckets(hashes, 0 if i < 4 else partial >> (i - 4))
                if node > 1:
                    first = node >> (node.bit_length() - 2) & 1
                    for bucket in buckets:
                        bucket[1] = NEXT[self.variant][bucket[1]][first]
            if self.sure:
                p1 = squash(self.z)
                bit = code_bit(i, p1)
                if bit != (self.z > 0):
                    self.caution[index] = min(2 * self.caution[index] + 1024, 65536)
            else:
                p1 = self.predict(index, buckets, partial, node, i)
                bit = code_bit(i, p1)
                self.learn(buckets, node, bit)
            if self.network:
                self.count_errors(index, bit, p1)
            partial, node = 2 * partial + bit, 2 * node + bit
        lane.append(partial - 256)
        if self.sampled:
            self.past.layout.count(lane)
        self.hashes[index] = self.all_contexts(index)
        self.coded += 1
        return partial - 256

    def find_buckets(self, hashes: list[int], q: int) -> list[list[int]]:
        found = [self.table.find(h, q) for h in hashes]
        return found if self.order0 is None else [*found, self.order0[0 if q == 0 else q - 15]]

    def begin_bit(self, index: int, weights: Any, partial: int, i: int) -> None:
        lane = self.past.lanes[index]
        c1, c2 = lane.back(1), lane.back(2)
        self.c1, self.kind = c1, 16 * byte_class(c1) + byte_class(c2)
        self.likely, order2 = c1, c1 + 256 * c2
        if self.sampled:
            self.likely, self.kind = lane.samples.guess, lane.samples.activity
            order2 = self.likely + 256 * self.kind
        if self.followed:
            self.likely = self.kind = lane.x86.kind()
        nibble = 0 if i < 4 else partial >> (i - 4)
        node = 1 << i % 4 | partial & (1 << i % 4) - 1

        def beside(byte: int) -> int:
            return 16 * (17 * byte + (0 if i < 4 else nibble - 15)) + node

        def hashed(x: int) -> int:
            return 16 * (hash_of(x, nibble) >> 20) + node

        self.at_likely, self.at_pair = beside(self.likely), hashed(order2)
        self.at_column = beside(min(lane.pos - lane.line, 127))
        self.match_cells = [m.look(index, partial, i) for m in self.matchers]
        self.sure = False
        if self.network:
            self.z = network_opinion(weights, partial, i)
            agreed = self.matchers[0].bit in (None, int(self.z > 0))
            self.sure = agreed and abs(self.z) >= 1536 + self.caution[index]

    def count_errors(self, index: int, bit: int, p1: int) -> None:
        network, mixer = (abs(ONE * bit - p) >> 6 for p in (squash(self.z), p1))
        self.trouble[index] += (network - self.trouble[index]) >> 5
        if not self.sure:
            self.gain[index] += (network - mixer - self.gain[index]) >> 5

    def predict(self, index: int, buckets: list[list[int]], partial: int, node: int, i: int) -> int:
        self.histories = [bucket[node] for bucket in buckets]
        known = [
            cells[history] if history else None
            for cells, history in zip(self.maps, self.histories, strict=True)
        ]
        self.cells, x = known + self.match_cells, list[int]()
        for cell in self.cells:
            x += [stretch(cell.p), linear(cell.p)] if cell else [0, 0]
        x += [self.z, linear(squash(self.z))] if self.network else [256, 0]
        self.x = x + [0] * self.padding
        match = self.matchers[0]
        trust = 0 if match.bit is None else match.trust
        if self.network:
            trouble = sum(self.trouble[index] >= least for least in (4096, 8192, 16384))
            gain = sum(self.gain[index] >= least for least in (0, 512, 2048))
            chosen = [
                8 * (4 * (trust // 4) + trouble) + i,
                4 * partial + gain,
                4 * self.c1 + trouble,
                4 * self.kind + gain,
            ]
            final = 16 * gain + sum(history != 0 for history in self.histories)
        else:
            chosen, final = [8 * trust + i, partial, self.c1, 8 * self.kind + i], partial
        self.w = [s.select(at) for s, at in zip(self.sets, chosen, strict=True)]
        self.v = self.final.select(final)
        self.dots = [dot(self.x, w) for w in self.w]
        self.mixed = final_dot(self.dots, self.v)
        at = self.at_likely
        if self.network:
            said = 128 + (self.z > 0) if match.bit is None else 2 * trust + match.bit
            at = abs(self.z) // 192 * 256 + said
        a, b = self.a.refine(self.mixed, at), self.b.refine(self.mixed, self.at_pair)
        c = squash(self.mixed)
        if self.network:
            c = self.c.refine(self.mixed, self.at_column)
        return clamp((squash(self.mixed) + a + b + c + 2) >> 2, 1, ONE - 1)

    # Section 9.

    def learn(self, buckets: list[list[int]], node: int, bit: int) -> None:
        for cell in self.cells:
            if cell:
                cell.learn(bit, 255)
        for bucket in buckets:  # two slots may share one
            bucket[node] = NEXT[self.variant][bucket[node]][bit]
        for w, output in zip(self.w, self.dots, strict=True):
            train(self.x, w, ((ONE * bit - squash(output)) * self.rate + 8192) >> 14)
        rate = 5 if self.network else 6
        train_final(self.dots, self.v, ((ONE * bit - squash(self.mixed)) * rate) >> 10)
        self.a.learn(bit)
        self.b.learn(bit)
        if self.network:
            self.c.learn(bit)


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
            encoders[lane].encode(0 if bit else p1, p1 if bit else ONE - p1, 22)
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
            bit = int(decoders[lane].peek(22) < p1)
            decoders[lane].consume(0 if bit else p1, p1 if bit else ONE - p1, 22)
            return bit

        raw[at] = mixer.code(lane, None if weights is None else weights[at], code_bit)
    return bytes(raw)
