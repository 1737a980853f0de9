"""Imported checkpoints say what transformers says of them, and what cannot be imported is named.

The only tolerance in the tests of pretrained models is here: between a float model and its exact
int8 form.
"""

import hashlib
import json
import math
import os
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmzip import _core, cli, import_model, llama_model, models
from lmzip.checkpoint import (
    _GGUF_NAMES,
    Checkpoint,
    _embedding_factor,
    _frequencies,
    _load_safetensors,
    read_checkpoint,
)
from lmzip.errors import LimitError, LmzipError, UnsupportedError
from lmzip.import_model import import_checkpoint, quantize
from lmzip.llama_model import LlamaModel
from random_llama import (
    VOCABULARY,
    gemma_pieces,
    gemma_tokenizer,
    small_llama,
    token_table,
    tokenizer,
)

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "initializer_range": 0.12,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 8,
    "query_pre_attn_scalar": 20,
    "rms_norm_eps": 0.05,  # large enough to count behind attention
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e3, "factor": 2.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
    },
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rms_norm_eps": 1e-5}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, scaled": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "mistral, window": ("Mistral", {"sliding_window": 8}),
    "qwen2, biases": ("Qwen2", {}),
    "qwen2, windows in the upper layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3, norms of queries and keys": ("Qwen3", {}),
    "gemma3": ("Gemma3", GEMMA),
    "gemma3, the defaults": ("Gemma3", {"num_hidden_layers": 7, "sliding_window": 4}),
}
POSITIONS = 40


def documents() -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document = tokenizer(token_table(small_llama()))
    document["added_tokens"] = [{"id": 0, "content": "<s>", "special": True, **flags}]
    document["model"]["vocab"]["<s>"] = 0
    return document


def folder_of(tmp_path: Path, family: str, changes: dict[str, Any]) -> tuple[Path, Any]:
    """A random checkpoint on disk, and the float model."""
    torch = pytest.importorskip("torch", reason="PyTorch is missing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers", reason="transformers is missing")
        name = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
        config = getattr(transformers, name)(**SHAPE | changes)
        torch.manual_seed(5)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        with torch.no_grad():
            for name, p in model.named_parameters():  # random everywhere, norms and biases too
                if name.endswith("norm.weight"):
                    p.uniform_(0.5, 1.5).sub_(1 if family == "Gemma3" else 0)
                if name.endswith(".bias"):
                    p.normal_(0, 0.5)
        model.save_pretrained(tmp_path)
    document = gemma_tokenizer() if family == "Gemma3" else documents()
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    return tmp_path, model


def log_probabilities(model: LlamaModel, tokens: np.ndarray) -> np.ndarray:
    """Of the exact model, in nats: (positions, vocabulary)."""
    native = _core.LlamaModel(model.tensors, model.architecture.to_native())
    logits = _core.LlamaEngine(native, 1, POSITIONS).feed(tokens[None].astype(np.uint32))[0]
    nats = logits / 1024 * np.log(2)
    return nats - np.log(np.exp(nats).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize(("family", "changes"), VARIANTS.values(), ids=VARIANTS.keys())
def test_exact_model_says_what_transformers_says(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder, theirs = folder_of(tmp_path, family, changes)
    import torch

    ours = import_checkpoint(folder)
    tokens = np.random.default_rng(1).integers(1, VOCABULARY, POSITIONS)
    usable = np.array([bool(t) or i == ours.architecture.escape for i, t in enumerate(ours.tokens)])
    with torch.inference_mode():
        logits = theirs(input_ids=torch.from_numpy(tokens)[None]).logits[0].double().numpy()
    expected = logits[:, usable]
    expected = expected - np.log(np.exp(expected).sum(axis=-1, keepdims=True))
    found = log_probabilities(ours, tokens)[:, usable]
    spread = expected.std(axis=-1).mean()
    assert spread > 0.3  # flat predictions would agree with anything
    print("RATIO", np.abs(found - expected).mean() / spread)
    assert np.abs(found - expected).mean() < 0.04 * spread


def test_windows_of_older_configs() -> None:
    """Without layer_types, which transformers now writes."""
    windows = import_model._sliding_windows
    upper = {"model_type": "qwen2", "sliding_window": 6, "max_window_layers": 1}
    assert windows(upper | {"use_sliding_window": True}, 3) == [None, 6, 6]
    assert windows(upper | {"use_sliding_window": False}, 3) == [None] * 3
    assert windows({"model_type": "mistral", "sliding_window": 8}, 2) == [8, 8]
    assert windows({"model_type": "mistral", "sliding_window": None}, 2) == [None, None]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Gemma3", GEMMA | {"layer_types": None, "query_pre_attn_scalar": 32}),
    ],
)
def test_gguf_and_folder_are_one_model(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf library is missing")
    folder, _ = folder_of(tmp_path, family, changes)
    path = tmp_path / "model.gguf"
    _write_gguf(gguf, path, read_checkpoint(folder))
    a, b = import_checkpoint(folder), import_checkpoint(path)
    assert a.architecture == b.architecture
    assert a.tokens == b.tokens
    for name, t in a.tensors.items():
        if name != "tokenizer":
            np.testing.assert_array_equal(t, b.tensors[name], err_msg=name)


def _write_gguf(gguf: Any, path: Path, checkpoint: Checkpoint) -> None:
    """As llama.cpp's converter: Llama's rotary pairs of q and k side by side; Gemma's norms as
    what is multiplied with."""
    c = checkpoint.config
    gemma = c["model_type"] == "gemma3_text"
    writer = gguf.GGUFWriter(path, "gemma3" if gemma else "llama")
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_key_length(c["head_dim"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    size = c["vocab_size"]
    if gemma:
        rope = c["rope_parameters"]
        writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["full_attention"]["factor"])
        writer.add_float32("gemma3.rope.freq_base_swa", rope["sliding_attention"]["rope_theta"])
        writer.add_sliding_window(c["sliding_window"])
        texts, kinds, scores = zip(*gemma_pieces(), strict=True)
        pad = size - len(texts)
        writer.add_tokenizer_model("llama")
        writer.add_token_list([*texts, *(f"<unused{i}>" for i in range(1, pad + 1))])
        writer.add_token_types([*kinds, *[3] * pad])
        writer.add_token_scores([*scores, *[-1000.0] * pad])
        writer.add_bos_token_id(2)
        writer.add_unk_token_id(3)
    else:
        writer.add_rope_freq_base(c["rope_parameters"]["rope_theta"])
        names = {i: text for text, i in checkpoint.tokenizer["model"]["vocab"].items()}
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([names.get(i, f"[unused{i}]") for i in range(size)])
        writer.add_token_types([1 if 0 < i in names else 3 for i in range(size)])
        writer.add_token_merges(checkpoint.tokenizer["model"]["merges"])
    theirs = {ours: name for name, ours in _GGUF_NAMES.items()}
    if gemma:
        theirs |= {
            "pre_feedforward_layernorm": "ffn_norm",
            "post_attention_layernorm": "post_attention_norm",
        }
    else:
        theirs["post_attention_layernorm"] = "ffn_norm"
    for name, tensor in checkpoint.tensors.items():
        t = tensor
        for kind, heads in (("q_proj", 4), ("k_proj", 2)):
            if kind in name and not gemma:
                t = t.reshape(heads, 2, len(t) // heads // 2, -1).swapaxes(1, 2).reshape(t.shape)
        if name.startswith("layers."):
            _, i, middle = name.split(".", 2)
            writer.add_tensor(f"blk.{i}.{theirs[middle.removesuffix('.weight')]}.weight", t)
        else:
            writer.add_tensor(
                {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[
                    name
                ],
                t,
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---- what cannot be imported --------------------------------------------------------------------


def plain_checkpoint(family: str = "llama") -> Checkpoint:
    """A float checkpoint without transformers."""
    rng = np.random.default_rng(3)
    gemma = family == "gemma3_text"
    config = {**SHAPE, "model_type": family, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    if gemma:
        config |= {"sliding_window": 8, "query_pre_attn_scalar": 32}
    shapes = {"embed_tokens": (VOCABULARY, 64), "norm": (64,)}
    for i in range(2):
        layer = f"layers.{i}."
        shapes |= {
            f"{layer}input_layernorm": (64,),
            f"{layer}post_attention_layernorm": (64,),
            f"{layer}self_attn.q_proj": (128, 64),
            f"{layer}self_attn.k_proj": (64, 64),
            f"{layer}self_attn.v_proj": (64, 64),
            f"{layer}self_attn.o_proj": (64, 128),
            f"{layer}mlp.gate_proj": (96, 64),
            f"{layer}mlp.up_proj": (96, 64),
            f"{layer}mlp.down_proj": (64, 96),
        }
        if gemma:
            names = ("pre_feedforward", "post_feedforward")
            shapes |= {f"{layer}{name}_layernorm": (64,) for name in names}
            shapes |= {f"{layer}self_attn.{name}_norm": (32,) for name in "qk"}
    tensors = {
        f"{name}.weight": rng.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    document = gemma_tokenizer() if gemma else documents()
    return Checkpoint(config, _frequencies(config), tensors, document, "plain")


def test_tensor_that_does_not_belong_is_named() -> None:
    checkpoint = plain_checkpoint()
    quantize(checkpoint)
    checkpoint.tensors["layers.0.self_attn.o_proj.bias"] = np.zeros(64, np.float32)
    with pytest.raises(UnsupportedError, match=r"o_proj\.bias"):
        quantize(checkpoint)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "gpt2"}, "family 'gpt2' are not supported"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rotary scaling 'yarn'"),
        ({"hidden_size": None}, "not a checkpoint that can be read"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000; expected 1 to 256"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"rope_theta": -1.0}, r"rope_theta is -1\.0"),
    ],
)
def test_unsupported_folder_is_refused_by_name(
    change: dict[str, Any], match: str, tmp_path: Path
) -> None:
    assert_refused(change, match, tmp_path, "llama")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "gemma3"}, "family 'gemma3' are not supported.*gemma3_text"),
        ({"model_type": "gemma2"}, "family 'gemma2'"),
        ({"hidden_activation": "gelu"}, "activation 'gelu'; only 'gelu_pytorch_tanh'"),
        ({"final_logit_softcapping": 30.0}, r"final_logit_softcapping = 30\.0"),
        ({"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping = 50\.0"),
        ({"use_bidirectional_attention": True}, "only causal attention"),
        ({"query_pre_attn_scalar": 0}, r"query_pre_attn_scalar is 0\.0"),
        ({"query_pre_attn_scalar": -2}, r"query_pre_attn_scalar is -2\.0"),
        ({"query_pre_attn_scalar": math.nan}, "query_pre_attn_scalar is nan"),
        ({"query_pre_attn_scalar": 1e-300}, "query_pre_attn_scalar is 1e-300"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"sliding_window": "all"}, "sliding_window is 'all'"),
        ({"sliding_window": None}, "sliding_window is None"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ({"layer_types": ["full_attention"]}, "layer_types must be 2 of"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types must be 2 of"),
        ({"layer_types": [["x"], 3]}, "layer_types must be 2 of"),
        ({"rope_local_base_freq": 0.5}, r"rope_theta is 0\.5"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rotary scaling 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, r"factor is 0\.0"),
        ({"rope_parameters": {"full_attention": {}}}, "'sliding_attention' is missing"),
        ({"hidden_size": "x"}, "not a checkpoint that can be read"),
        ({"head_dim": 512}, "head_dim"),
        ({"num_attention_heads": 0}, "n_heads"),
        ({"rms_norm_eps": math.nan}, "epsilon"),
    ],
)
def test_unsupported_gemma_is_refused_by_name(
    change: dict[str, Any], match: str, tmp_path: Path
) -> None:
    assert_refused(change, match, tmp_path, "gemma3_text")


def assert_refused(change: dict[str, Any], match: str, tmp_path: Path, family: str) -> None:
    checkpoint = write_folder(tmp_path, family=family)
    import_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(checkpoint.config | change))
    with pytest.raises(LmzipError, match=match):
        import_checkpoint(tmp_path)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    checkpoint = plain_checkpoint()
    del checkpoint.tensors["layers.1.mlp.up_proj.weight"]
    import safetensors.numpy

    safetensors.numpy.save_file(checkpoint.tensors, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text(json.dumps(checkpoint.tokenizer))
    (tmp_path / "config.json").write_text(json.dumps(checkpoint.config))
    with pytest.raises(UnsupportedError, match=r"layers\.1\.mlp\.up_proj\.weight.* is missing"):
        import_checkpoint(tmp_path)


def write_folder(folder: Path, card: str = "", family: str = "llama") -> Checkpoint:
    """A plain checkpoint in the form of Hugging Face."""
    checkpoint = plain_checkpoint(family)
    import safetensors.numpy

    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(checkpoint.tensors, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(json.dumps(checkpoint.tokenizer))
    (folder / "config.json").write_text(json.dumps(checkpoint.config))
    if card:
        (folder / "README.md").write_text(card)
    return checkpoint


def test_import_says_where_a_model_is_from(tmp_path: Path) -> None:
    write_folder(tmp_path / "plain", "---\nlicense: apache-2.0\n---\n# A model\nlicense: other\n")
    weights = (tmp_path / "plain" / "model.safetensors").read_bytes()
    (tmp_path / "plain" / "consolidated.safetensors").write_bytes(b"the same once more")
    about = import_checkpoint(tmp_path / "plain").about
    (tmp_path / "plain" / "README.md").write_text("---\na: b\n---\nlicense: other\n")
    assert import_checkpoint(tmp_path / "plain").about["licence"] == ""
    assert about["licence"] == "apache-2.0"
    sha256 = hashlib.sha256(weights).hexdigest()
    assert about["source"] == {
        "name": "plain",
        "family": "llama",
        "sha256": {"model.safetensors": sha256},
    }


def test_same_checkpoint_gives_the_same_file(tmp_path: Path) -> None:
    write_folder(tmp_path / "plain")
    for name in ("a", "b"):
        target = str(tmp_path / name / "m.safetensors")
        (tmp_path / name).mkdir()
        assert cli.main(["models", "import", str(tmp_path / "plain"), "-o", target]) == 0
    a, b = (tmp_path / name / "m.safetensors" for name in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()


def test_model_is_imported_by_its_name_on_the_hub(
    tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    """From huggingface_hub's own cache, with the network forbidden."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is missing")
    repository = tmp_path / "hub" / "models--someone--Tiny-1M"
    write_folder(repository / "snapshots" / ("ab" * 20), "---\nlicense: mit\n---\n")
    for revision in ("main", "v1.0"):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text("ab" * 20)
    env = {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "XDG_DATA_HOME": str(tmp_path / "home"),
    }
    script = "import sys; from lmzip import cli; sys.exit(cli.main({}))"
    for source in ("someone/Tiny-1M", "someone/Tiny-1M@v1.0"):
        done = run_python(script.format(["models", "import", source, "-f"]), **env)
        assert "Tiny-1M" in done.stdout
        assert " mit " in done.stdout
    found = models.document(tmp_path / "home" / "lmzip" / "models" / "Tiny-1M.safetensors")
    assert found["source"]["name"] == "someone/Tiny-1M@v1.0"
    missing = run_python(script.format(["models", "import", "someone/Other"]), check=False, **env)
    assert missing.returncode == 1
    assert "someone/Other cannot be had from the Hugging Face hub" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_only_data_is_fetched_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pickles and no code: neither *.bin nor *.py."""
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is missing")
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        write_folder(tmp_path / "x")
        return str(tmp_path / "x")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert import_checkpoint("owner/name@dev").about["name"] == "name"
    assert (asked["name"], asked["revision"]) == ("owner/name", "dev")
    assert all(p.endswith((".json", ".md", ".safetensors")) for p in asked["allow_patterns"])


def test_hub_without_its_library_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(LmzipError, match=r"huggingface_hub is missing.*or download the files"):
        import_checkpoint("owner/name")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"")
    with pytest.raises(UnsupportedError, match="neither a folder"):
        import_checkpoint(path)
    with pytest.raises(UnsupportedError, match=r"nor a name on the .*\(it does not exist\)"):
        import_checkpoint(str(tmp_path / "none.gguf"))


def test_factor_of_embeddings_has_their_type(tmp_path: Path) -> None:
    """sqrt(64) has it anyway; sqrt(640) does not."""
    factor = _embedding_factor
    halves, floats = np.float32([0.5, -1.25]), np.float32([0.1])
    for size, rounded in ((64, 8.0), (640, 25.25), (2560, 50.5)):
        assert factor({"hidden_size": size}, halves) == rounded
        exact = float(np.sqrt(np.float32(size)))
        assert factor({"hidden_size": size}, floats) == exact
        assert factor({"hidden_size": size, "embedding_quantized": True}, floats) == rounded
    write_folder(tmp_path, family="gemma3_text")
    checkpoint = read_checkpoint(tmp_path)
    scale = import_model.quantize_rows(checkpoint.tensors["embed_tokens.weight"])[1]
    tensors = quantize(checkpoint).tensors
    np.testing.assert_array_equal(tensors["embedding.scale"], scale * 8)
    np.testing.assert_allclose(tensors["head.scale"], scale * 1024 / math.log(2), rtol=1e-6)


def test_gains_of_queries_and_keys_are_balanced() -> None:
    rng = np.random.default_rng(1)
    q, k = (np.float32(np.exp(rng.normal(0, 2, 64))) for _ in range(2))
    q[[3, 35]], k[5] = 0, -k[5]
    a, b = import_model.balance(q, k)
    np.testing.assert_array_equal(a * b, q * k)  # exact: what attention says does not change
    factor = k / b
    np.testing.assert_array_equal(factor[:32], factor[32:])  # of a rotary pair
    assert np.abs(b).max() < np.abs(k).max()


def test_gelu_is_a_table() -> None:
    table = import_model.gelu_table()
    for x in (-15.0, -3.5, -1.0, 0.0, 0.25, 2.0, 15.0):
        gelu = x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        found = x * int(table[round(256 * x) + 4096]) / 65536
        assert abs(found - gelu) <= abs(x) * 2.0**-16


def test_half_floats_are_read(tmp_path: Path) -> None:
    """bfloat16, which NumPy has not, and float16."""
    header = {
        "a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        "b": {"dtype": "F16", "shape": [1], "data_offsets": [4, 6]},
        "c": {"dtype": "I8", "shape": [1], "data_offsets": [6, 7]},
    }
    data = bytes.fromhex("803f20c0003e07")
    path = tmp_path / "x.safetensors"
    for names in ("ab", "abc"):
        text = json.dumps({name: header[name] for name in names}).encode()
        end = header[names[-1]]["data_offsets"][1]
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[:end])
        if names == "ab":
            tensors = _load_safetensors(path)
    assert tensors["a"].tolist() == [1.0, -2.5]
    assert tensors["b"].tolist() == [1.5]
    with pytest.raises(UnsupportedError, match="c is I8"):
        _load_safetensors(path)


DEEP = "[" * 100_000


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["[]", "null", '"x"', "5", "", DEEP, "{}", '{"model": "x"}'])
def test_json_of_another_kind_is_refused(name: str, text: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(UnsupportedError):
        import_checkpoint(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "BPE", "vocab": ["a", "b"], "byte_fallback": True}},
        {"model": ["BPE"]},
        {"added_tokens": 5},
        {"added_tokens": [5]},
        {"added_tokens": [{"id": 0}]},
        {"normalizer": "x"},
        {"pre_tokenizer": {"type": ["ByteLevel"]}},
    ],
)
def test_tokenizer_of_other_types_is_refused(
    change: dict[str, Any], family: str, tmp_path: Path
) -> None:
    checkpoint = write_folder(tmp_path, family=family)
    (tmp_path / "tokenizer.json").write_text(json.dumps(checkpoint.tokenizer | change))
    with pytest.raises(UnsupportedError):
        import_checkpoint(tmp_path)


def test_head_of_a_trillion_channels_is_not_allocated(tmp_path: Path) -> None:
    assert_refused({"head_dim": 10**12}, "head_dim is 1000000000000", tmp_path, "llama")


@pytest.mark.parametrize("header", ["[]", "null", "5", DEEP, "", '{"a": 5}', '{"a": {}}'])
def test_other_headers_of_safetensors_are_refused(header: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    data = len(header).to_bytes(8, "little") + header.encode()
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(UnsupportedError, match="no safetensors file that can be read"):
        import_checkpoint(tmp_path)


def test_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """A file of one of them could hold thousands."""
    header = {
        f"model.{name}": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"
    }
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(UnsupportedError, match="no safetensors file that can be read"):
        _load_safetensors(path)


def gguf_key(kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"a" + struct.pack("<I", kind) + value


HOSTILE_GGUF = {
    "empty": (b"", "mmap"),
    "cut": (b"GGUF\3\0", "cut off"),
    "array of many bytes": ((0, 1, gguf_key(9, struct.pack("<IQ", 0, 1 << 40))), "more than"),
    "array of as many bytes": ((0, 1, gguf_key(9, struct.pack("<IQ", 0, 1 << 20))), "cut off"),
    "array of many strings": ((0, 1, gguf_key(9, struct.pack("<IQ", 8, 1 << 40))), "more than"),
    "array of missing strings": ((0, 1, gguf_key(9, struct.pack("<IQ", 8, 9))), "cut off"),
    "arrays of arrays": ((0, 1, gguf_key(9, struct.pack("<IQ", 9, 1) * 20_000)), "of arrays"),
    "long string": ((0, 1, gguf_key(8, struct.pack("<Q", (1 << 64) - 1))), "cut off"),
    "strings beyond all numbers": (
        (0, 1, gguf_key(9, struct.pack("<IQQ", 8, 2, (1 << 64) - 1))),
        "cut off",
    ),
    "unknown type": ((0, 1, gguf_key(77, b"")), "type 77"),
    "many keys": ((0, 1 << 60, b""), "1152921504606846976 keys"),
    "many tensors": ((1 << 60, 0, b""), "1152921504606846976 tensors"),
    "nothing": ((0, 0, b""), "'general.architecture' is missing"),
}


@pytest.mark.parametrize(("content", "match"), HOSTILE_GGUF.values(), ids=HOSTILE_GGUF)
def test_hostile_gguf_is_refused(content: Any, match: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the gguf library is missing")
    path = tmp_path / "x.gguf"
    if isinstance(content, tuple):
        tensors, keys, rest = content
        content = b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest
    path.write_bytes(content)
    with pytest.raises(UnsupportedError, match=match):
        import_checkpoint(path)


def test_tensors_that_share_bytes_of_a_gguf_file_are_refused(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf library is missing")
    path = tmp_path / "x.gguf"
    checkpoint = plain_checkpoint()
    checkpoint.config["rope_parameters"] = {"rope_theta": 1e4}
    _write_gguf(gguf, path, checkpoint)
    import_checkpoint(path)
    data = bytearray(path.read_bytes())
    for name in ("token_embd", "blk.0.ffn_up", "blk.0.ffn_gate", "blk.0.ffn_down"):
        at = data.index(f"{name}.weight".encode()) + len(f"{name}.weight")
        assert struct.unpack_from("<I", data, at) == (2,)  # dimensions
        struct.pack_into("<QQ", data, at + 4, 64, 1500)
        struct.pack_into("<Q", data, at + 4 + 16 + 4, 0)
    path.write_bytes(data)
    with pytest.raises(UnsupportedError, match="share bytes"):
        import_checkpoint(path)


def test_import_beyond_the_memory_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_: object) -> Checkpoint:
        raise MemoryError

    monkeypatch.setattr(import_model, "read_checkpoint", read)
    with pytest.raises(LimitError, match="somewhere needs more memory than there is"):
        import_checkpoint("somewhere")


def test_name_that_no_stream_can_state_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(import_model, "read_checkpoint", lambda _: plain_checkpoint())
    assert cli.main(["models", "import", "somewhere", "-o", "bad\nname"]) == 1
    assert "expected text without control characters" in capsys.readouterr().err
    assert not list(models.store().iterdir())


def test_command_imports_into_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(import_model, "read_checkpoint", lambda _: plain_checkpoint())
    assert cli.main(["models", "import", "somewhere", "-o", "mine", "--window", "100"]) == 0
    found = models.find("mine")
    assert found.path.parent == models.store()
    assert found.is_token_model
    model = llama_model.parse(found.path.read_bytes())
    assert model.architecture.windows == (100, 100)
    assert cli.main(["models", "import", "somewhere", "-o", "mine"]) == 1
    assert "-f overwrites it" in capsys.readouterr().err


# ---- the real weights, where they are -----------------------------------------------------------

SMOLLM2 = Path(os.environ.get("LMZIP_SMOLLM2", "SmolLM2-135M-Instruct.Q4_1.gguf"))


@pytest.mark.skipif(not SMOLLM2.is_file(), reason="set LMZIP_SMOLLM2 to the GGUF file of the docs")
def test_smollm2_compresses_english(tmp_path: Path) -> None:
    text = (Path(__file__).parent / "data" / "alice29.txt").read_bytes()[:6000]
    path = tmp_path / "smollm2.safetensors"
    model = import_checkpoint(SMOLLM2)
    path.write_bytes(llama_model.serialize(model.architecture, model.tensors, model.about))
    single = {t for t in model.tokens if len(t) == 1}
    assert len(single) == 256 - 21
    import lmzip

    raw = text + bytes(range(256))
    blob = lmzip.compress(raw, model=path, lanes=2)
    assert len(blob) < 1700
    assert lmzip.decompress(blob, model=path) == raw


def test_libraries_that_are_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(LmzipError, match=r"lmzip-codec\[llm\]"):
        import_checkpoint(path)
