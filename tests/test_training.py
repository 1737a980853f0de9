"""Training end to end on a toy text: it learns, resumes, exports the same integers, and refuses
nonsense."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from lmzip import corpus, train  # noqa: E402
from lmzip.errors import (  # noqa: E402
    CorruptError,
    LmzipError,
    NotLmzError,
    UnsupportedError,
)
from lmzip.model_file import Architecture, load, parse, serialize  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TEXT = b"the cat sat on the mat; the dog sat on the log; " * 400
TOY = {
    "d_model": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 64,
    "windows": [16], "ngrams": [{"order": 2, "log2_slots": 6, "offset": 0, "width": 32}],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text").write_bytes(TEXT)
    (tmp_path / "toy.json").write_text(json.dumps(TOY))
    return tmp_path


def options(folder: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    fixed = ["--architecture", str(folder / "toy.json"), "--batch", "4", "--length", "64"]
    return parser.parse_args(
        [str(folder / "text"), "-o", str(folder / "m.safetensors"), *fixed, *more]
    )


def test_it_learns_and_the_file_says_what_it_is(folder):
    assert (
        train.run(options(folder, "--bytes", "50000", "--name", "toy", "--licence", "CC0-1.0")) == 0
    )
    model = load(folder / "m.safetensors")
    assert model.name == "toy"
    assert model.about["licence"] == "CC0-1.0"
    [group] = model.about["training"]["groups"]
    assert group["bytes"] == len(TEXT) - len(TEXT) // 50
    assert model.about["training"]["held_out_bpb"]["files"] < 2.0  # 8 before, about 3.7 at order 0


def test_a_stopped_run_resumes_where_it_was(folder):
    first = options(folder, "--bytes", "20000", "--quantize-at", "0.5")
    train.run(first)
    again = options(folder, "--bytes", "40000", "--resume")
    corpus_, network = train._corpus(again), train.Network(train._architecture(again))
    job = train.Run(network, train.Budget(40000), train.Schedule())
    job.restore(folder / "m.safetensors.checkpoint", torch.device("cpu"))
    assert job.budget.bytes_seen >= 20000
    assert job.quantized
    seen = job.budget.bytes_seen
    train.Trainer(job, corpus_, again, torch.device("cpu")).train(folder / "c")
    assert 40000 <= job.budget.bytes_seen < 40000 + seen


def test_nothing_is_replaced_without_force(folder, monkeypatch):
    """What a model has compressed is lost with it, also when its own continuation replaces it."""
    model, checkpoint = folder / "m.safetensors", folder / "m.safetensors.checkpoint"
    model.write_bytes(b"a model")
    with monkeypatch.context() as patched:
        patched.setattr(train.Trainer, "train", lambda *_: pytest.fail("it was trained"))
        for more in ([], ["--resume"]):
            with pytest.raises(train.TrainingError, match=r"m\.safetensors exists already.*-f"):
                train.run(options(folder, "--bytes", "10000", *more))
        model.unlink()
        checkpoint.write_bytes(b"of another run")
        with pytest.raises(train.TrainingError, match=r"checkpoint exists already: --resume"):
            train.run(options(folder, "--bytes", "10000"))
        assert checkpoint.read_bytes() == b"of another run"
    train.run(options(folder, "--bytes", "10000", "-f"))
    first = load(model).model_id
    train.run(options(folder, "--bytes", "12000", "--resume", "-f"))
    assert load(model).model_id != first


def test_an_output_that_cannot_be_written_is_refused_at_once(folder, monkeypatch):
    monkeypatch.setattr(train.Trainer, "train", lambda *_: pytest.fail("it was trained"))
    for more, match in (
        (["-o", str(folder / "no" / "m.safetensors")], "No such file or directory"),
        (["-o", str(folder)], "is a folder"),
        (["--checkpoint", str(folder / "no" / "c")], "No such file or directory"),
        (["--checkpoint", str(folder)], "is a folder"),
    ):
        with pytest.raises(train.TrainingError, match=match):
            train.run(options(folder, "--bytes", "10000", *more))


def test_export_is_deterministic_and_kept_by_the_checkpoint(folder):
    train.run(options(folder, "--bytes", "10000"))
    saved = (folder / "m.safetensors").read_bytes()
    args = options(folder)
    job = train.Run(train.Network(train._architecture(args)), train.Budget(), train.Schedule())
    job.restore(folder / "m.safetensors.checkpoint", torch.device("cpu"))
    tensors = train.export(job.network)
    for name, tensor in parse(saved).tensors.items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_a_model_can_be_trained_further(folder):
    train.run(options(folder, "--bytes", "10000"))
    first = load(folder / "m.safetensors")
    again = train.export(train.from_model(first))
    for name, tensor in first.tensors.items():
        if tensor.dtype == np.float32:
            np.testing.assert_allclose(again[name], tensor, rtol=3e-7, err_msg=name)
        else:
            np.testing.assert_array_equal(again[name], tensor, err_msg=name)
    args = options(folder, "--bytes", "10000", "--init", str(folder / "m.safetensors"))
    args.output = folder / "n.safetensors"
    with pytest.raises(train.TrainingError, match="its own architecture"):
        train.run(args)
    args.architecture = None
    train.run(args)
    bpb = [
        load(folder / f"{name}.safetensors").about["training"]["held_out_bpb"]["files"]
        for name in "mn"
    ]
    assert bpb[1] < bpb[0] - 0.2


def test_a_residual_stream_of_any_size_is_exported(folder):
    """Norms make a network blind to the scale of the stream; long training lets it grow."""
    args = options(folder, "--bytes", "20000")
    corpus_ = train._corpus(args)
    job = train.Run(train.Network(train._architecture(args)), train.Budget(20000), train.Schedule())
    train.Trainer(job, corpus_, args, torch.device("cpu")).train(folder / "c")
    with torch.no_grad():
        for product in (p for layer in job.network.blocks() for p in (layer.out, layer.down)):
            product.weight *= 30_000
    history, _ = corpus_.rows(np.random.default_rng(1), 8, 64)
    job.network.calibrate(torch.from_numpy(history))
    job.network.fit_residual(torch.from_numpy(history))
    train.write_model(job, corpus_, args)
    bpb = load(folder / "m.safetensors").about["training"]["float_and_exact_bpb"]
    assert bpb["exact"] < bpb["float"] + 0.05
    job.network.residual_bits.fill_(12)  # what it takes for a stream that did not grow
    with pytest.raises(train.TrainingError, match="does not fit its integers"):
        train.write_model(job, corpus_, args)


def test_a_few_large_values_do_not_choose_the_unit_of_the_stream(folder):
    """With room for four times the largest, embeddings would be rounded away."""
    args = options(folder, "--bytes", "60000")
    corpus_ = train._corpus(args)
    network = train.Network(train._architecture(args))
    job = train.Run(network, train.Budget(60000), train.Schedule())
    train.Trainer(job, corpus_, args, torch.device("cpu")).train(folder / "c")
    with torch.no_grad():
        network.blocks()[-1].down.weight[0] *= 200_000
    history, targets = corpus_.rows(np.random.default_rng(1), 16, 64)
    network.fit_residual(torch.from_numpy(history))
    coarse = int(network.residual_bits)

    def loss():
        exact = train.exact_logits(network.architecture, train.export(network), history)
        return train.bits_per_byte(exact, targets)

    with_room = loss()
    train.fit_unit(network, history, targets)
    assert int(network.residual_bits) > coarse
    assert loss() < with_room


def test_checkpoints_of_strangers_run_no_code(folder):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (folder / "pwned",))

    path = folder / "evil"
    torch.save({"network": Evil()}, path)
    args = options(folder)
    job = train.Run(train.Network(train._architecture(args)), train.Budget(), train.Schedule())
    with pytest.raises(train.TrainingError, match=r"not a checkpoint.*Weights only load failed$"):
        job.restore(path, torch.device("cpu"))
    assert not (folder / "pwned").exists()


def test_two_processes_train_together(folder):
    args = ["--architecture", str(folder / "toy.json"), "--batch", "2", "--length", "64"]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "lmzip.train", str(folder / "text"), "-o", str(folder / "two.safetensors"),
        "--bytes", "4000", "--device", "cpu", "--threads", "1", *args,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load(folder / "two.safetensors").about["training"]["bytes_seen"] >= 4000


def test_a_budget_without_quantization_is_refused(folder):
    with pytest.raises(train.TrainingError, match="quantization-aware"):
        train.run(options(folder, "--bytes", "300", "--quantize-at", "0.9"))
    assert not (folder / "m.safetensors").exists()


@pytest.mark.parametrize(
    "more",
    [
        "--minutes -1", "--minutes 0", "--minutes inf", "--bytes -5", "--bytes 0", "--bytes nan",
        "--batch 0", "--length 0", "--length 1.5", "--rate nan", "--rate 0", "--threads -2",
        "--seed -1", "--seed 18446744073709551616", "--quantize-at 1", "--quantize-at nan",
        "--decay-at 2", "--report-every nan", "--save-every 0",
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_usage_errors(folder, more, capsys):
    with pytest.raises(SystemExit) as stop:
        options(folder, *more.split())
    assert stop.value.code == 2
    assert f"argument {more.split()[0]}: {more.split()[1]!r} is not" in capsys.readouterr().err


def test_wrong_options_are_refused_before_training(folder, monkeypatch):
    monkeypatch.setattr(train.Trainer, "train", lambda *_: pytest.fail("it was trained"))
    (folder / "empty").write_bytes(b"")
    (folder / "cut").write_bytes(b"PK\x03\x04")
    (folder / "number").write_text("7")
    torch.save([1, 2], folder / "other")
    for more, match in (
        (["--device", "foo"], "--device foo:"),
        (["--device", "meta"], "--device meta:"),
        (["--name", "two\nlines"], "a model is called 'two"),
        (["--architecture", str(folder / "text")], "text: not an architecture in JSON"),
        (["--architecture", str(folder / "number")], "number: not an architecture in JSON"),
        *(
            (["--resume", "--checkpoint", str(folder / name)], f"{name}: not a checkpoint of this")
            for name in ("empty", "cut", "other", "text", "toy.json")
        ),
    ):
        with pytest.raises(LmzipError, match=match):
            train.run(options(folder, "--bytes", "1000", *more))


def test_no_text_is_refused(folder):
    (folder / "text").write_bytes(b"")
    with pytest.raises(corpus.CorpusError, match="no training text"):
        train.run(options(folder, "--bytes", "1000"))


def mixed(folder: Path, *groups: dict[str, object]) -> corpus.Corpus:
    """Of a recipe whose groups are those given, called a, b, ..., of the toy text."""
    usual = [{"name": n, "weight": 1, "paths": ["text"]} for n in "abc"]
    recipe = [u | g for u, g in zip(usual, groups, strict=False)]
    (folder / "recipe.json").write_text(json.dumps({"groups": recipe}))
    return corpus.read_mix(folder / "recipe.json")


def test_groups_that_cannot_be_drawn_from_are_named(folder):
    (folder / "empty").write_bytes(b"")
    for group, match in (
        ({"paths": ["empty"]}, "no training text in the group 'b'"),
        ({"range": [10**6, 10**7]}, "no training text in the group 'b'"),
        ({"held_out_range": [0, 10**6]}, "no training text in the group 'b'"),
        ({"weight": -1}, "'b' has the weight -1"),
        ({"weight": float("nan")}, "'b' has the weight nan"),
        ({"range": [1]}, "not a recipe"),
    ):
        with pytest.raises(corpus.CorpusError, match=match):
            mixed(folder, {}, group)
    with pytest.raises(corpus.CorpusError, match="no groups"):
        mixed(folder)


def test_what_is_held_out_is_not_trained_on(folder):
    (folder / "text").write_bytes(bytes(range(100)))
    for group, trained in (
        ({"held_out_range": [40, 50]}, [*range(40), *range(50, 100)]),
        ({"held_out_range": [0, 40]}, range(40, 100)),
        ({"held_out_range": [-10, None]}, range(90)),
        ({"held_out_range": [40, 50], "range": [0, 45]}, range(40)),
        ({"held_out_range": [40, 50], "range": [30, 60]}, [*range(30, 40), *range(50, 60)]),
        ({"held_out_range": [40, 50], "range": [60, 70]}, range(60, 70)),
    ):
        [found] = mixed(folder, group).groups
        assert found.train.tolist() == [*trained]
        assert len(found.held_out) in (10, 40)


def test_a_text_shorter_than_a_row_counts_alone(folder):
    text = b"a short text, and no more"
    (folder / "text").write_bytes(text)
    short = train._corpus(options(folder))
    history, targets = short.rows(np.random.default_rng(1), 4, 64)
    for row, goal in zip(history, targets, strict=True):
        assert row[4 : 4 + len(text)].tolist() == goal[: len(text)].tolist() == [*text]
        assert set(goal[len(text) :].tolist()) == {corpus.PADDING}
    logits = torch.zeros(4, 64, 256)
    logits[:, len(text) :, 0] = -100  # as wrong as can be about zeros that are no text
    assert train.bits_per_byte(logits, targets) == pytest.approx(8)
    exact, cut = short.rows(np.random.default_rng(1), 4, len(text))
    np.testing.assert_array_equal(cut, targets[:, : len(text)])
    np.testing.assert_array_equal(exact, history[:, : corpus.HISTORY + len(text)])


@pytest.mark.parametrize(
    "sizes", [[100] * 7 + [100_000], [10_000] * 7 + [5], [1000] * 10, [5000], [9000, 9]]
)
def test_few_documents_hold_out_the_last_fiftieth(sizes):
    texts = [bytes([i]) * size for i, size in enumerate(sizes)]
    kept, held_out = corpus._hold_out(texts)
    assert b"".join(kept) + held_out == b"".join(texts)
    assert len(held_out) == sum(sizes) // 50
    assert all(kept)


def test_held_out_documents_are_never_trained_on(tmp_path):
    for i in range(60):
        (tmp_path / f"{i:02}").write_bytes(bytes([i]) * 10)
    [group] = corpus.read_files([tmp_path]).groups
    assert set(group.held_out.tolist()) == {7, 57}
    assert not {7, 57} & set(group.train.tolist())
    assert len(group.starts) == 58


def test_archives_and_ranges_of_a_recipe_are_read(tmp_path, monkeypatch):
    import io
    import lzma
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in (("a", b"12345678"), ("b", b"abcdefgh")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (tmp_path / "x.tar.xz").write_bytes(lzma.compress(buffer.getvalue()))
    monkeypatch.setenv("WHERE", str(tmp_path))
    recipe = {"groups": [{"name": "g", "weight": 2, "paths": ["$WHERE/x.tar.xz"],
                          "range": [0, 5], "held_out_range": [6, 8]}]}  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    [group] = corpus.read_mix(tmp_path / "recipe.json").groups
    assert group.train.tobytes() == b"12345abcde"
    assert group.held_out.tobytes() == b"78gh"


def toy_model_bytes() -> bytes:
    architecture = Architecture.from_json(TOY)
    network = train.Network(architecture)
    return serialize(architecture, train.export(network), {"name": "toy"})


def test_hostile_model_files_are_refused_by_name():
    good = toy_model_bytes()
    parse(good)
    with pytest.raises(NotLmzError, match="no safetensors header"):
        parse(b"\x89LMZ not a model")
    with pytest.raises(NotLmzError, match="no safetensors header"):
        parse((1 << 60).to_bytes(8, "little") + good[8:])
    with pytest.raises(NotLmzError, match="without lmzip"):
        parse(good.replace(b'"lmzip"', b'"pizml"'))
    with pytest.raises(UnsupportedError, match="format 'lmzip-exact-9'"):
        parse(good.replace(b"lmzip-exact-1", b"lmzip-exact-9"))
    with pytest.raises(UnsupportedError, match="n_kv_heads"):
        parse(good.replace(b'n_kv_heads\\":1', b'n_kv_heads\\":3'))
    with pytest.raises(CorruptError, match="expected"):
        parse(good.replace(b'd_ff\\":64', b'd_ff\\":32'))
    with pytest.raises(CorruptError, match="model file"):
        parse(good[:-1])


def test_values_out_of_range_are_refused():
    model = parse(toy_model_bytes())
    for name, value in (
        ("head.weight", -128), ("head.scale", np.nan), ("head.scale", 0), ("layers.0.softmax", 0),
        ("embedding.shift", 16),
    ):  # fmt: skip
        tensors = {k: t.copy() for k, t in model.tensors.items()}
        tensors[name].flat[0] = value
        with pytest.raises(CorruptError, match=name):
            serialize(model.architecture, tensors, {})
