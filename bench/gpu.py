"""The CUDA engines: equality, time of every stage, throughput of frames; or an estimate on paper.

    python3 bench/gpu.py --build --text FILE --results gpu.csv     on a machine with a GPU
    python3 bench/gpu.py --estimate                                 anywhere: no measurement
    python3 bench/gpu.py --device cpu --results FILE                anywhere: tries this script

In this order, each row written as soon as it is known: the device's limits (copy, int8 product);
whether engines and frames equal the CPU's (a difference ends the run); microseconds of each stage
of a step and of a prefill, with its share of the limits; MB/s or tokens/s of frames both ways,
every output compared.  Byte models first, then pretrained ones (gpu_tokens.py); --only takes one
kind.  --build installs the working tree into build/gpu first and runs itself there.  Without --text
the sample is tests/data/alice29.txt over and over, which is easy for the mixer.
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
from pathlib import Path

import gpu_tokens
from gpu_costs import H200_BANDWIDTH, H200_INT8, INSTRUCTIONS, Cost, row_cost

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "gpu"
LANES = (256, 1024, 4096, 16384)
COLUMNS = [
    "what", "model", "lanes", "count", "stage", "us", "bytes", "operations", "of_bandwidth",
    "of_int8", "direction", "raw", "mb_s", "tokens_s", "note", "device", "commit", "date",
    "command",
]  # fmt: skip

# --- what a stage costs ---


def product_cost(rows: int, inputs: int, outputs: int) -> Cost:
    return Cost(rows * (inputs + 4 * outputs) + inputs * outputs, 2 * rows * inputs * outputs)


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


def estimate(bytes_lanes: tuple[int, ...], token_lanes: tuple[int, ...]) -> None:
    print("ESTIMATE ON PAPER, not a measurement: microseconds of a step on an H200, full windows.")
    for name, a in architectures().items():
        print(f"\n{name} ({a.product_parameters() / 1e6:.2f} M weights in products)\n")
        for lanes in bytes_lanes:
            estimate_block(lanes, f"{lanes:6} lanes", step_costs(a, lanes, 1, 512), "B")
    for name, a in gpu_tokens.architectures().items():
        print(f"\n{name} ({a.parameters() / 1e6:.0f} M weights); steps, then blocks of 64\n")
        for lanes in token_lanes:
            costs = gpu_tokens.step_costs(a, lanes, 1)
            estimate_block(lanes, f"{lanes:6} lanes", costs, "tokens")
        costs = gpu_tokens.step_costs(a, 64, 64)
        estimate_block(64 * 64, "64 x 64 positions", costs, "tokens")


def estimate_block(rows: int, what: str, costs: list[tuple[str, Cost]], unit: str) -> None:
    total: dict[str, float] = {}
    for stage, cost in costs:
        total[stage] = total.get(stage, 0) + cost.seconds()
    at_limits = sum(total.values())
    at_half = sum(cost.seconds(0.5) for _, cost in costs)
    moved = sum(cost.bytes for _, cost in costs) / rows
    worked = sum(cost.operations for _, cost in costs) / rows
    print(
        f"{what}: {1e6 * at_limits:7.0f} us at the limits, "
        f"{rows / at_limits / 1e6:6.2f} M{unit}/s; {1e6 * at_half:7.0f} us at half of them, "
        f"{rows / at_half / 1e6:6.2f} M{unit}/s; {len(costs)} kernels; "
        f"{moved / 1e3:.0f} KB and {worked / 1e6:.1f} M operations each"
    )
    largest = sorted(total.items(), key=lambda item: -item[1])[:6]
    print("        ", ", ".join(f"{stage} {1e6 * s:.0f}" for stage, s in largest))


# --- measurements ---


def run_block(block, inputs) -> None:
    block.launch(inputs, None)
    block.wait()


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        sys.path += [str(ROOT / "bench"), str(ROOT / "tests")]
        from conftest import provenance

        self.args, self.torch = args, torch
        self.on_cpu = args.device == "cpu"  # tiny sizes, in Triton's interpreter
        self.device = torch.device(args.device)
        self.end = time.monotonic() + args.minutes * 60
        where = "interpreter" if self.on_cpu else torch.cuda.get_device_name()
        self.provenance = provenance() | {
            "device": f"{where}, {os.cpu_count()} cores, torch {torch.__version__}"
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

    def seconds(self, work: Callable[[], object], calls: int = 20) -> float:
        """Of one call, the median of some rounds, after a round of warming up.  On a GPU the calls
        of a round are one graph: to launch a kernel from Python takes longer than most of them."""
        if self.on_cpu:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        from lmzip.cuda_graph import CudaGraph

        def repeated() -> None:
            for _ in range(calls):
                work()

        graph = CudaGraph(self.device, repeated)
        found = []
        for _ in range(8):
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            with graph.on_stream():
                begin.record()
                graph.replay()
                end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1000 / calls)
        return sorted(found[1:])[3]

    def numbers(self, end: int, *shape: int):
        """Below `end`, uint32."""
        import numpy as np

        return np.random.default_rng(1).integers(0, end, shape).astype(np.uint32)

    def limits(self) -> None:
        if self.on_cpu:
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

        if self.on_cpu:
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
        shapes = [(2, 1), (2, 4)] if self.on_cpu else [(n, 1) for n in LANES] + [(256, 64)]
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
            inputs = b.inputs.cpu().numpy()
            seconds = self.wall(lambda block=block, inputs=inputs: run_block(block, inputs))
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
            of_bandwidth=self.share(cost.bytes / seconds, self.bandwidth),
            of_int8=self.share(cost.operations / seconds, self.int8),
        )  # fmt: skip

    def share(self, reached: float, limit: float) -> str:
        return "" if self.on_cpu else f"{reached / limit:.3f}"

    def wall(self, work: Callable[[], object]) -> float:
        """Seconds of a call, the median."""
        found = []
        for _ in range(1 if self.on_cpu else 20):
            start = time.perf_counter()
            work()
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
                size = 300 if self.on_cpu else self.args.frame_size // (16 if large else 1)
                raws = [self.sample(i * size, size) for i in range(frames)]
                with ThreadPoolExecutor(frames) as pool:

                    def each(work, *columns, pool=pool):
                        start = time.perf_counter()
                        return list(pool.map(work, *columns)), time.perf_counter() - start

                    lane_column = [lanes_of_frame] * frames
                    for _ in range(1 if self.on_cpu else 2):  # first come kernels and graphs
                        payloads, encode = each(ours.encode_frame, raws, lane_column)
                    for _ in range(1 if self.on_cpu else 2):
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
        if self.on_cpu:
            return [(3, 2)]
        return [(16, 64), (64, 64), (256, 64)]

    def sample(self, begin: int, size: int) -> bytes:
        text = self.text
        while len(text) < begin + size:
            text += text
        self.text = text
        return text[begin : begin + size]

    def run(self) -> None:
        path = self.args.text or ROOT / "tests" / "data" / "alice29.txt"
        raw = path.read_bytes()
        self.text = lzma.decompress(raw) if path.suffix == ".xz" else raw
        self.limits()
        if self.args.only != "tokens":
            self.run_bytes()
        if self.args.only != "bytes":
            gpu_tokens.run(self)

    def run_bytes(self) -> None:
        import tempfile

        from lmzip.model_file import serialize

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
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a tiny run")
    parser.add_argument("--only", choices=("bytes", "tokens"), help="of the kinds of models")
    parser.add_argument("--model", type=Path, help="a pretrained model's file, beside random ones")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--text", type=Path, help="a large text, raw or .xz")
    parser.add_argument("--frame-size", type=int, default=1 << 20)
    parser.add_argument("--compared", type=int, default=2, help="frames compared with the CPU's")
    parser.add_argument("--minutes", type=float, default=8, help="begin nothing new after these")
    args = parser.parse_args()
    if args.build:
        build()
    if args.estimate:
        estimate((1024, 2048, 4096, 8192, 16384), (64, 256, 1024, 4096))
        return
    if args.results is None:
        parser.error("--results is needed, or --estimate")
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    Bench(args).run()


if __name__ == "__main__":
    main()
