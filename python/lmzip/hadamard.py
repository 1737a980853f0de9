"""Hadamard transforms that spread a network's outliers, before its numbers become integers.

In: float weights of a Llama checkpoint, by Hugging Face's names.  Out: other weights of the same
function.  A network with root-mean-square norms computes the same when every vector of its residual
stream is turned by an orthogonal matrix Q, once the gains of the norms are moved into the products
behind them: |x Q| = |x|, and (x Q) (W Q)^T = x W^T.  Likewise the values of a head, between the
product that makes them and the one that takes their averages.  After the turn no channel is much
greater than the others, and 8 bits are enough where 14 were needed (QuaRot: Ashkboos et al. 2024,
arXiv 2404.00456; docs/numerics-llama.md section 8).

Q is diagonal signs times Hadamard matrices of 2^k along the diagonal, 2^k being the greatest power
of two that divides the size.  It is made of additions, in an order that is fixed, and of one
multiplication: what is computed is the same on every machine, and so is the model's SHA-256.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

from lmzip.model_file import Array


def spread(rows: Array) -> Array:
    """rows @ Q, of float32 rows (..., d)."""
    d = rows.shape[-1]
    block = d & -d
    x = np.ascontiguousarray(rows * _signs(d), np.float32).reshape(-1, block)
    half = 1
    while half < block:
        pairs = x.reshape(-1, 2, half)
        a, b = pairs[:, 0], pairs[:, 1]
        difference = a - b
        a += b
        b[:] = difference
        half *= 2
    x *= np.float32(1 / math.sqrt(block))
    return x.reshape(rows.shape)


def _signs(d: int) -> Array:
    """Without them, what all channels have in common would gather in one."""
    bits = np.unpackbits(np.frombuffer(hashlib.shake_128(b"lmzip").digest(d // 8 + 1), np.uint8))
    return np.where(bits[:d], np.float32(1), np.float32(-1))


def spread_embeddings(tensors: dict[str, Array]) -> None:
    """Turn what begins the residual stream and what reads its end, which are two from now on."""
    embedding, gain = tensors["embed_tokens.weight"], tensors["norm.weight"]
    tensors["lm_head.weight"] = spread(tensors.get("lm_head.weight", embedding) * gain)
    tensors["embed_tokens.weight"] = spread(embedding)
    tensors["norm.weight"] = np.ones_like(gain)


def spread_layer(tensors: dict[str, Array], layer: str, n_heads: int, n_kv_heads: int) -> None:
    """Turn the residual stream and the values of one layer ("layers.0.")."""
    readers = {
        "input_layernorm": [f"self_attn.{name}_proj" for name in "qkv"],
        "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
    }
    for norm, products in readers.items():
        gain = tensors[f"{layer}{norm}.weight"]
        for product in products:
            tensors[f"{layer}{product}.weight"] = spread(tensors[f"{layer}{product}.weight"] * gain)
        tensors[f"{layer}{norm}.weight"] = np.ones_like(gain)
    for product in ("self_attn.o_proj", "mlp.down_proj"):
        name = f"{layer}{product}.weight"
        tensors[name] = spread(tensors[name].T).T
    attention = f"{layer}self_attn."
    tensors[attention + "o_proj.weight"] = _spread_heads(
        tensors[attention + "o_proj.weight"], n_heads
    )
    for name in (attention + "v_proj.weight", attention + "v_proj.bias"):
        if name in tensors:
            tensors[name] = _spread_heads(tensors[name].T, n_kv_heads).T


def _spread_heads(rows: Array, heads: int) -> Array:
    """Each head's part of the last axis by itself."""
    return spread(rows.reshape(*rows.shape[:-1], heads, -1)).reshape(rows.shape)
