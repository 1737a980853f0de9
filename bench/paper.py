"""Tables and figures of Delétang et al. 2023 from decoded files; docs/paper.md tells what they say.

    python bench/paper.py table1     rates of every compressor on every set
    python bench/paper.py figure4    rate against the length of the chunks
    python bench/paper.py pareto     rate against speed, from table1's rows
    python bench/paper.py generation continuations of a text, section 3.4

Rows go to bench/results/paper_*.csv, pictures to docs/.  What a results file has is not measured
again.  --enwik9 FILE takes the paper's own text; without it, the end of enwik8 stands for it, of
which nothing was trained on.  --limit bounds the bytes of each set.
"""

import argparse
import lzma
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from conftest import commit, device
from lmzip import baselines, generate, models
from lmzip.evaluate import Data, Results, measure

ROOT = Path(__file__).resolve().parents[1]
OPEN = Path(os.environ.get("LMZIP_DATA", ROOT.parent / "shared" / "data")) / "open"
RESULTS, DOCS = ROOT / "bench" / "results", ROOT / "docs"
CHUNK = 2048
CLASSICAL = ("gzip", "lzma", "png", "flac")
UNSEEN = 95_000_000  # of enwik8, from here on


def sets(args: argparse.Namespace) -> Iterator[Data]:
    """The paper's four, each cut to --limit bytes."""
    if args.enwik9:
        yield Data("enwik9", args.enwik9.read_bytes()[: args.limit])
    else:
        text = lzma.decompress((OPEN / "enwik8.xz").read_bytes())[UNSEEN:]
        yield Data("enwik8[95M:]", text[: args.limit])
    for name, file in (
        ("ImageNet patches", "lmic/imagenet_gray_32x64.bin.xz"),
        ("LibriSpeech", "lmic/librispeech_8bit_2048.bin.xz"),
    ):
        yield Data(name, lzma.decompress((OPEN / file).read_bytes())[: args.limit])
    yield Data("random", np.random.default_rng(0).bytes(args.limit))


def results(name: str) -> Results:
    provenance = {
        "device": device(),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
    }
    return Results(RESULTS / f"paper_{name}.csv", provenance)


def row(table: Results, data: Data, name: str, chunk: int) -> dict[str, Any]:
    compressor = baselines.named(name)
    found = table.find(data, compressor, chunk)
    if found is None:
        found = measure(data, compressor, chunk, progress=True)
        table.add(found)
        print(f"{data.name}: {name}, chunk {chunk or 'whole'}: {found['rate_percent']} %")
    return found


def model_names(args: argparse.Namespace) -> list[str]:
    """The bundled model, and those given."""
    default = models.default()
    return [*([str(default.path)] if default else []), *args.model]


def table1(args: argparse.Namespace) -> None:
    table = results("table1")
    for data in sets(args):
        for name in CLASSICAL:
            for chunk in (CHUNK, 0):
                row(table, data, name, chunk)
        for name in model_names(args):
            row(table, data, name, CHUNK)
        for preset in ("fast", "default"):
            row(table, data, preset, 0)


def figure4(args: argparse.Namespace) -> None:
    table = results("figure4")
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for data in sets(args):
        short = Data(data.name, data.raw[: min(args.limit, 1 << 18)])
        for name in ("gzip", "lzma", *model_names(args)):
            for log2 in range(6, 13):
                found = row(table, short, name, 1 << log2)
                label = str(found["compressor"])
                points.setdefault((short.name, label), []).append(
                    (1 << log2, float(found["rate_percent"]))
                )
    plt = pyplot()
    names = [d.name for d in sets(args)]
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.6 * len(names), 3.6), layout="constrained"
    )
    for axis, name in zip(axes, names, strict=True):
        for (data_name, label), line in points.items():
            if data_name == name:
                axis.semilogx(*zip(*line, strict=True), base=2, marker="o", label=label)
        axis.set(
            title=name, xlabel="bytes of a chunk", ylabel="compressed / raw, %", ylim=(0, None)
        )
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    save(figure, "paper_figure4")


def pareto(args: argparse.Namespace) -> None:
    del args
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6, 4.5), layout="constrained")
    for found in results("table1").rows:
        if found["data"] != "enwik8[95M:]":
            continue
        label = f"{found['compressor']}, {found['chunk'] if found['chunk'] != '0' else 'whole'}"
        x, y = float(found["decode_kb_s"]), float(found["bits_per_byte"])
        axis.plot([x, float(found["encode_kb_s"])], [y, y], color="gray", linewidth=0.8)
        axis.plot(x, y, "o")
        axis.annotate(label, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
    axis.set(
        xscale="log", xlabel="KB/s on one core: decoding (dot), line to encoding",
        ylabel="bits per byte", title="enwik8, bytes from 95,000,000 on",
    )  # fmt: skip
    axis.grid(alpha=0.3, which="both")
    save(figure, "paper_pareto")


def generation(args: argparse.Namespace) -> None:
    """1948 bytes of context, 100 sampled, as the paper's Figure 5 on text."""
    text = next(sets(args)).raw[:1948]
    print(f"context ends: {text[-200:].decode('utf-8', 'replace')!r}")
    for name in ("gzip", "lzma", *model_names(args)):
        drawn = bytes(generate.generate(generate.source(name), text, 100, seed=1))
        print(f"{Path(name).stem}: {drawn.decode('utf-8', 'replace')!r}")


def pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lmzip"  # the same picture from the same numbers
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, name: str) -> None:
    figure.savefig(DOCS / f"{name}.svg", metadata={"Date": None})
    print(f"wrote docs/{name}.svg")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = {f.__name__: f for f in (table1, figure4, pareto, generation)}
    parser.add_argument("what", choices=what)
    parser.add_argument("--limit", type=int, default=2 << 20, help="bytes of each set")
    parser.add_argument("--enwik9", type=Path)
    parser.add_argument("--model", action="append", default=[], help="one more model; repeatable")
    args = parser.parse_args()
    what[args.what](args)


if __name__ == "__main__":
    main()
