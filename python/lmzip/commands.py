"""What the file commands do, one file after the other. Options: cli.py and docs/cli.md.

A failure of one file is one line on standard error and exit status 1; the others are still done.
"""

import contextlib
import json
import os
import stat
import sys
import tempfile
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO, cast

from lmzip import models
from lmzip.api import FileInfo, LmzCompressor, check_settings, inspect, open_codecs
from lmzip.cli import SUFFIX, UsageError
from lmzip.codec import DEFAULT_MEMORY_LIMIT, Codecs, method_names, preset_named
from lmzip.container import MAX_TOTAL, StreamHeader, is_safe_name, is_time, printable
from lmzip.errors import LmzipError
from lmzip.frames import READ_SIZE, FrameTask, decode_all, read_tasks
from lmzip.output import AtomicFile, descriptor
from lmzip.progress import Progress, human_size
from lmzip.salvage import Piece, salvage

SHORT_SUFFIXES = {".tlmz": ".tar"}


class SkipError(Exception):
    """This file is not worked on; the message says why."""


@dataclass
class Outcome:
    """The status of one file, set by one_line_errors."""

    status: int = 0


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[Outcome]:
    """Turn the errors that a user can cause into one line and status 1."""
    outcome = Outcome()
    try:
        yield outcome
    except BrokenPipeError:
        raise
    except OSError as error:
        _complain(name, _reason(error, name))
        outcome.status = 1
    except (LmzipError, SkipError) as error:
        _complain(name, str(error))
        outcome.status = 1
    except MemoryError:
        _complain(name, "out of memory; try fewer threads (-T) or smaller frames (--frame-size)")
        outcome.status = 1


def _reason(error: OSError, name: str) -> str:
    """What the system says, with the file that it is said of unless that is `name`, as shown."""
    reason = error.strerror or str(error)
    file = error.filename2 or error.filename
    if file is None or printable(str(file)) == str(Path(name)):
        return reason
    return f"{file}: {reason}"


def run(options: Namespace) -> int:
    """Do what the options say to each file; return the exit status."""
    _check_settings(options)
    infos: list[tuple[str, FileInfo]] = []
    work: dict[str, Callable[[str, Namespace], None]] = {
        "compress": _compress,
        "decompress": _salvage if options.salvage else _decompress,
        "test": _test,
        "list": lambda name, _: infos.append((name, _inspect(name))),
    }
    status = 0
    for name in _expand(options):
        with one_line_errors(_shown(name)) as outcome:
            if isinstance(name, OSError):
                raise name
            work[options.mode](name, options)
        status = max(status, outcome.status)
    if options.mode == "list":
        _print_list(infos, options)
    return status


def _check_settings(options: Namespace) -> None:
    try:
        preset_named(_preset(options.preset))
        check_settings(options.lanes, options.frame_size)
    except ValueError as error:
        raise UsageError(str(error)) from None


def installation() -> str:
    """What this installation can do, line by line."""
    from lmzip import _core  # as late as possible: it loads the extension module

    names = ", ".join(printable(model.name) for model in models.available()) or "none"
    return "\n".join(
        [
            f"kernels: {', '.join(_core.kernels())} (in use: {_core.active_kernel()})",
            f"methods: {', '.join(method_names())}",
            f"models: {names}",
            f"python: {sys.version.split()[0]}",
        ]
    )


def list_models(options: Namespace) -> int:
    """Print the models that are installed; the one used by default has a star."""
    with one_line_errors("models") as outcome:
        chosen = models.default()
        found = list(models.available())
        if options.json:
            rows = [
                {**asdict(model), "id": model.id.hex(), "path": str(model.path)}
                | {"default": model == chosen}
                for model in found
            ]
            print(json.dumps(rows, indent=2))
        for model in [] if options.json else found:
            _print_line(model, star="* " if model == chosen else "  ")
        if not found and not options.json:
            folders = ", ".join(str(folder) for folder in models.folders())
            print(f"no models; looked in {printable(folders)}", file=sys.stderr)
    return outcome.status


def describe_models(options: Namespace) -> int:
    """Print what is known of each model that is named."""
    status, rows = 0, []
    for name in options.models:
        with one_line_errors(printable(name)) as outcome:
            from lmzip.model_check import describe

            rows.append(describe(models.find(name)))
            if not options.json:
                _print_model(rows[-1], first=len(rows) == 1)
        status = max(status, outcome.status)
    if options.json:
        print(json.dumps(rows, indent=2))
    return status


def _print_model(row: dict[str, Any], *, first: bool) -> None:
    if not first:
        print()
    for key, value in row.items():
        if value is None and key != "licence":
            continue
        text = "not stated" if value is None else str(value)
        if isinstance(value, dict):  # architecture, source, training
            text = json.dumps(value, ensure_ascii=False)
        elif isinstance(value, int):
            text = f"{value:,}"
        print(f"{key:<15} {printable(text)}")


def verify_models(options: Namespace) -> int:
    """Check the files of the models that are named, or of all; one line each."""
    status = 0
    for name in options.models or list(models.files()):
        with one_line_errors(printable(str(name))) as outcome:
            from lmzip.model_check import verify

            path = name if isinstance(name, Path) else models.find(name).path
            report = verify(path, options.sha256 or "")
            record = "as recorded" if report.recorded else "no hash of them recorded"
            print(
                f"{printable(str(name))}: sound, SHA-256 {report.sha256}; weights {record}; "
                f"{', '.join(report.kernels)} agree"
            )
        status = max(status, outcome.status)
    return status


def import_model(options: Namespace) -> int:
    """Make an exact model of a checkpoint, in the model folder unless a file is named."""
    with one_line_errors("models import") as outcome:
        from lmzip import import_model, llama_model, model_file

        model = import_model.import_checkpoint(
            options.source, window=options.window or import_model.DEFAULT_WINDOW
        )
        name = options.output or model.name
        path = Path(name)
        if os.sep not in name and not name.endswith(models.SUFFIX):
            path = models.store() / f"{name}{models.SUFFIX}"
            path.parent.mkdir(parents=True, exist_ok=True)
        about = model.about | {
            "name": path.stem,
            "tensors_sha256": model_file.tensors_digest(model.tensors),
        }
        with AtomicFile(path, overwrite=options.force) as file:
            file.write(llama_model.serialize(model.architecture, model.tensors, about))
        _print_line(models.read(path))
    return outcome.status


def _print_line(model: models.ModelInfo, star: str = "") -> None:
    print(
        f"{star}{printable(model.name)}  {model.id.hex()[:16]}  "
        f"{model.parameters:,} parameters  {human_size(model.size)}  "
        f"{printable(model.licence) or 'licence not stated'}  {printable(str(model.path))}"
    )


# ---- one file ---------------------------------------------------------------------------------


def _compress(name: str, options: Namespace) -> None:
    with _source(name, options) as (source, before):
        target = _target(name, options, lambda path: path.with_name(path.name + SUFFIX))
        compressor = LmzCompressor(
            preset=_preset(options.preset),
            model=options.model,
            lanes=options.lanes,
            frame_size=options.frame_size,
            threads=options.threads,
            device=options.device,
            verify=bool(options.verify or options.rm),
            predictor=options.predictor,
            raw_size=_size_of(before),
            **_stored_name(name, before, options),
        )
        with (
            Progress(_shown(name), _size_of(before), wanted=_wants_progress(options)) as progress,
            _sink(target, options, before) as sink,
        ):
            raw = out = 0
            for piece in _pieces(source, source.read):
                raw += len(piece)
                out += sink.write(compressor.compress(piece))
                progress.update(compressor.raw_done, compressor.raw_done, out)
            for piece in compressor.flush_pieces():
                out += sink.write(piece)
                progress.update(compressor.raw_done, compressor.raw_done, out)
            _check_unchanged(source, before)
    _finish(name, target, options, raw, out, before)


def _decompress(name: str, options: Namespace) -> None:
    headers: list[StreamHeader] = []
    with _source(name, options) as (source, before):
        codecs = _codecs(options, before)
        counter = _Counter(source)
        tasks = counter.tasks(codecs, headers.append)
        wants_name = options.name and not options.output and not options.stdout and name != "-"
        target = _target(name, options, _stored_rename(source) if wants_name else _strip)
        with (
            Progress(_shown(name), _size_of(before), wanted=_wants_progress(options)) as progress,
            _sink(target, options, before) as sink,
        ):
            raw = 0
            for chunk in decode_all(tasks, codecs):
                raw += sink.write(chunk)
                progress.update(counter.done(), raw, counter.done_size)
    if options.name and target is not None and headers and headers[0].mtime_ns is not None:
        os.utime(target, ns=(headers[0].mtime_ns, headers[0].mtime_ns))
    _finish(name, target, options, raw, counter.size, before)


def _test(name: str, options: Namespace) -> None:
    with _source(name, options) as (source, before):
        codecs = _codecs(options, before)
        counter = _Counter(source)
        raw = 0
        with Progress(_shown(name), _size_of(before), wanted=_wants_progress(options)) as progress:
            for chunk in decode_all(counter.tasks(codecs), codecs):
                raw += len(chunk)
                progress.update(counter.done(), raw, counter.done_size)
    if not options.quiet:
        print(f"{_shown(name)} : {raw} bytes, sound", file=sys.stderr)


def _salvage(name: str, options: Namespace) -> None:
    kept, lost, unknown = 0, 0, False
    with _source(name, options) as (source, before), _mapped(source) as view:
        target = _target(name, options, _strip)
        if options.fill_gaps and target is None:
            raise SkipError("--fill-gaps needs an output file: use -o")
        with _sink(target, options, before) as sink:
            for piece in salvage(view, _codecs(options, before)):
                if options.fill_gaps:
                    _make_room(sink, piece)
                if piece.lost:
                    lost, unknown = lost + (piece.size or 0), unknown or piece.size is None
                    _complain(_shown(name), f"{_lost_place(piece)}: {piece.lost}")
                else:
                    kept += sink.write(piece.data)
            if not kept and (lost or unknown):
                raise SkipError("nothing can be saved, nothing is written")
    if lost or unknown:
        more = " and an unknown number" if unknown else ""
        raise SkipError(f"{kept} bytes are saved, {lost} bytes{more} are lost")
    if not options.quiet:
        print(f"{_shown(name)} : {kept} bytes, sound", file=sys.stderr)


def _make_room(sink: BinaryIO, piece: Piece) -> None:
    """Go to the place of a piece, or beyond one that is lost; what lies between reads as zeros."""
    end = piece.offset + (piece.size or 0)
    if end > MAX_TOTAL:
        raise SkipError(f"a frame claims to belong at byte {piece.offset}: leave --fill-gaps away")
    if piece.lost:
        sink.truncate(end)
    sink.seek(end if piece.lost else piece.offset)


def _lost_place(piece: Piece) -> str:
    if piece.size is None:
        return f"what followed byte {piece.offset} is lost, nobody knows how much"
    return f"bytes {piece.offset}..{piece.offset + piece.size - 1} are lost"


def _inspect(name: str) -> FileInfo:
    if name != "-":
        if _is_special(Path(name)):
            raise SkipError("is no regular file: it cannot be listed")
        return inspect(name)
    if not sys.stdin.seekable():
        raise SkipError("cannot list a pipe: give a file")
    return inspect(sys.stdin.buffer)


# ---- where bytes come from and go to ----------------------------------------------------------


def _expand(options: Namespace) -> Iterator[str | OSError]:
    """The files that are named; with -r, also those in the folders that are named."""
    for name in options.files:
        path = Path(name)
        if not options.recursive or name == "-" or not path.is_dir():
            yield name
            continue
        failed: list[OSError] = []
        for folder, folders, files in os.walk(path, onerror=failed.append):
            folders.sort()
            for file in sorted(files):
                inner = Path(folder) / file
                packed = inner.suffix in (SUFFIX, *SHORT_SUFFIXES)
                if packed != (options.mode == "compress") and _may_be_regular(inner):
                    yield str(inner)
        yield from failed


def _may_be_regular(path: Path) -> bool:
    """A regular file and no link to one; or what cannot be asked: opening it will say why."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return True


@contextlib.contextmanager
def _source(name: str, options: Namespace) -> Iterator[tuple[BinaryIO, os.stat_result | None]]:
    """Open an input; its stat is None unless it is a regular file of that name."""
    if name == "-":
        if options.mode != "compress" and sys.stdin.isatty():
            raise SkipError("compressed data cannot come from a terminal")
        yield sys.stdin.buffer, None
        return
    path = Path(name)
    if path.is_dir():
        raise SkipError("is a folder; -r goes into folders")
    if options.rm and path.is_symlink() and not options.force:
        raise SkipError("is a symbolic link; --rm would remove the link only (-f does)")
    plain = not (options.force or options.output or options.stdout)
    if options.mode == "compress" and plain and path.suffix in (SUFFIX, *SHORT_SUFFIXES):
        raise SkipError(f"has the suffix {path.suffix} already; -f compresses it again")
    regular_only = plain and options.mode in ("compress", "decompress")
    with open(path, "rb", opener=_open_at_once if regular_only else None) as file:
        found = os.fstat(file.fileno())
        if regular_only and not stat.S_ISREG(found.st_mode):
            raise SkipError("is no regular file; -c, -o or -f reads it")
        yield file, found if stat.S_ISREG(found.st_mode) else None


def _open_at_once(path: str, flags: int) -> int:
    """Also a pipe that has no writer yet."""
    try:
        return os.open(path, flags | os.O_NONBLOCK)
    except BlockingIOError:  # a file on which another process has a lease, which it will give up
        return os.open(path, flags)


def _target(name: str, options: Namespace, rename: Callable[[Path], Path]) -> Path | None:
    """The output file; None for standard output."""
    if options.stdout or options.output == "-" or (name == "-" and not options.output):
        return None
    target = Path(options.output) if options.output else rename(Path(name))
    if name != "-" and target.exists() and target.samefile(name):
        raise SkipError("the output would replace the input")
    return target


def _strip(path: Path) -> Path:
    for suffix, full in {SUFFIX: "", **SHORT_SUFFIXES}.items():
        if path.name.endswith(suffix) and path.name != suffix:
            return path.with_name(path.name.removesuffix(suffix) + full)
    raise SkipError(f"the name does not end in {SUFFIX}: say with -o or -c where to write")


def _stored_rename(source: BinaryIO) -> Callable[[Path], Path]:
    """To the name that is stored in the file, if there is one."""
    stored = next(iter(inspect(source).streams)).name
    source.seek(0)
    try:
        os.fsencode(stored or "")
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        message = f"{stored!a} is no file name in {encoding}: use -o, or a UTF-8 locale"
        raise SkipError(message) from None
    return (lambda path: path.with_name(stored)) if stored else _strip


def _is_special(path: Path) -> bool:
    """Whether it is a device, a pipe or a socket."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def _sink(
    target: Path | None, options: Namespace, like: os.stat_result | None
) -> Iterator[BinaryIO]:
    """An output that appears whole or not at all, as far as the target allows."""
    if target is None:
        if options.mode == "compress" and sys.stdout.isatty() and not options.force:
            raise SkipError("compressed data is not written to a terminal; -f forces it")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif (number := descriptor(target)) is not None or _is_special(target):
        if options.rm:
            raise SkipError(f"--rm needs an output file, and {target} is none: the source is kept")
        place: Path | int = target if number is None else number
        with open(place, "wb", closefd=number is None) as file:
            yield file
    else:
        with AtomicFile(target, overwrite=options.force, like=like) as file:
            yield file


def _pieces(source: BinaryIO, read: Callable[[int], bytes | None]) -> Iterator[bytes]:
    """All that a source holds. Its end is b""; None, and b"" of read1, may mean "nothing yet"."""
    while piece := read(READ_SIZE) or source.read(1):
        yield piece
    if piece is None:
        raise SkipError("nothing is there yet, and O_NONBLOCK says not to wait: read through cat")


@contextlib.contextmanager
def _mapped(source: BinaryIO) -> Iterator[bytes | mmap]:
    """The whole of an input as a buffer. A pipe goes through a temporary file."""
    with contextlib.ExitStack() as stack:
        if not source.seekable():
            spool = stack.enter_context(tempfile.TemporaryFile())
            for piece in _pieces(source, source.read):
                spool.write(piece)
            spool.flush()
            source = cast(BinaryIO, spool)
        if not source.seek(0, 2):
            yield b""
        else:
            yield stack.enter_context(mmap(source.fileno(), 0, access=ACCESS_READ))


class _Counter:
    """Reads frames from an input, counts its bytes, and knows which of them have been decoded."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._ahead: deque[int] = deque()  # record sizes of the frames that are being decoded
        self.size = 0
        self.done_size = 0

    def tasks(
        self, codecs: Codecs, on_stream: Callable[[StreamHeader], None] = lambda _: None
    ) -> Iterator[FrameTask]:
        for task in read_tasks(self._counted(), codecs, on_stream):
            self._ahead.append(task.header.head_size + task.header.payload_size)
            yield task

    def done(self) -> int:
        """Say that one more frame has been decoded; return the bytes of all that have."""
        self.done_size += self._ahead.popleft()
        return self.done_size

    def _counted(self) -> Iterator[bytes]:
        read = getattr(self._source, "read1", self._source.read)  # a pipe: what there is
        for piece in _pieces(self._source, read):
            self.size += len(piece)
            yield piece


# ---- before and after -------------------------------------------------------------------------


def _codecs(options: Namespace, compressed: os.stat_result | None) -> Codecs:
    limit = DEFAULT_MEMORY_LIMIT if options.memory_limit is None else options.memory_limit or None
    return open_codecs(
        options.model,
        options.device,
        options.threads,
        limit,
        _size_of(compressed),
        options.predictor,
        options.force,
        decoding=True,
    )


def _preset(text: str | int | None) -> str | int | None:
    return int(text) if isinstance(text, str) and text.isdecimal() else text


def _stored_name(name: str, found: os.stat_result | None, options: Namespace) -> dict[str, Any]:
    if not options.name or found is None:
        return {}
    if not is_safe_name(Path(name).name):
        raise SkipError("-N cannot store this name: it is no plain text")
    if not is_time(found.st_mtime_ns):
        raise SkipError("-N cannot store this modification time: it has to lie in 1677 to 2262")
    return {"name": Path(name).name, "mtime_ns": found.st_mtime_ns}


def _check_unchanged(source: BinaryIO, before: os.stat_result | None) -> None:
    """A file that changed while it was read may have been stored half old, half new."""
    if before is not None and _has_changed(before, os.fstat(source.fileno())):
        raise SkipError("the file changed while it was compressed: nothing is written; try again")


def _has_changed(before: os.stat_result, after: os.stat_result) -> bool:
    return (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns)


def _finish(
    name: str,
    target: Path | None,
    options: Namespace,
    raw: int,
    compressed: int,
    before: os.stat_result | None,
) -> None:
    if options.rm and name != "-" and before is not None and target is not None:
        after = Path(name).stat()
        if not os.path.samestat(after, before):
            raise SkipError("was replaced meanwhile: the output is written, the source is kept")
        if _has_changed(before, after):
            raise SkipError("has changed meanwhile: the output is written, the source is kept")
        Path(name).unlink()
    if options.quiet or (target is None and not options.verbose):
        return
    into, out = (raw, compressed) if options.mode == "compress" else (compressed, raw)
    ratio = f"{100 * compressed / raw:.2f} %" if raw else "-"
    line = f"{_shown(name)} : {ratio} ({into} => {out} bytes"
    line += f", {_shown(str(target))})" if target is not None else ")"
    if options.verbose and raw:
        line += f" {8 * compressed / raw:.3f} bits per byte"
    print(line, file=sys.stderr)


def _print_list(infos: list[tuple[str, FileInfo]], options: Namespace) -> None:
    if options.json:
        print(json.dumps([_as_json(name, info) for name, info in infos], indent=2))
        return
    if not infos:
        return
    print(f"{'streams':>7} {'frames':>7} {'compressed':>12} {'raw':>14} {'ratio':>8}  name")
    for name, info in infos:
        _print_row(len(info.streams), len(info.frames), info, _shown(name))
        if options.verbose:
            _print_details(info)
    if len(infos) > 1:
        total = FileInfo(
            sum(info.compressed_size for _, info in infos),
            sum(info.raw_size for _, info in infos),
            (),
            (),
        )
        streams = sum(len(info.streams) for _, info in infos)
        frames = sum(len(info.frames) for _, info in infos)
        _print_row(streams, frames, total, f"{len(infos)} files")


def _print_row(streams: int, frames: int, info: FileInfo, name: str) -> None:
    ratio = f"{100 * info.ratio:.2f} %" if info.raw_size else "-"
    print(
        f"{streams:>7} {frames:>7} {info.compressed_size:>12} {info.raw_size:>14} "
        f"{ratio:>8}  {name}"
    )


def _print_details(info: FileInfo) -> None:
    for stream in info.streams:
        model = f"model {stream.model}" if stream.model else "no model"
        name = f", name {printable(stream.name)!r}" if stream.name else ""
        if stream.predictor:
            model = f"float predictor {stream.predictor}"
        print(f"    stream at {stream.offset}: {stream.frames} frames, {model}{name}")
    for frame in info.frames:
        print(
            f"    frame at {frame.offset}: bytes {frame.raw_offset}..."
            f"{frame.raw_offset + frame.raw_size}, {frame.compressed_size} bytes, "
            f"{frame.method}, {frame.lanes} lanes"
        )


def _as_json(name: str, info: FileInfo) -> dict[str, Any]:
    document = asdict(info)
    for stream, source in zip(document["streams"], info.streams, strict=True):
        if source.model is not None:
            stream["model"] = {"id": source.model.id.hex(), "label": source.model.label}
    return {"file": name, "ratio": info.ratio, **document}


def _size_of(found: os.stat_result | None) -> int | None:
    return found.st_size if found is not None else None


def _wants_progress(options: Namespace) -> bool:
    return not options.quiet


def _shown(name: str | OSError) -> str:
    if isinstance(name, OSError):
        return printable(str(name.filename))
    return "(stdin)" if name == "-" else printable(name)


def _complain(name: str, message: str) -> None:
    print(f"lmzip: {name}: {printable(message)}", file=sys.stderr)
