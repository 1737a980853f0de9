"""`lmzip models import`: a checkpoint of the Llama family -> an exact int8 model file.

checkpoint.py reads it, quantize() makes the model file of it.  This is the only place where floats
become integers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lmzip.checkpoint import GEMMA, Checkpoint, head_dim, read_checkpoint
from lmzip.errors import LimitError, LmzipError, UnsupportedError
from lmzip.hadamard import spread_embeddings, spread_layer
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

# What Python, NumPy and gguf raise where a stranger's JSON or GGUF has other types or sizes.
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)
DEFAULT_WINDOW = 1024
DEFAULT_SINKS = 4
MAX_LAYERS = 256
WIDE_AFTER_HADAMARD = ("down",)  # what hadamard.py cannot reach: it is between two products


def import_checkpoint(source: str | Path, *, window: int = DEFAULT_WINDOW) -> LlamaModel:
    """Read and quantize.  UnsupportedError also for a checkpoint that is not what it should be."""
    try:
        return quantize(read_checkpoint(source), window=window)
    except MemoryError:
        raise LimitError(
            f"{source} needs more memory than there is to be imported, about 12 bytes a parameter; "
            "where there is more, the same model file comes out"
        ) from None
    except _MALFORMED as error:
        if isinstance(error, LmzipError):
            raise
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UnsupportedError(f"{source} is not a checkpoint that can be read: {what}") from error


def quantize(
    checkpoint: Checkpoint,
    *,
    window: int = DEFAULT_WINDOW,
    sinks: int = DEFAULT_SINKS,
    hadamard: bool = True,
    wide: Iterable[str] | None = None,
) -> LlamaModel:
    """The exact model.

    hadamard: spread outliers first (hadamard.py); without effect on Gemma 3, whose gains behind
    products no turn can pass.  wide: the products whose inputs have 14 bits instead of 8.

    Raises UnsupportedError, naming it, for a tensor that the family should not have.
    """
    gemma = checkpoint.config["model_type"] == GEMMA
    hadamard = hadamard and not gemma
    if wide is None:
        wide = WIDE_AFTER_HADAMARD if hadamard else WIDE_INPUTS
    arch = _architecture(checkpoint, window, sinks, tuple(wide))
    source = dict(checkpoint.tensors)
    if arch.tied:
        source.pop("lm_head.weight", None)
    if hadamard:
        spread_embeddings(source)
        arch = replace(arch, tied=False)
    embedding, embedding_scale = quantize_rows(source.pop("embed_tokens.weight"))
    scalar = float(checkpoint.config.get("query_pre_attn_scalar", 256)) if gemma else arch.head_dim
    if not 1 <= scalar <= 65536:
        raise UnsupportedError(f"query_pre_attn_scalar is {scalar}; expected 1 to 65536")
    tensors: dict[str, Array] = {
        "embedding.weight": embedding,
        "embedding.scale": _scale(embedding_scale * checkpoint.embedding_factor),
        "head.norm": source.pop("norm.weight"),
        "rotary.frequency": _turns(checkpoint.frequencies),
        "rotary.cosine": rotary_cosine(),
        "softmax": np.array([32 * math.log2(math.e) / math.sqrt(scalar)], np.float32),
        "sigmoid": gelu_table() if gemma else sigmoid_table(),
    }
    if checkpoint.local_frequencies is not None:
        tensors["rotary.local_frequency"] = _turns(checkpoint.local_frequencies)
    head_scale = embedding_scale
    if not arch.tied:
        tensors["head.weight"], head_scale = quantize_rows(source.pop("lm_head.weight"))
    tensors["head.scale"] = _scale(head_scale * (1024 * math.log2(math.e)))
    for i in range(arch.n_layers):
        if hadamard:
            spread_layer(source, f"layers.{i}.", arch.n_heads, arch.n_kv_heads)
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
    if not 1 <= layers <= MAX_LAYERS:
        raise UnsupportedError(f"num_hidden_layers is {layers}; expected 1 to {MAX_LAYERS}")
    windows, all_sinks = [window] * layers, [sinks] * layers
    sliding_windows = _sliding_windows(config, layers)
    for i, sliding in enumerate(sliding_windows):
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
        head_dim=head_dim(config),
        d_ff=int(config["intermediate_size"]),
        windows=tuple(windows),
        sinks=tuple(all_sinks),
        epsilon=float(config["rms_norm_eps"]),
        qk_norm="layers.0.self_attn.q_norm.weight" in tensors,
        tied=tied,
        wide=wide,
        start=start,
        escape=start,
        post_norms=config["model_type"] == GEMMA,
        local=tuple(w is not None for w in sliding_windows)
        if checkpoint.local_frequencies is not None
        else (),
    )


def _sliding_windows(config: dict[str, Any], layers: int) -> list[int | None]:
    """Of each layer, None where attention is not limited."""
    size = config.get("sliding_window")
    if config["model_type"] == GEMMA:
        return _gemma_windows(config, layers)
    if not size or config.get("use_sliding_window") is False:
        return [None] * layers
    kinds = config.get("layer_types")
    if kinds:
        return [size if kind == "sliding_attention" else None for kind in kinds]
    if config["model_type"].startswith("qwen"):  # the first layers see everything
        return [size if i >= config.get("max_window_layers", 0) else None for i in range(layers)]
    return [size] * layers


def _gemma_windows(config: dict[str, Any], layers: int) -> list[int | None]:
    """Five layers with a window, then one without, unless the config says otherwise."""
    size, pattern = config.get("sliding_window"), config.get("sliding_window_pattern", 6)
    if not (isinstance(size, int) and size >= 1):
        raise UnsupportedError(f"sliding_window is {size!r}; expected an integer above 0")
    if not (isinstance(pattern, int) and pattern >= 1):
        raise UnsupportedError(f"sliding_window_pattern is {pattern!r}; expected one above 0")
    sliding, full = "sliding_attention", "full_attention"
    kinds = config.get("layer_types")
    kinds = kinds or [full if (i + 1) % pattern == 0 else sliding for i in range(layers)]
    if len(kinds) != layers or not all(kind in (sliding, full) for kind in kinds):
        raise UnsupportedError(f"layer_types must be {layers} of {sliding!r} and {full!r}")
    return [size if kind == sliding else None for kind in kinds]


def _quantize_layer(
    arch: LlamaArchitecture, i: int, source: dict[str, Array], tensors: dict[str, Array]
) -> None:
    ours, theirs = f"layers.{i}.", f"layers.{i}.self_attn."
    mlp = f"layers.{i}.mlp."
    norms = {"attention.norm": "input", "mlp.norm": "post_attention"}
    if arch.post_norms:
        norms |= {"attention.post_norm": "post_attention", "mlp.norm": "pre_feedforward"}
        norms["mlp.post_norm"] = "post_feedforward"
    for name, theirs_name in norms.items():
        tensors[ours + name] = source.pop(f"{ours}{theirs_name}_layernorm.weight")
    qkv = np.concatenate([source.pop(f"{theirs}{name}_proj.weight") for name in "qkv"])
    bias = np.zeros(len(qkv))
    if theirs + "q_proj.bias" in source:
        bias = np.concatenate([source.pop(f"{theirs}{name}_proj.bias") for name in "qkv"])
    tensors[ours + "qkv.bias"] = np.clip(np.rint(bias * 4096), -MAX_BIAS, MAX_BIAS).astype(np.int32)
    if arch.qk_norm:
        q, k = (source.pop(f"{theirs}{name}_norm.weight") for name in "qk")
        if arch.post_norms:
            q, k = balance(q, k)
        tensors[ours + "q.norm"], tensors[ours + "k.norm"] = q, k
    products = {
        "qkv": qkv,
        "out": source.pop(theirs + "o_proj.weight"),
        "gate_up": np.concatenate([source.pop(f"{mlp}{n}_proj.weight") for n in ("gate", "up")]),
        "down": source.pop(mlp + "down_proj.weight"),
    }
    for name, weights in products.items():
        tensors[f"{ours}{name}.weight"], tensors[f"{ours}{name}.scale"] = quantize_rows(weights)


def balance(q: Array, k: Array) -> tuple[Array, Array]:
    """Gains of queries and keys, the greater of which gives to the other.

    Their products stay, and with them all that attention says; but each head has 8 bits behind its
    rotation, and a channel with a great gain leaves few of them to the others.  Both channels of a
    rotary pair change alike, by a power of two, which rounds nothing.
    """
    sizes = [np.sqrt((g.astype(np.float64).reshape(2, -1) ** 2).mean(axis=0)) for g in (q, k)]
    ratio = np.maximum(sizes[1], 0.01) / np.maximum(sizes[0], 0.01)
    factor = np.tile(np.exp2(np.rint(np.log2(ratio) / 2)), 2).astype(np.float32)
    return q * factor, k / factor


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
    return _sigmoid(_table_places())


def gelu_table() -> Array:
    """gelu(x) / x, in the form with tanh, which is a sigmoid of a polynomial."""
    x = _table_places()
    return _sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))


def _table_places() -> Array:
    return (np.arange(SIGMOID_SIZE) - SIGMOID_SIZE // 2) / 256


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) is infinite where the result is 0
        return np.minimum(np.rint(65536 / (1 + np.exp(-x))), 65535).astype(np.uint16)


def _turns(frequencies: Array) -> Array:
    """Radians per position -> turns, in units of 2^-32."""
    return np.rint(frequencies / (2 * math.pi) * 2.0**32).astype(np.uint32)
