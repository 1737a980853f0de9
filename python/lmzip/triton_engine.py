"""The exact engine on CUDA: int8 products of PyTorch between the stages of triton_kernels.py.

Lanes are evaluated in blocks of a fixed shape, (lanes, count) inputs at a time, so that a block is
one CUDA graph: count 1 steps, a larger one prefills.  State, position and inputs live on the
device.  With the kernels interpreted (TRITON_INTERPRET=1) the same code runs on the CPU, for tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from lmzip import _core, triton_kernels
from lmzip.cuda_graph import CudaGraph, graphs_of
from lmzip.lanes import DISTANCES, INTERVALS, LOGITS, SEARCH, Result
from lmzip.model_file import Array, ExactModel
from lmzip.reference import EXP8

ROW_ALIGNMENT = 32  # torch._int_mm wants more than 16 rows
COLUMN_ALIGNMENT = 8  # and matrices whose sides are multiples of 8
TILE = 2048  # numbers that one program holds at a time, about
FEED_FORWARD_BLOCK = 2048
# One warp a program: with four, a step's attention takes six times as many instructions, counted in
# the machine code for sm_90; more keys at a time save none and take registers.
ATTENTION_KEYS, ATTENTION_WARPS = 32, 1
# There is no float addition to fuse; the option is named because Triton 3.9 warns of its default.
OPTIONS = {"enable_fp_fusion": False}
MODES = {
    LOGITS: triton_kernels.LOGITS,
    DISTANCES: triton_kernels.DISTANCES,
    INTERVALS: triton_kernels.INTERVALS,
    SEARCH: triton_kernels.SEARCH,
}


def pad(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


@dataclass
class Product:
    """weight (outputs, inputs) int8, both padded with zeros; scale (outputs)."""

    weight: Tensor
    scale: Tensor
    offset: Tensor  # (outputs) int32: what the products of inputs that were shifted by -128 lack

    def __call__(self, rows: Tensor, out: Tensor) -> None:
        """(rows, inputs) int8 @ weight.T -> out (rows, outputs) int32."""
        torch._int_mm(rows, self.weight.T, out=out)


@dataclass
class Buffers:
    """What a block of lanes works in; rows = lanes * count, padded to ROW_ALIGNMENT."""

    lanes: int
    count: int
    rows: int
    padded: int
    inputs: Tensor  # (lanes, count) uint8
    given: Tensor  # (lanes, count) int32: bytes, or slots
    history: Tensor  # (lanes) int32
    position: Tensor  # (1) int32
    keys: list[Tensor]  # per layer (lanes, G, slots, d) int8: a ring; even channels first
    values: list[Tensor]
    x: Tensor  # (padded, D) int32
    xq: Tensor  # (2 padded, D) int8: the head's low halves in the second half
    r: Tensor  # (padded) float32
    qkv: Tensor  # (padded, outputs) int32
    q: Tensor  # (padded, H, d) int8
    p: Tensor  # (padded, H d) int16
    pq: Tensor  # (padded, H d, padded) int8
    factor: Tensor  # (padded) float32
    acc: Tensor  # (padded, D) int32
    up: Tensor  # (padded, F) int32
    hq: Tensor  # (padded, F) int8
    head: Tensor  # (2 padded, 256) int32
    out: dict[str, Tensor] = field(default_factory=dict)  # of each mode used so far


class TritonEngine:
    """Evaluates blocks of lanes of one model on one device."""

    def __init__(self, model: ExactModel, device: str | torch.device = "cuda") -> None:
        a = self.arch = model.architecture
        self.device = torch.device(device)
        self.d_qkv = (a.n_heads + 2 * a.n_kv_heads) * a.head_dim
        tensors = model.tensors
        order = self._split_channels()
        self.layers: list[dict[str, Product]] = []
        self.softmax: list[Tensor] = []
        for i in range(a.n_layers):
            layer = {}
            for kind in ("qkv", "out", "up", "down"):
                weight = tensors[f"layers.{i}.{kind}.weight"]
                scale = tensors[f"layers.{i}.{kind}.scale"]
                if kind == "qkv":
                    weight, scale = weight[order], scale[order]
                layer[kind] = self._product(weight, scale, 128 if kind == "down" else 0)
            self.layers.append(layer)
            self.softmax.append(self._tensor(tensors[f"layers.{i}.softmax"]))
        self.head_product = self._product(tensors["head.weight"], tensors["head.scale"], 0)
        self.frequency = self._tensor(tensors["rotary.frequency"].view(np.int32))
        self.cosine = self._tensor(tensors["rotary.cosine"])
        self.exp8 = self._tensor(EXP8.astype(np.int32))
        self.exp2 = self._tensor(_core.exp2_table().view(np.int32))
        self._load_tables(tensors)

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _split_channels(self) -> npt.NDArray[np.int64]:
        """The order of qkv outputs in which each query's and key's even channels precede the odd
        ones, so that the rotation's pairs are read and written in runs."""
        a = self.arch
        order = np.arange(self.d_qkv)
        rotated = (a.n_heads + a.n_kv_heads) * a.head_dim
        pairs = order[:rotated].reshape(-1, a.head_dim // 2, 2)
        order[:rotated] = pairs.transpose(0, 2, 1).reshape(-1)
        return order

    def _product(self, weight: Array, scale: Array, shift: int) -> Product:
        outputs, inputs = weight.shape
        offset = shift * weight.astype(np.int64).sum(axis=1)  # |.| <= 128 * 65536 * 127 < 2^31
        padded = np.zeros((pad(outputs, COLUMN_ALIGNMENT), pad(inputs, COLUMN_ALIGNMENT)), np.int8)
        padded[:outputs, :inputs] = weight
        return Product(*map(self._tensor, (padded, scale, offset.astype(np.int32))))

    def _load_tables(self, tensors: dict[str, Array]) -> None:
        a = self.arch
        shifts = tensors["embedding.shift"].tolist()
        info = [[8, 0, a.d_model, 0, shifts[0]]]
        tables = [tensors["embedding.byte"].reshape(-1)]
        for i, t in enumerate(a.ngrams):
            start = sum(map(len, tables))
            info.append([t.log2_slots, t.offset, t.width, start, shifts[i + 1]])
            tables.append(tensors[f"embedding.ngram.{i}"].reshape(-1))
        self.tables = self._tensor(np.concatenate(tables))
        self.table_info = self._tensor(np.array(info, np.int64))
        self.table_orders = sum(n << 4 * i for i, n in enumerate([1, *(t.order for t in a.ngrams)]))

    # ── blocks ──

    def buffers(self, lanes: int, count: int) -> Buffers:
        """The state of new lanes, and room for a block."""
        a = self.arch
        rows = lanes * count
        padded = pad(rows, ROW_ALIGNMENT)
        heads = a.n_heads * a.head_dim

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        def cache() -> list[Tensor]:
            # The block's own keys are written before its first query, which still sees window - 1
            # older ones.
            return [
                zeros(lanes, a.n_kv_heads, w + count - 1, a.head_dim, dtype=torch.int8)
                for w in a.windows
            ]

        return Buffers(
            lanes=lanes,
            count=count,
            rows=rows,
            padded=padded,
            inputs=zeros(lanes, count, dtype=torch.uint8),
            given=zeros(lanes, count),
            history=zeros(lanes),
            position=zeros(1),
            keys=cache(),
            values=cache(),
            x=zeros(padded, a.d_model),
            xq=zeros(2 * padded, a.d_model, dtype=torch.int8),
            r=zeros(padded, dtype=torch.float32),
            qkv=zeros(padded, pad(self.d_qkv, COLUMN_ALIGNMENT)),
            q=zeros(padded, a.n_heads, a.head_dim, dtype=torch.int8),
            p=zeros(padded, heads, dtype=torch.int16),
            pq=zeros(padded, pad(heads, COLUMN_ALIGNMENT), dtype=torch.int8),
            factor=zeros(padded, dtype=torch.float32),
            acc=zeros(padded, a.d_model),
            up=zeros(padded, a.d_ff),
            hq=zeros(padded, a.d_ff, dtype=torch.int8),
            head=zeros(2 * padded, 256),
        )

    @staticmethod
    def restart(b: Buffers) -> None:
        """New lanes in the same buffers: no key before position 0 is ever read."""
        for tensor in (b.inputs, b.history, b.position):
            tensor.zero_()

    def evaluate(self, b: Buffers, mode: str) -> Tensor:
        """Feed b.inputs and advance; returns b.out[mode].  SEARCH leaves the bytes in b.inputs."""
        self.embed(b)
        for i in range(self.arch.n_layers):
            self.attend(b, i)
            self.feed_forward(b, i)
        return self.predict(b, mode)

    def _grid(self, rows: int, width: int) -> tuple[tuple[int], int, int]:
        """Programs, rows of each, and its width, for stages that go row by row."""
        block = power_of_two(width)
        per_program = max(1, min(power_of_two(rows), TILE // block))
        return (triton.cdiv(rows, per_program),), per_program, block

    def embed(self, b: Buffers) -> None:
        grid, rows, block = self._grid(b.rows, self.arch.d_model)
        triton_kernels.embed[grid](
            b.inputs, b.history, self.tables, self.table_info, b.x, b.xq, b.r, b.rows,
            count=b.count, D=self.arch.d_model,
            TABLES=self.table_orders, ROWS=rows, BLOCK=block, **OPTIONS,
        )  # fmt: skip

    def attend(self, b: Buffers, i: int) -> None:
        layer = self.layers[i]
        layer["qkv"](b.xq[: b.padded], b.qkv)
        self.split_heads(b, i)
        self.attention(b, i)
        self.quantize_average(b)
        layer["out"](b.pq, b.acc)
        self.add_product(b, layer["out"], head=False)

    def split_heads(self, b: Buffers, i: int) -> None:
        a = self.arch
        half = power_of_two(a.head_dim // 2)
        heads = max(1, min(64, TILE // 2 // half))
        rotated = triton.cdiv(b.rows * (a.n_heads + a.n_kv_heads), heads)
        grid = (rotated + triton.cdiv(b.rows * a.n_kv_heads, heads),)
        triton_kernels.split_heads[grid](
            b.qkv, self.layers[i]["qkv"].scale, b.r, self.frequency, self.cosine, b.position,
            b.q, b.keys[i], b.values[i], b.rows, rotated,
            count=b.count, stride=b.qkv.shape[1], slots=b.keys[i].shape[2],
            H=a.n_heads, G=a.n_kv_heads, d=a.head_dim, HEADS=heads, HALF=half, **OPTIONS,
        )  # fmt: skip

    def attention(self, b: Buffers, i: int) -> None:
        a = self.arch
        queries = b.count * (a.n_heads // a.n_kv_heads)
        block = max(8, min(32, power_of_two(queries + 1)))
        grid = (b.lanes * a.n_kv_heads, triton.cdiv(queries, block - 1))
        # One stage: the loop pipeliner of Triton 3.6 rejects two products in one loop.
        triton_kernels.attention[grid](
            b.q, b.keys[i], b.values[i], self.softmax[i], self.exp8, b.position, b.p,
            count=b.count, window=a.windows[i], slots=b.keys[i].shape[2],
            H=a.n_heads, G=a.n_kv_heads, d=a.head_dim,
            QUERIES=block, KEYS=ATTENTION_KEYS,
            HEAD=max(32, power_of_two(a.head_dim)),
            num_warps=ATTENTION_WARPS, num_stages=1, **OPTIONS,
        )  # fmt: skip

    def quantize_average(self, b: Buffers) -> None:
        heads = self.arch.n_heads * self.arch.head_dim
        grid, rows, block = self._grid(b.rows, heads)
        triton_kernels.quantize_average[grid](
            b.p, b.pq, b.factor, b.rows,
            n=heads, stride=b.pq.shape[1], ROWS=rows, BLOCK=block, **OPTIONS,
        )  # fmt: skip

    def add_product(self, b: Buffers, product: Product, *, head: bool) -> None:
        grid, rows, block = self._grid(b.rows, self.arch.d_model)
        triton_kernels.add_product[grid](
            b.x, b.acc, product.offset, product.scale, b.factor, b.xq, b.r, b.rows, b.padded,
            D=self.arch.d_model, HEAD=head, ROWS=rows, BLOCK=block, **OPTIONS,
        )  # fmt: skip

    def feed_forward(self, b: Buffers, i: int) -> None:
        layer = self.layers[i]
        layer["up"](b.xq[: b.padded], b.up)
        self.activate(b, layer["up"])
        layer["down"](b.hq, b.acc)
        self.add_product(b, layer["down"], head=i == self.arch.n_layers - 1)

    def activate(self, b: Buffers, up: Product) -> None:
        grid, rows, block = self._grid(b.rows, min(self.arch.d_ff, FEED_FORWARD_BLOCK))
        triton_kernels.activate[grid](
            b.up, up.scale, b.r, b.hq, b.factor, b.rows,
            F=self.arch.d_ff, ROWS=rows, BLOCK=block, **OPTIONS,
        )  # fmt: skip

    def predict(self, b: Buffers, mode: str) -> Tensor:
        if mode not in b.out:
            dtype = torch.int16 if mode == DISTANCES else torch.int32
            width = 256 if mode in (LOGITS, DISTANCES) else 2
            b.out[mode] = torch.zeros(b.lanes, b.count, width, dtype=dtype, device=self.device)
        self.head_product(b.xq, b.head)
        grid, rows, _ = self._grid(b.rows, 256)
        # Where bytes are found, they are the next inputs, so the ones before must be pushed first.
        if mode == SEARCH:
            self._advance(b)
        triton_kernels.head[grid](
            b.head, self.head_product.scale, b.r, self.exp2, b.given, b.out[mode], b.inputs,
            b.rows, b.padded, MODE=MODES[mode], ROWS=rows, **OPTIONS,
        )  # fmt: skip
        if mode != SEARCH:
            self._advance(b)
        return b.out[mode]

    def _advance(self, b: Buffers) -> None:
        block = min(1024, power_of_two(b.lanes))
        triton_kernels.advance[(triton.cdiv(b.lanes, block),)](
            b.inputs, b.history, b.position, b.lanes, count=b.count, BLOCK=block, **OPTIONS
        )

    # ── for tests ──

    def state(self, b: Buffers) -> tuple[int, Array, list[Array], list[Array]]:
        """position, history, keys and values as in lmzip.reference.State."""
        a = self.arch
        position = int(b.position)
        packed = b.history.cpu().numpy().view(np.uint32).astype(np.int64)
        history = packed[:, None] >> (8 * np.arange(4)) & 255
        place = np.empty(a.head_dim, np.int64)  # of each channel, in the order of the document
        place[0::2] = np.arange(a.head_dim // 2)
        place[1::2] = place[0::2] + a.head_dim // 2
        keys, values = [], []
        for k, v, window in zip(b.keys, b.values, a.windows, strict=True):
            slots = np.arange(max(0, position - window), position) % k.shape[2]
            keys.append(k.cpu().numpy()[:, :, slots][..., place].transpose(0, 2, 1, 3))
            values.append(v.cpu().numpy()[:, :, slots].transpose(0, 2, 1, 3))
        return position, history, keys, values


class TritonLanes:
    """Lanes (lanes.py) of a TritonEngine.

    On CUDA a block is one graph, on a stream of its own, between copies from and to pinned memory;
    launch() returns at once.
    """

    def __init__(self, engine: TritonEngine, lanes: int, count: int, mode: str) -> None:
        self._engine, self._mode = engine, mode
        self._buffers = b = engine.buffers(lanes, count)
        self._graph: CudaGraph[None] | None = None
        record = graphs_of(engine.device)
        if record is not None:
            self._graph = record(engine.device, self._evaluate)
        else:
            self._evaluate()
        self.restart()
        pinned = engine.device.type == "cuda"
        self._out = torch.empty_like(b.out[mode], device="cpu", pin_memory=pinned)
        self._inputs = torch.empty_like(b.inputs, device="cpu", pin_memory=pinned)
        self._given = torch.empty_like(b.given, device="cpu", pin_memory=pinned)

    def _evaluate(self) -> None:
        self._engine.evaluate(self._buffers, self._mode)

    def restart(self) -> None:
        if self._graph is None:
            self._engine.restart(self._buffers)
            return
        with self._graph.on_stream():
            self._engine.restart(self._buffers)

    def launch(self, inputs: Array | None, given: Array | None) -> None:
        # The last block is done, so its copies from pinned memory are too.
        if inputs is not None:
            np.copyto(self._inputs.numpy(), inputs)
        if given is not None:
            np.copyto(self._given.numpy(), given, casting="unsafe")
        if self._graph is None:
            self._run(inputs is not None, given is not None)
            return
        with self._graph.on_stream():
            self._run(inputs is not None, given is not None)
            self._graph.record_done()

    def _run(self, new_inputs: bool, new_given: bool) -> None:
        b = self._buffers
        if new_inputs:
            b.inputs.copy_(self._inputs, non_blocking=True)
        if new_given:
            b.given.copy_(self._given, non_blocking=True)
        if self._graph is None:
            self._evaluate()
        else:
            self._graph.replay()
        self._out.copy_(b.out[self._mode], non_blocking=True)
        if self._mode == SEARCH:
            self._inputs.copy_(b.inputs, non_blocking=True)

    def wait(self) -> Result:
        if self._graph is not None:
            self._graph.wait()
        rows = self._out.numpy()
        if self._mode == DISTANCES:
            rows = rows.view(np.uint16)
        elif self._mode != LOGITS:
            rows = rows.view(np.uint32)
        return Result(rows, self._inputs.numpy()[:, 0] if self._mode == SEARCH else None)
