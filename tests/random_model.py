"""Models with random weights, for tests and measurements of the engines.

Scales are chosen so that no stage vanishes and few values reach their clamps: queries have a root
mean square near 1000 of 4095, values near 35 of 127, attention spans a few octaves, and every layer
changes the residual stream by about a quarter of its size.
"""

import math

import numpy as np

from lmzip.model_file import Architecture, Array, ExactModel, NgramTable, check

WEIGHT = 40.0  # root mean square of the weights, and nearly that of quantized rows


def small_architecture(**changes: object) -> Architecture:
    """The least that has everything: two layers, grouped heads, windows, two n-gram tables."""
    fields: dict[str, object] = {
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 2,
        "n_kv_heads": 1,
        "head_dim": 16,
        "d_ff": 64,
        "windows": (5, 16),
        "ngrams": (NgramTable(2, 6, 0, 16), NgramTable(3, 7, 16, 16)),
    }
    return Architecture(**{**fields, **changes})  # type: ignore[arg-type]


def bundled_architecture() -> Architecture:
    """About 0.8 M weights in products: the size of the model that is trained on two cores."""
    ngrams = tuple(NgramTable(order, 14, 64 * (order % 2), 64) for order in (2, 3, 4))
    return Architecture(128, 4, 4, 2, 32, 512, (32, 64, 128, 256), ngrams)


def large_architecture() -> Architecture:
    """About 3 M weights in products."""
    ngrams = tuple(NgramTable(order, 15, 64 * (order - 2), 64) for order in (2, 3, 4))
    return Architecture(256, 5, 8, 2, 32, 768, (32, 64, 128, 256, 512), ngrams)


def random_model(architecture: Architecture, seed: int) -> ExactModel:
    """A model that model_file.check() accepts; the same arguments give the same model."""
    rng = np.random.default_rng(seed)
    scales = _scales(architecture)
    tensors = {
        name: _tensor(name, dtype, shape, rng, scales)
        for name, (dtype, shape) in architecture.tensors().items()
    }
    _set_rotary(architecture, tensors)
    check(architecture, tensors)
    return ExactModel(architecture, tensors, {"name": f"random-{seed}"})


def _scales(a: Architecture) -> dict[str, Array]:
    """The mean scale of each product's outputs, by the last part but one of the tensor's name."""
    product = WEIGHT * math.sqrt(a.d_model)  # of a row whose root mean square is 1
    heads = a.n_heads * a.head_dim
    keys = (a.n_heads + a.n_kv_heads) * a.head_dim
    values = a.n_kv_heads * a.head_dim
    down = math.sqrt(a.d_ff) * WEIGHT * 35 * 4.5e4
    return {
        "qkv": np.repeat([1000 / (product * WEIGHT), 35 / product], [keys, values]),
        "out": np.array(1000 / (math.sqrt(heads) * WEIGHT * WEIGHT * 1e4)),
        "up": np.array(3000 / (product * WEIGHT)),
        "down": np.array(1000 / down),
        "head": np.array(2048 / product),
        "softmax": np.array(1280 / math.sqrt(a.head_dim)),
    }


def _tensor(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    scales: dict[str, Array],
) -> Array:
    if dtype == "int8":
        return np.clip(np.rint(rng.normal(0, WEIGHT, shape)), -127, 127).astype(np.int8)
    if name == "embedding.shift":
        return np.array([6] + [5] * (shape[0] - 1), np.int32)
    if name.endswith(".scale"):
        return (scales[name.split(".")[-2]] * rng.uniform(0.5, 1.5, shape)).astype(np.float32)
    if name.endswith(".softmax"):
        factor = scales["softmax"] * rng.uniform(0.5, 1.5, shape)
        return np.clip(factor, 1, 4095).astype(np.int32)
    return np.zeros(shape, dtype)


def _set_rotary(a: Architecture, tensors: dict[str, Array]) -> None:
    turns = a.rotary_base ** (-2 * np.arange(a.head_dim // 2) / a.head_dim) / (2 * math.pi)
    tensors["rotary.frequency"] = np.rint(turns * 2**32).astype(np.uint32)
    angle = 2 * math.pi * np.arange(4096) / 4096
    tensors["rotary.cosine"] = np.rint(2**14 * np.cos(angle)).astype(np.int16)
