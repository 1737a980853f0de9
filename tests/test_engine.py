"""The native engine equals the reference, on logits and state, and frames come back.

Equality is exact everywhere, whatever the batch, the cut of the input, the threads and the kernel.
"""

import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmzip import _core, models
from lmzip.errors import CorruptError, UnsupportedError
from lmzip.model_file import Architecture, ExactModel, NgramTable, load
from lmzip.reference import ReferenceEngine
from random_model import random_model, small_architecture

KERNELS = _core.kernels()
ARCHITECTURES = {
    "grouped heads": small_architecture(),
    "three heads of one": small_architecture(n_heads=3, head_dim=32, windows=(3, 33)),
    "a key head each": small_architecture(n_heads=2, n_kv_heads=2, head_dim=64, d_model=64),
    "odd channels": small_architecture(n_heads=3, n_kv_heads=3, head_dim=6, windows=(1, 7)),
    "head of 2": small_architecture(n_heads=5, n_kv_heads=5, head_dim=2, windows=(2, 2)),
    "head of 128": small_architecture(head_dim=128, n_layers=1, windows=(9,)),
    "no n-grams": small_architecture(ngrams=(), d_ff=32),
    "overlapping n-grams": small_architecture(
        ngrams=(NgramTable(4, 1, 3, 29), NgramTable(2, 9, 0, 7), NgramTable(3, 5, 1, 1))
    ),
    "wide": small_architecture(d_model=160, d_ff=416, windows=(16, 24)),
}


@pytest.fixture(autouse=True)
def _restore_kernel() -> Iterator[None]:
    yield
    _core.set_active_kernel("")


def native(model: ExactModel, kernel: str = "") -> _core.ExactModel:
    _core.set_active_kernel(kernel)
    return _core.ExactModel(model.tensors, model.architecture.to_json())


def some_inputs(lanes: int, positions: int, seed: int) -> npt.NDArray[np.uint8]:
    """A small alphabet, so that n-gram tables see the same keys again; every lane starts with 0."""
    inputs = np.random.default_rng(seed).integers(97, 103, (lanes, positions)).astype(np.uint8)
    inputs[:, :1] = 0
    return inputs


def assert_same_state(engine: _core.Engine, state: object) -> None:
    position, history, keys, values = engine.state()
    assert position == state.position  # type: ignore[attr-defined]
    np.testing.assert_array_equal(history, state.history)  # type: ignore[attr-defined]
    for ours, theirs in zip(
        keys + values,
        state.keys + state.values,  # type: ignore[attr-defined]
        strict=True,
    ):
        assert ours.shape == theirs.shape
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_step_and_prefill_equal_the_reference(architecture: Architecture, kernel: str) -> None:
    model = random_model(architecture, seed=5)
    reference = ReferenceEngine(model)
    state = reference.start(3)
    inputs = some_inputs(3, 40, seed=6)
    expected = np.stack([reference.step(state, inputs[:, t]) for t in range(40)], axis=1)
    assert len(np.unique(expected)) > 1000  # a model that says nothing would pass any comparison

    packed = native(model, kernel)
    stepped, whole = _core.Engine(packed, 3, 2), _core.Engine(packed, 3, 1)
    for t in range(40):
        step = stepped.step(np.ascontiguousarray(inputs[:, t]))
        np.testing.assert_array_equal(step, expected[:, t], err_msg=f"position {t}")
    np.testing.assert_array_equal(whole.prefill(inputs), expected)
    assert_same_state(stepped, state)
    assert_same_state(whole, state)


@given(
    lanes=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 70), max_size=5),
    threads=st.integers(1, 8),
    kernel=st.sampled_from(KERNELS),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_cut_lanes_and_threads_give_the_same(
    lanes: int, cuts: list[int], threads: int, kernel: str, seed: int
) -> None:
    model = random_model(small_architecture(), seed % 3)
    inputs = some_inputs(lanes, 70, seed)
    whole = _core.Engine(native(model, "portable"), lanes)
    expected = whole.prefill(inputs)
    engine = _core.Engine(native(model, kernel), lanes, threads)
    bounds = sorted({0, *cuts, 70})
    for begin, end in itertools.pairwise(bounds):
        part = np.ascontiguousarray(inputs[:, begin:end])
        logits = engine.step(part[:, 0])[:, None] if end - begin == 1 else engine.prefill(part)
        np.testing.assert_array_equal(logits, expected[:, begin:end])
    for ours, theirs in zip(engine.state()[2], whole.state()[2], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_bundled_model_equals_the_reference_on_text() -> None:
    """Real weights, real text, every window full; PyTorch too."""
    torch = pytest.importorskip("torch")
    from lmzip.torch_engine import TorchEngine

    info = models.default()
    assert info is not None
    model = load(info.path)
    positions = max(model.architecture.windows) + 40
    text = (Path(__file__).parent / "data" / "alice29.txt").read_bytes()
    inputs = np.frombuffer(text[: 3 * positions], np.uint8).reshape(3, positions).copy()
    reference = ReferenceEngine(model)
    state = reference.start(3)
    expected = np.stack([reference.step(state, inputs[:, t]) for t in range(positions)], axis=1)
    theirs = TorchEngine(model)
    logits = theirs.prefill(theirs.start(3), torch.from_numpy(inputs))
    np.testing.assert_array_equal(logits.numpy(), expected)
    for kernel in KERNELS:
        engine = _core.Engine(native(model, kernel), 3, 2)
        first = engine.prefill(np.ascontiguousarray(inputs[:, :-1]))
        np.testing.assert_array_equal(first, expected[:, :-1], err_msg=kernel)
        np.testing.assert_array_equal(engine.step(inputs[:, -1].copy()), expected[:, -1])
        assert_same_state(engine, state)


def test_a_lane_does_not_see_its_neighbors() -> None:
    model = native(random_model(small_architecture(), 1))
    inputs = some_inputs(256, 20, seed=2)
    together = _core.Engine(model, 256, 3).prefill(inputs)
    for lane in (0, 1, 31, 32, 254, 255):
        alone = _core.Engine(model, 1).prefill(inputs[lane : lane + 1])
        np.testing.assert_array_equal(together[lane : lane + 1], alone)


def test_extreme_weights_do_not_overflow() -> None:
    """Every weight at its limit: the largest sums that docs/numerics.md allows for these shapes."""
    model = random_model(small_architecture(d_model=256, d_ff=1024), 3)
    for name, tensor in model.tensors.items():
        if tensor.dtype == np.int8:
            tensor[...] = np.where(tensor < 0, -127, 127)
        if name.endswith("up.weight"):
            tensor[...] = 127
    reference = ReferenceEngine(model)
    state = reference.start(1)
    for kernel in KERNELS:
        engine = _core.Engine(native(model, kernel), 1)
        if kernel == KERNELS[0]:
            inputs = some_inputs(1, 24, 1)
            expected = np.stack([reference.step(state, inputs[:, t]) for t in range(24)], axis=1)
        np.testing.assert_array_equal(engine.prefill(inputs), expected)


def test_committed_vectors_are_what_the_reference_says() -> None:
    """tests/native/engine_check.cpp replays them, also on machines without Python."""
    path = Path(__file__).parent / "vectors" / "make_engine.py"
    spec = importlib.util.spec_from_file_location("make_engine", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    assert (path.parent / "engine.txt").read_text() == module.render()


# --- what the model refuses ---


def test_tensor_of_another_shape_is_refused() -> None:
    model = random_model(small_architecture(), 0)
    model.tensors["layers.1.up.weight"] = model.tensors["layers.1.up.weight"][:-1]
    with pytest.raises(CorruptError, match=r"layers.1.up.weight is int8 \(63, 32\), expected"):
        native(model)


def test_missing_tensor_is_refused() -> None:
    model = random_model(small_architecture(), 0)
    del model.tensors["head.scale"]
    with pytest.raises(CorruptError, match=r"head\.scale is missing"):
        native(model)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layers.0.qkv.weight", -128),
        ("layers.0.down.scale", np.nan),
        ("head.scale", 0.0),
        ("layers.1.softmax", 4096),
        ("embedding.shift", 16),
        ("embedding.ngram.1", -128),
        ("rotary.cosine", -20000),
    ],
)
def test_value_outside_its_range_is_refused(name: str, value: float) -> None:
    model = random_model(small_architecture(), 0)
    model.tensors[name].flat[-1] = value
    with pytest.raises(CorruptError, match=f"{name} has values outside"):
        native(model)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("d_model", 33),
        ("d_model", 4096),
        ("n_layers", 3),
        ("n_kv_heads", 0),
        ("head_dim", 130),
        ("d_ff", 0),
        ("windows", [5, 0]),
        ("windows", [5, 4097]),
        ("ngrams", [{"order": 5, "log2_slots": 4, "offset": 0, "width": 8}]),
        ("ngrams", [{"order": 2, "log2_slots": 4, "offset": 30, "width": 8}]),
    ],
)
def test_impossible_architecture_is_refused(field: str, value: object) -> None:
    model = random_model(small_architecture(), 0)
    architecture = {**model.architecture.to_json(), field: value}
    with pytest.raises(UnsupportedError, match="not possible"):
        _core.ExactModel(model.tensors, architecture)


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("d_model", 32.0, "d_model has a value of the wrong type or size: 32.0"),
        ("d_ff", -1, "d_ff has a value of the wrong type or size: -1"),
        ("n_heads", "\u00fc" * 99, r"n_heads .*: '\\xfc\\xfc"),
        ("windows", [5, 6.5], r"windows .*: \[5, 6\.5\]"),
        ("ngrams", [7], r"ngrams .*: \[7\]"),
        ("ngrams", [{"order": 2, "log2_slots": 4.0}], r"log2_slots .*: 4\.0"),
    ],
)
def test_architecture_of_other_types_is_refused_by_name(field, value, shown) -> None:
    model = random_model(small_architecture(), 0)
    architecture = {**model.architecture.to_json(), field: value}
    with pytest.raises(UnsupportedError, match=f"architecture: {shown}"):
        _core.ExactModel(model.tensors, architecture)


# --- frames ---

METHODS = {"network": 1, "mixer": 2, "network+mixer": 3}
TABLE_BITS = {1: 0, 2: 16, 3: 16}
SIZES = [
    0, 1, 2,            # nothing, one byte, two
    31, 32, 33,         # a band of the encoder
    97,                 # prime
    257, 1000,
]  # fmt: skip


@pytest.fixture(scope="module")
def small_model() -> _core.ExactModel:
    return native(random_model(small_architecture(), 8))


def some_bytes(size: int) -> bytes:
    return (b"the cat sat on the mat; " * (size // 20 + 1))[:size]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize("lanes", [1, 2, 3, 16, 40])
@pytest.mark.parametrize("size", SIZES)
def test_frame_comes_back(
    small_model: _core.ExactModel, size: int, lanes: int, method: int
) -> None:
    raw, bits = some_bytes(size), TABLE_BITS[method]
    model = None if method == METHODS["mixer"] else small_model
    payloads = _core.encode_frame(model, raw, lanes, method, bits, 2)
    assert len(payloads) == lanes
    assert payloads == _core.encode_frame(model, raw, lanes, method, bits, 1)
    for threads in (1, 3):
        assert _core.decode_frame(model, payloads, size, method, bits, threads) == raw
    stride = -(-size // lanes)
    for lane, payload in enumerate(payloads):
        if lane * stride >= size:
            assert payload == b""


@pytest.mark.parametrize("method", [1, 3])
@pytest.mark.parametrize("kernel", KERNELS)
def test_payloads_do_not_depend_on_threads_or_kernel(kernel: str, method: int) -> None:
    model = random_model(small_architecture(windows=(30, 100)), 9)
    raw = bytes(some_inputs(1, 3000, seed=4)[0])
    bits = TABLE_BITS[method]
    expected = _core.encode_frame(native(model, "portable"), raw, 19, method, bits, 1)
    packed = native(model, kernel)
    for threads in range(1, 9):
        assert _core.encode_frame(packed, raw, 19, method, bits, threads) == expected
        assert _core.decode_frame(packed, expected, len(raw), method, bits, threads) == raw


@given(data=st.data(), method=st.sampled_from([1, 3]), lanes=st.integers(1, 9))
def test_altered_payload_is_refused_or_harmless(
    small_model: _core.ExactModel, data: st.DataObject, method: int, lanes: int
) -> None:
    raw = data.draw(st.binary(min_size=1, max_size=300))
    payloads = _core.encode_frame(small_model, raw, lanes, method, TABLE_BITS[method], 1)
    lane = data.draw(st.integers(0, lanes - 1))
    payloads[lane] = data.draw(st.binary(max_size=len(payloads[lane]) + 3))
    try:
        got = _core.decode_frame(small_model, payloads, len(raw), method, TABLE_BITS[method], 2)
    except CorruptError:
        return
    # The end of a payload is canonical: what decodes must encode to the same payloads again.
    again = _core.encode_frame(small_model, got, lanes, method, TABLE_BITS[method], 1)
    assert again == payloads


def test_truncated_payload_is_refused_early(small_model: _core.ExactModel) -> None:
    with pytest.raises(CorruptError, match="lane 0 ends before its bytes do"):
        _core.decode_frame(small_model, [b"ab"], 1 << 22, 1, 0, 1)


@pytest.mark.parametrize(
    ("method", "lanes", "bits", "with_model"),
    [(1, 0, 0, True), (1, 1, 0, False), (3, 1, 15, True), (3, 1, 31, True), (4, 1, 0, True)],
)
def test_parameters_that_do_not_fit_are_refused(
    small_model: _core.ExactModel, method: int, lanes: int, bits: int, with_model: bool
) -> None:
    with pytest.raises(ValueError, match=r"lanes|model|table|method"):
        _core.encode_frame(small_model if with_model else None, b"abc", lanes, method, bits, 1)


def test_frame_memory_grows_with_lanes_and_tables(small_model: _core.ExactModel) -> None:
    few = _core.frame_memory(small_model, 1000, 1, 1, 0)
    many = _core.frame_memory(small_model, 1000, 64, 1, 0)
    assert few < many
    assert _core.frame_memory(small_model, 1000, 64, 3, 20) >= many + (1 << 20)


SMALL_SIGNAL_STACK = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
class Stack(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(8192)
stack = ctypes.byref(Stack(ctypes.addressof(memory), 0, 8192))
if STACK_FIRST:
    assert libc.sigaltstack(stack, None) == 0
import lmzip
print(*lmzip.kernels())
assert lmzip.decompress(lmzip.compress(b"some text " * 99)) == b"some text " * 99
if not STACK_FIRST:
    assert libc.sigaltstack(stack, None) == 0
"""


@pytest.mark.skipif("amx" not in KERNELS, reason="no AMX here")
@pytest.mark.parametrize("stack_first", [True, False])
def test_amx_is_left_alone_where_it_cannot_be_had_or_is_not_wanted(stack_first: bool) -> None:
    """Linux gives no tiles to a process with a small signal stack, nor such a stack afterwards."""
    environment = dict(os.environ)
    environment.pop("LMZIP_KERNEL", None)
    if not stack_first:
        environment["LMZIP_KERNEL"] = "vnni"
    code = SMALL_SIGNAL_STACK.replace("STACK_FIRST", str(stack_first))
    command = [sys.executable, "-c", code]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert child.stdout.split()[-1] == "vnni"
