"""What --device auto, cpu and cuda come to, and that the CPU path imports neither PyTorch nor
Triton."""

import pytest

from lmzip import devices
from lmzip.codec import Codecs
from lmzip.errors import UnsupportedError

LARGE = devices.AUTO_MIN_SIZE


@pytest.fixture
def machine(monkeypatch):
    """machine(driver, missing): a machine with a driver or none, and what CUDA lacks."""

    def pretend(driver: bool, missing: str | None) -> None:
        monkeypatch.setattr(devices, "driver_present", lambda: driver)
        monkeypatch.setattr(devices, "_missing", lambda: missing)

    return pretend


@pytest.mark.parametrize(
    ("device", "raw_size", "driver", "missing", "chosen"),
    [
        ("auto", LARGE, True, None, "cuda"),
        ("auto", LARGE - 1, True, None, "cpu"),  # small
        ("auto", None, True, None, "cpu"),  # may be small
        ("auto", LARGE, False, None, "cpu"),
        ("auto", LARGE, True, "no PyTorch", "cpu"),
        ("cuda", 1, True, None, "cuda"),
        ("cuda", None, False, None, "cuda"),  # PyTorch knows better than our list of files
        ("cpu", LARGE, True, None, "cpu"),
    ],
)
def test_choice(machine, device, raw_size, driver, missing, chosen):
    machine(driver, missing)
    assert devices.choose(device, raw_size) == chosen


def test_cuda_that_cannot_be_had_is_refused_with_the_reason(machine):
    machine(True, "PyTorch is not installed (lmzip-codec[cuda])")
    with pytest.raises(UnsupportedError, match=r"--device cuda: PyTorch is not installed .*auto"):
        devices.choose("cuda", None)


def test_a_gpu_gets_more_frames_at_once_than_there_are_threads(machine, monkeypatch):
    machine(True, None)
    monkeypatch.setattr(devices, "frames_in_flight", lambda: 128)
    assert Codecs(device="cuda", threads=4).frames_at_once == 128
    assert Codecs(device="cpu", threads=4).frames_at_once == 4
    assert Codecs(device="auto", threads=4, input_size=1000).frames_at_once == 4
    enough = devices.AUTO_MIN_SIZE // devices.RAW_PER_COMPRESSED  # when it is compressed
    assert Codecs(threads=4, input_size=enough).frames_at_once == 4
    assert Codecs(threads=4, input_size=enough, decoding=True).frames_at_once == 128


def test_the_cpu_path_imports_neither_torch_nor_triton(run_python):
    """Also with --device auto, a driver and a large input, where nothing needs a network."""
    done = run_python(
        """
import sys
import lmzip
from lmzip import devices
devices.AUTO_MIN_SIZE = 100
devices.driver_present = lambda: True
blob = lmzip.compress(b"text " * 500, preset="fast", device="auto")
devices.driver_present = lambda: False
blob = lmzip.compress(b"text " * 500, device="auto")
assert lmzip.decompress(blob, device="auto") == b"text " * 500
print(sorted({"torch", "triton", "lmzip.torch_codec", "lmzip.triton_engine"} & set(sys.modules)))
"""
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], 32 << 30),
        (["max"], 32 << 30),
        (["8589934592"], 4 << 30),
        (["max", "1073741824"], 1 << 30),  # no less than is asked for
    ],
)
def test_frames_may_take_half_of_the_memory(monkeypatch, tmp_path, files, expected):
    """Of the machine's 64 GiB, or of what its container may take."""
    names = [tmp_path / f"limit{i}" for i in range(len(files))]
    for name, text in zip(names, files, strict=True):
        name.write_text(text)
    monkeypatch.setattr(devices, "MEMORY_FILES", [*map(str, names), str(tmp_path / "none")])
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 24}
    monkeypatch.setattr(devices.os, "sysconf", pages.__getitem__)
    assert devices.memory_for_frames(1 << 30) == expected


def test_many_frames_for_gpus_take_more_than_the_default_limit(machine, monkeypatch):
    """But not more than a limit that somebody has set."""
    machine(True, None)
    monkeypatch.setattr(devices, "memory_for_frames", lambda least: 50 * least)
    limit = Codecs().memory_limit
    assert Codecs(device="cuda").memory_at_once == 50 * limit
    assert Codecs(device="cpu").memory_at_once == limit
    assert Codecs(device="cuda", memory_limit=limit // 2).memory_at_once == limit // 2
    assert Codecs(device="cuda", memory_limit=None).memory_at_once is None
