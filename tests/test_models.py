"""Model files: what their headers say, how they are found, and what is said if they are not."""

import hashlib
import json
import os

import pytest

import lmzip
from lmzip import models
from lmzip.container import ModelRef, StreamHeader


def write_model(path, about, shape=(3, 4)):
    header = {
        "__metadata__": {"lmzip": json.dumps(about)},
        "w": {"dtype": "I8", "shape": list(shape), "data_offsets": [0, 12]},
        "s": {"dtype": "F32", "shape": [100], "data_offsets": [12, 412]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(412))
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LMZIP_MODEL_PATH", str(tmp_path))
    monkeypatch.delenv("LMZIP_MODEL", raising=False)
    write_model(tmp_path / "one.safetensors", {"name": "one", "release": "0.1.0", "licence": "CC0"})
    write_model(tmp_path / "two.safetensors", {"name": "two", "license": "MIT"})
    return tmp_path


def test_header_tells_what_a_model_is(folder):
    model = models.read(folder / "one.safetensors")
    assert (model.name, model.licence) == ("one", "CC0")
    assert model.parameters == 12
    assert model.id == hashlib.sha256((folder / "one.safetensors").read_bytes()).digest()
    assert model.ref == ModelRef(model.id[:8], "one")
    assert models.read(folder / "two.safetensors").licence == "MIT"


def test_only_a_bundled_model_names_a_release(folder, monkeypatch):
    monkeypatch.setattr(models, "BUNDLED", folder)
    models._read.cache_clear()
    one, two = models.read(folder / "one.safetensors"), models.read(folder / "two.safetensors")
    assert one.ref.label == "one@0.1.0"
    assert two.ref.label == f"two@{lmzip.__version__}"
    assert str(one.ref) == f"'one' (id {one.id[:8].hex()}), shipped with lmzip-codec 0.1.0"
    assert models.default() == one
    models._read.cache_clear()


@pytest.mark.usefixtures("folder")
def test_only_the_model_that_is_called_as_the_stream_says_is_hashed(monkeypatch):
    ref = models.find("two").ref
    hashed = []
    original = models._digest
    monkeypatch.setattr(
        models, "_digest", lambda path, *rest: hashed.append(path.stem) or original(path, *rest)
    )
    assert models.for_ref(ref).name == "two"
    assert hashed == ["two"]


def test_model_is_found_by_name_id_and_path(folder):
    model = models.find("two")
    assert models.find(model.id.hex()[:6].upper()) == model
    assert models.find(folder / "two.safetensors") == model


def test_model_that_is_not_there_is_named_with_those_that_are(folder):
    with pytest.raises(lmzip.ModelMismatchError, match=r"'three'; there are: .*one.*two"):
        models.find("three")
    with pytest.raises(FileNotFoundError):
        models.find(folder / "three.safetensors")


@pytest.mark.usefixtures("folder")
def test_stream_finds_its_model_or_says_which_it_needs():
    one, two = models.find("one"), models.find("two")
    assert models.for_ref(one.ref) == one
    assert models.for_ref(one.ref, offered=one) == one
    with pytest.raises(lmzip.ModelMismatchError, match=r"needs the model 'one'.*given is 'two'"):
        models.for_ref(one.ref, offered=two)
    with pytest.raises(
        lmzip.ModelMismatchError, match=r"'x' \(id 0{16}\), shipped .* 9\.9; .*install that release"
    ):
        models.for_ref(ModelRef(bytes(8), "x@9.9"))


def test_missing_model_is_named_with_what_to_fetch(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(lmzip.ModelMismatchError) as caught:
        models.for_ref(ModelRef(bytes(range(8)), "smollm2"))
    message = str(caught.value)
    assert "'smollm2'" in message
    assert "SHA-256 begins with 0001020304050607" in message
    assert f"put it into {tmp_path / 'lmzip' / 'models'}" in message
    assert "lmzip models import SOURCE -o smollm2" in message


@pytest.mark.usefixtures("folder")
def test_default_is_chosen_by_the_environment(monkeypatch):
    monkeypatch.setenv("LMZIP_MODEL", "two")
    assert models.default() == models.find("two")


def test_model_of_the_environment_decodes_too(folder, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    path = write_model(elsewhere / "three.safetensors", {"name": "three"})
    monkeypatch.setenv("LMZIP_MODEL", str(path))
    assert models.for_ref(models.read(path).ref) == models.read(path)
    monkeypatch.setenv("LMZIP_MODEL", str(elsewhere / "four.safetensors"))
    assert models.for_ref(models.find("one").ref).path == folder / "one.safetensors"


def test_changed_file_is_another_model(folder):
    before = models.read(folder / "one.safetensors").id
    write_model(folder / "one.safetensors", {"name": "one, better"}, shape=(5, 5))
    assert models.read(folder / "one.safetensors").id != before


@pytest.mark.parametrize("name", ["\x1b[31mred", "bad\nname", "\x7f", "\ud800", [1, 2], 5])
def test_name_that_no_stream_can_state_is_refused(folder, name):
    path = write_model(folder / "evil.safetensors", {"name": name})
    with pytest.raises(lmzip.UnsupportedError, match="without control characters") as caught:
        models.read(path)
    assert str(caught.value).isprintable()
    with pytest.raises(lmzip.ModelMismatchError) as caught:
        models.find("three")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["\u200b", "a\u00a0b", "naïve 中"])
def test_any_other_name_can_be_stated(folder, name):
    model = models.read(write_model(folder / "odd.safetensors", {"name": name}))
    header = StreamHeader(model=model.ref)
    assert StreamHeader.unpack(header.pack()).model == model.ref


def test_document_that_nests_too_deeply_is_none(tmp_path):
    """Printing it would overflow the stack."""
    deep = []
    for _ in range(900):
        deep = [deep]
    path = write_model(tmp_path / "x.safetensors", {"architecture": deep})
    with pytest.raises(lmzip.UnsupportedError, match="no model of lmzip"):
        models.document(path)


def test_long_name_is_cut_at_a_letter(tmp_path):
    path = write_model(tmp_path / "x.safetensors", {"name": "@" + "ü" * 60})
    assert models.read(path).ref.label == "-" + "ü" * 31  # 63 bytes; 64 would cut a letter


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,  # a header of 2^64 - 1 bytes
        (20).to_bytes(8, "little") + b"{}",  # shorter than it says
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",  # safetensors, but not of lmzip
        (9).to_bytes(8, "little") + b'{"a": nul',
        (200_000).to_bytes(8, "little") + b"[" * 200_000,  # would overflow a naive parser
    ],
)
def test_other_files_are_no_models(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(lmzip.UnsupportedError, match=r"no safetensors header|no model of lmzip"):
        models.read(path)


HOSTILE_SHAPES = {
    "infinite": "[1e999]",
    "not a number": "[NaN]",
    "float": "[3.0, 4]",
    "negative": "[-3, -4]",
    "true": "[true, 12]",
    "text": '"12"',
    "nested": "[[3, 4]]",
    "null": "null",
    "more digits than Python prints": f"[{', '.join(['9' * 4000] * 2)}]",
    "minutes of multiplication": f"[{', '.join(['4294967296'] * 500_000)}]",
    "more than the file holds": "[4294967296]",
}


@pytest.mark.parametrize("shape", HOSTILE_SHAPES.values(), ids=HOSTILE_SHAPES)
def test_file_whose_shapes_are_impossible_harms_no_other(folder, shape):
    ref = models.find("two").ref
    entry = f'"a": {{"dtype": "I8", "shape": {shape}, "data_offsets": [0, 0]}}'
    text = f'{{"__metadata__": {{"lmzip": "{{}}"}}, {entry}}}'.encode()
    path = folder / "a.safetensors"  # before the others
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(lmzip.UnsupportedError, match=r"impossible|more weights than bytes"):
        models.read(path)
    assert models.for_ref(ref).name == "two"
    assert path not in [model.path for model in models.available()]


def test_pipe_in_the_folder_is_not_waited_for(folder):
    os.mkfifo(folder / "a.safetensors")
    with pytest.raises(lmzip.UnsupportedError, match="no regular file"):
        models.read(folder / "a.safetensors")


def test_nothing_is_read_behind_the_model_that_is_found(folder, monkeypatch):
    monkeypatch.setattr(models, "BUNDLED", folder / "none")
    ref = models.find("one").ref
    read, original = [], models.read
    monkeypatch.setattr(models, "read", lambda path: read.append(path.stem) or original(path))
    assert models.for_ref(ref).name == "one"
    assert read == ["one"]


def test_name_of_a_stream_is_never_a_path(folder):
    (folder / "evil").mkdir()
    path = write_model(folder / "evil" / "m.safetensors", {"name": "m"})
    ref = ModelRef(bytes(8), str(path)[:60])
    with pytest.raises(lmzip.ModelMismatchError):
        models.for_ref(ref)
