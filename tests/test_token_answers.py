"""What a device answers of rows of logits equals the readable coder, by PyTorch and by Triton; and
coders refuse answers that no row has."""

import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from lmzip import _core, reference_coder, token_answers  # noqa: E402
from lmzip.reference import LOGIT_MAX  # noqa: E402
from lmzip.token_answers import (  # noqa: E402
    BELOW,
    COUNT,
    INTERVAL,
    LIKELY,
    LIST,
    RECALL,
    RECALLED,
    TARGET,
)
from lmzip.torch_llama import TorchLlama  # noqa: E402
from random_llama import random_llama, small_llama  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCABULARY = 1300  # several blocks of the kernels, the last one not full
MODEL = random_llama(small_llama(), 1)


@pytest.fixture(scope="module", params=["torch", "triton"])
def engine(request) -> TorchLlama:
    if request.param == "torch":
        return TorchLlama(MODEL, DEVICE)
    pytest.importorskip("triton", reason="Triton is not installed")
    from lmzip import triton_kernels
    from lmzip.triton_llama import TritonLlama

    if DEVICE == "cpu" and not triton_kernels.INTERPRETED:
        pytest.skip("no CUDA device, but a driver: set TRITON_INTERPRET=1")
    return TritonLlama(MODEL, DEVICE)


@pytest.fixture(autouse=True)
def _several_blocks_and_parts(monkeypatch) -> None:
    monkeypatch.setattr(token_answers, "CHUNK", 5 * VOCABULARY)
    if "lmzip.triton_llama" in sys.modules:
        monkeypatch.setattr("lmzip.triton_llama.VOCABULARY_BLOCK", 512)


def rows_of_logits(rng: np.random.Generator) -> np.ndarray:
    """Flat and steep rows; all weight on one token; 512 tokens of exactly 1/512, then all but one a
    little less likely; some at each limit; all alike; and one row around the limit of likely."""
    logits = rng.normal(0, 1, (10, VOCABULARY))
    logits *= np.array([[1e-2, 1, 3e2, 1e3, 4e3, 1e4, 1, 1, 1, 1]]).T
    logits[1, 777] = LOGIT_MAX
    chosen = rng.permutation(VOCABULARY)[:LIKELY]
    logits[6:8] = -LOGIT_MAX
    logits[6:8, chosen] = 5000
    logits[7, chosen[0]] = 5001
    logits[8] = np.where(rng.random(VOCABULARY) < 0.5, LOGIT_MAX, -LOGIT_MAX)
    logits[9] = -LOGIT_MAX
    logits = np.rint(logits).astype(np.int32)
    logits[0] = -LOGIT_MAX
    logits[0, [5, 60, 700]] = 0, -9210, -9211  # 1.0002 and 0.9995 of W / 512
    return logits


def cases(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows and questions: nothing recalled, the likeliest, some, twenty; targets that are the
    likeliest, the first, the last, any, recalled, and none."""
    rows = rows_of_logits(rng)
    n = len(rows)
    questions = np.full((5 * n, token_answers.QUESTION_WORDS), -1)
    questions[:, token_answers.INPUT] = 7
    top = rows.argmax(1)
    questions[n : 2 * n, RECALL] = top
    for i in range(2 * n, 3 * n):
        questions[i, RECALL : RECALL + 3] = rng.permutation(VOCABULARY)[:3]
    for i in range(3 * n, 5 * n):
        questions[i, RECALL:] = rng.permutation(VOCABULARY)[:RECALLED]
    targets = [top, np.where(top == 0, 1, 0), np.full(n, VOCABULARY - 1)]
    targets += [questions[3 * n : 4 * n, RECALL + 7], np.full(n, -1)]
    questions[:, TARGET] = np.concatenate(targets)
    return np.tile(rows, (5, 1)), questions


def rest_of(row: np.ndarray, candidates: set[int]) -> list[int]:
    """C_0, C_1, ... of the row without the candidates."""
    row = row.copy()
    row[list(candidates)] = -LOGIT_MAX
    return reference_coder.cumulative(reference_coder.logit_weights(row.tolist()))


def expected_answer(row: np.ndarray, question: np.ndarray) -> tuple[np.ndarray, set[int]]:
    """uint32; and the candidates."""
    weights = reference_coder.logit_weights(row.tolist())
    total, below = sum(weights), row.max() - row
    likely = [token for token, weight in enumerate(weights) if 512 * weight >= total]
    recalled = [int(token) for token in question[RECALL:] if token >= 0]
    answer = np.zeros(token_answers.ANSWER_WORDS, np.uint32)
    answer[: COUNT + 1] = total % (1 << 32), total >> 32, len(likely)
    answer[BELOW:LIST][: len(recalled)] = below[recalled]
    answer[LIST::2][: len(likely)] = likely
    answer[LIST + 1 :: 2][: len(likely)] = below[likely]
    candidates = {*likely, *recalled}
    target = int(question[TARGET])
    if target >= 0 and target not in candidates:
        ends = rest_of(row, candidates)
        answer[INTERVAL:BELOW] = ends[target], ends[target + 1] - ends[target]
    return answer, candidates


def on_device(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.int32)).to(DEVICE)  # a copy: it may be changed


def back(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy().view(np.uint32)


@pytest.fixture(scope="module")
def known() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[set[int]]]:
    rows, questions = cases(np.random.default_rng(3))
    found = [expected_answer(*each) for each in zip(rows, questions, strict=True)]
    return rows, questions, np.array([a for a, _ in found]), [c for _, c in found]


def test_the_cases_reach_the_limits(known) -> None:
    _, questions, answers, _ = known
    assert {0, 1, LIKELY} <= set(answers[:, COUNT].tolist())
    assert answers[0, LIST : LIST + 6 : 2].tolist() == [5, 60, 0]
    lacking = answers[:, INTERVAL + 1] == 0
    assert lacking.any()
    assert (~lacking).sum() > 10
    assert (questions[:, TARGET] >= 0)[lacking].any()


def test_answers(engine, known) -> None:
    rows, questions, answers, _ = known
    found = back(engine.answer(on_device(rows), on_device(questions)))
    np.testing.assert_array_equal(found, answers)


def test_a_survey_answers_all_but_targets_and_changes_nothing(engine, known) -> None:
    rows, questions, answers, _ = known
    logits = on_device(rows)
    found = back(engine.survey(logits, on_device(questions)))
    without = answers.copy()
    without[:, INTERVAL:BELOW] = 0
    np.testing.assert_array_equal(found, without)
    np.testing.assert_array_equal(logits.cpu().numpy(), rows)


def test_search(engine, known) -> None:
    """First and last slots of tokens, and those between; the same rows again and again, as a
    device that has changed them may be asked."""
    rows, questions, answers, candidates = known
    ends = [rest_of(*each) for each in zip(rows, candidates, strict=True)]
    rng = np.random.default_rng(5)
    logits, asked, given = on_device(rows), on_device(questions), on_device(answers.view(np.int32))
    for place in range(4):
        tokens = rng.integers(0, VOCABULARY, len(rows))
        if place == 3:
            tokens = np.where(np.arange(len(rows)) % 2, 0, VOCABULARY - 1)
        lo = np.array([e[t] for e, t in zip(ends, tokens, strict=True)])
        hi = np.array([e[t + 1] for e, t in zip(ends, tokens, strict=True)])
        slots = (lo, hi - 1, (lo + hi) // 2, lo)[place]
        slots[place::5] = -1
        found = back(engine.search(logits, asked, given, on_device(slots)))
        expected = np.where(slots[:, None] < 0, 0, np.stack([tokens, lo, hi - lo], 1))
        np.testing.assert_array_equal(found, expected)


# ── answers that no row has ──


def good_answer() -> np.ndarray:
    """Of a row of 300 logits, three of them at 0 and the others far below, with token 9 asked."""
    row = np.full(300, -10_000)
    row[[5, 6, 7]] = 0
    question = np.full(token_answers.QUESTION_WORDS, -1)
    question[TARGET] = 9
    return expected_answer(row.astype(np.int32), question)[0]


BAD = {
    "a sum of nothing": {0: 0, 1: 0},
    "a sum beyond that of all tokens": {1: 1 << 20},
    "so many likely tokens": {COUNT: LIKELY + 1},
    "a likely token beyond the vocabulary": {LIST + 4: 300},
    "likely tokens out of order": {LIST + 2: 5},
    "a likely logit above the greatest": {LIST + 1: 0xFFFFFFFF},
    "less than its candidates weigh": {0: 1 << 31, 1: 0},
    "no interval of the target": {INTERVAL + 1: 0},
    "an interval past the end": {INTERVAL: (1 << 30) - 1, INTERVAL + 1: 2},
}


def coders() -> tuple[_core.TokenLockstepEncoder, _core.TokenLockstepDecoder]:
    packed = _core.LlamaModel(MODEL.tensors, MODEL.architecture.to_native())
    decoder = _core.TokenLockstepDecoder(packed, [([b"\x03\xff\xff\xff\xf0"], 3)], 1)
    decoder.ask(np.zeros((1, token_answers.QUESTION_WORDS), np.uint32))
    return _core.TokenLockstepEncoder(packed, [([9], 1)], 1), decoder


def test_the_good_answer_is_taken() -> None:
    encoder, decoder = coders()
    encoder.take(good_answer()[None, None])
    assert len(encoder.finish()[0]) == 1
    slots = np.zeros(1, np.uint32)
    assert decoder.choose(good_answer()[None], slots) == 1
    assert slots[0] < 1 << 30


@pytest.mark.parametrize("what", BAD)
def test_an_answer_that_no_row_has_is_a_defect_of_the_device(what) -> None:
    answer = good_answer()
    for place, value in BAD[what].items():
        answer[place] = value
    encoder, decoder = coders()
    with pytest.raises(RuntimeError, match="a defect of the device or of its engine"):
        encoder.take(answer[None, None])
    if INTERVAL not in BAD[what] and INTERVAL + 1 not in BAD[what]:
        with pytest.raises(RuntimeError, match="a defect of the device or of its engine"):
            decoder.choose(answer[None], np.zeros(1, np.uint32))


@pytest.mark.parametrize("found", ["another place", "no width", "past the end", "no such token"])
def test_a_token_that_cannot_lie_there_is_a_defect_of_the_device(found) -> None:
    _, decoder = coders()
    slots = np.zeros(1, np.uint32)
    decoder.choose(good_answer()[None], slots)
    slot = int(slots[0])
    token, lo, freq = {
        "another place": (9, slot + 1, 2),
        "no width": (9, slot, 0),
        "past the end": (9, slot, 1 << 30),
        "no such token": (300, slot, 1),
    }[found]
    with pytest.raises(RuntimeError, match="a defect of the device or of its engine"):
        decoder.take(np.array([[token, lo, freq]], np.uint32))


def test_a_step_is_asked_chosen_and_taken_in_this_order() -> None:
    _, decoder = coders()
    questions = np.zeros((1, token_answers.QUESTION_WORDS), np.uint32)
    for early in (
        lambda: decoder.ask(questions),
        lambda: decoder.take(np.zeros((1, token_answers.FOUND_WORDS), np.uint32)),
    ):
        with pytest.raises(ValueError, match="ask, choose, take, in this order"):
            early()
    decoder.choose(good_answer()[None], np.zeros(1, np.uint32))
    with pytest.raises(ValueError, match="ask, choose, take, in this order"):
        decoder.choose(good_answer()[None], np.zeros(1, np.uint32))
