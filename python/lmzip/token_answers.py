"""What a coder of tokens asks of rows of logits, answered where the rows are: csrc/token_answers.h,
by operations of PyTorch.

Rows (n, vocabulary) int32 stay on their device.  Records of int32 words, the bits of the uint32 of
that file, go and come:

    question (n, QUESTION_WORDS)   input, target, recalled tokens; -1 for none
    answer (n, ANSWER_WORDS)       two halves of W, number of likely tokens, lo and freq of the
                                   target, how far below the greatest logit those of the recalled
                                   tokens lie, then each likely token and how far below its lies
    found (n, FOUND_WORDS)         token, lo, freq

Words that nobody needs are 0, so that answers can be compared.  Nothing here depends on what the
rows hold but numbers: it can be recorded as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lmzip import coder_torch
from lmzip.reference import LOGIT_MAX

LIKELY_SHIFT = 9
LIKELY = 1 << LIKELY_SHIFT  # tokens of W / 512 or more, at most
RECALLED = 20
INPUT, TARGET, RECALL = 0, 1, 2  # places in a question
QUESTION_WORDS = RECALL + RECALLED
COUNT, INTERVAL, BELOW = 2, 3, 5  # places in an answer
LIST = BELOW + RECALLED
ANSWER_WORDS = LIST + 2 * LIKELY
FOUND_WORDS = 3
CHUNK = 1 << 24  # logits that are worked on at once, with some forty bytes for each


def survey(logits: Tensor, questions: Tensor) -> Tensor:
    """Answers to all but targets."""
    return torch.cat([_survey(*some) for some in _parts(logits, questions)])


def answer(logits: Tensor, questions: Tensor) -> Tensor:
    """Answers."""
    answers = survey(logits, questions)
    parts = _parts(logits, questions, answers)
    answers[:, INTERVAL:BELOW] = torch.cat([_targets(*some) for some in parts])
    return answers


def search(logits: Tensor, questions: Tensor, answers: Tensor, slots: Tensor) -> Tensor:
    """The tokens that hold the slots (n) among the rest; a slot of -1 finds zeros."""
    parts = _parts(logits, questions, answers, slots)
    return torch.cat([_search(*some) for some in parts])


def _parts(logits: Tensor, *given: Tensor) -> Iterator[tuple[Tensor, ...]]:
    some = max(1, CHUNK // logits.shape[1])
    for begin in range(0, len(logits), some):
        yield tuple(t[begin : begin + some] for t in (logits, *given))


def _survey(logits: Tensor, questions: Tensor) -> Tensor:
    n, vocabulary = logits.shape
    weights, _ = coder_torch.weights("logits", logits)
    total = weights.sum(-1, keepdim=True, dtype=torch.int64)
    below = logits.amax(-1, keepdim=True) - logits
    likely = weights.long() << LIKELY_SHIFT >= total
    place = torch.where(likely, LIST + 2 * likely.cumsum(-1) - 2, ANSWER_WORDS)
    out = torch.zeros(n, ANSWER_WORDS + 2, dtype=torch.int32, device=logits.device)
    tokens = torch.arange(vocabulary, dtype=torch.int32, device=logits.device)
    out.scatter_(1, place, tokens.expand(n, -1)).scatter_(1, place + 1, below)
    recalled = questions[:, RECALL:].long()
    known = below.gather(1, recalled.clamp_min(0))
    out[:, BELOW:LIST] = torch.where(recalled < 0, 0, known)
    out[:, :COUNT] = torch.cat((total, total >> 32), 1).int()  # modulo 2^32
    out[:, COUNT] = likely.sum(-1)
    return out[:, :ANSWER_WORDS]


def _candidates(questions: Tensor, answers: Tensor) -> Tensor:
    """(n, RECALLED + LIKELY) int64: tokens, -1 where there are fewer."""
    listed = answers[:, LIST::2]
    exists = torch.arange(LIKELY, device=answers.device) < answers[:, COUNT, None]
    return torch.cat((questions[:, RECALL:], torch.where(exists, listed, -1)), 1).long()


def _rest(logits: Tensor, candidates: Tensor) -> Tensor:
    vocabulary = logits.shape[1]
    padded = torch.nn.functional.pad(logits, (0, 1))
    place = torch.where(candidates < 0, vocabulary, candidates)
    return padded.scatter_(1, place, -LOGIT_MAX)[:, :vocabulary]


def _targets(logits: Tensor, questions: Tensor, answers: Tensor) -> Tensor:
    target = questions[:, TARGET].long()
    candidates = _candidates(questions, answers)
    lacking = (target < 0) | (candidates == target[:, None]).any(1)
    rest = _rest(logits, candidates)
    found, _ = coder_torch.row_intervals("logits", rest, target.clamp_min(0))
    return torch.where(lacking[:, None], 0, found).int()


def _search(logits: Tensor, questions: Tensor, answers: Tensor, slots: Tensor) -> Tensor:
    rest = _rest(logits, _candidates(questions, answers))
    token = coder_torch.find_symbols(rest, slots.long().clamp_min(0))
    interval, _ = coder_torch.row_intervals("logits", rest, token)
    found = torch.cat((token[:, None], interval), 1)
    return torch.where(slots[:, None] < 0, 0, found).int()
