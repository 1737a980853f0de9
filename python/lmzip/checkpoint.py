"""Checkpoints of the Llama family, as they are published -> floats by Hugging Face's names.

Sources: a Hugging Face folder (config.json, *.safetensors, tokenizer.json), the name of one on the
hub, or a GGUF file, whose quantized weights are expanded.  Nothing is rounded here; what of a
checkpoint is not supported is refused by name.  What becomes of the floats: import_model.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from lmzip.errors import LmzipError, UnsupportedError
from lmzip.llama_model import MAX_TOKEN_SIZE
from lmzip.model_file import Array

GEMMA = "gemma3_text"  # transformers' name; GGUF's is gemma3, which transformers' with images has
MAX_HEAD_DIM = 4096  # far beyond what llama_model.py takes: a bound for what is allocated here
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", GEMMA)


@dataclass(frozen=True)
class Checkpoint:
    """A float model.  config: as transformers names its fields; frequencies: radians per
    position (head_dim / 2); tensors: float32, by transformers' names without "model.", those of
    norms being what is multiplied with."""

    config: dict[str, Any]
    frequencies: Array
    tensors: dict[str, Array]
    tokenizer: dict[str, Any]  # tokenizer.json
    name: str
    licence: str = ""
    files: dict[str, str] = field(default_factory=dict)  # of weights: name -> SHA-256
    local_frequencies: Array | None = None  # of layers with a sliding window, where they differ
    embedding_factor: float = 1.0


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
    config = _read_object(folder / "config.json")
    _check_family(config.get("model_type"))
    _check_activation(config)
    tensors: dict[str, Array] = {}
    files: dict[str, str] = {}
    # Some repositories hold the same weights once more, in the format of their makers.
    for path in sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors")):
        tensors |= _load_safetensors(path)
        files[path.name] = _sha256(path)
    if not tensors:
        raise UnsupportedError(f"{folder} holds no *.safetensors")
    tensors = {name.removeprefix("model."): t for name, t in tensors.items()}
    tokenizer = _read_object(folder / "tokenizer.json")
    common = tensors, tokenizer, name, _card_licence(folder), files
    if config["model_type"] != GEMMA:
        return Checkpoint(config, _frequencies(config), *common)
    for key in [name for name in tensors if name.endswith("norm.weight")]:
        tensors[key] = tensors[key] + np.float32(1)
    return _gemma(config, *common)


def _read_object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict):
        raise UnsupportedError(f"{path} is no JSON object, but a {type(found).__name__}")
    return found


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
    try:
        found = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:  # also tensors that share bytes, and so could be any number
        raise UnsupportedError(f"{path} is no safetensors file that can be read: {error}") from None
    out: dict[str, Array] = {}
    for name, entry in found:
        raw, kind = entry["data"], entry["dtype"]
        if kind == "BF16":
            t = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif kind in ("F16", "F32"):
            t = np.frombuffer(raw, {"F16": "<f2", "F32": "<f4"}[kind]).astype(np.float32)
        else:
            raise UnsupportedError(f"{path}: {name} is {kind}; expected BF16, F16 or F32")
        out[name] = t.reshape(entry["shape"])
    return out


def _check_family(family: Any, supported: tuple[str, ...] = FAMILIES) -> None:
    if family not in supported:
        raise UnsupportedError(
            f"models of the family {family!r} are not supported; these are: {', '.join(supported)}"
        )


def _check_activation(config: dict[str, Any]) -> None:
    if config["model_type"] == GEMMA:
        field, only = "hidden_activation", "gelu_pytorch_tanh"
    else:
        field, only = "hidden_act", "silu"
    if (config.get(field) or only) != only:
        raise UnsupportedError(f"activation {config[field]!r}; only {only!r} is supported")


def head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _frequencies(config: dict[str, Any]) -> Array:
    """Radians per position of each pair of channels, with the scalings "linear" and "llama3"
    (transformers, modeling_rope_utils.py)."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    d = head_dim(config)
    if not 1 <= d <= MAX_HEAD_DIM:
        raise UnsupportedError(f"head_dim is {d}; expected 1 to {MAX_HEAD_DIM}")
    if not 1 <= base < math.inf:
        raise UnsupportedError(f"rope_theta is {base}; expected a number from 1 on")
    w = base ** (-np.arange(0, d, 2, dtype=np.float64) / d)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return w
    if kind not in ("linear", "llama3"):
        raise UnsupportedError(
            f"rotary scaling {kind!r}; supported are 'default', 'linear' and 'llama3'"
        )
    factor = float(rope["factor"])
    if not 1 <= factor < math.inf:
        raise UnsupportedError(f"rotary scaling: factor is {factor}; expected 1 or more")
    if kind == "linear":
        return w / factor
    original = float(rope["original_max_position_embeddings"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    turns = original * w / (2 * math.pi)  # in the original context
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - smooth) * w / factor + smooth * w


# ---- Gemma 3 ------------------------------------------------------------------------------------

# What no text needs: markers of turns and images, reserved names.
_GEMMA_MARKERS = re.compile(
    r"<(pad|eos|bos|unk|mask|(start|end)_of_(turn|image)|image_soft_token|unused\d+)>"
    r"|\[multimodal\]"
)


def _gemma(
    config: dict[str, Any],
    tensors: dict[str, Array],
    tokenizer: dict[str, Any],
    name: str,
    licence: str,
    files: dict[str, str],
) -> Checkpoint:
    """What this family adds to Llama's: two rotations, a factor of embeddings, markers."""
    if config.get("use_bidirectional_attention"):
        raise UnsupportedError("use_bidirectional_attention: only causal attention is supported")
    for cap in ("final_logit_softcapping", "attn_logit_softcapping"):
        if config.get(cap):
            raise UnsupportedError(f"{cap} = {config[cap]!r} is not supported")
    scaling = config.get("rope_scaling")
    rope = config.get("rope_parameters") or {
        "full_attention": {"rope_theta": config.get("rope_theta") or 1e6, **(scaling or {})},
        "sliding_attention": {"rope_theta": config.get("rope_local_base_freq") or 1e4},
    }
    both = [
        _frequencies({**config, "rope_parameters": rope[kind]})
        for kind in ("full_attention", "sliding_attention")
    ]
    return Checkpoint(
        config,
        both[0],
        tensors,
        _without_markers(tokenizer),
        name,
        licence,
        files,
        both[1],
        _embedding_factor(config, tensors["embed_tokens.weight"]),
    )


def _without_markers(document: dict[str, Any]) -> dict[str, Any]:
    """Markers as special tokens, which have no bytes and match no text."""
    named = {t["content"]: t for t in document.get("added_tokens") or []}
    for text, i in document["model"]["vocab"].items():
        if _GEMMA_MARKERS.fullmatch(text):
            named[text] = {"id": i, **named.get(text, {}), "content": text, "special": True}
    return document | {"added_tokens": list(named.values())}


def _embedding_factor(config: dict[str, Any], embedding: Array) -> float:
    """sqrt(hidden_size), rounded to the embedding's type as transformers does: bfloat16, in which
    the family is trained, unless there are numbers that bfloat16 has not.  GGUF's quantized ones
    are of such checkpoints (config["embedding_quantized"])."""
    root = np.sqrt(np.float32(config["hidden_size"]))
    bits = embedding.view(np.uint32)
    if not config.get("embedding_quantized") and np.any(bits & 0xFFFF):
        return float(root)
    near = int(root.view(np.uint32))
    rounded = (near + 0x7FFF + (near >> 16 & 1)) & 0xFFFF0000  # to nearest, ties to even
    return float(np.uint32(rounded).view(np.float32))


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
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
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


# The sizes of values by their type (numbers and truth values); the types of strings and arrays.
_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_STRING, _GGUF_ARRAY = 8, 9
_MAX_GGUF_VALUES = 1 << 22  # four for each token of the largest vocabulary
_MAX_GGUF_NAMES = 1 << 14  # of keys, and of tensors


def _check_gguf(path: Path) -> None:
    """Refuse what would cost memory beyond measure: the library makes objects of a KB for each
    value that the file has, or only claims to have."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        order = "<" if data[4:6] != b"\0\0" else ">"  # the version, which is small
        try:
            tensors, keys = struct.unpack_from(order + "QQ", data, 8)
            if max(tensors, keys) > _MAX_GGUF_NAMES:
                raise UnsupportedError(
                    f"{path} claims {tensors} tensors and {keys} keys; at most {_MAX_GGUF_NAMES}"
                )
            _walk_gguf(data, order, keys)
        except (struct.error, OverflowError):
            raise UnsupportedError(f"{path} is cut off, or no GGUF file") from None


def _walk_gguf(data: mmap.mmap, order: str, keys: int) -> None:
    at, values = 24, 0
    for _ in range(keys):
        at = _skip_gguf(data, order, at, _GGUF_STRING, 1)
        kind, count = *struct.unpack_from(order + "I", data, at), 1
        at += 4
        if kind == _GGUF_ARRAY:
            kind, count = struct.unpack_from(order + "IQ", data, at)
            at += 12
        values += count
        if values > _MAX_GGUF_VALUES:
            raise UnsupportedError(f"the GGUF file has more than {_MAX_GGUF_VALUES} values")
        at = _skip_gguf(data, order, at, kind, count)


def _skip_gguf(data: mmap.mmap, order: str, at: int, kind: int, count: int) -> int:
    """What lies behind so many values of a kind."""
    if kind == _GGUF_STRING:
        for _ in range(count):
            at += 8 + struct.unpack_from(order + "Q", data, at)[0]
    elif kind in _GGUF_SIZES:
        at += count * _GGUF_SIZES[kind]
    else:
        raise UnsupportedError(f"the GGUF file has values of type {kind}, or arrays of arrays")
    if at > len(data):
        raise struct.error
    return at


def _read_gguf(path: Path) -> Checkpoint:
    try:
        import gguf
    except ImportError as error:
        raise LmzipError(
            f"{error.name or error} is missing; reading GGUF files needs it: "
            "pip install 'lmzip-codec[llm]'"
        ) from None
    _check_gguf(path)
    reader = gguf.GGUFReader(path)
    if sum(t.data.nbytes for t in reader.tensors) > path.stat().st_size:
        raise UnsupportedError(f"{path} has tensors that share bytes")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    family = fields["general.architecture"]
    _check_family(family, (*FAMILIES[:-1], "gemma3"))
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
    if family == "gemma3":
        config |= _gemma_config(about)
    for t in reader.tensors:
        weights = gguf.dequantize(t.data, t.tensor_type).astype(np.float32)
        if t.name == "rope_freqs.weight":  # divisors: how GGUF writes the scaling "llama3"
            frequencies = frequencies / weights
        else:
            tensors[_hugging_face_name(t.name, family)] = weights
        if t.name == "token_embd.weight":
            config["embedding_quantized"] = t.tensor_type.name not in ("F32", "BF16")
    if family in ("llama", "mistral"):
        _restore_half_split(tensors, config)
    licence = str(fields.get("general.license", ""))
    files = {path.name: _sha256(path)}
    tokenizer = _gguf_tokenizer(fields)
    if family == "gemma3":  # its norms are stored as what is multiplied with
        return _gemma(config, tensors, tokenizer, path.stem, licence, files)
    return Checkpoint(config, frequencies, tensors, tokenizer, path.stem, licence, files)


def _gemma_config(about: dict[str, Any]) -> dict[str, Any]:
    """As llama.cpp reads it, with what it knows beside the file."""
    layers = int(about["block_count"])
    heads = int(about["attention.head_count"])
    scalar = about["embedding_length"] / heads if layers == 62 else about["attention.key_length"]
    rope = {"rope_type": "default", "rope_theta": about.get("rope.freq_base", 1e6)}
    if about.get("rope.scaling.type", "none") == "linear":
        rope |= {"rope_type": "linear", "factor": about["rope.scaling.factor"]}
    return {
        "model_type": GEMMA,
        "query_pre_attn_scalar": scalar,  # of the 27B model, which has 62 layers, not head_dim
        "sliding_window_pattern": about.get("attention.sliding_window_pattern", 6),
        "final_logit_softcapping": about.get("final_logit_softcapping"),
        "attn_logit_softcapping": about.get("attn_logit_softcapping"),
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_theta": about.get("rope.freq_base_swa", 10000.0)},
        },
    }


def _hugging_face_name(name: str, family: str) -> str:
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
    theirs = _GGUF_NAMES[parts[2]]
    if family == "gemma3" and parts[2] == "ffn_norm":
        theirs = "pre_feedforward_layernorm"  # post_attention_layernorm really is behind attention
    return f"layers.{parts[1]}.{theirs}.{parts[3]}"


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
    if kind == "llama" and fields["general.architecture"] == "gemma3":
        return _sentencepiece_tokenizer(fields)
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
    return {
        "version": "1.0",
        "added_tokens": _added_tokens(tokens, kinds, {3: True, 5: True}),  # control, unused
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": fields["tokenizer.ggml.merges"],
        },
    }


def _added_tokens(
    tokens: list[str], kinds: list[int], special: dict[int, bool]
) -> list[dict[str, Any]]:
    """special: of the kinds (tokenizer.ggml.token_type) that are cut from a text before all."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": i, "content": token, "special": special[kinds[i]], **flags}
        for i, token in enumerate(tokens)
        if kinds[i] in special
    ]


def _sentencepiece_tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    """SentencePiece's BPE joins the two neighbors whose whole has the greatest score.  As a
    tokenizer.json: a list of such pairs, best first, as transformers writes it."""
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    scores = fields["tokenizer.ggml.scores"]
    if not len(tokens) == len(kinds) == len(scores):
        raise UnsupportedError("the GGUF file's tokens, token_type and scores differ in number")
    longest = max(map(len, tokens), default=0)
    if longest > MAX_TOKEN_SIZE:  # the pairs below take its square
        raise UnsupportedError(f"a token has {longest} characters; at most {MAX_TOKEN_SIZE}")
    vocab = {token: i for i, token in enumerate(tokens)}
    normal = {token: i for token, i in vocab.items() if kinds[i] == 1}
    merges = []
    for token, i in normal.items():
        pairs = [(token[:n], token[n:]) for n in range(1, len(token))]
        found = [(normal[a], normal[b], a, b) for a, b in pairs if a in normal and b in normal]
        merges += [(-scores[i], i, *pair) for pair in found]
    return {
        "version": "1.0",
        # control, unused; defined by the user: cut out as they are, the longest first
        "added_tokens": _added_tokens(tokens, kinds, {3: True, 5: True, 4: False}),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "fuse_unk": True,
            "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
            "vocab": vocab,
            "merges": [[a, b] for *_, a, b in sorted(merges)],
        },
    }
