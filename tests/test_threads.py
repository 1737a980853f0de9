"""Threads that cannot be started, and work that nobody waits for any more: a named error, and the
end of all threads.

A process of its own has stacks of 1 GiB, so that its address space bounds the number of threads.
"""

import resource
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

import lmzip
from lmzip import LmzipError, api, frames
from lmzip.codec import PRESETS, Codecs
from lmzip.pool import Abandoned, FramePool, check_abandoned

TIMEOUT = 100  # of what takes a second or hangs
STACK = 1 << 30
PRELUDE = f"""
import pathlib, resource, sys
import numpy as np
import lmzip
from lmzip import _core

data, blob = b"the quick brown fox jumps. " * 100, sys.stdin.buffer.read()
rows, symbols = np.ones((64, 256), np.uint32), np.zeros(64, int)
lmzip.Encoder(threads=1).encode(symbols, rows)

def show_error(work, stacks):
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    room = int(stacks * {STACK})
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, -1))
    try:
        work()
    except Exception as error:
        print(type(error).__name__, error)
    else:
        print("no error")

"""
# With three threads besides the caller's, and one for a frame.  None may have ended before: its
# stack might go while the room is measured.
WORK = {
    "encode": "lmzip.compress(data, lanes=16, threads=4)",
    "decode": "lmzip.decompress(blob, threads=4)",
    "crew": "_core.LockstepEncoder([(data, 4)], [(0, 'text')], 4)",
    "rows": "lmzip.Encoder(threads=4).encode(symbols, rows)",
}

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def error_of(work: str, stacks: float) -> str:
    """What work raises where there is room for so many stacks."""

    def large_stacks() -> None:
        hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
        resource.setrlimit(resource.RLIMIT_STACK, (STACK, hard))

    blob = lmzip.compress(b"the quick brown fox jumps. " * 100, lanes=16)
    child = subprocess.run(
        [sys.executable, "-c", f"{PRELUDE}show_error(lambda: {work}, {stacks})"],
        preexec_fn=large_stacks,
        input=blob,
        stdout=subprocess.PIPE,
        check=True,
        timeout=TIMEOUT,
    )
    return child.stdout.decode()


@linux_only
@pytest.mark.parametrize("work", WORK)
def test_thread_of_a_job_that_cannot_be_started_is_a_named_error(work: str) -> None:
    shown = error_of(WORK[work], 2.5)
    assert shown.startswith("LimitError a thread could not be started (")
    assert "use fewer (-T, threads=)" in shown


@linux_only
@pytest.mark.parametrize("work", ["encode", "decode"])
def test_thread_of_a_frame_that_cannot_be_started_is_a_named_error(work: str) -> None:
    """By then the thread that waits for it has taken the frame, and starts those of its job."""
    assert error_of(WORK[work], 0.5).startswith("LimitError a thread could not be started (")


# ── Work that nobody waits for ──

LONG = 8 << 20  # bytes of a frame that takes seconds, on any machine


class Frame:
    """What becomes of a frame in work."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.fate = ""

    def work(self, code: Callable[[], object]) -> None:
        self.begun.set()
        try:
            code()
            self.fate = "coded"
        except Abandoned:
            self.fate = "given up"


def join_pool() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("lmzip"):
            thread.join()


@pytest.mark.parametrize("preset", ["fast", "network", "default"])
@pytest.mark.parametrize("decode", [False, True], ids=["encode", "decode"])
def test_frame_in_work_is_given_up_when_its_row_is_closed(preset: str, decode: bool) -> None:
    codec = Codecs().for_preset(PRESETS[preset])[0]
    frame = Frame()

    def code() -> object:
        if decode:  # any payload goes that does not end early
            return codec.decode_frame([bytes(LONG)], LONG)
        return codec.encode_frame(bytes(LONG), 1)

    row = frames.ordered_map(lambda work: work(), [lambda: None, lambda: frame.work(code)], 1)
    next(row)
    frame.begun.wait()
    row.close()
    join_pool()
    assert frame.fate == "given up"


def test_frame_in_work_is_given_up_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    second, encode_frame = Frame(), api.encode_frame

    def encode(data: bytes, position: int, settings: frames.EncodeSettings) -> object:
        if position > 0:
            return second.work(lambda: encode_frame(data, position, settings))
        second.begun.wait()
        raise LmzipError("the first frame cannot be encoded")

    monkeypatch.setattr(api, "encode_frame", encode)
    with pytest.raises(LmzipError, match="the first frame"):
        lmzip.compress(b"word " * (LONG // 4), frame_size=LONG, preset="fast", threads=2)
    join_pool()
    assert second.fate == "given up"


def test_compressor_that_has_lost_bytes_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    compressor = lmzip.LmzCompressor(frame_size=1000, preset="fast", threads=1)

    def submit(*_: object) -> object:
        raise LmzipError("a thread could not be started")

    monkeypatch.setattr(api.FramePool, "submit", submit)
    with pytest.raises(LmzipError, match="could not be started"):
        compressor.compress(bytes(1000))
    with pytest.raises(ValueError, match="the stream has ended"):
        compressor.flush()


def test_results_of_an_abandoned_pool_can_still_be_had() -> None:
    """As in a cycle that is collected: a file is closed after its pool has gone."""
    calls: list[int] = []
    begun = threading.Event()

    def work() -> str:
        calls.append(1)
        begun.set()
        while len(calls) == 1:
            check_abandoned()
        return "first"

    pool = FramePool(1)
    jobs = [pool.submit(work), pool.submit(lambda: "second")]
    begun.wait()
    pool.abandon()
    assert jobs[1].result() == "second"  # no thread had begun
    assert jobs[0].result() == "first"
    assert len(calls) == 2


def test_what_no_thread_could_be_started_for_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the pool queues it before it asks for the thread."""
    pool = FramePool(2)
    go, done = threading.Event(), []
    first = pool.submit(go.wait)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("lmzip"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    second = pool.submit(done.append, 1)
    second.result()
    go.set()
    first.result()
    pool.abandon()
    join_pool()
    assert done == [1]


def test_a_compressor_that_nobody_holds_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, encode_frame = Frame(), api.encode_frame
    monkeypatch.setattr(
        api, "encode_frame", lambda *given: frame.work(lambda: encode_frame(*given))
    )
    compressor = lmzip.LmzCompressor(preset="fast", frame_size=LONG, threads=1)
    compressor.compress(b"word " * (LONG // 5 + 1))
    frame.begun.wait()
    del compressor
    join_pool()
    assert frame.fate == "given up"
