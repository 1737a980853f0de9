"""Threads that cannot be started, and work that nobody waits for any more: a named error, and the
end of all threads.

A process of its own has stacks of 1 GiB, so that its address space bounds the number of threads.
"""

import resource
import subprocess
import sys

import pytest

import lmzip

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

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


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


@pytest.mark.parametrize("work", WORK)
def test_thread_of_a_job_that_cannot_be_started_is_a_named_error(work: str) -> None:
    shown = error_of(WORK[work], 2.5)
    assert shown.startswith("LimitError a thread could not be started (")
    assert "use fewer (-T, threads=)" in shown
