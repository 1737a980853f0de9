"""csrc/recall.h and the coding of method 5, readable: docs/format.md in plain Python."""

from dataclasses import dataclass, field

import numpy as np

from lmzip.llama_model import LlamaModel
from lmzip.llama_reference import LlamaReference
from lmzip.reference_coder import RangeEncoder, cumulative, logit_weights
from reference_mixer import STRETCH_MAX, limit_stretch, squash, stretch

ORDERS = (5, 3, 2)
KNOTS, STEP = 33, 192
LOGIT_MAX = 1 << 20


def place(history: list[int], order: int) -> tuple[int, int]:
    """(slot, check) of the last `order` tokens, newest first."""
    h = 0
    for token in history[:order]:
        h = (h + token + 1) * 0x9E3779B1 % (1 << 32)
    h = (h ^ h >> 15) * 0x2C1B3C6D % (1 << 32)
    h ^= h >> 12
    return h >> 12, h & 255


@dataclass
class Slot:
    token: int
    count: int
    check: int


@dataclass
class Recall:
    histories: list[list[int]]
    slots: dict[tuple[int, int], Slot] = field(default_factory=dict)
    knots: list[list[int]] = field(
        default_factory=lambda: [
            [
                min(squash(limit_stretch(i * STEP - STRETCH_MAX - 1)) >> 6, 65535)
                for i in range(KNOTS)
            ]
            for _ in range(48)
        ]
    )

    def guess(self, lane: int) -> tuple[int, int] | None:
        """(token, context) or None."""
        for i, order in enumerate(ORDERS):
            index, check = place(self.histories[lane], order)
            slot = self.slots.get((i, index))
            if slot is not None and slot.check == check:
                return slot.token, 16 * i + slot.count
        return None

    def refine(self, context: int, p16: int) -> int:
        low, weight = divmod(stretch(p16 << 6) + STRETCH_MAX + 1, STEP)
        knots = self.knots[context]
        learned = (knots[low] * (STEP - weight) + knots[low + 1] * weight) // STEP
        return min(max(p16 + 3 * learned >> 2, 1), 65535)

    def adapt(self, context: int, p16: int, right: bool) -> None:
        low, weight = divmod(stretch(p16 << 6) + STRETCH_MAX + 1, STEP)
        nearest = low + (2 * weight >= STEP)
        knots = self.knots[context]
        for i in (low, low + 1):
            knots[i] += ((65535 if right else 0) - knots[i]) >> (5 if i == nearest else 6)

    def remember(self, lane: int, token: int) -> None:
        for i, order in enumerate(ORDERS):
            index, check = place(self.histories[lane], order)
            slot = self.slots.get((i, index))
            if slot is not None and slot.check == check and slot.token == token:
                slot.count = min(slot.count + 1, 15)
            elif slot is not None and slot.count > 1:
                slot.count //= 2
            else:
                self.slots[i, index] = Slot(token, 1, check)
        self.histories[lane] = [token, *self.histories[lane][:4]]


def encode(model: LlamaModel, lanes: list[list[int]]) -> list[bytes]:
    """The payloads of a frame whose lanes are these symbols."""
    a, reference = model.architecture, LlamaReference(model)
    states = [reference.start(1) for _ in lanes]
    coders = [RangeEncoder() for _ in lanes]
    inputs = [a.start] * len(lanes)
    recall = Recall([[0] * 5 for _ in lanes])
    for t in range(max(map(len, lanes))):
        learned = []
        for lane, symbols in enumerate(lanes):
            if t >= len(symbols):
                continue
            logits = reference.step(states[lane], np.array([inputs[lane]]))[0].tolist()
            token = symbols[t] if symbols[t] < a.vocabulary else a.escape
            c = cumulative(logit_weights(logits))
            guess = recall.guess(lane)
            if guess is not None:
                guessed, context = guess
                p16 = min(max(c[guessed + 1] - c[guessed] >> 14, 1), 65535)
                p = recall.refine(context, p16)
                if guessed == token:
                    coders[lane].encode(0, p, 16)
                else:
                    coders[lane].encode(p, 65536 - p, 16)
                    logits[guessed] = -LOGIT_MAX
                    c = cumulative(logit_weights(logits))
                learned.append((context, p16, guessed == token))
            if guess is None or guess[0] != token:
                coders[lane].encode(c[token], c[token + 1] - c[token], 30)
            if symbols[t] >= a.vocabulary:
                coders[lane].encode(symbols[t] - a.vocabulary, 1, 8)
            inputs[lane] = token
        for context, p16, right in learned:
            recall.adapt(context, p16, right)
        for lane, symbols in enumerate(lanes):
            if t < len(symbols):
                recall.remember(lane, inputs[lane])
    return [coder.finish() for coder in coders]
