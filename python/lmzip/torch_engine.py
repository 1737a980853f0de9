"""The exact engine in PyTorch: docs/numerics.md on any device, equal to reference.py.

Products are exact, be they of int8 or in floating point: every partial sum of integers below 2^24
is exact in binary32, below 2^53 in binary64, in any order.  All other stages
are element-wise operations of PyTorch, one rounding each; nothing here may be fused by a compiler
that contracts multiplications and additions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lmzip import coder_torch
from lmzip.lanes import DISTANCES, LOGITS, SEARCH, Result
from lmzip.model_file import Array, ExactModel
from lmzip.reference import EXP8, HASH_MULTIPLIER, LOGIT_MAX, RESIDUAL_MAX

PREFILL_BLOCK = 128  # positions evaluated at once; bounds the memory of attention
EXACT_FLOAT32 = 1 << 24
INT_MM_MIN_ROWS = 32  # torch._int_mm on CUDA wants more than 16 rows,
INT_MM_STEP = 8  # and multiples of this of columns and inner columns


@dataclass
class State:
    """As reference.State, on a device: keys and values (lanes, positions kept, G, d) int8 per
    layer."""

    position: int
    history: Tensor  # (lanes, 4) int64, newest first
    keys: list[Tensor]
    values: list[Tensor]


def rint(a: Tensor, low: float, high: float) -> Tensor:
    """Clamp, then round ties to even; stays in float, where integers this small are exact."""
    return torch.clamp(a, low, high).round()


def square_root(a: Tensor) -> Tensor:
    """binary32 square root, correctly rounded.

    torch.sqrt of float32 is not on every CPU build (measured: one in six results differs in the
    last bit, through a vector math library).  Through binary64 it is, even where that root is an
    ulp off: the root of a 24-bit number is never that near to the middle of two 24-bit numbers
    (53 >= 2 * 24 + 2; Figueroa 1995).
    """
    return torch.sqrt(a.double()).float()


def quantize(x: Tensor, limit: int, low: int) -> tuple[Tensor, Tensor]:
    """Integer rows to [low, limit] (float32) and their largest magnitude m (..., 1) int32."""
    m = x.abs().amax(-1, keepdim=True)
    inverse = torch.full_like(m, limit, dtype=torch.float32) / m.clamp_min(1).float()
    return rint(x.float() * inverse, low, limit), m


def quantize_row(x: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    xq, m = quantize(x, limit, -limit)
    total = xq.long().square().sum(-1, keepdim=True).clamp_min(1).float()
    r = square_root(torch.full_like(total, x.shape[-1]) / total)
    return xq, torch.where(m == 0, torch.zeros_like(r), r)


def refuse_reduced_precision() -> None:
    """ValueError in a process that has changed the defaults for float32 matrix products."""
    try:
        reduced = (
            torch.get_float32_matmul_precision() != "highest"
            or torch.backends.cuda.matmul.allow_tf32
        )
    except RuntimeError:  # set by fp32_precision, which these do not go with
        reduced = True
    if reduced:
        raise ValueError(
            "float32 products run at reduced precision here; "
            "torch.set_float32_matmul_precision('highest') makes them exact"
        )


def int8_sums_are_exact(device: torch.device) -> bool:
    """Whether torch._int_mm sums int8 products in 32 bits there.

    On CPUs it may go through vpmaddubsw, which saturates the sum of two products at 16 bits, unless
    the processor has VNNI.
    """
    if device.type == "cpu":
        # The name is PyTorch's own affair, and may be missing in some version that we support.
        return bool(getattr(torch.cpu, "_is_vnni_supported", bool)())
    return device.type == "cuda"


class Product:
    """int8 matrix @ integer rows -> float32(acc), rounded once, and the scales.

    The rows (..., inputs) hold integers of float32 up to largest_input <= 8191; sums are below
    2^31.  In int8 where that is exact, inputs of more than 8 bits in two halves; else in floats.
    """

    def __init__(self, weight: Tensor, scale: Tensor, largest_input: int) -> None:
        self.weight, self.scale, self.largest_input = weight, scale, largest_input
        self.outputs, self.inputs = weight.shape
        self.wide = largest_input > 127
        self.int8 = int8_sums_are_exact(weight.device) and self.inputs % INT_MM_STEP == 0

    @cached_property
    def columns(self) -> Tensor:
        if self.int8:
            missing = -self.outputs % INT_MM_STEP
            # A view: on CUDA cuBLAS has int8 kernels for this order only.
            return torch.nn.functional.pad(self.weight, (0, 0, 0, missing)).T
        bound = self.inputs * self.largest_input * 127
        dtype = torch.float32 if bound < EXACT_FLOAT32 else torch.float64
        return self.weight.T.to(dtype).contiguous()

    def __call__(self, rows: Tensor) -> Tensor:
        flat = rows.flatten(0, -2)
        acc = self._int8_sums(flat) if self.int8 else flat.to(self.columns.dtype) @ self.columns
        return acc.float().view(*rows.shape[:-1], -1)

    def _int8_sums(self, rows: Tensor) -> Tensor:
        count = len(rows)
        if not self.wide:
            return self._int_mm(rows.to(torch.int8))[:count, : self.outputs]
        q = rows.to(torch.int16)
        both = self._int_mm(torch.cat((q >> 7, q & 127)).to(torch.int8))[:, : self.outputs]
        # The first term may pass 2^31 and comes back with the second: the sum is right mod 2^32.
        return torch.add(both[count : 2 * count], both[:count], alpha=128)

    def _int_mm(self, rows: Tensor) -> Tensor:
        if rows.is_cuda and len(rows) < INT_MM_MIN_ROWS:
            rows = torch.nn.functional.pad(rows, (0, 0, 0, INT_MM_MIN_ROWS - len(rows)))
        return torch._int_mm(rows, self.columns)


class TorchEngine:
    """Any number of lanes in lockstep, any number of positions at once, on one device.

    The caller must not have changed the defaults for float32 matrix products (TF32, bfloat16
    reduction): the constructor refuses a process that has.
    """

    def __init__(self, model: ExactModel, device: str | torch.device = "cpu") -> None:
        refuse_reduced_precision()
        a = self.arch = model.architecture
        self.device = torch.device(device)
        self.model = model
        t = self.t = {
            name: torch.from_numpy(x.astype(np.int64) if x.dtype == np.uint32 else x).to(
                self.device
            )
            for name, x in model.tensors.items()
        }
        limits = {"qkv": 127, "out": 127, "up": 127, "down": 255}
        self.products = {
            f"layers.{i}.{kind}": Product(
                t[f"layers.{i}.{kind}.weight"], t[f"layers.{i}.{kind}.scale"], limit
            )
            for i in range(a.n_layers)
            for kind, limit in limits.items()
        }
        self.head = Product(t["head.weight"], t["head.scale"], 8191)
        self.exp8 = torch.from_numpy(EXP8).to(self.device)

    def start(self, lanes: int) -> State:
        a = self.arch
        empty = torch.zeros(
            lanes, 0, a.n_kv_heads, a.head_dim, dtype=torch.int8, device=self.device
        )
        history = torch.zeros(lanes, 4, dtype=torch.int64, device=self.device)
        return State(0, history, [empty] * a.n_layers, [empty] * a.n_layers)

    @torch.inference_mode()
    def step(self, state: State, inputs: Tensor) -> Tensor:
        """Feed one byte to each lane ((lanes,) uint8; 0 at position 0); logits (lanes, 256)
        int32."""
        return self.prefill(state, inputs[:, None])[:, 0]

    @torch.inference_mode()
    def prefill(self, state: State, inputs: Tensor) -> Tensor:
        """Feed (lanes, positions) uint8 -> logits (lanes, positions, 256) int32; advances the
        state."""
        blocks = torch.split(inputs.to(self.device), PREFILL_BLOCK, 1)
        return torch.cat([self._block(state, block.long()) for block in blocks], 1)

    def _block(self, state: State, inputs: Tensor) -> Tensor:
        count = inputs.shape[1]
        text = torch.cat((state.history.flip(1)[:, 1:], inputs), 1)  # three bytes of history first
        state.history = text[:, -4:].flip(1)
        x = self._embed(text, count)
        position = state.position + torch.arange(count, device=self.device)
        for i in range(self.arch.n_layers):
            x = self._attend(i, x, state, position)
            x = self._feed_forward(i, x)
        state.position += count
        xq, r = quantize_row(x, 8191)
        return rint(self.head(xq) * r * self.head.scale, -LOGIT_MAX, LOGIT_MAX).int()

    def _embed(self, text: Tensor, count: int) -> Tensor:
        shift = self.t["embedding.shift"]
        x = self.t["embedding.byte"][text[:, 3:]].int() << shift[0]
        for i, table in enumerate(self.arch.ngrams):
            shifted = [text[:, 3 - n : 3 - n + count] << (8 * n) for n in range(table.order)]
            key = torch.stack(shifted).sum(0)
            slot = ((key * HASH_MULTIPLIER) & 0xFFFFFFFF) >> (32 - table.log2_slots)
            rows = self.t[f"embedding.ngram.{i}"][slot].int() << shift[i + 1]
            x[..., table.offset : table.offset + table.width] += rows
        return x.clamp(-RESIDUAL_MAX, RESIDUAL_MAX)

    def _attend(self, i: int, x: Tensor, state: State, position: Tensor) -> Tensor:
        a = self.arch
        lanes, count, _ = x.shape
        n_query, n_key = a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim
        qkv = self.products[f"layers.{i}.qkv"]
        xq, r = quantize_row(x, 127)
        acc = qkv(xq)
        scaled = acc[..., : n_query + n_key] * qkv.scale[: n_query + n_key]
        qk8 = self._rotate(scaled.view(lanes, count, -1, a.head_dim), position)
        q8, k8 = qk8[:, :, : a.n_heads], qk8[:, :, a.n_heads :]
        v = acc[..., n_query + n_key :] * r * qkv.scale[n_query + n_key :]
        v8 = rint(v, -127, 127).view(lanes, count, a.n_kv_heads, a.head_dim)
        keys = torch.cat((state.keys[i], k8.to(torch.int8)), 1)
        values = torch.cat((state.values[i], v8.to(torch.int8)), 1)
        p = self._average(i, q8, keys, values)
        state.keys[i], state.values[i] = keys[:, -a.windows[i] :], values[:, -a.windows[i] :]
        pq, m = quantize(p, 127, -127)
        out = self.products[f"layers.{i}.out"]
        return self._add(x, out(pq) * m.float() * out.scale)

    def _rotate(self, scaled: Tensor, position: Tensor) -> Tensor:
        """(lanes, count, heads, d) float32 -> normalized, rotated, int8 range (float32)."""
        d = self.arch.head_dim
        u = rint(scaled, -4095, 4095).int()
        phase = (position[:, None] * self.t["rotary.frequency"]) & 0xFFFFFFFF
        index = ((phase + (1 << 19)) & 0xFFFFFFFF) >> 20
        cosine = self.t["rotary.cosine"].int()
        c, z = cosine[index][:, None], cosine[(index + 3072) & 4095][:, None]
        even, odd = u[..., 0::2], u[..., 1::2]
        v = torch.stack((even * c - odd * z, even * z + odd * c), -1).flatten(-2)
        total = u.long().square().sum(-1, keepdim=True)
        divisor = total.clamp_min(1).float()
        g = square_root(torch.full_like(divisor, d) / divisor) * 2.0**-9
        g = torch.where(total == 0, torch.zeros_like(g), g)
        return rint(v.float() * g, -127, 127)

    def _average(self, i: int, q8: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q8 (lanes, count, H, d); cache (lanes, past + count, G, d) -> p (lanes, count, H d)
        int32."""
        lanes, count, heads, d = q8.shape
        total, group = keys.shape[1], heads // keys.shape[2]
        k, v = (u.double().repeat_interleave(group, 2).transpose(1, 2) for u in (keys, values))
        score = (
            q8.double().transpose(1, 2) @ k.transpose(-1, -2)
        ).int()  # (lanes, H, count, total)
        query = torch.arange(total - count, total, device=self.device)[:, None]
        key = torch.arange(total, device=self.device)[None]
        seen = (key <= query) & (key > query - self.arch.windows[i])
        largest = torch.where(seen, score, torch.iinfo(torch.int32).min).amax(-1, keepdim=True)
        gap = (largest - score).clamp(0, (1 << 19) - 1)
        e8 = (gap * self.t[f"layers.{i}.softmax"][:, None, None]) >> 16
        e = torch.where(seen & (e8 < 128), self.exp8[e8 & 15] >> (e8 >> 4).clamp_max(8), 0)
        o = e.double() @ v
        normalizer = e.sum(-1, keepdim=True).float()
        p = rint(o.float() * (torch.full_like(normalizer, 256) / normalizer), -32767, 32767)
        return p.transpose(1, 2).reshape(lanes, count, heads * d).int()

    def _feed_forward(self, i: int, x: Tensor) -> Tensor:
        up, down = self.products[f"layers.{i}.up"], self.products[f"layers.{i}.down"]
        xq, r = quantize_row(x, 127)
        u = rint(up(xq) * up.scale, 0, 32767).int()
        hq, m = quantize(u * u, 255, 0)
        return self._add(x, down(hq) * (m.float() * r * r) * down.scale)

    @staticmethod
    def _add(x: Tensor, y: Tensor) -> Tensor:
        grown = x + rint(y, -RESIDUAL_MAX, RESIDUAL_MAX).int()
        return grown.clamp(-RESIDUAL_MAX, RESIDUAL_MAX)


class TorchLanes:
    """Lanes (lanes.py) of a TorchEngine; launch() computes, and wait() has nothing to wait for."""

    def __init__(self, engine: TorchEngine, lanes: int, count: int, mode: str) -> None:
        if mode == SEARCH and count != 1:
            raise ValueError("a search finds one byte of each lane at a time")
        self._engine, self._lanes, self._mode = engine, lanes, mode
        self.restart()

    def restart(self) -> None:
        self._state = self._engine.start(self._lanes)
        self._found = np.zeros(self._lanes, np.uint8)

    def launch(self, inputs: Array | None, given: Array | None) -> None:
        block = self._found[:, None] if inputs is None else np.ascontiguousarray(inputs)
        logits = self._engine.prefill(self._state, torch.from_numpy(block))
        self._rows = self._predict(logits, given)

    def wait(self) -> Result:
        return Result(self._rows, self._found if self._mode == SEARCH else None)

    def _predict(self, logits: Tensor, given: Array | None) -> Array:
        if self._mode == LOGITS:
            rows: Array = logits.cpu().numpy()
        elif self._mode == DISTANCES:
            distances = logits.amax(-1, keepdim=True) - logits
            rows = distances.clamp_max(65535).cpu().numpy().astype(np.uint16)
        else:
            assert given is not None
            symbols = self._search(logits, given) if self._mode == SEARCH else given
            rows = coder_torch.intervals("logits", logits, np.asarray(symbols, np.int64))
        return rows

    def _search(self, logits: Tensor, slots: Array) -> Array:
        wanted = torch.from_numpy(np.asarray(slots, np.int64)).to(self._engine.device)
        symbols: Array = coder_torch.find_symbols(logits, wanted).cpu().numpy()
        self._found = symbols[:, 0].astype(np.uint8)
        return symbols
