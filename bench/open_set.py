"""Whole files through lmzip and beside it classical tools; every result decoded and compared.

    python bench/open_set.py --results bench/results/open_set.csv [--preset fast]

One row a file: raw bytes, lmzip's bytes, seconds to encode and to decode, and the sizes of those of
xz -9e, zstd --ultra -22, brotli, bzip3, zpaq -m5 and 7z PPMd that are installed.  The files are
those of LMZIP_DATA/open (default ../shared/data/open), held against its MANIFEST.tsv.
"""

import argparse
import csv
import fnmatch
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import lmzip
from conftest import commit, device

ROOT = Path(__file__).resolve().parents[1]
OPEN = Path(os.environ.get("LMZIP_DATA", ROOT.parent / "shared" / "data")) / "open"
TOOLS = {  # name: a command that turns {raw} into {out}
    "xz -9e": "xz -9e -k -c {raw}",
    "zstd -22": "zstd -q --ultra -22 --long=27 -c {raw}",
    "brotli -q11": "brotli -q 11 -w 24 -c {raw}",
    "bzip3 -b16": "bzip3 -e -b 16 -c {raw}",
    "zpaq -m5": "zpaq add {out} {raw} -m5",
    "7z PPMd": "7z a -bd -m0=PPMd:o=8:mem=256m {out} {raw}",
}


def files(pattern: str, largest: int) -> Iterator[tuple[str, bytes]]:
    """Name and raw bytes of each file of the manifest; ValueError if one is not what it says."""
    with (OPEN / "MANIFEST.tsv").open() as manifest:
        for row in csv.DictReader(manifest, delimiter="\t"):
            name = row["path"].removesuffix(".xz")
            if int(row["raw_bytes"]) > largest or not fnmatch.fnmatch(name, pattern):
                continue
            raw = lzma.decompress((OPEN / row["path"]).read_bytes())
            if hashlib.sha256(raw).hexdigest() != row["sha256_raw"]:
                raise ValueError(f"{name} is not the file that the manifest describes")
            yield name, raw


def slices(files_: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """enwik8 as the slices that are reported (bytes from 95,000,000 on were never trained on)."""
    for name, raw in files_:
        if name == "enwik8":
            yield "enwik8[95_000_000:95_200_000]", raw[95_000_000:95_200_000]
            yield "enwik8[99_000_000:]", raw[99_000_000:]
        else:
            yield name, raw


def measure(raw: bytes, preset: str, threads: int) -> dict[str, object]:
    times = [time.perf_counter()]
    coded = lmzip.compress(raw, preset=preset, threads=threads)
    times.append(time.perf_counter())
    decoded = lmzip.decompress(coded, threads=threads)
    times.append(time.perf_counter())
    if decoded != raw:
        raise AssertionError("the decoded bytes differ: this is a bug in lmzip")
    return {
        "lmzip": len(coded),
        "encode_s": f"{times[1] - times[0]:.3f}",
        "decode_s": f"{times[2] - times[1]:.3f}",
    }


def classical(raw: bytes, folder: Path) -> dict[str, int]:
    sizes = {}
    source = folder / "raw"
    source.write_bytes(raw)
    for name, command in TOOLS.items():
        if shutil.which(command.split()[0]) is None:
            continue
        out = folder / ("out.zpaq" if "zpaq" in name else "out.7z" if "7z" in name else "out")
        words = [w.format(raw=source, out=out) for w in command.split()]
        done = subprocess.run(words, capture_output=True, check=True)
        sizes[name] = out.stat().st_size if "{out}" in command else len(done.stdout)
        out.unlink(missing_ok=True)
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="*", help="pattern of file names")
    parser.add_argument("--largest", type=int, default=20_000_000, help="skip files above this")
    parser.add_argument("--whole-enwik8", action="store_true")
    parser.add_argument("--no-tools", action="store_true", help="lmzip alone")
    args = parser.parse_args()
    chosen = files(args.only, 10**9 if args.whole_enwik8 else args.largest)
    if not args.whole_enwik8:
        enwik8 = files("enwik8", 10**9) if fnmatch.fnmatch("enwik8", args.only) else iter(())
        chosen = slices(iter([*chosen, *enwik8]))
    provenance = {
        "preset": args.preset,
        "threads": args.threads,
        "device": device(),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
    }
    columns = ["file", "raw", "lmzip", "encode_s", "decode_s", *TOOLS, *provenance]
    with args.results.open("w", newline="") as file, tempfile.TemporaryDirectory() as folder:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for name, raw in chosen:
            row = {"file": name, "raw": len(raw), **measure(raw, args.preset, args.threads)}
            if not args.no_tools:
                row |= classical(raw, Path(folder))
            writer.writerow(row | provenance)
            file.flush()
            print(f"{name:50} {len(raw):>10} -> {row['lmzip']:>9}", row, file=sys.stderr)


if __name__ == "__main__":
    main()
