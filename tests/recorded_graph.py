"""CUDA's graphs and streams in tests without a GPU: what a device does late is done late here too.

A RecordedGraph takes the place of cuda_graph.CudaGraph on the CPU:

- It records operations (of PyTorch, and launches of Triton's interpreted kernels) and replays
  those, not the function that made them: what Python computed is as it was then, and tensors that
  were made stay where they are.
- What a capture forbids is an error: to look at a tensor's numbers, or bring them from the host.
- Nothing happens when it is asked for.  Copies and replays are queued, and run when somebody waits
  for them, one by one and in turns with those of other streams, in an order that is drawn.  So who
  reads a result too soon, or writes over an input that is still to be copied, gets wrong numbers.
"""

import contextlib
import itertools
import random
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# On CUDA the host would wait for numbers, or copy them from memory that is not pinned.
NOT_CAPTURED = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::lift_fresh"}
QUEUED = {"aten::copy_", "aten::zero_", "aten::fill_"}
GARBAGE = 0x5A  # of bytes that nothing has written

Operation = Callable[[], None]


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Recorder(TorchDispatchMode):
    """Does the operations, and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._made: list[torch.Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        name = func.name().split(".")[0]
        assert name not in NOT_CAPTURED, f"a capture does not allow {func.name()}"
        out = func(*args, **kwargs)
        given = {place(tensor) for tensor in tensors((args, kwargs))}
        made = [tensor for tensor in tensors(out) if place(tensor) not in given]
        self._made += made

        def again() -> None:
            for old, new in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                if name.startswith("aten::empty") or name == "aten::new_empty":
                    old.untyped_storage().fill_(GARBAGE)
                elif any(old is tensor for tensor in made):
                    old.copy_(new)

        self.operations.append(again)
        return out

    def forget_results(self) -> None:
        """A capture computes nothing."""
        for tensor in self._made:
            tensor.untyped_storage().fill_(GARBAGE)


@contextlib.contextmanager
def recorded_kernels(recorder: Recorder) -> Iterator[None]:
    """Launches of Triton's interpreter are operations of the recorder."""
    try:
        from triton.runtime.interpreter import InterpretedFunction
    except ImportError:
        yield
        return
    run = InterpretedFunction.run

    def record(kernel: Any, *args: Any, **kwargs: Any) -> None:
        with torch.utils._python_dispatch._disable_current_modes():
            run(kernel, *args, **kwargs)
        recorder.operations.append(lambda: run(kernel, *args, **kwargs))

    InterpretedFunction.run = record
    try:
        yield
    finally:
        InterpretedFunction.run = run


class Stream(TorchDispatchMode):
    """Operations in order, which wait for run_one()."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: deque[Operation] = deque()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        name = func.name().split(".")[0]
        assert name in QUEUED, f"{func.name()} on a stream: is it meant to run there?"
        self.pending.append(lambda: func(*args, **(kwargs or {})))
        return args[0]

    def run_one(self) -> None:
        with torch.inference_mode():  # what was made in it may be written only in it
            self.pending.popleft()()


class RecordedGraph:
    """As cuda_graph.CudaGraph."""

    _all: ClassVar = weakref.WeakSet["RecordedGraph"]()
    _numbers = itertools.count()
    _drawn = random.Random(1)

    def __init__(self, device: torch.device, work: Callable[[], Any], priority: int = 0) -> None:
        del device, priority
        work()  # what is made once is made before the capture
        recorder = Recorder()
        with recorded_kernels(recorder), recorder:
            self.result = work()
        recorder.forget_results()
        self._operations = recorder.operations
        self._stream = Stream()
        self._to_come = 0  # pending operations up to the last record_done()
        self._number = next(self._numbers)
        RecordedGraph._all.add(self)

    def on_stream(self) -> contextlib.AbstractContextManager[Any]:
        return self._stream

    def replay(self) -> None:
        self._stream.pending.extend(self._operations)

    def record_done(self) -> None:
        self._to_come = len(self._stream.pending)

    def wait(self) -> None:
        while self._to_come:
            busy = [graph for graph in RecordedGraph._all if graph._stream.pending]
            graph = self._drawn.choice(sorted(busy, key=lambda graph: graph._number))
            graph._stream.run_one()
            graph._to_come = max(0, graph._to_come - 1)
