"""Frame codecs whose network runs in PyTorch, on CUDA: method 1 (network) and 3 (network, mixer).

The same bytes as the native engine, in both directions.  A GPU wants thousands of lanes where a
frame has some sixteen, so frames that threads hand in at the same time are coded together:

    threads with a frame each -> Batches -> a DeviceWorker -> two groups of lanes

The two groups take turns: while the device evaluates one, all cores code the other in
_core.LockstepEncoder or LockstepDecoder.  Across the bus go 8 bytes for a byte without the mixer,
512 with it (lanes.py).
"""

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lmzip import _core, devices
from lmzip.codec import CodecRequest, mebibytes
from lmzip.container import METHOD_NETWORK
from lmzip.errors import LimitError, LmzipError
from lmzip.lanes import DISTANCES, INTERVALS, LOGITS, SEARCH, Lanes
from lmzip.model_file import Architecture, ExactModel, load
from lmzip.native import PROFILES, NativeCodec
from lmzip.torch_engine import TorchEngine, TorchLanes

MAX_FRAMES = devices.FRAMES_PER_GPU  # coded together, at most
GATHER_SECONDS = 0.02  # how long a frame waits for others to come
ENCODE_ROWS = {"cuda": 16384, "cpu": 512}  # positions of a group that are evaluated at once
MAX_BLOCK = 128  # of which of one lane
# Below so many lanes, decoding is left to the CPU: a step of a GPU takes as long for one lane as
# for many, some 0.2 ms, so 64 lanes give what a few cores do.  An estimate (docs/gpu.md).
MIN_DECODE_LANES = {"cuda": 64, "cpu": 0}
# And so is a frame of fewer lanes, beside however many others: its many steps would take a GPU, and
# all that wait for the batch, longer than they take a CPU.
MIN_FRAME_LANES = {"cuda": 8, "cpu": 0}
KEPT_LANES = 4  # Lanes objects kept for the next batch of the same shape
CHECK_EVERY = 64  # steps between looks for frames that turned out to be damaged


@dataclass(frozen=True, slots=True)
class Job:
    """A frame to be coded: raw bytes, or payloads and the raw size."""

    lanes: int
    raw_size: int
    raw: memoryview | bytes = b""
    payloads: Sequence[bytes] | None = None

    @property
    def decoding(self) -> bool:
        return self.payloads is not None

    @property
    def stride(self) -> int:
        return -(-self.raw_size // self.lanes)


Outcome = Any  # list[bytes] (payloads), bytes, or an Exception


class TorchCodec:
    """A FrameCodec (codec.py). request.device "cpu" runs PyTorch on the CPU, for tests.

    Raises UnsupportedError where the device is missing.
    """

    def __init__(self, request: CodecRequest) -> None:
        assert request.model is not None
        kind = devices.choose(request.device, None)
        self.method, self.table_bits = request.method, request.table_bits
        self.profile = request.profile
        self.model_id, self.model_name = request.model.id, request.model.name
        self._native = NativeCodec(request)  # refuses what is unknown, takes what is too little
        model = load(request.model.path)
        self._arch = model.architecture
        names = ["cpu"]
        if kind == "cuda":
            names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        shares = request.threads.split(len(names)) if len(names) > 1 else [request.threads]
        workers = [
            DeviceWorker(model, torch.device(name), replace(request, threads=share))
            for name, share in zip(names, shares, strict=True)
        ]
        self._batches = Batches([worker.run for worker in workers])

    def sized(self, raw_size: int) -> "TorchCodec":  # noqa: ARG002 (it has no tables)
        return self

    def memory_needed(self, raw_size: int, lanes: int) -> int:
        """As the native codec, and the caches, rows and pinned copies of a step."""
        cache, step = step_memory(self._arch)
        return self._native.memory_needed(raw_size, lanes) + lanes * (cache + step)

    def encode_frame(self, data: memoryview | bytes, lanes: int) -> list[bytes]:
        payloads: list[bytes] = self._checked(Job(lanes, len(data), raw=data))
        return payloads

    def decode_frame(self, payloads: Sequence[bytes], raw_size: int) -> bytes:
        raw: bytes = self._checked(Job(len(payloads), raw_size, payloads=payloads))
        return raw

    def _checked(self, job: Job) -> Any:
        if job.raw_size == 0:
            return self._run_native(job)
        outcome = self._batches.run(job)
        if outcome is None:
            return self._run_native(job)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _run_native(self, job: Job) -> Any:
        if job.payloads is not None:
            return self._native.decode_frame(job.payloads, job.raw_size)
        return self._native.encode_frame(job.raw, job.lanes)


def step_memory(a: Architecture) -> tuple[int, int]:
    """Bytes of a lane's cache, and of its rows in a step."""
    cache = 2 * sum(a.windows) * a.n_kv_heads * a.head_dim
    step = 12 * a.d_model + 5 * a.d_ff + 10 * a.n_heads * a.head_dim + 8 * 256 + 512
    return cache, step


# ── frames that come at the same time ──


class Batches:
    """Lets threads that come with one job each share the workers (one for each device).

    A thread that finds a worker free waits a moment for others, then takes its share of their jobs
    through the worker; the others wait for their outcomes.
    """

    def __init__(self, workers: Sequence[Callable[[list[Job]], list[Outcome]]]) -> None:
        self._free = list(workers)
        self._waiting: list[Job] = []
        self._leading: list[Job] = []  # those of them whose threads are gathering a batch
        self._outcomes: dict[int, Outcome] = {}  # by id() of the job
        self._changed = threading.Condition()

    def run(self, job: Job) -> Outcome:
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()
            while id(job) not in self._outcomes:
                if self._free and any(job is waiting for waiting in self._waiting):
                    self._lead(job)
                else:
                    self._changed.wait()
            return self._outcomes.pop(id(job))

    def _lead(self, job: Job) -> None:
        """With the lock held: run a batch that begins with `job`."""
        worker = self._free.pop()
        jobs = self._gather(job)
        self._changed.release()
        outcomes: list[Outcome] = [RuntimeError("the batch was interrupted")] * len(jobs)
        try:
            outcomes = worker(jobs)
        except Exception as error:  # noqa: BLE001 (each thread raises it as its own)
            outcomes = [error] * len(jobs)
        finally:
            self._changed.acquire()
            self._outcomes |= {id(j): o for j, o in zip(jobs, outcomes, strict=True)}
            self._free.append(worker)
            self._changed.notify_all()

    def _gather(self, job: Job) -> list[Job]:
        self._leading.append(job)
        count = -1
        while count != len(self._waiting) < MAX_FRAMES:
            count = len(self._waiting)
            self._changed.wait(GATHER_SECONDS)
        others = [
            j
            for j in self._waiting
            if j.decoding == job.decoding and not any(j is leader for leader in self._leading)
        ]
        # Workers that are free, or for which someone else is gathering, take their part too.
        share = -(-len(others) // (len(self._free) + len(self._leading)))
        jobs = [job, *others[: min(share, MAX_FRAMES - 1)]]
        self._leading = [j for j in self._leading if j is not job]
        self._waiting = [j for j in self._waiting if not any(j is taken for taken in jobs)]
        return jobs


# ── one device ──


class DeviceWorker:
    """Codes batches of frames with one model on one device. Not for several threads at once."""

    def __init__(self, model: ExactModel, device: torch.device, request: CodecRequest) -> None:
        self._model, self._device, self._request = model, device, request
        self._kind = device.type
        self._with_mixer = request.method != METHOD_NETWORK
        self._max_frames = MAX_FRAMES
        self._kept: dict[tuple[int, int, str], list[Lanes]] = {}

    @cached_property
    def _make_lanes(self) -> Callable[[int, int, str], Lanes]:
        return open_engine(self._model, self._device)

    def run(self, jobs: list[Job]) -> list[Outcome]:
        """The outcome of each job; None for those that the CPU had better take."""
        taken = [
            job for job in jobs if not job.decoding or job.lanes >= MIN_FRAME_LANES[self._kind]
        ]
        if jobs[0].decoding and sum(job.lanes for job in taken) < MIN_DECODE_LANES[self._kind]:
            taken = []
        outcomes = dict(zip(map(id, taken), self._run_halving(taken), strict=True))
        return [outcomes.get(id(job)) for job in jobs]

    def _run_halving(self, jobs: list[Job]) -> list[Outcome]:
        """In batches that the device's memory holds."""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(jobs):
            batch = jobs[len(outcomes) :][: self._max_frames]
            try:
                outcomes += self._run_batch(batch)
            except torch.OutOfMemoryError:
                self._kept.clear()
                if self._kind == "cuda":
                    torch.cuda.empty_cache()
                if len(batch) == 1:
                    outcomes.append(self._too_large(batch[0]))
                else:
                    self._max_frames = len(batch) // 2
        return outcomes

    def _too_large(self, job: Job) -> LimitError:
        need = mebibytes(job.lanes * sum(step_memory(self._model.architecture)))
        return LimitError(
            f"a frame of {job.lanes} lanes takes {need} or more on {self._device}, which has not "
            "that much left: use --device cpu"
        )

    def _run_batch(self, jobs: list[Job]) -> list[Outcome]:
        run = self._decode if jobs[0].decoding else self._encode
        outcomes: dict[int, Outcome] = {}
        with self._request.threads.take() as threads:
            groups = divide(jobs)
            for group, results in zip(groups, run(groups, threads), strict=True):
                outcomes |= {id(job): result for job, result in zip(group, results, strict=True)}
        return [outcomes[id(job)] for job in jobs]

    def _take(self, lanes: int, count: int, mode: str) -> Lanes:
        kept = self._kept.get((lanes, count, mode))
        if not kept:
            return self._make_lanes(lanes, count, mode)
        taken = kept.pop()
        taken.restart()
        return taken

    def _keep(self, key: tuple[int, int, str], lanes: Lanes) -> None:
        self._kept.setdefault(key, []).append(lanes)
        if sum(map(len, self._kept.values())) > KEPT_LANES:
            oldest = next(iter(self._kept))
            self._kept[oldest].pop(0)
            if not self._kept[oldest]:
                del self._kept[oldest]

    def _encode(self, groups: list[list[Job]], threads: int) -> list[list[Outcome]]:
        encoders = [EncodeGroup(self, group, threads) for group in groups]
        for group in encoders:
            group.launch(0)
        for block in range(max(group.blocks for group in encoders)):
            for group in encoders:
                if block < group.blocks:
                    group.take(block)
                    if block + 1 < group.blocks:
                        group.launch(block + 1)
        return [group.finish() for group in encoders]

    def _decode(self, groups: list[list[Job]], threads: int) -> list[list[Outcome]]:
        decoders = [DecodeGroup(self, group, threads) for group in groups]
        for group in decoders:
            group.launch()
        for step in range(max(group.steps for group in decoders)):
            for group in decoders:
                if step < group.steps:
                    group.take(step)
        return [group.finish() for group in decoders]


def divide(jobs: list[Job]) -> list[list[Job]]:
    """Two groups of about as many lanes, or one group of a single frame."""
    groups: list[list[Job]] = [[], []]
    for job in sorted(jobs, key=lambda job: -job.lanes):
        min(groups, key=lambda group: sum(j.lanes for j in group)).append(job)
    return [group for group in groups if group]


class EncodeGroup:
    def __init__(self, worker: DeviceWorker, jobs: list[Job], threads: int) -> None:
        self._worker = worker
        self._with_mixer = worker._with_mixer
        request = worker._request
        lanes = sum(job.lanes for job in jobs)
        stride = max(job.stride for job in jobs)
        rows = ENCODE_ROWS[worker._kind]
        self._count = count = min(_power_of_two(rows // lanes), MAX_BLOCK, _power_of_two(stride))
        self.blocks = -(-stride // count)
        self._text = lockstep_text(jobs, self.blocks * count)
        mode = DISTANCES if self._with_mixer else INTERVALS
        self._key = lanes, count, mode
        self._lanes = worker._take(*self._key)
        self._coder = _core.LockstepEncoder(
            [(job.raw, job.lanes) for job in jobs],
            request.table_bits,
            PROFILES[request.profile],
            threads,
        )

    def launch(self, block: int) -> None:
        begin = block * self._count
        inputs = self._text[:, begin : begin + self._count]
        symbols = self._text[:, begin + 1 : begin + 1 + self._count]
        self._lanes.launch(inputs, None if self._with_mixer else symbols)

    def take(self, block: int) -> None:  # noqa: ARG002 (in order)
        rows = self._lanes.wait().rows
        if self._with_mixer:
            self._coder.take_distances(rows)
        else:
            self._coder.take_intervals(rows)

    def finish(self) -> list[Outcome]:
        self._worker._keep(self._key, self._lanes)
        return list(self._coder.finish())


class DecodeGroup:
    def __init__(self, worker: DeviceWorker, jobs: list[Job], threads: int) -> None:
        self._worker = worker
        self._with_mixer = worker._with_mixer
        request = worker._request
        lanes = sum(job.lanes for job in jobs)
        self.steps = max(job.stride for job in jobs)
        self._frames = len(jobs)
        self._key = lanes, 1, DISTANCES if self._with_mixer else SEARCH
        self._lanes = worker._take(*self._key)
        self._bytes = np.zeros(lanes, np.uint8)
        self._slots = np.zeros(lanes, np.uint32)
        self._coder = _core.LockstepDecoder(
            [(job.payloads or [], job.raw_size) for job in jobs],
            request.table_bits,
            PROFILES[request.profile],
            threads,
        )

    def launch(self) -> None:
        if self._with_mixer:
            self._lanes.launch(self._bytes[:, None], None)
        else:
            self._coder.slots(self._slots)
            self._lanes.launch(None, self._slots[:, None])

    def take(self, step: int) -> None:
        result = self._lanes.wait()
        if result.found is None:
            self._coder.take_distances(result.rows[:, 0], self._bytes)
        else:
            self._coder.take_intervals(np.ascontiguousarray(result.found), result.rows[:, 0])
        if step % CHECK_EVERY == 0 and self._coder.active() == 0:  # all frames are damaged
            self.steps = step + 1
        if step + 1 < self.steps:
            self.launch()

    def finish(self) -> list[Outcome]:
        self._worker._keep(self._key, self._lanes)
        outcomes: list[Outcome] = []
        for frame in range(self._frames):
            try:
                outcomes.append(self._coder.finish(frame))
            except LmzipError as error:
                outcomes.append(error)
        return outcomes


def lockstep_text(jobs: Sequence[Job], length: int) -> npt.NDArray[np.uint8]:
    """(lanes, 1 + length): each lane's first input, 0, then its bytes, then zeros."""
    text = np.zeros((sum(job.lanes for job in jobs), 1 + length), np.uint8)
    first = 0
    for job in jobs:
        raw = np.frombuffer(job.raw, np.uint8)
        for lane in range(job.lanes):
            piece = raw[lane * job.stride : (lane + 1) * job.stride]
            text[first + lane, 1 : 1 + len(piece)] = piece
        first += job.lanes
    return text


def _power_of_two(n: int) -> int:
    """The greatest one up to n, at least 1."""
    return 1 << (max(n, 1).bit_length() - 1)


# ── engines ──


def open_engine(model: ExactModel, device: torch.device) -> Callable[[int, int, str], Lanes]:
    """The best engine for a device, which makes Lanes(lanes, count, mode) of the model.

    Where CUDA lacks what the Triton engine needs, PyTorch's own operations, with a warning.
    """
    if device.type == "cpu":
        portable = TorchEngine(model, device)
        return lambda lanes, count, mode: TorchLanes(portable, lanes, count, mode)
    missing = _triton_missing(device)
    if missing is None:
        from lmzip.triton_engine import TritonEngine, TritonLanes

        engine = TritonEngine(model, device)
        if agrees_with_native(model, lambda *shape: TritonLanes(engine, *shape)):
            return lambda lanes, count, mode: TritonLanes(engine, lanes, count, mode)
        missing = "its kernels do not give the integers of the CPU there: please report this"
    warnings.warn(
        f"{device}: {missing}; PyTorch's own operations are used, which are slower",
        RuntimeWarning,
        stacklevel=2,
    )
    portable = TorchEngine(model, device)
    return lambda lanes, count, mode: TorchLanes(portable, lanes, count, mode)


def _triton_missing(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        return "the Triton engine has not been tried on AMD's GPUs"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it has no tensor cores for int8 products that Triton uses"
    try:
        import triton  # type: ignore[import-untyped] # noqa: F401
    except ImportError:
        return "Triton is not installed (lmzip-codec[cuda])"
    return None


def agrees_with_native(
    model: ExactModel, make_lanes: Callable[[int, int, str], Lanes], lanes: int = 24
) -> bool:
    """Whether 32 steps of a few lanes give the native engine's logits: a broken driver or compiler
    shows before it writes a file, not when that is read."""
    text = np.random.default_rng(1).integers(0, 256, (lanes, 32)).astype(np.uint8)
    text[:, 0] = 0
    block = make_lanes(lanes, 32, LOGITS)
    block.launch(text, None)
    native = _core.Engine(_core.ExactModel(model.tensors, model.architecture.to_json()), lanes, 1)
    return bool(np.array_equal(block.wait().rows, native.prefill(text)))
