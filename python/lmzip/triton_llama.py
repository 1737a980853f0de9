"""The engine for pretrained models in Triton: torch_llama.py's interface and state, and a kernel of
triton_llama_kernels.py for each of its stages, products included.

A block is a fixed row of launches, so that it is one CUDA graph; all that depends on the position
is read from it on the device.  With the kernels interpreted (TRITON_INTERPRET=1) the same code runs
on the CPU, for tests.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from lmzip import _core, token_answers
from lmzip import triton_llama_kernels as kernels
from lmzip.llama_model import LlamaModel
from lmzip.llama_reference import EXP16, limit
from lmzip.torch_engine import Product
from lmzip.torch_llama import Cache, Layer, State, TorchLlama
from lmzip.triton_engine import OPTIONS, TILE, power_of_two

QUANTIZE_BLOCK = 4096
MULTIPROCESSORS = 132
# Keys at once, more than there can be sinks; warps of a program of a step, of other programs.  A
# guess: bench/gpu.py times others.
KEYS, STEP_WARPS, BLOCK_WARPS = 32, 1, 4
# Of the vocabulary at once, and warps of the program that takes a row.  A guess too.
VOCABULARY_BLOCK, VOCABULARY_WARPS = 4096, 8
# Scores are kept, not made anew, where so few queries read a key that the memory decides.
KEPT_QUERIES = 16


class Quantized(NamedTuple):
    """Rows of integers, the input of a product: (1 or 2, rows, n) int8, and their scale (rows)."""

    q: Tensor
    r: Tensor


class Heads(NamedTuple):
    """Queries (2, rows, H, d) int8 with scales (2, rows, H): rotated, and as sinks meet them."""

    q: Tensor
    scale: Tensor


class Tile(NamedTuple):
    """What a program of a product makes, and how."""

    rows: int
    columns: int
    inputs: int  # at a time
    warps: int
    stages: int


def tile_of(rows: int, columns: int) -> Tile:
    """The largest whose sums fit into registers (seen in the machine code for sm_90), if there are
    enough of them for the multiprocessors of a large GPU.  In 99 KiB of shared memory, which is
    what small GPUs have."""
    if triton.cdiv(rows, 128) * triton.cdiv(columns, 128) >= MULTIPROCESSORS:
        return Tile(128, 128, 64, 8, 3)
    return Tile(max(16, min(64, power_of_two(rows))), 64, 128, 4, 4)


class TritonLlama(TorchLlama):
    def __init__(self, model: LlamaModel, device: str | torch.device = "cuda") -> None:
        super().__init__(model, device)
        tensors = model.tensors

        def tensor(array: np.typing.NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

        self.sigmoid = tensor(tensors["sigmoid"].astype(np.int32))
        names = "rotary.frequency", "rotary.local_frequency"
        self.frequencies = [tensor(tensors[n].view(np.int32)) for n in names if n in tensors]
        self.exp16 = tensor(EXP16.astype(np.int32))
        self.exp2 = tensor(_core.exp2_table().view(np.int32))
        self.unused = self.unused.to(torch.int8)

    # ── blocks ──

    def _block(self, state: State, tokens: Tensor) -> Tensor:
        lanes, count = tokens.shape
        x, xq = self.embed(tokens.int().contiguous().flatten())
        for i, (layer, cache) in enumerate(zip(self.layers, state.caches, strict=True)):
            u = self.project_heads(layer, xq)
            heads = self.split_heads(layer, u, cache, state.position, count)
            p = self.attention(layer, heads, cache, state.position, count)
            self.add_part(layer.out, layer.attention_post_norm, x, self.quantize(layer.out, p))
            xq = self.normalize(x, layer.mlp_norm, layer.gate_up)
            h = self.gate(layer.gate_up, xq)
            hq = self.quantize(layer.down, h, xq.r)
            self.add_part(layer.down, layer.mlp_post_norm, x, hq)
            if i + 1 < len(self.layers):
                after = self.layers[i + 1]
                xq = self.normalize(x, after.attention_norm, after.qkv)
            else:
                xq = self.normalize(x, self.head_norm, self.head)
        state.position += count
        return self.logits(xq).view(lanes, count, -1)

    def _empty(self, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _quantized(self, rows: int, product: Product) -> Quantized:
        shape = (2 if product.wide else 1), rows, product.weight.shape[1]
        return Quantized(
            self._empty(*shape, dtype=torch.int8), self._empty(rows, dtype=torch.float32)
        )

    @staticmethod
    def _grid(rows: int, width: int) -> tuple[tuple[int], dict[str, int]]:
        """Programs, rows of each and its width, for stages that go row by row."""
        block = power_of_two(width)
        per_program = max(1, min(power_of_two(rows), TILE // block))
        return (triton.cdiv(rows, per_program),), {"ROWS": per_program, "BLOCK": block}

    # ── stages: rows are positions of lanes ──

    def embed(self, tokens: Tensor) -> tuple[Tensor, Quantized]:
        """Tokens (rows) int32: the residual stream (rows, D), and the first layer's input."""
        layer, d, rows = self.layers[0], self.arch.d_model, len(tokens)
        x, out = self._empty(rows, d), self._quantized(rows, layer.qkv)
        grid, sizes = self._grid(rows, d)
        kernels.embed[grid](
            tokens, self.embedding, self.embedding_scale, x,
            layer.attention_norm, out.q, out.r, rows * d, self.arch.epsilon_units(), rows,
            RESIDUAL=self.residual, D=d, LIMIT=layer.qkv.largest_input, **sizes, **OPTIONS,
        )  # fmt: skip
        return x, out

    def normalize(self, x: Tensor, gain: Tensor, product: Product) -> Quantized:
        """The residual stream as a product's input."""
        rows, d = x.shape
        out = self._quantized(rows, product)
        grid, sizes = self._grid(rows, d)
        kernels.normalize[grid](
            x, gain, out.q, out.r, rows * d, self.arch.epsilon_units(), rows,
            D=d, LIMIT=product.largest_input, **sizes, **OPTIONS,
        )  # fmt: skip
        return out

    def quantize(self, product: Product, y: Tensor, r: Tensor | None = None) -> Quantized:
        """Rows of floats as a product's input, and what its sums are multiplied by; r: the scale of
        the feed-forward's rows."""
        rows, n = y.shape
        out = self._quantized(rows, product)
        grid, sizes = self._grid(rows, min(n, QUANTIZE_BLOCK))
        kernels.quantize[grid](
            y, out.r if r is None else r, out.q, out.r, rows * n, rows,
            RESIDUAL=self.residual, N=n, LIMIT=product.largest_input, DOWN=r is not None,
            **sizes, **OPTIONS,
        )  # fmt: skip
        return out

    def project_heads(self, layer: Layer, xq: Quantized) -> Tensor:
        """(rows, (H + 2G) d) int32."""
        out = self._empty(len(xq.r), len(layer.qkv.weight))
        self._product(kernels.project_heads, layer.qkv, xq, out, layer.bias)
        return out

    def add_part(self, product: Product, gain: Tensor | None, x: Tensor, q: Quantized) -> None:
        """The last product of a part of a layer, onto x (rows, D)."""
        if gain is None:
            self._product(kernels.add_product, product, q, x)
            return
        rows, d = x.shape
        sums = self._empty(rows, d)
        self._product(kernels.part_sums, product, q, sums)
        grid, sizes = self._grid(rows, d)
        kernels.add_post_norm[grid](
            sums, q.r, product.scale, gain, x, self.arch.epsilon_units(), rows,
            RESIDUAL=self.residual, D=d, **sizes, **OPTIONS,
        )  # fmt: skip

    def gate(self, product: Product, xq: Quantized) -> Tensor:
        """(rows, F) float32."""
        out = self._empty(len(xq.r), self.arch.d_ff, dtype=torch.float32)
        # Gates wait in registers for the ups: wider tiles spill.
        tile = tile_of(*out.shape)._replace(columns=64)
        self._product(kernels.gate, product, xq, out, self.sigmoid, tile=tile)
        return out

    def logits(self, xq: Quantized) -> Tensor:
        """(rows, V) int32."""
        out = self._empty(len(xq.r), self.arch.vocabulary)
        self._product(kernels.head, self.head, xq, out, self.unused)
        return out

    def _product(
        self,
        kernel: triton.JITFunction,
        product: Product,
        q: Quantized,
        out: Tensor,
        *more: Tensor,
        tile: Tile | None = None,
    ) -> None:
        rows, columns = out.shape
        inputs = product.weight.shape[1]
        tile = tile or tile_of(rows, columns)
        grid = triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.columns)
        kernel[grid](
            q.q, rows * inputs, q.r, product.weight, product.scale, *more, out, rows,
            N=columns, K=inputs, WIDE=product.wide,
            BM=tile.rows, BN=tile.columns, BK=math.gcd(inputs, tile.inputs),
            num_warps=tile.warps, num_stages=tile.stages, **OPTIONS,
        )  # fmt: skip

    def split_heads(
        self, layer: Layer, u: Tensor, cache: Cache, position: Tensor, count: int
    ) -> Heads:
        """Puts keys and values into the cache."""
        a, rows = self.arch, len(u)
        out = Heads(
            self._empty(2, rows, a.n_heads, a.head_dim, dtype=torch.int8),
            self._empty(2, rows, a.n_heads, dtype=torch.float32),
        )
        half = power_of_two(a.head_dim // 2)
        heads = max(1, min(64, TILE // 2 // half))
        rotated = triton.cdiv(rows * (a.n_heads + a.n_kv_heads), heads)
        norm, frequency = layer.head_norm, self.frequencies[layer.layout.local]
        kernels.split_heads[(rotated + triton.cdiv(rows * a.n_kv_heads, heads),)](
            u, frequency if norm is None else norm, frequency, self.cosine, position,
            out.q, out.scale, cache.keys, cache.values, cache.key_scales, cache.value_scales,
            a.head_epsilon_units(), rows, rotated,
            count=count, QK_NORM=norm is not None, HEADS=heads, HALF=half,
            **self._cached(layer, cache), **OPTIONS,
        )  # fmt: skip
        return out

    def attention(
        self, layer: Layer, heads: Heads, cache: Cache, position: Tensor, count: int
    ) -> Tensor:
        """(rows, H d) float32."""
        a, rows = self.arch, heads.q.shape[1]
        lanes, queries = rows // count, count * (a.n_heads // a.n_kv_heads)
        block = max(8, min(32, power_of_two(queries)))
        slots = layer.layout.window + layer.layout.sinks
        warps = STEP_WARPS if block == 8 else BLOCK_WARPS
        keep = queries <= KEPT_QUERIES
        kept = (cache.keys.shape[2] // KEYS + 3) * KEYS
        scores = self._empty(rows * a.n_heads * kept if keep else 1)
        out = self._empty(rows, a.n_heads * a.head_dim, dtype=torch.float32)
        # One stage: the loop pipeliner of Triton 3.6 rejects two products in one loop.
        kernels.attention[lanes * a.n_kv_heads, triton.cdiv(queries, block)](
            heads.q, heads.scale, cache.keys, cache.values, cache.key_scales, cache.value_scales,
            self.softmax, self.exp16, position, scores, out, rows, kept,
            count=count, LIMIT=limit(slots, True, 16383), KEEP=keep,
            QUERIES=block, KEYS=KEYS, HEAD=max(32, power_of_two(a.head_dim)),
            **self._cached(layer, cache), num_warps=warps, num_stages=1, **OPTIONS,
        )  # fmt: skip
        return out

    def _cached(self, layer: Layer, cache: Cache) -> dict[str, int]:
        a = self.arch
        return {
            "window": layer.layout.window,
            "sinks": layer.layout.sinks,
            "slots": cache.keys.shape[2],
            "H": a.n_heads,
            "G": a.n_kv_heads,
            "d": a.head_dim,
        }

    # ── what coders ask: token_answers.py ──

    def survey(self, logits: Tensor, questions: Tensor) -> Tensor:
        answers = self._empty(len(logits), token_answers.ANSWER_WORDS)
        self._for_rows(kernels.survey, logits, questions, answers)
        return answers

    def answer(self, logits: Tensor, questions: Tensor) -> Tensor:
        answers = self.survey(logits, questions)
        self._for_rows(kernels.targets, logits, questions, answers)
        return answers

    def search(self, logits: Tensor, questions: Tensor, answers: Tensor, slots: Tensor) -> Tensor:
        found = self._empty(len(logits), token_answers.FOUND_WORDS)
        self._for_rows(kernels.search, logits, questions, answers, slots, found)
        return found

    def _for_rows(
        self, kernel: triton.JITFunction, logits: Tensor, questions: Tensor, *more: Tensor
    ) -> None:
        rows, vocabulary = logits.shape
        kernel[(rows,)](
            logits, questions, self.exp2, *more,
            V=vocabulary, BLOCK=min(VOCABULARY_BLOCK, power_of_two(vocabulary)),
            num_warps=VOCABULARY_WARPS, **OPTIONS,
        )  # fmt: skip
