"""Threads that code frames, and that soon end when nobody waits for the frames any more.

Python waits for such threads before it exits, and Ctrl-C reaches its main thread alone: engines ask
`check_abandoned` now and then.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Result = TypeVar("Result")

_here = threading.local()


class Abandoned(BaseException):
    """Ends the work on a frame in the thread of a pool that was abandoned.  No user sees it."""


class FrameJob(Generic[Result]):
    """Work for a thread of a pool or, where none can do it, for whoever asks for the result.

    No thread starts where the system gives none, or when the interpreter ends; in a forked child
    those of its parent are missing, and what they had in work there is done once more; and those of
    a pool that was abandoned do no more.
    """

    def __init__(
        self, pool: ThreadPoolExecutor, abandoned: threading.Event, work: Callable[[], Result]
    ) -> None:
        self._work, self._abandoned = work, abandoned
        self._process = os.getpid()
        self._future: Future[Result] = Future()
        self._queued = False
        with contextlib.suppress(RuntimeError):  # the pool may have queued it nevertheless
            pool.submit(self._run)
            self._queued = True

    def _run(self) -> None:
        if not self._future.set_running_or_notify_cancel():
            return
        try:
            self._future.set_result(self._work())
        except BaseException as error:  # noqa: BLE001 (whoever asks for the result gets it)
            self._future.set_exception(error)

    def _waits(self) -> bool:
        """Whether a thread is to do it, or does it.  Not in a child: there a lock of the future may
        be held for ever."""
        return self._process == os.getpid() and self._queued

    def done(self) -> bool:
        """True if no thread is waited for."""
        return not self._waits() or self._future.done()

    def result(self) -> Result:
        if self._process != os.getpid():
            return self._work()
        given_up = not self._queued or self._abandoned.is_set()
        if given_up and self._future.cancel():  # no thread has begun
            return self._work()
        try:
            return self._future.result()
        except Abandoned:
            return self._work()


class FramePool:
    """So many threads, started when they are first needed, and anew in a forked child."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._start()

    def __del__(self) -> None:
        self.abandon()  # who held it has gone

    def _start(self) -> None:
        self._process = os.getpid()
        self._abandoned = threading.Event()
        self._pool = ThreadPoolExecutor(self._threads, "lmzip", _enter, (self._abandoned,))

    def submit(self, work: Callable[..., Result], *arguments: object) -> FrameJob[Result]:
        if self._process != os.getpid():
            self._start()
        return FrameJob(self._pool, self._abandoned, functools.partial(work, *arguments))

    def abandon(self) -> None:
        """Begin no more work, and let nobody wait for what has begun: it ends soon."""
        if self._process == os.getpid():
            self._abandoned.set()
            self._pool.shutdown(wait=False, cancel_futures=True)


def check_abandoned() -> None:
    """Raise Abandoned in the threads of a pool that was abandoned."""
    abandoned = getattr(_here, "abandoned", None)
    if abandoned is not None and abandoned.is_set():
        raise Abandoned


def _enter(abandoned: threading.Event) -> None:
    _here.abandoned = abandoned
