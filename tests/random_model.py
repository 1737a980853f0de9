"""Models with random weights, for tests and measurements of the engines.

Scales are chosen so that no stage vanishes and few values reach their clamps: queries have a root
mean square near 1000 of 4095, values near 35 of 127, attention spans a few octaves, and every layer
adds to the residual stream about as much as the embedding gives.
"""

import math

import numpy as np
import numpy.typing as npt

from lmzip.model_file import Architecture, Array, ExactModel, NgramTable, check


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
    """A model that model_file.check() accepts; the same arguments give the same model.

    tests/native/random_model.h makes the same one, so that programs without Python can be checked
    against the reference: every number is a hash of seed, tensor and place, and every scale a small
    integer times a power of two.
    """
    tensors = {
        name: _tensor(
            architecture, name, dtype, shape, place_hashes(seed, index, int(np.prod(shape)))
        )
        for index, (name, (dtype, shape)) in enumerate(sorted(architecture.tensors().items()))
    }
    check(architecture, tensors)
    return ExactModel(architecture, tensors, {"name": f"random-{seed}"})


def place_hashes(seed: int, tensor: int, size: int) -> npt.NDArray[np.uint64]:
    """Splitmix64 of seed, tensor and place."""
    start = (seed * 0x9E3779B97F4A7C15 + tensor * 0xD1B54A32D192ED03) % (1 << 64)
    z = np.arange(size, dtype=np.uint64) * np.uint64(0x8CB92BA72F3D8DD7) + np.uint64(start)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _tensor(
    a: Architecture, name: str, dtype: str, shape: tuple[int, ...], hashes: npt.NDArray[np.uint64]
) -> Array:
    if dtype == "int8":  # nearly normal: four bytes added
        four = hashes.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :4]
        total = four.sum(axis=1, dtype=np.int64)
        return np.clip((total - 510) * 70 >> 8, -127, 127).astype(np.int8).reshape(shape)
    spread = 128 + (hashes & np.uint64(127)).astype(np.int64)  # 128..255
    if name.endswith(".scale"):
        exponents = _scale_exponents(a, name.split(".")[-2])
        return np.ldexp(spread.astype(np.float32), exponents).astype(np.float32)
    if name.endswith(".softmax"):
        factor = 1280 >> (a.head_dim.bit_length() // 2)
        return (factor * spread // 192).astype(np.int32)
    if name == "embedding.shift":
        return np.array([6] + [5] * (shape[0] - 1), np.int32)
    if name == "rotary.frequency":  # 2^32 / (2 pi), down by a thousand along the head
        pairs = a.head_dim // 2
        return np.array([683565276 >> (10 * j // pairs) for j in range(pairs)], np.uint32)
    angle = 2 * math.pi * np.arange(4096) / 4096
    return np.rint(2**14 * np.cos(angle)).astype(np.int16)


def _scale_exponents(a: Architecture, product: str) -> npt.NDArray[np.int64]:
    """Of two, for each output: the sum of n products grows as the square root of n."""
    heads = a.n_heads * a.head_dim
    inputs = {"out": heads, "down": a.d_ff}.get(product, a.d_model)
    base = {"qkv": -8, "out": -21, "up": -6, "down": -23, "head": -1}[product]
    exponent = base - inputs.bit_length() // 2
    if product != "qkv":
        return np.array([exponent])
    keys, values = (a.n_heads + a.n_kv_heads) * a.head_dim, a.n_kv_heads * a.head_dim
    return np.repeat([exponent, exponent + 1], [keys, values])
