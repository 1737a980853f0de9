"""Llama models with random weights, for tests of the engines: small, and with everything.

Weights and scales are such that queries, values and the residual stream have the sizes of real
models: logits of a few bits, attention over a few octaves.
"""

import json
import math

import numpy as np

from lmzip.import_model import rotary_cosine, sigmoid_table
from lmzip.llama_model import LlamaArchitecture, LlamaModel, check
from lmzip.model_file import Array
from lmzip.tokenization import byte_symbols

VOCABULARY = 300


def small_llama(**changes: object) -> LlamaArchitecture:
    """The least that has everything: two layers, grouped heads, windows, sinks."""
    fields: dict[str, object] = {
        "vocabulary": VOCABULARY,
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 32,
        "d_ff": 96,
        "windows": (5, 24),
        "sinks": (2, 4),
        "epsilon": 1e-5,
    }
    return LlamaArchitecture(**{**fields, **changes})  # type: ignore[arg-type]


def random_llama(architecture: LlamaArchitecture, seed: int) -> LlamaModel:
    """A model that llama_model.check() accepts; the same arguments give the same model."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for name, (dtype, shape) in architecture.tensors().items():
        tensors[name] = _tensor(architecture, rng, name, dtype, shape)
    tokens = token_table(architecture)
    tensors["tokens.size"] = np.array([len(t) for t in tokens], np.uint16)
    tensors["tokens.bytes"] = np.frombuffer(b"".join(tokens), np.uint8)
    tensors["tokenizer"] = np.frombuffer(json.dumps(tokenizer(tokens)).encode(), np.uint8)
    check(architecture, tensors)
    return LlamaModel(architecture, tensors, {"name": f"random-llama-{seed}"})


def _tensor(
    a: LlamaArchitecture, rng: np.random.Generator, name: str, dtype: str, shape: tuple[int, ...]
) -> Array:
    if dtype == "int8":
        return np.clip(np.rint(rng.normal(0, 40, shape)), -127, 127).astype(np.int8)
    if name.endswith("norm"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith(".bias"):
        return rng.integers(-4096, 4097, shape).astype(np.int32)
    if name == "softmax":
        return np.float32([32 * math.log2(math.e) / math.sqrt(a.head_dim)])
    if name == "sigmoid":
        return sigmoid_table()
    if name in ("rotary.frequency", "rotary.local_frequency"):
        base = 100.0 if "local" in name else 10000.0
        turns = base ** (-np.arange(shape[0]) / shape[0]) / (2 * math.pi)
        return np.rint(turns * 2.0**32).astype(np.uint32)
    if name == "rotary.cosine":
        return rotary_cosine()
    if name == "tokens.size":
        return np.zeros(shape, np.uint16)
    inputs = {"out": a.n_heads * a.head_dim, "down": a.d_ff}.get(name.split(".")[-2], a.d_model)
    unit = {"embedding": 1 / 40, "head": 500 / 40 / math.sqrt(inputs)}.get(
        name.split(".")[0], 1 / 40 / math.sqrt(inputs)
    )
    return (unit * rng.uniform(0.7, 1.4, shape)).astype(np.float32)


def token_table(a: LlamaArchitecture) -> list[bytes]:
    """Token 0 is special; most bytes; then pairs of letters.  Some bytes cannot be spelled."""
    tokens = [b"", *(bytes([b]) for b in range(256) if b not in (4, 6, 0xC0, 0xFF))]
    pairs = [a + b for a in (b"e", b"t", b" ", b"a") for b in (b"e", b"t", b" ", b"a", b"n")]
    tokens += pairs[: max(0, a.vocabulary - len(tokens))]
    return (tokens + [b""] * a.vocabulary)[: a.vocabulary]


def tokenizer(tokens: list[bytes]) -> dict[str, object]:
    """A byte-level tokenizer.json of these tokens."""
    symbols = {b: c for c, b in byte_symbols().items()}
    vocab = {"".join(symbols[b] for b in t): i for i, t in enumerate(tokens) if t}
    merges = [f"{text[0]} {text[1]}" for text in vocab if len(text) == 2]
    pre = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": pre,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def gemma_pieces() -> list[tuple[str, int, float]]:
    """A small vocabulary like Gemma's: text, kind and score as GGUF has them.  Kinds: 1 normal,
    3 control, 4 defined by the user, 6 byte."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<unused0>", "<start_of_turn>"]
    user = ["[multimodal]", "\n", "\n\n", "  ", "   ", "<b>", "<start_of_image>"]
    normal = ["th", "an", "the", "\u2581the", "\u2581th", "\u2581", *"thean<b>/"]
    normal = list(dict.fromkeys(normal))
    return [
        *((text, 3, -1000.0) for text in control),
        *((text, 4, -1000.0) for text in user),
        *((f"<0x{b:02X}>", 6, -1000.0) for b in range(256)),
        *((text, 1, -float(i)) for i, text in enumerate(normal)),
    ]


def gemma_tokenizer() -> dict[str, object]:
    """The tokenizer.json of gemma_pieces(), as Hugging Face's: only a few markers are special, and
    spaces are written as U+2581 everywhere."""
    pieces = gemma_pieces()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    names = [text.replace(" ", "\u2581") if kind == 4 else text for text, kind, _ in pieces]
    added = [i for i, (_, kind, _) in enumerate(pieces) if kind in (3, 4) and i != 5]
    merges = ["\u2581 \u2581", "\u2581\u2581 \u2581", "\u2581 \u2581\u2581", "\n \n"]
    merges += ["t h", "a n", "th e", "\u2581 the", "\u2581th e", "\u2581 th"]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": names[i], "special": i < 5, **flags}
            for i in added  # the unused one is in the vocabulary alone
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {name: i for i, name in enumerate(names)},
            "merges": merges,
        },
    }
