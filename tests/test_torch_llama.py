"""The engine of pretrained models in PyTorch equals the reference and the native one, on logits and
state, however the work is cut."""

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from lmzip import _core, token_answers, torch_engine, torch_llama  # noqa: E402
from lmzip.llama_model import LlamaModel  # noqa: E402
from lmzip.llama_reference import LlamaReference, LlamaState  # noqa: E402
from lmzip.torch_engine import Product  # noqa: E402
from lmzip.torch_llama import LlamaLanes, State, TorchLlama  # noqa: E402
from random_llama import random_llama, small_llama  # noqa: E402
from test_llama_engine import ARCHITECTURES, native, some_tokens  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LANES, POSITIONS = 3, 40
CUTS = {
    "prefill": [40],
    "steps": [1] * 40,
    "mixed": [7, 1, 16, 16],
    "prefill then step": [39, 1],
    "step then prefill": [1, 39],
}
WIDE = ("qkv", "out", "gate_up", "down", "head")


def fed(
    engine: TorchLlama, tokens: npt.NDArray[np.uint32], cuts: list[int], block: int = 16
) -> tuple[npt.NDArray[np.int32], State]:
    """Logits and the state behind them."""
    state = engine.start(len(tokens), tokens.shape[1], block)
    parts = torch.from_numpy(tokens.astype(np.int64)).split(cuts, 1)
    logits = torch.cat([engine.feed(state, part) for part in parts], 1)
    return logits.cpu().numpy(), state


def assert_same_state(engine: TorchLlama, ours: State, truth: LlamaState) -> None:
    position, *contents = engine.contents(ours)
    assert position == truth.position
    theirs = (truth.keys, truth.values, truth.key_scales, truth.value_scales)
    for i, (window, sinks) in enumerate(zip(engine.arch.windows, engine.arch.sinks, strict=True)):
        seen = [t for t in range(position) if t < sinks or t >= position - window]
        for a, b in zip(contents, theirs, strict=True):
            np.testing.assert_array_equal(a[i], b[i][:, seen])


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> LlamaModel:
    return random_llama(ARCHITECTURES[request.param], seed=5)


@pytest.fixture(scope="module")
def truth(model: LlamaModel) -> tuple[npt.NDArray[np.int32], LlamaState]:
    reference = LlamaReference(model)
    state = reference.start(LANES)
    tokens = some_tokens(model, LANES, seed=6)
    steps = [reference.step(state, tokens[:, t]) for t in range(POSITIONS)]
    return np.stack(steps, axis=1), state


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())
def test_torch_equals_the_reference_in_any_cut(model, truth, cuts) -> None:
    engine = TorchLlama(model)
    logits, state = fed(engine, some_tokens(model, LANES, seed=6), cuts)
    np.testing.assert_array_equal(logits, truth[0])
    assert_same_state(engine, state, truth[1])


@pytest.mark.parametrize("block", [1, 8])
def test_the_state_equals_the_native_one(model, block) -> None:
    tokens = some_tokens(model, LANES, seed=6)
    engine = TorchLlama(model)
    logits, state = fed(engine, tokens, [block] * (POSITIONS // block), block)
    theirs = _core.LlamaEngine(native(model), LANES, POSITIONS)
    np.testing.assert_array_equal(logits, theirs.feed(tokens, by_step=True))
    position, *ours = engine.contents(state)
    expected_position, *expected = theirs.state()
    assert position == expected_position
    for a, b in zip(ours, expected, strict=True):
        for mine, its in zip(a, b, strict=True):
            np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("count", [1, 8])
def test_blocks_that_do_not_depend_on_the_position(model, truth, count) -> None:
    """What is recorded as a CUDA graph, run as it is; and once more with new lanes."""
    engine = TorchLlama(model)
    tokens = torch.from_numpy(some_tokens(model, LANES, seed=6).astype(np.int64))
    state = engine.start(LANES, POSITIONS, count, graph=True)
    for _ in range(2):
        parts = [engine.feed(state, part) for part in tokens.split(count, 1)]
        np.testing.assert_array_equal(torch.cat(parts, 1).numpy(), truth[0])
        assert_same_state(engine, state, truth[1])
        engine.restart(state)


def unasking(tokens: np.ndarray) -> np.ndarray:
    """Questions with these inputs, that ask for nothing."""
    shape = *tokens.shape, token_answers.QUESTION_WORDS
    questions = np.full(shape, 0xFFFFFFFF, np.uint32)
    questions[..., token_answers.INPUT] = tokens
    return questions


def test_lanes_start_again() -> None:
    model = random_llama(small_llama(), 1)
    tokens = some_tokens(model, 2, seed=2)
    lanes = LlamaLanes(TorchLlama(model), 2, 4, POSITIONS, False)
    expected = _core.LlamaEngine(native(model), 2, POSITIONS).feed(tokens)
    for _ in range(2):
        rows = []
        for t in range(0, POSITIONS, 4):
            lanes.launch(unasking(tokens[:, t : t + 4]))
            lanes.wait()
            rows.append(lanes.logits())
        np.testing.assert_array_equal(np.concatenate(rows, 1), expected)
        lanes.restart()


def test_a_lane_does_not_see_its_neighbors_nor_how_many_are_worked_on_at_once(monkeypatch) -> None:
    model = random_llama(small_llama(), 1)
    engine, tokens = TorchLlama(model), some_tokens(model, 70, seed=2)
    together, _ = fed(engine, tokens, [POSITIONS])
    monkeypatch.setitem(torch_llama.ATTENTION_NUMBERS, "cpu", 20_000)  # a few lanes
    np.testing.assert_array_equal(fed(engine, tokens, [POSITIONS])[0], together)
    for lane in (0, 2, 3, 69):
        alone, _ = fed(engine, tokens[lane : lane + 1], [POSITIONS])
        np.testing.assert_array_equal(alone, together[lane : lane + 1])


def extreme(model: LlamaModel) -> LlamaModel:
    """Every weight at its limit."""
    for tensor in model.tensors.values():
        if tensor.dtype == np.int8:
            tensor[...] = np.where(tensor < 0, -127, 127)
    return model


@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize(
    "changes",
    [{"d_model": 256, "d_ff": 2112, "wide": WIDE}, {"d_ff": 2112, "wide": ()}],
    ids=["wide", "narrow"],
)
def test_extreme_weights_do_not_overflow(monkeypatch, changes, int8) -> None:
    """In int8 and in floats, which is what a CPU without VNNI runs."""
    if not int8:
        monkeypatch.setattr(torch_engine, "int8_sums_are_exact", lambda _: False)
    elif not torch_engine.int8_sums_are_exact(torch.device("cpu")):
        pytest.skip("this CPU has no VNNI")
    model = extreme(random_llama(small_llama(**changes), 3))
    tokens = some_tokens(model, 2, 1)
    expected = _core.LlamaEngine(native(model, "portable"), 2, POSITIONS).feed(tokens)
    engine = TorchLlama(model)
    assert engine.layers[0].down.int8 == int8
    np.testing.assert_array_equal(fed(engine, tokens, [POSITIONS])[0], expected)


@pytest.mark.parametrize("window", [1036, 1037, 3000])
def test_long_windows(window) -> None:
    """On both sides of where the products of attention stop fitting float32, with values that sum
    up to the limit: all positions are alike and count alike."""
    model = random_llama(small_llama(n_layers=1, windows=(window,), sinks=(4,)), 4)
    model.tensors["softmax"][...] = 2.0**-40
    positions = window + 30
    tokens = np.full((1, positions), 5, np.uint32)
    tokens[:, 0] = model.architecture.start
    engine = TorchLlama(model)
    state = engine.start(1, positions, 32)
    ours = engine.feed(state, torch.from_numpy(tokens.astype(np.int64)))
    theirs = _core.LlamaEngine(native(model), 1, positions)
    np.testing.assert_array_equal(ours.numpy(), theirs.feed(tokens))
    assert np.abs(theirs.state()[2][0].astype(np.int64).sum(axis=1)).max() > 126 * window


@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize(("inputs", "largest"), [(64, 127), (1040, 127), (2112, 8006), (576, 8191)])
@pytest.mark.parametrize("rows", [1, 33])
def test_products_are_exact_at_their_limits(monkeypatch, inputs, largest, rows, int8) -> None:
    if not int8:
        monkeypatch.setattr(torch_engine, "int8_sums_are_exact", lambda _: False)
    rng = np.random.default_rng(1)
    weight = rng.integers(-127, 128, (301, inputs))  # no multiple of 8
    weight[:4] = [[127], [-127], [126], [-1]]
    q = rng.integers(-largest, largest + 1, (rows, inputs))
    q[0] = np.where(rng.random(inputs) < 0.5, largest, largest - 1)
    product = Product(torch.from_numpy(weight.astype(np.int8)), torch.ones(301), largest)
    sums = product(torch.from_numpy(q.astype(np.float32))).numpy()
    np.testing.assert_array_equal(sums, (q @ weight.T).astype(np.float32))


def test_reduced_precision_products_are_refused() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with pytest.raises(ValueError, match="reduced precision"):
            TorchLlama(random_llama(small_llama(), 1))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="PyTorch before 2.9"
)
def test_reduced_precision_by_the_newer_setting_is_refused_too() -> None:
    """With it, PyTorch raises an error of its own when the older ones are asked for."""
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with pytest.raises(ValueError, match="reduced precision"):
            TorchLlama(random_llama(small_llama(), 1))
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.gpu
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())
def test_cuda_equals_the_reference(model, truth, cuts) -> None:
    engine = TorchLlama(model, "cuda")
    logits, state = fed(engine, some_tokens(model, LANES, seed=6), cuts)
    np.testing.assert_array_equal(logits, truth[0])
    assert_same_state(engine, state, truth[1])


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 8])
def test_cuda_graphs_equal_the_reference(model, truth, count) -> None:
    tokens = some_tokens(model, LANES, seed=6)
    lanes = LlamaLanes(TorchLlama(model, "cuda"), LANES, count, POSITIONS, count == 1)
    for _ in range(2):
        rows = []
        for t in range(0, POSITIONS, count):
            lanes.launch(unasking(tokens[:, t : t + count]))
            lanes.wait()
            rows.append(lanes.logits())
        np.testing.assert_array_equal(np.concatenate(rows, 1), truth[0])
        lanes.restart()


@pytest.mark.gpu
def test_cuda_extreme_weights_do_not_overflow() -> None:
    model = extreme(random_llama(small_llama(d_model=256, d_ff=2112, wide=WIDE), 3))
    tokens = some_tokens(model, 2, 1)
    expected = _core.LlamaEngine(native(model), 2, POSITIONS).feed(tokens)
    np.testing.assert_array_equal(fed(TorchLlama(model, "cuda"), tokens, [40])[0], expected)
