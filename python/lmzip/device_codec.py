"""Frame codecs whose network runs in PyTorch: how frames come together and share the devices.

A GPU wants thousands of lanes where a frame has some sixteen, so frames that threads hand in at the
same time are coded together:

    threads with a frame each -> Batches -> a DeviceWorker -> two groups of lanes

The two groups take turns: while the device evaluates one, all cores code the other.  What is coded,
bytes (torch_codec.py) or tokens (torch_token_codec.py), is the group's affair.
"""

import abc
import itertools
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from lmzip import devices
from lmzip.codec import CodecRequest, FrameCodec, mebibytes
from lmzip.errors import LimitError, LmzipError

MAX_FRAMES = devices.FRAMES_PER_GPU  # coded together, at most
GATHER_SECONDS = 0.02  # how long a frame waits for others to come
# Below so many lanes, decoding is left to the CPU: a step of a GPU takes as long for one lane as
# for many, some 0.2 ms, so 64 lanes give what a few cores do.  An estimate (docs/gpu.md).
MIN_DECODE_LANES = {"cuda": 64, "cpu": 0}
# And so is a frame of fewer lanes, beside however many others: its many steps would take a GPU, and
# all that wait for the batch, longer than they take a CPU.
MIN_FRAME_LANES = {"cuda": 8, "cpu": 0}
KEPT_LANES = 4  # Lanes objects kept for the next batch of the same shape


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
Shape = tuple[int, int, Any]  # of the lanes that an engine makes


class DeviceCodec:
    """A FrameCodec (codec.py) whose frames go to devices, a worker each.

    A native codec takes those with too little to do.  request.device "cpu" runs PyTorch on the CPU,
    for tests.  Raises UnsupportedError where the device is missing.
    """

    def __init__(
        self,
        request: CodecRequest,
        make_native: Callable[[CodecRequest], FrameCodec],
        make_worker: Callable[[torch.device, CodecRequest], "DeviceWorker"],
    ) -> None:
        assert request.model is not None
        kind = devices.choose(request.device, None)
        self.method, self.table_bits = request.method, request.table_bits
        self.profile = request.profile
        self.model_id, self.model_name = request.model.id, request.model.name
        self._native = make_native(request)  # refuses what is unknown, takes what is too little
        names = ["cpu"]
        if kind == "cuda":
            names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        shares = request.threads.split(len(names)) if len(names) > 1 else [request.threads]
        self._workers = [
            make_worker(torch.device(name), replace(request, threads=share))
            for name, share in zip(names, shares, strict=True)
        ]
        self._batches = Batches([worker.run for worker in self._workers])

    def sized(self, raw_size: int) -> "DeviceCodec":  # noqa: ARG002 (it has no tables)
        return self

    def memory_needed(self, raw_size: int, lanes: int) -> int:
        """As the native codec, and the caches, rows and pinned copies of a step."""
        per_lane = self._workers[0].lane_memory(-(-raw_size // lanes))
        return self._native.memory_needed(raw_size, lanes) + lanes * per_lane

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


class DeviceWorker(abc.ABC):
    """Codes batches of frames with one model on one device. Not for several threads at once."""

    def __init__(self, device: torch.device, request: CodecRequest) -> None:
        self.kind = device.type
        self._device, self._request = device, request
        self._max_frames = MAX_FRAMES
        self._kept: dict[Shape, list[Any]] = {}

    @abc.abstractmethod
    def lane_memory(self, stride: int) -> int:
        """Bytes that a lane of so many bytes takes on the device, about."""

    @abc.abstractmethod
    def _encode_group(self, jobs: list[Job], threads: int) -> "EncodeGroup": ...
    @abc.abstractmethod
    def _decode_group(self, jobs: list[Job], threads: int) -> "DecodeGroup": ...
    @abc.abstractmethod
    def _make_lanes(self, shape: Shape) -> Any: ...

    def run(self, jobs: list[Job]) -> list[Outcome]:
        """The outcome of each job; None for those that the CPU had better take."""
        taken = [job for job in jobs if not job.decoding or job.lanes >= MIN_FRAME_LANES[self.kind]]
        if jobs[0].decoding and sum(job.lanes for job in taken) < MIN_DECODE_LANES[self.kind]:
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
                if self.kind == "cuda":
                    torch.cuda.empty_cache()
                if len(batch) == 1:
                    outcomes.append(self._too_large(batch[0]))
                else:
                    self._max_frames = len(batch) // 2
        return outcomes

    def _too_large(self, job: Job) -> LimitError:
        need = mebibytes(job.lanes * self.lane_memory(job.stride))
        return LimitError(
            f"a frame of {job.lanes} lanes takes {need} or more on {self._device}, which has not "
            "that much left: use --device cpu"
        )

    def _run_batch(self, jobs: list[Job]) -> list[Outcome]:
        run = self._decode if jobs[0].decoding else self._encode
        outcomes: dict[int, Outcome] = {}
        with self._request.threads.take(0) as threads:
            groups = divide(jobs)
            for group, results in zip(groups, run(groups, threads), strict=True):
                outcomes |= {id(job): result for job, result in zip(group, results, strict=True)}
        return [outcomes[id(job)] for job in jobs]

    def take(self, shape: Shape) -> Any:
        """Lanes of this shape at position 0."""
        kept = self._kept.get(shape)
        if not kept:
            return self._make_lanes(shape)
        taken = kept.pop()
        taken.restart()
        return taken

    def keep(self, shape: Shape, lanes: Any) -> None:
        """For a later batch."""
        self._kept.setdefault(shape, []).append(lanes)
        if sum(map(len, self._kept.values())) > KEPT_LANES:
            oldest = next(iter(self._kept))
            self._kept[oldest].pop(0)
            if not self._kept[oldest]:
                del self._kept[oldest]

    def _encode(self, groups: list[list[Job]], threads: int) -> list[list[Outcome]]:
        encoders = [self._encode_group(group, threads) for group in groups]
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
        decoders = [self._decode_group(group, threads) for group in groups]
        for group in decoders:
            group.launch()
        for step in itertools.count():
            running = [group for group in decoders if step < group.steps]
            if not running:
                break
            for group in running:
                group.take(step)
        return [group.finish() for group in decoders]


def triton_missing(device: torch.device) -> str | None:
    """Why the Triton engines cannot run on a CUDA device, or None."""
    if torch.version.hip is not None:
        return "the Triton engine has not been tried on AMD's GPUs"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it has no tensor cores for int8 products that Triton uses"
    try:
        import triton  # type: ignore[import-untyped] # noqa: F401
    except ImportError:
        return "Triton is not installed (lmzip-codec[cuda])"
    return None


WRONG_KERNELS = "its kernels do not give the integers of the CPU there: please report this"


def warn_of_torch(device: torch.device, missing: str) -> None:
    warnings.warn(
        f"{device}: {missing}; PyTorch's own operations are used, which are slower",
        RuntimeWarning,
        stacklevel=3,
    )


class EncodeGroup(Protocol):
    """Lanes of some frames, which a device evaluates in blocks of positions."""

    blocks: int

    def launch(self, block: int) -> None: ...
    def take(self, block: int) -> None:
        """What the last launch has made."""

    def finish(self) -> list[Outcome]:
        """One for each frame."""


class DecodeGroup(Protocol):
    """Lanes of some frames, which a device evaluates step by step."""

    steps: int  # may turn out to be fewer

    def launch(self) -> None: ...
    def take(self, step: int) -> None:
        """What the last launch has made; launches the next step, if there is one."""

    def finish(self) -> list[Outcome]: ...


def finish_frames(frames: int, finish: Callable[[int], bytes]) -> list[Outcome]:
    """What finish(frame) returns for each, or the LmzipError that it raises."""
    outcomes: list[Outcome] = []
    for frame in range(frames):
        try:
            outcomes.append(finish(frame))
        except LmzipError as error:
            outcomes.append(error)
    return outcomes


def divide(jobs: list[Job]) -> list[list[Job]]:
    """Two groups of about as many lanes, or one group of a single frame."""
    groups: list[list[Job]] = [[], []]
    for job in sorted(jobs, key=lambda job: -job.lanes):
        min(groups, key=lambda group: sum(j.lanes for j in group)).append(job)
    return [group for group in groups if group]


def power_of_two(n: int) -> int:
    """The greatest one up to n, at least 1."""
    return 1 << (max(n, 1).bit_length() - 1)
