"""`lmzip models info` and `verify`: what is said of sound, damaged and exchanged model files."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmzip import _core, cli, llama_model, model_check, model_file, models
from lmzip.errors import CorruptError, LmzipError, ModelMismatchError, UnsupportedError
from random_llama import random_llama, small_llama
from random_model import random_model, small_architecture

LLAMA = random_llama(small_llama(), 3)
EXACT = random_model(small_architecture(), 3)
KINDS: dict[str, tuple[Any, Any]] = {
    "llama": (LLAMA, llama_model.serialize),
    "exact": (EXACT, model_file.serialize),
}


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model, serialize = KINDS[request.param]
    about = {"name": request.param, "tensors_sha256": model_file.tensors_digest(model.tensors)}
    found = tmp_path / f"{request.param}.safetensors"
    found.write_bytes(serialize(model.architecture, model.tensors, about))
    return found


def test_sound_model_passes(path: Path) -> None:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    report = model_check.verify(path, sha256[:12].upper())
    assert report == model_check.Report(sha256, True, tuple(_core.kernels()))


def test_another_file_is_told_by_its_hash(path: Path) -> None:
    with pytest.raises(ModelMismatchError, match="expected 00000000: this is another file"):
        model_check.verify(path, "00000000")


def test_changed_weight_shows_although_it_is_in_range(path: Path) -> None:
    """As a flipped bit on a disk: safetensors has no checksum."""
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    name = next(name for name in header if name.endswith("qkv.weight"))
    at = begin + header[name]["data_offsets"][0]
    data[at] = (data[at] ^ 1) if data[at] not in (0x80, 0x81) else 5
    path.write_bytes(data)
    models.read(path)  # nothing else would notice
    with pytest.raises(CorruptError, match="not those that were written"):
        model_check.verify(path)


def test_model_without_a_record_passes_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    path.write_bytes(llama_model.serialize(LLAMA.architecture, LLAMA.tensors, {}))
    assert not model_check.verify(path).recorded


def test_kernel_that_errs_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One logit of one position, with one kernel, in one of the two ways."""
    best = _core.kernels()[-1]
    for name in ("_token_logits", "_byte_logits"):
        original = getattr(model_check, name)

        def broken(model: Any, by_step: bool, original: Any = original) -> Any:
            logits = original(model, by_step)
            if _core.active_kernel() == best and not by_step:
                logits[1, 5, 7] += 1
            return logits

        monkeypatch.setattr(model_check, name, broken)
    before = _core.active_kernel()
    with pytest.raises(LmzipError, match=f"kernel '{best}' does not give"):
        model_check.verify(path)
    assert _core.active_kernel() == before


def test_self_test_feeds_what_it_says(path: Path) -> None:
    _, logits = model_check._open(path.read_bytes(), models.document(path))
    found = logits(True)
    assert found.shape[:2] == (model_check.LANES, model_check.POSITIONS)
    assert len(np.unique(found[:, :, 1])) > 8  # inputs differ, and matter


def test_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(
        model_file.serialize(EXACT.architecture, EXACT.tensors, {}).replace(
            b"lmzip-exact-1", b"lmzip-exact-9"
        )
    )
    with pytest.raises(UnsupportedError, match="lmzip-exact-9"):
        model_check.verify(path)


ODD_ARCHITECTURES: dict[str, Any] = {
    "number": 5,
    "list": [1],
    "pairs": ["ab"],
    "null": None,
    **{f"n_kv_heads {value}": {"n_kv_heads": value} for value in (2.0, 0.5, "2", None, [2], True)},
    "windows of floats": {"windows": [4.0, 8.0]},
}


@pytest.mark.parametrize("architecture", ODD_ARCHITECTURES.values(), ids=ODD_ARCHITECTURES)
def test_architecture_of_other_types_is_refused(path: Path, architecture: Any) -> None:
    rewrite(path, architecture=architecture)
    with pytest.raises(UnsupportedError, match="architecture"):
        model_check.verify(path)


@pytest.mark.parametrize("field", ["order", "log2_slots", "offset", "width"])
def test_ngram_table_of_floats_is_refused(field: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(model_file.serialize(EXACT.architecture, EXACT.tensors, {}))
    (table, *others) = EXACT.architecture.to_json()["ngrams"]
    rewrite(path, architecture={"ngrams": [table | {field: float(table[field])}, *others]})
    with pytest.raises(UnsupportedError, match=field):
        model_check.verify(path)


@pytest.mark.parametrize("base", [0.5, "x", None, math.nan, math.inf, True])
def test_odd_rotary_base_is_refused(base: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(model_file.serialize(EXACT.architecture, EXACT.tensors, {}))
    rewrite(path, architecture={"rotary_base": base})
    with pytest.raises(UnsupportedError, match="rotary_base"):
        model_check.verify(path)


def test_name_with_control_characters_is_refused(path: Path) -> None:
    rewrite(path, name="\x1b[31mred")
    with pytest.raises(UnsupportedError, match="without control characters"):
        model_check.verify(path)
    for model, serialize in KINDS.values():
        with pytest.raises(UnsupportedError, match="without control characters"):
            serialize(model.architecture, model.tensors, {"name": "bad\nname"})


@pytest.mark.parametrize("tokenizer", [b"\xff\xfe", b"[]", b"no JSON", b"{}"])
def test_tokenizer_that_is_none_is_no_sound_model(tokenizer: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = LLAMA.tensors | {"tokenizer": np.frombuffer(tokenizer, np.uint8)}
    path.write_bytes(
        model_file.pack(
            "lmzip-llama-1", model_file.ModelParts(LLAMA.architecture.to_json(), tensors, {})
        )
    )
    with pytest.raises(CorruptError, match="its tokenizer is no"):
        model_check.verify(path)


def rewrite(path: Path, **changes: Any) -> None:
    """Change the document in the header; an architecture that is an object is changed in parts."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    document = json.loads(header["__metadata__"]["lmzip"])
    parts = changes.get("architecture")
    if isinstance(parts, dict):
        changes["architecture"] = document["architecture"] | parts
    header["__metadata__"]["lmzip"] = json.dumps(document | changes)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[begin:])


# ---- the commands -------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(models, "BUNDLED", tmp_path / "none")
    monkeypatch.delenv("LMZIP_MODEL_PATH", raising=False)
    folder = tmp_path / "lmzip" / "models"
    folder.mkdir(parents=True)
    about = {"name": "tiny", "licence": "CC0\x1b[1m", "source": {"name": "a"}}
    (folder / "tiny.safetensors").write_bytes(
        llama_model.serialize(LLAMA.architecture, LLAMA.tensors, about)
    )
    return folder


def test_info_says_what_is_known(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "info", "tiny"]) == 0
    out = capsys.readouterr().out
    sha256 = hashlib.sha256((store / "tiny.safetensors").read_bytes()).hexdigest()
    for part in (sha256, "CC0", '"n_layers": 2', "lmzip-llama-1", str(store)):
        assert part in out
    assert "\x1b" not in out
    assert cli.main(["models", "info", "--json", "tiny", "other"]) == 1
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out)
    assert row["architecture"]["d_model"] == 64
    assert (row["name"], row["sha256"], row["parameters"]) == (
        "tiny",
        sha256,
        LLAMA.architecture.parameters(),
    )
    assert "no model is called 'other'" in captured.err


def test_names_of_strangers_do_not_reach_the_terminal(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a file, and of its tensors."""
    tensors = LLAMA.tensors | {"\x1b[31mred": np.zeros(1, np.int8)}
    parts = model_file.ModelParts(LLAMA.architecture.to_json(), tensors, {"name": "odd"})
    (store / "\x1b[31m\udcff.safetensors").write_bytes(model_file.pack("lmzip-llama-1", parts))
    assert cli.main(["models"]) == 0
    assert cli.main(["models", "verify", "odd"]) == 1
    captured = capsys.readouterr()
    assert "u001b[31m" in captured.out
    assert "unexpected: \\u001b[31mred" in captured.err
    assert "\x1b" not in captured.out + captured.err


def test_verify_checks_all_that_are_installed(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "verify"]) == 0
    assert "sound, SHA-256" in capsys.readouterr().out
    (store / "broken.safetensors").write_bytes(b"no model")  # `models` passes it over
    assert cli.main(["models", "verify"]) == 1
    captured = capsys.readouterr()
    assert "tiny.safetensors: sound" in captured.out
    assert "broken.safetensors: not a model file" in captured.err
    assert cli.main(["models", "verify", "tiny", "--sha256", "12345678"]) == 1
    assert "this is another file" in capsys.readouterr().err
