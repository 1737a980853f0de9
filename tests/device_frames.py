"""What the tests of frames on devices (bytes, tokens) have in common.

The checks take a native codec and one whose network runs in PyTorch, of the same method.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from lmzip import device_codec
from lmzip.codec import FrameCodec
from lmzip.errors import LmzipError

Frame = tuple[bytes, int]  # raw bytes, lanes


def at_once(work: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> list[Any]:
    """work(*item) in a thread for each, all of which start together."""
    barrier = threading.Barrier(len(items))

    def one(item: tuple[Any, ...]) -> Any:
        barrier.wait()
        return work(*item)

    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(one, items))


def watch_batches(monkeypatch: pytest.MonkeyPatch) -> list[list[device_codec.Job]]:
    """The batches that a device gets from now on."""
    batches: list[list[device_codec.Job]] = []
    divided = device_codec.divide

    def divide(jobs: list[device_codec.Job]) -> list[list[device_codec.Job]]:
        batches.append(jobs)
        return divided(jobs)

    monkeypatch.setattr(device_codec, "divide", divide)
    return batches


def encoded(native: FrameCodec, frames: Sequence[Frame]) -> list[tuple[list[bytes], int]]:
    """Payloads and raw size of each."""
    return [(native.encode_frame(*frame), len(frame[0])) for frame in frames]


def check_frames_at_once(native: FrameCodec, ours: FrameCodec, frames: Sequence[Frame]) -> None:
    coded = encoded(native, frames)
    assert at_once(ours.encode_frame, frames) == [payloads for payloads, _ in coded]
    assert at_once(ours.decode_frame, coded) == [raw for raw, _ in frames]


def outcomes_beside_damage(native: FrameCodec, ours: FrameCodec, raw: bytes) -> list[Any]:
    """Of three frames of a third of `raw` each, decoded at once: one whole, one with lane 1 cut
    short, one with lane 0 too long."""
    size = len(raw) // 3
    good, cut, longer = (native.encode_frame(raw[i * size :][:size], 3) for i in range(3))
    cut = [cut[0], cut[1][:5], cut[2]]
    longer = [longer[0] + b"more", *longer[1:]]

    def outcome(payloads: list[bytes]) -> bytes | LmzipError:
        try:
            return ours.decode_frame(payloads, size)
        except LmzipError as error:
            return error

    return at_once(outcome, [(good,), (cut,), (longer,)])


def check_out_of_memory_halves_the_batch(
    native: FrameCodec,
    ours: FrameCodec,
    frames: Sequence[Frame],
    direction: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    whole = getattr(device_codec.DeviceWorker, f"_{direction}")

    def limited(self: Any, groups: list[list[device_codec.Job]], threads: int) -> Any:
        calls.append(sum(map(len, groups)))
        if calls[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, groups, threads)

    monkeypatch.setattr(device_codec.DeviceWorker, f"_{direction}", limited)
    coded = encoded(native, frames)
    if direction == "encode":
        assert at_once(ours.encode_frame, frames) == [payloads for payloads, _ in coded]
    else:
        assert at_once(ours.decode_frame, coded) == [raw for raw, _ in frames]
    assert max(calls) > 2
    assert calls[-1] <= 2


def check_few_lanes_are_left_to_the_cpu(
    native: FrameCodec,
    ours: FrameCodec,
    frames: Sequence[Frame],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of frames with 9 lanes, 1 and 9."""
    coded = encoded(native, frames)
    monkeypatch.setitem(device_codec.MIN_FRAME_LANES, "cpu", 8)
    batches = watch_batches(monkeypatch)
    assert at_once(ours.decode_frame, coded) == [raw for raw, _ in frames]
    assert [job.lanes for batch in batches for job in batch] == [9, 9]
