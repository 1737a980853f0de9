"""Which device codes frames: what --device means on this machine.

The CPU path must not import PyTorch, so "auto" asks for it only where a driver's device file is
there and the work is large enough to be worth the start of a CUDA process.
"""

import contextlib
import importlib.util
import os
from pathlib import Path

from lmzip.errors import UnsupportedError

DEVICES = ("auto", "cpu", "cuda")
DRIVER_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")  # the last under WSL
# Below this "auto" stays on the CPU: PyTorch, a CUDA context and (once) compiling the kernels take
# some 20 s, in which 16 cores have coded about as much; and 64 MiB are 16 frames of the default
# preset, 256 lanes, fewer of which leave a GPU idle in each step of decoding.  An estimate until it
# has been measured on a GPU (docs/gpu.md).
AUTO_MIN_SIZE = 64 << 20
# What a container may take, by versions 2 and 1 of Linux's control groups.
MEMORY_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
FRAMES_PER_GPU = 64  # 1024 lanes of the default preset, in two groups that take turns
RAW_PER_COMPRESSED = 4  # raw bytes that a compressed byte is taken for, where no header is at hand


def frames_in_flight() -> int:
    """How many frames the CUDA devices want at a time."""
    import torch

    return FRAMES_PER_GPU * torch.cuda.device_count()


def memory_for_frames(least: int) -> int:
    """Bytes of the host for all frames that GPUs code at the same time, with their mixers: half of
    what there is, or `least`."""
    limits = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not everywhere
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in MEMORY_FILES:
        with contextlib.suppress(OSError, ValueError):  # none, or "max"
            limits.append(int(Path(name).read_text()))
    return max(least, min(limits, default=0) // 2)


def driver_present() -> bool:
    return any(Path(name).exists() for name in DRIVER_FILES)


def check(device: str) -> None:
    """ValueError for what is no device's name."""
    if device not in DEVICES:
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")


def choose(device: str, raw_size: int | None) -> str:
    """Resolve "auto", "cpu" or "cuda" to one of the last two. raw_size: of all the work, if known.

    Raises UnsupportedError where "cuda" is asked for and cannot be had.
    """
    if device == "cpu":
        return device
    if device == "auto" and (raw_size is None or raw_size < AUTO_MIN_SIZE or not driver_present()):
        return "cpu"
    missing = _missing()
    if missing is None:
        return "cuda"
    if device == "auto":
        return "cpu"
    raise UnsupportedError(f"--device cuda: {missing}; use cpu or auto")


def _missing() -> str | None:
    """Why CUDA cannot be had, or None."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed (lmzip-codec[cuda])"
    import torch

    return None if torch.cuda.is_available() else "PyTorch sees no CUDA device here"
