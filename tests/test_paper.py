"""bench/paper.py from end to end on small samples: every table and figure, and what a second run
does not measure again."""

import csv
import io
import lzma
import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
ALICE = ROOT / "tests" / "data" / "alice29.txt"


def store(folder: Path, name: str, data: bytes) -> None:
    path = folder / "open" / f"{name}.xz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(data))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Sets of the right shapes: smooth pictures, a tone."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("data")
    store(folder, "lmic/imagenet_gray_32x64.bin", bytes(range(64)) * 64)
    tone = np.rint(128 + 40 * np.sin(np.arange(8192) / 9)).astype(np.uint8)
    store(folder, "lmic/librispeech_8bit_2048.bin", tone.tobytes())
    picture = io.BytesIO()
    Image.linear_gradient("L").resize((320, 280)).convert("RGB").save(picture, "PPM")
    for name in ("kodim23", "kodim15", "kodim19"):
        store(folder, f"images/{name}.ppm", picture.getvalue())
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((tone.astype("<i2") - 128 << 8).tobytes())
    for name in ("2033-164914-0000", "1688-142285-0004"):
        store(folder, f"speech/{name}.wav", sound.getvalue())
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """run(what) in a fresh interpreter; the folder of its results and pictures."""
    folder = tmp_path_factory.mktemp("out")
    source = ROOT / "bench" / "results" / "pretrained.csv"  # what `pareto` draws of it
    (folder / source.name).write_bytes(source.read_bytes())
    small = [
        "--limit",
        "4096",
        "--sample",
        "4096",
        "--drawn",
        "8",
        "--train-bytes",
        "16384",
        "--vocabulary",
        "257",
    ]
    small += ["--vocabulary", "257", "--vocabulary", "300"]
    small += ["--text", ALICE, "--train-text", ALICE]
    places = ["--results", folder, "--docs", folder, "--work", folder / "work"]

    def go(what: str, *more: object) -> Path:
        command = [sys.executable, ROOT / "bench" / "paper.py", what, *small, *places, *more]
        env = os.environ | {"LMZIP_DATA": str(data), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return folder

    go("all")
    return go


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_table_and_figure_is_made(run):
    folder = run("pareto")
    pictures = {"figure2", "figure4", "images", "speech", "pareto"}
    assert {p.stem for p in folder.glob("*.svg")} == {f"paper_{name}" for name in pictures}
    table1 = rows(folder / "paper_table1.csv")
    assert {r["data"] for r in table1} == {"alice29", "ImageNet patches", "LibriSpeech", "random"}
    assert {r["compressor"] for r in table1} == {
        "gzip", "lzma", "png", "png-paper", "png-paper-plain", "flac",
        "fast", "default", "lmzip-default", "paper-200k", "paper-800k", "paper-3200k",
    }  # fmt: skip
    gradient = {
        r["compressor"]: int(r["coded"])
        for r in table1
        if (r["data"], r["chunk"]) == ("ImageNet patches", "2048")
    }
    assert gradient["png"] < gradient["flac"]  # rows that repeat are what PNG is for
    tokens = rows(folder / "paper_table2.csv")
    assert [(r["compressor"][:2], r["vocabulary"]) for r in tokens] == [
        ("64", "257"), ("64", "300"), ("12", "257"), ("12", "300"),
    ]  # fmt: skip
    assert float(tokens[1]["bytes_per_token"]) > 1
    lengths = {int(r["chunk"]) for r in rows(folder / "paper_figure4.csv")}
    assert lengths == {2**n for n in range(6, 14)}
    speeds = rows(folder / "paper_pareto.csv")
    assert {"gzip", "default", "paper-3200k", *(["xz -9e"] if shutil.which("xz") else [])} < {
        r["compressor"] for r in speeds
    }
    drawn = rows(folder / "paper_generation.csv")
    assert all(len(r["continuation"]) == 2 * 8 for r in drawn)


def test_a_second_run_measures_nothing_again(run):
    folder = run("pareto")
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    for what in ("table1", "table2", "generation", "pareto"):
        run(what)
    after = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert before == after


def test_other_sets_take_the_place_of_ours(run, tmp_path):
    (tmp_path / "noise").write_bytes(np.random.default_rng(1).bytes(3000))
    (tmp_path / "silence").write_bytes(bytes(2000))
    other = ["--images", tmp_path / "noise", "--speech", tmp_path / "silence"]
    folder = run("table1", "--only", "gzip", *other)
    last = {r["data"]: r for r in rows(folder / "paper_table1.csv") if r["chunk"] == "0"}
    assert int(last["ImageNet patches"]["raw"]) == int(last["random"]["raw"]) == 3000
    assert float(last["ImageNet patches"]["rate_percent"]) > 100
    assert int(last["LibriSpeech"]["coded"]) < 100


def in_bench(code: str) -> subprocess.CompletedProcess[str]:
    """Run by a fresh interpreter that finds the modules of bench/."""
    env = os.environ | {"PYTHONPATH": str(ROOT / "bench")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=env, check=False, capture_output=True, text=True)


def test_pictures_have_the_shape_of_the_papers_code():
    done = in_bench(
        "import paper; print(*map(paper.paper_width, (1, 7, 12, 2047, 2048, 10**7))); "
        "print(paper.near_square(488281 * 2048), 488281 * 2048 / 31502)"
    )
    # 2047 = 23 * 89; 10**7 has the rows of the paper's set
    assert done.stdout.split() == ["1", "1", "3", "23", "32", "31502", "31502", "31744.0"]


def test_a_tool_that_gives_other_bytes_back_is_not_counted():
    good = in_bench("import open_set; print(open_set.measure_tool(b'abcd', ('cat {raw}', 'cat')))")
    assert "'bytes': 4" in good.stdout
    bad = in_bench("import open_set; open_set.measure_tool(b'abcd', ('cat {raw}', 'head -c 3'))")
    assert "head -c 3: the decoded bytes differ" in bad.stderr
