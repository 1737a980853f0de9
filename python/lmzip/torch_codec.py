"""Frames of bytes whose network runs in PyTorch, on CUDA: methods 1 (network) and 3 (and mixer).

The same bytes as the native engine, in both directions; how frames share a device is said in
device_codec.py.  The cores code in _core.LockstepEncoder or LockstepDecoder.  Across the bus go 8
bytes for a byte without the mixer, 512 with it (lanes.py).
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from lmzip import _core
from lmzip.codec import CodecRequest, lane_ranges
from lmzip.container import METHOD_NETWORK
from lmzip.device_codec import (
    DecodeGroup,
    DeviceCodec,
    DeviceWorker,
    EncodeGroup,
    Job,
    Outcome,
    Shape,
    engine_that_agrees,
    finish_frames,
    power_of_two,
)
from lmzip.lanes import DISTANCES, INTERVALS, LOGITS, SEARCH, Lanes
from lmzip.model_file import Architecture, ExactModel, load
from lmzip.native import PROFILES, NativeCodec
from lmzip.torch_engine import TorchEngine, TorchLanes

if TYPE_CHECKING:
    from lmzip._core import MixerProfile

ENCODE_ROWS = {"cuda": 16384, "cpu": 512}  # positions of a group that are evaluated at once
MAX_BLOCK = 128  # of which of one lane
CHECK_EVERY = 64  # steps between looks for frames that turned out to be damaged


class TorchCodec(DeviceCodec):
    """The methods network, and network and mixer."""

    def __init__(self, request: CodecRequest) -> None:
        assert request.model is not None
        path = request.model.path
        super().__init__(
            request, NativeCodec, lambda device, number: ByteWorker(load(path), device, number)
        )


def step_memory(a: Architecture) -> tuple[int, int]:
    """Bytes of a lane's cache, and of its rows in a step."""
    cache = 2 * sum(a.windows) * a.n_kv_heads * a.head_dim
    step = 12 * a.d_model + 5 * a.d_ff + 10 * a.n_heads * a.head_dim + 8 * 256 + 512
    return cache, step


class ByteWorker(DeviceWorker):
    pinned_memory = 2 * 256 + 8  # a row of distances; an input and what is given with it

    def __init__(self, model: ExactModel, device: torch.device, number: int) -> None:
        super().__init__(device, number)
        self._model = model

    def lane_memory(self, stride: int) -> int:  # noqa: ARG002 (windows are short)
        return sum(step_memory(self._model.architecture))

    @cached_property
    def _engine(self) -> Callable[[int, int, str], Lanes]:
        return open_engine(self._model, self._device)

    def _make_lanes(self, shape: Shape) -> Lanes:
        return self._engine(*shape)

    def _encode_group(self, jobs: list[Job], threads: int) -> EncodeGroup:
        return ByteEncodeGroup(self, jobs, threads)

    def _decode_group(self, jobs: list[Job], threads: int) -> DecodeGroup:
        return ByteDecodeGroup(self, jobs, threads)


class ByteEncodeGroup:
    def __init__(self, worker: DeviceWorker, jobs: list[Job], threads: int) -> None:
        self._worker = worker
        self._with_mixer = jobs[0].method != METHOD_NETWORK
        lanes = sum(job.lanes for job in jobs)
        stride = max(job.stride for job in jobs)
        rows = ENCODE_ROWS[worker.kind]
        self._count = count = min(power_of_two(rows // lanes), MAX_BLOCK, power_of_two(stride))
        self.blocks = -(-stride // count)
        self._text = lockstep_text(jobs, self.blocks * count)
        mode = DISTANCES if self._with_mixer else INTERVALS
        self._key = lanes, count, mode
        self._lanes = worker.take(self._key)
        self._coder = _core.LockstepEncoder(
            [(job.raw, job.lanes) for job in jobs], mixers_of(jobs), threads
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
        self._worker.keep(self._key, self._lanes)
        return list(self._coder.finish())


class ByteDecodeGroup:
    def __init__(self, worker: DeviceWorker, jobs: list[Job], threads: int) -> None:
        self._worker = worker
        self._with_mixer = jobs[0].method != METHOD_NETWORK
        lanes = sum(job.lanes for job in jobs)
        self.steps = max(job.stride for job in jobs)
        self._frames = len(jobs)
        self._key = lanes, 1, DISTANCES if self._with_mixer else SEARCH
        self._lanes = worker.take(self._key)
        self._bytes = np.zeros(lanes, np.uint8)
        self._slots = np.zeros(lanes, np.uint32)
        self._coder = _core.LockstepDecoder(
            [(job.payloads or [], job.raw_size) for job in jobs], mixers_of(jobs), threads
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
        self._worker.keep(self._key, self._lanes)
        return finish_frames(self._frames, self._coder.finish)


def mixers_of(jobs: Sequence[Job]) -> list[tuple[int, "MixerProfile"]]:
    return [(job.table_bits, PROFILES[job.profile]) for job in jobs]


def lockstep_text(jobs: Sequence[Job], length: int) -> npt.NDArray[np.uint8]:
    """(lanes, 1 + length): each lane's first input, 0, then its bytes, then zeros."""
    text = np.zeros((sum(job.lanes for job in jobs), 1 + length), np.uint8)
    first = 0
    for job in jobs:
        raw = np.frombuffer(job.raw, np.uint8)
        for lane, (begin, end) in enumerate(lane_ranges(job.raw_size, job.lanes)):
            text[first + lane, 1 : 1 + end - begin] = raw[begin:end]
        first += job.lanes
    return text


# ── engines ──


def open_engine(model: ExactModel, device: torch.device) -> Callable[[int, int, str], Lanes]:
    """The best engine for a device, which makes Lanes(lanes, count, mode) of the model.

    Raises LmzipError where none gives the CPU's integers.
    """

    def portable() -> Callable[[int, int, str], Lanes]:
        engine = TorchEngine(model, device)
        return lambda lanes, count, mode: TorchLanes(engine, lanes, count, mode)

    def by_triton() -> Callable[[int, int, str], Lanes]:
        from lmzip.triton_engine import TritonEngine, TritonLanes

        engine = TritonEngine(model, device)
        return lambda lanes, count, mode: TritonLanes(engine, lanes, count, mode)

    if device.type == "cpu":
        return portable()
    return engine_that_agrees(
        device, by_triton, portable, lambda make_lanes: agrees_with_native(model, make_lanes)
    )


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
