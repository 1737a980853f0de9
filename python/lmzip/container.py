"""The .lmz container: records to bytes and back. Layout: docs/format.md. No other file knows it.

Nothing here reads files, decodes payloads or knows a model. `Parser` is fed bytes in pieces of
any size and yields records; it is the only parser, for pipes, files and bytes in memory alike.
Each limit is checked before the bytes that it bounds are waited for, so the memory that a parser
holds is at most one record and one payload.
"""

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from lmzip.errors import CorruptError, NotLmzError, TruncatedError, UnsupportedError

MAGIC = b"\x89LMZ\r\n\x1a\n"  # high bit, line ends, end-of-file of old systems: mangling shows
VERSION = 1

FRAME_MARK = 0x46  # "F"
END_MARK = 0x45  # "E"
INDEX_MARK = 0x49  # "I"
FOOTER_MAGIC = b"LMZI"
FOOTER_SIZE = 8

FLAG_MODEL = 0x01
FLAG_NAME = 0x02
FLAG_MTIME = 0x04
FLAG_PREDICTOR = 0x08
KNOWN_FLAGS = FLAG_MODEL | FLAG_NAME | FLAG_MTIME | FLAG_PREDICTOR

METHOD_STORED = 0
METHOD_NETWORK = 1
METHOD_MIXER = 2
METHOD_NETWORK_MIXER = 3
METHOD_ORDER0 = 4
METHOD_TOKENS = 5
METHOD_FLOAT = 6
METHOD_NAMES = {
    METHOD_STORED: "stored",
    METHOD_NETWORK: "network",
    METHOD_MIXER: "mixer",
    METHOD_NETWORK_MIXER: "network+mixer",
    METHOD_ORDER0: "order0",
    METHOD_TOKENS: "tokens",
    METHOD_FLOAT: "float",
}
MODEL_METHODS = frozenset({METHOD_NETWORK, METHOD_NETWORK_MIXER, METHOD_TOKENS})
TABLE_METHODS = frozenset({METHOD_MIXER, METHOD_NETWORK_MIXER})
PROFILE_METHODS = TABLE_METHODS | {METHOD_TOKENS}

MODEL_ID_SIZE = 8  # bytes of the model file's SHA-256 that the header carries
MAX_LABEL_SIZE = 64
MAX_NAME_SIZE = 255
MAX_PREDICTOR_SIZE = 200
MAX_ENVIRONMENT_SIZE = 255
MAX_HEADER_BODY = 1023
MAX_HEADER_RECORD = len(MAGIC) + 2 + MAX_HEADER_BODY + 4
MAX_FRAME_BODY = 1 << 15
MAX_FRAME_SIZE = 64 << 20  # raw bytes of one frame
MAX_LANES = 4096
MIN_TABLE_BITS = 16
MAX_TABLE_BITS = 30
MAX_PROFILE = 7
MAX_INDEX_BODY = 4 << 20
MAX_TOTAL = (1 << 63) - 1
MIN_FRAME_RECORD = 18  # a frame record cannot be shorter; bounds the count of frames in an index

_MAX_VARINT_SIZE = 9  # 63 bits


def pack_varint(value: int) -> bytes:
    """Return `value` (0..2^63-1) as little-endian groups of 7 bits, the shortest way."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return (value, offset behind it). TruncatedError if `data` ends inside the number."""
    value = 0
    for count in range(_MAX_VARINT_SIZE):
        if at + count >= len(data):
            raise TruncatedError(f"the input ends inside a number, at byte {at + count}")
        byte = data[at + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            if byte == 0 and count > 0:
                raise CorruptError("a number is not written in its shortest form")
            return value, at + count + 1
    raise CorruptError("a number is longer than 63 bits")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """What a stream says about its model: enough to find it, or to name what is missing."""

    id: bytes  # first MODEL_ID_SIZE bytes of the SHA-256 of the model file
    label: str  # "name" or "name@release"; for messages only, never a path

    def __str__(self) -> str:
        name, _, release = self.label.rpartition("@")
        shown = f"{printable(name or release)!r} (id {self.id.hex()})"
        return f"{shown}, shipped with lmzip-codec {printable(release)}" if name else shown


@dataclass(frozen=True, slots=True)
class PredictorRef:
    """The float predictor of a stream and the environment it is bound to: texts, to be compared
    and shown; never the name of code to load."""

    label: str
    environment: str

    def __str__(self) -> str:
        return f"{printable(self.label)!r} in the environment {printable(self.environment)!r}"

    def differences(self, here: "PredictorRef") -> str:
        """What is another one here, for messages: the label, the environment or both."""
        if self.label != here.label and self.environment != here.environment:
            return f"{self}; here it is {here}"
        if self.label != here.label:
            return f"{printable(self.label)!r}; here it is {printable(here.label)!r}"
        return (
            f"in the environment {printable(self.environment)!r}; here it is "
            f"{printable(here.environment)!r}"
        )


@dataclass(frozen=True, slots=True)
class StreamHeader:
    """The first record of a stream. `size` counts the bytes of the packed record."""

    model: ModelRef | None = None
    name: str | None = None
    mtime_ns: int | None = None
    predictor: PredictorRef | None = None
    version: int = VERSION

    def pack(self) -> bytes:
        flags, fields = 0, b""
        if self.model is not None:
            flags |= FLAG_MODEL
            fields += self.model.id + _pack_text(self.model.label, MAX_LABEL_SIZE, "model label")
        if self.name is not None:
            flags |= FLAG_NAME
            fields += _pack_text(self.name, MAX_NAME_SIZE, "file name")
        if self.mtime_ns is not None:
            flags |= FLAG_MTIME
            fields += struct.pack("<q", self.mtime_ns)
        if self.predictor is not None:
            flags |= FLAG_PREDICTOR
            fields += _pack_text(self.predictor.label, MAX_PREDICTOR_SIZE, "predictor")
            fields += _pack_text(self.predictor.environment, MAX_ENVIRONMENT_SIZE, "environment")
        body = bytes([self.version, flags]) + fields
        record = MAGIC + pack_varint(len(body)) + body
        return record + struct.pack("<I", zlib.crc32(record))

    @classmethod
    def unpack(cls, record: bytes) -> "StreamHeader":
        """Read a whole record, in the order that lets each failure be named exactly."""
        _check_magic(record)
        size, at = read_varint(record, len(MAGIC))
        _check_crc(record[: at + size], record[at + size :], "stream header")
        # The CRC holds, so what follows is no damage: a newer lmzip has written it.
        body = _Fields(record[at : at + size], "stream header")
        version, flags = body.byte(), body.byte()
        if version != VERSION:
            raise UnsupportedError(
                f"the file has format version {version}; this lmzip reads version {VERSION}: "
                "update lmzip-codec"
            )
        if flags & ~KNOWN_FLAGS:
            raise UnsupportedError(
                f"the stream header sets unknown flags {flags & ~KNOWN_FLAGS:#04x}: "
                "update lmzip-codec"
            )
        model = name = mtime_ns = predictor = None
        if flags & FLAG_MODEL:
            model = ModelRef(body.take(MODEL_ID_SIZE), body.text(MAX_LABEL_SIZE, "model label"))
        if flags & FLAG_NAME:
            name = body.text(MAX_NAME_SIZE, "file name")
            if not is_safe_name(name):
                raise CorruptError(f"the stream header holds an unsafe file name {name!r}")
        if flags & FLAG_MTIME:
            (mtime_ns,) = struct.unpack("<q", body.take(8))
        if flags & FLAG_PREDICTOR:
            predictor = PredictorRef(
                body.text(MAX_PREDICTOR_SIZE, "predictor"),
                body.text(MAX_ENVIRONMENT_SIZE, "environment"),
            )
        body.end()
        return cls(model, name, mtime_ns, predictor, version)


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The head of a frame: everything but the payload.

    `lane_sizes` has one payload size per lane, and is empty for a stored frame. For the methods
    with a mixer, `table_bits` is the base-2 logarithm of the bytes of its tables, and `profile`
    says which set of models it mixes, for tokens what is learned; both are 0 for the others.
    """

    method: int
    position: int  # of the frame's first raw byte within its stream
    raw_size: int
    payload_size: int
    raw_crc: int
    payload_crc: int
    table_bits: int = 0
    profile: int = 0
    lane_sizes: tuple[int, ...] = ()
    head_size: int = 0  # bytes of this record; filled in by unpack

    @property
    def lanes(self) -> int:
        return len(self.lane_sizes)

    @property
    def known(self) -> bool:
        return self.method in METHOD_NAMES

    @property
    def method_name(self) -> str:
        return METHOD_NAMES.get(self.method, f"method {self.method}")

    def pack(self) -> bytes:
        body = bytes([self.method]) + b"".join(
            pack_varint(value) for value in (self.position, self.raw_size, self.payload_size)
        )
        body += struct.pack("<II", self.raw_crc, self.payload_crc)
        if self.method != METHOD_STORED:
            body += bytes([self.profile << 5 | self.table_bits]) + pack_varint(self.lanes)
            body += b"".join(pack_varint(size) for size in self.lane_sizes[:-1])
        record = bytes([FRAME_MARK]) + pack_varint(len(body)) + body
        return record + struct.pack("<I", zlib.crc32(record))

    @classmethod
    def unpack(cls, record: bytes) -> "FrameHeader":
        size, at = read_varint(record, 1)
        _check_crc(record[: at + size], record[at + size :], "frame header")
        body = _Fields(record[at : at + size], "frame header")
        method = body.byte()
        position, raw_size, payload_size = body.varint(), body.varint(), body.varint()
        raw_crc, payload_crc = struct.unpack("<II", body.take(8))
        _check_frame_sizes(method, position, raw_size, payload_size)
        table_bits = profile = 0
        lane_sizes: tuple[int, ...] = ()
        if method in METHOD_NAMES and method != METHOD_STORED:
            table_bits, profile = _read_mixer_fields(body, method)
            lane_sizes = _read_lanes(body, raw_size, payload_size)
        if method in METHOD_NAMES:
            body.end()
        return cls(
            method,
            position,
            raw_size,
            payload_size,
            raw_crc,
            payload_crc,
            table_bits,
            profile,
            lane_sizes,
            len(record),
        )


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last record of a stream: the raw size of it all, and the index if it has one."""

    raw_size: int
    index: "Index | None"
    size: int  # bytes of the record


@dataclass(frozen=True, slots=True)
class Index:
    """Where the frames of a stream lie: sizes only, so entries cannot overlap or leave holes."""

    header_size: int
    entries: tuple[tuple[int, int], ...]  # (bytes of the record and payload, raw bytes)

    def pack(self) -> bytes:
        numbers = [self.header_size, len(self.entries)]
        numbers += [value for entry in self.entries for value in entry]
        body = b"".join(map(pack_varint, numbers))
        record = bytes([INDEX_MARK]) + pack_varint(len(body)) + body
        record += struct.pack("<I", zlib.crc32(record))
        return record + footer(len(record) + FOOTER_SIZE)

    @classmethod
    def unpack(cls, record: bytes, most_frames: int) -> "Index":
        """Read a whole record. `most_frames` is what the file has room for: it bounds memory."""
        size, at = read_varint(record, 1)
        end = at + size
        _check_crc(record[:end], record[end : end + 4], "index")
        if record[end + 4 :] != footer(len(record)):
            raise CorruptError("the footer behind the index is damaged")
        body = _Fields(record[at:end], "index")
        header_size, count = body.varint(), body.varint()
        if count > min(size // 2, most_frames):
            raise CorruptError(f"an index of {size} bytes announces {count} frames")
        entries = tuple((body.varint(), body.varint()) for _ in range(count))
        body.end()
        for record_size, raw_size in entries:
            if record_size < MIN_FRAME_RECORD or not 0 < raw_size <= MAX_FRAME_SIZE:
                raise CorruptError(f"the index lists a frame of {record_size} -> {raw_size} bytes")
        return cls(header_size, entries)

    @property
    def stream_size(self) -> int:
        """Bytes from the stream's magic to the index."""
        return self.header_size + sum(size for size, _ in self.entries)

    @property
    def raw_size(self) -> int:
        return sum(raw_size for _, raw_size in self.entries)


def pack_trailer(header_size: int, entries: Iterable[tuple[int, int]]) -> bytes:
    """Return the last record of a stream: an end mark for up to one frame, else an index."""
    index = Index(header_size, tuple(entries))
    if len(index.entries) > 1:
        record = index.pack()
        if len(record) <= MAX_INDEX_BODY:  # a longer stream is read without an index
            return record
    return bytes([END_MARK]) + pack_varint(index.raw_size)


Record = StreamHeader | FrameHeader | bytes | Trailer


class Parser:
    """Bytes in pieces of any size -> StreamHeader (FrameHeader payload)* Trailer, repeated.

    `next_record()` returns None when it needs more bytes. Structure is checked here: order,
    positions, sums, the index against the frames that were seen. Payloads are not: `bytes`
    records are handed out as they are. With `one_stream`, the parser stops after the first
    trailer and leaves the rest in `rest()`. A reader that can seek may skip payloads.
    """

    def __init__(self, *, one_stream: bool = False) -> None:
        self._buffer = bytearray()
        self._start = 0  # bytes of _buffer that have been consumed
        self._one_stream = one_stream
        self._streams = 0
        self._in_stream = False
        self._frame: FrameHeader | None = None  # whose payload is due
        self._header_size = 0
        self._entries: list[tuple[int, int]] = []
        self._position = 0
        self.consumed = 0  # bytes of the input behind which the next record begins

    @property
    def finished(self) -> bool:
        """True if the input may end here: after a whole stream, with nothing left over."""
        return self._streams > 0 and not self._in_stream and not self._available()

    @property
    def done(self) -> bool:
        """True if `one_stream` was asked for and the stream has ended."""
        return self._one_stream and self._streams > 0 and not self._in_stream

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def rest(self) -> bytes:
        return bytes(memoryview(self._buffer)[self._start :])

    def next_record(self) -> Record | None:
        """Return the next record, or None if the bytes fed so far do not hold all of it."""
        if self.done:
            return None
        if self._frame is not None:
            return self._next_payload(self._frame)
        if not self._available():
            return None
        if not self._in_stream:
            return self._next_stream_header()
        mark = self._buffer[self._start]
        if mark == FRAME_MARK:
            return self._next_frame_header()
        if mark in (END_MARK, INDEX_MARK):
            return self._next_trailer()
        raise CorruptError(f"found byte {mark:#04x} where a frame or the end of the stream begins")

    def skip_payload(self) -> None:
        """Pass over the payload that is due; the next bytes fed are those at `consumed`."""
        if self._frame is None:
            raise ValueError("no payload is due")
        self.consumed += self._frame.payload_size
        self._count(self._frame)
        self._buffer.clear()
        self._start = 0

    def end(self) -> None:
        """Say that no more bytes will come. TruncatedError if that cannot be."""
        if self.finished or self.done:
            return
        if not self._streams and not self._in_stream and not self._available():
            raise TruncatedError("the input is empty: an .lmz file has at least 17 bytes")
        where = f"after {self._position} raw bytes of the stream"
        if self._frame is not None:
            where += f": a payload needs {self._frame.payload_size} bytes, {self._available()} came"
        raise TruncatedError(f"the input ends inside a stream, {where}")

    def _available(self) -> int:
        return len(self._buffer) - self._start

    def _take(self, size: int) -> bytes:
        end = self._start + size
        taken = bytes(memoryview(self._buffer)[self._start : end])
        self._start = end
        self.consumed += size
        return taken

    def _next_stream_header(self) -> StreamHeader | None:
        head = bytes(self._buffer[self._start : self._start + len(MAGIC) + 2])
        if self._streams and head[: len(MAGIC)] != MAGIC[: len(head)]:
            raise CorruptError(
                f"the stream is followed by {head[: len(MAGIC)]!r}, which begins no other stream"
            )
        _check_magic(head)
        record = self._whole_record(head, len(MAGIC), MAX_HEADER_BODY, 4, "stream header")
        if record is None:
            return None
        header = StreamHeader.unpack(record)
        self._in_stream, self._header_size = True, len(record)
        self._entries, self._position = [], 0
        return header

    def _next_frame_header(self) -> FrameHeader | None:
        head = bytes(self._buffer[self._start : self._start + 4])
        record = self._whole_record(head, 1, MAX_FRAME_BODY, 4, "frame header")
        if record is None:
            return None
        frame = FrameHeader.unpack(record)
        if frame.position != self._position:
            raise CorruptError(
                f"a frame for position {frame.position} follows at position {self._position}: "
                "frames are missing, repeated or out of order"
            )
        self._frame = frame
        return frame

    def _next_payload(self, frame: FrameHeader) -> bytes | None:
        if self._available() < frame.payload_size:
            return None
        self._count(frame)
        return self._take(frame.payload_size)

    def _count(self, frame: FrameHeader) -> None:
        self._frame = None
        self._entries.append((frame.head_size + frame.payload_size, frame.raw_size))
        self._position += frame.raw_size

    def _next_trailer(self) -> Trailer | None:
        head = bytes(self._buffer[self._start : self._start + 1 + _MAX_VARINT_SIZE])
        if head[0] == END_MARK:
            try:
                _, size = read_varint(head, 1)
            except TruncatedError:
                return None
            record: bytes | None = self._take(size)
        else:
            tail = 4 + FOOTER_SIZE
            record = self._whole_record(head[:5], 1, MAX_INDEX_BODY, tail, "index")
        if record is None:
            return None
        trailer = self._check_trailer(record)
        self._in_stream, self._entries = False, []
        self._streams += 1
        return trailer

    def _check_trailer(self, record: bytes) -> Trailer:
        """Compare with what was seen; an index is compared as bytes and never parsed."""
        if record[0] == END_MARK:
            raw_size, _ = read_varint(record, 1)
            if raw_size != self._position:
                raise CorruptError(
                    f"the stream announces {raw_size} raw bytes, its frames hold "
                    f"{self._position}: frames are missing or repeated"
                )
            return Trailer(raw_size, None, len(record))
        seen = Index(self._header_size, tuple(self._entries))
        if record != seen.pack():
            raise CorruptError("the index does not agree with the frames of the stream")
        return Trailer(self._position, seen, len(record))

    def _whole_record(
        self, head: bytes, prefix: int, limit: int, tail: int, what: str
    ) -> bytes | None:
        """Take prefix, varint size, body of that size and `tail` bytes, if they are all there."""
        size = record_size(head, prefix, limit, tail, what)
        if size is None or self._available() < size:
            return None
        return self._take(size)


def footer(size: int) -> bytes:
    """What ends an index record of so many bytes, itself included."""
    return struct.pack("<I", size) + FOOTER_MAGIC


def record_size(head: bytes, prefix: int, limit: int, tail: int, what: str) -> int | None:
    """Return the bytes of the record that begins with `head`, or None if `head` is too short."""
    try:
        body_size, at = read_varint(head, prefix)
    except TruncatedError:
        if len(head) > prefix and head[-1] >= 0x80 and 1 << 7 * (len(head) - prefix) > limit:
            raise CorruptError(f"the size of the {what} passes {limit} bytes") from None
        return None
    if body_size > limit:
        raise CorruptError(f"the {what} announces {body_size} bytes; the limit is {limit}")
    return at + body_size + tail


def is_safe_name(name: str) -> bool:
    """True if `name` is a plain file name: no folder, no control character, not '.' or '..'."""
    if name in ("", ".", "..") or not is_plain(name) or "/" in name or "\\" in name:
        return False
    return len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_SIZE


def is_time(mtime_ns: int) -> bool:
    """Whether a header can hold this time: 64 bits, signed."""
    return -(1 << 63) <= mtime_ns < 1 << 63


def is_plain(text: str) -> bool:
    """Whether a record can hold this text: no control characters, no halves of surrogate pairs."""
    return all(c >= " " and not ("\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff") for c in text)


def printable(text: str) -> str:
    """Escape what a terminal might act upon."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)


class _Fields:
    """Bounded reading of a record's body, whose CRC has been checked."""

    def __init__(self, body: bytes, what: str) -> None:
        self._body, self._at, self._what = body, 0, what

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._body):
            raise CorruptError(f"the {self._what} is too short for its fields")
        taken, self._at = self._body[self._at : end], end
        return taken

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        try:
            value, self._at = read_varint(self._body, self._at)
        except TruncatedError:
            raise CorruptError(f"the {self._what} is too short for its fields") from None
        return value

    def text(self, limit: int, what: str) -> str:
        raw = self.take(self.byte())
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise CorruptError(f"the {what} is not UTF-8: {raw!r}") from None
        if not text or len(raw) > limit or not is_plain(text):
            raise CorruptError(f"the {what} is empty, too long or not plain text: {text!r}")
        return text

    def end(self) -> None:
        if self._at != len(self._body):
            raise CorruptError(f"the {self._what} has {len(self._body) - self._at} bytes too many")


def _pack_text(text: str, limit: int, what: str) -> bytes:
    raw = text.encode("utf-8")
    if not 0 < len(raw) <= limit or not is_plain(text):
        raise ValueError(f"a {what} has 1 to {limit} bytes of plain text, got {text!r}")
    return bytes([len(raw)]) + raw


def _check_magic(head: bytes) -> None:
    """NotLmzError unless `head`, up to its length, starts as an .lmz file does."""
    if head[: len(MAGIC)] == MAGIC[: len(head)]:
        return
    hint = ""
    if head[1:4] == MAGIC[1:4]:
        hint = "; it may have been transferred as text: transfer it again in binary mode"
    raise NotLmzError(f"not an .lmz file: it starts with {head[: len(MAGIC)]!r}{hint}")


def _check_crc(covered: bytes, stored: bytes, what: str) -> None:
    (expected,) = struct.unpack("<I", stored)
    found = zlib.crc32(covered)
    if found != expected:
        raise CorruptError(f"the {what} is damaged: CRC-32 {found:08x}, expected {expected:08x}")


def _check_frame_sizes(method: int, position: int, raw_size: int, payload_size: int) -> None:
    if not 0 < raw_size <= MAX_FRAME_SIZE:
        raise CorruptError(f"a frame announces {raw_size} raw bytes; 1..{MAX_FRAME_SIZE} may be")
    if position + raw_size > MAX_TOTAL:
        raise CorruptError(f"a frame announces the position {position}, behind any possible end")
    if payload_size > raw_size or (method == METHOD_STORED and payload_size != raw_size):
        raise CorruptError(f"a frame of {raw_size} bytes announces a payload of {payload_size}")


def _read_mixer_fields(body: _Fields, method: int) -> tuple[int, int]:
    packed = body.byte()
    table_bits, profile = packed & 0x1F, packed >> 5
    if (table_bits and method not in TABLE_METHODS) or (profile and method not in PROFILE_METHODS):
        raise CorruptError(f"a frame without a mixer has the mixer byte {packed:#04x}")
    if method in TABLE_METHODS and not MIN_TABLE_BITS <= table_bits <= MAX_TABLE_BITS:
        raise CorruptError(f"a frame asks for tables of 2^{table_bits} bytes")
    return table_bits, profile


def _read_lanes(body: _Fields, raw_size: int, payload_size: int) -> tuple[int, ...]:
    lanes = body.varint()
    if not 1 <= lanes <= MAX_LANES:
        raise CorruptError(f"a frame announces {lanes} lanes; 1..{MAX_LANES} may be")
    sizes = [body.varint() for _ in range(lanes - 1)]
    last = payload_size - sum(sizes)
    if last < 0:
        raise CorruptError(f"the lanes of a frame need {sum(sizes)} bytes of {payload_size}")
    stride = -(-raw_size // lanes)
    for lane, size in enumerate([*sizes, last]):
        if size and lane * stride >= raw_size:
            raise CorruptError(f"lane {lane} of a frame holds no byte but {size} bytes of payload")
    return (*sizes, last)
