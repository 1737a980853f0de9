"""Method 4: adaptive order-0 coding of a frame, without a model. Specified in docs/format.md.

Bytes in, one payload per lane out, and back. The lanes share one table of counts, which changes
only between blocks of steps, so a block is coded with one fixed distribution. This is the codec
of the tests and of last resort: the whole container works with it, without a model file.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from lmzip.container import METHOD_ORDER0
from lmzip.errors import CorruptError

FREQ_BITS = 30
FIRST_BLOCK = 16  # steps; each block is twice as long as the one before, up to LAST_BLOCK
LAST_BLOCK = 4096
INCREMENT = 16  # 64 MiB * 16 + 1 < 2^31, the limit of a weight

_TOP = 1 << 64
_MASK = _TOP - 1


class Order0Codec:
    """A FrameCodec (codec.py) that needs no model and no table memory."""

    method = METHOD_ORDER0
    table_bits = 0
    model_id = bytes(32)
    model_name = ""

    def memory_needed(self, raw_size: int, lanes: int) -> int:
        return 2 * raw_size + 4096 * lanes

    def encode_frame(self, data: memoryview | bytes, lanes: int) -> list[bytes]:
        raw = bytes(data)
        pieces = [raw[begin:end] for begin, end in _lane_ranges(len(raw), lanes)]
        encoders = [_Encoder() for _ in range(lanes)]
        counts = [1] * 256
        for begin, end in _blocks(len(pieces[0])):
            bounds = _bounds(counts)
            for piece, encoder in zip(pieces, encoders, strict=True):
                encoder.encode(piece[begin:end], bounds)
                for byte in piece[begin:end]:
                    counts[byte] += INCREMENT
        return [encoder.finish() for encoder in encoders]

    def decode_frame(self, payloads: Sequence[bytes], raw_size: int) -> bytes:
        lanes = len(payloads)
        sizes = [end - begin for begin, end in _lane_ranges(raw_size, lanes)]
        decoders = [_Decoder(payload) for payload in payloads]
        pieces = [bytearray() for _ in range(lanes)]
        counts = [1] * 256
        for begin, end in _blocks(sizes[0]):
            bounds = _bounds(counts)
            for size, decoder, piece in zip(sizes, decoders, pieces, strict=True):
                decoded = decoder.decode(min(end, size) - min(begin, size), bounds)
                piece += decoded
                for byte in decoded:
                    counts[byte] += INCREMENT
        if not all(decoder.at_end() for decoder in decoders):
            raise CorruptError("a lane of a frame does not end where its last symbol ends")
        return b"".join(pieces)


def _lane_ranges(raw_size: int, lanes: int) -> list[tuple[int, int]]:
    stride = -(-raw_size // lanes)
    return [
        (min(lane * stride, raw_size), min((lane + 1) * stride, raw_size)) for lane in range(lanes)
    ]


def _blocks(steps: int) -> Iterator[tuple[int, int]]:
    begin, size = 0, FIRST_BLOCK
    while begin < steps:
        yield begin, min(begin + size, steps)
        begin, size = begin + size, min(2 * size, LAST_BLOCK)


def _bounds(weights: Sequence[int]) -> list[int]:
    """Weights -> interval bounds C_0 = 0 .. C_n = 2^30, by the rule of docs/coder.md."""
    total = sum(weights)
    shift = max(0, total.bit_length() - 32)
    scale, divisor = (1 << FREQ_BITS) - len(weights), total >> shift
    prefix = accumulate(weights, initial=0)
    return [i + (p >> shift) * scale // divisor for i, p in enumerate(prefix)]


class _Encoder:
    """The range coder of docs/coder.md in Python integers; `low` is kept whole, carries and all."""

    def __init__(self) -> None:
        self._low, self._range, self._words = 0, _MASK, bytearray()

    def encode(self, symbols: bytes, bounds: list[int]) -> None:
        low, size, words = self._low, self._range, self._words
        for symbol in symbols:
            begin = size * bounds[symbol] >> FREQ_BITS
            size = (size * bounds[symbol + 1] >> FREQ_BITS) - begin
            low += begin
            if low > _MASK:
                low &= _MASK
                _carry(words)
            if size < 1 << 32:
                words += (low >> 32).to_bytes(4)
                low, size = low << 32 & _MASK, size << 32
        self._low, self._range = low, size

    def finish(self) -> bytes:
        value, size = _final(self._low, self._range)
        if value > _MASK:
            _carry(self._words)
        return bytes(self._words) + (value & _MASK).to_bytes(8)[:size]


class _Decoder:
    def __init__(self, payload: bytes) -> None:
        self._payload, self._at = payload, 8
        self._value = int.from_bytes(payload[:8].ljust(8, b"\0"))
        self._low, self._range = 0, _MASK

    def decode(self, count: int, bounds: list[int]) -> bytes:
        low, size, value, out = self._low, self._range, self._value, bytearray()
        for _ in range(count):
            code = value - low & _MASK
            slot = min((((code + 1) << FREQ_BITS) - 1) // size, (1 << FREQ_BITS) - 1)
            symbol = bisect_right(bounds, slot) - 1
            out.append(symbol)
            begin = size * bounds[symbol] >> FREQ_BITS
            size = (size * bounds[symbol + 1] >> FREQ_BITS) - begin
            low = low + begin & _MASK
            if size < 1 << 32:
                low, size = low << 32 & _MASK, size << 32
                word = self._payload[self._at : self._at + 4].ljust(4, b"\0")
                value = value << 32 & _MASK | int.from_bytes(word)
                self._at += 4
        self._low, self._range, self._value = low, size, value
        return bytes(out)

    def at_end(self) -> bool:
        """True if the payload is the encoding of exactly what was decoded."""
        value, size = _final(self._low, self._range)
        return len(self._payload) == self._at - 8 + size and self._value == value & _MASK


def _carry(words: bytearray) -> None:
    at = len(words) - 1
    while words[at] == 0xFF:
        words[at] = 0
        at -= 1
    words[at] += 1


def _final(low: int, size: int) -> tuple[int, int]:
    """The number in [low, low + size) that ends in the most zero bytes, and how many it has not."""
    for length in range(5):
        unit = 1 << 64 - 8 * length
        value = -(-low // unit) * unit
        if value < low + size:
            return value, length
    raise AssertionError("the range of the coder fell below 2^32")
