"""Where the frames of a seekable .lmz file lie, without decoding any of them.

Reads the indexes from the end of the file, stream by stream; where a stream has none, it walks
over the frame heads. Both ways give the same table.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from lmzip.container import (
    FOOTER_MAGIC,
    FOOTER_SIZE,
    FRAME_MARK,
    INDEX_MARK,
    MAX_FRAME_BODY,
    MAX_HEADER_RECORD,
    MAX_INDEX_BODY,
    MIN_FRAME_RECORD,
    FrameHeader,
    Index,
    Parser,
    StreamHeader,
    Trailer,
    record_size,
)
from lmzip.errors import CorruptError, LmzipError, TruncatedError

HEAD_SIZE = 512  # most heads fit


@dataclass(slots=True)
class StreamEntry:
    """One stream of a file. Offsets count from the beginning of the file."""

    header: StreamHeader
    offset: int
    size: int  # with header and trailer
    first_frame: int
    frames: int
    raw_size: int
    indexed: bool


@dataclass(slots=True)
class SeekTable:
    """All frames of all streams: frame i is file bytes starts[i]..starts[i] + sizes[i]."""

    streams: list[StreamEntry] = field(default_factory=list)
    starts: "array[int]" = field(default_factory=lambda: array("Q"))
    sizes: "array[int]" = field(default_factory=lambda: array("Q"))
    raw_starts: "array[int]" = field(default_factory=lambda: array("Q"))  # within the whole output
    raw_size: int = 0

    def __len__(self) -> int:
        return len(self.starts)

    def frame_at(self, raw_offset: int) -> int:
        """The frame that holds a raw byte; len(self) behind the end."""
        if raw_offset >= self.raw_size:
            return len(self)
        return bisect_right(self.raw_starts, raw_offset) - 1

    def stream_of(self, frame: int) -> StreamEntry:
        at = bisect_right(self.streams, frame, key=lambda stream: stream.first_frame) - 1
        return self.streams[at]

    def read_head(self, file: BinaryIO, frame: int) -> FrameHeader:
        """Read the head of a frame and compare it with the table. CorruptError if they differ."""
        head = _read_frame_head(file, self.starts[frame])
        position = self.raw_starts[frame] - self.raw_starts[self.stream_of(frame).first_frame]
        end = self.raw_starts[frame + 1] if frame + 1 < len(self) else self.raw_size
        if (head.position, head.head_size + head.payload_size, head.raw_size) != (
            position,
            self.sizes[frame],
            end - self.raw_starts[frame],
        ):
            raise CorruptError(f"frame {frame} is not what the index says of it")
        return head

    def add(
        self, header: StreamHeader, offset: int, size: int, index: Index, indexed: bool
    ) -> None:
        first = len(self)
        at = offset + index.header_size
        raw_start = self.raw_size
        for record_bytes, raw_size in index.entries:
            self.starts.append(at)
            self.sizes.append(record_bytes)
            self.raw_starts.append(self.raw_size)
            at += record_bytes
            self.raw_size += raw_size
        self.streams.append(
            StreamEntry(
                header,
                offset,
                size,
                first,
                len(index.entries),
                self.raw_size - raw_start,
                indexed,
            )
        )


Found = tuple[StreamHeader, int, int, Index, bool]  # header, offset, size, index, indexed


def read_seek_table(file: BinaryIO) -> SeekTable:
    """Build the table of a whole seekable file. Raises every error that reading it may raise."""
    end = file.seek(0, 2)
    tail: list[Found] = []
    while end > 0:
        found = _stream_before(file, end)
        if found is None:
            break
        tail.append(found)
        end = found[1]
    table = SeekTable()
    for found in _walk(file, end) if end or not tail else ():
        table.add(*found)
    for found in reversed(tail):
        table.add(*found)
    return table


def _stream_before(file: BinaryIO, end: int) -> Found | None:
    """The stream that ends at `end`, if it has a sound index; damage shows in the walk instead."""
    if end < FOOTER_SIZE:
        return None
    footer = _read_at(file, end - FOOTER_SIZE, FOOTER_SIZE)
    size = int.from_bytes(footer[:4], "little")
    if footer[4:] != FOOTER_MAGIC or not FOOTER_SIZE < size <= min(end, MAX_INDEX_BODY + 32):
        return None
    record = _read_at(file, end - size, size)
    try:
        if (
            record[0] != INDEX_MARK
            or record_size(record[:5], 1, MAX_INDEX_BODY, 4 + FOOTER_SIZE, "index") != size
        ):
            return None
        index = Index.unpack(record, most_frames=end // MIN_FRAME_RECORD)
        offset = end - size - index.stream_size
        if offset < 0:
            return None
        header, header_size = _read_stream_header(file, offset)
    except LmzipError:
        return None
    if header_size != index.header_size:
        return None
    return header, offset, end - offset, index, True


def _walk(file: BinaryIO, end: int) -> Iterator[Found]:
    """Go over the heads of all records up to `end`, without reading payloads."""
    parser = Parser()
    header, offset, header_size = StreamHeader(), 0, 0
    entries: list[tuple[int, int]] = []
    at = 0  # of the next byte to feed
    while not parser.finished or at < end:
        record = parser.next_record()
        if record is None:
            piece = _read_at(file, at, min(HEAD_SIZE, end - at))
            if not piece:
                parser.end()
                break
            parser.feed(piece)
            at += len(piece)
        elif isinstance(record, StreamHeader):
            header, entries, header_size = record, [], parser.consumed - offset
        elif isinstance(record, FrameHeader):
            at = parser.consumed + record.payload_size
            if at > end:
                raise TruncatedError(
                    f"the input ends inside the frame at raw byte {record.position} of a stream"
                )
            parser.skip_payload()
            entries.append((record.head_size + record.payload_size, record.raw_size))
        elif isinstance(record, Trailer):
            index = Index(header_size, tuple(entries))
            yield header, offset, parser.consumed - offset, index, record.index is not None
            offset = parser.consumed


def _read_stream_header(file: BinaryIO, offset: int) -> tuple[StreamHeader, int]:
    parser = Parser()
    parser.feed(_read_at(file, offset, MAX_HEADER_RECORD))
    header = parser.next_record()
    if not isinstance(header, StreamHeader):
        raise TruncatedError("the input ends inside a stream header")
    return header, parser.consumed


def _read_frame_head(file: BinaryIO, offset: int) -> FrameHeader:
    head = _read_at(file, offset, HEAD_SIZE)
    if head[:1] != bytes([FRAME_MARK]):
        raise CorruptError(f"found {head[:1]!r} where a frame begins")
    size = record_size(head[:4], 1, MAX_FRAME_BODY, 4, "frame header")
    if size is not None and size > len(head):
        head = _read_at(file, offset, size)
    if size is None or len(head) < size:
        raise TruncatedError("the input ends inside a frame header")
    return FrameHeader.unpack(head[:size])


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return bytes(file.read(size))
