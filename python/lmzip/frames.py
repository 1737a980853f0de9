"""Frames in a row: bytes -> frame records -> bytes, in parallel and in order.

`encode_frame` and `decode_frame` handle one frame and share nothing, so `ordered_map` may run
them on several threads; what comes out does not depend on how many. Memory is bounded by the
number of frames in flight and, for decoding, by the sum of what they need.
"""

import itertools
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lmzip.codec import (
    BINARY,
    SAMPLE,
    TEXT,
    TRIAL_SIZE,
    Codecs,
    FrameCodec,
    frame_memory,
    lanes_for,
)
from lmzip.container import (
    METHOD_FLOAT,
    METHOD_MIXER,
    METHOD_NETWORK_MIXER,
    METHOD_STORED,
    METHOD_TOKENS,
    MODEL_METHODS,
    FrameHeader,
    Parser,
    StreamHeader,
    Trailer,
)
from lmzip.errors import CorruptError, LmzipError
from lmzip.pool import FrameJob, FramePool

READ_SIZE = 1 << 20
BLOCK_SIZE, SAMPLE_SIZE = 1 << 16, 1024  # a block is judged by four samples
LEAST_STORED = 8  # dense blocks in a row that become a frame of their own
SMALL_FRAME = 1 << 17  # up to here a dense frame is coded whatever the probe would say
PROBE_SIZE, PROBE_GAIN = 8192, 0.02  # what the mixer gains where it is worth its time
# Codecs compete on two pieces of TRIAL_SIZE bytes, or, with networks or pretrained ones among
# them, of so many.
NETWORK_TRIAL_SIZE, TOKEN_TRIAL_SIZE = 4096, 2048
# Cost of a network in the trial, in that of the best without: from where on it has lost, up to
# where it has won.  Between them whole frames decide: the mixer learns what a network knows.
NETWORK_LOSES, NETWORK_WINS = 1.1, 0.75
# Of text the network loses some languages and tables, to a mixer that learns them in one lane.
NETWORK_WINS_TEXT = 0.8
SMALL_TEXT = 1 << 16  # below, the trial would take longer than it could gain
REPETITIVE = 1 / 8  # what zlib makes of text where long matches may say more than a network
SLOW_METHODS = MODEL_METHODS | {METHOD_FLOAT}
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
    chosen = choose_codecs(data, settings.codecs)
    if not chosen:
        return stored
    codings = [_encode(data, codec, settings) for codec in chosen]
    codec, payloads = min(codings, key=lambda coding: sum(map(len, coding[1])))
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


def _encode(
    data: bytes, codec: FrameCodec, settings: EncodeSettings
) -> tuple[FrameCodec, list[bytes]]:
    codec = codec.sized(len(data))
    lanes = settings.lanes or lanes_for(len(data), settings.max_lanes, codec.method)
    return codec, codec.encode_frame(data, min(lanes, len(data)))


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


def cut(data: bytes) -> Iterator[bytes]:
    """Cut what may become one frame where long dense runs begin and end."""
    begin = 0
    blocks = range(0, len(data), BLOCK_SIZE)
    for dense, group in itertools.groupby(blocks, lambda at: _is_dense(data, at)):
        run = list(group)
        if not dense or len(run) < LEAST_STORED:
            continue
        end = min(run[-1] + BLOCK_SIZE, len(data))
        if run[0] > begin:
            yield data[begin : run[0]]
        yield data[run[0] : end]
        begin = end
    if begin < len(data):
        yield data[begin:]


def _is_dense(data: bytes, at: int) -> bool:
    """True if zlib gains next to nothing on samples of a block: compressed or encrypted already,
    a recording or a photograph.  It gains on nothing that is short."""
    if len(data) <= 4 * SAMPLE_SIZE:
        return False
    block = data[at : at + BLOCK_SIZE]
    samples = b"".join(_samples(block, 4, SAMPLE_SIZE)) if len(block) > 4 * SAMPLE_SIZE else block
    return len(zlib.compress(samples, 1)) > len(samples) * 15 // 16


def choose_codecs(data: bytes, codecs: Sequence[FrameCodec]) -> list[FrameCodec]:
    """Return the one or two codecs that may make the frame smallest: none for what the mixer gains
    nothing on; the first for text, unless the network finds it as strange as noise, or next to all
    of it repeats.

    The pieces on which they compete are long enough to hold some rows of an image.
    """
    if looks_like_text(data):
        return _for_text(data, codecs)
    quick = [codec for codec in codecs if codec.method not in SLOW_METHODS]
    slow = [codec for codec in codecs if codec.method in SLOW_METHODS]
    if all(_is_dense(data, at) for at in range(0, len(data), BLOCK_SIZE)):
        if len(data) > SMALL_FRAME and not _gains(quick, data):
            return []
        slow = slow if not quick else []
    if not slow or not quick:
        return [min(quick or slow, key=_costs(quick or slow, data).__getitem__)]
    # The network is tried on less: what it gains there over a mixer, it is taken to gain on more.
    costs = _costs(quick, data)
    best = min(quick, key=costs.__getitem__)
    first = _costs([*slow, quick[0]], data)
    network = min(slow, key=first.__getitem__)
    ratio = first[network] / first[quick[0]] * costs[quick[0]] / costs[best]
    if ratio > NETWORK_LOSES:
        return [best]
    return [network] if ratio < NETWORK_WINS else [network, best]


def _for_text(data: bytes, codecs: Sequence[FrameCodec]) -> list[FrameCodec]:
    first = codecs[0]
    mixers = [c for c in codecs if c.method == METHOD_MIXER and c.profile == TEXT]
    if first.method != METHOD_NETWORK_MIXER or not mixers or len(data) < SMALL_TEXT:
        return [first]
    if len(zlib.compress(data, 1)) < REPETITIVE * len(data):
        return [first, mixers[0]]
    costs = _costs([first, mixers[0]], data)
    strange = costs[first] > NETWORK_WINS_TEXT * costs[mixers[0]]
    return [first, mixers[0]] if strange else [first]


def _gains(codecs: Sequence[FrameCodec], data: bytes) -> bool:
    """True if one of them makes a piece of a frame smaller, and by more than next to nothing.

    Where zlib gains nothing, text and code are not to be found.
    """
    pieces = list(_samples(data, 1, PROBE_SIZE))
    mixers = [codec for codec in codecs if codec.method == METHOD_MIXER]
    probes = [codec for codec in mixers if codec.profile in (BINARY, SAMPLE)] or codecs
    return any(_cost(codec, pieces) < (1 - PROBE_GAIN) * PROBE_SIZE for codec in probes)


def _costs(codecs: Sequence[FrameCodec], data: bytes) -> dict[FrameCodec, int]:
    """The cost of two pieces of a frame, as long as the slowest of the codecs allows."""
    methods = {codec.method for codec in codecs}
    size = TRIAL_SIZE if methods.isdisjoint(SLOW_METHODS) else NETWORK_TRIAL_SIZE
    if not methods.isdisjoint({METHOD_TOKENS, METHOD_FLOAT}):
        size = TOKEN_TRIAL_SIZE
    pieces = list(_samples(data, 2, size)) if len(data) > 2 * size else [data]
    return {codec: _cost(codec, pieces) for codec in codecs}


def _cost(codec: FrameCodec, pieces: Sequence[bytes]) -> int:
    """Bytes of payload that the pieces take, each on its own."""
    return sum(
        len(payload)
        for piece in pieces
        for payload in codec.sized(len(piece)).encode_frame(piece, 1)
    )


def looks_like_text(data: bytes) -> bool:
    """True if next to no byte is a control character, and those above 127 are few or UTF-8."""
    if len(data) - len(data.translate(None, _CONTROLS)) > len(data) // 1000:
        return False
    high = len(data.translate(None, _LOW))
    return high <= len(data) // 4 or len(data.decode("utf-8", "ignore").encode()) > 0.99 * len(data)


def _samples(data: bytes, count: int, size: int) -> Iterator[bytes]:
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


def decode_all(tasks: Iterable[FrameTask], codecs: Codecs) -> Iterator[bytes]:
    """Decode frames, as many at once as the codecs want, in order. An error comes after what
    precedes it."""
    return ordered_map(
        decode_frame,
        tasks,
        codecs.frames_at_once,
        budget=codecs.memory_at_once,
        cost=lambda task: task.memory,
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
    waits, so it can be interrupted, unless the interpreter ends; work that is abandoned is not
    waited for, and soon ends.
    """
    pool = FramePool(threads)
    waiting: deque[tuple[FrameJob[Result], int]] = deque()
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
                job, paid = waiting.popleft()
                result = job.result()
                spent -= paid
                yield result
            waiting.append((pool.submit(work, item), price))
            spent += price
            del item
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.abandon()
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
