"""The command as its users run it: wall time, CPU time and peak memory of whole processes.

    python bench/whole.py --results bench/results/whole.csv [--model FILE]... [--size 4194304]

Compresses and restores texts of some sizes (enwik8 from byte 95,000,000 on, never trained on) with
`lmzip -T N`; every output is compared.  Medians of --repeats rounds.  Wall times want a quiet
machine.
"""

import argparse
import csv
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import corpora
from conftest import provenance

ROOT = Path(__file__).resolve().parents[1]
LMZIP = Path(sys.executable).parent / "lmzip"


def text(size: int) -> bytes:
    return corpora.raw("enwik8", 95_000_000, size)


def child(*arguments: str) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds, peak MiB of one run; SystemExit if it fails."""
    start = time.perf_counter()
    pid = os.posix_spawn(LMZIP, [str(LMZIP), *arguments], os.environ)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    if status != 0:
        raise SystemExit(f"lmzip {' '.join(arguments)}: exit status {status}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


class Runs:
    """One way to compress a text, and how long it took each time."""

    def __init__(self, raw: bytes, model: str, threads: int, options: list[str]) -> None:
        self.raw, self.model, self.threads, self.options = raw, model, threads, options
        self.encode: list[tuple[float, float, float]] = []
        self.decode: list[tuple[float, float, float]] = []
        self.size = 0

    def run(self) -> None:
        """Both ways once; AssertionError if the bytes do not come back."""
        common = ["-q", "-f", "-T", str(self.threads)]
        common += ["--model", self.model] if self.model else []
        with tempfile.TemporaryDirectory() as name:
            source, packed, restored = (Path(name) / s for s in ("raw", "packed.lmz", "restored"))
            source.write_bytes(self.raw)
            self.encode.append(child(*common, *self.options, str(source), "-o", str(packed)))
            self.decode.append(child(*common, "-d", str(packed), "-o", str(restored)))
            if restored.read_bytes() != self.raw:
                raise AssertionError("the restored bytes differ: this is a bug in lmzip")
            self.size = packed.stat().st_size

    def row(self) -> dict[str, object]:
        row: dict[str, object] = {
            "raw": len(self.raw),
            "threads": self.threads,
            "options": " ".join(self.options),
            "model": Path(self.model).stem if self.model else "bundled",
            "bytes": self.size,
        }
        for what, runs in (("encode", self.encode), ("decode", self.decode)):
            wall, cpu, memory = (statistics.median(column) for column in zip(*runs, strict=True))
            row |= {
                f"{what}_seconds": f"{wall:.3f}",
                f"{what}_cpu_seconds": f"{cpu:.3f}",
                f"{what}_kb_s": f"{len(self.raw) / wall / 1000:.1f}",
                f"{what}_peak_mib": f"{memory:.0f}",
            }
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[], help="besides the bundled one")
    parser.add_argument("--size", type=int, default=4 << 20, help="bytes of the long text")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    raw = text(args.size)
    ways = [
        Runs(raw[:size], model, threads, options)
        for model in ["", *args.model]
        for size, threads, options in (
            (1_000, 2, []),
            (10_000, 2, []),
            (100_000, 2, []),
            (args.size, 1, []),
            (args.size, 1, ["--preset", "network"]),
            (args.size, 2, []),
            (args.size, 2, ["--preset", "network"]),
            (args.size, 2, ["--preset", "fast"]),
        )
    ]
    for _ in range(args.repeats):  # one after the other: what slows the machine slows all of them
        for way in ways:
            way.run()
            print(way.row(), file=sys.stderr, flush=True)
    rows = [way.row() for way in ways]
    where = provenance()
    where["device"] = f"{where['device']}, {os.cpu_count()} cores"
    with args.results.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *where])
        writer.writeheader()
        writer.writerows(row | where for row in rows)


if __name__ == "__main__":
    main()
