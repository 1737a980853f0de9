"""Tables and figures of Delétang et al. 2023 from decoded files; docs/paper.md tells what they say.

    python bench/paper.py table1      rates of every compressor on every set
    python bench/paper.py table2      tokens instead of bytes: trains small models
    python bench/paper.py figure2     adjusted rate against model size, from table1's rows
    python bench/paper.py figure4     rate against the length of the chunks
    python bench/paper.py generation  continuations of a text, pictures and speech, section 3.4
    python bench/paper.py pareto      rate against speed
    python bench/paper.py all

Rows go to bench/results/paper_*.csv, pictures to docs/ (--results, --docs).  What a results file
has of the same data and the same model is not measured again, so a run can be stopped and goes on.
--text FILE takes the paper's own text (enwik9) or any other; without it, the last ten million bytes
of enwik8, of which nothing was trained on.  --images and --speech take whole sets in the form of
the paper's loader: one byte a pixel or sample, nothing between.  --limit bounds the bytes of each.
"""

import argparse
import csv
import math
import shutil
from collections.abc import Iterator
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

import continuations
import corpora
import open_set
from conftest import provenance
from continuations import Continuations
from lmzip import baselines, models
from lmzip.baselines import Compressor
from lmzip.evaluate import Data, Results, as_row, measure
from paper_report import NAMES

ROOT = Path(__file__).resolve().parents[1]
PAPER_MODELS = ROOT / "bench" / "models"
CHUNK = 2048
CLASSICAL = ("gzip", "lzma", "png", "png-paper", "png-paper-plain", "flac")
UNSEEN = 90_000_000  # of enwik8, from here on
FIGURE4 = 1 << 17  # bytes of each set
LENGTHS = [1 << n for n in range(6, 14)]
PARETO = 1_000_000  # bytes of text


def near_square(size: int) -> int:
    """The smaller of the two factors of `size` that are nearest to each other.

    In the paper's code the width of a picture of so many bytes
    (google-deepmind/language_modeling_is_compression, compressors/png.py).
    """
    return max(width for width in range(1, math.isqrt(size) + 1) if size % width == 0)


PAPER_ROW = near_square(488_281 * CHUNK)  # pixels: 31,502, its set being that many chunks


def paper_width(size: int) -> int:
    """Pixels of a row.  A set taken whole gets the rows of the paper's own set, not those that its
    own size happens to have."""
    return near_square(size) if size <= CHUNK else PAPER_ROW


def compressor(name: str) -> Compressor:
    """What `baselines` has, and the paper's PNG: as in its code, and without the filter Average."""
    if name == "png-paper":
        return baselines.png(name, paper_width, optimize=True)
    if name == "png-paper-plain":
        return baselines.png(name, paper_width, optimize=False)
    return baselines.named(name)


@cache
def unxz(name: str) -> bytes:
    return corpora.raw(name)


@cache
def text(path: Path | None) -> Data:
    if path is None:
        return Data("enwik8[90M:]", unxz("enwik8")[UNSEEN:])
    return Data(path.stem, path.read_bytes())


def sets(args: argparse.Namespace) -> Iterator[Data]:
    """The paper's four, each cut to --limit bytes; as much noise as there is of the pictures."""
    whole = text(args.text)
    yield Data(whole.name, whole.raw[: args.limit])
    pictures = args.images.read_bytes() if args.images else unxz("lmic/imagenet_gray_32x64.bin")
    speech = args.speech.read_bytes() if args.speech else unxz("lmic/librispeech_8bit_2048.bin")
    yield Data("ImageNet patches", pictures[: args.limit])
    yield Data("LibriSpeech", speech[: args.limit])
    yield Data("random", np.random.default_rng(0).bytes(min(args.limit, len(pictures))))


def results(args: argparse.Namespace, name: str, **more: Any) -> Results:
    return Results(args.results / f"paper_{name}.csv", more | provenance())


def row(table: Results, data: Data, name: str, chunk: int) -> dict[str, Any]:
    by = compressor(name)
    found = table.find(data, by, chunk)
    if found is None:
        found = measure(data, by, chunk, progress=True)
        table.add(found)
        say(f"{data.name}: {by.name}, {chunk or 'whole'}: {found['rate_percent']} %")
    return found


def say(text: str) -> None:
    print(text, flush=True)


def model_names(args: argparse.Namespace) -> list[str]:
    """Models of bytes: the paper's sizes, the bundled one, those given."""
    default = models.default()
    sizes = sorted(map(models.read, PAPER_MODELS.glob("*.safetensors")), key=lambda m: m.parameters)
    found = [*(m.path for m in sizes), *([default.path] if default else []), *args.model]
    return list(map(str, found))


# ---- tables ---------------------------------------------------------------------------------


def table1(args: argparse.Namespace) -> None:
    """Rows of the cheap compressors first."""
    table = results(args, "table1")
    wanted = [
        *((name, chunk) for name in CLASSICAL for chunk in (CHUNK, 0)),
        *((name, CHUNK) for name in model_names(args)),
        *((preset, 0) for preset in ("fast", "default")),
    ]
    for name, chunk in wanted:
        if not args.only or Path(name).stem in args.only:
            for data in sets(args):
                row(table, data, name, chunk)
    for name in args.pretrained:
        for i, data in enumerate(sets(args)):
            size = args.sample // (4 if i else 1)  # of what is no text, a token is mostly one byte
            part = Data(f"{data.name}, sample", data.raw[:size])
            for by in ("gzip", name):  # gzip tells how hard the sample is
                row(table, part, by, CHUNK)


def table2(args: argparse.Namespace) -> None:
    """Models of two sizes on bytes and on BPE tokens, all trained on the same text."""
    import token_models

    training = args.train_text.read_bytes() if args.train_text else unxz("enwik8")[:UNSEEN]
    data = next(sets(args))
    data = Data(data.name, data.raw[: args.sample])
    for size in token_models.SIZES:
        for vocabulary in args.vocabulary or [token_models.BYTES, 1000, 2000, 5000, 10000, 20000]:
            label = "bytes" if vocabulary == token_models.BYTES else f"BPE {vocabulary}"
            name = f"{size.name}, {label}, {args.train_bytes} bytes seen"
            known = results(args, "table2")
            if any(r["compressor"] == name and r["sha256"] == data.sha256 for r in known.rows):
                continue
            folder = args.work / name.replace(" ", "_").replace(",", "")
            folder.mkdir(parents=True, exist_ok=True)
            notes = token_models.train(training, size, vocabulary, args.train_bytes, folder, name)
            path = str(folder / "exact.safetensors")
            row(results(args, "table2", **notes), data, path, CHUNK)


# ---- figures --------------------------------------------------------------------------------


def figure2(args: argparse.Namespace) -> None:
    """The rate is measured on the text at hand; the share of the model in more is arithmetic."""
    name = text(args.text).name
    found = [
        r
        for r in results(args, "table1").rows
        if r["data"] == name and r["chunk"] == str(CHUNK) and int(r["parameters"])
    ]
    found.sort(key=lambda r: int(r["parameters"]))
    from matplotlib.ticker import EngFormatter

    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    sizes = [int(r["parameters"]) for r in found]
    for exponent in (6, 7, 8, 9):
        rates = [
            float(r["rate_percent"]) + 100 * int(r["model_bytes"]) / 10**exponent for r in found
        ]
        (line,) = axis.loglog(sizes, rates, marker="o", label=f"10$^{exponent}$ bytes of data")
        best = int(np.argmin(rates))
        axis.plot(sizes[best], rates[best], "*", markersize=15, color=line.get_color())
    raw = [float(r["rate_percent"]) for r in found]
    axis.loglog(sizes, raw, color="gray", linestyle=":", marker=".", label="without the model")
    for r, x, y in zip(found, sizes, raw, strict=True):
        axis.annotate(
            r["compressor"], (x, y), textcoords="offset points", xytext=(0, -12), ha="center",
            fontsize=8, color="gray",
        )  # fmt: skip
    axis.set(
        xlabel="parameters (a byte each in the file)",
        ylabel="compressed and model / raw, %",
        title=f"{name}, chunks of {CHUNK} bytes; a star: the best size",
        ylim=(min(raw) / 1.35, None),
    )
    for one in (axis.xaxis, axis.yaxis):
        plain_ticks(one, (1, 2, 5))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.margins(x=0.12)
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    save(args, figure, "paper_figure2")


def figure4(args: argparse.Namespace) -> None:
    table = results(args, "figure4")
    rates: dict[str, dict[str, list[float]]] = {}
    for data in sets(args):
        short = Data(data.name, data.raw[: min(args.limit, FIGURE4)])
        for name in ("gzip", "lzma", *model_names(args)):
            for size in LENGTHS:
                found = row(table, short, name, size)
                of = rates.setdefault(data.name, {}).setdefault(found["compressor"], [])
                of.append(float(found["rate_percent"]))
    plt = pyplot()
    from matplotlib.ticker import FixedLocator, FormatStrFormatter

    figure, axes = plt.subplots(
        1, len(rates), figsize=(13, 4.6), sharey=True, layout="constrained"
    )  # fmt: skip
    for axis, (name, lines) in zip(axes, rates.items(), strict=True):
        for marker, (label, line) in zip(cycle("os^Dv*P"), lines.items(), strict=False):
            shown = NAMES.get(label, label)
            axis.plot(LENGTHS, line, marker=marker, markersize=4, linewidth=1.2, label=shown)
        axis.axhline(100, color="gray", linestyle=":")
        axis.set(title=name, xlabel="bytes of a chunk", yscale="log")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(FixedLocator(LENGTHS))
        axis.xaxis.set_major_formatter(FormatStrFormatter("%d"))
        axis.tick_params(axis="x", labelrotation=60)
        axis.grid(alpha=0.3, which="both")
    plain_ticks(axes[0].yaxis, (1, 1.5, 2, 3, 5, 7))
    axes[0].set_ylabel("compressed / raw, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    save(args, figure, "paper_figure4")


def pareto(args: argparse.Namespace) -> None:
    """All compressors of the machine on the end of the text; SmolLM2 is a row of pretrained.py."""
    table = results(args, "pareto")
    raw = text(args.text).raw[-min(args.limit, PARETO) :]
    data = Data(f"the end of {text(args.text).name}", raw)
    lane = -(-len(raw) // 16)  # the networks' chunks: 16 lanes, as in preset default
    alone = [(name, lane) for name in model_names(args)]
    for name, chunk in (("gzip", 0), ("fast", 0), ("default", 0), *alone):
        by = compressor(name)
        if table.find(data, by, chunk) is None:
            runs = [measure(data, by, chunk, progress=True) for _ in range(args.repeats)]
            table.add(_fastest(runs))
    for name, commands in open_set.TOOLS.items():
        done = any((r["compressor"], r["sha256"]) == (name, data.sha256) for r in table.rows)
        if not done and shutil.which(commands[0].split()[0]):
            made = [open_set.measure_tool(raw, commands) for _ in range(args.repeats)]
            table.add(_fastest([_tool_row(data, name, r) for r in made]))
    measured = [r for r in table.rows if r["sha256"] == data.sha256]
    plt = pyplot()
    from matplotlib.ticker import StrMethodFormatter

    figure, axis = plt.subplots(figsize=(9, 6), layout="constrained")
    for label, bits, encode, decode in [*map(_point, measured), *_pretrained_point(args.results)]:
        color = "C3" if label.startswith(("lmzip", "SmolLM2", "Transformer")) else "C0"
        axis.plot([encode, decode], [bits, bits], color=color, linewidth=0.8)
        axis.plot(decode, bits, "o", color=color, markerfacecolor="white")
        axis.plot(encode, bits, "o", color=color)
        left = label.startswith("Transformer")  # of the bundled model, which is about as good
        axis.annotate(
            label, (min(encode, decode) if left else max(encode, decode), bits),
            textcoords="offset points", xytext=(-7 if left else 7, 0),
            ha="right" if left else "left", va="center", fontsize=8,
        )  # fmt: skip
    axis.set(
        xscale="log",
        xlabel="KB of text a second of CPU time: compressing (full), decompressing (hollow)",
        ylabel="bits per byte",
        title="The last million bytes of enwik8, each as one file",
    )
    plain_ticks(axis.xaxis)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set_xlim(None, axis.get_xlim()[1] * 5)  # for the names
    axis.grid(alpha=0.3, which="both")
    save(args, figure, "paper_pareto")


def _fastest(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One of several runs of the same, with the best speeds of all."""
    speeds = ("encode_kb_s", "decode_kb_s")
    return runs[0] | {key: max((r[key] for r in runs), key=float) for key in speeds}


def _tool_row(data: Data, name: str, made: dict[str, Any]) -> dict[str, Any]:
    seconds = float(made["encode_s"]), float(made["decode_s"])
    return as_row(data, name, 0, made["bytes"], seconds)


def _point(r: dict[str, Any]) -> tuple[str, float, float, float]:
    """Label, bits per byte, KB/s of encoding and of decoding."""
    label = NAMES.get(r["compressor"], r["compressor"])
    return label, float(r["bits_per_byte"]), float(r["encode_kb_s"]), float(r["decode_kb_s"])


def _pretrained_point(folder: Path) -> Iterator[tuple[str, float, float, float]]:
    rows = [r for r in read_rows(folder / "pretrained.csv") if r["text"] == "enwik8_95M_200K"]
    latest = [r for r in rows if r["bpb"]][-1:]
    for r in latest:
        yield (
            f"SmolLM2-135M, {r['lanes']} lanes (200 KB from 95,000,000)",
            float(r["bpb"]),
            float(r["encode_kb_per_cpu_s"]),
            float(r["decode_kb_per_cpu_s"]),
        )


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---- generation: section 3.4 ----------------------------------------------------------------


def generation(args: argparse.Namespace) -> None:
    """1948 bytes of context and 100 drawn for text, as in the paper; rows of pictures; speech."""
    kept = Continuations(args.results / "paper_generation.csv")
    classical = ["gzip", "lzma"]
    prompt = text(args.text).raw[:1948]
    say(f"context ends: {prompt[-200:].decode('utf-8', 'replace')!r}")
    for name in [*classical, *model_names(args), *args.pretrained]:
        for temperature in (1.0,) if name in classical else (1.0, 0.5):
            made = kept.get(name, prompt, min(100, args.drawn), temperature)
            shown = made.data.decode("utf-8", "replace")
            say(f"{made.by}, temperature {temperature}: {shown!r}")
    plt = pyplot()
    for draw, own, name in (
        (continuations.pictures, "png", "paper_images"),
        (continuations.speech, "flac", "paper_speech"),
    ):
        drawers = ["gzip", own, *model_names(args)]
        save(args, draw(plt, kept, unxz, drawers, args.drawn), name)


# ---- what all share -------------------------------------------------------------------------


def pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lmzip"  # the same picture from the same numbers
    from matplotlib import pyplot as plt

    return plt


def plain_ticks(axis: Any, steps: tuple[int, ...] = (1,)) -> None:
    """100 and not 10^2 on a logarithmic axis."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator

    axis.set_major_locator(LogLocator(10, steps))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter("")


def save(args: argparse.Namespace, figure: Any, name: str) -> None:
    path = args.docs / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    say(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = {f.__name__: f for f in (table1, table2, figure2, figure4, generation, pareto)}
    parser.add_argument("what", choices=[*what, "all"])
    parser.add_argument("--limit", type=int, default=10_000_000, help="bytes of each set")
    parser.add_argument("--text", type=Path, help="in place of the end of enwik8")
    parser.add_argument("--images", type=Path, help="gray patches of 32 x 64")
    parser.add_argument("--speech", type=Path, help="8-bit samples at 16 kHz")
    parser.add_argument("--only", action="append", help="table1: this compressor; repeatable")
    parser.add_argument("--model", action="append", default=[], help="one more model; repeatable")
    parser.add_argument(
        "--pretrained", action="append", default=[], help="a model of tokens; on --sample bytes"
    )
    parser.add_argument("--sample", type=int, default=1 << 16, help="for what is slow")
    parser.add_argument("--repeats", type=int, default=1, help="pareto: the best speeds of so many")
    parser.add_argument("--drawn", type=int, default=512, help="bytes of a picture's continuation")
    parser.add_argument("--vocabulary", type=int, action="append", help="table2; repeatable")
    parser.add_argument("--train-bytes", type=int, default=4_000_000, help="table2")
    parser.add_argument("--train-text", type=Path, help="table2: in place of enwik8's beginning")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "paper", help="for models")
    args = parser.parse_args()
    for name in what if args.what == "all" else [args.what]:
        what[name](args)


if __name__ == "__main__":
    main()
