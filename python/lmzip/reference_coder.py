"""The range coder and the distributions in plain Python, in the order of docs/coder.md.

The readable twin of csrc/range_coder.h and csrc/distribution.cpp: unbounded integers and fractions,
no carry, no blocks, no speed. The vectors in tests/vectors are made with it, and the native code is
tested against it for equality.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from math import isqrt

FREQ_BITS = 30
FREQ_TOTAL = 1 << FREQ_BITS
MAX_SYMBOLS = 1 << 20
LOGIT_FRAC_BITS = 10
MAX_WEIGHT = (1 << 31) - 1

# ── Distributions ──


def float_weights(row: Sequence[float]) -> list[int]:
    """Weights of probabilities that are float32 values: the greatest gets 30 bits.

    With 2^E <= max(row) < 2^(E + 1), but E >= -126, the weight of p is floor(p * 2^(29 - E)).
    """
    if not all(0 <= p < float("inf") for p in row):  # NaN fails every comparison
        raise ValueError("a probability is NaN, infinite or negative")
    top = Fraction(max(row))
    exponent = -126
    while top >= Fraction(2) ** (exponent + 1):
        exponent += 1
    scale = Fraction(2) ** (29 - exponent)
    return [int(Fraction(p) * scale) for p in row]  # int() of what is not negative is the floor


@cache
def exp2_table() -> list[int]:
    """EXP2_TABLE[f] = round(2^30 * 2^(-f/1024)) for 0 <= f < 1024."""
    table = []
    for f in range(1 << LOGIT_FRAC_BITS):
        root = 1 << ((31 << LOGIT_FRAC_BITS) - f)  # (2 * 2^30 * 2^(-f/1024)) ^ 1024
        for _ in range(LOGIT_FRAC_BITS):
            root = isqrt(root)
        table.append((root + 1) >> 1)
    return table


def logit_weights(row: Sequence[int]) -> list[int]:
    """Weights of logits, which are log2 of a likelihood in units of 1/1024."""
    top = max(row)
    return [exp2_table()[(top - x) % 1024] >> ((top - x) // 1024) for x in row]


def cumulative(weights: Sequence[int]) -> list[int]:
    """C_0 = 0, ..., C_n = 2^30: symbol i has the interval [C_i, C_{i+1})."""
    n, total = len(weights), sum(weights)
    if not 1 <= n <= MAX_SYMBOLS:
        raise ValueError(f"an alphabet has 1 to {MAX_SYMBOLS} symbols, not {n}")
    if not all(0 <= w <= MAX_WEIGHT for w in weights):
        raise ValueError("a weight is negative, or 2^31 or more")
    if total == 0:
        raise ValueError("all weights are zero")
    shift = max(0, total.bit_length() - 32)
    values, prefix = [], 0
    for i in range(n + 1):
        values.append(i + (prefix >> shift) * (FREQ_TOTAL - n) // (total >> shift))
        prefix += weights[i] if i < n else 0
    return values


# ── The range coder ──


class RangeEncoder:
    """The message is one number, `low`, of 64 + 32 * shifts bits; the coder narrows what it may be.

    Invariant between calls: 2^32 <= size < 2^64, and the number is in [low, low + size).
    """

    def __init__(self) -> None:
        self.low, self.size, self.shifts = 0, (1 << 64) - 1, 0

    def encode(self, lo: int, freq: int, bits: int) -> None:
        """Code the interval [lo, lo + freq) of 2^bits."""
        begin = self.size * lo >> bits
        end = self.size * (lo + freq) >> bits
        self.low, self.size = self.low + begin, end - begin
        if self.size < 1 << 32:
            self.low, self.size, self.shifts = self.low << 32, self.size << 32, self.shifts + 1

    def finish(self) -> bytes:
        """The shortest number in the interval: all shifted words, and 0 to 4 bytes of the next."""
        for count in range(5):
            unit = 1 << (64 - 8 * count)
            number = -(-self.low // unit) * unit
            if number < self.low + self.size:
                break
        return number.to_bytes(4 * self.shifts + 8)[: 4 * self.shifts + count]


class RangeDecoder:
    """Reads `data` as if zeros without end followed."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 8
        self.low, self.size, self.number = 0, (1 << 64) - 1, int.from_bytes(self._read(0, 8))
        if self.number >= self.size:  # no message begins so
            self.number -= 1

    def _read(self, begin: int, end: int) -> bytes:
        return self.data[begin:end].ljust(end - begin, b"\0")

    def peek(self, bits: int) -> int:
        """The greatest slot with floor(size * slot / 2^bits) <= number - low."""
        return ((self.number - self.low + 1 << bits) - 1) // self.size

    def consume(self, lo: int, freq: int, bits: int) -> None:
        """Step over the interval that contains peek(bits)."""
        begin = self.size * lo >> bits
        end = self.size * (lo + freq) >> bits
        self.low, self.size = self.low + begin, end - begin
        if self.size < 1 << 32:
            word = int.from_bytes(self._read(self.position, self.position + 4))
            self.low, self.size = self.low << 32, self.size << 32
            self.number, self.position = self.number << 32 | word, self.position + 4

    def at_end(self) -> bool:
        """Whether the data are exactly what an encoder writes for the decoded symbols."""
        encoder = RangeEncoder()
        encoder.low, encoder.size, encoder.shifts = self.low, self.size, self.position // 4 - 2
        return self.data == encoder.finish()
