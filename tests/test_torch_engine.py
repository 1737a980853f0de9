"""The exact engine in PyTorch equals the NumPy reference: logits and state, however the work is
cut."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from lmzip.model_file import Architecture, ExactModel, NgramTable, parse, serialize  # noqa: E402
from lmzip.network import Network, export  # noqa: E402
from lmzip.reference import ReferenceEngine  # noqa: E402
from lmzip.reference import State as ReferenceState  # noqa: E402
from lmzip.torch_engine import State, TorchEngine, square_root  # noqa: E402

LANES, LENGTH = 3, 41
PAIR, TRIPLE = NgramTable(2, 6, 0, 32), NgramTable(3, 7, 32, 32)
QUAD = NgramTable(4, 8, 64, 64)
ARCHITECTURES = {
    "grouped": Architecture(64, 2, 4, 2, 16, 96, (8, 21), (PAIR, TRIPLE)),
    "single head, no n-grams": Architecture(32, 1, 1, 1, 8, 32, (5,)),
    "wide head, window past the text": Architecture(32, 2, 2, 2, 64, 64, (64, 1), (PAIR,)),
    "bundled shape": Architecture(128, 4, 4, 2, 32, 512, (32, 64, 128, 256), (PAIR, QUAD)),
}


def random_network(architecture: Architecture, seed: int = 1) -> Network:
    torch.manual_seed(seed)
    network = Network(architecture)
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim == 2:
                p.copy_(torch.randn_like(p) * 2 * p.shape[1] ** -0.5)
    network.calibrate(torch.randint(0, 256, (4, 67)))
    return network


def random_model(architecture: Architecture, seed: int = 1) -> ExactModel:
    return parse(
        serialize(architecture, export(random_network(architecture, seed)), {"name": "random"})
    )


def text(lanes: int = LANES, length: int = LENGTH, seed: int = 0) -> np.ndarray:
    """Inputs as a lane sees them: a zero byte, then bytes."""
    inputs = np.random.default_rng(seed).integers(0, 256, (lanes, length)).astype(np.uint8)
    inputs[:, 0] = 0
    return inputs


def assert_same_state(ours: State, truth: ReferenceState) -> None:
    assert ours.position == truth.position
    np.testing.assert_array_equal(ours.history.numpy(), truth.history)
    for mine, reference in zip(ours.keys + ours.values, truth.keys + truth.values, strict=True):
        np.testing.assert_array_equal(mine.numpy(), reference)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return random_model(ARCHITECTURES[request.param])


@pytest.fixture(scope="module")
def truth(model):
    engine = ReferenceEngine(model)
    state = engine.start(LANES)
    inputs = text()
    logits = np.stack([engine.step(state, inputs[:, t]) for t in range(LENGTH)], axis=1)
    return logits, state


@pytest.mark.parametrize(
    "cuts",
    [[LENGTH], [1] * LENGTH, [7, 1, 16, 17], [40, 1], [1, 40]],
    ids=["prefill", "steps", "mixed", "prefill then step", "step then prefill"],
)
def test_torch_equals_reference_in_any_cut(model, truth, cuts):
    engine = TorchEngine(model)
    state = engine.start(LANES)
    pieces = torch.from_numpy(text()).split(cuts, 1)
    logits = torch.cat([engine.prefill(state, piece) for piece in pieces], 1)
    np.testing.assert_array_equal(logits.numpy(), truth[0])
    assert_same_state(state, truth[1])


def test_a_lane_alone_equals_the_lane_in_a_batch(model, truth):
    engine = TorchEngine(model)
    for lane in range(LANES):
        logits = engine.prefill(engine.start(1), torch.from_numpy(text()[lane : lane + 1]))
        np.testing.assert_array_equal(logits[0].numpy(), truth[0][lane])


def test_the_number_of_threads_changes_nothing(model, truth):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            engine = TorchEngine(model)
            logits = engine.prefill(engine.start(LANES), torch.from_numpy(text()))
            np.testing.assert_array_equal(logits.numpy(), truth[0])
    finally:
        torch.set_num_threads(before)


def test_a_long_prefill_is_cut_into_blocks_that_change_nothing():
    model = random_model(ARCHITECTURES["grouped"])
    engine = TorchEngine(model)
    inputs = torch.from_numpy(text(2, 300))
    whole_state, cut_state = engine.start(2), engine.start(2)
    whole = engine.prefill(whole_state, inputs)
    cut = torch.cat([engine.prefill(cut_state, piece) for piece in inputs.split(77, 1)], 1)
    assert torch.equal(whole, cut)
    assert whole_state.position == cut_state.position == 300


def test_the_float_twin_fails_these_tests():
    """What is asked of the exact engine is not asked in vain: float logits of the first byte
    depend on how many other bytes and lanes were in the product with it."""
    network = random_network(ARCHITECTURES["bundled shape"])
    history = torch.randint(0, 256, (8, 67), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        prefill = network(history)[:, 0]
        stepped = network(history[:, :4])[:, 0]
        alone = torch.cat([network(row[None, :4]) for row in history])[:, 0]
    torch.testing.assert_close(prefill, alone)  # the same function ...
    assert not (torch.equal(prefill, stepped) and torch.equal(prefill, alone))  # ... other bits


def test_the_twin_for_training_predicts_what_the_exact_engine_does():
    """Training sees the roundings that the engine does: mean difference far below one bit."""
    architecture = ARCHITECTURES["bundled shape"]
    network = random_network(architecture)
    model = parse(serialize(architecture, export(network), {}))
    history = torch.randint(0, 256, (2, 35), generator=torch.Generator().manual_seed(4))
    history[:, :4] = 0
    with torch.no_grad():
        soft = network(history, quantized=True).log_softmax(-1)
    engine = TorchEngine(model)
    exact = engine.prefill(engine.start(2), history[:, 3:].to(torch.uint8))
    hard = (exact.double() / 1024 * np.log(2)).log_softmax(-1)
    assert (soft - hard).abs().mean() < 0.1
    assert soft.std() > 0.5  # the comparison is about something


def test_square_root_is_correctly_rounded():
    x = np.arange(1, 100_001).astype(np.float32) * 7001
    quotient = np.float32(128) / x
    np.testing.assert_array_equal(
        square_root(torch.from_numpy(quotient)).numpy(), np.sqrt(quotient)
    )


def test_reduced_precision_products_are_refused():
    model = random_model(ARCHITECTURES["grouped"])
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with pytest.raises(ValueError, match="reduced precision"):
            TorchEngine(model)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@pytest.mark.parametrize("cuts", [[LENGTH], [1] * LENGTH, [7, 1, 16, 17]])
def test_cuda_equals_reference(model, truth, cuts):
    engine = TorchEngine(model, "cuda")
    state = engine.start(LANES)
    pieces = torch.from_numpy(text()).split(cuts, 1)
    logits = torch.cat([engine.prefill(state, piece) for piece in pieces], 1)
    np.testing.assert_array_equal(logits.cpu().numpy(), truth[0])
