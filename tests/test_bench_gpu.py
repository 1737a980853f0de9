"""bench/gpu.py as it will run on a GPU, tiny, in Triton's interpreter: launches, comparisons and
table of the pretrained models' engine; and the estimate; and what coders take the cores."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("triton", reason="Triton is not installed")

from lmzip import llama_model
from random_llama import random_llama, small_llama

BENCH = Path(__file__).resolve().parents[1] / "bench"
SIZES = "--lanes", "3", "--bytes", "70"


def run(*arguments: str, script: str = "gpu.py") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_tiny_run(tmp_path) -> None:
    results = tmp_path / "gpu.csv"
    done = run("--device", "cpu", "--only", "tokens", "--results", str(results))
    assert done.returncode == 0, done.stderr[-3000:]
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["what"] == "equality"
    stages = [row for row in rows if row["what"] == "stage"]
    for count in ("1", "8"):
        of_block = {row["stage"] for row in stages if row["count"] == count}
        expected = {"qkv product", "attention", "gate product", "normalize", "head product"}
        assert of_block >= expected | {"survey", "down product, torch._int_mm", "whole block"}
        assert of_block & {"targets", "search"} == {"search" if count == "1" else "targets"}
    assert all(float(row["us"]) > 0 for row in stages)
    frames = {row["direction"]: row for row in rows if row["what"] == "frames"}
    assert frames.keys() == {"encode", "decode"}
    assert all(float(row["tokens_s"]) > 0 and "interpreter" in row["device"] for row in rows[-2:])


def test_the_estimate() -> None:
    done = run("--estimate")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("ESTIMATE ON PAPER, not a measurement")
    assert "SmolLM2-135M" in done.stdout


def test_what_coders_of_tokens_take_the_cores(tmp_path) -> None:
    pytest.importorskip("tokenizers", reason="the tokenizers library is missing")
    model = random_llama(small_llama(), 1)
    file, text = tmp_path / "tiny.safetensors", tmp_path / "text"
    file.write_bytes(llama_model.serialize(model.architecture, model.tensors, {"name": "tiny"}))
    text.write_bytes(b"the tea at ten, then the neat tan ant ate at a tee; " * 4)
    done = run("--model", str(file), "--text", str(text), *SIZES, script="token_cores.py")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "tokens in 3 lanes" in done.stdout
    assert done.stdout.count("us of CPU time a token") == 2
