"""Compress and decompress bytes, at once or piece by piece, and look at compressed ones.

In the shape of compression.zstd and lzma. Threads, devices and piece sizes never change a byte
of the output. Files: file.py.
"""

import io
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lmzip import devices, models
from lmzip.calls import Failure, Turns
from lmzip.codec import DEFAULT_MEMORY_LIMIT, Codecs, FrameCodec, preset_named, usable_threads
from lmzip.container import (
    MAX_FRAME_SIZE,
    MAX_LANES,
    METHOD_FLOAT,
    MODEL_METHODS,
    FrameHeader,
    ModelRef,
    Parser,
    PredictorRef,
    StreamHeader,
    Trailer,
    is_safe_name,
    is_time,
    pack_trailer,
)
from lmzip.frames import (
    READ_SIZE,
    EncodedFrame,
    EncodeSettings,
    FrameTask,
    codec_of,
    cut,
    decode_all,
    decode_frame,
    encode_frame,
    read_tasks,
)
from lmzip.models import ModelInfo
from lmzip.pool import FrameJob, FramePool
from lmzip.seek_table import SeekTable, read_seek_table

if TYPE_CHECKING:
    import torch

    from lmzip.predictors import Predictor

    PredictorName = str | Predictor | torch.nn.Module

Buffer = bytes | bytearray | memoryview
ModelName = str | os.PathLike[str] | ModelInfo


def compress(
    data: Buffer,
    *,
    preset: str | int | None = None,
    model: ModelName | None = None,
    lanes: int | None = None,
    frame_size: int | None = None,
    threads: int = 0,
    device: str = "auto",
    verify: bool = False,
    predictor: "PredictorName | None" = None,
) -> bytes:
    """Return `data` as one .lmz stream. The arguments are those of LmzCompressor."""
    compressor = LmzCompressor(
        preset=preset,
        model=model,
        lanes=lanes,
        frame_size=frame_size,
        threads=threads,
        device=device,
        verify=verify,
        predictor=predictor,
        raw_size=memoryview(data).nbytes,
    )
    return compressor.compress(data) + compressor.flush()


def decompress(
    data: Buffer,
    *,
    model: ModelName | None = None,
    memory_limit: int | None = DEFAULT_MEMORY_LIMIT,
    threads: int = 0,
    device: str = "auto",
    predictor: "PredictorName | None" = None,
    force: bool = False,
) -> bytes:
    """Return the raw bytes of one or more concatenated .lmz streams.

    `memory_limit` bounds the bytes that decoding takes beside the result; None lifts it. `force`
    tries a float predictor also where the file names another one or another environment.
    Raises NotLmzError, TruncatedError, CorruptError, UnsupportedError, ModelMismatchError and
    LimitError.
    """
    view = as_bytes(data)
    pieces = (bytes(view[at : at + READ_SIZE]) for at in range(0, len(view), READ_SIZE))
    codecs = open_codecs(
        model, device, threads, memory_limit, len(view), predictor, force, decoding=True
    )
    return b"".join(decode_all(read_tasks(pieces, codecs), codecs))


class LmzCompressor:
    """Raw bytes in pieces -> one .lmz stream in pieces.

    `preset` is a name or a level 1..9; `model` a name, id or path (the default model if None);
    `lanes` 1..4096 lanes per frame (fewer give smaller files, more decode faster); `frame_size` the
    raw bytes per frame, up to 64 MiB; `threads` how many work, on one frame or on several at once,
    0 for one per core; `verify` decodes each frame and compares before it is returned; `predictor`,
    a float predictor (predictors.py) or "torch:MODULE:FACTORY[:ARGUMENT]", takes the place of the
    model, and implies `verify`; `name` and `mtime_ns` are kept in the header; `raw_size`, the bytes
    that will come where that is known, helps to choose the device and to divide the threads
    (elsewhere the first frame takes all, later ones those that are left). Holds at most 2 * threads
    + 2 frames, on CUDA 130 for each GPU, as far as half of the machine's memory holds them.
    Several threads may call it, and wait for one another.

    Raises ValueError for impossible settings, ModelMismatchError for an unknown model, LmzipError
    for a predictor that cannot be loaded or does not give the same numbers twice.
    """

    FLUSH_FRAME = 1  # end the frame: all bytes so far can be decoded
    FLUSH_STREAM = 2  # end the stream: nothing may follow

    def __init__(
        self,
        *,
        preset: str | int | None = None,
        model: ModelName | None = None,
        lanes: int | None = None,
        frame_size: int | None = None,
        threads: int = 0,
        device: str = "auto",
        verify: bool = False,
        predictor: "PredictorName | None" = None,
        name: str | None = None,
        mtime_ns: int | None = None,
        raw_size: int | None = None,
    ) -> None:
        chosen = preset_named(preset)
        check_settings(lanes, frame_size)
        if name is not None and not is_safe_name(name):
            raise ValueError(f"{name!r} is not a plain file name")
        if mtime_ns is not None and not is_time(mtime_ns):
            raise ValueError(f"mtime_ns must be a number of 64 bits, signed, got {mtime_ns}")
        if model is not None and predictor is not None:
            raise ValueError("give either a model or a float predictor")
        codecs = open_codecs(model, device, threads, None, raw_size, predictor)
        self._settings = EncodeSettings(
            codecs.for_preset(chosen),
            frame_size or chosen.frame_size,
            chosen.lanes,
            lanes,
            verify or predictor is not None,
        )
        self._writer = _StreamWriter(
            StreamHeader(_model_ref(codecs, self._settings), name, mtime_ns, codecs.predictor_ref)
        )
        with_network = any(codec.method in MODEL_METHODS for codec in self._settings.codecs)
        self._threads = codecs.threads
        if with_network and codecs.network_device == "cuda":
            size = self._settings.frame_size
            tables = max(
                c.memory_needed(size, lanes or chosen.lanes) for c in self._settings.codecs
            )
            # Two frames a thread are held, raw and coded; one of them is in work.
            room = devices.memory_for_frames(DEFAULT_MEMORY_LIMIT) // (tables + 4 * size)
            self._threads = max(codecs.threads, min(codecs.frames_at_once, room))
        self._turns = Turns()
        self._pool: FramePool | None = None
        self._running: deque[FrameJob[EncodedFrame]] = deque()
        self._buffer = bytearray()
        self._position = 0
        self._ended = False

    @property
    def raw_done(self) -> int:
        """Raw bytes whose frames have been returned, or are held as the first of the stream."""
        return self._writer.raw_size

    def compress(self, data: Buffer) -> bytes:
        """Take raw bytes; return what compressed bytes are ready, perhaps none."""
        with self._turns:
            return self._compress(data)

    def _compress(self, data: Buffer) -> bytes:
        self._check_open()
        out = bytearray()
        view = as_bytes(data)
        while len(view):
            piece = view[: self._settings.frame_size - len(self._buffer)]
            self._buffer += piece
            view = view[len(piece) :]
            if len(self._buffer) == self._settings.frame_size:
                out += self._submit()
        while self._running and self._running[0].done():
            out += self._next_result()
        return bytes(out)

    def flush(self, mode: int = FLUSH_STREAM) -> bytes:
        """Return all that is left, and end the frame or the stream."""
        with self._turns:
            return b"".join(self.flush_pieces(mode))

    def flush_pieces(self, mode: int = FLUSH_STREAM) -> Iterator[bytes]:
        """As flush(), but yield the bytes of each frame when it is ready. For one thread alone."""
        self._check_open()
        if mode not in (self.FLUSH_FRAME, self.FLUSH_STREAM):
            raise ValueError(f"flush mode must be FLUSH_FRAME or FLUSH_STREAM, got {mode!r}")
        if self._buffer:
            yield self._submit()
        while self._running:
            yield self._next_result()
        if mode == self.FLUSH_STREAM:
            yield self._writer.end()
            self._close()
        else:
            yield self._writer.release()

    def _submit(self) -> bytes:
        """Start to encode the buffer; return what had to be finished to make room for it."""
        out = b""
        data, self._buffer = bytes(self._buffer), bytearray()
        try:
            for piece in cut(data):
                while len(self._running) >= 2 * self._threads:
                    out += self._next_result()
                self._pool = self._pool or FramePool(self._threads)
                job = self._pool.submit(encode_frame, piece, self._position, self._settings)
                self._running.append(job)
                self._position += len(piece)
        except BaseException:  # bytes are lost: the stream cannot go on
            self._close()
            raise
        return out

    def _next_result(self) -> bytes:
        try:
            return self._writer.add(self._running[0].result())
        except BaseException:
            self._close()
            raise
        finally:
            self._running.popleft()

    def _check_open(self) -> None:
        if self._ended:
            raise ValueError("the stream has ended; use a new LmzCompressor")

    def _close(self) -> None:
        self._ended = True
        if self._pool is not None:
            self._pool.abandon()
            self._pool = None


class LmzDecompressor:
    """One .lmz stream in pieces -> raw bytes in pieces.

    `eof` is True behind the end of the stream; `unused_data` holds what follows it, such as
    another stream; `needs_input` is True if more input is needed before more output can come.
    Holds one frame, and the input that it was given and could not use yet. Several threads may
    call it, and wait for one another.
    """

    def __init__(
        self,
        *,
        model: ModelName | None = None,
        memory_limit: int | None = DEFAULT_MEMORY_LIMIT,
        device: str = "auto",
        predictor: "PredictorName | None" = None,
        force: bool = False,
    ) -> None:
        self._codecs = open_codecs(model, device, 1, memory_limit, None, predictor, force)
        self._turns = Turns()
        self._parser = Parser(one_stream=True)
        self._stream = StreamHeader()
        self._head: tuple[FrameHeader, FrameCodec | None] | None = None
        self._ready = memoryview(b"")
        self._failure = Failure("decompressing was interrupted: begin anew")
        self.eof = False
        self.needs_input = True
        self.unused_data = b""

    def decompress(self, data: Buffer, max_length: int = -1) -> bytes:
        """Take compressed bytes; return up to max_length raw ones (all there are if negative).

        Raises EOFError behind the end of the stream, and the errors of decompress(), after which
        every call raises the same.
        """
        with self._turns:
            return self._decompress(data, max_length)

    def _decompress(self, data: Buffer, max_length: int) -> bytes:
        if self.eof:
            raise EOFError("the stream has ended; unused_data holds what follows it")
        self._failure.check()
        with as_bytes(data) as view:  # of which no error may hold the buffer
            self._parser.feed(view)
            if len(view):
                self.needs_input = False  # until it turns out to be too little
        out = bytearray()
        while max_length < 0 or len(out) < max_length:
            with self._failure:
                if not self._ready and not self._next_frame():
                    break
            room = len(self._ready) if max_length < 0 else max_length - len(out)
            out += self._ready[:room]
            self._ready = self._ready[room:]
        return bytes(out)

    def _next_frame(self) -> bool:
        """Decode the next frame into _ready; False if the input or the stream ends first."""
        self.needs_input = False
        while (record := self._parser.next_record()) is not None:
            if isinstance(record, StreamHeader):
                self._stream = record
            elif isinstance(record, FrameHeader):
                self._head = record, codec_of(record, self._stream, self._codecs)
            elif isinstance(record, Trailer):
                self.eof = True
                self.unused_data = self._parser.rest()
                return False
            elif self._head is not None:
                header, codec = self._head
                self._ready = memoryview(decode_frame(FrameTask(header, record, codec)))
                return True
        self.needs_input = True
        return False


@dataclass(frozen=True, slots=True)
class FrameInfo:
    """One frame: where it lies in the file, what it holds and how it is coded."""

    offset: int
    compressed_size: int
    raw_offset: int
    raw_size: int
    method: str
    lanes: int
    table_bits: int
    profile: int


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """One stream of a file."""

    offset: int
    compressed_size: int
    raw_size: int
    frames: int
    indexed: bool
    model: ModelRef | None
    name: str | None
    mtime_ns: int | None
    predictor: PredictorRef | None


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What a file or buffer holds, read without decoding. Sizes in bytes."""

    compressed_size: int
    raw_size: int
    streams: tuple[StreamInfo, ...]
    frames: tuple[FrameInfo, ...]

    @property
    def ratio(self) -> float:
        """Compressed size over raw size; 0.0 for an empty one."""
        return self.compressed_size / self.raw_size if self.raw_size else 0.0


def inspect(source: Buffer | str | os.PathLike[str] | BinaryIO) -> FileInfo:
    """Look at compressed bytes, a path or a seekable binary file, without decoding a frame.

    Raises what decompress() raises for damage to the structure; damage to payloads is not seen.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return _inspect_file(io.BytesIO(source))
    if isinstance(source, str | os.PathLike):
        with Path(source).open("rb") as file:
            return _inspect_file(file)
    return _inspect_file(source)


def as_bytes(data: Buffer) -> memoryview:
    """The bytes of a buffer. TypeError if they do not lie one behind the other."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")  # what has no bytes has odd shapes


def check_settings(lanes: int | None, frame_size: int | None) -> None:
    """ValueError for what the format does not allow."""
    if lanes is not None and not 1 <= lanes <= MAX_LANES:
        raise ValueError(f"lanes must be 1..{MAX_LANES}, got {lanes}")
    if frame_size is not None and not 1 <= frame_size <= MAX_FRAME_SIZE:
        raise ValueError(f"the frame size must be 1..{MAX_FRAME_SIZE} bytes, got {frame_size}")


def open_codecs(
    model: ModelName | None,
    device: str,
    threads: int,
    memory_limit: int | None,
    input_size: int | None = None,
    predictor: "PredictorName | None" = None,
    force: bool = False,
    *,
    decoding: bool = False,
) -> Codecs:
    """Resolve the user's model, predictor and threads; the device when it is first needed."""
    found = models.find(model) if isinstance(model, str | os.PathLike) else model
    loaded = None if predictor is None else _load_predictor(predictor)
    threads = usable_threads(threads)
    return Codecs(
        found, device, threads, memory_limit, input_size, loaded, force, decoding=decoding
    )


def _load_predictor(predictor: "PredictorName") -> "Predictor":
    from lmzip import predictors  # which imports PyTorch

    if isinstance(predictor, str):
        return predictors.load(predictor)
    return predictors.as_predictor(predictor)


def _inspect_file(file: BinaryIO) -> FileInfo:
    table = read_seek_table(file)
    return FileInfo(
        compressed_size=file.seek(0, 2),
        raw_size=table.raw_size,
        streams=tuple(
            StreamInfo(
                stream.offset,
                stream.size,
                stream.raw_size,
                stream.frames,
                stream.indexed,
                stream.header.model,
                stream.header.name,
                stream.header.mtime_ns,
                stream.header.predictor,
            )
            for stream in table.streams
        ),
        frames=tuple(_frame_infos(file, table)),
    )


def _frame_infos(file: BinaryIO, table: SeekTable) -> Iterator[FrameInfo]:
    for i in range(len(table)):
        head = table.read_head(file, i)
        yield FrameInfo(
            table.starts[i],
            table.sizes[i],
            table.raw_starts[i],
            head.raw_size,
            head.method_name,
            head.lanes,
            head.table_bits,
            head.profile,
        )


def _model_ref(codecs: Codecs, settings: EncodeSettings) -> ModelRef | None:
    if not any(codec.method in MODEL_METHODS for codec in settings.codecs):
        return None
    model = codecs.model or models.default()
    return model.ref if model else None


class _StreamWriter:
    """Encoded frames in order -> the bytes of a stream.

    The header waits for the second frame: a stream that turns out to need no model or predictor,
    having no frame or one that was coded without it, does not name one.
    """

    def __init__(self, header: StreamHeader) -> None:
        self._header = header
        self._header_size = 0
        self._held: EncodedFrame | None = None
        self._entries: list[tuple[int, int]] = []
        self.raw_size = 0

    def add(self, frame: EncodedFrame) -> bytes:
        self.raw_size += frame.header.raw_size
        self._entries.append((len(frame.record), frame.header.raw_size))
        if len(self._entries) == 1:
            self._held = frame
            return b""
        return self.release() + frame.record

    def release(self) -> bytes:
        """Let the header and the first frame go, if there is one and they have not gone."""
        if self._held is None:
            return b""
        record, self._held = self._held.record, None
        return self._pack_header() + record

    def end(self) -> bytes:
        out = b""
        if not self._header_size:
            method = self._held.header.method if self._held else None
            if method not in MODEL_METHODS:
                self._header = replace(self._header, model=None)
            if method != METHOD_FLOAT:
                self._header = replace(self._header, predictor=None)
            out = self.release() if self._held else self._pack_header()
        return out + pack_trailer(self._header_size, self._entries)

    def _pack_header(self) -> bytes:
        packed = self._header.pack()
        self._header_size = len(packed)
        return packed
