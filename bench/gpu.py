"""The CUDA engine: equality, time of every stage, throughput of frames; or an estimate on paper.

    python3 bench/gpu.py --build --text FILE --results gpu.csv     on a machine with a GPU
    python3 bench/gpu.py --estimate                                 anywhere: no measurement
    python3 bench/gpu.py --interpret --results FILE                 anywhere: tries this script

In this order, each row written as soon as it is known: the device's limits (copy, int8 product);
whether engines and frames equal the CPU's (a difference ends the run); microseconds of each stage
of a step and of a prefill, with its share of the nearest limit; MB/s of frames both ways, every
output compared.  --build installs the working tree into build/gpu first and runs itself there.
Without --text the sample is tests/data/alice29.txt over and over, which is easy for the mixer.
"""

import argparse
import csv
import lzma
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "gpu"
LANES = (256, 1024, 4096, 16384)
COLUMNS = [
    "what", "model", "lanes", "count", "stage", "us", "bytes", "operations", "of_bandwidth",
    "of_int8", "direction", "raw", "mb_s", "note", "device", "commit", "date", "command",
]  # fmt: skip

# --- what a stage costs ---

# An H200 by what was measured on one (copy, bf16 product; int8 taken as twice that) and by its data
# sheet (132 multiprocessors of 128 lanes at 1.75 GHz).
H200_BANDWIDTH, H200_INT8, H200_INSTRUCTIONS = 4.3e12, 2 * 790e12, 132 * 128 * 1.75e9
KERNEL_FLOOR = 2.5e-6  # seconds between the kernels of a graph, if a kernel has nothing to do
# Instructions of a thread for each number of a row, or for each score: counted in the machine code
# that Triton 3.6 makes of the kernels for sm_90 (nvdisasm), for the shape of 2.6 M, steps.
INSTRUCTIONS = {
    "embed": 78, "split_heads": 53, "attention": 60, "quantize_average": 21, "add_product": 44,
    "activate": 28, "head": 16, "advance": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Of one stage: bytes that pass through device memory if no cache holds them, operations of
    int8 products (two for a multiplication and addition), instructions of threads."""

    bytes: float
    operations: float = 0
    instructions: float = 0

    def seconds(self, share: float = 1.0) -> float:
        """If the nearest limit of an H200 is reached to this share."""
        limits = (
            self.bytes / H200_BANDWIDTH,
            self.operations / H200_INT8,
            self.instructions / H200_INSTRUCTIONS,
        )
        return max(KERNEL_FLOOR, max(limits) / share)


def product_cost(rows: int, inputs: int, outputs: int) -> Cost:
    return Cost(rows * (inputs + 4 * outputs) + inputs * outputs, 2 * rows * inputs * outputs)


def row_cost(stage: str, rows: int, read: int, written: int, numbers: int) -> tuple[str, Cost]:
    instructions = rows * numbers * INSTRUCTIONS[stage]
    return stage, Cost(rows * (read + written), instructions=instructions)


def attention_cost(a, rows: int, count: int, window: int) -> Cost:
    """Full windows.  The keys come twice, the second time from a cache; of the scores, the padding
    to 8 queries counts too."""
    group = a.n_heads // a.n_kv_heads
    heads = a.n_heads * a.head_dim
    queries = 8 if count * group < 8 else 32
    blocks = rows / count * a.n_kv_heads * -(-count * group // (queries - 1))
    keys = window + min(count, queries // group) - 1
    cache = 2 * blocks * keys * a.head_dim
    return Cost(
        cache + rows * 3 * heads,
        3 * 2 * blocks * queries * keys * a.head_dim,
        blocks * queries * keys * INSTRUCTIONS["attention"],
    )


def step_costs(a, lanes: int, count: int, out: int) -> list[tuple[str, Cost]]:
    """(stage, cost) of a block; `out` bytes for each row leave the head."""
    rows, d, f = lanes * count, a.d_model, a.d_ff
    heads, kv = a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim
    qkv = heads + 2 * kv
    tables = d + sum(t.width for t in a.ngrams)
    costs = [row_cost("embed", rows, tables, 5 * d, d)]
    for window in a.windows:
        costs += [
            ("qkv product", product_cost(rows, d, qkv)),
            row_cost("split_heads", rows, 4 * qkv, qkv, qkv),
            ("attention", attention_cost(a, rows, count, window)),
            row_cost("quantize_average", rows, 2 * heads, heads, heads),
            ("out product", product_cost(rows, heads, d)),
            row_cost("add_product", rows, 8 * d, 5 * d, d),
            ("up product", product_cost(rows, d, f)),
            row_cost("activate", rows, 4 * f, f, f),
            ("down product", product_cost(rows, f, d)),
            row_cost("add_product", rows, 8 * d, 5 * d, d),
        ]
    costs.append(("head product", product_cost(2 * rows, d, 256)))
    costs.append(row_cost("head", rows, 2048, out, 256))
    return [*costs, row_cost("advance", lanes, 8, 4, 1)]


def architectures() -> dict[str, object]:
    """Those of random models, by name; the weights do not matter to the time."""
    from lmzip.model_file import Architecture, NgramTable

    windows = (32, 64, 128, 256)
    small = tuple(NgramTable(order, 15, 64 * (order - 2), 64) for order in (2, 3, 4))
    large = tuple(NgramTable(order, 12, 256 * (order - 2), 256) for order in (2, 3, 4))
    return {
        "random 2.6 M": Architecture(256, 4, 4, 2, 32, 1024, windows, small),
        "random 132 M": Architecture(1024, 12, 16, 4, 64, 4096, (128, 256) * 6, large),
    }


def estimate(lanes_list: tuple[int, ...]) -> None:
    print("ESTIMATE ON PAPER, not a measurement: microseconds of a step on an H200, full windows.")
    for name, a in architectures().items():
        print(f"\n{name} ({a.product_parameters() / 1e6:.2f} M weights in products)\n")
        for lanes in lanes_list:
            costs = step_costs(a, lanes, 1, 512)
            total: dict[str, float] = {}
            for stage, cost in costs:
                total[stage] = total.get(stage, 0) + cost.seconds()
            at_limits = sum(total.values())
            at_half = sum(cost.seconds(0.5) for _, cost in costs)
            moved = sum(cost.bytes for _, cost in costs) / lanes
            worked = sum(cost.operations for _, cost in costs) / lanes
            print(
                f"{lanes:6} lanes: {1e6 * at_limits:7.0f} us at the limits, "
                f"{lanes / at_limits / 1e6:6.1f} MB/s; {1e6 * at_half:7.0f} us at half of them, "
                f"{lanes / at_half / 1e6:6.1f} MB/s; {len(costs)} kernels; "
                f"{moved / 1e3:.0f} KB and {worked / 1e6:.1f} M operations a byte"
            )
            largest = sorted(total.items(), key=lambda item: -item[1])[:6]
            print("        ", ", ".join(f"{stage} {1e6 * s:.0f}" for stage, s in largest))


# --- measurements ---


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        sys.path += [str(ROOT / "bench"), str(ROOT / "tests")]
        from conftest import commit

        self.args, self.torch = args, torch
        self.device = torch.device("cpu" if args.interpret else "cuda")
        self.end = time.monotonic() + args.minutes * 60
        where = "interpreter" if args.interpret else torch.cuda.get_device_name()
        self.provenance = {
            "device": f"{where}, {os.cpu_count()} cores, torch {torch.__version__}",
            "commit": commit(),
            "date": datetime.now(UTC).date().isoformat(),
            "command": " ".join(["python", *sys.argv]),
        }
        self.file = args.results.open("w", newline="")
        self.writer = csv.DictWriter(self.file, COLUMNS)
        self.writer.writeheader()
        self.bandwidth, self.int8 = H200_BANDWIDTH, H200_INT8

    def add(self, **row: object) -> None:
        self.writer.writerow(row | self.provenance)
        self.file.flush()
        print(*(f"{k}={v}" for k, v in row.items()), file=sys.stderr, flush=True)

    def in_time(self) -> bool:
        if time.monotonic() < self.end:
            return True
        self.add(what="stopped", note=f"--minutes {self.args.minutes} are over")
        return False

    def seconds(self, work: Callable[[], object]) -> float:
        """Of one call, the median of some rounds, after a round of warming up."""
        cuda = self.torch.cuda
        rounds, calls = (1, 1) if self.args.interpret else (7, 20)
        found = []
        for _ in range(rounds + (0 if self.args.interpret else 1)):
            if self.args.interpret:
                start = time.perf_counter()
                work()
                found.append(time.perf_counter() - start)
                continue
            begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(calls):
                work()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1000 / calls)
        return sorted(found[-rounds:])[rounds // 2]

    def limits(self) -> None:
        if self.args.interpret:
            return
        torch = self.torch
        self.bandwidth = self.copy_bandwidth(1 << 32)
        side = 8192
        a = torch.randint(-127, 128, (side, side), dtype=torch.int8, device=self.device)
        out = torch.empty(side, side, dtype=torch.int32, device=self.device)
        self.int8 = 2 * side**3 / self.seconds(lambda: torch._int_mm(a, a.T, out=out))
        self.add(what="limit", stage="copy, read and written", note=f"{self.bandwidth:.4g} B/s")
        self.add(what="limit", stage="int8 product 8192^3", note=f"{self.int8:.4g} operations/s")
        host = torch.empty(1 << 28, dtype=torch.int8, pin_memory=True)
        there = torch.empty(1 << 28, dtype=torch.int8, device=self.device)
        for name, work in (
            ("device to host", lambda: host.copy_(there, non_blocking=True)),
            ("host to device", lambda: there.copy_(host, non_blocking=True)),
        ):
            self.add(what="limit", stage=name, note=f"{(1 << 28) / self.seconds(work):.4g} B/s")

    def copy_bandwidth(self, size: int) -> float:
        source = self.torch.empty(size, dtype=self.torch.int8, device=self.device)
        target = self.torch.empty_like(source)
        return 2 * size / self.seconds(lambda: target.copy_(source))

    def models(self) -> Iterator[tuple[str, object]]:
        from lmzip import models
        from lmzip.model_file import load
        from random_model import random_model, small_architecture

        if self.args.interpret:
            yield "small", random_model(small_architecture(), 1)
            return
        info = models.default()
        if info is not None:
            yield info.name, load(info.path)
        for name, architecture in architectures().items():
            yield name, random_model(architecture, 1)

    def equality(self, name: str, model: object) -> None:
        from lmzip.torch_codec import agrees_with_native
        from lmzip.triton_engine import TritonEngine, TritonLanes

        engine = TritonEngine(model, self.device)
        if not agrees_with_native(model, lambda *shape: TritonLanes(engine, *shape), 2):
            raise SystemExit(f"{name}: the logits differ from the CPU's; nothing else is measured")
        self.add(what="equality", model=name, note="logits of 32 positions equal the native engine")

    def stages(self, name: str, model: object) -> None:
        from lmzip.lanes import DISTANCES
        from lmzip.triton_engine import TritonEngine, TritonLanes

        engine = TritonEngine(model, self.device)
        shapes = [(2, 1), (2, 4)] if self.args.interpret else [(n, 1) for n in LANES] + [(256, 64)]
        for lanes, count in shapes:
            if not self.in_time():
                return
            b = engine.buffers(lanes, count)
            engine.evaluate(b, DISTANCES)
            b.position.fill_(4096)  # full windows
            costs = dict(step_costs(engine.arch, lanes, count, 512))
            for stage, call in self.stage_calls(engine, b).items():
                self.stage(name, lanes, count, stage, self.seconds(call), costs[stage])
            block = TritonLanes(engine, lanes, count, DISTANCES)
            seconds = self.wall(block, b.inputs.cpu().numpy())
            self.add(
                what="stage", model=name, lanes=lanes, count=count, stage="whole block",
                us=f"{1e6 * seconds:.1f}", mb_s=f"{lanes * count / seconds / 1e6:.3f}",
                note="a graph with its copies, distances",
            )  # fmt: skip

    def stage_calls(self, engine, b) -> dict[str, Callable[[], object]]:
        """Those of one layer, the last; "head" includes its product and advance()."""
        from lmzip.lanes import DISTANCES

        last = engine.arch.n_layers - 1
        layer = engine.layers[last]
        return {
            "embed": lambda: engine.embed(b),
            "qkv product": lambda: layer["qkv"](b.xq[: b.padded], b.qkv),
            "split_heads": lambda: engine.split_heads(b, last),
            "attention": lambda: engine.attention(b, last),
            "quantize_average": lambda: engine.quantize_average(b),
            "out product": lambda: layer["out"](b.pq, b.acc),
            "add_product": lambda: engine.add_product(b, layer["out"], head=False),
            "up product": lambda: layer["up"](b.xq[: b.padded], b.up),
            "activate": lambda: engine.activate(b, layer["up"]),
            "down product": lambda: layer["down"](b.hq, b.acc),
            "head product": lambda: engine.head_product(b.xq, b.head),
            "head": lambda: engine.predict(b, DISTANCES),
        }

    def stage(
        self, model: str, lanes: int, count: int, stage: str, seconds: float, cost: Cost
    ) -> None:
        self.add(
            what="stage", model=model, lanes=lanes, count=count, stage=stage,
            us=f"{1e6 * seconds:.1f}", bytes=int(cost.bytes), operations=int(cost.operations),
            of_bandwidth=f"{cost.bytes / seconds / self.bandwidth:.3f}",
            of_int8=f"{cost.operations / seconds / self.int8:.3f}",
        )  # fmt: skip

    def wall(self, block, inputs) -> float:
        """Seconds from a launch to its result, the median."""
        found = []
        for _ in range(1 if self.args.interpret else 20):
            start = time.perf_counter()
            block.launch(inputs, None)
            block.wait()
            found.append(time.perf_counter() - start)
        return sorted(found)[len(found) // 2]

    def frames(self, name: str, path: Path, large: bool) -> None:
        """Frames through the codec, with threads as in the package.  A large model's are shorter,
        and only decoded again: the CPU would take minutes to make the same."""
        from lmzip import codec, models
        from lmzip.container import METHOD_NETWORK, METHOD_NETWORK_MIXER
        from lmzip.native import NativeCodec
        from lmzip.torch_codec import TorchCodec

        info = models.read(path)
        cores = codec.usable_threads(0)
        for method, bits in ((METHOD_NETWORK, 0), (METHOD_NETWORK_MIXER, 22)):
            for lanes_of_frame, frames in self.frame_shapes():
                if not self.in_time():
                    return
                share = codec.ThreadShare(cores)
                request = codec.CodecRequest(method, bits, 0, info, self.device.type, share)
                ours, native = TorchCodec(request), NativeCodec(request)
                size = 300 if self.args.interpret else self.args.frame_size // (16 if large else 1)
                raws = [self.sample(i * size, size) for i in range(frames)]
                with ThreadPoolExecutor(frames) as pool:

                    def each(work, *columns, pool=pool):
                        start = time.perf_counter()
                        return list(pool.map(work, *columns)), time.perf_counter() - start

                    lane_column = [lanes_of_frame] * frames
                    each(ours.encode_frame, raws[:1], lane_column)  # kernels, graphs
                    payloads, encode = each(ours.encode_frame, raws, lane_column)
                    decoded, decode = each(ours.decode_frame, payloads, map(len, raws))
                if decoded != raws:
                    raise SystemExit("the decoded bytes differ: this is a bug in lmzip")
                compared = min(frames, 0 if large else self.args.compared)
                for raw, payload in list(zip(raws, payloads, strict=True))[:compared]:
                    if native.encode_frame(raw, lanes_of_frame) != payload:
                        raise SystemExit("the payloads differ from the CPU's: a bug in lmzip")
                raw_size = sum(map(len, raws))
                for direction, seconds in (("encode", encode), ("decode", decode)):
                    self.add(
                        what="frames", model=name, lanes=lanes_of_frame * frames, raw=raw_size,
                        direction=direction, mb_s=f"{raw_size / seconds / 1e6:.3f}",
                        stage="network and mixer" if bits else "network",
                        note=f"{frames} frames, {compared} equal to native",
                    )  # fmt: skip

    def frame_shapes(self) -> list[tuple[int, int]]:
        if self.args.interpret:
            return [(3, 2)]
        return [(16, 64), (64, 64), (256, 64)]

    def sample(self, begin: int, size: int) -> bytes:
        text = self.text
        while len(text) < begin + size:
            text += text
        self.text = text
        return text[begin : begin + size]

    def run(self) -> None:
        import tempfile

        from lmzip.model_file import serialize

        path = self.args.text or ROOT / "tests" / "data" / "alice29.txt"
        raw = path.read_bytes()
        self.text = lzma.decompress(raw) if path.suffix == ".xz" else raw
        self.limits()
        with tempfile.TemporaryDirectory() as folder:
            for name, model in self.models():
                if not self.in_time():
                    return
                self.equality(name, model)
                self.stages(name, model)
                copy = Path(folder) / "model.safetensors"
                copy.write_bytes(serialize(model.architecture, model.tensors, {"name": name}))
                self.frames(name, copy, model.architecture.product_parameters() > 20_000_000)


def build() -> None:
    """Install the working tree into build/gpu with what the machine has, and run again there."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--upgrade", "--target", str(SITE), str(ROOT)], check=True)
    arguments = [argument for argument in sys.argv if argument != "--build"]
    path = os.pathsep.join([str(SITE), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    os.execve(sys.executable, [sys.executable, *arguments], os.environ | {"PYTHONPATH": path})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", action="store_true", help="install the working tree first")
    parser.add_argument(
        "--estimate", action="store_true", help="print the estimate, measure nothing"
    )
    parser.add_argument("--interpret", action="store_true", help="a tiny run without a GPU")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--text", type=Path, help="a large text, raw or .xz")
    parser.add_argument("--frame-size", type=int, default=1 << 20)
    parser.add_argument("--compared", type=int, default=2, help="frames compared with the CPU's")
    parser.add_argument("--minutes", type=float, default=8, help="begin nothing new after these")
    args = parser.parse_args()
    if args.build:
        build()
    if args.estimate:
        estimate((1024, 2048, 4096, 8192, 16384))
        return
    if args.results is None:
        parser.error("--results is needed, or --estimate")
    if args.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    Bench(args).run()


if __name__ == "__main__":
    main()
