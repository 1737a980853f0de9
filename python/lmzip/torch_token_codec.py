"""Frames of tokens whose network runs in PyTorch, on CUDA: method 5, equal to token_codec.py.

How frames share a device is said in device_codec.py.  The cores code in _core.TokenLockstepEncoder
or TokenLockstepDecoder; logits stay on the device, which answers what coders ask of them
(token_answers.py).  Where a decoder finds a token that is no candidate, which some lane of a large
group does in nearly every step, the device is asked once more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from lmzip import _core, llama_model, token_answers
from lmzip.codec import CodecRequest
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
from lmzip.llama_model import LlamaModel
from lmzip.token_codec import TokenCodec
from lmzip.torch_llama import LlamaLanes, TorchLlama

ENCODE_ROWS = {"cuda": 1024, "cpu": 64}  # positions of a group that are evaluated at once
ENCODE_LOGITS = 1 << 26  # of which at most: a device has some copies of them in work
MAX_BLOCK = 64  # of which of one lane
NO_TOKEN = (1 << 32) - 1  # in questions


@dataclass(frozen=True, slots=True)
class TokenJob(Job):
    symbols: list[int] = field(default_factory=list)  # encoding


class TorchTokenCodec(DeviceCodec):
    """Encoding needs the tokenizers library, decoding does not."""

    _native: TokenCodec

    def __init__(self, request: CodecRequest) -> None:
        assert request.model is not None
        path = request.model.path

        def make_worker(device: torch.device, number: int) -> TokenWorker:
            model = llama_model.parse(path.read_bytes())
            return TokenWorker(model, self._native.native, device, number)

        super().__init__(request, TokenCodec, make_worker)

    def encode_frame(self, data: memoryview | bytes, lanes: int) -> list[bytes]:
        symbols = self._native.symbols(data)  # by the thread that brings the frame
        job = TokenJob(lanes, len(data), data, None, *self._coding(), symbols)
        payloads: list[bytes] = self._checked(job)
        return payloads


class TokenWorker(DeviceWorker):
    pinned_memory = 4 * (
        token_answers.QUESTION_WORDS + token_answers.ANSWER_WORDS + 1 + token_answers.FOUND_WORDS
    )

    def __init__(
        self, model: LlamaModel, native: _core.LlamaModel, device: torch.device, number: int
    ) -> None:
        super().__init__(device, number)
        self.architecture = model.architecture
        self.native = native
        self._model = model

    def lane_memory(self, stride: int) -> int:
        a = self.architecture
        slots = sum(s + min(w, stride) for w, s in zip(a.windows, a.sinks, strict=True))
        cache = slots * a.n_kv_heads * (2 * a.head_dim + 8)
        widest = max(a.d_model, 2 * a.d_ff, a.n_heads * a.head_dim)
        return cache + 16 * a.vocabulary + 12 * token_answers.ANSWER_WORDS + 24 * widest

    @cached_property
    def _engine(self) -> TorchLlama:
        return open_engine(self._model, self.native, self._device)

    def _make_lanes(self, shape: Shape) -> LlamaLanes:
        lanes, count, (positions, to_search) = shape
        return LlamaLanes(self._engine, lanes, count, positions, to_search)

    def _encode_group(self, jobs: list[Job], threads: int) -> EncodeGroup:
        return TokenEncodeGroup(self, jobs, threads)

    def _decode_group(self, jobs: list[Job], threads: int) -> DecodeGroup:
        return TokenDecodeGroup(self, jobs, threads)

    def shape(self, lanes: int, count: int, longest: int, to_search: bool) -> Shape:
        """Of lanes of so many tokens, rounded up so that similar batches share one."""
        a = self.architecture
        most = max(a.windows) + max(a.sinks) + count  # what is behind these is forgotten
        return lanes, count, (min(power_of_two(2 * longest - 1), most), to_search)


class TokenEncodeGroup:
    def __init__(self, worker: TokenWorker, jobs: list[Job], threads: int) -> None:
        self._worker = worker
        frames = [(job.symbols, job.lanes) for job in jobs if isinstance(job, TokenJob)]
        self._coder = _core.TokenLockstepEncoder(worker.native, frames, threads)
        lanes, steps = self._coder.lanes, self._coder.steps
        rows = min(ENCODE_ROWS[worker.kind], ENCODE_LOGITS // worker.architecture.vocabulary)
        count = min(power_of_two(rows // lanes), MAX_BLOCK, power_of_two(steps))
        self.blocks = -(-steps // count)
        self._questions = np.zeros((lanes, count, token_answers.QUESTION_WORDS), np.uint32)
        self._shape = worker.shape(lanes, count, steps, False)
        self._lanes = worker.take(self._shape)

    def launch(self, block: int) -> None:  # noqa: ARG002 (in order)
        self._coder.ask(self._questions)
        self._lanes.launch(self._questions)

    def take(self, block: int) -> None:  # noqa: ARG002
        self._coder.take(self._lanes.wait())

    def finish(self) -> list[Outcome]:
        self._worker.keep(self._shape, self._lanes)
        return list(self._coder.finish())


class TokenDecodeGroup:
    def __init__(self, worker: TokenWorker, jobs: list[Job], threads: int) -> None:
        self._worker = worker
        self._frames = len(jobs)
        frames = [(job.payloads or [], job.raw_size) for job in jobs]
        self._coder = _core.TokenLockstepDecoder(worker.native, frames, threads)
        self.steps = max(job.stride for job in jobs)  # a token has a byte or more
        lanes = self._coder.lanes
        self._questions = np.zeros((lanes, token_answers.QUESTION_WORDS), np.uint32)
        self._slots = np.zeros(lanes, np.uint32)
        self._nothing = np.zeros((lanes, token_answers.FOUND_WORDS), np.uint32)
        self._shape = worker.shape(lanes, 1, self.steps, True)
        self._lanes = worker.take(self._shape)

    def launch(self) -> None:
        self._coder.ask(self._questions)
        self._lanes.launch(self._questions[:, None])

    def take(self, step: int) -> None:
        searched = self._coder.choose(self._lanes.wait()[:, 0], self._slots)
        self._coder.take(self._lanes.search(self._slots) if searched else self._nothing)
        if self._coder.active() == 0:
            self.steps = step + 1
        else:
            self.launch()

    def finish(self) -> list[Outcome]:
        self._worker.keep(self._shape, self._lanes)
        return finish_frames(self._frames, self._coder.finish)


def open_engine(model: LlamaModel, native: _core.LlamaModel, device: torch.device) -> TorchLlama:
    """The best engine for a device.  Raises LmzipError where none gives the CPU's integers."""

    def by_triton() -> TorchLlama:
        from lmzip.triton_llama import TritonLlama

        return TritonLlama(model, device)

    if device.type == "cpu":
        return TorchLlama(model, device)
    return engine_that_agrees(
        device,
        by_triton,
        lambda: TorchLlama(model, device),
        lambda engine: agrees_with_native(engine, native),
    )


def agrees_with_native(engine: TorchLlama, native: _core.LlamaModel, lanes: int = 24) -> bool:
    """Whether steps and a block of a few lanes give the native engine's logits, and the answers
    that follow from them: a broken driver shows before it writes a file, not when that is read."""
    count, few = 8, min(lanes, 4)  # few: whose answers the CPU makes too, which takes it long
    rng = np.random.default_rng(1)
    shape = lanes, 2 * count, token_answers.QUESTION_WORDS
    questions = rng.integers(0, engine.arch.vocabulary, shape).astype(np.uint32)
    questions[:, 0, token_answers.INPUT] = engine.arch.start
    unasked = questions.copy()
    unasked[..., token_answers.TARGET :] = NO_TOKEN
    inputs = np.ascontiguousarray(questions[..., token_answers.INPUT])
    expected = _core.LlamaEngine(native, lanes, 2 * count).feed(inputs)
    slots = rng.integers(0, 1 << 30, lanes).astype(np.uint32)
    for width in (1, count):
        block = LlamaLanes(engine, lanes, width, 2 * count, width == 1)
        for begin in range(0, 2 * count, width):
            part = slice(begin, begin + width)
            block.launch(unasked[:, part])
            block.wait()
            if not np.array_equal(block.logits(), expected[:, part]):
                return False
        block.restart()
        block.launch(questions[:, :width])
        rows = torch.from_numpy(expected[:few, :width].reshape(few * width, -1).copy())
        asked = torch.from_numpy(questions[:few, :width].reshape(len(rows), -1).view(np.int32))
        theirs = (token_answers.survey if width == 1 else token_answers.answer)(rows, asked)
        ours = block.wait()[:few].view(np.int32).reshape(theirs.shape)
        if not np.array_equal(ours, theirs):
            return False
        if width == 1:
            wanted = torch.from_numpy(slots[:few].view(np.int32))
            found = token_answers.search(rows, asked, theirs, wanted).numpy()
            if not np.array_equal(block.search(slots)[:few].view(np.int32), found):
                return False
    return True
