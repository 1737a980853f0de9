"""Every Triton kernel equals its stage of the NumPy reference, and a whole block its logits and
state.  Without a CUDA device the kernels run in Triton's interpreter; with one, on it.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = triton.language

import ptx  # noqa: E402
from lmzip import reference, reference_coder, triton_kernels  # noqa: E402
from lmzip.lanes import DISTANCES, INTERVALS, LOGITS, SEARCH  # noqa: E402
from lmzip.model_file import Architecture, NgramTable  # noqa: E402
from lmzip.reference import ReferenceEngine, quantize, quantize_row  # noqa: E402
from lmzip.triton_engine import OPTIONS, Buffers, TritonEngine  # noqa: E402
from random_model import random_model, small_architecture  # noqa: E402
from triton_device import DEVICE  # noqa: E402

LANES, COUNT = 3, 5
ARCHITECTURES = {
    "small": small_architecture(),
    "sides that are no powers of two": Architecture(
        96, 1, 3, 1, 6, 160, (7,), (NgramTable(2, 5, 3, 50), NgramTable(4, 6, 40, 56))
    ),
    "wide head, many queries": Architecture(32, 2, 4, 2, 64, 64, (1, 70), ()),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def engines(request) -> tuple[TritonEngine, ReferenceEngine]:
    model = random_model(ARCHITECTURES[request.param], 1)
    return TritonEngine(model, DEVICE), ReferenceEngine(model)


def put(target, array) -> None:
    """Into the first rows of a buffer."""
    view = target[tuple(slice(n) for n in array.shape)]
    view.copy_(torch.from_numpy(np.ascontiguousarray(array)).to(target.dtype))


def take(source, rows: int) -> np.ndarray:
    return source[:rows].cpu().numpy().astype(np.int64)


def residual(rng: np.random.Generator, rows: int, channels: int) -> np.ndarray:
    """Rows of all magnitudes, one of zeros, one at the clamps."""
    x = rng.integers(-(1 << 23) + 1, 1 << 23, (rows, channels)) >> rng.integers(0, 22, (rows, 1))
    x[0] = 0
    x[1] = np.where(np.arange(channels) % 2, reference.RESIDUAL_MAX, -reference.RESIDUAL_MAX)
    return x


def assert_row_quantized(b: Buffers, x: np.ndarray) -> None:
    xq, r = quantize_row(x)
    np.testing.assert_array_equal(take(b.xq, len(x)), xq)
    np.testing.assert_array_equal(b.r[: len(x)].cpu().numpy(), r[:, 0])


@triton.jit
def _round(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    out = triton_kernels.round_half_even(tl.load(x_ptr + i))
    tl.store(out_ptr + i, out)


def test_rounding_is_to_the_nearest_even(rng):
    edges = [0.5, 1.5, 2.5, 0.49999997, 0.50000006, 1e-30, 1 << 22, (1 << 22) + 0.5, (1 << 23) - 1]
    edges += [8388606.5, 8388605.5, 127.5, 126.5, 0.0, 1e-38, 2.0**-126]
    x = np.concatenate(
        [edges, -np.array(edges), rng.normal(0, 1, 2016) * 2.0 ** rng.integers(-3, 20, 2016)]
    )
    x = torch.from_numpy(x.astype(np.float32)).to(DEVICE)
    out = torch.empty(len(x), dtype=torch.int32, device=DEVICE)
    _round[(1,)](x, out, BLOCK=len(x), **OPTIONS)
    np.testing.assert_array_equal(out.cpu().numpy(), np.rint(x.cpu().numpy()).astype(np.int32))


def test_embed(engines, rng):
    ours, truth = engines
    b = ours.buffers(LANES, COUNT)
    earlier = rng.integers(0, 256, (LANES, 4))  # newest first
    inputs = rng.integers(0, 256, (LANES, COUNT))
    put(b.inputs, inputs)
    put(b.history, (earlier << (8 * np.arange(4))).sum(1).astype(np.uint32).view(np.int32))
    ours.embed(b)
    text = np.concatenate([earlier[:, ::-1], inputs], axis=1)
    history = np.stack([text[:, t + 4 - np.arange(4)] for t in range(COUNT)], 1).reshape(-1, 4)
    x = truth._embed(history)
    np.testing.assert_array_equal(take(b.x, b.rows), x)
    assert_row_quantized(b, x)


@pytest.mark.parametrize("position", [0, 3, 123_456_789])
def test_split_heads(engines, rng, position):
    ours, truth = engines
    a = ours.arch
    b = ours.buffers(LANES, COUNT)
    acc = rng.integers(-(1 << 20), 1 << 20, (b.rows, ours.d_qkv)) >> rng.integers(
        0, 18, (b.rows, 1)
    )
    acc[0] = 0
    r = rng.random((b.rows, 1)).astype(np.float32)
    put(b.qkv, acc[:, ours._split_channels()])
    put(b.r, r[:, 0])
    b.position.fill_(position)
    ours.split_heads(b, 0)
    s = truth.t["layers.0.qkv.scale"]
    n_query, n_key = a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim
    v = reference.f(acc[:, n_query + n_key :]) * r * s[n_query + n_key :]
    v8 = reference.rint(v, -127, 127).reshape(LANES, COUNT, a.n_kv_heads, a.head_dim)
    order = np.r_[0 : a.head_dim : 2, 1 : a.head_dim : 2]
    for t in range(COUNT):
        rows = slice(t, None, COUNT)
        scaled = reference.f(acc[rows]) * s
        q8 = truth._rotate(scaled, slice(0, n_query), position + t)
        k8 = truth._rotate(scaled, slice(n_query, n_query + n_key), position + t)
        slot = (position + t) % b.keys[0].shape[2]
        np.testing.assert_array_equal(take(b.q, b.rows)[rows], q8[..., order])
        np.testing.assert_array_equal(b.keys[0][:, :, slot].cpu().numpy(), k8[..., order])
        np.testing.assert_array_equal(b.values[0][:, :, slot].cpu().numpy(), v8[:, t])


def test_values_are_scaled_in_the_order_of_the_document(rng):
    """(acc * r) * s is not acc * (r * s): products chosen so that the two round apart."""
    model = random_model(small_architecture(), 1)
    ours = TritonEngine(model, DEVICE)
    a = ours.arch
    b = ours.buffers(LANES, COUNT)
    values = slice((a.n_heads + a.n_kv_heads) * a.head_dim, None)
    s = model.tensors["layers.0.qkv.scale"][values]
    r = rng.random((b.rows, 1)).astype(np.float32)
    acc = np.zeros((b.rows, ours.d_qkv), np.int64)
    for row, scale in np.ndindex(b.rows, len(s)):
        tried = reference.f(np.arange(1, int(126 / (r[row, 0] * s[scale]))))
        apart = np.rint(tried * r[row] * s[scale]) != np.rint(tried * (r[row] * s[scale]))
        acc[row, values.start + scale] = tried[np.argmax(apart)]
    v8 = reference.rint(reference.f(acc[:, values]) * r * s, -127, 127)
    assert (v8 != reference.rint(reference.f(acc[:, values]) * (r * s), -127, 127)).any()
    put(b.qkv, acc[:, ours._split_channels()])
    put(b.r, r[:, 0])
    ours.split_heads(b, 0)
    stored = b.values[0].cpu().numpy()[:, :, :COUNT].transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(stored.reshape(b.rows, -1), v8)


@pytest.mark.parametrize("position", [0, 2, 1000])
def test_attention(engines, rng, position):
    ours, truth = engines
    a = ours.arch
    layer = a.n_layers - 1
    window = a.windows[layer]
    b = ours.buffers(LANES, COUNT)
    slots = b.keys[layer].shape[2]
    q8 = rng.integers(-127, 128, (b.rows, a.n_heads, a.head_dim))
    past = position + COUNT
    history = [rng.integers(-127, 128, (LANES, past, a.n_kv_heads, a.head_dim)) for _ in range(2)]
    for cache, kept in zip((b.keys[layer], b.values[layer]), history, strict=True):
        cache.fill_(99)  # what must not be read
        for j in range(max(0, past - slots), past):
            put(cache[:, :, j % slots], kept[:, j])
    put(b.q, q8)
    b.position.fill_(position)
    ours.attention(b, layer)
    for t in range(COUNT):
        seen = slice(max(0, position + t - window + 1), position + t + 1)
        p = truth._average(layer, q8[t::COUNT], *(kept[:, seen] for kept in history))
        np.testing.assert_array_equal(take(b.p, b.rows)[t::COUNT], p)


def test_quantize_average(engines, rng):
    ours, _ = engines
    b = ours.buffers(LANES, COUNT)
    p = rng.integers(-32767, 32768, (b.rows, b.p.shape[1])) >> rng.integers(0, 15, (b.rows, 1))
    p[0] = 0
    put(b.p, p)
    ours.quantize_average(b)
    pq, m = quantize(p, 127, -127)
    np.testing.assert_array_equal(take(b.pq, b.rows)[:, : p.shape[1]], pq)
    np.testing.assert_array_equal(take(b.factor, b.rows), m[:, 0])


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("kind", ["out", "down"])
def test_add_product(engines, rng, head, kind):
    ours, truth = engines
    b = ours.buffers(LANES, COUNT)
    x = residual(rng, b.rows, ours.arch.d_model)
    acc = rng.integers(-(1 << 24), 1 << 24, x.shape)
    acc[0] = 0
    factor = (rng.random((b.rows, 1)) * 2.0 ** rng.integers(0, 22, (b.rows, 1))).astype(np.float32)
    product = ours.layers[0][kind]
    for target, value in ((b.x, x), (b.acc, acc), (b.factor, factor[:, 0])):
        put(target, value)
    ours.add_product(b, product, head=head)
    offset, scale = product.offset.cpu().numpy(), product.scale.cpu().numpy()
    expected = truth._add(x, reference.f(acc + offset) * factor * scale)
    np.testing.assert_array_equal(take(b.x, b.rows), expected)
    if head:
        xq, r = quantize_row(expected, 8191)
        hi, lo = take(b.xq, b.rows), take(b.xq[b.padded :], b.rows)
        np.testing.assert_array_equal(128 * hi + lo, xq)
        np.testing.assert_array_equal(b.r[: b.rows].cpu().numpy(), r[:, 0])
    else:
        assert_row_quantized(b, expected)


def test_activate(engines, rng):
    ours, truth = engines
    b = ours.buffers(LANES, COUNT)
    acc = rng.integers(-(1 << 25), 1 << 25, (b.rows, ours.arch.d_ff)) >> rng.integers(
        0, 24, (b.rows, 1)
    )
    acc[0] = -1  # nothing passes
    r = rng.random((b.rows, 1)).astype(np.float32)
    put(b.up, acc)
    put(b.r, r[:, 0])
    ours.activate(b, ours.layers[0]["up"])
    u = reference.rint(reference.f(acc) * truth.t["layers.0.up.scale"], 0, 32767)
    hq, m = quantize(u * u, 255, 0)
    np.testing.assert_array_equal(take(b.hq, b.rows) + 128, hq)
    np.testing.assert_array_equal(b.factor[: b.rows].cpu().numpy(), (reference.f(m) * r * r)[:, 0])


def test_products_of_shifted_and_split_inputs_are_those_of_the_document(engines, rng):
    """hq - 128 with an offset, and 128 * hi + lo."""
    ours, truth = engines
    b = ours.buffers(LANES, COUNT)
    hq = rng.integers(0, 256, (b.rows, ours.arch.d_ff))
    put(b.hq, hq - 128)
    down = ours.layers[0]["down"]
    down(b.hq, b.acc)
    np.testing.assert_array_equal(
        take(b.acc, b.rows) + down.offset.cpu().numpy(), hq @ truth.t["layers.0.down.weight"].T
    )


@pytest.fixture
def sharp(engines, monkeypatch):
    """Logits so far apart that distances reach their limit."""
    ours, truth = engines
    scale = truth.t["head.scale"] * np.float32(32)
    monkeypatch.setitem(truth.t, "head.scale", scale)
    monkeypatch.setattr(ours.head_product, "scale", torch.from_numpy(scale).to(DEVICE))


def logit_rows(engines, rng) -> tuple[Buffers, np.ndarray]:
    """A block whose final residual rows are random, and its logits by the reference."""
    ours, truth = engines
    b = ours.buffers(LANES, COUNT)
    x = residual(rng, b.rows, ours.arch.d_model)
    put(b.x, x)
    b.acc.zero_()
    ours.add_product(b, ours.layers[0]["out"], head=True)  # adds nothing
    xq, r = quantize_row(x, 8191)
    acc = xq @ truth.t["head.weight"].T
    limit = reference.LOGIT_MAX
    return b, reference.rint(reference.f(acc) * r * truth.t["head.scale"], -limit, limit)


@pytest.mark.usefixtures("sharp")
def test_logits_and_distances(engines, rng):
    ours, _ = engines
    b, logits = logit_rows(engines, rng)
    found = ours.predict(b, LOGITS).cpu().numpy().reshape(logits.shape)
    np.testing.assert_array_equal(found, logits)
    distances = ours.predict(b, DISTANCES).cpu().numpy().view(np.uint16).reshape(logits.shape)
    expected = np.minimum(logits.max(-1, keepdims=True) - logits, 65535)
    assert (expected == 65535).any()
    np.testing.assert_array_equal(distances, expected)


def test_intervals_and_search(engines, rng):
    ours, _ = engines
    b, logits = logit_rows(engines, rng)
    symbols = rng.integers(0, 256, b.rows)
    put(b.given, symbols.reshape(LANES, COUNT))
    ends = np.array(
        [reference_coder.cumulative(reference_coder.logit_weights(row)) for row in logits.tolist()]
    )
    row = np.arange(b.rows)
    lo, hi = ends[row, symbols], ends[row, symbols + 1]
    found = ours.predict(b, INTERVALS).cpu().numpy().reshape(-1, 2)
    np.testing.assert_array_equal(found, np.stack([lo, hi - lo], 1))
    for slots in (lo, hi - 1, (lo + hi) // 2):
        put(b.given, slots.reshape(LANES, COUNT))
        found = ours.predict(b, SEARCH).cpu().numpy().reshape(-1, 2)
        np.testing.assert_array_equal(found, np.stack([lo, hi - lo], 1))
        np.testing.assert_array_equal(b.inputs.cpu().numpy().reshape(-1), symbols)


@pytest.mark.parametrize("count", [1, 4, 12])
def test_blocks_of_any_length_equal_the_reference_step_by_step(engines, rng, count):
    ours, truth = engines
    text = rng.integers(97, 123, (LANES, 12)).astype(np.uint8)
    text[:, 0] = 0
    state = truth.start(LANES)
    expected = np.stack([truth.step(state, text[:, t]) for t in range(12)], axis=1)
    b = ours.buffers(LANES, count)
    for _ in range(1 if count == 1 else 2):  # again in the same buffers
        ours.restart(b)
        found = []
        for t in range(0, 12, count):
            put(b.inputs, text[:, t : t + count])
            found.append(ours.evaluate(b, LOGITS).cpu().numpy().copy())
        np.testing.assert_array_equal(np.concatenate(found, axis=1), expected)
        position, history, keys, values = ours.state(b)
        assert position == state.position
        np.testing.assert_array_equal(history, state.history)
        for mine, reference_cache in zip(keys + values, state.keys + state.values, strict=True):
            np.testing.assert_array_equal(mine, reference_cache)


NAMES = ["embed", "split_heads", "attention", "quantize_average", "add_product", "activate", "head"]
NAMES += ["advance"]
COMPILE = f"""
import ptx
from lmzip import triton_engine, triton_kernels
from lmzip.lanes import DISTANCES, INTERVALS, SEARCH
from random_model import random_model
from lmzip.model_file import Architecture, NgramTable

ptx.record(triton_kernels, {NAMES})
tables = tuple(NgramTable(order, 6, 64 * (order % 2), 64) for order in (2, 3, 4))
architecture = Architecture(256, 1, 4, 2, 32, 1024, (256,), tables)
engine = triton_engine.TritonEngine(random_model(architecture, 1), "cpu")
for count, modes in ((1, (DISTANCES, SEARCH)), (16, (INTERVALS,))):
    buffers = engine.buffers(64, count)
    for mode in modes:
        engine.evaluate(buffers, mode)
ptx.write_ptx()
"""


def test_compiled_kernels_round_every_float_operation_correctly(tmp_path):
    kernels = ptx.compile_apart(COMPILE, tmp_path)
    assert {name for name, _ in kernels} == set(NAMES)
    ptx.check(kernels)
    together = "".join(text for _, text in kernels)
    for used in ("div.rn.f32", "sqrt.rn.f32", "cvt.rni", ".s32.s8.s8"):
        assert used in together
