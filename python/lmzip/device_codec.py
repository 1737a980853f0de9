"""Frame codecs whose network runs in PyTorch: how frames come together and share the devices.

A GPU wants thousands of lanes where a frame has some sixteen, so frames that threads hand in at the
same time are coded together:

    threads with a frame each -> Batches -> a DeviceWorker -> two groups of lanes

The two groups take turns: while the device evaluates one, all cores code the other.  What is coded,
bytes (torch_codec.py) or tokens (torch_token_codec.py), is the group's affair.
"""

import abc
import copy
import itertools
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import torch

from lmzip import devices
from lmzip.codec import CodecRequest, FrameCodec, ThreadShare, mebibytes
from lmzip.container import METHOD_NETWORK
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
KEPT_MODELS = 2  # whose workers are kept
LEAST_TRITON = (3, 6)


@dataclass(frozen=True, slots=True)
class Job:
    """A frame to be coded: raw bytes, or payloads and the raw size."""

    lanes: int
    raw_size: int
    raw: memoryview | bytes = b""
    payloads: Sequence[bytes] | None = None
    method: int = METHOD_NETWORK
    table_bits: int = 0
    profile: int = 0
    cores: Sequence[ThreadShare] = ()  # one for each worker

    @property
    def decoding(self) -> bool:
        return self.payloads is not None

    def goes_with(self, other: "Job") -> bool:
        """Whether one batch can have both: tables may differ, what is computed may not."""
        return (self.decoding, self.method) == (other.decoding, other.method)

    @property
    def stride(self) -> int:
        return -(-self.raw_size // self.lanes)


T = TypeVar("T")
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
        make_worker: Callable[[torch.device, int], "DeviceWorker"],
    ) -> None:
        """make_worker: for a device, which has this number among the workers."""
        assert request.model is not None
        kind = devices.choose(request.device, None)
        self.method, self.profile = request.method, request.profile
        self.model_id, self.model_name = request.model.id, request.model.name
        self._native = make_native(request)  # refuses what is unknown, takes what is too little
        names = ["cpu"]
        if kind == "cuda":
            names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]

        def make_workers() -> list[DeviceWorker]:
            return [make_worker(torch.device(name), i) for i, name in enumerate(names)]

        key = type(self).__name__, kind, request.model.id
        self._batches, self._workers = shared_workers(key, make_workers)
        self._cores = request.threads.split(len(names)) if len(names) > 1 else [request.threads]

    @property
    def table_bits(self) -> int:
        return self._native.table_bits

    def sized(self, raw_size: int) -> Self:
        native = self._native.sized(raw_size)
        if native is self._native:
            return self
        smaller = copy.copy(self)
        smaller._native = native
        return smaller

    def memory_needed(self, raw_size: int, lanes: int) -> int:
        """As the native codec, which may take the frame, and pinned copies of a step.  What is on
        the device counts there: a batch that does not fit is halved."""
        return self._native.memory_needed(raw_size, lanes) + lanes * self._workers[0].pinned_memory

    def encode_frame(self, data: memoryview | bytes, lanes: int) -> list[bytes]:
        payloads: list[bytes] = self._checked(Job(lanes, len(data), data, None, *self._coding()))
        return payloads

    def decode_frame(self, payloads: Sequence[bytes], raw_size: int) -> bytes:
        job = Job(len(payloads), raw_size, b"", payloads, *self._coding())
        raw: bytes = self._checked(job)
        return raw

    def _coding(self) -> tuple[int, int, int, Sequence[ThreadShare]]:
        """The last fields of a job."""
        return self.method, self.table_bits, self.profile, self._cores

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

_shared: dict[tuple[str, str, bytes], tuple["Batches", list["DeviceWorker"]]] = {}
_shared_lock = threading.Lock()


def shared_workers(
    key: tuple[str, str, bytes], make: Callable[[], list["DeviceWorker"]]
) -> tuple["Batches", list["DeviceWorker"]]:
    """Those of a model, the same for all codecs of this process: frames come together whatever
    stream they are of, and later streams find the model, its kernels and its lanes."""
    with _shared_lock:
        if (found := _shared.pop(key, None)) is None:
            workers = make()
            found = Batches([worker.run for worker in workers]), workers
        _shared[key] = found
        while len(_shared) > KEPT_MODELS:
            del _shared[next(iter(_shared))]
        return found


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
            if job.goes_with(j) and not any(j is leader for leader in self._leading)
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

    pinned_memory: int  # bytes of the host that a lane's step takes

    def __init__(self, device: torch.device, number: int) -> None:
        """number: among the workers."""
        self.kind = device.type
        self._device, self._number = device, number
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
                continue
            except torch.OutOfMemoryError:
                pass  # the error holds on to the lanes of the batch until it is gone itself
            if self._forget_kept():
                continue
            if len(batch) == 1:
                outcomes.append(self._too_large(batch[0]))
            else:
                self._max_frames = len(batch) // 2
        return outcomes

    def _forget_kept(self) -> bool:
        """Whether there was anything, which may have been what was in the way."""
        kept = bool(self._kept)
        self._kept.clear()
        if self.kind == "cuda":
            torch.cuda.empty_cache()
        return kept

    def _too_large(self, job: Job) -> LimitError:
        need = mebibytes(job.lanes * self.lane_memory(job.stride))
        return LimitError(
            f"a frame of {job.lanes} lanes takes {need} or more on {self._device}, which has not "
            "that much left: use --device cpu"
        )

    def _run_batch(self, jobs: list[Job]) -> list[Outcome]:
        run = self._decode if jobs[0].decoding else self._encode
        outcomes: dict[int, Outcome] = {}
        with jobs[0].cores[self._number].take(0) as threads:
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
        import triton  # type: ignore[import-untyped]
    except ImportError:
        return "Triton is not installed (lmzip-codec[cuda])"
    if tuple(map(int, triton.__version__.split(".")[:2])) < LEAST_TRITON:
        wanted = ".".join(map(str, LEAST_TRITON))
        return f"Triton {triton.__version__} is too old; {wanted} is needed"
    return None


def engine_that_agrees(
    device: torch.device,
    make_triton: Callable[[], T],
    make_portable: Callable[[], T],
    agrees: Callable[[T], bool],
) -> T:
    """The Triton engine of a CUDA device.  Where Triton is missing, fails or is wrong, PyTorch's
    own operations, with a warning that says why.

    agrees: whether an engine gives the CPU's integers.  Raises LmzipError where none does.
    """
    missing = triton_missing(device)
    if missing is None:
        try:
            engine = make_triton()
            if agrees(engine):
                return engine
            missing = "its kernels do not give the integers of the CPU there: please report this"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (a compiler or driver may raise anything)
            missing = f"its kernels cannot be had there ({type(error).__name__}: {error})"
    warnings.warn(
        f"{device}: {missing}; PyTorch's own operations are used, which are slower",
        RuntimeWarning,
        stacklevel=2,
    )
    engine = make_portable()
    if not agrees(engine):
        raise LmzipError(
            f"{device} does not give the integers of the CPU: use --device cpu, and please report "
            "this"
        )
    return engine


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
