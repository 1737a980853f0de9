"""What each part of the mixer gives: bytes more and time less without it.

    python bench/mixer_ablation.py --results bench/results/mixer_ablation.csv [--groups text strong]
    python bench/mixer_ablation.py --results bench/results/mixer_ablation.csv --table

A context is left out of its profile's list in a copy of csrc/, and compiled: bytes, and user CPU
time of encoding, the rounds interleaved.  Other parts are switched off at run time
(mixer_ablation.h): bytes only, for a part that is off still costs its time.  Bytes are the means of
the files' logarithms.  Nothing is decoded here.

Texts are those that the bundled model has not been trained on (what its recipe holds out); the
other groups are files of LMZIP_DATA/open, measured and not tuned on.
"""

import argparse
import csv
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import corpora
from conftest import provenance
from lmzip import _core, coder_torch, models
from lmzip.corpus import read_mix
from lmzip.model_file import load

ROOT = Path(__file__).resolve().parents[1]
PIECE = 131_072  # bytes of a text
LANES = 4  # of a text of that size beside a network

Sample = tuple[str, bytes]


def texts() -> list[Sample]:
    """The middle of what the bundled model's recipe holds out of each kind of text."""
    os.environ.setdefault("LMZIP_DATA", str(corpora.DATA))
    found = []
    for group in read_mix(ROOT / "recipes" / "bundled.json").groups:
        begin = max(0, (len(group.held_out) - PIECE) // 2)
        found.append((group.name, group.held_out[begin : begin + PIECE].tobytes()))
    return found


def open_files(*names: str, size: int = 400_000) -> list[Sample]:
    found = []
    for name in names:
        path, _, begin = name.partition("@")
        raw = corpora.raw(path)
        found.append((path, raw[int(begin or 0) :][:size]))
    return found


@dataclass
class Group:
    """Samples of one profile, and the parts of it that are no contexts."""

    profile: str
    samples: Callable[[], list[Sample]]
    network: bool = False
    parts: list[str] = field(
        default_factory=lambda: [
            "order0", "match", "longmatch", "linear", "apm",
            "set-match", "set-partial", "set-byte", "set-classes",
        ]
    )  # fmt: skip


GROUPS = {
    "text": Group("text", texts),
    "strong": Group("strong", texts, network=True),
    "binary": Group(
        "binary",
        lambda: open_files(
            "calgary/geo", "calgary/obj2", "canterbury/kennedy.xls", "canterbury/sum", "calgary/pic"
        ),
    ),
    "sample": Group(
        "sample",
        lambda: open_files(
            "images/kodim05.ppm",
            "images/kodim23.ppm",
            "lmic/imagenet_gray_32x64.bin",
            "lmic/librispeech_8bit_2048.bin",
        ),
    ),
    "code": Group(
        "code",
        lambda: [
            (name, _core.x86_to_absolute(raw))  # as its frames are
            for name, raw in open_files("silesia/ooffice@400000", "silesia/ooffice@3000000")
        ],
    ),
}
GROUPS["strong"].parts.remove("order0")  # the network takes its place
GROUPS["sample"].parts += [f"sample{i}" for i in range(10)]


def network_weights(raw: bytes) -> NDArray[np.uint32]:
    """What the bundled model says of each byte, (bytes, 256), in LANES lanes."""
    model = load(models.find("lmzip-default").path)
    stride = -(-len(raw) // LANES)
    text = np.zeros(stride * LANES, np.uint8)
    text[: len(raw)] = np.frombuffer(raw, np.uint8)
    inputs = np.zeros((LANES, stride), np.uint8)
    inputs[:, 1:] = text.reshape(LANES, stride)[:, :-1]
    exact = _core.ExactModel(model.tensors, model.architecture.to_json())
    engine = _core.Engine(exact, LANES)
    logits = engine.prefill(inputs).reshape(-1, 256)[: len(raw)]
    weights, _ = coder_torch.weights("logits", torch.from_numpy(logits))
    return weights.numpy().view(np.uint32)


class Bench:
    """mixer_bench, without some part of a profile."""

    def __init__(self, program: Path, group: Group, objects: list[Path]) -> None:
        self.program, self.group = program, group
        compiler("-o", str(program), *map(str, objects))

    def run(self, files: Sequence[Path], drop: str = "") -> tuple[list[int], float]:
        """Bytes of each file, microseconds a byte over all."""
        words = [str(self.program), "-e", "-p", self.group.profile, "-m", "23"]
        words += ["-w", "-l", str(LANES)] if self.group.network else []
        done = subprocess.run(
            [*words, *map(str, files)],
            env=os.environ | {"LMZIP_DROP": drop},
            capture_output=True,
            text=True,
            check=True,
        )
        lines = [line.split() for line in done.stdout.splitlines()]
        sizes = [int(words[2]) for words in lines[:-1]]
        return sizes, float(lines[-1][lines[-1].index("encode") + 1])


def compiler(*arguments: str) -> None:
    flags = ["-std=c++20", "-O3", "-DNDEBUG", "-ffp-contract=off"]
    subprocess.run([os.environ.get("CXX", "g++"), *flags, *arguments], check=True)


def compile_all(source: Path, *flags: str) -> dict[str, Path]:
    """The objects of mixer_bench, by the names of their files."""
    files = [ROOT / "bench/native/mixer_bench.cpp", *sorted(source.glob("mixer*.cpp"))]
    files += [source / f"{name}.cpp" for name in ("bit_history", "cpu")]
    objects = {file.stem: source / f"{file.stem}.o" for file in files}
    for file in files:
        compiler(*flags, "-I", str(source), "-c", "-o", str(objects[file.stem]), str(file))
    return objects


def compile_benches(folder: Path, group: Group) -> tuple[Bench, dict[str | None, Bench]]:
    """One whose parts can be switched off, and those without each of the contexts, and whole."""

    def sources(name: str) -> Path:
        shutil.copytree(ROOT / "csrc", folder / name)
        return folder / name

    source = sources("switched")
    objects = compile_all(source, "-DLMZIP_MIXER_ABLATION")
    switched = Bench(source / "mixer_bench", group, list(objects.values()))
    source = sources("whole")
    objects = compile_all(source)
    benches: dict[str | None, Bench] = {
        None: Bench(source / "mixer_bench", group, list(objects.values()))
    }
    own = f"mixer_{group.profile}"
    for context in contexts(group.profile):
        source = sources(context)
        header = source / "mixer_contexts.h"
        header.write_text(leave_out(header.read_text(), group.profile, context))
        changed = source / f"{own}.o"
        compiler("-I", str(source), "-c", "-o", str(changed), str(source / f"{own}.cpp"))
        rest = [file for name, file in objects.items() if name != own]
        benches[context] = Bench(source / "mixer_bench", group, [changed, *rest])
        print(f"{group.profile} without {context}: compiled", file=sys.stderr)
    return switched, benches


def contexts(profile: str) -> list[str]:
    text = (ROOT / "csrc" / "mixer_contexts.h").read_text()
    return re.findall(r"Context::k(\w+)", body_of(text, profile))[:-1]  # the last is needed


def body_of(text: str, profile: str) -> str:
    found = re.search(rf"struct {profile.capitalize()}Profile {{.*?}};\n}};", text, re.DOTALL)
    assert found is not None, profile
    return found[0]


def leave_out(text: str, profile: str, context: str) -> str:
    body = body_of(text, profile)
    return text.replace(body, re.sub(rf"Context::k{context},\s*", "", body))


def measure(name: str, rounds: int) -> list[dict[str, object]]:
    group = GROUPS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = []
        for i, (sample, raw) in enumerate(group.samples()):
            files.append(folder / f"{i}-{sample.replace('/', '-')}")
            files[-1].write_bytes(raw)
            if group.network:
                network_weights(raw).tofile(f"{files[-1]}.w")
        switched, benches = compile_benches(folder, group)
        times: dict[str | None, list[float]] = {without: [] for without in benches}
        sizes: dict[str | None, list[int]] = {}
        for number in range(rounds):
            for without, bench in benches.items():
                sizes[without], time = bench.run(files)
                times[without].append(time)
            print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr)
        off = {part: switched.run(files, part)[0] for part in group.parts}

    def row(without: str, made: list[int], taken: list[float] | None = None) -> dict[str, object]:
        ratios = [some / all_ for some, all_ in zip(made, whole, strict=True)]
        return {
            "group": name,
            "without": without.lower(),
            "bytes": sum(made),
            "more_percent": f"{100 * statistics.fmean(map(math.log, ratios)):.2f}",
            "us_a_byte": f"{statistics.median(taken):.3f}" if taken else "",
        }

    whole = sizes[None]
    rows = [row(without or "nothing", sizes[without], times[without]) for without in benches]
    return rows + [row(part, made) for part, made in off.items()]


COLUMNS = ["group", "without", "bytes", "more_percent", "us_a_byte"]
PROVENANCE = ["rounds", "device", "commit", "date", "command"]


def print_table(path: Path) -> None:
    """Markdown: per cent of bytes more, and of time less, without each part."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups = list(dict.fromkeys(row["group"] for row in rows))
    found = {(row["group"], row["without"]): row for row in rows}
    print("| left out | " + " | ".join(groups) + " |\n|" + "---|" * (len(groups) + 1))
    for part in dict.fromkeys(row["without"] for row in rows):
        cells = []
        for group in groups:
            row, whole = found.get((group, part)), found[group, "nothing"]
            if row is None:
                cells.append("")
            elif part == "nothing":
                cells.append(f"{int(row['bytes']):,} bytes, {row['us_a_byte']} µs a byte")
            else:
                cell = f"{float(row['more_percent']):+.2f} %"
                if row["us_a_byte"]:
                    less = 1 - float(row["us_a_byte"]) / float(whole["us_a_byte"])
                    cell += f" · {-100 * less:.0f} %"
                cells.append(cell)
        print(f"| {part} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="print the results instead")
    args = parser.parse_args()
    if args.table:
        print_table(args.results)
        return
    new = not args.results.exists()
    with args.results.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS + PROVENANCE)
        if new:
            writer.writeheader()
        for name in args.groups:
            where = {"rounds": args.rounds} | provenance()
            writer.writerows(row | where for row in measure(name, args.rounds))
            file.flush()


if __name__ == "__main__":
    main()
