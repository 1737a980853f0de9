"""`lmzip models import`: a checkpoint of the Llama family -> an exact int8 model file.

Sources: a Hugging Face folder (config.json, *.safetensors, tokenizer.json), the name of one on the
hub, or a GGUF file, whose quantized weights are expanded first.  Each becomes a Checkpoint, floats
by Hugging Face's names, and quantize() makes the model file of it.  This is the only place where
floats become integers.  Whatever of a checkpoint cannot be represented exactly is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmzip.errors import LmzipError, UnsupportedError
from lmzip.llama_model import (
    MAX_BIAS,
    MAX_SCALE,
    MIN_SCALE,
    SIGMOID_SIZE,
    WIDE_INPUTS,
    LlamaArchitecture,
    LlamaModel,
    check,
)
from lmzip.model_file import Array
from lmzip.tokenization import plain_document, start_token, token_bytes

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
DEFAULT_WINDOW = 1024
DEFAULT_SINKS = 4


@dataclass(frozen=True)
class Checkpoint:
    """A float model.  config: as transformers names its fields; frequencies: radians per
    position (head_dim / 2); tensors: float32, by transformers' names without "model."."""

    config: dict[str, Any]
    frequencies: Array
    tensors: dict[str, Array]
    tokenizer: dict[str, Any]  # tokenizer.json
    name: str
    licence: str = ""
    files: dict[str, str] = field(default_factory=dict)  # of weights: name -> SHA-256


def read_checkpoint(source: str | Path) -> Checkpoint:
    """Read a Hugging Face folder, also from the hub, or a GGUF file.

    Raises UnsupportedError, naming the family or the feature that is not supported, LmzipError
    where a library is missing or the hub does not give the folder, OSError.
    """
    path = Path(source)
    if path.is_dir():
        return _read_folder(path, path.resolve().name)
    if path.is_file() and path.suffix == ".gguf":
        return _read_gguf(path)
    if not path.exists() and isinstance(source, str) and _HUB_NAME.fullmatch(source):
        return _read_folder(_fetch(source), source)
    found = "" if path.exists() else " (it does not exist)"
    raise UnsupportedError(
        f"{source} is neither a folder with config.json nor a .gguf file nor a name on the "
        f"Hugging Face hub such as OWNER/NAME{found}"
    )


def import_checkpoint(source: str | Path, *, window: int = DEFAULT_WINDOW) -> LlamaModel:
    """Read and quantize.  UnsupportedError also for a checkpoint that is not what it should be."""
    try:
        return quantize(read_checkpoint(source), window=window)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, LmzipError):
            raise
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UnsupportedError(f"{source} is not a checkpoint that can be read: {what}") from error


# ---- Hugging Face -------------------------------------------------------------------------------


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# No *.bin: such weights are pickles, which can run code.
_HUB_FILES = ["config.json", "tokenizer.json", "README.md", "model*.safetensors"]


def _fetch(name: str) -> Path:
    """The folder of OWNER/NAME[@REVISION], from huggingface_hub's cache or the hub."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise LmzipError(
            f"{error.name or error} is missing; models are fetched by name with it: pip install "
            f"'lmzip-codec[llm]', or download the files of {name} and give their folder"
        ) from None
    repository, _, revision = name.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=_HUB_FILES
        )
    except Exception as error:  # noqa: BLE001 (of the library, of its HTTP client, of the system)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LmzipError(
            f"{name} cannot be had from the Hugging Face hub: {reason} Where there is no network, "
            "download its files elsewhere and give their folder"
        ) from None
    return Path(folder)


def _read_folder(folder: Path, name: str) -> Checkpoint:
    """name: of the folder or, on the hub, OWNER/NAME[@REVISION]."""
    config = json.loads((folder / "config.json").read_text())
    _check_family(config.get("model_type"))
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedError(f"activation {config['hidden_act']!r}; only 'silu' is supported")
    tensors: dict[str, Array] = {}
    files: dict[str, str] = {}
    # Some repositories hold the same weights once more, in the format of their makers.
    for path in sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors")):
        tensors |= _load_safetensors(path)
        files[path.name] = _sha256(path)
    if not tensors:
        raise UnsupportedError(f"{folder} holds no *.safetensors")
    tensors = {name.removeprefix("model."): t for name, t in tensors.items()}
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    return Checkpoint(
        config, _frequencies(config), tensors, tokenizer, name, _card_licence(folder), files
    )


def _card_licence(folder: Path) -> str:
    """What the model card's front matter states; no YAML is parsed for one line of it."""
    card = folder / "README.md"
    text = card.read_text("utf-8", "replace") if card.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license: *[\"']?([\w.+-]+)", front[1], re.MULTILINE) if front else None
    return found[1] if found else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_safetensors(path: Path) -> dict[str, Array]:
    """NumPy has no bfloat16: such tensors are read as their bits, which float32 continues."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    out: dict[str, Array] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        raw, kind = data[begin:end], entry["dtype"]
        if kind == "BF16":
            t = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif kind in ("F16", "F32"):
            t = np.frombuffer(raw, {"F16": "<f2", "F32": "<f4"}[kind]).astype(np.float32)
        else:
            raise UnsupportedError(f"{path}: {name} is {kind}; expected BF16, F16 or F32")
        out[name] = t.reshape(entry["shape"])
    return out


def _check_family(family: Any) -> None:
    if family not in FAMILIES:
        raise UnsupportedError(
            f"models of the family {family!r} are not supported; these are: {', '.join(FAMILIES)}"
        )


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _frequencies(config: dict[str, Any]) -> Array:
    """Radians per position of each pair of channels, with the scalings "linear" and "llama3"
    (transformers, modeling_rope_utils.py)."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    d = _head_dim(config)
    w = base ** (-np.arange(0, d, 2, dtype=np.float64) / d)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return w
    if kind == "linear":
        return w / float(rope["factor"])
    if kind != "llama3":
        raise UnsupportedError(
            f"rotary scaling {kind!r}; supported are 'default', 'linear' and 'llama3'"
        )
    factor, original = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    turns = original * w / (2 * math.pi)  # in the original context
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - smooth) * w / factor + smooth * w


# ---- GGUF ---------------------------------------------------------------------------------------

_GGUF_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# tokenizer.ggml.pre -> the pattern that cuts a text before BPE; None: GPT-2's own
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GGUF_PATTERNS = {
    "gpt-2": None,
    "default": None,
    "smollm": None,
    "llama-bpe": _LLAMA3 % "{1,3}",
    "qwen2": _LLAMA3 % "",
}


def _read_gguf(path: Path) -> Checkpoint:
    try:
        import gguf
    except ImportError as error:
        raise LmzipError(
            f"{error.name or error} is missing; reading GGUF files needs it: "
            "pip install 'lmzip-codec[llm]'"
        ) from None
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    family = fields["general.architecture"]
    _check_family(family)
    about = {
        name.removeprefix(f"{family}."): value
        for name, value in fields.items()
        if name.startswith(f"{family}.")
    }
    config = {
        "model_type": family,
        "hidden_size": about["embedding_length"],
        "num_hidden_layers": about["block_count"],
        "num_attention_heads": about["attention.head_count"],
        "num_key_value_heads": about.get("attention.head_count_kv", about["attention.head_count"]),
        "head_dim": about.get("attention.key_length")
        or about["embedding_length"] // about["attention.head_count"],
        "intermediate_size": about["feed_forward_length"],
        "rms_norm_eps": float(f"{about['attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": about.get("rope.freq_base", 10000.0),
        "sliding_window": about.get("attention.sliding_window"),
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
    }
    scaling = about.get("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise UnsupportedError(f"rotary scaling {scaling!r} of a GGUF file is not supported")
    if scaling == "linear":
        config["rope_scaling"] = {"type": "linear", "factor": about["rope.scaling.factor"]}
    frequencies, tensors = _frequencies(config), {}
    for t in reader.tensors:
        weights = gguf.dequantize(t.data, t.tensor_type).astype(np.float32)
        if t.name == "rope_freqs.weight":  # divisors: how GGUF writes the scaling "llama3"
            frequencies = frequencies / weights
        else:
            tensors[_hugging_face_name(t.name)] = weights
    if family in ("llama", "mistral"):
        _restore_half_split(tensors, config)
    licence = str(fields.get("general.license", ""))
    files = {path.name: _sha256(path)}
    tokenizer = _gguf_tokenizer(fields)
    return Checkpoint(config, frequencies, tensors, tokenizer, path.stem, licence, files)


def _hugging_face_name(name: str) -> str:
    whole = {
        "token_embd.weight": "embed_tokens.weight",
        "output_norm.weight": "norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in whole:
        return whole[name]
    parts = name.split(".")
    if parts[0] != "blk" or len(parts) != 4 or parts[2] not in _GGUF_NAMES:
        raise UnsupportedError(f"the GGUF file has a tensor {name!r} that this family should not")
    return f"layers.{parts[1]}.{_GGUF_NAMES[parts[2]]}.{parts[3]}"


def _restore_half_split(tensors: dict[str, Array], config: dict[str, Any]) -> None:
    """GGUF lays the rows of q and k so that rotary pairs are neighbors; here they lie half a head
    apart."""
    for name, t in tensors.items():
        if "self_attn.q_proj" in name:
            heads = config["num_attention_heads"]
        elif "self_attn.k_proj" in name:
            heads = config["num_key_value_heads"]
        else:
            continue
        pairs = t.reshape(heads, len(t) // heads // 2, 2, *t.shape[1:])
        tensors[name] = pairs.swapaxes(1, 2).reshape(t.shape)


def _gguf_tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json from a GGUF file's vocabulary."""
    kind, cut = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or cut not in _GGUF_PATTERNS:
        raise UnsupportedError(
            f"GGUF tokenizer {kind!r} ({cut!r}); supported are 'gpt2' with "
            f"{', '.join(_GGUF_PATTERNS)}: import from the Hugging Face folder instead"
        )
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    pattern = _GGUF_PATTERNS[cut]
    steps: list[dict[str, Any]] = []
    if cut == "smollm":
        steps.append({"type": "Digits", "individual_digits": True})
    if pattern:
        split = {"pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        steps.append({"type": "Split", **split})
    steps.append(
        {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": pattern is None,
        }
    )
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [
        {"id": i, "content": token, "special": True, **flags}
        for i, token in enumerate(tokens)
        if kinds[i] in (3, 5)  # control, unused
    ]
    return {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": fields["tokenizer.ggml.merges"],
        },
    }


# ---- floats to integers -------------------------------------------------------------------------


def quantize(
    checkpoint: Checkpoint,
    *,
    window: int = DEFAULT_WINDOW,
    sinks: int = DEFAULT_SINKS,
    wide: Iterable[str] = WIDE_INPUTS,
) -> LlamaModel:
    """The exact model.  wide: the products whose inputs have 14 bits instead of 8.

    Raises UnsupportedError, naming it, for a tensor that the family should not have.
    """
    arch = _architecture(checkpoint, window, sinks, tuple(wide))
    source = dict(checkpoint.tensors)
    embedding, embedding_scale = quantize_rows(source.pop("embed_tokens.weight"))
    d = arch.head_dim
    tensors: dict[str, Array] = {
        "embedding.weight": embedding,
        "embedding.scale": embedding_scale,
        "head.norm": source.pop("norm.weight"),
        "rotary.frequency": np.rint(checkpoint.frequencies / (2 * math.pi) * 2.0**32).astype(
            np.uint32
        ),
        "rotary.cosine": rotary_cosine(),
        "softmax": np.array([32 * math.log2(math.e) / math.sqrt(d)], np.float32),
        "sigmoid": sigmoid_table(),
    }
    head_scale = embedding_scale
    if arch.tied:
        source.pop("lm_head.weight", None)
    else:
        tensors["head.weight"], head_scale = quantize_rows(source.pop("lm_head.weight"))
    tensors["head.scale"] = _scale(head_scale * (1024 * math.log2(math.e)))
    for i in range(arch.n_layers):
        _quantize_layer(arch, i, source, tensors)
    unused = [name for name in source if not name.endswith("rotary_emb.inv_freq")]
    if unused:
        raise UnsupportedError(
            f"the checkpoint has tensors that this family should not: {', '.join(unused[:5])}"
        )
    _add_vocabulary(arch, checkpoint.tokenizer, tensors)
    check(arch, tensors)
    about = {
        "name": checkpoint.name.partition("@")[0].rpartition("/")[2],
        "licence": checkpoint.licence,
        "parameters": arch.parameters(),
        "source": {
            "name": checkpoint.name,
            "family": checkpoint.config["model_type"],
            "sha256": checkpoint.files,
        },
    }
    return LlamaModel(arch, tensors, about)


def _architecture(
    checkpoint: Checkpoint, window: int, sinks: int, wide: tuple[str, ...]
) -> LlamaArchitecture:
    config, tensors = checkpoint.config, checkpoint.tensors
    layers = int(config["num_hidden_layers"])
    windows, all_sinks = [window] * layers, [sinks] * layers
    for i, sliding in enumerate(_sliding_windows(config, layers)):
        if sliding is not None and sliding < window + sinks:  # the model's own: nothing beyond it
            windows[i], all_sinks[i] = min(window, sliding), 0
    vocabulary = len(tensors["embed_tokens.weight"])
    tied = "lm_head.weight" not in tensors or bool(config.get("tie_word_embeddings"))
    start = start_token(checkpoint.tokenizer, vocabulary, checkpoint.config.get("bos_token_id"))
    return LlamaArchitecture(
        vocabulary=vocabulary,
        d_model=int(config["hidden_size"]),
        n_layers=layers,
        n_heads=int(config["num_attention_heads"]),
        n_kv_heads=int(config.get("num_key_value_heads") or config["num_attention_heads"]),
        head_dim=_head_dim(config),
        d_ff=int(config["intermediate_size"]),
        windows=tuple(windows),
        sinks=tuple(all_sinks),
        epsilon=float(config["rms_norm_eps"]),
        qk_norm="layers.0.self_attn.q_norm.weight" in tensors,
        tied=tied,
        wide=wide,
        start=start,
        escape=start,
    )


def _sliding_windows(config: dict[str, Any], layers: int) -> list[int | None]:
    """Of each layer, None where attention is not limited."""
    size = config.get("sliding_window")
    if not size or config.get("use_sliding_window") is False:
        return [None] * layers
    kinds = config.get("layer_types")
    if kinds:
        return [size if kind == "sliding_attention" else None for kind in kinds]
    if config["model_type"].startswith("qwen"):  # the first layers see everything
        return [size if i >= config.get("max_window_layers", 0) else None for i in range(layers)]
    return [size] * layers


def _quantize_layer(
    arch: LlamaArchitecture, i: int, source: dict[str, Array], tensors: dict[str, Array]
) -> None:
    ours, theirs = f"layers.{i}.", f"layers.{i}.self_attn."
    mlp = f"layers.{i}.mlp."
    tensors[ours + "attention.norm"] = source.pop(ours + "input_layernorm.weight")
    tensors[ours + "mlp.norm"] = source.pop(ours + "post_attention_layernorm.weight")
    qkv = np.concatenate([source.pop(f"{theirs}{name}_proj.weight") for name in "qkv"])
    bias = np.zeros(len(qkv))
    if theirs + "q_proj.bias" in source:
        bias = np.concatenate([source.pop(f"{theirs}{name}_proj.bias") for name in "qkv"])
    tensors[ours + "qkv.bias"] = np.clip(np.rint(bias * 4096), -MAX_BIAS, MAX_BIAS).astype(np.int32)
    if arch.qk_norm:
        for name in "qk":
            tensors[f"{ours}{name}.norm"] = source.pop(f"{theirs}{name}_norm.weight")
    products = {
        "qkv": qkv,
        "out": source.pop(theirs + "o_proj.weight"),
        "gate_up": np.concatenate([source.pop(f"{mlp}{n}_proj.weight") for n in ("gate", "up")]),
        "down": source.pop(mlp + "down_proj.weight"),
    }
    for name, weights in products.items():
        tensors[f"{ours}{name}.weight"], tensors[f"{ours}{name}.scale"] = quantize_rows(weights)


def quantize_rows(weights: Array) -> tuple[Array, Array]:
    """(outputs, inputs) float32 -> int8 in [-127, 127] and the scale of each output."""
    scale = _scale(np.abs(weights).max(axis=1) / 127)
    rounded = np.rint(weights / scale[:, None])
    return np.clip(rounded, -127, 127).astype(np.int8), scale


def _scale(scale: Array) -> Array:
    return np.clip(scale, MIN_SCALE, MAX_SCALE).astype(np.float32)


def _add_vocabulary(
    arch: LlamaArchitecture, document: dict[str, Any], tensors: dict[str, Array]
) -> None:
    tokens = token_bytes(document, arch.vocabulary)
    tokens[arch.escape] = b""
    tensors["tokens.size"] = np.array([len(t) for t in tokens], np.uint16)
    tensors["tokens.bytes"] = np.frombuffer(b"".join(tokens), np.uint8)
    text = json.dumps(plain_document(document), ensure_ascii=False, separators=(",", ":"))
    tensors["tokenizer"] = np.frombuffer(text.encode(), np.uint8)


def rotary_cosine() -> Array:
    cosine = np.rint(2**14 * np.cos(2 * np.pi * np.arange(4096) / 4096))
    return np.asarray(cosine, np.int16)


def sigmoid_table() -> Array:
    """sigmoid(x) in units of 2^-16 for x = (i - 4096) / 256, i < 8192."""
    x = (np.arange(SIGMOID_SIZE) - SIGMOID_SIZE // 2) / 256
    return np.minimum(np.rint(65536 / (1 + np.exp(-x))), 65535).astype(np.uint16)
