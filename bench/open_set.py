"""The open set through lmzip and classical tools; what they wrote is decoded and compared.

    python bench/open_set.py --results bench/results/open_set.csv [--presets fast default] [--tools]
    python bench/open_set.py --results bench/results/open_set.csv --table

One row for each file and codec: bytes, and CPU seconds (user and system) to encode and to decode
(which rows of tools from before 2026-11-27 lack).  Rows that the results already hold are not
measured again, so a run that was cut off goes on where it ended; delete rows to have them again.
The files are those that open_set.tsv names (corpora.py), held against it; enwik8 stands for its two
slices that are reported (nothing from byte 90,000,000 on was trained on).
"""

import argparse
import csv
import fnmatch
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import corpora
import lmzip
from conftest import provenance

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {  # {raw} into {out} or standard output; {out}, which is the standard input too, back
    "xz -9e": ("xz -9e -T1 -k -c {raw}", "xz -d -T1 -c"),
    "zstd -22": ("zstd -q -T1 --ultra -22 --long=27 -c {raw}", "zstd -q -d --long=27 -c"),
    "brotli -q11": ("brotli -q 11 -w 24 -c {raw}", "brotli -d -c"),
    "bzip3 -b16": ("bzip3 -e -b 16 -c {raw}", "bzip3 -d -c"),
    "zpaq -m5": ("zpaq add {out}.zpaq {raw} -m5 -t1", "zpaq extract {out} {raw} -to {back} -t1"),
    "7z PPMd": ("7z a -bd -mmt=1 -m0=PPMd:mem=256m:o=8 {out}.7z {raw}", "7z x -so -mmt=1 {out}"),
}
SECONDS = ["encode_s", "decode_s"]
COLUMNS = ["file", "raw", "codec", "bytes", *SECONDS]
PROVENANCE = ["threads", "commit", "device", "date", "command"]


def files(pattern: str, largest: int) -> Iterator[tuple[str, bytes]]:
    """Name and raw bytes of each file of the manifest; ValueError if one is not what it says."""
    with corpora.MANIFEST.open() as manifest:
        rows = list(csv.DictReader(manifest, delimiter="\t"))
    for row in rows:
        name = row["path"].removesuffix(".xz")
        if not fnmatch.fnmatch(name, pattern) or (
            int(row["raw_bytes"]) > largest and name != "enwik8"
        ):
            continue
        raw = corpora.raw(name)
        if hashlib.sha256(raw).hexdigest() != row["sha256_raw"]:
            raise ValueError(f"{name} is not the file that the manifest describes")
        if name == "enwik8":
            yield "enwik8[95_000_000:95_200_000]", raw[95_000_000:95_200_000]
            yield "enwik8[99_000_000:]", raw[99_000_000:]
            if len(raw) <= largest:
                yield name, raw
        else:
            yield name, raw


def cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def measure_lmzip(raw: bytes, preset: str, threads: int) -> dict[str, object]:
    start = cpu_seconds()
    coded = lmzip.compress(raw, preset=preset, threads=threads)
    middle = cpu_seconds()
    if lmzip.decompress(coded, threads=threads) != raw:
        raise AssertionError("the decoded bytes differ: this is a bug in lmzip")
    return {
        "bytes": len(coded),
        "encode_s": f"{middle - start:.3f}",
        "decode_s": f"{cpu_seconds() - middle:.3f}",
    }


def quietest(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One of several runs, with the least seconds of all."""
    rows = list(runs)
    return rows[0] | {key: min((r[key] for r in rows), key=float) for key in SECONDS}


def measure_tool(raw: bytes, commands: tuple[str, str]) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        return _measure_tool(raw, commands, Path(folder))


def _measure_tool(raw: bytes, commands: tuple[str, str], folder: Path) -> dict[str, object]:
    source, back = folder / "raw", folder / "back"
    source.write_bytes(raw)

    def run(command: str, out: Path, given: Path) -> tuple[bytes, float]:
        words = [word.format(raw=source, out=out, back=back) for word in command.split()]
        start = cpu_seconds()
        with given.open("rb") as stdin:
            done = subprocess.run(words, stdin=stdin, capture_output=True, check=True)
        return done.stdout, cpu_seconds() - start

    encode, decode = commands
    printed, encode_seconds = run(encode, folder / "out", Path(os.devnull))
    written = next(folder.glob("out.*"), None)
    if written is None:
        written = folder / "out"
        written.write_bytes(printed)
    restored, decode_seconds = run(decode, written, written)
    if (back.read_bytes() if back.exists() else restored) != raw:
        raise AssertionError(f"{decode}: the decoded bytes differ")
    return {
        "bytes": written.stat().st_size,
        "encode_s": f"{encode_seconds:.3f}",
        "decode_s": f"{decode_seconds:.3f}",
    }


def read_results(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def print_table(rows: list[dict[str, str]]) -> None:
    """Bytes of every file, and each of lmzip's against the best tool."""
    sizes: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        sizes[row["file"]][row["codec"]] = int(row["bytes"])
    codecs = list(dict.fromkeys(row["codec"] for row in rows))
    ours = [codec for codec in codecs if codec.startswith("lmzip")]
    print("\t".join(["file", *codecs, *(f"{codec} / best tool" for codec in ours)]))
    for name, of in sizes.items():
        best = min((size for codec, size in of.items() if codec not in ours), default=0)
        ratios = [f"{of[codec] / best:.3f}" if best and codec in of else "" for codec in ours]
        print("\t".join([name, *(str(of.get(codec, "")) for codec in codecs), *ratios]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--presets", nargs="*", default=[], help="presets of lmzip to measure")
    parser.add_argument("--tools", action="store_true", help="measure the tools that are installed")
    parser.add_argument("--table", action="store_true", help="print the results instead")
    parser.add_argument("--threads", type=int, default=1, help="of lmzip")
    parser.add_argument("--repeats", type=int, default=1, help="the least seconds of so many runs")
    parser.add_argument("--only", default="*", help="pattern of file names")
    parser.add_argument("--largest", type=int, default=20_000_000, help="skip files above this")
    args = parser.parse_args()
    rows = read_results(args.results)
    if args.table:
        print_table(rows)
        return
    done = {(row["file"], row["codec"]) for row in rows}
    tools = {
        name: commands
        for name, commands in TOOLS.items()
        if args.tools and shutil.which(commands[0].split()[0])
    }
    with args.results.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS + PROVENANCE)
        if not rows:
            writer.writeheader()
        for name, raw in files(args.only, args.largest):
            for codec in [*(f"lmzip {preset}" for preset in args.presets), *tools]:
                if (name, codec) in done:
                    continue
                start = time.perf_counter()
                measured = quietest(
                    measure_tool(raw, tools[codec])
                    if codec in tools
                    else measure_lmzip(raw, codec.removeprefix("lmzip "), args.threads)
                    for _ in range(args.repeats)
                )
                row = {"file": name, "raw": len(raw), "codec": codec, **measured}
                writer.writerow(row | {"threads": args.threads} | provenance())
                file.flush()
                seconds = time.perf_counter() - start
                print(f"{name:50} {codec:14} {row['bytes']:>9}  {seconds:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
