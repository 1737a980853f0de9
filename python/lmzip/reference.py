"""The exact engine, readable: docs/numerics.md in NumPy, in its order and with its names.

This is the truth that every faster engine is compared with (==).  It evaluates one byte of each
lane at a time and is slow.  Integers are int64 here: the bounds of the document say where fewer
bits are enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmzip.model_file import Array, ExactModel

RESIDUAL_MAX = (1 << 23) - 1
LOGIT_MAX = 1 << 20
HASH_MULTIPLIER = 0x9E3779B1
EXP8 = np.array([255, 244, 234, 224, 214, 205, 197, 188, 180, 173, 165, 158, 152, 145, 139, 133])

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float32]


@dataclass
class State:
    """All that a set of lanes remembers.

    position: inputs seen so far; history: the last inputs, newest first, (lanes, 4) int64;
    keys, values: per layer (lanes, positions seen, n_kv_heads, head_dim) int8.
    """

    position: int
    history: Int
    keys: list[Array]
    values: list[Array]


def f(n: Array) -> Float:
    """Integers to binary32, round to nearest even."""
    return n.astype(np.float32)


def rint(a: Float, low: int, high: int) -> Int:
    """Clamp, then round to the nearest integer, ties to even."""
    return np.rint(np.clip(a, np.float32(low), np.float32(high))).astype(np.int64)


def quantize(x: Int, limit: int, low: int) -> tuple[Int, Int]:
    """Each row (last axis) to [low, limit], and its largest magnitude m (rows, 1)."""
    m = np.abs(x).max(axis=-1, keepdims=True)
    inverse = np.float32(limit) / f(np.maximum(m, 1))
    return rint(f(x) * inverse, low, limit), m


def quantize_row(x: Int, limit: int = 127) -> tuple[Int, Float]:
    """Residual rows (..., D) to integers and the scale r (..., 1) that makes their root mean
    square 1."""
    xq, m = quantize(x, limit, -limit)
    total = (xq * xq).sum(axis=-1, keepdims=True)
    r = np.sqrt(np.float32(x.shape[-1]) / f(np.maximum(total, 1)))
    return xq, np.where(m == 0, np.float32(0), r)


class ReferenceEngine:
    """Section 3 to 6 for any number of lanes in lockstep."""

    def __init__(self, model: ExactModel) -> None:
        self.model = model
        self.arch = model.architecture
        self.t: dict[str, Array] = {
            name: t.astype(np.int64) if t.dtype != np.float32 else t
            for name, t in model.tensors.items()
        }

    def start(self, lanes: int) -> State:
        a = self.arch
        empty = [np.zeros((lanes, 0, a.n_kv_heads, a.head_dim), np.int8) for _ in range(a.n_layers)]
        return State(0, np.zeros((lanes, 4), np.int64), list(empty), list(empty))

    def step(self, state: State, inputs: Array) -> npt.NDArray[np.int32]:
        """Feed one byte to each lane ((lanes,) uint8; 0 at position 0); logits (lanes, 256)
        int32."""
        state.history = np.concatenate(
            [inputs.astype(np.int64)[:, None], state.history[:, :3]], axis=1
        )
        x = self._embed(state.history)
        for i in range(self.arch.n_layers):
            x = self._attend(i, x, state)
            x = self._feed_forward(i, x)
        state.position += 1
        xq, r = quantize_row(x, 8191)
        acc = xq @ self.t["head.weight"].T
        logits = rint(f(acc) * r * self.t["head.scale"], -LOGIT_MAX, LOGIT_MAX)
        return logits.astype(np.int32)

    def _embed(self, history: Int) -> Int:
        shift = self.t["embedding.shift"]
        x: Int = self.t["embedding.byte"][history[:, 0]] << shift[0]
        for i, table in enumerate(self.arch.ngrams):
            key = (history[:, : table.order] << (8 * np.arange(table.order))).sum(axis=1)
            slot = (key * HASH_MULTIPLIER % (1 << 32)) >> (32 - table.log2_slots)
            channels = slice(table.offset, table.offset + table.width)
            x[:, channels] += self.t[f"embedding.ngram.{i}"][slot] << shift[i + 1]
        return np.clip(x, -RESIDUAL_MAX, RESIDUAL_MAX)

    def _attend(self, i: int, x: Int, state: State) -> Int:
        a, t = self.arch, self.t
        lanes, n_query = len(x), a.n_heads * a.head_dim
        n_key = a.n_kv_heads * a.head_dim
        xq, r = quantize_row(x)
        acc = xq @ t[f"layers.{i}.qkv.weight"].T
        s = t[f"layers.{i}.qkv.scale"]
        q8 = self._rotate(f(acc) * s, slice(0, n_query), state.position)  # (lanes, H, d)
        k8 = self._rotate(f(acc) * s, slice(n_query, n_query + n_key), state.position)
        v = f(acc[:, n_query + n_key :]) * r * s[n_query + n_key :]
        v8 = rint(v, -127, 127).reshape(lanes, a.n_kv_heads, a.head_dim)
        window = slice(-a.windows[i], None)
        for cache, row in ((state.keys, k8), (state.values, v8)):
            cache[i] = np.concatenate([cache[i], row[:, None].astype(np.int8)], axis=1)[:, window]
        p = self._average(i, q8, state.keys[i].astype(np.int64), state.values[i].astype(np.int64))
        pq, m = quantize(p, 127, -127)
        acc = pq @ t[f"layers.{i}.out.weight"].T
        return self._add(x, f(acc) * f(m) * t[f"layers.{i}.out.scale"])

    def _rotate(self, u_float: Float, channels: slice, position: int) -> Int:
        """Scaled products of one kind of head to int8, normalized and rotated: (lanes, heads,
        d)."""
        d = self.arch.head_dim
        u = rint(u_float[:, channels], -4095, 4095).reshape(len(u_float), -1, d)
        phase = position * self.t["rotary.frequency"] % (1 << 32)
        index = ((phase + (1 << 19)) % (1 << 32)) >> 20
        c = self.t["rotary.cosine"][index]
        z = self.t["rotary.cosine"][(index + 3072) % 4096]
        even, odd = u[..., 0::2], u[..., 1::2]
        v = np.stack([even * c - odd * z, even * z + odd * c], axis=-1).reshape(u.shape)
        total = (u * u).sum(axis=-1, keepdims=True)
        g = np.sqrt(np.float32(d) / f(np.maximum(total, 1))) * np.float32(2.0**-9)
        return rint(f(v) * np.where(total == 0, np.float32(0), g), -127, 127)

    def _average(self, i: int, q8: Int, keys: Int, values: Int) -> Int:
        """Attention over the cache (lanes, positions, G, d) -> p (lanes, H d)."""
        group = self.arch.n_heads // self.arch.n_kv_heads
        keys, values = np.repeat(keys, group, axis=2), np.repeat(values, group, axis=2)
        score = np.einsum("lhd,ljhd->lhj", q8, keys)
        gap = np.minimum(score.max(axis=-1, keepdims=True) - score, (1 << 19) - 1)
        a = (gap * self.t[f"layers.{i}.softmax"][:, None]) >> 16
        e = np.where(a < 128, EXP8[a & 15] >> np.minimum(a >> 4, 8), 0)
        o = np.einsum("lhj,ljhd->lhd", e, values)
        normalizer = e.sum(axis=-1, keepdims=True)
        p = rint(f(o) * (np.float32(256) / f(normalizer)), -32767, 32767)
        return p.reshape(len(p), -1)

    def _feed_forward(self, i: int, x: Int) -> Int:
        t = self.t
        xq, r = quantize_row(x)
        acc = xq @ t[f"layers.{i}.up.weight"].T
        u = rint(f(acc) * t[f"layers.{i}.up.scale"], 0, 32767)
        hq, m = quantize(u * u, 255, 0)
        acc = hq @ t[f"layers.{i}.down.weight"].T
        y: Float = f(acc) * (f(m) * r * r) * t[f"layers.{i}.down.scale"]
        return self._add(x, y)

    @staticmethod
    def _add(x: Int, y: Float) -> Int:
        total = x + rint(y, -RESIDUAL_MAX, RESIDUAL_MAX)
        return np.asarray(np.clip(total, -RESIDUAL_MAX, RESIDUAL_MAX), np.int64)
