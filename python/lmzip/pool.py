"""Threads that code frames, and that soon end when nobody waits for the frames any more.

Python waits for such threads before it exits, and Ctrl-C reaches its main thread alone: engines ask
`check_abandoned` now and then.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Result = TypeVar("Result")

_here = threading.local()


class Job(Generic[Result]):
    """Work for a thread of a pool or, where none can do it, for whoever asks for the result.

    No thread starts where the system gives none, or when the interpreter ends; and in a forked
    child those of its parent are missing: what they had in work there is done once more.
    """

    def __init__(self, pool: ThreadPoolExecutor, work: Callable[[], Result]) -> None:
        self._work = work
        self._process = os.getpid()
        self._future: Future[Result] | None = None
        with contextlib.suppress(RuntimeError):
            self._future = pool.submit(work)

    def _started(self) -> Future[Result] | None:
        """None in a child: there a lock of the future may be held for ever."""
        return self._future if self._process == os.getpid() else None

    def done(self) -> bool:
        """True if no thread is waited for."""
        future = self._started()
        return future is None or future.done()

    def result(self) -> Result:
        future = self._started()
        return self._work() if future is None else future.result()


class FramePool:
    """So many threads, started when they are first needed, and anew in a forked child."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._abandoned = threading.Event()
        self._pool = ThreadPoolExecutor(self._threads, "lmzip", _enter, (self._abandoned,))

    def submit(self, work: Callable[..., Result], *arguments: object) -> Job[Result]:
        if self._process != os.getpid():
            self._start()
        return Job(self._pool, functools.partial(work, *arguments))

    def abandon(self) -> None:
        """Begin no more work, and let nobody wait for what has begun: it ends soon."""
        if self._process == os.getpid():
            self._abandoned.set()
            self._pool.shutdown(wait=False, cancel_futures=True)


def check_abandoned() -> None:
    """Raise CancelledError, which nobody sees, in the threads of a pool that was abandoned."""
    abandoned = getattr(_here, "abandoned", None)
    if abandoned is not None and abandoned.is_set():
        raise CancelledError


def _enter(abandoned: threading.Event) -> None:
    _here.abandoned = abandoned
