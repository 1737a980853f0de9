"""Frames in a row: bytes -> frame records -> bytes, in parallel and in order.

`encode_frame` and `decode_frame` handle one frame and share nothing, so `ordered_map` may run
them on several threads; what comes out does not depend on how many. Memory is bounded by the
number of frames in flight and, for decoding, by the sum of what they need.
"""

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from lmzip.codec import Codecs, FrameCodec, frame_memory, lanes_for
from lmzip.container import (
    METHOD_FLOAT,
    METHOD_STORED,
    METHOD_TOKENS,
    FrameHeader,
    Parser,
    StreamHeader,
    Trailer,
)
from lmzip.errors import CorruptError, LmzipError

READ_SIZE = 1 << 20
SAMPLES, SAMPLE_SIZE = 16, 2048  # places of a frame, and bytes at each, by which it is judged
TRIAL_SIZE = 16384  # bytes of each of the two pieces that codecs compete on
TOKEN_TRIAL_SIZE = 2048  # where a pretrained model would take seconds for more
_CONTROLS = bytes({*range(32), 127} - set(b"\t\n\r\f"))
_LOW = bytes(range(128))

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class EncodeSettings:
    """How frames are encoded. `lanes` None lets the size of the frame decide, up to max_lanes."""

    codecs: Sequence[FrameCodec]
    frame_size: int
    max_lanes: int
    lanes: int | None = None
    verify: bool = False


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    record: bytes  # head and payload
    header: FrameHeader


@dataclass(frozen=True, slots=True)
class FrameTask:
    """A frame that is ready to be decoded; `codec` is None for a stored one."""

    header: FrameHeader
    payload: bytes
    codec: FrameCodec | None

    @property
    def memory(self) -> int:
        return frame_memory(self.header, self.codec)


def encode_frame(data: bytes, position: int, settings: EncodeSettings) -> EncodedFrame:
    """Encode 1..frame_size bytes; stored as they are where coding would make them longer.

    Raises LmzipError if `verify` is set and the frame does not decode to its input.
    """
    raw_crc = zlib.crc32(data)
    stored_header = FrameHeader(METHOD_STORED, position, len(data), len(data), raw_crc, raw_crc)
    stored = EncodedFrame(stored_header.pack() + data, stored_header)
    if looks_incompressible(data):
        return stored
    codec = choose_codec(data, settings.codecs).sized(len(data))
    lanes = settings.lanes or lanes_for(len(data), settings.max_lanes, codec.method)
    lanes = min(lanes, len(data))
    payloads = codec.encode_frame(data, lanes)
    coded = _pack_frame(codec, payloads, position, len(data), raw_crc)
    if coded.header.payload_size > len(data) or len(coded.record) >= len(stored.record):
        return stored
    if settings.verify and not _decodes(codec, payloads, data):
        reason = f"this is a bug in the {coded.header.method_name!r} engine"
        if codec.method == METHOD_FLOAT:
            reason = "the predictor does not give the same numbers twice, so it cannot be used"
        raise LmzipError(
            f"the frame at byte {position} does not decode to its input: {reason}; the source is "
            "untouched"
        )
    return coded


def _decodes(codec: FrameCodec, payloads: Sequence[bytes], data: bytes) -> bool:
    try:
        return codec.decode_frame(payloads, len(data)) == data
    except CorruptError:
        return False


def _pack_frame(
    codec: FrameCodec, payloads: Sequence[bytes], position: int, raw_size: int, raw_crc: int
) -> EncodedFrame:
    payload = b"".join(payloads)
    header = FrameHeader(
        method=codec.method,
        position=position,
        raw_size=raw_size,
        payload_size=len(payload),
        raw_crc=raw_crc,
        payload_crc=zlib.crc32(payload),
        table_bits=codec.table_bits,
        profile=codec.profile,
        lane_sizes=tuple(map(len, payloads)),
    )
    return EncodedFrame(header.pack() + payload, header)


def looks_incompressible(data: bytes) -> bool:
    """True if zlib gains nothing on samples of a long frame: compressed or encrypted already."""
    return len(data) > SAMPLES * SAMPLE_SIZE and all(
        len(zlib.compress(sample, 1)) >= len(sample) for sample in _samples(data)
    )


def choose_codec(data: bytes, codecs: Sequence[FrameCodec]) -> FrameCodec:
    """Return the first codec for text; else the one that makes two pieces of the frame smallest.

    The pieces are long enough to hold some rows of an image.
    """
    if len(codecs) == 1 or looks_like_text(data):
        return codecs[0]
    tokens = any(codec.method == METHOD_TOKENS for codec in codecs)
    size = TOKEN_TRIAL_SIZE if tokens else TRIAL_SIZE
    pieces = list(_samples(data, 2, size)) if len(data) > 2 * size else [data]

    def cost(codec: FrameCodec) -> int:
        return sum(
            len(payload)
            for piece in pieces
            for payload in codec.sized(len(piece)).encode_frame(piece, 1)
        )

    return min(codecs, key=cost)


def looks_like_text(data: bytes) -> bool:
    """True if next to no byte is a control character, and those above 127 are few or UTF-8."""
    if len(data) - len(data.translate(None, _CONTROLS)) > len(data) // 1000:
        return False
    high = len(data.translate(None, _LOW))
    return high <= len(data) // 4 or len(data.decode("utf-8", "ignore").encode()) > 0.99 * len(data)


def _samples(data: bytes, count: int = SAMPLES, size: int = SAMPLE_SIZE) -> Iterator[bytes]:
    for i in range(count):
        start = (i + 1) * (len(data) - size) // (count + 1)
        yield data[start : start + size]


def decode_frame(task: FrameTask) -> bytes:
    """Return the raw bytes of a frame. CorruptError says whether the file or the decoder failed."""
    header, payload = task.header, task.payload
    if zlib.crc32(payload) != header.payload_crc:
        raise CorruptError(
            f"{_frame_place(header)} is damaged: the CRC-32 of its payload is "
            f"{zlib.crc32(payload):08x}, expected {header.payload_crc:08x}"
        )
    raw = payload
    if task.codec is not None:
        raw = task.codec.decode_frame(_split(payload, header.lane_sizes), header.raw_size)
    if len(raw) != header.raw_size or zlib.crc32(raw) != header.raw_crc:
        raise CorruptError(
            f"{_frame_place(header)} decodes to other bytes than were encoded: its payload is "
            "undamaged, so the model or the engine differs from the one that wrote it"
        )
    return raw


def read_tasks(
    pieces: Iterable[bytes],
    codecs: Codecs,
    on_stream: Callable[[StreamHeader], None] = lambda _: None,
) -> Iterator[FrameTask]:
    """Compressed bytes in pieces -> frames to decode, across concatenated streams.

    `on_stream` is told each stream header. Limits are checked on each head, before its payload
    is waited for.
    Raises NotLmzError, TruncatedError, CorruptError, UnsupportedError, ModelMismatchError,
    LimitError.
    """
    parser = Parser()
    stream = StreamHeader()
    head: tuple[FrameHeader, FrameCodec | None] | None = None
    for piece in pieces:
        parser.feed(piece)
        while (record := parser.next_record()) is not None:
            if isinstance(record, StreamHeader):
                stream = record
                on_stream(stream)
            elif isinstance(record, FrameHeader):
                head = record, codec_of(record, stream, codecs)
            elif not isinstance(record, Trailer) and head is not None:
                yield FrameTask(head[0], record, head[1])
    parser.end()


def codec_of(frame: FrameHeader, stream: StreamHeader, codecs: Codecs) -> FrameCodec | None:
    """Check the limits; return the codec of a frame, None for a stored one."""
    if frame.method == METHOD_STORED:
        codecs.check_stored(frame)
        return None
    return codecs.for_frame(stream, frame)


def decode_all(
    tasks: Iterable[FrameTask], threads: int, memory_limit: int | None
) -> Iterator[bytes]:
    """Decode frames on `threads` threads, in order. An error comes after what precedes it."""
    return ordered_map(
        decode_frame, tasks, threads, budget=memory_limit, cost=lambda task: task.memory
    )


def ordered_map(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    *,
    budget: int | None = None,
    cost: Callable[[Item], int] = lambda _: 0,
) -> Iterator[Result]:
    """Yield work(item) in the order of `items`, up to 2 * threads of them in flight.

    The sum of cost(item) over those in flight stays within `budget`, or one item is alone. An
    error of `items` is raised after the results of all items before it. The calling thread only
    waits, so it can be interrupted; abandoned work is not waited for.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="lmzip")
    waiting: deque[tuple[Future[Result], int]] = deque()
    spent = 0
    failure: Exception | None = None
    source = iter(items)
    try:
        while True:
            try:
                item = next(source)
            except StopIteration:
                break
            except (LmzipError, OSError) as error:
                failure = error
                break
            price = cost(item)
            while waiting and (
                len(waiting) >= 2 * threads or (budget is not None and spent + price > budget)
            ):
                future, paid = waiting.popleft()
                result = future.result()
                spent -= paid
                yield result
            waiting.append((pool.submit(work, item), price))
            spent += price
            del item
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
        raise failure


def _split(payload: bytes, sizes: Sequence[int]) -> list[bytes]:
    lanes, at = [], 0
    for size in sizes:
        lanes.append(payload[at : at + size])
        at += size
    return lanes


def _frame_place(header: FrameHeader) -> str:
    return f"the frame of bytes {header.position}..{header.position + header.raw_size - 1}"
