"""The exact engine for pretrained models, readable: docs/numerics-llama.md in NumPy.

This is the truth that llama_engine.cpp is compared with (==), in the order of the document and
with its names.  It evaluates one token of each lane at a time and is slow.  Integers are int64
here: the bounds of the document say where fewer bits are enough.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lmzip.llama_model import LlamaModel
from lmzip.model_file import Array
from lmzip.reference import LOGIT_MAX, Float, Int, f, rint

RESIDUAL_MAX = (1 << 30) - 64
TINY = np.float32(2.0**-100)
POST_LIMIT = 1 << 22
MIN_UNIT, MAX_UNIT = np.float32(2.0**-40), np.float32(2.0**60)
MAX_EPSILON = 1 << 60
# fmt: off
EXP16 = np.array([  # round(65535 * 2^(-i/32))
    65535, 64131, 62757, 61412, 60096, 58808, 57548, 56315, 55108, 53927, 52772,
    51641, 50534, 49452, 48392, 47355, 46340, 45347, 44376, 43425, 42494, 41584,
    40693, 39821, 38967, 38132, 37315, 36516, 35733, 34968, 34218, 33485,
])
# fmt: on


def limit(inputs: int, wide: bool, most: int = 8191) -> int:
    """The greatest input for which a product of so many inputs cannot overflow."""
    return min(most, ((1 << 31) - 1) // (127 * inputs)) if wide else 127


def quantize(y: Float, largest: int) -> tuple[Int, Float]:
    """Rows of floats (last axis) to integers in [-largest, largest] and the scale r (..., 1)."""
    m = np.abs(y).max(axis=-1, keepdims=True)
    zero = m < TINY
    inverse = (np.float32(largest) / np.where(zero, np.float32(1), m)).astype(np.float32)
    q = np.where(zero, 0, rint(y * inverse, -largest, largest))
    return q, np.where(zero, np.float32(0), m / np.float32(largest))


@dataclass
class LlamaState:
    """What a set of lanes remembers: per layer, for every position seen, keys and values
    (lanes, positions, n_kv_heads, head_dim) int8 and their scales (lanes, positions, n_kv_heads)
    float32.  position: tokens seen so far."""

    position: int = 0
    keys: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    key_scales: list[Array] = field(default_factory=list)
    value_scales: list[Array] = field(default_factory=list)


class LlamaReference:
    """Sections 3 to 6 for any number of lanes in lockstep."""

    def __init__(self, model: LlamaModel) -> None:
        self.model = model
        self.arch = model.architecture
        self.residual = np.float32(1 << self.arch.residual_bits)
        self.t: dict[str, Array] = {
            name: t.astype(np.int64) if t.dtype != np.float32 else t
            for name, t in model.tensors.items()
        }

    def start(self, lanes: int) -> LlamaState:
        a = self.arch
        cache = [np.zeros((lanes, 0, a.n_kv_heads, a.head_dim), np.int8)] * a.n_layers
        scales = [np.zeros((lanes, 0, a.n_kv_heads), np.float32)] * a.n_layers
        return LlamaState(0, list(cache), list(cache), list(scales), list(scales))

    def step(self, state: LlamaState, tokens: Array) -> npt.NDArray[np.int32]:
        """Feed one token to each lane ((lanes,); the start token at position 0); logits
        (lanes, vocabulary) int32."""
        x = rint(
            f(self.t["embedding.weight"][tokens])
            * (self.t["embedding.scale"][tokens] * self.residual)[:, None],
            -RESIDUAL_MAX,
            RESIDUAL_MAX,
        )
        for i in range(self.arch.n_layers):
            x = self._attend(i, x, state)
            x = self._feed_forward(i, x)
        state.position += 1
        xq, r = self._normalize(x, "head.norm", "head")
        weights = self.t["embedding.weight" if self.arch.tied else "head.weight"]
        logits = rint(f(xq @ weights.T) * r * self.t["head.scale"], -LOGIT_MAX, LOGIT_MAX)
        unused = self.t["tokens.size"] == 0
        unused[self.arch.escape] = False
        return np.where(unused, -LOGIT_MAX, logits).astype(np.int32)

    def _normalize(self, x: Int, norm: str, product: str) -> tuple[Int, Float]:
        """Root-mean-square normalization with gain, and quantization."""
        d = self.arch.d_model
        xq, q = quantize(f(x) * self.t[norm], limit(d, product in self.arch.wide))
        m = np.abs(x).max(axis=-1, keepdims=True)
        s = np.array([max(0, int(v).bit_length() - 24) for v in m[:, 0]])[:, None]
        total = ((x >> s) ** 2).sum(axis=-1, keepdims=True) + (self.arch.epsilon_units() >> 2 * s)
        root = np.sqrt(np.float32(d) / f(np.maximum(total, 1))) * np.ldexp(np.float32(1), -s)
        return xq, q * root

    def _product(self, name: str, xq: Int) -> Float:
        return f(xq @ self.t[f"{name}.weight"].T)

    def _attend(self, i: int, x: Int, state: LlamaState) -> Int:
        a, layer = self.arch, f"layers.{i}."
        n_query, n_key = a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim
        xq, r = self._normalize(x, layer + "attention.norm", "qkv")
        y = self._product(layer + "qkv", xq) * (r * np.float32(4096)) * self.t[layer + "qkv.scale"]
        u = rint(y, -(1 << 24), 1 << 24) + self.t[layer + "qkv.bias"]
        u = u.reshape(len(x), -1, a.head_dim)
        queries, keys = u[:, : a.n_heads], u[:, a.n_heads : a.n_heads + a.n_kv_heads]
        values = u[:, a.n_heads + a.n_kv_heads :]
        assert n_query + 2 * n_key == u[0].size

        turns = self.t["rotary.local_frequency" if any(a.local[i : i + 1]) else "rotary.frequency"]
        k8, k_scale = self._rotate(*self._level(layer + "k.norm", keys), turns, state.position)
        v8, v_scale = quantize(f(values), 127)
        for cache, row in (
            (state.keys, k8.astype(np.int8)),
            (state.values, v8.astype(np.int8)),
            (state.key_scales, k_scale[..., 0]),
            (state.value_scales, v_scale[..., 0] * np.float32(2.0**-12)),
        ):
            cache[i] = np.concatenate([cache[i], row[:, None]], axis=1)

        leveled = self._level(layer + "q.norm", queries)
        near = self._rotate(*leveled, turns, state.position)
        far = self._rotate(*leveled, turns, min(state.position, a.windows[i] + a.sinks[i] - 1))
        pq, r = quantize(
            self._average(i, near, far, state).reshape(len(x), -1),
            limit(n_query, "out" in a.wide),
        )
        return self._project(x, layer + "attention", layer + "out", pq, r * self.residual)

    def _level(self, norm: str, u: Int) -> tuple[Int, Float]:
        """Heads (lanes, heads, d) to 14 bits and their scale (lanes, heads, 1)."""
        if not self.arch.qk_norm:
            t, r = quantize(f(u), 8191)
            return t, r * np.float32(2.0**-12)
        d = self.arch.head_dim
        t, r = quantize(f(u) * self.t[norm], 8191)
        total = (u * u).sum(axis=-1, keepdims=True) + self.arch.head_epsilon_units()
        return t, r * np.sqrt(np.float32(d) / f(np.maximum(total, 1)))

    def _rotate(self, t: Int, scale: Float, turns: Array, position: int) -> tuple[Int, Float]:
        """To int8 with rotary positions, of `turns` (2^-32) each."""
        half = self.arch.head_dim // 2
        phase = position * turns % (1 << 32)
        index = ((phase + (1 << 19)) % (1 << 32)) >> 20
        c = self.t["rotary.cosine"][index]
        z = self.t["rotary.cosine"][(index + 3072) % 4096]
        a, b = t[..., :half], t[..., half:]
        v = np.concatenate([a * c - b * z, b * c + a * z], axis=-1)
        m = np.abs(v).max(axis=-1, keepdims=True)
        v8 = rint(f(v) * (np.float32(127) / f(np.maximum(m, 1))), -127, 127)
        return v8, scale * np.float32(2.0**-14) * (f(m) / np.float32(127))

    def _average(
        self, i: int, near: tuple[Int, Float], far: tuple[Int, Float], state: LlamaState
    ) -> Float:
        """Attention over the cache: (lanes, n_heads, head_dim)."""
        a, softmax = self.arch, self.t["softmax"][0]
        group, window, sinks = a.n_heads // a.n_kv_heads, a.windows[i], a.sinks[i]
        t = state.position
        positions = [j for j in range(t + 1) if j < sinks or j > t - window]
        is_sink = np.array([j < sinks for j in positions])

        def cached(rows: list[Array]) -> Array:
            return np.repeat(rows[i][:, positions], group, axis=2)

        keys, values = cached(state.keys).astype(np.int64), cached(state.values).astype(np.int64)
        k_scale, v_scale = cached(state.key_scales), cached(state.value_scales)
        score = []
        for q8, q_scale in (far, near):
            dot = np.einsum("lhd,ljhd->lhj", q8, keys)
            factor = (q_scale * softmax) * k_scale.transpose(0, 2, 1)
            score.append(rint(f(dot) * factor, -(1 << 24), 1 << 24))
        u = np.where(is_sink, score[0], score[1])
        gap = u.max(axis=-1, keepdims=True) - u
        e = EXP16[gap & 31] >> np.minimum(gap >> 5, 16)
        slots = window + sinks
        w, r = quantize(f(e) * v_scale.transpose(0, 2, 1), limit(slots, True, 16383))
        o = np.einsum("lhj,ljhd->lhd", w, values)
        p: Float = f(o) * (r / f(e.sum(axis=-1, keepdims=True)))
        return p

    def _feed_forward(self, i: int, x: Int) -> Int:
        a, layer = self.arch, f"layers.{i}."
        xq, r = self._normalize(x, layer + "mlp.norm", "gate_up")
        acc = self._product(layer + "gate_up", xq)
        s = self.t[layer + "gate_up.scale"]
        g = acc[:, : a.d_ff] * r * s[: a.d_ff]
        sigmoid = self.t["sigmoid"][rint(g * np.float32(256), -4096, 4095) + 4096]
        h = g * f(sigmoid) * (acc[:, a.d_ff :] * s[a.d_ff :])
        hq, r_h = quantize(h, limit(a.d_ff, "down" in a.wide))
        r = r_h * r * (self.residual * np.float32(2.0**-16))
        return self._project(x, layer + "mlp", layer + "down", hq, r)

    def _project(self, x: Int, part: str, product: str, q: Int, r: Float) -> Int:
        """The last product of a part of a layer, of inputs q, r in residual units: onto x."""
        acc, scale = self._product(product, q), self.t[product + ".scale"]
        if not self.arch.post_norms:
            return self._add(x, acc * r * scale)
        m = np.abs(acc * scale).max(axis=-1, keepdims=True)
        inverse = (np.float32(POST_LIMIT) / np.where(m == 0, np.float32(1), m)).astype(np.float32)
        u = rint(acc * inverse * scale, -RESIDUAL_MAX, RESIDUAL_MAX)
        with np.errstate(over="ignore"):
            unit: Float = np.clip(m * np.float32(1 / POST_LIMIT) * r, MIN_UNIT, MAX_UNIT)
        epsilon = np.float32(self.arch.epsilon_units()) / (unit * unit)
        total = (u * u).sum(axis=-1, keepdims=True) + rint(epsilon, 0, MAX_EPSILON)
        c = np.sqrt(np.float32(self.arch.d_model) / f(np.maximum(total, 1)))
        return self._add(x, f(u) * (c * self.residual) * self.t[part + ".post_norm"])

    @staticmethod
    def _add(x: Int, y: Float) -> Int:
        total = x + rint(y, -RESIDUAL_MAX, RESIDUAL_MAX)
        return np.asarray(np.clip(total, -RESIDUAL_MAX, RESIDUAL_MAX), np.int64)
