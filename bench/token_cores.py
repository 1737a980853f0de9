"""What coders of tokens ask of a device, and what it takes the cores: a pretrained model on a text.

    python3 bench/token_cores.py --model FILE --text FILE [--lanes 16] [--bytes 700]

One frame is encoded and decoded in lockstep (csrc/token_lockstep.h) on one thread, with a stand-in
for the device: the native engine and PyTorch's answers.  Printed: how many tokens have 1/512 or
more, which part of the tokens are no candidates, and microseconds of CPU time that the coders take
for a token.  What is decoded is compared with the text.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lmzip import _core, llama_model, token_answers
from lmzip.tokenization import Tokenizer


class Clock:
    """CPU time of this process within calls; stand-ins are outside of it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, work: Callable, *arguments):
        start = time.process_time()
        result = work(*arguments)
        self.seconds += time.process_time() - start
        return result


def signed(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).view(np.int32).copy())


def unsigned(tensor: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.numpy().view(np.uint32))


def encode(native, frame: tuple[list[int], int]):
    """Payloads, rows and answers of each step, and the clock."""
    clock, steps = Clock(), []
    coder = clock(_core.TokenLockstepEncoder, native, [frame], 1)
    engine = _core.LlamaEngine(native, coder.lanes, coder.steps)
    questions = np.zeros((coder.lanes, 1, token_answers.QUESTION_WORDS), np.uint32)
    for _ in range(coder.steps):
        clock(coder.ask, questions)
        inputs = np.ascontiguousarray(questions[..., token_answers.INPUT])
        rows = torch.from_numpy(engine.feed(inputs)[:, 0].copy())
        answers = unsigned(token_answers.answer(rows, signed(questions[:, 0])))
        steps.append((rows, answers))
        clock(coder.take, answers[:, None])
    return clock(coder.finish)[0], steps, clock


def decode(native, payloads: list[bytes], size: int, steps):
    """Bytes, tokens that were searched for, and the clock."""
    clock, searched = Clock(), 0
    coder = clock(_core.TokenLockstepDecoder, native, [(payloads, size)], 1)
    questions = np.zeros((coder.lanes, token_answers.QUESTION_WORDS), np.uint32)
    slots = np.zeros(coder.lanes, np.uint32)
    for rows, _ in steps:
        clock(coder.ask, questions)
        asked = signed(questions)
        answers = token_answers.survey(rows, asked)
        searched += clock(coder.choose, unsigned(answers), slots)
        found = token_answers.search(rows, asked, answers, signed(slots))
        clock(coder.take, unsigned(found))
    return coder.finish(0), searched, clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--bytes", type=int, default=700, help="of a lane")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = llama_model.parse(args.model.read_bytes())
    native = _core.LlamaModel(model.tensors, model.architecture.to_native())
    tokenizer = Tokenizer(model.tokens, model.tokenizer)
    raw = args.text.read_bytes()[: args.lanes * args.bytes]
    frame = tokenizer.encode(raw), args.lanes
    payloads, steps, encoding = encode(native, frame)
    back, searched, decoding = decode(native, payloads, len(raw), steps)
    if back != raw:
        raise SystemExit("the decoded bytes differ: this is a bug in lmzip")
    tokens = len(frame[0])
    counts = [
        answers[lane, token_answers.COUNT]
        for t, (_, answers) in enumerate(steps)
        for lane in range(args.lanes)
        if t * args.lanes + lane < tokens
    ]
    print(f"{model.name}, {args.text.name}: {tokens} tokens in {args.lanes} lanes")
    print(f"tokens of 1/512 and more: {np.mean(counts):.1f} in the mean, {max(counts)} at most")
    print(f"no candidates: {searched / tokens:.3f}")
    for what, clock in (("encode", encoding), ("decode", decoding)):
        print(f"{what}: {1e6 * clock.seconds / tokens:.1f} us of CPU time a token")


if __name__ == "__main__":
    main()
