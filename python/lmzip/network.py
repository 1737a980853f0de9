"""The trainable twin of the exact engine: docs/numerics.md in floating point, with gradients.

With `quantized` on, every rounding that costs something (weights, embeddings, row quantizers,
queries, keys, values) is done in the forward pass and passed over in the backward pass
(straight-through estimator, Bengio et al. 2013), so that training ends on weights that stand it.
`export` turns a Network into the integer tensors of docs/numerics.md section 2; it is the only
place where floats become model integers.  `from_model` goes the other way, to train further.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmzip.model_file import Architecture, Array, ExactModel
from lmzip.reference import HASH_MULTIPLIER, RESIDUAL_MAX

RESIDUAL_BITS = 12  # of the exact residual stream, at most: Network.fit_residual
RESIDUAL_MARGIN = 4.0  # how much more than in a sample the stream may hold
BYTE_FRACTION_BITS = 5  # of the byte table: what calibrate() gives for weights up to 4
LOGIT_BITS = 10
HEAD_UNITS = 32.0  # int8 units of a normalized query or key, per head root mean square
TYPICAL_XQ = 36.0  # root mean square of a quantized row: 127 over a crest factor of 3.5
MAX_ORDER = 4


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    return x + (rounded - x).detach()


def fake_quantize(x: Tensor, step: Tensor | float, low: float = -127, high: float = 127) -> Tensor:
    """Round x to multiples of step, clamped to low..high steps."""
    return straight_through(x, torch.clamp(torch.round(x / step), low, high) * step)


def fake_quantize_rows(x: Tensor, limit: float, low: float | None = None) -> Tensor:
    """Round each row (last axis) to limit levels of its own largest magnitude."""
    step = x.detach().abs().amax(-1, keepdim=True).clamp_min(1e-20) / limit
    return fake_quantize(x, step, -limit if low is None else low, limit)


def normalize(x: Tensor) -> Tensor:
    """Root mean square of each row to 1 (Zhang and Sennrich 2019, without a gain)."""
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-12)


class Product(nn.Module):
    """A matrix without bias; int8 with a scale per output channel when quantized."""

    def __init__(self, outputs: int, inputs: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * std)

    def forward(self, x: Tensor, quantized: bool) -> Tensor:
        w = fake_quantize_rows(self.weight, 127) if quantized else self.weight
        return F.linear(x, w)


class Table(nn.Module):
    """Embeddings; int8 in units of 2^-fraction_bits when quantized (set by calibrate)."""

    fraction_bits: Tensor

    def __init__(self, slots: int, width: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(slots, width) * std)
        self.register_buffer("fraction_bits", torch.tensor(5))

    def forward(self, index: Tensor, quantized: bool) -> Tensor:
        x = F.embedding(index, self.weight)
        return fake_quantize(x, torch.exp2(-self.fraction_bits.float())) if quantized else x

    @torch.no_grad()
    def calibrate(self) -> None:
        largest = torch.quantile(
            self.weight.abs().flatten()[:: max(1, self.weight.numel() >> 20)], 0.9999
        )
        bits = torch.floor(torch.log2(127 / largest.clamp_min(1e-6)))
        self.fraction_bits.fill_(int(bits.clamp(0, RESIDUAL_BITS)))


class Layer(nn.Module):
    value_step: Tensor

    def __init__(self, a: Architecture, window: int) -> None:
        super().__init__()
        self.a, self.window = a, window
        heads, kv = a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim
        std = a.d_model**-0.5
        self.query = Product(heads, a.d_model, std)
        self.key = Product(kv, a.d_model, std)
        self.value = Product(kv, a.d_model, std)
        self.out = Product(a.d_model, heads, 0.0)
        self.up = Product(a.d_ff, a.d_model, std)
        self.down = Product(a.d_model, a.d_ff, 0.0)
        self.sharpness = nn.Parameter(torch.full((a.n_heads,), 1.4 / math.sqrt(a.head_dim)))
        self.register_buffer("value_step", torch.tensor(0.04))

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], quantized: bool) -> Tensor:
        x = x + self.attend(x, rotation, quantized)
        h = F.relu(self.up(self._normalized(x, quantized), quantized))
        h = h * h
        if quantized:
            h = fake_quantize_rows(h, 255, 0)
        y: Tensor = x + self.down(h, quantized)
        return y

    def attend(self, x: Tensor, rotation: tuple[Tensor, Tensor], quantized: bool) -> Tensor:
        a, (batch, length, _) = self.a, x.shape
        xn = self._normalized(x, quantized)
        q = self.query(xn, quantized).view(batch, length, a.n_heads, a.head_dim)
        k = self.key(xn, quantized).view(batch, length, a.n_kv_heads, a.head_dim)
        v = self.value(xn, quantized).view(batch, length, a.n_kv_heads, a.head_dim)
        q, k = rotate(normalize(q), *rotation), rotate(normalize(k), *rotation)
        if quantized:
            q, k = fake_quantize(q, 1 / HEAD_UNITS), fake_quantize(k, 1 / HEAD_UNITS)
            v = fake_quantize(v, self.value_step)
        p = window_attention(q * self.sharpness[:, None], k, v, self.window)
        if quantized:
            p = fake_quantize_rows(p, 127)
        y: Tensor = self.out(p, quantized)
        return y

    @staticmethod
    def _normalized(x: Tensor, quantized: bool) -> Tensor:
        return normalize(fake_quantize_rows(x, 127) if quantized else x)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) on neighboring pairs; x (..., length, heads, head_dim)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    pairs = (even * cosine - odd * sine, even * sine + odd * cosine)
    return torch.stack(pairs, -1).flatten(-2)


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention to the last `window` positions, itself included.

    q (batch, length, heads, head_dim), k and v (batch, length, kv_heads, head_dim) -> (batch,
    length, heads * head_dim).  Blocks of `window` queries see their own block and the one before:
    cost 2 window a query.  On a CPU in float32 always: its bfloat16 kernel is the slower one
    (measured: 0.18 against 0.14 s for the backward pass of a step).
    """
    if q.device.type == "cpu":
        q, k, v = q.float(), k.float(), v.float()
    batch, length, heads, dim = q.shape
    padding = -length % window
    if padding:
        q, k, v = (F.pad(u, (0, 0, 0, 0, 0, padding)) for u in (q, k, v))
    blocks = (length + padding) // window
    group = heads // k.shape[2]
    k, v = (_with_previous_block(u, blocks, window).repeat_interleave(group, 1) for u in (k, v))
    q = q.view(batch * blocks, window, heads, dim).transpose(1, 2)
    mask = _band(blocks, window, q).repeat(batch, 1, 1).unsqueeze(1)
    on = q.device.type != "cpu" and torch.is_autocast_enabled(q.device.type)
    with torch.autocast(q.device.type, enabled=on):
        p = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    return p.transpose(1, 2).reshape(batch, blocks * window, heads * dim)[:, :length]


def _with_previous_block(u: Tensor, blocks: int, window: int) -> Tensor:
    """(batch, length, heads, dim) -> (batch * blocks, heads, 2 window, dim)."""
    u = u.reshape(u.shape[0], blocks, window, *u.shape[2:])
    previous = F.pad(u[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
    return torch.cat((previous, u), 2).flatten(0, 1).transpose(1, 2)


def _band(blocks: int, window: int, like: Tensor) -> Tensor:
    """Additive mask (blocks, window, 2 window): 0 where a query may look."""
    query = torch.arange(window, device=like.device)[:, None] + window
    key = torch.arange(2 * window, device=like.device)[None]
    allowed = (key <= query) & (key > query - window)
    first = allowed & (key >= window)
    both = torch.cat((first[None], allowed.expand(blocks - 1, -1, -1)))
    return torch.where(both, 0.0, -1e9).to(like.dtype)


class Network(nn.Module):
    """Logits in nats for every position of every row: (batch, length + MAX_ORDER - 1) -> (batch,
    length, 256).

    The input holds, before the first position's own input byte, MAX_ORDER - 1 bytes of history.
    """

    residual_bits: Tensor  # the exact engine's residual stream counts in units of 2^-residual_bits

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.byte = Table(256, a.d_model, 0.5)
        self.ngrams = nn.ModuleList(Table(1 << t.log2_slots, t.width, 0.0) for t in a.ngrams)
        self.layers = nn.ModuleList(Layer(a, w) for w in a.windows)
        self.head = Product(256, a.d_model, 0.0)
        self.register_buffer("residual_bits", torch.tensor(RESIDUAL_BITS))

    def tables(self) -> list[Table]:
        return [self.byte, *cast("Iterable[Table]", self.ngrams)]

    def blocks(self) -> list[Layer]:
        return list(cast("Iterable[Layer]", self.layers))

    def forward(self, history: Tensor, quantized: bool = False) -> Tensor:
        x = self.embed(history, quantized)
        rotation = self._rotation(x.shape[1], x.device)
        for layer in self.layers:
            x = layer(x, rotation, quantized)
        logits: Tensor = self.head(normalize(x), quantized)
        return logits

    def embed(self, history: Tensor, quantized: bool) -> Tensor:
        a, length = self.architecture, history.shape[1] - MAX_ORDER + 1
        x: Tensor = self.byte(history[:, -length:], quantized)
        for spec, table in zip(a.ngrams, self.tables()[1:], strict=True):
            rows = table(self.slots(history, spec.order, spec.log2_slots), quantized)
            x = x + F.pad(rows, (spec.offset, a.d_model - spec.offset - spec.width))
        return x

    @staticmethod
    def slots(history: Tensor, order: int, log2_slots: int) -> Tensor:
        """Slot of the n-gram that ends in each position; docs/numerics.md section 3."""
        length = history.shape[1] - MAX_ORDER + 1
        shifted = (history[:, MAX_ORDER - 1 - i :][:, :length] << (8 * i) for i in range(order))
        key = torch.stack(tuple(shifted)).sum(0)
        return ((key * HASH_MULTIPLIER) & 0xFFFFFFFF) >> (32 - log2_slots)

    def _rotation(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        half = self.architecture.head_dim // 2
        rates = self.architecture.rotary_base ** (-torch.arange(half, device=device) / half)
        angle = torch.arange(length, device=device)[:, None] * rates
        return angle.cos()[:, None], angle.sin()[:, None]

    @torch.no_grad()
    def calibrate(self, history: Tensor) -> None:
        """Fix the steps that do not follow the data (embeddings, values), from a sample of real
        text."""
        for table in self.tables():
            table.calibrate()
        x = self.embed(history, False)
        rotation = self._rotation(x.shape[1], x.device)
        for layer in self.blocks():
            v = layer.value(normalize(x), False).abs().flatten()
            layer.value_step.copy_(torch.quantile(v[: 1 << 22].float(), 0.9999) / 127)
            x = layer(x, rotation, False)

    @torch.no_grad()
    def fit_residual(self, history: Tensor) -> None:
        """Choose the unit of the exact residual stream, from a sample of real text.

        Norms leave the scale of the stream free, and training may let it grow: the finest unit in
        which RESIDUAL_MARGIN times the largest value still fits.
        """
        x = self.embed(history, False)
        rotation = self._rotation(x.shape[1], x.device)
        largest = x.abs().max().item()
        for layer in self.blocks():
            x = layer(x, rotation, False)
            largest = max(largest, x.abs().max().item())
        bits = math.floor(math.log2(RESIDUAL_MAX / (RESIDUAL_MARGIN * max(largest, 1e-6))))
        self.residual_bits.fill_(max(0, min(bits, RESIDUAL_BITS)))


def _quantized_weight(product: Product) -> tuple[Array, Array]:
    """int8 weights and their step per output channel (float64)."""
    w = product.weight.detach().cpu().double().numpy()
    step = np.maximum(np.abs(w).max(axis=1), 1e-9) / 127
    return np.rint(w / step[:, None]).astype(np.int8), step


def _power_of_two(target: float, product: Product) -> float:
    """The power of two that brings f(acc) * step, for typical rows, to the target magnitude."""
    norm = float(product.weight.detach().double().square().sum(1).mean().sqrt())
    return 2.0 ** round(math.log2(target / (TYPICAL_XQ * max(norm, 1e-9))))


def export(network: Network) -> dict[str, Array]:
    """Network -> the tensors of docs/numerics.md section 2.  The same network gives the same
    integers."""
    a = network.architecture
    out: dict[str, Array] = {}
    tables = network.tables()
    residual_bits = int(network.residual_bits)
    fractions = [min(int(t.fraction_bits), residual_bits) for t in tables]
    names = ["byte", *(f"ngram.{i}" for i in range(len(a.ngrams)))]
    for name, table, bits in zip(names, tables, fractions, strict=True):
        w = table.weight.detach().cpu().double().numpy() * 2.0**bits
        out[f"embedding.{name}"] = np.clip(np.rint(w), -127, 127).astype(np.int8)
    out["embedding.shift"] = np.array([residual_bits - bits for bits in fractions], np.int32)
    for i, layer in enumerate(network.blocks()):
        exported = _export_layer(layer, 2.0**residual_bits)
        out.update({f"layers.{i}.{name}": t for name, t in exported.items()})
    w8, step = _quantized_weight(network.head)
    out["head.weight"] = w8
    out["head.scale"] = (step * math.log2(math.e) * 2**LOGIT_BITS).astype(np.float32)
    half = a.head_dim // 2
    rates = a.rotary_base ** (-np.arange(half) / half) / (2 * math.pi)
    out["rotary.frequency"] = np.rint(rates * 2**32).astype(np.uint32)
    turn = 2 * math.pi * np.arange(4096) / 4096
    out["rotary.cosine"] = np.rint(np.cos(turn) * 2**14).astype(np.int16)
    return out


def _export_layer(layer: Layer, unit: float) -> dict[str, Array]:
    """`unit`: how much 1.0 in the residual stream counts."""
    value_step = float(layer.value_step)
    (wq, sq), (wk, sk), (wv, sv), (wo, so), (wu, su), (wd, sd) = (
        _quantized_weight(p)
        for p in (layer.query, layer.key, layer.value, layer.out, layer.up, layer.down)
    )
    sq = sq * _power_of_two(400, layer.query)
    sk = sk * _power_of_two(400, layer.key)
    up = _power_of_two(1000, layer.up)
    sharpness = layer.sharpness.detach().cpu().double().numpy()
    factor = sharpness * math.log2(math.e) * 16 / HEAD_UNITS**2 * 2**16
    scales = {
        "qkv.scale": np.concatenate([sq, sk, sv / value_step]),
        "out.scale": so * value_step / (127 * 256) * unit,
        "up.scale": su * up,
        "down.scale": sd / (255 * up**2) * unit,
    }
    return {
        "qkv.weight": np.concatenate([wq, wk, wv]),
        "out.weight": wo,
        "up.weight": wu,
        "down.weight": wd,
        "softmax": np.clip(np.rint(factor), 1, 4095).astype(np.int32),
        **{name: s.astype(np.float32) for name, s in scales.items()},
    }


# export() scales the products of normalized stages by powers of two; these undo the typical ones,
# which brings the weights back to the magnitude at which training starts.
_HEAD_UNSCALE = 2.0**-3
_UP_UNSCALE = 2.0**-5


@torch.no_grad()
def from_model(model: ExactModel) -> Network:
    """The inverse of `export`, up to the rounding of scales: a network to train further.

    Its float weights are the integers times their scales, and `export` gives the same integers
    again.
    """
    network, t = Network(model.architecture), model.tensors
    residual_bits = int(t["embedding.shift"][0]) + BYTE_FRACTION_BITS
    network.residual_bits.fill_(residual_bits)
    for name, table, shift in zip(
        ["byte", *(f"ngram.{i}" for i in range(len(model.architecture.ngrams)))],
        network.tables(),
        t["embedding.shift"].tolist(),
        strict=True,
    ):
        table.fraction_bits.fill_(residual_bits - shift)
        weight = torch.from_numpy(t[f"embedding.{name}"]) * 2.0 ** (shift - residual_bits)
        table.weight.copy_(weight)
    for i, layer in enumerate(network.blocks()):
        tensors = {k.removeprefix(f"layers.{i}."): v for k, v in t.items()}
        _import_layer(layer, tensors, 2.0**residual_bits)
    head = (
        t["head.weight"]
        * (t["head.scale"].astype(float) / (math.log2(math.e) * 2**LOGIT_BITS))[:, None]
    )
    network.head.weight.copy_(torch.from_numpy(head))
    return network


def _import_layer(layer: Layer, t: dict[str, Array], unit: float) -> None:
    a, value_step = layer.a, float(layer.value_step)
    heads, kv = a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim
    scaled = {
        name: t[f"{name}.weight"] * t[f"{name}.scale"].astype(float)[:, None]
        for name in ("qkv", "out", "up", "down")
    }
    query, key, value = np.split(scaled["qkv"], [heads, heads + kv])
    for product, weight in (
        (layer.query, query * _HEAD_UNSCALE),
        (layer.key, key * _HEAD_UNSCALE),
        (layer.value, value * value_step),
        (layer.out, scaled["out"] * (127 * 256) / (value_step * unit)),
        (layer.up, scaled["up"] * _UP_UNSCALE),
        (layer.down, scaled["down"] * 255 / (_UP_UNSCALE**2 * unit)),
    ):
        product.weight.copy_(torch.from_numpy(weight))
    factor = math.log2(math.e) * 16 / HEAD_UNITS**2 * 2**16
    layer.sharpness.copy_(torch.from_numpy(t["softmax"] / factor))
