"""Data that is compressed already: how fast it passes, and that it does not grow.

    python bench/incompressible.py --results bench/results/incompressible.csv [--size 67108864]

Random bytes, an .xz, a .zip and photographs as JPEG, each alone; then halves of text and random
bytes, and text every 3 MiB in them.  Each is compressed by the command, restored and compared;
`rest` is what the file takes beside its random bytes.  Wall times want a quiet machine.
"""

import argparse
import csv
import io
import lzma
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

import corpora
from conftest import provenance
from whole import Runs, text


def photographs(size: int) -> bytes:
    out = bytearray()
    for quality in (95, 90, 85, 80, 75, 60):
        for path in sorted((corpora.OPEN / "images").glob("*.ppm.xz")):
            image = Image.open(io.BytesIO(lzma.decompress(path.read_bytes())))
            with io.BytesIO() as file:
                image.save(file, "JPEG", quality=quality)
                out += file.getvalue()
    return bytes(out[:size])


def zipped(size: int) -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("text", text(min(3 * size, 5_000_000)))
        return file.getvalue()[:size]


def inputs(size: int) -> Iterator[tuple[str, bytes, int]]:
    """Name, bytes, and how many of them are random."""
    rng = random.Random(1)
    yield "random", rng.randbytes(size), size
    xz = corpora.stored("enwik8").read_bytes()[:size]
    yield "xz", xz, len(xz)
    for name, data in (("zip", zipped(size)), ("jpeg", photographs(size))):
        yield name, data, len(data)
    some = text(min(size // 64, 1 << 20))
    yield "half text", some + rng.randbytes(len(some)), len(some)
    islands = b"".join(some[i : i + 50_000] + rng.randbytes(3 << 20) for i in (0, 50_000, 100_000))
    yield "islands of text", islands, 9 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64 << 20)
    parser.add_argument("--presets", nargs="+", default=["default", "fast"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    rows = []
    for name, raw, incompressible in inputs(args.size):
        for preset in args.presets:
            way = Runs(raw, "", args.threads, ["--preset", preset])
            way.run()
            row = way.row()
            rest = int(str(row["bytes"])) - incompressible
            rows.append({"input": name, "rest": rest} | row | provenance())
            speeds = [float(str(row[f"{what}_kb_s"])) / 1000 for what in ("encode", "decode")]
            print(name, preset, row["bytes"], "rest", rest, *map("{:.1f} MB/s".format, speeds))
    with args.results.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
