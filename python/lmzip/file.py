"""LmzFile and open(): .lmz files as Python files, with seeking.

Reading goes frame by frame and ahead on several threads; a seek decodes only the frame that it
leads to. Writing appends one stream; mode "a" adds a stream to those that are there.
"""

import errno
import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, overload

from lmzip.api import LmzCompressor, ModelName, as_bytes, open_codecs
from lmzip.calls import Failure, Turns
from lmzip.codec import DEFAULT_MEMORY_LIMIT, Codecs
from lmzip.errors import TruncatedError
from lmzip.frames import READ_SIZE, FrameTask, codec_of, decode_all, decode_frame, read_tasks
from lmzip.seek_table import SeekTable, read_seek_table

if TYPE_CHECKING:
    from lmzip.api import PredictorName

FileName = str | bytes | os.PathLike[str] | os.PathLike[bytes]


Binary = Literal["r", "rb", "w", "wb", "x", "xb", "a", "ab"]
Text = Literal["rt", "wt", "xt", "at"]


@overload
def open(
    filename: FileName | BinaryIO,
    mode: Binary = "rb",
    *,
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    **options: Any,
) -> "LmzFile": ...
@overload
def open(
    filename: FileName | BinaryIO,
    mode: Text,
    *,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    **options: Any,
) -> io.TextIOWrapper: ...
@overload
def open(
    filename: FileName | BinaryIO,
    mode: str,
    *,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    **options: Any,
) -> "LmzFile | io.TextIOWrapper": ...
def open(
    filename: FileName | BinaryIO,
    mode: str = "rb",
    *,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    **options: Any,
) -> "LmzFile | io.TextIOWrapper":
    """Open an .lmz file: "r", "w", "x" or "a", with "b" (the default) or "t" for text.

    Further keyword arguments are those of LmzFile. Raises ValueError for an impossible mode.
    """
    text = "t" in mode
    if text and "b" in mode:
        raise ValueError(f"mode {mode!r} is text and binary at once")
    if not text and (encoding, errors, newline) != (None, None, None):
        raise ValueError("encoding, errors and newline are for text modes")
    file = LmzFile(filename, mode.replace("t", ""), **options)
    if not text:
        return file
    return io.TextIOWrapper(file, io.text_encoding(encoding), errors, newline)


class LmzFile(io.BufferedIOBase):
    """An .lmz file, or a binary file object that holds one, read or written as raw bytes.

    For reading: `model`, `memory_limit`, `threads`, `device`, `predictor` and `force` as in
    decompress(). For writing: the arguments of LmzCompressor. Reading raises what decompress()
    raises. A file object passed in is left open by close(); it can be sought in if it was at its
    beginning. Several threads may write: each write() is whole in the file.
    """

    def __init__(self, filename: FileName | BinaryIO, mode: str = "r", **options: Any) -> None:
        self._turns = Turns()  # what is compressed is written in the same order
        self._owned = False
        self._reader: io.BufferedReader | None = None
        self._compressor: LmzCompressor | None = None
        self._failure = Failure("an earlier write failed: what follows would have a hole before it")
        self._position = 0
        kind = mode.replace("b", "")
        if kind not in ("r", "w", "x", "a") or mode.count("b") > 1:
            raise ValueError(f"mode must be r, w, x or a, got {mode!r}")
        self.mode = "rb" if kind == "r" else "wb"
        # Options are checked before a file is made or changed.
        coding = _Decoding(**options) if kind == "r" else LmzCompressor(**options)
        if isinstance(filename, str | bytes | os.PathLike):
            self._file = _open_binary(filename, kind)
            self._owned = True
        else:
            self._file = filename
        if isinstance(coding, LmzCompressor):
            self._compressor = coding
        else:
            self._reader = io.BufferedReader(_FrameReader(self._file, coding), READ_SIZE)

    @property
    def name(self) -> Any:
        return self._file.name

    def close(self) -> None:
        """End the stream if writing. Closes the file unless it was passed in open."""
        with self._turns:
            if not self.closed:
                self._close()

    def _close(self) -> None:
        try:
            if self._reader is not None:
                self._reader.close()
            elif self._compressor is not None:
                self._put(self._compressor.flush)
        finally:
            try:
                if self._owned:
                    self._file.close()
            finally:
                self._compressor = None
                super().close()

    def fileno(self) -> int:
        return self._file.fileno()

    def readable(self) -> bool:
        self._check_not_closed()
        return self._reader is not None

    def writable(self) -> bool:
        self._check_not_closed()
        return self._compressor is not None

    def seekable(self) -> bool:
        self._check_not_closed()
        return self._reader is not None and self._reader.seekable()

    def peek(self, size: int = 1) -> bytes:
        return self._reading().peek(size)

    def read(self, size: int | None = -1) -> bytes:
        return self._reading().read(size)

    def read1(self, size: int = -1) -> bytes:
        return self._reading().read1(READ_SIZE if size < 0 else size)

    def readinto(self, buffer: Any) -> int:
        return self._reading().readinto(buffer)

    def readinto1(self, buffer: Any) -> int:
        return self._reading().readinto1(buffer)

    def readline(self, size: int | None = -1) -> bytes:
        return self._reading().readline(-1 if size is None else size)

    def __next__(self) -> bytes:
        return self._reading().__next__()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._reading().seek(offset, whence)

    def tell(self) -> int:
        self._check_not_closed()
        return self._reader.tell() if self._reader is not None else self._position

    def write(self, data: Any) -> int:
        """Take raw bytes; return how many. Compressed ones follow frame by frame."""
        view = as_bytes(data)
        with self._turns:
            self._check_not_closed()
            compressor = self._compressor
            if compressor is None:
                raise io.UnsupportedOperation("the file is open for reading")
            self._put(lambda: compressor.compress(view))
            self._position += len(view)
        return len(view)

    def _put(self, compress: Callable[[], bytes]) -> None:
        """Write what comes of it.  Where that fails bytes are lost, and nothing may follow them."""
        with self._failure:
            _write_all(self._file, compress())

    def _reading(self) -> io.BufferedReader:
        self._check_not_closed()
        if self._reader is None:
            raise io.UnsupportedOperation("the file is open for writing")
        return self._reader

    def _check_not_closed(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


class _Decoding:
    """The options of reading, checked before a file is opened."""

    def __init__(
        self,
        *,
        model: ModelName | None = None,
        memory_limit: int | None = DEFAULT_MEMORY_LIMIT,
        threads: int = 0,
        device: str = "auto",
        predictor: "PredictorName | None" = None,
        force: bool = False,
    ) -> None:
        self.codecs: Codecs = open_codecs(
            model, device, threads, memory_limit, None, predictor, force
        )

    def run(self, tasks: Iterable[FrameTask]) -> Iterator[bytes]:
        return decode_all(tasks, self.codecs)


class _FrameReader(io.RawIOBase):
    """Raw bytes at any place of a file. It streams until the first seek needs the table."""

    def __init__(self, file: BinaryIO, decoding: _Decoding) -> None:
        self._file, self._decoding = file, decoding
        self._can_seek = file.seekable() and file.tell() == 0
        self._table: SeekTable | None = None
        self._frames = decoding.run(read_tasks(_pieces(file), decoding.codecs))
        # What has ended _frames.
        self._failure = Failure("reading was interrupted: seek to go on, or open the file anew")
        self._chunk = b""  # the frame that holds _position, once read
        self._chunk_start = 0
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._can_seek

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        while self._position >= self._chunk_start + len(self._chunk):
            chunk = self._next_chunk()
            if chunk is None:
                return 0
            self._chunk_start += len(self._chunk)
            self._chunk = chunk
        begin = self._position - self._chunk_start
        piece = self._chunk[begin : begin + len(memoryview(buffer))]
        memoryview(buffer).cast("B")[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _next_chunk(self) -> bytes | None:
        """None at the end.  What failed once fails again: the end is not there."""
        with self._failure:
            return next(self._frames, None)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if not self._can_seek:
            raise io.UnsupportedOperation("the compressed file cannot be sought in")
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            offset += self._seek_table().raw_size
        elif whence != io.SEEK_SET:
            raise ValueError(f"whence must be 0, 1 or 2, got {whence}")
        if offset < 0:
            raise ValueError(f"cannot seek to {offset}, before the beginning")
        inside = self._chunk_start <= offset < self._chunk_start + len(self._chunk)
        if self._failure or not inside:
            self._go_to_frame(offset)
        self._position = offset
        return offset

    def close(self) -> None:
        if not self.closed:
            self._frames = iter(())
            self._chunk = b""
        super().close()

    def _go_to_frame(self, offset: int) -> None:
        table = self._seek_table()
        frame = table.frame_at(offset)
        self._chunk = b""
        self._chunk_start = table.raw_starts[frame] if frame < len(table) else offset
        self._start_at(frame)

    def _start_at(self, frame: int) -> None:
        self._frames = self._frames_from(frame)
        self._failure.forget()

    def _frames_from(self, first: int) -> Iterator[bytes]:
        """The frame that was asked for alone; those after it on several threads."""
        for task in self._tasks(first, first + 1):
            yield decode_frame(task)
        yield from self._decoding.run(self._tasks(first + 1, len(self._seek_table())))

    def _tasks(self, first: int, end: int) -> Iterator[FrameTask]:
        table = self._seek_table()
        for i in range(first, min(end, len(table))):
            head = table.read_head(self._file, i)
            codec = codec_of(head, table.stream_of(i).header, self._decoding.codecs)
            self._file.seek(table.starts[i] + head.head_size)
            payload = self._file.read(head.payload_size)
            if len(payload) < head.payload_size:
                raise TruncatedError(f"the input ends inside frame {i}")
            yield FrameTask(head, payload, codec)

    def _seek_table(self) -> SeekTable:
        if self._table is None:
            self._table = read_seek_table(self._file)
            # The stream's own reading place is lost: go on from the table.
            self._chunk_start += len(self._chunk)
            frame = self._table.frame_at(self._chunk_start)
            self._chunk_start -= len(self._chunk)
            self._start_at(frame)
        return self._table


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(READ_SIZE):
        yield piece


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write on where a raw file object takes a part. BlockingIOError if it takes nothing."""
    if not isinstance(file, io.RawIOBase):
        file.write(data)
        return
    left = memoryview(data)
    while left:
        written = file.write(left)
        if not written:
            raise BlockingIOError(
                errno.EAGAIN,
                f"the raw file object takes no more, {len(left)} bytes are not written: give one "
                "that blocks",
            )
        left = left[written:]


def _open_binary(filename: FileName, kind: str) -> BinaryIO:
    path = Path(os.fsdecode(filename))
    modes: dict[str, Literal["rb", "wb", "xb", "ab"]]
    modes = {"r": "rb", "w": "wb", "x": "xb", "a": "ab"}
    return path.open(modes[kind])
