"""Ratio against speed: lanes, windows and frames, and the PyTorch engine beside the native one.

    python bench/design.py --results bench/results/design.csv [--plot docs/design.svg]

Every payload is decoded and compared.  Text: the first bytes of enwik8 from 95,000,000 on (never
trained on).  Speeds are CPU time of one thread, the median of --repeats.  The model is the bundled
one, or LMZIP_MODEL.  Rows that the results already hold of the same text and model are not measured
again, so a run that was cut off goes on where it ended; delete rows to have them again.
"""

import argparse
import csv
import dataclasses
import hashlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import corpora
from conftest import provenance
from lmzip import _core, models
from lmzip.model_file import ExactModel, load
from lmzip.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
NETWORK, MIXER, BOTH = 1, 2, 3  # methods, docs/format.md section 5
PROFILE = "strong"  # of the mixer, as in the default preset
METHODS = {NETWORK: "network", MIXER: "mixer", BOTH: "network+mixer"}
COLUMNS = [
    "what", "method", "raw", "lanes", "window", "frame", "bytes", "encode_kb_s", "decode_kb_s",
    "sha256", "model",
]  # fmt: skip
PROVENANCE = ["device", "commit", "date", "command"]
KEY = ("what", "method", "raw", "lanes", "window", "frame", "sha256", "model")
LANES = (1, 2, 4, 8, 16, 32, 64)
WINDOWS = (8, 16, 32, 64, 128, 256)
FRAMES = tuple(1 << log2_size for log2_size in range(16, 23))
ROWS = 2 + 2 * len(LANES) + 2 * len(WINDOWS) + len(FRAMES)


def text() -> bytes:
    return corpora.raw("enwik8", 95_000_000)


def native(model: ExactModel) -> _core.ExactModel:
    return _core.ExactModel(model.tensors, model.architecture.to_json())


class Bench:
    def __init__(self, results: Path, repeats: int) -> None:
        self.results, self.repeats = results, repeats
        info = models.default()
        if info is None:
            raise SystemExit("no model: install lmzip with its bundled one, or set LMZIP_MODEL")
        self.model, self.model_id = load(info.path), info.id.hex()[:16]
        self.engine = native(self.model)
        self.rows: list[dict[str, str]] = []
        if results.exists():
            with results.open(newline="") as file:
                self.rows = list(csv.DictReader(file))
        self.progress = Progress("design", ROWS, wanted=True)
        self.done = 0

    def key(self, raw: bytes, **columns: object) -> dict[str, str]:
        """The columns that say what is measured."""
        named = columns | {"raw": len(raw), "model": self.model_id}
        named["sha256"] = hashlib.sha256(raw).hexdigest()
        return {name: str(named.get(name, "")) for name in KEY}

    def measured(self, key: dict[str, str]) -> bool:
        """Whether there is such a row; then it counts as done."""
        found = any(all(row[name] == key[name] for name in KEY) for row in self.rows)
        self.advance(found)
        return found

    def advance(self, by: int) -> None:
        self.done += by
        self.progress.update(self.done, 0, 0)

    def add(self, row: dict[str, str], **columns: object) -> None:
        columns |= provenance()
        self.rows.append(row | {name: str(value) for name, value in columns.items()})
        with self.results.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*COLUMNS, *PROVENANCE])
            writer.writeheader()
            writer.writerows(self.rows)
        self.advance(1)

    def frame(
        self,
        what: str,
        raw: bytes,
        method: int,
        lanes: int,
        *,
        engine: _core.ExactModel | None = None,
        **columns: object,
    ) -> None:
        """One frame both ways, as the presets code it; a row of the table."""
        key = self.key(raw, what=what, method=METHODS[method], lanes=lanes, **columns)
        if self.measured(key):
            return
        engine, bits = engine or self.engine, 0 if method == NETWORK else 24
        encode, decode = [], []
        for _ in range(self.repeats):
            start = time.process_time()
            payloads = _core.encode_frame(engine, raw, lanes, method, bits, 1, PROFILE)
            middle = time.process_time()
            decoded = _core.decode_frame(engine, payloads, len(raw), method, bits, 1, PROFILE)
            encode.append(middle - start)
            decode.append(time.process_time() - middle)
            if decoded != raw:
                raise AssertionError("the decoded bytes differ: this is a bug in lmzip")
        self.add(
            key,
            bytes=sum(map(len, payloads)),
            encode_kb_s=f"{len(raw) / statistics.median(encode) / 1000:.1f}",
            decode_kb_s=f"{len(raw) / statistics.median(decode) / 1000:.1f}",
        )

    def lanes(self, raw: bytes) -> None:
        for method in (NETWORK, BOTH):
            for lanes in LANES:
                self.frame("lanes", raw, method, lanes)

    def windows(self, raw: bytes) -> None:
        """The model's own windows cut down to `window`."""
        a = self.model.architecture
        for window in WINDOWS:
            cut = dataclasses.replace(a, windows=tuple(min(w, window) for w in a.windows))
            engine = native(dataclasses.replace(self.model, architecture=cut))
            for method in (NETWORK, BOTH):
                self.frame("windows", raw, method, 16, engine=engine, window=window)

    def frames(self, raw: bytes) -> None:
        """The same text in frames of different sizes; sizes only, speeds do not depend on them."""
        for size in FRAMES:
            key = self.key(raw, what="frames", method=METHODS[BOTH], frame=size)
            if self.measured(key):
                continue
            pieces = [raw[i : i + size] for i in range(0, len(raw), size)]
            total = 0
            for piece in pieces:
                lanes = min(16, max(1, size >> 16))
                payloads = _core.encode_frame(self.engine, piece, lanes, BOTH, 24, 1, PROFILE)
                decoded = _core.decode_frame(
                    self.engine, payloads, len(piece), BOTH, 24, 1, PROFILE
                )
                if decoded != piece:
                    raise AssertionError("the decoded bytes differ: this is a bug in lmzip")
                total += sum(map(len, payloads))
            self.add(key, bytes=total)

    def torch(self, steps: int = 40) -> None:
        """Decoding steps of 16 lanes, the network alone: PyTorch's engine and the native one."""
        import torch

        from lmzip.torch_engine import TorchEngine

        inputs = np.random.default_rng(1).integers(97, 123, (steps, 16)).astype(np.uint8)
        keys = [
            self.key(inputs.tobytes(), what=what, method=METHODS[NETWORK], lanes=16)
            for what in ("native step", "torch step")
        ]
        if all(self.measured(key) for key in keys):
            return
        torch.set_num_threads(1)
        ours = _core.Engine(self.engine, 16, 1)
        theirs = TorchEngine(self.model, "cpu")
        state = theirs.start(16)

        def speed(step: Callable[[np.ndarray], object]) -> tuple[list[object], str]:
            start = time.process_time()
            found = [step(row) for row in inputs]
            return found, f"{inputs.size / (time.process_time() - start) / 1000:.1f}"

        logits, native_speed = speed(ours.step)
        expected, torch_speed = speed(lambda row: theirs.step(state, torch.from_numpy(row)))
        for a, b in zip(logits, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        for key, kb_s in zip(keys, (native_speed, torch_speed), strict=True):
            self.add(key, decode_kb_s=kb_s)


def plot(rows: list[dict[str, str]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lmzip"  # the same picture from the same numbers
    from matplotlib import pyplot as plt

    def series(what: str, method: str) -> list[dict[str, str]]:
        return [r for r in rows if r["what"] == what and r["method"] == method]

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for axis, what, key in ((axes[0], "lanes", "lanes"), (axes[1], "windows", "window")):
        for method in ("network", "network+mixer"):
            points = series(what, method)
            x = [float(p["decode_kb_s"]) for p in points]
            y = [8 * int(p["bytes"]) / int(p["raw"]) for p in points]
            axis.plot(x, y, marker="o", label=method)
            for point, x_, y_ in zip(points, x, y, strict=True):
                axis.annotate(f"{point[key]}", (x_, y_), textcoords="offset points", xytext=(4, 5))
        axis.set(xlabel="decoding, KB/s on one core", ylabel="bits per byte", title=f"{what}")
        axis.legend()
    points = series("frames", "network+mixer")
    axes[2].semilogx(
        [int(p["frame"]) / 1024 for p in points],
        [8 * int(p["bytes"]) / int(p["raw"]) for p in points],
        base=2, marker="o",
    )  # fmt: skip
    axes[2].set(xlabel="frame, KiB", ylabel="bits per byte", title="frames (network+mixer)")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--size", type=int, default=500_000, help="bytes for lanes and windows")
    parser.add_argument("--frames-size", type=int, default=4 << 20)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    raw = text()
    bench = Bench(args.results, args.repeats)
    with bench.progress:
        bench.torch()
        bench.lanes(raw[: args.size])
        bench.windows(raw[: args.size])
        bench.frames(raw[: args.frames_size])
    if args.plot:
        plot(bench.rows, args.plot)


if __name__ == "__main__":
    main()
