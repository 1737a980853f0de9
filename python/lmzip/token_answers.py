"""What a coder of tokens asks of rows of logits, answered where the rows are: csrc/token_frame.h.

Rows (n, vocabulary) int32 stay on their device; int32 numbers, a few a row, go and come.  A guess
is a token, or -1 for none: *without the guess* a row has the logit -LOGIT_MAX there.  The integers
are docs/coder.md's.  An answer that nobody needs may be anything: the freq of no guess, the
interval of a token that was guessed, what lies at the slot -1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lmzip import coder_torch
from lmzip.reference import LOGIT_MAX

CHUNK = coder_torch.CHUNK  # logits that are worked on at once


def guess_freqs(logits: Tensor, guesses: Tensor) -> Tensor:
    """(n): the freq of each guess."""
    return torch.cat([_intervals(rows, guess)[:, 1] for rows, guess in _parts(logits, guesses)])


def answers(logits: Tensor, guesses: Tensor, tokens: Tensor) -> Tensor:
    """(n, 3): the freq of each guess; lo and freq of each token without the guess."""
    intervals = [
        _intervals(_without(rows, guess), token)
        for rows, guess, token in _parts(logits, guesses, tokens)
    ]
    return torch.cat((guess_freqs(logits, guesses)[:, None], torch.cat(intervals)), 1)


def search(logits: Tensor, guesses: Tensor, slots: Tensor) -> Tensor:
    """(n, 3): the token whose interval holds each slot without the guess, its lo and freq."""
    found = []
    for rows, guess, slot in _parts(logits, guesses, slots):
        without = _without(rows, guess)
        token = coder_torch.find_symbols(without, slot.clamp_min(0).long())
        found.append(torch.cat((token.int()[:, None], _intervals(without, token)), 1))
    return torch.cat(found)


def _parts(logits: Tensor, *given: Tensor) -> Iterator[tuple[Tensor, ...]]:
    some = max(1, CHUNK // logits.shape[1])
    for begin in range(0, len(logits), some):
        yield tuple(t[begin : begin + some] for t in (logits, *given))


def _without(logits: Tensor, guesses: Tensor) -> Tensor:
    index = guesses.clamp_min(0).long()[:, None]
    lowest = torch.full_like(index, -LOGIT_MAX, dtype=logits.dtype)
    there = torch.where(guesses[:, None] < 0, logits.gather(1, index), lowest)
    return logits.scatter(1, index, there)


def _intervals(logits: Tensor, tokens: Tensor) -> Tensor:
    found, _ = coder_torch.row_intervals("logits", logits, tokens.long())
    return found.int()
