"""The native engine of pretrained models equals the reference, on logits and state.

Equality is exact everywhere, whatever the batch, the cut of the input and the kernel.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from lmzip import _core
from lmzip.errors import CorruptError, UnsupportedError
from lmzip.llama_model import LlamaArchitecture, LlamaModel
from lmzip.llama_reference import LlamaReference, LlamaState
from random_llama import random_llama, small_llama

KERNELS = _core.kernels()
POSITIONS = 40
ARCHITECTURES = {
    "grouped heads, sinks": small_llama(),
    "no sinks": small_llama(sinks=(0, 0), windows=(1, 17)),
    "all sinks": small_llama(sinks=(16, 1), windows=(3, 100)),
    "norm of queries and keys": small_llama(qk_norm=True, n_kv_heads=4),
    "untied, odd vocabulary": small_llama(tied=False, vocabulary=1500),
    "all wide": small_llama(wide=("qkv", "out", "gate_up", "down", "head")),
    "none wide": small_llama(wide=()),
    "head of 128": small_llama(head_dim=128, n_heads=2, n_kv_heads=1),
    "three heads of 96 share keys": small_llama(head_dim=96, n_heads=3, n_kv_heads=1),
    "seven heads share keys": small_llama(n_heads=7, n_kv_heads=1),
    "norms after each part, two rotations": small_llama(
        post_norms=True,
        local=(True, False, True),
        qk_norm=True,
        n_layers=3,
        windows=(5, 24, 8),
        sinks=(0, 4, 2),
    ),
    "head of 256": small_llama(head_dim=256, n_heads=2, n_kv_heads=1, post_norms=True),
    "many inputs": small_llama(d_model=96, d_ff=2112, n_layers=1, windows=(8,), sinks=(4,)),
}


@pytest.fixture(autouse=True)
def _restore_kernel() -> Iterator[None]:
    yield
    _core.set_active_kernel("")


def native(model: LlamaModel, kernel: str = "") -> _core.LlamaModel:
    _core.set_active_kernel(kernel)
    return _core.LlamaModel(model.tensors, model.architecture.to_native())


def some_tokens(model: LlamaModel, lanes: int, seed: int) -> npt.NDArray[np.uint32]:
    a = model.architecture
    tokens = np.random.default_rng(seed).integers(0, a.vocabulary, (lanes, POSITIONS))
    tokens[:, 0] = a.start
    return tokens.astype(np.uint32)


def assert_same_state(model: LlamaModel, engine: _core.LlamaEngine, expected: LlamaState) -> None:
    position, *ours = engine.state()
    assert position == expected.position
    theirs = (expected.keys, expected.values, expected.key_scales, expected.value_scales)
    for i, (window, sinks) in enumerate(
        zip(model.architecture.windows, model.architecture.sinks, strict=True)
    ):
        seen = [t for t in range(position) if t < sinks or t >= position - window]
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a[i], b[i][:, seen])


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_step_and_prefill_equal_the_reference(architecture: LlamaArchitecture) -> None:
    model = random_llama(architecture, seed=5)
    reference = LlamaReference(model)
    state = reference.start(3)
    tokens = some_tokens(model, 3, seed=6)
    expected = np.stack([reference.step(state, tokens[:, t]) for t in range(POSITIONS)], axis=1)
    assert len(np.unique(expected)) > 1000  # a model that says nothing would pass any comparison
    assert np.abs(expected[expected > -(1 << 20)]).max() < 1 << 18
    for kernel in KERNELS:
        packed = native(model, kernel)
        stepped, whole = (_core.LlamaEngine(packed, 3, POSITIONS) for _ in range(2))
        np.testing.assert_array_equal(stepped.feed(tokens, by_step=True), expected)
        cut = [whole.feed(np.ascontiguousarray(part)) for part in np.split(tokens, [7, 8], axis=1)]
        np.testing.assert_array_equal(np.concatenate(cut, axis=1), expected)
        assert_same_state(model, stepped, state)
        assert_same_state(model, whole, state)


def test_extreme_weights_do_not_overflow() -> None:
    """Every weight at its limit: the largest sums that docs/numerics-llama.md allows here."""
    wide = ("qkv", "out", "gate_up", "down", "head")
    model = random_llama(small_llama(d_model=256, d_ff=2112, wide=wide), 3)
    for tensor in model.tensors.values():
        if tensor.dtype == np.int8:
            tensor[...] = np.where(tensor < 0, -127, 127)
    reference = LlamaReference(model)
    state = reference.start(1)
    tokens = some_tokens(model, 1, 1)
    expected = np.stack([reference.step(state, tokens[:, t]) for t in range(POSITIONS)], axis=1)
    for kernel in KERNELS:
        engine = _core.LlamaEngine(native(model, kernel), 1, POSITIONS)
        np.testing.assert_array_equal(engine.feed(tokens), expected)


def test_a_lane_does_not_see_its_neighbors() -> None:
    model = random_llama(small_llama(), 1)
    packed, tokens = native(model), some_tokens(model, 260, seed=2)
    together = _core.LlamaEngine(packed, 260, POSITIONS).feed(tokens, by_step=True)
    for lane in (0, 63, 255, 256, 259):
        alone = _core.LlamaEngine(packed, 1, POSITIONS).feed(tokens[lane : lane + 1])
        np.testing.assert_array_equal(together[lane : lane + 1], alone)


@pytest.mark.parametrize("kernel", KERNELS)
def test_runs_of_many_positions_equal_steps(kernel: str) -> None:
    model = random_llama(small_llama(), 1)
    tokens = np.concatenate([some_tokens(model, 1, seed) for seed in range(8)], axis=1)
    packed, size = native(model, kernel), tokens.shape[1]
    stepped, whole = (_core.LlamaEngine(packed, 1, size) for _ in range(2))
    np.testing.assert_array_equal(whole.feed(tokens), stepped.feed(tokens, by_step=True))


def test_model_that_does_not_fit_is_refused() -> None:
    model = random_llama(small_llama(), 1)
    shape = model.architecture.to_native()
    with pytest.raises(UnsupportedError, match="head_dim"):
        _core.LlamaModel(model.tensors, shape | {"head_dim": 48})
    with pytest.raises(CorruptError, match="softmax is missing"):
        _core.LlamaModel({k: t for k, t in model.tensors.items() if k != "softmax"}, shape)
    bad = model.tensors | {"embedding.weight": np.full((300, 64), -128, np.int8)}
    with pytest.raises(CorruptError, match=r"embedding\.weight has values outside"):
        _core.LlamaModel(bad, shape)
