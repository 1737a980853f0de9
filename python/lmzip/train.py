"""Training: files of bytes -> a model file that every engine reads.

Float network (network.py) -> constant learning rate -> decay with quantization-aware steps ->
export.  The schedule follows the share of the budget (bytes or minutes) that is used up, so a run
can be stopped at any moment and resumed from its checkpoint.  Runs on CPU, on a CUDA device
(bfloat16) and, under torchrun, on several.  See docs/training.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lmzip import _core, models
from lmzip._version import __version__
from lmzip.corpus import HISTORY, Corpus, read_files, read_mix
from lmzip.errors import LmzipError
from lmzip.model_file import (
    Architecture,
    Array,
    ExactModel,
    NgramTable,
    load,
    parse,
    serialize,
    tensors_digest,
)
from lmzip.network import RESIDUAL_BITS, Network, export, from_model
from lmzip.output import AtomicFile

BITS = 1 / math.log(2)
FINER_UNITS = 5  # of the residual stream, that are tried
MAX_EXACT_LOSS = 1.1  # of the bits per byte in float, or the model is not written
INIT_RATE = 0.2  # of what a network from scratch learns with
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIZES = {
    "tiny": Architecture(64, 2, 2, 1, 32, 256, (32, 128), (NgramTable(2, 12, 0, 64),)),
    "small": Architecture(
        128, 4, 4, 2, 32, 512, (32, 64, 128, 256),
        (NgramTable(2, 14, 0, 64), NgramTable(3, 15, 64, 64), NgramTable(4, 15, 0, 64)),
    ),
    "default": Architecture(
        256, 4, 4, 2, 32, 1024, (32, 64, 128, 256),
        (NgramTable(2, 14, 0, 64), NgramTable(3, 16, 64, 64), NgramTable(4, 16, 128, 64)),
    ),
    "large": Architecture(
        512, 8, 16, 4, 32, 2048, (32, 64, 128, 256, 32, 64, 256, 1024),
        (NgramTable(2, 14, 0, 128), NgramTable(3, 16, 128, 128), NgramTable(4, 16, 256, 128)),
    ),
}  # fmt: skip


class TrainingError(LmzipError):
    """Training cannot start or go on; the message says why and what to do."""


@dataclass
class Budget:
    """How much of the run is done: bytes seen or seconds spent, whichever the run counts."""

    total_bytes: float = math.inf
    total_seconds: float = math.inf
    bytes_seen: int = 0
    seconds: float = 0.0

    @property
    def share(self) -> float:
        return max(self.bytes_seen / self.total_bytes, self.seconds / self.total_seconds)


@dataclass(frozen=True)
class Schedule:
    """Shares of the budget: warm-up, constant rate, linear decay; quantization-aware from
    `quantize` on."""

    warmup: float = 0.01
    decay: float = 0.6
    quantize: float = 0.75

    def rate(self, share: float) -> float:
        rising = min(1.0, (share + 1e-4) / max(self.warmup, 1e-4))
        falling = (1 - share) / max(1 - self.decay, 1e-9)
        return max(0.0, min(rising, falling, 1.0))


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized by five Newton-Schulz steps (Jordan 2024), for matrices.

    torch.optim.Muon does the steps in bfloat16, which a CPU without that type emulates (measured:
    40 times slower); this one takes the type that it is given and stacks matrices of one shape.
    The update is scaled to a root mean square of 0.2 lr, as AdamW's (Liu et al. 2025).
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                self._step_shape(params, group["lr"], group["momentum"])

    def _step_shape(self, params: list[Tensor], lr: float, momentum: float) -> None:
        updates = []
        for p in params:
            assert p.grad is not None
            average = self.state[p].setdefault("average", torch.zeros_like(p))
            average.lerp_(p.grad, 1 - momentum)
            updates.append(p.grad.lerp(average, momentum))
        scale = 0.2 * max(params[0].shape) ** 0.5 * lr
        for p, u in zip(params, orthogonalize(torch.stack(updates).to(self.dtype)), strict=True):
            p.add_(u.to(p.dtype), alpha=-scale)


def orthogonalize(x: Tensor) -> Tensor:
    """Bring the singular values of each matrix (count, rows, columns) near 1."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


def optimizers(
    network: Network, rate: float, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, Adam for the rest; `rate` is 1 for the tuned rates."""
    matrices = [p for p in network.layers.parameters() if p.ndim == 2]
    tables = [table.weight for table in network.tables()]
    sharpness = [layer.sharpness for layer in network.blocks()]
    adam = [
        {"params": tables, "lr": 0.01 * rate},
        {"params": [network.head.weight], "lr": 0.0033 * rate},
        {"params": sharpness, "lr": 0.0017 * rate},
    ]
    width = 128 / network.architecture.d_model  # larger networks take smaller steps
    return [
        Muon(matrices, lr=0.01 * rate * width**0.5, dtype=dtype),
        torch.optim.Adam(adam, betas=(0.9, 0.95), eps=1e-10, fused=True),
    ]


@dataclass
class Run:
    """One training run: everything that a checkpoint has to bring back."""

    network: Network
    budget: Budget
    schedule: Schedule
    rate: float = 1.0
    seed: int = 0
    precision: torch.dtype = torch.float32
    steps: int = 0
    quantized: bool = False
    log: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizers = optimizers(self.network, self.rate, self.precision)
        self._rates = [[g["lr"] for g in o.param_groups] for o in self.optimizers]

    def set_rates(self) -> None:
        factor = self.schedule.rate(self.budget.share)
        for optimizer, rates in zip(self.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    def save(self, path: Path) -> None:
        """A checkpoint: tensors and plain numbers only, read back without running code."""
        state = {
            "architecture": json.dumps(self.network.architecture.to_json()),
            "network": self.network.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "progress": [self.steps, self.budget.bytes_seen, self.budget.seconds, self.quantized],
            "log": json.dumps(self.log),
        }
        with AtomicFile(path, overwrite=True) as file:
            torch.save(state, file)

    def restore(self, path: Path, device: torch.device) -> None:
        try:
            state = torch.load(path, map_location=device, weights_only=True)
            self.network.load_state_dict(state["network"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.steps, self.budget.bytes_seen, self.budget.seconds, self.quantized = state[
                "progress"
            ]
            self.log = json.loads(state["log"])
        except Exception as error:  # noqa: BLE001 (of a damaged file: anything)
            what = _short(error)
            raise TrainingError(f"{path}: not a checkpoint of this network: {what}") from None


@torch.no_grad()
def evaluate(
    network: Network, corpus: Corpus, length: int, quantized: bool, rows: int = 32
) -> dict[str, float]:
    """Bits per byte of each group's held-out text."""
    device = network.head.weight.device
    result = {}
    for group, history, targets in corpus.held_out_rows(length, rows):
        logits = network(torch.from_numpy(history).to(device), quantized)
        goal = torch.from_numpy(targets).to(device)
        result[group.name] = (
            F.cross_entropy(logits.flatten(0, 1).float(), goal.flatten()).item() * BITS
        )
    return result


def exact_loss(
    network: Network, model: ExactModel, corpus: Corpus, length: int, rows: int = 8
) -> dict[str, float]:
    """Bits per byte of held-out text (of training text, if none is held out): in float, and exact.

    What the integers of `model` lose against the network that they were made of.
    """
    held_out = [text for _, *text in corpus.held_out_rows(length, rows)]
    history, targets = (
        held_out[0] if held_out else corpus.rows(np.random.default_rng(0), rows, length)
    )
    with torch.no_grad():
        device = network.head.weight.device
        in_float = network(torch.from_numpy(history).to(device)).float().cpu()
    exact = exact_logits(model.architecture, model.tensors, history)
    return {"float": bits_per_byte(in_float, targets), "exact": bits_per_byte(exact, targets)}


def exact_logits(architecture: Architecture, tensors: dict[str, Array], history: Array) -> Tensor:
    """Of the exact engine, in nats: (rows, HISTORY + length) -> (rows, length, 256)."""
    engine = _core.Engine(_core.ExactModel(tensors, architecture.to_json()), len(history), 1)
    logits = engine.prefill(np.ascontiguousarray(history[:, HISTORY:], np.uint8))
    return torch.from_numpy(logits).double() / (BITS * 1024)  # base-2, units of 2^-10


def bits_per_byte(logits: Tensor, targets: Array) -> float:
    goal = torch.from_numpy(targets).flatten()
    return F.cross_entropy(logits.flatten(0, 1).double(), goal).item() * BITS


def fit_unit(network: Network, history: Array, targets: Array) -> None:
    """Choose the unit of the exact residual stream: what costs least on a sample of text.

    A coarse unit rounds the embeddings away, a fine one clamps the few largest values of the
    stream, which may be a hundred times its mean and matter little.
    """
    network.fit_residual(torch.from_numpy(history).to(network.head.weight.device))
    coarsest = int(network.residual_bits)
    losses = {}
    for bits in range(coarsest, min(coarsest + FINER_UNITS, RESIDUAL_BITS) + 1):
        network.residual_bits.fill_(bits)
        exact = exact_logits(network.architecture, export(network), history)
        losses[bits] = bits_per_byte(exact, targets)
    network.residual_bits.fill_(min(losses, key=lambda bits: losses[bits]))


class Trainer:
    """The loop, for one process of one or more."""

    def __init__(
        self, run: Run, corpus: Corpus, args: argparse.Namespace, device: torch.device
    ) -> None:
        self.run, self.corpus, self.args, self.device = run, corpus, args, device
        self.processes = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        loss = self._loss
        self.loss = torch.compile(loss, dynamic=False) if args.compile else loss

    def _loss(self, history: Tensor, targets: Tensor, quantized: bool) -> Tensor:
        logits = self.run.network(history, quantized)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def train(self, checkpoint: Path) -> None:
        run, args = self.run, self.args
        random = np.random.default_rng([run.seed, run.steps, self.rank])
        self.loss_sum = torch.zeros((), device=self.device)
        self.since, last_report, last_save = 0, time.monotonic(), time.monotonic()
        while run.budget.share < 1:
            started = time.monotonic()
            self._step(random)
            now = time.monotonic()
            run.budget.seconds += now - started
            if self._agree(now - last_report > args.report_every or run.budget.share >= 1):
                self._report(now - last_report)
                last_report = time.monotonic()
            if self.rank == 0 and now - last_save > args.save_every:
                run.save(checkpoint)
                last_save = time.monotonic()
        if self.rank == 0:
            fit_unit(run.network, *self.corpus.rows(random, 32, args.length))
            run.save(checkpoint)

    def _step(self, random: np.random.Generator) -> None:
        run, args = self.run, self.args
        if not run.quantized and run.budget.share >= run.schedule.quantize:
            self._begin_quantization(random)
        run.set_rates()
        history, targets = (
            torch.from_numpy(t).to(self.device, non_blocking=True)
            for t in self.corpus.rows(random, args.batch, args.length)
        )
        with self._autocast():
            loss = self.loss(history, targets, run.quantized)
        loss.backward()  # type: ignore[no-untyped-call]
        self._share_gradients()
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.loss_sum += loss.detach()
        self.since += 1
        run.steps += 1
        run.budget.bytes_seen += args.batch * args.length * self.processes

    def _begin_quantization(self, random: np.random.Generator) -> None:
        history, _ = self.corpus.rows(random, 32, self.args.length)
        self.run.network.calibrate(torch.from_numpy(history).to(self.device))
        for buffer in self.run.network.buffers():
            if self.processes > 1:
                dist.broadcast(buffer, 0)
        self.run.quantized = True

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.run.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.run.precision)

    def _share_gradients(self) -> None:
        if self.processes == 1:
            return
        for p in self.run.network.parameters():
            assert p.grad is not None
            dist.all_reduce(p.grad)
            p.grad /= self.processes

    def _agree(self, flag: bool) -> bool:
        """The first process decides, so that all report (and end) at the same step."""
        if self.processes == 1:
            return flag
        shared = torch.tensor([float(flag), self.run.budget.seconds], device=self.device)
        dist.broadcast(shared, 0)
        self.run.budget.seconds = shared[1].item()
        return bool(shared[0].item())

    def _report(self, elapsed: float) -> None:
        run = self.run
        if self.rank == 0:
            held_out = evaluate(run.network, self.corpus, self.args.length, run.quantized)
            entry = {
                "step": run.steps,
                "bytes": run.budget.bytes_seen,
                "seconds": round(run.budget.seconds, 1),
                "train_bpb": round(self.loss_sum.item() / max(1, self.since) * BITS, 4),
                "held_out_bpb": {name: round(v, 4) for name, v in held_out.items()},
                "quantized": run.quantized,
            }
            run.log.append(entry)
            print(_line(entry, self.since, elapsed, self.args, run), file=sys.stderr, flush=True)
        self.loss_sum.zero_()
        self.since = 0


def _line(
    entry: dict[str, Any], steps: int, elapsed: float, args: argparse.Namespace, run: Run
) -> str:
    share = max(run.budget.share, 1e-9)
    left = run.budget.seconds * (1 - share) / share
    speed = steps * args.batch * args.length / max(elapsed, 1e-9) / 1000
    held_out = "  ".join(f"{name} {v:.3f}" for name, v in entry["held_out_bpb"].items())
    return (
        f"{share:6.1%}  step {entry['step']}  {speed:.1f} KB/s  left {left / 60:.0f} min  "
        f"bits per byte: train {entry['train_bpb']:.3f}  held out: {held_out or 'none'}"
        + ("  (int8)" if run.quantized else "")
    )


def _number(kind: Callable[[str], Any], holds: Callable[[Any], bool], expected: str) -> Any:
    """An argparse type: what `kind` reads, if it `holds`; `expected` says so in words."""

    def read(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if holds(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")

    return read


POSITIVE = _number(float, lambda x: 0 < x < math.inf, "a number above 0")
COUNT = _number(int, lambda n: n > 0, "a whole number above 0")
THREADS = _number(int, lambda n: 0 <= n <= 4096, "a whole number of 0 to 4096")
SEED = _number(int, lambda n: 0 <= n < 1 << 64, "a whole number of 0 to 2^64 - 1")
QUANTIZE = _number(float, lambda x: 0 <= x < 1, "a share: 0 or more, and less than 1")
DECAY = _number(float, lambda x: 0 <= x <= 1, "a share: 0 to 1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lmzip train`."""
    parser.add_argument("files", nargs="*", type=Path, help="training files, folders, .xz, .tar")
    parser.add_argument("-o", "--output", type=Path, required=True, help="model file to write")
    parser.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="replace a model (what it compressed is lost), and the checkpoint of another run",
    )
    parser.add_argument("--mix", type=Path, help="JSON recipe of weighted groups, instead of files")
    parser.add_argument("--size", choices=SIZES, default="small", help="architecture (%(default)s)")
    parser.add_argument(
        "--architecture", type=Path, help="JSON file with an architecture of your own"
    )
    parser.add_argument(
        "--init",
        metavar="MODEL",
        help="start from this model (path or name) and keep its architecture",
    )
    parser.add_argument("--minutes", type=POSITIVE, help="time to train (default 10)")
    parser.add_argument("--bytes", type=POSITIVE, help="bytes to train on, instead of a time")
    parser.add_argument("--batch", type=COUNT, default=8, help="rows in a step (%(default)s)")
    parser.add_argument("--length", type=COUNT, default=512, help="bytes in a row (%(default)s)")
    parser.add_argument(
        "--rate",
        type=POSITIVE,
        help=f"factor on all learning rates (default 1; {INIT_RATE} with --init)",
    )
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=THREADS, default=0, help="CPU threads (0: all cores)")
    parser.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        default="auto",
        help="of the products: bfloat16 where the device has it",
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile: slow start, then faster"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint, if there is one"
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="default: the output with .checkpoint added"
    )
    parser.add_argument(
        "--quantize-at", type=QUANTIZE, default=0.75, help="share after which int8 rounding is on"
    )
    parser.add_argument(
        "--decay-at", type=DECAY, default=0.6, help="share after which the rate falls"
    )
    parser.add_argument("--name", help="name in the model file (default: the output's stem)")
    parser.add_argument("--licence", default="unstated", help="licence of the model, for its file")
    parser.add_argument(
        "--data-note", default="", help="where the training text comes from, for its file"
    )
    parser.add_argument("--report-every", type=POSITIVE, default=30.0, help="seconds")
    parser.add_argument("--save-every", type=POSITIVE, default=240.0, help="seconds")


def run(args: argparse.Namespace) -> int:
    """Train as the options say; 0 when the model file is written.  Raises LmzipError, OSError."""
    device = _device(args.device)
    with _processes(device):
        rank = dist.get_rank() if dist.is_initialized() else 0
        checkpoint = args.checkpoint or Path(f"{args.output}.checkpoint")
        if rank == 0:
            _check_outputs(args, checkpoint)
        if args.threads:
            torch.set_num_threads(args.threads)
        torch.manual_seed(args.seed)
        corpus = _corpus(args)
        network = _network(args).to(device)
        minutes = args.minutes if args.minutes or args.bytes else 10
        budget = Budget(args.bytes or math.inf, minutes * 60 if minutes else math.inf)
        schedule = Schedule(decay=args.decay_at, quantize=args.quantize_at)
        rate = args.rate if args.rate is not None else INIT_RATE if args.init else 1.0
        precision = _precision(args.precision, device)
        job = Run(network, budget, schedule, rate, args.seed, precision)
        if args.resume and checkpoint.exists():
            job.restore(checkpoint, device)
        Trainer(job, corpus, args, device).train(checkpoint)
        if rank == 0:
            write_model(job, corpus, args)
    return 0


def write_model(job: Run, corpus: Corpus, args: argparse.Namespace) -> None:
    """Export, read back, write whole or not at all."""
    if not job.quantized:
        raise TrainingError("the budget ended before the quantization-aware steps: give it more")
    tensors = export(job.network)
    loss = exact_loss(
        job.network, ExactModel(job.network.architecture, tensors, {}), corpus, args.length
    )
    if loss["exact"] > MAX_EXACT_LOSS * loss["float"]:
        raise TrainingError(
            f"the exact model takes {loss['exact']:.3f} bits a byte where the network takes "
            f"{loss['float']:.3f}: something does not fit its integers; train longer with int8 "
            "rounding (--quantize-at), or with a smaller --rate"
        )
    about = {
        "name": _name(args),
        "release": __version__,
        "licence": args.licence,
        "parameters": job.network.architecture.parameters(),
        "training": {
            "date": date.today().isoformat(),
            "data": args.data_note,
            "groups": [
                {"name": g.name, "weight": g.weight, "bytes": len(g.train), "sha256": g.sha256}
                for g in corpus.groups
            ],
            **({"init": models.find(args.init).id.hex()} if args.init else {}),
            "bytes_seen": job.budget.bytes_seen,
            "seconds": round(job.budget.seconds),
            "torch": torch.__version__,
            "held_out_bpb": job.log[-1]["held_out_bpb"] if job.log else {},
            "float_and_exact_bpb": {name: round(bpb, 4) for name, bpb in loss.items()},
        },
    }
    about["tensors_sha256"] = tensors_digest(tensors)
    data = serialize(job.network.architecture, tensors, about)
    model = parse(data)
    with AtomicFile(args.output, overwrite=args.force) as file:
        file.write(data)
    print(f"{args.output}: {len(data):,} bytes, id {model.model_id.hex()[:16]}", file=sys.stderr)


def _name(args: argparse.Namespace) -> str:
    return models.check_name(args.name or args.output.name.split(".")[0])


def _check_outputs(args: argparse.Namespace, checkpoint: Path) -> None:
    """Refuse, before the time is spent, what could not be written or would be replaced."""
    _name(args)
    for path in (args.output, checkpoint):
        if path.is_dir():
            raise TrainingError(f"{path} is a folder; expected the name of a file")
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise TrainingError(f"{path} cannot be written: {error.strerror}") from None
    if os.path.lexists(args.output) and not args.force:
        raise TrainingError(
            f"{args.output} exists already, and what it compressed can only be decompressed with "
            "it: give another output, or -f to replace it"
        )
    if os.path.lexists(checkpoint) and not (args.resume or args.force):
        raise TrainingError(f"{checkpoint} exists already: --resume goes on, -f starts anew")


def _corpus(args: argparse.Namespace) -> Corpus:
    if bool(args.mix) == bool(args.files):
        raise TrainingError("give either training files or a recipe with --mix")
    return read_mix(args.mix) if args.mix else read_files(args.files)


def _network(args: argparse.Namespace) -> Network:
    if args.init is None:
        return Network(_architecture(args))
    if args.architecture:
        raise TrainingError("--init brings its own architecture: leave --architecture out")
    return from_model(load(models.find(args.init).path))


def _architecture(args: argparse.Namespace) -> Architecture:
    if args.architecture:
        try:
            return Architecture.from_json(json.loads(args.architecture.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise TrainingError(
                f"{args.architecture}: not an architecture in JSON: {error}"
            ) from None
    return SIZES[args.size]


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise TrainingError(
            "--device cuda: this machine or this PyTorch has no CUDA device; use cpu"
        )
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(
            f"--device {name}: expected auto, cpu, cuda or cuda:N: {_short(error)}"
        ) from None
    return device


def _short(error: Exception) -> str:
    """Its first sentence: PyTorch goes on, and advises to run the code of a damaged checkpoint."""
    line = f"{type(error).__name__}: {error}".partition("\n")[0]
    return line.partition(". ")[0]


def _precision(name: str, device: torch.device) -> torch.dtype:
    """What `auto` stands for: bfloat16 on CUDA and on CPUs with products of that type."""
    if name != "auto":
        return PRECISIONS[name]
    if device.type == "cuda":
        return torch.bfloat16
    # The public torch.cpu.get_capabilities() came after the oldest PyTorch that we support.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    return torch.bfloat16 if supported() else torch.float32


@contextlib.contextmanager
def _processes(device: torch.device) -> Any:
    """Join the other processes when torchrun has started us."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        dist.barrier()  # gloo aborts a process that leaves while others still talk to it
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":  # torchrun -m lmzip.train ...
    _parser = argparse.ArgumentParser(prog="lmzip train", description="train a byte-level model")
    add_arguments(_parser)
    sys.exit(run(_parser.parse_args()))
