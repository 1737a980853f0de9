"""Rates as the paper counts them, on numbers small enough to check by hand; every row decoded."""

import csv
import doctest
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmzip import accounting, baselines, cli, codec, evaluate, generate, llama_model, models
from lmzip.errors import CorruptError
from lmzip.evaluate import Data
from random_llama import random_llama, small_llama

TEXT = b"the cat sat on the mat; the dog sat on the log. " * 60  # 2880 bytes


def test_the_header_is_counted_once():
    assert accounting.total_size([120, 130, 125], header=20) == 120 + 110 + 105
    assert accounting.total_size([50], header=20) == 50
    assert accounting.total_size([], header=20) == 0
    with pytest.raises(ValueError, match="cannot hold a header of 20"):
        accounting.total_size([19, 40], header=20)


def test_the_adjusted_rate_counts_the_model():
    assert accounting.rate(250, 1000) == 0.25
    assert accounting.adjusted_rate(250, 1000, 100) == 0.35
    # Table 1 of the paper: 3.2 M parameters on 1 GB add 0.64 of a percent (17.0 -> 17.7, rounded).
    added = accounting.adjusted_rate(0, 10**9, accounting.paper_model_bytes(3_200_000))
    assert added == pytest.approx(0.0064)
    with pytest.raises(ValueError, match="one raw byte"):
        accounting.rate(1, 0)


def test_examples_in_the_docstrings_hold():
    assert doctest.testmod(accounting).failed == 0


@given(st.binary(max_size=70))
def test_the_ascii_trick_comes_back(chunk):
    low, top = accounting.ascii_chunk(chunk)
    assert all(b < 128 for b in low)
    assert len(top) == (len(chunk) + 7) // 8
    assert accounting.from_ascii_chunk(low, top) == chunk


@pytest.mark.parametrize("name", baselines.names())
@given(data=st.binary(min_size=1, max_size=300))
def test_baselines_take_any_bytes(name, data):
    if name in ("png", "flac"):
        pytest.importorskip({"png": "PIL", "flac": "soundfile"}[name])
    compressor = baselines.named(name)
    assert compressor.restore(compressor.chunks([data, data[:1]]), [len(data), 1]) == [
        data,
        data[:1],
    ]


@pytest.mark.parametrize("name", ["gzip", "lzma", "fast", "model"])
@pytest.mark.parametrize("chunk", [0, 512])
def test_a_row_is_what_was_coded(name, chunk):
    info = models.default()
    compressor = baselines.named(str(info.path) if name == "model" else name)
    row = evaluate.measure(Data("text", TEXT), compressor, chunk, progress=False)
    sizes = [len(b) for b in compressor.chunks(Data("text", TEXT).chunks(chunk))]
    assert len(sizes) == (6 if chunk else 1)  # 5 chunks of 512 and one of 320
    assert row["coded"] == sum(sizes) - compressor.header * (len(sizes) - 1)
    half = pytest.approx(0, abs=0.0051)  # of the last digit printed
    assert float(row["rate_percent"]) - 100 * row["coded"] / 2880 == half
    model_bytes = info.size if name == "model" else 0
    assert float(row["adjusted_percent"]) - 100 * (row["coded"] + model_bytes) / 2880 == half


def test_a_model_is_counted_where_it_is_used():
    size = models.default().size
    sizes = {name: baselines.named(name).model_bytes for name in codec.PRESETS}
    assert sizes == {"fast": 0, "default": size, "best": size, "network": size, "order0": 0}


def test_a_chunk_smaller_than_the_header_takes_its_place():
    odd = baselines.Compressor("odd", lambda _: [b"abc", b"ab"], lambda _, __: [b"x", b"y"], 3)
    assert evaluate.measure(Data("xy", b"xy"), odd, 1, progress=False)["coded"] == 5 - 2


def test_other_bytes_are_not_counted():
    liar = baselines.Compressor("liar", lambda c: [b""] * len(c), lambda b, _: [b"x"] * len(b))
    with pytest.raises(CorruptError, match="liar gave other bytes back"):
        evaluate.measure(Data("text", TEXT), liar, 0, progress=False)


def test_a_run_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    (tmp_path / "text").write_bytes(TEXT)
    command = ["eval", str(tmp_path / "text"), "--chunk", "0", "--results", str(tmp_path / "r.csv")]
    assert cli.main([*command, "--compressors", "gzip"]) == 0
    measured = []
    original = evaluate.measure
    monkeypatch.setattr(
        evaluate, "measure", lambda *a, **k: measured.append(a[1].name) or original(*a, **k)
    )
    assert cli.main([*command, "--compressors", "gzip,lzma"]) == 0
    assert measured == ["lzma"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text())))
    assert [r["compressor"] for r in rows] == ["gzip", "lzma"]
    (tmp_path / "text").write_bytes(TEXT + b"!")  # other data: nothing of it is known
    assert cli.main([*command, "--compressors", "gzip"]) == 0
    assert measured == ["lzma", "gzip"]
    assert "lzma" in capsys.readouterr().out


def test_results_take_nobody_elses_place(tmp_path, capsys, monkeypatch):
    (tmp_path / "text").write_bytes(TEXT)
    command = ["eval", str(tmp_path / "text"), "--chunk", "0", "--compressors", "gzip"]
    head = ",".join(evaluate.COLUMNS)
    path = tmp_path / "r"
    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "measure", lambda *_, **__: pytest.fail("it was measured"))
        for other, match in (
            (b"a note\nof two lines\n", "no column 'data'"),
            (head.replace("coded,", "").encode(), "no column 'coded'"),
            (b"\xff\xfe", "can't decode"),
            (f"{head}\n{head},one more\n".encode(), "more fields than the 16"),
        ):
            path.write_bytes(other)
            assert cli.main([*command, "--results", str(path)]) == 1
            assert match in capsys.readouterr().err
            assert path.read_bytes() == other
        assert cli.main([*command, "--results", str(tmp_path / "no" / "r")]) == 1
        assert "there is no folder" in capsys.readouterr().err
    path.write_bytes(b"")
    assert cli.main([*command, "--results", str(path)]) == 0
    assert path.read_text().startswith(head + "\n")


def test_columns_of_others_are_kept(tmp_path):
    """Results of bench/ say where and how they were measured."""
    data, compressor = Data("text", TEXT), baselines.named("gzip")
    row = evaluate.measure(data, compressor, 0, progress=False)
    evaluate.Results(tmp_path / "r", {"device": "a box"}).add(row)
    evaluate.Results(tmp_path / "r").add(row | {"data": "again"})
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r").read_text())))
    assert [(r["data"], r["device"]) for r in rows] == [("text", "a box"), ("again", "")]


def test_nonsense_is_refused(tmp_path, capsys):
    (tmp_path / "empty").write_bytes(b"")
    assert cli.main(["eval", str(tmp_path / "empty")]) == 1
    assert "is empty" in capsys.readouterr().err
    assert cli.main(["eval", str(tmp_path / "nothing")]) == 1
    (tmp_path / "text").write_bytes(TEXT)
    assert cli.main(["eval", str(tmp_path / "text"), "--compressors", "zip"]) == 1
    assert "no model is called 'zip'" in capsys.readouterr().err
    assert cli.main(["eval", str(tmp_path / "text"), "--chunk", "-1"]) == 1
    capsys.readouterr()
    for limit in ("-5", "0"):
        assert cli.main(["eval", str(tmp_path / "text"), "--limit", limit]) == 1
        captured = capsys.readouterr()
        assert f"the limit is {limit} bytes" in captured.err
        assert not captured.out


# --- generation ---


def test_a_compressor_prefers_what_it_can_copy():
    """After 'the cat sat on the m' LZMA needs fewest bits for the repetition that it has seen."""
    of = generate.source("lzma")
    of.feed(TEXT[: 48 * 10 + 20])
    p = of.probabilities()
    assert p.shape == (256,)
    assert p.sum() == pytest.approx(1)
    assert p[ord("a")] == p.max()


def test_a_model_goes_on_with_a_text_and_says_the_same_each_time():
    name = str(models.default().path)
    one, two, three = (
        bytes(generate.generate(generate.source(name), b"The king said to the ", 40, seed=seed))
        for seed in (1, 1, 2)
    )
    assert one == two != three
    likeliest = bytes(generate.generate(generate.source(name), b"1 2 3 4 5 th", 1, temperature=0))
    assert likeliest == b"e"


def test_feeding_in_pieces_is_feeding_at_once():
    name = str(models.default().path)
    whole, pieces = generate.source(name), generate.source(name)
    whole.feed(b"It was the best of times")
    for piece in (b"It was ", b"", b"the best of time", b"s"):
        pieces.feed(piece)
    np.testing.assert_array_equal(whole.probabilities(), pieces.probabilities())


def test_the_command_writes_the_continuation(tmp_path, capsys, monkeypatch):
    (tmp_path / "prompt").write_bytes(b"Once upon a ")
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, write_through=True))
    model = str(models.default().path)
    command = ["generate", "--compressor", model, "--prompt", str(tmp_path / "prompt"), "-n", "5"]
    assert cli.main(command) == 0
    assert len(out.getvalue()) == 5
    assert cli.main([*command, "-o", str(tmp_path / "o")]) == 0
    assert (tmp_path / "o").read_bytes() == b"Once upon a " + out.getvalue()
    (tmp_path / "o").write_bytes(b"kept")
    assert cli.main([*command, "-o", str(tmp_path / "o")]) == 1
    assert (tmp_path / "o").read_bytes() == b"kept"
    assert cli.main([*command, "-o", str(tmp_path / "o"), "-f"]) == 0
    assert (tmp_path / "o").read_bytes() == b"Once upon a " + out.getvalue()
    for wrong in (["--temperature", "-1"], ["--temperature", "nan"], ["--temperature", "inf"]):
        assert cli.main([*command, *wrong]) == 1
        assert f"the temperature is {float(wrong[1])}" in capsys.readouterr().err
    assert cli.main([*command, "--seed", "-1"]) == 1
    assert "the seed is -1" in capsys.readouterr().err


@pytest.mark.parametrize("temperature", [1e-3, 1e-310])
def test_a_low_temperature_takes_the_likeliest(temperature):
    class Even(generate.CompressorSource):
        def probabilities(self):
            p = np.full(256, 1 / 300)
            p[65] = 1 - p.sum() + p[65]
            return p

    of = Even(baselines.named("gzip"))
    assert bytes(generate.generate(of, b"", 3, temperature=temperature)) == b"AAA"


@pytest.fixture
def tokens_path(tmp_path):
    pytest.importorskip("tokenizers")
    model = random_llama(small_llama(), 7)
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(llama_model.serialize(model.architecture, model.tensors, {"name": "tiny"}))
    return str(path)


def test_a_model_of_tokens_draws_those_that_have_bytes(tokens_path):
    """The last token is cut where the bytes end."""
    of = generate.source(tokens_path)
    of.feed(b"the tea at ten, \xff")  # no token spells the last byte
    muted = [not token for token in llama_model.parse(Path(tokens_path).read_bytes()).tokens]
    p = of.probabilities()
    assert any(muted)
    assert p[muted].max() == 0
    assert p.sum() == pytest.approx(1)
    one, two = (
        bytes(generate.generate(generate.source(tokens_path), b"the tea ", 11, seed=seed))
        for seed in (1, 2)
    )
    assert len(one) == len(two) == 11
    assert one != two


def test_a_model_of_tokens_takes_so_many(tokens_path, monkeypatch):
    text = b"the tea at ten, then the neat tan ant"
    whole, pieces = generate.source(tokens_path), generate.source(tokens_path)
    monkeypatch.setattr(generate.TokenSource, "PIECE", 3)
    whole.feed(text)
    pieces.feed(text)
    np.testing.assert_array_equal(whole.probabilities(), pieces.probabilities())
    monkeypatch.setattr(generate.TokenSource, "MAX_POSITIONS", 40)
    with pytest.raises(generate.GenerationError, match="take more than 40 tokens"):
        bytes(generate.generate(generate.source(tokens_path), text, 1000))


def test_chunks_of_a_model_of_tokens_know_nothing_of_each_other(tokens_path):
    """The lanes of one frame would: what they remember is shared (docs/format.md, method 5)."""
    compressor = baselines.named(tokens_path)
    first = b"the tea at ten, then the neat tan ant ate at a tee " * 4
    second = b"0123456789" * 2 + first[:-20]  # finds in the first what it says later
    blobs = compressor.chunks([first, second])
    assert blobs == compressor.chunks([first]) + compressor.chunks([second])
    assert compressor.restore(blobs, [len(first)] * 2) == [first, second]
