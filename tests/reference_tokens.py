"""csrc/recall.h, csrc/token_choice.h and the coding of method 5, readable: docs/format.md in plain
Python."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from lmzip.container import pack_varint
from lmzip.llama_model import LlamaModel
from lmzip.llama_reference import LlamaReference
from lmzip.reference_coder import RangeEncoder, cumulative, exp2_table, logit_weights
from reference_mixer import clamp, log2

ORDERS = (6, 4, 3, 2, 1)
STATES = 20
LOGIT_MAX = 1 << 20


def log2_1024(n: int) -> int:
    """Of the upper 24 bits, in 1/1024."""
    shift = max(0, n.bit_length() - 24)
    return (shift * 32768 + log2(n >> shift)) >> 5


# ---- what is remembered ------------------------------------------------------------------------


@dataclass
class Slot:
    token: int
    count: int
    check: int


def place(history: list[int], order: int) -> tuple[int, int]:
    """(bucket, check) of the last `order` tokens, newest first."""
    h = 0
    for token in history[:order]:
        h = (h + token + 1) * 0x9E3779B1 % (1 << 32)
    h = (h ^ h >> 15) * 0x2C1B3C6D % (1 << 32)
    h ^= h >> 12
    return h >> 14, h & 255


def state(count: int, others: int) -> int:
    often = count - 1 if count < 4 else 3 if count < 7 else 4
    return 4 * often + (others if others < 2 else 2 if others < 4 else 3)


class Recall:
    def __init__(self, lanes: int) -> None:
        self.histories = [[0] * 6 for _ in range(lanes)]
        self.buckets: dict[tuple[int, int], list[Slot]] = {}

    def look_up(self, lane: int) -> dict[int, dict[int, int]]:
        """Token -> number of an order -> state."""
        found: dict[int, dict[int, int]] = {}
        for i, order in enumerate(ORDERS):
            index, check = place(self.histories[lane], order)
            slots = [slot for slot in self.buckets.get((i, index), []) if slot.check == check]
            total = sum(slot.count for slot in slots)
            for slot in slots:
                found.setdefault(slot.token, {})[i] = state(slot.count, total - slot.count)
        return found

    def remember(self, lane: int, token: int) -> None:
        for i, order in enumerate(ORDERS):
            index, check = place(self.histories[lane], order)
            bucket = self.buckets.setdefault((i, index), [])
            known = [slot for slot in bucket if (slot.token, slot.check) == (token, check)]
            slot = known[0] if known else Slot(token, 0, check)
            if known:
                at = bucket.index(slot)
            else:
                at = min(len(bucket), 3)
                bucket[at:] = [slot]
            slot.count = min(slot.count + 1, 15)
            while at > 0 and bucket[at - 1].count <= slot.count:
                bucket[at - 1], bucket[at] = bucket[at], bucket[at - 1]
                at -= 1
        self.histories[lane] = [token, *self.histories[lane][:5]]


# ---- what is learned ---------------------------------------------------------------------------


@dataclass
class Weight:
    value: int = 0  # log2 in 1/65536
    seen: int = 0

    def learn(self, gradient: int, rate: int = 2, limit: int = 99) -> None:
        self.seen = min(self.seen + abs(gradient), limit << 16)
        step = abs(gradient) * (rate << 16) // (65536 + self.seen)
        self.value = clamp(self.value + (step if gradient > 0 else -step), -(1 << 21), 1 << 21)


@dataclass
class Candidate:
    token: int
    log_p: int
    kinds: list[int]

    def knots(self) -> Iterator[tuple[int, int]]:
        """(number, share in 1/8192) of the two knots that stand around log_p."""
        low, share = divmod(clamp(-self.log_p, 0, 16383), 8192)
        yield low, 8192 - share
        yield low + 1, share


@dataclass
class Choice:
    candidates: list[Candidate]
    log_p_rest: int
    rest: int  # which weight is the rest's

    @property
    def tokens(self) -> list[int]:
        return [candidate.token for candidate in self.candidates]


def make_choice(found: dict[int, dict[int, int]], logits: np.ndarray) -> Choice:
    top = int(logits.max())
    below = top - logits.astype(np.int64)
    weights = np.array(exp2_table())[below % 1024] >> np.minimum(below // 1024, 32)
    total = int(weights.sum())
    likely = np.flatnonzero(512 * weights >= total).tolist()
    tokens = [*found, *(token for token in likely if token not in found)]
    candidates = []
    for token in tokens:
        log_p = 30 * 1024 - int(below[token]) - log2_1024(total)
        log_p = clamp(log_p // 8 * 8, -20 * 1024, 0)
        kinds = [i * STATES + s for i, s in found.get(token, {}).items()]
        kinds.append(len(ORDERS) * STATES + (2 if kinds else 1 if found else 0))
        candidates.append(Candidate(token, log_p, kinds))
    rest = max(total - int(weights[tokens].sum()), 1)
    log_p_rest = log2_1024(rest) - log2_1024(total)
    return Choice(candidates, log_p_rest, clamp(-log_p_rest >> 10, 0, 15) + 16 * bool(found))


def listed_start() -> list[int]:
    """The weights of kinds, then of the rest, in 1/16, as docs/format.md lists them."""
    text = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
    rows = re.findall(r"^    ((?: *-?\d+){31})$", text, re.MULTILINE)
    return [int(number) for row in rows for number in row.split()]


@dataclass
class Chooser:
    bias: dict[int, Weight] = field(default_factory=dict)
    kinds: list[list[Weight]] = field(
        default_factory=lambda: [[Weight() for _ in range(3)] for _ in range(5 * STATES + 3)]
    )
    rests: list[Weight] = field(default_factory=lambda: [Weight() for _ in range(32)])

    @classmethod
    def started(cls) -> "Chooser":
        chooser = cls()
        weights = [weight for row in chooser.kinds for weight in row] + chooser.rests
        for weight, number in zip(weights, listed_start(), strict=True):
            weight.value, weight.seen = number * 4096, 10 << 16
        return chooser

    def bias_of(self, token: int) -> Weight:
        return self.bias.setdefault(token, Weight())

    def intervals(self, choice: Choice) -> list[int]:
        """C_0 ... C_n of the candidates and, last, of all other tokens."""
        scores = []
        for c in choice.candidates:
            more = self.bias_of(c.token).value
            for kind in c.kinds:
                more += sum(self.kinds[kind][i].value * share for i, share in c.knots()) >> 13
            scores.append(c.log_p + (more >> 6))
        scores.append(choice.log_p_rest + (self.rests[choice.rest].value >> 6))
        return cumulative(logit_weights(scores))

    def learn(self, choice: Choice, intervals: list[int], token: int) -> None:
        p = [(end - begin) >> 14 for begin, end in pairwise(intervals)]
        for c, p_c in zip(choice.candidates, p, strict=False):
            gradient = 65536 * (c.token == token) - p_c
            if abs(gradient) < 64:
                continue
            for kind in c.kinds:
                for i, share in c.knots():
                    self.kinds[kind][i].learn(gradient * share >> 13)
            self.bias_of(c.token).learn(gradient, rate=1, limit=19)
        other = token not in choice.tokens
        self.rests[choice.rest].learn(65536 * other - p[-1])
        if other:
            self.bias_of(token).learn(65536, rate=1, limit=19)


def cut(symbols: list[int], lanes: int) -> list[list[int]]:
    """Into lanes alike, the first ones with one more."""
    out, rest = [], symbols
    for left in range(lanes, 0, -1):
        size = -(-len(rest) // left)
        out.append(rest[:size])
        rest = rest[size:]
    return out


def encode(model: LlamaModel, frame: list[int], n_lanes: int, detour: bool = False) -> list[bytes]:
    """The payloads of a frame of these symbols; with a detour, candidates are coded as if they were
    none."""
    lanes = cut(frame, n_lanes)
    a, reference = model.architecture, LlamaReference(model)
    states = [reference.start(1) for _ in lanes]
    coders = [RangeEncoder() for _ in lanes]
    inputs = [a.start] * len(lanes)
    recall, chooser = Recall(len(lanes)), Chooser.started()
    for t in range(max(map(len, lanes))):
        learned = []
        for lane, symbols in enumerate(lanes):
            if t >= len(symbols):
                continue
            logits = reference.step(states[lane], np.array([inputs[lane]]))[0]
            token = symbols[t] if symbols[t] < a.vocabulary else a.escape
            choice = make_choice(recall.look_up(lane), logits)
            c = chooser.intervals(choice)
            learned.append((choice, c, token))
            i = len(choice.tokens)
            if token in choice.tokens and not detour:
                i = choice.tokens.index(token)
            coders[lane].encode(c[i], c[i + 1] - c[i], 30)
            if i == len(choice.tokens):
                logits[choice.tokens] = -LOGIT_MAX
                c = cumulative(logit_weights(logits.tolist()))
                coders[lane].encode(c[token], c[token + 1] - c[token], 30)
            if symbols[t] >= a.vocabulary:
                coders[lane].encode(symbols[t] - a.vocabulary, 1, 8)
            inputs[lane] = token
        for choice, c, token in learned:
            chooser.learn(choice, c, token)
        for lane, symbols in enumerate(lanes):
            if t < len(symbols):
                recall.remember(lane, inputs[lane])
    first, *others = [coder.finish() for coder in coders]
    return [pack_varint(len(frame)) + first, *others]
