"""Method 4: adaptive order-0 coding of a frame, without a model. Specified in docs/format.md.

Bytes in, one payload per lane out, and back. The lanes share one table of counts, which changes
only between blocks of steps, so a block is coded with one fixed distribution. This is the codec
of the tests and of last resort: the whole container works with it, without a model file.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from lmzip._core import RangeDecoder, RangeEncoder
from lmzip.codec import lane_ranges
from lmzip.container import METHOD_ORDER0
from lmzip.errors import CorruptError

FREQ_BITS = 30
FIRST_BLOCK = 16  # steps; each block is twice as long as the one before, up to LAST_BLOCK
LAST_BLOCK = 4096
INCREMENT = 16  # 64 MiB * 16 + 1 < 2^31, the limit of a weight


class Order0Codec:
    """A FrameCodec (codec.py) that needs no model and no table memory."""

    method = METHOD_ORDER0
    table_bits = 0
    profile = 0
    model_id = bytes(32)
    model_name = ""

    def sized(self, raw_size: int) -> "Order0Codec":  # noqa: ARG002 (it has no tables)
        return self

    def memory_needed(self, raw_size: int, lanes: int) -> int:
        return 2 * raw_size + 4096 * lanes

    def encode_frame(self, data: memoryview | bytes, lanes: int) -> list[bytes]:
        raw = bytes(data)
        pieces = [raw[begin:end] for begin, end in lane_ranges(len(raw), lanes)]
        encoders = [RangeEncoder() for _ in range(lanes)]
        counts = [1] * 256
        for begin, end in _blocks(len(pieces[0])):
            bounds = _bounds(counts)
            for piece, encoder in zip(pieces, encoders, strict=True):
                _encode(encoder, piece[begin:end], bounds)
                for byte in piece[begin:end]:
                    counts[byte] += INCREMENT
        return [encoder.finish() for encoder in encoders]

    def decode_frame(self, payloads: Sequence[bytes], raw_size: int) -> bytes:
        lanes = len(payloads)
        sizes = [end - begin for begin, end in lane_ranges(raw_size, lanes)]
        decoders = [RangeDecoder(payload) for payload in payloads]
        pieces = [bytearray() for _ in range(lanes)]
        counts = [1] * 256
        for begin, end in _blocks(sizes[0]):
            bounds = _bounds(counts)
            for size, decoder, piece in zip(sizes, decoders, pieces, strict=True):
                decoded = _decode(decoder, min(end, size) - min(begin, size), bounds)
                piece += decoded
                for byte in decoded:
                    counts[byte] += INCREMENT
        if any(decoder.end() != "exact" for decoder in decoders):
            raise CorruptError("the payload of a lane is not the encoding of what it decodes to")
        return b"".join(pieces)


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


def _encode(encoder: RangeEncoder, symbols: bytes, bounds: list[int]) -> None:
    for symbol in symbols:
        lo = bounds[symbol]
        encoder.encode(lo, bounds[symbol + 1] - lo, FREQ_BITS)


def _decode(decoder: RangeDecoder, count: int, bounds: list[int]) -> bytes:
    out = bytearray()
    for _ in range(count):
        symbol = bisect_right(bounds, decoder.peek(FREQ_BITS)) - 1
        decoder.consume(bounds[symbol], bounds[symbol + 1] - bounds[symbol], FREQ_BITS)
        out.append(symbol)
    return bytes(out)
