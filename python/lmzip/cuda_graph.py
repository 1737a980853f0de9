"""A block of work on a CUDA device: one graph, on a stream of its own.

What triton_engine.TritonLanes and torch_llama.LlamaLanes have in common there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
# PyTorch records one graph at a time in a process, and waits for a whole device when it begins to:
# that would break the capture of another thread.
_recording = threading.Lock()


def graphs_of(device: torch.device) -> type[CudaGraph[Any]] | None:
    """What records blocks of work there; None where they are done at once."""
    return CudaGraph if device.type == "cuda" else None


class CudaGraph(Generic[T]):
    """`work`, recorded; `result` is what it returned then, and is made again by every replay()."""

    def __init__(self, device: torch.device, work: Callable[[], T], priority: int = 0) -> None:
        """priority: of the stream; -1 goes before the kernels of others that wait."""
        self._device = device
        with _recording, torch.cuda.device(device):
            self._stream = torch.cuda.Stream(priority=priority)  # type: ignore[no-untyped-call]
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                work()  # kernels are compiled, and cuBLAS is set up, before the capture
            self._stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may go on with what is recorded already.
            with torch.cuda.graph(
                self._graph, stream=self._stream, capture_error_mode="thread_local"
            ):
                self.result = work()

    @contextlib.contextmanager
    def on_stream(self) -> Iterator[None]:
        """What is done within goes to the device and the stream of the graph."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def replay(self) -> None:
        self._graph.replay()

    def record_done(self) -> None:
        """wait() returns when all that is on the stream by now is done."""
        self._done.record()

    def wait(self) -> None:
        self._done.synchronize()
