"""The exact engine for pretrained models in PyTorch: docs/numerics-llama.md on any device, equal to
llama_reference.py.

Products are exact as in torch_engine.py; those of attention are float32 products of integers whose
partial sums stay below 2^24, or binary64 ones below 2^53.  All other stages are element-wise
operations of PyTorch, one rounding each; nothing here may be fused by a compiler that contracts
multiplications and additions.  Divisors are tensors of the device: PyTorch multiplies by the
reciprocal of a number of Python or of the CPU, which rounds twice.

Lanes are in lockstep: what depends on positions alone is the same for all of them, and is a tensor
of the device, so that a block of a fixed shape can be recorded as a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmzip import token_answers
from lmzip.cuda_graph import CudaGraph, graphs_of
from lmzip.llama_model import LlamaModel
from lmzip.llama_reference import (
    EXP16,
    MAX_EPSILON,
    MAX_UNIT,
    MIN_UNIT,
    POST_LIMIT,
    RESIDUAL_MAX,
    TINY,
    limit,
)
from lmzip.model_file import Array
from lmzip.reference import LOGIT_MAX
from lmzip.torch_engine import (
    EXACT_FLOAT32,
    Product,
    refuse_reduced_precision,
    rint,
    square_root,
)

NEVER = 1 << 62  # the position that an empty slot of the cache holds
MASKED = -float(1 << 26)  # the score of what is not seen: its exponential is 0
LAST_GAP = 512  # gaps from here on have the exponential 0
# Numbers that attention works on at once: what the caches of a core hold; on CUDA a bound on its
# memory, which is some twenty bytes for each.
ATTENTION_NUMBERS = {"cpu": 1 << 18, "cuda": 1 << 28}


class Rows(NamedTuple):
    """Rows of integers in float32 and their scale (..., 1)."""

    q: Tensor
    r: Tensor


class Layout(NamedTuple):
    """What makes the caches of two layers alike."""

    window: int
    sinks: int
    local: bool  # which of the two rotations


@dataclass(frozen=True)
class Layer:
    """One layer's parameters; limits of its products' inputs as in section 1."""

    layout: Layout
    qkv: Product
    bias: Tensor
    head_norm: Tensor | None  # (H + G, d): gains of queries and keys
    out: Product
    gate_up: Product
    down: Product
    attention_norm: Tensor
    mlp_norm: Tensor
    attention_post_norm: Tensor | None
    mlp_post_norm: Tensor | None


@dataclass
class Cache:
    """A layer's keys and values (lanes, G, slots, d) int8, their scales (lanes, G, slots)."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor
    value_scales: Tensor


@dataclass
class State:
    """What a set of lanes remembers.

    The slots of a cache are the sinks and a ring.  A block's own keys are written before its first
    query, which still sees window - 1 older ones: the ring has room for both.
    """

    block: int  # positions that may be evaluated at once
    position: Tensor  # (1) int64
    caches: list[Cache]  # per layer
    held: dict[Layout, Tensor]  # (slots) int64: the position in each slot
    filled: int | None  # slots that hold anything, the first ones; None: look at all


class Place(NamedTuple):
    """Where a block is in the caches of one layout."""

    slots: Tensor  # (count): those of its own keys
    used: int  # the first slots, which hold all keys that are seen
    seen: Tensor  # (count, used) bool
    near: tuple[Tensor, Tensor]  # rotation of its keys and queries
    far: tuple[Tensor, Tensor] | None  # of queries that meet sinks; None: as the near one


def quantize(y: Tensor, largest: int) -> Rows:
    """Rows of floats to integers in [-largest, largest] and the scale (..., 1)."""
    m = y.abs().amax(-1, keepdim=True)
    most = torch.full_like(m, largest)
    zero = m < float(TINY)
    # largest / m is off by less than 2^-24 of itself, so nothing rounds to more than largest.
    inverse = torch.where(zero, 0.0, most / m.clamp_min(float(TINY)))
    return Rows((y * inverse).round_(), torch.where(zero, 0.0, m / most))


class TorchLlama:
    """Any number of lanes in lockstep, any number of positions at once, on one device.

    Raises ValueError where float32 products run at reduced precision (TF32).
    """

    def __init__(self, model: LlamaModel, device: str | torch.device = "cpu") -> None:
        refuse_reduced_precision()
        a = self.arch = model.architecture
        self.device = torch.device(device)
        self._tensors = model.tensors
        self.embedding = self._tensor("embedding.weight")
        self.embedding_scale = self._tensor("embedding.scale")
        self.layers = [self._layer(i) for i in range(a.n_layers)]
        self.head_norm = self._tensor("head.norm")
        head = self.embedding if a.tied else self._tensor("head.weight")
        self.head = Product(head, self._tensor("head.scale"), self._limit(a.d_model, "head"))
        unused = model.tensors["tokens.size"] == 0
        unused[a.escape] = False
        self.unused = torch.from_numpy(unused).to(self.device)
        self.residual = float(1 << a.residual_bits)
        self.softmax = self._tensor("softmax")
        self.sigmoid = torch.from_numpy(model.tensors["sigmoid"].astype(np.float32)).to(self.device)
        self.frequency = self._tensor("rotary.frequency")
        if any(a.local):
            self.local_frequency = self._tensor("rotary.local_frequency")
        self.cosine = self._tensor("rotary.cosine")
        gaps = np.arange(LAST_GAP + 1)
        exponentials = (EXP16[gaps & 31] >> (gaps >> 5)).astype(np.float32)
        self.exponentials = torch.from_numpy(exponentials).to(self.device)
        self.powers = torch.tensor([2.0**-s for s in range(8)], device=self.device)
        del self._tensors

    def _tensor(self, name: str) -> Tensor:
        t = self._tensors[name]
        if t.dtype in (np.uint32, np.uint16):
            t = t.astype(np.int64)
        return torch.from_numpy(np.ascontiguousarray(t)).to(self.device)

    def _limit(self, inputs: int, product: str) -> int:
        return limit(inputs, product in self.arch.wide)

    def _layer(self, i: int) -> Layer:
        a = self.arch
        prefix = f"layers.{i}."

        def product(name: str, inputs: int) -> Product:
            weight, scale = (self._tensor(f"{prefix}{name}.{kind}") for kind in ("weight", "scale"))
            return Product(weight, scale, self._limit(inputs, name))

        def post_norm(part: str) -> Tensor | None:
            return self._tensor(f"{prefix}{part}.post_norm") if a.post_norms else None

        norm = None
        if a.qk_norm:
            counts = {"q": a.n_heads, "k": a.n_kv_heads}
            gains = [self._tensor(f"{prefix}{n}.norm").expand(c, -1) for n, c in counts.items()]
            norm = torch.cat(gains)
        return Layer(
            layout=Layout(a.windows[i], a.sinks[i], any(a.local[i : i + 1])),
            qkv=product("qkv", a.d_model),
            bias=self._tensor(prefix + "qkv.bias"),
            head_norm=norm,
            out=product("out", a.n_heads * a.head_dim),
            gate_up=product("gate_up", a.d_model),
            down=product("down", a.d_ff),
            attention_norm=self._tensor(prefix + "attention.norm"),
            mlp_norm=self._tensor(prefix + "mlp.norm"),
            attention_post_norm=post_norm("attention"),
            mlp_post_norm=post_norm("mlp"),
        )

    # ── state ──

    def slots(self, layout: Layout, positions: int, block: int) -> int:
        return layout.sinks + min(layout.window + block - 1, max(positions, block))

    def start(self, lanes: int, positions: int, block: int = 1, graph: bool = False) -> State:
        """New lanes of at most `positions` tokens, of which at most `block` are fed at once.

        graph: blocks of exactly this size, whose operations do not depend on the position.
        """
        a = self.arch

        def cache(layout: Layout) -> Cache:
            shape = lanes, a.n_kv_heads, self.slots(layout, positions, block)
            keys, values = (
                torch.zeros(*shape, a.head_dim, dtype=torch.int8, device=self.device)
                for _ in range(2)
            )
            return Cache(keys, values, *(torch.zeros(shape, device=self.device) for _ in range(2)))

        return State(
            block=block,
            position=torch.zeros(1, dtype=torch.int64, device=self.device),
            caches=[cache(layer.layout) for layer in self.layers],
            held={
                layout: torch.full(
                    (self.slots(layout, positions, block),), NEVER, device=self.device
                )
                for layout in {layer.layout for layer in self.layers}
            },
            filled=None if graph else 0,
        )

    @staticmethod
    def restart(state: State) -> None:
        """New lanes in the same memory: what a slot without a position holds is never looked at."""
        state.position.zero_()
        for held in state.held.values():
            held.fill_(NEVER)
        if state.filled is not None:
            state.filled = 0

    def contents(
        self, state: State
    ) -> tuple[int, list[Array], list[Array], list[Array], list[Array]]:
        """position, then per layer keys and values (lanes, positions, G, d), their scales (lanes,
        positions, G), of the positions that the next one may see and of the last one, in order."""
        position = int(state.position)
        out: tuple[list[Array], list[Array], list[Array], list[Array]] = ([], [], [], [])
        for layer, c in zip(self.layers, state.caches, strict=True):
            window, sinks = layer.layout.window, layer.layout.sinks
            ring = c.keys.shape[2] - sinks
            seen = [t for t in range(position) if t < sinks or t >= position - window]
            slots = [t if t < sinks else sinks + (t - sinks) % ring for t in seen]
            for to, t in zip(out, (c.keys, c.values, c.key_scales, c.value_scales), strict=True):
                to.append(t[:, :, slots].transpose(1, 2).cpu().numpy())
        return position, *out

    # ── evaluation ──

    def step(self, state: State, tokens: Tensor) -> Tensor:
        """Feed one token to each lane ((lanes,) int64; the start token at position 0); logits
        (lanes, vocabulary) int32."""
        return self.feed(state, tokens[:, None])[:, 0]

    @torch.inference_mode()
    def feed(self, state: State, tokens: Tensor) -> Tensor:
        """Feed (lanes, positions) int64 -> logits (lanes, positions, vocabulary) int32; advances
        the state."""
        blocks = torch.split(tokens.to(self.device), state.block, 1)
        if len(blocks) == 1:
            return self._block(state, tokens.to(self.device))
        return torch.cat([self._block(state, block) for block in blocks], 1)

    # ── what coders ask of rows of logits: token_answers.py ──
    # An engine may change the rows that answer() and search() get.

    survey = staticmethod(token_answers.survey)
    answer = staticmethod(token_answers.answer)
    search = staticmethod(token_answers.search)

    # ── the network ──

    def _block(self, state: State, tokens: Tensor) -> Tensor:
        at = state.position + torch.arange(tokens.shape[1], device=self.device)
        if state.filled is not None:
            state.filled += len(at)
        places = {layout: self._place(state, layout, at) for layout in state.held}
        factor = (self.embedding_scale[tokens] * self.residual).unsqueeze(-1)
        x = rint(self.embedding[tokens].float() * factor, -RESIDUAL_MAX, RESIDUAL_MAX).int()
        for layer, cache in zip(self.layers, state.caches, strict=True):
            x = self._attend(layer, x, cache, places[layer.layout])
            x = self._feed_forward(layer, x)
        state.position += len(at)
        xq, r = self._normalize(x, self.head_norm, "head")
        logits = rint(self.head(xq).mul_(r).mul_(self.head.scale), -LOGIT_MAX, LOGIT_MAX).int()
        return logits.masked_fill_(self.unused, -LOGIT_MAX)

    def _rotation(self, local: bool, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (count, 1, d / 2) int32."""
        frequency = self.local_frequency if local else self.frequency
        phase = (positions[:, None, None] * frequency) & 0xFFFFFFFF
        index = ((phase + (1 << 19)) & 0xFFFFFFFF) >> 20
        cosine = self.cosine.int()
        return cosine[index], cosine[(index + 3072) & 4095]

    def _place(self, state: State, layout: Layout, at: Tensor) -> Place:
        """Where the positions `at` go; notes that they are there."""
        window, sinks, local = layout
        held = state.held[layout]
        ring = len(held) - sinks
        slots = torch.where(at < sinks, at, sinks + (at - sinks) % ring)
        held.index_copy_(0, slots, at)
        used = len(held) if state.filled is None else min(len(held), state.filled)
        now, then = at[:, None], held[:used]
        seen = (then <= now) & ((then < sinks) | (then > now - window))
        end = window + sinks - 1
        far = None
        if sinks and (state.filled is None or state.filled > end):
            far = self._rotation(local, at.clamp_max(end))
        return Place(slots, used, seen, self._rotation(local, at), far)

    def _normalize(self, x: Tensor, gain: Tensor, product: str) -> Rows:
        """Root-mean-square normalization with gain, and quantization."""
        d = self.arch.d_model
        xq, q = quantize(x.float() * gain, self._limit(d, product))
        m = x.abs().amax(-1, keepdim=True)
        s = (m >> torch.arange(24, 31, device=self.device) != 0).sum(-1, keepdim=True)
        squares = (x >> s.int()).long().square_().sum(-1, keepdim=True)
        total = squares + (torch.full_like(s, self.arch.epsilon_units()) >> 2 * s)
        divisor = total.clamp_min(1).float()
        root = square_root(torch.full_like(divisor, d) / divisor) * self.powers[s]
        return Rows(xq, q * root)

    def _attend(self, layer: Layer, x: Tensor, cache: Cache, place: Place) -> Tensor:
        a = self.arch
        xq, r = self._normalize(x, layer.attention_norm, "qkv")
        y = layer.qkv(xq).mul_(r * 4096.0).mul_(layer.qkv.scale)
        u = rint(y, -(1 << 24), 1 << 24).int() + layer.bias
        u = u.view(*x.shape[:2], -1, a.head_dim)
        rotated = a.n_heads + a.n_kv_heads
        leveled = self._level(layer, u[:, :, :rotated])
        heads = self._rotate(leveled, place.near)
        queries = Rows(heads.q[:, :, : a.n_heads], heads.r[:, :, : a.n_heads])
        far = None
        if place.far is not None:
            level = Rows(leveled.q[:, :, : a.n_heads], leveled.r[:, :, : a.n_heads])
            far = self._rotate(level, place.far)
        v8, v_scale = quantize(u[:, :, rotated:].float(), 127)
        for to, new in (
            (cache.keys, heads.q[:, :, a.n_heads :].to(torch.int8)),
            (cache.values, v8.to(torch.int8)),
            (cache.key_scales, heads.r[:, :, a.n_heads :, 0]),
            (cache.value_scales, (v_scale * 2.0**-12)[..., 0]),
        ):
            to.index_copy_(2, place.slots, new.transpose(1, 2))
        p = self._average(layer.layout, queries, far, cache, place)
        pq, r = quantize(p, self._limit(a.n_heads * a.head_dim, "out"))
        return self._project(x, layer.out, layer.attention_post_norm, pq, r * self.residual)

    def _level(self, layer: Layer, u: Tensor) -> Rows:
        """Heads (lanes, count, heads, d) to 14 bits and their scale (lanes, count, heads, 1)."""
        if layer.head_norm is None:
            t, r = quantize(u.float(), 8191)
            return Rows(t, r * 2.0**-12)
        t, r = quantize(u.float() * layer.head_norm, 8191)
        squares = u.long().square_().sum(-1, keepdim=True)
        divisor = (squares + self.arch.head_epsilon_units()).clamp_min_(1).float()
        root = square_root(torch.full_like(divisor, self.arch.head_dim) / divisor)
        return Rows(t, r * root)

    def _rotate(self, leveled: Rows, rotation: tuple[Tensor, Tensor]) -> Rows:
        """To int8 with rotary positions."""
        c, z = rotation
        first, second = leveled.q.int().chunk(2, -1)
        v = torch.cat((first * c - second * z, second * c + first * z), -1)
        m = v.abs().amax(-1, keepdim=True).float()
        most = torch.full_like(m, 127)
        v8 = (v.float() * (most / m.clamp_min(1))).round_()
        return Rows(v8, leveled.r * 2.0**-14 * (m / most))

    def _average(
        self, layout: Layout, near: Rows, far: Rows | None, cache: Cache, place: Place
    ) -> Tensor:
        """Attention of queries (lanes, count, H, d) over the cache: (lanes, count, H d)."""
        lanes, count, heads, d = near.q.shape
        numbers = heads * count * place.used + 2 * self.arch.n_kv_heads * place.used * d
        some = max(1, ATTENTION_NUMBERS[self.device.type] // numbers)
        out = [
            self._average_some(
                layout,
                Rows(near.q[i : i + some], near.r[i : i + some]),
                far and Rows(far.q[i : i + some], far.r[i : i + some]),
                Cache(
                    cache.keys[i : i + some, :, : place.used],
                    cache.values[i : i + some, :, : place.used],
                    cache.key_scales[i : i + some, :, : place.used],
                    cache.value_scales[i : i + some, :, : place.used],
                ),
                place.seen,
            )
            for i in range(0, lanes, some)
        ]
        return torch.cat(out) if len(out) > 1 else out[0]

    def _average_some(
        self, layout: Layout, near: Rows, far: Rows | None, cache: Cache, seen: Tensor
    ) -> Tensor:
        lanes, count, heads, d = near.q.shape
        groups = self.arch.n_kv_heads
        keys = cache.keys.float()
        u = self._scores(near, keys, cache.key_scales)
        if far is not None:
            n = layout.sinks
            u[..., :n] = self._scores(far, keys[:, :, :n], cache.key_scales[:, :, :n])
        u.masked_fill_(~seen, MASKED)
        gap = u.amax(-1, keepdim=True).sub(u).clamp_max_(LAST_GAP)
        e = self.exponentials[gap.int()]
        total = e.sum(-1, keepdim=True, dtype=torch.float64).float()  # exact, then rounded once
        slots = layout.window + layout.sinks
        e.mul_(cache.value_scales[:, :, None, None])
        w, r = quantize(e, limit(slots, True, 16383))
        w, values = w.flatten(2, 3), cache.values  # (lanes, G, H / G * count, slots)
        if slots * 127 * 127 < EXACT_FLOAT32:
            high = w.mul(2.0**-7).floor_()
            low = w.sub_(high, alpha=128.0)
            sums = torch.cat((high, low), 2) @ values.float()
            high, low = sums.chunk(2, 2)
            o = torch.add(low, high, alpha=128.0)  # both exact: their sum is rounded once
        else:
            o = (w.double() @ values.double()).float()
        p = o.view(lanes, groups, -1, count, d) * (r / total)
        return p.permute(0, 3, 1, 2, 4).reshape(lanes, count, heads * d)

    def _scores(self, queries: Rows, keys: Tensor, key_scales: Tensor) -> Tensor:
        """Queries (lanes, count, H, d), keys (lanes, G, slots, d) -> u (lanes, G, H / G, count,
        slots), integers of float32."""
        lanes, count, heads, _ = queries.q.shape
        groups, slots = keys.shape[1:3]
        shape = lanes, count, groups, heads // groups, -1
        q, r = (t.view(shape).permute(0, 2, 3, 1, 4) for t in queries)
        dot = q.flatten(2, 3) @ keys.transpose(-1, -2)
        u = dot.view(lanes, groups, heads // groups, count, slots)
        u.mul_((r * self.softmax) * key_scales[:, :, None, None])
        return u.clamp_(-(1 << 24), 1 << 24).round_()

    def _feed_forward(self, layer: Layer, x: Tensor) -> Tensor:
        f = self.arch.d_ff
        xq, r = self._normalize(x, layer.mlp_norm, "gate_up")
        acc = layer.gate_up(xq)
        s = layer.gate_up.scale
        g = acc[..., :f].mul_(r).mul_(s[:f])
        h = g * self._sigmoid(g) * acc[..., f:].mul_(s[f:])
        hq, r_h = quantize(h, self._limit(f, "down"))
        r = r_h * r * (self.residual * 2.0**-16)
        return self._project(x, layer.down, layer.mlp_post_norm, hq, r)

    def _project(
        self, x: Tensor, product: Product, gain: Tensor | None, q: Tensor, r: Tensor
    ) -> Tensor:
        """The last product of a part of a layer, of inputs q, r in residual units: onto x."""
        acc = product(q)
        if gain is None:
            return self._add(x, acc.mul_(r).mul_(product.scale))
        m = (acc * product.scale).abs_().amax(-1, keepdim=True)
        most = torch.full_like(m, POST_LIMIT)
        # m is 0 or at least 2^-40; where it is 0, so is acc
        u = acc.mul_(most / m.clamp_min(float(TINY))).mul_(product.scale).round_()
        unit = (m * (1 / POST_LIMIT) * r).clamp_(float(MIN_UNIT), float(MAX_UNIT))
        epsilon = torch.full_like(unit, self.arch.epsilon_units()) / (unit * unit)
        rounded = epsilon.clamp_max_(float(MAX_EPSILON)).round_().long()
        total = u.long().square_().sum(-1, keepdim=True) + rounded
        divisor = total.clamp_min_(1).float()
        c = square_root(torch.full_like(divisor, self.arch.d_model) / divisor)
        return self._add(x, u.mul_(c * self.residual).mul_(gain))

    def _sigmoid(self, g: Tensor) -> Tensor:
        return self.sigmoid[rint(g * 256.0, -4096, 4095).int() + 4096]

    @staticmethod
    def _add(x: Tensor, y: Tensor) -> Tensor:
        grown = x + rint(y, -RESIDUAL_MAX, RESIDUAL_MAX).int()
        return grown.clamp_(-RESIDUAL_MAX, RESIDUAL_MAX)


class LlamaLanes:
    """Blocks of lanes of an engine, evaluated while the CPU codes others: questions in, answers
    out (token_answers.py), the logits stay where they are.

    to_search: targets are not answered; instead search() finds tokens, of blocks of one position.

    On CUDA a block is one graph, on a stream of its own, between copies from and to pinned memory;
    launch() returns at once.  On the CPU launch() computes.
    """

    def __init__(
        self, engine: TorchLlama, lanes: int, count: int, positions: int, to_search: bool
    ) -> None:
        if to_search and count != 1:
            raise ValueError("a search finds one token of each lane at a time")
        self._engine, self._to_search = engine, to_search
        record = graphs_of(engine.device)
        self._state = engine.start(lanes, positions, count, graph=record is not None)
        self._questions, self._given = self._pair(lanes, count, token_answers.QUESTION_WORDS)
        self._given[..., token_answers.INPUT] = engine.arch.start  # a graph is recorded with tokens
        self._slots, self._wanted = self._pair(lanes)
        self._graph: CudaGraph[Tensor] | None = None
        self._search_graph: CudaGraph[Tensor] | None = None
        if record is not None:
            self._graph = record(engine.device, self._evaluate)
            self._out = self._room_for(self._graph.result)
            if to_search:
                with self._graph.on_stream():
                    self._graph.replay()  # what is searched has to be there, or any index is read
                    self._graph.record_done()
                self._graph.wait()
                # Before the blocks of other lanes, which would keep this one waiting.
                self._search_graph = record(engine.device, self._search, priority=-1)
                self._found = self._room_for(self._search_graph.result)
            self.restart()

    @property
    def _pinned(self) -> bool:
        return self._engine.device.type == "cuda"

    def _room_for(self, result: Tensor) -> Tensor:
        return torch.empty_like(result, device="cpu", pin_memory=self._pinned)

    def _pair(self, *shape: int) -> tuple[Tensor, Tensor]:
        """int32, filled with -1: on the CPU, and where the engine finds a copy."""
        here = torch.full(shape, -1, dtype=torch.int32, pin_memory=self._pinned)
        return here, here.to(self._engine.device, copy=True)

    def _evaluate(self) -> Tensor:
        logits = self._engine.feed(self._state, self._given[..., token_answers.INPUT])
        self._rows = logits.flatten(0, 1)
        questions = self._given.flatten(0, 1)
        make = self._engine.survey if self._to_search else self._engine.answer
        self._answers = make(self._rows, questions)
        return self._answers.view(*logits.shape[:2], -1)

    def _search(self) -> Tensor:
        questions = self._given.flatten(0, 1)
        return self._engine.search(self._rows, questions, self._answers, self._wanted)

    def restart(self) -> None:
        """Go back to position 0, with new lanes."""
        if self._graph is None:
            self._engine.restart(self._state)
            return
        with self._graph.on_stream():
            self._engine.restart(self._state)

    def launch(self, questions: NDArray[np.uint32]) -> None:
        """Start to evaluate the next block; questions (lanes, count, QUESTION_WORDS) are copied."""
        # The last block is done, so its copy from pinned memory is too.
        np.copyto(self._questions.numpy(), questions.view(np.int32))
        if self._graph is None:
            self._given.copy_(self._questions)
            self._out = self._evaluate()
            return
        with self._graph.on_stream():
            self._given.copy_(self._questions, non_blocking=True)
            self._graph.replay()
            self._out.copy_(self._graph.result, non_blocking=True)
            self._graph.record_done()

    def wait(self) -> NDArray[np.uint32]:
        """Answers (lanes, count, ANSWER_WORDS); they stay until the next launch."""
        if self._graph is not None:
            self._graph.wait()
        out: NDArray[np.uint32] = self._out.numpy().view(np.uint32)
        return out

    def search(self, slots: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Once wait() has returned: what holds each lane's slot among the rest, (lanes,
        FOUND_WORDS); for a slot of ~0 nothing is looked for."""
        np.copyto(self._slots.numpy(), slots.view(np.int32))
        if self._search_graph is None:
            self._wanted.copy_(self._slots)
            here: NDArray[np.uint32] = self._search().numpy().view(np.uint32)
            return here
        with self._search_graph.on_stream():
            self._wanted.copy_(self._slots, non_blocking=True)
            self._search_graph.replay()
            self._found.copy_(self._search_graph.result, non_blocking=True)
            self._search_graph.record_done()
        self._search_graph.wait()
        found: NDArray[np.uint32] = self._found.numpy().view(np.uint32)
        return found

    def logits(self) -> NDArray[np.int32]:
        """Of the last block, (lanes, count, vocabulary), once wait() has returned; those of
        candidates may be gone where a target or slot was looked for.  For tests."""
        rows: NDArray[np.int32] = self._rows.cpu().numpy()
        return rows.reshape(*self._questions.shape[:2], -1)
