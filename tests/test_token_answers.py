"""What a device answers of rows of logits equals the readable coder, by PyTorch and by Triton."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from lmzip import reference_coder, token_answers  # noqa: E402
from lmzip.reference import LOGIT_MAX  # noqa: E402
from lmzip.torch_llama import TorchLlama  # noqa: E402
from random_llama import random_llama, small_llama  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCABULARY = 1300  # more than a block of the kernels, and no multiple of one


@pytest.fixture(scope="module", params=["torch", "triton"])
def engine(request) -> TorchLlama:
    model = random_llama(small_llama(), 1)
    if request.param == "torch":
        return TorchLlama(model, DEVICE)
    pytest.importorskip("triton", reason="Triton is not installed")
    from lmzip import triton_kernels
    from lmzip.triton_llama import TritonLlama

    if DEVICE == "cpu" and not triton_kernels.INTERPRETED:
        pytest.skip("no CUDA device, but a driver: set TRITON_INTERPRET=1")
    return TritonLlama(model, DEVICE)


def rows_of_logits(rng: np.random.Generator) -> np.ndarray:
    """Flat and steep rows, one with all weight on a single token, one at both limits, one alike."""
    logits = rng.normal(0, 1, (8, VOCABULARY)) * np.array([[1e-2, 1, 3e2, 1e3, 4e3, 1e4, 1, 1]]).T
    logits[6] = np.where(rng.random(VOCABULARY) < 0.5, LOGIT_MAX, -LOGIT_MAX)
    logits[7] = -LOGIT_MAX
    logits[1, 777] = LOGIT_MAX
    return np.rint(logits).astype(np.int32)


def ends(row: np.ndarray, guess: int) -> list[int]:
    row = row.copy()
    if guess >= 0:
        row[guess] = -LOGIT_MAX
    return reference_coder.cumulative(reference_coder.logit_weights(row.tolist()))


def on_device(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.int32)).to(DEVICE)


def cases(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, guesses (none, the likeliest, any) and tokens (first, last, any, just beside)."""
    rows = rows_of_logits(rng)
    top = rows.argmax(1)
    guesses = [np.full(len(rows), -1), top, rng.integers(0, VOCABULARY, len(rows)), top]
    tokens = [top, np.where(top == 0, 1, 0), np.full(len(rows), VOCABULARY - 1), (top + 1) % 1300]
    return np.tile(rows, (4, 1)), np.concatenate(guesses), np.concatenate(tokens)


def test_answers(engine, monkeypatch) -> None:
    monkeypatch.setattr(token_answers, "CHUNK", 5 * VOCABULARY)
    logits, guesses, tokens = cases(np.random.default_rng(3))
    tokens = np.where(tokens == guesses, (tokens + 1) % VOCABULARY, tokens)
    rows = on_device(logits)
    found = engine.answers(rows, on_device(guesses), on_device(tokens)).cpu().numpy()
    freqs = engine.guess_freqs(rows, on_device(guesses)).cpu().numpy()
    for i, (row, guess, token) in enumerate(zip(logits, guesses, tokens, strict=True)):
        if guess >= 0:
            c = ends(row, -1)
            assert found[i, 0] == freqs[i] == c[guess + 1] - c[guess]
        c = ends(row, guess)
        assert (found[i, 1], found[i, 2]) == (c[token], c[token + 1] - c[token])


def test_search(engine, monkeypatch) -> None:
    monkeypatch.setattr(token_answers, "CHUNK", 5 * VOCABULARY)
    logits, guesses, tokens = cases(np.random.default_rng(4))
    rows = on_device(logits)
    c = [ends(row, guess) for row, guess in zip(logits, guesses, strict=True)]
    lo = np.array([e[t] for e, t in zip(c, tokens, strict=True)])
    hi = np.array([e[t + 1] for e, t in zip(c, tokens, strict=True)])
    for slots in (lo, hi - 1, (lo + hi) // 2):
        found = engine.search(rows, on_device(guesses), on_device(slots)).cpu().numpy()
        np.testing.assert_array_equal(found, np.stack([tokens, lo, hi - lo], 1))
    slots = np.where(np.arange(len(lo)) % 2, lo, -1)
    found = engine.search(rows, on_device(guesses), on_device(slots)).cpu().numpy()
    np.testing.assert_array_equal(found[1::2], np.stack([tokens, lo, hi - lo], 1)[1::2])
