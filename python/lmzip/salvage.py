"""What can still be had of a damaged .lmz file: every frame whose checksums hold.

Frames say where they belong, so the ranges that are lost are known exactly, except for the end
of a stream that has lost its trailer. The work is bounded by the size of the file: bytes that look
like many long records, one within the other, end the search for more.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

from lmzip.codec import Codecs
from lmzip.container import (
    END_MARK,
    FOOTER_SIZE,
    FRAME_MARK,
    INDEX_MARK,
    MAGIC,
    MAX_FRAME_BODY,
    MAX_HEADER_BODY,
    MAX_INDEX_BODY,
    MIN_FRAME_RECORD,
    FrameHeader,
    Index,
    StreamHeader,
    footer,
    read_varint,
    record_size,
)
from lmzip.errors import CorruptError, LmzipError, TruncatedError
from lmzip.frames import FrameTask, codec_of, decode_frame, ordered_map

# Bytes put through checksums, for each byte of the file.  Random ones take some eight: a 256th is
# an F, behind which a fourth announces a record of 8 KiB.
MOST_CHECKED = 256
_MARKS = re.compile(rb"[" + bytes([FRAME_MARK, END_MARK, INDEX_MARK]) + rb"]|" + re.escape(MAGIC))


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the raw bytes, from `offset` on: `data`, or lost for the reason `lost`.

    `size` is None where nobody knows how much is lost.
    """

    offset: int
    size: int | None
    data: bytes = b""
    lost: str = ""


@dataclass(frozen=True, slots=True)
class _End:
    """The trailer of a stream, as far as salvage needs it."""

    raw_size: int


def salvage(view: bytes | memoryview | mmap, codecs: Codecs) -> Iterator[Piece]:
    """Yield all pieces of a damaged file, in order: those that decode and those that are lost."""
    return ordered_map(
        _decode,
        _Scan(view, codecs).items(),
        codecs.frames_at_once,
        budget=codecs.memory_at_once,
        cost=lambda item: 0 if isinstance(item, Piece) else item[1].memory,
    )


def _decode(item: "Piece | tuple[int, FrameTask]") -> Piece:
    if isinstance(item, Piece):
        return item
    offset, task = item
    try:
        return Piece(offset, task.header.raw_size, decode_frame(task))
    except LmzipError as error:
        return Piece(offset, task.header.raw_size, lost=str(error))


class _Scan:
    """Goes from record to record; after damage, to the next place where a checksum holds."""

    def __init__(self, view: bytes | memoryview | mmap, codecs: Codecs) -> None:
        self._view, self._codecs = view, codecs
        self._stream = StreamHeader()
        self._base = 0  # raw bytes of the streams before
        self._expected = 0  # position of the next frame in its stream
        self._open = False  # a stream has begun and its trailer was not seen
        self._reason = "the file does not begin with a stream"
        self._found = False  # any record at all
        self._checked = 0  # bytes put through checksums
        self._gave_up = False

    def items(self) -> Iterator[Piece | tuple[int, FrameTask]]:
        at = 0
        while at < len(self._view):
            try:
                record, size = self._record_at(at)
            except LmzipError as error:
                self._reason = str(error)
                at = self._next_record(at + 1)
                continue
            self._found = True
            if isinstance(record, StreamHeader):
                yield from self._end_stream(None)
                self._stream, self._open = record, True
                at += size
            elif isinstance(record, FrameHeader):
                yield from self._frame(at, record)
                at = self._behind(at, record)
            else:
                yield from self._end_stream(record.raw_size)
                at += size
        yield from self._end_stream(None)
        if self._gave_up or not self._found:
            yield Piece(self._base, None, lost=self._reason)

    def _frame(self, at: int, head: FrameHeader) -> Iterator[Piece | tuple[int, FrameTask]]:
        if head.position < self._expected:  # of a stream whose header is lost
            yield from self._end_stream(None)
        self._open = True
        yield from self._gap(head.position)
        offset = self._base + head.position
        self._expected = head.position + head.raw_size
        start = at + head.head_size
        payload = bytes(self._view[start : start + head.payload_size])
        self._checked += len(payload)
        try:
            if len(payload) < head.payload_size:
                raise TruncatedError("the input ends inside the frame")
            if zlib.crc32(payload) != head.payload_crc:
                raise CorruptError("the payload of the frame is damaged")
            codec = codec_of(head, self._stream, self._codecs)
        except LmzipError as error:
            yield Piece(offset, head.raw_size, lost=str(error))
        else:
            yield offset, FrameTask(head, payload, codec)

    def _behind(self, at: int, head: FrameHeader) -> int:
        """Where to go on after a frame: behind it, or inside if bytes of it are missing."""
        end = at + head.head_size + head.payload_size
        try:
            if end < len(self._view):
                self._record_at(end)
        except LmzipError as error:
            self._reason = str(error)
            return self._next_record(at + head.head_size)
        return end

    def _gap(self, position: int) -> Iterator[Piece]:
        if position > self._expected:
            size = position - self._expected
            yield Piece(self._base + self._expected, size, lost=self._reason)

    def _end_stream(self, raw_size: int | None) -> Iterator[Piece]:
        if self._open and raw_size is None:
            yield Piece(self._base + self._expected, None, lost="the end of a stream is missing")
        if raw_size is not None:
            yield from self._gap(raw_size)
        self._base += max(raw_size or 0, self._expected)
        self._expected, self._open = 0, False

    def _next_record(self, at: int) -> int:
        for match in _MARKS.finditer(self._view, at):
            if self._checked > MOST_CHECKED * len(self._view):
                self._gave_up = True
                self._reason = (
                    f"too much looks like records and is none; searched up to byte {match.start()}"
                )
                break
            try:
                self._record_at(match.start())
            except LmzipError:
                continue
            return match.start()
        return len(self._view)

    def _record_at(self, at: int) -> tuple[StreamHeader | FrameHeader | _End, int]:
        """The record at a place, if its checksum holds, and its size."""
        mark = self._view[at]
        if mark == FRAME_MARK:
            record = self._whole(at, 1, MAX_FRAME_BODY, 4, "frame header")
            return FrameHeader.unpack(record), len(record)
        if mark == MAGIC[0]:
            record = self._whole(at, len(MAGIC), MAX_HEADER_BODY, 4, "stream header")
            return StreamHeader.unpack(record), len(record)
        if mark == INDEX_MARK:
            record = self._whole(at, 1, MAX_INDEX_BODY, 4 + FOOTER_SIZE, "index")
            index = Index.unpack(record, len(self._view) // MIN_FRAME_RECORD)
            return _End(index.raw_size), len(record)
        if mark == END_MARK:
            raw_size, size = read_varint(bytes(self._view[at : at + 10]), 1)
            after = bytes(self._view[at + size : at + size + len(MAGIC)])
            if raw_size >= self._expected and after in (b"", MAGIC):
                return _End(raw_size), size
        raise CorruptError(f"found byte {mark:#04x} where a record begins")

    def _whole(self, at: int, prefix: int, limit: int, tail: int, what: str) -> bytes:
        head = bytes(self._view[at : at + prefix + 4])
        if prefix == len(MAGIC) and head[:prefix] != MAGIC:
            raise CorruptError("found no stream header")
        size = record_size(head, prefix, limit, tail, what)
        if size is None or at + size > len(self._view):
            raise TruncatedError(f"the input ends inside the {what}")
        end = at + size
        if tail > FOOTER_SIZE and self._view[end - FOOTER_SIZE : end] != footer(size):
            raise CorruptError("the footer behind the index is damaged")
        self._checked += size
        return bytes(self._view[at:end])
