"""Every Triton kernel for pretrained models equals its stage of the NumPy reference, and whole
blocks its logits and state.  Without a CUDA device the kernels run in Triton's interpreter; with
one, on it.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("triton", reason="Triton is not installed")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

import ptx  # noqa: E402
from lmzip import llama_reference, triton_llama  # noqa: E402
from lmzip.llama_reference import RESIDUAL_MAX, LlamaReference  # noqa: E402
from lmzip.reference import LOGIT_MAX, f, rint  # noqa: E402
from lmzip.torch_engine import Product  # noqa: E402
from lmzip.triton_llama import Quantized, Tile, TritonLlama  # noqa: E402
from lmzip.triton_llama_kernels import _round_wide  # noqa: E402
from random_llama import random_llama, small_llama  # noqa: E402
from test_llama_engine import ARCHITECTURES  # noqa: E402
from test_torch_llama import assert_same_state  # noqa: E402
from triton_device import DEVICE  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LANES, COUNT = 3, 4
ROWS = LANES * COUNT
STAGES = {
    "wide, norm of queries and keys": small_llama(
        d_model=96, n_heads=3, n_kv_heads=1, head_dim=96, d_ff=160, qk_norm=True, windows=(5, 40)
    ),
    "narrow, no sinks": small_llama(wide=(), tied=False, sinks=(0, 0)),
    "norms after each part, two rotations": small_llama(
        d_model=96, d_ff=160, post_norms=True, local=(True, False)
    ),
}


@pytest.fixture(scope="module", params=STAGES)
def engines(request) -> tuple[TritonLlama, LlamaReference]:
    model = random_llama(STAGES[request.param], 1)
    return TritonLlama(model, DEVICE), LlamaReference(model)


def put(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE, dtype)


def whole(q: Quantized) -> np.ndarray:
    """The integers of both planes."""
    planes = q.q.cpu().numpy().astype(np.int64)
    return planes[0] * 128 + planes[1] if len(planes) == 2 else planes[0]


def quantized(
    rng: np.random.Generator, product: Product, rows: int
) -> tuple[Quantized, np.ndarray]:
    """Rows of all magnitudes up to the limit, a row of zeros and one at the limits; and as one
    array."""
    most = product.largest_input
    q = rng.integers(-most, most + 1, (rows, product.inputs)) >> rng.integers(0, 6, (rows, 1))
    q[0] = 0
    q[1] = np.where(rng.random(product.inputs) < 0.5, most, -most)
    planes = np.stack([q >> 7, q & 127]) if product.wide else q[None]
    r = (rng.random(rows) * 2.0 ** rng.integers(-12, 3, rows)).astype(np.float32)
    return Quantized(put(planes, torch.int8), put(r, torch.float32)), q


def residual(rng: np.random.Generator, rows: int, channels: int) -> np.ndarray:
    """Rows of all magnitudes, one of zeros, one at the clamps, one of a single number."""
    x = rng.integers(-RESIDUAL_MAX, RESIDUAL_MAX + 1, (rows, channels))
    x >>= rng.integers(0, 30, (rows, 1))
    x[0] = 0
    x[1] = np.where(np.arange(channels) % 2, RESIDUAL_MAX, -RESIDUAL_MAX)
    x[2] = np.arange(channels) == 3
    return x


def assert_quantized(ours: Quantized, q: np.ndarray, r: np.ndarray) -> None:
    np.testing.assert_array_equal(whole(ours), q)
    np.testing.assert_array_equal(ours.r.cpu().numpy(), r[:, 0])


def test_embed(engines, rng) -> None:
    ours, truth = engines
    residual_unit = np.float32(1 << ours.arch.residual_bits)
    tokens = rng.integers(0, ours.arch.vocabulary, ROWS)
    x, q = ours.embed(put(tokens, torch.int32))
    scale = truth.t["embedding.scale"][tokens] * residual_unit
    expected = f(truth.t["embedding.weight"][tokens]) * scale[:, None]
    expected = rint(expected, -RESIDUAL_MAX, RESIDUAL_MAX)
    np.testing.assert_array_equal(x.cpu().numpy(), expected)
    assert_quantized(q, *truth._normalize(expected, "layers.0.attention.norm", "qkv"))


def test_normalize(engines, rng) -> None:
    ours, truth = engines
    x = residual(rng, 60, ours.arch.d_model)
    x[40:] = rng.integers(1 << 26, RESIDUAL_MAX, x[40:].shape)  # no signs: all shifts lose alike
    q = ours.normalize(put(x, torch.int32), ours.head_norm, ours.head)
    assert_quantized(q, *truth._normalize(x, "head.norm", "head"))


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("block", [4096, 64])
def test_quantize(engines, rng, monkeypatch, down, block) -> None:
    """Floats of all magnitudes that there are, also where scales are subnormal."""
    ours, _ = engines
    monkeypatch.setattr(triton_llama, "QUANTIZE_BLOCK", block)
    product = ours.layers[0].down if down else ours.layers[0].out
    y = rng.normal(0, 1, (ROWS, product.inputs))
    y *= 2.0 ** np.array([[-140, -110, -101, -99.5, -98, -50, 0, 1, 40, 110, 0, 0]]).T
    y[10] = 0
    y = y.astype(np.float32)
    r = rng.random((ROWS, 1)) * 2.0 ** np.array([[0, -20, -30, -28, -32, -80, 0, 0, 0, 0, 0, 0]]).T
    r = r.astype(np.float32)
    q = ours.quantize(product, put(y, torch.float32), put(r[:, 0], torch.float32) if down else None)
    expected, scale = llama_reference.quantize(y, product.largest_input)
    unit = np.float32(1 << ours.arch.residual_bits)
    factor = scale * r * (unit * np.float32(2.0**-16)) if down else scale * unit
    assert_quantized(q, expected, factor)


def test_project_heads(engines, rng) -> None:
    ours, truth = engines
    layer = ours.layers[1]
    xq, q = quantized(rng, layer.qkv, 35)
    u = ours.project_heads(layer, xq).cpu().numpy()
    y = f(q @ truth.t["layers.1.qkv.weight"].T) * (xq.r.cpu().numpy()[:, None] * np.float32(4096))
    expected = rint(y * truth.t["layers.1.qkv.scale"], -(1 << 24), 1 << 24)
    np.testing.assert_array_equal(u, expected + truth.t["layers.1.qkv.bias"])
    assert (abs(expected) == 1 << 24).any() or layer.qkv.largest_input == 127


@pytest.mark.parametrize("kind", ["out", "down"])
def test_add_part(engines, rng, kind) -> None:
    """With a norm after it too: its unit, and so its epsilon, at both ends and between."""
    ours, truth = engines
    layer, product = ours.layers[0], getattr(ours.layers[0], kind)
    gain = layer.attention_post_norm if kind == "out" else layer.mlp_post_norm
    factor, q = quantized(rng, product, 21)
    factor.r.mul_(2.0**ours.arch.residual_bits)
    factor.r[3:9] = torch.tensor([0, 2.0**-149, 2.0**-60, 2.0**-20, 2.0**-9, 2.0**90])
    x = residual(rng, 21, ours.arch.d_model)
    changed = put(x, torch.int32)
    ours.add_part(product, gain, changed, factor)
    part = {"out": "attention", "down": "mlp"}[kind]
    r = factor.r.cpu().numpy()[:, None]
    expected = truth._project(x, f"layers.0.{part}", f"layers.0.{kind}", q, r)
    np.testing.assert_array_equal(changed.cpu().numpy(), expected)


def test_wide_rounding() -> None:
    """To nearest, ties to even, as far as an epsilon goes."""
    values = [
        0.0,
        0.5,
        1.5,
        2.5,
        3.4999998,
        2.0**22 + 0.5,
        2.0**23 - 0.5,
        2.0**23,
        2.0**40,
        2.0**60,
    ]
    found = torch.zeros(16, dtype=torch.int64, device=DEVICE)
    a = torch.tensor(values + [1.0] * 6, device=DEVICE)
    _rounded[(1,)](a, found)
    expected = [round(float(v)) for v in a.cpu().numpy()]
    assert found.tolist() == expected


@triton.jit
def _rounded(a_ptr, out_ptr):
    i = tl.arange(0, 16)
    tl.store(out_ptr + i, _round_wide(tl.load(a_ptr + i)))


def test_gate(engines, rng) -> None:
    ours, truth = engines
    d_ff, s = ours.arch.d_ff, truth.t["layers.0.gate_up.scale"]
    xq, q = quantized(rng, ours.layers[0].gate_up, 21)
    h = ours.gate(ours.layers[0].gate_up, xq).cpu().numpy()
    acc = f(q @ truth.t["layers.0.gate_up.weight"].T)
    g = acc[:, :d_ff] * xq.r.cpu().numpy()[:, None] * s[:d_ff]
    assert abs(g).max() > 16  # past the table's ends
    t = f(truth.t["sigmoid"][rint(g * np.float32(256), -4096, 4095) + 4096])
    np.testing.assert_array_equal(h, g * t * (acc[:, d_ff:] * s[d_ff:]))


def test_logits(engines, rng) -> None:
    ours, truth = engines
    xq, q = quantized(rng, ours.head, 21)
    xq.r.mul_(64)
    weights = truth.t["embedding.weight" if ours.arch.tied else "head.weight"]
    r = xq.r.cpu().numpy()[:, None]
    expected = rint(f(q @ weights.T) * r * truth.t["head.scale"], -LOGIT_MAX, LOGIT_MAX)
    assert (expected == LOGIT_MAX).any()
    unused = truth.t["tokens.size"] == 0
    unused[ours.arch.escape] = False
    expected[:, unused] = -LOGIT_MAX
    np.testing.assert_array_equal(ours.logits(xq).cpu().numpy(), expected)


@pytest.mark.parametrize(
    "tile", [Tile(16, 64, 128, 4, 4), Tile(64, 32, 32, 4, 4), Tile(128, 128, 64, 8, 3)]
)
@pytest.mark.parametrize(("inputs", "largest"), [(2112, 8006), (1056, 127), (96, 8191)])
def test_products_are_exact_at_their_limits(engines, rng, tile, inputs, largest) -> None:
    """Sums up to 2^31, where those of the high halves alone pass it: 128 * -63 * 127 * 2112."""
    ours, _ = engines
    weight = rng.integers(-127, 128, (70, inputs))
    weight[:4] = [[127], [-127], [126], [-1]]
    product = Product(put(weight, torch.int8), torch.ones(70, device=DEVICE), largest)
    q = rng.integers(-largest, largest + 1, (5, inputs))
    q[:3] = [[largest], [-largest], [largest - 1]]
    planes = np.stack([q >> 7, q & 127]) if product.wide else q[None]
    half = torch.full((5,), 0.5, device=DEVICE)  # sums come near 2^31, residuals stop at 2^30
    x = torch.zeros(5, 70, dtype=torch.int32, device=DEVICE)
    rows = Quantized(put(planes, torch.int8), half)
    ours._product(triton_llama.kernels.add_product, product, rows, x, tile=tile)
    sums = q @ weight.T
    assert abs(sums).max() > 1 << 30 or inputs < 2112
    expected = rint(f(sums) * np.float32(0.5), -RESIDUAL_MAX, RESIDUAL_MAX)
    np.testing.assert_array_equal(x.cpu().numpy(), expected)


@pytest.mark.parametrize("position", [0, 3, 200, 123_456_789])
def test_split_heads(engines, rng, position) -> None:
    ours, truth = engines
    a, layer = ours.arch, 0
    window, sinks = a.windows[layer], a.sinks[layer]
    heads = a.n_heads + 2 * a.n_kv_heads
    u = rng.integers(-(1 << 25), (1 << 25) + 1, (ROWS, heads, a.head_dim))
    u >>= rng.integers(0, 24, (ROWS, heads, 1))
    u[0] = 0
    u[1] = np.where(rng.random(u[1].shape) < 0.5, 1 << 25, -(1 << 25))
    state = ours.start(LANES, 4 * COUNT, COUNT)
    cache = state.caches[layer]
    state.position.fill_(position)
    found = ours.split_heads(
        ours.layers[layer], put(u.reshape(ROWS, -1), torch.int32), cache, state.position, COUNT
    )
    q8, q_scale = found.q.cpu().numpy(), found.scale.cpu().numpy()
    ring = cache.keys.shape[2] - sinks
    local = ours.layers[layer].layout.local
    turns = truth.t["rotary.local_frequency" if local else "rotary.frequency"]
    for t in range(COUNT):
        at = position + t
        slot = at if at < sinks else sinks + (at - sinks) % ring
        rows = slice(t, None, COUNT)
        queries, keys, values = np.split(u[rows], [a.n_heads, a.n_heads + a.n_kv_heads], 1)
        leveled = truth._level(f"layers.{layer}.q.norm", queries)
        meets = [at, min(at, window + sinks - 1)][: 2 if sinks else 1]
        for plane, where in enumerate(meets):
            v8, scale = truth._rotate(*leveled, turns, where)
            np.testing.assert_array_equal(q8[plane, rows], v8)
            np.testing.assert_array_equal(q_scale[plane, rows], scale[..., 0])
        leveled = truth._level(f"layers.{layer}.k.norm", keys)
        k8, k_scale = truth._rotate(*leveled, turns, at)
        v8, v_scale = llama_reference.quantize(f(values), 127)
        for ours_t, theirs in (
            (cache.keys, k8),
            (cache.values, v8),
            (cache.key_scales, k_scale[..., 0]),
            (cache.value_scales, v_scale[..., 0] * np.float32(2.0**-12)),
        ):
            np.testing.assert_array_equal(ours_t[:, :, slot].cpu().numpy(), theirs)


@pytest.mark.parametrize("kept", [0, 64])
@pytest.mark.parametrize("position", [0, 2, 9, 70])
@pytest.mark.parametrize("layer", [0, 1])
def test_attention(engines, rng, monkeypatch, layer, position, kept) -> None:
    """With scores kept and made anew; the ring has wrapped at the last positions."""
    ours, truth = engines
    monkeypatch.setattr(triton_llama, "KEPT_QUERIES", kept)
    a, sinks = ours.arch, ours.arch.sinks[layer]
    state = ours.start(LANES, position + COUNT, COUNT)
    cache, past = state.caches[layer], position + COUNT
    state.position.fill_(position)
    theirs = truth.start(LANES)
    shape = LANES, past, a.n_kv_heads
    theirs.keys[layer] = rng.integers(-127, 128, (*shape, a.head_dim)).astype(np.int8)
    theirs.values[layer] = rng.integers(-127, 128, (*shape, a.head_dim)).astype(np.int8)
    for scales in (theirs.key_scales, theirs.value_scales):
        scales[layer] = (rng.random(shape) * 0.05).astype(np.float32)
    theirs.value_scales[layer][0] = 0  # all values 0: no weight
    slots = cache.keys.shape[2]
    for ours_t, history in (
        (cache.keys, theirs.keys),
        (cache.values, theirs.values),
        (cache.key_scales, theirs.key_scales),
        (cache.value_scales, theirs.value_scales),
    ):
        ours_t.fill_(99)  # what must not be read
        for j in range(past):
            slot = j if j < sinks else sinks + (j - sinks) % (slots - sinks)
            ours_t[:, :, slot] = put(history[layer][:, j], ours_t.dtype)
    q8 = rng.integers(-127, 128, (2, ROWS, a.n_heads, a.head_dim))
    scale = (rng.random((2, ROWS, a.n_heads, 1)) * 0.02).astype(np.float32)
    heads = triton_llama.Heads(put(q8, torch.int8), put(scale[..., 0], torch.float32))
    found = ours.attention(ours.layers[layer], heads, cache, state.position, COUNT).cpu().numpy()
    for t in range(COUNT):
        theirs.position = position + t
        near, far = ((q8[i, t::COUNT], scale[i, t::COUNT]) for i in range(2))
        expected = truth._average(layer, near, far, theirs)
        np.testing.assert_array_equal(found[t::COUNT], expected.reshape(LANES, -1))


ONE = "grouped heads, sinks"  # goes step by step too, and again in the same memory
BLOCKS = [(name, count) for name in ARCHITECTURES for count in (4, 12)] + [(ONE, 1)]


@pytest.mark.parametrize(("name", "count"), BLOCKS)
def test_blocks_of_any_length_equal_the_reference_step_by_step(name, count) -> None:
    """Blocks of 12 do not keep their scores, the others do."""
    architecture = ARCHITECTURES[name]
    lanes, positions = 2, 12 if count > 1 else 7
    model = random_llama(architecture, 5)
    ours, truth = TritonLlama(model, DEVICE), LlamaReference(model)
    tokens = np.random.default_rng(2).integers(0, architecture.vocabulary, (lanes, positions))
    tokens[:, 0] = architecture.start
    theirs = truth.start(lanes)
    expected = np.stack([truth.step(theirs, tokens[:, t]) for t in range(positions)], 1)
    state = ours.start(lanes, positions, count, graph=True)
    for _ in range(2 if (name, count) == (ONE, 12) else 1):
        parts = [ours.feed(state, part) for part in put(tokens, torch.int32).split(count, 1)]
        np.testing.assert_array_equal(torch.cat(parts, 1).cpu().numpy(), expected)
        assert_same_state(ours, state, theirs)
        ours.restart(state)


# ── the compiled kernels ──

NAMES = ["embed", "normalize", "quantize", "project_heads", "add_product", "gate", "head"]
NAMES += ["split_heads", "attention", "survey", "targets", "search", "part_sums", "add_post_norm"]
COMPILE = f"""
import torch
import ptx
from lmzip import token_answers, triton_llama, triton_llama_kernels
from random_llama import random_llama, small_llama

ptx.record(triton_llama_kernels, {NAMES})
for norm, sinks in ((False, 4), (True, 0)):
    architecture = small_llama(n_layers=1, windows=(300,), sinks=(sinks,), qk_norm=norm,
                               head_dim=64, d_model=192, n_heads=3, n_kv_heads=1, d_ff=256,
                               post_norms=norm, local=(norm,))
    engine = triton_llama.TritonLlama(random_llama(architecture, 1), "cpu")
    for lanes, count in ((64, 1), (16, 64)) if sinks else ((64, 1),):
        triton_llama.MULTIPROCESSORS = 132 if count == 1 else 1  # small tiles, large ones
        tokens = torch.zeros(lanes, count, dtype=torch.int32)
        logits = engine.feed(engine.start(lanes, 1024, count, graph=True), tokens).flatten(0, 1)
        questions = torch.zeros(len(logits), token_answers.QUESTION_WORDS, dtype=torch.int32)
        answers = engine.answer(logits, questions)
        engine.search(logits, questions, answers, questions[:, 0].contiguous())
ptx.write_ptx()
"""


def test_compiled_kernels_round_every_float_operation_correctly(tmp_path) -> None:
    kernels = ptx.compile_apart(COMPILE, tmp_path)
    assert {name for name, _ in kernels} == set(NAMES)
    ptx.check(kernels)
    together = "".join(text for _, text in kernels)
    for used in ("div.rn.f32", "sqrt.rn.f32", "cvt.rni", ".s32.s8.s8"):
        assert used in together
