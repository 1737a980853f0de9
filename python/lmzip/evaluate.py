"""`lmzip eval`: rates and speeds of compressors on the same data, everything decoded again.

The protocol of Delétang et al. 2023, Table 1: a set of files is cut into chunks (2048 bytes, or not
at all), each chunk is compressed on its own, headers are counted once (accounting.py).  Rows that a
results file already has for the same data, compressor, chunk and model are not measured again.
"""

import argparse
import csv
import hashlib
import io
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmzip import accounting, baselines
from lmzip._version import __version__
from lmzip.baselines import Compressor
from lmzip.errors import CorruptError, LmzipError
from lmzip.output import AtomicFile
from lmzip.progress import Progress

CHUNK = 2048
_LISTED = re.compile(r",(?!\w+=)")  # a comma before NAME= belongs to a predictor's argument
KEY = ("sha256", "compressor", "chunk", "model", "lmzip")
COLUMNS = (
    "data", "raw", "chunk", "compressor", "coded", "rate_percent", "adjusted_percent",
    "adjusted_paper_percent", "bits_per_byte", "encode_kb_s", "decode_kb_s", "model_bytes",
    "parameters", "model", "lmzip", "sha256",
)  # fmt: skip


class EvaluationError(LmzipError):
    """The evaluation cannot be done; the message says why."""


@dataclass(frozen=True)
class Data:
    """A named set: one run of bytes."""

    name: str
    raw: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.raw).hexdigest()

    def chunks(self, size: int) -> list[bytes]:
        """Pieces of `size` bytes, the last one shorter; all in one for 0."""
        step = size or len(self.raw)
        return [self.raw[i : i + step] for i in range(0, len(self.raw), step)]


def measure(data: Data, compressor: Compressor, chunk: int, *, progress: bool) -> dict[str, Any]:
    """One row of COLUMNS.  CPU time.  Raises CorruptError if anything decodes to other bytes."""
    if not data.raw:
        raise EvaluationError(f"{data.name} is empty: a rate needs at least one byte")
    chunks = data.chunks(chunk)
    sizes: list[int] = []
    encode = decode = 0.0
    with Progress(f"{data.name} {compressor.name}", len(data.raw), wanted=progress) as line:
        for i in range(0, len(chunks), compressor.batch):
            batch = chunks[i : i + compressor.batch]
            start = time.process_time()
            blobs = compressor.chunks(batch)
            middle = time.process_time()
            restored = compressor.restore(blobs, [*map(len, batch)])
            decode += time.process_time() - middle
            encode += middle - start
            if restored != batch:
                raise CorruptError(
                    f"{compressor.name} gave other bytes back for {data.name}: not counted"
                )
            sizes += map(len, blobs)
            done = min(len(sizes) * (chunk or len(data.raw)), len(data.raw))
            line.update(done, done, sum(sizes))
    # FLAC says "silence" in fewer bytes than "one sample of 0": no chunk is less than its header.
    header = min(compressor.header, *sizes)
    coded = accounting.total_size(sizes, header)
    return as_row(
        data,
        compressor.name,
        chunk,
        coded,
        (encode, decode),
        model_bytes=compressor.model_bytes,
        parameters=compressor.parameters,
        model=compressor.model_id,
    )


def as_row(
    data: Data,
    name: str,
    chunk: int,
    coded: int,
    seconds: tuple[float, float],
    *,
    model_bytes: int = 0,
    parameters: int = 0,
    model: str = "",
) -> dict[str, Any]:
    """COLUMNS of a set that compressor `name` has made `coded` bytes of; `seconds`: of CPU time,
    there and back."""
    raw = len(data.raw)
    paper = accounting.paper_model_bytes(parameters)
    return {
        "data": data.name,
        "raw": raw,
        "chunk": chunk,
        "compressor": name,
        "coded": coded,
        "rate_percent": f"{100 * accounting.rate(coded, raw):.2f}",
        "adjusted_percent": f"{100 * accounting.adjusted_rate(coded, raw, model_bytes):.2f}",
        "adjusted_paper_percent": f"{100 * accounting.adjusted_rate(coded, raw, paper):.2f}",
        "bits_per_byte": f"{accounting.bits_per_byte(coded, raw):.4f}",
        "encode_kb_s": f"{raw / max(seconds[0], 1e-9) / 1000:.1f}",
        "decode_kb_s": f"{raw / max(seconds[1], 1e-9) / 1000:.1f}",
        "model_bytes": model_bytes,
        "parameters": parameters,
        "model": model,
        "lmzip": __version__,
        "sha256": data.sha256,
    }


class Results:
    """Rows in a CSV file, found again by what was measured: a run can be stopped and goes on."""

    def __init__(self, path: Path | None, provenance: dict[str, Any] | None = None) -> None:
        self.path, self.provenance = path, provenance or {}
        self.rows: list[dict[str, Any]] = []
        found: Sequence[str] = ()
        if path is not None and path.exists():
            found, self.rows = _read_results(path)
        elif path is not None and not path.parent.is_dir():
            raise EvaluationError(f"{path} cannot be written: there is no folder {path.parent}")
        self._columns = list(dict.fromkeys([*found, *COLUMNS, *self.provenance]))

    def find(self, data: Data, compressor: Compressor, chunk: int) -> dict[str, Any] | None:
        key = (data.sha256, compressor.name, str(chunk), compressor.model_id, __version__)
        return next((r for r in self.rows if tuple(str(r.get(k)) for k in KEY) == key), None)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row | self.provenance)
        if self.path is None:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        with AtomicFile(self.path, overwrite=True) as file:
            file.write(text.getvalue().encode())


def _read_results(path: Path) -> tuple[Sequence[str], list[dict[str, Any]]]:
    """Columns and rows.  Refuses what is no such file: it is going to be replaced."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or (), list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} holds no results of lmzip eval: {error}") from None
    missing = [name for name in COLUMNS if name not in columns]
    if missing and path.stat().st_size:
        raise EvaluationError(
            f"{path} holds no results of lmzip eval: it has no column {missing[0]!r}; give another "
            "file"
        )
    if any(None in row for row in rows):
        raise EvaluationError(f"{path}: a row has more fields than the {len(columns)} of the head")
    return columns, rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lmzip eval`."""
    parser.add_argument("files", nargs="+", type=Path, help="files, or folders taken as one set")
    parser.add_argument(
        "--compressors",
        default="gzip,lzma,fast,default",
        help=f"of {', '.join(baselines.names())}, presets, models by name or path, and float "
        "predictors torch:MODULE:FACTORY[:ARGUMENT], whose code is run; commas",
    )
    parser.add_argument(
        "--chunk",
        type=int,
        action="append",
        help=f"bytes of a chunk, 0 for none; may be repeated (default {CHUNK} and 0)",
    )
    parser.add_argument("--limit", type=int, help="bytes of each set, from its beginning")
    parser.add_argument("--results", type=Path, help="CSV file to go on with and to write")


def run(options: argparse.Namespace) -> int:
    """Measure and print; 0 if all could be measured.  Raises LmzipError, OSError."""
    sizes = options.chunk or [CHUNK, 0]
    if min(sizes) < 0:
        raise EvaluationError(f"a chunk has {min(sizes)} bytes; it needs 0 or more")
    if options.limit is not None and options.limit < 1:
        raise EvaluationError(f"the limit is {options.limit} bytes; it needs 1 or more")
    results = Results(options.results)
    status = 0
    _print_head()
    for path in options.files:
        data = read(path, options.limit)
        for chunk in sizes:
            for name in _LISTED.split(options.compressors):
                try:
                    compressor = baselines.named(name)
                except baselines.MissingError as error:
                    print(f"lmzip: eval: {name} is left out: {error}", file=sys.stderr)
                    status = 1
                    continue
                row = results.find(data, compressor, chunk)
                if row is None:
                    row = measure(data, compressor, chunk, progress=True)
                    results.add(row)
                _print_row(row)
    return status


def read(path: Path, limit: int | None = None) -> Data:
    """A file, or all files of a folder in the order of their names."""
    paths = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    raw = b"".join(p.read_bytes() for p in paths)
    return Data(path.name, raw if limit is None else raw[:limit])


def _print_head() -> None:
    print(
        f"{'data':24} {'chunk':>6} {'compressor':16} {'bytes':>12} {'rate %':>7} "
        f"{'with model':>10} {'KB/s':>8} {'and back':>8}"
    )


def _print_row(row: dict[str, Any]) -> None:
    print(
        f"{row['data'][:24]:24} {row['chunk'] or 'whole':>6} {row['compressor'][:16]:16} "
        f"{row['coded']:>12} {row['rate_percent']:>7} {row['adjusted_percent']:>10} "
        f"{row['encode_kb_s']:>8} {row['decode_kb_s']:>8}",
        flush=True,
    )
