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
